//! `migrate trace-indexes`.

use std::io::IsTerminal as _;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use outboxd_postgres::migrate::{BuildProgress, IndexAction, Migrator, TraceIndexes};
use outboxd_sqlite::migrate as sqlite;
use serde::Serialize;
use serde_json::json;

use super::migrate::{postgres_failure, sqlite_failure};
use crate::adapters::Adapter;
use crate::cli::{Format, TraceIndexesArguments};
use crate::failure::Failure;
use crate::output;

/// An index, and what became of it or is to.
#[derive(Debug, Serialize)]
struct Step {
    index: &'static str,
    action: IndexAction,
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<String>,
}

/// Builds the indexes that trace uses, or drops them; with `--dry-run`, prints the SQL.
pub(crate) async fn trace_indexes(adapter: Adapter, asked: &TraceIndexesArguments) -> Result<(), Failure> {
    let format = asked.output.output;
    match adapter {
        Adapter::Postgres(config) => {
            let change = if asked.drop { TraceIndexes::Unwanted } else { TraceIndexes::Wanted };
            let migrator = Migrator::new(config.options().clone(), config.schema.clone());
            if asked.dry_run {
                let steps = migrator.plan_trace_indexes(change).await.map_err(postgres_failure)?;
                let sql = |step: &outboxd_postgres::migrate::IndexStep| {
                    step.sql.iter().map(sqlx::SqlStr::as_str).collect::<Vec<_>>().join("\n")
                };
                return planned(format, steps.iter().map(|step| (step.index, step.action, sql(step))));
            }
            let mut screen = Screen::new();
            let changed = migrator
                .change_trace_indexes(change, |step, progress| screen.show(step.index, step.action, progress))
                .await;
            screen.bar.finish_and_clear();
            report(format, changed.map_err(postgres_failure)?.iter().map(|step| (step.index, step.action)))
        }
        Adapter::Sqlite(_) if asked.schema.is_some() => {
            Err(Failure::usage(anyhow!("SQLite has no schemas: leave --schema out, or name another file")))
        }
        Adapter::Sqlite(config) => {
            let change =
                if asked.drop { sqlite::TraceIndexes::Unwanted } else { sqlite::TraceIndexes::Wanted };
            let migrator = outboxd_sqlite::Migrator::new(config);
            if asked.dry_run {
                let steps = migrator.plan_trace_indexes(change).await.map_err(sqlite_failure)?;
                let step = |step: &sqlite::IndexStep| {
                    (step.index, action(step.action), step.sql.unwrap_or_default().to_owned())
                };
                return planned(format, steps.iter().map(step));
            }
            let mut screen = Screen::new();
            let changed = migrator
                .change_trace_indexes(change, |step| screen.show(step.index, action(step.action), None))
                .await;
            screen.bar.finish_and_clear();
            let changed = changed.map_err(sqlite_failure)?;
            report(format, changed.iter().map(|step| (step.index, action(step.action))))
        }
    }
}

fn action(action: sqlite::IndexAction) -> IndexAction {
    match action {
        sqlite::IndexAction::Build => IndexAction::Build,
        sqlite::IndexAction::Drop => IndexAction::Drop,
        sqlite::IndexAction::Nothing => IndexAction::Nothing,
    }
}

fn planned(
    format: Format,
    steps: impl Iterator<Item = (&'static str, IndexAction, String)>,
) -> Result<(), Failure> {
    let steps: Vec<_> = steps
        .map(|(index, action, sql)| Step { index, action, sql: Some(sql).filter(|sql| !sql.is_empty()) })
        .collect();
    Ok(output::answer(format, &json!({ "indexes": steps }), |_| {
        let sql: Vec<&str> = steps.iter().filter_map(|step| step.sql.as_deref()).collect();
        if sql.is_empty() { "-- nothing to execute".to_owned() } else { sql.join("\n") }
    })?)
}

fn report(format: Format, steps: impl Iterator<Item = (&'static str, IndexAction)>) -> Result<(), Failure> {
    let steps: Vec<_> = steps.map(|(index, action)| Step { index, action, sql: None }).collect();
    Ok(output::answer(format, &json!({ "indexes": steps }), |_| {
        let line = |step: &Step| {
            let done = match step.action {
                IndexAction::Build => "built",
                IndexAction::Rebuild => "built anew: an interrupted build had left it",
                IndexAction::Drop => "dropped",
                IndexAction::Nothing => "as it was",
            };
            [step.index.to_owned(), done.to_owned()]
        };
        output::table(["INDEX", "DONE"], steps.iter().map(line))
    })?)
}

/// How far it is: one line that changes on a terminal, a line a phase elsewhere, on standard error.
struct Screen {
    bar: ProgressBar,
    said: String,
}

impl Screen {
    fn new() -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        Self { bar, said: String::new() }
    }

    fn show(&mut self, index: &str, action: IndexAction, progress: Option<BuildProgress>) {
        let doing = match action {
            IndexAction::Build => "building",
            IndexAction::Rebuild => "building anew",
            IndexAction::Drop => "dropping",
            IndexAction::Nothing => return,
        };
        let mut line = format!("{doing} {index}");
        let mut percent = String::new();
        if let Some(progress) = progress {
            line.push_str(&format!(": {}", progress.phase));
            if let Some(waits_for) = progress.waits_for {
                line.push_str(&format!(": the transaction of {waits_for}"));
            }
            percent = progress.percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
        }
        if self.bar.is_hidden() {
            if self.said != line {
                eprintln!("{line}");
            }
        } else {
            self.bar.set_message(format!("{line}{percent}"));
            self.bar.tick();
        }
        self.said = line;
    }
}
