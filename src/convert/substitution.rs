//! Rewrites one `s///` of B::Deparse's as this program's configuration writes it, with the values of the variables in
//! it and without what `x` allows; or says why that can't be.
//!
//! Patterns stay Perl's, as [`Substitution`] reads them. Only what is no part of its language is rewritten: variables,
//! line ends, bytes that are no UTF-8, and Perl's `$` before a last line end.

use super::perl::Value;
use crate::stages::Limits;
use crate::stages::bounds::Bounds;
use crate::stages::substitution::{Groups, Substitution};

/// What one substitution became, and whether it returns the changed text (`r`) instead of changing a variable.
type Rewritten = Result<(String, bool), String>;

/// Reads the substitution at the beginning of `text`: what it became or why it can't become anything (a text that
/// follows the substitution's own), and how many bytes it has. None where no substitution begins.
///
/// `characters` says that the callback stands under `use utf8`, where a pattern beyond ASCII has Unicode rules.
pub fn read(text: &str, variables: &[(String, Value)], characters: bool) -> Option<(Rewritten, usize)> {
    let after = text.strip_prefix('s')?;
    let mut open = after.chars().next()?;
    if !open.is_ascii_punctuation() || matches!(open, '_' | ',' | ';' | '=') {
        return None;
    }
    let mut close = closing(open);
    let mut position = 2;
    let pattern = part(text, &mut position, open, close)?;
    if open != close {
        position += text.get(position..)?.bytes().take_while(u8::is_ascii_whitespace).count();
        let second = text.get(position..)?.chars().next()?;
        position += second.len_utf8();
        (open, close) = (second, closing(second));
    }
    let replacement = part(text, &mut position, open, close)?;
    let rest = text.get(position..).unwrap_or_default();
    let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let flags = rest.get(..length).unwrap_or_default();
    Some((rewrite(pattern, replacement, flags, variables, characters), position + length))
}

fn closing(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        '{' => '}',
        '<' => '>',
        other => other,
    }
}

/// The text up to the closing delimiter, which is passed.
fn part<'a>(text: &'a str, position: &mut usize, open: char, close: char) -> Option<&'a str> {
    let rest = text.get(*position..)?;
    let mut depth = 0;
    let mut characters = rest.char_indices();
    while let Some((index, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == close && depth == 0 {
            *position += index + close.len_utf8();
            return rest.get(..index);
        } else if character == close {
            depth -= 1;
        } else if character == open {
            depth += 1;
        }
    }
    None
}

fn rewrite(
    pattern: &str,
    replacement: &str,
    flags: &str,
    variables: &[(String, Value)],
    characters: bool,
) -> Rewritten {
    let mut scope = Scope::default();
    let mut kept = String::new();
    let mut returns = false;
    let mut unicode = false;
    for (index, flag) in flags.char_indices() {
        match flag {
            'x' if flags.get(..index).is_some_and(|before| before.contains('x')) => {
                return Err("has the flag xx".to_owned());
            }
            'x' => scope.extended = true,
            'r' => returns = true,
            'u' => unicode = true,
            // ASCII rules are ours; the others change nothing.
            'a' | 'd' | 'o' | 'p' => {}
            'e' => return Err("computes its replacement (flag e)".to_owned()),
            'g' | 'i' | 'm' | 's' => {
                scope.lines |= flag == 'm';
                kept.push(flag);
            }
            other => return Err(format!("has the flag {other}")),
        }
    }
    let interpolated = interpolate(pattern, variables)?;
    if interpolated.is_empty() {
        return Err("has an empty pattern, with which Perl repeats the last one that matched".to_owned());
    }
    unicode |= characters && beyond_ascii(&interpolated);
    if unicode && kept.contains('i') && interpolated.iter().any(|byte| matches!(byte, b'\\' | 0x80..)) {
        return Err("ignores case under Unicode rules".to_owned());
    }
    let mut rewritten = Pattern::rewrite(&interpolated, scope, unicode)?;
    let mut replacement = replacement_text(replacement, variables)?;
    if rewritten.line_end {
        if kept.contains('g') && matches_nothing(&rewritten.text, &kept) {
            return Err("may match nothing before a last line end and again after it (flag g)".to_owned());
        }
        // Perl's `$` stands before a last line end too, and leaves it there.
        rewritten.text.push_str("(\\n?)\\z");
        replacement.push(Piece::Group(rewritten.groups + 1));
    }
    let text = written(&rewritten.text, &replacement, &kept)?;
    match Substitution::parse(&text) {
        Ok(_) => Ok((text, returns)),
        Err(error) => {
            let message = error.message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            Err(format!("can't be used here: {message}"))
        }
    }
}

