//! A replay gives out what was dispatched and nothing else, and knows how far it is whoever leads.

use std::time::Duration;

use outboxd_core::HoldState::{Parked, Retry};
use outboxd_core::{Message, ReceiptEntry, Routes, Seq, TopicPattern};
use outboxd_engine::{
    AuditedAction, BulkAction, HeldFilter, HeldSpan, Operate, OperateReplays, Outbox, OutboxError,
    ReplayChange, ReplayChunk, ReplayError, ReplayFilter, ReplayProgress, ReplayQuery, ReplayRequest,
    ReplaySpan, ReplayState, ReplayStop, ReplayTurn, Replays, Settlement, Term, Upkeep as _,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Harness, Intent, Operated, dispatching, hold, leading, messages, moving, read, read_all, receipts, seqs,
};

fn action() -> AuditedAction {
    AuditedAction { who: "ops".into(), why: "test".into() }
}

fn query(term: Term, going_on: Option<(i64, Seq)>, limit: u32) -> ReplayQuery {
    ReplayQuery { term, going_on, limit: messages(limit), rows: 1_000 }
}

async fn chunk<O: Replays>(relay: &O, query: ReplayQuery) -> Option<ReplayChunk> {
    relay.replay_chunk(&query).await.expect("read the messages of a replay")
}

/// Everything that it gives out, from where it stands, in chunks of so many.
async fn given_out<O: Replays>(relay: &O, term: Term, limit: u32) -> Vec<Message> {
    let (mut given, mut going_on) = (Vec::new(), None);
    for _ in 0..1_000 {
        let ReplayChunk { task, messages, reached } =
            chunk(relay, query(term, going_on, limit)).await.expect("it runs");
        assert!(messages.len() <= usize::try_from(limit).expect("few"));
        assert!(going_on.is_none_or(|(_, from)| from < reached), "it gets on");
        given.extend(messages);
        if reached >= task.last {
            assert_eq!(reached, task.last);
            return given;
        }
        going_on = Some((task.replay, reached));
    }
    panic!("it never ends");
}

fn progress(term: Term, replay: i64, before: Seq, copies: &[Message], turn: ReplayTurn) -> ReplayProgress {
    let receipts: Vec<ReceiptEntry> = receipts(copies);
    let after = copies.last().map_or(before, |message| message.seq);
    ReplayProgress { term, replay, before, after, receipts, turn }
}

/// Asks for everything that is dispatched now to be published again. Its number.
///
/// # Panics
/// If nothing is dispatched, or the outbox does not do as it is told.
pub async fn everything_again(operator: &impl OperateReplays) -> i64 {
    asked(operator, ReplayFilter::default(), false).await
}

async fn requested<H: Operated>(harness: &H, filter: ReplayFilter, named: bool) -> i64 {
    asked(&harness.operator(), filter, named).await
}

async fn asked(operator: &impl OperateReplays, filter: ReplayFilter, named: bool) -> i64 {
    let span = ReplaySpan { above: Seq(0), up_to: None, rows: 10_000 };
    let found = operator.replay_find(&filter, span).await.expect("look for messages");
    assert!(found.is_last() && !found.seqs.is_empty(), "{found:?}");
    let request = ReplayRequest {
        filter,
        first: found.seqs[0],
        last: found.seqs[found.seqs.len() - 1],
        total: found.seqs.len() as u64,
        seqs: named.then_some(found.seqs),
        to_topic: None,
        rate: Some(7),
    };
    operator.replay_start(&request, &action()).await.expect("ask for a replay")
}

/// Commits and dispatches. Returns what was dispatched.
async fn dispatch<H: Harness>(harness: &H, intents: &[Intent]) -> (H::Outbox, Term, Vec<Message>) {
    let written = harness.commit(intents).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(1_000)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    let dispatched: Vec<Message> =
        page.messages.into_iter().filter(|message| written.contains(&message.seq)).collect();
    (relay, term, dispatched)
}

/// A relay that has nothing of the kind to do.
pub async fn without_a_replay_there_is_nothing_to_publish_again<H: Harness>(harness: &H) {
    let (relay, term, _) = dispatch(harness, &Intent::several(3)).await;
    assert!(chunk(&relay, query(term, None, 10)).await.is_none());
    assert!(chunk(&relay, query(term, Some((1, Seq(0))), 10)).await.is_none());
    let unknown = progress(term, 1, Seq(0), &[], ReplayTurn::GoesOn);
    assert_eq!(relay.replay_progress(&unknown).await.expect("write"), None);
    harness.fence().await;
    let refused = relay.replay_chunk(&query(term, None, 10)).await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
    let refused = relay.replay_progress(&unknown).await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
}

