//! What forwards take: one that is idle, thousands of them, and a thousand that are busy.

use std::thread;
use std::time::Duration;

use super::transfer::{Transfer, Transferred};
use super::{Bench, PILE, forwards, in_turn, middle, per_second, queues, small_jobs};
use crate::distance::Distance;
use crate::process::{self, Outcome, Tables};
use crate::table::{Line, thousands};
use crate::wire;

/// A forward without jobs: what it sends, what it holds, what it burns.
pub fn idle(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let watched = Duration::from_secs(if bench.quick { 4 } else { 62 });
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let (near, far) = (Distance::tapped(source.port)?, Distance::tapped(destination.port)?);
    let mut proxy = bench.start_proxy(&forwards(near.port, far.port, &queues(1), ""))?;
    proxy.wait_ready(&source, 1)?;
    thread::sleep(Duration::from_secs(1));
    near.take();
    far.take();
    let before = proxy.cpu_time()?;
    thread::sleep(watched);
    let cpu = proxy.cpu_time()?.saturating_sub(before);
    let (to_source, to_destination) = (packets(&near.take()), packets(&far.take()));
    // One probe in 30 s: a grab and, when it was in vain, a PRE_SLEEP.
    let probes = watched.as_secs().div_ceil(30);
    let is_probe = |kind: &u32| [wire::GRAB_JOB_UNIQ, wire::PRE_SLEEP].contains(kind);
    let quiet = to_destination.is_empty() && to_source.iter().all(is_probe) && to_source.len() as u64 <= 2 * probes;
    let sent = Line {
        what: "one idle forward: packets sent".to_owned(),
        measured: format!("{} in {} s", to_source.len() + to_destination.len(), watched.as_secs()),
        reach: "its probe".to_owned(),
        met: Some(quiet),
        note: format!(
            "types {to_source:?} to the source, {to_destination:?} to the destination; {:.3} % CPU",
            cpu.as_secs_f64() / watched.as_secs_f64() * 100.0
        ),
        ..Line::default()
    };
    let resident = process::memory(proxy.pid(), "VmRSS")?;
    let memory = Line {
        what: "one idle forward: memory".to_owned(),
        measured: format!("{:.1} MiB", resident as f64 / 1024.0),
        reach: "4 MiB".to_owned(),
        met: Some(resident <= 4 << 10),
        peak: Some(process::memory(proxy.pid(), "VmHWM")?),
        ..Line::default()
    };
    Ok(vec![sent, memory])
}

/// The types of the packets in `bytes`.
fn packets(mut bytes: &[u8]) -> Vec<u32> {
    let mut types = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<12>() {
        let [_, _, _, _, t0, t1, t2, t3, l0, l1, l2, l3] = *header;
        types.push(u32::from_be_bytes([t0, t1, t2, t3]));
        bytes = rest.get(u32::from_be_bytes([l0, l1, l2, l3]) as usize..).unwrap_or_default();
    }
    types
}

/// What an idle process may take.
struct Bounds {
    ready: f64,
    mebibytes: u64,
    percent: f64,
}

pub fn thousand(bench: &mut Bench) -> Outcome<Vec<Line>> {
    many_idle(bench, 1000, &Bounds { ready: 2.0, mebibytes: 64, percent: 1.0 })
}

pub fn five_thousand(bench: &mut Bench) -> Outcome<Vec<Line>> {
    many_idle(bench, 5000, &Bounds { ready: 5.0, mebibytes: 300, percent: 0.5 })
}

