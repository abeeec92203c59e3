//! A Perl pattern, made ready for the regex crate or refused.
//!
//! `regex-syntax` parses. This file knows only where Perl reads the same characters otherwise (escapes, classes, braces,
//! blanks under `x`, flags): it writes these few so that they mean the same to `regex-syntax`, or refuses them with a
//! word on what to write instead. What can be told only from the meaning of a pattern is asked of the parsed tree.

use regex::bytes::{CaptureLocations, Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, ClassAsciiKind, RepetitionKind, parse};
use regex_syntax::hir::{Hir, HirKind, Look, translate};

use super::Cursor;
use crate::syntax::{SyntaxError, fail};

/// A compiled pattern takes no more memory than this, bytes.
const MAX_PATTERN_SIZE: usize = 4 << 20;

/// What Perl reads otherwise or alone: how it begins, one of the characters behind that, and what to write instead.
const REFUSED: &[(&str, &str, &str)] = &[
    ("\\", "123456789gk", "back-references are not supported (a byte by its number: \\x41)"),
    ("\\", "0o", "octal numbers are not supported: write \\x41, and \\x00 for NUL"),
    ("\\", "h", "\\h is not supported: write [\\t ]"),
    ("\\", "H", "\\H is not supported: write [^\\t ]"),
    ("\\", "v", "\\v is not supported: write [\\n\\r\\f\\x0B]"),
    ("\\", "V", "\\V is not supported: write [^\\n\\r\\f\\x0B]"),
    ("\\", "N", "\\N is not supported: write [^\\n], and bytes as \\x41"),
    ("\\", "R", "\\R is not supported: write (?:\\r\\n|\\n|\\r)"),
    ("\\", "Z", "\\Z is not supported: write \\n?\\z, or $"),
    ("\\", "K", "\\K is not supported: put what stays in a group and write $1"),
    ("\\", "Q", "\\Q is not supported: write a backslash before each special character"),
    ("\\", "ELUluF", "\\L, \\U, \\l, \\u and \\E stand only in a replacement: write the letters"),
    ("\\", "e", "\\e is not supported: write \\x1B"),
    ("\\", "c", "\\c is not supported: write the byte by its number, \\x01 for \\cA"),
    ("\\", "pP", "Unicode properties are not supported, data is bytes: write a class such as [A-Za-z]"),
    ("\\b", "{", "\\b{..} is not supported: \\b alone is"),
    ("\\B", "{", "\\b{..} is not supported: \\b alone is"),
    ("(", "*", "backtracking verbs and (*..) are not supported"),
    ("(?", "=!", LOOK_AROUND),
    ("(?<", "=!", LOOK_AROUND),
    ("(?", ">", "atomic groups are not supported: (?:..) may do"),
    ("(?", "|", "branch reset (?|..) is not supported: use (?:..)"),
    ("(?", "(", "conditions (?(..)..) are not supported"),
    ("(?", "{?", "code in a pattern is not supported"),
    ("(?P", "=", "back-references are not supported"),
    ("(?", "R&+0123456789", "recursion is not supported"),
    ("(?-", "0123456789", "recursion is not supported"),
    ("(?P", ">", "recursion is not supported"),
    ("(?", "'", "a group's name is written (?<name>..)"),
];

const LOOK_AROUND: &str = "look-around is not supported: match it too, in a group, and write $1 for it";

/// The flags of a pattern, and of the substitution.
#[derive(Clone, Copy, Default)]
pub(super) struct Flags {
    pub(super) everywhere: bool,
    ignore_case: bool,
    multi_line: bool,
    dot_all: bool,
    extended: bool,
}

impl Flags {
    pub(super) fn named(&mut self, letter: char) -> Option<&mut bool> {
        match letter {
            'g' => Some(&mut self.everywhere),
            'i' => Some(&mut self.ignore_case),
            'm' => Some(&mut self.multi_line),
            's' => Some(&mut self.dot_all),
            'x' => Some(&mut self.extended),
            _ => None,
        }
    }

