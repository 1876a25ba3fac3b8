//! Asking for the right facts, in the right order.

use std::collections::BTreeMap;

use outboxd_core::Seq;
use time::Duration;
use uuid::Uuid;

use super::{By, Claim, Contents, Fact, Intent, Landed, Place, ReplayAsked, Standing, Trace, Transactions};
use crate::outbox::OutboxError;
use crate::receipts::{Landing, Receipts};

/// Causes and consequences are followed so far.
const FOLLOWED_MAX: usize = 10;
/// A table of at most so many bytes is walked without a word: it takes no longer than an index would be worth.
const SMALL_BYTES: u64 = 64 * 1024 * 1024;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct TraceQuery {
    /// In words: "correlation id req-8f2e".
    pub asked: String,
    /// Ways to look; what any of them finds is meant.
    pub by: Vec<By>,
    /// At most so many intents.
    pub limit: u32,
    /// The record at this place was read, and named the message that `by` looks for.
    pub place: Option<Place>,
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// In words.
    pub asked: String,
    /// The outbox.
    pub standing: Standing,
    /// Intents, ascending, and whether each was asked for.
    pub intents: Vec<(Intent, bool)>,
    /// There are more than the limit.
    pub more: bool,
    /// What is known of them.
    pub facts: Vec<Fact>,
    /// Where they landed.
    pub landed: Vec<Landed>,
    /// The replays among that.
    pub replays: Vec<ReplayAsked>,
    /// The transaction that was asked for, and those that are open if the database shows them; asked if there is reason to.
    pub transactions: Option<(Option<u64>, Option<Transactions>)>,
    /// The record that was asked for.
    pub place: Option<Place>,
    /// What was not looked for.
    pub notes: Vec<String>,
    /// What consumers said.
    pub claims: Vec<Claim>,
    /// Keys, headers and payloads.
    pub contents: Vec<Contents>,
}

impl Gathered {
    /// The places of the intents that were asked for.
    #[must_use]
    pub fn asked_seqs(&self) -> Vec<Seq> {
        self.intents.iter().filter(|(_, asked)| *asked).map(|(intent, _)| intent.seq).collect()
    }

    /// The ids of all intents.
    #[must_use]
    pub fn ids(&self) -> Vec<Uuid> {
        self.intents.iter().map(|(intent, _)| intent.id).collect()
    }
}

/// Intents as they are found.
struct Search<'a, T> {
    outbox: &'a T,
    standing: Standing,
    limit: usize,
    found: BTreeMap<Seq, (Intent, bool)>,
    more: bool,
    notes: Vec<String>,
    told: &'a (dyn Fn(&str) + Send + Sync),
}

impl<T: Trace> Search<'_, T> {
    fn is_quick(&self, by: &By) -> bool {
        by.index().is_none_or(|index| self.standing.indexes.iter().any(|there| there == index))
            || self.standing.table_bytes <= SMALL_BYTES
    }

    /// Adds what is found; how much of it was new.
    async fn find(&mut self, by: &By, asked: bool) -> Result<Vec<Intent>, OutboxError> {
        let room = self.limit.saturating_sub(self.found.len());
        let limit = u32::try_from(self.limit + 1).unwrap_or(u32::MAX);
        let intents = self.outbox.trace_find(by, limit).await?;
        let mut new: Vec<Intent> =
            intents.into_iter().filter(|intent| !self.found.contains_key(&intent.seq)).collect();
        self.more |= new.len() > room;
        keep(by, &mut new, room);
        self.found.extend(new.iter().map(|intent| (intent.seq, (intent.clone(), asked))));
        Ok(new)
    }

    /// Looks in each way that was asked for. One that walks the table is passed over once something was found.
    async fn look(&mut self, ways: &[By]) -> Result<(), OutboxError> {
        for by in ways {
            if !self.is_quick(by) {
                let what = by.what();
                if !self.found.is_empty() {
                    self.notes.push(format!(
                        "whether it is also a {what} was not looked for: that walks the table; \
                         `outboxd migrate trace-indexes` builds the index"
                    ));
                    continue;
                }
                (self.told)(&format!(
                    "no index on {what}: walking over {} MB of intents; `outboxd migrate trace-indexes` builds it",
                    self.standing.table_bytes / (1024 * 1024)
                ));
            }
            self.find(by, true).await?;
        }
        Ok(())
    }

    /// Follows what the messages caused, and what caused them.
    async fn follow(&mut self) -> Result<(), OutboxError> {
        let begun: Vec<Intent> = self.found.values().map(|(intent, _)| intent.clone()).collect();
        let mut causes = begun.clone();
        let mut consequences = begun;
        for _ in 0..FOLLOWED_MAX {
            let by = By::Ids(self.unknown_causes(&causes));
            if by == By::Ids(Vec::new()) || !self.may_follow(&by, "what caused it") {
                break;
            }
            causes = self.find(&by, false).await?;
            // What else the cause has caused is another story, unless it has the same correlation id.
        }
        for _ in 0..FOLLOWED_MAX {
            let by = By::Causation(consequences.iter().map(|intent| intent.id.to_string()).collect());
            if consequences.is_empty() || self.more || !self.may_follow(&by, "what it caused") {
                break;
            }
            consequences = self.find(&by, false).await?;
        }
        Ok(())
    }

    /// The messages that caused these and are not there yet.
    fn unknown_causes(&self, of: &[Intent]) -> Vec<Uuid> {
        let known: Vec<Uuid> = self.found.values().map(|(intent, _)| intent.id).collect();
        let causes = of.iter().filter_map(|intent| Uuid::try_parse(intent.causation_id.as_deref()?).ok());
        let mut causes: Vec<Uuid> = causes.filter(|cause| !known.contains(cause)).collect();
        causes.sort_unstable();
        causes.dedup();
        causes
    }

    fn may_follow(&mut self, by: &By, what: &str) -> bool {
        let quick = self.is_quick(by);
        if !quick {
            self.notes.push(format!(
                "{what} was not looked for: that walks the table; `outboxd migrate trace-indexes` builds the index"
            ));
        }
        quick
    }
}

