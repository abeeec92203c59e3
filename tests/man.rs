//! The documentation says what the program says: manual pages and README against the tables of options and keys, the
//! README's configurations against `--check`.
//!
//! `UPDATE_MAN=1 cargo test --test man` writes the manual pages anew.

// Clippy's own exception for tests leaves out their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gearman_proxy::cli::{self, OPTIONS};
use gearman_proxy::config::keys::KEYS;
use gearman_proxy::gearman::connection::ConnectionError;
use gearman_proxy::gearman::packet::ProtocolError;
use gearman_proxy::man;
use gearman_proxy::stages::Undeliverable;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn assert_current(name: &str, page: &str) {
    if std::env::var_os("UPDATE_MAN").is_some() {
        fs::write(path(name), page).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(text(name) == page, "{name} is not what the program says: UPDATE_MAN=1 cargo test --test man");
}

#[test]
fn the_manual_pages_are_those_of_this_program() {
    assert_current("dist/gearman-proxy.1", &man::command());
    assert_current("dist/gearman-proxy.conf.5", &man::configuration());
}

#[test]
fn help_manual_and_readme_know_every_option() {
    let (help, page, readme) = (cli::help(), man::command(), text("README.md"));
    for option in &OPTIONS {
        for name in [option.long, option.alias].into_iter().filter(|name| !name.is_empty()) {
            assert!(help.contains(&format!("--{name}")), "--help lacks --{name}");
            assert!(page.contains(&format!("\\fB\\-\\-{name}\\fR")), "gearman-proxy.1 lacks --{name}");
            assert!(readme.contains(&format!("`--{name}")), "README.md lacks --{name}");
        }
    }
}

#[test]
fn manual_readme_and_example_know_every_key() {
    let (page, readme, example) = (man::configuration(), text("README.md"), text("config.example"));
    for key in &KEYS {
        let name = key.name;
        assert!(page.contains(&format!(".TP\n\\fB{name}\\fR = ")), "gearman-proxy.conf.5 lacks {name}");
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("README.md lacks {name}"));
        assert!(row.contains(&format!("`{}`", key.default)) || key.default.is_empty(), "its default is missing: {row}");
        let set = |line: &str| line.trim().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='));
        assert!(example.lines().any(set), "config.example lacks {name}");
    }
}

/// What a person finds in a log at night stands in the README, with what to do about it.
#[test]
fn the_readme_explains_every_reason() {
    let readme = text("README.md");
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
    reasons.push(ConnectionError::Resolve(io::ErrorKind::Other.into()).to_string());
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
        assert!(readme.contains(&format!("`{reason}`")), "README.md lacks {reason:?}");
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
