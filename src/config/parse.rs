//! Turns lines into settings of the proxy and drafts of forwards, or into what is wrong with them.

use std::path::Path;
use std::time::Duration;

use super::address::{self, Address, check_written};
use super::error::{Place, in_line, quoted, secret};
use super::keys::{self, Entry, KEYS, Key, Kind, Scope};
use super::source::{Line, read_password};
use super::variables::{self, Variables, is_name};
use super::{Config, ForwardConfig, LogTarget, Priority};
use crate::stages::cipher::Cipher;
use crate::stages::substitution::Substitution;
use crate::syntax::{SyntaxError, fail};

const MISSING_SIGN: &str = "the `=` is missing: a line is `key = value`, or a comment that begins with `#`";

const NOT_PERL: &str = "only s/PATTERN/REPLACEMENT/FLAGS is possible here, not Perl code: gearman-proxy-convert turns many \
                        callbacks into it";

/// Mod-Gearman uses no more of a password, bytes.
const MAX_PASSWORD: usize = 32;

/// A piece of a line, without the blanks around it.
#[derive(Clone, Copy)]
pub(super) struct Piece<'l> {
    line: &'l Line,
    /// The line's number among all lines of all files.
    order: usize,
    text: &'l str,
    /// Bytes from the line's beginning.
    offset: usize,
}

impl<'l> Piece<'l> {
    /// What stands between these two places in its line.
    fn between(self, from: usize, to: usize) -> Piece<'l> {
        let text = self.line.text.get(from..to).unwrap_or_default().trim_end_matches([' ', '\t']);
        let trimmed = text.trim_start_matches([' ', '\t']);
        Piece { text: trimmed, offset: from + text.len() - trimmed.len(), ..self }
    }

    /// For a report: another place in its line.
    fn at(self, offset: usize) -> Piece<'l> {
        Piece { offset, ..self }
    }

    pub(super) fn place(self) -> &'l Place {
        &self.line.place
    }
}

/// Where keys are given, in the order of the lines; substitutions may be given more than once.
pub(super) type Given<'l> = Vec<(Key, Piece<'l>)>;

/// A line `SOURCE = DESTINATION` with the options under it.
pub(super) struct Draft<'l> {
    pub(super) key: Piece<'l>,
    /// Several, on one server, if the line has braces; none if the source is wrong.
    pub(super) sources: Vec<Address>,
    pub(super) given: Given<'l>,
    /// What `async` says; none if it is wrong or not given.
    pub(super) asynchronous: Option<bool>,
    /// With the first of the sources.
    pub(super) forward: ForwardConfig,
}

/// What is wrong, and what is legal but hardly meant.
#[derive(Default)]
pub(super) struct Report {
    /// With the number of the line among all lines, and the byte in it.
    pub(super) errors: Vec<(usize, usize, String)>,
    pub(super) warnings: Vec<String>,
    order: usize,
}

impl Report {
    /// Takes in an error that has no line.
    pub(super) fn error(&mut self, error: String) {
        self.order += 1;
        self.errors.push((self.order, 0, error));
    }

    pub(super) fn wrong(&mut self, spot: Piece<'_>, message: impl AsRef<str>) {
        let error = in_line(spot.place(), &spot.line.text, spot.offset, message);
        self.errors.push((spot.order, spot.offset, error));
    }

    fn refuse<T>(&mut self, spot: Piece<'_>, message: impl AsRef<str>) -> Option<T> {
        self.wrong(spot, message);
        None
    }

    /// Reports with a message that quotes the line, or with one that doesn't if the line may hold a password.
    fn refuse_quoting<T>(&mut self, spot: Piece<'_>, message: &str, instead: &str) -> Option<T> {
        self.refuse(spot, if secret(&spot.line.text).is_some() { instead } else { message })
    }

    fn warn(&mut self, spot: Piece<'_>, message: &str) {
        self.warnings.push(format!("{}: {message}", spot.place()));
    }
}

/// Where a key is given first.
pub(super) fn first<'l>(given: &[(Key, Piece<'l>)], key: Key) -> Option<Piece<'l>> {
    given.iter().find(|(given, _)| *given == key).map(|(_, spot)| *spot)
}

