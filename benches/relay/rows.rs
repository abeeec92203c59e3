//! What is measured: a function for each row of the table, or a few rows that belong together.

pub mod compare;
mod sites;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use gearman_proxy::stages::cipher::Cipher;
use gearman_proxy::stages::{Limits, Scratch, Stages};

use crate::distance::Distance;
use crate::load::{self, Client, Load, Worker};
use crate::process::{self, Gearmand, Outcome, Proxy, Tables};
use crate::table::{Line, thousands};
use crate::wire;

type Row = fn(&mut Bench) -> Outcome<Vec<Line>>;

/// All rows by name, in the order of the table.
pub const ROWS: &[(&str, Row)] = &[
    ("limits", limits),
    ("loopback", loopback),
    ("stages", stages),
    ("distance", distances),
    ("synchronous", synchronous),
    ("latency", latency),
    ("sites", sites::row),
    ("trickle", trickle),
    ("idle", idle),
    ("forwards-idle", forwards_idle),
    ("forwards-busy", forwards_busy),
    ("large", large),
    ("fast", fast),
];

/// A job as small as most, bytes.
const SMALL: usize = 600;
const LARGE: usize = 8_000_000;
/// Jobs waiting at a source with small hash tables: so many that it gives a bare worker about 95,000 a second. Not fewer
/// in a quick run where a row stands beside that worker: the source would be another one.
const PILE: u64 = 200_000;

/// What every row needs.
pub struct Bench<'a> {
    proxy: PathBuf,
    folder: &'a Path,
    quick: bool,
    worker: Option<f64>,
    servers: Option<Servers>,
}

/// What the job servers do without a proxy, with large hash tables and small jobs, jobs a second.
#[derive(Clone, Copy)]
struct Servers {
    worker: f64,
    submissions: f64,
    both: f64,
}

