//! One job at a time: synchronous requests, and what a trickle costs the source.

use std::thread;
use std::time::{Duration, Instant};

use super::transfer::line;
use super::{Bench, at_most, forwards, in_turn, median, middle, queues, small_jobs};
use crate::load::{Client, Worker};
use crate::process::{Gearmand, Outcome, Tables};
use crate::table::Line;

const SYNCHRONOUS: &str = "    async = 0\n    worker = 1\n";

/// A request that waits for its result: to the destination directly, through a relay in this program that does nothing else,
/// and through the proxy.
pub fn synchronous(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let mut lines = Vec::new();
    for (round_trip, count) in [(0, bench.jobs(2000)), (20, bench.jobs(80))] {
        let queues = queues(3);
        let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
        let far = line(&destination, Duration::from_millis(round_trip))?;
        let port = far.as_ref().map_or(destination.port, |line| line.port);
        let echo = |queue: &String| Worker::start(destination.port, queue, |data| Ok(data.to_vec()));
        let _workers = queues.iter().map(echo).collect::<Result<Vec<_>, _>>()?;
        let (mut client, name) = (Client::open(port)?, queues[1].clone());
        let _relay = Worker::start(source.port, &queues[1], move |data| client.ask(&name, data))?;
        let mut proxy = bench.start_proxy(&forwards(source.port, port, &queues[2..], SYNCHRONOUS))?;
        proxy.wait_ready(&source, 2)?;
        let turns: Vec<[[f64; 2]; 3]> = in_turn(bench.turns(), |way, _| {
            let before = proxy.cpu_time()?;
            let time = ask(if way == 0 { port } else { source.port }, &queues[way], count)?;
            let cpu = proxy.cpu_time()?.saturating_sub(before);
            Ok([time, cpu.as_secs_f64() * 1e6 / (count + WARM) as f64])
        })?;
        let [direct, bare, relayed] = [0, 1, 2].map(|way| middle(&turns, |turn| turn[way][0]));
        // On loopback the bare relay is what can be reached; with a distance the direct way nearly is.
        let (base, name, beside, most) =
            if round_trip == 0 { (1, "bare relay", bare, 1.5) } else { (0, "direct", direct, 1.3) };
        lines.push(Line {
            cpu: Some(middle(&turns, |turn| turn[2][1])),
            note: format!("direct {direct:.3} ms, bare relay {bare:.3} ms"),
            ..at_most(
                format!("synchronous, one worker, {round_trip} ms"),
                format!("{relayed:.3} ms"),
                format!("{name} {beside:.3} ms"),
                middle(&turns, |turn| turn[2][0] / turn[base][0]),
                most,
            )
        });
    }
    Ok(lines)
}

/// The median time of a request through a synchronous forward, milliseconds.
pub fn ask_through(bench: &Bench, count: u64) -> Outcome<f64> {
    let queue = &queues(1)[0];
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let _worker = Worker::start(destination.port, queue, |data| Ok(data.to_vec()))?;
    let mut proxy = bench.start_proxy(&forwards(source.port, destination.port, &queues(1), SYNCHRONOUS))?;
    proxy.wait_ready(&source, 1)?;
    ask(source.port, queue, count)
}

/// Requests before those that are timed.
const WARM: u64 = 5;

/// The median time of a request, milliseconds.
fn ask(port: u16, queue: &str, count: u64) -> Outcome<f64> {
    let mut client = Client::open(port)?;
    let data = &small_jobs()[0];
    let mut times = Vec::new();
    for number in 0..count + WARM {
        let begin = Instant::now();
        if client.ask(queue, data)? != *data {
            return Err("another result than the job's data".into());
        }
        if number >= WARM {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(median(times))
}

/// What a trickle of single jobs costs the source: as it is, with a plain worker, and with the proxy.
pub fn source(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let queues = queues(3);
    let count = if bench.quick { 100 } else { 400 };
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let _worker = Worker::start(source.port, &queues[1], |_| Ok(Vec::new()))?;
    let mut proxy = bench.start_proxy(&forwards(source.port, destination.port, &queues[2..], ""))?;
    proxy.wait_ready(&source, 2)?;
    let turns: Vec<[f64; 3]> = in_turn(bench.turns(), |way, _| trickle(&source, &queues[way], count))?;
    let alone = middle(&turns, |turn| turn[0]);
    let [plain, relayed] = [1, 2].map(|way| middle(&turns, |turn| turn[way] - turn[0]));
    Ok(vec![Line {
        note: format!("without the {alone:.0} µs that a submission costs by itself"),
        ..at_most(
            "one job at a time, 200/s: source's CPU a job".to_owned(),
            format!("{relayed:.0} µs"),
            format!("plain worker {plain:.0} µs"),
            relayed / plain,
            2.0,
        )
    }])
}

/// The source's CPU time for each of `count` jobs, one every 5 ms, microseconds.
fn trickle(source: &Gearmand, queue: &str, count: u64) -> Outcome<f64> {
    let mut client = Client::open(source.port)?;
    let data = &small_jobs()[0];
    let (begin, before) = (Instant::now(), source.cpu_time()?);
    for number in 0..count {
        thread::sleep((begin + Duration::from_millis(5 * number)).saturating_duration_since(Instant::now()));
        client.submit(queue, data)?;
    }
    thread::sleep(Duration::from_millis(20));
    Ok((source.cpu_time()?.saturating_sub(before)).as_secs_f64() * 1e6 / count as f64)
}
