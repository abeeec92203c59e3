//! What the status queue answers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};
use support::proxy::{Ended, program, run};
use support::{Folder, Gearmand, Proxy, Site, Status, numbered, wait_for, wait_until_equal, wait_within};

/// Between two samples of a queue's length lie 10 s.
const SAMPLED: Duration = Duration::from_secs(90);

/// The crate is built without Unicode's tables, as the proxy is.
fn ascii(pattern: &str) -> Regex {
    RegexBuilder::new(pattern).unicode(false).build().unwrap()
}

#[track_caller]
fn assert_matches(pattern: &str, text: &str) {
    assert!(ascii(pattern).is_match(text.as_bytes()), "{text:?} is not like {pattern}");
}

fn names(status: &Status) -> Vec<&str> {
    status.perfdata.iter().map(|(name, _)| name.as_str()).collect()
}

/// Waits for a message before the performance data that is like `pattern`.
#[track_caller]
fn wait_for_message(server: &Gearmand, pattern: &str) -> Status {
    let pattern = ascii(pattern);
    let mut last = Status::ask(server, "proxy_status", "check");
    wait_within(SAMPLED, &format!("a status like {pattern}"), || {
        last = Status::ask(server, "proxy_status", "check");
        pattern.is_match(last.message.as_bytes()) || {
            eprintln!("{}", last.message);
            false
        }
    });
    last
}

#[test]
fn it_is_answered_to_the_letter_as_the_perl_proxy_answers() {
    let (local, remote) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(
        &local,
        &format!(
            "{} = {}\n{} = {}\n",
            local.queue("hosts"),
            remote.queue("hosts"),
            remote.queue("check_results"),
            local.queue("check_results"),
        ),
    );
    let status = wait_for_message(&local, r"^0:OK .* running\.$");
    assert_matches(r"^0:OK - proxy version v\d+\.\d+\.\d+ running\.\|( '[^']+'=\d+c?;;;)+$", &status.text);
    assert!(status.text.contains(&format!(" v{} ", env!("CARGO_PKG_VERSION"))));

    // In Perl's order, with Perl's units; names of our own may stand between.
    let of_perl = [
        "'backlog'=0;;;",
        "'bytes_in'=0c;;;",
        "'bytes_out'=0c;;;",
        "'queues'=2;;;",
        "'server'=2;;;",
        "'total_errors'=0c;;;",
        "'total_jobs'=0c;;;",
        "'check_results::bytes_out'=0c;;;",
        "'check_results::jobs'=0c;;;",
        "'hosts::bytes_out'=0c;;;",
        "'hosts::jobs'=0c;;;",
    ];
    let mut rest = &status.text[..];
    for metric in of_perl {
        let (_, behind) =
            rest.split_once(metric).unwrap_or_else(|| panic!("no {metric} in its place: {}", status.text));
        rest = behind;
    }
    let names = names(&status);
    let mut sorted = names.clone();
    sorted.sort_by_key(|name| (name.contains("::"), *name));
    assert_eq!(names, sorted);
}

#[test]
fn delivered_jobs_and_their_bytes_are_counted() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\n{} = {}\ndecrypt = should_be_changed\n",
            source.queue("plain"),
            destination.queue("plain"),
            source.queue("secret"),
            destination.queue("secret"),
        ),
    );
    source.submit_all("plain", &vec![b"0123456789".to_vec(); 7]);
    let encrypted = b"RSBMQXtrevklYKzy2SX+yA==";
    source.client().submit_background("secret", b"", encrypted);
    let ask = || Status::ask(&source, "proxy_status", "check");
    wait_until_equal("jobs counted", 8, || ask().value("total_jobs"));
    let status = ask();
    assert_eq!(status.value("plain::jobs"), 7);
    assert_eq!(status.value("secret::jobs"), 1);
    assert_eq!(status.value("bytes_in"), 70 + encrypted.len() as u64);
    assert_eq!(status.value("bytes_out"), 70 + b"type=passive\nab".len() as u64);
    assert_eq!(status.value("plain::bytes_out"), 70);
    assert_eq!(status.value("secret::bytes_out"), 15);
    assert_eq!(status.value("total_errors"), 0);
}

