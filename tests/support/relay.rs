//! A TCP line with faults.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{free_port, loopback, pause};

/// Listens and passes every connection on to a server.
///
/// Its threads end with the connections they serve, the listening one with the relay.
pub struct Relay {
    address: SocketAddr,
    line: Arc<Line>,
}

struct Line {
    target: SocketAddr,
    /// How long each byte is under way, each direction.
    delay: Duration,
    closed: AtomicBool,
    refuses: AtomicBool,
    holds_requests: AtomicBool,
    holds_replies: AtomicBool,
    holds_acknowledgements: AtomicBool,
    connections: Mutex<Vec<[TcpStream; 2]>>,
}

impl Relay {
    pub fn to(target: SocketAddr) -> Relay {
        Relay::with_delay(target, Duration::ZERO)
    }

    /// With a distance: every byte takes this long, in either direction.
    pub fn with_delay(target: SocketAddr, delay: Duration) -> Relay {
        let ip = loopback();
        let listener = TcpListener::bind(SocketAddr::new(ip, free_port(ip))).unwrap();
        let address = listener.local_addr().unwrap();
        let line = Arc::new(Line {
            target,
            delay,
            closed: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            holds_requests: AtomicBool::new(false),
            holds_replies: AtomicBool::new(false),
            holds_acknowledgements: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let serving = Arc::clone(&line);
        std::thread::spawn(move || serving.listen(&listener));
        Relay { address, line }
    }

    pub fn server(&self) -> String {
        self.address.to_string()
    }

    pub fn queue(&self, queue: &str) -> String {
        format!("{}/{queue}", self.address)
    }

    /// Closes all connections.
    pub fn cut(&self) {
        for ends in self.line.connections.lock().unwrap().drain(..) {
            for end in ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.line.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Whether bytes from the connecting side are kept back.
    pub fn hold_requests(&self, holds: bool) {
        self.line.holds_requests.store(holds, Ordering::SeqCst);
    }

    /// Whether a connection's bytes are kept back from its next WORK_COMPLETE on.
    pub fn hold_acknowledgements(&self, holds: bool) {
        self.line.holds_acknowledgements.store(holds, Ordering::SeqCst);
    }

    /// Whether bytes from the server are kept back.
    pub fn hold_replies(&self, holds: bool) {
        self.line.holds_replies.store(holds, Ordering::SeqCst);
    }
}

/// The head of a worker's WORK_COMPLETE.
const ACKNOWLEDGEMENT: &[u8] = b"\0REQ\0\0\0\x0d";

impl Drop for Relay {
    fn drop(&mut self) {
        self.line.closed.store(true, Ordering::SeqCst);
        self.hold_requests(false);
        self.hold_replies(false);
        self.hold_acknowledgements(false);
        self.cut();
        // The listening thread waits in accept.
        let _ = TcpStream::connect(self.address);
    }
}

impl Line {
    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        while let Ok((near, _)) = listener.accept() {
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            if self.refuses.load(Ordering::SeqCst) {
                continue;
            }
            let Ok(far) = TcpStream::connect_timeout(&self.target, Duration::from_secs(10)) else { continue };
            for end in [&near, &far] {
                end.set_nodelay(true).unwrap();
            }
            let clone = |end: &TcpStream| end.try_clone().unwrap();
            self.connections.lock().unwrap().push([clone(&near), clone(&far)]);
            self.carry(clone(&near), clone(&far), |line| &line.holds_requests);
            self.carry(far, near, |line| &line.holds_replies);
        }
    }

    /// One direction of one connection: a thread reads, another writes when it is time.
    fn carry(self: &Arc<Self>, mut from: TcpStream, to: TcpStream, held: fn(&Line) -> &AtomicBool) {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(size @ 1..) = from.read(&mut buffer) {
                if sender.send((Instant::now(), buffer[..size].to_vec())).is_err() {
                    break;
                }
            }
        });
        let line = Arc::clone(self);
        std::thread::spawn(move || line.write(&receiver, to, held(&line)));
    }

    fn write(&self, bytes: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream, held: &AtomicBool) {
        for (read, bytes) in bytes {
            while held.load(Ordering::SeqCst) || read.elapsed() < self.delay {
                pause();
            }
            let (before, behind) = bytes.split_at(self.held_from(&bytes));
            if to.write_all(before).is_err() {
                break;
            }
            while !behind.is_empty() && self.holds_acknowledgements.load(Ordering::SeqCst) {
                pause();
            }
            if to.write_all(behind).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Where the acknowledgements begin that are kept back.
    fn held_from(&self, bytes: &[u8]) -> usize {
        let holds = self.holds_acknowledgements.load(Ordering::SeqCst);
        let found = || bytes.windows(ACKNOWLEDGEMENT.len()).position(|bytes| bytes == ACKNOWLEDGEMENT);
        holds.then(found).flatten().unwrap_or(bytes.len())
    }
}
