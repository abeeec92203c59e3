//! A Perl pattern read into a tree, and the tree written for the regex crate.
//!
//! Perl and the crate differ in many small ways (what `\v` is, what `[a&&b]` is, where a `{` counts nothing). So a
//! pattern is never handed over as it is: what this module knows is written in the crate's simplest terms (sets of
//! bytes, groups, repetitions, no flags), anything else is refused with a word on what to write instead.

use std::fmt::Write;

/// Groups may nest this deep; reading and compiling are recursive.
const MAX_DEPTH: usize = 100;

/// A set of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ByteSet([u64; 4]);

impl ByteSet {
    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }

    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    fn of(test: impl Fn(u8) -> bool) -> ByteSet {
        let mut set = ByteSet::default();
        (0..=255).filter(|&byte| test(byte)).for_each(|byte| set.insert(byte));
        set
    }

    fn single(byte: u8) -> ByteSet {
        ByteSet::of(|other| other == byte)
    }

    fn union(self, other: ByteSet) -> ByteSet {
        ByteSet::of(|byte| self.contains(byte) || other.contains(byte))
    }

    fn negated(self) -> ByteSet {
        ByteSet::of(|byte| !self.contains(byte))
    }

    /// With both cases of the ASCII letters in it: all that the flag `i` means on bytes.
    fn folded(self) -> ByteSet {
        ByteSet::of(|byte| {
            self.contains(byte) || self.contains(byte.to_ascii_lowercase()) || self.contains(byte.to_ascii_uppercase())
        })
    }

    /// The ranges of bytes in it.
    fn ranges(&self) -> Vec<(u8, u8)> {
        let mut ranges: Vec<(u8, u8)> = Vec::new();
        for byte in (0..=255).filter(|&byte| self.contains(byte)) {
            match ranges.last_mut() {
                Some((_, end)) if u16::from(*end) + 1 == u16::from(byte) => *end = byte,
                _ => ranges.push((byte, byte)),
            }
        }
        ranges
    }
}

/// What matches between two bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    TextStart,
    TextEnd,
    /// Not at the very end of a text, unless that is empty. The crate's `(?m:^)` does match there.
    LineStart,
    LineEnd,
    WordBoundary,
    NotWordBoundary,
}

/// A pattern, or a part of one.
pub(super) enum Node {
    Set(ByteSet),
    Look(Look),
    /// With the group's number where it captures.
    Group(Option<usize>, Box<Node>),
    Sequence(Vec<Node>),
    Alternatives(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: u32,
        /// None: without end.
        max: Option<u32>,
        lazy: bool,
    },
}

impl Node {
    /// Whether it matches at least a byte whenever it matches.
    pub(super) fn must_consume(&self) -> bool {
        match self {
            Node::Set(_) => true,
            Node::Look(_) => false,
            Node::Group(_, node) => node.must_consume(),
            Node::Sequence(nodes) => nodes.iter().any(Node::must_consume),
            Node::Alternatives(nodes) => nodes.iter().all(Node::must_consume),
            Node::Repeat { node, min, .. } => *min > 0 && node.must_consume(),
        }
    }

    /// Whether it ever matches a byte.
    fn may_consume(&self) -> bool {
        match self {
            Node::Set(_) => true,
            Node::Look(_) => false,
            Node::Group(_, node) => node.may_consume(),
            Node::Sequence(nodes) | Node::Alternatives(nodes) => nodes.iter().any(Node::may_consume),
            Node::Repeat { node, max, .. } => *max != Some(0) && node.may_consume(),
        }
    }

    /// Whether it matches nothing only where it can't match something.
    pub(super) fn prefers_bytes(&self) -> bool {
        if self.must_consume() || !self.may_consume() {
            return true;
        }
        match self {
            Node::Set(_) | Node::Look(_) => true,
            Node::Group(_, node) => node.prefers_bytes(),
            Node::Sequence(nodes) => nodes.iter().all(Node::prefers_bytes),
            Node::Alternatives(nodes) => nodes
                .split_last()
                .is_none_or(|(last, others)| others.iter().all(Node::must_consume) && last.prefers_bytes()),
            Node::Repeat { node, lazy, .. } => !lazy && node.prefers_bytes(),
        }
    }

    /// Whether it may match a line's start that nothing need follow, which the crate also finds at the end of a text.
    pub(super) fn may_end_with_line_start(&self) -> bool {
        match self {
            Node::Set(_) => false,
            Node::Look(look) => *look == Look::LineStart,
            Node::Group(_, node) => node.may_end_with_line_start(),
            Node::Repeat { node, max, .. } => *max != Some(0) && node.may_end_with_line_start(),
            Node::Alternatives(nodes) => nodes.iter().any(Node::may_end_with_line_start),
            Node::Sequence(nodes) => {
                let consumed = nodes.iter().rposition(Node::must_consume).unwrap_or(0);
                nodes.iter().skip(consumed).any(Node::may_end_with_line_start)
            }
        }
    }

