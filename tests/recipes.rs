//! The recipes of docs/operations.md, as an administrator sets them up.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gearman_proxy::stages::cipher::Cipher;
use support::proxy::run;
use support::{Consumer, Gearmand, Proxy, Relay, Status, assert_same_set, numbered, stays, wait_for};

fn encrypted(key: &str, text: &[u8]) -> Vec<u8> {
    let mut data = text.to_vec();
    Cipher::new(key.as_bytes()).encrypt(&mut data).unwrap();
    STANDARD.encode(data).into_bytes()
}

/// A worker sends its results to a gearmand beside it, also while the line to the core is cut; none is dropped.
#[test]
fn duplicates_for_a_far_core_wait_at_a_local_server_while_the_line_is_down() {
    let (beside, far) = (Gearmand::start(), Gearmand::start());
    let line = Relay::with_delay(far.address(), Duration::from_millis(40));
    let _proxy = Proxy::start(&format!("{} = {}\n", beside.queue("results_dup"), line.queue("check_results")));
    beside.wait_for_workers("results_dup", 1);
    let results = numbered(3000);
    beside.submit_all("results_dup", &results[..500]);
    far.wait_for_jobs("check_results", 500);
    line.refuse(true);
    line.cut();
    beside.submit_all("results_dup", &results[500..]);
    stays(Duration::from_secs(2), "they wait", || far.status("check_results").total == 500);
    line.refuse(false);
    far.wait_for_jobs("check_results", 3000);
    beside.wait_for_jobs("results_dup", 0);
    assert_same_set(&results, &far.drain_data("check_results"));
}

/// One proxy inside pushes checks into the DMZ and fetches results from it: no connection is opened from there.
#[test]
fn a_dmz_gets_its_checks_and_returns_its_results_over_connections_from_inside() {
    let (inside, dmz) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::start(&format!(
        "$inside = {}\n$dmz = {}\n$inside/hostgroup_dmz = $dmz/hostgroup_dmz\n$dmz/check_results = $inside/check_results\n",
        inside.server(),
        dmz.server()
    ));
    let mut worker = dmz.worker("hostgroup_dmz");
    let mut results = dmz.client();
    for check in numbered(20) {
        inside.client().submit_background("hostgroup_dmz", b"", &check);
        let job = worker.grab();
        assert_eq!(job.data, check);
        results.submit_background("check_results", b"", &[b"result of ", &check[..]].concat());
        worker.complete(&job, b"");
    }
    inside.wait_for_jobs("check_results", 20);
    let expected: Vec<_> = numbered(20).iter().map(|check| [b"result of ", &check[..]].concat()).collect();
    assert_same_set(&expected, &inside.drain_data("check_results"));
}

/// Each core's checks carry its own result queue, set on the way, so that one worker network serves both.
#[test]
fn several_cores_share_workers_and_each_gets_its_own_results() {
    let (core_a, core_b, workers) = (Gearmand::start(), Gearmand::start(), Gearmand::start());
    let checks = |core: &Gearmand, name: &str| {
        format!(
            "{} = {}\ndecrypt = secret\nencrypt = secret\n\
             data_callback = s/^result_queue=.*$/result_queue=results_{name}/gm if /^type=(host|service)$/m\n",
            core.queue("service"),
            workers.queue("service")
        )
    };
    let results = |core: &Gearmand, name: &str| {
        format!("{} = {}\n", workers.queue(&format!("results_{name}")), core.queue("check_results"))
    };
    let _proxy = Proxy::start(
        &[checks(&core_a, "a"), checks(&core_b, "b"), results(&core_a, "a"), results(&core_b, "b")].concat(),
    );
    let mut worker = workers.worker("service");
    for (core, name) in [(&core_a, "a"), (&core_b, "b"), (&core_a, "a")] {
        let check = b"type=service\nresult_queue=check_results\nhost_name=web1\n\n";
        core.client().submit_background("service", b"", &encrypted("secret", check));
        let job = worker.grab();
        let mut text = STANDARD.decode(&job.data).unwrap();
        Cipher::new(b"secret").decrypt(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, format!("type=service\nresult_queue=results_{name}\nhost_name=web1\n\n"));
        worker.complete(&job, b"");
        workers.client().submit_background(&format!("results_{name}"), b"", format!("for {name}").as_bytes());
    }
    core_a.wait_for_jobs("check_results", 2);
    core_b.wait_for_jobs("check_results", 1);
    assert_eq!(core_a.drain_data("check_results"), [b"for a", b"for a"]);
    assert_eq!(core_b.drain_data("check_results"), [b"for b"]);
    // The guard keeps off what is no check.
    core_a.client().submit_background("service", b"", &encrypted("secret", b"type=other\nresult_queue=mine\n"));
    let mut text = STANDARD.decode(worker.grab().data).unwrap();
    Cipher::new(b"secret").decrypt(&mut text).unwrap();
    assert_eq!(text, b"type=other\nresult_queue=mine\n");
}

