//! `HOST:PORT/QUEUE`: a queue of a job server.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::error::quoted;

/// The port of a job server whose address names none (IANA's for gearman).
pub const DEFAULT_PORT: u16 = 4730;

/// Longer queue names than this are cut or refused by the clients there are (libgearman's
/// `GEARMAN_FUNCTION_MAX_SIZE`), bytes.
pub const MAX_QUEUE_SIZE: usize = 512;

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

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    /// What is wrong, and what would be right.
    pub message: String,
    /// The spot: bytes from the beginning of the text.
    pub offset: usize,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AddressError {}

fn wrong<T>(offset: usize, message: impl Into<String>) -> Result<T, AddressError> {
    Err(AddressError { message: message.into(), offset })
}

impl Address {
    /// Reads `HOST:PORT/QUEUE`, `HOST/QUEUE` or `[IPv6]:PORT/QUEUE`; variables have to be expanded already.
    ///
    /// # Errors
    /// The text is none of these, or the port or the queue name can't be used.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        if text.is_empty() {
            return wrong(0, "an address is missing: HOST:PORT/QUEUE");
        }
        if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            return wrong(0, format!("an address is written without quotes, not with {quote}"));
        }
        let Some((server, queue)) = text.split_once('/') else {
            return wrong(text.len(), format!("{} names no queue: HOST:PORT/QUEUE", quoted(text)));
        };
        let queue_offset = server.len() + 1;
        let server = Server::parse(server)?;
        check_queue(queue).map_err(|error| AddressError { offset: queue_offset + error.offset, ..error })?;
        Ok(Address { server, queue: queue.to_owned() })
    }
}

impl Server {
    /// Reads `HOST:PORT`, `HOST` or `[IPv6]:PORT`.
    ///
    /// # Errors
    /// The text is none of these, or the port is out of range.
    pub fn parse(text: &str) -> Result<Server, AddressError> {
        let (host, port, port_offset) = if let Some(rest) = text.strip_prefix('[') {
            let Some((host, after)) = rest.split_once(']') else {
                return wrong(0, "the bracket is not closed: [IPv6]:PORT/QUEUE");
            };
            if !is_ipv6(host) {
                return wrong(1, format!("{} is no IPv6 address: [IPv6]:PORT/QUEUE", quoted(host)));
            }
            let after_offset = host.len() + 2;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port), after_offset + 1),
                None if after.is_empty() => (host, None, after_offset),
                None => {
                    return wrong(after_offset, "only :PORT or /QUEUE may follow the bracket: [IPv6]:PORT/QUEUE");
                }
            }
        } else {
            if text.matches(':').count() > 1 {
                return wrong(0, "an IPv6 address stands in brackets: [IPv6]:PORT/QUEUE");
            }
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port), host.len() + 1),
                None => (text, None, 0),
            }
        };
        if !text.starts_with('[') {
            check_host(host)?;
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(digits) => match digits.parse::<u16>() {
                Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => port,
                _ if digits.is_empty() => {
                    return wrong(port_offset, "the port is missing: a number from 1 to 65535");
                }
                _ => {
                    return wrong(port_offset, format!("{} is no port: a number from 1 to 65535", quoted(digits)));
                }
            },
        };
        Ok(Server { host: host.to_ascii_lowercase(), port })
    }
}

/// Whether this is an IPv6 address, which may name its interface: `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    address.parse::<Ipv6Addr>().is_ok()
        && zone.is_none_or(|zone| !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_graphic()))
}

