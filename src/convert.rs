//! `--convert`: a configuration of the Perl proxy in, this program's language out.
//!
//! Such a configuration is a Perl program. [`perl`] runs it with the `perl` of the machine, as the Perl proxy itself
//! did, and takes what it leaves behind, so variables, loops and computed keys need no understanding. [`callback`]
//! and [`substitution`] translate callbacks that only substitute. What can't be said in this language, or not
//! exactly, is left for a person: its forward stands in the output as a comment, since a forward without its callback
//! or its password would send jobs that nobody can read.

mod callback;
mod perl;
mod substitution;

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::config::Address;
use perl::{Callback, Forward, Reading, Setting, Value};

/// Everything was converted.
const CONVERTED: u8 = 0;
/// Something is left for a person.
const LEFT: u8 = 1;
/// Nothing was converted.
const FAILED: u8 = 2;

/// The submitters that a forward may have here.
const MAX_WORKERS: i64 = 1000;

/// Prints the configurations of the Perl proxy in these files and folders to `out` in this program's language, and
/// what there is to say about them to `err`.
///
/// The files are executed by `perl`. The outcome is the exit status: 0 all is converted, 1 something is left for a
/// person (it stands in the output as a comment), 2 there is no Perl, or it refused the files, or the output can't be
/// written.
pub fn run(files: &[PathBuf], out: &mut impl Write, err: &mut impl Write) -> u8 {
    let status = convert(files, out, err).unwrap_or_else(|error| {
        // A closed standard error leaves nobody to tell.
        let _ = writeln!(err, "gearman-proxy: cannot write the converted configuration: {error}");
        FAILED
    });
    let _ = err.flush();
    status
}

fn convert(files: &[PathBuf], out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let reading = match perl::read(files, err) {
        Ok(reading) => reading,
        Err(message) => {
            let _ = writeln!(err, "gearman-proxy: {message}");
            return Ok(FAILED);
        }
    };
    for message in &reading.errors {
        let _ = writeln!(err, "gearman-proxy: {message}");
    }
    if !reading.errors.is_empty() {
        return Ok(FAILED);
    }
    if reading.forwards.is_empty() {
        let _ = writeln!(err, "gearman-proxy: {}: $queues is empty, there is no forward", reading.files.join(", "));
        return Ok(FAILED);
    }

    let globals = globals(&reading);
    let mut sources = HashSet::new();
    let forwards: Vec<Entry> = reading.forwards.iter().map(|one| forward(one, &reading, &mut sources)).collect();
    out.write_all(written(&reading, &globals, &forwards).as_bytes())?;
    out.flush()?;

    let mut left = 0;
    for entry in globals.iter().chain(&forwards) {
        for reason in &entry.left {
            left += 1;
            let _ = writeln!(err, "{}: {}: {}", reason.place, entry.name, reason.message);
        }
    }
    if left == 0 {
        return Ok(CONVERTED);
    }
    let _ = writeln!(
        err,
        "gearman-proxy: {left} {} left for a person; the output has what they concern as comments (look for \
         LEFT FOR A PERSON)",
        if left == 1 { "thing is" } else { "things are" },
    );
    Ok(LEFT)
}

/// A global key or a forward with its options.
#[derive(Debug, Default)]
struct Entry {
    /// For messages.
    name: String,
    /// What this language says, a line each.
    lines: Vec<String>,
    /// What had no effect in Perl or needs no line here.
    notes: Vec<String>,
    /// Why a person has to look at it; then its lines are comments.
    left: Vec<Reason>,
}

#[derive(Debug)]
struct Reason {
    /// `FILE:LINE`, or the files.
    place: String,
    message: String,
    /// The Perl text that is meant.
    text: Option<String>,
}

