//! A consumer that ships each order once:
//!
//! ```sh
//! outboxd migrate --inbox --database-url postgres://owner@localhost/shipping
//! cargo run -p outbox-client --example consumer -- postgres://shipping@localhost/shipping localhost:9092 orders
//! ```

use anyhow::{Context as _, Result, bail};
use outbox_client::postgres::Inbox;
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use sqlx::{PgConnection, PgPool};

mod once;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [database_url, bootstrap_servers, topic] = arguments.as_slice() else {
        bail!("usage: consumer DATABASE_URL BOOTSTRAP_SERVERS TOPIC");
    };
    let pool = PgPool::connect(database_url).await.context("connect to the database")?;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        .set("group.id", "shipping")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[topic])?;
    let report = |failure: &once::Failure| {
        let id = failure.delivery.as_ref().map(|delivery| delivery.id.to_string());
        let correlation_id = failure.delivery.as_ref().and_then(|it| it.context.correlation_id.as_deref());
        eprintln!(
            "ERROR not handled: {} id={} correlation_id={} attempt={} again_in={:?}: {:#}",
            failure.place,
            id.as_deref().unwrap_or("none"),
            correlation_id.unwrap_or("none"),
            failure.attempts,
            failure.again_in,
            failure.error
        );
    };
    let inbox = Inbox::of("shipping");
    tokio::select! {
        ended = once::consume(&consumer, &pool, &inbox, ship, report) => match ended? {},
        interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for the end"),
    }
}

async fn ship(transaction: &mut PgConnection, record: &BorrowedMessage<'_>) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Placed {
        order: i64,
        amount_cents: i64,
    }
    let placed: Placed =
        serde_json::from_slice(record.payload().unwrap_or_default()).context("read the order")?;
    sqlx::query("insert into shipment (order_id, amount_cents) values ($1, $2)")
        .bind(placed.order)
        .bind(placed.amount_cents)
        .execute(transaction)
        .await
        .context("write the shipment")?;
    Ok(())
}
