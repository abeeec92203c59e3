//! Jobs on their way through a forward, in the buffer they were read into.

use std::ops::Range;

use super::blame::Blame;
use crate::gearman::packet::{HEADER_SIZE, MAX_UNIQUE_SIZE, Packet, ProtocolError};

/// Where a job's parts stand in its batch's bytes, and what the submitter has made of it.
#[derive(Debug, Clone)]
pub struct Job {
    handle: Range<u32>,
    unique: Range<u32>,
    data: Range<u32>,
    /// What tells this job from every other, see [`super::identity`]; set by the submitter.
    pub key: u128,
    /// The number in its unique id where that is made of this process's random number and a counter; 0 while it has
    /// none.
    pub number: u64,
    /// Bytes of data that were sent for it; none while it was not submitted on this connection.
    pub sent: Option<u32>,
    /// Nothing is left to do: it was delivered before, rejected or failed.
    pub done: bool,
    /// What it is blamed for after it was submitted alone.
    pub blame: Blame,
    /// Connections that the destination closed while this job was submitted on them and not confirmed.
    pub breaks: u8,
}

/// Jobs that were read at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// What was read, the jobs in it.
    pub bytes: Vec<u8>,
    /// In the order in which they came.
    pub jobs: Vec<Job>,
    /// Jobs before this one are done with.
    pub next: usize,
}

impl Job {
    /// Reads a JOB_ASSIGN_UNIQ that begins at `start` of its batch's bytes.
    ///
    /// # Errors
    /// It lacks an argument, or its handle is empty.
    pub fn read(start: usize, packet: &Packet<'_>) -> Result<Job, ProtocolError> {
        let ([handle, queue, unique], data) = packet.arguments()?;
        if handle.is_empty() {
            return Err(ProtocolError::BadArguments(packet.kind));
        }
        let range = |start: usize, length: usize| start as u32..(start + length) as u32;
        let handle_at = start + HEADER_SIZE;
        let unique_at = handle_at + handle.len() + 1 + queue.len() + 1;
        let data_at = unique_at + unique.len() + 1;
        // gearmand stores a unique id of 64 bytes as 63 and puts a NUL before the data.
        let extra = usize::from(unique.len() == MAX_UNIQUE_SIZE && data.first() == Some(&0));
        Ok(Job {
            handle: range(handle_at, handle.len()),
            unique: range(unique_at, unique.len()),
            data: range(data_at + extra, data.len() - extra),
            key: 0,
            number: 0,
            sent: None,
            done: false,
            blame: Blame::default(),
            breaks: 0,
        })
    }

    /// The parts of this job in its batch's `bytes`.
    pub fn parts<'b>(&self, bytes: &'b [u8]) -> Parts<'b> {
        let part = |range: &Range<u32>| &bytes[range.start as usize..range.end as usize];
        Parts { handle: part(&self.handle), unique: part(&self.unique), data: part(&self.data) }
    }

    /// The data's length, bytes.
    pub fn data_size(&self) -> usize {
        self.data.len()
    }

    /// The bytes that a held job counts with.
    pub fn size(&self) -> usize {
        (self.data.end - self.handle.start) as usize
    }
}

/// One job's parts, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The source's handle.
    pub handle: &'a [u8],
    /// The source's unique id; empty for none.
    pub unique: &'a [u8],
    /// As it came.
    pub data: &'a [u8],
}

impl Batch {
    /// The jobs that are not done with.
    pub fn left(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().skip(self.next).filter(|job| !job.done)
    }

    /// A batch of one of this batch's jobs, copied.
    pub fn single(&self, position: usize) -> Batch {
        let job = &self.jobs[position];
        let start = job.handle.start;
        let shift = |range: &Range<u32>| range.start - start..range.end - start;
        Batch {
            bytes: self.bytes[start as usize..job.data.end as usize].to_vec(),
            jobs: vec![Job {
                handle: shift(&job.handle),
                unique: shift(&job.unique),
                data: shift(&job.data),
                ..job.clone()
            }],
            next: 0,
        }
    }

    /// Empties it, so that its memory can be used again.
    pub fn clear(&mut self) {
        self.jobs.clear();
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gearman::packet::kind;

    fn batch(body: &[u8]) -> Result<Batch, ProtocolError> {
        let mut bytes = vec![b'.'; HEADER_SIZE + 5];
        bytes.extend_from_slice(body);
        let job = Job::read(5, &Packet { kind: kind::JOB_ASSIGN_UNIQ, body })?;
        Ok(Batch { bytes, jobs: vec![job], next: 0 })
    }

    #[test]
    fn a_job_has_handle_unique_id_and_data() {
        let batch = batch(b"H:a:1\0queue\0id\0da\0ta").unwrap();
        for batch in [batch.single(0), batch] {
            let parts = batch.jobs[0].parts(&batch.bytes);
            assert_eq!((parts.handle, parts.unique, parts.data), (&b"H:a:1"[..], &b"id"[..], &b"da\0ta"[..]));
        }
    }

    #[test]
    fn the_nul_that_gearmand_adds_after_a_long_unique_id_is_dropped() {
        let long = [b'u'; 63];
        let body = [b"H:a:1\0queue\0", &long[..], b"\0\0data"].concat();
        let first = batch(&body).unwrap();
        assert_eq!(first.jobs[0].parts(&first.bytes).data, b"data");
        let short = batch(b"H:a:1\0queue\0id\0\0data").unwrap();
        assert_eq!(short.jobs[0].parts(&short.bytes).data, b"\0data");
    }

    #[test]
    fn a_job_without_all_its_parts_is_an_error() {
        for body in [&b""[..], b"H:a:1", b"H:a:1\0queue\0id", b"\0queue\0id\0data"] {
            assert_eq!(batch(body).map(drop), Err(ProtocolError::BadArguments(kind::JOB_ASSIGN_UNIQ)));
        }
    }
}
