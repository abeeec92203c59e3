//! What a synchronous forward promises.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::peer::{
    SUBMIT_JOB, SUBMIT_JOB_HIGH, WORK_COMPLETE, WORK_DATA, WORK_EXCEPTION, WORK_FAIL, WORK_STATUS, WORK_WARNING,
};
use support::{Gearmand, Proxy, Queue, Relay, Site, stays, wait_for, wait_until_equal};

#[test]
fn the_result_comes_back_byte_for_byte() {
    let site = Site::start("async = 0");
    let mut client = site.source.client();
    let mut worker = site.destination.worker("work");
    let every_byte: Vec<u8> = (0..=255).rev().collect();
    for result in [&every_byte[..], b"", b"\0", b"two\0parts\0", &vec![0xee; 3_000_000]] {
        let handle = client.submit("work", b"", b"\0data\xff");
        let job = worker.grab();
        assert_eq!(job.data, b"\0data\xff");
        worker.complete(&job, result);
        let packet = client.receive();
        assert_eq!(packet.kind, WORK_COMPLETE);
        // Not assert_eq: a failure would print all of it.
        assert!(packet.arguments(2) == [&handle[..], result], "another result");
    }
    site.source.wait_for_jobs("work", 0);
}

#[test]
fn what_the_worker_says_on_the_way_is_passed_on_as_it_comes() {
    let site = Site::start("async = 0");
    let mut client = site.source.client();
    let mut worker = site.destination.worker("work");
    client.submit("work", b"", b"data");
    let job = worker.grab();

    // Each is read before the next is sent: nothing is kept until the end.
    worker.send(WORK_DATA, &job, &[b"part\0one\xff"]);
    let packet = client.receive();
    assert_eq!((packet.kind, packet.after_handle()), (WORK_DATA, &b"part\0one\xff"[..]));
    worker.send(WORK_WARNING, &job, &[b"careful\0\xfe"]);
    let packet = client.receive();
    assert_eq!((packet.kind, packet.after_handle()), (WORK_WARNING, &b"careful\0\xfe"[..]));
    worker.send(WORK_STATUS, &job, &[b"7", b"10"]);
    let packet = client.receive();
    assert_eq!((packet.kind, packet.after_handle()), (WORK_STATUS, &b"7\x0010"[..]));
    worker.send(WORK_DATA, &job, &[b""]);
    let packet = client.receive();
    assert_eq!((packet.kind, packet.after_handle()), (WORK_DATA, &b""[..]));
    worker.complete(&job, b"result");
    let packet = client.receive();
    assert_eq!((packet.kind, packet.after_handle()), (WORK_COMPLETE, &b"result"[..]));
    assert!(client.is_silent(Duration::from_millis(300)), "something comes after the result");
}

#[test]
fn a_failure_comes_back_and_ends_the_job() {
    let site = Site::start("async = 0");
    let mut client = site.source.client();
    let mut worker = site.destination.worker("work");
    for _ in 0..2 {
        let handle = client.submit("work", b"", b"data");
        let job = worker.grab();
        worker.send(WORK_FAIL, &job, &[]);
        let packet = client.receive();
        assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle));
        site.source.wait_for_jobs("work", 0);
    }
    assert!(worker.try_grab().is_none(), "a failed job is tried again");
}

#[test]
fn an_exception_comes_back_byte_for_byte_and_nothing_after_it() {
    let site = Site::start("async = 0");
    let mut client = site.source.client().with_exceptions();
    let mut worker = site.destination.worker("work");
    client.submit("work", b"", b"data");
    let job = worker.grab();
    worker.send(WORK_EXCEPTION, &job, &[b"division\0by zero\xff"]);
    let packet = client.receive();
    assert_eq!((packet.kind, packet.after_handle()), (WORK_EXCEPTION, &b"division\0by zero\xff"[..]));
    site.source.wait_for_jobs("work", 0);
    assert!(client.is_silent(Duration::from_millis(300)), "something comes after the exception");

    // A client that did not ask for exceptions is told of a failure, as by any worker.
    let mut plain = site.source.client();
    let handle = plain.submit("work", b"", b"data");
    let job = worker.grab();
    worker.send(WORK_EXCEPTION, &job, &[b"again"]);
    let packet = plain.receive();
    assert_eq!(packet.kind, WORK_FAIL);
    // gearmand leaves the NUL behind the handle when it makes one packet of the other.
    assert_eq!(packet.body.strip_suffix(b"\0").unwrap_or(&packet.body), handle);
}

