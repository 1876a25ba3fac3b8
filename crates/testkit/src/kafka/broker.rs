//! An Apache Kafka broker of one's own: one node that is its own controller, jars from Maven Central.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::cache::{self, Artifact};
use crate::container::{self, Image};
use crate::ports::free_port;
use crate::process::{Group, Process};

/// The version that the tests run against.
pub const VERSION: &str = "4.1.0";

const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// 16 bytes in base64, which Kafka wants; the same for every broker, because they never meet.
const CLUSTER_ID: &str = "b3V0Ym94ZC10ZXN0LTAwMA";

/// To see in the log that the broker serves, and nothing else below a warning.
const LOGGING: &str = "appender.out.type=Console\n\
    appender.out.name=out\n\
    appender.out.layout.type=PatternLayout\n\
    appender.out.layout.pattern=%d %p %m (%c)%n\n\
    rootLogger.level=warn\n\
    rootLogger.appenderRef.out.ref=out\n\
    logger.server.name=kafka.server.KafkaRaftServer\n\
    logger.server.level=info\n";

/// How a broker is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    properties: Vec<(String, String)>,
    advertised: Option<String>,
    users: Vec<(String, String)>,
    group: Group,
}

impl Options {
    /// A broker property, in place of ours.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A second listener, [`Broker::behind_proxy`], that tells its clients to come to this address: a proxy's.
    #[must_use]
    pub fn advertised(mut self, address: &str) -> Self {
        self.advertised = Some(address.to_owned());
        self
    }

    /// A user of the listener [`Broker::sasl`] (`SASL_PLAINTEXT`, mechanism `PLAIN`). With any user, whoever is not
    /// authorised by [`Broker::allow`] may do nothing, except through [`Broker::bootstrap`], which stays open to all.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// A process group of its own: the broker outlives its starter.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.group = Group::Own;
        self
    }
}

/// A running broker with a directory of its own; killed and removed when dropped.
#[derive(Debug)]
pub struct Broker {
    // Before the directory, so that it is gone when the directory is removed.
    process: Option<Process>,
    directory: TempDir,
    java: Java,
    options: Options,
    ports: Ports,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    controller: u16,
    proxied: u16,
    sasl: u16,
}

impl Ports {
    fn free() -> Result<Self> {
        Ok(Self { plain: free_port()?, controller: free_port()?, proxied: free_port()?, sasl: free_port()? })
    }
}

