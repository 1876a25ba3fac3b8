//! For applications that write intents, and for those that handle the messages they become.
//!
//! **Writing.** An intent is written in the transaction of the business change, so both happen or neither. The relay
//! (`outboxd`) publishes it to Kafka after the commit.
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # mod example {
//! use outbox_client::postgres::Outbox;
//! use outbox_client::{Context, Intent};
//!
//! #[derive(serde::Serialize)]
//! struct Placed { order: i64, amount_cents: i64 }
//!
//! async fn place_order(pool: &sqlx::PgPool, outbox: &Outbox, order: i64) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut tx = pool.begin().await?;
//!     sqlx::query("insert into orders (id, amount_cents) values ($1, 1250)").bind(order).execute(&mut *tx).await?;
//!     let intent = Intent::to("orders")
//!         .key(format!("order-{order}"))
//!         .payload_json(&Placed { order, amount_cents: 1250 })?;
//!     outbox.emit(&mut tx, &intent).await?;
//!     tx.commit().await?;
//!     Ok(())
//! }
//!
//! async fn serve(pool: &sqlx::PgPool, request_id: String) -> Result<(), Box<dyn std::error::Error>> {
//!     // Every intent that is emitted inside carries the request's id.
//!     Context::correlated(request_id).scope(place_order(pool, &Outbox::new(), 17)).await
//! }
//! # }
//! ```
//!
//! **Handling.** Delivery is at least once: a message may come again. The *inbox* keeps the ids of what a consumer has
//! handled, in the consumer's own transaction, so that each takes effect once.
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # mod example {
//! use outbox_client::postgres::Inbox;
//! use outbox_client::{Claim, Delivery};
//!
//! async fn ship(pool: &sqlx::PgPool, inbox: &Inbox, delivery: &Delivery, order: i64) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut tx = pool.begin().await?;
//!     if inbox.claim(&mut tx, delivery).await? == Claim::Fresh {
//!         // An error returns from here: the transaction rolls back, and with it the claim.
//!         sqlx::query("insert into shipment (order_id) values ($1)").bind(order).execute(&mut *tx).await?;
//!     }
//!     tx.commit().await?;
//!     // Only now may the offset be committed to Kafka.
//!     Ok(())
//! }
//! # }
//! ```
//!
//! A whole consumer, with back-off, rebalancing and what to do about a message that its handler cannot digest, is
//! `examples/consumer.rs`; `docs/consumers.md` explains it.
//!
//! **Tracing.** With the feature `tracing`, [`CorrelationLayer`] in the application's subscriber makes the field `correlation_id` of
//! its spans the correlation id of what is emitted inside, and [`Delivery::scope`] runs a handler in a span. With the feature
//! `opentelemetry` the trace context travels along, in and out, wherever `tracing-opentelemetry` is the subscriber's other layer.
//! `docs/tracing.md` shows what comes of it.
//!
//! This crate knows neither the relay nor Kafka: it writes and reads tables. It starts nothing and keeps nothing, and its
//! features `postgres` (default) and `sqlite` choose what of sqlx it needs.

#[cfg(not(any(feature = "postgres", feature = "sqlite")))]
compile_error!("outbox-client writes to a database: turn on its feature `postgres` or `sqlite`");

mod context;

mod intent;

mod delivery;

mod error;

#[cfg(feature = "tracing")]
mod spans;

#[cfg(feature = "postgres")]
mod schema;

#[cfg(feature = "postgres")]
pub mod postgres;

#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use self::context::Context;
pub use self::delivery::{Claim, Delivery, NoId, Place};
pub use self::error::Error;
pub use self::intent::Intent;
#[cfg(feature = "tracing")]
pub use self::spans::CorrelationLayer;

/// The documentation's own code compiles.
#[cfg(all(doctest, feature = "postgres"))]
#[doc = include_str!("../../../docs/consumers.md")]
struct DocumentationOfConsumers;

/// So does this.
#[cfg(all(doctest, feature = "postgres", feature = "opentelemetry"))]
#[doc = include_str!("../../../docs/tracing.md")]
struct DocumentationOfTracing;
