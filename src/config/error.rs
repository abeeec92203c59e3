//! What is wrong in a configuration, and where: each error with its line and a caret under the spot.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::keys::{self, Kind};

/// What stands in a shown line in place of a password.
const MASK: &str = "********";

/// More characters of a line than this are not shown.
const SHOWN: usize = 160;

/// More characters of a word than this are not quoted in a message.
const QUOTED: usize = 256;

/// A line of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named or found.
    pub file: Arc<PathBuf>,
    /// Counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    /// `FILE:LINE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", escaped(&self.file.to_string_lossy()), self.line)
    }
}

/// Everything that is wrong in a configuration.
#[derive(Debug, Clone, Default)]
pub struct ConfigErrors {
    /// In the order of the files and their lines; never empty.
    pub errors: Vec<String>,
    /// What is legal but hardly meant: `FILE:LINE: ...`, a line each.
    pub warnings: Vec<String>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.errors.join("\n"))
    }
}

/// An error in a line, at a spot counted in bytes from the line's beginning: `FILE:LINE: what is wrong, and what would be
/// right`, then the line with a caret under the spot.
pub(super) fn in_line(place: &Place, line: &str, offset: usize, message: impl AsRef<str>) -> String {
    let (text, column) = excerpt(line, offset);
    format!("{}\n    {text}\n    {:column$}^", of_file(place, message), "")
}

/// An error of a file, or of what was named as one.
pub(super) fn of_file(file: impl fmt::Display, message: impl AsRef<str>) -> String {
    let lines: Vec<String> = message.as_ref().lines().map(escaped).collect();
    format!("{}: {}", escaped(&file.to_string()), lines.join("\n    "))
}

/// A line as it may be shown, without its password, and the spot in it in characters. Of a long line no more than the
/// surroundings of the spot.
fn excerpt(line: &str, offset: usize) -> (String, usize) {
    let (shown, mask) = match secret(line) {
        Some(start) => (line.get(..start).unwrap_or_default(), MASK),
        None => (line.trim_end(), ""),
    };
    let start = shown.len() - shown.trim_start().len();
    // A tab is shown as one blank, or the caret would stand elsewhere.
    let part = |from: usize, to: usize| escaped(&shown.get(from..to).unwrap_or_default().replace('\t', " "));
    let column = part(start, offset.clamp(start, shown.len())).chars().count();
    let text = part(start, shown.len()) + mask;
    let length = text.chars().count();
    let start = column.saturating_sub(SHOWN / 2).min(length.saturating_sub(SHOWN));
    let before = if start > 0 { "..." } else { "" };
    let after = if start + SHOWN < length { "..." } else { "" };
    let middle: String = text.chars().skip(start).take(SHOWN).collect();
    (format!("{before}{middle}{after}"), column - start + before.len())
}