/// Late, held, discarded, scheduled and unread messages have yet to be published for the first time.
pub async fn a_replay_gives_out_what_was_dispatched_and_nothing_else<H: Harness>(harness: &H) {
    let open = harness.open(&Intent::several(2)).await;
    harness.commit(&Intent::several(8)).await;
    harness.commit(&[Intent::scheduled("orders", "later", Duration::from_secs(3_600))]).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    let mut settlement = dispatching(term, &start.cursor, &page);
    let (held, discarded) = (&page.messages[2], &page.messages[5]);
    let later = &page.messages[8];
    settlement.holds = vec![hold(held, Parked, 3), hold(discarded, Retry, 1)];
    settlement.scheduled =
        vec![outboxd_core::Scheduled { seq: later.seq, topic: later.topic.clone(), key_hash: None }];
    let set_aside = [held.seq, discarded.seq, later.seq];
    settlement.receipts.retain(|entry| !set_aside.contains(&entry.seq));
    let settled = settlement.after.clone();
    relay.settle(settlement).await.expect("settle");
    harness.discard(discarded.seq).await;
    if let Some((open, _)) = open {
        harness.commit_open(open).await;
    }
    harness.commit(&Intent::several(2)).await;
    let expected: Vec<Seq> =
        seqs(&page.messages).into_iter().filter(|seq| !set_aside.contains(seq)).collect();
    let replay = harness.replay().await;
    assert_eq!(seqs(&given_out(&relay, term, 4).await), expected);
    harness.change_replay(replay, ReplayChange::Cancel).await;
    assert!(chunk(&relay, query(term, None, 100)).await.is_none());
    // Once they are dispatched, they are meant.
    let (more, after) = read_all(&relay, &settled, messages(100)).await;
    let after = Settlement { receipts: receipts(&more), ..moving(term, &settled, &after) };
    relay.settle(after).await.expect("settle");
    harness.replay().await;
    let all = given_out(&relay, term, 3).await;
    assert_eq!(all.len(), expected.len() + more.len());
    assert!(all.is_sorted_by_key(|message| message.seq));
}

/// Byte for byte, with what an operator had edited before.
pub async fn a_replay_gives_messages_out_as_they_were_published<H: Operated>(harness: &H) {
    let intent = Intent {
        headers: vec![("tenant".into(), "42".into())],
        partition: Some(1),
        content_type: Some("text/plain".into()),
        correlation_id: Some("c-1".into()),
        causation_id: Some("cause".into()),
        traceparent: Some("00-11111111111111111111111111111111-2222222222222222-01".into()),
        tracestate: Some("a=b".into()),
        ..Intent::keyed("orders", "k", b"payload".to_vec())
    };
    harness.commit(&[intent, Intent::keyed("orders", "k", "edited")]).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    let mut settlement = dispatching(term, &start.cursor, &page);
    settlement.receipts.truncate(1);
    settlement.holds = vec![hold(&page.messages[1], Parked, 1)];
    let settled = settlement.after.clone();
    relay.settle(settlement).await.expect("settle");
    let edit = outboxd_engine::HeldEdit {
        topic: Some("elsewhere".into()),
        retry: true,
        ..outboxd_engine::HeldEdit::default()
    };
    let named = page.messages[1].id.into();
    harness.operator().held_edit(named, &edit, &action()).await.expect("edit");
    let released = Settlement {
        receipts_out_of_order: receipts(&page.messages[1..]),
        released: vec![page.messages[1].seq],
        ..moving(term, &settled, &settled)
    };
    relay.settle(released).await.expect("settle");
    requested(harness, ReplayFilter::default(), false).await;
    let given = given_out(&relay, term, 10).await;
    let same = |message: &Message| Message { age: Duration::ZERO, ..message.clone() };
    assert_eq!(same(&given[0]), same(&page.messages[0]));
    let edited = Message { topic: "elsewhere".into(), ..page.messages[1].clone() };
    assert_eq!(same(&given[1]), same(&edited));
}

