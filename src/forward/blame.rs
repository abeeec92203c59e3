//! Jobs that the destination may not bear: it closed connections on them.

use std::collections::HashMap;

/// Closed connections after which a job is undeliverable.
const BREAKS: u8 = 3;

/// Jobs that are remembered at most. They are rare; where they are not, forgetting means more tries.
const CAPACITY: usize = 1024;

/// What a job is blamed for. Whether it was at fault is known only when the destination takes another one between.
#[derive(Debug, Clone, Copy, Default)]
pub struct Blame {
    breaks: u8,
    /// Jobs that the destination had taken at the last of `breaks`.
    taken_at_break: u64,
}

impl Blame {
    /// The destination, which has `taken` so many jobs so far, closed the connection on this one.
    pub fn closed(&mut self, taken: u64) {
        if self.breaks == 0 || taken > self.taken_at_break {
            self.breaks += 1;
            self.taken_at_break = taken;
        }
    }

    /// Whether another try tells nothing before the destination has taken another job.
    pub fn waits(&self, taken: u64) -> bool {
        self.breaks > 0 && self.taken_at_break == taken
    }

    /// Whether the job is undeliverable.
    pub fn is_proved(&self) -> bool {
        self.breaks >= BREAKS
    }
}

/// The blame of jobs that went back to the source, by their keys: where a job is the only one that may be held, others get
/// through only while it is there.
#[derive(Debug, Default)]
pub struct Blames(HashMap<u128, Blame>);

impl Blames {
    /// Remembers a job that goes back.
    pub fn note(&mut self, key: u128, blame: Blame) {
        if self.0.len() >= CAPACITY {
            self.0.clear();
        }
        self.0.insert(key, blame);
    }

    /// What is known of a job that has come again; it is forgotten here.
    pub fn claim(&mut self, key: u128) -> Blame {
        self.0.remove(&key).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_taken_between_two_breaks_makes_the_second_count() {
        let mut blame = Blame::default();
        for taken in [5, 5, 6, 6, 6] {
            blame.closed(taken);
            assert!(!blame.is_proved() && blame.waits(taken));
        }
        assert!(!blame.waits(7));
        blame.closed(7);
        assert!(blame.is_proved());
    }

    #[test]
    fn blame_is_remembered_until_it_is_claimed() {
        let (mut blames, mut blame) = (Blames::default(), Blame::default());
        blame.closed(5);
        blames.note(2, blame);
        assert!(!blames.claim(1).waits(5));
        assert!(blames.claim(2).waits(5));
        assert!(!blames.claim(2).waits(5));
        for key in 0..=CAPACITY as u128 {
            blames.note(key, blame);
        }
        assert!(blames.0.len() <= CAPACITY);
    }
}
