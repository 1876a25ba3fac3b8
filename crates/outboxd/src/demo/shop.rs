//! A sample shop: every change of an order and the intents that tell of it are written in one transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::database::{Database, Session, Statement, Value};
use super::plan::{Ending, Step, Transaction};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(20);

// SQLite: `immediate`, because a transaction that reads first and writes then fails when somebody wrote in between.
const BEGIN: Statement = Statement { sqlite: "begin immediate", postgres: "begin" };
const COMMIT: Statement = Statement { sqlite: "commit", postgres: "commit" };
const ROLLBACK: Statement = Statement { sqlite: "rollback", postgres: "rollback" };

const PLACE: Statement = Statement {
    sqlite: "insert into shop_order (number, cents, state) values ($1, $2, 'placed')",
    postgres: "insert into outbox.shop_order (number, cents, state) values ($1, $2, 'placed')",
};

/// Locks the order first: two intents of one key keep their order when the second is written after the first has
/// committed.
const ADVANCE: Statement = Statement {
    sqlite: "update shop_order set state = $2 where number = $1",
    postgres: "update outbox.shop_order set state = $2 where number = $1",
};

/// What an application does, in any language: an INSERT.
const INTENT: Statement = Statement {
    sqlite: "insert into outbox_message (topic, key, payload, content_type, correlation_id) \
             values ($1, $2, $3, 'application/json', $4) returning id",
    postgres: "insert into outbox.message (topic, key, payload, content_type, correlation_id) \
               values ($1, $2, convert_to($3, 'UTF8'), 'application/json', $4) returning id::text",
};

/// The shop's topics.
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    /// What happens to orders.
    pub(crate) orders: String,
    /// Payments to be taken.
    pub(crate) payments: String,
}

impl Topics {
    /// Both.
    pub(crate) fn all(&self) -> [&str; 2] {
        [&self.orders, &self.payments]
    }
}

/// How far the shop is.
#[derive(Debug, Default)]
pub(crate) struct Till {
    committed: AtomicU64,
    rolled_back: AtomicU64,
}

impl Till {
    /// Transactions committed.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Transactions rolled back.
    pub(crate) fn rolled_back(&self) -> u64 {
        self.rolled_back.load(Ordering::Relaxed)
    }
}

/// The shop.
#[derive(Debug)]
pub(crate) struct Shop {
    session: Session,
    topics: Topics,
    till: Arc<Till>,
    /// Ids of intents that were written and taken back.
    rolled_back: Vec<Uuid>,
}

impl Shop {
    /// Opens it.
    pub(crate) async fn open(database: &Database, topics: Topics) -> anyhow::Result<Self> {
        let session = database.session().await?;
        Ok(Self { session, topics, till: Arc::default(), rolled_back: Vec::new() })
    }

    /// How far it is, while it trades.
    pub(crate) fn till(&self) -> Arc<Till> {
        Arc::clone(&self.till)
    }

    /// Ids of intents that were written and taken back.
    pub(crate) fn rolled_back(&self) -> &[Uuid] {
        &self.rolled_back
    }

    /// Carries the transactions out, evenly over this time, or as fast as the database goes if that is slower.
    pub(crate) async fn trade(&mut self, transactions: &[Transaction], over: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        let count = u32::try_from(transactions.len().max(1)).unwrap_or(u32::MAX);
        for (nth, transaction) in (0..count).zip(transactions) {
            let due = began + over * nth / count;
            if due > Instant::now() + TICK {
                tokio::time::sleep_until(due).await;
            }
            self.carry_out(transaction).await?;
        }
        Ok(())
    }

    /// Carries one transaction out.
    pub(crate) async fn carry_out(&mut self, transaction: &Transaction) -> anyhow::Result<()> {
        let doing = || format!("{} order {}", transaction.step.verb(), transaction.order);
        self.session.execute(&BEGIN, &[]).await.with_context(doing)?;
        let ids = self.write(transaction).await.with_context(doing)?;
        match transaction.ending {
            Ending::Commit => {
                self.session.execute(&COMMIT, &[]).await.with_context(doing)?;
                self.till.committed.fetch_add(1, Ordering::Relaxed);
            }
            Ending::RollBack => {
                self.session.execute(&ROLLBACK, &[]).await.with_context(doing)?;
                self.till.rolled_back.fetch_add(1, Ordering::Relaxed);
                self.rolled_back.extend(ids);
            }
        }
        Ok(())
    }

    async fn write(&mut self, transaction: &Transaction) -> anyhow::Result<Vec<Uuid>> {
        let order = transaction.order;
        let (orders, payments) = (self.topics.orders.clone(), self.topics.payments.clone());
        match transaction.step {
            Step::Place { cents } => {
                self.session.execute(&PLACE, &[Value::Number(order), Value::Number(cents)]).await?;
                let placed = json!({ "order": order, "event": "placed", "cents": cents });
                let charge = json!({ "order": order, "event": "charge", "cents": cents });
                Ok(vec![
                    self.intent(&orders, order, &placed).await?,
                    self.intent(&payments, order, &charge).await?,
                ])
            }
            Step::Pay => self.advance(&orders, order, "paid").await,
            Step::Ship => self.advance(&orders, order, "shipped").await,
            Step::Deliver => self.advance(&orders, order, "delivered").await,
        }
    }

    async fn advance(&mut self, topic: &str, order: i64, state: &str) -> anyhow::Result<Vec<Uuid>> {
        let changed = self.session.execute(&ADVANCE, &[Value::Number(order), Value::Text(state)]).await?;
        anyhow::ensure!(changed == 1, "order {order} is not there");
        Ok(vec![self.intent(topic, order, &json!({ "order": order, "event": state })).await?])
    }

    async fn intent(&mut self, topic: &str, order: i64, payload: &serde_json::Value) -> anyhow::Result<Uuid> {
        let (key, payload) = (key(order), payload.to_string());
        let correlation_id = correlation_id(order);
        let values =
            [Value::Text(topic), Value::Text(&key), Value::Text(&payload), Value::Text(&correlation_id)];
        let (id,): (String,) = self.session.row(&INTENT, &values).await?;
        id.parse().context("read the id of an intent")
    }

    /// Closes it.
    pub(crate) async fn close(self) {
        self.session.close().await;
    }
}

/// The Kafka key of an order.
pub(crate) fn key(order: i64) -> String {
    format!("order-{order}")
}

/// What ties together everything that happens to an order.
pub(crate) fn correlation_id(order: i64) -> String {
    format!("checkout-{order:05}")
}

impl Step {
    fn verb(self) -> &'static str {
        match self {
            Self::Place { .. } => "place",
            Self::Pay => "pay",
            Self::Ship => "ship",
            Self::Deliver => "deliver",
        }
    }
}
