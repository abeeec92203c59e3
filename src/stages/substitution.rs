//! `s/PATTERN/REPLACEMENT/FLAGS` as Perl reads it, on bytes: jobs are not always UTF-8.
//!
//! One difference to Perl stays: `$` without the flag `m` matches at the very end only, not before a last line end.
//! Nothing is expanded; where Perl would read a variable in a pattern (`$x`, `$,`, `@x`) the pattern is refused.

mod exact;
mod pattern;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use exact::{Exact, Slots};
use pattern::{Flags, PatternError};
use regex::bytes::{CaptureLocations, Regex, RegexBuilder};

/// A compiled pattern takes no more memory than this, bytes.
const MAX_PATTERN_SIZE: usize = 4 << 20;

/// A compiled substitution.
#[derive(Debug, Clone)]
pub struct Substitution(Arc<Compiled>);

struct Compiled {
    /// As written.
    text: String,
    /// Never given twice in a process: by it [`Groups`] knows what belongs to this pattern.
    number: u64,
    regex: Regex,
    /// Where the regex crate alone can't match as Perl does.
    exact: Option<Exact>,
    /// Whether an empty match may hide a longer one.
    hides_longer: bool,
    /// Whether a match may end with a line's start, which Perl sees nowhere at the very end.
    ends_with_line_start: bool,
    replacement: Vec<Part>,
    /// Whether the replacement needs more than the whole match.
    needs_groups: bool,
    everywhere: bool,
}

/// A part of a replacement.
#[derive(Debug, PartialEq)]
enum Part {
    Text(Vec<u8>),
    /// A group by its number; 0 is the whole match.
    Group(usize),
}

/// Where groups matched: memory that is used again from one text to the next.
#[derive(Debug, Default)]
pub struct Groups(Vec<(u64, CaptureLocations)>);

/// One match of a pattern.
struct Found {
    range: Range<usize>,
    /// The groups where [`Exact`] found it; elsewhere they are in the [`CaptureLocations`].
    slots: Option<Slots>,
}

/// What is wrong with a substitution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutionError {
    /// What is wrong and, where that is known, what would be right; several lines where they point into the pattern.
    pub message: String,
    /// Where in the substitution's text, bytes from its start, always between two characters.
    pub offset: usize,
}

impl fmt::Display for SubstitutionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SubstitutionError {}

fn fail<T>(offset: usize, message: impl Into<String>) -> Result<T, SubstitutionError> {
    Err(SubstitutionError { message: message.into(), offset })
}

/// What stands before and after a part of a substitution; the same but for bracket pairs.
#[derive(Clone, Copy)]
struct Delimiters {
    open: u8,
    close: u8,
}

impl Delimiters {
    fn read(text: &str, offset: usize) -> Result<Delimiters, SubstitutionError> {
        let Some(character) = text.get(offset..).and_then(|rest| rest.chars().next()) else {
            return fail(offset, "a delimiter is missing: s/PATTERN/REPLACEMENT/FLAGS");
        };
        let close = match character {
            '\'' => return fail(offset, "`'` is no delimiter, any other punctuation character is: s/../../"),
            '(' => b')',
            '[' => b']',
            '{' => b'}',
            '<' => b'>',
            character if character.is_ascii_punctuation() => character as u8,
            character => return fail(offset, format!("`{character}` is no delimiter, punctuation is: s/../../")),
        };
        Ok(Delimiters { open: character as u8, close })
    }

    fn are_brackets(self) -> bool {
        self.open != self.close
    }

    fn contain(self, byte: u8) -> bool {
        byte == self.open || byte == self.close
    }

    /// The end of the part that begins at `start`: where its closing delimiter stands.
    fn end(self, text: &str, start: usize, part: &str) -> Result<usize, SubstitutionError> {
        let mut depth = 0;
        let mut escaped = false;
        for (offset, byte) in text.bytes().enumerate().skip(start) {
            if escaped {
                escaped = false;
            } else if byte == self.close && depth == 0 {
                return Ok(offset);
            } else if byte == b'\\' {
                escaped = true;
            } else if byte == self.close {
                depth -= 1;
            } else if byte == self.open && self.are_brackets() {
                depth += 1;
            }
        }
        fail(text.len(), format!("the {part} has no end: `{}` is missing", char::from(self.close)))
    }
}

