//! What an undelivered message waits for, in one sentence, and what to do about it.

use outboxd_core::{HoldReason, HoldState};
use time::Duration;

use super::{
    HeldNow, Intent, OpenTransaction, PlaceBefore, Standing, Transactions, Waiting, XidStatus, said,
};

/// A leader that settles nothing for so long, although something waits, is worth a word.
const SILENCE: Duration = Duration::seconds(5);

/// What it waits for, and what to do about it if somebody must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waits {
    pub(super) what: String,
    pub(super) remedy: Option<String>,
}

impl Waits {
    fn on(what: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: None }
    }

    fn with(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: Some(remedy.into()) }
    }
}

/// That nobody leads, since when, and who led last.
fn no_leader(standing: &Standing) -> Option<Waits> {
    const START: &str = "Start a relay: `outboxd run`.";
    if standing.alive {
        return None;
    }
    let (Some(relay), epoch) = (&standing.relay, standing.epoch) else {
        return Some(Waits::with("no relay has led this outbox yet", START));
    };
    let what = match (standing.ended_at, standing.settled_at.max(standing.led_at)) {
        (Some(ended), _) => {
            format!(
                "the relay has no leader since {} (relay {relay} ended its term {epoch} in order)",
                said(ended)
            )
        }
        (None, Some(last)) => format!(
            "the relay has no leader: relay {relay} (term {epoch}) ended without a word, the last sign of it is of {}",
            said(last)
        ),
        (None, None) => format!("the relay has no leader: relay {relay} (term {epoch}) ended without a word"),
    };
    Some(Waits::with(what, START))
}

/// A message that is set aside.
pub(super) fn held(held: &HeldNow, standing: &Standing) -> Waits {
    let since = said(held.held_at);
    let topic = &held.topic;
    let remedy = held.reason.explained().remedy;
    if let (Some(head), true) = (&held.head, held.state != HoldState::Parked) {
        let id = head.id;
        let reason = head.reason.as_str();
        let what = match head.state {
            HoldState::Parked => {
                return Waits::with(
                    format!("behind parked message {id} of the same key ({reason})"),
                    head.reason.explained().remedy,
                );
            }
            HoldState::Topic => {
                format!("behind message {id} of the same key, which waits for its topic ({reason})")
            }
            HoldState::Retry | HoldState::Behind => {
                format!("behind held message {id} of the same key ({reason})")
            }
        };
        return and_the_leader(what, None, standing);
    }
    match held.state {
        HoldState::Parked => Waits::with(
            format!("parked since {since} ({}): {}", held.reason.as_str(), held.reason.explained().what),
            remedy,
        ),
        HoldState::Topic if held.reason == HoldReason::TopicUnauthorized => and_the_leader(
            format!("the relay may not write to topic {topic} (held since {since})"),
            Some(remedy),
            standing,
        ),
        HoldState::Topic => and_the_leader(
            format!("topic {topic} does not exist (held since {since})"),
            Some(remedy),
            standing,
        ),
        HoldState::Behind => and_the_leader(
            format!("its turn has come: what it waited behind is gone (held since {since})"),
            None,
            standing,
        ),
        HoldState::Retry => {
            let error = held.error.as_deref().map_or_else(String::new, |error| format!(": {error}"));
            let what = match held.due_at.filter(|due| *due > standing.now) {
                Some(due) => {
                    format!(
                        "tried again at {}, after {} that failed{error}",
                        said(due),
                        attempts(held.attempts)
                    )
                }
                None => "due: the relay publishes it next".to_owned(),
            };
            and_the_leader(what, None, standing)
        }
    }
}

fn and_the_leader(what: String, remedy: Option<&str>, standing: &Standing) -> Waits {
    let remedy = remedy.map(str::to_owned);
    match no_leader(standing) {
        None => Waits { what, remedy },
        Some(nobody) => Waits {
            what: format!("{what}; and {}", nobody.what),
            remedy: [remedy, nobody.remedy]
                .into_iter()
                .flatten()
                .reduce(|one, other| format!("{one} {other}")),
        },
    }
}

/// A message whose time has not come. The intent says it too, before the relay has seen it.
pub(super) fn scheduled(intent: &Intent, waiting: Option<&Waiting>, standing: &Standing) -> Option<Waits> {
    let due = waiting.map(|waiting| waiting.due_at).or(intent.deliver_after)?;
    if due > standing.now {
        return Some(and_the_leader(format!("scheduled until {}", said(due)), None, standing));
    }
    // The relay has not seen an intent that does not wait: it is in the backlog.
    waiting?;
    Some(and_the_leader(format!("its time came at {}: the relay takes it up", said(due)), None, standing))
}

fn attempts(count: u32) -> String {
    if count == 1 { "1 attempt".to_owned() } else { format!("{count} attempts") }
}

