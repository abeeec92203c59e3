//! The model server against a real gearmand: random sequences of what clients and workers do bring the same packets, byte
//! for byte, and leave the same jobs in the queues.

use std::net::{Shutdown, TcpStream};

use crate::clock::Micros;
use crate::plan::{self, Class, Kind, Outcome, QUEUES, Unique};
use crate::random::Random;
use crate::server::{After, Client, Server, Submission, Worker};
use crate::support::peer::{Connection, Packet};
use crate::support::wire::{ERROR, HEADER, OPTION_REQ, OPTION_RES, header, request};
use crate::support::{Gearmand, wait_for};
use crate::wire::kind;

/// Connections as the proxy has them: destinations' first, then sources'.
const PEERS: usize = 4;
const SUBMITTERS: usize = 2;

/// The queue that the sources' connections offer, and the one whose jobs only local workers do: the model tells its local
/// clients nothing, so a result must not go to a connection that it knows.
const RELAYED: usize = 0;
const LOCAL: usize = 1;

const CLASSES: usize = 4;

/// Nothing that is compared depends on it.
const NOW: Micros = 0;

#[derive(Debug, Clone)]
enum Step {
    /// Packets in one write.
    Send(usize, Vec<u8>),
    /// A connection is closed, and made again.
    Close(usize),
    /// A client of the server's own side submits.
    Order {
        queue: usize,
        class: usize,
        unique: Vec<u8>,
        background: bool,
    },
    /// The client of a foreground order leaves.
    Leave(usize),
    /// A worker of the server's own side takes a job.
    Take(usize),
    /// It says something about the job that it took as the so-many-th.
    Work(usize, u32),
    Limit(usize, usize),
}

/// What a step brought: packets for each connection, and jobs in each queue (in all, and running).
#[derive(Debug, Default, PartialEq, Eq)]
struct Effect {
    packets: Vec<(usize, Packet)>,
    closed: Vec<usize>,
    handle: Option<String>,
    queues: Vec<(usize, usize)>,
}

fn class() -> Class {
    Class { kind: Kind::Good, queue: 0, size: 30, unique: Unique::None, run: 0, outcome: Outcome::Completes }
}

fn unique(random: &mut Random) -> Vec<u8> {
    match random.range(0, 11) {
        0..=3 => Vec::new(),
        4..=6 => format!("id{}", random.range(1, 3)).into_bytes(),
        7 | 8 => b"-".to_vec(),
        length => vec![b'u'; 54 + length as usize],
    }
}

fn data(random: &mut Random) -> Vec<u8> {
    plan::data(random.below(CLASSES), &class())
}

/// A packet of a connection at a destination.
fn submission(random: &mut Random) -> Vec<u8> {
    use kind::{SUBMIT_JOB_BG, SUBMIT_JOB_HIGH, SUBMIT_JOB_HIGH_BG, SUBMIT_JOB_LOW, SUBMIT_JOB_LOW_BG};
    if random.one_in(10) {
        return request(kind::ECHO_REQ, &[b"?"]);
    }
    let background = random.one_in(2);
    let kinds = match background {
        true => [SUBMIT_JOB_BG, SUBMIT_JOB_HIGH_BG, SUBMIT_JOB_LOW_BG],
        false => [kind::SUBMIT_JOB, SUBMIT_JOB_HIGH, SUBMIT_JOB_LOW],
    };
    let queue = if background { random.pick(&[RELAYED, LOCAL]) } else { LOCAL };
    request(random.pick(&kinds), &[plan::queue_name(queue), &unique(random), &data(random)])
}

/// A packet of a connection at a source. `handles` were given out so far, about.
fn work(random: &mut Random, handles: u64) -> Vec<u8> {
    let handle = format!("H:s0:{}", random.range(handles.saturating_sub(8).max(1), handles + 1));
    let handle = handle.as_bytes();
    match random.range(0, 13) {
        0..=4 => request(kind::GRAB_JOB_UNIQ, &[]),
        5 | 6 => request(kind::PRE_SLEEP, &[]),
        7 | 8 => request(kind::WORK_COMPLETE, &[handle, b"job submitted as background task"]),
        9 => request(kind::WORK_FAIL, &[handle]),
        10 => request(kind::WORK_DATA, &[handle, b"part"]),
        11 => request(kind::WORK_STATUS, &[handle, b"1", b"2"]),
        12 => request(kind::WORK_EXCEPTION, &[handle, b"why"]),
        _ => request(kind::CAN_DO, &[plan::queue_name(RELAYED)]),
    }
}

