//! Tells systemd how the service is: the datagrams of sd_notify(3), sent only where NOTIFY_SOCKET asks for them.
//!
//! Under `WatchdogSec=` it also says that the service is alive, as long as every thread with a [`Heartbeat`] is in time: a
//! thread that is stuck is a reason to be restarted, a dead server is not. The threads are given a clone of [`Heartbeats`]:
//!
//! ```
//! # use gearman_proxy::notify::Heartbeats;
//! # let (heartbeats, jobs) = (Heartbeats::default(), std::sync::mpsc::channel::<u8>().1);
//! let heartbeat = heartbeats.register("work/reader");
//! // `idle` around each wait that may take any time: the wait for a job, a read without a deadline.
//! while let Ok(job) = heartbeat.idle(|| jobs.recv()) {
//!     // Work on the job; `turn` in between where it may take minutes.
//!     heartbeat.turn();
//! }
//! // A thread that ends drops its heartbeat, which is then no longer expected.
//! ```

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What /proc counts a process's start in, microseconds (USER_HZ, 100 on every Linux that Rust knows but two old ones).
const TICK: u64 = 10_000;

/// How long a notification may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a thread may work between two waits before it counts as stuck.
const TURN: Duration = Duration::from_secs(120);

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// How long systemd waits for a sign of life.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
}

impl Notifier {
    /// Reads NOTIFY_SOCKET. Without it, or with one that can't be used, every notification is nothing.
    pub fn from_environment() -> Notifier {
        let variable = |name| env::var(name).ok();
        Notifier {
            manager: env::var_os("NOTIFY_SOCKET").and_then(|address| Notifier::open(&address).ok()),
            watchdog: watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID")),
            fed: None,
        }
    }

    /// `address` is a path, or the name of an abstract socket after an `@`.
    fn open(address: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
        let manager = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = UnixDatagram::unbound()?;
        // A hanging service manager must not block the main loop.
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok((socket, manager))
    }

    /// The service is started or has reloaded; `status` is what `systemctl status` shows.
    pub fn ready(&self, status: &str) {
        self.send(format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A reload begins; [`Self::ready`] ends it.
    pub fn reloading(&self) {
        // A systemd that reloads by signal (Type=notify-reload) takes only a notification whose time is not before its
        // signal's; without one it would wait until its time is up.
        self.send(match self.manager.is_some().then(monotonic).flatten() {
            Some(time) => format!("RELOADING=1\nMONOTONIC_USEC={time}"),
            None => String::from("RELOADING=1"),
        });
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.send(String::from("STOPPING=1"));
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(format!("STATUS={}", one_line(status)));
    }

    /// Feeds systemd's watchdog when half of its time is over. To be called by the main loop at each of its turns, at least
    /// once a second.
    ///
    /// # Errors
    /// The name of a thread that is late: systemd is not told, and will restart the service.
    pub fn feed(&mut self, heartbeats: &Heartbeats, now: Instant) -> Result<(), String> {
        let Some(patience) = self.watchdog else { return Ok(()) };
        if self.fed.is_none_or(|fed| now.duration_since(fed) >= patience / 2) {
            heartbeats.late(now).map_or(Ok(()), Err)?;
            self.fed = Some(now);
            self.send(String::from("WATCHDOG=1"));
        }
        Ok(())
    }

    fn send(&self, state: String) {
        let Some((socket, manager)) = &self.manager else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), manager) {
            log::debug!("service manager not notified: {error}");
        }
    }
}

/// WATCHDOG_USEC, where it is meant for this process (sd_watchdog_enabled(3)).
fn watchdog(microseconds: Option<String>, process: Option<String>) -> Option<Duration> {
    let microseconds = microseconds?.parse().ok().filter(|&microseconds| microseconds > 0)?;
    let ours = process.is_none_or(|process| process.parse() == Ok(process::id()));
    ours.then(|| Duration::from_micros(microseconds))
}

/// The threads that must turn over.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<Weak<Beat>>>>);

/// One thread's sign of life. When dropped, no further turn is expected.
#[derive(Debug)]
pub struct Heartbeat(Arc<Beat>);

#[derive(Debug)]
struct Beat {
    name: String,
    /// The last turn; none while the thread waits.
    last: Mutex<Option<Instant>>,
}

impl Heartbeats {
    /// Expects turns of a thread from now on.
    pub fn register(&self, name: &str) -> Heartbeat {
        let beat = Arc::new(Beat { name: name.to_owned(), last: Mutex::new(Some(Instant::now())) });
        self.0.lock().push(Arc::downgrade(&beat));
        Heartbeat(beat)
    }

    /// The name of a thread that is late.
    pub fn late(&self, now: Instant) -> Option<String> {
        let mut threads = self.0.lock();
        threads.retain(|thread| thread.strong_count() > 0);
        threads.iter().filter_map(Weak::upgrade).find_map(|beat| {
            let late = beat.last.lock().is_some_and(|last| now.saturating_duration_since(last) > TURN);
            late.then(|| beat.name.clone())
        })
    }
}

impl Heartbeat {
    /// The thread is alive.
    pub fn turn(&self) {
        *self.0.last.lock() = Some(Instant::now());
    }

    /// While the thread waits for what may never come, no turn is expected.
    pub fn idle<T>(&self, wait: impl FnOnce() -> T) -> T {
        *self.0.last.lock() = None;
        let outcome = wait();
        self.turn();
        outcome
    }
}

fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

/// Microseconds on a clock that is never behind CLOCK_MONOTONIC, which std doesn't tell.
///
/// A thread's start is counted on CLOCK_BOOTTIME, which is CLOCK_MONOTONIC and the time asleep, so one that starts now
/// tells the time; the tick it was cut to is added. (/proc/uptime would do, but is hidden under ProcSubset=pid.)
fn monotonic() -> Option<u64> {
    let clock = thread::Builder::new().name(String::from("clock")).stack_size(64 << 10).spawn(|| {
        let stat = fs::read_to_string("/proc/thread-self/stat").ok()?;
        // proc(5): the name, in brackets, may hold anything; `starttime` is field 22, the one after the name is 3.
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_ascii_whitespace().nth(22 - 3)?.parse::<u64>().ok()
    });
    clock.ok()?.join().ok()?.map(|ticks| (ticks + 1) * TICK)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn received(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 1000];
        let size = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..size].to_vec()).unwrap()
    }

    fn notifier(address: &OsStr) -> Notifier {
        Notifier { manager: Some(Notifier::open(address).unwrap()), watchdog: None, fed: None }
    }

    #[test]
    fn a_manager_at_a_path_is_told() {
        let path = env::temp_dir().join(format!("gearman-proxy-notify-{}", process::id()));
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(path.as_os_str());
        notifier.ready("2 forwards\nall well");
        assert_eq!(received(&manager), "READY=1\nSTATUS=2 forwards all well");
        notifier.status("1 of 2 forwards works");
        assert_eq!(received(&manager), "STATUS=1 of 2 forwards works");
        notifier.stopping();
        assert_eq!(received(&manager), "STOPPING=1");
        drop(manager);
        fs::remove_file(&path).unwrap();
        notifier.stopping();
    }

    #[test]
    fn a_manager_at_an_abstract_address_is_told() {
        let name = format!("gearman-proxy-notify-{}", process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notifier(OsStr::new(&format!("@{name}"))).stopping();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn a_reload_carries_a_time_that_is_not_before_the_request() {
        let name = format!("gearman-proxy-reload-{}", process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = notifier(OsStr::new(&format!("@{name}")));
        for _ in 0..50 {
            let before = uptime();
            let began = Instant::now();
            notifier.reloading();
            let after = uptime() + began.elapsed().as_micros() as u64;
            let message = received(&manager);
            let time: u64 = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
            assert!(time >= before, "{time} is before {before}");
            assert!(time <= after + 2 * TICK, "{time} is long after {after}");
        }
    }

    /// Microseconds since the start, cut to 10 ms.
    fn uptime() -> u64 {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let (seconds, hundredths) = uptime.split(' ').next().unwrap().split_once('.').unwrap();
        (seconds.parse::<u64>().unwrap() * 100 + hundredths.parse::<u64>().unwrap()) * 10_000
    }

    #[test]
    fn addresses_that_are_none_are_refused_and_without_a_manager_nothing_happens() {
        assert!(Notifier::open(OsStr::new("")).is_err());
        assert!(Notifier::open(OsStr::new("relative")).is_err());
        assert!(Notifier::open(OsStr::new(&"/x".repeat(100))).is_err());
        let nobody = Notifier { manager: None, watchdog: None, fed: None };
        nobody.ready("");
        nobody.reloading();
        nobody.stopping();
        nobody.status("");
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_while_all_threads_are_in_time() {
        let name = format!("gearman-proxy-watchdog-{}", process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut notifier = notifier(OsStr::new(&format!("@{name}")));
        notifier.watchdog = Some(Duration::from_secs(20));
        let heartbeats = Heartbeats::default();
        let (in_time, late) = (heartbeats.register("in time"), heartbeats.register("work/reader"));
        *in_time.0.last.lock() = Some(Instant::now() + Duration::from_secs(10_000));
        let start = Instant::now();
        for (seconds, told) in [(0, true), (5, false), (9, false), (10, true)] {
            notifier.feed(&heartbeats, start + Duration::from_secs(seconds)).unwrap();
            notifier.status("");
            assert_eq!(received(&manager) == "WATCHDOG=1", told, "{seconds}");
            if told {
                received(&manager);
            }
        }
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(notifier.feed(&heartbeats, after(121)), Err(String::from("work/reader")));
        // A wait is not late, whatever it takes; what comes after it may be.
        late.idle(|| assert_eq!(heartbeats.late(after(1000)), None));
        assert_eq!(heartbeats.late(after(1000)), Some(String::from("work/reader")));
        assert_eq!(heartbeats.late(after(10)), None);
        notifier.feed(&heartbeats, after(10)).unwrap();
        drop(late);
        notifier.feed(&heartbeats, after(1000)).unwrap();
        assert_eq!(received(&manager), "WATCHDOG=1");
        drop(in_time);
        assert_eq!((heartbeats.late(after(9999)), heartbeats.0.lock().len()), (None, 0));
    }

    #[test]
    fn the_watchdogs_time_is_for_the_process_that_it_names() {
        let text = |text: &str| Some(text.to_owned());
        let ours = process::id().to_string();
        assert_eq!(watchdog(text("30000000"), None), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(text("30000000"), Some(ours)), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(text("30000000"), text("1")), None);
        assert_eq!((watchdog(None, None), watchdog(text("0"), None), watchdog(text("x"), None)), (None, None, None));
    }
}
