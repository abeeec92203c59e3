//! The world of one schedule: who is there, what time it is, and whose turn it is.
//!
//! A step is one decision: either a pump that can act does its next piece (asks its relay, or does a piece of I/O, or
//! reports it), or the clock jumps to what happens next. The seed picks, so that what threads can interleave, it
//! interleaves; and as nothing else is asked, the same seed does the same.

use std::rc::Rc;

use crate::book::Book;
use crate::clock::{Clock, MILLISECOND, Micros, SECOND, Timer};
use crate::forward::{Forward, Process};
use crate::pipe::{Ending, Line, Pipe};
use crate::plan::{self, Plan};
use crate::random::{Random, Trace};
use crate::server::Server;

/// Who a connection is of, within its forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Source,
    Line(usize),
}

/// A connection from a forward to a server.
#[derive(Debug)]
pub struct Connection {
    pub server: usize,
    pub incarnation: u32,
    pub forward: usize,
    /// The life of the forward that it belongs to.
    pub process: usize,
    pub owner: Owner,
    pub up: Pipe,
    pub down: Pipe,
    pub server_open: bool,
    pub proxy_open: bool,
    /// The proxy closed it though nothing was wrong with it.
    pub chosen: bool,
    pub opened_at: Micros,
    /// A fault concerned it.
    pub troubled: bool,
    /// Pumps that are blocked in reading and in writing.
    pub reader: Option<usize>,
    pub writer: Option<usize>,
    /// Replies that are owed: of which copy (of class and number) the next JOB_CREATED is.
    pub owed: std::collections::VecDeque<Option<(usize, usize)>>,
    /// Grabs that were written and not answered; jobs, and bytes of jobs, that came and were not acknowledged.
    pub asked: usize,
    pub held: usize,
    pub held_bytes: usize,
    /// Acknowledgements that were written, executed, executed before an answer, and of which the proxy knows that.
    pub acknowledged: u64,
    pub executed: u64,
    pub answered: u64,
    pub proven: u64,
}

/// Decisions of a schedule at most; more are a forward that runs in circles.
const MOST_STEPS: u64 = 3_000_000;
/// Decisions without time passing.
const MOST_AT_ONCE: u64 = 300_000;

/// See the module.
pub struct World<'a> {
    pub plan: &'a Plan,
    pub clock: Clock,
    /// For turns, and for everything else.
    pub turns: Random,
    pub chance: Random,
    pub trace: Trace,
    pub servers: Vec<Server>,
    pub connections: Vec<Connection>,
    pub processes: Vec<Process>,
    pub forwards: Vec<Forward>,
    /// Each class's data.
    pub data: Vec<Rc<[u8]>>,
    pub book: Book,
    /// Pumps that can act: forward and number.
    pub ready: Vec<(usize, usize)>,
    pub tokens: u32,
    pub steps: u64,
    /// Rates of slow lines, and until when servers are unreachable.
    pub rates: Vec<Option<u64>>,
    pub unreachable_until: Vec<Micros>,
    pub hung_until: Vec<Micros>,
    /// No connection between the proxies and this server outlived this time.
    pub all_cut_at: Vec<Micros>,
    pub calm_at: Micros,
    pub settled_at: Option<Micros>,
    pub is_over: bool,
    pub packet: Vec<u8>,
    pub story: Option<Vec<String>>,
}

/// What came of a schedule.
#[derive(Debug)]
pub struct Report {
    pub hash: u64,
    pub violations: Vec<String>,
    pub counts: crate::counts::Counts,
    /// Of each class, how many were created at destinations.
    pub copies: Vec<usize>,
    pub story: Vec<String>,
}

