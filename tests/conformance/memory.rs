//! The suite over [`MemoryOutbox`]: what the loop is tested against behaves as what it runs on.

use std::time::Duration;

use outboxd_core::{Cursor, HoldReason, HoldState, ReceiptEntry, Seq};
use outboxd_engine::ReplayChange;
use outboxd_testkit::conformance::{Harness, Intent};
use outboxd_testkit::scripted::{MemoryOutbox, MemoryTable, Written};

#[derive(Default)]
struct MemoryHarness(MemoryTable);

fn written(intents: &[Intent]) -> Vec<Written> {
    let written = |intent: &Intent| Written {
        topic: intent.topic.clone(),
        key: intent.key.clone(),
        payload: intent.payload.clone(),
        deliver_in: intent.deliver_in,
    };
    intents.iter().map(written).collect()
}

impl Harness for MemoryHarness {
    type Outbox = MemoryOutbox;
    type Open = (Vec<Seq>, Vec<Written>);

    fn relay(&self) -> MemoryOutbox {
        self.0.outbox()
    }

    async fn commit(&self, intents: &[Intent]) -> Vec<Seq> {
        let seqs = self.0.draw(intents.len());
        self.0.commit_at(&seqs, &written(intents));
        seqs
    }

    async fn roll_back(&self, intents: &[Intent]) {
        // Places that were drawn stay drawn.
        drop(self.0.draw(intents.len()));
    }

    async fn open(&self, intents: &[Intent]) -> Option<(Self::Open, Vec<Seq>)> {
        let seqs = self.0.draw(intents.len());
        Some(((seqs.clone(), written(intents)), seqs))
    }

    async fn commit_open(&self, (seqs, intents): Self::Open) {
        self.0.commit_at(&seqs, &intents);
    }

    async fn age(&self, by: Duration) {
        self.0.age(by);
    }

    async fn fence(&self) {
        self.0.fence();
    }

    async fn vanish(&self, relay: MemoryOutbox) {
        drop(relay);
        self.0.end_lead_session();
    }

    async fn retry(&self, seq: Seq) {
        self.0.retry(seq);
    }

    async fn discard(&self, seq: Seq) {
        self.0.discard(seq);
    }

    async fn commit_again(&self, of: Seq, intent: &Intent) -> Seq {
        // Here a cancellation is of a place, and ids play no part.
        assert!(self.0.intents().contains(&of));
        self.commit(std::slice::from_ref(intent)).await[0]
    }

    async fn cancel(&self, seq: Seq) {
        self.0.cancel(seq);
    }

    async fn replay(&self) -> i64 {
        self.0.replay(None, None, None)
    }

    async fn change_replay(&self, replay: i64, change: ReplayChange) {
        self.0.set_replay(replay, change.leads_to());
    }

    async fn scheduled(&self) -> Vec<Seq> {
        self.0.scheduled()
    }

    async fn cursor(&self) -> Cursor {
        self.0.cursor()
    }

    async fn receipts(&self) -> Vec<ReceiptEntry> {
        self.0.receipts()
    }

    async fn held(&self) -> Vec<(Seq, HoldState, HoldReason, u32)> {
        self.0.held().into_iter().map(|hold| (hold.seq, hold.state, hold.reason, hold.attempts)).collect()
    }

    async fn intents(&self) -> Vec<Seq> {
        self.0.intents()
    }
}

outboxd_testkit::outbox_conformance!(async { MemoryHarness::default() });
