//! The status worker on a real job server, asked with gearmand's own tool.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gearman_proxy::config::{Address, ForwardConfig, Server};
use gearman_proxy::metrics::{ForwardMetrics, Metrics};
use gearman_proxy::status::StatusWorker;

/// A gearmand on a free port, killed when dropped.
struct Gearmand {
    port: u16,
    process: Child,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Gearmand {
    fn start() -> Gearmand {
        Gearmand::start_on(free_port())
    }

    fn start_on(port: u16) -> Gearmand {
        let process = Command::new("gearmand")
            .args(["--listen=127.0.0.1", &format!("--port={port}"), "--log-file=none", "--threads=1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("gearmand is installed");
        let server = Gearmand { port, process };
        wait_until("gearmand accepts", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    fn queue(&self, queue: &str) -> Address {
        Address { server: Server { host: "127.0.0.1".to_owned(), port: self.port }, queue: queue.to_owned() }
    }

    fn admin(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b".\n") && stream.read(&mut byte).unwrap() > 0 {
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    }

    fn submit(&self, queue: &str, arguments: &[&str]) {
        let status = gearman(self.port, queue).args(arguments).stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
    }

    /// Asks on a queue in the foreground, as check_gearman does.
    fn ask(&self, queue: &str, payload: &str) -> String {
        let mut tool = gearman(self.port, queue)
            .args(["-t", "8000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tool gearman is installed");
        tool.stdin.take().unwrap().write_all(payload.as_bytes()).unwrap();
        String::from_utf8(tool.wait_with_output().unwrap().stdout).unwrap()
    }
}

impl Drop for Gearmand {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn gearman(port: u16, queue: &str) -> Command {
    let mut tool = Command::new("gearman");
    tool.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-f", queue]);
    tool
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn metrics(forwards: &[(Address, Address)]) -> Arc<Metrics> {
    let metrics = Metrics::default();
    let forwards = forwards.iter().map(|(source, destination)| {
        Arc::new(ForwardMetrics::new(&ForwardConfig::between(source.clone(), destination.clone())))
    });
    metrics.set_forwards(forwards.collect());
    metrics.forwards().iter().for_each(|forward| forward.counts.lock().sessions += 1);
    Arc::new(metrics)
}

/// A worker on this queue, and no metrics file.
fn start(address: Address, metrics: Arc<Metrics>) -> std::io::Result<StatusWorker> {
    StatusWorker::start(Some(address), None, metrics)
}

/// `'name'=value` of an answer's performance data.
fn performance(answer: &str) -> BTreeMap<String, u64> {
    let (_, data) = answer.split_once('|').unwrap();
    data.split_whitespace()
        .map(|value| {
            let (name, value) = value.split_once('=').unwrap();
            (name.trim_matches('\'').to_owned(), value.trim_end_matches(";;;").trim_end_matches('c').parse().unwrap())
        })
        .collect()
}

#[test]
fn the_status_is_answered_to_the_letter() {
    let server = Gearmand::start();
    let metrics = metrics(&[(server.queue("b"), server.queue("c")), (server.queue("a"), server.queue("d"))]);
    let worker = start(server.queue("proxy_status"), Arc::clone(&metrics)).unwrap();
    metrics.forwards()[0].delivered(2, 10, 20);
    assert_eq!(
        server.ask("proxy_status", "check"),
        "0:OK - proxy version v1.0.0 running.| 'backlog'=0;;; 'bytes_in'=10c;;; 'bytes_out'=20c;;; 'queues'=2;;; \
         'server'=1;;; 'total_errors'=0c;;; 'total_jobs'=2c;;; 'a::bytes_out'=0c;;; 'a::expired'=0c;;; 'a::jobs'=0c;;; \
         'a::rejected'=0c;;; 'b::bytes_out'=20c;;; 'b::expired'=0c;;; 'b::jobs'=2c;;; 'b::rejected'=0c;;;"
    );
    assert_eq!(
        server.ask("proxy_status", "check perfdatafilter=^total_jobs$"),
        "0:OK - proxy version v1.0.0 running.| 'total_jobs'=2c;;;"
    );
    assert!(server.ask("proxy_status", "check perfdatafilter=(").starts_with("3:UNKNOWN - "));
    let table = server.ask("proxy_status", "table 100x20");
    assert!(table.starts_with("0:OK - gearman-proxy 1.0.0, process "), "{table}");
    assert!(table.contains("\n  a -> d  "), "{table}");
    drop(worker);
}

#[test]
fn a_request_of_any_length_is_answered_and_the_next_one_too() {
    let server = Gearmand::start();
    let worker = start(server.queue("proxy_status"), metrics(&[])).unwrap();
    let long = format!("check perfdatafilter=^queues$ {}", "x".repeat(3 << 20));
    assert_eq!(server.ask("proxy_status", &long), "0:OK - proxy version v1.0.0 running.| 'queues'=0;;;");
    assert_eq!(server.ask("proxy_status", "check perfdatafilter=x"), "0:OK - proxy version v1.0.0 running.|");
    drop(worker);
}

#[test]
fn many_ask_at_once() {
    let server = Gearmand::start();
    let worker = start(server.queue("proxy_status"), metrics(&[])).unwrap();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let server = &server;
            // The tool takes the data as unique id: it has to differ.
            scope.spawn(move || {
                let answer = server.ask("proxy_status", &format!("check perfdatafilter=^server$ {number}"));
                assert_eq!(answer, "0:OK - proxy version v1.0.0 running.| 'server'=0;;;");
            });
        }
    });
    drop(worker);
}

#[test]
fn it_comes_back_when_the_job_server_does() {
    let port = free_port();
    let server = Gearmand::start_on(port);
    let worker = start(server.queue("proxy_status"), metrics(&[])).unwrap();
    assert!(server.ask("proxy_status", "check").starts_with("0:OK"));
    drop(server);
    let server = Gearmand::start_on(port);
    assert!(server.ask("proxy_status", "check").starts_with("0:OK"));
    drop(worker);
}

#[test]
fn a_stop_leaves_the_job_server_at_once() {
    let server = Gearmand::start();
    let worker = start(server.queue("proxy_status"), metrics(&[])).unwrap();
    wait_until("it takes jobs", || server.admin("status").contains("proxy_status\t0\t0\t1\n"));
    let began = Instant::now();
    drop(worker);
    assert!(began.elapsed() < Duration::from_millis(500));
    wait_until("it has left", || server.admin("status").contains("proxy_status\t0\t0\t0\n"));
}

#[test]
fn a_stop_does_not_wait_for_a_dead_or_a_hanging_server() {
    let dead = Address { server: Server { host: "127.0.0.1".to_owned(), port: free_port() }, queue: "q".to_owned() };
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hanging.local_addr().unwrap().port();
    let hung = Address { server: Server { host: "127.0.0.1".to_owned(), port }, queue: "q".to_owned() };
    for address in [dead, hung] {
        let worker = start(address, metrics(&[])).unwrap();
        let began = Instant::now();
        drop(worker);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn the_backlog_of_a_forward_in_trouble_is_what_waits_at_its_source() {
    let server = Gearmand::start();
    let dead = Server { host: "127.0.0.1".to_owned(), port: free_port() };
    let destination = Address { server: dead.clone(), queue: "down".to_owned() };
    let metrics = metrics(&[(server.queue("down"), destination), (server.queue("up"), server.queue("elsewhere"))]);
    for queue in ["down", "down", "down", "up"] {
        server.submit(queue, &["-b", "data"]);
    }
    metrics.forwards()[0].troubled(&dead, "connection refused");
    metrics.forwards()[0].set_held(4);
    metrics.forwards()[1].set_held(5);
    let worker = start(server.queue("proxy_status"), Arc::clone(&metrics)).unwrap();
    let mut answer = String::new();
    wait_until("the source was asked", || {
        answer = server.ask("proxy_status", "check");
        performance(&answer)["backlog"] == 7
    });
    assert!(
        answer.starts_with(&format!(
            "1:WARNING - proxy version v1.0.0 running. 1 server failed: {dead} (connection refused). \
             backlog contains 7 jobs.|"
        )),
        "{answer}"
    );
    metrics.forwards()[0].recovered(&dead);
    assert_eq!(performance(&server.ask("proxy_status", "check"))["backlog"], 0);
    drop(worker);
}

/// A job server of the test's own: answers the greeting, then does as the test says.
struct Fake {
    listener: TcpListener,
}

impl Fake {
    fn start() -> (Fake, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (Fake { listener }, Address { server: Server { host: "127.0.0.1".to_owned(), port }, queue: "q".to_owned() })
    }

    /// The next connection, greeted.
    fn accept(&self) -> TcpStream {
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\0REQ\0\0\0\x10\0\0\0\x0dgearman-proxy") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(b"\0RES\0\0\0\x11\0\0\0\x0dgearman-proxy").unwrap();
        stream
    }
}

#[test]
fn a_server_that_speaks_nonsense_is_left_and_tried_again() {
    let (fake, address) = Fake::start();
    let worker = start(address, metrics(&[])).unwrap();
    let nonsense: [&[u8]; 4] = [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\0RES\0\0\0\x07\0\0\0\0",
        b"\0RES\0\0\0\x11\xff\xff\xff\xff",
        b"\0RES\0\0\0\x1f\0\0\0\x01x",
    ];
    for bytes in nonsense {
        let mut stream = fake.accept();
        stream.write_all(bytes).unwrap();
        if bytes.ends_with(b"\xff") {
            // A false length is told only by what comes, or does not.
            stream.write_all(&[0; 100_000]).unwrap();
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    drop(worker);
}

#[test]
fn a_server_that_answers_more_than_it_was_asked_is_left() {
    let (fake, address) = Fake::start();
    let worker = start(address, metrics(&[])).unwrap();
    let mut stream = fake.accept();
    stream.write_all(&b"\0RES\0\0\0\x0a\0\0\0\0".repeat(200)).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let requests = rest.windows(4).filter(|window| window == b"\0REQ").count();
    assert!(requests <= 3, "CAN_DO, GRAB_JOB_UNIQ, PRE_SLEEP and {} more", requests - 3);
    drop(worker);
}

#[test]
fn a_storm_of_wake_ups_burns_nothing() {
    let (fake, address) = Fake::start();
    let worker = start(address, metrics(&[])).unwrap();
    let mut stream = fake.accept();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let began = Instant::now();
    let mut grabs = 0;
    let mut requests = Vec::new();
    while began.elapsed() < Duration::from_secs(3) {
        let mut piece = [0; 4096];
        if let Ok(count) = stream.read(&mut piece) {
            requests.extend_from_slice(&piece[..count]);
        }
        let grab = b"\0REQ\0\0\0\x1e\0\0\0\0";
        while let Some(at) = requests.windows(grab.len()).position(|window| window == grab) {
            requests.drain(..at + grab.len());
            grabs += 1;
            stream.write_all(b"\0RES\0\0\0\x0a\0\0\0\0\0RES\0\0\0\x06\0\0\0\0").unwrap();
        }
    }
    assert!((2..60).contains(&grabs), "{grabs} grabs in 3 s");
    drop(worker);
}
