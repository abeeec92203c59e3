//! A connection to a job server: opened, proved alive, and its errors in our own words.

use std::fmt;
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::packet::{Incoming, Packet, ProtocolError, kind, put_request};

/// An idle connection is probed by the kernel after this time, then every [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Bytes that the peer's kernel does not acknowledge for this long end a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a server may send before it has answered our first request, bytes.
const HANDSHAKE_LIMIT: usize = 64 << 10;

/// The error code of a server whose queue takes no more jobs.
pub const QUEUE_FULL: &str = "QUEUE_ERROR";

/// How long a connection may take to come about.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To connect, for each of the addresses that a name has.
    pub connect: Duration,
    /// To answer the first request: a hung server still accepts.
    pub answer: Duration,
}

impl Limits {
    /// The same, neither of them longer than `time`.
    pub fn within(self, time: Duration) -> Limits {
        Limits { connect: self.connect.min(time), answer: self.answer.min(time) }
    }
}

/// What went wrong with a connection.
#[derive(Debug)]
pub enum ConnectionError {
    /// The name could not be resolved.
    Resolve(io::Error),
    /// No connection came about: another try later may work.
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
}

impl fmt::Display for ConnectionError {
    /// Own words in printable ASCII, without brackets, quotes and bars, at most 80 bytes: the status shows them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::Resolve(error) if error.raw_os_error().is_some() => {
                write!(f, "name could not be resolved: {}", reason(error))
            }
            ConnectionError::Resolve(_) => write!(f, "name could not be resolved"),
            ConnectionError::Connect(error) | ConnectionError::Io(error) => f.write_str(reason(error)),
            ConnectionError::Closed => f.write_str("connection closed by the server"),
            ConnectionError::NoAnswer(limit) => write!(f, "no answer for {} s", limit.as_secs_f32().round()),
            ConnectionError::Protocol(error) => error.fmt(f),
            ConnectionError::Refused(code) => write!(f, "refused with {code}"),
        }
    }
}

impl std::error::Error for ConnectionError {}

impl ConnectionError {
    /// What a person can do about it, where that is known.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            ConnectionError::Resolve(_) => Some("check the host name and the resolver"),
            ConnectionError::Connect(error) if out_of_files(error) => Some("raise the limit of open files"),
            ConnectionError::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Some("is gearmand running there, and on this port?"),
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    Some("check the route and the firewall")
                }
                _ => None,
            },
            ConnectionError::Refused(code) if code == QUEUE_FULL => {
                Some("its queue is full: do its workers keep up? gearadmin sets the limit with maxqueue")
            }
            ConnectionError::Refused(code) if code == "ARGUMENT_TOO_LARGE" => {
                Some("the queue's name is too long for it")
            }
            ConnectionError::NoAnswer(_) => Some("the server accepts connections but hangs: look at its process"),
            ConnectionError::Protocol(_) => Some("is this port a Gearman job server's, without TLS?"),
            _ => None,
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

fn out_of_files(error: &io::Error) -> bool {
    // EMFILE, ENFILE
    matches!(error.raw_os_error(), Some(23 | 24))
}

fn reason(error: &io::Error) -> &'static str {
    if out_of_files(error) {
        return "too many open files";
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset",
        io::ErrorKind::ConnectionAborted => "connection aborted",
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "connection timed out",
        io::ErrorKind::HostUnreachable => "no route to the host",
        io::ErrorKind::NetworkUnreachable => "network unreachable",
        io::ErrorKind::NetworkDown => "network down",
        io::ErrorKind::PermissionDenied => "not permitted by this host",
        io::ErrorKind::AddrNotAvailable => "no local address or port left",
        io::ErrorKind::OutOfMemory => "out of memory",
        _ => "network error",
    }
}

/// An open connection to a job server that has answered.
#[derive(Debug)]
pub struct Connection {
    /// The socket; both directions.
    pub stream: TcpStream,
    /// What was read from it and not taken yet.
    pub incoming: Incoming,
}