/// Ids, correlation id, topic, key and time; and each combination.
pub async fn every_condition_of_a_replay_must_be_met<H: Operated>(harness: &H) {
    let with = |topic: &str, key: &str, correlation: &str| Intent {
        correlation_id: Some(correlation.into()),
        ..Intent::keyed(topic, key, "x")
    };
    let (relay, term, all) = dispatch(
        harness,
        &[
            with("orders", "a", "c-1"),
            with("orders_eu", "a", "c-1"),
            with("orders", "b", "c-2"),
            with("ordersXeu", "a", "c-2"),
            with("payments", "a", "c-3"),
        ],
    )
    .await;
    let topic = |pattern: &str| Some(pattern.parse::<TopicPattern>().expect("a pattern"));
    let filter = ReplayFilter::default;
    let now = OffsetDateTime::now_utc();
    let hour = Duration::from_secs(3_600);
    let cases: Vec<(ReplayFilter, &[usize])> = vec![
        (ReplayFilter { ids: vec![all[1].id, all[3].id, Uuid::from_u128(9)], ..filter() }, &[1, 3]),
        (ReplayFilter { correlation_id: Some("c-1".into()), ..filter() }, &[0, 1]),
        (ReplayFilter { topic: topic("orders"), ..filter() }, &[0, 2]),
        (ReplayFilter { topic: topic("orders_*"), ..filter() }, &[1]),
        (ReplayFilter { topic: topic("orders*"), key: Some("a".into()), ..filter() }, &[0, 1, 3]),
        (
            ReplayFilter {
                topic: topic("*"),
                correlation_id: Some("c-2".into()),
                key: Some("b".into()),
                ..filter()
            },
            &[2],
        ),
        (ReplayFilter { from: Some(now - hour), before: Some(now + hour), ..filter() }, &[0, 1, 2, 3, 4]),
        (ReplayFilter { from: Some(all[2].created_at), topic: topic("p*"), ..filter() }, &[4]),
    ];
    for (filter, expected) in cases {
        let replay = requested(harness, filter.clone(), false).await;
        let expected: Vec<Seq> = expected.iter().map(|nth| all[*nth].seq).collect();
        if filter.ids.is_empty() {
            assert_eq!(seqs(&given_out(&relay, term, 1).await), expected, "{filter:?}");
        }
        harness.operator().replay_change(replay, ReplayChange::Cancel, &action()).await.expect("cancel");
        let replay = requested(harness, filter.clone(), true).await;
        assert_eq!(seqs(&given_out(&relay, term, 1).await), expected, "{filter:?}, named");
        harness.operator().replay_change(replay, ReplayChange::Cancel, &action()).await.expect("cancel");
    }
    for nothing in [
        ReplayFilter { before: Some(now - hour), ..filter() },
        ReplayFilter { from: Some(now + hour), ..filter() },
        ReplayFilter { key: Some("z".into()), ..filter() },
    ] {
        let span = ReplaySpan { above: Seq(0), up_to: None, rows: 100 };
        let found = harness.operator().replay_find(&nothing, span).await.expect("look");
        assert!(found.seqs.is_empty() && found.is_last() && found.looked_at == 5, "{found:?}");
    }
}

/// However many it names or walks over, and whether or not they are meant.
pub async fn no_question_about_a_replay_looks_at_more_than_it_may<H: Operated>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(10)).await;
    for named in [true, false] {
        let replay = requested(harness, ReplayFilter::default(), named).await;
        let (mut going_on, mut given) = (None, Vec::new());
        for nth in [2, 5, 8, 9] {
            let next = chunk(&relay, ReplayQuery { rows: 3, ..query(term, going_on, 100) }).await;
            let ReplayChunk { messages, reached, .. } = next.expect("it runs");
            assert_eq!(reached, all[nth].seq, "named: {named}");
            given.extend(messages);
            going_on = Some((replay, reached));
        }
        assert_eq!(seqs(&given), seqs(&all), "named: {named}");
        harness.operator().replay_change(replay, ReplayChange::Cancel, &action()).await.expect("cancel");
    }
}

