//! Pages: every committed intent once, in order, within limits.

use std::time::Duration;

use outboxd_engine::{Outbox, PageLimit, ReadPage};

use super::{Harness, Intent, Operated, dispatching, leading, messages, read, read_all, receipts, seqs};

/// Page by page, everything that was committed comes, in the order of its places.
pub async fn pages_are_read_in_order_and_nothing_is_left_out<H: Harness>(harness: &H) {
    let mut written = harness.commit(&Intent::several(5)).await;
    written.extend(harness.commit(&Intent::several(4)).await);
    let (relay, _, start) = leading(harness).await;
    let (read, after) = read_all(&relay, &start.cursor, messages(2)).await;
    assert_eq!(seqs(&read), written);
    assert!(written.is_sorted(), "{written:?}");
    let payloads: Vec<_> = read.iter().map(|message| message.payload.clone().expect("a payload")).collect();
    assert_eq!(payloads[0], "payload-0");
    assert_eq!(payloads[8], "payload-3");

    let more = harness.commit(&Intent::several(1)).await;
    let (read, _) = read_all(&relay, &after, messages(2)).await;
    assert_eq!(seqs(&read), more, "what is committed later follows");
}

/// No more than so many, and it says that there is more.
pub async fn a_page_ends_at_its_limit_of_messages<H: Harness>(harness: &H) {
    let written = harness.commit(&Intent::several(5)).await;
    let (relay, _, start) = leading(harness).await;
    let ReadPage { page, more, .. } = read(&relay, &start.cursor, messages(3)).await;
    assert_eq!(seqs(&page.messages), written[..3]);
    assert!(more);
    let ReadPage { page, more, .. } = read(&relay, &page.cursor_after(), messages(3)).await;
    assert_eq!(seqs(&page.messages), written[3..]);
    assert!(!more, "the last page was not full");
}

/// A page ends with the message that reaches the limit, or before it.
pub async fn a_page_ends_at_its_limit_of_bytes<H: Harness>(harness: &H) {
    let intents: Vec<Intent> =
        (0..6).map(|nth| Intent::keyed("orders", &format!("k{nth}"), vec![b'x'; 998])).collect();
    let written = harness.commit(&intents).await;
    let (relay, _, start) = leading(harness).await;
    let limit = PageLimit { messages: 100, bytes: 2_500 };
    let ReadPage { page, more, .. } = read(&relay, &start.cursor, limit).await;
    assert!((2..=3).contains(&page.messages.len()), "{} of 1,000 bytes for 2,500", page.messages.len());
    assert!(more, "it was cut short");
    let (rest, _) = read_all(&relay, &page.cursor_after(), limit).await;
    assert_eq!([seqs(&page.messages), seqs(&rest)].concat(), written);
}

/// Headers count as what they are in memory, however well the database has packed them.
pub async fn headers_count_towards_a_pages_bytes<H: Harness>(harness: &H) {
    let wordy = |nth: usize| Intent {
        headers: vec![("note".to_owned(), "x".repeat(100_000))],
        ..Intent::keyed("orders", &format!("k{nth}"), "")
    };
    let written = harness.commit(&(0..6).map(wordy).collect::<Vec<_>>()).await;
    let (relay, _, start) = leading(harness).await;
    let limit = PageLimit { messages: 100, bytes: 250_000 };
    let page = read(&relay, &start.cursor, limit).await.page;
    assert!((2..=3).contains(&page.messages.len()), "{} of 100,000 bytes for 250,000", page.messages.len());
    let (rest, _) = read_all(&relay, &page.cursor_after(), limit).await;
    assert_eq!([seqs(&page.messages), seqs(&rest)].concat(), written);
}

/// A message that is larger than a page may be does not stop the outbox.
pub async fn a_page_holds_one_message_however_large<H: Harness>(harness: &H) {
    let intents = [
        Intent::keyed("orders", "a", vec![b'x'; 100_000]),
        Intent::keyed("orders", "a", "small"),
        Intent::keyed("orders", "a", vec![b'x'; 100_000]),
    ];
    let written = harness.commit(&intents).await;
    let (relay, _, start) = leading(harness).await;
    let limit = PageLimit { messages: 100, bytes: 1_000 };
    let first = read(&relay, &start.cursor, limit).await.page;
    assert_eq!(seqs(&first.messages), written[..1]);
    assert_eq!(first.messages[0].payload.as_ref().map(bytes::Bytes::len), Some(100_000));
    let (rest, _) = read_all(&relay, &first.cursor_after(), PageLimit { messages: 100, bytes: 1 }).await;
    assert_eq!(seqs(&rest), written[1..]);
}