/// Reads files one after the other. Its functions give None where something is wrong, which they have reported.
#[derive(Default)]
pub(super) struct Parser<'l> {
    variables: Variables,
    pub(super) report: Report,
    /// The values of the global keys.
    pub(super) config: Config,
    pub(super) given: Given<'l>,
    pub(super) drafts: Vec<Draft<'l>>,
    /// Whether a forward stands above in the same file.
    in_forward: bool,
    /// Whether others can read this file, and no password in it was met yet.
    world_readable: bool,
}

impl<'l> Parser<'l> {
    /// Reads a file's lines.
    pub(super) fn file(&mut self, lines: &'l [Line], world_readable: bool) {
        self.in_forward = false;
        self.world_readable = world_readable;
        if let Some((Line { place, text, .. }, offset)) = lines.iter().find_map(|line| Some((line, perl(&line.text)?)))
        {
            let message = format!(
                "this is a configuration of gearman_proxy.pl, which is Perl: convert it with \
                 `gearman-proxy-convert {} > proxy.conf`",
                place.file.display()
            );
            return self.report.error(in_line(place, text, offset, message));
        }
        for line in lines {
            self.report.order += 1;
            let whole = Piece { line, order: self.report.order, text: &line.text, offset: 0 };
            self.line(whole.between(0, line.text.len()));
        }
    }

    fn line(&mut self, whole: Piece<'l>) -> Option<()> {
        if whole.text.is_empty() || whole.text.starts_with(['#', ';']) {
            return None;
        }
        let text = whole.line.text.as_str();
        let sign = text.find('=');
        let broken = match (whole.line.invalid, sign) {
            (Some(offset), _) => Some((offset, "this is not UTF-8: save the file as UTF-8")),
            (None, None) => Some((whole.offset + whole.text.len(), MISSING_SIGN)),
            (None, Some(sign)) if text[sign..].starts_with("=>") => Some((sign, "`=>` is Perl: write `=` instead")),
            _ => None,
        };
        if let Some((offset, message)) = broken {
            // It is a forward if it looks like one, lest the options under it be taken for those of the forward above.
            if whole.text.split(['=', ' ', '\t']).next().is_some_and(|key| key.contains('/')) {
                self.draft(whole, Vec::new(), Vec::new());
            }
            return self.report.refuse(whole.at(offset), message);
        }
        let (key, value) = (whole.between(0, sign?), whole.between(sign? + 1, text.len()));
        if key.text.is_empty() {
            self.report.refuse(key, "the key is missing before the `=`: a line is `key = value`")
        } else if key.text.contains('/') {
            self.doubt(value);
            let sources = self.expand(key, address::sources).unwrap_or_default();
            let destinations = self.expand(value, address::destinations).unwrap_or_default();
            self.draft(key, sources, destinations)
        } else if let Some(name) = key.text.strip_prefix('$') {
            self.variable(key, name, value)
        } else if let Some(known) = keys::find(key.text) {
            self.option(key, known, value)
        } else {
            // Of a line such as `decrypt aGVsbG8=` what stands before the `=` is more than a key.
            let hidden = secret(text).is_some_and(|start| start < key.offset + key.text.len());
            self.report.refuse(key, if hidden { MISSING_SIGN.to_owned() } else { unknown(key.text) })
        }
    }

    fn draft(&mut self, key: Piece<'l>, sources: Vec<Address>, destinations: Vec<Address>) -> Option<()> {
        // Without a source there is no configuration in the end.
        let source = sources.first().cloned().unwrap_or_default();
        let place = key.place().clone();
        let forward = ForwardConfig { place, destinations, ..ForwardConfig::between(source, Address::default()) };
        self.drafts.push(Draft { key, sources, given: Vec::new(), asynchronous: None, forward });
        self.in_forward = true;
        Some(())
    }

    fn variable(&mut self, key: Piece<'_>, name: &str, value: Piece<'_>) -> Option<()> {
        if !is_name(name) {
            let rule = variables::NAME;
            let message = format!("{} is not a variable's name: {rule}, set as `$name = value`", quoted(name));
            return self.report.refuse(key.at(key.offset + 1), message);
        }
        self.doubt(value);
        let value = self.expand(value, |text| Ok(text.to_owned()));
        self.variables.set(name, value);
        Some(())
    }

