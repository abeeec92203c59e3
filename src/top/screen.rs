//! The view as lines of text.

use std::collections::BTreeMap;
use std::time::Instant;

use super::ask::{Asker, ForwardReport, Queues, TroubleReport};
use crate::config::{Config, ForwardConfig, Server};
use crate::gearman::admin::QueueStatus;

/// Room for the queue's name at least, characters.
const MIN_NAME: usize = 12;

/// The numbers' columns and the room that each takes with the blanks before it.
const COLUMNS: [(&str, usize); 6] =
    [("WAIT", 7), ("HELD", 7), ("DEST", 7), ("JOBS/S", 8), ("BYTES/S", 9), ("REJECT", 8)];

/// The state's column with the blanks before it: `down 12h34m`.
const STATE: usize = 2 + 11;

/// What a screen can show; without a number there is no end.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub columns: Option<usize>,
    pub rows: Option<usize>,
}

/// One forward's line, and whether it belongs to the top.
struct Row {
    name: String,
    numbers: [String; COLUMNS.len()],
    state: String,
    troubled: bool,
}

/// The view of what is known at `now`.
pub fn draw(config: &Config, asker: &Asker, size: Size, now: Instant) -> Vec<String> {
    let mut groups: Vec<((&Server, &Server), Vec<Row>)> = Vec::new();
    for forward in &config.forwards {
        let ends = (&forward.source.server, &forward.first_destination().server);
        let row = row(forward, asker);
        match groups.iter_mut().find(|(of, _)| *of == ends) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((ends, vec![row])),
        }
    }
    for (_, rows) in &mut groups {
        rows.sort_by_key(|row| !row.troubled);
    }
    groups.sort_by_key(|(_, rows)| !rows.iter().any(|row| row.troubled));
    let total = config.forwards.len();
    let troubled = groups.iter().flat_map(|(_, rows)| rows).filter(|row| row.troubled).count();

    let mut lines = vec![head(asker, total, troubled, now)];
    let wrong = what_is_wrong(asker);
    // The rows are what the view is for: troubles leave them half of the screen.
    let shown = size.rows.map_or(wrong.len(), |rows| wrong.len().min((rows / 2).saturating_sub(2)));
    lines.extend(wrong.iter().take(shown).cloned());
    if shown < wrong.len() {
        lines.push(format!("... and {} more", wrong.len() - shown));
    }
    lines.push(String::new());

    let longest = groups.iter().flat_map(|(_, rows)| rows).map(|row| 2 + row.name.chars().count()).max().unwrap_or(0);
    let numbers: usize = COLUMNS.iter().map(|(_, width)| width).sum();
    let room = size.columns.map_or(longest, |columns| columns.saturating_sub(numbers + STATE));
    let width = longest.min(room.max(MIN_NAME)).max("FORWARD".len());
    let titles = COLUMNS.map(|(title, _)| title.to_owned());
    lines.push(table_line("FORWARD", width, &titles, "STATE"));

    // One line is kept for what is left out, one for the cursor.
    let end = size.rows.map_or(usize::MAX, |rows| rows.saturating_sub(2));
    let mut left_out = (0, 0);
    for ((source, destination), rows) in &groups {
        if lines.len() + 1 < end {
            lines.push(format!("{source} -> {destination}"));
        }
        for row in rows {
            if lines.len() < end && left_out.0 == 0 {
                let name = format!("  {}", row.name);
                lines.push(table_line(&cut(&name, width), width, &row.numbers, &row.state));
            } else {
                left_out.0 += 1;
                left_out.1 += usize::from(row.troubled);
            }
        }
    }
    match left_out {
        (0, _) => {}
        (count, 0) => lines.push(format!("... and {count} more, all working")),
        (count, troubled) => lines.push(format!("... and {count} more, {troubled} of them not working")),
    }
    match size.columns {
        Some(columns) => lines.iter().map(|line| cut(line, columns)).collect(),
        None => lines,
    }
}

