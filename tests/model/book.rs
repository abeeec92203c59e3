//! What a gearmand knows and decides, without its sockets: connections, functions, jobs, and a history of all that
//! ever happened to them, by which a schedule is judged in the end.
//!
//! Its behaviour is that of gearmand 1.1.20; `differential.rs` compares the two packet by packet.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::wire::*;

/// Orders events across servers.
#[derive(Clone, Default)]
pub struct Sequence(Arc<AtomicU64>);

impl Sequence {
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Never used twice by one server, whatever restarts.
pub type ConnectionId = usize;

/// An index into [`Book::jobs`].
pub type JobId = usize;

/// How a job left the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Completed(Vec<u8>),
    Failed,
    Exception(Vec<u8>),
    /// Its last foreground client left, and gearmand drops such a job unanswered.
    Abandoned,
    /// The server restarted without keeping it.
    LostAtRestart,
}

/// One job from its submission on; kept after its end.
#[derive(Debug, Clone)]
pub struct Job {
    pub function: Vec<u8>,
    pub handle: Vec<u8>,
    /// As stored, at most 63 bytes.
    pub unique: Vec<u8>,
    /// The length that was sent, which JOB_ASSIGN_UNIQ goes by.
    unique_length: usize,
    /// What gearmand hashes to find the job by its unique id: the id, or the data where the id is `-`.
    merged_by: Vec<u8>,
    pub data: Vec<u8>,
    pub priority: usize,
    pub background: bool,
    /// Milliseconds of Unix time before which it is not given out.
    due: u64,
    pub created: u64,
    pub created_by: ConnectionId,
    /// Who got it and when.
    pub assignments: Vec<(u64, ConnectionId)>,
    /// Servers' restarts that it outlived, each of which changed its handle.
    pub restarts: usize,
    pub end: Option<(u64, End)>,
    clients: Vec<ConnectionId>,
    worker: Option<ConnectionId>,
    status: (u32, u32),
    ignored: bool,
}

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    Created(JobId),
    Merged(JobId),
    Refused,
}

/// One SUBMIT_JOB of any kind that was executed, whether or not the reply arrived.
#[derive(Debug, Clone)]
pub struct Submission {
    pub at: u64,
    pub by: ConnectionId,
    pub function: Vec<u8>,
    pub unique: Vec<u8>,
    pub data: Vec<u8>,
    pub background: bool,
    pub accepted: Accepted,
}

#[derive(Default)]
struct Function {
    queues: [VecDeque<JobId>; 3],
    /// Queued or running.
    live: Vec<JobId>,
    running: usize,
    /// SUBMIT_JOB is refused at so many jobs, by priority; 0 is no limit.
    limits: [usize; 3],
}

/// A function that a connection can do; gearmand keeps one for each CAN_DO, so a function may be there twice.
struct Ability {
    function: Vec<u8>,
    /// Newest first.
    jobs: Vec<JobId>,
}

#[derive(Default)]
struct Connection {
    /// Newest first.
    abilities: Vec<Ability>,
    sleeping: bool,
    noop_sent: bool,
    exceptions: bool,
}

/// Whether a connection goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Goes,
    Closes,
}

pub struct Book {
    pub sequence: Sequence,
    pub process_id: u32,
    pub jobs: Vec<Job>,
    pub submissions: Vec<Submission>,
    /// How often the server restarted.
    pub restarts: usize,
    next_handle: u32,
    next_connection: ConnectionId,
    functions: BTreeMap<Vec<u8>, Function>,
    connections: HashMap<ConnectionId, Connection>,
    handles: HashMap<Vec<u8>, JobId>,
    /// What has to be written, in order.
    pub outputs: Vec<(ConnectionId, Vec<u8>)>,
    /// A submission to this function of data that begins like this closes the connection, as a server does that can't
    /// bear a job.
    pub poison: Option<(Vec<u8>, Vec<u8>)>,
    /// A submission to this function of data that begins like this is answered by an error.
    pub refused: Option<(Vec<u8>, Vec<u8>)>,
    /// Connections on which the process id was asked.
    pub identified: HashSet<ConnectionId>,
    /// Packets that gearmand would not understand: nobody may send it any.
    pub malformed: Vec<String>,
}

