//! Everything about a schedule that is decided before it runs: who is there, which jobs are submitted, what goes wrong.
//!
//! A plan is data, so that a failing one can be shrunk by leaving parts out.

use crate::clock::Micros;
use crate::pipe::Line;
use crate::wire;

/// Two queues that jobs are submitted to, and one for rejects.
pub const QUEUES: usize = 3;
pub const REJECTS: usize = 2;
const NAMES: [&[u8]; QUEUES] = [b"q0", b"q1", b"rejects"];

/// A job whose data is larger is failed.
pub const MAX_JOB_SIZE: usize = 64 << 20;

pub fn queue_name(queue: usize) -> &'static [u8] {
    NAMES[queue]
}

pub fn queue(name: &[u8]) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

pub fn is_work_queue(queue: usize) -> bool {
    queue != REJECTS
}

/// What a job is to those who have to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// The stages can't read it.
    Bad,
    /// It is older than `max_age`.
    Expired,
    /// The destination closes the connection over it.
    Poison,
    /// The destination answers an ERROR to it.
    Refused,
}

/// How a worker ends a foreground job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Completes,
    Fails,
    Raises,
}

/// Jobs with equal data. Most classes have one job.
#[derive(Debug, Clone, Copy)]
pub struct Class {
    pub kind: Kind,
    pub queue: usize,
    /// Bytes of data.
    pub size: usize,
    pub unique: Unique,
    /// How long a worker takes for it.
    pub run: Micros,
    pub outcome: Outcome,
}

/// The unique id that the source's client gives a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unique {
    None,
    Short,
    /// As long as every server hands on.
    Long,
    /// A byte longer, which gearmand cuts.
    TooLong,
    /// `-`: the data itself.
    Data,
}

/// The data of a class: `cNUMBER;` and a filling.
pub fn data(number: usize, class: &Class) -> Vec<u8> {
    let mut data = format!("c{number};").into_bytes();
    // The filling differs from byte to byte: packets that are put together wrongly shall not look right.
    let filling = (data.len()..class.size).map(|at| (at.wrapping_mul(37) ^ number ^ at >> 8) as u8);
    data.extend(filling);
    data
}

/// The class of some data.
pub fn class(data: &[u8]) -> Option<usize> {
    let end = data.iter().take(12).position(|&byte| byte == b';')?;
    Some(wire::number(data.get(1..end)?)? as usize)
}

/// What a worker returns for a job of a class.
pub fn result(class: usize) -> Vec<u8> {
    format!("r{class};the \0 result").into_bytes()
}

pub fn is_result(data: &[u8], number: usize) -> bool {
    data.first() == Some(&b'r') && class(data) == Some(number) && data.ends_with(b"the \0 result")
}

/// The source's unique id of a class.
pub fn unique(number: usize, kind: Unique) -> Vec<u8> {
    match kind {
        Unique::None => Vec::new(),
        Unique::Short => format!("own-{number}").into_bytes(),
        Unique::Long => format!("{number:063}").into_bytes(),
        Unique::TooLong => format!("{number:062}-x").into_bytes(),
        Unique::Data => b"-".to_vec(),
    }
}

/// A job that a client submits to the source.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub at: Micros,
    pub class: usize,
    pub foreground: bool,
    /// 0 is the highest.
    pub priority: usize,
    /// The foreground client leaves so long after.
    pub leaves: Option<Micros>,
}

#[derive(Debug, Clone)]
pub struct ServerPlan {
    pub name: &'static str,
    pub process_id: u32,
    /// It answers `getpid`.
    pub tells: bool,
    /// `--job-retries`.
    pub retries: Option<u32>,
    /// Jobs that its workers run at once; none: nobody works there before the end.
    pub hands: usize,
    /// A worker looks for a job so long after one came.
    pub idle: Micros,
    pub line: Line,
}

#[derive(Debug, Clone)]
pub struct ForwardPlan {
    /// Which proxy's; a proxy is a process.
    pub proxy: usize,
    pub queue: usize,
    pub source: usize,
    pub destinations: Vec<usize>,
    pub reject: Option<usize>,
    pub asynchronous: bool,
    pub workers: usize,
    pub prefetch: usize,
    pub byte_limit: usize,
    pub timeout: Option<Micros>,
    /// The process has another connection to the source, which tells whether that was restarted.
    pub witness: bool,
}

