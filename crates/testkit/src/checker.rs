//! Compares what the database says was committed with what Kafka holds.
//!
//! [`account`] reads both to their ends and returns an [`Account`]: what is missing, what was invented, what is out of order, what
//! came twice, and whether receipts tell the truth. The comparison itself, [`compare`], is pure. It trusts nothing that the relay says about
//! itself; what it knows of the outbox is its tables and the format of the receipts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use outboxd_core::receipts;
use outboxd_core::record::REPLAY_HEADER;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::kafka;
use crate::relay::eventually;

/// Examples of a kind of problem that are kept.
const EXAMPLES: usize = 10;

/// A committed intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Place in the outbox.
    pub seq: i64,
    /// Message id.
    pub id: Uuid,
    /// Topic.
    pub topic: String,
    /// Key.
    pub key: Option<String>,
    /// Payload.
    pub payload: Option<Vec<u8>>,
}

/// What the database says.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Committed intents, ascending by `seq`.
    pub intents: Vec<Intent>,
    /// `seq` of those that are held, or wait for their time.
    pub held: BTreeSet<i64>,
    /// `seq` of those that an operator discarded, or somebody cancelled in time.
    pub discarded: BTreeSet<i64>,
    /// Places that receipts name: `seq`, topic, partition, offset.
    pub receipts: Vec<(i64, String, i32, i64)>,
    /// (`seq`, topic, partition, offset) of every receipt of a copy that a replay made.
    pub replay_receipts: Vec<(i64, String, i32, i64)>,
    /// `seq` of those that name a time: they have no order.
    pub scheduled: BTreeSet<i64>,
    /// `seq` of those that the cursor has not dealt with.
    pub waiting: BTreeSet<i64>,
}

/// A record as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Option<Bytes>,
    /// Payload.
    pub payload: Option<Bytes>,
    /// Headers, without order or repetition.
    pub headers: BTreeMap<String, Option<Bytes>>,
}

impl Copied {
    fn id(&self) -> Option<Uuid> {
        Uuid::parse_str(std::str::from_utf8(self.headers.get("id")?.as_ref()?).ok()?).ok()
    }

    /// The replay that made it.
    fn replay(&self) -> Option<&Bytes> {
        self.headers.get(REPLAY_HEADER)?.as_ref()
    }

    /// Whether both have the same headers, but for what says that one was made by a replay.
    fn has_headers_of(&self, other: &Self) -> bool {
        let own = |copy: &Self| {
            let mut headers = copy.headers.clone();
            headers.remove(REPLAY_HEADER);
            headers
        };
        own(self) == own(other)
    }

    fn place(&self) -> (String, i32, i64) {
        (self.topic.clone(), self.partition, self.offset)
    }
}

/// How often something was seen, and some of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// How often.
    pub count: u64,
    /// The first of it.
    pub examples: Vec<String>,
}

impl Problem {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// The balance of committed intents and published records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Committed intents.
    pub committed: u64,
    /// Records in the topics, every copy counted.
    pub records: u64,
    /// Copies after the first of a message, but for those that a replay made.
    pub duplicates: u64,
    /// Copies that a replay made.
    pub replayed: u64,
    /// Committed intents that are held and not in a topic.
    pub held: u64,
    /// Committed intents that an operator gave up.
    pub discarded: u64,
    /// Dealt with, according to the cursor, but nowhere. Breaks D1.
    pub lost: Problem,
    /// Neither published nor held: not dealt with yet.
    pub stuck: Problem,
    /// Records that no committed intent stands behind. Breaks D2.
    pub phantoms: Problem,
    /// First copies of a key that do not follow the order of the intents, or are spread over partitions. Breaks D3.
    pub inversions: Problem,
    /// Copies that differ from one another, or from their intent.
    pub divergent: Problem,
    /// Receipts that name a place where the message is not, and published messages without a receipt.
    pub stale_receipts: Problem,
    /// Messages that were settled more than once.
    pub settled_twice: Problem,
    /// Keys whose numbers, as the application counted them, do not rise with `seq`.
    pub misnumbered: Problem,
}

