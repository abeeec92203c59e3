//! A synchronous job on a destination connection: submitted in the foreground, its result back to the source.

use super::Relay;
use super::event::{Loss, Now, Reason, Tell};
use super::line::{Line, TRIES};
use crate::gearman::packet::{kind, put_header, put_request};

/// The job that is on a line. One at a time.
#[derive(Debug)]
pub struct Exchange {
    pub slot: u32,
    /// Its handle at the destination, once that has taken it.
    handle: Option<Vec<u8>>,
    /// Bytes of the data that it was submitted with.
    sent: u32,
    probe_at: Now,
}

impl Exchange {
    pub fn new(slot: u32, sent: u32) -> Exchange {
        Exchange { slot, handle: None, sent, probe_at: Now::MAX }
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
        let Some(Exchange { slot, handle: Some(expected), sent, .. }) = &line.exchange else { return false };
        if expected != handle {
            return false;
        }
        let (slot, sent) = (*slot, *sent);
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
            if let Some(full) = &mut self.outage.full {
                // While it ran the destination was no outage: what waits for room has its time from now on.
                full.since = now;
            }
            if let Some(held) = self.jobs.remove(slot) {
                self.delivered(now, &held, sent);
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
            if !self.may_time_out(slot) || self.jobs.get(slot).is_none_or(|held| held.arrived + timeout > now) {
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
        let slots = self.jobs.all().into_iter().filter(|&slot| self.may_time_out(slot));
        let arrived = slots.filter_map(|slot| self.jobs.get(slot)).map(|held| held.arrived);
        arrived.min().map_or(Now::MAX, |arrived| arrived + timeout)
    }

    /// Whether a job can be failed at its timeout: one that is being staged is failed only afterwards, and nobody has to
    /// look at it before.
    fn may_time_out(&self, slot: u32) -> bool {
        let staged = |line: &Line| line.staging.as_ref().is_some_and(|(_, jobs)| jobs.contains(&slot));
        self.jobs.get(slot).is_some_and(|held| !held.gone && held.reason.is_none()) && !self.lines.iter().any(staged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::driver::{Driver, seconds, settings};
    use crate::relay::{Chunk, Event, Pump, Reply, Settings, Staged, Step};

    fn with_timeout(timeout: u64) -> Driver {
        Driver::new(Settings { timeout: Some(seconds(timeout)), ..settings(false) })
    }

    fn request(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_request(&mut bytes, kind, arguments);
        bytes
    }

    fn has(output: &[u8], packet: &[u8]) -> bool {
        output.windows(packet.len()).any(|window| window == packet)
    }

    fn timeouts(driver: &Driver) -> Vec<&[u8]> {
        let handle = |tell| match tell {
            &Tell::Failed { ref handle, reason: Reason::Timeout } => Some(&handle[..]),
            _ => None,
        };
        driver.told.iter().filter_map(handle).collect()
    }

    #[test]
    fn a_destination_that_runs_a_job_is_asked_every_ten_seconds_whether_it_is_there() {
        let mut driver = Driver::new(settings(false));
        let echo = request(kind::ECHO_REQ, &[b"?"]);
        driver.arrive(b"H:s:1");
        assert_eq!(driver.submit(0), [b"H:s:1"]);
        driver.until(seconds(9));
        assert_eq!(driver.written(0), b"", "it has not taken the job yet");
        driver.create(0, b"H:d:1");
        driver.until(seconds(18));
        assert_eq!(driver.written(0), b"");
        for now in [19, 29, 39] {
            driver.until(seconds(now));
            assert_eq!((driver.written(0), driver.written(1)), (echo.clone(), Vec::new()));
            driver.reply(0, Reply::Echo);
        }
        driver.until(seconds(49));
        assert_eq!(driver.written(0), echo);
        driver.until(seconds(63));
        assert!(driver.closed.is_empty());
        driver.until(seconds(64));
        assert_eq!(driver.closed.len(), 1, "an echo is owed for 15 s");
    }

    #[test]
    fn a_result_goes_to_the_source_under_its_own_handle() {
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:source:1");
        driver.submit(0);
        let work = |kind, handle: &[u8]| Reply::Work { kind, handle: handle.to_vec(), rest: b"\0part".to_vec() };
        driver.reply(0, work(kind::WORK_DATA, b"H:d:1"));
        driver.create(0, b"H:d:1");
        driver.reply(0, work(kind::WORK_DATA, b"H:d:2"));
        let early = driver.source_output();
        assert!(!has(&early, b"part"), "before the destination had taken it, and another job's");
        driver.reply(0, work(kind::WORK_DATA, b"H:d:1"));
        assert!(has(&driver.source_output(), &request(kind::WORK_DATA, &[b"H:source:1", b"part"])));
        assert_eq!(driver.relay.held(), 1);
        driver.reply(0, work(kind::WORK_COMPLETE, b"H:d:1"));
        assert!(has(&driver.source_output(), &request(kind::WORK_COMPLETE, &[b"H:source:1", b"part"])));
        assert_eq!(driver.relay.held(), 0);
    }

    #[test]
    fn a_job_whose_time_is_up_is_failed_wherever_it_is() {
        let mut driver = with_timeout(40);
        driver.now = seconds(5);
        driver.arrive(b"H:s:1");
        driver.submit(0);
        driver.create(0, b"H:d:1");
        driver.until(seconds(6));
        driver.arrive(b"H:s:2");
        driver.written(0);
        driver.reply(0, Reply::Echo);
        for now in (10..45).step_by(5) {
            driver.until(seconds(now));
            driver.written(0);
            driver.reply(0, Reply::Echo);
        }
        driver.until(seconds(44));
        assert!(timeouts(&driver).is_empty() && driver.closed.is_empty());
        assert_eq!(driver.relay.due(), seconds(45));
        driver.until(seconds(45));
        assert_eq!(timeouts(&driver), [b"H:s:1"]);
        assert_eq!(
            driver.closed.len(),
            1,
            "a copy that is still queued is skipped when its client's connection closes"
        );
        assert!(has(&driver.source_output(), &request(kind::WORK_FAIL, &[b"H:s:1"])));
        driver.until(seconds(46));
        assert_eq!(timeouts(&driver), [&b"H:s:1"[..], b"H:s:2"]);
        assert_eq!((driver.closed.len(), driver.relay.held()), (1, 0));
        assert!(driver.submit(1).is_empty(), "it is not submitted any more");
        assert_eq!(driver.relay.timeouts_due(), Now::MAX);
    }

    #[test]
    fn a_job_that_is_being_staged_is_failed_afterwards_and_one_for_the_reject_queue_is_not() {
        let mut driver = with_timeout(40);
        driver.arrive(b"H:s:1");
        let Step::Stage(batch) = driver.next(Pump::Submitter(0)) else { panic!() };
        driver.until(seconds(41));
        assert!(timeouts(&driver).is_empty() && driver.relay.due() > seconds(41));
        let outcomes = vec![Staged::Interrupted];
        let chunk = Chunk::default();
        driver.event(Event::Staged { line: batch.line, number: batch.number, outcomes, chunk });
        driver.event(Event::Time);
        assert_eq!(timeouts(&driver), [b"H:s:1"]);

        let settings = Settings { timeout: Some(seconds(40)), reject_queue: true, ..settings(false) };
        let mut driver = Driver::new(settings);
        driver.arrive(b"H:s:1");
        let slot = driver.relay.waiting.pop_front().unwrap();
        driver.relay.undeliverable(driver.now, slot, Reason::Poison);
        assert_eq!(driver.relay.timeouts_due(), Now::MAX);
        driver.until(seconds(50));
        assert!(timeouts(&driver).is_empty());
    }

    #[test]
    fn without_a_timeout_a_job_may_run_for_ever() {
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:s:1");
        assert_eq!(driver.relay.timeouts_due(), Now::MAX);
    }

    #[test]
    fn only_the_job_whose_time_is_up_is_failed() {
        let mut driver = with_timeout(40);
        driver.arrive(b"H:s:1");
        driver.now = seconds(1);
        driver.arrive(b"H:s:2");
        driver.now = seconds(40);
        driver.event(Event::Time);
        assert_eq!(timeouts(&driver), [b"H:s:1"]);
        assert_eq!(driver.submit(0), [b"H:s:2"], "it waits as before");
    }

    #[test]
    fn a_job_is_failed_when_its_third_connection_broke_or_its_result_was_too_large() {
        let failed = |driver: &Driver| driver.told.iter().any(|tell| matches!(tell, Tell::Failed { .. }));
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:s:1");
        for last in [false, false, true] {
            assert_eq!(driver.submit(0), [b"H:s:1"]);
            driver.create(0, b"H:d:1");
            driver.lose(0, true);
            assert_eq!(failed(&driver), last);
            driver.until(driver.now + seconds(15));
            driver.connect(0);
        }
        assert!(has(&driver.source_output(), &request(kind::WORK_FAIL, &[b"H:s:1"])));

        driver.told.clear();
        driver.arrive(b"H:s:2");
        driver.submit(0);
        let line = driver.relay.line_id(0);
        driver.event(Event::Lost(line, Loss { oversized: true, ..Loss::silent(seconds(1)) }));
        assert!(failed(&driver), "another try would bring the same");
    }

    #[test]
    fn a_destination_that_has_not_taken_the_job_does_not_run_it() {
        let mut driver = Driver::new(settings(false));
        driver.arrive(b"H:s:1");
        driver.submit(0);
        assert!(!driver.relay.lines[0].is_running());
        driver.create(0, b"H:d:1");
        assert!(driver.relay.lines[0].is_running());
        driver.answer();
        assert_eq!(driver.relay.due(), seconds(10), "then it is asked whether it is there");
    }
}
