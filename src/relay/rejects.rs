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
        self.settle(now);
        self.ask(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gearman::packet::{kind, put_request};
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::session::Phase;
    use crate::relay::{Event, Pump, Step};

    fn with_prefetch(asynchronous: bool, prefetch: usize) -> Driver {
        Driver::new(Settings { reject_queue: true, prefetch, ..settings(asynchronous) })
    }

    /// A job comes and is undeliverable.
    fn reject(driver: &mut Driver, handle: &[u8], data: &[u8]) {
        driver.arrive_with(handle, data);
        let slot = driver.relay.waiting.pop_back().unwrap();
        driver.relay.undeliverable(driver.now, slot, Reason::Poison);
    }

    fn handles(step: Step) -> Vec<Vec<u8>> {
        match step {
            Step::Reject(jobs) => jobs.iter().map(|(job, _)| job.handle().to_vec()).collect(),
            Step::Park => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn has(output: &[u8], kind: u32, handle: &[u8]) -> bool {
        let mut bytes = Vec::new();
        put_request(&mut bytes, kind, &[handle, b""]);
        // Without the length, and with what an acknowledgement says behind the handle.
        output.windows(4 + 4 + handle.len()).any(|window| window.starts_with(&bytes[4..8]) && window.ends_with(handle))
    }

    #[test]
    fn what_the_reject_queue_took_is_acknowledged_and_the_rest_tried_again() {
        let mut driver = with_prefetch(true, 4096);
        driver.answer();
        for handle in [b"H:s:1", b"H:s:2", b"H:s:3"] {
            reject(&mut driver, handle, b"data");
            // What the driver asked for is as if the rejecter had not asked yet.
            let in_hand = std::mem::take(&mut driver.relay.rejects.in_hand);
            in_hand.into_iter().rev().for_each(|slot| driver.relay.rejects.queue.push_front(slot));
            assert!(driver.relay.rejects.is_ready(driver.now));
        }
        assert_eq!(driver.relay.rejects.moment(), Some(Now::ZERO));
        assert_eq!(handles(driver.next(Pump::Rejecter)), [b"H:s:1", b"H:s:2", b"H:s:3"]);
        assert_eq!((driver.relay.rejects.len(), driver.relay.held()), (3, 3));
        assert!(!driver.relay.rejects.in_hand_is_empty() && driver.relay.rejects.moment().is_none());
        driver.source_output();
        driver.told.clear();
        driver.now = seconds(5);
        let loss = Loss::silent(seconds(1));
        driver.event(Event::Rejected { taken: vec![true, false], loss: Some(loss.clone()) });
        let Some(Tell::RejecterLost { cause, held: 2, retry }) = driver.told.get(1) else {
            panic!("{:?}", driver.told)
        };
        assert_eq!(cause, &loss.cause);
        assert!(*retry >= Duration::from_millis(375) && *retry <= Duration::from_millis(500));
        let retry = *retry;
        assert_eq!(driver.told[0], Tell::Rejected { handle: b"H:s:1".to_vec(), reason: Reason::Poison, moved: true });
        let output = driver.source_output();
        assert!(has(&output, kind::WORK_COMPLETE, b"H:s:1") && !has(&output, kind::WORK_COMPLETE, b"H:s:2"));
        assert!(handles(driver.next(Pump::Rejecter)).is_empty(), "it waits");
        assert_eq!(driver.relay.rejects.moment(), Some(driver.now + retry));
        assert!(driver.relay.due() <= driver.now + retry);
        driver.now = driver.now + retry - Duration::from_millis(1);
        assert!(handles(driver.next(Pump::Rejecter)).is_empty());
        driver.now += Duration::from_millis(1);
        assert_eq!(handles(driver.next(Pump::Rejecter)), [b"H:s:2", b"H:s:3"]);
        driver.told.clear();
        driver.event(Event::Rejected { taken: vec![true, true], loss: None });
        assert!(driver.told.contains(&Tell::RejecterBack { after: retry }), "{:?}", driver.told);
        assert!(driver.relay.rejects.len() == 0 && driver.relay.rejects.in_hand_is_empty());
        assert_eq!((driver.relay.held(), driver.relay.rejects.bytes), (0, 0));
        assert!(!driver.relay.rejects.is_ready(seconds(100)) && driver.relay.rejects.moment().is_none());
    }

    #[test]
    fn a_client_that_waits_for_the_result_of_a_rejected_job_is_told_that_there_is_none() {
        let mut driver = with_prefetch(false, 2);
        reject(&mut driver, b"H:s:1", b"data");
        assert_eq!(handles(driver.next(Pump::Rejecter)), [b"H:s:1"]);
        driver.event(Event::Rejected { taken: vec![true], loss: None });
        assert!(has(&driver.source_output(), kind::WORK_FAIL, b"H:s:1"));
        assert_eq!(driver.relay.held(), 0);
    }

    #[test]
    fn many_rejects_or_large_ones_end_the_asking() {
        let mut driver = with_prefetch(true, 4);
        assert_eq!(driver.relay.ceiling(), 4);
        reject(&mut driver, b"H:s:1", b"data");
        assert_eq!((driver.relay.rejects.is_full(&driver.relay.settings), driver.relay.ceiling()), (false, 5));
        reject(&mut driver, b"H:s:2", b"data");
        assert_eq!((driver.relay.rejects.is_full(&driver.relay.settings), driver.relay.ceiling()), (true, 0));

        let driver = with_prefetch(true, 1);
        assert!(!driver.relay.rejects.is_full(&driver.relay.settings), "one may be rejected");

        let mut driver = with_prefetch(true, 4096);
        reject(&mut driver, b"H:s:1", &vec![0; MAX_BYTES / 2]);
        assert!(!driver.relay.rejects.is_full(&driver.relay.settings));
        reject(&mut driver, b"H:s:2", &vec![0; MAX_BYTES / 2 - 20]);
        assert!(driver.relay.rejects.is_full(&driver.relay.settings));
    }

    #[test]
    fn rejects_are_submitted_so_many_at_a_time() {
        let mut jobs = Jobs::default();
        let mut rejects = Rejects::default();
        for _ in 0..300 {
            let slot = jobs.insert(super::super::Job::of(b"H:s:1", b"", b""), Now::ZERO, None);
            rejects.push(slot, &mut jobs, Reason::Poison);
        }
        assert_eq!(rejects.take(), (0..256).collect::<Vec<_>>());
        assert_eq!((rejects.len(), rejects.queue.len()), (300, 44));
        assert!(!rejects.is_ready(Now::ZERO), "some are in hand");
        assert_eq!(rejects.clear(), (256..300).collect::<Vec<_>>());
        assert_eq!((rejects.len(), rejects.bytes), (256, 0));
    }

    #[test]
    fn what_is_in_hand_when_the_source_is_lost_is_waited_for() {
        for taken in [true, false] {
            let mut driver = with_prefetch(true, 4096);
            reject(&mut driver, b"H:s:1", b"data");
            assert_eq!(handles(driver.next(Pump::Rejecter)), [b"H:s:1"]);
            reject(&mut driver, b"H:s:2", b"data");
            let key = driver.relay.jobs.get(driver.relay.rejects.in_hand[0]).unwrap().job.identity().key;
            let generation = driver.relay.session.generation;
            driver.event(Event::SourceLost { generation, loss: Loss::silent(seconds(1)) });
            assert!(matches!(driver.relay.session.phase, Phase::Settling { .. }));
            assert_eq!(driver.relay.rejects.len(), 1, "the other one goes back");
            driver.event(Event::Rejected { taken: vec![taken], loss: None });
            assert_eq!(driver.relay.session.phase, Phase::Apart);
            assert!(driver.relay.jobs.all().is_empty());
            assert_eq!(driver.relay.ledger.claim(key) == Some(Fate::Delivered), taken);
        }
    }
}