#[test]
fn as_many_jobs_run_at_once_as_there_are_workers() {
    let site = Site::start("async = 0\nworker = 3");
    let mut client = site.source.client();
    for n in 0..5 {
        client.submit("work", b"", format!("job {n}").as_bytes());
    }
    let mut worker = site.destination.worker("work");
    let mut held: Vec<_> = (0..3).map(|_| worker.grab()).collect();
    stays(Duration::from_secs(1), "3 jobs run, 2 wait at the source", || {
        site.source.status("work") == Queue { total: 5, running: 3, workers: 1 }
            && site.destination.status("work").total == 3
    });
    // The second one's end makes room for the fourth, whatever the first one does.
    worker.complete(&held.remove(1), b"second");
    assert_eq!(client.receive().after_handle(), b"second");
    let fourth = worker.grab();
    assert_eq!(fourth.data, b"job 3");
    worker.complete(&fourth, b"fourth");
    assert_eq!(client.receive().after_handle(), b"fourth");
    let fifth = worker.grab();
    for job in held.iter().chain([&fifth]) {
        worker.complete(job, b"done");
        assert_eq!(client.receive().after_handle(), b"done");
    }
    site.source.wait_for_jobs("work", 0);
}

#[test]
fn a_job_that_takes_longer_than_its_timeout_fails_and_its_queued_copy_never_runs() {
    let site = Site::start("async = 0\ntimeout = 1");
    let before = site.destination.connections();
    let mut client = site.source.client();
    let handle = client.submit("work", b"", b"data");
    let packet = client.receive();
    assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle));
    site.source.wait_for_jobs("work", 0);
    site.destination.wait_until_closed(&before);
    assert_eq!(site.destination.drain_data("work"), Vec::<Vec<u8>>::new(), "a job that was reported failed");

    // And the forward goes on.
    client.submit("work", b"", b"next");
    let mut worker = site.destination.worker("work");
    let job = worker.grab();
    worker.complete(&job, b"in time");
    assert_eq!(client.receive().after_handle(), b"in time");
}

#[test]
fn no_timeout_ends_a_job_that_has_none() {
    let site = Site::start("async = 0");
    let mut client = site.source.client();
    let mut worker = site.destination.worker("work");
    client.submit("work", b"", b"data");
    let job = worker.grab();
    // Longer than a destination may be silent: its answers to probes are progress.
    stays(Duration::from_secs(26), "the job runs on", || site.source.status("work").running == 1);
    worker.complete(&job, b"late");
    assert_eq!(client.receive().after_handle(), b"late");
    assert!(worker.try_grab().is_none(), "the job was submitted twice");
}

#[test]
fn no_unique_id_is_used_twice() {
    let site = Site::start("async = 0\nworker = 2");
    let mut worker = site.destination.worker("work");
    let mut ids = BTreeSet::new();
    for unique in [&b""[..], b"", b"host-service", b"host-service", b"-", b"-"] {
        let mut client = site.source.client();
        client.submit("work", unique, b"the same data");
        let job = worker.grab();
        assert!((1..=63).contains(&job.unique.len()) && job.unique != unique && job.unique != b"-", "{job:?}");
        ids.insert(job.unique.clone());
        worker.complete(&job, b"done");
        assert_eq!(client.receive().after_handle(), b"done");
    }
    assert_eq!(ids.len(), 6);
}

#[test]
fn a_background_job_is_removed_from_its_source_when_it_is_done() {
    let site = Site::start("async = 0");
    site.source.client().submit_background("work", b"", b"data");
    let mut worker = site.destination.worker("work");
    let job = worker.grab();
    stays(Duration::from_millis(500), "the source holds the job while it runs", || {
        site.source.status("work") == Queue { total: 1, running: 1, workers: 1 }
    });
    worker.complete(&job, b"nobody reads this");
    site.source.wait_for_jobs("work", 0);
}

#[test]
fn jobs_are_submitted_with_the_priority_of_their_forward() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let mut config = String::new();
    for priority in ["low", "normal", "high"] {
        let (from, to) = (source.queue(priority), destination.queue("work"));
        config.push_str(&format!("{from} = {to}\nasync = 0\npriority = {priority}\n"));
    }
    let _proxy = Proxy::start(&config);
    let mut client = source.client();
    for (before, (priority, kind)) in
        [("low", SUBMIT_JOB_HIGH), ("normal", SUBMIT_JOB), ("high", SUBMIT_JOB)].into_iter().enumerate()
    {
        client.submit_as(kind, priority, b"", priority.as_bytes());
        destination.wait_for_jobs("work", before + 1);
    }
    assert_eq!(destination.drain_data("work"), [&b"high"[..], b"normal", b"low"]);
}

