//! An application that writes at the same time, and one that does not let go.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use outboxd_engine::{OutboxError, Upkeep as _};
use sqlx::Connection;

use super::*;

/// Another process that holds the write lock until its standard input ends: this test binary, run as
/// [`holds_the_write_lock_until_its_input_ends`].
struct LockHolder {
    child: Child,
    input: Option<ChildStdin>,
    /// Kept open: the child could not write its last words otherwise.
    output: BufReader<ChildStdout>,
}

impl LockHolder {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("tests::writing::holds_the_write_lock_until_its_input_ends")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{}", path.display()).unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("locked") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the other process ended without the lock");
        }
        Self { child, input: Some(input), output }
    }

    fn release(mut self) {
        drop(self.input.take());
        self.output.read_to_end(&mut Vec::new()).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

#[tokio::test]
#[ignore = "the other process of the tests below"]
async fn holds_the_write_lock_until_its_input_ends() {
    let mut path = String::new();
    std::io::stdin().lock().read_line(&mut path).unwrap();
    let mut connection = application(Path::new(path.trim_end())).await;
    let mut transaction = connection.begin_with("begin immediate").await.unwrap();
    execute(
        &mut transaction,
        "insert into outbox_message (topic, payload) values ('a', 'from another process')",
    )
    .await
    .unwrap();
    println!("locked");
    std::io::stdin().lock().read_to_end(&mut Vec::new()).unwrap();
    transaction.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_holds_the_write_lock_delays_settling_and_nothing_else() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1')").await;
    let outbox = shop.outbox();
    let (term, start) = lead(&outbox).await;
    let other = LockHolder::start(&shop.config().path);

    let (messages, after) = read(&outbox, &start.cursor).await;
    assert_eq!(messages.len(), 1, "what is not committed is not read");
    assert_eq!(outbox.backlog().await.unwrap().messages, 1);
    assert_eq!(outbox.held(&[]).await.unwrap().messages, 0);
    let settling = outbox.settle(moving(term, &start.cursor, &after));
    let mut settling = std::pin::pin!(settling);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut settling).await.is_err(),
        "it waits for the lock"
    );
    other.release();
    settling.await.unwrap();
    let (messages, _) = read(&outbox, &after).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].payload.as_deref(), Some(&b"from another process"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_held_too_long_is_an_outage_and_nothing_is_lost() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1')").await;
    let impatient = SqliteConfig { deadline: Duration::from_millis(500), ..shop.config() };
    let outbox = SqliteOutbox::new(impatient);
    let (term, start) = lead(&outbox).await;
    let (_, after) = read(&outbox, &start.cursor).await;
    let other = LockHolder::start(&shop.config().path);
    let error = outbox.settle(moving(term, &start.cursor, &after)).await.unwrap_err();
    assert!(matches!(error, OutboxError::Unavailable { .. }), "{error}");
    assert!(matches!(outbox.keep(term).await, Err(OutboxError::Unavailable { .. })), "the term is over");
    other.release();
    outbox.step_down().await;
    // The lease could not be given back if the lock was still held then.
    shop.run("update outbox_cursor set lease_until = kept_at").await;
    let (_, start) = lead(&outbox).await;
    assert_eq!(read(&outbox, &start.cursor).await.0.len(), 2, "from the settled cursor");
}

/// The trap that our own writes avoid by `begin immediate`.
#[tokio::test]
async fn a_deferred_transaction_that_upgrades_fails_at_once_in_spite_of_the_busy_timeout() {
    let shop = Shop::open().await;
    let (mut first, mut second) = (shop.application().await, shop.application().await);
    execute(&mut first, "begin").await.unwrap();
    sqlx::query("select * from outbox_cursor").fetch_all(&mut first).await.unwrap();
    execute(&mut second, "insert into outbox_message (topic, payload) values ('a', 'x')").await.unwrap();
    let began = tokio::time::Instant::now();
    let upgrade = execute(&mut first, "insert into outbox_message (topic, payload) values ('a', 'y')").await;
    assert!(upgrade.unwrap_err().to_string().contains("database is locked"));
    assert!(began.elapsed() < Duration::from_secs(5), "the busy timeout is 10 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_writers_commit_is_read_once_and_in_order_while_they_write() {
    const WRITERS: usize = 4;
    const TRANSACTIONS: usize = 60;
    let shop = Shop::open().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let path = shop.config().path;
        writers.spawn(async move {
            let mut connection = application(&path).await;
            let mut committed = Vec::new();
            for nth in 0..TRANSACTIONS {
                let mut transaction = connection.begin_with("begin immediate").await.unwrap();
                let payloads: Vec<_> = (0..=nth % 3).map(|part| format!("{writer}-{nth}-{part}")).collect();
                for payload in &payloads {
                    sqlx::query("insert into outbox_message (topic, key, payload) values ('a', ?, ?)")
                        .bind(writer.to_string())
                        .bind(payload)
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                }
                if nth % 5 == 4 {
                    transaction.rollback().await.unwrap();
                } else {
                    transaction.commit().await.unwrap();
                    committed.extend(payloads);
                }
            }
            committed
        });
    }
    let outbox = shop.outbox();
    let (term, start) = lead(&outbox).await;
    let (mut settled, mut seen) = (start.cursor, Vec::new());
    let mut committed = Vec::new();
    loop {
        while let Some(done) = writers.try_join_next() {
            committed.push(done.unwrap());
        }
        let done = committed.len() == WRITERS;
        let (messages, after) = read(&outbox, &settled).await;
        outbox.settle(moving(term, &settled, &after)).await.unwrap();
        settled = after;
        if messages.is_empty() && done {
            break;
        }
        seen.extend(messages);
        tokio::task::yield_now().await;
    }
    assert!(seen.is_sorted_by(|a, b| a.seq < b.seq));
    let by_writer = |writer: usize| {
        let key = writer.to_string();
        seen.iter()
            .filter(|message| message.key.as_deref() == Some(&key))
            .map(|message| String::from_utf8(message.payload.clone().unwrap().to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    for written in committed {
        let writer: usize = written[0].split('-').next().unwrap().parse().unwrap();
        assert_eq!(by_writer(writer), written, "writer {writer}");
    }
}

#[tokio::test]
async fn purging_every_intent_never_makes_the_sequence_start_again() {
    let shop = Shop::open().await;
    let outbox = shop.outbox();
    let (term, start) = lead(&outbox).await;
    let mut settled = start.cursor;
    let mut highest = 0;
    for _ in 0..3 {
        shop.run("insert into outbox_message (topic, payload) values ('a', 'x'), ('a', 'y')").await;
        let (messages, after) = read(&outbox, &settled).await;
        assert_eq!(messages.len(), 2);
        assert!(messages[0].seq.0 > highest);
        highest = messages[1].seq.0;
        outbox.settle(moving(term, &settled, &after)).await.unwrap();
        settled = after;
        shop.run("vacuum").await;
        let everything = outboxd_engine::PurgeLimit {
            keep_messages: Duration::ZERO,
            keep_receipts: Duration::ZERO,
            rows: 100,
        };
        // `created_at` has to lie before now, by the database's clock of milliseconds.
        while shop.number("select count(*) from outbox_message").await > 0 {
            outbox.purge(everything).await.unwrap();
        }
    }
}
