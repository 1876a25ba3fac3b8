//! What every outbox promises, whatever database it is in.
//!
//! A case is an async function named after its claim; it gets a [`Harness`] around a fresh outbox. [`Operated`] adds what
//! operators ask, and what only a real database can show. [`outbox_conformance!`](crate::outbox_conformance) and
//! [`operator_conformance!`](crate::operator_conformance) turn the cases into tests:
//!
//! ```ignore
//! mod sqlite {
//!     outboxd_testkit::outbox_conformance!(SqliteHarness::create());
//!     outboxd_testkit::operator_conformance!(SqliteHarness::create());
//! }
//! ```
//!
//! Cases say nothing of sessions, locks or statements: those are tested beside each adapter.

use std::future::Future;
use std::time::Duration;

use outboxd_core::{Cursor, Hold, HoldReason, HoldState, KeyHash, Message, Page, Receipt, ReceiptEntry, Seq};
use outboxd_engine::{
    Operate, OperateReplays, Outbox, PageLimit, ReadPage, ReleaseQuery, ReplayChange, Settlement, Start,
    Term, Verify,
};
use uuid::Uuid;

pub mod leading;

pub mod reading;

pub mod settling;

pub mod holding;

pub mod scheduling;

pub mod counting;

pub mod purging;

pub mod sweeping;

pub mod operating;

pub mod deciding;

pub mod proving;

pub mod replaying;

/// What the application writes.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    /// Topic.
    pub topic: String,
    /// Key.
    pub key: Option<String>,
    /// Payload.
    pub payload: Option<Vec<u8>>,
    /// Headers; the order is the database's.
    pub headers: Vec<(String, String)>,
    /// Explicit partition.
    pub partition: Option<i32>,
    /// Media type.
    pub content_type: Option<String>,
    /// Correlation id; `None`: the database makes one.
    pub correlation_id: Option<String>,
    /// Causation id.
    pub causation_id: Option<String>,
    /// Trace context.
    pub traceparent: Option<String>,
    /// Trace state.
    pub tracestate: Option<String>,
    /// Not to be delivered before so long after it is written.
    pub deliver_in: Option<Duration>,
}

impl Intent {
    /// An intent with a key.
    #[must_use]
    pub fn keyed(topic: &str, key: &str, payload: impl Into<Vec<u8>>) -> Self {
        Self { topic: topic.into(), key: Some(key.into()), payload: Some(payload.into()), ..Self::default() }
    }

    /// An intent with a key that is due so long after it is written.
    #[must_use]
    pub fn scheduled(topic: &str, key: &str, deliver_in: Duration) -> Self {
        Self { deliver_in: Some(deliver_in), ..Self::keyed(topic, key, "later") }
    }

    /// `count` intents of topic "orders", each with a key and payload of its own.
    #[must_use]
    pub fn several(count: usize) -> Vec<Self> {
        (0..count).map(|nth| Self::keyed("orders", &format!("key-{nth}"), format!("payload-{nth}"))).collect()
    }
}

/// An outbox under test, as the application, the operator and the passing of time see it. Its methods panic when the
/// database does not do as it is told.
pub trait Harness {
    /// The adapter.
    type Outbox: Outbox;
    /// A transaction that was begun and has inserted.
    type Open;

    /// Another relay of the same outbox.
    fn relay(&self) -> Self::Outbox;

    /// Inserts in one transaction and commits. Returns the places, in the order of the intents.
    fn commit(&self, intents: &[Intent]) -> impl Future<Output = Vec<Seq>>;

    /// Inserts in one transaction and rolls it back.
    fn roll_back(&self, intents: &[Intent]) -> impl Future<Output = ()>;

    /// Inserts in a transaction that stays open while others commit; `None` if the database has a single writer.
    fn open(&self, intents: &[Intent]) -> impl Future<Output = Option<(Self::Open, Vec<Seq>)>>;

    /// Commits an open transaction.
    fn commit_open(&self, open: Self::Open) -> impl Future<Output = ()>;

    /// Makes everything that is stored older: intents, receipts, holds and when they are due. Leadership is left alone.
    fn age(&self, by: Duration) -> impl Future<Output = ()>;

    /// Does to the cursor row what another leader does when it begins, while the sessions of the present one live on.
    fn fence(&self) -> impl Future<Output = ()>;

    /// The process of this relay ends without a word, and its lead lapses.
    fn vanish(&self, relay: Self::Outbox) -> impl Future<Output = ()>;

    /// An operator makes a held message due.
    fn retry(&self, seq: Seq) -> impl Future<Output = ()>;

