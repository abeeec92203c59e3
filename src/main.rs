//! Command line in, exit status out.

use std::io::IsTerminal;
use std::process::ExitCode;

use gearman_proxy::cli::{self, Action};
use gearman_proxy::config;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os().skip(1)) {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("gearman-proxy: {error}");
            return ExitCode::from(2);
        }
    };
    match cli.action {
        Action::Help => print!("{}", cli::help()),
        Action::Version => print!("{}", cli::version()),
        _ => match config::load(&cli.config_paths()) {
            Ok(config) => {
                for warning in config.warnings.iter().chain(&config.open_files_warning()) {
                    eprintln!("warning: {warning}");
                }
                print!("{}", config.table());
            }
            Err(errors) => {
                for warning in &errors.warnings {
                    eprintln!("warning: {warning}");
                }
                let colour =
                    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
                eprint!("{}", errors.report(colour));
                return ExitCode::from(2);
            }
        },
    }
    ExitCode::SUCCESS
}
