//! A job, complete at birth: where its parts stand in the block it was read into, and what tells it from every other.
//!
//! The same job always gets the same identity, so that a destination merges what had to be submitted twice; two jobs never
//! do.

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use crate::gearman::packet::{HEADER_SIZE, MAX_UNIQUE_SIZE, Packet, ProtocolError};

/// Process ids below this say nothing: those of early processes and in containers are the same again after a restart.
const FIRST_TELLING_PROCESS_ID: u32 = 300;

/// Takes a block's bytes back when the last job in it is done with.
pub trait Home: fmt::Debug + Send + Sync {
    /// A block of this capacity begins to be held.
    fn lend(&self, bytes: usize);

    fn take_back(&self, bytes: Vec<u8>);
}

/// Bytes that were read at once, and the jobs in them.
pub struct Block {
    bytes: Vec<u8>,
    jobs: Vec<Parts>,
    /// Their handles once more, side by side: an acknowledgement needs no more, and comes when `bytes` are in no cache.
    handles: Vec<u8>,
    home: Option<Arc<dyn Home>>,
}

impl Block {
    pub fn new(bytes: Vec<u8>, mut jobs: Vec<Parts>, home: Option<Arc<dyn Home>>) -> Block {
        if let Some(home) = &home {
            home.lend(bytes.capacity());
        }
        let mut handles = Vec::with_capacity(jobs.iter().map(Parts::handle_size).sum());
        for parts in &mut jobs {
            parts.handle_copy = handles.len() as u32;
            handles.extend_from_slice(&bytes[parts.handle.0 as usize..parts.handle.1 as usize]);
        }
        Block { bytes, jobs, handles, home }
    }

    /// All its jobs, behind each other.
    pub fn into_run(self) -> Run {
        let numbers = 0..self.jobs.len() as u32;
        Run { block: Arc::new(self), numbers }
    }

    fn parts(&self, number: u32) -> &Parts {
        // Whoever has a number has it from the block.
        &self.jobs[number as usize]
    }

    fn handle(&self, number: u32) -> &[u8] {
        let parts = self.parts(number);
        let handles = self.handles.get(parts.handle_copy as usize..).unwrap_or_default();
        handles.get(..parts.handle_size()).unwrap_or_default()
    }

    fn handle_number(&self, number: u32) -> Option<(&[u8], u64)> {
        let (in_handle, at) = self.parts(number).handle_number?;
        Some((self.handle(number).get(..at as usize)?, in_handle))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.take_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes, {} jobs)", self.bytes.len(), self.jobs.len())
    }
}

/// Where the parts of a job stand in a block, and its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    handle: (u32, u32),
    /// Where it begins among the copied ones.
    handle_copy: u32,
    unique: (u32, u32),
    data: (u32, u32),
    /// The number at the handle's end and where that begins in it; none where it ends in no number.
    handle_number: Option<(u64, u32)>,
    pub identity: Identity,
}

impl Parts {
    /// Reads a JOB_ASSIGN_UNIQ that begins at `start` of the bytes that become a block.
    ///
    /// # Errors
    /// It lacks an argument, or its handle is empty.
    #[inline]
    pub fn read(start: usize, packet: &Packet<'_>, origin: &Origin) -> Result<Parts, ProtocolError> {
        let ([handle, queue, unique], data) = packet.arguments()?;
        if handle.is_empty() {
            return Err(ProtocolError::BadArguments(packet.kind));
        }
        let range = |start: usize, length: usize| (start as u32, (start + length) as u32);
        let handle_at = start + HEADER_SIZE;
        let unique_at = handle_at + handle.len() + 1 + queue.len() + 1;
        let data_at = unique_at + unique.len() + 1;
        // gearmand stores a unique id of 64 bytes as 63 and puts a NUL before the data.
        let extra = usize::from(unique.len() == MAX_UNIQUE_SIZE && data.first() == Some(&0));
        let data = data.get(extra..).unwrap_or_default();
        Ok(Parts {
            handle: range(handle_at, handle.len()),
            handle_copy: 0,
            unique: range(unique_at, unique.len()),
            data: range(data_at + extra, data.len()),
            handle_number: number_of(handle),
            identity: origin.identify(handle, unique, data),
        })
    }

    /// The bytes from its handle to the end of its data.
    pub fn size(&self) -> usize {
        (self.data.1 - self.handle.0) as usize
    }

