//! Loops that only the job servers can tell: the same server under another name.
//!
//! A submission under the id of the job that the proxy itself holds is merged with it, acknowledged, and gone. So each source
//! connection's client id ends in a token of this process and forward, and before a forward takes jobs it asks its
//! destination for `workers`: a line with such a token and the destination's queue leads on to that forward. The one whose
//! step closes a cycle takes no jobs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::{LIMITS, Shared, witness};
use crate::config::{Address, ForwardConfig, Server};
use crate::gearman::admin;
use crate::gearman::connection::ConnectionError;

/// Between looks whether another forward's question to the same server was answered.
const LOOK: Duration = Duration::from_millis(100);

/// A server that does not answer the question is not asked again for this long: each time delays a forward's start.
const UNTOLD: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub struct Loops {
    /// Of this process, 16 hex digits.
    token: String,
    known: Mutex<Known>,
    /// The last answer of each server.
    answers: Mutex<HashMap<Server, Arc<Mutex<Answer>>>>,
}

#[derive(Debug, Default)]
struct Known {
    last: usize,
    forwards: HashMap<usize, Node>,
}

#[derive(Debug)]
struct Node {
    /// `SOURCE`, for messages.
    name: String,
    /// The source's queue.
    queue: String,
    /// Once it may take jobs: its destination, and when that was asked.
    asked: Option<(Address, Instant)>,
    /// The forwards that take what this one delivers.
    leads_to: Vec<usize>,
}

/// The forwards of this process that a server names as workers.
#[derive(Debug, Default)]
struct Answer {
    asked: Option<Instant>,
    /// When it did not answer.
    untold: Option<Instant>,
    forwards: Vec<usize>,
}

impl Default for Loops {
    fn default() -> Self {
        let token = format!("{:016x}", witness::random() as u64);
        Loops { token, known: Mutex::default(), answers: Mutex::default() }
    }
}

impl Loops {
    /// A forward begins; its number.
    pub fn register(&self, config: &ForwardConfig) -> usize {
        let mut known = self.known.lock();
        known.last += 1;
        let number = known.last;
        let (name, queue) = (config.source.to_string(), config.source.queue.clone());
        known.forwards.insert(number, Node { name, queue, asked: None, leads_to: Vec::new() });
        number
    }

    /// A forward has ended.
    pub fn leave(&self, number: usize) {
        self.known.lock().forwards.remove(&number);
    }

    /// What its source connection is called.
    pub fn client_id(&self, number: usize, queue: &str) -> String {
        format!("gearman-proxy:{queue}:{}{number:x}", self.token)
    }

    /// To be asked when the source is connected and before its queue is announced.
    ///
    /// # Errors
    /// The forward closes a loop; its forwards in words.
    pub fn check(&self, shared: &Shared) -> Result<(), String> {
        let connected = Instant::now();
        let address = shared.teller.metrics().destination();
        let workers = self.workers(shared, &address.server, connected);
        let mut known = self.known.lock();
        let leads_to = known.takers(&workers, &address.queue);
        // Who asked before this forward's source was connected doesn't know that it leads here.
        while let Some((number, address)) = known.asked_before(connected, &leads_to) {
            let asked = Instant::now();
            let workers = MutexGuard::unlocked(&mut known, || self.workers(shared, &address.server, connected));
            known.set(number, Some((address, asked)), &workers);
        }
        if let Some(way) = known.way(&leads_to, shared.number) {
            let words = words(&way);
            known.set(shared.number, None, &[]);
            return Err(words);
        }
        known.set(shared.number, Some((address.clone(), connected)), &workers);
        Ok(())
    }

    /// The forwards of this process among a server's workers. Forwards that connect at one time share one question.
    fn workers(&self, shared: &Shared, server: &Server, since: Instant) -> Vec<usize> {
        let answer = Arc::clone(self.answers.lock().entry(server.clone()).or_default());
        loop {
            let Some(mut answer) = answer.try_lock_for(LOOK) else {
                if shared.ended.is_set() {
                    return Vec::new();
                }
                continue;
            };
            let untold = answer.untold.is_some_and(|untold| untold.elapsed() < UNTOLD);
            if !untold && answer.asked.is_none_or(|asked| asked < since) {
                let asked = Instant::now();
                let mut forwards = Vec::new();
                // A server that doesn't know the command is not another name of one that is known by it.
                let outcome = admin::each_worker(server, &LIMITS, &shared.ended, |client_id, _| {
                    forwards.extend(self.number_in(client_id));
                });
                if let Err(error) = &outcome {
                    log::debug!("{server} does not tell its workers: {error}");
                }
                let untold = matches!(outcome, Err(ConnectionError::NoAnswer(_))).then(Instant::now);
                *answer = Answer { asked: Some(asked), untold, forwards };
            }
            return answer.forwards.clone();
        }
    }

    /// The forward with this client id, if it is one of ours.
    fn number_in(&self, client_id: &str) -> Option<usize> {
        let (_, token) = client_id.rsplit_once(':')?;
        usize::from_str_radix(token.strip_prefix(self.token.as_str())?, 16).ok()
    }
}

impl Known {
    /// Those among a server's workers that take from this queue.
    fn takers(&self, workers: &[usize], queue: &str) -> Vec<usize> {
        let takes = |number: &usize| self.forwards.get(number).is_some_and(|node| node.queue == queue);
        workers.iter().copied().filter(takes).collect()
    }

