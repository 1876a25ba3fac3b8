//! Whether it all adds up: a pure function of what the database, the broker and the consumer say.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

/// A place in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// Topic.
    pub(crate) topic: String,
    /// Partition.
    pub(crate) partition: i32,
    /// Offset.
    pub(crate) offset: i64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// An intent that the database has.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    /// Its place in the outbox.
    pub(crate) seq: i64,
    /// Its id.
    pub(crate) id: Uuid,
    /// Its topic.
    pub(crate) topic: String,
    /// Its key.
    pub(crate) key: String,
}

/// A record that the consumer has read.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// Where it was.
    pub(crate) place: Place,
    /// The id in its header.
    pub(crate) id: Uuid,
}

/// What the three of them say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Database: transactions with a trace in the shop's own table.
    pub(crate) orders: u64,
    /// Database: intents.
    pub(crate) intents: Vec<Intent>,
    /// Database: where each message landed, by `seq`.
    pub(crate) receipts: HashMap<i64, Place>,
    /// Database: messages still held.
    pub(crate) held: u64,
    /// Database: parked messages that an operator has retried.
    pub(crate) retried: u64,
    /// Shop: ids of intents that it wrote and took back.
    pub(crate) rolled_back: Vec<Uuid>,
    /// Broker: records ever written to its partitions.
    pub(crate) written: u64,
    /// Broker: records that it no longer has.
    pub(crate) dropped: u64,
    /// Consumer: every record that it read.
    pub(crate) deliveries: Vec<Delivery>,
    /// Consumer: the id of every side effect that it had.
    pub(crate) effects: Vec<Uuid>,
}

/// The sums, and what does not add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Orders committed.
    pub(crate) orders: u64,
    /// Intents committed.
    pub(crate) committed: usize,
    /// Intents rolled back.
    pub(crate) rolled_back: usize,
    /// Records in Kafka.
    pub(crate) published: u64,
    /// Records whose id had been read before.
    pub(crate) duplicates: usize,
    /// Side effects.
    pub(crate) effects: usize,
    /// Messages that were parked and retried.
    pub(crate) parked: u64,
    /// Committed intents without a side effect.
    pub(crate) lost: usize,
    /// Everything that is not as promised; empty if all is well.
    pub(crate) problems: Vec<String>,
}

/// Adds up.
pub(crate) fn tally(facts: &Facts) -> Tally {
    let committed: HashSet<Uuid> = facts.intents.iter().map(|intent| intent.id).collect();
    let mut first_copies: HashMap<Uuid, &Place> = HashMap::new();
    for delivery in &facts.deliveries {
        let first = first_copies.entry(delivery.id).or_insert(&delivery.place);
        if delivery.place < **first {
            *first = &delivery.place;
        }
    }
    let effected: HashSet<Uuid> = facts.effects.iter().copied().collect();
    let lost = committed.difference(&effected).count();
    let mut problems = Vec::new();
    let mut claim = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    claim(!facts.intents.is_empty(), "the database has no intents at all".to_owned());
    claim(committed.len() == facts.intents.len(), "two intents in the database share an id".to_owned());
    claim(lost == 0, format!("{lost} committed intents had no effect"));
    let unread = committed.iter().filter(|id| !first_copies.contains_key(id)).count();
    claim(unread == 0, format!("{unread} committed intents never reached the consumer"));
    let invented = first_copies.keys().filter(|id| !committed.contains(id)).count();
    claim(invented == 0, format!("{invented} ids in Kafka are not in the database"));
    let undone = facts.rolled_back.iter().filter(|id| first_copies.contains_key(id)).count();
    claim(undone == 0, format!("{undone} rolled-back intents were published"));
    let kept = facts.rolled_back.iter().filter(|id| committed.contains(id)).count();
    claim(kept == 0, format!("{kept} rolled-back intents are in the database"));
    let twice = facts.effects.len() - effected.len();
    claim(twice == 0, format!("{twice} effects happened more than once: the consumer did not deduplicate"));
    let baseless = effected.difference(&committed).count();
    claim(baseless == 0, format!("{baseless} effects have no committed intent"));
    claim(
        as_u64(facts.deliveries.len()) == facts.written,
        format!("the broker wrote {} records, the consumer read {}", facts.written, facts.deliveries.len()),
    );
    claim(facts.dropped == 0, format!("the broker has dropped {} records", facts.dropped));
    claim(facts.held == 0, format!("{} messages are still held", facts.held));
    receipts(facts, &mut claim);
    let overtaken = overtaken(&facts.intents, &first_copies);
    claim(overtaken == 0, format!("{overtaken} messages were overtaken by a later one of their key"));
    Tally {
        orders: facts.orders,
        committed: committed.len(),
        rolled_back: facts.rolled_back.len(),
        published: facts.written,
        duplicates: facts.deliveries.len() - first_copies.len(),
        effects: facts.effects.len(),
        parked: facts.retried,
        lost,
        problems,
    }
}