#[test]
fn perfdatafilter_keeps_the_names_that_match() {
    let site = Site::with_status("");
    let ask = |payload| Status::ask(&site.source, "proxy_status", payload);
    wait_for_message(&site.source, "^0:OK");
    assert_eq!(names(&ask("check perfdatafilter=^total_jobs$")), ["total_jobs"]);
    assert_eq!(names(&ask("check perfdatafilter=^work::(jobs|bytes_out)$")), ["work::bytes_out", "work::jobs"]);
    let nothing = ask("check perfdatafilter=no such name");
    assert_matches(r"^0:OK - proxy version v\S+ running\.", &nothing.text);
    assert!(nothing.perfdata.is_empty());
    assert_matches("^3:UNKNOWN - .", &ask("check perfdatafilter=(unclosed").text);
}

#[test]
fn any_other_payload_is_answered_like_check() {
    let site = Site::with_status("");
    let check = wait_for_message(&site.source, r"^0:OK .* running\.$").text;
    for payload in ["", "hello", "check ", "checkperfdatafilter", "\u{e9}"] {
        assert_eq!(Status::ask(&site.source, "proxy_status", payload).text, check, "{payload:?}");
    }
}

#[test]
fn a_failed_server_is_a_warning_and_named_with_the_reason() {
    let (source, destination, mut dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let mut dead_too = Gearmand::down();
    let _proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\n{} = {}\n{} = {}\n{} = {}\n",
            source.queue("good"),
            destination.queue("good"),
            // In another order than the answer's.
            source.queue("b"),
            dead_too.queue("b"),
            source.queue("a"),
            dead.queue("a"),
            // Named once, however many forwards need it.
            source.queue("c"),
            dead.queue("c"),
        ),
    );
    let reason = r"\([ -&*-{}~]{1,80}\)";
    let (first, second) = (regex::escape(&dead.server()), regex::escape(&dead_too.server()));
    let running = r"^1:WARNING - proxy version v\S+ running\.";
    wait_for_message(&source, &format!("{running} 2 servers failed: {first} {reason}, {second} {reason}\\.$"));
    dead.launch();
    wait_for_message(&source, &format!("{running} 1 server failed: {second} {reason}\\.$"));
    dead_too.launch();
    wait_for_message(&source, r"^0:OK - proxy version v\S+ running\.$");
}

#[test]
fn no_forward_at_work_is_critical() {
    let (source, dead) = (Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::with_status(&source, &format!("{} = {}\n", source.queue("work"), dead.queue("work")));
    let server = regex::escape(&dead.server());
    wait_for_message(
        &source,
        &format!(r"^2:CRITICAL - proxy version v\S+ running\. 1 server failed: {server} \([^()]+\)\.$"),
    );
}

#[test]
fn jobs_that_pile_up_before_a_forward_that_is_down_are_the_backlog() {
    let (source, destination, mut dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\n{} = {}\n",
            source.queue("good"),
            destination.queue("good"),
            source.queue("work"),
            dead.queue("work")
        ),
    );
    source.submit_all("work", &numbered(7));
    let status =
        wait_for_message(&source, r"^1:WARNING .* 1 server failed: \S+ \([^()]+\)\. backlog contains 7 jobs\.$");
    assert_eq!(status.value("backlog"), 7);
    dead.launch();
    let status = wait_for_message(&source, "^0:OK");
    assert_eq!(status.value("backlog"), 0);
}

#[test]
fn rejected_jobs_are_counted_and_a_warning() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\ndecrypt = x\n{} = {}\ndecrypt = x\nreject_queue = rejected\n",
            source.queue("failing"),
            destination.queue("failing"),
            source.queue("rejecting"),
            destination.queue("rejecting"),
        ),
    );
    source.submit_all("failing", &vec![b"%".to_vec(); 2]);
    source.submit_all("rejecting", &vec![b"%".to_vec(); 3]);
    let status = wait_for_message(
        &source,
        r"^1:WARNING - proxy version v\S+ running\. 5 jobs rejected, last in (failing|rejecting) \([^()]+\)\.$",
    );
    assert_eq!(status.value("failing::rejected"), 2);
    assert_eq!(status.value("rejecting::rejected"), 3);
    assert_eq!(status.value("total_errors"), 5);
    assert_eq!(status.value("total_jobs"), 0);
}

