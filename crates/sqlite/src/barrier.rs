//! What was read must be on disk before it is published.
//!
//! With `synchronous=NORMAL`, which most applications choose for WAL mode, a commit is written to the WAL file but not
//! synced until the next checkpoint: a power loss takes it back, and a message about it would be about something that never
//! happened. Syncing the WAL file closes this, whichever descriptor is used: recovery replays the WAL up to the first frame
//! that is missing, so once every byte that was there when the page was read is on disk, so is every commit that the page
//! saw. A checkpoint in between does no harm: it syncs the WAL before it copies, and the database file before the WAL is
//! used again.
//!
//! The WAL file may be opened and closed here, because SQLite keeps its locks on the main file and the `-shm` file. A commit
//! of our own with `synchronous=FULL` would do as well but for the write lock, which it would hold during the fsync. An
//! application that runs with `synchronous=OFF` syncs nothing at checkpoints and is not covered.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use outboxd_engine::{DurabilityMark, OutboxError};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::file::DatabaseFile;
use crate::outbox::SqliteOutbox;

/// Counts pages that were read, and up to which of them the WAL was synced.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    read: AtomicU64,
    synced: AtomicU64,
    /// One sync at a time; whoever waited finds that it was done for it as well. Holds the WAL file whose name is known to
    /// be on disk.
    syncing: Mutex<Option<DatabaseFile>>,
}

impl Barrier {
    /// The mark of a page that was just read.
    pub(crate) fn mark(&self) -> DurabilityMark {
        DurabilityMark(self.read.fetch_add(1, Ordering::SeqCst) + 1)
    }

    pub(crate) fn is_synced(&self, mark: DurabilityMark) -> bool {
        self.synced.load(Ordering::SeqCst) >= mark.0
    }
}

impl SqliteOutbox {
    pub(crate) async fn sync_up_to(&self, mark: DurabilityMark) -> Result<(), OutboxError> {
        const DOING: &str = "sync the WAL";
        if self.barrier.is_synced(mark) {
            return Ok(());
        }
        let wal = self.term_file()?.wal();
        let syncing = async {
            let mut named = self.barrier.syncing.lock().await;
            if self.barrier.is_synced(mark) {
                return Ok(());
            }
            // Every mark given out so far belongs to a page that was read before the sync begins.
            let read = self.barrier.read.load(Ordering::SeqCst);
            let named_before = named.clone();
            *named = tokio::task::spawn_blocking(move || sync(&wal, named_before.as_ref()))
                .await
                .map_err(io::Error::other)??;
            self.barrier.synced.fetch_max(read, Ordering::SeqCst);
            Ok::<(), io::Error>(())
        };
        timeout(self.config.deadline, syncing)
            .await
            .map_err(|elapsed| OutboxError::unavailable(DOING, elapsed))?
            .map_err(|error| OutboxError::unavailable(DOING, error))
    }
}

/// Syncs the WAL file and, if it is a new one, the directory that names it. Returns the file whose name is on disk.
fn sync(wal: &Path, named: Option<&DatabaseFile>) -> io::Result<Option<DatabaseFile>> {
    let found = DatabaseFile::locate(wal).and_then(|found| Ok((File::open(found.path())?, found)));
    let (file, found) = match found {
        Ok(found) => found,
        // Whoever removed it had checkpointed it first.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    file.sync_data()?;
    if named != Some(&found)
        && let Some(directory) = found.path().parent()
    {
        sync_directory(directory)?;
    }
    Ok(Some(found))
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Directories cannot be opened, and need not be synced.
#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}
