//! An asynchronous destination connection's reading side: replies in, acknowledgements to the source.

use std::net::TcpStream;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::debug;

use super::Session;
use super::bulk::gather;
use super::destination::Clock;
use super::job::Batch;
use super::source::BACKGROUND_ANSWER;
use crate::gearman::connection::{ConnectionError, error_code};
use crate::gearman::packet::{Incoming, Packet, ProtocolError, kind, put_request};

/// The longest reply to a submission: a handle, or an error's code and text, bytes.
const MAX_REPLY: usize = 4 << 10;

/// What the confirmer tells its submitter. Its end closes the channel.
pub enum Event {
    /// A job was refused; more may follow.
    Refusal,
    /// An ECHO_REQ was answered, and so was everything before it: these jobs were refused since the last one.
    Answered(Vec<Refused>),
}

impl Event {
    /// The jobs that it tells of.
    pub fn refused(self) -> Vec<Refused> {
        match self {
            Event::Refusal => Vec::new(),
            Event::Answered(refused) => refused,
        }
    }
}

/// A job for whose submission the destination sent an ERROR.
pub struct Refused {
    /// The job alone.
    pub batch: Batch,
    /// The error's code.
    pub code: String,
}

/// What is left when a connection has ended.
pub struct Left {
    /// Why it ended.
    pub error: ConnectionError,
    /// Refused jobs that the submitter has not been told of.
    pub refused: Vec<Refused>,
    /// The batch whose replies were being read; from its `next` on, jobs are unconfirmed.
    pub current: Option<Batch>,
}

/// The thread that reads replies, which come in the order of submission.
pub struct Confirmer<'s> {
    session: &'s Session<'s>,
    clock: &'s Clock,
    submitted: Receiver<Batch>,
    events: Sender<Event>,
    current: Option<Batch>,
    refused: Vec<Refused>,
    /// Answers to ECHO_REQ that came before the replies to what was submitted earlier.
    echoes: usize,
    due: Due,
}

/// Acknowledgements that are written at once.
#[derive(Default)]
struct Due {
    packets: Vec<u8>,
    keys: Vec<u128>,
    held_bytes: usize,
    bytes_in: u64,
    bytes_out: u64,
    /// Batches whose memory is free when they are written.
    emptied: Vec<Batch>,
}