#[test]
fn queues_of_the_same_name_add_up_and_count_alone_too() {
    let (one, two, destination) = (Gearmand::start(), Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(
        &one,
        &format!(
            "{} = {}\n{} = {}\n",
            one.queue("work"),
            destination.queue("from_one"),
            two.queue("work"),
            destination.queue("from_two"),
        ),
    );
    one.submit_all("work", &numbered(3));
    two.submit_all("work", &numbered(4));
    let ask = || Status::ask(&one, "proxy_status", "check");
    wait_until_equal("jobs counted", 7, || ask().value("total_jobs"));
    let status = ask();
    assert_eq!(status.value("work::jobs"), 7);
    assert_eq!(status.value(&format!("{}::jobs", one.queue("work"))), 3);
    assert_eq!(status.value(&format!("{}::jobs", two.queue("work"))), 4);
    assert_eq!((status.value("queues"), status.value("server")), (2, 2));
}

#[test]
fn it_answers_while_every_forward_is_stuck() {
    let (source, mut hanging, dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\n{} = {}\nasync = 0\n{} = {}\n",
            source.queue("hanging"),
            hanging.queue("hanging"),
            source.queue("waiting"),
            hanging.queue("waiting"),
            source.queue("dead"),
            dead.queue("dead"),
        ),
    );
    source.wait_for_workers("hanging", 1);
    source.wait_for_workers("waiting", 1);
    hanging.freeze();
    for queue in ["hanging", "waiting", "dead"] {
        source.submit_all(queue, &numbered(10));
    }
    wait_for("the stuck forwards hold jobs", || {
        source.status("hanging").running > 0 && source.status("waiting").running > 0
    });
    for _ in 0..20 {
        let asked = Instant::now();
        Status::ask(&source, "proxy_status", "check");
        // It is promised within one second; no forward's own waiting ends before ten. A busy machine gets the rest.
        assert!(asked.elapsed() < Duration::from_secs(5), "after {:?}", asked.elapsed());
    }
    wait_for_message(&source, "^2:CRITICAL .* 2 servers failed: ");
    hanging.thaw();
}

#[test]
fn its_server_may_be_restarted() {
    let (mut local, remote) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(&local, &format!("{} = {}\n", remote.queue("work"), remote.queue("work_there"),));
    wait_for_message(&local, "^0:OK");
    local.restart();
    wait_for_message(&local, "^0:OK");
}

/// A program's outcome that has no line of its own on standard error.
#[track_caller]
fn asked(options: &[&str]) -> Ended {
    let ended = run(options);
    assert_eq!(ended.stderr, "");
    ended
}

#[test]
fn status_prints_what_check_gearman_would_and_exits_so() {
    let (source, destination, mut dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\n{} = {}\n",
            source.queue("good"),
            destination.queue("good"),
            source.queue("dead"),
            dead.queue("dead"),
        ),
    );
    let config = format!("--config={}", proxy.folder().file("proxy.conf").display());
    // And the other forward is no longer connecting.
    wait_for_message(&source, r"^1:WARNING .* 1 server failed: \S+ \([^()]+\)\.$");
    let ended = asked(&[&config, "--status"]);
    assert_eq!(ended.status, Some(1));
    assert_matches(
        r"^WARNING - proxy version v\S+ running\. 1 server failed: \S+ \([^()]+\)\.\| 'backlog'=0;;; .*;;;\n$",
        &ended.stdout,
    );
    dead.launch();
    wait_for_message(&source, "^0:OK .* running\\.$");
    // Needs no configuration, and so not a right one.
    std::fs::write(proxy.folder().file("proxy.conf"), "broken\n").unwrap();
    let ended = asked(&[&format!("--status={}", source.queue("proxy_status"))]);
    assert_eq!(ended.status, Some(0));
    assert_matches("^OK - proxy version ", &ended.stdout);

    let nobody = asked(&[&format!("--status={}", source.queue("nobody"))]);
    assert_eq!(nobody.status, Some(2));
    assert_matches("^CRITICAL - no answer on \\S+/nobody for 9 s: is gearman-proxy running\\?\n$", &nobody.stdout);
    let nowhere = asked(&[&format!("--status={}", Gearmand::down().queue("q"))]);
    assert_eq!(nowhere.status, Some(3));
    assert_matches("^UNKNOWN - \\S+ can't be asked: connection refused ", &nowhere.stdout);
}

#[test]
fn one_look_shows_the_table_and_exits_with_the_status() {
    let (source, destination, dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\n{} = {}\n",
            source.queue("good"),
            destination.queue("good"),
            source.queue("dead"),
            dead.queue("dead"),
        ),
    );
    source.submit_all("dead", &numbered(3));
    wait_for_message(&source, "backlog contains 3 jobs");
    let ended = asked(&[&format!("--top={}", source.queue("proxy_status")), "--once"]);
    assert_eq!(ended.status, Some(1));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_matches(
        r"^WARNING - gearman-proxy \S+, process \d+, up \S+: 1 of 2 forwards working; seccomp (on|off.*)$",
        lines[0],
    );
    assert_matches(
        r"^  dead +0 +0 +0 +3 +0  down \S+: connection refused",
        lines.iter().find(|line| line.starts_with("  dead")).unwrap(),
    );
    assert_matches(r"^  good +0 +0 +0 +- +0  working$", lines.iter().find(|line| line.starts_with("  good")).unwrap());
}

