//! One forward's decisions, and nothing else: no socket, thread, lock, clock, log or random number.
//!
//! The threads around it (`forward`) are pumps. A pump tells what happened ([`Relay::event`]), asks what it is to do now
//! ([`Relay::next`]), and carries out what concerns others ([`Relay::actions`]). A [`Step`] owns what it needs, so that it is
//! done without the lock around the relay. See docs/architecture.md.

#[cfg(test)]
mod driver;
mod event;
mod exchange;
mod flight;
mod intake;
mod job;
mod jobs;
mod ledger;
mod line;
mod outage;
mod outbox;
mod outcome;
mod owed;
mod quarantine;
mod rejects;
mod session;
mod submission;
mod window;

use std::collections::VecDeque;
use std::time::Duration;

pub use event::{Actions, Batch, Cause, Event, LineId, Loss, Now, Pump, Reason, Settings, Staged, Step, Tell, Timing};
pub use flight::{Reply, read_replies};
pub use intake::{Intake, SourcePacket};
pub use job::{Block, Home, Job, Origin, Run, UniqueId, telling};
pub use outbox::{Chunk, Payload};

use jobs::{Held, Jobs};
use ledger::Ledger;
use line::Line;
use outage::Outage;
use rejects::Rejects;
use session::{Phase, Session};

/// Packets without a request that a peer may send before it counts as broken.
const STRAYS: usize = 64;

/// While this much is to be written to the source, no results are read that would add to it, bytes.
const MAX_OUTPUT: usize = 1 << 20;

/// How soon a reader that has no room looks again, as others may have given some back.
const ROOM_LOOK: Duration = Duration::from_millis(100);

/// One forward.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    session: Session,
    lines: Vec<Line>,
    jobs: Jobs,
    /// To be submitted, in the order of arrival.
    waiting: VecDeque<u32>,
    /// To be tried alone: the destination refused them, or closed connections on them.
    suspects: VecDeque<u32>,
    rejects: Rejects,
    outage: Outage,
    ledger: Ledger,
    /// Jobs that the destinations took, over all sessions and reloads.
    taken: u64,
    batches: u64,
    /// In unique ids that are never used again, the random number and the last one counted with it.
    random: u128,
    numbers: u64,
    randoms: u64,
    stopping: Option<Now>,
    /// Jobs whose stages were given up at the stop.
    abandoned: Vec<u32>,
    /// Jobs that went back at the stop.
    left: usize,
    expired: u64,
    reader_parked: bool,
    /// The reader waits until jobs were released.
    reader_is_held_up: bool,
    /// The submitter whose connection the reader is to write.
    direct: Option<usize>,
    /// Bytes that all forwards together may still hold.
    spare: usize,
    now: Now,
    /// Delivered since that was last told: jobs, bytes in, bytes out, time from arrival.
    delivered: (u64, u64, u64, Duration),
    progressed: bool,
    actions: Actions,
}

/// What outlives a relay: a successor for the same source server and queue knows it.
#[derive(Debug, Default)]
pub struct Legacy {
    ledger: Ledger,
    taken: u64,
    probing: bool,
    /// The random number in unique ids that are never used again, and the last one counted with it: the ledger knows ids by
    /// their number alone.
    numbers: Option<(u128, u64)>,
}

impl Legacy {
    /// Whether a successor would know no more with it.
    pub fn is_empty(&self) -> bool {
        self.ledger.is_empty() && !self.probing
    }
}

impl Relay {
    /// A forward that is not connected yet. `legacy` is what its predecessor knew, or nothing.
    pub fn new(settings: Settings, legacy: Legacy) -> Relay {
        let Legacy { ledger, taken, probing, numbers } = legacy;
        let (random, numbers) = numbers.unwrap_or((settings.random, 0));
        Relay {
            session: Session::new(settings.prefetch_is_explicit, settings.byte_limit),
            lines: (0..settings.workers).map(|_| Line::new()).collect(),
            jobs: Jobs::default(),
            waiting: VecDeque::new(),
            suspects: VecDeque::new(),
            rejects: Rejects::default(),
            outage: Outage { probing, ..Outage::default() },
            ledger,
            taken,
            batches: 0,
            random,
            numbers,
            randoms: 0,
            stopping: None,
            abandoned: Vec::new(),
            left: 0,
            expired: 0,
            reader_parked: false,
            reader_is_held_up: false,
            direct: None,
            spare: usize::MAX,
            now: Now::ZERO,
            delivered: Default::default(),
            progressed: false,
            actions: Actions::default(),
            settings,
        }
    }

