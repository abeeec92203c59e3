//! Many seeds, shared by as many threads as there are cores; a schedule itself has one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::counts::Counts;
use crate::{draw, shrink};

/// Seeds that a thread takes at a time.
const SHARE: u64 = 64;

/// Failing seeds that are listed; the first is told as a story.
const ENOUGH: usize = 20;

#[derive(Default)]
struct Outcome {
    counts: Counts,
    /// Does not depend on which thread ran which seed.
    hash: u64,
    failed: Vec<(u64, String)>,
}

/// Runs `count` seeds from `first` on, and prints what they consisted of.
///
/// # Errors
/// Seeds that fail.
pub fn run(first: u64, count: u64) -> Result<(), String> {
    let next = AtomicU64::new(0);
    let outcome = Mutex::new(Outcome::default());
    let before = cpu_seconds();
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let from = next.fetch_add(SHARE, Ordering::Relaxed);
                    if from >= count || outcome.lock().unwrap().failed.len() > ENOUGH {
                        return;
                    }
                    let mut share = Outcome::default();
                    for seed in (first + from)..(first + (from + SHARE).min(count)) {
                        let report = shrink::run(&draw::plan(seed), false);
                        share.counts.add(&report.counts);
                        share.hash = share.hash.wrapping_add(report.hash.wrapping_mul(2 * seed + 1));
                        if let Some(violation) = report.violations.first() {
                            share.failed.push((seed, violation.clone()));
                        }
                    }
                    let mut all = outcome.lock().unwrap();
                    all.counts.add(&share.counts);
                    all.hash = all.hash.wrapping_add(share.hash);
                    all.failed.append(&mut share.failed);
                }
            });
        }
    });
    let outcome = outcome.into_inner().unwrap();
    print(&outcome, cpu_seconds() - before);
    if outcome.failed.is_empty() { Ok(()) } else { Err(tell(outcome.failed)) }
}

fn print(outcome: &Outcome, seconds: f64) {
    let Outcome { counts, hash, failed } = outcome;
    let Counts { schedules, jobs, faults, cuts, kills, restarts, outages, stops, .. } = counts;
    println!("{schedules} schedules: {jobs} jobs, {faults} faults");
    println!(
        "  {cuts} cuts, {kills} kills of a proxy, {restarts} restarts of a server, {outages} outages, {stops} stops"
    );
    println!("  {} jobs were given back, {} dropped by --job-retries", counts.given_back, counts.dropped);
    let lost = failed.iter().filter(|(_, violation)| violation.starts_with("LOST")).count();
    let twice = failed.iter().filter(|(_, violation)| violation.starts_with("TWICE")).count();
    println!(
        "  lost {lost}, twice beyond the exception {twice} (and {} within it), other violations {}",
        counts.twice,
        failed.len() - lost - twice
    );
    println!(
        "  everything delivered {} s after the last fault at most; stopped in {:.2} s at most",
        counts.longest_settling / 1_000_000,
        counts.longest_stop as f64 / 1e6
    );
    println!("  {} virtual hours, {} steps, trace {hash:016x}", counts.virtual_seconds / 3600, counts.steps);
    println!("  {seconds:.1} CPU seconds, {:.0} schedules a CPU second", counts.schedules as f64 / seconds.max(0.001));
}

fn tell(mut failed: Vec<(u64, String)>) -> String {
    failed.sort();
    let mut text = String::new();
    for (seed, violation) in failed.iter().take(ENOUGH) {
        text += &format!("seed {seed}: {violation}\n");
    }
    if let Some((seed, _)) = failed.first() {
        text += &shrink::story(&shrink::shrink(&draw::plan(*seed)));
    }
    text
}

/// What this process has used so far, by the kernel's account.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time in ticks of 10 ms; the fields are counted behind the name in brackets.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
