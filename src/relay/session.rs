//! The source connection: what is asked for, what came, what is acknowledged, and how it is left.

use std::collections::VecDeque;
use std::time::Duration;

use super::event::{Loss, Now, Reason, Tell};
use super::intake::SourcePacket;
use super::ledger::{Ending, Fate};
use super::outage::Backoff;
use super::window::{Requests, Window};
use super::{Relay, STRAYS, Timing};
use crate::gearman::packet::{kind, put_request};

/// After the last acknowledgement, before an ECHO_REQ asks whether the source has heard it.
const QUIET: Duration = Duration::from_secs(1);

/// A large buffer is not kept while the source has no jobs, bytes.
const IDLE_BUFFER: usize = 4 << 10;
const LARGEST_BUFFER: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No source connection, no job.
    Apart,
    Connecting,
    Relaying,
    /// No more grabs; an ECHO_REQ behind the last acknowledgement is to be answered.
    Leaving {
        until: Now,
        latest: Now,
    },
    /// The source is gone; replies that the destination owes are read into the ledger.
    Settling {
        until: Now,
    },
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    pub phase: Phase,
    pub generation: u32,
    pub window: Window,
    pub out: Vec<u8>,
    /// The buffer that was written last, for the next bytes.
    spare: Vec<u8>,
    /// A thread writes, since when; whether that has failed.
    writing: Option<Now>,
    being_written: usize,
    failed: bool,
    /// GRAB_JOB_UNIQ and ECHO_REQ sent, each of which is answered, in this order.
    pub requests: u64,
    answers: u64,
    /// When `requests` last became more than `answers`.
    owed_since: Now,
    heard: Now,
    /// When jobs were last asked for.
    grabbed: Now,
    pub acknowledged: Now,
    /// Acknowledged jobs that the source may not have heard of, each with the number of requests before, its key, and the
    /// number in its handle.
    pub unproven: VecDeque<(u64, u128, u64)>,
    /// WORK_* packets that may each draw an ERROR, and ERRORs that came.
    pub completions: usize,
    errors: usize,
    /// Jobs taken by destinations when it began.
    taken: u64,
    began: Now,
    backoff: Backoff,
    next_try: Now,
    pub trouble_since: Option<Now>,
}

impl Session {
    pub fn new(explicit: bool, byte_limit: usize) -> Session {
        Session {
            phase: Phase::Apart,
            generation: 0,
            window: Window::new(explicit, byte_limit),
            out: Vec::new(),
            spare: Vec::new(),
            writing: None,
            being_written: 0,
            failed: false,
            requests: 0,
            answers: 0,
            owed_since: Now::ZERO,
            heard: Now::ZERO,
            grabbed: Now::ZERO,
            acknowledged: Now::ZERO,
            unproven: VecDeque::new(),
            completions: 0,
            errors: 0,
            taken: 0,
            began: Now::ZERO,
            backoff: Backoff::default(),
            next_try: Now::ZERO,
            trouble_since: None,
        }
    }

    /// Whether there is a source connection.
    pub fn is_on(&self) -> bool {
        matches!(self.phase, Phase::Relaying | Phase::Leaving { .. })
    }

    /// A request was answered. `false` where none was owed.
    fn answered(&mut self) -> bool {
        self.answers += 1;
        self.answers <= self.requests
    }

    fn all_answered(&self) -> bool {
        self.answers >= self.requests
    }

    /// Whether nothing is held, and every acknowledgement proven.
    fn is_clean(&self) -> bool {
        self.window.held() == 0 && self.unproven.is_empty()
    }

    fn count_requests(&mut self, requests: usize, now: Now) {
        if requests > 0 && self.all_answered() {
            self.owed_since = now;
        }
        self.requests += requests as u64;
    }

    fn put(&mut self, requests: &Requests, now: Now) {
        for _ in 0..requests.grabs {
            put_request(&mut self.out, kind::GRAB_JOB_UNIQ, &[]);
        }
        self.count_requests(requests.grabs, now);
        if requests.grabs > 0 {
            self.grabbed = now;
        }
        if requests.sleep {
            put_request(&mut self.out, kind::PRE_SLEEP, &[]);
        }
    }