fn head(asker: &Asker, total: usize, troubled: usize, now: Instant) -> String {
    let plural = if total == 1 { "" } else { "s" };
    let working = format!("{} of {total} forward{plural} working", total - troubled);
    match asker.report() {
        Some(report) => {
            let uptime = age(report.uptime + now.saturating_duration_since(report.at).as_secs());
            format!("gearman-proxy {}, process {}, up {uptime}: {working}", report.version, report.pid)
        }
        None => format!("gearman-proxy: {working}, seen from the job servers alone"),
    }
}

/// A line for each server that can't be worked with, by the proxy or from here, and for a proxy that doesn't answer.
fn what_is_wrong(asker: &Asker) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(queue), Some(Err(reason))) = (&asker.statusqueue, &asker.status) {
        lines.push(format!("status queue {queue}: {}: is the proxy running?", plain(reason)));
    }
    let mut troubles: BTreeMap<(&str, &str), (u64, usize)> = BTreeMap::new();
    for forward in asker.report().iter().flat_map(|report| report.forwards.values()) {
        for TroubleReport { server, reason, since } in &forward.troubles {
            let (longest, forwards) = troubles.entry((server, reason)).or_default();
            *longest = (*longest).max(*since);
            *forwards += 1;
        }
    }
    for ((server, reason), (since, forwards)) in &troubles {
        let plural = if *forwards == 1 { "" } else { "s" };
        let (server, reason) = (plain(server), plain(reason));
        lines.push(format!("{server}: {reason}, for {} ({forwards} forward{plural})", age(*since)));
    }
    for (server, queues) in &asker.servers {
        if let Err(reason) = queues {
            let name = server.to_string();
            if !troubles.keys().any(|(troubled, _)| *troubled == name) {
                lines.push(format!("{name}: {}, asked from here", plain(reason)));
            }
        }
    }
    lines
}

fn row(forward: &ForwardConfig, asker: &Asker) -> Row {
    let source = forward.source.to_string();
    let report = asker.report();
    let of_proxy = report.and_then(|report| report.forwards.get(&source));
    let at_source = queue(&asker.servers, &forward.source.server, &forward.source.queue);
    let at_destination = queue(&asker.servers, &forward.first_destination().server, &forward.first_destination().queue);

    let rates = report.zip(asker.previous.as_ref()).and_then(|(report, previous)| {
        let seconds = report.at.saturating_duration_since(previous.at).as_secs_f64();
        let (now, before) = (report.forwards.get(&source)?, previous.forwards.get(&source)?);
        // Less than before: another process counts.
        let jobs = now.jobs.checked_sub(before.jobs)?;
        let bytes = now.bytes_out.checked_sub(before.bytes_out)?;
        (seconds > 0.0).then(|| (jobs as f64 / seconds, bytes as f64 / seconds))
    });
    let held = of_proxy.map(|forward| forward.held).or(at_source.map(|queue| queue.running));
    let number = |value: Option<f64>| value.map_or_else(|| String::from("-"), short);
    let count = |value: Option<u64>| number(value.map(|value| value as f64));
    let (state, troubled) = match (report, of_proxy) {
        (Some(_), Some(of_proxy)) => reported_state(of_proxy),
        (Some(_), None) => (String::from("not running"), true),
        (None, _) => seen_state(forward, &asker.servers, at_source),
    };
    let name = match forward.source.queue == forward.first_destination().queue {
        true => forward.source.queue.clone(),
        false => format!("{} -> {}", forward.source.queue, forward.first_destination().queue),
    };
    Row {
        name: plain(&name),
        numbers: [
            count(at_source.map(|queue| queue.waiting())),
            count(held),
            count(at_destination.map(|queue| queue.waiting())),
            number(rates.map(|(jobs, _)| jobs)),
            number(rates.map(|(_, bytes)| bytes)),
            count(of_proxy.map(|forward| forward.rejected)),
        ],
        state,
        troubled,
    }
}

/// A server that answers and doesn't know a queue has nothing in it.
fn queue(servers: &BTreeMap<Server, Queues>, server: &Server, queue: &str) -> Option<QueueStatus> {
    let queues = servers.get(server)?.as_ref().ok()?;
    Some(queues.get(queue).copied().unwrap_or_default())
}

