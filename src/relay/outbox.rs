//! Bytes on their way out: what one socket is to be sent, and which thread writes it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use super::job::{Home, Job};
use crate::gearman::packet::{ProtocolError, put_header};

/// Data that no stage changed and that is at least so large is written from where it was read to, bytes; copying less is
/// cheaper.
const REFERENCED_DATA: usize = 256;

/// What a submission takes beside its data as a rule: header, queue, unique id, bytes.
const BESIDE_DATA: usize = 128;

/// A chunk's buffer that is larger is not used again, bytes.
const LARGEST_KEPT: usize = 64 << 10;

/// Submissions that are written together. Data that no stage has changed is not copied.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Everything but the data of `references`.
    bytes: Vec<u8>,
    /// Jobs whose data comes when this many of `bytes` have been written.
    references: Vec<(usize, Job)>,
    /// The length of all data of `references`.
    referenced: usize,
    written: usize,
    /// What counts its memory, where it is large.
    homes: Vec<Arc<dyn Home>>,
}

/// The data of a submission.
#[derive(Debug)]
pub enum Payload<'a> {
    /// The job's own, which need not be copied.
    Unchanged(Job),
    /// What stages have made of it.
    Changed(&'a [u8]),
}

impl Chunk {
    /// Of these bytes alone.
    pub fn of(bytes: Vec<u8>) -> Chunk {
        Chunk { bytes, ..Chunk::default() }
    }

    /// For the submissions of this many jobs.
    pub fn reserve(&mut self, count: usize) {
        self.bytes.reserve(count * BESIDE_DATA);
        self.references.reserve(count);
    }

    /// The same memory without content, for the next submissions.
    pub fn emptied(mut self) -> Chunk {
        if self.bytes.capacity() > LARGEST_KEPT {
            return Chunk::default();
        }
        self.bytes.clear();
        self.references.clear();
        Chunk { bytes: self.bytes, references: self.references, ..Chunk::default() }
    }

    /// Bytes that are not written yet.
    pub fn len(&self) -> usize {
        (self.bytes.len() + self.referenced).saturating_sub(self.written)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a submission and returns its length.
    ///
    /// # Errors
    /// The packet would be longer than its header can say.
    pub fn submit(&mut self, kind: u32, queue: &[u8], unique: &[u8], data: Payload<'_>) -> Result<u32, ProtocolError> {
        let before = self.len();
        let payload = match &data {
            Payload::Unchanged(job) => job.data(),
            Payload::Changed(data) => data,
        };
        put_header(&mut self.bytes, kind, queue.len() + 1 + unique.len() + 1 + payload.len())?;
        for argument in [queue, unique] {
            self.bytes.extend_from_slice(argument);
            self.bytes.push(0);
        }
        match data {
            Payload::Unchanged(job) if job.data().len() >= REFERENCED_DATA => {
                self.referenced += job.data().len();
                self.references.push((self.bytes.len(), job));
            }
            _ => self.bytes.extend_from_slice(payload),
        }
        Ok((self.len() - before) as u32)
    }

    /// Its memory counts as this home's until it is written.
    pub fn keep(&mut self, home: Arc<dyn Home>) {
        self.homes.push(home);
    }

    /// What is not written yet, `most` bytes of it.
    pub fn slices(&self, most: usize) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(2 * self.references.len() + 1);
        let (mut skip, mut left) = (self.written, most);
        let mut push = |bytes: &'_ [u8]| -> Option<(usize, usize)> {
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            let taken = left.min(bytes.len() - skipped);
            left -= taken;
            (taken > 0).then_some((skipped, skipped + taken))
        };
        let mut at = 0;
        for (after, job) in &self.references {
            let own = self.bytes.get(at..*after).unwrap_or_default();
            for part in [own, job.data()] {
                if let Some((from, to)) = push(part) {
                    slices.push(IoSlice::new(&part[from..to]));
                }
            }
            at = *after;
        }
        let own = self.bytes.get(at..).unwrap_or_default();
        if let Some((from, to)) = push(own) {
            slices.push(IoSlice::new(&own[from..to]));
        }
        slices
    }

    /// `count` bytes were written.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
    }
}

/// What a destination is to be sent, in order. One thread at a time takes from it, and writes until it has reported.
#[derive(Debug, Default)]
pub struct Outbox {
    chunks: VecDeque<Chunk>,
    writing: bool,
    stopped: bool,
}

impl Outbox {
    pub fn push(&mut self, chunk: Chunk) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// The next chunk, and with it the right to write, unless a thread has it.
    pub fn take(&mut self) -> Option<Chunk> {
        if !self.is_ready() {
            return None;
        }
        let chunk = self.chunks.pop_front()?;
        self.writing = true;
        Some(chunk)
    }

