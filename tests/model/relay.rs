//! What is put between the two servers of a schedule: the real forward, or one that is known to be wrong.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use gearman_proxy::config::ForwardConfig;
use gearman_proxy::forward::{Forward, Settings, Timing};
use gearman_proxy::metrics::ForwardMetrics;

pub trait Relay: Any {
    fn stop(&self);
    fn join(self: Box<Self>);
}

/// Starts a relay: its configuration, the largest job, its durations and whom it succeeds.
pub type Start = fn(&ForwardConfig, usize, &Scale, Option<Box<dyn Relay>>) -> Box<dyn Relay>;

/// The forward's durations, shortened so that a schedule has time for everything that takes half a minute otherwise.
#[derive(Debug, Clone)]
pub struct Scale {
    pub answer: Duration,
    pub greeting: Duration,
    pub release: Duration,
    pub stop: Duration,
    pub last_replies: Duration,
    pub farewell: Duration,
}

impl Default for Scale {
    fn default() -> Scale {
        Scale {
            answer: Duration::from_millis(200),
            greeting: Duration::from_millis(150),
            release: Duration::from_millis(300),
            stop: Duration::from_millis(300),
            last_replies: Duration::from_millis(150),
            farewell: Duration::from_millis(150),
        }
    }
}

/// Far longer than a busy machine keeps a thread from running.
const PATIENCE: Duration = Duration::from_secs(20);

impl Scale {
    /// No server is lost but by a fault.
    pub fn patient(&mut self) {
        self.answer = PATIENCE;
        self.greeting = PATIENCE;
        self.stop = PATIENCE;
        self.last_replies = PATIENCE;
        self.farewell = PATIENCE;
    }

    /// Nor are jobs given back.
    pub fn hold(&mut self) {
        self.patient();
        self.release = 5 * PATIENCE;
    }

    pub fn timing(&self) -> Timing {
        Timing {
            connect: Duration::from_millis(500),
            greeting: self.greeting,
            answer: self.answer,
            backoff: Duration::from_millis(5),
            longest_backoff: Duration::from_millis(60),
            longest_refusal_backoff: Duration::from_millis(20),
            release: self.release,
            probe: Duration::from_millis(100),
            job_probe: Duration::from_millis(60),
            stop: self.stop,
            last_replies: self.last_replies,
            farewell: self.farewell,
            discard: Duration::from_millis(500),
        }
    }
}

impl Relay for Forward {
    fn stop(&self) {
        Forward::stop(self);
    }

    fn join(self: Box<Self>) {
        Forward::join(*self);
    }
}

/// The program's own forward.
pub fn forward(
    config: &ForwardConfig,
    max_job_size: usize,
    scale: &Scale,
    predecessor: Option<Box<dyn Relay>>,
) -> Box<dyn Relay> {
    let settings = Settings { max_job_size, timing: scale.timing(), ..Settings::default() };
    let predecessor = predecessor.map(|relay| {
        let relay: Box<dyn Any> = relay;
        *relay.downcast::<Forward>().unwrap()
    });
    Box::new(Forward::start(settings, Arc::new(ForwardMetrics::new(config)), predecessor).unwrap())
}
