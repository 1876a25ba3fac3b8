//! What operators ask of a PostgreSQL outbox: [`PostgresOperator`].
//!
//! Asked from a process of its own, next to a relay that leads or without one. Reading needs the reader's grants (the
//! preflight asks for the relay's, because that is whom it speaks for); acting on held messages needs the relay's. Nothing
//! here shows a key, a payload or a header, but for [`Trace::trace_contents`](outboxd_engine::trace::Trace::trace_contents).

mod check;

mod held;

mod rebase;

mod replay;

mod receipts;

mod edit;

mod scheduled;

mod status;

mod verify;

mod trace;

use std::time::Duration;

use outboxd_engine::operate::EditDone;
use outboxd_engine::{
    AuditFilter, AuditLine, AuditedAction, BulkAction, Finding, HeldEdit, HeldFilter, HeldId, HeldMatch,
    HeldMessage, HeldSpan, HeldStep, Operate, OperateError, OutboxError, OutboxStatus, ScheduledFilter,
    ScheduledMessage,
};
use uuid::Uuid;

pub(crate) use held::word;

use crate::session::{PostgresConfig, Purpose, Session};

pub use trace::PostgresInbox;

/// An operator's view of an outbox in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresOperator {
    config: PostgresConfig,
    session: Session,
    /// Opened by the preflight alone: what a proxy does shows only between two connections.
    second_session: Session,
}

impl PostgresOperator {
    /// An operator that connects when first asked something.
    #[must_use]
    pub fn new(config: PostgresConfig) -> Self {
        Self {
            session: Session::new(&config, Purpose::Operate),
            second_session: Session::new(&config, Purpose::Operate),
            config,
        }
    }
}

impl Operate for PostgresOperator {
    async fn status(&self) -> Result<OutboxStatus, OutboxError> {
        self.read_status().await
    }

    async fn check(&self) -> Result<Vec<Finding>, OutboxError> {
        self.findings().await
    }

    async fn topics(&self) -> Result<Vec<String>, OutboxError> {
        self.list_topics().await
    }

    async fn max_message_bytes(&self) -> Result<usize, OutboxError> {
        self.read_limit().await
    }

    async fn held_list(&self, filter: &HeldFilter) -> Result<Vec<HeldMessage>, OutboxError> {
        self.list_held(filter).await
    }

    async fn held_retry(
        &self,
        named: impl Into<HeldId> + Send,
        action: &AuditedAction,
    ) -> Result<(), OperateError> {
        self.retry_held(named.into(), action).await
    }

    async fn held_discard(
        &self,
        named: impl Into<HeldId> + Send,
        action: &AuditedAction,
    ) -> Result<(), OperateError> {
        self.discard_held(named.into(), action).await
    }

    async fn held_match(&self, filter: &HeldFilter) -> Result<HeldMatch, OutboxError> {
        self.match_held(filter).await
    }

    async fn held_act(
        &self,
        kind: BulkAction,
        filter: &HeldFilter,
        span: HeldSpan,
        messages: u32,
        action: &AuditedAction,
    ) -> Result<HeldStep, OutboxError> {
        self.act_on_some(kind, filter, span, messages, action).await
    }

    async fn held_edit(
        &self,
        named: HeldId,
        edit: &HeldEdit,
        action: &AuditedAction,
    ) -> Result<EditDone, OperateError> {
        self.edit_held(named, edit, action).await
    }

    async fn held_audit(&self, filter: &AuditFilter) -> Result<Vec<AuditLine>, OutboxError> {
        self.list_audit(filter).await
    }

    async fn scheduled_list(&self, filter: &ScheduledFilter) -> Result<Vec<ScheduledMessage>, OutboxError> {
        self.list_scheduled(filter).await
    }

    async fn scheduled_cancel(&self, id: Uuid, action: &AuditedAction) -> Result<(), OperateError> {
        self.cancel_scheduled(id, action).await
    }

    fn takeover_after(&self) -> Duration {
        self.config.lead_session
    }
}
