//! Writing: stages make submissions of jobs, and bytes go out on sockets that another thread may shut down.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{Level, log_enabled, trace};
use socket2::SockRef;

use super::memory::{self, Large, Mover, PIECE, Share};
use super::{LIMITS, Shared, Socket};
use crate::config::{Address, Priority, Server};
use crate::gearman::admin;
use crate::gearman::connection::{Connection, ConnectionError};
use crate::gearman::packet::kind;
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

/// What stages may make of a job without being asked, bytes.
const FREELY_STAGED: usize = 256 << 10;

/// send(2) that does not wait, on a socket that others may wait on (Linux).
const MSG_DONTWAIT: i32 = 0x40;

impl Shared {
    /// A heartbeat for a thread of this forward.
    pub(super) fn heartbeat(&self, role: &str) -> Heartbeat {
        self.common.heartbeats.register(&format!("{}/{role}", self.config.source.queue))
    }

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

    /// How many jobs a queue holds, waiting or running, as its server counts; `None` where it doesn't tell.
    pub(super) fn queue_total(&self, address: &Address) -> Option<u64> {
        admin::queue(address, &LIMITS, &self.ended).ok().map(|status| status.total)
    }
}

/// Runs the stages of a batch.
pub fn stage(shared: &Shared, pump: Pump, heartbeat: &Heartbeat, scratch: &mut Scratch, batch: Batch) -> Event {
    let Batch { line, number, destination, jobs } = batch;
    let queue = shared.config.destinations.get(destination).map_or("", |address| &address.queue);
    // Without stages a batch is never long in the making, and a look at the clock for each job costs more than the rest.
    let began = (!shared.config.stages.is_identity()).then(Instant::now);
    let mut outcomes = Vec::with_capacity(jobs.len());
    let mut chunk = Chunk::for_jobs(jobs.len());
    let mut unique = Vec::new();
    for (job, id) in jobs {
        let stopped = shared.interrupted.load(Ordering::Relaxed);
        let long = began.is_some_and(|began| began.elapsed() > STAGING);
        let enough = !outcomes.is_empty() && (long || chunk.len() > STAGED_BYTES);
        outcomes.push(match stopped || enough {
            true => Staged::Interrupted,
            false => {
                let share = |bytes| heartbeat.idle(|| grow(shared, bytes, pump));
                stage_one(shared, queue.as_bytes(), scratch, &mut chunk, &mut unique, job, id, share)
            }
        });
    }
    if scratch.capacity() > LARGEST_SCRATCH {
        *scratch = Scratch::default();
    }
    Event::Staged { line, number, outcomes, chunk }
}

/// What a job takes that its stages make large.
fn grow(shared: &Shared, bytes: usize, pump: Pump) -> Option<Arc<Share>> {
    // What has its turn may wait for this submitter.
    shared
        .large(Large::Job)
        .or_else(|| shared.share(Large::Job, bytes, pump, || !shared.stopped.load(Ordering::Relaxed)))
}

