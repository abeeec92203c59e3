//! Checks what takes all files to know, and makes the [`Config`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::address::Address;
use super::error::{ConfigErrors, of_file};
use super::keys::{Key, Scope};
use super::parse::{Draft, Parser, Piece, Report, first};
use super::pattern::{Glob, QueuePattern};
use super::{Config, ForwardConfig};

/// One forward, or a pattern that makes forwards at run time.
struct Flow<'l> {
    /// Its line.
    key: Piece<'l>,
    forward: ForwardConfig,
    /// The source.
    canonical: Address,
    pattern: Option<Glob>,
}

/// All flows, and what is known of queues. Addresses are canonical here.
struct Flows<'l> {
    all: Vec<Flow<'l>>,
    /// By their sources.
    sources: HashMap<Address, usize>,
    patterns: Vec<usize>,
    /// The status queue and reject queues, which no pattern matches.
    special: HashSet<Address>,
}

impl Parser<'_> {
    /// # Errors
    /// Everything that is wrong, in the order of the files and lines.
    pub(super) fn finish(self, paths: &[PathBuf]) -> Result<Config, ConfigErrors> {
        let Parser { drafts, given, mut config, mut report, .. } = self;
        drafts.iter().for_each(|draft| check_kind(draft, &mut report));
        let flows = Flows::new(&drafts, config.statusqueue.as_ref(), &mut report);
        if let (Some(status), Some(spot)) = (&config.statusqueue, first(&given, Key::StatusQueue)) {
            check_status_queue(&drafts, &flows, status, spot, &mut report);
        }
        check_loops(&flows, &mut report);
        if drafts.is_empty() && report.errors.is_empty() {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let message = "no forward is configured: a line `SOURCE = DESTINATION` makes one";
            report.error(of_file(names.join(", "), message));
        }
        if !report.errors.is_empty() {
            report.errors.sort_by_key(|(order, offset, _)| (*order, *offset));
            let errors = report.errors.into_iter().map(|(_, _, error)| error).collect();
            return Err(ConfigErrors { errors, warnings: report.warnings });
        }
        let explicit = flows.all.iter().filter(|flow| flow.pattern.is_none()).map(|flow| flow.canonical.clone());
        let excluded: Arc<HashSet<Address>> = Arc::new(explicit.chain(flows.special).collect());
        for Flow { forward: template, pattern, .. } in flows.all {
            let (server, excluded) = (template.source.server.clone(), Arc::clone(&excluded));
            match pattern {
                None => config.forwards.push(template),
                Some(pattern) => config.patterns.push(QueuePattern { server, pattern, template, excluded }),
            }
        }
        Ok(Config { warnings: report.warnings, ..config })
    }
}

/// Options that fit one kind of forward only; which kind it is may stand below them.
fn check_kind(draft: &Draft<'_>, report: &mut Report) {
    let given = first(&draft.given, Key::Async);
    // Not known where `async` is wrong.
    let asynchronous = if given.is_some() { draft.asynchronous } else { Some(true) };
    for (key, spot) in &draft.given {
        let only = match (key.entry().scope, asynchronous) {
            (Scope::Asynchronous, Some(false)) => {
                let line = given.map_or(0, |spot| spot.place().line);
                format!("asynchronous forwards only: this one has `async = 0` in line {line}")
            }
            (Scope::Synchronous, Some(true)) => "synchronous forwards only: those with `async = 0`".to_owned(),
            _ => continue,
        };
        report.wrong(*spot, format!("`{}` is for {only}", key.name()));
    }
}

