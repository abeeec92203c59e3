//! Turns lines into settings of the proxy and drafts of forwards, or into what is wrong with them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::address::{self, Address, AddressError, Parsed, check_written};
use super::error::{ConfigError, Place, quoted, secret};
use super::keys::{self, KEYS, Key, Kind, Scope};
use super::source::{Line, read_password};
use super::variables::{self, ExpansionError, Variables, is_name};
use crate::stages::cipher::Cipher;
use crate::stages::substitution::Substitution;

const MISSING_SIGN: &str = "the `=` is missing: a line is `key = value`, or a comment that begins with `#`";

const NOT_PERL: &str = "only s/PATTERN/REPLACEMENT/FLAGS is possible here, not Perl code: gearman-proxy-convert turns many \
                        callbacks into it";

/// Mod-Gearman uses no more of a password, bytes.
const MAX_PASSWORD: usize = 32;

/// A line, its number among all lines of all files, and a byte in it.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    order: usize,
    line: Arc<Line>,
    offset: usize,
}

impl Spot {
    fn at(&self, offset: usize) -> Spot {
        Spot { offset, ..self.clone() }
    }

    pub(super) fn place(&self) -> &Place {
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

/// The settings of the proxy, or of one forward. What is wrong has a spot but no value.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// In the order of the lines; substitutions may be given more than once.
    pub(super) given: Vec<(Key, Spot)>,
    pub(super) numbers: HashMap<Key, u64>,
    pub(super) paths: HashMap<Key, String>,
    pub(super) addresses: HashMap<Key, Address>,
    pub(super) ciphers: HashMap<Key, Cipher>,
    pub(super) substitutions: Vec<(Key, Substitution)>,
}

impl Settings {
    /// Where a key is given first.
    pub(super) fn spot(&self, key: Key) -> Option<&Spot> {
        self.given.iter().find(|(given, _)| *given == key).map(|(_, spot)| spot)
    }

    /// None if that is not known, because `async` is wrong.
    pub(super) fn is_asynchronous(&self) -> Option<bool> {
        let given = self.numbers.get(&Key::Async).map(|number| *number == 1);
        if self.spot(Key::Async).is_some() { given } else { Some(true) }
    }
}

/// A line `SOURCE = DESTINATION` with the settings under it.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) spot: Spot,
    /// Several, on one server, if the line has braces; none if the source is wrong.
    pub(super) sources: Vec<Address>,
    /// None if they are wrong.
    pub(super) destinations: Vec<Address>,
    pub(super) settings: Settings,
}

/// What is wrong, and what is legal but hardly meant.
#[derive(Default)]
pub(super) struct Report {
    /// With the number of the line among all lines, and the byte in it.
    pub(super) errors: Vec<(usize, usize, ConfigError)>,
    pub(super) warnings: Vec<String>,
    order: usize,
}

impl Report {
    /// Takes in an error that has no line.
    pub(super) fn error(&mut self, error: ConfigError) {
        self.order += 1;
        self.errors.push((self.order, 0, error));
    }

    pub(super) fn wrong(&mut self, spot: &Spot, message: impl Into<String>) {
        let error = ConfigError::in_line(spot.place(), &spot.line.text, spot.offset, message);
        self.errors.push((spot.order, spot.offset, error));
    }

    fn warn(&mut self, spot: &Spot, message: &str) {
        self.warnings.push(format!("{}: {message}", spot.place()));
    }
}

/// Reads files one after the other.
#[derive(Default)]
pub(super) struct Parser {
    variables: Variables,
    pub(super) report: Report,
    pub(super) globals: Settings,
    pub(super) drafts: Vec<Draft>,
    /// Whether a forward stands above in the same file.
    in_forward: bool,
    /// Whether others can read this file, and no password in it was met yet.
    world_readable: bool,
    /// Each once, so that a password is kept once.
    ciphers: Vec<Cipher>,
}

impl Parser {
    /// Reads a file's lines.
    pub(super) fn file(&mut self, lines: Vec<Line>, world_readable: bool) {
        self.in_forward = false;
        self.world_readable = world_readable;
        let lines: Vec<Arc<Line>> = lines.into_iter().map(Arc::new).collect();
        if let Some((line, offset)) = lines.iter().find_map(|line| Some((line, perl(&line.text)?))) {
            self.report.order += 1;
            let spot = Spot { order: self.report.order, line: Arc::clone(line), offset };
            let name = line.place.file.display();
            let message = format!(
                "this is a configuration of gearman_proxy.pl, which is Perl: convert it with \
                 `gearman-proxy-convert {name} > proxy.conf`"
            );
            return self.report.wrong(&spot, message);
        }
        for line in lines {
            self.report.order += 1;
            self.line(&Spot { order: self.report.order, line, offset: 0 });
        }
    }

