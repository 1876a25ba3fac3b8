//! `outboxd demo`: what happens to a shop's orders when everything goes wrong, in half a minute.
//!
//! Everything is real but the shop: the relay is this program's own `run` in a child process, Kafka is spoken over TCP, the
//! kill is SIGKILL. Every number on the screen is read from the database, the broker or the consumer. Nothing is left
//! behind, whichever way it ends: neither a process nor a file nor, on somebody's servers, a schema or a topic.

mod plan;

mod database;

mod shop;

mod broker;

mod consumer;

mod relay;

mod books;

mod stage;

mod acts;

mod tally;

mod timeline;

mod screen;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use outboxd_kafka::KafkaConfig;
use outboxd_postgres::PostgresConfig;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use plan::Plan;
use screen::Screen;
use stage::Stage;

/// What the demo is asked for.
#[derive(Debug)]
pub(crate) struct Options {
    /// How many orders the shop takes.
    pub(crate) orders: u32,
    /// What its day looks like.
    pub(crate) seed: u64,
    /// Leaves everything there to look at.
    pub(crate) keep: bool,
    /// Wants no colours.
    pub(crate) no_color: bool,
    /// Somebody's PostgreSQL, with its URL; without it a SQLite file.
    pub(crate) postgres: Option<(PostgresConfig, SecretString)>,
    /// Somebody's Kafka; without it a broker in this process.
    pub(crate) kafka: Option<KafkaConfig>,
    /// This program.
    pub(crate) program: PathBuf,
    /// Arguments that its commands need to find the same servers.
    pub(crate) arguments: Vec<OsString>,
    /// Variables of ours in the environment: they configure another relay than the demo's.
    pub(crate) variables: Vec<OsString>,
}

/// Tells the story.
///
/// # Errors
/// If the stage cannot be set up, the story cannot be told to its end, or the tally does not add up.
pub(crate) async fn run(options: Options) -> Result<ExitCode, Failure> {
    let screen = Screen::new(options.no_color);
    let plan = Plan::new(options.orders, options.seed);
    let mut interrupts = Interrupts::new()?;
    let mut stage = Stage::new(&options)?;
    let told = tokio::select! {
        told = tell(&options, &mut stage, &plan, &screen) => told,
        interrupted = interrupts.next() => Ok(interrupted),
    };
    let failed = told.is_err();
    stage.clear(&screen, options.keep, failed).await;
    told
}

async fn tell(
    options: &Options,
    stage: &mut Stage,
    plan: &Plan,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    screen.title(&format!(
        "outboxd demo: {} and everything that can go wrong",
        screen::counted(options.orders.into(), "order")
    ));
    let unreachable = options.postgres.is_some() || options.kafka.is_some();
    let mut players = match stage.set_up(screen).await {
        Ok(players) => players,
        Err(error) if unreachable => return Err(Failure::unavailable(error)),
        Err(error) => return Err(error.into()),
    };
    let broken = acts::perform(stage, &mut players, plan, screen).await?;
    let tally = stage.close_the_books(&mut players, screen, broken).await?;
    if !tally.problems.is_empty() {
        return Err(Failure::bug(anyhow::anyhow!(
            "the tally does not add up: {}",
            tally.problems.join("; ")
        )));
    }
    stage.what_next(screen, options.keep);
    Ok(ExitCode::SUCCESS)
}

/// Ctrl-C and its relatives.
struct Interrupts(Vec<(tokio::signal::unix::Signal, u8)>);

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let listen = |kind: SignalKind| Ok((signal(kind)?, u8::try_from(kind.as_raw_value())?));
        Ok(Self(kinds.into_iter().map(listen).collect::<anyhow::Result<_>>()?))
    }

    /// The exit code that a shell expects after the signal. Cancel safe, as receiving a signal is.
    async fn next(&mut self) -> ExitCode {
        let waits = self.0.iter_mut().map(|(signal, number)| {
            Box::pin(async move {
                signal.recv().await;
                *number
            })
        });
        let (number, _, _) = futures_util::future::select_all(waits).await;
        ExitCode::from(128 + number)
    }
}
