//! Servers that come and go, lines that break, and what a forward makes of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use support::{Gearmand, Proxy, Queue, Relay, Site, numbered, stays, wait_for};

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
