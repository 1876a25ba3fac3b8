//! What the outbox says about itself: everything here is read from its tables.

use std::collections::HashMap;

use anyhow::Context as _;
use outboxd_core::receipts;
use uuid::Uuid;

use super::database::{Database, Session, Statement, Value};
use super::tally::{Intent, Place};

const GLANCE: Statement = Statement {
    sqlite: "select (select count(*) from outbox_message), \
             (select coalesce(sum(messages), 0) from outbox_receipt), (select relay from outbox_cursor)",
    postgres: "select (select count(*) from outbox.message), \
               (select coalesce(sum(messages), 0) from outbox.receipt), (select relay from outbox.cursor)",
};

const HELD: Statement = Statement {
    sqlite: "select seq, id, state, reason, attempts from outbox_held order by seq",
    postgres: "select seq, id::text, state, reason, attempts::bigint from outbox.held order by seq",
};

const INTENTS: Statement = Statement {
    sqlite: "select seq, id, topic, key from outbox_message order by seq",
    postgres: "select seq, id::text, topic, key from outbox.message order by seq",
};

const RECEIPTS: Statement = Statement {
    sqlite: "select receipts, relay, settled_at from outbox_receipt order by receipt",
    postgres: "select receipts, relay, to_char(settled_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
               from outbox.receipt order by receipt",
};

const ORDERS_AND_RETRIED: Statement = Statement {
    sqlite: "select (select count(*) from shop_order), \
             (select count(distinct id) from outbox_held_action where kind = 'retry')",
    postgres: "select (select count(*) from outbox.shop_order), \
               (select count(distinct id) from outbox.held_action where kind = 'retry')",
};

const OF_CORRELATION: Statement = Statement {
    sqlite: "select seq, id, topic, created_at from outbox_message where correlation_id = $1 order by seq",
    postgres: "select seq, id::text, topic, to_char(created_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
               from outbox.message where correlation_id = $1 order by seq",
};

const ACTIONS: Statement = Statement {
    sqlite: "select kind, reason_held, who, why, at from outbox_held_action where seq = $1 order by action",
    postgres: "select kind, reason_held, who, why, to_char(at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
               from outbox.held_action where seq = $1 order by action",
};

/// The outbox at a glance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Glance {
    /// Committed intents.
    pub(crate) intents: u64,
    /// Messages with a receipt: acknowledged and settled.
    pub(crate) dispatched: u64,
    /// The relay that took the lead last.
    pub(crate) relay: Option<String>,
    /// Messages set aside.
    pub(crate) held: Vec<Held>,
}

/// A message set aside.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Its id.
    pub(crate) id: Uuid,
    /// What it waits for.
    pub(crate) state: String,
    /// Why.
    pub(crate) reason: String,
    /// Attempts charged to it.
    pub(crate) attempts: i64,
}

/// A receipt of one message.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    /// Where the message landed.
    pub(crate) place: Place,
    /// Which relay settled it.
    pub(crate) relay: String,
    /// When.
    pub(crate) settled_at: String,
}

/// An intent of one correlation id.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its place in the outbox.
    pub(crate) seq: i64,
    /// Its id.
    pub(crate) id: Uuid,
    /// Its topic.
    pub(crate) topic: String,
    /// When it was inserted.
    pub(crate) created_at: String,
    /// What operators did to it.
    pub(crate) actions: Vec<Action>,
}

/// What an operator did.
#[derive(Clone, Debug)]
pub(crate) struct Action {
    pub(crate) kind: String,
    pub(crate) reason_held: String,
    pub(crate) who: String,
    pub(crate) why: String,
    pub(crate) at: String,
}

/// A reader of the outbox's tables.
#[derive(Debug)]
pub(crate) struct Books {
    session: Session,
}

impl Books {
    /// Opens them.
    pub(crate) async fn open(database: &Database) -> anyhow::Result<Self> {
        Ok(Self { session: database.session().await? })
    }

    /// The outbox at a glance.
    pub(crate) async fn glance(&mut self) -> anyhow::Result<Glance> {
        let (intents, dispatched, relay): (i64, i64, Option<String>) = self.session.row(&GLANCE, &[]).await?;
        let held: Vec<(i64, String, String, String, i64)> = self.session.rows(&HELD, &[]).await?;
        let held = held
            .into_iter()
            .map(|(_, id, state, reason, attempts)| Ok(Held { id: id.parse()?, state, reason, attempts }));
        Ok(Glance {
            intents: u64::try_from(intents)?,
            dispatched: u64::try_from(dispatched)?,
            relay,
            held: held.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Every committed intent.
    pub(crate) async fn intents(&mut self) -> anyhow::Result<Vec<Intent>> {
        let rows: Vec<(i64, String, String, String)> = self.session.rows(&INTENTS, &[]).await?;
        rows.into_iter()
            .map(|(seq, id, topic, key)| Ok(Intent { seq, id: id.parse()?, topic, key }))
            .collect()
    }

    /// The receipt of every message, by `seq`.
    pub(crate) async fn receipts(&mut self) -> anyhow::Result<HashMap<i64, Receipt>> {
        let rows: Vec<(Vec<u8>, Option<String>, String)> = self.session.rows(&RECEIPTS, &[]).await?;
        let mut all = HashMap::new();
        for (packed, relay, settled_at) in rows {
            for entry in receipts::decode(&packed).context("read receipts")? {
                let receipt = Receipt {
                    place: Place {
                        topic: entry.topic,
                        partition: entry.receipt.partition,
                        offset: entry.receipt.offset,
                    },
                    relay: relay.clone().unwrap_or_default(),
                    settled_at: settled_at.clone(),
                };
                all.insert(entry.seq.0, receipt);
            }
        }
        Ok(all)
    }

    /// Orders that were committed, and parked messages that were retried.
    pub(crate) async fn orders_and_retried(&mut self) -> anyhow::Result<(u64, u64)> {
        let (orders, retried): (i64, i64) = self.session.row(&ORDERS_AND_RETRIED, &[]).await?;
        Ok((u64::try_from(orders)?, u64::try_from(retried)?))
    }

    /// Everything of one correlation id.
    pub(crate) async fn of_correlation(&mut self, correlation_id: &str) -> anyhow::Result<Vec<Row>> {
        let rows: Vec<(i64, String, String, String)> =
            self.session.rows(&OF_CORRELATION, &[Value::Text(correlation_id)]).await?;
        let mut all = Vec::new();
        for (seq, id, topic, created_at) in rows {
            let actions: Vec<(String, String, String, String, String)> =
                self.session.rows(&ACTIONS, &[Value::Number(seq)]).await?;
            let actions = actions.into_iter();
            let actions = actions
                .map(|(kind, reason_held, who, why, at)| Action { kind, reason_held, who, why, at })
                .collect();
            all.push(Row { seq, id: id.parse()?, topic, created_at, actions });
        }
        Ok(all)
    }

    /// Closes them.
    pub(crate) async fn close(self) {
        self.session.close().await;
    }
}
