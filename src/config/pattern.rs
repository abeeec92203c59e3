//! Patterns: of files, and of queues that are found at run time.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use regex::Regex;

use super::address::{Address, Server, check_queue};
use super::{Config, ForwardConfig};

/// More queues than this are not relayed by one pattern: each is a forward with threads and connections, and the names
/// come from outside.
const MAX_FOUND: usize = 1000;

/// A pattern as the shell's: `*` is any text, `?` one character.
#[derive(Debug, Clone)]
pub struct Glob {
    text: String,
    regex: Regex,
}

impl Glob {
    /// With `classes`, `[a-z]` is one of these characters and `[!a-z]` is another. None if there is no such pattern.
    pub(super) fn new(text: &str, classes: bool) -> Option<Glob> {
        let literal = |text: &str| regex::escape(text).replace(r"\*", ".*").replace(r"\?", ".");
        let mut regex = String::from("(?s)^");
        let mut rest = text;
        while let Some((before, class)) = rest.split_once('[').filter(|_| classes) {
            let (not, members) = class.strip_prefix(['!', '^']).map_or(("", class), |members| ("^", members));
            // A bracket that comes first in its class is a member.
            let Some((end, _)) = members.char_indices().skip(1).find(|(_, c)| *c == ']') else { break };
            let (members, behind) = members.split_at(end);
            regex += &format!("{}[{not}{}]", literal(before), regex::escape(members).replace(r"\-", "-"));
            rest = behind.strip_prefix(']')?;
        }
        regex += &(literal(rest) + "$");
        Some(Glob { text: text.to_owned(), regex: Regex::new(&regex).ok()? })
    }

    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// Whether a name could match both. Of patterns without classes.
    pub(super) fn intersects(&self, other: &Glob) -> bool {
        let (a, b): (Vec<char>, Vec<char>) = (self.text.chars().collect(), other.text.chars().collect());
        // Whether what is left of `a` behind a row and of `b` behind a column has a name in common, from the end on.
        let mut below = Vec::new();
        for i in (0..=a.len()).rev() {
            let mut row = vec![false; b.len() + 1];
            for j in (0..=b.len()).rev() {
                let right = j < b.len() && row[j + 1];
                let down = i < a.len() && below[j];
                row[j] = match (a.get(i), b.get(j)) {
                    (None, None) => true,
                    (Some('*'), _) | (_, Some('*')) => right || down,
                    (Some(x), Some(y)) => (x == y || *x == '?' || *y == '?') && below[j + 1],
                    _ => false,
                };
            }
            below = row;
        }
        below[0]
    }
}

/// A forward for each queue of a server whose name matches: `$local/hostgroup_* = $remote/`.
#[derive(Debug, Clone)]
pub struct QueuePattern {
    pub server: Server,
    pub pattern: Glob,
    /// The pattern stands in its source; a destination without a queue keeps the name.
    pub template: ForwardConfig,
    /// What other forwards take from, the status queue and reject queues, canonical.
    pub(super) excluded: Arc<HashSet<Address>>,
}

impl QueuePattern {
    /// The forward for a queue of this server; none if the name does not match, or is excluded.
    pub fn forward_for(&self, queue: &str) -> Option<ForwardConfig> {
        let is_excluded = || self.excluded.contains(&self.template.source.with_queue(queue).canonical());
        let taken = self.pattern.matches(queue) && check_queue(queue).is_ok() && !is_excluded();
        taken.then(|| self.template.named(queue))
    }
}

impl ForwardConfig {
    /// With this queue as its source, and in the destinations that keep the name.
    pub(super) fn named(&self, queue: &str) -> ForwardConfig {
        let keep = |address: &Address| {
            if address.queue.is_empty() { address.with_queue(queue) } else { address.clone() }
        };
        let destinations = self.destinations.iter().map(keep).collect();
        ForwardConfig { source: self.source.with_queue(queue), destinations, ..self.clone() }
    }
}

