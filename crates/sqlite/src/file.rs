//! Which file a path stands for now.
//!
//! The main file is never opened here: closing any descriptor of a file drops every POSIX lock that the process holds on
//! it, SQLite's too. Its metadata can be read without opening it.

use std::io;
use std::path::{Path, PathBuf};

/// A database file: where it really is, and which one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatabaseFile {
    /// Symbolic links resolved, as SQLite does before it names the WAL.
    path: PathBuf,
    identity: Identity,
}

/// What tells a file from another one that took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    inode: u64,
}

impl DatabaseFile {
    /// Looks the file up.
    pub(crate) fn locate(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let identity = Identity::of(&path)?;
        Ok(Self { path, identity })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The write-ahead log beside it.
    pub(crate) fn wal(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push("-wal");
        PathBuf::from(name)
    }
}

impl Identity {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Without inodes a replaced file is not noticed; such systems do not let an open file be replaced.
    #[cfg(not(unix))]
    fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|_| Self {})
    }
}
