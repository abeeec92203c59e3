//! Proxies and their forwards: how they begin, stop, are killed and replaced, and what a relay wants done for others.

use std::time::Duration;

use gearman_proxy::gearman::packet::Incoming;
use gearman_proxy::relay::{
    Batch, Cause, Chunk, Event, Intake, Job, Legacy, LineId, Loss, Pump, Relay, Settings, Tell, Timing, UniqueId,
};

use crate::clock::{MILLISECOND, Micros, SECOND, Timer};
use crate::plan::Fault;
use crate::world::World;

/// The life of a proxy's process.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub proxy: usize,
    pub alive: bool,
    /// It did not end by itself.
    pub killed: bool,
    /// When it was told to end, and when it had.
    pub stopped_at: Option<Micros>,
    pub ended_at: Option<Micros>,
}

/// What a pump is doing.
#[derive(Debug)]
pub enum Work {
    /// It asks its relay next.
    Ask,
    Read {
        generation: u32,
    },
    Stage(Batch),
    Write(LineId, Chunk),
    WriteSource {
        generation: u32,
        bytes: Vec<u8>,
        written: usize,
    },
    /// Since when; it was begun in earnest.
    ConnectSource {
        generation: u32,
        since: Micros,
        begun: bool,
    },
    Connect {
        line: LineId,
        destination: usize,
        since: Micros,
        begun: bool,
    },
    Reject {
        jobs: Vec<(Job, UniqueId)>,
        taken: Option<Vec<bool>>,
        since: Micros,
    },
    Count {
        destination: usize,
        since: Micros,
    },
    Park,
    Pause,
    End,
}

#[derive(Debug)]
pub struct PumpState {
    pub work: Work,
    /// It stands in the list of those that can act.
    pub queued: bool,
    /// Of the timer that it waits for.
    pub token: u32,
    /// It was woken while it was at work, since it last asked its relay.
    pub woken: bool,
    /// What it connects is to be given up.
    pub interrupted: bool,
}

/// What follows a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Nothing,
    /// Another process, after a while.
    Process(Micros),
    /// The successor in the same process.
    Successor,
}

/// A submitter's connection.
#[derive(Default)]
pub struct LineState {
    pub line: Option<(u32, usize)>,
    pub incoming: Incoming,
}

/// See the module.
pub struct Forward {
    pub number: usize,
    pub process: usize,
    pub relay: Option<Relay>,
    pub pumps: Vec<PumpState>,
    /// Generation and connection.
    pub source: Option<(u32, usize)>,
    pub intake: Option<Intake>,
    pub lines: Vec<LineState>,
    due_at: Micros,
    due_token: u32,
    pub stopping: Option<(Micros, Micros)>,
    pub after: After,
    /// When its last source connection was opened.
    pub opened_at: Option<Micros>,
    /// When its last source connection broke.
    pub broke_at: Option<Micros>,
    /// When a source connection began of which nobody could tell whether it was to the same process as the one before.
    pub strange_at: Option<Micros>,
    /// When a handle proved that the source had been restarted under the same process id.
    pub proved_at: Option<Micros>,
    /// How often that was so.
    pub proofs: usize,
    pub given_back: bool,
    pub lines_lost: u32,
    /// Connections that were tried since the forward began, and when that was.
    pub connects: u64,
    pub began_at: Micros,
}

pub fn duration(micros: Micros) -> Duration {
    Duration::from_micros(micros)
}

pub fn loss(closed: bool) -> Loss {
    Loss {
        closed,
        nonsense: false,
        oversized: false,
        cause: Cause { kind: "simulated", text: String::new(), advice: None },
    }
}

impl Forward {
    pub fn new(number: usize) -> Forward {
        Forward {
            number,
            process: 0,
            relay: None,
            pumps: Vec::new(),
            source: None,
            intake: None,
            lines: Vec::new(),
            due_at: Micros::MAX,
            due_token: 0,
            stopping: None,
            after: After::Nothing,
            opened_at: None,
            broke_at: None,
            strange_at: None,
            proved_at: None,
            proofs: 0,
            given_back: false,
            lines_lost: 0,
            connects: 0,
            began_at: 0,
        }
    }
}

