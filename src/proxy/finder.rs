//! Finds the queues that patterns stand for: asks their servers every minute, on a thread of its own.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::{Address, Config, Found, Server};
use crate::gearman::admin;
use crate::gearman::connection::Limits;
use crate::latch::Latch;

const EVERY: Duration = Duration::from_secs(60);

const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

/// Names that are kept of a server's answer; more than these match no sensible pattern.
const MOST_NAMES: usize = 8192;

/// A forward that was found ends when its queue was not used for so long.
const UNUSED: Duration = Duration::from_secs(600);

/// What one server has for the patterns.
#[derive(Debug)]
pub struct Finding {
    pub server: Server,
    pub found: Found,
    /// The queues that matched and have a job, or a worker beside ours.
    pub used: Vec<String>,
}

/// The running thread; it ends soon after this is dropped.
#[derive(Debug)]
pub struct Finder {
    stop: Latch,
    findings: Receiver<Finding>,
    _thread: JoinHandle<()>,
}

impl Drop for Finder {
    fn drop(&mut self) {
        self.stop.set();
    }
}

impl Finder {
    /// Asks at once, and then every minute.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(config: Arc<Config>) -> io::Result<Finder> {
        let (send, findings) = bounded(16);
        let stop = Latch::default();
        let stopped = stop.clone();
        let work = move || run(&config, &send, &stopped);
        let thread = thread::Builder::new().name("finder".to_owned()).spawn(work)?;
        Ok(Finder { stop, findings, _thread: thread })
    }

    /// What came since the last call.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        self.findings.try_iter()
    }
}

fn run(config: &Config, send: &Sender<Finding>, stop: &Latch) {
    let mut servers: Vec<Server> = config.patterns.iter().map(|pattern| pattern.server.clone()).collect();
    servers.dedup();
    loop {
        for server in &servers {
            match ask(config, server, stop) {
                Ok(finding) => {
                    if send.send(finding).is_err() {
                        return;
                    }
                }
                // A server that is down is told by the forwards that use it, or has no queue to relay.
                Err(error) => log::debug!("{server} does not tell its queues: {error}"),
            }
        }
        if stop.wait(EVERY) {
            return;
        }
    }
}

fn ask(config: &Config, server: &Server, stop: &Latch) -> Result<Finding, crate::gearman::connection::ConnectionError> {
    let mut names = Vec::new();
    let mut used = Vec::new();
    let patterns = || config.patterns.iter().filter(|pattern| pattern.server == *server);
    admin::each_queue(server, &LIMITS, stop, |queue, status| {
        if names.len() < MOST_NAMES && patterns().any(|pattern| pattern.pattern.matches(queue)) {
            names.push(queue.to_owned());
            if status.total > 0 || status.workers > 1 {
                used.push(queue.to_owned());
            }
        }
    })?;
    let found = config.found_forwards(server, names.iter().map(String::as_str));
    Ok(Finding { server: server.clone(), found, used })
}

/// The forwards that were found, and when their queues were last used.
#[derive(Debug, Default)]
pub struct Known {
    last_used: HashMap<Address, Instant>,
}

impl Known {
    /// Takes in a finding: the forwards that there are to be for its server's patterns, in order of name.
    pub fn update(&mut self, finding: &Finding, now: Instant) -> Vec<crate::config::ForwardConfig> {
        for queue in &finding.used {
            self.last_used.insert(Address { server: finding.server.clone(), queue: queue.clone() }, now);
        }
        self.last_used.retain(|_, used| now.duration_since(*used) < UNUSED);
        let used = |address: &Address| self.last_used.contains_key(address);
        finding.found.forwards.iter().filter(|forward| used(&forward.source)).cloned().collect()
    }
}
