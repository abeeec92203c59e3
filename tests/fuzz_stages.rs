//! Random input to everything in the stages that reads what comes from outside.
//!
//! `GEARMAN_PROXY_FUZZ_SECONDS` is how long each target runs, 10 if not set. A failure names its seed;
//! `GEARMAN_PROXY_FUZZ_SEED` begins with that one.

#![allow(clippy::unwrap_used)]

#[path = "random/fuzz.rs"]
mod fuzz;
mod random;

use fuzz::fuzz;
use gearman_proxy::stages::bounds::Bounds;
use gearman_proxy::stages::cipher::{BLOCK_SIZE, Cipher};
use gearman_proxy::stages::substitution::{Groups, Substitution};
use gearman_proxy::stages::{Limits, Scratch, Stages, Undeliverable, base64};
use random::Random;

/// Bytes of one of several kinds, mostly short.
fn bytes(random: &mut Random) -> Vec<u8> {
    let length = match random.below(20) {
        0 => random.below(5_000),
        1..=5 => random.below(200),
        _ => random.below(20),
    };
    let alphabet: &[u8] = match random.below(4) {
        0 => b"a\n=_:\0",
        1 => b"ABCDabcd0129+/= \n",
        2 => b"type=host_name\n::ab \xfc\xc3\xbc",
        _ => &[],
    };
    let all_bytes = alphabet.is_empty();
    (0..length).map(|_| if all_bytes { random.next() as u8 } else { random.of(alphabet) }).collect()
}

const SUBSTITUTIONS: &[&str] = &[
    r"s/^result_queue=.*$/result_queue=results_servicegroup_special/gmx",
    r"s{(?<name>a{2,3}?)|[^[:alpha:]\]-\x{80}\d]+}{${name}$1$&\n\t}gi",
    r"s/\A\b(?:a|b*)*\B\z/$&/",
    r"s(a\.b+)<x>m if m{^(type|host)_?}i",
    r"s!(?i)a(?^s:.)b(?-x) # c!\!$&!xsmig",
    r"s!,\s*|^\s*!\u$&;!sg unless /\x{ff}$/",
    r"s/\x4a|[\b\w-.&&~~\-]/é\L$&\E\U\l$&/",
    r"s<(.)(.)(.)(.)(.)(.)(.)(.)(.)(.)>{$10\$\@}g",
    r"s/(b|((a*)?)+){1,5}/x/g",
    r"s/(a{50}){50}//gm if /a/ ",
];

const PIECES: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "<",
    ">",
    "(?:",
    "(?<n>",
    "(?i)",
    "(?^:",
    "(?#",
    "[^",
    "[:alpha:]",
    "[[:^word:]]",
    "|",
    "*",
    "+",
    "?",
    "*?",
    "{2}",
    "{,3}",
    "{1,",
    "{99}",
    "{5000}",
    "\\",
    "\\Q",
    "\\E",
    "\\x",
    "\\x{ff}",
    "\\x{",
    "\\0",
    " if /",
    " unless m{",
    "\\L",
    "\\u",
    "\\E",
    "\\@",
    "\\777",
    "\\o{",
    "\\c",
    "\\b",
    "\\N",
    "\\N{",
    "^",
    "$",
    "$1",
    "${",
    "${n}",
    "$&",
    "$99",
    "@a",
    ".",
    "-",
    "a-z",
    "#",
    " ",
    "\n",
    "/",
    "!",
    "s",
    "g",
    "m",
    "x",
    "é",
    "€",
    "\u{0}",
    "\u{85}",
    "a",
    "b",
    "1",
    "=",
    "'",
    "_",
];

/// A substitution that was one, or a heap of pieces.
fn substitution(random: &mut Random) -> String {
    let mut pieces: Vec<String> = if random.below(4) == 0 {
        let delimiter = random.of(&["/", "!", "#", "|", "\\", "{", "<", "[", "("]);
        let mut pieces = vec!["s".to_owned(), delimiter.to_owned()];
        for _ in 0..random.below(12) {
            pieces.push(random.of(PIECES).to_owned());
        }
        let close = random.of(&["/", "!", "#", "|", "\\", "}", ">", "]", ")"]);
        let close = if random.below(4) > 0 { delimiter } else { close };
        pieces.extend([close, random.of(PIECES), close, random.of(&["", "g", "gm", "xi"])].map(str::to_owned));
        pieces
    } else {
        random.of(SUBSTITUTIONS).chars().map(String::from).collect()
    };
    for _ in 0..random.below(6) {
        let place = random.below(pieces.len());
        match random.below(4) {
            0 => pieces[place] = random.of(PIECES).to_owned(),
            1 => pieces.insert(place, random.of(PIECES).to_owned()),
            2 if pieces.len() > 1 => {
                pieces.remove(place);
            }
            _ => {
                let other = random.below(pieces.len());
                pieces.swap(place, other);
            }
        }
    }
    pieces.concat()
}

#[test]
fn a_substitution_never_panics() {
    let mut groups = Groups::default();
    let mut changed = Vec::new();
    let (mut read, mut refused, mut matched) = (0_u64, 0_u64, 0_u64);
    fuzz("substitution", |random| {
        let text = substitution(random);
        match Substitution::parse(&text) {
            Err(error) => {
                refused += 1;
                assert!(text.is_char_boundary(error.offset), "{text:?}: {} is no place", error.offset);
                assert!(!error.message.is_empty());
                assert!(!error.message.contains("must be a Perl"), "{text:?}: {}", error.message);
            }
            Ok(substitution) => {
                read += 1;
                for _ in 0..3 {
                    let data = bytes(random);
                    let mut told = 0;
                    let limits = Limits::of_size(1 << 20);
                    let mut bounds = Bounds::new(&limits, 1 << 20);
                    let matches = substitution.apply(&data, &mut changed, &mut groups, &mut bounds, |_| told += 1);
                    let matches = matches.unwrap();
                    assert_eq!(matches, told, "{text:?}");
                    matched += u64::from(told > 0);
                    assert!(matches <= 2 * data.len() + 1, "{text:?}");
                }
                assert_eq!(substitution.to_string(), text);
            }
        }
        // Their memory is kept for each substitution.
        groups = Groups::default();
    });
    println!("substitution: {read} read, {refused} refused, {matched} matched");
    assert!(read > refused / 20 && matched > read / 4 && read > 50, "too few got deep");
}