    /// For `regex-syntax`, which never sees `x`.
    fn written(self) -> String {
        let sign = |on| if on { "" } else { "-" };
        format!("(?{}i)(?{}m)(?{}s)", sign(self.ignore_case), sign(self.multi_line), sign(self.dot_all))
    }
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    pub(super) regex: Regex,
    /// Whether each match begins at a line's start. The crate finds one at the very end of a text, too; Perl does not.
    starts_line: bool,
    /// The names of its groups, in their order; none for one that has only its number.
    pub(super) groups: Vec<Option<String>>,
    /// Groups in a repetition whose last round may match nothing. Perl then says that the group matched nothing, the
    /// crate what it matched in the round before.
    pub(super) unclear: Vec<usize>,
}

impl Pattern {
    /// Reads a pattern to the end of the text.
    ///
    /// # Errors
    /// Perl would not read it either, or the regex crate would match something else.
    pub(super) fn read(start: Cursor<'_>, flags: Flags) -> Result<Pattern, SyntaxError> {
        if start.rest().is_empty() {
            return start.refuse("the pattern is empty (in Perl: the last one that matched): write (?:)");
        }
        let mut reader =
            Reader { start, cursor: start, flags, outer: Vec::new(), out: String::new(), places: Vec::new() };
        reader.emit(start.place, &flags.written());
        reader.translate()?;
        let ast = parse::Parser::new().parse(&reader.out);
        let ast = ast.or_else(|error| reader.invalid(reader.place(error.span()), &error.kind().to_string()))?;
        ast::visit(&ast, Repetitions(&reader))?;
        let hir = translate::TranslatorBuilder::new().unicode(false).utf8(false).build().translate(&reader.out, &ast);
        let hir = hir.or_else(|error| start.refuse(error.kind().to_string()))?;
        let starts_line = hir.properties().look_set_prefix().contains(Look::StartLF);
        let message = if any(&hir, &repeats_nothing) {
            "a repetition of what prefers to match nothing is not supported: make the inner quantifier greedy"
        } else if flags.everywhere && !prefers_bytes(&hir) {
            "with g, a pattern that prefers to match nothing is not supported: put what may match nothing last, greedy"
        } else if may_end_with_line_start(&hir, starts_line) {
            "with m, a pattern that may end with ^ is not supported: put what must follow behind each ^, as in ^(.)"
        } else {
            let regex = RegexBuilder::new(&reader.out).unicode(false).size_limit(MAX_PATTERN_SIZE).build();
            let regex = regex.or_else(|error| start.refuse(format!("the pattern can't be compiled: {error}")))?;
            let groups = regex.capture_names().skip(1).map(|name| name.map(str::to_owned)).collect();
            let mut unclear = Vec::new();
            groups_in_empty_rounds(&hir, false, &mut unclear);
            return Ok(Pattern { regex, starts_line, groups, unclear });
        };
        start.refuse(message)
    }

    /// The first match at or after `start`, with its groups where `locations` are given.
    pub(super) fn find(
        &self,
        text: &[u8],
        start: usize,
        locations: Option<&mut CaptureLocations>,
    ) -> Option<(usize, usize)> {
        let found = match locations {
            Some(locations) => self.regex.captures_read_at(locations, text, start),
            None => self.regex.find_at(text, start),
        }?;
        let is_none = self.starts_line && found.start() == text.len() && !text.is_empty();
        (!is_none).then(|| (found.start(), found.end()))
    }
}

/// Reads Perl's pattern from left to right and writes it for `regex-syntax`, without blanks, comments and the flag `x`.
struct Reader<'t> {
    /// Where the pattern begins.
    start: Cursor<'t>,
    cursor: Cursor<'t>,
    flags: Flags,
    /// The flags that hold again behind each group that is open.
    outer: Vec<Flags>,
    out: String,
    /// For each byte of `out`: the place of what it stands for.
    places: Vec<usize>,
}

