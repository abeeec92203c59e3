//! Lost servers in the log: few lines, whatever the number of forwards.
//!
//! Each forward reports what happens to its connections. One line is made of all reports about the same server and kind of
//! reason, repetitions are dropped, and at most eight lines a minute are written; when there is more to say, several servers
//! share a line. The time is an argument, so a test needs no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::{Duration, Instant};

use log::Level;

/// Reports with less than this between them make one line.
const GATHER: Duration = Duration::from_millis(300);

/// A line waits this long at most: forwards find out one after the other that a server hangs.
const GATHER_MOST: Duration = Duration::from_secs(2);

/// The same for connections that work again, whose next tries are spread over a longer time.
const GATHER_BACK: Duration = Duration::from_secs(2);

/// A reason that was reported within this time is not reported again.
const NEWS: Duration = Duration::from_secs(60);

/// A server that keeps coming and going is reported again after this time, with a count.
const REMIND: Duration = Duration::from_secs(600);

/// Lines a minute at most.
const LINES: usize = 8;

/// Servers that are named in a line for many.
const NAMED: usize = 3;

/// A forward's report that it lost a server, or couldn't connect to it.
#[derive(Debug, Clone)]
pub struct Lost {
    /// `HOST:PORT`.
    pub server: String,
    /// What the server is to the forward: `source`, `destination`, `reject queue`.
    pub role: &'static str,
    /// What reasons are compared by: the same for texts that differ only in numbers.
    pub kind: &'static str,
    /// What happened, in words.
    pub reason: String,
    /// The forward, as lines name it.
    pub forward: String,
    /// What happens next, e.g. `trying again, its jobs wait`.
    pub next: String,
}

/// What is known of all servers in trouble: one for all threads. The main loop asks for lines a few times a second.
#[derive(Debug, Default)]
pub struct Outages {
    servers: BTreeMap<String, Server>,
    /// By server and kind.
    reasons: BTreeMap<(String, &'static str), Reason>,
    /// Those that relay for the first time, by source.
    begun: BTreeMap<String, Gathering>,
    /// When the lines of the last minute were written.
    written: Vec<Instant>,
}

#[derive(Debug, Default)]
struct Server {
    /// The forwards without a connection.
    down: BTreeSet<String>,
    since: Option<Instant>,
    /// The log has a line about this outage, so it gets one about its end.
    told: bool,
    /// Forwards that are connected again and not told of, and their jobs.
    returned: usize,
    waiting: u64,
    back_due: Option<Instant>,
}

/// Forwards that share a line, which waits for more of them.
#[derive(Debug)]
struct Gathering {
    forwards: BTreeSet<String>,
    due: Instant,
    latest: Instant,
}

impl Gathering {
    fn new(now: Instant) -> Gathering {
        Gathering { forwards: BTreeSet::new(), due: now + GATHER, latest: now + GATHER_MOST }
    }

    fn add(&mut self, forward: &str, now: Instant) {
        if self.forwards.insert(forward.to_owned()) {
            self.due = (now + GATHER).min(self.latest);
        }
    }
}

/// A kind of reason at one server.
#[derive(Debug, Default)]
struct Reason {
    last: Option<Lost>,
    heard: Option<Instant>,
    /// The line that waits.
    line: Option<Gathering>,
    written: Option<Instant>,
    /// Outages since the last line.
    times: u64,
}

impl Outages {
    pub fn lost(&mut self, lost: &Lost, now: Instant) {
        let server = self.servers.entry(lost.server.clone()).or_default();
        server.since.get_or_insert(now);
        let fresh = server.down.insert(lost.forward.clone());
        let reason = self.reasons.entry((lost.server.clone(), lost.kind)).or_default();
        reason.times += u64::from(fresh);
        let news = reason.heard.is_none_or(|heard| now.duration_since(heard) >= NEWS);
        let forgotten = reason.written.is_some_and(|written| now.duration_since(written) >= REMIND);
        if reason.line.is_none() && (news || (fresh && forgotten)) {
            reason.line = Some(Gathering::new(now));
        }
        if let Some(line) = &mut reason.line {
            line.add(&lost.forward, now);
        }
        (reason.heard, reason.last) = (Some(now), Some(lost.clone()));
    }

    /// A forward relays for the first time, from `source`.
    pub fn began(&mut self, source: &str, forward: &str, now: Instant) {
        self.begun.entry(source.to_owned()).or_insert_with(|| Gathering::new(now)).add(forward, now);
    }