/// No step of a search reads more than it may, and none is left out.
pub async fn a_search_for_dispatched_messages_goes_in_small_steps<H: Operated>(harness: &H) {
    let (_, _, all) = dispatch(harness, &Intent::several(10)).await;
    let operator = harness.operator();
    let (mut span, mut found, mut steps) =
        (ReplaySpan { above: Seq(0), up_to: None, rows: 4 }, Vec::new(), 0);
    loop {
        let step = operator.replay_find(&ReplayFilter::default(), span).await.expect("look");
        assert!(step.looked_at <= 4);
        found.extend(step.seqs.iter().copied());
        steps += 1;
        if step.is_last() {
            break;
        }
        span = ReplaySpan { above: step.reached, up_to: Some(step.up_to), ..span };
    }
    assert_eq!((found, steps), (seqs(&all), 3));
    let sample = operator.replay_sample(&[all[3].seq, all[1].seq]).await.expect("show");
    let shown: Vec<_> = sample.iter().map(|sample| (sample.seq, sample.id, sample.topic.as_str())).collect();
    assert_eq!(shown, [(all[1].seq, all[1].id, "orders"), (all[3].seq, all[3].id, "orders")]);
    assert_eq!(sample[0].payload_bytes, Some(9));
}

/// Compared and swapped: who does not know how far it is writes nothing.
pub async fn progress_of_a_replay_is_written_once_and_outlives_the_leader<H: Harness>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(6)).await;
    let replay = harness.replay().await;
    let from = chunk(&relay, query(term, None, 2)).await.expect("it runs").task.pos;
    let first = progress(term, replay, from, &all[..2], ReplayTurn::GoesOn);
    assert_eq!(relay.replay_progress(&first).await.expect("write"), Some(ReplayState::Running));
    assert_eq!(relay.replay_progress(&first).await.expect("write"), None, "it stands elsewhere now");
    relay.step_down().await;

    let (relay, term, _) = leading(harness).await;
    let goes_on = chunk(&relay, query(term, None, 2)).await.expect("it runs");
    assert_eq!((goes_on.task.pos, seqs(&goes_on.messages)), (all[1].seq, seqs(&all[2..4])));
    let rest = progress(term, replay, all[1].seq, &all[2..], ReplayTurn::Done);
    assert_eq!(relay.replay_progress(&rest).await.expect("write"), Some(ReplayState::Done));
    assert!(chunk(&relay, query(term, None, 2)).await.is_none());
    // The copies are no messages that were stranded.
    let swept = relay.sweep(term, 100, &Routes::default()).await.expect("sweep");
    assert_eq!((swept.stranded, swept.lap_ended), (Vec::new(), true));
}

/// Whatever number of replays has published the messages again, far more than there are messages.
pub async fn receipts_of_replays_do_not_confuse_the_sweep<H: Operated>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(8)).await;
    for _ in 0..12 {
        let replay = requested(harness, ReplayFilter::default(), true).await;
        let mut from = chunk(&relay, query(term, None, 1)).await.expect("it runs").task.pos;
        for copy in &all {
            let turn = if copy.seq == all[7].seq { ReplayTurn::Done } else { ReplayTurn::GoesOn };
            let one = progress(term, replay, from, std::slice::from_ref(copy), turn);
            relay.replay_progress(&one).await.expect("write");
            from = copy.seq;
        }
    }
    for _ in 0..20 {
        let swept = relay.sweep(term, 1, &Routes::default()).await.expect("sweep");
        assert_eq!(swept.stranded, []);
    }
    assert_eq!(harness.held().await, []);
}

/// What was published before it is written down; where it stands is what the operator said.
pub async fn a_replay_that_is_paused_meanwhile_stays_paused<H: Harness>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(4)).await;
    let replay = harness.replay().await;
    let from = chunk(&relay, query(term, None, 4)).await.expect("it runs").task.pos;
    harness.change_replay(replay, ReplayChange::Pause).await;
    assert!(chunk(&relay, query(term, Some((replay, from)), 4)).await.is_none());
    let all_of_it = progress(term, replay, from, &all, ReplayTurn::Done);
    assert_eq!(relay.replay_progress(&all_of_it).await.expect("write"), Some(ReplayState::Paused));
    assert_eq!(relay.backlog().await.expect("measure").replays, [(ReplayState::Paused, 1)]);
    harness.change_replay(replay, ReplayChange::Resume).await;
    let rest = chunk(&relay, query(term, None, 4)).await.expect("it runs");
    assert_eq!((rest.messages.len(), rest.reached), (0, all[3].seq));
}