impl Connection {
    /// Connects, and waits for the answer to an ECHO_REQ: only then does the server count as connected. The name is
    /// resolved anew each time and each of its addresses tried.
    ///
    /// `client_id` is what `gearadmin --workers` shows.
    ///
    /// # Errors
    /// No connection within the limits.
    pub fn open(host: &str, port: u16, client_id: &str, limits: &Limits) -> Result<Connection, ConnectionError> {
        let mut last = ConnectionError::Resolve(io::ErrorKind::NotFound.into());
        for address in (host, port).to_socket_addrs().map_err(ConnectionError::Resolve)? {
            let attempt = TcpStream::connect_timeout(&address, limits.connect)
                .map_err(ConnectionError::Connect)
                .and_then(|stream| Connection::greet(stream, client_id, limits));
            match attempt {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn greet(stream: TcpStream, client_id: &str, limits: &Limits) -> Result<Connection, ConnectionError> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        let mut connection = Connection { stream, incoming: Incoming::default() };
        let mut request = Vec::new();
        put_request(&mut request, kind::SET_CLIENT_ID, &[client_id.as_bytes()]);
        connection.ask(request, limits.answer, |_| ())?;
        Ok(connection)
    }

    /// Sends `request` with an ECHO_REQ behind it and waits for its answer; hands every line of text before that to
    /// `line`. Packets before it, an ERROR for a request that this server doesn't know say, are nobody's business.
    fn ask(
        &mut self,
        mut request: Vec<u8>,
        limit: Duration,
        mut line: impl FnMut(&[u8]),
    ) -> Result<(), ConnectionError> {
        const MARK: &[u8] = b"gearman-proxy";
        let deadline = Instant::now() + limit;
        put_request(&mut request, kind::ECHO_REQ, &[MARK]);
        self.stream.set_write_timeout(Some(limit))?;
        self.stream.write_all(&request)?;
        loop {
            if self.incoming.unread().first().is_some_and(|&byte| byte != 0) {
                let unread = self.incoming.unread();
                if let Some(end) = unread.iter().position(|&byte| byte == b'\n') {
                    line(&unread[..end]);
                    self.incoming.skip(end + 1);
                    continue;
                }
                if unread.len() > HANDSHAKE_LIMIT {
                    return Err(ProtocolError::BadMagic.into());
                }
            } else if let Some(packet) = self.incoming.next(|_| HANDSHAKE_LIMIT)? {
                if packet == (Packet { kind: kind::ECHO_RES, body: MARK }) {
                    return Ok(());
                }
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectionError::NoAnswer(limit));
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.incoming.fill(&mut &self.stream) {
                Err(error) if is_timeout(&error) => return Err(ConnectionError::NoAnswer(limit)),
                other => other?,
            }
        }
    }

    /// The server's process id, from its admin command `getpid`; `None` when it doesn't know the command.
    ///
    /// # Errors
    /// The connection broke, or there was no answer at all within `limit`. A server that closes the connection on an
    /// unknown command is to be connected again and not to be asked.
    pub fn process_id(&mut self, limit: Duration) -> Result<Option<u32>, ConnectionError> {
        let mut process_id = None;
        self.ask(b"getpid\n".to_vec(), limit, |line| {
            let text = std::str::from_utf8(line).unwrap_or_default();
            process_id = text.strip_prefix("OK ").and_then(|number| number.trim().parse().ok());
        })?;
        Ok(process_id)
    }

    /// Asks for an option of this connection, `exceptions` say. A server that doesn't know it goes on without.
    ///
    /// # Errors
    /// The connection broke, or there was no answer within `limit`.
    pub fn set_option(&mut self, option: &str, limit: Duration) -> Result<(), ConnectionError> {
        let mut request = Vec::new();
        put_request(&mut request, kind::OPTION_REQ, &[option.as_bytes()]);
        self.ask(request, limit, |_| ())
    }
}

/// Whether a read or write ended because its time was up.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The code of an ERROR packet, cut and made printable.
pub fn error_code(body: &[u8]) -> String {
    let code = body.split(|&byte| byte == 0).next().unwrap_or_default();
    code.iter()
        .take(40)
        .map(|&byte| if byte.is_ascii_alphanumeric() || byte == b'_' { byte as char } else { '?' })
        .collect()
}
