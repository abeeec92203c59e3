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
        if relaying && self.outage.probing && self.session.window.held() > 0 {
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
        held + free.saturating_sub(self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::{Event, Pump, Reply, Settings, Step};

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut backoff = Backoff::default();
        let mut next =
            |random| backoff.next(Duration::from_millis(500), Duration::from_secs(15), random).as_millis() as u64;
        for (random, expected) in [500, 1000, 2000, 4000, 8000, 15_000, 15_000].into_iter().enumerate() {
            let wait = next((random as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            assert!((expected * 3 / 4..=expected).contains(&wait), "{wait} for {expected}");
        }
        for (random, expected) in [(0, 500_000), (124_999, 375_001), (125_000, 500_000)] {
            backoff.reset();
            let wait = backoff.next(Duration::from_millis(500), Duration::from_secs(15), random);
            assert_eq!(wait, Duration::from_micros(expected));
        }
    }

    fn full() -> Reply {
        Reply::Refused(String::from("QUEUE_ERROR"))
    }

    /// An asynchronous forward whose three jobs were refused at 10 s as the destination's queue is full.
    fn with_full_queue() -> Driver {
        let mut driver = Driver::new(settings(true));
        driver.until(seconds(10));
        for handle in [b"H:s:1", b"H:s:2", b"H:s:3"] {
            driver.arrive(handle);
        }
        assert_eq!(driver.submit(0).len(), 3);
        driver.told.clear();
        for _ in 0..3 {
            driver.reply(0, full());
        }
        driver
    }

    fn count(driver: &mut Driver, count: Option<u64>) {
        assert!(matches!(driver.next(Pump::Submitter(0)), Step::Count { destination: 0 }));
        assert!(matches!(driver.next(Pump::Submitter(0)), Step::Park), "one question at a time");
        driver.event(Event::Counted(count));
    }

    #[test]
    fn a_full_queue_is_told_once_and_one_job_is_tried_with_waits_up_to_two_seconds() {
        let mut driver = with_full_queue();
        let [Tell::DestinationLost { destination: 0, cause, alone: false, held: 3, release, .. }] = &driver.told[..]
        else {
            panic!("{:?}", driver.told)
        };
        assert_eq!((cause, *release), (&Cause::full(), Some(seconds(30))));
        count(&mut driver, Some(1000));
        driver.told.clear();
        let mut tries = Vec::new();
        while driver.now < seconds(20) {
            let due = driver.relay.outage.full.as_ref().unwrap().next_try;
            assert!(driver.relay.due() <= due);
            assert_eq!((driver.submit(0), driver.submit(1)), (Vec::new(), Vec::<Vec<u8>>::new()));
            driver.until(due);
            assert_eq!(driver.submit(0), [b"H:s:1"]);
            assert!(driver.submit(1).is_empty(), "one at a time");
            driver.reply(0, full());
            tries.push(driver.now);
        }
        for pair in tries.windows(2).skip(1) {
            let wait = pair[1] - pair[0];
            assert!(wait >= Duration::from_millis(1500) && wait <= seconds(2), "{wait:?}");
        }
        assert!(driver.told.is_empty(), "{:?}", driver.told);
        let since = driver.now;
        driver.until(since + seconds(2));
        driver.submit(0);
        driver.create(0, b"");
        let after = driver.now - seconds(10);
        assert!(driver.told.contains(&Tell::DestinationBack { destination: 0, after }));
        assert_eq!(driver.submit(0), [&b"H:s:2"[..], b"H:s:3"]);
    }

    #[test]
    fn the_count_of_a_full_queue_is_asked_until_it_is_known() {
        let mut driver = with_full_queue();
        assert!(matches!(driver.next(Pump::Submitter(1)), Step::Park), "the first submitter asks");
        count(&mut driver, None);
        driver.now += WATCH - Duration::from_millis(1);
        driver.relay.outage.full.as_mut().unwrap().next_try = seconds(100);
        assert!(matches!(driver.next(Pump::Submitter(0)), Step::Park));
        assert_eq!(driver.relay.due(), seconds(15));
        driver.now = seconds(15);
        count(&mut driver, Some(5));
        driver.now = seconds(25);
        assert!(matches!(driver.next(Pump::Submitter(0)), Step::Park), "it is known");
    }

    /// The same forward when its jobs have gone back, 30 s later. The destination counted 1000 jobs.
    fn after_the_release() -> Driver {
        let mut driver = with_full_queue();
        count(&mut driver, Some(1000));
        driver.relay.outage.full.as_mut().unwrap().next_try = seconds(100);
        driver.until(seconds(40) - Duration::from_millis(1));
        assert_eq!(driver.relay.session.phase, Phase::Relaying);
        driver.told.clear();
        driver.until(seconds(40));
        assert_eq!(driver.relay.session.phase, Phase::Apart);
        assert!(driver.told.contains(&Tell::GivenBack { jobs: 3 }));
        assert!(matches!(driver.next(Pump::Reader), Step::Park), "nothing is asked for");
        driver
    }

    #[test]
    fn after_the_release_the_count_is_watched_until_it_falls() {
        let mut driver = after_the_release();
        for (now, counted) in [(45, Some(1000)), (50, Some(1001)), (55, None)] {
            driver.now = seconds(now) - Duration::from_millis(1);
            assert!(matches!(driver.next(Pump::Submitter(0)), Step::Park));
            driver.now = seconds(now);
            count(&mut driver, counted);
            assert!(matches!(driver.next(Pump::Reader), Step::Park), "{counted:?} is not less");
        }
        driver.now = seconds(60);
        count(&mut driver, Some(999));
        driver.connect_source();
        assert_eq!(driver.owed().len(), 1, "one job is tried with");
        driver.arrive(b"H:s:1");
        assert_eq!(driver.submit(0), [b"H:s:1"]);
        assert_eq!(driver.owed().len(), 0, "and no second one before it is confirmed");
        driver.create(0, b"");
        assert!(driver.owed().len() > 1);
    }

    #[test]
    fn a_count_that_does_not_fall_is_watched_for_five_minutes() {
        let mut driver = after_the_release();
        driver.until(seconds(340) - Duration::from_millis(1));
        assert!(matches!(driver.next(Pump::Reader), Step::Park));
        assert_eq!(driver.relay.due(), seconds(340));
        driver.until(seconds(340));
        driver.connect_source();
        // What was told of the full queue is taken back when nothing is left that it could refuse.
        driver.told.clear();
        driver.answer();
        assert_eq!(driver.told, [Tell::DestinationBack { destination: 0, after: seconds(330) }]);
    }

    #[test]
    fn a_count_that_falls_before_the_release_ends_nothing() {
        let mut driver = with_full_queue();
        count(&mut driver, Some(1000));
        driver.event(Event::Counted(Some(1)));
        assert!(driver.relay.outage.full.is_some());
    }

    #[test]
    fn while_a_queue_is_full_a_job_is_asked_for_only_where_none_is_held() {
        let mut driver = with_full_queue();
        assert_eq!(driver.relay.ceiling(), 0);
        driver.until(seconds(13));
        driver.submit(0);
        // Its stages could not do it: two are held, then none.
        for _ in 0..3 {
            let slot = driver.relay.jobs.all()[0];
            driver.relay.waiting.retain(|&other| other != slot);
            let held = driver.relay.jobs.remove(slot).unwrap();
            assert_eq!(driver.relay.ceiling(), 0);
            driver.relay.acknowledge(seconds(13), held);
        }
        assert_eq!(driver.relay.ceiling(), 1);
        driver.lose(0, false);
        driver.lose(1, false);
        assert_eq!(driver.relay.ceiling(), 0, "nobody could submit it");
    }

    #[test]
    fn jobs_go_back_when_every_submitter_is_in_trouble_for_30_seconds() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.until(seconds(10));
        driver.lose(0, false);
        driver.until(seconds(100));
        assert_eq!(driver.relay.release_at(), None, "the other one is well");
        driver.told.clear();
        driver.lose(1, false);
        let release = driver.told.iter().find_map(|tell| match tell {
            &Tell::DestinationLost { alone: false, held: 1, release, .. } => release,
            _ => None,
        });
        assert_eq!(release, Some(seconds(30)), "{:?}", driver.told);
        driver.until(seconds(130) - Duration::from_millis(1));
        assert_eq!(driver.relay.session.phase, Phase::Relaying);
        driver.until(seconds(130));
        assert_eq!(driver.relay.session.phase, Phase::Apart);
        assert!(driver.relay.outage.probing);
        assert!(driver.told.contains(&Tell::GivenBack { jobs: 1 }));
        // A submitter that is back is not enough to take more than one job.
        driver.connect(0);
        driver.connect_source();
        assert_eq!((driver.owed().len(), driver.relay.ceiling()), (1, 1));
        driver.arrive(b"H:s:1");
        assert_eq!(driver.relay.ceiling(), 1);
        assert_eq!(driver.relay.release_at(), None, "what is tried with is kept");
        driver.lose(0, false);
        assert_eq!((driver.relay.release_at(), driver.relay.ceiling()), (None, 0));
        driver.until(seconds(300));
        assert_eq!(driver.relay.held(), 1);
        driver.connect(1);
        assert_eq!(driver.submit(1), [b"H:s:1"]);
        driver.create(1, b"");
        assert!(!driver.relay.outage.probing);
        assert_eq!(driver.relay.ceiling(), 4096);
    }

    #[test]
    fn what_moves_on_a_line_in_trouble_puts_the_release_off() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        for submitter in [0, 1] {
            driver.lose(submitter, false);
        }
        driver.until(seconds(5));
        driver.connect(0);
        assert_eq!(driver.relay.release_at(), Some(seconds(30)));
        assert_eq!(driver.submit(0), [b"H:s:1"]);
        driver.now = seconds(9);
        driver.event(Event::Progress(driver.relay.line_id(0)));
        assert_eq!(driver.relay.release_at(), Some(seconds(39)));
        driver.create(0, b"");
        assert_eq!(driver.relay.release_at(), None);
    }

    fn with_destinations(destinations: usize) -> Driver {
        Driver::new(Settings { destinations, ..settings(true) })
    }

    fn switches(driver: &Driver) -> Vec<(usize, bool)> {
        let switch = |tell: &Tell| match *tell {
            Tell::Switched { destination, released } => Some((destination, released)),
            _ => None,
        };
        driver.told.iter().filter_map(switch).collect()
    }

    #[test]
    fn when_jobs_went_back_the_next_destination_is_tried_at_once() {
        let mut driver = with_destinations(3);
        for expected in [1, 2, 0] {
            driver.arrive(b"H:s:1");
            driver.told.clear();
            for submitter in [0, 1] {
                driver.lose(submitter, false);
            }
            driver.until(driver.now + seconds(30) - Duration::from_millis(1));
            assert_eq!(switches(&driver), []);
            driver.until(driver.now + Duration::from_millis(1));
            assert_eq!(switches(&driver), [(expected, true)]);
            assert_eq!((driver.connect(0), driver.connect(1)), (expected, expected));
            driver.connect_source();
            driver.arrive(b"H:s:1");
            driver.submit(0);
            driver.create(0, b"");
        }
    }

    #[test]
    fn what_is_tried_with_goes_to_the_next_destination_when_this_one_does_not_come_back() {
        for (destinations, expected) in [(1, &[][..]), (2, &[(1, true)])] {
            let mut driver = with_destinations(destinations);
            driver.relay.outage.probing = true;
            driver.arrive(b"H:s:1");
            driver.until(seconds(10));
            driver.lose(0, false);
            driver.until(seconds(60));
            assert_eq!(switches(&driver), [], "the other submitter is well");
            driver.lose(1, false);
            driver.until(seconds(90) - Duration::from_millis(1));
            assert_eq!(switches(&driver), []);
            driver.until(seconds(90));
            assert_eq!(switches(&driver), expected);
            assert_eq!(driver.relay.held(), 1, "it is kept");
        }
    }

    #[test]
    fn a_forward_with_one_destination_never_switches() {
        let mut driver = with_destinations(1);
        driver.arrive(b"H:s:1");
        for submitter in [0, 1] {
            driver.lose(submitter, false);
        }
        driver.until(seconds(100));
        assert_eq!(switches(&driver), []);
        assert_eq!(driver.connect(0), 0);
    }

    #[test]
    fn a_synchronous_forward_asks_for_as_many_jobs_as_submitters_are_free() {
        let mut driver = Driver::new(settings(false));
        assert_eq!(driver.relay.ceiling(), 2);
        driver.arrive(b"H:s:1");
        assert_eq!(driver.relay.ceiling(), 2);
        driver.submit(0);
        assert_eq!(driver.relay.ceiling(), 2);
        driver.lose(1, false);
        assert_eq!(driver.relay.ceiling(), 1);
        driver.lose(0, false);
        assert_eq!(driver.relay.ceiling(), 1);
        driver.until(seconds(1));
        driver.connect(0);
        driver.submit(0);
        driver.create(0, b"H:d:1");
        assert_eq!(driver.relay.ceiling(), 1, "the other submitter is not connected");
    }

    #[test]
    fn a_forward_that_stops_asks_for_nothing() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        assert_eq!(driver.relay.ceiling(), 4096);
        driver.event(Event::Stop);
        assert_eq!(driver.relay.ceiling(), 0);
        assert_eq!(driver.relay.release_at(), None);
        for submitter in [0, 1] {
            driver.lose(submitter, false);
        }
        assert_eq!(driver.relay.release_at(), None);
    }

    #[test]
    fn a_forward_that_tries_with_one_job_and_has_none_leaves_its_source_before_it_switches() {
        let mut driver = with_destinations(2);
        driver.relay.outage.probing = true;
        for submitter in [0, 1] {
            driver.lose(submitter, false);
        }
        driver.until(seconds(30) - Duration::from_millis(1));
        assert_eq!((driver.relay.session.phase, switches(&driver)), (Phase::Relaying, vec![]));
        driver.until(seconds(30));
        assert_eq!((driver.relay.session.phase, switches(&driver)), (Phase::Apart, vec![(1, true)]));
    }
}
