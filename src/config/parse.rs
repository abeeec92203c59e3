//! Turns lines into a [`Config`], or into everything that is wrong with them.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::address::{Address, AddressError, Server, check_queue};
use super::error::{ConfigError, ConfigErrors, Place, quoted, secret};
use super::keys::{self, Key, Scope};
use super::source::{Line, read_password};
use super::variables::{ExpansionError, Variables, is_name};
use super::{Config, DEFAULT_MAX_JOB_SIZE, DEFAULT_PREFETCH, ForwardConfig, LogTarget, Priority};
use crate::stages::Stages;
use crate::stages::cipher::Cipher;
use crate::stages::substitution::Substitution;

/// A line, its number among all lines of all files, and a byte in it.
#[derive(Debug, Clone)]
struct Spot {
    order: usize,
    line: Arc<Line>,
    offset: usize,
}

impl Spot {
    fn at(&self, offset: usize) -> Spot {
        Spot { offset, ..self.clone() }
    }

    fn place(&self) -> &Place {
        &self.line.place
    }
}

/// The half of a line before or behind the `=`, without the blanks around it.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    /// Bytes from the line's beginning.
    offset: usize,
}

impl<'a> Part<'a> {
    fn trimmed(text: &'a str, offset: usize) -> Part<'a> {
        let blanks = [' ', '\t'];
        let without = text.trim_start_matches(blanks);
        Part { text: without.trim_end_matches(blanks), offset: offset + text.len() - without.len() }
    }
}

/// A forward while its lines are read. What is None was not given or is wrong, and then reported.
#[derive(Debug)]
struct Draft {
    spot: Spot,
    source: Option<Address>,
    destination: Option<Address>,
    /// The first line of each option.
    given: Vec<(Key, Spot)>,
    /// Each line of an option that fits one kind of forward only.
    one_kind: Vec<(Key, Spot)>,
    decrypt: Option<Cipher>,
    encrypt: Option<Cipher>,
    data_callbacks: Vec<Substitution>,
    uniq_callbacks: Vec<Substitution>,
    asynchronous: Option<bool>,
    worker: Option<usize>,
    prefetch: Option<usize>,
    priority: Option<Priority>,
    timeout: Option<u64>,
    reject_queue: Option<Address>,
}

impl Draft {
    fn new(spot: Spot, source: Option<Address>, destination: Option<Address>) -> Draft {
        Draft {
            spot,
            source,
            destination,
            given: Vec::new(),
            one_kind: Vec::new(),
            decrypt: None,
            encrypt: None,
            data_callbacks: Vec::new(),
            uniq_callbacks: Vec::new(),
            asynchronous: None,
            worker: None,
            prefetch: None,
            priority: None,
            timeout: None,
            reject_queue: None,
        }
    }

    fn given(&self, key: Key) -> Option<&Spot> {
        self.given.iter().find(|(given, _)| *given == key).map(|(_, spot)| spot)
    }

    /// Where its jobs can go, each queue once.
    fn targets(&self) -> impl Iterator<Item = &Address> {
        let reject_queue = self.reject_queue.iter().filter(|queue| Some(*queue) != self.destination.as_ref());
        self.destination.iter().chain(reject_queue)
    }

    /// None if it was given and is neither.
    fn is_asynchronous(&self) -> Option<bool> {
        match self.given(Key::Async) {
            Some(_) => self.asynchronous,
            None => Some(true),
        }
    }

    /// None if something is wrong that was reported.
    fn finish(self) -> Option<ForwardConfig> {
        let asynchronous = self.is_asynchronous()?;
        let workers = self.worker.unwrap_or(1);
        Some(ForwardConfig {
            place: self.spot.place().clone(),
            source: self.source?,
            destination: self.destination?,
            stages: Stages {
                decrypt: self.decrypt,
                data_callbacks: self.data_callbacks,
                uniq_callbacks: self.uniq_callbacks,
                encrypt: self.encrypt,
                reads_time: false,
            },
            asynchronous,
            workers,
            prefetch: if asynchronous { self.prefetch.unwrap_or(DEFAULT_PREFETCH) } else { workers },
            priority: self.priority.unwrap_or_default(),
            timeout: self.timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs),
            reject_queue: self.reject_queue,
        })
    }
}

