//! What the forwards have done and how they are: written by their threads, read by the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::config::{Address, ForwardConfig, Server};

/// A forward that holds jobs and has made no progress for this long is a failed one, whatever its sockets say.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);

/// A forward that has not connected for the first time after this long is a failed one.
pub const CONNECTING_FOR: Duration = Duration::from_secs(10);

/// Over less time than this no rate is told.
const RATE_OVER: Duration = Duration::from_millis(500);

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
    pattern_troubles: Mutex<Troubles>,
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

    /// A reload failed or succeeded. The first failure's time stays.
    pub fn set_configuration_wrong(&self, wrong: bool) {
        let mut since = self.configuration_wrong.lock();
        *since = wrong.then(|| since.unwrap_or_else(SystemTime::now));
    }

    /// The patterns that match too many queues.
    pub fn pattern_errors(&self) -> Vec<String> {
        self.pattern_errors.lock().iter().map(|(server, error)| format!("{server}: {error}")).collect()
    }

    /// A server was asked which queues it has for patterns: whether too many matched, or why there was no answer.
    pub fn set_patterns(&self, server: &Server, asked: Result<Option<String>, &str>) {
        match asked {
            Ok(too_many) => {
                self.pattern_troubles.lock().remove(server);
                let mut errors = self.pattern_errors.lock();
                errors.remove(server);
                errors.extend(too_many.map(|error| (server.clone(), error)));
            }
            Err(reason) => note(&mut self.pattern_troubles.lock(), server, reason),
        }
    }

    /// The servers that do not tell which queues they have for patterns.
    pub fn pattern_troubles(&self) -> Troubles {
        self.pattern_troubles.lock().clone()
    }

    /// The patterns are others: their servers are asked again.
    pub fn clear_patterns(&self) {
        self.pattern_errors.lock().clear();
        self.pattern_troubles.lock().clear();
    }
}

/// The unavailable servers.
pub type Troubles = BTreeMap<Server, Trouble>;

/// Why a server is unavailable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Own words in printable ASCII, without brackets, quotes and bars, at most 80 bytes.
    pub reason: String,
    /// The first sign of it.
    pub since: Instant,
}

/// A server is unavailable for this reason; the first sign's time stays.
fn note(troubles: &mut Troubles, server: &Server, reason: &str) {
    let since = troubles.get(server).map_or_else(Instant::now, |trouble| trouble.since);
    troubles.insert(server.clone(), Trouble { reason: reason.to_owned(), since });
}

/// How a forward is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Working,
    /// It has never been connected, and is not known to be in trouble.
    Connecting,
    Failed,
}

/// The last undeliverable job.
#[derive(Debug, Clone)]
pub struct Reject {
    pub reason: String,
    pub at: Instant,
}

/// What one forward has counted, and what is known of it.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Jobs delivered, and their bytes as they came and as they went.
    pub jobs: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Undeliverable jobs.
    pub rejected: u64,
    /// Jobs that were rejected or failed.
    pub errors: u64,
    /// Jobs dropped because they were older than `max_age`.
    pub expired: u64,
    /// Times that both servers were connected.
    pub sessions: u64,
    /// Jobs confirmed by the time since their grab: a count for each of [`CONFIRMATION_BUCKETS`] and one above.
    pub confirmations: [u64; CONFIRMATION_BUCKETS.len() + 1],
    /// The sum of these times.
    pub confirmation_milliseconds: u64,
    /// Jobs waiting at the source and at the destination when they were last asked.
    pub waiting: Option<u64>,
    pub waiting_there: Option<u64>,
    /// Jobs taken from the source and neither acknowledged nor given back.
    pub held: usize,
    /// When the oldest of them came.
    pub oldest_held: Option<Instant>,
    /// Since when there is one.
    held_since: Option<Instant>,
    /// The last delivery.
    pub delivered: Option<Instant>,
    /// The last sign of life of a destination that has something to do.
    progress: Option<Instant>,
    /// The place of the destination in use among the configured ones.
    pub destination: usize,
    pub last_reject: Option<Reject>,
    /// When rates were last asked for, with the jobs and bytes until then, and what they were, a second.
    rated: Option<(Instant, u64, u64)>,
    rates: Option<(f64, f64)>,
    pub(crate) troubles: Troubles,
}

