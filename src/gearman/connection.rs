//! A connection to a job server: opened, proved alive, and small conversations over it.
//!
//! Everything here can be interrupted: the stop latch that a connection is opened with ends each of its waits within
//! [`SLICE`], whatever hangs. The forwards' own threads take [`Connection::stream`] and [`Connection::incoming`] and read by
//! themselves; everyone else uses [`Connection::ask`] and [`Connection::next`].

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

pub use super::packet::error_code;
use super::packet::{
    HEADER_SIZE, Incoming, MAX_SMALL_PACKET, MAXQUEUE, Packet, Parsed, ProtocolError, QUEUE_FULL, kind, parse,
    put_request, request,
};
use crate::config::Server;
use crate::latch::Latch;

/// An idle connection is probed by the kernel after this time, then every [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Bytes that the peer's kernel does not acknowledge for this long end a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a server may send before it has answered our request, and a line of a text answer, bytes.
const MAX_BEFORE_ANSWER: usize = 64 << 10;

/// A longer text answer is an error, bytes: 100,000 queues with long names. None of it is kept.
const MAX_TEXT_ANSWER: usize = 16 << 20;

/// The longest wait that a stop does not interrupt.
const SLICE: Duration = Duration::from_millis(200);

/// Between looks at whether a socket is connected.
const FIRST_LOOK: Duration = Duration::from_micros(200);
const LAST_LOOK: Duration = Duration::from_millis(20);

/// What a resolver needs, bytes.
const LOOKUP_STACK_SIZE: usize = 256 << 10;

/// `connect` on a socket that does not block (Linux).
const EINPROGRESS: i32 = 115;

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To connect, for each of the addresses that a name has, and for the name.
    pub connect: Duration,
    /// To answer the first request: a hung server still accepts.
    pub answer: Duration,
}

#[derive(Debug)]
pub enum ConnectionError {
    /// The name could not be resolved.
    Resolve,
    /// No connection: another try later may work.
    Connect(io::Error),
    /// The connection broke.
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    /// The server owed an answer for this long.
    NoAnswer(Duration),
    /// The server spoke something else than Gearman.
    Protocol(ProtocolError),
    /// The server refused a request with this error code.
    Refused(String),
    /// The stop latch was set.
    Stopped,
}

impl fmt::Display for ConnectionError {
    /// Own words in printable ASCII, without brackets, quotes and bars, at most 80 bytes: the status shows them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::NoAnswer(limit) => write!(f, "no answer for {} s", limit.as_secs_f32().round()),
            ConnectionError::Protocol(error) => error.fmt(f),
            ConnectionError::Refused(code) => write!(f, "refused with {code}"),
            _ => f.write_str(self.kind()),
        }
    }
}

impl std::error::Error for ConnectionError {}

impl ConnectionError {
    /// What reasons are compared by: the same for texts that differ only in numbers.
    pub fn kind(&self) -> &'static str {
        self.in_words().0
    }

    /// What an administrator can do next.
    pub fn advice(&self) -> &'static str {
        self.in_words().1
    }

    fn in_words(&self) -> (&'static str, &'static str) {
        match self {
            ConnectionError::Resolve => ("name could not be resolved", "check the host name and the resolver"),
            ConnectionError::Connect(error) | ConnectionError::Io(error) => in_words(error),
            ConnectionError::Closed => ("connection closed by the server", "was it stopped? see the server's log"),
            ConnectionError::NoAnswer(_) => {
                ("no answer", "the server accepts connections but hangs: look at its process")
            }
            ConnectionError::Protocol(_) => ("not Gearman", "is this port a Gearman job server's, without TLS?"),
            ConnectionError::Refused(code) if code == QUEUE_FULL => ("queue full", MAXQUEUE),
            ConnectionError::Refused(code) if code == "ARGUMENT_TOO_LARGE" => {
                ("refused", "the queue's name is too long")
            }
            ConnectionError::Refused(_) => ("refused", "see the server's log"),
            ConnectionError::Stopped => ("stopped", "start it again"),
        }
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => ConnectionError::Closed,
            _ => ConnectionError::Io(error),
        }
    }
}

impl From<ProtocolError> for ConnectionError {
    fn from(error: ProtocolError) -> Self {
        ConnectionError::Protocol(error)
    }
}