    fn line(&mut self, start: &Spot) {
        let line = Arc::clone(&start.line);
        let whole = Part::trimmed(&line.text, 0);
        if whole.text.is_empty() || whole.text.starts_with(['#', ';']) {
            return;
        }
        let sign = line.text.find('=').unwrap_or(whole.offset + whole.text.len());
        let behind = line.text.get(sign + 1..);
        let broken = match (line.invalid, behind) {
            (Some(offset), _) => Some((offset, "this is not UTF-8: save the file as UTF-8")),
            (None, None) => Some((sign, MISSING_SIGN)),
            (None, Some(value)) if value.starts_with('>') => Some((sign, "`=>` is Perl: write `=` instead")),
            _ => None,
        };
        if let Some((offset, message)) = broken {
            self.report.wrong(&start.at(offset), message);
            // It is a forward if it looks like one, lest the options under it be taken for those of the forward above.
            if whole.text.split(['=', ' ', '\t']).next().is_some_and(|key| key.contains('/')) {
                self.draft(start, Vec::new(), Vec::new());
            }
            return;
        }
        let value = Part::trimmed(behind.unwrap_or_default(), sign + 1);
        let key = Part::trimmed(line.text.get(..sign).unwrap_or_default(), 0);
        let spot = start.at(key.offset);
        if key.text.is_empty() {
            self.report.wrong(&spot, "the key is missing before the `=`: a line is `key = value`");
        } else if key.text.contains('/') {
            self.forward(&spot, key, value);
        } else if let Some(name) = key.text.strip_prefix('$') {
            self.variable(&spot, name, value);
        } else if let Some(key) = keys::find(key.text) {
            self.option(&spot, key, value);
        } else {
            // Of a line such as `decrypt aGVsbG8=` what stands before the `=` is more than a key.
            let hidden = secret(&line.text).is_some_and(|start| start < key.offset + key.text.len());
            self.report.wrong(&spot, if hidden { MISSING_SIGN.to_owned() } else { unknown(key.text) });
        }
    }

    fn draft(&mut self, spot: &Spot, sources: Vec<Address>, destinations: Vec<Address>) {
        self.drafts.push(Draft { spot: spot.clone(), sources, destinations, settings: Settings::default() });
        self.in_forward = true;
    }

    fn variable(&mut self, spot: &Spot, name: &str, value: Part<'_>) {
        if !is_name(name) {
            let rule = variables::NAME;
            let message = format!("{} is not a variable's name: {rule}, set as `$name = value`", quoted(name));
            return self.report.wrong(&spot.at(spot.offset + 1), message);
        }
        self.doubt(spot, value.text);
        let value = self.expand(spot, value, |text| Ok(text.to_owned()));
        self.variables.set(name, value);
    }

    /// Expands a value and reads it. None if it is wrong, which was reported: what `read` finds, at its spot in the text
    /// as written.
    fn expand<T>(&mut self, spot: &Spot, part: Part<'_>, read: impl FnOnce(&str) -> Parsed<T>) -> Option<T> {
        let expanded = match self.variables.expand(part.text) {
            Ok(expanded) => expanded,
            Err(ExpansionError::Reported) => return None,
            Err(ExpansionError::Wrong { offset, message }) => {
                let instead = "a variable here can't be expanded: write `$$` for a `$` itself";
                self.wrong_quoting(&spot.at(part.offset + offset), message, instead);
                return None;
            }
        };
        let wrong = |AddressError { message, offset }| {
            let spot = spot.at(part.offset + variables::original(part.text, &expanded, offset));
            self.wrong_quoting(&spot, message, "this is not an address: HOST:PORT/QUEUE, with nothing behind it");
        };
        read(&expanded).map_err(wrong).ok()
    }

    /// Reports with a message that quotes the line, or with one that doesn't if the line may hold a password.
    fn wrong_quoting(&mut self, spot: &Spot, message: String, instead: &str) {
        let message = if secret(&spot.line.text).is_some() { instead.to_owned() } else { message };
        self.report.wrong(spot, message);
    }

