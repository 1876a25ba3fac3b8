//! Server programs from an image, for machines that have a container engine and not the programs.
//!
//! A program from an image runs as if it were this machine's: same network, same temporary files, same users. It is started
//! with `docker run` in the foreground, which hands most signals on; those that it cannot see go through the engine, to the
//! container that the command line of `docker run` names.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getegid, geteuid};

/// Numbers the containers of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An image of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image(pub &'static str);

/// Whether a container engine answers.
#[must_use]
pub fn is_available() -> bool {
    Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success())
}

impl Image {
    /// A command that runs a program of the image; the caller adds its arguments. `user`: as whom, else as this process.
    #[must_use]
    pub fn command(self, program: &str, user: Option<(u32, u32)>) -> Command {
        let (uid, gid) = user.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
        let shared = std::env::temp_dir().display().to_string();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new("docker");
        command
            .args([
                "run",
                "--rm",
                "--interactive",
                "--network=host",
                "--shm-size=256m",
                "--workdir=/",
                "--env=LC_ALL=C",
            ])
            .arg(format!("--user={uid}:{gid}"))
            .arg(format!("--volume={shared}:{shared}"))
            // PostgreSQL wants a name for its user.
            .arg("--volume=/etc/passwd:/etc/passwd:ro")
            .args(["--name", &format!("outboxd-{}-{number}", std::process::id())])
            .args(["--entrypoint", program, self.0]);
        command
    }
}

/// The container that a process started by [`Image::command`] stands for.
#[must_use]
pub fn of(pid: Pid) -> Option<String> {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let cmdline = String::from_utf8_lossy(&cmdline);
    let mut arguments = cmdline.split('\0');
    if !arguments.next()?.ends_with("docker") {
        return None;
    }
    arguments.find(|argument| *argument == "--name")?;
    arguments.next().map(ToOwned::to_owned)
}

/// Sends a signal to the container's first process; `SIGKILL` ends all of them. An error means that it is gone.
pub fn signal(container: &str, signal: Signal) {
    quietly(&["kill", "--signal", signal.as_str(), container]);
}

/// Stops every process of the container where it is.
pub fn pause(container: &str) {
    quietly(&["pause", container]);
}

/// Lets a paused container go on.
pub fn resume(container: &str) {
    quietly(&["unpause", container]);
}

/// The command lines of the container's processes.
#[must_use]
pub fn titles(container: &str) -> String {
    let output = Command::new("docker").args(["top", container, "-o", "args"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// A command that runs a program inside a running container.
#[must_use]
pub fn inside(container: &str, program: &str) -> Command {
    let mut command = Command::new("docker");
    command.args(["exec", container, program]);
    command
}

/// What fails here shows where the caller looks next: the process is still there, or it is not.
fn quietly(arguments: &[&str]) {
    drop(Command::new("docker").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status());
}
