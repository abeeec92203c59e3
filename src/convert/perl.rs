//! Has Perl read its own configuration, and reads what it found.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Evaluates the files as the Perl proxy did and prints records; see there for their form.
const SCRIPT: &str = include_str!("../convert.pl");

/// What a Perl scalar holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `undef`.
    Undefined,
    /// A string that the Perl proxy would have put on the wire as it stands.
    Bytes(Vec<u8>),
    /// Characters above U+00FF, which are no bytes.
    Wide(String),
    /// A `qr//`, in the form that Perl interpolates.
    Pattern(Vec<u8>),
    /// Any other reference, by its type.
    Reference(String),
}

impl Value {
    /// Perl's idea of true.
    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined => false,
            Value::Bytes(bytes) => !bytes.is_empty() && bytes != b"0",
            Value::Wide(_) | Value::Pattern(_) | Value::Reference(_) => true,
        }
    }

    /// Perl's idea of a whole number: the digits at the beginning.
    pub fn integer(&self) -> i64 {
        let Value::Bytes(bytes) = self else { return 0 };
        let text = bytes.trim_ascii_start();
        let (negative, digits) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            Some((b'+', rest)) => (false, rest),
            _ => (false, text),
        };
        let number = digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0i64, |number, byte| number.saturating_mul(10).saturating_add(i64::from(byte - b'0')));
        if negative { -number } else { number }
    }

    /// The text for a message, whatever it holds.
    pub fn shown(&self) -> String {
        match self {
            Value::Undefined => String::new(),
            Value::Bytes(bytes) | Value::Pattern(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Wide(text) | Value::Reference(text) => text.clone(),
        }
    }

    /// The text, where a configuration can hold it.
    ///
    /// # Errors
    /// It is none, or none in UTF-8; the message goes after the name of what holds it.
    pub fn text(&self) -> Result<&str, String> {
        match self {
            Value::Undefined => Err("has no value".to_owned()),
            Value::Bytes(bytes) => std::str::from_utf8(bytes)
                .map_err(|_| format!("`{}` is not in UTF-8, as this language is", bytes.escape_ascii())),
            Value::Wide(text) => {
                Err(format!("`{text}` has characters that are no bytes: what would be sent is up to Perl"))
            }
            Value::Pattern(_) => Err("is a compiled pattern, not a text".to_owned()),
            Value::Reference(kind) => Err(format!("is a reference ({kind}), not a text")),
        }
    }
}

/// A sub that is called with each job's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// The file that holds it; empty where Perl could not tell.
    pub file: String,
    /// Of its first statement, from 1.
    pub line: u64,
    /// As B::Deparse shows it.
    pub text: Option<String>,
    /// The same with every plain variable as `${name}`, or why there is none.
    pub marked: Result<String, String>,
    /// Whether it stands under `use utf8`.
    pub characters: bool,
    /// The variables from outside, with the values that they have when the configuration has been read.
    pub variables: Vec<(String, Value)>,
}

/// What stands under one key of a forward's hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// Anything but a sub.
    Plain(Value),
    /// A sub.
    Sub(Callback),
}

/// One entry of `$queues`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The key: where jobs come from.
    pub source: Value,
    /// What the entry is where it is neither a string nor a hash.
    pub unusable: Option<Value>,
    /// Sorted by name; of a simple forward only `remoteQueue`.
    pub options: Vec<(String, Setting)>,
}

/// What Perl found in the files.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// As named or found, in the order in which they were read.
    pub files: Vec<String>,
    /// `$logfile` and its like, by their names without the `$`.
    pub globals: Vec<(String, Value)>,
    /// Sorted by source, since Perl's hashes have no order.
    pub forwards: Vec<Forward>,
    /// What Perl had against the files, with its words and places.
    pub errors: Vec<String>,
}

impl Reading {
    /// A global variable's value.
    pub fn global(&self, name: &str) -> &Value {
        self.globals.iter().find(|(known, _)| known == name).map_or(&Value::Undefined, |(_, value)| value)
    }
}

