//! An asynchronous destination connection's writing side: batches in, stages, submissions out.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender, TryRecvError, unbounded};
use log::{Level, log_enabled, trace};

use super::confirmer::{Confirmer, Event, Refused};
use super::destination::{Clock, Link};
use super::identity::next_number;
use super::job::Batch;
use super::ledger::Fate;
use super::outgoing::{Outgoing, Place, WRITE_SIZE};
use super::recovery::Recovery;
use super::reject::{Rejected, reject};
use super::source::BACKGROUND_ANSWER;
use super::{End, Session, join, spawn, thread_name};
use crate::config::Priority;
use crate::gearman::connection::{Connection, ConnectionError, QUEUE_FULL};
use crate::gearman::packet::{MAX_UNIQUE_SIZE, kind, put_request};
use crate::logging::escaped;
use crate::stages::Scratch;

/// Tries of a job alone after which it is undeliverable.
pub const TRIES: u8 = 3;

/// A wait without end, for where a limit must be given.
const LONG: Duration = Duration::from_secs(3600);

/// The thread that submits jobs in the background, over one connection at a time.
pub struct Submitter<'s> {
    session: &'s Session<'s>,
    index: usize,
    jobs: Receiver<Batch>,
    rejects: Option<Sender<Rejected>>,
    recovery: Recovery<'s>,
    /// To be submitted before anything new, in their order.
    held: VecDeque<Batch>,
    /// To be submitted one by one before those.
    singles: VecDeque<Single>,
    /// The first of `singles` is on the wire.
    alone: Option<Alone>,
    /// Batches were submitted on this connection since it last answered for all before.
    unanswered: bool,
    scratch: Scratch,
    out: Outgoing,
    unique: Vec<u8>,
}

/// A job that is submitted alone, after the destination refused it or closed connections on it.
struct Single {
    batch: Batch,
    /// Whether it is under suspicion itself; if not, it only waits for a full queue.
    suspect: bool,
    refusals: u8,
}

/// How far the submission of a job alone has come.
#[derive(Clone, Copy, PartialEq)]
enum Alone {
    Begun,
    Whole,
}

/// One connection as its submitter sees it.
struct Line<'c> {
    link: Link<'c>,
    clock: &'c Clock,
    submitted: Sender<Batch>,
    events: Receiver<Event>,
}

/// Why no more can be submitted on a connection.
enum Lost {
    /// The confirmer has ended and knows why.
    Reading,
    /// Writing failed, or an answer is overdue.
    Writing(ConnectionError),
    /// Nothing more is to be submitted.
    Over,
}

impl From<ConnectionError> for Lost {
    fn from(error: ConnectionError) -> Self {
        Lost::Writing(error)
    }
}

/// What a submitter finds to do.
enum Next {
    Batch(Batch),
    Refusal,
    /// The reader gives no more.
    End,
}

impl Line<'_> {
    /// Waits for what the confirmer tells.
    fn event(&self, deadline: Option<Instant>) -> Result<Event, Lost> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let wait = left.unwrap_or(LONG).min(self.clock.left().unwrap_or(LONG));
            match self.events.recv_timeout(wait) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Disconnected) => return Err(Lost::Reading),
                Err(RecvTimeoutError::Timeout) => self.clock.check()?,
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Lost::Over);
            }
        }
    }

    /// Asks for the answer behind which nothing is owed, and waits for it: the jobs that were refused meanwhile.
    fn drain(&self, deadline: Option<Instant>) -> Result<Vec<Refused>, Lost> {
        let mut echo = Vec::new();
        put_request(&mut echo, kind::ECHO_REQ, &[b"?"]);
        self.clock.owe(1);
        self.link.write(&echo)?;
        self.answer(deadline)
    }

    fn answer(&self, deadline: Option<Instant>) -> Result<Vec<Refused>, Lost> {
        loop {
            if let Event::Answered(refused) = self.event(deadline)? {
                return Ok(refused);
            }
        }
    }
}