    fn handle_size(&self) -> usize {
        (self.handle.1 - self.handle.0) as usize
    }

    pub fn data_size(&self) -> usize {
        (self.data.1 - self.data.0) as usize
    }

    /// Its bytes are copied to where they stand this much earlier.
    pub fn move_by(&mut self, offset: usize) {
        for (start, end) in [&mut self.handle, &mut self.unique, &mut self.data] {
            *start -= offset as u32;
            *end -= offset as u32;
        }
    }

    /// Where its bytes stand, from its handle to the end of its data.
    pub fn range(&self) -> Range<usize> {
        self.handle.0 as usize..self.data.1 as usize
    }
}

/// Jobs of one block that came behind each other.
#[derive(Debug, Clone)]
pub struct Run {
    block: Arc<Block>,
    numbers: Range<u32>,
}

impl Run {
    /// Some of them.
    pub fn part(&self, numbers: Range<u32>) -> Run {
        Run { block: Arc::clone(&self.block), numbers }
    }

    /// What [`Job::handle_number`] says of each.
    pub fn handle_numbers(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.numbers.clone().filter_map(|number| self.block.handle_number(number))
    }
}

impl Iterator for Run {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        self.numbers.next().map(|number| Job { block: Arc::clone(&self.block), number })
    }
}

/// A job that was taken from the source: a block and its place there.
#[derive(Debug, Clone)]
pub struct Job {
    block: Arc<Block>,
    number: u32,
}

impl Job {
    /// A job of these parts, for tests.
    #[cfg(test)]
    pub fn of(handle: &[u8], unique: &[u8], data: &[u8]) -> Job {
        let body = [handle, b"queue", unique, data].join(&0);
        let packet = Packet { kind: crate::gearman::packet::kind::JOB_ASSIGN_UNIQ, body: &body };
        let parts = Parts::read(0, &packet, &Origin::new("server:1", Some(4711), "queue")).unwrap();
        Block::new([&[0; HEADER_SIZE], &body[..]].concat(), vec![parts], None).into_run().next().unwrap()
    }

    /// As it comes.
    #[cfg(test)]
    pub fn alone(self) -> Run {
        Run { block: self.block, numbers: self.number..self.number + 1 }
    }

    fn parts(&self) -> &Parts {
        self.block.parts(self.number)
    }

    fn part(&self, (start, end): (u32, u32)) -> &[u8] {
        self.block.bytes.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The source's handle.
    pub fn handle(&self) -> &[u8] {
        self.block.handle(self.number)
    }

    /// The source's unique id; empty for none.
    pub fn unique(&self) -> &[u8] {
        self.part(self.parts().unique)
    }

    /// As it came.
    pub fn data(&self) -> &[u8] {
        self.part(self.parts().data)
    }

    /// The handle's number and what stands before it; none where it ends in no number.
    pub fn handle_number(&self) -> Option<(&[u8], u64)> {
        self.block.handle_number(self.number)
    }

    pub fn identity(&self) -> Identity {
        self.parts().identity
    }

    /// What counts its block.
    pub fn home(&self) -> Option<Arc<dyn Home>> {
        self.block.home.clone()
    }

    /// The bytes that a held job counts with.
    pub fn size(&self) -> usize {
        self.parts().size()
    }
}

/// What tells a job from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Of the source server's process, queue, handle, data and unique id.
    pub key: u128,
    /// The same without the unique id: what the job's own unique id is made of.
    pub id: u128,
}

/// A hash of fixed definition: its outcome may meet those of an older release at the destination.
///
/// Two lanes of 64 bits take 16 bytes each in turn; a pair of words is multiplied into 128 bits and folded (the scheme of
/// wyhash), and what a lane knew stays in it, so that no data can make it forget. Every part is hashed with its length, so
/// that parts can't run into each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hash128 {
    low: u64,
    high: u64,
}

