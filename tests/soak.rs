//! Everything at once for a while, with faults all the time: nothing is lost, nothing comes twice, nothing grows.
//!
//! `GEARMAN_PROXY_SOAK_SECONDS` is how long the load lasts, 20 seconds if not set; from two minutes on some faults last so
//! long that jobs are given back. `GEARMAN_PROXY_SOAK_SEED` chooses the faults and the load. The figures are printed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod random;
mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use gearman_proxy::stages::base64;
use gearman_proxy::stages::cipher::Cipher;
use random::Random;
use support::peer::{
    CAN_DO, GRAB_JOB_UNIQ, JOB_ASSIGN_UNIQ, NO_JOB, SUBMIT_JOB_HIGH, WORK_COMPLETE, WORK_FAIL, request,
};
use support::{Client, Gearmand, OUTAGE, Packet, Proxy, Relay, Status, assert_same_set, wait_within};

/// From here on some faults outlast every limit.
const LONG_RUN: Duration = Duration::from_secs(120);

/// How long somebody who waits may be kept waiting by one fault after the other.
const LONGEST_ANSWER: Duration = Duration::from_secs(300);

/// glibc keeps for each of its arenas, and every few threads have one, much of what these needed at any time. In one arena,
/// what stays is what the program keeps.
const ONE_ARENA: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// What memory may vary by, KiB: buffers that have been needed once, and holes between them.
const MEMORY_MARGIN: usize = 8 << 10;

const ASKING_CLIENTS: usize = 6;
const LARGE_JOB: usize = 1 << 20;

/// The servers, as faults choose among them. Monitoring runs beside the first; the second never loses its queues; the third
/// is restarted.
const NEAR: usize = 0;
const FAR: usize = 1;
const FRAGILE: usize = 2;

/// A queue with a load of jobs in the background.
#[derive(Clone, Copy)]
struct Load {
    queue: &'static str,
    from: usize,
    to: usize,
    /// Of what arrives the data of the job that is submitted.
    wrap: fn(&[u8]) -> Vec<u8>,
    /// The same again from what has arrived.
    unwrap: fn(&[u8]) -> Vec<u8>,
    /// Every so many jobs one that can't be decrypted.
    bad_every: Option<usize>,
    /// Every so many jobs one that is large.
    large_every: Option<usize>,
    /// Jobs have unique ids of their own.
    unique: bool,
    /// Each text is sent so often: jobs with equal data stay several jobs.
    equal: usize,
}

/// Without stages, for the servers' own.
const PLAIN: Load = Load {
    queue: "",
    from: NEAR,
    to: FAR,
    wrap: <[u8]>::to_vec,
    unwrap: <[u8]>::to_vec,
    bad_every: None,
    large_every: None,
    unique: false,
    equal: 1,
};

const LOADS: [Load; 5] = [
    Load { queue: "host", wrap: before_callback, unwrap: decrypted_far, bad_every: Some(60), ..PLAIN },
    Load { queue: "service", unique: true, ..PLAIN },
    Load { queue: "perfdata", unwrap: decrypted_far, equal: 2, ..PLAIN },
    Load { queue: "results", from: FAR, to: NEAR, wrap: encrypted_far, ..PLAIN },
    Load { queue: "alerts", to: FRAGILE, large_every: Some(200), ..PLAIN },
];

/// Where it is known that jobs come twice only if they should: nobody takes them out before the end.
fn is_kept(load: &Load) -> bool {
    load.to != FRAGILE
}

const NEAR_PASSWORD: &[u8] = b"near";
const FAR_PASSWORD: &[u8] = b"far";

fn encrypted(password: &[u8], text: &[u8]) -> Vec<u8> {
    let (mut text, mut encoded) = (text.to_vec(), Vec::new());
    Cipher::new(password).encrypt(&mut text).unwrap();
    base64::encode(&text, &mut encoded).unwrap();
    encoded
}

fn encrypted_far(text: &[u8]) -> Vec<u8> {
    encrypted(FAR_PASSWORD, text)
}