impl<'s> Confirmer<'s> {
    /// A confirmer for a new connection; `submitted` are the batches in the order in which they are written to it.
    pub fn new(
        session: &'s Session<'s>,
        clock: &'s Clock,
        submitted: Receiver<Batch>,
        events: Sender<Event>,
    ) -> Confirmer<'s> {
        Confirmer {
            session,
            clock,
            submitted,
            events,
            current: None,
            refused: Vec::new(),
            echoes: 0,
            due: Due::default(),
        }
    }

    /// Reads until the connection ends.
    pub fn run(mut self, stream: &TcpStream, mut incoming: Incoming) -> Left {
        let error = loop {
            let outcome = self.take(&mut incoming);
            // What was confirmed counts, whatever came after it.
            self.acknowledge();
            let outcome = outcome.and_then(|()| {
                gather(self.clock.owed());
                Ok(incoming.fill(&mut &*stream)?)
            });
            if let Err(error) = outcome {
                break error;
            }
            self.clock.progressed();
        };
        Left { error, refused: self.refused, current: self.current }
    }

    fn take(&mut self, incoming: &mut Incoming) -> Result<(), ConnectionError> {
        while let Some(packet) = incoming.next(|_| MAX_REPLY)? {
            if !self.clock.answered() {
                return Err(ProtocolError::Unexpected(packet.kind).into());
            }
            match packet {
                Packet { kind: kind::JOB_CREATED, .. } => self.confirm()?,
                Packet { kind: kind::ERROR, body } => self.refuse(error_code(body))?,
                Packet { kind: kind::ECHO_RES, .. } => {
                    self.session.life.metrics.progressed();
                    self.echoes += 1;
                }
                Packet { kind, .. } => return Err(ProtocolError::Unexpected(kind).into()),
            }
            // Servers answer in order, but nothing promises that they answer an ECHO_REQ in turn.
            if self.echoes > 0 && self.is_all_replied() {
                self.acknowledge();
                for _ in 0..std::mem::take(&mut self.echoes) {
                    // It fails only when the submitter has ended.
                    let _ = self.events.send(Event::Answered(std::mem::take(&mut self.refused)));
                }
            }
        }
        Ok(())
    }

    /// Whether no reply to a submission is owed. An ECHO_REQ is sent after the batches before it came here.
    fn is_all_replied(&self) -> bool {
        self.submitted.is_empty() && self.current.as_ref().is_none_or(|batch| batch.left().next().is_none())
    }

    /// The batch and the position in it of the job that this reply is for, and what is due.
    fn replied(&mut self, kind: u32) -> Result<(&Batch, usize, &mut Due), ConnectionError> {
        loop {
            let position = self.current.as_mut().and_then(|batch| {
                while batch.jobs.get(batch.next)?.done {
                    batch.next += 1;
                }
                batch.next += 1;
                Some(batch.next - 1)
            });
            if let Some(position) = position {
                let batch = self.current.as_ref().ok_or(ConnectionError::Closed)?;
                return Ok((batch, position, &mut self.due));
            }
            self.due.emptied.extend(self.current.take());
            self.current = Some(self.next_batch(kind)?);
        }
    }

    /// The batch that a reply is for. It is on its way, since the reply may be faster than the submitter; unless the
    /// destination replied to something else, and then it never comes.
    fn next_batch(&self, kind: u32) -> Result<Batch, ConnectionError> {
        loop {
            match self.submitted.recv_timeout(self.clock.limit()) {
                Ok(batch) => return Ok(batch),
                Err(RecvTimeoutError::Disconnected) => return Err(ConnectionError::Closed),
                Err(RecvTimeoutError::Timeout) if self.clock.is_still() => {
                    return Err(ProtocolError::Unexpected(kind).into());
                }
                // The rest of the batch is being written.
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn confirm(&mut self) -> Result<(), ConnectionError> {
        let (batch, position, due) = self.replied(kind::JOB_CREATED)?;
        let job = &batch.jobs[position];
        put_request(&mut due.packets, kind::WORK_COMPLETE, &[job.parts(&batch.bytes).handle, BACKGROUND_ANSWER]);
        due.keys.push(job.key);
        due.held_bytes += job.size();
        due.bytes_in += job.data_size() as u64;
        due.bytes_out += u64::from(job.sent.unwrap_or_default());
        Ok(())
    }

    fn refuse(&mut self, code: String) -> Result<(), ConnectionError> {
        let (batch, position, _) = self.replied(kind::ERROR)?;
        let batch = batch.single(position);
        self.refused.push(Refused { batch, code });
        let _ = self.events.send(Event::Refusal);
        Ok(())
    }

    /// Writes the acknowledgements that are due.
    fn acknowledge(&mut self) {
        let due = &mut self.due;
        let jobs = due.keys.len() as u64;
        if jobs > 0 {
            let config = &self.session.life.config;
            let (source, destination) = (&config.source, config.first_destination());
            debug!("{jobs} jobs of {source} taken by {destination}");
            self.clock.count_taken(jobs);
            self.session.life.metrics.delivered(jobs, due.bytes_in, due.bytes_out);
            self.session.source.acknowledge(&due.packets, &due.keys, due.held_bytes);
            self.session.taken(jobs);
            due.packets.clear();
            due.keys.clear();
            (due.held_bytes, due.bytes_in, due.bytes_out) = (0, 0, 0);
        }
        for batch in due.emptied.drain(..) {
            self.session.recycle(batch);
        }
    }
}
