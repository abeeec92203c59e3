//! Servers that speak something else than Gearman, or Gearman that makes no sense.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gearman_proxy::config::{Address, ForwardConfig, Place, Priority};
use gearman_proxy::forward::{Forward, Settings};
use gearman_proxy::metrics::ForwardMetrics;
use gearman_proxy::stages::Stages;

use crate::faults::{Fate, Hostility};
use crate::random::Random;
use crate::relay::Scale;
use crate::runner::Leftovers;
use crate::schedule::QUEUE;
use crate::server::Server;
use crate::wire::*;

/// How long each hostile server is endured.
const ENDURED: Duration = Duration::from_millis(300);
/// Waits of 5 ms double to 60, less up to a quarter of jitter, and a try may take two connections. More is no backoff.
const SHORTEST_WAIT: u128 = 45;
const MOST_TRIES_AT_ONCE: u128 = 16;
const AT_ONCE: usize = 8;
/// For each of the forwards that run at once, bytes: what one may hold, twice, and its threads.
const MOST_MEMORY: usize = 24 << 20;
const LIMIT: Duration = Duration::from_secs(30);

struct Case {
    name: &'static str,
    hostility: Hostility,
    /// The forward can't but find fault with it.
    is_reported: bool,
}

fn once(name: &'static str, bytes: Vec<u8>) -> Case {
    Case { name, hostility: Hostility::Once(bytes), is_reported: true }
}

/// Where ignoring it would do as well.
fn harmless(name: &'static str, bytes: Vec<u8>) -> Case {
    Case { name, hostility: Hostility::Once(bytes), is_reported: false }
}

fn endless(name: &'static str, first: &[u8], then: Vec<u8>) -> Case {
    Case { name, hostility: Hostility::Endless(first.to_vec(), then), is_reported: true }
}

fn header(kind: u32, length: u32) -> Vec<u8> {
    [b"\0RES".as_slice(), &kind.to_be_bytes(), &length.to_be_bytes()].concat()
}

fn cases() -> Vec<Case> {
    let mut random = Random::new(1);
    let assigned = response(JOB_ASSIGN_UNIQ, &[b"H:x:1", QUEUE, b"", b"data"]);
    let large = response(JOB_ASSIGN_UNIQ, &[b"H:x:1", QUEUE, b"", &vec![b'x'; 200 << 10]]);
    vec![
        once("bad magic", b"\0BAD\0\0\0\x08\0\0\0\0".to_vec()),
        once("half a magic", b"\0RE".to_vec()),
        once("an unknown type", response(99, &[b"x"])),
        once("type 0", response(0, &[])),
        once("an unknown type of 4 GiB", header(99, u32::MAX)),
        // A job that is too large is read off for a while before anybody can know that its length is false.
        harmless("a job of 4 GiB that does not come", header(JOB_ASSIGN_UNIQ, u32::MAX)),
        once("a reply of 4 GiB that does not come", header(JOB_CREATED, u32::MAX)),
        once("an echo of 4 GiB that does not come", header(ECHO_RES, u32::MAX)),
        endless("a job of 4 GiB that comes", &header(JOB_ASSIGN_UNIQ, u32::MAX), vec![b'x'; 1 << 16]),
        Case {
            is_reported: false,
            ..endless("a job of 4 GiB of NULs", &header(JOB_ASSIGN_UNIQ, u32::MAX), vec![0; 1 << 16])
        },
        endless("a reply of 4 GiB that comes", &header(JOB_CREATED, u32::MAX), vec![b'x'; 1 << 16]),
        endless("an error of 4 GiB", &header(ERROR, u32::MAX), vec![b'x'; 1 << 16]),
        endless("random bytes", b"", random.bytes(1 << 16)),
        endless("NULs", b"", vec![0; 1 << 16]),
        endless("a line without an end", b"", vec![b'a'; 1 << 16]),
        endless("line ends", b"", vec![b'\n'; 1 << 16]),
        once("HTTP", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec()),
        once("TLS", b"\x15\x03\x01\0\x02\x02\x46".to_vec()),
        once("half a packet", assigned[..assigned.len() - 1].to_vec()),
        once("half a header", assigned[..7].to_vec()),
        once("a request", request(ECHO_REQ, &[b"x"])),
        harmless("a reply without a body", response(JOB_CREATED, &[])),
        once("an error without a body", response(ERROR, &[])),
        once("a job without arguments", response(JOB_ASSIGN_UNIQ, &[b"x"])),
        once("a job without a handle", response(JOB_ASSIGN_UNIQ, &[b"", QUEUE, b"", b"x"])),
        harmless("a job that nobody asked for", response(JOB_ASSIGN, &[b"H:x:1", QUEUE, b"data"])),
        harmless("an answer to nothing", response(JOB_CREATED, &[b"H:x:1"])),
        harmless("the end of an unknown job", response(WORK_COMPLETE, &[b"H:x:77", b"x"])),
        harmless("a foreign echo", response(ECHO_RES, &[b"what nobody said"])),
        harmless("an unwanted option", response(OPTION_RES, &[b"exceptions"])),
        harmless("an unwanted status", response(STATUS_RES, &[b"H:x:1", b"0", b"0", b"0", b"0"])),
        harmless("NO_JOB out of the blue", response(NO_JOB, &[])),
        harmless("an error out of the blue", response(ERROR, &[b"CODE", b"text\n\x1b[31m"])),
        harmless("a handle of a megabyte", response(JOB_ASSIGN_UNIQ, &[&vec![b'h'; 1 << 20], QUEUE, b"", b"x"])),
        Case { is_reported: false, ..endless("NOOPs", b"", response(NOOP, &[]).repeat(1000)) },
        Case {
            is_reported: false,
            ..endless("answers to nothing", b"", response(JOB_CREATED, &[b"H:x:1"]).repeat(1000))
        },
        Case { is_reported: false, ..endless("errors", b"", response(ERROR, &[b"CODE", b"text"]).repeat(1000)) },
        Case { is_reported: false, ..endless("jobs that nobody asked for", b"", assigned.repeat(1000)) },
        Case { is_reported: false, ..endless("large jobs that nobody asked for", b"", large) },
    ]
}

