//! The command line: one table of options, for getopts, `--help` and the manual page.

use std::ffi::OsString;
use std::path::PathBuf;

use getopts::{Fail, HasArg, Matches, Occur, Options};

use crate::config::keys::nearest;
use crate::config::{Address, LogTarget};
use crate::sandbox;

/// An option of the command line.
#[derive(Debug, Clone, Copy)]
pub struct CliOption {
    /// The letter behind one hyphen, empty if there is none.
    pub short: &'static str,
    /// The name behind two hyphens.
    pub long: &'static str,
    /// Another name behind two hyphens, empty if there is none.
    pub alias: &'static str,
    /// What the argument is called, empty if the option takes none; `[=NAME]` if it can be left out.
    pub argument: &'static str,
    /// What it does, in plain text.
    pub meaning: &'static str,
}

/// Makes the table of `LETTER NAME ALIAS ARGUMENT: MEANING`.
macro_rules! options {
    ($($short:literal $long:literal $alias:literal $argument:literal: $meaning:literal)+) => {
        /// All options, in the order of the documentation.
        pub static OPTIONS: [CliOption; [$($long),+].len()] = [
            $(CliOption { short: $short, long: $long, alias: $alias, argument: $argument, meaning: $meaning }),+
        ];
    };
}

options! {
    "c" "config" "" "PATH":
        "Read the configuration from a file, from the *.cfg and *.conf in a folder, or from what a pattern matches. May be \
         repeated. Without it, $OMD_ROOT/etc/mod-gearman/proxy.conf where OMD_ROOT is set, else \
         /etc/gearman-proxy/proxy.conf."
    "l" "logfile" "log" "PATH": "Log to stdout (also -), stderr or a file."
    "p" "pidfile" "pid" "PATH":
        "Write the process id to a file at start and remove the file at the end. One that names a live proxy is an error."
    "d" "debug" "" "[=LEVEL]": "Log at this level: 0 info, 1 debug, 2 trace. Without a level, 1."
    "v" "verbose" "" "": "Log at debug level; given twice, at trace level."
    "q" "quiet" "" "": "Log errors and warnings only."
    "t" "check" "" "":
        "Read the configuration, print its forwards as a table and exit: with 0, or with 2 if anything is wrong. Nothing is \
         touched."
    "" "try" "" "ADDRESS":
        "Run the stages of the forward from this address on a job's data from standard input and show each outcome; send \
         nothing. Exits with 1 if the job is undeliverable."
    "" "status" "" "[=ADDRESS]":
        "Ask the running proxy how it is, print its answer (a line with performance data, as of a monitoring plugin) and \
         exit: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. It is asked on the status queue at this address, else on that of \
         the configuration."
    "" "top" "" "[=ADDRESS]":
        "Live view of all forwards of a running proxy, refreshed every second. It is asked on the status queue at this \
         address, else on that of the configuration. q and Enter end it."
    "" "once" "" "": "With --top, show the view once and exit as --status does."
    "" "replay" "" "QUEUE-ADDRESS=ADDRESS":
        "Move the jobs that are in the first queue to the second as they are, e.g. from a reject queue back to its source, \
         and exit when all that were there are moved."
    "V" "version" "" "": "Print the version and exit."
    "h" "help" "" "": "Print this help and exit."
}

/// What the command line asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Action {
    /// Relay jobs.
    #[default]
    Run,
    /// Read the configuration and print its forwards.
    Check,
    /// Run the stages of the forward from this address, as it was written, on standard input.
    Try(String),
    /// Ask this status queue, or the configuration's, how the proxy is.
    Status(Option<Address>),
    /// Show the forwards at work, as this status queue or the configuration's tells.
    Top {
        address: Option<Address>,
        /// Once, not every second.
        once: bool,
    },
    /// Move the jobs of one queue to another, once.
    Replay { from: Address, to: Address },
    /// Print [`help`].
    Help,
    /// Print [`version`].
    Version,
}

/// A command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cli {
    pub action: Action,
    /// Files, folders and patterns of the configuration, in their order; empty if none was given.
    pub config: Vec<PathBuf>,
    /// Instead of the configuration's.
    pub logfile: Option<LogTarget>,
    /// Instead of the configuration's.
    pub pidfile: Option<PathBuf>,
    /// 0 to 2 as in the configuration, instead of the configuration's.
    pub debug: Option<u8>,
    /// Whether errors and warnings only are logged; then `debug` is none.
    pub quiet: bool,
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// It can't be understood, or asks for two things at once: why, and what would be right.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, String> {
    read(args).map_err(|message| message + "; --help lists the options")
}