/// Runs Perl on the files. What they print goes to `err`.
///
/// # Errors
/// There is no Perl, or it ended before it had read all; the message says which.
pub fn read(files: &[PathBuf], err: &mut impl Write) -> Result<Reading, String> {
    let output = Command::new("perl").arg("-e").arg(SCRIPT).arg("--").args(files).stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "there is no perl on this machine: a configuration of the Perl proxy is a Perl \
             program, so run --convert where perl is installed (that need not be where the proxy runs)"
            .to_owned(),
        _ => format!("perl cannot be started: {error}"),
    })?;
    // Nothing more can be done where standard error is gone.
    let _ = err.write_all(&output.stderr);
    let records = String::from_utf8_lossy(&output.stdout);
    match parse(&records) {
        Some(reading) => Ok(reading),
        None => Err(format!("perl ended before it had read the whole configuration ({})", output.status)),
    }
}

/// The records of the script; none where they are not complete.
fn parse(records: &str) -> Option<Reading> {
    let mut reading = Reading::default();
    let mut complete = false;
    for record in records.lines() {
        let mut words = record.split(' ');
        match words.next()? {
            "file" => reading.files.push(text(words.next()?)?),
            "error" => reading.errors.push(text(words.next()?)?),
            "global" => reading.globals.push((words.next()?.to_owned(), value(words.next()?)?)),
            "forward" => {
                let source = value(words.next()?)?;
                let unusable = match words.next() {
                    Some(word) => Some(value(word)?),
                    None => None,
                };
                reading.forwards.push(Forward { source, unusable, options: Vec::new() });
            }
            "option" => {
                let name = text(words.next()?)?;
                let setting = match words.next()? {
                    "c:" => Setting::Sub(Callback {
                        file: String::new(),
                        line: 0,
                        text: None,
                        marked: Err("could not be read".to_owned()),
                        characters: false,
                        variables: Vec::new(),
                    }),
                    word => Setting::Plain(value(word)?),
                };
                reading.forwards.last_mut()?.options.push((name, setting));
            }
            "callback" => {
                let callback = last_callback(&mut reading)?;
                callback.file = text(words.next()?)?;
                callback.line = words.next()?.parse().ok()?;
                callback.characters = words.next()? == "1";
                callback.text = match value(words.next()?)? {
                    Value::Undefined => None,
                    other => Some(other.shown()),
                };
                let marked = value(words.next()?)?.shown();
                callback.marked = if callback.text.is_some() { Ok(marked) } else { Err(marked) };
            }
            "variable" => {
                let variable = (text(words.next()?)?, value(words.next()?)?);
                last_callback(&mut reading)?.variables.push(variable);
            }
            "end" => complete = true,
            _ => return None,
        }
    }
    complete.then_some(reading)
}

fn last_callback(reading: &mut Reading) -> Option<&mut Callback> {
    match reading.forwards.last_mut()?.options.last_mut()? {
        (_, Setting::Sub(callback)) => Some(callback),
        _ => None,
    }
}

fn text(word: &str) -> Option<String> {
    Some(value(word)?.shown())
}

fn value(word: &str) -> Option<Value> {
    let (kind, hex) = word.split_once(':')?;
    let bytes = unhex(hex)?;
    Some(match kind {
        "u" => Value::Undefined,
        "s" => Value::Bytes(bytes),
        "w" => Value::Wide(String::from_utf8_lossy(&bytes).into_owned()),
        "q" => Value::Pattern(bytes),
        "r" => Value::Reference(String::from_utf8_lossy(&bytes).into_owned()),
        _ => return None,
    })
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perl_truth_and_numbers() {
        let bytes = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        assert!(!Value::Undefined.is_true());
        assert!(!bytes("").is_true());
        assert!(!bytes("0").is_true());
        assert!(bytes("0.0").is_true());
        assert!(bytes("no").is_true());
        assert_eq!(bytes(" 12 workers").integer(), 12);
        assert_eq!(bytes("-3").integer(), -3);
        assert_eq!(bytes("many").integer(), 0);
        assert_eq!(bytes("99999999999999999999").integer(), i64::MAX);
    }

    #[test]
    fn records_that_stop_short_or_make_no_sense_are_refused() {
        assert_eq!(parse("file s:61\nend\n").map(|reading| reading.files), Some(vec!["a".to_owned()]));
        for records in ["", "file s:61\n", "file s:6\nend\n", "file\nend\n", "option s:61 s:61\nend\n", "x\nend\n"] {
            assert_eq!(parse(records), None, "{records:?}");
        }
    }
}
