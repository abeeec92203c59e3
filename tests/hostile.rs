//! Servers that keep to the protocol but not to gearmand's habits, servers that misbehave, and servers that are none.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gearman_proxy::config::{Address, ForwardConfig, Server};
use gearman_proxy::forward::{Common, Forward, Legacy, Timing};
use gearman_proxy::metrics::ForwardMetrics;
use support::peer::*;
use support::stub::Line;
use support::{Gearmand, Proxy, Queue, Status, Stub, free_port, loopback, numbered, wait_for};

/// A forward in this process, with its durations shortened.
fn start(source: SocketAddr, destination: SocketAddr, asynchronous: bool, timing: Timing) -> Forward {
    start_with(source, destination, asynchronous, timing, 64 << 20)
}

fn start_with(
    source: SocketAddr,
    destination: SocketAddr,
    asynchronous: bool,
    timing: Timing,
    max_job_size: usize,
) -> Forward {
    let address = |server: SocketAddr| Address {
        server: Server { host: server.ip().to_string(), port: server.port() },
        queue: "work".to_owned(),
    };
    let config = ForwardConfig {
        asynchronous,
        prefetch: if asynchronous { 4096 } else { 1 },
        ..ForwardConfig::between(address(source), address(destination))
    };
    let mut common = Common::default();
    (common.max_job_size, common.timing) = (max_job_size, timing);
    common.start_clock().unwrap();
    Forward::start(&common, Arc::new(ForwardMetrics::new(&config)), Legacy::default())
        .map_err(|failure| failure.0)
        .unwrap()
}

fn stop(forward: Forward) {
    forward.stop();
    wait_for("the forward has ended", || forward.is_finished());
    forward.join();
}

#[test]
fn a_forward_stops_in_time_though_there_is_no_room_for_the_jobs_on_their_way() {
    let (source, destination) = (Gearmand::start(), Stub::listen());
    // Of 3 MiB each: more at once than a forward holds.
    source.submit_all("work", &vec![vec![b'x'; 3 << 20]; 4]);
    let timing = Timing { stop: Duration::from_millis(300), ..Timing::default() };
    let forward = start(source.address(), destination.address, true, timing);
    let mut line = destination.greet();
    line.submission();
    wait_for("it holds as many as there is room for", || forward.metrics().counts.lock().held == 2);
    stop(forward);
    wait_for("all have gone back", || source.status("work") == Queue { total: 4, running: 0, workers: 0 });
}

#[test]
fn a_synchronous_job_that_the_destination_took_ends_the_trouble_before_it() {
    let (source, destination) = (Gearmand::start(), Stub::listen());
    let timing = Timing { release: Duration::from_secs(2), job_probe: Duration::from_millis(100), ..Timing::default() };
    let forward = start(source.address(), destination.address, false, timing.clone());
    let mut first = destination.greet_with_exceptions();
    source.wait_for_workers("work", 1);
    let before = source.connections();
    let mut client = source.client();
    client.submit("work", b"", b"data");
    first.submission();
    drop(first);
    destination.cut();
    let mut second = destination.greet_with_exceptions();
    second.submission();
    second.reply(JOB_CREATED, b"H:x:1");
    // It works for longer than a trouble may last.
    let probes = timing.release.as_millis() / timing.job_probe.as_millis();
    (0..probes + 5).for_each(|_| second.echo());
    drop(second);
    destination.cut();
    let mut third = destination.greet_with_exceptions();
    third.submission();
    third.reply(JOB_CREATED, b"H:x:2");
    third.reply(WORK_COMPLETE, b"H:x:2\0result");
    assert_eq!(client.receive().after_handle(), b"result");
    let now = source.connections();
    assert!(before.iter().all(|port| now.contains(port)), "the source was left");
    stop(forward);
}

#[test]
fn an_answer_to_something_else_than_was_asked_does_not_stall_a_forward() {
    let (source, destination) = (Gearmand::start(), Stub::listen());
    let forward = start(source.address(), destination.address, true, Timing::default());
    let mut first = destination.greet();
    source.wait_for_workers("work", 1);
    source.client().submit_background("work", b"", b"data");
    first.submission();
    first.reply(ERROR, b"ODD\0odd");
    // It comes alone now.
    first.submission();
    first.reply(ECHO_RES, b"odd");
    let mut second = destination.greet();
    second.submission();
    second.reply(JOB_CREATED, b"H:x:1");
    source.wait_for_jobs("work", 0);
    stop(forward);
}

/// What a peer does with a request: it may answer, or not.
type Habit = Box<dyn Fn(&mut Line, u32, &[u8]) + Send + Sync>;