impl Account {
    fn problems(&self) -> [(&'static str, &Problem); 8] {
        [
            ("lost", &self.lost),
            ("stuck", &self.stuck),
            ("phantom", &self.phantoms),
            ("out of order", &self.inversions),
            ("divergent", &self.divergent),
            ("stale receipts", &self.stale_receipts),
            ("settled twice", &self.settled_twice),
            ("misnumbered", &self.misnumbered),
        ]
    }

    /// Fails unless every committed intent is published, held or discarded, in order, and with at most so many duplicates.
    ///
    /// # Panics
    /// With the balance and examples.
    pub fn assert_clean(&self, duplicates_max: u64) {
        let clean = self.problems().iter().all(|(_, problem)| problem.count == 0);
        assert!(
            clean && self.duplicates <= duplicates_max,
            "at most {duplicates_max} duplicates, but {self}"
        );
    }

    /// As [`Account::assert_clean`], and nothing is held or discarded either.
    ///
    /// # Panics
    /// With the balance and examples.
    pub fn assert_all_published(&self, duplicates_max: u64) {
        self.assert_clean(duplicates_max);
        assert!(self.held == 0 && self.discarded == 0, "nothing set aside, but {self}");
        assert_eq!(self.records, self.committed + self.duplicates + self.replayed, "{self}");
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed {}, records {}, duplicates {}, replayed {}, held {}, discarded {}",
            self.committed, self.records, self.duplicates, self.replayed, self.held, self.discarded
        )?;
        for (name, problem) in self.problems().into_iter().filter(|(_, problem)| problem.count > 0) {
            write!(f, "\n{name} {}:", problem.count)?;
            problem.examples.iter().try_for_each(|example| write!(f, "\n  {example}"))?;
        }
        Ok(())
    }
}

/// Compares. `copies` may come in any order of topics and partitions, but ascending by offset within one.
#[must_use]
pub fn compare(truth: &Truth, copies: &[Copied]) -> Account {
    let mut account =
        Account { committed: truth.intents.len() as u64, records: copies.len() as u64, ..Account::default() };
    let by_id: HashMap<Uuid, &Intent> = truth.intents.iter().map(|intent| (intent.id, intent)).collect();
    let (firsts, replayed) = first_copies(&by_id, copies, &mut account);
    check_presence(truth, &firsts, &mut account);
    check_order(truth, &by_id, copies, &firsts, &mut account);
    for (replay, again) in &replayed {
        check_order(truth, &by_id, copies, again, &mut account);
        check_replayed(copies, (replay, again), &firsts, &mut account);
    }
    check_receipts(truth, copies, &firsts, &mut account);
    check_numbers(truth, &mut account);
    account
}

/// The first copy of each message, as an index into `copies`.
type Firsts = HashMap<Uuid, usize>;

/// The first copies, and those that each replay made.
fn first_copies(
    by_id: &HashMap<Uuid, &Intent>,
    copies: &[Copied],
    account: &mut Account,
) -> (Firsts, BTreeMap<Bytes, Firsts>) {
    let (mut firsts, mut replayed) = (Firsts::new(), BTreeMap::<Bytes, Firsts>::new());
    for (index, copy) in copies.iter().enumerate() {
        let Some(intent) = copy.id().and_then(|id| by_id.get(&id)) else {
            account.phantoms.add(|| format!("{:?} id {:?}", copy.place(), copy.id()));
            continue;
        };
        let as_written = copy.topic == intent.topic
            && copy.key.as_deref() == intent.key.as_ref().map(String::as_bytes)
            && copy.payload.as_deref() == intent.payload.as_deref();
        if !as_written {
            account.divergent.add(|| format!("seq {} at {:?} is not as written", intent.seq, copy.place()));
        }
        if let Some(replay) = copy.replay() {
            account.replayed += 1;
            replayed.entry(replay.clone()).or_default().entry(intent.id).or_insert(index);
            continue;
        }
        let Some(first) = firsts.get(&intent.id).map(|first| &copies[*first]) else {
            firsts.insert(intent.id, index);
            continue;
        };
        account.duplicates += 1;
        if first.headers != copy.headers {
            account
                .divergent
                .add(|| format!("seq {}: headers at {:?} and {:?}", intent.seq, first.place(), copy.place()));
        }
    }
    (firsts, replayed)
}

