//! Command line in, exit status out; nothing else.

use std::io::{self, Write};
use std::process::ExitCode;

use gearman_proxy::cli::{self, Action, Cli};
use gearman_proxy::config::{self, Address, Config};
use gearman_proxy::{ask, proxy, trial};

/// A failure at run time.
const FAILED: u8 = 1;
/// A wrong command line or configuration.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let status = match cli::parse(std::env::args_os().skip(1)) {
        Ok(cli) => run(&cli).unwrap_or_else(|error| fail(&error)),
        Err(error) => {
            say(&format!("gearman-proxy: {error}\n"));
            WRONG
        }
    };
    ExitCode::from(status)
}

fn run(cli: &Cli) -> io::Result<u8> {
    let out = &mut Readable(io::stdout());
    match &cli.action {
        Action::Help => print(&cli::help()),
        Action::Version => print(&cli::version()),
        Action::Run => with_config(cli, |config| Ok(proxy::run(cli, config).map_or_else(|error| fail(&error), |()| 0))),
        Action::Check => with_config(cli, |config| {
            config.warnings.iter().chain(&config.open_files_warning()).for_each(|warning| warn(warning));
            print(&config.table())
        }),
        Action::Try(address) => {
            with_config(cli, |config| trial::run(&config, address, &mut io::stdin(), out, &mut Readable(io::stderr())))
        }
        Action::Status(given) => with_status_queue(cli, given, |queue| ask::status(queue, out)),
        Action::Top { address, once } => with_status_queue(cli, address, |queue| ask::top(queue, *once, out)),
        Action::Replay { from, to } => ask::replay(from, to, out),
    }
}

/// With the address that was given. Only without one is the configuration read, so that a broken one does not matter.
fn with_status_queue(
    cli: &Cli,
    given: &Option<Address>,
    work: impl FnOnce(&Address) -> io::Result<u8>,
) -> io::Result<u8> {
    if let Some(address) = given {
        return work(address);
    }
    with_config(cli, |config| match &config.statusqueue {
        Some(address) => work(address),
        None => {
            say("gearman-proxy: the configuration has no `statusqueue`: set one, or give its address behind a `=`\n");
            Ok(WRONG)
        }
    })
}

/// The check and the service take the same way to their configuration.
fn with_config(cli: &Cli, work: impl FnOnce(Config) -> io::Result<u8>) -> io::Result<u8> {
    match config::load(&cli.config) {
        Ok(config) => work(config),
        Err(errors) => {
            errors.warnings.iter().for_each(|warning| warn(warning));
            say(&format!("{errors}\n"));
            Ok(WRONG)
        }
    }
}

/// An output whose reader may leave, as in `gearman-proxy --check | head`: that is not a failure.
struct Readable<W>(W);

impl<W: Write> Write for Readable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_left(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_left(self.0.flush(), ())
    }
}

fn unless_left<T>(outcome: io::Result<T>, left: T) -> io::Result<T> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(left) } else { Err(error) })
}

fn print(text: &str) -> io::Result<u8> {
    let mut out = Readable(io::stdout());
    out.write_all(text.as_bytes())?;
    out.flush().map(|()| 0)
}

/// If it can't be written, nothing more can be done.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn warn(warning: &str) {
    say(&format!("warning: {warning}\n"));
}

fn fail(error: &dyn std::error::Error) -> u8 {
    say(&format!("gearman-proxy: {error}\n"));
    FAILED
}