/// A server that does nothing but what its habit says, and remembers what came.
struct Peer {
    stub: Arc<Stub>,
    requests: Arc<Mutex<Vec<(u32, Instant)>>>,
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Peer {
    fn start(habit: impl Fn(&mut Line, u32, &[u8]) + Send + Sync + 'static) -> Peer {
        let habit: Arc<Habit> = Arc::new(Box::new(habit));
        let peer = Peer { stub: Arc::new(Stub::listen()), requests: Arc::default(), lines: Arc::default() };
        let (stub, requests, lines) = (Arc::clone(&peer.stub), Arc::clone(&peer.requests), Arc::clone(&peer.lines));
        thread::spawn(move || {
            loop {
                let mut line = stub.accept();
                lines.lock().unwrap().push(line.again());
                let (requests, habit) = (Arc::clone(&requests), Arc::clone(&habit));
                thread::spawn(move || {
                    while let Some((kind, body)) = line.try_request() {
                        habit(&mut line, kind, &body);
                        requests.lock().unwrap().push((kind, Instant::now()));
                    }
                });
            }
        });
        peer
    }

    fn count(&self, kind: u32) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.0 == kind).count()
    }

    fn last(&self, kind: u32) -> Instant {
        self.requests.lock().unwrap().iter().rfind(|request| request.0 == kind).unwrap().1
    }

    /// Says something on the connection that came first.
    fn say(&self, bytes: &[u8]) {
        self.lines.lock().unwrap()[0].send(bytes);
    }
}

/// A source without jobs.
fn idle_source(line: &mut Line, kind: u32, body: &[u8]) {
    match kind {
        ECHO_REQ => line.reply(ECHO_RES, body),
        GRAB_JOB_UNIQ => line.reply(NO_JOB, b""),
        _ => {}
    }
}

/// A source with one job.
fn source_of_a_job() -> impl Fn(&mut Line, u32, &[u8]) + Send + Sync {
    let given = AtomicBool::new(false);
    move |line, kind, body| {
        if kind == GRAB_JOB_UNIQ && !given.swap(true, Ordering::SeqCst) {
            line.send(&job());
        } else {
            idle_source(line, kind, body);
        }
    }
}

/// A destination that takes every job at once.
fn taker(line: &mut Line, kind: u32, body: &[u8]) {
    match kind {
        ECHO_REQ => line.reply(ECHO_RES, body),
        SUBMIT_JOB_BG => line.reply(JOB_CREATED, b"H:there:1"),
        _ => {}
    }
}

/// A destination that answers nothing but an ECHO_REQ, and that at once.
fn echoer(line: &mut Line, kind: u32, body: &[u8]) {
    if kind == ECHO_REQ {
        line.reply(ECHO_RES, body);
    }
}

fn job() -> Vec<u8> {
    response(JOB_ASSIGN_UNIQ, &[b"H:here:1", b"work", b"", b"data"])
}

/// An asynchronous forward between them that has found no more jobs.
fn forward(source: &Peer, destination: &Peer, timing: Timing) -> Forward {
    let forward = start_with(source.stub.address, destination.stub.address, true, timing, 1 << 20);
    wait_for("the forward to sleep", || source.count(PRE_SLEEP) == 1);
    forward
}

#[test]
fn a_stop_waits_for_confirmations() {
    let (source, destination) = (Peer::start(source_of_a_job()), Peer::start(echoer));
    let forward = forward(&source, &destination, Timing::default());
    wait_for("the submission", || destination.count(SUBMIT_JOB_BG) == 1);
    forward.stop();
    let given_up = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            forward.join();
            given_up.store(true, Ordering::SeqCst);
        });
        support::stays(Duration::from_millis(500), "waiting for the confirmation", || !given_up.load(Ordering::SeqCst));
        destination.say(&response(JOB_CREATED, &[b"H:there:1"]));
        wait_for("the stop", || given_up.load(Ordering::SeqCst));
    });
    assert_eq!(source.count(WORK_COMPLETE), 1);
}

#[test]
fn a_source_that_does_not_tell_its_waiting_jobs_is_worked_with_all_the_same() {
    let (source, destination) = (Peer::start(idle_source), Peer::start(taker));
    let forward = forward(&source, &destination, Timing::default());
    source.stub.cut();
    support::wait_within(Duration::from_secs(6), "the forward to sleep again", || source.count(PRE_SLEEP) == 2);
    forward.stop();
    forward.join();
}

