//! `--try`: what a forward's stages make of a payload, step by step, without sending anything.

use std::io::{self, Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{Address, Config, ForwardConfig};
use crate::stages::{Failure, Limits, Scratch, Staged, Stages, Step};

/// Of each step's data this much is shown, bytes.
const MAX_SHOWN: usize = 4096;

/// Of each match this much is shown, bytes.
const MAX_MATCH_SHOWN: usize = 200;

/// Runs the stages of the forward from `address` on `input` and shows every step. The exit status: 0, 1 when the job is
/// undeliverable, 2 when there is no such forward, which `errors` says.
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
    let shown = escaped(address.as_bytes());
    let wrong = match Address::parse(address).map(|address| config.forward_from(&address)) {
        Ok(Some(forward)) => {
            let mut data = Vec::new();
            input.read_to_end(&mut data)?;
            let (status, text) = explain(config, &forward, &data);
            return out.write_all(text.as_bytes()).map(|()| status);
        }
        Ok(None) => format!("no forward takes jobs from {shown}"),
        Err(error) => format!("{shown}: {error}"),
    };
    writeln!(errors, "{wrong}\nthe forwards of this configuration:")?;
    for forward in config.forwards.iter().chain(config.patterns.iter().map(|pattern| &pattern.template)) {
        writeln!(errors, "    {}", harmless(&forward.source))?;
    }
    Ok(2)
}

/// The exit status, and what is told.
fn explain(config: &Config, forward: &ForwardConfig, data: &[u8]) -> (u8, String) {
    let ForwardConfig { place, source, destinations, stages, reject_queue, .. } = forward;
    let destinations: Vec<String> = destinations.iter().map(harmless).collect();
    let mut text = format!("forward: {} -> {} ({})\n", harmless(source), destinations.join(", "), harmless(place));
    text += &format!("job: {}\n{}", bytes(data.len()), lines(data));
    let limit = config.max_job_size;
    if data.len() > limit {
        text += &format!("undeliverable: larger than max_job_size, {limit} bytes: the job would be failed\n");
        return (1, text);
    }
    let (mut scratch, mut steps) = (Scratch::default(), Vec::new());
    let staged = stages.explain(data, &mut scratch, &Limits::of_size(limit), Some(&mut steps));
    text.extend(steps.iter().enumerate().map(|(index, step)| tell(index + 1, step)));
    match staged {
        Ok(staged) => {
            let as_it_came = if staged.data == data { ", as it came" } else { "" };
            text += &format!("would be sent: {}{as_it_came}\n", bytes(staged.data.len()));
            (0, text + &tell_rest(stages, &staged))
        }
        // Nothing stops it.
        Err(Failure::Stopped) => (1, text),
        Err(Failure::Undeliverable(error)) => {
            let fate = match reject_queue {
                Some(queue) => format!("the job would go to {} as it came", harmless(queue)),
                None => "the job would be failed: there is no reject_queue".to_owned(),
            };
            (1, text + &format!("undeliverable: {error}; {fate}\n"))
        }
    }
}

/// What is not in the data: the unique id, and the job's age.
fn tell_rest(stages: &Stages, staged: &Staged<'_>) -> String {
    let unique = match (staged.unique, staged.warning) {
        (Some(unique), _) => format!("unique id: {}\n", escaped(unique)),
        (None, Some(warning)) => format!("unique id: the job's own, because {warning}\n"),
        (None, None) if stages.uniq_callbacks.is_empty() => String::new(),
        (None, None) => "unique id: the job's own, because uniq_callback made none\n".to_owned(),
    };
    match staged.time {
        Some(time) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
            unique + &format!("time of the job: {}, {} s ago\n", time / 1000, now.saturating_sub(time / 1000))
        }
        None if stages.reads_time => unique + "time of the job: none found, so it never expires\n",
        None => unique,
    }
}

fn tell(number: usize, step: &Step) -> String {
    let Step { stage, substitution, kept_off, matches, matched, outcome } = step;
    let told = |data: &Vec<u8>| format!("{}\n{}", bytes(data.len()), lines(data));
    let outcome = outcome.as_ref().map_or("none\n".to_owned(), told);
    let Some(substitution) = substitution else { return format!("{number}. {stage}: {outcome}") };
    let mut text = format!("{number}. {stage} {}\n", harmless(substitution));
    text += &match matches {
        0 if *kept_off => "    not applied: its guard keeps it off\n".to_owned(),
        0 => "    matched nothing\n".to_owned(),
        1 => "    matched once:\n".to_owned(),
        _ => format!("    matched {matches} times:\n"),
    };
    for data in matched {
        let shown = data.get(..MAX_MATCH_SHOWN).unwrap_or(data);
        let rest = if shown.len() < data.len() { "..." } else { "" };
        text += &format!("        {}{rest}\n", escaped(shown));
    }
    if *matches > matched.len() {
        text += &format!("        and {} more\n", matches - matched.len());
    }
    format!("{text}    outcome: {outcome}")
}

