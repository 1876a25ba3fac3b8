//! A copy of a running server's data that a standby starts from.
//!
//! By the server's own backup functions and not `pg_basebackup`, which archives of server binaries leave out.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection, Row};

use super::server::Server;

/// What a server makes anew at its start, or must not take from another one.
const LEFT_OUT: [&str; 5] = ["postmaster.pid", "postmaster.opts", "pg_wal", "pg_replslot", "pg_stat_tmp"];

/// Copies the data of `primary` to `into`, set up to follow it.
pub(super) async fn copy(primary: &Server, into: &Path) -> Result<()> {
    let mut connection =
        PgConnection::connect(&primary.url("postgres")).await.context("connect to the primary")?;
    let version: String = sqlx::query("show server_version_num").fetch_one(&mut connection).await?.get(0);
    // Renamed in version 15, and exclusive backups went with the old names.
    let (start, stop) = if version.parse::<u32>()? < 150_000 {
        ("select pg_start_backup('standby', true, false)::text", "select (pg_stop_backup(false)).labelfile")
    } else {
        ("select pg_backup_start('standby', true)::text", "select (pg_backup_stop(false)).labelfile")
    };
    sqlx::query(start).execute(&mut connection).await.context("start the backup")?;
    copy_directory(&primary.data(), into, &LEFT_OUT)?;
    let label: String = sqlx::query(stop).fetch_one(&mut connection).await.context("stop the backup")?.get(0);
    connection.close().await.context("close the connection")?;
    for directory in ["pg_wal", "pg_wal/archive_status", "pg_replslot", "pg_stat_tmp"] {
        fs::create_dir(into.join(directory)).with_context(|| format!("create {directory}"))?;
    }
    let follow = format!(
        "primary_conninfo = 'host={} port={} user=postgres'\n",
        primary.socket_directory().display(),
        primary.port()
    );
    for (name, text) in
        [("backup_label", label), ("standby.signal", String::new()), ("postgresql.auto.conf", follow)]
    {
        fs::write(into.join(name), text).with_context(|| format!("write {name}"))?;
    }
    give_to_owner_of(&primary.data(), into)
}

/// Files that vanish while they are copied are the server's own business: replaying its log makes or removes them.
fn copy_directory(from: &Path, into: &Path, left_out: &[&str]) -> Result<()> {
    fs::create_dir(into).with_context(|| format!("create {}", into.display()))?;
    fs::set_permissions(into, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), into.join(entry.file_name()));
        if entry.file_name().to_str().is_some_and(|name| left_out.contains(&name)) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_directory(&source, &target, &[])?;
        } else if let Err(error) = fs::copy(&source, &target)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("copy {}", source.display()));
        }
    }
    Ok(())
}

fn give_to_owner_of(original: &Path, copy: &Path) -> Result<()> {
    let owner = fs::metadata(original)?;
    chown(copy, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("give {} away", copy.display()))?;
    if copy.is_dir() {
        for entry in fs::read_dir(copy)? {
            give_to_owner_of(original, &entry?.path())?;
        }
    }
    Ok(())
}
