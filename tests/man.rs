//! The documentation says what the program says: the manual pages are made from the tables of options and keys and the
//! prose in `dist/man/`, the tables of `docs/reference.md` from the same, and what is committed is compared with that. The
//! configurations in README and `docs/` pass `--check`, their links lead somewhere, the tests that they name exist.
//!
//! `UPDATE=1 cargo test --test man` writes pages and tables again.

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

/// `docs/reference.md` with its tables made again.
fn reference() -> String {
    let options = OPTIONS.iter().map(|option| {
        let CliOption { short, long, alias, argument, meaning } = option;
        let argument = if argument.is_empty() || argument.starts_with('[') {
            (*argument).to_owned()
        } else {
            format!(" {argument}")
        };
        let names = [("-", *short), ("--", *long), ("--", *alias)].into_iter().filter(|(_, name)| !name.is_empty());
        let names: Vec<String> = names.map(|(dashes, name)| format!("`{dashes}{name}{argument}`")).collect();
        format!("| {} | {} |\n", names.join(", "), cell(meaning))
    });
    let options = format!("| option | meaning |\n| --- | --- |\n{}", options.collect::<String>());
    let keys = KEYS.iter().map(|entry| {
        let Entry { name, scope, values, default, meaning, .. } = entry;
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let scope = match scope {
            Scope::Global => "global",
            Scope::Forward => "forward",
            Scope::Asynchronous => "forward, `async = 1`",
            Scope::Synchronous => "forward, `async = 0`",
        };
        format!("| `{name}` | {scope} | {} | {default} | {} |\n", cell(values), cell(meaning))
    });
    let head = "| key | where | values | default | meaning |\n| --- | --- | --- | --- | --- |\n";
    let keys = format!("{head}{}", keys.collect::<String>());
    [("options", options), ("keys", keys)].into_iter().fold(text("docs/reference.md"), |page, (name, table)| {
        let (before, rest) = page.split_once(&format!("<!-- {name}: made by")).expect("the begin of a table");
        let (comment, rest) = rest.split_once('\n').expect("the end of a line");
        let (_, after) = rest.split_once(&format!("<!-- end of {name} -->")).expect("the end of a table");
        format!("{before}<!-- {name}: made by{comment}\n\n{table}\n<!-- end of {name} -->{after}")
    })
}

/// Plain text in a cell of a Markdown table, which shows it as it is.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('*', "\\*").replace('_', "\\_").replace('<', "&lt;")
}

#[test]
fn the_references_tables_are_those_of_this_program() {
    assert_current("docs/reference.md", &reference());
}

/// README.md, the other pages beside it and those in `docs/`, with their paths.
fn pages() -> Vec<(String, String)> {
    let mut names: Vec<String> = ["README.md", "SECURITY.md", "CHANGELOG.md"].map(String::from).into();
    names.extend(fs::read_dir(path("docs")).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.ends_with(".md").then(|| format!("docs/{name}"))
    }));
    names.into_iter().map(|name| (name.clone(), text(&name))).collect()
}

fn documentation() -> String {
    pages().into_iter().map(|(_, page)| page).collect()
}

#[test]
fn the_readme_can_be_read_in_five_minutes() {
    let lines = text("README.md").lines().count();
    assert!(lines <= 200, "{lines} lines: move what is not needed at first to docs/");
}

/// As GitHub makes them of headings.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix('#'));
    let kept = |character: char| character.is_alphanumeric() || matches!(character, ' ' | '-' | '_');
    headings
        .map(|heading| {
            heading.trim_start_matches('#').trim().to_lowercase().replace(|c| !kept(c), "").replace(' ', "-")
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (name, page) in pages() {
        let folder = path(&name).parent().unwrap().to_owned();
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.contains(char::is_whitespace) {
                continue;
            }
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path(&name) } else { folder.join(file) };
            assert!(target.exists(), "{name} links to {link}, which is not there");
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).unwrap());
                assert!(there.iter().any(|known| known == anchor), "{name}: no heading for {link}, but {there:?}");
            }
        }
    }
    assert!(links > 20, "{links} links");
}

fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| match path.is_dir() {
            true => sources(&path),
            false => fs::read(&path).map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned()),
        })
        .collect()
}

/// The last cells of the table of promises name tests.
#[test]
fn the_tests_that_guarantees_name_exist() {
    let code = sources(&path("tests")) + &sources(&path("src"));
    let page = text("docs/guarantees.md");
    let shown = page.lines().filter_map(|line| line.strip_prefix("Shown by: "));
    let names: Vec<&str> = shown.flat_map(|line| line.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let exists = if name.contains('/') { path(name).exists() } else { code.contains(&format!("fn {name}(")) };
        assert!(exists, "docs/guarantees.md names the test {name}, which is not there");
    }
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

#[test]
fn manual_and_example_know_every_key() {
    let (page, example) = (configuration(), text("config.example"));
    for key in &KEYS {
        let name = key.name;
        assert!(page.contains(&format!(".TP\n\\fB{name}\\fR = ")), "gearman-proxy.conf.5 lacks {name}");
        let set = |line: &str| line.trim().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='));
        assert!(example.lines().any(set), "config.example lacks {name}");
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
fn the_configurations_in_the_documentation_are_valid() {
    let folder = std::env::temp_dir().join(format!("gearman-proxy-documentation-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for key in ["local.key", "remote.key"] {
        fs::write(folder.join(key), "should_be_changed\n").unwrap();
    }
    let mut blocks = 0;
    for (name, page) in pages() {
        for block in page.split("```ini\n").skip(1).filter_map(|block| block.split("```").next()) {
            blocks += 1;
            let file = folder.join("proxy.conf");
            fs::write(&file, block.replace("/etc/gearman-proxy/", &format!("{}/", folder.display()))).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_gearman-proxy"))
                .args(["--check", "--config"])
                .arg(&file)
                .env("CREDENTIALS_DIRECTORY", &folder)
                .output()
                .unwrap();
            assert!(output.status.success(), "{name}: {block}\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(blocks >= 10, "{blocks} configurations");
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
