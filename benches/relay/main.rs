//! `cargo bench`: how fast the proxy is, beside what the job servers themselves can do in the same run.
//!
//! ```text
//! cargo bench                        every row, three runs each: some six minutes
//! cargo bench -- --quick             one short run each: under a minute
//! cargo bench -- loopback idle       only the rows whose names begin so
//! cargo bench -- --proxy PATH        another build of the proxy
//! ```
//!
//! Every row starts its own job servers on free ports of loopback. For a row of throughput the proxy connects, is
//! stopped with SIGSTOP while its queue is filled, and goes on: so neither filling nor connecting is measured. The
//! clock runs from the first job seen at the destination until all are there and the source has nothing left,
//! acknowledgements included; the number of jobs must be right to one. Rates and times are medians, and the limit
//! beside them is from the same run. The job servers share the cores with the proxy and with this program.
//!
//! How fast a gearmand is depends on its queue: it looks for a job's handle and unique id in 991 chains, so with 200,000
//! jobs waiting it gives a bare worker less than a third of what it gives with 30,000. The rows have such a long queue
//! at their source; the destination has enough chains, as if its workers kept up. The rows called "fast source" show
//! what is left of the limits when neither server is slowed down by its queue.

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
    let mut former = None;
    let (mut quick, mut names, mut measure) = (false, Vec::new(), false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--against" => former = Some(PathBuf::from(arguments.next().ok_or("--against needs a path")?)),
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
    let mut bench = Bench::new(proxy, folder.path(), quick);
    if let Some(former) = former {
        table::print(&rows::compare::all(&mut bench, former, &names)?);
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
    Ok(complete)
}
