//! The stage: database, broker, relay, consumer; set up, watched and put away again.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::Options;
use super::books::{Books, Glance};
use super::broker::{Broker, Written};
use super::consumer::{Consumed, Consumer};
use super::database::Database;
use super::relay::{Launch, Relay};
use super::screen::{Progress, Screen, counted, grouped};
use super::shop::Shop;
use super::tally::{Facts, Tally, tally};
use super::timeline;

/// Between two looks at the stage.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The relay settles four times a second instead of forty, so that a kill leaves something to repeat; a lease, an outage
/// and a back-off are shorter, because nobody wants to wait for them in a demo.
const SETTINGS: [(&str, &str); 10] = [
    ("OUTBOXD__RELAY__SETTLE_EVERY_MS", "250"),
    ("OUTBOXD__RELAY__LEAD_SESSION_MS", "1000"),
    ("OUTBOXD__RELAY__STANDBY_POLL_MS", "100"),
    ("OUTBOXD__RELAY__OUTAGE_AFTER_MS", "1500"),
    ("OUTBOXD__RELAY__BACKOFF_MAX_MS", "1000"),
    ("OUTBOXD__SHUTDOWN__GRACE_MS", "8000"),
    ("OUTBOXD__HTTP__LISTEN", "127.0.0.1:0"),
    ("OUTBOXD__ADMIN__LISTEN", "off"),
    ("OUTBOXD__LOG__FORMAT", "json"),
    ("OUTBOXD__LOG__FILTER", "info,outboxd=debug"),
];

/// What exists as long as the story is told, and is put away when it ends, whichever way.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Kafka.
    pub(crate) broker: Broker,
    /// How this program is started.
    pub(crate) launch: Launch,
    database: Database,
    directory: tempfile::TempDir,
    relay: Option<Relay>,
    relays: u32,
    /// What the relay's log said last on the screen.
    told_last: String,
    schema: Made,
    made_topics: Made,
}

/// Who plays.
#[derive(Debug)]
pub(crate) struct Players {
    /// The shop.
    pub(crate) shop: Shop,
    /// Everybody else.
    pub(crate) watch: Watch,
}

/// Those who look on while the shop trades.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The outbox's tables.
    pub(crate) books: Books,
    /// The consumer.
    pub(crate) consumer: Consumer,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    /// The outbox.
    pub(crate) outbox: Glance,
    /// The consumer.
    pub(crate) consumed: Consumed,
}

impl Now {
    /// Records that the consumer has seen and of which the database does not know yet that they were published.
    pub(crate) fn unsettled(&self) -> u64 {
        self.consumed.effects.saturating_sub(self.outbox.dispatched)
    }

    /// Committed intents that have had no effect yet.
    pub(crate) fn backlog(&self) -> u64 {
        self.outbox.intents.saturating_sub(self.consumed.effects)
    }

    /// Whether everything is dispatched, known to be, and has had its effect.
    pub(crate) fn at_rest(&self) -> bool {
        self.outbox.held.is_empty()
            && self.outbox.dispatched == self.outbox.intents
            && self.consumed.effects == self.outbox.intents
    }
}

impl Players {
    /// Everybody goes home.
    pub(crate) async fn leave(self) {
        let Watch { books, mut consumer } = self.watch;
        consumer.stop().await;
        books.close().await;
        self.shop.close().await;
    }
}

impl Watch {
    /// Looks at everything. The consumer is asked before the database: what is unsettled then is an effect of a record that
    /// the database did not know of even a moment later.
    pub(crate) async fn now(&mut self) -> anyhow::Result<Now> {
        self.consumer.check()?;
        let consumed = self.consumer.consumed();
        Ok(Now { outbox: self.books.glance().await?, consumed })
    }
}

impl Stage {
    /// Decides where everything will be. Touches no server.
    pub(crate) fn new(options: &Options) -> anyhow::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("outboxd-demo-").tempdir().context("make a directory")?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let run = &id[..8];
        let (database, url) = match &options.postgres {
            Some((config, url)) => {
                let schema = format!("outboxd_demo_{run}").parse()?;
                (Database::Postgres { config: Box::new(config.clone()), schema }, Some(url.expose_secret()))
            }
            None => (Database::Sqlite { path: directory.path().join("shop.db") }, None),
        };
        let broker = match &options.kafka {
            Some(kafka) => Broker::servers(kafka.clone(), run),
            None => Broker::in_process()?,
        };
        let on_servers = options.postgres.is_some() || options.kafka.is_some();
        let mut environment = database.environment(url);
        environment.extend(SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let servers = broker.kafka.bootstrap_servers.clone();
        environment.push(("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS".to_owned(), servers));
        let launch = Launch {
            program: options.program.clone(),
            arguments: options.arguments.clone(),
            environment,
            // On servers the rest of the configuration (TLS, SASL) says how to reach them.
            without: if on_servers {
                vec![OsString::from("OUTBOXD__DATABASE__URL_FILE")]
            } else {
                options.variables.clone()
            },
            directory: (!on_servers).then(|| directory.path().to_owned()),
        };
        Ok(Self {
            broker,
            launch,
            database,
            directory,
            relay: None,
            relays: 0,
            told_last: String::new(),
            schema: Made::No,
            made_topics: Made::No,
        })
    }