fn decrypted_far(data: &[u8]) -> Vec<u8> {
    let (mut text, mut joined) = (Vec::new(), Vec::new());
    base64::decode(data, &mut text, &mut joined).unwrap();
    Cipher::new(FAR_PASSWORD).decrypt(&mut text).unwrap();
    text
}

/// As it is submitted for the callback to make `text` of it.
fn before_callback(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(text.to_vec()).unwrap().replace("result_queue=far\n", "result_queue=near\n");
    encrypted(NEAR_PASSWORD, text.as_bytes())
}

/// The configurations that are changed between; the first is there at the beginning and at the end.
const CONFIGURATIONS: usize = 4;

fn config(lines: &[Relay; 3], variant: usize) -> String {
    let prefetch = if variant == 1 { "prefetch = 20\n" } else { "" };
    let workers = if variant == 2 { 3 } else { 2 };
    let forward = |queue: &str, from: usize, to: usize, options: &str| {
        format!("{} = {}\n{options}\n", lines[from].queue(queue), lines[to].queue(queue))
    };
    let mut config = format!("statusqueue = {}\n", lines[NEAR].queue("proxy_status"));
    let reject = lines[FAR].queue("rejected");
    config += &forward(
        "host",
        NEAR,
        FAR,
        &format!(
            "decrypt = near\ndata_callback = s/^result_queue=.*$/result_queue=far/m\nencrypt = far\n\
             reject_queue = {reject}\n{prefetch}"
        ),
    );
    config += &forward("service", NEAR, FAR, &format!("worker = {workers}\n{prefetch}"));
    if variant != 3 {
        config += &forward("perfdata", NEAR, FAR, &format!("encrypt = far\n{prefetch}"));
    }
    config += &forward("results", FAR, NEAR, &format!("decrypt = far\n{prefetch}"));
    config += &forward("alerts", NEAR, FRAGILE, prefetch);
    config += &forward("command", NEAR, FRAGILE, "async = 0\nworker = 4");
    config
}

/// What is read of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Figures {
    descriptors: usize,
    threads: usize,
    /// VmRSS, KiB.
    resident: usize,
    /// RssAnon, KiB: without the program's own file, which comes in page by page as it is needed.
    own: usize,
}

impl Figures {
    fn of(pid: u32) -> Figures {
        let entries = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            value.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let (resident, own) = (memory("VmRSS:"), memory("RssAnon:"));
        Figures { descriptors: entries("fd"), threads: entries("task"), resident, own }
    }

    fn counts(self) -> (usize, usize) {
        (self.descriptors, self.threads)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} descriptors, {} threads, {} KiB (own: {})",
            self.descriptors, self.threads, self.resident, self.own
        )
    }
}

/// Two of these may be at work at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    Cut(usize),
    Refuse(usize),
    HoldRequests(usize),
    HoldReplies(usize),
    HoldAcknowledgements(usize),
    /// What was kept back is lost with the connection.
    LoseRequests(usize),
    LoseReplies(usize),
    Freeze(usize),
    Restart,
    Reload,
    Change(usize),
}

impl Fault {
    fn choose(random: &mut Random) -> Fault {
        let (server, variant) = (random.below(3), random.below(CONFIGURATIONS));
        random.of(&[
            Fault::Cut(server),
            Fault::Refuse(server),
            Fault::HoldRequests(server),
            Fault::HoldReplies(server),
            Fault::HoldAcknowledgements(server),
            Fault::LoseRequests(server),
            Fault::LoseReplies(server),
            Fault::Freeze(server),
            Fault::Restart,
            Fault::Reload,
            Fault::Change(variant),
        ])
    }

    fn server(self) -> Option<usize> {
        match self {
            Fault::Cut(server)
            | Fault::Refuse(server)
            | Fault::HoldRequests(server)
            | Fault::HoldReplies(server)
            | Fault::HoldAcknowledgements(server)
            | Fault::LoseRequests(server)
            | Fault::LoseReplies(server)
            | Fault::Freeze(server) => Some(server),
            Fault::Restart => Some(FRAGILE),
            Fault::Reload | Fault::Change(_) => None,
        }
    }

