//! The binary protocol (gearmand's PROTOCOL file), as far as the benchmark speaks it, and no slower than it must be.

use std::io::{self, Read, Write};
use std::net::TcpStream;

#[path = "../../tests/support/wire.rs"]
mod format;

pub use format::*;

/// What one read asks for at least, bytes.
const READ: usize = 256 << 10;

/// A connection to a job server.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Requests not yet written.
    pub out: Vec<u8>,
}

impl Connection {
    pub fn open(port: u16) -> io::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: vec![0; READ], start: 0, end: 0, out: Vec::new() })
    }

    /// The same socket, for another thread to write to or to shut down.
    pub fn socket(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    pub fn request(&mut self, kind: u32, parts: &[&[u8]]) {
        push_request(&mut self.out, kind, parts);
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// How long the packet at the front of the buffer is, where its header has arrived.
    fn front(&self) -> Option<usize> {
        let header = self.buffer.get(self.start..self.end)?.get(8..HEADER)?;
        Some(HEADER + u32::from_be_bytes(header.try_into().ok()?) as usize)
    }

    /// Whether [`Connection::packet`] returns without reading from the socket.
    pub fn has_packet(&self) -> bool {
        self.front().is_some_and(|length| self.end - self.start >= length)
    }

    /// The next packet: its type and its body.
    pub fn packet(&mut self) -> io::Result<(u32, &[u8])> {
        while !self.has_packet() {
            let wanted = self.front().unwrap_or(HEADER).max(READ);
            if self.buffer.len() - self.start < wanted {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                if self.buffer.len() < wanted {
                    self.buffer.resize(wanted, 0);
                }
            }
            let count = self.stream.read(&mut self.buffer[self.end..])?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the job server closed the connection"));
            }
            self.end += count;
        }
        let length = self.front().unwrap_or(HEADER);
        let packet = &self.buffer[self.start..self.start + length];
        self.start += length;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        let kind = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        Ok((kind, &packet[HEADER..]))
    }

    /// The next packet, which must be of type `kind`.
    pub fn expect(&mut self, kind: u32) -> io::Result<&[u8]> {
        let (got, body) = self.packet()?;
        if got == kind { Ok(body) } else { Err(unexpected(got, body)) }
    }
}

/// An error that tells a packet nobody asked for.
pub fn unexpected(kind: u32, body: &[u8]) -> io::Error {
    let head = String::from_utf8_lossy(&body[..body.len().min(80)]).escape_debug().to_string();
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected packet of type {kind}: {head}"))
}

/// A packet's first argument, a job's handle in most.
pub fn first_argument(body: &[u8]) -> &[u8] {
    body.split(|&byte| byte == 0).next().unwrap_or_default()
}
