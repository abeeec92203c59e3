//! systemd's watchdog: a dead or hanging server is no reason to be restarted, a stuck thread is.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::proxy::program;
use support::{Folder, Gearmand, PATIENCE, Proxy, numbered, signal, wait_for};

/// The next notification.
fn next(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    loop {
        match manager.recv(&mut buffer) {
            Ok(size) => return String::from_utf8_lossy(&buffer[..size]).into_owned(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
        }
    }
}

#[test]
fn it_is_fed_while_servers_hang_and_die_and_through_a_reload() {
    let (source, mut hanging, mut dying) = (Gearmand::start(), Gearmand::start(), Gearmand::start());
    let folder = Folder::new();
    let socket = folder.file("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let name: &'static str = Box::leak(socket.to_str().unwrap().to_owned().into_boxed_str());
    let config = format!(
        "{} = {}\n{} = {}\nasync = 0\n",
        source.queue("a"),
        hanging.queue("a"),
        source.queue("b"),
        dying.queue("b")
    );
    // Fed each second; later than the two that systemd allows would be a restart.
    let proxy = Proxy::start_with_environment(&config, &[("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "2000000")]);
    source.wait_for_workers("a", 1);
    source.wait_for_workers("b", 1);
    hanging.freeze();
    dying.kill();
    source.submit_all("a", &numbered(100));
    source.submit_all("b", &numbered(100));
    wait_for("jobs are held", || source.status("a").running == 100);
    let mut told = Vec::new();
    // Past the 15 s after which the hanging one counts as lost, and the first tries to connect again.
    let (began, mut fed) = (Instant::now(), Instant::now());
    let mut reloaded = false;
    while began.elapsed() < Duration::from_secs(25) {
        let state = next(&manager);
        if state == "WATCHDOG=1" {
            assert!(fed.elapsed() < Duration::from_secs(4), "not fed for {:?}", fed.elapsed());
            fed = Instant::now();
        } else {
            told.push(state);
        }
        if !reloaded && began.elapsed() > Duration::from_secs(5) {
            proxy.reload("broken\n");
            reloaded = true;
        }
    }
    let all = told.join("\n");
    assert!(all.contains("RELOADING=1\nMONOTONIC_USEC="), "{all}");
    let last = told.iter().rfind(|state| state.contains("STATUS=")).unwrap();
    assert!(last.contains(&dying.server()) && last.contains(" configuration wrong since "), "{all}");
}

/// The proxy under strace, killed with this value.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        // What it started dies with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The kernel keeps one thread in a system call for longer than a thread may work without a sign, as a dead disk would.
#[test]
fn it_is_not_fed_while_a_thread_is_stuck_though_all_others_work() {
    // Submitters ask it for their CPU time when a job's stages take long, and nothing else does.
    const FILE: &str = "/proc/thread-self/schedstat";
    const STUCK: Duration = Duration::from_secs(140);
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let folder = Folder::new();
    let [conf, log, pid, socket] = ["proxy.conf", "log", "pid", "notify"].map(|name| folder.file(name));
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(STUCK + PATIENCE)).unwrap();
    let config = format!(
        "logfile = {}\npidfile = {}\n{} = {}\n{} = {}\ndata_callback = s/a.*?b|a/x/gs\n",
        log.display(),
        pid.display(),
        source.queue("quick"),
        destination.queue("quick"),
        source.queue("slow"),
        destination.queue("slow"),
    );
    fs::write(&conf, config).unwrap();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-o", "/dev/null", "-P", FILE]);
    traced.arg(format!("--inject=openat:delay_enter={}:when=1", STUCK.as_micros()));
    traced.arg(program()).arg("--config").arg(&conf).stdin(Stdio::null());
    traced.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000");
    let mut traced = Traced(traced.spawn().expect("strace runs (Debian: strace)"));
    source.wait_for_workers("slow", 1);

    // Base64 of many `a`: each match looks at all that is left.
    source.submit_all("slow", &[b"YWFh".repeat(10_000)]);
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    let stuck = "[ERROR] (main) thread s1:slow is stuck; systemd will restart the service";
    let began = Instant::now();
    let (mut fed, mut relayed) = (began, false);
    let unfed = loop {
        let state = next(&manager);
        assert!(began.elapsed() < STUCK + PATIENCE, "never unfed, or never fed again: {}", logged());
        if state == "WATCHDOG=1" {
            let unfed = fed.elapsed();
            fed = Instant::now();
            if relayed {
                break unfed;
            }
        } else if !relayed && logged().contains(stuck) {
            // The state of the service, which follows each 10 s.
            assert!(began.elapsed() > Duration::from_secs(110), "stuck after {:?}", began.elapsed());
            source.submit_all("quick", &numbered(100));
            destination.wait_for_jobs("quick", 100);
            relayed = true;
        }
    };
    // systemd would have waited 2 s.
    assert!(unfed > Duration::from_secs(5), "{unfed:?}");
    assert_eq!(logged().matches(stuck).count(), 1);
    signal(fs::read_to_string(&pid).unwrap().trim().parse().unwrap(), "TERM");
    wait_for("it ends", || traced.0.try_wait().unwrap().is_some());
}
