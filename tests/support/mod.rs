//! What the integration tests stand on: real job servers ([`gearmand`]), a client and a worker that speak the protocol
//! packet by packet ([`peer`]), a server that does what a test says ([`stub`]), the real proxy ([`proxy`]) and a line
//! between them that can be cut ([`relay`]).
//!
//! Nothing here sleeps for a fixed time: [`wait_for`] looks again and again until what is promised is so.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

pub mod consumer;
pub mod gearmand;
pub mod peer;
pub mod proxy;
pub mod relay;
pub mod scripted;
pub mod stub;
pub mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use consumer::Consumer;
pub use gearmand::{Gearmand, Queue};
pub use peer::{Client, Job, Packet, Worker};
pub use proxy::{Proxy, Status};
pub use relay::Relay;
pub use stub::Stub;

/// Longer than anything takes on the busiest machine: only a failure ever waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a forward needs to give its jobs back and leave its source (30 s), and a busy machine's share on top.
pub const OUTAGE: Duration = Duration::from_secs(90);

/// Looks until `condition` holds; panics with `what` when it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, condition);
}

/// As [`wait_for`], with a time of its own.
#[track_caller]
pub fn wait_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "still not so after {patience:?}: {what}");
        pause();
    }
}

/// Looks until `observe` returns what is `expected`, and shows what it returned last when it never does.
#[track_caller]
pub fn wait_until_equal<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, mut observe: impl FnMut() -> T) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = observe();
        if seen == expected {
            return;
        }
        assert!(Instant::now() < deadline, "after {PATIENCE:?}, {what}: expected {expected:?}, still {seen:?}");
        pause();
    }
}

/// Panics as soon as `condition` is no longer so during `time`.
#[track_caller]
pub fn stays(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(condition(), "no longer so: {what}");
        pause();
    }
}

/// Between two looks.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(5));
}

/// A loopback address that no other test process uses, so that tests of several processes never meet on a port.
pub fn loopback() -> IpAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 | (a & 63), b, c))
}

/// A port of `ip` on which nobody listens, different at each call.
pub fn free_port(ip: IpAddr) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(11_000);
    if ip != loopback() {
        return TcpListener::bind(SocketAddr::new(ip, 0)).unwrap().local_addr().unwrap().port();
    }
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(SocketAddr::new(ip, port)).is_ok() {
            return port;
        }
    }
}

/// Sends `signal` (a name without SIG) to a process.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "no process {pid} to signal");
}

/// A folder that lives as long as this value, and longer when the test fails, for a look inside.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let name = format!("gearman-proxy-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Two servers and a proxy with one forward between them, of the queue `work`.
pub struct Site {
    pub proxy: Proxy,
    pub source: Gearmand,
    pub destination: Gearmand,
}

impl Site {
    /// With these option lines of the forward; it takes jobs when this returns.
    pub fn start(options: &str) -> Site {
        Site::launch(options, |_, forward| Proxy::start(forward))
    }

    /// The same with its status in the source's queue `proxy_status`.
    pub fn with_status(options: &str) -> Site {
        Site::launch(options, Proxy::with_status)
    }

    fn launch(options: &str, start: impl Fn(&Gearmand, &str) -> Proxy) -> Site {
        let (source, destination) = (Gearmand::start(), Gearmand::start());
        let proxy = start(&source, &format!("{} = {}\n{options}\n", source.queue("work"), destination.queue("work")));
        source.wait_for_workers("work", 1);
        Site { proxy, source, destination }
    }

    /// The answer of the status queue.
    pub fn status(&self) -> Status {
        Status::ask(&self.source, "proxy_status", "check")
    }
}

/// `count` different jobs' data.
pub fn numbered(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("job {n}").into_bytes()).collect()
}

/// Panics unless both hold the same data, each as often; says what is missing and what came too often.
#[track_caller]
pub fn assert_same_set(sent: &[Vec<u8>], received: &[Vec<u8>]) {
    let mut counts = std::collections::BTreeMap::<&[u8], i64>::new();
    for data in sent {
        *counts.entry(data).or_default() += 1;
    }
    for data in received {
        *counts.entry(data).or_default() -= 1;
    }
    let show = |wrong: Vec<(&&[u8], &i64)>| {
        let first: Vec<_> = wrong.iter().take(5).map(|(data, n)| (data.escape_ascii().to_string(), **n)).collect();
        format!("{} ({first:?})", wrong.len())
    };
    let lost: Vec<_> = counts.iter().filter(|(_, n)| **n > 0).collect();
    let more: Vec<_> = counts.iter().filter(|(_, n)| **n < 0).collect();
    assert!(
        lost.is_empty() && more.is_empty(),
        "sent {}, received {}; lost {}; too often {}",
        sent.len(),
        received.len(),
        show(lost),
        show(more)
    );
}
