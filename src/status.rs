//! What the proxy tells of itself: the answer on the status queue, and the worker that gives it.
//!
//! The answer has the form of `gearman_proxy.pl`, so that `check_gearman -q QUEUE -s check` and whatever graphs its
//! performance data keep working. The payload `table` is answered with a table for people.

mod backlog;
mod metricsfile;
mod table;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex::bytes::{Regex, RegexBuilder};

use crate::config::{Address, Server};
use crate::metrics::{ForwardMetrics, Metrics, State, Trouble};

pub use worker::StatusWorker;

/// How long after the last rejected job the status warns of them.
const REJECTS_WARN: Duration = Duration::from_secs(15 * 60);

/// The longest reason that is shown, bytes.
const MAX_REASON: usize = 80;

/// The longest `perfdatafilter`, and what a compiled one may take, bytes: anyone who can connect to the job server may send
/// one.
const MAX_FILTER: usize = 1 << 10;
const MAX_FILTER_SIZE: usize = 256 << 10;

/// The answer to `check`, to `check perfdatafilter=REGEX`, and to anything that is not understood.
fn check(metrics: &Metrics, payload: &str) -> String {
    let filter = match payload.split_once("perfdatafilter=").map(|(_, filter)| compiled(filter)).transpose() {
        Ok(filter) => filter,
        Err(reason) => return format!("3:UNKNOWN - {reason}"),
    };
    let mut values = performance(&metrics.forwards());
    if let Some(filter) = filter {
        values.retain(|name, _| filter.is_match(name.as_bytes()));
    }
    let Verdict { code, state, text, .. } = Verdict::of(metrics);
    let mut answer = format!("{code}:{state} - proxy version v{} running.{text}|", env!("CARGO_PKG_VERSION"));
    let (of_queues, of_all): (Vec<_>, Vec<_>) = values.iter().partition(|(name, _)| name.contains("::"));
    for (name, (value, unit)) in of_all.into_iter().chain(of_queues) {
        // Writing to a String can't fail.
        let _ = write!(answer, " '{name}'={value}{unit};;;");
    }
    answer
}

fn compiled(filter: &str) -> Result<Regex, String> {
    let filter = filter.split_whitespace().next().unwrap_or_default();
    if filter.len() > MAX_FILTER {
        return Err(format!("perfdatafilter is longer than {MAX_FILTER} bytes"));
    }
    let builder =
        RegexBuilder::new(filter).unicode(false).size_limit(MAX_FILTER_SIZE).dfa_size_limit(MAX_FILTER_SIZE).build();
    builder.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => String::from("perfdatafilter is too large"),
        _ => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("perfdatafilter is not a regular expression: {}", printable(reason))
        }
    })
}

/// How the proxy is, in the terms of a plugin.
struct Verdict {
    /// The plugin's exit status.
    code: u8,
    state: &'static str,
    /// What stands after `running.`: empty, or with a blank before it.
    text: String,
    forwards: usize,
    working: usize,
}

impl Verdict {
    fn of(metrics: &Metrics) -> Verdict {
        let forwards = metrics.forwards();
        let in_state = |state| forwards.iter().filter(|forward| forward.state() == state).count();
        let (working, connecting) = (in_state(State::Working), in_state(State::Connecting));
        let mut text = String::new();
        let failed = failed_servers(&forwards);
        if !failed.is_empty() {
            let servers: Vec<String> = failed.iter().map(|(server, reason)| format!("{server} ({reason})")).collect();
            let _ = write!(text, " {} failed: {}.", plural(failed.len(), "server"), servers.join(", "));
        }
        let backlog: u64 = forwards.iter().map(|forward| backlog_of(forward)).sum();
        if backlog > 0 {
            let _ = write!(text, " backlog contains {backlog} jobs.");
        }
        let rejects = forwards.iter().filter_map(|forward| Some((forward, forward.last_reject()?)));
        if let Some((forward, last)) = rejects.max_by_key(|(_, reject)| reject.at)
            && last.at.elapsed() < REJECTS_WARN
        {
            let rejected: u64 = forwards.iter().map(|forward| forward.rejected.get()).sum();
            let (queue, reason) = (label(&forward.config.source.queue), printable(&last.reason));
            let _ = write!(text, " {rejected} jobs rejected, last in {queue} ({reason}).");
        }
        if let Some(since) = metrics.configuration_wrong() {
            let _ = write!(text, " configuration wrong since {}.", utc(since));
        }
        let (code, state) = if !forwards.is_empty() && working + connecting == 0 {
            (2, "CRITICAL")
        } else if !text.is_empty() {
            (1, "WARNING")
        } else {
            (0, "OK")
        };
        if connecting > 0 {
            let _ = write!(text, " {} connecting.", plural(connecting, "forward"));
        }
        Verdict { code, state, text, forwards: forwards.len(), working }
    }

