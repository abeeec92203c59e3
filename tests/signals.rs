//! What SIGTERM, SIGINT and SIGHUP do.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Folder, Gearmand, Proxy, Queue, Relay, Site, Status, numbered, wait_for, wait_until_equal};

#[test]
fn term_and_int_end_it_with_status_0_and_no_worker_is_left_behind() {
    for signal in ["TERM", "INT"] {
        let mut site = Site::start("");
        site.proxy.signal(signal);
        assert_eq!(site.proxy.exit_status().code(), Some(0), "SIG{signal}");
        assert_eq!(site.source.status("work").workers, 0);
    }
}

#[test]
fn what_was_taken_is_delivered_and_acknowledged_before_the_end() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::to(destination.address());
    let mut proxy = Proxy::start(&format!("{} = {}\nprefetch = 10", source.queue("work"), line.queue("work")));
    source.wait_for_workers("work", 1);
    line.hold_replies(true);
    source.submit_all("work", &numbered(30));
    wait_until_equal("jobs held", 10, || source.status("work").running);
    proxy.signal("TERM");
    line.hold_replies(false);
    assert_eq!(proxy.exit_status().code(), Some(0));
    // Exactly those it held when the signal came, or a few more that were on their way; the rest still waits.
    let (here, there) = (source.status("work"), destination.status("work"));
    assert_eq!((here.total + there.total, here.running, here.workers), (30, 0, 0));
    assert!(there.total >= 10, "{there:?}");
}

#[test]
fn a_job_that_does_not_end_in_time_goes_back_to_its_source() {
    let mut site = Site::start("async = 0");
    let mut client = site.source.client();
    client.submit("work", b"", b"data");
    let mut worker = site.destination.worker("work");
    worker.grab();
    assert_eq!(site.proxy.stop().code(), Some(0));
    assert_eq!(site.source.status("work"), Queue { total: 1, running: 0, workers: 0 });
    let log = site.proxy.log();
    assert!(log.lines().any(|line| line.contains("work") && line.contains(" 1 ")), "the number that is left: {log}");
}

#[test]
fn a_second_signal_ends_it_at_once_with_status_1() {
    let mut site = Site::start("async = 0");
    let mut client = site.source.client();
    client.submit("work", b"", b"data");
    let mut worker = site.destination.worker("work");
    worker.grab();
    // Two within a few milliseconds count as one, so a second one is tried until it is.
    wait_for("it ends", || {
        site.proxy.signal("TERM");
        !site.proxy.is_running()
    });
    assert_eq!(site.proxy.exit_status().code(), Some(1));
}

/// A whole stop may take 10 s; with nothing to deliver it is a second.
const PROMPT: Duration = Duration::from_secs(5);