    /// What the next relay for the same source is to know. For one that has ended.
    pub fn take_legacy(&mut self) -> Legacy {
        let (ledger, numbers) = (std::mem::take(&mut self.ledger), Some((self.random, self.numbers)));
        Legacy { ledger, taken: self.taken, probing: self.outage.probing, numbers }
    }

    /// Whether everything is over.
    pub fn has_ended(&self) -> bool {
        self.session.phase == Phase::Ended
    }

    /// Jobs that are taken and neither acknowledged nor given back.
    pub fn held(&self) -> usize {
        self.session.window.held()
    }

    /// Their bytes.
    pub fn held_bytes(&self) -> usize {
        self.session.window.held_bytes()
    }

    /// When the oldest of them came.
    pub fn oldest(&self) -> Option<Now> {
        self.jobs.iter().filter(|held| !held.gone).map(|held| held.arrived).min()
    }

    /// Whether the source has nothing for us, as far as it told.
    pub fn is_idle(&self) -> bool {
        self.session.window.asleep() && self.session.window.held() == 0
    }

    /// When a request was sent to the source that it has answered, on this connection or the one before. Zero where none was.
    pub fn answered_at(&self) -> Now {
        self.session.owed.answered_at()
    }

    /// Since when there is a source connection.
    pub fn source_since(&self) -> Option<Now> {
        self.session.since()
    }

    /// What all forwards together may still hold, and what this one may ask for, bytes.
    pub fn set_spare(&mut self, bytes: usize, share: usize) {
        self.spare = bytes;
        self.session.window.set_share(share);
    }

    /// What happened. Afterwards [`Relay::actions`] are due, and a pump asks for its next step.
    pub fn event(&mut self, now: Now, event: Event) {
        self.now = self.now.max(now);
        let now = self.now;
        match event {
            Event::SourceConnected { generation, process_id, same } => {
                self.source_connected(now, generation, process_id, same);
            }
            Event::SourceFailed { generation, loss } => self.source_failed(now, generation, &loss),
            Event::SourcePackets { generation, packets } => self.source_packets(now, generation, packets),
            Event::SourceWritten { generation, buffer, failed } => self.source_written(generation, buffer, failed),
            Event::SourceLost { generation, loss } => self.source_lost(now, generation, &loss),
            Event::SourceProgress { generation } => self.session.write_moved(now, generation),
            Event::HeldUp(Pump::Reader) => self.reader_is_held_up = true,
            Event::HeldUp(Pump::Confirmer(submitter)) => self.stop_reading(submitter),
            Event::HeldUp(_) => {}
            Event::Connected(line) => self.connected(now, line),
            Event::ConnectFailed(line, loss) => self.connect_failed(now, line, &loss),
            Event::Staged { line, number, outcomes, chunk } => self.staged(now, line, number, outcomes, chunk),
            Event::Progress(line) => self.progress(now, line),
            Event::Written { line, rest, failed } => self.written(now, line, rest, failed),
            Event::Replies { line, replies } => self.replies(now, line, replies),
            Event::Lost(line, loss) => self.lost(now, line, &loss),
            Event::Rejected { taken, loss } => self.rejected(now, taken, loss),
            Event::Counted(count) => self.counted(now, count),
            Event::AskSource => self.ask_source(now),
            Event::Time => self.time(now),
            Event::Stop => self.stop(now),
        }
    }

    fn time(&mut self, now: Now) {
        self.lines_at(now);
        self.timeouts_at(now);
        self.check_release(now);
        self.source_at(now);
        self.settle(now);
        self.ask(now);
    }

