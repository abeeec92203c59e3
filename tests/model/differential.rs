//! The model against a real gearmand: random sequences of client and worker packets bring the same answers, byte for
//! byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::book::{HANDLE_PREFIX, Sequence};
use crate::faults::Trouble;
use crate::random::Random;
use crate::server::Server;
use crate::wire::*;

struct Gearmand {
    process: Child,
    address: SocketAddr,
}

impl Gearmand {
    fn start() -> Gearmand {
        for _ in 0..20 {
            // Somebody may take the port between these two lines; then the next one is tried.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let process = Command::new("gearmand")
                .args(["--listen=127.0.0.1", &format!("--port={port}"), "--log-file=none"])
                .arg(format!("--job-handle-prefix={HANDLE_PREFIX}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("gearmand is needed for this test");
            let mut gearmand = Gearmand { process, address: SocketAddr::from(([127, 0, 0, 1], port)) };
            let give_up = Instant::now() + Duration::from_secs(10);
            while Instant::now() < give_up && gearmand.process.try_wait().unwrap().is_none() {
                if gearmand.answers_for_itself() {
                    return gearmand;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        panic!("gearmand does not start");
    }

    fn answers_for_itself(&self) -> bool {
        let Ok(stream) = TcpStream::connect(self.address) else { return false };
        let mut peer = Peer::over(stream);
        let line = peer.ask_line(b"getpid\n");
        line == Some(format!("OK {}", self.process.id()).into_bytes())
    }
}

impl Drop for Gearmand {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One connection to either server.
struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

impl Peer {
    fn over(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Peer { stream, decoder: Decoder::default() }
    }

    fn send(&mut self, bytes: &[u8]) {
        // A server that closed the connection is seen when reading.
        let _ = self.stream.write_all(bytes);
    }

    /// None: the connection is closed.
    fn receive(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.next() {
                return Some(message);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(got) => self.decoder.feed(&buffer[..got]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn ask_line(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        self.send(command);
        match self.receive()? {
            Message::Line(line) => Some(line),
            other => panic!("{other:?} for a text command"),
        }
    }

    /// What came before the answer to an ECHO_REQ sent now.
    fn until_echo(&mut self, token: &[u8]) -> (Vec<Message>, bool) {
        self.send(&request(ECHO_REQ, &[token]));
        let mut before = Vec::new();
        let answer = Message::Response(Packet { kind: ECHO_RES, body: token.to_vec() });
        loop {
            match self.receive() {
                None => return (before, true),
                Some(message) if message == answer => return (before, false),
                Some(message) => before.push(message),
            }
        }
    }
}

/// Plays a script on one server. What each step brought to each connection is the outcome.
struct Player {
    address: SocketAddr,
    peers: Vec<Option<Peer>>,
    control: Peer,
    step: usize,
    outcome: Vec<String>,
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize, Vec<u8>),
    Close(usize, Close),
}

#[derive(Debug, Clone, Copy)]
enum Close {
    Whole,
    OurHalf,
    /// The server's answer to nonsense.
    ByServer,
}

impl Player {
    fn new(address: SocketAddr, connections: usize) -> Player {
        let control = Peer::over(TcpStream::connect(address).unwrap());
        let mut player = Player { address, peers: Vec::new(), control, step: 0, outcome: Vec::new() };
        player.peers = (0..connections).map(|_| Some(player.connect())).collect();
        player
    }

    fn connect(&self) -> Peer {
        Peer::over(TcpStream::connect(self.address).unwrap())
    }

    fn play(&mut self, step: &Step) {
        self.step += 1;
        match step {
            Step::Send(peer, bytes) => self.peers[*peer].as_mut().unwrap().send(bytes),
            Step::Close(peer, how) => {
                // Its marker ability leaves the status lines when the server is through with the connection.
                let marker = format!("marker-{}", self.step);
                let mut closing = self.peers[*peer].take().unwrap();
                closing.send(&request(CAN_DO, &[marker.as_bytes()]));
                let (before, _) = closing.until_echo(b"last words");
                self.note(*peer, &before);
                match how {
                    Close::Whole => closing.stream.shutdown(Shutdown::Both).unwrap(),
                    Close::OurHalf => closing.stream.shutdown(Shutdown::Write).unwrap(),
                    Close::ByServer => closing.send(b"\0BADnonsense!"),
                }
                self.wait_for_status(&format!("{marker}\t0\t0\t0"));
                drop(closing);
                self.peers[*peer] = Some(self.connect());
            }
        }
        // The acting peer's answer says that the step is executed; after that, whatever it brought about for the others
        // stands before theirs.
        let token = format!("step {}", self.step).into_bytes();
        let (Step::Send(acting, _) | Step::Close(acting, _)) = *step;
        let others = (0..self.peers.len()).filter(|index| *index != acting);
        for index in std::iter::once(acting).chain(others) {
            let (messages, closed) = self.peers[index].as_mut().unwrap().until_echo(&token);
            self.note(index, &messages);
            if closed {
                self.outcome.push(format!("{}: {index} closed", self.step));
                self.peers[index] = Some(self.connect());
            }
        }
        let status = self.status();
        self.outcome.push(format!("{}: status {status:?}", self.step));
    }

    fn note(&mut self, peer: usize, messages: &[Message]) {
        for message in messages {
            self.outcome.push(format!("{}: {peer} got {message:?}", self.step));
        }
    }

    fn status(&mut self) -> Vec<String> {
        self.control.send(b"status\n");
        let mut lines = Vec::new();
        loop {
            match self.control.receive() {
                Some(Message::Line(line)) if line == b"." => break,
                Some(Message::Line(line)) => lines.push(String::from_utf8(line).unwrap()),
                other => panic!("{other:?} for status"),
            }
        }
        lines.retain(|line| !line.starts_with("marker-"));
        lines.sort();
        lines
    }

    fn wait_for_status(&mut self, wanted: &str) {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            self.control.send(b"status\n");
            let mut found = false;
            loop {
                match self.control.receive() {
                    Some(Message::Line(line)) if line == b"." => break,
                    Some(Message::Line(line)) => found |= line == wanted.as_bytes(),
                    other => panic!("{other:?} for status"),
                }
            }
            if found {
                return;
            }
            assert!(Instant::now() < give_up, "the server does not let go of a closed connection");
        }
    }
}

const FUNCTIONS: [&[u8]; 2] = [b"alpha", b"beta"];

fn unique(random: &mut Random) -> Vec<u8> {
    match random.range(0, 11) {
        0..=3 => Vec::new(),
        4..=6 => format!("id{}", random.range(1, 3)).into_bytes(),
        7 | 8 => b"-".to_vec(),
        9 => vec![b'u'; 63],
        10 => vec![b'u'; 64],
        _ => vec![b'u'; 65],
    }
}

fn packet(random: &mut Random, next_handle: u64) -> Vec<u8> {
    let function = *random.pick(&FUNCTIONS);
    let handle = format!("{HANDLE_PREFIX}:{}", random.range(next_handle.saturating_sub(8).max(1), next_handle + 1));
    let handle = handle.as_bytes();
    let data = format!("data{}", random.range(1, 4)).into_bytes();
    match random.range(0, 40) {
        0..=4 => request(SUBMIT_JOB_BG, &[function, &unique(random), &data]),
        5 => request(SUBMIT_JOB_HIGH_BG, &[function, &unique(random), &data]),
        6 => request(SUBMIT_JOB_LOW_BG, &[function, &unique(random), &data]),
        7 | 8 => request(SUBMIT_JOB, &[function, &unique(random), &data]),
        9 => request(SUBMIT_JOB_HIGH, &[function, &unique(random), b""]),
        10 => request(SUBMIT_JOB_LOW, &[function, &unique(random), &data]),
        11 => {
            let when: &[u8] = if random.one_in(2) { b"1" } else { b"99999999999" };
            request(SUBMIT_JOB_EPOCH, &[function, &unique(random), when, &data])
        }
        12..=15 => request(CAN_DO, &[function]),
        16 => request(CANT_DO, &[function]),
        17 => request(RESET_ABILITIES, &[]),
        18..=22 => request(GRAB_JOB_UNIQ, &[]),
        23 => request(GRAB_JOB, &[]),
        24 | 25 => request(PRE_SLEEP, &[]),
        26..=28 => request(WORK_COMPLETE, &[handle, &data]),
        29 => request(WORK_FAIL, &[handle]),
        30 => request(WORK_DATA, &[handle, &data]),
        31 => request(WORK_WARNING, &[handle, &data]),
        32 => request(WORK_STATUS, &[handle, b"3", b"7"]),
        33 => request(GET_STATUS, &[handle]),
        34 => request(OPTION_REQ, &[*random.pick(&[b"exceptions".as_slice(), b"nonsense"])]),
        35 => request(SET_CLIENT_ID, &[b"somebody"]),
        36 => [b"maxqueue ", function, format!(" {}\n", random.range(0, 6)).as_bytes()].concat(),
        37 => b"nonsense\n".to_vec(),
        38 => request(CAN_DO_TIMEOUT, &[function, b"0"]),
        39 => request(WORK_EXCEPTION, &[handle, &data]),
        _ if random.one_in(2) => response(WORK_COMPLETE, &[handle, &data]),
        _ => request(NO_JOB, &[]),
    }
}

fn script(seed: u64) -> Vec<Step> {
    const CONNECTIONS: usize = 4;
    let mut random = Random::new(seed);
    let mut handles = 1;
    (0..random.range(20, 90))
        .map(|_| {
            let peer = random.range(0, CONNECTIONS as u64 - 1) as usize;
            if random.one_in(15) {
                return Step::Close(peer, *random.pick(&[Close::Whole, Close::OurHalf, Close::ByServer]));
            }
            let pipelined = *random.pick(&[1, 1, 1, 2, 6]);
            handles += pipelined / 2 + 1;
            Step::Send(peer, burst(&mut random, pipelined, handles / 2))
        })
        .collect()
}

/// Packets to be sent at once. A job that is ended before gearmand has written its assignment is freed under the hands of
/// the thread that writes, and garbage comes; nobody can know a handle that early, but here it may be guessed.
fn burst(random: &mut Random, length: u64, next_handle: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut grabbed = false;
    for _ in 0..length {
        let packet = packet(random, next_handle);
        let kind = u32::from_be_bytes(packet[4..8].try_into().unwrap());
        grabbed |= matches!(kind, GRAB_JOB | GRAB_JOB_UNIQ);
        if !(grabbed && matches!(kind, WORK_COMPLETE | WORK_FAIL | WORK_EXCEPTION)) {
            bytes.extend(packet);
        }
    }
    bytes
}

fn outcome(address: SocketAddr, script: &[Step]) -> Vec<String> {
    let mut player = Player::new(address, 4);
    for step in script {
        player.play(step);
    }
    player.outcome
}

/// A fresh pair of servers for each script: handles and functions are part of what is compared.
pub fn compare() {
    let seeds = match crate::variable("MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..crate::variable("MODEL_SCHEDULES").unwrap_or(2000).div_ceil(15),
    };
    for seed in seeds {
        let script = script(seed);
        let gearmand = Gearmand::start();
        let real = outcome(gearmand.address, &script);
        let server = Server::start(Sequence::default(), 4711, seed, Trouble::default());
        let model = outcome(server.address(), &script);
        if let Some(at) = (0..real.len().max(model.len())).find(|at| real.get(*at) != model.get(*at)) {
            let step = |line: &String| line.split(':').next().and_then(|step| step.parse::<usize>().ok());
            let differing = real.get(at).or(model.get(at)).and_then(step).unwrap_or(0);
            let of_step = |outcome: &[String]| {
                outcome.iter().filter(|line| step(line) == Some(differing)).cloned().collect::<Vec<_>>()
            };
            panic!(
                "MODEL_SEED={seed}: after {:#?}\ngearmand did {:#?}\nthe model {:#?}",
                script[..differing].iter().map(show).collect::<Vec<_>>(),
                of_step(&real),
                of_step(&model),
            );
        }
    }
}

fn show(step: &Step) -> String {
    match step {
        Step::Send(peer, bytes) => format!("{peer} {}", bytes.escape_ascii()),
        Step::Close(peer, how) => format!("{peer} closes: {how:?}"),
    }
}
