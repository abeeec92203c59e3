//! How many jobs wait at the servers of the forwards: asked in the background, never while answering.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::config::{Address, Server};
use crate::gearman::admin;
use crate::gearman::connection::Limits;
use crate::latch::Latch;
use crate::metrics::{ForwardMetrics, Metrics, State};

/// How often the servers are asked.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits { connect: Duration::from_secs(2), answer: Duration::from_secs(2) };

/// What a thread that asks one server needs, bytes.
const STACK_SIZE: usize = 128 << 10;

/// Which of a forward's queues is meant.
#[derive(Debug, Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Asks the servers. Each is asked by a thread of its own, so that one that hangs delays none of the others.
#[derive(Debug)]
pub(super) struct Sampler {
    stop: Latch,
    asking: BTreeMap<Server, JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn new(stop: Latch) -> Sampler {
        Sampler { stop, asking: BTreeMap::new() }
    }

    /// Begins a round; the answers come into the metrics as they arrive. The sources of failed forwards are asked, or `all`
    /// forwards' sources and destinations.
    pub(super) fn round(&mut self, metrics: &Metrics, all: bool) {
        let mut questions: BTreeMap<Server, Vec<(String, End, Arc<ForwardMetrics>)>> = BTreeMap::new();
        let mut ask = |address: &Address, end, forward: &Arc<ForwardMetrics>| {
            let Address { server, queue } = address.clone();
            questions.entry(server).or_default().push((queue, end, Arc::clone(forward)));
        };
        for forward in metrics.forwards() {
            if all || forward.state() == State::Failed {
                ask(&forward.config.source, End::Source, &forward);
            } else {
                forward.set_waiting(None);
            }
            if all {
                ask(forward.destination().1, End::Destination, &forward);
            }
        }
        self.asking.retain(|_, thread| !thread.is_finished());
        for (server, questions) in questions {
            if self.asking.contains_key(&server) {
                continue;
            }
            let (there, stop) = (server.clone(), self.stop.clone());
            let builder = thread::Builder::new().name(String::from("backlog")).stack_size(STACK_SIZE);
            match builder.spawn(move || answer(&there, &questions, &stop)) {
                Ok(thread) => drop(self.asking.insert(server, thread)),
                Err(error) => log::debug!("backlog at {server} not asked: no thread: {error}"),
            }
        }
    }
}

/// Asks one server for all that is to be known of it.
fn answer(server: &Server, questions: &[(String, End, Arc<ForwardMetrics>)], stop: &Latch) {
    let wanted: BTreeSet<&str> = questions.iter().map(|(queue, ..)| queue.as_str()).collect();
    let mut waiting = BTreeMap::new();
    let answer = admin::each_queue(server, &LIMITS, stop, |queue, status| {
        if let Some(&queue) = wanted.get(queue) {
            waiting.insert(queue, status.waiting());
        }
    });
    if let Err(error) = &answer {
        log::debug!("backlog at {server} unknown: {error}");
    }
    for (queue, end, forward) in questions {
        // A queue that the server doesn't name is empty.
        let jobs = answer.is_ok().then(|| waiting.get(queue.as_str()).copied().unwrap_or(0));
        match end {
            End::Source => forward.set_waiting(jobs),
            End::Destination => forward.set_waiting_there(jobs),
        }
    }
}
