//! What the forwards have done and how they are: written by their threads, read by the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::config::{Address, ForwardConfig, Server};

/// A forward that holds jobs and has made no progress for this long is a failed one, whatever its sockets say.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);

/// A forward that has not connected for the first time after this long is a failed one.
pub const CONNECTING_FOR: Duration = Duration::from_secs(10);

/// The upper ends of the histogram of the time from grab to confirmation, milliseconds; above the last is one more.
pub const CONFIRMATION_BUCKETS: [u64; 8] = [5, 25, 100, 500, 1000, 5000, 30_000, 120_000];

/// All forwards of the process, in the order of the configuration, and what concerns none of them alone.
#[derive(Debug, Default)]
pub struct Metrics {
    forwards: Mutex<Vec<Arc<ForwardMetrics>>>,
    configuration_wrong: Mutex<Option<SystemTime>>,
    /// Patterns of each server that match too many queues.
    pattern_errors: Mutex<BTreeMap<Server, String>>,
    /// Servers that do not tell which queues they have for patterns.
    pattern_troubles: Mutex<BTreeMap<Server, Trouble>>,
}

impl Metrics {
    pub fn forwards(&self) -> Vec<Arc<ForwardMetrics>> {
        self.forwards.lock().clone()
    }

    /// Replaces the list, at start and after a reload.
    pub fn set_forwards(&self, forwards: Vec<Arc<ForwardMetrics>>) {
        *self.forwards.lock() = forwards;
    }

    /// Since when a reload has failed; `None` once one succeeded.
    pub fn configuration_wrong(&self) -> Option<SystemTime> {
        *self.configuration_wrong.lock()
    }

    /// The patterns that match too many queues.
    pub fn pattern_errors(&self) -> Vec<String> {
        self.pattern_errors.lock().iter().map(|(server, error)| format!("{server}: {error}")).collect()
    }

    pub fn set_pattern_error(&self, server: &Server, error: Option<String>) {
        let mut errors = self.pattern_errors.lock();
        match error {
            Some(error) => errors.insert(server.clone(), error),
            None => errors.remove(server),
        };
    }

    /// The servers that do not tell which queues they have for patterns.
    pub fn pattern_troubles(&self) -> BTreeMap<Server, Trouble> {
        self.pattern_troubles.lock().clone()
    }

    pub fn set_pattern_trouble(&self, server: &Server, reason: Option<&str>) {
        let mut troubles = self.pattern_troubles.lock();
        let since = troubles.remove(server).map_or_else(Instant::now, |trouble| trouble.since);
        if let Some(reason) = reason {
            troubles.insert(server.clone(), Trouble { reason: reason.to_owned(), since });
        }
    }

    /// The patterns are others: their servers are asked again.
    pub fn clear_patterns(&self) {
        self.pattern_errors.lock().clear();
        self.pattern_troubles.lock().clear();
    }

    /// A reload failed or succeeded. The first failure's time stays.
    pub fn set_configuration_wrong(&self, wrong: bool) {
        let mut since = self.configuration_wrong.lock();
        *since = wrong.then(|| since.unwrap_or_else(SystemTime::now));
    }
}

/// Why a server is unavailable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Own words in printable ASCII, without brackets, quotes and bars, at most 80 bytes.
    pub reason: String,
    /// The first sign of it.
    pub since: Instant,
}

/// How a forward is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Working,
    /// It has never been connected, and is not known to be in trouble.
    Connecting,
    Failed,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that may be unknown, as it is at first.
#[derive(Debug, Default)]
pub struct Sample(AtomicU64);

impl Sample {
    pub fn get(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }

    pub fn set(&self, number: Option<u64>) {
        self.0.store(number.map_or(0, |number| number.saturating_add(1)), Ordering::Relaxed);
    }
}

/// A moment that may have come, in milliseconds after its forward's start; 0 is never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, after: Option<Duration>) {
        self.0.store(after.map_or(0, |after| (after.as_millis() as u64).max(1)), Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.0.load(Ordering::Relaxed))).filter(|after| !after.is_zero())
    }
}

