//! The demo tells its story to the end, its tally adds up, and it leaves nothing behind.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::eventually;
use outboxd_testkit::shared;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Longest that a demo may take on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(180);

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    command.arg("demo").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn told(mut command: Command) -> (Output, String) {
    let output = timeout(ENDS_WITHIN, command.output()).await.unwrap().unwrap();
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    (output, told)
}

/// The sums of the tally by their names.
fn sums(told: &str) -> BTreeMap<String, u64> {
    let (_, tally) = told.split_once("\nTally\n").unwrap_or_else(|| panic!("no tally in:\n{told}"));
    let names = ["committed", "rolled back", "published", "duplicates", "effects", "parked", "lost"];
    let sum = |name: &str| {
        let line = tally.lines().find_map(|line| line.trim_start().strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
    };
    names.into_iter().map(|name| (name.to_owned(), sum(name))).collect()
}

/// What stands after `before`, up to the next character that is none of a name or path.
fn word_after<'a>(told: &'a str, before: &str) -> &'a str {
    let (_, rest) = told.split_once(before).unwrap_or_else(|| panic!("no {before:?} in:\n{told}"));
    rest.split(|c: char| c.is_whitespace() || matches!(c, ':' | ',')).next().unwrap()
}

fn assert_adds_up(sums: &BTreeMap<String, u64>) {
    assert_eq!(sums["lost"], 0, "{sums:?}");
    assert_eq!(sums["effects"], sums["committed"], "{sums:?}");
    assert_eq!(sums["published"], sums["effects"] + sums["duplicates"], "{sums:?}");
    assert!(sums["committed"] > 0 && sums["rolled back"] > 0, "{sums:?}");
    assert!(sums["duplicates"] > 0, "a relay killed with unsettled records repeats them: {sums:?}");
}

fn is_gone(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// D1 to D4. The environment of a developer who has a relay configured must not draw the demo there.
#[tokio::test]
async fn the_demo_needs_nothing_and_its_tally_adds_up() {
    let mut command = demo(&["--orders", "400", "--seed", "7"]);
    command.env("OUTBOXD__DATABASE__URL", "postgres://nobody@127.0.0.1:1/nowhere");
    command.env("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let (output, told) = told(command).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}\n{errors}", output.status);
    let sums = sums(&told);
    assert_adds_up(&sums);
    assert_eq!(sums["parked"], 1, "{told}");
    assert_eq!(
        told.matches("kill -9 ").count(),
        4,
        "three kills and the sentence that announces them:\n{told}"
    );
    assert!(told.contains("no attempt charged, nothing set aside"), "{told}");
    assert!(told.contains("duplicate   consumer read"), "the timeline shows a repeated message:\n{told}");
    assert!(!told.contains('\u{1b}'), "no terminal, no colours");
    assert!(is_gone(word_after(&told, "outboxd run, process ").parse().unwrap()));
    assert!(!std::path::Path::new(word_after(&told, "SQLite in ")).exists(), "the directory is left behind");
}

/// D1 to D3, on servers that also hold other things.
#[tokio::test]
async fn the_demo_on_real_servers_adds_up_and_leaves_neither_schema_nor_topic() {
    let database = Database::create().await;
    let (url, kafka) = (database.url(), shared::kafka());
    let (output, told) =
        told(demo(&["--orders", "400", "--database-url", &url, "--bootstrap-servers", &kafka])).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}\n{errors}", output.status);
    assert_adds_up(&sums(&told));
    assert!(told.contains("Acts 3 and 4 are left out"), "{told}");
    let schemas: Vec<String> = sqlx::query_scalar(
        "select nspname::text from pg_namespace where nspname like 'outboxd%' or nspname = 'outbox'",
    )
    .fetch_all(&mut database.connect().await)
    .await
    .unwrap();
    assert_eq!(schemas, Vec::<String>::new());
    let topic = word_after(&told, "topics ").to_owned();
    assert!(topic.starts_with("outboxd-demo-"), "{topic}");
    eventually("the topics are deleted", Duration::from_secs(30), async || {
        let names = topics(&kafka).await;
        (!names.contains(&topic)).then_some(())
    })
    .await;
}

async fn topics(bootstrap: &str) -> Vec<String> {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let look = move || {
        let metadata = client.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    };
    tokio::task::spawn_blocking(look).await.unwrap()
}

#[tokio::test]
async fn an_interrupted_demo_leaves_no_process_and_no_file() {
    let mut child = demo(&["--orders", "2000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = String::new();
    while !told.contains("Act 1") {
        let line = timeout(ENDS_WITHIN, lines.next_line()).await.unwrap().unwrap();
        told.push_str(&line.unwrap_or_else(|| panic!("it ended by itself:\n{told}")));
        told.push('\n');
    }
    let relay: i32 = word_after(&told, "outboxd run, process ").parse().unwrap();
    assert!(!is_gone(relay));
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
    let status = timeout(ENDS_WITHIN, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130), "128 and the signal's number, as a shell expects");
    assert!(is_gone(relay), "process {relay} is still there");
    assert!(!std::path::Path::new(word_after(&told, "SQLite in ")).exists(), "the directory is left behind");
}

#[tokio::test]
async fn a_database_that_cannot_be_shared_is_refused() {
    let (output, _) = told(demo(&["--database-url", "sqlite:/nowhere/shop.db"])).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("for PostgreSQL"));
}

#[tokio::test]
async fn a_demo_that_cannot_reach_its_database_says_so_and_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = demo(&["--database-url", "postgres://nobody@127.0.0.1:1/nowhere"]);
    command.env("TMPDIR", directory.path());
    let (output, told) = told(command).await;
    assert_eq!(output.status.code(), Some(69), "{told}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1:1/nowhere"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a file is left behind");
}
