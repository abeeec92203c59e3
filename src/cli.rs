//! The command line: one table of options, for getopts, `--help` and the manual page.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use getopts::{HasArg, Occur, Options};

use crate::config::{LogTarget, default_paths};

/// An option of the command line.
#[derive(Debug, Clone, Copy)]
pub struct CliOption {
    /// The letter behind one hyphen, empty if there is none.
    pub short: &'static str,
    /// The name behind two hyphens.
    pub long: &'static str,
    /// Another name behind two hyphens, empty if there is none.
    pub alias: &'static str,
    /// What the argument is called, empty if the option takes none; in brackets if it can be left out.
    pub argument: &'static str,
    /// What it does, in plain text.
    pub meaning: &'static str,
}

/// All options, in the order of the documentation.
pub static OPTIONS: [CliOption; 12] = [
    CliOption {
        short: "c",
        long: "config",
        alias: "",
        argument: "PATH",
        meaning: "Read the configuration from a file, from the *.cfg and *.conf in a folder, or from what a pattern \
                  matches. May be repeated. Without it, $OMD_ROOT/etc/mod-gearman/proxy.conf where OMD_ROOT is set, \
                  else /etc/gearman-proxy/proxy.conf.",
    },
    CliOption {
        short: "l",
        long: "logfile",
        alias: "log",
        argument: "PATH",
        meaning: "Log to stdout (also -), stderr or a file.",
    },
    CliOption {
        short: "p",
        long: "pidfile",
        alias: "pid",
        argument: "PATH",
        meaning: "Write the process id to a file at start and remove the file at the end.",
    },
    CliOption {
        short: "d",
        long: "debug",
        alias: "",
        argument: "[=LEVEL]",
        meaning: "Log what happens: 0 only what changes, 1 debug, 2 trace. Without a level, 1.",
    },
    CliOption {
        short: "v",
        long: "verbose",
        alias: "",
        argument: "",
        meaning: "Log at debug level; given twice, at trace level.",
    },
    CliOption { short: "q", long: "quiet", alias: "", argument: "", meaning: "Log errors and warnings only." },
    CliOption {
        short: "t",
        long: "check",
        alias: "",
        argument: "",
        meaning: "Read the configuration, print its forwards as a table and exit, with 2 if anything is wrong.",
    },
    CliOption {
        short: "",
        long: "try",
        alias: "",
        argument: "ADDRESS",
        meaning: "Run the stages of the forward from this address on a job's data from standard input and show each \
                  outcome; send nothing. Exits with 1 if the job is undeliverable.",
    },
    CliOption {
        short: "",
        long: "top",
        alias: "",
        argument: "",
        meaning: "Show the forwards of the configuration at work, every second anew: their job servers and, where there \
                  is a status queue, the running proxy are asked. q and Enter end it.",
    },
    CliOption { short: "", long: "once", alias: "", argument: "", meaning: "Show that once." },
    CliOption { short: "V", long: "version", alias: "", argument: "", meaning: "Print the version and exit." },
    CliOption { short: "h", long: "help", alias: "", argument: "", meaning: "Print this help and exit." },
];

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Relay jobs.
    Run,
    /// Read the configuration and print its forwards.
    Check,
    /// Run the stages of the forward from this address, as it was written, on standard input.
    Try(String),
    /// Show the forwards at work.
    Top {
        /// Once, not every second.
        once: bool,
    },
    /// Print [`help`].
    Help,
    /// Print [`version`].
    Version,
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cli {
    /// What is to be done.
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

impl Cli {
    /// What to read the configuration from: what was given, else the default.
    #[must_use]
    pub fn config_paths(&self) -> Vec<PathBuf> {
        if self.config.is_empty() { default_paths() } else { self.config.clone() }
    }
}

/// Why a command line is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    message: String,
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; --help lists the options", self.message)
    }
}

impl std::error::Error for CliError {}

