//! What a monitoring site has: jobs that trickle in, seen in turn through nothing, through the floor and through the proxy.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Bench, at_most, forwards, in_turn, middle};
use crate::open_loop::{self, Latencies, Sink};
use crate::process::{Gearmand, Outcome, Relay, Tables};
use crate::table::{Line, thousands};

/// A way for jobs, with its own queue.
pub struct Way {
    queue: String,
    /// Where jobs are submitted.
    entry: u16,
    sink: Sink,
    /// None where there is nothing in between.
    relay: Option<Relay>,
}

/// What one slice of load showed.
#[derive(Clone, Copy)]
pub struct Slice {
    /// Latencies, microseconds.
    pub p50: f64,
    pub p99: f64,
    /// CPU, microseconds a job; 0 without a relay.
    pub cpu: f64,
}

impl Way {
    fn direct(destination: &Gearmand) -> Outcome<Way> {
        let queue = "direct".to_owned();
        let sink = Sink::start(destination.port, &queue)?;
        Ok(Way { queue, entry: destination.port, sink, relay: None })
    }

    /// `name` is that of its queue.
    fn through(
        name: &str,
        source: &Gearmand,
        destination: &Gearmand,
        start: impl FnOnce(&str) -> Outcome<Relay>,
    ) -> Outcome<Way> {
        let sink = Sink::start(destination.port, name)?;
        let served = source.admin()?.status()?.served;
        let mut relay = start(name)?;
        relay.wait_ready(source, served + 1)?;
        Ok(Way { queue: name.to_owned(), entry: source.port, sink, relay: Some(relay) })
    }

    pub fn floor(folder: &Path, source: &Gearmand, destination: &Gearmand) -> Outcome<Way> {
        Way::through("floor", source, destination, |queue| Relay::floor(folder, source.port, destination.port, queue))
    }

    fn perl(folder: &Path, source: &Gearmand, destination: &Gearmand) -> Outcome<Way> {
        Way::through("perl", source, destination, |queue| Relay::perl(folder, source.port, destination.port, queue))
    }

    pub fn proxy(binary: &Path, name: &str, folder: &Path, source: &Gearmand, destination: &Gearmand) -> Outcome<Way> {
        Way::through(name, source, destination, |queue| {
            let configuration = forwards(source.port, destination.port, &[queue.to_owned()], "");
            Relay::proxy(binary, folder, &configuration)
        })
    }

    pub fn slice(&self, rate: f64, time: Duration, seed: usize) -> Outcome<Slice> {
        let cpu = || self.relay.as_ref().map_or(Ok(Duration::ZERO), Relay::cpu_time);
        let before = cpu()?;
        let latencies: Latencies = open_loop::run(self.entry, &self.queue, &self.sink, rate, time, seed as u64)?;
        // The last acknowledgement.
        thread::sleep(Duration::from_millis(5));
        let cpu = cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / latencies.count().max(1) as f64;
        Ok(Slice { p50: latencies.percentile(50), p99: latencies.percentile(99), cpu })
    }
}

/// The length of a slice.
pub fn time(bench: &Bench, rate: u32) -> Duration {
    Duration::from_secs_f64(match (bench.quick, rate) {
        (true, ..100) => 0.8,
        (true, _) => 0.4,
        (false, ..100) => 4.0,
        (false, _) => 2.0,
    })
}

/// Jobs a second, and what the CPU a job may be of the floor's.
pub const RATES: [(u32, Option<f64>); 5] =
    [(50, Some(1.4)), (200, Some(1.15)), (2000, Some(1.15)), (5000, Some(1.15)), (20_000, None)];

pub fn row(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let ways = [
        Way::direct(&destination)?,
        Way::floor(bench.folder, &source, &destination)?,
        Way::proxy(&bench.proxy, "proxy", bench.folder, &source, &destination)?,
    ];
    let mut lines = Vec::new();
    for (rate, most) in RATES {
        let time = time(bench, rate);
        let turns: Vec<[Slice; 3]> = in_turn(bench.turns(), |way, turn| ways[way].slice(f64::from(rate), time, turn))?;
        let of = |way: usize, part: fn(&Slice) -> f64| middle(&turns, |turn| part(&turn[way]));
        let ratio = |part: fn(&Slice) -> f64| middle(&turns, |turn| part(&turn[2]) / part(&turn[1]));
        let (cpu, p50, p99) = (|slice: &Slice| slice.cpu, |slice: &Slice| slice.p50, |slice: &Slice| slice.p99);
        let name = thousands(f64::from(rate));
        let line = at_most(
            format!("{name} jobs/s: CPU a job"),
            format!("{:.1} µs", of(2, cpu)),
            format!("floor {:.1} µs", of(1, cpu)),
            ratio(cpu),
            most.unwrap_or_default(),
        );
        lines.push(match most {
            Some(_) => line,
            None => Line { reach: String::new(), met: None, ..line },
        });
        lines.push(Line {
            note: format!(
                "p99 {:.0} µs, floor {:.0} µs ({:.2}); without a relay {:.0} µs, p99 {:.0} µs",
                of(2, p99),
                of(1, p99),
                ratio(p99),
                of(0, p50),
                of(0, p99)
            ),
            ..at_most(
                format!("{name} jobs/s: latency"),
                format!("{:.0} µs", of(2, p50)),
                format!("floor {:.0} µs", of(1, p50)),
                ratio(p50),
                1.05,
            )
        });
    }
    Ok(lines)
}

/// Beside a relay in Perl, as far as that can follow.
pub fn peers(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let mut modules = Command::new("perl");
    modules.args(["-MGearman::Worker", "-MGearman::Client", "-e1"]).stderr(Stdio::null());
    if !modules.status().is_ok_and(|status| status.success()) {
        let note = "needs Perl's Gearman::Worker and Gearman::Client".to_owned();
        return Ok(vec![Line { what: "relay in Perl".to_owned(), measured: "-".to_owned(), note, ..Line::default() }]);
    }
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let ways = [
        Way::perl(bench.folder, &source, &destination)?,
        Way::proxy(&bench.proxy, "proxy", bench.folder, &source, &destination)?,
    ];
    let mut lines = Vec::new();
    for rate in [50, 200, 1000] {
        let time = time(bench, rate);
        let turns: Vec<[Slice; 2]> = in_turn(bench.turns(), |way, turn| ways[way].slice(f64::from(rate), time, turn))?;
        let of = |way: usize, part: fn(&Slice) -> f64| middle(&turns, |turn| part(&turn[way]));
        let [[perl, slow], [proxy, quick]] = [0, 1].map(|way| [of(way, |slice| slice.cpu), of(way, |slice| slice.p50)]);
        lines.push(Line {
            what: format!("{} jobs/s beside Perl: CPU a job", thousands(f64::from(rate))),
            measured: format!("{proxy:.0} µs"),
            limit: format!("Perl {perl:.0} µs"),
            ratio: Some(middle(&turns, |turn| turn[1].cpu / turn[0].cpu)),
            note: format!("latency {quick:.0} µs, Perl {slow:.0} µs"),
            ..Line::default()
        });
    }
    Ok(lines)
}
