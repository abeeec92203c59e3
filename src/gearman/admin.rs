//! A job server's text commands, as `gearadmin` uses them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::connection::{ConnectionError, Limits, is_timeout};
use super::packet::ProtocolError;

/// A longer answer than this is none, bytes: 100,000 queues with long names.
const MAX_ANSWER: usize = 16 << 20;

/// What a job server tells of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueStatus {
    /// Jobs waiting or running.
    pub total: u64,
    /// Jobs given to a worker and not finished.
    pub running: u64,
    /// Workers that take from it.
    pub workers: u64,
}

impl QueueStatus {
    /// Jobs that no worker has.
    pub fn waiting(&self) -> u64 {
        self.total.saturating_sub(self.running)
    }
}

/// Asks a job server for its queues with the command `status`, over a connection of its own.
///
/// # Errors
/// No connection, or no whole answer within the limits.
pub fn queues(host: &str, port: u16, limits: &Limits) -> Result<BTreeMap<String, QueueStatus>, ConnectionError> {
    let mut last = ConnectionError::Resolve(ErrorKind::NotFound.into());
    for address in (host, port).to_socket_addrs().map_err(ConnectionError::Resolve)? {
        match TcpStream::connect_timeout(&address, limits.connect) {
            Ok(stream) => return ask(&stream, limits.answer),
            Err(error) => last = ConnectionError::Connect(error),
        }
    }
    Err(last)
}

fn ask(mut stream: &TcpStream, limit: Duration) -> Result<BTreeMap<String, QueueStatus>, ConnectionError> {
    let deadline = Instant::now() + limit;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(b"status\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 8192];
    // A line of nothing but a dot ends the answer.
    while !(answer == b".\n" || answer.ends_with(b"\n.\n")) {
        if answer.len() > MAX_ANSWER {
            return Err(ProtocolError::TooLong(answer.len()).into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectionError::NoAnswer(limit));
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut piece) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if is_timeout(&error) => return Err(ConnectionError::NoAnswer(limit)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    parse(&answer)
}

/// Lines of `QUEUE\tTOTAL\tRUNNING\tWORKERS`; a queue that a client gave a name with tabs is no reason to fail.
fn parse(answer: &[u8]) -> Result<BTreeMap<String, QueueStatus>, ConnectionError> {
    let text = String::from_utf8_lossy(answer);
    let mut queues = BTreeMap::new();
    for line in text.lines().take_while(|&line| line != ".") {
        let mut fields = line.rsplitn(4, '\t');
        let mut number = || fields.next().and_then(|field| field.parse().ok());
        let (Some(workers), Some(running), Some(total)) = (number(), number(), number()) else {
            return Err(ProtocolError::BadMagic.into());
        };
        if let Some(queue) = fields.next() {
            queues.insert(queue.to_owned(), QueueStatus { total, running, workers });
        }
    }
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const LIMITS: Limits = Limits { connect: Duration::from_secs(2), answer: Duration::from_millis(200) };

    /// Answers one connection with `pieces`, then keeps it open until the other side closes it.
    fn server(pieces: &'static [&'static [u8]]) -> (u16, thread::JoinHandle<Vec<u8>>) {
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
        (port, thread)
    }

    #[test]
    fn every_queue_of_the_answer_comes_out() {
        let (port, server) =
            server(&[b"check_results\t12\t2", b"\t1\nworker_a\t0\t0\t3\nodd\tname\t5\t0\t0\n", b".\n"]);
        let queues = queues("127.0.0.1", port, &LIMITS).unwrap();
        assert_eq!(queues.len(), 3);
        assert_eq!(queues["check_results"], QueueStatus { total: 12, running: 2, workers: 1 });
        assert_eq!(queues["check_results"].waiting(), 10);
        assert_eq!(queues["odd\tname"].waiting(), 5);
        assert_eq!(server.join().unwrap(), b"status\n");
    }

    #[test]
    fn a_server_without_queues_has_none() {
        let (port, _server) = server(&[b".\n"]);
        assert!(queues("127.0.0.1", port, &LIMITS).unwrap().is_empty());
    }

    #[test]
    fn a_server_that_never_ends_its_answer_is_left_in_time() {
        let (port, _server) = server(&[b"queue\t0\t0\t1\n"]);
        let began = Instant::now();
        assert!(matches!(queues("127.0.0.1", port, &LIMITS), Err(ConnectionError::NoAnswer(_))));
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn an_answer_in_another_language_is_an_error() {
        let (port, _server) = server(&[b"HTTP/1.1 400 Bad Request\r\n\r\n.\n"]);
        assert!(matches!(queues("127.0.0.1", port, &LIMITS), Err(ConnectionError::Protocol(_))));
    }

    #[test]
    fn a_server_that_is_down_is_an_error() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(matches!(queues("127.0.0.1", port, &LIMITS), Err(ConnectionError::Connect(_))));
    }
}
