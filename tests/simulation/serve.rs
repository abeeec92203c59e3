//! The servers' side of the world: packets in, packets out, clients, workers, and the faults.

use crate::clock::{MILLISECOND, Micros, SECOND, Timer};
use crate::forward::After;
use crate::plan::{self, Fault, Outcome, Place, QUEUES, REJECTS};
use crate::server::{self, Client, Submission, Worker};
use crate::wire::{self, Parsed, kind};
use crate::world::World;

/// A client whose server is away tries again after this.
const RETRY: Micros = 500 * MILLISECOND;

/// The kernel gives a connection up whose peer is silent after this: keepalive and user timeout.
const KERNEL_PATIENCE: Micros = 28 * SECOND;

impl World<'_> {
    /// The server reads and answers what has come.
    pub fn serve(&mut self, connection: usize) {
        let now = self.clock.now;
        let mut body = std::mem::take(&mut self.packet);
        loop {
            let this = &self.connections[connection];
            let server = this.server;
            if !this.server_open || self.servers[server].hung || !self.servers[server].up {
                break;
            }
            let bytes = this.up.readable();
            let (kind, end) = match wire::parse(bytes) {
                Parsed::Whole(kind, end) => (kind, end),
                Parsed::Incomplete => {
                    if this.up.ended(now).is_some()
                        || (this.up.has_end() && this.up.next_arrival().is_none_or(|at| at <= now))
                    {
                        self.close_by_server(connection, false);
                    }
                    self.connections[connection].up.take();
                    break;
                }
                Parsed::Nonsense => {
                    self.book.violations.push(format!("nonsense comes to {}", self.name(connection)));
                    break;
                }
            };
            body.clear();
            body.extend_from_slice(wire::body(bytes, end));
            self.connections[connection].up.consume(end);
            self.trace.add(40, (kind as u64) << 32 | end as u64);
            self.tell(|world| {
                format!("{} receives {}.", world.plan.servers[server].name, shown(kind, &body, connection))
            });
            let after = self.servers[server].execute(connection, kind, &body, &self.plan.classes, server, now);
            let copy = self.note(server, Some(connection));
            let this = &mut self.connections[connection];
            match kind {
                kind::WORK_COMPLETE | kind::WORK_FAIL | kind::WORK_EXCEPTION => this.executed += 1,
                kind::GRAB_JOB_UNIQ | kind::ECHO_REQ => this.answered = this.executed,
                _ if wire::submission(kind).is_some() => this.owed.push_back(copy),
                _ => {}
            }
            self.flush(server);
            if after == server::After::Closes {
                let reset = self.chance.one_in(2);
                self.tell(|world| format!("{} closes connection {connection}.", world.plan.servers[server].name));
                self.close_by_server(connection, reset);
                break;
            }
        }
        self.packet = body;
        if let Some(writer) = self.connections[connection].writer
            && self.connections[connection].up.has_much_room()
        {
            let forward = self.connections[connection].forward;
            self.make_ready(forward, writer);
        }
    }

    /// Sends what a server has to say, and tells the books what happened.
    pub fn flush(&mut self, server: usize) {
        if !self.servers[server].happened.is_empty() {
            self.note(server, None);
        }
        if self.servers[server].outputs.is_empty() {
            return;
        }
        let now = self.clock.now;
        let mut outputs = std::mem::take(&mut self.servers[server].outputs);
        let mut bytes = std::mem::take(&mut self.servers[server].outgoing);
        let mut from = 0;
        for (position, &(connection, end)) in outputs.iter().enumerate() {
            // What goes to the same connection goes with one write.
            if outputs.get(position + 1).is_some_and(|(next, _)| *next == connection) {
                continue;
            }
            if self.connections[connection].down.write(now, &bytes[from..end]) {
                self.cut(connection, false);
            }
            self.time_pipe(connection, false);
            from = end;
        }
        outputs.clear();
        bytes.clear();
        self.servers[server].outputs = outputs;
        self.servers[server].outgoing = bytes;
    }

    /// A client submits its order, or tries to.
    pub fn order(&mut self, number: usize) {
        let order = self.plan.orders[number];
        let class = self.plan.classes[order.class];
        let server = self.source_of(number);
        if !self.servers[server].up || self.servers[server].hung || self.unreachable_until[server] > self.clock.now {
            self.clock.at(self.clock.now + RETRY, Timer::Order(number));
            return;
        }
        self.trace.add(41, number as u64);
        let unique = plan::unique(order.class, class.unique);
        let data = self.data[order.class].clone();
        self.tell(|_| {
            let ground = if order.foreground { "a foreground" } else { "a background" };
            format!("A client submits order {number}: {ground} job of class {}, {} bytes.", order.class, data.len())
        });
        let submission = Submission {
            queue: class.queue,
            class: order.class,
            unique: &unique,
            data: &data,
            priority: order.priority,
            client: order.foreground.then_some(Client::Order(number)),
            by: None,
        };
        // The source's own queue is never limited.
        let _ = self.servers[server].submit(&submission);
        self.flush(server);
        self.book.submitted += 1;
        if let Some(leaves) = order.leaves {
            self.clock.at(self.clock.now + leaves, Timer::Leaves(number));
        }
    }

    /// A job that is not deliverable comes to its queue.
    pub fn submit_reject(&mut self, server: usize, unique: &[u8], data: &[u8]) {
        let Some(class) = plan::class(data) else {
            self.book.violations.push("a job in the reject queue is not what it was".to_owned());
            return;
        };
        let submission = Submission { queue: REJECTS, class, unique, data, priority: 1, client: None, by: None };
        let _ = self.servers[server].submit(&submission);
        self.tell(|_| format!("A job of class {class} comes to the reject queue."));
    }

    /// A destination's workers take what waits.
    pub fn look_for_work(&mut self, server: usize) {
        let now = self.clock.now;
        if !self.servers[server].up || self.servers[server].hung {
            return;
        }
        let first = self.chance.below(2);
        for queue in [first, 1 - first] {
            while self.servers[server].busy < self.plan.servers[server].hands {
                let Some(job) = self.servers[server].take(queue, Worker::Local, now) else { break };
                let class = self.servers[server].jobs[job].class;
                let run = self.plan.classes[class].run;
                let takes = run / 2 + self.chance.range(0, run / 2);
                let incarnation = self.servers[server].incarnation;
                self.trace.add(42, job as u64);
                self.tell(|world| {
                    format!("A worker of {} begins a job of class {class}.", world.plan.servers[server].name)
                });
                self.clock.at(now + takes, Timer::Done { server, incarnation, job });
            }
        }
        self.flush(server);
    }

    /// A worker is done with its job.
    pub fn done(&mut self, server: usize, incarnation: u32, job: usize) {
        if self.servers[server].incarnation != incarnation {
            return;
        }
        if !self.servers[server].up || self.servers[server].hung {
            self.clock.at(self.clock.now + RETRY, Timer::Done { server, incarnation, job });
            return;
        }
        let now = self.clock.now;
        let class = self.servers[server].jobs[job].class;
        self.trace.add(43, job as u64);
        self.tell(|world| format!("A worker of {} has done a job of class {class}.", world.plan.servers[server].name));
        let state = &mut self.servers[server];
        if !state.jobs[job].clients.is_empty() {
            state.local_work(job, kind::WORK_DATA, b"some \0 data", server, now);
            state.local_work(job, kind::WORK_STATUS, b"1\x002", server, now);
            state.local_work(job, kind::WORK_WARNING, b"a warning", server, now);
        }
        match self.plan.classes[class].outcome {
            Outcome::Completes => state.local_work(job, kind::WORK_COMPLETE, &plan::result(class), server, now),
            Outcome::Fails => state.local_work(job, kind::WORK_FAIL, b"", server, now),
            Outcome::Raises => state.local_work(job, kind::WORK_EXCEPTION, b"no", server, now),
        }
        self.flush(server);
        self.look_for_work(server);
    }

    pub fn fault(&mut self, number: usize) {
        let now = self.clock.now;
        let (_, fault) = self.plan.faults[number];
        self.trace.add(44, number as u64);
        self.tell(|_| format!("FAULT: {fault:?}"));
        self.book.counts.faults += 1;
        if fault.lasts() > 0 {
            self.clock.at(now + fault.lasts(), Timer::Over(number));
        }
        match fault {
            Fault::Cut { forward, which, place, reset } => {
                if let Some(connection) = self.connection_of(forward, which) {
                    let this = &mut self.connections[connection];
                    match place {
                        Place::Now => self.cut(connection, reset),
                        Place::Sent(bytes) => this.up.cut_after(bytes),
                        Place::Received(bytes) => this.down.cut_after(bytes),
                    }
                }
            }
            Fault::CutAll { server, reset } => {
                self.all_cut_at[server] = now;
                for connection in self.open_connections(server) {
                    self.cut(connection, reset);
                }
            }
            Fault::Stall { forward, which, lasts } => {
                if let Some(connection) = self.connection_of(forward, which) {
                    self.stall(connection, lasts);
                }
            }
            Fault::Silence { forward, which, noticed } => {
                if let Some(connection) = self.connection_of(forward, which) {
                    self.silence(connection, noticed);
                }
            }
            Fault::Kill { server, keeps, process_id, .. } => self.kill_server(server, keeps, process_id),
            Fault::Hang { server, lasts } => {
                if self.servers[server].up {
                    self.servers[server].hung = true;
                    self.hung_until[server] = self.hung_until[server].max(now + lasts);
                    for connection in self.open_connections(server) {
                        self.connections[connection].troubled = true;
                    }
                }
            }
            Fault::Unreachable { server, lasts } => {
                self.unreachable_until[server] = self.unreachable_until[server].max(now + lasts);
                self.all_cut_at[server] = now;
                for connection in self.open_connections(server) {
                    if lasts > KERNEL_PATIENCE {
                        let noticed = self.chance.spread(SECOND, lasts);
                        self.silence(connection, noticed);
                    } else {
                        self.stall(connection, lasts);
                    }
                }
            }
            Fault::Full { server, queue, limit, .. } => self.servers[server].limits[queue] = limit,
            Fault::Slow { server, rate, .. } => self.set_rate(server, Some(rate)),
            Fault::Crash { proxy, away } => self.kill(proxy, away),
            Fault::Restart { .. } | Fault::Reload { .. } => self.stop_proxy(&fault),
        }
    }

    /// Connections of a server that both ends hold open.
    fn open_connections(&self, server: usize) -> Vec<usize> {
        let open = |&connection: &usize| self.connections[connection].proxy_open;
        self.servers[server].connections().filter(open).collect()
    }

    fn stall(&mut self, connection: usize, lasts: Micros) {
        let now = self.clock.now;
        let until = now + lasts;
        let this = &mut self.connections[connection];
        this.troubled = true;
        this.up.stall(now, until);
        this.down.stall(now, until);
    }

    fn silence(&mut self, connection: usize, noticed: Micros) {
        let now = self.clock.now;
        let this = &mut self.connections[connection];
        this.troubled = true;
        this.up.silence(now + noticed);
        this.down.silence(now + KERNEL_PATIENCE);
        self.time_pipe(connection, true);
        self.time_pipe(connection, false);
    }

    fn kill_server(&mut self, server: usize, keeps: bool, process_id: Option<u32>) {
        let now = self.clock.now;
        if !self.servers[server].up {
            return;
        }
        self.book.counts.restarts += 1;
        self.all_cut_at[server] = now;
        self.hung_until[server] = 0;
        self.servers[server].hung = false;
        self.servers[server].up = false;
        let connections: Vec<usize> = self.servers[server].connections().collect();
        let former = self.servers[server].process_id;
        self.servers[server].restart(keeps, process_id.unwrap_or(former), now);
        self.flush(server);
        let told = self.plan.servers[server].tells.then_some(self.servers[server].process_id);
        self.book.source_restarted(server, now, told, process_id.is_none(), keeps);
        for connection in connections {
            let reset = self.chance.one_in(2);
            self.connections[connection].troubled = true;
            self.close_by_server(connection, reset);
        }
    }

    fn set_rate(&mut self, server: usize, rate: Option<u64>) {
        self.rates[server] = rate;
        let rate = rate.unwrap_or(self.plan.servers[server].line.rate);
        let now = self.clock.now;
        for connection in 0..self.connections.len() {
            if self.connections[connection].server == server {
                for up in [true, false] {
                    self.pipe(connection, up).set_rate(now, rate);
                    self.pipe(connection, up).timed = false;
                    self.time_pipe(connection, up);
                }
            }
        }
    }

    pub fn over(&mut self, number: usize) {
        let now = self.clock.now;
        let (_, fault) = self.plan.faults[number];
        self.trace.add(45, number as u64);
        self.tell(|_| format!("OVER: {fault:?}"));
        match fault {
            Fault::Kill { server, .. } => {
                self.servers[server].up = true;
                self.clock.at(now, Timer::Worker { server });
            }
            Fault::Hang { server, .. } if now >= self.hung_until[server] => {
                self.servers[server].hung = false;
                let connections: Vec<usize> = self.servers[server].connections().collect();
                for connection in connections {
                    self.serve(connection);
                }
                self.clock.at(now, Timer::Worker { server });
            }
            Fault::Full { server, queue, .. } => self.servers[server].limits[queue] = usize::MAX,
            Fault::Slow { server, .. } => self.set_rate(server, None),
            _ => {}
        }
    }

    /// Whether a source has nothing left but jobs that can't be delivered.
    fn is_settled(&self) -> bool {
        let sources = (0..self.servers.len()).filter(|&server| self.plan.is_source(server));
        let mut left = sources.flat_map(|server| {
            self.servers[server].jobs.iter().filter(|job| job.end.is_none() && job.queue != REJECTS)
        });
        self.book.submitted == self.plan.orders.len() && left.all(|job| self.may_stay(job.class))
    }

    /// Whether everything is delivered; then the proxies are stopped.
    pub fn check(&mut self) {
        let now = self.clock.now;
        if let Some(settled_at) = self.settled_at {
            if self.processes.iter().all(|process| !process.alive) {
                self.is_over = true;
            } else if now > settled_at + 25 * SECOND {
                let stuck: Vec<String> = self
                    .forwards
                    .iter()
                    .flat_map(|forward| {
                        let working = forward
                            .pumps
                            .iter()
                            .enumerate()
                            .filter(|(_, pump)| !matches!(pump.work, crate::forward::Work::End));
                        working
                            .map(|(number, pump)| format!("{:?}: {:?}", self.pump(forward.number, number), pump.work))
                    })
                    .collect();
                self.tell(|_| format!("Still at work: {stuck:?}"));
                self.book.violations.push("a forward does not stop".to_owned());
            }
        } else if self.is_settled() {
            self.tell(|_| "Everything is delivered.".to_owned());
            self.book.counts.longest_settling = self.book.counts.longest_settling.max(now - self.calm_at);
            self.settled_at = Some(now);
            for forward in 0..self.forwards.len() {
                self.forwards[forward].after = After::Nothing;
                self.stop(forward, After::Nothing);
            }
        } else if now > self.calm_at + self.plan.patience {
            let waiting: Vec<usize> = (0..QUEUES).map(|queue| self.servers[0].live(queue)).collect();
            let held: Vec<usize> =
                self.forwards.iter().map(|forward| forward.relay.as_ref().map_or(0, |relay| relay.held())).collect();
            let patience = self.plan.patience / SECOND;
            self.book.violations.push(format!(
                "not everything is delivered {patience} s after the last fault: the source's queues hold {waiting:?}, the \
                 forwards {held:?}"
            ));
        }
        self.clock.at(now + SECOND, Timer::Check);
    }
}

/// A packet as the story tells it.
fn shown(kind: u32, body: &[u8], connection: usize) -> String {
    let name = match kind {
        kind::CAN_DO => "CAN_DO",
        kind::PRE_SLEEP => "PRE_SLEEP",
        kind::GRAB_JOB_UNIQ => "GRAB_JOB_UNIQ",
        kind::WORK_COMPLETE => "WORK_COMPLETE",
        kind::WORK_FAIL => "WORK_FAIL",
        kind::WORK_EXCEPTION => "WORK_EXCEPTION",
        kind::WORK_DATA => "WORK_DATA",
        kind::WORK_STATUS => "WORK_STATUS",
        kind::WORK_WARNING => "WORK_WARNING",
        kind::ECHO_REQ => "ECHO_REQ",
        kind::SUBMIT_JOB => "SUBMIT_JOB",
        kind::SUBMIT_JOB_BG => "SUBMIT_JOB_BG",
        _ => "a packet",
    };
    let begin = &body[..body.len().min(70)];
    format!("{name} {} on connection {connection}", begin.escape_ascii())
}
