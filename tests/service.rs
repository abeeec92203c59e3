//! What those see who start it: pid file, log, exit status.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::proxy::{program, run};
use support::{Folder, Gearmand, PATIENCE, Proxy, Status, numbered, signal, wait_for, wait_until_equal};

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
fn the_pid_file_of_a_proxy_that_runs_is_an_error() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let file = folder.file("proxy.pid");
    let option = format!("--pidfile={}", file.display());
    let first = Proxy::start_in(folder, &config, &[&option]);
    servers.source.wait_for_workers("work", 1);
    let mut second = Proxy::start_with(&config, &[&option]);
    assert_eq!(second.exit_status().code(), Some(1));
    let log = second.log();
    assert!(log.contains("proxy.pid") && log.contains(&first.pid().to_string()), "{log}");
    // The first one's file is still there and its own, and nobody else reads it.
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), first.pid().to_string());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o137, 0);
}

#[test]
fn a_pid_file_left_by_a_crash_is_replaced_whoever_has_its_number_now() {
    let (servers, config) = servers();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    // A process of another program: this test.
    for left in [ended.id(), std::process::id()] {
        let folder = Folder::new();
        let file = folder.file("proxy.pid");
        fs::write(&file, format!("{left}\n")).unwrap();
        let option = format!("--pidfile={}", file.display());
        let mut proxy = Proxy::start_in(folder, &config, &[&option]);
        servers.source.wait_for_workers("work", 1);
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), proxy.pid().to_string());
        // Its own, left by a crash.
        proxy.kill();
        proxy.start_again();
        wait_until_equal("the new one's number", proxy.pid().to_string(), || {
            fs::read_to_string(&file).unwrap().trim().to_owned()
        });
        assert_eq!(proxy.stop().code(), Some(0));
        servers.source.wait_for_workers("work", 0);
    }
}

#[test]
fn of_many_proxies_that_start_at_once_with_a_stale_pid_file_one_runs() {
    let (_servers, config) = servers();
    let shared = Folder::new();
    for left in [None, Some("1\n")] {
        let file = shared.file("proxy.pid");
        if let Some(left) = left {
            fs::write(&file, left).unwrap();
        }
        let option = format!("--pidfile={}", file.display());
        let mut proxies: Vec<_> = (0..8).map(|_| Proxy::start_with(&config, &[&option])).collect();
        wait_until_equal("those that run", 1, || {
            proxies.iter_mut().map(Proxy::is_running).filter(|running| *running).count()
        });
        let running: Vec<_> = proxies.iter_mut().map(Proxy::is_running).collect();
        let one = &mut proxies[running.iter().position(|running| *running).unwrap()];
        one.wait_for_log("starts with 1 forward");
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), one.pid().to_string());
        assert_eq!(one.stop().code(), Some(0));
        for proxy in &mut proxies {
            assert!(!proxy.log().contains("starts with 1 forward") || proxy.exit_status().code() == Some(0));
        }
    }
}

#[test]
fn a_fifo_or_a_folder_as_log_or_pid_file_is_an_error_and_never_a_wait() {
    let (_servers, config) = servers();
    for option in ["logfile", "pidfile"] {
        let folder = Folder::new();
        let [fifo, directory] = ["fifo", "directory"].map(|name| folder.file(name));
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        fs::create_dir(&directory).unwrap();
        for path in [fifo, directory] {
            let mut proxy = Proxy::start_with(&config, &[&format!("--{option}={}", path.display())]);
            assert_eq!(proxy.exit_status().code(), Some(1));
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(proxy.log().contains(name) && proxy.log().contains("not a regular file"), "{}", proxy.log());
        }
    }
}

#[test]
fn a_file_without_its_folder_is_an_error_that_names_the_folder() {
    let (_servers, config) = servers();
    for option in ["--logfile=/nonexistent/logs/proxy.log", "--pidfile=/nonexistent/run/proxy.pid"] {
        let mut proxy = Proxy::start_with(&config, &[option]);
        assert_eq!(proxy.exit_status().code(), Some(1));
        assert!(proxy.log().contains("folder /nonexistent does not exist"), "{}", proxy.log());
    }
    let proxy = Proxy::start(&format!("metricsfile = /nonexistent/metrics.prom\n{config}"));
    proxy.wait_for_log("metrics.prom can't be written: folder /nonexistent does not exist; trying again every 15 s");
}

