//! Submissions on their way out, to be written at once. Data that no stage has changed is not copied.

use std::io::IoSlice;

use super::destination::Link;
use super::job::Batch;
use crate::gearman::connection::ConnectionError;
use crate::gearman::packet::{kind, put_header, put_request};

/// Submissions are written when there are so many bytes of them, or when nothing more is waiting.
pub const WRITE_SIZE: usize = 64 << 10;

/// Data that needs no change and is at least so large is written from where it was read to, bytes; copying less is
/// cheaper.
const REFERENCED_DATA: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Everything but the data of `references`.
    bytes: Vec<u8>,
    references: Vec<Reference>,
    /// The length of all data of `references`.
    referenced: usize,
}

/// A job whose data comes when so many of an [`Outgoing`]'s own bytes have been written.
#[derive(Debug)]
struct Reference {
    after: usize,
    place: Place,
}

/// A job among the batches that are submitted together.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The batch's number.
    pub batch: usize,
    /// The job's in it.
    pub position: usize,
}

impl Outgoing {
    /// Bytes to be written.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.referenced
    }

    /// Appends a submission. Where `data` is a job's own, unchanged, its `place` may be given: then it need not be copied.
    pub fn submit(&mut self, kind: u32, queue: &[u8], unique: &[u8], data: &[u8], place: Option<Place>) {
        // Longer than 4 GiB no job can be.
        let _ = put_header(&mut self.bytes, kind, queue.len() + 1 + unique.len() + 1 + data.len());
        for argument in [queue, unique] {
            self.bytes.extend_from_slice(argument);
            self.bytes.push(0);
        }
        match place {
            Some(place) if data.len() >= REFERENCED_DATA => {
                self.references.push(Reference { after: self.bytes.len(), place });
                self.referenced += data.len();
            }
            _ => self.bytes.extend_from_slice(data),
        }
    }

    /// Appends an ECHO_REQ.
    pub fn echo(&mut self) {
        put_request(&mut self.bytes, kind::ECHO_REQ, &[b"?"]);
    }

    /// Writes it; it is empty again whatever happens. `batches` are those of the places.
    ///
    /// # Errors
    /// Those of the link.
    pub fn write(&mut self, link: &Link<'_>, batches: &[Batch]) -> Result<(), ConnectionError> {
        let mut slices = Vec::with_capacity(2 * self.references.len() + 1);
        let mut written = 0;
        for &Reference { after, place: Place { batch, position } } in &self.references {
            let Batch { bytes, jobs, .. } = &batches[batch];
            slices.extend([&self.bytes[written..after], jobs[position].parts(bytes).data].map(IoSlice::new));
            written = after;
        }
        slices.push(IoSlice::new(&self.bytes[written..]));
        let outcome = link.write_slices(&mut slices);
        self.bytes.clear();
        self.bytes.shrink_to(2 * WRITE_SIZE);
        self.references.clear();
        self.referenced = 0;
        outcome
    }
}
