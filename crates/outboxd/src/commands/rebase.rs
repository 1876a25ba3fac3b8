//! `rebase`.

use anyhow::anyhow;
use outboxd_engine::{AuditedAction, RebasePlan};
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;

use super::held::os_user;
use crate::adapters::Adapter;
use crate::cli::{Format, Rebase};
use crate::failure::Failure;
use crate::output;

/// Explains what a rebase would do, or does it.
pub(crate) async fn rebase(adapter: Adapter, asked: Rebase) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => rebase_with(PostgresOperator::new(*config), asked).await,
        Adapter::Sqlite(config) => rebase_with(SqliteOperator::new(config), asked).await,
    }
}

async fn rebase_with(operator: impl outboxd_engine::Rebase, asked: Rebase) -> Result<(), Failure> {
    let format = asked.output.output;
    if asked.yes {
        let action = AuditedAction { who: asked.who.unwrap_or_else(os_user), why: asked.reason };
        return print(format, &operator.rebase(&action).await?);
    }
    print(format, &operator.rebase_plan().await?)?;
    if asked.dry_run {
        return Ok(());
    }
    Err(Failure::usage(anyhow!(
        "nothing was done: run it again with --yes to do this, or with --dry-run to look alone"
    )))
}

fn print(format: Format, plan: &RebasePlan) -> Result<(), Failure> {
    Ok(output::answer(format, plan, explanation)?)
}

/// What was found, and what is done about it.
fn explanation(plan: &RebasePlan) -> String {
    let figures = plan.figures;
    let mut text = String::from("Found:\n");
    let mut say = |line: String| {
        text.push_str("  ");
        text.push_str(&line);
        text.push('\n');
    };
    match (&plan.settled_in, &plan.this_cluster) {
        (Some(settled_in), Some(here)) if settled_in != here => say(format!(
            "the cursor was settled in database cluster {settled_in}, this is {here}: restored or copied"
        )),
        (Some(_), Some(here)) => say(format!("the cursor was settled in this database cluster, {here}")),
        (None, Some(_)) => say("no relay has led here yet".to_owned()),
        (_, None) => {}
    }
    match &plan.kafka_cluster {
        Some(kafka) => say(format!("it was published to the Kafka cluster {kafka}")),
        None => say("no Kafka cluster is remembered".to_owned()),
    }
    if let (Some(at), Some(to)) = (plan.sequence_at, plan.sequence_to) {
        say(format!("the sequence of messages stands at {at}, {to} is needed"));
    }
    say(format!("{} messages were dealt with", figures.dealt_with));
    say(format!("{} messages above the cursor were not", figures.above_cursor));
    if figures.late > 0 {
        say(format!("{} messages below the cursor that it has not seen were not", figures.late));
    }
    if figures.unaccounted > 0 {
        say(format!(
            "{} messages below the cursor that it counts as dealt with have neither receipt nor decision, or were written since",
            figures.unaccounted
        ));
    }
    say(format!("{} messages are held, {} wait for their time", figures.held, figures.scheduled));
    text.push_str(if plan.done { "Done:\n" } else { "To be done:\n" });
    let publish = figures.above_cursor + figures.late + figures.unaccounted;
    let mut say = |line: String| {
        text.push_str("  ");
        text.push_str(&line);
        text.push('\n');
    };
    say(format!("the next relay publishes {publish} messages, those below the cursor first"));
    say(format!("{} are not published again; held and waiting ones stay so", figures.dealt_with));
    if figures.marked > 0 {
        say(format!(
            "{} messages carry numbers that this cluster has yet to give out: they get another",
            figures.marked
        ));
    }
    if let Some(to) = plan.sequence_to {
        say(format!("the sequence is set to {to}"));
    }
    say("whoever led before is fenced; the next relay's Kafka cluster is remembered instead".to_owned());
    match (&plan.cursor_after, plan.operation) {
        (Some(after), Some(operation)) => {
            say(format!("cursor {} -> {after}", plan.cursor_before));
            say(format!("audited as operation {operation}"));
        }
        _ => say(format!("cursor {}", plan.cursor_before)),
    }
    text.pop();
    text
}
