//! How many jobs wait at the servers of the forwards: asked in the background, never while answering.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::config::{Address, Server};
use crate::gearman::admin;
use crate::gearman::connection::Limits;
use crate::latch::Latch;
use crate::metrics::{ForwardMetrics, Metrics, State};

/// How often the servers are asked, seconds.
pub(super) const INTERVAL: u64 = 10;

const LIMITS: Limits = Limits { connect: Duration::from_secs(2), answer: Duration::from_secs(2) };

/// What a thread that asks one server needs, bytes.
const STACK_SIZE: usize = 128 << 10;

/// The threads that ask: each server has one of its own, so that one that hangs delays none of the others.
pub(super) type Asking = BTreeMap<Server, JoinHandle<()>>;

/// Begins a round; the answers come into the metrics as they arrive. The sources of failed forwards are asked, or `all`
/// forwards' sources and destinations.
pub(super) fn round(asking: &mut Asking, metrics: &Metrics, all: bool, stop: &Latch) {
    let (asked, well): (Vec<_>, Vec<_>) =
        metrics.forwards().into_iter().partition(|forward| all || forward.state() == State::Failed);
    for forward in well {
        forward.counts.lock().waiting = None;
    }
    let mut forwards_of: BTreeMap<Server, Vec<Arc<ForwardMetrics>>> = BTreeMap::new();
    for forward in asked {
        let destination = all.then(|| forward.destination().server.clone());
        for server in destination.into_iter().chain([forward.config.source.server.clone()]) {
            forwards_of.entry(server).or_default().push(Arc::clone(&forward));
        }
    }
    asking.retain(|_, thread| !thread.is_finished());
    for (server, forwards) in forwards_of {
        if asking.contains_key(&server) {
            continue;
        }
        let (there, stop) = (server.clone(), stop.clone());
        let builder = thread::Builder::new().name(String::from("backlog")).stack_size(STACK_SIZE);
        match builder.spawn(move || answer(&there, &forwards, &stop)) {
            Ok(thread) => drop(asking.insert(server, thread)),
            Err(error) => log::debug!("backlog at {server} not asked: no thread: {error}"),
        }
    }
}

/// Asks one server for all that is to be known of it.
fn answer(server: &Server, forwards: &[Arc<ForwardMetrics>], stop: &Latch) {
    // A queue that the server doesn't name is empty.
    let ends = forwards.iter().flat_map(|forward| [&forward.config.source, forward.destination()]);
    let mut waiting: BTreeMap<&str, u64> =
        ends.filter(|end| end.server == *server).map(|end| (end.queue.as_str(), 0)).collect();
    let answer = admin::each_queue(server, &LIMITS, stop, |queue, status| {
        if let Some(jobs) = waiting.get_mut(queue) {
            *jobs = status.waiting();
        }
    });
    if let Err(error) = &answer {
        log::debug!("backlog at {server} unknown: {error}");
        waiting.clear();
    }
    for forward in forwards {
        let jobs = |end: &Address| waiting.get(end.queue.as_str()).copied();
        let (source, destination) = (&forward.config.source, forward.destination());
        let mut counts = forward.counts.lock();
        if source.server == *server {
            counts.waiting = jobs(source);
        }
        if destination.server == *server {
            counts.waiting_there = jobs(destination);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use crate::status::tests::forward;

    fn dead() -> Server {
        Server { host: String::from("127.0.0.1"), port: 1 }
    }

    fn to_nowhere(source: &Address) -> Arc<ForwardMetrics> {
        let forward = forward(&source.to_string(), "127.0.0.1:1/there");
        forward.counts.lock().sessions += 1;
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
        let (mut asking, stop) = (Asking::new(), Latch::default());
        round(&mut asking, &metrics, false, &stop);
        assert!(asking.is_empty());

        forwards[1].troubled(&dead(), "down");
        round(&mut asking, &metrics, false, &stop);
        assert_eq!(asking.keys().collect::<Vec<_>>(), [&ill.server]);
        answer(&listener);
        wait_until("answered", || forwards[1].counts.lock().waiting.is_some());
        assert_eq!(forwards[1].counts.lock().waiting, Some(3));
        assert_eq!(forwards[0].counts.lock().waiting, None);

        forwards[1].recovered(&dead());
        round(&mut asking, &metrics, false, &stop);
        assert_eq!(forwards[1].counts.lock().waiting, None);
    }

    #[test]
    fn a_server_that_hangs_delays_no_other_and_is_asked_once_at_a_time() {
        let (hung, hanging) = source();
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forwards = [to_nowhere(&hung), to_nowhere(&ill)];
        metrics.set_forwards(forwards.to_vec());
        forwards.iter().for_each(|forward| forward.troubled(&dead(), "down"));
        let (mut asking, stop) = (Asking::new(), Latch::default());
        let began = Instant::now();
        round(&mut asking, &metrics, false, &stop);
        round(&mut asking, &metrics, false, &stop);
        answer(&listener);
        wait_until("answered", || forwards[1].counts.lock().waiting.is_some());
        assert!(began.elapsed() < LIMITS.answer, "the other was waited for");
        assert_eq!(forwards[0].counts.lock().waiting, None);
        let _asked = hanging.accept().unwrap();
        hanging.set_nonblocking(true).unwrap();
        assert!(hanging.accept().is_err());
    }

    #[test]
    fn a_source_that_no_longer_answers_has_no_known_backlog() {
        let (ill, listener) = source();
        let metrics = Metrics::default();
        let forward = to_nowhere(&ill);
        metrics.set_forwards(vec![Arc::clone(&forward)]);
        forward.troubled(&dead(), "down");
        let (mut asking, stop) = (Asking::new(), Latch::default());
        round(&mut asking, &metrics, false, &stop);
        answer(&listener);
        wait_until("answered", || forward.counts.lock().waiting.is_some());
        drop(listener);
        wait_until("the first question ended", || asking.values().all(JoinHandle::is_finished));
        round(&mut asking, &metrics, false, &stop);
        wait_until("refused", || forward.counts.lock().waiting.is_none());
    }

    #[test]
    fn for_the_metrics_both_ends_of_every_forward_are_asked() {
        let (here, at_source) = source();
        let (there, at_destination) = source();
        let forward = forward(&here.to_string(), &there.to_string());
        forward.counts.lock().sessions += 1;
        let metrics = Metrics::default();
        metrics.set_forwards(vec![Arc::clone(&forward)]);
        round(&mut Asking::new(), &metrics, true, &Latch::default());
        answer(&at_source);
        answer(&at_destination);
        wait_until("both answered", || {
            forward.counts.lock().waiting == Some(3) && forward.counts.lock().waiting_there == Some(3)
        });
    }
}
