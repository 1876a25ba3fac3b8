//! What operators see and do, on a real server: with which rights, at the same time as others, and what the preflight finds.

use std::time::Duration;

use outboxd_core::Seq;
use outboxd_engine::{
    AuditFilter, AuditedAction, BulkAction, Finding, HeldEdit, HeldFilter, HeldId, HeldSpan, Operate,
    OperateError, Outbox, OutboxError, PageLimit, Severity,
};
use outboxd_postgres::migrate::GrantRoles;
use outboxd_postgres::sql::Statements;
use outboxd_postgres::{PostgresConfig, PostgresOperator, PostgresOutbox, SchemaName};
use outboxd_testkit::postgres::database::with_database;
use outboxd_testkit::postgres::{Database, Options, Server};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr};
use tokio::time::Instant;
use uuid::Uuid;

use crate::grants::{Granted, granted};
use crate::migrations::{installed, migrator, run, text, wait_until};

fn config(url: &str) -> PostgresConfig {
    PostgresConfig::from_url(url, SchemaName::default(), "test-relay").expect("the url of a test's database")
}

fn operator(url: &str) -> PostgresOperator {
    PostgresOperator::new(config(url))
}

fn action() -> AuditedAction {
    AuditedAction { who: "ops@example.org".into(), why: "because".into() }
}

/// Three intents of one key: the first parked, the others behind it. Returns their ids.
async fn park(connection: &mut PgConnection) -> [Uuid; 3] {
    run(
        connection,
        "with written as (
           insert into outbox.message (topic, key, payload, correlation_id)
           select 'orders', 'secret-key', 'payload', 'corr' from generate_series(1, 3) returning seq, id)
         insert into outbox.held (seq, id, topic, key_hash, state, reason, error, attempts, failures)
         select seq, id, 'orders', 77, case when n = 1 then 'parked' else 'behind' end,
           case when n = 1 then 'too_large' else 'behind' end, case when n = 1 then 'too large' end, case when n = 1 then 1 else 0 end,
           case when n = 1 then jsonb_build_array(jsonb_build_object('at', now(), 'error', 'too large')) else '[]' end
         from (select seq, id, row_number() over (order by seq) as n from written) numbered",
    )
    .await
    .expect("hold three messages of a key");
    let ids: Vec<Uuid> = sqlx::query_scalar("select id from outbox.held order by seq")
        .fetch_all(connection)
        .await
        .expect("read held ids");
    ids.try_into().expect("three messages are held")
}

async fn held(connection: &mut PgConnection) -> Vec<(Uuid, String, bool)> {
    sqlx::query("select id, state, due_at is not null as due from outbox.held order by seq")
        .fetch_all(connection)
        .await
        .expect("read held messages")
        .iter()
        .map(|row| (row.get("id"), row.get("state"), row.get("due")))
        .collect()
}

