//! Doubles of both ports, in memory and under a test's control.
//!
//! [`MemoryOutbox`] passes the same conformance suite as the real adapters. Its snapshots are commit numbers: a row is visible
//! in snapshot `n` if it was the `n`-th commit or an earlier one, so late messages and catch-ups occur as they do in
//! PostgreSQL. [`ScriptedBroker`] acknowledges in order, and can be told to be silent, to refuse, to fail whole batches and
//! to break its producers.

pub mod broker;

pub mod outbox;

pub use broker::{Delivered, ScriptedBroker, ScriptedPublisher};
pub use outbox::{MemoryOutbox, MemoryReplay, MemoryTable, Written};
