//! The outbox over PostgreSQL.
//!
//! [`PostgresOutbox`] is the port of the relay's loop; [`migrate`] installs what it needs; operators' questions are a trait
//! of their own. The statements are the files in `sql/`, each with its reasons at its head. This crate knows no Kafka and
//! decides nothing about messages: it reads pages, settles what it is told, and refuses to work on memory that is not
//! valid any more.

pub mod schema;

mod session;

mod row_security;

pub mod outbox;

mod lead;

mod read;

mod durable;

mod settle;

mod held;

mod scheduled;

mod backlog;

mod purge;

mod sweep;

mod replay;

#[doc(hidden)]
pub mod sql;

pub mod migrate;

pub mod operate;

pub use lead::LEAD_LOCK;
pub use operate::{PostgresInbox, PostgresOperator};
pub use outbox::PostgresOutbox;
pub use schema::SchemaName;
pub use session::{PostgresConfig, UrlError};