    /// A forward is connected to `server` again, and has this many jobs for it.
    pub fn back(&mut self, server: &str, forward: &str, waiting: u64, now: Instant) {
        let Some(server) = self.servers.get_mut(server) else { return };
        if server.down.remove(forward) {
            server.returned += 1;
            server.waiting += waiting;
            server.back_due.get_or_insert(now + GATHER_BACK);
        }
    }

    /// A forward has ended, and is waited for no longer.
    pub fn gone(&mut self, forward: &str) {
        for server in self.servers.values_mut() {
            if server.down.remove(forward) && server.down.is_empty() && server.back_due.is_none() {
                (server.since, server.told) = (None, false);
            }
        }
    }

    /// The lines that are due.
    pub fn lines(&mut self, now: Instant) -> Vec<(Level, String)> {
        self.written.retain(|written| now.duration_since(*written) < NEWS);
        let room = LINES - self.written.len();
        if room == 0 {
            return Vec::new();
        }
        type Take = fn(&mut Outages, Instant) -> Vec<String>;
        // Servers that are lost leave half of it to others.
        let kinds: [(Level, &str, usize, Take); 3] = [
            (Level::Warn, "servers unavailable", room.div_ceil(2), Outages::take_lost),
            (Level::Info, "servers back", room, Outages::take_back),
            (Level::Info, "sources connected", room, Outages::take_begun),
        ];
        let mut lines = Vec::new();
        for (level, what, most, take) in kinds {
            if lines.len() < most {
                let texts = merged(take(self, now), most - lines.len(), what);
                lines.extend(texts.into_iter().map(|text| (level, text)));
            }
        }
        self.written.extend(lines.iter().map(|_| now));
        let recent = |heard: Option<Instant>| heard.is_some_and(|heard| now.duration_since(heard) < REMIND);
        self.reasons.retain(|_, reason| reason.line.is_some() || recent(reason.heard));
        self.servers.retain(|_, server| !server.down.is_empty() || server.back_due.is_some());
        lines
    }

    fn take_lost(&mut self, now: Instant) -> Vec<String> {
        let mut lost = Vec::new();
        for ((name, _), reason) in &mut self.reasons {
            let line = reason.line.take_if(|line| line.due <= now);
            let (Some(Gathering { forwards, .. }), Some(last)) = (line, &reason.last) else { continue };
            let who = match (forwards.len(), forwards.first()) {
                (1, Some(forward)) => forward.clone(),
                (count, _) => format!("{count} forwards"),
            };
            // More than once for each of them since the last line: it comes and goes.
            let times = reason.times / forwards.len().max(1) as u64;
            let often = if reason.written.is_some() && times > 1 { format!(", {times} times") } else { String::new() };
            let Lost { role, reason: why, next, .. } = last;
            lost.push(format!("{role} {name} unavailable ({who}{often}): {why}; {next}"));
            (reason.written, reason.times) = (Some(now), 0);
            self.servers.entry(name.clone()).and_modify(|server| server.told = true);
        }
        lost
    }

    fn take_begun(&mut self, now: Instant) -> Vec<String> {
        let due = self.begun.extract_if(.., |_, line| line.due <= now);
        due.map(|(source, Gathering { forwards, .. })| match forwards.first() {
            Some(forward) if forwards.len() == 1 => format!("forwarding {forward}"),
            _ => format!("forwarding from {source}: {} forwards", forwards.len()),
        })
        .collect()
    }

