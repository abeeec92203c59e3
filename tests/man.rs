//! The documentation says what the program says: the manual pages are made from the tables of options and keys and the
//! prose in `dist/man/`, and what is committed in `dist/` is compared with that; README and `docs/` against the tables,
//! the README's configurations against `--check`.
//!
//! `UPDATE=1 cargo test --test man` writes the manual pages again.

// Clippy's own exception for tests leaves out their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gearman_proxy::cli::{self, CliOption, OPTIONS};
use gearman_proxy::config::keys::{Entry, KEYS, Scope};
use gearman_proxy::gearman::connection::ConnectionError;
use gearman_proxy::gearman::packet::ProtocolError;
use gearman_proxy::stages::Undeliverable;

const COMMAND: &str = include_str!("../dist/man/gearman-proxy.1.in");
const CONFIGURATION: &str = include_str!("../dist/man/gearman-proxy.conf.5.in");

/// `gearman-proxy(1)` in roff, for man-pages' `an` macros.
fn command() -> String {
    let options: Vec<String> = OPTIONS.iter().map(option).collect();
    filled(COMMAND, &[("OPTIONS", &options.concat())])
}

/// `gearman-proxy.conf(5)`, likewise.
fn configuration() -> String {
    let keys = |global: bool| -> String {
        KEYS.iter().filter(|entry| (entry.scope == Scope::Global) == global).map(key).collect()
    };
    filled(CONFIGURATION, &[("GLOBAL KEYS", &keys(true)), ("FORWARD KEYS", &keys(false))])
}

/// The template with each line `@NAME@` replaced by the list of that name.
fn filled(template: &str, lists: &[(&str, &str)]) -> String {
    let mut page = template.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    for (name, list) in lists {
        page = page.replace(&format!("@{name}@\n"), list);
    }
    page
}

fn option(option: &CliOption) -> String {
    let CliOption { short, long, alias, argument, meaning } = option;
    let shown = match argument.strip_prefix("[=").and_then(|optional| optional.strip_suffix(']')) {
        Some(optional) => format!("[\\fB=\\fI{}\\fR]", escaped(optional)),
        None if argument.is_empty() => String::new(),
        None => format!(" \\fI{}\\fR", escaped(argument)),
    };
    let mut spellings = Vec::new();
    if !short.is_empty() {
        spellings.push(format!("\\fB\\-{}\\fR", escaped(short)));
    }
    for name in [long, alias].into_iter().filter(|name| !name.is_empty()) {
        spellings.push(format!("\\fB\\-\\-{}\\fR", escaped(name)));
    }
    format!(".TP\n{}{shown}\n{}", spellings.join(", "), sentences(meaning))
}

fn key(entry: &Entry) -> String {
    let Entry { name, scope, values, default, meaning, .. } = entry;
    let mut out = format!(".TP\n\\fB{}\\fR = \\fI{}\\fR\n{}", escaped(name), escaped(values), sentences(meaning));
    if !default.is_empty() {
        out.push_str(&format!("The default is \\fB{}\\fR.\n", escaped(default)));
    }
    match scope {
        Scope::Global | Scope::Forward => {}
        Scope::Asynchronous => out.push_str("With \\fBasync = 1\\fR only.\n"),
        Scope::Synchronous => out.push_str("With \\fBasync = 0\\fR only.\n"),
    }
    out
}

/// Plain text as lines of roff, a sentence each: so the lines of a page don't move when one of them changes.
fn sentences(text: &str) -> String {
    text.replace(". ", ".\n").replace("e.g.\n", "e.g. ").lines().map(|line| format!("{}\n", escaped(line))).collect()
}

/// Plain text in which roff finds nothing to obey, and which comes out of it as it is.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    if text.starts_with(['.', '\'']) {
        out.push_str("\\&");
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            _ => out.push(character),
        }
    }
    out
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn assert_current(name: &str, page: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path(name), page).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(text(name) == page, "{name} is not what the program says: UPDATE=1 cargo test --test man");
}

#[test]
fn the_manual_pages_are_those_of_this_program() {
    assert_current("dist/gearman-proxy.1", &command());
    assert_current("dist/gearman-proxy.conf.5", &configuration());
}

/// README.md and the pages in `docs/`.
fn documentation() -> String {
    let pages = fs::read_dir(path("docs")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.fold(text("README.md"), |all, page| all + &fs::read_to_string(page).unwrap())
}

/// The first cells of the tables' rows that begin with this, and the rows.
fn rows<'t>(documentation: &'t str, begin: &'t str) -> impl Iterator<Item = (&'t str, &'t str)> {
    let rows = documentation.lines().filter(move |line| line.starts_with(&format!("| `{begin}")));
    rows.filter_map(|row| Some((row.split('`').nth(1)?, row)))
}

#[test]
fn help_and_manual_know_every_option() {
    let (help, page) = (cli::help(), command());
    for option in &OPTIONS {
        for name in [option.long, option.alias].into_iter().filter(|name| !name.is_empty()) {
            assert!(help.contains(&format!("--{name}")), "--help lacks --{name}");
            assert!(page.contains(&format!("\\fB\\-\\-{name}\\fR")), "gearman-proxy.1 lacks --{name}");
        }
    }
}

#[test]
fn the_synopsis_names_every_action() {
    let page = text("dist/man/gearman-proxy.1.in");
    let synopsis = page.split(".SH DESCRIPTION").next().unwrap();
    for action in ["check", "try", "status", "top", "once", "replay"] {
        assert!(synopsis.contains(&format!("\\-\\-{action}")), "the synopsis lacks --{action}");
    }
}

