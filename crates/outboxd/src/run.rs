//! `run`: the relay and what belongs to it.
//!
//! Every task is owned here: the relay itself, the HTTP servers, the proofs, the upkeep of the metrics. The first to end decides: the
//! relay ends when it was drained or refused, the others only by an error. An outage ends nothing.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use outboxd_engine::{Outbox, Publisher, Relay, RelayConfig};
use outboxd_kafka::{KafkaConfig, KafkaPublisher};
use outboxd_postgres::{PostgresOperator, PostgresOutbox};
use outboxd_sqlite::{SqliteOperator, SqliteOutbox};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::adapters::Adapter;
use crate::admin;
use crate::canary::send_canaries;
use crate::config::{Config, Database, Export, ProofSection};
use crate::failure::Failure;
use crate::http;
use crate::metrics::Metrics;
use crate::observers::Observers;
use crate::spans::Spans;
use crate::standing::Standing;
use crate::telemetry::Telemetry;
use crate::verify::verify_continuously;

/// How often the metrics' buffers are emptied.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Relays until told to stop.
pub(crate) async fn run(config: Config, telemetry: &Telemetry) -> Result<ExitCode, Failure> {
    // Before anything else: as PID 1 a process without a handler cannot be stopped.
    let signals = Signals::listen()?;
    let adapter = Adapter::of(&config)?;
    let database = config.database.as_ref().map_or("none", Database::kind);
    let standing = Arc::new(Standing::new(&config.instance, database));
    let metrics = Arc::new(Metrics::new(&config.instance, database, telemetry.dropped())?);
    let listener = http::listen(config.listen).await?;
    let admin = match config.admin {
        Some(section) => {
            let desk = admin::Desk::new(adapter.clone(), config.kafka.clone());
            admin::listen(&section).await?.map(|listener| (listener, section, desk))
        }
        None => None,
    };
    let kafka = config.kafka.clone();
    let publisher = KafkaPublisher::new(config.kafka).map_err(Failure::config)?;
    #[cfg(feature = "failpoints")]
    let publisher = crate::failpoint::Guarded::new(publisher, config.failpoint.as_ref());
    tracing::info!(
        target: "outboxd::run",
        version = env!("CARGO_PKG_VERSION"),
        instance = config.instance,
        database = config.database.as_ref().map(Database::shown),
        "starting"
    );
    let spans = spans(&config.export, &config.instance, &metrics);
    let observers = Arc::new(Observers {
        metrics: Arc::clone(&metrics),
        standing: Arc::clone(&standing),
        spans: spans.clone(),
        #[cfg(feature = "failpoints")]
        failpoint: config.failpoint,
    });
    let grace = config.relay.grace;
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    let proofs = proofs(&adapter, &kafka, config.proof, &standing, &metrics);
    let relay = relay(adapter, publisher, config.relay, observers, drain.clone());
    let mut servers = tokio::task::JoinSet::from_iter([http::serve(
        listener,
        http::Sources { metrics: Arc::clone(&metrics), standing: Arc::clone(&standing) },
        stop.clone(),
    )]);
    if let Some((listener, section, desk)) = admin {
        servers.spawn(admin::serve(listener, section, desk, stop.clone()));
    }
    let attendance = Attendance { signals, metrics, standing, spans, grace, drain, stop, proofs };
    attend(relay, servers, attendance).await
}

/// Spans, if somebody wants them. Whatever is wrong with that, the relay relays.
fn spans(export: &Export, instance: &str, metrics: &Metrics) -> Option<Arc<Spans>> {
    let why = match export {
        Export::Off => return None,
        Export::Refused(why) => why.clone(),
        Export::On(exporting) => match Spans::start(exporting, instance, metrics.span_counts()) {
            Ok(spans) => {
                tracing::info!(target: "outboxd::spans", queue = exporting.queue_spans, "exporting spans");
                return Some(Arc::new(spans));
            }
            Err(error) => format!("{error:#}"),
        },
    };
    tracing::warn!(target: "outboxd::spans", why, "spans are not exported");
    None
}

/// What the leader proves while it relays. Nothing of it runs unless it is configured.
fn proofs(
    adapter: &Adapter,
    kafka: &KafkaConfig,
    proof: ProofSection,
    standing: &Arc<Standing>,
    metrics: &Arc<Metrics>,
) -> tokio::task::JoinSet<anyhow::Result<()>> {
    let mut proofs = tokio::task::JoinSet::new();
    if let Some(section) = proof.verify {
        let (kafka, standing, metrics) = (kafka.clone(), Arc::clone(standing), Arc::clone(metrics));
        match adapter {
            Adapter::Postgres(config) => {
                let outbox = PostgresOperator::new((**config).clone());
                proofs.spawn(verify_continuously(outbox, kafka, section, standing, metrics))
            }
            Adapter::Sqlite(config) => {
                let outbox = SqliteOperator::new(config.clone());
                proofs.spawn(verify_continuously(outbox, kafka, section, standing, metrics))
            }
        };
    }
    if let Some(section) = proof.canary {
        let (kafka, standing, metrics) = (kafka.clone(), Arc::clone(standing), Arc::clone(metrics));
        match adapter {
            Adapter::Postgres(config) => {
                let outbox = PostgresOperator::new((**config).clone());
                proofs.spawn(send_canaries(outbox, kafka, section, standing, metrics))
            }
            Adapter::Sqlite(config) => {
                let outbox = SqliteOperator::new(config.clone());
                proofs.spawn(send_canaries(outbox, kafka, section, standing, metrics))
            }
        };
    }
    proofs
}

