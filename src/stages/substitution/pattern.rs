//! A Perl pattern, made ready for the regex crate or refused.
//!
//! `regex-syntax` parses. This file knows only where Perl reads the same characters otherwise (escapes, classes, braces,
//! blanks under `x`, flags): it writes these few so that they mean the same to `regex-syntax`, or refuses them with a
//! word on what to write instead. What can be told only from the meaning of a pattern is asked of the parsed tree.

use regex::bytes::{CaptureLocations, Regex, RegexBuilder};
use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{self, Ast, GroupKind, LiteralKind, RepetitionKind, RepetitionOp, RepetitionRange};
use regex_syntax::hir::translate::{Translator, TranslatorBuilder};
use regex_syntax::hir::{Hir, HirKind, Look};

use super::{SubstitutionError, fail};

/// A compiled pattern takes no more memory than this, bytes.
const MAX_PATTERN_SIZE: usize = 4 << 20;

/// Groups, repetitions and sequences nest this deep at most.
const MAX_DEPTH: u32 = 250;

/// Perl's own limit of a repetition.
const MAX_COUNT: u32 = 65_534;

/// The flags that change what a pattern matches.
#[derive(Clone, Copy, Default)]
pub(super) struct Flags {
    pub(super) ignore_case: bool,
    pub(super) multi_line: bool,
    pub(super) dot_all: bool,
    pub(super) extended: bool,
}

impl Flags {
    pub(super) fn named(&mut self, letter: char) -> Option<&mut bool> {
        match letter {
            'i' => Some(&mut self.ignore_case),
            'm' => Some(&mut self.multi_line),
            's' => Some(&mut self.dot_all),
            'x' => Some(&mut self.extended),
            _ => None,
        }
    }

    /// As `regex-syntax` writes them; `x` is none of its business, see [`Reader`].
    fn written(self) -> String {
        let letters = [('i', self.ignore_case), ('m', self.multi_line), ('s', self.dot_all)];
        let of = |on| letters.iter().filter(|(_, is_on)| *is_on == on).map(|(letter, _)| *letter).collect::<String>();
        match of(false) {
            off if off.is_empty() => of(true),
            off => format!("{}-{off}", of(true)),
        }
    }
}

/// A compiled pattern.
pub(super) struct Pattern {
    regex: Regex,
    /// Whether each match begins at a line's start. The crate finds one at the very end of a text, too; Perl does not.
    starts_line: bool,
    /// The names of its groups, in their order; none for one that has only its number.
    pub(super) groups: Vec<Option<String>>,
    /// Groups in a repetition whose last round may match nothing. Perl then says that the group matched nothing, the
    /// crate what it matched in the round before.
    pub(super) unclear: Vec<usize>,
}

