//! Suspected poison jobs: the destination closed connections on them.

/// Closed connections after which a job is undeliverable.
const BREAKS: u8 = 3;

/// What a job is blamed for. Whether it was at fault is known only when the destination takes another one between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blame {
    breaks: u8,
    /// Jobs that the destination had taken at the last of `breaks`.
    taken_at_break: u64,
}

impl Blame {
    /// The destination, which has `taken` this many jobs so far, closed the connection on this one.
    pub fn closed(&mut self, taken: u64) {
        if !self.waits(taken) {
            self.breaks += 1;
            self.taken_at_break = taken;
        }
    }

    /// Whether the job is blamed at all.
    pub fn is_any(&self) -> bool {
        self.breaks > 0
    }

    /// Whether another try tells nothing before the destination has taken another job.
    pub fn waits(&self, taken: u64) -> bool {
        self.is_any() && self.taken_at_break == taken
    }

    /// Whether the job is undeliverable.
    pub fn is_proved(&self) -> bool {
        self.breaks >= BREAKS
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
}
