//! Servers that come and go, lines that break, and what a forward makes of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use support::{Gearmand, Proxy, Queue, Relay, Site, assert_same_set, numbered, stays, wait_for};

fn forward(source: &Gearmand, destination: &Gearmand) -> String {
    format!("{} = {}\n", source.queue("work"), destination.queue("work"))
}

#[test]
fn either_server_may_be_restarted_and_nothing_else_need_be() {
    let mut site = Site::start("");
    for round in 0..3 {
        site.source.restart();
        let jobs = vec![format!("after the source's restart {round}").into_bytes(); 3];
        site.source.submit_all("work", &jobs);
        site.destination.wait_for_jobs("work", 3);
        assert_eq!(site.destination.drain_data("work"), jobs);

        site.destination.restart();
        let jobs = vec![format!("after the destination's restart {round}").into_bytes(); 3];
        site.source.submit_all("work", &jobs);
        site.destination.wait_for_jobs("work", 3);
        assert_eq!(site.destination.drain_data("work"), jobs);
    }
    assert!(site.proxy.is_running());
}

#[test]
fn servers_may_be_started_after_the_proxy() {
    let (mut source, mut destination) = (Gearmand::down(), Gearmand::down());
    let proxy = Proxy::start(&forward(&source, &destination));
    // It says so, once it has tried.
    proxy.wait_for_log(&destination.server());
    destination.launch();
    source.launch();
    source.submit_all("work", &numbered(10));
    destination.wait_for_jobs("work", 10);
    source.wait_for_jobs("work", 0);
}

#[test]
fn no_job_is_taken_and_no_worker_shown_while_the_destination_is_down() {
    let (source, mut destination) = (Gearmand::start(), Gearmand::down());
    let proxy = Proxy::start(&forward(&source, &destination));
    source.submit_all("work", &numbered(3));
    proxy.wait_for_log(&destination.server());
    stays(Duration::from_secs(2), "the jobs wait without a worker", || {
        source.status("work") == Queue { total: 3, running: 0, workers: 0 }
    });
    destination.launch();
    destination.wait_for_jobs("work", 3);
    source.wait_for_jobs("work", 0);
}

#[test]
fn no_job_is_taken_while_the_destination_accepts_and_never_answers() {
    let (source, mut destination) = (Gearmand::start(), Gearmand::start());
    destination.freeze();
    let _proxy = Proxy::start(&forward(&source, &destination));
    source.submit_all("work", &numbered(3));
    wait_for("the forward has connected", || !destination.connections().is_empty());
    stays(Duration::from_secs(2), "the jobs wait without a worker", || {
        source.status("work") == Queue { total: 3, running: 0, workers: 0 }
    });
    destination.thaw();
    destination.wait_for_jobs("work", 3);
    source.wait_for_jobs("work", 0);
}

#[test]
fn a_source_that_hangs_for_a_while_costs_nothing() {
    let mut site = Site::start("");
    site.source.freeze();
    stays(Duration::from_secs(2), "the proxy runs", || site.proxy.is_running());
    site.source.thaw();
    site.source.submit_all("work", &numbered(100));
    site.destination.wait_for_jobs("work", 100);
    site.source.wait_for_jobs("work", 0);
}

#[test]
fn servers_are_reached_by_ipv6() {
    let ip = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let (source, destination) = (Gearmand::start_on(ip), Gearmand::start_on(ip));
    assert!(source.server().starts_with("[::1]:"));
    let _proxy = Proxy::start(&forward(&source, &destination));
    source.submit_all("work", &numbered(10));
    destination.wait_for_jobs("work", 10);
    source.wait_for_jobs("work", 0);
}

#[test]
fn servers_are_reached_by_name_at_whichever_address_answers() {
    // `localhost` is ::1 and 127.0.0.1 on most machines; the server listens on one of them.
    let ip = IpAddr::from([127, 0, 0, 1]);
    let (source, destination) = (Gearmand::start_on(ip), Gearmand::start_on(ip));
    let port = |server: &Gearmand| server.address().port();
    let _proxy = Proxy::start(&format!("localhost:{}/work = LocalHost:{}/work\n", port(&source), port(&destination)));
    source.submit_all("work", &numbered(10));
    destination.wait_for_jobs("work", 10);
    source.wait_for_jobs("work", 0);
}

