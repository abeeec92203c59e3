//! The books: what each class of jobs has been through, and whether the promises hold.
//!
//! A class is all jobs with equal data. Where it has one job, the books say what became of that job; where it has more,
//! they count, since equal jobs can't be told from each other by anybody.

use gearman_proxy::relay::{Reply, telling};

use crate::clock::{Micros, SECOND, Timer};
use crate::counts::Counts;
use crate::plan::{Fault, Kind, Outcome, Plan, REJECTS, Unique, Which};
use crate::server::{End, Happening};
use crate::world::World;

/// One job that a destination created.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    pub server: usize,
    pub connection: usize,
    pub process: usize,
    pub forward: usize,
    pub created: Micros,
    /// The proxy has read that the destination has it.
    pub confirmed: bool,
    /// It has, while it had its source to tell.
    pub tellable: bool,
    /// The destination has it no longer: done, or lost with the destination.
    pub over: bool,
    /// It has excused a second one.
    pub used: bool,
}

/// What became of a class.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Jobs that the source took.
    pub accepted: usize,
    /// Of these: acknowledged, with result or without; failed.
    pub acknowledged: usize,
    pub failed: usize,
    /// The process that failed the last one.
    failed_by: Option<usize>,
    pub copies: Vec<Copy>,
    /// Submissions that the destination merged under the source's own unique id.
    pub joined: usize,
    /// Copies that the destination lost before anybody did them.
    pub wiped: usize,
    /// Copies that an exception excuses.
    pub excused: usize,
    pub rejected: usize,
    /// Foreground copies that were done with the class's outcome.
    pub done: usize,
    /// When the source last gave one out, as a number that grows.
    assigned: u64,
    /// When the last acknowledgement came to the source.
    acknowledged_at: Micros,
}

/// A restart of a source.
#[derive(Debug, Clone, Copy)]
struct Restart {
    server: usize,
    at: Micros,
    /// Under the same process id.
    same: bool,
    /// Whether that id says something: else what was learnt before is not held against what comes after.
    says: bool,
    /// With its jobs.
    keeps: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Book {
    pub accounts: Vec<Account>,
    pub violations: Vec<String>,
    pub counts: Counts,
    /// Orders that the source took, and those whose clients left.
    pub submitted: usize,
    pub left: Vec<usize>,
    pub steps_at_once: u64,
    restarts: Vec<Restart>,
    /// The last job that came to the destination, by its number of assignment.
    last_delivered: u64,
    order_is_off: bool,
    no_jobs: u64,
    /// What may lead to a grab that brings nothing.
    reasons_to_ask: u64,
}

impl Book {
    pub fn new(plan: &Plan) -> Book {
        Book {
            accounts: vec![Account::default(); plan.classes.len()],
            violations: Vec::new(),
            counts: Counts::default(),
            submitted: 0,
            left: Vec::new(),
            steps_at_once: 0,
            restarts: Vec::new(),
            last_delivered: 0,
            order_is_off: false,
            no_jobs: 0,
            reasons_to_ask: 0,
        }
    }

    pub fn restarts_of(&self, server: usize) -> usize {
        self.restarts.iter().filter(|restart| restart.server == server).count()
    }

    pub fn source_restarted(&mut self, server: usize, at: Micros, process_id: Option<u32>, same: bool, keeps: bool) {
        self.restarts.push(Restart { server, at, same, says: telling(process_id).is_some(), keeps });
    }
}

impl World<'_> {
    fn violate(&mut self, text: String) {
        self.tell(|_| format!("VIOLATION: {text}"));
        self.book.violations.push(text);
    }

    /// Enters what a server did, for a packet of `from` or by itself. Returns the copy that a submission led to.
    pub fn note(&mut self, server: usize, from: Option<usize>) -> Option<(usize, usize)> {
        let mut happened = std::mem::take(&mut self.servers[server].happened);
        let mut copy = None;
        for happening in happened.drain(..) {
            let noted = if self.plan.is_source(server) {
                self.note_at_source(server, happening, from);
                None
            } else {
                self.note_at_destination(server, happening, from)
            };
            copy = noted.or(copy);
        }
        self.servers[server].happened = happened;
        copy
    }