/// The last undeliverable job.
#[derive(Debug, Clone)]
pub struct Reject {
    pub reason: String,
    pub at: Instant,
}

/// What one forward counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Jobs delivered, and their bytes as they came and as they went.
    pub jobs: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// Undeliverable jobs.
    pub rejected: Counter,
    /// Jobs that were rejected or failed.
    pub errors: Counter,
    /// Jobs dropped because they were older than `max_age`.
    pub expired: Counter,
    /// Times that both servers were connected.
    pub sessions: Counter,
    /// Jobs confirmed by the time since their grab: a counter for each of [`CONFIRMATION_BUCKETS`] and one above.
    pub confirmations: [Counter; CONFIRMATION_BUCKETS.len() + 1],
    /// The sum of these times.
    pub confirmation_milliseconds: Counter,
    /// Jobs waiting at the source and at the destination when they were last asked.
    pub waiting: Sample,
    pub waiting_there: Sample,
    oldest_held: Moment,
    held_since: Moment,
    delivered: Moment,
    /// The last sign of life of a destination that has something to do.
    progress: Moment,
}

/// One forward's counts and state.
#[derive(Debug)]
pub struct ForwardMetrics {
    /// The forward that this is about.
    pub config: ForwardConfig,
    pub counts: Counts,
    started: Instant,
    /// Jobs taken from the source and neither acknowledged nor given back.
    held: AtomicUsize,
    /// The place of the destination in use among the configured ones.
    destination: AtomicUsize,
    pub(crate) last_reject: Mutex<Option<Reject>>,
    pub(crate) troubles: Mutex<BTreeMap<Server, Trouble>>,
}

