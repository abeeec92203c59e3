//! What is wrong with a text of the configuration or the command line.

use std::fmt;

/// Why a text can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// What is wrong and, where that is known, what would be right; several lines where they point into the text.
    pub message: String,
    /// The spot: bytes from the beginning of the text, always between two characters.
    pub offset: usize,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

pub(crate) fn fail<T>(offset: usize, message: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError { message: message.into(), offset })
}

/// Moves an error of a part to its spot in the whole.
pub(crate) fn behind(offset: usize) -> impl Fn(SyntaxError) -> SyntaxError {
    move |error| SyntaxError { offset: offset + error.offset, ..error }
}
