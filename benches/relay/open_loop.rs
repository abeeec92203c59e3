//! Jobs that come when they come, whether the last one has arrived or not: Poisson arrivals, as a monitoring site has them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::wire::{self, Connection, first_argument, push_request, unexpected};

/// Data of a job, bytes; it begins with the job's number.
const SIZE: usize = 600;
const DIGITS: usize = 16;

/// Grabs that the worker at the end has on the wire.
const GRABS: usize = 32;

/// How long the last job may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The worker at the end of the way: notes when each job comes.
pub struct Sink {
    socket: TcpStream,
    seen: Arc<Mutex<Vec<(u64, Instant)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    pub fn start(port: u16, queue: &str) -> io::Result<Sink> {
        let mut connection = Connection::open(port)?;
        let socket = connection.socket()?;
        connection.request(wire::CAN_DO, &[queue.as_bytes()]);
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let notes = seen.clone();
        // Ends with the error that the shut-down socket brings.
        let thread = thread::spawn(move || drop(work(&mut connection, &notes)));
        Ok(Sink { socket, seen, thread: Some(thread) })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(connection: &mut Connection, seen: &Mutex<Vec<(u64, Instant)>>) -> io::Result<()> {
    let mut out = Vec::new();
    let mut on_wire = 1;
    let mut drained = false;
    push_request(&mut out, wire::GRAB_JOB_UNIQ, &[]);
    loop {
        if !connection.has_packet() {
            connection.out.append(&mut out);
            connection.flush()?;
        }
        let mut grabs = 0;
        match connection.packet()? {
            (wire::JOB_ASSIGN_UNIQ, body) => {
                let data = body.splitn(4, |&byte| byte == 0).nth(3).unwrap_or_default();
                let number = data.get(..DIGITS).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                lock(seen).push((number.unwrap_or(u64::MAX), Instant::now()));
                push_request(&mut out, wire::WORK_COMPLETE, &[first_argument(body), b""]);
                on_wire -= 1;
                grabs = if drained { 0 } else { 2.min(GRABS - on_wire) };
            }
            (wire::NO_JOB, _) => {
                on_wire -= 1;
                drained = true;
            }
            (wire::NOOP, _) => {
                if std::mem::take(&mut drained) {
                    grabs = 1;
                }
                if on_wire > 0 {
                    grabs = 0;
                }
            }
            (kind, body) => return Err(unexpected(kind, body)),
        }
        for _ in 0..grabs {
            push_request(&mut out, wire::GRAB_JOB_UNIQ, &[]);
        }
        on_wire += grabs;
        if drained && on_wire == 0 {
            push_request(&mut out, wire::PRE_SLEEP, &[]);
        }
    }
}

/// How long jobs took from their submission to the worker, sorted.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Microseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }

    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Submits `rate` jobs a second for `time` in the background, and waits until all are at `sink`.
pub fn run(port: u16, queue: &str, sink: &Sink, rate: f64, time: Duration, seed: u64) -> io::Result<Latencies> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    lock(&sink.seen).clear();
    let mut replies = socket.try_clone()?;
    // Replies are of no interest, and read in large pieces, so that reading them costs the measurement little.
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while replies.read(&mut buffer).is_ok_and(|count| count > 0) {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let sent = submit(&mut socket, queue, rate, time, seed);
    let outcome = sent.and_then(|sent| match_up(&sent, sink));
    let _ = socket.shutdown(Shutdown::Both);
    let _ = reader.join();
    outcome
}

/// The times of submission, by number.
fn submit(socket: &mut TcpStream, queue: &str, rate: f64, time: Duration, seed: u64) -> io::Result<Vec<Instant>> {
    let mut random = Random(seed);
    let begin = Instant::now();
    let mut next = Duration::ZERO;
    let (mut out, mut sent) = (Vec::new(), Vec::new());
    let mut data = vec![b'x'; SIZE];
    while next < time {
        thread::sleep(next.saturating_sub(begin.elapsed()));
        let now = Instant::now();
        while next < time && begin + next <= now {
            data[..DIGITS].copy_from_slice(format!("{:016}", sent.len()).as_bytes());
            push_request(&mut out, wire::SUBMIT_JOB_BG, &[queue.as_bytes(), b"", &data]);
            sent.push(now);
            next += Duration::from_secs_f64(-random.next().ln() / rate);
        }
        socket.write_all(&out)?;
        out.clear();
    }
    Ok(sent)
}

fn match_up(sent: &[Instant], sink: &Sink) -> io::Result<Latencies> {
    let begin = Instant::now();
    while lock(&sink.seen).len() < sent.len() {
        if begin.elapsed() > PATIENCE {
            let seen = lock(&sink.seen).len();
            return Err(io::Error::other(format!("{seen} of {} jobs came", sent.len())));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let seen = lock(&sink.seen);
    let mut came = vec![false; sent.len()];
    let mut latencies = Vec::with_capacity(sent.len());
    for &(number, arrival) in seen.iter() {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let (Some(begin), Some(came)) = (sent.get(number), came.get_mut(number)) else {
            return Err(io::Error::other("a job that was not submitted"));
        };
        if std::mem::replace(came, true) {
            return Err(io::Error::other(format!("job {number} came twice")));
        }
        latencies.push(arrival.saturating_duration_since(*begin));
    }
    latencies.sort_unstable();
    Ok(Latencies(latencies))
}

/// splitmix64.
struct Random(u64);

impl Random {
    /// Above 0, at most 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
