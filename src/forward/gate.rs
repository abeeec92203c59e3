//! Connections to one server come about a few at a time: a job server's queue of new connections is short (gearmand's
//! holds 32), and what it drops is tried again only after a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::latch::Latch;
use crate::config::Server;

/// Connections to a server that may be on their way and unanswered.
const AT_ONCE: usize = 16;

/// How often a thread that waits looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(100);

/// The gates of all servers that forwards have connected to.
#[derive(Debug, Default)]
pub struct Gates {
    servers: Mutex<HashMap<Server, Arc<Gate>>>,
}

#[derive(Debug, Default)]
struct Gate {
    passing: Mutex<usize>,
    free: Condvar,
}

/// A place in a gate, which is free again when this is dropped.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl Gates {
    /// Waits for a place to connect to `server`; with none when `stop` is set first, as then it hardly matters.
    pub fn pass(&self, server: &Server, stop: &Latch) -> Option<Pass> {
        let gate = Arc::clone(self.servers.lock().entry(server.clone()).or_default());
        let mut passing = gate.passing.lock();
        while *passing >= AT_ONCE {
            if stop.is_set() {
                return None;
            }
            gate.free.wait_for(&mut passing, LOOK);
        }
        *passing += 1;
        drop(passing);
        Some(Pass(gate))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.0.passing.lock() -= 1;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_few_pass_at_once_and_each_server_has_its_own_gate() {
        let (gates, stop) = (Gates::default(), Latch::default());
        let server = |port| Server { host: "localhost".to_string(), port };
        let mut passes: Vec<_> = (0..AT_ONCE).map(|_| gates.pass(&server(1), &stop).unwrap()).collect();
        assert!(gates.pass(&server(2), &stop).is_some());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gates.pass(&server(1), &stop).is_some());
            passes.pop();
            assert!(waiter.join().unwrap());
        });
        passes.extend(gates.pass(&server(1), &stop));
        stop.set();
        assert!(gates.pass(&server(1), &stop).is_none(), "full, and nobody waits any more");
    }
}
