//! `HOST:PORT/QUEUE`: a queue of a job server, or several in one text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::{is_hidden, quoted};
use crate::syntax::{SyntaxError, behind, fail};

/// The port of a job server whose address names none (IANA's for gearman).
pub const DEFAULT_PORT: u16 = 4730;

/// Longer queue names than this are cut or refused by the clients there are (libgearman's
/// `GEARMAN_FUNCTION_MAX_SIZE`), bytes.
pub const MAX_QUEUE_SIZE: usize = 512;

const FORM: &str = "HOST:PORT/QUEUE";

/// A job server's address, as written in the configuration but for the default port and the host's case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server {
    /// A name or an IP address (IPv6 without brackets), lower case.
    pub host: String,
    /// 4730 unless written.
    pub port: u16,
}

impl fmt::Display for Server {
    /// `HOST:PORT`, an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

/// A queue of a job server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

impl Address {
    /// Reads `HOST:PORT/QUEUE`, `HOST/QUEUE` or `[IPv6]:PORT/QUEUE`; variables have to be expanded already.
    ///
    /// # Errors
    /// The text is none of these, or the port or the queue name can't be used.
    pub fn parse(text: &str) -> Result<Address, SyntaxError> {
        let (server, queue, offset) = split(text)?;
        check_written(queue, "").map_err(behind(offset))?;
        Ok(Address { server, queue: queue.to_owned() })
    }

    /// The same for all ways to write this address.
    pub(super) fn canonical(&self) -> Address {
        Address { server: self.server.canonical(), queue: self.queue.clone() }
    }

    /// On the same server.
    pub(super) fn with_queue(&self, queue: &str) -> Address {
        Address { server: self.server.clone(), queue: queue.to_owned() }
    }
}

/// Reads a forward's source: an address whose queue may be a pattern with `*` and `?`, and with one `{...}` of words,
/// which makes an address of each.
///
/// # Errors
/// See [`Address::parse`].
pub(super) fn sources(text: &str) -> Result<Vec<Address>, SyntaxError> {
    let (server, queue, offset) = split(text)?;
    let braces = queue.split_once('{').map(|(before, rest)| (before, rest.split_once('}')));
    let names = match braces {
        None => vec![queue.to_owned()],
        Some((before, Some((words, after)))) if words.split(',').all(|word| !word.trim().is_empty()) => {
            words.split(',').map(|word| format!("{before}{}{after}", word.trim())).collect()
        }
        Some((before, _)) => {
            let message = "braces hold queue names, separated by commas: HOST:PORT/{QUEUE,QUEUE}";
            return fail(offset + before.len(), message);
        }
    };
    let whole = braces.is_none();
    let at = |error: SyntaxError| SyntaxError { offset: offset + if whole { error.offset } else { 0 }, ..error };
    names.iter().try_for_each(|name| check_written(name, "*?")).map_err(at)?;
    Ok(names.into_iter().map(|queue| Address { server: server.clone(), queue }).collect())
}

/// Reads a forward's destinations, which are separated by a comma with a blank behind it. One that ends in `/` has an
/// empty queue: it keeps the source's.
///
/// # Errors
/// See [`Address::parse`].
pub(super) fn destinations(text: &str) -> Result<Vec<Address>, SyntaxError> {
    let mut found: Vec<Address> = Vec::new();
    let mut offset = 0;
    for piece in text.replace('\t', " ").split(", ") {
        let start = offset + piece.len() - piece.trim_start().len();
        let destination = match split(piece.trim()) {
            Ok((server, "", _)) => Address { server, queue: String::new() },
            _ => Address::parse(piece.trim()).map_err(behind(start))?,
        };
        if found.iter().any(|other| other.canonical() == destination.canonical()) {
            return fail(start, format!("the destination {destination} is given twice"));
        }
        found.push(destination);
        offset += piece.len() + ", ".len();
    }
    Ok(found)
}

/// The server, the queue as written and where it begins.
fn split(text: &str) -> Result<(Server, &str, usize), SyntaxError> {
    if text.is_empty() {
        return fail(0, format!("an address is missing: {FORM}"));
    }
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        return fail(0, format!("an address is written without quotes, not with {quote}"));
    }
    let Some((server, queue)) = text.split_once('/') else {
        return fail(text.len(), format!("the queue is missing in {}: {FORM}", quoted(text)));
    };
    Ok((Server::parse(server)?, queue, server.len() + 1))
}

