//! The memory of all forwards: one budget, and one pool of buffers for the jobs to come.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::config::ForwardConfig;
use crate::relay::Home;

/// Bytes of jobs that all forwards together hold.
const BUDGET: usize = 128 << 20;

/// Bytes of jobs that one forward holds before it takes them one by one.
const FORWARD_BYTES: usize = 8 << 20;

/// The same where an explicit `prefetch` implies more: so much for each job, and at most.
const BYTES_PER_JOB: usize = 1 << 10;
const MOST_FORWARD_BYTES: usize = 64 << 20;

/// Bytes of buffers that are kept for the jobs to come.
const POOL_BYTES: usize = 8 << 20;

/// A larger buffer is not kept, bytes.
const LARGEST_KEPT: usize = 64 << 10;

/// Bytes of jobs that a forward holds at most.
pub fn forward_bytes(config: &ForwardConfig) -> usize {
    match config.prefetch_is_explicit {
        true => config.prefetch.saturating_mul(BYTES_PER_JOB).clamp(FORWARD_BYTES, MOST_FORWARD_BYTES),
        false => FORWARD_BYTES,
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    held: AtomicUsize,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Memory {
    /// Bytes that may still be held.
    pub fn spare(&self) -> usize {
        BUDGET.saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// A buffer that was used before, if there is one.
    pub fn spare_buffer(&self) -> Vec<u8> {
        let mut pool = self.pool.lock();
        let buffer = pool.buffers.pop().unwrap_or_default();
        pool.bytes -= buffer.capacity();
        buffer
    }

    /// Gives back what no forward needs while nothing comes.
    pub fn rest(&self) {
        if self.held.load(Ordering::Relaxed) == 0 {
            *self.pool.lock() = Pool::default();
        }
    }
}

impl Home for Memory {
    fn lend(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take_back(&self, bytes: Vec<u8>) {
        let capacity = bytes.capacity();
        self.held.fetch_sub(capacity, Ordering::Relaxed);
        if capacity > 0 && capacity <= LARGEST_KEPT {
            let mut pool = self.pool.lock();
            if pool.bytes + capacity <= POOL_BYTES {
                pool.bytes += capacity;
                pool.buffers.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lent_is_spare_again_when_it_comes_back() {
        let memory = Memory::default();
        let buffer = vec![0; 4096];
        memory.lend(buffer.capacity());
        assert_eq!(memory.spare(), BUDGET - 4096);
        memory.take_back(buffer);
        assert_eq!(memory.spare(), BUDGET);
        assert_eq!(memory.spare_buffer().capacity(), 4096);
        assert_eq!(memory.spare_buffer().capacity(), 0);
    }

    #[test]
    fn the_pool_is_bounded_and_emptied_when_nothing_is_held() {
        let memory = Memory::default();
        for _ in 0..2 * POOL_BYTES / LARGEST_KEPT {
            memory.lend(LARGEST_KEPT);
            memory.take_back(Vec::with_capacity(LARGEST_KEPT));
        }
        assert!(memory.pool.lock().bytes <= POOL_BYTES);
        memory.lend(2 * LARGEST_KEPT);
        memory.rest();
        assert!(!memory.pool.lock().buffers.is_empty());
        memory.take_back(Vec::with_capacity(2 * LARGEST_KEPT));
        memory.rest();
        assert!(memory.pool.lock().buffers.is_empty());
    }
}