/// Whether a terminal obeys a character or shows nothing of it: controls, invisible ones, and those that turn the
/// direction of the text.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text from outside with nothing hidden in it.
pub(crate) fn escaped(text: &str) -> String {
    let escape = |c: char| if is_hidden(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// A word from a file as a message quotes it: in backquotes, escaped, and cut if it is long.
pub(super) fn quoted(word: &str) -> String {
    let start: String = word.chars().take(QUOTED).collect();
    let rest = if start.len() < word.len() { "..." } else { "" };
    format!("`{}{rest}`", escaped(&start))
}

/// Where the part of a line begins that must not be shown because it is, or could be meant as, a password.
///
/// Mistakes are what this is about: `decript = x`, `decrypt x`, `password: x`, a forward and its `decrypt = x` on one
/// line. So rather too much is hidden than too little.
pub(super) fn secret(line: &str) -> Option<usize> {
    let blank = char::is_whitespace;
    let first = |from: usize, is: fn(char) -> bool| Some(from + line.get(from..)?.find(is)?);
    let start = first(0, |c| !c.is_whitespace())?;
    let word_end = first(start, |c| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let Some((key, _)) = line.split_once('=') else {
        let is_key = keys::find(line.get(start..word_end)?).is_some();
        return first(if is_key { word_end } else { start }, |c| !c.is_whitespace());
    };
    let value = first(key.len() + 1, |c| !c.is_whitespace());
    let known = keys::find(key.trim());
    match known.map(|key| &key.entry().kind) {
        Some(Kind::Substitution) => return None,
        Some(Kind::Password) if !line.get(value?..)?.starts_with("file:") => return value,
        None if key.trim().contains(blank) && !key.contains('/') => return first(word_end, |c| !c.is_whitespace()),
        None if !(key.contains('/') || key.trim().starts_with('$')) || sounds_secret(key) => return value,
        _ => {}
    }
    // An option on the line of another: what a value is ends at the first blank, but for several destinations.
    let gap = line.get(value?..)?.match_indices(blank).map(|(at, _)| value.unwrap_or(0) + at);
    let gap = gap.into_iter().find(|gap| !line.get(..*gap).is_some_and(|before| before.trim_end().ends_with(',')))?;
    first(gap, |c| !c.is_whitespace())
}

/// Whether a word could be meant to name a password, but for a slip or two.
fn sounds_secret(word: &str) -> bool {
    let letters: String = word.chars().filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect();
    ["crypt", "passw", "secret"].iter().any(|part| letters.contains(part))
        || ["pw", "key"].contains(&letters.as_str())
        || ["decrypt", "encrypt", "password"].iter().any(|name| keys::distance(name, &letters) <= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, offset: usize) -> (String, String) {
        let (text, column) = excerpt(line, offset);
        (text, " ".repeat(column) + "^")
    }

    #[test]
    fn the_caret_stands_under_the_spot() {
        assert_eq!(shown("worker = x", 9), ("worker = x".into(), "         ^".into()));
        assert_eq!(shown("   worker = x  ", 12), ("worker = x".into(), "         ^".into()));
        assert_eq!(shown("debug = üx", 10), ("debug = üx".into(), "         ^".into()));
        assert_eq!(shown("worker =", 8), ("worker =".into(), "        ^".into()));
        assert_eq!(shown("worker = x", 1000), ("worker = x".into(), "          ^".into()));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(shown("debug = \x1b[2J", 8).0, "debug = \\u{1b}[2J");
    }

    #[test]
    fn quoted_words_are_harmless_and_short() {
        assert_eq!(quoted("a'\"\\ü b"), "`a'\"\\ü b`");
        assert_eq!(quoted("\x1b[2J\u{a0}\u{202e}"), "`\\u{1b}[2J\\u{a0}\\u{202e}`");
        assert_eq!(quoted(&"x".repeat(256)), format!("`{}`", "x".repeat(256)));
        assert_eq!(quoted(&"x".repeat(257)), format!("`{}...`", "x".repeat(256)));
    }

    #[test]
    fn of_a_long_line_the_spots_surroundings_are_shown() {
        let line = format!("debug = {}X{}", "a".repeat(500), "b".repeat(500));
        let (text, caret) = shown(&line, 508);
        assert_eq!(text.chars().count(), SHOWN + 6);
        assert_eq!(text.chars().nth(caret.len() - 1), Some('X'));
        assert!(text.starts_with("...") && text.ends_with("..."));
    }

    #[test]
    fn passwords_are_masked_whatever_is_wrong_with_their_line() {
        for (line, visible) in [
            ("decrypt = hunter2", "decrypt = ********"),
            ("  encrypt=hunter2", "encrypt=********"),
            ("decript = hunter2", "decript = ********"),
            ("dcrpt hunter2", "********"),
            ("Password: hunter2", "********"),
            ("\"decrypt\" => \"hunter2\",", "\"decrypt\" =********"),
            ("encrypt aHVudGVyMg==", "encrypt ********"),
            ("encrypt!hunter2", "********"),
            ("local_password hunter2", "********"),
            ("whatever = hunter2", "whatever = ********"),
            ("$pw = hunter2", "$pw = ********"),
            ("dec/rypt = hunter2", "dec/rypt = ********"),
            ("a/b = c/d decrypt = hunter2", "a/b = c/d ********"),
            ("a/b = c/d, e/f decrypt hunter2", "a/b = c/d, e/f ********"),
            ("a/b = c/d d = hunter2", "a/b = c/d ********"),
            ("worker = 1 decrypt=hunter2", "worker = 1 ********"),
            ("= hunter2", "= ********"),
            ("decrypt file:hunter2", "decrypt ********"),
        ] {
            assert_eq!(shown(line, 0).0, visible, "{line}");
            let (_, caret) = shown(line, line.len());
            assert!(
                caret.len() <= visible.len() - MASK.len() + 1,
                "the caret tells how long the password of {line} is"
            );
        }
    }

    #[test]
    fn other_lines_are_shown_whole() {
        for line in [
            "decrypt = file:/etc/key",
            "a/b = c/d",
            "a/b = c/d,  e/f,\tg/h",
            "$a = b",
            "data_callback = s/^password=.*/password = x/",
            "logfile = /var/log/x=y",
            "a/b = c/d=e",
            "a/key = c/secret",
        ] {
            assert_eq!(shown(line, 0).0, line.replace('\t', " "));
        }
    }
}
