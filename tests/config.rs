//! Promises about configurations, kept by the real program with `--check`.

// Clippy's own exception for tests leaves out their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gearman_proxy::config::{self, Address, Config, ForwardConfig, LogTarget, Priority, Server};

/// A folder of its own for a test, in which the program is started; it goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gearman-proxy-config-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn with(files: &[(&str, &str)]) -> Folder {
        let folder = Folder::new();
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    /// With a mode that others can't read.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gearman-proxy"));
        command.current_dir(&self.0).env_remove("OMD_ROOT").env_remove("NO_COLOR");
        command
    }

    fn check(&self, paths: &[&str]) -> Checked {
        let mut command = self.command();
        command.arg("--check").args(paths.iter().map(|path| format!("--config={path}")));
        Checked::from(command.output().unwrap())
    }

    /// In this process.
    fn load(&self, name: &str) -> Config {
        config::load(&[self.0.join(name)]).unwrap_or_else(|errors| panic!("{errors}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
struct Checked {
    status: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Checked {
    fn from(output: Output) -> Checked {
        Checked {
            status: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Checked {
    /// The sources of the forwards, as the table lists them.
    fn sources(&self) -> Vec<&str> {
        assert_eq!(self.status, 0, "{}", self.stderr);
        let rows = self.stdout.lines().skip(1).take_while(|line| !line.is_empty());
        rows.map(|line| line.split_whitespace().next().unwrap()).collect()
    }

    /// The first lines of the errors.
    fn errors(&self) -> Vec<&str> {
        assert_eq!((self.status, self.stdout.as_str()), (2, ""), "{}", self.stderr);
        self.stderr.lines().filter(|line| !line.starts_with(' ')).collect()
    }
}

fn accepted(text: &str) -> Config {
    let folder = Folder::with(&[("f", text)]);
    let checked = folder.check(&["f"]);
    assert_eq!((checked.status, checked.stderr.as_str()), (0, ""), "{text}");
    folder.load("f")
}

/// What is legal but hardly meant in the text, without the place.
fn warnings(text: &str) -> Vec<String> {
    let folder = Folder::with(&[("f", text)]);
    let checked = folder.check(&["f"]);
    assert_eq!(checked.status, 0, "{}", checked.stderr);
    checked.stderr.lines().map(|line| line.splitn(3, ": ").last().unwrap().to_owned()).collect()
}

/// That each text is refused for its reason and no other. The wrong spot is marked with `@`.
fn refused(texts: &[(&str, &str)]) {
    let folder = Folder::new();
    texts.iter().for_each(|(text, reason)| refused_in(&folder, text, reason));
}

fn refused_in(folder: &Folder, text: &str, reason: &str) {
    folder.write("f", text.replacen('@', "", 1));
    let (before, _) = text.split_once('@').unwrap();
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap().trim_start();
    let column = line.split_once('@').unwrap().0.chars().count();
    let shown = line.replacen('@', "", 1);
    let checked = folder.check(&["f"]);
    let caret = format!("{:column$}^", "");
    let errors: String =
        checked.stderr.lines().filter(|line| !line.starts_with("warning: ")).map(|l| l.to_owned() + "\n").collect();
    let expected = format!("f:{number}: {reason}\n    {}\n    {caret}\n", shown.trim_end());
    assert_eq!(errors, expected, "{text}");
    assert_eq!((checked.status, checked.stdout.as_str()), (2, ""));
}

const FORWARD: &str = "h/a = h/b\n";

#[test]
fn the_example_explains_every_option_and_passes() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example")).unwrap();
    let checked = Folder::with(&[("f", &text)]).check(&["f"]);
    assert_eq!((checked.status, checked.stderr.as_str()), (0, ""));
    assert_eq!(checked.sources().len(), 8);
    assert!(!checked.stdout.contains("local password"));
    for entry in &config::keys::KEYS {
        let given = text.lines().filter_map(|line| line.split_once('=')).any(|(key, _)| key.trim() == entry.name);
        assert!(given, "{} is not in config.example", entry.name);
    }
}

#[test]
fn every_option_means_what_it_says() {
    let config = accepted(
        "$local  = 127.0.0.1:4730\n\
         $remote = 192.168.1.33:4730\n\
         statusqueue = $local/proxy_status\n\
         max_job_size = 3K\n\
         debug = 2\n\
         pidfile = ${local}.pid\n\
         metricsfile = m$$\n\
         logfile = log-$$1\n\
         $local/a = $remote/b\n\
         \tasync = 0\n\
         \tworker = 4\n\
         \ttimeout = 7\n\
         \tpriority = high\n\
         \tmax_age = 600\n\
         \treject_queue = bad\n\
         Host/A = [::1]:1/B\n\
         \tprefetch = 65535\n\
         \treject_queue = [::1]/bad\n",
    );
    assert_eq!(config.statusqueue.unwrap().to_string(), "127.0.0.1:4730/proxy_status");
    assert_eq!((config.max_job_size, config.debug), (3 << 10, 2));
    assert_eq!(config.pidfile, Some("127.0.0.1:4730.pid".into()));
    assert_eq!(config.logfile, LogTarget::File("log-$1".into()));
    assert_eq!(config.metricsfile, Some("m$".into()));
    let [first, second] = &config.forwards[..] else { panic!() };
    assert_eq!(first.source.to_string(), "127.0.0.1:4730/a");
    assert_eq!(first.first_destination().to_string(), "192.168.1.33:4730/b");
    assert_eq!((first.asynchronous, first.workers, first.prefetch), (false, 4, 4));
    assert_eq!((first.timeout, first.priority), (Some(Duration::from_secs(7)), Priority::High));
    assert_eq!(first.reject_queue.as_ref().unwrap().to_string(), "127.0.0.1:4730/bad");
    assert_eq!((first.max_age, first.prefetch_is_explicit), (Some(Duration::from_secs(600)), false));
    assert_eq!((second.max_age, second.prefetch_is_explicit), (None, true));
    assert_eq!(second.source.to_string(), "host:4730/A");
    assert_eq!(second.first_destination().to_string(), "[::1]:1/B");
    assert_eq!((second.asynchronous, second.workers, second.prefetch), (true, 1, 65535));
    assert_eq!((second.timeout, second.priority), (None, Priority::Normal));
    assert_eq!(second.reject_queue.as_ref().unwrap().to_string(), "[::1]:4730/bad");
}

#[test]
fn defaults() {
    let config = accepted(FORWARD);
    assert_eq!((config.logfile, config.debug, config.pidfile), (LogTarget::Stdout, 0, None));
    assert_eq!((config.max_job_size, config.statusqueue), (64 << 20, None));
    assert_eq!((config.metricsfile, config.patterns.len()), (None, 0));
    let forward = &config.forwards[0];
    assert_eq!((forward.asynchronous, forward.workers, forward.prefetch), (true, 1, 4096));
    assert_eq!((forward.timeout, &forward.reject_queue), (None, &None));
    assert_eq!((forward.priority, forward.place.line), (Priority::Normal, 1));
    let stages = &forward.stages;
    assert!(stages.decrypt.is_none() && stages.encrypt.is_none());
    assert!(stages.data_callbacks.is_empty() && stages.uniq_callbacks.is_empty());
}

#[test]
fn the_limits_of_a_range_are_in_it() {
    let sync = "async = 0\n";
    for option in ["worker = 1", "worker = 1000", "prefetch = 1"] {
        accepted(&format!("{FORWARD}{option}"));
    }
    for option in ["timeout = 0", "timeout = 31536000"] {
        accepted(&format!("{FORWARD}{sync}{option}"));
    }
    for (size, bytes) in [("1", 1), ("1073741824", 1 << 30), ("1G", 1 << 30), ("2M", 2 << 20)] {
        assert_eq!(accepted(&format!("{FORWARD}max_job_size = {size}")).max_job_size, bytes);
    }
}

#[test]
fn a_byte_order_mark_crs_comments_and_indentation_do_not_matter() {
    let plain = accepted("# c\n; c\nh/a = h/b\nworker = 2\n");
    let dressed = accepted("\u{feff}   # c\r\n\r\n  \t\r\n\th/a\t=\th/b  \r\n   worker=2");
    assert_eq!(plain.forwards, dressed.forwards);
    assert_eq!(dressed.forwards[0].place.line, 4);
}

#[test]
fn only_the_first_equals_sign_divides() {
    assert_eq!(accepted("h/a = h/b=c\n").forwards[0].first_destination().queue, "b=c");
}

#[test]
fn files_are_read_in_the_order_given_and_a_folders_in_order_of_name() {
    let folder = Folder::with(&[
        ("main.conf", "h/main = x/y"),
        ("d/20.conf", "h/20 = x/y"),
        ("d/10.cfg", "h/10 = x/y"),
        ("d/30.conf~", "h/30 = x/y"),
        ("d/.40.conf", "h/40 = x/y"),
        ("d/50.txt", "h/50 = x/y"),
        ("d/60.conf/70.conf", "h/70 = x/y"),
        ("d2/last", "h/last = x/y"),
    ]);
    let all = ["h:4730/10", "h:4730/20", "h:4730/main", "h:4730/last"];
    assert_eq!(folder.check(&["d", "main.conf", "d2/last"]).sources(), all);
    assert_eq!(folder.check(&["main.conf", "d"]).sources(), ["h:4730/main", "h:4730/10", "h:4730/20"]);
}

#[test]
fn globs_match_in_any_part_of_the_path() {
    let folder = Folder::with(&[
        ("a1/x.conf", "h/a1x = x/y"),
        ("a1/y.conf", "h/a1y = x/y"),
        ("a2/x.conf", "h/a2x = x/y"),
        ("b/x.conf", "h/bx = x/y"),
        ("[b]", "h/literal = x/y"),
    ]);
    assert_eq!(folder.check(&["a*/?.conf"]).sources(), ["h:4730/a1x", "h:4730/a1y", "h:4730/a2x"]);
    assert_eq!(folder.check(&["[!b]2/[x-z].conf"]).sources(), ["h:4730/a2x"]);
    assert_eq!(folder.check(&["a[12]"]).sources(), ["h:4730/a1x", "h:4730/a1y", "h:4730/a2x"]);
    assert_eq!(folder.check(&["./b/../a2/*"]).sources(), ["h:4730/a2x"]);
    let absolute = format!("{}/b/*.conf", folder.0.display());
    assert_eq!(folder.check(&[&absolute]).sources(), ["h:4730/bx"]);
    assert_eq!(folder.check(&["[b]"]).sources(), ["h:4730/literal"]);
}

#[test]
fn a_file_named_twice_is_read_once() {
    let folder = Folder::with(&[("d/a.conf", "h/a = x/y\n")]);
    symlink("a.conf", folder.0.join("d/b.conf")).unwrap();
    assert_eq!(folder.check(&["d/a.conf", "d", "d/*.conf"]).sources(), ["h:4730/a"]);
}

#[test]
fn an_empty_folder_beside_a_file_is_allowed() {
    let folder = Folder::with(&[("f", FORWARD), ("d/.keep", "")]);
    assert_eq!(folder.check(&["f", "d"]).sources(), ["h:4730/a"]);
}

#[test]
fn without_config_the_default_is_read() {
    let folder = Folder::with(&[("etc/mod-gearman/proxy.conf", FORWARD)]);
    let checked = Checked::from(folder.command().arg("-t").env("OMD_ROOT", &folder.0).output().unwrap());
    assert_eq!(checked.sources(), ["h:4730/a"]);
    let default = Path::new("/etc/gearman-proxy/proxy.conf");
    let checked = Checked::from(folder.command().arg("-t").env_remove("HOME").output().unwrap());
    if default.exists() {
        assert_eq!(checked.status, folder.check(&[default.to_str().unwrap()]).status);
    } else {
        let missing = "there is no such file: --config names a file, a folder or a pattern";
        assert_eq!(checked.errors(), [format!("{}: {missing}", default.display())]);
    }
}

#[test]
fn an_old_configuration_of_the_perl_script_is_named_where_none_is_given() {
    for old in ["gearman_proxy.cfg", "proxy.cfg"] {
        let folder = Folder::with(&[(&format!("etc/mod-gearman/{old}"), "$queues = {\n};\n")]);
        let checked = Checked::from(folder.command().arg("-t").env("OMD_ROOT", &folder.0).output().unwrap());
        let etc = folder.0.join("etc/mod-gearman");
        let (path, old) = (etc.join("proxy.conf"), etc.join(old));
        let (path, old) = (path.display(), old.display());
        let reason = format!(
            "there is no such file, but a configuration of gearman_proxy.pl is at {old}: convert it with \
             `gearman-proxy-convert {old} > {path}`"
        );
        assert_eq!(checked.errors(), [format!("{path}: {reason}")]);
    }
}

#[test]
fn variables_hold_across_files_may_be_set_again_and_fall_back_on_the_environment() {
    let folder = Folder::with(&[
        ("1", "$server = one\n$both = $server:$PORT\n$both/a = x/y\n$server = two\n"),
        ("2", "${server}/b = x/y\n$PROXY_TEST_HOST/c = x/y\n$PROXY_TEST_HOST = set\n$PROXY_TEST_HOST/c = x/y\n"),
    ]);
    let mut command = folder.command();
    command.args(["-t", "-c1", "-c2"]).env("PROXY_TEST_HOST", "env").env("PORT", "1");
    let checked = Checked::from(command.output().unwrap());
    assert_eq!(checked.sources(), ["one:1/a", "two:4730/b", "env:4730/c", "set:4730/c"]);
}

#[test]
fn variables_are_expanded_in_every_place_named() {
    let folder = Folder::with(&[("X$.key", "secret")]);
    folder.write(
        "f",
        format!(
            "$x = X\nlogfile = $x.log\npidfile = ${{x}}.pid\nstatusqueue = $x/s$x\n\
             $x/$x = $x/d$x\nreject_queue = r$x\nencrypt = file: {}/$x$$.key\n\
             h/2 = $x/2\nreject_queue = $x/q\nencrypt = secret\n",
            folder.0.display()
        ),
    );
    let config = folder.load("f");
    assert_eq!(config.logfile, LogTarget::File("X.log".into()));
    assert_eq!(config.pidfile, Some("X.pid".into()));
    assert_eq!(config.statusqueue.unwrap().to_string(), "x:4730/sX");
    let [first, second] = &config.forwards[..] else { panic!() };
    assert_eq!(
        (first.source.to_string(), first.first_destination().to_string()),
        ("x:4730/X".into(), "x:4730/dX".into())
    );
    assert_eq!(first.reject_queue.as_ref().unwrap().to_string(), "x:4730/rX");
    assert_eq!(first.stages, second.stages);
    assert_eq!(second.reject_queue.as_ref().unwrap().to_string(), "x:4730/q");
}

#[test]
fn literal_passwords_and_callbacks_are_never_expanded() {
    let folder = Folder::with(&[("key", "$x$$ and file:\r\n\n"), ("other", "X$ and file:")]);
    folder.write(
        "f",
        format!(
            "$x = X\nh/a = h/z\ndecrypt = $x$$ and file:\nh/b = h/z\ndecrypt = file:{0}/key\n\
             h/c = h/z\ndecrypt = file:{0}/other\nh/d = h/z\ndata_callback = s/(x)$/${{1}}$1/\n",
            folder.0.display()
        ),
    );
    let config = folder.load("f");
    assert_eq!(config.forwards[0].stages, config.forwards[1].stages);
    assert_ne!(config.forwards[0].stages, config.forwards[2].stages);
    assert_eq!(config.forwards[3].stages.data_callbacks.len(), 1);
}

#[test]
fn a_changed_password_file_makes_another_forward() {
    let folder = Folder::with(&[("key", "one\n")]);
    folder.write("f", format!("{FORWARD}decrypt = file:{}/key\n", folder.0.display()));
    let (before, again) = (folder.load("f"), folder.load("f"));
    folder.write("key", "two\n");
    assert_eq!(before.forwards, again.forwards);
    assert_ne!(before.forwards, folder.load("f").forwards);
}

#[test]
fn a_forward_for_each_word_in_braces() {
    let config = accepted("h/x{a, b,c}_y = i/\nworker = 2\nh/{d} = i/all\n");
    let forwards: Vec<String> =
        config.forwards.iter().map(|f| format!("{} {} {}", f.source, f.first_destination(), f.workers)).collect();
    let expected = [
        "h:4730/xa_y i:4730/xa_y 2",
        "h:4730/xb_y i:4730/xb_y 2",
        "h:4730/xc_y i:4730/xc_y 2",
        "h:4730/d i:4730/all 1",
    ];
    assert_eq!(forwards, expected);
    assert!(config.forwards.iter().take(3).all(|forward| forward.place.line == 1));
}

#[test]
fn several_destinations_keep_their_order() {
    let config = accepted("$two = i/b, j/\nh/a = $two,\tk/b\n");
    let destinations: Vec<String> = config.forwards[0].destinations.iter().map(|d| d.to_string()).collect();
    assert_eq!(destinations, ["i:4730/b", "j:4730/a", "k:4730/b"]);
}

/// Source and destinations of the forwards that are found among the queues.
fn found(config: &Config, server: &str, queues: &[&str]) -> Vec<String> {
    let found = config.found_forwards(&Server::parse(server).unwrap(), queues.iter().copied());
    assert!(found.errors.is_empty());
    let forward = |forward: &ForwardConfig| {
        let destinations: Vec<String> = forward.destinations.iter().map(|d| d.to_string()).collect();
        format!("{} = {}", forward.source, destinations.join(", "))
    };
    found.forwards.iter().map(forward).collect()
}

#[test]
fn patterns_make_forwards_of_the_queues_that_match() {
    let config = accepted(
        "h/host_* = i/, j/all\nworker = 3\nreject_queue = host_bad\nh/?ost_a = k/\nh/host_x = i/y\n\
         statusqueue = h/host_status\nlocalhost/host_* = h/local\n127.0.0.1/host_z = h/local\n",
    );
    assert_eq!((config.forwards.len(), config.patterns.len()), (2, 3));
    let queues = ["host_b", "host_a", "host_x", "post_a", "host_bad", "host_status", "service", "host_b", "host_ b"];
    let expected = [
        "h:4730/host_a = i:4730/host_a, j:4730/all",
        "h:4730/host_b = i:4730/host_b, j:4730/all",
        "h:4730/post_a = k:4730/post_a",
    ];
    assert_eq!(found(&config, "h", &queues), expected);
    assert_eq!(found(&config, "localhost", &["host_z", "host_y"]), ["localhost:4730/host_y = h:4730/local"]);
    assert_eq!(found(&config, "i", &queues), [""; 0]);
    let forward = config.patterns[0].forward_for("host_b").unwrap();
    assert_eq!((forward.workers, forward.place.line), (3, 1));
    assert_eq!(config.patterns[0].forward_for("host_bad"), None);
    assert_eq!(config.forward_from(&Address::parse("h/host_b").unwrap()), Some(forward));
    assert_eq!(config.forward_from(&Address::parse("h/service").unwrap()), None);
}

#[test]
fn of_two_patterns_the_first_makes_the_forward_however_the_server_is_written() {
    let config = accepted("localhost/host_* = i/\n127.0.0.1/host_a* = j/\n127.0.0.1/* = k/\n");
    assert_eq!(found(&config, "localhost", &["host_a", "b"]), ["localhost:4730/host_a = i:4730/host_a"]);
    assert_eq!(found(&config, "127.0.0.1", &["host_a", "b"]), ["127.0.0.1:4730/b = k:4730/b"]);
}

#[test]
fn a_pattern_finds_a_thousand_queues_and_names_what_is_more() {
    let config = accepted("h/q* = i/\nh/* = i/rest\n");
    let queues: Vec<String> = (0..1500).map(|n| format!("q{n:04}")).chain(["other".to_owned()]).collect();
    let found = config.found_forwards(&Server::parse("h").unwrap(), queues.iter().map(String::as_str));
    assert_eq!(found.forwards.len(), 1001);
    assert_eq!(found.forwards[999].source.queue, "q0999");
    assert_eq!(found.forwards[1000].source.queue, "other");
    let [error] = &found.errors[..] else { panic!() };
    assert_eq!(error, "1500 queues match the pattern in line 1, relaying 1000");
    assert!(error.len() <= 80 && !error.contains(['|', '\'', '(', ')', '[', ']']));
}

#[test]
fn what_is_legal_but_hardly_meant_is_a_warning() {
    let quotes = "the quotes are part of the value: write it without quotes";
    let end = "the value ends in `;` or `,`, which is part of it: a line needs no end";
    let comment = "the value holds ` #`: a comment has a line of its own";
    let long = "the password is longer than 32 bytes: Mod-Gearman uses no more of it";
    for (text, expected) in [
        ("h/a = h/b;\n", vec![end]),
        ("$x = 'h'\nh/a = h/b\n", vec![quotes]),
        ("h/a = h/b\nlogfile = \"x\"\n", vec![quotes]),
        ("h/a = h/b\nencrypt = \"x\";\n", vec![end]),
        ("h/a = h/b\nencrypt = 'x'\n", vec![quotes]),
        ("h/a = h/b\nencrypt = secret # comment\n", vec![comment]),
        ("h/a = h/b\nencrypt = se#cret\n", vec![]),
        ("h/a = h/b\nencrypt = f\n", vec!["the password is the path of an existing file: write file:PATH to read it"]),
        ("h/a = h/b\nencrypt = 12345678901234567890123456789012\n", vec![]),
        ("h/a = h/b\nencrypt = 123456789012345678901234567890123\n", vec![long]),
        ("$s = x\nh/a = h/b\nencrypt = ${s}\n", vec!["the password is a variable's name: passwords are not expanded"]),
        ("h/a = h/b\nlogfile = ~/x\n", vec!["`~` is not expanded: write the whole path"]),
        ("h/a = h/b\nlogfile = no/x\n", vec!["the folder `no` does not exist: create it"]),
        ("h/a = h/b\npidfile = /no/x\n", vec!["the folder `/no` does not exist: create it"]),
        ("h/a = h/b\nmetricsfile = no/x\n", vec!["the folder `no` does not exist: create it"]),
        ("h/a = h/b\nmetricsfile = x\npidfile = ./x\nlogfile = -\n", vec![]),
        ("h/a = h/b\ndata_callback = s/a/'b' # c,/\n", vec![]),
    ] {
        assert_eq!(warnings(text), expected, "{text}");
    }
}

#[test]
fn a_password_that_others_can_read_is_a_warning() {
    let folder = Folder::with(&[("f", "h/a = h/b\nencrypt = file:key\n"), ("key", "secret")]);
    let open = |name: &str| fs::set_permissions(folder.0.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(folder.check(&["f"]).stderr, "");
    open("f");
    assert_eq!(folder.check(&["f"]).stderr, "");
    open("key");
    let warning = "f:2: password file `key` is world-readable: run chmod o-r";
    let checked = folder.check(&["f"]);
    assert_eq!((checked.status, checked.stderr), (0, format!("warning: {warning}\n")));
    // Also when the configuration is wrong elsewhere.
    folder.write("f", "h/a = h/b\nencrypt = file:key\nnonsense = 1\n");
    let checked = folder.check(&["f"]);
    assert_eq!(checked.status, 2);
    assert!(checked.stderr.contains(warning), "{}", checked.stderr);
    // A literal one, once a file.
    folder.write("f", "h/a = h/b\ndecrypt = x\nencrypt = y\n");
    assert_eq!(folder.check(&["f"]).stderr, "");
    open("f");
    let warning = "warning: f:2: a password stands in this file, which is world-readable: run chmod o-r\n";
    assert_eq!(folder.check(&["f"]).stderr, warning);
}

#[test]
fn the_table_lists_the_forwards_in_columns() {
    let folder = Folder::with(&[(
        "f",
        "statusqueue = h/s\nh/a = h/b\nlong.example.org:1/q = h/c, i/\nasync=0\nworker=12\ntimeout=5\ndecrypt=x\n\
         data_callback=s/a/b/\ndata_callback=s/b/c/\npriority=low\nreject_queue=r\nh/x_* = i/\nmax_age=600\n",
    )]);
    let expected = "\
SOURCE                DESTINATION         STAGES                    MODE   WORKER  PREFETCH  PRIORITY  TIMEOUT  MAX AGE  REJECT QUEUE
h:4730/a              h:4730/b            -                         async  1       4096      normal    -        -        -
long.example.org:1/q  h:4730/c, i:4730/q  decrypt, 2 data_callback  sync   12      12        low       5 s      -        long.example.org:1/r
h:4730/x_*            i:4730/             -                         async  1       4096      normal    -        600 s    -

status queue: h:4730/s
";
    assert_eq!(folder.check(&["f"]).stdout, expected);
    let long = accepted(&format!("h/{}1 = h/{}2\n", "q".repeat(500), "q".repeat(500))).table();
    assert!(long.lines().all(|line| line.chars().count() < 400) && long.contains("qqq1  h:4730/qqq"), "{long}");
}

#[test]
fn too_low_a_limit_of_open_files_is_a_warning_with_both_numbers() {
    let folder = Folder::with(&[("f", "h/a = h/b\nworker = 100\nreject_queue = r\nh/c = h/d\n")]);
    let run = |limit: u32| {
        let program = env!("CARGO_BIN_EXE_gearman-proxy");
        let script = format!("ulimit -n {limit} && exec {program} -t -c f");
        Checked::from(Command::new("sh").args(["-c", &script]).current_dir(&folder.0).output().unwrap())
    };
    // (1 + 100 + 1) + (1 + 1), and 21 of the proxy's own.
    let checked = run(124);
    assert_eq!(checked.status, 0);
    let begin = "warning: the limit of open files is 124, but 125 are needed when all forwards are at work";
    assert!(checked.stderr.starts_with(begin), "{}", checked.stderr);
    assert_eq!(run(125).stderr, "");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let lines: String = (0..2000).map(|n| format!("h/a{n} = h/b\n")).collect();
    let folder = Folder::with(&[("f", &lines), ("wrong", &lines.replace("h/b", "h:0/b"))]);
    let program = env!("CARGO_BIN_EXE_gearman-proxy");
    for (config, expected) in [("f", "status 0"), ("wrong", "status 2")] {
        let script = format!("({program} -t -c {config} 2>&1; echo status $? >&3) 3>status | head -n 1");
        let output = Command::new("sh").args(["-c", &script]).current_dir(&folder.0).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{config}");
        assert_eq!(fs::read_to_string(folder.0.join("status")).unwrap().trim(), expected);
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    let missing = "if it is the source of a forward, its queue is missing: HOST:PORT/QUEUE";
    let known = "the known ones are logfile, debug, pidfile, max_job_size, statusqueue, metricsfile, decrypt, encrypt, \
                 data_callback, uniq_callback, async, worker, prefetch, priority, timeout, max_age, reject_queue";
    for (key, reason) in [
        ("workers", "did you mean `worker`?"),
        ("statusQueue", "did you mean `statusqueue`?"),
        ("zzz", known),
        ("remoteQueue", "the destination stands in the forward's own line, SOURCE = DESTINATION"),
        ("h:1", missing),
        ("10.0.0.1", missing),
    ] {
        let folder = Folder::with(&[("f", &format!("h/a = h/b\n  {key} = 3\n"))]);
        // Of a line that could hold a password the value is not shown.
        let expected = format!("f:2: unknown key `{key}`: {reason}\n    {key} = ********\n    ^\n");
        assert_eq!(folder.check(&["f"]).stderr, expected);
    }
}

#[test]
fn lines_that_are_not_key_and_value() {
    let perl = "`=>` is Perl: write `=` instead";
    refused(&[
        ("h/a = h/b\n  @= ********\n", "the key is missing before the `=`: a line is `key = value`"),
        ("h/a = h/b\nworker =@\n", "`worker` has no value: expected 1 to 1000"),
        ("h/a = h/b\nlogfile =@  \n", "`logfile` has no value: expected stdout, stderr or a path"),
        (
            "$@a-b = 3\nh/a = h/b\n",
            "`a-b` is not a variable's name: letters, digits and `_`, not a digit first, set as `$name = value`",
        ),
        ("h/a @=> ********\n  worker = 3\n", perl),
        ("h/a = h/b\n  worker @=>3\n", perl),
    ]);
}

const MISSING_SIGN: &str = "the `=` is missing: a line is `key = value`, or a comment that begins with `#`";

#[test]
fn blanks_at_a_lines_end_are_no_value() {
    let folder = Folder::new();
    for line in ["worker", "$x", "h/c", "logfile"] {
        folder.write("f", format!("h/a = h/b\n{line} \t\n"));
        assert_eq!(folder.check(&["f"]).errors(), [format!("f:2: {MISSING_SIGN}")], "{line}");
    }
}

#[test]
fn the_options_under_a_broken_forward_are_not_the_forwards_above() {
    for broken in ["h/c -> h/d", "h/c => h/d", "h/c = /d", "h/c = "] {
        let folder = Folder::with(&[("f", &format!("h/a = h/b\nworker = 2\n{broken}\nworker = 3\n"))]);
        let errors = folder.check(&["f"]);
        assert!(matches!(errors.errors()[..], [error] if error.starts_with("f:3: ")), "{broken}: {}", errors.stderr);
    }
    let folder = Folder::new();
    folder.write("f", b"h/a = h/b\nworker = 2\nh/\xfc = h/d\nworker = 3\n");
    assert_eq!(folder.check(&["f"]).errors(), ["f:3: this is not UTF-8: save the file as UTF-8"]);
    folder.write("f", "h/a = h/b\nworker 3\n");
    assert_eq!(folder.check(&["f"]).errors(), [format!("f:2: {MISSING_SIGN}")]);
}

#[test]
fn a_forward_option_needs_a_forward_above_it_in_the_same_file() {
    let reason = "`worker` is a forward's option and stands before any forward: it belongs under a line `SOURCE = DESTINATION` of the same file";
    refused(&[("debug = 1\n@worker = 2\nh/a = h/b\n", reason)]);
    let folder = Folder::with(&[("1", "h/a = h/b\n"), ("2", "worker = 2\n")]);
    assert_eq!(folder.check(&["1", "2"]).errors(), [format!("2:1: {reason}")]);
}

#[test]
fn an_option_is_given_once() {
    refused(&[
        ("h/a = h/b\nworker = 1\n@worker = 1\n", "`worker` is given twice, first at f:2"),
        ("debug = 1\nh/a = h/b\n@debug = 1\n", "`debug` is given twice, first at f:1"),
    ]);
    accepted("h/a = h/b\nworker = 1\nh/c = h/d\nworker = 1\ndata_callback = s/a/b/\ndata_callback = s/a/b/\n");
    let folder = Folder::with(&[("1", "debug = 0\nh/a = h/b\n"), ("2", "debug = 0\n")]);
    assert_eq!(folder.check(&["1", "2"]).errors(), ["2:1: `debug` is given twice, first at 1:1"]);
}

#[test]
fn an_option_of_the_other_kind_of_forward() {
    let sync_only = "`timeout` is for synchronous forwards only: those with `async = 0`";
    let async_only = "is for asynchronous forwards only: this one has `async = 0` in line 3";
    refused(&[
        ("h/a = h/b\n@timeout = 3\n", sync_only),
        ("h/a = h/b\n@timeout = 3\nasync = 1\n", sync_only),
        ("h/a = h/b\n@prefetch = 3\nasync = 0\n", &format!("`prefetch` {async_only}")),
        ("h/a = h/b\n#\nasync = 0\n@uniq_callback = s/a/b/\n", &format!("`uniq_callback` {async_only}")),
        // Of a wrong one it is not known which kind this is.
        ("h/a = h/b\ntimeout = 3\nprefetch = 3\nasync = @no\n", "invalid value `no` for `async`: expected 1 or 0"),
        ("h/a = h/b\ntimeout = 3\nprefetch = 3\nasync =@\n", "`async` has no value: expected 1 or 0"),
    ]);
}

#[test]
fn a_forward_given_twice_names_the_first_place() {
    let twice = |source: &str| format!("a forward from {source} is given twice, first at f:1: a queue has one forward");
    refused(&[
        ("h/a = h/b\n@H:4730/a = h/c\n", &twice("h:4730/a")),
        ("h/{a,b} = i/\n@h/b = h/c\n", &twice("h:4730/b")),
        ("h/a* = i/\n@h/a* = j/\n", &twice("h:4730/a*")),
        ("127.0.0.1/a = h/b\n@localhost/a = h/c\n", &twice("localhost:4730/a")),
        ("[::1]/a = h/b\n@127.0.0.1/a = h/c\n", &twice("127.0.0.1:4730/a")),
        ("[2001:db8::1]/a = h/b\n@[2001:db8:0::1]/a = h/c\n", &twice("[2001:db8:0::1]:4730/a")),
        ("@h/{a,a} = i/\n", &twice("h:4730/a")),
    ]);
    let folder = Folder::with(&[("1", "\nh/a = h/b\n"), ("2", "H:4730/a = h/c\n")]);
    let reason = "2:1: a forward from h:4730/a is given twice, first at 1:2: a queue has one forward";
    assert_eq!(folder.check(&["1", "2"]).errors(), [reason]);
    accepted("h/a = h/b\nh/A = h/b\nh:4731/a = h/b\nlocalhost/a = h/b\n127.0.0.2/a = h/b\n");
}

#[test]
fn addresses() {
    let port = |port: &str| format!("invalid port `{port}`: expected a number from 1 to 65535");
    let comma = "several destinations are separated by a comma and a blank, several source queues stand in braces";
    let braces = "only a source has braces, one pair: HOST:PORT/{QUEUE,QUEUE}";
    let hold = "braces hold queue names, separated by commas: HOST:PORT/{QUEUE,QUEUE}";
    let pattern = "only a source's queue may be a pattern; a destination HOST:PORT/ keeps the queue's name";
    let long = "q".repeat(513);
    refused(&[
        ("h:@65536/a = h/b\n", &port("65536")),
        ("h/a = h:@x/b\n", &port("x")),
        ("h/a = h/b\n reject_queue = h:@0/q\n", &port("0")),
        ("$port = 99999\nh:@$port/a = h/b\n", &port("99999")),
        ("$host = h\n$host/a = ${host}:@0/b\n", &port("0")),
        ("h/a = h:@/b\n", "the port is missing: a number from 1 to 65535"),
        ("h/a = @/b\n", "the host is missing: HOST:PORT/QUEUE"),
        ("h/a = h:1@\n", "the queue is missing in `h:1`: HOST:PORT/QUEUE"),
        ("h/a = h/b\nstatusqueue = status@\n", "the queue is missing in `status`: HOST:PORT/QUEUE"),
        ("h/a =@\n", "an address is missing: HOST:PORT/QUEUE"),
        ("@::1/a = h/b\n", "an IPv6 address stands in brackets: [IPv6]:PORT/QUEUE"),
        ("h/a = @\"h/b\"\n", "an address is written without quotes, not with \""),
        ("h/@ = h/b\n", "the queue name is empty: HOST:PORT/QUEUE"),
        ("h/a = h/b@,h/c\n", &format!("`,` can't stand in the queue name `b,h/c`: {comma}")),
        ("h/a@,b = h/c\n", &format!("`,` can't stand in the queue name `a,b`: {comma}")),
        ("h/a = h/@{b,c}\n", &format!("`{{` can't stand in the queue name `{{b,c}}`: {braces}")),
        ("h/@{a}{b} = h/c\n", &format!("`{{` can't stand in the queue name `a{{b}}`: {braces}")),
        ("h/a = h/b@*\n", &format!("`*` can't stand in the queue name `b*`: {pattern}")),
        ("h/a = h/b\nreject_queue = r@?\n", &format!("`?` can't stand in the queue name `r?`: {pattern}")),
        ("h/@{a,b = h/c\n", hold),
        ("h/@{a,,b} = h/c\n", hold),
        ("h/a = h/b, @H/b\n", "the destination h:4730/b is given twice"),
        ("h/a = h/b, i:@0/b\n", &port("0")),
    ]);
    let folder = Folder::with(&[("f", &format!("h/{long} = h/b\n"))]);
    assert_eq!(folder.check(&["f"]).errors(), ["f:1: the queue name has 513 bytes; at most 512 are possible"]);
    accepted(&format!("h/{} = h/b\n", &long[1..]));
    folder.write("f", "h/a = h/b c\nh/d\u{202e} = h/e\n");
    let errors = folder.check(&["f"]);
    let name = "the queue name `d\\u{202e}` has invisible characters; a queue name can have none";
    let blank = "this is not an address: HOST:PORT/QUEUE, with nothing behind it";
    assert_eq!(errors.errors(), [format!("f:1: {blank}"), format!("f:2: {name}")]);
}

#[test]
fn values_out_of_range() {
    let size = "bytes, or with K, M or G: 1 byte to 1G";
    for (option, wrong, expected) in [
        ("debug", "3", "0, 1 or 2"),
        ("debug", "on", "0, 1 or 2"),
        ("max_job_size", "0", size),
        ("max_job_size", "2G", size),
        ("max_job_size", "1073741825", size),
        ("max_job_size", "99999999999999999999G", size),
        ("max_job_size", "64MB", size),
        ("max_job_size", "M", size),
        ("async", "yes", "1 or 0"),
        ("worker", "0", "1 to 1000"),
        ("worker", "1001", "1 to 1000"),
        ("worker", "+1", "1 to 1000"),
        ("prefetch", "65536", "1 to 65535"),
        ("prefetch", "99999999999999999999", "1 to 65535"),
        ("priority", "High", "low, normal or high"),
        ("max_age", "-1", "0 to 31536000 seconds"),
    ] {
        let reason = format!("invalid value `{wrong}` for `{option}`: expected {expected}");
        refused(&[(&format!("h/a = h/b\n  {option} = @{wrong}\n"), &reason)]);
    }
    let reason = "invalid value `1.5` for `timeout`: expected 0 to 31536000 seconds";
    refused(&[("h/a = h/b\nasync = 0\ntimeout = @1.5\n", reason)]);
    let folder = Folder::with(&[("f", "h/a = h/b\nworker = 4 # four\n")]);
    let reason = "f:2: invalid value for `worker`: expected 1 to 1000; a comment has a line of its own";
    assert_eq!(folder.check(&["f"]).errors(), [reason]);
}

/// A FIFO that nobody writes to.
fn fifo(folder: &Folder, name: &str) {
    assert!(Command::new("mkfifo").arg(folder.0.join(name)).status().unwrap().success());
}

#[test]
fn password_files() {
    let folder = Folder::with(&[("empty", "\r\n\n"), ("folder/x", ""), ("large", &"x".repeat(70_000))]);
    fifo(&folder, "fifo");
    let begin = "h/a = h/b\n  decrypt = file:@";
    for (name, reason) in [
        ("missing", "cannot be read: No such file or directory"),
        ("no/such/key", "cannot be read: folder no does not exist"),
        ("empty", "is empty: it should hold the password"),
        ("folder", "cannot be read: it is not a regular file"),
        ("fifo", "cannot be read: it is not a regular file"),
        ("/dev/zero", "cannot be read: it is not a regular file"),
        ("large", "cannot be read: it is larger than 64 KiB"),
    ] {
        refused_in(&folder, &format!("{begin}{name}\n"), &format!("password file `{name}` {reason}"));
    }
    refused_in(&folder, begin, "the path is empty");
}

#[test]
fn callbacks() {
    refused_callback("s/a/b", "s/a/b");
    refused_callback("y/a/b/", "y/a/b/");
    refused_callback("s/(a/b/", "unclosed group");
    refused_callback("s/a/$1/", "1");
    refused_callback("s/a/b/q", "q");
    let perl = "only s/PATTERN/REPLACEMENT/FLAGS is possible here, not Perl code: gearman-proxy-convert turns many \
                callbacks into it";
    refused(&[
        ("h/a = h/b\ndata_callback = @sub { my($data) = @_; return $data; }\n", perl),
        ("h/a = h/b\nuniq_callback = @sub{}\n", perl),
    ]);
}

/// That a callback is refused in its line, which is shown, with words about what is wrong.
fn refused_callback(callback: &str, about: &str) {
    let folder = Folder::with(&[("f", &format!("h/a = h/b\n  data_callback = {callback}\n"))]);
    let checked = folder.check(&["f"]);
    assert_eq!(checked.errors().len(), 1, "{}", checked.stderr);
    assert!(checked.stderr.starts_with("f:2: "), "{}", checked.stderr);
    assert!(checked.stderr.contains(about), "{}", checked.stderr);
    let lines: Vec<&str> = checked.stderr.lines().collect();
    let [.., line, caret] = lines[..] else { panic!("{}", checked.stderr) };
    assert_eq!(line, format!("    data_callback = {callback}"));
    assert!(
        caret.trim() == "^" && caret.len() > "    data_callback = ".len() && caret.len() <= line.len() + 1,
        "{caret}"
    );
}

#[test]
fn undefined_variables() {
    let undefined =
        "the variable $nope_1 is not set, neither above nor in the environment: set it with `$nope_1 = ...`";
    refused(&[
        ("h/a = @$nope_1/b\n", undefined),
        ("h/a = h/b\nlogfile = x@${nope_1}\n", undefined),
        ("h/a = h/b\ndecrypt = file:@$nope_1\n", undefined),
        (
            "h/a = h/b@$\n",
            "a variable's name should follow the `$`, letters, digits and `_`, not a digit first; write `$$` for a `$` itself",
        ),
        ("h/a = h/b@${x\n", "the brace is not closed: ${name}"),
        // Its use is not an error again.
        ("$a = @$nope_1\n$a/a = $a/b\nstatusqueue = $a/s\n", undefined),
    ]);
}

#[test]
fn an_empty_configuration() {
    let folder = Folder::with(&[("f", "# nothing\n"), ("g", "statusqueue = h/s\n"), ("d/.keep", "")]);
    let reason = "no forward is configured: a line `SOURCE = DESTINATION` makes one";
    assert_eq!(folder.check(&["f"]).stderr, format!("f: {reason}\n"));
    assert_eq!(folder.check(&["f", "g", "d"]).errors(), [format!("f, g, d: {reason}")]);
}

#[test]
fn files_that_cannot_be_read() {
    let folder = Folder::with(&[("f", FORWARD), ("binary", "\u{7f}ELF\0\n")]);
    folder.write("latin1", b"h/a = h/b\ndecrypt = gr\xfcn\nh/\xfc = h/d\nworker = 2\nh/e = h/\xe4\n");
    folder.write("\x1b]0;x\u{202e}", "nonsense");
    symlink("nowhere", folder.0.join("d.conf")).unwrap();
    fifo(&folder, "fifo");
    let missing = "there is no such file: --config names a file, a folder or a pattern";
    let pattern = "no file matches this pattern: quote it so that the shell leaves it alone, and check that the folder \
                   can be read";
    for (paths, error) in [
        (["missing", "f"], format!("missing: {missing}")),
        (["f", "."], format!("./d.conf: {missing}")),
        (["f", "x*/[a]"], format!("x*/[a]: {pattern}")),
        (["f", "[z-a]"], format!("[z-a]: {pattern}")),
        (["f", "binary"], "binary: is not a text file: expected UTF-8, one `key = value` a line".to_owned()),
        (["f", "/dev/zero"], "/dev/zero: cannot be read: it is not a regular file".to_owned()),
        (["f", "fifo"], "fifo: cannot be read: it is not a regular file".to_owned()),
        (["f", "\x1b]0;x\u{202e}"], format!("\\u{{1b}}]0;x\\u{{202e}}:1: {MISSING_SIGN}")),
    ] {
        assert_eq!(folder.check(&paths).errors(), [error]);
    }
    let expected = [2, 3, 5].map(|line| format!("latin1:{line}: this is not UTF-8: save the file as UTF-8"));
    assert_eq!(folder.check(&["latin1"]).errors(), expected);
}

#[test]
fn a_perl_configuration_is_recognised() {
    let reason = "this is a configuration of gearman_proxy.pl, which is Perl: convert it with \
                  `gearman-proxy-convert f > proxy.conf`";
    for text in [
        "$logfile = \"stdout\";\n# local\n  $queues->{\"127.0.0.1:4730/q\"} = \"192.168.1.33:4730/q\";\nworker => 3\n",
        "\n\nfor my $q (qw/a b/) { $queues -> {\"h/$q\"} = { decrypt => \"hunter2\", remoteQueue => \"x\" }; }\n",
        "#\n#\n$queues = {\n    \"h/a\" => \"h/b\",\n};\n",
    ] {
        let checked = Folder::with(&[("f", text)]).check(&["f"]);
        assert_eq!(checked.errors(), [format!("f:3: {reason}")]);
        assert!(!checked.stderr.contains("hunter2"), "{}", checked.stderr);
    }
    accepted("# $queues->{x}\nh/a = h/b\ndata_callback = s/\\$queues->\\{/x/\n");
}

#[test]
fn loops_name_the_other_forwards() {
    refused(&[
        ("@h/a = H:4730/a\n", "forwarding loop: h:4730/a -> h:4730/a"),
        ("@127.0.0.1/a = localhost/a\n", "forwarding loop: 127.0.0.1:4730/a -> localhost:4730/a"),
        ("@[::1]/a = h/b, 127.0.0.1/a\n", "forwarding loop: [::1]:4730/a -> 127.0.0.1:4730/a"),
        ("@h/a = h/b\nreject_queue = a\n", "forwarding loop: h:4730/a -> h:4730/a"),
        ("h/a = i/b\n@i/b = h/a\n", "forwarding loop: i:4730/b -> h:4730/a -> i:4730/b, with the forward at f:1"),
        ("h/a = j/x, i/b\n@i/b = h/a\n", "forwarding loop: i:4730/b -> h:4730/a -> i:4730/b, with the forward at f:1"),
        (
            "h/c = h/a\nh/x = h/a\nh/a = h/b\n@h/b = h/c\nh/y = h/z\n",
            "forwarding loop: h:4730/b -> h:4730/c -> h:4730/a -> h:4730/b, with the forward at f:1, the forward at f:3",
        ),
        (
            "h/a = i/x\nreject_queue = bad\n@h/bad = h/c\nreject_queue = h/a\n",
            "forwarding loop: h:4730/bad -> h:4730/a -> h:4730/bad, with the forward at f:1",
        ),
    ]);
    // Many forwards into one queue are none.
    accepted("h/a = i/x\nreject_queue = bad\nh/b = i/x\nreject_queue = bad\nh/bad = i/x\nh/c = h/a\n");
    let folder = Folder::with(&[("1", "h/a = h/b\n"), ("2", "h/b = h/c\n"), ("3", "h/c = h/a\n")]);
    let expected = "3:1: forwarding loop: h:4730/c -> h:4730/a -> h:4730/b -> h:4730/c, with the forward at 1:1, the \
                    forward at 2:1";
    assert_eq!(folder.check(&["1", "2", "3"]).errors(), [expected]);
}

#[test]
fn patterns_are_part_of_loops() {
    refused(&[
        ("@h/a* = h/\n", "forwarding loop: h:4730/a* -> h:4730/a*"),
        ("@h/a* = h/abc\n", "forwarding loop: h:4730/a* -> h:4730/abc"),
        ("h/a* = i/\n@i/*b = h/\n", "forwarding loop: i:4730/*b -> h:4730/*b -> i:4730/a*, with the forward at f:1"),
        (
            "h/* = i/\n@i/results = h/results\n",
            "forwarding loop: i:4730/results -> h:4730/results -> i:4730/results, with the forward at f:1",
        ),
    ]);
    for text in [
        "h/host_* = i/\ni/results = h/results\n",
        "h/a* = h/b\n",
        "h/a* = i/\ni/b* = h/\n",
        // What has a forward of its own, rejected jobs and questions do not match.
        "h/* = i/\ni/results = h/results\nh/results = j/x\n",
        "h/* = i/\nreject_queue = bad\n",
        "h/* = i/\ni/x = h/status\nstatusqueue = h/status\n",
        "h/* = i/\ni/x = j/y\nreject_queue = h/bad\n",
    ] {
        accepted(text);
    }
}

#[test]
fn every_loop_is_reported() {
    let folder = Folder::with(&[("f", "h/a = h/b\nh/b = h/a\nh/c = h/d\nreject_queue = e\nh/d = h/c\nh/e = h/c\n")]);
    let errors = folder.check(&["f"]);
    let places: Vec<&str> = errors.errors().iter().map(|line| &line[..4]).collect();
    assert_eq!(places, ["f:2:", "f:5:", "f:6:"]);
}

#[test]
fn a_loop_is_found_among_many_forwards() {
    let chain: String = (0..20_000).map(|n| format!("h/{n} = h/{}\n", n + 1)).collect();
    let start = Instant::now();
    let folder = Folder::with(&[("chain", &chain), ("f", &format!("{chain}h/20000 = h/0\n"))]);
    assert_eq!(folder.load("chain").forwards.len(), 20_000);
    assert!(
        folder.check(&["f"]).errors()[0].starts_with("f:20001: forwarding loop: h:4730/20000 -> h:4730/0 -> h:4730/1")
    );
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn no_forward_takes_from_the_status_queue() {
    let named = |place: &str| format!("h:4730/s is the status queue ({place})");
    refused(&[
        ("h/a = h/b\n@H/s = h/c\nstatusqueue = h/s\n", &format!("{}: no forward may take from it", named("f:3"))),
        (
            "statusqueue = h/s\nh/a = h/b\n  @reject_queue = s\n",
            &format!("{}: it keeps no jobs, reject to another one", named("f:1")),
        ),
    ]);
    let once = format!("{}: it keeps no jobs, reject to another one", named("f:1"));
    refused(&[("statusqueue = h/s\nh/{a,b} = i/\n  @reject_queue = s\n", &once)]);
    accepted("statusqueue = h/s\nx/s = h/s\nasync = 0\nh/* = x/q\n");
}

#[test]
fn everything_wrong_is_reported_in_one_pass_in_the_order_of_the_lines() {
    let folder = Folder::with(&[
        (
            "1",
            "worker = 1\nh:0/a = h/b\n  worker = 0\n  async = 2\n  timeout = x\nh/c = $nope/d\n  decrypt = file:missing\n\
             h/c = h/d\n  data_callback = nonsense\n  data_callback = 's/a/b/'\nstatusqueue = s\nnonsense\ndebug = 9\n",
        ),
        ("2", "h/e = h/f\n  prefetch = 1\n  async = 0\nh/f = h/e\nlogfil = x\n"),
    ]);
    let checked = folder.check(&["1", "missing", "2"]);
    let places: Vec<String> = checked.errors().iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect();
    let expected = [
        "1:1", "1:2", "1:3", "1:4", "1:5", "1:6", "1:7", "1:8", "1:9", "1:10", "1:11", "1:12", "1:13", "missing",
        "2:2", "2:4", "2:5",
    ];
    assert_eq!(places, expected, "{}", checked.stderr);
}

#[test]
fn the_daemon_reports_the_same_as_check() {
    let folder = Folder::with(&[("f", "h:0/a = h/b\nnonsense = 1\n")]);
    let checked = folder.check(&["f"]);
    let started = Checked::from(folder.command().args(["-c", "f"]).output().unwrap());
    assert_eq!((started.status, started.stderr), (2, checked.stderr));
}

#[test]
fn terminals_are_not_written_to_by_what_stands_in_a_file() {
    let folder =
        Folder::with(&[("f", "h/\x1b[2J = h/b\n\x1b]0;x\x07 = 3\nh/c = h/d\nworker = \x1b[1m\nlogfile\x1b\n")]);
    let checked = folder.check(&["f"]);
    assert_eq!(checked.errors().len(), 4);
    assert!(!checked.stderr.contains(['\x1b', '\x07']), "{}", checked.stderr);
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let folder = Folder::with(&[("f", FORWARD)]);
    let checked = Checked::from(folder.command().args(["--check", "f"]).output().unwrap());
    assert_eq!((checked.status, checked.stdout.as_str()), (2, ""));
    let begin = "gearman-proxy: \"f\" belongs to no option: a configuration is named with --config=f";
    assert!(checked.stderr.starts_with(begin), "{}", checked.stderr);
}

#[test]
fn help_and_version_go_to_stdout() {
    let folder = Folder::new();
    for (option, begin) in [("-h", "Relays Gearman jobs"), ("-V", "gearman-proxy 1.")] {
        let checked = Checked::from(folder.command().arg(option).output().unwrap());
        assert_eq!((checked.status, checked.stderr.as_str()), (0, ""));
        assert!(checked.stdout.starts_with(begin), "{}", checked.stdout);
    }
}

/// Numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

const PASSWORD: &str = "hunter2-0815";

#[test]
fn no_slip_of_the_pen_shows_a_password() {
    let folder = Folder::new();
    let characters: Vec<char> = (' '..='~').chain(['\t', '\u{a0}', 'ü']).collect();
    for line in [format!("decrypt = {PASSWORD}"), format!("    encrypt={PASSWORD}")] {
        let end = line.len() - PASSWORD.len();
        for at in 0..=end {
            let mut slips: Vec<String> = Vec::new();
            for c in &characters {
                slips.push(format!("{}{c}{}", &line[..at], &line[at..]));
                slips.push(format!(
                    "{}{c}{}",
                    &line[..at],
                    line.get(at + 1..).filter(|_| at < end).unwrap_or(&line[at..])
                ));
            }
            if at < end {
                slips.push(format!("{}{}", &line[..at], &line[at + 1..]));
            }
            for slip in slips {
                // With an error in the line, whatever the slip is.
                folder.write("f", format!("{slip}\n{slip}\nh/a = h/b\n{slip}\n{slip}\nh/b = h/a {slip}\n"));
                let report = config::load(&[folder.0.join("f")]).unwrap_err().to_string();
                assert!(!report.contains("hunter"), "{slip:?}\n{report}");
            }
        }
    }
}

/// Tokens that mean something to the parser.
const TOKENS: [&str; 65] = [
    "=",
    " = ",
    "\n",
    "\r\n",
    "/",
    ":",
    "[",
    "]",
    "[::1]",
    "$",
    "$$",
    "${",
    "}",
    "$a",
    "${a}",
    "$a = ",
    "# ",
    "; ",
    "\t",
    "\u{feff}",
    "\u{a0}",
    "ü",
    "\\",
    "|",
    "(",
    ")",
    "*",
    "s/a/b/g",
    "s{(.)}{$1}x",
    "file:",
    "file:/dev/null",
    "file:/",
    "h:1/q",
    "q",
    "0",
    "1",
    "65536",
    "-1",
    "99999999999999999999",
    "64M",
    "K",
    "low",
    "stdout",
    "logfile",
    "debug",
    "pidfile",
    "max_job_size",
    "statusqueue",
    "decrypt",
    "encrypt",
    "data_callback",
    "uniq_callback",
    "async",
    "worker",
    "prefetch",
    "priority",
    "timeout",
    "reject_queue",
    "$queues->{",
    "{",
    ", ",
    "?",
    "max_age",
    "metricsfile",
    "\u{1}",
];

fn mutated(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut text = seed.to_vec();
    for _ in 0..=random.below(12) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(20)).min(text.len());
        match random.below(6) {
            0 => drop(text.drain(at..end)),
            1 => drop(text.splice(at..at, random.pick(&TOKENS).bytes())),
            2 => drop(text.splice(at..end, random.pick(&TOKENS).bytes())),
            3 => {
                let piece = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                text.splice(to..to, piece);
            }
            4 => {
                let byte = random.next() as u8;
                text.insert(at, byte);
            }
            _ => {
                // Whole lines change places, which makes loops and repetitions.
                let mut lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
                let (from, to) = (random.below(lines.len()), random.below(lines.len()));
                let line = lines[from];
                lines.insert(to, line);
                text = lines.join(&b'\n');
            }
        }
    }
    text
}

/// Two seconds, or as many as GEARMAN_PROXY_FUZZ_SECONDS says.
#[test]
fn no_text_whatever_makes_the_parser_panic() {
    let seconds = std::env::var("GEARMAN_PROXY_FUZZ_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    let example = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example")).unwrap();
    let short =
        b"\xef\xbb\xbf$a = h\n$a/x = ${a}:1/y\n  reject_queue = r\r\n  async = 0\n  timeout = 3\nh/r = h/x\n".to_vec();
    let folder = Folder::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut count, mut valid) = (0_u64, 0_u64);
    while count < 2000 || Instant::now() < end {
        let mut random = Random(count);
        let text = mutated(&mut random, if count.is_multiple_of(4) { &example } else { &short });
        folder.write("f", &text);
        let outcome = std::panic::catch_unwind(|| match config::load(&[folder.0.join("f")]) {
            Ok(config) => {
                assert!(config.forwards.len() + config.patterns.len() > 0 && !config.table().is_empty());
                for pattern in &config.patterns {
                    config.found_forwards(&pattern.server, ["a", "", "host_b", "\u{202e}"].into_iter());
                }
                true
            }
            Err(errors) => {
                assert!(!errors.errors.is_empty());
                for error in &errors.errors {
                    assert!(error.to_string().contains(": "));
                }
                assert!(!errors.to_string().is_empty());
                false
            }
        });
        match outcome {
            Ok(is_valid) => valid += u64::from(is_valid),
            Err(_) => panic!("seed {count}: {}", String::from_utf8_lossy(&text)),
        }
        count += 1;
    }
    println!("{count} configurations, {valid} of them valid");
    assert!(valid > 0 && valid < count);
}
