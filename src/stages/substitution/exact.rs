//! A small matcher for the two things that the regex crate can't be asked for.
//!
//! - A match of at least one byte where the preferred one is empty. With `g`, Perl looks for it after an empty match:
//!   `s/^\s*|,/x/g` on `,a` first matches nothing, then the comma.
//! - `^` under `m` that does not match at the very end of a text.
//!
//! It steps through all ways to match at once, in their order of preference (Pike's algorithm), so that its time grows
//! with the text and the pattern and never explodes. Only patterns that need it have one, and only the matches in
//! question take it.

use super::pattern::{ByteSet, Look, Node};

/// Instructions at most: repetitions are written out.
const MAX_INSTRUCTIONS: usize = 20_000;

enum Instruction {
    Byte(ByteSet, usize),
    Look(Look, usize),
    /// Keep the position in a slot.
    Save(usize, usize),
    /// Both, the first preferred.
    Split(usize, usize),
    Jump(usize),
    Match,
}

/// A pattern, made to be stepped through.
pub(super) struct Exact {
    instructions: Vec<Instruction>,
    slots: usize,
}

/// The start and end of the match and of each group, two slots each.
pub(super) type Slots = Vec<Option<usize>>;

/// What one position of the text can be reached in: instructions in order of preference, with their slots.
struct Threads {
    order: Vec<usize>,
    slots: Vec<Slots>,
    /// For each instruction the last position at which it was reached.
    reached: Vec<Option<usize>>,
}

impl Threads {
    fn new(instructions: usize) -> Threads {
        Threads { order: Vec::new(), slots: Vec::new(), reached: vec![None; instructions] }
    }
}

impl Exact {
    /// None: the pattern is too large.
    pub(super) fn new(node: &Node, groups: usize) -> Option<Exact> {
        let mut exact = Exact { instructions: Vec::new(), slots: 2 * (groups + 1) };
        exact.group(0, node)?;
        exact.push(Instruction::Match)?;
        Some(exact)
    }

    fn push(&mut self, instruction: Instruction) -> Option<usize> {
        if self.instructions.len() == MAX_INSTRUCTIONS {
            return None;
        }
        self.instructions.push(instruction);
        Some(self.instructions.len() - 1)
    }

    fn next(&self) -> usize {
        self.instructions.len() + 1
    }

    fn group(&mut self, number: usize, node: &Node) -> Option<()> {
        let next = self.next();
        self.push(Instruction::Save(2 * number, next))?;
        self.compile(node)?;
        let next = self.next();
        self.push(Instruction::Save(2 * number + 1, next))?;
        Some(())
    }

    fn compile(&mut self, node: &Node) -> Option<()> {
        let next = self.next();
        match node {
            Node::Set(set) => {
                self.push(Instruction::Byte(*set, next))?;
            }
            Node::Look(look) => {
                self.push(Instruction::Look(*look, next))?;
            }
            Node::Group(None, node) => self.compile(node)?,
            Node::Group(Some(number), node) => self.group(*number, node)?,
            Node::Sequence(nodes) => {
                for node in nodes {
                    self.compile(node)?;
                }
            }
            Node::Alternatives(nodes) => {
                let mut ends = Vec::new();
                for (index, node) in nodes.iter().enumerate() {
                    if index + 1 == nodes.len() {
                        self.compile(node)?;
                    } else {
                        let first = self.next();
                        let split = self.push(Instruction::Split(first, 0))?;
                        self.compile(node)?;
                        ends.push(self.push(Instruction::Jump(0))?);
                        self.aim(split, self.instructions.len(), false);
                    }
                }
                for end in ends {
                    self.aim(end, self.instructions.len(), false);
                }
            }
            Node::Repeat { node, min, max, lazy } => {
                for _ in 0..*min {
                    self.compile(node)?;
                }
                match max {
                    // What follows a round that matched nothing must not be the same question again, hence a question
                    // before the first round and another after each.
                    None => {
                        let first = self.next();
                        let before = self.push(Instruction::Split(first, first))?;
                        self.compile(node)?;
                        let end = self.next();
                        let after = self.push(Instruction::Split(first, end))?;
                        self.aim(before, end, *lazy);
                        if *lazy {
                            self.instructions[after] = Instruction::Split(end, first);
                        }
                    }
                    Some(max) => {
                        let mut splits = Vec::new();
                        for _ in *min..*max {
                            let first = self.next();
                            splits.push(self.push(Instruction::Split(first, first))?);
                            self.compile(node)?;
                        }
                        for split in splits {
                            self.aim(split, self.instructions.len(), *lazy);
                        }
                    }
                }
            }
        }
        Some(())
    }

