//! One forward's threads: the pumps around its [`Relay`], which decides.
//!
//! A reader reads the source, submitters write destination connections, a confirmer beside each reads it, and a rejecter
//! exists where there is a reject queue. They live as long as the forward. When there is nothing to do they wait on a channel.

mod confirmer;
mod gate;
mod line;
mod loops;
mod memory;
mod reader;
mod rejecter;
mod submitter;
mod tell;
mod witness;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use parking_lot::Mutex;

use crate::config::{DEFAULT_MAX_JOB_SIZE, ForwardConfig};
use crate::gearman::connection::{ConnectionError, Limits};
use crate::gearman::packet::{Incoming, ProtocolError};
use crate::latch::Latch;
use crate::metrics::ForwardMetrics;
use crate::notify::Heartbeats;
use crate::outages::Outages;
pub use crate::relay::Legacy;
pub use crate::relay::Timing;
use crate::relay::{self, Actions, Cause, Event, LineId, Loss, Now, Pump, Relay, Step};
use gate::Gates;
use loops::Loops;
use memory::{Large, Memory, Mover, Share};
use tell::Teller;
use witness::{Witness, Witnesses};

/// To connect, for each address of a name, and for a new connection to answer its first request.
const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

/// The stack of a forward's threads, bytes: nothing recurses, and the data is on the heap.
const STACK_SIZE: usize = 256 << 10;

/// Between looks at the forwards whose next moment may have come.
const TICK: Duration = Duration::from_millis(100);

/// A clock that was late by this much was stopped itself: what came meanwhile is read before anything is overdue.
const SUSPENDED: Duration = Duration::from_secs(2);

/// From this many expected answers on, a reading thread lets them gather.
const MANY_ANSWERS: usize = 64;

/// More answers than this make the pause no longer: it ends after two milliseconds.
const MOST_ANSWERS: usize = 1000;

/// The pause for each of them. gearmand takes longer for one as a rule, so it still has some to give when the pause ends.
const PAUSE_PER_ANSWER: Duration = Duration::from_micros(2);

/// What all forwards of the process share.
#[derive(Debug, Clone)]
pub struct Common {
    /// A job with more data is failed, bytes.
    pub max_job_size: usize,
    /// The default is what the documentation says; tests shorten it.
    pub timing: Timing,
    memory: Arc<Memory>,
    gates: Arc<Gates>,
    loops: Arc<Loops>,
    witnesses: Arc<Witnesses>,
    clock: Arc<Clock>,
    pub outages: Arc<Mutex<Outages>>,
    pub heartbeats: Heartbeats,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            max_job_size: DEFAULT_MAX_JOB_SIZE,
            timing: Timing::default(),
            memory: Arc::default(),
            gates: Arc::default(),
            loops: Arc::default(),
            witnesses: Arc::default(),
            clock: Arc::default(),
            outages: Arc::default(),
            heartbeats: Heartbeats::default(),
        }
    }
}

impl Common {
    /// To be called every few seconds: tells what was left untold, and gives memory back that an idle process does not need.
    pub fn look(&self) {
        let at = Instant::now();
        let forwards = self.clock.forwards.lock().clone();
        for forward in forwards {
            forward.teller.look(at);
            let metrics = forward.teller.metrics();
            let held = metrics.counts.lock().held > 0;
            let oldest = held.then(|| forward.relay.lock().oldest()).flatten();
            metrics.counts.lock().oldest_held = oldest.and_then(|came| at.checked_sub(now().saturating_sub(came)));
        }
        self.memory.rest();
    }

    /// Starts the thread that tells the forwards the time. It runs until the process ends.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start_clock(&self) -> io::Result<()> {
        let clock = Arc::clone(&self.clock);
        let heartbeat = self.heartbeats.register("clock");
        thread::Builder::new().name("clock".to_owned()).stack_size(STACK_SIZE).spawn(move || {
            loop {
                clock.tick();
                heartbeat.turn();
            }
        })?;
        Ok(())
    }
}

/// The forwards that are to be told the time.
#[derive(Debug, Default)]
struct Clock {
    forwards: Mutex<Vec<Arc<Shared>>>,
}

