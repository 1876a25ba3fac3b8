//! What the running relay says over HTTP and to signals, with its servers down: SQLite is never out of reach, and nobody
//! listens where Kafka should be.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use outboxd_kafka::MockBroker;
use outboxd_testkit::relay::{Relay, Setup, eventually};
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::cli::{NOBODY, SHOP, command, run};
use crate::support::{BINARY, SOON};

/// The metrics that the documentation names.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(str::to_owned).collect()
}

/// An outbox in a file, and a relay's setup without a broker.
async fn shop() -> (TempDir, String, Setup) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let setup = Setup::new(BINARY, &url, NOBODY).set("relay.outage_after_ms", 500);
    setup.run_ok(&["migrate"]).await;
    (directory, url, setup)
}

async fn emit(url: &str, key: &str, payload: &str, correlation_id: &str) {
    let mut database = SqliteConnection::connect(url).await.unwrap();
    sqlx::query(
        "insert into outbox_message (topic, key, payload, correlation_id) values ('orders', ?1, ?2, ?3)",
    )
    .bind(key)
    .bind(payload)
    .bind(correlation_id)
    .execute(&mut database)
    .await
    .unwrap();
}

async fn get(relay: &Relay, path: &str) -> (u16, String) {
    relay.get(path).await.unwrap_or_else(|| panic!("{path} is not answered"))
}

async fn status(relay: &Relay) -> Value {
    serde_json::from_str(&get(relay, "/status").await.1).unwrap()
}

