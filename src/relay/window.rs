//! How many jobs a forward asks its source for: what is asked for and held is at most `prefetch`.
//!
//! A pure state machine: the reader tells it what came, each thread that writes to the source asks it what to request.
//!
//! A large window costs caches their warmth, a second proxy its share and a crash more jobs to merge, so it is as large as
//! the distance asks for: what a source can give out in the time that one job takes from its grab to its acknowledgement.

use std::time::Duration;

use super::Now;

/// Grabs on the wire at first and after a NO_JOB: asking a server for many jobs when it has one costs it CPU and the job
/// time, a few cost nothing.
const FIRST_GRABS: usize = 4;

/// Where a job takes longer than this from its grab to its acknowledgement, [`FIRST_GRABS`] follow each NOOP: asking again takes
/// as long again.
const NEAR: Duration = Duration::from_millis(3);

/// Further grabs for each job that came, so that the number on the wire is four times as large after a round trip.
const GROWTH: usize = 3;

/// When this many may be on the wire, the source has plenty, and they become eight times as many.
const PLENTY: usize = 16;
/// See [`PLENTY`].
const FAST_GROWTH: usize = 7;

/// Jobs that are asked for and held at most where both servers are near: they bridge the milliseconds in which one of the
/// threads that a job passes waits for a core.
const NEAR_JOBS: usize = 2048;

/// Further jobs for each millisecond that a job takes: few servers give out more in it.
const JOBS_PER_MILLISECOND: usize = 150;

/// The largest `prefetch`.
const MOST_JOBS: usize = 65_535;

/// Bytes that a forward may hold even when all together hold as much as they may: else forwards whose destinations hang
/// would slow down all others.
const RESERVED_BYTES: usize = 256 << 10;

/// NOOPs that may come without a PRE_SLEEP before them and a job after before the source counts as broken. One for a
/// PRE_SLEEP is right, whichever worker got the job.
const MAX_STRAY_NOOPS: u32 = 1000;

/// NOOPs in a row after which the grabs that answer them are delayed: another worker is faster, or the server is odd.
const PATIENT_NOOPS: u32 = 8;

/// What is to be requested from the source now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// GRAB_JOB_UNIQ.
    pub grabs: usize,
    /// PRE_SLEEP, after them.
    pub sleep: bool,
}

/// The state of one source connection's grabs.
#[derive(Debug)]
pub struct Window {
    /// Whether as many jobs are worth it as the configuration says, whatever the distance.
    explicit: bool,
    byte_limit: usize,
    /// The bytes for which this forward may ask while many are busy.
    share: usize,
    /// Grabs that may be on the wire now.
    ask: usize,
    /// Grabs without an answer.
    on_wire: usize,
    held: usize,
    held_bytes: usize,
    /// A decaying average of the size of jobs, bytes.
    average: usize,
    /// A NO_JOB came: nothing is asked until no grab is on the wire.
    drained: bool,
    /// PRE_SLEEP was sent and no NOOP came since.
    asleep: bool,
    /// A NOOP came, and nothing was asked for since.
    called: bool,
    /// Grabs after a NOOP where jobs come one by one: fewer where those of the last are done with, else several.
    first: usize,
    /// NOOPs brought no job: nothing is asked before this.
    not_before: Now,
    idle_noops: u32,
    stray_noops: u32,
    /// When the first grab was sent after nothing was asked for or held, while its job is not acknowledged.
    asked_at: Option<Now>,
    /// What a job took from its grab to its acknowledgement, the last time that nothing else was under way.
    distance: Duration,
}

impl Window {
    /// A window for a new connection: nothing asked, nothing held.
    pub fn new(explicit: bool, byte_limit: usize) -> Window {
        Window {
            explicit,
            byte_limit,
            share: usize::MAX,
            ask: FIRST_GRABS,
            on_wire: 0,
            held: 0,
            held_bytes: 0,
            average: 0,
            drained: false,
            asleep: false,
            called: false,
            first: FIRST_GRABS,
            not_before: Duration::ZERO,
            idle_noops: 0,
            stray_noops: 0,
            asked_at: None,
            distance: Duration::ZERO,
        }
    }

    /// Asks for no more than this many bytes from now on, but for one job, and for what the configuration says.
    pub fn set_share(&mut self, share: usize) {
        if !self.explicit {
            self.share = share;
        }
    }

