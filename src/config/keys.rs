//! The keys of the configuration: one table, for the parser and for the documentation that is made from it.

use std::ops::RangeInclusive;

/// A key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `logfile`
    Logfile,
    /// `debug`
    Debug,
    /// `pidfile`
    Pidfile,
    /// `max_job_size`
    MaxJobSize,
    /// `statusqueue`
    StatusQueue,
    /// `decrypt`
    Decrypt,
    /// `encrypt`
    Encrypt,
    /// `data_callback`
    DataCallback,
    /// `uniq_callback`
    UniqCallback,
    /// `async`
    Async,
    /// `worker`
    Worker,
    /// `prefetch`
    Prefetch,
    /// `priority`
    Priority,
    /// `timeout`
    Timeout,
    /// `reject_queue`
    RejectQueue,
}

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Anywhere: it is the whole proxy's.
    Global,
    /// Under any forward.
    Forward,
    /// Under a forward with `async = 1`, the default.
    Asynchronous,
    /// Under a forward with `async = 0`.
    Synchronous,
}

/// What the documentation says of a key.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// As it is written.
    pub name: &'static str,
    /// Where it may stand.
    pub scope: Scope,
    /// The values it takes.
    pub values: &'static str,
    /// The value it has where it isn't given; empty where there is none.
    pub default: &'static str,
    /// What it does: a sentence or more, in plain text.
    pub meaning: &'static str,
}

/// What `debug` takes.
pub const DEBUG: RangeInclusive<u64> = 0..=2;
/// What `max_job_size` takes, bytes: a packet's length has 32 bits.
pub const MAX_JOB_SIZE: RangeInclusive<u64> = 1..=u32::MAX as u64;
/// What `worker` takes.
pub const WORKER: RangeInclusive<u64> = 1..=1000;
/// What `prefetch` takes.
pub const PREFETCH: RangeInclusive<u64> = 1..=65535;
/// What `timeout` takes, seconds; 0 is for ever, the upper end a year.
pub const TIMEOUT: RangeInclusive<u64> = 0..=31_536_000;

/// All keys, in the order of the documentation.
pub static KEYS: [Entry; 15] = [
    Entry {
        key: Key::Logfile,
        name: "logfile",
        scope: Scope::Global,
        values: "stdout, stderr or a path",
        default: "stdout",
        meaning: "Where the log goes. A file is appended to, and opened again at SIGHUP. \
                  The command line's --logfile wins.",
    },
    Entry {
        key: Key::Debug,
        name: "debug",
        scope: Scope::Global,
        values: "0, 1 or 2",
        default: "0",
        meaning: "How much is logged: 0 what changes, 1 debug, 2 trace. Only trace shows the data of jobs. \
                  The command line's --debug, --verbose and --quiet win.",
    },
    Entry {
        key: Key::Pidfile,
        name: "pidfile",
        scope: Scope::Global,
        values: "a path",
        default: "",
        meaning: "Where the process id is written at start; the file is removed at the end. \
                  The command line's --pidfile wins.",
    },
    Entry {
        key: Key::MaxJobSize,
        name: "max_job_size",
        scope: Scope::Global,
        values: "bytes, or with K, M or G: 1 to 4294967295 bytes",
        default: "64M",
        meaning: "A job with more data than this is failed, with a line in the log.",
    },
    Entry {
        key: Key::StatusQueue,
        name: "statusqueue",
        scope: Scope::Global,
        values: "an address",
        default: "",
        meaning: "The queue on which the proxy answers check_gearman. No forward may take from it.",
    },
    Entry {
        key: Key::Decrypt,
        name: "decrypt",
        scope: Scope::Forward,
        values: "a password or file:PATH",
        default: "",
        meaning: "The Mod-Gearman password of the source: jobs are decrypted with it. In a password file the line \
                  ends at its end are cut, nothing else. A password that begins with file: must stand in a file.",
    },
    Entry {
        key: Key::Encrypt,
        name: "encrypt",
        scope: Scope::Forward,
        values: "a password or file:PATH",
        default: "",
        meaning: "The Mod-Gearman password of the destination: jobs are encrypted with it.",
    },
    Entry {
        key: Key::DataCallback,
        name: "data_callback",
        scope: Scope::Forward,
        values: "s/PATTERN/REPLACEMENT/FLAGS, flags g, i, m, s and x",
        default: "",
        meaning: "Changes the readable text of each job, as the same line of Perl would. May be repeated; the \
                  substitutions are applied in order.",
    },
    Entry {
        key: Key::UniqCallback,
        name: "uniq_callback",
        scope: Scope::Asynchronous,
        values: "s/PATTERN/REPLACEMENT/FLAGS, flags g, i, m, s and x",
        default: "",
        meaning: "Makes the job's unique id at the destination: applied to a copy of the readable text as it was \
                  before data_callback; the outcome is the id. May be repeated. Without a match, or with an outcome that \
                  is empty or longer than 63 bytes, the job keeps the id it would have without the option.",
    },
    Entry {
        key: Key::Async,
        name: "async",
        scope: Scope::Forward,
        values: "1 or 0",
        default: "1",
        meaning: "1 submits jobs in the background; 0 waits for the destination's result and returns it.",
    },
    Entry {
        key: Key::Worker,
        name: "worker",
        scope: Scope::Forward,
        values: "1 to 1000",
        default: "1",
        meaning: "Submitters, each with a connection to the destination; for a synchronous forward, the jobs under \
                  way at once. Order is kept with one only.",
    },
    Entry {
        key: Key::Prefetch,
        name: "prefetch",
        scope: Scope::Asynchronous,
        values: "1 to 65535",
        default: "4096",
        meaning: "Jobs held at most that the destination has not confirmed. A synchronous forward holds as many as it \
                  has workers.",
    },
    Entry {
        key: Key::Priority,
        name: "priority",
        scope: Scope::Forward,
        values: "low, normal or high",
        default: "normal",
        meaning: "The priority of the jobs at the destination.",
    },
    Entry {
        key: Key::Timeout,
        name: "timeout",
        scope: Scope::Synchronous,
        values: "0 to 31536000 seconds",
        default: "0",
        meaning: "How long a result may take; then the job is reported as failed. 0 waits for ever.",
    },
    Entry {
        key: Key::RejectQueue,
        name: "reject_queue",
        scope: Scope::Forward,
        values: "an address, or a queue name on the source's server",
        default: "",
        meaning: "Where undeliverable jobs go, as they came. Without it they are failed.",
    },
];

