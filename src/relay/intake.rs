//! Bytes from the source to packets for the relay: jobs come out whole, in a block that they share.

use std::sync::Arc;

use super::job::{Block, Home, Job, Origin, Parts};
use crate::gearman::packet::{HEADER_SIZE, MAX_SMALL_PACKET, Packet, Parsed, ProtocolError, error_code, kind, parse};

/// What is read at once at least and at most, bytes: it doubles while reads are full, and is small again when the source
/// has no more jobs.
const SMALLEST_READ: usize = 4 << 10;
const LARGEST_READ: usize = 64 << 10;

/// What a source sent.
#[derive(Debug)]
pub enum SourcePacket {
    Job(Job),
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
            let needs = self.needs();
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
        let mut jobs = Vec::new();
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
                                jobs.push((packets.len(), parts));
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
        self.hand_over(at, &jobs, &mut packets, memory);
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
    fn hand_over(
        &mut self,
        at: usize,
        jobs: &[(usize, Parts)],
        packets: &mut [SourcePacket],
        memory: impl FnOnce() -> Vec<u8>,
    ) {
        if jobs.is_empty() {
            self.buffer.copy_within(at..self.end, 0);
            self.end -= at;
            return;
        }
        let rest = at..self.end;
        let (block, offset) = if at < self.buffer.len() / 2 {
            let start = jobs.first().map_or(0, |(_, parts)| parts.range().start);
            let end = jobs.last().map_or(0, |(_, parts)| parts.range().end);
            let mut bytes = memory();
            bytes.clear();
            bytes.extend_from_slice(self.buffer.get(start..end).unwrap_or_default());
            self.buffer.copy_within(rest.clone(), 0);
            (bytes, start)
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
            (std::mem::replace(&mut self.buffer, next), 0)
        };
        self.end = rest.len();
        let block = Arc::new(Block::new(block, self.home.clone()));
        for (position, parts) in jobs {
            if let Some(packet) = packets.get_mut(*position) {
                *packet = SourcePacket::Job(parts.moved_by(offset).in_block(Arc::clone(&block)));
            }
        }
    }
}
