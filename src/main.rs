//! Command line in, exit status out; nothing else.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use gearman_proxy::cli::{self, Action, Cli};
use gearman_proxy::config::{self, Config};
use gearman_proxy::{proxy, top, trial};

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
        Action::Top { once } => {
            with_config(cli, |config| top::run(&config, *once, &mut io::stdout()).unwrap_or_else(|error| fail(&error)))
        }
    }
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
