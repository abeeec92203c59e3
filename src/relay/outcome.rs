//! How a job ends that was taken: acknowledged, failed, or moved to the reject queue.

use super::Relay;
use super::event::{Now, Reason, Tell};
use super::jobs::Held;
use crate::gearman::packet::{kind, put_request};

/// What foreground clients of an asynchronous forward are answered, as the Perl proxy did. Foreground can't be told from
/// background.
const BACKGROUND_ANSWER: &[u8] = b"job submitted as background task";

impl Relay {
    /// Acknowledges a job that the destination has.
    pub(super) fn acknowledge(&mut self, now: Now, held: Held) {
        put_request(&mut self.session.out, kind::WORK_COMPLETE, &[held.job.handle(), BACKGROUND_ANSWER]);
        let before = self.session.owed.requests();
        let number = held.job.handle_number().map_or(0, |(_, number)| number);
        self.session.unproven.push_back((before, held.job.identity().key, number));
        self.session.acknowledged = now;
        self.release(now, held);
    }

    /// The job is no longer held.
    pub(super) fn release(&mut self, now: Now, held: Held) {
        self.session.completions += 1;
        self.session.window.released(1, held.job.size(), now);
    }

    pub(super) fn undeliverable(&mut self, now: Now, slot: u32, reason: Reason) {
        if self.settings.reject_queue {
            self.rejects.push(slot, &mut self.jobs, reason);
            return;
        }
        let Some(held) = self.jobs.remove(slot) else { return };
        let handle = held.job.handle().to_vec();
        put_request(&mut self.session.out, kind::WORK_FAIL, &[&handle]);
        self.tell(Tell::Rejected { handle, reason, moved: false });
        self.release(now, held);
    }

    /// The job is older than `max_age`: dropped, and a client that waits is told.
    pub(super) fn expired(&mut self, now: Now, slot: u32) {
        let Some(held) = self.jobs.remove(slot) else { return };
        self.expired += 1;
        if self.settings.asynchronous {
            self.acknowledge(now, held);
        } else {
            put_request(&mut self.session.out, kind::WORK_FAIL, &[held.job.handle()]);
            self.release(now, held);
        }
    }

    /// The reject queue has a job.
    pub(super) fn moved(&mut self, now: Now, held: Held, reason: Reason) {
        let handle = held.job.handle().to_vec();
        if self.settings.asynchronous {
            self.acknowledge(now, held);
        } else {
            // A client that waits for a result is told that there is none.
            put_request(&mut self.session.out, kind::WORK_FAIL, &[&handle]);
            self.release(now, held);
        }
        self.tell(Tell::Rejected { handle, reason, moved: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::{Event, SourcePacket};

    #[test]
    fn jobs_that_are_too_old_are_dropped_and_clients_that_wait_told() {
        for (asynchronous, kind) in [(true, kind::WORK_COMPLETE), (false, kind::WORK_FAIL)] {
            let mut driver = Driver::new(settings(asynchronous));
            for handle in [b"H:s:1", b"H:s:2"] {
                driver.arrive(handle);
            }
            driver.source_output();
            driver.told.clear();
            for slot in std::mem::take(&mut driver.relay.waiting) {
                driver.relay.expired(driver.now, slot);
            }
            driver.event(Event::Time);
            assert_eq!(driver.told, [Tell::Expired { jobs: 2 }]);
            let output = driver.source_output();
            let mut expected = Vec::new();
            for handle in [b"H:s:1", b"H:s:2"] {
                match kind {
                    kind::WORK_FAIL => put_request(&mut expected, kind, &[handle]),
                    _ => put_request(&mut expected, kind, &[handle, BACKGROUND_ANSWER]),
                }
            }
            assert!(output.starts_with(&expected), "{}", output.escape_ascii());
            assert_eq!(driver.relay.held(), 0);
        }
    }

    #[test]
    fn each_acknowledgement_may_draw_an_error_and_some_more_may_come() {
        let mut driver = Driver::new(settings(true));
        for handle in [b"H:s:1", b"H:s:2"] {
            driver.arrive(handle);
        }
        driver.submit(0);
        driver.create(0, b"");
        driver.create(0, b"");
        driver.now = seconds(1);
        for _ in 0..2 + super::super::STRAYS {
            driver.source_sends(SourcePacket::Error(String::from("JOB_NOT_FOUND")));
        }
        assert!(driver.relay.session.is_on());
        driver.source_sends(SourcePacket::Error(String::from("JOB_NOT_FOUND")));
        assert!(!driver.relay.session.is_on());
    }
}
