//! Jobs of 8 MB.

use super::transfer::{Transfer, Transferred, rate};
use super::{Bench, in_turn, middle, queues};
use crate::load::{self, Load};
use crate::process::{Outcome, Tables};
use crate::table::{Line, thousands};

const LARGE: usize = 8_000_000;

pub fn row(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let (queues, data) = (queues(1), vec![vec![b'x'; LARGE]]);
    let count = if bench.quick { 30 } else { 100 };
    let transfer = Transfer { source_tables: Tables::Large, ..Transfer::new(&bench.proxy, &data, count) };
    let megabytes = |rate: f64| rate * LARGE as f64 / 1e6;
    let turns = if bench.quick { 1 } else { 5 };
    let runs: Vec<[Transferred; 2]> = in_turn(turns, |way, _| {
        if way == 1 {
            return transfer.run(bench);
        }
        let source = bench.gearmand(Tables::Large)?;
        load::submit(source.port, &Load { queues: &queues, data: &data, unique: true, count })?;
        let rate = rate(count, load::drain(source.port, &queues[0], count, 2)?);
        Ok(Transferred { rate, cpu: 0.0, source: 0.0, destination: 0.0, peak: 0 })
    })?;
    let [worker, speed] = [0, 1].map(|way| megabytes(middle(&runs, |run| run[way].rate)));
    let peak = runs[0][1].peak;
    Ok(vec![Line {
        what: "8 MB jobs".to_owned(),
        measured: format!("{} MB/s", thousands(speed)),
        limit: format!("bare worker {} MB/s", thousands(worker)),
        ratio: Some(middle(&runs, |run| run[1].rate / run[0].rate)),
        reach: "64 MiB".to_owned(),
        met: Some(peak <= 64 << 10),
        cpu: Some(middle(&runs, |run| run[1].cpu)),
        peak: Some(peak),
        note: runs[0][1].note(),
    }])
}
