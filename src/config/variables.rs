//! `$name`, `${name}` and `$$`.

use std::collections::HashMap;

use crate::syntax::{SyntaxError, fail};

/// No value gets longer than this, bytes: a variable doubled in line after line would fill the memory.
const MAX_SIZE: usize = 64 << 10;

/// What a variable's name is made of.
pub(super) const NAME: &str = "letters, digits and `_`, not a digit first";

/// The variables set so far, over the environment.
pub(super) struct Variables {
    /// None for one whose definition is wrong: that was reported, its use need not be.
    set: HashMap<String, Option<String>>,
    environment: fn(&str) -> Option<String>,
}

impl Default for Variables {
    fn default() -> Variables {
        Variables { set: HashMap::new(), environment: |name| std::env::var(name).ok() }
    }
}

impl Variables {
    /// Sets a variable, again or for the first time; None if its value is wrong.
    pub(super) fn set(&mut self, name: &str, value: Option<String>) {
        self.set.insert(name.to_owned(), value);
    }

    /// Whether this text is nothing but a variable that is set.
    pub(super) fn is_variable(&self, text: &str) -> bool {
        let name = text.strip_prefix('$').map(|name| name.trim_start_matches('{').trim_end_matches('}'));
        name.is_some_and(|name| self.set.contains_key(name))
    }

    /// # Errors
    /// What is wrong; none if that is the definition of a variable, which was reported.
    pub(super) fn expand(&self, text: &str) -> Result<String, Option<SyntaxError>> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            let wrong = |message: String| fail(text.len() - after.len() - 1, message).map_err(Some);
            let (name, behind) = match after.strip_prefix('{').map(|braced| braced.split_once('}')) {
                Some(Some(parts)) => parts,
                Some(None) => return wrong("the brace is not closed: ${name}".to_owned()),
                None if after.starts_with('$') => after.split_at(1),
                None => after.split_at(leading_name(after).len()),
            };
            let environment = || (self.environment)(name).map(Some);
            let value = match self.set.get(name).cloned().or_else(environment) {
                _ if name == "$" => "$".to_owned(),
                _ if !is_name(name) => {
                    wrong(format!("a variable's name should follow the `$`, {NAME}; write `$$` for a `$` itself"))?
                }
                Some(value) => value.ok_or(None)?,
                None => wrong(format!(
                    "the variable ${name} is not set, neither above nor in the environment: set it with `${name} = ...`"
                ))?,
            };
            expanded.extend([before, &value]);
            if expanded.len() > MAX_SIZE {
                return wrong(format!("with this variable the value has more than {} KiB", MAX_SIZE >> 10));
            }
            rest = behind;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }
}

/// Where a spot of the expanded text stood in the text as written: exact before the first and behind the last variable,
/// else at the first variable.
pub(super) fn original(written: &str, expanded: &str, offset: usize) -> usize {
    let same = |(a, b): &(u8, u8)| a == b;
    let before = written.bytes().zip(expanded.bytes()).take_while(same).count();
    let behind = written.bytes().rev().zip(expanded.bytes().rev()).take_while(same).count();
    match expanded.len().saturating_sub(offset) {
        _ if offset <= before => offset,
        from_end if from_end <= behind => written.len().saturating_sub(from_end),
        _ => before,
    }
}

/// Whether a variable can be called so.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && leading_name(text) == text
}

fn leading_name(text: &str) -> &str {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let name = text.strip_suffix(rest).unwrap_or(text);
    if name.starts_with(|c: char| c.is_ascii_digit()) { "" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        let environment = |name: &str| (name == "ENV").then(|| "environment".to_owned());
        let mut variables = Variables { set: HashMap::new(), environment };
        variables.set("a", Some("1.2.3.4".to_owned()));
        variables.set("_b2", Some(String::new()));
        variables.set("broken", None);
        variables
    }

    fn expand(text: &str) -> String {
        variables().expand(text).unwrap()
    }

    #[test]
    fn variables_braces_dollars_and_the_environment() {
        assert_eq!(expand("$a:4730/x"), "1.2.3.4:4730/x");
        assert_eq!(expand("${a}b$_b2."), "1.2.3.4b.");
        assert_eq!(expand("$$a$$$$$a"), "$a$$1.2.3.4");
        assert_eq!(expand("$ENV"), "environment");
        assert_eq!(expand("ü$a"), "ü1.2.3.4");
        assert_eq!(expand(""), "");
    }

    #[test]
    fn what_cannot_be_expanded_is_pointed_at() {
        for (text, at) in [("x$nope", 1), ("$a$", 2), ("$a ${", 3), ("${}", 0), ("${a b}", 0), ("$1", 0), ("$ü", 0)] {
            match variables().expand(text) {
                Err(Some(SyntaxError { offset, .. })) => assert_eq!(offset, at, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(variables().expand("$broken"), Err(None));
    }

    #[test]
    fn a_value_that_doubles_has_an_end() {
        let mut variables = variables();
        let mut count = 0;
        while let Ok(expanded) = variables.expand("$a$a") {
            variables.set("a", Some(expanded));
            count += 1;
        }
        assert_eq!(count, 13);
    }

    #[test]
    fn values_are_not_expanded_again() {
        let mut variables = variables();
        variables.set("literal", Some("$a".to_owned()));
        assert_eq!(variables.expand("$literal").unwrap(), "$a");
    }

    #[test]
    fn a_spot_is_found_again_in_the_text_as_written() {
        let (written, expanded) = ("x$a:99${a}y", "x1.2.3.4:991.2.3.4y");
        assert_eq!(expand(written), expanded);
        for (offset, at) in [(0, 0), (1, 1), (7, 1), (9, 1), (18, 10), (19, 11)] {
            assert_eq!(original(written, expanded, offset), at, "{offset}");
        }
        assert_eq!(original("", "", 0), 0);
    }
}
