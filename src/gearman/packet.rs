//! Bytes to packets and back; no I/O but a single read.
//!
//! A packet is `\0REQ` or `\0RES`, a type and a length (both 32 bits, big endian), then the arguments with a NUL between
//! them; the last argument may hold NULs itself.

use std::fmt;
use std::io::{self, Read};

/// The magic, type and length before a packet's arguments, bytes.
pub const HEADER_SIZE: usize = 12;

/// The longest unique id that every server hands on unchanged, bytes: gearmand stores 64 as 63.
pub const MAX_UNIQUE_SIZE: usize = 63;

/// The arguments of a packet beside data: handles, queue names, unique ids, error texts, bytes in all. Only data may be
/// large.
pub const MAX_SMALL_PACKET: usize = 4 << 10;

/// What to do about a full queue; `gearadmin` has no such command.
pub const MAXQUEUE: &str = "do its workers keep up? its limit is set with: echo \"maxqueue QUEUE N\" | nc HOST PORT";

/// The error code of a server whose queue takes no more jobs.
pub const QUEUE_FULL: &str = "QUEUE_ERROR";

const REQUEST: [u8; 4] = *b"\0REQ";
const RESPONSE: [u8; 4] = *b"\0RES";

/// The packet types that this program sends or understands.
#[allow(missing_docs)]
pub mod kind {
    pub const CAN_DO: u32 = 1;
    pub const PRE_SLEEP: u32 = 4;
    pub const NOOP: u32 = 6;
    pub const SUBMIT_JOB: u32 = 7;
    pub const JOB_CREATED: u32 = 8;
    pub const NO_JOB: u32 = 10;
    pub const WORK_STATUS: u32 = 12;
    pub const WORK_COMPLETE: u32 = 13;
    pub const WORK_FAIL: u32 = 14;
    pub const ECHO_REQ: u32 = 16;
    pub const ECHO_RES: u32 = 17;
    pub const SUBMIT_JOB_BG: u32 = 18;
    pub const ERROR: u32 = 19;
    pub const SUBMIT_JOB_HIGH: u32 = 21;
    pub const SET_CLIENT_ID: u32 = 22;
    pub const WORK_EXCEPTION: u32 = 25;
    pub const OPTION_REQ: u32 = 26;
    pub const OPTION_RES: u32 = 27;
    pub const WORK_DATA: u32 = 28;
    pub const WORK_WARNING: u32 = 29;
    pub const GRAB_JOB_UNIQ: u32 = 30;
    pub const JOB_ASSIGN_UNIQ: u32 = 31;
    pub const SUBMIT_JOB_HIGH_BG: u32 = 32;
    pub const SUBMIT_JOB_LOW: u32 = 33;
    pub const SUBMIT_JOB_LOW_BG: u32 = 34;
}

/// What a peer sent that the protocol does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// The bytes where a packet should begin are not a packet's.
    BadMagic,
    /// A packet claims to be this long, bytes.
    TooLong(usize),
    /// A packet of this type is not expected here.
    Unexpected(u32),
    /// A packet of this type lacks arguments, or has one that makes no sense.
    BadArguments(u32),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::BadMagic => write!(f, "sent bytes that are not a Gearman packet"),
            ProtocolError::TooLong(length) => write!(f, "announced a packet of {length} bytes"),
            ProtocolError::Unexpected(kind) => write!(f, "sent an unexpected packet of type {kind}"),
            ProtocolError::BadArguments(kind) => write!(f, "sent a malformed packet of type {kind}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Appends the header of a request whose arguments take `length` bytes, separators counted in.
///
/// # Errors
/// The length does not fit the header's 32 bits; nothing is appended.
pub fn put_header(out: &mut Vec<u8>, kind: u32, length: usize) -> Result<(), ProtocolError> {
    let stated = u32::try_from(length).map_err(|_| ProtocolError::TooLong(length))?;
    out.extend_from_slice(&REQUEST);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&stated.to_be_bytes());
    Ok(())
}