    /// Gives the right to write back, with what was not written.
    pub fn written(&mut self, rest: Option<Chunk>) {
        self.writing = false;
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.chunks.push_front(rest);
        }
    }

    /// Whether there is something to write that a thread may take.
    pub fn is_ready(&self) -> bool {
        !self.chunks.is_empty() && !self.writing && !self.stopped
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes that no thread is writing.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Chunk::len).sum()
    }

    /// Writing has failed: nothing more is to be written.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether a thread writes.
    pub fn is_taken(&self) -> bool {
        self.writing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gearman::packet::{kind, put_request};

    fn unwritten(chunk: &Chunk) -> Vec<u8> {
        chunk.slices(usize::MAX).iter().flat_map(|slice| slice.to_vec()).collect()
    }

    /// Jobs of all kinds: small, large, changed by stages, large twice in a row, empty. With what they are as packets.
    fn chunk() -> (Chunk, Vec<u8>) {
        let large = vec![b'l'; REFERENCED_DATA];
        let (mut chunk, mut expected) = (Chunk::default(), Vec::new());
        for (data, changed) in [
            (&b"small"[..], None),
            (&large, None),
            (&large, Some(&b"changed"[..])),
            (&large[1..], None),
            (&large, None),
            (&large, None),
            (b"", None),
        ] {
            let mut packet = Vec::new();
            put_request(&mut packet, kind::SUBMIT_JOB_BG, &[b"queue", b"id", changed.unwrap_or(data)]);
            let length = chunk
                .submit(
                    kind::SUBMIT_JOB_BG,
                    b"queue",
                    b"id",
                    changed.map_or_else(|| Payload::Unchanged(Job::of(b"H:host:1", b"", data)), Payload::Changed),
                )
                .unwrap();
            assert_eq!(length as usize, packet.len());
            expected.extend(packet);
        }
        (chunk, expected)
    }

    #[test]
    fn submissions_are_packets_whose_large_data_is_not_copied() {
        let (chunk, expected) = chunk();
        assert_eq!((unwritten(&chunk), chunk.len()), (expected, chunk.bytes.len() + 3 * REFERENCED_DATA));
        assert_eq!(chunk.slices(usize::MAX).len(), 7);
        assert!(!chunk.is_empty() && Chunk::default().is_empty());
    }

    #[test]
    fn a_chunk_goes_on_wherever_a_write_has_ended() {
        let (mut chunk, expected) = chunk();
        for at in 0..=expected.len() {
            assert!(unwritten(&chunk) == expected[at..], "{at} bytes were written");
            assert!(chunk.slices(usize::MAX).iter().all(|slice| !slice.is_empty()), "{at} bytes were written");
            assert_eq!(chunk.len(), expected.len() - at);
            chunk.advance(1);
        }
        assert!(chunk.is_empty());
    }

    #[test]
    fn a_chunk_has_room_for_its_submissions_and_is_used_again_where_it_is_small() {
        let mut chunk = Chunk::default();
        chunk.reserve(10);
        assert!(chunk.bytes.capacity() >= 10 * BESIDE_DATA && chunk.references.capacity() >= 10);
        for (size, kept) in [(64 << 10, true), ((64 << 10) + 1, false)] {
            let (mut chunk, _) = self::chunk();
            let mut bytes = Vec::with_capacity(size);
            bytes.append(&mut chunk.bytes);
            chunk.bytes = bytes;
            chunk.advance(1);
            let emptied = chunk.emptied();
            assert!(emptied.is_empty() && unwritten(&emptied).is_empty());
            assert_eq!((emptied.bytes.capacity() > 0, emptied.references.capacity() > 0), (kept, kept), "{size} bytes");
        }
    }

    #[test]
    fn the_thread_that_takes_a_chunk_writes_alone_and_what_is_left_comes_first_again() {
        let mut outbox = Outbox::default();
        outbox.push(Chunk::of(Vec::new()));
        assert!(outbox.is_empty() && outbox.take().is_none() && !outbox.is_taken(), "nothing is to be written");
        outbox.push(Chunk::of(b"first".to_vec()));
        outbox.push(Chunk::of(b"second".to_vec()));
        assert_eq!((outbox.len(), outbox.is_empty()), (11, false));
        let mut first = outbox.take().unwrap();
        assert!(outbox.is_taken() && !outbox.is_ready() && outbox.take().is_none(), "somebody writes");
        first.advance(2);
        outbox.written(Some(first));
        assert_eq!((outbox.len(), outbox.is_taken()), (9, false));
        let mut first = outbox.take().unwrap();
        assert_eq!(unwritten(&first), b"rst");
        first.advance(3);
        outbox.written(Some(first));
        assert_eq!(outbox.take().map(|chunk| unwritten(&chunk)), Some(b"second".to_vec()));
        outbox.written(None);
        assert!(!outbox.is_ready(), "nothing is left");
        outbox.push(Chunk::of(b"third".to_vec()));
        assert!(outbox.is_ready());
        outbox.stop();
        assert!(!outbox.is_ready() && outbox.take().is_none() && !outbox.is_empty(), "writing has failed");
    }

    #[test]
    fn memory_that_a_chunk_keeps_counts_until_it_is_written() {
        #[derive(Debug)]
        struct Memory;
        impl Home for Memory {
            fn lend(&self, _: usize) {}
            fn take_back(&self, _: Vec<u8>) {}
        }
        let home = Arc::new(Memory);
        let mut chunk = Chunk::of(b"bytes".to_vec());
        chunk.keep(home.clone());
        assert_eq!(Arc::strong_count(&home), 2);
        drop(chunk);
        assert_eq!(Arc::strong_count(&home), 1);
    }
}
