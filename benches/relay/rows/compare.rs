//! Two builds of the proxy in turn: `cargo bench -- --against OLD [--proxy NEW] [names]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::encrypted::Encrypted;
use super::single::ask_through;
use super::sites::{RATES, Slice, Way, time};
use super::transfer::{Through, Transfer, Transferred};
use super::{Bench, PILE, in_turn, microseconds, middle, per_second, small_jobs};
use crate::process::{Outcome, Tables};
use crate::table::{Line, thousands};

/// All rows whose names begin with one of `names`, or all.
pub fn all(bench: &mut Bench, former: &PathBuf, names: &[String]) -> Outcome<Vec<Line>> {
    let mut lines = Vec::new();
    let wanted = |row: &str| names.is_empty() || names.iter().any(|name| row.starts_with(name.as_str()));
    let (plain, encrypted) = (small_jobs(), Encrypted::new()?);
    let latter = bench.proxy.clone();
    let base = Transfer::new(&latter, &plain, bench.jobs(PILE));
    let fast = Transfer { source_tables: Tables::Large, count: bench.jobs(2 * PILE), ..base };
    let (near, far) = (Duration::from_millis(20), Duration::from_millis(200));
    let large = "    prefetch = 32768\n";
    for (name, transfer) in [
        ("full", base),
        ("fast", fast),
        ("stages", Transfer { data: &encrypted.jobs, unique: true, options: &encrypted.options, ..fast }),
        ("near", Transfer { to_destination: near, ..fast }),
        ("far", Transfer { to_destination: far, ..fast }),
        ("prefetch", Transfer { to_destination: far, options: large, after: fast.count / 2, ..fast }),
        ("source-near", Transfer { to_source: near, ..fast }),
        ("source-far", Transfer { to_source: far, ..fast }),
        ("busy-100", Transfer { forwards: 100, ..fast }),
        ("busy-1000", Transfer { forwards: 1000, ..fast }),
    ] {
        if wanted(name) {
            eprintln!("{name} ...");
            lines.extend(transfers(bench, [former, &latter], name, &transfer)?);
        }
    }
    if wanted("synchronous") {
        eprintln!("synchronous ...");
        lines.push(synchronous(bench, [former, &latter])?);
    }
    if wanted("sites") {
        eprintln!("sites ...");
        lines.extend(sites(bench, former)?);
    }
    Ok(lines)
}

fn line(what: String, [old, new, ratio]: [f64; 3], show: impl Fn(f64) -> String) -> Line {
    Line { what, measured: show(new), limit: format!("before {}", show(old)), ratio: Some(ratio), ..Line::default() }
}

/// The medians of both and of their ratio.
fn both<T>(turns: &[[T; 2]], part: impl Fn(&T) -> f64) -> [f64; 3] {
    let [old, new] = [0, 1].map(|way: usize| middle(turns, |turn| part(&turn[way])));
    [old, new, middle(turns, |turn| part(&turn[1]) / part(&turn[0]))]
}

fn transfers(bench: &Bench, builds: [&PathBuf; 2], name: &str, transfer: &Transfer) -> Outcome<Vec<Line>> {
    let turns: Vec<[Transferred; 2]> =
        in_turn(bench.turns(), |way, _| Transfer { through: Through::Proxy(builds[way]), ..*transfer }.run(bench))?;
    Ok(vec![
        line(format!("{name}: rate"), both(&turns, |run| run.rate), per_second),
        line(format!("{name}: CPU a job"), both(&turns, |run| run.cpu), microseconds),
        line(format!("{name}: peak memory"), both(&turns, |run| run.peak as f64 / 1024.0), |mib| {
            format!("{mib:.1} MiB")
        }),
    ])
}

fn synchronous(bench: &mut Bench, builds: [&PathBuf; 2]) -> Outcome<Line> {
    let turns: Vec<[f64; 2]> = in_turn(bench.turns(), |way, _| {
        builds[way].clone_into(&mut bench.proxy);
        Ok(ask_through(bench, bench.jobs(2000))? * 1000.0)
    })?;
    Ok(line("synchronous: a request".to_owned(), both(&turns, |time| *time), microseconds))
}

/// A number of a slice.
type Part = fn(&Slice) -> f64;

fn sites(bench: &Bench, former: &Path) -> Outcome<Vec<Line>> {
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let ways = [
        Way::proxy(former, "old", bench.folder, &source, &destination)?,
        Way::proxy(&bench.proxy, "new", bench.folder, &source, &destination)?,
        Way::floor(bench.folder, &source, &destination)?,
    ];
    let mut lines = Vec::new();
    for (rate, _) in RATES {
        let time = time(bench, rate);
        let turns: Vec<[Slice; 3]> = in_turn(bench.turns(), |way, turn| ways[way].slice(f64::from(rate), time, turn))?;
        let name = thousands(f64::from(rate));
        let parts: [(&str, Part); 3] =
            [("CPU a job", |slice| slice.cpu), ("p50", |slice| slice.p50), ("p99", |slice| slice.p99)];
        for (what, part) in parts {
            let [old, new, floor] = [0, 1, 2].map(|way: usize| middle(&turns, |turn| part(&turn[way])));
            let ratio = |way: usize, base: usize| middle(&turns, |turn| part(&turn[way]) / part(&turn[base]));
            let note = format!(
                "floor {}; of the floor: before {:.2}, now {:.2}",
                microseconds(floor),
                ratio(0, 2),
                ratio(1, 2)
            );
            lines.push(Line { note, ..line(format!("{name} jobs/s: {what}"), [old, new, ratio(1, 0)], microseconds) });
        }
    }
    Ok(lines)
}
