//! Substitutions change data as real Perl changes it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod random;

use std::io::Write;
use std::process::{Command, Stdio};

use gearman_proxy::stages::Limits;
use gearman_proxy::stages::bounds::Bounds;
use gearman_proxy::stages::substitution::{Groups, Substitution};
use random::Random;

/// Reads lines of two numbers in hex, a substitution and data; answers each with how often it matched and the outcome in
/// hex, or with `error` where it is not Perl.
const SCRIPT: &str = r#"
    no warnings; no strict;
    $SIG{ALRM} = 'DEFAULT';
    while (my $line = <STDIN>) {
        (my $code, $_) = map { pack 'H*', $_ } $line =~ /^(\w+) (\w*)$/;
        alarm 20;
        my $count = 0;
        eval "\$count = $code; ";
        $count = "error $@" if $@;
        $count =~ s/\n/ /g;
        print $@ ? "$count\n" : ($count || 0) . " " . unpack('H*', $_) . "\n";
    }
"#;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What Perl makes of each case, as the script prints it.
fn perl(cases: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut child = Command::new("perl")
        .args(["-e", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl is installed wherever these tests run");
    let mut stdin = child.stdin.take().unwrap();
    let input: String = cases.iter().map(|(text, data)| format!("{} {}\n", hex(text.as_bytes()), hex(data))).collect();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), cases.len(), "perl stopped: {}", output.status);
    lines
}

/// What this program makes of a case, in the same form.
fn ours(substitution: &Substitution, data: &[u8]) -> String {
    if !substitution.applies_to(data) {
        return format!("0 {}", hex(data));
    }
    let mut changed = Vec::new();
    let limits = Limits::of_size(1 << 20);
    let outcome =
        substitution.apply(data, &mut changed, &mut Groups::default(), &mut Bounds::new(&limits, 1 << 20), |_| {});
    let matches = outcome.unwrap();
    format!("{matches} {}", hex(if matches > 0 { &changed } else { data }))
}

#[test]
fn a_table_of_substitutions() {
    const TEXT: &str = "type=service\nresult_queue=check_results\nhost_name=web1\nservice_description=a b\n\n\n";
    let table: &[(&str, &str)] = &[
        // The README of the Perl proxy.
        (r"s/^result_queue=.*$/result_queue=results_servicegroup_special/gmx", TEXT),
        (r"s/^(\w+)=(.*)$/$2=$1/gm", TEXT),
        (r"s/^/> /gm", TEXT),
        (r"s/^\s*//gm", TEXT),
        (r"s/^\s+|\s+$//gm", " a \n b \n"),
        (r"s/\s*\z//", TEXT),
        (r"s/x*/-/g", "abc"),
        (r"s/x*/-/g", "xab"),
        (r"s/(?:a|b*)*/<$&>/g", "aabbc"),
        (r"s/\b/|/g", "two words"),
        (r"s{a{2}(b)}{<$1>}g", "aab aab"),
        (r"s{a\{2\}} {x}", "a{2}"),
        (r"s(a(b)c)[${1}0]", "abc"),
        (r"s<a(?<x>b)c>/$1/", "abc"),
        (r"s#a\#b#x\#y#", "a#b"),
        (r"s!(.)(.)(.)(.)(.)(.)(.)(.)(.)(.)!$10$1x!", "abcdefghij"),
        (r"s,(a)|(b),[$1$2],g", "ab"),
        (r"s/.+/$&$&\t\n\\/", "a"),
        (r"s/(a)/\1\1/", "a"),
        (r"s/[ #]a b # comment/x/x", "#ab"),
        (r"s/[a&&b]+/x/g", "a&b"),
        (r"s/[+--]/x/g", "a-,b"),
        (r"s/[[a]+/x/g", "[a["),
        (r"s/[a~~b]/x/g", "a~b"),
        (r"s/\<a\>/x/g", "<a> a"),
        (r"s/[\x{80}-\x{ff}]+/?/g", "gr\u{fc}n"),
        (r"s/ü/ue/g", "grün"),
        (r"s/\xc3\xbc/ue/g", "grün"),
        (r"s/[[:upper:][:digit:]_-]+/x/g", "aB-3_c"),
        (r"s/[^[:^alpha:]]+/x/gi", "aB-3_c"),
        (r"s/[[:^upper:]]/x/gi", "aB3"),
        (r"s/(?i)ab(?-i)c|D/x/g", "ABcABC D d"),
        (r"s/a(?i)b|c/x/g", "aB C"),
        (r"s/a.c(?s:.)(?^:.)/x/gis", "A\nC\n\n Abc\nd"),
        (r"s/(?#no)a(?#comment)+b/x/", "aaab"),
        (r"s/a + ? b/x/x", "aaab"),
        (r"s/[\w-.]+/x/g", "a-.b,c"),
        (r"s/[a-\d]+/x/g", "a-1b"),
        (r"s/[]a]+[^]a]/x/g", "a]b"),
        (r"s/\/\@\%\_\-\ /x/", "/@%_- "),
        (r"s/a{2,}?|b{1,2}|c{0}d/x/g", "aaabbbcd"),
        (r"s/a|b/$&$&/", "ab"),
        (r"s/,|^\s*/x/g", " ,a,"),
        (r"s/[\b\t\a\x00]/x/g", "\x08\t\x07\0y"),
        (r"s/^host_name=(.*)$/host_name=\L$1/gm", "a\nhost_name=WEB1\n"),
        (r"s/(\w+)/\u\L$1\E-\U$1/g", "hELLO wORLD"),
        (r"s/(\w)(\w*)/\U\l$1\E$2\u$2!/g", "hELLO w"),
        (r"s/(a)(b)/\L$1\UX$2\E$2\l\u$1\E\uz/i", "xABx"),
        (r"s/(a)/${1}[0] $1-[0]/", "a"),
        (r"s/a/me\@home for \$5/", "a"),
        (r"s/queue=.*/queue=x/ if /^type=service$/m", TEXT),
        (r"s/queue=.*/queue=x/ if /^type=host$/m", TEXT),
        (r"s/queue=.*/queue=x/ unless m{^type=host$}m", TEXT),
        (r"s/queue=.*/queue=x/ unless m!TYPE = service!xi", TEXT),
        (r"s/^/> /gm if /^$/m", "a\nb\n"),
        (r"s/^/> /gm if /^$/m", "a\n\nb\n"),
    ];
    let cases: Vec<(String, Vec<u8>)> =
        table.iter().map(|(text, data)| (text.to_string(), data.as_bytes().to_vec())).collect();
    for ((text, data), theirs) in cases.iter().zip(perl(&cases)) {
        let substitution = Substitution::parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.message));
        assert_eq!(ours(&substitution, data), theirs, "{text} on {:?}", String::from_utf8_lossy(data));
    }
}