impl Clock {
    fn tick(&self) {
        let began = Instant::now();
        thread::sleep(TICK);
        if began.elapsed() > SUSPENDED {
            thread::sleep(TICK);
        }
        let now = now();
        let due: Vec<_> = self.forwards.lock().iter().filter(|forward| forward.is_due(now)).map(Arc::clone).collect();
        for forward in due {
            forward.feed(Event::Time);
        }
        // One of each kind in the process.
        let large = |forward: &&Arc<Shared>| forward.large.iter().any(|share| share.lock().strong_count() > 0);
        let large: Vec<_> = self.forwards.lock().iter().filter(large).map(Arc::clone).collect();
        for forward in large {
            forward.check_pace();
        }
    }
}

/// The time since the process began to forward.
fn now() -> Now {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed()
}

/// A running forward.
#[derive(Debug)]
pub struct Forward {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// The forward that took from the same source before.
#[derive(Debug)]
pub enum Predecessor {
    None,
    /// It was told to stop. The successor begins when it has ended.
    Stopping(Forward),
    /// What it knew.
    Ended(Box<Legacy>),
}

/// A destination connection, as its submitter made it, until its confirmer reads it.
type Opened = (u32, Arc<TcpStream>, Incoming);

/// The current connection of one kind, with its generation.
type Socket = Mutex<Option<(u32, Arc<TcpStream>)>>;

/// What a forward's threads share.
#[derive(Debug)]
struct Shared {
    config: ForwardConfig,
    common: Common,
    relay: Mutex<Relay>,
    /// When the relay is to be told the time, microseconds.
    due: AtomicU64,
    /// The source's connection, for the threads that write or end it.
    source: Socket,
    /// The destinations' connections.
    lines: Vec<Socket>,
    /// New ones, for the confirmers.
    opened: Vec<(Sender<Opened>, Receiver<Opened>)>,
    reader: Waker,
    submitters: Vec<Waker>,
    confirmers: Vec<Waker>,
    rejecter: Waker,
    /// The predecessor has ended: the threads begin.
    begun: Latch,
    /// Everything is over: threads that connect or ask give up.
    ended: Latch,
    /// Stages give up: the forward stops, and the job they work on goes back.
    interrupted: AtomicBool,
    stopped: AtomicBool,
    number: usize,
    witness: Witness,
    teller: Teller,
    /// What has its turn, by [`Large`].
    large: [Mutex<Weak<Share>>; 2],
}

/// Wakes one thread. A wake-up that comes before the wait is not lost.
#[derive(Debug)]
struct Waker {
    send: Sender<()>,
    receive: Receiver<()>,
}

impl Waker {
    fn new() -> Waker {
        let (send, receive) = bounded(1);
        Waker { send, receive }
    }

    fn wake(&self) {
        // It fails only where a wake-up is waiting already.
        let _ = self.send.try_send(());
    }

    fn wait(&self, limit: Option<Duration>) {
        // The channel can't close: both ends are here.
        let _ = match limit {
            Some(limit) => self.receive.recv_timeout(limit),
            None => self.receive.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
    }
}

impl Forward {
    /// Starts a forward. It counts into `metrics`.
    ///
    /// # Errors
    /// The system gives no thread; nothing runs then, and the predecessor is given back.
    pub fn start(
        common: &Common,
        metrics: Arc<ForwardMetrics>,
        predecessor: Predecessor,
    ) -> Result<Forward, (io::Error, Predecessor)> {
        let config = metrics.config.clone();
        let workers = config.workers;
        let wakers = |count| (0..count).map(|_| Waker::new()).collect();
        let shared = Arc::new(Shared {
            relay: Mutex::new(Relay::new(settings(&config, common), Legacy::default())),
            due: AtomicU64::new(u64::MAX),
            source: Mutex::default(),
            lines: (0..workers).map(|_| Mutex::default()).collect(),
            opened: (0..workers).map(|_| bounded(1)).collect(),
            reader: Waker::new(),
            submitters: wakers(workers),
            confirmers: wakers(workers),
            rejecter: Waker::new(),
            begun: Latch::default(),
            ended: Latch::default(),
            interrupted: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            number: common.loops.register(&config),
            witness: Witness::default(),
            teller: Teller::new(Arc::clone(&common.outages), metrics, common.max_job_size),
            config,
            common: common.clone(),
            large: Default::default(),
        });
        let mut forward = Forward { shared: Arc::clone(&shared), threads: Vec::new() };
        if let Err(error) = forward.spawn_all() {
            forward.stop();
            shared.begun.set();
            forward.join();
            return Err((error, predecessor));
        }
        match predecessor {
            Predecessor::None => shared.begun.set(),
            Predecessor::Ended(legacy) => shared.inherit(*legacy),
            Predecessor::Stopping(predecessor) => {
                let heir = Arc::clone(&shared);
                let name = thread_name("w", None, &shared.config.source.queue);
                let wait = move || heir.inherit(predecessor.join());
                match thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(wait) {
                    Ok(thread) => forward.threads.push(thread),
                    Err(error) => {
                        forward.stop();
                        shared.begun.set();
                        forward.join();
                        return Err((error, Predecessor::None));
                    }
                }
            }
        }
        common.clock.forwards.lock().push(shared);
        Ok(forward)
    }

