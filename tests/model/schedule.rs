//! One schedule: a plan drawn from a seed, played on two servers with a forward between them, and judged by the books.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gearman_proxy::config::{Address, ForwardConfig, Place, Priority};
use gearman_proxy::stages::Stages;
use gearman_proxy::stages::substitution::Substitution;

use crate::book::{Accepted, Book, ConnectionId, End, Job, Sequence, Submission};
use crate::faults::Trouble;
use crate::random::Random;
use crate::relay::{Relay, Scale, Start};
use crate::server::Server;
use crate::wire::*;

pub const QUEUE: &[u8] = b"model";
const REJECTS: &[u8] = b"model-rejects";
const BACKGROUND_ANSWER: &[u8] = b"job submitted as background task";
const POISON: &[u8] = b"poison";
const REFUSED: &[u8] = b"refused";
const MAX_JOB_SIZE: usize = 8 << 10;
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(2);
/// Which side makes trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

#[derive(Debug, Clone)]
enum Event {
    CutAll(Side),
    Refuse(Side, Duration),
    Freeze(Side, Duration),
    Restart {
        side: Side,
        keeps_jobs: bool,
        process_id: u32,
        away: Duration,
    },
    /// The destination's queue takes so many jobs at most, for a while.
    Full(usize, Duration),
    /// The proxy is killed and started again: its connections break at once and it knows nothing.
    Crash,
    /// The forward is replaced by its successor, as by a reload.
    Reload,
}

/// What is to become of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It goes to the destination.
    Good,
    /// Its data is not what the stages need.
    Bad,
    /// It is larger than is allowed.
    Oversize,
    /// The destination closes the connection over it.
    Poison,
    /// The destination answers an error to it.
    Refused,
}

#[derive(Debug, Clone)]
struct Order {
    at: Duration,
    kind: u32,
    unique: Vec<u8>,
    data: Vec<u8>,
    /// The foreground client leaves after this.
    leaves: Option<Duration>,
    delay: Option<Duration>,
}

/// Everything that a seed decides beforehand.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    asynchronous: bool,
    workers: usize,
    prefetch: usize,
    priority: Priority,
    stages: bool,
    reject_queue: Option<Side>,
    source_trouble: Trouble,
    destination_trouble: Trouble,
    source_process_id: u32,
    orders: Vec<Order>,
    events: Vec<(Duration, Event)>,
    /// Of 100 looks, so many in which the destination's worker takes a job; 0: it begins when all is over.
    consumes: u64,
    /// The destination makes no trouble and is waited for patiently, so nothing excuses a second copy.
    destination_is_sound: bool,
    /// Order must be kept.
    ordered: bool,
    scale: Scale,
}

