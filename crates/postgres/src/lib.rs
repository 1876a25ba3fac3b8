//! The outbox over PostgreSQL.

pub mod schema;

pub mod migrate;