// Digits of pi: nothing up the sleeve.
const K: [u64; 4] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Hash128 {
    const START: Hash128 = Hash128 { low: K[1], high: K[3] };

    fn mix(&mut self, [a, b, c, d]: [u64; 4]) {
        self.low = fold(a ^ K[0], b ^ self.low) ^ self.low.rotate_left(29);
        self.high = fold(c ^ K[2], d ^ self.high) ^ self.high.rotate_left(29);
    }

    fn part(mut self, bytes: &[u8]) -> Hash128 {
        self.low ^= (bytes.len() as u64).wrapping_mul(K[1]);
        self.high ^= (bytes.len() as u64).wrapping_mul(K[3]);
        let (chunks, rest) = bytes.as_chunks::<32>();
        chunks.iter().for_each(|chunk| self.mix(words(chunk)));
        let mut last = [0; 32];
        if let Some(last) = last.get_mut(..rest.len()) {
            last.copy_from_slice(rest);
        }
        self.mix(words(&last));
        self
    }

    fn finish(self) -> u128 {
        let Hash128 { low, high } = self;
        let crossed = [fold(high ^ K[0], low ^ K[1]) ^ low, fold(low ^ K[2], high ^ K[3]) ^ high.rotate_left(17)];
        let [low, high] = [fold(crossed[0] ^ K[2], crossed[1] ^ K[1]), fold(crossed[1] ^ K[0], crossed[0] ^ K[3])];
        u128::from(high) << 64 | u128::from(low)
    }
}

