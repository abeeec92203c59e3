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
use crate::syntax::{SyntaxError, fail};

/// A compiled substitution.
#[derive(Debug, Clone)]
pub struct Substitution(Arc<Compiled>);

#[derive(Debug)]
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
    /// `if` and true, or `unless` and false.
    guard: Option<(bool, Pattern)>,
}

/// A part of a replacement.
#[derive(Debug, PartialEq)]
enum Part {
    Text(Vec<u8>),
    /// A group by its number; 0 is the whole match.
    Group(usize),
    /// The case is changed from here to the [`Part::EndCase`] that belongs to it.
    BeginCase,
    /// With the letter of `\L`, `\U`, `\l` or `\u`.
    EndCase(u8),
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
        self.locations.iter().map(|(_, locations)| 64 + 16 * locations.len()).sum::<usize>()
            + 8 * self.begins.capacity()
    }
}

/// A place in a text that is read from left to right.
#[derive(Clone, Copy)]
struct Cursor<'t> {
    text: &'t str,
    /// Bytes from the text's beginning.
    place: usize,
}

impl<'t> Cursor<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.place..).unwrap_or_default()
    }

    /// A character ahead, or NUL.
    fn ahead(&self, index: usize) -> char {
        self.rest().chars().nth(index).unwrap_or_default()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.place += if found { token.len() } else { 0 };
        found
    }

    /// Whether there were any.
    fn take_blanks(&mut self) -> bool {
        let start = self.place;
        while self.take(" ") || self.take("\t") {}
        self.place > start
    }

    fn refuse<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        fail(self.place, message)
    }

    /// Takes `/PART/`, also behind blanks: the delimiters, and the part from its beginning to its end.
    fn delimited(&mut self, part: &str) -> Result<([char; 2], Cursor<'t>), SyntaxError> {
        let is_behind_blanks = self.take_blanks();
        let Some(open) = self.rest().chars().next() else {
            return self.refuse("a delimiter is missing: s/PATTERN/REPLACEMENT/FLAGS");
        };
        let close = match open {
            '#' if is_behind_blanks => return self.refuse("after a blank, # begins a comment in Perl: s#..#..#"),
            '(' => ')',
            '[' => ']',
            '{' => '}',
            '<' => '>',
            _ if open.is_ascii_punctuation() && open != '\'' => open,
            _ => return self.refuse(format!("`{open}` is not a delimiter; punctuation other than ' is: s/../../")),
        };
        let start = self.place + 1;
        let mut depth = 0;
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((index, character)) = characters.next() {
            match character {
                _ if character == close && depth == 0 => {
                    let text = self.text.get(..self.place + index).unwrap_or_default();
                    self.place += index + 1;
                    return Ok(([open, close], Cursor { text, place: start }));
                }
                '\\' => drop(characters.next()),
                _ if character == close => depth -= 1,
                _ if character == open => depth += 1,
                _ => {}
            }
        }
        fail(self.text.len(), format!("the {part} has no end: `{close}` is missing"))
    }

    /// Takes flags up to a blank.
    fn flags(&mut self, known: &str) -> Result<Flags, SyntaxError> {
        let mut flags = Flags::default();
        while let Some(letter) = self.rest().chars().next().filter(|letter| !matches!(letter, ' ' | '\t')) {
            match flags.named(letter).filter(|_| known.contains(letter)) {
                Some(flag) if !*flag => *flag = true,
                Some(_) => return self.refuse(format!("the flag {letter} is given twice")),
                None if letter == 'e' => {
                    return self.refuse("the flag e is not supported: the replacement can't be code");
                }
                None => return self.refuse(format!("`{letter}` is none of the flags {known}")),
            }
            self.place += 1;
        }
        Ok(flags)
    }

    /// Takes what stands behind the flags.
    fn guard(&mut self) -> Result<Option<(bool, Pattern)>, SyntaxError> {
        const KNOWN: &str = "after the flags, only a guard may stand: if /PATTERN/FLAGS or unless /PATTERN/FLAGS";
        self.take_blanks();
        let wanted = match self.rest() {
            "" => return Ok(None),
            _ if self.take("if") => true,
            _ if self.take("unless") => false,
            _ => return self.refuse(KNOWN),
        };
        self.take_blanks();
        match self.ahead(0) {
            '/' => {}
            'm' => self.place += 1,
            '(' => return self.refuse("a guard has no parentheses: if /PATTERN/FLAGS"),
            '!' => return self.refuse("a guard has no !: write unless /PATTERN/FLAGS instead of if, or the reverse"),
            _ => return self.refuse(KNOWN),
        }
        let (_, pattern) = self.delimited("guard")?;
        let flags = self.flags("i, m, s, x")?;
        if !self.rest().trim_end().is_empty() {
            return self.refuse("one guard at most, and nothing behind it");
        }
        Ok(Some((wanted, Pattern::read(pattern, flags)?)))
    }
}