#[test]
fn nothing_from_outside_reaches_a_terminal_raw() {
    let server = Gearmand::start();
    let mut forger = server.worker("proxy_status");
    let forged = b"0:OK - proxy version v\x1b]0;title\x07\x1b[2J\xc2\x9b\xe2\x80\xae running.|";
    let address = server.queue("proxy_status");
    for option in ["--status", "--top"] {
        let asking = std::thread::spawn({
            let option = format!("{option}={address}");
            move || run(&[&option])
        });
        let mut answered = 0;
        // --top asks twice.
        while answered < if option == "--top" { 2 } else { 1 } {
            let job = forger.grab();
            forger.complete(&job, forged);
            answered += 1;
        }
        let ended = asking.join().unwrap();
        assert_eq!(ended.stdout, "OK - proxy version v?]0;title??[2J?? running.|\n", "{option}");
        assert_eq!(ended.status, Some(0));
    }
}

#[test]
fn a_forward_that_has_not_connected_is_connecting_and_then_failed() {
    let (source, mut hanging) = (Gearmand::start(), Gearmand::start());
    hanging.freeze();
    let _proxy = Proxy::with_status(&source, &format!("{} = {}\n", source.queue("work"), hanging.queue("work")));
    let status = Status::ask(&source, "proxy_status", "check");
    assert_matches(r"^0:OK - proxy version v\S+ running\. 1 forward connecting\.$", &status.message);
    wait_for_message(&source, r"^2:CRITICAL - proxy version v\S+ running\. 1 server failed: \S+ \([^()]+\)\.$");
    hanging.thaw();
    wait_for_message(&source, r"^0:OK - proxy version v\S+ running\.$");
}

#[test]
fn a_failed_reload_is_a_warning_until_one_succeeds() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = format!(
        "statusqueue = {}\n{} = {}\n",
        source.queue("proxy_status"),
        source.queue("work"),
        destination.queue("work")
    );
    let proxy = Proxy::start(&config);
    wait_for_message(&source, r"^0:OK .* running\.$");
    proxy.reload("broken\n");
    wait_for_message(&source, r"^1:WARNING .* running\. configuration wrong since \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ?\.$");
    proxy.reload(&config);
    wait_for_message(&source, r"^0:OK .* running\.$");
}

#[test]
fn jobs_that_go_back_to_the_source_stay_in_the_backlog() {
    let (source, mut destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(&source, &format!("{} = {}\n", source.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    destination.kill();
    source.submit_all("work", &numbered(20));
    // Held at first, and given back after half a minute: at no time are they gone.
    wait_for_message(&source, "backlog contains 20 jobs");
    let began = Instant::now();
    wait_within(SAMPLED, "the jobs went back", || {
        let status = Status::ask(&source, "proxy_status", "check");
        assert!(status.value("backlog") > 0, "{} after {:?}", status.text, began.elapsed());
        source.status("work").running == 0
    });
}

#[test]
fn it_answers_when_the_forwards_have_used_up_all_descriptors() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let folder = Folder::new();
    let mut config = format!("statusqueue = {}\n", source.queue("proxy_status"));
    for number in 0..30 {
        let queue = format!("q{number}");
        config.push_str(&format!("{} = {}\n", source.queue(&queue), destination.queue(&queue)));
    }
    std::fs::write(folder.file("proxy.conf"), config).unwrap();
    let output = std::fs::File::create(folder.file("output")).unwrap();
    let mut process = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" --config=\"$1\" --logfile=stderr"])
        .args([program(), folder.file("proxy.conf")])
        .stdin(std::process::Stdio::null())
        .stderr(output)
        .spawn()
        .unwrap();
    let status = wait_for_message(&source, r"^1:WARNING .* failed: \S+ \(too many open files\)");
    assert_eq!(status.value("queues"), 30);
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_replay_moves_what_waits_once_and_ends() {
    let (source, mut destination) = (Gearmand::start(), Gearmand::start());
    let jobs = numbered(50);
    source.submit_all("rejected", &jobs);
    let replay = |to: &str| run(&["--replay", &format!("{}={to}", source.queue("rejected"))]);
    let (from, to) = (source.queue("rejected"), destination.queue("work"));
    let ended = replay(&to);
    assert_eq!((ended.status, ended.stdout), (Some(0), format!("50 jobs moved from {from} to {to}\n")));
    assert_eq!(destination.drain_data("work"), jobs, "in their order");
    assert_eq!(source.status("rejected").total, 0);
    let ended = replay(&to);
    assert_eq!((ended.status, ended.stdout), (Some(0), format!("0 jobs moved from {from} to {to}\n")));

    source.submit_all("rejected", &jobs);
    destination.kill();
    let ended = replay(&to);
    assert_eq!((ended.status, ended.stdout), (Some(1), format!("0 jobs moved from {from} to {to}\n")));
    assert_matches(
        "^gearman-proxy: \\S+/work: connection refused \\(.*; the other jobs are still in \\S+/rejected\n$",
        &ended.stderr,
    );
    assert_eq!(source.status("rejected").total, 50);
}

#[test]
fn a_replay_that_fails_says_so_in_its_exit_status_though_its_error_cannot_be_written() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let replay = ["--replay", "127.0.0.1:1/rejected=127.0.0.1:1/work"];
    let ended = std::process::Command::new(program()).args(replay).stderr(full).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
}