/// Appends a request with its arguments; nothing where they are longer than a packet can be.
pub fn put_request(out: &mut Vec<u8>, kind: u32, arguments: &[&[u8]]) {
    let separators = arguments.len().saturating_sub(1);
    let length = arguments.iter().map(|argument| argument.len()).sum::<usize>() + separators;
    if put_header(out, kind, length).is_err() {
        return;
    }
    for (position, argument) in arguments.iter().enumerate() {
        if position > 0 {
            out.push(0);
        }
        out.extend_from_slice(argument);
    }
}

/// A request with its arguments.
pub fn request(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let mut request = Vec::new();
    put_request(&mut request, kind, arguments);
    request
}

/// One packet from a job server, borrowed from the buffer it was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// One of [`kind`], or anything else.
    pub kind: u32,
    /// The arguments with the NULs between them.
    pub body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The first `N` arguments, each without its NUL, and the rest, which is the last argument.
    ///
    /// # Errors
    /// There are fewer NULs than that.
    pub fn arguments<const N: usize>(&self) -> Result<([&'a [u8]; N], &'a [u8]), ProtocolError> {
        let mut first = [&self.body[..0]; N];
        let mut rest = self.body;
        for argument in &mut first {
            let end = rest.iter().position(|&byte| byte == 0).ok_or(ProtocolError::BadArguments(self.kind))?;
            *argument = &rest[..end];
            rest = &rest[end + 1..];
        }
        Ok((first, rest))
    }
}

/// What stands at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Less than a whole packet; this many bytes from the beginning would be one (a header's, while that is incomplete).
    Incomplete {
        /// Bytes of the packet, header included, as far as known.
        needed: usize,
    },
    /// A whole packet of this type, its body from [`HEADER_SIZE`] to `end`.
    Whole {
        /// The packet's type.
        kind: u32,
        /// Where the next packet begins.
        end: usize,
    },
    /// The header of a packet whose body is longer than allowed.
    TooLong {
        /// The packet's type.
        kind: u32,
        /// The body's length, bytes.
        length: usize,
    },
}

/// Looks at the packet at the beginning of `bytes`; a body may take as many bytes as `limit` says for its type.
///
/// # Errors
/// The bytes are not a response.
pub fn parse(bytes: &[u8], limit: impl Fn(u32) -> usize) -> Result<Parsed, ProtocolError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_SIZE>() else {
        // A wrong beginning is told at once, not only when twelve bytes have come.
        return match RESPONSE.starts_with(&bytes[..bytes.len().min(RESPONSE.len())]) {
            true => Ok(Parsed::Incomplete { needed: HEADER_SIZE }),
            false => Err(ProtocolError::BadMagic),
        };
    };
    let [m0, m1, m2, m3, k0, k1, k2, k3, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != RESPONSE {
        return Err(ProtocolError::BadMagic);
    }
    let kind = u32::from_be_bytes([k0, k1, k2, k3]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if length > limit(kind) {
        return Ok(Parsed::TooLong { kind, length });
    }
    let end = HEADER_SIZE + length;
    if bytes.len() < end { Ok(Parsed::Incomplete { needed: end }) } else { Ok(Parsed::Whole { kind, end }) }
}

/// Bytes on their way in: what was read and not yet taken as packets.
#[derive(Debug, Default)]
pub struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read took all the room there was.
    was_full: bool,
}

/// What is read at a time at first, bytes: a thousand idle connections should not take much memory.
const SMALLEST_READ: usize = 1 << 10;

/// What is read at a time once reads were full, bytes: about 500 JOB_CREATED.
const LARGEST_READ: usize = 16 << 10;

