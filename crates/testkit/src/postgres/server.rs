//! A PostgreSQL server of one's own.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::binaries::{self, Binaries};
use crate::ports::free_port;
use crate::process::{Group, Process};
use crate::wait;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The superuser's password where one is asked for.
pub const PASSWORD: &str = "outboxd-superuser";

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    settings: Vec<(String, String)>,
    scram: bool,
    tls: Option<(String, String)>,
    group: Group,
    binaries: Option<Binaries>,
}

impl Options {
    /// A server setting, in place of ours. `fsync` is off by default: what a killed process has written stays with the kernel.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// TCP connections need a password ([`PASSWORD`] for the superuser).
    #[must_use]
    pub fn scram(mut self) -> Self {
        self.scram = true;
        self
    }

    /// TLS with this certificate and key, in PEM. Plain connections stay possible.
    #[must_use]
    pub fn tls(mut self, certificate: &str, key: &str) -> Self {
        self.tls = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// Other programs than [`Binaries::find`] would take.
    #[must_use]
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// A process group of its own: the server outlives its starter.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.group = Group::Own;
        self
    }
}

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Waits for its clients to leave.
    Smart,
    /// Ends its clients' sessions, then writes a checkpoint.
    Fast,
    /// As a crash, but orderly: recovers at the next start.
    Immediate,
}

/// A running server with a data directory of its own; killed and removed when dropped.
#[derive(Debug)]
pub struct Server {
    // Before the directory, so that it is gone when the directory is removed.
    process: Option<Process>,
    directory: TempDir,
    binaries: Binaries,
    options: Options,
    port: u16,
}

impl Server {
    /// Sets up and starts a server on a free loopback port and a socket in its directory.
    ///
    /// # Errors
    /// There are no server programs, or one of them fails; the error ends with what it said.
    pub async fn start(options: Options) -> Result<Self> {
        let Some(binaries) = options.binaries.clone().or_else(Binaries::find) else {
            bail!("start PostgreSQL: no initdb and postgres on PATH or in /usr/lib/postgresql");
        };
        let mut server =
            Self { process: None, directory: own_directory()?, binaries, options, port: free_port()? };
        server.initialise()?;
        server.configure()?;
        server.launch(true).await?;
        Ok(server)
    }

    /// The superuser's URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let password = if self.options.scram { format!(":{PASSWORD}") } else { String::new() };
        format!("postgres://postgres{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// The loopback port; the same after every restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its log so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.log_path()).context("read the server's log")?).into_owned())
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not run, or does not stop.
    pub async fn stop(&mut self, mode: Mode) -> Result<()> {
        let signal = match mode {
            Mode::Smart => Signal::SIGTERM,
            Mode::Fast => Signal::SIGINT,
            Mode::Immediate => Signal::SIGQUIT,
        };
        let mut process = self.process.take().context("stop PostgreSQL: it does not run")?;
        process.signal(signal)?;
        process.ended(STOP_LIMIT).await?;
        Ok(())
    }

    /// Kills the postmaster and all its children: what a power cut leaves of what was written to files.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_9(&mut self) -> Result<()> {
        self.process.take().context("kill PostgreSQL: it does not run")?.kill_9().await
    }

