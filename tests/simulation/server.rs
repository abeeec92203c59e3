//! A job server as gearmand 1.1.20 behaves (measured; see the documentation of the protocol), without its sockets: packets
//! in, packets and happenings out.
//!
//! One connection can do one queue, as the proxy's do. Clients of the source and workers of the destination are local:
//! they call instead of sending packets, because nothing is to be learnt from their connections.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::clock::Micros;
use crate::plan::{self, Class, Kind, QUEUES};
use crate::wire::{self, kind};

/// Who waits for a foreground job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Connection(usize),
    /// Who submitted this order.
    Order(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    Connection(usize),
    Local,
}

/// How a job left the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its class's result: see [`plan::result`].
    Completed,
    /// As a background job, whose result nobody knows.
    Acknowledged,
    /// With something else.
    CompletedWrongly,
    Failed,
    Exception,
    /// Its last foreground client had left; dropped unanswered.
    Abandoned,
    /// The server restarted without it.
    LostAtRestart,
    /// It was given back too often.
    Retries,
}

/// A job of the server, kept after its end.
#[derive(Debug)]
pub struct Job {
    pub queue: usize,
    pub class: usize,
    pub handle: u32,
    pub unique: Vec<u8>,
    /// It was sent a unique id of 64 bytes.
    overhang: bool,
    pub data: Rc<[u8]>,
    pub background: bool,
    priority: usize,
    pub clients: Vec<Client>,
    pub worker: Option<Worker>,
    /// Times that it was given back, and how many of these the proxy chose.
    pub returns: u32,
    pub chosen_returns: u32,
    ignored: bool,
    pub end: Option<(Micros, End)>,
    pub incarnation: u32,
    /// The connection that submitted it.
    pub by: Option<usize>,
    /// When it was last assigned, as a number that grows.
    pub assigned: u64,
    /// Which of the class's copies this is, in the books.
    pub copy: usize,
}

/// What the books are told.
#[derive(Debug, Clone, Copy)]
pub enum Happening {
    Created {
        job: usize,
    },
    Merged {
        job: usize,
        class: usize,
    },
    Refused,
    Assigned {
        job: usize,
    },
    NoJob,
    Noop,
    /// `dropped`: too often.
    Returned {
        job: usize,
        connection: usize,
        dropped: bool,
    },
    Ended {
        job: usize,
        end: End,
    },
    /// A packet about a job that the connection does not hold.
    NotFound,
}

/// Whether a connection goes on after a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Goes,
    Closes,
}

#[derive(Debug)]
struct Peer {
    connection: usize,
    queue: Option<usize>,
    /// Oldest first.
    jobs: Vec<usize>,
    sleeping: bool,
    noop_sent: bool,
}

#[derive(Debug, Default)]
struct Function {
    queues: [VecDeque<usize>; 3],
    /// Queued or running.
    live: Vec<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    pub up: bool,
    pub hung: bool,
    pub process_id: u32,
    /// It always told a process id by which it is known from the one before.
    pub telling: bool,
    /// Counts its restarts.
    pub incarnation: u32,
    pub retries: Option<u32>,
    /// Jobs that a queue may hold.
    pub limits: [usize; QUEUES],
    pub jobs: Vec<Job>,
    /// Jobs by handle.
    handles: Vec<usize>,
    functions: [Function; QUEUES],
    peers: Vec<Peer>,
    /// Jobs that local workers run.
    pub busy: usize,
    assignments: u64,
    pub happened: Vec<Happening>,
    /// What is to be sent, in order: the bytes' ends in `outgoing`.
    pub outputs: Vec<(usize, usize)>,
    pub outgoing: Vec<u8>,
}

/// Process ids from here on tell a server from the one before its restart.
const TELLING: u32 = 300;

const LONGEST_UNIQUE: usize = 64;

impl Server {
    pub fn new(process_id: u32, tells: bool, retries: Option<u32>) -> Server {
        Server {
            telling: tells && process_id >= TELLING,
            up: true,
            hung: false,
            process_id,
            incarnation: 0,
            retries,
            limits: [usize::MAX; QUEUES],
            jobs: Vec::new(),
            handles: Vec::new(),
            functions: Default::default(),
            peers: Vec::new(),
            busy: 0,
            assignments: 0,
            happened: Vec::new(),
            outputs: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    pub fn connect(&mut self, connection: usize) {
        self.peers.push(Peer { connection, queue: None, jobs: Vec::new(), sleeping: false, noop_sent: false });
    }

    fn peer(&mut self, connection: usize) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.connection == connection)
    }