fn millis(random: &mut Random, low: u64, high: u64) -> Duration {
    Duration::from_millis(random.range(low, high))
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let asynchronous = !random.one_in(4);
        let length = random.range(40, 200);
        // 0: no trouble at all; 1: the source's; 2: the destination's; 3: both.
        let mode = *random.pick(&[0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        let mut scale = Scale::default();
        let trouble = |random: &mut Random| Trouble {
            cuts: *random.pick(&[0, 30, 60, 90]),
            stalls: *random.pick(&[0, 0, 15, 40]),
            crumbs: *random.pick(&[0, 20, 50]),
            nonsense: *random.pick(&[0, 0, 20]),
            only_first: None,
        };
        let mut source_trouble = if mode & 1 != 0 { trouble(&mut random) } else { Trouble::default() };
        let mut destination_trouble = if mode & 2 != 0 { trouble(&mut random) } else { Trouble::default() };
        let destination_is_sound = mode & 2 == 0;
        if destination_is_sound {
            scale.patient();
        }
        let ordered = asynchronous && mode & 1 == 0 && random.one_in(2);
        if ordered {
            source_trouble = Trouble::default();
            destination_trouble.stalls = 0;
            // A job is under suspicion when two connections were closed on it; with the third others go before it.
            destination_trouble.only_first = Some(2);
            scale.hold();
        }
        let source_process_id = *random.pick(&[4711, 4711, 4711, 120, 7]);
        let workers = if ordered { 1 } else { *random.pick(&[1, 1, 2, 4]) };
        let mut events = Vec::new();
        for _ in 0..if mode == 0 { 0 } else { random.range(0, 4) } {
            let side = match mode {
                1 => Side::Source,
                2 => Side::Destination,
                _ => *random.pick(&[Side::Source, Side::Destination]),
            };
            let event = match random.range(0, 9) {
                0 | 1 => Event::CutAll(side),
                2 | 3 => Event::Refuse(side, millis(&mut random, 1, 150)),
                _ if ordered => Event::CutAll(side),
                4 => Event::Freeze(side, millis(&mut random, 20, 500)),
                5 | 6 => Event::Restart {
                    side,
                    keeps_jobs: random.one_in(2),
                    process_id: *random.pick(&[4712, 120, source_process_id]),
                    away: millis(&mut random, 1, 100),
                },
                7 if mode & 2 != 0 => Event::Full(random.range(1, 10) as usize, millis(&mut random, 10, 200)),
                8 => Event::Crash,
                9 => Event::Reload,
                _ => Event::CutAll(side),
            };
            events.push((millis(&mut random, 0, length), event));
        }
        if ordered {
            events.truncate(if destination_trouble.cuts > 0 { 0 } else { 2 });
        }
        let stages = asynchronous && random.one_in(6);
        let mut plan = Plan {
            seed,
            asynchronous,
            workers,
            prefetch: if asynchronous { *random.pick(&[1, 3, 16, 4096]) } else { workers },
            priority: *random.pick(&[Priority::Low, Priority::Normal, Priority::Normal, Priority::High]),
            stages,
            reject_queue: *random.pick(&[None, Some(Side::Source), Some(Side::Destination)]),
            source_trouble,
            destination_trouble,
            source_process_id,
            orders: Vec::new(),
            events,
            consumes: *random.pick(&[0, 10, 50, 100]),
            destination_is_sound,
            ordered,
            scale,
        };
        plan.events.sort_by_key(|(at, _)| *at);
        plan.draw_orders(&mut random, length);
        let poison = |order: &&Order| plan.class(&order.data) == Class::Poison;
        let poisons: Vec<u32> = plan.orders.iter().filter(poison).map(|order| order.kind).collect();
        if plan.asynchronous && !poisons.is_empty() {
            // It takes the confirmations of others with it.
            plan.destination_is_sound = false;
            if poisons.contains(&SUBMIT_JOB_HIGH) {
                // A job is blamed only when others got through meanwhile. One that goes before them whenever it is given
                // back needs them beside it.
                plan.prefetch = plan.prefetch.max(100);
            }
        }
        plan
    }

    fn draw_orders(&mut self, random: &mut Random, length: u64) {
        let count = random.range(1, *random.clone().pick(&[8, 30, 60]));
        // Where a restarted server can't be told from the one before, equal data is the same job to anybody.
        let may_repeat = !self.events.iter().any(|(_, event)| {
            matches!(event, Event::Restart { side: Side::Source, process_id, .. }
                if *process_id == self.source_process_id && *process_id >= 300)
        });
        let odd = !self.ordered && random.one_in(3);
        for number in 0..count {
            let mut data = format!("job {number} ").into_bytes();
            if random.one_in(4) {
                let length = random.range(0, 300) as usize;
                data.extend(random.bytes(length));
            }
            let mut unique = match random.range(0, 9) {
                0 | 1 => format!("own-{number}").into_bytes(),
                2 => format!("{number:063}").into_bytes(),
                // Of 64 bytes, whose last gearmand drops.
                3 => format!("{number:062}-x").into_bytes(),
                4 if !self.stages => b"-".to_vec(),
                _ => Vec::new(),
            };
            let mut kind = SUBMIT_JOB_BG;
            if !self.asynchronous || random.one_in(8) {
                kind = SUBMIT_JOB;
            }
            if !self.ordered && random.one_in(4) {
                kind = if kind == SUBMIT_JOB { SUBMIT_JOB_HIGH } else { SUBMIT_JOB_LOW_BG };
            }
            let mut delay = None;
            if odd && random.one_in(8) {
                match random.range(0, 5) {
                    0 => data = [POISON, &data].concat(),
                    1 => data = [REFUSED, &data].concat(),
                    2 => data.resize(MAX_JOB_SIZE + random.range(1, 20_000) as usize, b'x'),
                    3 => delay = Some(millis(random, 5, 150)),
                    _ if self.stages => data = [b"*bad* ".as_slice(), &data].concat(),
                    _ if may_repeat => {
                        data = b"job again".to_vec();
                        unique = Vec::new();
                    }
                    _ => {}
                }
            }
            if self.stages && !data.starts_with(b"*bad*") && data.len() < MAX_JOB_SIZE {
                data = base64(&data);
            }
            let leaves = (self.asynchronous && random.one_in(30)).then(|| millis(random, 1, 60));
            self.orders.push(Order { at: millis(random, 0, length), kind, unique, data, leaves, delay });
        }
        self.orders.sort_by_key(|order| order.at);
    }

    /// What one needs to know first when looking for the fault.
    fn summary(&self) -> String {
        format!(
            "{} {}, {} workers, prefetch {}, stages {}, rejects {:?}, source process {}, source {:?}, destination {:?}, \
             sound {}, ordered {}, consumes {}, events {:?}",
            if self.asynchronous { "asynchronous" } else { "synchronous" },
            self.seed,
            self.workers,
            self.prefetch,
            self.stages,
            self.reject_queue,
            self.source_process_id,
            self.source_trouble,
            self.destination_trouble,
            self.destination_is_sound,
            self.ordered,
            self.consumes,
            self.events,
        )
    }

    fn class(&self, data: &[u8]) -> Class {
        if data.len() > MAX_JOB_SIZE {
            return Class::Oversize;
        }
        if data.starts_with(b"*bad*") {
            return Class::Bad;
        }
        let begins = |with: &[u8]| data.starts_with(&self.as_sent(with));
        match () {
            () if begins(POISON) => Class::Poison,
            () if begins(REFUSED) => Class::Refused,
            () => Class::Good,
        }
    }

    /// How data that begins like this begins on the wire.
    fn as_sent(&self, prefix: &[u8]) -> Vec<u8> {
        // Six characters of base64 depend on no more than the first five bytes.
        if self.stages { base64(prefix)[..6].to_vec() } else { prefix.to_vec() }
    }

    fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(|(_, event)| wanted(event))
    }
}

