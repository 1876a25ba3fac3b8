//! `migrate trace-indexes`.

use clap::Args;

use super::Output;

pub(crate) const EXAMPLES: &str = "\
Examples:
  outboxd migrate trace-indexes --database-url postgres://owner@localhost/shop
  outboxd migrate trace-indexes --dry-run > indexes.sql
  outboxd migrate trace-indexes --drop
      takes them away again; outboxd migrate trace-indexes --drop --dry-run prints the SQL

docs/trace.md says what each costs the application: more in bulk inserts than in single commits.

Exit codes: 0 done, 64 wrong usage, 69 the database cannot be reached, 70 a bug, 78 configuration, or the database refuses.";

/// `migrate trace-indexes`.
#[derive(Debug, Args)]
pub(crate) struct TraceIndexesArguments {
    /// Drop them instead
    #[arg(long)]
    pub(crate) drop: bool,
    /// The schema with the outbox (PostgreSQL) [default: database.schema]
    #[arg(long)]
    pub(crate) schema: Option<String>,
    /// Print the SQL that would be executed, and execute nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to print what was done.
    #[command(flatten)]
    pub(crate) output: Output,
}