/// Reads files one after the other.
pub(super) struct Parser {
    variables: Variables,
    /// With the number of the line among all lines, and the byte in it.
    errors: Vec<(usize, usize, ConfigError)>,
    warnings: Vec<String>,
    order: usize,
    /// The first line of each global key.
    given: Vec<(Key, Spot)>,
    logfile: Option<LogTarget>,
    debug: Option<u8>,
    pidfile: Option<PathBuf>,
    max_job_size: Option<usize>,
    statusqueue: Option<Address>,
    forwards: Vec<Draft>,
    /// The place of each forward's source.
    sources: HashMap<Address, Place>,
    /// Whether a forward stands above in the same file.
    in_forward: bool,
}

impl Parser {
    pub(super) fn new(environment: fn(&str) -> Option<String>) -> Parser {
        Parser {
            variables: Variables::new(environment),
            errors: Vec::new(),
            warnings: Vec::new(),
            order: 0,
            given: Vec::new(),
            logfile: None,
            debug: None,
            pidfile: None,
            max_job_size: None,
            statusqueue: None,
            forwards: Vec::new(),
            sources: HashMap::new(),
            in_forward: false,
        }
    }

    /// Takes in an error that has no line.
    pub(super) fn error(&mut self, error: ConfigError) {
        self.order += 1;
        self.errors.push((self.order, 0, error));
    }

    fn wrong(&mut self, spot: &Spot, message: impl Into<String>) {
        let error = ConfigError::in_line(spot.place(), &spot.line.text, spot.offset, message);
        self.errors.push((spot.order, spot.offset, error));
    }

    fn warn(&mut self, spot: &Spot, message: &str) {
        self.warnings.push(format!("{}: {message}", spot.place()));
    }

    /// Reads a file's lines.
    pub(super) fn file(&mut self, lines: Vec<Line>) {
        self.in_forward = false;
        let lines: Vec<Arc<Line>> = lines.into_iter().map(Arc::new).collect();
        if let Some((line, offset)) = lines.iter().find_map(|line| Some((line, perl(&line.text)?))) {
            self.order += 1;
            let spot = Spot { order: self.order, line: Arc::clone(line), offset };
            let message = "this is a configuration of gearman_proxy.pl, which is Perl: \
                           `gearman-proxy --convert FILE` prints it in this program's language";
            self.wrong(&spot, message);
            return;
        }
        for line in lines {
            self.order += 1;
            self.line(&Spot { order: self.order, line, offset: 0 });
        }
    }

    fn line(&mut self, start: &Spot) {
        let line = Arc::clone(&start.line);
        let whole = Part::trimmed(&line.text, 0);
        if whole.text.is_empty() || whole.text.starts_with(['#', ';']) {
            return;
        }
        if let Some(offset) = line.invalid {
            self.wrong(&start.at(offset), "is not UTF-8 here: save the file as UTF-8");
            return self.broken_line(&start.at(whole.offset), whole.text);
        }
        let Some((key, value)) = line.text.split_once('=') else {
            self.wrong(&start.at(whole.offset + whole.text.len()), missing_sign());
            return self.broken_line(&start.at(whole.offset), whole.text);
        };
        let value = Part::trimmed(value, key.len() + 1);
        let key = Part::trimmed(key, 0);
        let spot = start.at(key.offset);
        if key.text.is_empty() {
            self.wrong(&spot, "the key is missing before the `=`: a line is `key = value`");
        } else if key.text.contains('/') {
            self.forward(&spot, key, value);
        } else if let Some(name) = key.text.strip_prefix('$') {
            self.variable(&spot, name, value);
        } else if let Some(key) = keys::find(key.text) {
            self.option(&spot, key, value);
        } else {
            // Of a line such as `decrypt aGVsbG8=` what stands before the `=` is no key only.
            let hidden = secret(&line.text).is_some_and(|start| start < key.offset + key.text.len());
            self.wrong(&spot, if hidden { missing_sign() } else { unknown(key.text) });
        }
    }