impl Broker {
    /// Sets up and starts a broker on free loopback ports.
    ///
    /// # Errors
    /// Java or Maven is missing, or the broker does not come up; the error ends with what it said.
    pub async fn start(options: Options) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("outboxd-kafka-").tempdir().context("create a directory")?;
        let mut broker =
            Self { process: None, directory, java: Java::find()?, options, ports: Ports::free()? };
        fs::write(broker.path("log4j2.properties"), LOGGING)?;
        broker.configure()?;
        broker.format()?;
        broker.launch(true).await?;
        Ok(broker)
    }

    /// The bootstrap address; the same after every restart.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// Where a proxy finds the listener of [`Options::advertised`].
    #[must_use]
    pub fn behind_proxy(&self) -> String {
        format!("127.0.0.1:{}", self.ports.proxied)
    }

    /// The bootstrap address of the listener that asks for a user.
    #[must_use]
    pub fn sasl(&self) -> String {
        format!("127.0.0.1:{}", self.ports.sasl)
    }

    /// Its log so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.path("server.log")).context("read the broker's log")?)
            .into_owned())
    }

    /// Stops it in an orderly way.
    ///
    /// # Errors
    /// It does not run, or does not stop.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("stop Kafka: it does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.ended(STOP_LIMIT).await?;
        Ok(())
    }

    /// Kills it.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_9(&mut self) -> Result<()> {
        self.process.take().context("kill Kafka: it does not run")?.kill_9().await
    }

    /// Starts it again on the same ports and data.
    ///
    /// # Errors
    /// It runs already, or does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("start Kafka again: it runs");
        }
        self.launch(false).await
    }

    /// Stops it where it is; connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<()> {
        self.running()?.pause()
    }

    /// Lets a paused broker go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<()> {
        self.running()?.resume()
    }

    /// Authorises a user for operations (`Write`, `Describe`, ...) on a topic.
    ///
    /// # Errors
    /// Kafka's own tool fails.
    pub fn allow(&self, user: &str, operations: &[&str], topic: &str) -> Result<()> {
        self.change_acl("--add", user, operations, topic)
    }

    /// Takes an authorisation back.
    ///
    /// # Errors
    /// Kafka's own tool fails.
    pub fn forbid(&self, user: &str, operations: &[&str], topic: &str) -> Result<()> {
        self.change_acl("--remove", user, operations, topic)
    }

    /// The first segment of a topic's partition, as it is on disk.
    ///
    /// # Errors
    /// The broker has no such partition.
    pub fn segment(&self, topic: &str, partition: i32) -> Result<Vec<u8>> {
        let file = format!("data/{topic}-{partition}/00000000000000000000.log");
        fs::read(self.path(&file)).with_context(|| format!("read {file}"))
    }

    /// The process id and the directory, both left to the caller: nothing is stopped or removed.
    ///
    /// # Errors
    /// It does not run.
    pub fn leave_running(mut self) -> Result<(i32, PathBuf)> {
        let process = self.process.take().context("leave Kafka running: it does not run")?;
        Ok((process.leave().as_raw(), self.directory.keep()))
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().context("Kafka does not run")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn change_acl(&self, action: &str, user: &str, operations: &[&str], topic: &str) -> Result<()> {
        let mut tool = self.java.command("64m");
        tool.arg("org.apache.kafka.tools.AclCommand").args(["--bootstrap-server", &self.bootstrap()]);
        tool.args([action, "--force", "--allow-principal", &format!("User:{user}"), "--topic", topic]);
        for operation in operations {
            tool.args(["--operation", operation]);
        }
        run(tool)
    }

    fn configure(&self) -> Result<()> {
        let Ports { plain, controller, proxied, sasl } = self.ports;
        let mut listeners = vec![
            ("PLAINTEXT", format!("127.0.0.1:{plain}"), format!("127.0.0.1:{plain}")),
            ("CONTROLLER", format!("127.0.0.1:{controller}"), format!("127.0.0.1:{controller}")),
        ];
        if let Some(advertised) = &self.options.advertised {
            listeners.push(("PROXIED", format!("127.0.0.1:{proxied}"), advertised.clone()));
        }
        if !self.options.users.is_empty() {
            listeners.push(("SASL", format!("127.0.0.1:{sasl}"), format!("127.0.0.1:{sasl}")));
        }
        let bound = join(listeners.iter().map(|(name, bound, _)| format!("{name}://{bound}")));
        let advertised = join(listeners.iter().map(|(name, _, advertised)| format!("{name}://{advertised}")));
        let mut properties: Vec<(String, String)> = [
            ("process.roles", "broker,controller"),
            ("node.id", "1"),
            ("controller.quorum.voters", &format!("1@127.0.0.1:{controller}")),
            ("listeners", &bound),
            ("advertised.listeners", &advertised),
            ("controller.listener.names", "CONTROLLER"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,SASL:SASL_PLAINTEXT",
            ),
            ("log.dirs", &self.path("data").display().to_string()),
            ("auto.create.topics.enable", "false"),
            ("num.partitions", "1"),
            ("offsets.topic.replication.factor", "1"),
            ("offsets.topic.num.partitions", "1"),
            ("transaction.state.log.replication.factor", "1"),
            ("transaction.state.log.min.isr", "1"),
            ("transaction.state.log.num.partitions", "1"),
            ("share.coordinator.state.topic.replication.factor", "1"),
            ("share.coordinator.state.topic.min.isr", "1"),
            ("group.initial.rebalance.delay.ms", "0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if !self.options.users.is_empty() {
            properties.extend(access_control(&self.options.users));
        }
        let mut text = String::new();
        // Java reads the last line of a name.
        for (name, value) in properties.iter().chain(&self.options.properties) {
            writeln!(text, "{name}={value}")?;
        }
        fs::write(self.path("server.properties"), text).context("write server.properties")
    }

    fn format(&self) -> Result<()> {
        let mut tool = self.java.command("64m");
        tool.args(["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config"])
            .arg(self.path("server.properties"));
        run(tool)
    }

    /// `fresh`: nobody knows the ports yet, so that others may be taken if one of these is taken in between.
    async fn launch(&mut self, fresh: bool) -> Result<()> {
        let log = self.path("server.log");
        for _ in 0..5 {
            let mut kafka = self.java.command("512m");
            kafka
                .arg({
                    let mut logging = OsString::from("-Dlog4j2.configurationFile=");
                    logging.push(self.path("log4j2.properties"));
                    logging
                })
                .arg("kafka.Kafka")
                .arg(self.path("server.properties"));
            // The last start's lines must not be taken for this one's.
            fs::write(&log, "")?;
            let mut process = Process::start("Kafka", kafka, &log, self.options.group)?;
            let started = || fs::read_to_string(&log).is_ok_and(|text| text.contains("Kafka Server started"));
            let Err(error) = process.wait_until("started", START_LIMIT, started).await else {
                self.process = Some(process);
                return Ok(());
            };
            drop(process);
            if !fresh || !self.log()?.contains("Address already in use") {
                return Err(error);
            }
            self.ports = Ports::free()?;
            self.configure()?;
        }
        bail!("start Kafka: five sets of ports in a row were taken by somebody else")
    }
}

/// Stops a broker that [`Broker::leave_running`] left, and removes its directory.
///
/// # Errors
/// It cannot be stopped.
pub async fn stop_left_behind(pid: i32, directory: &Path) -> Result<()> {
    let marker = directory.display().to_string();
    crate::process::end_left_behind(pid, &marker, Signal::SIGTERM, STOP_LIMIT).await?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {marker}"))
        }
        _ => Ok(()),
    }
}