    /// Where an instruction goes that was written before its target was known; `first`: with preference.
    fn aim(&mut self, instruction: usize, target: usize, first: bool) {
        match self.instructions.get_mut(instruction) {
            Some(Instruction::Split(to, _)) if first => *to = target,
            Some(Instruction::Split(_, to) | Instruction::Jump(to)) => *to = target,
            _ => {}
        }
    }

    /// The preferred match that begins at `start` (or, unless `anchored`, at the first position after it that has one)
    /// and ends at `least_end` or later.
    pub(super) fn find(&self, text: &[u8], start: usize, anchored: bool, least_end: usize) -> Option<Slots> {
        let mut current = Threads::new(self.instructions.len());
        let mut next = Threads::new(self.instructions.len());
        let mut found = None;
        for position in start..=text.len() {
            if found.is_none() && (position == start || !anchored) {
                self.follow(0, text, position, vec![None; self.slots], &mut current);
            }
            if current.order.is_empty() && (found.is_some() || anchored) {
                break;
            }
            for (instruction, slots) in current.order.drain(..).zip(current.slots.drain(..)) {
                match &self.instructions[instruction] {
                    Instruction::Byte(set, to) if text.get(position).is_some_and(|&byte| set.contains(byte)) => {
                        self.follow(*to, text, position + 1, slots, &mut next);
                    }
                    Instruction::Match if position >= least_end => {
                        found = Some(slots);
                        // Whatever comes after is liked less.
                        break;
                    }
                    _ => {}
                }
            }
            std::mem::swap(&mut current, &mut next);
        }
        found
    }

    /// Adds all that is reached from an instruction without reading a byte.
    fn follow(&self, instruction: usize, text: &[u8], position: usize, slots: Slots, threads: &mut Threads) {
        let mut waiting = vec![(instruction, slots)];
        while let Some((instruction, mut slots)) = waiting.pop() {
            if threads.reached[instruction].replace(position) == Some(position) {
                continue;
            }
            match &self.instructions[instruction] {
                Instruction::Byte(..) | Instruction::Match => {
                    threads.order.push(instruction);
                    threads.slots.push(slots);
                }
                Instruction::Look(look, to) => {
                    if holds(*look, text, position) {
                        waiting.push((*to, slots));
                    }
                }
                Instruction::Save(slot, to) => {
                    if let Some(slot) = slots.get_mut(*slot) {
                        *slot = Some(position);
                    }
                    waiting.push((*to, slots));
                }
                Instruction::Split(first, second) => {
                    waiting.push((*second, slots.clone()));
                    waiting.push((*first, slots));
                }
                Instruction::Jump(to) => waiting.push((*to, slots)),
            }
        }
    }
}

fn holds(look: Look, text: &[u8], position: usize) -> bool {
    let before = position.checked_sub(1).and_then(|before| text.get(before)).copied();
    let after = text.get(position).copied();
    let is_word = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match look {
        Look::TextStart => before.is_none(),
        Look::TextEnd => after.is_none(),
        Look::LineStart => before.is_none() || before == Some(b'\n') && after.is_some(),
        Look::LineEnd => after.is_none() || after == Some(b'\n'),
        Look::WordBoundary => is_word(before) != is_word(after),
        Look::NotWordBoundary => is_word(before) == is_word(after),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::{self, Flags};
    use super::*;

    fn exact(text: &str, flags: Flags) -> Exact {
        let pattern = pattern::parse(text, flags, None).map_err(|error| error.message).unwrap();
        Exact::new(&pattern.node, pattern.groups.len()).unwrap()
    }

    #[test]
    fn a_longer_match_is_found_behind_an_empty_one() {
        let exact = exact("a*?(b)?", Flags::default());
        assert_eq!(exact.find(b"aab", 0, true, 0), Some(vec![Some(0), Some(0), None, None]));
        assert_eq!(exact.find(b"aab", 0, true, 1), Some(vec![Some(0), Some(1), None, None]));
        assert_eq!(exact.find(b"aab", 2, true, 3), Some(vec![Some(2), Some(3), Some(2), Some(3)]));
        assert_eq!(exact.find(b"aac", 2, true, 3), None);
    }

    #[test]
    fn a_line_does_not_start_at_the_very_end() {
        let exact = exact("^", Flags { multi_line: true, ..Flags::default() });
        let starts = |text: &[u8], start| exact.find(text, start, false, 0).map(|slots| slots[0].unwrap());
        assert_eq!(starts(b"", 0), Some(0));
        assert_eq!(starts(b"a\nb", 1), Some(2));
        assert_eq!(starts(b"a\n", 1), None);
    }

    #[test]
    fn a_pattern_that_repeats_too_much_has_none() {
        let pattern =
            pattern::parse("(?:a{1000}){1000}", Flags::default(), None).map_err(|error| error.message).unwrap();
        assert!(Exact::new(&pattern.node, 0).is_none());
    }
}