fn ends_a_job(packet: &[u8]) -> bool {
    let kind = u32::from(packet[7]);
    matches!(kind, kind::WORK_COMPLETE | kind::WORK_FAIL | kind::WORK_EXCEPTION)
}

fn script(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let (mut handles, mut orders, mut taken) = (1, 0, 0);
    let length = random.range(40, 160);
    let mut steps = Vec::new();
    for _ in 0..length {
        let peer = random.below(PEERS);
        steps.push(match random.range(0, 29) {
            0 => Step::Close(peer),
            1..=4 => {
                let (queue, class, background) = (random.below(2), random.below(CLASSES), random.one_in(2));
                (handles, orders) = (handles + 1, orders + 1);
                Step::Order { queue, class, unique: unique(&mut random), background }
            }
            5 if orders > 0 => Step::Leave(random.below(orders)),
            6..=8 => {
                taken += 1;
                Step::Take(random.pick(&[LOCAL, LOCAL, RELAYED]))
            }
            9..=12 if taken > 0 => {
                let kinds =
                    [kind::WORK_DATA, kind::WORK_WARNING, kind::WORK_COMPLETE, kind::WORK_FAIL, kind::WORK_EXCEPTION];
                Step::Work(random.below(taken), random.pick(&kinds))
            }
            13 => Step::Limit(random.below(2), random.pick(&[1, 2, 4, 1000])),
            _ => {
                let (mut bytes, mut grabbed) = (Vec::new(), false);
                for _ in 0..random.pick(&[1, 1, 1, 2, 6]) {
                    let packet = if peer < SUBMITTERS { submission(&mut random) } else { work(&mut random, handles) };
                    handles += u64::from(peer < SUBMITTERS);
                    grabbed |= packet.starts_with(&request(kind::GRAB_JOB_UNIQ, &[]));
                    // gearmand frees a job that ends before its assignment is written; nobody can know its handle then.
                    if !(grabbed && ends_a_job(&packet)) {
                        bytes.extend(packet);
                    }
                }
                Step::Send(peer, bytes)
            }
        });
    }
    steps
}

/// What both sides do at first on a connection.
fn greeting(peer: usize) -> Vec<u8> {
    if peer < SUBMITTERS { Vec::new() } else { request(kind::CAN_DO, &[plan::queue_name(RELAYED)]) }
}

fn work_data(class_kind: u32) -> &'static [u8] {
    if class_kind == kind::WORK_FAIL { b"" } else { b"part" }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A packet without what differs by intention: the text of an ERROR.
fn comparable(mut packet: Packet) -> Packet {
    if packet.kind == ERROR {
        let end = packet.body.iter().position(|&byte| byte == 0).unwrap_or(packet.body.len());
        packet.body.truncate(end);
    }
    packet
}

/// The model, without lines: everything arrives at once.
struct Model {
    server: Server,
    classes: Vec<Class>,
    peers: Vec<usize>,
    connections: usize,
    /// Jobs that local workers took, by number, while they have them.
    taken: Vec<Option<usize>>,
    orders: usize,
}

impl Model {
    fn new(retries: Option<u32>) -> Model {
        let mut model = Model {
            server: Server::new(4711, true, retries),
            classes: vec![class(); CLASSES],
            peers: Vec::new(),
            connections: 0,
            taken: Vec::new(),
            orders: 0,
        };
        for peer in 0..PEERS {
            let connection = model.connect(peer);
            model.peers.push(connection);
        }
        model
    }

    fn connect(&mut self, peer: usize) -> usize {
        let connection = self.connections;
        self.connections += 1;
        self.server.connect(connection);
        self.execute(connection, &greeting(peer));
        connection
    }

    /// Returns whether the connection stays open.
    fn execute(&mut self, connection: usize, mut bytes: &[u8]) -> bool {
        while let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() {
            let (kind, length) = header(head);
            let after = self.server.execute(connection, kind, &rest[..length], &self.classes, 0, NOW);
            if after == After::Closes {
                return false;
            }
            bytes = &rest[length..];
        }
        true
    }

