//! The worker on the status queue: its own thread and its own connection, so that it answers whatever the forwards do.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::backlog::{self, Backlog, Sampler};
use super::{Process, Snapshot, answer};
use crate::config::Address;
use crate::gearman::connection::{Connection, ConnectionError, Limits, is_timeout};
use crate::gearman::packet::{HEADER_SIZE, Packet, ProtocolError, kind, put_request};
use crate::logging::escaped;
use crate::metrics::{ForwardMetrics, Metrics};

const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

/// How long the server may owe an answer, and how long a read waits at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// An idle server is asked for a job after this time: keeps firewall state alive, and finds a hung one or a lost wake-up.
const IDLE_PROBE: Duration = Duration::from_secs(30);

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(15);

/// Wake-ups in a row that brought no job before each further one is waited for.
const FREE_WAKEUPS: u32 = 16;

/// Of a longer request only the beginning is looked at, bytes.
const MAX_REQUEST: usize = 64 << 10;

/// How long a stop waits for the threads: the system's connect and name look-up can't be interrupted.
const STOP_LIMIT: Duration = Duration::from_secs(1);

static PROCESS: OnceLock<Process> = OnceLock::new();

/// Answers jobs on the status queue until it is stopped or dropped.
#[derive(Debug)]
pub struct StatusWorker {
    /// Dropped to stop the threads.
    stop: Option<Sender<Infallible>>,
    /// Closed when all threads have ended.
    ended: Receiver<Infallible>,
    socket: Arc<Mutex<Option<TcpStream>>>,
    threads: Vec<JoinHandle<()>>,
}

impl StatusWorker {
    /// Starts to answer on `address`, and to sample the backlog that the answer tells.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(address: Address, metrics: Arc<Metrics>) -> io::Result<StatusWorker> {
        let (stop, stopped) = bounded(0);
        let (alive, ended) = bounded(0);
        let socket = Arc::new(Mutex::new(None));
        let backlog = Arc::new(Backlog::default());
        let mut worker = StatusWorker { stop: Some(stop), ended, socket: Arc::clone(&socket), threads: Vec::new() };

        let status = Status {
            address,
            metrics: Arc::clone(&metrics),
            backlog: Arc::clone(&backlog),
            stopped: stopped.clone(),
            socket,
            process: process(),
        };
        let status_alive = alive.clone();
        worker.threads.push(thread::Builder::new().name(String::from("status")).spawn(move || {
            let _alive = status_alive;
            status.run();
        })?);
        worker.threads.push(thread::Builder::new().name(String::from("backlog")).spawn(move || {
            let _alive = alive;
            let mut sampler = Sampler::default();
            while !ends_within(&stopped, backlog::INTERVAL) {
                sampler.round(&metrics, &backlog);
            }
        })?);
        Ok(worker)
    }

    /// Stops answering: the job under way is answered or goes back to the server.
    pub fn stop(self) {}
}

impl Drop for StatusWorker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(socket) = self.socket.lock().take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if ends_within(&self.ended, STOP_LIMIT) {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        } else {
            log::debug!("status worker still connecting: it ends by itself");
        }
    }
}

