//! One forward's life: connect, relay, and after whatever goes wrong, connect again.
//!
//! A *session* is the life of one source connection with its submitters. It begins with the destination: no job is taken
//! that can't be delivered. It ends whole, with every thread joined and every socket closed; error and stop take the
//! same way out, and what was not acknowledged goes back to the source.

mod blame;
mod bulk;
mod confirmer;
mod destination;
mod gate;
mod identity;
mod job;
mod ledger;
mod outgoing;
mod reader;
mod recovery;
mod reject;
mod source;
mod submitter;
mod synchronous;
mod window;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{select, unbounded};
use log::{debug, error, info, warn};
use parking_lot::Mutex;

use crate::config::{Address, DEFAULT_MAX_JOB_SIZE, ForwardConfig, Server};
use crate::gearman::admin;
use crate::gearman::connection::{Connection, ConnectionError, Limits};
use crate::gearman::packet::Incoming;
use crate::latch::Latch;
use crate::metrics::ForwardMetrics;
use destination::Backoff;
pub use gate::Gates;
use gate::Stuck;
use identity::Origin;
use job::{Batch, Job};
use ledger::{Ending, Fate, Ledger};
use reject::{Rejecter, Rejections};
pub use source::Budget;
use source::Source;

/// Every duration in a forward's life. The default is what the documentation says; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// To connect, for each address of a name.
    pub connect: Duration,
    /// For a new connection to answer its first request.
    pub greeting: Duration,
    /// For a server to make progress while it owes an answer.
    pub answer: Duration,
    /// The first wait between tries to connect.
    pub backoff: Duration,
    /// The longest wait between tries to connect.
    pub longest_backoff: Duration,
    /// The longest wait between tries to submit to a full queue.
    pub longest_refusal_backoff: Duration,
    /// From the first sign of trouble until the jobs are given back.
    pub release: Duration,
    /// Between probes of an idle source.
    pub probe: Duration,
    /// Between probes of a destination that runs a synchronous job.
    pub job_probe: Duration,
    /// For what was taken to be delivered when the forward stops.
    pub stop: Duration,
    /// For the replies that the destination owes when the source is lost.
    pub last_replies: Duration,
    /// For the source to answer that it has heard all acknowledgements, before it is left.
    pub farewell: Duration,
    /// For the bytes of a job that is too large.
    pub discard: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            connect: Duration::from_secs(10),
            greeting: Duration::from_secs(10),
            answer: Duration::from_secs(15),
            backoff: Duration::from_millis(500),
            longest_backoff: Duration::from_secs(15),
            longest_refusal_backoff: Duration::from_secs(2),
            release: Duration::from_secs(30),
            probe: Duration::from_secs(30),
            job_probe: Duration::from_secs(10),
            stop: Duration::from_secs(10),
            last_replies: Duration::from_secs(10),
            farewell: Duration::from_secs(2),
            discard: Duration::from_secs(30),
        }
    }
}

/// What a forward is given beside its own configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A job with more data is failed, bytes.
    pub max_job_size: usize,
    /// Shared by all forwards of the process.
    pub budget: Arc<Budget>,
    /// Shared by all forwards of the process.
    pub gates: Arc<Gates>,
    /// See [`Timing`].
    pub timing: Timing,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_job_size: DEFAULT_MAX_JOB_SIZE,
            budget: Arc::default(),
            gates: Arc::default(),
            timing: Timing::default(),
        }
    }
}

/// The stack of a forward's threads, bytes: nothing recurses, and the data is on the heap.
const STACK_SIZE: usize = 256 << 10;

/// A running forward.
#[derive(Debug)]
pub struct Forward {
    life: Arc<Life>,
    reader: JoinHandle<()>,
}

/// What a forward keeps over its sessions.
#[derive(Debug)]
struct Life {
    config: ForwardConfig,
    settings: Settings,
    metrics: Arc<ForwardMetrics>,
    ledger: Mutex<Ledger>,
    /// Whether the ledger may know a job; read for each, without its lock.
    suspicious: AtomicBool,
    /// Jobs that the destinations took, over all sessions and reloads.
    taken: AtomicU64,
    /// When the destination first refused a job as its queue was full, while none was taken since.
    full_since: Mutex<Option<Instant>>,
    rejections: Mutex<Rejections>,
    odd_ids: Mutex<Rejections>,
    stop: Latch,
    stopped_at: Mutex<Option<Instant>>,
    /// The session's source connection, for waking its reader.
    source: Mutex<Option<Arc<Source>>>,
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// The forward was stopped.
    Stopped,
    /// A server can't be worked with.
    Lost {
        /// Which one.
        server: Server,
        /// Why.
        error: ConnectionError,
    },
    /// A thread could not be started.
    Spawn(io::Error),
}

