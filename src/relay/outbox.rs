//! Bytes on their way out: what one socket is to be sent, and who writes it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use super::job::{Home, Job};
use crate::gearman::packet::{ProtocolError, put_header};

/// Data that no stage changed and that is at least so large is written from where it was read to, bytes; copying less is
/// cheaper.
const REFERENCED_DATA: usize = 256;

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

    /// The next chunk, and with it the right to write, unless somebody has that.
    pub fn take(&mut self) -> Option<Chunk> {
        if self.writing || self.stopped {
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

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes that nobody is writing.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Chunk::len).sum()
    }

    /// Writing has failed: nothing more is to be written.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether somebody writes.
    pub fn is_taken(&self) -> bool {
        self.writing
    }
}