    /// Jobs that are worth asking for and holding over this distance.
    fn size(&self) -> usize {
        if self.explicit {
            return MOST_JOBS;
        }
        let micros = usize::try_from(self.distance.as_micros()).unwrap_or(usize::MAX);
        NEAR_JOBS.saturating_add(micros.saturating_mul(JOBS_PER_MILLISECOND) / 1000).min(MOST_JOBS)
    }

    /// A grab was answered by a job of `bytes`.
    pub fn assigned(&mut self, bytes: usize) {
        self.on_wire = self.on_wire.saturating_sub(1);
        self.held += 1;
        self.held_bytes += bytes;
        self.average = if self.average == 0 { bytes } else { (self.average * 7 + bytes) / 8 };
        self.idle_noops = 0;
        self.stray_noops = 0;
        if !self.drained {
            let growth = if self.ask < PLENTY { GROWTH } else { FAST_GROWTH };
            self.ask = (self.ask + growth).min(self.size());
        }
    }

    /// A grab was answered by NO_JOB.
    pub fn no_job(&mut self) {
        self.on_wire = self.on_wire.saturating_sub(1);
        self.drained = true;
        self.ask = FIRST_GRABS;
    }

    /// The source has jobs for a sleeping worker. `false` when it has said so endlessly to one that did not sleep.
    pub fn noop(&mut self, now: Now) -> bool {
        self.idle_noops = self.idle_noops.saturating_add(1);
        if let Some(more) = self.idle_noops.checked_sub(PATIENT_NOOPS)
            && self.on_wire == 0
        {
            self.not_before = now + Duration::from_millis(1000.min(1 << more.min(10)));
        }
        if self.asleep {
            self.asleep = false;
            self.drained = false;
            self.called = true;
            self.first = match self.held {
                0 if self.distance > NEAR => FIRST_GRABS,
                0 => (self.first / 2).max(1),
                _ => (2 * self.first).clamp(FIRST_GRABS, 2 * FIRST_GRABS),
            };
            if self.first <= FIRST_GRABS {
                self.ask = FIRST_GRABS;
            }
        } else {
            self.stray_noops += 1;
        }
        self.stray_noops <= MAX_STRAY_NOOPS
    }

    /// How long to wait before NOOPs that brought no job are answered.
    pub fn patience(&self, now: Now) -> Duration {
        self.not_before.saturating_sub(now)
    }

