//! What asks a running proxy and ends: `--status`, `--top`, and `--replay`, which needs none.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Address;
use crate::gearman::admin;
use crate::gearman::connection::{Connection, ConnectionError, End, Limits, error_code};
use crate::gearman::packet::{MAX_UNIQUE_SIZE, Packet, ProtocolError, kind, put_request, request};
use crate::latch::Latch;

const LIMITS: Limits = Limits { connect: Duration::from_secs(5), answer: Duration::from_secs(5) };

/// How long an answer may take, as check_gearman waits.
const PATIENCE: Duration = Duration::from_secs(9);

/// How often `--top` looks.
const REFRESH: Duration = Duration::from_secs(1);

/// The longest answer, bytes: the largest table in characters of four bytes.
const MAX_ANSWER: usize = 4 << 20;

/// The longest job that is replayed, bytes: more than `max_job_size` can be.
const MAX_JOB: usize = (1 << 30) + (4 << 10);

const CRITICAL: u8 = 2;
const UNKNOWN: u8 = 3;

/// `--status`: prints the status queue's answer as check_gearman does; its code is the exit status.
///
/// # Errors
/// The output can't be written.
pub fn status(address: &Address, out: &mut impl Write) -> io::Result<u8> {
    let (code, text) = asked(address, "check");
    writeln!(out, "{text}")?;
    Ok(code)
}

/// `--top`: shows the proxy's table every second until a signal ends it, or `once`.
///
/// # Errors
/// The output can't be written.
pub fn top(address: &Address, once: bool, out: &mut impl Write) -> io::Result<u8> {
    if once || !io::stdout().is_terminal() {
        // Rates take two questions.
        let (columns, _) = size();
        let payload = format!("table {columns}x500");
        let (mut code, mut text) = asked(address, &payload);
        if code < UNKNOWN {
            thread::sleep(REFRESH);
            (code, text) = asked(address, &payload);
        }
        writeln!(out, "{text}")?;
        return Ok(code);
    }
    loop {
        let next = Instant::now() + REFRESH;
        let (columns, lines) = size();
        let (_, text) = asked(address, &format!("table {columns}x{}", lines.saturating_sub(1)));
        // Home, each line with what was behind it cleared, then all below.
        let screen = text.replace('\n', "\x1b[K\n");
        write!(out, "\x1b[H{screen}\x1b[K\n\x1b[J")?;
        out.flush()?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// The terminal's columns and lines.
fn size() -> (usize, usize) {
    let of_terminal = || {
        let terminal = File::open("/dev/tty").ok()?;
        let output = Command::new("stty").arg("size").stdin(terminal).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (lines, columns) = text.trim().split_once(' ')?;
        Some((columns.parse().ok()?, lines.parse().ok()?))
    };
    let variable = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let terminal = of_terminal().filter(|&(columns, lines)| columns > 0 && lines > 0);
    terminal.unwrap_or_else(|| (variable("COLUMNS").unwrap_or(120), variable("LINES").unwrap_or(24)))
}

/// The answer's code and text, or what stands in for them; fit for a terminal.
fn asked(address: &Address, payload: &str) -> (u8, String) {
    match question(address, payload) {
        Ok(answer) => match answer.split_once(':') {
            Some((code @ ("0" | "1" | "2" | "3"), text)) => (code.parse().unwrap_or(UNKNOWN), plain(text)),
            _ => (UNKNOWN, plain(&format!("UNKNOWN - {address} does not answer as gearman-proxy does: {answer}"))),
        },
        Err(ConnectionError::NoAnswer(PATIENCE)) => {
            let limit = PATIENCE.as_secs();
            (CRITICAL, format!("CRITICAL - no answer on {address} for {limit} s: is gearman-proxy running?"))
        }
        Err(error) => (UNKNOWN, format!("UNKNOWN - {address} can't be asked: {error} ({})", error.advice())),
    }
}

/// What came from outside, without what a terminal obeys or eyes are misled by.
fn plain(text: &str) -> String {
    let fit = |character: char| matches!(character, '\n' | ' '..='~') || character.is_alphanumeric();
    let shown = |character| if fit(character) { character } else { '?' };
    text.chars().map(shown).collect()
}

/// Submits one job in the foreground and waits for its result.
fn question(address: &Address, payload: &str) -> Result<String, ConnectionError> {
    let deadline = Instant::now() + PATIENCE;
    let mut connection = Connection::open(&address.server, "gearman-proxy-ask", &LIMITS, &Latch::default())?;
    // Not merged with anyone else's question, whose answer may have another size.
    let unique = format!("gearman-proxy-ask-{}", std::process::id());
    let arguments = [address.queue.as_bytes(), unique.as_bytes(), payload.as_bytes()];
    connection.send(&request(kind::SUBMIT_JOB_HIGH, &arguments), LIMITS.answer)?;
    loop {
        let packet = reply(&mut connection, deadline, MAX_ANSWER)?;
        match packet.kind {
            kind::WORK_COMPLETE => {
                let ([_handle], answer) = packet.arguments()?;
                return Ok(String::from_utf8_lossy(answer).into_owned());
            }
            kind::WORK_FAIL => return Err(ConnectionError::Refused(String::from("WORK_FAIL"))),
            _ => {}
        }
    }
}

/// The next packet; one with data may hold `data` bytes. An ERROR is a refusal.
fn reply(connection: &mut Connection, deadline: Instant, data: usize) -> Result<Packet<'_>, ConnectionError> {
    let packet = connection.next(deadline, data)?.ok_or(ConnectionError::NoAnswer(PATIENCE))?;
    match packet.kind {
        kind::ERROR => Err(ConnectionError::Refused(error_code(packet.body))),
        _ => Ok(packet),
    }
}

/// `--replay`: moves the jobs that wait in `from` to `to`, each acknowledged only when `to` has it, and prints how many.
/// Those that come meanwhile stay: a job that is rejected again must not go round.
///
/// # Errors
/// The output can't be written.
pub fn replay(from: &Address, to: &Address, out: &mut impl Write) -> io::Result<u8> {
    let mut moved = 0;
    let ended = moving(from, to, &mut moved);
    writeln!(out, "{moved} jobs moved from {from} to {to}")?;
    if let Err((server, error)) = &ended {
        let advice = error.advice();
        let told = format!("gearman-proxy: {server}: {error} ({advice}); the other jobs are still in {from}\n");
        // If it can't be written, nothing more can be done.
        let _ = io::stderr().write_all(told.as_bytes());
    }
    Ok(u8::from(ended.is_err()))
}

fn moving<'a>(from: &'a Address, to: &'a Address, moved: &mut u64) -> Result<(), (&'a Address, ConnectionError)> {
    let (at_source, at_destination) = (|error| (from, error), |error| (to, error));
    let stop = Latch::default();
    let open = |address: &Address| Connection::open(&address.server, "gearman-proxy-replay", &LIMITS, &stop);
    let mut destination = open(to).map_err(at_destination)?;
    let waiting = admin::queue(from, &LIMITS, &stop).map_err(at_source)?.waiting();
    let mut source = open(from).map_err(at_source)?;
    let mut written = request(kind::CAN_DO, &[from.queue.as_bytes()]);
    while *moved < waiting {
        put_request(&mut written, kind::GRAB_JOB_UNIQ, &[]);
        let Some((handle, submission)) = taken(&mut source, &written, to).map_err(at_source)? else {
            return Ok(());
        };
        submitted(&mut destination, &submission).map_err(at_destination)?;
        written = request(kind::WORK_COMPLETE, &[&handle, b""]);
        *moved += 1;
    }
    // Without an answer behind it, the last acknowledgement may not have arrived.
    source.ask(&written, End::Echo, LIMITS.answer, |_| ()).map_err(at_source)
}