/// Whether a pattern may match nothing right before a last line end, whatever byte is before that.
fn matches_nothing(pattern: &str, flags: &str) -> bool {
    let flags = flags.replace('g', "");
    let probe = written(&format!("\\A(?s:.)(?:{pattern})\\n\\z"), &[], &flags);
    let Ok(probe) = probe.and_then(|text| Substitution::parse(&text).map_err(|error| error.message)) else {
        // What can't be asked is told when the whole is read.
        return false;
    };
    let mut changed = Vec::new();
    let mut groups = Groups::default();
    let limits = Limits::of_size(usize::MAX);
    (0..=u8::MAX).any(|byte| {
        let mut bounds = Bounds::new(&limits, usize::MAX);
        probe.apply(&[byte, b'\n'], &mut changed, &mut groups, &mut bounds, |_| {}) != Ok(0)
    })
}

/// Whether a literal of a pattern is beyond ASCII, which B::Deparse writes as `\303`.
fn beyond_ascii(pattern: &[u8]) -> bool {
    let octal = |window: &[u8]| matches!(window, [b'\\', b'2' | b'3', b'0'..=b'7', b'0'..=b'7']);
    !pattern.is_ascii() || pattern.windows(4).any(octal)
}

/// Puts the values of variables where their names stand in a pattern.
fn interpolate(pattern: &str, variables: &[(String, Value)]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut quoting = false;
    let mut rest = pattern;
    while let Some(character) = rest.chars().next() {
        let after = rest.get(character.len_utf8()..).unwrap_or_default();
        match character {
            '\\' => {
                let Some(escaped) = after.chars().next() else { return Err("ends with a backslash".to_owned()) };
                rest = after.get(escaped.len_utf8()..).unwrap_or_default();
                match escaped {
                    'Q' => quoting = true,
                    'E' => quoting = false,
                    'U' | 'L' | 'u' | 'l' | 'F' => return Err(format!("has a \\{escaped} in its pattern")),
                    _ if quoting => return Err("has an escape between \\Q and \\E".to_owned()),
                    _ => {
                        out.push(b'\\');
                        out.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                continue;
            }
            '$' | '@' => {
                if let Some((name, tail)) = variable(rest) {
                    let value = named(name, variables)?;
                    if quoting {
                        quote(&value, &mut out);
                    } else {
                        insert(&value, &mut out);
                    }
                    rest = tail;
                    continue;
                }
                let next = after.chars().next();
                let interpolates = match character {
                    '$' => next.is_some_and(|next| !next.is_ascii_whitespace() && !matches!(next, ')' | '|')),
                    _ => next.is_some_and(|next| next.is_ascii_alphanumeric() || "_{$:".contains(next)),
                };
                if interpolates {
                    return Err(format!("has `{}` in its pattern", word(rest)));
                }
                out.push(character as u8);
            }
            _ if quoting => quote(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut out),
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        rest = after;
    }
    Ok(out)
}

/// A value is a pattern, but its `@` interpolates nothing.
fn insert(value: &[u8], out: &mut Vec<u8>) {
    let mut escaped = false;
    for byte in value {
        if *byte == b'@' && !escaped {
            out.push(b'\\');
        }
        escaped = *byte == b'\\' && !escaped;
        out.push(*byte);
    }
}

/// `${name}` at the beginning, and what follows it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let (name, tail) = text.strip_prefix("${")?.split_once('}')?;
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte));
    plain.then_some((name, tail))
}

