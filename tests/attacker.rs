//! Nothing that others send can hurt the proxy: servers that lie, flood, crawl and hoard; jobs that explode; files that block.
//!
//! Each test starts the program itself. Memory is the peak that the kernel counted; limits are generous by a factor of two.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::peer::*;
use support::proxy::{program, run};
use support::scripted::{Server, assigned, cpu, figure, head};
use support::{Folder, Gearmand, PATIENCE, Proxy, Status, numbered, wait_for, wait_within};

const MIB: usize = 1 << 20;

/// The peak of a process's memory, MiB.
fn peak(proxy: &Proxy) -> usize {
    figure(proxy.pid(), "VmHWM")
}

/// A forward that works, beside whatever is hostile.
struct Healthy {
    source: Gearmand,
    destination: Gearmand,
    sent: AtomicUsize,
}

impl Healthy {
    fn start() -> Healthy {
        Healthy { source: Gearmand::start(), destination: Gearmand::start(), sent: AtomicUsize::new(0) }
    }

    fn line(&self) -> String {
        format!("{} = {}\n", self.source.queue("work"), self.destination.queue("work"))
    }

    /// A job comes through.
    #[track_caller]
    fn works(&self) {
        let sent = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        self.source.submit_all("work", &[format!("job {sent}").into_bytes()]);
        self.destination.wait_for_jobs("work", sent);
        self.source.wait_for_jobs("work", 0);
    }
}

/// A process that must end by itself, with what it printed.
fn ends(mut child: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it hangs");
        }
        thread::park_timeout(Duration::from_millis(10));
    };
    let mut text = String::new();
    for stream in
        [child.stdout.take().map(|s| Box::new(s) as Box<dyn Read>), child.stderr.take().map(|s| Box::new(s) as _)]
    {
        stream.unwrap().read_to_string(&mut text).unwrap();
    }
    (status.code(), text)
}

fn launch(options: &[&str]) -> Child {
    let command = Command::new(program())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    command.unwrap()
}

#[test]
fn a_status_of_16_mib_is_read_line_by_line() {
    let healthy = Healthy::start();
    let answered = Arc::new(AtomicUsize::new(0));
    let counted = answered.clone();
    let hostile = Server::start(move |peer| {
        while let Some(request) = peer.next() {
            let heard = match request.body.starts_with(b"status") && request.kind == 0 {
                true => {
                    let lines = b"q\t0\t0\t0\n".repeat(1000);
                    let heard = (0..16 * MIB / lines.len()).all(|_| peer.say(&lines)) && peer.say(b".\n");
                    counted.fetch_add(1, Ordering::SeqCst);
                    heard
                }
                false => peer.answer(&request),
            };
            if !heard {
                return;
            }
        }
    });
    let mut config = format!("statusqueue = {}\n{}", healthy.source.queue("proxy_status"), healthy.line());
    for number in 0..12 {
        config += &format!("{} = {}\n", hostile.queue(&format!("q{number}")), healthy.destination.queue("elsewhere"));
    }
    config += &format!("{} = {}\n", hostile.queue("many_*"), healthy.destination.queue(""));
    let proxy = Proxy::start(&config);
    wait_for("an answer to the pattern's question", || answered.load(Ordering::SeqCst) > 0);
    healthy.source.wait_for_workers("proxy_status", 1);
    wait_within(2 * PATIENCE, "one to the status's", || {
        Status::ask(&healthy.source, "proxy_status", "check");
        thread::park_timeout(Duration::from_millis(200));
        answered.load(Ordering::SeqCst) > 1
    });
    healthy.works();
    assert!(peak(&proxy) < 64, "{} MiB", peak(&proxy));
}