#[tokio::test]
async fn a_reader_sees_status_and_held_messages_but_cannot_act() {
    let Granted { database, reader, .. } = granted().await;
    let mut connection = database.connect().await;
    let ids = park(&mut connection).await;
    let reader = operator(&database.url_as(&reader));
    let status = reader.status().await.unwrap();
    assert!(status.database.starts_with("postgres 1"), "{}", status.database);
    assert_eq!((status.schema_version, status.leader.alive, status.leader.epoch), (3, false, 0));
    assert!(status.cursor.starts_with("0@"), "{}", status.cursor);
    assert_eq!(
        status.held,
        [("behind".into(), "behind".into(), 2), ("parked".into(), "too_large".into(), 1)]
    );

    let held = reader.held_list(&HeldFilter::default()).await.unwrap();
    assert_eq!(held.iter().map(|message| message.id).collect::<Vec<_>>(), ids);
    assert_eq!(held.iter().map(|message| message.followers).collect::<Vec<_>>(), [2, 1, 0]);
    assert_eq!((held[0].payload_bytes, held[0].correlation_id.as_str()), (Some(7), "corr"));
    assert_eq!(held[0].failures[0].error, "too large");
    let shown = serde_json::to_string(&held).unwrap();
    assert!(!shown.contains("secret-key") && !shown.contains("cGF5bG9hZA"), "{shown}");

    for refused in [reader.held_retry(ids[0], &action()).await, reader.held_discard(ids[0], &action()).await]
    {
        let Err(OperateError::Outbox(OutboxError::Refused { finding, remedy })) = refused else {
            panic!("not refused: {refused:?}")
        };
        assert!(finding.contains("permission denied"), "{finding}");
        assert!(remedy.contains("grants"), "{remedy}");
    }
    assert_eq!(text(&mut connection, "select count(*) from outbox.held_action").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn the_relay_role_retries_and_discards_and_both_are_audited() {
    let Granted { database, relay, .. } = granted().await;
    let mut connection = database.connect().await;
    let [head, second, third] = park(&mut connection).await;
    let operator = operator(&database.url_as(&relay));

    let refused = operator.held_retry(third, &action()).await.unwrap_err();
    assert!(
        matches!(refused, OperateError::Behind { id, head: first } if (id, first) == (third, head)),
        "{refused:?}"
    );

    operator.held_discard(third, &action()).await.unwrap();
    assert_eq!(
        held(&mut connection).await,
        [(head, "parked".into(), false), (second, "behind".into(), false)],
        "a discarded follower changes nothing for those before it"
    );
    operator.held_retry(head, &action()).await.unwrap();
    assert_eq!(held(&mut connection).await[0], (head, "retry".into(), true));
    assert_eq!(
        text(&mut connection, "select attempts from outbox.held order by seq limit 1").await.as_deref(),
        Some("1"),
        "attempts stay charged"
    );
    operator.held_discard(head, &action()).await.unwrap();
    assert_eq!(held(&mut connection).await, [(second, "retry".into(), true)], "the next of the key is due");
    assert_eq!(
        text(
            &mut connection,
            "select string_agg(concat_ws(' ', kind, id, topic, reason_held, correlation_id, who, why), E'\\n' order by action)
             from outbox.held_action"
        )
        .await
        .unwrap(),
        format!(
            "discard {third} orders behind corr ops@example.org because\n\
             retry {head} orders too_large corr ops@example.org because\n\
             discard {head} orders too_large corr ops@example.org because"
        )
    );
    assert_eq!(
        text(
            &mut connection,
            "select count(*) from outbox.message where topic = 'orders' and key = 'secret-key'"
        )
        .await
        .as_deref(),
        Some("3"),
        "intents stay until they are purged"
    );
}

#[tokio::test]
async fn the_relay_role_edits_and_decides_about_many_and_the_reader_does_neither() {
    let Granted { database, relay, reader, .. } = granted().await;
    let mut connection = database.connect().await;
    let [head, ..] = park(&mut connection).await;
    let edit = HeldEdit { set_headers: vec![("tenant".into(), "42".into())], ..HeldEdit::default() };
    let reader = operator(&database.url_as(&reader));
    let operator = operator(&database.url_as(&relay));
    assert!(reader.held_edit(head.into(), &edit, &action()).await.is_err());
    operator.held_edit(head.into(), &edit, &action()).await.unwrap();
    let shown = reader.held_list(&HeldFilter::default()).await.unwrap().remove(0);
    assert_eq!(shown.edit.unwrap().edited, ["headers"], "which is no header's value");
    let any = HeldFilter::default();
    let span = HeldSpan::up_to(reader.held_match(&any).await.unwrap().last.unwrap());
    assert!(reader.held_act(BulkAction::Discard, &any, span, 10, &action()).await.is_err());
    let step = operator.held_act(BulkAction::Discard, &any, span, 10, &action()).await.unwrap();
    assert_eq!((step.found, step.done), (3, 3));
    assert_eq!(reader.held_audit(&AuditFilter::default()).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_message_that_two_operators_discard_is_discarded_once() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let [head, second, _] = park(&mut connection).await;
    let (one, other) = (operator(&database.url()), operator(&database.url()));
    let (one_action, other_action) = (action(), action());
    let (one, other) =
        tokio::join!(one.held_discard(head, &one_action), other.held_discard(head, &other_action));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let lost = one.and(other).unwrap_err();
    assert!(matches!(lost, OperateError::NotHeld(id) if id == head), "{lost:?}");
    assert_eq!(text(&mut connection, "select count(*) from outbox.held_action").await.as_deref(), Some("1"));
    assert_eq!(held(&mut connection).await[0], (second, "retry".into(), true));
}

#[tokio::test]
async fn an_action_waits_for_a_settle_that_is_under_way_and_then_sees_what_it_did() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let [head, ..] = park(&mut connection).await;
    let mut settling = database.connect().await;
    run(&mut settling, &format!("begin; delete from outbox.held where id = '{head}'")).await.unwrap();
    let operator = operator(&database.url());
    let because = action();
    let (retried, ()) = tokio::join!(operator.held_retry(head, &because), async {
        wait_until(
            &mut connection,
            "select count(*) > 0 from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock' and application_name like 'outboxd operate%'",
        )
        .await;
        run(&mut settling, "commit").await.unwrap();
    });
    assert!(matches!(retried, Err(OperateError::NotHeld(id)) if id == head), "{retried:?}");
    assert_eq!(text(&mut connection, "select count(*) from outbox.held_action").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn the_status_knows_whether_a_leader_is_alive() {
    let database = installed().await;
    let operator = operator(&database.url());
    let outbox = PostgresOutbox::new(config(&database.url()));
    let term = outbox.lead().await.unwrap().expect("nobody else leads");
    let leader = operator.status().await.unwrap().leader;
    assert_eq!((leader.alive, leader.epoch, leader.relay.as_deref()), (true, term.epoch, Some("test-relay")));
    assert!(leader.led_at.is_some());
    outbox.step_down().await;
    // The server notices a moment after the goodbye.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let leader = operator.status().await.unwrap().leader;
        assert_eq!((leader.epoch, leader.relay.as_deref()), (term.epoch, Some("test-relay")), "who led last");
        if !leader.alive {
            break;
        }
        assert!(Instant::now() < deadline, "{leader:?}");
    }
    assert_eq!(operator.takeover_after(), config(&database.url()).lead_session);
}

async fn check(url: &str) -> Vec<Finding> {
    operator(url).check().await.expect("the database answers")
}

fn find<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.check == check)
        .unwrap_or_else(|| panic!("no finding about {check}: {findings:#?}"))
}

#[tokio::test]
async fn the_preflight_finds_nothing_wrong_with_what_migrate_and_grants_made() {
    let Granted { database, relay, .. } = granted().await;
    let findings = check(&database.url_as(&relay)).await;
    for finding in &findings {
        // The tests' server runs without fsync, and version 13 cannot end idle sessions.
        if !["durability", "takeover"].contains(&finding.check.as_str()) {
            assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
            assert!(finding.remedy.is_empty(), "{finding:?}");
        }
    }
    let names: Vec<&str> = findings.iter().map(|finding| finding.check.as_str()).collect();
    assert_eq!(
        names,
        [
            "connection",
            "server version",
            "recovery",
            "encoding",
            "durability",
            "synchronous standbys",
            "takeover",
            "pooling proxy",
            "oldest xmin",
            "grants",
            "row security",
            "indexes",
            "trigger",
            "sequence cache",
            "trace indexes",
            "schema version",
            "migrations",
            "migrations",
            "migrations",
            "sequence",
            "system identifier",
            "cursor's snapshot",
            "message size",
        ]
    );
}

/// One way to break an outbox, the check that finds it, what it says, and whether its remedy is SQL that repairs it.
struct Broken {
    by: &'static str,
    check: &'static str,
    says: &'static str,
    remedy: Remedy,
}

enum Remedy {
    /// The SQL between back-ticks, as the owner.
    Sql,
    /// Words.
    Says(&'static str),
}

const BROKEN: &[Broken] = &[
    Broken {
        by: "alter table outbox.message enable row level security",
        check: "row security",
        says: "row security on outbox.message hides rows",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "alter table outbox.held enable row level security",
        check: "row security",
        says: "row security on outbox.held hides rows",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "alter table outbox.cursor enable row level security; alter table outbox.migration enable row level security",
        check: "row security",
        says: "on outbox.cursor, outbox.migration hides rows",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "alter table outbox.receipt enable row level security; \
             create policy looks on outbox.receipt for select using (true)",
        check: "row security",
        says: "on outbox.receipt",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "alter table outbox.message enable row level security; \
             create policy another on outbox.message to postgres using (true)",
        check: "row security",
        says: "on outbox.message",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "alter table outbox.message enable row level security; create policy all_of on outbox.message using (true); \
             create policy tenants on outbox.message as restrictive using (topic = 'orders')",
        check: "row security",
        says: "on outbox.message",
        remedy: Remedy::Says("tenants on outbox.message"),
    },
    Broken {
        by: "alter table outbox.message alter column seq set cache 32",
        check: "sequence cache",
        says: "32",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "update outbox.cursor set high = 4711",
        check: "sequence",
        says: "behind the cursor at 4711",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "update outbox.cursor set system_identifier = 42",
        check: "system identifier",
        says: "settled in cluster 42",
        remedy: Remedy::Says("serve the original"),
    },
    Broken {
        by: "update outbox.cursor set seen = '4000000000:4000000000:'",
        check: "cursor's snapshot",
        says: "ahead of the server",
        remedy: Remedy::Says("serve the original"),
    },
    Broken {
        by: "drop index outbox.message_xid_seq",
        check: "indexes",
        says: "message_xid_seq",
        remedy: Remedy::Says("create index concurrently"),
    },
    Broken {
        by: "drop index outbox.message_xid_seq; create index message_xid_seq on outbox.message (xid)",
        check: "indexes",
        says: "message_xid_seq",
        remedy: Remedy::Says("create index concurrently"),
    },
    Broken {
        by: "drop index outbox.held_topic_seq; create index held_topic_seq on outbox.held (topic, seq)",
        check: "indexes",
        says: "held_topic_seq",
        remedy: Remedy::Says("create index concurrently"),
    },
    Broken {
        by: "drop trigger fill_in on outbox.message",
        check: "trigger",
        says: "missing or disabled",
        remedy: Remedy::Says("create it again"),
    },
    Broken {
        by: "alter table outbox.message disable trigger fill_in",
        check: "trigger",
        says: "missing or disabled",
        remedy: Remedy::Sql,
    },
    Broken {
        by: "insert into outbox.migration (version, name) values (99, 'later')",
        check: "schema version",
        says: "99; this relay serves 3 to 3",
        remedy: Remedy::Says("a later one"),
    },
    Broken {
        by: "delete from outbox.cursor",
        check: "cursor",
        says: "missing",
        remedy: Remedy::Says("backup"),
    },
];

#[tokio::test]
async fn whatever_would_break_a_promise_is_found_with_its_remedy() {
    for broken in BROKEN {
        let Granted { database, relay, .. } = granted().await;
        let mut owner = database.connect().await;
        run(&mut owner, broken.by).await.unwrap();
        let findings = check(&database.url_as(&relay)).await;
        let finding = find(&findings, broken.check);
        assert_eq!(finding.severity, Severity::Error, "{}: {finding:?}", broken.by);
        assert!(finding.found.contains(broken.says), "{}: {finding:?}", broken.by);
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        assert_eq!(errors, 1, "{}: {findings:#?}", broken.by);
        // What the preflight calls an error keeps a relay from leading, unless it only slows it down or hurts writers.
        if !["indexes", "trigger"].contains(&broken.check) {
            let refused = PostgresOutbox::new(config(&database.url_as(&relay))).lead().await.unwrap_err();
            assert!(matches!(refused, OutboxError::Refused { .. }), "{}: {refused:?}", broken.by);
            if ["row security", "cursor"].contains(&broken.check) {
                assert_eq!(refused.to_string(), format!("{}; {}", finding.found, finding.remedy));
            }
        }
        match broken.remedy {
            Remedy::Says(words) => assert!(finding.remedy.contains(words), "{finding:?}"),
            Remedy::Sql => {
                let sql = finding.remedy.split('`').nth(1).expect("SQL between back-ticks");
                run(&mut owner, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
                let findings = check(&database.url_as(&relay)).await;
                assert_eq!(find(&findings, broken.check).severity, Severity::Ok, "{sql}");
            }
        }
    }
}

#[tokio::test]
async fn a_changed_migration_and_one_of_another_tool_are_told() {
    let Granted { database, relay, .. } = granted().await;
    let mut owner = database.connect().await;
    run(&mut owner, "update outbox.migration set checksum = 'x'").await.unwrap();
    let findings = check(&database.url_as(&relay)).await;
    assert_eq!(find(&findings, "migrations").severity, Severity::Warning);
    run(&mut owner, "update outbox.migration set checksum = null").await.unwrap();
    let findings = check(&database.url_as(&relay)).await;
    assert_eq!(find(&findings, "migrations").severity, Severity::Ok);
    assert!(find(&findings, "migrations").found.contains("another tool"));
}

#[tokio::test]
async fn a_missing_outbox_and_missing_grants_are_findings_with_the_command_to_run() {
    let database = Database::create().await;
    let relay = database.role("relay").await;
    let url = database.url_as(&relay);
    let findings = check(&url).await;
    let missing = find(&findings, "schema version");
    assert_eq!(missing.severity, Severity::Error);
    assert!(
        missing.found.contains("no outbox in schema outbox") && missing.remedy.contains("outboxd migrate"),
        "{missing:?}"
    );

    migrator(&database.url(), "outbox").apply().await.unwrap();
    let findings = check(&url).await;
    let grants = find(&findings, "grants");
    assert_eq!(grants.severity, Severity::Error);
    for right in [
        "usage on schema outbox",
        "select on message",
        "delete on message",
        "update on cursor",
        "insert on held_action",
    ] {
        assert!(grants.found.contains(right), "{right}: {grants:?}");
    }
    assert!(grants.remedy.contains(&format!("outboxd migrate grants --relay {relay}")), "{grants:?}");

    let roles = GrantRoles { relay: Some(relay.parse().unwrap()), ..GrantRoles::default() };
    migrator(&database.url(), "outbox").grant(&roles).await.unwrap();
    assert_eq!(find(&check(&url).await, "grants").severity, Severity::Ok);

    let all_mighty = check(&database.url()).await;
    assert_eq!(find(&all_mighty, "grants").severity, Severity::Warning);
    assert!(find(&all_mighty, "grants").found.contains("may also write and alter intents"));
}

#[tokio::test]
async fn the_holder_of_the_oldest_xmin_is_named() {
    let database = installed().await;
    let mut batch = database.connect().await;
    run(
        &mut batch,
        "set application_name = 'nightly batch'; begin isolation level repeatable read; select pg_current_xact_id()",
    )
    .await
    .unwrap();
    let pid = text(&mut batch, "select pg_backend_pid()").await.unwrap();
    // Other tests hold transactions too: push this one's behind all of theirs.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let findings = check(&database.url()).await;
        let finding = find(&findings, "oldest xmin");
        if finding
            .found
            .contains(&format!("session {pid} of postgres (nightly batch) in {}", database.name()))
        {
            break;
        }
        assert!(Instant::now() < deadline, "{finding:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    batch.close().await.unwrap();
}

#[tokio::test]
async fn a_role_that_may_not_see_others_is_never_told_that_nobody_holds_vacuum_back() {
    let Granted { database, relay, .. } = granted().await;
    let mut batch = database.connect().await;
    run(&mut batch, "begin; select pg_current_xact_id()").await.unwrap();
    run(
        &mut database.connect().await,
        "do $$ begin for i in 1..20 loop perform pg_current_xact_id(); commit; end loop; end $$",
    )
    .await
    .unwrap();
    let findings = check(&database.url_as(&relay)).await;
    let finding = find(&findings, "oldest xmin");
    assert!(!finding.found.contains("nobody") && finding.found.contains("pg_read_all_stats"), "{finding:?}");
    let lag: i64 = finding
        .found
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number: {finding:?}"));
    assert!(lag >= 20, "{finding:?}");
    batch.close().await.unwrap();
}

#[tokio::test]
async fn a_database_or_role_that_does_not_exist_is_refused_at_once_and_a_relay_waits_for_it() {
    let database = Database::create().await;
    let no_database = with_database(&database.url(), "no_such_database");
    let no_role = database.url_as("no_such_role");
    for (url, remedy) in [(&no_database, "create the database"), (&no_role, "create the role")] {
        let refused = operator(url).status().await.unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, OutboxError::Refused { .. }) && text.contains(remedy), "{refused:?}");
        assert!(text.contains("connect to 127.0.0.1:"), "{text}");
        let waits = PostgresOutbox::new(config(url)).lead().await.unwrap_err();
        assert!(matches!(waits, OutboxError::Unavailable { .. }), "{waits:?}");
        assert!(outboxd_engine::chain(&waits).contains(remedy), "{waits:?}");
    }
}

#[tokio::test]
async fn a_database_without_an_encoding_is_refused_before_a_key_stops_everything() {
    let database = installed().await;
    let name = format!("{}_ascii", database.name());
    let mut server = database.connect().await;
    run(
        &mut server,
        &format!(
            "create database {name} encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0"
        ),
    )
    .await
    .unwrap();
    let url = with_database(&database.url(), &name);
    migrator(&url, "outbox").apply().await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    run(
        &mut connection,
        "insert into outbox.message (topic, key, payload) values ('orders', E'\\xff\\xfe', 'x')",
    )
    .await
    .unwrap();
    let findings = check(&url).await;
    assert_eq!(find(&findings, "encoding").severity, Severity::Error);
    let refused = PostgresOutbox::new(config(&url)).lead().await.unwrap_err();
    assert!(
        matches!(&refused, OutboxError::Refused { finding, .. } if finding.contains("SQL_ASCII")),
        "{refused:?}"
    );
    // If it were served all the same, what cannot be read would be no outage.
    let mut statements = Statements::new(&SchemaName::default());
    let sql = statements.lead_verify.as_str().replace("current_setting('server_encoding')", "'UTF8'::text");
    statements.lead_verify = AssertSqlSafe(sql).into_sql_str();
    let outbox = PostgresOutbox::with_statements(config(&url), statements);
    let term = outbox.lead().await.unwrap().expect("nobody else leads");
    let cursor = outbox.start(term).await.unwrap().cursor;
    let refused = outbox.read(&cursor, PageLimit { messages: 10, bytes: 1_000 }).await.unwrap_err();
    assert!(
        matches!(&refused, OutboxError::Refused { remedy, .. } if remedy.contains("encoding")),
        "{refused:?}"
    );
    outbox.step_down().await;
    connection.close().await.unwrap();
    run(&mut server, &format!("drop database {name} with (force)")).await.unwrap();
}

#[tokio::test]
async fn a_held_message_whose_id_was_used_twice_is_named_by_its_seq() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let [head, second, third] = park(&mut connection).await;
    run(
        &mut connection,
        &format!("update outbox.held set id = '{head}' where id in ('{second}', '{third}')"),
    )
    .await
    .unwrap();
    let seqs: Vec<i64> = sqlx::query_scalar("select seq from outbox.held order by seq")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let operator = operator(&database.url());
    for refused in [operator.held_retry(head, &action()).await, operator.held_discard(head, &action()).await]
    {
        let Err(OperateError::SeveralHeld { seqs: named, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(named.iter().map(|seq| seq.0).collect::<Vec<_>>(), seqs);
    }
    assert_eq!(text(&mut connection, "select count(*) from outbox.held_action").await.as_deref(), Some("0"));
    let named = |at: usize| HeldId { id: head, seq: Some(Seq(seqs[at])) };
    let refused = operator.held_retry(named(2), &action()).await;
    assert!(matches!(refused, Err(OperateError::Behind { .. })), "{refused:?}");
    operator.held_discard(named(1), &action()).await.unwrap();
    operator.held_retry(named(0), &action()).await.unwrap();
    assert_eq!(
        text(
            &mut connection,
            "select string_agg(kind || ' ' || seq, ', ' order by action) from outbox.held_action"
        )
        .await,
        Some(format!("discard {}, retry {}", seqs[1], seqs[0]))
    );
}

#[tokio::test]
async fn the_databases_own_commit_setting_is_told() {
    let database = installed().await;
    let mut owner = database.connect().await;
    run(&mut owner, &format!("alter database {} set synchronous_commit = off", database.name()))
        .await
        .unwrap();
    let query = AssertSqlSafe(
        "select current_setting('fsync') = 'on' and current_setting('full_page_writes') = 'on'".to_owned(),
    );
    let durable: bool = sqlx::query_scalar(query).fetch_one(&mut owner).await.unwrap();
    let findings = check(&database.url()).await;
    let finding = find(&findings, "durability");
    let expected = if durable { "synchronous_commit is off for applications" } else { "is off: a crash" };
    assert!(finding.found.contains(expected), "{finding:?}");
}

#[tokio::test]
async fn a_standby_and_unsafe_settings_are_found() {
    let mut primary = Server::start(Options::default().setting("fsync", "on")).await.unwrap();
    let url = primary.url("postgres");
    migrator(&url, "outbox").apply().await.unwrap();
    assert_eq!(find(&check(&url).await, "durability").severity, Severity::Ok);
    let standby = primary.standby().await.unwrap();
    let findings = check(&standby.url("postgres")).await;
    let recovery = find(&findings, "recovery");
    assert_eq!(recovery.severity, Severity::Error);
    assert!(recovery.found.contains("in recovery") && recovery.remedy.contains("primary"), "{recovery:?}");
    drop(standby);

    primary.settings(&[("fsync", "off"), ("synchronous_standby_names", "nobody")]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let findings = check(&url).await;
        let (durability, standbys) = (find(&findings, "durability"), find(&findings, "synchronous standbys"));
        if (durability.severity, standbys.severity) == (Severity::Warning, Severity::Warning) {
            assert!(
                durability.found.contains("fsync is off") && durability.remedy.contains("fsync = on"),
                "{durability:?}"
            );
            assert!(standbys.found.contains("commits wait"), "{standbys:?}");
            break;
        }
        assert!(Instant::now() < deadline, "{findings:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_an_error_and_not_a_finding() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let operator = operator(&format!("postgres://nobody@127.0.0.1:{port}/nothing"));
    let error = operator.check().await.unwrap_err();
    assert!(matches!(error, OutboxError::Unavailable { .. }), "{error:?}");
    let error = operator.status().await.unwrap_err();
    assert!(matches!(error, OutboxError::Unavailable { .. }), "{error:?}");
    let text = outboxd_engine::chain(&error);
    assert!(text.contains(&format!("connect to 127.0.0.1:{port}/nothing, as database.url says")), "{text}");
}