    /// The groups within a repetition whose last round may match nothing. Perl then says the group matched nothing, the
    /// regex crate what it matched in the round before.
    pub(super) fn groups_in_empty_rounds(&self, in_empty_round: bool, groups: &mut Vec<usize>) {
        match self {
            Node::Set(_) | Node::Look(_) => {}
            Node::Group(number, node) => {
                groups.extend(number.filter(|_| in_empty_round));
                node.groups_in_empty_rounds(in_empty_round, groups);
            }
            Node::Sequence(nodes) | Node::Alternatives(nodes) => {
                nodes.iter().for_each(|node| node.groups_in_empty_rounds(in_empty_round, groups));
            }
            Node::Repeat { node, max, .. } => {
                let is_repeated = max.is_none_or(|max| max > 1);
                node.groups_in_empty_rounds(in_empty_round || is_repeated && !node.must_consume(), groups);
            }
        }
    }

    /// Writes it in the regex crate's syntax, to be read without Unicode and without flags.
    pub(super) fn write(&self, regex: &mut String) {
        match self {
            Node::Set(set) => write_set(*set, regex),
            Node::Look(look) => regex.push_str(match look {
                Look::TextStart => r"\A",
                Look::TextEnd => r"\z",
                Look::LineStart => "(?m:^)",
                Look::LineEnd => "(?m:$)",
                Look::WordBoundary => r"\b",
                Look::NotWordBoundary => r"\B",
            }),
            Node::Group(number, node) => {
                regex.push_str(if number.is_some() { "(" } else { "(?:" });
                node.write(regex);
                regex.push(')');
            }
            Node::Sequence(nodes) => nodes.iter().for_each(|node| node.write(regex)),
            Node::Alternatives(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    if index > 0 {
                        regex.push('|');
                    }
                    node.write(regex);
                }
            }
            Node::Repeat { node, min, max, lazy } => {
                node.write(regex);
                // Writing to a String can't fail.
                let _ = match (min, max) {
                    (0, None) => write!(regex, "*"),
                    (1, None) => write!(regex, "+"),
                    (0, Some(1)) => write!(regex, "?"),
                    (_, None) => write!(regex, "{{{min},}}"),
                    (_, Some(max)) => write!(regex, "{{{min},{max}}}"),
                };
                if *lazy {
                    regex.push('?');
                }
            }
        }
    }
}

fn write_set(set: ByteSet, regex: &mut String) {
    let write_byte = |byte: u8, regex: &mut String| {
        if byte.is_ascii_alphanumeric() {
            regex.push(char::from(byte));
        } else {
            let _ = write!(regex, r"\x{byte:02X}");
        }
    };
    let ranges = set.ranges();
    match ranges.as_slice() {
        [(byte, end)] if byte == end => write_byte(*byte, regex),
        [(0, 255)] => regex.push_str("(?s:.)"),
        [] => regex.push_str(r"[^\x00-\xFF]"),
        ranges => {
            regex.push('[');
            for &(start, end) in ranges {
                write_byte(start, regex);
                if end > start {
                    regex.push('-');
                    write_byte(end, regex);
                }
            }
            regex.push(']');
        }
    }
}

/// The flags that change how a pattern is read.
#[derive(Clone, Copy, Default)]
pub(super) struct Flags {
    pub(super) ignore_case: bool,
    pub(super) multi_line: bool,
    pub(super) dot_all: bool,
    pub(super) extended: bool,
}

impl Flags {
    fn set(&mut self, letter: u8, on: bool) -> bool {
        match letter {
            b'i' => self.ignore_case = on,
            b'm' => self.multi_line = on,
            b's' => self.dot_all = on,
            b'x' => self.extended = on,
            _ => return false,
        }
        true
    }
}

/// A pattern that was read.
pub(super) struct Pattern {
    pub(super) node: Node,
    /// The names of its groups, in their order; none for one that has only its number.
    pub(super) groups: Vec<Option<String>>,
}

/// What is wrong with a pattern.
pub(super) struct PatternError {
    /// What is wrong, without the place.
    pub(super) message: String,
    /// Where in the pattern, bytes from its start.
    pub(super) offset: usize,
    /// Whether no regular expression is like this, rather than one that is not supported.
    pub(super) invalid: bool,
}

/// Reads a pattern as Perl does.
///
/// `delimiter` is what a backslash may stand before within `\Q..\E`: Perl takes that backslash away.
///
/// # Errors
/// Perl would not read it either, or the regex crate has nothing that matches the same.
pub(super) fn parse(text: &str, flags: Flags, delimiter: Option<u8>) -> Result<Pattern, PatternError> {
    let mut parser = Parser { text, position: 0, delimiter, groups: Vec::new(), depth: 0, quoting: false };
    let node = parser.alternatives(flags)?;
    if parser.peek().is_some() {
        return invalid(parser.position, "unopened group: a literal ) is written \\)");
    }
    Ok(Pattern { node, groups: parser.groups })
}

