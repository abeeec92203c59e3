//! One forward's threads: the pumps around its [`Relay`], which decides.
//!
//! A reader reads the source, submitters write destination connections, a confirmer beside each reads it, and a rejecter
//! exists where there is a reject queue. All of them are the same loop ([`pump`](Shared::pump)) around the steps that the relay
//! gives them. They live as long as the forward. When there is nothing to do they wait on a channel.

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

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;

use crate::config::{Address, ForwardConfig};
use crate::gearman::connection::{ConnectionError, Limits};
use crate::gearman::packet::ProtocolError;
use crate::latch::Latch;
use crate::metrics::ForwardMetrics;
use crate::notify::Heartbeats;
use crate::outages::Outages;
use crate::relay::{self, Actions, Cause, Chunk, Event, LineId, Loss, Now, Pump, Relay, Step};
pub use crate::relay::{Legacy, Timing};
use crate::stages::Scratch;
use gate::Gates;
use line::Socket;
use loops::Loops;
use memory::{Large, Memory, Mover, Share};
use tell::Teller;

/// To connect, for each address of a name, and for a new connection to answer its first request.
const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

/// The stack of a forward's threads, bytes: nothing recurses, and the data is on the heap.
const STACK_SIZE: usize = 256 << 10;

/// Between looks at the forwards whose next moment may have come.
const TICK: Duration = Duration::from_millis(100);

/// A clock that was late by this much was stopped itself: what came meanwhile is read before anything is overdue.
const SUSPENDED: Duration = Duration::from_secs(2);

/// What all forwards of the process share.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// A job with more data is failed, bytes.
    pub max_job_size: usize,
    /// The default is what the documentation says; tests shorten it.
    pub timing: Timing,
    pub outages: Arc<Mutex<Outages>>,
    pub heartbeats: Heartbeats,
    memory: Arc<Memory>,
    gates: Arc<Gates>,
    loops: Arc<Loops>,
    /// Those that run.
    forwards: Arc<Mutex<Vec<Arc<Shared>>>>,
}

impl Common {
    /// To be called a few times a second: tells how many messages were not written, when they have stopped coming.
    pub fn tell(&self, now: Instant) {
        self.forwards_that(|forward| forward.teller.has_untold()).iter().for_each(|forward| forward.teller.look(now));
    }

    /// To be called every few seconds: gives memory back that an idle process does not need.
    pub fn look(&self) {
        let at = Instant::now();
        for forward in self.forwards_that(|_| true) {
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
        let common = self.clone();
        let heartbeat = self.heartbeats.register("clock");
        thread::Builder::new().name("clock".to_owned()).stack_size(STACK_SIZE).spawn(move || {
            loop {
                common.tick();
                heartbeat.turn();
            }
        })?;
        Ok(())
    }

    fn tick(&self) {
        let began = Instant::now();
        thread::sleep(TICK);
        if began.elapsed() > SUSPENDED {
            thread::sleep(TICK);
        }
        let now = now().as_micros() as u64;
        for forward in self.forwards_that(|forward| forward.due.load(Ordering::Relaxed) <= now) {
            forward.feed(Event::Time);
        }
        if !self.memory.has_turn() {
            return;
        }
        // One of each kind in the process.
        let has_turn = |forward: &Shared| forward.large.iter().any(|share| share.lock().strong_count() > 0);
        for forward in self.forwards_that(has_turn) {
            forward.check_pace();
        }
    }

    fn forwards_that(&self, wanted: impl Fn(&Shared) -> bool) -> Vec<Arc<Shared>> {
        self.forwards.lock().iter().filter(|forward| wanted(forward)).cloned().collect()
    }
}

/// The time since the process began to forward.
fn now() -> Now {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed()
}

/// A random number that no other relay has; std's keys come from the system's random source, once a process, and differ by a
/// counter that is hashed.
fn random() -> u128 {
    let [low, high] = [(), ()].map(|()| RandomState::new().build_hasher().finish());
    u128::from(high) << 64 | u128::from(low)
}

/// A running forward.
#[derive(Debug)]
pub struct Forward {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Wakes one thread. A wake-up that comes before the wait is not lost: the channel has room for one.
type Waker = (Sender<()>, Receiver<()>);

/// What a forward's threads share.
#[derive(Debug)]
struct Shared {
    config: ForwardConfig,
    common: Common,
    relay: Mutex<Relay>,
    /// When the relay is to be told the time, microseconds.
    due: AtomicU64,
    source: Socket,
    /// The destinations' connections, by submitter.
    lines: Vec<Socket>,
    /// By [`place`].
    wakers: Vec<Waker>,
    /// Stages of long jobs give up: the forward stops, and the job goes back.
    stopped: AtomicBool,
    /// Everything is over: threads that connect or ask give up.
    ended: Latch,
    /// What the forward is called in its source connection's client id.
    number: u64,
    /// Where its jobs lead and since when, once it may take any. See [`Loops`].
    leads_to: Mutex<Option<(Address, Instant)>>,
    teller: Teller,
    /// Whether it counts as one of those that share the memory for jobs.
    holds_much: AtomicBool,
    /// What has its turn, by [`Large`].
    large: [Mutex<Weak<Share>>; 2],
}

impl Forward {
    /// Starts a forward, which counts into `metrics`. `legacy` is what its predecessor knew, which must have ended.
    ///
    /// # Errors
    /// The system gives no thread; nothing runs then, and the legacy is given back.
    pub fn start(
        common: &Common,
        metrics: Arc<ForwardMetrics>,
        legacy: Legacy,
    ) -> Result<Forward, Box<(io::Error, Legacy)>> {
        let config = metrics.config.clone();
        let workers = 0..config.workers;
        let shared = Arc::new(Shared {
            relay: Mutex::new(Relay::new(settings(&config, common), legacy)),
            due: AtomicU64::new(u64::MAX),
            source: Socket::default(),
            lines: workers.clone().map(|_| Socket::default()).collect(),
            wakers: (0..place(Pump::Submitter(config.workers))).map(|_| bounded(1)).collect(),
            stopped: AtomicBool::new(false),
            ended: Latch::default(),
            number: random() as u64,
            leads_to: Mutex::default(),
            teller: Teller::new(Arc::clone(&common.outages), metrics, common.max_job_size),
            config,
            common: common.clone(),
            holds_much: AtomicBool::new(false),
            large: Default::default(),
        });
        let mut forward = Forward { shared: Arc::clone(&shared), threads: Vec::new() };
        common.forwards.lock().push(Arc::clone(&shared));
        let submitters = workers.flat_map(|index| [Pump::Submitter(index), Pump::Confirmer(index)]);
        let rejecter = shared.config.reject_queue.iter().map(|_| Pump::Rejecter);
        // No thread gets its first step before all are there.
        let first_steps = shared.relay.lock();
        let spawned = [Pump::Reader].into_iter().chain(submitters).chain(rejecter).try_for_each(|pump| {
            let (shared, name) = (Arc::clone(&shared), shared.thread_name(pump));
            let thread = thread::Builder::new().name(name).stack_size(STACK_SIZE);
            forward.threads.push(thread.spawn(move || shared.pump(pump))?);
            Ok(())
        });
        drop(first_steps);
        if let Err(error) = spawned {
            forward.stop();
            return Err(Box::new((error, forward.join())));
        }
        Ok(forward)
    }