/// Stored ids are cut to this.
const UNIQUE_STORED: usize = 63;
const UNIQUE_LONGEST: usize = 64;
pub const HANDLE_PREFIX: &str = "H:model";
pub const NORMAL: usize = 1;

/// Whether a submission is one of those that are treated badly.
fn is_of(kind: &Option<(Vec<u8>, Vec<u8>)>, arguments: &[&[u8]]) -> bool {
    kind.as_ref().is_some_and(|(function, prefix)| arguments[0] == function && arguments[2].starts_with(prefix))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

impl Book {
    pub fn new(sequence: Sequence, process_id: u32) -> Book {
        Book {
            sequence,
            process_id,
            jobs: Vec::new(),
            submissions: Vec::new(),
            restarts: 0,
            next_handle: 1,
            next_connection: 1,
            functions: BTreeMap::new(),
            connections: HashMap::new(),
            handles: HashMap::new(),
            outputs: Vec::new(),
            poison: None,
            refused: None,
            identified: HashSet::new(),
            malformed: Vec::new(),
        }
    }

    pub fn connect(&mut self) -> ConnectionId {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, Connection::default());
        id
    }

    /// The server noticed that a connection is closed: its jobs go back, its foreground jobs die.
    pub fn close(&mut self, id: ConnectionId) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        for ability in connection.abilities.drain(..) {
            for job in ability.jobs {
                self.requeue(job);
            }
        }
        for job in self.functions.values().flat_map(|function| function.live.clone()).collect::<Vec<_>>() {
            let job = &mut self.jobs[job];
            let before = job.clients.len();
            job.clients.retain(|client| *client != id);
            if before > 0 && job.clients.is_empty() {
                job.ignored = true;
            }
        }
    }

    /// The server's process ends and another takes its place: handles begin again. Jobs in memory are lost, or kept as
    /// by a persistent queue, which knows background jobs only.
    pub fn restart(&mut self, keeps_jobs: bool, process_id: u32) {
        self.process_id = process_id;
        self.restarts += 1;
        self.next_handle = 1;
        self.connections.clear();
        self.handles.clear();
        self.outputs.clear();
        let mut live: Vec<JobId> = Vec::new();
        for function in self.functions.values_mut() {
            live.append(&mut function.live);
            *function = Function::default();
        }
        live.sort_unstable();
        for id in live {
            let kept = keeps_jobs && self.jobs[id].background && !self.jobs[id].ignored;
            self.jobs[id].clients.clear();
            self.jobs[id].worker = None;
            if kept {
                self.jobs[id].restarts += 1;
                let handle = self.new_handle();
                self.jobs[id].handle = handle.clone();
                self.handles.insert(handle, id);
                let job = &self.jobs[id];
                let function = self.functions.entry(job.function.clone()).or_default();
                function.live.push(id);
                function.queues[job.priority].push_back(id);
            } else {
                let at = self.sequence.next();
                self.jobs[id].end = Some((at, End::LostAtRestart));
            }
        }
    }

    /// Refuses submissions to a function that has so many jobs; 0 is no limit.
    pub fn limit(&mut self, function: &[u8], limit: usize) {
        self.functions.entry(function.to_vec()).or_default().limits = [limit; 3];
    }

    /// Jobs queued or running in a function.
    pub fn live(&self, function: &[u8]) -> usize {
        self.functions.get(function).map_or(0, |function| function.live.len())
    }

    /// Submits a job that falls due later, as SUBMIT_JOB_EPOCH does, but by milliseconds.
    pub fn submit_delayed(&mut self, from: ConnectionId, function: &[u8], data: &[u8], delay: Duration) {
        self.submit(from, function, b"", data, NORMAL, true, now() + delay.as_millis() as u64);
    }

    /// Jobs waiting in a function that would be given out, with their foreground clients.
    pub fn waiting(&self, function: &[u8]) -> Vec<(JobId, Vec<ConnectionId>)> {
        let Some(function) = self.functions.get(function) else { return Vec::new() };
        let waiting = function.queues.iter().flatten().filter(|id| !self.jobs[**id].ignored);
        waiting.map(|id| (*id, self.jobs[*id].clients.clone())).collect()
    }

    /// Whether a connection is open as far as the server knows.
    pub fn is_open(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Executes one message from a connection; what it brings about is in `outputs`.
    pub fn execute(&mut self, from: ConnectionId, message: &Message) -> After {
        if !self.connections.contains_key(&from) {
            return After::Closes;
        }
        match message {
            Message::Request(packet) => {
                let after = self.request(from, packet);
                if after == After::Closes && !self.is_poison(packet) {
                    self.malformed.push(format!("{packet:?}"));
                }
                after
            }
            Message::Response(_) => {
                self.error(from, b"INVALID_MAGIC", b"Request magic expected");
                After::Goes
            }
            Message::Line(line) => {
                self.text(from, line);
                After::Goes
            }
            Message::BadMagic => {
                self.malformed.push("bad magic".to_owned());
                After::Closes
            }
        }
    }

    fn is_poison(&self, packet: &Packet) -> bool {
        packet.arguments(3).is_some_and(|arguments| is_of(&self.poison, &arguments))
    }

    fn reply(&mut self, to: ConnectionId, kind: u32, arguments: &[&[u8]]) {
        self.outputs.push((to, response(kind, arguments)));
    }

    fn error(&mut self, to: ConnectionId, code: &[u8], text: &[u8]) {
        self.reply(to, ERROR, &[code, text]);
    }

    fn new_handle(&mut self) -> Vec<u8> {
        let handle = format!("{HANDLE_PREFIX}:{}", self.next_handle).into_bytes();
        self.next_handle += 1;
        handle
    }

    fn request(&mut self, from: ConnectionId, packet: &Packet) -> After {
        match packet.kind {
            ECHO_REQ => self.reply(from, ECHO_RES, &[&packet.body]),
            SUBMIT_JOB | SUBMIT_JOB_BG | SUBMIT_JOB_HIGH | SUBMIT_JOB_HIGH_BG | SUBMIT_JOB_LOW | SUBMIT_JOB_LOW_BG => {
                let Some(arguments) = packet.arguments(3) else { return After::Closes };
                if self.is_poison(packet) {
                    return After::Closes;
                }
                if is_of(&self.refused, &arguments) {
                    self.error(from, b"SOMETHING", b"The job is not liked");
                    return After::Goes;
                }
                let priority = match packet.kind {
                    SUBMIT_JOB_HIGH | SUBMIT_JOB_HIGH_BG => 0,
                    SUBMIT_JOB | SUBMIT_JOB_BG => NORMAL,
                    _ => 2,
                };
                let background = matches!(packet.kind, SUBMIT_JOB_BG | SUBMIT_JOB_HIGH_BG | SUBMIT_JOB_LOW_BG);
                self.submit(from, arguments[0], arguments[1], arguments[2], priority, background, 0);
            }
            SUBMIT_JOB_EPOCH => {
                let Some(arguments) = packet.arguments(4) else { return After::Closes };
                let seconds: u64 = String::from_utf8_lossy(arguments[2]).parse().unwrap_or(0);
                self.submit(from, arguments[0], arguments[1], arguments[3], NORMAL, true, seconds.saturating_mul(1000));
            }
            GET_STATUS => self.status(from, &packet.body),
            OPTION_REQ => {
                if packet.body.eq_ignore_ascii_case(b"exceptions") {
                    self.connection(from).exceptions = true;
                    self.reply(from, OPTION_RES, &[&packet.body]);
                } else {
                    self.error(from, b"UNKNOWN_OPTION", b"Server does not recognize given option");
                }
            }
            CAN_DO => self.can_do(from, &packet.body),
            CAN_DO_TIMEOUT => {
                let Some(arguments) = packet.arguments(2) else { return After::Closes };
                self.can_do(from, arguments[0]);
            }
            CANT_DO => self.forget_abilities(from, Some(&packet.body)),
            RESET_ABILITIES => self.forget_abilities(from, None),
            PRE_SLEEP => {
                if self.something_waits(from) {
                    self.reply(from, NOOP, &[]);
                } else {
                    self.connection(from).sleeping = true;
                }
            }
            GRAB_JOB | GRAB_JOB_UNIQ => self.grab(from, packet.kind == GRAB_JOB_UNIQ),
            WORK_DATA | WORK_WARNING | WORK_COMPLETE | WORK_EXCEPTION => {
                let Some(arguments) = packet.arguments(2) else { return After::Closes };
                self.work(from, packet, arguments[0], arguments[1]);
            }
            WORK_STATUS => {
                let Some(arguments) = packet.arguments(3) else { return After::Closes };
                self.work(from, packet, arguments[0], arguments[1]);
            }
            WORK_FAIL => self.work(from, packet, &packet.body, b""),
            SET_CLIENT_ID => {}
            JOB_CREATED | NO_JOB | NOOP | JOB_ASSIGN | ECHO_RES | ERROR | STATUS_RES | OPTION_RES | JOB_ASSIGN_UNIQ => {
                self.error(from, b"INVALID_COMMAND", b"Command not expected");
            }
            _ => return After::Closes,
        }
        After::Goes
    }

    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        self.connections.entry(id).or_default()
    }

    #[allow(clippy::too_many_arguments)]
    fn submit(
        &mut self,
        from: ConnectionId,
        function: &[u8],
        unique: &[u8],
        data: &[u8],
        priority: usize,
        background: bool,
        due: u64,
    ) {
        let at = self.sequence.next();
        let accepted = self.accept(at, from, function, unique, data, priority, background, due);
        self.submissions.push(Submission {
            at,
            by: from,
            function: function.to_vec(),
            unique: unique.to_vec(),
            data: data.to_vec(),
            background,
            accepted: accepted.unwrap_or(Accepted::Refused),
        });
        match accepted {
            Ok(Accepted::Created(job) | Accepted::Merged(job)) => {
                if !background {
                    self.jobs[job].clients.insert(0, from);
                }
                let handle = self.jobs[job].handle.clone();
                // Sleepers have been told already: gearmand's NOOPs go out before the JOB_CREATED, which matters to a
                // connection that is both.
                self.reply(from, JOB_CREATED, &[&handle]);
            }
            Ok(Accepted::Refused) => self.error(from, b"QUEUE_ERROR", b"Job queue is full"),
            Err(()) => self.error(from, b"ARGUMENT_TOO_LARGE", b"Unique value too large"),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn accept(
        &mut self,
        at: u64,
        from: ConnectionId,
        name: &[u8],
        unique: &[u8],
        data: &[u8],
        priority: usize,
        background: bool,
        due: u64,
    ) -> Result<Accepted, ()> {
        if unique.len() > UNIQUE_LONGEST {
            return Err(());
        }
        let function = self.functions.entry(name.to_vec()).or_default();
        let by_data = unique == b"-";
        let merged_by = if by_data { data } else { unique };
        if !merged_by.is_empty() {
            let first = function.live.iter().rev().find(|id| {
                let job = &self.jobs[**id];
                job.merged_by == merged_by && if by_data { job.data == data } else { job.unique == unique }
            });
            if let Some(first) = first {
                return Ok(Accepted::Merged(*first));
            }
        }
        let limit = function.limits[priority];
        if limit > 0 && function.live.len() >= limit {
            return Ok(Accepted::Refused);
        }
        let id = self.jobs.len();
        function.live.push(id);
        let handle = self.new_handle();
        self.handles.insert(handle.clone(), id);
        self.jobs.push(Job {
            function: name.to_vec(),
            handle,
            unique: unique[..unique.len().min(UNIQUE_STORED)].to_vec(),
            unique_length: unique.len(),
            merged_by: merged_by.to_vec(),
            data: data.to_vec(),
            priority,
            background,
            due,
            created: at,
            created_by: from,
            assignments: Vec::new(),
            restarts: 0,
            end: None,
            clients: Vec::new(),
            worker: None,
            status: (0, 0),
            ignored: false,
        });
        self.enqueue(id);
        Ok(Accepted::Created(id))
    }

    /// Puts a job at the end of its queue and wakes who sleeps.
    fn enqueue(&mut self, id: JobId) {
        let (name, priority) = (self.jobs[id].function.clone(), self.jobs[id].priority);
        let mut woken: Vec<ConnectionId> = Vec::new();
        for (id, connection) in &mut self.connections {
            let able = connection.abilities.iter().any(|ability| ability.function == name);
            if able && connection.sleeping && !connection.noop_sent {
                connection.noop_sent = true;
                woken.push(*id);
            }
        }
        for id in woken {
            self.reply(id, NOOP, &[]);
        }
        self.functions.entry(name).or_default().queues[priority].push_back(id);
    }

    fn requeue(&mut self, id: JobId) {
        self.jobs[id].worker = None;
        self.jobs[id].status = (0, 0);
        let name = self.jobs[id].function.clone();
        self.functions.entry(name).or_default().running -= 1;
        self.enqueue(id);
    }

    /// Takes a job out of the server.
    fn finish(&mut self, id: JobId, end: End) {
        let at = self.sequence.next();
        let job = &mut self.jobs[id];
        self.handles.remove(&job.handle);
        let function = self.functions.entry(job.function.clone()).or_default();
        function.live.retain(|live| *live != id);
        for queue in &mut function.queues {
            queue.retain(|queued| *queued != id);
        }
        if let Some(worker) = job.worker.take() {
            function.running -= 1;
            if let Some(connection) = self.connections.get_mut(&worker) {
                for ability in &mut connection.abilities {
                    ability.jobs.retain(|held| *held != id);
                }
            }
        }
        job.clients.clear();
        job.end = Some((at, end));
    }

    fn can_do(&mut self, from: ConnectionId, name: &[u8]) {
        self.functions.entry(name.to_vec()).or_default();
        self.connection(from).abilities.insert(0, Ability { function: name.to_vec(), jobs: Vec::new() });
    }

    fn forget_abilities(&mut self, from: ConnectionId, name: Option<&[u8]>) {
        let gone = |ability: &Ability| name.is_none_or(|name| ability.function == name);
        let abilities = &mut self.connection(from).abilities;
        let jobs: Vec<JobId> =
            abilities.iter_mut().filter(|ability| gone(ability)).flat_map(|a| std::mem::take(&mut a.jobs)).collect();
        // Before the abilities go: the connection, if asleep, is told of its own jobs.
        for job in jobs {
            self.requeue(job);
        }
        self.connection(from).abilities.retain(|ability| !gone(ability));
    }

    fn first_due(&self, queue: &VecDeque<JobId>) -> Option<usize> {
        let now = now();
        queue.iter().position(|id| self.jobs[*id].due <= now)
    }

    /// What PRE_SLEEP looks for. Unlike a grab it looks past a queue whose jobs are all delayed.
    fn something_waits(&mut self, from: ConnectionId) -> bool {
        let names: Vec<Vec<u8>> = self.connection(from).abilities.iter().map(|a| a.function.clone()).collect();
        for name in names {
            for priority in 0..3 {
                loop {
                    let queue = &self.functions.entry(name.clone()).or_default().queues[priority];
                    let Some(id) = queue.iter().position(|id| self.jobs[*id].due <= now()).map(|at| queue[at]) else {
                        break;
                    };
                    if !self.jobs[id].ignored {
                        return true;
                    }
                    // gearmand drops what a grab would give out now, and takes it for granted that this is the job it has
                    // just looked at. With delayed jobs around it may be another one.
                    self.jobs[id].ignored = false;
                    match self.take(from) {
                        Some(taken) => self.finish(taken, End::Abandoned),
                        None => return self.something_waits(from),
                    }
                }
            }
        }
        false
    }

    fn grab(&mut self, from: ConnectionId, with_unique: bool) {
        self.connection(from).sleeping = false;
        self.connection(from).noop_sent = false;
        let Some(id) = self.take(from) else { return self.reply(from, NO_JOB, &[]) };
        let job = self.jobs[id].clone();
        if with_unique {
            // An id of 64 bytes is stored as 63, but sent with its full length: a byte too much, which was seen to be a
            // NUL and is read as the first of the data.
            let overhang: &[u8] = if job.unique_length > UNIQUE_STORED { b"\0" } else { b"" };
            let data = [overhang, &job.data].concat();
            self.reply(from, JOB_ASSIGN_UNIQ, &[&job.handle, &job.function, &job.unique, &data]);
        } else {
            self.reply(from, JOB_ASSIGN, &[&job.handle, &job.function, &job.data]);
        }
    }

    fn take(&mut self, from: ConnectionId) -> Option<JobId> {
        for at in 0..self.connection(from).abilities.len() {
            let name = self.connection(from).abilities[at].function.clone();
            loop {
                let function = self.functions.entry(name.clone()).or_default();
                // Only the highest queue that has jobs at all is looked at, even when all of them are delayed.
                let priority = (0..2).find(|priority| !function.queues[*priority].is_empty()).unwrap_or(2);
                let queue = &self.functions[&name].queues[priority];
                let Some(position) = self.first_due(queue) else { break };
                let id = self.functions.get_mut(&name)?.queues[priority].remove(position)?;
                if self.jobs[id].ignored {
                    self.finish(id, End::Abandoned);
                    continue;
                }
                let at_sequence = self.sequence.next();
                self.jobs[id].worker = Some(from);
                self.jobs[id].assignments.push((at_sequence, from));
                self.functions.get_mut(&name)?.running += 1;
                self.connection(from).abilities[at].jobs.insert(0, id);
                return Some(id);
            }
        }
        None
    }

    fn work(&mut self, from: ConnectionId, packet: &Packet, handle: &[u8], data: &[u8]) {
        let job = self.handles.get(handle).copied().filter(|id| self.jobs[*id].worker == Some(from));
        let Some(id) = job else {
            let text: &[u8] = match packet.kind {
                WORK_DATA | WORK_WARNING => b"Job does not exist on server",
                WORK_EXCEPTION => b"An exception was received for a job that does not exist",
                _ => b"Job given in work result not found",
            };
            return self.error(from, b"JOB_NOT_FOUND", text);
        };
        for client in self.jobs[id].clients.clone() {
            if packet.kind == WORK_EXCEPTION && !self.connection(client).exceptions {
                // With a NUL at the handle's end, unlike a real WORK_FAIL.
                self.reply(client, WORK_FAIL, &[handle, b""]);
            } else {
                self.reply(client, packet.kind, &[&packet.body]);
            }
        }
        match packet.kind {
            WORK_STATUS => {
                let number = |text: &[u8]| String::from_utf8_lossy(text).parse().unwrap_or(0);
                let denominator = packet.arguments(3).map_or(0, |arguments| number(arguments[2]));
                self.jobs[id].status = (number(data), denominator);
            }
            WORK_COMPLETE => self.finish(id, End::Completed(data.to_vec())),
            WORK_FAIL => self.finish(id, End::Failed),
            WORK_EXCEPTION => self.finish(id, End::Exception(data.to_vec())),
            _ => {}
        }
    }

    fn status(&mut self, from: ConnectionId, handle: &[u8]) {
        let Some(job) = self.handles.get(handle).map(|id| &self.jobs[*id]) else {
            return self.reply(from, STATUS_RES, &[handle, b"0", b"0", b"0", b"0"]);
        };
        let running: &[u8] = if job.worker.is_some() { b"1" } else { b"0" };
        let (numerator, denominator) = (job.status.0.to_string(), job.status.1.to_string());
        self.reply(from, STATUS_RES, &[handle, b"1", running, numerator.as_bytes(), denominator.as_bytes()]);
    }

    fn text(&mut self, from: ConnectionId, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split_ascii_whitespace();
        let answer = match words.next() {
            Some("getpid") => {
                self.identified.insert(from);
                format!("OK {}\n", self.process_id)
            }
            Some("version") => "OK 1.1.20\n".to_owned(),
            Some("status") => self.status_lines() + ".\n",
            Some("maxqueue") => {
                let limits: Vec<usize> = text.split_ascii_whitespace().skip(2).flat_map(str::parse).collect();
                if let Some(function) = self.functions.get_mut(words.next().unwrap_or_default().as_bytes()) {
                    function.limits = match limits[..] {
                        [high, normal, low] => [high, normal, low],
                        [all] => [all; 3],
                        _ => [0; 3],
                    };
                }
                "OK\r\n".to_owned()
            }
            _ => format!("ERR UNKNOWN_COMMAND Unknown+server+command{text}\r\n"),
        };
        self.outputs.push((from, answer.into_bytes()));
    }

    fn status_lines(&self) -> String {
        let mut lines = String::new();
        for (name, function) in &self.functions {
            let able = |connection: &Connection| connection.abilities.iter().filter(|a| a.function == *name).count();
            let workers: usize = self.connections.values().map(able).sum();
            lines += &format!(
                "{}\t{}\t{}\t{workers}\n",
                String::from_utf8_lossy(name),
                function.live.len(),
                function.running
            );
        }
        lines
    }
}