impl Substitution {
    /// Reads a substitution.
    ///
    /// # Errors
    /// It is none, or its pattern can't be matched exactly as Perl would.
    pub fn parse(text: &str) -> Result<Substitution, SubstitutionError> {
        let Some(rest) = text.strip_prefix('s') else {
            return fail(0, "a substitution begins with s: s/PATTERN/REPLACEMENT/FLAGS");
        };
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        if blanks > 0 && rest.trim_start().starts_with('#') {
            return fail(1 + blanks, "after a blank, # begins a comment in Perl: s#..#..#");
        }

        let delimiters = Delimiters::read(text, 1 + blanks)?;
        let pattern_start = 2 + blanks;
        let pattern_end = delimiters.end(text, pattern_start, "pattern")?;
        let mut second = delimiters;
        let mut replacement_start = pattern_end + 1;
        if delimiters.are_brackets() {
            let rest = text.get(replacement_start..).unwrap_or_default();
            replacement_start += rest.len() - rest.trim_start().len();
            second = Delimiters::read(text, replacement_start)?;
            replacement_start += 1;
        }
        let replacement_end = second.end(text, replacement_start, "replacement")?;
        let (flags, everywhere) = parse_flags(text, replacement_end + 1)?;

        let pattern_text = text.get(pattern_start..pattern_end).unwrap_or_default();
        if pattern_text.is_empty() {
            return fail(pattern_start, "the pattern is empty (in Perl: the last one that matched): write (?:)");
        }
        let stripped = (!delimiters.are_brackets()).then_some(delimiters.open);
        let pattern = pattern::parse(pattern_text, flags, stripped)
            .map_err(|error| in_substitution(error, pattern_text, pattern_start))?;
        let replacement = parse_replacement(
            text.get(replacement_start..replacement_end).unwrap_or_default(),
            replacement_start,
            second,
            &pattern.groups,
        )?;

        let mut unclear = Vec::new();
        pattern.node.groups_in_empty_rounds(false, &mut unclear);
        for (part, offset) in &replacement {
            if let Part::Group(number) = part
                && unclear.contains(number)
            {
                return fail(
                    *offset,
                    format!("group {number} is repeated and may match nothing: what it matched last is not supported"),
                );
            }
        }
        let replacement: Vec<Part> = replacement.into_iter().map(|(part, _)| part).collect();

        let mut regex = String::new();
        pattern.node.write(&mut regex);
        let regex = RegexBuilder::new(&regex).unicode(false).nest_limit(1_000).size_limit(MAX_PATTERN_SIZE).build();
        let too_large = || format!("the pattern is too large: compiled, it takes over {} MiB", MAX_PATTERN_SIZE >> 20);
        let regex = match regex {
            Ok(regex) => regex,
            Err(regex::Error::CompiledTooBig(_)) => return fail(pattern_start, too_large()),
            Err(error) => return fail(pattern_start, format!("not supported by the regex crate: {error}")),
        };
        let hides_longer = everywhere && !pattern.node.prefers_bytes();
        let ends_with_line_start = pattern.node.may_end_with_line_start();
        let exact = if hides_longer || ends_with_line_start {
            match Exact::new(&pattern.node, pattern.groups.len()) {
                Some(exact) => Some(exact),
                None => return fail(pattern_start, too_large()),
            }
        } else {
            None
        };

        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(Substitution(Arc::new(Compiled {
            text: text.to_owned(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            regex,
            exact,
            hides_longer,
            ends_with_line_start,
            needs_groups: replacement.iter().any(|part| matches!(part, Part::Group(1..))),
            replacement,
            everywhere,
        })))
    }

    /// Substitutes in `text` and returns how often the pattern matched. Unless that is 0, `changed`'s content is
    /// replaced by the outcome. `matched` is told each match.
    pub fn apply(
        &self,
        text: &[u8],
        changed: &mut Vec<u8>,
        groups: &mut Groups,
        mut matched: impl FnMut(&[u8]),
    ) -> usize {
        let mut locations = self.0.needs_groups.then(|| groups.of(&self.0));
        let mut copied = 0;
        let mut matches = 0;
        let mut last: Option<Range<usize>> = None;
        while let Some(found) = self.0.find(text, last.take(), locations.as_deref_mut()) {
            if matches == 0 {
                changed.clear();
            }
            matches += 1;
            let range = found.range.clone();
            matched(text.get(range.clone()).unwrap_or_default());
            changed.extend_from_slice(text.get(copied..range.start).unwrap_or_default());
            for part in &self.0.replacement {
                match part {
                    Part::Text(text) => changed.extend_from_slice(text),
                    Part::Group(number) => {
                        if let Some(range) = found.group(*number, locations.as_deref()) {
                            changed.extend_from_slice(text.get(range).unwrap_or_default());
                        }
                    }
                }
            }
            copied = range.end;
            if !self.0.everywhere {
                break;
            }
            last = Some(range);
        }
        if matches > 0 {
            changed.extend_from_slice(text.get(copied..).unwrap_or_default());
        }
        matches
    }
}

impl Compiled {
    /// The first match after the last one, if there was one. After an empty one Perl takes the next that ends later,
    /// after any other one it may be empty.
    fn find(&self, text: &[u8], last: Option<Range<usize>>, locations: Option<&mut CaptureLocations>) -> Option<Found> {
        let mut start = last.as_ref().map_or(0, |last| last.end);
        if last.is_some_and(|last| last.is_empty()) {
            if self.hides_longer
                && let Some(slots) = self.exact.as_ref().and_then(|exact| exact.find(text, start, true, start + 1))
            {
                return Found::new(slots);
            }
            start += 1;
            if start > text.len() {
                return None;
            }
        }
        let found = match locations {
            Some(locations) => self.regex.captures_read_at(locations, text, start),
            None => self.regex.find_at(text, start),
        }?;
        if self.ends_with_line_start && found.end() == text.len() && text.last() == Some(&b'\n') {
            let exact = self.exact.as_ref()?;
            return exact.find(text, found.start(), false, 0).and_then(Found::new);
        }
        Some(Found { range: found.range(), slots: None })
    }
}

impl Found {
    fn new(slots: Slots) -> Option<Found> {
        match slots.as_slice() {
            [Some(start), Some(end), ..] => Some(Found { range: *start..*end, slots: Some(slots) }),
            _ => None,
        }
    }

