//! One direction of a connection: a byte FIFO with a latency, a rate and a size. It reorders nothing and invents nothing.
//!
//! What is written is on its way until it arrives; what arrived waits until it is read. The size covers the sender's
//! buffer, those of tunnels in between, and the receiver's, as nobody on either end can tell them apart.

use std::collections::VecDeque;

use crate::clock::Micros;

/// What a line is like.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub latency: Micros,
    /// Bytes a second; 0: as fast as one likes.
    pub rate: u64,
    /// Bytes that fit.
    pub size: usize,
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After everything that was sent.
    Fin,
    /// What was on its way is gone.
    Reset,
}

/// See the module.
#[derive(Debug)]
pub struct Pipe {
    pub line: Line,
    bytes: Vec<u8>,
    start: usize,
    /// Bytes that can be read.
    arrived: usize,
    /// Of these: in the receiver's own hands already, until a packet is whole; they take no room here.
    taken: usize,
    /// What is on its way: when the next of it arrives, and how many bytes.
    pieces: VecDeque<(Micros, usize)>,
    /// When the line has sent all that it was given.
    free_at: Micros,
    ending: Option<(Micros, Ending)>,
    /// Nothing gets through any more, and nobody is told.
    silent: bool,
    /// A timer for the next arrival runs.
    pub timed: bool,
    /// Bytes that were written so far.
    written: u64,
    /// The connection is cut when so many bytes have been written.
    pub cut_at: Option<u64>,
}

/// A piece of a slow line is what it carries in this time.
const GRAIN: Micros = 20_000;

impl Pipe {
    pub fn new(line: Line) -> Pipe {
        Pipe {
            line,
            bytes: Vec::new(),
            start: 0,
            arrived: 0,
            taken: 0,
            pieces: VecDeque::new(),
            free_at: 0,
            ending: None,
            silent: false,
            timed: false,
            written: 0,
            cut_at: None,
        }
    }

    /// Bytes that can be written now.
    pub fn room(&self) -> usize {
        if self.ending.is_some() {
            return usize::MAX;
        }
        self.line.size.saturating_sub(self.bytes.len() - self.start - self.taken)
    }

    /// Whether one that waits for room is told: not for each byte.
    pub fn has_much_room(&self) -> bool {
        self.room() >= self.line.size / 4
    }

    /// Sends bytes, whether or not there is room. Returns whether this is where the connection is to be cut.
    pub fn write(&mut self, now: Micros, bytes: &[u8]) -> bool {
        if self.ending.is_some() || self.silent || bytes.is_empty() {
            return false;
        }
        let mut bytes = bytes;
        let mut cut = false;
        if let Some(at) = self.cut_at
            && self.written + bytes.len() as u64 >= at
        {
            bytes = &bytes[..at.saturating_sub(self.written) as usize];
            cut = true;
            self.cut_at = None;
        }
        self.written += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.send(now, bytes.len());
        cut
    }

    /// Puts bytes on their way.
    fn send(&mut self, now: Micros, count: usize) {
        let begin = self.free_at.max(now);
        // What was sent before on a faster line must not be overtaken.
        let earliest = self.pieces.back().map_or(0, |(at, _)| *at);
        if self.line.rate == 0 {
            if count > 0 {
                self.pieces.push_back(((begin + self.line.latency).max(earliest), count));
            }
            return;
        }
        let grain = ((self.line.rate * GRAIN / 1_000_000) as usize).max(64);
        let mut left = count;
        self.free_at = begin;
        while left > 0 {
            let piece = left.min(grain);
            self.free_at += piece as u64 * 1_000_000 / self.line.rate;
            self.pieces.push_back(((self.free_at + self.line.latency).max(earliest), piece));
            left -= piece;
        }
    }

    /// From now on the line is this fast, also for what is on its way.
    pub fn set_rate(&mut self, now: Micros, rate: u64) {
        self.line.rate = rate;
        let count = self.pieces.drain(..).map(|(_, count)| count).sum();
        self.free_at = now;
        self.send(now, count);
        if let (Some((at, Ending::Fin)), Some((last, _))) = (&mut self.ending, self.pieces.back()) {
            *at = (*at).max(*last);
        }
    }

    /// When the next bytes, or the end, arrive.
    pub fn next_arrival(&self) -> Option<Micros> {
        self.pieces.front().map(|(at, _)| *at).or(self.ending.map(|(at, _)| at))
    }

    /// Moves what has arrived to what can be read.
    pub fn arrive(&mut self, now: Micros) {
        while let Some(&(at, count)) = self.pieces.front() {
            if at > now {
                break;
            }
            self.arrived += count;
            self.pieces.pop_front();
        }
    }

    pub fn readable(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.arrived]
    }

    /// The receiver has read all that arrived, and waits for the rest of it.
    pub fn take(&mut self) {
        self.taken = self.arrived;
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
        self.arrived -= count;
        self.taken = self.taken.saturating_sub(count);
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > 64 << 10 && self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Whether anything is on its way or waits to be read.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    /// How it ended, once everything before that was read.
    pub fn ended(&self, now: Micros) -> Option<Ending> {
        let (at, ending) = self.ending?;
        (at <= now && self.arrived == 0 && self.pieces.is_empty()).then_some(ending)
    }

    pub fn has_end(&self) -> bool {
        self.ending.is_some()
    }

    /// Nothing is written after this.
    pub fn finish(&mut self, now: Micros) {
        if self.ending.is_none() {
            let last = self.pieces.back().map_or(0, |(at, _)| *at);
            self.ending = Some((last.max(now + self.line.latency), Ending::Fin));
        }
    }

    /// What is on its way is lost; the receiver learns of it at `at`.
    pub fn reset(&mut self, at: Micros) {
        self.drop_pieces();
        self.ending = Some((at, Ending::Reset));
    }

    fn drop_pieces(&mut self) {
        self.pieces.clear();
        self.bytes.truncate(self.start + self.arrived);
    }

    /// From now on everything is lost, and the receiver learns of it at `at` only.
    pub fn silence(&mut self, at: Micros) {
        if self.ending.is_none() {
            self.silent = true;
            self.reset(at);
        }
    }

    /// The connection is to be cut when so many more bytes have been written.
    pub fn cut_after(&mut self, bytes: u64) {
        self.cut_at = Some(self.written + bytes);
    }

    /// What has not arrived yet does not before `until`.
    pub fn stall(&mut self, now: Micros, until: Micros) {
        self.free_at = self.free_at.max(until);
        let ending = self.ending.iter_mut().map(|(at, _)| at);
        for at in self.pieces.iter_mut().map(|(at, _)| at).chain(ending) {
            if *at > now {
                *at = (*at).max(until);
            }
        }
    }
}