#[test]
fn a_log_that_nobody_reads_stops_neither_jobs_nor_the_end() {
    let (servers, config) = servers();
    let folder = Folder::new();
    fs::write(folder.file("proxy.conf"), &config).unwrap();
    let mut proxy = Command::new(program())
        .arg("--config")
        .arg(folder.file("proxy.conf"))
        .args(["--logfile=stderr", "-v", "-v"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More lines than the pipe and the queue before it take: some 100 bytes a job at least.
    for _ in 0..5 {
        servers.source.submit_all("work", &numbered(5_000));
        servers.source.wait_for_jobs("work", 0);
    }
    servers.destination.wait_for_jobs("work", 25_000);
    signal(proxy.id(), "TERM");
    let asked = Instant::now();
    wait_for("it ends", || proxy.try_wait().unwrap().is_some());
    assert_eq!(proxy.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    // The pipe was full indeed.
    let mut left = Vec::new();
    proxy.stderr.take().unwrap().read_to_end(&mut left).unwrap();
    assert!(left.len() >= 60_000 && left.len() < 2_000_000, "{}", left.len());
}

#[test]
fn a_vanished_log_folder_is_told_on_standard_error_and_then_in_the_log() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let logs = folder.file("logs");
    let log = logs.join("proxy.log");
    fs::create_dir(&logs).unwrap();
    let proxy = Proxy::start_in(folder, &config, &["--debug", &format!("--logfile={}", log.display())]);
    servers.source.wait_for_workers("work", 1);
    wait_for("a line", || fs::metadata(&log).is_ok_and(|file| file.len() > 0));
    fs::remove_dir_all(&logs).unwrap();
    servers.source.submit_all("work", &numbered(20));
    servers.destination.wait_for_jobs("work", 20);
    proxy.wait_for_log(&format!("folder {} does not exist; lines are lost", logs.display()));
    fs::create_dir(&logs).unwrap();
    wait_for("the number of lost lines", || {
        fs::read_to_string(&log)
            .is_ok_and(|log| log.contains("log lines were lost") || log.contains("log line was lost"))
    });
    assert_eq!(proxy.log().lines().count(), 1, "said once: {}", proxy.log());
}

#[test]
fn systemds_watchdog_is_fed_while_all_goes_well() {
    let (servers, config) = servers();
    let folder = Folder::new();
    let socket = folder.file("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let name: &'static str = Box::leak(socket.to_str().unwrap().to_owned().into_boxed_str());
    let environment = [("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "1000000")];
    let mut proxy = Proxy::start_with_environment(&config, &environment);
    let next = || {
        let mut buffer = [0; 4096];
        loop {
            match manager.recv(&mut buffer) {
                Ok(size) => return String::from_utf8_lossy(&buffer[..size]).into_owned(),
                // With a timeout, no signal handler restarts it.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
            }
        }
    };
    assert!(next().starts_with("READY=1\nSTATUS="));
    servers.source.wait_for_workers("work", 1);
    for _ in 0..4 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    // Nobody reads any more, as when systemd hangs: no reason to stand.
    servers.source.submit_all("work", &numbered(10));
    servers.destination.wait_for_jobs("work", 10);
    let fed = Instant::now();
    wait_for("the socket is full", || fed.elapsed() > Duration::from_secs(8));
    assert_eq!(proxy.stop().code(), Some(0));
    drop(manager);
}

/// The sockets of a process on which others can reach it: lines of /proc/net by the inodes of its descriptors.
fn listening(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let inodes: Vec<String> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    // The column of the inode, and whether this line's socket takes what anybody sends.
    type Reachable = fn(&[&str]) -> bool;
    let tables: [(&str, usize, Reachable); 5] = [
        ("tcp", 9, |fields| fields[3] == "0A"),
        ("tcp6", 9, |fields| fields[3] == "0A"),
        ("udp", 9, |fields| fields[3] == "07"),
        ("udp6", 9, |fields| fields[3] == "07"),
        ("unix", 6, |fields| fields[3] == "00010000" || (fields[4] == "0002" && fields.len() > 7)),
    ];
    let mut found = Vec::new();
    for (table, inode, reachable) in tables {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            if inodes.iter().any(|own| own == fields[inode]) && reachable(&fields) {
                found.push(format!("{table}: {line}"));
            }
        }
    }
    found
}

#[test]
fn it_listens_on_nothing() {
    let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!(":{:04X} ", here.local_addr().unwrap().port());
    assert!(listening(std::process::id()).iter().any(|line| line.contains(&port)), "what listens is found");

    let (servers, config) = servers();
    let metrics = Folder::new();
    let globals = format!(
        "statusqueue = {}\nmetricsfile = {}\n",
        servers.source.queue("status"),
        metrics.file("metrics").display()
    );
    let proxy = Proxy::start(&format!("{globals}{config}"));
    servers.source.wait_for_workers("work", 1);
    // At all it does: jobs, questions, reloads that end forwards and begin others.
    for round in 1..=20 {
        servers.source.submit_all("work", &numbered(100));
        assert_eq!(listening(proxy.pid()), [""; 0]);
        servers.destination.wait_for_jobs("work", 100 * round);
        Status::ask(&servers.source, "status", "check");
        proxy.reload(&format!("{globals}{config}prefetch = {}\n", 100 + round));
        assert_eq!(listening(proxy.pid()), [""; 0]);
    }
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
        // Local time with milliseconds, level, thread.
        wait_for("a line in simplelog's form", || {
            let form = r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[(INFO|DEBUG)\] \(\S+\) \S";
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
