//! Forwarding loops that only the job servers can tell: the same server under another name.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use support::proxy::run;
use support::{Gearmand, Proxy, Queue, Status, numbered, stays, wait_for};

/// Listens on all addresses, so that it has many names.
fn everywhere() -> Gearmand {
    Gearmand::start_on(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The queue `work` of a server by its nth name. Only ::1 and 127.0.0.1 are known to be the same without asking.
fn work(server: &Gearmand, name: usize) -> String {
    format!("127.0.0.{name}:{}/work", server.address().port())
}

/// The configuration alone shows nothing wrong.
fn start(config: &str) -> Proxy {
    let proxy = Proxy::start(config);
    let file = proxy.folder().file("proxy.conf");
    assert_eq!(run(&["--check", &format!("--config={}", file.display())]).status, Some(0));
    proxy
}

#[test]
fn a_queue_that_leads_to_itself_keeps_its_jobs_and_the_status_says_why() {
    let (server, status) = (everywhere(), Gearmand::start());
    let config = format!("statusqueue = {}\n{} = {}\n", status.queue("status"), work(&server, 2), work(&server, 3));
    let proxy = start(&config);
    server.submit_all("work", &numbered(50));
    let ask = || Status::ask(&status, "status", "check").message;
    wait_for("the status names the loop", || {
        let message = ask();
        message.starts_with("2:CRITICAL") && message.contains("forwarding loop") && message.contains(&work(&server, 2))
    });
    proxy.wait_for_log("forwarding loop");
    stays(Duration::from_secs(3), "no job is taken", || {
        server.status("work") == Queue { total: 50, running: 0, workers: 0 }
    });
    assert_eq!(server.drain_data("work"), numbered(50));
}

/// Which of the two forwards closes it depends on who connects first.
#[test]
fn jobs_do_not_go_round_over_two_servers() {
    let (one, other, status) = (everywhere(), everywhere(), Gearmand::start());
    let config = format!(
        "statusqueue = {}\n{} = {}\n{} = {}\n",
        status.queue("status"),
        work(&one, 2),
        work(&other, 2),
        work(&other, 3),
        work(&one, 3),
    );
    let proxy = start(&config);
    wait_for("the status names the loop", || {
        Status::ask(&status, "status", "check").message.contains("forwarding loop")
    });
    proxy.wait_for_log("forwarding loop");
    let workers = || (one.status("work").workers, other.status("work").workers);
    wait_for("one of the forwards works", || matches!(workers(), (1, 0) | (0, 1)));
    let (from, to) = if workers() == (1, 0) { (&one, &other) } else { (&other, &one) };
    from.submit_all("work", &numbered(50));
    to.wait_for_jobs("work", 50);
    stays(Duration::from_secs(3), "they stay where they are", || {
        to.status("work") == Queue { total: 50, running: 0, workers: 0 } && from.status("work").total == 0
    });
    assert_eq!(to.drain_data("work"), numbered(50));
}

/// The first one can't know of the second when it begins.
#[test]
fn a_loop_is_found_that_closes_later() {
    let (one, other) = (everywhere(), everywhere());
    let first = format!("{} = {}\n", work(&one, 2), work(&other, 2));
    let proxy = start(&first);
    one.wait_for_workers("work", 1);
    proxy.reload(&format!("{first}{} = {}\n", work(&other, 3), work(&one, 3)));
    proxy.wait_for_log("forwarding loop");
    one.submit_all("work", &numbered(50));
    other.wait_for_jobs("work", 50);
    stays(Duration::from_secs(3), "they stay where they are", || {
        other.status("work") == Queue { total: 50, running: 0, workers: 0 } && one.status("work").total == 0
    });
    assert_eq!(other.drain_data("work"), numbered(50));
}
