//! What happens to a job's data between fetch and send: decrypt, data_callback, encrypt.
//!
//! | decrypt | data_callback | encrypt | what is sent |
//! | --- | --- | --- | --- |
//! | - | - | - | the data as it came, byte for byte |
//! | yes | - | yes | decrypted, encrypted again |
//! | yes | any | - | with a callback: base64 of the changed text; without: the plain text |
//! | - | yes | - | base64-decoded, changed, base64-encoded |
//! | - | yes | yes | base64-decoded, changed, encrypted |
//! | - | - | yes | encrypted as it came |
//!
//! `uniq_callback` changes a copy of the readable text and nothing of what is sent.

pub mod base64;
pub mod cipher;
pub mod substitution;

use std::fmt;
use std::mem;

use cipher::Cipher;
use substitution::{Groups, Substitution};

/// A longer unique id is stored cut by gearmand and confuses its answers, bytes.
const MAX_UNIQUE: usize = 63;

/// Buffers that grew beyond this for a large job are given back at the next, bytes.
const MAX_KEPT: usize = 1 << 20;

/// Matches of one substitution that [`Stages::explain`] shows.
const MAX_MATCHED: usize = 10;

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
pub struct Scratch {
    /// The readable text, then whatever became of it.
    text: Vec<u8>,
    /// What the next step makes of the text.
    other: Vec<u8>,
    unique: Vec<u8>,
    groups: Groups,
}

impl Scratch {
    /// Gives back what a large job left behind. [`Stages::apply`] does so too, at the next job.
    pub fn trim(&mut self) {
        for buffer in [&mut self.text, &mut self.other, &mut self.unique] {
            if buffer.capacity() > MAX_KEPT {
                *buffer = Vec::new();
            }
        }
    }
}

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
pub enum Undeliverable {
    /// Something else than base64 and white space, or padding that is missing or wrong.
    NotBase64,
    /// The encrypted data's length is no multiple of the cipher's block.
    BrokenBlock,
    /// The decrypted text neither begins like one of Mod-Gearman's nor is free of control characters.
    WrongPassword,
}

impl fmt::Display for Undeliverable {
    /// In the status, too: printable ASCII without `|`, `'` and brackets, 80 bytes at most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undeliverable::NotBase64 => "data is no base64",
            Undeliverable::BrokenBlock => "encrypted data is no multiple of 16 bytes, cut or not encrypted",
            Undeliverable::WrongPassword => "decrypted data is no text, probably another password",
        })
    }
}

impl std::error::Error for Undeliverable {}

/// One step of [`Stages::explain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOutcome {
    /// `base64-decode`, `decrypt`, `uniq_callback`, `data_callback`, `encrypt`, `base64-encode`.
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
    /// What it matched: the first ten.
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

/// What is told of each step while it runs.
trait Watch {
    fn begin(&mut self, _stage: &'static str, _substitution: Option<&Substitution>) {}
    fn matched(&mut self, _text: &[u8]) {}
    fn end(&mut self, _outcome: &[u8]) {}
}

/// Nobody watches.
impl Watch for () {}

/// The steps so far; the last one's outcome is preliminary until it ended.
#[derive(Default)]
struct Steps {
    steps: Vec<StageOutcome>,
    running: bool,
}

impl Watch for Steps {
    fn begin(&mut self, stage: &'static str, substitution: Option<&Substitution>) {
        let substitution = substitution.map(|substitution| SubstitutionOutcome {
            text: substitution.to_string(),
            matches: 0,
            matched: Vec::new(),
        });
        self.steps.push(StageOutcome { stage, substitution, outcome: Ok(Vec::new()) });
        self.running = true;
    }

    fn matched(&mut self, text: &[u8]) {
        if let Some(substitution) = self.steps.last_mut().and_then(|step| step.substitution.as_mut()) {
            substitution.matches += 1;
            if substitution.matched.len() < MAX_MATCHED {
                substitution.matched.push(text.to_vec());
            }
        }
    }

    fn end(&mut self, outcome: &[u8]) {
        if let Some(step) = self.steps.last_mut() {
            step.outcome = Ok(outcome.to_vec());
        }
        self.running = false;
    }
}

impl Stages {
    /// Whether data passes byte for byte and nothing is read from it.
    pub fn is_identity(&self) -> bool {
        self.decrypt.is_none()
            && self.encrypt.is_none()
            && self.data_callbacks.is_empty()
            && self.uniq_callbacks.is_empty()
    }