    /// Lets a line that can't be read be a forward if it looks like one, lest the options under it be taken for those of
    /// the forward above.
    fn broken_line(&mut self, spot: &Spot, text: &str) {
        let key = text.split(['=', ' ', '\t']).next();
        if key.is_some_and(|key| key.contains('/')) {
            self.forwards.push(Draft::new(spot.clone(), None, None));
            self.in_forward = true;
        }
    }

    fn variable(&mut self, spot: &Spot, name: &str, value: Part<'_>) {
        if !is_name(name) {
            let name = quoted(name);
            let message = format!("{name} is no variable's name: letters, digits and `_`, set as `$name = value`");
            return self.wrong(&spot.at(spot.offset + 1), message);
        }
        let value = self.expand(spot, value, |text| Ok(text.to_owned()));
        self.variables.set(name, value);
    }

    /// Expands a value and reads it. None if it is wrong, which was reported: what `read` finds, at its spot in the text
    /// as written.
    fn expand<T>(
        &mut self,
        spot: &Spot,
        part: Part<'_>,
        read: impl FnOnce(&str) -> Result<T, AddressError>,
    ) -> Option<T> {
        let expanded = match self.variables.expand(part.text) {
            Ok(expanded) => expanded,
            Err(ExpansionError::Reported) => return None,
            Err(ExpansionError::Wrong { offset, message }) => {
                let instead = "a variable here can't be expanded; write `$$` for a `$` itself";
                self.wrong_quoting(&spot.at(part.offset + offset), message, instead);
                return None;
            }
        };
        match read(&expanded.text) {
            Ok(value) => Some(value),
            Err(AddressError { message, offset }) => {
                let spot = spot.at(part.offset + expanded.original(offset));
                self.wrong_quoting(&spot, message, "this is no address: HOST:PORT/QUEUE, with nothing behind it");
                None
            }
        }
    }

    /// Reports with a message that quotes the line, or with one that doesn't if the line may hold a password.
    fn wrong_quoting(&mut self, spot: &Spot, message: String, instead: &str) {
        let message = if secret(&spot.line.text).is_some() { instead.to_owned() } else { message };
        self.wrong(spot, message);
    }

    /// Reports a value that its key doesn't take.
    fn wrong_value(&mut self, spot: &Spot, key: Key, value: Part<'_>) {
        let Part { text, offset } = value;
        let comment = if text.contains([' ', '\t']) && text.contains(['#', ';']) {
            "; a comment has a line of its own"
        } else {
            ""
        };
        let takes = format!("`{}`, which takes {}{comment}", key.name(), key.entry().values);
        let message = format!("{} is no value for {takes}", quoted(text));
        self.wrong_quoting(&spot.at(offset), message, &format!("this is no value for {takes}"));
    }

    fn address(&mut self, spot: &Spot, part: Part<'_>) -> Option<Address> {
        self.expand(spot, part, Address::parse)
    }

    fn forward(&mut self, spot: &Spot, key: Part<'_>, value: Part<'_>) {
        let source = self.address(spot, key);
        let destination = self.address(spot, value);
        if let Some(source) = &source {
            match self.sources.get(source) {
                Some(first) => {
                    let message =
                        format!("a forward from {source} is given twice, first at {first}: a queue has one forward");
                    self.wrong(spot, message);
                }
                None => {
                    self.sources.insert(source.clone(), spot.place().clone());
                }
            }
        }
        self.forwards.push(Draft::new(spot.clone(), source, destination));
        self.in_forward = true;
    }

