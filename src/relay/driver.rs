//! Drives a relay for unit tests: steps are taken as pumps take them, and succeed at once.

use std::time::Duration;

use super::*;
use crate::gearman::packet::kind;

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A forward of two submitters with defaults for the rest.
pub fn settings(asynchronous: bool) -> Settings {
    Settings {
        asynchronous,
        queue: b"queue".to_vec(),
        workers: 2,
        prefetch: if asynchronous { 4096 } else { 2 },
        prefetch_is_explicit: false,
        byte_limit: 8 << 20,
        timeout: None,
        destinations: 1,
        reject_queue: false,
        random: 7,
        timing: Timing::default(),
    }
}

pub struct Driver {
    pub relay: Relay,
    pub now: Now,
    pub told: Vec<Tell>,
    pub closed: Vec<LineId>,
    /// Pumps that were woken.
    pub woken: Vec<Pump>,
    source: Vec<u8>,
    /// Requests that the source has not answered.
    owed: Vec<u32>,
}

impl Driver {
    /// A forward whose connections are all up.
    pub fn new(settings: Settings) -> Driver {
        let workers = settings.workers;
        let relay = Relay::new(settings, Legacy::default());
        let mut driver = Driver {
            relay,
            now: Now::ZERO,
            told: Vec::new(),
            closed: Vec::new(),
            woken: Vec::new(),
            source: Vec::new(),
            owed: Vec::new(),
        };
        for submitter in 0..workers {
            let Step::Connect { line, .. } = driver.next(Pump::Submitter(submitter)) else {
                panic!("does not connect")
            };
            driver.event(Event::Connected(line));
        }
        let Step::ConnectSource { generation } = driver.next(Pump::Reader) else { panic!("does not connect") };
        driver.event(Event::SourceConnected { generation, process_id: Some(4711), same: false });
        driver.read_all();
        driver
    }

    /// As the reading threads do while nothing comes.
    fn read_all(&mut self) {
        self.next(Pump::Rejecter);
        self.source.clear();
        for submitter in 0..self.relay.lines.len() {
            self.next(Pump::Confirmer(submitter));
        }
    }

    pub fn event(&mut self, event: Event) {
        self.relay.event(self.now, event);
        let actions = self.relay.actions();
        self.told.extend(actions.tell);
        self.closed.extend(actions.close);
        self.woken.extend(actions.wake);
    }

    /// Lets time pass until then, stepping as often as the relay asks for.
    pub fn until(&mut self, then: Now) {
        self.answer();
        while self.relay.due() <= then {
            self.now = self.relay.due().max(self.now + Duration::from_millis(1));
            self.event(Event::Time);
            self.answer();
        }
        self.now = then.max(self.now);
        self.event(Event::Time);
        self.answer();
    }

    /// What a pump is to do, but for writes to the source, which any may be given.
    pub fn next(&mut self, pump: Pump) -> Step {
        loop {
            let step = self.relay.next(self.now, pump);
            self.relay.actions();
            let Step::WriteSource { generation, bytes } = step else { return step };
            let kinds = bytes.windows(8).filter(|window| window.starts_with(b"\0REQ\0\0\0"));
            self.owed.extend(kinds.map(|window| u32::from(window[7])));
            self.owed.retain(|&kind| kind == kind::GRAB_JOB_UNIQ || kind == kind::ECHO_REQ);
            self.source.extend(bytes);
            self.event(Event::SourceWritten { generation, buffer: Vec::new(), failed: false });
        }
    }

    /// What the source was written since this was asked last.
    pub fn source_output(&mut self) -> Vec<u8> {
        // The rejecter has nothing else to do.
        self.next(Pump::Rejecter);
        std::mem::take(&mut self.source)
    }

    pub fn source_sends(&mut self, packet: SourcePacket) {
        let generation = self.relay.session.generation;
        self.event(Event::SourcePackets { generation, packets: vec![packet] });
        self.next(Pump::Rejecter);
    }

    /// The source answers all that it was asked: it has no job.
    pub fn answer(&mut self) {
        self.next(Pump::Rejecter);
        while !self.owed.is_empty() {
            self.answer_one();
        }
    }

    /// The source answers the oldest request.
    pub fn answer_one(&mut self) {
        let packet = match self.owed.remove(0) {
            kind::ECHO_REQ => SourcePacket::Echo,
            _ => SourcePacket::NoJob,
        };
        self.source_sends(packet);
    }