    fn put_echo(&mut self, now: Now) {
        put_request(&mut self.out, kind::ECHO_REQ, &[b"?"]);
        self.count_requests(1, now);
    }

    /// What is to be written, and with it the right to write, unless a thread has it.
    pub fn take_output(&mut self, now: Now) -> Option<Vec<u8>> {
        if self.writing.is_some() || self.failed || self.out.is_empty() || !self.is_on() {
            return None;
        }
        self.writing = Some(now);
        self.being_written = self.out.len();
        let next = std::mem::take(&mut self.spare);
        Some(std::mem::replace(&mut self.out, next))
    }

    /// Bytes for the source that it has not taken yet.
    pub fn output(&self) -> usize {
        self.out.len() + self.being_written
    }

    /// The thread that writes is not stuck.
    pub fn write_moved(&mut self, now: Now, generation: u32) {
        if self.generation == generation && self.writing.is_some() {
            self.writing = Some(now);
        }
    }

    pub fn has_output(&self) -> bool {
        self.writing.is_none() && !self.failed && !self.out.is_empty() && self.is_on()
    }
}

impl Relay {
    /// Whether the source is to be connected now.
    pub(super) fn may_connect_source(&self, now: Now) -> bool {
        self.session.phase == Phase::Apart
            && self.stopping.is_none()
            && self.session.next_try <= now
            && self.outage.full.is_none()
            && self.lines.iter().any(|line| line.is_well())
    }

    pub(super) fn connect_source(&mut self, now: Now) -> Option<u32> {
        self.may_connect_source(now).then(|| {
            self.session.phase = Phase::Connecting;
            self.session.generation = self.session.generation.wrapping_add(1);
            self.session.generation
        })
    }

    pub(super) fn source_connected(&mut self, now: Now, generation: u32, process_id: Option<u32>, same: bool) {
        if self.session.phase != Phase::Connecting || self.session.generation != generation || self.stopping.is_some() {
            self.actions.close_source = Some(generation);
            self.source_is_off(now);
            return;
        }
        self.ledger.connected(process_id, same);
        let (generation, backoff) = (self.session.generation, std::mem::take(&mut self.session.backoff));
        let trouble = self.session.trouble_since.take();
        let explicit = self.settings.prefetch_is_explicit;
        self.session = Session { generation, backoff, ..Session::new(explicit, self.settings.byte_limit) };
        let session = &mut self.session;
        session.phase = Phase::Relaying;
        (session.began, session.heard, session.grabbed, session.taken) = (now, now, now, self.taken);
        put_request(&mut session.out, kind::CAN_DO, &[&self.settings.queue]);
        self.tell(Tell::Relaying { after: trouble.map(|since| now.saturating_sub(since)) });
        self.ask(now);
    }

    pub(super) fn source_failed(&mut self, now: Now, generation: u32, loss: &Loss) {
        if self.session.phase == Phase::Connecting && self.session.generation == generation {
            self.source_is_down(now, loss);
            self.source_is_off(now);
        }
    }

    fn source_is_off(&mut self, now: Now) {
        if self.session.phase == Phase::Connecting {
            self.session.phase = Phase::Apart;
        }
        self.settle(now);
    }

    fn source_is_down(&mut self, now: Now, loss: &Loss) {
        let random = self.random();
        let timing = &self.settings.timing;
        let retry = self.session.backoff.next(timing.backoff, timing.longest_backoff, random);
        self.session.next_try = now + retry;
        self.session.trouble_since.get_or_insert(now);
        self.tell(Tell::SourceLost { cause: loss.cause.clone(), retry });
    }

    pub(super) fn source_lost(&mut self, now: Now, generation: u32, loss: &Loss) {
        if !self.session.is_on() || self.session.generation != generation {
            return;
        }
        if matches!(self.session.phase, Phase::Relaying) {
            let lasted = now.saturating_sub(self.session.began) > self.settings.timing.longest_backoff;
            if !loss.nonsense && (lasted || self.taken > self.session.taken) {
                self.session.backoff.reset();
            }
            self.source_is_down(now, loss);
        }
        self.close_source(now, Ending::Lost);
    }

