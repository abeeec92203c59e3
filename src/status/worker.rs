//! The worker on the status queue: its own thread and its own connection, so that it answers whatever the forwards do.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::backlog::{self, Asking};
use super::check;
use super::metricsfile::{self, MetricsFile};
use super::table::table;
use crate::config::Address;
use crate::gearman::connection::{Connection, ConnectionError, Limits, error_code};
use crate::gearman::packet::{Packet, ProtocolError, kind, request};
use crate::latch::Latch;
use crate::metrics::Metrics;

const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

/// How long a start waits for the first connection: it should have its descriptor before the forwards take all.
const FIRST_CONNECTION: Duration = Duration::from_secs(1);

/// How long the server may owe an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// An idle server is asked for a job after this time: keeps firewall state alive, and finds a hung one or a lost wake-up.
const IDLE_PROBE: Duration = Duration::from_secs(30);

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(15);

/// Wake-ups in a row that brought no job before each further one is waited for longer.
const FREE_WAKEUPS: u32 = 16;

/// Packets that nothing asked for before the session ends.
const SPARE_PACKETS: u32 = 64;

/// Of a longer request only the beginning is looked at, bytes: a queue's name, a handle, an id and a filter.
const MAX_REQUEST: usize = 4 << 10;

/// How long a stop waits for the threads: they look for it every 200 ms.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Answers jobs on the status queue, samples the backlog and writes the metrics file, until it is stopped or dropped.
#[derive(Debug)]
pub struct StatusWorker {
    stop: Latch,
    threads: Vec<JoinHandle<()>>,
}

impl StatusWorker {
    /// Starts what is asked for. Call it before the forwards start. It returns when the status queue's server is connected,
    /// or after a second.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        address: Option<Address>,
        metricsfile: Option<PathBuf>,
        metrics: Arc<Metrics>,
    ) -> io::Result<StatusWorker> {
        let mut worker = StatusWorker { stop: Latch::default(), threads: Vec::new() };
        let (background, stop) = (Arc::clone(&metrics), worker.stop.clone());
        worker.spawn("background", move || in_background(&background, metricsfile, &stop))?;
        if let Some(address) = address {
            let (tried, stop) = (Latch::default(), worker.stop.clone());
            let status = Status { address, metrics, stop, tried: tried.clone(), started: Instant::now() };
            worker.spawn("status", move || status.run())?;
            tried.wait(FIRST_CONNECTION);
        }
        Ok(worker)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }
}

