//! Destination connections: connecting, handing out jobs, replies, and what becomes of the jobs on one that is lost.

use super::event::{Cause, LineId, Loss, Now, Pump, Reason, Tell};
use super::exchange::Exchange;
use super::flight::{Flight, Reply};
use super::ledger::Fate;
use super::outage::Backoff;
use super::outbox::{Chunk, Outbox};
use super::session::Phase;
use super::{Relay, STRAYS};
use crate::gearman::packet::QUEUE_FULL;

/// Tries of a job alone after which it is undeliverable.
pub const TRIES: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineState {
    Down { next_try: Now },
    Connecting,
    Up,
}

/// A submitter and its current connection.
#[derive(Debug)]
pub struct Line {
    pub generation: u32,
    pub state: LineState,
    pub flight: Flight,
    pub outbox: Outbox,
    /// The number and the jobs of the batch that is being staged.
    pub staging: Option<(u64, Vec<u32>)>,
    /// The job that is on the line alone, to be judged.
    pub alone: Option<u32>,
    /// The synchronous job on the line.
    pub exchange: Option<Exchange>,
    /// The first sign of trouble, until a job is taken (or, where none is held, the connection is back).
    pub trouble_since: Option<Now>,
    /// When the destination last moved a byte of a job.
    pub moved_at: Now,
    backoff: Backoff,
    connected_at: Now,
    /// It has taken a job on this connection.
    delivered: bool,
    /// Packets without a request.
    pub strays: usize,
    /// Why it has ended, while its writer has not reported: only then is it known what was sent.
    ending: Option<Loss>,
    /// The destination that it was connected to.
    pub destination: usize,
    /// Whether the confirmer reads what the destination sends: else nothing is overdue.
    reading: bool,
    /// A suspect was tried last: others may go before the next.
    pub tried_suspect: bool,
    pub parked: bool,
    pub confirmer_parked: bool,
    /// Woken for work, and not asking yet.
    pub woken: bool,
}

impl Line {
    pub fn new() -> Line {
        Line {
            generation: 0,
            state: LineState::Down { next_try: Now::ZERO },
            flight: Flight::default(),
            outbox: Outbox::default(),
            staging: None,
            alone: None,
            exchange: None,
            trouble_since: None,
            moved_at: Now::ZERO,
            backoff: Backoff::default(),
            connected_at: Now::ZERO,
            delivered: false,
            strays: 0,
            ending: None,
            destination: 0,
            reading: false,
            tried_suspect: false,
            parked: false,
            confirmer_parked: false,
            woken: false,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == LineState::Up && self.ending.is_none()
    }

    /// Whether jobs may be asked for with it in mind.
    pub fn is_well(&self) -> bool {
        self.is_up() && self.trouble_since.is_none()
    }

    /// Whether nothing is under way on it.
    pub fn is_free(&self) -> bool {
        self.staging.is_none() && self.exchange.is_none() && self.flight.is_empty()
    }

    /// Whether a job of this forward is at the destination through it.
    pub fn is_running(&self) -> bool {
        self.exchange.as_ref().is_some_and(Exchange::is_running)
    }
}

impl Relay {
    pub(super) fn line_id(&self, submitter: usize) -> LineId {
        LineId { submitter, generation: self.lines[submitter].generation }
    }

    /// The line, if it is still this connection.
    fn current(&self, id: LineId) -> bool {
        self.lines.get(id.submitter).is_some_and(|line| line.generation == id.generation)
    }

    pub(super) fn connected(&mut self, now: Now, id: LineId) {
        if !self.current(id) || self.lines[id.submitter].state != LineState::Connecting {
            self.actions.close.push(id);
            return;
        }
        if self.lines[id.submitter].destination != self.outage.destination {
            self.actions.close.push(id);
            self.lines[id.submitter].state = LineState::Down { next_try: now };
            return;
        }
        let nothing_to_prove = self.waiting.is_empty() && self.suspects.is_empty();
        let line = &mut self.lines[id.submitter];
        line.state = LineState::Up;
        line.connected_at = now;
        line.delivered = false;
        line.strays = 0;
        line.reading = false;
        if nothing_to_prove {
            line.trouble_since = None;
            // A full queue's server answers too.
            if self.outage.full.is_none() {
                self.destination_is_back(now);
            }
        }
        self.ask(now);
    }

