//! A job server's text commands, as `gearadmin` uses them. Answers are given to a closure line by line and never kept: how
//! long they are is up to the server.

use super::connection::{Connection, ConnectionError, Limits};
use super::packet::ProtocolError;
use crate::config::{Address, Server};
use crate::latch::Latch;

/// What a job server tells of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueStatus {
    /// Jobs waiting or running.
    pub total: u64,
    /// Jobs given to a worker and not finished.
    pub running: u64,
    pub workers: u64,
}

impl QueueStatus {
    /// Jobs that no worker has.
    pub fn waiting(&self) -> u64 {
        self.total.saturating_sub(self.running)
    }
}

/// Asks a job server with the command `status`, and tells each of its queues to `queue`.
///
/// # Errors
/// No connection, or no whole answer within the limits, or one in another language.
pub fn each_queue(
    server: &Server,
    limits: &Limits,
    stop: &Latch,
    mut queue: impl FnMut(&str, QueueStatus),
) -> Result<(), ConnectionError> {
    let mut strange = None;
    Connection::ask_once(server, "status\n", limits, stop, |line| {
        let line = String::from_utf8_lossy(line);
        // A client may have given a queue a name with tabs.
        let mut fields = line.trim_end_matches('\r').rsplitn(4, '\t');
        let mut number = || fields.next().and_then(|field| field.parse().ok());
        match (number(), number(), number(), fields.next()) {
            (Some(workers), Some(running), Some(total), Some(name)) => {
                queue(name, QueueStatus { total, running, workers });
            }
            _ => strange = Some(ProtocolError::BadMagic),
        }
    })?;
    strange.map_or(Ok(()), |error| Err(error.into()))
}

/// What a job server tells of one queue; nothing waits in a queue that it doesn't know.
///
/// # Errors
/// As those of [`each_queue`].
pub fn queue(address: &Address, limits: &Limits, stop: &Latch) -> Result<QueueStatus, ConnectionError> {
    let mut found = QueueStatus::default();
    each_queue(&address.server, limits, stop, |name, status| {
        if name == address.queue {
            found = status;
        }
    })?;
    Ok(found)
}

/// Asks a job server with the command `workers`, and tells each connection's client id and queues to `worker`.
///
/// # Errors
/// No connection, or no whole answer within the limits.
pub fn each_worker(
    server: &Server,
    limits: &Limits,
    stop: &Latch,
    mut worker: impl FnMut(&str, &mut dyn Iterator<Item = &str>),
) -> Result<(), ConnectionError> {
    // FD ADDRESS CLIENT-ID : QUEUE QUEUE...; a client id or queue with blanks can't be told from two.
    Connection::ask_once(server, "workers\n", limits, stop, |line| {
        let line = String::from_utf8_lossy(line);
        let mut fields = line.splitn(4, ' ').skip(2);
        if let (Some(id), Some(rest)) = (fields.next(), fields.next())
            && let Some(queues) = rest.strip_prefix(':')
        {
            worker(id, &mut queues.split_ascii_whitespace());
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) };

    /// Answers one connection with `pieces`, then keeps it open until the other side closes it.
    fn server(pieces: &'static [&'static [u8]]) -> (Server, thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for piece in pieces {
                stream.write_all(piece).unwrap();
            }
            let mut request = Vec::new();
            let _ = stream.read_to_end(&mut request);
            request
        });
        (Server { host: String::from("127.0.0.1"), port }, thread)
    }

    fn queues(server: &Server) -> Result<BTreeMap<String, QueueStatus>, ConnectionError> {
        let mut queues = BTreeMap::new();
        each_queue(server, &LIMITS, &Latch::default(), |name, status| {
            queues.insert(name.to_owned(), status);
        })?;
        Ok(queues)
    }

    #[test]
    fn every_queue_of_the_answer_comes_out() {
        let (there, server) =
            server(&[b"check_results\t12\t2", b"\t1\nworker_a\t0\t0\t3\nodd\tname\t5\t0\t0\n", b".\n"]);
        let queues = queues(&there).unwrap();
        assert_eq!(queues.len(), 3);
        assert_eq!(queues["check_results"], QueueStatus { total: 12, running: 2, workers: 1 });
        assert_eq!(queues["check_results"].waiting(), 10);
        assert_eq!(queues["odd\tname"].waiting(), 5);
        assert_eq!(server.join().unwrap(), b"status\n");
    }

    #[test]
    fn one_queue_is_found_and_an_unknown_one_is_empty() {
        let address = |server, queue: &str| Address { server, queue: queue.to_owned() };
        let ask = |queue| {
            let (there, _server) = server(&[b"a\t1\t1\t1\nb\t7\t3\t2\n.\n"]);
            super::queue(&address(there, queue), &LIMITS, &Latch::default()).unwrap()
        };
        assert_eq!(ask("b"), QueueStatus { total: 7, running: 3, workers: 2 });
        assert_eq!(ask("c"), QueueStatus::default());
    }

    #[test]
    fn every_worker_comes_out_with_its_queues() {
        let (there, _server) = server(&[b"33 127.0.0.1 - :\n34 ::1 gearman-proxy:q:token : q r\n", b".\n"]);
        let mut seen = Vec::new();
        let each = |id: &str, queues: &mut dyn Iterator<Item = &str>| {
            seen.push(format!("{id}={}", queues.collect::<Vec<_>>().join(",")));
        };
        each_worker(&there, &LIMITS, &Latch::default(), each).unwrap();
        assert_eq!(seen, ["-=", "gearman-proxy:q:token=q,r"]);
    }

    #[test]
    fn a_server_without_queues_has_none() {
        let (there, _server) = server(&[b".\n"]);
        assert!(queues(&there).unwrap().is_empty());
    }

    #[test]
    fn a_server_that_never_ends_its_answer_is_left_in_time() {
        let (there, _server) = server(&[b"queue\t0\t0\t1\n"]);
        let limits = Limits { answer: Duration::from_millis(200), ..LIMITS };
        let mut seen = 0;
        let answer = each_queue(&there, &limits, &Latch::default(), |_, _| seen += 1);
        assert!(matches!(answer, Err(ConnectionError::NoAnswer(_))), "{answer:?}");
        assert!(seen <= 1);
    }

    #[test]
    fn an_answer_in_another_language_is_an_error() {
        let (there, _server) = server(&[b"HTTP/1.1 400 Bad Request\r\n\r\n.\n"]);
        assert!(matches!(queues(&there), Err(ConnectionError::Protocol(_))));
    }

    #[test]
    fn a_server_that_is_down_is_an_error() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let there = Server { host: String::from("127.0.0.1"), port };
        assert!(matches!(queues(&there), Err(ConnectionError::Connect(_))));
    }
}