impl Pattern {
    /// Reads a pattern, which begins at `start` of the option's text. `everywhere`: with the flag `g`.
    ///
    /// # Errors
    /// Perl would not read it either, or the regex crate would match something else.
    pub(super) fn read(text: &str, start: usize, flags: Flags, everywhere: bool) -> Result<Pattern, SubstitutionError> {
        if text.is_empty() {
            return fail(start, "the pattern is empty (in Perl: the last one that matched): write (?:)");
        }
        let mut reader =
            Reader { text, start, position: 0, flags, outer: Vec::new(), out: String::new(), places: Vec::new() };
        reader.translate()?;
        let parsed = ParserBuilder::new().nest_limit(MAX_DEPTH).build().parse(&reader.out);
        let ast =
            parsed.or_else(|error| reader.invalid(reader.place(error.span().start), &error.kind().to_string()))?;
        let translator = TranslatorBuilder::new()
            .unicode(false)
            .utf8(false)
            .case_insensitive(flags.ignore_case)
            .multi_line(flags.multi_line)
            .dot_matches_new_line(flags.dot_all)
            .build();
        let mut differences = Differences { reader: &reader, translator, groups: Vec::new() };
        ast::visit(&ast, &mut differences)?;
        let hir = differences.meaning(&ast)?;
        let groups = differences.groups;

        if everywhere && !prefers_bytes(&hir) {
            return fail(
                start,
                "with the flag g, a pattern that prefers to match nothing is not supported: make its quantifiers greedy \
                 and put the alternative that may match nothing last",
            );
        }
        let starts_line = hir.properties().look_set_prefix().contains(Look::StartLF);
        if may_end_with_line_start(&hir, starts_line) {
            return fail(
                start,
                "with the flag m, a pattern that may end with ^ is not supported: put what must follow behind each ^, as \
                 in ^(.)",
            );
        }
        let regex = RegexBuilder::new(&reader.out)
            .unicode(false)
            .case_insensitive(flags.ignore_case)
            .multi_line(flags.multi_line)
            .dot_matches_new_line(flags.dot_all)
            .nest_limit(MAX_DEPTH)
            .size_limit(MAX_PATTERN_SIZE)
            .build();
        let regex = match regex {
            Ok(regex) => regex,
            Err(regex::Error::CompiledTooBig(_)) => {
                let limit = MAX_PATTERN_SIZE >> 20;
                return fail(start, format!("the pattern is too large: compiled, it takes over {limit} MiB"));
            }
            Err(error) => return fail(start, format!("the regex crate refuses this pattern: {error}")),
        };
        let mut unclear = Vec::new();
        groups_in_empty_rounds(&hir, false, &mut unclear);
        Ok(Pattern { regex, starts_line, groups, unclear })
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

    /// Whether it matches anywhere.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        if self.starts_line { self.find(text, 0, None).is_some() } else { self.regex.is_match(text) }
    }

    pub(super) fn locations(&self) -> CaptureLocations {
        self.regex.capture_locations()
    }
}

/// Reads Perl's pattern from left to right and writes it for `regex-syntax`, without blanks, comments and the flag `x`.
struct Reader<'t> {
    text: &'t str,
    /// Where the pattern begins in the option's text.
    start: usize,
    position: usize,
    flags: Flags,
    /// The flags that hold again behind each group that is open.
    outer: Vec<Flags>,
    out: String,
    /// For each byte of `out`: what it stands for in `text`.
    places: Vec<usize>,
}

/// What a class holds, or a backslash stands before.
enum Member {
    Byte(u8),
    /// As `regex-syntax` writes it.
    Set(String),
    Character(char),
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    fn emit(&mut self, place: usize, out: &str) {
        self.out.push_str(out);
        self.places.resize(self.out.len(), place);
    }

    /// Copies the next `length` bytes as they are.
    fn copy(&mut self, length: usize) {
        let copied = self.rest().get(..length).unwrap_or_default();
        for (index, character) in copied.char_indices() {
            self.emit(self.position + index, character.encode_utf8(&mut [0; 4]));
        }
        self.position += length;
    }

    /// Where in the pattern something of `out` comes from.
    fn place(&self, position: ast::Position) -> usize {
        self.places.get(position.offset).copied().unwrap_or(self.text.len())
    }

    fn refuse<T>(&self, place: usize, message: impl Into<String>) -> Result<T, SubstitutionError> {
        fail(self.start + place, message)
    }

    /// Perl does not read it either: shown in the regex crate's way.
    fn invalid<T>(&self, place: usize, message: &str) -> Result<T, SubstitutionError> {
        let column = self.text.get(..place).unwrap_or_default().chars().count();
        self.refuse(place, format!("regex parse error:\n    {}\n    {:column$}^\nerror: {message}", self.text, ""))
    }