    fn note_at_source(&mut self, server: usize, happening: Happening, from: Option<usize>) {
        match happening {
            Happening::Created { job } => {
                let job = &self.servers[server].jobs[job];
                let class = job.class;
                if job.queue == REJECTS {
                    return self.note_reject(class);
                }
                self.book.accounts[class].accepted += 1;
                self.book.counts.jobs += 1;
                self.book.reasons_to_ask += 1;
            }
            Happening::Assigned { job } => {
                let job = &self.servers[server].jobs[job];
                self.book.accounts[job.class].assigned = job.assigned;
                self.book.reasons_to_ask += 1;
            }
            Happening::Returned { job, connection, dropped } => self.note_return(server, job, connection, dropped),
            Happening::Noop => self.book.reasons_to_ask += 1,
            Happening::NoJob => {
                self.book.no_jobs += 1;
                let forwards = self.plan.forwards.len() as u64;
                let connections = self.connections.len() as u64;
                let allowed = 8 * (self.book.reasons_to_ask + connections + forwards) + self.clock.now / SECOND;
                if self.book.no_jobs > allowed {
                    let grabs = self.book.no_jobs;
                    self.violate(format!("{grabs} grabs brought no job, of which {allowed} may be excused"));
                }
            }
            Happening::Ended { job, end } if self.servers[server].jobs[job].queue != REJECTS => {
                let class = self.servers[server].jobs[job].class;
                self.note_end(server, class, end, from);
            }
            Happening::Ended { .. } | Happening::Merged { .. } | Happening::Refused | Happening::NotFound => {}
        }
    }

    /// A job went back to its source.
    fn note_return(&mut self, server: usize, job: usize, connection: usize, dropped: bool) {
        self.book.reasons_to_ask += 1;
        let plan = &self.plan.forwards[self.connections[connection].forward];
        // Each trouble of its destinations, and each stop of a proxy, may send a job back once; after that the jobs wait.
        let troubles = self.plan.faults.iter().filter(|(at, fault)| {
            *at <= self.clock.now && fault.server(self.plan).is_none_or(|server| plan.destinations.contains(&server))
        });
        let odd = self.plan.classes.iter().filter(|class| matches!(class.kind, Kind::Poison | Kind::Refused)).count();
        let last_stop = usize::from(self.settled_at.is_some());
        let allowed = (1 + 2 * troubles.count() + odd + last_stop) as u32;
        let job = &self.servers[server].jobs[job];
        let (class, chosen, returns) = (job.class, job.chosen_returns, job.returns);
        if chosen > allowed {
            self.violate(format!(
                "a job of class {class} was given back {chosen} times by choice, of which {allowed} can be explained"
            ));
        }
        if dropped {
            self.book.counts.dropped += 1;
            self.tell(|_| {
                format!("The source drops a job of class {class} after {returns} returns, {chosen} of them chosen.")
            });
        }
    }

    /// A job has left its source.
    fn note_end(&mut self, server: usize, class: usize, end: End, from: Option<usize>) {
        let now = self.clock.now;
        let is_async = self.plan.forwards.iter().any(|f| f.queue == self.plan.classes[class].queue && f.asynchronous);
        match end {
            End::Acknowledged | End::Completed => {
                let account = &mut self.book.accounts[class];
                account.acknowledged += 1;
                account.acknowledged_at = now;
                self.book.counts.delivered += 1;
                if (end == End::Acknowledged) != is_async && !self.goes_to_rejects(class) {
                    self.violate(format!("a job of class {class} is acknowledged in the wrong way"));
                }
                self.check_lost(server, class, is_async);
            }
            End::CompletedWrongly => self.violate(format!("a job of class {class} is completed with a wrong result")),
            End::Failed | End::Exception => {
                self.book.accounts[class].failed += 1;
                self.book.accounts[class].failed_by = from.map(|connection| self.connections[connection].process);
                self.check_failed(class, end, is_async);
            }
            End::Abandoned | End::LostAtRestart | End::Retries => {}
        }
    }

    fn goes_to_rejects(&self, class: usize) -> bool {
        let class = &self.plan.classes[class];
        let bad = matches!(class.kind, Kind::Bad | Kind::Poison | Kind::Refused);
        bad && self.plan.forwards.iter().any(|forward| forward.queue == class.queue && forward.reject.is_some())
    }

