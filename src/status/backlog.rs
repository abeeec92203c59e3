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
                forward.counts.waiting.set(None);
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
            End::Source => forward.counts.waiting.set(jobs),
            End::Destination => forward.counts.waiting_there.set(jobs),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use crate::metrics::tests::forward;

    fn dead() -> Server {
        Server { host: String::from("127.0.0.1"), port: 1 }
    }

    fn to_nowhere(source: &Address) -> Arc<ForwardMetrics> {
        let forward = forward(&source.to_string(), "127.0.0.1:1/there");
        forward.set_connected(true);
        forward
    }

    /// A job server with 5 jobs in its queue "q", 2 of them running, for one question.
    fn source() -> (Address, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (Address { server: Server { host: String::from("127.0.0.1"), port }, queue: String::from("q") }, listener)
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
        let forwards = [to_nowhere(&well), to_nowhere(&ill)];
        metrics.set_forwards(forwards.to_vec());
        let mut sampler = Sampler::new(Latch::default());
        sampler.round(&metrics, false);
        assert!(sampler.asking.is_empty());

        forwards[1].troubled(&dead(), "down");
        sampler.round(&metrics, false);
        assert_eq!(sampler.asking.keys().collect::<Vec<_>>(), [&ill.server]);
        answer(&listener);
        wait_until("answered", || forwards[1].counts.waiting.get().is_some());
        assert_eq!(forwards[1].counts.waiting.get(), Some(3));
        assert_eq!(forwards[0].counts.waiting.get(), None);

        forwards[1].recovered(&dead());
        sampler.round(&metrics, false);
        assert_eq!(forwards[1].counts.waiting.get(), None);
    }

    #[test]
    fn a_server_that_hangs_delays_no_other_and_is_asked_once_at_a_time() {
        let (hung, hanging) = source();
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forwards = [to_nowhere(&hung), to_nowhere(&ill)];
        metrics.set_forwards(forwards.to_vec());
        assert!(forwards.iter().all(|forward| forward.troubled(&dead(), "down")));
        let mut sampler = Sampler::new(Latch::default());
        let began = Instant::now();
        sampler.round(&metrics, false);
        sampler.round(&metrics, false);
        answer(&listener);
        wait_until("answered", || forwards[1].counts.waiting.get().is_some());
        assert!(began.elapsed() < LIMITS.answer, "the other was waited for");
        assert_eq!(forwards[0].counts.waiting.get(), None);
        hanging.set_nonblocking(true).unwrap();
        assert!(hanging.accept().is_ok());
        assert!(hanging.accept().is_err());
    }

    #[test]
    fn a_source_that_no_longer_answers_has_no_known_backlog() {
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forward = to_nowhere(&ill);
        metrics.set_forwards(vec![Arc::clone(&forward)]);
        forward.troubled(&dead(), "down");
        let mut sampler = Sampler::new(Latch::default());
        sampler.round(&metrics, false);
        answer(&listener);
        wait_until("answered", || forward.counts.waiting.get().is_some());
        drop(listener);
        wait_until("the first question ended", || sampler.asking.values().all(JoinHandle::is_finished));
        sampler.round(&metrics, false);
        wait_until("refused", || forward.counts.waiting.get().is_none());
    }

    #[test]
    fn for_the_metrics_both_ends_of_every_forward_are_asked() {
        let (here, at_source) = source();
        let (there, at_destination) = source();
        let forward = forward(&here.to_string(), &there.to_string());
        forward.set_connected(true);
        let metrics = Metrics::default();
        metrics.set_forwards(vec![Arc::clone(&forward)]);
        Sampler::new(Latch::default()).round(&metrics, true);
        answer(&at_source);
        answer(&at_destination);
        wait_until("both answered", || {
            forward.counts.waiting.get() == Some(3) && forward.counts.waiting_there.get() == Some(3)
        });
    }
}