    /// Expands a value and reads it. What `read` finds wrong is reported at its spot in the text as written.
    fn expand<T>(&mut self, written: Piece<'_>, read: impl FnOnce(&str) -> Result<T, SyntaxError>) -> Option<T> {
        let expanded = match self.variables.expand(written.text) {
            Ok(expanded) => expanded,
            Err(error) => {
                let SyntaxError { message, offset } = error?;
                let instead = "a variable here can't be expanded: write `$$` for a `$` itself";
                return self.report.refuse_quoting(written.at(written.offset + offset), &message, instead);
            }
        };
        read(&expanded).map(Some).unwrap_or_else(|SyntaxError { message, offset }| {
            let spot = written.at(written.offset + variables::original(written.text, &expanded, offset));
            let instead = "this is not an address: HOST:PORT/QUEUE, with nothing behind it";
            self.report.refuse_quoting(spot, &message, instead)
        })
    }

    /// Warns of what is legal but hardly meant where any text is a value.
    fn doubt(&mut self, value: Piece<'_>) {
        let text = value.text;
        let quoted = |quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
        for (is_doubtful, warning) in [
            (quoted('"') || quoted('\''), "the quotes are part of the value: write it without quotes"),
            (text.ends_with([';', ',']), "the value ends in `;` or `,`, which is part of it: a line needs no end"),
            (text.contains(" #") || text.contains("\t#"), "the value holds ` #`: a comment has a line of its own"),
        ] {
            if is_doubtful {
                self.report.warn(value, warning);
            }
        }
    }

    fn option(&mut self, spot: Piece<'l>, key: Key, value: Piece<'_>) -> Option<()> {
        let Entry { name, values, kind, scope, .. } = key.entry();
        let is_global = *scope == Scope::Global;
        // Out of its place for as long as the parser reads on its behalf.
        let mut draft = self.drafts.pop_if(|_| self.in_forward && !is_global);
        let given = match &mut draft {
            Some(draft) => &mut draft.given,
            None if is_global => &mut self.given,
            None => {
                let message = format!(
                    "`{name}` is a forward's option and stands before any forward: it belongs under a line \
                     `SOURCE = DESTINATION` of the same file"
                );
                return self.report.refuse(spot, message);
            }
        };
        let may_repeat = matches!(kind, Kind::Substitution);
        let first = if may_repeat { None } else { first(given, key).map(Piece::place) };
        if first.is_none() {
            given.push((key, spot));
            if matches!(kind, Kind::Path | Kind::Address | Kind::Queue | Kind::Password) {
                self.doubt(value);
            }
        }
        let is_read = match (first, &mut draft) {
            (Some(first), _) => self.report.refuse(spot, format!("`{name}` is given twice, first at {first}")),
            _ if value.text.is_empty() => {
                self.report.refuse(value, format!("`{name}` has no value: expected {values}"))
            }
            (None, Some(draft)) => self.of_forward(key, value, draft),
            (None, None) => self.global(key, value),
        };
        self.drafts.extend(draft);
        is_read
    }

    fn global(&mut self, key: Key, value: Piece<'_>) -> Option<()> {
        match key {
            Key::Debug => self.config.debug = self.number(key, value)? as u8,
            Key::MaxJobSize => self.config.max_job_size = self.number(key, value)?,
            Key::Logfile => self.config.logfile = LogTarget::from_text(self.output(value)?),
            Key::Pidfile => self.config.pidfile = Some(self.output(value)?.into()),
            Key::MetricsFile => self.config.metricsfile = Some(self.output(value)?.into()),
            _ => self.config.statusqueue = Some(self.expand(value, Address::parse)?),
        }
        Some(())
    }

    fn of_forward(&mut self, key: Key, value: Piece<'_>, draft: &mut Draft<'_>) -> Option<()> {
        let forward = &mut draft.forward;
        let time = |seconds: usize| (seconds > 0).then(|| Duration::from_secs(seconds as u64));
        match key {
            Key::Decrypt => forward.stages.decrypt = Some(self.password(value)?),
            Key::Encrypt => forward.stages.encrypt = Some(self.password(value)?),
            Key::DataCallback => forward.stages.data_callbacks.push(self.substitution(value)?),
            Key::UniqCallback => forward.stages.uniq_callbacks.push(self.substitution(value)?),
            Key::Async => draft.asynchronous = self.number(key, value).map(|number| number == 1),
            Key::Worker => forward.workers = self.number(key, value)?,
            Key::Prefetch => {
                forward.prefetch_is_explicit = true;
                forward.prefetch = self.number(key, value)?;
            }
            Key::Priority => forward.priority = Priority::ALL[self.number(key, value)?],
            Key::Timeout => forward.timeout = time(self.number(key, value)?),
            Key::MaxAge => {
                forward.max_age = time(self.number(key, value)?);
                forward.stages.reads_time = forward.max_age.is_some();
            }
            _ => {
                let read = |text: &str| match text.contains('/') {
                    true => Address::parse(text),
                    false => check_written(text, "").map(|()| forward.source.with_queue(text)),
                };
                forward.reject_queue = Some(self.expand(value, read)?);
            }
        }
        Some(())
    }

