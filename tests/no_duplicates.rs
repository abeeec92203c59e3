//! Each job arrives once, whatever breaks or stops in between.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Consumer, Gearmand, Proxy, Relay, Site, assert_same_set, numbered, wait_for};

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
fn term_under_load_loses_nothing_and_delivers_nothing_twice() {
    let mut site = Site::start("");
    let consumer = Consumer::start(&site.destination, "work");
    let jobs = numbered(30_000);
    site.source.submit_all("work", &jobs);
    // The destination works its jobs off at once, so nothing there could merge what came twice.
    for _ in 0..5 {
        let before = consumer.count();
        wait_for("some jobs came or all are gone", || {
            consumer.count() > before + 1000 || site.source.status("work").total == 0
        });
        assert_eq!(site.proxy.stop().code(), Some(0));
        assert_eq!(site.source.status("work").running, 0);
        site.proxy.start_again();
        site.source.wait_for_workers("work", 1);
    }
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &consumer.finish());
}

#[test]
fn many_reloads_under_load_lose_nothing_and_deliver_nothing_twice() {
    let site = Site::start("");
    let consumer = Consumer::start(&site.destination, "work");
    let jobs = numbered(30_000);
    site.source.submit_all("work", &jobs);
    let forward = format!("{} = {}\n", site.source.queue("work"), site.destination.queue("work"));
    for n in 0.. {
        let before = consumer.count();
        wait_for("some jobs came or all are gone", || {
            consumer.count() > before + 500 || site.source.status("work").total == 0
        });
        if site.source.status("work").total == 0 {
            break;
        }
        // Another definition each time, sometimes two before the first is done.
        site.proxy.reload(&format!("{forward}prefetch = {}\n", 100 + n));
        if n % 3 == 0 {
            site.proxy.reload(&format!("{forward}prefetch = {}\n", 4000 + n));
        }
    }
    assert_same_set(&jobs, &consumer.finish());
}
