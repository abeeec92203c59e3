//! Which jobs a submitter takes next, under which unique ids, and what they are when their stages have run.

use super::Relay;
use super::event::{Batch, LineId, Now, Reason, Staged};
use super::exchange::Exchange;
use super::job::{Job, UniqueId};
use super::jobs::Held;
use super::line::Line;
use super::outbox::Chunk;
use super::session::Phase;
use crate::gearman::packet::MAX_UNIQUE_SIZE;

/// Jobs are submitted together up to this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// The most jobs in a batch.
const BATCH_JOBS: usize = 512;

/// A batch that the reader submits by itself: this many jobs and bytes at most.
const DIRECT_JOBS: usize = 2;
const DIRECT_BYTES: usize = 16 << 10;

/// What a submitter may take.
enum Choice {
    /// This job, with nothing else on the line.
    Alone(u32),
    /// From the front of the waiting ones.
    Many,
}

impl Relay {
    /// Whether another try of this job tells nothing before the destination has taken another one.
    pub(super) fn waits(&self, slot: u32) -> bool {
        self.jobs.get(slot).is_some_and(|held| held.blame.waits(self.taken))
    }

    /// What a submitter may take now.
    fn choice(&self, submitter: usize, now: Now) -> Option<Choice> {
        let line = self.lines.get(submitter)?;
        let busy = line.staging.is_some() || line.alone.is_some() || !line.outbox.is_empty() || line.outbox.is_taken();
        if !line.is_up() || busy || self.session.phase != Phase::Relaying {
            return None;
        }
        let first = self.waiting.front().copied();
        let size = first.and_then(|slot| self.jobs.get(slot)).map_or(0, |held| held.job.size() as u64);
        if let Some(stopped) = self.stopping
            && now + line.flight.time_for(size) > stopped + self.settings.timing.unconfirmed
        {
            // It could not be confirmed in time, and would come twice.
            return None;
        }
        let empty = line.is_free();
        if let Some(full) = &self.outage.full {
            let ready = empty && !full.trial && full.next_try <= now;
            return if ready { first.or(self.suspects.front().copied()).map(Choice::Alone) } else { None };
        }
        if !self.settings.asynchronous {
            return if empty { first.map(Choice::Alone) } else { None };
        }
        let suspect = self.suspects.iter().copied().find(|&slot| !self.waits(slot));
        // Others go between two tries of a job that is blamed; those that are only suspected keep their place before them.
        let blamed = |held: &Held| held.refusals > 0 || held.blame.is_any();
        let is_blamed = suspect.and_then(|slot| self.jobs.get(slot)).is_some_and(blamed);
        let turn = !is_blamed || !line.tried_suspect || first.is_none();
        if suspect.is_some() && turn && self.judge() == Some(submitter) {
            // Alone means that nothing else is on the wire: else others' refusals, or a connection closed on them, would
            // count as this job's.
            return if empty { suspect.map(Choice::Alone) } else { None };
        }
        // Nothing else could be taken between its breaks.
        let suspect =
            self.suspects.front().copied().filter(|_| first.is_none() && empty && self.judge() == Some(submitter));
        if suspect.is_some() {
            return suspect.map(Choice::Alone);
        }
        first?;
        let room = line.flight.room(self.settings.timing.unconfirmed, self.settings.workers);
        (line.flight.is_empty() || size <= room).then_some(Choice::Many)
    }

    /// The submitter that tries suspects alone: the first that is up.
    fn judge(&self) -> Option<usize> {
        self.lines.iter().position(Line::is_up)
    }

    pub(super) fn can_take(&self, submitter: usize, now: Now) -> bool {
        self.choice(submitter, now).is_some()
    }

    /// The jobs that a submitter stages next.
    pub(super) fn batch_for(&mut self, submitter: usize, now: Now) -> Option<Batch> {
        let mut jobs = Vec::new();
        let slots = match self.choice(submitter, now)? {
            Choice::Alone(slot) => {
                self.waiting.retain(|&other| other != slot);
                self.suspects.retain(|&other| other != slot);
                self.lines[submitter].tried_suspect = true;
                self.lines[submitter].alone = self.settings.asynchronous.then_some(slot);
                if let Some(full) = &mut self.outage.full {
                    full.trial = true;
                }
                jobs.extend(self.submission(slot));
                vec![slot]
            }
            Choice::Many => {
                self.lines[submitter].tried_suspect = false;
                self.many(submitter, &mut jobs)
            }
        };
        self.batches += 1;
        let number = self.batches;
        self.lines[submitter].staging = Some((number, slots));
        Some(Batch { line: self.line_id(submitter), number, destination: self.lines[submitter].destination, jobs })
    }

