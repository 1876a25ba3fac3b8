//! Who follows attempts hears of each what became of it, whatever that is.

use std::sync::atomic::{AtomicUsize, Ordering};

use outboxd_core::{Route, Routes, TopicPattern};
use outboxd_engine::{Answer, Attempt, Follow};

use super::*;

/// Follows every attempt and remembers how it ended: payload, attempts before, topic, answer.
#[derive(Debug, Default)]
struct Followers {
    ended: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct One {
    what: String,
    ended: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
}

impl Observe for Followers {
    fn observe(&self, _event: &Event<'_>) {}

    fn attempt(&self, attempt: &Attempt<'_>) -> Option<Box<dyn Follow>> {
        self.open.fetch_add(1, Ordering::Relaxed);
        let payload = attempt.message.payload.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let copy = if attempt.is_dead_letter { " copy" } else { "" };
        let what =
            format!("{} {} {}{copy}", &payload[..payload.len().min(2)], attempt.attempts, attempt.topic);
        Some(Box::new(One { what, ended: Arc::clone(&self.ended), open: Arc::clone(&self.open) }))
    }
}

impl Follow for One {
    fn ended(self: Box<Self>, answer: Answer<'_>) {
        let answer = match answer {
            Answer::Acknowledged(receipt) => format!("at {}", receipt.offset),
            Answer::Failed(error, outcome) => format!("{:?} {}", error.fault, outcome.as_str()),
            Answer::Refused(refusal) => HoldReason::from(refusal).as_str().to_owned(),
        };
        self.ended.lock().unwrap().push(format!("{}: {answer}", self.what));
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Followers {
    fn ended(&self) -> Vec<String> {
        self.ended.lock().unwrap().clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "the test owns the task and observes its end")]
fn followed(
    table: &MemoryTable,
    broker: &ScriptedBroker,
    config: RelayConfig,
) -> (Arc<Followers>, CancellationToken, JoinHandle<Result<(), RelayError>>) {
    let followers = Arc::new(Followers::default());
    let observer: Arc<dyn Observe> = Arc::clone(&followers) as Arc<dyn Observe>;
    let relay = Relay::new(table.outbox(), broker.publisher(), config, observer, 1);
    let drain = CancellationToken::new();
    let task = tokio::spawn(relay.run(drain.clone()));
    (followers, drain, task)
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_followed_to_its_answer_and_a_retry_is_another_attempt() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::Unknown, 2);
    table.commit(&numbered("orders", "a", 0..1));
    let (followers, drain, task) = followed(&table, &broker, config());
    until("it is dispatched", || table.receipts().len() == 1).await;
    drain.cancel();
    task.await.unwrap().unwrap();
    let expected = ["a0 0 orders: Unknown retry", "a0 1 orders: Unknown retry", "a0 2 orders: at 0"];
    assert_eq!(followers.ended(), expected);
    assert_eq!(followers.open.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_and_its_copy_are_attempts_too() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders", "dead"]));
    broker.limit_topic("orders", 1_000);
    table.commit(&[Written::keyed("orders", "a", &"x".repeat(2_000))]);
    let orders = "orders".parse::<TopicPattern>().unwrap();
    let route = Route { topics: vec![orders], dead_letter: Some("dead".to_owned()), ..Route::default() };
    let routes = Routes::new(vec!["*".parse().unwrap()], vec![route]);
    let (followers, drain, task) = followed(&table, &broker, RelayConfig { routes, ..config() });
    until("it is parked", || table.held().iter().any(|hold| hold.dead_letter.is_some())).await;
    drain.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(followers.ended(), ["xx 0 orders: too_large", "xx 0 dead copy: at 0"]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_an_answer_is_let_go_when_the_client_is_renewed() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.silent(true);
    table.commit(&numbered("orders", "a", 0..3));
    let (followers, drain, task) = followed(&table, &broker, config());
    until("three are under way", || followers.open.load(Ordering::Relaxed) == 3).await;
    assert!(followers.ended().is_empty());
    // The lead is lost: nobody will hear of these any more.
    table.available(false);
    until("they are let go", || followers.open.load(Ordering::Relaxed) == 0).await;
    assert!(followers.ended().is_empty());
    table.available(true);
    broker.silent(false);
    until("they are dispatched after all", || table.receipts().len() == 3).await;
    drain.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(followers.ended(), ["a0 0 orders: at 0", "a1 0 orders: at 1", "a2 0 orders: at 2"]);
}
