//! Connections to one server come about a few at a time: a job server's queue of new connections is short (gearmand's
//! holds 32), and what it drops is tried again only after a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::Server;
use crate::latch::Latch;

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
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    passing: usize,
    /// When the server last answered one that passed.
    answered: Option<Instant>,
}

/// No connection attempt to this server was answered within the limit.
#[derive(Debug)]
pub struct Stuck;

/// A place in a gate, which is free again when this is dropped.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl Gates {
    /// Waits for a place to connect to `server`; with none when `stop` is set first, as then it hardly matters.
    ///
    /// # Errors
    /// The server answered no connection attempt for `limit`: it hangs, and this attempt reports that like the others.
    pub fn pass(&self, server: &Server, stop: &Latch, limit: Duration) -> Result<Option<Pass>, Stuck> {
        let gate = Arc::clone(self.servers.lock().entry(server.clone()).or_default());
        let mut state = gate.state.lock();
        let begun = Instant::now();
        while state.passing >= AT_ONCE {
            if stop.is_set() {
                return Ok(None);
            }
            if state.answered.map_or(begun, |at| at.max(begun)).elapsed() >= limit {
                return Err(Stuck);
            }
            gate.free.wait_for(&mut state, LOOK);
        }
        state.passing += 1;
        drop(state);
        Ok(Some(Pass(gate)))
    }
}

impl Pass {
    /// The server has answered.
    pub fn answered(&self) {
        self.0.state.lock().answered = Some(Instant::now());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.state.lock().passing -= 1;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn server(port: u16) -> Server {
        Server { host: "localhost".to_string(), port }
    }

    #[test]
    fn only_a_few_pass_at_once_and_each_server_has_its_own_gate() {
        let (gates, stop) = (Gates::default(), Latch::default());
        let pass = |port| gates.pass(&server(port), &stop, LONG).unwrap();
        let mut passes: Vec<_> = (0..AT_ONCE).map(|_| pass(1).unwrap()).collect();
        assert!(pass(2).is_some());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| pass(1).is_some());
            passes.pop();
            assert!(waiter.join().unwrap());
        });
        passes.extend(pass(1));
        stop.set();
        assert!(pass(1).is_none(), "full, and nobody waits any more");
    }

    #[test]
    fn no_attempt_waits_longer_for_a_hung_server_than_those_that_passed() {
        let (gates, stop, limit) = (Gates::default(), Latch::default(), Duration::from_millis(600));
        let passes: Vec<_> = (0..AT_ONCE).map(|_| gates.pass(&server(1), &stop, limit).unwrap().unwrap()).collect();
        let begun = Instant::now();
        assert!(gates.pass(&server(1), &stop, limit).is_err());
        assert!(begun.elapsed() >= limit);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gates.pass(&server(1), &stop, limit));
            std::thread::sleep(limit / 2);
            let begun = Instant::now();
            // It only has much to do.
            passes[0].answered();
            assert!(waiter.join().unwrap().is_err());
            assert!(begun.elapsed() >= limit);
        });
    }
}
