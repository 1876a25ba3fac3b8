//! `status`.

use std::time::Duration;

use outboxd_engine::{Operate, OutboxStatus};
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;

use crate::adapters::Adapter;
use crate::cli::Format;
use crate::failure::Failure;
use crate::output;

/// Shows leader, cursor, backlog and held messages.
pub(crate) async fn status(adapter: Adapter, format: Format) -> Result<(), Failure> {
    let status = match adapter {
        Adapter::Postgres(config) => PostgresOperator::new(*config).status().await?,
        Adapter::Sqlite(config) => SqliteOperator::new(config).status().await?,
    };
    Ok(output::answer(format, &status, table)?)
}

fn table(status: &OutboxStatus) -> String {
    let leader = match (&status.leader.relay, status.leader.alive) {
        (Some(relay), true) => format!("{relay}, since {}", output::time_or_dash(status.leader.led_at)),
        (Some(relay), false) => format!("none; {relay} led last"),
        (None, _) => "none yet".to_owned(),
    };
    let oldest = Duration::try_from_secs_f64(status.oldest_age_seconds).unwrap_or(Duration::MAX);
    let mut text = output::facts(&[
        ("database", status.database.clone()),
        ("schema version", status.schema_version.to_string()),
        ("leader", leader),
        ("epoch", status.leader.epoch.to_string()),
        ("cursor", status.cursor.clone()),
        ("settled", output::time_or_dash(status.settled_at)),
        ("kafka cluster", status.kafka_cluster.clone().unwrap_or_else(|| "none yet".to_owned())),
        ("backlog", format!("{} messages", status.backlog_messages)),
        ("oldest undelivered", output::duration(oldest)),
        ("scheduled", format!("{} messages wait for their time", status.scheduled_messages)),
    ]);
    if !status.held.is_empty() {
        let rows = status
            .held
            .iter()
            .map(|(state, reason, messages)| [state.clone(), reason.clone(), messages.to_string()]);
        text.push('\n');
        text.push_str(&output::table(["HELD", "REASON", "MESSAGES"], rows));
        text.push('\n');
    }
    if !status.replays.is_empty() {
        let rows =
            status.replays.iter().map(|(state, replays)| [state.as_str().to_owned(), replays.to_string()]);
        text.push('\n');
        text.push_str(&output::table(["REPLAYS", "COUNT"], rows));
        text.push('\n');
    }
    text
}