impl Reader<'_> {
    fn emit(&mut self, place: usize, out: &str) {
        self.out.push_str(out);
        self.places.resize(self.out.len(), place);
    }

    /// Copies the next characters as they are.
    fn copy(&mut self, count: usize) {
        for character in self.cursor.rest().chars().take(count) {
            self.emit(self.cursor.place, character.encode_utf8(&mut [0; 4]));
            self.cursor.place += character.len_utf8();
        }
    }

    /// Where in the text something of `out` begins.
    fn place(&self, span: &ast::Span) -> usize {
        self.places.get(span.start.offset).copied().unwrap_or(self.cursor.text.len())
    }

    /// Perl does not read it either: shown in the regex crate's way.
    fn invalid<T>(&self, place: usize, message: &str) -> Result<T, SyntaxError> {
        let column = self.cursor.text.get(self.start.place..place).unwrap_or_default().chars().count();
        let pattern = self.start.rest();
        fail(place, format!("regex parse error:\n    {pattern}\n    {:column$}^\nerror: {message}", ""))
    }

    fn translate(&mut self) -> Result<(), SyntaxError> {
        while let Some(character) = self.cursor.rest().chars().next() {
            let place = self.cursor.place;
            match character {
                '\\' => drop(self.escape()?),
                '[' => self.class()?,
                '(' => self.group()?,
                '{' => self.count()?,
                '}' | ']' => {
                    self.cursor.place += 1;
                    self.emit(place, &hex(character));
                }
                // A blank or comment stood between.
                '?' if self.out.ends_with('(') => return self.invalid(place, "nothing to repeat"),
                '#' if self.flags.extended => {
                    self.cursor.place += self.cursor.rest().find('\n').unwrap_or(self.cursor.rest().len());
                }
                '\t'..='\r' | ' ' if self.flags.extended => self.cursor.place += 1,
                _ => {
                    if character == ')' {
                        self.flags = self.outer.pop().unwrap_or(self.flags);
                    }
                    self.no_variable()?;
                    self.copy(1);
                }
            }
        }
        Ok(())
    }

    /// At a `$` or `@`: whether Perl would read a variable.
    fn no_variable(&self) -> Result<(), SyntaxError> {
        let (place, next) = (self.cursor.place, self.cursor.ahead(1));
        match self.cursor.ahead(0) {
            '@' if reads_array(next) => fail(place, "Perl reads an array here: a literal @ is written \\@"),
            '$' if !matches!(next, '\0' | '(' | ')' | '|' | ' ' | '\t' | '\r' | '\n') => {
                fail(place, "Perl reads a variable here: the end is written (?:$), a literal $ is written \\$")
            }
            _ => Ok(()),
        }
    }

    /// At a `{`, which counts in every Perl and in `regex-syntax`, or is refused.
    fn count(&mut self) -> Result<(), SyntaxError> {
        let inner = self.cursor.rest().split_once('}').map_or("", |(inner, _)| inner).get(1..).unwrap_or_default();
        let (min, max) = inner.split_once(',').unwrap_or((inner, ""));
        if min.is_empty() || !min.bytes().chain(max.bytes()).all(|byte| byte.is_ascii_digit()) {
            let message = "a literal { is written \\{; repetitions are {N}, {N,} and {N,M}, without blanks";
            return self.cursor.refuse(message);
        }
        self.copy(inner.len() + 2);
        Ok(())
    }

    /// At a backslash or `(`.
    fn no_foreign(&self) -> Result<(), SyntaxError> {
        let is_here = |(begin, next, _): &&(&str, &str, &str)| {
            self.cursor.rest().strip_prefix(begin).is_some_and(|behind| behind.starts_with(|c| next.contains(c)))
        };
        REFUSED.iter().find(is_here).map_or(Ok(()), |(_, _, message)| self.cursor.refuse(*message))
    }

    /// At a `(`.
    fn group(&mut self) -> Result<(), SyntaxError> {
        self.no_foreign()?;
        match (self.cursor.ahead(1), self.cursor.ahead(2)) {
            ('?', '#') => match self.cursor.rest().find(')') {
                Some(end) => self.cursor.place += end + 1,
                None => return self.invalid(self.cursor.place, "unclosed comment"),
            },
            ('?', kind) if !matches!(kind, '<' | 'P') => return self.flag_group(),
            (is_special, kind) => {
                self.outer.push(self.flags);
                self.copy(if is_special != '?' { 1 } else { 3 + usize::from(kind == 'P') });
            }
        }
        Ok(())
    }

    /// At `(?flags)` or `(?flags:`.
    fn flag_group(&mut self) -> Result<(), SyntaxError> {
        let (place, outer, mut on) = (self.cursor.place, self.flags, true);
        self.cursor.place += 2;
        if self.cursor.take("^") {
            self.flags = Flags::default();
        }
        loop {
            let (letter, next, at) = (self.cursor.ahead(0), self.cursor.ahead(1), self.cursor.place);
            self.cursor.place += letter.len_utf8();
            match (letter, self.flags.named(letter)) {
                (')' | ':', _) => {
                    if letter == ':' {
                        self.outer.push(outer);
                        self.emit(place, "(?:");
                    }
                    self.emit(place, &self.flags.written());
                    return Ok(());
                }
                ('-', _) => on = false,
                ('x', _) if next == 'x' => return fail(at, "the flag xx is not supported"),
                ('i' | 'm' | 's' | 'x', Some(flag)) => *flag = on,
                ('\0', _) => return self.invalid(place, "unclosed group"),
                _ => return fail(at, format!("`{letter}` is none of the flags i, m, s, x")),
            }
        }
    }

    /// At a backslash. Whether what it stands for is one byte.
    fn escape(&mut self) -> Result<bool, SyntaxError> {
        self.no_foreign()?;
        let (place, character) = (self.cursor.place, self.cursor.ahead(1));
        self.cursor.place += 1 + character.len_utf8();
        let (out, is_byte) = match character {
            '\0' => return self.invalid(place, "a backslash at the end"),
            'A' | 'z' | 'b' | 'B' | 'd' | 'D' | 'w' | 'W' | 's' | 'S' => (format!("\\{character}"), false),
            't' | 'n' | 'r' | 'f' | 'a' => (format!("\\{character}"), true),
            'x' => {
                let rest = self.cursor.rest();
                let digits = match rest.strip_prefix('{') {
                    Some(inner) => inner.split_once('}').map_or("", |(digits, _)| digits),
                    None => rest.get(..2).unwrap_or_default(),
                };
                if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return self.invalid(place, "\\x is followed by two digits to the base 16, or {..}: \\x41");
                }
                self.cursor.place += if rest.starts_with('{') { digits.len() + 2 } else { 2 };
                match u8::from_str_radix(digits, 16) {
                    Ok(byte) => (hex(char::from(byte)), true),
                    Err(_) => return fail(place, "data is bytes, the largest is \\xFF: write a character in UTF-8"),
                }
            }
            _ if character.is_ascii_alphanumeric() => {
                let message = format!("\\{character} is not supported: a literal {character} has no backslash");
                return fail(place, message);
            }
            _ if character.is_ascii() => (hex(character), true),
            _ => (character.to_string(), false),
        };
        self.emit(place, &out);
        Ok(is_byte)
    }

    /// At a `[`. A class is written byte by byte: `regex-syntax` has operators and nested classes in it, Perl has none.
    fn class(&mut self) -> Result<(), SyntaxError> {
        let place = self.cursor.place;
        self.cursor.place += 1;
        let negated = self.cursor.take("^");
        self.emit(place, if negated { "[^" } else { "[" });
        let mut is_first = true;
        while is_first || !self.cursor.take("]") {
            is_first = false;
            let is_byte = self.member(place)?;
            // A minus before the end, and one beside a set, stands for itself.
            if self.cursor.ahead(0) == '-' && self.cursor.ahead(1) != ']' {
                let (minus, at) = (self.out.len(), self.cursor.place);
                self.emit(at, "-");
                self.cursor.place += 1;
                if !is_byte && self.cursor.ahead(0) == '-' {
                    return self.cursor.refuse("a literal - is written \\- here");
                }
                if !is_byte || !self.member(place)? {
                    self.out.insert(minus, '\\');
                    self.places.insert(minus, at);
                }
            }
        }
        self.emit(self.cursor.place, "]");
        Ok(())
    }

    /// Takes one member of the class that began at `class`; whether it is one byte.
    fn member(&mut self, class: usize) -> Result<bool, SyntaxError> {
        let (place, character) = (self.cursor.place, self.cursor.ahead(0));
        if character == '\0' {
            return self.invalid(class, "unclosed class: [ without ]");
        }
        if self.cursor.take("\\b") {
            self.emit(place, &hex('\x08'));
            return Ok(true);
        }
        let escaped = self.cursor.ahead(1);
        if character == '\\' && escaped.is_ascii() {
            let is_byte = self.escape()?;
            return match escaped {
                'A' | 'z' | 'B' => fail(place, format!("\\{escaped} is not supported in a class")),
                _ => Ok(is_byte),
            };
        }
        if let Some((kind, name)) = posix(self.cursor.rest()) {
            self.cursor.place += name.len() + 4;
            let (not, bare) = name.strip_prefix('^').map_or(("", name), |bare| ("^", bare));
            // Under `i`, Perl asks for a letter of either case, also where the class is negated.
            let bare = if self.flags.ignore_case && matches!(bare, "upper" | "lower") { "alpha" } else { bare };
            if kind != ':' || ClassAsciiKind::from_name(bare).is_none() {
                return self.invalid(place, "no such POSIX class");
            }
            self.emit(place, &format!("[:{not}{bare}:]"));
            return Ok(false);
        }
        if character.is_ascii() {
            self.no_variable()?;
            self.cursor.place += 1;
            self.emit(place, &hex(character));
            return Ok(true);
        }
        fail(place, format!("`{character}` is several bytes, a class matches one: write (?:{character}|..)"))
    }
}

