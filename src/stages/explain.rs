//! What each stage does to a job, for `--try`.

use super::substitution::Substitution;
use super::{Failure, Limits, Scratch, Stages, Watch};

/// Matches of one substitution that are kept.
const MAX_MATCHED: usize = 10;

/// One step of [`Stages::explain`].
#[derive(Debug, Clone, PartialEq)]
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

/// What [`Stages::explain`] tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// In order; empty when the data passes as it came.
    pub steps: Vec<Step>,
    /// What would be sent, or why nothing would.
    pub sent: Result<Vec<u8>, Failure>,
    /// The unique id from `uniq_callback`.
    pub unique: Option<Vec<u8>>,
    /// Why that could not be used.
    pub warning: Option<&'static str>,
    /// The time of the job, milliseconds since 1970.
    pub time: Option<u64>,
}

impl Watch for Vec<Step> {
    fn begin(&mut self, stage: &'static str, substitution: Option<&Substitution>, kept_off: bool) {
        let substitution = substitution.cloned();
        self.push(Step { stage, substitution, kept_off, matches: 0, matched: Vec::new(), outcome: None });
    }

    fn matched(&mut self, text: &[u8]) {
        if let Some(step) = self.last_mut() {
            step.matches += 1;
            if step.matched.len() < MAX_MATCHED {
                step.matched.push(text.to_vec());
            }
        }
    }

    fn end(&mut self, outcome: &[u8]) {
        if let Some(step) = self.last_mut() {
            step.outcome = Some(outcome.to_vec());
        }
    }
}

impl Stages {
    /// Runs the stages on one job's data as [`Stages::apply`] does, and tells every step.
    pub fn explain(&self, data: &[u8], limits: &Limits<'_>) -> Explanation {
        let mut scratch = Scratch::default();
        let mut steps = Vec::new();
        let staged = self.run(data, &mut scratch, limits, &mut steps);
        Explanation {
            unique: staged.as_ref().ok().and_then(|staged| staged.unique.map(<[u8]>::to_vec)),
            warning: staged.as_ref().ok().and_then(|staged| staged.warning),
            time: staged.as_ref().ok().and_then(|staged| staged.time),
            sent: staged.map(|staged| staged.data.to_vec()),
            steps,
        }
    }
}
