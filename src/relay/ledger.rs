//! Jobs whose fate the source may not know: kept so that none is delivered twice when it comes again.
//!
//! A forward's ledger belongs to its source server and queue and outlives connections and reloads. It also knows the handles
//! whose acknowledgement is proven to have arrived: one of them that comes again proves that the server was restarted, even
//! under the same process id, and started its handles again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::job::telling;
use super::quarantine::Blame;

/// Entries of broken connections that are kept at most; the oldest go first.
const CAPACITY: usize = 65_536;

/// Ranges of proven handles that are kept at most; the lowest go first.
const RANGES: usize = 1024;

/// What is known of a job that may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The destination has it; the acknowledgement may not have arrived.
    Delivered,
    /// It was submitted, under a unique id with this number unless that is 0; it is unknown whether it arrived.
    Unconfirmed(u64, Blame),
}

/// How the last connection to the source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// It broke: the server may have been restarted.
    #[default]
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
    /// What the proven handles have before their number.
    prefix: Vec<u8>,
    /// First to last, both proven.
    proven: BTreeMap<u64, u64>,
    /// The range that grew last, not among them.
    latest: Option<(u64, u64)>,
    /// A number of the server's process where its process id does not tell; 0 for the first.
    epoch: u64,
    /// Jobs that went back after they were submitted under an id with an earlier number, and that number.
    earlier: HashMap<u128, u64>,
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
            prefix: Vec::new(),
            proven: BTreeMap::new(),
            latest: None,
            epoch: 0,
            earlier: HashMap::new(),
        }
    }
}

impl Ledger {
    /// The source was connected. What was learnt from another process says nothing of this one's jobs, whose handles start
    /// again. `same` where another connection proves that it is not another process. A connection that could not learn the
    /// process id proves no restart, and the keys of what was learnt before can't be met by its jobs.
    pub fn connected(&mut self, process_id: Option<u32>, same: bool) {
        let process_id = telling(process_id);
        let closed = self.ending == Ending::Closed;
        if process_id.is_some() && process_id != self.process_id {
            self.entries.clear();
            self.proven.clear();
            self.latest = None;
            self.epoch = 0;
            self.earlier.clear();
        } else if process_id.is_none() && !same {
            let given_back = |fate| closed && matches!(fate, Fate::Unconfirmed(..));
            self.entries.retain(|_, entry| !entry.anonymous || given_back(entry.fate));
            self.proven.clear();
            self.latest = None;
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

    /// A job has come, with this number in its handle behind this prefix. Returns `true` where that proves a restart: it was
    /// acknowledged before, and the source knew.
    pub fn proves_restart(&mut self, (prefix, number): (&[u8], u64)) -> bool {
        if prefix != self.prefix {
            prefix.clone_into(&mut self.prefix);
            self.proven.clear();
            self.latest = None;
        }
        self.is_proven(number)
    }

    fn is_proven(&self, number: u64) -> bool {
        let among = |(first, last): (u64, u64)| first <= number && number <= last;
        let below = self.proven.range(..=number).next_back().map(|(&first, &last)| (first, last));
        below.into_iter().chain(self.latest).any(among)
    }

    /// The source was restarted under the same process id: nothing that was delivered is known any more, and `epoch`, a random
    /// number, is part of ids from now on.
    pub fn restarted(&mut self, epoch: u64) {
        self.proven.clear();
        self.latest = None;
        self.entries.clear();
        self.order.clear();
        self.epoch = epoch.max(1);
        self.earlier.clear();
    }

    /// The acknowledgement of the job with this number in its handle is proven to have arrived.
    pub fn proven(&mut self, number: u64) {
        if number == 0 {
            return;
        }
        match &mut self.latest {
            // Mostly they come in order.
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            latest => {
                if let Some((first, last)) = latest.replace((number, number)) {
                    self.keep(first, last);
                }
            }
        }
    }

    /// Adds a range to the proven ones.
    fn keep(&mut self, number: u64, last: u64) {
        let mut last = last;
        while let Some((first, end)) = self.proven.range(number..).next().map(|(&first, &end)| (first, end))
            && first <= last.saturating_add(1)
        {
            self.proven.remove(&first);
            last = end.max(last);
        }
        match self.proven.range_mut(..number).next_back() {
            Some((_, end)) if end.saturating_add(1) >= number => *end = (*end).max(last),
            _ => {
                self.proven.insert(number, last);
                if self.proven.len() > RANGES {
                    self.proven.pop_first();
                }
            }
        }
    }

    /// A job goes back that was submitted under an id with this number.
    pub fn note_epoch(&mut self, key: u128, epoch: u64) {
        if epoch != self.epoch && self.earlier.len() < CAPACITY {
            self.earlier.insert(key, epoch);
        }
    }

    /// The number that must be in the id of a job that has come, where it is not the present one.
    pub fn claim_epoch(&mut self, key: u128) -> Option<u64> {
        if self.earlier.is_empty() { None } else { self.earlier.remove(&key) }
    }

    /// The number of the server's process that is part of new ids.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether a job's hash says nothing of the server's process, so that its id needs a number.
    pub fn needs_numbers(&self) -> bool {
        self.anonymous
    }

    /// Whether nothing is known of any job.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.proven.is_empty() && self.latest.is_none()
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
        if self.entries.is_empty() {
            return None;
        }
        self.entries.remove(&key).map(|entry| entry.fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivered_job_is_known_when_it_comes_again_from_the_same_process() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400), false);
        ledger.note(1, Fate::Delivered);
        ledger.connected(Some(400), false);
        assert_eq!(ledger.claim(1), Some(Fate::Delivered));
        assert_eq!(ledger.claim(1), None);
    }