/// What an error of the system is called, and what can be done.
fn in_words(error: &io::Error) -> (&'static str, &'static str) {
    const ROUTE: &str = "check the route and the firewall";
    match error.kind() {
        // EMFILE, ENFILE
        _ if matches!(error.raw_os_error(), Some(23 | 24)) => ("too many open files", "raise the limit of open files"),
        io::ErrorKind::ConnectionRefused => ("connection refused", "is gearmand running there, and on this port?"),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ("connection reset", "see the server's log"),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ("connection timed out", ROUTE),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ("no route to the host", ROUTE),
        io::ErrorKind::PermissionDenied => ("not permitted by this host", "check the firewall of this host"),
        io::ErrorKind::AddrNotAvailable => ("no local address or port left", "too many connections leave this host"),
        _ => ("network error", ROUTE),
    }
}

/// Whether a read or write ended because its time was up.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What ends the answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The answer to an ECHO_REQ that is sent behind the request.
    Echo,
    /// A line of nothing but a dot, as behind the text commands `status` and `workers`.
    Dot,
}

/// An open connection to a job server.
#[derive(Debug)]
pub struct Connection {
    /// The socket; both directions.
    pub stream: TcpStream,
    /// What was read from it and not taken yet.
    pub incoming: Incoming,
    stop: Latch,
}

impl Connection {
    /// Connects, and waits for the answer to an ECHO_REQ: only then does the server count as connected, because a hung
    /// gearmand still accepts. The name is resolved again each time and each of its addresses tried.
    ///
    /// `client_id` is what `gearadmin --workers` shows.
    ///
    /// # Errors
    /// No connection within the limits, or `stop` was set.
    pub fn open(
        server: &Server,
        client_id: &str,
        limits: &Limits,
        stop: &Latch,
    ) -> Result<Connection, ConnectionError> {
        let greeting = request(kind::SET_CLIENT_ID, &[client_id.as_bytes()]);
        Connection::to_any_address(server, limits, stop, |connection| {
            connection.ask(&greeting, End::Echo, limits.answer, |_| ())
        })
    }

    /// Asks one text command over a connection of its own, which sends nothing else: not every server takes both
    /// languages on one connection. Each line of the answer is given to `line` and not kept.
    ///
    /// # Errors
    /// No connection or no whole answer within the limits, or `stop` was set.
    pub fn ask_once(
        server: &Server,
        command: &str,
        limits: &Limits,
        stop: &Latch,
        mut line: impl FnMut(&[u8]),
    ) -> Result<(), ConnectionError> {
        let mut connection = Connection::to_any_address(server, limits, stop, |_| Ok(()))?;
        connection.ask(command.as_bytes(), End::Dot, limits.answer, &mut line)
    }