/// A pattern of random pieces, of which `groups` counts the capturing ones.
fn pattern(random: &mut Random, depth: usize, groups: &mut usize) -> String {
    const ATOMS: &str = r"a a b B c 1 , = . . \n \w \W \d \D \s \S [ab] [^a\n] [a-c1] [\w,] [^\w] [[:upper:]] [[:^upper:]b] \
        [^[:lower:]] [[:blank:]] [[:space:]] [[:punct:]] [[:print:]] [[:word:]] [[:^lower:]] [[a] [:a] [a&&b] [a~~b] [\d-a] \
        [a-\d] []a] [^]a] [-b] [b-] [a--] [\x61-\x63] \x61 \x{e9} \xa0 [\x80-\xff] [\x{e9}] } ] \< \> \, # é [a\-c] \t \x0A (?#c) & ~ -- \
        (?i) (?-i) (?s) (?m) (?x) (?^) (?^i:b) (?x-i: a) [\b,] \h \Qa\E { \012";
    let atoms: Vec<&str> = ATOMS.split_whitespace().filter(|atom| *atom != "\\").chain([" ", "[ #a]", "\\ "]).collect();
    const LOOKS: &[&str] = &["^", "^", "\\b", "\\B", "\\A", "\\z", "(?:$)"];
    const QUANTIFIERS: &[&str] =
        &["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0,2}?", "{1,}", "{0}", "{2,}?", " *", " + ?"];
    let mut text = String::new();
    for _ in 0..random.below(4) + usize::from(depth == 0) {
        match random.below(12) {
            0 | 1 if depth < 3 => {
                let open = match random.below(6) {
                    0 => "(?:".to_owned(),
                    1 => "(?i:".to_owned(),
                    2 => format!("(?<n{}>", *groups + 1),
                    _ => "(".to_owned(),
                };
                *groups += usize::from(!open.contains(':'));
                text += &open;
                text += &pattern(random, depth + 1, groups);
                text.push(')');
            }
            2 => {
                text += random.of(LOOKS);
                continue;
            }
            3 => {
                text.push('|');
                continue;
            }
            _ => text += random.of(&atoms),
        }
        if random.below(3) == 0 {
            text += random.of(QUANTIFIERS);
        }
    }
    text
}

