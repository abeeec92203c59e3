//! Checks what takes all files to know, and makes the [`Config`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::address::Address;
use super::error::{ConfigError, ConfigErrors};
use super::keys::{Key, Scope};
use super::parse::{Draft, Parser, Report, Settings};
use super::pattern::{Glob, QueuePattern};
use super::{Config, DEFAULT_MAX_JOB_SIZE, DEFAULT_PREFETCH, ForwardConfig, LogTarget, Priority};
use crate::stages::Stages;

/// One source of a draft: a forward, or a pattern that makes forwards at run time.
struct Flow<'d> {
    draft: &'d Draft,
    source: &'d Address,
    canonical: Address,
    pattern: Option<Glob>,
}

/// All flows, and what is known of queues. Addresses are canonical here.
struct Flows<'d> {
    all: Vec<Flow<'d>>,
    /// The forward that takes from a queue.
    explicit: HashMap<Address, usize>,
    patterns: Vec<usize>,
    /// The status queue and reject queues, which no pattern matches.
    special: HashSet<Address>,
}

impl Parser {
    /// # Errors
    /// Everything that is wrong, in the order of the files and lines.
    pub(super) fn finish(mut self, paths: &[PathBuf]) -> Result<Config, ConfigErrors> {
        let (globals, drafts, report) = (&self.globals, &self.drafts, &mut self.report);
        check_kinds(drafts, report);
        let flows = Flows::new(drafts, globals.addresses.get(&Key::StatusQueue), report);
        check_status_queue(&flows, globals, report);
        check_loops(&flows, report);
        if drafts.is_empty() && report.errors.is_empty() {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let message = "no forward is configured: a line `SOURCE = DESTINATION` makes one";
            report.error(ConfigError::of_file(names.join(", "), message));
        }
        let warnings = std::mem::take(&mut report.warnings);
        if !report.errors.is_empty() {
            report.errors.sort_by_key(|(order, offset, _)| (*order, *offset));
            let errors = std::mem::take(&mut report.errors).into_iter().map(|(_, _, error)| error).collect();
            return Err(ConfigErrors { errors, warnings });
        }
        let explicit = flows.all.iter().filter(|flow| flow.pattern.is_none());
        Ok(Config {
            logfile: globals
                .paths
                .get(&Key::Logfile)
                .map_or(LogTarget::Stdout, |path| LogTarget::from_text(path.clone())),
            debug: globals.numbers.get(&Key::Debug).and_then(|level| u8::try_from(*level).ok()).unwrap_or(0),
            pidfile: globals.paths.get(&Key::Pidfile).map(PathBuf::from),
            max_job_size: usize_of(globals, Key::MaxJobSize, DEFAULT_MAX_JOB_SIZE),
            statusqueue: globals.addresses.get(&Key::StatusQueue).cloned(),
            metricsfile: globals.paths.get(&Key::MetricsFile).map(PathBuf::from),
            forwards: explicit.map(|flow| template(flow.draft, flow.source).named(&flow.source.queue)).collect(),
            patterns: flows.patterns().collect(),
            warnings,
        })
    }
}

fn usize_of(settings: &Settings, key: Key, default: usize) -> usize {
    settings.numbers.get(&key).and_then(|number| usize::try_from(*number).ok()).unwrap_or(default)
}

/// Options that fit one kind of forward only; which kind it is may stand below them.
fn check_kinds(drafts: &[Draft], report: &mut Report) {
    for Draft { settings, .. } in drafts {
        let Some(asynchronous) = settings.is_asynchronous() else { continue };
        let line = settings.spot(Key::Async).map_or(0, |spot| spot.place().line);
        for (key, spot) in &settings.given {
            let only = match key.entry().scope {
                Scope::Asynchronous if !asynchronous => {
                    format!("asynchronous forwards only: this one has `async = 0` in line {line}")
                }
                Scope::Synchronous if asynchronous => "synchronous forwards only: those with `async = 0`".to_owned(),
                _ => continue,
            };
            report.wrong(spot, format!("`{}` is for {only}", key.name()));
        }
    }
}