    /// `jobs` that took `bytes` are no longer held.
    pub fn released(&mut self, jobs: usize, bytes: usize, now: Now) {
        if let Some(asked_at) = self.asked_at.take() {
            self.distance = now.saturating_sub(asked_at);
        }
        self.held = self.held.saturating_sub(jobs);
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// What is due now; it counts as requested. `ceiling` is how many jobs there are submitters for, held ones counted in;
    /// `spare` are the bytes that all forwards together may still hold; `needs`: one job is asked for whatever they are.
    pub fn due(&mut self, ceiling: usize, spare: usize, needs: bool, now: Now) -> Requests {
        if self.asleep || now < self.not_before {
            return Requests::default();
        }
        if self.drained {
            if self.on_wire > 0 {
                return Requests::default();
            }
            self.asleep = true;
            return Requests { grabs: 0, sleep: true };
        }
        let taken = self.on_wire + self.held;
        let by_count = ceiling.min(self.size()).saturating_sub(taken).min(self.ask.saturating_sub(self.on_wire));
        let room = self.room(spare).min(self.share.saturating_sub(self.held_bytes));
        let by_bytes = (room / self.average.max(1)).saturating_sub(self.on_wire);
        let one = taken == 0 || (needs && self.on_wire == 0);
        let grabs = by_count.min(by_bytes.max(usize::from(one)));
        if taken == 0 && grabs > 0 {
            self.asked_at = Some(now);
        }
        if grabs > 0 && std::mem::take(&mut self.called) && self.first <= FIRST_GRABS {
            // Few are there: a PRE_SLEEP at once saves the NO_JOB and a write. If there are more, a NOOP follows.
            let grabs = grabs.min(self.first);
            self.on_wire += grabs;
            self.asleep = true;
            return Requests { grabs, sleep: true };
        }
        self.on_wire += grabs;
        Requests { grabs, sleep: false }
    }

    /// A grab and a PRE_SLEEP although the source has not called, `None` while it owes answers: a probe that also finds a
    /// lost wake-up and a job whose time has come.
    pub fn probe(&mut self, ceiling: usize) -> Option<Requests> {
        if !self.asleep || self.held + self.on_wire >= ceiling {
            return None;
        }
        self.on_wire += 1;
        Some(Requests { grabs: 1, sleep: true })
    }

    /// Grabs without an answer.
    pub fn on_wire(&self) -> usize {
        self.on_wire
    }

    /// Jobs taken and neither acknowledged nor given back.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The bytes of [`Self::held`].
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether `more` bytes may be taken in beside what is held; one job of any size always may.
    pub fn has_room(&self, more: usize, spare: usize) -> bool {
        self.held == 0 || more <= self.room(spare)
    }

    /// Bytes that may be taken in beside what is held.
    fn room(&self, spare: usize) -> usize {
        let reserved = RESERVED_BYTES.saturating_sub(self.held_bytes);
        self.byte_limit.saturating_sub(self.held_bytes).min(spare.max(reserved))
    }

    /// Whether the source has nothing for us, as far as it told.
    pub fn asleep(&self) -> bool {
        self.asleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPARE: usize = usize::MAX;
    const MANY: usize = usize::MAX;

    fn due(window: &mut Window) -> Requests {
        window.due(MANY, SPARE, false, Duration::from_secs(3600))
    }

    fn grabs(window: &mut Window) -> usize {
        due(window).grabs
    }

    fn release(window: &mut Window, jobs: usize, bytes: usize) {
        window.released(jobs, bytes, Duration::from_secs(3600));
    }
    #[test]
    fn it_asks_for_few_first_and_for_more_while_all_bring_jobs() {
        let mut window = Window::new(false, usize::MAX);
        assert_eq!(grabs(&mut window), 4);
        for round in [16, 128, 1024] {
            for _ in 0..window.on_wire() {
                window.assigned(600);
            }
            let (held, bytes) = (window.held, window.held_bytes);
            release(&mut window, held, bytes);
            assert_eq!(grabs(&mut window), round);
        }
    }

    #[test]
    fn asked_for_and_held_are_never_more_than_the_ceiling() {
        let mut window = Window::new(false, usize::MAX);
        for _ in 0..100 {
            window.due(10, SPARE, false, Duration::from_secs(3600));
            assert!(window.on_wire() + window.held() <= 10);
            if window.on_wire() > 0 {
                window.assigned(1);
            } else {
                release(&mut window, 3, 3);
            }
        }
    }

    #[test]
    fn the_window_is_as_large_as_the_distance_asks_for() {
        for (distance, size) in [(0, NEAR_JOBS), (10, NEAR_JOBS + 1500), (200, NEAR_JOBS + 30_000)] {
            let mut window = Window::new(false, usize::MAX);
            let start = Duration::ZERO;
            window.due(MANY, SPARE, false, start);
            window.assigned(600);
            window.released(1, 600, start + Duration::from_millis(distance));
            let (mut most, mut now) = (0, start);
            for _ in 0..100_000 {
                now += Duration::from_micros(10);
                window.due(MANY, SPARE, false, now);
                most = most.max(window.on_wire() + window.held());
                window.assigned(600);
                if window.held() > window.on_wire() {
                    window.released(1, 600, now);
                }
            }
            assert_eq!(most, size, "{distance} ms");
        }
    }

    #[test]
    fn after_a_no_job_it_waits_for_all_answers_and_sleeps() {
        let mut window = Window::new(false, usize::MAX);
        assert_eq!(grabs(&mut window), FIRST_GRABS);
        window.no_job();
        window.assigned(1);
        while window.on_wire() > 0 {
            assert_eq!(due(&mut window), Requests::default(), "answers are still to come");
            window.no_job();
        }
        assert_eq!(due(&mut window), Requests { grabs: 0, sleep: true });
        assert_eq!(due(&mut window), Requests::default(), "asleep");
    }

    /// A window that was woken with `held` jobs at hand, after a job took this long.
    fn woken(held: usize, distance: Duration) -> Window {
        let mut window = Window::new(false, usize::MAX);
        due(&mut window);
        window.assigned(1);
        window.released(1, 1, Duration::from_secs(3600) + distance);
        for _ in 0..window.on_wire() {
            window.no_job();
        }
        assert!(due(&mut window).sleep);
        (0..held).for_each(|_| window.assigned(1));
        assert!(window.noop(Duration::ZERO));
        window
    }

    #[test]
    fn a_single_job_is_asked_for_with_a_pre_sleep_behind_and_one_more_would_be_called() {
        let mut window = woken(0, Duration::ZERO);
        for grabs in [2, 1, 1] {
            assert_eq!(due(&mut window), Requests { grabs, sleep: true });
            assert_eq!(window.on_wire(), grabs);
            assert_eq!(due(&mut window), Requests::default(), "asleep");
            window.assigned(1);
            (1..grabs).for_each(|_| window.no_job());
            assert_eq!(due(&mut window), Requests::default(), "still asleep");
            release(&mut window, 1, 1);
            assert!(window.noop(Duration::ZERO));
        }
    }

    #[test]
    fn noops_behind_the_jobs_are_answered_by_ever_more_grabs() {
        let mut window = woken(0, Duration::ZERO);
        for grabs in [2, 4] {
            assert_eq!(due(&mut window), Requests { grabs, sleep: true });
            (0..grabs).for_each(|_| window.assigned(1));
            assert!(window.noop(Duration::ZERO));
        }
        let requests = due(&mut window);
        assert!(requests.grabs > FIRST_GRABS && !requests.sleep, "{requests:?}");
        assert!(window.noop(Duration::ZERO), "a NOOP while grabs are out changes nothing");
        assert_eq!(grabs(&mut window), 0);
    }

    #[test]
    fn a_source_that_is_far_is_asked_for_a_few_at_once() {
        assert_eq!(due(&mut woken(0, NEAR * 2)), Requests { grabs: FIRST_GRABS, sleep: true });
        assert!(!due(&mut woken(1, NEAR * 2)).sleep);
        assert_eq!(due(&mut woken(0, NEAR)).grabs, FIRST_GRABS / 2);
    }

    #[test]
    fn after_calls_that_came_while_jobs_were_held_the_next_is_answered_by_several() {
        let mut window = woken(1, Duration::ZERO);
        let asked = grabs(&mut window);
        (0..asked).for_each(|_| window.no_job());
        release(&mut window, 1, 1);
        assert!(due(&mut window).sleep && window.noop(Duration::ZERO));
        assert_eq!(due(&mut window), Requests { grabs: FIRST_GRABS, sleep: true });
    }

    #[test]
    fn a_call_that_nobody_has_room_for_is_answered_later() {
        let mut window = woken(0, Duration::ZERO);
        assert_eq!(window.due(0, SPARE, false, Duration::from_secs(3600)), Requests::default());
        assert_eq!(due(&mut window), Requests { grabs: FIRST_GRABS / 2, sleep: true });
    }

    #[test]
    fn one_job_that_is_needed_is_asked_for_whatever_is_held() {
        let mut window = Window::new(false, 1000);
        let now = Duration::from_secs(3600);
        (0..grabs(&mut window)).for_each(|_| window.assigned(1000));
        assert_eq!(grabs(&mut window), 0);
        assert_eq!(window.due(MANY, SPARE, true, now).grabs, 1);
        assert_eq!(window.due(MANY, SPARE, true, now).grabs, 0, "it is on the wire");
    }

    /// As when another worker is faster: all answers are NO_JOB, then it sleeps.
    fn go_without(window: &mut Window) {
        let asked = due(window);
        while window.on_wire() > 0 {
            window.no_job();
        }
        assert!(asked.sleep || due(window).sleep);
    }

    #[test]
    fn noops_without_jobs_are_answered_later_and_later() {
        let mut window = Window::new(false, usize::MAX);
        let mut waits = Vec::new();
        for _ in 0..20 {
            go_without(&mut window);
            assert!(window.noop(Duration::ZERO));
            waits.push(window.patience(Duration::ZERO).as_millis());
        }
        assert_eq!(waits[..7], [0; 7]);
        assert_eq!(waits[7..12], [1, 2, 4, 8, 16]);
        assert_eq!(waits.last(), Some(&1000));
    }

    #[test]
    fn noops_end_the_connection_where_they_are_endless_and_not_where_another_worker_is_faster() {
        let mut window = Window::new(false, usize::MAX);
        for _ in 0..10 * MAX_STRAY_NOOPS {
            go_without(&mut window);
            assert!(window.noop(Duration::ZERO));
        }
        assert!((0..2 * MAX_STRAY_NOOPS).any(|_| !window.noop(Duration::ZERO)));
    }

    #[test]
    fn bytes_bound_what_is_asked_for_but_one_job_always_fits() {
        let mut window = Window::new(false, 1000);
        assert_eq!(grabs(&mut window), FIRST_GRABS);
        for _ in 0..FIRST_GRABS {
            window.assigned(400);
        }
        assert!(!window.has_room(1, SPARE));
        assert_eq!(grabs(&mut window), 0);
        release(&mut window, FIRST_GRABS, 400 * FIRST_GRABS);
        assert_eq!(grabs(&mut window), 2, "two of this size fit");
        window.assigned(5000);
        window.assigned(5000);
        release(&mut window, 2, 10_000);
        assert!(window.has_room(1 << 40, 0));
        assert_eq!(grabs(&mut window), 1);
    }

    #[test]
    fn others_that_hold_all_there_is_leave_room_for_small_jobs() {
        let mut window = Window::new(false, 8 << 20);
        window.due(MANY, 0, false, Duration::ZERO);
        for _ in 0..300 {
            window.assigned(600);
        }
        assert!(window.has_room(600, 0), "180 kB are held");
        for _ in 0..200 {
            window.assigned(600);
        }
        assert!(!window.has_room(600, 0), "300 kB are held");
        assert!(window.has_room(600, SPARE));
    }

    #[test]
    fn a_share_bounds_what_is_asked_for_and_not_what_is_read() {
        let mut window = Window::new(false, 8 << 20);
        window.set_share(10_000);
        let mut most = 0;
        for _ in 0..100 {
            due(&mut window);
            most = most.max(window.held() + window.on_wire());
            window.assigned(600);
            if window.on_wire() == 0 {
                let held = window.held();
                release(&mut window, held, 600 * held);
            }
        }
        assert_eq!(most, 16);
        assert!(window.has_room(20_000, SPARE));
        window.set_share(0);
        let held = window.held();
        release(&mut window, held, 600 * held);
        while window.on_wire() > 0 {
            window.no_job();
        }
        assert!(due(&mut window).sleep && window.noop(Duration::ZERO));
        assert_eq!(grabs(&mut window), 1, "one job always fits");

        let mut window = Window::new(true, 8 << 20);
        window.set_share(0);
        due(&mut window);
        window.assigned(600);
        assert!(grabs(&mut window) > 1, "an explicit prefetch is held");
    }

    #[test]
    fn a_probe_is_one_grab_of_a_sleeping_window() {
        let mut window = Window::new(false, usize::MAX);
        assert_eq!(window.probe(MANY), None, "not asleep");
        for _ in 0..grabs(&mut window) {
            window.no_job();
        }
        assert!(due(&mut window).sleep);
        assert_eq!(window.probe(MANY), Some(Requests { grabs: 1, sleep: true }));
        window.no_job();
        assert_eq!(due(&mut window), Requests::default());
        assert_eq!(window.probe(0), None, "nobody could submit it");
    }

    #[test]
    fn the_first_job_says_how_large_jobs_are() {
        let mut window = Window::new(false, 5000);
        assert_eq!(grabs(&mut window), FIRST_GRABS);
        window.assigned(1000);
        assert_eq!(grabs(&mut window), 1, "three of four that fit are asked for");
    }

    #[test]
    fn a_probe_is_for_one_more_than_is_asked_for_and_held() {
        let mut window = Window::new(false, usize::MAX);
        grabs(&mut window);
        window.assigned(1);
        window.assigned(1);
        window.no_job();
        window.no_job();
        assert!(due(&mut window).sleep);
        assert_eq!(window.probe(2), None, "two are held");
        assert!(window.probe(3).is_some());
        assert_eq!((window.on_wire(), window.probe(3)), (1, None));
        assert!(window.probe(4).is_some());
    }
}
