//! The manual pages: prose from `dist/man/`, and the lists of options and keys from the tables that the program works by.
//!
//! The program itself doesn't show them; what is committed in `dist/` is compared with them by a test.

use crate::cli::{CliOption, OPTIONS};
use crate::config::keys::{Entry, KEYS, Scope};

const COMMAND: &str = include_str!("../dist/man/gearman-proxy.1.in");
const CONFIGURATION: &str = include_str!("../dist/man/gearman-proxy.conf.5.in");

/// `gearman-proxy(1)` in roff, for man-pages' `an` macros.
#[must_use]
pub fn command() -> String {
    let options: Vec<String> = OPTIONS.iter().map(option).collect();
    filled(COMMAND, &[("OPTIONS", &options.concat())])
}

/// `gearman-proxy.conf(5)`, likewise.
#[must_use]
pub fn configuration() -> String {
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
    text.replace(". ", ".\n").lines().map(|line| format!("{}\n", escaped(line))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(!page.contains('@'), "{page}");
        }
    }
}