    /// An operator discards a held message.
    fn discard(&self, seq: Seq) -> impl Future<Output = ()>;

    /// Inserts an intent with the id of another one, a while later, and commits. Returns its place.
    fn commit_again(&self, of: Seq, intent: &Intent) -> impl Future<Output = Seq>;

    /// The application takes a scheduled intent back.
    fn cancel(&self, seq: Seq) -> impl Future<Output = ()>;

    /// An operator asks for everything that is dispatched now to be published again. Its number.
    fn replay(&self) -> impl Future<Output = i64>;

    /// An operator decides about a replay.
    fn change_replay(&self, replay: i64, change: ReplayChange) -> impl Future<Output = ()>;

    /// The places of the messages whose time has not come, ascending.
    fn scheduled(&self) -> impl Future<Output = Vec<Seq>>;

    /// The stored cursor.
    fn cursor(&self) -> impl Future<Output = Cursor>;

    /// Every stored receipt, unpacked, ascending by `seq`.
    fn receipts(&self) -> impl Future<Output = Vec<ReceiptEntry>>;

    /// Every held message as (place, state, reason, attempts), ascending by place.
    fn held(&self) -> impl Future<Output = Vec<(Seq, HoldState, HoldReason, u32)>>;

    /// The places of all intents in the table, ascending.
    fn intents(&self) -> impl Future<Output = Vec<Seq>>;
}

/// A line of the audit: (kind, message id, who, why).
pub type Audited = (String, Uuid, String, String);

/// An outbox that operators can ask, in a real database.
pub trait Operated: Harness {
    /// The adapter's other half.
    type Operator: Operate + Verify + OperateReplays;

    /// An operator of the same outbox.
    fn operator(&self) -> Self::Operator;

    /// The audit, oldest first.
    fn audit(&self) -> impl Future<Output = Vec<Audited>>;

    /// What was done to the outbox as a whole, as (kind, details), oldest first.
    fn operations(&self) -> impl Future<Output = Vec<(String, String)>>;

    /// How many messages have an edit.
    fn edits(&self) -> impl Future<Output = i64>;
}

/// A limit that no case reaches by bytes.
pub(crate) fn messages(messages: u32) -> PageLimit {
    PageLimit { messages, bytes: 1 << 30 }
}

/// A relay that leads, and where it starts.
pub(crate) async fn leading<H: Harness>(harness: &H) -> (H::Outbox, Term, Start) {
    let relay = harness.relay();
    let (term, start) = lead(&relay).await;
    (relay, term, start)
}

pub(crate) async fn lead<O: Outbox>(relay: &O) -> (Term, Start) {
    let term = soon("the relay leads", async || relay.lead().await.expect("lead")).await;
    let start = relay.start(term).await.expect("start");
    (term, start)
}

/// Looks until there is something. A database may notice a moment later that a session was closed.
pub(crate) async fn soon<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    const WITHIN: Duration = Duration::from_secs(10);
    let end = tokio::time::Instant::now() + WITHIN;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < end, "waited {WITHIN:?} until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn read<O: Outbox>(relay: &O, from: &Cursor, limit: PageLimit) -> ReadPage {
    let page = relay.read(from, limit).await.expect("read a page");
    if let Some(mark) = page.mark {
        relay.durable(mark).await.expect("what was read becomes durable");
    }
    page
}

/// Reads pages until one is empty. Returns the messages and the cursor behind them.
pub(crate) async fn read_all<O: Outbox>(
    relay: &O,
    from: &Cursor,
    limit: PageLimit,
) -> (Vec<Message>, Cursor) {
    let (mut messages, mut from) = (Vec::new(), from.clone());
    for _ in 0..1_000 {
        let ReadPage { page, more, .. } = read(relay, &from, limit).await;
        from = page.cursor_after();
        if page.messages.is_empty() && from.catch_up.is_none() {
            assert!(!more, "an empty page says that there is more");
            return (messages, from);
        }
        messages.extend(page.messages);
    }
    panic!("1,000 pages and still no empty one: {} messages", messages.len());
}

pub(crate) fn seqs(messages: &[Message]) -> Vec<Seq> {
    messages.iter().map(|message| message.seq).collect()
}

/// Receipts for messages, at offsets that tell them apart.
pub(crate) fn receipts(messages: &[Message]) -> Vec<ReceiptEntry> {
    messages
        .iter()
        .map(|message| ReceiptEntry {
            seq: message.seq,
            topic: message.topic.clone(),
            receipt: Receipt { partition: i32::from(message.seq.0 % 2 == 0), offset: 1_000 + message.seq.0 },
            acknowledged_ms_before: 7,
        })
        .collect()
}