    pub(super) fn connect_failed(&mut self, now: Now, id: LineId, loss: &Loss) {
        if self.current(id) && self.lines[id.submitter].state == LineState::Connecting {
            if self.lines[id.submitter].destination != self.outage.destination {
                // Another destination is tried meanwhile: this one's failure says nothing about it.
                self.lines[id.submitter].state = LineState::Down { next_try: now };
                return;
            }
            self.line_is_down(now, id.submitter, &loss.cause);
            let nothing_there = self.session.window.held() == 0 && self.session.phase == Phase::Apart;
            if nothing_there && !self.lines.iter().any(Line::is_up) {
                // Nothing may be there twice. The waits stay: all destinations may be down.
                self.name_next_destination(false);
            }
        }
    }

    /// Plans the next try to connect.
    fn line_is_down(&mut self, now: Now, submitter: usize, cause: &Cause) {
        let random = self.random();
        let timing = &self.settings.timing;
        let line = &mut self.lines[submitter];
        let mut retry = line.backoff.next(timing.backoff, timing.longest_backoff, random);
        if self.stopping.is_some() {
            retry = retry.min(timing.backoff);
        }
        line.state = LineState::Down { next_try: now + retry };
        line.trouble_since.get_or_insert(now);
        if self.has_ended() {
            return;
        }
        let alone = self.lines.iter().any(Line::is_well);
        if !alone {
            self.outage.since.get_or_insert(now);
        }
        let release = self.release_at().map(|at| at.saturating_sub(now));
        let (destination, held, cause) = (self.outage.destination, self.session.window.held(), cause.clone());
        self.tell(Tell::DestinationLost { destination, cause, alone, held, retry, release });
    }

    /// The connection is of no use any more. What was unconfirmed on it is decided when its writer has reported.
    pub(super) fn lost(&mut self, now: Now, id: LineId, loss: &Loss) {
        if !self.current(id) || !self.lines[id.submitter].is_up() {
            return;
        }
        self.actions.close.push(id);
        self.lines[id.submitter].ending = Some(loss.clone());
        self.end_line(now, id.submitter);
    }

    /// Ends a connection whose writer has reported.
    fn end_line(&mut self, now: Now, submitter: usize) {
        let long = self.settings.timing.longest_backoff;
        let line = &mut self.lines[submitter];
        if line.outbox.is_taken() {
            return;
        }
        let Some(loss) = line.ending.take() else { return };
        if !loss.nonsense && (line.delivered || now.saturating_sub(line.connected_at) > long) {
            line.backoff.reset();
        }
        self.take_back(now, submitter, &loss);
        self.line_is_down(now, submitter, &loss.cause);
        self.settle(now);
        self.ask(now);
    }

    /// Shuts a connection down that may be connected again at once.
    pub(super) fn drop_line(&mut self, submitter: usize, now: Now) {
        if self.lines[submitter].state == LineState::Up {
            self.actions.close.push(self.line_id(submitter));
            let loss = self.lines[submitter].ending.take().unwrap_or_else(|| Loss::silent(Now::ZERO));
            self.take_back(now, submitter, &Loss { closed: false, ..loss });
        }
        if self.lines[submitter].state != LineState::Connecting {
            self.lines[submitter].state = LineState::Down { next_try: now };
            self.lines[submitter].trouble_since = None;
        }
    }

    /// Takes back what is unconfirmed on a connection that has ended, to be submitted again in its order.
    fn take_back(&mut self, now: Now, submitter: usize, loss: &Loss) {
        let line = &mut self.lines[submitter];
        let mut unsent = line.outbox.len() as u64;
        line.outbox = Outbox::default();
        let alone = line.alone.take();
        let exchange = line.exchange.take();
        let mut flown: Vec<(u32, bool)> = Vec::with_capacity(line.flight.len());
        for submission in std::mem::take(&mut line.flight).lose().rev() {
            // What was not written whole can't be why the destination closed the connection.
            flown.push((submission.slot, unsent == 0));
            unsent = unsent.saturating_sub(u64::from(submission.bytes));
        }
        flown.reverse();
        if let Some(full) = &mut self.outage.full
            && !flown.is_empty()
        {
            full.trial = false;
        }
        if !self.settings.asynchronous {
            let slot = flown.first().map(|&(slot, _)| slot).or(exchange.map(|exchange| exchange.slot));
            return slot.into_iter().for_each(|slot| self.exchange_lost(now, slot, loss));
        }
        let mut again = Vec::new();
        let mut suspicious = false;
        let taken = self.taken;
        for (slot, whole) in flown {
            let Some(held) = self.jobs.get_mut(slot) else { continue };
            if held.gone {
                self.forget(slot);
            } else if alone == Some(slot) {
                if loss.closed && whole {
                    held.blame.closed(taken);
                }
                if held.blame.is_proved() {
                    self.undeliverable(now, slot, Reason::Poison);
                } else if held.blame.is_any() {
                    self.suspects.push_front(slot);
                } else {
                    again.push(slot);
                }
            } else {
                held.breaks = held.breaks.saturating_add(u8::from(loss.closed && whole));
                suspicious |= held.breaks > 1;
                again.push(slot);
            }
        }
        if suspicious {
            // One of these may be what the destination closes connections on.
            self.suspects.extend(again);
        } else {
            self.jobs.put_back(&mut self.waiting, &again);
        }
    }

