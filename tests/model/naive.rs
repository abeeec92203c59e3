//! Two relays as one would first write them. They show that the schedules find what they are there to find.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use gearman_proxy::config::{Address, ForwardConfig};

use crate::relay::{Relay, Scale};
use crate::wire::*;

struct Naive {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Relay for Naive {
    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn join(self: Box<Self>) {
        self.thread.join().unwrap();
    }
}

fn start(config: &ForwardConfig, predecessor: Option<Box<dyn Relay>>, acknowledges_first: bool) -> Box<dyn Relay> {
    if let Some(predecessor) = predecessor {
        predecessor.join();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (config, stopped) = (config.clone(), stop.clone());
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            // Whatever breaks: begin again.
            let _ = session(&config, &stopped, acknowledges_first);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    Box::new(Naive { stop, thread })
}

/// Acknowledges before it delivers, as the Perl proxy does: loses jobs.
pub fn hasty(
    config: &ForwardConfig,
    _max_job_size: usize,
    _scale: &Scale,
    predecessor: Option<Box<dyn Relay>>,
) -> Box<dyn Relay> {
    start(config, predecessor, true)
}

/// Acknowledges after it delivered, and keeps no books: delivers twice.
pub fn forgetful(
    config: &ForwardConfig,
    _max_job_size: usize,
    _scale: &Scale,
    predecessor: Option<Box<dyn Relay>>,
) -> Box<dyn Relay> {
    start(config, predecessor, false)
}

struct Line {
    stream: TcpStream,
    decoder: Decoder,
}

impl Line {
    fn to(address: &Address) -> std::io::Result<Line> {
        let stream = TcpStream::connect((address.server.host.as_str(), address.server.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Line { stream, decoder: Decoder::default() })
    }

    fn ask(&mut self, bytes: &[u8]) -> std::io::Result<Packet> {
        self.stream.write_all(bytes)?;
        loop {
            while let Some(message) = self.decoder.next() {
                match message {
                    Message::Response(packet) => return Ok(packet),
                    Message::BadMagic => return Err(std::io::ErrorKind::InvalidData.into()),
                    _ => {}
                }
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                got => self.decoder.feed(&buffer[..got]),
            }
        }
    }
}

fn session(config: &ForwardConfig, stopped: &AtomicBool, acknowledges_first: bool) -> std::io::Result<()> {
    let mut source = Line::to(&config.source)?;
    let mut destination = Line::to(config.first_destination())?;
    // Who did not ask could not know the jobs again, which excuses much.
    source.stream.write_all(b"getpid\n")?;
    source.stream.write_all(&request(CAN_DO, &[config.source.queue.as_bytes()]))?;
    while !stopped.load(Ordering::SeqCst) {
        let packet = source.ask(&request(GRAB_JOB_UNIQ, &[]))?;
        let Some(arguments) = packet.arguments(4).filter(|_| packet.kind == JOB_ASSIGN_UNIQ) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let acknowledgement = request(WORK_COMPLETE, &[arguments[0], b"job submitted as background task"]);
        if acknowledges_first {
            source.stream.write_all(&acknowledgement)?;
        }
        let submission =
            request(SUBMIT_JOB_BG, &[config.first_destination().queue.as_bytes(), arguments[2], arguments[3]]);
        destination.ask(&submission)?;
        if !acknowledges_first {
            source.stream.write_all(&acknowledgement)?;
        }
    }
    Ok(())
}
