//! Gearman's packets as a server reads and writes them. Written for the simulator alone, so that a misreading of the
//! protocol in the program is not repeated here.

/// The packet types that occur here.
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
    pub const WORK_EXCEPTION: u32 = 25;
    pub const WORK_DATA: u32 = 28;
    pub const WORK_WARNING: u32 = 29;
    pub const GRAB_JOB_UNIQ: u32 = 30;
    pub const JOB_ASSIGN_UNIQ: u32 = 31;
    pub const SUBMIT_JOB_HIGH_BG: u32 = 32;
    pub const SUBMIT_JOB_LOW: u32 = 33;
    pub const SUBMIT_JOB_LOW_BG: u32 = 34;
}

/// What an acknowledgement carries.
pub const BACKGROUND: &[u8] = b"job submitted as background task";

const HEADER: usize = 12;

/// A request at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    Incomplete,
    /// Its type, and where it ends; its body begins after the header.
    Whole(u32, usize),
    Nonsense,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.len() < HEADER {
        return Parsed::Incomplete;
    }
    if !bytes.starts_with(b"\0REQ") {
        return Parsed::Nonsense;
    }
    let end = HEADER + word(bytes, 8) as usize;
    if bytes.len() < end { Parsed::Incomplete } else { Parsed::Whole(word(bytes, 4), end) }
}

/// The body of a whole packet that ends at `end`.
pub fn body(bytes: &[u8], end: usize) -> &[u8] {
    &bytes[HEADER..end]
}

/// Priority (0 is the highest), and whether it is in the background.
pub fn submission(kind: u32) -> Option<(usize, bool)> {
    Some(match kind {
        kind::SUBMIT_JOB_HIGH => (0, false),
        kind::SUBMIT_JOB_HIGH_BG => (0, true),
        kind::SUBMIT_JOB => (1, false),
        kind::SUBMIT_JOB_BG => (1, true),
        kind::SUBMIT_JOB_LOW => (2, false),
        kind::SUBMIT_JOB_LOW_BG => (2, true),
        _ => return None,
    })
}

/// The first argument, and what follows it.
pub fn split(body: &[u8]) -> (&[u8], &[u8]) {
    match body.iter().position(|&byte| byte == 0) {
        Some(at) => (&body[..at], &body[at + 1..]),
        None => (body, &[]),
    }
}

pub fn arguments(body: &[u8]) -> Option<[&[u8]; 3]> {
    let mut parts = body.splitn(3, |&byte| byte == 0);
    Some([parts.next()?, parts.next()?, parts.next()?])
}

/// Appends a response of these parts and this data, as they are.
pub fn response_of(out: &mut Vec<u8>, kind: u32, parts: &[&[u8]], data: &[u8]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>() + data.len();
    out.extend_from_slice(b"\0RES");
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(data);
}

/// Appends a response with NULs between its arguments.
pub fn response(out: &mut Vec<u8>, kind: u32, arguments: &[&[u8]]) {
    match arguments {
        [] => response_of(out, kind, &[], b""),
        [one] => response_of(out, kind, &[], one),
        [one, two] => response_of(out, kind, &[one, b"\0"], two),
        _ => unreachable!("no response has more arguments here"),
    }
}

/// A handle as a server writes it.
pub fn handle(text: &mut [u8; 24], server: usize, number: u32) -> &[u8] {
    let mut at = text.len();
    let mut left = number;
    loop {
        at -= 1;
        text[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    let name = [b'H', b':', b's', b'0' + server as u8, b':'];
    at -= name.len();
    text[at..at + name.len()].copy_from_slice(&name);
    &text[at..]
}

pub fn handle_number(handle: &[u8]) -> Option<u32> {
    let at = handle.iter().rposition(|&byte| byte == b':')?;
    number(&handle[at + 1..])
}

/// A number that is all of some bytes.
pub fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u32, |number, &digit| {
        digit.is_ascii_digit().then(|| number.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')))
    })
}