#[allow(clippy::too_many_arguments)]
fn stage_one(
    shared: &Shared,
    queue: &[u8],
    scratch: &mut Scratch,
    chunk: &mut Chunk,
    unique: &mut Vec<u8>,
    job: Job,
    id: UniqueId,
    grow: impl FnOnce(usize) -> Option<Arc<Share>>,
) -> Staged {
    let config = &shared.config;
    let max_size = shared.common.max_job_size;
    let limits = stages::Limits { max_size, cpu: stages::CPU_LIMIT, stop: &shared.stopped };
    // As much as was reserved when the job came.
    let reserved = max_size.min(job.data().len().saturating_mul(2).max(FREELY_STAGED));
    let mut staged = config.stages.apply(job.data(), scratch, &stages::Limits { max_size: reserved, ..limits });
    if reserved < max_size && matches!(staged, Err(Failure::Undeliverable(Undeliverable::OutcomeTooLarge))) {
        let Some(share) = grow(memory::with_stages(config, max_size)) else { return Staged::Abandoned };
        chunk.keep(share);
        staged = config.stages.apply(job.data(), scratch, &limits);
    }
    let staged = match staged {
        Ok(staged) => staged,
        Err(Failure::Undeliverable(undeliverable)) => return Staged::Undeliverable(undeliverable),
        Err(Failure::Stopped) => return Staged::Abandoned,
    };
    if let (Some(max_age), Some(time)) = (config.max_age, staged.time) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if since > Duration::from_millis(time).saturating_add(max_age) {
            return Staged::Expired;
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
    let size = staged.data.len() as u32;
    let submitted = if std::ptr::eq(staged.data, job.data()) {
        chunk.submit(kind, queue, unique, Payload::Unchanged(job))
    } else {
        if staged.data.len() > PIECE {
            job.home().into_iter().for_each(|home| chunk.keep(home));
        }
        chunk.submit(kind, queue, unique, Payload::Changed(staged.data))
    };
    match submitted {
        Ok(packet) => Staged::Submitted { data: size, packet },
        Err(_) => Staged::Undeliverable(Undeliverable::OutcomeTooLarge),
    }
}

pub fn stream(place: Option<&Socket>, generation: u32) -> Option<Arc<TcpStream>> {
    let place = place?.lock();
    let (current, stream) = place.as_ref()?;
    (*current == generation).then(|| Arc::clone(stream))
}

/// Writes submissions, and tells each time that the destination made room for more.
pub fn write(shared: &Shared, line: LineId, mut chunk: Chunk) -> Event {
    let Some(stream) = stream(shared.lines.get(line.submitter), line.generation) else {
        return Event::Written { line, rest: Some(chunk), failed: true };
    };
    let large = if chunk.len() > PIECE { shared.large(Large::Job) } else { None };
    while !chunk.is_empty() {
        let began = Instant::now();
        match (&*stream).write_vectored(&chunk.slices(PIECE)) {
            Ok(0) => return Event::Written { line, rest: Some(chunk), failed: true },
            Ok(count) => {
                chunk.advance(count);
                large.iter().for_each(|share| share.moved(Mover::Destination(line), count));
                // Only room that had to be waited for shows that the other end reads.
                if began.elapsed() >= WAITED {
                    shared.feed(Event::Progress(line));
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Event::Written { line, rest: Some(chunk), failed: true },
        }
    }
    large.iter().for_each(|share| share.sent());
    Event::Written { line, rest: None, failed: false }
}

/// Writes as much as the socket takes at once.
pub fn write_without_blocking(shared: &Shared, line: LineId, mut chunk: Chunk) -> Event {
    let Some(stream) = stream(shared.lines.get(line.submitter), line.generation) else {
        return Event::Written { line, rest: Some(chunk), failed: true };
    };
    match SockRef::from(&*stream).send_vectored_with_flags(&chunk.slices(usize::MAX), MSG_DONTWAIT) {
        Ok(count) => {
            chunk.advance(count);
            Event::Written { line, rest: Some(chunk), failed: false }
        }
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
            Event::Written { line, rest: Some(chunk), failed: false }
        }
        Err(_) => Event::Written { line, rest: Some(chunk), failed: true },
    }
}

/// Writes grabs, acknowledgements and results.
pub fn write_source(shared: &Shared, generation: u32, mut bytes: Vec<u8>) -> Event {
    let mut failed = true;
    if let Some(stream) = stream(Some(&shared.source), generation) {
        let large = if bytes.len() > PIECE { shared.large(Large::Result) } else { None };
        failed = bytes.chunks(PIECE).any(|piece| {
            let began = Instant::now();
            let failed = (&*stream).write_all(piece).is_err();
            if began.elapsed() >= WAITED && !failed {
                shared.feed(Event::SourceProgress { generation });
            }
            large.iter().for_each(|share| share.moved(Mover::Source(generation), piece.len()));
            failed
        });
    }
    bytes.clear();
    Event::SourceWritten { generation, buffer: bytes, failed }
}
