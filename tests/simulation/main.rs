//! The relay core in a world that is made up: one thread, a virtual clock, and a seed that decides everything.
//!
//! A **plan** (plan.rs, draw.rs) says which job servers, proxies and forwards there are, which jobs clients submit when, and
//! what goes wrong. The **world** (world.rs) runs it: model job servers (server.rs, serve.rs) that behave as gearmand was
//! measured to, pipes (pipe.rs) that have latency, rate and size and break at any byte, and pumps (pump.rs, forward.rs)
//! around real `Relay`s, each of whose steps is a decision of the seed. The **books** (book.rs) know every job and judge:
//! nothing lost, nothing twice but for the promise's exception, order, bounds, no job failed that was not at fault, everything
//! delivered in time, stops in time. A real gearmand, packet by packet, judges the model (differential.rs).
//!
//! The same seed gives the same run, event by event: its trace is hashed, and a test compares. A seed that fails is shrunk
//! (shrink.rs) to the shortest plan that still fails, and told as a story. Schedules that were trouble once stand by name in
//! named.rs.
//!
//! `SIMULATION_SCHEDULES` and `SIMULATION_SEED` say how many seeds are run, and from which; `tests/simulate` sets them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod book;
mod campaign;
mod clock;
mod counts;
mod differential;
mod draw;
mod forward;
mod greeting;
mod named;
mod pipe;
mod plan;
mod pump;
mod random;
mod serve;
mod server;
mod shrink;
mod wire;
mod world;

#[path = "../support/mod.rs"]
mod support;

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice_whatever_breaks() {
    let first = variable("SIMULATION_SEED").unwrap_or(0);
    let count = variable("SIMULATION_SCHEDULES").unwrap_or(300);
    if let Err(text) = campaign::run(first, count) {
        panic!("{text}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..40 {
        let plan = draw::plan(seed);
        let (first, second) = (world::run(&plan, false), world::run(&plan, true));
        assert_eq!((first.hash, first.counts), (second.hash, second.counts), "seed {seed}");
        assert!(!second.story.is_empty());
    }
    assert_ne!(world::run(&draw::plan(1), false).hash, world::run(&draw::plan(2), false).hash);
}