impl Substitution {
    /// Reads a substitution.
    ///
    /// # Errors
    /// It is not one, or its pattern can't be matched exactly as Perl would.
    pub fn parse(text: &str) -> Result<Substitution, SyntaxError> {
        let mut cursor = Cursor { text, place: 0 };
        if !cursor.take("s") {
            return cursor.refuse("a substitution begins with s: s/PATTERN/REPLACEMENT/FLAGS");
        }
        let ([open, close], pattern) = cursor.delimited("pattern")?;
        // Both parts share the delimiter between them, but for brackets.
        cursor.place -= usize::from(open == close);
        let (delimiters, replacement) = cursor.delimited("replacement")?;
        let flags = cursor.flags("g, i, m, s, x")?;
        let pattern = Pattern::read(pattern, flags)?;
        let reader =
            Replacement { cursor: replacement, delimiters, pattern: &pattern, parts: Vec::new(), cases: Vec::new() };
        let replacement = reader.parse()?;

        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(Substitution(Arc::new(Compiled {
            text: text.to_owned(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            needs_groups: replacement.iter().any(|part| matches!(part, Part::Group(1..))),
            pattern,
            replacement,
            everywhere: flags.everywhere,
            guard: cursor.guard()?,
        })))
    }

    /// Whether its guard lets it be applied to this text; without a guard always.
    pub fn applies_to(&self, text: &[u8]) -> bool {
        self.0.guard.as_ref().is_none_or(|(wanted, pattern)| pattern.find(text, 0, None).is_some() == *wanted)
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
        let Compiled { pattern, replacement, everywhere, .. } = &*self.0;
        let Groups { locations, begins } = groups;
        let mut locations = self.0.needs_groups.then(|| self.0.locations(locations));
        let (mut matches, mut copied, mut start) = (0, 0, 0);
        while start <= text.len()
            && let Some((found, end)) = pattern.find(text, start, locations.as_deref_mut())
        {
            if matches == 0 {
                changed.clear();
                begins.clear();
            }
            matches += 1;
            bounds.check_match(text.len())?;
            matched(text.get(found..end).unwrap_or_default());
            bounds.append(changed, text.get(copied..found).unwrap_or_default())?;
            for part in replacement {
                match part {
                    Part::Text(text) => bounds.append(changed, text)?,
                    Part::Group(number) => {
                        let group = locations.as_ref().and_then(|locations| locations.get(*number));
                        let (from, to) = if *number == 0 { (found, end) } else { group.unwrap_or_default() };
                        bounds.append(changed, text.get(from..to).unwrap_or_default())?;
                    }
                    Part::BeginCase => begins.push(changed.len()),
                    Part::EndCase(letter) => {
                        let rest = begins.pop().and_then(|begin| changed.get_mut(begin..)).unwrap_or_default();
                        match (letter, rest.first_mut()) {
                            (b'L', _) => rest.make_ascii_lowercase(),
                            (b'U', _) => rest.make_ascii_uppercase(),
                            (b'l', Some(first)) => first.make_ascii_lowercase(),
                            (_, Some(first)) => first.make_ascii_uppercase(),
                            (_, None) => {}
                        }
                    }
                }
            }
            copied = end;
            // Behind an empty match the next is not looked for at the same place, behind another it may be empty.
            start = if *everywhere { end + usize::from(found == end) } else { usize::MAX };
        }
        if matches > 0 {
            bounds.append(changed, text.get(copied..).unwrap_or_default())?;
        }
        Ok(matches)
    }
}

impl Compiled {
    fn locations<'g>(&self, all: &'g mut Vec<(u64, CaptureLocations)>) -> &'g mut CaptureLocations {
        let index = all.iter().position(|(number, _)| *number == self.number).unwrap_or_else(|| {
            all.push((self.number, self.pattern.regex.capture_locations()));
            all.len() - 1
        });
        &mut all[index].1
    }
}

const NOTHING_BETWEEN: &str = "nothing stands between a change of case and the next: leave out the first";

/// Reads a replacement.
struct Replacement<'t> {
    cursor: Cursor<'t>,
    delimiters: [char; 2],
    pattern: &'t Pattern,
    parts: Vec<Part>,
    /// The letters of the changes of case that have begun.
    cases: Vec<u8>,
}

