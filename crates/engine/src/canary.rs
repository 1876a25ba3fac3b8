//! A message of the relay's own, through the whole path: emitted as an application emits, and looked for as a consumer does.

use std::future::Future;

use uuid::Uuid;

use crate::outbox::OutboxError;

/// Emits canaries. Needs the relay's rights.
pub trait Canary: Send + Sync {
    /// Writes an intent for this topic, commits it, and returns its id.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn emit_canary(&self, topic: &str) -> impl Future<Output = Result<Uuid, OutboxError>> + Send;
}