fn written(reading: &Reading, globals: &[Entry], forwards: &[Entry]) -> String {
    let mut text = format!(
        "# Made by gearman-proxy {} --convert from {}.\n# Comments of the Perl configuration are not kept.\n",
        env!("CARGO_PKG_VERSION"),
        reading.files.iter().map(|file| printable(file)).collect::<Vec<_>>().join(", "),
    );
    let secret = |line: &String| {
        let option = line.trim_start();
        ["decrypt = ", "encrypt = "]
            .iter()
            .any(|key| option.strip_prefix(key).is_some_and(|password| !password.starts_with("file:")))
    };
    if forwards.iter().any(|entry| entry.lines.iter().any(secret)) {
        text.push_str(
            "# This file holds passwords: let only the proxy's user read it (chmod 600), or move each into a file of \
             its own\n# and write file:PATH instead.\n",
        );
    }
    let mut apart = true;
    for (index, entry) in globals.iter().chain(forwards).enumerate() {
        let remarks = !entry.notes.is_empty() || !entry.left.is_empty();
        let complex = remarks || entry.lines.len() > 1;
        if complex || apart || index == globals.len() {
            text.push('\n');
        }
        apart = complex;
        for reason in &entry.left {
            text.push_str(&format!("# LEFT FOR A PERSON: {}: {}\n", printable(&reason.place), reason.message));
            for line in reason.text.iter().flat_map(|text| text.lines()) {
                text.push_str(format!("#     {}", printable(line)).trim_end());
                text.push('\n');
            }
        }
        for note in &entry.notes {
            text.push_str(&format!("# {note}\n"));
        }
        for line in &entry.lines {
            text.push_str(if entry.left.is_empty() { "" } else { "# " });
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// On one line whatever it holds.
fn printable(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() && character != '\t' { '\u{fffd}' } else { character })
        .collect()
}

/// Where this language expands `$`, a `$` is written twice.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

fn globals(reading: &Reading) -> Vec<Entry> {
    let mut entries = Vec::new();
    for name in ["logfile", "pidfile"] {
        let value = reading.global(name);
        if !value.is_true() {
            continue;
        }
        let mut entry = Entry { name: name.to_owned(), ..Entry::default() };
        match value.text().and_then(written_as_it_is) {
            Ok(path) if name == "logfile" => match path.to_lowercase().as_str() {
                "stdout" | "-" => continue,
                "stderr" => entry.lines.push("logfile = stderr".to_owned()),
                _ => entry.lines.push(format!("logfile = {}", escaped(path))),
            },
            Ok(path) => entry.lines.push(format!("{name} = {}", escaped(path))),
            Err(why) => entry.leave(reading, format!("${name} {why}"), None),
        }
        entries.push(entry);
    }
    let debug = reading.global("debug");
    if debug.is_true() {
        let level = debug.integer().clamp(1, 2);
        entries.push(Entry { name: "debug".to_owned(), lines: vec![format!("debug = {level}")], ..Entry::default() });
    }
    let status = reading.global("statusqueue");
    if status.is_true() {
        let mut entry = Entry { name: "statusqueue".to_owned(), ..Entry::default() };
        // The Perl proxy drops what follows a second slash.
        let kept = status.text().map(|text| text.splitn(3, '/').take(2).collect::<Vec<_>>().join("/"));
        match kept.and_then(|text| address(&text)) {
            Ok(address) => entry.lines.push(format!("statusqueue = {}", escaped(&address.to_string()))),
            Err(why) => entry.leave(reading, format!("$statusqueue {why}"), None),
        }
        entries.push(entry);
    }
    entries
}

/// A value whose blanks at either end or line ends would be lost in a `key = value` line can't be written.
fn written_as_it_is(text: &str) -> Result<&str, String> {
    if text.trim() != text || text.contains(|character: char| character.is_control()) {
        Err("has blanks at its ends or control characters, which a line can't hold".to_owned())
    } else {
        Ok(text)
    }
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|error| format!("is no address here: {error}"))
}

/// The address of a forward; in a key a `=` would end it.
fn source(value: &Value) -> Result<Address, String> {
    let address = address(value.text()?)?;
    if address.to_string().contains('=') {
        return Err(format!("`{address}` has a `=`, which a key can't hold"));
    }
    Ok(address)
}

fn forward(forward: &Forward, reading: &Reading, sources: &mut HashSet<Address>) -> Entry {
    let mut from = printable(&forward.source.shown());
    let mut entry = Entry { name: from.clone(), ..Entry::default() };
    match source(&forward.source) {
        Ok(address) => {
            from = escaped(&address.to_string());
            if !sources.insert(address) {
                entry.leave(reading, format!("the source {from} has another forward already"), None);
            }
        }
        Err(why) => entry.leave(reading, format!("the source {why}"), None),
    }
    if let Some(value) = &forward.unusable {
        let why = value.text().err().unwrap_or_default();
        entry.leave(reading, format!("what stands under this source {why}: the Perl proxy died of it"), None);
        entry.lines.push(format!("{from} = HOST:PORT/QUEUE"));
        return entry;
    }
    let destination = match forward.option("remoteQueue") {
        Some(Setting::Plain(value)) if value.is_true() => value.text().and_then(address),
        Some(Setting::Sub(_)) => Err("is a sub".to_owned()),
        _ => Err("is missing: the Perl proxy passed over this forward".to_owned()),
    };
    match destination {
        Ok(address) => entry.lines.push(format!("{from} = {}", escaped(&address.to_string()))),
        Err(why) => {
            entry.leave(reading, format!("remoteQueue {why}"), None);
            entry.lines.push(format!("{from} = HOST:PORT/QUEUE"));
        }
    }
    options(&mut entry, forward, reading);
    entry
}

fn options(entry: &mut Entry, forward: &Forward, reading: &Reading) {
    let asynchronous = match forward.option("async") {
        None | Some(Setting::Plain(Value::Undefined)) => true,
        Some(Setting::Plain(value)) => value.is_true(),
        Some(Setting::Sub(_)) => true,
    };
    let decrypts = password(entry, "decrypt", forward, reading);
    let encrypts = password(entry, "encrypt", forward, reading);
    match forward.option("data_callback") {
        Some(Setting::Sub(callback)) => {
            callbacks(entry, callback, asynchronous, decrypts && !encrypts, reading);
        }
        Some(Setting::Plain(value)) if value.is_true() => {
            entry.leave(reading, "data_callback is no sub".to_owned(), None);
            entry.lines.push(PLACEHOLDER.to_owned());
        }
        _ => {}
    }
    if !asynchronous {
        entry.lines.push("    async = 0".to_owned());
    }
    let workers = match forward.option("worker") {
        None | Some(Setting::Plain(Value::Undefined)) => 1,
        Some(Setting::Plain(value)) => value.integer(),
        Some(Setting::Sub(_)) => 0,
    };
    match workers {
        1 => {}
        _ if asynchronous => entry
            .notes
            .push(format!("worker = {workers} is dropped: it had no effect on asynchronous forwards in Perl.")),
        2..=MAX_WORKERS => entry.lines.push(format!("    worker = {workers}")),
        ..1 => {
            let why = format!("worker is {workers}: the Perl proxy took no job from this queue");
            entry.leave(reading, why, None);
        }
        _ => {
            let why = format!("worker is {workers}, more than the {MAX_WORKERS} there may be here");
            entry.leave(reading, why, None);
            entry.lines.push(format!("    worker = {MAX_WORKERS}"));
        }
    }
    for (name, _) in &forward.options {
        match name.as_str() {
            "remoteQueue" | "async" | "worker" | "decrypt" | "encrypt" | "data_callback" => {}
            "remoteHost" | "localHost" | "localQueue" => {
                entry.notes.push(format!("`{name}` is dropped: the Perl proxy set it itself, from the addresses."))
            }
            other => entry.notes.push(format!(
                "`{}` is dropped: there is no such option here, nor in the Perl proxy.",
                printable(other)
            )),
        }
    }
}

/// What a person is to write in place of a callback.
const PLACEHOLDER: &str = "    data_callback = s/PATTERN/REPLACEMENT/";

fn callbacks(entry: &mut Entry, callback: &Callback, asynchronous: bool, must_have_one: bool, reading: &Reading) {
    let translation = match &callback.marked {
        Ok(marked) => callback::translate(marked, &callback.variables, callback.characters),
        Err(why) => Err(why.clone()),
    };
    let translation = match translation {
        Ok(translation) => translation,
        Err(why) => {
            entry.leave(reading, format!("data_callback {why}"), Some(callback));
            entry.lines.push(PLACEHOLDER.to_owned());
            return;
        }
    };
    let mut data = translation.data;
    if data.is_empty() && must_have_one {
        // Having a callback decides whether the decrypted text is sent in base64.
        entry
            .notes
            .push("The Perl callback changes nothing, but with one the decrypted text is sent in base64.".to_owned());
        data.push("s/^//".to_owned());
    } else if data.is_empty() && translation.unique.is_none() {
        entry.notes.push("data_callback is dropped: it changes nothing.".to_owned());
    }
    entry.lines.extend(data.iter().map(|text| format!("    data_callback = {text}")));
    match translation.unique {
        Some(unique) if asynchronous => {
            entry.lines.extend(unique.iter().map(|text| format!("    uniq_callback = {text}")));
        }
        Some(_) => entry.notes.push(
            "The callback's unique id is dropped: jobs of synchronous forwards have ids that are never used again."
                .to_owned(),
        ),
        None => {}
    }
}

/// Writes `decrypt` or `encrypt`; whether the forward has it.
fn password(entry: &mut Entry, key: &str, forward: &Forward, reading: &Reading) -> bool {
    let value = match forward.option(key) {
        Some(Setting::Plain(value)) if value.is_true() => value,
        Some(Setting::Sub(_)) => {
            entry.leave(reading, format!("{key} is a sub, not a password"), None);
            entry.lines.push(format!("    {key} = file:PATH"));
            return true;
        }
        _ => return false,
    };
    // Messages go to terminals and logs: none shows the password.
    let line = match value {
        Value::Bytes(bytes) => match std::str::from_utf8(bytes).map(written_as_it_is) {
            Ok(Ok(text)) => match text.strip_prefix("file:") {
                Some("") => Err("names no file"),
                Some(path) if path.trim() != path => Err("names a file with blanks at the ends of its name"),
                Some(path) => Ok(format!("file:{}", escaped(path))),
                None => Ok(text.to_owned()),
            },
            Ok(Err(_)) => Err("has blanks at its ends or control characters: write it into a file and name that"),
            Err(_) => Err("is not in UTF-8: write its bytes into a file and name that"),
        },
        Value::Wide(_) => Err("has characters that are no bytes: write it into a file and name that"),
        Value::Undefined | Value::Pattern(_) | Value::Reference(_) => Err("is a reference, not a password"),
    };
    match line {
        Ok(line) => entry.lines.push(format!("    {key} = {line}")),
        Err(why) => {
            entry.leave(reading, format!("{key} {why}"), None);
            entry.lines.push(format!("    {key} = file:PATH"));
        }
    }
    true
}

impl Entry {
    /// Leaves it for a person, who looks at the callback or, where Perl keeps no line, at the files.
    fn leave(&mut self, reading: &Reading, message: String, callback: Option<&Callback>) {
        let place = match callback {
            Some(callback) if !callback.file.is_empty() => format!("{}:{}", callback.file, callback.line),
            _ => reading.files.join(", "),
        };
        let text = callback.and_then(|callback| callback.text.clone());
        self.left.push(Reason { place, message: printable(&message), text });
    }
}

impl Forward {
    fn option(&self, name: &str) -> Option<&Setting> {
        self.options.iter().find(|(known, _)| known == name).map(|(_, setting)| setting)
    }
}
