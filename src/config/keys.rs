//! The keys of the configuration: one table, for the parser and for the documentation that is made from it.

use std::ops::RangeInclusive;

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Anywhere: it applies to the whole proxy.
    Global,
    /// Under any forward.
    Forward,
    /// Under a forward with `async = 1`, the default.
    Asynchronous,
    /// Under a forward with `async = 0`.
    Synchronous,
}

/// How a value is read.
#[derive(Debug)]
pub enum Kind {
    Path,
    Address,
    /// An address, or a queue name alone.
    Queue,
    /// The password itself, or `file:PATH`.
    Password,
    Substitution,
    /// Bytes, also with K, M or G.
    Size(RangeInclusive<usize>),
    Number(RangeInclusive<usize>),
    /// One of these; its position is the value.
    Words(&'static [&'static str]),
}

/// What the parser and the documentation know of a key.
#[derive(Debug)]
pub struct Entry {
    pub key: Key,
    /// As it is written.
    pub name: &'static str,
    pub scope: Scope,
    pub(super) kind: Kind,
    /// The values it takes, in words.
    pub values: &'static str,
    /// The value of a key that is not given; empty if there is none.
    pub default: &'static str,
    /// What it does: a sentence or more, in plain text.
    pub meaning: &'static str,
}

/// Writes the keys once, as the enum and as the table: `Key scope kind, name = values (default): meaning`.
macro_rules! keys {
    ($($key:ident $scope:ident $kind:expr, $name:literal = $values:literal ($default:literal): $meaning:literal)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Key { $($key),+ }

        /// All keys, in the order of the documentation, which is that of the enum.
        pub static KEYS: [Entry; [$($name),+].len()] = [$(Entry {
            key: Key::$key, name: $name, scope: Scope::$scope, kind: $kind, values: $values, default: $default, meaning: $meaning,
        }),+];
    };
}

keys! {
    Logfile Global Kind::Path, "logfile" = "stdout, stderr or a path" ("stdout"):
        "Where the log goes. A file is appended to, and reopened at SIGHUP. The command line's --logfile wins."
    Debug Global Kind::Words(&["0", "1", "2"]), "debug" = "0, 1 or 2" ("0"):
        "How much is logged: 0 info, 1 debug, 2 trace. Only trace shows the data of jobs. The command line's --debug, \
         --verbose and --quiet win."
    Pidfile Global Kind::Path, "pidfile" = "a path" (""):
        "Where the process id is written at start; the file is removed at the end. The command line's --pidfile wins."
    MaxJobSize Global Kind::Size(1..=1 << 30), "max_job_size" = "bytes, or with K, M or G: 1 byte to 1G" ("64M"):
        "A job that comes with more data than this is failed, with a line in the log. A job that its stages make larger \
         is undeliverable."
    StatusQueue Global Kind::Address, "statusqueue" = "an address" (""):
        "The queue on which the proxy answers check_gearman. No forward may take from it."
    MetricsFile Global Kind::Path, "metricsfile" = "a path" (""):
        "Where metrics are written every 15 seconds as OpenMetrics text, e.g. in the folder of node_exporter's textfile \
         collector. The file is replaced as a whole."
    Decrypt Forward Kind::Password, "decrypt" = "a password or file:PATH" (""):
        "The Mod-Gearman password of the source: jobs are decrypted with it. Line ends at the end of a password file are \
         cut, nothing else. A password that begins with file: must stand in a file."
    Encrypt Forward Kind::Password, "encrypt" = "a password or file:PATH" (""):
        "The Mod-Gearman password of the destination: jobs are encrypted with it."
    DataCallback Forward Kind::Substitution,
        "data_callback" = "s/PATTERN/REPLACEMENT/FLAGS, flags g, i, m, s and x, with an optional if /PATTERN/ or unless /PATTERN/" (""):
        "Changes the readable text of each job, as the same line of Perl would. With a guard, only where the text matches \
         (if) or does not match (unless). May be repeated; the substitutions are applied in order."
    UniqCallback Asynchronous Kind::Substitution,
        "uniq_callback" = "s/PATTERN/REPLACEMENT/FLAGS, flags g, i, m, s and x, with an optional if /PATTERN/ or unless /PATTERN/" (""):
        "Makes the job's unique id at the destination: applied to a copy of the readable text as it was before \
         data_callback; the outcome is the id. May be repeated. Without a match, or with an outcome that is empty, has a \
         NUL or is longer than 63 bytes, the job keeps the id it would have without the option."
    Async Forward Kind::Words(&["0", "1"]), "async" = "1 or 0" ("1"):
        "1 submits jobs in the background; 0 waits for the destination's result and returns it. Use 0 where a client \
         waits for the result."
    Worker Forward Kind::Number(1..=1000), "worker" = "1 to 1000" ("1"):
        "Submitters, each with a connection to the destination; for a synchronous forward, the jobs under way at once. \
         Jobs keep their order with one submitter only."
    Prefetch Asynchronous Kind::Number(1..=65535), "prefetch" = "1 to 65535" ("4096"):
        "Jobs that are held at most without an acknowledgement. A synchronous forward holds as many as it has workers."
    Priority Forward Kind::Words(&["low", "normal", "high"]), "priority" = "low, normal or high" ("normal"):
        "The priority of the jobs at the destination."
    Timeout Synchronous Kind::Number(0..=31_536_000), "timeout" = "0 to 31536000 seconds" ("0"):
        "How long a result may take; then the job is reported as failed. 0 waits forever."
    MaxAge Forward Kind::Number(0..=31_536_000), "max_age" = "0 to 31536000 seconds" ("0"):
        "A Mod-Gearman job that is older is not delivered but acknowledged and counted as expired; on a synchronous \
         forward the client gets a failure. The age is that of core_time in a check, of finish_time or start_time in a \
         result. Text without these fields never expires. 0 delivers jobs of any age."
    RejectQueue Forward Kind::Queue, "reject_queue" = "an address, or a queue name on the source's server" (""):
        "Where undeliverable jobs go, as they came. Without it they are failed."
}

