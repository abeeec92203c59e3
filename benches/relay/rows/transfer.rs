//! A full queue, or several, emptied through a relay.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, forwards, queues};
use crate::distance::Distance;
use crate::load::{self, Load};
use crate::process::{self, Gearmand, Outcome, Relay, Tables};

/// What is to be moved, and how.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    pub forwards: usize,
    pub data: &'a [Vec<u8>],
    pub unique: bool,
    pub count: u64,
    pub source_tables: Tables,
    /// Lines under each forward of the configuration.
    pub options: &'a str,
    /// Round trips.
    pub to_destination: Duration,
    pub to_source: Duration,
    /// The rate is that from the time when so many have come.
    pub after: u64,
    pub through: Through<'a>,
}

/// Which relay.
#[derive(Clone, Copy)]
pub enum Through<'a> {
    Proxy(&'a PathBuf),
    Floor,
}

#[derive(Clone, Copy)]
pub struct Transferred {
    /// Jobs a second.
    pub rate: f64,
    /// CPU, microseconds a job.
    pub cpu: f64,
    pub source: f64,
    pub destination: f64,
    /// Peak memory, KiB.
    pub peak: u64,
}

impl Transferred {
    pub fn note(&self) -> String {
        let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
        let busy = (self.cpu + self.source + self.destination) * self.rate / 1e6 / cores * 100.0;
        format!("source {:.1} µs, destination {:.1} µs a job; cores {busy:.0} % busy", self.source, self.destination)
    }
}

impl<'a> Transfer<'a> {
    pub fn new(proxy: &'a PathBuf, data: &'a [Vec<u8>], count: u64) -> Transfer<'a> {
        Transfer {
            forwards: 1,
            data,
            unique: false,
            count,
            source_tables: Tables::Default,
            options: "",
            to_destination: Duration::ZERO,
            to_source: Duration::ZERO,
            after: 1,
            through: Through::Proxy(proxy),
        }
    }

    pub fn run(&self, bench: &Bench) -> Outcome<Transferred> {
        self.run_and(bench, |_, _, _| Ok(()))
    }

    /// Calls `check` with the destination, the relay and the name of a queue at the end.
    pub fn run_and(
        &self,
        bench: &Bench,
        mut check: impl FnMut(&Gearmand, &Relay, &str) -> Outcome<()>,
    ) -> Outcome<Transferred> {
        let mut source = bench.gearmand(self.source_tables)?;
        let mut destination = bench.gearmand(Tables::Large)?;
        let source_line = line(&source, self.to_source)?;
        let destination_line = line(&destination, self.to_destination)?;
        let source_port = source_line.as_ref().map_or(source.port, |line| line.port);
        let destination_port = destination_line.as_ref().map_or(destination.port, |line| line.port);
        let queues = queues(self.forwards);
        let mut relay = match self.through {
            Through::Proxy(binary) => {
                let configuration = forwards(source_port, destination_port, &queues, self.options);
                Relay::proxy(binary, bench.folder, &configuration)?
            }
            Through::Floor => Relay::floor(bench.folder, source_port, destination_port, &queues[0])?,
        };
        relay.wait_ready(&source, self.forwards)?;

        relay.freeze()?;
        let load = Load { queues: &queues, data: self.data, unique: self.unique, count: self.count };
        load::submit(source.port, &load)?;
        let mut before = [relay.cpu_time()?, source.cpu_time()?, destination.cpu_time()?];
        relay.thaw()?;
        let rate = self
            .wait_moved(&relay, &source, &destination)
            .map_err(|error| format!("{error}; {}, {}", source.fate(), destination.fate()))?;
        let after = [relay.cpu_time()?, source.cpu_time()?, destination.cpu_time()?];
        for (before, after) in before.iter_mut().zip(after) {
            *before = after.saturating_sub(*before);
        }
        let [cpu, source, at_destination] = before.map(|time| time.as_secs_f64() * 1e6 / self.count as f64);
        let peak = process::memory(relay.pid(), "VmHWM")?;
        check(&destination, &relay, &queues[0])?;
        Ok(Transferred { rate, cpu, source, destination: at_destination, peak })
    }

    /// Waits until all jobs have come and nothing is left; the rate, jobs a second.
    fn wait_moved(&self, relay: &Relay, source: &Gearmand, destination: &Gearmand) -> Outcome<f64> {
        let (mut near, mut far) = (source.admin()?, destination.admin()?);
        let pause = Duration::from_millis(if self.forwards > 100 { 25 } else { 5 });
        let mut first = None;
        let mut last = (0, Instant::now());
        let mut before = last;
        loop {
            let moved = far.status()?.jobs;
            let now = Instant::now();
            if moved >= self.after {
                // Where all came since the last look, that is the beginning.
                first.get_or_insert(if moved < self.count { (moved, now) } else { before });
            }
            before = (moved, now);
            if moved > self.count {
                return Err(format!("{moved} jobs came of {}", self.count).into());
            }
            if moved == self.count && near.status()?.jobs == 0 {
                let (already, begin) = first.unwrap_or((0, now));
                return Ok(rate(self.count - already, begin.elapsed()));
            }
            if moved != last.0 {
                last = (moved, now);
            } else if last.1.elapsed() > Duration::from_secs(20) {
                let (left, words) = (near.status()?.jobs, relay.last_words());
                return Err(format!("nothing moves: {moved} of {} came, {left} are left: {words}", self.count).into());
            }
            thread::sleep(pause);
        }
    }
}

pub fn line(server: &Gearmand, round_trip: Duration) -> Outcome<Option<Distance>> {
    Ok(if round_trip.is_zero() { None } else { Some(Distance::to(server.port, round_trip)?) })
}

pub fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}