    fn stop(&mut self, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now);
        if let Phase::Settling { until } = &mut self.session.phase {
            *until = (*until).min(now + self.settings.timing.stop);
        }
        if self.session.phase == Phase::Connecting {
            // Whatever hangs: nothing is held.
            self.actions.close_source = Some(self.session.generation);
            self.session.phase = Phase::Apart;
        }
        self.source_at(now);
        self.settle(now);
    }

    /// What a pump is to do now.
    pub fn next(&mut self, now: Now, pump: Pump) -> Step {
        self.now = self.now.max(now);
        let now = self.now;
        if self.has_ended() {
            return Step::End;
        }
        match pump {
            Pump::Reader => self.next_of_reader(now),
            Pump::Submitter(submitter) => self.next_of_submitter(now, submitter),
            Pump::Confirmer(submitter) => self.next_of_confirmer(now, submitter),
            Pump::Rejecter => self.next_of_rejecter(now),
        }
    }

    fn write_source(&mut self, now: Now) -> Option<Step> {
        let generation = self.session.generation;
        self.session.take_output(now).map(|bytes| Step::WriteSource { generation, bytes })
    }

    fn next_of_reader(&mut self, now: Now) -> Step {
        if std::mem::take(&mut self.reader_is_held_up) {
            self.heard(now);
        }
        if let Some(generation) = self.connect_source(now) {
            return Step::ConnectSource { generation };
        }
        if let Some(step) = self.direct.take().and_then(|submitter| self.write(submitter)) {
            return step;
        }
        if self.session.is_on() {
            if let Some(batch) = self.direct(now) {
                self.direct = Some(batch.line.submitter);
                return Step::Stage(batch);
            }
            if let Some(step) = self.write_source(now) {
                return step;
            }
            let patience = self.session.window.patience(now);
            if !patience.is_zero() {
                self.reader_parked = true;
                return Step::Pause(patience);
            }
            self.ask(now);
            if let Some(step) = self.write_source(now) {
                return step;
            }
            if self.has_room() {
                let expected = self.session.window.on_wire();
                return Step::Read { generation: self.session.generation, expected };
            }
            self.reader_is_held_up = true;
        }
        self.reader_parked = true;
        Step::Park
    }

    fn has_room(&self) -> bool {
        self.session.phase != Phase::Relaying || self.session.window.has_room(1, self.spare) || self.is_at_a_loss()
    }

    fn write(&mut self, submitter: usize) -> Option<Step> {
        let line = self.lines.get_mut(submitter).filter(|line| line.is_up())?;
        let chunk = line.outbox.take()?;
        Some(Step::Write(LineId { submitter, generation: line.generation }, chunk))
    }

    fn next_of_submitter(&mut self, now: Now, submitter: usize) -> Step {
        if let Some(line) = self.lines.get_mut(submitter) {
            line.woken = false;
        }
        if let Some(step) = self.write_source(now).or_else(|| self.write(submitter)) {
            return step;
        }
        if let Some(line) = self.connect(submitter, now) {
            return Step::Connect { line, destination: self.outage.destination };
        }
        if let Some(batch) = self.batch_for(submitter, now) {
            return Step::Stage(batch);
        }
        if submitter == 0 && self.question_is_due(now) {
            self.asking();
            return Step::Count { destination: self.outage.destination };
        }
        if let Some(line) = self.lines.get_mut(submitter) {
            line.parked = true;
        }
        Step::Park
    }

    fn next_of_confirmer(&mut self, now: Now, submitter: usize) -> Step {
        self.stop_reading(submitter);
        if let Some(step) = self.write_source(now) {
            return step;
        }
        if self.session.output() <= MAX_OUTPUT
            && let Some((generation, expected)) = self.reading(submitter, now)
        {
            return Step::Read { generation, expected };
        }
        if let Some(line) = self.lines.get_mut(submitter) {
            line.confirmer_parked = true;
        }
        Step::Park
    }

    fn next_of_rejecter(&mut self, now: Now) -> Step {
        if let Some(step) = self.write_source(now) {
            return step;
        }
        if self.rejects.is_ready(now) {
            let slots = self.rejects.take();
            let mut jobs = Vec::with_capacity(slots.len());
            for slot in slots {
                let unique = self.own_unique_id(slot);
                jobs.extend(self.jobs.get(slot).map(|held| (held.job.clone(), unique)));
            }
            return Step::Reject(jobs);
        }
        self.rejects.parked = true;
        Step::Park
    }

    /// Wakes the parked pumps that have something to do.
    fn wake_ready(&mut self, now: Now) {
        let ended = self.has_ended();
        let output = self.session.has_output();
        let on = self.session.is_on();
        let reader = self.may_connect_source(now) || (on && self.reader_is_held_up && self.has_room());
        if ended || reader {
            self.wake(Pump::Reader);
        }
        if ended || self.rejects.is_ready(now) {
            self.wake(Pump::Rejecter);
        }
        let readable = self.session.output() <= MAX_OUTPUT;
        // One that was woken for work will take it.
        let mut work = self.waiting.len() + self.suspects.len();
        work = work.saturating_sub(self.lines.iter().filter(|line| line.woken).count());
        let mut writer = output;
        for submitter in 0..self.lines.len() {
            if ended || self.lines[submitter].confirmer_parked && readable && self.lines[submitter].is_up() {
                self.wake(Pump::Confirmer(submitter));
            }
            if !self.lines[submitter].parked {
                continue;
            }
            let line = &self.lines[submitter];
            let pending = line.is_up() && line.outbox.is_ready();
            let asks = submitter == 0 && self.question_is_due(now);
            if ended || pending || asks || std::mem::take(&mut writer) || self.may_connect(submitter, now) {
                self.wake(Pump::Submitter(submitter));
            } else if work > 0 && self.can_take(submitter, now) {
                self.wake(Pump::Submitter(submitter));
                work -= if self.settings.asynchronous { work } else { 1 };
            }
        }
        if writer {
            self.wake(Pump::Rejecter);
        }
    }

    /// What concerns others, to be done at once. After each event and each step.
    pub fn actions(&mut self) -> Actions {
        self.wake_ready(self.now);
        let (jobs, bytes_in, bytes_out, waited) = std::mem::take(&mut self.delivered);
        if jobs > 0 {
            self.tell(Tell::Delivered { jobs, bytes_in, bytes_out, waited });
        } else if std::mem::take(&mut self.progressed) {
            self.tell(Tell::Progress);
        }
        if self.expired > 0 {
            let jobs = std::mem::take(&mut self.expired);
            self.tell(Tell::Expired { jobs });
        }
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Time`] is due; never is [`Now::MAX`].
    pub fn due(&self) -> Now {
        if self.has_ended() {
            return Now::MAX;
        }
        let now = self.now;
        let mut due = Now::MAX;
        self.source_due(&mut due);
        self.lines_due(&mut due);
        due = due.min(self.release_at().unwrap_or(Now::MAX)).min(self.timeouts_due());
        if self.reader_is_held_up && self.reader_parked {
            due = due.min(now + ROOM_LOOK);
        }
        // What only waits for a moment; one that has passed waits for something else.
        let moments = self.outage.moments().chain(self.rejects.moment()).chain(self.connect_moments());
        moments.filter(|&moment| moment > now).fold(due, Now::min)
    }

    fn tell(&mut self, tell: Tell) {
        self.actions.tell.push(tell);
    }

    fn tell_progress(&mut self) {
        self.progressed = true;
    }

    fn delivered(&mut self, now: Now, held: &Held, sent: u32) {
        let (jobs, bytes_in, bytes_out, waited) = &mut self.delivered;
        *jobs += 1;
        *bytes_in += held.job.data().len() as u64;
        *bytes_out += u64::from(sent);
        *waited += now.saturating_sub(held.arrived);
    }

    /// The next of this relay's random numbers (splitmix64).
    fn random(&mut self) -> u64 {
        self.randoms = self.randoms.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.settings.random as u64).wrapping_add(self.randoms);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::driver::{Driver, seconds, settings};
    use super::ledger::Fate;
    use super::*;

    #[test]
    fn a_legacy_is_empty_where_a_successor_would_know_no_more_with_it() {
        assert!(Legacy::default().is_empty());
        assert!(!Legacy { probing: true, ..Legacy::default() }.is_empty());
        let mut legacy = Legacy::default();
        legacy.ledger.note(1, Fate::Delivered);
        assert!(!legacy.is_empty());
    }

    #[test]
    fn a_successor_knows_what_was_delivered_and_which_ids_were_given() {
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.create(0, b"H:d:1");
        driver.relay.ledger.note(1, Fate::Delivered);
        let legacy = driver.relay.take_legacy();
        assert_eq!((legacy.taken, legacy.numbers, legacy.ledger.is_empty()), (1, Some((7, 1)), false));
        let successor = Relay::new(Settings { random: 8, ..settings(false) }, legacy);
        assert_eq!((successor.taken, successor.random, successor.numbers), (1, 7, 1));
    }

    #[test]
    fn what_is_held_counts_until_it_is_acknowledged() {
        let mut driver = Driver::new(settings(true));
        assert!(!driver.relay.is_idle(), "the source has not said that it has no job");
        driver.answer();
        assert!(driver.relay.is_idle());
        assert_eq!((driver.relay.held(), driver.relay.held_bytes(), driver.relay.oldest()), (0, 0, None));
        for (now, handle) in [(3, b"H:s:1"), (5, b"H:s:2")] {
            driver.now = seconds(now);
            driver.arrive(handle);
        }
        driver.answer();
        assert!(driver.relay.session.window.asleep() && !driver.relay.is_idle(), "two jobs are held");
        let size = Job::of(b"H:s:1", b"", b"data").size();
        assert_eq!((driver.relay.held(), driver.relay.held_bytes()), (2, 2 * size));
        assert_eq!(driver.relay.oldest(), Some(seconds(3)));
        assert_eq!(driver.submit(0).len(), 2);
        driver.create(0, b"");
        assert_eq!((driver.relay.held(), driver.relay.held_bytes()), (1, size));
        assert_eq!(driver.relay.oldest(), Some(seconds(5)));
    }

    #[test]
    fn jobs_whose_source_is_gone_are_not_held() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        let generation = driver.relay.session.generation;
        driver.event(Event::SourceLost { generation, loss: Loss::silent(seconds(1)) });
        assert_eq!((driver.relay.oldest(), driver.relay.held()), (None, 0));
        assert_eq!(driver.relay.jobs.all().len(), 1, "until the destination has replied");
    }

    #[test]
    fn a_relay_tells_since_when_its_source_is_there_and_when_that_was_asked_what_it_answered() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.now = seconds(3);
        driver.event(Event::AskSource);
        assert_eq!(driver.relay.answered_at(), seconds(0), "it has not answered");
        driver.now = seconds(4);
        driver.answer();
        assert_eq!((driver.relay.source_since(), driver.relay.answered_at()), (Some(seconds(0)), seconds(3)));
        driver.lose_source(Loss::silent(seconds(1)));
        assert_eq!((driver.relay.source_since(), driver.relay.answered_at()), (None, seconds(3)));
        driver.wait_until(seconds(10));
        driver.connect_source();
        assert_eq!((driver.relay.source_since(), driver.relay.answered_at()), (Some(seconds(10)), seconds(0)));
    }

    #[test]
    fn a_reader_reads_no_further_while_all_forwards_together_hold_as_much_as_they_may() {
        let mut driver = Driver::new(settings(true));
        driver.arrive_with(b"H:s:1", &[b'd'; 300 << 10]);
        assert!(matches!(driver.next(Pump::Reader), Step::Read { .. }));
        driver.relay.set_spare(0, usize::MAX);
        assert!(matches!(driver.next(Pump::Reader), Step::Park));
        assert_eq!(driver.relay.due(), driver.now + ROOM_LOOK);
        driver.relay.set_spare(1, usize::MAX);
        assert!(matches!(driver.next(Pump::Reader), Step::Read { .. }));
    }

    #[test]
    fn random_numbers_are_those_of_splitmix64() {
        let mut relay = Relay::new(settings(true), Legacy::default());
        let numbers = [relay.random(), relay.random(), relay.random()];
        assert_eq!(numbers, [0x63cb_e1e4_5932_0dd7, 0x044c_3cd7_f43c_661c, 0xe698_4080_bab1_2a02]);
    }

    #[test]
    fn what_was_delivered_is_told_in_sum() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.now = seconds(1);
        driver.arrive(b"H:s:2");
        driver.submit(0);
        driver.now = seconds(3);
        driver.told.clear();
        let line = driver.relay.line_id(0);
        driver.event(Event::Replies { line, replies: vec![Reply::Taken(2)] });
        assert_eq!(driver.told, [Tell::Delivered { jobs: 2, bytes_in: 8, bytes_out: 8, waited: seconds(5) }]);
        driver.told.clear();
        driver.event(Event::Time);
        assert_eq!(driver.told, [], "once");
    }

    #[test]
    fn an_answer_that_takes_no_job_is_progress() {
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.create(0, b"H:d:1");
        driver.until(seconds(10));
        driver.written(0);
        driver.told.clear();
        driver.reply(0, Reply::Echo);
        assert_eq!(driver.told, [Tell::Progress]);
    }

    /// All pumps are parked, but for a reader that reads.
    fn park(driver: &mut Driver) {
        for submitter in 0..driver.relay.lines.len() {
            assert!(driver.submit(submitter).is_empty());
        }
        assert!(matches!(driver.next(Pump::Rejecter), Step::Park));
        driver.woken.clear();
    }

    #[test]
    fn one_submitter_is_woken_for_all_jobs_or_one_for_each_synchronous_one() {
        for (asynchronous, jobs, woken) in [(true, 1, 1), (true, 2, 1), (false, 1, 1), (false, 2, 2)] {
            let mut driver = Driver::new(Settings { workers: 3, prefetch: 4, ..settings(asynchronous) });
            park(&mut driver);
            let generation = driver.relay.session.generation;
            let packets = (0..jobs).map(|_| SourcePacket::Jobs(Job::of(b"H:s:1", b"", b"").alone())).collect();
            driver.event(Event::SourcePackets { generation, packets });
            let submitters: Vec<Pump> = (0..woken).map(Pump::Submitter).collect();
            assert_eq!(driver.woken, submitters, "{jobs} jobs");
            if jobs == woken {
                driver.event(Event::Time);
                assert_eq!(driver.woken, submitters, "one that was woken will take it");
            }
        }
    }

    #[test]
    fn what_is_to_be_written_to_the_source_wakes_one_that_is_parked() {
        let mut driver = Driver::new(settings(true));
        park(&mut driver);
        driver.event(Event::AskSource);
        assert_eq!(driver.woken, [Pump::Submitter(0)]);
        park(&mut driver);
        driver.relay.lines[0].parked = false;
        driver.event(Event::AskSource);
        assert_eq!(driver.woken, [Pump::Submitter(1)]);
        park(&mut driver);
        driver.relay.lines[0].parked = false;
        driver.relay.lines[1].parked = false;
        driver.event(Event::AskSource);
        assert_eq!(driver.woken, [Pump::Rejecter]);
    }

    #[test]
    fn the_first_submitter_is_woken_to_ask_for_the_count_of_a_full_queue() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.reply(0, Reply::Refused(String::from("QUEUE_ERROR")));
        assert!(matches!(driver.next(Pump::Submitter(0)), Step::Count { .. }));
        driver.event(Event::Counted(None));
        driver.relay.outage.full.as_mut().unwrap().next_try = seconds(100);
        park(&mut driver);
        driver.now = seconds(5);
        driver.event(Event::Time);
        assert_eq!(driver.woken, [Pump::Submitter(0)]);
    }

    #[test]
    fn a_rejecter_is_woken_for_what_is_undeliverable() {
        let mut driver = Driver::new(Settings { reject_queue: true, ..settings(true) });
        driver.arrive(b"H:s:1");
        let slot = driver.relay.waiting.pop_front().unwrap();
        park(&mut driver);
        driver.relay.undeliverable(driver.now, slot, Reason::Poison);
        driver.event(Event::Time);
        assert!(driver.woken.contains(&Pump::Rejecter));
    }

    #[test]
    fn all_pumps_end_with_their_forward() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        park(&mut driver);
        driver.event(Event::Stop);
        driver.answer();
        assert!(driver.relay.has_ended());
        for pump in [Pump::Submitter(0), Pump::Submitter(1), Pump::Rejecter] {
            assert!(driver.woken.contains(&pump), "{:?}", driver.woken);
        }
        for pump in [Pump::Reader, Pump::Submitter(0), Pump::Confirmer(0), Pump::Rejecter] {
            assert!(matches!(driver.next(pump), Step::End));
        }
        assert_eq!(driver.relay.due(), Now::MAX);
    }

    #[test]
    fn a_reader_that_is_patient_is_not_woken() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        let step = (0..20).find_map(|_| {
            driver.source_sends(SourcePacket::Noop);
            driver.answer();
            match driver.next(Pump::Reader) {
                Step::Pause(patience) => Some(patience),
                _ => None,
            }
        });
        assert!(step.is_some() && driver.relay.reader_parked);
        driver.woken.clear();
        driver.event(Event::Time);
        assert!(!driver.woken.contains(&Pump::Reader));
    }

    #[test]
    fn only_a_reader_that_has_no_room_looks_again_soon() {
        let mut relay = Relay::new(settings(true), Legacy::default());
        for pump in [Pump::Submitter(0), Pump::Submitter(1)] {
            assert!(matches!(relay.next(Now::ZERO, pump), Step::Connect { .. }));
        }
        assert!(matches!(relay.next(Now::ZERO, Pump::Reader), Step::Park));
        assert_eq!(relay.due(), Now::MAX);

        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.event(Event::HeldUp(Pump::Reader));
        assert!(driver.relay.due() > ROOM_LOOK, "it waits elsewhere");
        driver.lose(0, false);
        driver.now = seconds(1);
        driver.relay.lines[0].state = line::LineState::Down { next_try: seconds(1) };
        driver.event(Event::Time);
        assert!(driver.relay.due() > seconds(1), "what is due now is not due again");
    }
}
