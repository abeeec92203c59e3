//! The words between a relay and its pumps: what happened, what to do, what to tell.

use std::time::Duration;

use super::flight::Reply;
use super::intake::SourcePacket;
use super::job::{Job, UniqueId};
use super::outbox::Chunk;
use crate::gearman::packet::MAXQUEUE;
use crate::stages::Undeliverable;

/// The time since some fixed moment. It never goes back.
pub type Now = Duration;

/// What a forward is, as far as its decisions depend on it.
#[derive(Debug, Clone)]
pub struct Settings {
    pub asynchronous: bool,
    /// The source's queue.
    pub queue: Vec<u8>,
    /// Submitters.
    pub workers: usize,
    /// Jobs asked for and held at most.
    pub prefetch: usize,
    /// Whether the configuration says so: then as many are worth it whatever the distance.
    pub prefetch_is_explicit: bool,
    /// Bytes of jobs held at most; one job of any size always may be.
    pub byte_limit: usize,
    /// How long a synchronous job may take, from its arrival.
    pub timeout: Option<Duration>,
    /// Destinations, of which one is used at a time.
    pub destinations: usize,
    /// Whether undeliverable jobs have somewhere to go; else they are failed.
    pub reject_queue: bool,
    /// A random number of this relay alone: for unique ids that are never used again, and for jitter.
    pub random: u128,
    pub timing: Timing,
}

/// Every duration in a forward's life. The default is what the documentation says.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The first wait between tries to connect.
    pub backoff: Duration,
    /// The longest wait between tries to connect.
    pub longest_backoff: Duration,
    /// The longest wait between tries to submit to a full queue.
    pub longest_full_backoff: Duration,
    /// For a server to make progress while it owes an answer, before what the line's rate adds.
    pub answer: Duration,
    /// The most for that with what the rate adds.
    pub longest_answer: Duration,
    /// From the first sign of trouble with every submitter until the jobs are given back.
    pub release: Duration,
    /// Between probes of an idle source.
    pub probe: Duration,
    /// Between probes of a destination that runs a synchronous job.
    pub job_probe: Duration,
    /// From a stop until what was taken goes back.
    pub stop: Duration,
    /// The same where nothing is held and no acknowledgement is unproven.
    pub idle_stop: Duration,
    /// For the replies that destinations owe when the source is gone.
    pub settle: Duration,
    /// For the source to answer that it has heard all acknowledgements, before it is left.
    pub farewell: Duration,
    /// What may be unconfirmed on a line, in time at its measured rate.
    pub unconfirmed: Duration,
    /// After this, what was full is tried again whatever it counts.
    pub full_patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            backoff: Duration::from_millis(500),
            longest_backoff: Duration::from_secs(15),
            longest_full_backoff: Duration::from_secs(2),
            answer: Duration::from_secs(15),
            longest_answer: Duration::from_secs(25),
            release: Duration::from_secs(30),
            probe: Duration::from_secs(30),
            job_probe: Duration::from_secs(10),
            stop: Duration::from_secs(10),
            idle_stop: Duration::from_secs(1),
            settle: Duration::from_secs(10),
            farewell: Duration::from_secs(2),
            unconfirmed: Duration::from_secs(5),
            full_patience: Duration::from_secs(300),
        }
    }
}

/// A destination connection: its submitter, and the how many-th of that submitter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LineId {
    pub submitter: usize,
    pub generation: u32,
}

/// The thread that asks for its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pump {
    /// Reads the source.
    Reader,
    /// Writes a destination connection; connects it.
    Submitter(usize),
    /// Reads a destination connection.
    Confirmer(usize),
    /// Talks to the reject queue's server.
    Rejecter,
}

/// Why a server is unavailable, in our own words, for log and status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The same for the same reason, whatever numbers stand in the text.
    pub kind: &'static str,
    /// Printable ASCII without brackets, quotes and bars, 80 bytes at most.
    pub text: String,
    /// What to do about it, where that is known.
    pub advice: Option<&'static str>,
}