    fn translate(&mut self) -> Result<(), SubstitutionError> {
        while let Some(character) = self.peek() {
            let place = self.position;
            match character {
                '\\' => match self.escape()? {
                    Member::Byte(byte) => self.emit(place, &hex(byte)),
                    Member::Set(set) => self.emit(place, &set),
                    Member::Character(character) => self.emit(place, character.encode_utf8(&mut [0; 4])),
                },
                '[' => self.class()?,
                '(' => self.group()?,
                ')' => {
                    self.flags = self.outer.pop().unwrap_or(self.flags);
                    self.copy(1);
                }
                '{' => self.count()?,
                '}' | ']' => {
                    self.position += 1;
                    self.emit(place, &hex(character as u8));
                }
                // A blank or comment stood between.
                '?' if self.out.ends_with('(') => return self.invalid(place, "nothing to repeat"),
                '#' if self.flags.extended => {
                    self.position += self.rest().find('\n').unwrap_or(self.rest().len());
                }
                '\t'..='\r' | ' ' if self.flags.extended => self.position += 1,
                _ => {
                    self.no_variable()?;
                    self.copy(character.len_utf8());
                }
            }
        }
        Ok(())
    }

    /// At a `$` or `@`: whether Perl would read a variable.
    fn no_variable(&self) -> Result<(), SubstitutionError> {
        let next = self.rest().chars().nth(1);
        match self.peek() {
            Some('@') if next.is_some_and(reads_array) => {
                self.refuse(self.position, "Perl reads an array here: a literal @ is written \\@")
            }
            Some('$') if !matches!(next, None | Some('(' | ')' | '|' | ' ' | '\t' | '\r' | '\n')) => self.refuse(
                self.position,
                "Perl reads a variable here: the end is written (?:$), a literal $ is written \\$",
            ),
            _ => Ok(()),
        }
    }

    /// At a `{`, which counts in every Perl and in `regex-syntax`, or is refused.
    fn count(&mut self) -> Result<(), SubstitutionError> {
        let inner = self.rest().split_once('}').map_or("", |(inner, _)| inner).get(1..).unwrap_or_default();
        let (min, max) = inner.split_once(',').unwrap_or((inner, inner));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if min.is_empty() || !is_number(min) || !is_number(max) {
            let message = match inner.contains(',') && inner.bytes().all(|byte| b"0123456789, ".contains(&byte)) {
                true => "write {0,N} or {N,M} without blanks, or \\{: versions of Perl read this differently",
                false => "a literal { is written \\{",
            };
            return self.refuse(self.position, message);
        }
        if [min, max].iter().any(|text| !text.is_empty() && text.parse::<u32>().is_ok_and(|number| number > MAX_COUNT))
        {
            return self.invalid(self.position, "more repetitions than Perl allows (65534)");
        }
        self.copy(inner.len() + 2);
        Ok(())
    }

    /// At a `(`.
    fn group(&mut self) -> Result<(), SubstitutionError> {
        const NO_LOOK: &str =
            "look-around is not supported: match it in a group of its own, and write $1 for what stays";
        const NO_CODE: &str = "code in a pattern is not supported";
        const NO_RECURSION: &str = "recursion is not supported";
        const REFUSED: &[(&str, &str)] = &[
            ("(*", "backtracking verbs and (*..) are not supported"),
            ("(?=", NO_LOOK),
            ("(?!", NO_LOOK),
            ("(?<=", NO_LOOK),
            ("(?<!", NO_LOOK),
            ("(?>", "atomic groups are not supported: (?:..) may do"),
            ("(?|", "branch reset (?|..) is not supported: use (?:..)"),
            ("(?(", "conditions (?(..)..) are not supported"),
            ("(?{", NO_CODE),
            ("(??{", NO_CODE),
            ("(?P=", "back-references are not supported"),
            ("(?P>", NO_RECURSION),
            ("(?R", NO_RECURSION),
            ("(?&", NO_RECURSION),
            ("(?+", NO_RECURSION),
        ];
        let (place, rest) = (self.position, self.rest());
        if let Some((_, message)) = REFUSED.iter().find(|(prefix, _)| rest.starts_with(prefix)) {
            return self.refuse(place, *message);
        }
        let Some(inner) = rest.strip_prefix("(?") else {
            self.outer.push(self.flags);
            self.copy(1);
            return Ok(());
        };
        if inner.trim_start_matches('-').starts_with(|first: char| first.is_ascii_digit()) {
            return self.refuse(place, NO_RECURSION);
        }
        if inner.starts_with('#') {
            let Some(end) = inner.find(')') else { return self.invalid(place, "unclosed comment") };
            self.position += end + 3;
            return Ok(());
        }
        let name = inner.strip_prefix("P<").or(inner.strip_prefix('<')).map(|name| (name, '>'));
        if let Some((name, end)) = name.or(inner.strip_prefix('\'').map(|name| (name, '\''))) {
            return self.named_group(place + rest.len() - name.len(), name, end);
        }
        self.position += 2;
        self.flag_group(place)
    }

