//! Virtual time: it stands still while anybody acts, and jumps to what happens next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds since the beginning of a schedule.
pub type Micros = u64;

pub const MILLISECOND: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;

/// What happens at a certain time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Bytes, or the end, arrive: of this connection, at its server or at its proxy.
    Arrival {
        connection: usize,
        up: bool,
    },
    /// What a pump does is done.
    Pump {
        forward: usize,
        pump: usize,
        token: u32,
    },
    /// A relay is to be told the time.
    Due {
        forward: usize,
        token: u32,
    },
    /// A worker of a server looks for a job.
    Worker {
        server: usize,
    },
    /// A worker of a server has done a job.
    Done {
        server: usize,
        incarnation: u32,
        job: usize,
    },
    /// A client submits this order, or submits it again.
    Order(usize),
    /// The foreground client of this order leaves.
    Leaves(usize),
    Fault(usize),
    /// A fault ends.
    Over(usize),
    /// A proxy is started.
    Start(usize),
    /// Is everything delivered?
    Check,
}

/// What is still to happen, in order; at the same time, in the order in which it was noted.
#[derive(Debug, Default)]
pub struct Clock {
    pub now: Micros,
    timers: BinaryHeap<Reverse<(Micros, u64, Timer)>>,
    noted: u64,
}

impl Clock {
    pub fn at(&mut self, time: Micros, timer: Timer) {
        self.noted += 1;
        self.timers.push(Reverse((time.max(self.now), self.noted, timer)));
    }

    pub fn next(&self) -> Option<Micros> {
        self.timers.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Jumps to the next timer.
    pub fn jump(&mut self) -> Option<Timer> {
        let Reverse((at, _, timer)) = self.timers.pop()?;
        self.now = self.now.max(at);
        Some(timer)
    }
}
