//! What is wrong in a configuration, and where.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A line of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named or found.
    pub file: Arc<PathBuf>,
    /// Counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    /// `FILE:LINE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One thing that is wrong in a configuration.
#[derive(Debug, Clone)]
pub struct ConfigError {}