impl<'a> Bench<'a> {
    pub fn new(proxy: PathBuf, folder: &'a Path, quick: bool) -> Bench<'a> {
        Bench { proxy, folder, quick, worker: None, servers: None }
    }

    fn runs(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    fn jobs(&self, count: u64) -> u64 {
        if self.quick { count / 2 } else { count }
    }

    fn gearmand(&self, tables: Tables) -> Outcome<Gearmand> {
        Gearmand::start(self.folder, tables)
    }

    fn start_proxy(&self, configuration: &str) -> Outcome<Proxy> {
        Proxy::start(&self.proxy, self.folder, configuration)
    }

    /// For sources with large hash tables, which give a bare worker 500,000 a second and more.
    fn many(&self) -> u64 {
        if self.quick { 100_000 } else { 400_000 }
    }

    /// What a source with small hash tables gives a bare worker, jobs a second.
    fn worker_once(&self) -> Outcome<f64> {
        let (source, queues, data, count) = (self.gearmand(Tables::Default)?, queues(1), small_jobs(), PILE);
        load::submit(source.port, &Load { queues: &queues, data: &data, unique: false, count })?;
        Ok(rate(count, load::drain(source.port, &queues[0], count, load::WINDOW)?))
    }

    fn worker(&mut self) -> Outcome<f64> {
        if let Some(worker) = self.worker {
            return Ok(worker);
        }
        let worker = median((0..self.runs()).map(|_| self.worker_once()).collect::<Outcome<Vec<_>>>()?);
        self.worker = Some(worker);
        Ok(worker)
    }

    fn servers(&mut self) -> Outcome<Servers> {
        if let Some(servers) = self.servers {
            return Ok(servers);
        }
        let count = self.many();
        let (queues, data) = (queues(1), small_jobs());
        // The proxy gives each job a unique id, so the submissions have one.
        let load = Load { queues: &queues, data: &data, unique: true, count };
        let (mut worker, mut submissions, mut both) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.runs() {
            let (source, destination) = (self.gearmand(Tables::Large)?, self.gearmand(Tables::Large)?);
            submissions.push(rate(count, load::submit(source.port, &load)?));
            worker.push(rate(count, load::drain(source.port, &queues[0], count, load::WINDOW)?));
            load::submit(source.port, &load)?;
            let begin = Instant::now();
            thread::scope(|scope| {
                let drain = scope.spawn(|| load::drain(source.port, &queues[0], count, load::WINDOW));
                load::submit(destination.port, &load)?;
                drain.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
            both.push(rate(count, begin.elapsed()));
        }
        let servers = Servers { worker: median(worker), submissions: median(submissions), both: median(both) };
        self.servers = Some(servers);
        Ok(servers)
    }
}

/// A queue or several of them emptied through the proxy.
#[derive(Clone, Copy)]
struct Transfer<'a> {
    forwards: usize,
    data: &'a [Vec<u8>],
    unique: bool,
    count: u64,
    source_tables: Tables,
    /// Lines under each forward of the configuration.
    options: &'a str,
    /// Round trips.
    to_destination: Duration,
    to_source: Duration,
}

struct Transferred {
    /// Jobs a second.
    rate: f64,
    /// Microseconds a job.
    proxy: f64,
    source: f64,
    destination: f64,
    /// Peak memory, KiB.
    peak: u64,
}

impl Transferred {
    fn note(&self) -> String {
        let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
        let busy = (self.proxy + self.source + self.destination) * self.rate / 1e6 / cores * 100.0;
        format!("source {:.1} µs, destination {:.1} µs a job; cores {busy:.0} % busy", self.source, self.destination)
    }

    /// A line without a verdict.
    fn line(&self, what: &str, limit_name: &str, limit: f64) -> Line {
        Line {
            what: what.to_owned(),
            measured: per_second(self.rate),
            limit: format!("{limit_name} {}", per_second(limit)),
            ratio: Some(self.rate / limit),
            cpu: Some(self.proxy),
            peak: Some(self.peak),
            note: self.note(),
            ..Line::default()
        }
    }
}

impl Default for Transfer<'_> {
    fn default() -> Self {
        Transfer {
            forwards: 1,
            data: &[],
            unique: false,
            count: 0,
            source_tables: Tables::Default,
            options: "",
            to_destination: Duration::ZERO,
            to_source: Duration::ZERO,
        }
    }
}

impl Transfer<'_> {
    fn run(&self, bench: &Bench) -> Outcome<Transferred> {
        self.run_and(bench, |_, _| Ok(()))
    }

    /// Calls `check` with the destination and the name of a queue at the end.
    fn run_and(&self, bench: &Bench, check: impl Fn(&Gearmand, &str) -> Outcome<()>) -> Outcome<Transferred> {
        let mut source = bench.gearmand(self.source_tables)?;
        let mut destination = bench.gearmand(Tables::Large)?;
        let source_line = line(&source, self.to_source)?;
        let destination_line = line(&destination, self.to_destination)?;
        let source_port = source_line.as_ref().map_or(source.port, |line| line.port);
        let destination_port = destination_line.as_ref().map_or(destination.port, |line| line.port);
        let queues = queues(self.forwards);
        let configuration = forwards(source_port, destination_port, &queues, self.options);
        let mut proxy = bench.start_proxy(&configuration)?;
        proxy.wait_ready(&source, self.forwards)?;

        proxy.freeze()?;
        let load = Load { queues: &queues, data: self.data, unique: self.unique, count: self.count };
        load::submit(source.port, &load)?;
        let mut before = [proxy.cpu_time()?, source.cpu_time()?, destination.cpu_time()?];
        proxy.thaw()?;
        let rate = wait_moved(&proxy, &source, &destination, self.count, self.forwards)
            .map_err(|error| format!("{error}; {}, {}", source.fate(), destination.fate()))?;
        let after = [proxy.cpu_time()?, source.cpu_time()?, destination.cpu_time()?];
        for (before, after) in before.iter_mut().zip(after) {
            *before = after.saturating_sub(*before);
        }
        let [proxy_cpu, source_cpu, destination_cpu] = before.map(|time| time.as_secs_f64() * 1e6 / self.count as f64);
        let peak = process::memory(proxy.pid(), "VmHWM")?;
        check(&destination, &queues[0])?;
        Ok(Transferred { rate, proxy: proxy_cpu, source: source_cpu, destination: destination_cpu, peak })
    }

    /// The run with the median rate of as many as a row takes.
    fn median(&self, bench: &Bench) -> Outcome<Transferred> {
        let mut runs = (0..bench.runs()).map(|_| self.run(bench)).collect::<Outcome<Vec<_>>>()?;
        Ok(middle(&mut runs))
    }
}

/// Waits until all jobs have come and nothing is left; the rate from the first sight of any, jobs a second.
fn wait_moved(proxy: &Proxy, source: &Gearmand, destination: &Gearmand, count: u64, forwards: usize) -> Outcome<f64> {
    let (mut near, mut far) = (source.admin()?, destination.admin()?);
    let pause = Duration::from_millis(if forwards > 100 { 25 } else { 5 });
    let mut first = None;
    let mut last = (0, Instant::now());
    loop {
        let moved = far.status()?.jobs;
        let now = Instant::now();
        if moved > 0 {
            first.get_or_insert((now, moved));
        }
        if moved > count {
            return Err(format!("{moved} jobs came of {count}").into());
        }
        if moved == count && near.status()?.jobs == 0 {
            let (begin, already) = first.unwrap_or((now, 0));
            return Ok(rate(count - already, begin.elapsed()));
        }
        if moved != last.0 {
            last = (moved, now);
        } else if last.1.elapsed() > Duration::from_secs(20) {
            let left = near.status()?.jobs;
            let words = proxy.last_words();
            return Err(format!("nothing moves: {moved} of {count} came, {left} are left: {words}").into());
        }
        thread::sleep(pause);
    }
}

fn line(server: &Gearmand, round_trip: Duration) -> Outcome<Option<Distance>> {
    Ok(if round_trip.is_zero() { None } else { Some(Distance::to(server.port, round_trip)?) })
}

fn queues(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("queue_{number}")).collect()
}

