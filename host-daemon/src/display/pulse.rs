//! Whether the desktop's half of an agent answers, so that a hung one is passed by.
//!
//! A session says little about it: heartbeats come from the agent's other half, and the stream of a frozen guest stays
//! open until a ping has gone unanswered for long. So the hub notes when the screen or the input devices last gave an
//! answer. Input in particular must know before it is sent, because afterwards nobody can tell whether it was done:
//!
//! ```text
//!   an answer, not long ago ──► the agent           no cost
//!   else a probe ──┬─ answer ─► the agent           a round trip
//!                  └─ none ───► the hypervisor      hung, if it had its time: most calls now ask only shortly
//! ```
//!
//! A probe goes through the input devices and so waits for the batch that they are busy with. Behind a batch the screen is
//! asked instead: its thread is another one, and a batch must not be interleaved with one of the hypervisor's.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::hub::Hub;
use crate::guest::{GuestError, Session};

/// How long an answer is proof enough: a click after a click needs no probe, and whoever hangs is found out soon.
const TRUST: Duration = Duration::from_secs(2);
/// Most that a probe of an agent that has always answered may take; under emulation seconds pass.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for most probes of one that hung when it was last asked.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// What was last heard of a session. Watchers are told when it begins to hang and when it answers again.
#[derive(Debug, Default)]
pub(super) struct Pulse(watch::Sender<Heard>);

#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    epoch: u64,
    answered: Option<Instant>,
    /// Questions in a row that had their time and no answer; it hangs where there are any.
    missed: u32,
    /// Batches of input that it has been given and has not answered for.
    batches: u32,
}

impl Heard {
    fn hangs(self) -> bool {
        self.missed > 0
    }

    /// How long to ask. Of one that hangs each second, fourth, eighth... question takes twice as long as the one like it
    /// before: a slow guest is not passed by for ever, and on average the questions to a dead one cost little.
    fn most(self) -> Duration {
        match self.missed {
            0 => PATIENCE,
            missed if missed.is_power_of_two() => IMPATIENCE.saturating_mul(missed).min(PATIENCE),
            _ => IMPATIENCE,
        }
    }
}

/// A batch that the agent has; ends when dropped.
pub(super) struct Batch<'a> {
    pulse: &'a Pulse,
    epoch: u64,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.pulse.change(self.epoch, |heard| heard.batches = heard.batches.saturating_sub(1));
    }
}

impl Pulse {
    fn of(&self, session: &Session) -> Heard {
        let heard = *self.0.borrow();
        if heard.epoch == session.epoch() {
            heard
        } else {
            Heard { epoch: session.epoch(), ..Heard::default() }
        }
    }

    fn change(&self, epoch: u64, change: impl FnOnce(&mut Heard)) {
        self.0.send_if_modified(|heard| {
            if epoch < heard.epoch {
                // Late news of a session that was replaced.
                return false;
            }
            if epoch > heard.epoch {
                *heard = Heard { epoch, ..Heard::default() };
            }
            let hung = heard.hangs();
            change(heard);
            heard.hangs() != hung
        });
    }

    /// Takes in how a call ended: an answer proves that somebody is there. None proves nothing here, since the call may have
    /// had little time, or much to do; but the next one asks first.
    pub(super) fn note<T>(&self, session: &Session, outcome: &Result<T, GuestError>) {
        self.change(session.epoch(), |heard| match outcome {
            Err(GuestError::Timeout(_)) => heard.answered = None,
            // It answers, but for a desktop that is not there: of no use to anyone yet, and no reason to ask it only shortly.
            Err(GuestError::NotReady(_)) => (heard.answered, heard.missed) = (None, 0),
            Err(GuestError::Lost(_) | GuestError::NotConnected) => {}
            _ => (heard.answered, heard.missed) = (Some(Instant::now()), 0),
        });
    }

    /// The same of a call that should have been answered soon after `since`.
    pub(super) fn judge<T>(&self, session: &Session, since: Instant, outcome: &Result<T, GuestError>) {
        self.note(session, outcome);
        if matches!(outcome, Err(GuestError::Timeout(_))) {
            let waited = since.elapsed();
            self.change(session.epoch(), |heard| {
                // The time on the way here does not count against the call.
                if waited >= heard.most().mul_f64(0.9) {
                    heard.missed = heard.missed.saturating_add(1);
                }
            });
        }
    }

    /// The agent is given a batch.
    pub(super) fn batch(&self, session: &Session) -> Batch<'_> {
        self.change(session.epoch(), |heard| heard.batches += 1);
        Batch { pulse: self, epoch: session.epoch() }
    }

    fn is_busy(&self, session: &Session) -> bool {
        self.of(session).batches > 0
    }

    pub(super) fn hangs(&self, session: &Session) -> bool {
        self.of(session).hangs()
    }

    /// Waits until this session hangs.
    pub(super) async fn hung(&self, session: &Session) {
        let epoch = session.epoch();
        let mut heard = self.0.subscribe();
        // The sender lives as long as this.
        let _ = heard.wait_for(|heard| heard.epoch == epoch && heard.hangs()).await;
    }

    /// When to stop waiting for a session so that its hypervisor still has time before `deadline`.
    pub(super) fn patience(&self, session: &Session, deadline: Instant) -> Instant {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let heard = self.of(session);
        let most =
            if heard.hangs() { heard.most().min(left / 4) } else { left.mul_f64(0.75).min(2 * PATIENCE) };
        now + most
    }
}

impl Hub {
    /// Whether the agent does what it is told. Asked only where the hypervisor could stand in for it.
    pub(super) async fn answers(&self, session: &Session, deadline: Instant) -> bool {
        let pulse = &self.0.pulse;
        let heard = pulse.of(session);
        let recent = heard.answered.is_some_and(|at| at.elapsed() < TRUST);
        if recent || !self.0.hv.capabilities().display {
            return true;
        }
        let until = |asked: Instant| asked + heard.most().min(deadline.saturating_duration_since(asked) / 2);
        if !pulse.is_busy(session) {
            let asked = Instant::now();
            let probed = session.probe(until(asked)).await;
            // A batch that came meanwhile may have come first.
            if !(matches!(probed, Err(GuestError::Timeout(_))) && pulse.is_busy(session)) {
                pulse.judge(session, asked, &probed);
                return self.is_there(&probed);
            }
        }
        let looked = self.fresh(session, until(Instant::now())).await;
        self.is_there(&looked)
    }

    fn is_there<T>(&self, outcome: &Result<T, GuestError>) -> bool {
        let Err(error) = outcome else { return true };
        tracing::debug!(vm = %self.0.vm, %error, "passing the agent by");
        !matches!(error, GuestError::Timeout(_) | GuestError::Lost(_) | GuestError::NotReady(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_is_asked_shortly_and_in_the_end_long_enough() {
        let of = |missed| Heard { missed, ..Heard::default() }.most();
        assert_eq!((of(0), of(1), of(3), of(7)), (PATIENCE, IMPATIENCE, IMPATIENCE, IMPATIENCE));
        assert_eq!((of(2), of(4), of(8)), (2 * IMPATIENCE, 4 * IMPATIENCE, 8 * IMPATIENCE));
        assert_eq!((of(32), of(1 << 31), of(u32::MAX)), (PATIENCE, PATIENCE, IMPATIENCE));
        let all: Duration = (1..=100).map(of).sum();
        assert!(all < 100 * 2 * IMPATIENCE, "{all:?}");
    }
}
