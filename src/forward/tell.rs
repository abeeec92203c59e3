//! What a relay tells, as counters and lines of the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, warn};
use parking_lot::Mutex;

use crate::config::{ForwardConfig, Server};
use crate::logging::{Limiter, escaped};
use crate::metrics::ForwardMetrics;
use crate::outages::{Lost, Outages};
use crate::relay::{Cause, Reason, Tell};

/// Longer than any message waits for others like it.
const END: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Teller {
    metrics: Arc<ForwardMetrics>,
    outages: Arc<Mutex<Outages>>,
    /// `SOURCE = DESTINATION`, as lines name the forward.
    name: String,
    max_job_size: usize,
    began: AtomicBool,
    /// By [`Often`].
    limiters: Mutex<[Limiter; 4]>,
    /// One of them holds something back.
    untold: AtomicBool,
}

/// What may have to be told of each job, and is told once a second at most.
#[derive(Clone, Copy)]
enum Often {
    Rejected,
    Expired,
    OddId,
    Strange,
}

/// What each of them says of the jobs that it was not told of.
const UNTOLD: [&str; 4] = [
    "undeliverable or failed",
    "older than max_age dropped",
    "without a usable unique id from uniq_callback",
    "unknown to the source at their end",
];

impl Teller {
    pub fn new(outages: Arc<Mutex<Outages>>, metrics: Arc<ForwardMetrics>, max_job_size: usize) -> Teller {
        let config = &metrics.config;
        let destinations: Vec<String> = config.destinations.iter().map(ToString::to_string).collect();
        let name = format!("{} = {}", config.source, destinations.join(", "));
        let (began, untold) = (AtomicBool::new(false), AtomicBool::new(false));
        Teller { metrics, outages, name, max_job_size, began, limiters: Mutex::default(), untold }
    }

    pub fn metrics(&self) -> &Arc<ForwardMetrics> {
        &self.metrics
    }

    /// The outcome of `uniq_callback` could not be used.
    pub fn odd_id(&self, warning: &str) {
        self.say(Often::OddId, Level::Warn, || format!("uniq_callback of forward {}: {warning}", self.name));
    }

    /// Whether there are messages that were not written.
    pub fn has_untold(&self) -> bool {
        self.untold.load(Ordering::Relaxed)
    }

    /// Tells how many messages were not written, when they have stopped coming.
    pub fn look(&self, now: Instant) {
        let mut limiters = self.limiters.lock();
        for (limiter, what) in limiters.iter_mut().zip(UNTOLD) {
            if let Some(more) = limiter.due(now) {
                info!("forward {}: {} {what}", self.name, counted(more).replacen(' ', " more ", 1));
            }
        }
        self.untold.store(limiters.iter().any(Limiter::holds_back), Ordering::Relaxed);
    }

    /// A line about one job, unless there was one like it within this second.
    fn say(&self, what: Often, level: Level, text: impl FnOnce() -> String) {
        match self.admit(what, 1) {
            None => {}
            Some(0) => log!(level, "{}", text()),
            Some(more) => log!(level, "{} (and {more} more like this)", text()),
        }
    }

    /// How many were before these in lines that were not written, if there is to be one now.
    fn admit(&self, what: Often, jobs: u64) -> Option<u64> {
        let admitted = self.limiters.lock()[what as usize].admit(Instant::now(), jobs);
        if admitted.is_none() {
            self.untold.store(true, Ordering::Relaxed);
        }
        admitted
    }

    fn lost(&self, server: &Server, role: &'static str, cause: &Cause, next: String) {
        self.metrics.troubled(server, &cause.text);
        let reason = match cause.advice {
            Some(advice) => format!("{} ({advice})", cause.text),
            None => cause.text.clone(),
        };
        let forward = self.name.clone();
        let lost = Lost { server: server.to_string(), role, kind: cause.kind, reason, forward, next };
        self.outages.lock().lost(&lost, Instant::now());
    }

    fn back(&self, server: &Server) {
        self.metrics.recovered(server);
        let waiting = self.metrics.counts.lock().waiting.unwrap_or(0);
        self.outages.lock().back(&server.to_string(), &self.name, waiting, Instant::now());
    }

