//! Trouble belongs to whoever has it: forwards, and the jobs of one forward, don't disturb each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{Client, Gearmand, Job, Proxy, Queue, Relay, Worker, numbered, stays, wait_for, wait_until_equal};

/// Longer than a forward holds jobs that nobody takes (30 s).
const LONG: Duration = Duration::from_secs(40);

#[test]
fn dead_and_hanging_destinations_leave_the_other_forwards_at_work() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let mut hanging = Gearmand::start();
    let dead = Gearmand::down();
    let mut config = String::new();
    for n in 0..20 {
        config.push_str(&format!("{} = {}\n", source.queue(&format!("dead_{n}")), dead.queue("work")));
        config.push_str(&format!("{} = {}\n", source.queue(&format!("hanging_{n}")), hanging.queue("work")));
    }
    config.push_str(&format!("{} = {}\n", source.queue("work"), destination.queue("work")));
    let _proxy = Proxy::start(&config);
    for n in 0..20 {
        source.wait_for_workers(&format!("hanging_{n}"), 1);
    }
    source.wait_for_workers("work", 1);
    hanging.freeze();
    for n in 0..20 {
        source.submit_all(&format!("dead_{n}"), &numbered(50));
        source.submit_all(&format!("hanging_{n}"), &numbered(50));
    }
    let jobs = numbered(5000);
    source.submit_all("work", &jobs);
    destination.wait_for_jobs("work", 5000);
    assert!(destination.drain_data("work") == jobs, "5,000 jobs in another order");
    hanging.thaw();
}

/// A synchronous job that runs at its destination.
struct Running {
    source: Gearmand,
    client: Client,
    worker: Worker,
    job: Job,
    /// The source's connections before anything happens.
    connections: Vec<u16>,
}

impl Running {
    fn start(source: Gearmand, destination: &Gearmand) -> Running {
        source.wait_for_workers("work", 1);
        let connections = source.connections();
        let mut client = source.client();
        client.submit("work", b"", GOOD);
        let mut worker = destination.worker("work");
        let job = worker.grab();
        Running { source, client, worker, job, connections }
    }

    /// It runs on for long, with another job of the forward held, and is neither given back nor run again.
    fn is_left_alone(&mut self) {
        stays(LONG, "both are held", || self.source.status("work") == Queue { total: 2, running: 2, workers: 1 });
        assert!(self.worker.try_grab().is_none(), "it runs twice");
        let now = self.source.connections();
        assert!(self.connections.iter().all(|port| now.contains(port)), "the source was left");
        self.worker.complete(&self.job, b"result");
        assert_eq!(self.client.receive().after_handle(), b"result");
    }
}

/// What Mod-Gearman makes of `type=passive\nab` with the password `should_be_changed`.
const GOOD: &[u8] = b"RSBMQXtrevklYKzy2SX+yA==";

#[test]
fn a_synchronous_job_is_left_alone_by_an_undeliverable_one_whose_reject_server_is_away() {
    let (source, destination, mut rejects) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::start(&format!(
        "{} = {}\nasync = 0\nworker = 2\ndecrypt = should_be_changed\nreject_queue = {}\n",
        source.queue("work"),
        destination.queue("work"),
        rejects.queue("rejected"),
    ));
    let mut running = Running::start(source, &destination);
    running.source.client().submit_background("work", b"", b"%");
    wait_until_equal("jobs held", 2, || running.source.status("work").running);
    running.is_left_alone();
    rejects.launch();
    rejects.wait_for_jobs("rejected", 1);
    running.source.wait_for_jobs("work", 0);
}

#[test]
fn a_synchronous_job_is_left_alone_by_one_for_which_the_queue_is_full() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = format!("{} = {}\nasync = 0\nworker = 2\n", source.queue("work"), destination.queue("work"));
    let _proxy = Proxy::start(&config);
    let mut running = Running::start(source, &destination);
    destination.ask("maxqueue work 1");
    let mut second = running.source.client();
    second.submit("work", b"", b"second");
    wait_until_equal("jobs held", 2, || running.source.status("work").running);
    running.is_left_alone();
    // There is room for it now.
    let job = running.worker.grab();
    assert_eq!(job.data, b"second");
    running.worker.complete(&job, b"its result");
    assert_eq!(second.receive().after_handle(), b"its result");
}

#[test]
fn a_synchronous_job_is_left_alone_by_an_idle_connection_that_broke_while_new_ones_hang() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let config = format!("{} = {}\nasync = 0\nworker = 2\n", source.queue("work"), line.queue("work"));
    let _proxy = Proxy::start(&config);
    wait_until_equal("connections to the destination", 2, || destination.connections().len());
    let mut running = Running::start(source, &destination);
    line.hang(true);
    line.cut_the_quietest();
    wait_for("a new connection hangs", || line.hanging() > 0);
    let mut second = running.source.client();
    second.submit("work", b"", b"second");
    stays(LONG, "the job runs, the other waits", || {
        let Queue { total, running: held, workers } = running.source.status("work");
        (total, workers) == (2, 1) && held >= 1
    });
    assert!(running.worker.try_grab().is_none(), "it runs twice");
    let now = running.source.connections();
    assert!(running.connections.iter().all(|port| now.contains(port)), "the source was left");
    running.worker.complete(&running.job, b"result");
    assert_eq!(running.client.receive().after_handle(), b"result");
    // The submitter that is well takes it.
    let job = running.worker.grab();
    running.worker.complete(&job, b"its result");
    assert_eq!(second.receive().after_handle(), b"its result");
    line.hang(false);
}
