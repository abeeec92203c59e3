//! Trouble with the destination as a whole: when jobs are held, when they return, and what is tried again when.

use std::time::Duration;

use super::event::{Cause, Now, Tell};
use super::session::Phase;
use super::{Relay, Timing};

/// Between questions how many jobs a full queue holds, after a release.
const WATCH: Duration = Duration::from_secs(5);

/// The waits between tries: doubling, with jitter, so that many forwards don't come back at one instant.
#[derive(Debug, Default)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The next wait: between three quarters and all of the doubled last one. `random` is any number.
    pub fn next(&mut self, first: Duration, longest: Duration, random: u64) -> Duration {
        let wait = self.next.max(first).min(longest);
        self.next = (wait * 2).min(longest);
        wait - Duration::from_micros(random % (wait.as_micros() as u64 / 4).max(1))
    }

    /// Starts again with the shortest wait.
    pub fn reset(&mut self) {
        self.next = Duration::ZERO;
    }
}

/// The destination's queue takes no more jobs.
#[derive(Debug)]
pub struct Full {
    /// Since the first refusal, or the last end of a synchronous job.
    pub since: Now,
    /// When one job is tried again.
    pub next_try: Now,
    backoff: Backoff,
    /// A job is being tried.
    pub trial: bool,
    /// The destination's own count when it refused.
    count: Option<u64>,
    /// A question for it is under way.
    asking: bool,
    next_question: Now,
    /// The jobs went back: until then, a count that has not fallen keeps the forward waiting.
    watched_until: Option<Now>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outage {
    /// The destination that is used.
    pub destination: usize,
    /// After a release: one job is tried with.
    pub probing: bool,
    /// The jobs go back: the next destination is tried when they have gone.
    pub switches: bool,
    pub full: Option<Full>,
    /// Since when no submitter is well, if that was told.
    pub since: Option<Now>,
}

impl Outage {
    /// When something is tried again.
    pub fn moments(&self) -> impl Iterator<Item = Now> {
        self.full.iter().flat_map(|full| [Some(full.next_try), Some(full.next_question), full.watched_until]).flatten()
    }
}

impl Relay {
    /// The destination refused a job as its queue is full.
    pub(super) fn queue_is_full(&mut self, now: Now) {
        let random = self.random();
        let Timing { backoff, longest_full_backoff, .. } = self.settings.timing;
        let fresh = self.outage.full.is_none();
        let full = self.outage.full.get_or_insert_with(|| Full {
            since: now,
            next_try: now,
            backoff: Backoff::default(),
            trial: false,
            count: None,
            asking: false,
            next_question: now,
            watched_until: None,
        });
        full.trial = false;
        let retry = full.backoff.next(backoff, longest_full_backoff, random);
        full.next_try = now + retry;
        if fresh {
            self.outage.since.get_or_insert(now);
            let release = self.release_at().map(|at| at.saturating_sub(now));
            let (destination, held) = (self.outage.destination, self.session.window.held());
            self.tell(Tell::DestinationLost { destination, cause: Cause::full(), alone: false, held, retry, release });
        }
    }

    /// Whether the destination's count is to be asked now.
    pub(super) fn question_is_due(&self, now: Now) -> bool {
        self.outage.full.as_ref().is_some_and(|full| {
            let wanted = full.count.is_none() || full.watched_until.is_some();
            wanted && !full.asking && full.next_question <= now
        })
    }

    pub(super) fn asking(&mut self) {
        if let Some(full) = &mut self.outage.full {
            full.asking = true;
        }
    }

    /// The destination's own count came.
    pub(super) fn counted(&mut self, now: Now, count: Option<u64>) {
        let Some(full) = &mut self.outage.full else { return };
        full.asking = false;
        full.next_question = now + WATCH;
        match (full.count, count, full.watched_until) {
            (None, _, _) => full.count = count,
            (Some(before), Some(after), Some(_)) if after < before => self.outage.full = None,
            _ => {}
        }
    }

    /// Returns the jobs to the source when no submitter could submit any for this long.
    pub(super) fn check_release(&mut self, now: Now) {
        if let Some(full) = &self.outage.full
            && full.watched_until.is_some_and(|until| until <= now)
        {
            self.outage.full = None;
        }
        // At a release the session's end switches.
        let relaying = self.session.phase == Phase::Relaying;
        if relaying && self.outage.probing && self.session.window.held() > 0 && self.settings.destinations > 1 {
            // What is tried with is kept, but not at a destination that does not come back.
            if self.trouble_lasts_until().is_some_and(|at| at <= now) {
                self.switch_destination(now);
            }
        }
        if self.release_at().is_some_and(|at| at <= now) {
            self.watch_full(now);
            (self.outage.probing, self.outage.switches) = (true, true);
            self.leave(now);
        }
    }

