//! How many jobs wait at the sources of forwards in trouble: asked in the background, never while answering.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::{Address, Server};
use crate::gearman::admin;
use crate::gearman::connection::Limits;
use crate::metrics::Metrics;

/// How often the sources are asked.
pub const INTERVAL: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits { connect: Duration::from_secs(2), answer: Duration::from_secs(2) };

/// What a thread that asks one server needs, bytes.
const STACK_SIZE: usize = 128 << 10;

/// Jobs waiting at the sources, as last seen.
#[derive(Debug, Default)]
pub struct Backlog {
    waiting: Mutex<BTreeMap<Address, u64>>,
}

impl Backlog {
    /// Jobs waiting in this queue; `None` when it was not asked or did not answer.
    pub fn waiting(&self, queue: &Address) -> Option<u64> {
        self.waiting.lock().get(queue).copied()
    }
}

/// Asks the sources of forwards in trouble. Each server is asked by a thread of its own, so that one that hangs, or whose
/// name does, delays none of the others.
#[derive(Debug, Default)]
pub struct Sampler {
    asking: BTreeMap<Server, JoinHandle<()>>,
}

impl Sampler {
    /// Begins a round; the answers come into `backlog` as they arrive. Nothing is asked while everything works.
    pub fn round(&mut self, metrics: &Metrics, backlog: &Arc<Backlog>) {
        let mut queues: BTreeMap<Server, BTreeSet<String>> = BTreeMap::new();
        for forward in metrics.forwards() {
            if !forward.troubles().is_empty() {
                let Address { server, queue } = forward.config.source.clone();
                queues.entry(server).or_default().insert(queue);
            }
        }
        backlog
            .waiting
            .lock()
            .retain(|address, _| queues.get(&address.server).is_some_and(|queues| queues.contains(&address.queue)));
        self.asking.retain(|_, thread| !thread.is_finished());
        for (server, queues) in queues {
            if self.asking.contains_key(&server) {
                continue;
            }
            let backlog = Arc::clone(backlog);
            let there = server.clone();
            let builder = thread::Builder::new().name(String::from("backlog")).stack_size(STACK_SIZE);
            match builder.spawn(move || ask(&there, queues, &backlog)) {
                Ok(thread) => drop(self.asking.insert(server, thread)),
                Err(error) => log::debug!("backlog at {server} not asked: no thread: {error}"),
            }
        }
    }
}

fn ask(server: &Server, queues: BTreeSet<String>, backlog: &Backlog) {
    let answer = admin::queues(&server.host, server.port, &LIMITS);
    if let Err(error) = &answer {
        log::debug!("backlog at {server} unknown: {error}");
    }
    let mut waiting = backlog.waiting.lock();
    for queue in queues {
        let seen = answer.as_ref().ok().map(|seen| seen.get(&queue).map_or(0, admin::QueueStatus::waiting));
        let address = Address { server: server.clone(), queue };
        match seen {
            Some(count) => waiting.insert(address, count),
            None => waiting.remove(&address),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use crate::config::{ForwardConfig, Place, Priority};
    use crate::metrics::ForwardMetrics;
    use crate::stages::Stages;

    fn server(port: u16) -> Server {
        Server { host: String::from("127.0.0.1"), port }
    }

    fn forward(source: &Address) -> Arc<ForwardMetrics> {
        Arc::new(ForwardMetrics::new(&ForwardConfig {
            place: Place { file: Arc::new("proxy.conf".into()), line: 1 },
            source: source.clone(),
            destinations: vec![Address { server: server(1), queue: String::from("there") }],
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

    /// A job server with 5 jobs in its queue "q", 2 of them running, for one question.
    fn source() -> (Address, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (Address { server: server(port), queue: String::from("q") }, listener)
    }

    fn answer(listener: &TcpListener) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 7];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"status\n");
        stream.write_all(b"q\t5\t2\t1\n.\n").unwrap();
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "never: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn only_sources_of_forwards_in_trouble_are_asked() {
        let (well, _listener) = source();
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forwards = [forward(&well), forward(&ill)];
        metrics.set_forwards(forwards.to_vec());
        let backlog = Arc::new(Backlog::default());
        let mut sampler = Sampler::default();
        sampler.round(&metrics, &backlog);
        assert!(sampler.asking.is_empty());

        forwards[1].troubled(&server(1), "down");
        sampler.round(&metrics, &backlog);
        assert_eq!(sampler.asking.keys().collect::<Vec<_>>(), [&ill.server]);
        answer(&listener);
        wait_until("answered", || backlog.waiting(&ill).is_some());
        assert_eq!(backlog.waiting(&ill), Some(3));
        assert_eq!(backlog.waiting(&well), None);

        forwards[1].recovered(&server(1));
        sampler.round(&metrics, &backlog);
        assert_eq!(backlog.waiting(&ill), None);
    }

    #[test]
    fn a_server_that_hangs_delays_no_other_and_is_asked_once_at_a_time() {
        let (hung, hanging) = source();
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forwards = [forward(&hung), forward(&ill)];
        metrics.set_forwards(forwards.to_vec());
        assert!(forwards.iter().all(|forward| forward.troubled(&server(1), "down")));
        let backlog = Arc::new(Backlog::default());
        let mut sampler = Sampler::default();
        let began = Instant::now();
        sampler.round(&metrics, &backlog);
        sampler.round(&metrics, &backlog);
        answer(&listener);
        wait_until("answered", || backlog.waiting(&ill).is_some());
        assert!(began.elapsed() < LIMITS.answer, "the other was waited for");
        assert_eq!(backlog.waiting(&hung), None);
        hanging.set_nonblocking(true).unwrap();
        assert!(hanging.accept().is_ok());
        assert!(hanging.accept().is_err());
    }

    #[test]
    fn a_source_that_no_longer_answers_has_no_known_backlog() {
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forward = forward(&ill);
        metrics.set_forwards(vec![Arc::clone(&forward)]);
        forward.troubled(&server(1), "down");
        let backlog = Arc::new(Backlog::default());
        let mut sampler = Sampler::default();
        sampler.round(&metrics, &backlog);
        answer(&listener);
        wait_until("answered", || backlog.waiting(&ill).is_some());
        drop(listener);
        wait_until("the first question ended", || sampler.asking.values().all(JoinHandle::is_finished));
        sampler.round(&metrics, &backlog);
        wait_until("refused", || backlog.waiting(&ill).is_none());
    }
}
