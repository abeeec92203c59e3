//! What a confirmer does: it reads the replies of a destination.

use std::io::ErrorKind;

use super::line::{Reading, gather};
use super::memory::{self, Mover};
use super::{Shared, loss};
use crate::gearman::packet::Incoming;
use crate::relay::{Event, LineId, Pump, read_replies};

/// Reads once, and takes the whole replies. None where it is known already that this connection is gone.
#[inline(never)]
pub fn read(shared: &Shared, open: &mut Option<Reading<Incoming>>, line: LineId, expected: usize) -> Option<Event> {
    if open.as_ref().is_none_or(|open| open.generation != line.generation) {
        *open = shared.lines[line.submitter].reading(line.generation, &shared.common.memory);
    }
    let reading = open.as_mut()?;
    gather(expected);
    let needs = reading.incoming.needs();
    if needs <= memory::FREE / shared.config.workers {
        // The source has the last one, or nearly.
        reading.share = None;
    } else if reading.share.is_none() {
        let bytes = needs.saturating_mul(memory::RESULT_FACTOR);
        if let Err(gone) = reading.reserve(shared, Pump::Confirmer(line.submitter), bytes) {
            return Some(Event::Lost(line, loss(&gone)));
        }
    }
    let before = reading.incoming.unread().len();
    match reading.incoming.fill(&mut &*reading.stream) {
        Err(error) if error.kind() != ErrorKind::Interrupted => {
            return Some(Event::Lost(line, loss(&error.into())));
        }
        _ => {}
    }
    match &reading.share {
        Some(share) => share.moved(Mover::Destination(line), reading.incoming.unread().len() - before),
        None => reading.buffers.set(reading.incoming.capacity()),
    }
    let largest = (!shared.config.asynchronous).then_some(shared.common.max_job_size);
    Some(match read_replies(&mut reading.incoming, largest) {
        Ok(replies) => Event::Replies { line, replies },
        Err(error) => Event::Lost(line, loss(&error.into())),
    })
}
