//! What stands at either end of a forward, and the bare workers and submissions that tell what the servers can do.

use std::io::{self, Write};
use std::net::Shutdown;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::wire::{self, Connection, first_argument, push_request, unexpected};

/// Grabs that a bare worker keeps on the wire: more makes gearmand no faster.
pub const WINDOW: usize = 1024;

/// Submissions are written in pieces of this many bytes.
const PIECE: usize = 64 << 10;

/// Jobs to be submitted: `count` of them, dealt out to `queues` in turn.
pub struct Load<'a> {
    pub queues: &'a [String],
    /// In turn, too.
    pub data: &'a [Vec<u8>],
    /// Whether each job has a unique id of 32 hex digits, as Mod-Gearman's have.
    pub unique: bool,
    pub count: u64,
}

/// Submits all of a load in the background without waiting for a reply before the next; how long until the last
/// was confirmed.
pub fn submit(port: u16, load: &Load) -> io::Result<Duration> {
    let mut connection = Connection::open(port)?;
    let mut socket = connection.socket()?;
    let begin = Instant::now();
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut out = Vec::new();
            let targets = load.queues.iter().cycle().zip(load.data.iter().cycle());
            for (job, (queue, data)) in (0..load.count).zip(targets) {
                // Multiplied, so that ids differ in every digit as hashes do.
                let unique = format!("{:032x}", u128::from(job + 1) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
                let unique = if load.unique { unique.as_bytes() } else { b"" };
                push_request(&mut out, wire::SUBMIT_JOB_BG, &[queue.as_bytes(), unique, data]);
                if out.len() >= PIECE {
                    socket.write_all(&out)?;
                    out.clear();
                }
            }
            socket.write_all(&out)
        });
        for _ in 0..load.count {
            connection.expect(wire::JOB_CREATED)?;
        }
        let taken = begin.elapsed();
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(taken)
    })
}

/// Takes `count` jobs with many grabs on the wire and acknowledges them; the time from the first to the last job.
pub fn drain(port: u16, queue: &str, count: u64, window: usize) -> io::Result<Duration> {
    let mut connection = Connection::open(port)?;
    connection.request(wire::CAN_DO, &[queue.as_bytes()]);
    let mut asked = count.min(window as u64);
    for _ in 0..asked {
        connection.request(wire::GRAB_JOB_UNIQ, &[]);
    }
    connection.flush()?;
    let mut out = Vec::new();
    let mut begin = None;
    for _ in 0..count {
        let body = connection.expect(wire::JOB_ASSIGN_UNIQ)?;
        begin.get_or_insert_with(Instant::now);
        push_request(&mut out, wire::WORK_COMPLETE, &[first_argument(body), b""]);
        if asked < count {
            asked += 1;
            push_request(&mut out, wire::GRAB_JOB_UNIQ, &[]);
        }
        if !connection.has_packet() {
            std::mem::swap(&mut connection.out, &mut out);
            connection.flush()?;
        }
    }
    let taken = begin.map(|begin| begin.elapsed()).unwrap_or_default();
    // The connection must not close before the server has read the last acknowledgements.
    connection.request(wire::GRAB_JOB_UNIQ, &[]);
    connection.flush()?;
    connection.expect(wire::NO_JOB)?;
    Ok(taken)
}

/// Relays `count` jobs one at a time, waiting for each reply: what a straightforward program does.
pub fn relay_one_by_one(source: u16, destination: u16, queue: &str, count: u64) -> io::Result<Duration> {
    let mut source = Connection::open(source)?;
    let mut destination = Connection::open(destination)?;
    source.request(wire::CAN_DO, &[queue.as_bytes()]);
    let begin = Instant::now();
    for _ in 0..count {
        source.request(wire::GRAB_JOB_UNIQ, &[]);
        source.flush()?;
        let body = source.expect(wire::JOB_ASSIGN_UNIQ)?;
        let mut parts = body.splitn(4, |&byte| byte == 0);
        let handle = parts.next().unwrap_or_default().to_vec();
        let data = parts.nth(2).unwrap_or_default();
        destination.request(wire::SUBMIT_JOB_BG, &[queue.as_bytes(), b"", data]);
        destination.flush()?;
        destination.expect(wire::JOB_CREATED)?;
        source.request(wire::WORK_COMPLETE, &[&handle, b""]);
    }
    source.request(wire::GRAB_JOB_UNIQ, &[]);
    source.flush()?;
    source.expect(wire::NO_JOB)?;
    Ok(begin.elapsed())
}

