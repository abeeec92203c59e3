//! Held through a blip, given back in an outage. Each of these takes half a minute or more.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::peer::{ECHO_REQ, ECHO_RES, JOB_CREATED, SUBMIT_JOB_BG};
use support::{
    Client, Gearmand, OUTAGE, Proxy, Queue, Site, Stub, Worker, assert_same_set, numbered, stays, wait_for,
    wait_until_equal, wait_within,
};

/// The jobs have gone back to the source, and no worker offers to take them.
fn given_back(source: &Gearmand, count: usize) {
    wait_within(OUTAGE, "the jobs are given back and the source is left", || {
        source.status("work") == Queue { total: count, running: 0, workers: 0 }
    });
}

/// Lets a server take no more than `count` jobs into the queue (0: any number). It must know the queue, and does as long
/// as the worker lives that is returned.
fn limit(server: &Gearmand, count: usize) -> Worker {
    let mut worker = server.worker("work");
    worker.settle();
    server.ask(&format!("maxqueue work {count}"));
    worker
}

/// A site whose proxy holds these jobs while their destination, which has heard of none, is dead. Jobs are asked for only
/// while it is well, so it hangs first.
fn holding(jobs: &[Vec<u8>]) -> Site {
    let mut site = Site::start("");
    site.destination.freeze();
    site.source.submit_all("work", jobs);
    wait_until_equal("jobs held", jobs.len(), || site.source.status("work").running);
    site.destination.kill();
    site
}

#[test]
fn jobs_are_held_in_order_while_the_destination_is_gone_for_a_moment() {
    let jobs = numbered(500);
    let mut site = holding(&jobs);
    let before = site.source.connections();
    site.destination.launch();
    site.destination.wait_for_jobs("work", 500);
    site.source.wait_for_jobs("work", 0);
    assert!(site.destination.drain_data("work") == jobs, "another order");
    assert_eq!(site.source.connections(), before, "the source was left");
}

#[test]
fn jobs_that_come_while_the_destination_is_gone_wait_at_the_source() {
    let jobs = numbered(500);
    let (held, more) = jobs.split_at(300);
    let mut site = holding(held);
    site.proxy.wait_for_log("holding 300 jobs");
    site.source.submit_all("work", more);
    stays(Duration::from_secs(2), "those that came later wait", || {
        site.source.status("work") == Queue { total: 500, running: 300, workers: 1 }
    });
    site.destination.launch();
    site.source.wait_for_jobs("work", 0);
    assert!(site.destination.drain_data("work") == jobs, "another order");
}

#[test]
fn jobs_are_given_back_when_the_destination_stays_away() {
    let jobs = numbered(500);
    let mut site = holding(&jobs);
    given_back(&site.source, 500);
    // Every try to connect fails from now on, and none takes a job.
    stays(Duration::from_secs(5), "the jobs wait without a worker", || {
        site.source.status("work") == Queue { total: 500, running: 0, workers: 0 }
    });
    site.destination.launch();
    site.destination.wait_for_jobs("work", 500);
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &site.destination.drain_data("work"));
}

#[test]
fn jobs_are_given_back_when_the_destination_hangs() {
    let mut site = Site::start("");
    site.destination.freeze();
    let jobs = numbered(500);
    site.source.submit_all("work", &jobs);
    wait_for("jobs are held", || site.source.status("work").running > 0);
    given_back(&site.source, 500);
    // What stood in its socket it takes now; what the proxy submits again is merged with that.
    site.destination.thaw();
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &site.destination.drain_data("work"));
}

/// A hung server's kernel still takes bytes: that alone must not pass for progress.
#[test]
fn a_destination_that_hangs_is_noticed_while_new_jobs_keep_coming() {
    let mut site = Site::start("");
    site.destination.freeze();
    let mut client = site.source.client();
    let mut sent = Vec::new();
    wait_within(OUTAGE, "the jobs are given back and the source is left", || {
        let data = format!("job {}", sent.len()).into_bytes();
        client.submit_background("work", b"", &data);
        sent.push(data);
        site.source.status("work").workers == 0
    });
    site.destination.thaw();
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&sent, &site.destination.drain_data("work"));
}

#[test]
fn jobs_are_held_while_the_destination_is_full_for_a_moment() {
    let site = Site::start("");
    let _knows = limit(&site.destination, 5);
    let jobs = numbered(50);
    site.source.submit_all("work", &jobs);
    site.destination.wait_for_jobs("work", 5);
    wait_until_equal("jobs held", 45, || site.source.status("work").running);
    let mut received = site.destination.drain_data("work");
    limit(&site.destination, 0);
    site.source.wait_for_jobs("work", 0);
    received.extend(site.destination.drain_data("work"));
    assert_same_set(&jobs, &received);
}

#[test]
fn jobs_are_given_back_when_the_destination_stays_full() {
    let site = Site::start("");
    let _knows = limit(&site.destination, 5);
    let jobs = numbered(50);
    site.source.submit_all("work", &jobs);
    site.destination.wait_for_jobs("work", 5);
    given_back(&site.source, 45);
    let mut received = site.destination.drain_data("work");
    limit(&site.destination, 0);
    site.source.wait_for_jobs("work", 0);
    received.extend(site.destination.drain_data("work"));
    assert_same_set(&jobs, &received);
}

