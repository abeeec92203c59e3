//! Targets that run with one seed after the other, for as long as asked.
//!
//! `GEARMAN_PROXY_FUZZ_SECONDS` is how long each target runs, 10 if not set. A failure names its seed;
//! `GEARMAN_PROXY_FUZZ_SEED` begins with that one.

use std::time::{Duration, Instant};

use super::random::Random;

/// Names the seed when the test fails.
struct Seed(&'static str, u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: GEARMAN_PROXY_FUZZ_SEED={}", self.0, self.1);
        }
    }
}

/// Runs a target with one seed after the other until its time is over.
pub fn fuzz(target: &'static str, mut run: impl FnMut(&mut Random)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = number("GEARMAN_PROXY_FUZZ_SECONDS").map_or(Duration::from_secs(10), Duration::from_secs);
    let mut seed = Seed(target, number("GEARMAN_PROXY_FUZZ_SEED").unwrap_or(1));
    let start = Instant::now();
    let mut runs = 0_u64;
    while start.elapsed() < time {
        run(&mut Random(seed.1));
        seed.1 += 1;
        runs += 1;
    }
    println!("{target}: {runs} runs");
    assert!(runs > 0, "{target} ran at least once");
}