    fn group(&self, number: usize, locations: Option<&CaptureLocations>) -> Option<Range<usize>> {
        if number == 0 {
            return Some(self.range.clone());
        }
        match &self.slots {
            Some(slots) => match slots.get(2 * number..2 * number + 2) {
                Some([Some(start), Some(end)]) => Some(*start..*end),
                _ => None,
            },
            None => locations?.get(number).map(|(start, end)| start..end),
        }
    }
}

impl Groups {
    fn of(&mut self, compiled: &Compiled) -> &mut CaptureLocations {
        let index = match self.0.iter().position(|(number, _)| *number == compiled.number) {
            Some(index) => index,
            None => {
                self.0.push((compiled.number, compiled.regex.capture_locations()));
                self.0.len() - 1
            }
        };
        &mut self.0[index].1
    }
}

/// Reads the flags that begin at `start`.
fn parse_flags(text: &str, start: usize) -> Result<(Flags, bool), SubstitutionError> {
    let mut flags = Flags::default();
    let mut everywhere = false;
    for (index, flag) in text.get(start..).unwrap_or_default().char_indices() {
        let offset = start + index;
        let seen = match flag {
            'g' => &mut everywhere,
            'i' => &mut flags.ignore_case,
            'm' => &mut flags.multi_line,
            's' => &mut flags.dot_all,
            'x' => &mut flags.extended,
            'e' => return fail(offset, "the flag e is not supported: the replacement can't be code"),
            '\'' | ' ' | ';' => {
                return fail(offset, format!("`{flag}` after the end: only the flags g, i, m, s, x stand here"));
            }
            flag => return fail(offset, format!("`{flag}` is none of the flags g, i, m, s, x")),
        };
        if *seen {
            return fail(offset, format!("the flag {flag} is given twice"));
        }
        *seen = true;
    }
    Ok((flags, everywhere))
}

/// Puts a pattern's error into the whole substitution; one that makes it no regular expression at all is shown in the
/// regex crate's way.
fn in_substitution(error: PatternError, pattern: &str, start: usize) -> SubstitutionError {
    let PatternError { message, offset, invalid } = error;
    let message = if invalid {
        let column = pattern.get(..offset).unwrap_or_default().chars().count();
        format!("regex parse error:\n    {pattern}\n    {:column$}^\nerror: {message}", "")
    } else {
        message
    };
    SubstitutionError { message, offset: start + offset }
}

/// Reads a replacement that begins at `start` of the substitution: its parts and where each stands.
fn parse_replacement(
    text: &str,
    start: usize,
    delimiters: Delimiters,
    groups: &[Option<String>],
) -> Result<Vec<(Part, usize)>, SubstitutionError> {
    let mut parts = Vec::new();
    let mut literal = Vec::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        let offset = start + index;
        let rest = characters.as_str();
        let (part, length) = match character {
            '\\' => match rest.bytes().next() {
                Some(byte) if delimiters.contain(byte) => (Part::Text(vec![byte]), 1),
                Some(b'n') => (Part::Text(vec![b'\n']), 1),
                Some(b't') => (Part::Text(vec![b'\t']), 1),
                Some(b'\\') => (Part::Text(vec![b'\\']), 1),
                Some(b'1'..=b'9') => {
                    if rest.as_bytes().get(1).is_some_and(|byte| byte.is_ascii_digit()) {
                        return fail(offset, "two digits after a backslash are a byte in Perl: write ${1} or $10");
                    }
                    (Part::Group(group_number(rest.get(..1).unwrap_or_default(), groups, offset)?), 1)
                }
                _ => {
                    return fail(
                        offset,
                        "a backslash stands only before a digit, n, t, a backslash or the delimiter in a replacement",
                    );
                }
            },
            '$' => reference(rest, groups, offset)?,
            character => (Part::Text(character.to_string().into_bytes()), 0),
        };
        match part {
            Part::Text(text) => literal.extend(text),
            part => {
                if !literal.is_empty() {
                    parts.push((Part::Text(std::mem::take(&mut literal)), offset));
                }
                parts.push((part, offset));
            }
        }
        if length > 0 {
            characters.nth(length - 1);
        }
    }
    if !literal.is_empty() {
        parts.push((Part::Text(literal), start + text.len()));
    }
    Ok(parts)
}

