//! A TCP line with faults.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    /// Bytes a second on each connection, each direction. What comes faster is kept, as a tunnel does, without a sign to
    /// either side.
    rate: Option<usize>,
    closed: AtomicBool,
    refuses: AtomicBool,
    holds_requests: AtomicBool,
    holds_replies: AtomicBool,
    holds_acknowledgements: AtomicBool,
    hangs: AtomicBool,
    connections: Mutex<Vec<Carried>>,
    /// Connections that were accepted and lead nowhere.
    hanging: Mutex<Vec<TcpStream>>,
}

/// A connection and what came from the connecting side.
struct Carried {
    ends: [TcpStream; 2],
    requests: Arc<Requests>,
}

#[derive(Default)]
struct Requests {
    bytes: AtomicUsize,
    ended: AtomicBool,
}

impl Carried {
    fn cut(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Relay {
    pub fn to(target: SocketAddr) -> Relay {
        Relay::start(target, Duration::ZERO, None)
    }

    /// With a distance: every byte takes this long, in either direction.
    pub fn with_delay(target: SocketAddr, delay: Duration) -> Relay {
        Relay::start(target, delay, None)
    }

    /// A tunnel over a slow line: it takes everything at once, and brings so many bytes a second to the other end.
    pub fn with_rate(target: SocketAddr, bytes_per_second: usize) -> Relay {
        Relay::start(target, Duration::ZERO, Some(bytes_per_second))
    }

    fn start(target: SocketAddr, delay: Duration, rate: Option<usize>) -> Relay {
        let ip = loopback();
        let listener = TcpListener::bind(SocketAddr::new(ip, free_port(ip))).unwrap();
        let address = listener.local_addr().unwrap();
        let line = Arc::new(Line {
            target,
            delay,
            rate,
            closed: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            holds_requests: AtomicBool::new(false),
            holds_replies: AtomicBool::new(false),
            holds_acknowledgements: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            connections: Mutex::default(),
            hanging: Mutex::default(),
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
        self.line.connections.lock().unwrap().drain(..).for_each(|connection| connection.cut());
    }

    /// Closes the connection over which the least was sent to the server: one that had no job yet.
    pub fn cut_the_quietest(&self) {
        let mut connections = self.line.connections.lock().unwrap();
        connections.retain(|connection| !connection.requests.ended.load(Ordering::SeqCst));
        let sent = |at: &usize| connections[*at].requests.bytes.load(Ordering::SeqCst);
        let quietest = (0..connections.len()).min_by_key(sent).unwrap();
        connections.remove(quietest).cut();
    }

    /// Whether new connections are accepted, and lead nowhere.
    pub fn hang(&self, hangs: bool) {
        self.line.hangs.store(hangs, Ordering::SeqCst);
        if !hangs {
            self.line.hanging.lock().unwrap().clear();
        }
    }

    /// Connections that hang now, or were given up.
    pub fn hanging(&self) -> usize {
        self.line.hanging.lock().unwrap().len()
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
            if self.hangs.load(Ordering::SeqCst) {
                self.hanging.lock().unwrap().push(near);
                continue;
            }
            let Ok(far) = TcpStream::connect_timeout(&self.target, Duration::from_secs(10)) else { continue };
            for end in [&near, &far] {
                end.set_nodelay(true).unwrap();
            }
            let clone = |end: &TcpStream| end.try_clone().unwrap();
            let requests = Arc::new(Requests::default());
            let carried = Carried { ends: [clone(&near), clone(&far)], requests: Arc::clone(&requests) };
            self.connections.lock().unwrap().push(carried);
            self.carry(clone(&near), clone(&far), Some(requests), |line| &line.holds_requests);
            self.carry(far, near, None, |line| &line.holds_replies);
        }
    }

    /// One direction of one connection: a thread reads, another writes when it is time.
    fn carry(
        self: &Arc<Self>,
        mut from: TcpStream,
        to: TcpStream,
        requests: Option<Arc<Requests>>,
        held: fn(&Line) -> &AtomicBool,
    ) {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(size @ 1..) = from.read(&mut buffer) {
                if let Some(requests) = &requests {
                    requests.bytes.fetch_add(size, Ordering::SeqCst);
                }
                if sender.send((Instant::now(), buffer[..size].to_vec())).is_err() {
                    break;
                }
            }
            if let Some(requests) = &requests {
                requests.ended.store(true, Ordering::SeqCst);
            }
        });
        let line = Arc::clone(self);
        std::thread::spawn(move || line.write(&receiver, to, held(&line)));
    }

    fn write(&self, bytes: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream, held: &AtomicBool) {
        let mut free = Instant::now();
        for (read, bytes) in bytes {
            while held.load(Ordering::SeqCst) || read.elapsed() < self.delay {
                pause();
            }
            if let Some(rate) = self.rate {
                if self.write_slowly(&bytes, &mut to, rate, &mut free).is_err() {
                    break;
                }
                continue;
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

    /// In pieces of a fiftieth of a second, the next of which may be written when the line is `free`.
    fn write_slowly(&self, bytes: &[u8], to: &mut TcpStream, rate: usize, free: &mut Instant) -> std::io::Result<()> {
        for piece in bytes.chunks((rate / 50).max(1)) {
            *free = (*free).max(Instant::now()) + Duration::from_secs(1) * piece.len() as u32 / rate as u32;
            while Instant::now() < *free {
                pause();
            }
            to.write_all(piece)?;
        }
        Ok(())
    }

    /// Where the acknowledgements begin that are kept back.
    fn held_from(&self, bytes: &[u8]) -> usize {
        let holds = self.holds_acknowledgements.load(Ordering::SeqCst);
        let found = || bytes.windows(ACKNOWLEDGEMENT.len()).position(|bytes| bytes == ACKNOWLEDGEMENT);
        holds.then(found).flatten().unwrap_or(bytes.len())
    }
}