    /// A job was acknowledged: is it anywhere?
    fn check_lost(&mut self, server: usize, class: usize, is_async: bool) {
        let account = &self.book.accounts[class];
        let kind = self.plan.classes[class].kind;
        let there = match kind {
            Kind::Expired => account.accepted,
            Kind::Bad | Kind::Poison | Kind::Refused => account.rejected,
            Kind::Good if !is_async => account.done,
            Kind::Good => account.copies.len() + account.joined - account.excused,
        };
        if account.acknowledged <= there || (is_async && self.is_undecidable(server, class)) {
            return;
        }
        let (acknowledged, there) = (account.acknowledged, there);
        self.violate(format!("LOST: {acknowledged} jobs of class {class} are acknowledged, {there} were delivered"));
    }

    /// Equal jobs of a source that was restarted under the same process id, the proxy with it, or in the very moment in
    /// which an acknowledgement was under way: nobody can tell them apart.
    fn is_undecidable(&self, server: usize, class: usize) -> bool {
        let account = &self.book.accounts[class];
        if account.accepted < 2 {
            return false;
        }
        let same = self.book.restarts.iter().filter(|restart| restart.server == server && restart.same);
        same.into_iter().any(|restart| {
            let other_process = self.processes.iter().any(|process| process.ended_at.is_some());
            let under_way = account.copies.iter().any(|copy| copy.created.abs_diff(restart.at) < 40 * SECOND);
            other_process || under_way && restart.says
        })
    }

    fn check_failed(&mut self, class: usize, end: End, is_async: bool) {
        let plan = &self.plan.classes[class];
        let rejects = self.plan.forwards.iter().any(|f| f.queue == plan.queue && f.reject.is_some());
        let lost_lines = self.book.counts.outages >= 3;
        let times_out = !is_async && self.plan.forwards.iter().any(|forward| forward.timeout.is_some());
        let may = match (plan.kind, plan.outcome, end) {
            // Moved away, a client that waits is told, too.
            (_, _, End::Failed) if times_out => true,
            (Kind::Bad | Kind::Refused, _, End::Failed) if rejects => {
                !is_async && self.book.accounts[class].rejected > 0
            }
            (Kind::Poison, _, End::Failed) if rejects => !is_async,
            (Kind::Bad | Kind::Poison | Kind::Refused, _, End::Failed) => true,
            (Kind::Expired, _, End::Failed) => !is_async,
            (Kind::Good, Outcome::Raises, End::Exception) => !is_async,
            (Kind::Good, Outcome::Fails, End::Failed) if !is_async => true,
            (Kind::Good, _, End::Failed) => !is_async && lost_lines,
            _ => false,
        };
        if !may {
            self.violate(format!("a job of class {class} was failed, which was not at fault ({end:?})"));
        }
    }

    fn note_reject(&mut self, class: usize) {
        self.book.accounts[class].rejected += 1;
        if !self.goes_to_rejects(class) {
            self.violate(format!("a job of class {class} came to the reject queue, which was not at fault"));
        }
    }

    fn note_at_destination(
        &mut self,
        server: usize,
        happening: Happening,
        from: Option<usize>,
    ) -> Option<(usize, usize)> {
        match happening {
            Happening::Created { job } => {
                let (class, queue) = (self.servers[server].jobs[job].class, self.servers[server].jobs[job].queue);
                if queue == REJECTS {
                    self.note_reject(class);
                    return None;
                }
                let plan = &self.plan.servers[server];
                if plan.hands > 0 {
                    self.clock.at(self.clock.now + plan.idle, Timer::Worker { server });
                }
                Some((class, self.note_copy(server, job, class, from?)))
            }
            Happening::Merged { job, class } => {
                let first = &self.servers[server].jobs[job];
                let (first_class, copy) = (first.class, first.copy);
                if first.queue == REJECTS {
                    return None;
                }
                if self.plan.classes[class].unique != Unique::None {
                    self.book.accounts[class].joined += 1;
                }
                self.tell(|_| format!("It is merged with a job of class {first_class}."));
                Some((first_class, copy))
            }
            Happening::Ended { job, end } => {
                let job = &self.servers[server].jobs[job];
                if job.queue != REJECTS {
                    let (class, copy) = (job.class, job.copy);
                    let account = &mut self.book.accounts[class];
                    match end {
                        End::LostAtRestart | End::Abandoned => account.wiped += 1,
                        End::Completed => account.done += 1,
                        _ => {}
                    }
                    account.copies[copy].over = true;
                }
                None
            }
            Happening::Assigned { job } => {
                self.check_start(server, job);
                None
            }
            Happening::Refused => {
                self.book.order_is_off = true;
                None
            }
            _ => None,
        }
    }