/// The kind and name of a POSIX class.
fn posix(rest: &str) -> Option<(char, &str)> {
    let (inner, _) = rest.strip_prefix('[')?.split_once(']')?;
    let kind = inner.chars().next().filter(|kind| ":=.".contains(*kind))?;
    let name = inner.get(1..)?.strip_suffix(kind)?;
    name.bytes().all(|byte| byte == b'^' || byte.is_ascii_alphanumeric()).then_some((kind, name))
}

/// Whether Perl reads an array where this follows a `@`.
pub(super) fn reads_array(next: char) -> bool {
    next.is_ascii_alphanumeric() || matches!(next, '_' | ':' | '$' | '{' | '\'')
}

/// A byte by its number.
fn hex(byte: char) -> String {
    format!("\\x{:02X}", u32::from(byte))
}

/// Looks at what is repeated in a parsed pattern.
struct Repetitions<'r>(&'r Reader<'r>);

impl ast::Visitor for Repetitions<'_> {
    type Output = ();
    type Err = SyntaxError;

    fn finish(self) -> Result<(), SyntaxError> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), SyntaxError> {
        let Ast::Repetition(repetition) = ast else { return Ok(()) };
        let place = self.0.place(&repetition.op.span);
        let what = self.0.cursor.text.get(self.0.place(repetition.ast.span())..place).unwrap_or_default().trim_end();
        match &*repetition.ast {
            Ast::Repetition(inner) if inner.greedy && repetition.op.kind == RepetitionKind::OneOrMore => {
                fail(place, "possessive quantifiers are not supported: leave out the +")
            }
            Ast::Repetition(_) => self.0.invalid(place, "nested quantifiers: put a group between them"),
            Ast::Assertion(_) => fail(place, format!("nothing to repeat: {what} matches no byte")),
            Ast::Literal(literal) if literal.byte().is_none() && !literal.c.is_ascii() => {
                fail(place, format!("Perl repeats only the last byte of this character: write (?:{what})"))
            }
            _ => Ok(()),
        }
    }
}

