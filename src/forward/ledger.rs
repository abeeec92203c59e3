//! Jobs whose fate the source may not know: kept so that none is delivered twice when it comes again.
//!
//! A forward's ledger belongs to its source server and queue and outlives connections and reloads.

use std::collections::{HashMap, VecDeque};

/// Entries of broken connections that are kept at most; the oldest go first.
const CAPACITY: usize = 65_536;

/// What is known of a job that may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The destination has it; the acknowledgement may not have arrived.
    Delivered,
    /// It was submitted under a unique id with this number; nobody knows whether it arrived.
    Unconfirmed(u64),
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
    fates: HashMap<u128, Fate>,
    order: VecDeque<u128>,
    process_id: Option<u32>,
    ending: Ending,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger { fates: HashMap::new(), order: VecDeque::new(), process_id: None, ending: Ending::Lost }
    }
}

impl Ledger {
    /// The source was connected; `process_id` where that tells it from the server before a restart. What was learnt from
    /// another process says nothing of this one's jobs, whose handles start again.
    pub fn connected(&mut self, process_id: Option<u32>) {
        let same_process = process_id.is_some() && process_id == self.process_id;
        let unknown = process_id.is_none() && self.process_id.is_none();
        if unknown && self.ending == Ending::Closed {
            self.fates.retain(|_, fate| matches!(fate, Fate::Unconfirmed(_)));
        } else if !same_process {
            self.fates.clear();
        }
        if self.fates.is_empty() {
            // Also gives the memory of a long list back.
            self.fates = HashMap::new();
            self.order = VecDeque::new();
        }
        self.process_id = process_id;
    }

    /// The connection has ended.
    pub fn disconnected(&mut self, ending: Ending) {
        self.ending = ending;
    }

    /// Notes the fate of a job whose connection to the source has ended.
    pub fn note(&mut self, key: u128, fate: Fate) {
        if self.fates.insert(key, fate).is_none() {
            self.order.push_back(key);
        }
        // Keys that were claimed meanwhile stay in the order until they are at its end.
        while self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.fates.remove(&oldest);
            }
        }
    }

    /// The fate of a job that has come again; it leaves the ledger.
    pub fn claim(&mut self, key: u128) -> Option<Fate> {
        self.fates.remove(&key)
    }

    /// Whether nothing is known of any job.
    pub fn is_empty(&self) -> bool {
        self.fates.is_empty()
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
    fn another_process_knows_nothing_of_the_old_handles() {
        for second in [Some(401), None] {
            let mut ledger = Ledger::default();
            ledger.connected(Some(400));
            ledger.note(1, Fate::Delivered);
            ledger.note(2, Fate::Unconfirmed(7));
            ledger.connected(second);
            assert!(ledger.is_empty());
        }
    }

    #[test]
    fn where_the_process_id_says_nothing_a_lost_connection_empties_it() {
        let mut ledger = Ledger::default();
        ledger.connected(None);
        ledger.note(1, Fate::Unconfirmed(7));
        ledger.disconnected(Ending::Lost);
        ledger.connected(None);
        assert!(ledger.is_empty());

        ledger.note(1, Fate::Unconfirmed(7));
        ledger.note(2, Fate::Delivered);
        ledger.disconnected(Ending::Closed);
        ledger.connected(None);
        assert_eq!(ledger.claim(1), Some(Fate::Unconfirmed(7)), "given back by ourselves: its id is used again");
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
        assert!(ledger.fates.len() <= CAPACITY);
    }
}