/// Runs a plan.
pub fn run(plan: &Plan, tells: bool) -> Report {
    let mut world = World::new(plan, tells);
    world.begin();
    while world.book.violations.is_empty() && !world.is_over {
        world.turn();
    }
    world.finish();
    let World { trace, mut book, story, clock, steps, .. } = world;
    book.counts.schedules = 1;
    book.counts.virtual_seconds = clock.now / SECOND;
    book.counts.steps = steps;
    let copies = book.accounts.iter().map(|account| account.copies.len()).collect();
    Report {
        hash: trace.get(),
        violations: book.violations,
        counts: book.counts,
        copies,
        story: story.unwrap_or_default(),
    }
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, tells: bool) -> World<'a> {
        let servers = plan.servers.len();
        World {
            plan,
            clock: Clock::default(),
            turns: Random::part(plan.seed, 1),
            chance: Random::part(plan.seed, 2),
            trace: Trace::new(plan.seed),
            servers: plan
                .servers
                .iter()
                .map(|server| Server::new(server.process_id, server.tells, server.retries))
                .collect(),
            connections: Vec::new(),
            processes: Vec::new(),
            forwards: Vec::new(),
            data: plan.classes.iter().enumerate().map(|(number, class)| plan::data(number, class).into()).collect(),
            book: Book::new(plan),
            ready: Vec::new(),
            tokens: 0,
            steps: 0,
            rates: vec![None; servers],
            unreachable_until: vec![0; servers],
            hung_until: vec![0; servers],
            all_cut_at: vec![0; servers],
            calm_at: plan.calm_at(),
            settled_at: None,
            is_over: false,
            packet: Vec::new(),
            story: tells.then(Vec::new),
        }
    }

    fn begin(&mut self) {
        for (number, order) in self.plan.orders.iter().enumerate() {
            self.clock.at(order.at, Timer::Order(number));
        }
        for (number, (at, _)) in self.plan.faults.iter().enumerate() {
            self.clock.at(*at, Timer::Fault(number));
        }
        for forward in 0..self.plan.forwards.len() {
            self.forwards.push(Forward::new(forward));
        }
        for proxy in 0..self.plan.proxies {
            self.clock.at(0, Timer::Start(proxy));
        }
        self.clock.at(self.calm_at, Timer::Check);
    }

    /// Adds a sentence to the story, if it is told.
    pub fn tell(&mut self, sentence: impl FnOnce(&World<'_>) -> String) {
        if self.story.is_some() {
            let now = self.clock.now;
            let sentence = sentence(self);
            if let Some(story) = &mut self.story {
                story.push(format!("{:>11.6} s  {sentence}", now as f64 / 1e6));
            }
        }
    }

    /// One decision.
    fn turn(&mut self) {
        self.steps += 1;
        let now = self.clock.now;
        let next = self.clock.next();
        let jumps = match next {
            _ if self.ready.is_empty() => true,
            None => false,
            Some(at) if at <= now => self.turns.one_in(2),
            Some(at) => at - now < 20 * MILLISECOND && self.plan.lazy > 0 && self.turns.one_in(self.plan.lazy),
        };
        if jumps {
            match self.clock.jump() {
                Some(timer) => {
                    if self.clock.now > now {
                        self.book.steps_at_once = 0;
                    }
                    self.happen(timer);
                }
                None => self.book.violations.push("nothing is left to happen, and not everything is done".to_owned()),
            }
        } else {
            let turn = self.turns.below(self.ready.len());
            let (forward, pump) = self.ready.swap_remove(turn);
            self.trace.add(self.clock.now, (forward << 16 | pump) as u64);
            self.step(forward, pump);
        }
        self.book.steps_at_once += 1;
        if self.book.steps_at_once > MOST_AT_ONCE || self.steps > MOST_STEPS {
            self.book.violations.push(format!("a forward runs in circles: {} steps", self.steps));
        }
    }

    fn happen(&mut self, timer: Timer) {
        match timer {
            Timer::Arrival { connection, up } => self.arrive(connection, up),
            Timer::Pump { forward, pump, token } => {
                if self.forwards[forward].pumps.get(pump).is_some_and(|pump| pump.token == token) {
                    self.make_ready(forward, pump);
                }
            }
            Timer::Due { forward, token } => self.time_passes(forward, token),
            Timer::Worker { server } => self.look_for_work(server),
            Timer::Done { server, incarnation, job } => self.done(server, incarnation, job),
            Timer::Order(order) => self.order(order),
            Timer::Leaves(order) => {
                let server = self.source_of(order);
                self.trace.add(11, order as u64);
                self.tell(|_| format!("The client of order {order} leaves."));
                self.servers[server].leave(order);
                self.book.left.push(order);
            }
            Timer::Fault(fault) => self.fault(fault),
            Timer::Over(fault) => self.over(fault),
            Timer::Start(proxy) => self.start(proxy),
            Timer::Check => self.check(),
        }
    }

    pub fn new_token(&mut self) -> u32 {
        self.tokens += 1;
        self.tokens
    }

    pub fn make_ready(&mut self, forward: usize, pump: usize) {
        let state = &mut self.forwards[forward].pumps[pump];
        if !state.queued {
            state.queued = true;
            self.ready.push((forward, pump));
        }
    }

    /// What a line to a server is like now.
    fn line(&self, server: usize) -> Line {
        let line = self.plan.servers[server].line;
        Line { rate: self.rates[server].unwrap_or(line.rate), ..line }
    }

    pub fn open(&mut self, forward: usize, server: usize, owner: Owner) -> usize {
        let line = self.line(server);
        let connection = self.connections.len();
        self.servers[server].connect(connection);
        self.connections.push(Connection {
            server,
            incarnation: self.servers[server].incarnation,
            forward,
            process: self.forwards[forward].process,
            owner,
            up: Pipe::new(line),
            down: Pipe::new(Line { size: usize::MAX, ..line }),
            server_open: true,
            proxy_open: true,
            chosen: false,
            opened_at: self.clock.now,
            troubled: false,
            reader: None,
            writer: None,
            owed: Default::default(),
            asked: 0,
            held: 0,
            held_bytes: 0,
            acknowledged: 0,
            executed: 0,
            answered: 0,
            proven: 0,
        });
        self.trace.add(12, connection as u64);
        connection
    }

    /// Sees to it that what is on its way arrives.
    pub fn time_pipe(&mut self, connection: usize, up: bool) {
        let pipe = self.pipe(connection, up);
        if pipe.timed {
            return;
        }
        if let Some(at) = pipe.next_arrival() {
            pipe.timed = true;
            self.clock.at(at, Timer::Arrival { connection, up });
        }
    }

    pub fn pipe(&mut self, connection: usize, up: bool) -> &mut Pipe {
        let connection = &mut self.connections[connection];
        if up { &mut connection.up } else { &mut connection.down }
    }

    fn arrive(&mut self, connection: usize, up: bool) {
        let now = self.clock.now;
        let pipe = self.pipe(connection, up);
        pipe.timed = false;
        pipe.arrive(now);
        // The end is told once.
        if pipe.next_arrival().is_some_and(|at| at > now) {
            self.time_pipe(connection, up);
        }
        self.trace.add(now, (connection << 1 | usize::from(up)) as u64);
        if up {
            self.serve(connection);
        } else if let Some(pump) = self.connections[connection].reader {
            let forward = self.connections[connection].forward;
            self.make_ready(forward, pump);
        }
    }

    /// Bytes from the proxy; whether or not there is room.
    pub fn send(&mut self, connection: usize, bytes: &[u8]) {
        let now = self.clock.now;
        if self.connections[connection].up.write(now, bytes) {
            self.cut(connection, false);
        }
        self.time_pipe(connection, true);
    }

    /// The connection breaks, for both ends.
    pub fn cut(&mut self, connection: usize, reset: bool) {
        let now = self.clock.now;
        let this = &mut self.connections[connection];
        if !(this.server_open && this.proxy_open) {
            return;
        }
        this.troubled = true;
        self.book.counts.cuts += 1;
        for pipe in [&mut this.up, &mut this.down] {
            if reset {
                pipe.reset(now + pipe.line.latency);
            } else {
                pipe.finish(now);
            }
        }
        self.tell(|world| {
            format!("The connection {} is {}.", world.name(connection), if reset { "reset" } else { "cut" })
        });
        self.time_pipe(connection, true);
        self.time_pipe(connection, false);
        self.unblock(connection);
    }

    /// Pumps that are blocked on a connection look again.
    pub fn unblock(&mut self, connection: usize) {
        let this = &self.connections[connection];
        let (forward, pumps) = (this.forward, [this.reader, this.writer]);
        for pump in pumps.into_iter().flatten() {
            self.make_ready(forward, pump);
        }
    }

    /// The proxy closes its end. What it wrote arrives, unless bytes that nobody will read come to it: then the kernel
    /// resets the connection, and what is on its way is lost.
    pub fn shut(&mut self, connection: usize, chosen: bool) {
        let now = self.clock.now;
        let healthy = {
            let this = &self.connections[connection];
            let server = this.server;
            !this.troubled
                && this.server_open
                && this.incarnation == self.servers[server].incarnation
                && self.servers[server].up
                && !self.servers[server].hung
        };
        let loses = !self.connections[connection].down.is_empty() && self.chance.one_in(2);
        let this = &mut self.connections[connection];
        if !this.proxy_open {
            return;
        }
        this.proxy_open = false;
        this.chosen = chosen && healthy;
        if loses {
            this.up.reset(now + this.up.line.latency);
        } else {
            this.up.finish(now);
        }
        self.trace.add(13, connection as u64);
        self.time_pipe(connection, true);
        self.unblock(connection);
    }

    /// The server closes its end, in good order or not.
    pub fn close_by_server(&mut self, connection: usize, reset: bool) {
        let now = self.clock.now;
        let this = &mut self.connections[connection];
        if !this.server_open {
            return;
        }
        this.server_open = false;
        let (server, chosen) = (this.server, this.chosen);
        if this.down.has_end() {
        } else if reset {
            this.down.reset(now + this.down.line.latency);
        } else {
            this.down.finish(now);
        }
        // Nobody reads any more.
        if !this.up.has_end() {
            this.up.reset(now);
        }
        self.trace.add(14, connection as u64);
        self.servers[server].close(connection, now, chosen);
        self.flush(server);
        self.time_pipe(connection, false);
        self.unblock(connection);
    }

    pub fn source_of(&self, order: usize) -> usize {
        let queue = self.plan.classes[self.plan.orders[order].class].queue;
        self.plan.forwards.iter().find(|forward| forward.queue == queue).map_or(0, |forward| forward.source)
    }

    /// How a connection is called in the story.
    pub fn name(&self, connection: usize) -> String {
        let this = &self.connections[connection];
        let server = self.plan.servers[this.server].name;
        match this.owner {
            Owner::Source => format!("{connection} of forward {} to {server}", this.forward),
            Owner::Line(submitter) => {
                format!("{connection} of forward {}, submitter {submitter}, to {server}", this.forward)
            }
        }
    }

    /// What the proxy learns of the end of a connection: whether the server closed it.
    pub fn end_seen(&self, connection: usize) -> Option<bool> {
        let this = &self.connections[connection];
        if !this.proxy_open {
            return Some(false);
        }
        this.down.ended(self.clock.now).map(|ending| ending == Ending::Fin || this.troubled || !this.server_open)
    }
}