#[test]
fn base64_is_read_whatever_white_space_it_has() {
    let (mut encoded, mut decoded, mut joined) = (Vec::new(), Vec::new(), Vec::new());
    fuzz("base64", |random| {
        let text = bytes(random);
        base64::encode(&text, &mut encoded).unwrap();
        assert_eq!(encoded.len(), text.len().div_ceil(3) * 4);
        let often = random.below(30) + 1;
        let mut broken = Vec::new();
        for &byte in &encoded {
            while random.below(often) == 0 && often > 1 {
                broken.push(random.of(b" \t\n\r\x0b\x0c"));
            }
            broken.push(byte);
        }
        broken.extend_from_slice(random.of(&[&b""[..], b"\n", b"\r\n", b" \n"]));
        base64::decode(&broken, &mut decoded, &mut joined).unwrap();
        assert_eq!(decoded, text);

        // Whatever else is read stands for what was written.
        let mut data = if random.below(2) == 0 { bytes(random) } else { broken };
        if !data.is_empty() {
            let place = random.below(data.len());
            data[place] = random.next() as u8;
        }
        if base64::decode(&data, &mut decoded, &mut joined).is_ok() {
            base64::encode(&decoded, &mut encoded).unwrap();
            let meant: Vec<u8> = data.into_iter().filter(|byte| !b" \t\n\r\x0b\x0c".contains(byte)).collect();
            assert_eq!(meant.len(), encoded.len());
            let differences = meant.iter().zip(&encoded).filter(|(meant, encoded)| meant != encoded).count();
            assert!(differences <= 1, "only the last character has bits that do not count");
        }
    });
}

#[test]
fn decrypting_gives_back_what_was_encrypted() {
    fuzz("cipher", |random| {
        let cipher = Cipher::new(&bytes(random));
        let mut text = bytes(random);
        while text.last() == Some(&0) {
            text.pop();
        }
        let mut data = text.clone();
        cipher.encrypt(&mut data).unwrap();
        assert!(
            data.len() > text.len() && data.len() - text.len() <= BLOCK_SIZE && data.len().is_multiple_of(BLOCK_SIZE)
        );
        assert!(data.len() < 16 || data != [text.clone(), vec![0; data.len() - text.len()]].concat());
        cipher.decrypt(&mut data).unwrap();
        assert_eq!(data, text);

        let mut data = bytes(random);
        let (before, length) = (data.clone(), data.len());
        match cipher.decrypt(&mut data) {
            Ok(()) => assert!(length.is_multiple_of(BLOCK_SIZE) && data.len() <= length),
            Err(error) => {
                assert!(error == Undeliverable::BrokenBlock && !length.is_multiple_of(BLOCK_SIZE) && data == before)
            }
        }
    });
}

#[test]
fn stages_never_panic_and_are_explained_as_applied() {
    let parse = |text: &&str| Substitution::parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.message));
    let substitutions: Vec<Substitution> = SUBSTITUTIONS.iter().map(parse).collect();
    let mut scratch = Scratch::default();
    let (mut sent, mut undeliverable) = (0_u64, 0_u64);
    fuzz("stages", |random| {
        let password = bytes(random);
        let some = |random: &mut Random| -> Vec<Substitution> {
            (0..random.below(3)).map(|_| substitutions[random.below(substitutions.len())].clone()).collect()
        };
        let stages = Stages {
            decrypt: (random.below(2) == 0).then(|| Cipher::new(&password)),
            data_callbacks: some(random),
            uniq_callbacks: some(random),
            encrypt: (random.below(2) == 0).then(|| Cipher::new(&bytes(random))),
            reads_time: random.below(2) == 0,
        };
        let mut data = bytes(random);
        if random.below(4) > 0 {
            if stages.decrypt.is_some() && random.below(8) > 0 {
                Cipher::new(&password).encrypt(&mut data).unwrap();
            }
            let mut encoded = Vec::new();
            base64::encode(&data, &mut encoded).unwrap();
            data = encoded;
        }
        let limits = Limits::of_size(if random.below(4) == 0 { random.below(4_000) } else { 1 << 20 });
        let (mut other, mut steps) = (Scratch::default(), Vec::new());
        let explained = stages.explain(&data, &mut other, &limits, Some(&mut steps));
        match stages.apply(&data, &mut scratch, &limits) {
            Ok(staged) => {
                sent += 1;
                assert_eq!(explained.as_ref(), Ok(&staged));
                assert!(staged.data.len() <= limits.max_size.max(data.len()));
                assert!(staged.unique.is_none_or(|id| (1..=63).contains(&id.len()) && !id.contains(&0)));
                assert!(!stages.is_identity() || staged.data == data);
            }
            Err(error) => {
                undeliverable += 1;
                assert_eq!(explained, Err(error));
                let has_ended = steps.last().is_none_or(|step| step.outcome.is_some());
                assert!(!has_ended || error == Undeliverable::OutcomeTooLarge.into());
            }
        }
    });
    println!("stages: {sent} sent, {undeliverable} undeliverable");
    assert!(sent > 100 && undeliverable > 100, "too few got deep");
}
