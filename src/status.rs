//! What the proxy tells of itself: the answer on the status queue, and the worker that gives it.
//!
//! The answer has the form of `gearman_proxy.pl`, so that `check_gearman -q QUEUE -s check` and whatever graphs its
//! performance data go on working. The payload `json` is answered with all there is, for the live view.

mod backlog;
pub mod json;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

use regex::bytes::RegexBuilder;

use crate::config::{Address, Server};
use crate::metrics::{ForwardMetrics, Trouble};
use json::Value;

pub use worker::StatusWorker;

/// How long after the last rejected job the status warns of them.
pub const REJECTS_WARN: Duration = Duration::from_secs(15 * 60);

/// The longest reason that is shown, bytes.
const MAX_REASON: usize = 80;

/// What a compiled `perfdatafilter` may take, bytes: it comes from whoever can reach the job server.
const MAX_FILTER_SIZE: usize = 1 << 20;

/// One forward at the moment of a question.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where its jobs come from.
    pub source: Address,
    /// Where they go.
    pub destination: Address,
    /// Whether it submits in the background.
    pub asynchronous: bool,
    /// Jobs delivered.
    pub jobs: u64,
    /// Bytes of delivered jobs as they came.
    pub bytes_in: u64,
    /// Bytes of delivered jobs as they went.
    pub bytes_out: u64,
    /// Undeliverable jobs.
    pub rejected: u64,
    /// Jobs that were rejected or failed.
    pub errors: u64,
    /// Jobs held unacknowledged.
    pub held: u64,
    /// Jobs waiting at the source when it was last asked, which happens only to forwards in trouble.
    pub waiting: Option<u64>,
    /// How long both servers have been connected; `None` while they are not.
    pub connected: Option<Duration>,
    /// How long ago the last job was rejected.
    pub last_reject: Option<Duration>,
    /// The servers that can't be worked with.
    pub troubles: BTreeMap<Server, Trouble>,
}

impl Snapshot {
    /// How `forward` is now.
    pub fn of(forward: &ForwardMetrics, waiting: Option<u64>) -> Snapshot {
        Snapshot {
            source: forward.config.source.clone(),
            destination: forward.config.first_destination().clone(),
            asynchronous: forward.config.asynchronous,
            jobs: forward.jobs(),
            bytes_in: forward.bytes_in(),
            bytes_out: forward.bytes_out(),
            rejected: forward.rejects(),
            errors: forward.errors(),
            held: forward.held() as u64,
            waiting,
            connected: forward.connected(),
            last_reject: forward.last_reject(),
            troubles: forward.troubles(),
        }
    }

    /// A forward works when none of its servers is in trouble.
    pub fn works(&self) -> bool {
        self.troubles.is_empty()
    }

    fn backlog(&self) -> u64 {
        if self.works() { 0 } else { self.waiting.unwrap_or(0) + self.held }
    }
}

/// The process that answers.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// Without a `v`.
    pub version: &'static str,
    /// The process id.
    pub pid: u32,
    /// When it began.
    pub started: Instant,
}

/// The answer to a job on the status queue, asked at `now`.
pub fn answer(forwards: &[Snapshot], payload: &[u8], now: Instant, process: &Process) -> String {
    let payload = String::from_utf8_lossy(payload);
    // Of an id of 63 bytes gearmand leaves a NUL before the data.
    let payload = payload.trim_start_matches('\0');
    if payload.split_whitespace().next() == Some("json") {
        return object(forwards, now, process).to_string();
    }
    let filter = match payload.split_once("perfdatafilter=") {
        None => None,
        Some((_, filter)) => {
            let filter = filter.split_whitespace().next().unwrap_or_default();
            match RegexBuilder::new(filter).unicode(false).size_limit(MAX_FILTER_SIZE).build() {
                Ok(filter) => Some(filter),
                Err(error) => return format!("3:UNKNOWN - {}", bad_filter(&error)),
            }
        }
    };

    let mut values = performance(forwards);
    if let Some(filter) = filter {
        values.retain(|name, _| filter.is_match(name.as_bytes()));
    }
    let (code, state, text) = verdict(forwards);
    let mut answer = format!("{code}:{state} - proxy version v{} running.{text}|", process.version);
    let (of_queues, of_all): (Vec<_>, Vec<_>) = values.iter().partition(|(name, _)| name.contains("::"));
    for (name, (value, unit)) in of_all.into_iter().chain(of_queues) {
        // Writing to a String can't fail.
        let _ = write!(answer, " '{name}'={value}{unit};;;");
    }
    answer
}

