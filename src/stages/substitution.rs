//! `s/PATTERN/REPLACEMENT/FLAGS`, with ` if /PATTERN/FLAGS` or ` unless /PATTERN/FLAGS` behind it, as Perl reads it, on
//! bytes: jobs are not always UTF-8.
//!
//! One difference to Perl stays: `$` without the flag `m` matches at the very end only, not before a last line end.
//! Nothing is expanded; where Perl would read a variable (`$x`, `$,`, `@x`) the text is refused.

mod pattern;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pattern::{Flags, Pattern, reads_array};
use regex::bytes::CaptureLocations;

use super::bounds::{Bounds, Failure};

/// A compiled substitution.
#[derive(Debug, Clone)]
pub struct Substitution(Arc<Compiled>);

struct Compiled {
    /// As written.
    text: String,
    /// Never given twice in a process: by it [`Groups`] knows what belongs to this pattern.
    number: u64,
    pattern: Pattern,
    replacement: Vec<Part>,
    /// Whether the replacement needs more than the whole match.
    needs_groups: bool,
    everywhere: bool,
    guard: Option<Guard>,
}

/// Where the substitution applies.
struct Guard {
    pattern: Pattern,
    /// `if` rather than `unless`.
    wanted: bool,
}

/// A part of a replacement.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(Vec<u8>),
    /// A group by its number; 0 is the whole match.
    Group(usize),
    /// Up to the [`Part::End`] that belongs to it, the case is changed at the end.
    Begin,
    End(Case),
}

/// `\L`, `\U`, `\l`, `\u`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Case {
    Lower,
    Upper,
    LowerFirst,
    UpperFirst,
}

impl Case {
    fn of(letter: u8) -> Option<Case> {
        match letter {
            b'L' => Some(Case::Lower),
            b'U' => Some(Case::Upper),
            b'l' => Some(Case::LowerFirst),
            b'u' => Some(Case::UpperFirst),
            _ => None,
        }
    }

    fn is_long(self) -> bool {
        matches!(self, Case::Lower | Case::Upper)
    }

    fn change(self, text: &mut [u8]) {
        let length = if self.is_long() { text.len() } else { text.len().min(1) };
        let text = text.get_mut(..length).unwrap_or_default();
        match self {
            Case::Lower | Case::LowerFirst => text.make_ascii_lowercase(),
            Case::Upper | Case::UpperFirst => text.make_ascii_uppercase(),
        }
    }
}

/// Where groups matched, and where the case is to be changed: memory that is used again from one text to the next.
#[derive(Debug, Default)]
pub struct Groups {
    locations: Vec<(u64, CaptureLocations)>,
    begins: Vec<usize>,
}

