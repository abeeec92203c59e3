//! What each stage does to a job, for `--try`.

use super::substitution::Substitution;
use super::{Failure, Limits, Scratch, Staged, Stages, Watch};

/// Matches of one substitution that are kept.
const MAX_MATCHED: usize = 10;

/// One step of [`Stages::explain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOutcome {
    /// `base64-decode`, `decrypt`, `uniq_callback`, `data_callback`, `encrypt`, `base64-encode`.
    pub stage: &'static str,
    /// For a callback: what its substitution did.
    pub substitution: Option<SubstitutionOutcome>,
    /// What the data (for `uniq_callback` its copy) was after this step, or why it went no further.
    pub outcome: Result<Vec<u8>, Failure>,
}

/// What one substitution of a callback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutionOutcome {
    /// The substitution as written.
    pub text: String,
    /// Whether its guard kept it from being applied.
    pub kept_off: bool,
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
    pub sent: Result<Vec<u8>, Failure>,
    /// The unique id from `uniq_callback`, as [`Staged::unique`].
    pub unique: Option<Vec<u8>>,
    /// As [`Staged::warning`].
    pub warning: Option<&'static str>,
    /// As [`Staged::time`].
    pub time: Option<u64>,
}

/// The steps so far; the last one's outcome is preliminary until it ended.
#[derive(Default)]
struct Steps {
    steps: Vec<StageOutcome>,
    is_running: bool,
}

impl Steps {
    fn substitution(&mut self) -> Option<&mut SubstitutionOutcome> {
        self.steps.last_mut().and_then(|step| step.substitution.as_mut())
    }
}

impl Watch for Steps {
    fn begin(&mut self, stage: &'static str, substitution: Option<&Substitution>) {
        let substitution = substitution.map(|substitution| SubstitutionOutcome {
            text: substitution.to_string(),
            kept_off: false,
            matches: 0,
            matched: Vec::new(),
        });
        self.steps.push(StageOutcome { stage, substitution, outcome: Ok(Vec::new()) });
        self.is_running = true;
    }

    fn kept_off(&mut self) {
        if let Some(substitution) = self.substitution() {
            substitution.kept_off = true;
        }
    }

    fn matched(&mut self, text: &[u8]) {
        if let Some(substitution) = self.substitution() {
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
        self.is_running = false;
    }
}

impl Stages {
    /// Runs the stages on one job's data as [`Stages::apply`] does, and tells every step.
    pub fn explain(&self, data: &[u8], limits: &Limits<'_>) -> Explanation {
        let mut scratch = Scratch::default();
        let mut watch = Steps::default();
        let staged = self.run(data, &mut scratch, limits, &mut watch);
        let Steps { mut steps, is_running } = watch;
        if let (Err(failure), true, Some(step)) = (&staged, is_running, steps.last_mut()) {
            step.outcome = Err(*failure);
        }
        match staged {
            Ok(Staged { data, unique, warning, time }) => {
                let unique = unique.map(<[u8]>::to_vec);
                Explanation { steps, sent: Ok(data.to_vec()), unique, warning, time }
            }
            Err(failure) => Explanation { steps, sent: Err(failure), unique: None, warning: None, time: None },
        }
    }
}
