//! Two builds of the proxy in turn: `cargo bench -- --against OLD [--proxy NEW] [names]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sites::{Beside, Way, in_turn};
use super::{Bench, Encrypted, PILE, Transfer, ask_through, median, per_second, small_jobs};
use crate::process::{Outcome, Tables};
use crate::table::{Line, thousands};

/// All rows whose names begin with one of `names`, or all.
pub fn all(bench: &mut Bench, former: PathBuf, names: &[String]) -> Outcome<Vec<Line>> {
    let mut lines = Vec::new();
    let wanted = |row: &str| names.is_empty() || names.iter().any(|name| row.starts_with(name.as_str()));
    let (plain, encrypted) = (small_jobs(), Encrypted::new()?);
    let base = Transfer { data: &plain, count: bench.jobs(PILE), ..Transfer::default() };
    let large = Transfer { source_tables: Tables::Large, count: bench.many(), ..base };
    let (near, far) = (Duration::from_millis(20), Duration::from_millis(200));
    for (name, transfer) in [
        ("plain", base),
        ("fast", large),
        ("stages", Transfer { data: &encrypted.jobs, unique: true, options: &encrypted.options, ..large }),
        ("near", Transfer { to_destination: near, ..large }),
        ("far", Transfer { to_destination: far, ..large }),
        ("prefetch", Transfer { to_destination: far, options: "    prefetch = 32768\n", ..large }),
        ("source-near", Transfer { to_source: near, ..large }),
        ("source-far", Transfer { to_source: far, ..large }),
        ("busy-100", Transfer { forwards: 100, ..large }),
        ("busy-1000", Transfer { forwards: 1000, ..large }),
    ] {
        if wanted(name) {
            eprintln!("{name} ...");
            lines.extend(transfers(bench, &former, name, &transfer)?);
        }
    }
    if wanted("synchronous") {
        eprintln!("synchronous ...");
        lines.push(synchronous(bench, &former)?);
    }
    if wanted("sites") {
        eprintln!("sites ...");
        lines.extend(sites(bench, &former)?);
    }
    Ok(lines)
}

/// Runs `run` with either build in turn, and gives the medians of both and of their ratios, for each number that it tells.
fn pairs<const N: usize>(
    bench: &mut Bench,
    former: &Path,
    mut run: impl FnMut(&Bench) -> Outcome<[f64; N]>,
) -> Outcome<[[f64; 3]; N]> {
    let count = if bench.quick { 3 } else { 9 };
    let latter = bench.proxy.clone();
    let mut both: [Vec<[f64; N]>; 2] = Default::default();
    for pair in 0..count {
        for turn in [pair % 2, 1 - pair % 2] {
            bench.proxy = if turn == 0 { former.to_owned() } else { latter.clone() };
            let outcome = run(bench);
            bench.proxy = latter.clone();
            both[turn].push(outcome?);
        }
    }
    let [old, new] = both;
    Ok(std::array::from_fn(|part| {
        let of = |runs: &[[f64; N]]| median(runs.iter().map(|run| run[part]).collect());
        let ratios = new.iter().zip(&old).map(|(new, old)| new[part] / old[part]).collect();
        [of(&old), of(&new), median(ratios)]
    }))
}

fn line(what: String, [old, new, ratio]: [f64; 3], show: impl Fn(f64) -> String) -> Line {
    Line { what, measured: show(new), limit: format!("before {}", show(old)), ratio: Some(ratio), ..Line::default() }
}

fn microseconds(time: f64) -> String {
    format!("{time:.2} µs")
}

fn transfers(bench: &mut Bench, former: &Path, name: &str, transfer: &Transfer) -> Outcome<Vec<Line>> {
    let [rate, cpu, peak] = pairs(bench, former, |bench| {
        let run = transfer.run(bench)?;
        Ok([run.rate, run.proxy, run.peak as f64 / 1024.0])
    })?;
    Ok(vec![
        line(format!("{name}: rate"), rate, per_second),
        line(format!("{name}: CPU a job"), cpu, microseconds),
        line(format!("{name}: peak memory"), peak, |mib| format!("{mib:.1} MiB")),
    ])
}

fn synchronous(bench: &mut Bench, former: &Path) -> Outcome<Line> {
    let [time] = pairs(bench, former, |bench| Ok([ask_through(bench, bench.jobs(2000))? * 1000.0]))?;
    Ok(line("synchronous: a request".to_owned(), time, microseconds))
}

fn sites(bench: &mut Bench, former: &Path) -> Outcome<Vec<Line>> {
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let ways = [
        Way::floor(&source, &destination)?,
        Way::proxy(former, "old", bench.folder, &source, &destination)?,
        Way::proxy(&bench.proxy, "new", bench.folder, &source, &destination)?,
    ];
    let (turns, time) = if bench.quick { (5, 0.6) } else { (9, 2.0) };
    let mut lines = Vec::new();
    for rate in [50.0, 200.0, 2000.0, 5000.0, 20_000.0] {
        let time = Duration::from_secs_f64(if rate < 100.0 { 2.0 * time } else { time });
        let Beside { slices, ratios } = in_turn(&ways, 1, rate, time, turns)?;
        let ([floor, old, new], [low, _, ratio]) = (slices.as_slice(), ratios.as_slice()) else {
            return Err("not three ways".into());
        };
        let name = thousands(rate);
        for (what, floor, old, new, ratio, low) in [
            ("CPU a job", floor.cpu, old.cpu, new.cpu, ratio.cpu, low.cpu),
            ("p50", floor.p50, old.p50, new.p50, ratio.p50, low.p50),
            ("p99", floor.p99, old.p99, new.p99, ratio.p99, low.p99),
        ] {
            let note =
                format!("floor {}; of the floor: before {:.2}, now {:.2}", microseconds(floor), 1.0 / low, ratio / low);
            lines.push(Line { note, ..line(format!("{name} jobs/s: {what}"), [old, new, ratio], microseconds) });
        }
    }
    Ok(lines)
}