/// The status queue is the proxy's own: a forward that takes from it takes the questions away, and a reject queue there
/// would have its jobs answered and dropped.
fn check_status_queue(flows: &Flows<'_>, globals: &Settings, report: &mut Report) {
    let (Some(spot), Some(status)) = (globals.spot(Key::StatusQueue), globals.addresses.get(&Key::StatusQueue)) else {
        return;
    };
    let named = format!("{status} is the status queue ({})", spot.place());
    let is_status = |address: &Address| address.canonical() == status.canonical();
    for Flow { draft, source, .. } in &flows.all {
        if is_status(source) {
            report.wrong(&draft.spot, format!("{named}: no forward may take from it"));
        }
        let reject = draft.settings.spot(Key::RejectQueue);
        if let Some(spot) = reject.filter(|_| draft.settings.addresses.get(&Key::RejectQueue).is_some_and(is_status)) {
            report.wrong(spot, format!("{named}: it keeps no jobs, reject to another one"));
        }
    }
}

/// A queue that reaches itself, over any number of forwards: a depth-first walk, in which each loop has a step back to a
/// forward that is on the way. Reported at the loop's last forward in the order of the lines.
fn check_loops(flows: &Flows<'_>, report: &mut Report) {
    // Whether a forward that was met is on the way.
    let mut met: Vec<Option<bool>> = vec![None; flows.all.len()];
    for start in 0..flows.all.len() {
        let mut way: Vec<Step> = Vec::new();
        let mut arrived = Some(start).filter(|start| met[*start].is_none());
        loop {
            if let Some(flow) = arrived.take() {
                met[flow] = Some(true);
                way.push((flow, flows.next(flow), None));
            }
            let Some((flow, steps, left)) = way.last_mut() else { break };
            let Some((next, target)) = steps.pop() else {
                met[*flow] = Some(false);
                way.pop();
                continue;
            };
            *left = Some(target);
            match met[next] {
                None => arrived = Some(next),
                Some(true) => report_loop(flows, way.iter().skip_while(|step| step.0 != next).collect(), report),
                Some(false) => {}
            }
        }
    }
}

/// A forward on a way, the steps from it that are not tried yet, and the queue it was left for.
type Step = (usize, Vec<(usize, Address)>, Option<Address>);

fn report_loop(flows: &Flows<'_>, mut way: Vec<&Step>, report: &mut Report) {
    let last = way.iter().enumerate().max_by_key(|(_, step)| step.0).map_or(0, |(index, _)| index);
    way.rotate_left(last);
    let Flow { source, draft, .. } = &flows.all[way[0].0];
    let queues: Vec<String> =
        way.iter().filter_map(|step| step.2.as_ref()).map(|queue| format!(" -> {queue}")).collect();
    let other = |step: &&Step| format!(", the forward at {}", flows.all[step.0].draft.spot.place());
    let others: String = way[1..].iter().map(other).collect();
    let with = others.replacen(", ", ", with ", 1);
    report.wrong(&draft.spot, format!("forwarding loop: {source}{}{with}", queues.concat()));
}

