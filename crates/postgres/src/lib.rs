//! The outbox over PostgreSQL.

pub mod schema;