/// A replay repeats: each of its copies comes after the first of its message, and is the same but for one header.
fn check_replayed(
    copies: &[Copied],
    (replay, again): (&Bytes, &Firsts),
    firsts: &Firsts,
    account: &mut Account,
) {
    for (id, index) in again {
        let copy = &copies[*index];
        let Some(first) = firsts.get(id).map(|first| &copies[*first]) else {
            account.inversions.add(|| format!("{id} at {:?} by replay {replay:?} alone", copy.place()));
            continue;
        };
        if first.partition == copy.partition && first.offset > copy.offset {
            account
                .inversions
                .add(|| format!("{id} at {:?} by a replay before its first copy", copy.place()));
        }
        if !first.has_headers_of(copy) {
            account.divergent.add(|| format!("{id}: headers at {:?} and {:?}", first.place(), copy.place()));
        }
    }
}

fn check_presence(truth: &Truth, firsts: &Firsts, account: &mut Account) {
    for intent in truth.intents.iter().filter(|intent| !firsts.contains_key(&intent.id)) {
        if truth.held.contains(&intent.seq) {
            account.held += 1;
        } else if truth.discarded.contains(&intent.seq) {
            account.discarded += 1;
        } else {
            let problem =
                if truth.waiting.contains(&intent.seq) { &mut account.stuck } else { &mut account.lost };
            problem.add(|| format!("seq {} of {} key {:?}", intent.seq, intent.topic, intent.key));
        }
    }
}

fn check_order(
    truth: &Truth,
    by_id: &HashMap<Uuid, &Intent>,
    copies: &[Copied],
    firsts: &Firsts,
    account: &mut Account,
) {
    let mut order: Vec<(&Copied, &Intent)> =
        firsts.iter().filter_map(|(id, index)| Some((&copies[*index], *by_id.get(id)?))).collect();
    order.sort_unstable_by_key(|(copy, _)| (&copy.topic, copy.partition, copy.offset));
    let mut last: HashMap<(&str, &str), (&Copied, &Intent)> = HashMap::new();
    for (copy, intent) in order {
        let Some(key) = intent.key.as_ref().filter(|_| !truth.scheduled.contains(&intent.seq)) else {
            continue;
        };
        if let Some((earlier, before)) = last.insert((&copy.topic, key), (copy, intent)) {
            if earlier.partition != copy.partition {
                account
                    .inversions
                    .add(|| format!("key {key}: partitions {} and {}", earlier.partition, copy.partition));
            } else if before.seq > intent.seq {
                account.inversions.add(|| {
                    format!("key {key}: seq {} at {:?} after seq {}", intent.seq, copy.place(), before.seq)
                });
            }
        }
    }
}

fn check_receipts(truth: &Truth, copies: &[Copied], firsts: &Firsts, account: &mut Account) {
    let at: HashMap<(String, i32, i64), Option<Uuid>> =
        copies.iter().map(|copy| (copy.place(), copy.id())).collect();
    let by_seq: HashMap<i64, Uuid> = truth.intents.iter().map(|intent| (intent.seq, intent.id)).collect();
    let mut settled = HashSet::new();
    let by_replays = truth.replay_receipts.iter().map(|receipt| (receipt, true));
    for ((seq, topic, partition, offset), by_replay) in
        truth.receipts.iter().map(|receipt| (receipt, false)).chain(by_replays)
    {
        let found = at.get(&(topic.clone(), *partition, *offset)).copied().flatten();
        if found.is_none() || found != by_seq.get(seq).copied() {
            account.stale_receipts.add(|| format!("seq {seq} is not at {topic}/{partition}/{offset}"));
        }
        if !by_replay && !settled.insert(*seq) {
            account
                .settled_twice
                .add(|| format!("seq {seq}, the second time at {topic}/{partition}/{offset}"));
        }
    }
    for intent in truth.intents.iter().filter(|intent| firsts.contains_key(&intent.id)) {
        let owed = !truth.waiting.contains(&intent.seq)
            && !truth.held.contains(&intent.seq)
            && !truth.discarded.contains(&intent.seq);
        if owed && !settled.contains(&intent.seq) {
            account.stale_receipts.add(|| format!("seq {} is published and has no receipt", intent.seq));
        }
    }
}