/// The text's base64, by the definition; the program's own is not to judge itself.
fn base64(text: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = Vec::new();
    for chunk in text.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*chunk.get(at).unwrap_or(&0)));
        for digit in 0..4 {
            encoded.push(if digit <= chunk.len() { DIGITS[(bits >> (18 - 6 * digit) & 63) as usize] } else { b'=' });
        }
    }
    encoded
}

/// What the destination's worker makes of a synchronous job, by its data.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Result(Vec<u8>),
    Fails,
    Raises(Vec<u8>),
}

fn outcome(data: &[u8]) -> Outcome {
    let sum: u32 = data.iter().map(|byte| u32::from(*byte)).sum();
    match sum % 8 {
        0 => Outcome::Fails,
        1 => Outcome::Raises([b"exception of \0", data].concat()),
        _ => Outcome::Result([b"result of \0", data].concat()),
    }
}

/// A foreground client of the source.
struct Client {
    connection: ConnectionId,
    data: Vec<u8>,
    leaves: Option<Instant>,
    received: Vec<Packet>,
    /// Source restarts when it came: a later one leaves it without an answer.
    restarts: usize,
}

/// A job in the hands of the destination's worker.
struct Task {
    handle: Vec<u8>,
    data: Vec<u8>,
    looks_left: u64,
}

struct Play<'a> {
    plan: &'a Plan,
    source: Server,
    destination: Server,
    sequence: Sequence,
    patience: Duration,
    random: Random,
    relay: Option<Box<dyn Relay>>,
    start: Start,
    config: ForwardConfig,
    clients: Vec<Client>,
    submitter: ConnectionId,
    worker: ConnectionId,
    tasks: Vec<Task>,
    ends: Vec<(Instant, Ending)>,
    crashes: Vec<u64>,
    violations: Vec<String>,
}

/// How a fault that lasts comes to its end.
#[derive(Clone, Copy)]
enum Ending {
    Open(Side),
    Thaw(Side),
    Room,
}

/// Plays a seed's schedule and tells what was wrong. When the faults have ended everything must find its place within
/// `patience`.
pub fn run(seed: u64, start: Start, patience: Duration) -> Vec<String> {
    let plan = Plan::draw(seed);
    let sequence = Sequence::default();
    let source = Server::start(sequence.clone(), plan.source_process_id, seed ^ 1, plan.source_trouble);
    let destination = Server::start(sequence.clone(), 5000, seed ^ 2, plan.destination_trouble);
    destination.with(|book| {
        book.poison = Some((QUEUE.to_vec(), plan.as_sent(POISON)));
        book.refused = Some((QUEUE.to_vec(), plan.as_sent(REFUSED)));
    });
    let config = configuration(&plan, &source, &destination);
    let (submitter, worker) = (source.attach(), destination.attach());
    let mut play = Play {
        plan: &plan,
        source,
        destination,
        sequence,
        patience,
        random: Random::part(seed, 99),
        relay: None,
        start,
        config,
        clients: Vec::new(),
        submitter,
        worker,
        tasks: Vec::new(),
        ends: Vec::new(),
        crashes: Vec::new(),
        violations: Vec::new(),
    };
    play.start_relay(None);
    play.act();
    play.settle();
    play.judge();
    let Play { mut violations, source, destination, .. } = play;
    if !violations.is_empty() {
        violations.insert(0, plan.summary());
    }
    drop((source, destination));
    violations
}

fn configuration(plan: &Plan, source: &Server, destination: &Server) -> ForwardConfig {
    let address = |server: &Server, queue: &[u8]| Address {
        server: gearman_proxy::config::Server {
            host: server.address().ip().to_string(),
            port: server.address().port(),
        },
        queue: String::from_utf8(queue.to_vec()).unwrap(),
    };
    let mut stages = Stages::default();
    if plan.stages {
        stages.data_callbacks.push(Substitution::parse("s/this matches nothing at all/x/").unwrap());
    }
    ForwardConfig {
        place: Place { file: Arc::new("model".into()), line: 1 },
        source: address(source, QUEUE),
        destinations: vec![address(destination, QUEUE)],
        stages,
        asynchronous: plan.asynchronous,
        workers: plan.workers,
        prefetch: plan.prefetch,
        prefetch_is_explicit: false,
        priority: plan.priority,
        timeout: None,
        max_age: None,
        reject_queue: plan.reject_queue.map(|side| match side {
            Side::Source => address(source, REJECTS),
            Side::Destination => address(destination, REJECTS),
        }),
    }
}

