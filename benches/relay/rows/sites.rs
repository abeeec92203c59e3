//! What a monitoring site has: jobs that trickle in, seen in turn through nothing, through the floor and through the proxy.

use std::path::Path;
use std::time::Duration;

use super::{Bench, forwards, median};
use crate::open_loop::{self, Latencies, Sink};
use crate::process::{Floor, Gearmand, Outcome, Proxy, Tables, cpu_time};
use crate::table::{Line, thousands};

/// A way for jobs, with its own queue.
pub struct Way {
    queue: String,
    /// Where jobs are submitted.
    entry: u16,
    /// The process whose CPU time counts; none where there is nothing in between.
    pid: Option<u32>,
    sink: Sink,
    _relay: Option<Relay>,
}

#[expect(dead_code, reason = "they live as long as the way")]
enum Relay {
    Floor(Floor),
    Proxy(Proxy),
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
    pub fn direct(destination: &Gearmand) -> Outcome<Way> {
        let queue = "direct".to_owned();
        let sink = Sink::start(destination.port, &queue)?;
        Ok(Way { queue, entry: destination.port, pid: None, sink, _relay: None })
    }

    pub fn floor(source: &Gearmand, destination: &Gearmand) -> Outcome<Way> {
        let queue = "floor".to_owned();
        let sink = Sink::start(destination.port, &queue)?;
        let served = source.admin()?.status()?.served;
        let floor = Floor::start(source.port, destination.port, &queue)?;
        source.wait_served(served + 1)?;
        Ok(Way { queue, entry: source.port, pid: Some(floor.pid()), sink, _relay: Some(Relay::Floor(floor)) })
    }

    /// `name` tells queues of several proxies apart.
    pub fn proxy(binary: &Path, name: &str, folder: &Path, source: &Gearmand, destination: &Gearmand) -> Outcome<Way> {
        let queue = name.to_owned();
        let sink = Sink::start(destination.port, &queue)?;
        let served = source.admin()?.status()?.served;
        let queues = std::slice::from_ref(&queue);
        let mut proxy = Proxy::start(binary, folder, &forwards(source.port, destination.port, queues, ""))?;
        proxy.wait_ready(source, served + 1)?;
        Ok(Way { queue, entry: source.port, pid: Some(proxy.pid()), sink, _relay: Some(Relay::Proxy(proxy)) })
    }

    pub fn slice(&self, rate: f64, time: Duration, seed: u64) -> Outcome<Slice> {
        let cpu = || self.pid.map_or(Ok(Duration::ZERO), cpu_time);
        let before = cpu()?;
        let latencies: Latencies = open_loop::run(self.entry, &self.queue, &self.sink, rate, time, seed)?;
        // The last acknowledgement.
        std::thread::sleep(Duration::from_millis(5));
        let cpu = cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / latencies.count().max(1) as f64;
        Ok(Slice { p50: latencies.percentile(50), p99: latencies.percentile(99), cpu })
    }
}

/// Medians of `pairs` slices of each way, in turn, with the ratios to the way `base` of the same turn.
pub struct Beside {
    pub slices: Vec<Slice>,
    pub ratios: Vec<Slice>,
}

pub fn in_turn(ways: &[Way], base: usize, rate: f64, time: Duration, pairs: usize) -> Outcome<Beside> {
    let mut turns: Vec<Vec<Slice>> = Vec::new();
    for pair in 0..pairs {
        let mut turn = vec![Slice { p50: 0.0, p99: 0.0, cpu: 0.0 }; ways.len()];
        for step in 0..ways.len() {
            // Who begins changes from turn to turn.
            let index = (pair + step) % ways.len();
            turn[index] = ways[index].slice(rate, time, pair as u64)?;
        }
        turns.push(turn);
    }
    let middle = |index: usize, of: &dyn Fn(&Vec<Slice>, &Slice) -> Slice| {
        let all: Vec<Slice> = turns.iter().map(|turn| of(turn, &turn[index])).collect();
        let part = |part: fn(&Slice) -> f64| median(all.iter().map(part).collect());
        Slice { p50: part(|slice| slice.p50), p99: part(|slice| slice.p99), cpu: part(|slice| slice.cpu) }
    };
    let ratio = |turn: &Vec<Slice>, slice: &Slice| {
        let base = turn[base];
        Slice { p50: slice.p50 / base.p50, p99: slice.p99 / base.p99, cpu: slice.cpu / base.cpu }
    };
    Ok(Beside {
        slices: (0..ways.len()).map(|index| middle(index, &|_, slice| *slice)).collect(),
        ratios: (0..ways.len()).map(|index| middle(index, &ratio)).collect(),
    })
}

/// Jobs a second, and what the CPU a job may be of the floor's.
const RATES: [(u32, Option<f64>); 5] =
    [(50, Some(1.4)), (200, Some(1.15)), (2000, Some(1.15)), (5000, Some(1.15)), (20_000, None)];

pub fn row(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let ways = [
        Way::direct(&destination)?,
        Way::floor(&source, &destination)?,
        Way::proxy(&bench.proxy, "proxy", bench.folder, &source, &destination)?,
    ];
    let mut lines = Vec::new();
    for (rate, most) in RATES {
        let pairs = if bench.quick { 3 } else { 9 };
        let time = Duration::from_secs_f64(match (bench.quick, rate) {
            (true, 50) => 1.0,
            (true, _) => 0.4,
            (false, 50) => 4.0,
            (false, _) => 2.0,
        });
        let Beside { slices, ratios } = in_turn(&ways, 1, f64::from(rate), time, pairs)?;
        let ([direct, floor, proxy], [_, _, ratio]) = (slices.as_slice(), ratios.as_slice()) else {
            return Err("not three ways".into());
        };
        let name = thousands(f64::from(rate));
        lines.push(Line {
            what: format!("{name} jobs/s: CPU"),
            measured: format!("{:.1} µs a job", proxy.cpu),
            limit: format!("floor {:.1} µs", floor.cpu),
            ratio: Some(ratio.cpu),
            reach: most.map_or_else(String::new, |most| format!("{most} of it")),
            met: most.map(|most| ratio.cpu <= most),
            cpu: Some(proxy.cpu),
            note: format!("medians of {pairs} slices in turn"),
            ..Line::default()
        });
        lines.push(Line {
            what: format!("{name} jobs/s: latency"),
            measured: format!("{:.0} µs", proxy.p50),
            limit: format!("floor {:.0} µs", floor.p50),
            ratio: Some(ratio.p50),
            reach: "1.05 of it".to_owned(),
            met: Some(ratio.p50 <= 1.05),
            note: format!(
                "p99 {:.0} µs, floor {:.0} µs ({:.2}); without a relay {:.0} µs, p99 {:.0} µs",
                proxy.p99, floor.p99, ratio.p99, direct.p50, direct.p99
            ),
            ..Line::default()
        });
    }
    Ok(lines)
}
