//! The [`Outbox`](outboxd_engine::Outbox) port over SQLite.
//!
//! For an application that keeps its data in a SQLite file and has the relay beside it on the same machine. SQLite has one
//! writer at a time, so a message never becomes visible below one that was read before it: the cursor is `high` alone and
//! there are no late messages.
//!
//! - **Writers are guests of the application.** What the relay writes is one short `BEGIN IMMEDIATE` transaction or one
//!   statement, never with an fsync under the write lock but where the lead changes hands. A deferred transaction that reads
//!   and then writes fails at once in spite of the busy timeout when somebody wrote in between.
//! - **Lead** is a lease in the cursor row, by the clock of the machine, which all processes of a SQLite file share. Safety
//!   comes from the epoch and the nonce that every settle names.
//! - **Durability.** In WAL mode with `synchronous=NORMAL` a commit is visible before it is on disk, and a power loss takes it
//!   back. So what was read is published only after the WAL file was synced (`barrier.rs`). An application that
//!   runs with `synchronous=OFF` gives that up, as it gives up its file's integrity.
//! - **The file.** Positions in memory are valid only for the file that they were read from: when another file takes its place
//!   (a restored backup), the term is over. A relay must be stopped while a backup is restored *into* the file.
//!
//! This crate knows neither Kafka nor the loop, and no other database.

pub mod config;

pub mod migrate;

mod file;

mod session;

mod outbox;

mod lead;

mod row;

mod read;

mod barrier;

mod settle;

mod held;

mod scheduled;

mod backlog;

mod purge;

mod sweep;

mod replay;

mod operator;

mod rebase;

mod receipts;

mod edit;

mod verify;

mod check;

mod trace;

pub use config::SqliteConfig;
pub use migrate::Migrator;
pub use operator::SqliteOperator;
pub use outbox::SqliteOutbox;
pub use trace::SqliteInbox;

#[cfg(test)]
mod tests;
