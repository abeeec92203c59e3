//! Translates a Perl callback that does nothing but substitute.
//!
//! The callback's text, as B::Deparse shows it, is run with symbols in place of data: each variable holds the
//! substitutions that its text has gone through since it came in. Whatever this does not know, it refuses.

use std::collections::{HashMap, VecDeque};

use super::perl::Value;
use super::substitution;

/// What a callback became: substitutions in this program's language, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// On the job's data.
    pub data: Vec<String>,
    /// On the copy of the data that becomes the unique id, where the callback returns one.
    pub unique: Option<Vec<String>>,
}

/// Translates the marked text of a callback; `characters` says that it stands under `use utf8`.
///
/// # Errors
/// It is more than substitutions; the message says where.
pub fn translate(marked: &str, variables: &[(String, Value)], characters: bool) -> Result<Translation, String> {
    let mut run = Run {
        text: marked,
        position: 0,
        variables,
        characters,
        arguments: VecDeque::from([Symbol::Data(Vec::new()), Symbol::Other, Symbol::Other, Symbol::Other]),
        locals: HashMap::new(),
        aliases: HashMap::new(),
    };
    run.blanks();
    if !run.take("{") {
        return Err("has attributes or a prototype".to_owned());
    }
    let returned = run.block()?;
    run.blanks();
    if run.position != marked.len() {
        return Err(run.refused(run.position));
    }
    let mut returned = returned.into_iter();
    let data = match returned.next() {
        Some(Symbol::Data(chain)) => chain,
        Some(_) => return Err("returns something else than the data".to_owned()),
        None => return Err("returns nothing".to_owned()),
    };
    let unique = match returned.next() {
        None | Some(Symbol::Undefined) => None,
        Some(Symbol::Data(chain)) if chain.is_empty() => {
            return Err("returns the unchanged data as unique id".to_owned());
        }
        Some(Symbol::Data(chain)) => Some(chain),
        Some(_) => return Err("returns a unique id that is no copy of the data".to_owned()),
    };
    Ok(Translation { data, unique })
}

/// What a variable holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Symbol {
    /// The job's data after these substitutions.
    Data(Vec<String>),
    Undefined,
    /// A literal.
    Text(String),
    /// The job object, the outcome of a substitution, a value from outside.
    Other,
}

/// Where a value is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Slot {
    Variable(String),
    Argument(usize),
    /// An array that takes the rest of a list.
    Rest,
}

/// What an expression gives.
#[derive(Debug, Clone)]
enum Operand {
    Slot(Slot),
    Symbol(Symbol),
    List(Vec<Operand>),
    /// `@_`.
    Arguments,
}

struct Run<'a> {
    text: &'a str,
    position: usize,
    variables: &'a [(String, Value)],
    characters: bool,
    arguments: VecDeque<Symbol>,
    locals: HashMap<String, Symbol>,
    /// Loop variables, which are other names for what is looped over.
    aliases: HashMap<String, Slot>,
}

/// Data, job, configuration and the proxy itself.
const ARGUMENTS: usize = 4;

/// What B::Deparse writes at the beginning and may stand anywhere.
const PRAGMAS: [&str; 9] = [
    "package",
    "use strict",
    "no strict",
    "use warnings",
    "no warnings",
    "use feature",
    "no feature",
    "use utf8",
    "no utf8",
];

