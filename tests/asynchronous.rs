//! What an asynchronous forward promises.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::peer::{WORK_COMPLETE, WORK_FAIL};
use support::{
    Gearmand, Proxy, Queue, Relay, Site, Status, assert_same_set, numbered, stays, wait_for, wait_until_equal,
};

#[test]
fn jobs_arrive_byte_for_byte() {
    let site = Site::start("");
    let every_byte: Vec<u8> = (0..=255).collect();
    let jobs =
        [every_byte, Vec::new(), b"\0begins with a NUL".to_vec(), b"\xff\xfe\n\r\n\0".to_vec(), vec![7; 100_000]];
    site.source.submit_all("work", &jobs);
    site.destination.wait_for_jobs("work", jobs.len());
    assert_eq!(site.destination.drain_data("work"), jobs);
    site.source.wait_for_jobs("work", 0);
}

#[test]
fn a_job_of_many_megabytes_arrives() {
    let site = Site::start("");
    let data: Vec<u8> = (0..20_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    site.source.client().submit_background("work", b"", &data);
    site.destination.wait_for_jobs("work", 1);
    // Not assert_eq: a failure would print all of it.
    assert!(site.destination.drain_data("work") == [data]);
}

#[test]
fn a_job_is_acknowledged_only_after_the_destination_has_taken_it() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let _proxy = Proxy::start(&format!("{} = {}", source.queue("work"), line.queue("work")));
    source.wait_for_workers("work", 1);

    line.hold_replies(true);
    source.client().submit_background("work", b"", b"data");
    destination.wait_for_jobs("work", 1);
    // The destination has it, but the proxy can't know.
    stays(Duration::from_secs(1), "the source still holds the job", || {
        source.status("work") == Queue { total: 1, running: 1, workers: 1 }
    });

    line.hold_replies(false);
    source.wait_for_jobs("work", 0);
    destination.wait_for_jobs("work", 1);
}

#[test]
fn no_more_than_prefetch_jobs_are_held() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let _proxy = Proxy::start(&format!("{} = {}\nprefetch = 5\n", source.queue("work"), line.queue("work")));
    source.wait_for_workers("work", 1);

    line.hold_replies(true);
    let jobs = numbered(20);
    source.submit_all("work", &jobs);
    wait_until_equal("jobs held", 5, || source.status("work").running);
    stays(Duration::from_secs(1), "5 jobs are held", || source.status("work").running == 5);
    assert_eq!(source.status("work").total, 20);

    line.hold_replies(false);
    destination.wait_for_jobs("work", 20);
    assert_eq!(destination.drain_data("work"), jobs);
}

#[test]
fn the_unique_id_of_the_source_travels_on() {
    let site = Site::start("");
    let longest = [b'u'; 63];
    let mut client = site.source.client();
    client.submit_background("work", b"0cc175b9c0f1b6a831c399e269772661", b"first");
    client.submit_background("work", &longest, b"second");
    site.destination.wait_for_jobs("work", 2);
    let jobs = site.destination.drain("work");
    assert_eq!(jobs[0].unique, b"0cc175b9c0f1b6a831c399e269772661");
    assert_eq!(jobs[1].unique, longest);
    assert_eq!(jobs[1].data, b"second");
}

/// gearmand stores 63 bytes of such an id and puts a NUL before the data that it gives out.
#[test]
fn a_unique_id_of_64_bytes_does_not_spoil_the_data() {
    let site = Site::start("");
    site.source.client().submit_background("work", &[b'u'; 64], b"data");
    site.destination.wait_for_jobs("work", 1);
    let jobs = site.destination.drain("work");
    assert_eq!(jobs[0].data, b"data");
    assert_eq!(jobs[0].unique, [b'u'; 63]);
}