impl Forward {
    /// Starts a forward. It counts into `metrics`. The jobs of a `predecessor` for the same source, which must have been
    /// told to stop, are known to it; it begins when that one has ended.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        settings: Settings,
        metrics: Arc<ForwardMetrics>,
        predecessor: Option<Forward>,
    ) -> io::Result<Forward> {
        let life = Arc::new(Life {
            config: metrics.config.clone(),
            settings,
            metrics,
            ledger: Mutex::default(),
            suspicious: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            full_since: Mutex::default(),
            rejections: Mutex::new(Rejections::new("undeliverable jobs")),
            odd_ids: Mutex::new(Rejections::new("unique ids")),
            stop: Latch::default(),
            stopped_at: Mutex::default(),
            source: Mutex::default(),
        });
        let name = thread_name("r", None, &life.config.source.queue);
        let reader = thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn({
            let life = Arc::clone(&life);
            move || {
                if let Some(predecessor) = predecessor {
                    let former = Arc::clone(&predecessor.life);
                    predecessor.join();
                    *life.ledger.lock() = std::mem::take(&mut *former.ledger.lock());
                    life.taken.store(former.taken.load(Ordering::Relaxed), Ordering::Relaxed);
                    life.suspicious.store(!life.ledger.lock().is_empty(), Ordering::Release);
                }
                life.run();
            }
        })?;
        Ok(Forward { life, reader })
    }

    /// Tells it to stop, and returns at once: what was taken is delivered, the rest given back.
    pub fn stop(&self) {
        self.life.stopped_at.lock().get_or_insert_with(Instant::now);
        self.life.stop.set();
        let source = self.life.source.lock().clone();
        if let Some(source) = source {
            source.wake();
        }
    }

    /// Ends it without waiting for its source any longer: what is not acknowledged goes back.
    pub fn abandon(&self) {
        if let Some(source) = &*self.life.source.lock() {
            source.shut_down();
        }
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.reader.is_finished()
    }

    /// Waits until it has ended.
    pub fn join(self) {
        if let Err(panic) = self.reader.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<ForwardMetrics> {
        &self.life.metrics
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

/// Starts a thread of a forward.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<thread::ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn_scoped(scope, work)
}

/// Waits for a thread's end; its panic goes on in this one.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What `gearadmin --workers` shows.
fn client_id(address: &Address) -> String {
    format!("gearman-proxy:{}", address.queue)
}

impl Life {
    fn run(&self) {
        let timing = &self.settings.timing;
        let mut backoff = Backoff::new(timing.backoff, timing.longest_backoff);
        while !self.stop.is_set() {
            let began = Instant::now();
            let taken = self.taken.load(Ordering::Relaxed);
            match self.session() {
                End::Stopped => break,
                End::Lost { server, error } => {
                    // A session that delivered something, or went on for a while, was no failed try; one that ended with
                    // nonsense was, whatever it had delivered.
                    let delivered = self.taken.load(Ordering::Relaxed) > taken;
                    let nonsense = matches!(error, ConnectionError::Protocol(_));
                    if delivered && !nonsense || began.elapsed() > timing.longest_backoff {
                        backoff.reset();
                    }
                    if self.stop.is_set() {
                        break;
                    }
                    let wait = backoff.next();
                    self.trouble(&server, &error, &format!("trying again in {:.1} s", wait.as_secs_f32()));
                    self.stop.wait(wait);
                }
                End::Spawn(error) => {
                    let wait = backoff.next();
                    error!(
                        "no thread for {}: {error}; trying again in {:.1} s",
                        self.config.source,
                        wait.as_secs_f32()
                    );
                    self.stop.wait(wait);
                }
            }
        }
        self.report_the_rest();
    }

    /// Tells how many messages were held back since there were too many.
    fn report_the_rest(&self) {
        self.rejections.lock().report();
        self.odd_ids.lock().report();
    }

    /// Connects both servers, relays until something ends it.
    fn session(&self) -> End {
        let destinations = match self.connect_destinations() {
            Ok(destinations) => destinations,
            Err(end) => return end,
        };
        let (connection, origin) = match self.connect_source() {
            Ok(connected) => connected,
            Err(error) => return End::Lost { server: self.config.source.server.clone(), error },
        };
        let Connection { stream, incoming, .. } = connection;
        // One by one until the full queue takes one.
        let prefetch = if self.is_full() { 1 } else { self.config.prefetch };
        let (budget, metrics) = (Arc::clone(&self.settings.budget), Arc::clone(&self.metrics));
        let source = match Source::new(stream, prefetch, budget, metrics, self.settings.timing.answer) {
            Ok(source) => Arc::new(source),
            Err(error) => return End::Lost { server: self.config.source.server.clone(), error: error.into() },
        };
        self.works_again();
        *self.source.lock() = Some(Arc::clone(&source));
        self.metrics.set_connected(true);
        let session = Session::new(self, source, origin);
        let end = session.run(incoming, destinations);
        self.metrics.set_connected(false);
        *self.source.lock() = None;
        end
    }

    /// One connection for each submitter, all at once where they are many.
    fn connect_destinations(&self) -> Result<Vec<Connection>, End> {
        let server = &self.config.first_destination().server;
        let lost = |error| End::Lost { server: server.clone(), error };
        let greeting = self.settings.timing.greeting;
        if self.config.workers == 1 {
            Ok(vec![self.connect_destination(greeting).map_err(lost)?])
        } else {
            let name = thread_name("d", None, &self.config.source.queue);
            thread::scope(|scope| {
                let mut threads = Vec::new();
                for _ in 0..self.config.workers {
                    let connect = || self.connect_destination(greeting);
                    threads.push(spawn(scope, name.clone(), connect).map_err(End::Spawn)?);
                }
                threads.into_iter().map(|thread| join(thread).map_err(lost)).collect()
            })
        }
    }

    fn limits(&self) -> Limits {
        Limits { connect: self.settings.timing.connect, answer: self.settings.timing.greeting }
    }

    fn open(&self, server: &Server, limits: &Limits) -> Result<Connection, ConnectionError> {
        let pass = self.settings.gates.pass(server, &self.stop, limits.answer);
        let pass = pass.map_err(|Stuck| ConnectionError::NoAnswer(limits.answer))?;
        let connection = Connection::open(server, &client_id(&self.config.source), limits, &self.stop)?;
        if let Some(pass) = pass {
            pass.answered();
        }
        Ok(connection)
    }

    /// A new connection to the destination, if it comes about `within` this time and the usual limits.
    fn connect_destination(&self, within: Duration) -> Result<Connection, ConnectionError> {
        let limits = self.limits().within(within);
        let mut connection = self.open(&self.config.first_destination().server, &limits)?;
        if !self.config.asynchronous {
            connection.set_option("exceptions", limits.answer)?;
        }
        Ok(connection)
    }

    /// The source's connection, and what its jobs have in common.
    fn connect_source(&self) -> Result<(Connection, Origin), ConnectionError> {
        let Address { server, queue } = &self.config.source;
        let open = || self.open(server, &self.limits());
        let mut connection = open()?;
        let mut process_id = connection.process_id(self.settings.timing.greeting);
        let closed = |answer: &Result<_, _>| matches!(answer, Err(ConnectionError::Closed | ConnectionError::Io(_)));
        if closed(&process_id) {
            // Once may be an accident; and without a process id jobs may come twice.
            connection = open()?;
            process_id = connection.process_id(self.settings.timing.greeting);
        }
        if closed(&process_id) {
            connection = open()?;
            process_id = Ok(None);
        }
        let process_id = process_id?;
        let process_id = identity::telling(process_id);
        let mut ledger = self.ledger.lock();
        ledger.connected(process_id);
        self.suspicious.store(!ledger.is_empty(), Ordering::Release);
        drop(ledger);
        Ok((connection, Origin::new(&server.to_string(), process_id, queue)))
    }

    /// When what was taken must be delivered, once the forward was told to stop.
    fn stop_deadline(&self) -> Option<Instant> {
        self.stopped_at.lock().map(|at| at + self.settings.timing.stop)
    }

    /// Reports that a server can't be worked with, once for each new reason.
    fn trouble(&self, server: &Server, error: &ConnectionError, next: &str) {
        let reason = error.to_string();
        let role = if *server == self.config.source.server {
            "source"
        } else if *server == self.config.first_destination().server {
            "destination"
        } else {
            "reject queue's server"
        };
        if self.metrics.troubled(server, &reason) {
            warn!("{} {}: {reason} ({}); {next}", role, Named(server, &self.config), error.advice());
        } else {
            debug!("{} {}: still {reason}; {next}", role, Named(server, &self.config));
        }
    }

    /// A session begins: reports the end of a trouble, and how many jobs it has left waiting.
    fn works_again(&self) {
        let Address { server, .. } = &self.config.source;
        let mut since = self.metrics.recovered(server).map(|trouble| trouble.since);
        // A full queue's server answers as well: it is back when it takes a job.
        if !self.is_full() {
            let destination = self.metrics.recovered(&self.config.first_destination().server);
            since = since.into_iter().chain(destination.map(|trouble| trouble.since)).min();
        }
        let (source, destination) = (&self.config.source, self.config.first_destination());
        match since {
            None if self.is_full() => debug!("trying whether {destination} is still full"),
            None => info!("forwarding {source} = {destination}"),
            Some(since) => {
                let lasted = since.elapsed().as_secs_f32();
                // The forward waits for this answer, and not every server knows the command.
                let limits = self.limits().within(WAITING_LIMIT);
                let waiting = match admin::queue(source, &limits, &self.stop) {
                    Ok(status) => status.waiting().to_string(),
                    Err(_) => "an unknown number of".to_string(),
                };
                info!("forwarding {source} = {destination} again after {lasted:.1} s, {waiting} jobs waiting");
            }
        }
    }

    /// Reports that a server can be worked with again.
    fn recovered(&self, server: &Server) {
        if let Some(trouble) = self.metrics.recovered(server) {
            let lasted = trouble.since.elapsed().as_secs_f32();
            info!("{} is back after {lasted:.1} s", Named(server, &self.config));
        }
    }

    /// Whether the destination's queue is full, as far as known.
    fn is_full(&self) -> bool {
        self.full_since.lock().is_some()
    }

    /// What is known of a job that has come.
    fn claim(&self, key: u128) -> Option<Fate> {
        let mut ledger = self.ledger.lock();
        let fate = ledger.claim(key);
        self.suspicious.store(!ledger.is_empty(), Ordering::Release);
        fate
    }

    /// Notes the fate of a job that the source may give out again.
    fn note(&self, key: u128, fate: Fate) {
        self.ledger.lock().note(key, fate);
        self.suspicious.store(true, Ordering::Release);
    }

    /// Notes the unique ids of jobs that were submitted and go back, which are used again, and what they are blamed for:
    /// where a job is the only one that may be held, others get through only while it is not here.
    fn note_unconfirmed<'j>(&self, jobs: impl Iterator<Item = &'j Job>) {
        for job in jobs.filter(|job| job.number != 0 || job.blame.is_any()) {
            self.note(job.key, Fate::Unconfirmed(job.number, job.blame));
        }
    }
}

