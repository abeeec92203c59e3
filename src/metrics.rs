//! What the forwards have done and how they are: written by their threads, read by the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::{ForwardConfig, Server};

/// A forward that holds jobs and has made no progress for this long is a failed one, whatever its sockets say.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);

/// All forwards of the process, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Metrics {
    forwards: Mutex<Vec<Arc<ForwardMetrics>>>,
}

impl Metrics {
    /// The forwards as they are now.
    pub fn forwards(&self) -> Vec<Arc<ForwardMetrics>> {
        self.forwards.lock().clone()
    }

    /// Replaces the list, at start and after a reload.
    pub fn set_forwards(&self, forwards: Vec<Arc<ForwardMetrics>>) {
        *self.forwards.lock() = forwards;
    }
}

/// Why a server can't be worked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Own words in printable ASCII, without brackets, quotes and bars, at most 80 bytes.
    pub reason: String,
    /// The first sign of it.
    pub since: Instant,
}

/// What one forward counts.
#[derive(Debug)]
pub struct ForwardMetrics {
    /// The forward that this is about.
    pub config: ForwardConfig,
    started: Instant,
    jobs: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    rejected: AtomicU64,
    errors: AtomicU64,
    /// Milliseconds after `started`; 0 for never.
    rejected_at: AtomicU64,
    /// Jobs taken from the source and neither acknowledged nor given back.
    held: AtomicUsize,
    /// Milliseconds after `started` when `held` last left 0.
    held_since: AtomicU64,
    /// Milliseconds after `started` of the last delivery or answered probe.
    progress: AtomicU64,
    /// Whether a session is on: jobs can come.
    connected: AtomicU64,
    troubles: Mutex<BTreeMap<Server, Trouble>>,
}

impl ForwardMetrics {
    /// Nothing counted yet.
    pub fn new(config: &ForwardConfig) -> ForwardMetrics {
        ForwardMetrics {
            config: config.clone(),
            started: Instant::now(),
            jobs: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            rejected_at: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            held_since: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            troubles: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        (self.started.elapsed().as_millis() as u64).max(1)
    }

    fn ago(&self, moment: u64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(moment))
    }

    /// `jobs` were delivered: their data took `bytes_in` from the source and `bytes_out` to the destination.
    pub fn delivered(&self, jobs: u64, bytes_in: u64, bytes_out: u64) {
        self.jobs.fetch_add(jobs, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        self.progressed();
    }

    /// The destination took a job or answered a probe.
    pub fn progressed(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    /// A job was undeliverable, and went to the reject queue or was failed.
    pub fn rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.rejected_at.store(self.now(), Ordering::Relaxed);
        self.failed();
    }

    /// A job was failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The forward holds this many jobs now.
    pub fn set_held(&self, held: usize) {
        if self.held.swap(held, Ordering::Relaxed) == 0 && held > 0 {
            self.held_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A session began, with both servers connected, or ended.
    pub fn set_connected(&self, connected: bool) {
        self.connected.store(if connected { self.now() } else { 0 }, Ordering::Relaxed);
    }

    /// A server can't be worked with; the first sign's time stays until [`Self::recovered`]. `true` when that is news:
    /// a new trouble or another reason.
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

    /// A server can be worked with again; the trouble that it was in.
    pub fn recovered(&self, server: &Server) -> Option<Trouble> {
        self.troubles.lock().remove(server)
    }

    /// Jobs delivered.
    pub fn jobs(&self) -> u64 {
        self.jobs.load(Ordering::Relaxed)
    }

    /// Bytes of delivered jobs as they came.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes of delivered jobs as they went.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// Undeliverable jobs.
    pub fn rejects(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Jobs that were rejected or failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// How long ago the last job was rejected.
    pub fn last_reject(&self) -> Option<Duration> {
        match self.rejected_at.load(Ordering::Relaxed) {
            0 => None,
            moment => Some(self.ago(moment)),
        }
    }

    /// Jobs held unacknowledged now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How long the session has been on; `None` while there is none.
    pub fn connected(&self) -> Option<Duration> {
        match self.connected.load(Ordering::Relaxed) {
            0 => None,
            moment => Some(self.ago(moment)),
        }
    }

    /// The servers that can't be worked with. A forward that holds jobs without progress is in trouble with its
    /// destination, whatever its sockets say.
    pub fn troubles(&self) -> BTreeMap<Server, Trouble> {
        let mut troubles = self.troubles.lock().clone();
        if let Some(stalled) = self.stalled() {
            let now = Instant::now();
            troubles.entry(self.config.first_destination().server.clone()).or_insert_with(|| Trouble {
                reason: format!("no progress for {} s", stalled.as_secs()),
                since: now.checked_sub(stalled).unwrap_or(now),
            });
        }
        troubles
    }

    fn stalled(&self) -> Option<Duration> {
        if self.held() == 0 {
            return None;
        }
        let since = self.progress.load(Ordering::Relaxed).max(self.held_since.load(Ordering::Relaxed));
        let stalled = self.ago(since);
        (stalled >= STALLED_AFTER).then_some(stalled)
    }
}
