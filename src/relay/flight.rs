//! What a destination owes: submissions without a reply, in the order of their submission, and how fast replies come.

use std::collections::VecDeque;
use std::time::Duration;

use super::Now;
use crate::gearman::packet::{Incoming, MAX_SMALL_PACKET, Packet, ProtocolError, error_code, kind};

/// Unconfirmed on all lines of a forward before anything was measured, bytes.
const FIRST_UNCONFIRMED: u64 = 64 << 10;

/// A job that is alone on its line may take a second for each of these, bytes.
const ALONE_BYTES_PER_SECOND: u64 = 16 << 10;

/// The rate is the largest of what was measured in this time and the one before.
const RATE_PERIOD: Duration = Duration::from_secs(5);

/// What a destination sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// JOB_CREATED with the job's handle there (left out where nobody reads it).
    Created(Vec<u8>),
    /// ERROR with its code.
    Refused(String),
    Echo,
    /// WORK_DATA, WORK_WARNING, WORK_STATUS, WORK_COMPLETE, WORK_FAIL, WORK_EXCEPTION: the packet's type, its handle, and
    /// what follows the handle with the NUL before it.
    Work {
        kind: u32,
        handle: Vec<u8>,
        rest: Vec<u8>,
    },
}

/// The whole replies among the bytes that were read; results only where `max_result` says how large one may be.
///
/// # Errors
/// The bytes are no response that a client may get.
pub fn read_replies(incoming: &mut Incoming, max_result: Option<usize>) -> Result<Vec<Reply>, ProtocolError> {
    let mut replies = Vec::new();
    let limit = |kind| match (kind, max_result) {
        (kind::WORK_DATA | kind::WORK_WARNING | kind::WORK_COMPLETE | kind::WORK_EXCEPTION, Some(size)) => {
            size.saturating_add(MAX_SMALL_PACKET)
        }
        _ => MAX_SMALL_PACKET,
    };
    loop {
        let announced = incoming.kind();
        let packet = match incoming.next(limit) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(replies),
            // Only a result may be too large; anything else that claims to be so is nonsense.
            Err(ProtocolError::TooLong(_)) if limit(announced) == MAX_SMALL_PACKET => {
                return Err(ProtocolError::Unexpected(announced));
            }
            Err(error) => return Err(error),
        };
        replies.push(match (packet.kind, max_result) {
            (kind::JOB_CREATED, None) => Reply::Created(Vec::new()),
            (kind::JOB_CREATED, Some(_)) => Reply::Created(packet.body.to_vec()),
            (kind::ERROR, _) => Reply::Refused(error_code(packet.body)),
            (kind::ECHO_RES, _) => Reply::Echo,
            (
                kind::WORK_DATA
                | kind::WORK_WARNING
                | kind::WORK_STATUS
                | kind::WORK_COMPLETE
                | kind::WORK_FAIL
                | kind::WORK_EXCEPTION,
                Some(_),
            ) => work(&packet),
            (other, _) => return Err(ProtocolError::Unexpected(other)),
        });
    }
}

fn work(packet: &Packet<'_>) -> Reply {
    let end = packet.body.iter().position(|&byte| byte == 0).unwrap_or(packet.body.len());
    let (handle, rest) = packet.body.split_at(end);
    Reply::Work { kind: packet.kind, handle: handle.to_vec(), rest: rest.to_vec() }
}

