//! Schedules that were trouble once, each by name: what an earlier version of this program got wrong on real servers.
//!
//! Each says which servers, jobs and faults there are; the books judge it as any other, and what is particular is asserted.
//! They are run with several seeds, as turns and delays differ with them.

use crate::clock::{MILLISECOND, Micros, SECOND};
use crate::pipe::Line;
use crate::plan::{Class, Fault, ForwardPlan, Kind, Order, Outcome, Place, Plan, ServerPlan, Unique, Which};
use crate::shrink;
use crate::world::{self, Report};

const SOURCE: usize = 0;
const DESTINATION: usize = 1;
const REJECTS: usize = 2;
const SEEDS: u64 = 8;

fn server(name: &'static str, hands: usize) -> ServerPlan {
    let line = Line { latency: 200, rate: 0, size: 256 << 10 };
    ServerPlan { name, process_id: 4711, tells: true, retries: None, hands, idle: MILLISECOND, line }
}

fn plan(asynchronous: bool, workers: usize) -> Plan {
    let forward = ForwardPlan {
        proxy: 0,
        queue: 0,
        source: SOURCE,
        destinations: vec![DESTINATION],
        reject: None,
        asynchronous,
        workers,
        prefetch: if asynchronous { 4096 } else { workers },
        byte_limit: 8 << 20,
        timeout: None,
        witness: false,
    };
    Plan {
        seed: 0,
        servers: vec![server("source:4730", 0), server("first:4730", 50), server("rejects:4730", 0)],
        forwards: vec![forward],
        proxies: 1,
        classes: Vec::new(),
        orders: Vec::new(),
        faults: Vec::new(),
        lazy: 8,
        ordered: false,
        patience: 240 * SECOND,
    }
}

impl Plan {
    /// A class of its own for a job of this size that takes a worker this long.
    fn job(&mut self, at: Micros, kind: Kind, size: usize, run: Micros) {
        let class = Class { kind, queue: 0, size, unique: Unique::None, run, outcome: Outcome::Completes };
        self.classes.push(class);
        self.order(at, self.classes.len() - 1);
    }

    fn order(&mut self, at: Micros, class: usize) {
        let foreground = !self.forwards[0].asynchronous;
        self.orders.push(Order { at, class, foreground, priority: 1, leaves: None });
    }

    fn fault(&mut self, at: Micros, fault: Fault) {
        self.faults.push((at, fault));
    }

    fn check(&self, particular: impl Fn(&Report)) {
        for seed in 0..SEEDS {
            let plan = Plan { seed, ..self.clone() };
            let report = world::run(&plan, false);
            assert!(report.violations.is_empty(), "{}", shrink::story(&plan));
            particular(&report);
        }
    }
}

#[test]
fn a_large_job_gets_through_a_slow_line_behind_a_tunnel_once() {
    let mut plan = plan(true, 1);
    // All of it fits into the tunnel, which tells nobody how far it is.
    plan.servers[DESTINATION].line = Line { latency: 20 * MILLISECOND, rate: 200_000, size: 16 << 20 };
    plan.job(SECOND, Kind::Good, 5 << 20, SECOND);
    plan.check(|report| assert_eq!((report.counts.outages, report.counts.twice), (0, 0)));
}

#[test]
fn a_clean_stop_and_start_over_a_slow_line_delivers_nothing_twice() {
    for again in [Fault::Restart { proxy: 0, away: SECOND }, Fault::Reload { proxy: 0 }] {
        let mut plan = plan(true, 1);
        plan.servers[DESTINATION].line = Line { latency: 20 * MILLISECOND, rate: 300_000, size: 4 << 20 };
        // Done at once: the destination can merge nothing.
        plan.servers[DESTINATION].idle = 0;
        for _ in 0..1000 {
            plan.job(0, Kind::Good, 4096, 1);
        }
        plan.fault(5 * SECOND, again);
        plan.check(|report| assert_eq!(report.counts.twice, 0));
    }
}

/// A synchronous job that takes longer than jobs are held in an outage, and another one in trouble beside it.
fn long_job() -> Plan {
    let mut plan = plan(false, 2);
    plan.job(SECOND, Kind::Good, 100, 100 * SECOND);
    plan.patience = 400 * SECOND;
    plan
}

/// The long job was begun once.
fn was_not_begun_again(report: &Report) {
    assert_eq!(report.copies.first(), Some(&1));
}

#[test]
fn a_long_synchronous_job_is_not_begun_again_while_an_undeliverable_one_waits_for_its_reject_server() {
    let mut plan = long_job();
    plan.forwards[0].reject = Some(REJECTS);
    plan.fault(0, Fault::Kill { server: REJECTS, keeps: false, process_id: None, away: 90 * SECOND });
    plan.job(2 * SECOND, Kind::Bad, 50, 1);
    plan.check(was_not_begun_again);
}