/// A settlement that moves the cursor and says nothing of any message.
pub(crate) fn moving(term: Term, before: &Cursor, after: &Cursor) -> Settlement {
    Settlement {
        term,
        before: before.clone(),
        after: after.clone(),
        receipts: Vec::new(),
        receipts_out_of_order: Vec::new(),
        holds: Vec::new(),
        released: Vec::new(),
        trial: None,
        proves_term: true,
        scheduled: Vec::new(),
    }
}

/// A settlement of a whole page: every message was acknowledged.
pub(crate) fn dispatching(term: Term, before: &Cursor, page: &Page) -> Settlement {
    let (late, rest) = page.messages.split_at(page.late);
    Settlement {
        receipts: receipts(rest),
        receipts_out_of_order: receipts(late),
        ..moving(term, before, &page.cursor_after())
    }
}

/// A message to be set aside, due at once if it is due by itself.
pub(crate) fn hold(message: &Message, state: HoldState, attempts: u32) -> Hold {
    let reason = match state {
        HoldState::Retry => HoldReason::UnknownError,
        HoldState::Topic => HoldReason::TopicUnknown,
        HoldState::Behind => HoldReason::Behind,
        HoldState::Parked => HoldReason::InvalidRecord,
    };
    Hold {
        seq: message.seq,
        topic: message.topic.clone(),
        key_hash: KeyHash::of(message),
        state,
        reason,
        error: (state != HoldState::Behind).then(|| format!("refused after {attempts} attempts")),
        attempts,
        due_in: Duration::ZERO,
        dead_letter: None,
    }
}

/// A leader that has set aside one message for each (topic, key, state, attempts).
pub(crate) struct Holding<O> {
    pub(crate) relay: O,
    pub(crate) term: Term,
    pub(crate) cursor: Cursor,
    pub(crate) messages: Vec<Message>,
}

impl<O: Outbox> Holding<O> {
    pub(crate) async fn new<H: Harness<Outbox = O>>(
        harness: &H,
        held: &[(&str, &str, HoldState, u32)],
    ) -> Self {
        let intents: Vec<Intent> =
            held.iter().map(|(topic, key, ..)| Intent::keyed(topic, key, "held")).collect();
        harness.commit(&intents).await;
        let (relay, term, start) = leading(harness).await;
        let (messages, cursor) = read_all(&relay, &start.cursor, messages(1_000)).await;
        let holds = messages
            .iter()
            .zip(held)
            .map(|(message, (_, _, state, attempts))| hold(message, *state, *attempts))
            .collect();
        relay
            .settle(Settlement { holds, ..moving(term, &start.cursor, &cursor) })
            .await
            .expect("settle the holds");
        Self { relay, term, cursor, messages }
    }

    /// A settlement that leaves the cursor where it is.
    pub(crate) async fn settle(&self, holds: Vec<Hold>, released: Vec<Seq>) {
        self.relay
            .settle(Settlement { holds, released, ..moving(self.term, &self.cursor, &self.cursor) })
            .await
            .expect("settle held messages");
    }

    /// Indices of the messages that may be published now.
    pub(crate) async fn due(&self, topics_held: &[&str], unblocked: &[KeyHash]) -> Vec<usize> {
        let query = ReleaseQuery {
            term: self.term,
            topics_held: topics_held.iter().map(|topic| (*topic).to_owned()).collect(),
            unblocked: unblocked.to_vec(),
            limit: messages(1_000),
        };
        let release = self.relay.due(&query, i64::MAX).await.expect("read held messages");
        release.due.iter().map(|due| self.index(due.message.seq)).collect()
    }

    pub(crate) fn index(&self, seq: Seq) -> usize {
        self.messages.iter().position(|message| message.seq == seq).expect("one of the held messages")
    }

    pub(crate) fn key(&self, index: usize) -> KeyHash {
        KeyHash::of(&self.messages[index]).expect("it has a key")
    }
}

