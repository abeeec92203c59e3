//! Tells systemd how the service is: the datagrams of sd_notify(3), sent only where NOTIFY_SOCKET asks for them.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;

/// What /proc counts a process's start in, microseconds (USER_HZ, 100 on every Linux that Rust knows but two old ones).
const TICK: u64 = 10_000;

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// Reads NOTIFY_SOCKET. Without it, or with one that can't be used, every notification is nothing.
    pub fn from_environment() -> Notifier {
        Notifier { manager: env::var_os("NOTIFY_SOCKET").and_then(|address| Notifier::open(&address).ok()) }
    }

    /// `address` is a path, or the name of an abstract socket after an `@`.
    fn open(address: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
        let manager = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok((UnixDatagram::unbound()?, manager))
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

    fn send(&self, state: String) {
        let Some((socket, manager)) = &self.manager else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), manager) {
            log::debug!("service manager not notified: {error}");
        }
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
        Notifier { manager: Some(Notifier::open(address).unwrap()) }
    }

    #[test]
    fn a_manager_at_a_path_is_told() {
        let path = env::temp_dir().join(format!("gearman-proxy-notify-{}", std::process::id()));
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
        let name = format!("gearman-proxy-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notifier(OsStr::new(&format!("@{name}"))).stopping();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn a_reload_carries_a_time_that_is_not_before_the_request() {
        let name = format!("gearman-proxy-reload-{}", std::process::id());
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
        let nobody = Notifier { manager: None };
        nobody.ready("");
        nobody.reloading();
        nobody.stopping();
        nobody.status("");
    }
}