    pub fn tell(&self, tell: Tell) {
        let ForwardConfig { source, destinations, reject_queue, .. } = &self.metrics.config;
        let destination = |index: usize| destinations.get(index).map_or(&source.server, |address| &address.server);
        match tell {
            Tell::Relaying { after } => {
                self.metrics.counts.lock().sessions += 1;
                self.back(&source.server);
                if after.is_none() && !self.began.swap(true, Ordering::Relaxed) {
                    self.outages.lock().began(&source.server.to_string(), &self.name, Instant::now());
                } else {
                    debug!("forwarding {} again", self.name);
                }
            }
            Tell::Apart => {}
            Tell::SourceLost { cause, retry } => {
                self.lost(&source.server, "source", &cause, format!("trying again in {}", seconds(retry)));
            }
            Tell::DestinationLost { destination: index, cause, alone, held, retry, release } => {
                let (server, retry) = (destination(index), format!("trying again in {}", seconds(retry)));
                match release {
                    _ if alone => debug!("a submitter of {} lost {server}: {}; {retry}", self.name, cause.text),
                    Some(release) if held > 0 => {
                        let next = format!("holding {held} jobs for {}, {retry}", seconds(release));
                        self.lost(server, "destination", &cause, next);
                    }
                    _ => self.lost(server, "destination", &cause, retry),
                }
            }
            Tell::DestinationBack { destination: index, .. } => {
                self.back(destination(index));
                // The others are not used now.
                for other in destinations {
                    self.metrics.recovered(&other.server);
                }
            }
            Tell::Switched { destination: index, released } => {
                self.metrics.counts.lock().destination = index;
                // While none of them can be connected, each is tried in turn.
                let level = if released { Level::Info } else { Level::Debug };
                if let Some(address) = destinations.get(index) {
                    log!(level, "forward {}: trying {address} next", self.name);
                }
            }
            Tell::RejecterLost { cause, held, retry } => {
                if let Some(address) = reject_queue {
                    let next = format!("holding {held} undeliverable jobs, trying again in {}", seconds(retry));
                    self.lost(&address.server, "reject queue", &cause, next);
                }
            }
            Tell::RejecterBack { .. } => reject_queue.iter().for_each(|address| self.back(&address.server)),
            Tell::GivenBack { jobs } => {
                self.metrics.given_back(jobs as u64);
                debug!("returning {jobs} unacknowledged jobs to {source}");
            }
            Tell::Delivered { jobs, bytes_in, bytes_out, waited } => {
                self.metrics.delivered(jobs, bytes_in, bytes_out);
                self.metrics.confirmed(waited / u32::try_from(jobs).unwrap_or(u32::MAX), jobs);
                debug!("{jobs} jobs of {} delivered", self.name);
            }
            Tell::Progress => self.metrics.progressed(),
            Tell::Rejected { handle, reason, moved } => self.rejected(&handle, &reason, moved),
            Tell::Failed { handle, reason } => {
                self.metrics.counts.lock().errors += 1;
                let (handle, reason) = (escaped(&handle), self.words(&reason));
                self.say(Often::Rejected, Level::Warn, || {
                    format!("job {handle} of forward {} failed: {reason}", self.name)
                });
            }
            Tell::Expired { jobs } => {
                self.metrics.expired(jobs);
                if let Some(more) = self.admit(Often::Expired, jobs) {
                    info!("forward {}: {} older than max_age dropped", self.name, counted(jobs + more));
                }
            }
            Tell::SourceError => self.say(Often::Strange, Level::Debug, || {
                format!("{source} does not know a job that forward {} ended", self.name)
            }),
            Tell::Restarted => warn!("{source} was restarted under the same process id; its jobs get new unique ids"),
            Tell::Stopped { left } => {
                // What was not told yet is told now.
                self.look(Instant::now() + END);
                self.outages.lock().gone(&self.name);
                match left {
                    0 => debug!("forward {} stopped", self.name),
                    _ => warn!("forward {} stopped; {left} unacknowledged jobs return to the source", self.name),
                }
            }
        }
    }

    fn rejected(&self, handle: &[u8], reason: &Reason, moved: bool) {
        let reason = self.words(reason);
        self.metrics.rejected(&reason);
        let fate = match &self.metrics.config.reject_queue {
            Some(address) if moved => format!("moved to {address}"),
            _ => String::from("failed"),
        };
        self.say(Often::Rejected, Level::Warn, || {
            format!("job {} of forward {} is undeliverable: {reason}; {fate}", escaped(handle), self.name)
        });
    }

    /// Also for the status: printable ASCII without `|`, `'` and brackets, 80 bytes at most.
    fn words(&self, reason: &Reason) -> String {
        match reason {
            Reason::Stage(undeliverable) => undeliverable.to_string(),
            Reason::TooLarge { size } => format!("{size} bytes of data, max_job_size is {}", self.max_job_size),
            Reason::Refused(code) => format!("the destination refused it with {code}"),
            Reason::Poison => String::from("the destination closed the connection each time it came"),
            Reason::Timeout => match self.metrics.config.timeout {
                Some(timeout) => format!("no result within {}", seconds(timeout)),
                None => String::from("no result in time"),
            },
            Reason::Lost(cause) => format!("{}, at the last try", cause.text),
        }
    }
}

fn counted(jobs: u64) -> String {
    if jobs == 1 { String::from("1 job") } else { format!("{jobs} jobs") }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}
