//! Forwards against job servers that keep the books and make every kind of trouble by seed.
//!
//! `MODEL_SEED=N` repeats one schedule, a hundred times or `MODEL_REPEAT` times; `MODEL_SCHEDULES=100000` is the long
//! mode.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod book;
mod differential;
mod faults;
mod hostile;
mod naive;
mod random;
mod relay;
mod runner;
mod schedule;
mod server;
mod wire;

use std::sync::{Mutex, MutexGuard};

/// Threads and descriptors are counted for the whole process, so only one test of this file runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Shows what the forwards log, where `MODEL_LOG` is set.
fn show_log() {
    struct Shown;
    impl log::Log for Shown {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let thread = std::thread::current();
            eprintln!("{:?} {}: {}", std::time::Instant::now(), thread.name().unwrap_or_default(), record.args());
        }

        fn flush(&self) {}
    }
    if std::env::var_os("MODEL_LOG").is_some() && log::set_logger(&Shown).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
}

mod promise {
    use std::time::Duration;

    use super::*;

    /// Relays that are known to be wrong are not waited for.
    const SHORT: Duration = Duration::from_secs(2);

    fn first(count: u64) -> Vec<u64> {
        (0..count).collect()
    }

    #[test]
    fn the_model_answers_as_gearmand_does() {
        let _alone = alone();
        differential::compare();
    }

    #[test]
    fn nothing_is_lost_and_nothing_comes_twice_whatever_breaks() {
        let _alone = alone();
        show_log();
        if let Some(seed) = variable("MODEL_SEED") {
            // The seed decides what is done, not how the threads run: some faults need more than one try.
            let seeds = vec![seed; variable("MODEL_REPEAT").unwrap_or(100) as usize];
            let failed = runner::play(&seeds, relay::forward, runner::PATIENCE, 0);
            assert!(failed.is_empty(), "{}", runner::report(&failed));
            return;
        }
        let count = variable("MODEL_SCHEDULES").unwrap_or(2000);
        if let Err(text) = runner::play_and_count(count, relay::forward) {
            panic!("{text}");
        }
    }

    #[test]
    fn nonsense_from_a_server_disturbs_nobody() {
        let _alone = alone();
        hostile::endure_all();
    }

    #[test]
    fn a_server_may_send_byte_by_byte() {
        let _alone = alone();
        hostile::byte_by_byte();
    }

    #[test]
    fn a_relay_that_acknowledges_too_early_is_found_out() {
        let _alone = alone();
        let failed = runner::play(&first(100), naive::hasty, SHORT, 100);
        let lost = failed.values().flatten().any(|violation| violation.starts_with("lost: "));
        assert!(lost, "{}", runner::report(&failed));
    }

    #[test]
    fn a_relay_that_delivers_twice_is_found_out() {
        let _alone = alone();
        let failed = runner::play(&first(100), naive::forgetful, SHORT, 100);
        let twice = failed.values().flatten().any(|violation| violation.contains(" copies, "));
        assert!(twice, "{}", runner::report(&failed));
    }
}
