//! A submitter: connects the destination, runs stages, writes submissions.

use std::sync::Arc;

use super::line::{stage, write, write_source};
use super::{LIMITS, Shared, loss};
use crate::gearman::connection::{Connection, ConnectionError};
use crate::relay::{Event, LineId, Loss, Pump, Step};
use crate::stages::Scratch;

pub fn run(shared: &Arc<Shared>, index: usize) {
    let heartbeat = shared.heartbeat("submitter");
    let pump = Pump::Submitter(index);
    let mut scratch = Scratch::default();
    let mut event = None;
    loop {
        match shared.turn(event.take(), pump) {
            Step::Connect { line, destination } => {
                event = Some(heartbeat.idle(|| connect(shared, line, destination)));
            }
            Step::Stage(batch) => event = Some(stage(shared, pump, &heartbeat, &mut scratch, batch)),
            Step::Write(line, chunk) => event = Some(heartbeat.idle(|| write(shared, line, chunk))),
            Step::WriteSource { generation, bytes } => {
                event = Some(heartbeat.idle(|| write_source(shared, generation, bytes)));
            }
            Step::Count { destination } => event = Some(heartbeat.idle(|| count(shared, destination))),
            Step::End => break,
            _ => {
                heartbeat.idle(|| shared.wait(pump, None));
            }
        }
        heartbeat.turn();
    }
}

fn connect(shared: &Shared, line: LineId, destination: usize) -> Event {
    match open(shared, destination) {
        Ok(Connection { stream, incoming, .. }) => {
            let stream = Arc::new(stream);
            if let (Some(place), Some((opened, unread))) =
                (shared.lines.get(line.submitter), shared.opened.get(line.submitter))
            {
                *place.lock() = Some((line.generation, Arc::clone(&stream)));
                // One that the confirmer did not come to read is gone.
                while unread.try_recv().is_ok() {}
                let _ = opened.try_send((line.generation, stream, incoming));
            }
            Event::Connected(line)
        }
        Err(error) => Event::ConnectFailed(line, Loss { closed: false, ..loss(&error) }),
    }
}

fn open(shared: &Shared, destination: usize) -> Result<Connection, ConnectionError> {
    let Some(address) = shared.config.destinations.get(destination) else { return Err(ConnectionError::Closed) };
    let client_id = format!("gearman-proxy:{}", shared.config.source.queue);
    let mut connection = shared.open(&address.server, &client_id)?;
    if !shared.config.asynchronous {
        connection.set_option("exceptions", LIMITS.answer)?;
    }
    connection.stream.set_read_timeout(None)?;
    connection.stream.set_write_timeout(None)?;
    Ok(connection)
}

/// How many jobs the destination's queue holds.
fn count(shared: &Shared, destination: usize) -> Event {
    let Some(address) = shared.config.destinations.get(destination) else { return Event::Counted(None) };
    Event::Counted(shared.queue_total(address))
}
