//! The writing side of a session's source connection: grabs and acknowledgements, from all threads of the forward.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::window::{Requests, Window};
use crate::gearman::connection::{ConnectionError, is_timeout};
use crate::gearman::packet::{kind, put_request};
use crate::metrics::ForwardMetrics;

/// What foreground clients of an asynchronous forward are answered, as the Perl proxy did.
pub const BACKGROUND_ANSWER: &[u8] = b"job submitted as background task";

/// Bytes of jobs that one forward holds before it takes them one by one.
pub const FORWARD_BYTES: usize = 8 << 20;

/// The bytes of jobs that all forwards of the process hold.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: AtomicUsize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { limit: 128 << 20, held: AtomicUsize::new(0) }
    }
}

impl Budget {
    fn spare(&self) -> usize {
        self.limit.saturating_sub(self.held.load(Ordering::Relaxed))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Source {
    stream: TcpStream,
    state: Mutex<State>,
    /// Signalled when held jobs were released.
    room: Condvar,
    /// The reader is to be woken by whoever has the lock.
    wake: AtomicBool,
    budget: Arc<Budget>,
    metrics: Arc<ForwardMetrics>,
}

/// What its lock protects; the lock is held while the bytes are written, so that they follow in this order.
#[derive(Debug)]
pub struct State {
    /// How many jobs to ask for.
    pub window: Window,
    out: Vec<u8>,
    /// The bytes of held jobs that are counted in the budget.
    counted_bytes: usize,
    /// GRAB_JOB_UNIQ and ECHO_REQ sent, each of which is answered, in this order.
    requests: u64,
    answers: u64,
    /// When `requests` last became more than `answers`.
    owed_since: Instant,
    /// When jobs were last asked for.
    grabbed: Instant,
    /// Acknowledged jobs that the source may not have heard of yet, each with the number of the first request after it.
    unproven: VecDeque<(u64, u128)>,
    /// Why writing failed.
    broken: Option<io::Error>,
}

impl Source {
    /// Takes over a new connection. Neither reading nor writing may come to nothing for longer than `limit`.
    pub fn new(
        stream: TcpStream,
        prefetch: usize,
        budget: Arc<Budget>,
        metrics: Arc<ForwardMetrics>,
        limit: Duration,
    ) -> io::Result<Source> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Source {
            stream,
            state: Mutex::new(State {
                window: Window::new(prefetch, FORWARD_BYTES),
                out: Vec::new(),
                counted_bytes: 0,
                requests: 0,
                answers: 0,
                owed_since: Instant::now(),
                grabbed: Instant::now(),
                unproven: VecDeque::new(),
                broken: None,
            }),
            room: Condvar::new(),
            wake: AtomicBool::new(false),
            budget,
            metrics,
        })
    }

    /// The socket, for the reader.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The state, for the reader, which tells it what came.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Announces the queue and asks for the first jobs.
    pub fn announce(&self, queue: &str) {
        let mut state = self.state.lock();
        put_request(&mut state.out, kind::CAN_DO, &[queue.as_bytes()]);
        self.send_due(&mut state);
    }

    /// Sends what is due beside what was put before, and counts what is held now.
    pub fn send_due(&self, state: &mut State) {
        self.count_held(state, state.window.held_bytes());
        let requests = state.window.due(self.budget.spare(), Instant::now());
        state.put(&requests);
        self.send(state);
    }

    fn count_held(&self, state: &mut State, bytes: usize) {
        let counted = std::mem::replace(&mut state.counted_bytes, bytes);
        if bytes > counted {
            self.budget.held.fetch_add(bytes - counted, Ordering::Relaxed);
        } else {
            self.budget.held.fetch_sub(counted - bytes, Ordering::Relaxed);
        }
        self.metrics.set_held(state.window.held());
    }