fn refuse<T>(offset: usize, message: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError { message: message.into(), offset, invalid: false })
}

fn invalid<T>(offset: usize, message: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError { message: message.into(), offset, invalid: true })
}

struct Parser<'t> {
    text: &'t str,
    position: usize,
    delimiter: Option<u8>,
    groups: Vec<Option<String>>,
    depth: usize,
    /// Between `\Q` and `\E`.
    quoting: bool,
}

/// One element of a pattern, and whether a quantifier may follow it.
enum Atom {
    Repeatable(Node),
    /// Matches no byte: Perl warns of a quantifier, and its meaning there is its own.
    Look(Node),
    /// A character of several bytes: Perl repeats its last byte.
    Character(Node),
}

/// A member of a class.
enum Member {
    Byte(u8),
    Set(ByteSet),
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn peek_at(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.position + ahead).copied()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    /// Takes one character, whose bytes the caller wants.
    fn take_char(&mut self) -> Option<char> {
        let character = self.rest().chars().next()?;
        self.position += character.len_utf8();
        Some(character)
    }

    /// Takes what matches nothing and says nothing: comments, and blanks under `x`.
    fn skip_ignored(&mut self, flags: Flags) -> Result<(), PatternError> {
        if self.quoting {
            return Ok(());
        }
        loop {
            let start = self.position;
            if self.take("(?#") {
                match self.rest().find(')') {
                    Some(end) => self.position += end + 1,
                    None => return invalid(start, "unclosed comment"),
                }
            } else if self.take(r"\Q\E") {
            } else if flags.extended && self.peek().is_some_and(|byte| matches!(byte, b'\t'..=b'\r' | b' ')) {
                self.position += 1;
            } else if flags.extended && self.peek() == Some(b'#') {
                self.position += self.rest().find('\n').unwrap_or(self.rest().len());
            } else {
                return Ok(());
            }
        }
    }

    /// Up to the end of the group, or of the pattern.
    fn alternatives(&mut self, mut flags: Flags) -> Result<Node, PatternError> {
        let mut alternatives = Vec::new();
        let mut sequence = Vec::new();
        loop {
            self.skip_ignored(flags)?;
            match self.peek() {
                None => break,
                Some(b')') if !self.quoting => break,
                Some(b'|') if !self.quoting => {
                    self.position += 1;
                    alternatives.push(Node::Sequence(std::mem::take(&mut sequence)));
                }
                Some(b'(') if !self.quoting && self.flags_alone(&mut flags)? => {}
                Some(_) => {
                    let start = self.position;
                    if let Some(atom) = self.atom(flags)? {
                        sequence.push(self.quantified(atom, start, flags)?);
                    }
                }
            }
        }
        let sequence = Node::Sequence(sequence);
        if alternatives.is_empty() {
            return Ok(sequence);
        }
        alternatives.push(sequence);
        Ok(Node::Alternatives(alternatives))
    }

    /// Takes `(?flags)`, which holds up to the end of the group around it. Other groups are left alone.
    fn flags_alone(&mut self, flags: &mut Flags) -> Result<bool, PatternError> {
        let start = self.position;
        if !self.take("(?") || !matches!(self.peek(), Some(b'^' | b'-' | b'a'..=b'z' | b')')) {
            self.position = start;
            return Ok(false);
        }
        let changed = self.flag_letters(*flags)?;
        if self.take(")") {
            *flags = changed;
            return Ok(true);
        }
        self.position = start;
        Ok(false)
    }

    /// Takes the flags of `(?flags)` and `(?flags:`.
    fn flag_letters(&mut self, mut flags: Flags) -> Result<Flags, PatternError> {
        let mut on = true;
        let mut last = 0;
        if self.take("^") {
            flags = Flags::default();
        }
        while let Some(letter) = self.peek() {
            match letter {
                b')' | b':' => break,
                b'-' if on && !self.peek_at(1).is_some_and(|byte| byte.is_ascii_digit()) => on = false,
                b'-' => return refuse(self.position, "recursion is not supported"),
                b'x' if last == b'x' => return refuse(self.position, "the flag xx is not supported"),
                letter if flags.set(letter, on) => {}
                _ => {
                    let character = self.rest().chars().next().unwrap_or_default();
                    return refuse(self.position, format!("`{character}` is none of the flags i, m, s, x"));
                }
            }
            last = letter;
            self.position += 1;
        }
        Ok(flags)
    }