    /// How many forwards work.
    fn summary(&self) -> String {
        match self.working == self.forwards {
            true => format!("{} working", plural(self.forwards, "forward")),
            false => format!("{} of {} working", self.working, plural(self.forwards, "forward")),
        }
    }
}

/// One line for a service manager: how many forwards there are, and what is wrong with them.
pub fn summary(metrics: &Metrics) -> String {
    let verdict = Verdict::of(metrics);
    format!("{}.{}", verdict.summary(), verdict.text)
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Jobs that wait although a forward should take them.
fn backlog_of(forward: &ForwardMetrics) -> u64 {
    match forward.state() {
        State::Failed => forward.waiting().unwrap_or(0).saturating_add(forward.held() as u64),
        _ => 0,
    }
}

/// Each unavailable server with the reason that was there first, in order of `HOST:PORT`.
fn failed_servers(forwards: &[impl AsRef<ForwardMetrics>]) -> BTreeMap<String, String> {
    let mut first: BTreeMap<Server, Trouble> = BTreeMap::new();
    for (server, trouble) in forwards.iter().flat_map(|forward| forward.as_ref().troubles()) {
        let known = first.entry(server).or_insert_with(|| trouble.clone());
        if (trouble.since, &trouble.reason) < (known.since, &known.reason) {
            *known = trouble;
        }
    }
    first.into_iter().map(|(server, trouble)| (label(&server.to_string()), printable(&trouble.reason))).collect()
}

/// The performance data: name to value and unit, in byte order of the names.
fn performance(forwards: &[impl AsRef<ForwardMetrics>]) -> BTreeMap<String, (u64, &'static str)> {
    let forwards = || forwards.iter().map(AsRef::as_ref);
    let mut values = BTreeMap::new();
    let sources: BTreeSet<&Server> = forwards().map(|forward| &forward.config.source.server).collect();
    values.insert(String::from("server"), (sources.len() as u64, ""));
    values.insert(String::from("queues"), (forwards().count() as u64, ""));
    values.insert(String::from("backlog"), (forwards().map(backlog_of).sum(), ""));

    let mut count = |name: &str, value: u64| values.entry(label(name)).or_insert((0, "c")).0 += value;
    let mut servers_of: BTreeMap<&str, BTreeSet<&Server>> = BTreeMap::new();
    for Address { server, queue } in forwards().map(|forward| &forward.config.source) {
        servers_of.entry(queue).or_default().insert(server);
    }
    for total in ["bytes_in", "bytes_out", "total_errors", "total_jobs"] {
        count(total, 0);
    }
    for forward in forwards() {
        let source = &forward.config.source;
        let queue = &source.queue;
        let jobs = forward.jobs.get();
        count("bytes_in", forward.bytes_in.get());
        count("bytes_out", forward.bytes_out.get());
        count("total_errors", forward.errors.get());
        count("total_jobs", jobs);
        count(&format!("{queue}::bytes_out"), forward.bytes_out.get());
        count(&format!("{queue}::jobs"), jobs);
        count(&format!("{queue}::rejected"), forward.rejected.get());
        count(&format!("{queue}::expired"), forward.expired.get());
        if servers_of.get(queue.as_str()).is_some_and(|servers| servers.len() > 1) {
            count(&format!("{source}::jobs"), jobs);
        }
    }
    values
}

/// A name as a label of performance data and as a cell of the table. What ends a label, a value or the text, what a terminal
/// obeys and what misleads eyes (U+202E) is written as `%` and two hexadecimal digits a byte.
fn label(name: &str) -> String {
    let mut label = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '\'' | '"' | '=' | '|' | ';' | '\\' => {
                let _ = write!(label, "%{:02X}", u32::from(character));
            }
            ' '..='~' => label.push(character),
            _ if character.is_alphanumeric() => label.push(character),
            _ => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(label, "%{byte:02X}");
                }
            }
        }
    }
    label
}

/// A reason as it may stand in the answer: printable ASCII without `|`, `;`, quotes and brackets, 80 bytes at most.
fn printable(reason: &str) -> String {
    let shown = |character| match character {
        '|' | ';' | '\'' | '"' | '`' | '\\' | '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' => '_',
        ' '..='~' => character,
        '\n' | '\r' | '\t' => ' ',
        _ => '?',
    };
    reason.chars().map(shown).take(MAX_REASON).collect()
}

/// `2026-11-24 15:32:03Z`: no offset of local time can be read once there are threads.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day at their end (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}
