//! A synchronous forward's destination connection: one job at a time in the foreground, its result back to the source.
//!
//! The writing side is the submitter's, the reading side the replier's.

use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, unbounded};
use log::{debug, warn};
use parking_lot::Mutex;

use super::destination::{Clock, Link};
use super::identity::write_new_unique;
use super::job::{Batch, Job};
use super::recovery::Recovery;
use super::reject::{Rejected, reject};
use super::submitter::TRIES;
use super::{End, Session, join, spawn, thread_name};
use crate::config::Priority;
use crate::gearman::connection::{Connection, ConnectionError, QUEUE_FULL, error_code, limit_of};
use crate::gearman::packet::{Incoming, Packet, ProtocolError, kind, put_header, put_request};
use crate::logging::escaped;
use crate::stages::Scratch;

/// The parts of a result beside its data, bytes at most.
const MAX_ARGUMENTS: usize = 4 << 10;

/// The thread that submits jobs in the foreground, over one connection at a time.
pub struct Submitter<'s> {
    session: &'s Session<'s>,
    index: usize,
    jobs: Receiver<Batch>,
    rejects: Option<Sender<Rejected>>,
    recovery: Recovery<'s>,
    task: Option<Task>,
    scratch: Scratch,
}

/// The job that a submitter works at.
struct Task {
    batch: Batch,
    began: Instant,
    tries: u8,
    refusals: u8,
}

/// The job whose result is expected on a connection.
#[derive(Clone)]
struct Expected {
    /// At the source.
    handle: Vec<u8>,
    /// At the destination, once it has told.
    remote_handle: Option<Vec<u8>>,
    /// The bytes that it counts with as held, came with and went with.
    held: usize,
    bytes_in: u64,
    bytes_out: u64,
}

/// What the replier tells its submitter. Its end closes the channel.
#[derive(PartialEq)]
enum Event {
    /// The job's end was passed on.
    Ended,
    /// The job was refused with this code.
    Refused(String),
}

/// Why a connection is of no more use.
enum Lost {
    /// The replier has ended and knows why.
    Reading,
    /// Writing failed, or an answer is overdue.
    Writing(ConnectionError),
    /// The result took too long.
    Timeout,
    /// Nothing more is to be done.
    Over,
}

impl From<ConnectionError> for Lost {
    fn from(error: ConnectionError) -> Self {
        Lost::Writing(error)
    }
}

/// One connection as its submitter sees it.
struct Line<'c> {
    link: Link<'c>,
    clock: &'c Clock,
    expected: &'c Mutex<Option<Expected>>,
    events: Receiver<Event>,
}