fn read(args: impl Iterator<Item = OsString>) -> Result<Cli, String> {
    let text = |arg: OsString| arg.into_string().map_err(|arg| format!("the argument {arg:?} is not UTF-8"));
    let texts = args.map(text).collect::<Result<Vec<String>, String>>()?;
    let matches = options().parse(&texts).map_err(in_words)?;
    for (name, action) in [("help", Action::Help), ("version", Action::Version)] {
        if matches.opt_present(name) {
            return Ok(Cli { action, ..Cli::default() });
        }
    }
    let action = action(&matches)?;
    if let Some(free) = matches.free.first() {
        let shown = free.escape_debug();
        return Err(match action {
            Action::Status(None) => format!("the address stands behind a `=`: --status={shown}"),
            Action::Top { address: None, .. } => format!("the address stands behind a `=`: --top={shown}"),
            _ => format!(
                "\"{shown}\" belongs to no option: a configuration is named with --config={shown}, a level with \
                 --debug=N"
            ),
        });
    }

    let quiet = matches.opt_present("quiet");
    let debug = debug(&matches)?;
    if quiet && debug.is_some() {
        return Err("--quiet can't be given with --debug or --verbose".to_owned());
    }
    Ok(Cli {
        action,
        config: given(&matches, &["config"])?.into_iter().map(PathBuf::from).collect(),
        logfile: at_most_one(&matches, &["logfile", "log"])?.map(LogTarget::from_text),
        pidfile: at_most_one(&matches, &["pidfile", "pid"])?.map(PathBuf::from),
        debug,
        quiet,
    })
}

/// The one thing that is asked for.
fn action(matches: &Matches) -> Result<Action, String> {
    let address = |option: &str, text: &str| Address::parse(text).map_err(|error| format!("--{option}: {error}"));
    let optional = |option| at_most_one(matches, &[option])?.map(|text| address(option, &text)).transpose();
    let mut actions = Vec::new();
    if matches.opt_present("check") {
        actions.push(("--check", Action::Check));
    }
    if let Some(address) = at_most_one(matches, &["try"])? {
        actions.push(("--try", Action::Try(address)));
    }
    if matches.opt_present("status") {
        actions.push(("--status", Action::Status(optional("status")?)));
    }
    let once = matches.opt_present("once");
    if once || matches.opt_present("top") {
        let name = if matches.opt_present("top") { "--top" } else { "--once" };
        actions.push((name, Action::Top { address: optional("top")?, once }));
    }
    if let Some(queues) = at_most_one(matches, &["replay"])? {
        let (from, to) =
            queues.split_once('=').ok_or("--replay needs two addresses: --replay QUEUE-ADDRESS=ADDRESS")?;
        let (from, to) = (address("replay", from)?, address("replay", to)?);
        if from == to {
            return Err("--replay needs two different addresses".to_owned());
        }
        actions.push(("--replay", Action::Replay { from, to }));
    }
    if let [(first, _), (second, _), ..] = actions.as_slice() {
        return Err(format!("{first} and {second} can't be combined"));
    }
    Ok(actions.pop().map_or(Action::Run, |(_, action)| action))
}

fn options() -> Options {
    let mut options = Options::new();
    for option in &OPTIONS {
        let has_arg = match option.argument {
            "" => HasArg::No,
            argument if argument.starts_with('[') => HasArg::Maybe,
            _ => HasArg::Yes,
        };
        options.opt(option.short, option.long, option.meaning, option.argument, has_arg, Occur::Multi);
        if !option.alias.is_empty() {
            options.opt("", option.alias, option.meaning, option.argument, has_arg, Occur::Multi);
        }
    }
    options
}

fn in_words(fail: Fail) -> String {
    let dashed = |name: &str| if name.chars().count() == 1 { format!("-{name}") } else { format!("--{name}") };
    let names = || OPTIONS.iter().flat_map(|option| [option.long, option.alias]).filter(|name| !name.is_empty());
    match fail {
        Fail::ArgumentMissing(name) => {
            let named = |option: &&CliOption| [option.short, option.long, option.alias].contains(&name.as_str());
            let argument = OPTIONS.iter().find(named).map_or("argument", |option| option.argument);
            format!("{} needs its {argument}", dashed(&name))
        }
        Fail::UnrecognizedOption(name) => {
            let near = nearest(&name, names()).map_or_else(String::new, |near| format!(": did you mean --{near}?"));
            format!("there is no option {}{near}", dashed(&name).escape_debug())
        }
        Fail::UnexpectedArgument(name) => format!("{} takes no argument", dashed(&name)),
        Fail::OptionMissing(name) | Fail::OptionDuplicated(name) => format!("{} is given once", dashed(&name)),
    }
}