impl Replacement<'_> {
    fn parse(mut self) -> Result<Vec<Part>, SyntaxError> {
        while let Some(character) = self.cursor.rest().chars().next() {
            let next = self.cursor.ahead(1);
            match character {
                '\\' => self.escape(next)?,
                '$' => self.reference()?,
                '@' if reads_array(next) || matches!(next, '+' | '-') => {
                    return self.cursor.refuse("Perl reads an array here: a literal @ is written \\@");
                }
                _ => self.literal(character, character.len_utf8()),
            }
        }
        while self.end_case().is_some() {}
        Ok(self.parts)
    }

    /// Appends a character, which is written in this many bytes.
    fn literal(&mut self, character: char, length: usize) {
        self.cursor.place += length;
        if !matches!(self.parts.last(), Some(Part::Text(_))) {
            self.parts.push(Part::Text(Vec::new()));
        }
        if let Some(Part::Text(text)) = self.parts.last_mut() {
            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    /// At a backslash and what follows it.
    fn escape(&mut self, next: char) -> Result<(), SyntaxError> {
        match next {
            _ if self.delimiters.contains(&next) => self.literal(next, 2),
            '\\' | '$' | '@' => self.literal(next, 2),
            'n' => self.literal('\n', 2),
            't' => self.literal('\t', 2),
            '1'..='9' if self.cursor.ahead(2).is_ascii_digit() => {
                return self.cursor.refuse("two digits after a backslash are a byte in Perl: write ${1} or $10");
            }
            '1'..='9' => {
                self.group(next.encode_utf8(&mut [0; 4]), 2)?;
                return self.no_element();
            }
            'E' if self.parts.last() == Some(&Part::BeginCase) => return self.cursor.refuse(NOTHING_BETWEEN),
            'E' => {
                self.cursor.place += 2;
                while self.end_case().is_some_and(|case| case.is_ascii_lowercase()) {}
            }
            'L' | 'U' | 'l' | 'u' => self.begin_case(next as u8)?,
            _ => {
                let message = "only a digit, n, t, L, U, l, u, E, $, @, \\ or the delimiter follows a backslash here";
                return self.cursor.refuse(message);
            }
        }
        Ok(())
    }

    /// As Perl nests them: `\L` ends `\U` and the reverse, `\L\u` is `\u\L`, and one with `\E` behind it is nothing.
    fn begin_case(&mut self, case: u8) -> Result<(), SyntaxError> {
        self.cursor.place += 2;
        let before = match case {
            b'L' => Some(("\\u", b'u')),
            b'U' => Some(("\\l", b'l')),
            _ => None,
        };
        while !self.cursor.take("\\E") {
            let swapped = before.filter(|(text, _)| self.cursor.take(text)).map(|(_, letter)| letter);
            let case = swapped.unwrap_or(case);
            while case.is_ascii_uppercase() && self.cases.iter().any(u8::is_ascii_uppercase) {
                if self.parts.last() == Some(&Part::BeginCase) {
                    return self.cursor.refuse(NOTHING_BETWEEN);
                }
                self.end_case();
            }
            self.parts.push(Part::BeginCase);
            self.cases.push(case);
            if swapped.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn end_case(&mut self) -> Option<u8> {
        let case = self.cases.pop()?;
        self.parts.push(Part::EndCase(case));
        Some(case)
    }

    /// At a `$`.
    fn reference(&mut self) -> Result<(), SyntaxError> {
        let rest = self.cursor.rest().get(1..).unwrap_or_default();
        if let Some(inner) = rest.strip_prefix('{') {
            let Some((name, _)) = inner.split_once('}') else { return self.cursor.refuse("${ without }") };
            return self.group(name, name.len() + 3);
        }
        let number = if rest.starts_with('&') { 1 } else { rest.bytes().take_while(u8::is_ascii_digit).count() };
        self.group(rest.get(..number).unwrap_or_default(), 1 + number)?;
        self.no_element()
    }

    /// Behind a group Perl may read an element of an array or hash.
    fn no_element(&self) -> Result<(), SyntaxError> {
        if ["[", "{", "->[", "->{"].iter().any(|prefix| self.cursor.rest().starts_with(prefix)) {
            return self.cursor.refuse("Perl reads an element here: write ${1} for the group before [, { or ->");
        }
        Ok(())
    }

    /// Appends a group by its number or name, or `&`, which is written in this many bytes.
    fn group(&mut self, name: &str, length: usize) -> Result<(), SyntaxError> {
        const KNOWN: &str = "in a replacement, $ stands only in $1, ${1}, ${name} and $&; a literal $ is written \\$";
        let Pattern { groups, unclear, .. } = self.pattern;
        let count = groups.len();
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        let named = groups.iter().position(|group| group.as_deref() == Some(name)).map(|index| index + 1);
        let number = if is_number { name.parse().ok() } else { named };
        let group = match number {
            _ if name == "&" && length == 2 => Ok(0),
            _ if name.is_empty() => Err(KNOWN.to_owned()),
            _ if is_number && name.starts_with('0') => {
                Err("groups are counted from 1; the whole match is $&".to_owned())
            }
            Some(number) if unclear.contains(&number) => {
                Err(format!("group {number} is repeated and may match nothing: what it matched last is not supported"))
            }
            Some(number) if number <= count => Ok(number),
            None if !is_number => Err(format!("the pattern has no group named {name}: (?<{name}>..)")),
            _ => {
                let first = name.get(..1).filter(|_| name.len() > 1 && count > 0);
                let hint = first.map(|first| format!(" (group {first} and a digit: ${{{first}}}..)"));
                Err(format!("the pattern has no group {name}, it has {count}{}", hint.unwrap_or_default()))
            }
        };
        self.parts.push(Part::Group(group.or_else(|message| self.cursor.refuse(message))?));
        self.cursor.place += length;
        Ok(())
    }
}

impl PartialEq for Substitution {
    /// By the text as written.
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl fmt::Display for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
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
        let substitution = Substitution::parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.message));
        let limits = Limits::of_size(1000);
        let mut bounds = Bounds::new(&limits, limits.max_size);
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
        let rest = text.get(error.offset..).unwrap_or_else(|| panic!("{text}: {} is not at a character", error.offset));
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
        assert_refused("s/a/b/g;", "none of the flags", ";");
        assert_refused("s/a/b/ g", "only a guard", "g");
        assert_refused("s/a/b/'", "none of the flags", "'");
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
            (r"s/a/\q/", "follows a backslash", r"\q/"),
            (r"s/a/\0/", "follows a backslash", r"\0/"),
            (r"s/(a)/\10/", "two digits", r"\10/"),
            (r"s/a/$/", "stands only in", "$/"),
            (r"s/(?<n>a)/$n/", "stands only in", "$n/"),
            (r"s/a/$0/", "counted from 1", "$0/"),
            (r"s/a/${}/", "stands only in", "${}/"),
            (r"s/a/me@home/", "array", "@home/"),
            (r"s/a/@-/", "array", "@-/"),
            (r"s/a/x\L\Uy/", "leave out", "y/"),
            (r"s/a/\Lx\u\Uy/", "leave out", "y/"),
            (r"s/(a)/$1[0]/", "element", "[0]/"),
            (r"s/(a)/\1{0}/", "element", "{0}/"),
            (r"s/a/$&->[0]/", "element", "->[0]/"),
            (r"s/a/${x/", "${ without }", "${x/"),
            (r"s/a/-$1/", "no group 1, it has 0", "$1/"),
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
            (r"\U\l\E$2", "cd"),
            (r"\U\l\l\E$2", "cd"),
            (r"\U\l\l$1\E$2", "aBCd"),
            (r"\E$1", "aB"),
            (r"\U\xc3\xbc", ""),
        ] {
            let text = format!("s/(aB)(Cd)(x)?/{replacement}/");
            if expected.is_empty() {
                assert_refused(&text, "follows a backslash", &format!("{}/", &replacement[2..]));
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
            (" if /a/;", "none of the flags", ";"),
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
        let outcome = substitution.apply(
            &[b'a'; 1000],
            &mut changed,
            &mut Groups::default(),
            &mut Bounds::new(&limits, limits.max_size),
            |_| {},
        );
        assert_eq!(outcome, Err(Undeliverable::OutcomeTooLarge.into()));
        assert!(changed.capacity() <= 3000);
    }

    #[test]
    fn hours_of_work_end_at_the_limit_and_when_the_forward_stops() {
        let substitution = Substitution::parse("s/a.*?b|a/x/gs").unwrap();
        let text = vec![b'a'; 1_000_000];
        let stop = AtomicBool::new(false);
        let limits = Limits { max_size: 1 << 20, cpu: Duration::from_millis(300), stop: &stop };
        let apply = |stop_at: u32| {
            let (mut changed, mut groups, mut matches) = (Vec::new(), Groups::default(), 0);
            let outcome = substitution.apply(
                &text,
                &mut changed,
                &mut groups,
                &mut Bounds::new(&limits, limits.max_size),
                |_| {
                    matches += 1;
                    stop.fetch_or(matches == stop_at, Ordering::Relaxed);
                },
            );
            (outcome, matches)
        };
        let began = Instant::now();
        let (outcome, matches) = apply(0);
        assert_eq!(outcome, Err(Undeliverable::TooMuchWork.into()));
        assert!(matches > 1, "it was at work: {matches}");
        assert!(began.elapsed() >= Duration::from_millis(300));
        let (outcome, matches) = apply(2);
        assert_eq!(outcome, Err(Failure::Stopped));
        assert!((2..1000).contains(&matches), "{matches}");
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
                substitution
                    .apply(b"ab", &mut changed, &mut groups, &mut Bounds::new(&limits, limits.max_size), |_| {})
                    .unwrap();
                assert_eq!(changed, expected.as_bytes());
            }
        }
    }
}
