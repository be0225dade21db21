//! Input, waiting for the screen to settle, and both with a picture afterwards.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::error::DisplayError;
use super::hub::{Encoded, Hub, InputDone, Source};
use super::options::ScreenshotOptions;
use super::plane::Shot;
use super::settle;
use crate::guest::{GuestError, InputFailure, InputFailureReason, InputOutcome, Session};
use crate::model::input::{InputEvent, Met, SettleOptions, Settled};
use crate::model::input_rules::{self, InputError, InputProblem};
use crate::model::screen::{Point, Size};

/// What [`Hub::act`] did and saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acted {
    /// What became of the input.
    pub input: InputDone,
    /// How the wait ended.
    pub settled: Settled,
    /// The screen afterwards.
    pub screenshot: Encoded,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waited {
    /// How.
    pub settled: Settled,
    /// What was asked.
    pub source: Source,
    /// Session that was asked; 0 for the hypervisor.
    pub epoch: u64,
}

impl Hub {
    /// Does a batch of input, in order. `frame` is the size of the frame that positions were computed on; absent: the
    /// real one. At most once per batch id within an epoch.
    ///
    /// # Errors
    /// [`DisplayError::Input`] for an event that is wrong, before anything is done; [`DisplayError::OutcomeUnknown`]
    /// when the agent was lost or the deadline passed on the way; [`DisplayError::InputFailed`].
    pub async fn send_input(
        &self,
        batch_id: &str,
        events: Vec<InputEvent>,
        frame: Option<Size>,
        deadline: Instant,
    ) -> Result<InputDone, DisplayError> {
        self.input(batch_id, events, frame, None, deadline).await.map(|(done, _)| done)
    }

    /// Does a batch of input, waits until the screen settles, and takes a picture.
    ///
    /// # Errors
    /// As [`Hub::send_input`] and [`Hub::screenshot`]; whatever is wrong with the options is found before any input.
    pub async fn act(
        &self,
        batch_id: &str,
        events: Vec<InputEvent>,
        frame: Option<Size>,
        settle: &SettleOptions,
        options: &ScreenshotOptions,
        deadline: Instant,
    ) -> Result<Acted, DisplayError> {
        options.check()?;
        input_rules::check_settle(settle).map_err(DisplayError::Invalid)?;
        let (input, settled) = self.input(batch_id, events, frame, Some(settle), deadline).await?;
        let settled = match settled {
            Some(settled) => settled,
            // An outcome that an older agent replayed: the wait is still to do.
            None => self.wait_for_settle(settle, frame, deadline).await?.settled,
        };
        let screenshot = self.screenshot(options, deadline).await?;
        Ok(Acted { input, settled, screenshot })
    }

    /// Waits until the screen settles. A wait that times out is an answer. `frame` is the size that the rectangles of
    /// `settle` refer to; absent: the real one.
    ///
    /// # Errors
    /// [`DisplayError::NotConnected`], [`DisplayError::Invalid`].
    pub async fn wait_for_settle(
        &self,
        settle: &SettleOptions,
        frame: Option<Size>,
        deadline: Instant,
    ) -> Result<Waited, DisplayError> {
        input_rules::check_settle(settle).map_err(DisplayError::Invalid)?;
        let Some(session) = self.driver(deadline).await? else {
            let before = self.look_from_outside(deadline).await?;
            let settle = self.fit(settle, frame, before.size, deadline)?;
            let size = before.size;
            let settled = self.settle_from_outside(before, &settle, deadline).await?;
            let settled = self.unseen(&settle, settled, size);
            return Ok(Waited { settled, source: Source::Hypervisor, epoch: 0 });
        };
        let size = self.frame_size(&session, deadline).await?;
        let settle = self.fit(settle, frame, size, deadline)?;
        let settled = session.settle(&settle, deadline).await;
        self.0.pulse.note(&session, &settled);
        let settled = self.unseen(&settle, settle::inside(settled?, size), size);
        Ok(Waited { settled, source: Source::Agent, epoch: session.epoch() })
    }

    /// Releases every key and button that is held down, whoever pressed it: when its holder has left.
    ///
    /// # Errors
    /// As [`Hub::send_input`]. Nothing that could hold a key is no error.
    pub async fn release_input(&self, deadline: Instant) -> Result<(), DisplayError> {
        // At the same time: one that hangs or fails must not be the reason that the other's keys stay down.
        let (outside, inside) =
            tokio::join!(self.release_from_outside(deadline), self.release_inside(deadline));
        outside.and(inside)
    }