    pub fn connections(&self) -> impl Iterator<Item = usize> + '_ {
        self.peers.iter().map(|peer| peer.connection)
    }

    /// Jobs queued or running.
    pub fn live(&self, queue: usize) -> usize {
        self.functions[queue].live.len()
    }

    /// The connection is gone. `chosen`: the proxy left by itself.
    pub fn close(&mut self, connection: usize, now: Micros, chosen: bool) {
        let Some(at) = self.peers.iter().position(|peer| peer.connection == connection) else { return };
        let peer = self.peers.remove(at);
        for &job in peer.jobs.iter().rev() {
            self.give_back(job, connection, now, chosen);
        }
        for function in &self.functions {
            for &job in &function.live {
                let job = &mut self.jobs[job];
                let before = job.clients.len();
                job.clients.retain(|client| *client != Client::Connection(connection));
                job.ignored |= before > 0 && job.clients.is_empty();
            }
        }
    }

    /// A local foreground client leaves.
    pub fn leave(&mut self, order: usize) {
        for function in &self.functions {
            for &job in &function.live {
                let job = &mut self.jobs[job];
                let before = job.clients.len();
                job.clients.retain(|client| *client != Client::Order(order));
                job.ignored |= before > 0 && job.clients.is_empty();
            }
        }
    }

    fn give_back(&mut self, id: usize, connection: usize, now: Micros, chosen: bool) {
        let job = &mut self.jobs[id];
        job.worker = None;
        job.returns += 1;
        job.chosen_returns += u32::from(chosen);
        let dropped = self.retries.is_some_and(|retries| job.returns >= retries);
        self.happened.push(Happening::Returned { job: id, connection, dropped });
        if dropped {
            self.end(id, End::Retries, now);
        } else {
            self.enqueue(id);
        }
    }

    /// The process ends and another takes its place: handles begin again. `keeps`: its queue is persistent.
    pub fn restart(&mut self, keeps: bool, process_id: u32, now: Micros) {
        self.incarnation += 1;
        self.process_id = process_id;
        self.telling &= process_id >= TELLING;
        self.peers.clear();
        self.handles.clear();
        self.busy = 0;
        let mut live: Vec<usize> = Vec::new();
        for function in &mut self.functions {
            live.append(&mut function.live);
            *function = Function::default();
        }
        live.sort_unstable();
        for id in live {
            let job = &mut self.jobs[id];
            job.clients.clear();
            job.worker = None;
            if keeps && job.background && !job.ignored {
                self.handles.push(id);
                job.handle = self.handles.len() as u32;
                job.incarnation = self.incarnation;
                self.functions[job.queue].live.push(id);
                self.enqueue(id);
            } else {
                job.end = Some((now, End::LostAtRestart));
                self.happened.push(Happening::Ended { job: id, end: End::LostAtRestart });
            }
        }
    }

    fn enqueue(&mut self, id: usize) {
        let (queue, priority) = (self.jobs[id].queue, self.jobs[id].priority);
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            if peer.queue == Some(queue) && peer.sleeping && !peer.noop_sent {
                peer.noop_sent = true;
                let to = peer.connection;
                self.happened.push(Happening::Noop);
                self.reply(to, kind::NOOP, &[]);
            }
        }
        self.functions[queue].queues[priority].push_back(id);
    }

    /// Takes a job out of the server.
    fn end(&mut self, id: usize, end: End, now: Micros) {
        let job = &mut self.jobs[id];
        let function = &mut self.functions[job.queue];
        function.live.retain(|live| *live != id);
        match job.worker.take() {
            Some(Worker::Local) => self.busy -= 1,
            Some(Worker::Connection(connection)) => {
                if let Some(peer) = self.peers.iter_mut().find(|peer| peer.connection == connection) {
                    peer.jobs.retain(|held| *held != id);
                }
            }
            None => function.queues[job.priority].retain(|queued| *queued != id),
        }
        job.end = Some((now, end));
        self.happened.push(Happening::Ended { job: id, end });
    }

    fn reply(&mut self, to: usize, kind: u32, arguments: &[&[u8]]) {
        wire::response(&mut self.outgoing, kind, arguments);
        self.outputs.push((to, self.outgoing.len()));
    }

    fn error(&mut self, to: usize, code: &[u8]) {
        self.reply(to, kind::ERROR, &[code, b"text"]);
    }

    /// Executes a packet of a connection. `server` is its number.
    pub fn execute(
        &mut self,
        from: usize,
        kind: u32,
        body: &[u8],
        classes: &[Class],
        server: usize,
        now: Micros,
    ) -> After {
        match kind {
            kind::ECHO_REQ => self.reply(from, kind::ECHO_RES, &[body]),
            kind::CAN_DO => {
                let queue = plan::queue(body);
                if let Some(peer) = self.peer(from) {
                    peer.queue = queue;
                }
            }
            kind::PRE_SLEEP => {
                let Some(queue) = self.peer(from).and_then(|peer| peer.queue) else { return After::Closes };
                if self.drop_ignored(queue, now) {
                    self.happened.push(Happening::Noop);
                    self.reply(from, kind::NOOP, &[]);
                } else if let Some(peer) = self.peer(from) {
                    peer.sleeping = true;
                }
            }
            kind::GRAB_JOB_UNIQ => self.grab(from, server, now),
            kind::WORK_COMPLETE
            | kind::WORK_FAIL
            | kind::WORK_EXCEPTION
            | kind::WORK_DATA
            | kind::WORK_WARNING
            | kind::WORK_STATUS => self.work(from, kind, body, now),
            _ => {
                let Some((priority, background)) = wire::submission(kind) else { return After::Closes };
                let Some([queue, unique, data]) = wire::arguments(body) else { return After::Closes };
                let (Some(queue), Some(class)) = (plan::queue(queue), plan::class(data)) else { return After::Closes };
                let treated_badly = plan::is_work_queue(queue);
                match classes.get(class).map(|class| class.kind) {
                    Some(Kind::Poison) if treated_badly => return After::Closes,
                    Some(Kind::Refused) if treated_badly => {
                        self.happened.push(Happening::Refused);
                        self.error(from, b"NOT_LIKED");
                    }
                    _ => {
                        let client = (!background).then_some(Client::Connection(from));
                        let submission = Submission { queue, class, unique, data, priority, client, by: Some(from) };
                        match self.submit(&submission) {
                            Ok(job) => {
                                let mut text = [0; 24];
                                let handle = wire::handle(&mut text, server, self.jobs[job].handle);
                                self.reply(from, kind::JOB_CREATED, &[handle]);
                            }
                            Err(code) => self.error(from, code),
                        }
                    }
                }
            }
        }
        After::Goes
    }

    /// The job that was created, or that it was merged with.
    pub fn submit(&mut self, submission: &Submission<'_>) -> Result<usize, &'static [u8]> {
        let Submission { queue, class, unique, data, priority, client, by } = *submission;
        if unique.len() > LONGEST_UNIQUE {
            return Err(b"ARGUMENT_TOO_LARGE");
        }
        let stored = &unique[..unique.len().min(LONGEST_UNIQUE - 1)];
        let overhang = unique.len() == LONGEST_UNIQUE;
        let same = |job: &&usize| {
            let job = &self.jobs[**job];
            job.unique == stored && !job.overhang && (stored != b"-" || *job.data == *data)
        };
        // One of 64 bytes is compared with the 63 that were stored, and never found again.
        if !stored.is_empty()
            && !overhang
            && let Some(&first) = self.functions[queue].live.iter().rev().find(same)
        {
            self.jobs[first].clients.extend(client);
            self.happened.push(Happening::Merged { job: first, class });
            return Ok(first);
        }
        if self.functions[queue].live.len() >= self.limits[queue] {
            self.happened.push(Happening::Refused);
            return Err(b"QUEUE_ERROR");
        }
        let id = self.jobs.len();
        self.handles.push(id);
        self.jobs.push(Job {
            queue,
            class,
            handle: self.handles.len() as u32,
            unique: stored.to_vec(),
            overhang,
            data: data.into(),
            background: client.is_none(),
            priority,
            clients: client.into_iter().collect(),
            worker: None,
            returns: 0,
            chosen_returns: 0,
            ignored: false,
            end: None,
            incarnation: self.incarnation,
            by,
            assigned: 0,
            copy: 0,
        });
        self.functions[queue].live.push(id);
        self.happened.push(Happening::Created { job: id });
        self.enqueue(id);
        Ok(id)
    }

    /// Whether a job waits that a grab would bring.
    fn drop_ignored(&mut self, queue: usize, now: Micros) -> bool {
        loop {
            let Some(&id) = self.functions[queue].queues.iter().find_map(VecDeque::front) else { return false };
            if !self.jobs[id].ignored {
                return true;
            }
            self.end(id, End::Abandoned, now);
        }
    }

    /// The next job of a queue for a worker.
    pub fn take(&mut self, queue: usize, worker: Worker, now: Micros) -> Option<usize> {
        if !self.drop_ignored(queue, now) {
            return None;
        }
        let id = self.functions[queue].queues.iter_mut().find_map(VecDeque::pop_front)?;
        self.assignments += 1;
        self.jobs[id].worker = Some(worker);
        self.jobs[id].assigned = self.assignments;
        self.busy += usize::from(worker == Worker::Local);
        self.happened.push(Happening::Assigned { job: id });
        Some(id)
    }

    fn grab(&mut self, from: usize, server: usize, now: Micros) {
        let Some(peer) = self.peer(from) else { return };
        peer.sleeping = false;
        peer.noop_sent = false;
        let taken = peer.queue.and_then(|queue| self.take(queue, Worker::Connection(from), now));
        let Some(id) = taken else {
            self.happened.push(Happening::NoJob);
            return self.reply(from, kind::NO_JOB, &[]);
        };
        if let Some(peer) = self.peer(from) {
            peer.jobs.push(id);
        }
        let job = &self.jobs[id];
        let mut text = [0; 24];
        let handle = wire::handle(&mut text, server, job.handle);
        // The length that was sent with an id of 64 bytes covers a NUL after the 63 that were stored.
        let overhang: &[u8] = if job.overhang { b"\0" } else { b"" };
        let parts: [&[u8]; 7] = [handle, b"\0", plan::queue_name(job.queue), b"\0", &job.unique, b"\0", overhang];
        wire::response_of(&mut self.outgoing, kind::JOB_ASSIGN_UNIQ, &parts, &job.data);
        self.outputs.push((from, self.outgoing.len()));
    }

    /// The job of this handle that a connection holds.
    pub fn held(&self, connection: usize, handle: u32) -> Option<usize> {
        let id = *self.handles.get(handle.checked_sub(1)? as usize)?;
        (self.jobs[id].worker == Some(Worker::Connection(connection))).then_some(id)
    }

    fn work(&mut self, from: usize, kind: u32, body: &[u8], now: Micros) {
        let (handle, data) = wire::split(body);
        let Some(id) = wire::handle_number(handle).and_then(|number| self.held(from, number)) else {
            self.happened.push(Happening::NotFound);
            return self.error(from, b"JOB_NOT_FOUND");
        };
        let end = match kind {
            kind::WORK_COMPLETE if data == wire::BACKGROUND => End::Acknowledged,
            kind::WORK_COMPLETE if plan::is_result(data, self.jobs[id].class) => End::Completed,
            kind::WORK_COMPLETE => End::CompletedWrongly,
            kind::WORK_FAIL => End::Failed,
            kind::WORK_EXCEPTION => End::Exception,
            _ => return,
        };
        self.end(id, end, now);
    }

    /// A local worker says something about its job, or ends it.
    pub fn local_work(&mut self, id: usize, kind: u32, data: &[u8], server: usize, now: Micros) {
        let mut text = [0; 24];
        let handle = wire::handle(&mut text, server, self.jobs[id].handle);
        for at in 0..self.jobs[id].clients.len() {
            if let Client::Connection(to) = self.jobs[id].clients[at] {
                match kind {
                    kind::WORK_FAIL => self.reply(to, kind, &[handle]),
                    _ => self.reply(to, kind, &[handle, data]),
                }
            }
        }
        match kind {
            kind::WORK_COMPLETE => self.end(id, End::Completed, now),
            kind::WORK_FAIL => self.end(id, End::Failed, now),
            kind::WORK_EXCEPTION => self.end(id, End::Exception, now),
            _ => {}
        }
    }
}

/// What a client submits.
#[derive(Debug, Clone, Copy)]
pub struct Submission<'a> {
    pub queue: usize,
    pub class: usize,
    pub unique: &'a [u8],
    pub data: &'a [u8],
    pub priority: usize,
    pub client: Option<Client>,
    pub by: Option<usize>,
}