/// Forwards without jobs: started, watched, changed all at once and stopped meanwhile.
fn many_idle(bench: &Bench, count: usize, bounds: &Bounds) -> Outcome<Vec<Line>> {
    let watched = Duration::from_secs(if bench.quick { 3 } else { 30 });
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let queues = queues(count);
    let mut proxy = bench.start_proxy(&forwards(source.port, destination.port, &queues, ""))?;
    let ready = proxy.wait_ready(&source, count)?.as_secs_f64();
    let starting = proxy.cpu_time()?.as_secs_f64();
    thread::sleep(Duration::from_secs(1));
    let before = proxy.cpu_time()?;
    thread::sleep(watched);
    let load = proxy.cpu_time()?.saturating_sub(before).as_secs_f64() / watched.as_secs_f64() * 100.0;
    let (resident, peak) = (process::memory(proxy.pid(), "VmRSS")?, process::memory(proxy.pid(), "VmHWM")?);
    let mib = resident as f64 / 1024.0;
    proxy.reload(&forwards(source.port, destination.port, &queues, "    max_age = 1h\n"))?;
    thread::sleep(Duration::from_millis(300));
    let stop = proxy.stop()?.as_secs_f64();
    let Bounds { ready: soonest, mebibytes, percent } = *bounds;
    let line = |what: &str, measured: String, reach: String, met: bool| Line {
        what: format!("{} forwards: {what}", thousands(count as f64)),
        measured,
        reach,
        met: Some(met),
        ..Line::default()
    };
    Ok(vec![
        Line {
            note: format!("{starting:.2} s of CPU"),
            ..line("ready", format!("{ready:.2} s"), format!("{soonest} s"), ready <= soonest)
        },
        Line {
            peak: Some(peak),
            ..line("memory", format!("{mib:.1} MiB"), format!("{mebibytes} MiB"), peak <= mebibytes << 10)
        },
        line("CPU when idle", format!("{load:.2} %"), format!("{percent} %"), load < percent),
        line("stop during a reload of all", format!("{stop:.2} s"), "3 s".to_owned(), stop <= 3.0),
    ])
}

/// The same number of jobs over ever more forwards, in turn.
pub fn busy(bench: &mut Bench) -> Outcome<Vec<Line>> {
    const FORWARDS: [usize; 4] = [1, 10, 100, 1000];
    let data = small_jobs();
    let base = Transfer { source_tables: Tables::Large, ..Transfer::new(&bench.proxy, &data, bench.jobs(2 * PILE)) };
    let turns = if bench.quick { 1 } else { 5 };
    // Long enough for two looks at what nobody uses any more.
    let evening = Duration::from_secs(if bench.quick { 0 } else { 70 });
    let mut rest = 0;
    let runs: Vec<[Transferred; 4]> = in_turn(turns, |way, turn| {
        Transfer { forwards: FORWARDS[way], ..base }.run_and(bench, |_, proxy, _| {
            if way == 3 && turn + 1 == turns {
                thread::sleep(evening);
                rest = process::memory(proxy.pid(), "VmRSS")?;
            }
            Ok(())
        })
    })?;
    let mut lines = Vec::new();
    for (way, forwards) in FORWARDS.into_iter().enumerate().skip(1) {
        let ratio = middle(&runs, |run| run[way].rate / run[0].rate);
        lines.push(Line {
            what: format!("{} busy forwards: rate", thousands(forwards as f64)),
            measured: per_second(middle(&runs, |run| run[way].rate)),
            limit: format!("one {}", per_second(middle(&runs, |run| run[0].rate))),
            ratio: Some(ratio),
            reach: "at least 0.8".to_owned(),
            met: Some(ratio >= 0.8),
            cpu: Some(middle(&runs, |run| run[way].cpu)),
            peak: Some(runs[0][way].peak),
            ..Line::default()
        });
    }
    let peak = middle(&runs, |run| run[3].peak as f64) / 1024.0;
    lines.push(Line {
        what: "1,000 busy forwards: memory".to_owned(),
        measured: format!("{peak:.1} MiB"),
        reach: "150 MiB".to_owned(),
        met: Some(peak < 150.0),
        note: format!("{:.1} MiB {} s later", rest as f64 / 1024.0, evening.as_secs()),
        ..Line::default()
    });
    Ok(lines)
}