    /// What a forward's destination answered; nothing where it takes no jobs.
    fn set(&mut self, number: usize, asked: Option<(Address, Instant)>, workers: &[usize]) {
        let leads_to = asked.as_ref().map_or_else(Vec::new, |(address, _)| self.takers(workers, &address.queue));
        if let Some(node) = self.forwards.get_mut(&number) {
            (node.asked, node.leads_to) = (asked, leads_to);
        }
    }

    /// A forward that takes jobs on a way from these and whose destination was asked before this moment.
    fn asked_before(&self, moment: Instant, from: &[usize]) -> Option<(usize, Address)> {
        let (mut todo, mut seen) = (from.to_vec(), HashSet::new());
        while let Some(at) = todo.pop() {
            let Some(node) = self.forwards.get(&at).filter(|_| seen.insert(at)) else { continue };
            if let Some((address, _)) = node.asked.as_ref().filter(|(_, asked)| *asked < moment) {
                return Some((at, address.clone()));
            }
            todo.extend(&node.leads_to);
        }
        None
    }

    /// The names on a way from one of `from` to `to`, beginning and ending with `to`.
    fn way(&self, from: &[usize], to: usize) -> Option<Vec<&str>> {
        let name = |number: &usize| self.forwards.get(number).map_or("?", |node| node.name.as_str());
        let mut came_from: HashMap<usize, usize> = from.iter().map(|&next| (next, to)).collect();
        let mut todo: Vec<usize> = from.to_vec();
        while let Some(at) = todo.pop() {
            if at == to {
                let mut way = vec![name(&to)];
                let mut back = came_from.get(&to).copied();
                while let Some(number) = back.filter(|&number| number != to) {
                    way.push(name(&number));
                    back = came_from.get(&number).copied();
                }
                way.push(name(&to));
                way.reverse();
                return Some(way);
            }
            for &next in self.forwards.get(&at).into_iter().flat_map(|node| &node.leads_to) {
                if let std::collections::hash_map::Entry::Vacant(entry) = came_from.entry(next) {
                    entry.insert(at);
                    todo.push(next);
                }
            }
        }
        None
    }
}

/// For log and status: printable, 80 bytes at most.
fn words(way: &[&str]) -> String {
    let printable = |character: char| match character {
        '|' | '\'' | '(' | ')' | '[' | ']' | '{' | '}' | '<' => '_',
        ' '..='~' => character,
        _ => '?',
    };
    let text: String = format!("forwarding loop: {}", way.join(" -> ")).chars().map(printable).collect();
    if text.len() <= 80 { text } else { format!("{}...", text.chars().take(77).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(edges: &[(usize, &[usize])]) -> Known {
        let node = |&(number, leads_to): &(usize, &[usize])| {
            (
                number,
                Node { name: format!("s{number}"), queue: "q".to_owned(), asked: None, leads_to: leads_to.to_vec() },
            )
        };
        Known { last: edges.len(), forwards: edges.iter().map(node).collect() }
    }

    #[test]
    fn the_forward_that_closes_a_cycle_finds_its_way_back() {
        let known = known(&[(1, &[2]), (2, &[3, 4]), (3, &[]), (4, &[])]);
        assert_eq!(known.way(&[1], 4), Some(vec!["s4", "s1", "s2", "s4"]));
        assert_eq!(known.way(&[4], 4), Some(vec!["s4", "s4"]), "a queue to itself");
        assert_eq!(known.way(&[3], 4), None);
    }

    #[test]
    fn who_asked_before_on_the_way_is_to_ask_again() {
        let mut known = known(&[(1, &[]), (2, &[]), (3, &[])]);
        let address = Address { server: Server { host: "h".to_owned(), port: 1 }, queue: "q".to_owned() };
        let begun = Instant::now();
        known.set(1, Some((address.clone(), begun)), &[2]);
        let later = begun + LOOK;
        assert_eq!(known.asked_before(later, &[3]), None, "a forward that takes no jobs");
        assert_eq!(known.asked_before(later, &[1]), Some((1, address.clone())));
        known.set(1, Some((address.clone(), later)), &[2, 1]);
        known.set(2, Some((address.clone(), begun)), &[1]);
        assert_eq!(known.asked_before(later, &[1]), Some((2, address.clone())));
        known.set(2, Some((address, later)), &[1]);
        assert_eq!(known.asked_before(later, &[1]), None);
        assert_eq!(known.way(&[1], 2), Some(vec!["s2", "s1", "s2"]));
    }

    #[test]
    fn only_our_own_workers_count() {
        let loops = Loops::default();
        let id = loops.client_id(0x2f, "a:b");
        assert_eq!(loops.number_in(&id), Some(0x2f));
        assert_eq!(loops.number_in("gearman-proxy:a:0000000000000000f"), None);
        assert_eq!(loops.number_in("-"), None);
    }

    #[test]
    fn a_loop_is_told_in_words_that_the_status_can_show() {
        assert_eq!(words(&["a:1/q", "b:1/q", "a:1/q"]), "forwarding loop: a:1/q -> b:1/q -> a:1/q");
        assert!(words(&["a".repeat(200).as_str()]).len() <= 80);
    }
}
