//! What goes wrong on a connection of the model, drawn from the seed when the connection is accepted.

use std::time::Duration;

use crate::random::Random;

/// Which kinds of trouble a server may make on its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// Of 100 connections, so many are cut somewhere.
    pub cuts: u64,
    /// Of 100 connections, so many stop moving for a while.
    pub stalls: u64,
    /// Of 100 connections, so many are slow or come in pieces.
    pub crumbs: u64,
    /// Of 100 connections, so many speak nonsense after a while.
    pub nonsense: u64,
    /// Only so many connections have it, then all are sound.
    pub only_first: Option<u64>,
}

/// Where a connection is cut. Packets are counted from 0 in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Never,
    /// The packet arrived and is not executed.
    BeforeExecuting(u64),
    /// The packet is executed, what it brings about for this connection is not sent.
    AfterExecuting(u64),
    /// Before anything of the packet is sent.
    BeforeSending(u64),
    /// So many bytes of the packet are sent.
    WithinSending(u64, usize),
    /// The packet is sent whole.
    AfterSending(u64),
    /// So many bytes have been read, wherever in a packet that is.
    AfterReading(u64),
}

/// What a server sends that is no answer to anything.
#[derive(Debug, Clone)]
pub enum Hostility {
    /// These bytes, and then nothing more.
    Once(Vec<u8>),
    /// The first bytes, and then the others over and over.
    Endless(Vec<u8>, Vec<u8>),
}

/// One connection's fate.
#[derive(Debug, Clone)]
pub struct Fate {
    pub cut: Cut,
    /// The cut is a reset, not an orderly end.
    pub reset: bool,
    /// The server sees the cut so much later, as when a firewall forgot the connection.
    pub noticed_after: Duration,
    /// From this packet of ours on nothing is sent for a while.
    pub stall_sending: Option<(u64, Duration)>,
    /// From this packet of theirs on nothing is read for a while.
    pub stall_reading: Option<(u64, Duration)>,
    /// So many bytes go out in pieces of this size.
    pub crumbs: Option<(usize, usize)>,
    /// Before this packet of ours there is a pause.
    pub pause: Option<(u64, Duration)>,
    /// Instead of this packet of ours something else is sent.
    pub hostility: Option<(u64, Hostility)>,
}

impl Fate {
    pub fn none() -> Fate {
        Fate {
            cut: Cut::Never,
            reset: false,
            noticed_after: Duration::ZERO,
            stall_sending: None,
            stall_reading: None,
            crumbs: None,
            pause: None,
            hostility: None,
        }
    }

    pub fn draw(random: &mut Random, trouble: Trouble) -> Fate {
        let mut fate = Fate::none();
        if random.range(0, 99) < trouble.cuts {
            // Most faults must hit a session at work, some its first steps.
            let reach = *random.pick(&[6, 20, 60, 150]);
            let packet = random.range(0, reach);
            fate.cut = match random.range(0, 5) {
                0 => Cut::BeforeExecuting(packet),
                1 => Cut::AfterExecuting(packet),
                2 => Cut::BeforeSending(packet),
                3 => Cut::WithinSending(packet, random.range(1, 40) as usize),
                4 => Cut::AfterSending(packet),
                _ => Cut::AfterReading(packet * random.range(1, 60)),
            };
            fate.reset = random.one_in(3);
            if random.one_in(4) {
                fate.noticed_after = Duration::from_millis(random.range(1, 120));
            }
        }
        if random.range(0, 99) < trouble.stalls {
            let stall = Some((random.range(0, 40), Duration::from_millis(random.range(20, 900))));
            if random.one_in(2) {
                fate.stall_sending = stall;
            } else {
                fate.stall_reading = stall;
            }
        }
        if random.range(0, 99) < trouble.crumbs {
            fate.crumbs = Some((random.range(1, 600) as usize, random.range(1, 7) as usize));
            fate.pause = Some((random.range(0, 40), Duration::from_millis(random.range(1, 40))));
        }
        if random.range(0, 99) < trouble.nonsense {
            // Nothing that could be taken for a server's answer: what a lying server brings about proves nothing.
            let length = random.range(1, 100) as usize;
            let nonsense = match random.range(0, 3) {
                0 => [b"\0BAD".as_slice(), &random.bytes(length)].concat(),
                1 => [b"\0RES\0\0\0\x63\xff\xff\xff\xff".as_slice(), &random.bytes(length)].concat(),
                2 => b"\0RES\0\0\0\0\0\0\0\0".to_vec(),
                _ => [b"\xff".as_slice(), &random.bytes(length)].concat(),
            };
            fate.hostility = Some((random.range(0, 20), Hostility::Once(nonsense)));
        }
        fate
    }
}
