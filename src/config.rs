//! What the rest of the program sees of a configuration: [`Config`] and its [`ForwardConfig`]s.
//!
//! The way of a configuration: [`source`] finds the files and cuts them into lines that know their place, [`parse`]
//! turns lines into a [`Config`] or into every [`error`] there is, [`address`] reads `HOST:PORT/QUEUE`.

pub mod address;
pub mod error;
pub mod parse;
pub mod source;

use std::path::PathBuf;
use std::time::Duration;

pub use address::{Address, Server};
pub use error::{ConfigError, Place};

use crate::stages::Stages;

/// Larger jobs than this are failed unless the configuration says otherwise, bytes.
pub const DEFAULT_MAX_JOB_SIZE: usize = 64 << 20;

/// Jobs that an asynchronous forward holds unacknowledged at most, unless its configuration says otherwise.
pub const DEFAULT_PREFETCH: usize = 4096;

/// A whole, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the log goes.
    pub logfile: LogTarget,
    /// 0 info, 1 debug, 2 trace.
    pub debug: u8,
    /// Where the process id is written while the proxy runs.
    pub pidfile: Option<PathBuf>,
    /// A job with more data than this is failed, bytes.
    pub max_job_size: usize,
    /// The queue on which the status is asked.
    pub statusqueue: Option<Address>,
    /// In the order of the files.
    pub forwards: Vec<ForwardConfig>,
    /// What is allowed but unwise: `FILE:LINE: ...`, a line each.
    pub warnings: Vec<String>,
}

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

/// One forward: where jobs come from, what is done to them, where they go.
///
/// Two are equal when they do the same, wherever they stand in a file; passwords are compared by their text, so that
/// a changed password file makes another forward.
#[derive(Debug, Clone)]
pub struct ForwardConfig {
    /// The file and line that define it.
    pub place: Place,
    /// Jobs are taken from here.
    pub source: Address,
    /// Jobs are submitted here.
    pub destination: Address,
    /// What is done to each job's data.
    pub stages: Stages,
    /// Whether jobs are submitted in the background; if not, the result is waited for and returned.
    pub asynchronous: bool,
    /// Submitters; for a synchronous forward, the jobs under way at once.
    pub workers: usize,
    /// Jobs held unacknowledged at most; for a synchronous forward the same as `workers`.
    pub prefetch: usize,
    /// At the destination.
    pub priority: Priority,
    /// How long a synchronous job's result may take.
    pub timeout: Option<Duration>,
    /// Where undeliverable jobs go.
    pub reject_queue: Option<Address>,
}

impl PartialEq for ForwardConfig {
    fn eq(&self, other: &Self) -> bool {
        let ForwardConfig {
            place: _,
            source,
            destination,
            stages,
            asynchronous,
            workers,
            prefetch,
            priority,
            timeout,
            reject_queue,
        } = self;
        *source == other.source
            && *destination == other.destination
            && *stages == other.stages
            && *asynchronous == other.asynchronous
            && *workers == other.workers
            && *prefetch == other.prefetch
            && *priority == other.priority
            && *timeout == other.timeout
            && *reject_queue == other.reject_queue
    }
}

/// The priority with which jobs are submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// SUBMIT_JOB_LOW, SUBMIT_JOB_LOW_BG.
    Low,
    /// SUBMIT_JOB, SUBMIT_JOB_BG.
    #[default]
    Normal,
    /// SUBMIT_JOB_HIGH, SUBMIT_JOB_HIGH_BG.
    High,
}