fn wrong<T>(message: impl Into<String>) -> Result<T, CliError> {
    Err(CliError { message: message.into() })
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// It can't be understood, or asks for two things at once.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, CliError> {
    let mut texts = Vec::new();
    for arg in args {
        match arg.into_string() {
            Ok(text) => texts.push(text),
            Err(arg) => return wrong(format!("the argument {arg:?} is not UTF-8")),
        }
    }
    let matches = options().parse(&texts).map_err(|fail| CliError { message: in_words(&fail) })?;
    if matches.opt_present("help") || matches.opt_present("version") {
        let action = if matches.opt_present("help") { Action::Help } else { Action::Version };
        return Ok(Cli { action, config: Vec::new(), logfile: None, pidfile: None, debug: None, quiet: false });
    }

    let mut actions = Vec::new();
    let tried = at_most_one(&matches, &["try"])?;
    if matches.opt_present("check") {
        actions.push(("--check", Action::Check));
    }
    if let Some(address) = tried {
        actions.push(("--try", Action::Try(address)));
    }
    if matches.opt_present("top") || matches.opt_present("once") {
        let once = matches.opt_present("once");
        actions.push((if matches.opt_present("top") { "--top" } else { "--once" }, Action::Top { once }));
    }
    if let [(first, _), (second, _), ..] = actions.as_slice() {
        return wrong(format!("{first} and {second} can't be asked for at once"));
    }
    if let Some(free) = matches.free.first() {
        return wrong(format!(
            "{free:?} belongs to no option: a configuration is named with --config={free}, a level with --debug=N"
        ));
    }

    let quiet = matches.opt_present("quiet");
    let debug = debug(&matches)?;
    if quiet && debug.is_some() {
        return wrong("--quiet can't be given with --debug or --verbose");
    }
    let config = matches.opt_strs("config");
    let logfile = at_most_one(&matches, &["logfile", "log"])?;
    let pidfile = at_most_one(&matches, &["pidfile", "pid"])?;
    for (name, values) in
        [("config", config.as_slice()), ("logfile", logfile.as_slice()), ("pidfile", pidfile.as_slice())]
    {
        if values.iter().any(String::is_empty) {
            return wrong(format!("--{name} needs a path"));
        }
    }
    Ok(Cli {
        action: actions.pop().map_or(Action::Run, |(_, action)| action),
        config: config.into_iter().map(PathBuf::from).collect(),
        logfile: logfile.map(LogTarget::from_text),
        pidfile: pidfile.map(PathBuf::from),
        debug,
        quiet,
    })
}

fn options() -> Options {
    let mut options = Options::new();
    for option in &OPTIONS {
        let has_arg = match option.argument {
            "" => HasArg::No,
            "[=LEVEL]" => HasArg::Maybe,
            _ => HasArg::Yes,
        };
        options.opt(option.short, option.long, option.meaning, option.argument, has_arg, Occur::Multi);
        if !option.alias.is_empty() {
            options.opt("", option.alias, option.meaning, option.argument, has_arg, Occur::Multi);
        }
    }
    options
}

fn in_words(fail: &getopts::Fail) -> String {
    use getopts::Fail;
    let dashed = |name: &str| if name.chars().count() == 1 { format!("-{name}") } else { format!("--{name}") };
    match fail {
        Fail::ArgumentMissing(name) => {
            let argument = OPTIONS
                .iter()
                .find(|option| [option.short, option.long, option.alias].contains(&name.as_str()))
                .map_or("argument", |option| option.argument);
            format!("{} needs its {argument}", dashed(name))
        }
        Fail::UnrecognizedOption(name) => format!("there is no option {}", dashed(name)),
        Fail::UnexpectedArgument(name) => format!("{} takes no argument", dashed(name)),
        Fail::OptionMissing(name) | Fail::OptionDuplicated(name) => format!("{} is given once", dashed(name)),
    }
}

/// The one argument of an option under all its names.
fn at_most_one(matches: &getopts::Matches, names: &[&str]) -> Result<Option<String>, CliError> {
    let mut given: Vec<String> = names.iter().flat_map(|name| matches.opt_strs(name)).collect();
    if given.len() > 1 {
        return wrong(format!("--{} can be given once only", names.first().unwrap_or(&"")));
    }
    Ok(given.pop())
}