/// A message that the cursor has not reached.
pub(super) fn backlog(intent: &Intent, place: Option<&PlaceBefore>, standing: &Standing) -> Waits {
    let ahead = match place {
        Some(PlaceBefore { late: true, .. }) => {
            "in the backlog: committed late, it is among the next that are read".to_owned()
        }
        Some(PlaceBefore { before: Some(0), .. }) => "in the backlog: no message before it".to_owned(),
        Some(PlaceBefore { before: Some(1), .. }) => "in the backlog: 1 message before it".to_owned(),
        Some(PlaceBefore { before: Some(before), .. }) => {
            format!("in the backlog: {before} messages before it")
        }
        Some(PlaceBefore { before: None, .. }) => {
            "in the backlog: more than 10000 messages before it".to_owned()
        }
        None => "in the backlog".to_owned(),
    };
    if let Some(nobody) = no_leader(standing) {
        return Waits { what: format!("{}; {ahead}", nobody.what), remedy: nobody.remedy };
    }
    let relay = standing.relay.as_deref().unwrap_or("the relay");
    let silent_since =
        [standing.settled_at, standing.led_at, Some(intent.created_at)].into_iter().flatten().max();
    match silent_since.filter(|since| standing.now - *since > SILENCE) {
        None => Waits::on(format!("{ahead}; relay {relay} leads")),
        Some(_) => {
            let settled = standing.settled_at.map_or_else(|| "never".to_owned(), said);
            let outage = standing
                .outage_at
                .filter(|at| Some(*at) >= standing.led_at)
                .map_or_else(String::new, |at| format!(", and Kafka did not answer at {}", said(at)));
            Waits::with(
                format!("{ahead}; relay {relay} leads and settled last at {settled}{outage}"),
                "Look at the relay's log, at /status of its HTTP port, and at the brokers: `outboxd check`.",
            )
        }
    }
}

/// Why there is no intent, as far as its transaction explains it.
pub(super) fn transaction(xid: Option<u64>, found: bool, transactions: Option<&Transactions>) -> Vec<String> {
    let Some(transactions) = transactions else {
        return vec![
            "no intent is to be seen under it; it may be in a transaction that has not committed, which this database does not \
             show: or it was rolled back, or is purged, or was never written"
                .to_owned(),
        ];
    };
    let mut notes = Vec::new();
    if let Some(xid) = xid {
        let open = transactions.open.iter().find(|open| open.xid == xid.to_string());
        match (transactions.status, open) {
            (_, Some(open)) => {
                let writes = if open.writes_outbox {
                    "it has written to the outbox, and nothing of it is seen before it commits"
                } else {
                    "it has not written to the outbox"
                };
                notes.push(format!("its {}; {writes}", is_open(open)));
            }
            (Some(XidStatus::Aborted), None) => {
                notes.push(format!("transaction {xid} was rolled back: nothing of it is ever published"));
            }
            (Some(XidStatus::Committed), None) if !found => notes.push(format!(
                "transaction {xid} was committed; it wrote no intent, or what it wrote is purged"
            )),
            (Some(XidStatus::InProgress), None) => {
                notes.push(format!("transaction {xid} is open, in a backend that has just ended"));
            }
            (Some(XidStatus::Future), None) => {
                notes.push(format!("no transaction {xid} has begun in this database cluster"));
            }
            (Some(XidStatus::Forgotten), None) if !found => notes.push(format!(
                "transaction {xid} ended so long ago that the database has forgotten how; what it wrote is purged, if it wrote"
            )),
            (Some(XidStatus::Committed | XidStatus::Forgotten) | None, None) => {}
        }
        return notes;
    }
    let writers: Vec<&OpenTransaction> = transactions.open.iter().filter(|open| open.writes_outbox).collect();
    if writers.is_empty() {
        notes.push(
            "no intent is to be seen under it, and no open transaction has written to the outbox: it was rolled back, or is \
             purged, or was never written"
                .to_owned(),
        );
    } else {
        notes.push("no intent is to be seen under it; it may be in a transaction that is open:".to_owned());
        notes.extend(writers.into_iter().map(is_open));
    }
    notes
}

/// "transaction 8123 is open since 12:03 in backend 4711 of application billing".
fn is_open(open: &OpenTransaction) -> String {
    let since = open.since.map_or_else(String::new, |since| format!(" since {}", said(since)));
    if let Some(name) = &open.prepared {
        return format!(
            "transaction {} is prepared{since} as {name:?} and waits for COMMIT PREPARED or ROLLBACK PREPARED",
            open.xid
        );
    }
    let backend = open.backend.map_or_else(String::new, |pid| format!(" in backend {pid}"));
    let application = match open.application.as_deref() {
        Some("") | None => String::new(),
        Some(name) => format!(" of application {name}"),
    };
    let role = open.role.as_deref().map_or_else(String::new, |role| format!(", role {role}"));
    let state = match &open.state {
        Some(state) => format!(" ({state}{role})"),
        None => format!(" (since when and what it does is shown to members of pg_read_all_stats{role})"),
    };
    format!("transaction {} is open{since}{backend}{application}{state}", open.xid)
}