    fn spawn_all(&mut self) -> io::Result<()> {
        let queue = self.shared.config.source.queue.clone();
        self.spawn(thread_name("r", None, &queue), reader::run)?;
        for index in 0..self.shared.config.workers {
            self.spawn(thread_name("s", Some(index), &queue), move |shared| submitter::run(shared, index))?;
            self.spawn(thread_name("c", Some(index), &queue), move |shared| confirmer::run(shared, index))?;
        }
        if let Some(address) = self.shared.config.reject_queue.clone() {
            self.spawn(thread_name("x", None, &queue), move |shared| rejecter::run(shared, &address))?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: String, run: impl FnOnce(&Arc<Shared>) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || {
            let _ = shared.begun.channel().recv();
            run(&shared);
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Tells it to stop, and returns at once: what was taken is delivered, the rest given back.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.feed(Event::Stop);
        // They may wait for memory.
        self.shared.submitters.iter().chain([&self.shared.reader]).for_each(Waker::wake);
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits until it has ended.
    pub fn join(self) -> Legacy {
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.shared.common.loops.leave(self.shared.number);
        self.shared.common.clock.forwards.lock().retain(|forward| !Arc::ptr_eq(forward, &self.shared));
        let successor = Relay::new(settings(&self.shared.config, &self.shared.common), Legacy::default());
        std::mem::replace(&mut *self.shared.relay.lock(), successor).into_legacy()
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<ForwardMetrics> {
        self.shared.teller.metrics()
    }
}

fn settings(config: &ForwardConfig, common: &Common) -> relay::Settings {
    relay::Settings {
        asynchronous: config.asynchronous,
        queue: config.source.queue.clone().into_bytes(),
        workers: config.workers,
        prefetch: config.prefetch,
        prefetch_is_explicit: config.prefetch_is_explicit,
        byte_limit: memory::forward_bytes(config),
        timeout: config.timeout,
        destinations: config.destinations.len(),
        reject_queue: config.reject_queue.is_some(),
        random: witness::random(),
        timing: common.timing.clone(),
    }
}

/// A thread's name: role, number, queue, of which the system shows 15 bytes.
fn thread_name(role: &str, number: Option<usize>, queue: &str) -> String {
    // A NUL can't come: queue names are checked.
    match number {
        Some(number) => format!("{role}{}:{queue}", number + 1),
        None => format!("{role}:{queue}"),
    }
}

impl Shared {
    /// Begins with what the predecessor knew, when that has ended.
    fn inherit(&self, legacy: Legacy) {
        *self.relay.lock() = Relay::new(settings(&self.config, &self.common), legacy);
        if self.stopped.load(Ordering::SeqCst) {
            self.feed(Event::Stop);
        }
        self.begun.set();
    }

    fn is_due(&self, now: Now) -> bool {
        self.due.load(Ordering::Relaxed) <= now.as_micros() as u64
    }

    /// What something large takes with all that becomes of it, from the budget or when it has its turn; none when
    /// `is_wanted` no longer holds, or the forward ends.
    fn share(&self, what: Large, bytes: usize, pump: Pump, is_wanted: impl Fn() -> bool) -> Option<Arc<Share>> {
        let memory = &self.common.memory;
        if bytes <= memory::forward_bytes(&self.config)
            && let Some(share) = memory.reserve(bytes)
        {
            return Some(share);
        }
        let hold = |turn| {
            let share = memory.hold(turn);
            *self.large[what as usize].lock() = Arc::downgrade(&share);
            share
        };
        let place = memory.line_up(what);
        if let Ok(turn) = place.turn.try_recv() {
            return Some(hold(turn));
        }
        self.feed(Event::HeldUp(pump));
        let waker = self.waker(pump)?;
        while is_wanted() {
            select! {
                recv(place.turn) -> turn => return turn.ok().map(hold),
                recv(waker.receive) -> _ => {}
                recv(self.ended.channel()) -> _ => return None,
            }
        }
        None
    }

    /// What has its turn.
    fn large(&self, what: Large) -> Option<Arc<Share>> {
        self.large[what as usize].lock().upgrade()
    }

    /// Ends the connection of the peer that holds up what has its turn.
    fn check_pace(&self) {
        for what in [Large::Job, Large::Result] {
            let Some(mover) = self.large(what).and_then(|share| share.late()) else { continue };
            let text = "moved less than 16 KiB a second of a large job".to_owned();
            let advice = Some("others wait for it: is the line slow, or does the server hang?");
            let cause = Cause { kind: "too slow", text, advice };
            let loss = Loss { closed: false, nonsense: true, oversized: false, cause };
            match mover {
                Mover::Destination(line) => self.feed(Event::Lost(line, loss)),
                Mover::Source(generation) => self.feed(Event::SourceLost { generation, loss }),
                Mover::Nobody => {
                    let current = self.source.lock().as_ref().map(|(generation, _)| *generation);
                    if let Some(generation) = current {
                        self.feed(Event::SourceLost { generation, loss });
                    }
                }
            }
        }
    }

    /// Tells the relay what happened, without a next step.
    fn feed(&self, event: Event) {
        let actions = {
            let mut relay = self.relay.lock();
            relay.set_spare(self.common.memory.spare());
            relay.event(now(), event);
            self.settle(&mut relay)
        };
        self.carry_out(actions);
    }

    /// Tells the relay what happened and asks what this pump is to do next.
    fn turn(&self, event: Option<Event>, pump: Pump) -> Step {
        let (step, actions) = {
            let mut relay = self.relay.lock();
            if let Some(event) = event {
                relay.set_spare(self.common.memory.spare());
                relay.event(now(), event);
            }
            let step = relay.next(now(), pump);
            let actions = self.settle(&mut relay);
            (step, actions)
        };
        self.carry_out(actions);
        step
    }

    /// To be called before the lock is given back.
    fn settle(&self, relay: &mut Relay) -> Actions {
        let actions = relay.actions();
        let due = relay.due();
        self.due.store(u64::try_from(due.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.teller.metrics().set_held(relay.held());
        actions
    }

    /// Nothing here can block.
    fn carry_out(&self, actions: Actions) {
        let Actions { close_source, close, wake, tell, ended } = actions;
        if let Some(generation) = close_source {
            shut_down(&self.source, generation);
            // It may wait for its turn.
            self.reader.wake();
        }
        for LineId { submitter, generation } in close {
            if let Some(line) = self.lines.get(submitter) {
                shut_down(line, generation);
                self.confirmers[submitter].wake();
            }
        }
        if ended {
            self.ended.set();
            self.interrupted.store(true, Ordering::Relaxed);
        }
        for pump in wake {
            if let Some(waker) = self.waker(pump) {
                waker.wake();
            }
        }
        for tell in tell {
            self.teller.tell(tell);
        }
    }

    fn waker(&self, pump: Pump) -> Option<&Waker> {
        match pump {
            Pump::Reader => Some(&self.reader),
            Pump::Submitter(index) => self.submitters.get(index),
            Pump::Confirmer(index) => self.confirmers.get(index),
            Pump::Rejecter => Some(&self.rejecter),
        }
    }

    /// Waits for a wake-up.
    fn wait(&self, pump: Pump, limit: Option<Duration>) {
        if let Some(waker) = self.waker(pump) {
            waker.wait(limit);
        }
    }
}

fn shut_down(place: &Socket, generation: u32) {
    let mut place = place.lock();
    if let Some((_, stream)) = place.take_if(|(current, _)| *current == generation) {
        // It fails only where the connection has ended already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Pauses if many answers are `expected`, before they are read. Job servers write each answer by itself: a thread that wakes
/// for every few costs itself and the job server on the same host a quarter of their speed. A single job never waits.
fn gather(expected: usize) {
    if expected >= MANY_ANSWERS {
        thread::sleep(PAUSE_PER_ANSWER * expected.min(MOST_ANSWERS) as u32);
    }
}

/// How a connection that was in use ended.
fn loss(error: &ConnectionError) -> Loss {
    let closed = matches!(error, ConnectionError::Closed | ConnectionError::Io(_));
    let nonsense = matches!(error, ConnectionError::Protocol(_));
    let oversized = matches!(error, ConnectionError::Protocol(ProtocolError::TooLong(_)));
    Loss { closed, nonsense, oversized, cause: cause(error) }
}

fn cause(error: &ConnectionError) -> Cause {
    Cause { kind: error.kind(), text: error.to_string(), advice: Some(error.advice()) }
}
