//! Command line in, exit status out; nothing else.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use gearman_proxy::cli::{self, Action, Cli};
use gearman_proxy::config::{self, Address, Config};
use gearman_proxy::{ask, convert, proxy, trial};

/// A failure at run time.
const FAILED: u8 = 1;
/// A wrong command line or configuration.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let status = match cli::parse(std::env::args_os().skip(1)) {
        Ok(cli) => run(&cli),
        Err(error) => {
            eprintln!("gearman-proxy: {error}");
            WRONG
        }
    };
    ExitCode::from(status)
}

fn run(cli: &Cli) -> u8 {
    match &cli.action {
        Action::Help => print(&cli::help()),
        Action::Version => print(&cli::version()),
        Action::Convert(files) => convert::run(files, &mut io::stdout(), &mut io::stderr()),
        Action::Run => with_config(cli, |config| match proxy::run(cli, config) {
            Ok(()) => 0,
            Err(error) => fail(&error),
        }),
        Action::Check => with_config(cli, |config| {
            for warning in config.warnings.iter().chain(&config.open_files_warning()) {
                eprintln!("warning: {warning}");
            }
            print(&config.table())
        }),
        Action::Try(address) => with_config(cli, |config| {
            trial::run(&config, address, &mut io::stdin(), &mut io::stdout(), &mut io::stderr())
                .unwrap_or_else(|error| fail(&error))
        }),
        Action::Status(address) => with_status_queue(cli, address, |address| ask::status(address, &mut io::stdout())),
        Action::Top { address, once } => {
            with_status_queue(cli, address, |address| ask::top(address, *once, &mut io::stdout()))
        }
        Action::Replay { from, to } => ask::replay(from, to, &mut io::stdout()).unwrap_or_else(|error| fail(&error)),
    }
}

/// With the address that was given; only without one is the configuration read, which may be wrong.
fn with_status_queue(cli: &Cli, given: &Option<Address>, work: impl FnOnce(&Address) -> io::Result<u8>) -> u8 {
    let work = |address: &Address| work(address).unwrap_or_else(|error| fail(&error));
    if let Some(address) = given {
        return work(address);
    }
    with_config(cli, |config| match &config.statusqueue {
        Some(address) => work(address),
        None => {
            eprintln!("gearman-proxy: the configuration has no statusqueue: set one, or give its address behind a `=`");
            WRONG
        }
    })
}

/// The check and the service take the same way to their configuration.
fn with_config(cli: &Cli, work: impl FnOnce(Config) -> u8) -> u8 {
    match config::load(&cli.config_paths()) {
        Ok(config) => work(config),
        Err(errors) => {
            let colour =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            for warning in &errors.warnings {
                eprintln!("warning: {warning}");
            }
            eprint!("{}", errors.report(colour));
            WRONG
        }
    }
}

fn print(text: &str) -> u8 {
    io::stdout().write_all(text.as_bytes()).map_or_else(|error| fail(&error), |()| 0)
}

fn fail(error: &dyn std::error::Error) -> u8 {
    eprintln!("gearman-proxy: {error}");
    FAILED
}