    /// A job comes from the source.
    pub fn arrive(&mut self, handle: &[u8]) {
        self.arrive_with(handle, b"data");
    }

    pub fn arrive_with(&mut self, handle: &[u8], data: &[u8]) {
        if self.owed.is_empty() {
            self.source_sends(SourcePacket::Noop);
        }
        assert_eq!(self.owed.remove(0), kind::GRAB_JOB_UNIQ);
        self.source_sends(SourcePacket::Jobs(Job::of(handle, b"", data).alone()));
    }

    /// Time passes, and the source answers nothing.
    pub fn wait_until(&mut self, then: Now) {
        self.now = then;
        self.event(Event::Time);
    }

    pub fn lose_source(&mut self, loss: Loss) {
        let generation = self.relay.session.generation;
        self.event(Event::SourceLost { generation, loss });
    }

    /// What the source was asked and has not answered.
    pub fn owed(&self) -> &[u32] {
        &self.owed
    }

    /// The source is connected again.
    pub fn connect_source(&mut self) {
        self.owed.clear();
        let Step::ConnectSource { generation } = self.next(Pump::Reader) else { panic!("does not connect") };
        self.event(Event::SourceConnected { generation, process_id: Some(4711), same: false });
        self.read_all();
    }

    /// A submitter is connected again; to which destination.
    pub fn connect(&mut self, submitter: usize) -> usize {
        let Step::Connect { line, destination } = self.next(Pump::Submitter(submitter)) else {
            panic!("does not connect")
        };
        self.event(Event::Connected(line));
        self.next(Pump::Confirmer(submitter));
        destination
    }

    /// A submitter's next try to connect fails; to which destination.
    pub fn fail_to_connect(&mut self, submitter: usize) -> usize {
        let Step::Connect { line, destination } = self.next(Pump::Submitter(submitter)) else {
            panic!("does not connect")
        };
        self.event(Event::ConnectFailed(line, Loss::silent(seconds(1))));
        destination
    }

    /// A destination connection breaks; `closed` where the destination closed it.
    pub fn lose(&mut self, submitter: usize, closed: bool) {
        let line = self.relay.line_id(submitter);
        self.event(Event::Lost(line, Loss { closed, ..Loss::silent(seconds(1)) }));
    }

    /// A submitter takes what it may, and submits it. Returns the handles at the source.
    pub fn submit(&mut self, submitter: usize) -> Vec<Vec<u8>> {
        let Step::Stage(batch) = self.next(Pump::Submitter(submitter)) else { return Vec::new() };
        let (mut chunk, mut outcomes, mut handles) = (Chunk::default(), Vec::new(), Vec::new());
        for (job, _) in batch.jobs {
            handles.push(job.handle().to_vec());
            let data = job.data().len() as u32;
            let packet = chunk.submit(kind::SUBMIT_JOB, b"queue", b"id", Payload::Unchanged(job)).unwrap();
            outcomes.push(Staged::Submitted { data, packet });
        }
        self.event(Event::Staged { line: batch.line, number: batch.number, outcomes, chunk });
        assert!(!self.written(submitter).is_empty());
        self.next(Pump::Confirmer(submitter));
        handles
    }

    /// What a destination is written.
    pub fn written(&mut self, submitter: usize) -> Vec<u8> {
        let mut output = Vec::new();
        while let Step::Write(line, chunk) = self.next(Pump::Submitter(submitter)) {
            output.extend(chunk.slices(usize::MAX).iter().flat_map(|slice| slice.to_vec()));
            self.event(Event::Written { line, rest: None, failed: false });
        }
        output
    }

    pub fn reply(&mut self, submitter: usize, reply: Reply) {
        let line = self.relay.line_id(submitter);
        self.event(Event::Replies { line, replies: vec![reply] });
        self.next(Pump::Confirmer(submitter));
    }

    /// The destination takes the job that was submitted first, under this handle.
    pub fn create(&mut self, submitter: usize, handle: &[u8]) {
        let reply = match self.relay.settings.asynchronous {
            true => Reply::Taken(1),
            false => Reply::Created(handle.to_vec()),
        };
        self.reply(submitter, reply);
    }
}
