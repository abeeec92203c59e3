//! The programs under measurement: job servers and the proxy, and what /proc tells of them.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Linux counts CPU time in /proc/PID/stat in these, whatever its own timer does.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of a whole process, user and system. The sum over its threads is exact to nanoseconds but misses threads
/// that have ended; /proc/PID/stat misses none but is cut to ticks. Both are lower bounds, so the larger one is nearer.
pub fn cpu_time(pid: u32) -> Outcome<Duration> {
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since the folder was read.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        threads += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_nanos(threads).max(TICK * ticks as u32))
}

/// A value of /proc/PID/status in KiB: `VmRSS`, `VmHWM`.
pub fn memory(pid: u32, name: &str) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
    Ok(line.trim_matches(|byte: char| !byte.is_ascii_digit()).parse()?)
}

fn signal(pid: u32, name: &str) -> Outcome<()> {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status()?;
    if status.success() { Ok(()) } else { Err(format!("cannot send {name} to process {pid}").into()) }
}

/// A folder for configurations and logs that is removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Outcome<Folder> {
        let path = std::env::temp_dir().join(format!("gearman-proxy-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The size of a job server's hash tables. gearmand finds a job by its handle and by its unique id in chains of
/// `jobs / buckets` jobs each, so with its default of 991 a long queue makes the server slow, not the relay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    Default,
    Large,
}

/// A job server of our own on a free port of loopback.
pub struct Gearmand {
    child: Child,
    pub port: u16,
}

/// What the admin command `status` tells of all queues together.
#[derive(Clone, Copy, Default)]
pub struct Status {
    /// Waiting and running ones.
    pub jobs: u64,
    /// Queues that have a worker.
    pub served: usize,
}

impl Gearmand {
    pub fn start(folder: &Path, tables: Tables) -> Outcome<Gearmand> {
        // Between finding a free port and using it, somebody else may take it.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let child = Command::new("gearmand")
                .args(["--listen=127.0.0.1", "--verbose=ERROR"])
                .args((tables == Tables::Large).then_some("--hashtable-buckets=1000003"))
                .arg(format!("--port={port}"))
                .arg(format!("--pid-file={}", folder.join(format!("gearmand-{port}.pid")).display()))
                .arg(format!("--log-file={}", folder.join(format!("gearmand-{port}.log")).display()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| format!("cannot start gearmand: {error}"))?;
            let mut server = Gearmand { child, port };
            if server.answers()? {
                return Ok(server);
            }
        }
        Err("gearmand does not start".into())
    }

    /// Waits until the server answers, and not another one on its port; `false` when it has ended.
    fn answers(&mut self) -> Outcome<bool> {
        let give_up = Instant::now() + Duration::from_secs(20);
        while Instant::now() < give_up {
            if self.child.try_wait()?.is_some() {
                return Ok(false);
            }
            if let Ok(mut admin) = self.admin() {
                return Ok(admin.process_id().ok() == Some(self.child.id()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(format!("gearmand on port {} does not answer", self.port).into())
    }

    pub fn cpu_time(&self) -> Outcome<Duration> {
        cpu_time(self.child.id())
    }

    /// For an error message: how it ended, if it has.
    pub fn fate(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => format!("gearmand {} ended with {status}", self.child.id()),
            _ => format!("gearmand {} runs", self.child.id()),
        }
    }

    pub fn admin(&self) -> Outcome<Admin> {
        Admin::connect(self.port)
    }
}

impl Drop for Gearmand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection for text commands.
pub struct Admin {
    stream: BufReader<TcpStream>,
}

impl Admin {
    fn connect(port: u16) -> Outcome<Admin> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Admin { stream: BufReader::new(stream) })
    }

    fn process_id(&mut self) -> Outcome<u32> {
        self.stream.get_mut().write_all(b"getpid\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_start_matches("OK").trim().parse()?)
    }

    pub fn status(&mut self) -> Outcome<Status> {
        self.stream.get_mut().write_all(b"status\n")?;
        let mut sum = Status::default();
        let mut line = String::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err("the job server closed the admin connection".into());
            }
            if line.trim_end() == "." {
                return Ok(sum);
            }
            let mut numbers = line.trim_end().rsplit('\t').map(|field| field.parse::<u64>().unwrap_or(0));
            let workers = numbers.next().unwrap_or(0);
            sum.jobs += numbers.nth(1).unwrap_or(0);
            sum.served += usize::from(workers > 0);
        }
    }
}

/// What stands between two job servers: the proxy, the floor (see [`crate::floor`]), or a peer.
pub struct Relay {
    child: Child,
    configuration: PathBuf,
    log: PathBuf,
}

/// A relay as `gearman_proxy.pl` is: a worker's function that submits what it gets, with the modules that the script uses.
const PERL: &str = "use Gearman::Worker; use Gearman::Client; my ($from, $to, $queue) = @ARGV;
my $client = Gearman::Client->new(job_servers => [\"127.0.0.1:$to\"]);
my $worker = Gearman::Worker->new(job_servers => [\"127.0.0.1:$from\"]);
$worker->register_function($queue => sub { $client->dispatch_background($queue, $_[0]->arg); 1 });
$worker->work while 1;";

impl Relay {
    pub fn proxy(binary: &Path, folder: &Path, configuration: &str) -> Outcome<Relay> {
        let relay = |file: &Path| {
            let mut command = Command::new(binary);
            command.arg(format!("--config={}", file.display())).arg("--logfile=stderr");
            command
        };
        Relay::start(folder, configuration, relay)
    }

    pub fn floor(folder: &Path, source: u16, destination: u16, queue: &str) -> Outcome<Relay> {
        let floor = std::env::current_exe()?;
        Relay::start(folder, "", |_| {
            let mut command = Command::new(floor);
            command.args([crate::floor::ARGUMENT, &source.to_string(), &destination.to_string(), queue]);
            command
        })
    }

    pub fn perl(folder: &Path, source: u16, destination: u16, queue: &str) -> Outcome<Relay> {
        Relay::start(folder, "", |_| {
            let mut command = Command::new("perl");
            command.args(["-e", PERL, &source.to_string(), &destination.to_string(), queue]);
            command
        })
    }

    fn start(folder: &Path, configuration: &str, command: impl FnOnce(&Path) -> Command) -> Outcome<Relay> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = folder.join(format!("relay-{number}.conf"));
        let log = folder.join(format!("relay-{number}.log"));
        fs::write(&file, configuration)?;
        let output = fs::File::create(&log)?;
        let mut command = command(&file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn();
        let child = child.map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        Ok(Relay { child, configuration: file, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cpu_time(&self) -> Outcome<Duration> {
        cpu_time(self.pid())
    }

    /// Waits until `queues` queues of the source have a worker; how long it took.
    pub fn wait_ready(&mut self, source: &Gearmand, queues: usize) -> Outcome<Duration> {
        let begin = Instant::now();
        let mut admin = source.admin()?;
        loop {
            let served = admin.status()?.served;
            if served >= queues {
                return Ok(begin.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("it ended with {status}: {}", self.last_words()).into());
            }
            if begin.elapsed() > Duration::from_secs(60) {
                return Err(format!("{served} of {queues} queues served after 60 s: {}", self.last_words()).into());
            }
            thread::sleep(Duration::from_millis(if queues > 100 { 20 } else { 2 }));
        }
    }

    /// Stops it as a debugger would, so that its queues can be filled while it is connected and idle.
    pub fn freeze(&self) -> Outcome<()> {
        signal(self.pid(), "STOP")
    }

    pub fn thaw(&self) -> Outcome<()> {
        signal(self.pid(), "CONT")
    }

    pub fn reload(&self, configuration: &str) -> Outcome<()> {
        fs::write(&self.configuration, configuration)?;
        signal(self.pid(), "HUP")
    }

    /// Tells it to stop; how long it takes.
    pub fn stop(&mut self) -> Outcome<Duration> {
        let begin = Instant::now();
        signal(self.pid(), "TERM")?;
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > Duration::from_secs(60) {
                return Err(format!("it does not stop: {}", self.last_words()).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(begin.elapsed())
    }

    /// The end of its log, for an error message.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
