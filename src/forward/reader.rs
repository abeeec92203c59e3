//! The reader: reads the source, and submits a small batch by itself while the submitter waits.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;

use super::line::{stage, stream, write_source, write_without_blocking};
use super::memory::{self, Buffers, Large, Mover, Share};
use super::{Shared, cause, gather, loss};
use crate::gearman::connection::{Connection, ConnectionError};
use crate::relay::{Event, Home, Intake, Loss, Origin, Pump, Step};
use crate::stages::Scratch;

/// The source's connection as its reader sees it.
struct Source {
    generation: u32,
    stream: Arc<TcpStream>,
    intake: Intake,
    buffers: Buffers,
    /// For the large job that is under way.
    share: Option<Arc<Share>>,
}

pub fn run(shared: &Arc<Shared>) {
    let heartbeat = shared.heartbeat("reader");
    let mut source: Option<Source> = None;
    let mut scratch = Scratch::default();
    let mut event = None;
    loop {
        match shared.turn(event.take(), Pump::Reader) {
            Step::ConnectSource { generation } => {
                source = None;
                event = Some(heartbeat.idle(|| connect(shared, generation, &mut source)));
            }
            Step::Read { generation, expected } => {
                match source.as_mut().filter(|source| source.generation == generation) {
                    Some(open) => event = Some(heartbeat.idle(|| read(shared, open, expected))),
                    // It is known already that this connection is gone.
                    None => heartbeat.idle(|| shared.wait(Pump::Reader, None)),
                }
                if matches!(event, Some(Event::SourceLost { .. })) {
                    source = None;
                }
            }
            Step::Stage(batch) => event = Some(stage(shared, Pump::Reader, &heartbeat, &mut scratch, batch)),
            Step::Write(line, chunk) => event = Some(write_without_blocking(shared, line, chunk)),
            Step::WriteSource { generation, bytes } => {
                event = Some(heartbeat.idle(|| write_source(shared, generation, bytes)));
            }
            Step::Pause(limit) => heartbeat.idle(|| shared.wait(Pump::Reader, Some(limit))),
            Step::End => break,
            _ => {
                // Of one that others have ended nothing is kept.
                source = source.filter(|source| is_current(shared, source));
                heartbeat.idle(|| shared.wait(Pump::Reader, None));
            }
        }
        heartbeat.turn();
    }
}

/// Connects the source, and asks what tells its process from another, and whether this forward closes a loop.
fn connect(shared: &Arc<Shared>, generation: u32, source: &mut Option<Source>) -> Event {
    match open(shared) {
        Ok((connection, process_id)) => {
            let Connection { stream, incoming, .. } = connection;
            let same = shared.common.witnesses.is_same(shared);
            let origin = Origin::new(&shared.config.source.server.to_string(), process_id, &shared.config.source.queue);
            let memory = &shared.common.memory;
            let home: Arc<dyn Home> = Arc::clone(memory) as Arc<dyn Home>;
            let intake = Intake::new(incoming.unread(), shared.common.max_job_size, origin, Some(home));
            let buffers = Buffers::new(memory);
            let stream = Arc::new(stream);
            *shared.source.lock() = Some((generation, Arc::clone(&stream)));
            shared.common.witnesses.connected(shared);
            *source = Some(Source { generation, stream, intake, buffers, share: None });
            Event::SourceConnected { generation, process_id, same }
        }
        Err(loss) => Event::SourceFailed { generation, loss },
    }
}

fn open(shared: &Shared) -> Result<(Connection, Option<u32>), Loss> {
    let failed = |error: ConnectionError| Loss { closed: false, ..loss(&error) };
    let server = &shared.config.source.server;
    let client_id = shared.common.loops.client_id(shared.number, &shared.config.source.queue);
    let open = || shared.open(server, &client_id);
    let mut connection = open().map_err(failed)?;
    let mut process_id = connection.process_id(super::LIMITS.answer);
    let closed = |answer: &Result<_, _>| matches!(answer, Err(ConnectionError::Closed | ConnectionError::Io(_)));
    if closed(&process_id) {
        // Once may be an accident; and without a process id jobs may come twice.
        connection = open().map_err(failed)?;
        process_id = connection.process_id(super::LIMITS.answer);
    }
    if closed(&process_id) {
        // Some servers close a connection that asks for it.
        connection = open().map_err(failed)?;
        process_id = Ok(None);
    }
    let process_id = process_id.map_err(failed)?;
    connection.stream.set_read_timeout(None).map_err(|error| failed(error.into()))?;
    connection.stream.set_write_timeout(None).map_err(|error| failed(error.into()))?;
    shared.common.loops.check(shared).map_err(|text| {
        let advice = Some("change the configuration so that no queue leads back to itself");
        let cause = crate::relay::Cause { kind: "forwarding loop", text, advice };
        Loss { closed: false, nonsense: true, oversized: false, cause }
    })?;
    Ok((connection, process_id))
}

fn is_current(shared: &Shared, source: &Source) -> bool {
    stream(Some(&shared.source), source.generation).is_some()
}

/// Reads once, and takes the whole packets.
fn read(shared: &Shared, source: &mut Source, expected: usize) -> Event {
    let generation = source.generation;
    let lost = |error: ConnectionError| Event::SourceLost { generation, loss: loss(&error) };
    if !source.intake.was_full() {
        gather(expected);
    }
    if expected == 0 {
        source.intake.rest();
    }
    let needs = source.intake.needs();
    if needs > memory::FREE && source.share.is_none() {
        let bytes = memory::with_stages(&shared.config, needs);
        let Some(share) = shared.share(Large::Job, bytes, Pump::Reader, || is_current(shared, source)) else {
            return lost(ConnectionError::Closed);
        };
        source.intake.set_home(Arc::clone(&share) as Arc<dyn Home>);
        share.moved(Mover::Source(generation), 0);
        source.buffers.count(0);
        source.share = Some(share);
        // The time that it took is not the source's fault.
        return Event::SourcePackets { generation, packets: Vec::new() };
    }
    let memory = &shared.common.memory;
    let mut stream = &*source.stream;
    let count = match stream.read(source.intake.room(memory.read_size())) {
        Ok(0) => return lost(ConnectionError::Closed),
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::Interrupted => 0,
        Err(error) => return lost(error.into()),
    };
    source.intake.advance(count);
    shared.witness.heard();
    let taken = source.intake.take(|| memory.spare_buffer());
    match &source.share {
        Some(share) if source.intake.needs() > memory::FREE => {
            share.moved(Mover::Source(generation), count);
        }
        _ => {
            if let Some(share) = source.share.take() {
                // From now on it waits here.
                share.moved(Mover::Nobody, 0);
                source.intake.set_home(Arc::clone(memory) as Arc<dyn Home>);
            }
            source.buffers.count(source.intake.capacity());
            source.buffers.set_busy(source.intake.was_full());
        }
    }
    match taken {
        Ok(packets) => Event::SourcePackets { generation, packets },
        Err(error) => Event::SourceLost {
            generation,
            loss: Loss { closed: false, nonsense: true, oversized: false, cause: cause(&error.into()) },
        },
    }
}