/// Whether `seq` follows the application's own numbers: those of [`workload`](crate::workload), in the payload.
fn check_numbers(truth: &Truth, account: &mut Account) {
    let mut last: HashMap<(&str, &str), i64> = HashMap::new();
    for intent in &truth.intents {
        let (Some(key), Some(payload)) = (&intent.key, &intent.payload) else { continue };
        let Ok(payload) = serde_json::from_slice::<serde_json::Value>(payload) else { continue };
        let Some(n) = payload.get("n").and_then(serde_json::Value::as_i64) else { continue };
        if let Some(before) = last.insert((&intent.topic, key), n)
            && before >= n
        {
            account.misnumbered.add(|| format!("key {key}: {n} follows {before} at seq {}", intent.seq));
        }
    }
}

/// Reads the database and the topics to their ends and compares.
///
/// # Panics
/// If either does not answer, or a receipt cannot be read.
pub async fn account(database_url: &str, bootstrap: &str, topics: &[String]) -> Account {
    let mut connection = PgConnection::connect(database_url).await.expect("connect the checker");
    let truth = truth(&mut connection).await;
    let mut copies = Vec::new();
    for topic in topics {
        let read = kafka::read_all(bootstrap, topic).await;
        copies.extend(read.into_iter().map(|record| Copied {
            topic: topic.clone(),
            partition: record.partition,
            offset: record.offset,
            key: record.key,
            payload: record.payload,
            headers: record.headers.into_iter().collect(),
        }));
    }
    compare(&truth, &copies)
}

/// Reads what the database says.
///
/// # Panics
/// If it does not answer, or a receipt cannot be read.
pub async fn truth(connection: &mut PgConnection) -> Truth {
    type Row = (i64, Uuid, String, Option<String>, Option<Vec<u8>>, bool);
    let rows: Vec<Row> = sqlx::query_as(
        "select m.seq, m.id, m.topic, m.key, m.payload,
                m.seq > c.high or not (pg_visible_in_snapshot(m.xid, c.seen)
                  or coalesce(m.seq <= c.pos and pg_visible_in_snapshot(m.xid, c.until), false))
         from outbox.message m, outbox.cursor c order by m.seq",
    )
    .fetch_all(&mut *connection)
    .await
    .expect("read the intents");
    let held =
        seqs(connection, "select seq from outbox.held union all select seq from outbox.scheduled").await;
    let given_up = "select seq from outbox.held_action where kind in ('discard', 'cancel')";
    let discarded = seqs(connection, given_up).await;
    let scheduled = seqs(connection, "select seq from outbox.message where deliver_after is not null").await;
    let own = "select receipts from outbox.receipt where replay is null order by receipt";
    let receipts = places(connection, own).await;
    let by_replays = "select receipts from outbox.receipt where replay is not null order by receipt";
    let replay_receipts = places(connection, by_replays).await;
    let waiting = rows.iter().filter(|row| row.5).map(|row| row.0).collect();
    let intents = rows
        .into_iter()
        .map(|(seq, id, topic, key, payload, _)| Intent { seq, id, topic, key, payload })
        .collect();
    Truth { intents, held, discarded, receipts, replay_receipts, scheduled, waiting }
}

async fn places(connection: &mut PgConnection, statement: &'static str) -> Vec<(i64, String, i32, i64)> {
    let packed: Vec<Vec<u8>> =
        sqlx::query_scalar(statement).fetch_all(connection).await.expect("read the receipts");
    let entries = packed.iter().flat_map(|packed| receipts::decode(packed).expect("receipts can be read"));
    entries.map(|entry| (entry.seq.0, entry.topic, entry.receipt.partition, entry.receipt.offset)).collect()
}

async fn seqs(connection: &mut PgConnection, statement: &'static str) -> BTreeSet<i64> {
    let seqs: Vec<i64> = sqlx::query_scalar(statement).fetch_all(connection).await.expect("read seqs");
    seqs.into_iter().collect()
}