/// For longer than other jobs are held: it is no trouble of the destination, and each return would count against the
/// source's `--job-retries`.
#[test]
fn undeliverable_jobs_are_held_while_their_reject_queue_is_away_and_others_go_on() {
    let (source, destination, mut rejects) = (source_that_counts_returns(), Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::start(&format!(
        "{} = {}\ndecrypt = should_be_changed\nreject_queue = {}",
        source.queue("work"),
        destination.queue("work"),
        rejects.queue("rejected")
    ));
    source.wait_for_workers("work", 1);
    let before = source.connections();
    let bad = [b"%1".to_vec(), b"%2".to_vec(), b"%3".to_vec()];
    source.submit_all("work", &bad);
    wait_until_equal("jobs held", 3, || source.status("work").running);
    let (mut client, mut good) = (source.client(), 0);
    stays(Duration::from_secs(40), "they are held", || {
        client.submit_background("work", b"", b"RSBMQXtrevklYKzy2SX+yA==");
        good += 1;
        destination.wait_for_jobs("work", good);
        wait_until_equal("the good ones are acknowledged", 3, || source.status("work").total);
        source.status("work").running == 3
    });
    let now = source.connections();
    assert!(before.iter().all(|port| now.contains(port)), "the source was left");
    rejects.launch();
    rejects.wait_for_jobs("rejected", 3);
    source.wait_for_jobs("work", 0);
    assert_same_set(&bad, &rejects.drain_data("rejected"));
}

#[test]
fn a_synchronous_job_whose_destination_hangs_is_given_back_and_runs_once_when_it_is_well_again() {
    let mut site = Site::start("async = 0");
    let mut client = site.source.client();
    client.submit("work", b"", b"data");
    site.destination.wait_for_jobs("work", 1);
    let before = site.destination.connections();
    site.destination.freeze();
    given_back(&site.source, 1);

    site.destination.thaw();
    site.destination.wait_until_closed(&before);
    let mut worker = site.destination.worker("work");
    let job = worker.grab();
    worker.complete(&job, b"result");
    assert_eq!(client.receive().after_handle(), b"result");
    assert!(worker.try_grab().is_none(), "the copy of before runs too");
    site.source.wait_for_jobs("work", 0);
}

/// The source drops a job that was given back as often as `--job-retries` says. It has been given back once at most when
/// this returns.
fn outlasts_two_releases(source: &Gearmand, jobs: usize) {
    given_back_but_one(source, jobs);
    stays(Duration::from_secs(35), "none is dropped", || source.status("work").total == jobs);
}

/// After a release one job at most is taken, to try with.
fn given_back_but_one(source: &Gearmand, jobs: usize) {
    wait_within(OUTAGE, "the jobs are given back", || {
        let Queue { total, running, .. } = source.status("work");
        assert_eq!(total, jobs, "jobs were dropped");
        running <= 1
    });
}

fn source_that_counts_returns() -> Gearmand {
    Gearmand::start_with(&["--job-retries=2"])
}

#[test]
fn no_retries_are_burned_on_a_destination_that_greets_and_then_takes_nothing() {
    let (source, destination) = (source_that_counts_returns(), Gearmand::start());
    let (taking, stub) = (Arc::new(AtomicBool::new(false)), Stub::listen());
    let address = stub.address;
    let (takes, takes_to) = (Arc::clone(&taking), destination.address());
    std::thread::spawn(move || {
        loop {
            let (mut line, takes) = (stub.accept(), Arc::clone(&takes));
            std::thread::spawn(move || {
                let mut client = Client::connect(takes_to);
                while let Some((kind, body)) = line.try_request() {
                    match kind {
                        ECHO_REQ => line.reply(ECHO_RES, &body),
                        SUBMIT_JOB_BG if takes.load(Ordering::SeqCst) => {
                            let arguments: Vec<_> = body.splitn(3, |byte| *byte == 0).collect();
                            let handle = client.submit_background("work", arguments[1], arguments[2]);
                            line.reply(JOB_CREATED, &handle);
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    let _proxy = Proxy::start(&format!("{} = {address}/work\n", source.queue("work")));
    source.wait_for_workers("work", 1);
    let jobs = numbered(20);
    source.submit_all("work", &jobs);
    wait_until_equal("jobs held", 20, || source.status("work").running);
    outlasts_two_releases(&source, 20);
    taking.store(true, Ordering::SeqCst);
    source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &destination.drain_data("work"));
}

#[test]
fn no_retries_are_burned_on_a_full_queue() {
    let (source, destination) = (source_that_counts_returns(), Gearmand::start());
    let _proxy = Proxy::start(&format!("{} = {}\n", source.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    let _knows = limit(&destination, 5);
    let jobs = numbered(20);
    source.submit_all("work", &jobs);
    destination.wait_for_jobs("work", 5);
    source.wait_for_jobs("work", 15);
    outlasts_two_releases(&source, 15);
    let mut received = destination.drain_data("work");
    limit(&destination, 0);
    source.wait_for_jobs("work", 0);
    received.extend(destination.drain_data("work"));
    assert_same_set(&jobs, &received);
}