fn reported_state(forward: &ForwardReport) -> (String, bool) {
    match (forward.troubles.iter().map(|trouble| trouble.since).max(), forward.connected) {
        (Some(since), _) => (format!("down {}", age(since)), true),
        (None, Some(connected)) => (format!("up {}", age(connected)), false),
        (None, None) => (String::from("connecting"), false),
    }
}

/// What can be told without the proxy's word.
fn seen_state(
    forward: &ForwardConfig,
    servers: &BTreeMap<Server, Queues>,
    at_source: Option<QueueStatus>,
) -> (String, bool) {
    let down = |server| matches!(servers.get(server), Some(Err(_)));
    let (state, troubled) = if down(&forward.source.server) {
        ("source down", true)
    } else if down(&forward.first_destination().server) {
        ("dest down", true)
    } else {
        match at_source {
            None => ("-", false),
            Some(queue) if queue.workers == 0 => ("no worker", true),
            Some(_) => ("has worker", false),
        }
    };
    (state.to_owned(), troubled)
}

fn table_line(name: &str, width: usize, numbers: &[String; COLUMNS.len()], state: &str) -> String {
    let mut line = format!("{name:width$}");
    for (number, (_, width)) in numbers.iter().zip(COLUMNS) {
        line.push_str(&format!("{number:>width$}"));
    }
    line.push_str("  ");
    line.push_str(state);
    line
}

/// Text from outside, without what a terminal would obey.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// The text in at most `width` characters, the last one a `~` if any is missing.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "~"
}

