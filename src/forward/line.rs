//! The connections of a forward: opened, shared between the threads that read and write them, and written. Stages make the
//! submissions that are written.

use std::io::{ErrorKind, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{Level, log_enabled, trace};
use parking_lot::Mutex;
use socket2::SockRef;

use super::memory::{self, Counted, FREE, Large, Memory, Mover, PIECE, Share};
use super::{LIMITS, Shared};
use crate::config::{Priority, Server};
use crate::gearman::connection::{Connection, ConnectionError};
use crate::gearman::packet::{Incoming, kind};
use crate::logging::escaped;
use crate::notify::Heartbeat;
use crate::relay::{Batch, Chunk, Event, Job, LineId, Payload, Pump, Staged, UniqueId};
use crate::stages::{self, Failure, Scratch, Undeliverable};

/// A write that takes this long has waited for the other side.
const WAITED: Duration = Duration::from_millis(10);

/// After this time, or this many bytes, a batch is sent as far as it is staged; the rest waits again.
const STAGING: Duration = Duration::from_millis(100);
const STAGED_BYTES: usize = 1 << 20;

/// A submitter's buffers are not kept beyond this, bytes.
const LARGEST_SCRATCH: usize = 256 << 10;

/// From this many expected answers on, a reading thread lets them gather.
const MANY_ANSWERS: usize = 64;

/// More answers than this make the pause no longer: it ends after two milliseconds.
const MOST_ANSWERS: usize = 1000;

/// The pause for each of them. gearmand takes longer for one as a rule, so it still has some to give when the pause ends.
const PAUSE_PER_ANSWER: Duration = Duration::from_micros(2);

/// send(2) that does not wait, on a socket that others may wait on (Linux).
const MSG_DONTWAIT: i32 = 0x40;

/// The connection of one kind that there is now, with its generation, for the threads that write or end it.
#[derive(Debug, Default)]
pub struct Socket(Mutex<Option<(u32, Arc<TcpStream>, Incoming)>>);

impl Socket {
    /// There is a new one.
    pub fn set(&self, generation: u32, connection: Connection) -> Arc<TcpStream> {
        let stream = Arc::new(connection.stream);
        *self.0.lock() = Some((generation, Arc::clone(&stream), connection.incoming));
        stream
    }

    /// Of the current one.
    pub fn generation(&self) -> Option<u32> {
        self.0.lock().as_ref().map(|(generation, ..)| *generation)
    }

    pub fn stream(&self, generation: u32) -> Option<Arc<TcpStream>> {
        let current = self.0.lock();
        current.as_ref().filter(|(current, ..)| *current == generation).map(|(_, stream, _)| Arc::clone(stream))
    }

    /// For the thread that reads it, which is the only one to ask, once.
    pub fn reading(&self, generation: u32, memory: &Arc<Memory>) -> Option<Reading<Incoming>> {
        let stream = self.stream(generation)?;
        let incoming = self.0.lock().as_mut().map(|(.., incoming)| mem::take(incoming))?;
        Some(Reading::new(generation, stream, incoming, memory))
    }

    /// Ends it, which wakes the threads that read and write it.
    pub fn shut_down(&self, generation: u32) {
        if let Some((_, stream, _)) = self.0.lock().take_if(|(current, ..)| *current == generation) {
            // It fails only where the connection has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A connection as the thread sees it that reads it.
pub struct Reading<B> {
    pub generation: u32,
    pub stream: Arc<TcpStream>,
    /// What was read and not taken yet.
    pub incoming: B,
    /// What that takes.
    pub buffers: Counted,
    /// For the large packet that is under way.
    pub share: Option<Arc<Share>>,
}

impl<B> Reading<B> {
    pub fn new(generation: u32, stream: Arc<TcpStream>, incoming: B, memory: &Arc<Memory>) -> Reading<B> {
        Reading { generation, stream, incoming, buffers: Counted::new(memory), share: None }
    }

    pub fn is_current(&self, socket: &Socket) -> bool {
        socket.generation() == Some(self.generation)
    }

    /// Waits for the bytes that the large packet under way takes; none where the connection is gone first.
    pub fn reserve(&mut self, shared: &Shared, pump: Pump, bytes: usize) -> Result<Arc<Share>, ConnectionError> {
        let (what, mover, socket) = match pump {
            Pump::Confirmer(submitter) => {
                let line = LineId { submitter, generation: self.generation };
                (Large::Result, Mover::Destination(line), &shared.lines[submitter])
            }
            _ => (Large::Job, Mover::Source(self.generation), &shared.source),
        };
        let share = shared.share(what, bytes, pump, || self.is_current(socket)).ok_or(ConnectionError::Closed)?;
        share.moved(mover, 0);
        self.buffers.set(0);
        Ok(Arc::clone(self.share.insert(share)))
    }
}

impl Shared {
    /// A new connection to a server, which has answered.
    pub(super) fn open(&self, server: &Server, client_id: &str) -> Result<Connection, ConnectionError> {
        let Ok(pass) = self.common.gates.pass(server, &self.ended, LIMITS.answer) else {
            return Err(ConnectionError::NoAnswer(LIMITS.answer));
        };
        let connection = Connection::open(server, client_id, &LIMITS, &self.ended)?;
        if let Some(pass) = pass {
            pass.answered();
        }
        Ok(connection)
    }

    /// The same to a destination or the reject queue's server.
    pub(super) fn open_destination(&self, server: &Server) -> Result<Connection, ConnectionError> {
        self.open(server, &format!("gearman-proxy:{}", self.config.source.queue))
    }
}

/// Lets answers gather, if many are `expected`, before they are read. Job servers write each answer by itself: a thread that
/// wakes for every few costs itself and the job server on the same host a quarter of their speed. A single job never waits.
pub fn gather(expected: usize) {
    if expected >= MANY_ANSWERS {
        thread::sleep(PAUSE_PER_ANSWER * expected.min(MOST_ANSWERS) as u32);
    }
}

/// Runs the stages of a batch. `chunk` is empty.
#[inline(never)]
pub fn stage(
    shared: &Shared,
    pump: Pump,
    heartbeat: &Heartbeat,
    scratch: &mut Scratch,
    mut chunk: Chunk,
    batch: Batch,
) -> Event {
    let Batch { line, number, destination, jobs } = batch;
    let queue = shared.config.destinations[destination].queue.as_bytes();
    // Without stages a batch is never long in the making, and a look at the clock for each job costs more than the rest.
    let began = (!shared.config.stages.is_identity()).then(Instant::now);
    let mut outcomes = Vec::with_capacity(jobs.len());
    chunk.reserve(jobs.len());
    let mut unique = Vec::new();
    // What a job takes that its stages make large. What has its turn already may wait for this submitter.
    let grow = |bytes| {
        let share = || shared.share(Large::Job, bytes, pump, || !shared.stopped.load(Ordering::Relaxed));
        shared.large(Large::Job).or_else(|| heartbeat.idle(share))
    };
    for (job, id) in jobs {
        let long = began.is_some_and(|began| began.elapsed() > STAGING);
        let enough = !outcomes.is_empty() && (long || chunk.len() > STAGED_BYTES);
        let outcome = match enough {
            true => Ok(Staged::Interrupted),
            false => stage_one(shared, queue, scratch, &mut chunk, &mut unique, (job, id), grow),
        };
        outcomes.push(outcome.unwrap_or_else(|failure| match failure {
            Failure::Undeliverable(undeliverable) => Staged::Undeliverable(undeliverable),
            Failure::Stopped => Staged::Abandoned,
        }));
    }
    if scratch.capacity() > LARGEST_SCRATCH {
        *scratch = Scratch::default();
    }
    Event::Staged { line, number, outcomes, chunk }
}

fn stage_one(
    shared: &Shared,
    queue: &[u8],
    scratch: &mut Scratch,
    chunk: &mut Chunk,
    unique: &mut Vec<u8>,
    (job, id): (Job, UniqueId),
    grow: impl FnOnce(usize) -> Option<Arc<Share>>,
) -> Result<Staged, Failure> {
    let config = &shared.config;
    let max_size = shared.common.max_job_size;
    let limits = stages::Limits { max_size, cpu: stages::CPU_LIMIT, stop: &shared.stopped };
    // As much as was reserved when the job came.
    let reserved = max_size.min(job.data().len().saturating_mul(2).max(FREE));
    let mut staged = config.stages.apply(job.data(), scratch, &stages::Limits { max_size: reserved, ..limits });
    if reserved < max_size && matches!(staged, Err(Failure::Undeliverable(Undeliverable::OutcomeTooLarge))) {
        chunk.keep(grow(memory::with_stages(config, max_size)).ok_or(Failure::Stopped)?);
        staged = config.stages.apply(job.data(), scratch, &limits);
    }
    let staged = staged?;
    if let (Some(max_age), Some(time)) = (config.max_age, staged.time) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if since > Duration::from_millis(time).saturating_add(max_age) {
            return Ok(Staged::Expired);
        }
    }
    if let Some(warning) = staged.warning {
        shared.teller.odd_id(warning);
    }
    match staged.unique {
        Some(own) => own.clone_into(unique),
        None => id.write(unique, &job),
    }
    if log_enabled!(Level::Trace) {
        let (handle, unique) = (escaped(job.handle()), escaped(unique));
        trace!("job {handle} as {unique}: {} becomes {}", escaped(job.data()), escaped(staged.data));
    }
    let kind = match (config.asynchronous, config.priority) {
        (true, Priority::Low) => kind::SUBMIT_JOB_LOW_BG,
        (true, Priority::Normal) => kind::SUBMIT_JOB_BG,
        (true, Priority::High) => kind::SUBMIT_JOB_HIGH_BG,
        (false, Priority::Low) => kind::SUBMIT_JOB_LOW,
        (false, Priority::Normal) => kind::SUBMIT_JOB,
        (false, Priority::High) => kind::SUBMIT_JOB_HIGH,
    };
    let data = staged.data.len() as u32;
    let submitted = if std::ptr::eq(staged.data, job.data()) {
        chunk.submit(kind, queue, unique, Payload::Unchanged(job))
    } else {
        if staged.data.len() > PIECE {
            job.home().into_iter().for_each(|home| chunk.keep(home));
        }
        chunk.submit(kind, queue, unique, Payload::Changed(staged.data))
    };
    let packet = submitted.map_err(|_| Failure::Undeliverable(Undeliverable::OutcomeTooLarge))?;
    Ok(Staged::Submitted { data, packet })
}

/// Writes submissions, and tells each time that the destination made room for more. `spare` gets the chunk that was written.
#[inline(never)]
pub fn write(shared: &Shared, line: LineId, mut chunk: Chunk, spare: &mut Chunk) -> Event {
    let stream = shared.lines[line.submitter].stream(line.generation);
    let large = if chunk.len() > PIECE { shared.large(Large::Job) } else { None };
    while !chunk.is_empty() {
        let began = Instant::now();
        match stream.as_deref().map(|mut stream| stream.write_vectored(&chunk.slices(PIECE))) {
            Some(Ok(count)) if count > 0 => {
                chunk.advance(count);
                large.iter().for_each(|share| share.moved(Mover::Destination(line), count));
                // Only room that had to be waited for shows that the other end reads.
                if began.elapsed() >= WAITED {
                    shared.feed(Event::Progress(line));
                }
            }
            Some(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
            _ => return Event::Written { line, rest: Some(chunk), failed: true },
        }
    }
    large.iter().for_each(|share| share.sent());
    *spare = chunk.emptied();
    Event::Written { line, rest: None, failed: false }
}

/// Writes as much as the socket takes at once.
#[inline(never)]
pub fn write_at_once(shared: &Shared, line: LineId, mut chunk: Chunk) -> Event {
    let written = shared.lines[line.submitter]
        .stream(line.generation)
        .map(|stream| SockRef::from(&*stream).send_vectored_with_flags(&chunk.slices(usize::MAX), MSG_DONTWAIT));
    let failed = match written {
        Some(Ok(count)) => {
            chunk.advance(count);
            false
        }
        Some(Err(error)) => !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock),
        None => true,
    };
    Event::Written { line, rest: Some(chunk), failed }
}

/// Writes grabs, acknowledgements and results.
#[inline(never)]
pub fn write_source(shared: &Shared, generation: u32, mut bytes: Vec<u8>) -> Event {
    let stream = shared.source.stream(generation);
    let large = if bytes.len() > PIECE { shared.large(Large::Result) } else { None };
    let failed = bytes.chunks(PIECE).any(|piece| {
        let began = Instant::now();
        let failed = stream.as_deref().is_none_or(|mut stream| stream.write_all(piece).is_err());
        if began.elapsed() >= WAITED && !failed {
            shared.feed(Event::SourceProgress { generation });
        }
        large.iter().for_each(|share| share.moved(Mover::Source(generation), piece.len()));
        failed
    });
    bytes.clear();
    Event::SourceWritten { generation, buffer: bytes, failed }
}
