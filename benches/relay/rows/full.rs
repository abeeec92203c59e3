//! A full queue: what the proxy makes of it beside a bare worker and the floor.

use std::path::PathBuf;

use super::encrypted::Encrypted;
use super::transfer::{Through, Transfer, Transferred, rate};
use super::{Bench, PILE, at_least, at_most, in_turn, microseconds, middle, per_second, queues, small_jobs};
use crate::load::{self, Load};
use crate::process::{Outcome, Tables};
use crate::table::Line;

/// The rate at which a worker that does nothing empties the queue, jobs a second.
fn bare_worker(bench: &Bench, transfer: &Transfer) -> Outcome<Transferred> {
    let (source, queues) = (bench.gearmand(transfer.source_tables)?, queues(1));
    let Transfer { data, unique, count, .. } = *transfer;
    load::submit(source.port, &Load { queues: &queues, data, unique, count })?;
    let rate = rate(count, load::drain(source.port, &queues[0], count, load::WINDOW)?);
    Ok(Transferred { rate, cpu: 0.0, source: 0.0, destination: 0.0, peak: 0 })
}

/// A source whose long queue slows it down.
pub fn long(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let (plain, encrypted) = (small_jobs(), Encrypted::new()?);
    let transfer = Transfer::new(&bench.proxy, &plain, bench.jobs(PILE));
    let staged = Transfer { data: &encrypted.jobs, unique: true, options: &encrypted.options, ..transfer };
    let turns: Vec<[Transferred; 4]> = in_turn(bench.turns(), |way, _| match way {
        0 => bare_worker(bench, &transfer),
        1 => Transfer { through: Through::Floor, ..transfer }.run(bench),
        2 => transfer.run(bench),
        _ => staged.run_and(bench, |destination, _, queue| Encrypted::check(destination, queue)),
    })?;
    let of = |way: usize, part: fn(&Transferred) -> f64| middle(&turns, |turn| part(&turn[way]));
    let ratio = |way: usize, base: usize, part: fn(&Transferred) -> f64| {
        middle(&turns, |turn| part(&turn[way]) / part(&turn[base]))
    };
    let (rate, cpu) = (|run: &Transferred| run.rate, |run: &Transferred| run.cpu);
    let [_, _, proxy, stages] = turns[turns.len() / 2];
    let one_by_one = one_by_one(bench)?;
    Ok(vec![
        Line { note: "within the benchmark, waiting for each reply".to_owned(), ..one_by_one },
        Line {
            peak: Some(proxy.peak),
            note: proxy.note(),
            ..at_least(
                "full queue: rate".to_owned(),
                per_second(of(2, rate)),
                format!("bare worker {}", per_second(of(0, rate))),
                ratio(2, 0, rate),
                0.9,
            )
        },
        Line {
            note: format!("floor {}", per_second(of(1, rate))),
            ..at_most(
                "full queue: CPU a job".to_owned(),
                microseconds(of(2, cpu)),
                format!("floor {}", microseconds(of(1, cpu))),
                ratio(2, 1, cpu),
                1.25,
            )
        },
        Line {
            peak: Some(stages.peak),
            note: format!("{}; {}", per_second(of(3, rate)), stages.note()),
            ..at_most(
                "decrypt, callback, encrypt: CPU a job".to_owned(),
                microseconds(of(3, cpu)),
                format!("plain {}", microseconds(of(2, cpu))),
                ratio(3, 2, cpu),
                2.2,
            )
        },
    ])
}

/// What a straightforward relay makes of two job servers.
fn one_by_one(bench: &Bench) -> Outcome<Line> {
    let (source, destination) = (bench.gearmand(Tables::Default)?, bench.gearmand(Tables::Large)?);
    let (queues, data, count) = (queues(1), small_jobs(), bench.jobs(40_000));
    load::submit(source.port, &Load { queues: &queues, data: &data, unique: false, count })?;
    let time = load::relay_one_by_one(source.port, destination.port, &queues[0], count)?;
    Ok(Line { what: "one job at a time".to_owned(), measured: per_second(rate(count, time)), ..Line::default() })
}

/// A source that its queue does not slow down: with pauses in which answers gather, and without.
pub fn fast(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let data = small_jobs();
    let transfer =
        Transfer { source_tables: Tables::Large, ..Transfer::new(&bench.proxy, &data, bench.jobs(2 * PILE)) };
    let turns: Vec<[Transferred; 3]> = in_turn(bench.turns(), |way, _| match way {
        0 => bare_worker(bench, &transfer),
        1 => Transfer { through: Through::Floor, ..transfer }.run(bench),
        _ => transfer.run(bench),
    })?;
    let of = |way: usize, part: fn(&Transferred) -> f64| middle(&turns, |turn| part(&turn[way]));
    let ratio = |part: fn(&Transferred) -> f64| middle(&turns, |turn| part(&turn[2]) / part(&turn[1]));
    let (rate, cpu) = (|run: &Transferred| run.rate, |run: &Transferred| run.cpu);
    let [_, _, proxy] = turns[turns.len() / 2];
    Ok(vec![
        Line {
            peak: Some(proxy.peak),
            note: format!("bare worker {}; {}", per_second(of(0, rate)), proxy.note()),
            ..at_least(
                "fast source: rate".to_owned(),
                per_second(of(2, rate)),
                format!("floor {}", per_second(of(1, rate))),
                ratio(rate),
                1.0,
            )
        },
        at_most(
            "fast source: CPU a job".to_owned(),
            microseconds(of(2, cpu)),
            format!("floor {}", microseconds(of(1, cpu))),
            ratio(cpu),
            1.25,
        ),
    ])
}

/// The static build beside the other.
pub fn musl(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let Some(musl) = bench.musl.clone() else {
        let (what, note) = ("static build".to_owned(), "only with --musl PATH; dist/build-musl makes it".to_owned());
        return Ok(vec![Line { what, measured: "-".to_owned(), note, ..Line::default() }]);
    };
    let data = small_jobs();
    let builds: [&PathBuf; 2] = [&bench.proxy, &musl];
    let mut lines = Vec::new();
    for (what, forwards, most) in [("one forward", 1, 1.1), ("1,000 busy forwards", 1000, 1.15)] {
        let turns: Vec<[Transferred; 2]> = in_turn(bench.turns(), |way, _| {
            let transfer = Transfer::new(builds[way], &data, bench.jobs(PILE));
            Transfer { forwards, source_tables: Tables::Large, ..transfer }.run(bench)
        })?;
        let of = |way: usize| middle(&turns, |turn| turn[way].cpu);
        let ratio = middle(&turns, |turn| turn[1].cpu / turn[0].cpu);
        lines.push(at_most(
            format!("static build (musl), {what}: CPU a job"),
            microseconds(of(1)),
            format!("glibc {}", microseconds(of(0))),
            ratio,
            most,
        ));
    }
    Ok(lines)
}
