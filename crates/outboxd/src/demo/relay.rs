//! The real relay, as a child process: this very program with `run`, configured by its environment alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Lines that wait for the story at most; further ones are missing on the screen, not in the file.
const LINES_MAX: usize = 100;

/// How long a relay may take to drain.
const DRAINS_WITHIN: Duration = Duration::from_secs(10);

/// How commands of this program are started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// This program.
    pub(crate) program: PathBuf,
    /// Arguments before the command.
    pub(crate) arguments: Vec<OsString>,
    /// Variables that are set.
    pub(crate) environment: Vec<(String, String)>,
    /// Variables that are taken away.
    pub(crate) without: Vec<OsString>,
    /// Where it runs.
    pub(crate) directory: Option<PathBuf>,
}

impl Launch {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(arguments).stdin(Stdio::null());
        for variable in &self.without {
            command.env_remove(variable);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        // Whatever becomes of the demo's own future, the child does not outlive it. A process group of its own: Ctrl-C is
        // the demo's to handle.
        command.kill_on_drop(true).process_group(0);
        command
    }

    /// Runs a command to its end and returns what it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        const WITHIN: Duration = Duration::from_secs(30);
        let doing = || format!("outboxd {}", arguments.join(" "));
        let output = timeout(WITHIN, self.command(arguments).output())
            .await
            .with_context(doing)?
            .with_context(doing)?;
        if !output.status.success() {
            bail!("{}: {}: {}", doing(), output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A line of the relay's log.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LogLine {
    /// Its level.
    pub(crate) level: String,
    /// Where it was logged.
    pub(crate) target: String,
    /// What it says.
    pub(crate) message: String,
    /// The part of librdkafka that says it.
    pub(crate) facility: Option<String>,
}

/// A running relay.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Its process id.
    pub(crate) pid: u32,
    child: Child,
    log: PathBuf,
    lines: mpsc::Receiver<LogLine>,
    reading: JoinSet<()>,
}

impl Relay {
    /// Starts one. Its log goes to the end of the file.
    pub(crate) async fn start(launch: &Launch, instance: &str, log: &Path) -> anyhow::Result<Self> {
        const DOING: &str = "start the relay";
        let file = tokio::fs::OpenOptions::new().create(true).append(true).open(log).await.context(DOING)?;
        let errors = file.try_clone().await.context(DOING)?.into_std().await;
        let mut command = launch.command(&["run"]);
        command.env("OUTBOXD__RELAY__INSTANCE", instance).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().context(DOING)?;
        let pid = child.id().context(DOING)?;
        let output = child.stdout.take().context(DOING)?;
        let (told, lines) = mpsc::channel(LINES_MAX);
        let mut reading = JoinSet::new();
        reading.spawn(read_log(output, file, told));
        Ok(Self { pid, child, log: log.to_owned(), lines, reading })
    }

    /// Fails with the end of its log if it has ended, which it was not asked to.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(10)..].join("\n");
            bail!("the relay has ended ({status}); the end of its log:\n{last}");
        }
        Ok(())
    }

    /// What it logged since the last call.
    pub(crate) fn logged(&mut self) -> Vec<LogLine> {
        std::iter::from_fn(|| self.lines.try_recv().ok()).collect()
    }

    /// SIGKILL: no warning, no drain, no last settle.
    pub(crate) async fn kill_9(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the relay")?;
        self.log_to_the_end().await;
        Ok(())
    }

    /// SIGTERM, and after too long SIGKILL.
    pub(crate) async fn drain(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let pid = Pid::from_raw(i32::try_from(self.pid)?);
        kill(pid, Signal::SIGTERM).context("ask the relay to drain")?;
        let ended = timeout(DRAINS_WITHIN, self.child.wait()).await;
        let status = match ended {
            Ok(status) => status?,
            Err(_) => {
                self.child.kill().await?;
                bail!("the relay has not drained within {} s", DRAINS_WITHIN.as_secs());
            }
        };
        self.log_to_the_end().await;
        Ok(status)
    }

    /// The pipe ends with the process.
    async fn log_to_the_end(&mut self) {
        let _in_time = timeout(Duration::from_secs(1), self.reading.join_next()).await;
    }
}

async fn read_log(
    output: tokio::process::ChildStdout,
    mut file: tokio::fs::File,
    told: mpsc::Sender<LogLine>,
) {
    let mut output = BufReader::new(output).lines();
    while let Ok(Some(line)) = output.next_line().await {
        // The file is for those who look at it afterwards: a full disk must not end the story.
        let _written = file.write_all(format!("{line}\n").as_bytes()).await;
        if let Ok(line) = serde_json::from_str::<LogLine>(&line) {
            let _in_time = told.try_send(line);
        }
    }
    let _flushed = file.flush().await;
}
