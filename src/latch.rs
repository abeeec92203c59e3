//! A flag that is set once and that threads can wait for, also beside channels: how everything that waits is told to stop.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use parking_lot::Mutex;

/// Clones are the same flag.
#[derive(Debug, Clone)]
pub struct Latch {
    /// Nothing is ever sent: the flag is set by closing the channel.
    open: Arc<Mutex<Option<Sender<Infallible>>>>,
    set: Receiver<Infallible>,
}

impl Default for Latch {
    fn default() -> Self {
        let (open, set) = bounded(0);
        Latch { open: Arc::new(Mutex::new(Some(open))), set }
    }
}

impl Latch {
    pub fn set(&self) {
        self.open.lock().take();
    }

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
    fn waiting_threads_are_woken() {
        let latch = Latch::default();
        assert!(!latch.wait(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| latch.wait(Duration::from_secs(60)));
            latch.clone().set();
            assert!(waiter.join().unwrap());
        });
        assert!(latch.is_set());
    }
}