impl Play<'_> {
    fn server(&self, side: Side) -> &Server {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    fn start_relay(&mut self, predecessor: Option<Box<dyn Relay>>) {
        self.relay = Some((self.start)(&self.config, MAX_JOB_SIZE, &self.plan.scale, predecessor));
    }

    /// From the first job to the last fault.
    fn act(&mut self) {
        let plan = self.plan;
        let begin = Instant::now();
        let mut orders = plan.orders.iter().peekable();
        let mut events = plan.events.iter().peekable();
        while orders.peek().is_some() || events.peek().is_some() {
            let now = begin.elapsed();
            while let Some(order) = orders.next_if(|order| order.at <= now) {
                self.submit(order);
            }
            while let Some((_, event)) = events.next_if(|(at, _)| *at <= now) {
                self.happen(event);
            }
            self.look();
            std::thread::sleep(TICK);
        }
        // Faults that were begun take their time; those of connections end with the calm.
        while !self.ends.is_empty() {
            self.look();
            std::thread::sleep(TICK);
        }
    }

    fn submit(&mut self, order: &Order) {
        let restarts = self.source.with(|book| book.restarts);
        if let Some(delay) = order.delay {
            let submitter = self.submitter;
            self.source.with(|book| {
                let from = if book.is_open(submitter) { submitter } else { book.connect() };
                book.submit_delayed(from, QUEUE, &order.data, delay);
            });
            return;
        }
        let request = request(order.kind, &[QUEUE, &order.unique, &order.data]);
        if matches!(order.kind, SUBMIT_JOB | SUBMIT_JOB_HIGH) {
            let connection = self.source.attach();
            let leaves = order.leaves.map(|after| Instant::now() + after);
            let mut client = Client { connection, data: order.data.clone(), leaves, received: Vec::new(), restarts };
            self.source.call(connection, &crate::wire::request(OPTION_REQ, &[b"exceptions"]));
            client.take(self.source.call(connection, &request));
            self.clients.push(client);
            return;
        }
        if !self.source.with(|book| book.is_open(self.submitter)) {
            self.submitter = self.source.attach();
        }
        self.source.call(self.submitter, &request);
    }

    fn happen(&mut self, event: &Event) {
        let now = Instant::now();
        match *event {
            Event::CutAll(side) => self.server(side).cut_all(),
            Event::Refuse(side, length) => {
                self.server(side).refuse();
                self.server(side).cut_all();
                self.ends.push((now + length, Ending::Open(side)));
            }
            Event::Freeze(side, length) => {
                self.server(side).freeze();
                self.ends.push((now + length, Ending::Thaw(side)));
            }
            Event::Restart { side, keeps_jobs, process_id, away } => {
                self.server(side).restart(keeps_jobs, process_id);
                self.ends.push((now + away, Ending::Open(side)));
            }
            Event::Full(limit, length) => {
                self.destination.with(|book| book.limit(QUEUE, limit));
                self.ends.push((now + length, Ending::Room));
            }
            Event::Crash => self.crash(),
            Event::Reload => {
                let predecessor = self.relay.take();
                if let Some(predecessor) = &predecessor {
                    predecessor.stop();
                }
                self.start_relay(predecessor);
            }
        }
    }

    /// As the servers see a kill: every connection breaks, nothing more comes, and then a proxy comes that knows nothing.
    fn crash(&mut self) {
        for server in [&self.source, &self.destination] {
            server.thaw();
            server.refuse();
            server.cut_all();
        }
        if let Some(relay) = self.relay.take() {
            relay.stop();
            relay.join();
        }
        // What the dead proxy had sent is executed by now, or never.
        for server in [&self.source, &self.destination] {
            while server.connections() > 0 {
                std::thread::sleep(TICK);
            }
        }
        self.crashes.push(self.sequence.next());
        for server in [&self.source, &self.destination] {
            server.open();
        }
        self.ends.retain(|(_, ending)| matches!(ending, Ending::Room));
        self.start_relay(None);
    }

    /// Everything that is due: ends of faults, clients, the destination's worker.
    fn look(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.ends).into_iter().partition(|(at, _)| *at <= now);
        self.ends = later;
        let due: Vec<(Instant, Ending)> = due;
        for (_, ending) in due {
            match ending {
                Ending::Open(side) => self.server(side).open(),
                Ending::Thaw(side) => self.server(side).thaw(),
                Ending::Room => self.destination.with(|book| book.limit(QUEUE, 0)),
            }
        }
        for client in &mut self.clients {
            client.take(self.source.call(client.connection, b""));
            if client.leaves.is_some_and(|at| at <= now) {
                client.leaves = None;
                self.source.detach(client.connection);
            }
        }
        self.work();
    }

    /// The destination's worker, which has as many hands as are needed.
    fn work(&mut self) {
        if self.plan.asynchronous {
            if self.random.range(1, 100) <= self.plan.consumes {
                self.take_jobs();
            }
        } else {
            // Somebody waits for the result.
            self.take_jobs();
        }
        for mut task in std::mem::take(&mut self.tasks) {
            if task.looks_left > 0 {
                task.looks_left -= 1;
                self.tasks.push(task);
                continue;
            }
            self.finish_task(&task);
        }
    }

    fn take_jobs(&mut self) {
        if !self.destination.with(|book| book.is_open(self.worker)) {
            self.worker = self.destination.attach();
            self.tasks.clear();
        }
        if !self.plan.asynchronous {
            self.wait_for_failed_copies();
        }
        let mut requests = request(RESET_ABILITIES, &[]);
        if self.tasks.is_empty() {
            self.destination.call(self.worker, &requests);
            requests = request(CAN_DO, &[QUEUE]);
            self.destination.call(self.worker, &requests);
        }
        while self.tasks.len() < 50 {
            let answers = self.destination.call(self.worker, &request(GRAB_JOB_UNIQ, &[]));
            let mut taken = false;
            for answer in answers {
                if let Message::Response(packet) = answer
                    && packet.kind == JOB_ASSIGN_UNIQ
                    && let Some(arguments) = packet.arguments(4)
                {
                    taken = true;
                    let looks_left = if self.plan.asynchronous { 0 } else { self.random.range(0, 6) };
                    self.tasks.push(Task { handle: arguments[0].to_vec(), data: arguments[3].to_vec(), looks_left });
                }
            }
            if !taken || (self.plan.asynchronous && self.plan.consumes < 50) {
                break;
            }
        }
    }

    /// A job that was reported failed may not be run afterwards. What its closed connection left queued is dropped by the
    /// server when it notices, for which it is given time here; if it does not, the connection was not closed.
    fn wait_for_failed_copies(&mut self) {
        let failed: HashSet<Vec<u8>> = self.source.with(|book| {
            let failed = book.jobs.iter().filter(|job| matches!(job.end, Some((_, End::Failed))));
            failed.map(|job| job.data.clone()).collect()
        });
        if failed.is_empty() {
            return;
        }
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let copies = self.destination.with(|book| {
                let waiting = book.waiting(QUEUE);
                waiting.into_iter().filter(|(id, _)| failed.contains(&book.jobs[*id].data)).collect::<Vec<_>>()
            });
            let visible =
                copies.iter().find(|(_, clients)| !clients.iter().any(|client| self.destination.is_blind(*client)));
            let Some((copy, _)) = visible else { return };
            if Instant::now() > end {
                let data = self.destination.with(|book| book.jobs[*copy].data.escape_ascii().to_string());
                self.violations.push(format!("a job that was reported failed can still be run: {data}"));
                return;
            }
            std::thread::sleep(TICK);
        }
    }

    fn finish_task(&mut self, task: &Task) {
        let handle = task.handle.as_slice();
        if self.plan.asynchronous {
            self.destination.call(self.worker, &request(WORK_COMPLETE, &[handle, b""]));
            return;
        }
        let mut packets = Vec::new();
        packets.extend(request(WORK_DATA, &[handle, b"some \0 data of ", &task.data]));
        packets.extend(request(WORK_STATUS, &[handle, b"1", b"2"]));
        packets.extend(request(WORK_WARNING, &[handle, b"a warning"]));
        packets.extend(match outcome(&task.data) {
            Outcome::Result(result) => request(WORK_COMPLETE, &[handle, &result]),
            Outcome::Fails => request(WORK_FAIL, &[handle]),
            Outcome::Raises(exception) => request(WORK_EXCEPTION, &[handle, &exception]),
        });
        self.destination.call(self.worker, &packets);
    }

    /// The faults end; everything must find its place.
    fn settle(&mut self) {
        for server in [&self.source, &self.destination] {
            server.calm();
        }
        self.destination.with(|book| book.limit(QUEUE, 0));
        let end = Instant::now() + self.patience;
        let mut fresh = 0;
        let mut last_fresh = Instant::now();
        loop {
            self.look();
            let left = self.source.with(|book| book.live(QUEUE));
            if left == 0 {
                break;
            }
            if Instant::now() > end {
                let waiting = self.source.with(|book| {
                    let waiting = book.jobs.iter().filter(|job| job.function == QUEUE && job.end.is_none());
                    waiting.map(describe).collect::<Vec<_>>()
                });
                self.violations.push(format!("{left} jobs never left the source: {waiting:#?}"));
                break;
            }
            // A job is only blamed for broken connections when others got through between.
            let is_poison = |plan: &Plan, job: &Job| matches!(plan.class(&job.data), Class::Poison);
            let poisoned = self.source.with(|book| {
                book.jobs.iter().any(|job| job.function == QUEUE && job.end.is_none() && is_poison(self.plan, job))
            });
            if poisoned && last_fresh.elapsed() > Duration::from_millis(30) {
                last_fresh = Instant::now();
                fresh += 1;
                let data = format!("fresh {fresh}").into_bytes();
                let data = if self.plan.stages { base64(&data) } else { data };
                if !self.source.with(|book| book.is_open(self.submitter)) {
                    self.submitter = self.source.attach();
                }
                let kind = if self.plan.asynchronous { SUBMIT_JOB_BG } else { SUBMIT_JOB };
                self.source.call(self.submitter, &request(kind, &[QUEUE, b"", &data]));
            }
            std::thread::sleep(TICK);
        }
        let Some(relay) = self.relay.take() else { return };
        let began = Instant::now();
        relay.stop();
        relay.join();
        if began.elapsed() > self.plan.scale.stop + Duration::from_secs(5) {
            self.violations.push(format!("stopping took {:?}", began.elapsed()));
        }
        for client in &mut self.clients {
            client.take(self.source.call(client.connection, b""));
        }
        for (name, server) in [("source", &self.source), ("destination", &self.destination)] {
            let gone = Instant::now() + Duration::from_secs(10);
            while server.connections() > 0 {
                if Instant::now() > gone {
                    self.violations.push(format!("{} connections left at the {name}", server.connections()));
                    break;
                }
                std::thread::sleep(TICK);
            }
        }
    }

    fn judge(&mut self) {
        let (source_jobs, mut malformed, identified) =
            self.source.with(|book| (book.jobs.clone(), book.malformed.clone(), book.identified.clone()));
        let (jobs, submissions) = self.destination.with(|book| (book.jobs.clone(), book.submissions.clone()));
        let rejects = self.server(self.plan.reject_queue.unwrap_or(Side::Source)).with(rejects);
        malformed.extend(self.destination.with(|book| {
            // Closed over poison is not malformed; anything else is.
            book.malformed.clone()
        }));
        let mut judge = Judge {
            plan: self.plan,
            crashes: &self.crashes,
            identified: &identified,
            accepted: self.destination.accepted(),
            source_jobs: &source_jobs,
            jobs: &jobs,
            submissions: &submissions,
            rejects: &rejects,
            violations: Vec::new(),
        };
        if !malformed.is_empty() {
            judge.violations.push(format!("malformed packets: {malformed:?}"));
        }
        if self.plan.asynchronous {
            judge.asynchronous();
        } else {
            judge.synchronous();
        }
        let violations = judge.violations;
        self.violations.extend(violations);
        self.judge_clients(&source_jobs);
    }

    /// Every foreground client gets exactly one final answer, unless its server restarted or it left.
    fn judge_clients(&mut self, source_jobs: &[Job]) {
        let restarts = self.source.with(|book| book.restarts);
        for client in &self.clients {
            let finals = client.received.iter().filter(|packet| packet.is_final()).count();
            let data = client.data.escape_ascii();
            if finals > 1 {
                self.violations.push(format!("{finals} final answers for {data}"));
            }
            // A client that merged with one that left, or whose job another's leaving abandoned, was let down by gearmand.
            let abandoned = source_jobs.iter().any(|job| {
                job.data == client.data && matches!(job.end, Some((_, End::Abandoned | End::LostAtRestart)))
            });
            let left = self.plan.orders.iter().any(|order| order.data == client.data && order.leaves.is_some());
            if finals == 0 && client.restarts == restarts && !abandoned && !left {
                self.violations.push(format!("no final answer for {data}, but {:?}", client.received));
            }
        }
    }
}