/// Nothing there is no error.
pub async fn an_outbox_without_messages_gives_an_empty_page<H: Harness>(harness: &H) {
    let (relay, _, start) = leading(harness).await;
    let ReadPage { page, more, .. } = read(&relay, &start.cursor, messages(10)).await;
    assert!(page.messages.is_empty() && !more);
    assert_eq!(page.cursor_after().high, start.cursor.high);
}

/// What was rolled back was never written.
pub async fn rolled_back_intents_never_appear<H: Harness>(harness: &H) {
    harness.roll_back(&Intent::several(3)).await;
    let mut written = harness.commit(&Intent::several(1)).await;
    harness.roll_back(&Intent::several(3)).await;
    let (relay, _, start) = leading(harness).await;
    let (read, after) = read_all(&relay, &start.cursor, messages(2)).await;
    assert_eq!(seqs(&read), written);
    harness.roll_back(&Intent::several(3)).await;
    written = harness.commit(&Intent::several(2)).await;
    let (read, _) = read_all(&relay, &after, messages(2)).await;
    assert_eq!(seqs(&read), written);
}

/// Reading moves nothing: from the same cursor the same messages come.
pub async fn a_page_can_be_read_again_from_the_same_cursor<H: Harness>(harness: &H) {
    let written = harness.commit(&Intent::several(4)).await;
    let (relay, term, start) = leading(harness).await;
    let first = read(&relay, &start.cursor, messages(10)).await.page;
    let start = relay.start(term).await.expect("go back to the settled cursor");
    let again = read(&relay, &start.cursor, messages(10)).await.page;
    assert_eq!(seqs(&first.messages), written);
    assert_eq!(seqs(&again.messages), written);
    assert!(first.messages.iter().zip(&again.messages).all(|(a, b)| a.id == b.id && a.payload == b.payload));
}