/// Keeps as many as there is room for. Of a key the last are meant, of anything else the first.
pub(super) fn keep(by: &By, found: &mut Vec<Intent>, room: usize) {
    match by {
        By::Key { .. } => drop(found.drain(..found.len().saturating_sub(room))),
        By::Ids(_)
        | By::Correlation(_)
        | By::Causation(_)
        | By::TraceId(_)
        | By::Idempotency(_)
        | By::Xid(_) => found.truncate(room),
    }
}

fn placed(landing: Landing) -> Landed {
    let Landing { entry, replay, epoch, relay, settled_at, receipt } = landing;
    Landed {
        seq: entry.seq,
        topic: entry.topic,
        partition: entry.receipt.partition,
        offset: entry.receipt.offset,
        acknowledged_at: settled_at - Duration::milliseconds(i64::from(entry.acknowledged_ms_before)),
        settled_at,
        receipt,
        epoch,
        relay,
        replay,
    }
}

/// Gathers everything that is known of what is asked for. `told` is called before something that may take long.
///
/// # Errors
/// [`OutboxError`].
pub async fn gather<T: Trace + Receipts>(
    outbox: &T,
    query: &TraceQuery,
    told: &(dyn Fn(&str) + Send + Sync),
) -> Result<Gathered, OutboxError> {
    let mut search = Search {
        outbox,
        standing: outbox.trace_standing().await?,
        limit: usize::try_from(query.limit.max(1)).unwrap_or(usize::MAX),
        found: BTreeMap::new(),
        more: false,
        notes: Vec::new(),
        told,
    };
    search.look(&query.by).await?;
    let nothing = search.found.is_empty();
    if !nothing {
        search.follow().await?;
    }
    let Search { standing, found, more, notes, .. } = search;
    let seqs: Vec<Seq> = found.keys().copied().collect();
    // Before the receipts: what is settled in between has a receipt, and is not missed.
    let facts = if nothing { Vec::new() } else { outbox.trace_facts(&seqs).await? };
    let landed: Vec<Landed> = outbox.landings(&seqs).await?.into_iter().map(placed).collect();
    let mut replays: Vec<i64> = landed.iter().filter_map(|landed| landed.replay).collect();
    replays.sort_unstable();
    replays.dedup();
    let replays = if replays.is_empty() { Vec::new() } else { outbox.trace_replays(&replays).await? };
    let xid = query.by.iter().find_map(|by| if let By::Xid(xid) = by { Some(*xid) } else { None });
    let transactions =
        if nothing || xid.is_some() { Some((xid, outbox.trace_transactions(xid).await?)) } else { None };
    Ok(Gathered {
        asked: query.asked.clone(),
        standing,
        intents: found.into_values().collect(),
        more,
        facts,
        landed,
        replays,
        transactions,
        place: query.place.clone(),
        notes,
        claims: Vec::new(),
        contents: Vec::new(),
    })
}
