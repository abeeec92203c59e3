//! Bytes from the source to packets for the relay: jobs come out whole, in a block that they share.

use std::ops::Range;
use std::sync::Arc;

use super::job::{Block, Home, Origin, Parts, Run};
use crate::gearman::packet::{HEADER_SIZE, MAX_SMALL_PACKET, Packet, Parsed, ProtocolError, error_code, kind, parse};

/// What is read at once at least and at most, bytes: it doubles while reads are full, and is small again when the source
/// has no more jobs.
const SMALLEST_READ: usize = 4 << 10;
const LARGEST_READ: usize = 64 << 10;

/// What a source sent.
#[derive(Debug)]
pub enum SourcePacket {
    Jobs(Run),
    /// A job whose data is larger than allowed; it was read off.
    TooLarge {
        handle: Vec<u8>,
        size: usize,
    },
    NoJob,
    Noop,
    Echo,
    /// With its code.
    Error(String),
}

/// What was read from a source and not taken yet.
pub struct Intake {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were read; they begin with a packet.
    end: usize,
    read_size: usize,
    was_full: bool,
    /// Jobs that the last read brought: about as many come with the next.
    expected: usize,
    /// The data of a job that is too large is being dropped.
    discard: Option<Discard>,
    max_job_size: usize,
    origin: Origin,
    /// Where blocks come from and go to.
    home: Option<Arc<dyn Home>>,
}

struct Discard {
    handle: Vec<u8>,
    size: usize,
    /// Bytes that are still to come.
    left: usize,
}

impl Intake {
    /// For a new connection that has read `unread` already.
    pub fn new(unread: &[u8], max_job_size: usize, origin: Origin, home: Option<Arc<dyn Home>>) -> Intake {
        Intake {
            buffer: unread.to_vec(),
            end: unread.len(),
            read_size: SMALLEST_READ,
            was_full: false,
            expected: 0,
            discard: None,
            max_job_size,
            origin,
            home,
        }
    }

    /// What counts the blocks from now on.
    pub fn set_home(&mut self, home: Arc<dyn Home>) {
        self.home = Some(home);
    }

    /// What the packet under way takes, bytes; 0 where that is not known yet, or it is not to be kept.
    pub fn needs(&self) -> usize {
        let unread = self.buffer.get(..self.end).unwrap_or_default();
        match parse(unread, |kind| self.limit(kind)) {
            Ok(Parsed::Incomplete { needed }) if self.discard.is_none() => needed,
            _ => 0,
        }
    }

    fn limit(&self, kind: u32) -> usize {
        match kind {
            kind::JOB_ASSIGN_UNIQ => self.max_job_size.saturating_add(MAX_SMALL_PACKET),
            _ => MAX_SMALL_PACKET,
        }
    }

