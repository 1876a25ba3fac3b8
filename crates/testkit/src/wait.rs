//! Waiting for a state instead of sleeping.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout};

/// How long between two looks.
const EVERY: Duration = Duration::from_millis(20);

/// Looks until `ready` returns a value, and fails with `what` once `limit` has passed. An error of `ready` ends the wait.
///
/// # Errors
/// The limit passed, or `ready` failed.
pub async fn until<T, F, R>(what: impl Display, limit: Duration, mut ready: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match timeout(left.max(EVERY), ready()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(error.context(format!("wait until {what}"))),
            Err(_) => bail!("waited {limit:?} until {what}: the last look did not return"),
        }
        if Instant::now() >= end {
            bail!("waited {limit:?} until {what}");
        }
        sleep(EVERY).await;
    }
}

/// As [`until`], with a look that cannot fail and needs no waiting itself.
///
/// # Errors
/// The limit passed.
pub async fn until_true(what: impl Display, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || {
        let seen = ready();
        async move { Ok(seen.then_some(())) }
    })
    .await
}