#[test]
fn a_false_length_ends_the_session_of_an_otherwise_willing_source() {
    for length in [2 << 20, u32::MAX] {
        let given = AtomicBool::new(false);
        let source = Peer::start(move |line, kind, body| {
            if kind == GRAB_JOB_UNIQ && !given.swap(true, Ordering::SeqCst) {
                let mut packet = job();
                packet[8..12].copy_from_slice(&length.to_be_bytes());
                line.send(&packet);
            } else {
                idle_source(line, kind, body);
            }
        });
        let destination = Peer::start(taker);
        let timing = Timing { answer: Duration::from_secs(1), ..Timing::default() };
        let forward = start_with(source.stub.address, destination.stub.address, true, timing, 1 << 20);
        wait_for("the session has ended", || !forward.metrics().troubles().is_empty());
        // The next one is well.
        wait_for("the forward sleeps", || source.count(PRE_SLEEP) > 0);
        stop(forward);
    }
}

#[test]
fn an_idle_source_is_probed_in_time_though_the_last_job_was_proved_meanwhile() {
    let (source, destination) = (Peer::start(source_of_a_job()), Peer::start(taker));
    let timing = Timing { answer: Duration::from_secs(1), probe: Duration::from_secs(2), ..Timing::default() };
    let forward = forward(&source, &destination, timing);
    wait_for("the acknowledgement", || source.count(WORK_COMPLETE) == 1);
    let proofs = source.count(ECHO_REQ);
    wait_for("the proof", || source.count(ECHO_REQ) > proofs);
    let (sleeps, asleep) = (source.count(PRE_SLEEP), source.last(PRE_SLEEP));
    wait_for("the probe", || source.count(PRE_SLEEP) > sleeps);
    // With the wait for the proof, 1 s, before it, it would be 3 s.
    assert!(source.last(PRE_SLEEP) - asleep < Duration::from_millis(2700));
    forward.stop();
    forward.join();
}

/// A server that answers every connection with the same bytes, then reads on until the other side closes.
fn babbler(bytes: &'static [u8], repeated: bool) -> SocketAddr {
    let ip = loopback();
    let listener = TcpListener::bind(SocketAddr::new(ip, free_port(ip))).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                while stream.write_all(bytes).is_ok() && repeated {}
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    address
}

#[test]
fn servers_that_talk_nonsense_are_reported_and_disturb_nobody() {
    const NOOPS: &[u8] = b"\0RES\0\0\0\x06\0\0\0\0\0RES\0\0\0\x06\0\0\0\0\0RES\0\0\0\x06\0\0\0\0";
    let nonsense = [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], false),
        (b"", false),
        (b"\0RES\0\0\0\x11\xff\xff\xff\xff", false),
        (b"\0RES\0\0\x27\x0f\0\0\0\x04what", false),
        (b"\0RES\0\0\0\x11\0\0", false),
        (b"\0RES\0\0\0\x1f\0\0\0\x01x", false),
        (b"\0REQ\0\0\0\x07\0\0\0\x05q\0u\0d", false),
        (b"\x80\x81\x82\xff\0\0\0", true),
        (NOOPS, true),
    ];
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let mut config = format!(
        "statusqueue = {}\n{} = {}\n",
        source.queue("status"),
        source.queue("work"),
        destination.queue("work"),
    );
    let mut addresses = Vec::new();
    for (n, (bytes, repeated)) in nonsense.into_iter().enumerate() {
        let address = babbler(bytes, repeated);
        config.push_str(&format!("{address}/from_{n} = {}\n", destination.queue(&format!("from_{n}"))));
        config.push_str(&format!("{} = {address}/to_{n}\n", source.queue(&format!("to_{n}"))));
        source.submit_all(&format!("to_{n}"), &numbered(3));
        addresses.push(address);
    }
    let mut proxy = Proxy::start(&config);
    // One log line stands for many servers; the status names each with its reason.
    for address in &addresses {
        let named = format!("{address} (");
        wait_for("the status names it", || Status::ask(&source, "status", "check").message.contains(&named));
    }
    let open_files = |proxy: &Proxy| std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().count();
    let before = open_files(&proxy);
    for _ in 0..5 {
        source.submit_all("work", &numbered(1000));
        destination.wait_for_jobs("work", 1000);
        assert_eq!(destination.drain_data("work"), numbered(1000));
    }
    for (n, address) in addresses.iter().enumerate() {
        assert_eq!(source.status(&format!("to_{n}")).total, 3, "a job for {address} is gone");
    }
    assert!(proxy.is_running());
    // A connection for each side of each forward at most, whenever one looks.
    assert!(open_files(&proxy) < before + 2 * addresses.len() + 20, "{} files, then {}", before, open_files(&proxy));
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100_000, "{peak} kB of memory");
}
