//! When a call is made again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::error::{Error, Result};

/// How long what waits looks for a daemon that it has heard of: a restart with VMs to save takes about as long.
const MISSING: Duration = Duration::from_secs(120);

/// How often, and how far apart, calls are repeated that the daemon was not reached for.
///
/// Never applies to an error that the daemon answered. What waits (watches, [`Client::acquire`], [`Client::wait_agent`])
/// goes on for 2 min after it last heard of its daemon, whatever `attempts` says: it outlives a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first one included; at least 1.
    pub attempts: u32,
    /// Pause before the second attempt; doubles with each one after it.
    pub first_pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
}

impl Default for RetryPolicy {
    /// 4 attempts over 0.7 s: enough for a daemon that restarts, too short to be felt when there is none.
    fn default() -> Self {
        Self { attempts: 4, first_pause: Duration::from_millis(100), max_pause: Duration::from_secs(2) }
    }
}

impl RetryPolicy {
    /// One attempt.
    #[must_use]
    pub fn none() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// Pause after `made` failed attempts; `None`: no more.
    pub(crate) fn pause_after(&self, made: u32) -> Option<Duration> {
        if made >= self.attempts {
            return None;
        }
        Some(self.pause_before_next(made))
    }

    /// The same without an end, for what goes on until it works.
    pub(crate) fn pause_before_next(&self, made: u32) -> Duration {
        let factor = 2u32.saturating_pow(made.saturating_sub(1));
        self.first_pause.saturating_mul(factor).min(self.max_pause)
    }
}

/// Of what waits for something that the daemon tells: it goes on when the daemon does.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// The last time that the daemon was heard of.
    heard: Option<Instant>,
    failures: u32,
}

impl Patience {
    /// The daemon said something.
    pub(crate) fn heard(&mut self) {
        *self = Self { heard: Some(Instant::now()), failures: 0 };
    }

    /// The daemon was there, though it did not do what it was asked.
    pub(crate) fn was_there(&mut self) {
        self.heard = Some(Instant::now());
    }

    pub(crate) fn has_heard(&self) -> bool {
        self.heard.is_some()
    }

    /// Waits until it is time for the next try, or gives the error out: the daemon has been away for too long.
    pub(crate) async fn after(&mut self, client: &Client, error: Error) -> Result<()> {
        self.failures += 1;
        let pause = match self.heard {
            Some(heard) if heard.elapsed() < MISSING => Some(client.retry().pause_before_next(self.failures)),
            Some(_) => None,
            None => client.retry().pause_after(self.failures),
        };
        let Some(pause) = pause else { return Err(error) };
        tracing::debug!(%error, "interrupted, going on");
        sleep(pause).await;
        Ok(())
    }
}

/// What a second delivery of a call would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Nothing new: a read, or a write that carries its request id.
    Repeatable,
    /// Perhaps the same thing twice, so only a call that never left may be made again.
    Once,
}

impl Safety {
    pub(crate) fn allows(self, error: &Error) -> bool {
        match self {
            Self::Repeatable => error.is_transport(),
            Self::Once => error.is_unreachable(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end() {
        let policy = RetryPolicy {
            attempts: 5,
            first_pause: Duration::from_millis(100),
            max_pause: Duration::from_millis(300),
        };
        let pauses: Vec<_> = (1..=5).map(|made| policy.pause_after(made).map(|p| p.as_millis())).collect();
        assert_eq!(pauses, [Some(100), Some(200), Some(300), Some(300), None]);
        assert_eq!(RetryPolicy::none().pause_after(1), None);
    }

    #[test]
    fn input_is_only_sent_again_when_it_never_left() {
        let broke = Error::from(Status::unavailable("connection reset"));
        let refused = Error::Unreachable { endpoint: String::new(), source: "refused".into() };
        assert!(Safety::Repeatable.allows(&broke) && !Safety::Once.allows(&broke));
        assert!(Safety::Repeatable.allows(&refused) && Safety::Once.allows(&refused));
        assert!(!Safety::Repeatable.allows(&Error::from(Status::not_found("x"))));
    }
}