    /// Starts it again on the same port and data.
    ///
    /// # Errors
    /// It runs already, or does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("start PostgreSQL again: it runs");
        }
        self.launch(false).await
    }

    /// Stops every one of its processes where it is; connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<()> {
        self.running()?.pause()
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<()> {
        self.running()?.resume()
    }

    /// Changes settings and reloads. Those that need a restart take effect at [`Server::start_again`].
    ///
    /// # Errors
    /// The configuration cannot be written, or the server does not run.
    pub fn settings(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        for (name, value) in settings {
            self.options.settings.push(((*name).to_owned(), (*value).to_owned()));
        }
        self.configure()?;
        self.running()?.signal(Signal::SIGHUP)
    }

    /// A streaming standby of this server: reads WAL as it comes, serves read-only queries.
    ///
    /// # Errors
    /// The data cannot be copied, or the standby does not start.
    #[cfg(feature = "clients")]
    pub async fn standby(&self) -> Result<Self> {
        let mut standby = Self {
            process: None,
            directory: own_directory()?,
            binaries: self.binaries.clone(),
            options: self.options.clone(),
            port: free_port()?,
        };
        super::standby::copy(self, &standby.data()).await?;
        standby.configure()?;
        standby.launch(true).await?;
        Ok(standby)
    }

    /// A copy of this stopped server's data directory, as a snapshot of its file system is, started on a port of its own. The same
    /// system identifier, the same rows; two servers that know nothing of one another.
    ///
    /// # Errors
    /// This server runs, its data cannot be copied, or the copy does not start.
    pub async fn copy(&self) -> Result<Self> {
        if self.process.is_some() {
            bail!("copy PostgreSQL's data: it runs");
        }
        let mut copy = Self {
            process: None,
            directory: own_directory()?,
            binaries: self.binaries.clone(),
            options: self.options.clone(),
            port: free_port()?,
        };
        let mut cp = Command::new("cp");
        cp.arg("-a").arg(self.data()).arg(copy.data());
        run(cp)?;
        copy.configure()?;
        copy.launch(true).await?;
        Ok(copy)
    }

    /// What `pg_dump` says of a database, with these arguments.
    ///
    /// # Errors
    /// There is no `pg_dump`, or it fails.
    pub fn dump(&self, database: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut dump = self.client("pg_dump");
        let output = dump.args(arguments).arg(self.url(database)).output().context("run pg_dump")?;
        if !output.status.success() {
            bail!("pg_dump: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }

    /// Restores a dump into a database that is there.
    ///
    /// # Errors
    /// There is no `psql`, or the dump cannot be restored.
    pub fn restore(&self, database: &str, dump: &[u8]) -> Result<()> {
        let file = self.directory.path().join("dump.sql");
        fs::write(&file, dump).context("write the dump")?;
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--file"]);
        psql.arg(&file).arg(self.url(database)).stdout(Stdio::null());
        run(psql)
    }

    /// A client program: beside the server's own, where there is one (archives of servers leave them out), or on PATH.
    fn client(&self, program: &str) -> Command {
        let beside = match &self.binaries {
            Binaries::Directory(directory) => Some(directory.join(program)).filter(|path| path.is_file()),
            Binaries::Image => None,
        };
        Command::new(beside.unwrap_or_else(|| PathBuf::from(program)))
    }

    /// Makes a standby lag from now on: it receives nothing more from its primary.
    ///
    /// # Errors
    /// It does not run, or goes on receiving.
    pub async fn stop_following(&mut self) -> Result<()> {
        // The file holds nothing else.
        fs::write(self.data().join("postgresql.auto.conf"), "primary_conninfo = ''\n")?;
        self.running()?.signal(Signal::SIGHUP)?;
        let process = self.running()?;
        wait::until_true("the standby receives nothing more", START_LIMIT, || {
            !process.has_child_titled("walreceiver")
        })
        .await
    }

    /// Promotes a standby to a primary and waits until it takes writes.
    ///
    /// # Errors
    /// It is no standby.
    pub async fn promote(&mut self) -> Result<()> {
        let mut promote = self.binaries.command_beside(self.running()?, "pg_ctl");
        promote.args(["promote", "--wait", "--timeout=60", "--pgdata"]).arg(self.data());
        run(promote)?;
        self.wait_until_ready().await
    }

    /// The postmaster's process id and its directory, both left to the caller: nothing is stopped or removed.
    ///
    /// # Errors
    /// It does not run.
    pub fn leave_running(mut self) -> Result<(i32, PathBuf)> {
        let process = self.process.take().context("leave PostgreSQL running: it does not run")?;
        Ok((process.leave().as_raw(), self.directory.keep()))
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().context("PostgreSQL does not run")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    fn initialise(&self) -> Result<()> {
        let mut initdb = self.binaries.command("initdb");
        initdb.args([
            "--no-sync",
            "--encoding=UTF8",
            "--no-locale",
            "--username=postgres",
            "--auth-local=trust",
        ]);
        if self.options.scram {
            let password = self.write_for_server("password", PASSWORD)?;
            initdb.arg("--auth-host=scram-sha-256").arg("--pwfile").arg(password);
        } else {
            initdb.arg("--auth-host=trust");
        }
        initdb.arg("--pgdata").arg(self.data());
        run(initdb)
    }

    fn configure(&self) -> Result<()> {
        let mut ours = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", self.socket_directory().display().to_string()),
            ("max_connections", "200".to_owned()),
            ("max_prepared_transactions", "20".to_owned()),
            ("wal_level", "replica".to_owned()),
            ("max_wal_senders", "10".to_owned()),
            ("wal_keep_size", "256MB".to_owned()),
            ("fsync", "off".to_owned()),
            ("log_line_prefix", "%m [%p] %a %d ".to_owned()),
        ];
        if let Some((certificate, key)) = &self.options.tls {
            let certificate = self.write_for_server("server.crt", certificate)?;
            let key = self.write_for_server("server.key", key)?;
            ours.push(("ssl", "on".to_owned()));
            ours.push(("ssl_cert_file", certificate.display().to_string()));
            ours.push(("ssl_key_file", key.display().to_string()));
        }
        let theirs = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let mut text = String::new();
        for (name, value) in ours.into_iter().chain(theirs) {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        // Replaces initdb's file, whose defaults are the server's own. The last line of a name wins.
        fs::write(self.data().join("postgresql.conf"), text).context("write postgresql.conf")
    }

    /// `fresh`: nobody knows the port yet, so that another one may be taken if this one is taken in between.
    async fn launch(&mut self, fresh: bool) -> Result<()> {
        for _ in 0..5 {
            let mut postgres = self.binaries.command("postgres");
            if self.binaries == Binaries::Image {
                // In a container the next server has the same process id as the last: its file would be taken for ours.
                drop(fs::remove_file(self.data().join("postmaster.pid")));
            }
            postgres.arg("-D").arg(self.data());
            self.process =
                Some(Process::start("PostgreSQL", postgres, &self.log_path(), self.options.group)?);
            let Err(error) = self.wait_until_ready().await else { return Ok(()) };
            self.process = None;
            if !fresh || !self.log()?.contains("could not bind") {
                return Err(error);
            }
            self.port = free_port()?;
            self.configure()?;
        }
        bail!("start PostgreSQL: five ports in a row were taken by somebody else")
    }

    /// The postmaster writes its state into `postmaster.pid`: the first line is its id, the eighth its state.
    async fn wait_until_ready(&mut self) -> Result<()> {
        let file = self.data().join("postmaster.pid");
        let process = self.process.as_mut().context("PostgreSQL does not run")?;
        let pid = if self.binaries == Binaries::Image { "1".to_owned() } else { process.pid().to_string() };
        process
            .wait_until("ready", START_LIMIT, || {
                let text = fs::read_to_string(&file).unwrap_or_default();
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                lines.first() == Some(&pid.as_str()) && lines.get(7) == Some(&"ready")
            })
            .await
    }

    fn write_for_server(&self, name: &str, contents: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, contents).with_context(|| format!("write {name}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        give_to_server(&path)?;
        Ok(path)
    }
}

/// Stops a server that [`Server::leave_running`] left, and removes its directory.
///
/// # Errors
/// It cannot be stopped.
pub async fn stop_left_behind(pid: i32, directory: &Path) -> Result<()> {
    let marker = directory.display().to_string();
    crate::process::end_left_behind(pid, &marker, Signal::SIGINT, STOP_LIMIT).await?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {marker}"))
        }
        _ => Ok(()),
    }
}

fn own_directory() -> Result<TempDir> {
    // Short, because the path of a Unix socket has at most 107 bytes.
    let directory = tempfile::Builder::new().prefix("outboxd-pg-").tempdir().context("create a directory")?;
    give_to_server(directory.path())?;
    Ok(directory)
}

fn give_to_server(path: &Path) -> Result<()> {
    if let Some((uid, gid)) = binaries::server_user() {
        chown(path, Some(uid), Some(gid))
            .with_context(|| format!("give {} to PostgreSQL's user", path.display()))?;
    }
    Ok(())
}

fn run(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", command.get_program().display(), said.trim());
    }
    Ok(())
}

#[cfg(test)]
#[cfg(feature = "clients")]
mod tests;