/// Waits, and tells whether the other side of `channel` was dropped meanwhile.
fn ends_within(channel: &Receiver<Infallible>, time: Duration) -> bool {
    matches!(channel.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
}

/// What the thread "status" works with.
struct Status {
    address: Address,
    metrics: Arc<Metrics>,
    backlog: Arc<Backlog>,
    stopped: Receiver<Infallible>,
    socket: Arc<Mutex<Option<TcpStream>>>,
    process: Process,
}

/// A series of connections that did not come about or broke.
struct Outage {
    since: Instant,
    reason: String,
    backoff: Duration,
}

impl Status {
    fn run(&self) {
        let mut outage = None;
        loop {
            let ended = self.session(&mut outage);
            // The other handle of the socket: only without it is the connection closed, and its job given back.
            *self.socket.lock() = None;
            let Err(error) = ended else { return };
            if self.is_stopped() {
                return;
            }
            let reason = error.to_string();
            let outage = outage.get_or_insert_with(|| Outage {
                since: Instant::now(),
                reason: String::new(),
                backoff: FIRST_BACKOFF,
            });
            if outage.reason == reason {
                log::debug!("status queue {}: {reason}", self.address);
            } else {
                let advice = error.advice().map(|advice| format!(" ({advice})")).unwrap_or_default();
                log::warn!(
                    "status queue {}: {reason}{advice}; nobody can ask for the status there, trying again until it works",
                    self.address
                );
                outage.reason = reason;
            }
            if ends_within(&self.stopped, outage.backoff) {
                return;
            }
            outage.backoff = (outage.backoff * 2).min(LAST_BACKOFF);
        }
    }

    fn is_stopped(&self) -> bool {
        ends_within(&self.stopped, Duration::ZERO)
    }

    /// The life of one connection; `Ok` when the worker was stopped.
    fn session(&self, outage: &mut Option<Outage>) -> Result<(), ConnectionError> {
        let Address { server, queue } = &self.address;
        let connection = Connection::open(&server.host, server.port, &format!("gearman-proxy/{queue}"), &LIMITS)?;
        *self.socket.lock() = Some(connection.stream.try_clone()?);
        // A stop drops the channel first and looks for a socket then: one of us sees the other.
        if self.is_stopped() {
            return Ok(());
        }
        connection.stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut session = Session { connection, asked: None, last_grab: Instant::now(), fruitless: 0 };
        session.send(kind::CAN_DO, &[queue.as_bytes()])?;
        session.grab()?;
        loop {
            let event = session.next()?;
            if matches!(event, Event::Job { .. } | Event::NoJob) {
                self.answered(outage);
            }
            match event {
                Event::Job { handle, payload } => {
                    session.fruitless = 0;
                    let answer = self.answer(&payload);
                    session.send(kind::WORK_COMPLETE, &[&handle, answer.as_bytes()])?;
                    session.grab()?;
                }
                Event::NoJob => {
                    session.asked = None;
                    session.send(kind::PRE_SLEEP, &[])?;
                }
                // While a job is asked for, the answer to that tells all.
                Event::WakeUp if session.asked.is_some() => {}
                Event::WakeUp => {
                    session.fruitless = session.fruitless.saturating_add(1);
                    if session.fruitless > FREE_WAKEUPS {
                        let exponent = (session.fruitless - FREE_WAKEUPS).min(10);
                        let pause = Duration::from_millis(1 << exponent).min(Duration::from_secs(1));
                        if ends_within(&self.stopped, pause) {
                            return Ok(());
                        }
                    }
                    session.grab()?;
                }
                Event::Error(text) => log::debug!("status queue {}: server says {}", self.address, escaped(&text)),
                Event::Nothing => {}
            }
        }
    }

    /// The server does what it should.
    fn answered(&self, outage: &mut Option<Outage>) {
        if let Some(outage) = outage.take() {
            let time = outage.since.elapsed().as_secs();
            log::info!("status queue {}: back after {time} s", self.address);
        }
    }

    fn answer(&self, payload: &[u8]) -> String {
        let snapshot =
            |forward: &Arc<ForwardMetrics>| Snapshot::of(forward, self.backlog.waiting(&forward.config.source));
        let forwards: Vec<Snapshot> = self.metrics.forwards().iter().map(snapshot).collect();
        answer(&forwards, payload, Instant::now(), &self.process)
    }
}

/// The first status worker starts with the process; one that a reload starts tells the same.
fn process() -> Process {
    *PROCESS.get_or_init(|| Process {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        started: Instant::now(),
    })
}

/// What a server told.
enum Event {
    Job { handle: Vec<u8>, payload: Vec<u8> },
    NoJob,
    WakeUp,
    Error(Vec<u8>),
    Nothing,
}

struct Session {
    connection: Connection,
    /// A grab is unanswered; when something last came.
    asked: Option<Instant>,
    last_grab: Instant,
    /// Wake-ups in a row that brought no job.
    fruitless: u32,
}

impl Session {
    fn send(&mut self, kind: u32, arguments: &[&[u8]]) -> Result<(), ConnectionError> {
        let mut request = Vec::new();
        put_request(&mut request, kind, arguments);
        match self.connection.stream.write_all(&request) {
            Err(error) if is_timeout(&error) => Err(ConnectionError::NoAnswer(ANSWER_LIMIT)),
            other => Ok(other?),
        }
    }

    fn grab(&mut self) -> Result<(), ConnectionError> {
        self.send(kind::GRAB_JOB_UNIQ, &[])?;
        self.last_grab = Instant::now();
        self.asked = Some(self.last_grab);
        Ok(())
    }

    /// Waits for a packet; an idle server is probed meanwhile.
    fn next(&mut self) -> Result<Event, ConnectionError> {
        loop {
            match self.connection.incoming.next(|_| MAX_REQUEST) {
                Ok(Some(packet)) => return event(&packet),
                Ok(None) => {}
                Err(ProtocolError::TooLong(length)) => return self.long_packet(length),
                Err(error) => return Err(error.into()),
            }
            let due = match self.asked {
                Some(since) => since + ANSWER_LIMIT,
                None => self.last_grab + IDLE_PROBE,
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if self.asked.is_some() {
                    return Err(ConnectionError::NoAnswer(ANSWER_LIMIT));
                }
                self.grab()?;
                continue;
            }
            if self.fill(left.min(ANSWER_LIMIT))? && self.asked.is_some() {
                self.asked = Some(Instant::now());
            }
        }
    }

    /// Reads once; `false` when nothing came.
    fn fill(&mut self, limit: Duration) -> Result<bool, ConnectionError> {
        let Connection { stream, incoming } = &mut self.connection;
        stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        match incoming.fill(&mut &*stream) {
            Ok(()) => Ok(true),
            Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A request of any length is answered: left in the queue, it would come again with every connection.
    fn long_packet(&mut self, length: usize) -> Result<Event, ConnectionError> {
        while self.connection.incoming.unread().len() < HEADER_SIZE + MAX_REQUEST {
            self.fill_more()?;
        }
        let kind = 0;
        let unread = self.connection.incoming.unread();
        let body = unread.get(HEADER_SIZE..HEADER_SIZE + MAX_REQUEST).unwrap_or_default();
        if kind != kind::JOB_ASSIGN_UNIQ {
            return Err(ProtocolError::TooLong(length).into());
        }
        let event = event(&Packet { kind, body })?;
        let mut left = HEADER_SIZE + length;
        loop {
            let count = left.min(self.connection.incoming.unread().len());
            self.connection.incoming.skip(count);
            left -= count;
            if left == 0 {
                return Ok(event);
            }
            self.fill_more()?;
        }
    }

    fn fill_more(&mut self) -> Result<(), ConnectionError> {
        if self.fill(ANSWER_LIMIT)? { Ok(()) } else { Err(ConnectionError::NoAnswer(ANSWER_LIMIT)) }
    }
}

fn event(packet: &Packet<'_>) -> Result<Event, ConnectionError> {
    Ok(match packet.kind {
        kind::JOB_ASSIGN_UNIQ => {
            let ([handle, _queue, _unique], payload) = packet.arguments()?;
            Event::Job { handle: handle.to_vec(), payload: payload.to_vec() }
        }
        kind::NO_JOB => Event::NoJob,
        kind::NOOP => Event::WakeUp,
        kind::ERROR => Event::Error(packet.body.to_vec()),
        kind::ECHO_RES | kind::OPTION_RES => Event::Nothing,
        other => return Err(ProtocolError::Unexpected(other).into()),
    })
}