    /// At a group's name, which begins at `place`.
    fn named_group(&mut self, place: usize, name: &str, end: char) -> Result<(), SubstitutionError> {
        let name = name.split_once(end).map_or("", |(name, _)| name);
        let is_word = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
        if !name.bytes().all(is_word) || name.bytes().next().is_none_or(|first| first.is_ascii_digit()) {
            return self.invalid(place, "a group's name is letters, digits and _, and does not begin with a digit");
        }
        self.outer.push(self.flags);
        self.emit(self.position, "(?<");
        self.position = place;
        self.copy(name.len());
        self.emit(self.position, ">");
        self.position += 1;
        Ok(())
    }

    /// Behind the `(?` of `(?flags)` or `(?flags:`.
    fn flag_group(&mut self, place: usize) -> Result<(), SubstitutionError> {
        let mut flags = self.flags;
        let reset = self.take("^");
        if reset {
            flags = Flags::default();
        }
        let (mut on, mut last) = (true, ' ');
        loop {
            let Some(letter) = self.peek() else { return self.invalid(place, "unclosed group") };
            match (letter, flags.named(letter)) {
                (')' | ':', _) => break,
                ('-', _) if on && !reset => on = false,
                ('x', _) if last == 'x' => return self.refuse(self.position, "the flag xx is not supported"),
                (_, Some(flag)) => *flag = on,
                _ => return self.refuse(self.position, format!("`{letter}` is none of the flags i, m, s, x")),
            }
            last = letter;
            self.position += letter.len_utf8();
        }
        let colon = self.take(":");
        if colon {
            self.outer.push(self.flags);
        } else {
            self.position += 1;
        }
        self.flags = flags;
        self.emit(place, &format!("(?{}{}", flags.written(), if colon { ':' } else { ')' }));
        Ok(())
    }

    /// Takes a backslash and what belongs to it.
    fn escape(&mut self) -> Result<Member, SubstitutionError> {
        let place = self.position;
        self.position += 1;
        let Some(character) = self.peek() else { return self.invalid(place, "a backslash at the end") };
        self.position += character.len_utf8();
        let message = match character {
            'A' | 'z' | 'd' | 'D' | 'w' | 'W' | 's' | 'S' => return Ok(Member::Set(format!("\\{character}"))),
            'b' | 'B' if !self.rest().starts_with('{') => return Ok(Member::Set(format!("\\{character}"))),
            'b' | 'B' => "\\b{..} is not supported: \\b alone is",
            't' => return Ok(Member::Byte(b'\t')),
            'n' => return Ok(Member::Byte(b'\n')),
            'r' => return Ok(Member::Byte(b'\r')),
            'f' => return Ok(Member::Byte(0x0C)),
            'a' => return Ok(Member::Byte(0x07)),
            'x' | 'o' | '0' => return self.number(place, character),
            '1'..='9' | 'g' | 'k' => "back-references are not supported (a byte by its number: \\x41)",
            'h' => "\\h is not supported: write [\\t ]",
            'H' => "\\H is not supported: write [^\\t ]",
            'v' => "\\v is not supported: write [\\n\\r\\f\\x0B]",
            'V' => "\\V is not supported: write [^\\n\\r\\f\\x0B]",
            'N' => "\\N is not supported: write [^\\n], and bytes as \\x41",
            'R' => "\\R is not supported: write (?:\\r\\n|\\n|\\r)",
            'Z' => "\\Z is not supported: write \\n?\\z, or $",
            'K' => "\\K is not supported: put what stays in a group and write $1",
            'Q' => "\\Q is not supported: write a backslash before each special character",
            'E' | 'L' | 'U' | 'l' | 'u' | 'F' => {
                "\\L, \\U, \\l, \\u and \\E stand only in a replacement: write the letters"
            }
            'e' => "\\e is not supported: write \\x1B",
            'c' => "\\c is not supported: write the byte by its number, \\x01 for \\cA",
            'p' | 'P' => "Unicode properties are not supported, data is bytes: write a class such as [A-Za-z]",
            character if character.is_ascii_alphanumeric() => {
                return self
                    .refuse(place, format!("\\{character} is not supported: a literal {character} has no backslash"));
            }
            character if character.is_ascii() => return Ok(Member::Byte(character as u8)),
            character => return Ok(Member::Character(character)),
        };
        self.refuse(place, message)
    }

