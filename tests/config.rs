//! Configuration: what holds, what is refused, and what is never shown.

use std::path::Path;

use serde_json::Value;

use crate::cli::{NOBODY, Ran, SHOP, run};

const CANARY: &str = "c4n4ry";

fn shown(directory: &Path, environment: &[(&str, &str)], arguments: &[&str], key: &str) -> (String, String) {
    let ran = run(directory, environment, &[&["config", "show", "--output", "json"], arguments].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let keys: Value = serde_json::from_str(&ran.out).unwrap();
    let entry = keys.as_array().unwrap().iter().find(|entry| entry["key"] == key).unwrap();
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    (text("value"), text("from"))
}

fn assert_refused(ran: &Ran, said: &[&str]) {
    assert_eq!(ran.code, Some(78), "{ran:?}");
    for said in said {
        assert!(ran.err.contains(said), "{said:?} is not in {}", ran.err);
    }
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_with_value_range_and_origin() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, "[relay]\npage_mesages = 7\nattempts_max = 0\n[purge]\nrows = \"many\"\n").unwrap();
    let environment = [
        ("OUTBOXD__RELAY__POLL_MAX_MS", "-3"),
        ("OUTBOXD__HTTP__LISTEN", "everywhere"),
        ("OUTBOXD__KAFKA__PROPERTIES__ACKS", "1"),
        ("OUTBOXD_LOG", "outboxd=loud"),
    ];
    let arguments = [
        "run",
        "--config",
        "relay.toml",
        "--set",
        "relay.backoff_min_ms=5000",
        "--set",
        "relay.backoff_max_ms=100",
    ];
    let ran = run(directory.path(), &environment, &arguments);
    assert_refused(
        &ran,
        &[
            "the configuration has 10 problems",
            "relay.page_mesages: unknown key; did you mean relay.page_messages? (relay.toml)",
            "relay.attempts_max: \"0\" must be a whole number from 1 to 1000 (relay.toml)",
            "purge.rows: \"many\" must be",
            "relay.poll_max_ms: \"-3\" must be a whole number from 1 to 60000 (environment)",
            "http.listen: \"everywhere\" must be an IP address and a port",
            "kafka.properties.acks: ",
            "log.filter: \"outboxd=loud\" must be",
            "relay.backoff_min_ms: 5000 must not be above relay.backoff_max_ms, which is 100 (flag)",
            "database.url: is not set: set OUTBOXD__DATABASE__URL",
            "kafka.bootstrap_servers: is not set",
        ],
    );
    assert!(ran.out.is_empty(), "{ran:?}");
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let show = |environment: &[(&str, &str)], arguments: &[&str]| {
        shown(directory.path(), environment, arguments, "relay.page_messages")
    };
    assert_eq!(show(&[], &[]), ("2000".into(), "default".into()));
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/outboxd.toml"), "relay.page_messages = 11\n").unwrap();
    assert_eq!(show(&[], &[]), ("11".into(), "config/outboxd.toml".into()));
    std::fs::write(directory.path().join("other.toml"), "relay.page_messages = 12\n").unwrap();
    assert_eq!(show(&[], &["--config", "other.toml"]), ("12".into(), "other.toml".into()));
    let environment = [("OUTBOXD__RELAY__PAGE_MESSAGES", "13")];
    assert_eq!(show(&environment, &["--config", "other.toml"]), ("13".into(), "environment".into()));
    assert_eq!(show(&environment, &["--set", "relay.page_messages=14"]), ("14".into(), "flag".into()));
    assert_eq!(show(&[("OUTBOXD__RELAY__PAGE_MESSAGES", "")], &[]).0, "11", "an empty variable is not set");
}