fn words(chunk: &[u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(chunk.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// The part of a job's identity that all jobs of one source connection share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    hash: Hash128,
}

impl Origin {
    /// `server` as written in the configuration; the process id as the server told it.
    pub fn new(server: &str, process_id: Option<u32>, queue: &str) -> Origin {
        let number = telling(process_id).unwrap_or_default().to_le_bytes();
        Origin { hash: Hash128::START.part(server.as_bytes()).part(&number).part(queue.as_bytes()) }
    }

    #[inline]
    pub fn identify(&self, handle: &[u8], unique: &[u8], data: &[u8]) -> Identity {
        let hash = self.hash.part(handle).part(data);
        let id = hash.finish();
        Identity { key: if unique.is_empty() { id } else { hash.part(unique).finish() }, id }
    }
}

/// The process id, where it tells a server from the one before its restart.
pub fn telling(process_id: Option<u32>) -> Option<u32> {
    process_id.filter(|&id| id >= FIRST_TELLING_PROCESS_ID)
}

/// The unique id under which an asynchronous job is submitted unless `uniq_callback` gives another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniqueId {
    /// The source's own.
    Source,
    /// Made of the number in the job's handle, its identity and this number of the server's process: 0, or a random one
    /// where the server was restarted under the same process id.
    Hash(u64),
    /// This random number of the forward and a counter: never used before.
    Numbered(u128, u64),
}

impl UniqueId {
    /// Replaces what is in `out` by the id of `job`, 63 bytes at most.
    pub fn write(self, out: &mut Vec<u8>, job: &Job) {
        out.clear();
        match self {
            UniqueId::Source => out.extend_from_slice(job.unique()),
            UniqueId::Hash(epoch) => {
                out.extend_from_slice(digits(job));
                out.push(b'-');
                let id = job.identity().id;
                out.extend_from_slice(&hex(if epoch == 0 {
                    id
                } else {
                    Hash128::START.part(&id.to_le_bytes()).part(&epoch.to_le_bytes()).finish()
                }));
            }
            UniqueId::Numbered(random, number) => {
                out.extend_from_slice(&hex(random));
                // Writing to a Vec can't fail.
                let _ = write!(out, "-{number}");
            }
        }
    }
}

/// The digits at the end of a job's handle such as `H:host:123`, twenty at most.
fn digits(job: &Job) -> &[u8] {
    let handle = job.handle();
    let count = match job.parts().handle_number {
        Some((_, at)) => handle.len() - at as usize,
        // None, or more than a number has.
        None => handle.iter().rev().take_while(|byte| byte.is_ascii_digit()).count(),
    };
    if count == 0 { b"0" } else { &handle[handle.len() - count.min(20)..] }
}

/// The number at a handle's end, and where that begins.
fn number_of(handle: &[u8]) -> Option<(u64, u32)> {
    let count = handle.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (before, number) = handle.split_at(handle.len() - count);
    let digit = |number: u64, byte: &u8| number.checked_mul(10)?.checked_add(u64::from(byte - b'0'));
    let number = number.iter().try_fold(0, digit).filter(|_| count > 0)?;
    Some((number, before.len() as u32))
}

/// The two hex digits of each byte.
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

/// As 32 hex digits; std's formatting takes as long as the hash of a whole job.
fn hex(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(number.to_be_bytes()) {
        *pair = HEX[usize::from(byte)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use parking_lot::Mutex;

    use super::*;
    use crate::gearman::packet::kind;

    fn origin() -> Origin {
        Origin::new("127.0.0.1:4730", Some(4711), "queue")
    }

    /// A job whose packet begins five bytes behind the beginning of its block.
    fn job(body: &[u8]) -> Result<Job, ProtocolError> {
        let mut bytes = vec![b'.'; 5 + HEADER_SIZE];
        bytes.extend_from_slice(body);
        let parts = Parts::read(5, &Packet { kind: kind::JOB_ASSIGN_UNIQ, body }, &origin())?;
        Ok(Block::new(bytes, vec![parts], None).into_run().next().unwrap())
    }

    fn id(unique: UniqueId, job: &Job) -> String {
        let mut out = b"what was there before".to_vec();
        unique.write(&mut out, job);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_job_has_handle_unique_id_and_data() {
        let job = job(b"H:a:1\0queue\0id\0da\0ta").unwrap();
        assert_eq!((job.handle(), job.unique(), job.data()), (&b"H:a:1"[..], &b"id"[..], &b"da\0ta"[..]));
        assert_eq!((job.size(), job.parts().data_size()), (20, 5));
        assert_eq!(job.parts().range(), 17..37);
        assert_eq!(job.identity(), origin().identify(b"H:a:1", b"id", b"da\0ta"));
        let bytes = job.block.bytes[17..].to_vec();
        let mut parts = *job.parts();
        parts.move_by(17);
        let moved = Block::new(bytes, vec![parts], None).into_run().next().unwrap();
        assert_eq!((moved.handle(), moved.unique(), moved.data()), (job.handle(), job.unique(), job.data()));
        assert_eq!(moved.identity(), job.identity());
    }

    #[test]
    fn the_nul_that_gearmand_adds_after_a_long_unique_id_is_dropped() {
        let long = [b'u'; MAX_UNIQUE_SIZE];
        for (unique, data, expected) in [
            (&long[..], &b"\0data"[..], &b"data"[..]),
            (&long[..], b"data", b"data"),
            (&long[1..], b"\0data", b"\0data"),
            (b"id", b"\0data", b"\0data"),
        ] {
            let job = job(&[b"H:a:1\0queue\0", unique, b"\0", data].concat()).unwrap();
            assert_eq!((job.unique(), job.data()), (unique, expected));
            assert_eq!(job.identity(), origin().identify(b"H:a:1", unique, expected));
        }
    }

    #[test]
    fn a_job_without_all_its_parts_is_an_error() {
        for body in [&b""[..], b"H:a:1", b"H:a:1\0queue\0id", b"\0queue\0id\0data"] {
            assert_eq!(job(body).map(drop), Err(ProtocolError::BadArguments(kind::JOB_ASSIGN_UNIQ)));
        }
    }

    /// An id of another release would no longer be merged with this one's at the destination.
    #[test]
    fn the_hash_is_of_fixed_definition() {
        let job = job(b"H:host:17\0queue\0\0some data that is longer than one chunk").unwrap();
        assert_eq!(id(UniqueId::Hash(0), &job), "17-2e92dae53327aa68f47583defa591f35");
    }

    #[test]
    fn whatever_differs_in_a_job_changes_its_identity() {
        let mut seen = HashSet::new();
        let base = Origin::new("a:1", Some(300), "q");
        for origin in [
            base,
            Origin::new("a:2", Some(300), "q"),
            Origin::new("a:1", Some(301), "q"),
            Origin::new("a:1", Some(299), "q"),
            Origin::new("a:1", Some(300), "r"),
        ] {
            for (handle, unique, data) in [
                (&b"H:1"[..], &b""[..], &b""[..]),
                (b"H:1", b"", b"\0"),
                (b"H:1", b"", b"\0\0"),
                (b"H:1", b"", &[0; 16]),
                (b"H:1", b"", &[0; 17]),
                (b"H:1", b"", &[0; 32]),
                (b"H:2", b"", b""),
                (b"H:", b"", b"1"),
                (b"H:1", b"u", b""),
            ] {
                assert!(seen.insert(origin.identify(handle, unique, data).key), "{handle:?} {unique:?} {data:?}");
            }
        }
        let id = |unique| base.identify(b"H:1", unique, b"data").id;
        assert_eq!(id(b""), id(b"u"), "the forward's own id doesn't depend on the source's");
        let early = |process_id| Origin::new("a:1", process_id, "q");
        assert_eq!(early(Some(299)), early(None), "an early process id says nothing");
    }

    #[test]
    fn single_bits_spread_over_the_whole_hash() {
        let mut data = [0_u8; 600];
        let base = origin().identify(b"H:1", b"", &data).key;
        for bit in 0..data.len() * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            let changed = (origin().identify(b"H:1", b"", &data).key ^ base).count_ones();
            assert!((32..=96).contains(&changed), "bit {bit} changed {changed} bits");
            data[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn own_unique_ids_are_short_enough_for_every_server() {
        let job = job(b"H:host:99999999999999999999999\0q\0\0").unwrap();
        for unique in [UniqueId::Hash(0), UniqueId::Hash(u64::MAX), UniqueId::Numbered(u128::MAX, u64::MAX)] {
            let id = id(unique, &job);
            assert!(id.len() <= MAX_UNIQUE_SIZE, "{id}");
        }
    }

    #[test]
    fn a_unique_id_is_the_sources_or_a_hash_or_one_that_is_new() {
        let job = job(b"H:a:b\0queue\0own\0data").unwrap();
        assert_eq!(id(UniqueId::Source, &job), "own");
        assert!(id(UniqueId::Hash(0), &job).starts_with("0-"), "a handle without a number");
        assert_eq!(id(UniqueId::Numbered(0x12ab, 34), &job), "000000000000000000000000000012ab-34");
        let ids: HashSet<String> = (0..1000).map(|epoch| id(UniqueId::Hash(epoch), &job)).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn a_handles_number_stands_at_its_end() {
        assert_eq!(number_of(b"H:host7:123"), Some((123, 8)));
        assert_eq!(number_of(b"H:host7:"), None);
        assert_eq!(number_of(b"H:host:99999999999999999999999"), None, "no number of 64 bits");
    }

    #[test]
    fn a_run_tells_the_numbers_of_its_handles() {
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        for body in [&b"H:a:7\0queue\0\0"[..], b"H:b\0queue\0\0", b"H:bc:19\0queue\0\0"] {
            parts.push(Parts::read(bytes.len(), &Packet { kind: kind::JOB_ASSIGN_UNIQ, body }, &origin()).unwrap());
            bytes.extend([&[0; HEADER_SIZE], body].concat());
        }
        let run = Block::new(bytes, parts, None).into_run();
        let numbers = [(&b"H:a:"[..], 7), (b"H:bc:", 19)];
        assert_eq!(run.handle_numbers().collect::<Vec<_>>(), numbers);
        assert_eq!(run.part(1..3).handle_numbers().collect::<Vec<_>>(), numbers[1..]);
        let jobs: Vec<Job> = run.collect();
        assert_eq!(jobs.iter().map(Job::handle_number).collect::<Vec<_>>(), [Some(numbers[0]), None, Some(numbers[1])]);
    }

    #[test]
    fn process_ids_of_early_processes_say_nothing() {
        assert_eq!([None, Some(1), Some(299), Some(300)].map(telling), [None, None, None, Some(300)]);
    }

    #[derive(Debug, Default)]
    struct Ledger(Mutex<Vec<(&'static str, usize)>>);

    impl Home for Ledger {
        fn lend(&self, bytes: usize) {
            self.0.lock().push(("lent", bytes));
        }

        fn take_back(&self, bytes: Vec<u8>) {
            self.0.lock().push(("back", bytes.capacity()));
        }
    }

    #[test]
    fn a_block_comes_home_with_its_last_job() {
        let home = Arc::new(Ledger::default());
        let body = b"H:a:1\0queue\0\0data";
        let parts = Parts::read(0, &Packet { kind: kind::JOB_ASSIGN_UNIQ, body }, &origin()).unwrap();
        let mut bytes = Vec::with_capacity(100);
        bytes.extend_from_slice(&[0; HEADER_SIZE + 5]);
        let block = Block::new(bytes, vec![parts, parts], Some(home.clone()));
        assert_eq!(format!("{block:?}"), "Block(17 bytes, 2 jobs)");
        let jobs: [Job; 2] = block.into_run().collect::<Vec<_>>().try_into().unwrap();
        let counts = |job: &Job| job.home().is_some_and(|home| format!("{home:?}").contains("lent"));
        assert!(jobs.iter().all(counts), "what is made of its data may count there too");
        let [first, second] = jobs;
        drop(first);
        assert_eq!(*home.0.lock(), [("lent", 100)]);
        drop(second);
        assert_eq!(*home.0.lock(), [("lent", 100), ("back", 100)]);
    }
}
