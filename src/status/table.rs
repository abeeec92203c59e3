//! The answer to `table`: the forwards as a person wants to see them, the worst first.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{REJECTS_WARN, Verdict, label, printable};
use crate::metrics::{ForwardMetrics, Metrics, State};
use crate::sandbox;

/// The largest table, characters and lines, and the one without a size.
const LARGEST: (usize, usize) = (1000, 500);
const DEFAULT: (usize, usize) = (120, 500);

/// Room for a queue's name at least, and for the longest state at most, characters.
const MIN_NAME: usize = 12;
const STATE: usize = 36;

/// The columns of numbers and the room that each takes with the blanks before it.
const COLUMNS: [(&str, usize); 5] = [("JOBS/S", 9), ("BYTES/S", 9), ("HELD", 7), ("WAITING", 9), ("REJECTED", 10)];

/// One forward's line.
struct Row {
    name: String,
    numbers: [String; COLUMNS.len()],
    state: String,
    /// The larger, the further up.
    severity: (State, bool),
}

/// The table in the size that `payload` asks for (`table 120x50`), without a line end behind the last line. It begins as
/// the answer to `check` does: `0:OK - `.
pub(super) fn table(metrics: &Metrics, payload: &str, started: Instant) -> String {
    let (columns, lines) = size(payload);
    let verdict = Verdict::of(metrics);
    let Verdict { code, state, .. } = &verdict;
    let (version, process, up) = (env!("CARGO_PKG_VERSION"), std::process::id(), age(started.elapsed()));
    let (summary, seccomp) = (verdict.summary(), sandbox::status());
    let mut out = vec![format!(
        "{code}:{state} - gearman-proxy {version}, process {process}, up {up}: {summary}; seccomp {seccomp}"
    )];
    out.extend(verdict.sentences.iter().map(|sentence| format!("{sentence}.")));

    // The forwards between the same two servers stand together.
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for forward in metrics.forwards() {
        let ends = label(&format!("{} -> {}", forward.config.source.server, forward.destination().server));
        let row = row(&forward);
        match groups.iter_mut().find(|(of, _)| *of == ends) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((ends, vec![row])),
        }
    }
    for (_, rows) in &mut groups {
        rows.sort_by_key(|row| Reverse(row.severity));
    }
    groups.sort_by_key(|(_, rows)| Reverse(rows.first().map(|row| row.severity)));

    // The name's column takes what the others leave.
    let rows = || groups.iter().flat_map(|(_, rows)| rows);
    let longest = rows().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let numbers: usize = COLUMNS.iter().map(|(_, width)| width).sum();
    let state = rows().map(|row| 2 + row.state.len()).max().unwrap_or(0).min(STATE);
    let width = longest.min(columns.saturating_sub(2 + numbers + state).max(MIN_NAME)).max("FORWARD".len());
    out.push(line("FORWARD", width + 2, &COLUMNS.map(|(title, _)| title.to_owned()), "STATE"));
    // Each line with how many forwards stand in it.
    let mut body: Vec<(usize, String)> = Vec::new();
    for (ends, rows) in &groups {
        body.push((0, ends.clone()));
        let names = cut_names(&rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), width);
        let lines =
            rows.iter().zip(names).map(|(row, name)| line(&format!("  {name}"), width + 2, &row.numbers, &row.state));
        body.extend(lines.map(|line| (1, line)));
    }
    let room = lines.max(4).saturating_sub(out.len());
    if body.len() > room {
        // One line is kept for what is left out, and a head without a row says nothing.
        body.truncate(room.saturating_sub(1));
        body.pop_if(|(forwards, _)| *forwards == 0);
    }
    let shown: usize = body.iter().map(|(forwards, _)| forwards).sum();
    out.extend(body.into_iter().map(|(_, line)| line));
    if shown < verdict.forwards {
        let failed = verdict.forwards - verdict.working;
        let rest = if shown >= failed { "all working" } else { "not all of them working" };
        out.push(format!("... and {} more, {rest}", verdict.forwards - shown));
    }
    let cut = |line: &String| line.chars().take(columns).collect::<String>().trim_end().to_owned();
    out.iter().take(lines).map(cut).collect::<Vec<_>>().join("\n")
}

