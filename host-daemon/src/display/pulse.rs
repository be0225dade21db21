//! Whether the desktop's half of an agent answers, so that a hung one is passed by.
//!
//! A session says little about it: heartbeats come from the agent's other half, and the stream of a frozen guest stays
//! open until a ping has gone unanswered for long. So the hub notes when the screen or the input devices last gave an
//! answer. Input in particular must know before it is sent, because afterwards nobody can tell whether it was done:
//!
//! ```text
//!   an answer, not long ago ──► the agent           no cost
//!   else a probe ──┬─ answer ─► the agent           a round trip
//!                  └─ none ───► the hypervisor      hung: from now on each call asks only shortly, until one answers
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::hub::Hub;
use crate::guest::{GuestError, Session};

/// How long an answer is proof enough: a click after a click needs no probe, and whoever hangs is found out soon.
const TRUST: Duration = Duration::from_secs(2);
/// Most that a probe of an agent that has always answered may take; under emulation seconds pass.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for one that hung when it was last asked.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// What was last heard of a session.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Heard>);

#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    epoch: u64,
    answered: Option<Instant>,
    hung: bool,
}

impl Pulse {
    fn of(&self, session: &Session) -> Heard {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.epoch == session.epoch() {
            heard
        } else {
            Heard { epoch: session.epoch(), ..Heard::default() }
        }
    }

    fn set(&self, heard: Heard) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = heard;
    }

    /// Takes in how a call that began at `asked` ended: any answer proves that somebody is there.
    pub(super) fn note<T>(&self, session: &Session, asked: Instant, outcome: &Result<T, GuestError>) {
        let heard = self.of(session);
        match outcome {
            // Whoever has no time learns nothing from silence.
            Err(GuestError::Timeout(_)) if asked.elapsed() < IMPATIENCE => {}
            Err(GuestError::Timeout(_)) => self.set(Heard { hung: true, answered: None, ..heard }),
            Err(GuestError::Lost(_) | GuestError::NotConnected) => {}
            _ => self.set(Heard { answered: Some(Instant::now()), hung: false, ..heard }),
        }
    }

    pub(super) fn hangs(&self, session: &Session) -> bool {
        self.of(session).hung
    }

    /// When to stop waiting for a session so that its hypervisor still has time before `deadline`.
    pub(super) fn patience(&self, session: &Session, deadline: Instant) -> Instant {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        now + if self.hangs(session) { IMPATIENCE.min(left / 4) } else { left.mul_f64(0.75) }
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
        let most = if heard.hung { IMPATIENCE } else { PATIENCE };
        let asked = Instant::now();
        let left = deadline.saturating_duration_since(asked);
        let probed = session.probe(asked + most.min(left / 2)).await;
        pulse.note(session, asked, &probed);
        match probed {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(vm = %self.0.vm, %error, "passing the agent by");
                !matches!(error, GuestError::Timeout(_) | GuestError::Lost(_) | GuestError::NotReady(_))
            }
        }
    }
}
