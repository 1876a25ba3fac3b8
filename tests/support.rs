//! An outbox, a topic and a way to start the relay between them, as most tests need them.

use std::time::Duration;

use outboxd_testkit::checker::{self, Account};
use outboxd_testkit::kafka;
use outboxd_testkit::relay::Setup;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use sqlx::{Connection, PgConnection};

/// How long a state may take to come on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What the end of a term may duplicate, where a test counts.
pub(crate) const IN_FLIGHT: u64 = 50;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_outboxd");

/// An installed outbox on some server, and a topic on some broker.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) bootstrap: String,
    pub(crate) topic: String,
    pub(crate) setup: Setup,
}

impl Place {
    /// Installs the outbox in the database of this URL and creates a topic with three partitions.
    pub(crate) async fn install(url: &str, bootstrap: &str, purpose: &str) -> Self {
        let topic = kafka::unique_topic(purpose);
        kafka::create_topic(bootstrap, &topic, 3, &[]).await;
        let setup = Setup::new(BINARY, url, bootstrap);
        setup.run_ok(&["migrate"]).await;
        Self { url: url.to_owned(), bootstrap: bootstrap.to_owned(), topic, setup }
    }

    /// With at most [`IN_FLIGHT`] messages between read and settled, so that duplicates can be counted against them.
    pub(crate) fn little_in_flight(&self) -> Setup {
        self.setup.clone().set("relay.page_messages", 20).set("relay.in_flight_messages", IN_FLIGHT)
    }

    /// Commits one intent.
    pub(crate) async fn emit(&self, key: &str, payload: &str) {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        emit_on(&mut connection, &self.topic, key, payload).await;
    }

    /// Waits until everything committed is dealt with, then compares database and topic.
    pub(crate) async fn account(&self) -> Account {
        checker::dealt_with(&self.url, SOON).await;
        checker::account(&self.url, &self.bootstrap, std::slice::from_ref(&self.topic)).await
    }
}

/// Writes one intent in whatever transaction the connection is in.
pub(crate) async fn emit_on(connection: &mut PgConnection, topic: &str, key: &str, payload: &str) {
    sqlx::query("insert into outbox.message (topic, key, payload) values ($1, $2, convert_to($3, 'UTF8'))")
        .bind(topic)
        .bind(key)
        .bind(payload)
        .execute(connection)
        .await
        .unwrap();
}

/// An authority's certificate, that of a server on this machine, and the server's key, in PEM.
pub(crate) fn certificates() -> (String, String, String) {
    let named = |name: &str, hosts: Vec<String>| {
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let mut params = named("authority of a test", Vec::new());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = named("server of a test", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let certificate = params.signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}
