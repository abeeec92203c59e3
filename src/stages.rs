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
//! `uniq_callback` changes a copy of the readable text and nothing of what is sent; `max_age` reads a time in it.

pub mod base64;
pub mod bounds;
pub mod cipher;
pub mod substitution;

use std::fmt;
use std::mem;

pub use bounds::{CPU_LIMIT, Failure, Limits};

use bounds::Bounds;
use cipher::Cipher;
use substitution::{Groups, Substitution};

/// A longer unique id is stored cut by gearmand and confuses its answers, bytes.
const MAX_UNIQUE: usize = 63;

/// Matches of one substitution that a [`Step`] keeps.
const MAX_MATCHED: usize = 10;

/// Buffers that grew beyond this for a large job are given back at the next, bytes.
const MAX_KEPT: usize = 1 << 20;

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
    /// Whether the time of the job is wanted, as `max_age` does.
    pub reads_time: bool,
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
    /// Bytes that it holds, about.
    pub fn capacity(&self) -> usize {
        self.text.capacity() + self.other.capacity() + self.unique.capacity() + self.groups.capacity()
    }

    /// Gives back what a large job left behind: to be called once its outcome is used. [`Stages::apply`] does so, too.
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
    /// With [`Stages::reads_time`]: when the check was scheduled or its result came, milliseconds since 1970. None where
    /// the text doesn't tell, or can't be read.
    pub time: Option<u64>,
}

/// Why a job's data can't be delivered. Never holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeliverable {
    /// Something else than base64 and white space, or padding that is missing or wrong.
    NotBase64,
    /// The encrypted data's length is not a multiple of the cipher's block.
    BrokenBlock,
    /// The decrypted text neither begins like one of Mod-Gearman's nor is free of control characters.
    WrongPassword,
    /// What would be sent is larger than `max_job_size`, or a text on the way to it.
    OutcomeTooLarge,
    /// Substitutions took more than [`Limits::cpu`].
    TooMuchWork,
    /// The system has no memory for what the stages make of the job.
    NoMemory,
}

impl fmt::Display for Undeliverable {
    /// In the status, too: printable ASCII without `|`, `'` and brackets, 80 bytes at most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undeliverable::NotBase64 => "data is not base64",
            Undeliverable::BrokenBlock => "encrypted data is not a multiple of 16 bytes: cut or not encrypted",
            Undeliverable::WrongPassword => "decrypted data is not text, probably another password",
            Undeliverable::OutcomeTooLarge => "the stages make the data larger than max_job_size",
            Undeliverable::TooMuchWork => "substitutions take more CPU time than a job may have",
            Undeliverable::NoMemory => "not enough memory for what the stages make of the data",
        })
    }
}

/// What one step does to a job, for `--try`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// `base64-decode`, `decrypt`, `uniq_callback`, `data_callback`, `encrypt`, `base64-encode`.
    pub stage: &'static str,
    /// Of a callback.
    pub substitution: Option<Substitution>,
    /// Whether its guard kept it from being applied.
    pub kept_off: bool,
    /// How often its pattern matched.
    pub matches: usize,
    /// What it matched: the first ten.
    pub matched: Vec<Vec<u8>>,
    /// What the data (for `uniq_callback` its copy) was after this step; none if it went no further.
    pub outcome: Option<Vec<u8>>,
}

impl Stages {
    /// Whether data passes byte for byte and nothing is read from it.
    pub fn is_identity(&self) -> bool {
        let Stages { decrypt, data_callbacks, uniq_callbacks, encrypt, reads_time } = self;
        let callbacks = data_callbacks.len() + uniq_callbacks.len();
        decrypt.is_none() && callbacks == 0 && encrypt.is_none() && !reads_time
    }

