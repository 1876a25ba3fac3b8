//! Exponential back-off with full jitter.
//!
//! Full jitter (a uniform sample between zero and the cap, from M. Brooker, "Exponential Backoff And Jitter", 2015)
//! spreads relays that lost the same broker at the same moment. Randomness is passed in, so that a seed replays it.

use std::time::Duration;

/// A growing delay. Doubles on every failure, up to `delay_max`; [`Backoff::reset`] on success.
#[derive(Clone, Debug)]
pub struct Backoff {
    delay_min: Duration,
    delay_max: Duration,
    failures: u32,
}

impl Backoff {
    /// A back-off between the two delays.
    #[must_use]
    pub fn new(delay_min: Duration, delay_max: Duration) -> Self {
        Self { delay_min, delay_max: delay_max.max(delay_min), failures: 0 }
    }

    /// The next delay: uniform between `delay_min` and the cap, which doubles with each call up to `delay_max`.
    /// `random` is uniform in `[0, 1)`.
    pub fn next(&mut self, random: f64) -> Duration {
        let cap = self.delay_min.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let cap = cap.min(self.delay_max);
        self.failures = self.failures.saturating_add(1).min(31);
        self.delay_min + (cap - self.delay_min).mul_f64(random.clamp(0.0, 1.0))
    }

    /// Starts again from `delay_min`.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last reset.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    proptest! {
        #[test]
        fn every_delay_is_within_bounds_and_the_cap_doubles(
            min_ms in 1_u64..1_000, span_ms in 0_u64..60_000, random in proptest::collection::vec(0.0_f64..1.0, 1..80)
        ) {
            let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(min_ms + span_ms));
            let mut backoff = Backoff::new(min, max);
            for (nth, random) in (0_u32..).zip(random) {
                let delay = backoff.next(random);
                let cap = min.saturating_mul(2_u32.saturating_pow(nth)).min(max);
                prop_assert!(delay >= min && delay <= cap, "{delay:?} not within {min:?} and {cap:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next(0.999) == min);
        }
    }
}
