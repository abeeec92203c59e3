//! What a job's stages may use: size, CPU time, and no time at all once the forward stops.
//!
//! Callbacks and data together decide how much work a job is: `s/a.*?b|a/x/gs` takes minutes on a megabyte of `a`, and
//! `s/a/$&$&$&/g` makes three jobs of one. The source must not be able to stop a forward, or to end the process, by that.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Undeliverable;

/// The limits of one job's stages.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// What is sent is no larger, bytes: `max_job_size`.
    pub max_size: usize,
    /// CPU time of the thread, looked at between the matches of a substitution: [`CPU_LIMIT`].
    pub cpu: Duration,
    /// Set when the forward stops: a job on which the stages are at work for longer than a hundredth of `cpu` is left as it
    /// is. The others end by themselves, so that a stop still delivers what came.
    pub stop: &'a AtomicBool,
}

/// The CPU time that a job's stages may take.
pub const CPU_LIMIT: Duration = Duration::from_secs(10);

static NEVER: AtomicBool = AtomicBool::new(false);

impl Limits<'static> {
    /// For a job without a deadline, as `--try` and tests have it.
    pub fn of_size(max_size: usize) -> Limits<'static> {
        Limits { max_size, cpu: CPU_LIMIT, stop: &NEVER }
    }
}

/// Why a job's stages came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is the job's fault: it is rejected.
    Undeliverable(Undeliverable),
    /// The forward stops: the job goes back to its source.
    Stopped,
}

impl From<Undeliverable> for Failure {
    fn from(undeliverable: Undeliverable) -> Failure {
        Failure::Undeliverable(undeliverable)
    }
}

/// Bytes that may be searched between two looks at the clock, so that small jobs never look.
const BYTES_A_LOOK: usize = 1 << 20;

/// Matches between two looks at the clock at most.
const MATCHES_A_LOOK: usize = 64;

/// What one job has used of its limits.
pub struct Bounds<'l> {
    limits: &'l Limits<'l>,
    /// A text may grow to this, bytes, so that what is sent is within `max_size`.
    max_text: usize,
    /// Matches before the next look at the clock.
    left: usize,
    began: Option<Instant>,
    /// CPU time of the thread when it was first read.
    cpu_before: Option<Duration>,
    /// When since `began` the CPU time is read next.
    next_reading: Duration,
}

impl<'l> Bounds<'l> {
    /// For one job, no text of which is to be larger than `max_text`, bytes.
    pub fn new(limits: &'l Limits<'l>, max_text: usize) -> Bounds<'l> {
        Bounds { limits, max_text, left: MATCHES_A_LOOK, began: None, cpu_before: None, next_reading: limits.cpu / 100 }
    }

    /// To be called for each match in a text of this length.
    pub(super) fn check_match(&mut self, length: usize) -> Result<(), Failure> {
        self.left = self.left.min(BYTES_A_LOOK / (length + 1));
        if self.left > 0 {
            self.left -= 1;
            return Ok(());
        }
        self.left = MATCHES_A_LOOK;
        self.check_cpu()
    }

    /// A thread's CPU time is never more than the time that has passed, which costs less to ask for.
    fn check_cpu(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let passed = now.duration_since(*self.began.get_or_insert(now));
        if passed >= self.limits.cpu / 100 && self.limits.stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        if passed < self.next_reading {
            return Ok(());
        }
        let cpu = thread_cpu().unwrap_or(passed);
        let used = cpu.saturating_sub(*self.cpu_before.get_or_insert(cpu));
        if used >= self.limits.cpu {
            return Err(Undeliverable::TooMuchWork.into());
        }
        self.next_reading = passed + (self.limits.cpu - used);
        Ok(())
    }

    /// Whether a text may be as large as this.
    pub(super) fn check_size(&self, length: usize) -> Result<(), Undeliverable> {
        if length > self.max_text { Err(Undeliverable::OutcomeTooLarge) } else { Ok(()) }
    }

    /// Appends to a text that is to be no larger than `max_text`.
    pub(super) fn append(&self, text: &mut Vec<u8>, more: &[u8]) -> Result<(), Failure> {
        let length = text.len().saturating_add(more.len());
        self.check_size(length)?;
        if length > text.capacity() {
            // Doubled as a Vec does by itself, but not beyond what it may become.
            reserve(text, length.max(text.capacity().saturating_mul(2).min(self.max_text)))?;
        }
        text.extend_from_slice(more);
        Ok(())
    }
}

/// Makes room for `length` bytes in all. The process must not abort because one job is large.
pub(super) fn reserve(buffer: &mut Vec<u8>, length: usize) -> Result<(), Undeliverable> {
    let more = length.saturating_sub(buffer.len());
    if more <= buffer.capacity() - buffer.len() {
        return Ok(());
    }
    buffer.try_reserve_exact(more).map_err(|_| Undeliverable::NoMemory)
}

/// The CPU time of this thread so far; none where the kernel does not tell.
fn thread_cpu() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_this_thread_is_told() {
        let before = thread_cpu().unwrap();
        // The kernel counts in its ticks, and another process may have the core.
        let began = Instant::now();
        while thread_cpu().unwrap() - before < Duration::from_millis(5) {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        std::thread::spawn(move || assert!(thread_cpu().unwrap() < Duration::from_secs(60))).join().unwrap();
    }

    #[test]
    fn waiting_is_not_counted() {
        let limits = Limits { cpu: Duration::from_millis(100), ..Limits::of_size(100) };
        let mut bounds = Bounds::new(&limits, 1000);
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(bounds.check_match(BYTES_A_LOOK), Ok(()));
        }
        let began = Instant::now();
        while bounds.check_match(BYTES_A_LOOK).is_ok() {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        assert_eq!(bounds.check_match(BYTES_A_LOOK), Err(Undeliverable::TooMuchWork.into()));
    }

    #[test]
    fn growth_ends_at_the_limit_and_reserves_no_more() {
        let limits = Limits::of_size(1000);
        let bounds = Bounds::new(&limits, 1000);
        let mut text = Vec::new();
        for _ in 0..10 {
            bounds.append(&mut text, &[b'x'; 99]).unwrap();
            assert!(text.capacity() <= 1000);
        }
        assert_eq!(bounds.append(&mut text, &[b'x'; 11]), Err(Undeliverable::OutcomeTooLarge.into()));
        assert_eq!(text.len(), 990);
        assert_eq!(reserve(&mut text, usize::MAX), Err(Undeliverable::NoMemory));
    }
}
