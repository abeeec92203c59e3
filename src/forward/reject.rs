//! Undeliverable jobs: to the reject queue as they came, or failed with a reason.

use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::warn;

use super::Session;
use super::destination::{Clock, Link};
use super::identity::{Identity, next_number};
use super::job::{Batch, Job};
use super::recovery::Recovery;
use super::source::BACKGROUND_ANSWER;
use crate::config::Address;
use crate::gearman::connection::{Connection, ConnectionError, error_code, is_timeout};
use crate::gearman::packet::{ProtocolError, kind, put_request};
use crate::logging::escaped;

/// At most one line in this time about the undeliverable jobs of a forward.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Jobs that are submitted to the reject queue at once.
const REJECTED_AT_ONCE: usize = 256;

/// The longest reply to a submission, bytes.
const MAX_REPLY: usize = 4 << 10;

/// Reports undeliverable jobs or the like, at most a line a second.
#[derive(Debug)]
pub struct Rejections {
    about: &'static str,
    last: Option<Instant>,
    more: u64,
}

impl Rejections {
    /// Nothing was reported yet; the lines that were counted only are said to be `about` this.
    pub fn new(about: &'static str) -> Rejections {
        Rejections { about, last: None, more: 0 }
    }

    /// Reports it now, or counts it for a later line.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        if self.last.is_some_and(|last| last.elapsed() < REPORT_EVERY) {
            self.more += 1;
            return;
        }
        self.report();
        warn!("{what}");
        self.last = Some(Instant::now());
    }

    /// Reports what was counted only.
    pub fn report(&mut self) {
        match std::mem::take(&mut self.more) {
            0 => {}
            more => warn!("{more} more messages of this kind about {}", self.about),
        }
    }
}

/// An undeliverable job.
#[derive(Debug)]
pub struct Rejected {
    /// The job alone.
    pub batch: Batch,
    /// Why.
    pub reason: String,
}

impl Session<'_> {
    /// Fails an undeliverable job, which counts with `held` bytes.
    pub fn fail(&self, handle: &[u8], held: usize, reason: &str) {
        self.life.metrics.rejected(reason);
        let forward = &self.life.config;
        self.life.rejections.lock().note(format_args!(
            "job {} of {} can't be delivered to {}: {reason}; failed",
            escaped(handle),
            forward.source,
            forward.first_destination()
        ));
        self.finish_failed(handle, held);
    }

    /// Fails a job whose data takes `size` bytes, more than is allowed.
    pub fn fail_too_large(&self, handle: &[u8], size: usize, held: usize) {
        let limit = self.life.settings.max_job_size;
        self.fail(handle, held, &format!("its {size} bytes are more than max_job_size = {limit} allows"));
    }

    /// Tells the source that a job has failed.
    pub fn finish_failed(&self, handle: &[u8], held: usize) {
        let mut packet = Vec::new();
        put_request(&mut packet, kind::WORK_FAIL, &[handle]);
        self.source.finish(&packet, held);
    }
}

/// Gives an undeliverable job to the reject queue, or fails it where there is none.
pub fn reject(
    session: &Session<'_>,
    rejects: Option<&Sender<Rejected>>,
    batch: &Batch,
    position: usize,
    reason: String,
) {
    match rejects {
        // It fails only when the rejecter has ended, and then the session is over and the job goes back.
        Some(rejects) => drop(rejects.send(Rejected { batch: batch.single(position), reason })),
        None => {
            let job: &Job = &batch.jobs[position];
            session.fail(job.parts(&batch.bytes).handle, job.size(), &reason);
        }
    }
}

/// The thread that submits undeliverable jobs to the reject queue, over a connection opened when first needed.
pub struct Rejecter<'s> {
    session: &'s Session<'s>,
    address: &'s Address,
    rejected: Receiver<Rejected>,
    recovery: Recovery<'s>,
    held: Vec<Rejected>,
}

