//! Many queues in a line: braces, and patterns whose queues are found at the source.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Gearmand, Proxy, Status, numbered, stays, wait_for, wait_within};

/// The source is asked every minute.
const FOUND: Duration = Duration::from_secs(75);

/// Queues at a server, by what its `status` says of their workers.
fn offered(server: &Gearmand, prefix: &str) -> usize {
    let status = server.ask("status");
    status.lines().filter(|line| line.starts_with(prefix) && line.ends_with("\t1")).count()
}

#[test]
fn five_hundred_queues_in_three_lines_and_a_new_one_within_a_minute() {
    let (local, remote) = (Gearmand::start(), Gearmand::start());
    let mut client = local.client();
    for n in 0..499 {
        client.submit_background(&format!("hostgroup_{n}"), b"", format!("job {n}").as_bytes());
    }
    client.submit_background("other", b"", b"stays");
    let results = remote.queue("check_results");
    let lines = [
        format!("{} = {}/", local.queue("{host,service}"), remote.server()),
        format!("{} = {}/", local.queue("hostgroup_*"), remote.server()),
        format!("{results} = {}/", local.server()),
    ];
    let proxy = Proxy::with_status(&local, &format!("{}\n", lines.join("\n")));
    wait_for("all hostgroups are relayed", || {
        let status = remote.ask("status");
        status.lines().filter(|line| line.starts_with("hostgroup_") && line.contains("\t1\t0\t0")).count() == 499
    });
    // Two words in braces, the results, and what was found.
    wait_for("the status has them", || Status::ask(&local, "proxy_status", "check").value("queues") == 502);
    assert_eq!(Status::ask(&local, "proxy_status", "check").message.split(':').next(), Some("0"));
    assert_eq!(local.status("other").total, 1);

    let first_job = Instant::now();
    client.submit_background("hostgroup_new", b"", b"first");
    wait_within(FOUND, "the new queue is relayed", || remote.status("hostgroup_new").total == 1);
    assert!(first_job.elapsed() < Duration::from_secs(65), "{:?}", first_job.elapsed());
    assert_eq!(remote.drain_data("hostgroup_new"), [b"first"]);
    assert_eq!(Status::ask(&local, "proxy_status", "check").value("queues"), 503);
    let lines = proxy.log().lines().count();
    assert!(lines < 10, "{lines} lines for 503 forwards:\n{}", proxy.log());
}

#[test]
fn explicit_forwards_the_status_queue_and_reject_queues_are_not_the_patterns() {
    let (local, remote) = (Gearmand::start(), Gearmand::start());
    local.submit_all("q_explicit", &numbered(3));
    local.submit_all("q_found", &numbered(3));
    local.submit_all("q_rejects", &numbered(3));
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}/\n{} = {}\ndecrypt = x\nreject_queue = q_rejects\n",
        local.queue("q_status"),
        local.queue("q_*"),
        remote.server(),
        local.queue("q_explicit"),
        remote.queue("elsewhere"),
    ));
    remote.wait_for_jobs("q_found", 3);
    local.wait_for_jobs("q_rejects", 6);
    stays(Duration::from_secs(2), "the rejects stay", || local.status("q_rejects").total == 6);
    assert_eq!(Status::ask(&local, "q_status", "check").value("queues"), 2);
}

#[test]
fn a_reload_keeps_the_forwards_that_still_match() {
    let (local, remote) = (Gearmand::start(), Gearmand::start());
    for queue in ["a_1", "a_2", "b_1"] {
        local.submit_all(queue, &numbered(5));
    }
    let line = |pattern: &str| format!("{} = {}/\n", local.queue(pattern), remote.server());
    let status = format!("statusqueue = {}\n", local.queue("proxy_status"));
    let proxy = Proxy::start(&format!("{status}{}{}", line("a_*"), line("b_*")));
    for queue in ["a_1", "a_2", "b_1"] {
        remote.wait_for_jobs(queue, 5);
        local.wait_for_jobs(queue, 0);
    }
    let before = remote.connections();
    assert_eq!(before.len(), 3);
    proxy.reload(&format!("{status}{}", line("a_*")));
    local.wait_for_workers("b_1", 0);
    assert_eq!((offered(&local, "a_"), offered(&local, "b_")), (2, 0));
    let after = remote.connections();
    assert!(after.len() == 2 && after.iter().all(|port| before.contains(port)), "{before:?} {after:?}");
    // With their counters.
    assert_eq!(Status::ask(&local, "proxy_status", "check").value("a_1::jobs"), 5);
}

#[test]
fn more_than_a_thousand_queues_are_an_error_in_the_status() {
    let (mut local, remote) = (Gearmand::start(), Gearmand::start());
    let mut client = local.client();
    for n in 0..1005 {
        client.submit_background(&format!("q_{n:04}"), b"", b"x");
    }
    let config =
        format!("statusqueue = {}\n{} = {}/\n", remote.queue("proxy_status"), local.queue("q_*"), remote.server());
    let _proxy = Proxy::start(&config);
    let told = format!("{}: 1005 queues match the pattern in line 2, relaying 1000.", local.server());
    wait_for("the status tells", || Status::ask(&remote, "proxy_status", "check").message.contains(&told));
    let table = Status::ask(&remote, "proxy_status", "table 200x20").text;
    assert!(table.lines().any(|line| line == told), "{table}");
    wait_for("they are started", || Status::ask(&remote, "proxy_status", "check").value("queues") == 1000);
    local.kill();
}

#[test]
fn a_patterns_server_that_is_down_is_told_and_tried_again_soon() {
    let (mut local, remote) = (Gearmand::down(), Gearmand::start());
    let proxy = Proxy::with_status(&remote, &format!("{} = {}/\n", local.queue("q_*"), remote.server()));
    let told =
        format!("2:CRITICAL - proxy version v1.0.0 running. 1 server failed: {} (connection refused).", local.server());
    wait_for("the status tells", || Status::ask(&remote, "proxy_status", "check").message == told);
    proxy.wait_for_log("asking for its queues again in 5 s");
    local.launch();
    local.submit_all("q_1", &numbered(1));
    wait_within(Duration::from_secs(30), "it is relayed", || remote.status("q_1").total == 1);
    wait_for("all is well", || Status::ask(&remote, "proxy_status", "check").message.starts_with("0:OK"));
    let found: Vec<_> = proxy.log().lines().filter(|line| line.contains("unavailable")).map(str::to_owned).collect();
    assert_eq!(found.len(), 1, "{found:#?}");
}