/// How a connection ended or did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The server closed or reset a connection that had been in use: a job that it closes connections on may be why.
    pub closed: bool,
    /// The server broke the protocol: it does not shorten the waits, whatever it had delivered.
    pub nonsense: bool,
    /// The result of a synchronous job was larger than allowed: another try would bring the same.
    pub oversized: bool,
    pub cause: Cause,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The source is connected and has answered. `process_id` as the server told it. `same` where another connection that
    /// outlived the break of the last one proves that the server is the same process.
    SourceConnected {
        generation: u32,
        process_id: Option<u32>,
        same: bool,
    },
    SourceFailed {
        generation: u32,
        loss: Loss,
    },
    SourcePackets {
        generation: u32,
        packets: Vec<SourcePacket>,
    },
    /// A [`Step::WriteSource`] has ended, or failed: then the reader finds the end. `buffer` is empty, for later.
    SourceWritten {
        generation: u32,
        buffer: Vec<u8>,
        failed: bool,
    },
    SourceLost {
        generation: u32,
        loss: Loss,
    },
    /// A long write to the source has moved on.
    SourceProgress {
        generation: u32,
    },
    /// This pump has to wait for memory before it reads on: until it reports again, its peer is not to blame.
    HeldUp(Pump),
    /// The destination is connected and has answered.
    Connected(LineId),
    ConnectFailed(LineId, Loss),
    /// The stages of a batch were run. `outcomes` in the order of its jobs; `chunk` has the submissions.
    Staged {
        line: LineId,
        number: u64,
        outcomes: Vec<Staged>,
        chunk: Chunk,
    },
    /// A blocking write has waited for room, and got it: the destination takes bytes.
    Progress(LineId),
    /// A [`Step::Write`] has ended; `rest` is what was not written. Where it failed, the confirmer finds the end.
    Written {
        line: LineId,
        rest: Option<Chunk>,
        failed: bool,
    },
    Replies {
        line: LineId,
        replies: Vec<Reply>,
    },
    Lost(LineId, Loss),
    /// What became of the jobs of a [`Step::Reject`], in their order: whether the reject queue took each. `loss` is why
    /// not all.
    Rejected {
        taken: Vec<bool>,
        loss: Option<Loss>,
    },
    /// The answer to a [`Step::Count`].
    Counted(Option<u64>),
    /// Another forward asks whether the source is still the same process: it is to answer something.
    AskSource,
    /// Nothing happened but that time passed. Due when [`Relay::due`] says so.
    Time,
    /// The forward is to end.
    Stop,
}

/// What became of a job in its stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Staged {
    /// Its submission is in the chunk: bytes of its data, and of the whole packet.
    Submitted {
        data: u32,
        packet: u32,
    },
    Undeliverable(Undeliverable),
    /// Older than `max_age`.
    Expired,
    /// Not staged yet: it waits again.
    Interrupted,
    /// Its stages take long, and the forward stops: it goes back.
    Abandoned,
}

/// What a pump is to do next.
#[derive(Debug)]
pub enum Step {
    /// Reader: connect the source; then `SourceConnected` or `SourceFailed`.
    ConnectSource { generation: u32 },
    /// Reader, confirmer: read once from the current connection; `expected` answers are on their way. Then
    /// `SourcePackets`, `Replies`, `SourceLost` or `Lost`.
    Read { generation: u32, expected: usize },
    /// Run the stages; then `Staged`.
    Stage(Batch),
    /// Write to a destination; then `Written`, or `Lost`. The reader must not block: what the socket doesn't take is the rest.
    Write(LineId, Chunk),
    /// Write to the source; then `SourceWritten` (or `SourceLost`, by the reader, as the socket is shut down).
    WriteSource { generation: u32, bytes: Vec<u8> },
    /// Submitter: connect destination number `destination`; then `Connected` or `ConnectFailed`.
    Connect { line: LineId, destination: usize },
    /// Rejecter: submit these to the reject queue under these ids; then `Rejected`.
    Reject(Vec<(Job, UniqueId)>),
    /// Submitter: ask how many jobs the queue of destination number `destination` holds; then `Counted`.
    Count { destination: usize },
    /// Reader: wait this long, or for a wake-up, before anything else.
    Pause(Duration),
    /// Wait for a wake-up.
    Park,
    /// The thread ends.
    End,
}

