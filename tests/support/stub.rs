//! A job server whose every reply the test gives itself, packet by packet.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use super::PATIENCE;
use super::wire::{ECHO_REQ, ECHO_RES, HEADER, OPTION_REQ, OPTION_RES, SET_CLIENT_ID, header, response};

/// What came from a connection: the packet's type and body, or nothing more.
pub type Request = (u32, Vec<u8>);

/// See the module.
pub struct Stub {
    pub address: SocketAddr,
    lines: Mutex<Receiver<Line>>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

/// One of its connections that sent a packet first. Those that begin with a text command are told that there is nothing.
pub struct Line(TcpStream);

impl Stub {
    pub fn listen() -> Stub {
        let listener = TcpListener::bind((super::loopback(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (send, lines) = channel();
        let sockets = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::clone(&sockets);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, send) = (stream.unwrap(), send.clone());
                stream.set_nodelay(true).unwrap();
                open.lock().unwrap().push(stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let mut first = [0];
                    match stream.peek(&mut first) {
                        Ok(1) if first == [0] => drop(send.send(Line(stream))),
                        Ok(1) => drop((&stream).write_all(b".\n")),
                        _ => {}
                    }
                });
            }
        });
        Stub { address, lines: Mutex::new(lines), sockets }
    }

    /// Its next connection, however long that takes.
    pub fn accept(&self) -> Line {
        self.lines.lock().unwrap().recv().unwrap()
    }

    /// The next connection of a destination, greeted.
    #[track_caller]
    pub fn greet(&self) -> Line {
        let mut line = self.lines.lock().unwrap().recv_timeout(PATIENCE).expect("a connection");
        line.0.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(line.request().0, SET_CLIENT_ID);
        line.echo();
        line
    }

    /// The same of a synchronous forward.
    #[track_caller]
    pub fn greet_with_exceptions(&self) -> Line {
        let mut line = self.greet();
        assert_eq!(line.request().0, OPTION_REQ);
        line.reply(OPTION_RES, b"exceptions");
        line.echo();
        line
    }

    /// Closes all its connections.
    pub fn cut(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Line {
    /// The next request; `None` when the connection has ended. Text commands between packets are not known here.
    pub fn try_request(&mut self) -> Option<Request> {
        let mut head = [1; HEADER];
        while head[0] != 0 {
            self.0.read_exact(&mut head[..1]).ok()?;
        }
        self.0.read_exact(&mut head[1..]).ok()?;
        let (kind, length) = header(&head);
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        Some((kind, body))
    }

    #[track_caller]
    pub fn request(&mut self) -> Request {
        self.try_request().expect("a request")
    }

    /// The next request that is no ECHO_REQ, which are answered.
    #[track_caller]
    pub fn submission(&mut self) -> Request {
        loop {
            match self.request() {
                (ECHO_REQ, body) => self.reply(ECHO_RES, &body),
                other => return other,
            }
        }
    }

    /// A reply; the other side may have gone.
    pub fn reply(&mut self, kind: u32, body: &[u8]) {
        self.send(&response(kind, &[body]));
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    #[track_caller]
    pub fn echo(&mut self) {
        let (kind, body) = self.request();
        assert_eq!(kind, ECHO_REQ);
        self.reply(ECHO_RES, &body);
    }

    /// Another handle of the same connection.
    pub fn again(&self) -> Line {
        Line(self.0.try_clone().unwrap())
    }
}