    fn to_any_address(
        server: &Server,
        limits: &Limits,
        stop: &Latch,
        greet: impl Fn(&mut Connection) -> Result<(), ConnectionError>,
    ) -> Result<Connection, ConnectionError> {
        let mut last = ConnectionError::Resolve;
        for mut address in resolve(&server.host, limits.connect, stop)? {
            address.set_port(server.port);
            let connected = connect(address, limits.connect, stop);
            match connected.and_then(|mut connection| greet(&mut connection).map(|()| connection)) {
                Err(error) if !stop.is_set() => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Sends `request` and waits for the end of its answer; gives every line of text before that to `line`. Packets before
    /// it, such as an ERROR for a request that this server doesn't know, are ignored. Nothing is kept.
    ///
    /// # Errors
    /// The connection broke, or there was no whole answer within `limit`, or it was longer than any answer can be.
    pub fn ask(
        &mut self,
        request: &[u8],
        end: End,
        limit: Duration,
        mut line: impl FnMut(&[u8]),
    ) -> Result<(), ConnectionError> {
        const MARK: &[u8] = b"gearman-proxy";
        let deadline = Instant::now() + limit;
        let mut request = request.to_vec();
        let mut left = MAX_TEXT_ANSWER;
        if end == End::Echo {
            put_request(&mut request, kind::ECHO_REQ, &[MARK]);
            left = MAX_BEFORE_ANSWER;
        }
        self.send(&request, limit)?;
        loop {
            let unread = self.incoming.unread();
            let before = unread.len();
            if unread.first().is_some_and(|&byte| byte != 0) {
                if let Some(length) = unread.iter().position(|&byte| byte == b'\n') {
                    let text = unread.get(..length).unwrap_or_default();
                    let over = end == End::Dot && matches!(text, b"." | b".\r");
                    if !over {
                        line(text);
                    }
                    self.incoming.skip(length + 1);
                    if over {
                        return Ok(());
                    }
                }
            } else if let Some(packet) = self.incoming.next(|_| MAX_SMALL_PACKET)?
                && end == End::Echo
                && packet == (Packet { kind: kind::ECHO_RES, body: MARK })
            {
                return Ok(());
            }
            let taken = before - self.incoming.unread().len();
            left = left.checked_sub(taken).ok_or(ProtocolError::BadMagic)?;
            if taken == 0 && before > MAX_BEFORE_ANSWER {
                return Err(ProtocolError::BadMagic.into());
            }
            if taken == 0 && !self.fill(deadline)? {
                return Err(ConnectionError::NoAnswer(limit));
            }
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The connection broke, or took nothing within `limit`.
    pub fn send(&mut self, mut bytes: &[u8], limit: Duration) -> Result<(), ConnectionError> {
        let deadline = Instant::now() + limit;
        while !bytes.is_empty() {
            let slice = self.slice(deadline)?.ok_or(ConnectionError::NoAnswer(limit))?;
            self.stream.set_write_timeout(Some(slice))?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next packet, `None` if none has come whole before `deadline`. One with data (a job, a result) may hold `data`
    /// bytes in all, any other [`MAX_SMALL_PACKET`].
    ///
    /// # Errors
    /// The connection broke, the server sent something else or a longer packet, or the stop latch was set.
    pub fn next(&mut self, deadline: Instant, data: usize) -> Result<Option<Packet<'_>>, ConnectionError> {
        let limit = |kind| limit_of(kind, data);
        while let Parsed::Incomplete { .. } = parse(self.incoming.unread(), limit)? {
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
        Ok(self.incoming.next(limit)?)
    }

    /// After [`Connection::next`] said that the next packet is too long: its type and the first `keep` bytes of its body. The
    /// rest is read off.
    ///
    /// # Errors
    /// As those of [`Connection::next`]; [`ConnectionError::NoAnswer`] when nothing came for `limit`.
    pub fn next_cut(&mut self, keep: usize, limit: Duration) -> Result<(u32, Vec<u8>), ConnectionError> {
        let Parsed::TooLong { kind, length: mut left } = parse(self.incoming.unread(), |_| 0)? else {
            return Err(ProtocolError::BadMagic.into());
        };
        self.incoming.skip(HEADER_SIZE);
        let mut body = Vec::new();
        loop {
            let unread = self.incoming.unread();
            let count = unread.len().min(left);
            body.extend(unread.iter().take(count.min(keep - body.len())));
            self.incoming.skip(count);
            left -= count;
            if left == 0 {
                return Ok((kind, body));
            }
            if !self.fill(Instant::now() + limit)? {
                return Err(ConnectionError::NoAnswer(limit));
            }
        }
    }

    /// Reads and writes of the stream wait for as long as it takes from now on.
    ///
    /// # Errors
    /// The connection broke.
    pub fn wait_forever(&self) -> Result<(), ConnectionError> {
        self.stream.set_read_timeout(None)?;
        Ok(self.stream.set_write_timeout(None)?)
    }

    /// Reads once; `false` when nothing came before `deadline`.
    fn fill(&mut self, deadline: Instant) -> Result<bool, ConnectionError> {
        while let Some(slice) = self.slice(deadline)? {
            self.stream.set_read_timeout(Some(slice))?;
            match self.incoming.fill(&mut &self.stream) {
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                other => return Ok(other.map(|()| true)?),
            }
        }
        Ok(false)
    }

    /// How long to wait now for something that may take until `deadline`; `None` when that has come.
    fn slice(&self, deadline: Instant) -> Result<Option<Duration>, ConnectionError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.stop.is_set() {
            true => Err(ConnectionError::Stopped),
            false => Ok((!left.is_zero()).then(|| left.clamp(Duration::from_millis(1), SLICE))),
        }
    }

    /// The server's process id, from its text command `getpid`; `None` when it doesn't know the command.
    ///
    /// # Errors
    /// The connection broke, or there was no answer at all within `limit`. A server that closes the connection on an
    /// unknown command is to be connected again and not to be asked.
    pub fn process_id(&mut self, limit: Duration) -> Result<Option<u32>, ConnectionError> {
        let mut process_id = None;
        self.ask(b"getpid\n", End::Echo, limit, |line| {
            let text = std::str::from_utf8(line).unwrap_or_default();
            process_id = text.strip_prefix("OK ").and_then(|number| number.trim().parse().ok());
        })?;
        Ok(process_id)
    }

    /// Asks for an option of this connection, e.g. `exceptions`. A server that doesn't know it continues without.
    ///
    /// # Errors
    /// The connection broke, or there was no answer within `limit`.
    pub fn set_option(&mut self, option: &str, limit: Duration) -> Result<(), ConnectionError> {
        self.ask(&request(kind::OPTION_REQ, &[option.as_bytes()]), End::Echo, limit, |_| ())
    }
}

/// The longest body of a packet of this type, where one with data may have `data` bytes. Only data may be large.
fn limit_of(kind: u32, data: usize) -> usize {
    use kind::{JOB_ASSIGN_UNIQ, WORK_COMPLETE, WORK_DATA, WORK_EXCEPTION, WORK_WARNING};
    let large = [JOB_ASSIGN_UNIQ, WORK_COMPLETE, WORK_DATA, WORK_EXCEPTION, WORK_WARNING].contains(&kind);
    if large { data } else { MAX_SMALL_PACKET }
}

/// A name on its way through the resolver: whether it is through, and what it found, or what the system lacked, such as
/// descriptors, by its error number. All who connect to this host at that time wait for the same.
type Lookup = Arc<(Latch, OnceLock<Result<Vec<SocketAddr>, Option<i32>>>)>;

static LOOKUPS: Mutex<BTreeMap<String, Lookup>> = Mutex::new(BTreeMap::new());

/// The host's addresses. A resolver that hangs does so in a thread of its own, one for each host, that is never joined.
fn resolve(host: &str, limit: Duration, stop: &Latch) -> Result<Vec<SocketAddr>, ConnectionError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, 0)]);
    }
    let lookup = look_up(host).map_err(|_| ConnectionError::Resolve)?;
    select! {
        recv(lookup.0.channel()) -> _ => {}
        recv(stop.channel()) -> _ => return Err(ConnectionError::Stopped),
        default(limit) => {}
    }
    match lookup.1.get() {
        Some(Ok(addresses)) => Ok(addresses.clone()),
        Some(Err(Some(code))) => Err(ConnectionError::Connect(io::Error::from_raw_os_error(*code))),
        _ => Err(ConnectionError::Resolve),
    }
}

/// The lookup of this host that runs, or one that begins now.
fn look_up(host: &str) -> io::Result<Lookup> {
    let mut lookups = LOOKUPS.lock();
    if let Some(running) = lookups.get(host) {
        return Ok(Arc::clone(running));
    }
    let lookup = Lookup::default();
    let (name, answer) = (host.to_owned(), Arc::clone(&lookup));
    let builder = thread::Builder::new().name(format!("lookup:{host}")).stack_size(LOOKUP_STACK_SIZE);
    builder.spawn(move || {
        let addresses = (name.as_str(), 0).to_socket_addrs().map(Iterator::collect);
        let _ = answer.1.set(addresses.map_err(|error| error.raw_os_error()));
        // The next connection asks again.
        LOOKUPS.lock().remove(&name);
        answer.0.set();
    })?;
    lookups.insert(host.to_owned(), Arc::clone(&lookup));
    Ok(lookup)
}

/// Nearby servers are seen as connected soon, and distant ones without many looks.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LAST_LOOK)
}

