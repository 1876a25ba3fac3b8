//! The admin listener of the real relay: who is answered, who is not, and what it costs the relay.

use std::time::Duration;

use outboxd_testkit::postgres::{self, Database, Mode};
use outboxd_testkit::relay::{Relay, Setup, eventually};
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::cli::NOBODY;
use crate::migrations::{installed, run, text, wait_until};
use crate::support::{BINARY, SOON};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const ID: &str = "0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11";

/// An answer of the listener.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: Value,
}

impl Answer {
    /// Says what is wrong and what to do about it, and is kept by nobody.
    fn assert_refused(&self, code: u16, remedy: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.body["error"].as_str().is_some_and(|error| !error.is_empty()), "{self:?}");
        assert!(self.body["remedy"].as_str().is_some_and(|said| said.contains(remedy)), "{self:?}");
        self.assert_sealed();
    }

    fn assert_sealed(&self) {
        for header in [
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "content-security-policy: default-src 'none'",
        ] {
            assert!(self.head.contains(header), "{header} is not in {self:?}");
        }
        assert!(!self.head.contains("access-control-"), "{self:?}");
    }
}

/// Asks as it is written; the answer ends with the connection.
async fn send(address: &str, request: &str) -> Answer {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = tokio::time::timeout(SOON, asked).await.expect("the admin listener answers");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("not JSON ({error}): {answer}"));
    Answer { code, head: head.to_ascii_lowercase(), body }
}

async fn get(address: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    send(address, &(request + "\r\n")).await
}

/// A relay that leads an outbox with one intent, without a broker.
async fn leading(configure: impl FnOnce(Setup) -> Setup) -> (Database, Setup, Relay, String) {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        &format!(
            "insert into outbox.message (id, topic, key, payload, correlation_id)
             values ('{ID}', 'orders', 'k3y-canary', 'p4yload-canary', 'req-1')"
        ),
    )
    .await
    .unwrap();
    let setup = configure(Setup::new(BINARY, &database.url(), NOBODY));
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let address = relay.admin().await;
    (database, setup, relay, address)
}

#[tokio::test]
async fn leader_and_standby_answer_what_the_command_prints_and_no_payload() {
    let (_database, setup, leader, address) = leading(|setup| setup).await;
    let mut standby = setup.start().await;
    standby.wait_until("it stands by", SOON, |metrics| metrics.has("outboxd_leader")).await;
    let standing_by = standby.admin().await;
    // The time of the answer is its own.
    let timeless = |mut answer: Value| {
        answer["at"] = Value::Null;
        answer
    };
    for (parameters, arguments) in [
        (ID.to_owned(), vec![ID]),
        ("req-1".to_owned(), vec!["req-1"]),
        (format!("{ID}?by=message_id"), vec!["--message-id", ID]),
        ("req-1?by=correlation_id&limit=3".to_owned(), vec!["--correlation-id", "req-1", "--limit", "3"]),
        ("k3y-canary?by=key&topic=orders".to_owned(), vec!["--key", "k3y-canary", "--topic", "orders"]),
        ("nobody".to_owned(), vec!["nobody"]),
    ] {
        let printed =
            timeless(setup.run_json(&[vec!["trace", "--output", "json"], arguments].concat()).await);
        for address in [&address, &standing_by] {
            let answer = get(address, &format!("/trace/{parameters}"), &[]).await;
            assert_eq!(answer.code, 200, "{answer:?}");
            assert!(!answer.body.to_string().contains("p4yload"), "{answer:?}");
            assert_eq!(timeless(answer.body), printed, "{parameters}");
        }
    }
    let answer = get(&address, &format!("/trace/{ID}"), &[]).await;
    assert_eq!(answer.body["messages"][0]["correlation_id"], "req-1", "{answer:?}");
    for wrong in [
        "x?payload=true",
        "x?by=xid",
        "x?by=nothing",
        "x?limit=0",
        "x?topic=orders",
        "%00",
        "x%00?by=correlation_id",
        "k?by=key&topic=%00",
        "%20",
        "%ff",
    ] {
        get(&address, &format!("/trace/{wrong}"), &[]).await.assert_refused(400, "the parameters are");
    }
    // A record is Kafka's to show, and nobody is there.
    get(&address, "/trace/orders/0@17", &[]).await.assert_refused(503, "");
    for relay in [leader, standby] {
        relay.expect_no_surprises(&["kafka", "Kafka"]);
    }
}