    fn play(&mut self, step: &Step) -> Effect {
        let mut outcome = Effect::default();
        match step {
            Step::Send(peer, bytes) => {
                if !self.execute(self.peers[*peer], bytes) {
                    outcome.closed.push(*peer);
                }
            }
            Step::Close(peer) => {
                self.server.close(self.peers[*peer], NOW, true);
                self.peers[*peer] = self.connect(*peer);
            }
            Step::Order { queue, class: number, unique, background } => {
                let data = plan::data(*number, &class());
                let client = (!background).then_some(Client::Order(self.orders));
                self.orders += 1;
                let submission =
                    Submission { queue: *queue, class: *number, unique, data: &data, priority: 1, client, by: None };
                let job = self.server.submit(&submission);
                outcome.handle = Some(job.map_or_else(text, |job| self.handle(job)));
            }
            Step::Leave(order) => self.server.leave(*order),
            Step::Take(queue) => {
                let job = self.server.take(*queue, Worker::Local, NOW);
                outcome.handle = job.map(|job| self.handle(job));
                self.taken.push(job);
            }
            Step::Work(number, kind) => {
                if let Some(job) = self.taken[*number] {
                    self.server.local_work(job, *kind, work_data(*kind), 0, NOW);
                    if !matches!(*kind, kind::WORK_DATA | kind::WORK_WARNING) {
                        self.taken[*number] = None;
                    }
                }
            }
            Step::Limit(queue, limit) => self.server.limits[*queue] = *limit,
        }
        let mut from = 0;
        for (to, end) in std::mem::take(&mut self.server.outputs) {
            let bytes = &self.server.outgoing[from..end];
            from = end;
            let (head, body) = bytes.split_first_chunk::<HEADER>().unwrap();
            if let Some(peer) = self.peers.iter().position(|&connection| connection == to) {
                outcome.packets.push((peer, comparable(Packet { kind: header(head).0, body: body.to_vec() })));
            }
        }
        self.server.outgoing.clear();
        self.server.happened.clear();
        outcome.packets.sort_by_key(|&(peer, _)| peer);
        outcome.queues = (0..QUEUES - 1).map(|queue| self.queue(queue)).collect();
        outcome
    }

    fn handle(&self, job: usize) -> String {
        format!("H:s0:{}", self.server.jobs[job].handle)
    }

    fn queue(&self, queue: usize) -> (usize, usize) {
        let held = |job: &&crate::server::Job| job.queue == queue && job.end.is_none() && job.worker.is_some();
        (self.server.live(queue), self.server.jobs.iter().filter(held).count())
    }
}

/// A real gearmand with the same connections.
struct Real {
    server: Gearmand,
    peers: Vec<(TcpStream, Connection)>,
    /// Clients of foreground orders, by number.
    orders: Vec<Option<(TcpStream, Connection)>>,
    background: Connection,
    workers: Vec<Connection>,
    taken: Vec<Option<(usize, Vec<u8>)>>,
    steps: usize,
}

impl Real {
    fn new(retries: Option<u32>) -> Real {
        let retries = retries.map(|retries| format!("--job-retries={retries}"));
        let options: Vec<&str> = std::iter::once("--job-handle-prefix=H:s0").chain(retries.as_deref()).collect();
        let server = Gearmand::start_with(&options);
        let peers = (0..PEERS).map(|peer| Real::connect(&server, peer)).collect();
        let workers = (0..QUEUES - 1).map(|queue| {
            let mut worker = Connection::open(server.address());
            worker.send(kind::CAN_DO, &[plan::queue_name(queue)]);
            until_echo(&mut worker);
            worker
        });
        let workers = workers.collect();
        let background = Connection::open(server.address());
        Real { server, peers, orders: Vec::new(), background, workers, taken: Vec::new(), steps: 0 }
    }

    fn open(server: &Gearmand) -> (TcpStream, Connection) {
        let stream = TcpStream::connect(server.address()).unwrap();
        (stream.try_clone().unwrap(), Connection::over(stream))
    }

    fn connect(server: &Gearmand, peer: usize) -> (TcpStream, Connection) {
        let (stream, mut connection) = Real::open(server);
        if peer < SUBMITTERS {
            // As the proxy does: else it would hear of an exception as of a failure.
            connection.send(OPTION_REQ, &[b"exceptions"]);
            connection.expect(OPTION_RES);
        }
        connection.send_raw(&greeting(peer));
        until_echo(&mut connection);
        (stream, connection)
    }

    /// Closes a connection, and waits until the server has let go of it.
    fn close(&mut self, (stream, mut connection): (TcpStream, Connection)) {
        self.steps += 1;
        // What it can do leaves the status lines with it.
        let marker = format!("marker-{}", self.steps);
        connection.send(kind::CAN_DO, &[marker.as_bytes()]);
        until_echo(&mut connection);
        stream.shutdown(Shutdown::Both).unwrap();
        wait_for("the server lets go of a closed connection", || self.server.status(&marker).workers == 0);
    }