impl Key {
    pub fn entry(self) -> &'static Entry {
        &KEYS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.entry().name
    }
}

/// The key of this name.
pub fn find(name: &str) -> Option<Key> {
    KEYS.iter().find(|entry| entry.name == name).map(|entry| entry.key)
}

/// The name that is most like this word, if any is.
pub(crate) fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    names
        .map(|name| (distance(name, &word), name))
        .filter(|(distance, name)| *distance <= name.len().max(length) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters have to be inserted, removed, replaced or swapped with their neighbour to make one word of the
/// other; words over 64 letters are like no other.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(65).collect();
    let b: Vec<char> = b.chars().take(65).collect();
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    // Of the first letters of each, as many as row and column tell.
    let mut steps = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                steps[i][j] = i + j;
                continue;
            }
            let replaced = steps[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            steps[i][j] = replaced.min(steps[i - 1][j] + 1).min(steps[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                steps[i][j] = steps[i][j].min(steps[i - 2][j - 2] + 1);
            }
        }
    }
    steps[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_the_values_that_are_taken() {
        for Entry { key, name, kind, values, default, .. } in &KEYS {
            assert_eq!(find(name), Some(*key));
            assert_eq!(key.name(), *name);
            match kind {
                Kind::Number(range) => {
                    assert!(values.starts_with(&format!("{} to {}", range.start(), range.end())), "{name}: {values}");
                    assert!(range.contains(&default.parse().unwrap()), "{name}: {default}");
                }
                Kind::Words(words) => {
                    assert!(words.iter().all(|word| values.contains(word)), "{name}: {values}");
                    assert!(words.contains(default), "{name}: {default}");
                }
                _ => {}
            }
        }
        assert_eq!(Key::Prefetch.entry().default, crate::config::DEFAULT_PREFETCH.to_string());
        assert_eq!(Key::MaxJobSize.entry().default, format!("{}M", crate::config::DEFAULT_MAX_JOB_SIZE >> 20));
    }

    #[test]
    fn a_slip_finds_its_key() {
        let nearest = |word: &str| super::nearest(word, KEYS.iter().map(|entry| entry.name));
        for (written, meant) in [
            ("workers", "worker"),
            ("Logfile", "logfile"),
            ("status_queue", "statusqueue"),
            ("decript", "decrypt"),
            ("encyrpt", "encrypt"),
            ("asnyc", "async"),
            ("datacallback", "data_callback"),
            ("max-job-size", "max_job_size"),
            ("maxage", "max_age"),
            ("timeuot", "timeout"),
            ("log_file", "logfile"),
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
