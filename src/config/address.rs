//! `HOST:PORT/QUEUE`: a queue of a job server.

use std::fmt;

/// A job server's address, as written in the configuration but for the default port and the host's case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server {
    /// A name or an IP address (IPv6 without brackets), lower case.
    pub host: String,
    /// 4730 unless written.
    pub port: u16,
}

impl fmt::Display for Server {
    /// `HOST:PORT`, an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A queue of a job server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The job server.
    pub server: Server,
    /// The function name in the protocol's terms.
    pub queue: String,
}

impl fmt::Display for Address {
    /// `HOST:PORT/QUEUE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.queue)
    }
}
