//! What a rejecter does: it submits undeliverable jobs as they came to the reject queue, over a connection opened when first
//! needed.

use std::time::Instant;

use super::{LIMITS, Shared, failure};
use crate::gearman::connection::{Connection, ConnectionError};
use crate::gearman::packet::{ProtocolError, error_code, kind, put_request};
use crate::relay::{Event, Job, UniqueId};

#[inline(never)]
pub fn reject(shared: &Shared, open: &mut Option<Connection>, jobs: &[(Job, UniqueId)]) -> Event {
    let mut taken = Vec::with_capacity(jobs.len());
    let lost = deliver(shared, open, jobs, &mut taken).err();
    if lost.as_ref().is_some_and(|error| !matches!(error, ConnectionError::Refused(_))) {
        *open = None;
    }
    Event::Rejected { taken, loss: lost.as_ref().map(failure) }
}

/// Submits all and waits for the replies; `taken` says for each whether the queue has it. Errors are of the first that it
/// has not.
fn deliver(
    shared: &Shared,
    open: &mut Option<Connection>,
    jobs: &[(Job, UniqueId)],
    taken: &mut Vec<bool>,
) -> Result<(), ConnectionError> {
    let Some(address) = &shared.config.reject_queue else { return Ok(()) };
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(shared.open_destination(&address.server)?),
    };
    let mut out = Vec::new();
    let mut unique = Vec::new();
    for (job, id) in jobs {
        // The source's own id may repeat, and merging would drop data.
        id.write(&mut unique, job);
        put_request(&mut out, kind::SUBMIT_JOB_BG, &[address.queue.as_bytes(), &unique, job.data()]);
    }
    connection.send(&out, LIMITS.answer)?;
    let mut refused = None;
    for _ in jobs {
        let packet = connection.next(Instant::now() + LIMITS.answer, 0)?;
        let packet = packet.ok_or(ConnectionError::NoAnswer(LIMITS.answer))?;
        match packet.kind {
            kind::JOB_CREATED => taken.push(true),
            kind::ERROR => {
                taken.push(false);
                refused.get_or_insert(ConnectionError::Refused(error_code(packet.body)));
            }
            other => return Err(ProtocolError::Unexpected(other).into()),
        }
    }
    refused.map_or(Ok(()), Err)
}