fn forward(source: &Server, destination: &Server, asynchronous: bool) -> Forward {
    let address = |server: &Server| Address {
        server: gearman_proxy::config::Server {
            host: server.address().ip().to_string(),
            port: server.address().port(),
        },
        queue: String::from_utf8(QUEUE.to_vec()).unwrap(),
    };
    let config = ForwardConfig {
        place: Place { file: Arc::new("model".into()), line: 1 },
        source: address(source),
        destinations: vec![address(destination)],
        stages: Stages::default(),
        asynchronous,
        workers: 1,
        prefetch: if asynchronous { 4096 } else { 1 },
        prefetch_is_explicit: false,
        priority: Priority::Normal,
        timeout: None,
        max_age: None,
        reject_queue: None,
    };
    let settings = Settings { max_job_size: 1 << 20, timing: Scale::default().timing(), ..Settings::default() };
    Forward::start(settings, Arc::new(ForwardMetrics::new(&config)), None).unwrap()
}

fn sound() -> Server {
    Server::fated(Fate::none())
}

/// Submits a job and waits until it has come through.
fn passes(source: &Server, destination: &Server, data: &[u8]) -> bool {
    let client = source.attach();
    source.call(client, &request(SUBMIT_JOB_BG, &[QUEUE, b"", data]));
    source.detach(client);
    destination.wait_for(LIMIT, |book| book.jobs.iter().any(|job| job.data == data))
}

/// One hostile server, endured and then recovered from. What was wrong, if anything.
fn endure(case: &Case, at: u64, hostile_source: bool, asynchronous: bool) -> Result<(), String> {
    let hostile = Server::fated(Fate { hostility: Some((at, case.hostility.clone())), ..Fate::none() });
    let other = sound();
    let (source, destination) = if hostile_source { (&hostile, &other) } else { (&other, &hostile) };
    let client = source.attach();
    let submission = request(SUBMIT_JOB_BG, &[QUEUE, b"", b"the first"]);
    source.call(client, &submission);
    // A synchronous forward's job must come to an end for the next one.
    let stop = AtomicBool::new(false);
    let forward = forward(source, destination, asynchronous);
    let result = std::thread::scope(|scope| {
        if !asynchronous {
            scope.spawn(|| answer_all(destination, &stop));
        }
        let began = Instant::now();
        let mut reported = false;
        // A busy machine may take long to get as far as the report.
        while began.elapsed() < ENDURED || (case.is_reported && !reported && began.elapsed() < LIMIT) {
            reported |= !forward.metrics().troubles().is_empty();
            std::thread::sleep(Duration::from_millis(2));
        }
        let endured = began.elapsed();
        let tries = hostile.accepted();
        hostile.calm();
        let result = if u128::from(tries) > MOST_TRIES_AT_ONCE + 2 * (endured.as_millis() / SHORTEST_WAIT) {
            Err(format!("{tries} connections in {endured:?}"))
        } else if case.is_reported && !reported {
            Err("not reported".to_owned())
        } else if !passes(source, destination, b"the last") {
            Err(format!("no job comes through afterwards; troubles {:?}", forward.metrics().troubles()))
        } else {
            Ok(())
        };
        stop.store(true, Ordering::SeqCst);
        result
    });
    forward.stop();
    forward.join();
    result
}

