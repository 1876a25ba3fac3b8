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

use anyhow::Context as _;
use outboxd_kafka::KafkaConfig;
use outboxd_postgres::PostgresConfig;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::Adapter;
use crate::cli::{self, Global};
use crate::config::{Config, Database, Needs};
use crate::failure::Failure;
use plan::Plan;
use screen::Screen;
use stage::Stage;

/// What the demo is asked for, and where it plays.
#[derive(Debug)]
pub(crate) struct Options {
    /// How many orders the shop takes.
    pub(crate) orders: u32,
    /// What its day looks like.
    pub(crate) seed: u64,
    /// Leaves everything there to look at.
    pub(crate) keep: bool,
    /// Whether a terminal gets colour.
    pub(crate) color: bool,
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

impl Options {
    /// What was asked for. Servers are used only if a flag of this very command names them: an environment that configures a
    /// relay must not make a demo play on that relay's database.
    ///
    /// # Errors
    /// If the configuration is not valid, or the database is one that cannot be shared with a demo.
    pub(crate) fn of(global: &Global, asked: &cli::Demo) -> Result<Self, Failure> {
        let sources = global.sources(None);
        let needs = Needs {
            database: global.database_url.is_some(),
            kafka: global.bootstrap_servers.is_some(),
            ..Needs::NOTHING
        };
        let config = if needs == Needs::NOTHING { None } else { Some(Config::load(&sources, needs)?) };
        let mut postgres = None;
        if let Some(config) = config.as_ref().filter(|_| needs.database) {
            postgres = match (Adapter::of(config)?, &config.database) {
                (Adapter::Postgres(postgres), Some(Database::Postgres { url })) => {
                    Some((*postgres, url.clone()))
                }
                _sqlite => {
                    let said = "--database-url of the demo is for PostgreSQL: without it, it makes a SQLite file of its own";
                    return Err(Failure::usage(anyhow::anyhow!(said)));
                }
            };
        }
        let mut arguments: Vec<OsString> = Vec::new();
        if let Some(file) = &global.config {
            arguments.extend(["--config".into(), file.into()]);
        }
        for (key, value) in &global.set {
            arguments.extend(["--set".into(), format!("{key}={value}").into()]);
        }
        let variables = sources.environment.iter().map(|(name, _)| name);
        let variables =
            variables.filter(|name| name.to_string_lossy().starts_with("OUTBOXD")).cloned().collect();
        Ok(Self {
            orders: asked.orders,
            seed: asked.seed,
            keep: asked.keep,
            color: sources.color(),
            postgres,
            kafka: config.filter(|_| needs.kafka).map(|config| config.kafka),
            program: std::env::current_exe().context("find this program")?,
            arguments: if needs == Needs::NOTHING { Vec::new() } else { arguments },
            variables,
        })
    }
}

/// Tells the story.
///
/// # Errors
/// If the stage cannot be set up, the story cannot be told to its end, or the tally does not add up.
pub(crate) async fn run(options: Options) -> Result<ExitCode, Failure> {
    let screen = Screen::new(options.color);
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
    players.leave().await;
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