/// Makes a test of every case that needs only the loop's port. The expression makes a harness around a fresh outbox.
#[macro_export]
macro_rules! outbox_conformance {
    ($make:expr) => {
        $crate::conformance_cases! { $make;
            leading::a_second_relay_does_not_lead,
            leading::stepping_down_lets_another_relay_lead_at_once,
            leading::a_relay_that_vanishes_is_replaced,
            leading::every_lead_has_a_higher_epoch_and_another_nonce,
            leading::a_fenced_term_cannot_settle,
            leading::a_fenced_term_cannot_be_kept,
            leading::a_fenced_term_cannot_start_again,
            leading::a_term_that_was_given_back_cannot_settle,
            leading::a_new_leader_starts_from_the_settled_cursor_and_the_held_keys,
            leading::terms_that_end_without_a_word_are_counted,
            leading::an_attempt_that_was_started_is_noted_until_it_is_finished,
            reading::pages_are_read_in_order_and_nothing_is_left_out,
            reading::a_page_ends_at_its_limit_of_messages,
            reading::a_page_ends_at_its_limit_of_bytes,
            reading::a_page_holds_one_message_however_large,
            reading::an_outbox_without_messages_gives_an_empty_page,
            reading::rolled_back_intents_never_appear,
            reading::a_page_can_be_read_again_from_the_same_cursor,
            reading::a_message_that_was_overtaken_comes_as_a_late_one,
            reading::a_catch_up_reads_every_late_message_once,
            reading::a_catch_up_that_was_settled_half_way_resumes_there,
            settling::settling_moves_the_cursor_and_stores_the_receipts,
            settling::settling_inside_a_page_resumes_exactly_there,
            settling::settling_from_another_cursor_is_refused_and_stores_nothing,
            settling::receipts_of_released_messages_are_stored_without_moving_the_cursor,
            settling::settlements_follow_one_another,
            holding::a_hold_is_counted_for_its_key,
            holding::a_hold_that_fails_again_is_updated,
            holding::a_released_message_is_held_no_longer,
            holding::a_retry_is_due_when_its_time_has_come,
            holding::messages_of_a_topic_that_cannot_be_written_to_stay,
            holding::a_parked_message_keeps_its_followers_back,
            holding::a_follower_that_waits_keeps_later_ones_back,
            holding::a_retry_that_is_not_due_keeps_its_followers_back,
            holding::an_attempt_charged_keeps_the_followers_back,
            holding::a_key_whose_messages_are_all_behind_is_unblocked,
            holding::an_unblocked_key_goes_in_order_whatever_its_messages_wait_for,
            holding::followers_of_an_unblocked_key_go_in_order,
            holding::keys_do_not_wait_for_one_another,
            holding::messages_without_a_key_wait_for_nobody,
            holding::a_message_that_is_skipped_lets_its_followers_go,
            holding::a_skipped_message_that_is_retried_has_no_order,
            holding::due_messages_come_in_order_and_within_the_limit,
            holding::a_retry_by_an_operator_makes_a_parked_message_due,
            holding::a_discard_by_an_operator_lets_the_next_of_the_key_go,
            holding::a_discarded_follower_leaves_its_head_parked,
            holding::the_counts_come_again_after_an_operator_has_acted,
            scheduling::a_scheduled_message_waits_for_its_time_and_blocks_nobody,
            scheduling::a_message_whose_time_has_come_goes_behind_what_is_held_of_its_key,
            scheduling::a_message_whose_time_has_come_before_one_that_is_tried_again_keeps_neither_waiting,
            scheduling::an_id_that_is_used_again_after_a_cancellation_is_delivered,
            scheduling::those_of_a_key_that_are_due_together_go_in_order,
            scheduling::a_cancelled_message_is_not_delivered_and_the_audit_says_so,
            scheduling::a_fenced_term_makes_nothing_due,
            scheduling::scheduled_messages_are_counted_and_age_from_their_time_on,
            scheduling::purge_leaves_what_is_scheduled_alone,
            counting::the_backlog_is_what_is_neither_dispatched_nor_held,
            counting::the_backlog_is_as_old_as_its_oldest_message,
            counting::a_held_message_keeps_the_backlog_old,
            counting::a_standby_can_measure_the_backlog,
            purging::purge_deletes_what_is_dispatched_and_old,
            purging::purge_never_deletes_what_is_undelivered,
            purging::purge_never_deletes_what_is_held,
            purging::purge_never_deletes_a_late_message_below_the_cursor,
            purging::purge_goes_in_small_steps,
            purging::new_messages_are_read_after_everything_was_purged,
            sweeping::a_sweep_finds_nothing_where_every_message_has_its_verdict,
            sweeping::receipts_of_released_messages_count,
            sweeping::a_message_that_the_cursor_passed_without_a_verdict_is_held_and_due,
            sweeping::a_sweep_goes_in_small_turns_and_begins_again,
            sweeping::a_fenced_term_cannot_sweep,
            sweeping::messages_whose_receipts_may_be_purged_are_passed_over,
            sweeping::the_kafka_cluster_is_remembered_once,
            replaying::without_a_replay_there_is_nothing_to_publish_again,
            replaying::a_replay_gives_out_what_was_dispatched_and_nothing_else,
            replaying::progress_of_a_replay_is_written_once_and_outlives_the_leader,
            replaying::a_replay_that_is_paused_meanwhile_stays_paused,
            replaying::replays_come_one_after_the_other,
            replaying::relays_that_get_nowhere_with_a_replay_are_counted,
        }
    };
}

