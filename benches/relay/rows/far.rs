//! Distance, and lines that are slow.

use std::thread;
use std::time::{Duration, Instant};

use super::transfer::{Transfer, Transferred};
use super::{Bench, PILE, at_least, forwards, in_turn, middle, per_second, queues, small_jobs};
use crate::distance::Distance;
use crate::load::{self, Load};
use crate::process::{Outcome, Tables};
use crate::table::{Line, thousands};

const FAR: Duration = Duration::from_millis(200);

/// A plain forward with one of its servers far away, as it is by default.
pub fn distance(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let data = small_jobs();
    let mut lines = Vec::new();
    let turns = if bench.quick { 1 } else { 3 };
    for (milliseconds, count) in [(20, bench.jobs(PILE)), (200, bench.jobs(PILE))] {
        let far = Duration::from_millis(milliseconds);
        let base = Transfer { after: count / 4, ..Transfer::new(&bench.proxy, &data, count) };
        let runs: Vec<[Transferred; 3]> = in_turn(turns, |way, _| match way {
            0 => base.run(bench),
            1 => Transfer { to_destination: far, ..base }.run(bench),
            _ => Transfer { to_source: far, ..base }.run(bench),
        })?;
        for (way, side) in [(1, "destination"), (2, "source")] {
            lines.push(Line {
                what: format!("{milliseconds} ms to the {side}"),
                measured: per_second(middle(&runs, |run| run[way].rate)),
                limit: format!("loopback {}", per_second(middle(&runs, |run| run[0].rate))),
                ratio: Some(middle(&runs, |run| run[way].rate / run[0].rate)),
                cpu: Some(middle(&runs, |run| run[way].cpu)),
                peak: Some(runs[0][way].peak),
                ..Line::default()
            });
        }
    }
    Ok(lines)
}

/// With a `prefetch` for the distance. The rate is that of the last half, when the window is open.
pub fn prefetch(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let data = small_jobs();
    let count = if bench.quick { PILE } else { 3 * PILE };
    let base = Transfer {
        source_tables: Tables::Large,
        options: "    prefetch = 32768\n",
        after: count / 2,
        ..Transfer::new(&bench.proxy, &data, count)
    };
    let turns = if bench.quick { 1 } else { 5 };
    let runs: Vec<[Transferred; 2]> = in_turn(turns, |way, _| match way {
        0 => base.run(bench),
        _ => Transfer { to_destination: FAR, ..base }.run(bench),
    })?;
    let [loopback, far] = [0, 1].map(|way| middle(&runs, |run| run[way].rate));
    let ratio = middle(&runs, |run| run[1].rate / run[0].rate);
    Ok(vec![Line {
        reach: "100,000/s or at least 0.7".to_owned(),
        met: Some(far >= 100_000.0 || ratio >= 0.7),
        cpu: Some(middle(&runs, |run| run[1].cpu)),
        peak: Some(runs[0][1].peak),
        ..at_least(
            "200 ms to the destination, prefetch = 32768".to_owned(),
            per_second(far),
            format!("loopback {}", per_second(loopback)),
            ratio,
            0.7,
        )
    }])
}

/// Bytes a second of the slow line, and of one of its jobs.
const SLOW: usize = 300_000;
const SLOW_JOB: usize = 4000;

/// A line of 300 KB/s to the destination, and a stop while it is full.
pub fn slow_line(bench: &mut Bench) -> Outcome<Vec<Line>> {
    // All of the 20,000 jobs take four and a half minutes.
    let (count, watched) = if bench.quick { (20_000, 6.0) } else { (20_000, 60.0) };
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let line = Distance::slow(destination.port, SLOW)?;
    let (queues, data) = (queues(1), vec![vec![b'x'; SLOW_JOB]]);
    load::submit(source.port, &Load { queues: &queues, data: &data, unique: true, count })?;
    let mut proxy = bench.start_proxy(&forwards(source.port, line.port, &queues, ""))?;
    let (mut near, mut far) = (source.admin()?, destination.admin()?);
    while far.status()?.jobs == 0 {
        thread::sleep(Duration::from_millis(2));
    }
    let (began, before) = (Instant::now(), line.carried());
    thread::sleep(Duration::from_secs_f64(watched));
    let used = (line.carried() - before) as f64 / began.elapsed().as_secs_f64() / SLOW as f64;
    let stopped = proxy.stop()?;
    // What is still on the line.
    thread::sleep(Duration::from_secs(1));
    let (left, came) = (near.status()?.jobs, far.status()?.jobs);
    let twice = (came + left).saturating_sub(count);
    if came + left < count {
        return Err(format!("{} jobs are lost", count - came - left).into());
    }
    let seconds = stopped.as_secs_f64();
    Ok(vec![
        at_least(
            "300 KB/s, 4 KB jobs: bytes carried".to_owned(),
            format!("{:.0} KB/s", used * SLOW as f64 / 1e3),
            "300 KB/s".to_owned(),
            used,
            0.97,
        ),
        Line {
            what: "300 KB/s, 4 KB jobs: stop".to_owned(),
            measured: format!("{seconds:.1} s"),
            reach: "9 s, none twice".to_owned(),
            met: Some(seconds <= 9.0 && twice == 0),
            note: format!("{} came, {} are left, {twice} twice", thousands(came as f64), thousands(left as f64)),
            ..Line::default()
        },
    ])
}