impl ForwardMetrics {
    /// Nothing counted yet.
    pub fn new(config: &ForwardConfig) -> ForwardMetrics {
        ForwardMetrics {
            config: config.clone(),
            counts: Counts::default(),
            started: Instant::now(),
            held: AtomicUsize::new(0),
            destination: AtomicUsize::new(0),
            last_reject: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    fn now(&self) -> Option<Duration> {
        Some(self.started.elapsed())
    }

    fn ago(&self, moment: &Moment) -> Option<Duration> {
        Some(self.started.elapsed().saturating_sub(moment.get()?))
    }

    /// `jobs` were delivered: their data took `bytes_in` from the source and `bytes_out` to the destination.
    pub fn delivered(&self, jobs: u64, bytes_in: u64, bytes_out: u64) {
        self.counts.jobs.add(jobs);
        self.counts.bytes_in.add(bytes_in);
        self.counts.bytes_out.add(bytes_out);
        self.counts.delivered.set(self.now());
        self.progressed();
    }

    /// `jobs` were confirmed this long after their grab.
    pub fn confirmed(&self, after: Duration, jobs: u64) {
        let after = after.as_millis() as u64;
        let bucket = CONFIRMATION_BUCKETS.iter().position(|&end| after <= end).unwrap_or(CONFIRMATION_BUCKETS.len());
        self.counts.confirmations.iter().skip(bucket).take(1).for_each(|bucket| bucket.add(jobs));
        self.counts.confirmation_milliseconds.add(after.saturating_mul(jobs));
    }

    /// The destination took a job or answered a probe.
    pub fn progressed(&self) {
        self.counts.progress.set(self.now());
    }

    /// A job was undeliverable, and went to the reject queue or was failed.
    pub fn rejected(&self, reason: &str) {
        self.counts.rejected.add(1);
        *self.last_reject.lock() = Some(Reject { reason: reason.to_owned(), at: Instant::now() });
        self.failed();
    }

    /// A job was failed.
    pub fn failed(&self) {
        self.counts.errors.add(1);
    }

    /// Jobs were dropped because of their age.
    pub fn expired(&self, jobs: u64) {
        self.counts.expired.add(jobs);
        self.progressed();
    }

    /// The forward holds this many jobs now.
    pub fn set_held(&self, held: usize) {
        if self.held.swap(held, Ordering::Relaxed) == 0 && held > 0 {
            self.counts.held_since.set(self.now());
        }
    }

    /// When the oldest job that is held came.
    pub fn set_oldest_held(&self, came: Option<Instant>) {
        self.counts.oldest_held.set(came.map(|came| came.saturating_duration_since(self.started)));
    }

    /// Jobs that were held go back to the source and wait there.
    pub fn given_back(&self, jobs: u64) {
        let waiting = &self.counts.waiting;
        waiting.set(Some(waiting.get().unwrap_or(0).saturating_add(jobs)));
    }

    /// A session began, with both servers connected, or ended.
    pub fn set_connected(&self, connected: bool) {
        self.counts.sessions.add(u64::from(connected));
    }

    /// The forward uses the destination at this place of its list.
    pub fn set_destination(&self, index: usize) {
        self.destination.store(index, Ordering::Relaxed);
    }

    /// The place of the destination in use, and its address.
    pub fn destination(&self) -> (usize, &Address) {
        let index = self.destination.load(Ordering::Relaxed);
        self.config.destinations.get(index).map_or((0, self.config.first_destination()), |address| (index, address))
    }

    /// A server is unavailable; the first sign's time stays until [`Self::recovered`]. `true` when that is news: a new
    /// trouble or another reason.
    pub fn troubled(&self, server: &Server, reason: &str) -> bool {
        let mut troubles = self.troubles.lock();
        let trouble =
            troubles.entry(server.clone()).or_insert_with(|| Trouble { reason: String::new(), since: Instant::now() });
        let news = trouble.reason != reason;
        if news {
            reason.clone_into(&mut trouble.reason);
        }
        news
    }

    /// A server is available again; the trouble that it was in.
    pub fn recovered(&self, server: &Server) -> Option<Trouble> {
        self.troubles.lock().remove(server)
    }

    pub fn last_reject(&self) -> Option<Reject> {
        self.last_reject.lock().clone()
    }

    /// How long ago the last job was delivered.
    pub fn last_delivery(&self) -> Option<Duration> {
        self.ago(&self.counts.delivered)
    }

    /// Jobs held unacknowledged now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How long the oldest job has been held.
    pub fn oldest_held(&self) -> Option<Duration> {
        self.ago(&self.counts.oldest_held)
    }

    /// Whether there has ever been a session.
    pub fn has_worked(&self) -> bool {
        self.counts.sessions.get() > 0
    }

    pub fn state(&self) -> State {
        match self.troubles().is_empty() {
            false => State::Failed,
            true if self.has_worked() => State::Working,
            true => State::Connecting,
        }
    }

    /// The unavailable servers. A forward that holds jobs without progress, or has never connected, is in trouble with its
    /// destination, whatever its sockets say.
    pub fn troubles(&self) -> BTreeMap<Server, Trouble> {
        let mut troubles = self.troubles.lock().clone();
        let silent = if self.has_worked() {
            self.stalled().map(|time| (format!("no progress for {} s", time.as_secs()), time))
        } else {
            let time = Some(self.started.elapsed()).filter(|&time| time >= CONNECTING_FOR && troubles.is_empty());
            time.map(|time| (String::from("not connected yet"), time))
        };
        if let Some((reason, time)) = silent {
            let now = Instant::now();
            let since = now.checked_sub(time).unwrap_or(now);
            troubles.entry(self.destination().1.server.clone()).or_insert(Trouble { reason, since });
        }
        troubles
    }

    fn stalled(&self) -> Option<Duration> {
        let silent = self.ago(&self.counts.held_since)?.min(self.ago(&self.counts.progress).unwrap_or(Duration::MAX));
        (self.held() > 0 && silent >= STALLED_AFTER).then_some(silent)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Place, Priority};
    use crate::stages::Stages;

    /// A forward that has never connected, from `HOST:PORT/QUEUE` to another; text of no address will do.
    pub(crate) fn forward(source: &str, destination: &str) -> Arc<ForwardMetrics> {
        let address = |text: &str| {
            let (server, queue) = text.split_once('/').unwrap();
            let (host, port) = server.rsplit_once(':').unwrap();
            let server = Server { host: host.to_owned(), port: port.parse().unwrap() };
            Address { server, queue: queue.to_owned() }
        };
        Arc::new(ForwardMetrics::new(&ForwardConfig {
            place: Place { file: Arc::new("proxy.conf".into()), line: 1 },
            source: address(source),
            destinations: vec![address(destination)],
            stages: Stages::default(),
            asynchronous: true,
            workers: 1,
            prefetch: 1,
            prefetch_is_explicit: false,
            priority: Priority::Normal,
            timeout: None,
            max_age: None,
            reject_queue: None,
        }))
    }

    fn older(mut forward: Arc<ForwardMetrics>, by: Duration) -> Arc<ForwardMetrics> {
        let metrics = Arc::get_mut(&mut forward).unwrap();
        metrics.started = metrics.started.checked_sub(by).unwrap();
        forward
    }

    fn reasons(forward: &ForwardMetrics) -> Vec<String> {
        forward.troubles().into_values().map(|trouble| trouble.reason).collect()
    }

    #[test]
    fn a_forward_that_never_connects_is_connecting_at_first_and_then_failed() {
        let young = forward("a:1/q", "b:1/q");
        assert_eq!(young.state(), State::Connecting);
        let old = older(forward("a:1/q", "b:1/q"), CONNECTING_FOR);
        assert_eq!((old.state(), reasons(&old)), (State::Failed, vec![String::from("not connected yet")]));
        old.troubled(&old.config.source.server, "connection refused");
        assert_eq!(reasons(&old), ["connection refused"]);
        old.recovered(&old.config.source.server);
        old.set_connected(true);
        assert_eq!((old.state(), reasons(&old)), (State::Working, vec![]));
    }

    #[test]
    fn a_forward_that_holds_jobs_without_progress_has_failed() {
        let stuck = forward("a:1/q", "b:1/q");
        stuck.set_connected(true);
        stuck.set_held(1);
        assert_eq!(stuck.state(), State::Working);
        let stuck = older(stuck, STALLED_AFTER + Duration::from_secs(1));
        assert_eq!((stuck.state(), reasons(&stuck)), (State::Failed, vec![String::from("no progress for 60 s")]));
        stuck.progressed();
        assert_eq!(stuck.state(), State::Working);
    }

    #[test]
    fn sessions_are_counted_at_their_begin() {
        let forward = forward("a:1/q", "b:1/q");
        assert!(!forward.has_worked());
        for (connected, sessions) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
            forward.set_connected(connected);
            assert_eq!(forward.counts.sessions.get(), sessions);
        }
        assert!(forward.has_worked());
    }

    #[test]
    fn confirmations_are_counted_by_their_time() {
        let forward = forward("a:1/q", "b:1/q");
        for (milliseconds, jobs) in [(0, 1), (5, 1), (6, 2), (120_000, 3), (120_001, 4)] {
            forward.confirmed(Duration::from_millis(milliseconds), jobs);
        }
        let counts: Vec<u64> = forward.counts.confirmations.iter().map(Counter::get).collect();
        assert_eq!(counts, [2, 2, 0, 0, 0, 0, 0, 3, 4]);
        assert_eq!(forward.counts.confirmation_milliseconds.get(), 5 + 12 + 360_000 + 480_004);
    }

    #[test]
    fn the_first_failed_reload_tells_since_when() {
        let metrics = Metrics::default();
        metrics.set_configuration_wrong(true);
        let since = metrics.configuration_wrong();
        assert!(since.is_some());
        metrics.set_configuration_wrong(true);
        assert_eq!(metrics.configuration_wrong(), since);
        metrics.set_configuration_wrong(false);
        assert_eq!(metrics.configuration_wrong(), None);
    }
}