#[test]
fn results_that_are_sent_halfway_wait_their_turn_and_lose_it() {
    let healthy = Healthy::start();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let hostile = Server::start(move |peer| {
        if peer.until(SUBMIT_JOB).is_none() {
            return;
        }
        peer.say(&response(JOB_CREATED, &[b"H:there:1"]));
        peer.say(&head(WORK_DATA, 60 << 20));
        peer.say(b"H:there:1\0");
        for _ in 0..40 {
            if !peer.say(&vec![b'x'; MIB]) {
                return;
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
        peer.endure();
    });
    let (source, _book) = Server::source(numbered(12));
    let proxy = Proxy::start(&format!(
        "{} = {}\n async = 0\n worker = 12\n{}",
        source.queue("work"),
        hostile.queue("work"),
        healthy.line()
    ));
    wait_for("one result of which 40 MiB came", || sent.load(Ordering::SeqCst) >= 40);
    healthy.works();
    // The next one gets its turn, when the first has moved nothing for 30 s.
    wait_within(Duration::from_secs(120), "a second one", || sent.load(Ordering::SeqCst) >= 80);
    assert!(peak(&proxy) < 256, "{} MiB", peak(&proxy));
    healthy.works();
}

#[test]
fn a_slow_source_keeps_results_from_being_read() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let destination = Server::start(move |peer| {
        while let Some(request) = peer.until(SUBMIT_JOB) {
            peer.answer(&request);
            let part = response(WORK_DATA, &[b"H:there:1", &vec![b'x'; MIB]]);
            while peer.say(&part) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let jobs = Mutex::new(numbered(12));
    let source = Server::start(move |peer| {
        // It gives jobs, and reads nothing from the first result on.
        while let Some(request) = peer.next() {
            let job = if request.kind == GRAB_JOB_UNIQ { jobs.lock().unwrap().pop() } else { None };
            match (job, request.kind) {
                (Some(job), _) => peer.say(&assigned(job.len(), &job)),
                (None, WORK_DATA) => return peer.pause(Duration::from_secs(12)),
                _ => peer.answer(&request),
            };
        }
    });
    let proxy =
        Proxy::start(&format!("{} = {}\n async = 0\n worker = 12\n", source.queue("work"), destination.queue("work")));
    wait_for("results", || sent.load(Ordering::SeqCst) > 0);
    let mut before = usize::MAX;
    // Until what stands on the way is full.
    wait_for("the flood to be dammed", || {
        thread::park_timeout(Duration::from_secs(1));
        std::mem::replace(&mut before, sent.load(Ordering::SeqCst)) == before
    });
    assert!(peak(&proxy) < 128, "{} MiB", peak(&proxy));
}

#[test]
fn a_job_created_with_a_handle_of_60_mib_ends_the_connection() {
    let healthy = Healthy::start();
    let hostile = Server::start(|peer| {
        if peer.until(SUBMIT_JOB_BG).is_some() && peer.say(&head(JOB_CREATED, 60 << 20)) {
            (0..60).all(|_| peer.say(&vec![b'H'; MIB]));
        }
    });
    let (source, book) = Server::source(numbered(3));
    let proxy = Proxy::start(&format!("{} = {}\n{}", source.queue("work"), hostile.queue("work"), healthy.line()));
    proxy.wait_for_log("packet");
    healthy.works();
    assert!(peak(&proxy) < 32, "{} MiB", peak(&proxy));
    assert_eq!(book.completed(), 0);
}

#[test]
fn ten_forwards_with_jobs_of_60_mib_and_encryption_take_turns() {
    let healthy = Healthy::start();
    let destination = Server::taker();
    let mut config = healthy.line();
    let mut sources = Vec::new();
    for number in 0..10 {
        let (source, book) = Server::source(vec![vec![b'x'; 45 * MIB]]);
        config +=
            &format!("{} = {}\n encrypt = secret\n", source.queue("work"), destination.queue(&format!("q{number}")));
        sources.push((source, book));
    }
    let proxy = Proxy::start(&config);
    healthy.works();
    let done = || sources.iter().map(|(_, book)| book.completed() + book.failed()).sum::<usize>();
    wait_within(Duration::from_secs(300), "all ten", || done() == 10);
    assert!(sources.iter().all(|(_, book)| book.completed() == 1), "{}", proxy.log());
    // With the one job five times.
    assert!(peak(&proxy) < 256 + 5 * 45, "{} MiB", peak(&proxy));
    healthy.works();
}

#[test]
fn a_length_of_four_gibibytes_harms_nobody() {
    let folder = Folder::new();
    fs::write(folder.file("proxy.conf"), "max_job_size = 4294967295\n127.0.0.1:1/a = 127.0.0.1:2/a\n").unwrap();
    let ended = run(&["--check", "--config", folder.file("proxy.conf").to_str().unwrap()]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("max_job_size"), "{ended:?}");

    let healthy = Healthy::start();
    let said = Arc::new(AtomicUsize::new(0));
    let count = said.clone();
    let hostile = Server::start(move |peer| {
        if peer.until(GRAB_JOB_UNIQ).is_some() {
            peer.say(&head(JOB_ASSIGN_UNIQ, u32::MAX));
            peer.say(b"H:here:1\0work\0\0");
            (0..100).all(|_| peer.say(&vec![b'x'; MIB]));
            count.fetch_add(1, Ordering::SeqCst);
            peer.endure();
        }
    });
    let proxy = Proxy::start(&format!(
        "max_job_size = 1G\n{} = {}\n{}",
        hostile.queue("work"),
        healthy.destination.queue("other"),
        healthy.line()
    ));
    wait_for("100 MiB of it", || said.load(Ordering::SeqCst) > 0);
    healthy.works();
    assert!(peak(&proxy) < 64, "{} MiB", peak(&proxy));
}

/// Base64 of `count` letters `a`, where that is a multiple of three.
fn base64_of_a(count: usize) -> Vec<u8> {
    b"YWFh".repeat(count / 3)
}

#[test]
fn a_substitution_that_multiplies_a_job_is_undeliverable_while_it_grows() {
    let folder = Folder::new();
    let (source, book) = Server::source(vec![base64_of_a(3_000_000)]);
    let destination = Server::taker();
    let config = format!(
        "max_job_size = 1G\n{} = {}\n data_callback = s/a/{}/g\n",
        source.queue("work"),
        destination.queue("work"),
        "$&".repeat(500)
    );
    fs::write(folder.file("proxy.conf"), config).unwrap();
    // Address space is what a process runs out of first here, KiB.
    let command =
        format!("ulimit -v 700000; exec {} --config {}", program().display(), folder.file("proxy.conf").display());
    let mut child =
        Command::new("sh").args(["-c", &command]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_within(4 * PATIENCE, "the job to be failed", || book.failed() == 1 || child.try_wait().unwrap().is_some());
    assert!(child.try_wait().unwrap().is_none(), "the process has ended");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(book.failed(), 1);
}

#[test]
fn a_quadratic_pattern_takes_ten_seconds_of_cpu_and_a_stop_does_not_wait_for_it() {
    let destination = Server::taker();
    let start = || {
        let (source, book) = Server::source(vec![base64_of_a(240_000)]);
        let proxy = Proxy::start(&format!(
            "{} = {}\n data_callback = s/a.*?b|a/x/gs\n",
            source.queue("work"),
            destination.queue("work")
        ));
        (source, book, proxy)
    };
    let (_source, book, proxy) = start();
    wait_within(4 * PATIENCE, "the job to be failed", || book.failed() == 1);
    let used = cpu(proxy.pid());
    assert!(used > Duration::from_secs(5) && used < Duration::from_secs(20), "{used:?}");

    let (_source, _book, mut proxy) = start();
    wait_for("the pattern to be at work", || cpu(proxy.pid()) > Duration::from_millis(500));
    let before = cpu(proxy.pid());
    let stopped = Instant::now();
    assert!(proxy.stop().success());
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?} after {before:?} of CPU", stopped.elapsed());
}

#[test]
fn nothing_from_outside_reaches_a_terminal_raw() {
    const ESCAPES: &str = "\x1b]0;title\x07\x1b[2J\x1b]52;c;Zm9v\x07\u{9b}31m\u{202e}";
    let forger = Server::start(|peer| {
        while let Some(request) = peer.next() {
            if matches!(request.kind, SUBMIT_JOB | SUBMIT_JOB_HIGH) {
                let answer = format!("0:{{\"version\": \"{ESCAPES}\"}} version v{ESCAPES} running|'a{ESCAPES}'=1;;;");
                peer.say(&response(JOB_CREATED, &[b"H:there:1"]));
                peer.say(&response(WORK_COMPLETE, &[b"H:there:1", answer.as_bytes()]));
            } else {
                peer.answer(&request);
            }
        }
    });
    let address = forger.queue("proxy_status");
    let folder = Folder::new();
    let path = folder.file(&format!("{}.conf", ESCAPES.replace('/', "")));
    fs::write(&path, format!("{ESCAPES} = {ESCAPES}\n127.0.0.1/a{ESCAPES} = 127.0.0.1/b\n")).unwrap();
    let missing = folder.file(ESCAPES);
    for options in [
        vec![format!("--top={address}"), "--once".to_owned()],
        vec![format!("--status={address}")],
        vec!["--check".to_owned(), format!("--config={}", path.display())],
        vec!["--check".to_owned(), format!("--config={}", missing.display())],
        vec![format!("--{ESCAPES}")],
    ] {
        let (_, text) = ends(launch(&options.iter().map(String::as_str).collect::<Vec<_>>()));
        assert!(!text.is_empty(), "{options:?}");
        let raw = |c: char| c.is_control() && !matches!(c, '\n' | '\t') || c == '\u{202e}';
        assert!(!text.contains(raw), "{options:?}: {}", text.escape_debug());
    }
}

/// A hostile peer that is come back to: how often, at what cost, and what is logged of it, while a healthy forward works.
fn endures(hostile: &Server, config: &str, options: &[&str], log_limit: usize) {
    const TIME: Duration = Duration::from_secs(8);
    let healthy = Healthy::start();
    let proxy = Proxy::start_with(&format!("{config}{}", healthy.line()), options);
    wait_for("it to begin", || hostile.accepted() > 0);
    let (before, accepted, began) = (cpu(proxy.pid()), hostile.accepted(), Instant::now());
    thread::park_timeout(TIME);
    healthy.works();
    let (used, passed) = (cpu(proxy.pid()) - before, began.elapsed());
    assert!(used < passed / 4, "{used:?} of CPU in {passed:?}");
    // Waits double from half a second; a try may take three connections.
    assert!(hostile.accepted() - accepted <= 24, "{} connections", hostile.accepted() - accepted);
    let log = proxy.log();
    assert!(log.len() < log_limit, "{} bytes of log", log.len());
    assert!(peak(&proxy) < 48, "{} MiB", peak(&proxy));
}

#[test]
fn a_flood_of_errors_ends_the_session() {
    let flood = response(ERROR, &[b"CODE", b"text\n\x1b[31m"]).repeat(1000);
    let hostile = Server::start(move |peer| {
        if peer.until(GRAB_JOB_UNIQ).is_some() {
            peer.flood(&flood);
        }
    });
    let taker = Server::taker();
    endures(&hostile, &format!("{} = {}\n", hostile.queue("a"), taker.queue("a")), &["-vv"], 64 << 10);
}

#[test]
fn a_flood_of_results_of_a_foreign_job_ends_the_connection() {
    let flood = response(WORK_DATA, &[b"H:foreign:7", b"data"]).repeat(1000);
    let hostile = Server::start(move |peer| {
        if let Some(request) = peer.until(SUBMIT_JOB) {
            peer.answer(&request);
            peer.flood(&flood);
        }
    });
    let (source, _book) = Server::source(numbered(100));
    let config = format!("{} = {}\n async = 0\n", source.queue("work"), hostile.queue("work"));
    endures(&hostile, &config, &["-v"], 64 << 10);
}

#[test]
fn endless_noops_end_the_session() {
    let flood = response(NOOP, &[]).repeat(1000);
    let hostile = Server::start(move |peer| {
        if peer.until(PRE_SLEEP).is_some() {
            peer.flood(&flood);
        }
    });
    let taker = Server::taker();
    endures(&hostile, &format!("{} = {}\n", hostile.queue("a"), taker.queue("a")), &["-v"], 64 << 10);
}

#[test]
fn jobs_that_nobody_asked_for_end_the_session() {
    let flood: Vec<u8> = (0..1000).flat_map(|number| assigned(number, b"data")).collect();
    let hostile = Server::start(move |peer| {
        if peer.until(PRE_SLEEP).is_some() {
            peer.flood(&flood);
        }
    });
    let taker = Server::taker();
    endures(&hostile, &format!("{} = {}\n", hostile.queue("a"), taker.queue("a")), &["-v"], 64 << 10);
}

#[test]
fn a_destination_that_confirms_one_job_and_then_misbehaves_is_tried_less_and_less() {
    let hostile = Server::start(|peer| {
        if let Some(request) = peer.until(SUBMIT_JOB_BG) {
            peer.answer(&request);
            peer.say(&response(JOB_CREATED, &[b"H:there:2"]).repeat(100));
            peer.endure();
        }
    });
    let (source, _book) = Server::source(numbered(100_000));
    endures(&hostile, &format!("{} = {}\n", source.queue("work"), hostile.queue("work")), &[], 8 << 10);
}

#[test]
fn a_source_that_gives_a_job_and_then_misbehaves_is_tried_less_and_less() {
    let hostile = Server::start(|peer| {
        if peer.until(GRAB_JOB_UNIQ).is_some() {
            peer.say(&assigned(peer.number, b"data"));
            if peer.until(WORK_COMPLETE).is_some() {
                peer.say(&response(99, &[b"what?"]));
                peer.endure();
            }
        }
    });
    let taker = Server::taker();
    endures(&hostile, &format!("{} = {}\n", hostile.queue("work"), taker.queue("work")), &[], 8 << 10);
}

#[test]
fn garbage_during_the_greeting_is_read_no_further_than_64_kib() {
    let said = Arc::new(AtomicUsize::new(0));
    for garbage in [&b"garbage\n"[..], b"a line without an end ", b"\n"] {
        let (bytes, count) = (garbage.repeat(8000 / garbage.len()), said.clone());
        let hostile = Server::start(move |peer| {
            while peer.say(&bytes) {
                count.fetch_add(bytes.len(), Ordering::SeqCst);
            }
        });
        let taker = Server::taker();
        endures(&hostile, &format!("{} = {}\n", hostile.queue("a"), taker.queue("a")), &[], 8 << 10);
    }
}

#[test]
fn a_stop_does_not_wait_for_a_greeting_that_never_ends() {
    let silent = Server::start(|peer| peer.endure());
    let drip = Server::start(|peer| {
        while peer.say(b"x\n") {
            peer.pause(Duration::from_millis(50));
        }
    });
    let taker = Server::taker();
    let mut proxy = Proxy::start(&format!(
        "{} = {}\n{} = {}\n",
        silent.queue("a"),
        taker.queue("a"),
        taker.queue("b"),
        drip.queue("b")
    ));
    wait_for("both", || silent.accepted() > 0 && drip.accepted() > 0);
    let began = Instant::now();
    assert!(proxy.stop().success());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn packets_that_come_byte_by_byte_are_understood() {
    let crumbs = |peer: &mut support::scripted::Peer, bytes: &[u8]| bytes.chunks(1).all(|byte| peer.say(byte));
    let given = AtomicUsize::new(0);
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    let source = Server::start(move |peer| {
        while let Some(request) = peer.next() {
            match request.kind {
                GRAB_JOB_UNIQ if given.fetch_add(1, Ordering::SeqCst) < 20 => {
                    crumbs(peer, &assigned(given.load(Ordering::SeqCst), b"some data"));
                }
                WORK_COMPLETE => drop(count.fetch_add(1, Ordering::SeqCst)),
                _ => drop(peer.answer(&request)),
            }
        }
    });
    let destination = Server::start(move |peer| {
        while let Some(request) = peer.next() {
            match request.kind {
                SUBMIT_JOB_BG => drop(crumbs(peer, &response(JOB_CREATED, &[b"H:there:1"]))),
                _ => drop(peer.answer(&request)),
            }
        }
    });
    let _proxy = Proxy::start(&format!("{} = {}\n", source.queue("work"), destination.queue("work")));
    wait_for("all 20", || done.load(Ordering::SeqCst) == 20);
    // The second one asks who works there.
    assert_eq!((source.accepted(), destination.accepted()), (1, 2), "a connection was given up");
}

#[test]
fn a_fifo_is_no_password_configuration_pid_or_log_file() {
    let folder = Folder::new();
    let fifo = folder.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let fifo = fifo.to_str().unwrap();
    let config = |name: &str, text: &str| {
        fs::write(folder.file(name), text).unwrap();
        folder.file(name).to_str().unwrap().to_owned()
    };
    let forward = "127.0.0.1:1/a = 127.0.0.1:2/a\n";
    let password = config("password.conf", &format!("{forward}encrypt = file:{fifo}\n"));
    let plain = config("plain.conf", forward);
    for options in [
        vec!["--config", &password],
        vec!["--config", fifo],
        vec!["--config", &plain, "--pidfile", fifo],
        vec!["--config", &plain, "--logfile", fifo],
    ] {
        let (status, text) = ends(launch(&options));
        assert!(matches!(status, Some(1 | 2)) && text.contains("fifo"), "{options:?}: {status:?}, {text}");
    }
}

#[test]
fn a_second_signal_always_ends_it() {
    let silent = Server::start(|peer| {
        if peer.until(SUBMIT_JOB_BG).is_some() {
            peer.endure();
        }
    });
    let (source, _book) = Server::source(numbered(10));
    let mut proxy = Proxy::start(&format!("{} = {}\n", source.queue("work"), silent.queue("work")));
    wait_for("jobs to be held", || silent.accepted() > 0);
    proxy.wait_for_log("forwarding");
    proxy.signal("TERM");
    thread::park_timeout(Duration::from_millis(300));
    let began = Instant::now();
    proxy.signal("TERM");
    proxy.exit_status();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn a_pid_file_that_a_crash_left_keeps_nobody_from_starting() {
    let taker = Server::taker();
    let config = format!("{} = {}\n", taker.queue("a"), taker.queue("b"));
    // Of a process that is something else, of init, of none.
    for content in [std::process::id().to_string(), "1".to_owned(), "4194305".to_owned(), String::new()] {
        let folder = Folder::new();
        let path = folder.file("pid");
        fs::write(&path, &content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        // Any local user may lock a file that is readable.
        let lock = fs::File::open(&path).unwrap();
        lock.lock_shared().unwrap();
        let mut proxy = Proxy::start_in(folder, &config, &["--pidfile", "pid"]);
        let path = proxy.folder().file("pid");
        let own = proxy.pid().to_string();
        wait_for("its own number in the file", || {
            assert!(proxy.is_running(), "{}", proxy.log());
            fs::read_to_string(&path).is_ok_and(|text| text.trim() == own)
        });
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(proxy.stop().success());
    }
}

#[test]
fn nothing_that_is_packaged_signals_a_number_that_was_read_from_a_file() {
    for name in ["logrotate", "sysv-init", "gearman-proxy.service", "omd-init", "debian/postinst", "debian/prerm"] {
        let path = format!("{}/dist/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(&path).unwrap();
        let commands: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        let bad = |line: &&&str| line.contains("kill") && (line.contains("$(cat") || line.contains("`cat"));
        assert_eq!(commands.iter().find(bad), None, "{name}");
    }
    assert!(!fs::exists(format!("{}/dist/prometheus", env!("CARGO_MANIFEST_DIR"))).unwrap());
}

#[test]
fn the_metrics_file_follows_no_link() {
    let folder = Folder::new();
    let victim = folder.file("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, folder.file("metrics")).unwrap();
    std::os::unix::fs::symlink(&victim, folder.file("metrics.tmp")).unwrap();
    let taker = Server::taker();
    let path = folder.file("metrics");
    let config = format!("metricsfile = {}\n{} = {}\n", path.display(), taker.queue("a"), taker.queue("b"));
    let _proxy = Proxy::start_in(folder, &config, &[]);
    wait_for("metrics", || fs::read_to_string(&path).is_ok_and(|text| text.contains("gearman")));
    assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn odd_queue_names_are_escaped_everywhere() {
    const NAME: &str = "a;bc'|d";
    let site = Healthy::start();
    let config = format!(
        "statusqueue = {}\n{} = {}\n",
        site.source.queue("proxy_status"),
        site.source.queue(NAME),
        site.destination.queue(NAME)
    );
    let mut proxy = Proxy::start(&config);
    if !proxy.log().is_empty() && !proxy.is_running() {
        panic!("{}", proxy.log());
    }
    site.source.wait_for_workers("proxy_status", 1);
    site.source.wait_for_workers(NAME, 1);
    for payload in ["check", "json", "table 200x50", "metrics", "what\u{202e}ever"] {
        let mut client = site.source.client();
        let text = String::from_utf8(client.ask("proxy_status", b"", payload.as_bytes())).unwrap();
        assert!(!text.contains('\u{202e}'), "{payload}: {}", text.escape_debug());
    }
    let status = Status::ask(&site.source, "proxy_status", "check");
    // Only the ends of labels and the one bar are what they seem.
    assert!(status.perfdata.iter().all(|(name, _)| !name.contains([';', '\'', '|', '\u{202e}'])), "{status:?}");
    assert!(!proxy.log().contains('\u{202e}'), "{}", proxy.log().escape_debug());
    let config = proxy.folder().file("proxy.conf");
    fs::write(&config, format!("127.0.0.1/{NAME}\u{202e} = 127.0.0.1/b\n")).unwrap();
    let checked = run(&["--check", "--config", config.to_str().unwrap()]);
    assert_eq!(checked.status, Some(2), "{checked:?}");
    assert!(!checked.stdout.contains('\u{202e}') && !checked.stderr.contains('\u{202e}'), "{checked:?}");
}

#[test]
fn a_filter_of_64_kib_is_refused() {
    let site = Healthy::start();
    let proxy = Proxy::start(&format!("statusqueue = {}\n{}", site.source.queue("proxy_status"), site.line()));
    site.source.wait_for_workers("proxy_status", 1);
    for filter in ["a".repeat(64 << 10), "(a{1000}){1000}".to_owned()] {
        let mut client = site.source.client();
        let answer = client.ask("proxy_status", b"", format!("check perfdatafilter={filter}").as_bytes());
        assert!(answer.starts_with(b"3:") && answer.len() < 2000, "{}", answer.escape_ascii());
    }
    assert!(peak(&proxy) < 32, "{} MiB", peak(&proxy));
}

#[test]
fn a_thousand_busy_forwards_share_their_memory() {
    const FORWARDS: usize = 1000;
    const JOBS: usize = 300;
    /// Under way at once of each forward: 16 MiB of jobs in all.
    const HELD: usize = 27;
    let (given, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (giving, counting) = (given.clone(), done.clone());
    let source = Server::start(move |peer| {
        let (mut left, mut owed, mut out) = (JOBS, 0, 0);
        while let Some(request) = peer.next() {
            match request.kind {
                GRAB_JOB_UNIQ => owed += 1,
                WORK_COMPLETE => {
                    counting.fetch_add(1, Ordering::SeqCst);
                    out -= 1;
                }
                _ => drop(peer.answer(&request)),
            }
            while owed > 0 && left > 0 && out < HELD {
                (left, owed, out) = (left - 1, owed - 1, out + 1);
                giving.fetch_add(1, Ordering::SeqCst);
                peer.say(&assigned(peer.number * JOBS + left, &[b'x'; 600]));
            }
            if left == 0 {
                peer.say(&response(NO_JOB, &[]).repeat(std::mem::take(&mut owed)));
            }
        }
    });
    let destination = Server::taker();
    let config: String = (0..FORWARDS)
        .map(|n| format!("{} = {}\n", source.queue(&format!("q{n}")), destination.queue(&format!("q{n}"))))
        .collect();
    let proxy = Proxy::start(&config);
    wait_within(4 * PATIENCE, "all jobs", || done.load(Ordering::SeqCst) >= FORWARDS * JOBS);
    assert_eq!(given.load(Ordering::SeqCst), FORWARDS * JOBS);
    println!("1,000 busy forwards: {} MiB", peak(&proxy));
    assert!(peak(&proxy) < 300, "{} MiB", peak(&proxy));
}
