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

/// One step of [`Stages::explain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOutcome {
    /// `decrypt`, `base64-decode`, `uniq_callback`, `data_callback`, `base64-encode`, `encrypt`.
    pub stage: &'static str,
    /// For a callback: what its substitution did.
    pub substitution: Option<SubstitutionOutcome>,
    /// What the data (for `uniq_callback` its copy) was after this step, or why it went no further.
    pub outcome: Result<Vec<u8>, Undeliverable>,
}

/// What one substitution of a callback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutionOutcome {
    /// The substitution as written.
    pub text: String,
    /// How often its pattern matched.
    pub matches: usize,
    /// What it matched: the first few.
    pub matched: Vec<Vec<u8>>,
}

/// What [`Stages::explain`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// In order; empty when the data passes as it came.
    pub steps: Vec<StageOutcome>,
    /// What would be sent, or why nothing would.
    pub sent: Result<Vec<u8>, Undeliverable>,
    /// The unique id from `uniq_callback`, as [`Staged::unique`].
    pub unique: Option<Vec<u8>>,
    /// As [`Staged::warning`].
    pub warning: Option<&'static str>,
}

impl Stages {
    /// Whether data passes byte for byte and nothing is read from it.
    pub fn is_identity(&self) -> bool {
        *self == Stages::default()
    }

    /// Runs the stages on one job's data as [`Stages::apply`] does, and tells every step.
    pub fn explain(&self, data: &[u8]) -> Explanation {
        Explanation { steps: Vec::new(), sent: Ok(data.to_vec()), unique: None, warning: None }
    }

    /// Runs the stages on one job's data.
    ///
    /// # Errors
    /// The data is not what the stages need: see [`Undeliverable`].
    pub fn apply<'a>(&'a self, data: &'a [u8], scratch: &'a mut Scratch) -> Result<Staged<'a>, Undeliverable> {
        let _ = scratch;
        Ok(Staged { data, unique: None, warning: None })
    }
}