    /// Ends the source connection; what is not acknowledged goes back to the source by that.
    fn close_source(&mut self, now: Now, ending: Ending) {
        self.actions.close_source = Some(self.session.generation);
        self.watch_full(now);
        self.ledger.disconnected(ending);
        let jobs = self.session.window.held();
        if jobs > 0 {
            self.tell(Tell::GivenBack { jobs });
        }
        if self.stopping.is_some() {
            self.left += jobs;
        }
        self.tell(Tell::Apart);
        for (_, key, _) in std::mem::take(&mut self.session.unproven) {
            self.ledger.note(key, Fate::Delivered);
        }
        for slot in std::mem::take(&mut self.waiting).into_iter().chain(std::mem::take(&mut self.suspects)) {
            self.forget(slot);
        }
        for slot in self.rejects.clear() {
            self.forget(slot);
        }
        for slot in self.jobs.all() {
            if let Some(held) = self.jobs.get_mut(slot) {
                held.gone = true;
            }
        }
        let explicit = self.settings.prefetch_is_explicit;
        let session = Session::new(explicit, self.settings.byte_limit);
        let former = std::mem::replace(&mut self.session, session);
        self.session.generation = former.generation;
        self.session.backoff = former.backoff;
        self.session.next_try = former.next_try;
        self.session.trouble_since = former.trouble_since;
        let until = now + self.settings.timing.settle;
        let until = self.stopping.map_or(until, |stopped| until.min(stopped + self.settings.timing.stop));
        self.session.phase = Phase::Settling { until };
        if !self.settings.asynchronous {
            // A copy that is still queued there is skipped when the connection closes.
            self.drop_lines_that_owe(now);
        }
        self.settle(now);
    }

    /// Ends a session when nothing is owed any more for jobs whose source is gone, or the time for that is up.
    pub(super) fn settle(&mut self, now: Now) {
        match self.session.phase {
            Phase::Settling { until } => {
                let late = self.stop_moments().is_some_and(|(_, end)| end <= now);
                let owed = self.lines.iter().any(|line| !line.flight.is_empty() || line.exchange.is_some())
                    || !self.rejects.in_hand_is_empty() && !late;
                if owed && now < until {
                    return;
                }
                self.session.phase = Phase::Apart;
                self.drop_lines_that_owe(now);
                if std::mem::take(&mut self.outage.switches) {
                    self.switch_destination(now);
                }
                for line in &mut self.lines {
                    if line.is_up() {
                        // It answers, and holds nothing that could prove more.
                        line.trouble_since = None;
                    }
                }
                if self.lines.iter().any(|line| line.is_well()) && self.outage.full.is_none() {
                    self.destination_is_back(now);
                }
                self.jobs.rest();
            }
            Phase::Apart => {}
            _ => return,
        }
        if self.stopping.is_some() {
            self.end();
        }
    }

    /// Takes the way out of a session: no more grabs, and an ECHO_REQ behind the last acknowledgement. The connection is closed
    /// after its answer: acknowledgements written just before a close are lost when jobs are still on their way to us.
    pub(super) fn leave(&mut self, now: Now) {
        if self.session.phase == Phase::Relaying {
            self.session.put_echo(now);
            let farewell = now + self.settings.timing.farewell;
            self.session.phase = Phase::Leaving { until: farewell, latest: now + self.settings.timing.settle };
        }
    }

