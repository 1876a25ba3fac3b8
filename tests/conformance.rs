//! The suite that every outbox passes.

mod memory;

mod sqlite;

mod postgres;