fn any(hir: &Hir, test: &impl Fn(&Hir) -> bool) -> bool {
    test(hir) || hir.kind().subs().iter().any(|sub| any(sub, test))
}

/// Whether it matches at least a byte whenever it matches.
fn must_consume(hir: &Hir) -> bool {
    hir.properties().minimum_len() != Some(0)
}

/// What it repeats, if that may come more than once.
fn repeated(hir: &Hir) -> Option<&Hir> {
    match hir.kind() {
        HirKind::Repetition(repetition) if repetition.max.is_none_or(|max| max > 1) => Some(&repetition.sub),
        _ => None,
    }
}

fn repeats_nothing(hir: &Hir) -> bool {
    repeated(hir).is_some_and(|sub| !prefers_bytes(sub))
}

/// Whether it matches nothing only where it can't match something. With `g`, Perl looks behind an empty match for one
/// that is longer, where the crate moves on.
fn prefers_bytes(hir: &Hir) -> bool {
    let subs = hir.kind().subs();
    must_consume(hir)
        || hir.properties().maximum_len() == Some(0)
        || match hir.kind() {
            HirKind::Repetition(repetition) if !repetition.greedy => false,
            HirKind::Alternation(_) => {
                subs.split_last().is_none_or(|(last, others)| others.iter().all(must_consume) && prefers_bytes(last))
            }
            _ => subs.iter().all(prefers_bytes),
        }
}