impl Server {
    /// Reads `HOST:PORT`, `HOST` or `[IPv6]:PORT`.
    ///
    /// # Errors
    /// The text is none of these, or the port is out of range.
    pub fn parse(text: &str) -> Result<Server, SyntaxError> {
        let (host, after) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(None) => return fail(0, "the bracket is not closed: [IPv6]:PORT/QUEUE"),
            Some(Some((host, _))) if !is_ipv6(host) => {
                return fail(1, format!("{} is not an IPv6 address: [IPv6]:PORT/QUEUE", quoted(host)));
            }
            Some(Some(parts)) => parts,
            None if text.matches(':').count() > 1 => {
                return fail(0, "an IPv6 address stands in brackets: [IPv6]:PORT/QUEUE");
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        if !text.starts_with('[') {
            check_host(host)?;
        }
        let offset = text.len() - after.len();
        let port = match after.strip_prefix(':') {
            None if after.is_empty() => DEFAULT_PORT,
            None => return fail(offset, "only :PORT or /QUEUE may follow the bracket: [IPv6]:PORT/QUEUE"),
            Some("") => return fail(offset + 1, "the port is missing: a number from 1 to 65535"),
            Some(digits) => match digits.parse() {
                Ok(port) if port > 0 && !digits.starts_with('+') => port,
                _ => {
                    let message = format!("invalid port {}: expected a number from 1 to 65535", quoted(digits));
                    return fail(offset + 1, message);
                }
            },
        };
        Ok(Server { host: host.to_ascii_lowercase(), port })
    }

    /// The same for all ways to write this server that the text alone tells.
    pub(super) fn canonical(&self) -> Server {
        let ip = self.host.parse::<IpAddr>().map(|ip| ip.to_canonical());
        let host = match ip {
            Ok(ip) if ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST => "localhost".to_owned(),
            Ok(ip) => ip.to_string(),
            Err(_) => self.host.clone(),
        };
        Server { host, port: self.port }
    }
}

/// Whether this is an IPv6 address, which may name its interface: `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "none"));
    address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_graphic())
}