/// A number in at most six characters: `0.5`, `12`, `99999`, `1.23M`.
fn short(number: f64) -> String {
    if number < 9.95 && number.fract() != 0.0 {
        return format!("{number:.1}");
    }
    if number < 99_999.5 {
        return format!("{number:.0}");
    }
    let mut scaled = number / 1000.0;
    for unit in ["k", "M", "G", "T"] {
        if scaled < 999.5 {
            let digits = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
            return format!("{scaled:.digits$}{unit}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.0}P")
}

/// A time in its two largest units: `45s`, `3m12s`, `2h05m`, `3d04h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else {
        format!("{days}d{:02}h", hours % 24)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::ask::Report;
    use super::*;
    use crate::config::{Address, LogTarget, Place, Priority};
    use crate::stages::Stages;

    fn config(forwards: &[(&str, &str)]) -> Config {
        let forward = |(source, destination): &(&str, &str)| ForwardConfig {
            place: Place { file: Arc::new("proxy.conf".into()), line: 1 },
            source: Address::parse(source).unwrap(),
            destinations: vec![Address::parse(destination).unwrap()],
            stages: Stages::default(),
            asynchronous: true,
            workers: 1,
            prefetch: 4096,
            prefetch_is_explicit: false,
            priority: Priority::Normal,
            timeout: None,
            max_age: None,
            reject_queue: None,
        };
        Config {
            logfile: LogTarget::Stdout,
            debug: 0,
            pidfile: None,
            max_job_size: 1,
            statusqueue: None,
            metricsfile: None,
            patterns: Vec::new(),
            forwards: forwards.iter().map(forward).collect(),
            warnings: Vec::new(),
        }
    }

    fn queues(list: &[(&str, u64, u64, u64)]) -> Queues {
        let status = |&(name, total, running, workers): &(&str, u64, u64, u64)| {
            (name.to_owned(), QueueStatus { total, running, workers })
        };
        Ok(list.iter().map(status).collect())
    }

    fn server(text: &str) -> Server {
        Server::parse(text).unwrap()
    }

    fn report(at: Instant, forwards: &[(&str, ForwardReport)]) -> Report {
        let forwards = forwards.iter().map(|(source, report)| ((*source).to_owned(), report.clone())).collect();
        Report { at, version: "1.0.0".to_owned(), pid: 42, uptime: 3 * 3600, forwards }
    }

    fn trouble(reason: &str, since: u64) -> TroubleReport {
        TroubleReport { server: "b:4730".to_owned(), reason: reason.to_owned(), since }
    }

    const NARROW: Size = Size { columns: Some(80), rows: Some(24) };

    #[test]
    fn with_the_proxys_word_everything_is_shown() {
        let config = config(&[("a/hostgroup_b", "b/hostgroup_b"), ("b/check_results", "a/results")]);
        let mut asker = Asker::new(&config);
        let now = Instant::now();
        let before = now.checked_sub(Duration::from_secs(2)).unwrap();
        let well = |jobs, bytes_out| ForwardReport {
            jobs,
            bytes_out,
            held: 3,
            rejected: 1,
            connected: Some(75),
            ..Default::default()
        };
        let ill = ForwardReport { troubles: vec![trouble("connection refused", 192)], ..Default::default() };
        asker.previous =
            Some(report(before, &[("a:4730/hostgroup_b", well(100, 1000)), ("b:4730/check_results", ill.clone())]));
        asker.status =
            Some(Ok(report(now, &[("a:4730/hostgroup_b", well(103, 2_001_000)), ("b:4730/check_results", ill)])));
        asker.servers.insert(server("a"), queues(&[("hostgroup_b", 12, 2, 1), ("results", 7, 0, 1)]));
        asker.servers.insert(server("b"), Err("connection refused".to_owned()));
        assert_eq!(
            draw(&config, &asker, NARROW, now),
            [
                "gearman-proxy 1.0.0, process 42, up 3h00m: 1 of 2 forwards working",
                "b:4730: connection refused, for 3m12s (1 forward)",
                "",
                "FORWARD                 WAIT   HELD   DEST  JOBS/S  BYTES/S  REJECT  STATE",
                "b:4730 -> a:4730",
                "  check_results -> r~      -      0      7       0        0       0  down 3m12s",
                "a:4730 -> b:4730",
                "  hostgroup_b             10      3      -     1.5    1.00M       1  up 1m15s",
            ]
        );
    }

    #[test]
    fn without_it_the_job_servers_tell_what_they_can() {
        let mut config = config(&[("a/x", "b/x"), ("a/y", "b/y"), ("a/z", "c/z"), ("d/w", "a/w")]);
        config.statusqueue = Some(Address::parse("a/status").unwrap());
        let mut asker = Asker::new(&config);
        asker.status = Some(Err("no answer for 2 s".to_owned()));
        asker.servers.insert(server("a"), queues(&[("x", 5, 1, 2), ("y", 3, 0, 0)]));
        asker.servers.insert(server("b"), queues(&[]));
        asker.servers.insert(server("c"), Err("connection timed out".to_owned()));
        assert_eq!(
            draw(&config, &asker, NARROW, Instant::now()),
            [
                "gearman-proxy: 2 of 4 forwards working, seen from the job servers alone",
                "status queue a:4730/status: no answer for 2 s: is the proxy running?",
                "c:4730: connection timed out, asked from here",
                "",
                "FORWARD   WAIT   HELD   DEST  JOBS/S  BYTES/S  REJECT  STATE",
                "a:4730 -> b:4730",
                "  y          3      0      0       -        -       -  no worker",
                "  x          4      1      0       -        -       -  has worker",
                "a:4730 -> c:4730",
                "  z          0      0      -       -        -       -  dest down",
                "d:4730 -> a:4730",
                "  w          -      -      0       -        -       -  -",
            ]
        );
    }

    #[test]
    fn two_hundred_forwards_fit_with_the_troubled_first() {
        let names: Vec<(String, String)> =
            (0..200).map(|number| (format!("a/queue_{number:03}"), format!("b/queue_{number:03}"))).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        let config = config(&pairs);
        let mut asker = Asker::new(&config);
        let reports: Vec<(String, ForwardReport)> = (0..200)
            .map(|number| {
                let troubles = if number >= 198 { vec![trouble("no answer for 15 s", 60)] } else { Vec::new() };
                (format!("a:4730/queue_{number:03}"), ForwardReport { troubles, ..Default::default() })
            })
            .collect();
        let reports: Vec<(&str, ForwardReport)> =
            reports.iter().map(|(source, report)| (source.as_str(), report.clone())).collect();
        let now = Instant::now();
        asker.status = Some(Ok(report(now, &reports)));
        let lines = draw(&config, &asker, NARROW, now);
        assert!(lines.len() < 24, "{}", lines.len());
        assert_eq!(lines[0], "gearman-proxy 1.0.0, process 42, up 3h00m: 198 of 200 forwards working");
        assert_eq!(lines[1], "b:4730: no answer for 15 s, for 1m00s (2 forwards)");
        assert!(lines[5].starts_with("  queue_198 ") && lines[6].starts_with("  queue_199 "), "{lines:#?}");
        assert!(lines[7].starts_with("  queue_000 "));
        assert_eq!(lines.last().unwrap(), "... and 183 more, all working");
        assert_eq!(lines.iter().filter(|line| line.starts_with("  queue_")).count() + 183, 200);

        let all = draw(&config, &asker, Size { columns: None, rows: None }, now);
        assert_eq!(all.iter().filter(|line| line.starts_with("  queue_")).count(), 200);
    }

    #[test]
    fn a_hundred_servers_down_leave_room_for_the_forwards() {
        let names: Vec<String> = (0..100).map(|number| format!("h{number}/q")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "b/q")).collect();
        let config = config(&pairs);
        let mut asker = Asker::new(&config);
        for name in &names {
            let there = Address::parse(name).unwrap().server;
            asker.servers.insert(there, Err("connection refused".to_owned()));
        }
        let lines = draw(&config, &asker, NARROW, Instant::now());
        assert!(lines.len() < 24, "{lines:#?}");
        assert!(lines.contains(&"... and 90 more".to_owned()), "{lines:#?}");
        assert!(lines.iter().any(|line| line.ends_with("source down")), "{lines:#?}");
        assert!(lines.last().unwrap().starts_with("... and 9"), "{lines:#?}");
        assert!(lines.last().unwrap().ends_with("of them not working"), "{lines:#?}");
    }

    #[test]
    fn no_line_is_wider_than_the_screen_and_nothing_reaches_the_terminal_raw() {
        let long = format!("a/{}", "q".repeat(300));
        let config = config(&[(&long, "b/other")]);
        let mut asker = Asker::new(&config);
        asker.status = Some(Err("\x1b[2J".repeat(40)));
        for columns in [1, 10, 80, 200] {
            for line in draw(&config, &asker, Size { columns: Some(columns), rows: Some(24) }, Instant::now()) {
                assert!(line.chars().count() <= columns, "{line}");
                assert!(!line.contains('\x1b'));
            }
        }
        let lines = draw(&config, &asker, Size { columns: None, rows: None }, Instant::now());
        assert!(lines.iter().any(|line| line.contains(&format!("{} -> other", "q".repeat(300)))));
    }

    #[test]
    fn another_processs_counters_make_no_rate() {
        let config = config(&[("a/q", "b/q")]);
        let mut asker = Asker::new(&config);
        let now = Instant::now();
        let counted = |jobs| ForwardReport { jobs, ..Default::default() };
        asker.previous = Some(report(now.checked_sub(Duration::from_secs(1)).unwrap(), &[("a:4730/q", counted(9))]));
        asker.status = Some(Ok(report(now, &[("a:4730/q", counted(1))])));
        let lines = draw(&config, &asker, NARROW, now);
        assert_eq!(lines[4], "  q          -      0      -       -        -       0  connecting");
    }

    #[test]
    fn numbers_and_times_are_short() {
        let numbers =
            [0.0, 0.04, 0.5, 9.96, 12.3, 99_999.0, 123_456.0, 1_234_567.0, 45_678_901.0, 5e9, 7e12, 8e15, 1e18];
        let shown = numbers.map(short);
        assert_eq!(
            shown,
            ["0", "0.0", "0.5", "10", "12", "99999", "123k", "1.23M", "45.7M", "5.00G", "7.00T", "8P", "1000P"]
        );
        let times = [0, 59, 60, 3599, 3600, 86_399, 86_400, 90 * 86_400].map(age);
        assert_eq!(times, ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h", "90d00h"]);
    }
}
