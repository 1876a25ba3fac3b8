//! The transactional outbox relay, as a program.
//!
//! What is typed becomes a command ([`cli`]); what is configured becomes a valid [`config`] or the whole list of what is wrong;
//! [`run`] relays until told to stop, every other command answers and ends. Each failure has a text and an exit code
//! ([`failure`]).

mod cli;

mod config;

mod failure;

mod telemetry;

mod spans;

mod metrics;

mod standing;

mod observers;

#[cfg(feature = "failpoints")]
mod failpoint;

mod http;

mod admin;

mod adapters;

mod verify;

mod canary;

mod run;

mod commands;

mod demo;

mod output;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use crate::adapters::Adapter;
use crate::cli::{Cli, Command, ConfigCommand, Global, Migrate, MigrateCommand};
use crate::config::{Config, Needs};
use crate::failure::Failure;
use crate::telemetry::Telemetry;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return usage(&answer),
    };
    obey(&cli.global, cli.command).unwrap_or_else(|failure| {
        eprintln!("outboxd: {failure}");
        failure.exit_code()
    })
}

/// Every command, what it needs of the configuration, and who carries it out.
fn obey(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let load = |schema: Option<&str>, needs| -> Result<Config, Failure> {
        let config = Config::load(&global.sources(schema), needs)?;
        telemetry::start_for_command(&config.log)?;
        Ok(config)
    };
    match command {
        Command::Run => return relay(Config::load(&global.sources(None), Needs::ALL)?),
        Command::Migrate(Migrate { command: Some(MigrateCommand::Grants(asked)), .. }) => {
            let config = load(asked.schema_or_default(), Needs::DATABASE)?;
            wait(commands::grants(Adapter::of(&config)?, &asked))?;
        }
        Command::Migrate(Migrate { command: Some(MigrateCommand::TraceIndexes(asked)), .. }) => {
            let config = load(asked.schema.as_deref(), Needs::DATABASE)?;
            wait(commands::trace_indexes(Adapter::of(&config)?, &asked))?;
        }
        Command::Migrate(asked) => {
            let config = load(asked.schema_or_default(), Needs::DATABASE)?;
            wait(commands::migrate(Adapter::of(&config)?, &asked))?;
        }
        Command::Check(asked) => {
            let config = load(None, Needs::ALL)?;
            wait(commands::check(Adapter::of(&config)?, &config.kafka, &config.relay.routes, &asked))?;
        }
        Command::Status(asked) => {
            let config = load(None, Needs::DATABASE)?;
            wait(commands::status(Adapter::of(&config)?, asked.output))?;
        }
        Command::Trace(asked) => {
            let config = load(None, if asked.needs_kafka() { Needs::BOTH } else { Needs::DATABASE })?;
            wait(commands::trace(Adapter::of(&config)?, &config.kafka, &asked))?;
        }
        Command::Held(asked) => {
            let config = load(None, Needs::DATABASE)?;
            wait(commands::held(Adapter::of(&config)?, &config.relay.routes, asked))?;
        }
        Command::Rebase(asked) => {
            let config = load(None, Needs::DATABASE)?;
            wait(commands::rebase(Adapter::of(&config)?, asked))?;
        }
        Command::Verify(asked) => {
            let config = load(None, Needs::BOTH)?;
            wait(commands::verify(Adapter::of(&config)?, &config.kafka, asked))?;
        }
        Command::Replay(asked) => {
            let config = load(None, Needs::DATABASE)?;
            wait(commands::replay(Adapter::of(&config)?, asked))?;
        }
        Command::Scheduled(asked) => {
            let config = load(None, Needs::DATABASE)?;
            wait(commands::scheduled(Adapter::of(&config)?, asked))?;
        }
        Command::Demo(asked) => return play(demo::Options::of(global, &asked)?),
        Command::Config(ConfigCommand::Show(asked)) => {
            commands::config_show(&load(None, Needs::NOTHING)?, asked.output)?;
        }
        Command::Config(ConfigCommand::Check(asked)) => {
            commands::config_check(&load(None, Needs::ALL)?, asked.output)?;
        }
        Command::Config(ConfigCommand::Reference) => output::print(&config::toml_file())?,
        Command::Healthcheck(asked) => {
            let config = load(None, Needs::NOTHING)?;
            wait(commands::healthcheck(config.listen, &asked))?;
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outboxd", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `run`. Its failure goes to the log, where everything else about it is.
fn relay(config: Config) -> Result<ExitCode, Failure> {
    let telemetry = Telemetry::start(&config.log)?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let ended = runtime.block_on(Box::pin(run::run(config, &telemetry)));
    // Nothing that still runs is worth waiting for: the relay is drained, or was told to end at once.
    runtime.shutdown_background();
    Ok(ended.unwrap_or_else(|failure| {
        tracing::error!(target: "outboxd::run", error = %failure, "ended");
        failure.exit_code()
    }))
}

/// `demo`.
fn play(options: demo::Options) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(Box::pin(demo::run(options)))
}

/// Runs a command that asks servers.
fn wait(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(command)
}

/// Help and version are answers; everything else that clap says is wrong usage.
fn usage(answer: &clap::Error) -> ExitCode {
    // Nobody is left to tell if neither standard output nor standard error can be written.
    let _printed = answer.print();
    if answer.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
}
