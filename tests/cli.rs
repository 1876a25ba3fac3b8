//! What the commands promise to whoever types them, and to scripts.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use sqlx::{Connection as _, SqliteConnection};

use crate::support::BINARY;

/// A server that refuses connections.
pub(crate) const NOBODY: &str = "127.0.0.1:1";

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The binary, in a directory and an environment of its own.
pub(crate) fn command(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().envs(environment.iter().copied()).current_dir(directory).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
    command(directory, environment, arguments).output().unwrap().into()
}

/// An environment for an outbox in `shop.db` and a broker that is not there.
pub(crate) const SHOP: [(&str, &str); 4] = [
    ("OUTBOXD__DATABASE__URL", "sqlite:shop.db"),
    ("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", NOBODY),
    ("OUTBOXD__HTTP__LISTEN", "127.0.0.1:0"),
    ("OUTBOXD__ADMIN__LISTEN", "off"),
];

const COMMANDS: [&[&str]; 19] = [
    &[],
    &["run"],
    &["migrate"],
    &["migrate", "grants"],
    &["migrate", "trace-indexes"],
    &["check"],
    &["status"],
    &["held"],
    &["held", "list"],
    &["held", "show"],
    &["held", "retry"],
    &["held", "discard"],
    &["held", "edit"],
    &["held", "audit"],
    &["config"],
    &["config", "show"],
    &["config", "check"],
    &["healthcheck"],
    &["completions"],
];

#[test]
fn every_command_explains_itself_on_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in COMMANDS {
        let ran = run(directory.path(), &[], &[arguments, &["--help"]].concat());
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        assert!(ran.out.contains("Usage: outboxd") && ran.err.is_empty(), "{arguments:?}: {ran:?}");
        assert!(!ran.out.contains('\u{1b}'), "colour without a terminal: {ran:?}");
    }
    let explained: [&[&str]; 7] =
        [&[], &["migrate"], &["migrate", "grants"], &["check"], &["status"], &["held"], &["config"]];
    for arguments in explained {
        let help = run(directory.path(), &[], &[arguments, &["--help"]].concat()).out;
        assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
    }
    assert!(run(directory.path(), &[], &["--version"]).out.starts_with("outboxd "));
}

#[test]
fn wrong_usage_ends_with_64_and_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let id = "01890000-0000-7000-8000-000000000000";
    let wrong: [&[&str]; 23] = [
        &[],
        &["fly"],
        &["run", "--fast"],
        &["held", "show", "not-an-id"],
        &["held", "list", "--state", "gone"],
        &["held", "discard", id],
        &["held", "discard", id, "--reason", " "],
        &["held", "retry", id, "--reason", ""],
        &["held", "retry", id, "--as", ""],
        &["held", "retry", id],
        &["held", "retry", "--reason", "x"],
        &["held", "retry", id, "--topic", "orders", "--reason", "x"],
        &["held", "discard", id, "--all", "--reason", "x"],
        &["held", "discard", "--all", "--topic", "orders", "--reason", "x"],
        &["held", "list", "--key", "k"],
        &["held", "list", "--topic", "a*", "--key", "k"],
        &["held", "list", "--older-than", "yesterday"],
        &["held", "edit", id, "--payload-file", "f", "--reason", "x"],
        &["held", "edit", "--topic", "orders", "--reason", "x"],
        &["held", "audit", "--action", "nothing"],
        &["migrate", "--schema", "other"],
        &["migrate", "grants"],
        &["status", "--set", "no-equals-sign"],
    ];
    for arguments in wrong {
        let ran = run(directory.path(), &SHOP, arguments);
        assert_eq!(ran.code, Some(64), "{arguments:?}: {ran:?}");
        assert!(ran.out.is_empty() && !ran.err.is_empty(), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn completions_are_printed_for_every_shell_without_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(directory.path(), &[("OUTBOXD__RELAY__NONSENSE", "1")], &["completions", shell]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.out.contains("healthcheck") && ran.out.contains("held"), "{shell}: {}", ran.out);
    }
}

#[test]
fn migrating_twice_installs_once_and_a_dry_run_installs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let dry = run(directory.path(), &SHOP, &["migrate", "--dry-run"]);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    assert!(dry.out.contains("create table outbox_message"), "{}", dry.out);
    assert!(!directory.path().join("shop.db").exists());

    let first = run(directory.path(), &SHOP, &["migrate"]);
    assert!(first.code == Some(0) && first.out.contains("applied migration 1"), "{first:?}");
    let second = run(directory.path(), &SHOP, &["migrate"]);
    assert!(second.code == Some(0) && second.out.contains("up to date"), "{second:?}");
    let dry = run(directory.path(), &SHOP, &["migrate", "--dry-run"]);
    assert!(dry.code == Some(0) && dry.out.starts_with("--"), "{dry:?}");
}

