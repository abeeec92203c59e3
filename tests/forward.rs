//! A forward by itself, with its durations shortened, between a real source and a destination that misbehaves to plan.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use gearman_proxy::config::{Address, ForwardConfig, Place, Priority, Server};
use gearman_proxy::forward::{Common, Forward, Predecessor, Timing};
use gearman_proxy::metrics::ForwardMetrics;
use gearman_proxy::stages::Stages;
use support::peer::{ECHO_REQ, ECHO_RES, ERROR, JOB_CREATED, OPTION_REQ, OPTION_RES, WORK_COMPLETE};
use support::{Gearmand, PATIENCE, Queue, free_port, loopback, wait_for};

const SET_CLIENT_ID: u32 = 22;

fn address(server: SocketAddr, queue: &str) -> Address {
    Address { server: Server { host: server.ip().to_string(), port: server.port() }, queue: queue.to_string() }
}

fn start(source: SocketAddr, destination: SocketAddr, asynchronous: bool, timing: Timing) -> Forward {
    let config = ForwardConfig {
        place: Place { file: Arc::new("test".into()), line: 1 },
        source: address(source, "work"),
        destinations: vec![address(destination, "work")],
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
    let mut common = Common::default();
    common.timing = timing;
    common.start_clock().unwrap();
    Forward::start(&common, Arc::new(ForwardMetrics::new(&config)), Predecessor::None)
        .map_err(|(error, _)| error)
        .unwrap()
}

fn stop(forward: Forward) {
    forward.stop();
    wait_for("the forward has ended", || forward.is_finished());
    forward.join();
}

/// A destination whose every reply the test gives itself.
struct Destination(TcpListener);

/// One of its connections.
struct Line(TcpStream);

impl Destination {
    fn listen() -> Destination {
        let ip = loopback();
        let listener = TcpListener::bind(SocketAddr::new(ip, free_port(ip))).unwrap();
        listener.set_nonblocking(true).unwrap();
        Destination(listener)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next connection, greeted.
    fn accept(&self) -> Line {
        let mut accepted = None;
        wait_for("it connects", || {
            accepted = self.0.accept().ok();
            accepted.is_some()
        });
        let stream = accepted.unwrap().0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = Line(stream);
        assert_eq!(line.request().0, SET_CLIENT_ID);
        line.echo();
        line
    }

    /// The same of a synchronous forward.
    fn accept_with_exceptions(&self) -> Line {
        let mut line = self.accept();
        assert_eq!(line.request().0, OPTION_REQ);
        line.reply(OPTION_RES, b"exceptions");
        line.echo();
        line
    }
}

impl Line {
    fn request(&mut self) -> (u32, Vec<u8>) {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        self.0.read_exact(&mut body).unwrap();
        (word(4), body)
    }

    fn reply(&mut self, kind: u32, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap();
        let packet = [b"\0RES", &kind.to_be_bytes()[..], &length.to_be_bytes(), body].concat();
        self.0.write_all(&packet).unwrap();
    }

    fn echo(&mut self) {
        let (kind, body) = self.request();
        assert_eq!(kind, ECHO_REQ);
        self.reply(ECHO_RES, &body);
    }

    /// The next submission's packet type; probes before it are answered.
    fn submission(&mut self) -> u32 {
        loop {
            match self.request() {
                (ECHO_REQ, body) => self.reply(ECHO_RES, &body),
                (kind, _) => return kind,
            }
        }
    }
}

#[test]
fn it_stops_in_time_though_there_is_no_room_for_the_jobs_on_their_way() {
    let (source, destination) = (Gearmand::start(), Destination::listen());
    // Of 3 MiB each: more at once than a forward holds.
    source.submit_all("work", &vec![vec![b'x'; 3 << 20]; 4]);
    let timing = Timing { stop: Duration::from_millis(300), ..Timing::default() };
    let forward = start(source.address(), destination.address(), true, timing);
    let mut line = destination.accept();
    for _ in 0..2 {
        line.submission();
    }
    assert_eq!(forward.metrics().held(), 2);
    stop(forward);
    wait_for("all have gone back", || source.status("work") == Queue { total: 4, running: 0, workers: 0 });
}

#[test]
fn a_taken_synchronous_job_ends_the_trouble_before_it() {
    let (source, destination) = (Gearmand::start(), Destination::listen());
    let timing = Timing { release: Duration::from_secs(2), job_probe: Duration::from_millis(100), ..Timing::default() };
    let forward = start(source.address(), destination.address(), false, timing.clone());
    let mut first = destination.accept_with_exceptions();
    source.wait_for_workers("work", 1);
    let before = source.connections();
    let mut client = source.client();
    client.submit("work", b"", b"data");
    first.submission();
    drop(first);
    let mut second = destination.accept_with_exceptions();
    second.submission();
    second.reply(JOB_CREATED, b"H:x:1");
    // It works for longer than a trouble may last.
    let probes = timing.release.as_millis() / timing.job_probe.as_millis();
    (0..probes + 5).for_each(|_| second.echo());
    drop(second);
    let mut third = destination.accept_with_exceptions();
    third.submission();
    third.reply(JOB_CREATED, b"H:x:2");
    third.reply(WORK_COMPLETE, b"H:x:2\0result");
    assert_eq!(client.receive().after_handle(), b"result");
    let mut now = source.connections();
    now.retain(|port| before.contains(port));
    assert_eq!(now, before, "the source was left");
    stop(forward);
}

#[test]
fn an_answer_to_something_else_than_was_asked_does_not_stall_it() {
    let (source, destination) = (Gearmand::start(), Destination::listen());
    let timing = Timing { answer: Duration::from_millis(500), ..Timing::default() };
    let forward = start(source.address(), destination.address(), true, timing);
    let mut first = destination.accept();
    source.wait_for_workers("work", 1);
    source.client().submit_background("work", b"", b"data");
    first.submission();
    first.reply(ERROR, b"ODD\0odd");
    // What was refused is submitted alone once everything before it is answered.
    assert_eq!(first.request().0, ECHO_REQ);
    first.reply(JOB_CREATED, b"H:x:1");
    let mut second = destination.accept();
    second.submission();
    second.reply(JOB_CREATED, b"H:x:1");
    second.echo();
    source.wait_for_jobs("work", 0);
    stop(forward);
}
