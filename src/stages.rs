//! What happens to a job's data between fetch and send: decrypt, data_callback, encrypt.

pub mod cipher;
pub mod substitution;

use cipher::Cipher;
use substitution::Substitution;

/// The stages of one forward; by default none, and the data passes byte for byte.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stages {
    /// With the source's password.
    pub decrypt: Option<Cipher>,
    /// Applied in order to the readable text.
    pub data_callbacks: Vec<Substitution>,
    /// Applied in order to a copy of the readable text; the outcome is the job's unique id.
    pub uniq_callbacks: Vec<Substitution>,
    /// With the destination's password.
    pub encrypt: Option<Cipher>,
}

/// Buffers that one submitter keeps between jobs, so that stages don't allocate for each.
#[derive(Debug, Default)]
pub struct Scratch {}

/// What a job has become.
#[derive(Debug, PartialEq)]
pub struct Staged<'a> {
    /// What is sent to the destination.
    pub data: &'a [u8],
    /// The unique id that `uniq_callback` gave it, 1 to 63 bytes without a NUL; none where the job keeps the id it
    /// would have without the option.
    pub unique: Option<&'a [u8]>,
    /// Why the outcome of `uniq_callback` could not be used, for the log.
    pub warning: Option<&'static str>,
}

/// Why a job's data can't be delivered. Never holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeliverable {}

impl Stages {
    /// Runs the stages on one job's data.
    ///
    /// # Errors
    /// The data is not what the stages need: see [`Undeliverable`].
    pub fn apply<'a>(&'a self, data: &'a [u8], scratch: &'a mut Scratch) -> Result<Staged<'a>, Undeliverable> {
        let _ = scratch;
        Ok(Staged { data, unique: None, warning: None })
    }
}