/// Jobs whose stages are to be run.
#[derive(Debug)]
pub struct Batch {
    pub line: LineId,
    pub number: u64,
    /// The destination that the line is connected to.
    pub destination: usize,
    /// Each with the unique id under which it is submitted unless its stages give another.
    pub jobs: Vec<(Job, UniqueId)>,
}

/// What the thread that fed an event does at once; none of it can block.
#[derive(Debug, Default)]
pub struct Actions {
    /// Source connections whose socket is to be shut down, which wakes the thread that reads or writes it.
    pub close_source: Option<u32>,
    /// The same for destination connections.
    pub close: Vec<LineId>,
    /// Pumps that are parked (or pause) and have something to do.
    pub wake: Vec<Pump>,
    pub tell: Vec<Tell>,
    /// The forward has ended: whatever still connects or asks gives up.
    pub ended: bool,
}

/// What the log, the counters and the status are told.
#[derive(Debug, PartialEq)]
pub enum Tell {
    /// A session began: jobs can come. `after` how long a trouble.
    Relaying {
        after: Option<Duration>,
    },
    /// The session's source connection is gone.
    Apart,
    SourceLost {
        cause: Cause,
        retry: Duration,
    },
    /// A submitter is in trouble. `alone` while others are well; `held` jobs, for `release` at most before they go back.
    DestinationLost {
        destination: usize,
        cause: Cause,
        alone: bool,
        held: usize,
        retry: Duration,
        release: Option<Duration>,
    },
    /// The destination works again `after` a trouble of this length.
    DestinationBack {
        destination: usize,
        after: Duration,
    },
    /// The forward continues with another destination.
    Switched {
        destination: usize,
        /// Jobs went back, or are tried with there; else none of the destinations can be connected, and each is tried in turn.
        released: bool,
    },
    RejecterLost {
        cause: Cause,
        held: usize,
        retry: Duration,
    },
    RejecterBack {
        after: Duration,
    },
    /// Unacknowledged jobs go back to the source.
    GivenBack {
        jobs: usize,
    },
    /// Jobs were taken, and acknowledged: their data's bytes as they came and as they went; `waited` for each from its arrival.
    Delivered {
        jobs: u64,
        bytes_in: u64,
        bytes_out: u64,
        waited: Duration,
    },
    /// A destination made progress without taking a job.
    Progress,
    /// A job was moved to the reject queue, or failed.
    Rejected {
        handle: Vec<u8>,
        reason: Reason,
        moved: bool,
    },
    /// A synchronous job was failed that may have run.
    Failed {
        handle: Vec<u8>,
        reason: Reason,
    },
    Expired {
        jobs: u64,
    },
    /// The source has an ERROR for us, as it has for an acknowledgement of a job that it doesn't know.
    SourceError,
    /// The source was restarted under the same process id.
    Restarted,
    /// The forward has ended; this many jobs go back.
    Stopped {
        left: usize,
    },
}

/// Why a job can't be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Stage(Undeliverable),
    /// More bytes of data than `max_job_size`.
    TooLarge {
        size: usize,
    },
    /// The destination refused it with this code, alone, three times.
    Refused(String),
    /// The destination closed the connection each time it came alone, and took others between.
    Poison,
    /// No result within the forward's `timeout`.
    Timeout,
    /// The connection broke on the last of three tries.
    Lost(Cause),
}

impl Cause {
    /// The destination's queue takes no more jobs.
    pub fn full() -> Cause {
        Cause { kind: "queue full", text: String::from("queue full"), advice: Some(MAXQUEUE) }
    }
}

impl Loss {
    /// The server owed an answer for this long.
    pub fn silent(quiet: Duration) -> Loss {
        let text = format!("no answer for {} s", quiet.as_secs());
        let advice = Some("the server accepts connections but does not answer: look at its process");
        Loss { closed: false, nonsense: false, oversized: false, cause: Cause { kind: "no answer", text, advice } }
    }

    /// The server broke the protocol.
    pub fn nonsense(what: &'static str) -> Loss {
        let advice = Some("is this port a Gearman job server's, without TLS?");
        let cause = Cause { kind: what, text: what.to_owned(), advice };
        Loss { closed: false, nonsense: true, oversized: false, cause }
    }
}