    /// Takes the digits behind `\x`, `\o` or `\0`.
    fn number(&mut self, place: usize, kind: char) -> Result<Member, SubstitutionError> {
        let (radix, most) = if kind == 'x' { (16, 2) } else { (8, 2) };
        let rest = self.rest();
        let digits = match rest.strip_prefix('{').filter(|_| kind != '0') {
            Some(inner) => match inner.split_once('}') {
                Some((digits, _)) => {
                    self.position += digits.len() + 2;
                    digits
                }
                None => return self.invalid(place, &format!("\\{kind}{{ without }}")),
            },
            None if kind == 'o' => return self.invalid(place, "\\o is followed by a number in braces: \\o{101}"),
            None => {
                let length = rest.chars().take(most).take_while(|digit| digit.is_digit(radix)).count();
                self.position += length;
                rest.get(..length).unwrap_or_default()
            }
        };
        if kind == '0' && digits.is_empty() {
            return Ok(Member::Byte(0));
        }
        if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
            return self.invalid(place, &format!("\\{kind} is followed by a number to the base {radix}"));
        }
        match u8::from_str_radix(digits, radix) {
            Ok(byte) => Ok(Member::Byte(byte)),
            Err(_) => self.refuse(place, "data is bytes, the largest is \\xFF: write a character's bytes in UTF-8"),
        }
    }

    /// At a `[`. A class is written byte by byte: `regex-syntax` has operators and nested classes in it, Perl has none.
    fn class(&mut self) -> Result<(), SubstitutionError> {
        let place = self.position;
        self.position += 1;
        let mut out = String::from(if self.take("^") { "[^" } else { "[" });
        let mut is_first = true;
        while is_first || !self.take("]") {
            is_first = false;
            let first = self.position;
            let member = self.member(place)?;
            // A minus before the end, and one beside a set, stands for itself.
            let minus = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            self.position += usize::from(minus);
            match member {
                Member::Byte(byte) if !minus => out.push_str(&hex(byte)),
                Member::Byte(low) => match self.member(place)? {
                    Member::Byte(high) if low <= high => out.push_str(&format!("{}-{}", hex(low), hex(high))),
                    Member::Set(set) => out.push_str(&format!("{}\\x2D{set}", hex(low))),
                    _ => return self.invalid(first, "a range in a class runs backwards"),
                },
                Member::Set(set) => {
                    out.push_str(&set);
                    if minus && self.rest().starts_with('-') {
                        return self.refuse(self.position, "a literal - is written \\- here");
                    }
                    out.push_str(if minus { "\\x2D" } else { "" });
                }
                Member::Character(character) => {
                    let length = character.len_utf8();
                    return self.refuse(
                        first,
                        format!("`{character}` is {length} bytes, a class matches one: write (?:{character}|..)"),
                    );
                }
            }
        }
        out.push(']');
        self.emit(place, &out);
        Ok(())
    }

    /// Takes one member of the class that began at `class`.
    fn member(&mut self, class: usize) -> Result<Member, SubstitutionError> {
        let place = self.position;
        let Some(character) = self.peek() else { return self.invalid(class, "unclosed class: [ without ]") };
        if character == '\\' {
            if self.take("\\b") {
                return Ok(Member::Byte(0x08));
            }
            return match self.escape()? {
                Member::Set(look) if matches!(look.as_str(), "\\A" | "\\z" | "\\B") => {
                    self.refuse(place, format!("{look} is not supported in a class"))
                }
                member => Ok(member),
            };
        }
        if let Some(kind @ (':' | '=' | '.')) = self.rest().strip_prefix('[').and_then(|rest| rest.chars().next())
            && let Some((name, _)) = self.rest().get(2..).and_then(|rest| rest.split_once(']'))
            && let Some(name) = name.strip_suffix(kind)
            && name.bytes().all(|byte| byte == b'^' || byte.is_ascii_alphanumeric())
        {
            self.position += name.len() + 4;
            let (not, name) = name.strip_prefix('^').map_or(("", name), |name| ("^", name));
            let set = match name {
                _ if kind != ':' => None,
                // Under `i`, Perl asks for a letter of either case, also where the class is negated.
                "upper" | "lower" if self.flags.ignore_case => Some("alpha"),
                "alpha" | "digit" | "alnum" | "upper" | "lower" | "punct" | "graph" | "print" | "cntrl" | "xdigit"
                | "ascii" | "space" | "blank" | "word" => Some(name),
                _ => None,
            };
            return match set {
                Some(set) => Ok(Member::Set(format!("[:{not}{set}:]"))),
                None => self.invalid(place, "no such POSIX class"),
            };
        }
        self.no_variable()?;
        self.position += character.len_utf8();
        Ok(if character.is_ascii() { Member::Byte(character as u8) } else { Member::Character(character) })
    }
}

