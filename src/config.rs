//! What the rest of the program sees of a configuration: [`Config`] and its [`ForwardConfig`]s.
//!
//! The way of a configuration: [`source`] finds the files and cuts them into lines that know their place, [`parse`]
//! turns lines into drafts by the table of [`keys`], with [`variables`] expanded, [`check`] looks at all of them together
//! and makes the [`Config`], or every [`error`] there is; [`address`] reads `HOST:PORT/QUEUE`, [`pattern`] what stands for
//! many queues.

pub mod address;
mod check;
pub mod error;
pub mod keys;
mod parse;
pub mod pattern;
mod source;
mod variables;

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

pub use address::{Address, Server};
pub use error::{ConfigErrors, Place};
pub use pattern::{Found, QueuePattern};

use crate::stages::Stages;
use error::escaped;

/// Larger jobs than this are failed unless the configuration says otherwise, bytes.
pub const DEFAULT_MAX_JOB_SIZE: usize = 64 << 20;

/// Jobs that an asynchronous forward holds unacknowledged at most, unless its configuration says otherwise.
const DEFAULT_PREFETCH: usize = 4096;

/// Descriptors beside those of the forwards: the standard three, the log, the status queue's connection, and some
/// for what comes and goes, such as name look-ups and the connections that are being replaced.
const OTHER_OPEN_FILES: usize = 3 + 1 + 1 + 16;

/// A cell of the table is cut to this many characters.
const MAX_CELL: usize = 120;

/// A whole, valid configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub logfile: LogTarget,
    /// 0 info, 1 debug, 2 trace.
    pub debug: u8,
    pub pidfile: Option<PathBuf>,
    /// A job with more data than this is failed, bytes.
    pub max_job_size: usize,
    pub statusqueue: Option<Address>,
    pub metricsfile: Option<PathBuf>,
    /// In the order of the files.
    pub forwards: Vec<ForwardConfig>,
    /// In the order of the files: of two that match a queue the first makes the forward.
    pub patterns: Vec<QueuePattern>,
    /// What is legal but hardly meant: `FILE:LINE: ...`, a line each.
    pub warnings: Vec<String>,
}

/// Reads a configuration from files, folders and patterns in the order given; from [`default_path`] if there are none.
///
/// A folder stands for its `*.cfg` and `*.conf` in order of name, a pattern for what it matches. A file that is named
/// more than once is read once.
///
/// # Errors
/// Everything that is wrong, found in one pass.
pub fn load(paths: &[PathBuf]) -> Result<Config, ConfigErrors> {
    let default = [default_path()];
    let named = if paths.is_empty() { &default } else { paths };
    let mut seen = HashSet::new();
    let mut read = |path: &PathBuf| {
        let read = |found: Result<PathBuf, String>| found.and_then(|file| source::read(&file, &mut seen)).transpose();
        source::find(path).into_iter().filter_map(read).collect::<Vec<_>>()
    };
    let files = match perl_configuration() {
        Some(old) if paths.is_empty() && !default[0].exists() => vec![Err(source::not_converted(&default[0], &old))],
        _ => named.iter().flat_map(&mut read).collect(),
    };
    let mut parser = parse::Parser::default();
    parser.config.max_job_size = DEFAULT_MAX_JOB_SIZE;
    for file in &files {
        match file {
            Ok((lines, world_readable)) => parser.file(lines, *world_readable),
            Err(error) => parser.report.error(error.clone()),
        }
    }
    parser.finish(named)
}

/// What is read where the command line names no configuration: `$OMD_ROOT/etc/mod-gearman/proxy.conf` on an OMD site,
/// else `/etc/gearman-proxy/proxy.conf`.
pub fn default_path() -> PathBuf {
    match folder_in("OMD_ROOT") {
        Some(root) => root.join("etc/mod-gearman/proxy.conf"),
        None => PathBuf::from("/etc/gearman-proxy/proxy.conf"),
    }
}

/// A configuration of gearman_proxy.pl at one of the places where it, and OMD's init script, look for one.
fn perl_configuration() -> Option<PathBuf> {
    let omd = folder_in("OMD_ROOT").map(|root| root.join("etc/mod-gearman"));
    let mut places = vec![PathBuf::from("/etc/mod-gearman/gearman_proxy.cfg")];
    places.extend(omd.iter().flat_map(|omd| [omd.join("gearman_proxy.cfg"), omd.join("proxy.cfg")]));
    places.extend(folder_in("HOME").map(|home| home.join(".gearman_proxy")));
    places.into_iter().rev().find(|place| place.is_file())
}

fn folder_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

impl Config {
    /// The forwards and patterns as a table with aligned columns, and the status queue; without passwords.
    pub fn table(&self) -> String {
        let heads = "SOURCE/DESTINATION/STAGES/MODE/WORKER/PREFETCH/PRIORITY/TIMEOUT/MAX AGE/REJECT QUEUE";
        let mut rows: Vec<Vec<String>> = vec![heads.split('/').map(str::to_owned).collect()];
        let patterns = self.patterns.iter().map(|pattern| &pattern.template);
        rows.extend(
            self.forwards.iter().chain(patterns).map(|forward| forward.row().map(|cell| cut(&escaped(&cell))).into()),
        );
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        let status = self.statusqueue.as_ref().map(|queue| format!("status queue: {}", escaped(&queue.to_string())));
        format!("{}\n{}\n", rows.iter().map(line).collect::<String>(), status.as_deref().unwrap_or("no status queue"))
    }

