//! Lines that take long for what they carry, with a tunnel that takes everything at once and gives no sign.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Consumer, Gearmand, Proxy, Relay, assert_same_set, wait_for};

/// Two servers, and a forward over a slow line whose jobs are worked off at once: nothing could merge what comes twice.
struct Site {
    source: Gearmand,
    consumer: Consumer,
    proxy: Proxy,
    forward: String,
    /// Until the end; and the server that the consumer works for.
    _line: Relay,
    _destination: Gearmand,
}

impl Site {
    fn start(bytes_per_second: usize) -> Site {
        let (source, destination) = (Gearmand::start(), Gearmand::start());
        let line = Relay::with_rate(destination.address(), bytes_per_second);
        let consumer = Consumer::start(&destination, "work");
        let forward = format!("{} = {}\n", source.queue("work"), line.queue("work"));
        let proxy = Proxy::start(&forward);
        source.wait_for_workers("work", 1);
        Site { source, consumer, proxy, forward, _line: line, _destination: destination }
    }

    /// All jobs have arrived, each once.
    fn finish(self, jobs: &[Vec<u8>]) {
        self.source.wait_for_jobs("work", 0);
        drop(self.proxy);
        assert_same_set(jobs, &self.consumer.finish());
    }
}

fn jobs(count: usize, size: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| [format!("job {n} ").into_bytes(), vec![b'x'; size]].concat()).collect()
}

/// The connection is silent for all the time that the job takes, which is longer than a server may be silent else.
#[test]
fn a_job_that_takes_longer_than_an_answer_may_arrives_once() {
    let site = Site::start(40_000);
    let job = jobs(1, 800_000);
    let begun = Instant::now();
    site.source.submit_all("work", &job);
    wait_for("it arrives", || site.consumer.count() > 0);
    assert!(begun.elapsed() > Duration::from_secs(18), "the line is not slow: {:?}", begun.elapsed());
    site.finish(&job);
}

#[test]
fn a_clean_stop_and_a_start_deliver_nothing_twice() {
    let mut site = Site::start(100_000);
    let jobs = jobs(500, 4_000);
    site.source.submit_all("work", &jobs);
    for count in [20, 200] {
        wait_for("some jobs came", || site.consumer.count() >= count);
        assert_eq!(site.proxy.stop().code(), Some(0));
        site.proxy.start_again();
    }
    site.finish(&jobs);
}

#[test]
fn reloads_deliver_nothing_twice() {
    let site = Site::start(100_000);
    let jobs = jobs(500, 4_000);
    site.source.submit_all("work", &jobs);
    for count in [20, 200] {
        wait_for("some jobs came", || site.consumer.count() >= count);
        site.proxy.reload(&format!("{}prefetch = {}\n", site.forward, 4000 + count));
    }
    site.finish(&jobs);
}
