//! Coming to rest: every report in, every verdict settled, and then whatever made the loop stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::beating;
use crate::outbox::Outbox;
use crate::pipeline::{End, Pipeline, Quiet};
use crate::publisher::Publisher;

/// What is left of the grace period for the last settle, whatever Kafka does.
const SETTLE_RESERVE: Duration = Duration::from_secs(3);
/// So long nothing but copies of a replay is waited for: without their answers they are published once more, and nothing else is lost.
const REPLAY_PATIENCE: Duration = Duration::from_secs(1);

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// Once everything is at rest, what the quiet was for. Also when it takes too long.
    pub(crate) async fn quieted(&mut self) -> Option<End> {
        let (quiet, since) = self.quiet?;
        self.caution.finished();
        let waited = since.elapsed();
        let reports_in = self.window.outstanding() == 0;
        let patience = match quiet {
            // A producer that is beyond repair answers nothing more. One that is given up for a silent topic answers for the others.
            Quiet::Rewind { renew: true, .. } if !self.replay.overdue => Duration::ZERO,
            Quiet::Rewind { .. } | Quiet::Renew => self.config.outage_after,
            Quiet::Drain => self.config.grace.saturating_sub(SETTLE_RESERVE.min(self.config.grace / 4)),
        };
        let patience = match quiet {
            Quiet::Rewind { .. } | Quiet::Drain if self.only_a_replay_is_out() => {
                patience.min(if self.replay.overdue { Duration::ZERO } else { REPLAY_PATIENCE })
            }
            Quiet::Rewind { .. } | Quiet::Drain | Quiet::Renew => patience,
        };
        if !reports_in && waited < patience {
            return None;
        }
        let settling = !self.settle.task.is_empty() || self.window.has_ready() || self.caution.is_note_due();
        let settling = settling || self.replay.has_to_record();
        let settle_patience = match quiet {
            Quiet::Drain => self.config.grace,
            Quiet::Rewind { .. } | Quiet::Renew => patience + self.config.outage_after,
        };
        if settling && waited < settle_patience {
            return None;
        }
        match quiet {
            Quiet::Drain => Some(End::Drained),
            Quiet::Rewind { pause, renew } => Some(End::Rewind { pause, renew: renew || !reports_in }),
            Quiet::Renew if reports_in => {
                let observer = Arc::clone(self.observer);
                beating(&*observer, self.publisher.renew()).await;
                self.heard_at = Instant::now();
                self.quiet = None;
                None
            }
            Quiet::Renew => Some(End::Rewind { pause: true, renew: true }),
        }
    }

    /// Whether all that is with the client are copies of a replay.
    fn only_a_replay_is_out(&self) -> bool {
        let copies = self.replay.outstanding();
        copies > 0 && copies == self.window.outstanding()
    }
}