/// The forwards that patterns make of a server's queues.
#[derive(Debug, Default)]
pub struct Found {
    /// Each queue once, by the first pattern that takes it.
    pub forwards: Vec<ForwardConfig>,
    /// Patterns that match more than [`MAX_FOUND`] queues, of which the first by name are relayed. For the status, too:
    /// no brackets or quotes.
    pub errors: Vec<String>,
}

impl Config {
    /// The forwards that patterns make of the queues that a server names. Explicit forwards win; the status queue and
    /// reject queues never match.
    pub fn found_forwards<'q>(&self, server: &Server, queues: impl Iterator<Item = &'q str>) -> Found {
        let mut left: BTreeSet<&str> = queues.collect();
        let mut found = Found::default();
        let here = server.canonical();
        for pattern in self.patterns.iter().filter(|pattern| pattern.server.canonical() == here) {
            let forwards: Vec<ForwardConfig> = left.iter().filter_map(|queue| pattern.forward_for(queue)).collect();
            left.retain(|queue| !pattern.pattern.matches(queue));
            // With its server written otherwise, it takes these queues when that is asked.
            if pattern.server != *server {
                continue;
            }
            if forwards.len() > MAX_FOUND {
                let (count, line) = (forwards.len(), pattern.template.place.line);
                found.errors.push(format!("{count} queues match the pattern in line {line}, relaying {MAX_FOUND}"));
            }
            found.forwards.extend(forwards.into_iter().take(MAX_FOUND));
        }
        found
    }

    /// The forward that takes from this queue, or that a pattern would make for it.
    pub fn forward_from(&self, source: &Address) -> Option<ForwardConfig> {
        let explicit = self.forwards.iter().find(|forward| forward.source == *source).cloned();
        let of_server = self.patterns.iter().filter(|pattern| pattern.server == source.server);
        explicit.or_else(|| of_server.filter_map(|pattern| pattern.forward_for(&source.queue)).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(pattern: &str, name: &str) -> bool {
        Glob::new(pattern, true).unwrap().matches(name)
    }

    #[test]
    fn globs_match_as_in_the_shell() {
        for (pattern, name) in [
            ("*.conf", "a.conf"),
            ("*", ""),
            ("*", "a\nb"),
            ("a*b*c", "a-b-b-c"),
            ("?.cfg", "ü.cfg"),
            ("[abc].cfg", "b.cfg"),
            ("[a-c][!a-c]", "bd"),
            ("[^x]", "y"),
            ("[]]", "]"),
            ("[a-]", "-"),
            ("a[", "a["),
            ("[&~]", "~"),
            ("[0-9]*", "10-local.conf"),
        ] {
            assert!(glob(pattern, name), "{pattern} should match {name}");
        }
        for (pattern, name) in [
            ("*.conf", "a.cfg"),
            ("?", ""),
            ("?", "ab"),
            ("[abc]", "d"),
            ("[!abc]", "a"),
            ("[a-c]", "-"),
            ("a*b", "abc"),
            ("[ab", "a"),
            ("a.b", "axb"),
            ("", "a"),
        ] {
            assert!(!glob(pattern, name), "{pattern} should not match {name}");
        }
        assert!(Glob::new("[a]", false).unwrap().matches("[a]"));
        assert!(Glob::new("[z-a]", true).is_none());
    }

    #[test]
    fn patterns_intersect_if_a_name_matches_both() {
        let intersects = |a: &str, b: &str| {
            let (a, b) = (Glob::new(a, false).unwrap(), Glob::new(b, false).unwrap());
            assert_eq!(a.intersects(&b), b.intersects(&a));
            a.intersects(&b)
        };
        for (a, b) in [("*", "*"), ("a*", "*b"), ("a*", "a"), ("?", "x"), ("a?c", "*b*"), ("**", ""), ("a*c*", "*b?c")]
        {
            assert!(intersects(a, b), "{a} {b}");
        }
        for (a, b) in [("a*", "b*"), ("*a", "*b"), ("?", ""), ("??", "a"), ("a*a", "a"), ("host_*", "service_*")] {
            assert!(!intersects(a, b), "{a} {b}");
        }
    }
}