#[test]
fn what_was_done_is_told_to_programs_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let json = |arguments: &[&str]| -> serde_json::Value {
        let ran = run(directory.path(), &SHOP, &[arguments, &["--output", "json"]].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        serde_json::from_str(&ran.out).unwrap()
    };
    let valid = json(&["config", "check"]);
    assert_eq!((&valid["database"], &valid["bootstrap_servers"]), (&"sqlite:shop.db".into(), &NOBODY.into()));
    let planned = json(&["migrate", "--dry-run"]);
    assert_eq!(planned["pending"][1]["version"], 2, "{planned}");
    assert!(planned["pending"][0]["sql"].as_str().unwrap().contains("create table outbox_message"));
    let applied = serde_json::json!([
        { "version": 1, "name": "outbox" },
        { "version": 2, "name": "delivery" },
        { "version": 3, "name": "trace" },
    ]);
    assert_eq!(json(&["migrate"])["applied"], applied);
    assert_eq!(json(&["migrate"])["applied"], serde_json::json!([]));
}

#[test]
fn a_database_file_that_is_not_there_is_named_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run(directory.path(), &SHOP, &["status"]);
    assert_eq!(ran.code, Some(69), "{ran:?}");
    let path = directory.path().join("shop.db").display().to_string();
    assert!(ran.err.contains(&path) && ran.err.contains("`outboxd migrate` creates it"), "{ran:?}");
    let environment = [("OUTBOXD__DATABASE__URL", "sqlite:no/such/shop.db")];
    let ran = run(directory.path(), &environment, &["migrate"]);
    assert!(ran.code == Some(69) && ran.err.contains("no/such/shop.db"), "{ran:?}");
}

#[test]
fn sqlite_has_no_roles_to_grant_to() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run(directory.path(), &SHOP, &["migrate", "grants", "--writer", "app"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.err.contains("SQLite has no roles"), "{ran:?}");
}

#[test]
fn a_database_that_cannot_be_reached_ends_a_command_with_69_and_says_what_was_tried() {
    let directory = tempfile::tempdir().unwrap();
    let environment = [
        ("OUTBOXD__DATABASE__URL", "postgres://app:canary@127.0.0.1:1/shop"),
        ("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", NOBODY),
    ];
    let commands: [&[&str]; 5] =
        [&["status"], &["held", "list"], &["migrate"], &["migrate", "grants", "--relay", "r"], &["check"]];
    for arguments in commands {
        let ran = run(directory.path(), &environment, arguments);
        assert_eq!(ran.code, Some(69), "{arguments:?}: {ran:?}");
        assert!(ran.err.starts_with("outboxd: "), "{arguments:?}: {ran:?}");
        assert!(!ran.err.contains("canary") && !ran.out.contains("canary"), "{arguments:?}: {ran:?}");
    }
    let status = run(directory.path(), &environment, &["status"]);
    assert!(status.err.contains("connect") && status.err.contains("refused"), "{status:?}");
}

#[test]
fn an_outbox_that_is_not_installed_ends_a_command_and_the_relay_with_78_and_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("shop.db"), b"").unwrap();
    for arguments in [["status"], ["check"]] {
        let ran = run(directory.path(), &SHOP, &arguments);
        // Kafka is out of reach as well, which `check` says too.
        assert!(matches!(ran.code, Some(78 | 69)), "{ran:?}");
        assert!(ran.err.contains("outboxd migrate") || ran.out.contains("outboxd migrate"), "{ran:?}");
    }
    let relay = run(directory.path(), &SHOP, &["run"]);
    assert_eq!(relay.code, Some(78), "{relay:?}");
    assert!(relay.out.contains("outboxd migrate"), "{relay:?}");
}