impl Packet {
    fn is_final(&self) -> bool {
        matches!(self.kind, WORK_COMPLETE | WORK_FAIL | WORK_EXCEPTION)
    }
}

impl Client {
    fn take(&mut self, messages: Vec<Message>) {
        for message in messages {
            if let Message::Response(packet) = message {
                self.received.push(packet);
            }
        }
    }
}

fn rejects(book: &mut Book) -> Vec<Submission> {
    book.submissions.iter().filter(|submission| submission.function == REJECTS).cloned().collect()
}

fn describe(job: &Job) -> String {
    let data = &job.data[..job.data.len().min(60)];
    format!(
        "{} {} created {} assigned {:?} restarts {} end {:?}",
        job.handle.escape_ascii(),
        data.escape_ascii(),
        job.created,
        job.assignments,
        job.restarts,
        job.end.as_ref().map(|(at, end)| (
            at,
            match end {
                End::Completed(_) => "completed",
                End::Failed => "failed",
                End::Exception(_) => "exception",
                End::Abandoned => "abandoned",
                End::LostAtRestart => "lost",
            }
        ))
    )
}

/// Looks for what may not be in the books.
struct Judge<'a> {
    plan: &'a Plan,
    crashes: &'a [u64],
    /// Connections to the source on which its process id was asked.
    identified: &'a HashSet<ConnectionId>,
    /// Connections that the destination accepted.
    accepted: u64,
    source_jobs: &'a [Job],
    jobs: &'a [Job],
    submissions: &'a [Submission],
    rejects: &'a [Submission],
    violations: Vec<String>,
}