#[test]
fn an_unknown_key_is_refused_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file.toml"), "[databse]\nurl = \"sqlite:x\"\n").unwrap();
    let said = "unknown key";
    assert_refused(
        &run(directory.path(), &[], &["config", "show", "--config", "file.toml"]),
        &["databse.url", said],
    );
    assert_refused(
        &run(directory.path(), &[("OUTBOXD__RELAY__FAST", "1")], &["status"]),
        &["relay.fast", said],
    );
    assert_refused(&run(directory.path(), &[], &["config", "show", "--set", "speed=9"]), &["speed", said]);
    // What Kubernetes puts into a pod beside a Service called outboxd.
    let ran = run(directory.path(), &[("OUTBOXD_PORT", "tcp://10.0.0.1:9464")], &["config", "show"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_file_that_is_named_and_missing_or_not_toml_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = run(directory.path(), &[], &["config", "show", "--config", "none.toml"]);
    assert_refused(&missing, &["none.toml", "cannot be read"]);
    let text = format!("[database]\nurl = \"postgres://app:{CANARY}@db/shop\n");
    std::fs::write(directory.path().join("broken.toml"), text).unwrap();
    let broken = run(directory.path(), &[], &["config", "show", "--config", "broken.toml"]);
    assert_refused(&broken, &["broken.toml", "line 2 is not TOML"]);
    assert!(!broken.err.contains(CANARY), "{}", broken.err);
}

#[test]
fn settings_that_would_void_a_promise_or_run_code_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    for setting in [
        "enable.idempotence=false",
        "acks=1",
        "message.timeout.ms=1000",
        "partitioner=random",
        "transactional.id=x",
        "allow.auto.create.topics=true",
        "sasl.kerberos.kinit.cmd=touch owned",
        "plugin.library.paths=owned.so",
    ] {
        let (name, _) = setting.split_once('=').unwrap();
        let set = format!("kafka.properties.{setting}");
        for arguments in [["config", "check", "--set", &set], ["status", "--output=json", "--set", &set]] {
            assert_refused(&run(directory.path(), &SHOP, &arguments), &[&format!("kafka.properties.{name}")]);
        }
    }
    let unknown = run(directory.path(), &SHOP, &["config", "check", "--set", "kafka.properties.linger=5"]);
    assert_refused(&unknown, &["kafka.properties.linger"]);
    let underscore =
        run(directory.path(), &SHOP, &["config", "check", "--set", "kafka.properties.log_level=7"]);
    assert_refused(&underscore, &["kafka.properties.log.level", "set log.filter"]);
    let table = run(directory.path(), &SHOP, &["config", "check", "--set", "kafka.properties=5"]);
    assert_refused(&table, &["kafka.properties: is a table: set kafka.properties.<name>"]);
}

