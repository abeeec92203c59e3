//! Plans drawn from seeds.

use crate::clock::{MILLISECOND, Micros, SECOND};
use crate::pipe::Line;
use crate::plan::{Class, Fault, ForwardPlan, Kind, Order, Outcome, Place, Plan, ServerPlan, Unique, Which};
use crate::random::Random;

const SOURCE: usize = 0;
const FIRST_DESTINATION: usize = 1;
const SECOND_DESTINATION: usize = 2;
const REJECT_SERVER: usize = 3;

/// From the last fault until everything must be delivered. Behind it: up to 25 s until a silent server is given up, a
/// backoff of 15 s on either side, a release and the single job after it, three tries of jobs that are refused.
const PATIENCE: Micros = 240 * SECOND;

struct Draw {
    random: Random,
    plan: Plan,
    /// The time in which faults begin and jobs come.
    length: Micros,
}

pub fn plan(seed: u64) -> Plan {
    let mut random = Random::part(seed, 0);
    let length = random.pick(&[2 * SECOND, 10 * SECOND, 30 * SECOND, 60 * SECOND]);
    let plan = Plan {
        seed,
        servers: Vec::new(),
        forwards: Vec::new(),
        proxies: 1,
        classes: Vec::new(),
        orders: Vec::new(),
        faults: Vec::new(),
        lazy: random.pick(&[0, 3, 8, 8, 30]),
        ordered: false,
        patience: PATIENCE,
    };
    let mut draw = Draw { random, plan, length };
    draw.servers();
    draw.forwards();
    if draw.plan.forwards.iter().any(|forward| !forward.asynchronous) {
        // Somebody waits for results.
        draw.plan.servers.iter_mut().skip(FIRST_DESTINATION).for_each(|server| server.hands = server.hands.max(1));
    }
    draw.orders();
    draw.faults();
    draw.patience();
    draw.plan
}

impl Draw {
    fn line(&mut self) -> Line {
        let random = &mut self.random;
        Line {
            latency: random.pick(&[50, 200, 1_000, 20_000, 100_000]),
            rate: random.pick(&[0, 0, 0, 0, 0, 2_000_000, 100_000]),
            size: random.pick(&[4_096, 16_384, 65_536, 65_536, 262_144]),
        }
    }