/// The arguments of an option under all its names.
fn given(matches: &Matches, names: &[&str]) -> Result<Vec<String>, String> {
    let given: Vec<String> = names.iter().flat_map(|name| matches.opt_strs(name)).collect();
    if given.iter().any(String::is_empty) { Err(format!("--{} is empty", names[0])) } else { Ok(given) }
}

/// The one argument of an option.
fn at_most_one(matches: &Matches, names: &[&str]) -> Result<Option<String>, String> {
    let mut given = given(matches, names)?;
    if given.len() > 1 { Err(format!("--{} can be given only once", names[0])) } else { Ok(given.pop()) }
}

/// The level that `--debug` and `--verbose` ask for; the higher one of both.
fn debug(matches: &Matches) -> Result<Option<u8>, String> {
    let verbose = [None, Some(1), Some(2)][matches.opt_count("verbose").min(2)];
    let debug = match at_most_one(matches, &["debug"])?.as_deref() {
        None => matches.opt_present("debug").then_some(1),
        Some(level @ ("0" | "1" | "2")) => level.parse().ok(),
        Some(level) => return Err(format!("invalid level {level:?} for --debug: expected 0, 1 or 2")),
    };
    Ok(debug.max(verbose))
}

/// The text of `--help`, under 80 columns wide.
pub fn help() -> String {
    const INDENTATION: usize = 27;
    let mut text = wrapped(concat!(env!("CARGO_PKG_DESCRIPTION"), ".\n\nUsage: gearman-proxy [OPTION]...\n\n"), 0);
    for option in &OPTIONS {
        let line = format!("  {}", spelling(option));
        let end = if line.len() + 2 > INDENTATION { "\n" } else { "" };
        let also = if option.alias.is_empty() { String::new() } else { format!(" Also --{}.", option.alias) };
        let meaning = wrapped(&format!("{}{also}", option.meaning), INDENTATION);
        // On the same line where there is room.
        text += &format!("{line}{end}{}", &meaning[if end.is_empty() { line.len() } else { 0 }..]);
    }
    let end = "SIGHUP reads the configuration again and reopens the log; SIGTERM stops.\nExit status: 0 a clean stop, 1 a \
               failure at run time, 2 a wrong command line or configuration.";
    format!("{text}\n{}", wrapped(end, 0))
}

/// The option as documentation writes it: `-c, --config PATH`.
pub fn spelling(option: &CliOption) -> String {
    let short = if option.short.is_empty() { "    ".to_owned() } else { format!("-{}, ", option.short) };
    let gap = if option.argument.is_empty() || option.argument.starts_with('[') { "" } else { " " };
    format!("{short}--{}{gap}{}", option.long, option.argument)
}

/// The text in lines of at most 79 columns, each indented.
fn wrapped(text: &str, indentation: usize) -> String {
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut line = " ".repeat(indentation);
        for word in paragraph.split_whitespace() {
            if line.len() > indentation && line.len() + 1 + word.len() > 79 {
                out += &(line + "\n");
                line = " ".repeat(indentation);
            }
            line += if line.len() > indentation { " " } else { "" };
            line += word;
        }
        out += &(line + "\n");
    }
    out
}

