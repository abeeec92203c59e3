//! The questions behind the view, each in a thread of its own, so that a server that hangs keeps no other back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::config::{Address, Config, Server};
use crate::gearman::admin::{self, QueueStatus};
use crate::gearman::connection::{Connection, ConnectionError, Limits, error_code, is_timeout};
use crate::gearman::packet::{ProtocolError, kind, put_request};
use crate::status::json::Value;

const LIMITS: Limits = Limits { connect: Duration::from_secs(2), answer: Duration::from_secs(2) };

/// The longest report, bytes: a thousand forwards take 400 kB.
const MAX_REPORT: usize = 16 << 20;

/// What a job server said of its queues, or why it said nothing.
pub type Queues = Result<BTreeMap<String, QueueStatus>, String>;

/// What the running proxy says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// When it came.
    pub at: Instant,
    /// Of the proxy.
    pub version: String,
    /// Of the proxy.
    pub pid: u64,
    /// Seconds.
    pub uptime: u64,
    /// By source.
    pub forwards: BTreeMap<String, ForwardReport>,
}

/// What the running proxy says of a forward.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForwardReport {
    pub jobs: u64,
    pub bytes_out: u64,
    pub rejected: u64,
    pub held: u64,
    /// Seconds; none while it is not.
    pub connected: Option<u64>,
    pub troubles: Vec<TroubleReport>,
}

/// A server that the running proxy can't work with.
#[derive(Debug, Clone, PartialEq)]
pub struct TroubleReport {
    pub server: String,
    pub reason: String,
    /// Seconds.
    pub since: u64,
}

impl Report {
    /// Reads an answer to the payload `json`; `None` when it is something else.
    pub fn parse(answer: &str, at: Instant) -> Option<Report> {
        let value = Value::parse(answer).ok()?;
        let mut forwards = BTreeMap::new();
        for forward in value.get("forwards")?.list() {
            let number = |name| forward.get(name).and_then(Value::number);
            let troubles = forward.get("troubles")?.list().iter().map(|trouble| {
                Some(TroubleReport {
                    server: trouble.get("server")?.text()?.to_owned(),
                    reason: trouble.get("reason")?.text()?.to_owned(),
                    since: trouble.get("since")?.number()?,
                })
            });
            let report = ForwardReport {
                jobs: number("jobs")?,
                bytes_out: number("bytes_out")?,
                rejected: number("rejected")?,
                held: number("held")?,
                connected: number("connected"),
                troubles: troubles.collect::<Option<_>>()?,
            };
            forwards.insert(forward.get("source")?.text()?.to_owned(), report);
        }
        Some(Report {
            at,
            version: value.get("version")?.text()?.to_owned(),
            pid: value.get("pid")?.number()?,
            uptime: value.get("uptime")?.number()?,
            forwards,
        })
    }
}

enum Answer {
    Queues(Server, Queues),
    Status(Result<Report, String>),
}

/// Who is asked, and what was answered last.
pub struct Asker {
    pub(super) statusqueue: Option<Address>,
    asked_servers: BTreeSet<Server>,
    /// Servers that have not answered yet: they are not asked again meanwhile.
    pending: BTreeSet<Server>,
    status_pending: bool,
    answers: Receiver<Answer>,
    answer: Sender<Answer>,
    pub(super) servers: BTreeMap<Server, Queues>,
    pub(super) status: Option<Result<Report, String>>,
    pub(super) previous: Option<Report>,
}

impl Asker {
    pub fn new(config: &Config) -> Asker {
        let (answer, answers) = unbounded();
        let ends = |forward: &crate::config::ForwardConfig| {
            [forward.source.server.clone(), forward.first_destination().server.clone()]
        };
        Asker {
            statusqueue: config.statusqueue.clone(),
            asked_servers: config.forwards.iter().flat_map(ends).collect(),
            pending: BTreeSet::new(),
            status_pending: false,
            answers,
            answer,
            servers: BTreeMap::new(),
            status: None,
            previous: None,
        }
    }

    /// The last report, if the proxy answered the last question.
    pub fn report(&self) -> Option<&Report> {
        self.status.as_ref().and_then(|status| status.as_ref().ok())
    }