/// It ends with status 0, and does not wait for anything.
#[track_caller]
fn stops_promptly(proxy: &mut Proxy) {
    let begun = Instant::now();
    assert_eq!(proxy.stop().code(), Some(0));
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[test]
fn with_nothing_held_it_ends_at_once_whatever_hangs() {
    for (source_hangs, destination_hangs) in [(true, false), (false, true), (true, true)] {
        for from_the_start in [false, true] {
            let (mut source, mut destination) = (Gearmand::start(), Gearmand::start());
            let config = format!(
                "statusqueue = {}\n{} = {}\n",
                source.queue("status"),
                source.queue("work"),
                destination.queue("work")
            );
            let mut proxy = (!from_the_start).then(|| Proxy::start(&config));
            if proxy.is_some() {
                source.wait_for_workers("work", 1);
            }
            for (server, hangs) in [(&mut source, source_hangs), (&mut destination, destination_hangs)] {
                if hangs {
                    server.freeze();
                }
            }
            let proxy = proxy.get_or_insert_with(|| Proxy::start(&config));
            wait_for("it has connections", || source.connections().len() + destination.connections().len() > 1);
            stops_promptly(proxy);
        }
    }
}

#[test]
fn a_too_large_job_that_comes_slowly_does_not_delay_the_end() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let line = Relay::with_rate(source.address(), 50_000);
    let mut proxy =
        Proxy::start(&format!("max_job_size = 100K\n{} = {}\n", line.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    // It takes a minute.
    source.client().submit_background("work", b"", &vec![b'x'; 3_000_000]);
    wait_until_equal("jobs on their way", 1, || source.status("work").running);
    stops_promptly(&mut proxy);
    drop(line);
    wait_until_equal("it waits again", Queue { total: 1, running: 0, workers: 0 }, || source.status("work"));
}

/// Two sites that one proxy serves.
struct Two {
    here: [Gearmand; 2],
    there: [Gearmand; 2],
}

impl Two {
    fn start() -> Two {
        Two { here: [Gearmand::start(), Gearmand::start()], there: [Gearmand::start(), Gearmand::start()] }
    }

    fn forward(&self, n: usize, options: &str) -> String {
        format!("{} = {}\n{options}\n", self.here[n].queue("work"), self.there[n].queue("work"))
    }

    fn connections(&self, n: usize) -> [Vec<u16>; 2] {
        [self.here[n].connections(), self.there[n].connections()]
    }
}

#[test]
fn hup_restarts_what_changed_and_leaves_the_rest_alone() {
    let two = Two::start();
    let status = Gearmand::start();
    let global = format!("statusqueue = {}\n", status.queue("status"));
    let ask = |name| Status::ask(&status, "status", "check").value(name);
    let config = |forwards: &[String]| format!("{global}{}", forwards.concat());
    let proxy = Proxy::start(&config(&[two.forward(0, ""), two.forward(1, "")]));
    for n in 0..2 {
        two.here[n].wait_for_workers("work", 1);
        two.here[n].submit_all("work", &numbered(5));
        two.there[n].wait_for_jobs("work", 5);
        two.here[n].wait_for_jobs("work", 0);
    }
    wait_until_equal("jobs counted", 10, || ask("work::jobs"));
    let first_alone = format!("{}::jobs", two.here[0].queue("work"));
    assert_eq!(ask(&first_alone), 5);

    // The second one changes.
    let before = [two.connections(0), two.connections(1)];
    proxy.reload(&config(&[two.forward(0, ""), two.forward(1, "priority = high")]));
    two.here[1].wait_until_closed(&before[1][0]);
    two.there[1].wait_until_closed(&before[1][1]);
    two.here[1].wait_for_workers("work", 1);
    assert_eq!(two.connections(0), before[0], "the first one's connections");
    assert_eq!(ask(&first_alone), 5, "its counters");
    two.here[1].client().submit_background("work", b"", b"urgent");
    two.there[1].wait_for_jobs("work", 6);
    assert_eq!(two.there[1].drain_data("work")[0], b"urgent");

    // It goes, and a new one comes.
    let (from, to) = (two.here[1].queue("new"), two.there[1].queue("new"));
    proxy.reload(&config(&[format!("{from} = {to}\n"), two.forward(0, "")]));
    two.here[1].wait_for_workers("work", 0);
    two.here[1].submit_all("new", &numbered(3));
    two.there[1].wait_for_jobs("new", 3);
    assert_eq!(two.connections(0), before[0], "the first one's connections");
    two.here[0].submit_all("work", &numbered(1));
    two.there[0].wait_for_jobs("work", 6);
    wait_until_equal("jobs counted", 6, || ask("work::jobs"));
}

#[test]
fn a_forward_that_comes_back_by_hup_knows_what_was_delivered() {
    let two = Two::start();
    let line = Relay::to(two.here[0].address());
    let coming_back = format!("{} = {}\n", line.queue("work"), two.there[0].queue("work"));
    let staying = two.forward(1, "");
    let proxy = Proxy::start(&format!("{coming_back}{staying}"));
    two.here[0].wait_for_workers("work", 1);
    line.hold_acknowledgements(true);
    two.here[0].submit_all("work", &numbered(1));
    two.there[0].wait_for_jobs("work", 1);
    assert_eq!(two.there[0].drain_data("work"), numbered(1));
    // The acknowledgement is lost, and the source can't be asked whether it was.
    line.refuse(true);
    line.cut();
    line.hold_acknowledgements(false);
    wait_until_equal("the job is given back", Queue { total: 1, running: 0, workers: 0 }, || {
        two.here[0].status("work")
    });
    proxy.reload(&staying);
    proxy.wait_for_log("reloading with 1 forward");
    proxy.reload(&format!("{coming_back}{staying}"));
    proxy.wait_for_log("reloading with 2 forwards");
    line.refuse(false);
    two.here[0].wait_for_jobs("work", 0);
    assert_eq!(two.there[0].status("work").total, 0, "delivered again");
}

#[test]
fn hup_with_a_wrong_configuration_keeps_the_old_one() {
    let site = Site::start("");
    let before = [site.source.connections(), site.destination.connections()];
    site.proxy.reload("\nasink = 0\n");
    site.proxy.wait_for_log("proxy.conf:2:");
    site.source.submit_all("work", &numbered(10));
    site.destination.wait_for_jobs("work", 10);
    site.source.wait_for_jobs("work", 0);
    assert_eq!([site.source.connections(), site.destination.connections()], before);
}

#[test]
fn hup_restarts_a_forward_whose_password_file_changed() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let folder = Folder::new();
    let key = folder.file("key");
    fs::write(&key, "wrong\n").unwrap();
    let config = format!("{} = {}\ndecrypt = file:{}", source.queue("work"), destination.queue("work"), key.display());
    let proxy = Proxy::start(&config);
    source.wait_for_workers("work", 1);
    let before = source.connections();
    fs::write(&key, "should_be_changed\n").unwrap();
    proxy.signal("HUP");
    source.wait_until_closed(&before);
    source.client().submit_background("work", b"", b"RSBMQXtrevklYKzy2SX+yA==");
    destination.wait_for_jobs("work", 1);
    assert_eq!(destination.drain_data("work"), [b"type=passive\nab"]);
}

#[test]
fn hup_opens_the_log_file_anew_and_the_level_follows() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let forward = format!("{} = {}\n", source.queue("work"), destination.queue("work"));
    let folder = Folder::new();
    let (log, rotated) = (folder.file("proxy.log"), folder.file("proxy.log.1"));
    let config = |debug| format!("logfile = {}\ndebug = {debug}\n{forward}", log.display());
    let mut proxy = Proxy::start_in(folder, &config(0), &[]);
    source.wait_for_workers("work", 1);
    wait_for("something is logged", || fs::metadata(&log).is_ok_and(|file| file.len() > 0));
    assert!(!fs::read_to_string(&log).unwrap().contains("[DEBUG]"));

    fs::rename(&log, &rotated).unwrap();
    proxy.reload(&config(1));
    wait_for("a new log file", || log.exists());
    wait_for("the reload is logged", || fs::metadata(&log).unwrap().len() > 0);
    source.client().submit_background("work", b"", b"data");
    wait_for("debug lines", || fs::read_to_string(&log).unwrap().contains("[DEBUG]"));
    let old = fs::read(&rotated).unwrap();
    assert_eq!(proxy.stop().code(), Some(0));
    assert_eq!(fs::read(&rotated).unwrap(), old, "the old file still grows");
}

#[test]
fn the_level_of_the_command_line_outlives_a_reload() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let forward = |options: &str| format!("{} = {}\n{options}", source.queue("work"), destination.queue("work"));
    let mut proxy = Proxy::start_with(&forward(""), &["--quiet", "--logfile=stderr"]);
    source.wait_for_workers("work", 1);
    let before = source.connections();
    proxy.reload(&format!("debug = 2\n{}", forward("priority = low")));
    source.wait_until_closed(&before);
    source.wait_for_workers("work", 1);
    assert_eq!(proxy.stop().code(), Some(0));
    let log = proxy.log();
    assert!(!["[INFO]", "[DEBUG]", "[TRACE]"].iter().any(|level| log.contains(level)), "{log}");
}