    /// Tells it to stop, and returns at once: what was taken is delivered, the rest given back.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.feed(Event::Stop);
        // They may wait for memory.
        for (wake, _) in &self.shared.wakers {
            let _ = wake.try_send(());
        }
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
        let Shared { common, relay, .. } = &*self.shared;
        common.forwards.lock().retain(|forward| !Arc::ptr_eq(forward, &self.shared));
        relay.lock().take_legacy()
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
        random: random(),
        timing: common.timing.clone(),
    }
}

/// A pump's place among the wakers of its forward.
fn place(pump: Pump) -> usize {
    match pump {
        Pump::Reader => 0,
        Pump::Rejecter => 1,
        Pump::Submitter(index) => 2 + 2 * index,
        Pump::Confirmer(index) => 3 + 2 * index,
    }
}

impl Shared {
    /// Role, number, queue, of which the system shows 15 bytes.
    fn thread_name(&self, pump: Pump) -> String {
        // A NUL can't come: queue names are checked.
        let queue = &self.config.source.queue;
        match pump {
            Pump::Reader => format!("r:{queue}"),
            Pump::Rejecter => format!("x:{queue}"),
            Pump::Submitter(index) => format!("s{}:{queue}", index + 1),
            Pump::Confirmer(index) => format!("c{}:{queue}", index + 1),
        }
    }

