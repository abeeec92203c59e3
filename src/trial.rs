//! `--try`: what a forward's stages make of a payload, step by step, without sending anything.

use std::io::{self, Read, Write};

use crate::config::{Address, Config, ForwardConfig};
use crate::stages::{StageOutcome, SubstitutionOutcome};

/// Of each step's data this much is shown, bytes.
const MAX_SHOWN: usize = 4096;

/// Of each match this much is shown, bytes.
const MAX_MATCH_SHOWN: usize = 200;

/// Runs the stages of the forward from `address` on `input` and tells every step. The exit status: 0, 1 when the job is
/// undeliverable, 2 when there is no such forward, which is told by `errors`.
///
/// # Errors
/// The input can't be read or the output not written.
pub fn run(
    config: &Config,
    address: &str,
    input: &mut impl Read,
    out: &mut impl Write,
    errors: &mut impl Write,
) -> io::Result<u8> {
    let forward = match Address::parse(address) {
        Ok(address) => config.forward_from(&address),
        Err(error) => {
            writeln!(errors, "{}: {error}", escaped(address.as_bytes()))?;
            return known(config, errors);
        }
    };
    let Some(forward) = forward else {
        writeln!(errors, "no forward takes jobs from {}", escaped(address.as_bytes()))?;
        return known(config, errors);
    };
    let mut data = Vec::new();
    input.read_to_end(&mut data)?;
    explain(config, &forward, &data, out)
}

fn known(config: &Config, out: &mut impl Write) -> io::Result<u8> {
    writeln!(out, "the forwards of this configuration:")?;
    for forward in config.forwards.iter().chain(config.patterns.iter().map(|pattern| &pattern.template)) {
        writeln!(out, "    {}", forward.source)?;
    }
    Ok(2)
}

fn explain(config: &Config, forward: &ForwardConfig, data: &[u8], out: &mut impl Write) -> io::Result<u8> {
    let ForwardConfig { place, source, destinations, .. } = forward;
    let destinations: Vec<String> = destinations.iter().map(Address::to_string).collect();
    writeln!(out, "forward: {source} -> {} ({place})", destinations.join(", "))?;
    writeln!(out, "job: {}", bytes(data.len()))?;
    show(data, out)?;
    if data.len() > config.max_job_size {
        let limit = config.max_job_size;
        writeln!(out, "undeliverable: larger than max_job_size, {limit} bytes: it would be failed")?;
        return Ok(1);
    }

    let explanation = forward.stages.explain(data);
    for (position, step) in explanation.steps.iter().enumerate() {
        tell(position + 1, step, out)?;
    }
    match &explanation.sent {
        Ok(sent) => {
            let as_it_came = if sent == data { ", as it came" } else { "" };
            writeln!(out, "would be sent: {}{as_it_came}", bytes(sent.len()))?;
            match (&explanation.unique, explanation.warning) {
                (Some(unique), _) => writeln!(out, "unique id: {}", escaped(unique))?,
                (None, Some(warning)) => writeln!(out, "unique id: that of the job, for {warning}")?,
                (None, None) if forward.stages.uniq_callbacks.is_empty() => {}
                (None, None) => writeln!(out, "unique id: that of the job, for uniq_callback gave none")?,
            }
            Ok(0)
        }
        Err(error) => {
            let fate = match &forward.reject_queue {
                Some(queue) => format!("it would go to {queue} as it came"),
                None => String::from("it would be failed: there is no reject_queue"),
            };
            writeln!(out, "undeliverable: {error}; {fate}")?;
            Ok(1)
        }
    }
}

