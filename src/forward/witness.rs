//! Whether a server that was lost is still the same process: another connection to it that outlived the break proves so.
//!
//! A source whose process id says nothing (below 300, e.g. a container's) may have been restarted while its connection was
//! gone. A connection of another forward that was there before the break, and over which the server still answers when the
//! new one is there, proves that it was not.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Shared, now};
use crate::config::Server;
use crate::relay::{Event, Now};

/// How long another connection's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between looks whether it has come.
const LOOK: Duration = Duration::from_millis(10);

/// A source connection as others may call it to witness.
#[derive(Debug, Default)]
pub struct Witness {
    /// When it was made and when it was last heard or known to be there, microseconds.
    since: AtomicU64,
    heard: AtomicU64,
}

/// The forwards that take from each server.
#[derive(Debug, Default)]
pub struct Witnesses {
    forwards: Mutex<HashMap<Server, Vec<Weak<Shared>>>>,
}

impl Witness {
    /// It has read something.
    pub fn heard(&self) {
        self.heard.store(now().as_micros() as u64, Ordering::Relaxed);
    }
}

impl Witnesses {
    /// A forward has a new source connection.
    pub fn connected(&self, shared: &Arc<Shared>) {
        let now = now().as_micros() as u64;
        shared.witness.since.store(now, Ordering::Relaxed);
        shared.witness.heard.store(now, Ordering::Relaxed);
        let mut forwards = self.forwards.lock();
        let known = forwards.entry(shared.config.source.server.clone()).or_default();
        known.retain(|other| other.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, shared)));
        known.push(Arc::downgrade(shared));
    }

    /// Whether the server that a forward is connected to again is the process that it was, as far as others can tell.
    pub fn is_same(&self, shared: &Shared) -> bool {
        let lost = shared.witness.heard.load(Ordering::Relaxed);
        if lost == 0 {
            return false;
        }
        let begun = now();
        let others: Vec<Arc<Shared>> = {
            let forwards = self.forwards.lock();
            let known = forwards.get(&shared.config.source.server).into_iter().flatten();
            // Those that were there before this one heard the last of its server.
            known.filter_map(Weak::upgrade).filter(|other| other.witness.since.load(Ordering::Relaxed) < lost).collect()
        };
        let others: Vec<_> = others.into_iter().filter(|other| !std::ptr::eq(&**other, shared)).take(8).collect();
        for other in &others {
            other.feed(Event::AskSource);
        }
        let heard = |other: &Arc<Shared>| is_after(&other.witness, begun) && other.source.lock().is_some();
        while !others.is_empty() && now() < begun + PATIENCE {
            if others.iter().any(heard) {
                return true;
            }
            if shared.ended.wait(LOOK) {
                break;
            }
        }
        false
    }
}

fn is_after(witness: &Witness, moment: Now) -> bool {
    witness.heard.load(Ordering::Relaxed) > moment.as_micros() as u64
        && witness.since.load(Ordering::Relaxed) < moment.as_micros() as u64
}

/// A random number that no other relay has; std's keys come from the system's random source, once a process, and differ by a
/// counter that is hashed.
pub fn random() -> u128 {
    let [low, high] = [(), ()].map(|()| RandomState::new().build_hasher().finish());
    u128::from(high) << 64 | u128::from(low)
}