    /// Runs the stages on one job's data.
    ///
    /// # Errors
    /// The data is not what the stages need: see [`Undeliverable`].
    pub fn apply<'a>(&'a self, data: &'a [u8], scratch: &'a mut Scratch) -> Result<Staged<'a>, Undeliverable> {
        self.run(data, scratch, &mut ())
    }

    /// Runs the stages on one job's data as [`Stages::apply`] does, and tells every step.
    pub fn explain(&self, data: &[u8]) -> Explanation {
        let mut scratch = Scratch::default();
        let mut watch = Steps::default();
        let staged = self.run(data, &mut scratch, &mut watch);
        let Steps { mut steps, running } = watch;
        if let (Err(error), true, Some(step)) = (&staged, running, steps.last_mut()) {
            step.outcome = Err(*error);
        }
        match staged {
            Ok(Staged { data, unique, warning }) => {
                Explanation { steps, sent: Ok(data.to_vec()), unique: unique.map(<[u8]>::to_vec), warning }
            }
            Err(error) => Explanation { steps, sent: Err(error), unique: None, warning: None },
        }
    }

    fn run<'a>(
        &self,
        data: &'a [u8],
        scratch: &'a mut Scratch,
        watch: &mut impl Watch,
    ) -> Result<Staged<'a>, Undeliverable> {
        scratch.trim();
        let Scratch { text, other, unique, groups } = scratch;
        let changes = !self.data_callbacks.is_empty();
        if self.decrypt.is_some() || changes || !self.uniq_callbacks.is_empty() {
            self.read(data, text, other, watch)?;
        }

        let warning = match substitute_copy(&self.uniq_callbacks, text, unique, other, groups, watch) {
            false => {
                unique.clear();
                None
            }
            true if unique.len() > MAX_UNIQUE => Some("uniq_callback made an id of more than 63 bytes"),
            true if unique.contains(&0) => Some("uniq_callback made an id with a NUL"),
            true => None,
        };
        let unique = (warning.is_none() && !unique.is_empty()).then_some(unique.as_slice());

        for substitution in &self.data_callbacks {
            watch.begin("data_callback", Some(substitution));
            if substitution.apply(text, other, groups, |matched| watch.matched(matched)) > 0 {
                mem::swap(text, other);
            }
            watch.end(text);
        }

        if let Some(cipher) = &self.encrypt {
            if self.decrypt.is_none() && !changes {
                text.clear();
                text.extend_from_slice(data);
            }
            watch.begin("encrypt", None);
            cipher.encrypt(text);
            watch.end(text);
        } else if !changes {
            let data = if self.decrypt.is_some() { text.as_slice() } else { data };
            return Ok(Staged { data, unique, warning });
        }
        watch.begin("base64-encode", None);
        base64::encode(text, other);
        watch.end(other);
        Ok(Staged { data: other, unique, warning })
    }

    /// Makes the readable text of a job's data.
    fn read(
        &self,
        data: &[u8],
        text: &mut Vec<u8>,
        other: &mut Vec<u8>,
        watch: &mut impl Watch,
    ) -> Result<(), Undeliverable> {
        watch.begin("base64-decode", None);
        base64::decode(data, text, other).map_err(|base64::NotBase64| Undeliverable::NotBase64)?;
        watch.end(text);
        if let Some(cipher) = &self.decrypt {
            watch.begin("decrypt", None);
            cipher.decrypt(text).map_err(|cipher::BrokenBlock| Undeliverable::BrokenBlock)?;
            if !is_plausible(text) {
                return Err(Undeliverable::WrongPassword);
            }
            watch.end(text);
        }
        Ok(())
    }
}

/// Applies `uniq_callback` to a copy of the text, which comes to stand in `unique`; false when nothing matched.
fn substitute_copy(
    substitutions: &[Substitution],
    text: &[u8],
    unique: &mut Vec<u8>,
    other: &mut Vec<u8>,
    groups: &mut Groups,
    watch: &mut impl Watch,
) -> bool {
    let mut changed = false;
    for substitution in substitutions {
        watch.begin("uniq_callback", Some(substitution));
        let current = if changed { unique.as_slice() } else { text };
        if substitution.apply(current, other, groups, |matched| watch.matched(matched)) > 0 {
            mem::swap(unique, other);
            changed = true;
        }
        watch.end(if changed { unique } else { text });
    }
    changed
}

/// Whether a decrypted text begins like one of Mod-Gearman's (`host_name=`, `DATATYPE::`) or has no control characters
/// but tabs and line ends. AES-ECB by itself can't tell a wrong password.
fn is_plausible(text: &[u8]) -> bool {
    let name = text.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'_').count();
    let rest = text.get(name..).unwrap_or_default();
    name > 0 && (rest.starts_with(b"=") || rest.starts_with(b"::"))
        || text.iter().all(|byte| !byte.is_ascii_control() || matches!(byte, b'\t' | b'\n' | b'\r'))
}