/// A transaction that drew its places first and committed last is found below the cursor. Nothing to show where there is
/// one writer at a time.
pub async fn a_message_that_was_overtaken_comes_as_a_late_one<H: Harness>(harness: &H) {
    let Some((open, late)) = harness.open(&Intent::several(1)).await else { return };
    let overtaking = harness.commit(&Intent::several(2)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    assert_eq!(seqs(&page.messages), overtaking);
    let settled = page.cursor_after();
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");

    harness.commit_open(open).await;
    let newer = harness.commit(&Intent::several(1)).await;
    let page = read(&relay, &settled, messages(10)).await.page;
    assert_eq!(page.late, 1);
    assert_eq!(seqs(&page.messages), [late, newer].concat());
    let settlement = dispatching(term, &settled, &page);
    assert_eq!(settlement.receipts_out_of_order.len(), 1);
    relay.settle(settlement).await.expect("settle");
    let start = relay.start(term).await.expect("start");
    assert_eq!(start.cursor, page.cursor_after());
    assert!(read(&relay, &start.cursor, messages(10)).await.page.messages.is_empty());
    assert_eq!(harness.receipts().await.len(), 4);
}

/// More late messages than a page holds come in several, each once, and new ones wait until they are through.
pub async fn a_catch_up_reads_every_late_message_once<H: Harness>(harness: &H) {
    let Some((open, late)) = harness.open(&Intent::several(7)).await else { return };
    let overtaking = harness.commit(&Intent::several(2)).await;
    let (relay, _, start) = leading(harness).await;
    let (first, cursor) = read_all(&relay, &start.cursor, messages(3)).await;
    assert_eq!(seqs(&first), overtaking);
    harness.commit_open(open).await;
    let newer = harness.commit(&Intent::several(2)).await;
    let (read, cursor) = read_all(&relay, &cursor, messages(3)).await;
    assert_eq!(seqs(&read), [late, newer].concat());
    assert_eq!(cursor.catch_up, None);
}

/// The cursor remembers how far a catch-up got.
pub async fn a_catch_up_that_was_settled_half_way_resumes_there<H: Harness>(harness: &H) {
    let Some((open, late)) = harness.open(&Intent::several(7)).await else { return };
    harness.commit(&Intent::several(2)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    let settled = page.cursor_after();
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    harness.commit_open(open).await;

    let page = read(&relay, &settled, messages(3)).await.page;
    assert_eq!(seqs(&page.messages), late[..3]);
    let (frame, read_messages) = page.into_parts();
    let half_way = frame.cursor_after(2);
    let mut settlement = super::moving(term, &settled, &half_way);
    settlement.receipts_out_of_order = receipts(&read_messages[..2]);
    relay.settle(settlement).await.expect("settle inside late messages");

    relay.step_down().await;
    let (relay, _, start) = leading(harness).await;
    assert_eq!(start.cursor, half_way);
    let (rest, _) = read_all(&relay, &start.cursor, messages(3)).await;
    assert_eq!(seqs(&rest), late[2..]);
}

/// Bytes, names and absences arrive as they were written; what was left out gets its default.
pub async fn a_message_is_read_exactly_as_it_was_written<H: Operated>(harness: &H) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let full = Intent {
        topic: "orders.v1_x-y".into(),
        key: Some("schlüssel \u{1f511}".into()),
        payload: Some(every_byte.clone()),
        headers: vec![("tenant".into(), "42".into()), ("quote".into(), "\"ü\n\\".into())],
        partition: Some(3),
        content_type: Some("application/octet-stream".into()),
        correlation_id: Some("checkout-7".into()),
        causation_id: Some("request-8".into()),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        tracestate: Some("vendor=1".into()),
        deliver_in: None,
    };
    let tombstone = Intent { topic: "orders".into(), key: Some("gone".into()), ..Intent::default() };
    let empty = Intent { topic: "orders".into(), payload: Some(Vec::new()), ..Intent::default() };
    harness.commit(&[full, tombstone, empty]).await;
    let (relay, _, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    let [full, tombstone, empty] = &page.messages[..] else { panic!("three messages: {:?}", page.messages) };

    assert_eq!(full.topic, "orders.v1_x-y");
    assert_eq!(full.key.as_deref(), Some("schlüssel \u{1f511}"));
    assert_eq!(full.payload.as_deref(), Some(&every_byte[..]));
    let mut headers = full.headers.clone();
    headers.sort_unstable();
    assert_eq!(headers, [("quote".into(), "\"ü\n\\".into()), ("tenant".into(), "42".into())]);
    assert_eq!(full.partition, Some(3));
    assert_eq!(full.content_type.as_deref(), Some("application/octet-stream"));
    assert_eq!(full.correlation_id, "checkout-7");
    assert_eq!(full.causation_id.as_deref(), Some("request-8"));
    assert_eq!(full.traceparent.as_deref(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    assert_eq!(full.tracestate.as_deref(), Some("vendor=1"));

    assert_eq!((tombstone.key.as_deref(), &tombstone.payload), (Some("gone"), &None));
    assert_eq!(empty.payload.as_deref(), Some(&[][..]), "an empty payload is no tombstone");
    assert_eq!((&empty.key, &empty.partition, &empty.headers[..]), (&None, &None, &[][..]));
    assert_eq!((&empty.content_type, &empty.causation_id), (&None, &None));
    assert!(!empty.correlation_id.is_empty(), "a message without a correlation id does not exist");
    assert_ne!(empty.correlation_id, tombstone.correlation_id, "a fresh one each");
    assert_ne!(full.id, tombstone.id);
    assert!(full.age < Duration::from_secs(60), "just written, and {:?} old", full.age);

    harness.age(Duration::from_secs(3_600)).await;
    let old = read(&relay, &start.cursor, messages(1)).await.page.messages.remove(0);
    assert!(old.age > Duration::from_secs(3_500), "{:?}", old.age);
    assert!(old.created_at < full.created_at - Duration::from_secs(3_500));
}