    /// Whether it may begin while the other one is at work.
    fn goes_with(self, other: Fault) -> bool {
        self != Fault::Restart && self.server() != other.server()
    }

    fn name(self) -> String {
        let name = format!("{self:?}");
        name.split('(').next().unwrap().to_owned()
    }
}

/// The servers, the lines to them, and the proxy that is connected to these.
struct Soak {
    servers: [Gearmand; 3],
    lines: [Relay; 3],
    proxy: Proxy,
    /// Held by whoever submits alerts.
    alerts: Arc<Mutex<()>>,
    variant: usize,
    /// Jobs of its own that can't be decrypted.
    bad: Vec<Vec<u8>>,
}

impl Soak {
    fn start() -> Soak {
        let servers = [Gearmand::start(), Gearmand::start(), Gearmand::start()];
        let lines = [0, 1, 2].map(|server: usize| Relay::to(servers[server].address()));
        let proxy = Proxy::start_with_environment(&config(&lines, 0), &ONE_ARENA);
        let soak = Soak { servers, lines, proxy, alerts: Arc::default(), variant: 0, bad: Vec::new() };
        soak.wait_for_forwards();
        soak
    }

    fn wait_for_forwards(&self) {
        for Load { queue, from, .. } in LOADS {
            self.servers[from].wait_for_workers(queue, 1);
        }
        for queue in ["command", "proxy_status"] {
            self.servers[NEAR].wait_for_workers(queue, 1);
        }
    }

    /// The descriptors and threads of a proxy that has nothing to do, all of whose connections have been needed.
    fn idle(&mut self) -> Figures {
        let rejected = self.servers[FAR].status("rejected").total;
        let bad = format!("%idle {rejected}").into_bytes();
        self.servers[NEAR].submit_all("host", std::slice::from_ref(&bad));
        self.bad.push(bad);
        self.servers[FAR].wait_for_jobs("rejected", rejected + 1);
        self.servers[NEAR].wait_for_jobs("host", 0);
        // Also the last thread of a forward has been started when nothing has changed for so long.
        let mut figures = Figures::of(self.proxy.pid());
        let mut since = Instant::now();
        wait_within(OUTAGE, "descriptors and threads are stable", || {
            let now = Figures::of(self.proxy.pid());
            if std::mem::replace(&mut figures, now).counts() != now.counts() {
                since = Instant::now();
            }
            since.elapsed() > Duration::from_secs(2)
        });
        figures
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(line) => self.lines[line].cut(),
            Fault::Refuse(line) => {
                self.lines[line].refuse(true);
                self.lines[line].cut();
            }
            Fault::HoldRequests(line) | Fault::LoseRequests(line) => self.lines[line].hold_requests(true),
            Fault::HoldReplies(line) | Fault::LoseReplies(line) => self.lines[line].hold_replies(true),
            Fault::HoldAcknowledgements(line) => self.lines[line].hold_acknowledgements(true),
            Fault::Freeze(server) => self.servers[server].freeze(),
            Fault::Restart => {
                // What is in its queue would die with it.
                let _quiet = self.alerts.lock().unwrap();
                for server in [NEAR, FRAGILE] {
                    let empty = || self.servers[server].status("alerts").total == 0;
                    wait_within(OUTAGE, "all alerts have been taken", empty);
                }
                self.servers[FRAGILE].kill();
            }
            Fault::Reload => self.proxy.reload(&config(&self.lines, self.variant)),
            Fault::Change(variant) => {
                self.variant = variant;
                self.proxy.reload(&config(&self.lines, variant));
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(line) => self.lines[line].cut(),
            Fault::Refuse(line) => self.lines[line].refuse(false),
            Fault::HoldRequests(line) => self.lines[line].hold_requests(false),
            Fault::HoldReplies(line) => self.lines[line].hold_replies(false),
            Fault::HoldAcknowledgements(line) => self.lines[line].hold_acknowledgements(false),
            Fault::LoseRequests(line) => {
                self.lines[line].cut();
                self.lines[line].hold_requests(false);
            }
            Fault::LoseReplies(line) => {
                self.lines[line].cut();
                self.lines[line].hold_replies(false);
            }
            Fault::Freeze(server) => self.servers[server].thaw(),
            Fault::Restart => self.servers[FRAGILE].launch(),
            Fault::Reload | Fault::Change(_) => {}
        }
    }

