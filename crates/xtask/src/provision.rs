//! The servers that tests need: found on this machine, or made available.

use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;
use outboxd_testkit::cache::has_maven;
use outboxd_testkit::container;
use outboxd_testkit::kafka::{self, broker::has_java};
use outboxd_testkit::postgres::{self, Binaries};

/// PostgreSQL's programs: of a major version from Maven Central if one is asked for, else this machine's, else installed
/// from Debian's packages by root, else from Maven Central, else an image's.
///
/// # Errors
/// None of it is possible; the message says in one line what is missing.
pub(crate) fn postgres_binaries(major: Option<u32>) -> Result<Binaries> {
    if let Some(major) = major {
        need_java_and_maven("PostgreSQL of another major version")?;
        need_xz()?;
        return Binaries::from_maven(major);
    }
    if let Some(binaries) = Binaries::find() {
        return Ok(binaries);
    }
    if geteuid().is_root() && has("apt-get", "--version") {
        println!("PostgreSQL is not here: installing it with apt-get");
        install_postgres().context("install PostgreSQL with apt-get")?;
        return Binaries::find().context("apt-get has installed no PostgreSQL server");
    }
    if has_java() && has_maven() {
        println!("PostgreSQL is not here: fetching it from Maven Central");
        need_xz()?;
        return Binaries::from_maven(17);
    }
    if container::is_available() {
        println!("PostgreSQL is not here: running it from an image");
        return Ok(Binaries::Image);
    }
    bail!(
        "PostgreSQL is missing: install its server (Debian: postgresql), or Java 17 and Maven, \
         or start a container engine"
    )
}

/// A running PostgreSQL server that outlives this process until it is stopped.
///
/// # Errors
/// It does not start.
pub(crate) async fn start_postgres(binaries: Binaries) -> Result<postgres::Server> {
    let options = postgres::Options::default().binaries(binaries).own_group();
    postgres::Server::start(options).await.context("start PostgreSQL")
}

/// A running Kafka broker that outlives this process until it is stopped.
///
/// # Errors
/// It does not start; the message says in one line what is missing.
pub(crate) async fn start_kafka() -> Result<kafka::Broker> {
    kafka::Broker::start(kafka::Options::default().own_group()).await.context("start Kafka")
}

fn need_java_and_maven(what: &str) -> Result<()> {
    match (has_java(), has_maven()) {
        (true, true) => Ok(()),
        (false, _) => bail!("{what} needs Java 17 or later, which is missing (Debian: default-jre-headless)"),
        (true, false) => bail!("{what} is fetched with Maven, which is missing (Debian: maven)"),
    }
}

fn need_xz() -> Result<()> {
    if has("xz", "--version") {
        return Ok(());
    }
    if geteuid().is_root() && has("apt-get", "--version") {
        return apt_get(&["xz-utils"]);
    }
    bail!("PostgreSQL from Maven Central is packed with xz, which is missing (Debian: xz-utils)")
}

fn has(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
}

/// Debian's package starts a cluster of its own unless it is told not to before.
fn install_postgres() -> Result<()> {
    apt_get(&["postgresql-common"])?;
    let file = "/etc/postgresql-common/createcluster.conf";
    let text = std::fs::read_to_string(file).unwrap_or_default();
    std::fs::write(file, format!("{text}\ncreate_main_cluster = false\n"))
        .context("write createcluster.conf")?;
    apt_get(&["postgresql"])
}

fn apt_get(packages: &[&str]) -> Result<()> {
    for arguments in [vec!["update"], [&["install", "--yes", "--no-install-recommends"], packages].concat()] {
        let output = Command::new("apt-get")
            .arg("--quiet")
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .context("run apt-get")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("apt-get {}: {}", arguments.join(" "), said.lines().last().unwrap_or_default());
        }
    }
    Ok(())
}
