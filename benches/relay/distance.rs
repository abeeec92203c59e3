//! A TCP relay that stands for a long line: what goes in comes out half a round trip later, however much it is.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a busy direction is read: at every arrival would take a core from the servers under measurement. Bytes
/// that arrive after a pause are stamped at once.
const GATHER: Duration = Duration::from_micros(500);
const READ: usize = 1 << 20;

/// What went towards the server, remembered.
type Tap = Arc<Mutex<Vec<u8>>>;

/// The line; it takes connections until it is dropped, and those end with their sockets.
pub struct Distance {
    /// Connect here instead of to the server.
    pub port: u16,
    closed: Arc<AtomicBool>,
    tap: Option<Tap>,
}

impl Distance {
    /// A line to the server on `target` of loopback.
    pub fn to(target: u16, round_trip: Duration) -> io::Result<Distance> {
        Distance::open(target, round_trip, None)
    }

    /// A line without length that remembers what goes over it towards the server.
    pub fn tapped(target: u16) -> io::Result<Distance> {
        Distance::open(target, Duration::ZERO, Some(Tap::default()))
    }

    /// What went towards the server since the last call.
    pub fn take(&self) -> Vec<u8> {
        self.tap.as_ref().map(|tap| std::mem::take(&mut *lock(tap))).unwrap_or_default()
    }

    fn open(target: u16, round_trip: Duration, tap: Option<Tap>) -> io::Result<Distance> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let line = Distance { port: listener.local_addr()?.port(), closed: Arc::default(), tap: tap.clone() };
        let closed = line.closed.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                // A connection that cannot be joined is dropped, and so closed, as a firewall would.
                let _ = near.and_then(|near| join(near, target, round_trip / 2, tap.clone()));
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

fn join(near: TcpStream, target: u16, delay: Duration, tap: Option<Tap>) -> io::Result<()> {
    let far = TcpStream::connect(("127.0.0.1", target))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    pump(near.try_clone()?, far.try_clone()?, delay, tap);
    pump(far, near, delay, None);
    Ok(())
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