impl World<'_> {
    /// Which pump has this number.
    pub fn pump(&self, forward: usize, pump: usize) -> Pump {
        let workers = self.plan.forwards[forward].workers;
        match pump {
            0 => Pump::Reader,
            pump if pump <= workers => Pump::Submitter(pump - 1),
            pump if pump <= 2 * workers => Pump::Confirmer(pump - 1 - workers),
            _ => Pump::Rejecter,
        }
    }

    fn pump_number(&self, forward: usize, pump: Pump) -> usize {
        let workers = self.plan.forwards[forward].workers;
        match pump {
            Pump::Reader => 0,
            Pump::Submitter(submitter) => 1 + submitter,
            Pump::Confirmer(submitter) => 1 + workers + submitter,
            Pump::Rejecter => 1 + 2 * workers,
        }
    }

    /// Starts a proxy: a process of its own, with all of its forwards.
    pub fn start(&mut self, proxy: usize) {
        if self.settled_at.is_some() || self.processes.iter().any(|process| process.proxy == proxy && process.alive) {
            return;
        }
        let process = self.processes.len();
        self.processes.push(Process { proxy, alive: true, killed: false, stopped_at: None, ended_at: None });
        self.trace.add(20, proxy as u64);
        self.tell(|_| format!("Proxy {proxy} starts."));
        for forward in 0..self.forwards.len() {
            if self.plan.forwards[forward].proxy == proxy {
                // The books remember what they knew of its predecessor's sources.
                let Forward { strange_at, proved_at, .. } = self.forwards[forward];
                self.forwards[forward] = Forward { process, strange_at, proved_at, ..Forward::new(forward) };
                self.begin_forward(forward, Legacy::default());
            }
        }
    }

    fn begin_forward(&mut self, number: usize, legacy: Legacy) {
        let plan = &self.plan.forwards[number];
        let settings = Settings {
            asynchronous: plan.asynchronous,
            queue: crate::plan::queue_name(plan.queue).to_vec(),
            workers: plan.workers,
            prefetch: plan.prefetch,
            prefetch_is_explicit: plan.prefetch != 4096,
            byte_limit: plan.byte_limit,
            timeout: plan.timeout.map(duration),
            destinations: plan.destinations.len(),
            reject_queue: plan.reject.is_some(),
            random: u128::from(self.chance.next()) << 64 | u128::from(self.chance.next()),
            timing: Timing::default(),
        };
        let pumps = 1 + 2 * plan.workers + usize::from(plan.reject.is_some());
        let lines = plan.workers;
        let forward = &mut self.forwards[number];
        forward.relay = Some(Relay::new(settings, legacy));
        forward.pumps = (0..pumps)
            .map(|_| PumpState { work: Work::Ask, queued: false, token: 0, woken: false, interrupted: false })
            .collect();
        forward.lines = (0..lines).map(|_| LineState::default()).collect();
        forward.source = None;
        forward.stopping = None;
        forward.after = After::Nothing;
        (forward.connects, forward.began_at) = (0, self.clock.now);
        for pump in 0..pumps {
            self.make_ready(number, pump);
        }
        self.act(number);
    }

    /// Tells a relay what happened, and does what it wants done for others.
    pub fn feed(&mut self, forward: usize, event: Event) {
        let now = duration(self.clock.now);
        if let Some(relay) = &mut self.forwards[forward].relay {
            relay.event(now, event);
            self.act(forward);
        }
    }

    /// Carries out what is due after an event or a step.
    pub fn act(&mut self, number: usize) {
        let forward = &mut self.forwards[number];
        let Some(relay) = &mut forward.relay else { return };
        let actions = relay.actions();
        let due = relay.due();
        let due = if due == Duration::MAX { Micros::MAX } else { due.as_nanos().div_ceil(1000) as Micros };
        if let Some(generation) = actions.close_source {
            self.close_source(number, generation);
        }
        for line in actions.close {
            self.close_line(number, line);
        }
        for pump in actions.wake {
            let pump = self.pump_number(number, pump);
            let state = &mut self.forwards[number].pumps[pump];
            if matches!(state.work, Work::Park | Work::Pause) {
                state.work = Work::Ask;
                self.make_ready(number, pump);
            } else {
                state.woken = true;
            }
        }
        for tell in actions.tell {
            self.told(number, &tell);
        }
        if actions.ended {
            for pump in 0..self.forwards[number].pumps.len() {
                let state = &mut self.forwards[number].pumps[pump];
                if matches!(
                    state.work,
                    Work::ConnectSource { .. } | Work::Connect { .. } | Work::Reject { .. } | Work::Count { .. }
                ) {
                    state.interrupted = true;
                    self.make_ready(number, pump);
                }
            }
        }
        self.note_due(number, due);
    }

    fn note_due(&mut self, number: usize, due: Micros) {
        if due == self.forwards[number].due_at {
            return;
        }
        self.forwards[number].due_at = due;
        let token = self.new_token();
        self.forwards[number].due_token = token;
        if due < Micros::MAX {
            // A clock thread has other things to do, too.
            let late = match self.chance.below(40) {
                0 => self.chance.spread(1_000, 500 * MILLISECOND),
                1..=20 => self.chance.range(0, 1_000),
                _ => 0,
            };
            self.clock.at(due.max(self.clock.now) + late, Timer::Due { forward: number, token });
        }
    }

    pub fn time_passes(&mut self, forward: usize, token: u32) {
        if self.forwards[forward].due_token == token {
            // Whatever is due next is noted again.
            self.forwards[forward].due_at = Micros::MAX - 1;
            self.trace.add(21, self.clock.now);
            self.feed(forward, Event::Time);
        }
    }

    fn close_source(&mut self, number: usize, generation: u32) {
        if let Some((current, connection)) = self.forwards[number].source
            && current == generation
        {
            self.shut(connection, true);
            self.tell(|world| format!("Forward {number} closes connection {}.", world.name(connection)));
        }
        self.interrupt(
            number,
            |work| matches!(work, Work::ConnectSource { generation: current, .. } if *current == generation),
        );
    }

    fn close_line(&mut self, number: usize, line: LineId) {
        if let Some((generation, connection)) = self.forwards[number].lines[line.submitter].line
            && generation == line.generation
        {
            self.shut(connection, false);
            self.tell(|world| format!("Forward {number} closes connection {}.", world.name(connection)));
        }
        self.interrupt(number, |work| matches!(work, Work::Connect { line: current, .. } if *current == line));
    }

    fn interrupt(&mut self, number: usize, which: impl Fn(&Work) -> bool) {
        for pump in 0..self.forwards[number].pumps.len() {
            let state = &mut self.forwards[number].pumps[pump];
            if which(&state.work) {
                state.interrupted = true;
                self.make_ready(number, pump);
            }
        }
    }

    fn told(&mut self, number: usize, tell: &Tell) {
        let counts = &mut self.book.counts;
        match tell {
            Tell::GivenBack { jobs } => {
                self.forwards[number].given_back = true;
                counts.given_back += *jobs as u64;
            }
            // At the end it leaves its destinations.
            Tell::DestinationLost { .. }
                if self.forwards[number].relay.as_ref().is_some_and(|relay| !relay.has_ended()) =>
            {
                counts.outages += 1;
                self.forwards[number].lines_lost += 1;
            }
            Tell::Restarted => {
                counts.proofs += 1;
                self.forwards[number].proved_at = Some(self.clock.now);
                self.forwards[number].proofs += 1;
                let restarts = self.book.restarts_of(self.plan.forwards[number].source);
                if self.forwards[number].proofs > restarts {
                    let text =
                        format!("forward {number} takes its source for restarted, which was so {restarts} times");
                    self.book.violations.push(text);
                }
            }
            _ => {}
        }
        if !matches!(tell, Tell::Progress) {
            self.tell(|_| format!("Forward {number} tells: {tell:?}"));
        }
    }

    /// A pump has nothing more to do.
    pub fn pump_ended(&mut self, number: usize) {
        let forward = &self.forwards[number];
        if forward.pumps.iter().any(|pump| !matches!(pump.work, Work::End)) {
            return;
        }
        if !forward.relay.as_ref().is_some_and(Relay::has_ended) {
            self.book.violations.push(format!("forward {number} ended its threads although it has not ended"));
            return;
        }
        let (now, process) = (self.clock.now, forward.process);
        if let Some((since, limit)) = forward.stopping {
            let took = now - since;
            self.book.counts.longest_stop = self.book.counts.longest_stop.max(took);
            if took > limit {
                let (took, limit) = (took as f64 / 1e6, limit as f64 / 1e6);
                self.book
                    .violations
                    .push(format!("forward {number} took {took:.2} s to stop, which may take {limit:.2} s"));
            }
        }
        self.trace.add(22, now);
        self.tell(|_| format!("Forward {number} has ended."));
        self.close_all(number);
        let forward = &mut self.forwards[number];
        let legacy = forward.relay.take().map(|mut relay| relay.take_legacy()).unwrap_or_default();
        let after = forward.after;
        if after == After::Successor {
            self.begin_forward(number, legacy);
            return;
        }
        if self.forwards.iter().any(|forward| forward.process == process && forward.relay.is_some()) {
            return;
        }
        self.processes[process].alive = false;
        self.processes[process].ended_at = Some(now);
        if let After::Process(away) = after {
            self.clock.at(now + away, Timer::Start(self.processes[process].proxy));
        }
    }

    fn close_all(&mut self, number: usize) {
        let forward = &self.forwards[number];
        let lines = forward.lines.iter().filter_map(|line| line.line);
        let connections: Vec<usize> = lines.chain(forward.source).map(|(_, connection)| connection).collect();
        for connection in connections {
            self.shut(connection, false);
        }
        for connection in self.connections.iter_mut().filter(|connection| connection.forward == number) {
            connection.reader = None;
            connection.writer = None;
        }
    }

    /// The process dies; the kernel closes its connections.
    pub fn kill(&mut self, proxy: usize, away: Micros) {
        let now = self.clock.now;
        let Some(process) = self.processes.iter().rposition(|process| process.proxy == proxy && process.alive) else {
            return;
        };
        self.processes[process].alive = false;
        self.processes[process].killed = true;
        self.processes[process].ended_at = Some(now);
        self.book.counts.kills += 1;
        for number in 0..self.forwards.len() {
            if self.forwards[number].process == process && self.plan.forwards[number].proxy == proxy {
                self.close_all(number);
                let forward = &mut self.forwards[number];
                forward.relay = None;
                forward.pumps.clear();
                forward.due_token = 0;
                forward.due_at = Micros::MAX;
            }
        }
        let forwards = &self.forwards;
        self.ready.retain(|(forward, _)| forwards[*forward].relay.is_some());
        self.clock.at(now + away, Timer::Start(proxy));
    }

    /// Tells a forward to end.
    pub fn stop(&mut self, number: usize, after: After) {
        let now = self.clock.now;
        let forward = &mut self.forwards[number];
        let Some(relay) = &forward.relay else { return };
        if forward.stopping.is_some() {
            if after != After::Successor {
                forward.after = after;
            }
            return;
        }
        // Nothing held, and all acknowledgements known to have arrived: a second, whatever hangs.
        let proven = match forward.source {
            Some((_, connection)) => {
                let connection = &self.connections[connection];
                let long = self.hung_until[connection.server] > now + 12 * SECOND;
                let hangs = self.servers[connection.server].hung && long && connection.down.is_empty();
                connection.proxy_open
                    && connection.held == 0
                    && connection.acknowledged == connection.proven
                    && (connection.asked == 0 || hangs)
            }
            None => true,
        };
        let apart = forward.source.is_none();
        let waits =
            forward.pumps.iter().all(|pump| !pump.queued && (apart || !matches!(pump.work, Work::Reject { .. })));
        let idle = waits
            && proven
            && relay.held() == 0
            && self.connections.iter().all(|connection| {
                let is_line = connection.forward == number && connection.proxy_open;
                !is_line || (connection.owed.is_empty() && connection.up.is_empty() && !connection.troubled)
            });
        let limit = if idle { SECOND } else { 10 * SECOND };
        // The clock is late, now and then.
        forward.stopping = Some((now, limit + SECOND));
        forward.after = after;
        let process = forward.process;
        self.processes[process].stopped_at.get_or_insert(now);
        self.book.counts.stops += 1;
        self.trace.add(23, number as u64);
        self.tell(|_| format!("Forward {number} is told to stop{}.", if idle { ", having nothing to do" } else { "" }));
        self.feed(number, Event::Stop);
    }

    /// Stops a proxy, or has its forwards replaced.
    pub fn stop_proxy(&mut self, fault: &Fault) {
        let (proxy, after) = match *fault {
            Fault::Restart { proxy, away } => (proxy, After::Process(away)),
            Fault::Reload { proxy } => (proxy, After::Successor),
            _ => return,
        };
        for number in 0..self.forwards.len() {
            if self.plan.forwards[number].proxy == proxy {
                self.stop(number, after);
            }
        }
    }
}
