//! When to try again what keeps failing, as pure data: a pause that grows, and after some failures in a row one try at a
//! time, so that a broken image doesn't spin.
//!
//! ```text
//!   closed ──failure──► pausing ──its time is over──► trying (one at a time) ──success──► closed
//!                          ▲──────────────failure───────────┘
//! ```

use std::time::Duration;

/// First and longest pause.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Failures in a row from which on only one try is made at a time.
pub const OPEN_AFTER: u32 = 3;

/// A breaker. Times are microseconds of any clock that never goes back.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    failures: u32,
    retry_at: i64,
    /// The one try that is allowed is under way.
    trying: bool,
    why: String,
}

/// What a breaker allows now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allows {
    /// As many as are wanted.
    All,
    /// One.
    One,
    /// None before so long.
    NoneFor(Duration),
}

impl Breaker {
    /// It failed.
    pub fn failed(&mut self, now: i64, why: &str) {
        // Several that were begun together fail together, which is one failure.
        if self.failures == 0 || self.trying || now >= self.retry_at {
            self.failures = self.failures.saturating_add(1);
            self.pause(now);
        }
        self.trying = false;
        why.clone_into(&mut self.why);
    }

    /// The one try that is allowed is under way; the next one comes after a pause, should nothing be heard of it.
    pub fn tried(&mut self, now: i64) {
        self.trying = true;
        self.pause(now);
    }

    fn pause(&mut self, now: i64) {
        let pause = FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(LONGEST);
        self.retry_at = now.saturating_add(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX));
    }

    /// It worked.
    pub fn worked(&mut self) {
        *self = Self::default();
    }

    /// Somebody changed something that may have mended it: the next try is made at once.
    pub fn hurry(&mut self) {
        self.retry_at = 0;
    }

    /// What may be tried now.
    #[must_use]
    pub fn allows(&self, now: i64) -> Allows {
        if self.failures == 0 {
            return Allows::All;
        }
        match u64::try_from(self.retry_at.saturating_sub(now)) {
            Ok(left) if left > 0 => Allows::NoneFor(Duration::from_micros(left)),
            _ if self.failures < OPEN_AFTER => Allows::All,
            _ => Allows::One,
        }
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The last failure.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_grow_and_success_ends_them() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.allows(0), Allows::All);
        breaker.failed(0, "no disk");
        assert_eq!(breaker.allows(0), Allows::NoneFor(FIRST));
        // Of the same batch.
        breaker.failed(10, "no disk");
        assert_eq!((breaker.failures(), breaker.allows(1_000_000)), (1, Allows::All));
        breaker.failed(1_000_000, "no disk");
        assert_eq!(breaker.allows(1_000_000), Allows::NoneFor(FIRST * 2));
        breaker.failed(3_000_000, "no disk");
        assert_eq!((breaker.failures(), breaker.allows(7_000_000)), (OPEN_AFTER, Allows::One));
        breaker.hurry();
        assert_eq!(breaker.allows(3_000_001), Allows::One);
        breaker.worked();
        assert_eq!((breaker.allows(3_000_001), breaker.why()), (Allows::All, ""));
    }

    proptest! {
        #[test]
        fn a_broken_image_is_tried_ever_more_seldom(waits in proptest::collection::vec(0i64..1_000_000_000, 1..60)) {
            let mut breaker = Breaker::default();
            let (mut now, mut tries) = (0i64, 0u32);
            for wait in waits {
                now += wait;
                if !matches!(breaker.allows(now), Allows::NoneFor(_)) {
                    tries += 1;
                    breaker.failed(now, "broken");
                }
                let Allows::NoneFor(left) = breaker.allows(now) else {
                    return Err(TestCaseError::fail("a failure is followed by a pause"));
                };
                prop_assert!(left <= LONGEST);
            }
            // 1 + 2 + 4 .. 256 s, then one per 300 s.
            prop_assert!(i64::from(tries) <= 10 + now / 300_000_000);
        }
    }
}
