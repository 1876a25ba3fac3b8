//! Records that no receipt names: are they copies of messages, and why are they there?
//!
//! Each partition is read without a hole from its first receipt on; up to its *frontier* every record was looked at once. A record
//! that the page's receipts do not name may be named by a later page's, so it is kept until then or until the end; a receipt
//! beyond the frontier (of a message that was held, or late) is kept until the frontier passes it. What is left is looked up by
//! its id, and by what the outbox remembers of terms, rewinds and failed attempts.

use std::collections::{BTreeMap, HashMap, HashSet};

use outboxd_core::Seq;
use outboxd_core::record::REPLAY_HEADER;
use outboxd_engine::{History, Landing, Verify};
use outboxd_kafka::{ReadRecord, Span};
use time::OffsetDateTime;
use uuid::Uuid;

use super::report::{Copy, Report};
use super::{Place, VerifyError, spans};

/// So many records of others between two receipts are read, so that no copy among them is missed; more are passed over and counted.
const GAP_MAX: i64 = 100_000;

/// Records that may be left open before they are looked up; each lookup may walk over the table.
const OPEN_MAX: usize = 100_000;

/// Ids are looked for among so many places at a time.
const WINDOW: i64 = 200_000;

/// A header that a dead letter has.
const DEAD_LETTER: &str = "outbox-dead-letter-reason";

/// A record that no receipt has named yet.
#[derive(Clone, Copy)]
struct Stray {
    id: Uuid,
    published: Option<OffsetDateTime>,
}

/// A topic that is read.
#[derive(Default)]
struct Topic {
    frontier: HashMap<i32, i64>,
    /// Where the records begin that this page looks at first.
    fresh_from: HashMap<i32, i64>,
    /// Places beyond the frontier that receipts have named.
    ahead: HashSet<Place>,
    strays: HashMap<Place, Stray>,
}

/// What is known of records that no receipt names.
#[derive(Default)]
pub(super) struct Copies {
    topics: BTreeMap<String, Topic>,
    open: usize,
    explained: BTreeMap<&'static str, u64>,
    foreign: u64,
    passed_over: u64,
}

impl Copies {
    pub(super) fn is_full(&self) -> bool {
        self.open >= OPEN_MAX
    }

    /// What is to be read so that all these places are, and everything between them and what was read before. Sorted places.
    pub(super) fn plan(&mut self, name: &str, places: &[Place]) -> Vec<Span> {
        let topic = self.topics.entry(name.to_owned()).or_default();
        self.open -= places.iter().filter(|place| topic.strays.remove(place).is_some()).count();
        let mut planned = Vec::new();
        for places in places.chunk_by(|one, next| one.0 == next.0) {
            let mut of_partition = spans(places, GAP_MAX);
            let (Some(first), Some(partition)) = (of_partition.first_mut(), places.first().map(|of| of.0))
            else {
                continue;
            };
            let before = topic.frontier.get(&partition).copied();
            let mut frontier = before.unwrap_or(first.first - 1);
            topic.fresh_from.insert(partition, frontier);
            if first.first > frontier + 1 {
                let gap = first.first - frontier - 1;
                if gap <= GAP_MAX {
                    first.first = frontier + 1;
                } else {
                    // Nothing of this page is near: others have written a great deal since.
                    self.passed_over += gap.unsigned_abs();
                    frontier = first.last;
                }
            }
            for span in &of_partition {
                if span.first <= frontier.saturating_add(GAP_MAX) {
                    frontier = frontier.max(span.last);
                }
            }
            topic.frontier.insert(partition, frontier);
            topic.ahead.extend(places.iter().filter(|(_, offset)| *offset > frontier));
            planned.extend(of_partition);
        }
        if topic.ahead.len() > OPEN_MAX {
            // They become strays when they are met, and are looked up by id.
            topic.ahead.clear();
        }
        planned
    }

    /// A record that the page does not expect.
    pub(super) fn saw(&mut self, name: &str, record: &ReadRecord) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let place = (record.partition, record.offset);
        let was_seen = topic.fresh_from.get(&record.partition).is_none_or(|from| record.offset <= *from);
        // Beyond the frontier is an island around a message that was published out of order: its turn comes.
        let is_beyond = topic.frontier.get(&record.partition).is_none_or(|to| record.offset > *to);
        if was_seen || is_beyond || topic.ahead.remove(&place) {
            return;
        }
        let has = |name: &str| record.headers.iter().any(|(header, _)| header == name);
        if has(REPLAY_HEADER) {
            *self.explained.entry("replay").or_default() += 1;
        } else if has(DEAD_LETTER) {
            *self.explained.entry("dead_letter").or_default() += 1;
        } else if let Some(id) = record.header("id").and_then(|id| id.parse().ok()) {
            let published = record
                .timestamp_ms
                .and_then(|ms| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok());
            topic.strays.insert(place, Stray { id, published });
            self.open += 1;
        } else {
            self.foreign += 1;
        }
    }

    /// Decides about everything that is open.
    pub(super) async fn resolve(
        &mut self,
        outbox: &impl Verify,
        report: &mut Report,
    ) -> Result<(), VerifyError> {
        let open: Vec<(String, Place, Stray)> = self
            .topics
            .iter_mut()
            .flat_map(|(name, topic)| {
                topic.strays.drain().map(|(place, stray)| (name.clone(), place, stray)).collect::<Vec<_>>()
            })
            .collect();
        self.open = 0;
        let known = known(outbox, &open).await?;
        let seqs: Vec<Seq> = known.values().map(|(seq, _)| *seq).collect();
        let tried: HashSet<Seq> = outbox.tried_again(&seqs).await?.into_iter().collect();
        let history = outbox.history().await?;
        for (topic, place, stray) in open {
            let Some((seq, landings)) = known.get(&stray.id) else {
                self.foreign += 1;
                continue;
            };
            let is_named = |landing: &Landing| {
                landing.entry.topic == topic
                    && (landing.entry.receipt.partition, landing.entry.receipt.offset) == place
            };
            if landings.iter().any(is_named) {
                continue;
            }
            let (partition, offset) = place;
            match explanation(*seq, &stray, landings, &history, &tried) {
                Some(why) => *self.explained.entry(why).or_default() += 1,
                None => report.unexpected_copy(&Copy {
                    topic: &topic,
                    partition,
                    offset,
                    id: stray.id,
                    seq: *seq,
                    named: landings.iter().find(|landing| landing.replay.is_none()),
                }),
            }
        }
        report.copies(&self.explained, self.foreign, self.passed_over);
        Ok(())
    }
}

