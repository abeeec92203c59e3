//! Relays Gearman jobs from queues of one job server to queues of another.
//!
//! The order of the modules is the way of the data: a [`config`] names the forwards; [`stages`] change a job's data;
//! [`relay`] makes one forward's decisions, [`forward`] has the threads around it; [`proxy`] starts, reloads and stops all
//! forwards; [`metrics`] count what they do, and [`status`] tells it on the status queue.
//!
//! ```text
//!     source gearmand ──> reader ──[relay]──> submitter ──> destination gearmand
//!            ^                        │                            │
//!            └── grabs, acks ─────────┴──────── confirmer <────────┘
//! ```
//!
//! `config`, `stages`, `gearman::packet` and `relay` are pure: no socket, thread, lock, clock, log or random number is in them,
//! so a test of theirs is a function call. Dependencies point from the threads and sockets to them, never back.
//! docs/architecture.md tells how a job travels and why each rule is there.

pub mod ask;
pub mod cli;
pub mod config;
pub mod forward;
pub mod gearman;
pub mod latch;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod outages;
pub mod pidfile;
pub mod proxy;
pub mod relay;
pub mod sandbox;
pub mod stages;
pub mod status;
pub mod syntax;
pub mod trial;