/// Takes one job; its data.
pub fn take_one(port: u16, queue: &str) -> io::Result<Vec<u8>> {
    let mut connection = Connection::open(port)?;
    connection.request(wire::CAN_DO, &[queue.as_bytes()]);
    connection.request(wire::GRAB_JOB_UNIQ, &[]);
    connection.flush()?;
    let body = connection.expect(wire::JOB_ASSIGN_UNIQ)?;
    Ok(body.splitn(4, |&byte| byte == 0).nth(3).unwrap_or_default().to_vec())
}

/// A client that waits for each reply.
pub struct Client {
    connection: Connection,
}

impl Client {
    pub fn open(port: u16) -> io::Result<Client> {
        Ok(Client { connection: Connection::open(port)? })
    }

    /// Submits one job in the background.
    pub fn submit(&mut self, queue: &str, data: &[u8]) -> io::Result<()> {
        self.connection.request(wire::SUBMIT_JOB_BG, &[queue.as_bytes(), b"", data]);
        self.connection.flush()?;
        self.connection.expect(wire::JOB_CREATED).map(drop)
    }

    /// Submits one job and waits for its result.
    pub fn ask(&mut self, queue: &str, data: &[u8]) -> io::Result<Vec<u8>> {
        self.connection.request(wire::SUBMIT_JOB, &[queue.as_bytes(), b"", data]);
        self.connection.flush()?;
        self.connection.expect(wire::JOB_CREATED)?;
        let result = self.connection.expect(wire::WORK_COMPLETE)?;
        Ok(result.splitn(2, |&byte| byte == 0).nth(1).unwrap_or_default().to_vec())
    }
}

/// A plain worker: one job at a time, asleep while there is none. It ends when dropped.
pub struct Worker {
    socket: std::net::TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A worker that gives `answer` of a job's data as its result.
    pub fn start(
        port: u16,
        queue: &str,
        answer: impl FnMut(&[u8]) -> io::Result<Vec<u8>> + Send + 'static,
    ) -> io::Result<Worker> {
        let mut connection = Connection::open(port)?;
        let socket = connection.socket()?;
        connection.request(wire::CAN_DO, &[queue.as_bytes()]);
        let thread = thread::spawn(move || {
            // Ends with the error that the shut-down socket brings.
            let _ = work(&mut connection, answer);
        });
        Ok(Worker { socket, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(connection: &mut Connection, mut answer: impl FnMut(&[u8]) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let mut out = Vec::new();
    let mut asleep = false;
    push_request(&mut out, wire::GRAB_JOB_UNIQ, &[]);
    loop {
        connection.out.append(&mut out);
        connection.flush()?;
        match connection.packet()? {
            (wire::JOB_ASSIGN_UNIQ, body) => {
                let result = answer(body.splitn(4, |&byte| byte == 0).nth(3).unwrap_or_default())?;
                push_request(&mut out, wire::WORK_COMPLETE, &[first_argument(body), &result]);
                push_request(&mut out, wire::GRAB_JOB_UNIQ, &[]);
            }
            (wire::NO_JOB, _) => {
                push_request(&mut out, wire::PRE_SLEEP, &[]);
                asleep = true;
            }
            (wire::NOOP, _) => {
                // One that crossed with a grab is ignored: the grab's answer is still to come.
                if std::mem::take(&mut asleep) {
                    push_request(&mut out, wire::GRAB_JOB_UNIQ, &[]);
                }
            }
            (kind, body) => return Err(unexpected(kind, body)),
        }
    }
}