fn check_host(host: &str) -> Result<(), AddressError> {
    if host.is_empty() {
        return wrong(0, "the host is missing: HOST:PORT/QUEUE");
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if let Some((offset, c)) = host.char_indices().find(|(_, c)| !allowed(c)) {
        let c = quoted(c.encode_utf8(&mut [0; 4]));
        return wrong(offset, format!("{c} can't stand in a host name: {}", quoted(host)));
    }
    // A resolver would take it for a name and ask for it for ever.
    let dotted = host.split('.').count() == 4 && host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if dotted && host.parse::<Ipv4Addr>().is_err() {
        return wrong(0, format!("`{host}` is no IPv4 address: four numbers from 0 to 255 with dots between"));
    }
    Ok(())
}

/// Whether a queue name can be used with every job server and client: the administrative text protocol separates by
/// blanks and line ends, and names over [`MAX_QUEUE_SIZE`] are not supported everywhere.
///
/// # Errors
/// It can't.
pub fn check_queue(name: &str) -> Result<(), AddressError> {
    if name.is_empty() {
        return wrong(0, "the queue name is empty: HOST:PORT/QUEUE");
    }
    if let Some((offset, c)) = name.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control()) {
        let what = if c.is_whitespace() { "blanks" } else { "control characters" };
        let shown = quoted(name);
        return wrong(offset, format!("the queue name {shown} has {what}; a queue name can have none"));
    }
    if name.len() > MAX_QUEUE_SIZE {
        let message = format!("the queue name has {} bytes; it may have {MAX_QUEUE_SIZE}", name.len());
        return wrong(0, message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Address::parse(text).unwrap().to_string()
    }

    fn error(text: &str) -> (usize, String) {
        let error = Address::parse(text).unwrap_err();
        (error.offset, error.message)
    }

    #[test]
    fn the_three_forms_are_read() {
        assert_eq!(shown("127.0.0.1:4731/check_results"), "127.0.0.1:4731/check_results");
        assert_eq!(shown("Gearman.Example.org/a"), "gearman.example.org:4730/a");
        assert_eq!(shown("[::1]:4731/a"), "[::1]:4731/a");
        assert_eq!(shown("[2001:DB8::1]/a"), "[2001:db8::1]:4730/a");
        assert_eq!(shown("[fe80::1%eth0]/a"), "[fe80::1%eth0]:4730/a");
    }

    #[test]
    fn the_first_slash_ends_the_server_and_the_queue_keeps_the_rest_and_its_case() {
        let address = Address::parse("h:1/A/b=c:d").unwrap();
        assert_eq!(address.server, Server { host: "h".into(), port: 1 });
        assert_eq!(address.queue, "A/b=c:d");
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        assert_eq!(error("h:0/q"), (2, "`0` is no port: a number from 1 to 65535".into()));
        assert_eq!(error("h:65536/q"), (2, "`65536` is no port: a number from 1 to 65535".into()));
        assert_eq!(error("h:+1/q"), (2, "`+1` is no port: a number from 1 to 65535".into()));
        assert_eq!(error("h:/q"), (2, "the port is missing: a number from 1 to 65535".into()));
        assert_eq!(error("/q"), (0, "the host is missing: HOST:PORT/QUEUE".into()));
        assert_eq!(error("a b/q"), (1, "` ` can't stand in a host name: `a b`".into()));
        assert_eq!(error("h/"), (2, "the queue name is empty: HOST:PORT/QUEUE".into()));
        assert_eq!(error("h/a b"), (3, "the queue name `a b` has blanks; a queue name can have none".into()));
        let control = "the queue name `a\\u{1}` has control characters; a queue name can have none";
        assert_eq!(error("h/a\u{1}"), (3, control.into()));
        assert_eq!(error("h:1"), (3, "`h:1` names no queue: HOST:PORT/QUEUE".into()));
        assert_eq!(error("::1/q"), (0, "an IPv6 address stands in brackets: [IPv6]:PORT/QUEUE".into()));
        assert_eq!(error("[::1/q"), (0, "the bracket is not closed: [IPv6]:PORT/QUEUE".into()));
        assert_eq!(error("[h]/q"), (1, "`h` is no IPv6 address: [IPv6]:PORT/QUEUE".into()));
        assert_eq!(error("[::1]4/q").0, 5);
        assert_eq!(error("\"h/q\"").0, 0);
        assert_eq!(error("10.0.0.256/q").0, 0);
        assert_eq!(error(""), (0, "an address is missing: HOST:PORT/QUEUE".into()));
    }

    #[test]
    fn a_queue_name_has_512_bytes_at_most() {
        assert!(Address::parse(&format!("h/{}", "q".repeat(512))).is_ok());
        let (offset, message) = error(&format!("h/{}", "ü".repeat(257)));
        assert_eq!((offset, message.as_str()), (2, "the queue name has 514 bytes; it may have 512"));
    }
}
