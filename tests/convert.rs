//! `--convert` keeps its promises: real Perl reads real configurations of the Perl proxy, and what comes out says the
//! same in this program's language and passes `--check`.

// Clippy's own exception for tests leaves out their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gearman_proxy::stages::Limits;
use gearman_proxy::stages::bounds::Bounds;
use gearman_proxy::stages::substitution::{Groups, Substitution};

/// Where the sample configurations are; their outcome stands beside them as `.conf`.
fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/convert")
}

fn proxy(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the binary starts")
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gearman-proxy"));
    command.current_dir(folder).args(arguments).env_remove("PERL5LIB").env_remove("PERL5OPT");
    command
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("gearman-proxy-convert-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a temporary folder");
        fs::write(path, content).expect("a temporary file");
    }

    /// What becomes of one configuration.
    fn convert(&self, configuration: impl AsRef<[u8]>) -> Output {
        self.write("proxy.cfg", configuration);
        proxy(&self.0, &["--convert", "proxy.cfg"])
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The outcome is what the file says (but for the first line, which has the version) and passes `--check`.
fn assert_converted(arguments: &[&str], expected: &str) {
    let output = proxy(&samples(), &[&["--convert"], arguments].concat());
    assert_eq!(status(&output), Some(0), "{}", stderr(&output));
    let (first, rest) = stdout(&output).split_once('\n').expect("lines");
    assert!(first.starts_with("# Made by gearman-proxy ") && first.contains(arguments[0]), "{first}");
    assert_eq!(rest, fs::read_to_string(samples().join(expected)).expect("the expected outcome"));
    assert_passes_check(stdout(&output));
    let again = proxy(&samples(), &[&["--convert"], arguments].concat());
    assert_eq!(stdout(&again), stdout(&output), "another run gives the same");
}

fn assert_passes_check(configuration: &str) {
    let name = configuration.len().to_string();
    let folder = Folder::new(&format!("check-{name}-{:?}", std::thread::current().id()));
    folder.write("proxy.conf", configuration);
    // from the samples' folder, where the password files are
    let path = folder.0.join("proxy.conf");
    let output = proxy(&samples(), &["--check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(status(&output), Some(0), "{}\n{configuration}", stderr(&output));
}

#[test]
fn the_examples_of_the_perl_readme_are_converted() {
    assert_converted(&["readme.cfg"], "readme.conf");
}

#[test]
fn a_sites_configuration_is_converted() {
    assert_converted(&["site.cfg"], "site.conf");
}

#[test]
fn a_folder_is_read_as_the_perl_proxy_read_it() {
    assert_converted(&["conf.d"], "conf.d.conf");
    assert_converted(&["conf.d/10-servers.cfg", "conf.d/20-sites.cfg", "conf.d/30-last.conf"], "conf.d.conf");
}

#[test]
fn loops_closures_heredocs_and_odd_bytes_are_converted() {
    assert_converted(&["nasty.cfg"], "nasty.conf");
}

#[test]
fn what_a_configuration_prints_stays_out_of_the_outcome() {
    let output = proxy(&samples(), &["--convert", "conf.d"]);
    assert!(stderr(&output).contains("configuration read"), "{}", stderr(&output));
    assert!(!stdout(&output).contains("configuration read"));
}

#[test]
fn what_cannot_be_said_is_left_for_a_person() {
    let output = proxy(&samples(), &["--convert", "left.cfg"]);
    assert_eq!(status(&output), Some(1), "{}", stderr(&output));
    for (source, why) in [
        ("left.cfg:6: a/code", "`if ($data =~ /^type=host$/m) {` is more than a substitution"),
        ("left.cfg:13: a/evaluated", "computes its replacement (flag e)"),
        ("left.cfg:14: a/letters", "`$d =~ tr/a-z/A-Z/` is more than a substitution"),
        ("left.cfg:15: a/ahead", "look-ahead"),
        ("left.cfg:16: a/counted", "returns something else than the data"),
        ("left.cfg:17: a/later", "$ENV{'NAME'}"),
        ("left.cfg: a/blank", "decrypt has blanks at its ends"),
        ("left.cfg: a/line", "encrypt has blanks at its ends or control characters"),
        ("left.cfg: a/latin", "encrypt is not in UTF-8"),
        ("left.cfg: a/wide", "encrypt has characters that are no bytes"),
        ("left.cfg: a/workers", "worker is 5000, more than the 1000"),
        ("left.cfg: a/idle", "worker is 0"),
        ("left.cfg: a/nowhere", "remoteQueue is missing"),
        ("left.cfg: a/list", "is a reference (ARRAY)"),
        ("left.cfg: a/noqueue", "`b` names no queue"),
        ("left.cfg: a/blank name", "has blanks"),
        ("left.cfg: a/with=sign", "has a `=`"),
        ("left.cfg: a/plain", "the source a:4730/plain has another forward"),
        ("left.cfg: a/name", "data_callback is no sub"),
        ("left.cfg: a/undefined", "names a sub that is not defined"),
        ("left.cfg: statusqueue", "`nowhere` names no queue"),
        ("left.cfg: logfile", "has blanks at its ends"),
        ("gearman-proxy", "22 things are left for a person"),
    ] {
        let found = stderr(&output).lines().any(|line| line.starts_with(&format!("{source}: ")) && line.contains(why));
        assert!(found, "{source}: {why}\n{}", stderr(&output));
    }
    assert!(!stderr(&output).contains("not shown in messages"), "no password in messages");

    // A forward without its callback or password would send what nobody can read: it is a comment.
    let active: Vec<&str> = stdout(&output).lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(active, ["a:4730/plain = b:4730/again"]);
    assert!(stdout(&output).contains("#         if ($data =~ /^type=host$/m) {\n"), "the Perl text is shown");
    assert!(stdout(&output).contains("# a:4730/code = b:4730/code\n#     encrypt = not shown in messages\n"));
    assert_passes_check(stdout(&output));
}

#[test]
fn a_password_file_is_named_and_not_read() {
    let folder = Folder::new("password-file");
    let output = folder.convert(
        r#"$queues->{"a/q"} = { remoteQueue => "b/q", decrypt => 'file:/none/$HOME/key', encrypt => 'co$t' };"#,
    );
    assert_eq!(status(&output), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("\n    decrypt = file:/none/$$HOME/key\n    encrypt = co$t\n"),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).contains("chmod 600"));
}

#[test]
fn without_literal_passwords_nothing_is_said_of_them() {
    let folder = Folder::new("no-password");
    let output = folder.convert(r#"$queues->{"a/q"} = { remoteQueue => "b/q", decrypt => "file:k", encrypt => "" };"#);
    assert!(!stdout(&output).contains("chmod"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("encrypt"), "an empty password was none in Perl: {}", stdout(&output));
}

#[test]
fn signatures_and_characters_are_understood() {
    let folder = Folder::new("modern");
    let output = folder.convert(
        "use v5.26; use utf8; use feature 'signatures'; no warnings; our $queues;
         $queues->{'a/q'} = { remoteQueue => 'b/q', data_callback => sub ($data, @) { $data =~ s/ü+/ue/; $data } };
         $queues->{'a/r'} = { remoteQueue => 'b/r', data_callback => sub { $_[0] =~ s/ü\\w/u/; $_[0] } };
         $queues->{'a/ü'} = 'b/s';
         $queues->{'a/€'} = 'b/t';",
    );
    assert_eq!(status(&output), Some(1), "{}", stderr(&output));
    // one character in Perl, hence one byte of a job
    assert!(stdout(&output).contains("\n    data_callback = s/\\xfc+/ue/\n"), "{}", stdout(&output));
    for message in
        ["a/r: data_callback `s/\\374\\w/u/u` has a \\w under Unicode rules", "`a/\\xfc` is not in UTF-8", "no bytes"]
    {
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
}

#[test]
fn a_configuration_in_latin_1_is_converted() {
    let folder = Folder::new("latin-1");
    let output = folder.convert(
        b"# K\xf6ln\n$queues->{'a/q'} = { remoteQueue => 'b/q', data_callback => sub { $_[0] =~ s/K\xf6ln/Koeln/g; $_[0] } };
          $queues->{'a/r'} = { remoteQueue => 'b/r', data_callback => sub { $_[0] =~ s/Koeln/K\xf6ln/g; $_[0] } };",
    );
    assert_eq!(status(&output), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("\n    data_callback = s/K\\xf6ln/Koeln/g\n"), "{}", stdout(&output));
    assert!(
        stderr(&output).contains("a/r: data_callback") && stderr(&output).contains("puts in bytes that are not UTF-8")
    );
}

#[test]
fn global_settings_are_carried_over() {
    let folder = Folder::new("globals");
    for (perl, expected) in [
        ("$logfile = 'STDERR';", "logfile = stderr"),
        ("$logfile = '/var/log/a $x.log';", "logfile = /var/log/a $$x.log"),
        ("$pidfile = '/run/x.pid';", "pidfile = /run/x.pid"),
        ("$debug = 1;", "debug = 1"),
        ("$debug = 7;", "debug = 2"),
        ("$statusqueue = 'Host/status/dropped';", "statusqueue = host:4730/status"),
    ] {
        let output = folder.convert(format!("{perl} $queues->{{'a/q'}} = 'b/q';"));
        assert_eq!(status(&output), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains(&format!("\n{expected}\n")), "{perl}: {}", stdout(&output));
    }
    for perl in ["$logfile = 'stdout';", "$logfile = '';", "$logfile = '-';", "$debug = 0;", "$statusqueue = '';"] {
        let output = folder.convert(format!("{perl} $queues->{{'a/q'}} = 'b/q';"));
        let lines = stdout(&output).lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        assert_eq!(lines, 1, "{perl}: {}", stdout(&output));
    }
}

#[test]
fn perls_own_errors_are_shown_with_their_place() {
    let folder = Folder::new("errors");
    for (perl, message) in [
        ("$queues->{'a/q'} = ;\n", "syntax error at proxy.cfg line 1"),
        ("\n\ndie('no such site');\n", "no such site at proxy.cfg line 3"),
        ("use No::Such::Module;\n", "No/Such/Module.pm"),
        ("use strict;\n$undeclared = 1;\n", "\"$undeclared\" requires explicit package name"),
        ("$queues = [];\n", "$queues is no reference to a hash"),
        ("1;\n", "$queues is empty"),
        ("exit(0);\n", "perl ended before it had read the whole configuration"),
    ] {
        let output = folder.convert(perl);
        assert_eq!(status(&output), Some(2), "{perl}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{perl}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{perl}");
    }
    let output = proxy(&folder.0, &["--convert", "missing.cfg"]);
    assert_eq!(status(&output), Some(2));
    assert!(stderr(&output).contains("missing.cfg: there is no such configuration file"), "{}", stderr(&output));
}

#[test]
fn without_perl_the_message_says_what_to_do() {
    let folder = Folder::new("no-perl");
    folder.write("proxy.cfg", "$queues->{'a/q'} = 'b/q';");
    let output = command(&folder.0, &["--convert", "proxy.cfg"]).env("PATH", &folder.0).output().expect("starts");
    assert_eq!(status(&output), Some(2));
    assert!(stderr(&output).contains("there is no perl on this machine"), "{}", stderr(&output));
}

/// Debian's perl-base has neither B nor B::Deparse.
#[test]
fn without_deparse_only_callbacks_are_left() {
    let folder = Folder::new("no-deparse");
    folder.write("lib/B/Deparse.pm", "die('not here');");
    folder.write(
        "proxy.cfg",
        "$queues->{'a/q'} = 'b/q';\n$queues->{'a/r'} = { remoteQueue => 'b/r',\n    data_callback => sub { $_[0] } };",
    );
    for library in ["lib/B/Deparse.pm", "lib/B.pm"] {
        folder.write(library, "die('not here');");
        let output = command(&folder.0, &["--convert", "proxy.cfg"])
            .env("PERL5LIB", folder.0.join("lib"))
            .output()
            .expect("starts");
        assert_eq!(status(&output), Some(1), "{}", stderr(&output));
        assert!(stdout(&output).contains("\na:4730/q = b:4730/q\n"), "{}", stdout(&output));
        assert!(stdout(&output).contains("\n# a:4730/r = b:4730/r\n"), "{}", stdout(&output));
        assert!(stderr(&output).contains("without its module B::Deparse"), "{}", stderr(&output));
    }
}

/// Callbacks that are substitutions, in as many shapes as people and generators write them.
const CALLBACKS: &[&str] = &[
    r"my($d) = @_; $d =~ s/^result_queue=.*$/result_queue=x/gmx; return($d);",
    r"my $d = shift; $d =~ s/a/b/; $d =~ s/b/c/g; $d",
    r"my $d = $_[0]; $d =~ s{(\w+)=(\w+)}{$2=$1}g; $d",
    r"my $d = shift; $d =~ s/(o)(s)?/<$1$2>/g; return $d;",
    r"my $d = shift; $d =~ s/(o)/${1}0$1\1$&/g; return $d;",
    r"my $d = shift; $d =~ s/\s+$//; return $d;",
    r"my $d = shift; $d =~ s/$/!/; return $d;",
    r"my $d = shift; $d =~ s/[ab]+\Z/!/; return $d;",
    r"my $d = shift; $d =~ s/t$/T/g; return $d;",
    r"my $d = shift; $d =~ s/^/> /gm; return $d;",
    r"my $d = shift; $d =~ s/^.*$/line/gm; return $d;",
    r"my $d = shift; $d =~ s/^$/empty/m; return $d;",
    r"my $d = shift; $d =~ s/x*/-/g; return $d;",
    r"my $d = shift; $d =~ s/\bhost\b/HOST/gi; return $d;",
    r"my $d = shift; $d =~ s/[^\w\n]/_/g; return $d;",
    r"my $d = shift; $d =~ s/[[:upper:][:digit:]-]+/#/g; return $d;",
    r"my $d = shift; $d =~ s/[]\[]/|/g; return $d;",
    r"my $d = shift; $d =~ s/[\h\v]+/ /g; return $d;",
    r"my $d = shift; $d =~ s/a b # no comment/x/; return $d;",
    r"my $d = shift; $d =~ s/ a [ #] b # a comment
          \ c \# /x\ty\n/xg; return $d;",
    "my $d = shift; $d =~ s/one\ntwo\n/three\n/; return $d;",
    r"my $d = shift; $d =~ s{/usr/lib(64)?/}{/opt/}g; return $d;",
    r#"my $d = shift; $d =~ s/\/#!,~%@;:"/both/; return $d;"#,
    r"my $d = shift; $d =~ s/USER(\d)/\$USER$1\$/g; return $d;",
    r"my $d = shift; $d =~ s/\$USER(\d)\$/user $1/g; return $d;",
    r"my $d = shift; $d =~ s/\@example\.org/\@example.net/g; return $d;",
    r"my $d = shift; $d =~ s/K\xf6ln|Köln/Cologne/g; return $d;",
    r"my $d = shift; $d =~ s/\x{e4}/ä/g; return $d;",
    r"my $d = shift; $d =~ s/ü?x/y/g; return $d;",
    r"my $d = shift; $d =~ s/[äö]+/o/g; return $d;",
    r"my $d = shift; $d =~ s/\\/\\\\/g; return $d;",
    r"my $d = shift; $d =~ s/\\n/\n/g; return $d;",
    r"my $d = shift; $d =~ s/(?<key>\w+)=(?<value>.*)/$+{value}=$+{key}/; return $d;",
    r"my $d = shift; $d =~ s/(?i:HOST)_(?s:.)ame/x/; return $d;",
    r"my $d = shift; $d =~ s/a{2}|b{1,}|c{2,3}|{x}/q/g; return $d;",
    r"my $d = shift; $d =~ s/a.*?=/=/s; return $d;",
    r"my $d = shift; $d =~ s/$from/$to/g; return $d;",
    r"my $d = shift; $d =~ s/\Q$from\E/\Q$to\E/g; return $d;",
    r"my $d = shift; $d =~ s/^($name|$expression)/<$1 $global ${global}0>/m; return $d;",
    r"my $d = shift; $d =~ s/$spaced/-/; return $d;",
    r"my $d = shift; $d =~ s/${name}[ab]/$name/; return $d;",
    r"my $d = shift; my $queue = 'results.x'; $d =~ s/^result_queue=.*/result_queue=$queue/m; return $d;",
    r"local $_ = shift; s/a/b/; s/c/d/; return $_;",
    r"my($d) = @_; for ($d) { s/^\s+//; s/\s+$//; } return $d;",
    r"my($d) = @_; s/a/b/g, s/o/0/g for $d; return $d;",
    r"return $_[0] =~ s/a/b/r =~ s/c/d/gr;",
    r"(my $d = shift) =~ s/=/: /g; return $d;",
    r"my($d, $job) = @_; (my $u = $d) =~ s/.*^host_name=(\S+).*/$1/ms; $d =~ s/e/E/; return($d, $u);",
    r"my($d) = @_; $d =~ s/a/b/; my $u = $d; $u =~ s/\W//g; $d =~ s/o/0/; return($d, $u);",
    r"my($d, @rest) = @_; $d =~ s/(\w)$/<$1>/; return($d, undef);",
];

const VARIABLES: &str = r#"
my $from = "a.b"; our $to = 'c/$d'; my $name = "host_name"; my $expression = qr/t y p e (?# x ) = /xi;
$global = "g"; my $spaced = qr/ \s+ # blanks
  [ ]? =/x;
"#;

const DATA: &[&[u8]] = &[
    b"",
    b"\n",
    b"a",
    b"a\n",
    b"a\n\n",
    b"type=host\nresult_queue=check_results\ntarget_queue=host\nhost_name=web 1\ncore_start_time=1.5\n\n\n",
    b"host_name=web1\nservice=disk /usr/lib64/nagios /usr/lib/x\noutput=aab bbb ccc {x} cccc\n",
    b"host host_name HOST\n  aa  =  bb \n\n",
    b"one\ntwo\nthree\n",
    b"a#bc# a b # no comment",
    b"K\xf6ln K\xc3\xb6ln \xe4\xe4 \xc3\xa4 \xc3x x \xc3\xbcx",
    b"$USER1$ USER2 me@example.org \\n \\ /#!,~%@;:\"",
    b"[x] ]-A9- \x0b\x0c\r\xa0\x85 \x00",
    b"a.b axb aab c\\d host_namea host_nameb",
    b"xxaxx oos",
];

/// Every substitution that comes out does to data what the Perl callback does.
#[test]
fn converted_callbacks_do_what_perl_did() {
    let folder = Folder::new("like-perl");
    let mut configuration = VARIABLES.to_owned();
    for (index, callback) in CALLBACKS.iter().enumerate() {
        configuration.push_str(&format!(
            "$queues->{{'a/{index}'}} = {{ remoteQueue => 'b/{index}', data_callback => sub {{ {callback} }} }};\n"
        ));
    }
    let output = folder.convert(&configuration);
    let converted = stdout(&output);
    assert_eq!(status(&output), Some(0), "{}", stderr(&output));
    assert_passes_check(converted);

    let data: Vec<Vec<u8>> = DATA.iter().map(|data| data.to_vec()).chain(random_texts(200)).collect();
    let words: String = data.iter().map(|data| format!("{}\n", hex(data))).collect();
    folder.write("data", words);
    let perl = Command::new("perl").current_dir(&folder.0).arg("-e").arg(APPLY).output().expect("perl starts");
    assert!(perl.status.success(), "{}", stderr(&perl));
    let outcomes: Vec<&str> = stdout(&perl).lines().collect();
    assert_eq!(outcomes.len(), CALLBACKS.len() * data.len());

    let mut different = Vec::new();
    for (index, callback) in CALLBACKS.iter().enumerate() {
        let changes = options(converted, index, "data_callback");
        let ids = options(converted, index, "uniq_callback");
        assert!(!changes.is_empty(), "{callback}");
        for (number, text) in data.iter().enumerate() {
            let mut words = outcomes[index * data.len() + number].split(' ');
            let (ours, _) = applied(&changes, text);
            if words.next() != Some(&hex(&ours)) {
                different.push(format!(
                    "{callback}\n{changes:?}\n{} became {}",
                    text.escape_ascii(),
                    ours.escape_ascii()
                ));
            }
            // Without a match there is no id here, where Perl would have taken the whole data.
            let (id, matches) = applied(&ids, text);
            if matches > 0 && words.next() != Some(&hex(&id)) {
                different.push(format!("{callback}\n{ids:?}\n{} has id {}", text.escape_ascii(), id.escape_ascii()));
            }
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different[..different.len().min(20)].join("\n\n"));
}

/// Calls each callback with each line of the file `data`.
const APPLY: &str = r#"
package GearmanProxy;
do "./proxy.cfg"; die($@) if $@;
open(my $file, '<', 'data') or die($!);
my @data = map { chomp; pack('H*', $_) } <$file>;
for my $index (0 .. scalar(keys %{$queues}) - 1) {
    for my $data (@data) {
        my $copy = $data;
        my @values = &{$queues->{"a/$index"}->{data_callback}}($copy, {}, {}, {});
        print join(' ', map { defined $_ ? unpack('H*', $_) : '' } @values), "\n";
    }
}
"#;

/// The substitutions of one option under `a:4730/INDEX`.
fn options(configuration: &str, index: usize, key: &str) -> Vec<Substitution> {
    let head = format!("a:4730/{index} = ");
    let key = format!("    {key} = ");
    let lines = configuration.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
    lines
        .take_while(|line| line.starts_with(' '))
        .filter_map(|line| line.strip_prefix(&key))
        .map(|text| Substitution::parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.message)))
        .collect()
}

fn applied(substitutions: &[Substitution], text: &[u8]) -> (Vec<u8>, usize) {
    let mut text = text.to_vec();
    let mut changed = Vec::new();
    let mut matches = 0;
    let limits = Limits::of_size(1 << 20);
    let mut bounds = Bounds::new(&limits, 1 << 20);
    for substitution in substitutions {
        let found = substitution.apply(&text, &mut changed, &mut Groups::default(), &mut bounds, |_| {}).unwrap();
        if found > 0 {
            std::mem::swap(&mut text, &mut changed);
        }
        matches += found;
    }
    (text, matches)
}

/// Short texts of the characters that the callbacks look for, always the same ones.
fn random_texts(count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % 1_000_003).expect("small") % below
    };
    const PIECES: &[&[u8]] = &[
        b"a",
        b"b",
        b"c",
        b"o",
        b"s",
        b"t",
        b"x",
        b" ",
        b"\n",
        b"=",
        b"host",
        b"_",
        b"#",
        b"\xfc",
        b"\xc3\xa4",
        b"\\",
        b"{x}",
        b"a.b",
        b"type=",
        b"\t",
        b"[",
    ];
    (0..count).map(move |_| {
        let length = random(12);
        (0..length).flat_map(|_| PIECES[random(PIECES.len())].to_vec()).collect()
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
