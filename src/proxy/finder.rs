//! Finds the queues that patterns stand for: asks their servers every minute, each on a thread of its own, so that one that
//! hangs delays no other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::{Address, Config, ForwardConfig, Found, Server};
use crate::gearman::admin;
use crate::gearman::connection::{ConnectionError, Limits};
use crate::latch::Latch;

const EVERY: Duration = Duration::from_secs(60);

/// A server that does not answer is asked again after this time: its queues are relayed soon after it is back.
pub const AGAIN: Duration = Duration::from_secs(5);

const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

/// Names that are kept of a server's answer; more than these match no sensible pattern.
const MOST_NAMES: usize = 8192;

/// A forward that was found ends when its queue was not used for so long.
const UNUSED: Duration = Duration::from_secs(600);

/// What one server has for the patterns.
#[derive(Debug, Default)]
pub struct Queues {
    pub found: Found,
    /// The queues that matched and have a job, or a worker beside ours.
    used: Vec<String>,
}

/// A server's answer, or why there is none.
#[derive(Debug)]
pub struct Finding {
    pub server: Server,
    pub queues: Result<Queues, ConnectionError>,
}

/// The running threads; they end soon after this is dropped.
#[derive(Debug)]
pub struct Finder {
    stop: Latch,
    findings: Receiver<Finding>,
    _threads: Vec<JoinHandle<()>>,
}

impl Drop for Finder {
    fn drop(&mut self) {
        self.stop.set();
    }
}

impl Finder {
    /// Asks the servers of all patterns at once, and then every minute.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(config: &Arc<Config>) -> io::Result<Finder> {
        let (send, findings) = bounded(16);
        let mut finder = Finder { stop: Latch::default(), findings, _threads: Vec::new() };
        let servers: BTreeSet<Server> = config.patterns.iter().map(|pattern| pattern.server.clone()).collect();
        for server in servers {
            let (config, send, stop) = (Arc::clone(config), send.clone(), finder.stop.clone());
            let work = move || run(&config, &server, &send, &stop);
            finder._threads.push(thread::Builder::new().name("finder".to_owned()).spawn(work)?);
        }
        Ok(finder)
    }

    /// What came since the last call.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        self.findings.try_iter()
    }
}

fn run(config: &Config, server: &Server, send: &Sender<Finding>, stop: &Latch) {
    loop {
        let queues = ask(config, server, stop);
        let wait = if queues.is_ok() { EVERY } else { AGAIN };
        // It fails when the finder is dropped.
        if stop.is_set() || send.send(Finding { server: server.clone(), queues }).is_err() || stop.wait(wait) {
            return;
        }
    }
}

fn ask(config: &Config, server: &Server, stop: &Latch) -> Result<Queues, ConnectionError> {
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
    Ok(Queues { found, used })
}

/// The queues that were found, and when they were last used.
#[derive(Debug, Default)]
pub struct Known {
    last_used: HashMap<Address, Instant>,
    /// What each server named last. A queue that it did not name before counts as used.
    named: HashMap<Server, HashSet<Address>>,
}

impl Known {
    /// Takes in a server's answer: the forwards that there are to be for its patterns, in order of name.
    pub fn update(&mut self, server: &Server, queues: &Queues, now: Instant) -> Vec<ForwardConfig> {
        let named: HashSet<Address> = queues.found.forwards.iter().map(|forward| forward.source.clone()).collect();
        let before = self.named.remove(server).unwrap_or_default();
        let used = queues.used.iter().map(|queue| Address { server: server.clone(), queue: queue.clone() });
        self.last_used.extend(named.difference(&before).cloned().chain(used).map(|address| (address, now)));
        self.named.insert(server.clone(), named);
        self.last_used.retain(|_, used| now.duration_since(*used) < UNUSED);
        let used = |forward: &&ForwardConfig| self.last_used.contains_key(&forward.source);
        queues.found.forwards.iter().filter(used).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server { host: String::from("a"), port: 4730 }
    }

    /// As a server names its queues; those with a `!` are used.
    fn queues(names: &[&str]) -> Queues {
        let forward = |name: &&str| {
            let source = Address { server: server(), queue: name.trim_end_matches('!').to_owned() };
            ForwardConfig::between(source.clone(), source)
        };
        Queues {
            found: Found { forwards: names.iter().map(forward).collect(), errors: Vec::new() },
            used: names.iter().filter_map(|name| name.strip_suffix('!')).map(str::to_owned).collect(),
        }
    }

    #[test]
    fn a_queue_is_relayed_from_its_first_sight_until_ten_minutes_after_its_last_use() {
        let (mut known, start) = (Known::default(), Instant::now());
        let mut relayed = |seconds, names: &[&str]| -> Vec<String> {
            let forwards = known.update(&server(), &queues(names), start + Duration::from_secs(seconds));
            forwards.into_iter().map(|forward| forward.source.queue).collect()
        };
        assert_eq!(relayed(0, &["idle", "busy!"]), ["idle", "busy"]);
        assert_eq!(relayed(599, &["idle", "busy!", "new"]), ["idle", "busy", "new"]);
        assert_eq!(relayed(600, &["idle", "busy", "new"]), ["busy", "new"]);
        assert_eq!(relayed(1198, &["idle", "busy", "new"]), ["busy", "new"]);
        assert_eq!(relayed(1199, &["idle!", "busy", "new"]), ["idle"]);
        // The server has forgotten it meanwhile.
        assert_eq!(relayed(1200, &["busy"]), [""; 0]);
        assert_eq!(relayed(1201, &["busy", "new"]), ["new"]);
    }

    #[test]
    fn servers_do_not_forget_each_others_queues() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert_eq!(known.update(&server(), &queues(&["a"]), now).len(), 1);
        let other = Server { port: 1, ..server() };
        assert_eq!(known.update(&other, &Queues::default(), now).len(), 0);
        assert_eq!(known.update(&server(), &queues(&["a"]), now + Duration::from_secs(60)).len(), 1);
        assert_eq!(known.update(&server(), &queues(&["a"]), now + UNUSED).len(), 0);
    }
}
