//! Relays Gearman jobs from queues of one job server to queues of another.
//!
//! The data's way is the order of the modules: a [`config`] names the forwards; each [`forward`] takes jobs from its
//! source, runs its [`stages`] on their data and submits them to its destination, speaking [`gearman`]; [`metrics`]
//! count what happened and [`status`] shows it to monitoring. [`proxy`] starts, reloads and stops all of them.
//!
//! ```text
//!     source gearmand ──> reader ──[jobs]──> submitter ──[submitted]──> confirmer <── destination gearmand
//!           ^               │                   └──────────────────────────────────────────^
//!           └── grabs ──────┘ <── acknowledgements ────────── confirmer
//! ```
//!
//! Dependencies point one way: `gearman` knows nothing of forwards, `stages` nothing of sockets, `config` nothing of
//! threads.

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
pub mod trial;