impl Groups {
    /// Bytes, about.
    pub(super) fn capacity(&self) -> usize {
        self.locations.iter().map(|(_, locations)| 16 * locations.len() + 64).sum::<usize>()
            + 8 * self.begins.capacity()
    }
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
            '(' => b')',
            '[' => b']',
            '{' => b'}',
            '<' => b'>',
            character if character.is_ascii_punctuation() && character != '\'' => character as u8,
            character => {
                return fail(
                    offset,
                    format!("`{character}` is not a delimiter; punctuation other than ' is: s/../../"),
                );
            }
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

/// How many bytes of blanks stand at `start`.
fn blanks(text: &str, start: usize) -> usize {
    text.bytes().skip(start).take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// Past the blanks at `start`, to where a delimiter stands.
fn skip_blanks(text: &str, start: usize) -> Result<usize, SubstitutionError> {
    let offset = start + blanks(text, start);
    if offset > start && text.as_bytes().get(offset) == Some(&b'#') {
        return fail(offset, "after a blank, # begins a comment in Perl: s#..#..#");
    }
    Ok(offset)
}

impl Substitution {
    /// Reads a substitution.
    ///
    /// # Errors
    /// It is not one, or its pattern can't be matched exactly as Perl would.
    pub fn parse(text: &str) -> Result<Substitution, SubstitutionError> {
        if !text.starts_with('s') {
            return fail(0, "a substitution begins with s: s/PATTERN/REPLACEMENT/FLAGS");
        }
        let start = skip_blanks(text, 1)?;
        let delimiters = Delimiters::read(text, start)?;
        let pattern_start = start + 1;
        let pattern_end = delimiters.end(text, pattern_start, "pattern")?;
        let mut second = delimiters;
        let mut replacement_start = pattern_end + 1;
        if delimiters.are_brackets() {
            replacement_start = skip_blanks(text, replacement_start)?;
            second = Delimiters::read(text, replacement_start)?;
            replacement_start += 1;
        }
        let replacement_end = second.end(text, replacement_start, "replacement")?;
        let mut everywhere = false;
        let (flags, flags_end) = parse_flags(text, replacement_end + 1, Some(&mut everywhere))?;

        let pattern_text = text.get(pattern_start..pattern_end).unwrap_or_default();
        let pattern = Pattern::read(pattern_text, pattern_start, flags, everywhere)?;
        let mut parser = ReplacementParser {
            text: text.get(..replacement_end).unwrap_or_default(),
            position: replacement_start,
            delimiters: second,
            pattern: &pattern,
            parts: Vec::new(),
            cases: Vec::new(),
        };
        parser.parse()?;
        let replacement = parser.parts;
        let guard = parse_guard(text, flags_end)?;

        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(Substitution(Arc::new(Compiled {
            text: text.to_owned(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            needs_groups: replacement.iter().any(|part| matches!(part, Part::Group(1..))),
            pattern,
            replacement,
            everywhere,
            guard,
        })))
    }

    /// Whether its guard lets it be applied to this text; without a guard always.
    pub fn applies_to(&self, text: &[u8]) -> bool {
        self.0.guard.as_ref().is_none_or(|guard| guard.pattern.matches(text) == guard.wanted)
    }

    /// Substitutes in `text`, whatever its guard says, and returns how often the pattern matched. Unless that is 0,
    /// `changed`'s content is replaced by the outcome. `matched` is told each match.
    ///
    /// # Errors
    /// The outcome or the work is more than the bounds allow, or the forward stops.
    pub fn apply(
        &self,
        text: &[u8],
        changed: &mut Vec<u8>,
        groups: &mut Groups,
        bounds: &mut Bounds<'_>,
        mut matched: impl FnMut(&[u8]),
    ) -> Result<usize, Failure> {
        let compiled = &*self.0;
        let Groups { locations, begins } = groups;
        let mut locations = compiled.needs_groups.then(|| compiled.locations(locations));
        begins.clear();
        let (mut matches, mut copied, mut start) = (0, 0, 0);
        while start <= text.len()
            && let Some((found, end)) = compiled.pattern.find(text, start, locations.as_deref_mut())
        {
            if matches == 0 {
                changed.clear();
            }
            matches += 1;
            bounds.check_match(text.len())?;
            let whole = text.get(found..end).unwrap_or_default();
            matched(whole);
            bounds.append(changed, text.get(copied..found).unwrap_or_default())?;
            for part in &compiled.replacement {
                match part {
                    Part::Text(text) => bounds.append(changed, text)?,
                    Part::Group(0) => bounds.append(changed, whole)?,
                    Part::Group(number) => {
                        if let Some((start, end)) = locations.as_ref().and_then(|locations| locations.get(*number)) {
                            bounds.append(changed, text.get(start..end).unwrap_or_default())?;
                        }
                    }
                    Part::Begin => begins.push(changed.len()),
                    Part::End(case) => {
                        if let Some(rest) = begins.pop().and_then(|begin| changed.get_mut(begin..)) {
                            case.change(rest);
                        }
                    }
                }
            }
            copied = end;
            if !compiled.everywhere {
                break;
            }
            // Behind an empty match the next is not looked for at the same place, behind another it may be empty.
            start = end + usize::from(found == end);
        }
        if matches > 0 {
            bounds.append(changed, text.get(copied..).unwrap_or_default())?;
        }
        Ok(matches)
    }
}

impl Compiled {
    fn locations<'g>(&self, all: &'g mut Vec<(u64, CaptureLocations)>) -> &'g mut CaptureLocations {
        let index = match all.iter().position(|(number, _)| *number == self.number) {
            Some(index) => index,
            None => {
                all.push((self.number, self.pattern.locations()));
                all.len() - 1
            }
        };
        &mut all[index].1
    }
}

/// Reads the flags that begin at `start`, up to a blank; `g` where it means something. Gives their end, too.
fn parse_flags(
    text: &str,
    start: usize,
    mut everywhere: Option<&mut bool>,
) -> Result<(Flags, usize), SubstitutionError> {
    let mut flags = Flags::default();
    let allowed = if everywhere.is_some() { "g, i, m, s, x" } else { "i, m, s, x" };
    for (index, letter) in text.get(start..).unwrap_or_default().char_indices() {
        let offset = start + index;
        let seen = match letter {
            ' ' | '\t' => return Ok((flags, offset)),
            'g' if everywhere.is_some() => everywhere.as_deref_mut(),
            letter => flags.named(letter),
        };
        let message = match (seen, letter) {
            (Some(seen), _) if !*seen => {
                *seen = true;
                continue;
            }
            (Some(_), letter) => format!("the flag {letter} is given twice"),
            (None, 'e') => "the flag e is not supported: the replacement can't be code".to_owned(),
            (None, ';' | '\'') => format!("`{letter}` after the end: only the flags {allowed} stand here"),
            (None, letter) => format!("`{letter}` is none of the flags {allowed}"),
        };
        return fail(offset, message);
    }
    Ok((flags, text.len()))
}

/// Reads what stands behind the flags.
fn parse_guard(text: &str, start: usize) -> Result<Option<Guard>, SubstitutionError> {
    const KNOWN: &str = "after the end, only a guard stands here: if /PATTERN/FLAGS or unless /PATTERN/FLAGS";
    let word = start + blanks(text, start);
    let rest = text.get(word..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let (wanted, length) = match rest {
        rest if rest.starts_with("if") => (true, 2),
        rest if rest.starts_with("unless") => (false, 6),
        _ => return fail(word, KNOWN),
    };
    let mut offset = word + length + blanks(text, word + length);
    let delimiters = match text.as_bytes().get(offset) {
        Some(b'm') => {
            offset = skip_blanks(text, offset + 1)?;
            Delimiters::read(text, offset)?
        }
        Some(b'/') => Delimiters { open: b'/', close: b'/' },
        Some(b'(') => return fail(offset, "a guard has no parentheses: if /PATTERN/FLAGS"),
        Some(b'!') => {
            return fail(offset, "a guard has no !: write unless /PATTERN/FLAGS instead of if, or the reverse");
        }
        _ => return fail(offset, KNOWN),
    };
    offset += 1;
    let end = delimiters.end(text, offset, "guard")?;
    let (flags, flags_end) = parse_flags(text, end + 1, None)?;
    if flags_end < text.len() {
        return fail(flags_end, "there is one guard at most, and nothing behind it");
    }
    let pattern = Pattern::read(text.get(offset..end).unwrap_or_default(), offset, flags, false)?;
    Ok(Some(Guard { pattern, wanted }))
}

struct ReplacementParser<'t> {
    /// The whole text, up to the replacement's end.
    text: &'t str,
    position: usize,
    delimiters: Delimiters,
    pattern: &'t Pattern,
    parts: Vec<Part>,
    /// Changes of case that have begun.
    cases: Vec<Case>,
}

impl<'t> ReplacementParser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn parse(&mut self) -> Result<(), SubstitutionError> {
        while let Some(character) = self.rest().chars().next() {
            match character {
                '\\' => self.escape()?,
                '$' => self.reference()?,
                '@' if self
                    .rest()
                    .chars()
                    .nth(1)
                    .is_some_and(|next| reads_array(next) || matches!(next, '+' | '-')) =>
                {
                    return fail(self.position, "Perl reads an array here: a literal @ is written \\@");
                }
                character => self.literal(character, character.len_utf8()),
            }
        }
        while self.end_case().is_some() {}
        Ok(())
    }

    /// Appends a character, which is written in this many bytes.
    fn literal(&mut self, character: char, length: usize) {
        self.position += length;
        let mut buffer = [0; 4];
        let bytes = character.encode_utf8(&mut buffer).as_bytes();
        match self.parts.last_mut() {
            Some(Part::Text(text)) => text.extend_from_slice(bytes),
            _ => self.parts.push(Part::Text(bytes.to_vec())),
        }
    }

    fn escape(&mut self) -> Result<(), SubstitutionError> {
        let rest = self.rest();
        let byte = rest.as_bytes().get(1).copied().unwrap_or_default();
        match byte {
            byte if self.delimiters.contain(byte) || matches!(byte, b'\\' | b'$' | b'@') => {
                self.literal(char::from(byte), 2);
            }
            b'n' => self.literal('\n', 2),
            b't' => self.literal('\t', 2),
            b'1'..=b'9' if rest.as_bytes().get(2).is_some_and(u8::is_ascii_digit) => {
                return fail(self.position, "two digits after a backslash are a byte in Perl: write ${1} or $10");
            }
            b'1'..=b'9' => {
                self.group(rest.get(1..2).unwrap_or_default())?;
                self.element(2)?;
            }
            b'E' => {
                self.position += 2;
                while self.end_case().is_some_and(|case| !case.is_long()) {}
            }
            byte => match Case::of(byte) {
                Some(case) => self.begin_case(case),
                None => {
                    return fail(
                        self.position,
                        "a backslash stands only before a digit, n, t, L, U, l, u, E, $, @, a backslash or the delimiter \
                         in a replacement",
                    );
                }
            },
        }
        Ok(())
    }

    /// As Perl nests them: `\L` ends `\U` and the reverse, and `\L\u` is `\u\L`.
    fn begin_case(&mut self, case: Case) {
        self.position += 2;
        if self.rest().starts_with("\\E") {
            self.position += 2;
            return;
        }
        let swapped = match case {
            Case::Lower if self.rest().starts_with("\\u") => Some(Case::UpperFirst),
            Case::Upper if self.rest().starts_with("\\l") => Some(Case::LowerFirst),
            _ => None,
        };
        self.position += 2 * usize::from(swapped.is_some());
        for case in swapped.into_iter().chain([case]) {
            while case.is_long() && self.cases.iter().any(|open| open.is_long()) {
                self.end_case();
            }
            self.parts.push(Part::Begin);
            self.cases.push(case);
        }
    }

    fn end_case(&mut self) -> Option<Case> {
        let case = self.cases.pop()?;
        self.parts.push(Part::End(case));
        Some(case)
    }

    /// At a `$`.
    fn reference(&mut self) -> Result<(), SubstitutionError> {
        const KNOWN: &str = "in a replacement, $ stands only in $1, ${1}, ${name} and $&; a literal $ is written \\$";
        let rest = self.rest().get(1..).unwrap_or_default();
        if rest.starts_with('&') {
            self.parts.push(Part::Group(0));
            return self.element(2);
        }
        if let Some(inner) = rest.strip_prefix('{') {
            let Some((name, _)) = inner.split_once('}') else {
                return fail(self.position, "${ without }");
            };
            if name.is_empty() {
                return fail(self.position, KNOWN);
            }
            if name.bytes().all(|byte| byte.is_ascii_digit()) {
                self.group(name)?;
            } else {
                match self.pattern.groups.iter().position(|group| group.as_deref() == Some(name)) {
                    Some(index) => self.group(&(index + 1).to_string())?,
                    None => {
                        return fail(self.position, format!("the pattern has no group named {name}: (?<{name}>..)"));
                    }
                }
            }
            self.position += name.len() + 3;
            return Ok(());
        }
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        if length == 0 {
            return fail(self.position, KNOWN);
        }
        self.group(rest.get(..length).unwrap_or_default())?;
        self.element(1 + length)
    }

    /// Behind a group of this many bytes: whether Perl would read an element of an array or hash.
    fn element(&mut self, length: usize) -> Result<(), SubstitutionError> {
        self.position += length;
        let rest = self.rest();
        if ["[", "{", "->[", "->{"].iter().any(|prefix| rest.starts_with(prefix)) {
            return fail(self.position, "Perl reads an element here: write ${1} for the group before [, { or ->");
        }
        Ok(())
    }

    /// Appends a group by its number.
    fn group(&mut self, digits: &str) -> Result<(), SubstitutionError> {
        if digits.starts_with('0') {
            return fail(self.position, "groups are counted from 1; the whole match is $&");
        }
        let count = self.pattern.groups.len();
        match digits.parse::<usize>() {
            Ok(number) if self.pattern.unclear.contains(&number) => fail(
                self.position,
                format!("group {number} is repeated and may match nothing: what it matched last is not supported"),
            ),
            Ok(number) if number <= count => {
                self.parts.push(Part::Group(number));
                Ok(())
            }
            _ => {
                let has = if count == 0 { "it has none".to_owned() } else { format!("it has {count}") };
                let hint = match digits.get(..1) {
                    Some(first) if digits.len() > 1 && count > 0 => {
                        format!(" (group {first} and a digit: ${{{first}}}..)")
                    }
                    _ => String::new(),
                };
                fail(self.position, format!("the pattern has no group {digits}, {has}{hint}"))
            }
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
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::stages::{Limits, Undeliverable};

    fn changed(text: &str, data: impl AsRef<[u8]>) -> String {
        let mut changed = Vec::new();
        let substitution = Substitution::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let limits = Limits::of_size(1000);
        let mut bounds = Bounds::new(&limits);
        if !substitution.applies_to(data.as_ref()) {
            return "kept off".to_owned();
        }
        match substitution.apply(data.as_ref(), &mut changed, &mut Groups::default(), &mut bounds, |_| {}).unwrap() {
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
    fn what_is_not_a_substitution() {
        assert_refused("", "begins with s", "");
        assert_refused("tr/a/b/", "begins with s", "tr/a/b/");
        assert_refused("s", "delimiter is missing", "");
        assert_refused("s'a'b'", "not a delimiter", "'a'b'");
        assert_refused("sxaxbx", "not a delimiter", "xaxbx");
        assert_refused("s\u{a7}a\u{a7}b\u{a7}", "not a delimiter", "\u{a7}a\u{a7}b\u{a7}");
        assert_refused("s #a#b#", "comment", "#a#b#");
        assert_refused("s/a", "the pattern has no end: `/`", "");
        assert_refused("s/a\\/", "the pattern has no end", "");
        assert_refused("s/a/b", "the replacement has no end", "");
        assert_refused("s{a}{b{}", "the replacement has no end", "");
        assert_refused("s{a}", "delimiter is missing", "");
        assert_refused("s{a}'b'", "not a delimiter", "'b'");
        assert_refused("s//b/", "pattern is empty", "/b/");
    }

    #[test]
    fn flags_are_g_i_m_s_x() {
        assert_eq!(changed("s/A . ^b/x/xsmig", "a\nb"), "x");
        assert_refused("s/a/b/gig", "given twice", "g");
        assert_refused("s/a/b/e", "code", "e");
        assert_refused("s/a/b/gr", "none of the flags", "r");
        assert_refused("s/a/b/g;", "after the end", ";");
        assert_refused("s/a/b/ g", "only a guard", "g");
        assert_refused("s/a/b/'", "after the end", "'");
        assert_refused("s/a/b/\u{fc}", "none of the flags", "\u{fc}");
    }

    #[test]
    fn replacements() {
        assert_eq!(changed(r"s/(a)(?<n>b)/$2${1}\1${n}$&\n\t\\\//", "ab"), "baabab\n\t\\/");
        assert_eq!(changed(r"s/(a)/$1x{@}%&/", "a"), "ax{@}%&");
        assert_eq!(changed(r"s/(a)/me\@home: \$${1}[/", "a"), "me@home: $a[");
        assert_eq!(changed(r"s/(a)|(b)/<$1$2>/g", "abc"), "<a><b>c");
        assert_eq!(changed(r"s/a/gr\u{fc}n/".replace("\\u{fc}", "\u{fc}").as_str(), "a"), "gr\u{fc}n");
        for (text, message, rest) in [
            (r"s/a/\q/", "only before", r"\q/"),
            (r"s/a/\0/", "only before", r"\0/"),
            (r"s/(a)/\10/", "two digits", r"\10/"),
            (r"s/a/$/", "stands only in", "$/"),
            (r"s/(?<n>a)/$n/", "stands only in", "$n/"),
            (r"s/a/$0/", "counted from 1", "$0/"),
            (r"s/a/${}/", "stands only in", "${}/"),
            (r"s/a/me@home/", "array", "@home/"),
            (r"s/a/@-/", "array", "@-/"),
            (r"s/(a)/$1[0]/", "element", "[0]/"),
            (r"s/(a)/\1{0}/", "element", "{0}/"),
            (r"s/a/$&->[0]/", "element", "->[0]/"),
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
    fn case_is_changed_as_perl_nests_it() {
        for (replacement, expected) in [
            (r"\L$1-$2\E-$2", "ab-cd-Cd"),
            (r"\U$1-$2\E-$2", "AB-CD-Cd"),
            (r"\u$1 \l$2", "AB cd"),
            (r"\u\L$1$2", "Abcd"),
            (r"\L\u$1$2", "Abcd"),
            (r"\U\l$1$2", "aBCD"),
            (r"\U$1\L$2\E$2", "ABcdCd"),
            (r"\L$1\u$2", "abcd"),
            (r"\u$3$1", "AB"),
            (r"\uab\Ecd", "Abcd"),
            (r"\L\E$1", "aB"),
            (r"\E$1", "aB"),
            (r"\U\xc3\xbc", ""),
        ] {
            let text = format!("s/(aB)(Cd)(x)?/{replacement}/");
            if expected.is_empty() {
                assert_refused(&text, "only before", &format!("{}/", &replacement[2..]));
            } else {
                assert_eq!(changed(&text, "aBCd"), expected, "{text}");
            }
        }
        assert_eq!(changed("s/(.+)/\\U$1/", "gr\u{fc}n"), "GR\u{fc}N", "only ASCII");
        assert_eq!(changed(r"s/\b(\w+)/\u\L$1/g", "hELLO wORLD"), "Hello World");
    }

    #[test]
    fn guards() {
        assert_eq!(changed("s/a/b/ if /^type=host$/m", "a\ntype=host\n"), "b\ntype=host\n");
        assert_eq!(changed("s/a/b/ if /^type=host$/m", "a\ntype=service\n"), "kept off");
        assert_eq!(changed("s/a/b/g unless /x/i", "aa"), "bb");
        assert_eq!(changed("s/a/b/g unless /x/i", "aaX"), "kept off");
        assert_eq!(changed("s{a} {b}g\tif  m{ x{2} }x", "axx"), "bxx");
        assert_eq!(changed("s/a/b/ if m!/!", "a/"), "b/");
        assert_eq!(changed("s!a if /!b unless /!g if /a/", "a if /"), "b unless /");
        assert_eq!(changed("s/a/b/ if /^$/m", "a\n"), "kept off", "no line starts at the very end");
        assert_eq!(changed("s/a/b/ if /^$/m", "a\n\n"), "b\n\n");
        assert_eq!(changed("s/a/b/ ", "a"), "b");
        for (guard, message, rest) in [
            (" when /a/", "only a guard", "when /a/"),
            (" if", "only a guard", ""),
            (" if 'a'", "only a guard", "'a'"),
            (" if m'a'", "not a delimiter", "'a'"),
            (" if m #a#", "comment", "#a#"),
            (" if (/a/)", "parentheses", "(/a/)"),
            (" if !/a/", "unless", "!/a/"),
            (" if /a", "the guard has no end", ""),
            (" if //", "empty", "/"),
            (" if /a/g", "none of the flags i, m, s, x", "g"),
            (" if /a/ii", "given twice", "i"),
            (" if /a/;", "after the end", ";"),
            (" if /a/ if /b/", "one guard", " if /b/"),
            (" if /(?=a)/", "look-around", "(?=a)/"),
            (" if /a(/", "unclosed group", "(/"),
        ] {
            assert_refused(&format!("s/a/b/{guard}"), message, rest);
        }
    }

    #[test]
    fn growth_is_refused_while_it_grows() {
        let substitution = Substitution::parse("s/a/$&$&$&$&/g").unwrap();
        let limits = Limits::of_size(3000);
        let mut changed = Vec::new();
        let outcome =
            substitution.apply(&[b'a'; 1000], &mut changed, &mut Groups::default(), &mut Bounds::new(&limits), |_| {});
        assert_eq!(outcome, Err(Undeliverable::OutcomeTooLarge.into()));
        assert!(changed.capacity() <= 3000);
    }

    #[test]
    fn hours_of_work_end_at_the_limit_and_when_the_forward_stops() {
        let substitution = Substitution::parse("s/a.*?b|a/x/gs").unwrap();
        let text = vec![b'a'; 1_000_000];
        let stop = AtomicBool::new(false);
        let limits = Limits { max_size: 1 << 20, cpu: Duration::from_millis(300), stop: &stop };
        let apply = || {
            let (mut changed, mut groups, mut matches) = (Vec::new(), Groups::default(), 0);
            let outcome =
                substitution.apply(&text, &mut changed, &mut groups, &mut Bounds::new(&limits), |_| matches += 1);
            (outcome, matches)
        };
        let began = Instant::now();
        let (outcome, matches) = apply();
        assert_eq!(outcome, Err(Undeliverable::TooMuchWork.into()));
        assert!(matches > 10, "it was at work: {matches}");
        assert!(began.elapsed() >= Duration::from_millis(300));

        let (outcome, matches) = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                stop.store(true, Ordering::Relaxed);
            });
            apply()
        });
        assert_eq!(outcome, Err(Failure::Stopped));
        assert!(matches > 0);
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
                let limits = Limits::of_size(100);
                substitution.apply(b"ab", &mut changed, &mut groups, &mut Bounds::new(&limits), |_| {}).unwrap();
                assert_eq!(changed, expected.as_bytes());
            }
        }
    }
}
