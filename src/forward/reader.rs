//! What a reader does: it connects the source and reads its jobs.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use super::line::{Reading, gather};
use super::memory::{self, Mover};
use super::{LIMITS, Shared, failure, loss};
use crate::gearman::connection::{Connection, ConnectionError};
use crate::relay::{Cause, Event, Home, Intake, Loss, Origin, Pump, telling};

/// Connects the source, and asks what tells its process from another, and whether this forward closes a loop.
#[inline(never)]
pub fn connect(shared: &Shared, generation: u32, source: &mut Option<Reading<Intake>>) -> Event {
    *source = None;
    match open(shared) {
        Ok((mut connection, process_id)) => {
            // Others are asked only where it tells nothing: that may take a second.
            let same = telling(process_id).is_none() && shared.is_same_process();
            let config = &shared.config.source;
            let origin = Origin::new(&config.server.to_string(), process_id, &config.queue);
            let memory = &shared.common.memory;
            let home: Arc<dyn Home> = Arc::clone(memory) as Arc<dyn Home>;
            let unread = std::mem::take(&mut connection.incoming);
            let intake = Intake::new(unread.unread(), shared.common.max_job_size, origin, Some(home));
            let stream = shared.source.set(generation, connection);
            *source = Some(Reading::new(generation, stream, intake, memory));
            Event::SourceConnected { generation, process_id, same }
        }
        Err(loss) => Event::SourceFailed { generation, loss },
    }
}

fn open(shared: &Shared) -> Result<(Connection, Option<u32>), Loss> {
    let failed = |error| failure(&error);
    let open = || shared.open(&shared.config.source.server, &shared.client_id()).map_err(failed);
    let mut connection = open()?;
    let mut process_id = connection.process_id(LIMITS.answer);
    // Once may be an accident, and without a process id jobs may come twice; but some servers close a connection that asks.
    for last in [false, true] {
        if matches!(process_id, Err(ConnectionError::Closed | ConnectionError::Io(_))) {
            connection = open()?;
            process_id = if last { Ok(None) } else { connection.process_id(LIMITS.answer) };
        }
    }
    let process_id = process_id.map_err(failed)?;
    connection.wait_forever().map_err(failed)?;
    shared.check_for_loops().map_err(|text| {
        let advice = Some("change the configuration so that no queue leads back to itself");
        let cause = Cause { kind: "forwarding loop", text, advice };
        Loss { closed: false, nonsense: true, oversized: false, cause }
    })?;
    Ok((connection, process_id))
}

/// Reads once, and takes the whole packets. None where it is known already that this connection is gone.
#[inline(never)]
pub fn read(shared: &Shared, source: &mut Option<Reading<Intake>>, generation: u32, expected: usize) -> Option<Event> {
    let event = read_once(shared, source.as_mut().filter(|source| source.generation == generation)?, expected);
    let lost = |loss| {
        *source = None;
        Event::SourceLost { generation, loss }
    };
    Some(event.unwrap_or_else(lost))
}

fn read_once(shared: &Shared, source: &mut Reading<Intake>, expected: usize) -> Result<Event, Loss> {
    let generation = source.generation;
    let intake = &mut source.incoming;
    if !intake.was_full() {
        gather(expected);
    }
    if expected == 0 {
        intake.rest();
    }
    let needs = intake.needs();
    if needs > memory::FREE && source.share.is_none() {
        let bytes = memory::with_stages(&shared.config, needs);
        let share = source.reserve(shared, Pump::Reader, bytes).map_err(|gone| loss(&gone))?;
        source.incoming.set_home(share);
        // The time that it took is not the source's fault.
        return Ok(Event::SourcePackets { generation, packets: Vec::new() });
    }
    let memory = &shared.common.memory;
    let count = match (&*source.stream).read(intake.room(memory.read_size())) {
        Ok(0) => Err(ConnectionError::Closed),
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error.into()),
        read => Ok(read.unwrap_or(0)),
    };
    let count = count.map_err(|error| loss(&error))?;
    intake.advance(count);
    let taken = intake.take(|| memory.spare_buffer());
    match &source.share {
        Some(share) if intake.needs() > memory::FREE => share.moved(Mover::Source(generation), count),
        _ => {
            if let Some(share) = source.share.take() {
                // From now on it waits here.
                share.moved(Mover::Nobody, 0);
                intake.set_home(Arc::clone(memory) as Arc<dyn Home>);
            }
            source.buffers.set(intake.capacity());
        }
    }
    match taken {
        Ok(packets) => Ok(Event::SourcePackets { generation, packets }),
        Err(error) => Err(Loss { oversized: false, ..loss(&error.into()) }),
    }
}
