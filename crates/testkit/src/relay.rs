//! The real relay, as a child process under a test's control.
//!
//! A [`Relay`] is `outboxd run` with a configuration of its own, free HTTP ports and its log in a file. The test waits for
//! what the relay says about itself (metrics, status), ends it in every way that a process can end, and asserts that its
//! log held no warning that the test did not expect. The process ends with the value, whatever the test did.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::process::{Group, Process};

/// Between two looks at a state that a test waits for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a request to the relay may take.
const REQUEST: Duration = Duration::from_secs(5);
/// How long the relay may take until it serves HTTP.
const START: Duration = Duration::from_secs(60);
/// Lines of the log that a failing test shows.
const SHOWN_LINES: usize = 40;

/// Polls until `look` brings something; fails the test with `what` once `deadline` has passed.
///
/// # Panics
/// If the deadline passes.
pub async fn eventually<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + deadline;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "not within {deadline:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How a relay, and every other command of the binary, is configured.
#[derive(Clone)]
pub struct Setup {
    binary: PathBuf,
    environment: BTreeMap<String, String>,
    file: Option<String>,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment holds the database's password.
        f.debug_struct("Setup").field("binary", &self.binary).finish_non_exhaustive()
    }
}

impl Setup {
    /// The binary, for tests `env!("CARGO_BIN_EXE_outboxd")`, between a database and a broker. Back-off and outage limits are
    /// short, so that tests are quick.
    #[must_use]
    pub fn new(binary: &str, database_url: &str, bootstrap: &str) -> Self {
        Self { binary: PathBuf::from(binary), environment: BTreeMap::new(), file: None }
            .set("database.url", database_url)
            .set("kafka.bootstrap_servers", bootstrap)
            .set("http.listen", "127.0.0.1:0")
            .set("admin.listen", "127.0.0.1:0")
            .set("log.format", "json")
            .set("relay.backoff_max_ms", "1000")
    }

    /// Sets a configuration key, `relay.page_messages` for example, by its environment variable.
    #[must_use]
    pub fn set(self, key: &str, value: impl fmt::Display) -> Self {
        let name = format!("OUTBOXD__{}", key.to_uppercase().replace('.', "__"));
        self.variable(&name, value)
    }

    /// Sets a variable that is not a configuration key.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// The contents of a configuration file, for what no environment variable can say.
    #[must_use]
    pub fn file(mut self, toml: &str) -> Self {
        self.file = Some(toml.to_owned());
        self
    }

    fn command(&self, directory: &Path) -> Command {
        if let Some(toml) = &self.file {
            let place = directory.join("config");
            std::fs::create_dir_all(&place).expect("make a directory for the configuration");
            std::fs::write(place.join("outboxd.toml"), toml).expect("write the configuration");
        }
        let mut command = Command::new(&self.binary);
        // Nothing of the developer's own configuration gets in.
        command.env_clear().envs(&self.environment).current_dir(directory).stdin(Stdio::null());
        command
    }

    /// Runs another command of the binary to its end.
    ///
    /// # Panics
    /// If it cannot be run.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let directory = TempDir::new().expect("make a directory for the command");
        let mut command = self.command(directory.path());
        command.args(arguments);
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        tokio::time::timeout(START, output).await.expect("the command ends").expect("run the command")
    }

    /// Runs a command that must succeed; its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub async fn run_ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(
            output.status.success(),
            "outboxd {}: {}\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that must succeed and prints JSON.
    ///
    /// # Panics
    /// If it fails, or prints something else.
    pub async fn run_json(&self, arguments: &[&str]) -> Value {
        let printed = self.run_ok(arguments).await;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("not JSON ({error}): {printed}"))
    }

    /// Starts the relay without waiting for anything.
    ///
    /// # Panics
    /// If the process cannot be started.
    #[must_use]
    pub fn spawn(&self) -> Relay {
        let directory = TempDir::new().expect("make a directory for the relay");
        let log = directory.path().join("log");
        let mut command = self.command(directory.path());
        command.arg("run");
        let process = Process::start("the relay", command, &log, Group::Starter).expect("start the relay");
        Relay { process, address: None, log, _directory: directory }
    }

    /// Starts the relay and waits until it serves HTTP.
    ///
    /// # Panics
    /// If it does not.
    pub async fn start(&self) -> Relay {
        let mut relay = self.spawn();
        relay.serving().await;
        relay
    }
}