    /// Nothing is held any more: a full queue is watched from now on, not tried.
    pub(super) fn watch_full(&mut self, now: Now) {
        if let Some(full) = self.outage.full.as_mut().filter(|full| full.watched_until.is_none()) {
            full.watched_until = Some(now + self.settings.timing.full_patience);
            full.next_question = now + WATCH;
            full.trial = false;
        }
    }

    /// When the jobs go back unless something changes.
    pub(super) fn release_at(&self) -> Option<Now> {
        if self.session.phase != Phase::Relaying || self.stopping.is_some() {
            return None;
        }
        let held = self.session.window.held() > 0;
        if self.outage.probing && held {
            return None;
        }
        let release = self.settings.timing.release;
        let running = || self.lines.iter().any(|line| line.is_running());
        if let Some(full) = &self.outage.full
            && held
            && !running()
        {
            return Some(full.since + release);
        }
        self.trouble_lasts_until()
    }

    /// When every submitter has been in trouble for so long that the jobs go back: the last to be so counts.
    fn trouble_lasts_until(&self) -> Option<Now> {
        let since = self.lines.iter().map(|line| line.trouble_since.map(|since| since.max(line.moved_at)));
        let last = since.collect::<Option<Vec<Now>>>()?.into_iter().max()?;
        Some(last + self.settings.timing.release)
    }

    /// A job was taken: what was wrong with the destination has passed.
    pub(super) fn destination_works(&mut self, now: Now) {
        self.outage.full = None;
        self.outage.probing = false;
        self.destination_is_back(now);
    }

    /// Tells that a submitter is well again.
    pub(super) fn destination_is_back(&mut self, now: Now) {
        if let Some(since) = self.outage.since.take() {
            let destination = self.outage.destination;
            self.tell(Tell::DestinationBack { destination, after: now.saturating_sub(since) });
        }
    }

    /// The jobs went back, or what is tried with is not taken: the next destination is tried at once.
    pub(super) fn switch_destination(&mut self, now: Now) {
        if self.name_next_destination(true) {
            for submitter in 0..self.lines.len() {
                self.drop_line(submitter, now);
            }
        }
    }

    /// The next tries to connect are for the next destination, if there is another.
    pub(super) fn name_next_destination(&mut self, released: bool) -> bool {
        let others = self.settings.destinations > 1;
        if others {
            self.outage.destination = (self.outage.destination + 1) % self.settings.destinations;
            self.tell(Tell::Switched { destination: self.outage.destination, released });
        }
        others
    }

    /// Whether all that is held are jobs that may be at fault for closed connections, which is known only when another one is
    /// taken between.
    pub(super) fn is_at_a_loss(&self) -> bool {
        let held = self.session.window.held();
        held > 0
            && self.suspects.len() == held
            && self.suspects.iter().all(|&slot| self.waits(slot))
            && self.lines.iter().any(|line| line.is_up())
    }

    /// Jobs that may be asked for and held now: as many as there are submitters for that are well.
    pub(super) fn ceiling(&self) -> usize {
        let held = self.session.window.held();
        if self.stopping.is_some() || self.session.phase != Phase::Relaying || self.rejects.is_full(&self.settings) {
            return 0;
        }
        if self.is_at_a_loss() {
            return held + 1;
        }
        let up = self.lines.iter().any(|line| line.is_up());
        if self.outage.full.is_some() {
            // Without a job nothing would be tried any more.
            return usize::from(up && held == 0);
        }
        if self.outage.probing {
            return usize::from(up);
        }
        if self.settings.asynchronous {
            let well = self.lines.iter().any(|line| line.is_well());
            return if well { self.settings.prefetch + self.rejects.len() } else { 0 };
        }
        let free = self.lines.iter().filter(|line| line.is_well() && line.is_free()).count();
        let ready = self.waiting.len() + self.suspects.len();
        held + free.saturating_sub(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut backoff = Backoff::default();
        let mut next =
            |random| backoff.next(Duration::from_millis(500), Duration::from_secs(15), random).as_millis() as u64;
        for (random, expected) in [500, 1000, 2000, 4000, 8000, 15_000, 15_000].into_iter().enumerate() {
            let wait = next((random as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            assert!((expected * 3 / 4..=expected).contains(&wait), "{wait} for {expected}");
        }
        backoff.reset();
        assert_eq!(backoff.next(Duration::from_millis(500), Duration::from_secs(15), 0), Duration::from_millis(500));
    }
}
