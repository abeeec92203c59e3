//! `cargo bench`: how fast the proxy is, beside what the job servers themselves can do in the same run.
//!
//! ```text
//! cargo bench                        every row, nine turns each: some half an hour
//! cargo bench -- --quick             fewer and shorter turns, less exact: some two minutes
//! cargo bench -- sites full          only the rows whose names begin so
//! cargo bench -- --proxy PATH        another build of the proxy
//! cargo bench -- --musl PATH         the static build beside it
//! cargo bench -- --against PATH      two builds in turn
//! ```
//!
//! Every row starts its own job servers on free ports of loopback, which share the cores with the relay and with this program.
//! The speed of a machine changes from minute to minute, and most of all of one that others use too. So what is compared is
//! run in turn, and a ratio is the median of the ratios of all turns, each between neighbours in time. The reaches are ratios
//! wherever that is possible.
//!
//! For a full queue the relay connects, is stopped with SIGSTOP while its queue is filled, and goes on: so neither filling nor
//! connecting is measured. The clock runs from the first job seen at the destination until all are there and the source has
//! nothing left, acknowledgements included; the number of jobs must be right to one.
//!
//! How fast a gearmand is depends on its queue: it looks for a job's handle and unique id in 991 chains, so with 200,000
//! jobs waiting it gives a bare worker less than a third of what it gives with 30,000. Where a row doesn't say "fast source",
//! its source has these chains. The destination always has enough of them, as if its workers kept up.

mod distance;
mod floor;
mod load;
mod open_loop;
mod process;
mod rows;
mod table;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use process::{Folder, Outcome};
use rows::{Bench, ROWS};

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every row could be measured; whether it reached what it should doesn't matter.
fn run(arguments: Vec<String>) -> Outcome<bool> {
    if let [mode, source, destination, queue] = arguments.as_slice()
        && mode == floor::ARGUMENT
    {
        floor::run(source.parse()?, destination.parse()?, queue)?;
        return Ok(true);
    }
    let mut proxy = PathBuf::from(env!("CARGO_BIN_EXE_gearman-proxy"));
    let (mut former, mut musl) = (None, None);
    let (mut quick, mut names, mut measure) = (false, Vec::new(), false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--against" => former = Some(PathBuf::from(arguments.next().ok_or("--against needs a path")?)),
            "--musl" => musl = Some(PathBuf::from(arguments.next().ok_or("--musl needs a path")?)),
            "--proxy" => proxy = arguments.next().ok_or("--proxy needs a path")?.into(),
            // Given by `cargo bench`, not by `cargo test --all-targets`, which must not take minutes.
            "--bench" => measure = true,
            name if former.is_some() => names.push(name.to_owned()),
            name if ROWS.iter().any(|(row, _)| row.starts_with(name)) => names.push(argument),
            other => {
                let rows: Vec<&str> = ROWS.iter().map(|(row, _)| *row).collect();
                return Err(format!("no row or option {other:?}; the rows are {}", rows.join(", ")).into());
            }
        }
    }
    if !measure {
        println!("measures with `cargo bench` only");
        return Ok(true);
    }

    let folder = Folder::new()?;
    let mut bench = Bench { proxy, musl, folder: folder.path(), quick };
    let began = Instant::now();
    if let Some(former) = former {
        table::print(&rows::compare::all(&mut bench, &former, &names)?);
        return Ok(true);
    }
    let mut complete = true;
    let mut lines = Vec::new();
    for (name, row) in ROWS {
        if names.is_empty() || names.iter().any(|wanted| name.starts_with(wanted.as_str())) {
            eprintln!("{name} ...");
            match row(&mut bench) {
                Ok(measured) => lines.extend(measured),
                Err(error) => {
                    eprintln!("{name}: {error}");
                    complete = false;
                    lines.push(table::Line {
                        what: (*name).to_owned(),
                        measured: "failed".to_owned(),
                        note: error.to_string(),
                        ..table::Line::default()
                    });
                }
            }
        }
    }
    table::print(&lines);
    eprintln!("{:.0} s", began.elapsed().as_secs_f64());
    Ok(complete)
}
