//! A confirmer: reads what a destination replies, and writes the acknowledgements that follow from it.

use std::net::TcpStream;
use std::sync::Arc;

use super::line::write_source;
use super::{Shared, gather, loss};
use crate::gearman::packet::Incoming;
use crate::relay::{Event, LineId, Pump, Step, read_replies};

/// The connection that is read.
struct Reading {
    line: LineId,
    stream: Arc<TcpStream>,
    incoming: Incoming,
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
                    reading = Some(Reading { line: LineId { submitter: index, generation }, stream, incoming });
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
                // A connection that is not to be read is gone.
                heartbeat.idle(|| shared.wait(pump, None));
            }
        }
        heartbeat.turn();
    }
}

/// Reads once, and takes the whole replies.
fn read(shared: &Shared, reading: &mut Reading, expected: usize) -> Event {
    let line = reading.line;
    gather(expected);
    if let Err(error) = reading.incoming.fill(&mut &*reading.stream) {
        if error.kind() == std::io::ErrorKind::Interrupted {
            return Event::Replies { line, replies: Vec::new() };
        }
        return Event::Lost(line, loss(&error.into()));
    }
    let largest = (!shared.config.asynchronous).then_some(shared.common.max_job_size);
    match read_replies(&mut reading.incoming, largest) {
        Ok(replies) => Event::Replies { line, replies },
        Err(error) => Event::Lost(line, loss(&error.into())),
    }
}
