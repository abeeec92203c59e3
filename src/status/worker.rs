//! The worker on the status queue: its own thread and its own connection, so that it answers whatever the forwards do.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::backlog::{self, Sampler};
use super::metricsfile::MetricsFile;
use super::table::{self, Rates};
use super::{check, metricsfile};
use crate::config::Address;
use crate::gearman::connection::{Connection, ConnectionError, Limits, error_code};
use crate::gearman::packet::{Packet, ProtocolError, kind, put_request};
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

/// Wake-ups in a row that brought no job before each further one is waited for.
const FREE_WAKEUPS: u32 = 16;

/// Packets without a request before the session ends.
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
        let stop = Latch::default();
        let mut worker = StatusWorker { stop: stop.clone(), threads: Vec::new() };
        let background = Arc::clone(&metrics);
        let stopped = stop.clone();
        worker.spawn("background", move || in_background(&background, metricsfile, &stopped))?;
        if let Some(address) = address {
            let tried = Latch::default();
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

    /// Stops answering: the job under way is answered or goes back to the server.
    pub fn stop(self) {}
}

impl Drop for StatusWorker {
    fn drop(&mut self) {
        self.stop.set();
        let deadline = Instant::now() + STOP_LIMIT;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// Samples the backlog and writes the metrics file.
fn in_background(metrics: &Arc<Metrics>, file: Option<PathBuf>, stop: &Latch) {
    let mut file = file.map(MetricsFile::new);
    let mut sampler = Sampler::new(stop.clone());
    let all = file.is_some();
    let now = Instant::now();
    // The first samples are there when the file is first written.
    let (mut sample, mut write) = (if all { now } else { now + backlog::INTERVAL }, now + Duration::from_secs(1));
    while !stop.wait(sample.min(write).saturating_duration_since(Instant::now())) {
        let now = Instant::now();
        if now >= sample {
            sampler.round(metrics, all);
            sample = now + backlog::INTERVAL;
        }
        if now >= write {
            if let Some(file) = &mut file {
                file.write(metrics);
            }
            write = now + metricsfile::INTERVAL;
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
        let (mut reported, mut backoff, mut rates) = (None, FIRST_BACKOFF, Rates::default());
        loop {
            let began = Instant::now();
            let Err(error) = self.session(&mut reported, &mut rates);
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
    fn session(&self, reported: &mut Reported, rates: &mut Rates) -> Result<Infallible, ConnectionError> {
        let Address { server, queue } = &self.address;
        let connection = Connection::open(server, &format!("gearman-proxy/{queue}"), &LIMITS, &self.stop)?;
        self.tried.set();
        let mut session = Session { connection, asked: None, last_grab: Instant::now(), spare: SPARE_PACKETS };
        session.send(kind::CAN_DO, &[queue.as_bytes()])?;
        session.grab()?;
        let mut fruitless = 0;
        loop {
            match session.next()? {
                Event::Job { handle, payload } => {
                    fruitless = 0;
                    self.answered(reported);
                    let answer = self.answer(&payload, rates);
                    session.send(kind::WORK_COMPLETE, &[&handle, answer.as_bytes()])?;
                    session.grab()?;
                }
                Event::NoJob => {
                    self.answered(reported);
                    session.asked = None;
                    session.send(kind::PRE_SLEEP, &[])?;
                }
                Event::WakeUp => {
                    fruitless += 1;
                    if fruitless > FREE_WAKEUPS {
                        let exponent = (fruitless - FREE_WAKEUPS).min(10);
                        let pause = Duration::from_millis(1 << exponent).min(Duration::from_secs(1));
                        if self.stop.wait(pause) {
                            return Err(ConnectionError::Stopped);
                        }
                    }
                    session.grab()?;
                }
            }
        }
    }

    /// The server does what it should.
    fn answered(&self, reported: &mut Reported) {
        if reported.take().is_some() {
            log::info!("status queue {}: works again", self.address);
        }
    }

    fn answer(&self, payload: &[u8], rates: &mut Rates) -> String {
        let payload = String::from_utf8_lossy(payload);
        // Of an id of 63 bytes gearmand leaves a NUL before the data.
        let payload = payload.trim_start_matches('\0');
        match payload.split_whitespace().next() {
            Some("table") => table::table(&self.metrics, payload, rates, self.started),
            _ => check(&self.metrics, payload),
        }
    }
}

/// What a server told.
enum Event {
    Job { handle: Vec<u8>, payload: Vec<u8> },
    NoJob,
    WakeUp,
}

struct Session {
    connection: Connection,
    /// Since when a grab is unanswered.
    asked: Option<Instant>,
    last_grab: Instant,
    spare: u32,
}

impl Session {
    fn send(&mut self, kind: u32, arguments: &[&[u8]]) -> Result<(), ConnectionError> {
        let mut request = Vec::new();
        put_request(&mut request, kind, arguments);
        self.connection.send(&request, ANSWER_LIMIT)
    }

    fn grab(&mut self) -> Result<(), ConnectionError> {
        self.send(kind::GRAB_JOB_UNIQ, &[])?;
        self.last_grab = Instant::now();
        self.asked = Some(self.last_grab);
        Ok(())
    }

    /// Waits for a packet that matters; an idle server is probed meanwhile.
    fn next(&mut self) -> Result<Event, ConnectionError> {
        loop {
            let due = self.asked.map_or(self.last_grab + IDLE_PROBE, |since| since + ANSWER_LIMIT);
            let event = match self.connection.next(due, MAX_REQUEST) {
                Ok(Some(packet)) => event(&packet)?,
                Ok(None) if self.asked.is_some() => return Err(ConnectionError::NoAnswer(ANSWER_LIMIT)),
                Ok(None) => {
                    self.grab()?;
                    continue;
                }
                // A request of any length is answered: left in the queue, it would come again with every connection.
                Err(ConnectionError::Protocol(ProtocolError::TooLong(length))) => {
                    let (kind, body) = self.connection.next_cut(MAX_REQUEST, ANSWER_LIMIT)?;
                    if kind != kind::JOB_ASSIGN_UNIQ {
                        return Err(ProtocolError::TooLong(length).into());
                    }
                    event(&Packet { kind, body: &body })?
                }
                Err(error) => return Err(error),
            };
            match event {
                // While a job is asked for, the answer to that tells all.
                Some(Event::WakeUp) if self.asked.is_some() => {}
                Some(event) => {
                    self.spare = SPARE_PACKETS;
                    return Ok(event);
                }
                None => {}
            }
            self.spare = self.spare.checked_sub(1).ok_or(ProtocolError::Unexpected(kind::ERROR))?;
        }
    }
}

fn event(packet: &Packet<'_>) -> Result<Option<Event>, ConnectionError> {
    Ok(match packet.kind {
        kind::JOB_ASSIGN_UNIQ => {
            let ([handle, _queue, _unique], payload) = packet.arguments()?;
            Some(Event::Job { handle: handle.to_vec(), payload: payload.to_vec() })
        }
        kind::NO_JOB => Some(Event::NoJob),
        kind::NOOP => Some(Event::WakeUp),
        kind::ERROR => {
            log::debug!("status queue: the server says {}", error_code(packet.body));
            None
        }
        kind::ECHO_RES | kind::OPTION_RES => None,
        other => return Err(ProtocolError::Unexpected(other).into()),
    })
}