    fn option(&mut self, spot: &Spot, key: Key, value: Part<'_>) {
        let scope = key.entry().scope;
        let given = match (scope, self.forwards.last_mut()) {
            (Scope::Global, _) => &mut self.given,
            (_, Some(draft)) if self.in_forward => {
                if scope != Scope::Forward {
                    draft.one_kind.push((key, spot.clone()));
                }
                &mut draft.given
            }
            _ => {
                let message = format!(
                    "`{}` is a forward's option and stands before any forward: it belongs under a line `SOURCE = DESTINATION` of the same file",
                    key.name()
                );
                return self.wrong(spot, message);
            }
        };
        match given.iter().find(|(given, _)| *given == key) {
            Some((_, first)) if !key.may_repeat() => {
                let message = format!("`{}` is given twice, first at {}", key.name(), first.place());
                return self.wrong(spot, message);
            }
            Some(_) => {}
            None => given.push((key, spot.clone())),
        }
        if value.text.is_empty() {
            let message = format!("`{}` has no value: {}", key.name(), key.entry().values);
            return self.wrong(&spot.at(value.offset), message);
        }
        self.value(spot, key, value);
    }

    fn value(&mut self, spot: &Spot, key: Key, value: Part<'_>) {
        match key {
            Key::Logfile => self.logfile = self.path(spot, value).map(LogTarget::from_text),
            Key::Pidfile => self.pidfile = self.path(spot, value).map(PathBuf::from),
            Key::Debug => self.debug = self.number(spot, key, value, keys::DEBUG).and_then(|n| u8::try_from(n).ok()),
            Key::MaxJobSize => self.max_job_size = self.size(spot, key, value),
            Key::StatusQueue => self.statusqueue = self.address(spot, value),
            _ => {
                // Out of the list for as long as the parser reads on its behalf.
                let Some(mut draft) = self.forwards.pop() else { return };
                self.forward_value(spot, key, value, &mut draft);
                self.forwards.push(draft);
            }
        }
    }

    fn forward_value(&mut self, spot: &Spot, key: Key, value: Part<'_>, draft: &mut Draft) {
        match key {
            Key::Decrypt => draft.decrypt = self.password(spot, value),
            Key::Encrypt => draft.encrypt = self.password(spot, value),
            Key::DataCallback => draft.data_callbacks.extend(self.substitution(spot, value)),
            Key::UniqCallback => draft.uniq_callbacks.extend(self.substitution(spot, value)),
            Key::Async => match value.text {
                "1" => draft.asynchronous = Some(true),
                "0" => draft.asynchronous = Some(false),
                _ => self.wrong_value(spot, key, value),
            },
            Key::Worker => draft.worker = self.count(spot, key, value, keys::WORKER),
            Key::Prefetch => draft.prefetch = self.count(spot, key, value, keys::PREFETCH),
            Key::Priority => match value.text {
                "low" => draft.priority = Some(Priority::Low),
                "normal" => draft.priority = Some(Priority::Normal),
                "high" => draft.priority = Some(Priority::High),
                _ => self.wrong_value(spot, key, value),
            },
            Key::Timeout => draft.timeout = self.number(spot, key, value, keys::TIMEOUT),
            Key::RejectQueue => {
                let server = draft.source.as_ref().map(|source| source.server.clone());
                draft.reject_queue = self.reject_queue(spot, value, server);
            }
            Key::Logfile | Key::Debug | Key::Pidfile | Key::MaxJobSize | Key::StatusQueue => {}
        }
    }

    fn substitution(&mut self, spot: &Spot, value: Part<'_>) -> Option<Substitution> {
        match Substitution::parse(value.text) {
            Ok(substitution) => Some(substitution),
            Err(error) => {
                self.wrong(&spot.at(value.offset + error.offset), error.message);
                None
            }
        }
    }

