//! The model on real sockets: a listener, two threads a connection, and the faults.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::book::{After, Book, ConnectionId, Sequence};
use crate::faults::{Cut, Fate, Hostility, Trouble};
use crate::random::Random;
use crate::wire::{Decoder, Message};

/// A job server of a test. Ends, with all its threads and sockets, when dropped.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    address: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    /// No fault happens any more, and those under way end.
    calm: AtomicBool,
    accepted: AtomicU64,
    seed: u64,
    trouble: Trouble,
    /// What every connection meets until calm comes; without it the seed decides.
    fate: Option<Fate>,
}

struct State {
    book: Book,
    live: HashMap<ConnectionId, Live>,
    /// Nothing is read or sent, like a stopped process: the kernel still accepts and takes bytes.
    frozen: bool,
    /// The listener is to end.
    closing: bool,
    /// What virtual connections, those without a socket, were sent.
    inboxes: HashMap<ConnectionId, Vec<Message>>,
    threads: Vec<JoinHandle<()>>,
}

struct Live {
    stream: TcpStream,
    sender: Sender<Vec<u8>>,
    /// A stall of the reading side is under way: the server can't know that the peer has closed.
    stalled: bool,
}

/// Stalls, pauses and freezes are waited out in steps no longer than this, so that they end when calm comes.
const STEP: Duration = Duration::from_millis(20);
const STACK: usize = 128 << 10;

/// Addresses nobody else uses: a server that is away for a while must find its port again, and a port of 127.0.0.1 might
/// meanwhile be anybody's.
fn own_address() -> IpAddr {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = std::process::id();
    let next = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
    let [_, _, high, low] = next.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 1 + (process % 250) as u8, high, low.max(1)))
}

impl Server {
    /// A server that makes trouble by seed.
    pub fn start(sequence: Sequence, process_id: u32, seed: u64, trouble: Trouble) -> Server {
        Server::with_fate(sequence, process_id, seed, trouble, None)
    }

    /// A server all of whose connections go the same way.
    pub fn fated(fate: Fate) -> Server {
        Server::with_fate(Sequence::default(), 4711, 0, Trouble::default(), Some(fate))
    }

    fn with_fate(sequence: Sequence, process_id: u32, seed: u64, trouble: Trouble, fate: Option<Fate>) -> Server {
        let listener = loop {
            // Addresses may repeat after 65,536 servers, and two may share one: the port makes the difference.
            if let Ok(listener) = TcpListener::bind((own_address(), 0)) {
                break listener;
            }
        };
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            state: Mutex::new(State {
                book: Book::new(sequence, process_id),
                live: HashMap::new(),
                frozen: false,
                closing: false,
                inboxes: HashMap::new(),
                threads: Vec::new(),
            }),
            changed: Condvar::new(),
            calm: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            seed,
            trouble,
            fate,
        });
        let server = Server { shared, acceptor: Mutex::new(None) };
        server.listen(listener);
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    fn listen(&self, listener: TcpListener) {
        self.shared.lock().closing = false;
        let shared = self.shared.clone();
        let acceptor = spawn("model-accept", move || shared.accept(&listener));
        *self.acceptor.lock().unwrap() = Some(acceptor);
    }

    /// Connections are refused until [`Server::open`].
    pub fn refuse(&self) {
        let Some(acceptor) = self.acceptor.lock().unwrap().take() else { return };
        self.shared.lock().closing = true;
        // Accepting can't be interrupted, but it can be given what it waits for. A full backlog, as when frozen, is
        // being worked off at the same time.
        while !acceptor.is_finished() {
            let _ = TcpStream::connect_timeout(&self.shared.address, Duration::from_millis(50));
        }
        acceptor.join().unwrap();
    }

    pub fn open(&self) {
        if self.acceptor.lock().unwrap().is_some() {
            return;
        }
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            match TcpListener::bind(self.shared.address) {
                Ok(listener) => return self.listen(listener),
                Err(error) => assert!(Instant::now() < give_up, "the model can't listen again: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Looks at the books, or changes them, while nothing else happens.
    pub fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        let mut state = self.shared.lock();
        let result = act(&mut state.book);
        self.shared.deliver(&mut state);
        result
    }

    /// Waits until the books show something.
    pub fn wait_for(&self, limit: Duration, mut holds: impl FnMut(&mut Book) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !holds(&mut state.book) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // The step covers what changes with time alone, like delayed jobs.
            state = self.shared.changed.wait_timeout(state, left.min(STEP)).unwrap().0;
        }
        true
    }

    /// A connection without a socket, for clients and workers within the test.
    pub fn attach(&self) -> ConnectionId {
        let mut state = self.shared.lock();
        let id = state.book.connect();
        state.inboxes.insert(id, Vec::new());
        id
    }

    /// Executes a request of an attached connection and returns what came for it, now and before.
    pub fn call(&self, connection: ConnectionId, request: &[u8]) -> Vec<Message> {
        let mut decoder = Decoder::default();
        decoder.feed(request);
        let mut state = self.shared.lock();
        while let Some(message) = decoder.next() {
            state.book.execute(connection, &message);
        }
        self.shared.deliver(&mut state);
        state.inboxes.get_mut(&connection).map(std::mem::take).unwrap_or_default()
    }

    pub fn detach(&self, connection: ConnectionId) {
        let mut state = self.shared.lock();
        state.inboxes.remove(&connection);
        state.book.close(connection);
        self.shared.deliver(&mut state);
    }

    /// Cuts every connection that has a socket.
    pub fn cut_all(&self) {
        for live in self.shared.lock().live.values() {
            let _ = live.stream.shutdown(Shutdown::Both);
        }
    }

    pub fn freeze(&self) {
        self.shared.lock().frozen = true;
    }

    pub fn thaw(&self) {
        self.shared.lock().frozen = false;
        self.shared.changed.notify_all();
    }

    /// The process ends; [`Server::open`] starts it again.
    pub fn restart(&self, keeps_jobs: bool, process_id: u32) {
        self.refuse();
        let mut state = self.shared.lock();
        state.book.restart(keeps_jobs, process_id);
        state.inboxes.clear();
        for live in state.live.values() {
            let _ = live.stream.shutdown(Shutdown::Both);
        }
        // A connection's threads find their id gone from the books and end without another word.
        state.live.clear();
        self.shared.changed.notify_all();
    }

    /// Ends all faults, those under way and those to come.
    pub fn calm(&self) {
        self.shared.calm.store(true, Ordering::SeqCst);
        self.thaw();
        self.open();
    }

    /// Connections with a socket that are open as far as the server knows.
    pub fn connections(&self) -> usize {
        self.shared.lock().live.len()
    }

    /// Whether the server may be blind to what a peer does on a connection, by a fault.
    pub fn is_blind(&self, id: ConnectionId) -> bool {
        let state = self.shared.lock();
        state.frozen || state.live.get(&id).is_some_and(|live| live.stalled)
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.calm.store(true, Ordering::SeqCst);
        self.thaw();
        self.refuse();
        self.cut_all();
        let threads = std::mem::take(&mut self.shared.lock().threads);
        for thread in threads {
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the model panicked");
            }
        }
    }
}

