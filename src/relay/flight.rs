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
    /// JOB_CREATED, so many behind each other, where handles are not needed.
    Taken(usize),
    /// JOB_CREATED with the job's handle there.
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
        let reply = match (packet.kind, max_result) {
            (kind::JOB_CREATED, None) => match replies.last_mut() {
                Some(Reply::Taken(jobs)) => {
                    *jobs += 1;
                    continue;
                }
                _ => Reply::Taken(1),
            },
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
        };
        replies.push(reply);
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
    /// Of its packet, and of the data in it.
    pub bytes: u32,
    pub data: u32,
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
    pub fn submit(&mut self, slot: u32, bytes: u32, data: u32, now: Now) {
        if self.owes() == 0 {
            self.quiet_since = now;
        }
        self.owed.push_back(Flown { slot, bytes, data, at: now, confirmed: self.confirmed });
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ANSWER: Duration = Duration::from_secs(15);
    const LONGEST: Duration = Duration::from_secs(25);
    const WORTH: Duration = Duration::from_secs(5);

    /// A flight whose rate is this many bytes a second, measured at `at`.
    fn with_rate(rate: u32, at: Now) -> Flight {
        let mut flight = Flight::default();
        flight.submit(0, rate, 0, at);
        flight.replied();
        flight.measure(at + SECOND);
        flight
    }

    #[test]
    fn a_clock_runs_only_while_something_is_owed_and_begins_again_with_each_byte_that_moves() {
        let mut flight = Flight::default();
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), None);
        flight.submit(1, 100, 0, SECOND);
        flight.submit(2, 100, 0, 2 * SECOND);
        assert_eq!((flight.len(), flight.owes(), flight.is_empty()), (2, 2, false));
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(SECOND + ANSWER));
        flight.progressed(3 * SECOND);
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(3 * SECOND + ANSWER));
        assert_eq!(flight.quiet_for(10 * SECOND), 7 * SECOND);
        assert!(flight.replied().is_some() && flight.replied().is_some());
        assert_eq!((flight.overdue_at(ANSWER, LONGEST), flight.is_empty()), (None, true));
        assert!(flight.replied().is_none(), "a reply that nobody owed");

        flight.echo(20 * SECOND);
        flight.echo(21 * SECOND);
        assert_eq!((flight.owes(), flight.len(), flight.echoes), (2, 0, 2));
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(20 * SECOND + ANSWER));
        flight.submit(3, 100, 0, 22 * SECOND);
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(20 * SECOND + ANSWER));
    }

    #[test]
    fn a_slow_line_is_waited_for_longer_up_to_a_limit() {
        let mut flight = with_rate(1000, Now::ZERO);
        flight.submit(1, 1000, 0, Now::ZERO);
        flight.submit(2, 2000, 0, Now::ZERO);
        assert_eq!(flight.time_for(0), 3 * SECOND);
        assert_eq!(flight.time_for(500), 3 * SECOND + SECOND / 2);
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(ANSWER + 6 * SECOND));
        flight.submit(3, 100_000, 0, Now::ZERO);
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(LONGEST));
        assert_eq!(flight.overdue_at(2 * LONGEST, LONGEST), Some(2 * LONGEST));
        assert_eq!(Flight::default().time_for(1 << 20), Duration::ZERO, "nothing was measured");
    }

    #[test]
    fn a_large_job_that_is_alone_has_a_second_for_each_16_kib() {
        let mut flight = Flight::default();
        flight.submit(1, 5 << 20, 0, Now::ZERO);
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(320 * SECOND));
        flight.submit(2, 1, 0, Now::ZERO);
        assert_eq!(flight.overdue_at(ANSWER, LONGEST), Some(ANSWER));
    }

    #[test]
    fn what_may_be_unconfirmed_is_what_the_line_takes_in_some_time() {
        let mut flight = Flight::default();
        assert_eq!(flight.room(WORTH, 1), FIRST_UNCONFIRMED);
        assert_eq!(flight.room(WORTH, 4), FIRST_UNCONFIRMED / 4);
        flight.submit(1, 1000, 0, Now::ZERO);
        assert_eq!(flight.room(WORTH, 1), FIRST_UNCONFIRMED - 1000);
        flight.submit(2, 100_000, 0, Now::ZERO);
        assert_eq!(flight.room(WORTH, 1), 0);

        let mut flight = with_rate(100_000, Now::ZERO);
        assert_eq!(flight.room(WORTH, 1), 500_000);
        flight.submit(1, 200_000, 0, Now::ZERO);
        assert_eq!(flight.room(WORTH, 1), 300_000);
        assert_eq!(with_rate(1000, Now::ZERO).room(WORTH, 1), FIRST_UNCONFIRMED, "nor less than that");
    }

    /// Two submissions together are confirmed in two seconds: the second tells the rate of both.
    #[test]
    fn the_rate_counts_all_that_was_confirmed_since_the_submission() {
        let mut flight = Flight::default();
        flight.submit(1, 1000, 0, SECOND);
        flight.submit(2, 3000, 0, SECOND);
        flight.replied();
        flight.measure(2 * SECOND);
        assert_eq!(flight.rate.get(), 1000);
        flight.replied();
        flight.measure(3 * SECOND);
        assert_eq!(flight.rate.get(), 2000);
        flight.submit(3, 1, 0, 3 * SECOND);
        flight.replied();
        flight.measure(4 * SECOND);
        assert_eq!(flight.rate.get(), 2000, "the largest counts");
    }

    #[test]
    fn a_rate_is_forgotten_after_two_periods() {
        let rate = |at: &[(u64, Duration)]| {
            let mut rate = Rate::default();
            at.iter().for_each(|&(bytes, now)| rate.sample(bytes, SECOND, now));
            rate.get()
        };
        let start = 100 * SECOND;
        assert_eq!(rate(&[(9000, start), (10, start + RATE_PERIOD)]), 9000);
        assert_eq!(rate(&[(9000, start), (10, start + RATE_PERIOD), (20, start + 2 * RATE_PERIOD)]), 20);
        assert_eq!(rate(&[(9000, start), (10, start + 2 * RATE_PERIOD)]), 10, "after a pause");
        assert_eq!(rate(&[(9000, start), (10, start + 2 * RATE_PERIOD - SECOND)]), 9000);
        let mut instant = Rate::default();
        instant.sample(3, Duration::ZERO, start);
        assert_eq!(instant.get(), 3_000_000);
    }

    #[test]
    fn what_is_lost_comes_back_in_the_order_of_submission() {
        let mut flight = Flight::default();
        (1..=3).for_each(|slot| flight.submit(slot, 10 * slot, 0, Now::ZERO));
        flight.replied();
        flight.measure(Now::ZERO);
        assert_eq!(flight.lose().map(|flown| (flown.slot, flown.bytes)).collect::<Vec<_>>(), [(2, 20), (3, 30)]);
    }

    fn response(kind: u32, body: &[u8]) -> Vec<u8> {
        [&b"\0RES"[..], &kind.to_be_bytes(), &(body.len() as u32).to_be_bytes(), body].concat()
    }

    fn read(bytes: &[u8], max_result: Option<usize>) -> Result<Vec<Reply>, ProtocolError> {
        let mut incoming = Incoming::default();
        let mut unread = bytes;
        while !unread.is_empty() {
            incoming.fill(&mut unread).unwrap();
        }
        read_replies(&mut incoming, max_result)
    }

    #[test]
    fn replies_to_background_jobs_are_confirmations_and_nothing_else() {
        let bytes = [
            response(kind::JOB_CREATED, b"H:a:1"),
            response(kind::JOB_CREATED, b"H:a:2"),
            response(kind::ERROR, b"QUEUE_ERROR\0too many"),
            response(kind::JOB_CREATED, b"H:a:3"),
            response(kind::ECHO_RES, b"?"),
            response(kind::JOB_CREATED, b"H:a:4")[..15].to_vec(),
        ];
        let refused = Reply::Refused("QUEUE_ERROR".into());
        let replies = vec![Reply::Taken(2), refused, Reply::Taken(1), Reply::Echo];
        assert_eq!(read(&bytes.concat(), None), Ok(replies));
        for kind in [kind::WORK_COMPLETE, kind::WORK_STATUS, kind::NOOP, 99] {
            assert_eq!(read(&response(kind, b"H:a:1\0"), None), Err(ProtocolError::Unexpected(kind)));
        }
        assert_eq!(read(&response(kind::NOOP, b""), Some(100)), Err(ProtocolError::Unexpected(kind::NOOP)));
    }

    #[test]
    fn results_have_their_handle_and_what_follows_it() {
        let kinds = [
            kind::WORK_DATA,
            kind::WORK_WARNING,
            kind::WORK_STATUS,
            kind::WORK_COMPLETE,
            kind::WORK_FAIL,
            kind::WORK_EXCEPTION,
        ];
        for kind in kinds {
            let reply = |rest: &[u8]| Reply::Work { kind, handle: b"H:a:1".to_vec(), rest: rest.to_vec() };
            assert_eq!(read(&response(kind, b"H:a:1\0re\0st"), Some(100)), Ok(vec![reply(b"\0re\0st")]));
            assert_eq!(read(&response(kind, b"H:a:1"), Some(100)), Ok(vec![reply(b"")]));
        }
        let created = Reply::Created(b"H:a:1".to_vec());
        assert_eq!(read(&response(kind::JOB_CREATED, b"H:a:1"), Some(100)), Ok(vec![created]));
    }

    /// 64 MiB of result that nobody can return are no reason to try again; a server that announces 64 MiB of JOB_CREATED is
    /// none.
    #[test]
    fn only_a_result_may_be_too_large() {
        let large = |kind: u32| [&b"\0RES"[..], &kind.to_be_bytes(), &(64_u32 << 20).to_be_bytes()].concat();
        for kind in [kind::WORK_DATA, kind::WORK_WARNING, kind::WORK_COMPLETE, kind::WORK_EXCEPTION] {
            assert_eq!(read(&large(kind), Some(1 << 20)), Err(ProtocolError::TooLong(64 << 20)));
            assert_eq!(read(&large(kind), Some(64 << 20)), Ok(Vec::new()));
            assert_eq!(read(&large(kind), None), Err(ProtocolError::Unexpected(kind)));
        }
        for kind in [kind::JOB_CREATED, kind::WORK_STATUS, kind::WORK_FAIL, kind::ERROR] {
            assert_eq!(read(&large(kind), Some(64 << 20)), Err(ProtocolError::Unexpected(kind)));
        }
    }
}