    /// One or two faults at once, and the time until the next.
    fn disturb(&mut self, random: &mut Random, long: bool) -> Vec<Fault> {
        let mut faults = vec![Fault::choose(random)];
        let another = Fault::choose(random);
        if random.below(3) == 0 && another.goes_with(faults[0]) {
            faults.push(another);
        }
        let lasts = match random.below(24) {
            0 if long => Duration::from_secs(40),
            1 | 2 if long => Duration::from_secs(20),
            _ => Duration::from_millis(100 + random.below(2400) as u64),
        };
        for fault in &faults {
            self.begin(*fault);
        }
        thread::sleep(lasts);
        for fault in &faults {
            self.end(*fault);
        }
        thread::sleep(Duration::from_millis(300 + random.below(1200) as u64));
        faults
    }
}

/// What was submitted, as it should arrive.
#[derive(Default)]
struct Sent {
    good: Vec<Vec<u8>>,
    bad: Vec<Vec<u8>>,
}

/// Submits now a few jobs, now many, until it is told to finish.
fn submit(load: Load, address: SocketAddr, mut random: Random, gate: &Mutex<()>, finish: &AtomicBool) -> Sent {
    let mut sent = Sent::default();
    let mut client = Client::connect(address);
    let mut count = 0;
    while !finish.load(Ordering::SeqCst) {
        let open = gate.lock().unwrap();
        let jobs = match random.below(100) {
            0 => 300,
            1..=40 => 0,
            _ => random.below(8),
        };
        let mut anonymous = Vec::new();
        for _ in 0..jobs {
            count += 1;
            let is_nth = |every: Option<usize>| every.is_some_and(|every| count % every == 0);
            if is_nth(load.bad_every) {
                let bad = format!("%bad {count}").into_bytes();
                anonymous.push(bad.clone());
                sent.bad.push(bad);
                continue;
            }
            let padding = if is_nth(load.large_every) { LARGE_JOB } else { random.below(600) };
            // Only what stands for one text is the same for all that have it.
            let padding = if load.equal > 1 { 100 } else { padding };
            let number = count / load.equal;
            let text = format!("type={}\nresult_queue=far\nnumber={number}\n{}\n", load.queue, "x".repeat(padding));
            let data = (load.wrap)(text.as_bytes());
            if load.unique && count % 2 == 0 {
                client.submit_background(load.queue, format!("id {count}").as_bytes(), &data);
            } else {
                anonymous.push(data);
            }
            sent.good.push(text.into_bytes());
        }
        client.submit_all(load.queue, &anonymous);
        drop(open);
        thread::sleep(Duration::from_millis(20));
    }
    sent
}

/// The next packet, which the faults may keep back for a long time.
fn answer(client: &mut Client) -> Packet {
    let deadline = Instant::now() + LONGEST_ANSWER;
    while client.is_silent(Duration::from_secs(1)) {
        assert!(Instant::now() < deadline, "no answer within {LONGEST_ANSWER:?}");
    }
    client.receive()
}

/// Asks one question after the other until it is told to finish; returns how many were answered, and how many of these
/// with a failure.
fn ask(address: SocketAddr, name: usize, finish: &AtomicBool) -> (usize, usize) {
    let mut client = Client::connect(address);
    let (mut answered, mut failed) = (0, 0);
    while !finish.load(Ordering::SeqCst) {
        let question = format!("question {answered} of {name}");
        let handle = client.submit("command", b"", question.as_bytes());
        let packet = answer(&mut client);
        match packet.kind {
            WORK_COMPLETE => assert_eq!(packet.arguments(2), [&handle[..], format!("answer to {question}").as_bytes()]),
            WORK_FAIL => failed += 1,
            _ => panic!("{packet:?}"),
        }
        answered += 1;
        thread::sleep(Duration::from_millis(10));
    }
    (answered, failed)
}