    /// Warns of what is legal but hardly meant where any text is a value.
    fn doubt(&mut self, spot: &Spot, text: &str) {
        let quoted = |quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
        if quoted('"') || quoted('\'') {
            self.report.warn(spot, "the quotes are part of the value: write it without quotes");
        }
        if text.ends_with([';', ',']) {
            self.report.warn(spot, "the value ends in `;` or `,`, which is part of it: a line needs no end");
        }
        if text.contains(" #") || text.contains("\t#") {
            self.report.warn(spot, "the value holds ` #`: a comment has a line of its own");
        }
    }

    fn forward(&mut self, spot: &Spot, key: Part<'_>, value: Part<'_>) {
        self.doubt(spot, value.text);
        let sources = self.expand(spot, key, address::sources);
        let destinations = self.expand(spot, value, address::destinations);
        self.draft(spot, sources.unwrap_or_default(), destinations.unwrap_or_default());
    }

    fn option(&mut self, spot: &Spot, key: Key, value: Part<'_>) {
        let name = key.name();
        let given = match self.drafts.last_mut() {
            _ if key.entry().scope == Scope::Global => &mut self.globals,
            Some(draft) if self.in_forward => &mut draft.settings,
            _ => {
                let message = format!(
                    "`{name}` is a forward's option and stands before any forward: it belongs under a line \
                     `SOURCE = DESTINATION` of the same file"
                );
                return self.report.wrong(spot, message);
            }
        };
        if let Some(first) = given.spot(key).filter(|_| !key.takes_substitution()) {
            let message = format!("`{name}` is given twice, first at {}", first.place());
            return self.report.wrong(spot, message);
        }
        given.given.push((key, spot.clone()));
        // Out of its place for as long as the parser reads on its behalf.
        let mut settings = std::mem::take(given);
        self.value(spot, key, value, &mut settings);
        match self.drafts.last_mut() {
            Some(draft) if key.entry().scope != Scope::Global => draft.settings = settings,
            _ => self.globals = settings,
        }
    }

    fn value(&mut self, spot: &Spot, key: Key, value: Part<'_>, settings: &mut Settings) {
        let (text, kind) = (value.text, &key.entry().kind);
        if text.is_empty() {
            let message = format!("`{}` has no value: expected {}", key.name(), key.entry().values);
            return self.report.wrong(&spot.at(value.offset), message);
        }
        if matches!(kind, Kind::Path | Kind::Address | Kind::Queue | Kind::Password) {
            self.doubt(spot, text);
        }
        let number = match kind {
            Kind::Words(words) => words.iter().position(|word| *word == text).map(|position| position as u64),
            Kind::Number(range) => digits(text).filter(|number| range.contains(number)),
            Kind::Size(range) => size(text).filter(|bytes| range.contains(bytes)),
            Kind::Substitution => {
                return settings.substitutions.extend(self.substitution(spot, value).map(|s| (key, s)));
            }
            Kind::Path => return settings.paths.extend(self.output(spot, value).map(|path| (key, path))),
            Kind::Password => return settings.ciphers.extend(self.password(spot, value).map(|cipher| (key, cipher))),
            Kind::Queue => return settings.addresses.extend(self.reject_queue(spot, value).map(|queue| (key, queue))),
            Kind::Address => {
                return settings
                    .addresses
                    .extend(self.expand(spot, value, Address::parse).map(|address| (key, address)));
            }
        };
        if number.is_none() {
            let comment = if text.contains(['#', ';']) { "; a comment has a line of its own" } else { "" };
            let expected = format!("for `{}`: expected {}{comment}", key.name(), key.entry().values);
            let message = format!("invalid value {} {expected}", quoted(text));
            self.wrong_quoting(&spot.at(value.offset), message, &format!("invalid value {expected}"));
        }
        settings.numbers.extend(number.map(|number| (key, number)));
    }

    fn substitution(&mut self, spot: &Spot, value: Part<'_>) -> Option<Substitution> {
        let (offset, message) = match Substitution::parse(value.text) {
            Ok(substitution) => return Some(substitution),
            Err(_) if value.text.starts_with("sub") => (0, NOT_PERL.to_owned()),
            Err(error) => (error.offset, error.message),
        };
        self.report.wrong(&spot.at(value.offset + offset), message);
        None
    }

    /// An address, or a queue name alone, on the source's server.
    fn reject_queue(&mut self, spot: &Spot, value: Part<'_>) -> Option<Address> {
        let source = self.drafts.last().and_then(|draft| draft.sources.first()).cloned();
        let read = |text: &str| {
            if text.contains('/') {
                return Address::parse(text).map(Some);
            }
            check_written(text, "")?;
            Ok(source.map(|source| source.with_queue(text)))
        };
        self.expand(spot, value, read).flatten()
    }