impl Run<'_> {
    /// The statements up to the closing brace, and what a sub of this body returns.
    fn block(&mut self) -> Result<Vec<Symbol>, String> {
        let mut last = Vec::new();
        loop {
            self.blanks();
            if self.take("}") {
                return Ok(last);
            }
            if self.take(";") || self.pragma()? || self.argument_check() {
                continue;
            }
            let start = self.position;
            if self.locals.is_empty() && self.take("do {") {
                // A signature: its variables are set in a block of their own, and last beyond it.
                self.block()?;
                if !self.take(";") || self.returns(start) {
                    return Err(self.refused(start));
                }
                last = Vec::new();
                continue;
            }
            if self.word("foreach") {
                self.each(start)?;
                last = Vec::new();
                continue;
            }
            let returning = self.word("return");
            last = self.statement(start)?;
            if returning {
                self.blanks();
                return if self.take("}") { Ok(last) } else { Err(self.refused(self.position)) };
            }
        }
    }

    /// One expression with its `;`, and the values that it has.
    fn statement(&mut self, start: usize) -> Result<Vec<Symbol>, String> {
        let begin = self.position;
        let before = (self.arguments.clone(), self.locals.clone());
        let operand = self.list(start)?;
        let mut values = self.flatten(&operand);
        if self.word("foreach") {
            // The variable of this modifier is known only now: once more from the statement's beginning.
            let slot = self.looped(start)?;
            let end = self.position;
            (self.arguments, self.locals) = before;
            self.position = begin;
            let hidden = self.aliases.insert("_".to_owned(), slot);
            let outcome = self.list(start);
            self.restore("_".to_owned(), hidden);
            outcome?;
            self.position = end;
            values = Vec::new();
        }
        self.blanks();
        if self.take(";") || self.rest().starts_with('}') { Ok(values) } else { Err(self.refused(start)) }
    }

    /// `foreach $_ ($data) { ... }`.
    fn each(&mut self, start: usize) -> Result<(), String> {
        self.word("my");
        self.blanks();
        let Some(name) = self.scalar_name() else { return Err(self.refused(start)) };
        let slot = self.looped(start)?;
        self.blanks();
        // A loop over a loop's variable's own variable: which is meant by a name would depend on the place.
        let hides = self.aliases.values().any(|slot| *slot == Slot::Variable(name.clone()));
        if hides || !self.take("{") {
            return Err(self.refused(start));
        }
        let body_start = self.position;
        let hidden = self.aliases.insert(name.clone(), slot);
        let body = self.block();
        self.restore(name, hidden);
        body?;
        if self.returns(body_start) { Err(self.refused(start)) } else { Ok(()) }
    }

    /// Whether a return may have ended the sub in a block that began at `start`.
    fn returns(&self, start: usize) -> bool {
        self.text.get(start..self.position).unwrap_or_default().contains("return")
    }

    fn restore(&mut self, name: String, hidden: Option<Slot>) {
        match hidden {
            Some(slot) => self.aliases.insert(name, slot),
            None => self.aliases.remove(&name),
        };
    }

    /// The one variable that a loop goes over.
    fn looped(&mut self, start: usize) -> Result<Slot, String> {
        self.blanks();
        if self.take("(")
            && let Operand::Slot(slot) = self.list(start)?
        {
            self.blanks();
            if self.take(")") {
                return Ok(self.resolved(&slot));
            }
        }
        Err(self.refused(start))
    }

    /// The variable itself, for another name of it.
    fn resolved(&self, slot: &Slot) -> Slot {
        match slot {
            Slot::Variable(name) => self.aliases.get(name).unwrap_or(slot).clone(),
            _ => slot.clone(),
        }
    }

    /// What B::Deparse writes about hints, which shows in the flags of the substitutions where it changes them.
    fn pragma(&mut self) -> Result<bool, String> {
        let rest = self.rest();
        let length = if let Some(hints) = rest.strip_prefix("BEGIN {") {
            block_length(hints).map(|length| length + "BEGIN {".len())
        } else if PRAGMAS.iter().any(|name| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', ';']))) {
            rest.find(';').map(|length| length + 1)
        } else {
            return Ok(false);
        };
        let Some(length) = length else { return Err(self.refused(self.position)) };
        self.position += length;
        Ok(true)
    }

    /// What B::Deparse shows of a signature that takes the four arguments there are.
    fn argument_check(&mut self) -> bool {
        let rest = self.rest();
        let Some(length) = rest.find(';').filter(|_| rest.starts_with("die sprintf(\"Too ")) else { return false };
        let check = rest.get(..length).unwrap_or_default();
        let Some((_, condition)) = check.rsplit_once(" unless @_ ") else { return false };
        let number = |text: &str| text.parse::<usize>().ok();
        let holds = match condition.split_once(' ') {
            Some((">=", least)) => number(least).is_some_and(|least| least <= ARGUMENTS),
            Some(("<=", most)) => number(most).is_some_and(|most| ARGUMENTS <= most),
            _ => false,
        };
        if holds {
            self.position += length + 1;
        }
        holds
    }

    /// Expressions with commas between them; a list of one is that one.
    fn list(&mut self, start: usize) -> Result<Operand, String> {
        let mut operands = Vec::new();
        loop {
            self.blanks();
            if self.rest().starts_with([')', ';', '}']) {
                break;
            }
            operands.push(self.assignment(start)?);
            self.blanks();
            if !self.take(",") {
                break;
            }
        }
        match (operands.len(), operands.pop()) {
            (1, Some(operand)) => Ok(operand),
            (_, last) => {
                operands.extend(last);
                Ok(Operand::List(operands))
            }
        }
    }

    fn assignment(&mut self, start: usize) -> Result<Operand, String> {
        let left = self.binding(start)?;
        self.blanks();
        if self.rest().starts_with("=~") || self.rest().starts_with("==") || !self.take("=") {
            return Ok(left);
        }
        let right = self.assignment(start)?;
        match &left {
            Operand::Slot(Slot::Rest) | Operand::Symbol(_) | Operand::Arguments => return Err(self.refused(start)),
            Operand::Slot(slot) => {
                // An array or a list would give its size or its last element here.
                let value = match &right {
                    Operand::Slot(Slot::Rest) | Operand::List(_) | Operand::Arguments => {
                        return Err(self.refused(start));
                    }
                    Operand::Slot(slot) => self.value(slot),
                    Operand::Symbol(symbol) => symbol.clone(),
                };
                self.set(slot, value, start)?;
            }
            Operand::List(slots) => {
                let mut values = self.flatten(&right).into_iter();
                for slot in slots {
                    let Operand::Slot(slot) = slot else { return Err(self.refused(start)) };
                    if *slot == Slot::Rest {
                        break;
                    }
                    let value = values.next().unwrap_or(Symbol::Undefined);
                    self.set(slot, value, start)?;
                }
            }
        }
        Ok(left)
    }

    /// `$data =~ s/a/b/`.
    fn binding(&mut self, start: usize) -> Result<Operand, String> {
        let mut operand = self.primary(start)?;
        loop {
            self.blanks();
            if !self.take("=~") {
                return Ok(operand);
            }
            self.blanks();
            operand = self.substitute(&operand, start)?;
        }
    }

    fn substitute(&mut self, operand: &Operand, start: usize) -> Result<Operand, String> {
        let mut variables = self.variables.to_vec();
        variables.extend(self.locals.iter().filter_map(|(name, symbol)| match symbol {
            Symbol::Text(text) => Some((name.clone(), Value::Bytes(text.clone().into_bytes()))),
            _ => None,
        }));
        let Some((read, length)) = substitution::read(self.rest(), &variables, self.characters) else {
            return Err(self.refused(start));
        };
        let shown = self.rest().get(..length).unwrap_or_default().to_owned();
        let (translated, returns) = read.map_err(|reason| format!("`{}` {reason}", one_line(&shown)))?;
        self.position += length;
        let mut value = match operand {
            Operand::Slot(slot) => self.value(slot),
            Operand::Symbol(symbol) if returns => symbol.clone(),
            Operand::Symbol(_) | Operand::List(_) | Operand::Arguments => return Err(self.refused(start)),
        };
        match &mut value {
            Symbol::Data(chain) => chain.push(translated),
            other => *other = Symbol::Other,
        }
        match operand {
            Operand::Slot(slot) if !returns => {
                self.set(slot, value, start)?;
                // Used as a value it is the number of matches.
                Ok(Operand::Symbol(Symbol::Other))
            }
            _ => Ok(Operand::Symbol(value)),
        }
    }

    fn primary(&mut self, start: usize) -> Result<Operand, String> {
        self.blanks();
        if self.rest().starts_with('s') && !self.rest().starts_with("shift") {
            return self.substitute(&Operand::Slot(Slot::Variable("_".to_owned())), start);
        }
        if self.word("my") || self.word("local") {
            return match self.primary(start)? {
                Operand::Slot(Slot::Variable(name)) => self.declared(name, start),
                Operand::List(operands) => {
                    for operand in &operands {
                        match operand {
                            Operand::Slot(Slot::Variable(name)) => drop(self.declared(name.clone(), start)?),
                            Operand::Slot(Slot::Rest) | Operand::Symbol(Symbol::Undefined) => {}
                            _ => return Err(self.refused(start)),
                        }
                    }
                    Ok(Operand::List(operands))
                }
                _ => Err(self.refused(start)),
            };
        }
        if let Some(length) = self.rest().strip_prefix('\'').and_then(|literal| literal.find(['\'', '\\'])) {
            let literal = self.rest().get(1..=length).unwrap_or_default().to_owned();
            self.position += 1 + length;
            return if self.take("'") { Ok(Operand::Symbol(Symbol::Text(literal))) } else { Err(self.refused(start)) };
        }
        if self.word("undef") {
            return Ok(Operand::Symbol(Symbol::Undefined));
        }
        if self.word("shift") {
            self.blanks();
            let whole = self.take("()") || self.take("(@_)") || self.take("@_");
            // It would move the arguments under a loop that goes over one.
            if !whole || !self.aliases.is_empty() {
                return Err(self.refused(start));
            }
            return Ok(Operand::Symbol(self.arguments.pop_front().unwrap_or(Symbol::Undefined)));
        }
        if self.take("$_[") {
            let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
            let index = self.rest().get(..digits).and_then(|digits| digits.parse().ok());
            self.position += digits;
            return match index {
                Some(index) if self.take("]") => Ok(Operand::Slot(Slot::Argument(index))),
                _ => Err(self.refused(start)),
            };
        }
        if self.take("@_") {
            return Ok(Operand::Arguments);
        }
        if self.take("@") {
            return match self.name() {
                Some(_) => Ok(Operand::Slot(Slot::Rest)),
                None => Err(self.refused(start)),
            };
        }
        if self.take("(") {
            let inner = self.list(start)?;
            self.blanks();
            if !self.take(")") {
                return Err(self.refused(start));
            }
            // What stands in brackets on the left of `=` is a list even where it is one.
            self.blanks();
            let assigned = self.rest().starts_with('=') && !self.rest().starts_with("=~");
            return Ok(match inner {
                Operand::Slot(slot) if assigned => Operand::List(vec![Operand::Slot(slot)]),
                other => other,
            });
        }
        match self.scalar_name() {
            Some(name) => Ok(Operand::Slot(Slot::Variable(name))),
            None => Err(self.refused(start)),
        }
    }

    /// A new variable hides whatever had its name; in a loop, only until its end, which is not followed here.
    fn declared(&mut self, name: String, start: usize) -> Result<Operand, String> {
        if !self.aliases.is_empty() && self.locals.contains_key(&name) {
            return Err(self.refused(start));
        }
        self.aliases.remove(&name);
        self.locals.insert(name.clone(), Symbol::Undefined);
        Ok(Operand::Slot(Slot::Variable(name)))
    }

    fn value(&self, slot: &Slot) -> Symbol {
        match self.resolved(slot) {
            Slot::Variable(name) => self.locals.get(&name).cloned().unwrap_or(Symbol::Other),
            Slot::Argument(index) => self.arguments.get(index).cloned().unwrap_or(Symbol::Undefined),
            Slot::Rest => Symbol::Other,
        }
    }

    /// Only what belongs to one call may be set: a variable from outside would carry one job's data to the next.
    fn set(&mut self, slot: &Slot, value: Symbol, start: usize) -> Result<(), String> {
        match self.resolved(slot) {
            Slot::Variable(name) if name == "_" || self.locals.contains_key(&name) => {
                self.locals.insert(name, value);
                Ok(())
            }
            Slot::Argument(index) if index < self.arguments.len() => {
                if let Some(argument) = self.arguments.get_mut(index) {
                    *argument = value;
                }
                Ok(())
            }
            _ => Err(self.refused(start)),
        }
    }

    fn flatten(&self, operand: &Operand) -> Vec<Symbol> {
        match operand {
            Operand::Slot(slot) => vec![self.value(slot)],
            Operand::Symbol(symbol) => vec![symbol.clone()],
            Operand::Arguments => self.arguments.iter().cloned().collect(),
            Operand::List(operands) => operands.iter().flat_map(|operand| self.flatten(operand)).collect(),
        }
    }

    /// `$name` or `${name}`, but no element of an array or a hash.
    fn scalar_name(&mut self) -> Option<String> {
        let start = self.position;
        let found = if self.take("${") { self.name().filter(|_| self.take("}")) } else { self.plain_name() };
        if found.is_none() {
            self.position = start;
        }
        found
    }

    fn plain_name(&mut self) -> Option<String> {
        if !self.take("$") {
            return None;
        }
        let name = self.name()?;
        if self.rest().starts_with(['[', '{']) || self.rest().starts_with("->") { None } else { Some(name) }
    }

    fn name(&mut self) -> Option<String> {
        let length = self.rest().bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let name = self.rest().get(..length)?;
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let name = name.to_owned();
        self.position += length;
        Some(name)
    }

    fn rest(&self) -> &str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_ascii_start().len();
    }

    fn take(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            self.position += expected.len();
        }
        found
    }

    /// A whole word, after blanks.
    fn word(&mut self, expected: &str) -> bool {
        let rest = self.rest().trim_ascii_start();
        let found = rest
            .strip_prefix(expected)
            .is_some_and(|after| !after.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_'));
        if found {
            self.blanks();
            self.position += expected.len();
        }
        found
    }

    /// The statement that this module does not know.
    fn refused(&self, start: usize) -> String {
        let statement = self.text.get(start..).unwrap_or_default();
        let end = statement.find([';', '\n']).unwrap_or(statement.len());
        let statement = one_line(statement.get(..end).unwrap_or_default().trim());
        format!("`{statement}` is more than a substitution")
    }
}

