//! What a submitter does beside staging and writing: it connects the destination, and counts a full queue's jobs.

use super::{LIMITS, Shared, failure};
use crate::gearman::admin;
use crate::gearman::connection::{Connection, ConnectionError};
use crate::relay::{Event, LineId};

#[inline(never)]
pub fn connect(shared: &Shared, line: LineId, destination: usize) -> Event {
    match open(shared, destination) {
        Ok(connection) => {
            shared.lines[line.submitter].set(line.generation, connection);
            Event::Connected(line)
        }
        Err(error) => Event::ConnectFailed(line, failure(&error)),
    }
}

fn open(shared: &Shared, destination: usize) -> Result<Connection, ConnectionError> {
    let mut connection = shared.open_destination(&shared.config.destinations[destination].server)?;
    if !shared.config.asynchronous {
        connection.set_option("exceptions", LIMITS.answer)?;
    }
    connection.wait_forever()?;
    Ok(connection)
}

/// How many jobs the destination's queue holds, waiting or running, as its server counts; none where it doesn't tell.
#[inline(never)]
pub fn count(shared: &Shared, destination: usize) -> Event {
    let status = admin::queue(&shared.config.destinations[destination], &LIMITS, &shared.ended);
    Event::Counted(status.ok().map(|status| status.total))
}
