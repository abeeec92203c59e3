//! systemd's watchdog: a dead or hanging server is no reason to be restarted.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use support::{Folder, Gearmand, PATIENCE, Proxy, numbered, wait_for};

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
    let next = || {
        let mut buffer = [0; 4096];
        loop {
            match manager.recv(&mut buffer) {
                Ok(size) => return String::from_utf8_lossy(&buffer[..size]).into_owned(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
            }
        }
    };
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
        let state = next();
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