    /// Where the next bytes go: `largest` at most, but for what is left of a packet. Nowhere if the system has no memory.
    pub fn room(&mut self, largest: usize) -> &mut [u8] {
        if self.was_full {
            self.read_size *= 2;
        }
        self.read_size = self.read_size.min(LARGEST_READ.min(largest));
        // A large packet's memory is taken at once, and touched as its bytes come.
        let mut wanted = self.read_size;
        if self.end == self.buffer.len() {
            let needs = if self.end < HEADER_SIZE { 0 } else { self.needs() };
            wanted = if needs > self.end { needs.min(self.end + self.read_size) } else { self.end + self.read_size };
            if self.buffer.try_reserve_exact(needs.max(wanted) - self.end).is_err() {
                return &mut [];
            }
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes were read into [`Self::room`].
    pub fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        self.was_full = self.end == self.buffer.len();
    }

    /// Whether the last read took all the room there was: more is there.
    pub fn was_full(&self) -> bool {
        self.was_full
    }

    /// Bytes that are taken by what was read, whole or not.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// The source has no more jobs for now: gives memory back.
    pub fn rest(&mut self) {
        self.read_size = SMALLEST_READ;
        self.was_full = false;
        self.expected = 0;
        if self.end <= SMALLEST_READ && self.buffer.len() > SMALLEST_READ {
            self.buffer.truncate(SMALLEST_READ);
            self.buffer.shrink_to_fit();
        }
    }

    /// The whole packets that were read. `memory` gives the next buffer where this one stays with its jobs.
    ///
    /// # Errors
    /// The bytes are no response that a worker may get.
    pub fn take(&mut self, memory: impl FnOnce() -> Vec<u8>) -> Result<Vec<SourcePacket>, ProtocolError> {
        let mut packets = Vec::new();
        let mut jobs = Vec::with_capacity(self.expected);
        // Jobs behind each other, and where they belong among the packets.
        let mut runs: Vec<(usize, Range<u32>)> = Vec::new();
        let mut at = self.drop_discarded(&mut packets);
        loop {
            let unread = self.buffer.get(at..self.end).unwrap_or_default();
            match parse(unread, |kind| self.limit(kind))? {
                Parsed::Incomplete { .. } => break,
                Parsed::TooLong { kind: kind::JOB_ASSIGN_UNIQ, length } => {
                    // The parts beside the data must be there first.
                    if unread.len() < HEADER_SIZE + MAX_SMALL_PACKET {
                        break;
                    }
                    let body = unread.get(HEADER_SIZE..).unwrap_or_default();
                    let body = body.get(..length.min(body.len())).unwrap_or_default();
                    let ([handle, _, _], data) = Packet { kind: kind::JOB_ASSIGN_UNIQ, body }.arguments()?;
                    let left = length - body.len();
                    let (handle, size) = (handle.to_vec(), data.len() + left);
                    at += HEADER_SIZE + body.len();
                    if left > 0 {
                        self.discard = Some(Discard { handle, size, left });
                        break;
                    }
                    packets.push(SourcePacket::TooLarge { handle, size });
                }
                Parsed::TooLong { length, .. } => return Err(ProtocolError::TooLong(length)),
                Parsed::Whole { kind, end } => {
                    let body = unread.get(HEADER_SIZE..end).unwrap_or_default();
                    let packet = Packet { kind, body };
                    packets.push(match kind {
                        kind::JOB_ASSIGN_UNIQ => {
                            let parts = Parts::read(at, &packet, &self.origin)?;
                            if parts.data_size() > self.max_job_size {
                                let ([handle, _, _], _) = packet.arguments()?;
                                SourcePacket::TooLarge { handle: handle.to_vec(), size: parts.data_size() }
                            } else {
                                jobs.push(parts);
                                let count = jobs.len() as u32;
                                if let Some((position, numbers)) = runs.last_mut()
                                    && *position + 1 == packets.len()
                                {
                                    numbers.end = count;
                                    at += end;
                                    continue;
                                }
                                runs.push((packets.len(), count - 1..count));
                                // In the place of the run.
                                SourcePacket::Noop
                            }
                        }
                        kind::NO_JOB => SourcePacket::NoJob,
                        kind::NOOP => SourcePacket::Noop,
                        kind::ECHO_RES => SourcePacket::Echo,
                        kind::ERROR => SourcePacket::Error(error_code(body)),
                        other => return Err(ProtocolError::Unexpected(other)),
                    });
                    at += end;
                }
            }
        }
        self.expected = jobs.len();
        if let Some(all) = self.hand_over(at, jobs, memory) {
            for (position, numbers) in runs {
                packets[position] = SourcePacket::Jobs(all.part(numbers));
            }
        }
        Ok(packets)
    }

    /// Drops what came of the data of a job that is too large. Returns where the next packet begins.
    fn drop_discarded(&mut self, packets: &mut Vec<SourcePacket>) -> usize {
        let Some(discard) = &mut self.discard else { return 0 };
        let dropped = discard.left.min(self.end);
        discard.left -= dropped;
        if discard.left == 0
            && let Some(Discard { handle, size, .. }) = self.discard.take()
        {
            packets.push(SourcePacket::TooLarge { handle, size });
        }
        dropped
    }

    /// Puts the jobs into a block. A buffer that is mostly full of them becomes the block, and another one takes its
    /// place; of one that is not, they are copied: held jobs must not hold much more memory than they need.
    fn hand_over(&mut self, at: usize, mut jobs: Vec<Parts>, memory: impl FnOnce() -> Vec<u8>) -> Option<Run> {
        if jobs.is_empty() {
            self.buffer.copy_within(at..self.end, 0);
            self.end -= at;
            return None;
        }
        let rest = at..self.end;
        let bytes = if at < self.buffer.len() / 2 {
            let start = jobs.first().map_or(0, |parts| parts.range().start);
            let end = jobs.last().map_or(0, |parts| parts.range().end);
            let mut bytes = memory();
            let copied = self.buffer.get(start..end).unwrap_or_default();
            // As below: when it is read into again, it has its length.
            match bytes.get_mut(..copied.len()) {
                Some(place) => place.copy_from_slice(copied),
                None => copied.clone_into(&mut bytes),
            }
            self.buffer.copy_within(rest.clone(), 0);
            jobs.iter_mut().for_each(|parts| parts.move_by(start));
            bytes
        } else {
            let mut next = memory();
            // Its length stays what it was if that is enough: growing costs zeros.
            let size = self.read_size.max(rest.len());
            if next.len() < size {
                next.resize(size, 0);
            }
            if let (Some(to), Some(from)) = (next.get_mut(..rest.len()), self.buffer.get(rest.clone())) {
                to.copy_from_slice(from);
            }
            std::mem::replace(&mut self.buffer, next)
        };
        self.end = rest.len();
        Some(Block::new(bytes, jobs, self.home.clone()).into_run())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gearman::packet::put_request;
    use crate::relay::job::Job;

    const MAX_JOB_SIZE: usize = 10_000;

    fn intake() -> Intake {
        Intake::new(b"", MAX_JOB_SIZE, Origin::new("server:4730", Some(4711), "queue"), None)
    }

    fn packet(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_request(&mut bytes, kind, arguments);
        bytes[..4].copy_from_slice(b"\0RES");
        bytes
    }

    fn job(handle: &[u8], size: usize) -> Vec<u8> {
        packet(kind::JOB_ASSIGN_UNIQ, &[handle, b"queue", b"id", &vec![b'd'; size]])
    }

    fn read(intake: &mut Intake, mut bytes: &[u8]) -> Result<Vec<SourcePacket>, ProtocolError> {
        let mut packets = Vec::new();
        while !bytes.is_empty() {
            let room = intake.room(LARGEST_READ);
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            intake.advance(count);
            packets.append(&mut intake.take(Vec::new)?);
        }
        Ok(packets)
    }

    fn told(packets: &[SourcePacket]) -> Vec<String> {
        let tell = |packet: &SourcePacket| match packet {
            SourcePacket::Jobs(run) => run.clone().map(|job| tell_job(&job)).collect(),
            SourcePacket::TooLarge { handle, size } => vec![format!("large {} {size}", handle.escape_ascii())],
            other => vec![format!("{other:?}")],
        };
        packets.iter().flat_map(tell).collect()
    }

    fn tell_job(job: &Job) -> String {
        assert!(job.unique() == b"id" && job.data().iter().all(|&byte| byte == b'd'));
        format!("job {} {}", job.handle().escape_ascii(), job.data().len())
    }

    #[test]
    fn packets_come_out_whole_whatever_pieces_they_come_in() {
        let bytes = [
            packet(kind::NOOP, &[]),
            job(b"H:1", 0),
            job(b"H:2", MAX_JOB_SIZE),
            job(b"H:3", MAX_JOB_SIZE + 1),
            job(b"H:4", MAX_JOB_SIZE + MAX_SMALL_PACKET),
            job(b"H:5", 10 * MAX_JOB_SIZE),
            job(b"H:6", 700),
            packet(kind::NO_JOB, &[]),
            packet(kind::ECHO_RES, &[b"?"]),
            packet(kind::ERROR, &[b"CODE", b"text"]),
        ];
        let expected = [
            "Noop",
            "job H:1 0",
            "job H:2 10000",
            "large H:3 10001",
            "large H:4 14096",
            "large H:5 100000",
            "job H:6 700",
            "NoJob",
            "Echo",
            "Error(\"CODE\")",
        ];
        let bytes = bytes.concat();
        for piece in [1, 7, 12, 13, 4096, 5000, 1 << 20] {
            let mut intake = intake();
            let packets: Vec<SourcePacket> =
                bytes.chunks(piece).flat_map(|piece| read(&mut intake, piece).unwrap()).collect();
            assert_eq!(told(&packets), expected, "pieces of {piece}");
        }
        let mut intake = Intake::new(&bytes, MAX_JOB_SIZE, intake().origin, None);
        assert_eq!(told(&intake.take(Vec::new).unwrap()), expected, "what was read before the relay was there");
    }

    #[test]
    fn jobs_behind_each_other_come_as_one_run() {
        let bytes = [job(b"H:1", 0), job(b"H:2", 0), packet(kind::NOOP, &[]), job(b"H:3", 0), job(b"H:4", 0)].concat();
        let packets = Intake::new(&bytes, MAX_JOB_SIZE, intake().origin, None).take(Vec::new).unwrap();
        let expected = ["job H:1 0", "job H:2 0", "Noop", "job H:3 0", "job H:4 0"];
        assert_eq!((told(&packets), packets.len()), (expected.map(String::from).to_vec(), 3));
    }

    #[test]
    fn a_job_that_is_too_large_takes_no_room() {
        let mut intake = intake();
        let bytes = job(b"H:1", 4 << 20);
        let packets: Vec<SourcePacket> =
            bytes.chunks(4096).flat_map(|piece| read(&mut intake, piece).unwrap()).collect();
        assert_eq!(told(&packets), ["large H:1 4194304"]);
        assert!(intake.capacity() <= 2 * LARGEST_READ, "{}", intake.capacity());
        assert!(intake.capacity() >= SMALLEST_READ);
    }

    #[test]
    fn what_no_worker_may_get_is_an_error() {
        for (bytes, error) in [
            (packet(kind::JOB_CREATED, &[b"H:1"]), ProtocolError::Unexpected(kind::JOB_CREATED)),
            (packet(kind::JOB_ASSIGN_UNIQ, &[b"H:1"]), ProtocolError::BadArguments(kind::JOB_ASSIGN_UNIQ)),
            (packet(kind::ERROR, &[&[b'e'; MAX_SMALL_PACKET + 1]]), ProtocolError::TooLong(MAX_SMALL_PACKET + 1)),
            (packet(kind::JOB_ASSIGN_UNIQ, &[&[b'h'; 20_000]]), ProtocolError::BadArguments(kind::JOB_ASSIGN_UNIQ)),
            (b"HTTP/1.1 400".to_vec(), ProtocolError::BadMagic),
        ] {
            assert_eq!(read(&mut intake(), &bytes).map(drop), Err(error));
        }
    }

    #[test]
    fn reads_grow_while_they_are_full_and_are_small_again_when_the_source_has_no_more() {
        let mut intake = intake();
        let mut sizes = Vec::new();
        for _ in 0..7 {
            let size = intake.room(LARGEST_READ).len();
            intake.advance(size - 1);
            assert!(!intake.was_full());
            assert_eq!(intake.room(LARGEST_READ).len(), 1, "the room is used up before there is more");
            intake.advance(1);
            assert!(intake.was_full());
            sizes.push(size);
            // As if all of it had been packets.
            intake.end = 0;
        }
        assert_eq!(sizes, [4096, 8192, 16_384, 32_768, 65_536, 65_536, 65_536]);
        intake.end = SMALLEST_READ;
        intake.expected = 100;
        intake.rest();
        assert_eq!((intake.buffer.len(), intake.was_full(), intake.expected), (SMALLEST_READ, false, 0));
        assert!(intake.capacity() < LARGEST_READ);
        assert_eq!(intake.room(LARGEST_READ).len(), SMALLEST_READ);
        intake.rest();
        assert_eq!(intake.buffer.len(), SMALLEST_READ);
    }

    #[test]
    fn the_beginning_of_a_packet_stays_when_memory_is_given_back() {
        let mut intake = intake();
        let bytes = job(b"H:1", 9000);
        assert!(read(&mut intake, &bytes[..8000]).unwrap().is_empty());
        intake.rest();
        assert_eq!(told(&read(&mut intake, &bytes[8000..]).unwrap()), ["job H:1 9000"]);
    }

    #[test]
    fn what_the_packet_under_way_takes_is_known_from_its_header_on() {
        let mut intake = intake();
        assert_eq!(intake.needs(), HEADER_SIZE);
        let bytes = job(b"H:1", 9000);
        read(&mut intake, &bytes[..HEADER_SIZE]).unwrap();
        assert_eq!(intake.needs(), bytes.len());
        read(&mut intake, &bytes[HEADER_SIZE..]).unwrap();
        assert_eq!(intake.needs(), HEADER_SIZE);
        read(&mut intake, b"HTTP").unwrap_err();
        assert_eq!(intake.needs(), 0, "no packet");
    }

    #[test]
    fn data_that_is_dropped_needs_nothing_as_soon_as_its_job_is_known_to_be_too_large() {
        let mut intake = intake();
        let bytes = job(b"H:1", 10 * MAX_JOB_SIZE);
        let known = HEADER_SIZE + MAX_SMALL_PACKET;
        read(&mut intake, &bytes[..known - 1]).unwrap();
        assert_eq!((intake.end, intake.discard.is_some()), (known - 1, false));
        read(&mut intake, &bytes[known - 1..known]).unwrap();
        assert_eq!((intake.end, intake.discard.is_some(), intake.needs()), (0, true, 0));
        assert_eq!(told(&read(&mut intake, &bytes[known..]).unwrap()), ["large H:1 100000"]);
    }

    #[test]
    fn the_room_is_what_is_left_of_a_packet_and_its_memory_is_taken_at_once() {
        let origin = intake().origin;
        let small = job(b"H:1", 100);
        let mut intake = Intake::new(&small[..HEADER_SIZE], MAX_JOB_SIZE, origin, None);
        assert_eq!(intake.room(LARGEST_READ).len(), small.len() - HEADER_SIZE);
        let mut intake = Intake::new(&small[..HEADER_SIZE - 1], MAX_JOB_SIZE, origin, None);
        assert_eq!(intake.room(LARGEST_READ).len(), SMALLEST_READ, "its length is not known yet");

        let large = job(b"H:1", MAX_JOB_SIZE);
        let mut intake = Intake::new(&large[..SMALLEST_READ], MAX_JOB_SIZE, origin, None);
        assert_eq!(intake.room(LARGEST_READ).len(), SMALLEST_READ);
        assert_eq!(intake.capacity(), large.len());
        assert_eq!(intake.room(1000).len(), SMALLEST_READ, "what was there stays");
    }

    #[test]
    fn a_buffer_that_is_mostly_full_becomes_the_block_of_its_jobs() {
        let lent = |bytes: &[u8]| {
            let home = Arc::new(Lent::default());
            let mut intake = intake();
            intake.set_home(home.clone());
            let packets = read(&mut intake, bytes).unwrap();
            assert_eq!(intake.buffer.len(), SMALLEST_READ);
            drop(packets);
            home.0.load(std::sync::atomic::Ordering::Relaxed)
        };
        let around = job(b"H:1", 0).len();
        assert_eq!(lent(&job(b"H:1", SMALLEST_READ / 2 - around)), SMALLEST_READ);
        assert!(lent(&job(b"H:1", SMALLEST_READ / 2 - around - 1)) < SMALLEST_READ * 3 / 4);
        assert!(lent(&job(b"H:1", 0)) < 64);
    }

    /// Counts what blocks hold.
    #[derive(Debug, Default)]
    struct Lent(std::sync::atomic::AtomicUsize);

    impl Home for Lent {
        fn lend(&self, bytes: usize) {
            self.0.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        }

        fn take_back(&self, _: Vec<u8>) {}
    }
}
