//! The source connection: what is asked for, what came, what is acknowledged, and how it is left.

use std::collections::VecDeque;
use std::time::Duration;

use super::event::{Loss, Now, Reason, Tell};
use super::intake::SourcePacket;
use super::ledger::{Ending, Fate};
use super::outage::Backoff;
use super::owed::Owed;
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
    pub owed: Owed,
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
            owed: Owed::default(),
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

    /// Since when there has been a source connection that may answer.
    pub fn since(&self) -> Option<Now> {
        self.is_on().then_some(self.began)
    }

    /// Whether there is a source connection.
    pub fn is_on(&self) -> bool {
        matches!(self.phase, Phase::Relaying | Phase::Leaving { .. })
    }

    /// Whether nothing is held, and every acknowledgement proven.
    fn is_clean(&self) -> bool {
        self.window.held() == 0 && self.unproven.is_empty()
    }

    fn put(&mut self, requests: &Requests, now: Now) {
        for _ in 0..requests.grabs {
            put_request(&mut self.out, kind::GRAB_JOB_UNIQ, &[]);
        }
        self.owed.request(requests.grabs, now);
        if requests.grabs > 0 {
            self.grabbed = now;
        }
        if requests.sleep {
            put_request(&mut self.out, kind::PRE_SLEEP, &[]);
        }
    }

    fn put_echo(&mut self, now: Now) {
        put_request(&mut self.out, kind::ECHO_REQ, &[b"?"]);
        self.owed.ask(now);
    }

    /// What is to be written, and with it the right to write, unless a thread has it.
    pub fn take_output(&mut self, now: Now) -> Option<Vec<u8>> {
        if self.writing.is_some() || self.failed || self.out.is_empty() || !self.is_on() {
            return None;
        }
        self.writing = Some(now);
        self.owed.sent(now);
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
        let queued = std::mem::take(&mut self.waiting).into_iter().chain(std::mem::take(&mut self.suspects));
        for slot in queued.chain(std::mem::take(&mut self.abandoned)) {
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
        self.session.owed = former.owed;
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
            let SourcePacket::Jobs(run) = packet else { continue };
            for handle in run.handle_numbers() {
                if self.ledger.proves_restart(handle) {
                    let epoch = self.random();
                    self.ledger.restarted(epoch);
                    self.tell(Tell::Restarted);
                }
            }
        }
        for packet in packets {
            let understood = match packet {
                SourcePacket::Jobs(mut run) => run.all(|job| self.arrived(now, job)),
                SourcePacket::TooLarge { handle, size } => self.too_large(now, handle, size),
                SourcePacket::NoJob => {
                    self.session.window.no_job();
                    let well = self.lines.iter().any(|line| line.is_well());
                    if well && self.session.window.held() == 0 && self.outage.full.is_none() {
                        // Nothing is left that a queue that was full could refuse.
                        self.destination_is_back(now);
                    }
                    self.session.owed.answered()
                }
                SourcePacket::Echo => self.session.owed.answered(),
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
            && before < session.owed.answers()
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
        if !self.session.owed.answered() {
            return false;
        }
        if self.session.phase != Phase::Relaying {
            // It goes back with the close.
            return true;
        }
        let (size, identity) = (job.size(), job.identity());
        self.session.window.assigned(size);
        let slot = self.jobs.insert(job, now, self.ledger.claim_epoch(identity.key));
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
                // A synchronous forward suspects none, but its predecessor may have been asynchronous.
                if blame.is_any() && self.settings.asynchronous {
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
        if !self.session.owed.answered() {
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
            let asleep = session.window.asleep();
            buffer.shrink_to(if asleep { IDLE_BUFFER } else { LARGEST_BUFFER });
            session.spare = buffer;
            self.jobs.rest_after_many(asleep);
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
                if self.session.window.held() == self.abandoned.len() && self.session.window.on_wire() == 0 || late {
                    self.leave(now);
                }
            }
            Phase::Leaving { until, .. } => {
                let late = self.stop_moments().is_some_and(|(_, end)| end <= now);
                if self.session.owed.is_none() || until <= now || late {
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
        let owed = session.owed.since().is_some_and(|since| silent.min(now.saturating_sub(since)) >= answer);
        let stuck = session.writing.is_some_and(|since| silent.min(now.saturating_sub(since)) >= answer);
        if (owed || stuck) && !self.reader_is_held_up {
            let generation = session.generation;
            return self.source_lost(now, generation, &Loss::silent(answer));
        }
        if session.owed.is_none() && self.stopping.is_none() {
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
                if let Some(since) = session.owed.since() {
                    at(session.heard.max(since) + timing.answer);
                } else if session.owed.is_none() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::{Event, Pump, Settings, Staged, Step};

    const MOMENT: Duration = Duration::from_millis(1);

    fn silent() -> Loss {
        Loss::silent(seconds(1))
    }

    fn request(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_request(&mut bytes, kind, arguments);
        bytes
    }

    fn has(output: &[u8], kind: u32) -> bool {
        let header = request(kind, &[]);
        output.windows(8).any(|window| window == &header[..8])
    }

    fn retry(driver: &Driver) -> Duration {
        let retry = driver.told.iter().rev().find_map(|tell| match tell {
            &Tell::SourceLost { retry, .. } => Some(retry),
            _ => None,
        });
        retry.unwrap()
    }

    fn is_about(wait: Duration, millis: u64) -> bool {
        (Duration::from_millis(millis * 3 / 4)..=Duration::from_millis(millis)).contains(&wait)
    }

    fn is_lost(driver: &Driver) -> bool {
        driver.told.iter().any(|tell| matches!(tell, Tell::SourceLost { .. }))
    }

    #[test]
    fn a_source_owes_nothing_for_what_no_thread_has_had_the_time_to_write() {
        let mut driver = Driver::new(settings(true));
        driver.until(seconds(1));
        driver.wait_until(seconds(31));
        assert!(!driver.relay.session.out.is_empty(), "the probe");
        driver.wait_until(seconds(60));
        assert!(driver.relay.session.is_on());
        driver.source_output();
        assert_eq!(driver.relay.due(), seconds(75));
        driver.wait_until(seconds(74));
        assert!(driver.relay.session.is_on());
        driver.wait_until(seconds(75));
        assert!(!driver.relay.session.is_on());
    }

    #[test]
    fn a_source_that_owes_an_answer_for_15_seconds_is_lost() {
        let mut driver = Driver::new(settings(true));
        assert!(!driver.owed().is_empty());
        assert_eq!(driver.relay.due(), seconds(15));
        driver.wait_until(seconds(10));
        driver.event(Event::AskSource);
        assert_eq!(driver.relay.due(), seconds(15), "another request changes nothing");
        driver.wait_until(seconds(15) - MOMENT);
        assert!(!is_lost(&driver));
        driver.wait_until(seconds(15));
        assert!(is_lost(&driver) && is_about(retry(&driver), 500));
        assert_eq!(driver.relay.session.phase, Phase::Apart);
        assert!(!driver.told.contains(&Tell::GivenBack { jobs: 0 }));
        let retry = seconds(15) + retry(&driver);
        assert_eq!(driver.relay.due(), retry);
        driver.now = retry - MOMENT;
        assert!(matches!(driver.next(Pump::Reader), Step::Park));
        driver.now = retry;
        driver.relay.now = retry;
        assert!(driver.relay.due() > retry, "a moment that has passed is not due again");
        driver.connect_source();
    }

    #[test]
    fn the_time_for_an_answer_begins_with_the_first_request_that_owes_it() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.wait_until(seconds(20));
        driver.event(Event::AskSource);
        driver.next(Pump::Rejecter);
        assert_eq!(driver.owed(), [kind::ECHO_REQ]);
        driver.wait_until(seconds(35) - MOMENT);
        assert!(!is_lost(&driver));
        driver.wait_until(seconds(35));
        assert!(is_lost(&driver));
        driver.source_output();
        driver.event(Event::AskSource);
        assert!(driver.relay.session.out.is_empty(), "there is no source to ask");
    }

    #[test]
    fn an_idle_source_is_probed_every_30_seconds_since_the_last_grab() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.until(seconds(20));
        assert_eq!(driver.relay.due(), seconds(30));
        driver.source_output();
        driver.until(seconds(30) - MOMENT);
        assert_eq!(driver.source_output(), b"");
        driver.until(seconds(30));
        assert_eq!(driver.source_output(), [request(kind::GRAB_JOB_UNIQ, &[]), request(kind::PRE_SLEEP, &[])].concat());
        driver.until(seconds(45));
        driver.source_sends(SourcePacket::Noop);
        driver.answer();
        assert!(has(&driver.source_output(), kind::GRAB_JOB_UNIQ));
        driver.until(seconds(75) - MOMENT);
        assert_eq!(driver.source_output(), b"");
        // Nobody could submit a job: then it only has to answer.
        driver.lose(0, false);
        driver.lose(1, false);
        driver.until(seconds(75));
        assert_eq!(driver.source_output(), request(kind::ECHO_REQ, &[b"?"]));
    }

    #[test]
    fn an_acknowledgement_without_a_later_answer_is_asked_about_after_a_second() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.create(0, b"");
        driver.wait_until(seconds(1));
        assert!(!has(&driver.source_output(), kind::ECHO_REQ), "grabs are still to be answered");
        driver.answer();
        driver.arrive(b"H:s:2");
        driver.answer();
        driver.submit(0);
        driver.wait_until(seconds(2));
        driver.create(0, b"");
        driver.source_output();
        assert_eq!(driver.relay.session.unproven.len(), 1);
        assert_eq!(driver.relay.due(), seconds(3));
        driver.wait_until(seconds(3) - MOMENT);
        assert_eq!(driver.source_output(), b"");
        driver.wait_until(seconds(3));
        assert_eq!(driver.source_output(), request(kind::ECHO_REQ, &[b"?"]));
        assert_eq!(driver.relay.session.unproven.len(), 1);
        driver.answer();
        assert!(driver.relay.session.unproven.is_empty());
    }

    #[test]
    fn only_the_answer_to_a_later_request_proves_an_acknowledgement() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.create(0, b"");
        driver.event(Event::AskSource);
        driver.next(Pump::Rejecter);
        let (before, ..) = driver.relay.session.unproven[0];
        assert!(driver.relay.session.owed.answers() < before);
        while driver.relay.session.owed.answers() < before {
            driver.answer_one();
        }
        assert_eq!(driver.relay.session.unproven.len(), 1);
        driver.answer_one();
        assert!(driver.relay.session.unproven.is_empty());
    }

    #[test]
    fn a_source_that_can_not_be_connected_to_is_tried_again() {
        let mut driver = Driver::new(settings(true));
        driver.lose_source(silent());
        driver.wait_until(seconds(1));
        driver.told.clear();
        let Step::ConnectSource { generation } = driver.next(Pump::Reader) else { panic!() };
        driver.event(Event::SourceFailed { generation, loss: silent() });
        assert!(is_lost(&driver));
        driver.wait_until(seconds(1) + retry(&driver));
        driver.connect_source();
    }

    #[test]
    fn while_much_is_to_be_written_to_the_source_no_results_are_read() {
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.create(0, b"H:d:1");
        driver.source_output();
        let rest = vec![0; super::super::MAX_OUTPUT];
        let work = super::super::Reply::Work { kind: kind::WORK_DATA, handle: b"H:d:1".to_vec(), rest };
        driver.event(Event::Replies { line: driver.relay.line_id(0), replies: vec![work] });
        let Step::WriteSource { generation, bytes } = driver.relay.next(driver.now, Pump::Submitter(1)) else {
            panic!()
        };
        assert_eq!(driver.relay.session.output(), bytes.len());
        assert!(matches!(driver.relay.next(driver.now, Pump::Confirmer(0)), Step::Park));
        driver.woken.clear();
        driver.event(Event::Time);
        assert!(!driver.woken.contains(&Pump::Confirmer(0)));
        driver.event(Event::AskSource);
        assert!(driver.relay.session.output() > bytes.len());
        assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::Park), "one thread writes at a time");
        driver.event(Event::SourceWritten {
            generation: generation.wrapping_sub(1),
            buffer: Vec::new(),
            failed: false,
        });
        assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::Park), "that was another connection");
        driver.woken.clear();
        driver.event(Event::SourceWritten { generation, buffer: bytes, failed: false });
        assert_eq!(driver.woken, [Pump::Confirmer(0), Pump::Submitter(0)]);
        assert!(driver.relay.session.spare.is_empty() && driver.relay.session.spare.capacity() <= LARGEST_BUFFER);
        assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::WriteSource { .. }));
    }

    #[test]
    fn a_write_to_the_source_that_does_not_move_for_15_seconds_ends_the_connection() {
        for progress in [false, true] {
            let mut driver = Driver::new(settings(true));
            driver.answer();
            let generation = driver.relay.session.generation;
            driver.event(Event::SourceProgress { generation });
            driver.wait_until(seconds(1));
            assert!(driver.submit(0).is_empty() && driver.submit(1).is_empty(), "parked");
            driver.woken.clear();
            driver.event(Event::AskSource);
            assert_eq!(driver.woken, [Pump::Submitter(0)]);
            assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::WriteSource { .. }));
            // What is owed is one thing, a write that is stuck another.
            while !driver.relay.session.owed.is_none() {
                driver.relay.session.owed.answered();
            }
            let mut lost = seconds(16);
            if progress {
                driver.now = seconds(10);
                driver.event(Event::SourceProgress { generation });
                lost = seconds(25);
            }
            driver.now = seconds(12);
            driver.event(Event::SourceProgress { generation: generation.wrapping_sub(1) });
            assert_eq!(driver.relay.due(), lost);
            driver.wait_until(lost - MOMENT);
            assert!(!is_lost(&driver));
            driver.wait_until(lost);
            assert!(is_lost(&driver));
        }
    }

    #[test]
    fn nobody_is_woken_for_what_another_thread_writes_or_nobody_can() {
        let mut driver = Driver::new(settings(true));
        driver.answer();
        assert!(driver.submit(1).is_empty(), "parked");
        let generation = driver.relay.session.generation;
        driver.event(Event::AskSource);
        assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::WriteSource { .. }));
        assert!(driver.submit(1).is_empty(), "parked");
        driver.woken.clear();
        driver.event(Event::AskSource);
        assert_eq!(driver.woken, [], "what is written next is the writer's");
        driver.relay.event(driver.now, Event::SourceWritten { generation, buffer: Vec::new(), failed: true });
        assert_eq!(driver.relay.actions().close_source, Some(generation), "the reader finds the end");
        driver.event(Event::AskSource);
        assert_eq!(driver.woken, []);
        assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::Park));
    }

    #[test]
    fn a_job_that_is_blamed_is_a_suspect_again_but_not_where_results_are_waited_for() {
        for asynchronous in [true, false] {
            let mut driver = Driver::new(settings(asynchronous));
            let mut blame = super::super::quarantine::Blame::default();
            blame.closed(7);
            let key = super::super::Job::of(b"H:s:1", b"", b"data").identity().key;
            driver.relay.ledger.note(key, Fate::Unconfirmed(0, blame));
            driver.arrive(b"H:s:1");
            assert_eq!(driver.relay.suspects.len(), usize::from(asynchronous));
            assert_eq!(driver.submit(0), [b"H:s:1"]);
        }
    }

    #[test]
    fn a_large_buffer_is_kept_only_while_the_source_has_jobs() {
        let mut driver = Driver::new(settings(true));
        let generation = driver.relay.session.generation;
        let kept = |driver: &mut Driver| {
            driver.event(Event::AskSource);
            assert!(matches!(driver.relay.next(driver.now, Pump::Submitter(0)), Step::WriteSource { .. }));
            let buffer = Vec::with_capacity(1 << 20);
            driver.event(Event::SourceWritten { generation, buffer, failed: false });
            driver.relay.session.spare.capacity() >> 10
        };
        assert_eq!(kept(&mut driver), 64);
        driver.answer();
        assert_eq!(kept(&mut driver), 4);
    }

    #[test]
    fn what_an_earlier_source_connection_tells_is_ignored() {
        let mut driver = Driver::new(settings(true));
        let generation = driver.relay.session.generation;
        driver.told.clear();
        driver.event(Event::SourceFailed { generation, loss: silent() });
        driver.event(Event::SourceLost { generation: generation - 1, loss: silent() });
        driver.event(Event::SourcePackets {
            generation: generation - 1,
            packets: vec![SourcePacket::Error(String::new())],
        });
        driver.event(Event::SourceConnected { generation, process_id: None, same: false });
        assert_eq!((driver.told.len(), driver.relay.session.phase), (0, Phase::Relaying));

        driver.lose_source(silent());
        driver.now = seconds(1);
        let Step::ConnectSource { generation } = driver.next(Pump::Reader) else { panic!() };
        driver.told.clear();
        driver.event(Event::SourceFailed { generation: generation - 1, loss: silent() });
        assert_eq!((driver.told.len(), driver.relay.session.phase), (0, Phase::Connecting));
        driver
            .relay
            .event(driver.now, Event::SourceConnected { generation: generation - 1, process_id: None, same: false });
        assert_eq!(driver.relay.actions().close_source, Some(generation - 1));
        assert_ne!(driver.relay.session.phase, Phase::Relaying);
    }

    #[test]
    fn waits_are_short_again_after_a_connection_that_lasted_or_brought_a_job() {
        let longest = Timing::default().longest_backoff;
        let nonsense = Loss::nonsense("nonsense");
        for (lasted, brought, loss, expected) in [
            (seconds(1), false, silent(), 1000),
            (longest, false, silent(), 1000),
            (longest + MOMENT, false, silent(), 500),
            (longest + MOMENT, false, nonsense.clone(), 1000),
            (seconds(1), true, silent(), 500),
            (seconds(1), true, nonsense, 1000),
        ] {
            let mut driver = Driver::new(settings(true));
            driver.lose_source(silent());
            assert!(is_about(retry(&driver), 500));
            driver.wait_until(seconds(1));
            driver.connect_source();
            if brought {
                driver.arrive(b"H:s:1");
                driver.submit(0);
                driver.create(0, b"");
            }
            driver.now += lasted;
            driver.lose_source(loss.clone());
            assert!(is_about(retry(&driver), expected), "{lasted:?} {brought} {loss:?}: {:?}", retry(&driver));
        }
    }

    #[test]
    fn what_destinations_owe_is_waited_for_ten_seconds_when_the_source_is_gone() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.wait_until(seconds(1));
        driver.lose_source(silent());
        assert_eq!(driver.relay.session.phase, Phase::Settling { until: seconds(11) });
        assert_eq!(driver.relay.due(), seconds(11));
        driver.wait_until(seconds(11) - MOMENT);
        assert!(matches!(driver.relay.session.phase, Phase::Settling { .. }));
        driver.wait_until(seconds(11));
        assert_eq!(driver.relay.session.phase, Phase::Apart);
        assert_eq!(driver.closed, [super::super::LineId { submitter: 0, generation: 1 }]);
    }

    #[test]
    fn trouble_is_not_over_because_a_source_has_no_job() {
        let mut driver = Driver::new(settings(true));
        for submitter in [0, 1] {
            driver.lose(submitter, false);
        }
        driver.told.clear();
        driver.answer();
        assert_eq!(driver.told, []);
    }

    #[test]
    fn a_job_that_is_too_large_is_failed_and_one_that_was_not_asked_for_ends_the_connection() {
        let mut driver = Driver::new(settings(true));
        let large = || SourcePacket::TooLarge { handle: b"H:s:1".to_vec(), size: 99 };
        let (answers, errors) = (driver.owed().len(), 1 + STRAYS);
        driver.told.clear();
        driver.source_output();
        driver.source_sends(large());
        let told = Tell::Rejected { handle: b"H:s:1".to_vec(), reason: Reason::TooLarge { size: 99 }, moved: false };
        assert_eq!((&driver.told[..], driver.relay.held()), (&[told][..], 0));
        assert!(driver.source_output().starts_with(&request(kind::WORK_FAIL, &[b"H:s:1"])));
        for _ in 0..errors {
            driver.source_sends(SourcePacket::Error(String::new()));
        }
        assert!(driver.relay.session.is_on());
        driver.source_sends(SourcePacket::Error(String::new()));
        assert!(!driver.relay.session.is_on(), "each WORK_FAIL may draw one error");

        let mut driver = Driver::new(settings(true));
        driver.answer();
        driver.source_sends(large());
        assert!(is_lost(&driver));

        let mut driver = Driver::new(settings(true));
        driver.relay.leave(driver.now);
        driver.told.clear();
        for _ in 0..answers {
            driver.source_sends(large());
        }
        assert_eq!((driver.told.len(), driver.relay.session.completions), (0, 0), "it goes back with the close");
        assert_eq!(driver.relay.ceiling(), 0);
        assert!(driver.relay.session.is_on());
    }

    #[test]
    fn a_source_is_not_to_blame_while_its_reader_waits_for_memory() {
        let mut driver = Driver::new(settings(true));
        driver.event(Event::HeldUp(Pump::Reader));
        driver.wait_until(seconds(20));
        assert!(!is_lost(&driver));
        driver.next(Pump::Reader);
        driver.wait_until(seconds(35) - MOMENT);
        assert!(!is_lost(&driver));
        driver.wait_until(seconds(35));
        assert!(is_lost(&driver));
    }

    fn phase(driver: &Driver) -> Phase {
        driver.relay.session.phase
    }

    #[test]
    fn a_stop_with_nothing_held_waits_half_a_second_for_grabs_and_another_half_for_the_last_answer() {
        let mut driver = Driver::new(settings(true));
        driver.source_output();
        driver.event(Event::Stop);
        assert_eq!((phase(&driver), driver.relay.due()), (Phase::Relaying, Duration::from_millis(500)));
        driver.wait_until(Duration::from_millis(499));
        assert_eq!(phase(&driver), Phase::Relaying);
        driver.wait_until(Duration::from_millis(500));
        assert!(matches!(phase(&driver), Phase::Leaving { .. }));
        assert!(driver.relay.due() <= seconds(1));
        driver.wait_until(Duration::from_millis(999));
        assert!(matches!(phase(&driver), Phase::Leaving { .. }));
        driver.wait_until(seconds(1));
        assert_eq!(phase(&driver), Phase::Ended);
        assert!(driver.told.contains(&Tell::Stopped { left: 0 }));

        // Where all is answered it ends at once.
        let mut driver = Driver::new(settings(true));
        driver.event(Event::Stop);
        driver.source_output();
        while !driver.owed().is_empty() {
            assert_ne!(phase(&driver), Phase::Ended);
            let echo = driver.owed()[0] == kind::ECHO_REQ;
            driver.answer_one();
            assert_eq!(phase(&driver) == Phase::Ended, echo);
        }
        assert!(!has(&driver.source_output(), kind::PRE_SLEEP), "nothing is asked for any more");
    }

    #[test]
    fn a_stop_waits_for_what_is_held_up_to_eight_seconds() {
        let mut driver = Driver::new(settings(true));
        for handle in [b"H:s:1", b"H:s:2", b"H:s:3"] {
            driver.arrive(handle);
        }
        driver.submit(0);
        driver.create(0, b"");
        driver.source_output();
        driver.event(Event::Stop);
        driver.answer();
        assert!(!has(&driver.source_output(), kind::PRE_SLEEP), "nothing is asked for any more");
        driver.wait_until(seconds(8) - MOMENT);
        assert_eq!(phase(&driver), Phase::Relaying);
        assert!(!has(&driver.source_output(), kind::ECHO_REQ), "asked once, with the leave");
        assert!(driver.relay.due() <= seconds(8));
        driver.wait_until(seconds(8));
        assert_eq!(phase(&driver), Phase::Leaving { until: seconds(10), latest: seconds(18) });
        assert!(has(&driver.source_output(), kind::ECHO_REQ));
        driver.wait_until(seconds(10) - MOMENT);
        assert!(matches!(phase(&driver), Phase::Leaving { .. }));
        driver.wait_until(seconds(10));
        assert!(driver.told.contains(&Tell::GivenBack { jobs: 2 }));
        assert_eq!(phase(&driver), Phase::Ended);
        assert!(driver.told.contains(&Tell::Stopped { left: 2 }));
    }

    #[test]
    fn a_stop_asks_whether_the_last_acknowledgement_was_heard_for_two_seconds() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.answer();
        driver.submit(0);
        driver.create(0, b"");
        driver.event(Event::Stop);
        assert!(matches!(phase(&driver), Phase::Leaving { .. }));
        driver.wait_until(seconds(2) - MOMENT);
        assert!(matches!(phase(&driver), Phase::Leaving { .. }));
        assert_eq!(driver.relay.due(), seconds(2));
        driver.wait_until(seconds(2));
        assert_eq!(phase(&driver), Phase::Ended);
    }

    #[test]
    fn a_stop_leaves_at_once_where_only_given_up_stages_are_held() {
        let mut driver = Driver::new(settings(true));
        driver.arrive(b"H:s:1");
        driver.answer();
        let Step::Stage(batch) = driver.next(Pump::Submitter(0)) else { panic!() };
        driver.event(Event::Stop);
        assert_eq!(phase(&driver), Phase::Relaying);
        let (line, number, chunk) = (batch.line, batch.number, Default::default());
        driver.event(Event::Staged { line, number, outcomes: vec![Staged::Abandoned], chunk });
        assert!(matches!(phase(&driver), Phase::Leaving { .. }));
        driver.answer();
        assert!(driver.told.contains(&Tell::Stopped { left: 1 }));
    }

    #[test]
    fn a_stop_while_the_source_is_connected_or_gone_takes_a_second_at_most() {
        let mut driver = Driver::new(settings(true));
        driver.lose_source(silent());
        driver.now = seconds(1);
        let Step::ConnectSource { generation } = driver.next(Pump::Reader) else { panic!() };
        driver.relay.event(driver.now, Event::Stop);
        let actions = driver.relay.actions();
        assert_eq!((actions.close_source, actions.ended, phase(&driver)), (Some(generation), true, Phase::Ended));

        // The reject queue hangs.
        let mut driver = Driver::new(Settings { reject_queue: true, ..settings(true) });
        driver.arrive(b"H:s:1");
        let slot = driver.relay.waiting.pop_front().unwrap();
        driver.relay.undeliverable(driver.now, slot, Reason::Poison);
        assert!(matches!(driver.next(Pump::Rejecter), Step::Reject(_)));
        driver.lose_source(silent());
        driver.wait_until(seconds(1));
        driver.event(Event::Stop);
        driver.wait_until(seconds(2) - MOMENT);
        assert!(matches!(phase(&driver), Phase::Settling { .. }));
        assert!(driver.relay.due() <= seconds(2));
        driver.wait_until(seconds(2));
        assert_eq!(phase(&driver), Phase::Ended);
    }
}