/// The status queue is the proxy's own: a forward that takes from it takes the questions away, and a reject queue there
/// would have its jobs answered and dropped.
fn check_status_queue(drafts: &[Draft<'_>], flows: &Flows<'_>, status: &Address, spot: Piece<'_>, report: &mut Report) {
    let named = format!("{status} is the status queue ({})", spot.place());
    if let Some(flow) = flows.sources.get(&status.canonical()) {
        report.wrong(flows.all[*flow].key, format!("{named}: no forward may take from it"));
    }
    let is_status = |address: &Address| address.canonical() == status.canonical();
    for Draft { given, forward, .. } in drafts {
        let reject = first(given, Key::RejectQueue);
        if let Some(spot) = reject.filter(|_| forward.reject_queue.as_ref().is_some_and(is_status)) {
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
        let mut arrived = start;
        loop {
            if met[arrived].is_none() {
                met[arrived] = Some(true);
                way.push((arrived, flows.next(arrived), None));
            }
            let Some((flow, steps, left)) = way.last_mut() else { break };
            let Some((next, target)) = steps.pop() else {
                met[*flow] = Some(false);
                way.pop();
                continue;
            };
            *left = Some(target);
            if met[next] == Some(true) {
                report_loop(flows, way.iter().skip_while(|step| step.0 != next).collect(), report);
            }
            arrived = next;
        }
    }
}

/// A forward on a way, the steps from it that are not tried yet, and the queue it was left for.
type Step = (usize, Vec<(usize, Address)>, Option<Address>);

fn report_loop(flows: &Flows<'_>, mut way: Vec<&Step>, report: &mut Report) {
    let last = way.iter().enumerate().max_by_key(|(_, step)| step.0).map_or(0, |(index, _)| index);
    way.rotate_left(last);
    let Flow { forward, key, .. } = &flows.all[way[0].0];
    let queues: String = way.iter().filter_map(|step| step.2.as_ref()).map(|queue| format!(" -> {queue}")).collect();
    let other = |step: &&Step| format!(", the forward at {}", flows.all[step.0].key.place());
    let others: String = way[1..].iter().map(other).collect();
    let with = others.replacen(", ", ", with ", 1);
    report.wrong(*key, format!("forwarding loop: {}{queues}{with}", forward.source));
}

impl<'l> Flows<'l> {
    /// Reports forwards that are given twice.
    fn new(drafts: &[Draft<'l>], status: Option<&Address>, report: &mut Report) -> Flows<'l> {
        let rejects = drafts.iter().filter_map(|draft| draft.forward.reject_queue.as_ref());
        let special = rejects.chain(status).map(Address::canonical).collect();
        let mut flows = Flows { all: Vec::new(), sources: HashMap::new(), patterns: Vec::new(), special };
        for (draft, source) in drafts.iter().flat_map(|draft| draft.sources.iter().map(move |source| (draft, source))) {
            let (key, canonical, index) = (draft.key, source.canonical(), flows.all.len());
            if let Some(other) = flows.sources.get(&canonical) {
                let place = flows.all[*other].key.place();
                let message =
                    format!("a forward from {source} is given twice, first at {place}: a queue has one forward");
                report.wrong(key, message);
                continue;
            }
            let mut forward = ForwardConfig { source: source.clone(), ..draft.forward.clone() };
            forward.asynchronous = draft.asynchronous.unwrap_or(true);
            if !forward.asynchronous {
                forward.prefetch = forward.workers;
            }
            let pattern = source.queue.contains(['*', '?']).then(|| Glob::new(&source.queue, false)).flatten();
            match pattern {
                Some(_) => flows.patterns.push(index),
                None => forward = forward.named(&source.queue),
            }
            flows.sources.insert(canonical.clone(), index);
            flows.all.push(Flow { key, forward, canonical, pattern });
        }
        flows
    }

    /// Whether a pattern takes from a queue of its server.
    fn takes(&self, pattern: &Flow<'_>, queue: &str) -> bool {
        let known = |address| self.sources.contains_key(&address) || self.special.contains(&address);
        let matches = pattern.pattern.as_ref().is_some_and(|pattern| pattern.matches(queue));
        matches && !known(pattern.canonical.with_queue(queue))
    }

    /// The forwards to which jobs can get from one, each once, with the queue by which they get there.
    fn next(&self, index: usize) -> Vec<(usize, Address)> {
        let flow = &self.all[index];
        let ForwardConfig { source, destinations, reject_queue, .. } = &flow.forward;
        let mut found: Vec<(usize, Address)> = Vec::new();
        for target in destinations.iter().chain(reject_queue) {
            let canonical = target.canonical();
            let here = |index: &usize| self.all[*index].canonical.server == canonical.server;
            if let Some(pattern) = flow.pattern.as_ref().filter(|_| target.queue.is_empty()) {
                // Each queue that the pattern finds keeps its name.
                found.extend((0..self.all.len()).filter(here).filter_map(|index| {
                    let other = &self.all[index];
                    let (meets, queue) = match &other.pattern {
                        Some(other) => (pattern.intersects(other), target.with_queue(&source.queue)),
                        None => (self.takes(flow, &other.canonical.queue), other.forward.source.clone()),
                    };
                    meets.then_some((index, queue))
                }));
            } else if let Some(next) = self.sources.get(&canonical) {
                found.push((*next, target.clone()));
            } else {
                let patterns = self.patterns.iter().copied().filter(here);
                let taking = patterns.filter(|index| self.takes(&self.all[*index], &target.queue));
                found.extend(taking.map(|index| (index, target.clone())));
            }
        }
        let mut seen = HashSet::new();
        found.retain(|(next, _)| seen.insert(*next));
        found.reverse();
        found
    }
}