/// The text of `--version`: `gearman-proxy 1.0.0 (commit, target)`, and whether this build restricts itself.
pub fn version() -> String {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("GEARMAN_PROXY_COMMIT"));
    let filter = match sandbox::supported() {
        true => "on while it runs, where the kernel permits (the status says so)",
        false => "none for this architecture",
    };
    format!("gearman-proxy {version} ({commit}, {})\nseccomp filter: {filter}\n", env!("GEARMAN_PROXY_TARGET"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Cli {
        parse(line.split_whitespace().map(OsString::from)).unwrap()
    }

    fn error(line: &str) -> String {
        parse(line.split_whitespace().map(OsString::from)).unwrap_err().to_string()
    }

    #[test]
    fn the_perl_scripts_and_omds_spellings_are_understood() {
        let cli = parsed("--config=./gearman_proxy.cfg --config=./conf.d --logfile=stdout --debug");
        assert_eq!(cli.action, Action::Run);
        assert_eq!(cli.config, [PathBuf::from("./gearman_proxy.cfg"), PathBuf::from("./conf.d")]);
        assert_eq!((cli.logfile, cli.debug), (Some(LogTarget::Stdout), Some(1)));
        let cli = parsed("--log=/var/log/x --pid=/run/x --config=a --config=b");
        assert_eq!(cli.logfile, Some(LogTarget::File("/var/log/x".into())));
        assert_eq!(cli.pidfile, Some("/run/x".into()));
    }

    #[test]
    fn short_forms() {
        let cli = parsed("-c a -cb -l - -p x -q -t");
        assert_eq!(cli.config, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(cli.logfile, Some(LogTarget::Stdout));
        assert_eq!((cli.pidfile, cli.quiet, cli.action), (Some("x".into()), true, Action::Check));
        assert_eq!(parsed("-l stderr").logfile, Some(LogTarget::Stderr));
    }

    #[test]
    fn debug_levels() {
        for (line, level) in [
            ("", None),
            ("-d", Some(1)),
            ("--debug", Some(1)),
            ("--debug=0", Some(0)),
            ("--debug=2", Some(2)),
            ("-d2", Some(2)),
            ("-d 2", Some(2)),
            ("-d -t", Some(1)),
            ("--debug --check", Some(1)),
            ("-v", Some(1)),
            ("-vv", Some(2)),
            ("-v -v -v", Some(2)),
            ("-d -vv", Some(2)),
        ] {
            assert_eq!(parsed(line).debug, level, "{line}");
        }
        assert_eq!(error("--debug=3"), "invalid level \"3\" for --debug: expected 0, 1 or 2; --help lists the options");
        assert_eq!(error("-q -v"), "--quiet can't be given with --debug or --verbose; --help lists the options");
    }

    #[test]
    fn actions() {
        assert_eq!(parsed("--try h:1/q").action, Action::Try("h:1/q".into()));
        let address = |text| Address::parse(text).unwrap();
        for (line, asked, once) in [
            ("--top", None, false),
            ("--top --once", None, true),
            ("--once", None, true),
            ("--top=h:1/q", Some(address("h:1/q")), false),
            ("--once --top=h:1/q", Some(address("h:1/q")), true),
        ] {
            assert_eq!(parsed(line).action, Action::Top { address: asked, once }, "{line}");
        }
        assert_eq!(parsed("--status").action, Action::Status(None));
        assert_eq!(parsed("--status=[::1]/q").action, Action::Status(Some(address("[::1]/q"))));
        let replay = Action::Replay { from: address("h/bad"), to: address("h/good=1") };
        assert_eq!(parsed("--replay h/bad=h/good=1").action, replay);
        assert_eq!(parsed("--replay=h/bad=h/good=1").action, replay);
        assert_eq!(parsed("-h -t --top").action, Action::Help);
        assert_eq!(parsed("-V").action, Action::Version);
        assert_eq!((parsed("").action, parsed("").config), (Action::Run, Vec::new()));
    }

    #[test]
    fn a_wrong_command_line_says_what_would_be_right() {
        let end = "; --help lists the options";
        for (line, message) in [
            ("--confg=x", "there is no option --confg: did you mean --config?"),
            ("--logfil=x", "there is no option --logfil: did you mean --logfile?"),
            ("--convert x", "there is no option --convert"),
            ("--status h:1/q", "the address stands behind a `=`: --status=h:1/q"),
            ("--top h:1/q", "the address stands behind a `=`: --top=h:1/q"),
            ("--top=h:1", "--top: the queue is missing in `h:1`: HOST:PORT/QUEUE"),
            ("--replay h/a", "--replay needs two addresses: --replay QUEUE-ADDRESS=ADDRESS"),
            ("--replay h/a=H/a", "--replay needs two different addresses"),
            ("--status --once", "--status and --once can't be combined"),
            ("-x", "there is no option -x"),
            ("--config", "--config needs its PATH"),
            ("--config=", "--config is empty"),
            ("--pid=", "--pidfile is empty"),
            ("--check=1", "--check takes no argument"),
            ("--log=a --logfile=b", "--logfile can be given only once"),
            ("--try", "--try needs its ADDRESS"),
            ("--check --top", "--check and --top can't be combined"),
            (
                "proxy.conf",
                "\"proxy.conf\" belongs to no option: a configuration is named with --config=proxy.conf, a level with \
                 --debug=N",
            ),
        ] {
            assert_eq!(error(line), format!("{message}{end}"), "{line}");
        }
    }

    #[test]
    fn help_names_every_option_and_fits_a_terminal() {
        let help = help();
        for option in &OPTIONS {
            assert!(help.contains(&spelling(option)), "{}", option.long);
            assert!(help.contains(&format!("--{}", option.alias)), "{}", option.long);
        }
        for line in help.lines() {
            assert!(line.chars().count() < 80, "{line}");
            assert_eq!(line.trim_end(), line);
        }
    }

    #[test]
    fn the_version_names_commit_and_target() {
        let version = version();
        assert!(version.starts_with(concat!("gearman-proxy ", env!("CARGO_PKG_VERSION"), " (")), "{version}");
        assert!(version.contains(std::env::consts::ARCH), "{version}");
        assert!(version.contains("\nseccomp filter: on while it runs"), "{version}");
    }
}
