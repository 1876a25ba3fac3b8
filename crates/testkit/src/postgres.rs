//! Real PostgreSQL for tests: an instance of one's own to kill, freeze and promote ([`Server`]), or a fresh database on the
//! shared server ([`Database`]).
//!
//! Nothing here knows the outbox.

pub mod binaries;

pub mod server;

#[cfg(feature = "clients")]
pub mod database;

#[cfg(feature = "clients")]
mod standby;

pub use binaries::Binaries;
#[cfg(feature = "clients")]
pub use database::Database;
pub use server::{Mode, Options, Server};