#[test]
fn a_check_that_still_waits_at_the_destination_is_not_queued_there_twice() {
    let site = Site::start("");
    for data in [b"first", b"again"] {
        site.source.client().submit_background("work", b"host-service", data);
        wait_for("the job has gone on", || {
            site.source.status("work").total == 0 && site.destination.status("work").total == 1
        });
    }
    assert_eq!(site.destination.drain_data("work"), [b"first"]);
}

#[test]
fn equal_jobs_without_unique_id_stay_as_many_as_they_were() {
    let site = Site::start("");
    let jobs = vec![b"the same".to_vec(); 100];
    site.source.submit_all("work", &jobs);
    site.destination.wait_for_jobs("work", 100);
    let mut ids: Vec<_> = site.destination.drain("work").into_iter().map(|job| job.unique).collect();
    assert!(ids.iter().all(|id| (1..=63).contains(&id.len())));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}

#[test]
fn a_foreground_job_is_answered_as_submitted_in_the_background() {
    let site = Site::start("");
    let mut client = site.source.client();
    let handle = client.submit("work", b"", b"data");
    let packet = client.receive();
    assert_eq!(packet.kind, WORK_COMPLETE);
    assert_eq!(packet.arguments(2), [&handle[..], b"job submitted as background task"]);
    assert_eq!(site.destination.drain_data("work"), [b"data"]);
}

#[test]
fn order_is_kept() {
    let site = Site::start("");
    let jobs = numbered(5000);
    site.source.submit_all("work", &jobs);
    site.destination.wait_for_jobs("work", 5000);
    assert!(site.destination.drain_data("work") == jobs, "5,000 jobs in another order");
}

#[test]
fn several_workers_deliver_each_job_once() {
    let site = Site::start("worker = 4");
    let jobs = numbered(5000);
    site.source.submit_all("work", &jobs);
    site.source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &site.destination.drain_data("work"));
}

#[test]
fn jobs_are_submitted_with_the_priority_of_their_forward() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let mut config = String::new();
    for priority in ["low", "normal", "high"] {
        let (from, to) = (source.queue(priority), destination.queue("work"));
        config.push_str(&format!("{from} = {to}\npriority = {priority}\n"));
    }
    let _proxy = Proxy::start(&config);
    for (before, priority) in ["low", "normal", "high"].into_iter().enumerate() {
        source.client().submit_background(priority, b"", priority.as_bytes());
        destination.wait_for_jobs("work", before + 1);
    }
    assert_eq!(destination.drain_data("work"), [&b"high"[..], b"normal", b"low"]);
}

#[test]
fn jobs_and_their_results_travel_in_both_directions_between_many_servers() {
    let (center, sites) = (Gearmand::start(), [Gearmand::start(), Gearmand::start(), Gearmand::start()]);
    let mut config = String::new();
    for (n, site) in sites.iter().enumerate() {
        for queue in ["hosts", "services"] {
            let (from, to) = (center.queue(&format!("{queue}_{n}")), site.queue(queue));
            config.push_str(&format!("{from} = {to}\n"));
        }
        config.push_str(&format!("{} = {}\n", site.queue("results"), center.queue("results")));
    }
    let _proxy = Proxy::start(&config);

    let mut expected = Vec::new();
    for (n, site) in sites.iter().enumerate() {
        for queue in ["hosts", "services"] {
            let jobs: Vec<_> = (0..50).map(|job| format!("{queue} {job} of site {n}").into_bytes()).collect();
            center.submit_all(&format!("{queue}_{n}"), &jobs);
            site.wait_for_jobs(queue, jobs.len());
            let arrived = site.drain_data(queue);
            assert_eq!(arrived, jobs);
            site.submit_all("results", &arrived);
            expected.extend(arrived);
        }
    }
    center.wait_for_jobs("results", expected.len());
    assert_same_set(&expected, &center.drain_data("results"));
}