    /// An address, or a queue name alone, on the source's server.
    fn reject_queue(&mut self, spot: &Spot, value: Part<'_>, server: Option<Server>) -> Option<Address> {
        let read = |text: &str| {
            if text.contains('/') {
                return Address::parse(text).map(Some);
            }
            check_queue(text)?;
            Ok(server.map(|server| Address { server, queue: text.to_owned() }))
        };
        self.expand(spot, value, read).flatten()
    }

    fn path(&mut self, spot: &Spot, value: Part<'_>) -> Option<String> {
        let read = |text: &str| {
            if text.is_empty() {
                return Err(AddressError { message: "the path is empty".to_owned(), offset: 0 });
            }
            Ok(text.to_owned())
        };
        self.expand(spot, value, read)
    }

    fn number(&mut self, spot: &Spot, key: Key, value: Part<'_>, range: RangeInclusive<u64>) -> Option<u64> {
        let number = digits(value.text).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong_value(spot, key, value);
        }
        number
    }

    fn count(&mut self, spot: &Spot, key: Key, value: Part<'_>, range: RangeInclusive<u64>) -> Option<usize> {
        self.number(spot, key, value, range).and_then(|number| usize::try_from(number).ok())
    }

    fn size(&mut self, spot: &Spot, key: Key, value: Part<'_>) -> Option<usize> {
        let (number, shift) = match value.text.char_indices().next_back() {
            Some((end, 'K')) => (value.text.get(..end), 10),
            Some((end, 'M')) => (value.text.get(..end), 20),
            Some((end, 'G')) => (value.text.get(..end), 30),
            _ => (Some(value.text), 0),
        };
        let bytes = number.and_then(digits).and_then(|number| number.checked_mul(1 << shift));
        let bytes = bytes.filter(|bytes| keys::MAX_JOB_SIZE.contains(bytes));
        if bytes.is_none() {
            self.wrong_value(spot, key, value);
        }
        bytes.and_then(|bytes| usize::try_from(bytes).ok())
    }

    fn password(&mut self, spot: &Spot, value: Part<'_>) -> Option<Cipher> {
        let Some(path) = value.text.strip_prefix("file:") else {
            if self.variables.is_variable(value.text) {
                self.warn(spot, "variables in a password are not expanded, and this one is the name of a variable");
            }
            return Some(Cipher::new(value.text.as_bytes()));
        };
        let path = Part::trimmed(path, value.offset + "file:".len());
        let name = self.path(spot, path)?;
        match read_password(&PathBuf::from(&name)) {
            Ok(file) => {
                if file.world_readable {
                    let name = quoted(&name);
                    self.warn(
                        spot,
                        &format!(
                            "everybody on this machine can read the password file {name}: chmod o-r would end that"
                        ),
                    );
                }
                Some(Cipher::new(&file.password))
            }
            Err(reason) => {
                let name = quoted(&name);
                self.wrong(&spot.at(path.offset), format!("the password file {name} {reason}"));
                None
            }
        }
    }

    /// Checks what takes all files to know.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the files and lines.
    pub(super) fn finish(mut self, paths: &[PathBuf]) -> Result<Config, ConfigErrors> {
        self.check_kinds();
        self.check_status_queue();
        self.check_loops();
        if self.forwards.is_empty() && self.errors.is_empty() {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let message = "no forward is configured: a line `SOURCE = DESTINATION` makes one";
            self.error(ConfigError::of_file(names.join(", "), message));
        }
        let mut forwards = Vec::new();
        for draft in self.forwards {
            forwards.extend(draft.finish());
        }
        if !self.errors.is_empty() {
            self.errors.sort_by_key(|(order, offset, _)| (*order, *offset));
            let errors = self.errors.into_iter().map(|(_, _, error)| error).collect();
            return Err(ConfigErrors { errors, warnings: self.warnings });
        }
        Ok(Config {
            logfile: self.logfile.unwrap_or(LogTarget::Stdout),
            debug: self.debug.unwrap_or(0),
            pidfile: self.pidfile,
            max_job_size: self.max_job_size.unwrap_or(DEFAULT_MAX_JOB_SIZE),
            statusqueue: self.statusqueue,
            forwards,
            warnings: self.warnings,
        })
    }

    /// Options that fit one kind of forward only; which kind it is may stand below them.
    fn check_kinds(&mut self) {
        let mut wrong = Vec::new();
        for draft in &self.forwards {
            let Some(asynchronous) = draft.is_asynchronous() else { continue };
            for (key, spot) in &draft.one_kind {
                let name = key.name();
                match key.entry().scope {
                    Scope::Asynchronous if !asynchronous => {
                        let why = match draft.given(Key::Async) {
                            Some(spot) => format!(", and this one has `async = 0` in line {}", spot.place().line),
                            None => String::new(),
                        };
                        wrong.push((spot.clone(), format!("`{name}` is for asynchronous forwards only{why}")));
                    }
                    Scope::Synchronous if asynchronous => {
                        let message = format!("`{name}` is for synchronous forwards only: those with `async = 0`");
                        wrong.push((spot.clone(), message));
                    }
                    _ => {}
                }
            }
        }
        for (spot, message) in wrong {
            self.wrong(&spot, message);
        }
    }

    /// The status queue is the proxy's own: a forward that takes from it takes the questions away, and a reject queue
    /// there would have its jobs answered and dropped.
    fn check_status_queue(&mut self) {
        let Some(status) = &self.statusqueue else { return };
        let named = match self.given.iter().find(|(key, _)| *key == Key::StatusQueue) {
            Some((_, spot)) => spot.place().to_string(),
            None => return,
        };
        let mut wrong = Vec::new();
        for draft in &self.forwards {
            if draft.source.as_ref() == Some(status) {
                let message = format!("{status} is the status queue ({named}): no forward may take from it");
                wrong.push((draft.spot.clone(), message));
            }
            if draft.reject_queue.as_ref() == Some(status) {
                let message =
                    format!("{status} is the status queue ({named}): it keeps no jobs; reject to another one");
                let spot = draft.given(Key::RejectQueue).unwrap_or(&draft.spot).clone();
                wrong.push((spot, message));
            }
        }
        for (spot, message) in wrong {
            self.wrong(&spot, message);
        }
    }

    /// A queue that reaches itself. Forward by forward in their order, so that the last one of a loop reports it.
    fn check_loops(&mut self) {
        let mut wrong = Vec::new();
        let endless = endless(&self.forwards);
        // The edges of the forwards so far; a second forward from the same source is an error of its own.
        let mut edges: HashMap<&Address, &Draft> = HashMap::new();
        for draft in &self.forwards {
            let Some(source) = draft.source.as_ref().filter(|source| endless.contains(source)) else { continue };
            for target in draft.targets() {
                if let Some(way) = way(&edges, target, source) {
                    wrong.push((draft.spot.clone(), loop_message(source, target, &way)));
                }
            }
            edges.entry(source).or_insert(draft);
        }
        for (spot, message) in wrong {
            self.wrong(&spot, message);
        }
    }
}

