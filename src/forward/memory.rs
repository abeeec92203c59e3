//! The memory of all forwards: one budget for everything that grows with what others send, counted by capacity before it
//! grows, and one pool of buffers for the jobs to come.
//!
//! Small things (buffers, blocks of jobs) are counted as they are. What is larger reserves what it will take with all that
//! becomes of it: in the budget, or where that is not enough by waiting for its turn, of which there is one at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::config::ForwardConfig;
use crate::relay::{Home, LineId};

/// Bytes that all forwards together hold.
const BUDGET: usize = 128 << 20;

/// Bytes of jobs that one forward holds before it takes them one by one.
const FORWARD_BYTES: usize = 8 << 20;

/// The same where an explicit `prefetch` implies more: this much for each job, and at most.
const BYTES_PER_JOB: usize = 1 << 10;
const MOST_FORWARD_BYTES: usize = 64 << 20;

/// What a packet from the source may take without being asked about, bytes; and one from all destination connections of a
/// forward together.
pub const FREE: usize = 256 << 10;

/// Stages make this many times its size of a job: its text, what a stage makes of it, and the submission.
const STAGES_FACTOR: usize = 5;

/// A result is there three times: as it was read, as a reply, and as a packet for the source.
pub const RESULT_FACTOR: usize = 3;

/// What is larger is written in pieces of this size, bytes, so that it is seen to move.
pub const PIECE: usize = 128 << 10;

/// Bytes of buffers that are kept for the jobs to come.
const POOL_BYTES: usize = 8 << 20;

/// A larger buffer is not kept, bytes.
const LARGEST_KEPT: usize = 64 << 10;

/// Bytes of jobs that forwards share where more than a few of them hold this much at once, and what their readers read at once.
const SHARED_BYTES: usize = 16 << 20;
const READ_BYTES: usize = 8 << 20;
const FEW: usize = 16;
const MUCH: usize = 2 << 10;

/// What a source's reader reads at once, bytes: less when little of the budget is left, so that many of them share it.
const SMALLEST_READ: usize = 8 << 10;
const READS_LEFT: usize = 1024;

/// Of what has its turn this many bytes must move in this time, or the peer that does not move them loses its session.
const PACE_BYTES: usize = 480 << 10;
const PACE: Duration = Duration::from_secs(30);

/// How long a job that has its turn may wait for other jobs, or for the reject queue.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Bytes of jobs that a forward holds at most.
pub fn forward_bytes(config: &ForwardConfig) -> usize {
    match config.prefetch_is_explicit {
        true => config.prefetch.saturating_mul(BYTES_PER_JOB).clamp(FORWARD_BYTES, MOST_FORWARD_BYTES),
        false => FORWARD_BYTES,
    }
}

/// What a job of this size takes with all that becomes of it.
pub fn with_stages(config: &ForwardConfig, size: usize) -> usize {
    if config.stages.is_identity() { size } else { size.saturating_mul(STAGES_FACTOR) }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    held: AtomicUsize,
    /// Forwards that hold more than a few jobs.
    holders: AtomicUsize,
    pool: Mutex<Pool>,
    /// For jobs with what their stages make of them, and for results: a job may be held until its result is sent.
    lines: [Arc<Mutex<Line>>; 2],
}

/// What waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Large {
    Job = 0,
    Result = 1,
}

#[derive(Debug, Default)]
struct Pool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// A buffer was taken since the last look.
    used: bool,
}

/// The threads that wait for the turn, first come first served.
#[derive(Debug, Default)]
struct Line {
    taken: bool,
    waiting: VecDeque<Sender<Turn>>,
}

/// The right to take more than the budget has, one at a time in the process.
#[derive(Debug)]
pub struct Turn {
    line: Arc<Mutex<Line>>,
    pace: Mutex<Pace>,
}

/// The peer that must move the bytes of what has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mover {
    Source(u32),
    Destination(LineId),
    /// It waits here.
    Nobody,
}

#[derive(Debug)]
struct Pace {
    mover: Mover,
    /// Since this one moves it, and how much since `until` was set.
    began: Instant,
    moved: usize,
    until: Instant,
}

/// Bytes of the budget that are held until this is dropped.
#[derive(Debug)]
pub struct Counted {
    memory: Arc<Memory>,
    bytes: usize,
}

/// What a large thing takes with all that becomes of it, until the last of it is gone: bytes of the budget, or the turn.
#[derive(Debug)]
pub struct Share {
    _bytes: Option<Counted>,
    turn: Option<Turn>,
}

