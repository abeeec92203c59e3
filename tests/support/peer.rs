//! A client and a worker that speak the Gearman protocol packet by packet (gearmand's PROTOCOL file).

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;
pub use super::wire::*;

/// One packet as it came: its type and the bytes after the header.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    pub kind: u32,
    pub body: Vec<u8>,
}

impl Packet {
    /// The body cut at its first NULs into `count` arguments; the last one may hold NULs.
    pub fn arguments(&self, count: usize) -> Vec<&[u8]> {
        let arguments: Vec<_> = self.body.splitn(count, |byte| *byte == 0).collect();
        assert_eq!(arguments.len(), count, "{self:?}");
        arguments
    }

    /// What stands behind the job's handle.
    pub fn after_handle(&self) -> &[u8] {
        self.arguments(2)[1]
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "packet {} \"{}\"", self.kind, self.body.escape_ascii())
    }
}

/// Packets over TCP.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        let stream =
            TcpStream::connect_timeout(&address, PATIENCE).unwrap_or_else(|error| panic!("{address}: {error}"));
        Connection::over(stream)
    }

    pub fn over(stream: TcpStream) -> Connection {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { reader: BufReader::with_capacity(1 << 16, stream) }
    }

    pub fn send(&mut self, kind: u32, arguments: &[&[u8]]) {
        self.send_raw(&request(kind, arguments));
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    #[track_caller]
    pub fn receive(&mut self) -> Packet {
        let mut head = [0; HEADER];
        self.reader.read_exact(&mut head).expect("a packet's header");
        assert_eq!(&head[..4], b"\0RES");
        let (kind, length) = header(&head);
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).expect("a packet's body");
        Packet { kind, body }
    }

    /// Whether nothing arrives for this long.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        if !self.reader.buffer().is_empty() {
            return false;
        }
        let stream = self.reader.get_ref();
        stream.set_read_timeout(Some(time)).unwrap();
        let silent = stream.peek(&mut [0]).is_err();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }

    #[track_caller]
    pub fn expect(&mut self, kind: u32) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.kind, kind, "{packet:?}");
        packet
    }
}

/// Submits jobs.
pub struct Client(Connection);

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client(Connection::open(address))
    }

    /// Asks for WORK_EXCEPTION, which a server else turns into WORK_FAIL.
    pub fn with_exceptions(mut self) -> Client {
        self.0.send(OPTION_REQ, &[b"exceptions"]);
        self.0.expect(OPTION_RES);
        self
    }

    /// Submits with any of the SUBMIT_JOB packets and returns the handle.
    #[track_caller]
    pub fn submit_as(&mut self, kind: u32, queue: &str, unique: &[u8], data: &[u8]) -> Vec<u8> {
        self.0.send(kind, &[queue.as_bytes(), unique, data]);
        self.0.expect(JOB_CREATED).body
    }

    /// In the foreground; what becomes of it is read by [`Client::receive`].
    #[track_caller]
    pub fn submit(&mut self, queue: &str, unique: &[u8], data: &[u8]) -> Vec<u8> {
        self.submit_as(SUBMIT_JOB, queue, unique, data)
    }

    #[track_caller]
    pub fn submit_background(&mut self, queue: &str, unique: &[u8], data: &[u8]) -> Vec<u8> {
        self.submit_as(SUBMIT_JOB_BG, queue, unique, data)
    }

    /// Many background jobs without unique ids.
    #[track_caller]
    pub fn submit_all(&mut self, queue: &str, jobs: &[Vec<u8>]) {
        // A server that is not read from stops reading too: so no more at once than its answers have room for.
        for some in jobs.chunks(256) {
            let bytes: Vec<u8> =
                some.iter().flat_map(|data| request(SUBMIT_JOB_BG, &[queue.as_bytes(), b"", data])).collect();
            self.0.send_raw(&bytes);
            for _ in some {
                self.0.expect(JOB_CREATED);
            }
        }
    }

    #[track_caller]
    pub fn receive(&mut self) -> Packet {
        self.0.receive()
    }

    pub fn is_silent(&mut self, time: Duration) -> bool {
        self.0.is_silent(time)
    }

    /// A foreground job's result; panics when it fails.
    #[track_caller]
    pub fn ask(&mut self, queue: &str, unique: &[u8], data: &[u8]) -> Vec<u8> {
        let handle = self.submit(queue, unique, data);
        let packet = self.0.expect(WORK_COMPLETE);
        assert_eq!(packet.arguments(2)[0], handle);
        packet.after_handle().to_vec()
    }
}

/// A job as a worker gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub handle: Vec<u8>,
    pub unique: Vec<u8>,
    pub data: Vec<u8>,
}

/// Takes jobs.
pub struct Worker(Connection);

impl Worker {
    pub fn connect(address: SocketAddr, queues: &[&str]) -> Worker {
        let mut connection = Connection::open(address);
        for queue in queues {
            connection.send(CAN_DO, &[queue.as_bytes()]);
        }
        Worker(connection)
    }

    /// The next job, as soon as there is one.
    #[track_caller]
    pub fn grab(&mut self) -> Job {
        loop {
            if let Some(job) = self.try_grab() {
                return job;
            }
            self.0.send(PRE_SLEEP, &[]);
            self.0.expect(NOOP);
        }
    }

    /// A job if one waits.
    #[track_caller]
    pub fn try_grab(&mut self) -> Option<Job> {
        self.0.send(GRAB_JOB_UNIQ, &[]);
        loop {
            let packet = self.0.receive();
            match packet.kind {
                NOOP => {}
                NO_JOB => return None,
                JOB_ASSIGN_UNIQ => {
                    let [handle, _queue, unique, data] = packet.arguments(4)[..] else { unreachable!() };
                    let data = data.to_vec();
                    return Some(Job { handle: handle.to_vec(), unique: unique.to_vec(), data });
                }
                _ => panic!("{packet:?}"),
            }
        }
    }

    /// Sends any WORK packet of a job.
    pub fn send(&mut self, kind: u32, job: &Job, arguments: &[&[u8]]) {
        let mut all: Vec<&[u8]> = vec![&job.handle];
        all.extend(arguments);
        self.0.send(kind, &all);
    }

    pub fn complete(&mut self, job: &Job, result: &[u8]) {
        self.send(WORK_COMPLETE, job, &[result]);
    }

    /// Waits until the server has read everything that was sent.
    #[track_caller]
    pub fn settle(&mut self) {
        self.0.send(ECHO_REQ, &[b"settled"]);
        while self.0.receive().kind != ECHO_RES {}
    }
}
