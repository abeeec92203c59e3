//! Servers that keep to the protocol, but not to gearmand's habits.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gearman_proxy::config::{Address, ForwardConfig, Place, Priority, Server};
use gearman_proxy::forward::{Common, Forward, Predecessor, Timing};
use gearman_proxy::metrics::ForwardMetrics;
use gearman_proxy::stages::Stages;
use support::peer::*;
use support::wait_for;

/// What a peer does with a request: it may answer, or not.
type Habit = Box<dyn Fn(&mut TcpStream, u32, &[u8]) + Send + Sync>;

/// A server that does nothing but what its habit says, and remembers what came.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<(u32, Instant)>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Peer {
    fn start(habit: impl Fn(&mut TcpStream, u32, &[u8]) + Send + Sync + 'static) -> Peer {
        let habit: Arc<Habit> = Arc::new(Box::new(habit));
        let listener = TcpListener::bind((support::loopback(), 0)).unwrap();
        let peer =
            Peer { address: listener.local_addr().unwrap(), requests: Arc::default(), connections: Arc::default() };
        let server = peer.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, server, habit) = (stream.unwrap(), server.clone(), habit.clone());
                server.connections.lock().unwrap().push(stream.try_clone().unwrap());
                thread::spawn(move || server.serve(stream, &habit));
            }
        });
        peer
    }

    fn serve(&self, mut stream: TcpStream, habit: &Habit) {
        let mut first = [0];
        while stream.read_exact(&mut first).is_ok() {
            if first != [0] {
                // A text command: none is known here.
                continue;
            }
            let mut header = [0; 11];
            stream.read_exact(&mut header).unwrap();
            let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let mut body = vec![0; word(7) as usize];
            stream.read_exact(&mut body).unwrap();
            habit(&mut stream, word(3), &body);
            self.requests.lock().unwrap().push((word(3), Instant::now()));
        }
    }

    fn count(&self, kind: u32) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.0 == kind).count()
    }

    fn last(&self, kind: u32) -> Instant {
        self.requests.lock().unwrap().iter().rfind(|request| request.0 == kind).unwrap().1
    }

    /// Says something on the connection that came first.
    fn say(&self, bytes: &[u8]) {
        self.connections.lock().unwrap()[0].write_all(bytes).unwrap();
    }

    fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn queue(&self) -> Address {
        let server = Server { host: self.address.ip().to_string(), port: self.address.port() };
        Address { server, queue: "queue".to_owned() }
    }
}

fn response(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = request(kind, arguments);
    bytes[..4].copy_from_slice(b"\0RES");
    bytes
}

/// A source without jobs.
fn idle_source(stream: &mut TcpStream, kind: u32, body: &[u8]) {
    match kind {
        ECHO_REQ => stream.write_all(&response(ECHO_RES, &[body])).unwrap(),
        GRAB_JOB_UNIQ => stream.write_all(&response(NO_JOB, &[])).unwrap(),
        _ => {}
    }
}

/// A source with one job.
fn source_of_a_job() -> impl Fn(&mut TcpStream, u32, &[u8]) + Send + Sync {
    let given = AtomicBool::new(false);
    move |stream, kind, body| {
        if kind == GRAB_JOB_UNIQ && !given.swap(true, Ordering::SeqCst) {
            stream.write_all(&job()).unwrap();
        } else {
            idle_source(stream, kind, body);
        }
    }
}

/// A destination that takes every job at once.
fn taker(stream: &mut TcpStream, kind: u32, body: &[u8]) {
    match kind {
        ECHO_REQ => stream.write_all(&response(ECHO_RES, &[body])).unwrap(),
        SUBMIT_JOB_BG => stream.write_all(&response(JOB_CREATED, &[b"H:there:1"])).unwrap(),
        _ => {}
    }
}

/// A destination that answers nothing but an ECHO_REQ, and that at once.
fn echoer(stream: &mut TcpStream, kind: u32, body: &[u8]) {
    if kind == ECHO_REQ {
        stream.write_all(&response(ECHO_RES, &[body])).unwrap();
    }
}

fn job() -> Vec<u8> {
    response(JOB_ASSIGN_UNIQ, &[b"H:here:1", b"queue", b"", b"data"])
}

fn forward(source: &Peer, destination: &Peer, timing: Timing) -> Forward {
    let config = ForwardConfig {
        place: Place { file: Arc::new("test".into()), line: 1 },
        source: source.queue(),
        destinations: vec![destination.queue()],
        stages: Stages::default(),
        asynchronous: true,
        workers: 1,
        prefetch: 4096,
        prefetch_is_explicit: false,
        priority: Priority::Normal,
        timeout: None,
        max_age: None,
        reject_queue: None,
    };
    let mut common = Common::default();
    (common.max_job_size, common.timing) = (1 << 20, timing);
    common.start_clock().unwrap();
    let forward = Forward::start(&common, Arc::new(ForwardMetrics::new(&config)), Predecessor::None)
        .map_err(|(error, _)| error)
        .unwrap();
    wait_for("the forward to sleep", || source.count(PRE_SLEEP) == 1);
    forward
}

#[test]
fn a_stop_waits_for_confirmations_though_an_echo_overtakes_them() {
    let (source, destination) = (Peer::start(source_of_a_job()), Peer::start(echoer));
    let forward = forward(&source, &destination, Timing::default());
    wait_for("the submission", || destination.count(SUBMIT_JOB_BG) == 1);
    let echoes = destination.count(ECHO_REQ);
    forward.stop();
    wait_for("the question whether all is answered", || destination.count(ECHO_REQ) > echoes);
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
    source.cut();
    support::wait_within(Duration::from_secs(6), "the forward to sleep again", || source.count(PRE_SLEEP) == 2);
    forward.stop();
    forward.join();
}

#[test]
fn a_false_length_ends_the_session_of_an_otherwise_willing_source() {
    let limit = Duration::from_secs(2);
    for length in [2 << 20, u32::MAX] {
        let (source, destination) = (Peer::start(idle_source), Peer::start(taker));
        let timing = Timing { answer: limit / 2, probe: limit, ..Timing::default() };
        let forward = forward(&source, &destination, timing);
        let mut packet = job();
        packet[8..12].copy_from_slice(&length.to_be_bytes());
        source.say(&packet);
        let said = Instant::now();
        wait_for("the end of the session", || !forward.metrics().troubles().is_empty());
        // Were a probe's answer taken for a part of the job, it would last twice as long.
        assert!(said.elapsed() < limit * 3 / 2, "{:?}", said.elapsed());
        forward.stop();
        forward.join();
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
