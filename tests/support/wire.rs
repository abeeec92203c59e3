//! The binary protocol as gearmand's PROTOCOL file has it, written without a look at the proxy's own: for tests and benchmarks.

// Each program that includes it uses a part.
#![allow(dead_code)]

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

/// A packet's header, bytes: magic, type, length of the body.
pub const HEADER: usize = 12;

/// Appends a request whose arguments are `parts`, joined by NULs.
pub fn push_request(out: &mut Vec<u8>, kind: u32, parts: &[&[u8]]) {
    push(out, b"\0REQ", kind, parts);
}

/// A request as it goes over the line.
pub fn request(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes, b"\0REQ", kind, parts);
    bytes
}

/// A response as it goes over the line.
pub fn response(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes, b"\0RES", kind, parts);
    bytes
}

fn push(out: &mut Vec<u8>, magic: &[u8; 4], kind: u32, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>() + parts.len().saturating_sub(1);
    out.extend_from_slice(magic);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push(0);
        }
        out.extend_from_slice(part);
    }
}

/// The type and the length of the body that a header tells.
pub fn header(bytes: &[u8; HEADER]) -> (u32, usize) {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (word(4), word(8) as usize)
}