impl Incoming {
    /// The next whole packet among the bytes that were read; `None` when more must be read first.
    ///
    /// # Errors
    /// The bytes are not a response, or a body is longer than `limit` says for its type.
    pub fn next(&mut self, limit: impl Fn(u32) -> usize) -> Result<Option<Packet<'_>>, ProtocolError> {
        match parse(&self.buffer[self.start..self.end], limit)? {
            Parsed::Incomplete { .. } => Ok(None),
            Parsed::TooLong { length, .. } => Err(ProtocolError::TooLong(length)),
            Parsed::Whole { kind, end } => {
                let body = &self.buffer[self.start + HEADER_SIZE..self.start + end];
                self.start += end;
                Ok(Some(Packet { kind, body }))
            }
        }
    }

    /// The type that the next packet's header announces, 0 while that has not come.
    pub fn kind(&self) -> u32 {
        match self.unread() {
            [_, _, _, _, a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
            _ => 0,
        }
    }

    /// What the packet under way takes, bytes; 0 where that is not known yet.
    pub fn needs(&self) -> usize {
        match parse(self.unread(), |_| usize::MAX) {
            Ok(Parsed::Incomplete { needed }) => needed,
            _ => 0,
        }
    }

    /// Bytes that are taken by what was read.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Bytes that were read and not taken.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Drops the first `count` bytes of [`Self::unread`].
    pub fn skip(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Reads once, as much as there is room for. The room grows with the packet that is under way, never faster than its
    /// bytes come, so that a false length costs nothing.
    ///
    /// # Errors
    /// Those of the reader; `UnexpectedEof` at its end.
    pub fn fill(&mut self, from: &mut impl Read) -> io::Result<()> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            // A large packet's room is not kept.
            if self.buffer.len() > LARGEST_READ {
                self.buffer = Vec::new();
            }
        }
        if self.start > 0 && self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() || (self.was_full && self.buffer.len() < LARGEST_READ) {
            let doubled = (self.buffer.len() * 2).max(SMALLEST_READ);
            let size = match self.needs() {
                needs if needs > self.end => doubled.min(self.start + needs.max(LARGEST_READ)),
                _ => doubled,
            };
            let more = size.saturating_sub(self.buffer.len());
            self.buffer.try_reserve_exact(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.buffer.resize(size.max(self.buffer.len()), 0);
        }
        let count = from.read(&mut self.buffer[self.end..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += count;
        self.was_full = self.end == self.buffer.len();
        Ok(())
    }
}

/// The code of an ERROR packet, cut and made printable.
pub fn error_code(body: &[u8]) -> String {
    let code = body.split(|&byte| byte == 0).next().unwrap_or_default();
    let printable = |byte: u8| if byte.is_ascii_alphanumeric() || byte == b'_' { byte as char } else { '?' };
    code.iter().take(40).map(|&byte| printable(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_request(&mut bytes, kind, &[body]);
        bytes[..4].copy_from_slice(&RESPONSE);
        bytes
    }

    #[test]
    fn a_request_is_header_and_arguments_with_nuls_between() {
        let mut out = Vec::new();
        put_request(&mut out, kind::SUBMIT_JOB_BG, &[b"queue", b"id", b"da\0ta"]);
        assert_eq!(out, b"\0REQ\0\0\0\x12\0\0\0\x0equeue\0id\0da\0ta");
        assert_eq!(request(kind::SUBMIT_JOB_BG, &[b"queue", b"id", b"da\0ta"]), out);
    }

    #[test]
    fn arguments_split_at_the_first_nuls_only() {
        let packet = Packet { kind: kind::JOB_ASSIGN_UNIQ, body: b"H:a:1\0q\0\0a\0b" };
        let ([handle, queue, unique], data) = packet.arguments().unwrap();
        assert_eq!((handle, queue, unique, data), (&b"H:a:1"[..], &b"q"[..], &b""[..], &b"a\0b"[..]));
        assert_eq!(packet.arguments::<5>(), Err(ProtocolError::BadArguments(kind::JOB_ASSIGN_UNIQ)));
    }

    #[test]
    fn packets_come_out_whole_whatever_pieces_they_come_in() {
        let mut bytes = response(kind::JOB_CREATED, b"H:a:1");
        bytes.extend(response(kind::NOOP, b""));
        bytes.extend(response(kind::WORK_DATA, &[7; 100_000]));
        for piece in [1, 5, 11, 12, 13, 4096, 1 << 20] {
            let mut incoming = Incoming::default();
            let mut seen = Vec::new();
            for mut chunk in bytes.chunks(piece) {
                while !chunk.is_empty() {
                    incoming.fill(&mut chunk).unwrap();
                    while let Some(packet) = incoming.next(|_| 1 << 20).unwrap() {
                        seen.push((packet.kind, packet.body.len()));
                    }
                }
            }
            assert_eq!(
                seen,
                [(kind::JOB_CREATED, 5), (kind::NOOP, 0), (kind::WORK_DATA, 100_000)],
                "pieces of {piece}"
            );
        }
    }

    #[test]
    fn what_is_no_packet_is_told_at_its_first_byte() {
        assert_eq!(parse(b"H", |_| 10), Err(ProtocolError::BadMagic));
        assert_eq!(parse(b"\0REQ\0\0\0\x06\0\0\0\0", |_| 10), Err(ProtocolError::BadMagic));
        assert_eq!(parse(b"", |_| 10), Ok(Parsed::Incomplete { needed: HEADER_SIZE }));
        assert_eq!(
            parse(b"\0RES\0\0\0\x08\xff\xff\xff\xff", |_| 10),
            Ok(Parsed::TooLong { kind: kind::JOB_CREATED, length: 0xffff_ffff })
        );
    }

    #[test]
    fn a_false_length_takes_no_memory_beyond_the_bytes_that_came() {
        let mut incoming = Incoming::default();
        incoming.fill(&mut &b"\0RES\0\0\0\x1c\x03\xff\xff\xff"[..]).unwrap();
        assert_eq!(incoming.next(|_| 64 << 20).unwrap(), None);
        incoming.fill(&mut &b"x"[..]).unwrap();
        assert!(incoming.buffer.len() <= 2 * SMALLEST_READ);
    }

    #[test]
    fn an_error_says_what_the_peer_sent() {
        let told = [
            (ProtocolError::BadMagic, "sent bytes that are not a Gearman packet"),
            (ProtocolError::TooLong(7), "announced a packet of 7 bytes"),
            (ProtocolError::Unexpected(8), "sent an unexpected packet of type 8"),
            (ProtocolError::BadArguments(9), "sent a malformed packet of type 9"),
        ];
        assert!(told.iter().all(|(error, text)| error.to_string() == *text));
    }

    #[test]
    fn a_packet_longer_than_its_header_can_say_is_not_begun() {
        let mut out = Vec::new();
        assert_eq!(put_header(&mut out, 1, 1 << 32), Err(ProtocolError::TooLong(1 << 32)));
        assert_eq!((out.len(), put_header(&mut out, 1, u32::MAX as usize)), (0, Ok(())));
        assert_eq!(out, b"\0REQ\0\0\0\x01\xff\xff\xff\xff");
    }

    #[test]
    fn a_body_may_be_as_long_as_the_limit_of_its_type() {
        let bytes = response(kind::WORK_DATA, &[7; 5]);
        let limit = |most| move |kind| if kind == kind::WORK_DATA { most } else { 0 };
        assert_eq!(parse(&bytes, limit(5)), Ok(Parsed::Whole { kind: kind::WORK_DATA, end: 17 }));
        assert_eq!(parse(&bytes[..16], limit(5)), Ok(Parsed::Incomplete { needed: 17 }));
        assert_eq!(parse(&bytes, limit(4)), Ok(Parsed::TooLong { kind: kind::WORK_DATA, length: 5 }));
        let mut incoming = Incoming::default();
        incoming.fill(&mut &bytes[..]).unwrap();
        assert_eq!(incoming.next(limit(4)), Err(ProtocolError::TooLong(5)));
    }

    #[test]
    fn what_is_under_way_is_known_as_far_as_it_came() {
        let mut incoming = Incoming::default();
        assert_eq!((incoming.kind(), incoming.needs(), incoming.capacity()), (0, HEADER_SIZE, 0));
        let bytes = response(0x0102_0304, &[7; 100]);
        incoming.fill(&mut &bytes[..7]).unwrap();
        assert_eq!((incoming.kind(), incoming.needs()), (0, HEADER_SIZE));
        incoming.fill(&mut &bytes[7..12]).unwrap();
        assert_eq!((incoming.kind(), incoming.needs()), (0x0102_0304, 112));
        assert_eq!((incoming.unread(), incoming.capacity()), (&bytes[..12], SMALLEST_READ));
        incoming.fill(&mut &bytes[12..]).unwrap();
        assert_eq!(incoming.needs(), 0, "it is whole");
        incoming.skip(110);
        assert_eq!((incoming.unread(), incoming.kind()), (&[7, 7][..], 0));
        incoming.skip(110);
        assert_eq!((incoming.unread(), incoming.start), (&[][..], incoming.end));
        assert!(incoming.fill(&mut &b""[..]).is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
    }

    /// Reads as much as is asked for, and tells how much that was.
    struct Endless(Vec<usize>);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.push(buffer.len());
            buffer.fill(0);
            Ok(buffer.len())
        }
    }

    #[test]
    fn reads_grow_while_they_are_full_and_no_further_than_needed() {
        let (mut incoming, mut endless) = (Incoming::default(), Endless(Vec::new()));
        for _ in 0..7 {
            incoming.fill(&mut endless).unwrap();
            incoming.skip(usize::MAX >> 1);
        }
        assert_eq!(endless.0, [1024, 2048, 4096, 8192, 16_384, 16_384, 16_384]);
        incoming.fill(&mut &b"x"[..]).unwrap();
        assert_eq!((incoming.was_full, incoming.unread()), (false, &b"x"[..]));

        // The room of a packet is its own size at last, and what stood before it is used for it.
        let (mut incoming, mut endless) = (Incoming::default(), Endless(Vec::new()));
        let header = |length: u32| [&b"\0RES\0\0\0\x1c"[..], &length.to_be_bytes()].concat();
        incoming.fill(&mut &[&[0; 1000], &header(20_000)[..]].concat()[..]).unwrap();
        incoming.skip(1000);
        for _ in 0..6 {
            incoming.fill(&mut endless).unwrap();
        }
        assert_eq!(endless.0, [12, 2024, 2048, 4096, 8192, 3628]);
        assert_eq!((incoming.unread().len(), incoming.buffer.len()), (20_012, 20_012));
        incoming.skip(20_012);
        incoming.fill(&mut endless).unwrap();
        assert_eq!((incoming.buffer.len(), endless.0.last()), (SMALLEST_READ, Some(&SMALLEST_READ)));
    }

    #[test]
    fn what_is_left_of_a_packet_is_read_into_the_room_that_there_is() {
        let (mut incoming, mut endless) = (Incoming::default(), Endless(Vec::new()));
        while incoming.buffer.len() < LARGEST_READ {
            incoming.fill(&mut endless).unwrap();
            incoming.skip(LARGEST_READ);
        }
        incoming
            .fill(&mut &[&[0; 1000], &b"\0RES\0\0\0\x1c\0\0\x4e\x20"[..], &[0; LARGEST_READ]].concat()[..])
            .unwrap();
        incoming.skip(1000);
        assert_eq!((incoming.needs(), incoming.was_full), (20_012, true));
        incoming.fill(&mut endless).unwrap();
        assert_eq!(endless.0.last(), Some(&1000));
    }

    #[test]
    fn what_nobody_takes_is_read_on() {
        let (mut incoming, mut endless) = (Incoming::default(), Endless(Vec::new()));
        incoming.fill(&mut &b"text"[..]).unwrap();
        while incoming.unread().len() < 2 * LARGEST_READ {
            incoming.fill(&mut endless).unwrap();
        }
        assert_eq!(endless.0, [1020, 1024, 2048, 4096, 8192, 16_384]);
    }

    #[test]
    fn an_error_code_is_cut_and_printable() {
        assert_eq!(error_code(b"QUEUE_ERROR\0Job queue is full"), "QUEUE_ERROR");
        assert_eq!(error_code(b"a b\x1b[1m9"), "a?b??1m9");
        assert_eq!(error_code(&[b'A'; 50]), "A".repeat(40));
        assert_eq!(error_code(b""), "");
    }
}