    /// Asks everyone who owes no answer.
    pub fn ask(&mut self) {
        for server in &self.asked_servers {
            if !self.pending.insert(server.clone()) {
                continue;
            }
            let (there, answer) = (server.clone(), self.answer.clone());
            let asked = thread::Builder::new().name(String::from("ask")).spawn(move || {
                let queues = admin::queues(&there.host, there.port, &LIMITS).map_err(|error| error.to_string());
                let _ = answer.send(Answer::Queues(there, queues));
            });
            if let Err(error) = asked {
                let _ = self.answer.send(Answer::Queues(server.clone(), Err(format!("not asked: {error}"))));
            }
        }
        if let (Some(queue), false) = (&self.statusqueue, self.status_pending) {
            self.status_pending = true;
            let (queue, answer) = (queue.clone(), self.answer.clone());
            let asked = thread::Builder::new().name(String::from("ask")).spawn(move || {
                let _ = answer.send(Answer::Status(report(&queue)));
            });
            if let Err(error) = asked {
                let _ = self.answer.send(Answer::Status(Err(format!("not asked: {error}"))));
            }
        }
    }

    /// Takes what is answered until `deadline`, or until nobody owes an answer. With `last`, whoever still does is shown
    /// as silent.
    pub fn collect(&mut self, deadline: Instant, last: bool) {
        while self.status_pending || !self.pending.is_empty() {
            match self.answers.recv_deadline(deadline) {
                Ok(Answer::Queues(server, queues)) => {
                    self.pending.remove(&server);
                    self.servers.insert(server, queues);
                }
                Ok(Answer::Status(report)) => {
                    self.status_pending = false;
                    self.previous = self.status.take().and_then(Result::ok);
                    self.status = Some(report);
                }
                Err(_) => break,
            }
        }
        if last {
            let silent = || String::from("no answer");
            for server in &self.pending {
                self.servers.insert(server.clone(), Err(silent()));
            }
            if self.status_pending {
                self.status = Some(Err(silent()));
            }
        }
    }
}

fn report(queue: &Address) -> Result<Report, String> {
    let answer = ask_in_foreground(queue, b"json").map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    Report::parse(&answer, Instant::now()).ok_or_else(|| String::from("answered by something else than this proxy"))
}

/// Submits a job in the foreground and waits for its result.
fn ask_in_foreground(queue: &Address, payload: &[u8]) -> Result<Vec<u8>, ConnectionError> {
    let Address { server, queue } = queue;
    let Connection { mut stream, mut incoming } =
        Connection::open(&server.host, server.port, "gearman-proxy/top", &LIMITS)?;
    let mut request = Vec::new();
    // Without a unique id: two that ask at once must not share a job, which dies with the first to leave.
    put_request(&mut request, kind::SUBMIT_JOB_HIGH, &[queue.as_bytes(), b"", payload]);
    stream.write_all(&request)?;
    let deadline = Instant::now() + LIMITS.answer;
    let mut result = Vec::new();
    loop {
        while let Some(packet) = incoming.next(|_| MAX_REPORT)? {
            match packet.kind {
                kind::WORK_DATA | kind::WORK_COMPLETE => {
                    let ([_handle], data) = packet.arguments()?;
                    result.extend_from_slice(data);
                    if packet.kind == kind::WORK_COMPLETE {
                        return Ok(result);
                    }
                    if result.len() > MAX_REPORT {
                        return Err(ProtocolError::TooLong(result.len()).into());
                    }
                }
                kind::WORK_FAIL => return Err(ConnectionError::Refused(String::from("WORK_FAIL"))),
                kind::ERROR => return Err(ConnectionError::Refused(error_code(packet.body))),
                _ => {}
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectionError::NoAnswer(LIMITS.answer));
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match incoming.fill(&mut &stream) {
            Err(error) if is_timeout(&error) => return Err(ConnectionError::NoAnswer(LIMITS.answer)),
            other => other?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_anything_else_is_none() {
        let text = r#"{"version":"1.0.0","pid":7,"uptime":8,"forwards":[{"source":"a:1/q","destination":"b:1/q",
            "mode":"async","jobs":1,"bytes_in":2,"bytes_out":3,"rejected":4,"errors":5,"held":6,"waiting":null,
            "connected":null,"troubles":[{"server":"b:1","reason":"down","since":9}]}]}"#;
        let at = Instant::now();
        let report = Report::parse(text, at).unwrap();
        assert_eq!((report.version.as_str(), report.pid, report.uptime), ("1.0.0", 7, 8));
        let troubles = vec![TroubleReport { server: "b:1".to_owned(), reason: "down".to_owned(), since: 9 }];
        let forward = ForwardReport { jobs: 1, bytes_out: 3, rejected: 4, held: 6, connected: None, troubles };
        assert_eq!(report.forwards, BTreeMap::from([("a:1/q".to_owned(), forward)]));
        for text in ["", "0:OK - proxy version v1.1 running.|", "{}", "[]", r#"{"forwards":[{}]}"#] {
            assert_eq!(Report::parse(text, at), None, "{text}");
        }
    }
}