/// Asks for the status again and again; returns how often.
fn ask_for_status(address: SocketAddr, finish: &AtomicBool) -> usize {
    let mut client = Client::connect(address);
    let mut count = 0;
    while !finish.load(Ordering::SeqCst) {
        client.submit_as(SUBMIT_JOB_HIGH, "proxy_status", b"check", b"check");
        let packet = answer(&mut client);
        assert_eq!(packet.kind, WORK_COMPLETE, "{packet:?}");
        let text = String::from_utf8(packet.after_handle().to_vec()).unwrap();
        let known = ["0:OK", "1:WARNING", "2:CRITICAL"].map(|state| format!("{state} - proxy version v"));
        assert!(known.iter().any(|begin| text.starts_with(begin)), "{text}");
        count += 1;
        thread::sleep(Duration::from_millis(200));
    }
    count
}

/// A worker that connects again and again to a server that comes and goes, until it is told to finish.
fn work(address: SocketAddr, queue: &str, finish: &AtomicBool, mut take: impl FnMut(Vec<u8>) -> Vec<u8>) {
    while !finish.load(Ordering::SeqCst) {
        // Its server was killed, or isn't there yet.
        let _ = work_once(address, queue, finish, &mut take);
        thread::sleep(Duration::from_millis(20));
    }
}

fn work_once(
    address: SocketAddr,
    queue: &str,
    finish: &AtomicBool,
    take: &mut impl FnMut(Vec<u8>) -> Vec<u8>,
) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_ref().set_nodelay(true)?;
    stream.get_mut().write_all(&request(CAN_DO, &[queue.as_bytes()]))?;
    while !finish.load(Ordering::SeqCst) {
        stream.get_mut().write_all(&request(GRAB_JOB_UNIQ, &[]))?;
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        stream.read_exact(&mut body)?;
        let packet = Packet { kind: word(4), body };
        match packet.kind {
            NO_JOB => thread::sleep(Duration::from_millis(10)),
            JOB_ASSIGN_UNIQ => {
                let arguments = packet.arguments(4);
                let result = take(arguments[3].to_vec());
                stream.get_mut().write_all(&request(WORK_COMPLETE, &[arguments[0], &result]))?;
            }
            _ => panic!("{packet:?}"),
        }
    }
    Ok(())
}

