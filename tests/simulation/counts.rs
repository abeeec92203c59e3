//! What schedules consist of, in figures.

use crate::clock::Micros;

/// What schedules consist of, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub schedules: u64,
    pub jobs: u64,
    pub faults: u64,
    pub cuts: u64,
    pub kills: u64,
    pub restarts: u64,
    pub outages: u64,
    pub stops: u64,
    pub given_back: u64,
    pub delivered: u64,
    /// Second copies within the exception.
    pub twice: u64,
    /// Jobs that a server dropped after `--job-retries` returns, through no fault of the proxy.
    pub dropped: u64,
    pub proofs: u64,
    pub virtual_seconds: u64,
    pub steps: u64,
    pub longest_settling: Micros,
    pub longest_stop: Micros,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        let sums = [
            (&mut self.schedules, other.schedules),
            (&mut self.jobs, other.jobs),
            (&mut self.faults, other.faults),
            (&mut self.cuts, other.cuts),
            (&mut self.kills, other.kills),
            (&mut self.restarts, other.restarts),
            (&mut self.outages, other.outages),
            (&mut self.stops, other.stops),
            (&mut self.given_back, other.given_back),
            (&mut self.delivered, other.delivered),
            (&mut self.twice, other.twice),
            (&mut self.dropped, other.dropped),
            (&mut self.proofs, other.proofs),
            (&mut self.virtual_seconds, other.virtual_seconds),
            (&mut self.steps, other.steps),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.longest_settling = self.longest_settling.max(other.longest_settling);
        self.longest_stop = self.longest_stop.max(other.longest_stop);
    }
}
