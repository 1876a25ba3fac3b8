//! A server's process: output in a file, signals to it and its children, nothing left behind.
//!
//! Nothing here knows which server it is, or whether it runs in a container. Children are found in `/proc`, because PostgreSQL's leave the process group.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{container, wait};

/// A running process that is killed, with its children, when this value is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Option<Child>,
    pid: Pid,
    log: PathBuf,
}

/// Which process group a server belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// Its starter's: what ends the starter from outside (Ctrl-C, a signal to the group) ends it too.
    #[default]
    Starter,
    /// Its own: it outlives its starter.
    Own,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path, group: Group) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log).context("open the server's log")?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        if group == Group::Own {
            command.process_group(0);
        }
        let child = command.spawn().with_context(|| format!("start {name} ({command:?})"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Self { name: name.to_owned(), child: Some(child), pid, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// The system does not know the process.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Waits until `ready`, and fails at once with the end of the log if the process ends before.
    ///
    /// # Errors
    /// It ended, or the limit passed.
    pub async fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let (name, log) = (self.name.clone(), self.log.clone());
        let waited = wait::until(format!("{name} is {what}"), limit, || {
            let seen = match self.exited() {
                Ok(Some(status)) => Err(anyhow::anyhow!("{name} ended with {status}")),
                Ok(None) => Ok(ready().then_some(())),
                Err(error) => Err(error),
            };
            async move { seen }
        });
        waited.await.with_context(|| format!("its log ends with:\n{}", tail(&log)))
    }

    /// The container that it stands for, if it is one's.
    #[must_use]
    pub fn container(&self) -> Option<String> {
        container::of(self.pid)
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// The process does not exist any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(container) = self.container() {
            container::signal(&container, signal);
            return Ok(());
        }
        kill(self.pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The limit passed.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let (name, log) = (self.name.clone(), self.log.clone());
        wait::until(format!("{name} has ended"), limit, || {
            let exited = self.exited();
            async move { exited }
        })
        .await
        .with_context(|| format!("its log ends with:\n{}", tail(&log)))
    }

    /// Stops the process and its children where they are.
    ///
    /// # Errors
    /// The process does not exist any more.
    pub fn pause(&self) -> Result<()> {
        if let Some(container) = self.container() {
            container::pause(&container);
            return Ok(());
        }
        self.signal(Signal::SIGSTOP)?;
        signal_all(&descendants(self.pid), Signal::SIGSTOP);
        Ok(())
    }

    /// Lets a paused process and its children go on.
    ///
    /// # Errors
    /// The process does not exist any more.
    pub fn resume(&self) -> Result<()> {
        if let Some(container) = self.container() {
            container::resume(&container);
            return Ok(());
        }
        signal_all(&descendants(self.pid), Signal::SIGCONT);
        self.signal(Signal::SIGCONT)
    }

    /// Whether one of its children calls itself so (PostgreSQL's processes set their title).
    #[must_use]
    pub fn has_child_titled(&self, title: &str) -> bool {
        if let Some(container) = self.container() {
            return container::titles(&container).contains(title);
        }
        descendants(self.pid).iter().any(|pid| is_ours(pid.as_raw(), title))
    }

    /// Kills the process and its children with `SIGKILL` and waits until all of them are gone.
    ///
    /// # Errors
    /// One of them is still there after ten seconds.
    pub async fn kill_9(&mut self) -> Result<()> {
        let children = kill_all(self.pid);
        if let Some(child) = &mut self.child {
            child.wait().context("wait for the killed process")?;
        }
        let all_gone = || children.iter().all(|pid| is_gone(*pid));
        wait::until_true(format!("the children of {} are gone", self.name), Duration::from_secs(10), all_gone)
            .await
    }

    /// Lets it run on without this value, and returns its process id.
    #[must_use]
    pub fn leave(mut self) -> Pid {
        self.child = None;
        self.pid
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let exited = self.exited();
        if self.child.is_some() && !matches!(exited, Ok(Some(_))) {
            kill_all(self.pid);
        }
        if let Some(child) = &mut self.child {
            // Reaps it. An error would mean that it is gone already.
            drop(child.wait());
        }
    }
}

/// Ends a process that another run of ours left behind: `signal` first, `SIGKILL` to it and its children once `limit` has
/// passed. Does nothing if no process of that id has `marker` in its command line: the id may be somebody else's by now.
///
/// # Errors
/// It cannot be ended.
pub async fn end_left_behind(pid: i32, marker: &str, signal: Signal, limit: Duration) -> Result<()> {
    if !is_ours(pid, marker) {
        return Ok(());
    }
    let pid = Pid::from_raw(pid);
    kill(pid, signal).context("signal the server")?;
    if wait::until_true("the server has ended", limit, || is_gone(pid)).await.is_ok() {
        return Ok(());
    }
    kill_all(pid);
    if wait::until_true("the server is killed", limit, || is_gone(pid)).await.is_err() {
        bail!("process {pid} survives SIGKILL");
    }
    Ok(())
}

/// Whether the process runs and has `marker` in its command line.
#[must_use]
pub fn is_ours(pid: i32, marker: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|cmdline| String::from_utf8_lossy(&cmdline).contains(marker))
}

/// The last lines of a log, for an error.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Kills a process and its children, and returns the children. It is stopped first, so that it cannot start another child
/// between being listed and being killed.
fn kill_all(pid: Pid) -> Vec<Pid> {
    if is_gone(pid) {
        return Vec::new();
    }
    if let Some(container) = container::of(pid) {
        container::resume(&container);
        container::signal(&container, Signal::SIGKILL);
    }
    signal_all(&[pid], Signal::SIGSTOP);
    let children = descendants(pid);
    signal_all(&[pid], Signal::SIGKILL);
    signal_all(&children, Signal::SIGKILL);
    children
}

/// Errors are left alone: a process that has just ended cannot be signalled, and need not be.
fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill(*pid, signal);
    }
}

fn descendants(root: Pid) -> Vec<Pid> {
    let mut parents: Vec<(i32, i32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some((_, parent)) = state_and_parent(pid)
        {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root.as_raw()];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.into_iter().skip(1).map(Pid::from_raw).collect()
}

/// A zombie counts as gone: it holds nothing, and its parent may take its time to reap it.
fn is_gone(pid: Pid) -> bool {
    state_and_parent(pid.as_raw()).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// From `/proc/PID/stat`: `PID (name) STATE PARENT ...`, where the name may hold anything.
fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}