    /// A job to be submitted, with its unique id.
    fn submission(&mut self, slot: u32) -> Option<(Job, UniqueId)> {
        let unique = self.unique_id(slot);
        self.jobs.get(slot).map(|held| (held.job.clone(), unique))
    }

    fn many(&mut self, submitter: usize, jobs: &mut Vec<(Job, UniqueId)>) -> Vec<u32> {
        let room = self.lines[submitter].flight.room(self.settings.timing.unconfirmed, self.settings.workers);
        let most = BATCH_BYTES.min(usize::try_from(room).unwrap_or(usize::MAX));
        let (mut slots, mut bytes) = (Vec::with_capacity(self.waiting.len().min(BATCH_JOBS)), 0);
        jobs.reserve(slots.capacity());
        while let Some(&slot) = self.waiting.front() {
            let size = self.jobs.get(slot).map_or(0, |held| held.job.size());
            if !slots.is_empty() && (bytes + size > most || slots.len() >= BATCH_JOBS) {
                break;
            }
            bytes += size;
            slots.extend(self.waiting.pop_front());
            jobs.extend(self.submission(slot));
        }
        slots
    }

    /// A small batch that the reader submits by itself while the submitter waits.
    pub(super) fn direct(&mut self, now: Now) -> Option<Batch> {
        if self.waiting.len() > DIRECT_JOBS {
            return None;
        }
        let size = |slot: &u32| self.jobs.get(*slot).map_or(0, |held| held.job.size());
        if self.waiting.iter().map(size).sum::<usize>() > DIRECT_BYTES {
            return None;
        }
        let submitter = (0..self.lines.len()).find(|&index| self.lines[index].parked && self.can_take(index, now))?;
        self.batch_for(submitter, now)
    }

    /// The unique id under which a job is submitted.
    fn unique_id(&mut self, slot: u32) -> UniqueId {
        let random = self.random;
        if !self.settings.asynchronous {
            // An id that was used before might be merged with a job whose client has gone, and be dropped with it.
            self.numbers += 1;
            return UniqueId::Numbered(random, self.numbers);
        }
        let own = self.jobs.get(slot).map_or(0, |held| held.job.unique().len());
        if (1..=MAX_UNIQUE_SIZE).contains(&own) { UniqueId::Source } else { self.own_unique_id(slot) }
    }

    /// The forward's own unique id for a job, the same each time that the job is seen.
    pub(super) fn own_unique_id(&mut self, slot: u32) -> UniqueId {
        let random = self.random;
        let Some(held) = self.jobs.get_mut(slot) else { return UniqueId::Source };
        if held.number == 0 && self.ledger.needs_numbers() {
            self.numbers += 1;
            held.number = self.numbers;
        }
        if held.number > 0 {
            return UniqueId::Numbered(random, held.number);
        }
        // A restart that is proved later must not give it another id: its copy may be there.
        UniqueId::Hash(*held.epoch.get_or_insert(self.ledger.epoch()))
    }

