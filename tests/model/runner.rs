//! Many schedules at once, and what the process has left over after them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::relay::Start;
use crate::schedule;

/// Schedules mostly wait.
const AT_ONCE: usize = 32;
/// After so many schedules threads and descriptors are counted.
const BATCH: u64 = 250;

/// What a seed did wrong.
pub type Violations = BTreeMap<u64, Vec<String>>;

/// How long a relay may take to settle; a machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Plays seeds; ends early when more than `enough` have failed.
pub fn play(seeds: &[u64], start: Start, patience: Duration, enough: usize) -> Violations {
    let failed = Mutex::new(Violations::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(seeds.len()) {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if failed.lock().unwrap().len() > enough {
                        return;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| schedule::run(seed, start, patience)));
                    let violations = outcome.unwrap_or_else(|panic| vec![format!("panicked: {}", text_of(&*panic))]);
                    if !violations.is_empty() {
                        failed.lock().unwrap().insert(seed, violations);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

/// Plays in batches, and looks after each for threads and descriptors left over.
pub fn play_and_count(count: u64, start: Start) -> Result<(), String> {
    let before = Leftovers::count();
    for from in (0..count).step_by(BATCH as usize) {
        let to = count.min(from + BATCH);
        let seeds: Vec<u64> = (from..to).collect();
        let failed = play(&seeds, start, PATIENCE, 4);
        if !failed.is_empty() {
            return Err(report(&failed));
        }
        before.expect_again().map_err(|text| format!("after the schedules {from} to {to}: {text}"))?;
    }
    Ok(())
}

pub fn report(failed: &Violations) -> String {
    let mut text = String::new();
    for (seed, violations) in failed {
        text += &format!("MODEL_SEED={seed}\n");
        for violation in violations.iter().take(5) {
            text += &format!("    {}\n", violation.replace('\n', "\n    "));
        }
        if violations.len() > 5 {
            text += &format!("    and {} more\n", violations.len() - 5);
        }
    }
    text
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a text").to_owned()
}

/// The process's threads and open descriptors.
pub struct Leftovers {
    threads: usize,
    descriptors: usize,
}

impl Leftovers {
    pub fn count() -> Leftovers {
        Leftovers { threads: threads().len(), descriptors: entries("/proc/self/fd") }
    }

    /// A thread that was joined may be seen a moment longer.
    pub fn expect_again(&self) -> Result<(), String> {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Leftovers::count();
            if now.threads <= self.threads && now.descriptors <= self.descriptors {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(format!(
                    "{} threads and {} descriptors became {} and {}; threads are {:?}",
                    self.threads,
                    self.descriptors,
                    now.threads,
                    now.descriptors,
                    threads()
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Names of the threads that do work: the test harness starts and ends its own, named after tests, as it likes.
fn threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { panic!("no /proc") };
    let names = tasks.flatten().flat_map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.map(|name| name.trim_end().to_owned()).filter(|name| !name.starts_with("promise::")).collect()
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("no /proc").count()
}
