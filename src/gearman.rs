//! The Gearman protocol: packets as bytes, and connections to job servers.
//!
//! Names and numbers are those of the PROTOCOL file in gearmand's source.

pub mod admin;
pub mod connection;
pub mod packet;