/// Why the copy is there; `None`: nothing explains it.
fn explanation(
    seq: Seq,
    stray: &Stray,
    landings: &[Landing],
    history: &History,
    tried: &HashSet<Seq>,
) -> Option<&'static str> {
    let Some(settled) = landings.iter().find(|landing| landing.replay.is_none()) else {
        return Some("not_settled");
    };
    if tried.contains(&seq) {
        return Some("failed_attempt");
    }
    history.explains(seq, stray.published?, settled.epoch)
}

/// Those ids that are messages, with their places in the outbox and in Kafka.
async fn known(
    outbox: &impl Verify,
    open: &[(String, Place, Stray)],
) -> Result<HashMap<Uuid, (Seq, Vec<Landing>)>, VerifyError> {
    let mut known = HashMap::new();
    let ids: Vec<Uuid> =
        open.iter().map(|(.., stray)| stray.id).collect::<HashSet<_>>().into_iter().collect();
    let Some((first, last)) = outbox.ends().await? else { return Ok(known) };
    if ids.is_empty() {
        return Ok(known);
    }
    let mut above = first.0 - 1;
    let mut found = Vec::new();
    while above < last.0 {
        let upto = above.saturating_add(WINDOW).min(last.0);
        found.extend(outbox.named(&ids, Seq(above), Seq(upto)).await?);
        above = upto;
        // A hole in the sequence is jumped.
        if let Some((next, _)) = outbox.inserted_at(Seq(above.saturating_add(1))).await? {
            above = above.max(next.0 - 1);
        }
    }
    found.sort_unstable_by_key(|(_, seq)| *seq);
    let seqs: Vec<Seq> = found.iter().map(|(_, seq)| *seq).collect();
    let landings = outbox.landings(&seqs).await?;
    for (id, seq) in found {
        let from = landings.partition_point(|landing| landing.entry.seq < seq);
        let to = landings.partition_point(|landing| landing.entry.seq <= seq);
        known.insert(id, (seq, landings[from..to].to_vec()));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, id: u128) -> ReadRecord {
        ReadRecord {
            topic: "orders".into(),
            partition: 0,
            offset,
            timestamp_ms: Some(0),
            key: None,
            headers: vec![("id".into(), Uuid::from_u128(id).to_string().into())],
            payload: None,
        }
    }

    fn span(first: i64, last: i64) -> Span {
        Span { partition: 0, first, last }
    }

    #[test]
    fn a_partition_is_read_without_a_hole_and_each_record_is_looked_at_once() {
        let mut copies = Copies::default();
        assert_eq!(copies.plan("orders", &[(0, 10), (0, 12)]), [span(10, 12)]);
        copies.saw("orders", &record(11, 1));
        assert_eq!(copies.open, 1);
        // From where the last page ended.
        assert_eq!(copies.plan("orders", &[(0, 20)]), [span(13, 20)]);
        copies.saw("orders", &record(14, 2));
        // Read again because a message of this page lies there: seen before.
        assert_eq!(copies.plan("orders", &[(0, 11), (0, 25)]), [span(11, 25)]);
        assert_eq!(copies.open, 1, "a receipt names 11 after all");
        copies.saw("orders", &record(14, 2));
        assert_eq!(copies.open, 1);
    }

    #[test]
    fn a_receipt_far_ahead_names_its_record_when_the_frontier_comes_there() {
        let mut copies = Copies::default();
        let far = 10 + 2 * GAP_MAX;
        assert_eq!(copies.plan("orders", &[(0, 10), (0, far)]), [span(10, 10), span(far, far)]);
        copies.plan("orders", &[(0, 10 + GAP_MAX)]);
        copies.plan("orders", &[(0, far + 1)]);
        copies.saw("orders", &record(far, 1));
        copies.saw("orders", &record(far - 1, 2));
        assert_eq!(copies.open, 1);
    }

    #[test]
    fn what_lies_between_two_distant_receipts_is_passed_over_and_counted() {
        let mut copies = Copies::default();
        copies.plan("orders", &[(0, 0)]);
        assert_eq!(copies.plan("orders", &[(0, 2 * GAP_MAX)]), [span(2 * GAP_MAX, 2 * GAP_MAX)]);
        assert_eq!(copies.passed_over, 2 * GAP_MAX.unsigned_abs() - 1);
        assert_eq!(copies.plan("orders", &[(0, 2 * GAP_MAX + 5)]), [span(2 * GAP_MAX + 1, 2 * GAP_MAX + 5)]);
    }
}
