//! Servers that do what a test's script says, and what the proxy costs meanwhile.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::loopback;
use super::peer::*;
pub use super::wire::response;

/// What came from the proxy: a packet, or a text command as type 0.
pub struct Request {
    pub kind: u32,
    pub body: Vec<u8>,
}

/// One connection of the proxy.
pub struct Peer {
    stream: BufReader<TcpStream>,
    /// Counts connections of the server, from 0.
    pub number: usize,
}

/// Listens, and runs its script for each connection in a thread of its own.
pub struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
    streams: Arc<Mutex<HashMap<usize, TcpStream>>>,
}

impl Server {
    pub fn start(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind((loopback(), 0)).unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            closed: Arc::default(),
            streams: Arc::default(),
        };
        let (accepted, closed, streams) = (server.accepted.clone(), server.closed.clone(), server.streams.clone());
        let script = Arc::new(script);
        let accept = move || {
            while let Ok((stream, _)) = listener.accept() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                let Ok(copy) = stream.try_clone() else { continue };
                streams.lock().unwrap().insert(number, copy);
                let (script, streams) = (script.clone(), streams.clone());
                let serve = move || {
                    let mut peer = Peer { stream: BufReader::with_capacity(16 << 10, stream), number };
                    script(&mut peer);
                    streams.lock().unwrap().remove(&number);
                    let _ = peer.stream.get_ref().shutdown(Shutdown::Both);
                };
                if thread::Builder::new().stack_size(256 << 10).spawn(serve).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().stack_size(256 << 10).spawn(accept).unwrap();
        server
    }

    /// A source that gives these out once, a job for each grab, and has nothing else.
    pub fn source(jobs: Vec<Vec<u8>>) -> (Server, Arc<Acknowledged>) {
        let acknowledged = Arc::new(Acknowledged::default());
        let book = acknowledged.clone();
        let jobs = Mutex::new(jobs.into_iter().enumerate().collect::<Vec<_>>());
        let server = Server::start(move |peer| {
            while let Some(request) = peer.next() {
                let job = if request.kind == GRAB_JOB_UNIQ { jobs.lock().unwrap().pop() } else { None };
                let heard = match job {
                    Some((number, data)) => peer.say(&assigned(number, &data)),
                    None => peer.answer(&request),
                };
                book.note(&request);
                if !heard {
                    return;
                }
            }
        });
        (server, acknowledged)
    }

    /// A destination that takes every job at once, and keeps none.
    pub fn taker() -> Server {
        Server::start(|peer| while peer.next().is_some_and(|request| peer.answer(&request)) {})
    }

    pub fn queue(&self, queue: &str) -> String {
        format!("{}/{queue}", self.address)
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
    }
}

/// What a source was told of its jobs.
#[derive(Default)]
pub struct Acknowledged {
    pub completed: AtomicUsize,
    pub failed: AtomicUsize,
}

impl Acknowledged {
    pub fn note(&self, request: &Request) {
        match request.kind {
            WORK_COMPLETE => self.completed.fetch_add(1, Ordering::SeqCst),
            WORK_FAIL => self.failed.fetch_add(1, Ordering::SeqCst),
            _ => 0,
        };
    }

    pub fn completed(&self) -> usize {
        self.completed.load(Ordering::SeqCst)
    }

    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }
}

impl Peer {
    /// The next request; none when the connection has ended. Of a large one the end is left out.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Request> {
        let mut first = [0];
        self.stream.read_exact(&mut first).ok()?;
        if first != [0] {
            let mut line = vec![first[0]];
            self.stream.read_until(b'\n', &mut line).ok()?;
            return Some(Request { kind: 0, body: line });
        }
        let mut header = [0; 11];
        self.stream.read_exact(&mut header).ok()?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let (kind, length) = (word(3), word(7) as usize);
        let mut body = vec![0; length.min(4096)];
        self.stream.read_exact(&mut body).ok()?;
        let mut left = length - body.len();
        let mut rest = [0; 1 << 14];
        while left > 0 {
            let most = left.min(rest.len());
            left -= self.stream.read(&mut rest[..most]).ok().filter(|&count| count > 0)?;
        }
        Some(Request { kind, body })
    }

    /// Waits for a request of this type, answering others.
    pub fn until(&mut self, kind: u32) -> Option<Request> {
        loop {
            let request = self.next()?;
            if request.kind == kind {
                return Some(request);
            }
            if !self.answer(&request) {
                return None;
            }
        }
    }

    /// As an idle source and a willing destination do. Whether the proxy still listens.
    pub fn answer(&mut self, request: &Request) -> bool {
        match request.kind {
            0 if request.body.starts_with(b"getpid") => self.say(b"OK 4242\n"),
            0 => self.say(b".\n"),
            ECHO_REQ => self.say(&response(ECHO_RES, &[&request.body])),
            OPTION_REQ => self.say(&response(OPTION_RES, &[&request.body])),
            GRAB_JOB_UNIQ => self.say(&response(NO_JOB, &[])),
            SUBMIT_JOB | SUBMIT_JOB_BG => self.say(&response(JOB_CREATED, &[b"H:there:1"])),
            _ => true,
        }
    }

    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Says it until nobody listens any more.
    pub fn flood(&mut self, bytes: &[u8]) {
        while self.say(bytes) {}
    }

    /// Waits until the proxy has closed the connection, without answering.
    pub fn endure(&mut self) {
        while self.next().is_some() {}
    }

    pub fn pause(&self, time: Duration) {
        thread::park_timeout(time);
    }
}

/// The head of a response with a body of this length, which need not come.
pub fn head(kind: u32, length: u32) -> Vec<u8> {
    [b"\0RES".as_slice(), &kind.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// A job for a worker.
pub fn assigned(number: usize, data: &[u8]) -> Vec<u8> {
    response(JOB_ASSIGN_UNIQ, &[format!("H:here:{}", number + 1).as_bytes(), b"work", b"", data])
}

/// A figure of a process from /proc/PID/status: `VmHWM`, `VmRSS`, `Threads`; the memory's in MiB.
pub fn figure(pid: u32, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    let number: usize = line.split_ascii_whitespace().next().unwrap().parse().unwrap();
    if name.starts_with("Vm") { number >> 10 } else { number }
}

/// The CPU time that a process has taken so far.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
