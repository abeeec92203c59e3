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
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regex::bytes::{Regex, RegexBuilder};

use crate::config::Server;
use crate::metrics::{Counts, ForwardMetrics, Metrics, State, Trouble, Troubles};

pub use worker::StatusWorker;

/// How long after the last rejected job the status warns of them.
const REJECTS_WARN: Duration = Duration::from_secs(15 * 60);

/// The longest reason that is shown, bytes.
const MAX_REASON: usize = 80;

/// The longest `perfdatafilter`, and what a compiled one may take, bytes: anyone who can connect to the job server may send
/// one.
const MAX_FILTER: usize = 1 << 10;
const MAX_FILTER_SIZE: usize = 256 << 10;

/// What is counted of each forward: name, type and explanation in the metrics file, names in the performance data (of all
/// forwards in sum, and with `::` behind the queue's), and the value.
type Figure = (&'static str, &'static str, &'static str, &'static [&'static str], fn(&Counts) -> Option<f64>);

const FIGURES: [Figure; 13] = [
    ("jobs_total", "counter", "Jobs delivered.", &["total_jobs", "::jobs"], |c| Some(c.jobs as f64)),
    ("received_bytes_total", "counter", "Data of these as it came.", &["bytes_in"], |c| Some(c.bytes_in as f64)),
    ("sent_bytes_total", "counter", "Data of these as it went.", SENT, |c| Some(c.bytes_out as f64)),
    ("rejected_jobs_total", "counter", "Undeliverable jobs.", &["::rejected"], |c| Some(c.rejected as f64)),
    ("failed_jobs_total", "counter", "Jobs rejected or failed.", &["total_errors"], |c| Some(c.errors as f64)),
    ("expired_jobs_total", "counter", "Jobs older than max_age, dropped.", &["::expired"], |c| Some(c.expired as f64)),
    ("sessions_total", "counter", "Times that both servers were connected.", &[], |c| Some(c.sessions as f64)),
    ("held_jobs", "gauge", "Jobs taken and not yet acknowledged.", &[], |c| Some(c.held as f64)),
    ("oldest_held_seconds", "gauge", "Age of the oldest held job.", &[], |c| seconds(c.oldest_held).or(Some(0.0))),
    ("since_delivery_seconds", "gauge", "Time since the last delivery.", &[], |c| seconds(c.delivered)),
    ("waiting_jobs", "gauge", "Jobs waiting at the source.", &[], |c| Some(c.waiting? as f64)),
    ("destination_waiting_jobs", "gauge", "The same there.", &[], |c| Some(c.waiting_there? as f64)),
    ("destination_in_use", "gauge", "Its place in the configuration, from 0.", &[], |c| Some(c.destination as f64)),
];

const SENT: &[&str] = &["bytes_out", "::bytes_out"];

fn seconds(since: Option<Instant>) -> Option<f64> {
    since.map(|since| since.elapsed().as_secs_f64())
}

/// The answer to `check`, to `check perfdatafilter=REGEX`, and to anything that is not understood.
fn check(metrics: &Metrics, payload: &str) -> String {
    let filter = match payload.split_once("perfdatafilter=").map(|(_, filter)| compiled(filter)).transpose() {
        Ok(filter) => filter,
        Err(reason) => return format!("3:UNKNOWN - {reason}"),
    };
    let verdict = Verdict::of(metrics);
    let (code, state, text) = (verdict.code, verdict.state, verdict.text());
    let mut answer = format!("{code}:{state} - proxy version v{} running.{text}|", env!("CARGO_PKG_VERSION"));
    for ((_, name), (value, unit)) in performance(&metrics.forwards(), verdict.backlog) {
        if filter.as_ref().is_none_or(|filter| filter.is_match(name.as_bytes())) {
            // Writing to a String can't fail.
            let _ = write!(answer, " '{name}'={value}{unit};;;");
        }
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
    /// What there is to tell, in sentences without a dot.
    sentences: Vec<String>,
    backlog: u64,
    forwards: usize,
    working: usize,
}

impl Verdict {
    fn of(metrics: &Metrics) -> Verdict {
        let forwards = metrics.forwards();
        // Looked at once, so that an answer does not contradict itself.
        let states: Vec<State> = forwards.iter().map(|forward| forward.state()).collect();
        let in_state = |state| states.iter().filter(|&&of| of == state).count();
        let (working, connecting) = (in_state(State::Working), in_state(State::Connecting));
        let mut sentences = Vec::new();
        let pattern_troubles = metrics.pattern_troubles();
        let failed = failed_servers(&forwards, &pattern_troubles);
        if !failed.is_empty() {
            sentences.push(format!("{} failed: {}", plural(failed.len(), "server"), failed.join(", ")));
        }
        let failed = forwards.iter().zip(&states).filter(|(_, state)| **state == State::Failed);
        let backlog: u64 = failed.map(|(forward, _)| backlog_of(&forward.counts.lock())).sum();
        if backlog > 0 {
            sentences.push(format!("backlog contains {backlog} jobs"));
        }
        let rejects = forwards.iter().filter_map(|forward| {
            let last = forward.counts.lock().last_reject.clone()?;
            Some((last.at, last.reason, &forward.config.source.queue))
        });
        if let Some((at, reason, queue)) = rejects.max()
            && at.elapsed() < REJECTS_WARN
        {
            let rejected: u64 = forwards.iter().map(|forward| forward.counts.lock().rejected).sum();
            sentences.push(format!("{rejected} jobs rejected, last in {} ({})", label(queue), printable(&reason)));
        }
        sentences.extend(metrics.pattern_errors().iter().map(|error| label(error)));
        sentences
            .extend(metrics.configuration_wrong().map(|since| format!("configuration wrong since {}", utc(since))));
        let none_expected = forwards.is_empty() && pattern_troubles.is_empty();
        let (code, state) = if working + connecting == 0 && !none_expected {
            (2, "CRITICAL")
        } else if !sentences.is_empty() {
            (1, "WARNING")
        } else {
            (0, "OK")
        };
        if connecting > 0 {
            sentences.push(format!("{} connecting", plural(connecting, "forward")));
        }
        Verdict { code, state, sentences, backlog, forwards: forwards.len(), working }
    }

    /// The sentences, each with a blank before it.
    fn text(&self) -> String {
        self.sentences.iter().map(|sentence| format!(" {sentence}.")).collect()
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
    format!("{}.{}", verdict.summary(), verdict.text())
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Jobs that wait although a forward, which has failed, should take them.
fn backlog_of(failed: &Counts) -> u64 {
    failed.waiting.unwrap_or(0).saturating_add(failed.held as u64)
}

/// Each unavailable server with the reason that was there first, in order of `HOST:PORT`.
fn failed_servers(forwards: &[Arc<ForwardMetrics>], pattern_troubles: &Troubles) -> Vec<String> {
    let mut first = pattern_troubles.clone();
    for (server, trouble) in forwards.iter().flat_map(|forward| forward.troubles()) {
        let known = first.entry(server).or_insert_with(|| trouble.clone());
        if (trouble.since, &trouble.reason) < (known.since, &known.reason) {
            *known = trouble;
        }
    }
    let told = |(server, trouble): (&Server, &Trouble)| {
        format!("{} ({})", label(&server.to_string()), printable(&trouble.reason))
    };
    let mut failed: Vec<String> = first.iter().map(told).collect();
    failed.sort();
    failed
}

/// The performance data: whether it is of one queue, and the name, to value and unit; in this order, names by their bytes.
fn performance(forwards: &[Arc<ForwardMetrics>], backlog: u64) -> BTreeMap<(bool, String), (f64, &'static str)> {
    let servers: BTreeSet<&Server> = forwards.iter().map(|forward| &forward.config.source.server).collect();
    let all = [("server", servers.len() as f64), ("queues", forwards.len() as f64), ("backlog", backlog as f64)];
    let mut values = BTreeMap::from(all.map(|(name, value)| ((false, name.to_owned()), (value, ""))));

    let mut count = |queue: &str, name: &str, value: f64| {
        let of_queue = name.starts_with("::");
        let name = if of_queue { label(queue) + name } else { name.to_owned() };
        values.entry((of_queue, name)).or_insert((0.0, "c")).0 += value;
    };
    let mut forwards_of: BTreeMap<&str, usize> = BTreeMap::new();
    for forward in forwards {
        *forwards_of.entry(&forward.config.source.queue).or_default() += 1;
    }
    for (.., names, value) in FIGURES {
        for name in names {
            // Those of all are there without a forward too.
            if !name.starts_with("::") {
                count("", name, 0.0);
            }
            for forward in forwards {
                count(&forward.config.source.queue, name, value(&forward.counts.lock()).unwrap_or(0.0));
            }
        }
    }
    for forward in forwards {
        let source = &forward.config.source;
        if forwards_of.get(source.queue.as_str()).is_some_and(|&forwards| forwards > 1) {
            count(&source.to_string(), "::jobs", forward.counts.lock().jobs as f64);
        }
    }
    values
}

/// A name as a label of performance data and as a cell of the table. What ends a label, a value or the text, what a terminal
/// obeys and what misleads eyes (U+202E) is written as `%` and two hexadecimal digits a byte.
fn label(name: &str) -> String {
    let mut label = String::with_capacity(name.len());
    for character in name.chars() {
        let printable = matches!(character, ' '..='~') || character.is_alphanumeric();
        if printable && !"'\"=|;\\".contains(character) {
            label.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(label, "%{byte:02X}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Address, ForwardConfig};
    use crate::metrics::Reject;

    /// A forward that has never connected, from `HOST:PORT/QUEUE` to another; text of no address will do.
    pub fn forward(source: &str, destination: &str) -> Arc<ForwardMetrics> {
        let address = |text: &str| {
            let (server, queue) = text.split_once('/').unwrap();
            Address { server: Server::parse(server).unwrap(), queue: queue.to_owned() }
        };
        Arc::new(ForwardMetrics::new(&ForwardConfig::between(address(source), address(destination))))
    }

    fn at_work(source: &str, destination: &str) -> Arc<ForwardMetrics> {
        let forward = forward(source, destination);
        forward.counts.lock().sessions += 1;
        forward
    }

    fn all(forwards: &[Arc<ForwardMetrics>]) -> Metrics {
        let metrics = Metrics::default();
        metrics.set_forwards(forwards.to_vec());
        metrics
    }

    /// Both ways between two networks.
    fn two() -> [Arc<ForwardMetrics>; 2] {
        [
            at_work("127.0.0.1:4730/hostgroup_network_b", "192.168.1.33:4730/hostgroup_network_b"),
            at_work("192.168.1.33:4730/check_results", "127.0.0.1:4730/check_results"),
        ]
    }

    fn trouble(forward: &ForwardMetrics, server: &str, reason: &str, since: Instant) {
        forward
            .counts
            .lock()
            .troubles
            .insert(Server::parse(server).unwrap(), Trouble { reason: reason.to_owned(), since });
    }

    fn ask(forwards: &[Arc<ForwardMetrics>], payload: &str) -> String {
        check(&all(forwards), payload)
    }

    /// What stands before the performance data.
    fn text(forwards: &[Arc<ForwardMetrics>]) -> String {
        ask(forwards, "check").split_once('|').unwrap().0.to_owned()
    }

    #[test]
    fn two_idle_forwards_are_answered_as_the_perl_proxy_does() {
        assert_eq!(
            ask(&two(), "check"),
            "0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; 'bytes_in'=0c;;; 'bytes_out'=0c;;; 'queues'=2;;; \
             'server'=2;;; 'total_errors'=0c;;; 'total_jobs'=0c;;; 'check_results::bytes_out'=0c;;; \
             'check_results::expired'=0c;;; 'check_results::jobs'=0c;;; 'check_results::rejected'=0c;;; \
             'hostgroup_network_b::bytes_out'=0c;;; 'hostgroup_network_b::expired'=0c;;; \
             'hostgroup_network_b::jobs'=0c;;; 'hostgroup_network_b::rejected'=0c;;;"
        );
    }

    #[test]
    fn what_was_counted_stands_under_its_queue_and_in_the_totals() {
        let forwards = two();
        forwards[0].delivered(3, 1000, 1200);
        forwards[0].rejected("bad base64");
        forwards[0].counts.lock().errors += 1;
        forwards[1].delivered(4, 10, 20);
        forwards[1].expired(6);
        let answer = ask(&forwards, "check");
        for value in [
            "'bytes_in'=1010c;;;",
            "'bytes_out'=1220c;;;",
            "'total_errors'=2c;;;",
            "'total_jobs'=7c;;;",
            "'hostgroup_network_b::bytes_out'=1200c;;;",
            "'hostgroup_network_b::jobs'=3c;;;",
            "'hostgroup_network_b::rejected'=1c;;;",
            "'check_results::jobs'=4c;;;",
            "'check_results::expired'=6c;;;",
        ] {
            assert!(answer.contains(&format!(" {value}")), "{value} in {answer}");
        }
    }

    #[test]
    fn names_are_in_byte_order_with_those_of_queues_last() {
        let forwards = ["zz", "aa", "Zz", "_"].map(|queue| at_work(&format!("a:1/{queue}"), &format!("b:1/{queue}")));
        let answer = ask(&forwards, "check");
        let names: Vec<&str> = answer.split('\'').skip(1).step_by(2).collect();
        let (of_all, of_queues) = names.split_at(7);
        assert!(of_all.iter().all(|name| !name.contains("::")) && of_queues.iter().all(|name| name.contains("::")));
        assert!(of_all.is_sorted() && of_queues.is_sorted(), "{answer}");
        assert_eq!(of_queues[0], "Zz::bytes_out");
    }

    #[test]
    fn server_counts_the_sources_and_queues_the_forwards() {
        let answer = ask(&[at_work("a:1/x", "b:1/x"), at_work("a:1/y", "c:1/y"), at_work("a:2/z", "b:1/z")], "check");
        assert!(answer.contains(" 'queues'=3;;; 'server'=2;;; "), "{answer}");
    }

    #[test]
    fn one_queue_name_on_two_servers_adds_up_and_counts_alone_too() {
        let forwards = [at_work("a:1/q", "c:1/q"), at_work("[::1]:2/q", "c:1/r"), at_work("a:1/other", "c:1/other")];
        forwards[0].delivered(3, 0, 30);
        forwards[1].delivered(4, 0, 40);
        let answer = ask(&forwards, "check");
        for value in ["'q::jobs'=7c;;;", "'q::bytes_out'=70c;;;", "'a:1/q::jobs'=3c;;;", "'[::1]:2/q::jobs'=4c;;;"] {
            assert!(answer.contains(value), "{value} in {answer}");
        }
        assert!(!answer.contains("a:1/other"), "{answer}");
    }

    #[test]
    fn a_filter_keeps_the_matching_names() {
        assert_eq!(
            ask(&two(), "check perfdatafilter=^check_results::jobs|^total_jobs$"),
            "0:OK - proxy version v1.0.0 running.| 'total_jobs'=0c;;; 'check_results::jobs'=0c;;;"
        );
        assert_eq!(ask(&two(), "check perfdatafilter=nothing more"), "0:OK - proxy version v1.0.0 running.|");
        assert_eq!(ask(&two(), "check perfdatafilter="), ask(&two(), "check"));
    }

    #[test]
    fn a_bad_filter_is_unknown_on_one_line() {
        assert_eq!(
            ask(&two(), "check perfdatafilter=(a"),
            "3:UNKNOWN - perfdatafilter is not a regular expression: unclosed group"
        );
        assert_eq!(ask(&two(), "check perfdatafilter=(\\w{999}){99}"), "3:UNKNOWN - perfdatafilter is too large");
        for filter in ["[z-a]", "(?<n", "*", "a{2,1}", "\\p{nope}", "(?=x)"] {
            let answer = ask(&two(), &format!("check perfdatafilter={filter}"));
            assert!(
                answer.starts_with("3:UNKNOWN - perfdatafilter is not a regular expression: "),
                "{filter}: {answer}"
            );
            assert!(!answer.contains(['\n', '|', '\'']), "{answer}");
        }
    }

    #[test]
    fn a_filter_of_64_kib_is_refused_and_one_of_1_kib_is_not() {
        let filter = |length: usize| format!("check perfdatafilter={}", "a|".repeat(length / 2));
        assert_eq!(ask(&two(), &filter(64 << 10)), "3:UNKNOWN - perfdatafilter is longer than 1024 bytes");
        assert!(ask(&two(), &filter(1 << 10)).starts_with("0:OK"));
    }

    #[test]
    fn what_is_wrong_with_patterns_is_a_warning_and_critical_where_nothing_else_works() {
        let metrics = Metrics::default();
        let server = Server { host: String::from("h"), port: 1 };
        let message = |metrics| check(metrics, "check").split_once('|').unwrap().0.to_owned();
        metrics.set_patterns(&server, Err("connection refused"));
        let failed = "1 server failed: h:1 (connection refused).";
        assert_eq!(message(&metrics), format!("2:CRITICAL - proxy version v1.0.0 running. {failed}"));
        metrics.set_forwards(two().to_vec());
        assert_eq!(message(&metrics), format!("1:WARNING - proxy version v1.0.0 running. {failed}"));
        let too_many = "1001 queues match the pattern in line 2, relaying 1000";
        metrics.set_patterns(&server, Ok(Some(too_many.to_owned())));
        assert_eq!(
            message(&metrics),
            "1:WARNING - proxy version v1.0.0 running. h:1: 1001 queues match the pattern in line 2, relaying 1000."
        );
        metrics.clear_patterns();
        assert_eq!(message(&metrics), "0:OK - proxy version v1.0.0 running.");
    }

    #[test]
    fn failed_servers_are_sorted_and_named_once_with_the_first_reason() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let forwards = [at_work("b:1/x", "a:20/x"), at_work("b:1/y", "a:3/y"), at_work("z:1/z", "z:2/z")];
        trouble(&forwards[0], "b:1", "second", later);
        trouble(&forwards[0], "a:20", "full", now);
        trouble(&forwards[1], "b:1", "first", now);
        trouble(&forwards[1], "a:3", "down", now);
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 3 servers failed: a:20 (full), a:3 (down), b:1 (first)."
        );
    }

    #[test]
    fn everything_that_applies_is_told_in_order() {
        let forwards = two();
        trouble(&forwards[0], "192.168.1.33:4730", "connection refused", Instant::now());
        forwards[0].counts.lock().waiting = Some(90);
        forwards[0].set_held(10);
        forwards[1].set_held(7);
        forwards[1].counts.lock().waiting = Some(7);
        forwards[1].rejected("bad base64");
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 1 server failed: 192.168.1.33:4730 (connection refused). \
             backlog contains 100 jobs. 1 jobs rejected, last in check_results (bad base64)."
        );
        assert!(ask(&forwards, "check").contains("| 'backlog'=100;;; "));

        trouble(&forwards[1], "192.168.1.33:4730", "connection refused", Instant::now());
        let metrics = all(&forwards);
        metrics.set_configuration_wrong(true);
        let answer = check(&metrics, "check");
        let expected = "2:CRITICAL - proxy version v1.0.0 running. 1 server failed: 192.168.1.33:4730 (connection \
                        refused). backlog contains 114 jobs. 1 jobs rejected, last in check_results (bad base64). \
                        configuration wrong since 2";
        assert!(answer.starts_with(expected), "{answer}");
    }

    #[test]
    fn a_forward_that_never_connected_does_not_count_as_working() {
        let forwards = [forward("a:1/x", "b:1/x"), forward("a:1/y", "b:1/y")];
        assert_eq!(text(&forwards), "0:OK - proxy version v1.0.0 running. 2 forwards connecting.");
        assert_eq!(summary(&all(&forwards)), "0 of 2 forwards working. 2 forwards connecting.");
        forwards[0].counts.lock().sessions += 1;
        assert_eq!(summary(&all(&forwards)), "1 of 2 forwards working. 1 forward connecting.");
        trouble(&forwards[0], "b:1", "down", Instant::now());
        trouble(&forwards[1], "b:1", "down", Instant::now());
        assert!(text(&forwards).starts_with("2:CRITICAL"));
    }

    #[test]
    fn what_a_working_forward_holds_is_no_backlog() {
        let forwards = two();
        forwards[0].set_held(4096);
        forwards[0].counts.lock().waiting = Some(5);
        assert!(ask(&forwards, "check").starts_with("0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; "));
    }

    #[test]
    fn jobs_that_go_back_are_in_the_backlog_at_once() {
        let forwards = two();
        forwards[0].set_held(12);
        trouble(&forwards[0], "a:1", "down", Instant::now());
        assert!(text(&forwards).ends_with(" backlog contains 12 jobs."));
        forwards[0].given_back(12);
        forwards[0].set_held(0);
        assert!(text(&forwards).ends_with(" backlog contains 12 jobs."));
        forwards[0].counts.lock().waiting = Some(13);
        assert!(text(&forwards).ends_with(" backlog contains 13 jobs."));
    }

    #[test]
    fn rejected_jobs_are_a_warning_for_15_minutes() {
        let forwards = two();
        let ago = |seconds| {
            let at = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
            forwards[0].counts.lock().last_reject = Some(Reject { reason: String::from("why"), at });
        };
        ago(15 * 60 - 5);
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 0 jobs rejected, last in hostgroup_network_b (why)."
        );
        ago(15 * 60);
        assert_eq!(text(&forwards), "0:OK - proxy version v1.0.0 running.");
    }

    #[test]
    fn without_forwards_there_is_nothing_critical() {
        assert!(ask(&[], "check").starts_with("0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; "));
    }

    #[test]
    fn reasons_cannot_break_the_answer() {
        let forwards = two();
        trouble(&forwards[0], "a:1", "it's |(not)| [so];\n{bad}<\u{fc}>", Instant::now());
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 1 server failed: a:1 (it_s __not__ _so__ _bad__?_)."
        );
        trouble(&forwards[0], "a:1", &"\u{fc}".repeat(100), Instant::now());
        assert!(text(&forwards).ends_with(&format!(" a:1 ({}).", "?".repeat(80))));
    }

    #[test]
    fn queue_names_cannot_break_the_performance_data() {
        let forwards = [at_work("a:1/it's|=1;;;\u{1}\u{202e}", "b:1/x"), at_work("a:1/k\u{fc}he%", "b:1/y")];
        forwards[0].rejected("x");
        let answer = ask(&forwards, "check");
        assert_eq!(answer.matches('|').count(), 1);
        assert!(answer.contains(" 'it%27s%7C%3D1%3B%3B%3B%01%E2%80%AE::jobs'=0c;;; "), "{answer}");
        assert!(answer.contains(" last in it%27s%7C%3D1%3B%3B%3B%01%E2%80%AE (x)."), "{answer}");
        assert!(answer.contains(" 'k\u{fc}he%::jobs'=0c;;; "), "{answer}");
    }

    #[test]
    fn times_are_told_in_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29 12:34:56Z");
        assert_eq!(at(1_735_689_599), "2024-12-31 23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00Z");
    }
}
