//! When to look again. Polling costs the writers nothing; it adapts from milliseconds while pages are found to tens of
//! milliseconds while the outbox is quiet.

use std::time::Duration;

/// Decides the pause before the next page.
#[derive(Debug)]
pub(crate) struct Wake {
    poll_min: Duration,
    poll_max: Duration,
    pause: Duration,
}

impl Wake {
    pub(crate) fn new(poll_min: Duration, poll_max: Duration) -> Self {
        Self { poll_min, poll_max: poll_max.max(poll_min), pause: poll_min }
    }

    /// The pause after a page that took so long to read. Empty pages back off by a quarter each, whoever else is writing. One that
    /// took long walked what a large open transaction has inserted so far: the database gets as long a rest.
    pub(crate) fn after(&mut self, messages: usize, more: bool, took: Duration) -> Duration {
        if messages == 0 {
            self.pause = (self.pause + self.pause / 4 + Duration::from_micros(100)).min(self.poll_max);
            return self.pause.max(took);
        }
        self.pause = self.poll_min;
        if more { Duration::ZERO } else { self.poll_min }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_outbox_is_asked_less_often_and_a_full_page_at_once() {
        let mut wake = Wake::new(Duration::from_millis(1), Duration::from_millis(20));
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            let pause = wake.after(0, false, Duration::ZERO);
            assert!(pause >= last && pause <= Duration::from_millis(20));
            last = pause;
        }
        assert_eq!(last, Duration::from_millis(20));
        assert_eq!(wake.after(5, false, Duration::ZERO), Duration::from_millis(1));
        assert_eq!(wake.after(2_000, true, Duration::ZERO), Duration::ZERO);
        assert_eq!(wake.after(0, false, Duration::from_secs(1)), Duration::from_secs(1));
    }
}