/// Whether it may match a line's start at the very end of a text. `leading`: at its own start it can't, since
/// [`Pattern::find`] drops matches that begin at the end.
fn may_end_with_line_start(hir: &Hir, leading: bool) -> bool {
    let subs = hir.kind().subs();
    match hir.kind() {
        HirKind::Look(look) => *look == Look::StartLF && !leading,
        HirKind::Repetition(_) => subs.iter().any(|sub| may_end_with_line_start(sub, false)),
        HirKind::Concat(_) => {
            let consumed = subs.iter().rposition(must_consume).unwrap_or(0);
            let before = subs.iter().take_while(|sub| sub.properties().maximum_len() == Some(0)).count();
            let mut rest = subs.iter().enumerate().skip(consumed);
            rest.any(|(index, sub)| may_end_with_line_start(sub, leading && index <= before))
        }
        _ => subs.iter().any(|sub| may_end_with_line_start(sub, leading)),
    }
}

/// See [`Pattern::unclear`].
fn groups_in_empty_rounds(hir: &Hir, in_empty_round: bool, groups: &mut Vec<usize>) {
    if let HirKind::Capture(capture) = hir.kind() {
        groups.extend(in_empty_round.then(|| usize::try_from(capture.index).unwrap_or(0)));
    }
    let in_empty_round = in_empty_round || repeated(hir).is_some_and(|sub| !must_consume(sub));
    hir.kind().subs().iter().for_each(|sub| groups_in_empty_rounds(sub, in_empty_round, groups));
}

#[cfg(test)]
mod tests {
    use super::super::Substitution;

    /// The message and the rest of the text from where it points.
    fn error(text: &str) -> (String, &str) {
        let error = Substitution::parse(text).map(|_| ()).expect_err(text);
        let rest =
            text.get(error.offset..).unwrap_or_else(|| panic!("{text}: {} is not a character's place", error.offset));
        (error.message, rest)
    }

    #[track_caller]
    fn assert_refused(text: &str, message: &str, rest: &str) {
        let (actual, place) = error(text);
        assert!(actual.contains(message), "{text}: {actual}");
        assert_eq!(place, rest, "{text}: {actual}");
    }