    /// Takes one element; none where it only began or ended a quotation.
    fn atom(&mut self, flags: Flags) -> Result<Option<Atom>, PatternError> {
        let start = self.position;
        if self.quoting {
            return self.quoted(flags);
        }
        if self.take(r"\Q") {
            self.quoting = true;
            return Ok(None);
        }
        let byte = self.peek();
        match byte {
            Some(b'(') => self.group(flags).map(Some),
            Some(b'[') => {
                self.position += 1;
                let set = self.class(start, flags)?;
                Ok(Some(Atom::Repeatable(Node::Set(set))))
            }
            Some(b'.') => {
                self.position += 1;
                let set = ByteSet::of(|byte| flags.dot_all || byte != b'\n');
                Ok(Some(Atom::Repeatable(Node::Set(set))))
            }
            Some(b'^') => {
                self.position += 1;
                let look = if flags.multi_line { Look::LineStart } else { Look::TextStart };
                Ok(Some(Atom::Look(Node::Look(look))))
            }
            Some(b'$') => {
                self.no_variable()?;
                self.position += 1;
                let look = if flags.multi_line { Look::LineEnd } else { Look::TextEnd };
                Ok(Some(Atom::Look(Node::Look(look))))
            }
            Some(b'\\') => {
                self.position += 1;
                self.escape(start, flags).map(Some)
            }
            Some(byte @ (b'*' | b'+' | b'?')) => {
                let character = char::from(byte);
                invalid(start, format!("nothing to repeat: a literal {character} is written \\{character}"))
            }
            Some(b'{') if self.counts().is_some() => invalid(start, "nothing to repeat: a literal { is written \\{"),
            _ => {
                if byte == Some(b'@') {
                    self.no_variable()?;
                }
                Ok(self.take_char().map(|character| literal(character, flags)))
            }
        }
    }

    /// Takes one character of a quotation, or its end.
    fn quoted(&mut self, flags: Flags) -> Result<Option<Atom>, PatternError> {
        let start = self.position;
        if self.take(r"\E") {
            self.quoting = false;
            return Ok(None);
        }
        if self.peek() == Some(b'\\') {
            if self.delimiter.is_none() || self.peek_at(1) != self.delimiter {
                return refuse(start, "a backslash between \\Q and \\E is not supported: end the quotation before it");
            }
            self.position += 1;
        } else if matches!(self.peek(), Some(b'$' | b'@')) {
            return refuse(start, "Perl reads a variable here: end the quotation before it");
        }
        let atom = self.take_char().map(|character| literal(character, flags));
        if self.take(r"\E") {
            self.quoting = false;
        }
        Ok(atom)
    }

