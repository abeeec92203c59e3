//! Destination connections: connecting, handing out jobs, replies, and what becomes of the jobs on one that is lost.

use super::event::{Cause, LineId, Loss, Now, Pump, Reason, Tell};
use super::exchange::Exchange;
use super::flight::{Flight, Flown, Reply};
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
                Reply::Taken(jobs) => self.taken(now, id.submitter, jobs),
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
        // At a stop the last one is the moment to leave.
        self.source_at(now);
        self.settle(now);
        self.ask(now);
    }

    /// Ends a connection of ours for this reason.
    pub(super) fn break_line(&mut self, now: Now, submitter: usize, loss: Loss) {
        let id = self.line_id(submitter);
        self.lost(now, id, &loss);
    }

    /// The destination has taken the job that was submitted first.
    fn replied(&mut self, now: Now, submitter: usize) -> Option<Flown> {
        let line = &mut self.lines[submitter];
        let flown = line.flight.replied()?;
        line.delivered = true;
        line.moved_at = now;
        line.alone = None;
        line.trouble_since = None;
        self.taken += 1;
        self.destination_works(now);
        Some(flown)
    }

    /// It has taken a synchronous job, which runs from now on.
    fn created(&mut self, now: Now, submitter: usize, handle: Vec<u8>) -> bool {
        if self.replied(now, submitter).is_none() {
            return false;
        }
        if let Some(exchange) = &mut self.lines[submitter].exchange {
            exchange.runs_as(handle, now + self.settings.timing.job_probe);
        }
        true
    }

    /// It has taken so many asynchronous jobs, which are delivered by that.
    fn taken(&mut self, now: Now, submitter: usize, count: usize) -> bool {
        for _ in 0..count {
            let Some(flown) = self.replied(now, submitter) else { return false };
            let Some(held) = self.jobs.remove(flown.slot) else { continue };
            if held.gone {
                self.ledger.note(held.job.identity().key, Fate::Delivered);
            } else {
                self.delivered(now, &held, flown.data);
                self.acknowledge(now, held);
            }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::{Batch, Event, Legacy, Payload, Settings, Staged, Step, Timing};

    fn retry(driver: &Driver) -> Duration {
        let retry = driver.told.iter().rev().find_map(|tell| match tell {
            &Tell::DestinationLost { retry, .. } => Some(retry),
            _ => None,
        });
        retry.unwrap()
    }

    fn is_about(wait: Duration, millis: u64) -> bool {
        (Duration::from_millis(millis * 3 / 4)..=Duration::from_millis(millis)).contains(&wait)
    }

    /// Stages a batch and takes the chunk, as a submitter does that has not written it yet.
    fn begin_to_write(driver: &mut Driver, submitter: usize) -> (LineId, Chunk) {
        let Step::Stage(Batch { line, number, jobs, .. }) = driver.next(Pump::Submitter(submitter)) else { panic!() };
        let (mut chunk, mut outcomes) = (Chunk::default(), Vec::new());
        for (job, _) in jobs {
            let packet = chunk.submit(18, b"queue", b"id", Payload::Unchanged(job)).unwrap();
            outcomes.push(Staged::Submitted { data: 4, packet });
        }
        driver.event(Event::Staged { line, number, outcomes, chunk });
        let Step::Write(line, chunk) = driver.next(Pump::Submitter(submitter)) else { panic!() };
        (line, chunk)
    }

    #[test]
    fn a_source_is_connected_only_when_a_submitter_is_well() {
        let mut relay = Relay::new(settings(true), Legacy::default());
        assert!(!relay.lines[0].is_well() && matches!(relay.next(Now::ZERO, Pump::Reader), Step::Park));
        let Step::Connect { line, .. } = relay.next(Now::ZERO, Pump::Submitter(0)) else { panic!() };
        assert!(matches!(relay.next(Now::ZERO, Pump::Reader), Step::Park));
        relay.event(Now::ZERO, Event::Connected(line));
        assert_eq!(relay.actions().wake, [Pump::Reader]);
        assert!(matches!(relay.next(Now::ZERO, Pump::Reader), Step::ConnectSource { .. }));
    }

    #[test]
    fn what_an_earlier_connection_tells_is_ignored() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        let old = driver.relay.line_id(0);
        driver.lose(0, false);
        driver.until(seconds(1));
        let Step::Connect { line, .. } = driver.next(Pump::Submitter(0)) else { panic!() };
        assert_ne!(line, old);
        driver.closed.clear();
        driver.event(Event::Connected(old));
        assert_eq!(driver.closed, [old]);
        driver.event(Event::ConnectFailed(old, Loss::silent(seconds(1))));
        assert_eq!(driver.relay.lines[0].state, LineState::Connecting);
        driver.event(Event::Connected(line));
        driver.event(Event::ConnectFailed(line, Loss::silent(seconds(1))));
        driver.event(Event::Lost(old, Loss::silent(seconds(1))));
        assert_eq!(driver.relay.lines[0].state, LineState::Up);
        assert_eq!(driver.submit(0), [b"H:s:1"]);
        let (moved, quiet) = (driver.relay.lines[0].moved_at, driver.relay.lines[0].flight.quiet_for(seconds(9)));
        driver.now = seconds(2);
        driver.event(Event::Replies { line: old, replies: vec![Reply::Taken(1), Reply::Echo] });
        driver.event(Event::Progress(old));
        driver.event(Event::Written { line: old, rest: None, failed: true });
        assert_eq!(driver.relay.lines[0].flight.len(), 1);
        assert_eq!(driver.relay.lines[0].moved_at, moved);
        assert_eq!(driver.relay.lines[0].flight.quiet_for(seconds(9)), quiet);
        assert_eq!(driver.closed, [old]);
        driver.create(0, b"");
        assert_eq!(driver.relay.held(), 0);
    }

    #[test]
    fn where_nothing_is_held_and_no_destination_can_be_connected_each_is_tried_in_turn() {
        let mut relay = Relay::new(Settings { destinations: 2, ..settings(true) }, Legacy::default());
        for expected in [0, 1, 0, 1] {
            let (now, submitter) = (seconds(expected as u64), 0);
            relay.lines[0].state = LineState::Down { next_try: Now::ZERO };
            let Step::Connect { line, destination } = relay.next(now, Pump::Submitter(submitter)) else { panic!() };
            assert_eq!(destination, expected);
            relay.event(now, Event::ConnectFailed(line, Loss::silent(seconds(1))));
            let next = 1 - expected;
            assert!(relay.actions().tell.contains(&Tell::Switched { destination: next, released: false }));
        }

        // Not while another submitter is connected, nor while the source is.
        let mut driver = Driver::new(Settings { destinations: 2, ..settings(true) });
        for submitter in [0, 1] {
            driver.lose(submitter, false);
            driver.until(driver.now + seconds(1));
            driver.fail_to_connect(submitter);
        }
        assert_eq!(driver.relay.session.phase, Phase::Relaying);
        assert_eq!(driver.relay.outage.destination, 0);
        let generation = driver.relay.session.generation;
        driver.until(driver.now + seconds(2));
        driver.connect(0);
        driver.event(Event::SourceLost { generation, loss: Loss::silent(seconds(1)) });
        assert_eq!(driver.relay.session.phase, Phase::Apart);
        driver.fail_to_connect(1);
        assert_eq!(driver.relay.outage.destination, 0);
    }

    #[test]
    fn trouble_that_one_submitter_has_alone_is_not_the_destinations() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.told.clear();
        driver.lose(0, false);
        assert!(matches!(driver.told[..], [Tell::DestinationLost { alone: true, held: 0, release: None, .. }]));
        assert_eq!(driver.relay.due(), retry(&driver), "then it is connected again");
        driver.until(seconds(1));
        driver.connect(0);
        assert_eq!(driver.told.len(), 1, "{:?}", driver.told);
        driver.lose(0, false);
        driver.lose(1, false);
        driver.until(seconds(5));
        driver.connect(1);
        assert!(
            driver.told.contains(&Tell::DestinationBack { destination: 0, after: seconds(4) }),
            "{:?}",
            driver.told
        );
    }

    #[test]
    fn waits_are_short_again_after_a_connection_that_lasted_or_took_a_job() {
        let longest = Timing::default().longest_backoff;
        let moment = Duration::from_millis(1);
        let nonsense = Loss::nonsense("nonsense");
        for (lasted, takes, loss, expected) in [
            (seconds(1), false, Loss::silent(seconds(1)), 1000),
            (longest, false, Loss::silent(seconds(1)), 1000),
            (longest + moment, false, Loss::silent(seconds(1)), 500),
            (longest + moment, false, nonsense.clone(), 1000),
            (seconds(1), true, Loss::silent(seconds(1)), 500),
            (seconds(1), true, nonsense, 1000),
        ] {
            let mut driver = Driver::new(settings(true));
            driver.lose(0, false);
            assert!(is_about(retry(&driver), 500));
            driver.until(seconds(1));
            driver.connect(0);
            if takes {
                driver.arrive(b"H:s:1");
                driver.submit(0);
                driver.create(0, b"");
            }
            driver.now += lasted;
            driver.event(Event::Lost(driver.relay.line_id(0), loss.clone()));
            assert!(is_about(retry(&driver), expected), "{lasted:?} {takes} {loss:?}: {:?}", retry(&driver));
        }
    }

    #[test]
    fn the_loss_of_a_connection_under_a_trial_lets_another_submitter_try() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.reply(0, Reply::Refused(String::from(QUEUE_FULL)));
        driver.until(seconds(3));
        assert_eq!(driver.submit(0), [b"H:s:1"]);
        assert!(driver.submit(1).is_empty(), "one at a time");
        driver.lose(0, false);
        assert_eq!(driver.submit(1), [b"H:s:1"]);
    }

    /// How often the jobs that were unconfirmed on a line were taken for the reason of its end, the suspects, and the waiting.
    fn after(closed: &[bool]) -> (u8, usize, usize) {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.arrive(b"H:s:2");
        for &closed in closed {
            assert_eq!(driver.submit(0).len(), 2);
            driver.lose(0, closed);
            driver.until(driver.now + seconds(15));
            driver.connect(0);
        }
        let breaks = driver.relay.jobs.iter().map(|held| held.breaks).max();
        (breaks.unwrap(), driver.relay.suspects.len(), driver.relay.waiting.len())
    }

    #[test]
    fn jobs_are_suspected_when_the_destination_closed_two_connections_on_them() {
        assert_eq!(after(&[true]), (1, 0, 2));
        assert_eq!(after(&[false, false]), (0, 0, 2));
        assert_eq!(after(&[true, false]), (1, 0, 2));
        assert_eq!(after(&[true, true]), (2, 2, 0));
    }

    #[test]
    fn what_was_not_written_whole_is_not_why_the_destination_closed_the_connection() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        let (line, chunk) = begin_to_write(&mut driver, 0);
        driver.event(Event::Lost(line, Loss { closed: true, ..Loss::silent(seconds(1)) }));
        assert!(driver.relay.waiting.is_empty(), "the writer has not reported");
        driver.event(Event::Written { line, rest: Some(chunk), failed: false });
        let held = driver.relay.jobs.iter().next().unwrap();
        assert_eq!((held.breaks, driver.relay.waiting.len()), (0, 1));
    }

    #[test]
    fn a_suspect_is_blamed_only_for_connections_closed_on_all_of_it() {
        for (closed, whole, blamed) in [(true, true, true), (true, false, false), (false, true, false)] {
            let mut driver = Driver::new(settings(true));
            driver.arrive(b"H:s:1");
            let slot = driver.relay.waiting.pop_front().unwrap();
            driver.relay.suspects.push_back(slot);
            let (line, chunk) = begin_to_write(&mut driver, 0);
            driver.event(Event::Written { line, rest: (!whole).then_some(chunk), failed: false });
            driver.event(Event::Lost(line, Loss { closed, ..Loss::silent(seconds(1)) }));
            let held = driver.relay.jobs.get(slot).unwrap();
            assert_eq!((held.blame.is_any(), held.breaks), (blamed, 0));
            assert_eq!(driver.relay.suspects.len(), usize::from(blamed));
        }
    }

    #[test]
    fn a_switch_blames_nobody() {
        let mut driver = Driver::new(Settings { destinations: 2, ..settings(true) });
        driver.relay.outage.probing = true;
        driver.arrive(b"H:s:1");
        for submitter in [0, 1] {
            driver.lose(submitter, false);
        }
        driver.until(seconds(1));
        driver.connect(0);
        let (line, _) = begin_to_write(&mut driver, 0);
        driver.event(Event::Lost(line, Loss { closed: true, ..Loss::silent(seconds(1)) }));
        driver.until(seconds(40));
        assert_eq!((driver.relay.outage.destination, driver.relay.held()), (1, 1));
        assert_eq!(driver.relay.jobs.iter().next().map(|held| held.breaks), Some(0));
    }

    #[test]
    fn a_job_that_goes_back_unconfirmed_is_noted_with_what_its_next_submission_depends_on() {
        let mut blame = super::super::quarantine::Blame::default();
        blame.closed(5);
        for (number, blame, noted) in [(0, Default::default(), false), (7, Default::default(), true), (0, blame, true)]
        {
            let mut driver = Driver::new(settings(true));
            driver.relay.ledger.restarted(3);
            driver.arrive(b"H:s:1");
            let slot = driver.relay.waiting.pop_front().unwrap();
            let held = driver.relay.jobs.get_mut(slot).unwrap();
            (held.number, held.blame, held.epoch) = (number, blame, Some(2));
            let key = held.job.identity().key;
            driver.relay.forget(slot);
            assert!(driver.relay.jobs.all().is_empty());
            assert_eq!(driver.relay.ledger.claim(key), noted.then_some(Fate::Unconfirmed(number, blame)));
            assert_eq!(driver.relay.ledger.claim_epoch(key), Some(2));
        }
    }

    #[test]
    fn replies_without_a_request_end_a_connection_at_once_or_where_results_may_cross_after_many() {
        let mut driver = Driver::new(settings(true));
        driver.reply(0, Reply::Echo);
        assert_eq!(driver.closed.len(), 1);

        let mut driver = Driver::new(settings(false));
        for _ in 0..STRAYS {
            driver.reply(0, Reply::Echo);
        }
        assert!(driver.closed.is_empty());
        driver.reply(0, Reply::Echo);
        assert_eq!(driver.closed.len(), 1);
    }

    #[test]
    fn a_job_refused_alone_three_times_is_undeliverable() {
        for asynchronous in [true, false] {
            let mut driver = Driver::new(settings(asynchronous));
            driver.arrive(b"H:s:1");
            if asynchronous {
                driver.submit(0);
                driver.reply(0, Reply::Refused(String::from("OTHER")));
                assert_eq!((driver.relay.suspects.len(), driver.relay.waiting.len()), (1, 0), "beside others, maybe");
            }
            driver.told.clear();
            for last in [false, false, true] {
                assert_eq!(driver.submit(0), [b"H:s:1"]);
                driver.reply(0, Reply::Refused(String::from("OTHER")));
                let reason = Reason::Refused(String::from("OTHER"));
                let told = Tell::Rejected { handle: b"H:s:1".to_vec(), reason, moved: false };
                assert_eq!(driver.told.contains(&told), last);
            }
            assert_eq!(driver.relay.held(), 0);
        }
    }

    #[test]
    fn a_reply_is_overdue_only_while_it_is_read() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.now = seconds(1);
        driver.arrive(b"H:s:1");
        driver.answer();
        driver.submit(0);
        assert_eq!(driver.relay.due(), seconds(16));
        driver.event(Event::HeldUp(Pump::Confirmer(0)));
        driver.until(seconds(20));
        assert!(driver.closed.is_empty());
        driver.next(Pump::Confirmer(0));
        driver.until(seconds(35) - Duration::from_millis(1));
        assert!(driver.closed.is_empty());
        driver.until(seconds(35));
        assert_eq!(driver.closed, [LineId { submitter: 0, generation: 1 }]);
        assert!(driver.relay.lines[1].is_up());
    }

    #[test]
    fn a_client_that_left_closes_the_connections_that_still_owe_its_result() {
        for taken in [false, true] {
            let mut driver = Driver::new(settings(false));
            driver.arrive(b"H:s:1");
            driver.submit(0);
            if taken {
                driver.create(0, b"H:d:1");
            }
            let generation = driver.relay.session.generation;
            driver.event(Event::SourceLost { generation, loss: Loss::silent(seconds(1)) });
            assert_eq!(driver.closed, [LineId { submitter: 0, generation: 1 }]);
            assert_eq!(driver.relay.session.phase, Phase::Apart);
        }
    }

    #[test]
    fn at_a_stop_a_destination_is_connected_only_for_jobs_that_wait() {
        for waits in [true, false] {
            let mut driver = Driver::new(settings(true));
            driver.answer();
            driver.arrive(b"H:s:1");
            if !waits {
                driver.submit(1);
            }
            driver.lose(0, false);
            driver.event(Event::Stop);
            driver.now = seconds(1);
            assert_eq!(matches!(driver.next(Pump::Submitter(0)), Step::Connect { .. }), waits);
        }
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.lose(0, false);
        driver.event(Event::Stop);
        driver.relay.leave(driver.now);
        driver.now = seconds(1);
        assert!(matches!(driver.next(Pump::Submitter(0)), Step::Park), "they go back");
    }
}
