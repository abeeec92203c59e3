//! What every connection to a destination needs: the clock that finds it hung, and the backoff that leads back to it.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::identity::random_below;
use crate::gearman::connection::{ConnectionError, is_timeout};

/// A write that takes so long has waited for the other side.
const WAITED: Duration = Duration::from_millis(10);

/// The time since a destination last took a byte of ours or sent one, while it owes replies.
///
/// A slow line makes progress; a hung server makes none.
#[derive(Debug)]
pub struct Clock {
    base: Instant,
    limit: Duration,
    owed: AtomicUsize,
    /// Milliseconds after `base`.
    progress: AtomicU64,
    /// Jobs that the destination took on this connection.
    taken: AtomicU64,
}

impl Clock {
    /// A clock for a new connection, which owes nothing; it may be without progress for `limit`.
    pub fn new(limit: Duration) -> Clock {
        Clock {
            base: Instant::now(),
            limit,
            owed: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// The destination took or sent bytes.
    pub fn progressed(&self) {
        self.progress.store(self.base.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Requests are about to be sent that want as many replies.
    pub fn owe(&self, replies: usize) {
        if self.owed.fetch_add(replies, Ordering::AcqRel) == 0 {
            self.progressed();
        }
    }

    /// A reply came; `false` when none was owed.
    pub fn answered(&self) -> bool {
        let owed = self.owed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |owed| owed.checked_sub(1));
        owed.is_ok()
    }

    /// Replies that are owed.
    pub fn owed(&self) -> usize {
        self.owed.load(Ordering::Acquire)
    }

    /// How long there may still be no progress; `None` while nothing is owed.
    pub fn left(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.progress.load(Ordering::Relaxed));
        (self.owed() > 0).then(|| (last + self.limit).saturating_sub(self.base.elapsed()))
    }

    /// The destination is lost if its time is up.
    ///
    /// # Errors
    /// It is.
    pub fn check(&self) -> Result<(), ConnectionError> {
        match self.left() {
            Some(Duration::ZERO) => Err(ConnectionError::NoAnswer(self.limit)),
            _ => Ok(()),
        }
    }

    /// How long there may be no progress.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether there has been no progress for the limit, whatever is owed.
    pub fn is_still(&self) -> bool {
        let last = Duration::from_millis(self.progress.load(Ordering::Relaxed));
        self.base.elapsed() >= last + self.limit
    }

    /// Counts jobs that the destination took.
    pub fn count_taken(&self, jobs: u64) {
        self.taken.fetch_add(jobs, Ordering::Relaxed);
    }

    /// Jobs that the destination took on this connection.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// The writing side of a destination connection.
#[derive(Debug)]
pub struct Link<'c> {
    stream: &'c TcpStream,
    clock: &'c Clock,
}

impl<'c> Link<'c> {
    /// A write that blocks is looked after by the clock, and so is a read.
    ///
    /// # Errors
    /// The socket takes no time limit.
    pub fn new(stream: &'c TcpStream, clock: &'c Clock) -> Result<Link<'c>, ConnectionError> {
        stream.set_write_timeout(Some(clock.limit))?;
        stream.set_read_timeout(None)?;
        Ok(Link { stream, clock })
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The connection broke, or the destination took nothing for the clock's limit.
    pub fn write(&self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.write_slices(&mut [IoSlice::new(bytes)])
    }

    /// Writes all of them, one after the other.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_slices(&self, mut slices: &mut [IoSlice<'_>]) -> Result<(), ConnectionError> {
        let mut stream = self.stream;
        // Slices without bytes go.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let begun = Instant::now();
            match stream.write_vectored(slices) {
                Ok(count) => {
                    IoSlice::advance_slices(&mut slices, count);
                    // Only room that had to be waited for shows that somebody reads at the other end.
                    if begun.elapsed() >= WAITED {
                        self.clock.progressed();
                    }
                }
                // Replies that nobody waited for may make it look as if nothing were owed.
                Err(error) if is_timeout(&error) && self.clock.owed() == 0 => {
                    return Err(ConnectionError::NoAnswer(self.clock.limit));
                }
                Err(error) if is_timeout(&error) => self.clock.check()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The waits between tries: doubling, with jitter, so that many forwards don't come back at one instant.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, next: first }
    }

    /// The next wait: between three quarters and all of the doubled last one.
    pub fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait - Duration::from_micros(random_below(wait.as_micros() as u64 / 4))
    }

    /// Starts again with the shortest wait.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        for expected in [500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            let wait = backoff.next().as_millis() as u64;
            assert!((expected * 3 / 4..=expected).contains(&wait), "{wait} for {expected}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(500));
    }

    #[test]
    fn a_clock_runs_only_while_replies_are_owed() {
        let clock = Clock::new(Duration::ZERO);
        assert!(clock.check().is_ok());
        clock.owe(1);
        assert!(matches!(clock.check(), Err(ConnectionError::NoAnswer(_))));
        assert!(clock.answered());
        assert!(clock.check().is_ok());
        assert!(!clock.answered(), "a reply that nobody owed");
    }
}
