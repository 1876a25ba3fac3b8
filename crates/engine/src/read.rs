//! Takes pages ahead of the acknowledgements, within the budget, and lets them pass once they are durable.
//!
//! Two tasks: one reads, the other waits for durability, so that the next page is read meanwhile. Both end with the
//! pipeline; the error of either ends the term.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use outboxd_core::{Cursor, Message};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::observe::{Event, Observe};
use crate::outbox::{Outbox, OutboxError, PageLimit, ReadPage};
use crate::wake::Wake;
use crate::window::Budgeted;

/// Pages that may wait between two stages; the sender waits when it is full.
const PAGES_WAITING: usize = 2;
const KIB: usize = 1024;

/// A page that may be published.
#[derive(Debug)]
pub(crate) struct Readable {
    pub(crate) read: ReadPage,
    pub(crate) read_at: Instant,
    pub(crate) bytes: usize,
    pub(crate) budget: Budgeted,
}

/// How many pages had been read when the last empty one came.
#[derive(Debug, Default)]
pub(crate) struct CaughtUp(AtomicU64);

impl CaughtUp {
    /// An empty page came after so many with messages.
    fn after(&self, pages: u64) {
        // One more, so that zero says that none was empty.
        self.0.store(pages + 1, Ordering::Relaxed);
    }

    /// Whether nothing was committed behind the first `taken` pages when it was looked at last.
    pub(crate) fn is_at(&self, taken: u64) -> bool {
        self.0.load(Ordering::Relaxed) == taken + 1
    }
}

/// What the reading tasks need.
#[derive(Clone, Debug)]
pub(crate) struct ReadSettings {
    pub(crate) limit: PageLimit,
    pub(crate) in_flight_messages: usize,
    pub(crate) in_flight_bytes: usize,
    pub(crate) poll_min: Duration,
    pub(crate) poll_max: Duration,
    /// Told when the first page has come.
    pub(crate) page_read: Arc<AtomicBool>,
    /// Told when a page is empty.
    pub(crate) caught_up: Arc<CaughtUp>,
}

/// Starts both tasks. They end only with an error, which the owner of `tasks` observes.
pub(crate) fn start<O: Outbox>(
    tasks: &mut JoinSet<OutboxError>,
    outbox: &Arc<O>,
    from: Cursor,
    settings: ReadSettings,
    observer: &Arc<dyn Observe>,
) -> mpsc::Receiver<Readable> {
    let (read_out, read_in) = mpsc::channel(PAGES_WAITING);
    let (durable_out, durable_in) = mpsc::channel(PAGES_WAITING);
    tasks.spawn(read_pages(Arc::clone(outbox), from, settings, Arc::clone(observer), read_out));
    tasks.spawn(await_durability(Arc::clone(outbox), Arc::clone(observer), read_in, durable_out));
    durable_in
}

async fn read_pages<O: Outbox>(
    outbox: Arc<O>,
    mut from: Cursor,
    settings: ReadSettings,
    observer: Arc<dyn Observe>,
    out: mpsc::Sender<Readable>,
) -> OutboxError {
    let budget_kib = kib(settings.in_flight_bytes);
    let messages_budget = Arc::new(Semaphore::new(settings.in_flight_messages));
    let bytes_budget = Arc::new(Semaphore::new(usize::try_from(budget_kib).unwrap_or(usize::MAX)));
    // Never more than there is: a reservation that cannot be met would wait for ever.
    let page_kib = kib(usize::try_from(settings.limit.bytes).unwrap_or(usize::MAX)).min(budget_kib);
    let mut wake = Wake::new(settings.poll_min, settings.poll_max);
    let mut pages = 0;
    loop {
        let reserved = (
            Arc::clone(&messages_budget).acquire_many_owned(settings.limit.messages).await,
            Arc::clone(&bytes_budget).acquire_many_owned(page_kib).await,
        );
        let (Ok(mut messages), Ok(mut bytes)) = reserved else {
            return OutboxError::unavailable("reserve memory for a page", "the budget is closed");
        };
        let began = Instant::now();
        let read = match outbox.read(&from, settings.limit).await {
            Ok(read) => read,
            Err(error) => return error,
        };
        let read_at = Instant::now();
        settings.page_read.store(true, Ordering::Relaxed);
        let len = read.page.messages.len();
        observer.observe(&Event::PageRead { messages: len, late: read.page.late, took: read_at - began });
        from = read.page.cursor_after();
        let more = read.more;
        if len == 0 && !more {
            settings.caught_up.after(pages);
        }
        if len > 0 {
            pages += 1;
            // Give back what the page did not need; a page that is larger keeps what was reserved.
            let page_bytes: usize = read.page.messages.iter().map(Message::cost_bytes).sum();
            drop(messages.split(messages.num_permits().saturating_sub(len)));
            let used_kib = usize::try_from(kib(page_bytes)).unwrap_or(usize::MAX);
            drop(bytes.split(bytes.num_permits().saturating_sub(used_kib)));
            let budget = Budgeted { _messages: messages, _bytes: bytes };
            if out.send(Readable { read, read_at, bytes: page_bytes, budget }).await.is_err() {
                return OutboxError::unavailable("hand a page on", "the pipeline has ended");
            }
        }
        let pause = wake.after(len, more, read_at - began);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn await_durability<O: Outbox>(
    outbox: Arc<O>,
    observer: Arc<dyn Observe>,
    mut pages: mpsc::Receiver<Readable>,
    out: mpsc::Sender<Readable>,
) -> OutboxError {
    while let Some(page) = pages.recv().await {
        let began = Instant::now();
        if let Some(mark) = page.read.mark
            && let Err(error) = outbox.durable(mark).await
        {
            return error;
        }
        observer.observe(&Event::PageDurable { waited: began.elapsed() });
        if out.send(page).await.is_err() {
            break;
        }
    }
    // The reading task has ended first; its error is the one that counts.
    std::future::pending().await
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX)
}
