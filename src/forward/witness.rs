//! Whether a server that was lost is still the same process: another connection to it that outlived the break proves so.
//!
//! A source whose process id says nothing (below 300, e.g. a container's) may have been restarted while its connection was
//! gone. A connection of another forward proves that it was not, if it was there before the server answered this one for the
//! last time, and the server answers over it when the new connection is there. Bytes prove nothing, only answers to what was
//! asked after that moment: a tunnel may still hold bytes of a server that has long been gone.

use std::sync::Arc;
use std::time::Duration;

use super::{Shared, now};
use crate::relay::{Event, Now};

/// How long another connection's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between looks whether it has come.
const LOOK: Duration = Duration::from_millis(10);

/// Others that are asked at most.
const ASKED: usize = 8;

impl Shared {
    /// Whether the server that this forward is connected to again is the process that it was, as far as others can tell.
    pub(super) fn is_same_process(&self) -> bool {
        let answered = self.relay.lock().answered_at();
        if answered.is_zero() {
            return false;
        }
        let server = &self.config.source.server;
        let mut others =
            self.common.forwards_that(|other| other.config.source.server == *server && !std::ptr::eq(other, self));
        let begun = now();
        others = others.into_iter().filter(|other| other.was_there(answered)).take(ASKED).collect();
        for other in &others {
            other.feed(Event::AskSource);
        }
        let vouches = |other: &Arc<Shared>| other.was_there(answered) && other.relay.lock().answered_at() >= begun;
        while !others.is_empty() && now() < begun + PATIENCE {
            if others.iter().any(vouches) {
                return true;
            }
            if self.ended.wait(LOOK) {
                break;
            }
        }
        false
    }

    /// Whether its source connection is there, and was before this moment.
    fn was_there(&self, moment: Now) -> bool {
        self.relay.lock().source_since().is_some_and(|since| since < moment)
    }
}