/// Reads what follows a `$`; also gives its length.
fn reference(rest: &str, groups: &[Option<String>], offset: usize) -> Result<(Part, usize), SubstitutionError> {
    const KNOWN: &str = "in a replacement, $ stands only in $1, ${1}, ${name} and $&";
    if rest.starts_with('&') {
        return Ok((Part::Group(0), 1));
    }
    if let Some(inner) = rest.strip_prefix('{') {
        let Some(length) = inner.find('}') else {
            return fail(offset, "${ without }");
        };
        let name = inner.get(..length).unwrap_or_default();
        if name.is_empty() {
            return fail(offset, KNOWN);
        }
        let number = if name.bytes().all(|byte| byte.is_ascii_digit()) {
            group_number(name, groups, offset)?
        } else {
            match groups.iter().position(|group| group.as_deref() == Some(name)) {
                Some(index) => index + 1,
                None => return fail(offset, format!("the pattern has no group named {name}: (?<{name}>..)")),
            }
        };
        return Ok((Part::Group(number), length + 2));
    }
    let length = rest.bytes().take_while(u8::is_ascii_digit).count();
    if length == 0 {
        return fail(offset, KNOWN);
    }
    Ok((Part::Group(group_number(rest.get(..length).unwrap_or_default(), groups, offset)?), length))
}

fn group_number(digits: &str, groups: &[Option<String>], offset: usize) -> Result<usize, SubstitutionError> {
    if digits.starts_with('0') {
        return fail(offset, "groups are counted from 1; the whole match is $&");
    }
    match digits.parse::<usize>() {
        Ok(number) if number <= groups.len() => Ok(number),
        _ => {
            let count = match groups.len() {
                0 => "it has none".to_owned(),
                count => format!("it has {count}"),
            };
            let hint = match digits.get(..1) {
                Some(first) if digits.len() > 1 && !groups.is_empty() => {
                    format!(" (group {first} and a digit: ${{{first}}}..)")
                }
                _ => String::new(),
            };
            fail(offset, format!("the pattern has no group {digits}, {count}{hint}"))
        }
    }
}