/// Whether Perl reads an array where this follows a `@`.
pub(super) fn reads_array(next: char) -> bool {
    next.is_ascii_alphanumeric() || matches!(next, '_' | ':' | '$' | '{' | '\'')
}

fn hex(byte: u8) -> String {
    format!("\\x{byte:02X}")
}

/// Looks at every part of a parsed pattern for what Perl takes otherwise.
struct Differences<'r> {
    reader: &'r Reader<'r>,
    translator: Translator,
    groups: Vec<Option<String>>,
}

impl Differences<'_> {
    fn meaning(&mut self, ast: &Ast) -> Result<Hir, SubstitutionError> {
        let reader = self.reader;
        let translated = self.translator.translate(&reader.out, ast);
        translated.or_else(|error| reader.invalid(reader.place(error.span().start), &error.kind().to_string()))
    }
}

impl ast::Visitor for &mut Differences<'_> {
    type Output = ();
    type Err = SubstitutionError;

    fn finish(self) -> Result<(), SubstitutionError> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), SubstitutionError> {
        let repetition = match ast {
            Ast::Group(group) => {
                match &group.kind {
                    GroupKind::CaptureIndex(_) => self.groups.push(None),
                    GroupKind::CaptureName { name, .. } => self.groups.push(Some(name.name.clone())),
                    GroupKind::NonCapturing(_) => {}
                }
                return Ok(());
            }
            Ast::Repetition(repetition) => repetition,
            _ => return Ok(()),
        };
        let reader = self.reader;
        let place = reader.place(repetition.op.span.start);
        let what = reader.text.get(reader.place(repetition.ast.span().start)..place).unwrap_or_default().trim_end();
        match &*repetition.ast {
            Ast::Repetition(inner) if inner.greedy && is_plus(&repetition.op) => {
                return reader.refuse(place, "possessive quantifiers are not supported: leave out the +");
            }
            Ast::Repetition(_) => return reader.invalid(place, "nested quantifiers: put a group between them"),
            Ast::Assertion(_) => return reader.refuse(place, format!("nothing to repeat: {what} matches no byte")),
            Ast::Literal(literal) if literal.c.len_utf8() > 1 && literal.kind == LiteralKind::Verbatim => {
                let message = "Perl repeats only the last byte of this character";
                return reader.refuse(place, format!("{message}: write (?:{what}) before the quantifier"));
            }
            _ => {}
        }
        if may_repeat(&repetition.op) {
            let meaning = self.meaning(&repetition.ast)?;
            if !prefers_bytes(&meaning) {
                return self.reader.refuse(
                    place,
                    "a repetition of what prefers to match nothing is not supported: make the inner quantifier greedy",
                );
            }
        }
        Ok(())
    }
}