/// A server, and the forward that speaks of it.
struct Named<'a>(&'a Server, &'a ForwardConfig);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of forward {} = {}", self.0, self.1.source, self.1.first_destination())
    }
}

/// One source connection and everything that works for it.
struct Session<'l> {
    life: &'l Life,
    source: Arc<Source>,
    origin: Origin,
    /// Set when it ends, whatever the reason.
    over: Latch,
    end: Mutex<Option<End>>,
    /// Whether a job that the destination takes is news.
    troubled: AtomicBool,
    /// Emptied batches, to be filled again, the last one first since caches know it best; none while there are no jobs.
    spare: Mutex<Option<Vec<Batch>>>,
}

/// How long a source may take to tell how many jobs wait there, before it is worked with again.
const WAITING_LIMIT: Duration = Duration::from_secs(1);

/// Emptied batches kept at most: about as many as are under way where jobs are small and near. What an allocator gives
/// and takes back by the 64 KiB costs as much as all else that is done with the jobs in it.
const SPARE_BATCHES: usize = 32;

impl<'l> Session<'l> {
    fn new(life: &'l Life, source: Arc<Source>, origin: Origin) -> Session<'l> {
        Session {
            life,
            source,
            origin,
            over: Latch::default(),
            end: Mutex::new(None),
            troubled: AtomicBool::new(life.is_full()),
            spare: Mutex::default(),
        }
    }

    /// Relays until something ends it; every thread has been joined then, and the source connection closed.
    fn run(&self, incoming: Incoming, destinations: Vec<Connection>) -> End {
        let mut reader = reader::Reader::new(self, incoming);
        thread::scope(|scope| {
            let (jobs, taken) = unbounded();
            let rejects = self.life.config.reject_queue.as_ref().map(|address| {
                let (rejects, rejected) = unbounded();
                (rejects, Rejecter::new(self, address, rejected))
            });
            let (rejects, rejecter) = rejects.unzip();
            let queue = &self.life.config.source.queue;
            let mut threads = Vec::new();
            if let Some(rejecter) = rejecter {
                threads.push(spawn(scope, thread_name("x", None, queue), move || rejecter.run()));
            }
            for (index, connection) in destinations.into_iter().enumerate() {
                let (taken, rejects) = (taken.clone(), rejects.clone());
                let name = thread_name("s", Some(index), queue);
                threads.push(match self.life.config.asynchronous {
                    true => spawn(scope, name, move || {
                        submitter::Submitter::new(self, index, taken, rejects).run(connection);
                    }),
                    false => spawn(scope, name, move || {
                        synchronous::Submitter::new(self, index, taken, rejects).run(connection);
                    }),
                });
            }
            drop((taken, rejects));
            let threads: io::Result<Vec<_>> = threads.into_iter().collect();
            let threads = match threads {
                Ok(threads) => {
                    self.source.announce(queue);
                    reader.run(&jobs);
                    threads
                }
                Err(error) => {
                    // Those that did start are joined by the scope.
                    self.end(End::Spawn(error));
                    Vec::new()
                }
            };
            // Submitters end when they have worked off what came.
            drop(jobs);
            threads.into_iter().for_each(join);
        });
        reader.prove();
        let (unproven, held) = self.source.close();
        let end = self.end.lock().take().unwrap_or(End::Stopped);
        let source = &self.life.config.source;
        let lost = matches!(&end, End::Lost { server, .. } if *server == source.server);
        self.life.ledger.lock().disconnected(if lost { Ending::Lost } else { Ending::Closed });
        for key in unproven {
            self.life.note(key, Fate::Delivered);
        }
        if held > 0 {
            warn!("{held} jobs go back to {source}");
        }
        end
    }

    /// Ends the session; the first reason counts.
    fn end(&self, end: End) {
        self.end.lock().get_or_insert(end);
        self.over.set();
        // Wakes the reader.
        self.source.echo();
    }

    /// Whether what was taken can still be delivered: not after the session's end, unless that is a stop.
    fn is_over(&self) -> bool {
        self.over.is_set()
    }

    /// Waits; `false` when the session is over or the time to stop has come.
    fn wait(&self, duration: Duration) -> bool {
        match self.life.stop_deadline() {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                !self.over.wait(duration.min(left)) && left > Duration::ZERO
            }
            None => {
                // A stop ends the wait too: the next try comes at once.
                select! {
                    recv(self.over.channel()) -> _ => {}
                    recv(self.life.stop.channel()) -> _ => {}
                    default(duration) => {}
                }
                !self.is_over()
            }
        }
    }