/// A configuration that forwards each queue under its own name.
fn forwards(source: u16, destination: u16, queues: &[String], options: &str) -> String {
    let forward = |queue: &String| format!("127.0.0.1:{source}/{queue} = 127.0.0.1:{destination}/{queue}\n{options}");
    queues.iter().map(forward).collect()
}

fn small_jobs() -> Vec<Vec<u8>> {
    (0..64u8).map(|number| vec![b'0' + number; SMALL]).collect()
}

fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

fn middle(runs: &mut Vec<Transferred>) -> Transferred {
    runs.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    runs.swap_remove(runs.len() / 2)
}

fn per_second(rate: f64) -> String {
    format!("{}/s", thousands(rate))
}

/// What a straightforward relay makes of two job servers.
fn limits(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let (source, destination) = (bench.gearmand(Tables::Default)?, bench.gearmand(Tables::Large)?);
    let (queues, data, count) = (queues(1), small_jobs(), bench.jobs(30_000));
    load::submit(source.port, &Load { queues: &queues, data: &data, unique: false, count })?;
    let naive = rate(count, load::relay_one_by_one(source.port, destination.port, &queues[0], count)?);
    let note = "within the benchmark, waiting for each reply".to_owned();
    Ok(vec![bare("one-at-a-time relay", naive, note)])
}

/// A line of what is measured without the proxy.
fn bare(what: &str, rate: f64, note: String) -> Line {
    Line { what: what.to_owned(), measured: per_second(rate), note, ..Line::default() }
}