/// A job's handle, and the job as a request for the other server.
type Taken = (Vec<u8>, Vec<u8>);

/// Sends what ends with a GRAB_JOB_UNIQ; the job that comes, if there is one.
fn taken(source: &mut Connection, requests: &[u8], to: &Address) -> Result<Option<Taken>, ConnectionError> {
    source.send(requests, PATIENCE)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let packet = reply(source, deadline, MAX_JOB)?;
        match packet.kind {
            kind::JOB_ASSIGN_UNIQ => {
                let ([handle, _queue, unique], mut data) = packet.arguments()?;
                // gearmand stores an id of 64 bytes as 63 and leaves a NUL before the data.
                if unique.len() == MAX_UNIQUE_SIZE {
                    data = data.strip_prefix(b"\0").unwrap_or(data);
                }
                let submission = request(kind::SUBMIT_JOB_BG, &[to.queue.as_bytes(), unique, data]);
                return Ok(Some((handle.to_vec(), submission)));
            }
            kind::NO_JOB => return Ok(None),
            kind::NOOP => {}
            other => return Err(ProtocolError::Unexpected(other).into()),
        }
    }
}

fn submitted(destination: &mut Connection, submission: &[u8]) -> Result<(), ConnectionError> {
    destination.send(submission, PATIENCE)?;
    match reply(destination, Instant::now() + PATIENCE, 0)?.kind {
        kind::JOB_CREATED => Ok(()),
        other => Err(ProtocolError::Unexpected(other).into()),
    }
}