/// The oldest of those that run, and the one that is worked on until it is over.
pub async fn replays_come_one_after_the_other<H: Harness>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(4)).await;
    let (first, second) = (harness.replay().await, harness.replay().await);
    harness.change_replay(first, ReplayChange::Pause).await;
    let begun = chunk(&relay, query(term, None, 2)).await.expect("it runs");
    assert_eq!(begun.task.replay, second);
    harness.change_replay(first, ReplayChange::Resume).await;
    let goes_on = chunk(&relay, query(term, Some((second, begun.reached)), 2)).await.expect("it runs");
    assert_eq!((goes_on.task.replay, seqs(&goes_on.messages)), (second, seqs(&all[2..])));
    assert_eq!(chunk(&relay, query(term, None, 2)).await.expect("it runs").task.replay, first);
    assert_eq!(relay.backlog().await.expect("measure").replays, [(ReplayState::Running, 2)]);
}

/// Who asked, why, for which, and how far it is; and only what makes sense is done about it.
pub async fn an_operator_sees_replays_and_changes_those_that_are_open<H: Operated>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(4)).await;
    let operator = harness.operator();
    let replay = requested(harness, ReplayFilter::default(), true).await;
    let receipts_before = harness.receipts().await.len();
    let task = chunk(&relay, query(term, None, 4)).await.expect("it runs").task;
    assert_eq!((task.replay, task.total, task.rate, task.who.as_str()), (replay, 4, Some(7), "ops"));
    let some = progress(term, replay, task.pos, &all[..3], ReplayTurn::GoesOn);
    relay.replay_progress(&some).await.expect("write");
    assert_eq!(harness.receipts().await.len(), receipts_before + 3, "the copies have receipts of their own");
    let shown = operator.replay_list(Some(replay), 0).await.expect("list").remove(0);
    assert_eq!(
        (shown.state, shown.published, shown.total, shown.named),
        (ReplayState::Running, 3, 4, Some(4))
    );
    assert_eq!((shown.pos, shown.who.as_str(), shown.why.as_str()), (all[2].seq, "ops", "test"));
    for (change, state) in [
        (ReplayChange::Pause, ReplayState::Paused),
        (ReplayChange::Resume, ReplayState::Running),
        (ReplayChange::Cancel, ReplayState::Cancelled),
    ] {
        operator.replay_change(replay, change, &action()).await.expect("change");
        assert_eq!(operator.replay_list(None, 1).await.expect("list").remove(0).state, state);
        let again = operator.replay_change(replay, change, &action()).await;
        assert!(
            matches!(again, Err(ReplayError::Impossible { state: its, .. }) if its == state),
            "{again:?}"
        );
    }
    let unknown = operator.replay_change(replay + 1, ReplayChange::Pause, &action()).await;
    assert!(matches!(unknown, Err(ReplayError::NoSuch(_))), "{unknown:?}");
    let kinds: Vec<String> = harness.operations().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["replay", "replay pause", "replay resume", "replay cancel"]);
}

/// Left out by an operator, by name, and counted.
pub async fn a_replay_that_is_stopped_goes_on_with_its_message_or_without_it<H: Operated>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(4)).await;
    let (operator, replay) = (harness.operator(), requested(harness, ReplayFilter::default(), false).await);
    let from = chunk(&relay, query(term, None, 4)).await.expect("it runs").task.pos;
    let skip = operator.replay_change(replay, ReplayChange::Skip, &action()).await;
    assert!(matches!(skip, Err(ReplayError::Impossible { state: ReplayState::Running, .. })), "{skip:?}");
    let stop = ReplayStop { seq: all[1].seq, id: all[1].id, error: "too large".into() };
    let stopped = |before| progress(term, replay, before, &all[..1], ReplayTurn::Stopped(stop.clone()));
    assert_eq!(relay.replay_progress(&stopped(from)).await.expect("write"), Some(ReplayState::Stopped));
    let shown = operator.replay_list(Some(replay), 0).await.expect("list").remove(0);
    assert_eq!(
        (shown.error.as_deref(), shown.stopped_by.map(|by| by.id)),
        (Some("too large"), Some(all[1].id))
    );
    let open = relay.backlog().await.expect("measure").replays;
    assert_eq!(open, [(ReplayState::Stopped, 1)]);
    assert_eq!(operator.status().await.expect("status").replays, open);

    operator.replay_change(replay, ReplayChange::Resume, &action()).await.expect("resume");
    let again = chunk(&relay, query(term, None, 4)).await.expect("it runs");
    assert_eq!(seqs(&again.messages), seqs(&all[1..]), "the same message comes again");
    let nothing = ReplayProgress { receipts: Vec::new(), after: all[0].seq, ..stopped(all[0].seq) };
    relay.replay_progress(&nothing).await.expect("write");
    operator.replay_change(replay, ReplayChange::Skip, &action()).await.expect("skip");
    let without = chunk(&relay, query(term, None, 4)).await.expect("it runs");
    assert_eq!(seqs(&without.messages), seqs(&all[2..]));
    let shown = operator.replay_list(None, 1).await.expect("list").remove(0);
    assert_eq!((shown.skipped, shown.error, shown.stopped_by), (1, None, None));
    assert_eq!(shown.changed_by.as_deref(), Some("ops"));
    let details = harness.operations().await;
    let skipped = format!("{}@{}", all[1].id, all[1].seq);
    assert!(
        details.iter().any(|(kind, said)| kind == "replay resume" && said.contains(&skipped)),
        "{details:?}"
    );
    assert_eq!(details.iter().filter(|(kind, _)| kind == "replay").count(), 1);
}

