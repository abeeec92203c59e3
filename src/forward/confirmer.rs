//! A confirmer: reads what a destination replies, and writes the acknowledgements that follow from it.

use std::net::TcpStream;
use std::sync::Arc;

use super::line::{stream, write_source};
use super::memory::{self, Buffers, Large, Mover, Share};
use super::{Shared, gather, loss};
use crate::gearman::connection::ConnectionError;
use crate::gearman::packet::Incoming;
use crate::relay::{Event, LineId, Pump, Step, read_replies};

/// The connection that is read.
struct Reading {
    line: LineId,
    stream: Arc<TcpStream>,
    incoming: Incoming,
    buffers: Buffers,
    /// For the large result that is under way, until the source has it.
    share: Option<Arc<Share>>,
}

pub fn run(shared: &Arc<Shared>, index: usize) {
    let heartbeat = shared.heartbeat("confirmer");
    let pump = Pump::Confirmer(index);
    let mut reading: Option<Reading> = None;
    let mut event = None;
    loop {
        match shared.turn(event.take(), pump) {
            Step::Read { generation, expected } => {
                while reading.as_ref().is_none_or(|reading| reading.line.generation != generation) {
                    let Some((_, opened)) = shared.opened.get(index) else { return };
                    // It was sent before the relay was told that it is connected.
                    let Ok((generation, stream, incoming)) = opened.recv() else { return };
                    let line = LineId { submitter: index, generation };
                    let buffers = Buffers::new(&shared.common.memory);
                    reading = Some(Reading { line, stream, incoming, buffers, share: None });
                }
                if let Some(reading) = &mut reading {
                    event = Some(heartbeat.idle(|| read(shared, reading, expected)));
                }
            }
            Step::WriteSource { generation, bytes } => {
                event = Some(heartbeat.idle(|| write_source(shared, generation, bytes)));
            }
            Step::End => break,
            _ => {
                if let Some(reading) = reading.as_mut().filter(|reading| reading.share.is_some())
                    && !is_current(shared, reading)
                {
                    // The rest of it is not needed.
                    (reading.incoming, reading.share) = (Incoming::default(), None);
                }
                heartbeat.idle(|| shared.wait(pump, None));
            }
        }
        heartbeat.turn();
    }
}

fn is_current(shared: &Shared, reading: &Reading) -> bool {
    stream(shared.lines.get(reading.line.submitter), reading.line.generation).is_some()
}

/// Reads once, and takes the whole replies.
fn read(shared: &Shared, reading: &mut Reading, expected: usize) -> Event {
    let line = reading.line;
    gather(expected);
    let needs = reading.incoming.needs();
    if needs <= memory::FREE / shared.config.workers {
        // The source has the last one, or nearly.
        reading.share = None;
    } else if reading.share.is_none() {
        let (pump, bytes) = (Pump::Confirmer(line.submitter), needs.saturating_mul(memory::RESULT_FACTOR));
        let Some(share) = shared.share(Large::Result, bytes, pump, || is_current(shared, reading)) else {
            return Event::Lost(line, loss(&ConnectionError::Closed));
        };
        share.moved(Mover::Destination(line), 0);
        reading.buffers.count(0);
        reading.share = Some(share);
    }
    let before = reading.incoming.unread().len();
    if let Err(error) = reading.incoming.fill(&mut &*reading.stream) {
        if error.kind() == std::io::ErrorKind::Interrupted {
            return Event::Replies { line, replies: Vec::new() };
        }
        return Event::Lost(line, loss(&error.into()));
    }
    match &reading.share {
        Some(share) => share.moved(Mover::Destination(line), reading.incoming.unread().len() - before),
        None => reading.buffers.count(reading.incoming.capacity()),
    }
    let largest = (!shared.config.asynchronous).then_some(shared.common.max_job_size);
    match read_replies(&mut reading.incoming, largest) {
        Ok(replies) => Event::Replies { line, replies },
        Err(error) => Event::Lost(line, loss(&error.into())),
    }
}