    /// A thread's life: it asks the relay for its next step, takes it, and reports what came of it.
    ///
    /// No step is inlined: each of thousands of threads would have the stack of all of them.
    fn pump(&self, pump: Pump) {
        let heartbeat = self.common.heartbeats.register(&self.thread_name(pump));
        let (_, wakes) = self.waker(pump);
        let (mut scratch, mut spare) = (Scratch::default(), Chunk::default());
        let (mut source, mut replies, mut rejects) = (None, None, None);
        let mut event = None;
        loop {
            event = match self.turn(event, pump) {
                Step::Stage(batch) => {
                    let chunk = std::mem::take(&mut spare);
                    Some(line::stage(self, pump, &heartbeat, &mut scratch, chunk, batch))
                }
                Step::Write(line, chunk) if pump == Pump::Reader => Some(line::write_at_once(self, line, chunk)),
                Step::End => return,
                // Everything else may wait for a peer, or for work.
                step => heartbeat.idle(|| match step {
                    Step::ConnectSource { generation } => Some(reader::connect(self, generation, &mut source)),
                    Step::Read { generation, expected } => match pump {
                        Pump::Confirmer(submitter) => {
                            confirmer::read(self, &mut replies, LineId { submitter, generation }, expected)
                        }
                        _ => reader::read(self, &mut source, generation, expected),
                    },
                    Step::Connect { line, destination } => Some(submitter::connect(self, line, destination)),
                    Step::Write(line, chunk) => Some(line::write(self, line, chunk, &mut spare)),
                    Step::WriteSource { generation, bytes } => Some(line::write_source(self, generation, bytes)),
                    Step::Reject(jobs) => Some(rejecter::reject(self, &mut rejects, &jobs)),
                    Step::Count { destination } => Some(submitter::count(self, destination)),
                    Step::Pause(limit) => wakes.recv_timeout(limit).ok().and(None),
                    Step::Park | Step::Stage(_) | Step::End => {
                        // Of connections that others have ended nothing is kept.
                        source.take_if(|source| !source.is_current(&self.source));
                        if let Pump::Confirmer(index) = pump {
                            replies.take_if(|replies| !replies.is_current(&self.lines[index]));
                        }
                        wakes.recv().ok().and(None)
                    }
                }),
            };
            heartbeat.turn();
        }
    }

    fn waker(&self, pump: Pump) -> &Waker {
        &self.wakers[place(pump)]
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
        let place = memory.line_up(what);
        self.feed(Event::HeldUp(pump));
        while is_wanted() {
            select! {
                recv(place) -> turn => {
                    let share = Share::of(turn.ok()?);
                    *self.large[what as usize].lock() = Arc::downgrade(&share);
                    return Some(share);
                }
                recv(self.waker(pump).1) -> _ => {}
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
        let late = |what| self.large(what).and_then(|share| share.late());
        for mover in [Large::Job, Large::Result].into_iter().filter_map(late) {
            let text = "moved less than 16 KiB a second of a large job".to_owned();
            let advice = Some("others wait for it: is the line slow, or does the server hang?");
            let cause = Cause { kind: "too slow", text, advice };
            let loss = Loss { closed: false, nonsense: true, oversized: false, cause };
            let source = match mover {
                Mover::Destination(line) => return self.feed(Event::Lost(line, loss)),
                Mover::Source(generation) => Some(generation),
                Mover::Nobody => self.source.generation(),
            };
            if let Some(generation) = source {
                self.feed(Event::SourceLost { generation, loss });
            }
        }
    }

    /// Tells the relay what happened, without a next step.
    fn feed(&self, event: Event) {
        self.with_relay(Some(event), |_| ());
    }

    /// Tells the relay what happened and asks what this pump is to do next.
    fn turn(&self, event: Option<Event>, pump: Pump) -> Step {
        self.with_relay(event, |relay| relay.next(now(), pump))
    }

    fn with_relay<T>(&self, event: Option<Event>, ask: impl FnOnce(&mut Relay) -> T) -> T {
        let mut relay = self.relay.lock();
        if let Some(event) = event {
            relay.set_spare(self.common.memory.spare(), self.common.memory.share());
            relay.event(now(), event);
        }
        let answer = ask(&mut relay);
        let actions = relay.actions();
        self.due.store(u64::try_from(relay.due().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.teller.metrics().set_held(relay.held());
        self.common.memory.holds(relay.held_bytes(), &self.holds_much);
        drop(relay);
        self.carry_out(actions);
        answer
    }

    /// Nothing here can block.
    fn carry_out(&self, actions: Actions) {
        let Actions { close_source, close, mut wake, tell, ended } = actions;
        // Threads that wait for their turn on a connection that is closed wait no longer.
        if let Some(generation) = close_source {
            self.source.shut_down(generation);
            wake.push(Pump::Reader);
        }
        for LineId { submitter, generation } in close {
            self.lines[submitter].shut_down(generation);
            wake.push(Pump::Confirmer(submitter));
        }
        if ended {
            self.ended.set();
        }
        for pump in wake {
            // It fails only where a wake-up is waiting already.
            let _ = self.waker(pump).0.try_send(());
        }
        for tell in tell {
            self.teller.tell(tell);
        }
    }
}

/// How a connection that was in use ended.
fn loss(error: &ConnectionError) -> Loss {
    let closed = matches!(error, ConnectionError::Closed | ConnectionError::Io(_));
    let nonsense = matches!(error, ConnectionError::Protocol(_));
    let oversized = matches!(error, ConnectionError::Protocol(ProtocolError::TooLong(_)));
    let cause = Cause { kind: error.kind(), text: error.to_string(), advice: Some(error.advice()) };
    Loss { closed, nonsense, oversized, cause }
}

/// Why a connection did not come about.
fn failure(error: &ConnectionError) -> Loss {
    Loss { closed: false, ..loss(error) }
}
