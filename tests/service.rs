//! What those see who start it: pid file, log, exit status.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Command;

use support::proxy::run;
use support::{Folder, Gearmand, Proxy, wait_for};

struct Servers {
    source: Gearmand,
    destination: Gearmand,
}

fn servers() -> (Servers, String) {
    let servers = Servers { source: Gearmand::start(), destination: Gearmand::start() };
    let config = format!("{} = {}\n", servers.source.queue("work"), servers.destination.queue("work"));
    (servers, config)
}

#[test]
fn the_pid_file_holds_the_process_id_and_is_removed_at_the_end() {
    let (servers, config) = servers();
    for by_option in [true, false] {
        let folder = Folder::new();
        let file = folder.file("proxy.pid");
        let option = format!("--pidfile={}", file.display());
        let mut proxy = if by_option {
            Proxy::start_in(folder, &config, &[&option])
        } else {
            Proxy::start_in(folder, &format!("pidfile = {}\n{config}", file.display()), &[])
        };
        servers.source.wait_for_workers("work", 1);
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), proxy.pid().to_string());
        assert_eq!(proxy.stop().code(), Some(0));
        assert!(!file.exists());
    }
}

#[test]
fn the_pid_file_of_a_living_process_is_an_error() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let file = folder.file("proxy.pid");
    let option = format!("--pidfile={}", file.display());
    let first = Proxy::start_in(folder, &config, &[&option]);
    servers.source.wait_for_workers("work", 1);
    let mut second = Proxy::start_with(&config, &[&option]);
    let status = second.exit_status().code();
    assert!(matches!(status, Some(1 | 2)), "{status:?}");
    let log = second.log();
    assert!(log.contains("proxy.pid") && log.contains(&first.pid().to_string()), "{log}");
    // The first one's file is still there and its own.
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), first.pid().to_string());
}

#[test]
fn the_pid_file_of_a_dead_process_is_replaced() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let file = folder.file("proxy.pid");
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    fs::write(&file, format!("{}\n", ended.id())).unwrap();
    let option = format!("--pidfile={}", file.display());
    let proxy = Proxy::start_in(folder, &config, &[&option]);
    servers.source.wait_for_workers("work", 1);
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), proxy.pid().to_string());
}

#[test]
fn options_are_spelled_as_the_perl_script_and_its_init_script_spell_them() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let (log, pid) = (folder.file("proxy.log"), folder.file("proxy.pid"));
    let more = folder.file("conf.d");
    fs::create_dir(&more).unwrap();
    let (from, to) = (servers.source.queue("more"), servers.destination.queue("more"));
    fs::write(more.join("more.cfg"), format!("{from} = {to}\n")).unwrap();
    let options = [
        format!("--log={}", log.display()),
        format!("--pid={}", pid.display()),
        format!("--config={}", more.display()),
    ];
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let mut proxy = Proxy::start_in(folder, &config, &options);
    servers.source.wait_for_workers("work", 1);
    servers.source.wait_for_workers("more", 1);
    assert_eq!(fs::read_to_string(&pid).unwrap().trim(), proxy.pid().to_string());
    assert!(!fs::read_to_string(&log).unwrap().is_empty());
    assert_eq!(proxy.log(), "", "with a log file nothing is printed");

    fs::rename(&log, more.join("rotated")).unwrap();
    proxy.signal("HUP");
    wait_for("a new log file", || log.exists());
    assert_eq!(proxy.stop().code(), Some(0));
    assert!(!pid.exists());
}

#[test]
fn the_command_line_wins_over_the_configuration() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let (wrong, right) = (folder.file("wrong.log"), folder.file("right.log"));
    let config = format!("logfile = {}\n{config}", wrong.display());
    let _proxy = Proxy::start_in(folder, &config, &["-l", right.to_str().unwrap(), "--debug"]);
    servers.source.wait_for_workers("work", 1);
    servers.source.client().submit_background("work", b"", b"data");
    wait_for("debug lines", || fs::read_to_string(&right).unwrap().contains("[DEBUG]"));
    assert!(!wrong.exists());
}