fn case(random: &mut Random) -> (String, Vec<u8>) {
    let mut groups = 0;
    let pattern = pattern(random, 0, &mut groups);
    let mut flags: String = ["g", "i", "m", "s", "x"].into_iter().filter(|_| random.below(2) == 0).collect();
    if random.below(2) == 0 && !flags.contains('g') {
        flags.push('g');
    }
    let mut replacement = String::new();
    const PIECES: &[&str] =
        &["<$&>", "-", "\\n", "aB", "Cd", "\\L", "\\U", "\\l", "\\u", "\\E", "\\$", "\\@", "é", "$&", "GROUP", "GROUP"];
    for _ in 0..random.below(6) {
        match random.of(PIECES) {
            "GROUP" if groups > 0 => replacement += &format!("[${{{}}}]", random.below(groups) + 1),
            "GROUP" => replacement += "none",
            piece => replacement += piece,
        }
    }
    let mut guard = String::new();
    if random.below(3) == 0 {
        let word = random.of(&["if", "unless"]);
        let flags: String = ["i", "m", "s", "x"].into_iter().filter(|_| random.below(3) == 0).collect();
        let pattern = self::pattern(random, 0, &mut 0);
        guard = match random.below(2) {
            0 => format!(" {word} /{pattern}/{flags}"),
            _ => format!(" {word} m!{pattern}!{flags}"),
        };
    }
    const BYTES: &[u8] = b"aaabbcBA1_,= \n\n\t.{}\xc3\xa9\xa0\xe9#&-~\r\x85]";
    let mut data: Vec<u8> = (0..random.below(9)).map(|_| BYTES[random.below(BYTES.len())]).collect();
    // The one documented difference.
    let multi_line = flags.contains('m') && !pattern.contains("(?^)");
    if (pattern.contains('$') && !multi_line || guard.contains('$')) && data.last() == Some(&b'\n') {
        data.push(b'a');
    }
    let text = match random.below(4) {
        0 => format!("s!{pattern}!{replacement}!{flags}{guard}"),
        1 if pattern.matches('{').count() == pattern.matches('}').count() => {
            format!("s{{{pattern}}} {{{replacement}}}{flags}{guard}")
        }
        _ => format!("s/{pattern}/{replacement}/{flags}{guard}"),
    };
    (text, data)
}

/// How many of the substitutions that were compared did what.
#[derive(Debug, Default)]
struct Reached {
    compared: usize,
    refused: usize,
    matched: usize,
    matched_often: usize,
    changed_case: usize,
    let_pass: usize,
    kept_off: usize,
}

/// `GEARMAN_PROXY_FUZZ_SECONDS` is how long it runs, 10 if not set; `GEARMAN_PROXY_FUZZ_SEED` is where it begins.
#[test]
fn random_substitutions() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("GEARMAN_PROXY_FUZZ_SECONDS").unwrap_or(10);
    let mut seed = number("GEARMAN_PROXY_FUZZ_SEED").unwrap_or(1);
    let start = std::time::Instant::now();
    let mut reached = Reached::default();
    let mut rounds = 0;
    loop {
        let mut random = Random(seed);
        let mut cases = Vec::new();
        let mut substitutions = Vec::new();
        let mut different = Vec::new();
        for _ in 0..3_000 {
            let (text, data) = case(&mut random);
            match Substitution::parse(&text) {
                Ok(substitution) => {
                    cases.push((text, data));
                    substitutions.push(substitution);
                }
                Err(_) => reached.refused += 1,
            }
        }
        for (((text, data), substitution), theirs) in cases.iter().zip(&substitutions).zip(perl(&cases)) {
            let ours = ours(substitution, data);
            let has_guard = text.contains(" if ") || text.contains(" unless ");
            let (is_matched, is_let_pass) = (!ours.starts_with("0 "), substitution.applies_to(data));
            reached.compared += 1;
            reached.matched += usize::from(is_matched);
            reached.matched_often += usize::from(is_matched && !ours.starts_with("1 "));
            reached.changed_case += usize::from(is_matched && (text.contains("\\L") || text.contains("\\U")));
            reached.let_pass += usize::from(has_guard && is_let_pass);
            reached.kept_off += usize::from(!is_let_pass);
            if ours != theirs {
                different.push(format!("{text} on {}: {ours}, Perl: {theirs}", data.escape_ascii()));
            }
        }
        let examples = &different[..different.len().min(20)];
        assert!(different.is_empty(), "seed {seed}, {} differences:\n{}", different.len(), examples.join("\n"));
        seed += 1;
        rounds += 1;
        if start.elapsed().as_secs() >= seconds {
            break;
        }
    }
    println!("{reached:?}");
    let least = |count: usize, a_round: usize| assert!(count >= a_round * rounds, "{reached:?} in {rounds} rounds");
    least(reached.compared, 1_000);
    least(reached.matched, 400);
    least(reached.matched_often, 100);
    least(reached.changed_case, 50);
    least(reached.let_pass, 50);
    least(reached.kept_off, 50);
}