    fn number(&mut self, key: Key, value: Piece<'_>) -> Option<usize> {
        let Entry { name, values, kind, .. } = key.entry();
        let text = value.text;
        let number = match kind {
            Kind::Words(words) => words.iter().position(|word| *word == text),
            Kind::Number(range) => digits(text).filter(|number| range.contains(number)),
            Kind::Size(range) => size(text).filter(|bytes| range.contains(bytes)),
            _ => None,
        };
        number.or_else(|| {
            let comment = if text.contains(['#', ';']) { "; a comment has a line of its own" } else { "" };
            let expected = format!("for `{name}`: expected {values}{comment}");
            let message = format!("invalid value {} {expected}", quoted(text));
            self.report.refuse_quoting(value, &message, &format!("invalid value {expected}"))
        })
    }

    fn substitution(&mut self, value: Piece<'_>) -> Option<Substitution> {
        let (offset, message) = match Substitution::parse(value.text) {
            Ok(substitution) => return Some(substitution),
            Err(_) if value.text.starts_with("sub") => (0, NOT_PERL.to_owned()),
            Err(error) => (error.offset, error.message),
        };
        self.report.refuse(value.at(value.offset + offset), message)
    }

    fn path(&mut self, value: Piece<'_>) -> Option<String> {
        let read = |text: &str| if text.is_empty() { fail(0, "the path is empty") } else { Ok(text.to_owned()) };
        let path = self.expand(value, read)?;
        if path.starts_with('~') {
            self.report.warn(value, "`~` is not expanded: write the whole path");
        }
        Some(path)
    }

    /// The path of a file that will be written, or `stdout` and the like.
    fn output(&mut self, value: Piece<'_>) -> Option<String> {
        let path = self.path(value)?;
        let folder = Path::new(&path).parent().and_then(Path::to_str).unwrap_or_default();
        if !folder.is_empty() && !folder.starts_with('~') && !Path::new(folder).is_dir() {
            self.report.warn(value, &format!("the folder {} does not exist: create it", quoted(folder)));
        }
        Some(path)
    }

    fn password(&mut self, value: Piece<'_>) -> Option<Cipher> {
        let password = if let Some(path) = value.text.strip_prefix("file:") {
            let end = value.offset + value.text.len();
            let path = value.between(end - path.len(), end);
            let name = self.path(path)?;
            let shown = quoted(&name);
            let wrong = |reason| self.report.wrong(path, format!("password file {shown} {reason}"));
            let (password, world_readable) = read_password(&name).map_err(wrong).ok()?;
            if world_readable {
                self.report.warn(value, &format!("password file {shown} is world-readable: run chmod o-r"));
            }
            password
        } else {
            if self.variables.is_variable(value.text) {
                self.report.warn(value, "the password is a variable's name: passwords are not expanded");
            }
            if Path::new(value.text).is_file() {
                self.report.warn(value, "the password is the path of an existing file: write file:PATH to read it");
            }
            if std::mem::take(&mut self.world_readable) {
                self.report.warn(value, "a password stands in this file, which is world-readable: run chmod o-r");
            }
            value.text.into()
        };
        if password.len() > MAX_PASSWORD {
            let message = format!("the password is longer than {MAX_PASSWORD} bytes: Mod-Gearman uses no more of it");
            self.report.warn(value, &message);
        }
        Some(Cipher::new(&password))
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
fn digits(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Bytes, from digits with K, M, G or nothing behind them.
fn size(text: &str) -> Option<usize> {
    let number = text.trim_end_matches(['K', 'M', 'G']);
    let shift = ["", "K", "M", "G"].iter().position(|unit| text.get(number.len()..) == Some(unit))? * 10;
    digits(number)?.checked_mul(1 << shift)
}