fn answer_all(server: &Server, stop: &AtomicBool) {
    let worker = server.attach();
    server.call(worker, &request(CAN_DO, &[QUEUE]));
    while !stop.load(Ordering::SeqCst) {
        for message in server.call(worker, &request(GRAB_JOB, &[])) {
            if let Message::Response(packet) = message
                && packet.kind == JOB_ASSIGN
                && let Some(arguments) = packet.arguments(3)
            {
                server.call(worker, &request(WORK_COMPLETE, &[arguments[0], b"done"]));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All cases on both sides, at the greeting and at work, while another forward goes about its business.
pub fn endure_all() {
    let before = Leftovers::count();
    let resident = memory("VmRSS:");
    // The highest value starts again from here.
    std::fs::write("/proc/self/clear_refs", "5").expect("no /proc/self/clear_refs");
    let cases = cases();
    let mut runs = Vec::new();
    for case in &cases {
        for hostile_source in [true, false] {
            for asynchronous in [true, false] {
                // The first packet that belongs to a job, after those of the greeting.
                let at_work = match (hostile_source, asynchronous) {
                    (true, _) => 3,
                    (false, true) => 1,
                    (false, false) => 2,
                };
                for at in [0, at_work] {
                    runs.push((case, at, hostile_source, asynchronous));
                }
            }
        }
    }
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let (source, destination) = (sound(), sound());
    let bystander = forward(&source, &destination, true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                if !passes(&source, &destination, format!("bystander {number}").as_bytes()) {
                    failed.lock().unwrap().push("another forward was disturbed".to_owned());
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    while let Some((case, at, hostile_source, asynchronous)) =
                        runs.get(next.fetch_add(1, Ordering::SeqCst))
                    {
                        if let Err(text) = endure(case, *at, *hostile_source, *asynchronous) {
                            let side = if *hostile_source { "source" } else { "destination" };
                            let mode = if *asynchronous { "asynchronous" } else { "synchronous" };
                            let text = format!("{} as packet {at} of the {side}, {mode}: {text}", case.name);
                            failed.lock().unwrap().push(text);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        over.store(true, Ordering::SeqCst);
    });
    bystander.stop();
    bystander.join();
    drop((source, destination));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
    let grown = memory("VmHWM:").saturating_sub(resident);
    assert!(grown < AT_ONCE * MOST_MEMORY, "memory grew by {} MiB", grown >> 20);
    before.expect_again().unwrap();
}

/// Servers that are right in all but their pace: a byte at a time.
pub fn byte_by_byte() {
    let slow = || Server::fated(Fate { crumbs: Some((usize::MAX, 1)), ..Fate::none() });
    for asynchronous in [true, false] {
        let (source, destination) = (slow(), slow());
        let forward = forward(&source, &destination, asynchronous);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if !asynchronous {
                scope.spawn(|| answer_all(&destination, &stop));
            }
            for number in 0..20 {
                let data = format!("job {number}");
                assert!(passes(&source, &destination, data.as_bytes()), "{data} did not come through");
            }
            let drained = source.wait_for(LIMIT, |book| book.live(QUEUE) == 0);
            stop.store(true, Ordering::SeqCst);
            assert!(drained, "a job was not acknowledged");
        });
        assert_eq!(source.accepted(), 1, "the connection was given up");
        forward.stop();
        forward.join();
    }
}

/// A figure of this process's memory, bytes.
fn memory(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}