#[tokio::test]
async fn a_relay_that_starts_with_everything_down_is_alive_and_waits() {
    let setup = Setup::new(BINARY, "postgres://app@127.0.0.1:1/shop", NOBODY);
    let mut relay = setup.start().await;
    let metrics = relay
        .wait_until("the outage is told", SOON, |metrics| {
            metrics.sum("outboxd_outage", &[("side", "database")]) > 0.0
        })
        .await;
    let missing: Vec<String> = documented()
        .into_iter()
        .filter(|name| !metrics.has(name) && !metrics.has(&format!("{name}_count")))
        .collect();
    assert!(missing.is_empty(), "not served: {missing:?}");
    for zero in
        ["outboxd_dispatched_total", "outboxd_parked_total", "outboxd_leader", "outboxd_backlog_messages"]
    {
        assert!(metrics.has(zero) && metrics.sum(zero, &[]) == 0.0, "{zero}: {metrics}");
    }
    assert_eq!(get(&relay, "/livez").await, (200, "the loop moves\n".into()));
    assert_eq!(get(&relay, "/healthz").await.0, 200);
    let (code, said) = get(&relay, "/readyz").await;
    assert_eq!(code, 503, "{said}");
    let status = status(&relay).await;
    assert_eq!(status["role"], "starting");
    assert_eq!(status["outages"][0]["side"], "database");
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn readiness_does_not_depend_on_kafka_unless_asked_strictly() {
    let (_directory, url, setup) = shop().await;
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    assert_eq!(get(&relay, "/readyz?strict=1").await.0, 200);
    emit(&url, "key", "payload", "correlation").await;
    relay
        .wait_until("Kafka is out", SOON, |metrics| metrics.sum("outboxd_outage", &[("side", "kafka")]) > 0.0)
        .await;
    assert_eq!(get(&relay, "/readyz").await, (200, "leading\n".into()));
    let (code, said) = get(&relay, "/readyz?strict=1").await;
    assert_eq!((code, said.as_str()), (503, "leading; not available: kafka\n"));
    assert_eq!(get(&relay, "/livez").await.0, 200);
    let metrics = relay
        .wait_until("the intent gets older", SOON, |metrics| {
            metrics.sum("outboxd_oldest_undelivered_age_seconds", &[]) > 1.0
        })
        .await;
    assert!(metrics.sum("outboxd_backlog_messages", &[]) > 0.0, "{metrics}");
    assert!(metrics.sum("outboxd_parked_messages", &[]) == 0.0, "{metrics}");
}

#[tokio::test]
async fn the_healthcheck_command_says_what_the_probes_say() {
    let (directory, _url, setup) = shop().await;
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let listening =
        relay.logged().into_iter().find_map(|line| Some(line.json?.get("address")?.as_str()?.to_owned()));
    let address = listening.unwrap();
    for arguments in [vec!["healthcheck"], vec!["healthcheck", "--ready", "--strict"]] {
        let ran = run(directory.path(), &[], &[arguments, vec!["--address", &address]].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    relay.pause();
    let ran = run(directory.path(), &[], &["healthcheck", "--address", &address, "--timeout-ms", "200"]);
    relay.resume();
    assert_eq!(ran.code, Some(69), "{ran:?}");
    assert!(ran.err.contains("no answer within 200 ms"), "{ran:?}");
}

#[tokio::test]
async fn neither_http_nor_the_log_shows_a_key_or_payload_and_http_no_correlation_id() {
    let (_directory, url, setup) = shop().await;
    let setup = setup.variable("OUTBOXD_LOG", "trace");
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    emit(&url, "k3y-canary", "p4yload-canary", "c0rrelation-canary").await;
    relay
        .wait_until("Kafka is out", SOON, |metrics| metrics.sum("outboxd_outage", &[("side", "kafka")]) > 0.0)
        .await;
    eventually("the backlog is in /status", SOON, async || {
        (status(&relay).await["backlog"]["messages"].as_u64()? > 0).then_some(())
    })
    .await;
    for path in ["/metrics", "/status", "/livez", "/readyz", "/readyz?strict=1", "/healthz"] {
        let (_, body) = get(&relay, path).await;
        for canary in ["k3y", "p4yload", "c0rrelation"] {
            assert!(!body.contains(canary), "{path} shows {canary}: {body}");
        }
    }
    assert!(relay.terminate(SOON).await.success());
    for line in relay.logged() {
        assert!(!line.text.contains("k3y-canary") && !line.text.contains("p4yload"), "{}", line.text);
    }
}

/// The alerts' own tests, where Prometheus' tool is installed.
#[test]
fn the_alerts_fire_when_they_are_meant_to() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus/alerts_test.yml");
    match std::process::Command::new("promtool").args(["test", "rules"]).arg(rules).output() {
        Ok(ran) => assert!(
            ran.status.success(),
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("promtool is not installed: that the alerts fire is not tested");
        }
        Err(error) => panic!("run promtool: {error}"),
    }
}

#[tokio::test]
async fn every_line_about_a_message_names_it_and_shows_its_key_only_when_asked() {
    for shows_keys in [false, true] {
        let broker = MockBroker::start().unwrap();
        broker.create_topic("orders", 1).unwrap();
        let (_directory, url, setup) = shop().await;
        let setup = setup
            .set("kafka.bootstrap_servers", broker.bootstrap_servers())
            .set("log.keys", shows_keys)
            .variable("OUTBOXD_LOG", "trace");
        let mut relay = setup.start().await;
        emit(&url, "k3y-canary", "p4yload-canary", "c0rrelation-canary").await;
        relay
            .wait_until("it is dispatched", SOON, |metrics| {
                metrics.sum("outboxd_dispatched_total", &[]) > 0.0
            })
            .await;
        assert!(relay.terminate(SOON).await.success());
        let logged = relay.logged();
        let about: Vec<&Value> = logged
            .iter()
            .filter_map(|line| line.json.as_ref())
            .filter(|line| line["message"] == "message is acknowledged")
            .collect();
        assert_eq!(about.len(), 1, "{logged:?}");
        let line = about[0];
        assert_eq!(
            (&line["correlation_id"], &line["topic"], &line["seq"]),
            (&"c0rrelation-canary".into(), &"orders".into(), &1.into()),
            "{line}"
        );
        assert!(line["message_id"].is_string() && line["key_hash"].is_string(), "{line}");
        let key = if shows_keys { "k3y-canary".into() } else { Value::Null };
        assert_eq!(line["key"], key, "{line}");
        assert!(!line["key_hash"].to_string().contains("k3y"), "{line}");
        assert!(logged.iter().all(|line| !line.text.contains("p4yload")));
    }
}

#[test]
fn a_port_that_is_taken_ends_the_relay_with_78_and_names_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let mut environment = SHOP;
    environment[2].1 = &listen;
    let ran = run(directory.path(), &environment, &["run"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
    for said in ["http.listen", listen.as_str(), "OUTBOXD__HTTP__LISTEN"] {
        assert!(ran.out.contains(said), "{said} is not in {ran:?}");
    }
}

#[tokio::test]
async fn one_signal_drains_and_a_second_one_ends_at_once() {
    let broker = MockBroker::start().unwrap();
    broker.create_topic("orders", 1).unwrap();
    let (_directory, url, setup) = shop().await;
    let setup = setup
        .set("kafka.bootstrap_servers", broker.bootstrap_servers())
        .set("shutdown.grace_ms", 600_000)
        .set("relay.outage_after_ms", 600_000);
    let mut relay = setup.start().await;
    emit(&url, "key", "payload", "correlation").await;
    relay
        .wait_until("the topic is known", SOON, |metrics| metrics.sum("outboxd_dispatched_total", &[]) > 0.0)
        .await;
    // What is enqueued now is not acknowledged, so the drain takes the whole grace period.
    broker.go_down().unwrap();
    emit(&url, "key", "payload", "correlation").await;
    relay
        .wait_until("a record is enqueued", SOON, |metrics| metrics.sum("outboxd_enqueued_total", &[]) > 1.0)
        .await;
    relay.ask_to_drain();
    eventually("the relay says that it drains", SOON, async || {
        (get(&relay, "/readyz").await == (503, "draining\n".into())).then_some(())
    })
    .await;
    assert_eq!(get(&relay, "/livez").await.0, 200, "a relay that drains is alive");
    assert!(relay.exited().is_none());
    assert_eq!(relay.terminate(SOON).await.code(), Some(128 + 15));
}

#[tokio::test]
async fn a_blocked_standard_output_stops_nothing_and_is_counted() {
    let (directory, url, _setup) = shop().await;
    let environment = [
        ("OUTBOXD__DATABASE__URL", url.as_str()),
        ("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", NOBODY),
        ("OUTBOXD__HTTP__LISTEN", "127.0.0.1:0"),
        ("OUTBOXD__ADMIN__LISTEN", "off"),
        // The most talkative that a relay can be: some hundred lines a second.
        ("OUTBOXD__KAFKA__PROPERTIES__DEBUG", "all"),
        ("OUTBOXD__KAFKA__PROPERTIES__RECONNECT_BACKOFF_MS", "10"),
        ("OUTBOXD__KAFKA__PROPERTIES__RECONNECT_BACKOFF_MAX_MS", "10"),
        ("OUTBOXD_LOG", "trace"),
    ];
    let mut child = command(directory.path(), &environment, &["run"]).stdout(Stdio::piped()).spawn().unwrap();
    // The log is read up to the address and then no more: the pipe fills.
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the log ends before the relay serves");
        let line: Value = serde_json::from_str(&line).unwrap();
        if let Some(address) = line["address"].as_str() {
            break address.to_owned();
        }
    };
    let read = async |path: &str| -> Option<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    let dropped = eventually("lines are dropped and counted", SOON, async || {
        let metrics = read("/metrics").await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("outboxd_log_lines_dropped_total "))?;
        line.parse::<f64>().ok().filter(|dropped| *dropped > 0.0)
    })
    .await;
    assert!(dropped > 0.0);
    assert!(read("/livez").await.unwrap().contains("the loop moves"));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let code =
        tokio::time::timeout(SOON, tokio::task::spawn_blocking(move || child.wait())).await.unwrap().unwrap();
    assert!(code.unwrap().success(), "a blocked log does not keep the relay from ending");
    drop(log);
}