impl Memory {
    /// Bytes that may still be held.
    pub fn spare(&self) -> usize {
        BUDGET.saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// A buffer that was used before, if there is one. One that is larger than what is read now is given up.
    pub fn spare_buffer(&self) -> Vec<u8> {
        let largest = self.read_size();
        let mut pool = self.pool.lock();
        pool.used = true;
        while let Some(buffer) = pool.buffers.pop() {
            pool.bytes -= buffer.capacity();
            if buffer.capacity() <= largest {
                return buffer;
            }
        }
        Vec::new()
    }

    /// A forward holds this much; `much` is its mark.
    pub fn holds(&self, bytes: usize, much: &AtomicBool) {
        let holds = bytes > MUCH;
        if much.load(Ordering::Relaxed) != holds && much.swap(holds, Ordering::Relaxed) != holds {
            self.holders.fetch_add(if holds { 1 } else { usize::MAX }, Ordering::Relaxed);
        }
    }

    /// The bytes that each forward may ask for.
    pub fn share(&self) -> usize {
        match self.holders.load(Ordering::Relaxed) {
            ..=FEW => usize::MAX,
            holders => SHARED_BYTES / holders,
        }
    }

    /// Gives back what was not needed since the last time.
    pub fn rest(&self) {
        let mut pool = self.pool.lock();
        if !std::mem::take(&mut pool.used) {
            *pool = Pool::default();
        }
    }

    /// What a busy reader may read at once, bytes.
    pub fn read_size(&self) -> usize {
        let share = READ_BYTES / self.holders.load(Ordering::Relaxed).max(1);
        (self.spare() / READS_LEFT).min(share).clamp(SMALLEST_READ, LARGEST_KEPT)
    }

    /// Reserves bytes, if they are there.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Arc<Share>> {
        let fits = |held: usize| held.checked_add(bytes).filter(|&held| held <= BUDGET);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Arc::new(Share { _bytes: Some(Counted { memory: Arc::clone(self), bytes }), turn: None }))
    }

    /// The turn comes through this channel, and goes to the next one if the channel is dropped.
    pub fn line_up(&self, what: Large) -> Receiver<Turn> {
        let (send, turn) = bounded(1);
        let line = &self.lines[what as usize];
        line.lock().waiting.push_back(send);
        call_next(line);
        turn
    }

    /// Whether anything large has its turn.
    pub fn has_turn(&self) -> bool {
        self.lines.iter().any(|line| line.lock().taken)
    }
}

/// Gives the turn to the first who still waits for it.
fn call_next(line: &Arc<Mutex<Line>>) {
    let next = {
        let mut line = line.lock();
        if line.taken {
            return;
        }
        let next = line.waiting.pop_front();
        line.taken = next.is_some();
        next
    };
    if let Some(next) = next {
        // Where nobody waits any more the turn is dropped, which calls the one behind.
        let _ = next.send(Turn { line: Arc::clone(line), pace: Mutex::new(Pace::new(Mover::Nobody)) });
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.line.lock().taken = false;
        call_next(&self.line);
    }
}

impl Pace {
    fn new(mover: Mover) -> Pace {
        let now = Instant::now();
        let limit = if mover == Mover::Nobody { LONGEST_WAIT } else { PACE };
        Pace { mover, began: now, moved: 0, until: now + limit }
    }
}

impl Share {
    /// For who has the turn.
    pub fn of(turn: Turn) -> Arc<Share> {
        Arc::new(Share { _bytes: None, turn: Some(turn) })
    }

    /// A peer moved bytes of it, or must do so from now on.
    pub fn moved(&self, mover: Mover, bytes: usize) {
        let Some(turn) = &self.turn else { return };
        let mut pace = turn.pace.lock();
        if pace.mover != mover {
            *pace = Pace::new(mover);
        }
        pace.moved += bytes;
        if pace.moved >= PACE_BYTES {
            pace.moved = 0;
            pace.until = Instant::now() + PACE;
        }
    }

    /// All of it is sent. What stands in buffers on the way may take several times as long as sending it did.
    pub fn sent(&self) {
        let Some(turn) = &self.turn else { return };
        let mut pace = turn.pace.lock();
        pace.until = Instant::now() + PACE + 4 * pace.began.elapsed();
    }

    /// The peer that did not move enough of it.
    pub fn late(&self) -> Option<Mover> {
        let mut pace = self.turn.as_ref()?.pace.lock();
        let mover = (pace.until <= Instant::now()).then_some(pace.mover)?;
        // Told once; its session is being ended already.
        *pace = Pace::new(Mover::Nobody);
        Some(mover)
    }
}

/// A block in it is counted already.
impl Home for Share {
    fn lend(&self, _bytes: usize) {}

    fn take_back(&self, _bytes: Vec<u8>) {}
}

impl Counted {
    /// Nothing yet.
    pub fn new(memory: &Arc<Memory>) -> Counted {
        Counted { memory: Arc::clone(memory), bytes: 0 }
    }

