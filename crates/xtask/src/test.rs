//! Every test of the workspace against real servers, and one line that says how many passed.

use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use outboxd_testkit::postgres::binaries::BINARIES_VARIABLE;
use outboxd_testkit::shared;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::provision;
use crate::services::{self, Pair};

/// What depends on PostgreSQL's version: what installs the schema, and what reads and moves the cursor.
const VERSION_DEPENDENT: [&str; 14] = [
    "migrations::",
    "trace_indexes::",
    "trace::",
    "writing::",
    "grants::",
    "operate::",
    "conformance::",
    "explorer::",
    "plans::",
    "client::",
    "inbox::",
    "idempotency::",
    "scheduling::",
    "sweep::",
];

/// Runs the tests. The exit code is that of the tests, or 130 if they were interrupted.
pub(crate) async fn run(root: &Path, major: Option<u32>, filter: &[String]) -> Result<ExitCode> {
    let mut interrupts = Interrupts::listen()?;
    services::stop_orphans(root).await?;
    let file = services::file_of_run(root);
    let outcome = tokio::select! {
        outcome = provision_and_test(root, &file, major, filter) => outcome,
        // Cancel safe: dropping the branch above kills what it has not yet noted in the file, and ends cargo.
        () = interrupts.next() => {
            eprintln!("interrupted: stopping what was started");
            Ok(ExitCode::from(130))
        }
    };
    services::stop(&file).await?;
    outcome
}

async fn provision_and_test(
    root: &Path,
    file: &Path,
    major: Option<u32>,
    filter: &[String],
) -> Result<ExitCode> {
    let environment = match (major, environment_given()) {
        (None, Some(given)) => given,
        _ => {
            let binaries = provision::postgres_binaries(major)?;
            println!(
                "{} and Kafka {} are started for the tests",
                binaries.version()?,
                outboxd_testkit::kafka::broker::VERSION
            );
            let mut environment = Pair::start(file, binaries.clone()).await?.environment();
            environment.push((BINARIES_VARIABLE, binaries.name()));
            environment
        }
    };
    let mut tests = cargo_test(root, major, filter);
    tests.envs(environment).env("TMPDIR", Pair::note_scratch(file)?);
    let mut tests = Group::start(tests)?;
    let output = tests.child.stdout.take().context("the tests' output is a pipe")?;
    let sums = print_and_count(output).await?;
    let status = tests.child.wait().await.context("wait for the tests")?;
    if sums == Sums::default() {
        eprintln!("{}", if status.success() { "no test has that name" } else { "the tests do not build" });
        return Ok(ExitCode::FAILURE);
    }
    println!("{} passed, {} failed", sums.passed, sums.failed);
    Ok(if status.success() && sums.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One invocation for the whole workspace, so that features are the same everywhere and nothing is compiled twice.
fn cargo_test(root: &Path, major: Option<u32>, filter: &[String]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).args([
        "test",
        "--workspace",
        "--features",
        "outboxd/failpoints",
        "--no-fail-fast",
    ]);
    if major.is_some() {
        command.args(["--test", "outboxd"]);
    }
    command.arg("--");
    if major.is_some() && filter.is_empty() {
        command.args(VERSION_DEPENDENT);
    }
    command.args(filter).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Servers that the caller has exported, `cargo xtask services up` for example.
fn environment_given() -> Option<Vec<(&'static str, String)>> {
    let given: Vec<_> = [shared::POSTGRES_VARIABLE, shared::KAFKA_VARIABLE]
        .into_iter()
        .filter_map(|name| Some((name, variable(name)?)))
        .collect();
    if given.len() < 2 {
        return None;
    }
    println!("the tests use the servers that {} and {} name", given[0].0, given[1].0);
    Some(given)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    passed: u64,
    failed: u64,
}

impl Sums {
    /// Adds what a line of cargo's says: `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ").and_then(|(_, rest)| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let number = words.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                _ => {}
            }
        }
    }
}

async fn print_and_count(output: impl tokio::io::AsyncRead + Unpin) -> Result<Sums> {
    let mut sums = Sums::default();
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await.context("read the tests' output")? {
        println!("{line}");
        sums.add(&line);
    }
    Ok(sums)
}

/// Cargo and all that it starts, in a process group of their own: ended together, with the tests' own servers.
struct Group {
    child: Child,
    group: Pid,
}

impl Group {
    fn start(mut command: Command) -> Result<Self> {
        let child = command.process_group(0).spawn().context("run cargo test")?;
        let group = Pid::from_raw(i32::try_from(child.id().context("cargo has just been started")?)?);
        Ok(Self { child, group })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An error means that nobody is left in the group.
        let _ = killpg(self.group, Signal::SIGKILL);
    }
}

struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the servers to test against are the caller's choice")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_over_all_binaries_and_count_failures_too() {
        let mut sums = Sums::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            sums.add(line);
        }
        assert_eq!(sums, Sums { passed: 5, failed: 5 });
    }
}