/// Texts and ciphertexts as Mod-Gearman has them; the second password's were made with openssl.
mod mod_gearman {
    pub const TEXT: &[u8] = b"type=passive\nhost_name=web1\nabcd";
    pub const BASE64: &[u8] = b"dHlwZT1wYXNzaXZlCmhvc3RfbmFtZT13ZWIxCmFiY2Q=";
    pub const ENCRYPTED: &[u8] = b"wX4xVmoWBHurM1LJqPDtI/RW+8ZTtBPGt5LA0IX16o06TI5bOsrd1ZptuSXetzhw";
    /// `TEXT` with another password, `remote_password`.
    pub const ENCRYPTED_AGAIN: &[u8] = b"CgQhw5txVoW2Khd+zcB5RMxZDkezKmD4wj6/0y/HbzMscrCw4mqpjqvmCH4oW0SQ";
    /// `BASE64` as it stands, with `remote_password`.
    pub const BASE64_ENCRYPTED: &[u8] = b"zV+MXKM8QTUaxLGphQZgMwsoh8oWG5fpcEk3VDOYPsi98QlMeeAvPrsoW5YsbwXp";
    pub const CALLBACK: &str = "data_callback = s/^host_name=.*$/host_name=db9/gm";
    pub const CHANGED_BASE64: &[u8] = b"dHlwZT1wYXNzaXZlCmhvc3RfbmFtZT1kYjkKYWJjZA==";
    pub const CHANGED_ENCRYPTED: &[u8] = b"CgQhw5txVoW2Khd+zcB5RHBMEoMBs0s+HwIp+TBx+9Q=";
    pub const DECRYPT: &str = "decrypt = should_be_changed";
    pub const ENCRYPT: &str = "encrypt = remote_password";
}

#[test]
fn jobs_are_decrypted_changed_and_encrypted_as_the_options_say() {
    use mod_gearman::*;
    let rows: [(&[&str], &[u8], &[u8]); 8] = [
        (&[], ENCRYPTED, ENCRYPTED),
        (&[DECRYPT, ENCRYPT], ENCRYPTED, ENCRYPTED_AGAIN),
        (&[DECRYPT, CALLBACK, ENCRYPT], ENCRYPTED, CHANGED_ENCRYPTED),
        (&[DECRYPT, CALLBACK], ENCRYPTED, CHANGED_BASE64),
        (&[DECRYPT], ENCRYPTED, TEXT),
        (&[CALLBACK], BASE64, CHANGED_BASE64),
        (&[CALLBACK, ENCRYPT], BASE64, CHANGED_ENCRYPTED),
        (&[ENCRYPT], BASE64, BASE64_ENCRYPTED),
    ];
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let mut config = String::new();
    for (n, (options, _, _)) in rows.iter().enumerate() {
        let queue = format!("row_{n}");
        let (from, to) = (source.queue(&queue), destination.queue(&queue));
        config.push_str(&format!("{from} = {to}\n{}\n", options.join("\n")));
    }
    let _proxy = Proxy::start(&config);
    for (n, (options, came, sent)) in rows.iter().enumerate() {
        let queue = format!("row_{n}");
        source.client().submit_background(&queue, b"", came);
        destination.wait_for_jobs(&queue, 1);
        let data = destination.drain_data(&queue).remove(0);
        assert_eq!(data.escape_ascii().to_string(), sent.escape_ascii().to_string(), "{options:?}");
    }
}

#[test]
fn base64_with_line_breaks_is_read_and_written_without() {
    let site = Site::start("data_callback = s/no such text//");
    site.source.client().submit_background("work", b"", b"dHlwZT1wYXNzaXZlCm\nhvc3RfbmFtZT13\r\nZWIxCmFiY2Q=\n");
    site.destination.wait_for_jobs("work", 1);
    assert_eq!(site.destination.drain_data("work"), [mod_gearman::BASE64]);
}

