//! `scheduled list|cancel`.

use outboxd_engine::{AuditedAction, Operate, ScheduledFilter, ScheduledMessage};
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;
use serde_json::json;

use crate::adapters::Adapter;
use crate::cli::Scheduled;
use crate::failure::Failure;
use crate::output;

/// Lists messages that wait for their time, or takes some back.
pub(crate) async fn scheduled(adapter: Adapter, command: Scheduled) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => decide(PostgresOperator::new(*config), command).await,
        Adapter::Sqlite(config) => decide(SqliteOperator::new(config), command).await,
    }
}

async fn decide(operator: impl Operate, command: Scheduled) -> Result<(), Failure> {
    match command {
        Scheduled::List(list) => {
            let filter = ScheduledFilter { id: list.id, topic: list.topic, limit: list.limit };
            let scheduled = operator.scheduled_list(&filter).await?;
            Ok(output::answer(list.output.output, &scheduled, |scheduled| as_table(scheduled, list.limit))?)
        }
        Scheduled::Cancel(cancel) => {
            let who = cancel.who.unwrap_or_else(super::held::os_user);
            let action = AuditedAction { who, why: cancel.reason };
            operator.scheduled_cancel(cancel.id, &action).await?;
            let cancelled =
                json!({ "action": "cancel", "id": cancel.id, "who": action.who, "why": action.why });
            Ok(output::answer(cancel.output.output, &cancelled, |_| {
                format!("{} is not delivered; the audit keeps that {} took it back", cancel.id, action.who)
            })?)
        }
    }
}

fn as_table(scheduled: &[ScheduledMessage], limit: u32) -> String {
    if scheduled.is_empty() {
        return "no such message waits for its time".to_owned();
    }
    let row = |message: &ScheduledMessage| {
        [
            message.id.to_string(),
            message.topic.clone(),
            output::time(message.due_at),
            output::time(message.created_at),
            message.cancelled_by.as_ref().map_or_else(|| "-".to_owned(), |who| format!("by {who}")),
        ]
    };
    let mut text = output::table(["ID", "TOPIC", "DUE", "INSERTED", "CANCELLED"], scheduled.iter().map(row));
    if limit > 0 && scheduled.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
        text.push_str(&format!("\n\nThe first {limit} are shown; --limit 0 shows all."));
    }
    text
}