impl<'d> Flows<'d> {
    /// Reports forwards that are given twice.
    fn new(drafts: &'d [Draft], status: Option<&Address>, report: &mut Report) -> Flows<'d> {
        let mut flows =
            Flows { all: Vec::new(), explicit: HashMap::new(), patterns: Vec::new(), special: HashSet::new() };
        let mut first: HashMap<Address, &Draft> = HashMap::new();
        let rejects = drafts.iter().filter_map(|draft| draft.settings.addresses.get(&Key::RejectQueue));
        flows.special.extend(rejects.chain(status).map(Address::canonical));
        for (draft, source) in drafts.iter().flat_map(|draft| draft.sources.iter().map(move |source| (draft, source))) {
            let canonical = source.canonical();
            if let Some(first) = first.get(&canonical) {
                let place = first.spot.place();
                let message =
                    format!("a forward from {source} is given twice, first at {place}: a queue has one forward");
                report.wrong(&draft.spot, message);
                continue;
            }
            first.insert(canonical.clone(), draft);
            let pattern = source.queue.contains(['*', '?']).then(|| Glob::new(&source.queue, false)).flatten();
            match &pattern {
                Some(_) => flows.patterns.push(flows.all.len()),
                None => drop(flows.explicit.insert(canonical.clone(), flows.all.len())),
            }
            flows.all.push(Flow { draft, source, canonical, pattern });
        }
        flows
    }

    /// Whether a pattern takes from a queue of its server.
    fn takes(&self, pattern: &Flow<'_>, queue: &str) -> bool {
        let known = |address| self.explicit.contains_key(&address) || self.special.contains(&address);
        let matches = pattern.pattern.as_ref().is_some_and(|pattern| pattern.matches(queue));
        matches && !known(pattern.canonical.with_queue(queue))
    }

    /// The forwards to which jobs can get from one, each once, with the queue by which they get there.
    fn next(&self, index: usize) -> Vec<(usize, Address)> {
        let flow = &self.all[index];
        let mut found: Vec<(usize, Address)> = Vec::new();
        for target in flow.draft.destinations.iter().chain(flow.draft.settings.addresses.get(&Key::RejectQueue)) {
            let kept = flow.pattern.as_ref().filter(|_| target.queue.is_empty());
            let target = if target.queue.is_empty() { target.with_queue(&flow.source.queue) } else { target.clone() };
            let canonical = target.canonical();
            if let Some(next) = self.explicit.get(&canonical).filter(|_| kept.is_none()) {
                found.push((*next, target));
                continue;
            }
            let there = |index: usize| {
                let other = &self.all[index];
                let (meets, queue) = match (kept, &other.pattern) {
                    _ if other.canonical.server != canonical.server => return None,
                    (Some(kept), Some(pattern)) => (kept.intersects(pattern), &target),
                    (Some(_), None) => (self.takes(flow, &other.source.queue), other.source),
                    (None, _) => (self.takes(other, &target.queue), &target),
                };
                meets.then(|| (index, queue.clone()))
            };
            match kept {
                Some(_) => found.extend((0..self.all.len()).filter_map(there)),
                None => found.extend(self.patterns.iter().copied().filter_map(there)),
            }
        }
        let mut seen = HashSet::new();
        found.retain(|(next, _)| seen.insert(*next));
        found.reverse();
        found
    }

    fn patterns(&self) -> impl Iterator<Item = QueuePattern> {
        self.all.iter().filter_map(|Flow { draft, source, canonical, pattern }| {
            let known = self.explicit.keys().chain(&self.special);
            let here = known.filter(|address| address.server == canonical.server);
            Some(QueuePattern {
                server: source.server.clone(),
                pattern: pattern.clone()?,
                template: template(draft, source),
                excluded: Arc::new(here.map(|address| address.queue.clone()).collect()),
            })
        })
    }
}

/// The forward of a draft; destinations without a queue are still to be named.
fn template(draft: &Draft, source: &Address) -> ForwardConfig {
    let settings = &draft.settings;
    let asynchronous = settings.is_asynchronous().unwrap_or(true);
    let workers = usize_of(settings, Key::Worker, 1);
    let prefetch = if asynchronous { usize_of(settings, Key::Prefetch, DEFAULT_PREFETCH) } else { workers };
    let seconds =
        |key| settings.numbers.get(&key).filter(|seconds| **seconds > 0).map(|seconds| Duration::from_secs(*seconds));
    let substitutions = |key| {
        let of_key = settings.substitutions.iter().filter(|(other, _)| *other == key);
        of_key.map(|(_, substitution)| substitution.clone()).collect()
    };
    let mut stages = Stages {
        decrypt: settings.ciphers.get(&Key::Decrypt).cloned(),
        data_callbacks: substitutions(Key::DataCallback),
        uniq_callbacks: substitutions(Key::UniqCallback),
        ..Stages::default()
    };
    stages.encrypt = settings.ciphers.get(&Key::Encrypt).cloned();
    ForwardConfig {
        place: draft.spot.place().clone(),
        source: source.clone(),
        destinations: draft.destinations.clone(),
        stages,
        asynchronous,
        workers,
        prefetch,
        prefetch_is_explicit: settings.spot(Key::Prefetch).is_some(),
        priority: match settings.numbers.get(&Key::Priority) {
            Some(0) => Priority::Low,
            Some(2) => Priority::High,
            _ => Priority::Normal,
        },
        timeout: seconds(Key::Timeout),
        max_age: seconds(Key::MaxAge),
        reject_queue: settings.addresses.get(&Key::RejectQueue).cloned(),
    }
}
