//! Conformance suites, scripted ports, and real PostgreSQL and Kafka for tests. A dev-dependency only.
//!
//! The servers know nothing of the outbox. The feature `clients` (on by default) adds what talks to them; without it this
//! crate only starts and stops servers, which is all that `cargo xtask` needs.

pub mod wait;

pub mod ports;

pub mod process;

pub mod cache;

pub mod container;

pub mod postgres;

pub mod kafka;

pub mod proxy;

pub mod shared;

#[cfg(feature = "clients")]
pub mod scripted;

#[cfg(feature = "clients")]
pub mod relay;

#[cfg(feature = "clients")]
pub mod workload;

#[cfg(feature = "clients")]
pub mod checker;

#[cfg(feature = "clients")]
pub mod conformance;