/// Java with Kafka's jars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Java {
    /// This machine's Java, and jars in this directory.
    Jars(PathBuf),
    /// Both in an image.
    Image,
}

const IMAGE: Image = Image("apache/kafka:4.1.0");

impl Java {
    /// This machine's Java with jars from Maven Central, fetched once; else an image, if a container engine answers.
    ///
    /// # Errors
    /// There is neither, or Maven fails.
    pub fn find() -> Result<Self> {
        if !has_java() || !cache::has_maven() {
            if container::is_available() {
                return Ok(Self::Image);
            }
            bail!("Kafka is missing: install Java 17 and Maven, or start a container engine");
        }
        let jars = cache::maven(
            &format!("kafka-{VERSION}"),
            &[
                Artifact("org.apache.kafka", "kafka_2.13", VERSION),
                Artifact("org.apache.kafka", "kafka-tools", VERSION),
                Artifact("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
            ],
        )?;
        Ok(Self::Jars(jars))
    }

    /// Small, and quick to start on a busy machine (serial collector, first compiler only).
    pub(crate) fn command(&self, heap: &str) -> Command {
        let (mut command, mut classes) = match self {
            Self::Jars(jars) => (Command::new("java"), jars.as_os_str().to_owned()),
            Self::Image => (IMAGE.command("java", None), OsString::from("/opt/kafka/libs")),
        };
        classes.push("/*");
        command
            .arg(format!("-Xmx{heap}"))
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(classes);
        command
    }
}

/// Whether this machine has Java 17 or later.
#[must_use]
pub fn has_java() -> bool {
    let Ok(output) = Command::new("java").arg("-version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stderr);
    let version = text.split('"').nth(1).unwrap_or_default();
    let major: u32 = version.split(['.', '-', '+']).next().and_then(|major| major.parse().ok()).unwrap_or(0);
    major >= 17
}

/// Runs one of Kafka's tools to its end.
pub(crate) fn run(mut tool: Command) -> Result<()> {
    let output = tool.output().context("run java")?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{tool:?}: {} {}", out.trim(), err.trim());
    }
    Ok(())
}

fn access_control(users: &[(String, String)]) -> Vec<(String, String)> {
    let users: String = users.iter().map(|(name, password)| format!(" user_{name}=\"{password}\"")).collect();
    let login = format!("org.apache.kafka.common.security.plain.PlainLoginModule required{users};");
    [
        ("sasl.enabled.mechanisms", "PLAIN"),
        ("listener.name.sasl.plain.sasl.jaas.config", &login),
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:ANONYMOUS"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[cfg(feature = "clients")]
mod tests;