    /// A destination has created a job.
    fn note_copy(&mut self, server: usize, job: usize, class: usize, connection: usize) -> usize {
        let now = self.clock.now;
        let forward = self.connections[connection].forward;
        if *self.servers[server].jobs[job].data != *self.data[class] {
            self.violate(format!("the data of a job of class {class} is not what it was"));
        }
        if self.plan.classes[class].kind != Kind::Good {
            let kind = self.plan.classes[class].kind;
            self.violate(format!("a job of class {class} was delivered, which is {kind:?}"));
        }
        let (process, number) = (self.connections[connection].process, self.book.accounts[class].copies.len());
        self.servers[server].jobs[job].copy = number;
        let copy = Copy {
            server,
            connection,
            process,
            forward,
            created: now,
            confirmed: false,
            tellable: false,
            over: false,
            used: false,
        };
        self.book.accounts[class].copies.push(copy);
        if self.plan.forwards[forward].asynchronous {
            self.check_twice(class);
            self.check_order(class, forward);
        } else {
            self.check_start(server, job);
        }
        number
    }

    fn check_twice(&mut self, class: usize) {
        let account = &self.book.accounts[class];
        let earlier = account.copies.len() - 1;
        if account.copies.len() <= account.accepted + account.wiped + account.excused {
            return;
        }
        // Of equal jobs, it may be two others that are copies of one.
        let later = if account.accepted > 1 { 1 } else { earlier };
        let mut pairs = (later..=earlier).rev().flat_map(|last| (0..last).map(move |first| (first, last)));
        let excuse = pairs.find(|&(first, last)| {
            !account.copies[first].used && self.excuses(&account.copies[first], &account.copies[last], class)
        });
        let excuse = excuse.map(|(first, _)| first);
        let account = &mut self.book.accounts[class];
        account.excused += 1;
        match excuse {
            Some(at) => {
                account.copies[at].used = true;
                self.book.counts.twice += 1;
                self.tell(|_| format!("A second copy of class {class}, which is excused."));
            }
            None => {
                let (copies, accepted) = (account.copies.len(), account.accepted);
                self.violate(format!("TWICE: {copies} copies of class {class} were delivered, of {accepted} jobs"));
            }
        }
    }

    /// Whether the promise has an exception for a copy after this earlier one.
    fn excuses(&self, copy: &Copy, last: &Copy, class: usize) -> bool {
        let connection = &self.connections[copy.connection];
        // The destination (of that address) can't merge with what it does not have, or never knew.
        let gone = copy.over || copy.server != last.server;
        let broke = !connection.proxy_open || !connection.server_open || connection.troubled;
        // Bytes of a connection that the proxy gave up may come late, after those of the next one.
        let source = self.forwards[last.forward].source;
        let has_source = source.is_some_and(|(_, source)| self.connections[source].proxy_open);
        // So may those of a proxy that has given its jobs back, and another one has them.
        let other = copy.process != last.process;
        let late = !self.connections[last.connection].proxy_open || (other && !has_source);
        let source = self.plan.forwards[copy.forward].source;
        let telling = self.servers[source].telling;
        let first_opened = connection.opened_at.min(self.connections[last.connection].opened_at);
        let strange = self.forwards[copy.forward].strange_at.is_some_and(|at| at >= first_opened);
        // A restart that is proved only after a job went back: nothing tells that job from one of the new process.
        let proved = self.forwards[copy.forward].proved_at.is_some_and(|at| at >= copy.created)
            && self.plan.classes[class].unique == Unique::None;
        let other_id = strange || proved || (other && !telling);
        if (gone || other_id) && (late || (!copy.confirmed && broke)) {
            return true;
        }
        // It may have been on its way meanwhile.
        let kept =
            |restart: &&Restart| restart.server == source && restart.keeps && restart.at + 300 * SECOND >= copy.created;
        if self.book.restarts.iter().any(|restart| kept(&restart)) {
            return true;
        }
        if !copy.tellable && !telling {
            return true;
        }
        if other {
            // A proof of a restart is forgotten with its process.
            let proved = |restart: &&Restart| restart.server == source && restart.same;
            if self.plan.classes[class].unique == Unique::None
                && self.book.restarts.iter().any(|restart| proved(&restart))
            {
                return true;
            }
            let process = &self.processes[copy.process];
            // A cut may keep the acknowledgement from the source, and nobody else knows of it.
            let is_cut = |(at, fault): &(Micros, Fault)| {
                let concerns =
                    matches!(fault, Fault::Cut { forward, which: Which::Source, .. } if *forward == copy.forward);
                concerns && *at <= self.clock.now
            };
            let in_trouble = self.source_was_in_trouble(source, copy.created) || self.plan.faults.iter().any(is_cut);
            let knew = !process.killed && !in_trouble && copy.tellable;
            return !knew && (gone || !telling || self.plan.classes[class].unique != Unique::None);
        }
        // A restart that is proved late makes also forgotten what was delivered since.
        let forward = &self.forwards[copy.forward];
        forward.strange_at.into_iter().chain(forward.proved_at).any(|at| at >= copy.created)
    }

