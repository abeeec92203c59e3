//! Gearman's packets as bytes. Written for the tests alone, so that a misreading of the protocol in the program is not
//! repeated here.

pub const CAN_DO: u32 = 1;
pub const CANT_DO: u32 = 2;
pub const RESET_ABILITIES: u32 = 3;
pub const PRE_SLEEP: u32 = 4;
pub const NOOP: u32 = 6;
pub const SUBMIT_JOB: u32 = 7;
pub const JOB_CREATED: u32 = 8;
pub const GRAB_JOB: u32 = 9;
pub const NO_JOB: u32 = 10;
pub const JOB_ASSIGN: u32 = 11;
pub const WORK_STATUS: u32 = 12;
pub const WORK_COMPLETE: u32 = 13;
pub const WORK_FAIL: u32 = 14;
pub const GET_STATUS: u32 = 15;
pub const ECHO_REQ: u32 = 16;
pub const ECHO_RES: u32 = 17;
pub const SUBMIT_JOB_BG: u32 = 18;
pub const ERROR: u32 = 19;
pub const STATUS_RES: u32 = 20;
pub const SUBMIT_JOB_HIGH: u32 = 21;
pub const SET_CLIENT_ID: u32 = 22;
pub const CAN_DO_TIMEOUT: u32 = 23;
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
pub const SUBMIT_JOB_EPOCH: u32 = 36;

const HEADER: usize = 12;

#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    pub kind: u32,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.body.escape_ascii())
    }
}

impl Packet {
    /// The body's first `count - 1` arguments, and what is left as the last.
    pub fn arguments(&self, count: usize) -> Option<Vec<&[u8]>> {
        let arguments: Vec<&[u8]> = self.body.splitn(count, |byte| *byte == 0).collect();
        (arguments.len() == count).then_some(arguments)
    }
}

/// What a peer can send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Request(Packet),
    Response(Packet),
    /// A text command or its answer, without the line end.
    Line(Vec<u8>),
    /// Bytes that begin like a packet and are none.
    BadMagic,
}

fn encode(magic: &[u8; 4], kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let body = arguments.join(&0u8);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

pub fn request(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
    encode(b"\0REQ", kind, arguments)
}

pub fn response(kind: u32, arguments: &[&[u8]]) -> Vec<u8> {
    encode(b"\0RES", kind, arguments)
}

/// Cuts a stream of bytes into messages.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    pub fn next(&mut self) -> Option<Message> {
        let bytes = &self.bytes[self.start..];
        if *bytes.first()? != 0 {
            let end = bytes.iter().position(|byte| *byte == b'\n')?;
            let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]).to_vec();
            self.start += end + 1;
            return Some(Message::Line(line));
        }
        if bytes.len() < HEADER {
            return None;
        }
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = word(8) as usize;
        let is_request = match &bytes[..4] {
            b"\0REQ" => true,
            b"\0RES" => false,
            _ => return Some(Message::BadMagic),
        };
        let body = bytes.get(HEADER..HEADER + length)?.to_vec();
        let packet = Packet { kind: word(4), body };
        self.start += HEADER + length;
        Some(if is_request { Message::Request(packet) } else { Message::Response(packet) })
    }
}