    /// A job whose source connection is gone is not confirmed: its unique id is used again when it comes back.
    pub(super) fn forget(&mut self, slot: u32) {
        let Some(held) = self.jobs.remove(slot) else { return };
        if let Some(epoch) = held.epoch {
            self.ledger.note_epoch(held.job.identity().key, epoch);
        }
        if held.number != 0 || held.blame.is_any() {
            self.ledger.note(held.job.identity().key, Fate::Unconfirmed(held.number, held.blame));
        }
    }

    pub(super) fn written(&mut self, now: Now, id: LineId, rest: Option<Chunk>, failed: bool) {
        if !self.current(id) || self.lines[id.submitter].state != LineState::Up {
            return;
        }
        self.lines[id.submitter].outbox.written(rest);
        if failed && self.lines[id.submitter].ending.is_none() {
            // Whatever the destination has sent is read first; the reading side finds the end.
            self.lines[id.submitter].outbox.stop();
            self.actions.close.push(id);
        }
        self.end_line(now, id.submitter);
    }

    pub(super) fn progress(&mut self, now: Now, id: LineId) {
        if self.current(id) {
            let line = &mut self.lines[id.submitter];
            line.flight.progressed(now);
            line.moved_at = now;
        }
    }

    pub(super) fn replies(&mut self, now: Now, id: LineId, replies: Vec<Reply>) {
        self.stop_reading(id.submitter);
        for reply in replies {
            if !self.current(id) || !self.lines[id.submitter].is_up() {
                return;
            }
            let understood = match reply {
                Reply::Echo => {
                    let flight = &mut self.lines[id.submitter].flight;
                    let owed = flight.echoes > 0;
                    flight.echoes -= usize::from(owed);
                    self.tell_progress();
                    owed
                }
                Reply::Created(handle) => self.created(now, id.submitter, handle),
                Reply::Refused(code) => self.refused(now, id.submitter, code),
                Reply::Work { kind, handle, rest } => self.worked(now, id.submitter, kind, &handle, &rest),
            };
            if !understood {
                self.lines[id.submitter].strays += 1;
                let strange = self.settings.asynchronous || self.lines[id.submitter].strays > STRAYS;
                if strange {
                    self.break_line(now, id.submitter, Loss::nonsense("sent replies without a request"));
                }
            }
        }
        if self.current(id) {
            // Also where only a part of a packet came.
            self.lines[id.submitter].flight.progressed(now);
            self.lines[id.submitter].flight.measure(now);
        }
        self.settle(now);
        self.ask(now);
    }

    /// Ends a connection of ours for this reason.
    pub(super) fn break_line(&mut self, now: Now, submitter: usize, loss: Loss) {
        let id = self.line_id(submitter);
        self.lost(now, id, &loss);
    }

    /// The destination has taken the job that was submitted first.
    fn created(&mut self, now: Now, submitter: usize, handle: Vec<u8>) -> bool {
        let line = &mut self.lines[submitter];
        let Some(flown) = line.flight.replied() else { return false };
        line.delivered = true;
        line.moved_at = now;
        line.alone = None;
        line.trouble_since = None;
        self.taken += 1;
        self.destination_works(now);
        if !self.settings.asynchronous {
            if let Some(exchange) = &mut self.lines[submitter].exchange {
                exchange.runs_as(handle, now + self.settings.timing.job_probe);
            }
            return true;
        }
        let Some(held) = self.jobs.remove(flown.slot) else { return true };
        if held.gone {
            self.ledger.note(held.job.identity().key, Fate::Delivered);
        } else {
            self.delivered(now, &held);
            self.acknowledge(now, held);
        }
        true
    }

