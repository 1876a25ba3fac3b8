//! Servers that stay up: for development until `down`, for a test run until it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use outboxd_testkit::postgres::Binaries;
use outboxd_testkit::{kafka, postgres, process, shared, wait};
use serde::{Deserialize, Serialize};

use crate::provision;

/// What a file in `.services` remembers of servers that this or an earlier `cargo xtask` has started.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// Temporary files of the tests, their own servers' data among them.
    scratch: Option<PathBuf>,
    postgres: Option<Running>,
    kafka: Option<Running>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Running {
    pid: i32,
    directory: PathBuf,
    address: String,
}

impl Running {
    fn is_up(&self) -> bool {
        process::is_ours(self.pid, &self.directory.display().to_string())
    }
}

impl Pair {
    /// Starts both, and writes each into `file` as soon as it runs, so that nothing is ever left that nobody knows of.
    ///
    /// # Errors
    /// One of them is missing or does not start; the other one is still in `file`.
    pub(crate) async fn start(file: &Path, binaries: Binaries) -> Result<Self> {
        let mut pair = Self::default();
        let server = provision::start_postgres(binaries).await?;
        let address = server.url("postgres");
        let (pid, directory) = server.leave_running()?;
        pair.postgres = Some(Running { pid, directory, address });
        pair.write(file)?;
        let broker = provision::start_kafka().await?;
        let address = broker.bootstrap();
        let (pid, directory) = broker.leave_running()?;
        pair.kafka = Some(Running { pid, directory, address });
        pair.write(file)?;
        Ok(pair)
    }

    /// Has a directory for the tests' temporary files noted in `file`, which [`stop`] removes.
    ///
    /// # Errors
    /// It cannot be created.
    pub(crate) fn note_scratch(file: &Path) -> Result<PathBuf> {
        let mut pair = Self::read(file)?.unwrap_or_default();
        let scratch = std::env::temp_dir().join(format!("outboxd-run-{}", std::process::id()));
        pair.scratch = Some(scratch.clone());
        pair.write(file)?;
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        Ok(scratch)
    }

    /// The environment for tests.
    #[must_use]
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let postgres =
            self.postgres.as_ref().map(|running| (shared::POSTGRES_VARIABLE, running.address.clone()));
        let kafka = self.kafka.as_ref().map(|running| (shared::KAFKA_VARIABLE, running.address.clone()));
        postgres.into_iter().chain(kafka).collect()
    }

    fn read(file: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(file) {
            Ok(text) => {
                Ok(Some(serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    fn write(&self, file: &Path) -> Result<()> {
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).context("create .services")?;
        }
        fs::write(file, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("write {}", file.display()))
    }

    fn both_up(&self) -> bool {
        [&self.postgres, &self.kafka].iter().all(|running| running.as_ref().is_some_and(Running::is_up))
    }
}

/// Stops the servers that `file` names, and removes it.
///
/// # Errors
/// One of them cannot be stopped; the file stays.
pub(crate) async fn stop(file: &Path) -> Result<()> {
    let Some(pair) = Pair::read(file)? else { return Ok(()) };
    if let Some(running) = &pair.kafka {
        kafka::broker::stop_left_behind(running.pid, &running.directory).await.context("stop Kafka")?;
    }
    if let Some(running) = &pair.postgres {
        postgres::server::stop_left_behind(running.pid, &running.directory)
            .await
            .context("stop PostgreSQL")?;
    }
    if let Some(scratch) = &pair.scratch {
        remove(scratch).await?;
    }
    fs::remove_file(file).with_context(|| format!("remove {}", file.display()))
}

/// Where the servers of a test run are noted.
#[must_use]
pub(crate) fn file_of_run(root: &Path) -> PathBuf {
    directory(root).join(format!("run-{}.json", std::process::id()))
}

/// Stops the servers of test runs that were killed before they could.
///
/// # Errors
/// One of them cannot be stopped.
pub(crate) async fn stop_orphans(root: &Path) -> Result<()> {
    for entry in fs::read_dir(directory(root)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let run =
            name.to_str().and_then(|name| name.strip_prefix("run-")?.strip_suffix(".json")?.parse().ok());
        if let Some(run) = run
            && !process::is_ours(run, "xtask")
        {
            stop(&entry.path()).await?;
        }
    }
    Ok(())
}

/// Starts both servers, unless they run already, and prints the environment for tests.
pub(crate) async fn up(root: &Path) -> Result<ExitCode> {
    let file = directory(root).join("development.json");
    let pair = match Pair::read(&file)? {
        Some(pair) if pair.both_up() => pair,
        _ => {
            stop(&file).await?;
            match Pair::start(&file, provision::postgres_binaries(None)?).await {
                Ok(pair) => pair,
                Err(error) => {
                    stop(&file).await?;
                    return Err(error);
                }
            }
        }
    };
    for (name, value) in pair.environment() {
        println!("export {name}={value}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops both servers and removes their data.
pub(crate) async fn down(root: &Path) -> Result<ExitCode> {
    stop(&directory(root).join("development.json")).await?;
    Ok(ExitCode::SUCCESS)
}

/// Says whether they run; the exit code is 0 if both do.
pub(crate) fn status(root: &Path) -> Result<ExitCode> {
    let pair = Pair::read(&directory(root).join("development.json"))?.unwrap_or_default();
    for (name, running) in [("PostgreSQL", &pair.postgres), ("Kafka", &pair.kafka)] {
        match running {
            Some(running) if running.is_up() => {
                println!("{name} runs: {} (process {})", running.address, running.pid);
            }
            Some(running) => {
                println!("{name} has ended; its data is still in {}", running.directory.display());
            }
            None => println!("{name} was not started"),
        }
    }
    Ok(if pair.both_up() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tried again for a while: a killed server's children may still write their last.
async fn remove(directory: &Path) -> Result<()> {
    wait::until(format!("{} is removed", directory.display()), Duration::from_secs(10), || {
        let gone = match fs::remove_dir_all(directory) {
            Ok(()) => true,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        async move { Ok(gone.then_some(())) }
    })
    .await
}

fn directory(root: &Path) -> PathBuf {
    root.join(".services")
}