/// The data with its line ends both as `\n` and as line ends.
fn lines(data: &[u8]) -> String {
    let shown = data.get(..MAX_SHOWN).unwrap_or(data);
    let lines = shown.split_inclusive(|&byte| byte == b'\n').map(|line| format!("    | {}\n", escaped(line)));
    match data.len() - shown.len() {
        0 => lines.collect(),
        left => lines.collect::<String>() + &format!("    | ... and {} more\n", bytes(left)),
    }
}

fn bytes(count: usize) -> String {
    if count == 1 { String::from("1 byte") } else { format!("{count} bytes") }
}

/// As it stands in the configuration, but for what a terminal would obey or show in another order.
fn harmless(text: &impl ToString) -> String {
    let is_plain =
        |character: char| !character.is_control() && !matches!(character, '\u{200b}'..='\u{206f}' | '\u{61c}');
    text.to_string().replace(|character| !is_plain(character), "?")
}

/// As in a substitution: `\n`, `\t`, `\r`, `\\`, else `\xNN` for what is not printable ASCII.
fn escaped(data: &[u8]) -> String {
    data.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Place;
    use crate::stages::cipher::Cipher;
    use crate::stages::substitution::Substitution;

    /// `type=passive\nhost_name=web1\nabcd`, encrypted with `should_be_changed` by Mod-Gearman's C code.
    const ENCRYPTED: &[u8] = b"wX4xVmoWBHurM1LJqPDtI/RW+8ZTtBPGt5LA0IX16o06TI5bOsrd1ZptuSXetzhw";

    fn config(stages: Stages) -> Config {
        let place = Place { file: Arc::new("proxy.conf".into()), line: 7 };
        let address = |text| Address::parse(text).unwrap();
        let (source, destination) = (address("127.0.0.1:4730/special"), address("192.168.1.33/special"));
        let forward = ForwardConfig { place, stages, ..ForwardConfig::between(source, destination) };
        Config { max_job_size: 1000, forwards: vec![forward], ..Config::default() }
    }

    fn stages(decrypt: &str, data_callbacks: &[&str], uniq_callbacks: &[&str]) -> Stages {
        let parse = |texts: &[&str]| texts.iter().map(|text| Substitution::parse(text).unwrap()).collect();
        Stages {
            decrypt: Some(Cipher::new(decrypt.as_bytes())),
            data_callbacks: parse(data_callbacks),
            uniq_callbacks: parse(uniq_callbacks),
            encrypt: None,
            reads_time: false,
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
        assert!(text.contains("2. decrypt: none\nundeliverable: decrypted data is not text"), "{text}");
        assert!(text.ends_with("the job would be failed: there is no reject_queue\n"), "{text}");
        config.forwards[0].reject_queue = Some(Address::parse("127.0.0.1/rejected").unwrap());
        let (status, text) = tried(&config, "127.0.0.1:4730/special", b"no base64!");
        assert_eq!(status, 1);
        assert!(text.contains("1. base64-decode: none\nundeliverable: data is not base64;"), "{text}");
        assert!(text.ends_with("the job would go to 127.0.0.1:4730/rejected as it came\n"), "{text}");
    }

    #[test]
    fn a_forward_without_stages_sends_what_came_and_nothing_of_it_reaches_the_terminal_raw() {
        let (status, text) = tried(&config(Stages::default()), "127.0.0.1/special", b"it's \x1b[2J\xfc\tb\\");
        assert_eq!(status, 0);
        assert!(text.contains("    | it's \\x1b[2J\\xfc\\tb\\\\\n"), "{text}");
        assert!(text.ends_with("would be sent: 13 bytes, as it came\n"), "{text}");
    }

    #[test]
    fn guards_and_the_time_of_the_job_are_shown() {
        let mut stages = stages("should_be_changed", &["s/web1/web2/ if /^type=active\u{202e}/m"], &[]);
        stages.reads_time = true;
        let (status, text) = tried(&config(stages), "127.0.0.1/special", ENCRYPTED);
        assert_eq!(status, 0, "{text}");
        let told = "data_callback s/web1/web2/ if /^type=active?/m\n    not applied: its guard keeps it off\n";
        assert!(text.contains(told), "{text}");
        assert!(text.ends_with("time of the job: none found, so it never expires\n"), "{text}");

        let mut config = config(Stages { reads_time: true, ..Stages::default() });
        let (_, text) = tried(&config, "127.0.0.1/special", b"Y29yZV90aW1lPTEwLjUK");
        assert!(text.contains("time of the job: 10, "), "{text}");
        config.forwards[0].source.queue = "a\x1b[2J".to_owned();
        let (_, text) = tried(&config, "127.0.0.1/special", b"");
        assert!(text.ends_with(":4730/a?[2J\n"), "{text}");
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
        assert!(
            text.ends_with("undeliverable: larger than max_job_size, 5000 bytes: the job would be failed\n"),
            "{text}"
        );
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
