//! The shortest schedule that still fails: faults and jobs are left out one by one as long as something is violated.

use crate::clock::Micros;
use crate::plan::Plan;
use crate::world::{self, Report};

/// Tries at most.
const TRIES: usize = 3_000;

/// Whether two violations are of one kind, whatever their numbers are.
fn alike(one: &str, other: &str) -> bool {
    let words = |text: &str| text.replace(|letter: char| !letter.is_ascii_alphabetic(), "");
    words(one) == words(other)
}

/// Runs a plan; one that panics has failed, too.
pub fn run(plan: &Plan, tells: bool) -> Report {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world::run(plan, tells)));
    outcome.unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = format!("panics: {}", text.unwrap_or_default());
        Report { hash: 0, violations: vec![text], counts: Default::default(), copies: Vec::new(), story: Vec::new() }
    })
}

fn fails(plan: &Plan, like: &str) -> bool {
    run(plan, false).violations.first().is_some_and(|violation| alike(violation, like))
}

/// A plan that fails in the same way as `plan`, as short as can be.
pub fn shrink(plan: &Plan) -> Plan {
    let Some(like) = run(plan, false).violations.first().cloned() else { return plan.clone() };
    let mut best = plan.clone();
    let mut tries = 0;
    loop {
        let before = (best.orders.len(), best.faults.len(), best.forwards.len());
        // Halves first, then ever smaller pieces.
        let mut piece = best.orders.len().max(best.faults.len()).max(1);
        while piece > 0 && tries < TRIES {
            for faults in [true, false] {
                let mut at = 0;
                while at < if faults { best.faults.len() } else { best.orders.len() } && tries < TRIES {
                    let mut shorter = best.clone();
                    if faults {
                        shorter.faults.drain(at..(at + piece).min(best.faults.len()));
                    } else {
                        shorter.orders.drain(at..(at + piece).min(best.orders.len()));
                    }
                    tries += 1;
                    if fails(&shorter, &like) {
                        best = shorter;
                    } else {
                        at += piece;
                    }
                }
            }
            piece /= 2;
        }
        for simpler in simpler(&best) {
            tries += 1;
            if fails(&simpler, &like) {
                best = simpler;
            }
        }
        if (best.orders.len(), best.faults.len(), best.forwards.len()) == before || tries >= TRIES {
            return best;
        }
    }
}

/// The same plan without one of its oddities.
fn simpler(plan: &Plan) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut with = |change: &dyn Fn(&mut Plan)| {
        let mut simpler = plan.clone();
        change(&mut simpler);
        plans.push(simpler);
    };
    with(&|plan| plan.lazy = 0);
    with(&|plan| plan.forwards.iter_mut().for_each(|forward| forward.workers = 1));
    with(&|plan| plan.servers.iter_mut().for_each(|server| server.line.rate = 0));
    with(&|plan| plan.servers.iter_mut().for_each(|server| server.line.latency = 200 as Micros));
    if plan.forwards.len() > 1 && plan.proxies == 1 {
        with(&|plan| {
            plan.forwards.truncate(1);
            let classes = plan.classes.clone();
            plan.orders.retain(|order| classes[order.class].queue == 0);
        });
    }
    plans
}

/// What happened in a failing plan, in plain words.
pub fn story(plan: &Plan) -> String {
    let report = run(plan, true);
    let mut text = format!("The shortest schedule of seed {} that fails:\n", plan.seed);
    for forward in &plan.forwards {
        text += &format!("  {forward:?}\n");
    }
    for server in &plan.servers {
        text += &format!("  {server:?}\n");
    }
    for order in &plan.orders {
        text += &format!("  {order:?}: {:?}\n", plan.classes[order.class]);
    }
    for (at, fault) in &plan.faults {
        text += &format!("  at {:.6} s: {fault:?}\n", *at as f64 / 1e6);
    }
    // The end is where it shows.
    let skip = report.story.len().saturating_sub(400);
    if skip > 0 {
        text += &format!("  ({skip} lines are left out)\n");
    }
    for line in report.story.iter().skip(skip) {
        text += line;
        text.push('\n');
    }
    for violation in &report.violations {
        text += &format!("  => {violation}\n");
    }
    text
}
