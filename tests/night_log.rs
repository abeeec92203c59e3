//! The log at night: few lines, whatever the number of forwards, and each says what to do.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Gearmand, Proxy, Worker, numbered, stays, wait_for, wait_within};

/// Lines of the log that begin with a time: `2026-11-24 16:15:17.195 [INFO] (main) text`.
fn lines(proxy: &Proxy) -> Vec<String> {
    proxy.log().lines().map(str::to_owned).collect()
}

#[test]
fn a_hundred_forwards_at_a_hanging_a_full_and_a_refusing_destination_write_few_lines() {
    let (source, full, mut hanging, refusing) =
        (Gearmand::start(), Gearmand::start(), Gearmand::start(), Gearmand::down());
    let destinations = [&full, &hanging, &refusing].map(Gearmand::server);
    let names: Vec<String> = (0..100).map(|n| format!("q{n}")).collect();
    let mut config = String::new();
    let mut limited: Vec<Worker> = Vec::new();
    for (n, name) in names.iter().enumerate() {
        config.push_str(&format!("{} = {}/\n", source.queue(name), destinations[n % 3]));
        source.submit_all(name, &numbered(3));
        if n % 3 == 0 {
            // A limit needs a queue that the server knows, and none takes a job from it.
            limited.push(full.worker(name));
            limited.last_mut().unwrap().settle();
            full.submit_all(name, &numbered(1));
            full.ask(&format!("maxqueue {name} 1"));
        }
    }
    hanging.freeze();
    let mut config = config.replace("/\n", "/KEPT\n");
    for name in &names {
        config = config.replacen("KEPT", name, 1);
    }
    let proxy = Proxy::start(&config);
    let told = |server: &str, reason: &str| {
        lines(&proxy).iter().any(|line| line.contains(server) && line.contains("forwards") && line.contains(reason))
    };
    let each = [
        (&full, "queue full (do its workers keep up? its limit is set with: echo \"maxqueue QUEUE N\" | nc HOST PORT)"),
        (&hanging, "look at its process)"),
        (&refusing, "connection refused (is gearmand running there, and on this port?)"),
    ];
    for (server, reason) in each {
        wait_for(reason, || told(&server.server(), reason));
    }
    // What happens once at the begin, in hundreds of forwards, is few lines too; then it stays quiet.
    let began = Instant::now();
    let at_first = lines(&proxy).len();
    assert!(at_first < 10, "{:#?}", lines(&proxy));
    let mut client = source.client();
    let mut number = 0;
    stays(Duration::from_secs(90), "fewer than 10 lines a minute", || {
        if began.elapsed().as_secs() > number {
            number += 1;
            client.submit_background(&names[number as usize % 100], b"", b"later");
        }
        lines(&proxy).len() - at_first < 10
    });
}

#[test]
fn a_burst_of_rejects_makes_one_line_and_its_count_follows_when_it_is_over() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let proxy = Proxy::start(&format!("{} = {}\ndecrypt = x\n", source.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    let bad: Vec<Vec<u8>> = (0..200).map(|n| format!("%{n}").into_bytes()).collect();
    source.submit_all("work", &bad);
    source.wait_for_jobs("work", 0);
    let of_rejects =
        || -> Vec<String> { lines(&proxy).into_iter().filter(|line| line.contains("undeliverable")).collect() };
    // A busy machine takes more than a second for them, which is a second line with a count.
    let counted = |line: &String| -> u64 {
        if let Some((_, more)) = line.split_once("(and ") {
            1 + more.split_once(' ').unwrap().0.parse::<u64>().unwrap()
        } else if line.contains(" more job") {
            line.rsplit_once(": ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap()
        } else {
            1
        }
    };
    let began = Instant::now();
    wait_within(Duration::from_secs(30), "all are counted", || of_rejects().iter().map(counted).sum::<u64>() == 200);
    // After five seconds of quiet.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let told = of_rejects();
    assert!(told.len() <= 4, "{told:#?}");
    assert!(told[0].contains(" is undeliverable: data is not base64; failed"), "{told:#?}");
}

#[test]
fn forwards_that_a_reload_ends_are_no_outage() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let forwards = |count: usize| -> String {
        (0..count).map(|n| format!("{} = {}\n", source.queue(&format!("q{n}")), destination.queue("q"))).collect()
    };
    let mut proxy = Proxy::start(&forwards(20));
    source.wait_for_workers("q19", 1);
    wait_for("all are connected", || destination.connections().len() == 20);
    proxy.reload(&forwards(1));
    wait_for("the others have ended", || destination.connections().len() == 1);
    // Lines about lost servers wait for others like them.
    stays(Duration::from_secs(3), "no warning", || !proxy.log().contains("[WARN]"));
    assert_eq!(proxy.stop().code(), Some(0));
    assert!(!proxy.log().contains("[WARN]"), "{}", proxy.log());
}

#[test]
fn lines_have_local_time_with_milliseconds() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = format!("{} = {}\n", source.queue("work"), destination.queue("work"));
    let hour = |zone: &'static str| -> (String, u32) {
        let proxy = Proxy::start_with_environment(&config, &[("TZ", zone)]);
        proxy.wait_for_log("forwarding");
        let line = lines(&proxy).into_iter().find(|line| line.contains("forwarding")).unwrap();
        let hour = line[11..13].parse().unwrap();
        (line, hour)
    };
    let (line, east) = hour("EAST-5");
    let shape: String = line[..23].chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00.000", "{line}");
    let (_, zero) = hour("UTC0");
    let apart = (east + 24 - zero) % 24;
    assert!((4..=5).contains(&apart), "{east} and {zero}");
}