/// The relay over whichever database it is.
async fn relay(
    adapter: Adapter,
    publisher: impl Publisher,
    config: RelayConfig,
    observers: Arc<Observers>,
    drain: CancellationToken,
) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(postgres) => {
            let outbox = PostgresOutbox::new(*postgres);
            relay_over(outbox, publisher, config, observers, drain).await
        }
        Adapter::Sqlite(sqlite) => {
            let outbox = SqliteOutbox::new(sqlite);
            relay_over(outbox, publisher, config, observers, drain).await
        }
    }
}

async fn relay_over<O: Outbox>(
    outbox: O,
    publisher: impl Publisher,
    config: RelayConfig,
    observers: Arc<Observers>,
    drain: CancellationToken,
) -> Result<(), Failure> {
    let relay = Relay::new(outbox, publisher, config, observers, rand::random());
    Ok(Box::pin(relay.run(drain)).await?)
}

/// What the relay's attendants need.
struct Attendance {
    signals: Signals,
    metrics: Arc<Metrics>,
    standing: Arc<Standing>,
    spans: Option<Arc<Spans>>,
    grace: Duration,
    drain: CancellationToken,
    stop: CancellationToken,
    proofs: tokio::task::JoinSet<anyhow::Result<()>>,
}

/// Waits for the first end: of the relay, of an attendant, or by a second signal.
async fn attend(
    relay: impl Future<Output = Result<(), Failure>> + Send + 'static,
    mut servers: tokio::task::JoinSet<std::io::Result<()>>,
    attendance: Attendance,
) -> Result<ExitCode, Failure> {
    let Attendance { mut signals, metrics, standing, spans, grace, drain, stop, mut proofs } = attendance;
    let mut drains_since = None;
    let mut relay = tokio::task::JoinSet::from_iter([relay]);
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    // Every branch is cancel safe: joining a set, a tick, and a signal's stream lose nothing when dropped.
    let ended = loop {
        tokio::select! {
            biased;
            Some(ended) = relay.join_next() => break ended.context("the relay's task").map_err(Failure::bug)?,
            Some(ended) = servers.join_next() => {
                let error = match ended {
                    Ok(Ok(())) => anyhow!("it ended by itself"),
                    Ok(Err(error)) => error.into(),
                    Err(error) => error.into(),
                };
                break Err(Failure::bug(error.context("serve http")));
            }
            Some(ended) = proofs.join_next() => {
                let error = match ended {
                    Ok(Ok(())) => anyhow!("it ended by itself"),
                    Ok(Err(error)) => error,
                    Err(error) => error.into(),
                };
                break Err(Failure::bug(error.context("prove deliveries")));
            }
            name = signals.next() => {
                if drain.is_cancelled() {
                    tracing::warn!(target: "outboxd::drain", signal = name.0,
                        "second signal: ending at once; what is not settled will be published again");
                    if let Some(spans) = &spans {
                        spans.abandon();
                    }
                    return Ok(ExitCode::from(name.1));
                }
                tracing::info!(target: "outboxd::drain", signal = name.0, "draining; a second signal ends at once");
                standing.draining();
                drains_since = Some(Instant::now());
                drain.cancel();
            }
            _ = upkeep.tick() => metrics.upkeep(),
        }
    };
    if let Some(spans) = &spans {
        let left = drains_since.map_or(grace, |since: Instant| grace.saturating_sub(since.elapsed()));
        spans.finish(left).await;
    }
    // Probes were answered until here, so that nobody restarts a relay that drains.
    stop.cancel();
    while servers.join_next().await.is_some() {}
    ended.map(|()| {
        tracing::info!(target: "outboxd::run", "ended");
        ExitCode::SUCCESS
    })
}

/// The signals that end the relay.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("listen for signals").map_err(Failure::bug);
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next one, with its name and the exit code that shells give it.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            Some(()) = self.terminate.recv() => ("SIGTERM", 128 + 15),
            Some(()) = self.interrupt.recv() => ("SIGINT", 128 + 2),
            // Both streams end only with the runtime.
            else => std::future::pending().await,
        }
    }
}