    /// It is this many bytes now, whether they are there or not.
    pub fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.memory.held.fetch_add(bytes, Ordering::Relaxed);
            self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = bytes;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Home for Memory {
    fn lend(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take_back(&self, bytes: Vec<u8>) {
        let capacity = bytes.capacity();
        self.held.fetch_sub(capacity, Ordering::Relaxed);
        if capacity > 0 && capacity <= self.read_size() {
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
    fn the_pool_is_bounded_and_emptied_when_nothing_is_taken_from_it() {
        let memory = Memory::default();
        memory.spare_buffer();
        for _ in 0..2 * POOL_BYTES / LARGEST_KEPT {
            memory.lend(LARGEST_KEPT);
            memory.take_back(Vec::with_capacity(LARGEST_KEPT));
        }
        assert!(memory.pool.lock().bytes <= POOL_BYTES);
        memory.rest();
        assert!(!memory.pool.lock().buffers.is_empty());
        memory.rest();
        assert!(memory.pool.lock().buffers.is_empty());
    }

    #[test]
    fn reservations_and_buffers_never_exceed_the_budget() {
        let memory = Arc::new(Memory::default());
        let mut buffers = Counted::new(&memory);
        buffers.set(BUDGET / 2);
        let share = memory.reserve(BUDGET / 2).unwrap();
        assert!(memory.reserve(1).is_none() && memory.reserve(usize::MAX).is_none());
        assert!(share.turn.is_none() && share.late().is_none());
        drop(share);
        buffers.set(0);
        assert!(memory.reserve(BUDGET).is_some());
        assert_eq!(memory.spare(), BUDGET);
    }

    #[test]
    fn turns_come_one_at_a_time_in_order_and_past_who_gave_up() {
        let memory = Memory::default();
        let turns: Vec<_> = (0..5).map(|_| memory.line_up(Large::Job)).collect();
        let [first, second, third, fourth, fifth] = turns.try_into().ok().unwrap();
        let share = Share::of(first.try_recv().unwrap());
        assert!(share.turn.is_some() && second.try_recv().is_err());
        drop([second, third]);
        let kept = Arc::clone(&share);
        drop(share);
        assert!(fourth.try_recv().is_err(), "something of the first is still there");
        drop(kept);
        assert!(fifth.try_recv().is_err());
        // It was given, and is passed on unused.
        drop(fourth);
        assert!(fifth.try_recv().is_ok());
    }

    #[test]
    fn a_peer_that_does_not_move_enough_is_late_and_told_once() {
        let memory = Memory::default();
        let share = Share::of(memory.line_up(Large::Result).try_recv().unwrap());
        let age = |by: Duration| share.turn.as_ref().unwrap().pace.lock().until -= by;
        share.moved(Mover::Source(1), 0);
        age(PACE - Duration::from_secs(1));
        assert_eq!(share.late(), None);
        share.moved(Mover::Source(1), PACE_BYTES);
        age(PACE - Duration::from_secs(1));
        share.moved(Mover::Source(1), PACE_BYTES - 1);
        assert_eq!(share.late(), None);
        age(Duration::from_secs(1));
        assert_eq!(share.late(), Some(Mover::Source(1)));
        assert_eq!(share.late(), None);
    }

    #[test]
    fn buffers_that_are_too_large_where_many_are_busy_are_given_up() {
        let memory = Memory::default();
        let marks: Vec<_> = (0..1000).map(|_| AtomicBool::new(false)).collect();
        for size in [SMALLEST_READ, LARGEST_KEPT, LARGEST_KEPT] {
            memory.lend(size);
            memory.take_back(Vec::with_capacity(size));
        }
        assert_eq!(memory.spare_buffer().capacity(), LARGEST_KEPT);
        marks.iter().for_each(|mark| memory.holds(MUCH + 1, mark));
        assert_eq!(memory.spare_buffer().capacity(), SMALLEST_READ);
        memory.lend(LARGEST_KEPT);
        memory.take_back(Vec::with_capacity(LARGEST_KEPT));
        assert!(memory.pool.lock().buffers.is_empty());
    }

    #[test]
    fn many_that_hold_jobs_share_what_they_ask_for() {
        let memory = Memory::default();
        let marks: Vec<_> = (0..1000).map(|_| AtomicBool::new(false)).collect();
        let hold = |bytes| marks.iter().for_each(|mark| memory.holds(bytes, mark));
        hold(MUCH);
        assert_eq!(memory.share(), usize::MAX);
        hold(MUCH + 1);
        hold(MUCH + 2);
        assert_eq!((memory.share(), memory.read_size()), (SHARED_BYTES / 1000, READ_BYTES / 1000));
        marks[FEW..].iter().for_each(|mark| memory.holds(0, mark));
        assert_eq!(memory.share(), usize::MAX);
        memory.holds(MUCH + 1, &marks[FEW]);
        assert_eq!(memory.share(), SHARED_BYTES / (FEW + 1));
    }

    #[test]
    fn many_readers_read_less_at_once_and_stay_in_the_budget() {
        let memory = Arc::new(Memory::default());
        assert_eq!(memory.read_size(), LARGEST_KEPT);
        let mut all: Vec<_> = (0..5000).map(|_| Counted::new(&memory)).collect();
        all.iter_mut().for_each(|buffers| buffers.set(memory.read_size()));
        assert_eq!(memory.read_size(), SMALLEST_READ);
        assert!(memory.held.load(Ordering::Relaxed) <= BUDGET + 5000 * SMALLEST_READ);
        drop(all);
        assert_eq!((memory.read_size(), memory.spare()), (LARGEST_KEPT, BUDGET));
    }
}
