//! What the rest of the program sees of a configuration: [`Config`] and its [`ForwardConfig`]s.
//!
//! The way of a configuration: [`source`] finds the files and cuts them into lines that know their place, [`parse`]
//! turns lines into a [`Config`] or into every [`error`] there is by the table of [`keys`], with [`variables`] expanded;
//! [`address`] reads `HOST:PORT/QUEUE`.

pub mod address;
pub mod error;
pub mod keys;
mod parse;
mod source;
mod variables;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::{Address, AddressError, Server};
pub use error::{ConfigError, ConfigErrors, Place};

use crate::stages::Stages;

/// Larger jobs than this are failed unless the configuration says otherwise, bytes.
pub const DEFAULT_MAX_JOB_SIZE: usize = 64 << 20;

/// Jobs that an asynchronous forward holds unacknowledged at most, unless its configuration says otherwise.
pub const DEFAULT_PREFETCH: usize = 4096;

/// Descriptors beside those of the forwards: the standard three, the log, the status queue's connection, and some
/// for what comes and goes, such as name look-ups and the connections that are being replaced.
const OTHER_OPEN_FILES: usize = 3 + 1 + 1 + 16;

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

/// Reads a configuration from files, folders and patterns in the order given.
///
/// A folder stands for its `*.cfg` and `*.conf` in order of name, a pattern for what it matches. A file that is named
/// more than once is read once.
///
/// # Errors
/// Everything that is wrong, found in one pass.
pub fn load(paths: &[PathBuf]) -> Result<Config, ConfigErrors> {
    let mut parser = parse::Parser::new(|name| std::env::var(name).ok());
    let mut reader = source::Reader::default();
    for found in paths.iter().flat_map(|path| source::find(path)) {
        match found.and_then(|file| reader.read(&file)) {
            Ok(lines) => parser.file(lines),
            Err(error) => parser.error(error),
        }
    }
    parser.finish(paths)
}

/// What is read where the command line names no configuration: `$OMD_ROOT/etc/mod-gearman/proxy.conf` on an OMD site,
/// else `/etc/gearman-proxy/proxy.conf`.
#[must_use]
pub fn default_paths() -> Vec<PathBuf> {
    let path = match std::env::var_os("OMD_ROOT").filter(|root| !root.is_empty()) {
        Some(root) => Path::new(&root).join("etc/mod-gearman/proxy.conf"),
        None => PathBuf::from("/etc/gearman-proxy/proxy.conf"),
    };
    vec![path]
}

impl Config {
    /// The forwards as a table with aligned columns, and the status queue; without passwords.
    #[must_use]
    pub fn table(&self) -> String {
        let heads =
            ["SOURCE", "DESTINATION", "STAGES", "MODE", "WORKER", "PREFETCH", "PRIORITY", "TIMEOUT", "REJECT QUEUE"];
        let mut rows = vec![heads.map(str::to_owned)];
        rows.extend(self.forwards.iter().map(ForwardConfig::row));
        let mut widths = [0; 9];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut out = String::new();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
        match &self.statusqueue {
            Some(queue) => out.push_str(&format!("\nstatus queue: {queue}\n")),
            None => out.push_str("\nno status queue\n"),
        }
        out
    }

    /// Files and sockets that are open at once when every forward is at work.
    #[must_use]
    pub fn open_files_needed(&self) -> usize {
        let forwards = self.forwards.iter().map(|forward| {
            let reject = usize::from(forward.reject_queue.is_some());
            1 + forward.workers + reject
        });
        OTHER_OPEN_FILES + forwards.sum::<usize>()
    }

    /// A warning with both numbers if this process may not open as many files as the forwards need.
    #[must_use]
    pub fn open_files_warning(&self) -> Option<String> {
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let limit = soft_limit_of_open_files(&limits)?;
        let needed = self.open_files_needed();
        (needed > limit).then(|| {
            format!(
                "the limit of open files is {limit}, but {needed} are needed when all forwards are at work: raise it \
                 with `ulimit -n {needed}`, or LimitNOFILE= in a systemd unit"
            )
        })
    }
}

/// From the text of `/proc/self/limits`; none if unlimited or not there.
fn soft_limit_of_open_files(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

impl ForwardConfig {
    /// Its cells in the table.
    fn row(&self) -> [String; 9] {
        let none = || "-".to_owned();
        [
            self.source.to_string(),
            self.destination.to_string(),
            self.stages_in_words(),
            if self.asynchronous { "async" } else { "sync" }.to_owned(),
            self.workers.to_string(),
            self.prefetch.to_string(),
            self.priority.name().to_owned(),
            self.timeout.map_or_else(none, |timeout| format!("{} s", timeout.as_secs())),
            self.reject_queue.as_ref().map_or_else(none, Address::to_string),
        ]
    }

    fn stages_in_words(&self) -> String {
        let Stages { decrypt, data_callbacks, uniq_callbacks, encrypt, reads_time: _ } = &self.stages;
        let stages = [
            ("decrypt", usize::from(decrypt.is_some())),
            ("uniq_callback", uniq_callbacks.len()),
            ("data_callback", data_callbacks.len()),
            ("encrypt", usize::from(encrypt.is_some())),
        ];
        let words: Vec<String> = stages
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| if *count > 1 { format!("{count} {name}") } else { (*name).to_owned() })
            .collect();
        if words.is_empty() { "-".to_owned() } else { words.join(", ") }
    }
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

impl LogTarget {
    /// `stdout` or `-`, `stderr`, else a file's path.
    #[must_use]
    pub fn from_text(text: String) -> LogTarget {
        match text.as_str() {
            "stdout" | "-" => LogTarget::Stdout,
            "stderr" => LogTarget::Stderr,
            _ => LogTarget::File(PathBuf::from(text)),
        }
    }
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

impl Priority {
    /// As the configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_the_first_number() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             96227                96227                processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit_of_open_files(limits), Some(1024));
        assert_eq!(soft_limit_of_open_files(&limits.replace("1024", "unlimited")), None);
        assert_eq!(soft_limit_of_open_files(""), None);
    }
}