    fn refused(&mut self, now: Now, submitter: usize, code: String) -> bool {
        let line = &mut self.lines[submitter];
        let Some(flown) = line.flight.replied() else { return false };
        line.exchange = None;
        line.moved_at = now;
        let alone = line.alone.take().is_some();
        let Some(held) = self.jobs.get_mut(flown.slot) else { return true };
        // It has not run.
        held.tries = held.tries.saturating_sub(1);
        if held.gone {
            self.forget(flown.slot);
        } else if code == QUEUE_FULL {
            self.jobs.put_back(&mut self.waiting, &[flown.slot]);
            self.queue_is_full(now);
        } else if !alone && self.settings.asynchronous {
            self.suspects.push_back(flown.slot);
        } else {
            held.refusals += 1;
            if held.refusals >= TRIES {
                self.undeliverable(now, flown.slot, Reason::Refused(code));
            } else if self.settings.asynchronous {
                self.suspects.push_front(flown.slot);
            } else {
                self.jobs.put_back(&mut self.waiting, &[flown.slot]);
            }
            if let Some(full) = &mut self.outage.full {
                full.trial = false;
            }
        }
        true
    }

    /// What is due on the destination connections.
    pub(super) fn lines_at(&mut self, now: Now) {
        let (answer, longest) = (self.settings.timing.answer, self.settings.timing.longest_answer);
        for submitter in 0..self.lines.len() {
            let line = &self.lines[submitter];
            if line.is_up() && line.reading && line.flight.overdue_at(answer, longest).is_some_and(|at| at <= now) {
                let quiet = line.flight.quiet_for(now);
                self.break_line(now, submitter, Loss::silent(quiet));
            }
            self.exchange_at(now, submitter);
        }
    }

    /// When something is due there.
    pub(super) fn lines_due(&self, due: &mut Now) {
        let (answer, longest) = (self.settings.timing.answer, self.settings.timing.longest_answer);
        for line in self.lines.iter().filter(|line| line.is_up()) {
            let overdue = line.flight.overdue_at(answer, longest).filter(|_| line.reading);
            let probe = line.exchange.as_ref().and_then(Exchange::probe_at);
            *due = overdue.into_iter().chain(probe).fold(*due, Now::min);
        }
    }

    /// When lines that are down are connected.
    pub(super) fn connect_moments(&self) -> impl Iterator<Item = Now> {
        self.lines.iter().filter_map(|line| match line.state {
            LineState::Down { next_try } => Some(next_try),
            _ => None,
        })
    }

    /// Closes the connections that still owe replies for jobs whose source is gone.
    pub(super) fn drop_lines_that_owe(&mut self, now: Now) {
        for submitter in 0..self.lines.len() {
            if !self.lines[submitter].flight.is_empty() || self.lines[submitter].exchange.is_some() {
                self.drop_line(submitter, now);
            }
        }
    }

    /// Connects a submitter whose time has come.
    pub(super) fn connect(&mut self, submitter: usize, now: Now) -> Option<LineId> {
        if !self.may_connect(submitter, now) {
            return None;
        }
        let line = self.lines.get_mut(submitter)?;
        line.generation = line.generation.wrapping_add(1);
        line.state = LineState::Connecting;
        line.destination = self.outage.destination;
        Some(self.line_id(submitter))
    }

    pub(super) fn may_connect(&self, submitter: usize, now: Now) -> bool {
        let due = |line: &Line| matches!(line.state, LineState::Down { next_try } if next_try <= now);
        // At a stop only for jobs that are held.
        let wanted = self.stopping.is_none() || (self.session.phase == Phase::Relaying && !self.waiting.is_empty());
        wanted && self.lines.get(submitter).is_some_and(due)
    }

    /// The connection that a confirmer is to read, and how many answers are on their way.
    pub(super) fn reading(&mut self, submitter: usize, now: Now) -> Option<(u32, usize)> {
        let line = self.lines.get_mut(submitter).filter(|line| line.is_up())?;
        if !std::mem::replace(&mut line.reading, true) {
            line.flight.progressed(now);
        }
        Some((line.generation, line.flight.owes()))
    }

    pub(super) fn stop_reading(&mut self, submitter: usize) {
        if let Some(line) = self.lines.get_mut(submitter) {
            line.reading = false;
        }
    }

    pub(super) fn wake(&mut self, pump: Pump) {
        let parked = match pump {
            Pump::Reader => &mut self.reader_parked,
            Pump::Rejecter => &mut self.rejects.parked,
            Pump::Submitter(index) => &mut self.lines[index].parked,
            Pump::Confirmer(index) => &mut self.lines[index].confirmer_parked,
        };
        if std::mem::take(parked) {
            self.actions.wake.push(pump);
            if let Pump::Submitter(index) = pump {
                self.lines[index].woken = true;
            }
        }
    }
}
