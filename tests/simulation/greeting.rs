//! What pumps do over connections that last no longer than that: connecting and greeting, rejecting, counting. As one or two
//! decisions each, which fail or hang as the server does.

use gearman_proxy::relay::{Event, Job, LineId, Origin, UniqueId};

use crate::clock::{MILLISECOND, Micros, SECOND};
use crate::forward::{Work, loss};
use crate::plan;
use crate::world::{Owner, World};

/// A server that does not answer is given up after this.
const PATIENCE: Micros = 10 * SECOND;

/// How often a connection that is being made is looked at.
const LOOK: Micros = 300 * MILLISECOND;

/// How a connection that is being made stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    Waits(Micros),
    Failed,
    Greeted,
}

impl World<'_> {
    /// Nobody is asked for connections all the time.
    pub fn count_connect(&mut self, number: usize) {
        let workers = self.plan.forwards[number].workers as u64;
        let forward = &mut self.forwards[number];
        forward.connects += 1;
        let seconds = (self.clock.now - forward.began_at) / SECOND;
        let (connects, allowed) = (forward.connects, (workers + 1) * (20 + 3 * seconds));
        if connects > allowed {
            let text = format!(
                "forward {number} connects {connects} times in {seconds} s, of which {allowed} can be explained"
            );
            self.book.violations.push(text);
        }
    }

    fn greet(&mut self, server: usize, since: Micros, begun: bool, interrupted: bool) -> Greeting {
        let now = self.clock.now;
        let latency = self.plan.servers[server].line.latency;
        let waits = |time: Micros| match (since + PATIENCE).saturating_sub(now) {
            0 => Greeting::Failed,
            left => Greeting::Waits(time.min(left).max(1)),
        };
        let state = &self.servers[server];
        if interrupted {
            Greeting::Failed
        } else if self.unreachable_until[server] > now || (state.up && state.hung) {
            waits(LOOK)
        } else if !state.up {
            // The refusal takes its time, too.
            if begun { Greeting::Failed } else { waits(2 * latency) }
        } else if begun {
            Greeting::Greeted
        } else {
            let takes = 4 * latency + self.chance.range(1, 2 * MILLISECOND);
            waits(takes)
        }
    }

    pub fn connect_source(&mut self, forward: usize, pump: usize, generation: u32, since: Micros, begun: bool) {
        let server = self.plan.forwards[forward].source;
        let interrupted = self.forwards[forward].pumps[pump].interrupted;
        match self.greet(server, since, begun, interrupted) {
            Greeting::Waits(time) => {
                self.go_on(forward, pump, Work::ConnectSource { generation, since, begun: true }, time);
            }
            Greeting::Failed => self.report(forward, pump, Event::SourceFailed { generation, loss: loss(false) }),
            Greeting::Greeted => {
                let connection = self.open(forward, server, Owner::Source);
                let tells = self.plan.servers[server].tells;
                let process_id = tells.then_some(self.servers[server].process_id);
                let name = self.plan.servers[server].name;
                let queue =
                    std::str::from_utf8(plan::queue_name(self.plan.forwards[forward].queue)).unwrap_or_default();
                let origin = Origin::new(name, process_id, queue);
                let same = self.is_the_same(forward, server);
                let now = self.clock.now;
                let state = &mut self.forwards[forward];
                let telling = gearman_proxy::relay::telling(process_id).is_some();
                if state.broke_at.is_some() && !same && !telling {
                    state.strange_at = Some(now);
                }
                state.opened_at = Some(now);
                state.source = Some((generation, connection));
                state.intake = Some(gearman_proxy::relay::Intake::new(&[], plan::MAX_JOB_SIZE, origin, None));
                self.tell(|world| {
                    let proof = if same { ", which is proved to be the same process" } else { "" };
                    format!(
                        "Forward {forward} opens connection {} (process id {process_id:?}{proof}).",
                        world.name(connection)
                    )
                });
                self.report(forward, pump, Event::SourceConnected { generation, process_id, same });
            }
        }
    }

    /// Whether another connection of the process proves that the source is the same process as before the last break.
    fn is_the_same(&self, forward: usize, server: usize) -> bool {
        let this = &self.forwards[forward];
        if this.broke_at.is_none() {
            return false;
        }
        if self.plan.forwards[forward].witness
            && this.opened_at.is_some_and(|opened_at| self.all_cut_at[server] < opened_at)
        {
            return true;
        }
        let answered_at = this.relay.as_ref().map_or(0, |relay| relay.answered_at().as_micros() as Micros);
        self.connections.iter().any(|other| {
            other.server == server
                && other.process == this.process
                && other.opened_at < answered_at
                && other.server_open
                && other.proxy_open
                && !other.troubled
        })
    }

    pub fn connect(
        &mut self,
        forward: usize,
        pump: usize,
        line: LineId,
        destination: usize,
        since: Micros,
        begun: bool,
    ) {
        let server = self.plan.forwards[forward].destinations[destination];
        let interrupted = self.forwards[forward].pumps[pump].interrupted;
        match self.greet(server, since, begun, interrupted) {
            Greeting::Waits(time) => {
                self.go_on(forward, pump, Work::Connect { line, destination, since, begun: true }, time)
            }
            Greeting::Failed => self.report(forward, pump, Event::ConnectFailed(line, loss(false))),
            Greeting::Greeted => {
                let connection = self.open(forward, server, Owner::Line(line.submitter));
                let state = &mut self.forwards[forward].lines[line.submitter];
                state.line = Some((line.generation, connection));
                state.incoming = Default::default();
                self.tell(|world| format!("Forward {forward} opens connection {}.", world.name(connection)));
                self.report(forward, pump, Event::Connected(line));
            }
        }
    }

    pub fn reject(
        &mut self,
        forward: usize,
        pump: usize,
        jobs: Vec<(Job, UniqueId)>,
        taken: Option<Vec<bool>>,
        since: Micros,
    ) {
        let Some(server) = self.plan.forwards[forward].reject else { return };
        let latency = self.plan.servers[server].line.latency;
        let now = self.clock.now;
        let count = jobs.len();
        if let Some(taken) = taken {
            let all = taken.iter().all(|&taken| taken);
            return self.report(forward, pump, Event::Rejected { taken, loss: (!all).then(|| loss(false)) });
        }
        let interrupted = self.forwards[forward].pumps[pump].interrupted;
        match self.greet(server, since, now > since, interrupted) {
            Greeting::Waits(time) => self.go_on(forward, pump, Work::Reject { jobs, taken: None, since }, time),
            Greeting::Failed => {
                let taken = vec![false; count];
                self.report(forward, pump, Event::Rejected { taken, loss: Some(loss(false)) });
            }
            Greeting::Greeted => {
                // The connection may break after any of them, and any of the replies.
                let breaks = now < self.calm_at && self.chance.one_in(10);
                let arrive = if breaks { self.chance.below(count + 1) } else { count };
                let replied = if breaks { self.chance.below(arrive + 1) } else { count };
                let mut unique = Vec::new();
                for (job, id) in jobs.iter().take(arrive) {
                    id.write(&mut unique, job);
                    self.submit_reject(server, &unique, job.data());
                }
                self.flush(server);
                let taken = (0..count).map(|at| at < replied).collect();
                self.go_on(forward, pump, Work::Reject { jobs, taken: Some(taken), since }, 2 * latency + 1);
            }
        }
    }

    pub fn count(&mut self, forward: usize, pump: usize, destination: usize, since: Micros) {
        let server = self.plan.forwards[forward].destinations[destination];
        let interrupted = self.forwards[forward].pumps[pump].interrupted;
        match self.greet(server, since, self.clock.now > since, interrupted) {
            Greeting::Waits(time) => self.go_on(forward, pump, Work::Count { destination, since }, time),
            Greeting::Failed => self.report(forward, pump, Event::Counted(None)),
            Greeting::Greeted => {
                let jobs = self.servers[server].live(self.plan.forwards[forward].queue);
                self.report(forward, pump, Event::Counted(Some(jobs as u64)));
            }
        }
    }
}