/// Jobs rejected for a wrong password are delivered once the right one is set.
#[test]
fn a_reject_queue_is_replayed_when_the_right_password_is_set() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = |password: &str| {
        format!(
            "statusqueue = {}\n{} = {}\ndecrypt = {password}\nreject_queue = rejected\n",
            source.queue("proxy_status"),
            source.queue("work"),
            destination.queue("work")
        )
    };
    let proxy = Proxy::start(&config("wrong"));
    source.wait_for_workers("work", 1);
    let texts: Vec<Vec<u8>> = (0..50)
        .map(|n| format!("host_name=web{n}\nresult_queue=check_results\noutput={}\n", "x".repeat(200)).into_bytes())
        .collect();
    source.submit_all("work", &texts.iter().map(|text| encrypted("right", text)).collect::<Vec<_>>());
    source.wait_for_jobs("rejected", 50);
    source.wait_for_jobs("work", 0);
    let message = Status::ask(&source, "proxy_status", "check").message;
    assert!(message.contains(" 50 jobs rejected, last in work ("), "{message}");

    proxy.reload(&config("right"));
    proxy.wait_for_log("reloading with 1 forward");
    source.wait_for_workers("work", 1);
    let queues = format!("{}={}", source.queue("rejected"), source.queue("work"));
    let ended = run(&["--replay", &queues]);
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    destination.wait_for_jobs("work", 50);
    source.wait_for_jobs("rejected", 0);
    source.wait_for_jobs("work", 0);
    assert_same_set(&texts, &destination.drain_data("work"));
}

/// Two proxies take from one queue, for the case that one of their machines dies.
#[test]
fn two_proxies_on_one_queue_deliver_each_job_once_and_one_may_die() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = format!("{} = {}\n", source.queue("work"), destination.queue("work"));
    let (mut one, _other) = (Proxy::start(&config), Proxy::start(&config));
    source.wait_for_workers("work", 2);
    // None is finished at the destination, so that what comes again is merged.
    let jobs = numbered(5000);
    source.submit_all("work", &jobs[..2500]);
    one.kill();
    source.submit_all("work", &jobs[2500..]);
    destination.wait_for_jobs("work", 5000);
    source.wait_for_jobs("work", 0);
    assert_same_set(&jobs, &destination.drain_data("work"));
}

/// The new process starts while the old one stops.
#[test]
fn an_upgrade_without_a_pause_loses_nothing_and_delivers_nothing_twice() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = format!("{} = {}\n", source.queue("work"), destination.queue("work"));
    let mut old = Proxy::start(&config);
    source.wait_for_workers("work", 1);
    let consumer = Consumer::start(&destination, "work");
    let jobs = numbered(20_000);
    let mut successors = Vec::new();
    for (round, some) in jobs.chunks(5000).enumerate() {
        let new = std::thread::scope(|scope| {
            let feeding = scope.spawn(|| source.submit_all("work", some));
            let new = Proxy::start(&config);
            wait_for("both take jobs", || source.status("work").workers >= 1);
            assert_eq!(old.stop().code(), Some(0), "round {round}");
            feeding.join().unwrap();
            new
        });
        successors.push(std::mem::replace(&mut old, new));
    }
    wait_for("all are delivered", || source.status("work").total == 0 && consumer.count() >= jobs.len());
    assert_eq!(old.stop().code(), Some(0));
    assert_same_set(&jobs, &consumer.finish());
    drop(successors);
}

/// A slow core behind a working forward: only the destination's own queue shows it.
#[test]
fn jobs_that_wait_behind_a_working_forward_show_in_the_metrics_file() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let proxy = Proxy::start(&format!(
        "metricsfile = metrics.prom\n{} = {}\n",
        source.queue("check_results"),
        destination.queue("check_results")
    ));
    source.submit_all("check_results", &numbered(77));
    let metrics = proxy.folder().file("metrics.prom");
    wait_for("the file shows them", || {
        let text = std::fs::read_to_string(&metrics).unwrap_or_default();
        let value = |name: &str| {
            let start = format!("gearman_proxy_forward_{name}{{");
            text.lines().find(|line| line.starts_with(&start)).and_then(|line| line.rsplit_once(' ')).map(|(_, v)| v)
        };
        value("destination_waiting_jobs") == Some("77")
            && value("waiting_jobs") == Some("0")
            && value("state") == Some("0")
    });
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&metrics).unwrap())
        .output()
        .expect("promtool runs (Debian: prometheus)");
    assert!(checked.status.success(), "{checked:?}");
}