#[tokio::test]
async fn a_relay_of_a_file_answers_too() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let setup = Setup::new(BINARY, &url, NOBODY);
    setup.run_ok(&["migrate"]).await;
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(
        "insert into outbox_message (topic, payload, correlation_id) values ('orders', 'p4yload', 'req-1')",
    )
    .execute(&mut database)
    .await
    .unwrap();
    let relay = setup.start().await;
    let answer = get(&relay.admin().await, "/trace/req-1", &[]).await;
    assert_eq!((answer.code, &answer.body["messages"][0]["topic"]), (200, &"orders".into()), "{answer:?}");
    assert!(!answer.body.to_string().contains("p4yload"), "{answer:?}");
}

#[tokio::test]
async fn elsewhere_than_on_a_loopback_address_the_relay_does_not_start_without_a_token() {
    let setup = Setup::new(BINARY, "sqlite:shop.db", NOBODY).set("admin.listen", "0.0.0.0:0");
    for arguments in [&["run"][..], &["config", "check"]] {
        let ran = setup.run(arguments).await;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned() + &String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(78), "{arguments:?}: {said}");
        assert!(
            said.contains("admin.token: is not set") && said.contains("OUTBOXD__ADMIN__TOKEN_FILE"),
            "{said}"
        );
    }
    let short = setup.clone().set("admin.token", "c4n4ry").run(&["config", "check"]).await;
    let said = String::from_utf8_lossy(&short.stderr);
    assert!(said.contains("32 to 1024") && !said.contains("c4n4ry"), "{said}");
    setup.set("admin.token", TOKEN).run_ok(&["config", "check"]).await;
}

#[tokio::test]
async fn whoever_knows_the_token_is_answered_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let (_database, _setup, relay, address) = leading(|setup| {
        setup
            .set("admin.listen", "0.0.0.0:0")
            .set("admin.token_file", file.display())
            .variable("OUTBOXD_LOG", "trace")
    })
    .await;
    let address = address.replace("0.0.0.0", "127.0.0.1");
    let path = format!("/trace/{ID}");
    for wrong in [
        vec![],
        vec![("Authorization", format!("Bearer {}", TOKEN.to_uppercase()))],
        vec![("Authorization", format!("Basic {TOKEN}"))],
        vec![("Authorization", "Bearer ".to_owned())],
    ] {
        let headers: Vec<_> = wrong.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = get(&address, &path, &headers).await;
        answer.assert_refused(401, "admin.token");
        assert!(answer.head.contains("www-authenticate: bearer realm=\"outboxd\""), "{answer:?}");
        // A path that is not there is no secret's business.
        get(&address, "/nowhere", &headers).await.assert_refused(401, "admin.token");
    }
    let right = format!("Bearer {TOKEN}");
    let answer = get(&address, &path, &[("Authorization", &right)]).await;
    assert_eq!(answer.code, 200, "{answer:?}");
    answer.assert_sealed();
    get(&address, "/nowhere", &[("Authorization", &right)]).await.assert_refused(404, "GET /trace/{id}");
    assert!(relay.logged().iter().all(|line| !line.text.contains(TOKEN)), "the log holds the token");
}