/// Connects without a wait that a stop could not interrupt.
fn connect(address: SocketAddr, limit: Duration, stop: &Latch) -> Result<Connection, ConnectionError> {
    let failed = ConnectionError::Connect;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(failed(error)),
        _ => {}
    }
    let (deadline, mut pause) = (Instant::now() + limit, FIRST_LOOK);
    while socket.peer_addr().is_err() {
        if let Some(error) = socket.take_error()? {
            return Err(failed(error));
        }
        if Instant::now() >= deadline {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        if stop.wait(pause) {
            return Err(ConnectionError::Stopped);
        }
        pause = longer(pause);
    }
    socket.set_nonblocking(false)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(Connection { stream, incoming: Incoming::default(), stop: stop.clone() })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::iter;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    const LIMITS: Limits = Limits { connect: Duration::from_secs(5), answer: Duration::from_secs(5) };

    /// For much to read with a slow build on a busy machine.
    const PATIENT: Limits = Limits { connect: Duration::from_secs(60), answer: Duration::from_secs(60) };

    /// A server that does this with its first connection.
    fn server(habit: impl FnOnce(&mut TcpStream) + Send + 'static) -> (Server, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = thread::spawn(move || habit(&mut listener.accept().unwrap().0));
        (Server { host: String::from("127.0.0.1"), port }, thread)
    }

    fn response(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_request(&mut bytes, kind, &[body]);
        bytes[3] = b'S';
        bytes
    }

    fn echo() -> Vec<u8> {
        response(kind::ECHO_RES, b"gearman-proxy")
    }

    fn open(server: &Server) -> Result<Connection, ConnectionError> {
        Connection::open(server, "test", &LIMITS, &Latch::default())
    }

    /// Writes until the other side has had enough, or `end`.
    fn flood(stream: &mut TcpStream, piece: &[u8], end: usize) {
        let mut written = 0;
        while written < end && stream.write_all(piece).is_ok() {
            written += piece.len();
        }
    }

    #[test]
    fn a_greeted_connection_asks_and_reads_packets() {
        let (there, server) = server(|stream| {
            stream.write_all(&response(kind::ERROR, b"UNKNOWN_COMMAND\0what")).unwrap();
            stream.write_all(&echo()).unwrap();
            stream.write_all(b"OK 4711\n").unwrap();
            stream.write_all(&echo()).unwrap();
            stream.write_all(&response(kind::NOOP, b"")).unwrap();
            let mut requests = Vec::new();
            stream.read_to_end(&mut requests).unwrap();
            assert!(requests.starts_with(b"\0REQ\0\0\0\x16\0\0\0\x04test\0REQ\0\0\0\x10"));
        });
        let mut connection = open(&there).unwrap();
        assert_eq!(connection.process_id(LIMITS.answer).unwrap(), Some(4711));
        let soon = Instant::now() + LIMITS.answer;
        assert_eq!(connection.next(soon, 0).unwrap(), Some(Packet { kind: kind::NOOP, body: b"" }));
        assert_eq!(connection.next(Instant::now() + Duration::from_millis(10), 0).unwrap(), None);
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn a_server_that_does_not_know_getpid_has_no_process_id() {
        let (there, _server) = server(|stream| {
            stream
                .write_all(&[echo(), b"ERR unknown_command Unknown+server+command\n".to_vec(), echo()].concat())
                .unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert_eq!(open(&there).unwrap().process_id(LIMITS.answer).unwrap(), None);
    }

    #[test]
    fn a_status_of_16_mib_of_short_lines_is_streamed() {
        let (there, _server) = server(|stream| {
            let piece = b"q\t1\t0\t0\n".repeat(1 << 10);
            flood(stream, &piece, 15 << 20);
            stream.write_all(b".\n").unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut lines = 0;
        Connection::ask_once(&there, "status\n", &PATIENT, &Latch::default(), |_| lines += 1).unwrap();
        assert!(lines > 1_900_000, "{lines}");
    }

    #[test]
    fn a_text_answer_without_end_and_a_line_without_end_are_errors() {
        for (piece, least) in [(&b"q\t1\t0\t0\n"[..], 16 << 20), (b"aaaaaaaa", 64 << 10)] {
            let (there, _server) = server(move |stream| flood(stream, &piece.repeat(1 << 10), usize::MAX));
            let mut seen = 0;
            let answer =
                Connection::ask_once(&there, "status\n", &PATIENT, &Latch::default(), |line| seen += line.len() + 1);
            assert!(matches!(answer, Err(ConnectionError::Protocol(_))), "{answer:?}");
            assert!(seen <= least + piece.len(), "{seen}");
        }
    }

    #[test]
    fn garbage_lines_in_the_greeting_end_at_64_kib() {
        let (there, _server) = server(|stream| flood(stream, &b"garbage\n".repeat(1 << 10), usize::MAX));
        assert!(matches!(open(&there), Err(ConnectionError::Protocol(ProtocolError::BadMagic))));
    }

    #[test]
    fn a_line_of_64_kib_comes_whole() {
        let (there, _server) = server(|stream| {
            let mut answer = vec![b'a'; 64 << 10];
            answer.extend(b"\n.\n");
            stream.write_all(&answer).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut seen = 0;
        Connection::ask_once(&there, "status\n", &PATIENT, &Latch::default(), |line| seen += line.len()).unwrap();
        assert_eq!(seen, 64 << 10);
    }

    #[test]
    fn packets_in_the_greeting_end_at_64_kib() {
        let (there, _server) = server(|stream| flood(stream, &response(kind::ERROR, b"A\0b").repeat(100), usize::MAX));
        assert!(matches!(open(&there), Err(ConnectionError::Protocol(_))));
    }

    #[test]
    fn a_huge_handle_is_refused_by_its_header() {
        let (there, _server) = server(|stream| {
            let mut packet = response(kind::JOB_CREATED, b"");
            packet[8..12].copy_from_slice(&(60_u32 << 20).to_be_bytes());
            stream.write_all(&packet).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(matches!(open(&there), Err(ConnectionError::Protocol(ProtocolError::TooLong(62_914_560)))));

        let (there, _server) = server_after_echo(response(kind::JOB_CREATED, &[b'H'; (4 << 10) + 1]));
        let mut connection = open(&there).unwrap();
        let answer = connection.next(Instant::now() + LIMITS.answer, usize::MAX);
        assert!(matches!(answer, Err(ConnectionError::Protocol(ProtocolError::TooLong(4097)))), "{answer:?}");
    }

    fn server_after_echo(bytes: Vec<u8>) -> (Server, JoinHandle<()>) {
        server(move |stream| {
            stream.write_all(&echo()).unwrap();
            let _ = stream.write_all(&bytes);
            let _ = stream.read_to_end(&mut Vec::new());
        })
    }

    #[test]
    fn a_packet_that_is_too_long_can_be_cut() {
        let mut bytes = response(kind::JOB_ASSIGN_UNIQ, &[7; 1 << 20]);
        bytes.extend(response(kind::NO_JOB, b""));
        let (there, _server) = server_after_echo(bytes);
        let mut connection = open(&there).unwrap();
        let soon = Instant::now() + LIMITS.answer;
        assert!(connection.next(soon, 100).is_err());
        assert_eq!(connection.next_cut(100, LIMITS.answer).unwrap(), (kind::JOB_ASSIGN_UNIQ, vec![7; 100]));
        assert_eq!(connection.next(soon, 100).unwrap(), Some(Packet { kind: kind::NO_JOB, body: b"" }));
    }

    #[test]
    fn only_a_packet_with_data_may_be_as_large_as_the_caller_says() {
        let (there, _server) = server_after_echo(response(kind::JOB_ASSIGN_UNIQ, &[7; 5000]));
        let mut connection = open(&there).unwrap();
        let soon = Instant::now() + LIMITS.answer;
        let error = connection.next(soon, 4999).unwrap_err();
        assert!(matches!(error, ConnectionError::Protocol(ProtocolError::TooLong(5000))), "{error:?}");
        let packet = connection.next(soon, 5000).unwrap();
        assert_eq!(packet, Some(Packet { kind: kind::JOB_ASSIGN_UNIQ, body: &[7; 5000] }));
        for data in [0, usize::MAX] {
            assert_eq!(limit_of(kind::JOB_CREATED, data), MAX_SMALL_PACKET);
        }
    }

    #[test]
    fn an_option_is_asked_for() {
        let (there, server) = server(|stream| {
            stream.write_all(&[echo(), echo()].concat()).unwrap();
            let mut requests = Vec::new();
            stream.read_to_end(&mut requests).unwrap();
            let asked = request(kind::OPTION_REQ, &[b"exceptions"]);
            assert!(requests.windows(asked.len()).any(|bytes| bytes == asked));
        });
        open(&there).unwrap().set_option("exceptions", LIMITS.answer).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_connection_can_be_told_to_wait_forever() {
        let (there, _server) = server_after_echo(Vec::new());
        let connection = open(&there).unwrap();
        assert!(connection.stream.read_timeout().unwrap().is_some());
        assert!(connection.stream.write_timeout().unwrap().is_some());
        connection.wait_forever().unwrap();
        assert_eq!(connection.stream.read_timeout().unwrap(), None);
        assert_eq!(connection.stream.write_timeout().unwrap(), None);
    }

    /// A server that answers the greeting and closes the connection.
    fn server_that_closes() -> (Server, JoinHandle<()>) {
        server(|stream| {
            // Unread bytes would make it a reset.
            stream.read_exact(&mut vec![0; greeting().len()]).unwrap();
            stream.write_all(&echo()).unwrap();
        })
    }

    fn greeting() -> Vec<u8> {
        [request(kind::SET_CLIENT_ID, &[b"test"]), request(kind::ECHO_REQ, &[b"gearman-proxy"])].concat()
    }

    #[test]
    fn a_connection_that_the_server_closes_is_told_as_such() {
        let (there, closing) = server_that_closes();
        let mut connection = open(&there).unwrap();
        closing.join().unwrap();
        let error = connection.next(Instant::now() + LIMITS.answer, 0).unwrap_err();
        assert!(matches!(error, ConnectionError::Closed), "{error:?}");
    }

    #[test]
    fn a_write_ends_with_the_connection_or_when_its_time_is_up() {
        let much = vec![0; 1 << 20];
        let (there, closing) = server_that_closes();
        let mut connection = open(&there).unwrap();
        closing.join().unwrap();
        let error = iter::repeat_with(|| connection.send(&much, LIMITS.answer)).find_map(Result::err).unwrap();
        assert!(matches!(error, ConnectionError::Io(_)), "{error:?}");

        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (there, _server) = server(move |stream| {
            stream.write_all(&echo()).unwrap();
            let _ = ended.recv();
        });
        let mut connection = open(&there).unwrap();
        // More than one slice: the first one that passes ends nothing.
        let limit = SLICE * 2;
        let error = iter::repeat_with(|| connection.send(&much, limit)).find_map(Result::err).unwrap();
        assert!(matches!(error, ConnectionError::NoAnswer(time) if time == limit), "{error:?}");
        drop(end);
    }

    /// A name that the resolver has found, for tests of what follows.
    fn named(host: &str, port: u16, found: Result<Vec<IpAddr>, Option<i32>>) -> Server {
        let lookup = Lookup::default();
        let addresses =
            found.map(|addresses| addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect());
        lookup.1.set(addresses).unwrap();
        lookup.0.set();
        LOOKUPS.lock().insert(host.to_owned(), lookup);
        Server { host: host.to_owned(), port }
    }

    /// A server at 127.0.0.2, and its port, at which nothing answers at 127.0.0.3.
    fn second_address(habit: impl FnOnce(&mut TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (port, thread::spawn(move || habit(&mut listener.accept().unwrap().0)))
    }

    #[test]
    fn each_address_of_a_name_is_tried_until_a_stop() {
        let [good, refuses] = [IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3])];
        let (port, _server) = second_address(|stream| {
            stream.write_all(&echo()).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let there = named("two-addresses.invalid", port, Ok(vec![refuses, good]));
        assert_eq!(open(&there).unwrap().stream.peer_addr().unwrap(), SocketAddr::new(good, port));

        let stop = Latch::default();
        let at_once = stop.clone();
        let (port, _server) = second_address(move |stream| {
            let _ = stream.read(&mut [0; 64]);
            at_once.set();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let there = named("hangs-then-refuses.invalid", port, Ok(vec![good, refuses]));
        let error = Connection::open(&there, "test", &PATIENT, &stop).unwrap_err();
        assert!(matches!(error, ConnectionError::Stopped), "{error:?}");
    }

    #[test]
    fn a_lookup_for_which_the_system_lacks_descriptors_says_so() {
        let there = named("no-descriptors.invalid", 4730, Err(Some(24)));
        assert_eq!(open(&there).unwrap_err().kind(), "too many open files");
        let there = named("not-found.invalid", 4730, Err(None));
        assert_eq!(open(&there).unwrap_err().kind(), "name could not be resolved");
    }

    #[test]
    fn an_address_that_cannot_be_connected_to_is_told_at_once() {
        let multicast = SocketAddr::from(([224, 0, 0, 1], 4730));
        let error = connect(multicast, Duration::from_secs(1), &Latch::default()).unwrap_err();
        assert!(!matches!(error.kind(), "connection timed out"), "{error:?}");
    }

    #[test]
    fn looks_become_rare() {
        assert_eq!(longer(FIRST_LOOK), FIRST_LOOK * 2);
        assert_eq!(longer(LAST_LOOK), LAST_LOOK);
    }

    #[test]
    fn a_server_with_a_full_backlog_is_waited_for_as_long_as_the_limit_says() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let limit = Duration::from_millis(600);
        let mut held = Vec::new();
        loop {
            let began = Instant::now();
            match connect(address, limit, &Latch::default()) {
                Ok(connection) => held.push(connection),
                Err(error) => {
                    assert_eq!(error.kind(), "connection timed out");
                    assert!(began.elapsed() >= limit);
                    return;
                }
            }
        }
    }

    #[test]
    fn a_stop_interrupts_a_greeting_that_hangs_and_a_full_backlog() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hung = Server { host: String::from("127.0.0.1"), port: listener.local_addr().unwrap().port() };
        // TEST-NET-1: packets to it are dropped, or refused at once.
        let silent = Server { host: String::from("192.0.2.1"), port: 4730 };
        for there in [hung, silent] {
            let stop = Latch::default();
            let patient = Limits { connect: Duration::from_secs(60), answer: Duration::from_secs(60) };
            thread::scope(|scope| {
                let opening = scope.spawn(|| Connection::open(&there, "test", &patient, &stop));
                thread::sleep(Duration::from_millis(100));
                let stopped = Instant::now();
                stop.set();
                let outcome = opening.join().unwrap();
                assert!(stopped.elapsed() < Duration::from_secs(10));
                assert!(matches!(outcome, Err(ConnectionError::Stopped | ConnectionError::Connect(_))), "{outcome:?}");
            });
        }
    }

    #[test]
    fn a_hung_server_does_not_count_as_connected() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = Server { host: String::from("127.0.0.1"), port: listener.local_addr().unwrap().port() };
        let limits = Limits { answer: Duration::from_millis(300), ..LIMITS };
        let outcome = Connection::open(&there, "test", &limits, &Latch::default());
        assert!(matches!(outcome, Err(ConnectionError::NoAnswer(_))), "{outcome:?}");
    }

    #[test]
    fn a_lookup_that_hangs_delays_no_other_and_is_shared() {
        LOOKUPS.lock().insert(String::from("hangs.invalid"), Arc::default());
        let there = Server { host: String::from("hangs.invalid"), port: 4730 };
        let stop = Latch::default();
        let limits = Limits { connect: Duration::from_millis(50), ..LIMITS };
        assert!(matches!(Connection::open(&there, "test", &limits, &stop), Err(ConnectionError::Resolve)));
        thread::scope(|scope| {
            let opening = scope.spawn(|| Connection::open(&there, "test", &LIMITS, &stop));
            stop.set();
            assert!(matches!(opening.join().unwrap(), Err(ConnectionError::Stopped)));
        });
        LOOKUPS.lock().remove("hangs.invalid");
    }

    #[test]
    fn a_name_is_resolved_and_an_unknown_one_is_an_error() {
        let stop = Latch::default();
        assert!(!resolve("localhost", LIMITS.connect, &stop).unwrap().is_empty());
        let unknown = Server { host: String::from("no-such-host.invalid"), port: 4730 };
        let limits = Limits { connect: Duration::from_secs(30), ..LIMITS };
        let unknown = Connection::open(&unknown, "test", &limits, &stop);
        assert!(matches!(unknown, Err(ConnectionError::Resolve)), "{unknown:?}");
        assert!(LOOKUPS.lock().get("no-such-host.invalid").is_none(), "the next one asks again");
    }

    #[test]
    fn each_reason_says_what_happened_and_what_to_look_at() {
        let system = |kind: io::ErrorKind| ConnectionError::Io(kind.into());
        let number = |number| ConnectionError::Connect(io::Error::from_raw_os_error(number));
        let refused = |code: &str| ConnectionError::Refused(code.to_owned());
        for (error, text, kind, advice) in [
            (ConnectionError::Resolve, "name could not be resolved", "name could not be resolved", "host name"),
            (number(23), "too many open files", "too many open files", "raise the limit"),
            (number(24), "too many open files", "too many open files", "raise the limit"),
            (number(111), "connection refused", "connection refused", "is gearmand running"),
            (system(io::ErrorKind::ConnectionReset), "connection reset", "connection reset", "server's log"),
            (system(io::ErrorKind::BrokenPipe), "connection reset", "connection reset", "server's log"),
            (system(io::ErrorKind::TimedOut), "connection timed out", "connection timed out", "route"),
            (number(113), "no route to the host", "no route to the host", "route"),
            (number(101), "no route to the host", "no route to the host", "route"),
            (number(1), "not permitted by this host", "not permitted by this host", "firewall of this host"),
            (number(99), "no local address or port left", "no local address or port left", "too many connections"),
            (number(5), "network error", "network error", "route"),
            (ConnectionError::Closed, "connection closed by the server", "connection closed by the server", "stopped?"),
            (ConnectionError::NoAnswer(Duration::from_millis(14_900)), "no answer for 15 s", "no answer", "hangs"),
            (ProtocolError::BadMagic.into(), "sent bytes that are not a Gearman packet", "not Gearman", "port"),
            (refused(QUEUE_FULL), "refused with QUEUE_ERROR", "queue full", "maxqueue"),
            (refused("ARGUMENT_TOO_LARGE"), "refused with ARGUMENT_TOO_LARGE", "refused", "name is too long"),
            (refused("NO_SUCH"), "refused with NO_SUCH", "refused", "server's log"),
            (ConnectionError::Stopped, "stopped", "stopped", "start it again"),
        ] {
            assert_eq!(error.to_string(), text);
            assert_eq!(error.kind(), kind);
            assert!(error.advice().contains(advice), "{kind}: {}", error.advice());
        }
    }

    #[test]
    fn reasons_are_fit_for_the_status_and_their_kinds_hold_no_numbers() {
        let error = |kind: io::ErrorKind| io::Error::from(kind);
        let errors = [
            ConnectionError::Resolve,
            ConnectionError::Connect(io::Error::from_raw_os_error(24)),
            ConnectionError::Connect(error(io::ErrorKind::ConnectionRefused)),
            ConnectionError::Io(error(io::ErrorKind::ConnectionReset)),
            ConnectionError::Closed,
            ConnectionError::NoAnswer(Duration::from_secs(15)),
            ConnectionError::Protocol(ProtocolError::TooLong(usize::MAX)),
            ConnectionError::Refused("X".repeat(40)),
            ConnectionError::Refused(String::from(QUEUE_FULL)),
            ConnectionError::Stopped,
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.len() <= 80 && text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
            assert!(!text.contains(['|', '\'', '(', ')', '[', ']', '{', '}', '<', '>', ';']), "{text}");
            assert!(!error.kind().contains(|c: char| c.is_ascii_digit()), "{}", error.kind());
            assert!(!error.advice().is_empty());
        }
    }
}
