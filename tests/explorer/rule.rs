//! The rules of the cursor, and how each is broken.

use outboxd_core::{CatchUp, Cursor, Snapshot};
use outboxd_postgres::sql::Statements;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// None.
    Kept,
    /// Only transactions that the snapshot lists as running count as unseen, not those at or above its xmax.
    NoYoungerTransactions,
    /// A page is published in the order of (xid, seq).
    OrderByXid,
    /// The snapshot is taken by a statement before the one that reads the rows.
    SnapshotBeforeRows,
    /// The snapshot is taken by a statement after the one that reads the rows.
    SnapshotAfterRows,
    /// The cursor is `high` alone: nobody looks for late messages.
    BareHigh,
    /// The late arm has a plain LIMIT and the snapshot moves anyway.
    LimitMovesSnapshot,
    /// `high` is the last `seq` of the page, also if that is lower than before.
    NoGreatest,
    /// A settle inside the late messages moves the snapshot.
    HalfLateMovesSnapshot,
    /// A catch-up also takes what committed after it began.
    CatchUpWithoutEnd,
    /// The bound is taken from the snapshot's xmax, which a running transaction can be above.
    BoundTooLow,
    /// Purge believes `high` alone.
    PurgeWithoutSnapshot,
}

impl Rule {
    /// Every way of breaking one.
    pub(super) const BROKEN: [Self; 11] = [
        Self::NoYoungerTransactions,
        Self::OrderByXid,
        Self::SnapshotBeforeRows,
        Self::SnapshotAfterRows,
        Self::BareHigh,
        Self::LimitMovesSnapshot,
        Self::NoGreatest,
        Self::HalfLateMovesSnapshot,
        Self::CatchUpWithoutEnd,
        Self::BoundTooLow,
        Self::PurgeWithoutSnapshot,
    ];

    /// Whether rows and snapshot come from two statements, so that writers may step in between.
    pub(super) fn reads_in_two_steps(self) -> bool {
        matches!(self, Self::SnapshotBeforeRows | Self::SnapshotAfterRows)
    }

    /// The adapter's statements, one of them broken where the rule is a statement's.
    pub(super) fn statements(self, mut statements: Statements) -> Statements {
        let page = &mut statements.read_page;
        match self {
            Self::NoYoungerTransactions => {
                replace(
                    page,
                    "select y.xid from younger y where y.xid is not null\n",
                    "select y.xid from younger y where false\n",
                );
            }
            Self::BareHigh => {
                replace(page, "from unseen u\n", "from (select u.xid from unseen u where false) u\n");
            }
            Self::LimitMovesSnapshot => replace(
                page,
                "coalesce(bool_and(l.nth <= $6 and l.bytes_before < $7), true) as complete",
                "true as complete",
            ),
            Self::CatchUpWithoutEnd => replace(
                page,
                "coalesce($4::text::pg_snapshot, pg_current_snapshot())",
                "pg_current_snapshot()",
            ),
            Self::BoundTooLow => {
                replace(page, " + age(pg_snapshot_xmax(pg_current_snapshot())::xid))::text", ")::text");
            }
            Self::PurgeWithoutSnapshot => replace(
                &mut statements.purge_messages,
                "and pg_visible_in_snapshot(s.xid, (select c.seen from cursor c))",
                "",
            ),
            Self::Kept
            | Self::OrderByXid
            | Self::SnapshotBeforeRows
            | Self::SnapshotAfterRows
            | Self::NoGreatest
            | Self::HalfLateMovesSnapshot => {}
        }
        statements
    }

    /// The cursor after some messages of a page, given what the real rule says.
    pub(super) fn cursor_after(self, real: Cursor, stop: &Stop<'_>) -> Cursor {
        match self {
            Self::NoGreatest if real.catch_up.is_none() && stop.from.catch_up.is_none() => {
                Cursor { high: stop.last_seq.unwrap_or(real.high), ..real }
            }
            Self::HalfLateMovesSnapshot if stop.from.catch_up.is_none() && stop.inside_late => {
                Cursor { high: stop.from.high, seen: stop.snapshot.clone(), catch_up: None }
            }
            _ => real,
        }
    }
}

/// Where in a page a settle stops.
#[derive(Debug)]
pub(super) struct Stop<'p> {
    pub(super) from: &'p Cursor,
    pub(super) snapshot: &'p Snapshot,
    pub(super) last_seq: Option<outboxd_core::Seq>,
    /// Some late messages of a complete late arm are left.
    pub(super) inside_late: bool,
}

/// The text must be there: a mutation that changes nothing would be caught by nothing.
fn replace(sql: &mut SqlStr, rule: &str, broken: &str) {
    assert_eq!(sql.as_str().matches(rule).count(), 1, "the statement has no {rule:?}");
    *sql = AssertSqlSafe(sql.as_str().replace(rule, broken)).into_sql_str();
}

/// A catch-up as text, for messages about it.
pub(super) fn shown(catch_up: Option<&CatchUp>) -> String {
    catch_up.map_or_else(|| "no catch-up".into(), |catch_up| format!("catch-up at {}", catch_up.pos))
}