#[test]
fn an_outbox_with_nothing_in_it_says_so_in_words_and_in_json() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run(directory.path(), &SHOP, &["migrate"]).code, Some(0));

    let list = run(directory.path(), &SHOP, &["held", "list"]);
    assert_eq!((list.code, list.out.trim()), (Some(0), "no such message is held"), "{list:?}");
    let list = run(directory.path(), &SHOP, &["held", "list", "--output", "json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&list.out).unwrap(), serde_json::json!([]));

    let status = run(directory.path(), &SHOP, &["status"]);
    assert!(status.code == Some(0) && status.out.contains("backlog"), "{status:?}");
    let status = run(directory.path(), &SHOP, &["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["backlog_messages"], 0);
    assert_eq!(status["leader"]["alive"], false);
}

#[test]
fn a_message_that_is_not_held_cannot_be_decided_about() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run(directory.path(), &SHOP, &["migrate"]).code, Some(0));
    let id = "01890000-0000-7000-8000-000000000000";
    let commands: [&[&str]; 3] = [
        &["held", "show", id],
        &["held", "retry", id, "--reason", "test"],
        &["held", "discard", id, "--reason", "test"],
    ];
    for arguments in commands {
        let ran = run(directory.path(), &SHOP, arguments);
        assert_eq!(ran.code, Some(64), "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(id), "{arguments:?}: {ran:?}");
    }
}

/// Parks a message of its own key in `shop.db` for each of these ids.
async fn park(directory: &Path, ids: &[&str]) {
    let url = format!("sqlite:{}", directory.join("shop.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    for id in ids {
        sqlx::query("insert into outbox_message (id, topic, key, payload) values (?1, 'orders', ?1, 'x')")
            .bind(id)
            .execute(&mut database)
            .await
            .unwrap();
    }
    sqlx::raw_sql(
        "insert into outbox_held (seq, id, topic, state, reason) select seq, id, topic, 'parked', 'too_large' from outbox_message",
    )
    .execute(&mut database)
    .await
    .unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn of_several_messages_each_is_tried_and_what_was_not_done_is_named() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run(directory.path(), &SHOP, &["migrate"]).code, Some(0));
    let [first, gone, last] = [
        "01890000-0000-7000-8000-000000000001",
        "01890000-0000-7000-8000-000000000002",
        "01890000-0000-7000-8000-000000000003",
    ];
    park(directory.path(), &[first, last]).await;
    let status = run(directory.path(), &SHOP, &["status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let parked = serde_json::json!([{ "state": "parked", "reason": "too_large", "messages": 2 }]);
    assert_eq!(status["held"], parked, "as /status of the relay has it");

    let ran = run(directory.path(), &SHOP, &["held", "retry", first, gone, last, "--reason", "test"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.out.contains(first) && ran.out.contains(last) && !ran.out.contains(gone), "{ran:?}");
    assert!(ran.err.contains(gone) && !ran.err.contains(first), "{ran:?}");

    let discard = ["held", "discard", gone, first, "--reason", "test", "--as", "ada", "--output", "json"];
    let ran = run(directory.path(), &SHOP, &discard);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    let acted: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(acted["ids"], serde_json::json!([first]));
    assert_eq!((&acted["not_done"][0]["id"], &acted["who"]), (&gone.into(), &"ada".into()), "{acted}");
    let left = run(directory.path(), &SHOP, &["held", "list"]);
    assert!(left.out.contains(last) && !left.out.contains(first), "{left:?}");
}

#[tokio::test]
async fn many_messages_are_rehearsed_and_then_decided_about_by_filters() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run(directory.path(), &SHOP, &["migrate"]).code, Some(0));
    let ids: Vec<String> = (0..25).map(|n| format!("01890000-0000-7000-8000-{n:012}")).collect();
    park(directory.path(), &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let json = |arguments: &[&str]| -> serde_json::Value {
        let ran = run(directory.path(), &SHOP, &[arguments, &["--output", "json"]].concat());
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        serde_json::from_str(&ran.out).unwrap()
    };
    let rehearsed = json(&["held", "discard", "--topic", "ord*", "--held-for", "too_large", "--dry-run"]);
    assert_eq!((&rehearsed["matched"], &rehearsed["done"]), (&25.into(), &0.into()), "{rehearsed}");
    assert_eq!(rehearsed["sample"].as_array().unwrap().len(), 10);
    assert_eq!(json(&["held", "list", "--limit", "0"]).as_array().unwrap().len(), 25, "nothing is changed");
    let words = run(directory.path(), &SHOP, &["held", "discard", "--all", "--dry-run"]).out;
    assert!(words.contains("25 messages") && words.contains("The oldest 10 of 25"), "{words}");

    let shown = json(&["held", "show", &ids[0]]);
    assert!(shown["explanation"]["remedy"].as_str().unwrap().contains("max.message.bytes"), "{shown}");
    let words = run(directory.path(), &SHOP, &["held", "show", &ids[0]]).out;
    assert!(words.contains("What to do: Raise max.message.bytes"), "{words}");

    let retried =
        json(&["held", "retry", "--topic", "orders", "--limit", "3", "--reason", "raised", "--as", "ada"]);
    assert_eq!((&retried["matched"], &retried["done"]), (&3.into(), &3.into()), "{retried}");
    let discarded = json(&["held", "discard", "--state", "parked", "--reason", "of no use"]);
    assert_eq!((&discarded["matched"], &discarded["done"]), (&22.into(), &22.into()), "{discarded}");
    assert_eq!(json(&["held", "list"]).as_array().unwrap().len(), 3);
    let audit = json(&["held", "audit", "--limit", "0"]);
    assert_eq!(audit.as_array().unwrap().len(), 25);
    let line = json(&["held", "audit", "--id", &ids[1]]);
    assert_eq!((&line[0]["who"], &line[0]["why"]), (&"ada".into(), &"raised".into()), "{line}");
    let words = run(directory.path(), &SHOP, &["held", "audit", "--action", "discard", "--limit", "1"]).out;
    assert!(words.contains("of no use") && words.contains("too_large"), "{words}");
    let none = run(directory.path(), &SHOP, &["held", "discard", "--topic", "other", "--reason", "x"]);
    assert!(none.code == Some(0) && none.out.contains("0 messages"), "{none:?}");
}

#[tokio::test]
async fn an_edit_says_what_it_did_and_what_it_does_not_take() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run(directory.path(), &SHOP, &["migrate"]).code, Some(0));
    let id = "01890000-0000-7000-8000-000000000001";
    park(directory.path(), &[id]).await;
    std::fs::write(directory.path().join("payload.json"), "{\"secret\": 1}").unwrap();
    let edit = |arguments: &[&str]| {
        run(directory.path(), &SHOP, &[&["held", "edit", id, "--reason", "mended"], arguments].concat())
    };
    for (arguments, says) in [
        (&["--header", "id=1"][..], "reserved"),
        (&["--remove-header", "gone"], "no header"),
        (&["--topic", "__consumer_offsets"], "illegal"),
        (&["--partition=-1"], "partition"),
        (&[], "changes nothing"),
        (&["--payload-file", "no-such-file", "--yes-change-payload"], "no-such-file"),
    ] {
        let ran = edit(arguments);
        assert!(ran.code == Some(64) && ran.err.contains(says), "{arguments:?}: {ran:?}");
    }
    let ran = edit(&["--dry-run", "--topic", "payments"]);
    assert!(ran.code == Some(0) && ran.out.contains("nothing is changed"), "{ran:?}");
    let payload = [
        "--header",
        "tenant=hidden",
        "--topic",
        "payments",
        "--payload-file",
        "payload.json",
        "--yes-change-payload",
    ];
    let ran = edit(&payload);
    assert!(ran.code == Some(0) && ran.out.contains(id), "{ran:?}");
    let shown = run(directory.path(), &SHOP, &["held", "show", id]).out;
    assert!(shown.contains("headers, payload, topic at") && shown.contains("payments"), "{shown}");
    let audit = run(directory.path(), &SHOP, &["held", "audit", "--output", "json"]).out;
    assert!(audit.contains("tenant") && !audit.contains("hidden") && !audit.contains("secret"), "{audit}");
}

#[test]
fn the_preflight_tells_what_it_looked_at_and_ends_with_69_while_kafka_is_down() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run(directory.path(), &SHOP, &["migrate"]).code, Some(0));
    let ran = run(directory.path(), &SHOP, &["check", "--output", "json"]);
    assert_eq!(ran.code, Some(69), "{ran:?}");
    let findings: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let findings = findings.as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["severity"] == "ok"), "{findings:?}");
    let brokers = findings.iter().find(|finding| finding["check"] == "brokers").unwrap();
    assert_eq!(brokers["severity"], "error");
    assert!(brokers["found"].as_str().unwrap().contains(NOBODY), "{brokers}");
    assert_eq!(ran.err, "outboxd: cannot reach Kafka\n", "what is wrong is said once");
    assert!(!brokers["remedy"].as_str().unwrap().is_empty());
}

#[test]
fn a_healthcheck_without_a_relay_ends_with_69() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [vec!["healthcheck"], vec!["healthcheck", "--ready", "--strict"]] {
        let ran = run(directory.path(), &[], &[arguments, vec!["--address", NOBODY]].concat());
        assert_eq!(ran.code, Some(69), "{ran:?}");
        assert!(ran.err.contains(NOBODY), "{ran:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = command(directory.path(), &[], &["config", "reference"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}
