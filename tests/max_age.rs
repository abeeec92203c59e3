//! `max_age`: what is too old is dropped and counted, never delivered as news.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gearman_proxy::stages::cipher::Cipher;
use support::peer::WORK_FAIL;
use support::{Consumer, Gearmand, Proxy, Status, assert_same_set, stays, wait_for, wait_within};

const KEY: &[u8] = b"should_be_changed";

/// Long enough that no job becomes too old while the test runs.
const MAX_AGE: u64 = 3600;

fn ago(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{}.250000", now.as_secs() - seconds)
}

/// As a worker sends it to Naemon.
fn result(number: usize, seconds: u64) -> String {
    format!(
        "host_name=web1\ncore_start_time={}\nstart_time={}\nfinish_time={}\nreturn_code=0\nservice_description=s{number}\n\
         output=OK\\n\n\n",
        ago(seconds + 2),
        ago(seconds + 1),
        ago(seconds)
    )
}

fn encrypted(text: &str) -> Vec<u8> {
    let mut data = text.as_bytes().to_vec();
    Cipher::new(KEY).encrypt(&mut data).unwrap();
    STANDARD.encode(data).into_bytes()
}

fn plain(text: &str) -> Vec<u8> {
    STANDARD.encode(text).into_bytes()
}

fn decrypted(data: &[u8]) -> Vec<u8> {
    let mut data = STANDARD.decode(data).unwrap();
    Cipher::new(KEY).decrypt(&mut data).unwrap();
    data
}

#[test]
fn after_an_outage_exactly_the_young_results_arrive_and_the_others_are_counted() {
    const JOBS: usize = 20_000;
    let (source, mut destination) = (Gearmand::start(), Gearmand::start());
    let mut proxy = Proxy::with_status(
        &source,
        &format!(
            "{} = {}\ndecrypt = should_be_changed\nencrypt = should_be_changed\nmax_age = {MAX_AGE}\n",
            source.queue("results"),
            destination.queue("results"),
        ),
    );
    source.wait_for_workers("results", 1);
    destination.kill();
    // 0 to 3 h, with a gap around the limit that is wider than the test is long.
    let age = |n: usize| {
        let age = (n as u64 * 7919) % 10_800;
        if (MAX_AGE - 900..MAX_AGE).contains(&age) { age - 900 } else { age }
    };
    let texts: Vec<(u64, String)> = (0..JOBS).map(|n| (age(n), result(n, age(n)))).collect();
    let young: Vec<Vec<u8>> =
        texts.iter().filter(|(age, _)| *age < MAX_AGE).map(|(_, text)| text.clone().into_bytes()).collect();
    source.submit_all("results", &texts.iter().map(|(_, text)| encrypted(text)).collect::<Vec<_>>());
    assert!((5000..10_000).contains(&young.len()), "{}", young.len());
    destination.launch();
    let consumer = Consumer::start(&destination, "results");
    wait_within(Duration::from_secs(120), "nothing is left", || source.status("results").total == 0);
    let status = Status::ask(&source, "proxy_status", "check");
    assert_eq!(status.value("results::jobs") as usize, young.len());
    assert_eq!(status.value("results::expired") as usize, JOBS - young.len());
    assert_eq!((status.value("results::rejected"), status.value("total_errors")), (0, 0));
    let received: Vec<Vec<u8>> = consumer.finish().iter().map(|data| decrypted(data)).collect();
    assert_same_set(&young, &received);

    // The lines together name every job, and no second has two.
    proxy.stop();
    let log = proxy.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("older than max_age")).collect();
    let seconds: std::collections::BTreeSet<&str> = lines.iter().map(|line| &line[..19]).collect();
    assert!(!lines.is_empty() && lines.len() <= seconds.len() + 1, "{lines:#?}");
    let told: usize = lines.iter().map(|line| told(line)).sum();
    assert_eq!(told, JOBS - young.len(), "{lines:#?}");
}

/// `forward F: N jobs older than max_age dropped`.
fn told(line: &str) -> usize {
    let (_, told) = line.rsplit_once(": ").unwrap();
    told.split_once(' ').unwrap().0.parse().unwrap()
}

#[test]
fn every_way_of_reading_a_job_finds_its_time() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let ways = [
        ("encrypted", "decrypt = should_be_changed\n"),
        ("encrypted_callback", "decrypt = should_be_changed\ndata_callback = s/core_time=.*/core_time=1/\n"),
        ("plain", ""),
        ("plain_callback", "data_callback = s/web1/web2/\n"),
        ("plain_encrypted", "encrypt = should_be_changed\n"),
    ];
    let mut config = format!("statusqueue = {}\n", source.queue("proxy_status"));
    for (queue, options) in ways {
        config.push_str(&format!(
            "{} = {}\nmax_age = {MAX_AGE}\n{options}",
            source.queue(queue),
            destination.queue(queue)
        ));
    }
    let _proxy = Proxy::start(&config);
    for (queue, _) in ways {
        let data = |text: &str| if queue.starts_with("enc") { encrypted(text) } else { plain(text) };
        let check = |core: u64| {
            // A check's time is when the core ordered it, whatever else it has.
            format!("type=host\nstart_time={}\ncore_time={}\nhost_name=web1\n\n\n", ago(0), ago(core))
        };
        let passes = [
            check(10),
            result(1, 10),
            format!("host_name=web1\nstart_time={}\n\n", ago(10)),
            String::from("host_name=web1\noutput=core_time=1 is no field\n\n"),
            String::from("type=passive\nfinish_time=soon\n\n"),
        ];
        let expires =
            [check(MAX_AGE + 100), result(2, MAX_AGE + 100), format!("start_time={}\n\n", ago(MAX_AGE + 100))];
        source.submit_all(queue, &passes.iter().chain(&expires).map(|text| data(text)).collect::<Vec<_>>());
        destination.wait_for_jobs(queue, passes.len());
        source.wait_for_jobs(queue, 0);
        let status = Status::ask(&source, "proxy_status", "check");
        assert_eq!(status.value(&format!("{queue}::expired")), 3, "{queue}");
        assert_eq!(status.value(&format!("{queue}::rejected")), 0, "{queue}");
        let came = destination.drain_data(queue);
        if queue == "plain" {
            // Decoded for reading only.
            assert_same_set(&passes.iter().map(|text| plain(text)).collect::<Vec<_>>(), &came);
        }
    }
    // What is not even base64 has no time, and no stage that must read it.
    source.submit_all("plain", &[b"check".to_vec(), b"core_time=1\n".to_vec()]);
    destination.wait_for_jobs("plain", 2);
}

#[test]
fn a_client_that_waits_for_an_expired_job_gets_a_failure() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(
        &source,
        &format!("{} = {}\nasync = 0\nmax_age = {MAX_AGE}\n", source.queue("checks"), destination.queue("checks")),
    );
    let mut client = source.client();
    let handle = client.submit("checks", b"", &plain(&format!("core_time={}\n", ago(MAX_AGE + 100))));
    let packet = client.receive();
    assert_eq!((packet.kind, packet.body), (WORK_FAIL, handle));
    stays(Duration::from_secs(1), "it never reaches the destination", || destination.status("checks").total == 0);
    client.submit("checks", b"", &plain(&format!("core_time={}\n", ago(10))));
    destination.wait_for_jobs("checks", 1);
    wait_for("it is counted", || {
        let status = Status::ask(&source, "proxy_status", "check");
        status.value("checks::expired") == 1 && status.value("checks::jobs") == 0
    });
}
