//! `cargo xtask`: servers for development, every test, and what a reviewer should not have to check.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

mod provision;

mod services;

mod test;

mod tidy;

/// What CONTRIBUTING.md and CI call.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// PostgreSQL and Kafka that stay up while you develop
    #[command(subcommand)]
    Services(Services),
    /// Every test, against a real PostgreSQL and a real Kafka broker that are started for it and stopped after it
    Test {
        /// Test migrations and cursor on this major version of PostgreSQL (13 to 18), fetched from Maven Central
        #[arg(long, value_parser = clap::value_parser!(u32).range(13..=18))]
        postgres: Option<u32>,
        /// Handed to the tests: names that select some of them, and options of Rust's test harness
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// What a reviewer should not have to check: crate edges, promises, reference tables, SQL headers
    Tidy,
}

#[derive(Debug, Subcommand)]
enum Services {
    /// Start both and print the environment for tests
    Up,
    /// Stop both and remove their data
    Down,
    /// Say whether they run
    Status,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let root = repository()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Services(Services::Up) => services::up(&root).await,
            Command::Services(Services::Down) => services::down(&root).await,
            Command::Services(Services::Status) => services::status(&root),
            Command::Test { postgres, filter } => test::run(&root, postgres, &filter).await,
            Command::Tidy => tidy::run(&root),
        }
    })
}

/// The repository that `cargo xtask` was called in.
#[expect(clippy::disallowed_methods, reason = "cargo says where the package is that it runs")]
fn repository() -> Result<PathBuf> {
    let package = std::env::var("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let root = PathBuf::from(package).ancestors().nth(2).map(PathBuf::from);
    root.context("xtask lies two levels below the repository's root")
}
