//! Undeliverable jobs on their way to the reject queue. They never hold up others, nor send anything back.

use std::collections::VecDeque;
use std::time::Duration;

use super::Relay;
use super::event::{Loss, Now, Reason, Settings, Tell};
use super::jobs::Jobs;
use super::ledger::Fate;
use super::outage::Backoff;

/// Jobs that are submitted to the reject queue at once.
const AT_ONCE: usize = 256;

/// Bytes that wait before the forward asks for no more jobs.
const MAX_BYTES: usize = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Rejects {
    queue: VecDeque<u32>,
    bytes: usize,
    /// Those that the rejecter is submitting.
    in_hand: Vec<u32>,
    next_try: Now,
    backoff: Backoff,
    trouble_since: Option<Now>,
    pub parked: bool,
}

impl Rejects {
    pub fn push(&mut self, slot: u32, jobs: &mut Jobs, reason: Reason) {
        if let Some(held) = jobs.get_mut(slot) {
            held.reason = Some(Box::new(reason));
            self.bytes += held.job.size();
            self.queue.push_back(slot);
        }
    }

    /// Jobs that wait, those in hand counted in.
    pub fn len(&self) -> usize {
        self.queue.len() + self.in_hand.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the limit is reached beyond which the forward asks for no more jobs.
    pub fn is_full(&self, settings: &Settings) -> bool {
        self.len() >= (settings.prefetch / 2).max(1) || self.bytes >= MAX_BYTES
    }

    /// Whether the rejecter has none.
    pub fn in_hand_is_empty(&self) -> bool {
        self.in_hand.is_empty()
    }

    pub fn is_ready(&self, now: Now) -> bool {
        !self.queue.is_empty() && self.in_hand.is_empty() && self.next_try <= now
    }

    pub fn take(&mut self) -> Vec<u32> {
        let count = self.queue.len().min(AT_ONCE);
        self.in_hand = self.queue.drain(..count).collect();
        self.in_hand.clone()
    }

    /// Forgets those that are not being submitted: they return to the source.
    pub fn clear(&mut self) -> Vec<u32> {
        self.bytes = 0;
        std::mem::take(&mut self.queue).into()
    }

    /// When the next try is due.
    pub fn moment(&self) -> Option<Duration> {
        (!self.queue.is_empty()).then_some(self.next_try)
    }
}

impl Relay {
    /// What became of the jobs in the rejecter's hand.
    pub(super) fn rejected(&mut self, now: Now, taken: Vec<bool>, loss: Option<Loss>) {
        let in_hand = std::mem::take(&mut self.rejects.in_hand);
        let mut taken = taken.into_iter();
        let mut again = Vec::new();
        for slot in in_hand {
            let taken = taken.next().unwrap_or(false);
            let Some(held) = self.jobs.get(slot) else { continue };
            match (held.gone, taken) {
                (true, true) => {
                    if let Some(held) = self.jobs.remove(slot) {
                        self.ledger.note(held.job.identity().key, Fate::Delivered);
                    }
                }
                (true, false) => self.forget(slot),
                (false, false) => again.push(slot),
                (false, true) => {
                    if let Some(mut held) = self.jobs.remove(slot) {
                        self.rejects.bytes = self.rejects.bytes.saturating_sub(held.job.size());
                        let reason = held.reason.take().map_or(Reason::Poison, |reason| *reason);
                        self.moved(now, held, reason);
                    }
                }
            }
        }
        let again: VecDeque<u32> = again.into_iter().chain(std::mem::take(&mut self.rejects.queue)).collect();
        self.rejects.queue = again;
        match loss {
            Some(loss) => {
                let random = self.random();
                let timing = &self.settings.timing;
                let retry = self.rejects.backoff.next(timing.backoff, timing.longest_backoff, random);
                self.rejects.next_try = now + retry;
                self.rejects.trouble_since.get_or_insert(now);
                self.tell(Tell::RejecterLost { cause: loss.cause, held: self.rejects.len(), retry });
            }
            None => {
                self.rejects.backoff.reset();
                if let Some(since) = self.rejects.trouble_since.take() {
                    self.tell(Tell::RejecterBack { after: now.saturating_sub(since) });
                }
            }
        }
        self.source_at(now);
        self.ask(now);
    }
}