#[test]
fn uniq_callback_makes_the_unique_id_and_leaves_the_data_alone() {
    let site = Site::start(r"uniq_callback = s/.*^host_name=([^\n]*).*/check of $1/sm");
    let mut client = site.source.client();
    client.submit_background("work", b"the source's", mod_gearman::BASE64);
    site.destination.wait_for_jobs("work", 1);
    let job = site.destination.drain("work").remove(0);
    assert_eq!(job.unique, b"check of web1");
    assert_eq!(job.data, mod_gearman::BASE64);

    // "no host here": nothing matches. Not before the first has gone from the source, which would merge the two.
    site.source.wait_for_jobs("work", 0);
    client.submit_background("work", b"the source's", b"dHlwZT1wYXNzaXZlCm5vIGhvc3QgaGVyZQ==");
    site.destination.wait_for_jobs("work", 1);
    assert_eq!(site.destination.drain("work").remove(0).unique, b"the source's");
}

#[test]
fn an_undeliverable_job_is_failed_with_a_reason_in_the_log_and_the_next_ones_go_on() {
    let site = Site::start("decrypt = %wrong%");
    let mut client = site.source.client();
    for bad in [mod_gearman::ENCRYPTED, b"no base64: %secret%", b"c2hvcnQ="] {
        let handle = client.submit("work", b"", bad);
        let packet = client.receive();
        assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle), "{}", bad.escape_ascii());
    }
    site.source.wait_for_jobs("work", 0);
    assert_eq!(site.destination.status("work").total, 0);
    site.proxy.wait_for_log("work");
    let log = site.proxy.log();
    assert!(!log.contains("%secret%") && !log.contains("%wrong%"), "{log}");
    assert!(log.contains("base64") || log.contains("password"), "no reason in the log");
}

#[test]
fn undeliverable_jobs_go_to_the_reject_queue_as_they_came() {
    let (source, destination, elsewhere) = (Gearmand::start(), Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::start(&format!(
        "{} = {}\ndecrypt = should_be_changed\nreject_queue = rejected\n{} = {}\ndecrypt = x\nreject_queue = {}\n",
        source.queue("near"),
        destination.queue("near"),
        source.queue("far"),
        destination.queue("far"),
        elsewhere.queue("rejected"),
    ));
    let bad = [b"no base64: %".to_vec(), b"\0\xff\xfe".to_vec(), b"no base64: %".to_vec()];
    let mixed = [&bad[..2], &[mod_gearman::ENCRYPTED.to_vec()], &bad[2..]].concat();
    source.submit_all("near", &mixed);
    source.submit_all("far", &bad);
    source.wait_for_jobs("rejected", bad.len());
    elsewhere.wait_for_jobs("rejected", bad.len());
    destination.wait_for_jobs("near", 1);
    assert_same_set(&bad, &source.drain_data("rejected"));
    assert_same_set(&bad, &elsewhere.drain_data("rejected"));
    assert_eq!(destination.drain_data("near"), [mod_gearman::TEXT]);
    source.wait_for_jobs("near", 0);
    source.wait_for_jobs("far", 0);
}

#[test]
fn a_job_over_max_job_size_is_failed_and_the_next_ones_go_on() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = format!(
        "max_job_size = 1K\nstatusqueue = {}\n{} = {}",
        source.queue("status"),
        source.queue("work"),
        destination.queue("work")
    );
    let proxy = Proxy::start(&config);
    let mut client = source.client();
    let handle = client.submit("work", b"", &[b'x'; 1025]);
    let packet = client.receive();
    assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle));
    // Read off, whatever its size, without an end of the connection.
    source.client().submit_background("work", b"", &vec![b'x'; 5_000_000]);
    source.client().submit_background("work", b"", &[b'y'; 1024]);
    destination.wait_for_jobs("work", 1);
    source.wait_for_jobs("work", 0);
    assert_eq!(destination.drain_data("work"), [[b'y'; 1024]]);

    proxy.wait_for_log("max_job_size");
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("max_job_size")).unwrap();
    assert!(line.contains("1025") && line.contains("work"), "size and queue in: {line}");
    assert!(!log.contains("xxxx"), "a payload in the log");
    assert_eq!(Status::ask(&source, "status", "check").value("work::jobs"), 1);
}