/// A table in the documentation that lists keys lists all of them, with their defaults.
#[test]
fn manual_example_and_documentation_know_every_key() {
    let (page, documentation, example) = (configuration(), documentation(), text("config.example"));
    let listed = rows(&documentation, "max_job_size").next().is_some();
    for key in &KEYS {
        let name = key.name;
        assert!(page.contains(&format!(".TP\n\\fB{name}\\fR = ")), "gearman-proxy.conf.5 lacks {name}");
        let row = rows(&documentation, name).find(|(cell, _)| *cell == name);
        assert!(row.is_some() || !listed, "the documentation's table of keys lacks {name}");
        let has_default = |row: &str| row.contains(&format!("`{}`", key.default)) || key.default.is_empty();
        assert!(row.is_none_or(|(_, row)| has_default(row)), "the default of {name} is missing in the documentation");
        let set = |line: &str| line.trim().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='));
        assert!(example.lines().any(set), "config.example lacks {name}");
    }
}

/// A table in the documentation that lists options lists all of them.
#[test]
fn the_documentations_table_of_options_is_whole() {
    let documentation = documentation();
    let cells: Vec<&str> = rows(&documentation, "-").filter_map(|(_, row)| row.split(" | ").next()).collect();
    let listed = |name: &str| {
        let name = format!("--{name}");
        cells.iter().any(|cell| cell.split(['`', ' ', '=', '[', ',']).any(|word| word == name))
    };
    for option in OPTIONS.iter().filter(|_| listed("check")) {
        assert!(listed(option.long), "the documentation's table of options lacks --{}", option.long);
    }
}

/// The reasons in a log stand in the documentation, with what to do about them.
#[test]
fn the_documentation_explains_every_reason() {
    let documentation = documentation();
    let kinds = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::TimedOut,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::NetworkDown,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::AddrNotAvailable,
        io::ErrorKind::OutOfMemory,
        io::ErrorKind::Other,
    ];
    let mut reasons: Vec<String> =
        kinds.iter().map(|&kind| ConnectionError::Connect(kind.into()).to_string()).collect();
    reasons.push(ConnectionError::Connect(io::Error::from_raw_os_error(24)).to_string());
    reasons.push(ConnectionError::Resolve.to_string());
    reasons.push(ConnectionError::Closed.to_string());
    reasons.push(ConnectionError::NoAnswer(Duration::from_secs(15)).to_string().replace("15", "N"));
    reasons.push(ConnectionError::Refused(String::from("QUEUE_ERROR")).to_string());
    reasons.push(ProtocolError::BadMagic.to_string());
    reasons.push(ProtocolError::TooLong(7).to_string().replace('7', "N"));
    reasons.push(ProtocolError::Unexpected(7).to_string().replace('7', "N"));
    reasons.push(ProtocolError::BadArguments(7).to_string().replace('7', "N"));
    for undeliverable in [Undeliverable::NotBase64, Undeliverable::BrokenBlock, Undeliverable::WrongPassword] {
        reasons.push(undeliverable.to_string());
    }
    for reason in reasons {
        assert!(documentation.contains(&format!("`{reason}`")), "the documentation lacks {reason:?}");
    }
}

/// Each block marked `ini` is a whole configuration.
#[test]
fn the_readmes_configurations_are_valid() {
    let folder = std::env::temp_dir().join(format!("gearman-proxy-readme-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for key in ["local.key", "remote.key"] {
        fs::write(folder.join(key), "should_be_changed\n").unwrap();
    }
    let readme = text("README.md");
    let blocks: Vec<&str> =
        readme.split("```ini\n").skip(1).map(|block| block.split("```").next().unwrap_or_default()).collect();
    assert!(blocks.len() >= 5, "{} configurations in README.md", blocks.len());
    for block in blocks {
        let file = folder.join("proxy.conf");
        fs::write(&file, block.replace("/etc/gearman-proxy/", &format!("{}/", folder.display()))).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_gearman-proxy"))
            .args(["--check", "--config"])
            .arg(&file)
            .env("CREDENTIALS_DIRECTORY", &folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// The pages render without a warning and fit a terminal.
#[test]
fn groff_has_nothing_to_say_of_the_pages() {
    for name in ["dist/gearman-proxy.1", "dist/gearman-proxy.conf.5"] {
        let output = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-rLL=78n", "-P-cbou"])
            .arg(path(name))
            .output()
            .expect("groff is installed");
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let page = String::from_utf8(output.stdout).unwrap();
        for line in page.lines() {
            assert!(line.chars().count() <= 79, "{name}: {line}");
        }
    }
}

#[test]
fn text_is_never_obeyed() {
    assert_eq!(escaped(".TH"), "\\&.TH");
    assert_eq!(escaped("'br"), "\\&\\(aqbr");
    assert_eq!(escaped("s/\\n/-^~`/"), "s/\\en/\\-\\(ha\\(ti\\(ga/");
    assert_eq!(sentences("One. Two.\n.three"), "One.\nTwo.\n\\&.three\n");
}

#[test]
fn an_option_has_all_its_spellings() {
    let with = |short, alias, argument| option(&CliOption { short, long: "long", alias, argument, meaning: "It." });
    assert_eq!(with("", "", ""), ".TP\n\\fB\\-\\-long\\fR\nIt.\n");
    assert_eq!(
        with("l", "log", "PATH"),
        ".TP\n\\fB\\-l\\fR, \\fB\\-\\-long\\fR, \\fB\\-\\-log\\fR \\fIPATH\\fR\nIt.\n"
    );
    assert_eq!(with("", "", "[=LEVEL]"), ".TP\n\\fB\\-\\-long\\fR[\\fB=\\fILEVEL\\fR]\nIt.\n");
}

#[test]
fn nothing_is_left_to_fill() {
    for page in [command(), configuration()] {
        let left = page.split('@').skip(1).find(|rest| rest.starts_with(char::is_uppercase));
        assert_eq!(left, None);
    }
}
