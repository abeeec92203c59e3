//! `s/PATTERN/REPLACEMENT/FLAGS` as Perl reads it, on bytes.

use std::fmt;

/// A compiled substitution.
#[derive(Debug, Clone)]
pub struct Substitution {
    text: String,
}

/// What is wrong with a substitution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutionError {
    /// What is wrong and, where that is known, what would be right; several lines where the regex crate points into
    /// the pattern.
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

impl Substitution {
    /// Reads a substitution.
    ///
    /// # Errors
    /// It is none, or its pattern can't be matched exactly as Perl would.
    pub fn parse(text: &str) -> Result<Substitution, SubstitutionError> {
        Ok(Substitution { text: text.to_owned() })
    }
}

impl PartialEq for Substitution {
    /// By the text as written.
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Substitution {}

impl fmt::Display for Substitution {
    /// As written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
