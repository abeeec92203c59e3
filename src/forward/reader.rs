//! The source connection's reading side: jobs in, batches to the submitters, grabs as there is room.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::debug;

use super::bulk::gather;
use super::job::{Batch, Job};
use super::source::State;
use super::{End, Session};
use crate::gearman::connection::{ConnectionError, error_code, is_timeout};
use crate::gearman::packet::{HEADER_SIZE, Incoming, Packet, Parsed, ProtocolError, kind, parse};

/// What is read at once at least and at most, bytes: it doubles while reads are full, and is small again when the source
/// has no more jobs. Larger packets get a buffer of their own size.
const SMALLEST_READ: usize = 4 << 10;
/// See [`SMALLEST_READ`].
pub const LARGEST_READ: usize = 64 << 10;

/// The parts of a job beside its data: handle, queue and unique id, bytes at most.
const MAX_ARGUMENTS: usize = 4 << 10;

/// The thread that reads from the source.
pub struct Reader<'s> {
    session: &'s Session<'s>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were read; they begin with a packet.
    end: usize,
    read_size: usize,
    read_limit: Duration,
    /// When the answer to the last ECHO_REQ is waited for no longer.
    farewell: Option<Instant>,
    heard: Instant,
    /// A job that is too large is being read off.
    discards: bool,
    /// Grabs without an answer when jobs were last taken.
    on_wire: usize,
    /// The last read took all the room there was.
    was_full: bool,
}

/// What stands at the end of the bytes that were read.
enum Rest {
    /// A part of a packet that will take so many bytes.
    Part { needed: usize },
    /// The beginning of a job that is too large, with its body's length.
    TooLarge { length: usize },
}