    /// Runs the stages on one job's data.
    ///
    /// # Errors
    /// The data is not what the stages need, or becomes more than the limits allow; or the forward stops.
    pub fn apply<'a>(
        &'a self,
        data: &'a [u8],
        scratch: &'a mut Scratch,
        limits: &Limits<'_>,
    ) -> Result<Staged<'a>, Failure> {
        self.explain(data, scratch, limits, None)
    }

    /// As [`Stages::apply`]; tells the steps, too, in their order; none when the data passes as it came.
    ///
    /// # Errors
    /// As there. The last step is the one that failed.
    pub fn explain<'a>(
        &self,
        data: &'a [u8],
        scratch: &'a mut Scratch,
        limits: &Limits<'_>,
        steps: Option<&mut Vec<Step>>,
    ) -> Result<Staged<'a>, Failure> {
        if self.is_identity() {
            return Ok(Staged { data, unique: None, warning: None, time: None });
        }
        scratch.trim();
        let Scratch { text, other, unique, groups } = scratch;
        let changes = !self.data_callbacks.is_empty();
        let encodes = changes || self.encrypt.is_some();
        let max_text = if encodes { limits.max_size / 4 * 3 } else { limits.max_size };
        let mut work = Work { bounds: Bounds::new(limits, max_text), other, groups, steps };
        if self.decrypt.is_some() || changes || !self.uniq_callbacks.is_empty() {
            self.read(data, text, &mut work)?;
        } else if self.reads_time && base64::decode(data, text, work.other).is_err() {
            text.clear();
        }
        let time = if self.reads_time { job_time(text) } else { None };

        unique.clear();
        if !self.uniq_callbacks.is_empty() {
            work.bounds.append(unique, text)?;
            if !work.substitute("uniq_callback", &self.uniq_callbacks, unique)? {
                unique.clear();
            }
        }
        let (unique, warning) = match unique.as_slice() {
            id if id.len() > MAX_UNIQUE => (None, Some("uniq_callback made an id of more than 63 bytes")),
            id if id.contains(&0) => (None, Some("uniq_callback made an id with a NUL")),
            id => ((!id.is_empty()).then_some(id), None),
        };
        work.substitute("data_callback", &self.data_callbacks, text)?;

        if !encodes {
            let data = if self.decrypt.is_some() { text.as_slice() } else { data };
            return Ok(Staged { data, unique, warning, time });
        }
        if !changes && self.decrypt.is_none() {
            text.clear();
            work.bounds.append(text, data)?;
        }
        if let Some(cipher) = &self.encrypt {
            work.begin("encrypt");
            cipher.encrypt(text)?;
            work.end(text);
        }
        work.bounds.check_size(text.len())?;
        work.begin("base64-encode");
        base64::encode(text, work.other)?;
        let Work { other, steps, .. } = work;
        end(steps, other);
        Ok(Staged { data: other, unique, warning, time })
    }

    /// Makes the readable text of a job's data.
    fn read(&self, data: &[u8], text: &mut Vec<u8>, work: &mut Work<'_, '_>) -> Result<(), Undeliverable> {
        work.begin("base64-decode");
        base64::decode(data, text, work.other)?;
        work.end(text);
        if let Some(cipher) = &self.decrypt {
            work.begin("decrypt");
            cipher.decrypt(text)?;
            if !is_plausible(text) {
                return Err(Undeliverable::WrongPassword);
            }
            work.end(text);
        }
        Ok(())
    }
}

/// What the steps of one job share.
struct Work<'w, 's> {
    bounds: Bounds<'w>,
    other: &'s mut Vec<u8>,
    groups: &'w mut Groups,
    /// If they are wanted.
    steps: Option<&'w mut Vec<Step>>,
}

impl Work<'_, '_> {
    fn begin(&mut self, stage: &'static str) {
        if let Some(steps) = &mut self.steps {
            steps.push(Step { stage, ..Step::default() });
        }
    }

    fn end(&mut self, outcome: &[u8]) {
        end(self.steps.as_deref_mut(), outcome);
    }

    /// Applies substitutions to a text, in order, where their guards allow it. Whether anything matched.
    fn substitute(
        &mut self,
        stage: &'static str,
        substitutions: &[Substitution],
        text: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        let mut is_changed = false;
        for substitution in substitutions {
            let applies = substitution.applies_to(text);
            self.begin(stage);
            let mut step = self.steps.as_mut().and_then(|steps| steps.last_mut());
            if let Some(step) = &mut step {
                (step.substitution, step.kept_off) = (Some(substitution.clone()), !applies);
            }
            let matched = |text: &[u8]| {
                if let Some(step) = &mut step {
                    step.matches += 1;
                    step.matched.extend((step.matches <= MAX_MATCHED).then(|| text.to_vec()));
                }
            };
            if applies && substitution.apply(text, self.other, self.groups, &mut self.bounds, matched)? > 0 {
                mem::swap(text, self.other);
                is_changed = true;
            }
            self.end(text);
        }
        Ok(is_changed)
    }
}

fn end(steps: Option<&mut Vec<Step>>, outcome: &[u8]) {
    if let Some(step) = steps.and_then(|steps| steps.last_mut()) {
        step.outcome = Some(outcome.to_vec());
    }
}

/// When a Mod-Gearman check was scheduled or a result came, milliseconds since 1970: `core_time=` of a check,
/// `finish_time=`, else `start_time=` of a result. None where the text does not tell.
pub fn job_time(text: &[u8]) -> Option<u64> {
    let is_result = text.starts_with(b"host_name=") || text.starts_with(b"type=passive");
    let names: &[&[u8]] = match is_result {
        true => &[b"finish_time=", b"start_time="],
        false if text.starts_with(b"type=") => &[b"core_time="],
        false => &[b"core_time=", b"finish_time=", b"start_time="],
    };
    let value = |name: &&[u8]| text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(*name));
    names.iter().filter_map(value).find_map(milliseconds)
}

/// Of a number of seconds; none of 0, which stands for a time that was not set.
fn milliseconds(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if seconds.is_empty() || !seconds.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{fraction:0<3}").get(..3)?.parse::<u64>().ok()?;
    let time = seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(thousandths)?;
    (time > 0).then_some(time)
}

/// Whether a decrypted text begins like one of Mod-Gearman's (`host_name=`, `DATATYPE::`) or has no control characters
/// but tabs and line ends. AES-ECB by itself can't tell a wrong password.
fn is_plausible(text: &[u8]) -> bool {
    let name = text.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'_').count();
    let rest = text.get(name..).unwrap_or_default();
    name > 0 && (rest.starts_with(b"=") || rest.starts_with(b"::"))
        || text.iter().all(|byte| !byte.is_ascii_control() || matches!(byte, b'\t' | b'\n' | b'\r'))
}