/// A connection of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Source,
    Line(usize),
}

/// Where a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Now,
    /// After so many more bytes to the server.
    Sent(u64),
    /// After so many more bytes from the server.
    Received(u64),
}

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// `reset`: what is on its way is lost.
    Cut {
        forward: usize,
        which: Which,
        place: Place,
        reset: bool,
    },
    CutAll {
        server: usize,
        reset: bool,
    },
    /// Nothing arrives for a while.
    Stall {
        forward: usize,
        which: Which,
        lasts: Micros,
    },
    /// Nothing arrives any more, and both ends learn of it late or by their own clocks.
    Silence {
        forward: usize,
        which: Which,
        noticed: Micros,
    },
    /// `keeps`: its queue is persistent. `process_id`: another one than before.
    Kill {
        server: usize,
        keeps: bool,
        process_id: Option<u32>,
        away: Micros,
    },
    /// The process is stopped: the kernel accepts connections and bytes, nothing is answered.
    Hang {
        server: usize,
        lasts: Micros,
    },
    /// Connections to it are not answered at all.
    Unreachable {
        server: usize,
        lasts: Micros,
    },
    /// A queue takes so many jobs at most.
    Full {
        server: usize,
        queue: usize,
        limit: usize,
        lasts: Micros,
    },
    /// The line to it is this slow.
    Slow {
        server: usize,
        rate: u64,
        lasts: Micros,
    },
    /// The proxy is killed, and another process started.
    Crash {
        proxy: usize,
        away: Micros,
    },
    /// The proxy is stopped, and another process started when it has ended.
    Restart {
        proxy: usize,
        away: Micros,
    },
    Reload {
        proxy: usize,
    },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub servers: Vec<ServerPlan>,
    pub forwards: Vec<ForwardPlan>,
    pub proxies: usize,
    pub classes: Vec<Class>,
    pub orders: Vec<Order>,
    pub faults: Vec<(Micros, Fault)>,
    /// One in so many decisions lets time pass although somebody could act; 0: none.
    pub lazy: u64,
    /// The order of jobs must be kept.
    pub ordered: bool,
    /// After the last fault, everything must be delivered within this time.
    pub patience: Micros,
}

impl Fault {
    /// How long it lasts.
    pub fn lasts(&self) -> Micros {
        match *self {
            Fault::Kill { away: lasts, .. }
            | Fault::Crash { away: lasts, .. }
            | Fault::Restart { away: lasts, .. }
            | Fault::Silence { noticed: lasts, .. }
            | Fault::Stall { lasts, .. }
            | Fault::Hang { lasts, .. }
            | Fault::Unreachable { lasts, .. }
            | Fault::Full { lasts, .. }
            | Fault::Slow { lasts, .. } => lasts,
            Fault::Cut { .. } | Fault::CutAll { .. } | Fault::Reload { .. } => 0,
        }
    }

    /// The server that it is about.
    pub fn server(&self, plan: &Plan) -> Option<usize> {
        match *self {
            Fault::CutAll { server, .. }
            | Fault::Kill { server, .. }
            | Fault::Hang { server, .. }
            | Fault::Unreachable { server, .. }
            | Fault::Full { server, .. }
            | Fault::Slow { server, .. } => Some(server),
            Fault::Cut { forward, which, .. }
            | Fault::Stall { forward, which, .. }
            | Fault::Silence { forward, which, .. } => {
                let forward = plan.forwards.get(forward)?;
                match which {
                    Which::Source => Some(forward.source),
                    Which::Line(_) => forward.destinations.first().copied(),
                }
            }
            Fault::Crash { .. } | Fault::Restart { .. } | Fault::Reload { .. } => None,
        }
    }
}

impl Plan {
    /// When the last order was submitted and the last fault is over.
    pub fn calm_at(&self) -> Micros {
        let faults = self.faults.iter().map(|(at, fault)| at + fault.lasts());
        faults.chain(self.orders.iter().map(|order| order.at)).max().unwrap_or(0)
    }

    pub fn is_source(&self, server: usize) -> bool {
        self.forwards.iter().any(|forward| forward.source == server)
    }
}