/// A job of the synchronous forward: most take a moment, some so long that a fault finds them running.
fn answer_question(question: &[u8], random: &mut Random) -> Vec<u8> {
    let takes = if random.below(20) == 0 { 1000 } else { random.below(30) };
    thread::sleep(Duration::from_millis(takes as u64));
    [b"answer to ", question].concat()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Tells threads to finish, also when the test fails and the scope waits for them.
struct Finish<'f>(&'f AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn under_mixed_load_and_faults_nothing_is_lost_or_grows() {
    let length = Duration::from_secs(number("GEARMAN_PROXY_SOAK_SECONDS").unwrap_or(20));
    let seed = number("GEARMAN_PROXY_SOAK_SEED").unwrap_or(1);
    let mut random = Random(seed);
    let mut soak = Soak::start();
    let pid = soak.proxy.pid();
    let at_start = soak.idle();
    println!("GEARMAN_PROXY_SOAK_SEED={seed}, idle at the start: {at_start}");

    let addresses = soak.servers.each_ref().map(Gearmand::address);
    let (alerts, none) = (Arc::clone(&soak.alerts), Mutex::new(()));
    let (load_finish, work_finish) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let mut faults = BTreeMap::<String, usize>::new();
    // At each tenth of the time.
    let mut figures = Vec::new();
    let (sent, alerts, questions, statuses) = thread::scope(|scope| {
        let _finish = [Finish(load_finish), Finish(work_finish)];
        let clients = LOADS.map(|load| {
            let gate = if is_kept(&load) { &none } else { &*alerts };
            let (random, finish) = (Random(random.next()), load_finish);
            scope.spawn(move || submit(load, addresses[load.from], random, gate, finish))
        });
        let askers: Vec<_> =
            (0..ASKING_CLIENTS).map(|name| scope.spawn(move || ask(addresses[NEAR], name, load_finish))).collect();
        let asker_for_status = scope.spawn(move || ask_for_status(addresses[NEAR], load_finish));
        for _ in 0..4 {
            let (mut random, finish) = (Random(random.next()), work_finish);
            scope.spawn(move || {
                work(addresses[FRAGILE], "command", finish, |data| answer_question(&data, &mut random));
            });
        }
        let taker = scope.spawn(move || {
            let mut received = Vec::new();
            work(addresses[FRAGILE], "alerts", work_finish, |data| {
                received.push(data);
                Vec::new()
            });
            received
        });

        let began = Instant::now();
        while began.elapsed() < length {
            for fault in soak.disturb(&mut random, length >= LONG_RUN) {
                *faults.entry(fault.name()).or_default() += 1;
            }
            if began.elapsed() >= length * (figures.len() as u32 + 1) / 10 {
                figures.push(Figures::of(pid));
                println!("after {} s: {}", began.elapsed().as_secs(), Figures::of(pid));
            }
        }
        load_finish.store(true, Ordering::SeqCst);
        soak.begin(Fault::Change(0));
        let sent = clients.map(join);
        let questions: Vec<_> = askers.into_iter().map(join).collect();
        let statuses = join(asker_for_status);
        for Load { queue, from, .. } in LOADS {
            let empty = || soak.servers[from].status(queue).total == 0;
            wait_within(OUTAGE, &format!("everything has left {queue}"), empty);
        }
        wait_within(OUTAGE, "all alerts are taken", || soak.servers[FRAGILE].status("alerts").total == 0);
        work_finish.store(true, Ordering::SeqCst);
        (sent, join(taker), questions, statuses)
    });

    soak.wait_for_forwards();
    wait_within(OUTAGE, "no forward is down, and nothing waits", || {
        let status = Status::ask(&soak.servers[NEAR], "proxy_status", "check");
        !status.message.contains("failed") && !status.message.contains("backlog")
    });
    let at_end = soak.idle();
    let (total, duplicates) = check_jobs(&soak, sent, alerts);
    let answered: usize = questions.iter().map(|(answered, _)| answered).sum();
    let failed: usize = questions.iter().map(|(_, failed)| failed).sum();
    let after_warm_up = figures[0];
    println!(
        "{total} jobs, {duplicates} of which came twice as their first copy had been worked off; {answered} answers, {failed} \
         of which were failures; {statuses} statuses; faults {faults:?}; start: {at_start}; after a tenth: {after_warm_up}; \
         end: {at_end}",
    );
    assert_eq!(at_end.counts(), at_start.counts(), "descriptors and threads, as before the load");
    assert!(
        at_end.own <= after_warm_up.own + MEMORY_MARGIN,
        "{} KiB of memory, {} after a tenth of the time",
        at_end.own,
        after_warm_up.own
    );
}

/// Panics unless what was sent is what has arrived. Returns how many jobs that were, and how many alerts came once more.
fn check_jobs(soak: &Soak, sent: [Sent; LOADS.len()], mut alerts: Vec<Vec<u8>>) -> (usize, usize) {
    alerts.sort();
    let with_duplicates = alerts.len();
    alerts.dedup();
    let duplicates = with_duplicates - alerts.len();
    let mut bad = soak.bad.clone();
    let mut total = bad.len();
    for (load, Sent { good, bad: some }) in LOADS.iter().zip(sent) {
        total += good.len() + some.len();
        bad.extend(some);
        println!("{}: {} jobs", load.queue, good.len());
        if is_kept(load) {
            let received = soak.servers[load.to].drain_data(load.queue);
            let received: Vec<_> = received.iter().map(|data| (load.unwrap)(data)).collect();
            assert_same_set(&good, &received);
        } else {
            assert_same_set(&good, &alerts);
        }
    }
    assert_same_set(&bad, &soak.servers[FAR].drain_data("rejected"));
    (total, duplicates)
}