fn bad_filter(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => String::from("perfdatafilter is too large"),
        _ => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("perfdatafilter is no regular expression: {}", printable(reason))
        }
    }
}

/// Exit code, its name, and the text after `running.`.
fn verdict(forwards: &[Snapshot]) -> (u8, &'static str, String) {
    let mut text = String::new();
    let failed = failed_servers(forwards);
    if !failed.is_empty() {
        let plural = if failed.len() == 1 { "" } else { "s" };
        let servers: Vec<String> = failed.iter().map(|(server, reason)| format!("{server} ({reason})")).collect();
        let _ = write!(text, " {} server{plural} failed: {}.", failed.len(), servers.join(", "));
    }
    let backlog: u64 = forwards.iter().map(Snapshot::backlog).sum();
    if backlog > 0 {
        let _ = write!(text, " backlog contains {backlog} jobs.");
    }
    if forwards.iter().filter_map(|forward| forward.last_reject).any(|ago| ago < REJECTS_WARN) {
        let rejected: u64 = forwards.iter().map(|forward| forward.rejected).sum();
        let _ = write!(text, " {rejected} jobs rejected.");
    }
    if !forwards.is_empty() && !forwards.iter().any(Snapshot::works) {
        (2, "CRITICAL", text)
    } else if !text.is_empty() {
        (1, "WARNING", text)
    } else {
        (0, "OK", text)
    }
}

/// Each server in trouble with the reason that was there first, in order of `HOST:PORT`.
fn failed_servers(forwards: &[Snapshot]) -> BTreeMap<String, String> {
    let mut first: BTreeMap<&Server, &Trouble> = BTreeMap::new();
    for (server, trouble) in forwards.iter().flat_map(|forward| &forward.troubles) {
        let known = first.entry(server).or_insert(trouble);
        if (trouble.since, &trouble.reason) < (known.since, &known.reason) {
            *known = trouble;
        }
    }
    first.into_iter().map(|(server, trouble)| (label(&server.to_string()), printable(&trouble.reason))).collect()
}

/// The performance data: name to value and unit, in byte order of the names.
fn performance(forwards: &[Snapshot]) -> BTreeMap<String, (u64, &'static str)> {
    let mut values = BTreeMap::new();
    let sources: BTreeSet<&Server> = forwards.iter().map(|forward| &forward.source.server).collect();
    values.insert(String::from("server"), (sources.len() as u64, ""));
    values.insert(String::from("queues"), (forwards.len() as u64, ""));
    values.insert(String::from("backlog"), (forwards.iter().map(Snapshot::backlog).sum(), ""));

    let mut count = |name: &str, value: u64| values.entry(label(name)).or_insert((0, "c")).0 += value;
    let mut servers_of: BTreeMap<&str, BTreeSet<&Server>> = BTreeMap::new();
    for forward in forwards {
        servers_of.entry(&forward.source.queue).or_default().insert(&forward.source.server);
    }
    for total in ["bytes_in", "bytes_out", "total_errors", "total_jobs"] {
        count(total, 0);
    }
    for forward in forwards {
        let queue = &forward.source.queue;
        count("bytes_in", forward.bytes_in);
        count("bytes_out", forward.bytes_out);
        count("total_errors", forward.errors);
        count("total_jobs", forward.jobs);
        count(&format!("{queue}::bytes_out"), forward.bytes_out);
        count(&format!("{queue}::jobs"), forward.jobs);
        count(&format!("{queue}::rejected"), forward.rejected);
        if servers_of.get(queue.as_str()).is_some_and(|servers| servers.len() > 1) {
            count(&format!("{}::jobs", forward.source), forward.jobs);
        }
    }
    values
}

