//! Jobs whose fate the source may not know: kept so that none is delivered twice when it comes again.
//!
//! A forward's ledger belongs to its source server and queue and outlives connections and reloads.

use std::collections::{HashMap, VecDeque};

use super::blame::Blame;

/// Entries of broken connections that are kept at most; the oldest go first.
const CAPACITY: usize = 65_536;

/// What is known of a job that may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The destination has it; the acknowledgement may not have arrived.
    Delivered,
    /// It was submitted, under a unique id with this number unless that is 0; nobody knows whether it arrived.
    Unconfirmed(u64, Blame),
}

/// How the last connection to the source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It broke: the server may have been restarted.
    Lost,
    /// The forward closed it.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    entries: HashMap<u128, Entry>,
    order: VecDeque<u128>,
    /// The source's latest that told it from the server before a restart.
    process_id: Option<u32>,
    /// The current or last connection did not learn such a one.
    anonymous: bool,
    ending: Ending,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    fate: Fate,
    /// Its key says nothing of the server's process.
    anonymous: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            entries: HashMap::new(),
            order: VecDeque::new(),
            process_id: None,
            anonymous: true,
            ending: Ending::Lost,
        }
    }
}

impl Ledger {
    /// The source was connected; `process_id` where that tells it from the server before a restart. What was learnt from
    /// another process says nothing of this one's jobs, whose handles start again. A connection that could not learn the
    /// process id proves no such restart, and the keys of what was learnt before can't be met by its jobs.
    pub fn connected(&mut self, process_id: Option<u32>) {
        let closed = self.ending == Ending::Closed;
        if process_id.is_some() && process_id != self.process_id {
            self.entries.clear();
        } else if process_id.is_none() {
            let given_back = |fate| closed && matches!(fate, Fate::Unconfirmed(..));
            self.entries.retain(|_, entry| !entry.anonymous || given_back(entry.fate));
        }
        if self.entries.is_empty() {
            // Also gives the memory of a long list back.
            self.entries = HashMap::new();
            self.order = VecDeque::new();
        }
        self.process_id = process_id.or(self.process_id);
        self.anonymous = process_id.is_none();
    }

    /// The connection has ended.
    pub fn disconnected(&mut self, ending: Ending) {
        self.ending = ending;
    }

    /// Notes the fate of a job whose connection to the source has ended.
    pub fn note(&mut self, key: u128, fate: Fate) {
        if self.entries.insert(key, Entry { fate, anonymous: self.anonymous }).is_none() {
            self.order.push_back(key);
        }
        // Keys that were claimed meanwhile stay in the order until they are at its end.
        while self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }

    /// The fate of a job that has come again; it leaves the ledger.
    pub fn claim(&mut self, key: u128) -> Option<Fate> {
        self.entries.remove(&key).map(|entry| entry.fate)
    }

    /// Whether nothing is known of any job.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivered_job_is_known_when_it_comes_again_from_the_same_process() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400));
        ledger.note(1, Fate::Delivered);
        ledger.connected(Some(400));
        assert_eq!(ledger.claim(1), Some(Fate::Delivered));
        assert_eq!(ledger.claim(1), None);
    }

    #[test]
    fn blame_is_remembered_until_it_is_claimed() {
        let (mut ledger, mut blame) = (Ledger::default(), Blame::default());
        blame.closed(5);
        ledger.connected(Some(400));
        ledger.note(2, Fate::Unconfirmed(0, blame));
        ledger.connected(Some(400));
        assert_eq!(ledger.claim(1), None);
        assert_eq!(ledger.claim(2), Some(Fate::Unconfirmed(0, blame)));
        assert_eq!(ledger.claim(2), None);
    }

    #[test]
    fn another_process_knows_nothing_of_the_old_handles() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400));
        ledger.note(1, Fate::Delivered);
        ledger.note(2, Fate::Unconfirmed(7, Blame::default()));
        ledger.connected(Some(401));
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_connection_that_did_not_learn_the_process_id_makes_nothing_forgotten() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400));
        ledger.note(1, Fate::Delivered);
        ledger.connected(None);
        ledger.note(2, Fate::Delivered);
        ledger.disconnected(Ending::Lost);
        ledger.connected(None);
        assert_eq!(ledger.claim(2), None);
        ledger.connected(Some(400));
        assert_eq!(ledger.claim(1), Some(Fate::Delivered));
    }

    #[test]
    fn where_the_process_id_says_nothing_a_lost_connection_empties_it() {
        let mut ledger = Ledger::default();
        ledger.connected(None);
        ledger.note(1, Fate::Unconfirmed(7, Blame::default()));
        ledger.disconnected(Ending::Lost);
        ledger.connected(None);
        assert!(ledger.is_empty());

        ledger.note(1, Fate::Unconfirmed(7, Blame::default()));
        ledger.note(2, Fate::Delivered);
        ledger.disconnected(Ending::Closed);
        ledger.connected(None);
        assert_eq!(
            ledger.claim(1),
            Some(Fate::Unconfirmed(7, Blame::default())),
            "given back by ourselves: its id is used again"
        );
        assert_eq!(ledger.claim(2), None);
    }

    #[test]
    fn the_oldest_entries_are_dropped() {
        let mut ledger = Ledger::default();
        for key in 0..CAPACITY as u128 + 10 {
            ledger.note(key, Fate::Delivered);
        }
        assert_eq!(ledger.claim(9), None);
        assert_eq!(ledger.claim(10), Some(Fate::Delivered));
        assert!(ledger.entries.len() <= CAPACITY);
    }
}