    pub(super) fn source_packets(&mut self, now: Now, generation: u32, packets: Vec<SourcePacket>) {
        if !self.session.is_on() || self.session.generation != generation {
            return;
        }
        self.session.heard = now;
        // First: a job whose handle proves a restart may stand behind others that must not be taken for old ones.
        for packet in &packets {
            if let SourcePacket::Job(job) = packet
                && self.ledger.proves_restart(job)
            {
                let epoch = self.random();
                self.ledger.restarted(epoch);
                self.tell(Tell::Restarted);
            }
        }
        for packet in packets {
            let understood = match packet {
                SourcePacket::Job(job) => self.arrived(now, job),
                SourcePacket::TooLarge { handle, size } => self.too_large(now, handle, size),
                SourcePacket::NoJob => {
                    self.session.window.no_job();
                    let well = self.lines.iter().any(|line| line.is_well());
                    if well && self.session.window.held() == 0 && self.outage.full.is_none() {
                        // Nothing is left that a queue that was full could refuse.
                        self.destination_is_back(now);
                    }
                    self.session.answered()
                }
                SourcePacket::Echo => self.session.answered(),
                SourcePacket::Noop => self.session.window.noop(now),
                SourcePacket::Error(_) => {
                    // The acknowledgement of a job that the source doesn't know: removed by an administrator, e.g.
                    self.session.errors += 1;
                    self.tell(Tell::SourceError);
                    self.session.errors <= self.session.completions + STRAYS
                }
            };
            if !understood {
                return self.source_lost(now, generation, &Loss::nonsense("sent packets without a request"));
            }
        }
        let session = &mut self.session;
        while let Some(&(before, _, number)) = session.unproven.front()
            && before < session.answers
        {
            session.unproven.pop_front();
            self.ledger.proven(number);
        }
        if let Phase::Leaving { until, latest } = &mut session.phase {
            // On a slow line jobs stand before the answer.
            *until = (*until).max(now + self.settings.timing.farewell).min(*latest);
        }
        self.source_at(now);
        self.ask(now);
    }

    fn arrived(&mut self, now: Now, job: super::Job) -> bool {
        if !self.session.answered() {
            return false;
        }
        if self.session.phase != Phase::Relaying {
            // It goes back with the close.
            return true;
        }
        let (size, identity) = (job.size(), job.identity());
        self.session.window.assigned(size);
        let slot = self.jobs.insert(job, now);
        if let Some(epoch) = self.ledger.claim_epoch(identity.key)
            && let Some(held) = self.jobs.get_mut(slot)
        {
            held.epoch = Some(epoch);
        }
        match self.ledger.claim(identity.key) {
            Some(Fate::Delivered) => {
                if let Some(held) = self.jobs.remove(slot) {
                    self.acknowledge(now, held);
                }
                return true;
            }
            Some(Fate::Unconfirmed(number, blame)) => {
                if let Some(held) = self.jobs.get_mut(slot) {
                    (held.number, held.blame) = (number, blame);
                }
                if blame.is_any() {
                    self.suspects.push_back(slot);
                    return true;
                }
            }
            None => {}
        }
        self.waiting.push_back(slot);
        true
    }

    fn too_large(&mut self, now: Now, handle: Vec<u8>, size: usize) -> bool {
        if !self.session.answered() {
            return false;
        }
        if self.session.phase == Phase::Relaying {
            self.session.window.assigned(0);
            put_request(&mut self.session.out, kind::WORK_FAIL, &[&handle]);
            self.session.completions += 1;
            self.session.window.released(1, 0, now);
            self.tell(Tell::Rejected { handle, reason: Reason::TooLarge { size }, moved: false });
        }
        true
    }

    /// Asks the source for as many more jobs as there is room for.
    pub(super) fn ask(&mut self, now: Now) {
        if self.session.phase == Phase::Relaying && self.stopping.is_none() {
            let ceiling = self.ceiling();
            // However large what is held is, it goes nowhere without another one.
            let needs = self.is_at_a_loss();
            let requests = self.session.window.due(ceiling, self.spare, needs, now);
            self.session.put(&requests, now);
        }
    }

    /// The reader reads again: until now nothing could be heard.
    pub(super) fn heard(&mut self, now: Now) {
        self.session.heard = now;
    }

    /// Another forward waits for any answer of the source.
    pub(super) fn ask_source(&mut self, now: Now) {
        if self.session.phase == Phase::Relaying {
            self.session.put_echo(now);
        }
    }