    /// At a `$` or `@`: whether Perl would read a variable.
    fn no_variable(&self) -> Result<(), PatternError> {
        let next = self.peek_at(1);
        if self.peek() == Some(b'@') {
            return match next {
                Some(byte) if byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':' | b'$' | b'{') => {
                    refuse(self.position, "Perl reads an array here: a literal @ is written \\@")
                }
                _ => Ok(()),
            };
        }
        match next {
            None | Some(b'(' | b')' | b'|' | b' ' | b'\t' | b'\r' | b'\n') => Ok(()),
            _ => refuse(
                self.position,
                "Perl reads a variable here: the end is written (?:$), a literal $ is written \\$",
            ),
        }
    }

    /// At a `{`: the numbers of a quantifier and its length in bytes; none where it is a literal brace.
    fn counts(&self) -> Option<(&str, Option<&str>, usize)> {
        let inner = self.rest().strip_prefix('{')?;
        let inner = inner.get(..inner.find('}')?)?;
        let (min, max) = match inner.split_once(',') {
            Some((min, max)) => (min, Some(max)),
            None => (inner, None),
        };
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        (!min.is_empty() && is_number(min) && max.is_none_or(is_number)).then_some((min, max, inner.len() + 2))
    }

    /// Takes the quantifier that may follow an element.
    fn quantified(&mut self, atom: Atom, start: usize, flags: Flags) -> Result<Node, PatternError> {
        if self.quoting {
            let (Atom::Repeatable(node) | Atom::Look(node) | Atom::Character(node)) = atom;
            return Ok(node);
        }
        self.skip_ignored(flags)?;
        let position = self.position;
        let Some((min, max)) = self.quantifier()? else {
            let (Atom::Repeatable(node) | Atom::Look(node) | Atom::Character(node)) = atom;
            return Ok(node);
        };
        let node = match atom {
            Atom::Repeatable(node) => node,
            Atom::Look(_) => {
                let what = self.text.get(start..position).unwrap_or_default().trim_end();
                return refuse(position, format!("nothing to repeat: {what} matches no byte"));
            }
            Atom::Character(_) => {
                let what = self.text.get(start..position).unwrap_or_default().trim_end();
                return refuse(
                    position,
                    format!(
                        "Perl repeats only the last byte of this character: write (?:{what}) before the quantifier"
                    ),
                );
            }
        };
        if max.is_some_and(|max| max < min) {
            return invalid(position, "the least number of repetitions is larger than the largest");
        }
        if max.is_none_or(|max| max > 1) && !node.prefers_bytes() {
            return refuse(position, "a repetition of what prefers to match nothing is not supported");
        }
        self.skip_ignored(flags)?;
        let lazy = self.take("?");
        if !lazy && self.peek() == Some(b'+') {
            return refuse(self.position, "possessive quantifiers are not supported");
        }
        self.skip_ignored(flags)?;
        if matches!(self.peek(), Some(b'*' | b'+' | b'?')) || self.peek() == Some(b'{') && self.counts().is_some() {
            return invalid(self.position, "nested quantifiers: put a group between them");
        }
        Ok(Node::Repeat { node: Box::new(node), min, max, lazy })
    }

    fn quantifier(&mut self) -> Result<Option<(u32, Option<u32>)>, PatternError> {
        let start = self.position;
        match self.peek() {
            Some(b'*') => {
                self.position += 1;
                Ok(Some((0, None)))
            }
            Some(b'+') => {
                self.position += 1;
                Ok(Some((1, None)))
            }
            Some(b'?') => {
                self.position += 1;
                Ok(Some((0, Some(1))))
            }
            Some(b'{') => match self.counts() {
                Some((min, max, length)) => {
                    let number = |text: &str| match text.parse::<u32>() {
                        Ok(number) if number < 65_535 => Ok(number),
                        _ => invalid(start, "more repetitions than Perl allows (65534)"),
                    };
                    let min = number(min)?;
                    let max = match max {
                        None => Some(min),
                        Some("") => None,
                        Some(max) => Some(number(max)?),
                    };
                    self.position += length;
                    Ok(Some((min, max)))
                }
                None => self.literal_brace().map(|()| None),
            },
            _ => Ok(None),
        }
    }

    /// At a `{` that is no quantifier in every Perl.
    fn literal_brace(&self) -> Result<(), PatternError> {
        let inner = self.rest().get(1..).unwrap_or_default();
        let inner = inner.get(..inner.find('}').unwrap_or(0)).unwrap_or_default();
        let compact: String = inner.chars().filter(|character| !matches!(character, ' ' | '\t')).collect();
        let digits = compact.strip_prefix(',').unwrap_or(&compact);
        let digits = digits.replacen(',', "", 1);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return refuse(
                self.position,
                "a quantifier to newer versions of Perl, literal to older ones: write {0,N} or {N,M} without blanks, or \\{",
            );
        }
        Ok(())
    }

    /// At a `(`.
    fn group(&mut self, flags: Flags) -> Result<Atom, PatternError> {
        let start = self.position;
        self.position += 1;
        let mut inner_flags = flags;
        let mut number = None;
        if self.peek() == Some(b'*') {
            return refuse(start, "backtracking verbs and (*..) are not supported");
        } else if self.take("?") {
            match (self.peek(), self.peek_at(1)) {
                (Some(b'='), _) => return refuse(start, "look-ahead is not supported"),
                (Some(b'!'), _) => return refuse(start, "negative look-ahead is not supported"),
                (Some(b'<'), Some(b'=' | b'!')) => return refuse(start, "look-behind is not supported"),
                (Some(b'>'), _) => return refuse(start, "atomic groups are not supported: (?:..) may do"),
                (Some(b'|'), _) => return refuse(start, "branch reset (?|..) is not supported: use (?:..)"),
                (Some(b'('), _) => return refuse(start, "conditions (?(..)..) are not supported"),
                (Some(b'{' | b'?'), _) => return refuse(start, "code in a pattern is not supported"),
                (Some(b'R' | b'&' | b'+' | b'0'..=b'9'), _)
                | (Some(b'P'), Some(b'>'))
                | (Some(b'-'), Some(b'0'..=b'9')) => {
                    return refuse(start, "recursion is not supported");
                }
                (Some(b'P'), Some(b'=')) => return refuse(start, "back-references are not supported"),
                (Some(b'<' | b'\''), _) | (Some(b'P'), Some(b'<')) => {
                    self.take("P");
                    let end = if self.take("<") { '>' } else { '\'' };
                    self.take("'");
                    number = Some(self.named(end)?);
                }
                _ => {
                    inner_flags = self.flag_letters(flags)?;
                    if !self.take(":") {
                        return invalid(start, "unclosed group: ( without )");
                    }
                }
            }
        } else {
            self.groups.push(None);
            number = Some(self.groups.len());
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return refuse(start, format!("groups nest deeper than {MAX_DEPTH}"));
        }
        let node = self.alternatives(inner_flags)?;
        self.depth -= 1;
        if !self.take(")") {
            return invalid(start, "unclosed group: ( without )");
        }
        Ok(Atom::Repeatable(Node::Group(number, Box::new(node))))
    }

    /// Takes a group's name and what ends it; gives its number.
    fn named(&mut self, end: char) -> Result<usize, PatternError> {
        let start = self.position;
        let length = self.rest().find(end).unwrap_or(0);
        let name = self.rest().get(..length).unwrap_or_default();
        let is_name = name
            .bytes()
            .enumerate()
            .all(|(index, byte)| byte == b'_' || byte.is_ascii_alphabetic() || index > 0 && byte.is_ascii_digit());
        if name.is_empty() || !is_name {
            return invalid(start, "a group's name is letters, digits and _, and begins with no digit");
        }
        let name = name.to_owned();
        if self.groups.iter().flatten().any(|other| *other == name) {
            return refuse(start, format!("two groups are named {name}"));
        }
        self.position += length + 1;
        self.groups.push(Some(name));
        Ok(self.groups.len())
    }

    /// After a backslash outside of a class.
    fn escape(&mut self, start: usize, flags: Flags) -> Result<Atom, PatternError> {
        let Some(character) = self.rest().chars().next() else {
            return invalid(start, "a backslash at the end");
        };
        let look = match character {
            'A' => Some(Look::TextStart),
            'z' => Some(Look::TextEnd),
            'b' => Some(Look::WordBoundary),
            'B' => Some(Look::NotWordBoundary),
            _ => None,
        };
        if let Some(look) = look {
            self.position += 1;
            if self.peek() == Some(b'{') && matches!(character, 'b' | 'B') {
                return refuse(start, format!("\\{character}{{..}} is not supported: \\{character} alone is"));
            }
            return Ok(Atom::Look(Node::Look(look)));
        }
        match character {
            '1'..='9' => {
                return refuse(start, "back-references are not supported (a byte by its number: \\x41 or \\o{101})");
            }
            'N' => {
                self.position += 1;
                self.skip_ignored(flags)?;
                if self.peek() == Some(b'{') && self.counts().is_none() {
                    return refuse(start, "\\N{..} is not supported: bytes are written \\x41");
                }
                return Ok(Atom::Repeatable(Node::Set(ByteSet::single(b'\n').negated())));
            }
            'Z' => return refuse(start, "\\Z is not supported: write \\n?\\z, or $"),
            'R' => return refuse(start, "\\R is not supported: write (?:\\r\\n|\\n|\\r)"),
            'G' | 'X' | 'C' => return refuse(start, format!("\\{character} is not supported")),
            'K' => return refuse(start, "\\K is not supported: put what stays in a group and write $1"),
            'g' | 'k' => return refuse(start, "back-references are not supported"),
            _ => {}
        }
        match self.member_escape(start)? {
            Some(Member::Byte(byte)) => Ok(Atom::Repeatable(Node::Set(cased(ByteSet::single(byte), flags)))),
            Some(Member::Set(set)) => Ok(Atom::Repeatable(Node::Set(set))),
            None => {
                self.position += character.len_utf8();
                Ok(literal(character, flags))
            }
        }
    }

    /// After a backslash, in a class or outside: what means the same in both. None, and nothing taken, where the
    /// character stands for itself.
    fn member_escape(&mut self, start: usize) -> Result<Option<Member>, PatternError> {
        let Some(byte) = self.peek() else {
            return invalid(start, "a backslash at the end");
        };
        let set = match byte.to_ascii_lowercase() {
            b'd' => Some(ByteSet::of(|byte| byte.is_ascii_digit())),
            b'w' => Some(ByteSet::of(|byte| byte.is_ascii_alphanumeric() || byte == b'_')),
            b's' => Some(ByteSet::of(|byte| matches!(byte, b'\t'..=b'\r' | b' '))),
            b'h' => Some(ByteSet::of(|byte| matches!(byte, b'\t' | b' ' | 0xA0))),
            b'v' => Some(ByteSet::of(|byte| matches!(byte, b'\n'..=b'\r' | 0x85))),
            _ => None,
        };
        if let Some(set) = set {
            self.position += 1;
            return Ok(Some(Member::Set(if byte.is_ascii_uppercase() { set.negated() } else { set })));
        }
        let single = match byte {
            b't' => Some(b'\t'),
            b'n' => Some(b'\n'),
            b'r' => Some(b'\r'),
            b'f' => Some(0x0C),
            b'a' => Some(0x07),
            b'e' => Some(0x1B),
            _ => None,
        };
        if let Some(byte) = single {
            self.position += 1;
            return Ok(Some(Member::Byte(byte)));
        }
        let byte = match byte {
            b'x' => {
                self.position += 1;
                self.hexadecimal(start)?
            }
            b'0'..=b'7' => self.octal(start)?,
            b'o' => {
                self.position += 1;
                match self.braced() {
                    Some(digits) => number(digits, 8, start)?,
                    None => return invalid(start, "\\o is followed by a number in braces: \\o{101}"),
                }
            }
            b'c' => {
                self.position += 1;
                match self.peek() {
                    Some(byte @ (b'@'..=b'_' | b'a'..=b'z' | b'?')) if byte != b'\\' => {
                        self.position += 1;
                        byte.to_ascii_uppercase() ^ 64
                    }
                    _ => {
                        return refuse(
                            start,
                            "\\c is followed by a letter: other control characters are written \\x1F",
                        );
                    }
                }
            }
            b'p' | b'P' => {
                return refuse(
                    start,
                    "Unicode properties are not supported, data is bytes: write a class such as [A-Za-z]",
                );
            }
            b'Q' | b'E' => return refuse(start, format!("\\{} is not supported here", char::from(byte))),
            b'L' | b'U' | b'l' | b'u' | b'F' => {
                return refuse(
                    start,
                    format!("\\{} is not supported: write the letters as they are", char::from(byte)),
                );
            }
            byte if byte.is_ascii_alphanumeric() => {
                let character = char::from(byte);
                return refuse(start, format!("\\{character} means nothing: a literal {character} has no backslash"));
            }
            _ => return Ok(None),
        };
        Ok(Some(Member::Byte(byte)))
    }

    /// Takes `{..}` and gives what is in it.
    fn braced(&mut self) -> Option<&str> {
        let inner = self.text.get(self.position..)?.strip_prefix('{')?;
        let inner = inner.get(..inner.find('}')?)?;
        self.position += inner.len() + 2;
        Some(inner)
    }

    /// After `\x`: `{..}` or up to two digits.
    fn hexadecimal(&mut self, start: usize) -> Result<u8, PatternError> {
        if self.peek() == Some(b'{') {
            return match self.braced() {
                Some(digits) => number(digits, 16, start),
                None => invalid(start, "\\x{ without }"),
            };
        }
        let length = self.rest().bytes().take(2).take_while(u8::is_ascii_hexdigit).count();
        if length == 0 {
            return refuse(start, "\\x is followed by two digits: \\x41");
        }
        let value = number(self.rest().get(..length).unwrap_or_default(), 16, start);
        self.position += length;
        value
    }

    /// At the first of up to three octal digits.
    fn octal(&mut self, start: usize) -> Result<u8, PatternError> {
        let length = self.rest().bytes().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
        let value = number(self.rest().get(..length).unwrap_or_default(), 8, start);
        self.position += length;
        value
    }

    /// After a `[`.
    fn class(&mut self, start: usize, flags: Flags) -> Result<ByteSet, PatternError> {
        let negated = self.take("^");
        let mut set = ByteSet::default();
        let mut first = true;
        loop {
            match self.peek() {
                None => return invalid(start, "unclosed class: [ without ]"),
                Some(b']') if !first && !self.quoting => {
                    self.position += 1;
                    break;
                }
                Some(_) => {}
            }
            let position = self.position;
            let Some(member) = self.member(start, flags)? else { continue };
            first = false;
            // A minus before the end, and one beside a set, stands for itself.
            let minus = !self.quoting && self.peek() == Some(b'-') && self.peek_at(1).is_some_and(|byte| byte != b']');
            match member {
                Member::Set(members) => {
                    set = set.union(members);
                    if minus {
                        self.position += 1;
                        set.insert(b'-');
                        if self.peek() == Some(b'-') {
                            return refuse(self.position, "a literal - is written \\- here");
                        }
                    }
                }
                Member::Byte(byte) if !minus => set.insert(byte),
                Member::Byte(low) => {
                    self.position += 1;
                    match self.member(start, flags)? {
                        Some(Member::Byte(high)) if low <= high => {
                            set = set.union(ByteSet::of(|byte| (low..=high).contains(&byte)));
                        }
                        Some(Member::Byte(_)) => return invalid(position, "a range in a class runs backwards"),
                        Some(Member::Set(members)) => {
                            set = set.union(members);
                            set.insert(low);
                            set.insert(b'-');
                        }
                        None => return refuse(self.position, "\\Q and \\E are not supported in a range"),
                    }
                }
            }
        }
        let set = cased(set, flags);
        Ok(if negated { set.negated() } else { set })
    }

    /// Takes one member of a class; none where a quotation begins or ends.
    fn member(&mut self, class: usize, flags: Flags) -> Result<Option<Member>, PatternError> {
        let start = self.position;
        if self.quoting {
            if self.take(r"\E") {
                self.quoting = false;
                return Ok(None);
            }
            return match self.quoted(flags)? {
                Some(_) => self.member_char(start),
                None => invalid(class, "unclosed class: [ without ]"),
            };
        }
        if self.take(r"\Q") {
            self.quoting = true;
            return Ok(None);
        }
        if self.take("\\") {
            if self.take("b") {
                return Ok(Some(Member::Byte(0x08)));
            }
            if let Some(byte @ (b'B' | b'A' | b'z' | b'Z' | b'R' | b'X' | b'N' | b'G' | b'K')) = self.peek() {
                return refuse(start, format!("\\{} is not supported in a class", char::from(byte)));
            }
            return match self.member_escape(start)? {
                Some(member) => Ok(Some(member)),
                None => {
                    let position = self.position;
                    self.take_char();
                    self.member_char(position)
                }
            };
        }
        if self.peek() == Some(b'[')
            && let Some(kind @ (b':' | b'=' | b'.')) = self.peek_at(1)
            && let Some(name) = self.posix(kind)
        {
            let length = name.len() + 4;
            let set = if kind == b':' { posix_set(name, flags) } else { None };
            return match set {
                Some(set) => {
                    self.position += length;
                    Ok(Some(Member::Set(set)))
                }
                None => invalid(start, "no such POSIX class"),
            };
        }
        if matches!(self.peek(), Some(b'$' | b'@')) {
            self.no_variable()?;
        }
        self.take_char();
        self.member_char(start)
    }

    /// The character just taken, which begins at `start` (or after the backslash there), as a class's member.
    fn member_char(&self, start: usize) -> Result<Option<Member>, PatternError> {
        let taken = self.text.get(start..self.position).unwrap_or_default();
        let taken = taken.strip_suffix(r"\E").filter(|rest| !rest.is_empty()).unwrap_or(taken);
        match taken.as_bytes() {
            [byte] | [b'\\', byte] => Ok(Some(Member::Byte(*byte))),
            _ => {
                let character = taken.chars().next_back().unwrap_or_default();
                let length = character.len_utf8();
                refuse(
                    start,
                    format!(
                        "`{character}` is {length} bytes, a class matches one: write alternatives, (?:{character}|..)"
                    ),
                )
            }
        }
    }

    /// At a `[` and one of `:`, `=`, `.`: what stands before the same and `]`.
    fn posix(&self, kind: u8) -> Option<&str> {
        let inner = self.rest().get(2..)?;
        let length = inner.bytes().take_while(|&byte| byte == b'^' || byte.is_ascii_alphanumeric()).count();
        let end = inner.as_bytes().get(length..length + 2)?;
        (end == [kind, b']']).then(|| inner.get(..length)).flatten()
    }
}