impl Counts {
    /// Jobs and bytes sent a second since the last question, none at the first; after less than half of one the same again.
    pub fn rates(&mut self, now: Instant) -> Option<(f64, f64)> {
        let (last, jobs, bytes) = *self.rated.get_or_insert((now, self.jobs, self.bytes_out));
        let elapsed = now.saturating_duration_since(last);
        if elapsed >= RATE_OVER {
            let rate = |now: u64, before: u64| (now - before) as f64 / elapsed.as_secs_f64();
            self.rates = Some((rate(self.jobs, jobs), rate(self.bytes_out, bytes)));
            self.rated = Some((now, self.jobs, self.bytes_out));
        }
        self.rates
    }
}

/// One forward's counts and state.
#[derive(Debug)]
pub struct ForwardMetrics {
    /// The forward that this is about.
    pub config: ForwardConfig,
    pub counts: Mutex<Counts>,
    started: Instant,
}

impl ForwardMetrics {
    /// Nothing counted yet.
    pub fn new(config: &ForwardConfig) -> ForwardMetrics {
        ForwardMetrics { config: config.clone(), counts: Mutex::default(), started: Instant::now() }
    }

    /// `jobs` were delivered: their data took `bytes_in` from the source and `bytes_out` to the destination.
    pub fn delivered(&self, jobs: u64, bytes_in: u64, bytes_out: u64) {
        let mut counts = self.counts.lock();
        counts.jobs += jobs;
        counts.bytes_in += bytes_in;
        counts.bytes_out += bytes_out;
        counts.delivered = Some(Instant::now());
        counts.progress = counts.delivered;
    }

    /// `jobs` were confirmed this long after their grab.
    pub fn confirmed(&self, after: Duration, jobs: u64) {
        let after = after.as_millis() as u64;
        let mut counts = self.counts.lock();
        let ends = CONFIRMATION_BUCKETS.into_iter().chain([u64::MAX]);
        if let Some((bucket, _)) = counts.confirmations.iter_mut().zip(ends).find(|&(_, end)| after <= end) {
            *bucket += jobs;
        }
        counts.confirmation_milliseconds += after.saturating_mul(jobs);
    }

    /// The destination took a job or answered a probe.
    pub fn progressed(&self) {
        self.counts.lock().progress = Some(Instant::now());
    }

    /// A job was undeliverable, and went to the reject queue or was failed.
    pub fn rejected(&self, reason: &str) {
        let mut counts = self.counts.lock();
        counts.rejected += 1;
        counts.errors += 1;
        counts.last_reject = Some(Reject { reason: reason.to_owned(), at: Instant::now() });
    }

    /// Jobs were dropped because of their age.
    pub fn expired(&self, jobs: u64) {
        let mut counts = self.counts.lock();
        counts.expired += jobs;
        counts.progress = Some(Instant::now());
    }

    /// The forward holds this many jobs now.
    pub fn set_held(&self, held: usize) {
        let mut counts = self.counts.lock();
        if counts.held == 0 && held > 0 {
            counts.held_since = Some(Instant::now());
        }
        counts.held = held;
    }

    /// Jobs that were held go back to the source and wait there.
    pub fn given_back(&self, jobs: u64) {
        let waiting = &mut self.counts.lock().waiting;
        *waiting = Some(waiting.unwrap_or(0).saturating_add(jobs));
    }

    /// The destination in use.
    pub fn destination(&self) -> &Address {
        let index = self.counts.lock().destination;
        self.config.destinations.get(index).unwrap_or(self.config.first_destination())
    }

    /// A server is unavailable; the first sign's time stays until [`Self::recovered`].
    pub fn troubled(&self, server: &Server, reason: &str) {
        note(&mut self.counts.lock().troubles, server, reason);
    }

    /// A server is available again.
    pub fn recovered(&self, server: &Server) {
        self.counts.lock().troubles.remove(server);
    }