fn tell(number: usize, step: &StageOutcome, out: &mut impl Write) -> io::Result<()> {
    match &step.substitution {
        None => write!(out, "{number}. {}: ", step.stage)?,
        Some(SubstitutionOutcome { text, matches, matched }) => {
            // As it stands in the configuration, but for what a terminal would obey.
            let text = text.replace(char::is_control, "?");
            writeln!(out, "{number}. {} {text}", step.stage)?;
            match matches {
                0 => writeln!(out, "    matched nothing")?,
                1 => writeln!(out, "    matched once:")?,
                _ => writeln!(out, "    matched {matches} times:")?,
            }
            for text in matched {
                let shown = text.get(..MAX_MATCH_SHOWN).unwrap_or(text);
                let rest = if shown.len() < text.len() { "..." } else { "" };
                writeln!(out, "        {}{rest}", escaped(shown))?;
            }
            if *matches > matched.len() {
                writeln!(out, "        and {} more", matches - matched.len())?;
            }
            write!(out, "    outcome: ")?;
        }
    }
    match &step.outcome {
        Ok(data) => {
            writeln!(out, "{}", bytes(data.len()))?;
            show(data, out)
        }
        Err(error) => writeln!(out, "{error}"),
    }
}

/// The data with its line ends both as `\n` and as line ends.
fn show(data: &[u8], out: &mut impl Write) -> io::Result<()> {
    let shown = data.get(..MAX_SHOWN).unwrap_or(data);
    for line in shown.split_inclusive(|&byte| byte == b'\n') {
        writeln!(out, "    | {}", escaped(line))?;
    }
    if shown.len() < data.len() {
        writeln!(out, "    | ... and {} more", bytes(data.len() - shown.len()))?;
    }
    Ok(())
}

fn bytes(count: usize) -> String {
    if count == 1 { String::from("1 byte") } else { format!("{count} bytes") }
}