/// Waits until the settled cursor has dealt with every committed intent. Held ones count as dealt with.
///
/// # Panics
/// If it has not by the deadline.
pub async fn dealt_with(database_url: &str, deadline: Duration) {
    let waits = async || {
        let mut connection = PgConnection::connect(database_url).await.ok()?;
        let waits: bool = sqlx::query_scalar(
            "select exists (select from outbox.message m, outbox.cursor c
                            where m.seq > c.high or not pg_visible_in_snapshot(m.xid, c.seen))",
        )
        .fetch_one(&mut connection)
        .await
        .ok()?;
        (!waits).then_some(())
    };
    eventually("every committed intent is dealt with", deadline, waits).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(seq: i64, key: &str) -> Intent {
        let payload = Some(format!("{{\"n\":{seq}}}").into_bytes());
        let id = Uuid::from_u128(u128::try_from(seq).unwrap());
        Intent { seq, id, topic: "t".to_owned(), key: Some(key.to_owned()), payload }
    }

    fn copy(of: &Intent, offset: i64) -> Copied {
        Copied {
            topic: of.topic.clone(),
            partition: 0,
            offset,
            key: of.key.clone().map(Bytes::from),
            payload: of.payload.clone().map(Bytes::from),
            headers: BTreeMap::from([("id".to_owned(), Some(Bytes::from(of.id.to_string())))]),
        }
    }

    /// Two intents of one key, both published and settled.
    fn clean() -> (Truth, Vec<Copied>) {
        let intents = vec![intent(1, "a"), intent(2, "a")];
        let copies = vec![copy(&intents[0], 0), copy(&intents[1], 1)];
        let receipts = vec![(1, "t".to_owned(), 0, 0), (2, "t".to_owned(), 0, 1)];
        (Truth { intents, receipts, ..Truth::default() }, copies)
    }

    #[test]
    fn what_is_published_once_and_in_order_is_clean() {
        let (truth, copies) = clean();
        compare(&truth, &copies).assert_all_published(0);
    }

    #[test]
    fn each_kind_of_damage_is_seen_as_what_it_is() {
        let (truth, mut copies) = clean();
        copies.pop();
        let account = compare(&truth, &copies);
        assert_eq!((account.lost.count, account.stale_receipts.count), (1, 1), "{account}");

        let (mut truth, mut copies) = clean();
        copies.pop();
        truth.receipts.pop();
        truth.waiting.insert(2);
        assert_eq!(compare(&truth, &copies).stuck.count, 1);

        let (truth, mut copies) = clean();
        copies.push(copy(&intent(9, "a"), 2));
        assert_eq!(compare(&truth, &copies).phantoms.count, 1);

        let (mut truth, _) = clean();
        let copies = vec![copy(&truth.intents[1], 0), copy(&truth.intents[0], 1)];
        truth.receipts = vec![(2, "t".to_owned(), 0, 0), (1, "t".to_owned(), 0, 1)];
        assert_eq!(compare(&truth, &copies).inversions.count, 1);

        let (mut truth, copies) = clean();
        truth.receipts[1].3 = 7;
        assert_eq!(compare(&truth, &copies).stale_receipts.count, 1);

        let (mut truth, copies) = clean();
        truth.receipts.push((2, "t".to_owned(), 0, 1));
        assert_eq!(compare(&truth, &copies).settled_twice.count, 1);

        let (truth, mut copies) = clean();
        copies[1].payload = None;
        assert_eq!(compare(&truth, &copies).divergent.count, 1);

        let (mut truth, copies) = clean();
        truth.intents[1].payload = Some(b"{\"n\":1}".to_vec());
        assert_eq!(compare(&truth, &copies).misnumbered.count, 1);
    }

    #[test]
    fn a_repeated_copy_after_later_messages_is_a_duplicate_and_no_inversion() {
        let (truth, mut copies) = clean();
        copies.push(copy(&truth.intents[0], 2));
        let account = compare(&truth, &copies);
        account.assert_clean(1);
        assert_eq!(account.duplicates, 1);
    }
}
