//! What tells one job from another, and the unique ids under which jobs without one are submitted.
//!
//! The same job always gets the same id, so that a destination merges what had to be submitted twice; two jobs never do.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::job::Parts;

/// Process ids below this say nothing: those of early processes and in containers are the same again after a restart.
const FIRST_TELLING_PROCESS_ID: u32 = 300;

/// A hash of fixed definition: its outcome may meet those of an older release at the destination.
///
/// Two lanes of 64 bits; each word pair is multiplied into 128 bits and folded (the scheme of wyhash). Every part is
/// hashed with its length, so that parts can't run into each other.
#[derive(Debug, Clone, Copy)]
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

    fn mix(&mut self, a: u64, b: u64) {
        self.low = fold(a ^ K[0], b ^ self.low);
        self.high = fold(b ^ K[2], a ^ self.high);
    }

    fn part(mut self, bytes: &[u8]) -> Hash128 {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let (chunks, rest) = bytes.as_chunks::<16>();
        for chunk in chunks {
            let [a, b] = [0, 8].map(|at| {
                let mut half = [0; 8];
                half.copy_from_slice(&chunk[at..at + 8]);
                u64::from_le_bytes(half)
            });
            self.mix(a, b);
        }
        let (a, b) = rest.split_at(rest.len().min(8));
        self.mix(word(a), word(b));
        self.mix(bytes.len() as u64, K[0]);
        self
    }

    fn finish(mut self) -> u128 {
        self.mix(K[2], K[1]);
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

/// The part of a job's identity that all jobs of one source connection share.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    hash: Hash128,
    telling: bool,
}

/// A job's identity.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Of the source server's process, queue, handle, data and unique id.
    pub key: u128,
    /// The same without the unique id: what the job's own unique id is made of.
    id: u128,
}

impl Origin {
    /// `server` as written in the configuration; the process id as the server told it.
    pub fn new(server: &str, process_id: Option<u32>, queue: &str) -> Origin {
        let process_id = telling(process_id);
        let number = process_id.unwrap_or_default().to_le_bytes();
        Origin {
            hash: Hash128::START.part(server.as_bytes()).part(&number).part(queue.as_bytes()),
            telling: process_id.is_some(),
        }
    }

    /// The identity of a job from there.
    pub fn identify(&self, job: &Parts<'_>) -> Identity {
        let hash = self.hash.part(job.handle).part(job.data);
        Identity { key: hash.part(job.unique).finish(), id: hash.finish() }
    }

    /// Whether a job's hash tells it from jobs of the server before a restart. If not, its id needs a number that was
    /// never used: see [`next_number`].
    pub fn tells(&self) -> bool {
        self.telling
    }

    /// Writes the forward's own unique id of a job: the number in its handle and its hash, or, where `number` is not 0,
    /// this process's random number and that one.
    pub fn write_unique(&self, out: &mut Vec<u8>, handle: &[u8], identity: &Identity, number: u64) {
        if number > 0 {
            return write_numbered(out, number);
        }
        out.clear();
        out.extend_from_slice(handle_number(handle));
        out.push(b'-');
        out.extend_from_slice(&hex(identity.id));
    }
}

/// The process id, where it tells a server from the one before its restart.
pub fn telling(process_id: Option<u32>) -> Option<u32> {
    process_id.filter(|&id| id >= FIRST_TELLING_PROCESS_ID)
}

/// The digits at the end of a handle such as `H:host:123`.
fn handle_number(handle: &[u8]) -> &[u8] {
    let digits = handle.iter().rev().take(20).take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 { b"0" } else { &handle[handle.len() - digits..] }
}

static PROCESS_NUMBER: LazyLock<u128> = LazyLock::new(|| {
    // Its keys come from the system's random source, once a process; the second differs by a counter that is hashed.
    let [low, high] = [(), ()].map(|()| RandomState::new().build_hasher().finish());
    u128::from(high) << 64 | u128::from(low)
});

static COUNTER: AtomicU64 = AtomicU64::new(1);

/// A number that this process has not used before.
pub fn next_number() -> u64 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Writes a unique id that was never used before, by anyone.
pub fn write_new_unique(out: &mut Vec<u8>) {
    write_numbered(out, next_number());
}

fn write_numbered(out: &mut Vec<u8>, number: u64) {
    out.clear();
    out.extend_from_slice(&hex(*PROCESS_NUMBER));
    // Writing to a Vec can't fail.
    let _ = write!(out, "-{number}");
}

/// As 32 hex digits; std's formatting takes as long as the hash of a whole job.
fn hex(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(number.to_be_bytes()) {
        *pair = [byte >> 4, byte & 15].map(|digit| if digit < 10 { b'0' + digit } else { b'a' - 10 + digit });
    }
    digits
}

/// A number between 0 and `limit` for jitter; not secret.
pub fn random_below(limit: u64) -> u64 {
    RandomState::new().build_hasher().finish() % limit.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn parts<'a>(handle: &'a [u8], unique: &'a [u8], data: &'a [u8]) -> Parts<'a> {
        Parts { handle, unique, data }
    }

    #[test]
    fn the_hash_is_of_fixed_definition() {
        let origin = Origin::new("127.0.0.1:4730", Some(4711), "queue");
        let job = parts(b"H:host:17", b"", b"some data that is longer than one chunk");
        let mut unique = Vec::new();
        origin.write_unique(&mut unique, job.handle, &origin.identify(&job), 0);
        assert_eq!(unique, b"17-04321a4def4ae5570c9da6d56734c7d5");
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
            for job in [
                parts(b"H:1", b"", b""),
                parts(b"H:1", b"", b"\0"),
                parts(b"H:1", b"", b"\0\0"),
                parts(b"H:1", b"", &[0; 16]),
                parts(b"H:1", b"", &[0; 17]),
                parts(b"H:1", b"", &[0; 32]),
                parts(b"H:2", b"", b""),
                parts(b"H:", b"", b"1"),
                parts(b"H:1", b"u", b""),
            ] {
                assert!(seen.insert(origin.identify(&job).key), "{job:?}");
            }
        }
        let id = |unique| base.identify(&parts(b"H:1", unique, b"data")).id;
        assert_eq!(id(b""), id(b"u"), "the forward's own id doesn't depend on the source's");
    }

    #[test]
    fn single_bits_spread_over_the_whole_hash() {
        let mut data = [0_u8; 600];
        let origin = Origin::new("a:1", Some(300), "q");
        let base = origin.identify(&parts(b"H:1", b"", &data)).key;
        for bit in 0..data.len() * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            let changed = (origin.identify(&parts(b"H:1", b"", &data)).key ^ base).count_ones();
            assert!((32..=96).contains(&changed), "bit {bit} changed {changed} bits");
            data[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn own_unique_ids_are_short_enough_for_every_server() {
        let mut unique = Vec::new();
        let origin = Origin::new("a:1", None, "q");
        let handle = b"H:host:99999999999999999999999";
        let identity = origin.identify(&parts(handle, b"", b""));
        for number in [0, u64::MAX] {
            origin.write_unique(&mut unique, handle, &identity, number);
            assert!(unique.len() <= 63, "{}", unique.escape_ascii());
        }
        assert!(!origin.tells());
    }

    #[test]
    fn new_unique_ids_are_new() {
        let mut seen = HashSet::new();
        let mut unique = Vec::new();
        for _ in 0..1000 {
            write_new_unique(&mut unique);
            assert!(seen.insert(unique.clone()) && unique.len() <= 63);
        }
    }
}
