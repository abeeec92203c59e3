//! The recipes of docs/operations.md, as an administrator sets them up: commands and configurations are those of the page, with
//! the addresses of the test's servers.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gearman_proxy::stages::cipher::Cipher;
use support::proxy::{program, run};
use support::{
    Consumer, Folder, Gearmand, PATIENCE, Proxy, Relay, Status, assert_same_set, free_port, loopback, numbered, stays,
    wait_for, wait_within,
};

/// The n-th block of code under a heading of the page, with these words in place of others.
fn recipe(heading: &str, number: usize, words: &[(&str, &str)]) -> String {
    let page = include_str!("../docs/operations.md");
    let (_, section) = page.split_once(&format!("# {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let block = section.split("```").nth(2 * number + 1).unwrap_or_else(|| panic!("no code under {heading}"));
    let (_, code) = block.split_once('\n').unwrap();
    words.iter().fold(code.to_owned(), |code, (word, other)| {
        assert!(code.contains(word), "{word} is not in the recipe {heading}:\n{code}");
        code.replace(word, other)
    })
}

/// A process that is killed with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn encrypted(key: &str, text: &[u8]) -> Vec<u8> {
    let mut data = text.to_vec();
    Cipher::new(key.as_bytes()).encrypt(&mut data).unwrap();
    STANDARD.encode(data).into_bytes()
}

fn decrypted(key: &str, data: &[u8]) -> Vec<u8> {
    let mut text = STANDARD.decode(data).unwrap();
    Cipher::new(key.as_bytes()).decrypt(&mut text).unwrap();
    text
}

/// A worker sends its results to a gearmand beside it, also while the line to the core is cut; none is dropped.
#[test]
fn duplicates_for_a_far_core_wait_at_a_local_server_while_the_line_is_down() {
    let (beside, far) = (Gearmand::start(), Gearmand::start());
    let line = Relay::with_delay(far.address(), Duration::from_millis(40));
    let config = recipe(
        "A second site that gets a copy of all results (dupserver)",
        0,
        &[
            ("127.0.0.1:4730", &beside.server()),
            ("second-site.example.org:4730/check_results", &line.queue("check_results")),
        ],
    );
    let _proxy = Proxy::start(&config);
    beside.wait_for_workers("check_results", 1);
    let results = numbered(3000);
    beside.submit_all("check_results", &results[..500]);
    far.wait_for_jobs("check_results", 500);
    line.refuse(true);
    line.cut();
    beside.submit_all("check_results", &results[500..]);
    stays(Duration::from_secs(2), "they wait", || far.status("check_results").total == 500);
    line.refuse(false);
    far.wait_for_jobs("check_results", 3000);
    beside.wait_for_jobs("check_results", 0);
    assert_same_set(&results, &far.drain_data("check_results"));
}

/// Neither side connects to the other: the proxy in between takes from both and submits to both.
#[test]
fn a_dmz_gets_its_checks_and_returns_its_results_over_connections_of_the_proxy() {
    let (inside, outside) = (Gearmand::start(), Gearmand::start());
    let config = recipe(
        "A DMZ, and neither side may connect to the other",
        0,
        &[("gearmand.inside.example.org", &inside.server()), ("gearmand.outside.example.org", &outside.server())],
    );
    let mut client = inside.client();
    client.submit_background("hostgroup_dmz", b"", b"the first, by which the pattern finds the queue");
    let _proxy = Proxy::start(&config);
    inside.wait_for_workers("hostgroup_dmz", 1);
    let mut worker = outside.worker("hostgroup_dmz");
    let first = worker.grab();
    worker.complete(&first, b"");
    let mut results = outside.client();
    for check in numbered(20) {
        client.submit_background("hostgroup_dmz", b"", &check);
        let job = worker.grab();
        assert_eq!(job.data, check);
        results.submit_background("check_results", b"", &[b"result of ", &check[..]].concat());
        worker.complete(&job, b"");
    }
    inside.wait_for_jobs("check_results", 20);
    let expected: Vec<_> = numbered(20).iter().map(|check| [b"result of ", &check[..]].concat()).collect();
    assert_same_set(&expected, &inside.drain_data("check_results"));
    wait_for("all is well", || Status::ask(&inside, "proxy_status", "check").message.starts_with("0:OK"));
}

/// Each core's checks carry its own result queue, set on the way, so that one worker network serves both.
#[test]
fn several_cores_share_workers_and_each_gets_its_own_results() {
    let (core1, core2, workers) = (Gearmand::start(), Gearmand::start(), Gearmand::start());
    let config = recipe(
        "Several cores behind one worker network",
        0,
        &[
            ("core1/service", &core1.queue("service")),
            ("core2/service", &core2.queue("service")),
            ("core1/check_results", &core1.queue("check_results")),
            ("core2/check_results", &core2.queue("check_results")),
            ("192.168.1.33", &workers.server()),
        ],
    );
    let secret = config.replace("    data_callback", "    decrypt = core\n    encrypt = workers\n    data_callback");
    type Coding = (fn(&str, &[u8]) -> Vec<u8>, fn(&str, &[u8]) -> Vec<u8>);
    let plain: Coding = (|_, text| STANDARD.encode(text).into_bytes(), |_, data| STANDARD.decode(data).unwrap());
    let encryption: Coding = (encrypted, decrypted);
    for (config, (encode, decode)) in [(config, plain), (secret, encryption)] {
        let mut proxy = Proxy::start(&config);
        let mut worker = workers.worker("service");
        for (core, name) in [(&core1, "core1"), (&core2, "core2"), (&core1, "core1")] {
            let check = b"type=service\nresult_queue=check_results\nhost_name=web1\n\n";
            core.client().submit_background("service", b"", &encode("core", check));
            let job = worker.grab();
            let text = String::from_utf8(decode("workers", &job.data)).unwrap();
            assert_eq!(text, format!("type=service\nresult_queue=results_{name}\nhost_name=web1\n\n"));
            worker.complete(&job, b"");
            workers.client().submit_background(&format!("results_{name}"), b"", format!("for {name}").as_bytes());
        }
        core1.wait_for_jobs("check_results", 2);
        core2.wait_for_jobs("check_results", 1);
        assert_eq!(core1.drain_data("check_results"), [b"for core1", b"for core1"]);
        assert_eq!(core2.drain_data("check_results"), [b"for core2"]);
        // The guard keeps off what is no check.
        let other = b"type=other\nresult_queue=mine\n";
        core1.client().submit_background("service", b"", &encode("core", other));
        let job = worker.grab();
        assert_eq!(decode("workers", &job.data), other);
        worker.complete(&job, b"");
        assert_eq!(proxy.stop().code(), Some(0));
    }
}

/// Jobs rejected for a wrong password are delivered once the right one is set.
#[test]
fn a_reject_queue_is_replayed_when_the_right_password_is_set() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let config = |password: &str| {
        format!(
            "statusqueue = {}\n{} = {}\ndecrypt = {password}\nreject_queue = special_rejected\n",
            source.queue("proxy_status"),
            source.queue("servicegroup_special"),
            destination.queue("servicegroup_special")
        )
    };
    let proxy = Proxy::start(&config("wrong"));
    source.wait_for_workers("servicegroup_special", 1);
    let texts: Vec<Vec<u8>> = (0..50)
        .map(|n| format!("host_name=web{n}\nresult_queue=check_results\noutput={}\n", "x".repeat(200)).into_bytes())
        .collect();
    source.submit_all("servicegroup_special", &texts.iter().map(|text| encrypted("right", text)).collect::<Vec<_>>());
    source.wait_for_jobs("special_rejected", 50);
    source.wait_for_jobs("servicegroup_special", 0);
    let message = Status::ask(&source, "proxy_status", "check").message;
    assert!(message.contains(" 50 jobs rejected, last in servicegroup_special ("), "{message}");

    proxy.reload(&config("right"));
    proxy.wait_for_log("reloading with 1 forward");
    source.wait_for_workers("servicegroup_special", 1);
    let command = recipe("Replay a reject queue", 0, &[("127.0.0.1", &source.server())]);
    let ended = run(&command.split_whitespace().skip(1).collect::<Vec<_>>());
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    destination.wait_for_jobs("servicegroup_special", 50);
    source.wait_for_jobs("special_rejected", 0);
    source.wait_for_jobs("servicegroup_special", 0);
    assert_same_set(&texts, &destination.drain_data("servicegroup_special"));
}

/// Two proxies take from one queue, for the case that one of their machines dies.
#[test]
fn two_proxies_on_one_queue_deliver_each_job_once_and_one_may_die() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let servers: [(&str, &str); 2] =
        [("127.0.0.1:4730", &source.server()), ("192.168.1.33:4730", &destination.server())];
    let config = recipe("Two proxies", 0, &servers);
    let mut one = Proxy::start(&config);
    let _other = Proxy::start(&config.replace("proxy_status_1", "proxy_status_2"));
    source.wait_for_workers("hostgroup_network_b", 2);
    // None is finished at the destination, so that what comes again is merged.
    let jobs = numbered(5000);
    source.submit_all("hostgroup_network_b", &jobs[..2500]);
    one.kill();
    source.submit_all("hostgroup_network_b", &jobs[2500..]);
    destination.wait_for_jobs("hostgroup_network_b", 5000);
    source.wait_for_jobs("hostgroup_network_b", 0);
    assert_same_set(&jobs, &destination.drain_data("hostgroup_network_b"));
    wait_for("the other tells its state", || {
        Status::ask(&source, "proxy_status_2", "check").message.starts_with("0:OK")
    });
}

/// The new process starts while the old one stops.
#[test]
fn an_upgrade_without_a_pause_loses_nothing_and_delivers_nothing_twice() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    // With a status queue, pid file and log of its own.
    let start = |version: usize| {
        Proxy::start(&format!(
            "statusqueue = {}\npidfile = pid\nlogfile = log\n{} = {}\n",
            source.queue(&format!("proxy_status_{version}")),
            source.queue("work"),
            destination.queue("work")
        ))
    };
    let mut old = start(0);
    source.wait_for_workers("work", 1);
    let consumer = Consumer::start(&destination, "work");
    let jobs = numbered(20_000);
    let mut successors = Vec::new();
    for (round, some) in jobs.chunks(5000).enumerate() {
        let new = std::thread::scope(|scope| {
            let feeding = scope.spawn(|| source.submit_all("work", some));
            let new = start(round + 1);
            wait_for("both take jobs", || source.status("work").workers == 2);
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

/// The first is lost, the second takes over.
#[test]
fn two_destinations_and_the_first_is_down() {
    let (source, first, second) = (Gearmand::start(), Gearmand::down(), Gearmand::start());
    let config = recipe(
        "Two destinations",
        0,
        &[("127.0.0.1", &source.server()), ("192.168.1.33", &first.server()), ("192.168.1.34", &second.server())],
    );
    let _proxy = Proxy::start(&config);
    source.submit_all("host", &numbered(100));
    second.wait_for_jobs("host", 100);
    source.wait_for_jobs("host", 0);
    assert_same_set(&numbered(100), &second.drain_data("host"));
}

/// stunnel with the two configurations of the page and a key that the page's command has made.
#[test]
fn a_tls_tunnel_has_a_key_for_each_host_which_is_withdrawn_by_itself() {
    let (local, remote, folder) = (Gearmand::start(), Gearmand::start(), Folder::new());
    let page = include_str!("../docs/operations.md");
    let made = page.split('`').find(|code| code.starts_with("openssl rand")).unwrap();
    let psk = folder.file("psk");
    let made = made.replace("/etc/stunnel/psk", psk.to_str().unwrap());
    assert!(Command::new("sh").args(["-c", &format!("umask 077; {made}")]).status().unwrap().success());
    let key = fs::read_to_string(&psk).unwrap();
    let (host, secret) = key.trim().split_once(':').unwrap();
    assert!(!host.is_empty() && secret.len() == 64, "{key}");
    let psks = folder.file("psk-proxies");
    let another = format!("another.example.org:{}\n", "42".repeat(32));
    let allow = |keys: &[&str]| {
        fs::write(&psks, keys.concat()).unwrap();
        assert!(Command::new("chmod").arg("600").arg(&psks).status().unwrap().success());
    };
    allow(&[&key, &another]);

    let port = || SocketAddr::new(loopback(), free_port(loopback()));
    let (tls, near) = (port(), port());
    let configs = recipe("TLS", 0, &[("192.168.1.33:4731", &tls.to_string())]);
    let (in_b, in_a) = configs.split_once("\n\n").unwrap();
    let in_b = in_b
        .replace("= 4731", &format!("= {tls}"))
        .replace("127.0.0.1:4730", &remote.server())
        .replace("/etc/stunnel/psk-proxies", psks.to_str().unwrap());
    let in_a = in_a.replace("127.0.0.1:14731", &near.to_string());
    let in_a = in_a.replace("/etc/stunnel/psk", psk.to_str().unwrap());
    let stunnel = |name: &str, config: &str| {
        let path = folder.file(name);
        fs::write(&path, format!("foreground = yes\npid =\n{config}\n")).unwrap();
        let log = fs::File::create(folder.file(&format!("{name}.log"))).unwrap();
        let mut command = Command::new("stunnel");
        command.arg(&path).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Running(command.spawn().expect("stunnel runs (Debian: stunnel4)"))
    };
    let ended = |options: &[&str]| {
        let mut client = Command::new("openssl");
        client.args(["s_client", "-connect", &tls.to_string()]).args(options).stdin(Stdio::null());
        let output = client.output().expect("openssl runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let known = |options: &[&str]| ended(&[&["-psk_identity", host, "-psk", secret], options].concat());

    let far_end = stunnel("in_b", in_b.trim());
    wait_for("the tunnel knows this host's key", || known(&[]).contains("TLSv1.3, Cipher is TLS"));
    // In network B gearmand listens on loopback only, and nothing but the tunnel leads there.
    for refused in [known(&["-tls1_2", "-cipher", "PSK"]), ended(&[]), ended(&["-psk_identity", host, "-psk", "00ff"])]
    {
        assert!(refused.contains("New, (NONE)") && refused.contains("alert"), "{refused}");
    }
    let near_end = stunnel("in_a", &in_a);
    let config = recipe("TLS", 3, &[("127.0.0.1:4730", &local.server()), ("127.0.0.1:14731", &near.to_string())]);
    let _proxy = Proxy::with_status(&local, &config);
    local.submit_all("hostgroup_network_b", &numbered(500));
    remote.submit_all("check_results", &numbered(300));
    remote.wait_for_jobs("hostgroup_network_b", 500);
    local.wait_for_jobs("check_results", 300);
    assert_same_set(&numbered(500), &remote.drain_data("hostgroup_network_b"));

    // This host's key is withdrawn; the other's still works.
    allow(&[&another]);
    drop(far_end);
    let _far_end = stunnel("in_b", in_b.trim());
    let other = ["-psk_identity", "another.example.org", "-psk", &"42".repeat(32)];
    wait_for("the tunnel knows the other host's key", || ended(&other).contains("TLSv1.3, Cipher is TLS"));
    assert!(known(&[]).contains("New, (NONE)"));
    local.submit_all("hostgroup_network_b", &numbered(1));
    let down = ["connection closed by the server", "connection reset"].map(|reason| format!("{near} ({reason})"));
    wait_for("the status says so", || {
        let message = Status::ask(&local, "proxy_status", "check").message;
        down.iter().any(|text| message.contains(text))
    });
    assert_eq!((remote.status("hostgroup_network_b").total, local.status("hostgroup_network_b").total), (0, 1));
    drop(near_end);
}

/// With the command of the page, which a queue must exist for.
#[test]
fn a_queue_with_a_limit_fills_up_to_it_and_the_rest_waits_at_the_source() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let (host, port) = (destination.address().ip().to_string(), destination.address().port().to_string());
    let command = recipe(
        "Limit queues",
        0,
        &[("127.0.0.1 4730", &format!("{host} {port}")), ("check_results 100000", "check_results 20")],
    );
    let limit = || {
        let answer = Command::new("sh").args(["-c", &command]).output().expect("nc runs (Debian: netcat-openbsd)");
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim_end(), "OK", "{answer:?}");
    };
    limit();
    let jobs = numbered(100);
    destination.submit_all("check_results", &jobs[..30]);
    assert_eq!(destination.status("check_results").total, 30, "no limit for a queue that did not exist");
    destination.drain("check_results");
    // Known while a worker is there.
    let _known = destination.worker("check_results");
    limit();
    let proxy = Proxy::start(&format!("{} = {}\n", source.queue("results"), destination.queue("check_results")));
    source.submit_all("results", &jobs);
    destination.wait_for_jobs("check_results", 20);
    proxy.wait_for_log("queue full");
    stays(Duration::from_secs(3), "the limit holds", || {
        destination.status("check_results").total == 20 && source.status("results").total >= 80
    });
    let consumer = Consumer::start(&destination, "check_results");
    wait_for("the rest follows", || source.status("results").total == 0);
    assert_same_set(&jobs, &consumer.finish());
}

/// gearmand gives out again what a proxy had whose host is gone, with the options of the page.
#[test]
fn keepalive_returns_the_jobs_of_a_host_that_died() {
    // In a network of its own, in which the host's address can vanish: no packet comes from there any more.
    let script = r#"
        set -e
        binary=$1 folder=$2 gearmand=$3
        PATH=$PATH:/usr/sbin:/sbin
        ip link set lo up
        ip addr add 10.9.9.1/32 dev lo
        started() { until gearadmin --port "$1" --server-version >/dev/null 2>&1; do sleep 0.1; done; }
        queue_is() { gearadmin --port 4730 --status | tr '\t' ' ' | grep -q "^work $1\$"; }
        $gearmand --port=4730 --pid-file="$folder/source" --log-file="$folder/source.log" </dev/null &
        gearmand --listen=127.0.0.1 --port=4731 --pid-file="$folder/far" --log-file="$folder/far.log" </dev/null &
        destination=$!
        started 4730
        started 4731
        echo "10.9.9.1/work = 127.0.0.1:4731/work" >"$folder/conf"
        "$binary" --config="$folder/conf" --logfile="$folder/log" &
        proxy=$!
        until queue_is "0 0 1"; do sleep 0.1; done
        kill -STOP $destination
        for job in 1 2 3; do echo $job | gearman -p 4730 -b -f work; done
        until queue_is "3 3 1"; do sleep 0.1; done
        ip addr del 10.9.9.1/32 dev lo
        kill -KILL $proxy
        echo died
        until queue_is "3 0 0"; do sleep 0.1; done
        echo returned
    "#;
    let flags = recipe("Keepalive of gearmand", 0, &[]);
    let folder = Folder::new();
    let mut network = Command::new("unshare");
    network.args([
        "--user",
        "--map-root-user",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "bash",
        "-c",
        script,
        "bash",
    ]);
    network.arg(program()).arg(folder.path()).arg(flags.trim()).stdin(Stdio::null());
    let said = folder.file("said");
    network.stdout(fs::File::create(&said).unwrap());
    let mut network = Running(network.spawn().expect("unshare runs (Debian: util-linux)"));
    let says = |word: &str| fs::read_to_string(&said).unwrap().lines().any(|line| line == word);
    wait_for("the host has taken jobs and died", || says("died"));
    let died = Instant::now();
    wait_within(Duration::from_secs(60) + PATIENCE, "its jobs are given out again", || {
        assert!(says("returned") || network.0.try_wait().unwrap().is_none(), "it ended");
        says("returned")
    });
    // What no packet told it, gearmand has found out by asking: three times, after half a minute of silence.
    assert!(died.elapsed() > Duration::from_secs(30), "{:?}", died.elapsed());
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