fn is_plus(op: &RepetitionOp) -> bool {
    op.kind == RepetitionKind::OneOrMore
}

fn may_repeat(op: &RepetitionOp) -> bool {
    match &op.kind {
        RepetitionKind::ZeroOrOne => false,
        RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => true,
        RepetitionKind::Range(RepetitionRange::Exactly(max) | RepetitionRange::Bounded(_, max)) => *max > 1,
        RepetitionKind::Range(RepetitionRange::AtLeast(_)) => true,
    }
}

/// Whether it matches at least a byte whenever it matches.
fn must_consume(hir: &Hir) -> bool {
    hir.properties().minimum_len() != Some(0)
}

/// Whether it matches nothing only where it can't match something. With `g`, Perl looks behind an empty match for one
/// that is longer, where the crate moves on.
fn prefers_bytes(hir: &Hir) -> bool {
    if must_consume(hir) || hir.properties().maximum_len() == Some(0) {
        return true;
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => true,
        HirKind::Repetition(repetition) => repetition.greedy && prefers_bytes(&repetition.sub),
        HirKind::Capture(capture) => prefers_bytes(&capture.sub),
        HirKind::Concat(parts) => parts.iter().all(prefers_bytes),
        HirKind::Alternation(parts) => {
            parts.split_last().is_none_or(|(last, others)| others.iter().all(must_consume) && prefers_bytes(last))
        }
    }
}

/// Whether it may match a line's start at the very end of a text. `leading`: at its own start it can't, since
/// [`Pattern::find`] drops matches that begin at the end.
fn may_end_with_line_start(hir: &Hir, leading: bool) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => false,
        HirKind::Look(look) => *look == Look::StartLF && !leading,
        HirKind::Repetition(repetition) => may_end_with_line_start(&repetition.sub, false),
        HirKind::Capture(capture) => may_end_with_line_start(&capture.sub, leading),
        HirKind::Alternation(parts) => parts.iter().any(|part| may_end_with_line_start(part, leading)),
        HirKind::Concat(parts) => {
            let consumed = parts.iter().rposition(must_consume).unwrap_or(0);
            let nothing_before =
                |index: usize| parts.iter().take(index).all(|part| part.properties().maximum_len() == Some(0));
            let mut tail = parts.iter().enumerate().skip(consumed);
            tail.any(|(index, part)| may_end_with_line_start(part, leading && nothing_before(index)))
        }
    }
}