impl Judge<'_> {
    fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Whether the destination may have broken so often that a job was blamed for it or given up.
    fn may_give_up(&self) -> bool {
        self.accepted >= self.plan.workers as u64 + 2
    }

    fn asynchronous(&mut self) {
        for job in self.source_jobs.iter().filter(|job| job.function == QUEUE) {
            self.judge_end(job);
        }
        self.judge_copies();
        if self.plan.ordered {
            self.judge_order();
        }
    }

    fn is_delivered(&self, job: &Job, before: u64) -> bool {
        let stored = |submission: &Submission| match (submission.accepted, job.unique.is_empty()) {
            (Accepted::Refused, _) => false,
            (_, true) => true,
            // An id that was stored as 63 bytes can only travel on as those.
            (_, false) => submission.unique == job.unique,
        };
        self.submissions.iter().any(|s| s.function == QUEUE && s.data == job.data && s.at < before && stored(s))
    }

    fn is_rejected(&self, job: &Job, before: u64) -> bool {
        self.rejects.iter().any(|s| s.data == job.data && s.at < before && s.accepted != Accepted::Refused)
    }

    fn judge_end(&mut self, job: &Job) {
        let class = self.plan.class(&job.data);
        let Some((at, end)) = &job.end else { return };
        let has_queue = self.plan.reject_queue.is_some();
        match (class, end) {
            (_, End::Abandoned | End::LostAtRestart) => {}
            (Class::Good, End::Completed(answer)) => {
                if answer != BACKGROUND_ANSWER {
                    self.violation(format!("answered {:?}: {}", answer.escape_ascii().to_string(), describe(job)));
                }
                let given_up = has_queue && self.may_give_up() && self.is_rejected(job, *at);
                if !self.is_delivered(job, *at) && !given_up {
                    self.violation(format!("lost: acknowledged and not delivered: {}", describe(job)));
                }
            }
            (Class::Good, _) => {
                if has_queue || !self.may_give_up() {
                    self.violation(format!("failed without a reason: {}", describe(job)));
                }
            }
            (Class::Oversize, End::Failed) => {}
            (Class::Oversize, _) => self.violation(format!("too large and not failed: {}", describe(job))),
            (Class::Bad | Class::Poison | Class::Refused, End::Completed(_)) if has_queue => {
                if !self.is_rejected(job, *at) {
                    self.violation(format!(
                        "undeliverable, acknowledged and not in the reject queue: {}",
                        describe(job)
                    ));
                }
            }
            (Class::Bad | Class::Poison | Class::Refused, End::Failed) if !has_queue => {}
            (Class::Bad | Class::Poison | Class::Refused, _) => {
                self.violation(format!("undeliverable, and the end is wrong: {}", describe(job)));
            }
        }
        if class != Class::Good && self.is_delivered(job, u64::MAX) {
            self.violation(format!("undeliverable, and delivered: {}", describe(job)));
        }
    }

    /// Each job has one copy at the destination, but for what promise 3 excepts.
    fn judge_copies(&mut self) {
        let mut copies: BTreeMap<&[u8], Vec<&Job>> = BTreeMap::new();
        let of_source = self.source_jobs.iter().filter(|job| job.function == REJECTS);
        let of_destination = self.jobs.iter().filter(|job| job.function == QUEUE || job.function == REJECTS);
        for job in of_destination.chain(of_source) {
            copies.entry(&job.data).or_default().push(job);
        }
        let mut originals: HashMap<&[u8], Vec<&Job>> = HashMap::new();
        for job in self.source_jobs.iter().filter(|job| job.function == QUEUE) {
            originals.entry(&job.data).or_default().push(job);
        }
        let mut violations = Vec::new();
        for (data, copies) in &copies {
            let Some(originals) = originals.get(data) else {
                violations.push(format!("delivered from nowhere: {}", data.escape_ascii()));
                continue;
            };
            let extra = copies.len().saturating_sub(originals.len());
            let excused = copies.iter().filter(|copy| self.is_excused(copy, copies, originals)).count();
            if extra > excused {
                violations.push(format!(
                    "{} copies, {excused} excused: {:#?} of {:#?}",
                    copies.len(),
                    copies.iter().map(|job| format!("by {} {}", job.created_by, describe(job))).collect::<Vec<_>>(),
                    originals.iter().map(|job| describe(job)).collect::<Vec<_>>()
                ));
            }
        }
        for (data, originals) in &originals {
            let acknowledged = originals.iter().filter(|job| {
                job.unique.is_empty()
                    && matches!(job.end, Some((_, End::Completed(_))))
                    && self.plan.class(&job.data) == Class::Good
            });
            let acknowledged = acknowledged.count();
            let found = copies.get(data).map_or(0, Vec::len) + self.rejects.iter().filter(|s| s.data == *data).count();
            if acknowledged > found {
                violations.push(format!(
                    "{acknowledged} jobs of the same data acknowledged, {found} delivered: {:#?}",
                    originals.iter().map(|job| describe(job)).collect::<Vec<_>>()
                ));
            }
        }
        self.violations.extend(violations);
    }

    /// Whether nobody could know that there was an earlier copy.
    fn is_excused(&self, copy: &Job, copies: &[&Job], originals: &[&Job]) -> bool {
        // The source can't be told from the one before its restart, so a job that came again was another one.
        let blind = |job: &Job| {
            let anonymous = job.assignments.iter().any(|(_, connection)| !self.identified.contains(connection));
            job.restarts > 0 || (job.assignments.len() > 1 && (self.source_says_nothing() || anonymous))
        };
        if originals.iter().any(|job| blind(job)) {
            return true;
        }
        copies.iter().filter(|earlier| earlier.created < copy.created).any(|earlier| {
            let gone = earlier.end.as_ref().is_some_and(|(at, _)| *at < copy.created);
            let crashed = self.crashes.iter().any(|at| *at > earlier.created);
            // The latest of the submissions that were merged with it may have been confirmed; it must have been on
            // another connection than the one that made the new copy.
            let others = if copy.function == REJECTS { self.rejects } else { self.submissions };
            let accepted =
                |s: &Submission| s.data == copy.data && s.unique == copy.unique && s.accepted != Accepted::Refused;
            let last = others.iter().rfind(|s| s.at < copy.created && accepted(s));
            let broken = last.is_some_and(|s| s.by != copy.created_by);
            let sound = self.plan.destination_is_sound && copy.function == QUEUE;
            gone && broken && (crashed || !sound)
        })
    }

    fn source_says_nothing(&self) -> bool {
        self.plan.source_process_id < 300
            || self.plan.has(
                |event| matches!(event, Event::Restart { side: Side::Source, process_id, .. } if *process_id < 300),
            )
    }

    fn judge_order(&mut self) {
        let sent: Vec<&Job> = self.source_jobs.iter().filter(|job| job.function == QUEUE).collect();
        let mut last = (0, 0);
        let mut violations = Vec::new();
        for (place, job) in sent.iter().enumerate() {
            let arrived = self.jobs.iter().find(|copy| copy.function == QUEUE && copy.data == job.data);
            let Some(arrived) = arrived else { continue };
            if arrived.created < last.0 {
                violations.push(format!("out of order: {} before {}", describe(job), describe(sent[last.1])));
            }
            last = (arrived.created, place);
        }
        self.violations.extend(violations);
    }

    fn synchronous(&mut self) {
        let mut used = HashSet::new();
        for submission in self.submissions.iter().filter(|s| s.function == QUEUE) {
            if submission.unique.is_empty() || !used.insert(&submission.unique) {
                let text = submission.unique.escape_ascii().to_string();
                self.violation(format!("unique id used again, or none: {text:?}"));
            }
            if submission.background {
                self.violation("a synchronous job in the background".to_owned());
            }
        }
        for job in self.source_jobs.iter().filter(|job| job.function == QUEUE) {
            let Some((_, end)) = &job.end else { continue };
            match (self.plan.class(&job.data), end) {
                (_, End::Abandoned | End::LostAtRestart) => {}
                (Class::Good, end) => self.judge_result(job, end),
                (Class::Oversize, End::Failed) => {}
                (Class::Poison | Class::Refused, End::Failed) if self.plan.reject_queue.is_none() => {}
                (Class::Poison | Class::Refused, End::Failed) => {}
                (Class::Poison | Class::Refused, End::Completed(_)) if self.is_rejected(job, u64::MAX) => {}
                _ => self.violation(format!("the end is wrong: {}", describe(job))),
            }
        }
    }

    fn judge_result(&mut self, job: &Job, end: &End) {
        let expected = match (outcome(&job.data), end) {
            (Outcome::Result(result), End::Completed(got)) => result == *got,
            (Outcome::Raises(exception), End::Exception(got)) => exception == *got,
            (Outcome::Fails, End::Failed) => return,
            (_, End::Failed) => self.may_give_up(),
            _ => false,
        };
        if !expected {
            self.violation(format!("wrong outcome: {}", describe(job)));
        }
        if *end != End::Failed {
            let ran =
                self.jobs.iter().any(|copy| copy.data == job.data && copy.end.as_ref().is_some_and(|e| e.1 == *end));
            if !ran {
                self.violation(format!("answered without having been run: {}", describe(job)));
            }
        }
    }
}