    /// Synchronous jobs may have to wait for each other, and all for those that break connections.
    fn patience(&mut self) {
        let plan = &mut self.plan;
        if plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Full { .. })) {
            // A queue whose limit was lifted looks as full as before; it is tried after five minutes.
            plan.patience += 300 * SECOND;
        }
        for order in &plan.orders {
            let class = plan.classes[order.class];
            if plan.forwards.iter().any(|forward| forward.queue == class.queue && !forward.asynchronous) {
                plan.patience += class.run;
            }
            if class.kind == Kind::Poison {
                // It is tried at least three times, each of which breaks the connection, and tells nothing where no other
                // job was taken between; a try waits up to 15 s.
                plan.patience += 120 * SECOND;
            }
        }
    }

    fn servers(&mut self) {
        for name in ["source:4730", "first:4730", "second:4730", "rejects:4730"] {
            let line = self.line();
            let random = &mut self.random;
            let is_source = name.starts_with("source");
            self.plan.servers.push(ServerPlan {
                name,
                process_id: random.pick(&[4711, 4711, 4711, 333, 120, 7]),
                tells: !random.one_in(12),
                retries: (is_source && random.one_in(5)).then(|| random.range(2, 5) as u32),
                hands: if is_source { 0 } else { random.pick(&[0, 1, 3, 50, 50]) },
                idle: random.pick(&[0, MILLISECOND, 100 * MILLISECOND, SECOND]),
                line,
            });
        }
    }

    fn forwards(&mut self) {
        let random = &mut self.random;
        let asynchronous = !random.one_in(4);
        let workers = random.pick(&[1, 1, 1, 2, 3]);
        let forward = ForwardPlan {
            proxy: 0,
            queue: 0,
            source: SOURCE,
            destinations: if random.one_in(6) {
                vec![FIRST_DESTINATION, SECOND_DESTINATION]
            } else {
                vec![FIRST_DESTINATION]
            },
            reject: random.one_in(3).then(|| random.pick(&[SOURCE, REJECT_SERVER, REJECT_SERVER])),
            asynchronous,
            workers,
            prefetch: if asynchronous { random.pick(&[1, 2, 7, 64, 4096, 4096, 4096]) } else { workers },
            byte_limit: random.pick(&[2_000, 64 << 10, 8 << 20, 8 << 20]),
            timeout: (!asynchronous && random.one_in(4)).then(|| random.pick(&[5 * SECOND, 40 * SECOND])),
            witness: random.one_in(3),
        };
        self.plan.forwards.push(forward.clone());
        self.plan.ordered = asynchronous && workers == 1 && forward.destinations.len() == 1 && random.one_in(3);
        if self.plan.ordered {
            return;
        }
        if random.one_in(6) {
            // Another proxy on the same queue.
            self.plan.proxies = 2;
            let prefetch = if asynchronous { random.pick(&[1, 7, 4096]) } else { workers };
            self.plan.forwards.push(ForwardPlan { proxy: 1, prefetch, ..forward });
        } else if random.one_in(5) {
            // Another forward of the same proxy between the same servers.
            let asynchronous = !random.one_in(3);
            let prefetch = if asynchronous { 4096 } else { workers };
            let (queue, timeout) = (1, None);
            self.plan.forwards.push(ForwardPlan { queue, asynchronous, prefetch, timeout, ..forward });
        }
    }

    fn orders(&mut self) {
        let count = self.random.pick(&[5, 15, 25, 25, 40, 60]);
        let odd = !self.plan.ordered && self.random.one_in(3);
        let equal = self.random.one_in(3);
        // All jobs of a queue are the same: only their handles tell one from the other, and those begin again.
        let twins = !self.plan.ordered && self.random.one_in(8);
        let queues = self.plan.forwards.iter().map(|forward| forward.queue).max().unwrap_or(0);
        // All at once, in bursts, or one after the other.
        let bursts = self.random.pick(&[1, 3, 1000]);
        let length = self.length;
        let starts: Vec<Micros> = (0..bursts).map(|_| self.random.range(0, length)).collect();
        let mut long_ones = 3;
        for _ in 0..count {
            let random = &mut self.random;
            let queue = random.below(queues + 1);
            let asynchronous =
                self.plan.forwards.iter().filter(|forward| forward.queue == queue).all(|forward| forward.asynchronous);
            let at =
                if bursts == 1000 { random.range(0, length) } else { random.pick(&starts) + random.range(0, 20_000) };
            let again = self.plan.classes.iter().rposition(|class| class.queue == queue);
            let class = match again {
                Some(again) if twins || equal && random.one_in(3) && self.plan.classes[again].kind == Kind::Good => {
                    again
                }
                _ => {
                    let mut class = Self::class(random, asynchronous, odd && !twins, queue, &mut long_ones);
                    if twins {
                        class.unique = Unique::None;
                    }
                    self.plan.classes.push(class);
                    self.plan.classes.len() - 1
                }
            };
            let foreground = !asynchronous || (!self.plan.ordered && random.one_in(8));
            let leaves = (foreground && random.one_in(15)).then(|| random.spread(1_000, 20 * SECOND));
            let priority = if self.plan.ordered { 1 } else { random.pick(&[0, 1, 1, 1, 1, 2]) };
            self.plan.orders.push(Order { at, class, foreground, priority, leaves });
        }
        self.plan.orders.sort_by_key(|order| order.at);
        if twins && self.random.one_in(2) {
            self.restart_unseen();
        }
    }

    /// The source is restarted while acknowledgements are under way, and only handles that come again tell it: a process id of
    /// an early process is the same after a restart.
    fn restart_unseen(&mut self) {
        let random = &mut self.random;
        self.plan.servers[SOURCE].process_id = random.pick(&[120, 7]);
        let away = random.spread(MILLISECOND, SECOND);
        let half = self.plan.orders.len() / 2;
        let (before, after) = self.plan.orders.split_at_mut(half);
        let last = before.last().map_or(0, |order| order.at);
        after.iter_mut().for_each(|order| order.at += away + SECOND);
        // All were acknowledged then, and no answer has proven it.
        let at = last + random.range(100 * MILLISECOND, 900 * MILLISECOND);
        self.plan.faults.push((at, Fault::Kill { server: SOURCE, keeps: false, process_id: None, away }));
    }

    fn class(random: &mut Random, asynchronous: bool, odd: bool, queue: usize, long_ones: &mut u32) -> Class {
        let kind = match random.below(14) {
            0 | 1 if odd => random.pick(&[Kind::Bad, Kind::Refused, Kind::Poison, Kind::Expired]),
            _ => Kind::Good,
        };
        let size = match random.below(20) {
            0 => random.spread(1_000, 60_000) as usize,
            1..=4 => random.spread(100, 2_000) as usize,
            _ => random.range(0, 60) as usize,
        };
        let unique = match random.below(12) {
            0 | 1 => Unique::Short,
            2 => random.pick(&[Unique::Long, Unique::TooLong, Unique::Data]),
            _ => Unique::None,
        };
        let mut run = random.spread(100, 2 * SECOND);
        if !asynchronous && *long_ones > 0 && random.one_in(8) {
            *long_ones -= 1;
            run = random.range(20 * SECOND, 100 * SECOND);
        }
        let outcome =
            random.pick(&[Outcome::Completes, Outcome::Completes, Outcome::Completes, Outcome::Fails, Outcome::Raises]);
        Class { kind, queue, size, unique, run, outcome }
    }

    fn lasts(&mut self) -> Micros {
        // A third of them longer than a forward waits before it gives the jobs back.
        let random = &mut self.random;
        match random.below(3) {
            0 => random.spread(MILLISECOND, SECOND),
            1 => random.range(SECOND, 20 * SECOND),
            _ => random.range(20 * SECOND, 100 * SECOND),
        }
    }

    fn which(&mut self, forward: usize) -> Which {
        let workers = self.plan.forwards[forward].workers;
        if self.plan.ordered || self.random.one_in(2) { Which::Line(self.random.below(workers)) } else { Which::Source }
    }

    fn server(&mut self) -> usize {
        let random = &mut self.random;
        let servers: &[usize] = match () {
            () if self.plan.ordered => &[FIRST_DESTINATION],
            () if self.plan.forwards[0].destinations.len() > 1 => {
                &[SOURCE, FIRST_DESTINATION, FIRST_DESTINATION, SECOND_DESTINATION]
            }
            () if self.plan.forwards[0].reject == Some(REJECT_SERVER) => &[SOURCE, FIRST_DESTINATION, REJECT_SERVER],
            () => &[SOURCE, FIRST_DESTINATION],
        };
        random.pick(servers)
    }

    fn faults(&mut self) {
        if !self.plan.faults.is_empty() {
            // Another one would hide what that one does.
            return;
        }
        let count = if self.plan.ordered { self.random.range(1, 2) } else { self.random.pick(&[0, 2, 3, 4, 4, 5, 7]) };
        for _ in 0..count {
            let length = self.length;
            // Where jobs come is where faults tell most.
            let at = match self.random.below(3) {
                0 => self.random.range(0, length),
                _ => {
                    let order = self.random.below(self.plan.orders.len());
                    self.plan.orders[order].at + self.random.spread(100, 2 * SECOND)
                }
            };
            let fault = if self.plan.ordered { self.cut() } else { self.fault() };
            self.plan.faults.push((at, fault));
        }
        self.plan.faults.sort_by_key(|(at, _)| *at);
    }

    fn cut(&mut self) -> Fault {
        let forward = self.random.below(self.plan.forwards.len());
        let which = self.which(forward);
        let random = &mut self.random;
        let place = match random.below(4) {
            0 => Place::Now,
            1 | 2 => Place::Sent(random.spread(1, 3_000)),
            _ => Place::Received(random.spread(1, 3_000)),
        };
        Fault::Cut { forward, which, place, reset: random.one_in(2) }
    }

    fn fault(&mut self) -> Fault {
        let lasts = self.lasts();
        let server = self.server();
        let forward = self.random.below(self.plan.forwards.len());
        let which = self.which(forward);
        let proxy = self.random.below(self.plan.proxies);
        let random = &mut self.random;
        match random.below(24) {
            0..=6 => self.cut(),
            7 => Fault::CutAll { server, reset: random.one_in(2) },
            8 => Fault::Stall { forward, which, lasts },
            9 => Fault::Silence { forward, which, noticed: random.spread(SECOND, 60 * SECOND) },
            10..=13 => {
                let process_id = match random.below(4) {
                    0 | 1 => None,
                    2 => Some(random.range(1_000, 30_000) as u32),
                    _ => Some(random.range(2, 299) as u32),
                };
                Fault::Kill { server, keeps: random.one_in(4), process_id, away: lasts }
            }
            14..=16 => Fault::Hang { server, lasts },
            17 => Fault::Unreachable { server, lasts },
            18 => {
                let queue = random.below(2);
                Fault::Full { server: FIRST_DESTINATION, queue, limit: random.range(1, 10) as usize, lasts }
            }
            19 => Fault::Slow { server, rate: random.spread(2_000, 200_000), lasts: lasts.max(SECOND) },
            20 | 21 => Fault::Crash { proxy, away: lasts.min(20 * SECOND) },
            22 => Fault::Restart { proxy, away: lasts.min(20 * SECOND) },
            _ => Fault::Reload { proxy },
        }
    }
}