    fn path(&mut self, spot: &Spot, value: Part<'_>) -> Option<String> {
        let read = |text: &str| match text {
            "" => Err(AddressError { message: "the path is empty".to_owned(), offset: 0 }),
            _ => Ok(text.to_owned()),
        };
        let path = self.expand(spot, value, read)?;
        if path.starts_with('~') {
            self.report.warn(spot, "`~` is not expanded: write the whole path");
        }
        Some(path)
    }

    /// The path of a file that will be written, or `stdout` and the like.
    fn output(&mut self, spot: &Spot, value: Part<'_>) -> Option<String> {
        let path = self.path(spot, value)?;
        let folder =
            Path::new(&path).parent().map(|folder| folder.to_string_lossy()).filter(|folder| !folder.is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.starts_with('~') && !Path::new(folder.as_ref()).is_dir()) {
            self.report.warn(spot, &format!("the folder {} does not exist: create it", quoted(&folder)));
        }
        Some(path)
    }

    fn password(&mut self, spot: &Spot, value: Part<'_>) -> Option<Cipher> {
        let Some(path) = value.text.strip_prefix("file:") else {
            if self.variables.is_variable(value.text) {
                self.report.warn(spot, "the password is a variable's name: passwords are not expanded");
            }
            if Path::new(value.text).is_file() {
                self.report.warn(spot, "the password is the path of an existing file: write file:PATH to read it");
            }
            if std::mem::take(&mut self.world_readable) {
                self.report.warn(spot, "a password stands in this file, which is world-readable: run chmod o-r");
            }
            return Some(self.cipher(spot, value.text.as_bytes()));
        };
        let path = Part::trimmed(path, value.offset + "file:".len());
        let name = self.path(spot, path)?;
        let shown = quoted(&name);
        let wrong = |reason| self.report.wrong(&spot.at(path.offset), format!("password file {shown} {reason}"));
        let (password, world_readable) = read_password(&name).map_err(wrong).ok()?;
        if world_readable {
            self.report.warn(spot, &format!("password file {shown} is world-readable: run chmod o-r"));
        }
        Some(self.cipher(spot, &password))
    }

    fn cipher(&mut self, spot: &Spot, password: &[u8]) -> Cipher {
        if password.len() > MAX_PASSWORD {
            let message = format!("the password is longer than {MAX_PASSWORD} bytes: Mod-Gearman uses no more of it");
            self.report.warn(spot, &message);
        }
        let cipher = Cipher::new(password);
        let known = self.ciphers.iter().position(|known| *known == cipher).unwrap_or_else(|| {
            self.ciphers.push(cipher);
            self.ciphers.len() - 1
        });
        self.ciphers[known].clone()
    }
}

/// Where a line of the Perl script's configuration language begins to be one.
fn perl(line: &str) -> Option<usize> {
    let (before, after) = line.split_once("$queues")?;
    let is_perl = after.trim_start().strip_prefix("->").is_some_and(|rest| rest.trim_start().starts_with('{'))
        || after.trim_start().strip_prefix('=').is_some_and(|rest| rest.trim() == "{" || rest.contains("=>"));
    let comment = before.trim_start().starts_with(['#', ';']);
    let callback = before.split_once('=').is_some_and(|(key, _)| keys::find(key.trim()).is_some());
    (is_perl && !comment && !callback).then_some(before.len())
}

fn unknown(key: &str) -> String {
    let shown = quoted(key);
    // An option of the Perl script that has no equal here.
    if key.trim_matches(['"', '\'']).eq_ignore_ascii_case("remoteQueue") {
        return format!("unknown key {shown}: the destination stands in the forward's own line, SOURCE = DESTINATION");
    }
    match keys::nearest(key, KEYS.iter().map(|entry| entry.name)) {
        Some(near) => format!("unknown key {shown}: did you mean `{near}`?"),
        None if key.contains([':', '.']) => {
            format!("unknown key {shown}: if it is the source of a forward, its queue is missing: HOST:PORT/QUEUE")
        }
        None => {
            let names: Vec<&str> = KEYS.iter().map(|entry| entry.name).collect();
            format!("unknown key {shown}: the known ones are {}", names.join(", "))
        }
    }
}

/// Digits and nothing else; std would take a sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Bytes, from digits with K, M, G or nothing behind them.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) => (number, text.get(number.len()..)?),
        None => (text, ""),
    };
    let shift = ["", "K", "M", "G"].iter().position(|known| *known == unit)? * 10;
    digits(number)?.checked_mul(1 << shift)
}
