//! Connections to one server come about a few at a time: a job server's queue of new connections is short (gearmand's
//! holds 32), and what it drops is tried again only after a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;

use crate::config::Server;
use crate::latch::Latch;

/// Connections to a server that may be on their way and unanswered.
const AT_ONCE: usize = 16;

/// The gates of all servers that forwards have connected to.
#[derive(Debug, Default)]
pub struct Gates {
    servers: Mutex<HashMap<Server, Arc<Gate>>>,
}

#[derive(Debug)]
struct Gate {
    /// Holds one message for each connection on its way.
    passing: (Sender<()>, Receiver<()>),
    /// When the server last answered one that passed.
    answered: Mutex<Option<Instant>>,
}

/// No connection attempt to this server was answered within the limit.
#[derive(Debug)]
pub struct Stuck;

/// A place in a gate, which is free again when this is dropped.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl Default for Gate {
    fn default() -> Self {
        Gate { passing: bounded(AT_ONCE), answered: Mutex::default() }
    }
}

impl Gates {
    /// Waits for a place to connect to `server`; with none when `stop` is set first, as then it hardly matters.
    ///
    /// # Errors
    /// The server answered no connection attempt for `limit`: it hangs, and this attempt reports that like the others.
    pub fn pass(&self, server: &Server, stop: &Latch, limit: Duration) -> Result<Option<Pass>, Stuck> {
        let gate = Arc::clone(self.servers.lock().entry(server.clone()).or_default());
        let begun = Instant::now();
        loop {
            let quiet = gate.answered.lock().map_or(begun, |at| at.max(begun)).elapsed();
            let left = limit.checked_sub(quiet).filter(|left| !left.is_zero()).ok_or(Stuck)?;
            select! {
                send(gate.passing.0, ()) -> _ => return Ok(Some(Pass(gate))),
                recv(stop.channel()) -> _ => return Ok(None),
                default(left) => {}
            }
        }
    }
}

impl Pass {
    /// The server has answered.
    pub fn answered(&self) {
        *self.0.answered.lock() = Some(Instant::now());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let _ = self.0.passing.1.try_recv();
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