impl PartialEq for Substitution {
    /// By the text as written.
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Substitution {}

impl fmt::Display for Substitution {
    /// As written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str, data: impl AsRef<[u8]>) -> String {
        let mut changed = Vec::new();
        let substitution = Substitution::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        match substitution.apply(data.as_ref(), &mut changed, &mut Groups::default(), |_| {}) {
            0 => "unmatched".to_owned(),
            _ => String::from_utf8_lossy(&changed).into_owned(),
        }
    }

    /// The message and the rest of the text from where it points.
    fn error(text: &str) -> (String, &str) {
        let error = Substitution::parse(text).map(|_| ()).expect_err(text);
        let rest =
            text.get(error.offset..).unwrap_or_else(|| panic!("{text}: {} is no character's place", error.offset));
        (error.message, rest)
    }

    #[track_caller]
    fn assert_refused(text: &str, message: &str, rest: &str) {
        let (actual, place) = error(text);
        assert!(actual.contains(message), "{text}: {actual}");
        assert_eq!(place, rest, "{text}: {actual}");
    }

    #[test]
    fn every_punctuation_character_delimits() {
        for delimiter in (0..128).map(char::from).filter(char::is_ascii_punctuation) {
            if "'()[]{}<>".contains(delimiter) {
                continue;
            }
            assert_eq!(changed(&format!("s{delimiter}a.?{delimiter}x{delimiter}g").replace(".?", "b"), "ab ab"), "x x");
            if delimiter != '\\' {
                let text = format!("s{delimiter}a\\{delimiter}b{delimiter}<\\{delimiter}>{delimiter}");
                assert_eq!(changed(&text, format!("a{delimiter}b")), format!("<{delimiter}>"), "{text}");
                assert_eq!(changed(&text, "ab"), "unmatched", "{text}: the delimiter is a literal character");
            }
        }
        for (open, close) in ["()", "[]", "{}", "<>"].map(|pair| pair.split_at(1)) {
            assert_eq!(changed(&format!("s{open}a{close}{open}b{close}"), "a"), "b");
            assert_eq!(changed(&format!("s{open}a{close} \t/b/g"), "aa"), "bb");
            assert_eq!(changed(&format!("s{open}a{close} <b>g"), "aa"), "bb");
            let escaped = format!("s{open}a\\{open}\\{close}{close}{open}\\{close}{open}x{close}\\{open}{close}");
            assert_eq!(changed(&escaped, format!("a{open}{close}")), format!("{close}{open}x{close}{open}"));
        }
        assert_eq!(changed("s{a{2}}{b{2}}", "aa"), "b{2}");
        assert_eq!(changed("s {a} {b}g", "aa"), "bb");
    }

    #[test]
    fn what_is_no_substitution() {
        assert_refused("", "begins with s", "");
        assert_refused("tr/a/b/", "begins with s", "tr/a/b/");
        assert_refused("s", "delimiter is missing", "");
        assert_refused("s'a'b'", "no delimiter", "'a'b'");
        assert_refused("sxaxbx", "no delimiter", "xaxbx");
        assert_refused("s\u{a7}a\u{a7}b\u{a7}", "no delimiter", "\u{a7}a\u{a7}b\u{a7}");
        assert_refused("s #a#b#", "comment", "#a#b#");
        assert_refused("s/a", "the pattern has no end: `/`", "");
        assert_refused("s/a\\/", "the pattern has no end", "");
        assert_refused("s/a/b", "the replacement has no end", "");
        assert_refused("s{a}{b{}", "the replacement has no end", "");
        assert_refused("s{a}", "delimiter is missing", "");
        assert_refused("s{a}'b'", "no delimiter", "'b'");
        assert_refused("s//b/", "pattern is empty", "/b/");
    }

    #[test]
    fn flags_are_g_i_m_s_x() {
        assert_eq!(changed("s/A . ^b/x/xsmig", "a\nb"), "x");
        assert_refused("s/a/b/gig", "given twice", "g");
        assert_refused("s/a/b/e", "code", "e");
        assert_refused("s/a/b/gr", "none of the flags", "r");
        assert_refused("s/a/b/g;", "after the end", ";");
        assert_refused("s/a/b/ g", "after the end", " g");
        assert_refused("s/a/b/\u{fc}", "none of the flags", "\u{fc}");
    }

