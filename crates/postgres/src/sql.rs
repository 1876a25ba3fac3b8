//! Every statement of the relay, rendered for its schema once.
//!
//! Public so that tests can explain the statements and run them with one rule broken; no part of the crate's promises.

use sqlx::SqlStr;

use crate::schema::{SchemaName, render};
use crate::session::{PostgresConfig, Purpose};

/// The settings of the session that reads pages, by name: a plan is explained under the settings that it is made under.
#[must_use]
pub fn reading_settings(config: &PostgresConfig) -> Vec<(&'static str, String)> {
    Purpose::Read.settings(config)
}

/// The statements of [`crate::PostgresOutbox`], and those that an operator's proof runs often.
#[expect(missing_docs, reason = "each is documented at the head of its file")]
#[derive(Clone, Debug)]
pub struct Statements {
    pub row_security: SqlStr,
    pub lead_verify: SqlStr,
    pub lead_free: SqlStr,
    pub lead_lock: SqlStr,
    pub lead_bump: SqlStr,
    pub lead_keep: SqlStr,
    pub lead_end: SqlStr,
    pub lead_start: SqlStr,
    pub lead_kafka: SqlStr,
    pub lead_rewind: SqlStr,
    pub read_page: SqlStr,
    pub durable_flushed: SqlStr,
    pub durable_force: SqlStr,
    pub settle: SqlStr,
    pub held_signal: SqlStr,
    pub held_actions: SqlStr,
    pub held_unblocked: SqlStr,
    pub held_due: SqlStr,
    pub held_demote: SqlStr,
    pub held_counts: SqlStr,
    pub scheduled_promote: SqlStr,
    pub backlog: SqlStr,
    pub backlog_held: SqlStr,
    pub purge_messages: SqlStr,
    pub purge_receipts: SqlStr,
    pub sweep_window: SqlStr,
    pub sweep_suspects: SqlStr,
    pub sweep_hold: SqlStr,
    pub sweep_move: SqlStr,
    pub purge_cancelled: SqlStr,
    pub purge_history: SqlStr,
    pub operate_receipts: SqlStr,
    pub verify_next: SqlStr,
    pub verify_at: SqlStr,
    pub replay_chunk: SqlStr,
    pub replay_progress: SqlStr,
    pub backlog_replays: SqlStr,
}

impl Statements {
    /// The statements for an outbox in this schema.
    #[must_use]
    pub fn new(schema: &SchemaName) -> Self {
        Self {
            row_security: render(include_str!("sql/row_security.sql"), schema),
            lead_verify: render(include_str!("sql/lead_verify.sql"), schema),
            lead_free: render(include_str!("sql/lead_free.sql"), schema),
            lead_lock: render(include_str!("sql/lead_lock.sql"), schema),
            lead_bump: render(include_str!("sql/lead_bump.sql"), schema),
            lead_keep: render(include_str!("sql/lead_keep.sql"), schema),
            lead_end: render(include_str!("sql/lead_end.sql"), schema),
            lead_start: render(include_str!("sql/lead_start.sql"), schema),
            lead_kafka: render(include_str!("sql/lead_kafka.sql"), schema),
            lead_rewind: render(include_str!("sql/lead_rewind.sql"), schema),
            read_page: render(include_str!("sql/read_page.sql"), schema),
            durable_flushed: render(include_str!("sql/durable_flushed.sql"), schema),
            durable_force: render(include_str!("sql/durable_force.sql"), schema),
            settle: render(include_str!("sql/settle.sql"), schema),
            held_signal: render(include_str!("sql/held_signal.sql"), schema),
            held_actions: render(include_str!("sql/held_actions.sql"), schema),
            held_unblocked: render(include_str!("sql/held_unblocked.sql"), schema),
            held_demote: render(include_str!("sql/held_demote.sql"), schema),
            held_due: render(include_str!("sql/held_due.sql"), schema),
            held_counts: render(include_str!("sql/held_counts.sql"), schema),
            scheduled_promote: render(include_str!("sql/scheduled_promote.sql"), schema),
            backlog: render(include_str!("sql/backlog.sql"), schema),
            backlog_held: render(include_str!("sql/backlog_held.sql"), schema),
            purge_messages: render(include_str!("sql/purge_messages.sql"), schema),
            purge_receipts: render(include_str!("sql/purge_receipts.sql"), schema),
            sweep_window: render(include_str!("sql/sweep_window.sql"), schema),
            sweep_suspects: render(include_str!("sql/sweep_suspects.sql"), schema),
            sweep_hold: render(include_str!("sql/sweep_hold.sql"), schema),
            sweep_move: render(include_str!("sql/sweep_move.sql"), schema),
            purge_cancelled: render(include_str!("sql/purge_cancelled.sql"), schema),
            purge_history: render(include_str!("sql/purge_history.sql"), schema),
            operate_receipts: render(include_str!("sql/operate_receipts.sql"), schema),
            verify_next: render(include_str!("sql/verify_next.sql"), schema),
            verify_at: render(include_str!("sql/verify_at.sql"), schema),
            replay_chunk: render(include_str!("sql/replay_chunk.sql"), schema),
            replay_progress: render(include_str!("sql/replay_progress.sql"), schema),
            backlog_replays: render(include_str!("sql/backlog_replays.sql"), schema),
        }
    }
}

/// The statements of a trace, each with its name and the types of its values.
#[must_use]
pub fn trace_statements(schema: &SchemaName) -> Vec<(&'static str, &'static str, SqlStr)> {
    [
        ("trace_standing", "bigint", include_str!("sql/trace_standing.sql")),
        ("trace_by_id", "uuid[], bigint", include_str!("sql/trace_by_id.sql")),
        ("trace_by_correlation", "text, bigint", include_str!("sql/trace_by_correlation.sql")),
        ("trace_by_causation", "text[], bigint", include_str!("sql/trace_by_causation.sql")),
        ("trace_by_trace", "text, bigint", include_str!("sql/trace_by_trace.sql")),
        ("trace_by_idempotency", "text, bigint", include_str!("sql/trace_by_idempotency.sql")),
        ("trace_by_key", "text, bigint, text", include_str!("sql/trace_by_key.sql")),
        ("trace_by_xid", "text, bigint", include_str!("sql/trace_by_xid.sql")),
        ("trace_facts", "bigint[], bigint", include_str!("sql/trace_facts.sql")),
        ("trace_receipts", "bigint[], bigint[], bigint", include_str!("sql/operate_receipts.sql")),
        ("trace_contents", "bigint[]", include_str!("sql/trace_contents.sql")),
    ]
    .map(|(name, types, file)| (name, types, render(file, schema)))
    .to_vec()
}