/// A submission without a reply.
#[derive(Debug, Clone, Copy)]
pub struct Flown {
    /// The job's slot.
    pub slot: u32,
    /// Of its packet.
    pub bytes: u32,
    /// When it was submitted.
    at: Now,
    /// Bytes that had been confirmed then.
    confirmed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Flight {
    owed: VecDeque<Flown>,
    bytes: u64,
    /// ECHO_REQs without an answer.
    pub echoes: usize,
    /// Since when something is owed without a byte that moved.
    quiet_since: Now,
    confirmed: u64,
    rate: Rate,
    /// The last that was replied to since the rate was measured.
    last_replied: Option<Flown>,
}

/// Bytes a second that were confirmed, the largest of two periods.
#[derive(Debug, Default)]
struct Rate {
    period_ends: Now,
    last: u64,
    current: u64,
}

impl Rate {
    fn sample(&mut self, bytes: u64, took: Duration, now: Now) {
        if now >= self.period_ends {
            // After a pause both periods are over.
            let old = now >= self.period_ends + RATE_PERIOD;
            self.last = if old { 0 } else { self.current };
            self.current = 0;
            self.period_ends = now + RATE_PERIOD;
        }
        let micros = took.as_micros().max(1) as u64;
        self.current = self.current.max(bytes.saturating_mul(1_000_000) / micros);
    }

    fn get(&self) -> u64 {
        self.current.max(self.last)
    }
}

impl Flight {
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Submissions without a reply.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// Answers that are owed, to whatever.
    pub fn owes(&self) -> usize {
        self.owed.len() + self.echoes
    }

    /// A job is about to be submitted.
    pub fn submit(&mut self, slot: u32, bytes: u32, now: Now) {
        if self.owes() == 0 {
            self.quiet_since = now;
        }
        self.owed.push_back(Flown { slot, bytes, at: now, confirmed: self.confirmed });
        self.bytes += u64::from(bytes);
    }

    /// An ECHO_REQ is about to be sent.
    pub fn echo(&mut self, now: Now) {
        if self.owes() == 0 {
            self.quiet_since = now;
        }
        self.echoes += 1;
    }

    /// The destination took bytes that had to wait, or sent some.
    pub fn progressed(&mut self, now: Now) {
        self.quiet_since = now;
    }

    /// A submission was replied to: the oldest.
    pub fn replied(&mut self) -> Option<Flown> {
        let flown = self.owed.pop_front()?;
        self.bytes -= u64::from(flown.bytes);
        self.confirmed += u64::from(flown.bytes);
        self.last_replied = Some(flown);
        Some(flown)
    }

    /// After the replies of one read: measures what they tell of the rate.
    pub fn measure(&mut self, now: Now) {
        if let Some(flown) = self.last_replied.take() {
            self.rate.sample(self.confirmed - flown.confirmed, now.saturating_sub(flown.at), now);
        }
    }

    /// The line is lost: what is unconfirmed, in the order of submission.
    pub fn lose(self) -> impl DoubleEndedIterator<Item = Flown> {
        self.owed.into_iter()
    }

    /// Bytes that may be submitted now beside what is unconfirmed, on one of `lines` lines; one submission always may where
    /// nothing is.
    pub fn room(&self, worth: Duration, lines: usize) -> u64 {
        let bound = self.rate.get().saturating_mul(worth.as_millis() as u64) / 1000;
        bound.max(FIRST_UNCONFIRMED / lines.max(1) as u64).saturating_sub(self.bytes)
    }

    /// How long `more` bytes beside what is unconfirmed take at the measured rate; nothing where none was measured.
    pub fn time_for(&self, more: u64) -> Duration {
        match self.rate.get() {
            0 => Duration::ZERO,
            rate => Duration::from_millis((self.bytes + more).saturating_mul(1000) / rate),
        }
    }

    /// When the destination is lost if nothing moves until then; never while it owes nothing.
    pub fn overdue_at(&self, answer: Duration, longest: Duration) -> Option<Now> {
        if self.owes() == 0 {
            return None;
        }
        let limit = (answer + 2 * self.time_for(0)).min(longest.max(answer));
        let alone = match self.owed.len() {
            1 => Duration::from_secs(self.bytes / ALONE_BYTES_PER_SECOND),
            _ => Duration::ZERO,
        };
        Some(self.quiet_since + limit.max(alone))
    }

    /// The time without progress, for the reason of a loss.
    pub fn quiet_for(&self, now: Now) -> Duration {
        now.saturating_sub(self.quiet_since)
    }
}