fn size(payload: &str) -> (usize, usize) {
    let asked = payload.split_whitespace().nth(1).and_then(|size| {
        let (columns, lines) = size.split_once('x')?;
        Some((columns.parse().ok()?, lines.parse().ok()?))
    });
    let (columns, lines): (usize, usize) = asked.unwrap_or(DEFAULT);
    (columns.clamp(1, LARGEST.0), lines.clamp(1, LARGEST.1))
}

fn row(forward: &ForwardMetrics) -> Row {
    let (source, destination) = (&forward.config.source, forward.destination());
    let (state, troubles) = (forward.state(), forward.troubles());
    let mut counts = forward.counts.lock();
    let rates = counts.rates(Instant::now());
    let shown = |number: Option<f64>| number.map_or_else(|| String::from("-"), short);
    let reject = counts.last_reject.as_ref().filter(|reject| reject.at.elapsed() < REJECTS_WARN);
    let text = if let Some((server, trouble)) = troubles.iter().min_by_key(|(_, trouble)| trouble.since) {
        let since = age(trouble.since.elapsed());
        format!("down {since}: {} ({})", printable(&trouble.reason), label(&server.to_string()))
    } else if state == State::Connecting {
        String::from("connecting")
    } else if let Some(reject) = reject {
        format!("working, rejected {} ago: {}", age(reject.at.elapsed()), printable(&reject.reason))
    } else {
        String::from("working")
    };
    Row {
        name: match source.queue == destination.queue {
            true => label(&source.queue),
            false => label(&format!("{} -> {}", source.queue, destination.queue)),
        },
        numbers: [
            shown(rates.map(|(jobs, _)| jobs)),
            shown(rates.map(|(_, bytes)| bytes)),
            counts.held.to_string(),
            shown(counts.waiting.map(|jobs| jobs as f64)),
            short(counts.rejected as f64),
        ],
        state: text,
        severity: (state, reject.is_some()),
    }
}

fn line(name: &str, width: usize, numbers: &[String; COLUMNS.len()], state: &str) -> String {
    let mut line = format!("{name:width$}");
    for (number, (_, width)) in numbers.iter().zip(COLUMNS) {
        line.push_str(&format!("{number:>width$}"));
    }
    line + "  " + state
}

/// Names of at most `width` characters, cut in the middle, no two of them alike.
fn cut_names(names: &[&str], width: usize) -> Vec<String> {
    // What fits stays as it is, so that no other may look like it.
    let fits = |name: &str| name.chars().count() <= width;
    let mut taken: BTreeSet<String> = names.iter().filter(|name| fits(name)).map(|&name| name.to_owned()).collect();
    let mut cut = |name: &str| {
        let characters: Vec<char> = name.chars().collect();
        // The same beginning and end: then they are numbered.
        let signs = (0u32..).map(|number| if number == 0 { String::from("~") } else { format!("~{number}~") });
        let mut candidates = signs.map(|sign| {
            let room = width.saturating_sub(sign.len());
            let (head, tail) = (room - room / 2, characters.len() - room / 2);
            let (head, tail) = (characters.iter().take(head), characters.iter().skip(tail));
            head.copied().chain(sign.chars()).chain(tail.copied()).collect::<String>()
        });
        candidates.find(|cut| taken.insert(cut.clone())).unwrap_or_default()
    };
    names.iter().map(|name| if fits(name) { (*name).to_owned() } else { cut(name) }).collect()
}

/// `3.2`, `950`, `12.3k`, `4.5M`: at most six characters.
fn short(number: f64) -> String {
    let (mut number, mut unit) = (number, 0);
    if number >= 10_000.0 {
        while number >= 999.95 && unit < 5 {
            (number, unit) = (number / 1000.0, unit + 1);
        }
    }
    match ["", "k", "M", "G", "T", "P"].get(unit).copied().unwrap_or_default() {
        "" if number.fract() < 0.05 || number >= 100.0 => format!("{number:.0}"),
        unit => format!("{number:.1}{unit}"),
    }
}