impl<'s> Reader<'s> {
    /// A reader for a session whose connection has read `incoming` already.
    pub fn new(session: &'s Session<'s>, incoming: Incoming) -> Reader<'s> {
        let buffer = incoming.unread().to_vec();
        Reader {
            session,
            end: buffer.len(),
            buffer,
            read_size: SMALLEST_READ,
            read_limit: session.life.settings.timing.answer,
            farewell: None,
            heard: Instant::now(),
            discards: false,
            on_wire: 0,
            was_full: false,
        }
    }

    /// Reads until the session is over or, when the forward stops, every grab was answered or the time for that is up.
    pub fn run(&mut self, jobs: &Sender<Batch>) {
        if let Err(error) = self.relay(jobs) {
            let server = self.session.life.config.source.server.clone();
            // Where writing failed first, reading sees only that the socket was shut down.
            let error = self.session.source.take_broken().unwrap_or(error);
            self.session.end(End::Lost { server, error });
        }
    }

    fn relay(&mut self, jobs: &Sender<Batch>) -> Result<(), ConnectionError> {
        loop {
            let rest = self.take(Some(jobs))?;
            if self.session.is_over() || self.is_stopped() {
                return Ok(());
            }
            match rest {
                Rest::Part { needed } => self.fill(needed)?,
                Rest::TooLarge { length } => self.discard(length)?,
            }
        }
    }

    fn is_stopped(&self) -> bool {
        let answered = || self.session.source.lock().window.on_wire() == 0;
        self.session.life.stop.is_set() && (answered() || self.is_late())
    }

    /// When nothing more is waited for. A stop may set it at any time.
    fn deadline(&self) -> Option<Instant> {
        self.farewell.or_else(|| self.session.life.stop_deadline())
    }

    fn is_late(&self) -> bool {
        self.deadline().is_some_and(|at| at <= Instant::now())
    }

    /// Takes the whole packets that were read. Without `jobs`, those that come go back to the source.
    fn take(&mut self, jobs: Option<&Sender<Batch>>) -> Result<Rest, ConnectionError> {
        let Session { source, life, .. } = self.session;
        let limit = life.settings.max_job_size.saturating_add(MAX_ARGUMENTS);
        let mut batch = self.session.spare_batch();
        let mut at = 0;
        let mut state = source.lock();
        let rest = loop {
            match parse(&self.buffer[at..self.end], |_| limit)? {
                Parsed::Incomplete { needed } => break Rest::Part { needed },
                Parsed::TooLong { kind: kind::JOB_ASSIGN_UNIQ, length } => break Rest::TooLarge { length },
                Parsed::TooLong { length, .. } => return Err(ProtocolError::TooLong(length).into()),
                Parsed::Whole { kind, end } => {
                    let packet = Packet { kind, body: &self.buffer[at + HEADER_SIZE..at + end] };
                    if kind == kind::JOB_ASSIGN_UNIQ {
                        let job = Job::read(at, &packet)?;
                        state.assigned(job.size());
                        batch.jobs.push(job);
                    } else {
                        self.take_other(&mut state, &packet)?;
                    }
                    if state.is_overpaid() {
                        return Err(ProtocolError::Unexpected(kind).into());
                    }
                    at += end;
                }
            }
        };
        if life.stop.is_set() {
            state.window.close();
        }
        // Emptied batches are kept while jobs come, not for a night.
        self.session.keep_spare(!state.window.asleep());
        if batch.jobs.is_empty() {
            self.session.recycle(batch);
            self.buffer.copy_within(at..self.end, 0);
            self.end -= at;
        } else {
            self.hand_over(batch, at, jobs);
        }
        if state.window.asleep() {
            self.read_size = SMALLEST_READ;
            if self.buffer.len() > SMALLEST_READ && self.end <= SMALLEST_READ {
                self.buffer.truncate(SMALLEST_READ);
                self.buffer.shrink_to_fit();
            }
        }
        let patience = Duration::from_millis(state.window.patience());
        if !patience.is_zero() {
            drop(state);
            self.session.over.wait(patience);
            state = source.lock();
        }
        source.send_due(&mut state);
        self.on_wire = state.window.on_wire();
        Ok(rest)
    }

    fn take_other(&self, state: &mut State, packet: &Packet<'_>) -> Result<(), ProtocolError> {
        match packet.kind {
            kind::NO_JOB => {
                state.answered();
                state.window.no_job();
            }
            kind::ECHO_RES => state.answered(),
            kind::NOOP if state.window.noop() => {}
            // The acknowledgement of a job that the source doesn't know: removed by an administrator, say.
            kind::ERROR => debug!("{}: {}", self.session.life.config.source, error_code(packet.body)),
            other => return Err(ProtocolError::Unexpected(other)),
        }
        Ok(())
    }

    /// Gives the jobs to the submitters. A buffer that is mostly full goes along, and reading goes on in another one; of
    /// one that is not, the jobs are copied: held jobs must not hold much more memory than they need.
    fn hand_over(&mut self, mut batch: Batch, at: usize, jobs: Option<&Sender<Batch>>) {
        if at < self.buffer.len() / 2 {
            // Its length stays what it was if that is enough: growing costs zeros.
            if batch.bytes.len() < at {
                batch.bytes.resize(at, 0);
            }
            batch.bytes[..at].copy_from_slice(&self.buffer[..at]);
            self.buffer.copy_within(at..self.end, 0);
        } else {
            let size = self.read_size.max(self.end - at);
            let mut next = std::mem::take(&mut batch.bytes);
            if next.capacity() < size {
                next = vec![0; size];
            }
            next.resize(size, 0);
            next[..self.end - at].copy_from_slice(&self.buffer[at..self.end]);
            batch.bytes = std::mem::replace(&mut self.buffer, next);
        }
        self.end -= at;
        let Some(jobs) = jobs else { return };
        // Sending fails only when every submitter has ended, and then the session is over.
        if self.session.life.config.asynchronous {
            let _ = jobs.send(batch);
        } else {
            // Each goes to a submitter of its own, which is busy until the result has come.
            for position in 0..batch.jobs.len() {
                let _ = jobs.send(batch.single(position));
            }
            self.session.recycle(batch);
        }
    }

    /// Reads once; `needed` bytes would be a whole packet.
    fn fill(&mut self, needed: usize) -> Result<(), ConnectionError> {
        let more = needed.saturating_sub(self.end);
        while !self.session.source.wait_for_room(more, Duration::from_millis(100)) {
            self.heard = Instant::now();
            if self.session.is_over() || self.is_late() {
                return Ok(());
            }
        }
        self.make_room(needed);
        if !self.was_full {
            gather(self.on_wire);
        }
        let room = self.buffer.len() - self.end;
        let count = self.read(self.session.life.settings.timing.answer)?;
        self.was_full = count == room;
        if self.was_full {
            self.read_size = (self.read_size * 2).min(LARGEST_READ);
        }
        Ok(())
    }

    fn make_room(&mut self, needed: usize) {
        if needed > self.buffer.len() {
            // Zeroed memory that the system gives page by page, as bytes come: a false length costs nothing.
            let mut larger = vec![0; needed.max(self.read_size)];
            larger[..self.end].copy_from_slice(&self.buffer[..self.end]);
            self.buffer = larger;
        }
    }

    /// One read into the buffer's free part; 0 when nothing came for a while, which is allowed for `limit` while the
    /// source owes something.
    fn read(&mut self, limit: Duration) -> Result<usize, ConnectionError> {
        self.limit_read()?;
        // A stop may have come while this thread had the lock.
        self.session.source.wake_if_asked();
        match self.session.source.stream().read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(ConnectionError::Closed),
            Ok(count) => {
                self.end += count;
                self.heard = Instant::now();
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) if is_timeout(&error) => {
                let silent = self.heard.elapsed();
                self.session.life.report_the_rest();
                if self.discards || self.end > 0 {
                    // The answer to a probe would be taken for the rest of the packet.
                    return if silent >= limit { Err(ConnectionError::NoAnswer(limit)) } else { Ok(0) };
                }
                self.session.source.idle(self.session.life.settings.timing.probe, silent, limit)?;
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A read that has a deadline waits no longer.
    fn limit_read(&mut self) -> Result<(), ConnectionError> {
        let timing = &self.session.life.settings.timing;
        let limit = match self.deadline() {
            None => timing.answer,
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
        };
        if limit.is_zero() {
            return Err(ConnectionError::NoAnswer(timing.stop));
        }
        if limit != self.read_limit {
            self.session.source.stream().set_read_timeout(Some(limit))?;
            self.read_limit = limit;
        }
        Ok(())
    }

    /// Reads a job off whose body of `length` bytes is too large, and fails it.
    fn discard(&mut self, length: usize) -> Result<(), ConnectionError> {
        let total = HEADER_SIZE + length;
        let known = HEADER_SIZE + length.min(MAX_ARGUMENTS);
        self.discards = true;
        if self.buffer.len() < known {
            self.buffer.resize(known, 0);
        }
        while self.end < known {
            self.read_of_job()?;
        }
        let begun = self.end.min(total);
        let packet = Packet { kind: kind::JOB_ASSIGN_UNIQ, body: &self.buffer[HEADER_SIZE..begun] };
        let ([handle, _, _], data) = packet.arguments()?;
        let (handle, size) = (handle.to_vec(), data.len() + total - begun);
        self.end -= begun;
        self.buffer.copy_within(begun..begun + self.end, 0);
        self.buffer.resize(self.buffer.len().max(LARGEST_READ), 0);
        let mut left = total - begun;
        while left > 0 {
            self.read_of_job()?;
            let read_off = left.min(self.end);
            left -= read_off;
            self.end -= read_off;
            self.buffer.copy_within(read_off..read_off + self.end, 0);
        }
        self.discards = false;
        let source = &self.session.source;
        source.lock().assigned(0);
        self.session.fail_too_large(&handle, size, 0);
        Ok(())
    }

    fn read_of_job(&mut self) -> Result<(), ConnectionError> {
        self.read(self.session.life.settings.timing.discard)?;
        Ok(())
    }

    /// Makes sure that the source has heard every acknowledgement before the connection is closed: those written just
    /// before a close are lost when jobs are still on their way.
    pub fn prove(&mut self) {
        let life = self.session.life;
        let lost =
            |end: &Option<End>| matches!(end, Some(End::Lost { server, .. }) if *server == life.config.source.server);
        if lost(&self.session.end.lock()) {
            return;
        }
        self.session.source.lock().window.close();
        self.session.source.echo();
        if let Err(error) = self.wait_for_answers() {
            debug!("{}: closed without an answer: {error}", life.config.source);
        }
    }

    fn wait_for_answers(&mut self) -> Result<(), ConnectionError> {
        let least = Instant::now() + self.session.life.settings.timing.farewell;
        self.farewell = Some(self.session.life.stop_deadline().map_or(least, |at| at.max(least)));
        loop {
            let Rest::Part { needed } = self.take(None)? else {
                // Nobody waits for a job that is too large: it goes back.
                return Err(ConnectionError::Closed);
            };
            if self.session.source.lock().all_answered() {
                return Ok(());
            }
            // No room is waited for: what comes isn't kept.
            self.make_room(needed);
            self.read(self.session.life.settings.timing.answer)?;
        }
    }
}