/// Held again and discarded by many at once, or purged: it is not there any more.
pub async fn what_is_purged_meanwhile_is_not_given_out<H: Operated>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(3)).await;
    requested(harness, ReplayFilter::default(), true).await;
    let limit = outboxd_engine::PurgeLimit {
        keep_messages: Duration::ZERO,
        keep_receipts: Duration::from_secs(3_600),
        rows: 2,
    };
    harness.age(Duration::from_secs(1)).await;
    assert_eq!(relay.purge(limit).await.expect("purge").messages, 2);
    assert_eq!(seqs(&given_out(&relay, term, 10).await), seqs(&all[2..]));
    // Nothing that an operator does to held messages reaches it.
    let none = harness
        .operator()
        .held_act(BulkAction::Discard, &HeldFilter::default(), HeldSpan::up_to(all[2].seq), 10, &action())
        .await
        .expect("discard");
    assert_eq!(none.done, 0);
}

/// A message that ends the process that publishes it must not end every one that comes after it.
pub async fn relays_that_get_nowhere_with_a_replay_are_counted<H: Harness>(harness: &H) {
    let (relay, term, all) = dispatch(harness, &Intent::several(3)).await;
    let replay = harness.replay().await;
    let take_up = async |relay: &H::Outbox, term: Term| {
        let task = chunk(relay, query(term, None, 10)).await.expect("it runs").task;
        let taken = progress(term, replay, task.pos, &[], ReplayTurn::GoesOn);
        assert_eq!(relay.replay_progress(&taken).await.expect("write"), Some(ReplayState::Running));
        let again = chunk(relay, query(term, None, 10)).await.expect("it runs").task;
        assert_eq!(again.in_vain, 0, "its own term does not count");
        task
    };
    assert_eq!(take_up(&relay, term).await.in_vain, 0);
    harness.vanish(relay).await;
    for terms in 1..3 {
        let (relay, term, _) = leading(harness).await;
        assert_eq!(take_up(&relay, term).await.in_vain, terms);
        // Again within the term, after an outage.
        take_up(&relay, term).await;
        harness.vanish(relay).await;
    }
    let (relay, term, _) = leading(harness).await;
    assert_eq!(take_up(&relay, term).await.in_vain, 3);
    relay.step_down().await;
    let (relay, term, _) = leading(harness).await;
    let task = take_up(&relay, term).await;
    assert_eq!(task.in_vain, 0, "one that ended in order has nothing to hide");
    let some = progress(term, replay, task.pos, &all[..1], ReplayTurn::GoesOn);
    relay.replay_progress(&some).await.expect("write");
    harness.vanish(relay).await;
    let (relay, term, _) = leading(harness).await;
    assert_eq!(take_up(&relay, term).await.in_vain, 0, "it has got on");
    harness.vanish(relay).await;
    harness.change_replay(replay, ReplayChange::Pause).await;
    harness.change_replay(replay, ReplayChange::Resume).await;
    let (relay, term, _) = leading(harness).await;
    assert_eq!(take_up(&relay, term).await.in_vain, 0, "an operator says that it is well");
}