/// `--replay` asks for the queue's length first.
#[test]
fn a_server_that_answers_status_with_16_mib_costs_no_memory() {
    let destination = Gearmand::start();
    let hostile = TcpListener::bind((support::loopback(), 0)).unwrap();
    let from = format!("{}/rejected", hostile.local_addr().unwrap());
    let mut replay = std::process::Command::new(program())
        .args(["--replay", &format!("{from}={}", destination.queue("work"))])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = hostile.accept().unwrap();
    // Long names: a slow build on a busy machine has to read them all before its patience ends.
    let lines: String = (0..1000).map(|number| format!("{number:0500}\t1\t0\t0\n")).collect();
    for _ in 0..(15 << 20) / lines.len() {
        stream.write_all(lines.as_bytes()).unwrap();
    }
    stream.write_all(b"rejected\t1\t0\t0\n.\n").unwrap();
    // It has read all of it when it comes for the job.
    let _worker = hostile.accept().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", replay.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 16 << 10, "{peak} KiB");
    replay.kill().unwrap();
    replay.wait().unwrap();
}

#[test]
fn the_metrics_file_is_what_promtool_accepts() {
    let (source, destination, dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let proxy = Proxy::start(&format!(
        "metricsfile = metrics.prom\n{} = {}\n{} = {}\n",
        source.queue("work"),
        destination.queue("work"),
        source.queue("dead"),
        dead.queue("dead"),
    ));
    source.submit_all("work", &numbered(7));
    source.submit_all("dead", &numbered(3));
    let path = proxy.folder().file("metrics.prom");
    let mut text = String::new();
    let line = |queue: &str, to: &Gearmand, name: &str, value: u64| {
        format!(
            "gearman_proxy_forward_{name}{{source=\"{}\",destination=\"{}\",queue=\"{queue}\"}} {value}\n",
            source.server(),
            to.server()
        )
    };
    wait_within(SAMPLED, "the file tells of the jobs", || {
        text = std::fs::read_to_string(&path).unwrap_or_default();
        text.contains(&line("work", &destination, "jobs_total", 7))
            && text.contains(&line("work", &destination, "destination_waiting_jobs", 7))
            && text.contains(&line("dead", &dead, "waiting_jobs", 3))
            && text.contains(&line("dead", &dead, "state", 2))
    });
    let mut promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool is installed (Debian's prometheus)");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");

    // What the dashboard and the rules ask for is in it.
    let metric = Regex::new(r"gearman_proxy_[a-z_]*[a-z]").unwrap();
    for file in [include_bytes!("../dist/grafana.json").as_slice(), include_bytes!("../dist/alerts.yml")] {
        let names: Vec<&str> = metric.find_iter(file).map(|found| str::from_utf8(found.as_bytes()).unwrap()).collect();
        assert!(names.len() > 5, "{names:?}");
        let unknown = |name: &&str| !text.contains(&format!("\n{name}{{")) && !text.contains(&format!("\n{name} "));
        assert_eq!(names.into_iter().filter(unknown).collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let rules = std::process::Command::new("promtool").args(["check", "rules", "dist/alerts.yml"]).output().unwrap();
    assert!(rules.status.success(), "{rules:?}");
}
