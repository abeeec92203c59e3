//! Loops that only the job servers can tell: the same server under another name.
//!
//! A submission under the id of the job that the proxy itself holds is merged with it, acknowledged, and gone. So each source
//! connection's client id ends in a random number of its forward, and before a forward takes jobs it asks its destination for
//! `workers`: a line with such a number and the destination's queue leads on to that forward. From there it follows the way
//! that the jobs would take. If that leads back to itself, it takes no jobs.
//!
//! Of the forwards that close a loop together exactly one is to find it: the last that began to ask, when all others were
//! connected already. So each follows only those that began to ask before it, and believes only answers from after that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{LIMITS, Shared};
use crate::config::{Address, Server};
use crate::gearman::admin;
use crate::gearman::connection::ConnectionError;

/// Between looks whether another forward's question to the same server was answered.
const LOOK: Duration = Duration::from_millis(100);

/// A server that does not answer the question is not asked again for this long: each time delays a forward's start.
const UNTOLD: Duration = Duration::from_secs(600);

/// What each server answered last.
#[derive(Debug, Default)]
pub struct Loops {
    answers: Mutex<HashMap<Server, Arc<Mutex<Answer>>>>,
}

/// The forwards of this process that a server names as workers.
#[derive(Debug, Default)]
struct Answer {
    asked: Option<Instant>,
    /// It did not answer.
    untold: bool,
    /// Thousands of forwards may share them.
    forwards: Arc<HashSet<u64>>,
}

/// A forward that takes jobs: its number, what it is called, and where it takes them.
struct Taker {
    number: u64,
    name: String,
    leads_to: Option<Address>,
}

impl Shared {
    /// What its source connection is called.
    pub(super) fn client_id(&self) -> String {
        format!("gearman-proxy:{}:{:016x}", self.config.source.queue, self.number)
    }

    /// To be asked when the source is connected and before its queue is announced.
    ///
    /// # Errors
    /// The forward closes a loop; its forwards in words.
    pub(super) fn check_for_loops(&self) -> Result<(), String> {
        let address = self.teller.metrics().destination().clone();
        let since = {
            let mut leads_to = self.leads_to.lock();
            let since = Instant::now();
            *leads_to = Some((address.clone(), since));
            since
        };
        let takers = |address: &Address| {
            let workers = self.workers(&address.server, since);
            let takes = |other: &Shared| workers.contains(&other.number) && other.config.source.queue == address.queue;
            let taker = |other: Arc<Shared>| Taker {
                number: other.number,
                name: other.config.source.to_string(),
                leads_to: followed(other.leads_to.lock().as_ref(), since).cloned(),
            };
            self.common.forwards_that(takes).into_iter().map(taker).collect()
        };
        let Some(way) = way(&self.config.source.to_string(), &address, self.number, takers) else { return Ok(()) };
        *self.leads_to.lock() = None;
        Err(words(&way))
    }

    /// The forwards of this process among a server's workers. Forwards that connect at one time share one question.
    fn workers(&self, server: &Server, since: Instant) -> Arc<HashSet<u64>> {
        let answer = Arc::clone(self.common.loops.answers.lock().entry(server.clone()).or_default());
        while !self.ended.is_set() {
            let Some(mut answer) = answer.try_lock_for(LOOK) else { continue };
            if answer.asked.is_none_or(|asked| asked < since && !(answer.untold && asked.elapsed() < UNTOLD)) {
                answer.asked = Some(Instant::now());
                let ours: HashSet<u64> = self.common.forwards_that(|_| true).iter().map(|other| other.number).collect();
                // A server that doesn't know the command is not another name of one that is known by it.
                let mut workers = HashSet::new();
                let outcome = admin::each_worker(server, &LIMITS, &self.ended, |client_id, _| {
                    workers.extend(number_in(client_id).filter(|number| ours.contains(number)));
                });
                answer.forwards = Arc::new(workers);
                if let Err(error) = &outcome {
                    log::debug!("{server} does not tell its workers: {error}");
                }
                answer.untold = matches!(outcome, Err(ConnectionError::NoAnswer(_)));
            }
            return Arc::clone(&answer.forwards);
        }
        Arc::default()
    }
}

/// Where a forward leads one that began to ask at `since`.
fn followed(leads_to: Option<&(Address, Instant)>, since: Instant) -> Option<&Address> {
    leads_to.filter(|(_, began)| *began < since).map(|(address, _)| address)
}

/// The number at the end of one of our client ids.
fn number_in(client_id: &str) -> Option<u64> {
    let (_, number) = client_id.rsplit_once(':')?;
    u64::from_str_radix(number, 16).ok()
}