/// The level that `--debug` and `--verbose` ask for; the higher one of both.
fn debug(matches: &getopts::Matches) -> Result<Option<u8>, CliError> {
    let verbose = match matches.opt_count("verbose") {
        0 => None,
        1 => Some(1),
        _ => Some(2),
    };
    if !matches.opt_present("debug") {
        return Ok(verbose);
    }
    let levels = matches.opt_strs("debug");
    let debug = match levels.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => 1,
        ["0"] => 0,
        ["1"] => 1,
        ["2"] => 2,
        [level] => return wrong(format!("--debug takes 0, 1 or 2, not {level:?}")),
        _ => return wrong("--debug can be given one level only"),
    };
    Ok(Some(debug).max(verbose))
}

/// The text of `--help`, under 80 columns wide.
#[must_use]
pub fn help() -> String {
    const INDENTATION: usize = 27;
    let mut text = String::from(
        "gearman-proxy relays Gearman jobs from queues of one job server to queues of another.\n\
         \n\
         Usage: gearman-proxy [OPTION]...\n\
         \n",
    );
    text = wrapped(&text, 0);
    for option in &OPTIONS {
        let line = format!("  {}", spelling(option));
        if line.chars().count() + 2 > INDENTATION {
            text.push_str(&format!("{line}\n{:INDENTATION$}", ""));
        } else {
            text.push_str(&format!("{line:INDENTATION$}"));
        }
        let mut meaning = option.meaning.to_owned();
        if !option.alias.is_empty() {
            meaning.push_str(&format!(" Also --{}.", option.alias));
        }
        text.push_str(wrapped(&meaning, INDENTATION).trim_start());
    }
    text.push_str(
        "\nSIGHUP reads the configuration again and reopens the log; SIGTERM stops.\n\
         Exit status: 0 a clean stop, 1 a failure at run time, 2 a wrong command line\n\
         or configuration.\n",
    );
    text
}

/// The option as documentation writes it: `-c, --config PATH`.
#[must_use]
pub fn spelling(option: &CliOption) -> String {
    let short = if option.short.is_empty() { "    ".to_owned() } else { format!("-{}, ", option.short) };
    let gap = if option.argument.is_empty() || option.argument.starts_with('[') { "" } else { " " };
    format!("{short}--{}{gap}{}", option.long, option.argument)
}

/// The text in lines of at most 79 columns, each indented.
fn wrapped(text: &str, indentation: usize) -> String {
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let length = line.chars().count();
            if length > 0 && indentation + length + 1 + word.chars().count() > 79 {
                out.push_str(&format!("{:indentation$}{line}\n", ""));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        out.push_str(&format!("{:indentation$}{line}\n", ""));
    }
    out
}

/// The text of `--version`: `gearman-proxy 1.0.0 (commit, target)`.
#[must_use]
pub fn version() -> String {
    format!(
        "gearman-proxy {} ({}, {})\n",
        env!("CARGO_PKG_VERSION"),
        env!("GEARMAN_PROXY_COMMIT"),
        env!("GEARMAN_PROXY_TARGET")
    )
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
        assert_eq!(error("--debug=3"), "--debug takes 0, 1 or 2, not \"3\"; --help lists the options");
        assert_eq!(error("-q -v"), "--quiet can't be given with --debug or --verbose; --help lists the options");
    }

    #[test]
    fn actions() {
        assert_eq!(parsed("--try h:1/q").action, Action::Try("h:1/q".into()));
        assert_eq!(parsed("--top").action, Action::Top { once: false });
        assert_eq!(parsed("--top --once").action, Action::Top { once: true });
        assert_eq!(parsed("--once").action, Action::Top { once: true });
        assert_eq!(parsed("-h -t --top").action, Action::Help);
        assert_eq!(parsed("-V").action, Action::Version);
        assert_eq!(parsed("").config_paths(), default_paths());
    }

    #[test]
    fn a_wrong_command_line_says_what_would_be_right() {
        let end = "; --help lists the options";
        for (line, message) in [
            ("--confg=x", "there is no option --confg"),
            ("-x", "there is no option -x"),
            ("--config", "--config needs its PATH"),
            ("--config=", "--config needs a path"),
            ("--check=1", "--check takes no argument"),
            ("--log=a --logfile=b", "--logfile can be given once only"),
            ("--try", "--try needs its ADDRESS"),
            ("--check --top", "--check and --top can't be asked for at once"),
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
    }
}