/// Every intent has a receipt, and where the receipt points its record is.
fn receipts(facts: &Facts, claim: &mut impl FnMut(bool, String)) {
    let at: HashMap<&Place, Uuid> =
        facts.deliveries.iter().map(|delivery| (&delivery.place, delivery.id)).collect();
    let without = facts.intents.iter().filter(|intent| !facts.receipts.contains_key(&intent.seq)).count();
    claim(without == 0, format!("{without} committed intents have no receipt"));
    let wrong = facts.intents.iter().filter(|intent| {
        facts.receipts.get(&intent.seq).is_some_and(|place| at.get(place) != Some(&intent.id))
    });
    let wrong = wrong.count();
    claim(wrong == 0, format!("{wrong} receipts point to another record"));
}

/// How many first copies of a key stand before one that was written earlier.
fn overtaken(intents: &[Intent], first_copies: &HashMap<Uuid, &Place>) -> usize {
    let mut by_seq: Vec<&Intent> = intents.iter().collect();
    by_seq.sort_unstable_by_key(|intent| intent.seq);
    let mut last: HashMap<(&str, &str), &Place> = HashMap::new();
    let mut overtaken = 0;
    for intent in by_seq {
        let Some(place) = first_copies.get(&intent.id) else { continue };
        let last = last.entry((&intent.topic, &intent.key)).or_insert(place);
        if *place < *last {
            overtaken += 1;
        } else {
            *last = place;
        }
    }
    overtaken
}

pub(crate) fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A day on which everything went as promised: 40 messages of 4 keys, every fourth delivered twice.
    fn good() -> Facts {
        let mut facts =
            Facts { orders: 20, retried: 1, rolled_back: vec![Uuid::from_u128(9_999)], ..Facts::default() };
        let mut offset = 0;
        for nth in 1..=40_u32 {
            let id = Uuid::from_u128(u128::from(nth));
            let intent =
                Intent { seq: nth.into(), id, topic: "orders".into(), key: format!("order-{}", nth % 4) };
            for copy in 0..if nth % 4 == 0 { 2 } else { 1 } {
                let place = Place { topic: "orders".into(), partition: 0, offset };
                offset += 1;
                if copy == 0 {
                    facts.receipts.insert(intent.seq, place.clone());
                }
                facts.deliveries.push(Delivery { place, id });
            }
            facts.effects.push(id);
            facts.intents.push(intent);
        }
        facts.written = as_u64(facts.deliveries.len());
        facts
    }

    #[test]
    fn a_good_day_adds_up() {
        let tally = tally(&good());
        assert_eq!(tally.problems, Vec::<String>::new());
        assert_eq!((tally.committed, tally.published, tally.duplicates), (40, 50, 10));
        assert_eq!((tally.effects, tally.parked, tally.lost, tally.rolled_back), (40, 1, 0, 1));
    }

    #[test]
    fn a_consumer_that_does_not_deduplicate_fails_the_tally() {
        let mut facts = good();
        facts.effects = facts.deliveries.iter().map(|delivery| delivery.id).collect();
        assert_eq!(
            tally(&facts).problems,
            ["10 effects happened more than once: the consumer did not deduplicate"]
        );
    }

    #[test]
    fn nothing_can_go_wrong_unnoticed() {
        type Mutation = (&'static str, fn(&mut Facts));
        let mutations: [Mutation; 14] = [
            ("an empty day", |facts| *facts = Facts::default()),
            ("a lost message", |facts| {
                let lost = facts.effects.remove(3);
                facts.deliveries.retain(|delivery| delivery.id != lost);
                facts.written -= 2;
            }),
            ("a lost effect", |facts| facts.effects.truncate(39)),
            ("an effect without a cause", |facts| facts.effects.push(Uuid::from_u128(77))),
            ("an invented message", |facts| {
                facts.deliveries[0].id = Uuid::from_u128(78);
            }),
            ("a rolled-back intent that is published", |facts| {
                facts.rolled_back.push(facts.intents[0].id);
            }),
            ("a rolled-back intent in the database", |facts| {
                let mut intent = facts.intents[0].clone();
                intent.id = facts.rolled_back[0];
                facts.intents.push(intent);
            }),
            ("an id that two intents share", |facts| facts.intents.push(facts.intents[0].clone())),
            ("a record that the consumer did not read", |facts| facts.written += 1),
            ("a broker that dropped records", |facts| facts.dropped = 1),
            ("a message that is still held", |facts| facts.held = 1),
            ("a missing receipt", |facts| drop(facts.receipts.remove(&5))),
            ("a receipt that points elsewhere", |facts| {
                let elsewhere = facts.receipts[&6].clone();
                facts.receipts.insert(5, elsewhere);
            }),
            ("a message that was overtaken", |facts| {
                let (one, other) = (facts.deliveries[0].id, facts.deliveries[5].id);
                assert_eq!(facts.intents[0].key, facts.intents[4].key);
                facts.deliveries[0].id = other;
                facts.deliveries[5].id = one;
                let first = facts.receipts[&1].clone();
                let later = facts.receipts.insert(5, first).unwrap();
                facts.receipts.insert(1, later);
            }),
        ];
        for (what, mutate) in mutations {
            let mut facts = good();
            mutate(&mut facts);
            assert!(!tally(&facts).problems.is_empty(), "{what} goes unnoticed");
        }
    }
}