#[tokio::test]
async fn a_page_in_a_browser_of_this_machine_is_not_answered_on_behalf_of_another_site() {
    let (_database, _setup, _relay, address) =
        leading(|setup| setup.set("admin.hosts", "trace.example")).await;
    let path = format!("/trace/{ID}");
    let port = address.rsplit(':').next().unwrap();
    for host in [format!("evil.example:{port}"), "localhost.evil.example".to_owned(), "10.9.8.7".to_owned()] {
        get(&address, &path, &[("Host", &host)]).await.assert_refused(403, "admin.hosts");
    }
    for foreign in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:1"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        get(&address, &path, &[foreign]).await.assert_refused(403, "curl");
    }
    send(&address, &format!("GET {path} HTTP/1.0\r\n\r\n")).await.assert_refused(403, "admin.hosts");
    send(&address, &format!("GET http://evil.example{path} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
        .await
        .assert_refused(403, "admin.hosts");
    let own = format!("http://{address}");
    for allowed in [
        vec![("Host", "trace.example")],
        vec![("Host", "localhost:1")],
        vec![("Origin", own.as_str()), ("Sec-Fetch-Site", "same-origin")],
        vec![("Sec-Fetch-Site", "none")],
    ] {
        let answer = get(&address, &path, &allowed).await;
        assert_eq!(answer.code, 200, "{allowed:?}: {answer:?}");
        answer.assert_sealed();
    }
    let posted = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 3\r\n\r\nabc");
    send(&address, &posted).await.assert_refused(405, "GET /trace/{id}");
}

#[tokio::test]
async fn clients_that_send_nothing_keep_nobody_waiting_for_long_and_are_cut_off() {
    let (_database, _setup, relay, address) = leading(|setup| setup).await;
    // More than there is room for.
    let mut slow = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /trace/x HTTP/1.1\r\nHost: ").await.unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    let answer = get(&address, &format!("/trace/{ID}"), &[]).await;
    assert_eq!(answer.code, 200, "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for mut stream in slow {
        let mut rest = Vec::new();
        let cut_off = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
        assert!(cut_off.is_ok(), "a client that sends nothing is still connected");
    }
    let huge = format!("GET /trace/{} HTTP/1.1\r\nHost: {address}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(&address).await.unwrap();
    // It may be cut off before it has sent everything.
    let _sent = stream.write_all(huge.as_bytes()).await;
    let mut answer = Vec::new();
    let _read = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(relay.get("/livez").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_server_that_is_down_or_silent_is_told_and_the_relay_goes_on() {
    let mut server = postgres::Server::start(postgres::Options::default()).await.unwrap();
    let setup = Setup::new(BINARY, &server.url("postgres"), NOBODY);
    setup.run_ok(&["migrate"]).await;
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let address = relay.admin().await;
    let path = format!("/trace/{ID}");
    get(&address, &path, &[]).await;
    // It accepts and does not answer: two are let through, the others are told to come again.
    server.pause().unwrap();
    let began = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (address, path) = (address.clone(), path.clone());
        asking.spawn(async move { get(&address, &path, &[]).await });
    }
    let answers = asking.join_all().await;
    for answer in &answers {
        answer.assert_refused(503, "ask again");
    }
    let waited = answers.iter().filter(|answer| answer.body["error"] == "others are being answered");
    assert!(
        waited.clone().count() == 4 && waited.clone().all(|answer| answer.head.contains("retry-after: 2")),
        "{answers:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(relay.get("/livez").await.unwrap().0, 200, "the loop moves");
    server.resume().unwrap();
    server.stop(Mode::Immediate).await.unwrap();
    let answer = get(&address, &path, &[]).await;
    answer.assert_refused(503, "outboxd check");
    assert_eq!(relay.get("/livez").await.unwrap().0, 200, "the loop moves");
    server.start_again().await.unwrap();
    relay.leads(SOON).await;
    eventually("trace is answered again", SOON, async || {
        (get(&address, &path, &[]).await.code != 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_admin_listener_has_one_session_of_its_own_and_closes_it_when_nobody_asks() {
    const SESSIONS: &str = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'outboxd operate%'";
    let (database, _setup, relay, address) = leading(|setup| setup).await;
    let mut observer = database.connect().await;
    assert_eq!(text(&mut observer, SESSIONS).await.as_deref(), Some("0"), "nobody has asked yet");
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let address = address.clone();
        asking.spawn(async move { get(&address, &format!("/trace/{ID}"), &[]).await.code });
    }
    let mut most = 0;
    while !asking.is_empty() {
        let sessions = text(&mut observer, SESSIONS).await.unwrap().parse::<u32>().unwrap();
        most = most.max(sessions);
        while let Some(answered) = asking.try_join_next() {
            assert_eq!(answered.unwrap(), 200);
        }
    }
    assert_eq!(most, 1);
    wait_until(
        &mut observer,
        "select count(*) = 0 from pg_stat_activity where datname = current_database() and application_name like 'outboxd operate%'",
    )
    .await;
    relay.expect_no_surprises(&["kafka", "Kafka"]);
}

#[tokio::test]
async fn a_second_relay_on_a_machine_relays_without_the_address_that_the_first_one_has() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    // Somebody has the default address: this, or another program of this machine.
    let _taken = std::net::TcpListener::bind("127.0.0.1:9465");
    let setup = Setup::new(BINARY, &url, NOBODY).set("admin.listen", "");
    setup.run_ok(&["migrate"]).await;
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let logged = relay.logged();
    let warned = logged.iter().find(|line| line.text.contains("the admin listener is off")).unwrap();
    assert!(warned.level() == Some("WARN") && warned.text.contains("OUTBOXD__ADMIN__LISTEN"), "{warned:?}");
    // Who chose an address gets it or hears of it.
    let chosen = setup.set("admin.listen", "127.0.0.1:9465");
    let ran = chosen.run(&["run"]).await;
    assert_eq!(ran.status.code(), Some(78), "{ran:?}");
    assert!(
        String::from_utf8_lossy(&ran.stdout).contains("admin.listen: cannot listen on 127.0.0.1:9465"),
        "{ran:?}"
    );
}