/// The text as B::Deparse would have shown it without marks, on one line.
fn one_line(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        shown.push_str(before);
        match after.split_once('}') {
            Some((name, tail))
                if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                    && !tail.starts_with(|next: char| next.is_ascii_alphanumeric() || "_[{".contains(next)) =>
            {
                shown.push('$');
                shown.push_str(name);
                rest = tail;
            }
            _ => {
                shown.push_str("${");
                rest = after;
            }
        }
    }
    shown.push_str(rest);
    shown.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes up to and with the brace that closes a block, of which the opening one is before `text`.
fn block_length(text: &str) -> Option<usize> {
    let mut depth = 1;
    let mut quote = None;
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            _ if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') => depth -= 1,
            (None, _) => {}
        }
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(body: &str) -> Result<(Vec<String>, Option<Vec<String>>), String> {
        let marked = format!("{{\n    package GearmanProxy;\n{body}\n}}");
        translate(&marked, &[], false).map(|translation| (translation.data, translation.unique))
    }

    fn data(body: &str) -> Vec<String> {
        match translated(body) {
            Ok((data, None)) => data,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn refusal(body: &str) -> String {
        match translated(body) {
            Err(reason) => reason,
            Ok(translation) => panic!("{body}: {translation:?}"),
        }
    }

    #[test]
    fn the_usual_ways_to_take_and_return_the_data() {
        for body in [
            "my(${data}) = @_;\n $data =~ s/a/b/g;\n return ${data};",
            "my $data = shift();\n $data =~ s/a/b/g;\n ${data};",
            "my $data = shift @_; $data =~ s/a/b/g; return ${data};",
            "my $data = $_[0];\n $data =~ s/a/b/g;\n ${data};",
            "my(${data}, ${job}, @rest) = @_; $data =~ s/a/b/g; return ${data};",
            "my($data); ($data) = @_; $data =~ s/a/b/g; return ${data};",
            "my(${data}) = shift(); my $job = shift(); $data =~ s/a/b/g; return ${data}, undef;",
            "local $_ = shift();\n s/a/b/g;\n return ${_};",
            "my(${d}) = @_;\n foreach $_ (${d}) {\n s/a/b/g;\n }\n ${d};",
            "my(${d}) = @_;\n foreach my $x (${d}) {\n $x =~ s/a/b/g;\n }\n ${d};",
            "my(${d}) = @_;\n s/a/b/g foreach (${d});\n ${d};",
            "$_[0] =~ s/a/b/g; $_[0];",
            "return shift() =~ s/a/b/gr;",
            "(my $d = shift()) =~ s/a/b/g; return ${d};",
            "do {\n use strict;\n die sprintf(\"Too few arguments for x\", (caller)[1, 2]) unless @_ >= 1;\n \
             my $data = $_[0]\n };\n $data =~ s/a/b/g;\n return ${data};",
            "use warnings;\n use strict;\n no feature ':all';\n BEGIN {${^WARNING_BITS} = \"}\\\"\"}\n my $d = shift(); \
             $d =~ s/a/b/g; ${d};",
        ] {
            assert_eq!(data(body), ["s/a/b/g"], "{body}");
        }
    }

    #[test]
    fn several_substitutions_keep_their_order() {
        assert_eq!(data("my $d = shift(); $d =~ s/a/b/; $d =~ s/c/d/; ${d};"), ["s/a/b/", "s/c/d/"]);
        assert_eq!(data("return (shift() =~ s/a/b/gr) =~ s/c/d/r;"), ["s/a/b/g", "s/c/d/"]);
        assert_eq!(data("my $d = shift(); $d =~ s/a/b/, $d =~ s/c/d/; return ${d};"), ["s/a/b/", "s/c/d/"]);
        assert_eq!(data("my $d = shift(); my $copy = ${d}; $copy =~ s/a/b/; return ${d};"), Vec::<String>::new());
    }

    #[test]
    fn literals_are_put_in() {
        assert_eq!(data("my $d = shift(); my $q = 'x.y'; $d =~ s/a/${q}/; ${d};"), ["s/a/x.y/"]);
        assert!(refusal("my $d = shift(); my $q = 'x'; $q =~ s/x/y/; $d =~ s/a/${q}/; ${d};").contains("needs $q"));
        assert!(refusal("my $d = shift(); my $q = 'it\\'s'; $d =~ s/a/${q}/; ${d};").contains("`my $q = 'it"));
        assert!(refusal("my $d = shift(); return ${d}, 'id';").contains("no copy of the data"));
    }

    #[test]
    fn a_second_value_is_the_unique_id() {
        let unique =
            translated("my(${d}) = @_; $d =~ s/a/b/; (my $u = ${d}) =~ s/c/d/; $d =~ s/e/f/; return ${d}, ${u};");
        let expected =
            (vec!["s/a/b/".to_owned(), "s/e/f/".to_owned()], Some(vec!["s/a/b/".to_owned(), "s/c/d/".to_owned()]));
        assert_eq!(unique, Ok(expected));
        assert!(refusal("my $d = shift(); return ${d}, ${d};").contains("unchanged data as unique id"));
        assert!(refusal("my($d, $job) = @_; return ${d}, ${job};").contains("no copy of the data"));
    }

    #[test]
    fn whatever_is_more_is_refused_and_shown() {
        for (body, shown) in [
            ("my $d = shift(); $d =~ tr/a/b/; ${d};", "`$d =~ tr/a/b/`"),
            ("my $d = shift(); if ($d =~ /x/) {\n $d =~ s/a/b/;\n }\n ${d};", "`if ($d =~ /x/) {`"),
            ("my $d = shift(); $d =~ s/a/b/ if $d =~ /x/; ${d};", "`$d =~ s/a/b/ if $d =~ /x/`"),
            ("my $d = shift(); return lc ${d};", "`return lc $d`"),
            ("my $d = @_; return ${d};", "`my $d = @_`"),
            ("my $d = shift(); return ${d} . 'x';", "`return $d . 'x'`"),
            ("my $d = shift(); return $d->{'x'};", "`return $d->{'x'}`"),
            ("my $d = shift(); return wantarray ? ${d} : ${d};", "`return wantarray ? $d : $d`"),
            ("my $d = shift(); foreach $_ (${d}) {\n return ${d};\n }\n ${d};", "`foreach $_ ($d) {`"),
            ("my $d = shift(); $d =~ s/(a)/${1} + 1;/e; ${d};", "`s/(a)/$1 + 1;/e`"),
            ("my $d = shift(); $d =~ s/a/b/;", "returns something else than the data"),
            ("do {\n return $_[0];\n };\n ${_[0]};", "`do {`"),
            ("my $d = shift(); do {\n my $d = 1\n };\n return ${d};", "`do {`"),
            ("my $d = do {\n shift();\n }; return ${d};", "`my $d = do {`"),
            ("do {\n die sprintf(\"Too many\") unless @_ <= 2;\n my $d = $_[0]\n };\n return ${d};", "`die sprintf"),
            ("my $d = shift(); return;", "returns nothing"),
            ("", "returns nothing"),
        ] {
            let reason = refusal(body);
            assert!(reason.contains(shown), "{body}: {reason}");
        }
        assert!(translate(": lvalue {\n}", &[], false).is_err());
        assert!(translate("{ return", &[], false).is_err());
        assert!(translate("", &[], false).is_err());
    }
}