fn spawn(name: &str, act: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(act).unwrap()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            let mut state = self.lock();
            while state.frozen && !state.closing {
                state = self.changed.wait_timeout(state, STEP).unwrap().0;
            }
            if state.closing {
                return;
            }
            let Ok((stream, _)) = accepted else { continue };
            let number = self.accepted.fetch_add(1, Ordering::SeqCst);
            let fate = if self.is_calm() || self.trouble.only_first.is_some_and(|first| number >= first) {
                Fate::none()
            } else {
                let drawn = || Fate::draw(&mut Random::part(self.seed, number), self.trouble);
                self.fate.clone().unwrap_or_else(drawn)
            };
            let _ = stream.set_nodelay(true);
            let id = state.book.connect();
            let (sender, receiver) = mpsc::channel();
            let (Ok(kept), Ok(write_half)) = (stream.try_clone(), stream.try_clone()) else { continue };
            state.live.insert(id, Live { stream: kept, sender, stalled: false });
            // An ended thread keeps its stack until it is joined.
            for ended in state.threads.extract_if(.., |thread| thread.is_finished()) {
                ended.join().expect("a thread of the model panicked");
            }
            let (reading, writing) = (self.clone(), self.clone());
            let reading_fate = fate.clone();
            state.threads.push(spawn("model-read", move || reading.read(id, stream, &reading_fate)));
            state.threads.push(spawn("model-write", move || writing.write(id, write_half, &fate, &receiver)));
        }
    }

    /// Hands what the books brought about to the connections. In order, since the lock is held.
    fn deliver(&self, state: &mut State) {
        for (to, bytes) in std::mem::take(&mut state.book.outputs) {
            if let Some(live) = state.live.get(&to) {
                let _ = live.sender.send(bytes);
            } else if let Some(inbox) = state.inboxes.get_mut(&to) {
                let mut decoder = Decoder::default();
                decoder.feed(&bytes);
                inbox.extend(std::iter::from_fn(|| decoder.next()));
            }
        }
        self.changed.notify_all();
    }

    /// Waits; ends early when calm comes or the connection is gone.
    fn idle(&self, id: ConnectionId, length: Duration) {
        let end = Instant::now() + length;
        let mut state = self.lock();
        while !self.is_calm() && state.book.is_open(id) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left.min(STEP)).unwrap().0;
        }
    }

    fn set_stalled(&self, id: ConnectionId, stalled: bool) {
        if let Some(live) = self.lock().live.get_mut(&id) {
            live.stalled = stalled;
        }
    }

    fn wait_while_frozen(&self) {
        let mut state = self.lock();
        while state.frozen {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn read(&self, id: ConnectionId, mut stream: TcpStream, fate: &Fate) {
        let mut decoder = Decoder::default();
        let mut buffer = [0; 16 << 10];
        let (mut packets, mut bytes) = (0, 0);
        let mut was_cut = false;
        'connection: loop {
            let limit = match fate.cut {
                Cut::AfterReading(end) if !self.is_calm() => {
                    if bytes >= end {
                        was_cut = true;
                        break;
                    }
                    (end - bytes).min(buffer.len() as u64) as usize
                }
                _ => buffer.len(),
            };
            let got = match stream.read(&mut buffer[..limit]) {
                Ok(0) | Err(_) => break,
                Ok(got) => got,
            };
            bytes += got as u64;
            decoder.feed(&buffer[..got]);
            while let Some(message) = decoder.next() {
                self.wait_while_frozen();
                if let Some((packet, length)) = fate.stall_reading
                    && packet == packets
                {
                    self.set_stalled(id, true);
                    self.idle(id, length);
                    self.set_stalled(id, false);
                }
                let cut = if self.is_calm() { Cut::Never } else { fate.cut };
                if cut == Cut::BeforeExecuting(packets) {
                    was_cut = true;
                    break 'connection;
                }
                let mut state = self.lock();
                let after = state.book.execute(id, &message);
                if cut == Cut::AfterExecuting(packets) {
                    state.book.outputs.retain(|(to, _)| *to != id);
                    self.deliver(&mut state);
                    was_cut = true;
                    break 'connection;
                }
                self.deliver(&mut state);
                if after == After::Closes {
                    break 'connection;
                }
                packets += 1;
            }
        }
        self.wait_while_frozen();
        self.end(id, &stream, fate, was_cut);
    }

    fn end(&self, id: ConnectionId, stream: &TcpStream, fate: &Fate, was_cut: bool) {
        if was_cut {
            break_off(stream, fate);
        }
        // The writing thread may have been the one that cut; then the reading one comes here too, and pauses.
        if fate.cut != Cut::Never {
            self.idle(id, fate.noticed_after);
        }
        let mut state = self.lock();
        state.book.close(id);
        state.live.remove(&id);
        self.deliver(&mut state);
        drop(state);
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn write(&self, id: ConnectionId, mut stream: TcpStream, fate: &Fate, receiver: &Receiver<Vec<u8>>) {
        let mut sent = 0;
        let mut crumbs_left = fate.crumbs.map_or(0, |(bytes, _)| bytes);
        for (packet, bytes) in receiver.iter().enumerate() {
            let packet = packet as u64;
            self.wait_while_frozen();
            for (at, length) in [fate.stall_sending, fate.pause].into_iter().flatten() {
                if at == packet {
                    self.idle(id, length);
                }
            }
            if let Some((at, hostility)) = &fate.hostility
                && *at == packet
                && !self.is_calm()
            {
                self.be_hostile(id, &mut stream, hostility);
                return break_off(&stream, fate);
            }
            let cut = if self.is_calm() { Cut::Never } else { fate.cut };
            let (length, is_last) = match cut {
                Cut::BeforeSending(at) if at == packet => (0, true),
                Cut::WithinSending(at, length) if at == packet => (length.min(bytes.len() - 1), true),
                Cut::AfterSending(at) if at == packet => (bytes.len(), true),
                _ => (bytes.len(), false),
            };
            let mut left = &bytes[..length];
            while !left.is_empty() {
                let size = match fate.crumbs {
                    Some((_, size)) if crumbs_left > 0 => size.min(left.len()),
                    _ => left.len(),
                };
                crumbs_left = crumbs_left.saturating_sub(size);
                if stream.write_all(&left[..size]).is_err() {
                    return;
                }
                sent += size;
                left = &left[size..];
                if crumbs_left > 0 && sent.is_multiple_of(16) {
                    std::thread::yield_now();
                }
            }
            if is_last {
                return break_off(&stream, fate);
            }
        }
    }

    /// Until calm comes or the peer has had enough.
    fn be_hostile(&self, id: ConnectionId, stream: &mut TcpStream, hostility: &Hostility) {
        let _ = stream.set_write_timeout(Some(STEP));
        match hostility {
            Hostility::Once(bytes) => {
                let _ = stream.write_all(bytes);
                self.idle(id, Duration::from_secs(3600));
            }
            Hostility::Endless(first, then) => {
                let mut at = 0;
                let _ = stream.write_all(first);
                while !self.is_calm() {
                    match stream.write(&then[at..]) {
                        Ok(sent) => at = (at + sent) % then.len(),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
            }
        }
    }
}

fn break_off(stream: &TcpStream, fate: &Fate) {
    if fate.reset {
        // Takes effect when the last copy of the socket is closed, or with the shutdown where data is left unread.
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    let _ = stream.shutdown(Shutdown::Both);
}
