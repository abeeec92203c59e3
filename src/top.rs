//! `--top`: the forwards of a configuration at a glance, live or once.
//!
//! The job servers' admin port tells what waits where; the status queue, with the payload `json`, what the proxy has done
//! and what is wrong. Either may be missing: what is not known is shown as `-`.

mod ask;
mod screen;

use std::io::{self, BufRead, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never};

use crate::config::Config;
use ask::Asker;
use screen::Size;

/// How often the view is drawn.
const REFRESH: Duration = Duration::from_secs(1);

/// How long one look waits for the answers: a name with two addresses that don't answer takes this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows the forwards: once, where `once` says so or standard output is no terminal, else until `q` or a signal. The exit
/// status is 0.
///
/// # Errors
/// The output can't be written.
pub fn run(config: &Config, once: bool, out: &mut impl Write) -> io::Result<u8> {
    let terminal = io::stdout().is_terminal();
    let mut asker = Asker::new(config);
    if once || !terminal {
        asker.ask();
        asker.collect(Instant::now() + PATIENCE, true);
        if asker.report().is_some() {
            // Rates take two looks.
            thread::sleep(REFRESH);
            asker.ask();
            asker.collect(Instant::now() + PATIENCE, true);
        }
        let columns = variable("COLUMNS").or(terminal.then_some(80));
        let lines = screen::draw(config, &asker, Size { columns, rows: None }, Instant::now());
        out.write_all(lines.join("\n").as_bytes())?;
        out.write_all(b"\n")?;
        return Ok(0);
    }

    let size = Size { columns: variable("COLUMNS").or(Some(80)), rows: variable("LINES").or(Some(24)) };
    let quit = watch_keys();
    let mut clear = "\x1b[2J";
    loop {
        let next = Instant::now() + REFRESH;
        asker.ask();
        asker.collect(next, false);
        let mut screen = format!("{clear}\x1b[H");
        for line in screen::draw(config, &asker, size, Instant::now()) {
            screen.push_str(&line);
            screen.push_str("\x1b[K\n");
        }
        screen.push_str("\x1b[J");
        out.write_all(screen.as_bytes())?;
        out.flush()?;
        clear = "";
        if quit.recv_deadline(next).is_ok() {
            return Ok(0);
        }
    }
}

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok().filter(|&size| size > 0)
}

/// Tells when `q` was typed, and Enter: without touching the terminal's mode, so that nothing is left to restore when a
/// signal ends the process.
fn watch_keys() -> Receiver<()> {
    let (typed, quit) = bounded(1);
    let keys = thread::Builder::new().name(String::from("keys")).spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_ok_and(|line| line.trim_start().starts_with(['q', 'Q'])) {
                let _ = typed.send(());
            }
        }
        // At the end of the input there is nobody to type, and the view goes on.
        std::mem::forget(typed);
    });
    if keys.is_ok() { quit } else { never() }
}