    /// A fault that concerned the source's connections, from a while before `since`.
    fn source_was_in_trouble(&self, source: usize, since: Micros) -> bool {
        self.plan.faults.iter().any(|(at, fault)| {
            fault.server(self.plan) == Some(source)
                && *at <= self.clock.now
                && at + fault.lasts() + 60 * SECOND >= since
        })
    }

    fn check_order(&mut self, class: usize, forward: usize) {
        if !self.plan.ordered || self.book.order_is_off || self.forwards[forward].given_back {
            return;
        }
        let account = &self.book.accounts[class];
        if account.copies.len() > 1 || account.accepted > 1 {
            return;
        }
        if account.assigned < self.book.last_delivered {
            self.violate(format!("ORDER: a job of class {class} comes after one that its source gave out later"));
        }
        self.book.last_delivered = self.book.last_delivered.max(self.book.accounts[class].assigned);
    }

    /// A synchronous job that was reported failed must not begin on purpose.
    fn check_start(&mut self, server: usize, job: usize) {
        let job = &self.servers[server].jobs[job];
        let Some(connection) = job.by.filter(|_| !job.background) else { return };
        let account = &self.book.accounts[job.class];
        let class = job.class;
        let by_itself = account.failed_by == Some(self.connections[connection].process);
        if account.accepted == 1 && by_itself && self.connections[connection].proxy_open {
            self.violate(format!("a job of class {class} is run although it was reported failed"));
        }
    }

    /// A proxy has read replies of a destination.
    pub fn confirm(&mut self, connection: usize, replies: &[Reply]) {
        let answered = |reply: &Reply| match reply {
            Reply::Taken(jobs) => *jobs,
            Reply::Created(_) | Reply::Refused(_) => 1,
            Reply::Echo | Reply::Work { .. } => 0,
        };
        for _ in 0..replies.iter().map(answered).sum() {
            let Some(owed) = self.connections[connection].owed.pop_front() else {
                return self.violate("a reply came that was not owed".to_owned());
            };
            if let Some((class, copy)) = owed
                && self.connections[connection].proxy_open
            {
                let source = self.forwards[self.connections[connection].forward].source;
                let tellable = source.is_some_and(|(_, source)| self.connections[source].proxy_open);
                let process = self.connections[connection].process;
                let copy = &mut self.book.accounts[class].copies[copy];
                // What another proxy learns of it helps nobody.
                if copy.process == process {
                    copy.confirmed = true;
                    copy.tellable = tellable;
                }
            }
        }
    }

    /// Jobs that nobody can deliver, and which are kept: those that close connections where no other job was taken between.
    pub fn may_stay(&self, class: usize) -> bool {
        self.plan.classes[class].kind == Kind::Poison
    }

    /// After everything.
    pub fn finish(&mut self) {
        if !self.book.violations.is_empty() {
            return;
        }
        for class in 0..self.book.accounts.len() {
            if self.plan.classes[class].kind == Kind::Expired && !self.book.accounts[class].copies.is_empty() {
                self.violate(format!("a job of class {class} was delivered although it is too old"));
            }
        }
    }
}
