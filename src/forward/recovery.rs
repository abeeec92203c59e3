//! Back to a server that was lost: hold the jobs for a while, then give them back.

use std::time::{Duration, Instant};

use super::destination::Backoff;
use super::{End, Session};
use crate::config::Address;
use crate::gearman::connection::{Connection, ConnectionError};

/// A try to connect is given at least so much time.
const SHORTEST_TRY: Duration = Duration::from_millis(100);

/// The trouble that one thread has with the server it submits to.
pub struct Recovery<'s> {
    session: &'s Session<'s>,
    address: &'s Address,
    /// The first sign of it.
    since: Option<Instant>,
    backoff: Backoff,
    refusal_backoff: Backoff,
}

impl<'s> Recovery<'s> {
    /// No trouble yet with the server of `address`.
    pub fn new(session: &'s Session<'s>, address: &'s Address) -> Recovery<'s> {
        let timing = &session.life.settings.timing;
        Recovery {
            session,
            address,
            since: None,
            backoff: Backoff::new(timing.backoff, timing.longest_backoff),
            refusal_backoff: Backoff::new(timing.backoff, timing.longest_refusal_backoff),
        }
    }

    /// The server has taken a job: the next trouble is another one.
    pub fn worked(&mut self) {
        self.since = None;
        self.backoff.reset();
        self.refusal_backoff.reset();
    }

    /// Waits after an error. `false` when nothing is to be tried any more: the session is over, or the trouble has lasted
    /// so long that this ends it.
    pub fn pause(&mut self, error: ConnectionError) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.pause_since(error, since)
    }

    /// The same for a trouble with its first sign at `since`.
    pub fn pause_since(&mut self, error: ConnectionError, since: Instant) -> bool {
        let server = &self.address.server;
        let left = self.left(since);
        if left.is_zero() {
            self.session.troubled(server, &error, "giving the jobs back");
            self.session.end(End::Lost { server: server.clone(), error });
            return false;
        }
        let backoff = match error {
            ConnectionError::Refused(_) => &mut self.refusal_backoff,
            _ => &mut self.backoff,
        };
        let wait = backoff.next().min(left);
        let next = format!(
            "holding {} jobs for {:.0} s more, trying again in {:.1} s",
            self.session.life.metrics.held(),
            left.as_secs_f32(),
            wait.as_secs_f32()
        );
        self.session.troubled(server, &error, &next);
        self.session.wait(wait)
    }

    /// How long the jobs are still held in a trouble since then.
    fn left(&self, since: Instant) -> Duration {
        self.session.life.settings.timing.release.saturating_sub(since.elapsed())
    }

    /// How long a try to connect may take: a server that accepts and hangs must not keep the jobs from going back in time.
    pub fn time_to_connect(&self) -> Duration {
        self.since.map_or(Duration::MAX, |since| self.left(since)).max(SHORTEST_TRY)
    }

    /// Tries to connect, each time within what `connect` is given, until it works; `None` when nothing is to be tried any
    /// more. While jobs are held, only a job that is taken ends the trouble.
    pub fn reconnect(
        &mut self,
        mut error: ConnectionError,
        holds: bool,
        connect: impl Fn(Duration) -> Result<Connection, ConnectionError>,
    ) -> Option<Connection> {
        while self.pause(error) {
            match connect(self.time_to_connect()) {
                Ok(connection) => {
                    if !holds {
                        self.worked();
                        self.session.life.recovered(&self.address.server);
                    }
                    return Some(connection);
                }
                Err(another) => error = another,
            }
        }
        None
    }
}