fn check_host(host: &str) -> Result<(), SyntaxError> {
    if host.is_empty() {
        return fail(0, format!("the host is missing: {FORM}"));
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if let Some((offset, c)) = host.char_indices().find(|(_, c)| !allowed(c)) {
        let c = quoted(c.encode_utf8(&mut [0; 4]));
        return fail(offset, format!("{c} can't stand in a host name: {}", quoted(host)));
    }
    // A resolver would take it for a name and ask for it forever.
    let dotted = host.split('.').count() == 4 && host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if dotted && host.parse::<Ipv4Addr>().is_err() {
        return fail(0, format!("`{host}` is not an IPv4 address: four numbers from 0 to 255 with dots between"));
    }
    Ok(())
}

/// Whether a queue name can be used with every job server and client: the administrative text protocol separates by
/// blanks and line ends, and names over [`MAX_QUEUE_SIZE`] are not supported everywhere. Characters that nobody sees make
/// one name look like another.
///
/// # Errors
/// It can't.
pub fn check_queue(name: &str) -> Result<(), SyntaxError> {
    if name.is_empty() {
        return fail(0, format!("the queue name is empty: {FORM}"));
    }
    if let Some((offset, c)) = name.char_indices().find(|(_, c)| c.is_whitespace() || is_hidden(*c)) {
        let what = if c.is_whitespace() { "blanks" } else { "invisible characters" };
        let shown = quoted(name);
        return fail(offset, format!("the queue name {shown} has {what}; a queue name can have none"));
    }
    if name.len() > MAX_QUEUE_SIZE {
        let message = format!("the queue name has {} bytes; at most {MAX_QUEUE_SIZE} are possible", name.len());
        return fail(0, message);
    }
    Ok(())
}

/// Checks a queue name of a configuration: what means something in a source's queue is refused elsewhere, where it could
/// only be a mistake.
pub(super) fn check_written(name: &str, allowed: &str) -> Result<(), SyntaxError> {
    check_queue(name)?;
    let Some((offset, c)) = name.char_indices().find(|(_, c)| "{}*?,".contains(*c) && !allowed.contains(*c)) else {
        return Ok(());
    };
    let why = match c {
        ',' => "several destinations are separated by a comma and a blank, several source queues stand in braces",
        '{' | '}' => "only a source has braces, one pair: HOST:PORT/{QUEUE,QUEUE}",
        _ => "only a source's queue may be a pattern; a destination HOST:PORT/ keeps the queue's name",
    };
    fail(offset, format!("`{c}` can't stand in the queue name {}: {why}", quoted(name)))
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
        assert_eq!(error("h:0/q"), (2, "invalid port `0`: expected a number from 1 to 65535".into()));
        assert_eq!(error("h:65536/q"), (2, "invalid port `65536`: expected a number from 1 to 65535".into()));
        assert_eq!(error("h:+1/q"), (2, "invalid port `+1`: expected a number from 1 to 65535".into()));
        assert_eq!(error("h:/q"), (2, "the port is missing: a number from 1 to 65535".into()));
        assert_eq!(error("/q"), (0, "the host is missing: HOST:PORT/QUEUE".into()));
        assert_eq!(error("a b/q"), (1, "` ` can't stand in a host name: `a b`".into()));
        assert_eq!(error("h/"), (2, "the queue name is empty: HOST:PORT/QUEUE".into()));
        assert_eq!(error("h/a b"), (3, "the queue name `a b` has blanks; a queue name can have none".into()));
        let control = "the queue name `a\\u{1}` has invisible characters; a queue name can have none";
        assert_eq!(error("h/a\u{1}"), (3, control.into()));
        assert_eq!(error("h:1"), (3, "the queue is missing in `h:1`: HOST:PORT/QUEUE".into()));
        assert_eq!(error("::1/q"), (0, "an IPv6 address stands in brackets: [IPv6]:PORT/QUEUE".into()));
        assert_eq!(error("[::1/q"), (0, "the bracket is not closed: [IPv6]:PORT/QUEUE".into()));
        assert_eq!(error("[h]/q"), (1, "`h` is not an IPv6 address: [IPv6]:PORT/QUEUE".into()));
        assert_eq!(error("[::1]4/q").0, 5);
        assert_eq!(error("\"h/q\"").0, 0);
        assert_eq!(error("10.0.0.256/q").0, 0);
        assert_eq!(error(""), (0, "an address is missing: HOST:PORT/QUEUE".into()));
    }

    #[test]
    fn a_queue_name_has_512_bytes_at_most() {
        assert!(Address::parse(&format!("h/{}", "q".repeat(512))).is_ok());
        let (offset, message) = error(&format!("h/{}", "ü".repeat(257)));
        assert_eq!((offset, message.as_str()), (2, "the queue name has 514 bytes; at most 512 are possible"));
    }

    fn shown_all(read: fn(&str) -> Result<Vec<Address>, SyntaxError>, text: &str) -> Vec<String> {
        read(text).unwrap().iter().map(Address::to_string).collect()
    }

    #[test]
    fn braces_make_a_source_of_each_word() {
        assert_eq!(shown_all(sources, "h/{host, service}"), ["h:4730/host", "h:4730/service"]);
        assert_eq!(shown_all(sources, "h/a_{1,2*}_?"), ["h:4730/a_1_?", "h:4730/a_2*_?"]);
        assert_eq!(shown_all(sources, "h/{one}"), ["h:4730/one"]);
        for (text, offset) in [("h/x{a,b", 3), ("h/{a,,b}", 2), ("h/{}", 2), ("h/{a}{b}", 2), ("h/a}", 3), ("h/a,b", 3)]
        {
            assert_eq!(sources(text).unwrap_err().offset, offset, "{text}");
        }
    }

    #[test]
    fn destinations_are_separated_by_a_comma_and_a_blank() {
        assert_eq!(shown_all(destinations, "h/a,  [::1]/b,\th:1/"), ["h:4730/a", "[::1]:4730/b", "h:1/"]);
        for (text, offset) in [("h/a, ", 5), ("h/a,h/b", 3), ("h/a, x:0/b", 7), ("h/a, H/a", 5), ("h/*", 2), ("", 0)] {
            let error = destinations(text).unwrap_err();
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
    }

    #[test]
    fn one_server_has_one_canonical_form() {
        for (text, canonical) in [
            ("localhost", "localhost:4730"),
            ("127.0.0.1:1", "localhost:1"),
            ("[0:0::1]", "localhost:4730"),
            ("[::ffff:127.0.0.1]", "localhost:4730"),
            ("[2001:db8:0:0::1]", "[2001:db8::1]:4730"),
            ("[FE80::0:1%eth0]", "[fe80::0:1%eth0]:4730"),
            ("127.0.0.2", "127.0.0.2:4730"),
        ] {
            assert_eq!(Server::parse(text).unwrap().canonical().to_string(), canonical, "{text}");
        }
    }
}
