//! Pages, beyond what the suite asks of every adapter.

use super::*;

#[tokio::test]
async fn a_page_exceeds_its_bytes_only_if_its_first_message_does() {
    let shop = Shop::open().await;
    for bytes in [900, 100, 1, 5_000, 1_000, 1] {
        shop.run(
            &format!(
                "insert into outbox_message (topic, key, payload, headers)
             values ('a', 'ü', zeroblob({bytes} - 10), '{{\"t\":\"\"}}')"
            )
            .replace("zeroblob(1 - 10)", "x''"),
        )
        .await;
    }
    let outbox = shop.outbox();
    let (_, start) = lead(&outbox).await;
    let (mut from, mut pages) = (start.cursor, Vec::new());
    loop {
        let page = outbox.read(&from, PageLimit { messages: 10, bytes: 1_010 }).await.unwrap();
        if page.page.messages.is_empty() {
            break;
        }
        from = page.page.cursor_after();
        pages.push((page.page.messages.len(), page.more));
    }
    // A key of 2 bytes, headers of 8 and the payload; the small ones have 10.
    assert_eq!(pages, [(3, true), (1, true), (2, false)]);
}

#[tokio::test]
async fn what_was_read_is_synced_once_for_all_pages_that_were_read_before() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1'), ('a', '2')").await;
    let outbox = shop.outbox();
    let (_, start) = lead(&outbox).await;
    let limit = PageLimit { messages: 1, bytes: 1_000 };
    let first = outbox.read(&start.cursor, limit).await.unwrap();
    let second = outbox.read(&first.page.cursor_after(), limit).await.unwrap();
    let (first, second) = (first.mark.unwrap(), second.mark.unwrap());
    assert!(first < second);
    assert!(!outbox.barrier.is_synced(first));
    outbox.durable(first).await.unwrap();
    assert!(outbox.barrier.is_synced(second), "it was read before the sync began");
    let nothing =
        outbox.read(&Cursor { high: outboxd_core::Seq(2), ..start.cursor.clone() }, limit).await.unwrap();
    assert_eq!(nothing.mark, None, "nothing was read");
    // A page that is read later waits for a sync of its own.
    let later = outbox.read(&start.cursor, limit).await.unwrap().mark.unwrap();
    assert!(!outbox.barrier.is_synced(later));
}

#[tokio::test]
async fn a_sync_that_fails_is_an_error() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1')").await;
    let outbox = shop.outbox();
    let (_, start) = lead(&outbox).await;
    let mark = outbox.read(&start.cursor, LIMIT).await.unwrap().mark.unwrap();
    let wal = format!("{}-wal", shop.config().path.display());
    // A file that cannot be opened: a symbolic link to itself.
    std::fs::remove_file(&wal).unwrap();
    std::os::unix::fs::symlink(&wal, &wal).unwrap();
    assert!(outbox.durable(mark).await.is_err());
    assert!(!outbox.barrier.is_synced(mark));
}