    /// The stages of a batch were run.
    pub(super) fn staged(&mut self, now: Now, id: LineId, number: u64, outcomes: Vec<Staged>, chunk: Chunk) {
        let Some(line) = self.lines.get_mut(id.submitter) else { return };
        if line.staging.as_ref().is_none_or(|(staged, _)| *staged != number) {
            return;
        }
        let Some((_, slots)) = line.staging.take() else { return };
        let alive = line.is_up() && line.generation == id.generation;
        let mut again = Vec::new();
        let mut gone = false;
        for (slot, outcome) in slots.into_iter().zip(outcomes) {
            if self.jobs.get(slot).is_none_or(|held| held.gone) {
                gone = true;
                self.forget(slot);
                self.lines[id.submitter].alone = None;
                continue;
            }
            let line = &mut self.lines[id.submitter];
            match outcome {
                Staged::Submitted { data, packet } if alive => {
                    line.flight.submit(slot, packet, data, now);
                    if !self.settings.asynchronous
                        && let Some(held) = self.jobs.get_mut(slot)
                    {
                        held.tries = held.tries.saturating_add(1);
                        line.exchange = Some(Exchange::new(slot, data));
                    }
                    continue;
                }
                Staged::Submitted { .. } | Staged::Interrupted => again.push(slot),
                Staged::Abandoned => self.abandoned.push(slot),
                Staged::Undeliverable(undeliverable) => self.undeliverable(now, slot, Reason::Stage(undeliverable)),
                Staged::Expired => self.expired(now, slot),
            }
            self.lines[id.submitter].alone = None;
        }
        if !again.is_empty() || gone {
            if let Some(full) = &mut self.outage.full {
                full.trial = false;
            }
            self.jobs.put_back(&mut self.waiting, &again);
        }
        if alive && !gone {
            self.lines[id.submitter].outbox.push(chunk);
        }
        // Where stages were given up, nothing else may happen before the stop's last moment.
        self.source_at(now);
        self.ask(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::ledger::Fate;
    use crate::relay::quarantine::Blame;
    use crate::relay::{Event, Legacy, Loss, Pump, Relay, Reply, Settings, Step};

    /// A forward with these jobs.
    fn with_jobs(settings: Settings, count: usize) -> Driver {
        let mut driver = Driver::new(settings);
        for number in 1..=count {
            driver.arrive(handle(number).as_bytes());
        }
        driver
    }

    fn handle(number: usize) -> String {
        format!("H:s:{number}")
    }

    fn numbers(handles: Vec<Vec<u8>>) -> Vec<usize> {
        handles.iter().map(|handle| String::from_utf8_lossy(&handle[4..]).parse().unwrap()).collect()
    }

    /// The first waiting job becomes a suspect.
    fn suspect(driver: &mut Driver) -> u32 {
        let slot = driver.relay.waiting.pop_front().unwrap();
        driver.relay.suspects.push_back(slot);
        slot
    }

    #[test]
    fn a_submitter_that_is_busy_takes_nothing() {
        let mut driver = with_jobs(settings(true), 2);
        assert!(driver.relay.can_take(0, driver.now));
        driver.relay.lines[0].outbox.push(Chunk::of(b"bytes".to_vec()));
        assert!(!driver.relay.can_take(0, driver.now), "something is to be written");
        let chunk = driver.relay.lines[0].outbox.take();
        assert!(!driver.relay.can_take(0, driver.now), "a thread writes");
        driver.relay.lines[0].outbox.written(None);
        drop(chunk);
        assert!(driver.relay.can_take(0, driver.now));
        let Step::Stage(batch) = driver.next(Pump::Submitter(0)) else { panic!() };
        driver.arrive(b"H:s:3");
        assert!(!driver.relay.can_take(0, driver.now), "stages run");
        assert!(driver.relay.can_take(1, driver.now));
        let outcomes = vec![Staged::Interrupted, Staged::Interrupted];
        driver.event(Event::Staged { line: batch.line, number: batch.number, outcomes, chunk: Chunk::default() });
        assert!(driver.relay.can_take(0, driver.now));
        suspect(&mut driver);
        assert_eq!(numbers(driver.submit(0)), [1]);
        assert!(!driver.relay.can_take(0, driver.now), "a suspect is on it alone");
        driver.lose(1, false);
        assert!(!driver.relay.can_take(1, driver.now), "it is not connected");
        driver.create(0, b"");
        assert!(driver.relay.can_take(0, driver.now));
        driver.relay.leave(driver.now);
        assert!(!driver.relay.can_take(0, driver.now), "they go back");
    }

    #[test]
    fn a_job_whose_stages_are_given_up_keeps_its_number_for_the_next_time() {
        let mut driver = with_jobs(settings(true), 1);
        let slot = driver.relay.waiting[0];
        let key = driver.relay.jobs.get(slot).unwrap().job.identity().key;
        // It was submitted before, on a line that was lost.
        driver.relay.jobs.get_mut(slot).unwrap().number = 7;
        let Step::Stage(batch) = driver.next(Pump::Submitter(0)) else { panic!() };
        driver.event(Event::Stop);
        let outcomes = vec![Staged::Abandoned];
        driver.event(Event::Staged { line: batch.line, number: batch.number, outcomes, chunk: Chunk::default() });
        driver.lose_source(Loss::silent(seconds(1)));
        assert_eq!(driver.relay.ledger.claim(key), Some(Fate::Unconfirmed(7, Blame::default())));
        assert!(driver.relay.jobs.all().is_empty());
    }

    #[test]
    fn at_a_stop_only_what_can_be_confirmed_in_five_seconds_is_submitted() {
        // Twenty bytes took a second.
        let mut driver = with_jobs(settings(true), 1);
        driver.submit(0);
        let bytes = driver.relay.lines[0].flight.owes();
        assert_eq!(bytes, 1);
        driver.now = seconds(2);
        driver.create(0, b"");
        driver.arrive(b"H:s:2");
        let slot = driver.relay.waiting[0];
        let size = driver.relay.jobs.get(slot).unwrap().job.size() as u64;
        let takes = driver.relay.lines[0].flight.time_for(size);
        assert!(takes > Duration::from_millis(500) && takes < seconds(2), "{takes:?}");
        driver.event(Event::Stop);
        let last = seconds(7) - takes;
        assert!(driver.relay.can_take(0, last));
        assert!(!driver.relay.can_take(0, last + Duration::from_millis(1)));
        assert!(driver.relay.can_take(1, seconds(7)), "nothing was measured there");
        assert!(!driver.relay.can_take(1, seconds(7) + Duration::from_millis(1)));
    }

    #[test]
    fn suspects_are_tried_one_by_one_before_what_came_after_them() {
        let mut driver = with_jobs(settings(true), 3);
        suspect(&mut driver);
        suspect(&mut driver);
        for expected in [1, 2, 3] {
            assert_eq!(numbers(driver.submit(0)), [expected]);
            driver.create(0, b"");
        }
    }

    #[test]
    fn others_go_between_two_tries_of_a_job_that_is_blamed() {
        for refusals in [0, 1] {
            let mut driver = with_jobs(settings(true), 3);
            let slot = suspect(&mut driver);
            let held = driver.relay.jobs.get_mut(slot).unwrap();
            held.refusals = refusals;
            if refusals == 0 {
                // For a connection that was closed, before others were taken.
                held.blame.closed(0);
                driver.relay.taken = 1;
            }
            assert_eq!(numbers(driver.submit(0)), [1]);
            driver.reply(0, Reply::Refused(String::from("OTHER")));
            assert_eq!(numbers(driver.submit(0)), [2, 3]);
            driver.create(0, b"");
            driver.create(0, b"");
            assert_eq!(numbers(driver.submit(0)), [1]);
            driver.reply(0, Reply::Refused(String::from("OTHER")));
            if refusals == 0 {
                assert_eq!(numbers(driver.submit(0)), [1], "nothing else is there");
            }
        }
    }

    #[test]
    fn a_suspect_is_tried_by_the_first_submitter_that_is_connected() {
        for (waits, lost, expected) in [(false, None, 0), (true, None, 0), (false, Some(0), 1), (true, Some(0), 1)] {
            let mut driver = with_jobs(settings(true), 1);
            let slot = suspect(&mut driver);
            if waits {
                driver.relay.jobs.get_mut(slot).unwrap().blame.closed(0);
                assert!(driver.relay.waits(slot) && driver.relay.is_at_a_loss());
                assert_eq!(driver.relay.ceiling(), 2, "whether it is at fault is known when another one is taken");
            }
            if let Some(submitter) = lost {
                driver.lose(submitter, false);
            }
            assert!(driver.submit(1 - expected).is_empty());
            assert_eq!(numbers(driver.submit(expected)), [1]);
        }
    }

    #[test]
    fn what_does_not_fit_beside_what_is_unconfirmed_waits() {
        let mut driver = Driver::new(settings(true));
        let around = super::super::Job::of(b"H:s:1", b"", b"").size();
        let first = vec![0; 1000];
        driver.arrive_with(b"H:s:1", &first);
        assert_eq!(numbers(driver.submit(0)), [1]);
        // A half of 64 KiB for each of two lines.
        let timing = driver.relay.settings.timing.unconfirmed;
        let room = driver.relay.lines[0].flight.room(timing, 2) as usize;
        assert!(room > 31_000 && room < 32_000, "{room}");
        driver.arrive_with(b"H:s:2", &vec![0; room - around + 1]);
        assert!(driver.submit(0).is_empty());
        assert_eq!(numbers(driver.submit(1)), [2], "alone any may go");
        driver.arrive_with(b"H:s:3", &vec![0; room - around]);
        assert_eq!(numbers(driver.submit(0)), [3]);
    }

    #[test]
    fn a_batch_ends_at_its_bytes_or_jobs() {
        let mut driver = Driver::new(settings(true));
        let around = super::super::Job::of(b"H:s:1", b"", b"").size();
        for handle in [b"H:s:1", b"H:s:2", b"H:s:3"] {
            driver.arrive_with(handle, &vec![0; (16 << 10) - around]);
        }
        assert_eq!(numbers(driver.submit(0)), [1, 2], "32 KiB on one of two lines");
        assert_eq!(numbers(driver.submit(1)), [3]);

        let mut driver = Driver::new(Settings { workers: 1, ..settings(true) });
        for number in 0..600 {
            driver.arrive_with(format!("H:s:{number}").as_bytes(), b"");
        }
        assert_eq!(driver.submit(0).len(), BATCH_JOBS);
        // The driver has asked for the next step already.
        let next = driver.relay.lines[0].staging.as_ref().map(|(_, slots)| slots.len());
        assert_eq!(next, Some(600 - BATCH_JOBS));
    }

    #[test]
    fn what_is_told_of_an_earlier_batch_is_ignored() {
        let mut driver = with_jobs(settings(true), 1);
        let Step::Stage(first) = driver.next(Pump::Submitter(0)) else { panic!() };
        driver.event(Event::Staged {
            line: first.line,
            number: first.number,
            outcomes: vec![Staged::Interrupted],
            chunk: Chunk::default(),
        });
        let Step::Stage(second) = driver.next(Pump::Submitter(0)) else { panic!() };
        assert_ne!(first.number, second.number);
        driver.event(Event::Staged {
            line: first.line,
            number: first.number,
            outcomes: vec![Staged::Expired],
            chunk: Chunk::default(),
        });
        assert_eq!((driver.relay.held(), driver.relay.lines[0].staging.is_some()), (1, true));
    }

    #[test]
    fn a_batch_whose_connection_is_lost_while_its_stages_run_goes_to_another() {
        for connected_again in [false, true] {
            let mut driver = with_jobs(settings(true), 2);
            let Step::Stage(batch) = driver.next(Pump::Submitter(0)) else { panic!() };
            driver.lose(0, false);
            if connected_again {
                driver.wait_until(seconds(3));
                driver.connect(0);
            }
            let (outcomes, chunk) =
                (vec![Staged::Submitted { data: 4, packet: 20 }; 2], Chunk::of(b"packets".to_vec()));
            driver.event(Event::Staged { line: batch.line, number: batch.number, outcomes, chunk });
            assert!(driver.relay.lines[0].is_free() && driver.relay.lines[0].outbox.is_empty());
            assert_eq!(numbers(driver.submit(1)), [1, 2]);
        }
    }

    #[test]
    fn the_reader_submits_one_or_two_small_jobs_by_itself_while_a_submitter_is_parked() {
        let size = super::super::Job::of(b"H:s:1", b"", b"").size();
        let large = |bytes: usize| vec![0; bytes - size];
        for (jobs, parked, direct) in [
            (vec![large(100)], true, true),
            (vec![large(100)], false, false),
            (vec![large(100), large(100)], true, true),
            (vec![large(100), large(100), large(100)], true, false),
            (vec![large(100), large(DIRECT_BYTES - 100)], true, true),
            (vec![large(DIRECT_BYTES + 1)], true, false),
        ] {
            let mut driver = Driver::new(settings(true));
            if parked {
                assert!(matches!(driver.next(Pump::Submitter(0)), Step::Park));
            }
            for data in &jobs {
                driver.arrive_with(b"H:s:1", data);
            }
            driver.relay.lines[0].parked = parked;
            match driver.next(Pump::Reader) {
                Step::Stage(batch) => assert_eq!((batch.jobs.len(), direct), (jobs.len(), true)),
                Step::Read { .. } => assert!(!direct, "{} jobs, parked: {parked}", jobs.len()),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn where_the_process_id_does_not_tell_ids_are_numbers_that_stay_with_their_job() {
        let mut relay = Relay::new(settings(true), Legacy::default());
        let Step::Connect { line, .. } = relay.next(Now::ZERO, Pump::Submitter(0)) else { panic!() };
        relay.event(Now::ZERO, Event::Connected(line));
        let Step::ConnectSource { generation } = relay.next(Now::ZERO, Pump::Reader) else { panic!() };
        relay.event(Now::ZERO, Event::SourceConnected { generation, process_id: Some(1), same: false });
        let packets =
            [b"H:s:1", b"H:s:2"].map(|handle| crate::relay::SourcePacket::Jobs(Job::of(handle, b"", b"").alone()));
        relay.event(Now::ZERO, Event::SourcePackets { generation, packets: packets.into() });
        for _ in 0..2 {
            let Some(batch) = relay.batch_for(0, Now::ZERO) else { panic!() };
            let ids: Vec<UniqueId> = batch.jobs.iter().map(|&(_, unique)| unique).collect();
            assert_eq!(ids, [UniqueId::Numbered(7, 1), UniqueId::Numbered(7, 2)]);
            let outcomes = vec![Staged::Interrupted; 2];
            relay.event(
                Now::ZERO,
                Event::Staged { line: batch.line, number: batch.number, outcomes, chunk: Chunk::default() },
            );
        }

        let mut driver = with_jobs(settings(true), 1);
        let Some(batch) = driver.relay.batch_for(0, Now::ZERO) else { panic!() };
        assert_eq!(batch.jobs[0].1, UniqueId::Hash(0));
        driver.lose_source(Loss::silent(seconds(1)));
    }
}