/// The beginning of a text, for a message.
fn word(text: &str) -> &str {
    let end = text.char_indices().skip(1).find(|(_, next)| next.is_ascii_whitespace() || "\\/".contains(*next));
    text.get(..end.map_or(text.len(), |(index, _)| index).min(24)).unwrap_or(text)
}

fn named(name: &str, variables: &[(String, Value)]) -> Result<Vec<u8>, String> {
    match variables.iter().find(|(known, _)| known == name) {
        Some((_, Value::Bytes(bytes) | Value::Pattern(bytes))) => Ok(bytes.clone()),
        Some((_, value)) => {
            let why = value.text().err().unwrap_or_default();
            Err(format!("needs ${name}, which {why}"))
        }
        None => Err(format!("needs ${name}, which is known only when a job comes")),
    }
}

/// Perl's quotemeta.
fn quote(value: &[u8], out: &mut Vec<u8>) {
    for byte in value {
        if !byte.is_ascii_alphanumeric() && *byte != b'_' {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// The flags that hold at one place of a pattern, as far as they matter here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Scope {
    /// `m`
    lines: bool,
    /// `x`
    extended: bool,
}

/// A pattern on its way into one line of UTF-8.
struct Pattern<'a> {
    bytes: &'a [u8],
    position: usize,
    text: String,
    /// Bytes above 0x7f that are not written yet: whether as characters depends on what follows.
    high: Vec<u8>,
    scopes: Vec<Scope>,
    scope: Scope,
    groups: usize,
    unicode: bool,
}

struct RewrittenPattern {
    text: String,
    groups: usize,
    /// It ends with a `$` without `m` that is not in `text`.
    line_end: bool,
}

impl<'a> Pattern<'a> {
    fn rewrite(bytes: &'a [u8], scope: Scope, unicode: bool) -> Result<RewrittenPattern, String> {
        let mut pattern = Pattern {
            bytes,
            position: 0,
            text: String::new(),
            high: Vec::new(),
            scopes: Vec::new(),
            scope,
            groups: 0,
            unicode,
        };
        let mut line_end = false;
        while let Some(byte) = pattern.next() {
            line_end |= pattern.item(byte)?;
        }
        pattern.flush(false);
        Ok(RewrittenPattern { text: pattern.text, groups: pattern.groups, line_end })
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.position).copied()?;
        self.position += 1;
        Some(byte)
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    /// Writes the high bytes that wait: as the characters they are in UTF-8, but byte for byte where they are none or
    /// where a quantifier follows, which in Perl takes hold of the last byte only.
    fn flush(&mut self, quantified: bool) {
        let high = std::mem::take(&mut self.high);
        match std::str::from_utf8(&high) {
            Ok(text) if !quantified => self.text.push_str(text),
            _ => self.text.extend(high.iter().map(|byte| format!("\\x{byte:02x}"))),
        }
    }

    fn push(&mut self, text: &str) {
        self.flush(false);
        self.text.push_str(text);
    }

    /// A byte that stands for itself or means something to both languages.
    fn copy(&mut self, byte: u8) {
        match byte {
            0x80.. => self.high.push(byte),
            b'\n' => self.push("\\n"),
            b'\r' => self.push("\\r"),
            b'\t' => self.push("\\t"),
            b' '..=b'~' => {
                self.flush(matches!(byte, b'*' | b'+' | b'?' | b'{'));
                self.text.push(char::from(byte));
            }
            _ => self.push(&format!("\\x{byte:02x}")),
        }
    }

    /// One item outside of classes; whether it was a `$` at the end that means a last line end too.
    fn item(&mut self, byte: u8) -> Result<bool, String> {
        match byte {
            b'\\' => return self.escape(),
            b'[' => self.class()?,
            b'(' => self.group()?,
            b')' => {
                self.push(")");
                self.scope = self.scopes.pop().unwrap_or(self.scope);
            }
            b'#' if self.scope.extended => while self.next().is_some_and(|byte| byte != b'\n') {},
            _ if self.scope.extended && byte.is_ascii_whitespace() => {}
            b'$' if !self.scope.lines => return self.line_end("$"),
            _ => self.copy(byte),
        }
        Ok(false)
    }

    fn line_end(&self, written: &str) -> Result<bool, String> {
        let blank = |byte: &u8| self.scope.extended && byte.is_ascii_whitespace();
        if self.scopes.is_empty() && self.rest().iter().all(blank) {
            Ok(true)
        } else {
            Err(format!("has a `{written}` without the flag m that is not at its end"))
        }
    }

    fn escape(&mut self) -> Result<bool, String> {
        if let Some(byte) = self.octal() {
            self.high.push(byte);
            return Ok(false);
        }
        match self.next() {
            None => Err("ends with a backslash".to_owned()),
            Some(b'Z') => self.line_end("\\Z"),
            Some(byte @ (b'w' | b'W' | b's' | b'S' | b'd' | b'D' | b'b' | b'B')) if self.unicode => {
                Err(format!("has a \\{} under Unicode rules", char::from(byte)))
            }
            Some(byte @ b' '..=b'~') => {
                self.push(&format!("\\{}", char::from(byte)));
                Ok(false)
            }
            // quotemeta escapes them, which changes nothing
            Some(byte) => {
                self.copy(byte);
                Ok(false)
            }
        }
    }

    /// A byte beyond ASCII as B::Deparse writes it, after the backslash.
    fn octal(&mut self) -> Option<u8> {
        match self.rest() {
            [high @ b'2'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', ..] => {
                self.position += 3;
                Some((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'))
            }
            _ => None,
        }
    }

    /// A class, after its bracket.
    fn class(&mut self) -> Result<(), String> {
        self.push("[");
        if self.rest().starts_with(b"^") {
            self.position += 1;
            self.push("^");
        }
        let mut first = true;
        while let Some(byte) = self.next() {
            match byte {
                b']' if !first => {
                    self.push("]");
                    return Ok(());
                }
                b'[' if self.rest().starts_with(b":") => {
                    if self.unicode {
                        return Err("has a [: under Unicode rules".to_owned());
                    }
                    let length = self.rest().windows(2).position(|pair| pair == b":]").map_or(0, |length| length + 2);
                    let name = self.rest().get(..length).unwrap_or_default();
                    self.position += length;
                    self.push(&format!("[{}", String::from_utf8_lossy(name)));
                }
                b'\\' => match self.octal() {
                    Some(byte) => self.push(&format!("\\x{byte:02x}")),
                    None => drop(self.escape()?),
                },
                0x80.. => self.push(&format!("\\x{byte:02x}")),
                _ => self.copy(byte),
            }
            // An escaped byte that is a character's first has to stay one.
            self.flush(true);
            first = false;
        }
        Err("has a class that is not closed".to_owned())
    }

    /// What an opening bracket opens.
    fn group(&mut self) -> Result<(), String> {
        let rest = self.rest();
        let mut inner = self.scope;
        let mut length = 0;
        match rest {
            [b'?', b'#', ..] => {
                while self.next().is_some_and(|byte| byte != b')') {}
                return Ok(());
            }
            [b'?', b'<', b'=' | b'!', ..] => {}
            [b'?', b'<' | b'\'', ..] | [b'?', b'P', b'<', ..] => self.groups += 1,
            [b'?', flags @ ..] => {
                let mut on = true;
                for (index, byte) in flags.iter().enumerate() {
                    match byte {
                        b'^' => inner = Scope::default(),
                        b'-' => on = false,
                        b'm' => inner.lines = on,
                        b'x' => inner.extended = on,
                        b'u' => self.unicode = true,
                        b')' => {
                            // Flags for the rest of the group that is open.
                            self.position += index + 2;
                            self.scope = inner;
                            let flags = String::from_utf8_lossy(flags.get(..index).unwrap_or_default());
                            self.push(&format!("(?{flags})"));
                            return Ok(());
                        }
                        byte if byte.is_ascii_alphabetic() => {}
                        _ => {
                            length = index + 1;
                            break;
                        }
                    }
                }
            }
            [b'*', ..] => {}
            _ => self.groups += 1,
        }
        let opening = String::from_utf8_lossy(rest.get(..length).unwrap_or_default());
        self.push(&format!("({opening}"));
        self.position += length;
        self.scopes.push(self.scope);
        self.scope = inner;
        Ok(())
    }
}

/// Up to `most` digits after `skipped` bytes: their value, and how many bytes that is in all.
fn digits_value(digits: &[u8], radix: u32, most: usize, skipped: usize) -> (u32, usize) {
    let mut number = 0;
    let mut length = 0;
    for digit in digits.iter().take(most).map_while(|byte| char::from(*byte).to_digit(radix)) {
        number = number * radix + digit;
        length += 1;
    }
    (number, skipped + length)
}

/// A piece of a replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(u8),
    Group(usize),
    Named(String),
    Whole,
}

fn replacement_text(replacement: &str, variables: &[(String, Value)]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut quoting = false;
    let mut rest = replacement;
    while let Some(character) = rest.chars().next() {
        let after = rest.get(character.len_utf8()..).unwrap_or_default();
        let mut bytes = Vec::new();
        match character {
            '\\' => match after.chars().next() {
                Some('Q') => {
                    quoting = true;
                    rest = after.get(1..).unwrap_or_default();
                    continue;
                }
                Some('E') => {
                    quoting = false;
                    rest = after.get(1..).unwrap_or_default();
                    continue;
                }
                _ => {
                    let (byte, length) = replacement_escape(after)?;
                    bytes.push(byte);
                    rest = after.get(length..).unwrap_or_default();
                }
            },
            '$' | '@' => {
                if let Some((name, tail)) = variable(rest) {
                    rest = tail;
                    match name.parse::<usize>() {
                        Ok(group) if group > 0 && !quoting => {
                            pieces.push(Piece::Group(group));
                            continue;
                        }
                        Ok(_) => return Err(format!("has `${name}` in its replacement")),
                        Err(_) => bytes = named(name, variables)?,
                    }
                } else if let Some((name, tail)) =
                    rest.strip_prefix("$+{'").and_then(|tail| tail.split_once("'}")).filter(|_| !quoting)
                {
                    pieces.push(Piece::Named(name.to_owned()));
                    rest = tail;
                    continue;
                } else if let Some(tail) = rest.strip_prefix("$&").filter(|_| !quoting) {
                    pieces.push(Piece::Whole);
                    rest = tail;
                    continue;
                } else {
                    return Err(format!("has `{}` in its replacement", word(rest)));
                }
            }
            _ => {
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
        }
        if quoting {
            let mut quoted = Vec::new();
            quote(&bytes, &mut quoted);
            bytes = quoted;
        }
        pieces.extend(bytes.into_iter().map(Piece::Text));
    }
    Ok(pieces)
}

/// The byte for which an escape of B::Deparse's strings stands, and the escape's length without the backslash.
fn replacement_escape(after: &str) -> Result<(u8, usize), String> {
    let bytes = after.as_bytes();
    let (number, length) = match bytes {
        [b'n', ..] => (0x0a, 1),
        [b't', ..] => (0x09, 1),
        [b'r', ..] => (0x0d, 1),
        [b'f', ..] => (0x0c, 1),
        [b'b', ..] => (0x08, 1),
        [b'e', ..] => (0x1b, 1),
        [b'a', ..] => (0x07, 1),
        [b'c', letter, ..] => (u32::from(letter.to_ascii_uppercase() ^ 64), 2),
        [b'x', b'{', digits @ ..] => {
            let length = digits.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            (digits_value(digits, 16, 8, 0).0, length + 3)
        }
        [b'0'..=b'3', ..] => digits_value(bytes, 8, 3, 0),
        [letter, ..] if letter.is_ascii_alphanumeric() => {
            return Err(format!("has a \\{} in its replacement", char::from(*letter)));
        }
        [byte, ..] if byte.is_ascii() => (u32::from(*byte), 1),
        _ => return Err("has a backslash in its replacement that escapes nothing known".to_owned()),
    };
    match u8::try_from(number) {
        Ok(byte) => Ok((byte, length)),
        Err(_) => Err("puts in a character above U+00FF, which is no byte".to_owned()),
    }
}

/// Delimiters that mean nothing in a pattern or a replacement.
const DELIMITERS: [char; 10] = ['/', '#', '!', ',', '~', '%', '@', ';', ':', '"'];

/// The substitution's text, with a delimiter that neither side has, or else with escaped ones.
fn written(pattern: &str, replacement: &[Piece], flags: &str) -> Result<String, String> {
    if replacement.contains(&Piece::Text(b'$')) {
        return written_with_dollars(pattern, replacement, flags);
    }
    let has = |delimiter: char| {
        pattern.contains(delimiter)
            || replacement.iter().any(|piece| matches!(piece, Piece::Text(byte) if char::from(*byte) == delimiter))
    };
    let free = DELIMITERS.into_iter().find(|delimiter| !has(*delimiter));
    let delimiter = free.unwrap_or('/');
    let pattern = if free.is_some() { pattern.to_owned() } else { with_escaped_slashes(pattern) };
    let mut out = Vec::new();
    for (index, piece) in replacement.iter().enumerate() {
        match piece {
            Piece::Group(group) if digit_follows(replacement, index) => {
                out.extend_from_slice(format!("${{{group}}}").as_bytes());
            }
            Piece::Group(group) => out.extend_from_slice(format!("${group}").as_bytes()),
            Piece::Named(name) => out.extend_from_slice(format!("${{{name}}}").as_bytes()),
            Piece::Whole => out.extend_from_slice(b"$&"),
            Piece::Text(byte) => push_text(*byte, delimiter, &mut out)?,
        }
    }
    finished(delimiter, &pattern, out, flags)
}

/// A `$` can be put in only as an escaped delimiter, which leaves `\1` for the groups and no `$` for the pattern.
fn written_with_dollars(pattern: &str, replacement: &[Piece], flags: &str) -> Result<String, String> {
    let pattern = pattern.replace("\\$", "\\x24");
    if pattern.contains('$') {
        return Err("puts in a `$`, which can be written only where the pattern has none".to_owned());
    }
    let mut out = Vec::new();
    for (index, piece) in replacement.iter().enumerate() {
        match piece {
            Piece::Group(group @ 1..=9) if !digit_follows(replacement, index) => {
                out.extend_from_slice(format!("\\{group}").as_bytes());
            }
            Piece::Group(_) | Piece::Named(_) | Piece::Whole => {
                return Err("puts in a `$` and something that is written with one".to_owned());
            }
            Piece::Text(byte) => push_text(*byte, '$', &mut out)?,
        }
    }
    finished('$', &pattern, out, flags)
}

fn digit_follows(replacement: &[Piece], index: usize) -> bool {
    matches!(replacement.get(index + 1), Some(Piece::Text(byte)) if byte.is_ascii_digit())
}

fn with_escaped_slashes(pattern: &str) -> String {
    let mut out = String::new();
    let mut escaped = false;
    for character in pattern.chars() {
        if character == '/' && !escaped {
            out.push('\\');
        }
        escaped = character == '\\' && !escaped;
        out.push(character);
    }
    out
}

fn push_text(byte: u8, delimiter: char, out: &mut Vec<u8>) -> Result<(), String> {
    match byte {
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\t' => out.extend_from_slice(b"\\t"),
        b'\\' => out.extend_from_slice(b"\\\\"),
        byte if byte.is_ascii_control() => {
            return Err(format!("puts in the control character \\x{byte:02x}, which can't be written here"));
        }
        byte if char::from(byte) == delimiter => out.extend_from_slice(&[b'\\', byte]),
        byte => out.push(byte),
    }
    Ok(())
}

fn finished(delimiter: char, pattern: &str, replacement: Vec<u8>, flags: &str) -> Result<String, String> {
    let replacement = String::from_utf8(replacement)
        .map_err(|_| "puts in bytes that are not UTF-8, as this language is".to_owned())?;
    Ok(format!("s{delimiter}{pattern}{delimiter}{replacement}{delimiter}{flags}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Value {
        Value::Bytes(text.as_bytes().to_vec())
    }

    fn rewritten(text: &str) -> Result<String, String> {
        let variables = [
            ("name".to_owned(), bytes("a.b@c")),
            ("list".to_owned(), Value::Reference("ARRAY".to_owned())),
            ("expression".to_owned(), Value::Pattern(b"(?^x: a | b )".to_vec())),
            ("latin".to_owned(), Value::Bytes(b"\xfc".to_vec())),
            ("main::other".to_owned(), bytes("o")),
        ];
        let (rewritten, length) = read(text, &variables, false).ok_or("no substitution")?;
        assert_eq!(length, text.len(), "{text}");
        rewritten.map(|(text, _)| text)
    }

    #[test]
    fn delimiters_are_chosen_anew() {
        for (perl, ours) in [
            ("s/a/b/", "s/a/b/"),
            ("s[a/b][c]", "s#a/b#c#"),
            ("s{a{2}/}{#}g", "s!a{2}/!#!g"),
            ("s{a}\n {b}", "s/a/b/"),
            (r"s(\()[)]", r"s/\(/)/"),
            (r#"s{/#!,~%\@;:"}{/}"#, r#"s/\/#!,~%\@;:"/\//"#),
            (r"s/a/\$b\$/", r"s$a$\$b\$$"),
            (r"s/(a)/${1}\$/", r"s$(a)$\1\$$"),
            (r"s/\$(a)/${1}\$/", r"s$\x24(a)$\1\$$"),
        ] {
            assert_eq!(rewritten(perl), Ok(ours.to_owned()), "{perl}");
        }
    }

    #[test]
    fn variables_are_put_in() {
        for (perl, ours) in [
            ("s/${name}/${name}/", r"s/a.b\@c/a.b@c/"),
            (r"s/\Q${name}\E./\Q${name}\E/", r"s/a\.b\@c./a\\.b\\@c/"),
            ("s/${expression}/${main::other}/", "s/(?^x:a|b)/o/"),
            ("s/${latin}/ue/", r"s/\xfc/ue/"),
            ("s/(a)/${1}${name}${1}0/", "s/(a)/$1a.b@c${1}0/"),
            ("s/(?<n>a)/$+{'n'}$&/", "s/(?<n>a)/${n}$&/"),
        ] {
            assert_eq!(rewritten(perl), Ok(ours.to_owned()), "{perl}");
        }
        for (perl, why) in [
            ("s/${unknown}/b/", "known only when a job comes"),
            ("s/${list}/b/", "is a reference (ARRAY)"),
            ("s/a/${latin}/", "not UTF-8"),
            ("s/$list[0]/b/", "has `$list[0]` in its pattern"),
            ("s/a/$list->{'x'}/", "has `$list->{'x'}` in its replacement"),
            ("s/a/@list/", "has `@list` in its replacement"),
            (r"s/a/\U${name}\E/", r"has a \U in its replacement"),
            (r"s/\L${name}/b/", r"has a \L in its pattern"),
        ] {
            let reason = rewritten(perl).expect_err(perl);
            assert!(reason.contains(why), "{perl}: {reason}");
        }
    }

    #[test]
    fn what_x_allows_is_taken_out() {
        for (perl, ours) in [
            ("s/ ^ a [ #] b # to\n the \\  \\# $ /c d/mx", r"s/^a[ #]bthe\ \#$/c d/m"),
            ("s/(?x: a b )c d/e/", "s/(?x:ab)c d/e/"),
            ("s/ a (?-x: b ) c/e/x", "s/a(?-x: b )c/e/"),
            ("s/a(?#why\n)\nb/c/", r"s/a\nb/c/"),
        ] {
            assert_eq!(rewritten(perl), Ok(ours.to_owned()), "{perl:?}");
        }
    }

    #[test]
    fn a_last_line_end_stays_behind_the_end() {
        for (perl, ours) in [
            (r"s/\s+$//", r"s/\s+(\n?)\z/$1/"),
            (r"s/(a)b\Z/c/", r"s/(a)b(\n?)\z/c$2/"),
            ("s/ a $ /b/x", r"s/a(\n?)\z/b$1/"),
            ("s/a+$/b/g", r"s/a+(\n?)\z/b$1/g"),
            ("s/a$/b/m", "s/a$/b/m"),
            ("s/(?m)a$/b/", "s/(?m)a$/b/"),
            (r"s/a\z/b/", r"s/a\z/b/"),
        ] {
            assert_eq!(rewritten(perl), Ok(ours.to_owned()), "{perl}");
        }
        for perl in ["s/a$|b/c/", "s/(a$)/b/", "s/a*$/b/g", r"s/\b$/b/g"] {
            assert!(rewritten(perl).is_err(), "{perl}");
        }
    }

    #[test]
    fn bytes_beyond_ascii_are_characters_where_they_can_be() {
        for (perl, ours) in [
            (r"s/K\303\266ln/K\303\266ln/", "s/Köln/Köln/"),
            (r"s/\303\274+/u/", r"s/\xc3\xbc+/u/"),
            (r"s/[\303\274]/u/", r"s/[\xc3\xbc]/u/"),
            (r"s/\374x\xfc/u/", r"s/\xfcx\xfc/u/"),
        ] {
            assert_eq!(rewritten(perl), Ok(ours.to_owned()), "{perl}");
        }
    }

    #[test]
    fn anything_that_is_no_substitution_is_none() {
        for text in ["", "s", "sprintf('x')", "s_a_b_", "s/a", "s/a/b", "s{a}", "s{a}{b", "tr/a/b/", "s é"] {
            assert!(read(text, &[], false).is_none(), "{text}");
        }
        for perl in
            ["s/a/b/e", "s/a/b/l", "s/a/b/xx", "s//b/", r"s/(a)\1/b/", "s/a++/b/", "s/a/\\cA/", "s/a/\\x{20ac}/"]
        {
            assert!(rewritten(perl).is_err(), "{perl}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let pieces = [
            "s", "/", "{", "}", "[", "]", "(", ")", "\\", "$", "@", "?", "^", "#", "\n", "Q", "E", "x", "1", "ü",
            "${name}", "(?", "-", ":", "<", "*", "c", "377", "&", "+{'", "Z", " ", "g", "m", "0",
        ];
        let mut state: u32 = 1;
        for _ in 0..200_000 {
            let mut text = "s/".to_owned();
            for _ in 0..12 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push_str(pieces[(state >> 16) as usize % pieces.len()]);
            }
            let variables = [("name".to_owned(), bytes("\\"))];
            if let Some((_, length)) = read(&text, &variables, true) {
                assert!(text.get(..length).is_some());
            }
        }
    }
}