    /// Installs the outbox, creates the topics, starts relay and consumer, opens the shop.
    pub(crate) async fn set_up(&mut self, screen: &Screen) -> anyhow::Result<Players> {
        self.schema = Made::Perhaps;
        self.database.install().await?;
        self.schema = Made::Yes;
        self.made_topics = Made::Perhaps;
        self.broker.create_topics().await?;
        self.made_topics = Made::Yes;
        let topics = self.broker.topics.clone();
        let consumer = Consumer::start(&self.broker.kafka, &topics.all(), self.directory.path()).await?;
        let mut watch = Watch { books: Books::open(&self.database).await?, consumer };
        let shop = Shop::open(&self.database, topics).await?;
        screen.fact("database", &self.database.shown());
        screen.fact("broker", &self.broker.shown());
        let (pid, _) = self.start_relay(&mut watch).await?;
        screen.fact("relay", &format!("outboxd run, process {pid}: a child process that this one may kill"));
        screen.fact("consumer", "keeps the ids that it has handled, and claims an id before it acts");
        Ok(Players { shop, watch })
    }

    /// Whether this broker can be taken away.
    pub(crate) fn commands_the_broker(&self) -> bool {
        self.broker.mock.is_some()
    }

    /// Starts a relay and waits until it leads: its process id, and how long that took.
    pub(crate) async fn start_relay(&mut self, watch: &mut Watch) -> anyhow::Result<(u32, Duration)> {
        self.relays += 1;
        let instance = format!("demo-{}", self.relays);
        self.told_last.clear();
        let began = Instant::now();
        let relay = Relay::start(&self.launch, &instance, &self.log()).await?;
        let pid = relay.pid;
        self.relay = Some(relay);
        let leads = began + PATIENCE;
        while watch.now().await?.outbox.relay.as_deref() != Some(&instance) {
            self.check_relay()?;
            if Instant::now() > leads {
                bail!("relay {instance} has not taken the lead; its log is {}", self.log().display());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok((pid, began.elapsed()))
    }

    /// Kills the relay with SIGKILL; its process id.
    pub(crate) async fn kill_relay(&mut self) -> anyhow::Result<u32> {
        let relay = self.relay.take().context("there is no relay to kill")?;
        let pid = relay.pid;
        relay.kill_9().await?;
        Ok(pid)
    }

    fn check_relay(&mut self) -> anyhow::Result<()> {
        self.relay.as_mut().map_or(Ok(()), Relay::check)
    }

    /// Shows what happens until it is so.
    pub(crate) async fn until(
        &mut self,
        watch: &mut Watch,
        progress: &mut Progress<'_>,
        what: &str,
        mut so: impl FnMut(&Now) -> bool,
    ) -> anyhow::Result<Now> {
        let patience = Instant::now() + PATIENCE;
        let mut shown = Instant::now() - LOOK_EVERY;
        loop {
            let now = watch.now().await?;
            let is_so = so(&now);
            if is_so || shown.elapsed() >= LOOK_EVERY {
                shown = Instant::now();
                progress.show(&now);
                self.tell_log(progress);
            }
            if is_so {
                return Ok(now);
            }
            self.check_relay()?;
            if Instant::now() > patience {
                bail!("{what}: not within {} s; now {now:?}", PATIENCE.as_secs());
            }
            // Finer than what is shown: what a kill is to find lasts a few milliseconds.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the relay says beside its daily business.
    fn tell_log(&mut self, progress: &Progress<'_>) {
        const STAGES: [&str; 4] = ["outboxd::lead", "outboxd::publish", "outboxd::held", "outboxd::drain"];
        for line in self.relay.as_mut().map(Relay::logged).unwrap_or_default() {
            let daily = line.level == "DEBUG" || !STAGES.contains(&line.target.as_str());
            // librdkafka's own lines say at length what the relay's say in short.
            if daily || line.facility.is_some() || line.message == self.told_last {
                continue;
            }
            progress.screen().relay(&line);
            self.told_last = line.message;
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("relay.log")
    }

    /// Waits until the consumer has read everything that the broker has, duplicates too, or for long enough.
    pub(crate) async fn caught_up(&self, consumer: &mut Consumer) -> anyhow::Result<Written> {
        let written = self.broker.written().await?;
        let patience = Instant::now() + PATIENCE;
        while consumer.consumed().records() < written.records && Instant::now() < patience {
            consumer.check()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(written)
    }

    /// Ends the relay in order, adds everything up, shows it.
    pub(crate) async fn close_the_books(
        &mut self,
        players: &mut Players,
        screen: &Screen,
        mut broken: Vec<String>,
    ) -> anyhow::Result<Tally> {
        screen.act("Tally");
        if let Some(mut relay) = self.relay.take() {
            let status = relay.drain().await?;
            if !status.success() {
                broken.push(format!("the relay did not drain: {status}"));
            }
        }
        let Watch { books, consumer } = &mut players.watch;
        let written = self.caught_up(consumer).await?;
        let (deliveries, effects) = consumer.account().await?;
        let (orders, retried) = books.orders_and_retried().await?;
        let receipts = books.receipts().await?;
        let facts = Facts {
            orders,
            intents: books.intents().await?,
            receipts: receipts.iter().map(|(seq, receipt)| (*seq, receipt.place.clone())).collect(),
            held: super::tally::as_u64(books.glance().await?.held.len()),
            retried,
            rolled_back: players.shop.rolled_back().to_vec(),
            written: written.records,
            dropped: written.dropped,
            deliveries,
            effects,
        };
        let mut tally = tally(&facts);
        tally.problems.extend(broken);
        show_tally(&tally, screen);
        if let Some(correlation_id) = consumer.most_repeated().await? {
            screen.act(&format!("One transaction: correlation id {correlation_id}"));
            let copies = consumer.remembers(&correlation_id).await?;
            for row in books.of_correlation(&correlation_id).await? {
                screen.say(&format!("message {}", row.id));
                for moment in timeline::of_message(&row, receipts.get(&row.seq), &copies) {
                    screen.moment(&moment.at, &moment.what);
                }
            }
        }
        Ok(tally)
    }

    /// What to run next.
    pub(crate) fn what_next(&self, screen: &Screen, keep: bool) {
        screen.act("What next");
        screen.command(&format!("alias outboxd={}", self.launch.program.display()));
        if keep {
            let sqlite = matches!(self.database, Database::Sqlite { .. });
            let variables = self.launch.environment.iter().filter(|(name, _)| {
                name == "OUTBOXD__DATABASE__SCHEMA" || sqlite && name == "OUTBOXD__DATABASE__URL"
            });
            for (name, value) in variables {
                screen.command(&format!("export {name}={value}"));
            }
            screen.command("outboxd status                # the outbox of this demo, as you would see yours");
        } else {
            screen.command("outboxd demo --keep           # leaves database and log there to look at");
        }
        screen.command("outboxd migrate --dry-run     # what would be installed in your database");
        screen.command("outboxd check                 # what would keep the relay from its work");
        screen.say(
            "README.md: five minutes with your own PostgreSQL and Kafka. docs/delivery.md: the promises.",
        );
        screen.say("");
    }

    /// Ends the relay if there still is one and puts everything away, unless it is kept to be looked at.
    pub(crate) async fn clear(mut self, screen: &Screen, keep: bool, failed: bool) {
        if let Some(mut relay) = self.relay.take()
            && let Err(error) = relay.drain().await
        {
            screen.failed(&format!("{error:#}"));
        }
        if !keep && self.schema != Made::No {
            self.schema.report(self.database.remove().await, screen);
        }
        if !keep && self.made_topics != Made::No {
            self.made_topics.report(self.broker.delete_topics().await, screen);
        }
        // Of a story that never began there is nothing to look at.
        if keep || failed && self.relays > 0 {
            screen.say(&format!("kept: {}", self.directory.keep().display()));
        }
        if keep && matches!(self.database, Database::Postgres { .. }) {
            screen.say(&format!("kept: {}", self.database.shown()));
        }
        if keep && self.broker.mock.is_none() {
            screen.say(&format!("kept: {}", self.broker.shown()));
        }
    }
}

/// Whether something was made that must be put away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    No,
    Perhaps,
    Yes,
}

impl Made {
    /// What was only perhaps made need not have been there to be put away.
    fn report(self, put_away: anyhow::Result<()>, screen: &Screen) {
        if let Err(error) = put_away
            && self == Self::Yes
        {
            screen.failed(&format!("left behind: {error:#}"));
        }
    }
}

fn show_tally(tally: &Tally, screen: &Screen) {
    let size = |count: usize| super::tally::as_u64(count);
    let sums = [
        (
            "committed",
            size(tally.committed),
            format!("intents of {}  (database)", counted(tally.orders, "order")),
        ),
        (
            "rolled back",
            size(tally.rolled_back),
            "intents, none of them published  (shop, broker)".to_owned(),
        ),
        ("published", tally.published, "records  (broker)".to_owned()),
        (
            "duplicates",
            size(tally.duplicates),
            "records whose id came before: absorbed  (consumer)".to_owned(),
        ),
        ("effects", size(tally.effects), "one for each committed intent  (consumer)".to_owned()),
        ("parked", tally.parked, "and retried; none is held any longer  (database)".to_owned()),
        ("lost", size(tally.lost), "committed intents without an effect".to_owned()),
    ];
    for (name, number, what) in sums {
        screen.sum(name, number, &what);
    }
    if tally.problems.is_empty() {
        let (effects, duplicates) = (grouped(size(tally.effects)), grouped(size(tally.duplicates)));
        screen.held_true(&format!(
            "it adds up: {} published = {effects} effects + {duplicates} duplicates",
            grouped(tally.published),
        ));
        screen.held_true("every receipt points to its record, every key is in order");
    }
    for problem in &tally.problems {
        screen.failed(problem);
    }
}
