//! A TCP relay that stands for a long line: what goes in comes out half a round trip later, however much it is.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// How often a busy direction is read: at every arrival would take a core from the servers under measurement. Bytes
/// that arrive after a pause are stamped at once.
const GATHER: Duration = Duration::from_micros(500);
const READ: usize = 1 << 20;

/// What a slow line carries at once, bytes.
const SLICE: usize = 4 << 10;

/// A read that takes this long has waited for bytes.
const WAITED: Duration = Duration::from_millis(1);

/// Bytes that a slow line takes in before it has carried them: routers have small buffers.
const SLOW_BUFFER: usize = 16 << 10;

/// What went towards the server, remembered.
type Tap = Arc<Mutex<Vec<u8>>>;

/// The line; it takes connections until it is dropped, and those end with their sockets.
pub struct Distance {
    /// Connect here instead of to the server.
    pub port: u16,
    closed: Arc<AtomicBool>,
    tap: Option<Tap>,
    carried: Arc<AtomicU64>,
}

/// What each connection over a line is.
#[derive(Clone)]
struct Kind {
    delay: Duration,
    /// Bytes a second towards the server, where they are bounded.
    rate: Option<usize>,
    tap: Option<Tap>,
    carried: Arc<AtomicU64>,
}

impl Distance {
    /// A line to the server on `target` of loopback.
    pub fn to(target: u16, round_trip: Duration) -> io::Result<Distance> {
        Distance::open(target, round_trip, None, None)
    }

    /// A line that carries so many bytes a second towards the server.
    pub fn slow(target: u16, rate: usize) -> io::Result<Distance> {
        Distance::open(target, Duration::ZERO, Some(rate), None)
    }

    /// A line without length that remembers what goes over it towards the server.
    pub fn tapped(target: u16) -> io::Result<Distance> {
        Distance::open(target, Duration::ZERO, None, Some(Tap::default()))
    }

    /// What went towards the server since the last call.
    pub fn take(&self) -> Vec<u8> {
        self.tap.as_ref().map(|tap| std::mem::take(&mut *lock(tap))).unwrap_or_default()
    }

    /// Bytes that a slow line carried towards the server.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    fn open(target: u16, round_trip: Duration, rate: Option<usize>, tap: Option<Tap>) -> io::Result<Distance> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        if rate.is_some() {
            SockRef::from(&listener).set_recv_buffer_size(SLOW_BUFFER)?;
        }
        let carried = Arc::default();
        let kind = Kind { delay: round_trip / 2, rate, tap: tap.clone(), carried: Arc::clone(&carried) };
        let line = Distance { port: listener.local_addr()?.port(), closed: Arc::default(), tap, carried };
        let closed = line.closed.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                // A connection that cannot be joined is dropped, and so closed, as a firewall would.
                let _ = near.and_then(|near| join(near, target, &kind));
            }
        });
        Ok(line)
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(near: TcpStream, target: u16, kind: &Kind) -> io::Result<()> {
    let far = TcpStream::connect(("127.0.0.1", target))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    match kind.rate {
        Some(rate) => crawl(near.try_clone()?, far.try_clone()?, rate, Arc::clone(&kind.carried)),
        None => pump(near.try_clone()?, far.try_clone()?, kind.delay, kind.tap.clone()),
    }
    pump(far, near, kind.delay, None);
    Ok(())
}

/// One direction of a slow line.
fn crawl(mut from: TcpStream, mut to: TcpStream, rate: usize, carried: Arc<AtomicU64>) {
    thread::spawn(move || {
        let mut buffer = [0; SLICE];
        let mut free = Instant::now();
        loop {
            let asked = Instant::now();
            let count = from.read(&mut buffer).unwrap_or(0);
            if count == 0 {
                break;
            }
            if asked.elapsed() > WAITED {
                // It was empty. Else a sleep that took too long is made up for.
                free = Instant::now();
            }
            free += Duration::from_secs_f64(count as f64 / rate as f64);
            thread::sleep(free.saturating_duration_since(Instant::now()));
            if to.write_all(&buffer[..count]).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
            carried.fetch_add(count as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Bytes under way with the time when they are due at the other end; the end of the stream travels as an empty chunk.
#[derive(Default)]
struct Line {
    chunks: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    arrival: Condvar,
}

/// One direction of one connection, on two threads.
fn pump(mut from: TcpStream, mut to: TcpStream, delay: Duration, tap: Option<Tap>) {
    let line = Arc::new(Line::default());
    let far_end = line.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; READ];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let chunk = buffer[..count].to_vec();
            if let Some(tap) = &tap {
                lock(tap).extend_from_slice(&chunk);
            }
            lock(&line.chunks).push_back((Instant::now() + delay, chunk));
            line.arrival.notify_one();
            if count == 0 {
                return;
            }
            if !delay.is_zero() {
                thread::sleep(GATHER);
            }
        }
    });
    thread::spawn(move || {
        loop {
            let mut chunks = lock(&far_end.chunks);
            let (due, chunk) = loop {
                if let Some(first) = chunks.pop_front() {
                    break first;
                }
                chunks = far_end.arrival.wait(chunks).unwrap_or_else(PoisonError::into_inner);
            };
            drop(chunks);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if chunk.is_empty() || to.write_all(&chunk).is_err() {
                // Both ways: a writer that failed must also wake the reader of its own socket.
                let _ = to.shutdown(if chunk.is_empty() { Shutdown::Write } else { Shutdown::Both });
                return;
            }
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