    /// Acknowledges `keys.len()` jobs of `size` bytes in all by `packets`, and asks for as many more as there is room for.
    pub fn acknowledge(&self, packets: &[u8], keys: &[u128], size: usize) {
        let mut state = self.state.lock();
        state.out.extend_from_slice(packets);
        let request = state.requests;
        state.unproven.extend(keys.iter().map(|&key| (request, key)));
        self.release(state, keys.len(), size);
    }

    /// Ends a job of `size` bytes by `packets`, without keeping books of it.
    pub fn finish(&self, packets: &[u8], size: usize) {
        let mut state = self.state.lock();
        state.out.extend_from_slice(packets);
        self.release(state, 1, size);
    }

    fn release(&self, mut state: MutexGuard<'_, State>, jobs: usize, size: usize) {
        state.window.released(jobs, size, Instant::now());
        self.send_due(&mut state);
        self.room.notify_one();
        self.unlock(state);
    }

    /// Sends packets that neither take nor end a job.
    pub fn pass(&self, packets: &[u8]) {
        let mut state = self.state.lock();
        state.out.extend_from_slice(packets);
        self.send(&mut state);
        self.unlock(state);
    }

    /// Sends an ECHO_REQ: its answer wakes the reader, and proves that all acknowledgements before it were heard.
    pub fn echo(&self) {
        let mut state = self.state.lock();
        state.put_echo();
        self.send(&mut state);
        self.unlock(state);
    }

    /// Wakes the reader without waiting: a thread that is writing just now does it afterwards.
    pub fn wake(&self) {
        self.wake.store(true, Ordering::Relaxed);
        self.wake_if_asked();
    }

    /// Gives the lock back. What was asked of its holder meanwhile is done then.
    pub fn unlock(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.wake_if_asked();
    }

    /// To be called after whatever has held the lock.
    pub fn wake_if_asked(&self) {
        // Either we see that it was asked, or who asks sees that the lock is free.
        fence(Ordering::SeqCst);
        if self.wake.load(Ordering::Relaxed)
            && let Some(mut state) = self.state.try_lock()
            && self.wake.swap(false, Ordering::Relaxed)
        {
            state.put_echo();
            self.send(&mut state);
        }
    }

    /// To be called while nothing comes: finds a hung source and, when jobs were not asked for during `probe`, a lost
    /// wake-up and jobs whose time has come.
    ///
    /// # Errors
    /// The source has owed an answer for `limit`.
    pub fn idle(&self, probe: Duration, silent: Duration, limit: Duration) -> Result<(), ConnectionError> {
        let mut state = self.state.lock();
        if state.requests > state.answers {
            let waited = silent.min(state.owed_since.elapsed());
            return if waited >= limit { Err(ConnectionError::NoAnswer(limit)) } else { Ok(()) };
        }
        if state.grabbed.elapsed() >= probe {
            state.grabbed = Instant::now();
            match state.window.probe() {
                Some(requests) => state.put(&requests),
                None => state.put_echo(),
            }
        } else if !state.unproven.is_empty() {
            state.put_echo();
        }
        self.send(&mut state);
        Ok(())
    }

    /// Waits until `more` bytes may be taken in beside what is held; `false` when the time is up.
    pub fn wait_for_room(&self, more: usize, limit: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.window.has_room(more, self.budget.spare()) {
            self.room.wait_for(&mut state, limit);
        }
        state.window.has_room(more, self.budget.spare())
    }