    #[test]
    fn replacements() {
        assert_eq!(changed(r"s/(a)(?<n>b)/$2${1}\1${n}$&\n\t\\\//", "ab"), "baabab\n\t\\/");
        assert_eq!(changed(r"s/(a)/$1x{@}%&/", "a"), "ax{@}%&");
        assert_eq!(changed(r"s/(a)|(b)/<$1$2>/g", "abc"), "<a><b>c");
        assert_eq!(changed(r"s/a/gr\u{fc}n/".replace("\\u{fc}", "\u{fc}").as_str(), "a"), "gr\u{fc}n");
        for (text, message, rest) in [
            (r"s/a/\q/", "only before", r"\q/"),
            (r"s/a/\$/", "only before", r"\$/"),
            (r"s/a/\0/", "only before", r"\0/"),
            (r"s/(a)/\10/", "two digits", r"\10/"),
            (r"s/a/$/", "stands only in", "$/"),
            (r"s/(?<n>a)/$n/", "stands only in", "$n/"),
            (r"s/a/$0/", "counted from 1", "$0/"),
            (r"s/a/${}/", "stands only in", "${}/"),
            (r"s/a/${x/", "${ without }", "${x/"),
            (r"s/a/-$1/", "no group 1, it has none", "$1/"),
            (r"s/(a)/$2/", "no group 2, it has 1", "$2/"),
            (r"s/(a)/$10/", "group 1 and a digit: ${1}..", "$10/"),
            (r"s/(a)/\2/", "no group 2", r"\2/"),
            (r"s/(a)/${n}/", "no group named n", "${n}/"),
            (r"s/(a)/$99999999999999999999/", "no group 99999", "$99999999999999999999/"),
            (r"s/(a*)*/<$1>/", "group 1 is repeated", "$1>/"),
        ] {
            assert_refused(text, message, rest);
        }
    }

    #[test]
    fn what_perl_has_and_the_crate_has_not_is_refused() {
        for (pattern, message) in [
            ("(?=a)", "look-ahead"),
            ("(?!a)", "look-ahead"),
            ("(?<=a)b", "look-behind"),
            ("(?<!a)b", "look-behind"),
            ("(?>a)", "atomic"),
            ("(?|a)", "branch reset"),
            ("(?(1)a)", "conditions"),
            ("(?{1})", "code"),
            ("(??{1})", "code"),
            ("(?R)", "recursion"),
            ("(?1)", "recursion"),
            ("(?-1)", "recursion"),
            ("(?+1)", "recursion"),
            ("(?&n)", "recursion"),
            ("(?P>n)", "recursion"),
            ("(?P=n)", "back-references"),
            ("(*FAIL)", "verbs"),
            ("(?a)", "none of the flags"),
            ("(?\u{fc})", "none of the flags"),
            ("(?xx)", "xx"),
            (r"\1", "back-references"),
            (r"\g1", "back-references"),
            (r"\k<n>", "back-references"),
            (r"\Ga", r"\G"),
            (r"\Ka", r"\K"),
            (r"\Ra", r"\R"),
            (r"\Xa", r"\X"),
            (r"\Z", r"\n?\z"),
            (r"\pL", "properties"),
            (r"\N{U+41}", r"\N{..}"),
            (r"\N(?#c){U+41}", r"\N{..}"),
            (r"\b{wb}", r"\b{..}"),
            (r"\x{100}", "bytes"),
            (r"\x{20ac}", "bytes"),
            (r"\o{777}", "bytes"),
            (r"[\777]", "bytes"),
            (r"\Ua", r"\U"),
            (r"\Ea", r"\E"),
            (r"\ya", r"\y means nothing"),
            (r"\c1", r"\c"),
            ("{2}{,3}", "nothing to repeat"),
            ("$x", "variable"),
            ("${x}", "variable"),
            ("@x", "array"),
            ("[\u{fc}]", "is 2 bytes"),
            (r"[\Q\u{fc}".replace("\\u{fc}", "\u{fc}").as_str(), "is 2 bytes"),
        ] {
            let pattern = format!("a{pattern}");
            // Not all of them would be wrong at the start of a pattern.
            let text = format!("s~{}~b~", if pattern.starts_with("a{") { &pattern[1..] } else { &pattern });
            let (actual, rest) = error(&text);
            assert!(actual.contains(message), "{text}: {actual}");
            assert!(text.len() - rest.len() >= 2, "{text}: the place is in the pattern");
        }
        assert_refused("s/ab++/x/", "possessive", "+/x/");
        assert_refused("s/ab{2}+/x/", "possessive", "+/x/");
        assert_refused("s/ab{,3}/x/", "newer versions", "{,3}/x/");
        assert_refused("s/ab{ 1, 3 }/x/", "newer versions", "{ 1, 3 }/x/");
        assert_refused("s/a^*/x/", "matches no byte", "*/x/");
        assert_refused("s/a\u{fc}+/x/", "write (?:\u{fc})", "+/x/");
        assert_refused("s/a[\\w--]/x/", "\\-", "-]/x/");
        assert_refused(r"s/\Qa\nb\E/x/", "backslash", r"\nb\E/x/");
        assert_refused(r"s/\Qa$b\E/x/", "variable", r"$b\E/x/");
        assert_refused("s/(?:a??)+/x/", "prefers to match nothing", "+/x/");
        assert_refused("s/(?<n>a)(?<n>b)/x/", "two groups", "n>b)/x/");
    }