impl<'s> Rejecter<'s> {
    /// A rejecter for the reject queue `address`.
    pub fn new(session: &'s Session<'s>, address: &'s Address, rejected: Receiver<Rejected>) -> Rejecter<'s> {
        Rejecter { session, address, rejected, recovery: Recovery::new(session, address), held: Vec::new() }
    }

    /// Runs until every submitter has ended, or the session is over.
    pub fn run(mut self) {
        let mut connection = None;
        while let Ok(first) = self.rejected.recv() {
            self.held.push(first);
            self.held.extend(self.rejected.try_iter().take(REJECTED_AT_ONCE - 1));
            while !self.held.is_empty() {
                match self.deliver(connection.take()) {
                    Ok(open) => {
                        connection = Some(open);
                        self.recovery.worked();
                        self.session.life.recovered(&self.address.server);
                    }
                    Err(error) => {
                        if !self.recovery.pause(error) {
                            // What is held goes back to the source.
                            for Rejected { batch, .. } in &self.held {
                                self.session.life.note_unconfirmed(batch.jobs.iter());
                            }
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Submits what is held and waits for the replies; what was taken is acknowledged and no longer held.
    fn deliver(&mut self, connection: Option<Connection>) -> Result<Connection, ConnectionError> {
        let life = self.session.life;
        let mut connection = match connection {
            Some(connection) => connection,
            None => life.open(&self.address.server, &life.limits().within(self.recovery.time_to_connect()))?,
        };
        let mut out = Vec::new();
        let mut unique = Vec::new();
        for Rejected { batch, .. } in &mut self.held {
            for job in &mut batch.jobs {
                let parts = job.parts(&batch.bytes);
                let identity: Identity = self.session.origin.identify(&parts);
                job.key = identity.key;
                if !self.session.origin.tells() && job.number == 0 {
                    job.number = next_number();
                }
                // The source's own id may repeat, and merging would drop data.
                self.session.origin.write_unique(&mut unique, parts.handle, &identity, job.number);
                put_request(&mut out, kind::SUBMIT_JOB_BG, &[self.address.queue.as_bytes(), &unique, parts.data]);
            }
        }
        let clock = Clock::new(life.settings.timing.answer);
        let link = Link::new(&connection.stream, &clock)?;
        connection.stream.set_read_timeout(Some(life.settings.timing.answer))?;
        clock.owe(self.held.len());
        link.write(&out)?;
        let mut refusal = None;
        let mut lost = None;
        for rejected in std::mem::take(&mut self.held) {
            if lost.is_none() {
                match reply(&mut connection) {
                    Ok(None) => {
                        self.acknowledge(&rejected);
                        continue;
                    }
                    Ok(Some(code)) => refusal = Some(ConnectionError::Refused(code)),
                    Err(error) => lost = Some(error),
                }
            }
            self.held.push(rejected);
        }
        lost.or(refusal).map_or(Ok(connection), Err)
    }

    /// The job is in the reject queue.
    fn acknowledge(&self, rejected: &Rejected) {
        let life = self.session.life;
        let Rejected { batch, reason } = rejected;
        life.metrics.rejected(reason);
        for job in &batch.jobs {
            let handle = job.parts(&batch.bytes).handle;
            life.rejections.lock().note(format_args!(
                "job {} of {} can't be delivered to {}: {reason}; moved to {}",
                escaped(handle),
                life.config.source,
                life.config.first_destination(),
                self.address
            ));
            if life.config.asynchronous {
                let mut packet = Vec::new();
                put_request(&mut packet, kind::WORK_COMPLETE, &[handle, BACKGROUND_ANSWER]);
                self.session.source.acknowledge(&packet, &[job.key], job.size());
            } else {
                // Who waits for a result is told that there is none.
                self.session.finish_failed(handle, job.size());
            }
        }
    }
}

/// Waits for the reply to one submission: `None` when it was taken, the code when it was refused.
fn reply(connection: &mut Connection) -> Result<Option<String>, ConnectionError> {
    loop {
        if let Some(packet) = connection.incoming.next(|_| MAX_REPLY)? {
            return match packet.kind {
                kind::JOB_CREATED => Ok(None),
                kind::ERROR => Ok(Some(error_code(packet.body))),
                other => Err(ProtocolError::Unexpected(other).into()),
            };
        }
        match connection.incoming.fill(&mut &connection.stream) {
            Err(error) if is_timeout(&error) => {
                let limit = connection.stream.read_timeout().ok().flatten().unwrap_or_default();
                return Err(ConnectionError::NoAnswer(limit));
            }
            other => other?,
        }
    }
}
