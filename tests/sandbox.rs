//! What the kernel enforces: no program is started and no port listened on, and nothing that the daemon needs is refused.
#![allow(clippy::unwrap_used)]

mod support;

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use support::proxy::program;
use support::{Folder, Gearmand, Status, numbered, signal, wait_for};

/// Set where this program is the process with the filter.
const CHILD: &str = "GEARMAN_PROXY_TEST_SANDBOX";

#[test]
fn a_process_with_the_filter_starts_no_program_and_listens_on_nothing() {
    if let Ok(port) = env::var(CHILD) {
        return with_filter(port.parse().unwrap());
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_process_with_the_filter_starts_no_program_and_listens_on_nothing", "--nocapture"])
        .env(CHILD, listener.local_addr().unwrap().port().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("the filter holds"), "{output:?}");
}

fn with_filter(port: u16) {
    assert_eq!(gearman_proxy::sandbox::status(), "off");
    let refused = |what: &str, outcome: std::io::Result<()>| {
        assert_eq!(outcome.map_err(|error| error.raw_os_error()), Err(Some(1)), "{what}: EPERM");
    };
    let start = || Command::new("true").spawn().map(|mut child| drop(child.wait()));
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
    // Both are possible before; also the log's thread is there before the filter is.
    start().unwrap();
    let waiting = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (go, gone) = channel::<()>();
    let early = thread::spawn(move || {
        gone.recv().unwrap();
        refused("execve in a thread from before", start());
    });
    gearman_proxy::sandbox::apply().unwrap();
    assert_eq!(gearman_proxy::sandbox::status(), "on");
    go.send(()).unwrap();
    early.join().unwrap();
    refused("execve", start());
    refused("listen", listen());
    let _client = TcpStream::connect(waiting.local_addr().unwrap()).unwrap();
    refused("accept4", waiting.accept().map(drop));
    thread::spawn(move || refused("execve in a thread from after", start())).join().unwrap();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    }
    // What a client needs.
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("the filter holds");
}

/// Killed when a test fails.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_that_the_daemon_does_is_refused() {
    let (source, destination) = (Gearmand::start(), Gearmand::start_on(Ipv4Addr::LOCALHOST.into()));
    let folder = Folder::new();
    let [conf, log, pid, trace, socket] = ["proxy.conf", "log", "pid", "trace", "notify"].map(|name| folder.file(name));
    let manager = UnixDatagram::bind(&socket).unwrap();
    let named = format!("localhost:{}", destination.address().port());
    let config = format!(
        "statusqueue = {}\nlogfile = {}\npidfile = {}\n{} = {named}/work\n{} = {named}/secret\n\
         decrypt = should_be_changed\nreject_queue = {named}/rejected\n{} = {named}/question\nasync = 0\n\
         {} = no-such-host.invalid/lost\n",
        source.queue("proxy_status"),
        log.display(),
        pid.display(),
        source.queue("work"),
        source.queue("secret"),
        source.queue("question"),
        source.queue("lost"),
    );
    fs::write(&conf, &config).unwrap();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-o"]).arg(&trace).arg(program()).arg("--config").arg(&conf);
    traced.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "1000000").stdin(Stdio::null());
    let mut traced = Started(traced.spawn().unwrap());
    wait_for("it runs", || fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n')));
    let proxy: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    let logged = |text: &str| wait_for(text, || fs::read_to_string(&log).is_ok_and(|log| log.contains(text)));

    // Jobs, a synchronous one, one for the reject queue, the status.
    for queue in ["work", "secret", "question"] {
        source.wait_for_workers(queue, 1);
    }
    source.submit_all("work", &numbered(50));
    source.client().submit_background("secret", b"", b"%undecodable%");
    let mut client = source.client();
    client.submit("question", b"", b"data");
    let mut worker = destination.worker("question");
    let job = worker.grab();
    worker.complete(&job, b"answer");
    assert_eq!(client.receive().after_handle(), b"answer");
    destination.wait_for_jobs("work", 50);
    destination.wait_for_jobs("rejected", 1);
    let status = Status::ask(&source, "proxy_status", "check");
    assert!(status.text.contains("'queues'=4"), "{}", status.text);
    logged("no-such-host.invalid");

    // Log rotation and a reload that changes a forward; a thread tells systemd the time.
    fs::rename(&log, folder.file("log.1")).unwrap();
    fs::write(&conf, config.replace("async = 0\n", "async = 0\nworker = 2\n")).unwrap();
    signal(proxy, "HUP");
    logged("reload");
    let mut told = String::new();
    wait_for("systemd's watchdog is fed after the reload", || {
        let mut buffer = [0; 4096];
        let size = manager.recv(&mut buffer).unwrap();
        told.push_str(&String::from_utf8_lossy(&buffer[..size]));
        told.split_once("RELOADING=1").is_some_and(|(_, after)| after.contains("WATCHDOG=1"))
    });
    // Nobody reads these from here on.
    drop(manager);
    source.wait_for_workers("question", 1);
    source.submit_all("work", &numbered(10));
    destination.wait_for_jobs("work", 60);
    signal(proxy, "TERM");
    wait_for("it ends", || traced.0.try_wait().unwrap().is_some());
    assert_eq!(traced.0.wait().unwrap().code(), Some(0));
    assert!(!pid.exists());

    let trace = fs::read_to_string(&trace).unwrap();
    for needed in [
        "seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC",
        "/etc/hosts",
        "resolv.conf",
        "+++ exited with 0 +++",
    ] {
        assert!(trace.contains(needed), "{needed} is not in the trace");
    }
    let refused: Vec<&str> = trace.lines().filter(|line| line.contains("EPERM")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(trace.matches("execve(").count(), 1, "strace's own start of it");
}

#[test]
fn where_the_kernel_refuses_the_filter_one_line_says_so_and_it_runs_on() {
    const REFUSING: &str = "GEARMAN_PROXY_TEST_REFUSING";
    if let Some(conf) = env::var_os(REFUSING) {
        // ENOSYS for seccomp(2), as an old kernel or a container answers, and then the daemon in this process.
        let number = if env::consts::ARCH == "x86_64" { 317 } else { 277 };
        let refuse = SeccompAction::Errno(38);
        let arch = env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new([(number, Vec::new())].into(), SeccompAction::Allow, refuse, arch).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        panic!("{}", Command::new(program()).arg("--config").arg(conf).arg("--logfile=stderr").exec());
    }
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let folder = Folder::new();
    let (conf, output) = (folder.file("proxy.conf"), folder.file("output"));
    fs::write(&conf, format!("{} = {}\n", source.queue("work"), destination.queue("work"))).unwrap();
    let mut started = Command::new(env::current_exe().unwrap());
    started.args(["--exact", "where_the_kernel_refuses_the_filter_one_line_says_so_and_it_runs_on", "--nocapture"]);
    started.env(REFUSING, &conf).stdout(Stdio::null()).stderr(fs::File::create(&output).unwrap());
    let mut proxy = Started(started.spawn().unwrap());
    source.wait_for_workers("work", 1);
    source.submit_all("work", &numbered(10));
    destination.wait_for_jobs("work", 10);
    signal(proxy.0.id(), "TERM");
    assert_eq!(proxy.0.wait().unwrap().code(), Some(0));
    let log = fs::read_to_string(&output).unwrap();
    let said: Vec<_> = log.lines().filter(|line| line.contains("seccomp")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("[WARN]") && said[0].contains("Function not implemented"), "{log}");
}
