//! `gearman-proxy-convert` keeps its promises: real Perl reads real configurations of the Perl proxy, what comes out does
//! the same, and what can't be converted is said.

// Clippy's own exception for tests leaves out their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the sample configurations are; their outcome stands beside them as `.conf`.
fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/convert")
}

fn converter(folder: &Path) -> Command {
    let mut command = Command::new("perl");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/gearman-proxy-convert"));
    command.current_dir(folder).env_remove("PERL5LIB").env_remove("PERL5OPT");
    command
}

fn convert(folder: &Path, files: &[&str]) -> Output {
    converter(folder).args(files).output().expect("perl starts")
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

/// A folder that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("gearman-proxy-convert-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("lib/B")).expect("a temporary folder");
        Folder(path)
    }

    fn convert(&self, configuration: impl AsRef<[u8]>) -> Output {
        fs::write(self.0.join("proxy.cfg"), configuration).expect("a temporary file");
        convert(&self.0, &["proxy.cfg"])
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn assert_converted(files: &[&str], expected: &str) {
    let output = convert(&samples(), files);
    assert_eq!(status(&output), Some(0), "{}", stderr(&output));
    let expected = fs::read_to_string(samples().join(expected)).expect("the expected outcome");
    // The first line names the files.
    let rest = |text: &str| text.split_once('\n').expect("lines").1.to_owned();
    assert_eq!(rest(stdout(&output)), rest(&expected));
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
fn loops_closures_heredocs_and_odd_bytes_are_converted() {
    assert_converted(&["nasty.cfg"], "nasty.conf");
}

#[test]
fn a_folder_is_read_as_the_perl_proxy_read_it() {
    assert_converted(&["conf.d"], "conf.d.conf");
    assert_converted(&["conf.d/10-servers.cfg", "conf.d/20-sites.cfg", "conf.d/30-last.conf"], "conf.d.conf");
    let output = convert(&samples(), &["conf.d"]);
    assert!(stderr(&output).contains("configuration read"), "what a configuration prints stays out of the outcome");
}

/// Converts a file of callbacks and has Perl run both, the callbacks and what they became, on the same data.
fn compare(name: &str) -> Output {
    let folder = Folder::new(name);
    let output = convert(&samples(), &[&format!("{name}.cfg")]);
    let converted = folder.0.join("converted");
    fs::write(&converted, stdout(&output)).expect("a temporary file");
    let compared = Command::new("perl")
        .current_dir(samples())
        .args(["compare.pl", &format!("{name}.cfg")])
        .arg(&converted)
        .output()
        .expect("perl starts");
    assert_eq!(status(&compared), Some(0), "{}{}", stdout(&compared), stderr(&compared));
    assert!(stdout(&compared).contains(" compared, 0 different"), "{}", stdout(&compared));
    output
}

#[test]
fn realistic_callbacks_are_converted_and_do_what_perl_did() {
    let output = compare("callbacks");
    assert_eq!(status(&output), Some(1), "{}", stderr(&output));
    let names = |prefix: &str| -> Vec<&str> {
        let lines = stdout(&output).lines();
        lines.filter_map(|line| Some(line.strip_prefix(prefix)?.split_once(" = ")?.0)).collect()
    };
    let (converted, left) = (names("a:4730/"), names("# a:4730/"));
    assert_eq!((converted.len(), left.len()), (28, 6), "converted {converted:?}, left {left:?}");
    assert!(left.iter().all(|name| name.starts_with("left_")), "{left:?}");
}

#[test]
fn every_way_to_write_a_substitution_does_what_perl_did() {
    let output = compare("more");
    assert_eq!(status(&output), Some(0), "{}", stderr(&output));
}

/// Whatever random callbacks are converted do the same.
#[test]
fn random_callbacks_do_what_perl_did() {
    let folder = Folder::new("random");
    for seed in ["2", "6", "11"] {
        let random = Command::new("perl").arg(samples().join("random.pl")).arg(seed).output().expect("perl starts");
        let output = folder.convert(&random.stdout);
        fs::write(folder.0.join("converted"), stdout(&output)).expect("a temporary file");
        let compared = Command::new("perl")
            .current_dir(&folder.0)
            .arg(samples().join("compare.pl"))
            .args(["proxy.cfg", "converted"])
            .output()
            .expect("perl starts");
        assert_eq!(status(&compared), Some(0), "seed {seed}: {}{}", stdout(&compared), stderr(&compared));
        let converted = stdout(&output).lines().filter(|line| line.starts_with("a:4730/")).count();
        assert!(converted > 60, "{converted} of 150 were converted");
    }
}

/// The comparison would see a conversion that does something else.
#[test]
fn the_comparison_sees_differences() {
    let folder = Folder::new("differences");
    let output = convert(&samples(), &["callbacks.cfg"]);
    for (right, wrong) in [
        (" unless /^type=host$/m", ""),
        ("/result_queue=hosts/m if", "/result_queue=hosts/m unless"),
        ("s/\\s+(\\n?)", "s/\\s(\\n?)"),
        ("\\L$2\\E", "$2"),
        ("$1-$2/", "$1$2/"),
    ] {
        assert!(stdout(&output).contains(right), "{right}");
        fs::write(folder.0.join("converted"), stdout(&output).replace(right, wrong)).expect("a temporary file");
        let compared = Command::new("perl")
            .current_dir(samples())
            .args(["compare.pl", "callbacks.cfg"])
            .arg(folder.0.join("converted"))
            .output()
            .expect("perl starts");
        assert_eq!(status(&compared), Some(1), "{right}");
    }
}

#[test]
fn what_needs_manual_conversion_is_a_comment_with_its_reason() {
    let output = convert(&samples(), &["left.cfg"]);
    assert_eq!(status(&output), Some(1), "{}", stderr(&output));
    for (place, reason) in [
        ("left.cfg:6: a/code", "`$data =~ tr/a-c/x-z/` has no equivalent"),
        ("left.cfg:13: a/evaluated", "`$1 + 1` has no equivalent"),
        ("left.cfg:14: a/letters", "has no equivalent"),
        ("left.cfg:15: a/ahead", "has `(?=b` in its pattern"),
        ("left.cfg:16: a/counted", "returns something else than the data"),
        ("left.cfg:17: a/later", "$ENV{'NAME'}"),
        ("left.cfg: a/blank", "decrypt has blanks at its ends"),
        ("left.cfg: a/line", "encrypt has blanks at its ends or control characters"),
        ("left.cfg: a/latin", "encrypt is not UTF-8"),
        ("left.cfg: a/wide", "encrypt has characters that are not bytes"),
        ("left.cfg: a/workers", "worker is 5000, not 1 to 1000"),
        ("left.cfg: a/idle", "worker is 0"),
        ("left.cfg: a/nowhere", "remoteQueue is missing"),
        ("left.cfg: a/list", "is a reference"),
        ("left.cfg: a/noqueue", "`b` is not HOST:PORT/QUEUE"),
        ("left.cfg: a/blank name", "`a/blank name` has a queue name"),
        ("left.cfg: a/with=sign", "has a `=`"),
        ("left.cfg: a/plain", "the source `a:4730/plain` has another forward"),
        ("left.cfg: a/name", "data_callback is not a sub"),
        ("left.cfg: a/undefined", "names a sub that is not defined"),
        ("left.cfg: $statusqueue", "`nowhere` is not HOST:PORT/QUEUE"),
        ("left.cfg: $logfile", "has blanks at its ends"),
        ("gearman-proxy-convert", "22 things need manual conversion"),
    ] {
        let found =
            stderr(&output).lines().any(|line| line.starts_with(&format!("{place}: ")) && line.contains(reason));
        assert!(found, "{place}: {reason}\n{}", stderr(&output));
    }
    assert!(!stderr(&output).contains("not shown in messages"), "no password in messages");
    // A forward without its callback or password would send what nobody can read: it is a comment.
    let active: Vec<&str> = stdout(&output).lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(active, ["a:4730/plain = b:4730/again"]);
    assert!(
        stdout(&output).contains("#             $data =~ tr/a-c/x-z/;\n"),
        "the Perl text is shown\n{}",
        stdout(&output)
    );
    assert!(stdout(&output).contains("# a:4730/code = b:4730/code\n#     encrypt = not shown in messages\n"));
}

#[test]
fn what_changes_silently_is_said() {
    let folder = Folder::new("notes");
    let output = folder.convert(
        r"$logfile = '/var/log/x.log'; $debug = 1;
          $queues->{'a/q'} = { remoteQueue => 'b/q', decrypt => 'file:k',
              data_callback => sub { my($d) = @_; my($id) = $d =~ /^host_name=(.*)$/m; $d =~ s/\s+$//; return($d, $id) } };",
    );
    assert_eq!(status(&output), Some(0), "{}", stderr(&output));
    for note in [
        "$logfile is carried over",
        "$debug = 1 is debug = 0",
        "its own unique id",
        "the NULs",
        "keep their unique ids",
    ] {
        assert!(stderr(&output).lines().any(|line| line.starts_with("note: ") && line.contains(note)), "{note}");
    }
}

#[test]
fn passwords_are_carried_over_as_they_are() {
    let folder = Folder::new("passwords");
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
    let output = folder.convert(r#"$queues->{"a/q"} = { remoteQueue => "b/q", decrypt => "file:k", encrypt => "" };"#);
    assert!(!stdout(&output).contains("chmod"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("encrypt"), "an empty password was none in Perl: {}", stdout(&output));
}

#[test]
fn global_settings_are_carried_over() {
    let folder = Folder::new("globals");
    for (perl, expected) in [
        ("$logfile = 'STDERR';", "\nlogfile = stderr\n"),
        ("$logfile = '/var/log/a $x.log';", "\nlogfile = /var/log/a $$x.log\n"),
        ("$pidfile = '/run/x.pid';", "\npidfile = /run/x.pid\n"),
        ("$debug = 2;", "\ndebug = 1\n"),
        ("$debug = 7;", "\ndebug = 2\n"),
        ("$statusqueue = 'Host/status/dropped';", "\nstatusqueue = host:4730/status\n"),
        ("$logfile = 'stdout'; $debug = 1; $statusqueue = '';", "kept.\n\na:4730/q = b:4730/q\n"),
    ] {
        let output = folder.convert(format!("{perl} $queues->{{'a/q'}} = 'b/q';"));
        assert_eq!(status(&output), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains(expected), "{perl}: {}", stdout(&output));
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
        ("$queues = [];\n", "$queues is not a reference to a hash"),
        ("1;\n", "$queues is empty"),
        ("exit(0);\n", "proxy.cfg called exit"),
    ] {
        let output = folder.convert(perl);
        assert_eq!(status(&output), Some(2), "{perl}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{perl}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{perl}");
    }
    for (argument, message) in [("missing.cfg", "missing.cfg: no such configuration file"), ("--wrong", "")] {
        let output = convert(&folder.0, &[argument]);
        assert_eq!(status(&output), Some(2), "{argument}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
    assert!(stdout(&convert(&folder.0, &["--help"])).contains("Exit status: 0 "));
}

/// Debian's perl-base has neither B nor B::Deparse.
#[test]
fn without_deparse_only_callbacks_are_left() {
    let folder = Folder::new("no-deparse");
    fs::write(
        folder.0.join("proxy.cfg"),
        "$queues->{'a/q'} = 'b/q';\n$queues->{'a/r'} = { remoteQueue => 'b/r',\n    data_callback => sub { $_[0] } };",
    )
    .expect("a temporary file");
    fs::write(folder.0.join("lib/B/Deparse.pm"), "die('not here');").expect("a temporary file");
    let output =
        converter(&folder.0).arg("proxy.cfg").env("PERL5LIB", folder.0.join("lib")).output().expect("perl starts");
    assert_eq!(status(&output), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("\na:4730/q = b:4730/q\n"), "{}", stdout(&output));
    assert!(stdout(&output).contains("\n# a:4730/r = b:4730/r\n"), "{}", stdout(&output));
    assert!(stderr(&output).contains("without its module B::Deparse"), "{}", stderr(&output));
}

/// What comes out is judged by the daemon itself.
#[test]
fn what_comes_out_passes_check() {
    let folder = Folder::new("check");
    for name in ["readme.cfg", "site.cfg", "nasty.cfg", "conf.d", "callbacks.cfg", "more.cfg", "left.cfg"] {
        let converted = convert(&samples(), &[name]);
        let path = folder.0.join("proxy.conf");
        fs::write(&path, stdout(&converted)).expect("a temporary file");
        // From the samples' folder, where the password files are.
        let output = Command::new(env!("CARGO_BIN_EXE_gearman-proxy"))
            .current_dir(samples())
            .arg("--check")
            .arg("--config")
            .arg(&path)
            .output()
            .expect("the binary starts");
        assert_eq!(status(&output), Some(0), "{name}: {}\n{}", stderr(&output), stdout(&converted));
    }
}