    #[test]
    fn what_is_no_pattern_is_shown_where() {
        let (message, rest) = error("s/ab(c/x/");
        assert_eq!(message, "regex parse error:\n    ab(c\n      ^\nerror: unclosed group: ( without )");
        assert_eq!(rest, "(c/x/");
        assert_refused("s/ab)/x/", "unopened group", ")/x/");
        assert_refused("s/ab[c/x/", "unclosed class", "[c/x/");
        assert_refused("s/a[z-a]/x/", "backwards", "z-a]/x/");
        assert_refused("s/a|*/x/", "nothing to repeat", "*/x/");
        assert_refused("s/a**/x/", "nested quantifiers", "*/x/");
        assert_refused("s/a{3,2}/x/", "larger", "{3,2}/x/");
        assert_refused("s/a[[:alhpa:]]/x/", "POSIX", "[:alhpa:]]/x/");
        assert_refused("s/a(?<1>b)/x/", "name", "1>b)/x/");
        assert_refused("s/a(?#b/x/", "comment", "(?#b/x/");
        assert_refused("s/a(?ib/x/", "none of the flags", "b/x/");
        assert_refused(r"s/a\x{4/x/", r"\x{ without }", r"\x{4/x/");
        assert_refused(r"s/a\xg/x/", "two digits", r"\xg/x/");
    }

    #[test]
    fn large_patterns_are_refused() {
        assert_refused("s/((a{999}){999}){999}/x/", "too large", "((a{999}){999}){999}/x/");
        assert_refused("s/(?:^a{1000}){1000}^/x/gm", "too large", "(?:^a{1000}){1000}^/x/gm");
        assert_refused("s/a{65535}/x/", "65534", "{65535}/x/");
        let nested = format!("s/{}a{}/x/", "(".repeat(20_000), ")".repeat(20_000));
        assert!(error(&nested).0.contains("nest deeper"));
        let allowed = format!("s/{}a{}/x/", "(".repeat(100), ")".repeat(100));
        assert_eq!(changed(&allowed, "ba"), "bx");
    }

    #[test]
    fn dollar_without_m_is_the_very_end() {
        assert_eq!(changed("s/a$/x/", "a"), "x");
        assert_eq!(changed("s/a$/x/", "a\n"), "unmatched");
        assert_eq!(changed("s/a$/x/m", "a\n"), "x\n");
    }

    #[test]
    fn equal_by_text_and_shown_as_written() {
        let parse = |text| Substitution::parse(text).unwrap();
        assert_eq!(parse("s/a/b/"), parse("s/a/b/"));
        assert_ne!(parse("s/a/b/"), parse("s!a!b!"));
        assert_eq!(parse("s/a/b/").to_string(), "s/a/b/");
    }

    #[test]
    fn groups_are_told_apart_by_substitution() {
        let mut groups = Groups::default();
        let mut changed = Vec::new();
        for (text, expected) in [("s/(a)/$1$1/", "aab"), ("s/(a)(b)/$2$1/", "ba"), ("s/(b)/$1$1/", "abb")] {
            let substitution = Substitution::parse(text).unwrap();
            for _ in 0..2 {
                substitution.apply(b"ab", &mut changed, &mut groups, |_| {});
                assert_eq!(changed, expected.as_bytes());
            }
        }
    }
}