#[test]
fn a_long_synchronous_job_is_not_begun_again_while_the_queue_is_full() {
    let mut plan = long_job();
    plan.fault(0, Fault::Full { server: DESTINATION, queue: 0, limit: 1, lasts: 200 * SECOND });
    plan.job(2 * SECOND, Kind::Good, 50, SECOND);
    plan.check(|report| {
        was_not_begun_again(report);
        // There is room as soon as the long job has ended: the time of the other one begins then.
        assert_eq!(report.counts.given_back, 0);
    });
}

#[test]
fn a_long_synchronous_job_is_not_begun_again_when_an_idle_connection_breaks_and_new_ones_hang() {
    for submitter in 0..2 {
        let mut plan = long_job();
        let broken = Fault::Cut { forward: 0, which: Which::Line(submitter), place: Place::Now, reset: true };
        plan.fault(500 * MILLISECOND, broken);
        // The job's own connection, made before, is well.
        plan.fault(
            600 * MILLISECOND,
            Fault::Stall { forward: 0, which: Which::Line(1 - submitter), lasts: MILLISECOND },
        );
        plan.job(2 * SECOND, Kind::Good, 50, SECOND);
        plan.check(was_not_begun_again);
    }
}

/// A source that drops what comes back three times.
fn impatient_source(asynchronous: bool) -> Plan {
    let mut plan = plan(asynchronous, 1);
    plan.servers[SOURCE].retries = Some(3);
    for number in 0..20 {
        plan.job(SECOND + number, Kind::Good, 100, MILLISECOND);
    }
    plan.patience = 700 * SECOND;
    plan
}

fn dropped_nothing(report: &Report) {
    assert_eq!(report.counts.dropped, 0);
}

#[test]
fn job_retries_are_not_used_up_while_the_reject_server_is_away() {
    let mut plan = impatient_source(true);
    plan.forwards[0].reject = Some(REJECTS);
    plan.job(SECOND, Kind::Bad, 50, 1);
    plan.fault(0, Fault::Kill { server: REJECTS, keeps: false, process_id: None, away: 300 * SECOND });
    plan.check(dropped_nothing);
}

#[test]
fn job_retries_are_not_used_up_by_a_destination_that_greets_and_takes_nothing() {
    let mut plan = impatient_source(true);
    // Everything but the greeting takes too long.
    plan.fault(500 * MILLISECOND, Fault::Slow { server: DESTINATION, rate: 1, lasts: 300 * SECOND });
    plan.check(dropped_nothing);
}

#[test]
fn job_retries_are_not_used_up_by_a_full_queue() {
    let mut plan = impatient_source(true);
    plan.servers[DESTINATION].hands = 0;
    plan.fault(0, Fault::Full { server: DESTINATION, queue: 0, limit: 1, lasts: 300 * SECOND });
    plan.check(dropped_nothing);
}

#[test]
fn a_server_that_restarts_under_the_same_process_id_loses_no_equal_jobs() {
    let mut plan = plan(true, 1);
    plan.servers[SOURCE].process_id = 333;
    plan.servers[DESTINATION].hands = 0;
    plan.job(SECOND, Kind::Good, 20, 1);
    plan.order(SECOND + 1, 0);
    plan.order(SECOND + 2, 0);
    plan.fault(60 * SECOND, Fault::Kill { server: SOURCE, keeps: false, process_id: None, away: SECOND });
    for number in 0..3 {
        plan.order(70 * SECOND + number, 0);
    }
    plan.check(|report| assert_eq!((report.counts.jobs, report.counts.delivered, report.counts.twice), (6, 6, 0)));
}

#[test]
fn cuts_of_a_source_with_a_small_process_id_deliver_nothing_twice_where_another_connection_outlives_them() {
    let mut plan = plan(true, 1);
    plan.servers[SOURCE].process_id = 7;
    plan.servers[DESTINATION].idle = 0;
    plan.forwards[0].witness = true;
    for number in 0..400 {
        plan.job(number * 50 * MILLISECOND, Kind::Good, 50, 1);
    }
    for number in 0..59 {
        let place = Place::Sent(number % 90 + 1);
        let fault = Fault::Cut { forward: 0, which: Which::Source, place, reset: number % 2 == 0 };
        plan.fault(number * 340 * MILLISECOND, fault);
    }
    plan.check(|report| assert_eq!(report.counts.twice, 0));
}

#[test]
fn a_stop_with_nothing_held_takes_a_second_whatever_hangs() {
    for hung in [SOURCE, DESTINATION] {
        for at in [500 * MILLISECOND, 20 * SECOND] {
            let mut plan = plan(true, 2);
            plan.fault(at, Fault::Hang { server: hung, lasts: 60 * SECOND });
            plan.fault(at + SECOND, Fault::Restart { proxy: 0, away: SECOND });
            plan.check(|report| assert!(report.counts.longest_stop <= 2 * SECOND, "{}", report.counts.longest_stop));
        }
    }
}
