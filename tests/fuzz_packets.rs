//! Random bytes to what reads packets from job servers, who may send anything.

#[path = "random/fuzz.rs"]
mod fuzz;
mod random;

use std::io::{ErrorKind, Read};

use fuzz::fuzz;
use gearman_proxy::gearman::connection::error_code;
use gearman_proxy::gearman::packet::{HEADER_SIZE, Incoming, Packet, Parsed, ProtocolError, parse};
use random::Random;

/// What a body may take, bytes.
const LIMIT: usize = 10_000;

/// Packets of all kinds, some of them spoilt.
fn stream(random: &mut Random) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..random.below(6) {
        let length = if random.below(8) == 0 { random.below(2 * LIMIT) } else { random.below(80) };
        let body: Vec<u8> = (0..length).map(|_| random.of(b"H:a1\0\0\xff")).collect();
        let kind = if random.below(8) == 0 { random.next() as u32 } else { random.below(45) as u32 };
        let length = if random.below(20) == 0 { random.next() as u32 } else { body.len() as u32 };
        stream.extend_from_slice(if random.below(30) == 0 { b"\0REQ" } else { b"\0RES" });
        stream.extend_from_slice(&kind.to_be_bytes());
        stream.extend_from_slice(&length.to_be_bytes());
        stream.extend_from_slice(&body);
    }
    for _ in 0..random.below(3) {
        if !stream.is_empty() {
            let place = random.below(stream.len());
            stream[place] = random.next() as u8;
        }
    }
    stream.truncate(random.below(stream.len() + 1).max(stream.len().saturating_sub(random.below(3) * 20)));
    stream
}

/// A packet's type and body.
type Whole = (u32, Vec<u8>);

/// All packets of a stream, as parsed from the whole of it, and what ends it.
fn parsed(mut bytes: &[u8]) -> (Vec<Whole>, Option<ProtocolError>) {
    let mut packets = Vec::new();
    loop {
        match parse(bytes, |_| LIMIT) {
            Ok(Parsed::Whole { kind, end }) => {
                packets.push((kind, bytes[HEADER_SIZE..end].to_vec()));
                bytes = &bytes[end..];
            }
            Ok(Parsed::Incomplete { needed }) => {
                assert!(needed > bytes.len(), "more is asked for than there is");
                assert!(needed <= LIMIT + HEADER_SIZE);
                return (packets, None);
            }
            Ok(Parsed::TooLong { length, .. }) => {
                assert!(length > LIMIT);
                return (packets, Some(ProtocolError::TooLong(length)));
            }
            Err(error) => return (packets, Some(error)),
        }
    }
}

/// The same, read in pieces.
fn read(bytes: &[u8], random: &mut Random) -> (Vec<Whole>, Option<ProtocolError>) {
    let mut incoming = Incoming::default();
    let mut packets = Vec::new();
    let mut left = bytes;
    loop {
        loop {
            match incoming.next(|_| LIMIT) {
                Ok(Some(Packet { kind, body })) => packets.push((kind, body.to_vec())),
                Ok(None) => break,
                Err(error) => return (packets, Some(error)),
            }
        }
        let size = if random.below(2) == 0 { random.below(20) + 1 } else { random.below(5_000) + 1 };
        let mut piece = (&mut left).take(size as u64);
        match incoming.fill(&mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return (packets, None),
            Err(error) => unreachable!("memory can be read: {error}"),
        }
    }
}

#[test]
fn packets_are_the_same_in_whatever_pieces_they_come() {
    fuzz("packets", |random| {
        let bytes = stream(random);
        assert_eq!(read(&bytes, random), parsed(&bytes));
    });
}

#[test]
fn the_arguments_of_a_packet_are_its_body_in_pieces() {
    fuzz("arguments", |random| {
        let body: Vec<u8> = (0..random.below(60)).map(|_| random.of(b"ab\0\xff")).collect();
        let packet = Packet { kind: 31, body: &body };
        match packet.arguments::<3>() {
            Ok((first, rest)) => {
                let joined = [first[0], first[1], first[2], rest].join(&0);
                assert_eq!(joined, body);
                assert!(first.iter().all(|argument| !argument.contains(&0)));
            }
            Err(error) => {
                assert_eq!(error, ProtocolError::BadArguments(31));
                assert!(body.iter().filter(|&&byte| byte == 0).count() < 3);
            }
        }
        let code = error_code(&body);
        assert!(code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_graphic()));
    });
}