impl Key {
    /// What the documentation says of it.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        // The table has the keys in the order of the enum: see the test.
        &KEYS[self as usize]
    }

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Whether it may be given more than once in the same place.
    #[must_use]
    pub fn may_repeat(self) -> bool {
        self.takes_substitution()
    }

    pub(super) fn takes_substitution(self) -> bool {
        matches!(self, Key::DataCallback | Key::UniqCallback)
    }
}

/// The key of this name.
#[must_use]
pub fn find(name: &str) -> Option<Key> {
    KEYS.iter().find(|entry| entry.name == name).map(|entry| entry.key)
}

/// The key whose name is most like this one, if any is.
#[must_use]
pub fn nearest(name: &str) -> Option<Key> {
    let name = name.to_lowercase();
    let length = name.chars().count();
    KEYS.iter()
        .map(|entry| (distance(entry.name, &name), entry))
        .filter(|(distance, entry)| *distance <= entry.name.len().max(length) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, entry)| entry.key)
}

/// How many letters have to be inserted, removed, replaced or swapped with their neighbour to make one word of the
/// other; words over 64 letters are like no other.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(65).collect();
    let b: Vec<char> = b.chars().take(65).collect();
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_key_at_its_place() {
        for (index, entry) in KEYS.iter().enumerate() {
            assert_eq!(entry.key as usize, index, "{}", entry.name);
            assert_eq!(find(entry.name), Some(entry.key));
            assert_eq!(entry.key.name(), entry.name);
        }
        assert_eq!(Key::RejectQueue as usize, KEYS.len() - 1);
    }

    #[test]
    fn the_table_names_the_ranges_that_hold() {
        for (key, range) in
            [(Key::MaxJobSize, MAX_JOB_SIZE), (Key::Worker, WORKER), (Key::Prefetch, PREFETCH), (Key::Timeout, TIMEOUT)]
        {
            let text = format!("{} to {}", range.start(), range.end());
            assert!(key.entry().values.contains(&text), "{} says {}", key.name(), key.entry().values);
        }
        assert_eq!(Key::Debug.entry().values, "0, 1 or 2");
        assert_eq!(DEBUG, 0..=2);
        assert_eq!(Key::Prefetch.entry().default, crate::config::DEFAULT_PREFETCH.to_string());
        assert_eq!(Key::MaxJobSize.entry().default, format!("{}M", crate::config::DEFAULT_MAX_JOB_SIZE >> 20));
    }

    #[test]
    fn a_slip_finds_its_key() {
        for (written, meant) in [
            ("workers", Key::Worker),
            ("Logfile", Key::Logfile),
            ("statusQueue", Key::StatusQueue),
            ("status_queue", Key::StatusQueue),
            ("decript", Key::Decrypt),
            ("encyrpt", Key::Encrypt),
            ("asnyc", Key::Async),
            ("datacallback", Key::DataCallback),
            ("max-job-size", Key::MaxJobSize),
            ("rejectqueue", Key::RejectQueue),
            ("timeuot", Key::Timeout),
            ("log_file", Key::Logfile),
        ] {
            assert_eq!(nearest(written), Some(meant), "{written}");
        }
        for unlike in ["", "x", "include", "remote", "queue", &"worker".repeat(1000)] {
            assert_eq!(nearest(unlike), None, "{unlike}");
        }
    }

    #[test]
    fn a_swap_is_one_step() {
        assert_eq!(distance("async", "asnyc"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