    #[test]
    fn what_perl_has_and_the_crate_has_not_is_refused() {
        for (pattern, message) in [
            ("(?=a)", "look-around"),
            ("(?!a)", "look-around"),
            ("(?<=a)b", "look-around"),
            ("(?<!a)b", "look-around"),
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
            (r"\ha", r"[\t ]"),
            (r"\Va", r"[^\n\r\f\x0B]"),
            (r"\ea", r"\x1B"),
            (r"\cAa", r"\x01"),
            (r"\Qa\E", r"\Q"),
            (r"[\Qa]", r"\Q"),
            (r"[\h]", r"[\t ]"),
            (r"[\A]", "in a class"),
            (r"\Lx", "only in a replacement"),
            ("{foo}", r"\{"),
            ("{}", r"\{"),
            (r"\Ka", r"\K"),
            (r"\Ra", r"\R"),
            (r"\Xa", r"\X"),
            (r"\Z", r"\n?\z"),
            (r"\pL", "properties"),
            (r"\N{U+41}", r"[^\n]"),
            (r"\b{wb}", r"\b{..}"),
            (r"\x{100}", "bytes"),
            (r"\x{20ac}", "bytes"),
            (r"\o{777}", "octal"),
            (r"[\777]", "by its number"),
            (r"\Ua", r"\U"),
            (r"\Ea", r"\E"),
            (r"\ya", r"\y is not supported"),
            ("{2}{,3}", r"\{"),
            ("$x", "variable"),
            ("${x}", "variable"),
            ("@x", "array"),
            ("[\u{fc}]", "several bytes"),
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
        assert_refused("s/ab{,3}/x/", "without blanks", "{,3}/x/");
        assert_refused("s/ab{ 1, 3 }/x/", "without blanks", "{ 1, 3 }/x/");
        assert_refused("s/a^*/x/", "matches no byte", "*/x/");
        assert_refused("s/a\u{fc}+/x/", "write (?:\u{fc})", "+/x/");
        assert_refused("s/a[\\w--]/x/", "\\-", "-]/x/");
        assert_refused("s/a[\\w--]/x/", "\\-", "-]/x/");
        assert_refused("s/(a??)+/x/", "prefers to match nothing", "(a??)+/x/");
        assert_refused("s/( ?:a)/x/x", "nothing to repeat", "?:a)/x/x");
        for pattern in ["x*?", "|a", "^\\s*|,", "(?:a??|b)"] {
            assert_refused(&format!("s~{pattern}~x~g"), "with g", &format!("{pattern}~x~g"));
            assert!(Substitution::parse(&format!("s~{pattern}~x~")).is_ok());
        }
        for pattern in ["(^|,)\\s*", "\\n^", "a*^", "(?:a|)^"] {
            assert_refused(&format!("s~{pattern}~x~m"), "with m", &format!("{pattern}~x~m"));
            assert!(Substitution::parse(&format!("s~{pattern}~x~")).is_ok());
        }
        for pattern in ["^", "^\\s*", "(^)b*", "(^|,)\\s*a", "\\n^a", "^$", "(?:^a)?b*"] {
            assert!(Substitution::parse(&format!("s~{pattern}~x~m")).is_ok(), "{pattern}");
        }
        assert_refused("s/(?:a??)+/x/", "prefers to match nothing", "(?:a??)+/x/");
        assert_refused("s/(?<n>a)(?<n>b)/x/", "duplicate capture group name", "n>b)/x/");
    }

    #[test]
    fn what_is_no_pattern_is_shown_where() {
        let (message, rest) = error("s/ab(c/x/");
        assert_eq!(message, "regex parse error:\n    ab(c\n      ^\nerror: unclosed group");
        assert_eq!(rest, "(c/x/");
        assert_refused("s/ab)/x/", "unopened group", ")/x/");
        assert_refused("s/ab[c/x/", "unclosed class", "[c/x/");
        assert_refused("s/a[z-a]/x/", "the start must be <= the end", "z-a]/x/");
        assert_refused("s/a|*/x/", "repetition operator missing expression", "*/x/");
        assert_refused("s/a**/x/", "nested quantifiers", "*/x/");
        assert_refused("s/a{3,2}/x/", "the start must be <= the end", "{3,2}/x/");
        assert_refused("s/a[[:alhpa:]]/x/", "POSIX", "[:alhpa:]]/x/");
        assert_refused("s/a(?<1>b)/x/", "invalid capture group character", "1>b)/x/");
        assert_refused("s/a(?#b/x/", "comment", "(?#b/x/");
        assert_refused("s/a(?ib/x/", "none of the flags", "b/x/");
        assert_refused(r"s/a\x{4/x/", r"followed by two digits", r"\x{4/x/");
        assert_refused(r"s/a\xg/x/", "two digits", r"\xg/x/");
    }

    #[test]
    fn large_patterns_are_refused() {
        assert_refused("s/((a{999}){999}){999}/x/", "exceeds size limit", "((a{999}){999}){999}/x/");

        let nested = format!("s/{}a{}/x/", "(".repeat(20_000), ")".repeat(20_000));
        assert!(error(&nested).0.contains("nested"));
        let allowed = format!("s/{}a{}/x/", "(".repeat(100), ")".repeat(100));
        assert!(Substitution::parse(&allowed).is_ok());
    }
}