#[test]
fn the_log_goes_to_standard_output_or_standard_error() {
    let (servers, config) = servers();
    for option in ["--logfile=stdout", "--logfile=stderr", "--logfile=-"] {
        let proxy = Proxy::start_with(&config, &[option]);
        servers.source.wait_for_workers("work", 1);
        // Local time with its offset, level, thread.
        wait_for("a line in simplelog's form", || {
            let form = r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*(Z|[+-]\d\d:\d\d) \[(INFO|DEBUG)\] .*\S";
            regex::bytes::RegexBuilder::new(form).unicode(false).build().unwrap().is_match(proxy.log().as_bytes())
        });
        drop(proxy);
        servers.source.wait_for_workers("work", 0);
    }
}

#[test]
fn neither_passwords_nor_jobs_are_written_to_the_log() {
    let (servers, config) = servers();
    let options = "decrypt = should_be_changed\nencrypt = %other password%\ndata_callback = s/^nothing like it$//m\n";
    let folder = Folder::new();
    let proxy = Proxy::start_in(folder, &format!("{config}{options}"), &["--debug", "--logfile=stderr"]);
    servers.source.wait_for_workers("work", 1);
    let mut jobs = vec![b"RSBMQXtrevklYKzy2SX+yA==".to_vec(); 20];
    jobs.push(b"%undecodable%".to_vec());
    // Base64 of what is no ciphertext.
    jobs.push(b"dHlwZT1wYXNzaXZlCmFi".to_vec());
    servers.source.submit_all("work", &jobs);
    servers.source.wait_for_jobs("work", 0);
    servers.destination.wait_for_jobs("work", 20);
    proxy.signal("HUP");
    servers.source.submit_all("work", &vec![b"%payload%".to_vec(); 3]);
    servers.source.wait_for_jobs("work", 0);
    let log = proxy.log();
    assert!(log.contains("[DEBUG]"), "{log}");
    for secret in
        ["should_be_changed", "other password", "RSBMQX", "type=passive", "undecodable%", "dHlwZT1", "%payload%"]
    {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_status_2_and_every_error() {
    let folder = Folder::new();
    let file = folder.file("proxy.conf");
    fs::write(&file, "asink = 1\n127.0.0.1/a = 127.0.0.1:99999/b\n127.0.0.1/c = 127.0.0.1/d\npriority = urgent\n")
        .unwrap();
    for check in [&["--check"][..], &[]] {
        let config = format!("--config={}", file.display());
        let ended = run(&[check, &[&config]].concat());
        assert_eq!(ended.status, Some(2), "{ended:?}");
        for line in [1, 2, 4] {
            assert!(ended.stderr.contains(&format!("proxy.conf:{line}:")), "{ended:?}");
        }
    }
    assert_eq!(run(&["--config=/no/such/file"]).status, Some(2));
    assert_eq!(run(&["--no-such-option"]).status, Some(2));
}

#[test]
fn check_shows_the_forwards_and_touches_nothing() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let (file, log, pid) = (folder.file("proxy.conf"), folder.file("log"), folder.file("pid"));
    let globals = format!("logfile = {}\npidfile = {}\n", log.display(), pid.display());
    fs::write(&file, format!("{globals}{config}encrypt = %password%\n")).unwrap();
    let ended = run(&["--check", &format!("--config={}", file.display())]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for address in [servers.source.queue("work"), servers.destination.queue("work")] {
        assert!(ended.stdout.contains(&address), "{ended:?}");
    }
    assert!(!format!("{ended:?}").contains("%password%"), "{ended:?}");
    assert!(!log.exists() && !pid.exists());
    assert_eq!(servers.source.connections(), []);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for option in ["--help", "-h"] {
        let ended = run(&[option]);
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
        for named in ["--config", "--logfile", "--pidfile", "--debug", "--verbose", "--quiet", "--check", "--version"] {
            assert!(ended.stdout.contains(named), "{named} in {}", ended.stdout);
        }
    }
    for option in ["--version", "-V"] {
        let ended = run(&[option]);
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
        assert!(ended.stdout.starts_with(&format!("gearman-proxy {}", env!("CARGO_PKG_VERSION"))), "{ended:?}");
    }
}
