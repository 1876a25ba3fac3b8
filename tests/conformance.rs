//! The suite that every outbox passes.

mod sqlite;