    fn take_back(&mut self, now: Instant) -> Vec<String> {
        let mut back = Vec::new();
        for (name, server) in &mut self.servers {
            // Either all are back and have been for GATHER, or the rest took longer than GATHER_BACK.
            let all = server.down.is_empty() && server.back_due.is_some_and(|due| due <= now + GATHER_BACK - GATHER);
            if !all && server.back_due.is_none_or(|due| due > now) {
                continue;
            }
            let (returned, waiting) = (mem::take(&mut server.returned), mem::take(&mut server.waiting));
            server.back_due = None;
            if mem::take(&mut server.told) {
                let total = returned + server.down.len();
                let after = now.duration_since(server.since.unwrap_or(now)).as_secs();
                back.push(format!(
                    "{name} back after {after} s: {returned} of {total} forwards connected, {waiting} jobs waiting"
                ));
            }
            if server.down.is_empty() {
                server.since = None;
            }
        }
        back
    }
}

/// All lines, or one for those that are too many.
fn merged(mut lines: Vec<String>, room: usize, what: &str) -> Vec<String> {
    if lines.len() > room {
        let rest = lines.split_off(room - 1);
        let named: Vec<_> = rest.iter().take(NAMED).map(String::as_str).collect();
        let more = rest.len() - named.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        lines.push(format!("{} {what}: {}{more}", rest.len(), named.join("; ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(server: &str, kind: &'static str, reason: &str, forward: usize) -> Lost {
        Lost {
            server: server.to_owned(),
            role: "destination",
            kind,
            reason: reason.to_owned(),
            forward: format!("a/{forward}"),
            next: String::from("trying again"),
        }
    }

    /// A clock for a board, which is asked every 200 ms.
    struct Night {
        board: Outages,
        start: Instant,
        millis: u64,
        /// With the millisecond of each.
        lines: Vec<(u64, (Level, String))>,
    }

    impl Night {
        fn new() -> Night {
            Night { board: Outages::default(), start: Instant::now(), millis: 0, lines: Vec::new() }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_millis(self.millis)
        }

        /// Lets time pass; `step` is called every 200 ms.
        fn pass(&mut self, seconds: u64, mut step: impl FnMut(&mut Outages, u64, Instant)) {
            for _ in 0..seconds * 5 {
                self.millis += 200;
                let now = self.now();
                step(&mut self.board, self.millis, now);
                self.lines.extend(self.board.lines(now).into_iter().map(|line| (self.millis, line)));
            }
        }

        fn texts(&self) -> Vec<&str> {
            self.lines.iter().map(|(_, (_, text))| text.as_str()).collect()
        }

        fn most_in_a_minute(&self) -> usize {
            let within = |from: u64| self.lines.iter().filter(|(at, _)| (from..from + 60_000).contains(at)).count();
            self.lines.iter().map(|(at, _)| within(*at)).max().unwrap_or(0)
        }
    }

    #[test]
    fn forwards_that_lose_a_server_together_make_one_line_and_one_when_it_is_back() {
        let mut night = Night::new();
        for n in 0..12 {
            night.board.lost(&report("b:4730", "refused", "connection refused", n), night.now());
        }
        night.pass(40, |board, millis, now| {
            for n in 0..12 {
                // Other numbers are not another reason.
                board.lost(&report("b:4730", "refused", &format!("refused after {millis} ms"), n), now);
            }
        });
        assert_eq!(night.texts(), ["destination b:4730 unavailable (12 forwards): refused after 400 ms; trying again"]);
        for n in 0..12 {
            night.board.back("b:4730", &format!("a/{n}"), 10, night.now());
        }
        night.pass(10, |_, _, _| {});
        assert_eq!(night.texts()[1..], ["b:4730 back after 40 s: 12 of 12 forwards connected, 120 jobs waiting"]);
        assert!(matches!(night.lines[1], (40_400, (Level::Info, _))), "{:?}", night.lines);
    }

    #[test]
    fn forwards_that_begin_together_make_one_line() {
        let mut night = Night::new();
        for n in 0..100 {
            night.board.began("a:4730", &format!("a:4730/{n} = b:4730/{n}"), night.now());
        }
        night.board.began("c:4730", "c:4730/q = b:4730/q", night.now());
        night.pass(5, |_, _, _| {});
        assert_eq!(night.texts(), ["forwarding from a:4730: 100 forwards", "forwarding c:4730/q = b:4730/q"]);
    }

    #[test]
    fn one_forward_is_named_and_another_reason_is_news() {
        let mut night = Night::new();
        night.board.lost(&report("b:4730", "refused", "connection refused", 7), night.now());
        night.pass(5, |_, _, _| {});
        night.board.lost(&report("b:4730", "silent", "no answer for 10 s", 7), night.now());
        night.pass(5, |_, _, _| {});
        assert_eq!(
            night.texts(),
            [
                "destination b:4730 unavailable (a/7): connection refused; trying again",
                "destination b:4730 unavailable (a/7): no answer for 10 s; trying again"
            ]
        );
    }

    #[test]
    fn those_that_come_back_late_are_not_waited_for_and_make_no_further_lines() {
        let mut night = Night::new();
        for n in 0..3 {
            night.board.lost(&report("b:4730", "refused", "connection refused", n), night.now());
        }
        night.pass(10, |_, _, _| {});
        night.board.back("b:4730", "a/0", 1, night.now());
        night.board.back("b:4730", "a/1", 1, night.now());
        night.board.back("b:4730", "unknown", 1, night.now());
        night.board.back("c:4730", "a/1", 1, night.now());
        night.pass(10, |_, _, _| {});
        night.board.back("b:4730", "a/2", 1, night.now());
        night.pass(10, |_, _, _| {});
        assert_eq!(night.texts()[1..], ["b:4730 back after 12 s: 2 of 3 forwards connected, 2 jobs waiting"]);
    }

    #[test]
    fn a_hundred_forwards_at_a_hanging_a_full_and_a_refusing_destination_fill_no_log() {
        // All at three servers, and each at one of its own.
        for own in [false, true] {
            let mut night = Night::new();
            night.pass(3600, |board, millis, now| {
                for n in 0..100 {
                    let server = if own { format!("b{n}:4730") } else { format!("b{}:4730", n % 3) };
                    // Each tries at its own time, every 11 to 25 s.
                    let every = 11_000 + (n as u64 * 7919 % 70) * 200;
                    if millis % every != (n as u64 * 200) % every {
                        continue;
                    }
                    match n % 3 {
                        0 => board.lost(&report(&server, "silent", &format!("no answer for {millis} ms"), n), now),
                        1 => board.lost(&report(&server, "full", "queue full", n), now),
                        _ if (millis / every).is_multiple_of(2) => {
                            board.lost(&report(&server, "refused", "refused", n), now)
                        }
                        _ => board.lost(&report(&server, "broken", "broken pipe", n), now),
                    }
                }
            });
            assert!(night.most_in_a_minute() < 10, "{}", night.most_in_a_minute());
            let late = night.lines.iter().filter(|(at, _)| *at > 300_000).count();
            assert_eq!(late, 0, "{:?}", night.texts());
            assert!(night.lines.len() >= 4, "{:?}", night.texts());
        }
    }

    #[test]
    fn a_hundred_servers_that_come_and_go_fill_no_log_and_are_not_forgotten() {
        let mut night = Night::new();
        night.pass(3600, |board, millis, now| {
            for n in 0..100 {
                let server = format!("b{n}:4730");
                match millis % 20_000 {
                    10_000 => board.lost(&report(&server, "broken", "closed by the server", n), now),
                    15_000 => board.back(&server, &format!("a/{n}"), 1, now),
                    _ => {}
                }
            }
        });
        assert!(night.most_in_a_minute() < 10, "{}", night.most_in_a_minute());
        assert!(night.lines.len() < 150, "{}", night.lines.len());
        let last = night.texts().into_iter().rfind(|line| line.contains("unavailable")).unwrap_or_default();
        assert!(last.contains(", 31 times)"), "{:?}", night.texts());
    }

    #[test]
    fn a_forward_that_ended_is_not_waited_for() {
        let mut night = Night::new();
        for n in 0..2 {
            night.board.lost(&report("b:4730", "refused", "connection refused", n), night.now());
        }
        night.pass(10, |_, _, _| {});
        night.board.gone("a/0");
        night.board.back("b:4730", "a/1", 5, night.now());
        night.pass(10, |_, _, _| {});
        assert_eq!(night.texts()[1..], ["b:4730 back after 10 s: 1 of 1 forwards connected, 5 jobs waiting"]);
        // The last one ended: there is no forward left for a line about the server's return.
        night.board.lost(&report("b:4730", "silent", "no answer", 1), night.now());
        night.board.gone("a/1");
        night.pass(1200, |_, _, _| {});
        assert_eq!(night.lines.len(), 3, "{:?}", night.texts());
        assert!(night.board.servers.is_empty());
    }

    #[test]
    fn many_servers_at_once_share_a_line() {
        let mut night = Night::new();
        for n in 0..20 {
            night.board.lost(&report(&format!("b{n:02}:4730"), "refused", "refused", n), night.now());
        }
        night.pass(5, |_, _, _| {});
        let texts = night.texts();
        assert_eq!(texts.len(), 4);
        assert!(
            texts[3].starts_with("17 servers unavailable: destination b03:4730 unavailable (a/3): refused; "),
            "{}",
            texts[3]
        );
        assert!(texts[3].ends_with("; and 14 more"), "{}", texts[3]);
        for n in 0..20 {
            night.board.back(&format!("b{n:02}:4730"), &format!("a/{n}"), 0, night.now());
        }
        night.pass(5, |_, _, _| {});
        assert!(night.texts()[7].starts_with("17 servers back: "), "{:?}", night.texts());
        night.pass(1200, |_, _, _| {});
        assert!(night.board.servers.is_empty() && night.board.reasons.is_empty(), "nothing is kept forever");
    }
}
