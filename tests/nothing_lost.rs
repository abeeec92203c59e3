//! What a sudden end costs: nothing.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Gearmand, Proxy, Queue, Relay, Site, Status, assert_same_set, numbered, wait_for};

/// Rounds in which the proxy is killed; more of them for a long night.
fn rounds() -> usize {
    std::env::var("GEARMAN_PROXY_TEST_ROUNDS").map_or(15, |rounds| rounds.parse().unwrap())
}

#[test]
fn kill_9_at_any_moment_loses_nothing_and_leaves_nothing_twice_in_the_destination() {
    let mut site = Site::start("worker = 2");
    let mut sent = Vec::new();
    for round in 0..rounds() {
        // Each twice: jobs with equal data stay two jobs.
        let some: Vec<_> = (0..1000).map(|n| format!("job {round} {}", n / 2).into_bytes()).collect();
        site.source.submit_all("work", &some);
        sent.extend(some);
        // Another moment in each round, from the first jobs under way to the last.
        let enough = sent.len() - 1000 + (round * 137) % 1000;
        wait_for("jobs are under way", || site.destination.status("work").total > enough);
        site.proxy.kill();
        site.proxy.start_again();
    }
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&sent, &site.destination.drain_data("work"));
}

#[test]
fn kill_9_between_delivery_and_acknowledgement_merges_the_job_with_its_first_copy() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let mut proxy = Proxy::start(&format!("{} = {}", source.queue("work"), line.queue("work")));
    source.wait_for_workers("work", 1);
    line.hold_replies(true);
    let jobs = [numbered(100), numbered(100)].concat();
    source.submit_all("work", &jobs);
    destination.wait_for_jobs("work", 200);
    assert_eq!(source.status("work"), Queue { total: 200, running: 200, workers: 1 });
    proxy.kill();
    line.hold_replies(false);
    proxy.start_again();
    source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &destination.drain_data("work"));
}

#[test]
fn kill_9_while_the_destination_is_down_loses_nothing() {
    let mut site = Site::start("");
    // Jobs are asked for only while the destination is well, so it hangs before it is dead.
    site.destination.freeze();
    let jobs = numbered(1000);
    site.source.submit_all("work", &jobs);
    wait_for("jobs are held", || site.source.status("work").running > 0);
    site.destination.kill();
    site.proxy.kill();
    site.proxy.start_again();
    site.destination.launch();
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &site.destination.drain_data("work"));
}

#[test]
fn kill_9_gives_a_synchronous_job_to_the_next_proxy() {
    let mut site = Site::start("async = 0");
    let mut client = site.source.client();
    client.submit("work", b"", b"data");
    let mut worker = site.destination.worker("work");
    let first = worker.grab();
    site.proxy.kill();
    site.proxy.start_again();
    let second = worker.grab();
    worker.complete(&first, b"for nobody");
    worker.complete(&second, b"result");
    assert_eq!(client.receive().after_handle(), b"result");
}

#[test]
fn two_proxies_share_the_work_and_the_death_of_either_costs_nothing() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = |name: &str| {
        let (from, to) = (source.queue("work"), destination.queue("work"));
        format!("statusqueue = {}\n{from} = {to}\nprefetch = 50\n", source.queue(name))
    };
    let mut proxies = [Proxy::start(&config("status_0")), Proxy::start(&config("status_1"))];
    source.wait_for_workers("work", 2);
    let mut sent = Vec::new();
    let mut submit = |round: usize| {
        let some: Vec<_> = (0..1000).map(|n| format!("job {round} {}", n / 2).into_bytes()).collect();
        source.submit_all("work", &some);
        sent.extend(some);
        sent.len()
    };
    let mut rounds = 0..;
    let mut submit_more = || submit(rounds.next().unwrap());
    wait_for("both have delivered jobs", || {
        submit_more();
        let jobs = |queue| Status::ask(&source, queue, "check").value("total_jobs");
        jobs("status_0") > 0 && jobs("status_1") > 0
    });
    for turn in 0..6 {
        let all = submit_more();
        wait_for("jobs are under way", || destination.status("work").total + 900 > all);
        proxies[turn % 2].kill();
        // The other one alone brings everything.
        let all = submit_more();
        destination.wait_for_jobs("work", all);
        source.wait_for_jobs("work", 0);
        proxies[turn % 2].start_again();
        source.wait_for_workers("work", 2);
    }
    assert_same_set(&sent, &destination.drain_data("work"));
}

/// With queues that outlive their servers, so that only the proxy could lose something.
#[test]
fn restarts_of_both_servers_lose_nothing() {
    let persistent = ["--queue-type", "libsqlite3", "--libsqlite3-db", "queue.db"];
    let (mut source, mut destination) = (Gearmand::start_with(&persistent), Gearmand::start_with(&persistent));
    let _proxy = Proxy::start(&format!("{} = {}", source.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    let mut sent = Vec::new();
    for round in 0..6 {
        // Ids of their own, since handles start again with their server.
        let mut client = source.client();
        for n in 0..50 {
            let data = format!("job {round} {n}").into_bytes();
            client.submit_background("work", &data, &data);
            sent.push(data);
        }
        let enough = sent.len() - 50 + 8 * round;
        wait_for("jobs are under way", || destination.status("work").total > enough);
        if round % 2 == 0 { source.restart() } else { destination.restart() }
    }
    destination.wait_for_jobs("work", sent.len());
    source.wait_for_jobs("work", 0);
    assert_same_set(&sent, &destination.drain_data("work"));
}

#[test]
fn a_burst_of_signals_kills_and_restarts_loses_nothing() {
    let mut site = Site::start("");
    let forward = format!("{} = {}\n", site.source.queue("work"), site.destination.queue("work"));
    let mut sent = Vec::new();
    for round in 0..rounds() {
        let hangs = round % 4 == 3;
        if hangs {
            site.destination.freeze();
        }
        let some: Vec<_> = (0..500).map(|n| format!("job {round} {n}").into_bytes()).collect();
        site.source.submit_all("work", &some);
        sent.extend(some);
        match round % 4 {
            0 => site.proxy.reload(&format!("{forward}prefetch = {}\n", 10 + round)),
            1 => assert_eq!(site.proxy.stop().code(), Some(0)),
            2 => site.proxy.kill(),
            _ => wait_for("jobs are held", || site.source.status("work").running > 0),
        }
        if hangs {
            site.destination.thaw();
        }
        if !site.proxy.is_running() {
            site.proxy.start_again();
            site.source.wait_for_workers("work", 1);
        }
    }
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&sent, &site.destination.drain_data("work"));
}