/// A character of the configuration: its bytes in UTF-8.
fn literal(character: char, flags: Flags) -> Atom {
    let mut buffer = [0; 4];
    let mut nodes: Vec<Node> =
        character.encode_utf8(&mut buffer).bytes().map(|byte| Node::Set(cased(ByteSet::single(byte), flags))).collect();
    match nodes.pop() {
        Some(node) if nodes.is_empty() => Atom::Repeatable(node),
        last => {
            nodes.extend(last);
            Atom::Character(Node::Sequence(nodes))
        }
    }
}

fn cased(set: ByteSet, flags: Flags) -> ByteSet {
    if flags.ignore_case { set.folded() } else { set }
}

fn number(digits: &str, radix: u32, start: usize) -> Result<u8, PatternError> {
    // from_str_radix takes a sign, too.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return invalid(start, format!("`{digits}` is no number to the base {radix}"));
    }
    match u8::from_str_radix(digits, radix) {
        Ok(byte) => Ok(byte),
        Err(_) => refuse(start, "data is bytes, the largest is \\xFF: write a character's bytes in UTF-8"),
    }
}

fn posix_set(name: &str, flags: Flags) -> Option<ByteSet> {
    let (name, negated) = match name.strip_prefix('^') {
        Some(name) => (name, true),
        None => (name, false),
    };
    let test: fn(u8) -> bool = match name {
        // Under `i`, Perl asks for a letter of either case, also where the class is negated.
        "upper" | "lower" if flags.ignore_case => |byte| byte.is_ascii_alphabetic(),
        "alpha" => |byte| byte.is_ascii_alphabetic(),
        "digit" => |byte| byte.is_ascii_digit(),
        "alnum" => |byte| byte.is_ascii_alphanumeric(),
        "upper" => |byte| byte.is_ascii_uppercase(),
        "lower" => |byte| byte.is_ascii_lowercase(),
        "punct" => |byte| byte.is_ascii_punctuation(),
        "graph" => |byte| byte.is_ascii_graphic(),
        "print" => |byte| byte.is_ascii_graphic() || byte == b' ',
        "cntrl" => |byte| byte.is_ascii_control(),
        "xdigit" => |byte| byte.is_ascii_hexdigit(),
        "ascii" => |byte| byte.is_ascii(),
        "space" => |byte| matches!(byte, b'\t'..=b'\r' | b' '),
        "blank" => |byte| matches!(byte, b'\t' | b' '),
        "word" => |byte| byte.is_ascii_alphanumeric() || byte == b'_',
        _ => return None,
    };
    let set = ByteSet::of(test);
    Some(if negated { set.negated() } else { set })
}
