//! The suite that every outbox passes.

mod sqlite;

mod postgres;
