//! Which jobs a submitter takes next, under which unique ids, and what they are when their stages have run.

use super::Relay;
use super::event::{Batch, LineId, Now, Reason, Staged};
use super::exchange::Exchange;
use super::job::UniqueId;
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
        let slots = match self.choice(submitter, now)? {
            Choice::Alone(slot) => {
                self.waiting.retain(|&other| other != slot);
                self.suspects.retain(|&other| other != slot);
                self.lines[submitter].tried_suspect = true;
                self.lines[submitter].alone = self.settings.asynchronous.then_some(slot);
                if let Some(full) = &mut self.outage.full {
                    full.trial = true;
                }
                vec![slot]
            }
            Choice::Many => {
                self.lines[submitter].tried_suspect = false;
                self.many(submitter)
            }
        };
        self.batches += 1;
        let number = self.batches;
        let jobs =
            slots.iter().filter_map(|&slot| Some((self.jobs.get(slot)?.job.clone(), self.unique_id(slot)))).collect();
        self.lines[submitter].staging = Some((number, slots));
        Some(Batch { line: self.line_id(submitter), number, destination: self.lines[submitter].destination, jobs })
    }

    fn many(&mut self, submitter: usize) -> Vec<u32> {
        let room = self.lines[submitter].flight.room(self.settings.timing.unconfirmed, self.settings.workers);
        let most = BATCH_BYTES.min(usize::try_from(room).unwrap_or(usize::MAX));
        let (mut slots, mut bytes) = (Vec::with_capacity(self.waiting.len().min(BATCH_JOBS)), 0);
        while let Some(&slot) = self.waiting.front() {
            let size = self.jobs.get(slot).map_or(0, |held| held.job.size());
            if !slots.is_empty() && (bytes + size > most || slots.len() >= BATCH_JOBS) {
                break;
            }
            bytes += size;
            slots.extend(self.waiting.pop_front());
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
                    line.flight.submit(slot, packet, now);
                    if let Some(held) = self.jobs.get_mut(slot) {
                        held.sent = data;
                        held.tries = held.tries.saturating_add(1);
                    }
                    if !self.settings.asynchronous {
                        line.exchange = Some(Exchange::new(slot));
                    }
                    continue;
                }
                Staged::Submitted { .. } | Staged::Interrupted => again.push(slot),
                Staged::Abandoned => self.abandoned += 1,
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
