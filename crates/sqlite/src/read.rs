//! Pages.
//!
//! One statement. What it sees is committed, everything above `high` that was ever committed is in it, and whatever is
//! committed later has a higher `seq`, because a writer draws `seq` under the only write lock.

use outboxd_core::{Cursor, Page, Snapshot};
use outboxd_engine::{OutboxError, PageLimit, ReadPage};
use sqlx::{Row, SqliteConnection};
use tokio::time::timeout;

use crate::outbox::SqliteOutbox;
use crate::row::message;
use crate::session::Failure;

impl SqliteOutbox {
    pub(crate) async fn read_page(&self, from: &Cursor, limit: PageLimit) -> Result<ReadPage, OutboxError> {
        const DOING: &str = "read a page";
        let file = self.term_state().file;
        let mut lent = self.read_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), page(lent.connection(), from, limit)).await;
        let (page, more) = lent.finish(DOING, outcome)?;
        let mark = (!page.messages.is_empty()).then(|| self.barrier.mark());
        Ok(ReadPage { page, mark, more })
    }
}

async fn page(
    connection: &mut SqliteConnection,
    from: &Cursor,
    limit: PageLimit,
) -> Result<(Page, bool), Failure> {
    let rows = sqlx::query(include_str!("sql/page.sql"))
        .bind(from.high.0)
        .bind(i64::from(limit.messages.max(1)))
        .bind(i64::try_from(limit.bytes).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
    let found: i64 = rows.first().map_or(Ok(0), |row| row.try_get("found"))?;
    let messages = rows.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let full = messages.len() >= usize::try_from(limit.messages.max(1)).unwrap_or(usize::MAX);
    let cut = i64::try_from(messages.len()).unwrap_or(i64::MAX) < found;
    let page =
        Page { from: from.clone(), snapshot: Snapshot::none(), late: 0, late_complete: true, messages };
    Ok((page, full || cut))
}