/// `12s`, `3m07s`, `5h02m`, `4d11h`.
fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::status::tests::forward;

    fn show(forwards: &[Arc<ForwardMetrics>], payload: &str) -> String {
        let metrics = Metrics::default();
        metrics.set_forwards(forwards.to_vec());
        table(&metrics, payload, Instant::now())
    }

    fn at_work(source: &str, destination: &str) -> Arc<ForwardMetrics> {
        let forward = forward(source, destination);
        forward.counts.lock().sessions += 1;
        forward
    }

    #[test]
    fn forwards_stand_under_their_servers_with_the_worst_first() {
        let forwards = [
            at_work("a:1/x", "b:1/x"),
            at_work("b:1/y", "a:1/y"),
            at_work("a:1/z", "b:1/there"),
            forward("b:1/new", "a:1/new"),
        ];
        forwards[0].delivered(12, 1, 1);
        forwards[2].set_held(5);
        forwards[2].counts.lock().waiting = Some(1_234_567);
        forwards[2].troubled(&forwards[2].destination().server, "connection refused");
        let text = show(&forwards, "table 200x50");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("1:WARNING - gearman-proxy 1.0.0, process "), "{text}");
        assert!(lines[0].contains(" up ") && lines[0].ends_with("s: 2 of 4 forwards working; seccomp off"), "{text}");
        assert_eq!(lines[1], "1 server failed: b:1 (connection refused).");
        assert_eq!(lines[2..4], ["backlog contains 1234572 jobs.", "1 forward connecting."]);
        let lines = &lines[2..];
        assert_eq!(lines[2], "FORWARD        JOBS/S  BYTES/S   HELD  WAITING  REJECTED  STATE");
        assert_eq!(lines[3], "a:1 -> b:1");
        assert!(lines[4].starts_with("  z -> there        -        -      5     1.2M         0  down "), "{text}");
        assert!(lines[4].ends_with("s: connection refused (b:1)"), "{text}");
        assert_eq!(lines[5], "  x                 -        -      0        -         0  working");
        assert_eq!(lines[6], "b:1 -> a:1");
        assert!(lines[7].starts_with("  new ") && lines[7].ends_with("  connecting"), "{text}");
        assert!(lines[8].starts_with("  y "), "{text}");
        assert_eq!(lines.len(), 9);
    }

    #[test]
    fn it_fits_the_size_that_is_asked_for() {
        let forwards: Vec<_> =
            (0..300).map(|n| at_work(&format!("a:{}/hostgroup_customer_{n}_europe", 1 + n % 3), "b:1/q")).collect();
        forwards[299].troubled(&forwards[299].config.source.server, "connection refused");
        for (columns, lines) in [(80, 24), (200, 50), (120, 10), (40, 5), (7, 1), (1000, 500)] {
            let text = show(&forwards, &format!("table {columns}x{lines}"));
            assert!(text.lines().count() <= lines, "{columns}x{lines}: {text}");
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}x{lines}: {text}");
        }
        assert!(show(&forwards, "table 80x24").contains("  down "), "the worst is among the first");
        assert!(show(&forwards, "table 80x24").ends_with(" more, all working"));
        assert!(show(&forwards, "table 5000x5000").lines().count() <= 500);
    }

    #[test]
    fn names_are_cut_in_the_middle_and_never_alike() {
        let names = ["hostgroup_customer_berlin", "hostgroup_customer_bern", "short", "hostgro~_berlin"];
        assert_eq!(cut_names(&names, 15), ["hostgr~1~berlin", "hostgro~er_bern", "short", "hostgro~_berlin"]);
        let alike: Vec<String> = (0..40).map(|n| format!("hostgroup_{n:030}_customer")).collect();
        let cut = cut_names(&alike.iter().map(String::as_str).collect::<Vec<_>>(), 12);
        assert_eq!(cut.iter().collect::<BTreeSet<_>>().len(), 40, "{cut:?}");
        assert!(cut.iter().all(|name| name.chars().count() == 12), "{cut:?}");
    }

    #[test]
    fn nothing_in_it_moves_a_cursor() {
        let odd = at_work("a:1/\u{1b}]0;x\u{7}\u{202e}y\u{9b}2J", "b:1/\r\n");
        odd.rejected("\u{1b}[2J");
        let text = show(&[odd], "table");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text:?}");
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.26, "0.3"),
            (3.0, "3"),
            (99.94, "99.9"),
            (950.4, "950"),
            (9999.0, "9999"),
            (10_000.0, "10.0k"),
            (123_456.0, "123.5k"),
            (999_960.0, "1.0M"),
            (4_500_000_000.0, "4.5G"),
            (1e22, "10000000.0P"),
        ] {
            assert_eq!(short(number), text);
        }
        for (seconds, text) in [(0, "0s"), (187, "3m07s"), (18_120, "5h02m"), (387_000, "4d11h")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