#[test]
fn the_proxy_says_who_it_is() {
    let site = Site::start("");
    let workers = site.source.ask("workers");
    let line = workers.lines().find(|line| line.ends_with("work")).unwrap();
    assert!(line.contains("gearman-proxy"), "{workers}");
}

/// Cuts a line again and again while jobs go over it; the destination keeps them all, so what is submitted twice is
/// merged there.
fn cuts(source_is_cut: bool, destination_is_cut: bool) {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let near = Relay::to(source.address());
    let far = Relay::to(destination.address());
    let _proxy = Proxy::start(&format!("{} = {}\nworker = 2\nprefetch = 500", near.queue("work"), far.queue("work")));
    source.wait_for_workers("work", 1);
    // Each twice: jobs with equal data stay two jobs.
    let jobs = [numbered(10_000), numbered(10_000)].concat();
    source.submit_all("work", &jobs);
    // No more than a few: the proxy waits longer each time before it comes back.
    for _ in 0..6 {
        let before = destination.status("work").total;
        wait_for("some jobs came or all are gone", || {
            destination.status("work").total > before + 200 || source.status("work").total == 0
        });
        if source_is_cut {
            near.cut();
        }
        if destination_is_cut {
            far.cut();
        }
    }
    source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &destination.drain_data("work"));
}

#[test]
fn cuts_of_the_source_line_lose_nothing_and_deliver_nothing_twice() {
    cuts(true, false);
}

#[test]
fn cuts_of_the_destination_line_lose_nothing_and_deliver_nothing_twice() {
    cuts(false, true);
}

#[test]
fn cuts_of_both_lines_lose_nothing_and_deliver_nothing_twice() {
    cuts(true, true);
}

/// Replies of the destination are lost: the proxy must submit again, under the same ids.
#[test]
fn jobs_whose_confirmation_was_lost_are_merged_with_their_first_copy() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let _proxy = Proxy::start(&format!("{} = {}", source.queue("work"), line.queue("work")));
    source.wait_for_workers("work", 1);
    let jobs = [numbered(50), numbered(50)].concat();
    line.hold_replies(true);
    source.submit_all("work", &jobs);
    destination.wait_for_jobs("work", 100);
    line.cut();
    line.hold_replies(false);
    source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &destination.drain_data("work"));
}

/// The destination has taken the jobs and worked them off when the source's line breaks before the acknowledgements
/// arrive: only the proxy's own memory keeps them from being delivered again.
#[test]
fn jobs_whose_acknowledgement_was_lost_are_not_delivered_again() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(source.address());
    let _proxy = Proxy::start(&format!("{} = {}", line.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        line.hold_acknowledgements(true);
        let jobs = [numbered(50), numbered(50)].concat();
        source.submit_all("work", &jobs);
        sent.extend(jobs);
        wait_for("jobs have been delivered", || destination.status("work").total > 0);
        received.extend(destination.drain_data("work"));
        assert_eq!(source.status("work").total, 100, "an acknowledgement came through");
        line.cut();
        line.hold_acknowledgements(false);
        source.wait_for_jobs("work", 0);
        received.extend(destination.drain_data("work"));
    }
    assert_same_set(&sent, &received);
}

#[test]
fn distance_does_not_cost_a_round_trip_a_job() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let delay = Duration::from_millis(25);
    let (near, far) = (Relay::with_delay(source.address(), delay), Relay::with_delay(destination.address(), delay));
    let _proxy = Proxy::start(&format!("{} = {}", near.queue("work"), far.queue("work")));
    source.wait_for_workers("work", 1);
    let jobs = numbered(5000);
    let begun = Instant::now();
    source.submit_all("work", &jobs);
    source.wait_for_jobs("work", 0);
    assert_eq!(destination.status("work").total, 5000);
    // One at a time it were 5,000 * 2 * 50 ms = 500 s.
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
}