/// Stops answering: the job under way is answered or goes back to the server.
impl Drop for StatusWorker {
    fn drop(&mut self) {
        self.stop.set();
        let deadline = Instant::now() + STOP_LIMIT;
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Samples the backlog and writes the metrics file.
fn in_background(metrics: &Metrics, file: Option<PathBuf>, stop: &Latch) {
    let mut file = file.map(MetricsFile::new);
    let mut asking = Asking::new();
    for second in 0u64.. {
        // The first samples are there when the file is first written; without one they are not needed at once.
        if second % backlog::INTERVAL == 0 && (second > 0 || file.is_some()) {
            backlog::round(&mut asking, metrics, file.is_some(), stop);
        }
        if second % metricsfile::INTERVAL == 1
            && let Some(file) = &mut file
        {
            file.write(metrics);
        }
        if stop.wait(Duration::from_secs(1)) {
            return;
        }
    }
}

/// The kind of error that the log told of last, while there has been no answer since.
type Reported = Option<&'static str>;

/// What the thread "status" works with.
struct Status {
    address: Address,
    metrics: Arc<Metrics>,
    stop: Latch,
    /// Set after the first try to connect.
    tried: Latch,
    started: Instant,
}

impl Status {
    fn run(&self) {
        let (mut reported, mut backoff) = (None, FIRST_BACKOFF);
        loop {
            let began = Instant::now();
            let Err(error) = self.session(&mut reported);
            self.tried.set();
            if self.stop.is_set() {
                return;
            }
            // Answers before nonsense prove nothing.
            if began.elapsed() > LAST_BACKOFF && !matches!(error, ConnectionError::Protocol(_)) {
                backoff = FIRST_BACKOFF;
            }
            if reported.replace(error.kind()) == Some(error.kind()) {
                log::debug!("status queue {}: {error}", self.address);
            } else {
                log::warn!(
                    "status queue {}: {error} ({}); the status can't be asked for there; trying again until it works",
                    self.address,
                    error.advice()
                );
            }
            if self.stop.wait(backoff) {
                return;
            }
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// The life of one connection.
    fn session(&self, reported: &mut Reported) -> Result<Infallible, ConnectionError> {
        let Address { server, queue } = &self.address;
        let mut connection = Connection::open(server, &format!("gearman-proxy/{queue}"), &LIMITS, &self.stop)?;
        self.tried.set();
        send(&mut connection, kind::CAN_DO, &[queue.as_bytes()])?;
        // Whether to ask for a job, whether the last time is unanswered, and when that was.
        let (mut grab, mut asked, mut grabbed) = (true, false, Instant::now());
        let (mut fruitless, mut spare) = (0u32, SPARE_PACKETS);
        loop {
            if mem::take(&mut grab) {
                send(&mut connection, kind::GRAB_JOB_UNIQ, &[])?;
                (asked, grabbed) = (true, Instant::now());
            }
            let due = grabbed + if asked { ANSWER_LIMIT } else { IDLE_PROBE };
            let Some((kind, body)) = next(&mut connection, due)? else {
                if asked {
                    return Err(ConnectionError::NoAnswer(ANSWER_LIMIT));
                }
                grab = true;
                continue;
            };
            match kind {
                kind::JOB_ASSIGN_UNIQ if asked => {
                    let ([handle, _queue, _unique], payload) = Packet { kind, body: &body }.arguments()?;
                    self.answered(reported);
                    let answer = self.answer(payload);
                    send(&mut connection, kind::WORK_COMPLETE, &[handle, answer.as_bytes()])?;
                    (grab, fruitless, spare) = (true, 0, SPARE_PACKETS);
                }
                kind::NO_JOB if asked => {
                    self.answered(reported);
                    send(&mut connection, kind::PRE_SLEEP, &[])?;
                    (asked, spare) = (false, SPARE_PACKETS);
                }
                kind::NOOP if !asked => {
                    fruitless += 1;
                    // From a millisecond to a second.
                    if self.stop.wait(Duration::from_millis(1 << fruitless.saturating_sub(FREE_WAKEUPS).min(10))) {
                        return Err(ConnectionError::Stopped);
                    }
                    grab = true;
                }
                // Nothing asked for it. While a job is asked for, the answer to that tells more than a wake-up.
                kind::JOB_ASSIGN_UNIQ | kind::NO_JOB | kind::NOOP | kind::ERROR | kind::ECHO_RES | kind::OPTION_RES => {
                    if kind == kind::ERROR {
                        log::debug!("status queue: the server says {}", error_code(&body));
                    }
                    spare = spare.checked_sub(1).ok_or(ProtocolError::Unexpected(kind))?;
                }
                other => return Err(ProtocolError::Unexpected(other).into()),
            }
        }
    }

    /// The server does what it should.
    fn answered(&self, reported: &mut Reported) {
        if reported.take().is_some() {
            log::info!("status queue {}: works again", self.address);
        }
    }

    fn answer(&self, payload: &[u8]) -> String {
        let payload = String::from_utf8_lossy(payload);
        // Of an id of 63 bytes gearmand leaves a NUL before the data.
        let payload = payload.trim_start_matches('\0');
        match payload.split_whitespace().next() {
            Some("table") => table(&self.metrics, payload, self.started),
            _ => check(&self.metrics, payload),
        }
    }
}

fn send(connection: &mut Connection, kind: u32, arguments: &[&[u8]]) -> Result<(), ConnectionError> {
    connection.send(&request(kind, arguments), ANSWER_LIMIT)
}

/// The next packet's type and body, `None` when nothing came until `due`.
fn next(connection: &mut Connection, due: Instant) -> Result<Option<(u32, Vec<u8>)>, ConnectionError> {
    match connection.next(due, MAX_REQUEST) {
        Ok(packet) => Ok(packet.map(|packet| (packet.kind, packet.body.to_vec()))),
        // A request of any length is answered: left in the queue, it would come again with every connection.
        Err(ConnectionError::Protocol(ProtocolError::TooLong(length))) => {
            let (kind, body) = connection.next_cut(MAX_REQUEST, ANSWER_LIMIT)?;
            let request = kind == kind::JOB_ASSIGN_UNIQ;
            request.then_some(Some((kind, body))).ok_or(ProtocolError::TooLong(length).into())
        }
        Err(error) => Err(error),
    }
}