    pub(super) fn source_written(&mut self, generation: u32, mut buffer: Vec<u8>, failed: bool) {
        let session = &mut self.session;
        if session.generation != generation || !session.is_on() {
            return;
        }
        session.writing = None;
        session.being_written = 0;
        session.failed |= failed;
        if failed {
            self.actions.close_source = Some(generation);
        } else {
            // A thousand idle connections should not take much memory.
            buffer.clear();
            buffer.shrink_to(if session.window.asleep() { IDLE_BUFFER } else { LARGEST_BUFFER });
            session.spare = buffer;
        }
    }

    /// When a stop leaves the source, and when it ends, whatever is left.
    fn stop_moments(&self) -> Option<(Now, Now)> {
        let Timing { stop, idle_stop, farewell, .. } = self.settings.timing;
        // Rejects are held, but for those in hand whose source is gone: these were given back.
        let clean = self.session.is_clean();
        let (leave, end) = if clean { (idle_stop / 2, idle_stop) } else { (stop.saturating_sub(farewell), stop) };
        self.stopping.map(|stopped| (stopped + leave, stopped + end))
    }

    /// What is due at the source.
    pub(super) fn source_at(&mut self, now: Now) {
        let timing = self.settings.timing.clone();
        match self.session.phase {
            Phase::Relaying if self.stopping.is_some() => {
                let late = self.stop_moments().is_some_and(|(leave, _)| leave <= now);
                if self.session.window.held() == self.abandoned && self.session.window.on_wire() == 0 || late {
                    self.leave(now);
                }
            }
            Phase::Leaving { until, .. } => {
                let late = self.stop_moments().is_some_and(|(_, end)| end <= now);
                if self.session.all_answered() || until <= now || late {
                    self.close_source(now, Ending::Closed);
                }
                return;
            }
            Phase::Relaying => {}
            _ => return,
        }
        let session = &mut self.session;
        let answer = timing.answer;
        let silent = now.saturating_sub(session.heard);
        let owed = !session.all_answered() && silent.min(now.saturating_sub(session.owed_since)) >= answer;
        let stuck = session.writing.is_some_and(|since| silent.min(now.saturating_sub(since)) >= answer);
        if (owed || stuck) && !self.reader_is_held_up {
            let generation = session.generation;
            return self.source_lost(now, generation, &Loss::silent(answer));
        }
        if session.all_answered() && self.stopping.is_none() {
            if now.saturating_sub(session.grabbed) >= timing.probe {
                session.grabbed = now;
                let ceiling = self.ceiling();
                match self.session.window.probe(ceiling) {
                    Some(requests) => self.session.put(&requests, now),
                    None => self.session.put_echo(now),
                }
            } else if !session.unproven.is_empty() && now.saturating_sub(session.acknowledged) >= QUIET {
                session.put_echo(now);
            }
        }
    }

    /// When something is due there.
    pub(super) fn source_due(&self, due: &mut Now) {
        let timing = &self.settings.timing;
        let session = &self.session;
        let mut at = |moment: Now| *due = moment.min(*due);
        match session.phase {
            Phase::Apart if session.next_try > self.now => at(session.next_try),
            Phase::Leaving { until, .. } | Phase::Settling { until } => at(until),
            Phase::Relaying => {
                if !session.all_answered() {
                    at(session.heard.max(session.owed_since) + timing.answer);
                } else {
                    at(session.grabbed + timing.probe);
                    if !session.unproven.is_empty() {
                        at(session.acknowledged + QUIET);
                    }
                }
                if let Some(since) = session.writing {
                    at(session.heard.max(since) + timing.answer);
                }
            }
            _ => {}
        }
        if let Some((leave, end)) = self.stop_moments() {
            at(leave);
            at(end);
        }
    }

    fn end(&mut self) {
        if self.session.phase != Phase::Ended {
            self.session.phase = Phase::Ended;
            for submitter in 0..self.lines.len() {
                let generation = self.lines[submitter].generation;
                self.actions.close.push(super::LineId { submitter, generation });
            }
            let left = self.left;
            self.tell(Tell::Stopped { left });
            self.actions.ended = true;
        }
    }
}