/// Makes a test of every case that needs an operator or a real database.
#[macro_export]
macro_rules! operator_conformance {
    ($make:expr) => {
        $crate::conformance_cases! { $make;
            reading::a_message_is_read_exactly_as_it_was_written,
            reading::headers_count_towards_a_pages_bytes,
            deciding::held_messages_are_found_by_key_age_and_pattern,
            deciding::retrying_many_makes_the_heads_due_and_leaves_their_followers,
            deciding::discarding_many_begins_with_the_newest_and_frees_what_is_left_of_a_key,
            deciding::an_edit_is_applied_when_the_message_is_published,
            deciding::what_waits_for_its_topic_does_so_after_a_retry_and_can_be_sent_elsewhere,
            deciding::an_edit_of_the_topic_moves_the_message_to_another_key,
            deciding::an_edit_that_would_break_something_is_refused,
            deciding::an_edit_is_kept_as_long_as_its_intent,
            deciding::the_audit_is_listed_newest_first_and_filtered,
            replaying::a_replay_gives_messages_out_as_they_were_published,
            replaying::every_condition_of_a_replay_must_be_met,
            replaying::no_question_about_a_replay_looks_at_more_than_it_may,
            replaying::a_search_for_dispatched_messages_goes_in_small_steps,
            replaying::receipts_of_replays_do_not_confuse_the_sweep,
            replaying::an_operator_sees_replays_and_changes_those_that_are_open,
            replaying::a_replay_that_is_stopped_goes_on_with_its_message_or_without_it,
            replaying::what_is_purged_meanwhile_is_not_given_out,
            operating::an_operator_sees_what_is_held_and_why,
            operating::the_topics_in_use_are_listed_once_and_in_order,
            operating::held_messages_can_be_filtered,
            operating::an_operator_sees_where_the_copy_of_a_parked_message_is,
            operating::the_last_ten_failures_are_kept,
            operating::what_an_operator_did_is_kept_in_the_audit,
            operating::a_follower_is_never_retried_before_its_head,
            operating::what_is_not_held_cannot_be_retried_or_discarded,
            operating::a_discarded_message_stays_discarded,
            operating::the_status_tells_leader_cursor_and_backlog,
            operating::nothing_is_wrong_with_a_fresh_outbox,
            proving::where_messages_landed_is_told_place_by_place,
            proving::receipts_out_of_order_are_found_from_every_place,
            proving::what_was_published_is_compared_by_its_hashes,
            proving::a_time_is_found_among_the_messages,
            proving::ids_are_found_in_a_window_of_places,
            proving::the_history_tells_terms_that_ended_without_a_word,
        }
    };
}

/// Makes a test of each case.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($make:expr; $($module:ident::$case:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let harness = $make.await;
                $crate::conformance::$module::$case(&harness).await;
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_a_list() {
        let lists = include_str!("conformance.rs");
        let modules = [
            ("leading", include_str!("conformance/leading.rs")),
            ("reading", include_str!("conformance/reading.rs")),
            ("settling", include_str!("conformance/settling.rs")),
            ("holding", include_str!("conformance/holding.rs")),
            ("scheduling", include_str!("conformance/scheduling.rs")),
            ("counting", include_str!("conformance/counting.rs")),
            ("purging", include_str!("conformance/purging.rs")),
            ("operating", include_str!("conformance/operating.rs")),
            ("sweeping", include_str!("conformance/sweeping.rs")),
            ("deciding", include_str!("conformance/deciding.rs")),
            ("proving", include_str!("conformance/proving.rs")),
            ("replaying", include_str!("conformance/replaying.rs")),
        ];
        for (module, source) in modules {
            // A case is generic over its harness; whatever else is public is a tool.
            let names = source.split("pub async fn ").skip(1).filter_map(|rest| rest.split('(').next());
            let cases = names.filter_map(|name| Some(name.split_once('<')?.0));
            for case in cases {
                assert!(
                    lists.contains(&format!("            {module}::{case},")),
                    "{module}::{case} is in no list"
                );
            }
        }
    }
}