/// The plain forward, in turn with a bare worker.
fn loopback(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let data = small_jobs();
    let transfer = Transfer { data: &data, count: PILE, ..Transfer::default() };
    let (mut workers, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs() {
        workers.push(bench.worker_once()?);
        runs.push(transfer.run(bench)?);
    }
    let (worker, run) = (median(workers), middle(&mut runs));
    bench.worker = Some(worker);
    let rate = Line {
        reach: "0.8 of it".to_owned(),
        met: Some(run.rate >= 0.8 * worker),
        ..run.line("loopback, plain", BARE_WORKER, worker)
    };
    let cpu = Line {
        what: "CPU of the proxy, plain".to_owned(),
        measured: format!("{:.2} µs a job", run.proxy),
        reach: "1.2 µs".to_owned(),
        met: Some(run.proxy <= 1.2),
        ..Line::default()
    };
    let note = format!("no proxy; {} waiting at first", thousands(PILE as f64));
    Ok(vec![bare("bare worker at the source", worker, note), rate, cpu])
}

const BARE_WORKER: &str = "bare worker";
const BOTH: &str = "both at once";

/// What the proxy does where its source's queue is no burden for that.
fn fast(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let servers = bench.servers()?;
    let mut lines: Vec<Line> = [
        ("bare worker", servers.worker),
        ("bare submissions to the destination", servers.submissions),
        ("both at once", servers.both),
    ]
    .map(|(what, rate)| bare(&format!("fast source: {what}"), rate, "no proxy".to_owned()))
    .into();
    let plain = small_jobs();
    let encrypted = Encrypted::new()?;
    let base = Transfer { data: &plain, count: bench.many(), source_tables: Tables::Large, ..Transfer::default() };
    let near = Duration::from_millis(20);
    for (what, transfer) in [
        ("plain", Transfer { ..base }),
        (
            "decrypt, callback, encrypt",
            Transfer { unique: true, data: &encrypted.jobs, options: &encrypted.options, ..base },
        ),
        ("20 ms to the destination", Transfer { to_destination: near, ..base }),
        ("20 ms to the source", Transfer { to_source: near, ..base }),
        ("10 busy forwards", Transfer { forwards: 10, ..base }),
        ("100 busy forwards", Transfer { forwards: 100, ..base }),
        ("1,000 busy forwards", Transfer { forwards: 1000, ..base }),
    ] {
        let run = transfer.median(bench)?;
        lines.push(run.line(&format!("fast source: {what}"), BOTH, servers.both));
    }
    Ok(lines)
}

/// Service checks as Mod-Gearman sends them, encrypted, 600 bytes each, and what is done to them.
struct Encrypted {
    jobs: Vec<Vec<u8>>,
    options: String,
}

const SOURCE_PASSWORD: &str = "the source's password";
const DESTINATION_PASSWORD: &str = "the destination's password";

impl Encrypted {
    fn new() -> Outcome<Encrypted> {
        let encrypt = Stages { encrypt: Some(Cipher::new(SOURCE_PASSWORD.as_bytes())), ..Stages::default() };
        let mut jobs = Vec::new();
        for number in 0..64 {
            let mut text = format!(
                "type=service\nresult_queue=check_results\ntarget_queue=hostgroup_network_b\nhost_name=switch-{number:03}\n\
                 service_description=Interface 1\nstart_time=1700000000.0\nnext_check=1700000000.0\ntimeout=60\n\
                 core_time=1700000000.123456\ncommand_line=/usr/lib/nagios/plugins/check_snmp -H 192.0.2.{number} -o"
            );
            // One length for all, which makes 600 bytes of base64.
            while text.len() < 440 {
                text.push_str(" .1.3.6.1.2.1.2.2.1.8");
            }
            text.truncate(440);
            text.push_str("\n\n\n");
            let mut scratch = Scratch::default();
            let job = encrypt
                .apply(text.as_bytes(), &mut scratch, &Limits::of_size(1 << 20))
                .map_err(|error| format!("{error:?}"))?;
            if job.data.len() != SMALL {
                return Err(format!("a job of {} bytes instead of {SMALL}", job.data.len()).into());
            }
            jobs.push(job.data.to_vec());
        }
        let options = format!(
            "    decrypt = {SOURCE_PASSWORD}\n    encrypt = {DESTINATION_PASSWORD}\n    \
             data_callback = s/^result_queue=.*$/result_queue=results_servicegroup_special/gm\n"
        );
        Ok(Encrypted { jobs, options })
    }

    /// Whether the stages have been applied to a job that arrived.
    fn check(destination: &Gearmand, queue: &str) -> Outcome<()> {
        let decrypt = Stages { decrypt: Some(Cipher::new(DESTINATION_PASSWORD.as_bytes())), ..Stages::default() };
        let job = load::take_one(destination.port, queue)?;
        let mut scratch = Scratch::default();
        let text =
            decrypt.apply(&job, &mut scratch, &Limits::of_size(1 << 20)).map_err(|error| format!("{error:?}"))?;
        let wanted = b"\nresult_queue=results_servicegroup_special\ntarget_queue=";
        let applied = text.data.windows(wanted.len()).any(|part| part == wanted);
        if applied { Ok(()) } else { Err("the callback has not been applied".into()) }
    }
}

fn stages(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let encrypted = Encrypted::new()?;
    let transfer = Transfer {
        data: &encrypted.jobs,
        unique: true,
        count: PILE,
        options: &encrypted.options,
        ..Transfer::default()
    };
    let worker = bench.worker()?;
    let runs = (0..bench.runs()).map(|_| transfer.run_and(bench, Encrypted::check));
    let run = middle(&mut runs.collect::<Outcome<Vec<_>>>()?);
    Ok(vec![Line {
        reach: "60,000/s, 4 µs".to_owned(),
        met: Some(run.rate >= 60_000.0 && run.proxy <= 4.0),
        ..run.line("decrypt, callback, encrypt", BARE_WORKER, worker)
    }])
}

/// A plain forward with one of its servers far away.
fn distances(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let data = small_jobs();
    let worker = bench.worker()?;
    let mut lines = Vec::new();
    for (milliseconds, count, needed) in [(20, PILE, 45_000.0), (200, bench.jobs(PILE / 2), 15_000.0)] {
        let far = Duration::from_millis(milliseconds);
        let base = Transfer { data: &data, count, ..Transfer::default() };
        for (side, transfer) in
            [("destination", Transfer { to_destination: far, ..base }), ("source", Transfer { to_source: far, ..base })]
        {
            let run = transfer.median(bench)?;
            lines.push(Line {
                reach: per_second(needed),
                met: Some(run.rate >= needed),
                ..run.line(&format!("{milliseconds} ms to the {side}"), BARE_WORKER, worker)
            });
        }
    }
    Ok(lines)
}

/// One request at a time through a synchronous forward, and the same request to the destination directly.
fn synchronous(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let mut lines = Vec::new();
    for (round_trip, count) in [(0, bench.jobs(3000)), (20, bench.jobs(100))] {
        let queue = &queues(1)[0];
        let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
        let _worker = Worker::start(destination.port, queue, |data| Ok(data.to_vec()))?;
        let far = line(&destination, Duration::from_millis(round_trip))?;
        let port = far.as_ref().map_or(destination.port, |line| line.port);
        let direct = ask(port, queue, count)?;
        let bare = {
            let (mut client, name) = (Client::open(port)?, queue.clone());
            let _relay = Worker::start(source.port, queue, move |data| client.ask(&name, data))?;
            ask(source.port, queue, count)?
        };
        let options = "    async = 0\n    worker = 1\n";
        let mut proxy = bench.start_proxy(&forwards(source.port, port, &queues(1), options))?;
        proxy.wait_ready(&source, 1)?;
        let before = proxy.cpu_time()?;
        let relayed = ask(source.port, queue, count)?;
        let cpu = proxy.cpu_time()?.saturating_sub(before);
        let ratio = relayed / direct;
        lines.push(Line {
            what: format!("synchronous, one worker, {round_trip} ms"),
            measured: format!("{relayed:.3} ms"),
            limit: format!("direct {direct:.3} ms"),
            ratio: Some(ratio),
            reach: if round_trip > 0 { "1.3".to_owned() } else { String::new() },
            met: (round_trip > 0).then_some(ratio <= 1.3),
            cpu: Some(cpu.as_secs_f64() * 1e6 / (count + WARM) as f64),
            peak: Some(process::memory(proxy.pid(), "VmHWM")?),
            note: format!("a bare relay in the proxy's place: {bare:.3} ms"),
        });
    }
    Ok(lines)
}

/// The median time of a request through a synchronous forward, milliseconds.
fn ask_through(bench: &Bench, count: u64) -> Outcome<f64> {
    let queue = &queues(1)[0];
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let _worker = Worker::start(destination.port, queue, |data| Ok(data.to_vec()))?;
    let options = "    async = 0\n    worker = 1\n";
    let mut proxy = bench.start_proxy(&forwards(source.port, destination.port, &queues(1), options))?;
    proxy.wait_ready(&source, 1)?;
    ask(source.port, queue, count)
}

/// Requests before those that are timed.
const WARM: u64 = 5;

/// The median time of a request, milliseconds.
fn ask(port: u16, queue: &str, count: u64) -> Outcome<f64> {
    let mut client = Client::open(port)?;
    let data = &small_jobs()[0];
    let mut times = Vec::new();
    for number in 0..count + WARM {
        let begin = Instant::now();
        if client.ask(queue, data)? != *data {
            return Err("another result than the job's data".into());
        }
        if number >= WARM {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(median(times))
}

/// One job through an idle asynchronous forward, from its submission until a worker at the destination has it.
fn latency(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let queue = &queues(1)[0];
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let worker = Worker::start(destination.port, queue, |_| Ok(Vec::new()))?;
    let count = bench.jobs(1000);
    let direct = submit_and_see(destination.port, queue, &worker, count)?;
    let bare = {
        let (mut client, name) = (Client::open(destination.port)?, queue.clone());
        let submit = move |data: &[u8]| client.submit(&name, data).map(|()| Vec::new());
        let _relay = Worker::start(source.port, queue, submit)?;
        submit_and_see(source.port, queue, &worker, count)?
    };
    let mut proxy = bench.start_proxy(&forwards(source.port, destination.port, &queues(1), ""))?;
    proxy.wait_ready(&source, 1)?;
    let before = proxy.cpu_time()?;
    let relayed = submit_and_see(source.port, queue, &worker, count)?;
    let cpu = proxy.cpu_time()?.saturating_sub(before);
    Ok(vec![Line {
        what: "latency of one job, idle forward".to_owned(),
        measured: format!("{:.3} ms", relayed[0]),
        limit: format!("direct {:.3} ms", direct[0]),
        ratio: Some(relayed[0] / direct[0]),
        reach: "0.3 ms".to_owned(),
        met: Some(relayed[0] < 0.3),
        cpu: Some(cpu.as_secs_f64() * 1e6 / count as f64),
        peak: Some(process::memory(proxy.pid(), "VmHWM")?),
        note: format!(
            "a bare relay in the proxy's place: {:.3} ms; 99 of 100 under {:.3} ms (direct {:.3} ms)",
            bare[0], relayed[1], direct[1]
        ),
    }])
}

/// The median and the 99th percentile of the time from submission to arrival, milliseconds.
fn submit_and_see(port: u16, queue: &str, worker: &Worker, count: u64) -> Outcome<[f64; 2]> {
    let mut client = Client::open(port)?;
    let data = &small_jobs()[0];
    let mut times = Vec::new();
    for number in 0..count {
        // Pauses of changing length, in which everything falls asleep.
        thread::sleep(Duration::from_micros(2000 + number * 7919 % 1000));
        let begin = Instant::now();
        client.submit(queue, data)?;
        let arrival = worker.arrivals.recv_timeout(Duration::from_secs(10))?;
        times.push(arrival.saturating_duration_since(begin).as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).copied().unwrap_or(0.0);
    Ok([at(0.5), at(0.99)])
}

/// What a trickle of single jobs costs the source, beside what a plain worker costs it.
fn trickle(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let queue = &queues(1)[0];
    let count = if bench.quick { 200 } else { 600 };
    let (mut alone, mut plain, mut relayed, mut own) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs() {
        let source = bench.gearmand(Tables::Large)?;
        alone.push(trickle_cost(&source, queue, count)?);

        let source = bench.gearmand(Tables::Large)?;
        let _worker = Worker::start(source.port, queue, |_| Ok(Vec::new()))?;
        plain.push(trickle_cost(&source, queue, count)?);

        let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
        let mut proxy = bench.start_proxy(&forwards(source.port, destination.port, &queues(1), ""))?;
        proxy.wait_ready(&source, 1)?;
        let before = proxy.cpu_time()?;
        relayed.push(trickle_cost(&source, queue, count)?);
        own.push(proxy.cpu_time()?.saturating_sub(before).as_secs_f64() * 1e6 / count as f64);
    }
    let alone = median(alone);
    let (plain, relayed) = (median(plain) - alone, median(relayed) - alone);
    Ok(vec![Line {
        what: "one job at a time, 200/s: source's CPU".to_owned(),
        measured: format!("{relayed:.0} µs a job"),
        limit: format!("plain worker {plain:.0} µs"),
        ratio: Some(relayed / plain),
        reach: "2".to_owned(),
        met: Some(relayed <= 2.0 * plain),
        cpu: Some(median(own)),
        note: format!("without the {alone:.0} µs that a submission costs by itself"),
        ..Line::default()
    }])
}

/// The source's CPU time for each of `count` jobs, one every 5 ms, microseconds.
fn trickle_cost(source: &Gearmand, queue: &str, count: u64) -> Outcome<f64> {
    let mut client = Client::open(source.port)?;
    let data = &small_jobs()[0];
    let (begin, before) = (Instant::now(), source.cpu_time()?);
    for number in 0..count {
        thread::sleep((begin + Duration::from_millis(5 * number)).saturating_duration_since(Instant::now()));
        client.submit(queue, data)?;
    }
    thread::sleep(Duration::from_millis(20));
    Ok((source.cpu_time()?.saturating_sub(before)).as_secs_f64() * 1e6 / count as f64)
}

/// A forward without jobs: what it sends, what it holds, what it burns.
fn idle(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let watched = Duration::from_secs(if bench.quick { 4 } else { 62 });
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let (near, far) = (Distance::tapped(source.port)?, Distance::tapped(destination.port)?);
    let mut proxy = bench.start_proxy(&forwards(near.port, far.port, &queues(1), ""))?;
    proxy.wait_ready(&source, 1)?;
    thread::sleep(Duration::from_secs(1));
    near.take();
    far.take();
    let before = proxy.cpu_time()?;
    thread::sleep(watched);
    let cpu = proxy.cpu_time()?.saturating_sub(before);
    let (to_source, to_destination) = (packets(&near.take()), packets(&far.take()));
    // One probe in 30 s: a grab and, when it was in vain, a PRE_SLEEP.
    let probes = watched.as_secs().div_ceil(30);
    let is_probe = |kind: &u32| [wire::GRAB_JOB_UNIQ, wire::PRE_SLEEP].contains(kind);
    let quiet = to_destination.is_empty() && to_source.iter().all(is_probe) && to_source.len() as u64 <= 2 * probes;
    let sent = Line {
        what: "one idle forward: packets sent".to_owned(),
        measured: format!("{} in {} s", to_source.len() + to_destination.len(), watched.as_secs()),
        reach: "its probe".to_owned(),
        met: Some(quiet),
        note: format!(
            "types {to_source:?} to the source, {to_destination:?} to the destination; {:.3} % CPU",
            cpu.as_secs_f64() / watched.as_secs_f64() * 100.0
        ),
        ..Line::default()
    };
    let resident = process::memory(proxy.pid(), "VmRSS")?;
    let memory = Line {
        what: "one idle forward: memory".to_owned(),
        measured: format!("{:.1} MiB", resident as f64 / 1024.0),
        reach: "4 MiB".to_owned(),
        met: Some(resident <= 4 << 10),
        peak: Some(process::memory(proxy.pid(), "VmHWM")?),
        ..Line::default()
    };
    Ok(vec![sent, memory])
}

/// The types of the packets in `bytes`.
fn packets(mut bytes: &[u8]) -> Vec<u32> {
    let mut types = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<12>() {
        let [_, _, _, _, t0, t1, t2, t3, l0, l1, l2, l3] = *header;
        types.push(u32::from_be_bytes([t0, t1, t2, t3]));
        bytes = rest.get(u32::from_be_bytes([l0, l1, l2, l3]) as usize..).unwrap_or_default();
    }
    types
}

/// A thousand forwards without jobs.
fn forwards_idle(bench: &mut Bench) -> Outcome<Vec<Line>> {
    const COUNT: usize = 1000;
    let watched = Duration::from_secs(if bench.quick { 3 } else { 10 });
    let (source, destination) = (bench.gearmand(Tables::Large)?, bench.gearmand(Tables::Large)?);
    let configuration = forwards(source.port, destination.port, &queues(COUNT), "");
    let begin = Instant::now();
    let mut proxy = bench.start_proxy(&configuration)?;
    proxy.wait_ready(&source, COUNT)?;
    let ready = begin.elapsed().as_secs_f64();
    let starting = proxy.cpu_time()?.as_secs_f64();
    thread::sleep(Duration::from_secs(1));
    let before = proxy.cpu_time()?;
    thread::sleep(watched);
    let load = proxy.cpu_time()?.saturating_sub(before).as_secs_f64() / watched.as_secs_f64() * 100.0;
    let (resident, peak) = (process::memory(proxy.pid(), "VmRSS")?, process::memory(proxy.pid(), "VmHWM")?);
    let mib = resident as f64 / 1024.0;
    let line = |what: &str, measured: String, reach: &str, met: bool| Line {
        what: format!("1,000 forwards: {what}"),
        measured,
        reach: reach.to_owned(),
        met: Some(met),
        ..Line::default()
    };
    Ok(vec![
        Line { note: format!("{starting:.2} s of CPU"), ..line("ready", format!("{ready:.2} s"), "2 s", ready <= 2.0) },
        Line { peak: Some(peak), ..line("memory", format!("{mib:.1} MiB"), "64 MiB", peak <= 64 << 10) },
        line("CPU when idle", format!("{load:.2} %"), "1 %", load < 1.0),
    ])
}

/// The same number of jobs over ever more forwards.
fn forwards_busy(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let data = small_jobs();
    let mut lines: Vec<Line> = Vec::new();
    let mut one = None;
    for forwards in [1, 10, 100, 1000] {
        let transfer = Transfer { forwards, data: &data, count: bench.jobs(PILE), ..Transfer::default() };
        let run = transfer.median(bench)?;
        let first = *one.get_or_insert(run.rate);
        let many = forwards > 1;
        lines.push(Line {
            what: format!("{} busy forwards", thousands(forwards as f64)),
            measured: per_second(run.rate),
            limit: if many { format!("one {}", per_second(first)) } else { String::new() },
            ratio: many.then_some(run.rate / first),
            reach: if many { "0.8 of it".to_owned() } else { String::new() },
            met: many.then_some(run.rate >= 0.8 * first),
            cpu: Some(run.proxy),
            peak: Some(run.peak),
            note: run.note(),
        });
    }
    Ok(lines)
}

/// Jobs of 8 MB.
fn large(bench: &mut Bench) -> Outcome<Vec<Line>> {
    let (queues, data) = (queues(1), vec![vec![b'x'; LARGE]]);
    let count = if bench.quick { 40 } else { 100 };
    let transfer = Transfer { data: &data, count, source_tables: Tables::Large, ..Transfer::default() };
    let (mut workers, mut submissions, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    let megabytes = |rate: f64| rate * LARGE as f64 / 1e6;
    for _ in 0..bench.runs() {
        let source = bench.gearmand(Tables::Large)?;
        let load = Load { queues: &queues, data: &data, unique: true, count };
        submissions.push(megabytes(rate(count, load::submit(source.port, &load)?)));
        workers.push(megabytes(rate(count, load::drain(source.port, &queues[0], count, 2)?)));
        drop(source);
        runs.push(transfer.run(bench)?);
    }
    let (worker, run) = (median(workers), middle(&mut runs));
    let speed = megabytes(run.rate);
    Ok(vec![Line {
        what: "8 MB jobs".to_owned(),
        measured: format!("{} MB/s", thousands(speed)),
        limit: format!("bare worker {} MB/s", thousands(worker)),
        ratio: Some(speed / worker),
        reach: "500 MB/s, 64 MiB".to_owned(),
        met: Some(speed >= 500.0 && run.peak <= 64 << 10),
        cpu: Some(run.proxy),
        peak: Some(run.peak),
        note: format!("bare submissions {} MB/s; {}", thousands(median(submissions)), run.note()),
    }])
}