/// As in a substitution: `\n`, `\t`, `\r`, `\\`, else `\xNN` for what is no printable ASCII.
fn escaped(data: &[u8]) -> String {
    data.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{LogTarget, Place, Priority};
    use crate::stages::Stages;
    use crate::stages::cipher::Cipher;
    use crate::stages::substitution::Substitution;

    /// `type=passive\nhost_name=web1\nabcd`, encrypted with `should_be_changed` by Mod-Gearman's C code.
    const ENCRYPTED: &[u8] = b"wX4xVmoWBHurM1LJqPDtI/RW+8ZTtBPGt5LA0IX16o06TI5bOsrd1ZptuSXetzhw";

    fn config(stages: Stages) -> Config {
        Config {
            logfile: LogTarget::Stdout,
            debug: 0,
            pidfile: None,
            max_job_size: 1000,
            statusqueue: None,
            metricsfile: None,
            patterns: Vec::new(),
            forwards: vec![ForwardConfig {
                place: Place { file: Arc::new("proxy.conf".into()), line: 7 },
                source: Address::parse("127.0.0.1:4730/special").unwrap(),
                destinations: vec![Address::parse("192.168.1.33/special").unwrap()],
                stages,
                asynchronous: true,
                workers: 1,
                prefetch: 4096,
                prefetch_is_explicit: false,
                priority: Priority::Normal,
                timeout: None,
                max_age: None,
                reject_queue: None,
            }],
            warnings: Vec::new(),
        }
    }

    fn stages(decrypt: &str, data_callbacks: &[&str], uniq_callbacks: &[&str]) -> Stages {
        let parse = |texts: &[&str]| texts.iter().map(|text| Substitution::parse(text).unwrap()).collect();
        Stages {
            decrypt: Some(Cipher::new(decrypt.as_bytes())),
            data_callbacks: parse(data_callbacks),
            uniq_callbacks: parse(uniq_callbacks),
            encrypt: None,
        }
    }

    fn tried(config: &Config, address: &str, payload: &[u8]) -> (u8, String) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let status = run(config, address, &mut &payload[..], &mut out, &mut errors).unwrap();
        assert_eq!(out.is_empty(), status == 2, "what is wrong with the command goes where errors go");
        assert_eq!(errors.is_empty(), status != 2);
        out.extend(errors);
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn every_step_is_told_with_what_matched() {
        let stages = stages(
            "should_be_changed",
            &["s/^host_name=(.*)$/host_name=$1.example/gm", "s/nothing like it//"],
            &[r"s/.*host_name=(\w+).*/$1/s"],
        );
        let (status, text) = tried(&config(stages), "127.0.0.1/special", ENCRYPTED);
        assert_eq!(status, 0, "{text}");
        let data = |lines: &str| -> String { lines.lines().map(|line| format!("    | {line}\n")).collect() };
        let told = [
            "forward: 127.0.0.1:4730/special -> 192.168.1.33:4730/special (proxy.conf:7)\njob: 64 bytes\n".to_owned(),
            format!("2. decrypt: 32 bytes\n{}", data("type=passive\\n\nhost_name=web1\\n\nabcd")),
            "uniq_callback s/.*host_name=(\\w+).*/$1/s\n    matched once:\n        type=passive\\nhost_name=web1\\nabcd\n    \
             outcome: 4 bytes\n    | web1\n"
                .to_owned(),
            format!(
                "data_callback s/^host_name=(.*)$/host_name=$1.example/gm\n    matched once:\n        host_name=web1\n    \
                 outcome: 40 bytes\n{}",
                data("type=passive\\n\nhost_name=web1.example\\n\nabcd")
            ),
            "data_callback s/nothing like it//\n    matched nothing\n".to_owned(),
            "would be sent: 56 bytes\nunique id: web1\n".to_owned(),
        ];
        let mut rest = text.as_str();
        for part in told {
            let (_, behind) = rest.split_once(&part).unwrap_or_else(|| panic!("no {part:?} in order in\n{text}"));
            rest = behind;
        }
        assert_eq!(rest, "");
    }

    #[test]
    fn a_wrong_password_is_undeliverable_and_where_it_would_go_is_told() {
        let mut config = config(stages("another", &[], &[]));
        let (status, text) = tried(&config, "127.0.0.1:4730/special", ENCRYPTED);
        assert_eq!(status, 1);
        assert!(text.contains("2. decrypt: decrypted data is no text, probably another password\n"), "{text}");
        assert!(text.ends_with("it would be failed: there is no reject_queue\n"), "{text}");
        config.forwards[0].reject_queue = Some(Address::parse("127.0.0.1/rejected").unwrap());
        let (status, text) = tried(&config, "127.0.0.1:4730/special", b"no base64!");
        assert_eq!(status, 1);
        assert!(text.contains("1. base64-decode: data is no base64\n"), "{text}");
        assert!(text.ends_with("it would go to 127.0.0.1:4730/rejected as it came\n"), "{text}");
    }

    #[test]
    fn a_forward_without_stages_sends_what_came_and_nothing_of_it_reaches_the_terminal_raw() {
        let (status, text) = tried(&config(Stages::default()), "127.0.0.1/special", b"it's \x1b[2J\xfc\tb\\");
        assert_eq!(status, 0);
        assert!(text.contains("    | it's \\x1b[2J\\xfc\\tb\\\\\n"), "{text}");
        assert!(text.ends_with("would be sent: 13 bytes, as it came\n"), "{text}");
    }

    #[test]
    fn long_data_is_cut_for_the_eye() {
        let mut config = config(Stages::default());
        config.max_job_size = 5000;
        let (status, text) = tried(&config, "127.0.0.1/special", &[b'x'; 5000]);
        assert_eq!(status, 0);
        assert!(text.contains("    | ... and 904 bytes more\n"), "{text}");
        let (status, text) = tried(&config, "127.0.0.1/special", &[b'x'; 5001]);
        assert_eq!(status, 1);
        assert!(text.ends_with("undeliverable: larger than max_job_size, 5000 bytes: it would be failed\n"), "{text}");
    }

    #[test]
    fn an_unknown_forward_lists_the_known_ones() {
        let config = config(Stages::default());
        for address in ["127.0.0.1/other", "special", "127.0.0.1:x/special"] {
            let (status, text) = tried(&config, address, b"");
            assert_eq!(status, 2);
            assert!(text.ends_with("the forwards of this configuration:\n    127.0.0.1:4730/special\n"), "{text}");
        }
    }
}
