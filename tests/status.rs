//! What the status queue answers.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};
use support::{Gearmand, Proxy, Status, numbered, wait_for, wait_until_equal, wait_within};

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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n{} = {}\n",
        local.queue("proxy_status"),
        local.queue("hosts"),
        remote.queue("hosts"),
        remote.queue("check_results"),
        local.queue("check_results"),
    ));
    let status = wait_for_message(&local, "^0:OK");
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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n{} = {}\ndecrypt = should_be_changed\n",
        source.queue("proxy_status"),
        source.queue("plain"),
        destination.queue("plain"),
        source.queue("secret"),
        destination.queue("secret"),
    ));
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
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n",
        source.queue("proxy_status"),
        source.queue("work"),
        destination.queue("work")
    ));
    let ask = |payload| Status::ask(&source, "proxy_status", payload);
    wait_for_message(&source, "^0:OK");
    assert_eq!(names(&ask("check perfdatafilter=^total_jobs$")), ["total_jobs"]);
    assert_eq!(names(&ask("check perfdatafilter=^work::(jobs|bytes_out)$")), ["work::bytes_out", "work::jobs"]);
    let nothing = ask("check perfdatafilter=no such name");
    assert_matches(r"^0:OK - proxy version v\S+ running\.", &nothing.text);
    assert!(nothing.perfdata.is_empty());
    assert_matches("^3:UNKNOWN - .", &ask("check perfdatafilter=(unclosed").text);
}

#[test]
fn any_other_payload_is_answered_like_check() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n",
        source.queue("proxy_status"),
        source.queue("work"),
        destination.queue("work")
    ));
    let check = wait_for_message(&source, "^0:OK").text;
    for payload in ["", "hello", "check ", "checkperfdatafilter", "\u{e9}"] {
        assert_eq!(Status::ask(&source, "proxy_status", payload).text, check, "{payload:?}");
    }
}

#[test]
fn a_failed_server_is_a_warning_and_named_with_the_reason() {
    let (source, destination, mut dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let mut dead_too = Gearmand::down();
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n{} = {}\n{} = {}\n{} = {}\n",
        source.queue("proxy_status"),
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
    ));
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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n",
        source.queue("proxy_status"),
        source.queue("work"),
        dead.queue("work")
    ));
    let server = regex::escape(&dead.server());
    wait_for_message(
        &source,
        &format!(r"^2:CRITICAL - proxy version v\S+ running\. 1 server failed: {server} \([^()]+\)\.$"),
    );
}

#[test]
fn jobs_that_pile_up_before_a_forward_that_is_down_are_the_backlog() {
    let (source, destination, mut dead) = (Gearmand::start(), Gearmand::start(), Gearmand::down());
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n{} = {}\n",
        source.queue("proxy_status"),
        source.queue("good"),
        destination.queue("good"),
        source.queue("work"),
        dead.queue("work")
    ));
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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\ndecrypt = x\n{} = {}\ndecrypt = x\nreject_queue = rejected\n",
        source.queue("proxy_status"),
        source.queue("failing"),
        destination.queue("failing"),
        source.queue("rejecting"),
        destination.queue("rejecting"),
    ));
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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n{} = {}\n",
        one.queue("proxy_status"),
        one.queue("work"),
        destination.queue("from_one"),
        two.queue("work"),
        destination.queue("from_two"),
    ));
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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n{} = {}\nasync = 0\n{} = {}\n",
        source.queue("proxy_status"),
        source.queue("hanging"),
        hanging.queue("hanging"),
        source.queue("waiting"),
        hanging.queue("waiting"),
        source.queue("dead"),
        dead.queue("dead"),
    ));
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
    let _proxy = Proxy::start(&format!(
        "statusqueue = {}\n{} = {}\n",
        local.queue("proxy_status"),
        remote.queue("work"),
        remote.queue("work_there"),
    ));
    wait_for_message(&local, "^0:OK");
    local.restart();
    wait_for_message(&local, "^0:OK");
}