/// See [`Pattern::unclear`].
fn groups_in_empty_rounds(hir: &Hir, in_empty_round: bool, groups: &mut Vec<usize>) {
    match hir.kind() {
        HirKind::Capture(capture) => {
            groups.extend(in_empty_round.then(|| usize::try_from(capture.index).unwrap_or(0)));
            groups_in_empty_rounds(&capture.sub, in_empty_round, groups);
        }
        HirKind::Repetition(repetition) => {
            let is_empty = repetition.max.is_none_or(|max| max > 1) && !must_consume(&repetition.sub);
            groups_in_empty_rounds(&repetition.sub, in_empty_round || is_empty, groups);
        }
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().for_each(|part| groups_in_empty_rounds(part, in_empty_round, groups));
        }
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => {}
    }
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
            (r"\o{777}", "bytes"),
            (r"[\o{777}]", "bytes"),
            (r"[\777]", "by its number"),
            (r"\Ua", r"\U"),
            (r"\Ea", r"\E"),
            (r"\ya", r"\y is not supported"),
            ("{2}{,3}", "versions of Perl"),
            ("$x", "variable"),
            ("${x}", "variable"),
            ("@x", "array"),
            ("[\u{fc}]", "is 2 bytes"),
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
        assert_refused("s/ab{,3}/x/", "versions of Perl", "{,3}/x/");
        assert_refused("s/ab{ 1, 3 }/x/", "versions of Perl", "{ 1, 3 }/x/");
        assert_refused("s/a^*/x/", "matches no byte", "*/x/");
        assert_refused("s/a\u{fc}+/x/", "write (?:\u{fc})", "+/x/");
        assert_refused("s/a[\\w--]/x/", "\\-", "-]/x/");
        assert_refused("s/a[\\w--]/x/", "\\-", "-]/x/");
        assert_refused("s/(a??)+/x/", "prefers to match nothing", "+/x/");
        assert_refused("s/( ?:a)/x/x", "nothing to repeat", "?:a)/x/x");
        for pattern in ["x*?", "|a", "^\\s*|,", "(?:a??|b)"] {
            assert_refused(&format!("s~{pattern}~x~g"), "flag g", &format!("{pattern}~x~g"));
            assert!(Substitution::parse(&format!("s~{pattern}~x~")).is_ok());
        }
        for pattern in ["(^|,)\\s*", "\\n^", "a*^", "(?:a|)^"] {
            assert_refused(&format!("s~{pattern}~x~m"), "flag m", &format!("{pattern}~x~m"));
            assert!(Substitution::parse(&format!("s~{pattern}~x~")).is_ok());
        }
        for pattern in ["^", "^\\s*", "(^)b*", "(^|,)\\s*a", "\\n^a", "^$", "(?:^a)?b*"] {
            assert!(Substitution::parse(&format!("s~{pattern}~x~m")).is_ok(), "{pattern}");
        }
        assert_refused("s/(?:a??)+/x/", "prefers to match nothing", "+/x/");
        assert_refused("s/(?<n>a)(?<n>b)/x/", "duplicate capture group name", "n>b)/x/");
    }

    #[test]
    fn what_is_no_pattern_is_shown_where() {
        let (message, rest) = error("s/ab(c/x/");
        assert_eq!(message, "regex parse error:\n    ab(c\n      ^\nerror: unclosed group");
        assert_eq!(rest, "(c/x/");
        assert_refused("s/ab)/x/", "unopened group", ")/x/");
        assert_refused("s/ab[c/x/", "unclosed class", "[c/x/");
        assert_refused("s/a[z-a]/x/", "backwards", "z-a]/x/");
        assert_refused("s/a|*/x/", "repetition operator missing expression", "*/x/");
        assert_refused("s/a**/x/", "nested quantifiers", "*/x/");
        assert_refused("s/a{3,2}/x/", "the start must be <= the end", "{3,2}/x/");
        assert_refused("s/a[[:alhpa:]]/x/", "POSIX", "[:alhpa:]]/x/");
        assert_refused("s/a(?<1>b)/x/", "name", "1>b)/x/");
        assert_refused("s/a(?#b/x/", "comment", "(?#b/x/");
        assert_refused("s/a(?ib/x/", "none of the flags", "b/x/");
        assert_refused(r"s/a\x{4/x/", r"\x{ without }", r"\x{4/x/");
        assert_refused(r"s/a\xg/x/", "to the base 16", r"\xg/x/");
    }

    #[test]
    fn large_patterns_are_refused() {
        assert_refused("s/((a{999}){999}){999}/x/", "too large", "((a{999}){999}){999}/x/");
        assert_refused("s/a{65535}/x/", "65534", "{65535}/x/");
        let nested = format!("s/{}a{}/x/", "(".repeat(20_000), ")".repeat(20_000));
        assert!(error(&nested).0.contains("nested"));
        let allowed = format!("s/{}a{}/x/", "(".repeat(100), ")".repeat(100));
        assert!(Substitution::parse(&allowed).is_ok());
    }
}
