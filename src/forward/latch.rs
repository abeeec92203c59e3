//! A flag that is set once and that threads can wait for, also beside channels.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use parking_lot::Mutex;

/// See the module.
#[derive(Debug)]
pub struct Latch {
    /// Nothing is ever sent: the flag is set by closing the channel.
    open: Mutex<Option<Sender<Infallible>>>,
    set: Receiver<Infallible>,
}

impl Default for Latch {
    fn default() -> Self {
        let (open, set) = bounded(0);
        Latch { open: Mutex::new(Some(open)), set }
    }
}

impl Latch {
    /// Sets the flag.
    pub fn set(&self) {
        self.open.lock().take();
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.set.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for it; `true` when it is set, `false` when the time is up.
    pub fn wait(&self, limit: Duration) -> bool {
        let _ = self.set.recv_deadline(Instant::now() + limit);
        self.is_set()
    }

    /// A channel that is closed when the flag is set, for `select!`.
    pub fn channel(&self) -> &Receiver<Infallible> {
        &self.set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_woken() {
        let latch = Latch::default();
        assert!(!latch.wait(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| latch.wait(Duration::from_secs(60)));
            latch.set();
            assert!(waiter.join().unwrap());
        });
        assert!(latch.is_set());
    }
}