/// `outboxd run` as a child process.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    address: Option<String>,
    log: PathBuf,
    _directory: TempDir,
}

impl Relay {
    fn signal(&self, signal: Signal) {
        self.process.signal(signal).expect("signal the relay");
    }

    /// Kills it, as the kernel would for want of memory, and waits until it is gone.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub async fn kill_9(&mut self) {
        self.process.kill_9().await.expect("kill the relay");
    }

    /// Freezes it.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Asks it to drain, without waiting.
    pub fn ask_to_drain(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Asks it to drain and waits for its end.
    ///
    /// # Panics
    /// If it has not ended by the deadline.
    pub async fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.ask_to_drain();
        self.ended(deadline).await
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Panics
    /// If it has not by the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(
                Instant::now() < until,
                "the relay has not ended within {deadline:?}\n{}",
                self.last_lines()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How the process ended, if it has.
    ///
    /// # Panics
    /// If the process cannot be waited for.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited().expect("look at the relay")
    }

    /// Waits until it serves HTTP.
    ///
    /// # Panics
    /// If it does not, or ends.
    pub async fn serving(&mut self) {
        let until = Instant::now() + START;
        while self.address.is_none() {
            if let Some(status) = self.exited() {
                panic!("the relay ended ({status}) before it served HTTP\n{}", self.last_lines());
            }
            self.address = self.logged().iter().find_map(|line| line.served_address("outboxd::http"));
            assert!(Instant::now() < until, "the relay does not serve HTTP\n{}", self.last_lines());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Where its admin listener is.
    ///
    /// # Panics
    /// If it has none.
    pub async fn admin(&self) -> String {
        eventually("the relay says where its admin listener is", START, async || {
            self.logged().iter().find_map(|line| line.served_address("outboxd::admin"))
        })
        .await
    }

    /// GETs a path: status code and body. `None` if nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let address = self.address.as_deref()?;
        let request = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            // Version 1.0: the answer is not chunked and ends with the connection.
            let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = answer.split_once("\r\n\r\n")?;
            let code = head.split(' ').nth(1)?.parse().ok()?;
            Some((code, body.to_owned()))
        };
        tokio::time::timeout(REQUEST, request).await.ok().flatten()
    }

    /// Its metrics; `None` if it does not answer.
    pub async fn metrics(&self) -> Option<Metrics> {
        let (code, body) = self.get("/metrics").await?;
        (code == 200).then(|| Metrics::parse(&body))
    }

    /// Waits until its metrics are as the test wants them, and returns them.
    ///
    /// # Panics
    /// If they are not by the deadline, or the relay ends.
    pub async fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&Metrics) -> bool,
    ) -> Metrics {
        let until = Instant::now() + deadline;
        let mut last = None;
        loop {
            if let Some(status) = self.exited() {
                panic!("the relay ended ({status}) before: {what}\n{}", self.last_lines());
            }
            if let Some(metrics) = self.metrics().await {
                if holds(&metrics) {
                    return metrics;
                }
                last = Some(metrics);
            }
            assert!(
                Instant::now() < until,
                "not within {deadline:?}: {what}\n{}\n{}",
                last.map(|metrics| metrics.to_string()).unwrap_or_default(),
                self.last_lines()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until it leads.
    ///
    /// # Panics
    /// If it does not by the deadline.
    pub async fn leads(&mut self, deadline: Duration) {
        self.wait_until("the relay leads", deadline, |metrics| metrics.sum("outboxd_leader", &[]) > 0.0)
            .await;
    }

    /// Memory that the process holds now, and the most that it ever held, in bytes.
    ///
    /// # Panics
    /// If the process has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))
            .expect("read the relay's memory from /proc");
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).expect("/proc says how much memory is held")
        };
        (kib("VmRSS:") * 1024, kib("VmHWM:") * 1024)
    }

    /// The names of the process's threads.
    ///
    /// # Panics
    /// If the process has ended.
    #[must_use]
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.pid()))
            .expect("read the relay's threads from /proc");
        // One that ends meanwhile is none.
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        tasks.flatten().filter_map(name).map(|name| name.trim_end().to_owned()).collect()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn logged(&self) -> Vec<LogLine> {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        // A process that was killed may have left half a line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter(|line| !line.trim().is_empty()).map(LogLine::parse).collect()
    }

    fn last_lines(&self) -> String {
        let logged = self.logged();
        let from = logged.len().saturating_sub(SHOWN_LINES);
        let lines: Vec<&str> = logged[from..].iter().map(|line| line.text.as_str()).collect();
        format!("--- last lines of the relay's log ---\n{}", lines.join("\n"))
    }

    /// Fails if the log holds a warning, an error, or a line that is no log line at all, unless it contains one of the
    /// declared texts.
    ///
    /// # Panics
    /// If there is such a line.
    pub fn expect_no_surprises(&self, declared: &[&str]) {
        let surprises: Vec<String> = self
            .logged()
            .into_iter()
            .filter(LogLine::is_alarming)
            .map(|line| line.text)
            .filter(|text| !declared.iter().any(|part| text.contains(part)))
            .collect();
        assert!(
            surprises.is_empty(),
            "the relay logged what the test did not expect:\n{}",
            surprises.join("\n")
        );
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_lines());
        }
    }
}