impl<'s> Submitter<'s> {
    /// The submitter number `index` of a session, which takes what comes through `jobs`, a job a batch.
    pub fn new(
        session: &'s Session<'s>,
        index: usize,
        jobs: Receiver<Batch>,
        rejects: Option<Sender<Rejected>>,
    ) -> Submitter<'s> {
        Submitter {
            session,
            index,
            jobs,
            rejects,
            recovery: Recovery::new(session, session.life.config.first_destination()),
            task: None,
            scratch: Scratch::default(),
        }
    }

    /// Runs until what came has its result and nothing more comes, or the session is over.
    pub fn run(mut self, connection: Connection) {
        let life = self.session.life;
        let connect = |within| life.connect_destination(within);
        let mut open = Some(connection);
        while let Some(connection) = open.take() {
            let error = match self.work(connection) {
                Ok(()) | Err(Lost::Over) => return,
                Err(Lost::Writing(error)) => error,
                Err(Lost::Reading) => ConnectionError::Closed,
                // The old connection was closed on purpose: another one is wanted at once.
                Err(Lost::Timeout) => match connect(life.settings.timing.greeting) {
                    Ok(connection) => {
                        open = Some(connection);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            open = self.recovery.reconnect(error, self.task.is_some(), connect);
        }
    }

    /// One connection's life. `Err(Lost::Writing)` also stands for what the replier found.
    fn work(&mut self, connection: Connection) -> Result<(), Lost> {
        let Connection { stream, incoming, .. } = connection;
        let session = self.session;
        let clock = Clock::new(session.life.settings.timing.answer);
        // Before anybody reads: it also takes away the limit that the greeting had.
        let link = Link::new(&stream, &clock)?;
        let expected = Mutex::new(None);
        let (tell, events) = unbounded();
        let (outcome, read) = thread::scope(|scope| {
            let replier = Replier { session, clock: &clock, expected: &expected, events: tell };
            let name = thread_name("c", Some(self.index), &session.life.config.source.queue);
            let thread = match spawn(scope, name, || replier.run(&stream, incoming)) {
                Ok(thread) => thread,
                Err(error) => {
                    session.end(End::Spawn(error));
                    return (Err(Lost::Over), ConnectionError::Closed);
                }
            };
            let outcome = self.feed(&Line { link, clock: &clock, expected: &expected, events });
            // Wakes the replier, which may have ended long ago. A copy of the job that is still queued there is skipped.
            let _ = stream.shutdown(Shutdown::Both);
            (outcome, join(thread))
        });
        if clock.taken() > 0 {
            self.recovery.worked();
        }
        let outcome = match outcome {
            Err(Lost::Reading) => Err(Lost::Writing(read)),
            other => other,
        };
        self.settle(expected.into_inner(), outcome)
    }

    /// The connection has ended; decides what becomes of the job that was on it, if its end has not come.
    fn settle(&mut self, expected: Option<Expected>, outcome: Result<(), Lost>) -> Result<(), Lost> {
        let Some(Task { tries, .. }) = self.task else { return outcome };
        let Some(Expected { handle, held, .. }) = expected else {
            if tries > 0 {
                // Its end was passed on in the last moment.
                self.task = None;
            }
            return outcome;
        };
        let reason = match &outcome {
            Err(Lost::Timeout) => format!("no result within {} s", self.timeout().unwrap_or_default().as_secs_f32()),
            Err(Lost::Writing(error @ ConnectionError::Protocol(ProtocolError::TooLong(_)))) => error.to_string(),
            Err(Lost::Writing(error)) if tries >= TRIES => format!("{error}, at the last of {tries} tries"),
            _ => return outcome,
        };
        let life = self.session.life;
        warn!(
            "job {} of {} failed at {}: {reason}",
            escaped(&handle),
            life.config.source,
            life.config.first_destination()
        );
        life.metrics.failed();
        self.session.finish_failed(&handle, held);
        self.task = None;
        outcome
    }

    fn timeout(&self) -> Option<std::time::Duration> {
        self.session.life.config.timeout
    }

    fn feed(&mut self, line: &Line<'_>) -> Result<(), Lost> {
        loop {
            if self.task.is_none() {
                let Some(batch) = self.next(line)? else { return Ok(()) };
                self.task = Some(Task { batch, began: Instant::now(), tries: 0, refusals: 0 });
            }
            self.submit(line)?;
        }
    }

    /// Waits for a job; `None` when no more comes.
    fn next(&self, line: &Line<'_>) -> Result<Option<Batch>, Lost> {
        loop {
            if self.session.is_over() {
                return Err(Lost::Over);
            }
            match self.jobs.try_recv() {
                Ok(batch) => return Ok(Some(batch)),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {}
            }
            if line.events.try_recv() == Err(TryRecvError::Disconnected) {
                return Err(Lost::Reading);
            }
            let mut select = Select::new();
            select.recv(&self.jobs);
            select.recv(&line.events);
            select.recv(self.session.over.channel());
            select.ready();
        }
    }

    /// Submits the task once, and waits for its end.
    fn submit(&mut self, line: &Line<'_>) -> Result<(), Lost> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let session = self.session;
        let config = &session.life.config;
        let Some(job) = task.batch.jobs.first() else {
            self.task = None;
            return Ok(());
        };
        let job: &Job = job;
        let parts = job.parts(&task.batch.bytes);
        if parts.data.len() > session.life.settings.max_job_size {
            session.fail_too_large(parts.handle, parts.data.len(), job.size());
            self.task = None;
            return Ok(());
        }
        let data = match config.stages.apply(parts.data, &mut self.scratch) {
            Ok(staged) => staged.data,
            Err(undeliverable) => {
                reject(session, self.rejects.as_ref(), &task.batch, 0, undeliverable.to_string());
                self.task = None;
                return Ok(());
            }
        };
        // An id that was used before might be merged with a job whose client has gone, and be dropped with it.
        let mut unique = Vec::new();
        write_new_unique(&mut unique);
        let queue = config.first_destination().queue.as_bytes();
        let kind = match config.priority {
            Priority::Low => kind::SUBMIT_JOB_LOW,
            Priority::Normal => kind::SUBMIT_JOB,
            Priority::High => kind::SUBMIT_JOB_HIGH,
        };
        let mut out = Vec::with_capacity(1 << 10);
        put_request(&mut out, kind, &[queue, &unique, data]);
        *line.expected.lock() = Some(Expected {
            handle: parts.handle.to_vec(),
            remote_handle: None,
            held: job.size(),
            bytes_in: parts.data.len() as u64,
            bytes_out: data.len() as u64,
        });
        task.tries += 1;
        line.clock.owe(1);
        line.link.write(&out)?;
        match self.wait(line)? {
            Event::Ended => {
                self.task = None;
                self.recovery.worked();
                Ok(())
            }
            Event::Refused(code) => self.refused(code),
        }
    }

    /// Waits for the task's end, probing the destination.
    fn wait(&self, line: &Line<'_>) -> Result<Event, Lost> {
        let life = self.session.life;
        let timing = &life.settings.timing;
        let timeout = self.task.as_ref().zip(self.timeout()).map(|(task, timeout)| task.began + timeout);
        let mut probe = Instant::now() + timing.job_probe;
        loop {
            match line.events.try_recv() {
                Ok(event) => return Ok(event),
                Err(TryRecvError::Disconnected) => return Err(Lost::Reading),
                Err(TryRecvError::Empty) => {}
            }
            let now = Instant::now();
            let stop = life.stop_deadline();
            if self.session.is_over() || stop.is_some_and(|stop| stop <= now) {
                return Err(Lost::Over);
            }
            if timeout.is_some_and(|timeout| timeout <= now) {
                return Err(Lost::Timeout);
            }
            line.clock.check()?;
            if probe <= now {
                let mut echo = Vec::new();
                put_request(&mut echo, kind::ECHO_REQ, &[b"?"]);
                line.clock.owe(1);
                line.link.write(&echo)?;
                probe = now + timing.job_probe;
            }
            let mut wait = probe - now;
            for limit in [timeout, stop].into_iter().flatten() {
                wait = wait.min(limit.saturating_duration_since(now));
            }
            wait = wait.min(line.clock.left().unwrap_or(wait));
            let mut select = Select::new();
            select.recv(&line.events);
            select.recv(self.session.over.channel());
            if stop.is_none() {
                // A stop sets a limit that was not there before.
                select.recv(life.stop.channel());
            }
            // Whatever is ready or due is found by the loop.
            let _ = select.ready_timeout(wait);
        }
    }

    /// The destination didn't take the task.
    fn refused(&mut self, code: String) -> Result<(), Lost> {
        let Some(task) = &mut self.task else { return Ok(()) };
        // It has not run.
        task.tries -= 1;
        if code == QUEUE_FULL {
            let since = self.session.full();
            return match self.recovery.pause_since(ConnectionError::Refused(code), since) {
                true => Ok(()),
                false => Err(Lost::Over),
            };
        }
        task.refusals += 1;
        if task.refusals >= TRIES {
            let reason = format!("the destination refused it with {code}");
            reject(self.session, self.rejects.as_ref(), &task.batch, 0, reason);
            self.task = None;
        }
        Ok(())
    }
}

/// The thread that reads a synchronous destination connection and passes results to the source.
struct Replier<'s> {
    session: &'s Session<'s>,
    clock: &'s Clock,
    expected: &'s Mutex<Option<Expected>>,
    events: Sender<Event>,
}

impl Replier<'_> {
    /// Reads until the connection ends; returns why.
    fn run(self, stream: &TcpStream, mut incoming: Incoming) -> ConnectionError {
        loop {
            if let Err(error) = self.take(&mut incoming).and_then(|()| Ok(incoming.fill(&mut &*stream)?)) {
                return match error {
                    // Only a result can be too long; anything else that claims to be so is nonsense.
                    ConnectionError::Protocol(ProtocolError::TooLong(_)) => match u32::from_be_bytes(
                        incoming.unread().get(4..8).and_then(|kind| kind.try_into().ok()).unwrap_or_default(),
                    ) {
                        kind::WORK_COMPLETE | kind::WORK_EXCEPTION | kind::WORK_DATA | kind::WORK_WARNING => error,
                        other => ProtocolError::Unexpected(other).into(),
                    },
                    error => error,
                };
            }
            self.clock.progressed();
        }
    }

    fn take(&self, incoming: &mut Incoming) -> Result<(), ConnectionError> {
        let limit = self.session.life.settings.max_job_size.saturating_add(MAX_ARGUMENTS);
        while let Some(packet) = incoming.next(|kind| limit_of(kind, limit))? {
            match packet.kind {
                kind::JOB_CREATED => {
                    self.answered(&packet)?;
                    if let Some(expected) = &mut *self.expected.lock() {
                        expected.remote_handle = Some(packet.body.to_vec());
                    }
                    // Its end may be far away: what was wrong with the destination has passed now.
                    self.clock.count_taken(1);
                    self.session.taken(1);
                }
                kind::ECHO_RES => {
                    self.answered(&packet)?;
                    self.session.life.metrics.progressed();
                }
                kind::ERROR => {
                    self.answered(&packet)?;
                    // It fails only when the submitter has ended.
                    let _ = self.events.send(Event::Refused(error_code(packet.body)));
                }
                kind::WORK_DATA | kind::WORK_WARNING | kind::WORK_STATUS => {
                    if let Some(handle) = self.handle_for(&packet, false) {
                        self.session.source.pass(&pass(&handle.handle, &packet));
                    }
                }
                kind::WORK_COMPLETE | kind::WORK_FAIL | kind::WORK_EXCEPTION => {
                    if let Some(expected) = self.handle_for(&packet, true) {
                        debug!(
                            "the end of job {} came from {}",
                            escaped(&expected.handle),
                            self.session.life.config.first_destination()
                        );
                        self.session.life.metrics.delivered(1, expected.bytes_in, expected.bytes_out);
                        self.session.source.finish(&pass(&expected.handle, &packet), expected.held);
                        let _ = self.events.send(Event::Ended);
                    }
                }
                other => return Err(ProtocolError::Unexpected(other).into()),
            }
        }
        Ok(())
    }

    fn answered(&self, packet: &Packet<'_>) -> Result<(), ProtocolError> {
        if self.clock.answered() { Ok(()) } else { Err(ProtocolError::Unexpected(packet.kind)) }
    }

    /// The expected job, if the packet is for it; `ends` takes it, so that nothing comes after its end.
    fn handle_for(&self, packet: &Packet<'_>, ends: bool) -> Option<Expected> {
        let handle = packet.body.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut expected = self.expected.lock();
        if expected.as_ref()?.remote_handle.as_deref() != Some(handle) {
            return None;
        }
        if ends { expected.take() } else { expected.clone() }
    }
}

/// A result from the destination as a packet for the source: another handle, the rest byte for byte.
fn pass(handle: &[u8], packet: &Packet<'_>) -> Vec<u8> {
    let rest = packet.body.iter().position(|&byte| byte == 0).map_or(&[][..], |end| &packet.body[end..]);
    let mut out = Vec::with_capacity(handle.len() + rest.len() + 32);
    if put_header(&mut out, packet.kind, handle.len() + rest.len()).is_err() {
        return out;
    }
    out.extend_from_slice(handle);
    out.extend_from_slice(rest);
    out
}
