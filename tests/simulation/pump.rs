//! The pumps around a relay: one decision each time it is a pump's turn.
//!
//! What a real pump does between two looks at its relay is cut into pieces here, with turns of others between them: asking
//! for a step, beginning it, each partial read or write of it, reporting it.

use std::time::Duration;

use gearman_proxy::relay::{Batch, Chunk, Event, LineId, Payload, Staged, Step, read_replies};
use gearman_proxy::stages::Undeliverable;

use crate::clock::{MILLISECOND, Micros, Timer};
use crate::forward::{Work, duration, loss};
use crate::plan::{self, Kind, Which};
use crate::wire::{self, Parsed, kind};
use crate::world::World;

impl World<'_> {
    /// A pump's turn.
    pub fn step(&mut self, forward: usize, pump: usize) {
        let state = &mut self.forwards[forward].pumps[pump];
        state.queued = false;
        let work = std::mem::replace(&mut state.work, Work::Ask);
        match work {
            Work::Ask => self.ask(forward, pump),
            Work::Read { generation } => match pump {
                0 => self.read_source(forward, pump, generation),
                _ => self.read_line(forward, pump, generation),
            },
            Work::Stage(batch) => self.stage(forward, pump, batch),
            Work::Write(line, chunk) => self.write(forward, pump, line, chunk),
            Work::WriteSource { generation, bytes, written } => {
                self.write_source(forward, pump, generation, bytes, written)
            }
            Work::ConnectSource { generation, since, begun } => {
                self.connect_source(forward, pump, generation, since, begun);
            }
            Work::Connect { line, destination, since, begun } => {
                self.connect(forward, pump, line, destination, since, begun);
            }
            Work::Reject { jobs, taken, since } => self.reject(forward, pump, jobs, taken, since),
            Work::Count { destination, since } => self.count(forward, pump, destination, since),
            Work::Park | Work::Pause => self.make_ready(forward, pump),
            Work::End => self.forwards[forward].pumps[pump].work = Work::End,
        }
    }

    /// The pump goes on with `work`, at its next turn or after some time.
    pub fn go_on(&mut self, forward: usize, pump: usize, work: Work, after: Micros) {
        self.forwards[forward].pumps[pump].work = work;
        if after == 0 {
            self.make_ready(forward, pump);
            return;
        }
        let token = self.new_token();
        self.forwards[forward].pumps[pump].token = token;
        self.clock.at(self.clock.now + after, Timer::Pump { forward, pump, token });
    }

    /// The pump reports, and will ask again.
    pub fn report(&mut self, forward: usize, pump: usize, event: Event) {
        self.forwards[forward].pumps[pump].work = Work::Ask;
        self.make_ready(forward, pump);
        self.feed(forward, event);
    }

    /// The connection that was to be read is gone, which is known already: the pump waits for a wake-up.
    fn wait(&mut self, forward: usize, pump: usize) {
        let state = &mut self.forwards[forward].pumps[pump];
        if state.woken {
            self.make_ready(forward, pump);
        } else {
            state.work = Work::Park;
        }
    }

    fn ask(&mut self, forward: usize, pump: usize) {
        let (now, which) = (self.clock.now, self.pump(forward, pump));
        let Some(relay) = &mut self.forwards[forward].relay else { return };
        let step = relay.next(duration(now), which);
        self.forwards[forward].pumps[pump].woken = false;
        self.trace.add(30, step_number(&step));
        let work = match step {
            Step::ConnectSource { generation } => {
                self.count_connect(forward);
                Work::ConnectSource { generation, since: now, begun: false }
            }
            Step::Read { generation, .. } => Work::Read { generation },
            Step::Stage(batch) => Work::Stage(batch),
            Step::Write(line, chunk) => Work::Write(line, chunk),
            Step::WriteSource { generation, bytes } => {
                self.look_at_requests(forward, generation, &bytes);
                Work::WriteSource { generation, bytes, written: 0 }
            }
            Step::Connect { line, destination } => {
                self.count_connect(forward);
                Work::Connect { line, destination, since: now, begun: false }
            }
            Step::Reject(jobs) => Work::Reject { jobs, taken: None, since: now },
            Step::Count { destination } => Work::Count { destination, since: now },
            Step::Pause(time) => {
                let micros = time.as_nanos().div_ceil(1000) as Micros;
                self.go_on(forward, pump, Work::Pause, micros.max(1));
                self.act(forward);
                return;
            }
            Step::Park => Work::Park,
            Step::End => Work::End,
        };
        let state = &mut self.forwards[forward].pumps[pump];
        state.interrupted = false;
        let (parks, ends) = (matches!(work, Work::Park), matches!(work, Work::End));
        // What a thread does takes time, now and then.
        let takes = match work {
            Work::Stage(_) if self.chance.one_in(4) => self.chance.spread(10, 50 * MILLISECOND),
            _ => 0,
        };
        if parks || ends {
            self.forwards[forward].pumps[pump].work = work;
        } else {
            self.go_on(forward, pump, work, takes);
        }
        self.act(forward);
        if ends {
            self.pump_ended(forward);
        }
    }

    /// Grabs and acknowledgements that the relay sends: the bounds that it promises.
    fn look_at_requests(&mut self, forward: usize, generation: u32, bytes: &[u8]) {
        let Some((current, connection)) = self.forwards[forward].source else { return };
        if current != generation {
            return;
        }
        let mut at = 0;
        while let Parsed::Whole(kind, end) = wire::parse(&bytes[at..]) {
            let body = wire::body(&bytes[at..], end);
            match kind {
                kind::GRAB_JOB_UNIQ => self.connections[connection].asked += 1,
                kind::WORK_COMPLETE | kind::WORK_FAIL | kind::WORK_EXCEPTION => {
                    let this = &self.connections[connection];
                    let server = &self.servers[this.server];
                    let known = this.incarnation == server.incarnation && this.server_open;
                    let handle = wire::handle_number(wire::split(body).0).filter(|_| known);
                    let job = handle.and_then(|handle| server.held(connection, handle)).map(|job| &server.jobs[job]);
                    let size = job.map_or(0, |job| job.data.len());
                    if job.is_some() || !known {
                        let this = &mut self.connections[connection];
                        this.held = this.held.saturating_sub(1);
                        this.held_bytes = this.held_bytes.saturating_sub(size);
                    }
                    self.connections[connection].acknowledged += 1;
                }
                _ => {}
            }
            at += end;
        }
        if at < bytes.len() {
            self.book.violations.push(format!("forward {forward} sends a part of a packet to its source"));
        }
        self.tell(|world| {
            let this = &world.connections[connection];
            format!(
                "Forward {forward} has asked for {} jobs on connection {connection} and holds {}.",
                this.asked, this.held
            )
        });
        self.check_bounds(forward, connection);
    }

    fn check_bounds(&mut self, forward: usize, connection: usize) {
        let this = &self.connections[connection];
        let plan = &self.plan.forwards[forward];
        let odd = self.plan.classes.iter().filter(|class| class.kind == Kind::Poison).count();
        // Jobs that wait for the reject queue have a limit of their own.
        let rejects = if plan.reject.is_some() { (plan.prefetch / 2).max(1) } else { 0 };
        // A job on which the destination breaks can be told only with another one beside it.
        let most =
            if self.forwards[forward].lines_lost > 0 { plan.prefetch.max(2 + odd) } else { plan.prefetch } + rejects;
        if this.asked + this.held > most {
            let (asked, held, prefetch) = (this.asked, this.held, plan.prefetch);
            self.book.violations.push(format!(
                "forward {forward} has asked for {asked} jobs and holds {held}; its prefetch is {prefetch}"
            ));
        }
    }

    fn read_source(&mut self, forward: usize, pump: usize, generation: u32) {
        let current = self.forwards[forward].source.filter(|(current, _)| *current == generation);
        let Some((_, connection)) = current else {
            return self.wait(forward, pump);
        };
        self.connections[connection].reader = None;
        let count = self.connections[connection].down.readable().len();
        if count == 0 || !self.connections[connection].proxy_open {
            let Some(closed) = self.end_seen(connection) else {
                self.connections[connection].reader = Some(pump);
                self.forwards[forward].pumps[pump].work = Work::Read { generation };
                return;
            };
            self.source_is_gone(forward, connection);
            return self.report(forward, pump, Event::SourceLost { generation, loss: loss(closed) });
        }
        let count = if self.turns.one_in(4) { self.turns.range(1, count as u64) as usize } else { count };
        let (connections, forwards) = (&mut self.connections, &mut self.forwards);
        let Some(intake) = &mut forwards[forward].intake else { return };
        let down = &mut connections[connection].down;
        let room = intake.room(usize::MAX);
        let count = count.min(room.len());
        room[..count].copy_from_slice(&down.readable()[..count]);
        intake.advance(count);
        down.consume(count);
        let packets = match intake.take(Vec::new) {
            Ok(packets) => packets,
            Err(error) => {
                self.book.violations.push(format!("forward {forward} does not understand its source: {error}"));
                return;
            }
        };
        let this = &mut self.connections[connection];
        if this.down.is_empty() {
            this.proven = this.answered;
        }
        for packet in &packets {
            match packet {
                gearman_proxy::relay::SourcePacket::Jobs(run) => {
                    for job in run.clone() {
                        this.asked = this.asked.saturating_sub(1);
                        this.held += 1;
                        this.held_bytes += job.data().len();
                    }
                }
                gearman_proxy::relay::SourcePacket::NoJob => this.asked = this.asked.saturating_sub(1),
                gearman_proxy::relay::SourcePacket::TooLarge { .. } => {
                    this.asked = this.asked.saturating_sub(1);
                    this.held += 1;
                }
                _ => {}
            }
        }
        self.trace.add(31, (count as u64) << 16 | packets.len() as u64);
        self.report(forward, pump, Event::SourcePackets { generation, packets });
    }

    fn source_is_gone(&mut self, forward: usize, connection: usize) {
        self.shut(connection, false);
        let now = self.clock.now;
        let this = &mut self.forwards[forward];
        this.source = None;
        this.intake = None;
        this.broke_at = Some(now);
    }

    fn line_connection(&self, forward: usize, line: LineId) -> Option<usize> {
        let (generation, connection) = self.forwards[forward].lines.get(line.submitter)?.line?;
        (generation == line.generation).then_some(connection)
    }

    fn read_line(&mut self, forward: usize, pump: usize, generation: u32) {
        let submitter = pump - 1 - self.plan.forwards[forward].workers;
        let line = LineId { submitter, generation };
        let Some(connection) = self.line_connection(forward, line) else {
            return self.report(forward, pump, Event::Lost(line, loss(false)));
        };
        self.connections[connection].reader = None;
        let count = self.connections[connection].down.readable().len();
        if count == 0 || !self.connections[connection].proxy_open {
            let Some(closed) = self.end_seen(connection) else {
                self.connections[connection].reader = Some(pump);
                self.forwards[forward].pumps[pump].work = Work::Read { generation };
                return;
            };
            self.shut(connection, false);
            self.forwards[forward].lines[submitter].line = None;
            return self.report(forward, pump, Event::Lost(line, loss(closed)));
        }
        let count = if self.turns.one_in(4) { self.turns.range(1, count as u64) as usize } else { count };
        let max_result = (!self.plan.forwards[forward].asynchronous).then_some(plan::MAX_JOB_SIZE);
        let down = &mut self.connections[connection].down;
        let incoming = &mut self.forwards[forward].lines[submitter].incoming;
        let mut bytes = &down.readable()[..count];
        let mut replies = Vec::new();
        while !bytes.is_empty() {
            if incoming.fill(&mut bytes).is_err() {
                break;
            }
            match read_replies(incoming, max_result) {
                Ok(more) => replies.extend(more),
                Err(error) => {
                    self.book
                        .violations
                        .push(format!("forward {forward} does not understand its destination: {error}"));
                    return;
                }
            }
        }
        down.consume(count);
        self.trace.add(32, (count as u64) << 16 | replies.len() as u64);
        self.confirm(connection, &replies);
        self.report(forward, pump, Event::Replies { line, replies });
    }

    fn stage(&mut self, forward: usize, pump: usize, batch: Batch) {
        let asynchronous = self.plan.forwards[forward].asynchronous;
        let queue = plan::queue_name(self.plan.forwards[forward].queue);
        let submission = if asynchronous { kind::SUBMIT_JOB_BG } else { kind::SUBMIT_JOB };
        let mut chunk = Chunk::default();
        let mut unique = Vec::new();
        // A batch that takes long ends early, and at a stop in the middle of a job.
        let enough =
            if self.turns.one_in(6) { self.turns.range(1, batch.jobs.len() as u64) as usize } else { batch.jobs.len() };
        let stops = self.forwards[forward].stopping.is_some();
        let mut staged = 0;
        let outcomes = batch.jobs.iter().map(|(job, id)| {
            let class = plan::class(job.data()).and_then(|class| self.plan.classes.get(class));
            staged += 1;
            if staged > enough {
                return if stops && staged == enough + 1 { Staged::Abandoned } else { Staged::Interrupted };
            }
            match class.map(|class| class.kind) {
                Some(Kind::Bad) => return Staged::Undeliverable(Undeliverable::NotBase64),
                Some(Kind::Expired) => return Staged::Expired,
                _ => {}
            }
            id.write(&mut unique, job);
            // As after stages, now and then: data of its own.
            let changed = job.data().len().is_multiple_of(3);
            let data = if changed { Payload::Changed(job.data()) } else { Payload::Unchanged(job.clone()) };
            match chunk.submit(submission, queue, &unique, data) {
                Ok(packet) => Staged::Submitted { data: job.data().len() as u32, packet },
                Err(_) => Staged::Undeliverable(Undeliverable::NotBase64),
            }
        });
        let outcomes = outcomes.collect();
        self.trace.add(33, batch.jobs.len() as u64);
        self.report(forward, pump, Event::Staged { line: batch.line, number: batch.number, outcomes, chunk });
    }

    fn write(&mut self, forward: usize, pump: usize, line: LineId, mut chunk: Chunk) {
        let connection = self.line_connection(forward, line);
        let failed = connection.is_none_or(|connection| {
            let this = &self.connections[connection];
            !this.proxy_open || this.down.ended(self.clock.now).is_some()
        });
        let Some(connection) = connection.filter(|_| !failed) else {
            return self.report(forward, pump, Event::Written { line, rest: Some(chunk), failed: true });
        };
        let was_blocked = self.connections[connection].writer.take().is_some();
        let room = self.connections[connection].up.room().min(chunk.len());
        let count = if room > 0 && self.turns.one_in(4) { self.turns.range(1, room as u64) as usize } else { room };
        let mut left = count;
        for slice in chunk.slices(usize::MAX) {
            let part = &slice[..slice.len().min(left)];
            self.send(connection, part);
            left -= part.len();
        }
        chunk.advance(count);
        self.trace.add(34, count as u64);
        if chunk.is_empty() {
            return self.report(forward, pump, Event::Written { line, rest: None, failed: false });
        }
        // The reader must not block.
        if pump == 0 {
            return self.report(forward, pump, Event::Written { line, rest: Some(chunk), failed: false });
        }
        if was_blocked && count > 0 {
            self.feed(forward, Event::Progress(line));
        }
        self.forwards[forward].pumps[pump].work = Work::Write(line, chunk);
        if room > count {
            self.make_ready(forward, pump);
        } else {
            self.connections[connection].writer = Some(pump);
        }
    }

    fn write_source(&mut self, forward: usize, pump: usize, generation: u32, mut bytes: Vec<u8>, written: usize) {
        let current = self.forwards[forward].source.filter(|(current, _)| *current == generation);
        let connection = current.map(|(_, connection)| connection).filter(|&connection| {
            let this = &self.connections[connection];
            this.proxy_open && this.down.ended(self.clock.now).is_none()
        });
        let Some(connection) = connection else {
            bytes.clear();
            return self.report(forward, pump, Event::SourceWritten { generation, buffer: bytes, failed: true });
        };
        self.connections[connection].writer = None;
        let room = self.connections[connection].up.room().min(bytes.len() - written);
        let count = if room > 0 && self.turns.one_in(4) { self.turns.range(1, room as u64) as usize } else { room };
        self.send(connection, &bytes[written..written + count]);
        self.trace.add(35, count as u64);
        let written = written + count;
        if written == bytes.len() {
            bytes.clear();
            return self.report(forward, pump, Event::SourceWritten { generation, buffer: bytes, failed: false });
        }
        self.forwards[forward].pumps[pump].work = Work::WriteSource { generation, bytes, written };
        if room > count {
            self.make_ready(forward, pump);
        } else {
            self.connections[connection].writer = Some(pump);
        }
    }

    /// The connection of a forward that a fault is about.
    pub fn connection_of(&self, forward: usize, which: Which) -> Option<usize> {
        let forward = self.forwards.get(forward)?;
        let connection = match which {
            Which::Source => forward.source,
            Which::Line(submitter) => forward.lines.get(submitter)?.line,
        };
        connection.map(|(_, connection)| connection).filter(|&connection| self.connections[connection].proxy_open)
    }
}

/// For the trace.
fn step_number(step: &Step) -> u64 {
    match step {
        Step::ConnectSource { generation } => 1 | u64::from(*generation) << 8,
        Step::Read { generation, expected } => 2 | u64::from(*generation) << 8 | (*expected as u64) << 32,
        Step::Stage(batch) => 3 | (batch.jobs.len() as u64) << 8,
        Step::Write(line, chunk) => 4 | u64::from(line.generation) << 8 | (chunk.len() as u64) << 32,
        Step::WriteSource { bytes, .. } => 5 | (bytes.len() as u64) << 8,
        Step::Connect { line, .. } => 6 | u64::from(line.generation) << 8,
        Step::Reject(jobs) => 7 | (jobs.len() as u64) << 8,
        Step::Count { destination } => 8 | (*destination as u64) << 8,
        Step::Pause(time) => 9 | (Duration::as_micros(time) as u64) << 8,
        Step::Park => 10,
        Step::End => 11,
    }
}