/// A line of the relay's log.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The line as it was written.
    pub text: String,
    /// The line as JSON; `None` if it is something else, a panic for example.
    pub json: Option<Value>,
}

impl LogLine {
    fn parse(text: &str) -> Self {
        Self { text: text.to_owned(), json: serde_json::from_str(text).ok() }
    }

    /// Its level, if it is a log line.
    #[must_use]
    pub fn level(&self) -> Option<&str> {
        self.json.as_ref()?.get("level")?.as_str()
    }

    fn is_alarming(&self) -> bool {
        !matches!(self.level(), Some("INFO" | "DEBUG" | "TRACE"))
    }

    /// The address of a listener, if this line tells it.
    fn served_address(&self, target: &str) -> Option<String> {
        let json = self.json.as_ref()?;
        json.get("target")?.as_str().filter(|its| its.starts_with(target))?;
        let fields = json.get("fields").unwrap_or(json);
        ["address", "listen", "addr"].iter().find_map(|name| fields.get(name)?.as_str().map(str::to_owned))
    }
}

/// What `/metrics` said.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
    text: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket"));
        lines.into_iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Metrics {
    /// Reads the Prometheus text format.
    ///
    /// # Panics
    /// If a line is no sample.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines
            .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("no Prometheus sample: {line:?}")))
            .collect();
        Self { samples, text: text.to_owned() }
    }

    /// The sum of a metric's samples that carry these labels. Zero if there are none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.iter().any(|(l, v)| l == label && v == value))
        };
        self.samples.iter().filter(carries).map(|sample| sample.value).sum()
    }

    /// Whether the metric is there at all.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let Some((name, rest)) = line.split_once('{') else {
            let (name, value) = line.split_once(' ')?;
            return Some(Self { name: name.to_owned(), labels: Vec::new(), value: value.parse().ok()? });
        };
        let mut labels = Vec::new();
        let mut rest = rest;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut characters = after.char_indices();
            loop {
                match characters.next()? {
                    (_, '\\') => match characters.next()?.1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (end, '"') => {
                        rest = after[end + 1..].trim_start_matches(',');
                        break;
                    }
                    (_, character) => value.push(character),
                }
            }
            labels.push((label.to_owned(), value));
        }
        let value = rest[1..].trim().parse().ok()?;
        Some(Self { name: name.to_owned(), labels, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_asked_for() {
        let metrics = Metrics::parse(
            "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"p\"} 2\na{x=\"1\",y=\"q,\\\"}\"} 3\na{x=\"2\"} 5\nb 0.5\n",
        );
        assert_eq!(metrics.sum("a", &[]), 10.0);
        assert_eq!(metrics.sum("a", &[("x", "1")]), 5.0);
        assert_eq!(metrics.sum("a", &[("y", "q,\"}")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 0.5);
        assert_eq!(metrics.sum("c", &[]), 0.0);
        assert!(metrics.has("b") && !metrics.has("c"));
    }

    #[test]
    fn whatever_is_not_a_harmless_log_line_is_alarming() {
        assert!(!LogLine::parse(r#"{"level":"INFO","target":"outboxd"}"#).is_alarming());
        assert!(LogLine::parse(r#"{"level":"WARN","target":"outboxd"}"#).is_alarming());
        assert!(LogLine::parse("thread 'main' panicked at").is_alarming());
    }
}