/// The sources from which jobs can come into a loop: those that are left when the ones whose every target is the end of
/// the way are taken out, again and again. Mostly there are none, and thousands of forwards need no further look.
fn endless(forwards: &[Draft]) -> HashSet<&Address> {
    let mut left: HashMap<&Address, usize> = forwards.iter().filter_map(|f| Some((f.source.as_ref()?, 0))).collect();
    let mut into: HashMap<&Address, Vec<&Address>> = HashMap::new();
    for draft in forwards {
        let Some(source) = &draft.source else { continue };
        for target in draft.targets().filter(|target| left.contains_key(target)) {
            into.entry(target).or_default().push(source);
        }
    }
    for source in into.values().flatten() {
        if let Some(count) = left.get_mut(source) {
            *count += 1;
        }
    }
    let mut ends: Vec<&Address> = left.iter().filter(|(_, count)| **count == 0).map(|(source, _)| *source).collect();
    while let Some(end) = ends.pop() {
        left.remove(end);
        for source in into.get(end).into_iter().flatten() {
            if let Some(count) = left.get_mut(source) {
                *count -= 1;
                if *count == 0 {
                    ends.push(source);
                }
            }
        }
    }
    left.into_keys().collect()
}

/// The forwards by which jobs get from one queue to another, each with the queue it sends to; empty if it is the same
/// queue, none if there is no way.
fn way<'a>(
    edges: &HashMap<&'a Address, &'a Draft>,
    from: &'a Address,
    to: &Address,
) -> Option<Vec<(&'a Draft, &'a Address)>> {
    if from == to {
        return Some(Vec::new());
    }
    let mut seen = HashSet::from([from]);
    // Breadth first: of several ways the shortest is the clearest. Each reached queue, with the one it was reached from.
    let mut reached: Vec<(&Address, &Draft, Option<usize>)> = Vec::new();
    let mut next = 0;
    let mut here = Some((from, None));
    while let Some((queue, index)) = here {
        if let Some(draft) = edges.get(queue) {
            for target in draft.targets() {
                if seen.insert(target) {
                    reached.push((target, draft, index));
                }
                if target == to {
                    let mut way = Vec::new();
                    let mut step = Some(reached.len().checked_sub(1)?);
                    while let Some((queue, draft, before)) = step.and_then(|step| reached.get(step)) {
                        way.push((*draft, *queue));
                        step = *before;
                    }
                    way.reverse();
                    return Some(way);
                }
            }
        }
        here = reached.get(next).map(|(queue, _, _)| (*queue, Some(next)));
        next += 1;
    }
    None
}

