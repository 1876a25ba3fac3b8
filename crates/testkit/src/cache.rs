//! What is downloaded once and kept: jars and server binaries from Maven Central, outside the repository.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where downloads are kept: `$XDG_CACHE_HOME/outboxd` or `~/.cache/outboxd`. Root keeps them in `/var/cache/outboxd`,
/// because root's home is closed to the unprivileged user that has to run PostgreSQL's binaries from there.
///
/// # Errors
/// There is neither `XDG_CACHE_HOME` nor `HOME`.
pub fn directory() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/outboxd"));
    }
    let base = match (variable("XDG_CACHE_HOME"), variable("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("find the cache directory: neither XDG_CACHE_HOME nor HOME is set"),
    };
    Ok(base.join("outboxd"))
}

/// A Maven artifact: group, artifact, version (or a version range).
#[derive(Clone, Copy, Debug)]
pub struct Artifact<'a>(pub &'a str, pub &'a str, pub &'a str);

/// The directory `name` of the cache, filled with the artifacts and what they need at run time.
///
/// A finished directory appears by a rename, so that runs at the same time never see half of one.
///
/// # Errors
/// Maven is missing or fails; the error ends with what it said.
pub fn maven(name: &str, artifacts: &[Artifact<'_>]) -> Result<PathBuf> {
    filled(name, |directory| dependencies("copy-dependencies", directory, artifacts))
}

/// The directory `name` of the cache; `fill` makes its contents if it is not there yet.
///
/// # Errors
/// `fill` fails, or the cache cannot be written.
pub fn filled(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = directory()?.join(name);
    if done.is_dir() {
        return Ok(done);
    }
    let parent = done.parent().context("a cache directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let unfinished = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(parent)?;
    fill(unfinished.path())?;
    let unfinished = unfinished.keep();
    open_to_all(&unfinished)?;
    match fs::rename(&unfinished, &done) {
        Ok(()) => Ok(done),
        Err(_) if done.is_dir() => {
            fs::remove_dir_all(&unfinished)?;
            Ok(done)
        }
        Err(error) => Err(error).with_context(|| format!("rename to {}", done.display())),
    }
}

/// Whether Maven can be run.
#[must_use]
pub fn has_maven() -> bool {
    Command::new("mvn").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// `goal` is one of the dependency plugin's: `copy-dependencies` or `unpack-dependencies`.
pub(crate) fn dependencies(goal: &str, directory: &Path, artifacts: &[Artifact<'_>]) -> Result<()> {
    let dependencies: String = artifacts
        .iter()
        .map(|Artifact(group, artifact, version)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>"
            )
        })
        .collect();
    let project = tempfile::tempdir()?;
    fs::write(
        project.path().join("pom.xml"),
        format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
             <groupId>outboxd</groupId><artifactId>for-tests</artifactId><version>1</version>\
             <packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
        ),
    )?;
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", &format!("dependency:{goal}"), "-DincludeScope=runtime"])
        .arg({
            let mut argument = OsString::from("-DoutputDirectory=");
            argument.push(directory);
            argument
        })
        .current_dir(project.path())
        .output()
        .context("run mvn (Maven is needed to fetch test servers)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        bail!("fetch {artifacts:?} with Maven: {}", said.lines().take(5).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

/// A temporary directory is closed to others; what is cached is public.
fn open_to_all(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).context("open the cache directory")
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the cache is belongs to the machine, not to a configuration"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