/// A name as a label of performance data: what would end the label, the name or the text (`'`, `=`, `|`, control
/// characters) is written as `%` and two hexadecimal digits, anything else stays.
fn label(name: &str) -> String {
    let mut label = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '\'' | '=' | '|' | '\0'..='\x1f' | '\x7f' => {
                let _ = write!(label, "%{:02X}", u32::from(character));
            }
            _ => label.push(character),
        }
    }
    label
}

/// A reason as it may stand in the answer: printable ASCII without `|`, `'` and brackets, 80 bytes at most.
fn printable(reason: &str) -> String {
    let shown = |character| match character {
        '|' | '\'' | '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' => '_',
        ' '..='~' => character,
        '\n' | '\r' | '\t' => ' ',
        _ => '?',
    };
    reason.chars().map(shown).take(MAX_REASON).collect()
}

fn object(forwards: &[Snapshot], now: Instant, process: &Process) -> Value {
    let forwards = forwards.iter().map(|forward| {
        let troubles = forward.troubles.iter().map(|(server, trouble)| {
            Value::object([
                ("server", server.to_string().into()),
                ("reason", printable(&trouble.reason).into()),
                ("since", now.saturating_duration_since(trouble.since).as_secs().into()),
            ])
        });
        Value::object([
            ("source", forward.source.to_string().into()),
            ("destination", forward.destination.to_string().into()),
            ("mode", if forward.asynchronous { "async" } else { "sync" }.into()),
            ("jobs", forward.jobs.into()),
            ("bytes_in", forward.bytes_in.into()),
            ("bytes_out", forward.bytes_out.into()),
            ("rejected", forward.rejected.into()),
            ("errors", forward.errors.into()),
            ("held", forward.held.into()),
            ("waiting", forward.waiting.into()),
            ("connected", forward.connected.map(|time| time.as_secs()).into()),
            ("troubles", Value::List(troubles.collect())),
        ])
    });
    Value::object([
        ("version", process.version.into()),
        ("pid", u64::from(process.pid).into()),
        ("uptime", now.saturating_duration_since(process.started).as_secs().into()),
        ("forwards", Value::List(forwards.collect())),
    ])
}