    #[test]
    fn blame_is_remembered_until_it_is_claimed() {
        let (mut ledger, mut blame) = (Ledger::default(), Blame::default());
        blame.closed(5);
        ledger.connected(Some(400), false);
        ledger.note(2, Fate::Unconfirmed(0, blame));
        ledger.connected(Some(400), false);
        assert_eq!(ledger.claim(1), None);
        assert_eq!(ledger.claim(2), Some(Fate::Unconfirmed(0, blame)));
        assert_eq!(ledger.claim(2), None);
    }

    #[test]
    fn another_process_knows_nothing_of_the_old_handles() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400), false);
        ledger.note(1, Fate::Delivered);
        ledger.note(2, Fate::Unconfirmed(7, Blame::default()));
        ledger.connected(Some(401), false);
        assert_eq!((ledger.claim(1), ledger.claim(2)), (None, None));
    }

    #[test]
    fn a_connection_that_did_not_learn_the_process_id_makes_nothing_forgotten() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400), false);
        ledger.note(1, Fate::Delivered);
        ledger.connected(None, false);
        ledger.note(2, Fate::Delivered);
        ledger.disconnected(Ending::Lost);
        ledger.connected(None, false);
        assert_eq!(ledger.claim(2), None);
        ledger.connected(Some(400), false);
        assert_eq!(ledger.claim(1), Some(Fate::Delivered));
    }

    #[test]
    fn where_the_process_id_says_nothing_a_lost_connection_empties_it() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(299), false);
        ledger.note(1, Fate::Unconfirmed(7, Blame::default()));
        ledger.disconnected(Ending::Lost);
        ledger.connected(Some(299), false);
        assert_eq!(ledger.claim(1), None);

        ledger.note(1, Fate::Unconfirmed(7, Blame::default()));
        ledger.note(2, Fate::Delivered);
        ledger.disconnected(Ending::Closed);
        ledger.connected(None, false);
        let given_back = Some(Fate::Unconfirmed(7, Blame::default()));
        assert_eq!(ledger.claim(1), given_back, "given back by ourselves: its id is used again");
        assert_eq!(ledger.claim(2), None);
    }

    #[test]
    fn another_connection_that_outlived_the_break_proves_that_the_server_is_the_same() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(1), false);
        ledger.note(1, Fate::Delivered);
        ledger.disconnected(Ending::Lost);
        ledger.connected(Some(1), true);
        assert_eq!(ledger.claim(1), Some(Fate::Delivered));
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

    #[test]
    fn it_is_empty_where_nothing_is_known_of_any_job() {
        let mut ledger = Ledger::default();
        assert!(ledger.is_empty());
        ledger.note(1, Fate::Delivered);
        assert!(!ledger.is_empty());
        ledger.claim(1);
        assert!(ledger.is_empty());
        ledger.proven(3);
        assert!(!ledger.is_empty(), "one that is proven may come again");
        ledger.proven(7);
        ledger.latest = None;
        assert!(!ledger.is_empty());
    }

    #[test]
    fn a_number_that_is_not_the_present_one_is_kept_until_its_job_comes_again() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(400), false);
        ledger.restarted(5);
        ledger.note_epoch(1, 5);
        ledger.note_epoch(2, 3);
        assert_eq!((ledger.claim_epoch(1), ledger.claim_epoch(3)), (None, None));
        assert_eq!((ledger.claim_epoch(2), ledger.claim_epoch(2)), (Some(3), None));
        for key in 0..CAPACITY as u128 + 1 {
            ledger.note_epoch(key, 3);
        }
        assert_eq!(ledger.earlier.len(), CAPACITY);
    }

    #[test]
    fn ids_need_numbers_where_the_process_id_does_not_tell() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(299), false);
        assert!(ledger.needs_numbers());
        ledger.connected(Some(300), false);
        assert!(!ledger.needs_numbers());
    }

    #[test]
    fn a_proven_handle_that_comes_again_proves_a_restart() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(333), false);
        assert_eq!(ledger.epoch(), 0);
        for number in [5, 3, 4, 8, 1] {
            assert!(!ledger.proves_restart((b"H:a:", number)));
            ledger.proven(number);
        }
        for number in 0..10 {
            let proven = [1, 3, 4, 5, 8].contains(&number);
            assert_eq!(ledger.proves_restart((b"H:a:", number)), proven, "{number}");
        }
        ledger.note(1, Fate::Delivered);
        ledger.restarted(77);
        assert_eq!(ledger.claim(1), None);
        assert_eq!(ledger.epoch(), 77);
        assert!(!ledger.proves_restart((b"H:a:", 4)));
    }

    #[test]
    fn handles_of_another_host_prove_nothing() {
        let mut ledger = Ledger::default();
        ledger.connected(Some(333), false);
        assert!(!ledger.proves_restart((b"H:a:", 4)));
        ledger.proven(4);
        assert!(!ledger.proves_restart((b"H:b:", 4)));
    }

    #[test]
    fn proven_ranges_are_bounded_and_merge() {
        let mut ledger = Ledger::default();
        for number in 1..=3 * RANGES as u64 {
            ledger.proven(2 * number);
        }
        assert_eq!(ledger.proven.len(), RANGES);
        for number in 2 * RANGES as u64..3 * RANGES as u64 {
            ledger.proven(2 * number + 1);
        }
        ledger.proven(1);
        assert_eq!(ledger.proven.len(), 1);
        assert!(ledger.is_proven(5 * RANGES as u64) && !ledger.is_proven(2 * RANGES as u64 - 2));
    }
}