    fn play(&mut self, step: &Step) -> Effect {
        let mut outcome = Effect::default();
        let mut acting = None;
        match step {
            Step::Send(peer, bytes) => {
                self.peers[*peer].1.send_raw(bytes);
                acting = Some(*peer);
            }
            Step::Close(peer) => {
                let fresh = Real::connect(&self.server, *peer);
                let old = std::mem::replace(&mut self.peers[*peer], fresh);
                self.close(old);
            }
            Step::Order { queue, class: number, unique, background } => {
                let data = plan::data(*number, &class());
                let arguments: [&[u8]; 3] = [plan::queue_name(*queue), unique, &data];
                let answer = if *background {
                    self.background.send(kind::SUBMIT_JOB_BG, &arguments);
                    self.orders.push(None);
                    self.background.receive()
                } else {
                    let mut client = Real::open(&self.server);
                    client.1.send(kind::SUBMIT_JOB, &arguments);
                    let answer = client.1.receive();
                    self.orders.push(Some(client));
                    answer
                };
                outcome.handle = Some(text(&comparable(answer).body));
            }
            Step::Leave(order) => {
                if let Some(client) = self.orders[*order].take() {
                    self.close(client);
                }
            }
            Step::Take(queue) => {
                self.workers[*queue].send(kind::GRAB_JOB_UNIQ, &[]);
                let packet = self.workers[*queue].receive();
                let handle = (packet.kind != kind::NO_JOB).then(|| packet.arguments(2)[0].to_vec());
                self.taken.push(handle.clone().map(|handle| (*queue, handle)));
                outcome.handle = handle.as_deref().map(text);
            }
            Step::Work(number, kind) => {
                if let Some((queue, handle)) = self.taken[*number].clone() {
                    let arguments: [&[u8]; 2] = [&handle, work_data(*kind)];
                    let count = if *kind == kind::WORK_FAIL { 1 } else { 2 };
                    self.workers[queue].send(*kind, &arguments[..count]);
                    until_echo(&mut self.workers[queue]);
                    if !matches!(*kind, kind::WORK_DATA | kind::WORK_WARNING) {
                        self.taken[*number] = None;
                    }
                }
            }
            Step::Limit(queue, limit) => {
                let name = String::from_utf8(plan::queue_name(*queue).to_vec()).unwrap();
                self.server.ask(&format!("maxqueue {name} {limit}"));
            }
        }
        // The acting one's answer says that the step is done; after that, what it brought about for others is on its way.
        for peer in acting.into_iter().chain((0..PEERS).filter(|&peer| acting != Some(peer))) {
            let packets = until_echo(&mut self.peers[peer].1);
            outcome.packets.extend(packets.into_iter().map(|packet| (peer, comparable(packet))));
        }
        outcome.packets.sort_by_key(|&(peer, _)| peer);
        outcome.queues = (0..QUEUES - 1)
            .map(|queue| {
                let queue = self.server.status(std::str::from_utf8(plan::queue_name(queue)).unwrap());
                (queue.total, queue.running)
            })
            .collect();
        outcome
    }
}

/// What came before the answer to an ECHO_REQ that is sent now.
fn until_echo(connection: &mut Connection) -> Vec<Packet> {
    connection.send(kind::ECHO_REQ, &[b"all of it"]);
    let mut before = Vec::new();
    loop {
        let packet = connection.receive();
        if packet.kind == kind::ECHO_RES && packet.body == b"all of it" {
            return before;
        }
        before.push(packet);
    }
}

/// A fresh pair of servers for each script: handles are part of what is compared.
#[test]
fn the_model_server_does_what_gearmand_does() {
    let first = crate::variable("SIMULATION_SEED").unwrap_or(0);
    for seed in first..first + 60 {
        let retries = (seed % 2 == 1).then_some(3);
        let (mut real, mut model) = (Real::new(retries), Model::new(retries));
        let script = script(seed);
        for (number, step) in script.iter().enumerate() {
            let (expected, found) = (real.play(step), model.play(step));
            if expected != found {
                let before: Vec<String> = script[..=number].iter().map(show).collect();
                panic!("seed {seed}, after\n{}\ngearmand: {expected:?}\nmodel:    {found:?}", before.join("\n"));
            }
        }
    }
}

fn show(step: &Step) -> String {
    match step {
        Step::Send(peer, bytes) => format!("{peer} sends {}", bytes.escape_ascii()),
        Step::Order { queue, class, unique, background } => {
            let unique = unique.escape_ascii();
            format!("order of class {class} for queue {queue}, unique id {unique}, background {background}")
        }
        other => format!("{other:?}"),
    }
}