    /// A warning if this process may not open as many files and sockets as are open at once when every forward is at
    /// work, with both numbers. What patterns will find is not known.
    pub fn open_files_warning(&self) -> Option<String> {
        let limit = soft_limit_of_open_files(&fs::read_to_string("/proc/self/limits").ok()?)?;
        let of_forward = |forward: &ForwardConfig| 1 + forward.workers + usize::from(forward.reject_queue.is_some());
        let needed = OTHER_OPEN_FILES + self.forwards.iter().map(of_forward).sum::<usize>();
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

/// Where the log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogTarget {
    #[default]
    Stdout,
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

impl LogTarget {
    /// `stdout` or `-`, `stderr`, else a file's path.
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
    /// The line that defines it.
    pub place: Place,
    pub source: Address,
    /// Never empty; one is used at a time, the first to begin with.
    pub destinations: Vec<Address>,
    pub stages: Stages,
    /// Whether jobs are submitted in the background; if not, the result is waited for and returned.
    pub asynchronous: bool,
    /// Submitters; for a synchronous forward, the jobs under way at once.
    pub workers: usize,
    /// Jobs held unacknowledged at most; for a synchronous forward the same as `workers`.
    pub prefetch: usize,
    pub prefetch_is_explicit: bool,
    /// At the destination.
    pub priority: Priority,
    /// How long a synchronous job's result may take.
    pub timeout: Option<Duration>,
    /// Older jobs are not delivered.
    pub max_age: Option<Duration>,
    /// Where undeliverable jobs go.
    pub reject_queue: Option<Address>,
}

impl ForwardConfig {
    /// With every option at its default, and from no file.
    pub fn between(source: Address, destination: Address) -> ForwardConfig {
        ForwardConfig {
            place: Place { file: std::sync::Arc::default(), line: 0 },
            source,
            destinations: vec![destination],
            stages: Stages::default(),
            asynchronous: true,
            workers: 1,
            prefetch: DEFAULT_PREFETCH,
            prefetch_is_explicit: false,
            priority: Priority::Normal,
            timeout: None,
            max_age: None,
            reject_queue: None,
        }
    }

    /// The destination that is used first.
    pub fn first_destination(&self) -> &Address {
        // Never empty: the source only spares a panic.
        self.destinations.first().unwrap_or(&self.source)
    }

    /// All but its place.
    fn definition(&self) -> impl PartialEq + '_ {
        let times = (self.timeout, self.max_age);
        let numbers = (self.asynchronous, self.workers, self.prefetch, self.prefetch_is_explicit, self.priority);
        (&self.source, &self.destinations, &self.stages, numbers, times, &self.reject_queue)
    }

    /// Its cells in the table.
    fn row(&self) -> [String; 10] {
        let or_none = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
        let seconds = |time: Option<Duration>| or_none(time.map(|time| format!("{} s", time.as_secs())));
        let destinations: Vec<String> = self.destinations.iter().map(Address::to_string).collect();
        let Stages { decrypt, encrypt, data_callbacks, uniq_callbacks, .. } = &self.stages;
        let stages = [
            (usize::from(decrypt.is_some()), "decrypt"),
            (uniq_callbacks.len(), "uniq_callback"),
            (data_callbacks.len(), "data_callback"),
            (usize::from(encrypt.is_some()), "encrypt"),
        ];
        let stages = stages.into_iter().filter(|(count, _)| *count > 0);
        let stages: Vec<String> =
            stages.map(|(count, name)| if count == 1 { name.to_owned() } else { format!("{count} {name}") }).collect();
        [
            self.source.to_string(),
            destinations.join(", "),
            or_none(Some(stages.join(", "))),
            if self.asynchronous { "async" } else { "sync" }.to_owned(),
            self.workers.to_string(),
            self.prefetch.to_string(),
            format!("{:?}", self.priority).to_lowercase(),
            seconds(self.timeout),
            seconds(self.max_age),
            or_none(self.reject_queue.as_ref().map(Address::to_string)),
        ]
    }
}

/// Without its middle if it is long: names often differ at their ends.
fn cut(text: &str) -> String {
    let length = text.chars().count();
    if length <= MAX_CELL {
        return text.to_owned();
    }
    let half = (MAX_CELL - 3) / 2;
    let (start, end): (String, String) =
        (text.chars().take(half).collect(), text.chars().skip(length - half).collect());
    format!("{start}...{end}")
}

impl PartialEq for ForwardConfig {
    fn eq(&self, other: &Self) -> bool {
        self.definition() == other.definition()
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
    /// As the key's words name them.
    const ALL: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::High];
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
