//! The floor: the least that a relay between two job servers can be, to measure the proxy against.
//!
//! A thread for each direction, which waits in a blocking read and handles all that it got with one write: no poll, no identity,
//! no ledger, no stages, no reconnect, no timeout, no bound on memory. It ends at the first error. Grabs are pipelined as
//! far as the source has jobs. It runs in a process of its own (`relay floor SOURCE DESTINATION QUEUE`), so that its CPU time
//! is counted as the proxy's is.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::load::WINDOW;
use crate::wire::{self, Connection, push_request, unexpected};

/// Grabs after a NOOP: with one alone, a source that gets jobs faster than one is grabbed would be emptied no faster.
const FIRST_GRABS: usize = 4;

/// The argument that makes this program a floor.
pub const ARGUMENT: &str = "floor";

/// A job's handle, without an allocation.
type Handle = ([u8; 64], usize);

/// What both directions write to the source, and know about it.
struct Source {
    socket: TcpStream,
    out: Vec<u8>,
    /// Of the jobs without a reply, in the order of their submission.
    handles: VecDeque<Handle>,
    /// Grabs without an answer.
    on_wire: usize,
    /// The source has no more jobs.
    drained: bool,
}

impl Source {
    fn grab(&mut self, count: usize) {
        for _ in 0..count {
            push_request(&mut self.out, wire::GRAB_JOB_UNIQ, &[]);
        }
        self.on_wire += count;
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.socket.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }
}

/// Relays forever, or until a server closes its connection.
pub fn run(source: u16, destination: u16, queue: &str) -> io::Result<()> {
    let mut from = Connection::open(source)?;
    let mut to = Connection::open(destination)?;
    let submit = to.socket()?;
    let mut state =
        Source { socket: from.socket()?, out: Vec::new(), handles: VecDeque::new(), on_wire: 0, drained: false };
    push_request(&mut state.out, wire::CAN_DO, &[queue.as_bytes()]);
    state.grab(FIRST_GRABS);
    state.flush()?;
    let state = Mutex::new(state);
    thread::scope(|scope| {
        scope.spawn(|| there(&mut from, &state, submit, queue.as_bytes()));
        back(&mut to, &state)
    })
}

/// Jobs to the destination.
fn there(from: &mut Connection, state: &Mutex<Source>, mut submit: TcpStream, queue: &[u8]) -> io::Result<()> {
    let mut submissions = Vec::new();
    let mut handles: Vec<Handle> = Vec::new();
    let (mut none, mut called) = (0, false);
    loop {
        match from.packet()? {
            (wire::JOB_ASSIGN_UNIQ, body) => {
                let mut parts = body.splitn(4, |&byte| byte == 0);
                let name = parts.next().unwrap_or_default();
                let (unique, data) = (parts.nth(1).unwrap_or_default(), parts.next().unwrap_or_default());
                push_request(&mut submissions, wire::SUBMIT_JOB_BG, &[queue, unique, data]);
                let mut handle = [0; 64];
                handle[..name.len()].copy_from_slice(name);
                handles.push((handle, name.len()));
            }
            (wire::NO_JOB, _) => none += 1,
            (wire::NOOP, _) => called = true,
            (kind, body) => return Err(unexpected(kind, body)),
        }
        if from.has_packet() {
            continue;
        }
        let came = handles.len();
        if came > 0 {
            lock(state).handles.extend(handles.drain(..));
            submit.write_all(&submissions)?;
            submissions.clear();
        }
        let mut state = lock(state);
        state.on_wire -= came + none;
        state.drained |= none > 0;
        if std::mem::take(&mut called) && state.drained {
            state.drained = false;
            state.grab(FIRST_GRABS);
        } else if state.drained && came + none > 0 && state.on_wire == 0 {
            push_request(&mut state.out, wire::PRE_SLEEP, &[]);
        }
        none = 0;
        state.flush()?;
    }
}

/// Acknowledgements to the source.
fn back(to: &mut Connection, state: &Mutex<Source>) -> io::Result<()> {
    let mut created = 0;
    loop {
        to.expect(wire::JOB_CREATED)?;
        created += 1;
        if to.has_packet() {
            continue;
        }
        let mut state = lock(state);
        for _ in 0..created {
            let (handle, length) = state.handles.pop_front().ok_or(io::ErrorKind::InvalidData)?;
            push_request(&mut state.out, wire::WORK_COMPLETE, &[&handle[..length], b""]);
        }
        if !state.drained {
            // Twice as many, as long as all bring jobs.
            let room = WINDOW.saturating_sub(state.on_wire + state.handles.len());
            state.grab((2 * created).min(room));
        }
        created = 0;
        state.flush()?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