fn loop_message(source: &Address, target: &Address, way: &[(&Draft, &Address)]) -> String {
    let mut queues = format!("{source} -> {target}");
    let mut others = Vec::new();
    for (draft, queue) in way {
        queues.push_str(&format!(" -> {queue}"));
        others.push(format!("the forward at {}", draft.spot.place()));
    }
    if others.is_empty() {
        return format!("this forward closes a loop in which jobs go round for ever: {queues}");
    }
    format!("this forward closes a loop in which jobs go round for ever: {queues}, with {}", others.join(", "))
}

/// Where a line of the Perl script's configuration language begins to be one.
fn perl(line: &str) -> Option<usize> {
    let start = line.find("$queues")?;
    let before = line.get(..start)?;
    let after = line.get(start + "$queues".len()..)?;
    let is_perl = after.trim_start().strip_prefix("->").is_some_and(|rest| rest.trim_start().starts_with('{'));
    let comment = before.trim_start().starts_with(['#', ';']);
    let callback = before.split_once('=').is_some_and(|(key, _)| keys::find(key.trim()).is_some());
    (is_perl && !comment && !callback).then_some(start)
}

fn missing_sign() -> String {
    "the `=` is missing: a line is `key = value`, or a comment that begins with `#`".to_owned()
}

fn unknown(key: &str) -> String {
    let shown = quoted(key);
    // An option of the Perl script that has no equal here.
    if key.trim_matches(['"', '\'']).eq_ignore_ascii_case("remoteQueue") {
        return format!("unknown key {shown}: the destination stands in the forward's own line, SOURCE = DESTINATION");
    }
    match keys::nearest(key) {
        Some(near) => format!("unknown key {shown}; the nearest known one is `{}`", near.name()),
        None if key.contains(':') => {
            format!("unknown key {shown}; if it should be a forward, its queue is missing: HOST:PORT/QUEUE")
        }
        None => {
            let names: Vec<&str> = keys::KEYS.iter().map(|entry| entry.name).collect();
            format!("unknown key {shown}; the known ones are {}", names.join(", "))
        }
    }
}

/// Digits and nothing else; std would take a sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}