    async fn release_inside(&self, deadline: Instant) -> Result<(), DisplayError> {
        let Some(session) = self.session()? else { return Ok(()) };
        let id = uuid::Uuid::new_v4().to_string();
        let _batch = self.0.pulse.batch(&session);
        let outcome = session.input(&id, &[InputEvent::ReleaseAll], None, deadline).await?;
        match outcome.failure {
            Some(failure) => Err(DisplayError::Guest(GuestError::Failed(failure.message))),
            None => Ok(()),
        }
    }

    /// The session to give input to; none where the hypervisor has to do it.
    async fn driver(&self, deadline: Instant) -> Result<Option<Session>, DisplayError> {
        match self.session()? {
            Some(session) if self.answers(&session, deadline).await => Ok(Some(session)),
            _ => Ok(None),
        }
    }

    async fn input(
        &self,
        batch_id: &str,
        mut events: Vec<InputEvent>,
        frame: Option<Size>,
        settle: Option<&SettleOptions>,
        deadline: Instant,
    ) -> Result<(InputDone, Option<Settled>), DisplayError> {
        if batch_id.is_empty() || batch_id.len() > 64 {
            return Err(DisplayError::BadOption {
                field: "batch_id",
                description: "must be 1 to 64 bytes".to_owned(),
            });
        }
        if frame.is_some_and(|frame| !frame.is_legal()) {
            return Err(DisplayError::BadOption {
                field: "frame_size",
                description: format!("sides must be 1 to {}", Size::MAX_SIDE),
            });
        }
        let fallback = self.fallback();
        let session = self.driver(deadline).await?;
        let (size, before) = match &session {
            Some(session) => (self.frame_size(session, deadline).await?, None),
            None => {
                let before = self.look_from_outside(deadline).await?;
                (before.size, Some(before))
            }
        };
        if let Some(frame) = frame.filter(|frame| *frame != size) {
            input_rules::scale(&mut events, frame, size)?;
        }
        input_rules::check(&mut events, size)?;
        let settle = settle.map(|settle| self.fit(settle, frame, size, deadline)).transpose()?;
        let Some(session) = session else {
            let done = self.input_from_outside(&fallback, batch_id, &events, size, deadline).await?;
            let settled = match (settle, before) {
                (Some(settle), Some(before)) => {
                    let settled = self.settle_from_outside(before, &settle, deadline).await?;
                    Some(self.unseen(&settle, settled, size))
                }
                _ => None,
            };
            return Ok((done, settled));
        };
        if session.is_closed() {
            return Err(DisplayError::NotConnected);
        }
        if let Some(done) = self.hand_over(&fallback, batch_id, deadline).await? {
            return Ok((done, None));
        }
        let secret = events.iter().any(InputEvent::is_secret);
        let outcome = {
            let _batch = self.0.pulse.batch(&session);
            session.input(batch_id, &events, settle.as_ref(), deadline).await
        };
        self.0.pulse.note(&session, &outcome);
        let outcome = match outcome.map_err(|error| if secret { error.without_words() } else { error }) {
            Ok(outcome) => outcome,
            Err(source) if source.outcome_unknown() => {
                fallback.doubt(batch_id);
                return Err(DisplayError::OutcomeUnknown { completed: 0, source });
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(failure) = &outcome.failure {
            self.forget_size();
            let failure = if secret { &withheld(failure, &events) } else { failure };
            return Err(refused(failure, &outcome, &events, size));
        }
        let done = InputDone {
            completed: outcome.completed,
            epoch: session.epoch(),
            scrolled: outcome.scrolled,
            scrolled_pixels: outcome.scrolled_pixels,
            replayed: outcome.replayed,
            source: Source::Agent,
        };
        let settled = outcome.settled.zip(settle);
        let settled =
            settled.map(|(settled, settle)| self.unseen(&settle, settle::inside(settled, size), size));
        Ok((done, settled))
    }

    /// A wait in the real frame's pixels. To wait for a colour under a mask would be to look there.
    fn fit(
        &self,
        settle: &SettleOptions,
        frame: Option<Size>,
        size: Size,
        deadline: Instant,
    ) -> Result<SettleOptions, DisplayError> {
        let fitted = settle::fit(settle, frame, size, deadline)?;
        match fitted.pixels.iter().position(|pixel| self.is_covered(pixel.at, size)) {
            None => Ok(fitted),
            Some(index) => Err(DisplayError::BadOption {
                field: "settle.pixels",
                description: format!("entry {index} lies under a mask"),
            }),
        }
    }

    /// How a wait ended, to those who do not see what came under a mask meanwhile: a colour there was not met.
    fn unseen(&self, settle: &SettleOptions, settled: Settled, size: Size) -> Settled {
        let pixel = match settled.met {
            Some(Met::Pixel(index)) => settle.pixels.get(index),
            _ => None,
        };
        if !pixel.is_some_and(|pixel| self.is_covered(pixel.at, size)) {
            return settled;
        }
        Settled { met: None, met_after: Duration::ZERO, timed_out: true, ..settled }
    }

    fn is_covered(&self, at: Point, size: Size) -> bool {
        self.masks().is_some_and(|masks| masks.over(size).iter().any(|mask| mask.contains(at)))
    }

    /// Size of the real frame: as last captured in this session, else asked for.
    pub(super) async fn frame_size(
        &self,
        session: &Session,
        deadline: Instant,
    ) -> Result<Size, DisplayError> {
        let epoch = session.epoch();
        let captured = {
            let plane = self.0.view.plane.borrow();
            let of_session = |shot: &&Shot| shot.source == Source::Agent && shot.epoch == epoch;
            plane.shot().filter(of_session).map(|shot| shot.size)
        };
        if let Some(size) = captured {
            return Ok(size);
        }
        let known = *self.0.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, size)) = known.filter(|(of, _)| *of == epoch) {
            return Ok(size);
        }
        let size = session.probe(deadline).await?.size;
        *self.0.probed.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, size));
        Ok(size)
    }

    /// The agent disagreed about the frame: ask again next time.
    fn forget_size(&self) {
        *self.0.probed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A refusal without the agent's words, but for the name of a key that is in the batch: they may quote a secret.
fn withheld(failure: &InputFailure, events: &[InputEvent]) -> InputFailure {
    let keys = events.iter().flat_map(InputEvent::keys).map(|(_, key)| format!("{key:?}"));
    let named = keys.into_iter().find(|key| failure.message.contains(key));
    let message = match (failure.reason, named) {
        (InputFailureReason::UnknownKey, Some(key)) => format!("no key named {key}"),
        _ => "refused; why is withheld, because a secret is among the input".to_owned(),
    };
    InputFailure { reason: failure.reason, message }
}

/// The agent's refusal in the terms of the batch.
fn refused(
    failure: &InputFailure,
    outcome: &InputOutcome,
    events: &[InputEvent],
    size: Size,
) -> DisplayError {
    let index = outcome.completed as usize;
    if outcome.completed > 0 {
        let message = failure.message.clone();
        return DisplayError::InputFailed { completed: outcome.completed, message };
    }
    let problem = match failure.reason {
        InputFailureReason::UnknownKey => {
            // The agent refuses a batch whole and names the key; whose it is, is known here.
            let of = |(index, event): (usize, &InputEvent)| {
                let (field, name) =
                    event.keys().find(|(_, key)| failure.message.contains(&format!("{key:?}")))?;
                Some((index, field, name.to_owned()))
            };
            let Some((index, field, name)) = events.iter().enumerate().find_map(of) else {
                let problem = InputProblem::Illegal(failure.message.clone());
                return DisplayError::Input(InputError { index, field: "event", problem });
            };
            return DisplayError::Input(InputError {
                index,
                field,
                problem: InputProblem::UnknownKey { name },
            });
        }
        InputFailureReason::OutOfFrame => match events.get(index).and_then(InputEvent::place) {
            Some(point) => InputProblem::OutOfFrame { point, size },
            None => InputProblem::Illegal(failure.message.clone()),
        },
        InputFailureReason::Invalid => InputProblem::Illegal(failure.message.clone()),
        InputFailureReason::Platform => {
            return DisplayError::Guest(GuestError::Failed(failure.message.clone()));
        }
    };
    DisplayError::Input(InputError { index, field: "event", problem })
}