#[test]
fn a_job_is_decrypted_changed_and_encrypted_and_its_result_left_alone() {
    let site = Site::start(
        "async = 0\ndecrypt = should_be_changed\nencrypt = remote_password\n\
         data_callback = s/^host_name=.*$/host_name=db9/gm",
    );
    let mut client = site.source.client();
    client.submit("work", b"", b"wX4xVmoWBHurM1LJqPDtI/RW+8ZTtBPGt5LA0IX16o06TI5bOsrd1ZptuSXetzhw");
    let mut worker = site.destination.worker("work");
    let job = worker.grab();
    assert_eq!(job.data, b"CgQhw5txVoW2Khd+zcB5RHBMEoMBs0s+HwIp+TBx+9Q=");
    worker.complete(&job, b"no base64");
    assert_eq!(client.receive().after_handle(), b"no base64");

    let handle = client.submit("work", b"", b"not encrypted");
    let packet = client.receive();
    assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle));
}

/// A source, a destination behind a line, and a synchronous forward between them.
fn over_a_line(options: &str) -> (Proxy, Relay, Gearmand, Gearmand) {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let proxy = Proxy::start(&format!("{} = {}\nasync = 0\n{options}", source.queue("work"), line.queue("work")));
    source.wait_for_workers("work", 1);
    (proxy, line, source, destination)
}

#[test]
fn a_job_whose_destination_is_lost_is_tried_again() {
    let (_proxy, line, source, destination) = over_a_line("");
    let mut client = source.client();
    client.submit("work", b"", b"data");
    let mut worker = destination.worker("work");
    let first = worker.grab();
    line.cut();
    let second = worker.grab();
    assert_eq!((&first.data, &second.data), (&b"data".to_vec(), &b"data".to_vec()));
    assert_ne!(first.unique, second.unique, "the second try merges with the first and dies with it");
    // The first one's result is dropped: it belongs to nobody any more.
    worker.complete(&first, b"first");
    worker.complete(&second, b"second");
    assert_eq!(client.receive().after_handle(), b"second");
    assert!(client.is_silent(Duration::from_millis(300)));
}

#[test]
fn a_job_whose_destination_is_lost_three_times_fails_with_a_reason() {
    let (proxy, line, source, destination) = over_a_line("");
    let mut client = source.client();
    let handle = client.submit("work", b"", b"%secret%");
    let mut worker = destination.worker("work");
    for _ in 0..3 {
        worker.grab();
        line.cut();
    }
    let packet = client.receive();
    assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle));
    source.wait_for_jobs("work", 0);
    wait_for("the forward takes jobs again", || source.status("work").workers == 1);
    assert!(worker.try_grab().is_none(), "a fourth try");
    let log = proxy.log();
    assert!(log.contains(&line.server()), "the server's name in the log");
    assert!(!log.contains("%secret%"), "a payload in the log");
}

/// A copy that waits in the destination's queue when its connection breaks must not run beside the next try.
#[test]
fn each_failed_try_takes_its_queued_copy_along() {
    let (_proxy, line, source, destination) = over_a_line("");
    let mut client = source.client();
    client.submit("work", b"", b"data");
    destination.wait_for_jobs("work", 1);
    line.cut();
    destination.wait_for_jobs("work", 2);
    let mut worker = destination.worker("work");
    let job = worker.grab();
    assert!(worker.try_grab().is_none(), "both copies run");
    worker.complete(&job, b"once");
    assert_eq!(client.receive().after_handle(), b"once");
}

#[test]
fn no_job_is_taken_while_the_destination_is_down() {
    let (source, mut destination) = (Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::start(&format!("{} = {}\nasync = 0", source.queue("work"), destination.queue("work")));
    let mut client = source.client();
    client.submit("work", b"", b"data");
    stays(Duration::from_secs(2), "the job waits without a worker", || {
        source.status("work") == Queue { total: 1, running: 0, workers: 0 }
    });
    destination.launch();
    let mut worker = destination.worker("work");
    let job = worker.grab();
    worker.complete(&job, b"result");
    assert_eq!(client.receive().after_handle(), b"result");
}

#[test]
fn a_client_that_left_costs_its_job_and_nothing_else() {
    let site = Site::start("async = 0");
    let mut worker = site.destination.worker("work");
    let mut gone = site.source.client();
    gone.submit("work", b"", b"of one who left");
    let job = worker.grab();
    drop(gone);
    let mut client = site.source.client();
    client.submit("work", b"", b"of one who stays");
    worker.complete(&job, b"for nobody");
    let job = worker.grab();
    assert_eq!(job.data, b"of one who stays");
    worker.complete(&job, b"result");
    assert_eq!(client.receive().after_handle(), b"result");
    wait_until_equal("jobs at the source", 0, || site.source.status("work").total);
}
