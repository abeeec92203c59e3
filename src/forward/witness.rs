//! Whether a server that was lost is still the same process: another connection to it that outlived the break proves so.
//!
//! A source whose process id says nothing (below 300, e.g. a container's) may have been restarted while its connection was
//! gone. A connection of another forward that was there before the break, and over which the server still answers when the
//! new one is there, proves that it was not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Shared, now};
use crate::relay::Event;

/// How long another connection's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between looks whether it has come.
const LOOK: Duration = Duration::from_millis(10);

/// Others that are asked at most.
const ASKED: usize = 8;

/// A source connection as others may call it to witness.
#[derive(Debug, Default)]
pub struct Witness {
    /// When it was made and when it was last heard or known to be there, microseconds.
    since: AtomicU64,
    heard: AtomicU64,
}

impl Witness {
    /// There is a new connection.
    pub fn connected(&self) {
        self.since.store(now().as_micros() as u64, Ordering::Relaxed);
        self.heard();
    }

    /// It has read something.
    pub fn heard(&self) {
        self.heard.store(now().as_micros() as u64, Ordering::Relaxed);
    }

    fn was_there(&self, moment: u64) -> bool {
        self.since.load(Ordering::Relaxed) < moment
    }
}

impl Shared {
    /// Whether the server that this forward is connected to again is the process that it was, as far as others can tell.
    pub(super) fn is_same_process(&self) -> bool {
        let lost = self.witness.heard.load(Ordering::Relaxed);
        if lost == 0 {
            return false;
        }
        let begun = now();
        // Those that were there before this one heard the last of its server.
        let mut others = self.common.forwards_that(|other| {
            other.config.source.server == self.config.source.server
                && other.witness.was_there(lost)
                && !std::ptr::eq(other, self)
        });
        others.truncate(ASKED);
        for other in &others {
            other.feed(Event::AskSource);
        }
        let moment = begun.as_micros() as u64;
        while !others.is_empty() && now() < begun + PATIENCE {
            let heard = |other: &Shared| other.witness.heard.load(Ordering::Relaxed) > moment;
            if others.iter().any(|other| heard(other) && other.witness.was_there(moment) && other.is_connected()) {
                return true;
            }
            if self.ended.wait(LOOK) {
                break;
            }
        }
        false
    }

    fn is_connected(&self) -> bool {
        self.source.generation().is_some()
    }
}