impl<'s> Submitter<'s> {
    /// The submitter number `index` of a session, which takes what comes through `jobs`.
    pub fn new(
        session: &'s Session<'s>,
        index: usize,
        jobs: Receiver<Batch>,
        rejects: Option<Sender<Rejected>>,
    ) -> Submitter<'s> {
        Submitter {
            session,
            index,
            jobs,
            rejects,
            recovery: Recovery::new(session, session.life.config.first_destination()),
            held: VecDeque::new(),
            singles: VecDeque::new(),
            alone: None,
            unanswered: false,
            scratch: Scratch::default(),
            out: Outgoing::default(),
            unique: Vec::new(),
        }
    }

    /// Runs until what came is delivered and nothing more comes, or the session is over.
    pub fn run(mut self, connection: Connection) {
        let mut open = Some(connection);
        while let Some(connection) = open.take() {
            if let Some(error) = self.work(connection) {
                let holds = !self.held.is_empty() || !self.singles.is_empty();
                let life = self.session.life;
                open = self.recovery.reconnect(error, holds, |within| life.connect_destination(within));
            }
        }
        self.leave();
    }

    /// One connection's life. Returns why it was lost, if it is to be replaced.
    fn work(&mut self, connection: Connection) -> Option<ConnectionError> {
        let Connection { stream, incoming, .. } = connection;
        let session = self.session;
        let clock = Clock::new(session.life.settings.timing.answer);
        // Before anybody reads: it also takes away the limit that the greeting had.
        let link = match Link::new(&stream, &clock) {
            Ok(link) => link,
            Err(error) => return Some(error),
        };
        self.unanswered = false;
        let (submitted, to_confirm) = unbounded();
        let (tell, events) = unbounded();
        let unread = to_confirm.clone();
        let untold = events.clone();
        let (outcome, left) = thread::scope(|scope| {
            let confirmer = Confirmer::new(session, &clock, to_confirm, tell);
            let name = thread_name("c", Some(self.index), &session.life.config.source.queue);
            let thread = match spawn(scope, name, || confirmer.run(&stream, incoming)) {
                Ok(thread) => thread,
                Err(error) => {
                    session.end(End::Spawn(error));
                    return (Err(Lost::Over), None);
                }
            };
            let outcome = self.feed(&Line { link, clock: &clock, submitted, events });
            // Wakes the confirmer, which may have ended long ago.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            (outcome, Some(join(thread)))
        });
        let left = left?;
        if clock.taken() > 0 {
            self.recovery.worked();
        }
        let closed = matches!(outcome, Err(Lost::Reading))
            && matches!(left.error, ConnectionError::Closed | ConnectionError::Io(_));
        // An answer may have come in the moment in which it was given up.
        let mut refused: Vec<Refused> = untold.try_iter().flat_map(Event::refused).collect();
        refused.extend(left.refused);
        self.take_back(refused, left.current.into_iter().chain(unread.try_iter()), closed);
        match outcome {
            Ok(()) | Err(Lost::Over) => None,
            Err(Lost::Reading) => Some(left.error),
            Err(Lost::Writing(error)) => Some(error),
        }
    }

    /// Submits until nothing more comes and everything is confirmed.
    fn feed(&mut self, line: &Line<'_>) -> Result<(), Lost> {
        loop {
            let next = if self.session.is_over() {
                Next::End
            } else if !self.singles.is_empty() {
                self.submit_alone(line)?;
                continue;
            } else {
                match self.held.pop_front() {
                    Some(batch) => Next::Batch(batch),
                    None => self.next(line)?,
                }
            };
            match next {
                Next::Batch(batch) if self.session.life.is_full() => self.singles.extend(one_by_one(&batch, false)),
                Next::Batch(batch) => self.submit(line, batch)?,
                Next::Refusal => self.drain(line, None)?,
                Next::End => {
                    let last = || Instant::now() + self.session.life.settings.timing.last_replies;
                    let deadline = self.session.life.stop_deadline().unwrap_or_else(last);
                    self.drain(line, Some(deadline))?;
                    if self.session.is_over() || self.singles.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits until everything that was submitted is answered, and takes note of what was refused.
    fn drain(&mut self, line: &Line<'_>, deadline: Option<Instant>) -> Result<(), Lost> {
        let refused = line.drain(deadline)?;
        self.unanswered = false;
        self.refused(refused);
        Ok(())
    }

    /// Waits for something to do.
    fn next(&mut self, line: &Line<'_>) -> Result<Next, Lost> {
        loop {
            match line.events.try_recv() {
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(Lost::Reading),
                Ok(Event::Refusal) => return Ok(Next::Refusal),
                Ok(Event::Answered(refused)) => {
                    self.refused(refused);
                    return Ok(Next::Refusal);
                }
            }
            if let Ok(batch) = self.jobs.try_recv() {
                return Ok(Next::Batch(batch));
            }
            let mut select = Select::new();
            select.recv(&self.jobs);
            select.recv(&line.events);
            select.recv(self.session.over.channel());
            match select.ready_timeout(line.clock.left().unwrap_or(LONG)) {
                Err(_) => line.clock.check()?,
                Ok(_) if self.session.is_over() => return Ok(Next::End),
                Ok(_) => match self.jobs.try_recv() {
                    Ok(batch) => return Ok(Next::Batch(batch)),
                    Err(TryRecvError::Disconnected) => return Ok(Next::End),
                    Err(TryRecvError::Empty) => {}
                },
            }
        }
    }

    /// Submits a batch, and with the same write whatever else is waiting.
    fn submit(&mut self, line: &Line<'_>, first: Batch) -> Result<(), Lost> {
        let mut batches = Vec::new();
        let mut next = Some(first);
        while let Some(mut batch) = next.take() {
            self.prepare(line, &mut batch, Some(batches.len()));
            if batch.left().next().is_some() {
                batches.push(batch);
            } else {
                self.session.recycle(batch);
            }
            if self.out.len() < WRITE_SIZE && line.events.is_empty() {
                next = self.held.pop_front().or_else(|| self.jobs.try_recv().ok());
            }
        }
        self.unanswered = true;
        let outcome = self.out.write(&line.link, &batches);
        // Whatever became of the write, the confirmer must know what its replies may be for.
        for batch in batches {
            // It fails only when the confirmer has ended, and then the batch is found in the channel.
            let _ = line.submitted.send(batch);
        }
        Ok(outcome?)
    }

    /// Runs the stages and appends the submissions of a batch to what is written next. A job that needs none, since it is
    /// undeliverable or was delivered before, is done then. `number` is the batch's among those written at once; without
    /// one, all data is copied.
    fn prepare(&mut self, line: &Line<'_>, batch: &mut Batch, number: Option<usize>) {
        let session = self.session;
        let life = session.life;
        let queue = life.config.first_destination().queue.as_bytes();
        let kind = match life.config.priority {
            Priority::Low => kind::SUBMIT_JOB_LOW_BG,
            Priority::Normal => kind::SUBMIT_JOB_BG,
            Priority::High => kind::SUBMIT_JOB_HIGH_BG,
        };
        let mut replies = 0;
        for position in batch.next..batch.jobs.len() {
            let Batch { bytes, jobs, .. } = &mut *batch;
            let job = &mut jobs[position];
            if job.done {
                continue;
            }
            let parts = job.parts(bytes);
            let identity = session.origin.identify(&parts);
            job.key = identity.key;
            if life.suspicious.load(Ordering::Acquire) {
                // Two statements: the lock must not be held while acknowledging.
                let fate = life.claim(job.key);
                match fate {
                    Some(Fate::Delivered) => {
                        let mut packet = Vec::new();
                        put_request(&mut packet, kind::WORK_COMPLETE, &[parts.handle, BACKGROUND_ANSWER]);
                        session.source.acknowledge(&packet, &[job.key], job.size());
                        job.done = true;
                        continue;
                    }
                    Some(Fate::Unconfirmed(number, blame)) => (job.number, job.blame) = (number, blame),
                    None => {}
                }
            }
            if parts.data.len() > life.settings.max_job_size {
                session.fail_too_large(parts.handle, parts.data.len(), job.size());
                job.done = true;
                continue;
            }
            let staged = match life.config.stages.apply(parts.data, &mut self.scratch) {
                Ok(staged) => staged,
                Err(undeliverable) => {
                    job.done = true;
                    reject(session, self.rejects.as_ref(), batch, position, undeliverable.to_string());
                    continue;
                }
            };
            if let Some(warning) = staged.warning {
                life.odd_ids.lock().note(format_args!("uniq_callback of {}: {warning}", life.config.source));
            }
            let unique = match staged.unique {
                Some(unique) => unique,
                None if (1..=MAX_UNIQUE_SIZE).contains(&parts.unique.len()) => parts.unique,
                None => {
                    if job.number == 0 && !session.origin.tells() {
                        job.number = next_number();
                    }
                    session.origin.write_unique(&mut self.unique, parts.handle, &identity, job.number);
                    &self.unique
                }
            };
            if log_enabled!(Level::Trace) {
                let (handle, unique) = (escaped(parts.handle), escaped(unique));
                trace!("job {handle} as {unique}: {} becomes {}", escaped(parts.data), escaped(staged.data));
            }
            job.sent = Some(staged.data.len() as u32);
            let unchanged = std::ptr::eq(staged.data, parts.data);
            let place = number.filter(|_| unchanged).map(|batch| Place { batch, position });
            self.out.submit(kind, queue, unique, staged.data, place);
            replies += 1;
        }
        line.clock.owe(replies);
    }

    /// Submits the first of the single jobs, and waits for what becomes of it.
    fn submit_alone(&mut self, line: &Line<'_>) -> Result<(), Lost> {
        if self.unanswered {
            // Alone means that nothing else is on the wire: else others' refusals, or a connection closed on them, would
            // count as this job's.
            self.drain(line, None)?;
        }
        self.let_another_go_first();
        let Some(mut single) = self.singles.pop_front() else { return Ok(()) };
        self.prepare(line, &mut single.batch, None);
        if single.batch.left().next().is_none() {
            return Ok(());
        }
        let copy = single.batch.single(0);
        self.singles.push_front(single);
        self.alone = Some(Alone::Begun);
        self.out.echo();
        line.clock.owe(1);
        // Before the ECHO_REQ is written: its answer means nothing unless the confirmer knows of the job. Sending fails
        // only when the confirmer has ended, and then writing fails or the answer doesn't come.
        let _ = line.submitted.send(copy);
        self.out.write(&line.link, &[])?;
        self.alone = Some(Alone::Whole);
        let refused = line.answer(None)?.pop();
        self.alone = None;
        let Some(single) = self.singles.pop_front() else { return Ok(()) };
        match refused {
            None => {
                self.recovery.worked();
                // The queue is not full any more: whoever only waited for that goes as usual.
                let (suspects, others) = self.singles.drain(..).partition(|single| single.suspect);
                self.singles = suspects;
                let others: VecDeque<Single> = others;
                for other in others.into_iter().rev() {
                    self.held.push_front(other.batch);
                }
            }
            Some(Refused { code, .. }) if code == QUEUE_FULL => {
                self.singles.push_front(single);
                let since = self.session.full();
                if !self.recovery.pause_since(ConnectionError::Refused(code), since) {
                    return Err(Lost::Over);
                }
            }
            Some(Refused { code, .. }) => {
                self.singles.push_front(single);
                self.refused_alone(code);
            }
        }
        Ok(())
    }

    /// The destination refused the first of the singles.
    fn refused_alone(&mut self, code: String) {
        if code == QUEUE_FULL {
            self.session.full();
            return;
        }
        let Some(single) = self.singles.front_mut() else { return };
        single.refusals += 1;
        single.suspect = true;
        if single.refusals < TRIES {
            return;
        }
        if let Some(single) = self.singles.pop_front() {
            let reason = format!("the destination refused it with {code}");
            reject(self.session, self.rejects.as_ref(), &single.batch, 0, reason);
        }
    }

    /// Whether a job is at fault for closed connections is known only when the destination takes another one between them.
    fn let_another_go_first(&mut self) {
        let taken = self.session.life.taken.load(Ordering::Relaxed);
        let waits = |single: &Single| single.batch.left().any(|job| job.blame.waits(taken));
        if !self.singles.front().is_some_and(waits) {
            return;
        }
        if self.singles.iter().all(waits) {
            let more = self.held.pop_front().or_else(|| self.jobs.try_recv().ok());
            self.singles.extend(more.iter().flat_map(|batch| one_by_one(batch, false)));
        }
        if let Some(position) = self.singles.iter().position(|single| !waits(single))
            && let Some(another) = self.singles.remove(position)
        {
            self.singles.push_front(another);
        }
    }

    /// Takes note of refused jobs: they are tried one by one.
    fn refused(&mut self, refused: Vec<Refused>) {
        for Refused { batch, code } in refused {
            if code == QUEUE_FULL {
                self.session.full();
            }
            self.singles.extend(one_by_one(&batch, code != QUEUE_FULL));
        }
    }

    /// Takes back what is unconfirmed when a connection has ended, to be submitted again in its order.
    fn take_back(&mut self, refused: Vec<Refused>, unconfirmed: impl Iterator<Item = Batch>, closed: bool) {
        if let Some(alone) = self.alone.take() {
            // What comes back is a copy of the first of the singles; if none does, it was confirmed, though the answer
            // behind it did not come.
            if let Some(Refused { code, .. }) = refused.into_iter().next() {
                self.refused_alone(code);
            } else if unconfirmed.into_iter().any(|batch| batch.left().next().is_some()) {
                self.judge(closed && alone == Alone::Whole);
            } else {
                self.singles.pop_front();
            }
            return;
        }
        self.refused(refused);
        let mut batches: Vec<Batch> = unconfirmed.collect();
        let mut suspicious = false;
        for batch in &mut batches {
            let Batch { jobs, next, .. } = batch;
            for job in jobs.iter_mut().skip(*next).filter(|job| !job.done) {
                if job.sent.take().is_some() && closed {
                    job.breaks = job.breaks.saturating_add(1);
                    suspicious |= job.breaks > 1;
                }
            }
        }
        if suspicious {
            // One of these may be what the destination can't bear.
            self.singles.extend(batches.iter().flat_map(|batch| one_by_one(batch, true)));
        } else {
            for batch in batches.into_iter().rev() {
                self.held.push_front(batch);
            }
        }
    }

    /// The connection ended while the first single was on it alone. `closed`: by the destination, and after all of the job
    /// was written.
    fn judge(&mut self, closed: bool) {
        let Some(single) = self.singles.front_mut() else { return };
        single.batch.jobs.iter_mut().for_each(|job| job.sent = None);
        if !closed {
            return;
        }
        single.suspect = true;
        let taken = self.session.life.taken.load(Ordering::Relaxed);
        single.batch.jobs.iter_mut().for_each(|job| job.blame.closed(taken));
        if single.batch.jobs.iter().any(|job| job.blame.is_proved())
            && let Some(single) = self.singles.pop_front()
        {
            let reason = "the destination closed the connection each time it came".to_string();
            reject(self.session, self.rejects.as_ref(), &single.batch, 0, reason);
        }
    }

    /// The session goes without this submitter: what was submitted and is unconfirmed keeps its unique id and its blame.
    fn leave(self) {
        let singles = self.singles.into_iter().map(|single| single.batch);
        for batch in self.held.into_iter().chain(singles) {
            self.session.life.note_unconfirmed(batch.left());
        }
    }
}

/// Each job of a batch that is not done with.
fn one_by_one(batch: &Batch, suspect: bool) -> impl Iterator<Item = Single> {
    let open = (batch.next..batch.jobs.len()).filter(|&position| !batch.jobs[position].done);
    open.map(move |position| Single { batch: batch.single(position), suspect, refusals: 0 })
}