    pub fn state(&self) -> State {
        match self.troubles().is_empty() {
            false => State::Failed,
            true if self.counts.lock().sessions > 0 => State::Working,
            true => State::Connecting,
        }
    }

    /// The unavailable servers. A forward that holds jobs without progress, or has never connected, is in trouble with its
    /// destination, whatever its sockets say.
    pub fn troubles(&self) -> Troubles {
        let Counts { sessions, held, held_since, progress, mut troubles, .. } = self.counts.lock().clone();
        let silent = if sessions == 0 {
            Some(self.started).filter(|since| troubles.is_empty() && since.elapsed() >= CONNECTING_FOR)
        } else {
            held_since.max(progress).filter(|since| held > 0 && since.elapsed() >= STALLED_AFTER)
        };
        if let Some(since) = silent {
            let reason = match sessions {
                0 => String::from("not connected yet"),
                _ => format!("no progress for {} s", since.elapsed().as_secs()),
            };
            troubles.entry(self.destination().server.clone()).or_insert(Trouble { reason, since });
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A forward that has never connected.
    fn forward() -> ForwardMetrics {
        let address = |text| Address::parse(text).unwrap();
        ForwardMetrics::new(&ForwardConfig::between(address("a:1/q"), address("b:1/q")))
    }

    fn older(mut forward: ForwardMetrics, by: Duration) -> ForwardMetrics {
        let counts = forward.counts.get_mut();
        for moment in [Some(&mut forward.started), counts.held_since.as_mut()].into_iter().flatten() {
            *moment = moment.checked_sub(by).unwrap();
        }
        forward
    }

    fn reasons(forward: &ForwardMetrics) -> Vec<String> {
        forward.troubles().into_values().map(|trouble| trouble.reason).collect()
    }

    #[test]
    fn a_forward_that_never_connects_is_connecting_at_first_and_then_failed() {
        let young = forward();
        assert_eq!(young.state(), State::Connecting);
        let old = older(forward(), CONNECTING_FOR);
        assert_eq!((old.state(), reasons(&old)), (State::Failed, vec![String::from("not connected yet")]));
        old.troubled(&old.config.source.server, "connection refused");
        assert_eq!(reasons(&old), ["connection refused"]);
        old.recovered(&old.config.source.server);
        old.counts.lock().sessions = 1;
        assert_eq!((old.state(), reasons(&old)), (State::Working, vec![]));
    }

    #[test]
    fn a_forward_that_holds_jobs_without_progress_has_failed() {
        let stuck = forward();
        stuck.counts.lock().sessions = 1;
        stuck.set_held(1);
        assert_eq!(stuck.state(), State::Working);
        let stuck = older(stuck, STALLED_AFTER);
        assert_eq!((stuck.state(), reasons(&stuck)), (State::Failed, vec![String::from("no progress for 60 s")]));
        stuck.progressed();
        assert_eq!(stuck.state(), State::Working);
    }

    #[test]
    fn rates_are_those_between_two_questions() {
        let (forward, now) = (forward(), Instant::now());
        let rates = |after: u64| forward.counts.lock().rates(now + Duration::from_millis(after));
        assert_eq!(rates(0), None);
        forward.delivered(30, 1, 6000);
        assert_eq!(rates(499), None);
        assert_eq!(rates(2000), Some((15.0, 3000.0)));
        assert_eq!(rates(2499), Some((15.0, 3000.0)));
        assert_eq!(rates(2500), Some((0.0, 0.0)));
    }

    #[test]
    fn confirmations_are_counted_by_their_time() {
        let forward = forward();
        for (milliseconds, jobs) in [(0, 1), (5, 1), (6, 2), (120_000, 3), (120_001, 4)] {
            forward.confirmed(Duration::from_millis(milliseconds), jobs);
        }
        let counts = forward.counts.lock();
        assert_eq!(counts.confirmations, [2, 2, 0, 0, 0, 0, 0, 3, 4]);
        assert_eq!(counts.confirmation_milliseconds, 5 + 12 + 360_000 + 480_004);
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
