//! What is measured: a function for each row of the table, or a few rows that belong together.

pub mod compare;
mod encrypted;
mod far;
mod forwards;
mod full;
mod large;
mod single;
mod sites;
mod transfer;

use std::path::{Path, PathBuf};

use crate::process::{Gearmand, Outcome, Relay, Tables};
use crate::table::{Line, thousands};

type Row = fn(&mut Bench) -> Outcome<Vec<Line>>;

/// All rows by name, in the order of the table.
pub const ROWS: &[(&str, Row)] = &[
    ("sites", sites::row),
    ("peers", sites::peers),
    ("source", single::source),
    ("full", full::long),
    ("fast", full::fast),
    ("distance", far::distance),
    ("prefetch", far::prefetch),
    ("slow-line", far::slow_line),
    ("synchronous", single::synchronous),
    ("busy", forwards::busy),
    ("idle", forwards::idle),
    ("forwards-1000", forwards::thousand),
    ("forwards-5000", forwards::five_thousand),
    ("musl", full::musl),
    ("large", large::row),
];

/// A job as small as most, bytes.
const SMALL: usize = 600;

/// Jobs waiting at a source with small hash tables: so many that these slow it down.
const PILE: u64 = 200_000;

/// What every row needs.
pub struct Bench<'a> {
    pub proxy: PathBuf,
    /// The static build.
    pub musl: Option<PathBuf>,
    pub folder: &'a Path,
    pub quick: bool,
}

impl Bench<'_> {
    /// How often what is compared is run, in turn.
    fn turns(&self) -> usize {
        if self.quick { 3 } else { 9 }
    }

    fn jobs(&self, count: u64) -> u64 {
        if self.quick { count / 4 } else { count }
    }

    fn gearmand(&self, tables: Tables) -> Outcome<Gearmand> {
        Gearmand::start(self.folder, tables)
    }

    fn start_proxy(&self, configuration: &str) -> Outcome<Relay> {
        Relay::proxy(&self.proxy, self.folder, configuration)
    }
}

/// Runs each of `N` ways as often as there are turns; who begins changes from turn to turn.
fn in_turn<T: Copy, const N: usize>(
    turns: usize,
    mut run: impl FnMut(usize, usize) -> Outcome<T>,
) -> Outcome<Vec<[T; N]>> {
    (0..turns)
        .map(|turn| {
            let mut results = Vec::with_capacity(N);
            for step in 0..N {
                let way = (turn + step) % N;
                results.push(run(way, turn)?);
            }
            Ok(std::array::from_fn(|way| results[(N + way - turn % N) % N]))
        })
        .collect()
}

/// The median over all turns of what `part` tells of one.
fn middle<T>(turns: &[T], part: impl Fn(&T) -> f64) -> f64 {
    median(turns.iter().map(part).collect())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

/// A line whose ratio must not be above `most` of what is beside it.
fn at_most(what: String, measured: String, limit: String, ratio: f64, most: f64) -> Line {
    let (reach, met) = (format!("at most {most}"), Some(ratio <= most));
    Line { what, measured, limit, ratio: Some(ratio), reach, met, ..Line::default() }
}

/// A line whose ratio must not be below `least` of what is beside it.
fn at_least(what: String, measured: String, limit: String, ratio: f64, least: f64) -> Line {
    let (reach, met) = (format!("at least {least}"), Some(ratio >= least));
    Line { what, measured, limit, ratio: Some(ratio), reach, met, ..Line::default() }
}

fn queues(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("queue_{number}")).collect()
}

/// A configuration that forwards each queue under its own name.
fn forwards(source: u16, destination: u16, queues: &[String], options: &str) -> String {
    let forward = |queue: &String| format!("127.0.0.1:{source}/{queue} = 127.0.0.1:{destination}/{queue}\n{options}");
    queues.iter().map(forward).collect()
}

fn small_jobs() -> Vec<Vec<u8>> {
    (0..64u8).map(|number| vec![b'0' + number; SMALL]).collect()
}

fn per_second(rate: f64) -> String {
    format!("{}/s", thousands(rate))
}

fn microseconds(time: f64) -> String {
    format!("{time:.2} µs")
}