    /// Writes what was put. A failure ends the connection, which wakes the reader.
    fn send(&self, state: &mut State) {
        if state.broken.is_none() && !state.out.is_empty() {
            let mut rest = &state.out[..];
            let mut stream = &self.stream;
            while !rest.is_empty() {
                match stream.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        state.broken = Some(error);
                        self.shut_down();
                        break;
                    }
                }
            }
        }
        state.out.clear();
        // A thousand idle connections should not take much memory, nor a busy one ask for it again and again.
        state.out.shrink_to(if state.window.asleep() { 4 << 10 } else { 64 << 10 });
    }

    /// Ends the connection, so that the reader wakes up.
    pub fn shut_down(&self) {
        // It fails only where the connection has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Why writing failed, if it did.
    pub fn take_broken(&self) -> Option<ConnectionError> {
        self.state.lock().broken.take().map(|error| match is_timeout(&error) {
            true => ConnectionError::Io(io::ErrorKind::TimedOut.into()),
            false => error.into(),
        })
    }

    /// The session is over: what is held goes back. Returns the acknowledged jobs that the source may not have heard of,
    /// and how many jobs were held.
    pub fn close(&self) -> (Vec<u128>, usize) {
        self.shut_down();
        let mut state = self.state.lock();
        let held = state.window.held();
        self.count_held(&mut state, 0);
        self.metrics.given_back(held as u64);
        self.metrics.set_held(0);
        (state.unproven.drain(..).map(|(_, key)| key).collect(), held)
    }
}

impl State {
    /// A job of `size` bytes came.
    pub fn assigned(&mut self, size: usize) {
        self.answered();
        self.window.assigned(size);
    }

    /// A request was answered.
    pub fn answered(&mut self) {
        self.answers += 1;
        while self.unproven.front().is_some_and(|&(request, _)| request < self.answers) {
            self.unproven.pop_front();
        }
    }

    /// Whether every request was answered.
    pub fn all_answered(&self) -> bool {
        self.answers >= self.requests
    }

    /// Whether more answers came than were asked for.
    pub fn is_overpaid(&self) -> bool {
        self.answers > self.requests
    }

    fn count_requests(&mut self, requests: usize) {
        if requests > 0 && self.all_answered() {
            self.owed_since = Instant::now();
        }
        self.requests += requests as u64;
    }

    fn put(&mut self, requests: &Requests) {
        for _ in 0..requests.grabs {
            put_request(&mut self.out, kind::GRAB_JOB_UNIQ, &[]);
        }
        self.count_requests(requests.grabs);
        if requests.grabs > 0 {
            self.grabbed = Instant::now();
        }
        if requests.sleep {
            put_request(&mut self.out, kind::PRE_SLEEP, &[]);
        }
    }

    fn put_echo(&mut self) {
        put_request(&mut self.out, kind::ECHO_REQ, &[b"?"]);
        self.count_requests(1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::config::{Address, ForwardConfig, Place, Priority, Server};
    use crate::stages::Stages;

    fn metrics() -> Arc<ForwardMetrics> {
        let address =
            |queue: &str| Address { server: Server { host: "h".to_string(), port: 1 }, queue: queue.to_string() };
        Arc::new(ForwardMetrics::new(&ForwardConfig {
            place: Place { file: Arc::new("test".into()), line: 1 },
            source: address("a"),
            destinations: vec![address("b")],
            stages: Stages::default(),
            asynchronous: true,
            workers: 1,
            prefetch: 1,
            prefetch_is_explicit: false,
            priority: Priority::Normal,
            timeout: None,
            max_age: None,
            reject_queue: None,
        }))
    }

    #[test]
    fn who_writes_while_the_reader_shall_wake_wakes_it_afterwards() {
        const SIZE: usize = 16 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = listener.accept().unwrap().0;
        let source = Source::new(stream, 1, Arc::default(), metrics(), Duration::from_secs(60)).unwrap();
        thread::scope(|scope| {
            // More than the socket takes.
            scope.spawn(|| source.pass(&vec![b'x'; SIZE]));
            while source.state.try_lock().is_some() {
                thread::yield_now();
            }
            source.wake();
            let mut written = vec![0; SIZE + 13];
            peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            peer.read_exact(&mut written).unwrap();
            let mut echo = Vec::new();
            put_request(&mut echo, kind::ECHO_REQ, &[b"?"]);
            assert!(written[SIZE..] == echo[..]);
        });
    }
}
