//! Real job servers.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Client, Folder, Job, PATIENCE, Worker, free_port, loopback, pause, signal};

/// A gearmand of the test's own, killed with it.
pub struct Gearmand {
    address: SocketAddr,
    options: Vec<String>,
    process: Option<Child>,
    /// One connection for all text commands: opening one for each costs a server more than answering them.
    admin: Mutex<Option<BufReader<TcpStream>>>,
    folder: Folder,
}

/// What a server's `status` says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queue {
    /// Jobs queued and running.
    pub total: usize,
    /// Jobs that a worker holds.
    pub running: usize,
    /// Workers that offer the function.
    pub workers: usize,
}

impl Gearmand {
    /// A running server on a free port.
    pub fn start() -> Gearmand {
        Gearmand::start_with(&[])
    }

    /// The same, with more options of gearmand.
    pub fn start_with(options: &[&str]) -> Gearmand {
        let mut server = Gearmand::down_with(options);
        server.launch();
        server
    }

    /// The same on an address of the caller's choice.
    pub fn start_on(ip: IpAddr) -> Gearmand {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut server = Gearmand::at(SocketAddr::new(ip, free_port(ip)), &[]);
            if server.try_launch() {
                return server;
            }
            assert!(Instant::now() < deadline, "gearmand found no free port on {ip}");
        }
    }

    /// A server that has an address but does not run yet: see [`Gearmand::launch`].
    pub fn down() -> Gearmand {
        Gearmand::down_with(&[])
    }

    fn down_with(options: &[&str]) -> Gearmand {
        let ip = loopback();
        Gearmand::at(SocketAddr::new(ip, free_port(ip)), options)
    }

    fn at(address: SocketAddr, options: &[&str]) -> Gearmand {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Gearmand { address, options, process: None, admin: Mutex::default(), folder: Folder::new() }
    }

    /// Starts a server that is down, on its old port.
    pub fn launch(&mut self) {
        assert!(self.try_launch(), "gearmand does not start on {}", self.address);
    }

    /// Whether it answers; not when another took the port first.
    fn try_launch(&mut self) -> bool {
        assert!(self.process.is_none(), "it runs already");
        skip_early_process_ids();
        let log = File::options().create(true).append(true).open(self.folder.file("log")).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new("gearmand")
            // Debian keeps it where only root's PATH looks.
            .env("PATH", format!("{path}:/usr/sbin"))
            .args(["--listen", &self.address.ip().to_string()])
            .args(["--port", &self.address.port().to_string()])
            .args(["--log-file", "stderr", "--threads", "1"])
            .arg("--pid-file")
            .arg(self.folder.file("pid"))
            .args(&self.options)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("gearmand runs (Debian: gearman-job-server)");
        let deadline = Instant::now() + PATIENCE;
        while self.try_ask("version").is_none() {
            if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
            pause();
        }
        self.process = Some(child);
        true
    }

    /// Kills it; its queues are gone, unless it was started with a persistent one.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// It accepts connections from now on, and never answers.
    pub fn freeze(&mut self) {
        let pid = self.process.as_ref().unwrap().id();
        signal(pid, "STOP");
        // The signal is sent by now; until each thread has it, the server may still answer.
        super::wait_for("each thread is stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap()).all(|stat| {
                let (_, behind_name) = stat.rsplit_once(") ").unwrap();
                behind_name.starts_with('T')
            })
        });
    }

    pub fn thaw(&mut self) {
        signal(self.process.as_ref().unwrap().id(), "CONT");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `HOST:PORT`, as it is written in a configuration.
    pub fn server(&self) -> String {
        self.address.to_string()
    }

    /// `HOST:PORT/QUEUE`, as it is written in a configuration.
    pub fn queue(&self, queue: &str) -> String {
        format!("{}/{queue}", self.address)
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    pub fn worker(&self, queue: &str) -> Worker {
        Worker::connect(self.address, &[queue])
    }

    /// Submits background jobs without unique ids, many at once.
    pub fn submit_all(&self, queue: &str, jobs: &[Vec<u8>]) {
        self.client().submit_all(queue, jobs);
    }

    /// Takes and completes all jobs that wait in a queue.
    pub fn drain(&self, queue: &str) -> Vec<Job> {
        let mut worker = self.worker(queue);
        std::iter::from_fn(|| {
            let job = worker.try_grab()?;
            worker.complete(&job, b"");
            Some(job)
        })
        .collect()
    }

    /// The data of [`Gearmand::drain`].
    pub fn drain_data(&self, queue: &str) -> Vec<Vec<u8>> {
        self.drain(queue).into_iter().map(|job| job.data).collect()
    }

    /// What `status` says of a queue; nothing at all of one that it does not know.
    pub fn status(&self, queue: &str) -> Queue {
        let text = self.try_ask("status").unwrap_or_else(|| panic!("no status from {}", self.address));
        for line in text.lines() {
            let mut fields = line.split('\t');
            if fields.next() == Some(queue) {
                let mut number = || fields.next().unwrap().parse().unwrap();
                return Queue { total: number(), running: number(), workers: number() };
            }
        }
        Queue::default()
    }

    /// Waits until a queue holds this many jobs, running ones counted in.
    #[track_caller]
    pub fn wait_for_jobs(&self, queue: &str, count: usize) {
        super::wait_until_equal(&format!("jobs in {}", self.queue(queue)), count, || self.status(queue).total);
    }

    /// Waits until this many workers offer a queue: a forward that takes from it is one.
    #[track_caller]
    pub fn wait_for_workers(&self, queue: &str, count: usize) {
        super::wait_until_equal(&format!("workers of {}", self.queue(queue)), count, || self.status(queue).workers);
    }

    /// The answer to a text command.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|| panic!("{} does not answer {command}", self.address))
    }

    fn try_ask(&self, command: &str) -> Option<String> {
        let mut admin = self.admin.lock().unwrap();
        // A connection of before a restart is dead without its fault.
        let kept = admin.take().and_then(|mut stream| Some((command_on(&mut stream, command)?, stream)));
        let (answer, stream) = kept.or_else(|| {
            let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut stream = BufReader::new(stream);
            Some((command_on(&mut stream, command)?, stream))
        })?;
        *admin = Some(stream);
        Some(answer)
    }

    fn admin_port(&self) -> Option<u16> {
        let admin = self.admin.lock().unwrap();
        Some(admin.as_ref()?.get_ref().local_addr().ok()?.port())
    }

    /// The client ports of the connections to it: as long as they are the same, none was closed and opened anew.
    pub fn connections(&self) -> Vec<u16> {
        let IpAddr::V4(ip) = self.address.ip() else { unimplemented!("only asked of IPv4 servers") };
        // As the kernel prints it: the address' bytes in the machine's order, in hex.
        let server = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), self.address.port());
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut ports: Vec<_> = table
            .lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields[2] == server && fields[3] == "01")
            .map(|fields| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
            .filter(|port| Some(*port) != self.admin_port())
            .collect();
        ports.sort();
        // The table is no snapshot: while sockets open, lines come twice.
        ports.dedup();
        ports
    }

    /// Waits until it has noticed that these connections (see [`Gearmand::connections`]) were closed, so that the jobs
    /// of their clients are dead and those of their workers queued again.
    #[track_caller]
    pub fn wait_until_closed(&self, connections: &[u16]) {
        super::wait_for("the connections are closed", || {
            let now = self.connections();
            connections.iter().all(|port| !now.contains(port))
        });
        // Handled by the same thread, behind the close.
        self.ask("status");
    }
}

/// The answer to a text command.
fn command_on(stream: &mut BufReader<TcpStream>, command: &str) -> Option<String> {
    stream.get_mut().write_all(format!("{command}\n").as_bytes()).ok()?;
    let mut answer = String::new();
    while stream.read_line(&mut answer).ok()? > 0 {
        let several_lines = matches!(command, "status" | "workers");
        if !several_lines || answer == ".\n" || answer.ends_with("\n.\n") {
            return Some(answer);
        }
    }
    None
}

/// A proxy trusts no job server's process id below 300, which a container that has just started gives out.
fn skip_early_process_ids() {
    loop {
        let mut child = Command::new("true").spawn().unwrap();
        let early = child.id() < 300;
        child.wait().unwrap();
        if !early {
            return;
        }
    }
}

impl Drop for Gearmand {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process
            && let Ok(Some(status)) = child.try_wait()
        {
            eprintln!("gearmand {} ended by itself: {status}", self.address);
        }
        self.kill();
        if std::thread::panicking() {
            let mut log = String::new();
            let _ = File::open(self.folder.file("log")).and_then(|mut file| file.read_to_string(&mut log));
            eprintln!("--- gearmand {}\n{log}", self.address);
        }
    }
}
