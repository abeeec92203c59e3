//! Forwards against job servers that keep the books and make every kind of trouble by seed.
//!
//! `MODEL_SEED=N` repeats one schedule; `MODEL_SCHEDULES=100000` is the long mode.

mod book;
mod differential;
mod faults;
mod random;
mod server;
mod wire;

use std::sync::{Mutex, MutexGuard};

/// Threads and descriptors are counted for the whole process, so only one test of this file runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