    /// The destination has taken jobs.
    fn taken(&self, jobs: u64) {
        self.life.taken.fetch_add(jobs, Ordering::Relaxed);
        self.life.metrics.progressed();
        if self.troubled.load(Ordering::Relaxed) && self.troubled.swap(false, Ordering::AcqRel) {
            if self.life.full_since.lock().take().is_some() {
                let mut state = self.source.lock();
                state.window.set_prefetch(self.life.config.prefetch);
                self.source.send_due(&mut state);
                self.source.unlock(state);
            }
            self.life.recovered(&self.life.config.first_destination().server);
        }
    }

    /// The destination's queue is full; since when.
    fn full(&self) -> Instant {
        let since = *self.life.full_since.lock().get_or_insert_with(Instant::now);
        // Afterwards: else a job that is taken just now would find nothing to end, and none after it would look again.
        self.troubled.store(true, Ordering::Release);
        since
    }

    /// A server can't be worked with. If it is the destination's, a job that it takes ends that.
    fn troubled(&self, server: &Server, error: &ConnectionError, next: &str) {
        self.life.trouble(server, error, next);
        if *server == self.life.config.first_destination().server {
            self.troubled.store(true, Ordering::Relaxed);
        }
    }

    /// A buffer that was used before, if there is one.
    fn spare_batch(&self) -> Batch {
        self.spare.lock().as_mut().and_then(Vec::pop).unwrap_or_default()
    }

    /// Whether emptied batches are kept from now on.
    fn keep_spare(&self, keep: bool) {
        let mut spare = self.spare.lock();
        if keep != spare.is_some() {
            *spare = keep.then(Vec::new);
        }
    }

    /// Keeps a batch's memory for later.
    fn recycle(&self, mut batch: Batch) {
        if batch.bytes.capacity() > reader::LARGEST_READ {
            return;
        }
        batch.clear();
        if let Some(spare) = &mut *self.spare.lock()
            && spare.len() < SPARE_BATCHES
        {
            spare.push(batch);
        }
    }
}
