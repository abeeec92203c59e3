//! A synchronous job on a destination connection: submitted in the foreground, its result back to the source.

use super::Relay;
use super::event::{Loss, Now, Reason, Tell};
use super::line::TRIES;
use crate::gearman::packet::{kind, put_header, put_request};

/// The job that is on a line. One at a time.
#[derive(Debug)]
pub struct Exchange {
    pub slot: u32,
    /// Its handle at the destination, once that has taken it.
    handle: Option<Vec<u8>>,
    probe_at: Now,
}

impl Exchange {
    pub fn new(slot: u32) -> Exchange {
        Exchange { slot, handle: None, probe_at: Now::MAX }
    }

    /// The destination has taken it.
    pub fn runs_as(&mut self, handle: Vec<u8>, probe_at: Now) {
        self.handle = Some(handle);
        self.probe_at = probe_at;
    }

    pub fn is_running(&self) -> bool {
        self.handle.is_some()
    }

    /// When the destination is asked whether it is still there.
    pub fn probe_at(&self) -> Option<Now> {
        self.is_running().then_some(self.probe_at)
    }
}

impl Relay {
    /// A part of a job's result, or its end. `false` if it is for no job that is under way there.
    pub(super) fn worked(&mut self, now: Now, submitter: usize, kind: u32, handle: &[u8], rest: &[u8]) -> bool {
        let line = &mut self.lines[submitter];
        let Some(Exchange { slot, handle: Some(expected), .. }) = &line.exchange else { return false };
        if expected != handle {
            return false;
        }
        let slot = *slot;
        line.moved_at = now;
        let Some(held) = self.jobs.get(slot) else { return true };
        // The rest begins with the NUL behind the handle.
        let handle = held.job.handle();
        if put_header(&mut self.session.out, kind, handle.len() + rest.len()).is_ok() {
            self.session.out.extend_from_slice(handle);
            self.session.out.extend_from_slice(rest);
        }
        if matches!(kind, kind::WORK_COMPLETE | kind::WORK_FAIL | kind::WORK_EXCEPTION) {
            line.exchange = None;
            if let Some(held) = self.jobs.remove(slot) {
                self.delivered(now, &held);
                self.release(now, held);
            }
        }
        true
    }

    /// The connection has ended on which the job was, and it has no result.
    pub(super) fn exchange_lost(&mut self, now: Now, slot: u32, loss: &Loss) {
        let Some(held) = self.jobs.get(slot) else { return };
        if held.gone {
            self.forget(slot);
        } else if loss.oversized || held.tries >= TRIES {
            self.fail_exchange(now, slot, Reason::Lost(loss.cause.clone()));
        } else {
            // Another submitter that is well takes it.
            self.jobs.put_back(&mut self.waiting, &[slot]);
        }
    }

    /// A job that may have run is failed.
    fn fail_exchange(&mut self, now: Now, slot: u32, reason: Reason) {
        let Some(held) = self.jobs.remove(slot) else { return };
        let handle = held.job.handle().to_vec();
        put_request(&mut self.session.out, kind::WORK_FAIL, &[&handle]);
        self.tell(Tell::Failed { handle, reason });
        self.release(now, held);
    }

    /// What is due for the synchronous job on a line.
    pub(super) fn exchange_at(&mut self, now: Now, submitter: usize) {
        let job_probe = self.settings.timing.job_probe;
        let line = &mut self.lines[submitter];
        let Some(exchange) = &mut line.exchange else { return };
        if exchange.is_running() && exchange.probe_at <= now {
            exchange.probe_at = now + job_probe;
            let mut echo = Vec::new();
            put_request(&mut echo, kind::ECHO_REQ, &[b"?"]);
            line.flight.echo(now);
            line.outbox.push(super::Chunk::of(echo));
        }
    }

    /// Fails the jobs whose time is up, wherever they are.
    pub(super) fn timeouts_at(&mut self, now: Now) {
        let Some(timeout) = self.settings.timeout else { return };
        for slot in self.jobs.all() {
            let late = self
                .jobs
                .get(slot)
                .is_some_and(|held| !held.gone && held.reason.is_none() && held.arrived + timeout <= now);
            if !late
                || self.lines.iter().any(|line| line.staging.as_ref().is_some_and(|(_, jobs)| jobs.contains(&slot)))
            {
                continue;
            }
            self.waiting.retain(|&other| other != slot);
            let line = self.lines.iter().position(|line| line.exchange.as_ref().is_some_and(|at| at.slot == slot));
            self.fail_exchange(now, slot, Reason::Timeout);
            // A copy that is still queued there is skipped when the connection closes.
            if let Some(submitter) = line {
                self.drop_line(submitter, now);
            }
        }
    }

    /// When the next job's time is up.
    pub(super) fn timeouts_due(&self) -> Now {
        let Some(timeout) = self.settings.timeout else { return Now::MAX };
        self.jobs
            .iter()
            .filter(|held| !held.gone && held.reason.is_none())
            .map(|held| held.arrived + timeout)
            .min()
            .unwrap_or(Now::MAX)
    }
}
