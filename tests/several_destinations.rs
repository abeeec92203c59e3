//! A forward with several destinations uses one at a time, and goes on with the next when that is lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Gearmand, Proxy, Status, numbered, wait_for, wait_within};

/// A destination that hangs keeps a forward for as long at most.
const STALLED: Duration = Duration::from_secs(60);

/// What of `sent` is in no list, and how often a job came more than once.
fn missing_and_repeated(sent: &[Vec<u8>], received: &[&[Vec<u8>]]) -> (usize, usize) {
    let all: Vec<&Vec<u8>> = received.iter().copied().flatten().collect();
    let distinct: std::collections::BTreeSet<&Vec<u8>> = all.iter().copied().collect();
    (sent.iter().filter(|job| !distinct.contains(job)).count(), all.len() - distinct.len())
}

#[test]
fn one_hangs_and_everything_reaches_the_other() {
    let (source, mut first, second) = (Gearmand::start(), Gearmand::start(), Gearmand::start());
    let proxy = Proxy::with_status(
        &source,
        &format!(
            "metricsfile = metrics.prom\n{} = {}, {}\n",
            source.queue("work"),
            first.queue("work"),
            second.queue("work")
        ),
    );
    source.wait_for_workers("work", 1);
    let jobs = numbered(1000);
    source.submit_all("work", &jobs[..300]);
    first.wait_for_jobs("work", 300);
    let table = || Status::ask(&source, "proxy_status", "table 200x20").text;
    let to = |server: &Gearmand| format!("{} -> {}", source.server(), server.server());
    assert!(table().contains(&to(&first)), "{}", table());

    first.freeze();
    let hangs = Instant::now();
    source.submit_all("work", &jobs[300..]);
    wait_within(STALLED, "the second has something", || second.status("work").total > 0);
    wait_within(STALLED, "all is delivered", || source.status("work").total == 0);
    let stalled = hangs.elapsed();
    assert!(stalled < STALLED, "{stalled:?}");
    assert!(table().contains(&to(&second)), "{}", table());
    wait_for("it works", || Status::ask(&source, "proxy_status", "check").message.starts_with("0:OK"));
    let metrics = proxy.folder().file("metrics.prom");
    wait_for("the metrics file names the second", || {
        let text = std::fs::read_to_string(&metrics).unwrap_or_default();
        let mut lines = text.lines().filter(|line| line.starts_with("gearman_proxy_forward_destination_in_use{"));
        // A series keeps its labels.
        lines.any(|line| line.ends_with(" 1") && line.contains(&first.server()))
    });

    // It stays there when the first is well again.
    first.thaw();
    let more = [b"later".to_vec()];
    source.submit_all("work", &more);
    source.wait_for_jobs("work", 0);
    let (at_first, at_second) = (first.drain_data("work"), second.drain_data("work"));
    assert!(at_second.contains(&more[0]));
    let sent: Vec<Vec<u8>> = jobs.into_iter().chain(more).collect();
    let (missing, repeated) = missing_and_repeated(&sent, &[&at_first, &at_second]);
    // What the first had in its socket when it hung may be on both.
    assert_eq!(missing, 0);
    assert!(repeated <= 700, "{repeated}");
    let log = proxy.log();
    let switched: Vec<&str> = log.lines().filter(|line| line.ends_with(" next")).collect();
    assert!(switched.len() == 1 && switched[0].ends_with(&format!("trying {} next", second.queue("work"))), "{log}");
}

#[test]
fn the_first_is_down_at_start_and_the_second_dies_later() {
    let (source, mut first, mut second) = (Gearmand::start(), Gearmand::down(), Gearmand::start());
    let _proxy = Proxy::with_status(
        &source,
        &format!("{} = {}, {}\n", source.queue("work"), first.queue("elsewhere"), second.queue("work")),
    );
    let jobs = numbered(200);
    source.submit_all("work", &jobs[..100]);
    second.wait_for_jobs("work", 100);
    assert_eq!(second.drain_data("work").len(), 100);
    source.wait_for_jobs("work", 0);
    second.kill();
    first.launch();
    source.submit_all("work", &jobs[100..]);
    wait_within(STALLED, "the first has the rest", || first.status("elsewhere").total == 100);
    let mut received = first.drain_data("elsewhere");
    received.sort();
    let mut sent = jobs[100..].to_vec();
    sent.sort();
    assert_eq!(received, sent);
    wait_for("it works", || Status::ask(&source, "proxy_status", "check").message.starts_with("0:OK"));
}