#[test]
fn what_run_would_refuse_is_not_valid() {
    let directory = tempfile::tempdir().unwrap();
    for (url, said) in [
        ("postgres://app@127.0.0.1/shop?sslmode=bogus", "sslmode must be one of"),
        ("postgres://app@127.0.0.1/shop?sslrootcert=/nope", "sslrootcert names a file that cannot be read"),
        ("postgres://app@127.0.0.1:0/shop", "port"),
        ("postgres://127.0.0.1:5432", "no user and no database"),
        ("sqlite:shop.db?mode=ro", "no parameters"),
    ] {
        let environment = [("OUTBOXD__DATABASE__URL", url), SHOP[1], SHOP[2]];
        for command in [["config", "check"].as_slice(), &["run"], &["migrate"]] {
            assert_refused(&run(directory.path(), &environment, command), &["database.url", said]);
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "no file is created");
}

/// The same URL means the same wherever the relay runs.
#[test]
fn the_database_drivers_own_variables_have_no_say() {
    let directory = tempfile::tempdir().unwrap();
    let url = ("OUTBOXD__DATABASE__URL", "postgres://app@127.0.0.1:1/shop");
    let ignored =
        [url, ("PGUSER", "other"), ("PGHOST", "db.example"), ("PGPORT", "5433"), ("PGDATABASE", "d")];
    let ran = run(directory.path(), &ignored, &["status"]);
    assert!(ran.code == Some(69) && ran.err.contains("refused"), "{ran:?}");
    let obeyed = [url, ("PGOPTIONS", "-c work_mem=1MB"), ("PGSSLROOTCERT", "system")];
    let ran = run(directory.path(), &obeyed, &["status"]);
    assert_refused(&ran, &["PGOPTIONS is set", "PGSSLROOTCERT is set", "write sslrootcert into the URL"]);
    assert_eq!(run(directory.path(), &obeyed[1..], &["config", "show"]).code, Some(0));
}

#[test]
fn a_valid_configuration_is_said_to_be_valid_without_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run(directory.path(), &SHOP, &["config", "check"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("sqlite:shop.db") && ran.out.contains(NOBODY), "{ran:?}");
    assert!(!directory.path().join("shop.db").exists());
}

#[test]
fn a_secret_may_come_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("url"), "sqlite:shop.db\n").unwrap();
    let environment = [("OUTBOXD__DATABASE__URL_FILE", "url")];
    let ran = run(directory.path(), &environment, &["migrate"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(directory.path().join("shop.db").exists());
    let missing = run(directory.path(), &[("OUTBOXD__DATABASE__URL_FILE", "none")], &["status"]);
    assert_refused(&missing, &["database.url_file", "cannot be read"]);
}

#[test]
fn no_command_prints_a_secret_whatever_goes_wrong() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), CANARY).unwrap();
    let url = format!("postgres://app:{CANARY}@127.0.0.1:1/shop?options={CANARY}");
    let environment = [
        ("OUTBOXD__DATABASE__URL", url.as_str()),
        ("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", NOBODY),
        ("OUTBOXD__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "sasl_plaintext"),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_MECHANISM", "PLAIN"),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_USERNAME", "outboxd"),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", "password"),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_OAUTHBEARER_CONFIG", CANARY),
        ("OUTBOXD_LOG", "trace"),
    ];
    let commands: [&[&str]; 9] = [
        &["config", "show"],
        &["config", "show", "--output", "json"],
        &["config", "check"],
        &["status"],
        &["check"],
        &["migrate"],
        &["held", "list"],
        &["run", "--set", "http.listen=nowhere"],
        &[
            "config",
            "show",
            "--set",
            "kafka.properties.ssl.key.password=c4n4ry",
            "--set",
            "relay.rows=c4n4ry",
        ],
    ];
    for arguments in commands {
        let ran = run(directory.path(), &environment, arguments);
        assert!(!ran.out.contains(CANARY) && !ran.err.contains(CANARY), "{arguments:?}: {ran:?}");
    }
    // Secrets in the place of something else, or with a slip in their names.
    let misplaced = [
        ("OUTBOXD__DATABASE__URL_FILE", format!("postgres://app:{CANARY}@127.0.0.1/shop")),
        ("OUTBOXD__DATABASE__URL_FILE", CANARY.to_owned()),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", CANARY.to_owned()),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_PASWORD", CANARY.to_owned()),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_JAAS_CONFIG", CANARY.to_owned()),
    ];
    for (name, value) in &misplaced {
        for arguments in [["config", "show"].as_slice(), &["config", "check"], &["check"], &["status"]] {
            let ran = run(directory.path(), &[(name, value), environment[1]], arguments);
            assert!(!ran.out.contains(CANARY) && !ran.err.contains(CANARY), "{name} {arguments:?}: {ran:?}");
        }
    }
    let ran = run(directory.path(), &[(misplaced[0].0, &misplaced[0].1)], &["status"]);
    assert_refused(&ran, &["database.url_file takes the path of a file, not the secret"]);
    let ran = run(directory.path(), &[(misplaced[3].0, &misplaced[3].1)], &["config", "show"]);
    assert_refused(&ran, &["kafka.properties.sasl.pasword", "no such setting"]);
    let (value, _) = shown(directory.path(), &environment, &[], "database.url");
    assert_eq!(value, "postgres://app:[redacted]@127.0.0.1:1/shop?options=[redacted]");
    for odd in [
        format!("postgres://app:{CANARY}/x@127.0.0.1:1/shop"),
        format!("postgres://app:1/{CANARY}@127.0.0.1:1/shop"),
        format!("mysql://app:{CANARY}@127.0.0.1/shop"),
        format!("postgres://app@127.0.0.1:1/shop?sslpassword={CANARY}"),
        CANARY.to_owned(),
    ] {
        let ran = run(directory.path(), &[("OUTBOXD__DATABASE__URL", &odd)], &["status"]);
        assert_refused(&ran, &["database.url"]);
        assert!(!ran.err.contains(CANARY), "{odd}: {ran:?}");
    }
}