/// The names on a way from a forward, which begins at `name` and delivers to `address`, back to it.
fn way(name: &str, address: &Address, to: u64, takers: impl Fn(&Address) -> Vec<Taker>) -> Option<Vec<String>> {
    let mut ways = vec![(vec![name.to_owned()], address.clone())];
    let mut seen = HashSet::new();
    while let Some((way, address)) = ways.pop() {
        for Taker { number, name, leads_to } in takers(&address) {
            let mut way = way.clone();
            way.push(name);
            if number == to {
                return Some(way);
            }
            if seen.insert(number) {
                ways.extend(leads_to.map(|next| (way, next)));
            }
        }
    }
    None
}

/// For log and status: printable, 80 bytes at most.
fn words(way: &[String]) -> String {
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

    fn address(number: u64) -> Address {
        Address { server: Server { host: format!("h{number}"), port: 1 }, queue: "q".to_owned() }
    }

    /// From `to`, which leads to address `first`, back. Each of the others has its number, the address it takes from, and the one
    /// it leads to if it takes jobs.
    fn way_over(others: &[(u64, u64, Option<u64>)], first: u64, to: u64) -> Option<Vec<String>> {
        let takers = |at: &Address| {
            let takers = others.iter().filter(|(_, from, _)| address(*from) == *at);
            let taker = |other: &(u64, u64, Option<u64>)| Taker {
                number: other.0,
                name: format!("s{}", other.0),
                leads_to: other.2.map(address),
            };
            takers.map(taker).collect()
        };
        way(&format!("s{to}"), &address(first), to, takers)
    }

    #[test]
    fn the_forward_that_closes_a_cycle_finds_its_way_back() {
        // The second and the third take from one queue; the fourth asks.
        let others = [(1, 1, Some(2)), (2, 2, Some(4)), (3, 2, None), (4, 4, None), (5, 5, Some(6)), (6, 6, Some(5))];
        assert_eq!(way_over(&others, 1, 4).unwrap(), ["s4", "s1", "s2", "s4"]);
        assert_eq!(way_over(&others, 4, 4).unwrap(), ["s4", "s4"], "a queue to itself");
        assert_eq!(way_over(&others, 3, 4), None);
        assert_eq!(way_over(&others, 5, 4), None, "a loop of others");
        let others = others.map(|(number, from, leads_to)| (number, from, leads_to.filter(|_| number != 1)));
        assert_eq!(way_over(&others, 1, 4), None, "one of them takes no jobs");
    }

    /// Two forwards that lead to each other connect, begin to ask, and ask, in every order that their threads can have.
    #[test]
    fn of_two_that_close_a_loop_together_exactly_one_finds_it() {
        for order in 0..1 << 6 {
            let turns: Vec<usize> = (0..6).map(|turn| order >> turn & 1).collect();
            if turns.iter().sum::<usize>() != 3 {
                continue;
            }
            let start = Instant::now();
            let mut steps = [0; 2];
            let mut leads_to = [None, None];
            let mut found = 0;
            for (turn, &own) in turns.iter().enumerate() {
                steps[own] += 1;
                let other = 1 - own;
                match steps[own] {
                    1 => {}
                    2 => leads_to[own] = Some((address(other as u64), start + LOOK * turn as u32)),
                    _ => {
                        let (destination, since) = leads_to[own].clone().unwrap();
                        let takers = |at: &Address| {
                            let connected = (0..2).filter(|&number| steps[number] > 0 && address(number as u64) == *at);
                            let taker = |number: usize| Taker {
                                number: number as u64,
                                name: String::new(),
                                leads_to: followed(leads_to[number].as_ref(), since).cloned(),
                            };
                            connected.map(taker).collect()
                        };
                        if way("", &destination, own as u64, takers).is_some() {
                            (found, leads_to[own]) = (found + 1, None);
                        }
                    }
                }
            }
            assert_eq!(found, 1, "{turns:?}");
        }
    }

    #[test]
    fn only_client_ids_with_a_number_may_be_ours() {
        assert_eq!(number_in("gearman-proxy:a:b:000000000000002f"), Some(0x2f));
        assert_eq!(number_in("gearman-proxy:q"), None);
        assert_eq!(number_in("-"), None);
    }

    #[test]
    fn a_loop_is_told_in_words_that_the_status_can_show() {
        let way = ["a:1/q", "b:1/q", "a:1/q"].map(str::to_owned);
        assert_eq!(words(&way), "forwarding loop: a:1/q -> b:1/q -> a:1/q");
        assert!(words(&["a".repeat(200)]).len() <= 80);
    }
}