/// One line for a service manager: how many forwards there are, and what is wrong with them.
pub fn summary(forwards: &[Snapshot]) -> String {
    let total = forwards.len();
    let plural = if total == 1 { "" } else { "s" };
    let working = forwards.iter().filter(|forward| forward.works()).count();
    let (_, _, text) = verdict(forwards);
    if working == total {
        format!("{total} forward{plural} working.{text}")
    } else {
        format!("{working} of {total} forward{plural} working.{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        let (host, port) = text.rsplit_once(':').unwrap();
        Server { host: host.to_owned(), port: port.parse().unwrap() }
    }

    fn address(text: &str) -> Address {
        let (there, queue) = text.split_once('/').unwrap();
        Address { server: server(there), queue: queue.to_owned() }
    }

    fn idle(source: &str, destination: &str) -> Snapshot {
        Snapshot {
            source: address(source),
            destination: address(destination),
            asynchronous: true,
            jobs: 0,
            bytes_in: 0,
            bytes_out: 0,
            rejected: 0,
            errors: 0,
            held: 0,
            waiting: None,
            connected: None,
            last_reject: None,
            troubles: BTreeMap::new(),
        }
    }

    /// Both ways between two networks.
    fn two() -> [Snapshot; 2] {
        [
            idle("127.0.0.1:4730/hostgroup_network_b", "192.168.1.33:4730/hostgroup_network_b"),
            idle("192.168.1.33:4730/check_results", "127.0.0.1:4730/check_results"),
        ]
    }

    fn trouble(forward: &mut Snapshot, server_text: &str, reason: &str, since: Instant) {
        forward.troubles.insert(server(server_text), Trouble { reason: reason.to_owned(), since });
    }

    fn process(now: Instant) -> Process {
        Process { version: "1.0.0", pid: 42, started: now.checked_sub(Duration::from_secs(90)).unwrap_or(now) }
    }

    fn ask(forwards: &[Snapshot], payload: &str) -> String {
        let now = Instant::now();
        answer(forwards, payload.as_bytes(), now, &process(now))
    }

    /// What stands before the performance data.
    fn text(forwards: &[Snapshot]) -> String {
        ask(forwards, "check").split_once('|').unwrap().0.to_owned()
    }

    #[test]
    fn two_idle_forwards_are_answered_as_the_perl_proxy_does() {
        assert_eq!(
            ask(&two(), "check"),
            "0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; 'bytes_in'=0c;;; 'bytes_out'=0c;;; 'queues'=2;;; \
             'server'=2;;; 'total_errors'=0c;;; 'total_jobs'=0c;;; 'check_results::bytes_out'=0c;;; \
             'check_results::jobs'=0c;;; 'check_results::rejected'=0c;;; 'hostgroup_network_b::bytes_out'=0c;;; \
             'hostgroup_network_b::jobs'=0c;;; 'hostgroup_network_b::rejected'=0c;;;"
        );
    }

    #[test]
    fn any_other_payload_is_answered_like_check() {
        let check = ask(&two(), "check");
        for payload in ["", "x", "perf", "jsonx", "check json", "\0check"] {
            assert_eq!(ask(&two(), payload), check, "{payload:?}");
        }
        let now = Instant::now();
        assert_eq!(answer(&two(), b"\xff\xfe", now, &process(now)), check);
    }

    #[test]
    fn what_was_counted_stands_under_its_queue_and_in_the_totals() {
        let mut forwards = two();
        (forwards[0].jobs, forwards[0].bytes_in, forwards[0].bytes_out) = (3, 1000, 1200);
        (forwards[0].rejected, forwards[0].errors) = (1, 2);
        (forwards[1].jobs, forwards[1].bytes_in, forwards[1].bytes_out, forwards[1].errors) = (4, 10, 20, 5);
        let answer = ask(&forwards, "check");
        for value in [
            "'bytes_in'=1010c;;;",
            "'bytes_out'=1220c;;;",
            "'total_errors'=7c;;;",
            "'total_jobs'=7c;;;",
            "'hostgroup_network_b::bytes_out'=1200c;;;",
            "'hostgroup_network_b::jobs'=3c;;;",
            "'hostgroup_network_b::rejected'=1c;;;",
            "'check_results::jobs'=4c;;;",
        ] {
            assert!(answer.contains(&format!(" {value}")), "{value} in {answer}");
        }
        assert!(answer.starts_with("0:OK - proxy version v1.0.0 running.|"), "{answer}");
    }

    #[test]
    fn names_are_in_byte_order_with_those_of_queues_last() {
        let forwards =
            [idle("a:1/zz", "b:1/zz"), idle("a:1/aa", "b:1/aa"), idle("a:1/Zz", "b:1/Zz"), idle("a:1/_", "b:1/_")];
        let answer = ask(&forwards, "check");
        let names: Vec<&str> = answer.split('\'').skip(1).step_by(2).collect();
        let first_of_queues = names.iter().position(|name| name.contains("::")).unwrap();
        assert_eq!(first_of_queues, 7);
        for part in names.split_at(first_of_queues).0.windows(2).chain(names[first_of_queues..].windows(2)) {
            assert!(part[0] < part[1], "{part:?}");
        }
        assert_eq!(names[first_of_queues..].iter().filter(|name| !name.contains("::")).count(), 0);
        assert_eq!(names[7], "Zz::bytes_out");
    }

    #[test]
    fn server_counts_the_sources_and_queues_the_forwards() {
        let forwards = [idle("a:1/x", "b:1/x"), idle("a:1/y", "c:1/y"), idle("a:2/z", "b:1/z")];
        let answer = ask(&forwards, "check");
        assert!(answer.contains(" 'queues'=3;;; 'server'=2;;; "), "{answer}");
    }

    #[test]
    fn one_queue_name_on_two_servers_adds_up_and_counts_alone_too() {
        let mut forwards = [idle("a:1/q", "c:1/q"), idle("::1:2/q", "c:1/r"), idle("a:1/other", "c:1/other")];
        (forwards[0].jobs, forwards[0].bytes_out) = (3, 30);
        (forwards[1].jobs, forwards[1].bytes_out) = (4, 40);
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
            "3:UNKNOWN - perfdatafilter is no regular expression: unclosed group"
        );
        assert_eq!(ask(&two(), "check perfdatafilter=(\\w{999}){99}"), "3:UNKNOWN - perfdatafilter is too large");
        for filter in ["[z-a]", "(?<n", "*", "a{2,1}", "\\p{nope}", "(?=x)"] {
            let answer = ask(&two(), &format!("check perfdatafilter={filter}"));
            assert!(answer.starts_with("3:UNKNOWN - perfdatafilter is no regular expression: "), "{filter}: {answer}");
            assert!(!answer.contains(['\n', '|', '\'']), "{answer}");
        }
    }

    #[test]
    fn a_failed_server_is_a_warning_with_its_reason() {
        let mut forwards = two();
        trouble(&mut forwards[0], "192.168.1.33:4730", "connection refused", Instant::now());
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 1 server failed: 192.168.1.33:4730 (connection refused)."
        );
    }

    #[test]
    fn failed_servers_are_sorted_and_named_once_with_the_first_reason() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut forwards = [idle("b:1/x", "a:20/x"), idle("b:1/y", "a:3/y"), idle("z:1/z", "z:2/z")];
        trouble(&mut forwards[0], "b:1", "second", later);
        trouble(&mut forwards[0], "a:20", "full", now);
        trouble(&mut forwards[1], "b:1", "first", now);
        trouble(&mut forwards[1], "a:3", "down", now);
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 3 servers failed: a:20 (full), a:3 (down), b:1 (first)."
        );
    }

    #[test]
    fn everything_that_applies_is_told_in_order() {
        let mut forwards = two();
        trouble(&mut forwards[0], "192.168.1.33:4730", "connection refused", Instant::now());
        (forwards[0].waiting, forwards[0].held) = (Some(90), 10);
        (forwards[1].held, forwards[1].waiting) = (7, Some(7));
        (forwards[1].rejected, forwards[1].last_reject) = (3, Some(Duration::from_secs(1)));
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 1 server failed: 192.168.1.33:4730 (connection refused). \
             backlog contains 100 jobs. 3 jobs rejected."
        );
        assert!(ask(&forwards, "check").contains("| 'backlog'=100;;; "));

        trouble(&mut forwards[1], "192.168.1.33:4730", "connection refused", Instant::now());
        assert_eq!(
            text(&forwards),
            "2:CRITICAL - proxy version v1.0.0 running. 1 server failed: 192.168.1.33:4730 (connection refused). \
             backlog contains 114 jobs. 3 jobs rejected."
        );
    }

    #[test]
    fn what_a_working_forward_holds_is_no_backlog() {
        let mut forwards = two();
        (forwards[0].held, forwards[0].waiting) = (4096, Some(5));
        assert!(ask(&forwards, "check").starts_with("0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; "));
    }

    #[test]
    fn an_unsampled_forward_in_trouble_counts_what_it_holds() {
        let mut forwards = two();
        trouble(&mut forwards[0], "a:1", "down", Instant::now());
        forwards[0].held = 2;
        assert!(text(&forwards).ends_with(" backlog contains 2 jobs."));
    }

    #[test]
    fn rejected_jobs_are_a_warning_for_15_minutes() {
        let mut forwards = two();
        forwards[0].rejected = 1;
        forwards[0].last_reject = Some(Duration::from_secs(15 * 60 - 1));
        assert_eq!(text(&forwards), "1:WARNING - proxy version v1.0.0 running. 1 jobs rejected.");
        forwards[0].last_reject = Some(Duration::from_secs(15 * 60));
        assert_eq!(text(&forwards), "0:OK - proxy version v1.0.0 running.");
    }

    #[test]
    fn without_forwards_there_is_nothing_critical() {
        assert!(ask(&[], "check").starts_with("0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; "));
    }

    #[test]
    fn reasons_cannot_break_the_answer() {
        let mut forwards = two();
        trouble(&mut forwards[0], "a:1", "it's |(not)| [so]\n{bad}<\u{fc}>", Instant::now());
        assert_eq!(
            text(&forwards),
            "1:WARNING - proxy version v1.0.0 running. 1 server failed: a:1 (it_s __not__ _so_ _bad__?_)."
        );
        trouble(&mut forwards[0], "a:1", &"\u{fc}".repeat(100), Instant::now());
        assert!(text(&forwards).ends_with(&format!(" a:1 ({}).", "?".repeat(80))));
    }

    #[test]
    fn queue_names_cannot_break_the_performance_data() {
        let forwards = [idle("a:1/it's|=1;;;\u{1}", "b:1/x"), idle("a:1/k\u{fc}he%", "b:1/y")];
        let answer = ask(&forwards, "check");
        assert_eq!(answer.matches('|').count(), 1);
        assert!(answer.contains(" 'it%27s%7C%3D1;;;%01::jobs'=0c;;; "), "{answer}");
        assert!(answer.contains(" 'k\u{fc}he%::jobs'=0c;;; "), "{answer}");
        assert_eq!(answer.matches('\'').count() % 2, 0);
    }

    #[test]
    fn json_tells_everything() {
        let now = Instant::now();
        let mut forwards = two();
        (forwards[0].jobs, forwards[0].bytes_in, forwards[0].bytes_out) = (1, 2, 3);
        (forwards[0].rejected, forwards[0].errors, forwards[0].held) = (4, 5, 6);
        forwards[0].waiting = Some(7);
        forwards[0].connected = Some(Duration::from_millis(8900));
        forwards[0].source.queue = String::from("a\"b");
        trouble(
            &mut forwards[0],
            "192.168.1.33:4730",
            "connection refused",
            now.checked_sub(Duration::from_secs(9)).unwrap(),
        );
        forwards[1].asynchronous = false;
        assert_eq!(
            answer(&forwards, b" json\n", now, &process(now)),
            concat!(
                r#"{"version":"1.0.0","pid":42,"uptime":90,"forwards":["#,
                r#"{"source":"127.0.0.1:4730/a\"b","destination":"192.168.1.33:4730/hostgroup_network_b","mode":"async","#,
                r#""jobs":1,"bytes_in":2,"bytes_out":3,"rejected":4,"errors":5,"held":6,"waiting":7,"connected":8,"#,
                r#""troubles":[{"server":"192.168.1.33:4730","reason":"connection refused","since":9}]},"#,
                r#"{"source":"192.168.1.33:4730/check_results","destination":"127.0.0.1:4730/check_results","mode":"sync","#,
                r#""jobs":0,"bytes_in":0,"bytes_out":0,"rejected":0,"errors":0,"held":0,"waiting":null,"connected":null,"#,
                r#""troubles":[]}]}"#
            )
        );
    }

    #[test]
    fn the_summary_counts_the_forwards() {
        let mut forwards = two();
        assert_eq!(summary(&forwards), "2 forwards working.");
        assert_eq!(summary(&forwards[..1]), "1 forward working.");
        trouble(&mut forwards[0], "a:1", "down", Instant::now());
        assert_eq!(summary(&forwards), "1 of 2 forwards working. 1 server failed: a:1 (down).");
    }
}
