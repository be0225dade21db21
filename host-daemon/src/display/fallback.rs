//! Screen and input through the hypervisor, for when there is no agent: boot, lock screen, a hung guest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard as StdMutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::error::DisplayError;
use super::hub::{Hub, InputDone, Source};
use super::plane::Shot;
use crate::guest::GuestError;
use crate::model::input::{InputEvent, RawInput};
use crate::model::input_rules::{self, Held, RawStep};
use crate::model::screen::{Frame, Point, Size};

/// Time between two looks at a screen that says nothing of its changes.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// Batches whose outcome is remembered.
const REMEMBERED: usize = 256;

/// Keyboard and mouse of the hypervisor, which remember nothing by themselves.
#[derive(Default)]
pub(super) struct FallbackInput {
    /// What is held down; locked for as long as a batch takes.
    held: Mutex<Held>,
    /// Locked for a moment.
    batches: StdMutex<Batches>,
    /// The machine is another one: no batch goes on there.
    ended: CancellationToken,
}

#[derive(Default)]
struct Batches {
    /// Batches that were done, oldest first: an id is never done twice.
    done: VecDeque<(String, InputDone)>,
    /// Batches that an agent was given and did not answer for, oldest first: it may do them yet.
    doubtful: VecDeque<String>,
}

impl Hub {
    /// What is known of the hypervisor's input as long as nobody resets the VM. Taken once per batch: what is told
    /// of one that outlived a reset must not be told to whoever has the VM then.
    pub(super) fn fallback(&self) -> Arc<FallbackInput> {
        Arc::clone(&self.0.fallback.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The machine is another one, where nothing is held down and no batch was done.
    pub fn forget_input(&self) {
        let mut fallback = self.0.fallback.lock().unwrap_or_else(PoisonError::into_inner);
        fallback.ended.cancel();
        *fallback = Arc::default();
    }

    pub(super) async fn outside_frame(&self, deadline: Instant) -> Result<Frame, DisplayError> {
        if !self.0.hv.capabilities().display {
            return Err(DisplayError::NotConnected);
        }
        let frame = timeout_at(deadline, self.0.hv.screenshot(&self.0.vm))
            .await
            .map_err(|_| DisplayError::Timeout("hypervisor's screenshot"))?
            .map_err(DisplayError::Hypervisor)?;
        if !frame.size.is_legal() || frame.pixels.len() != frame.size.frame_bytes() {
            return Err(DisplayError::Encode(format!("the hypervisor gave a {frame:?} of another size")));
        }
        Ok(frame)
    }

    /// The screen as the hypervisor shows it; it has no cursor of its own to leave out.
    pub(super) async fn look_from_outside(&self, deadline: Instant) -> Result<Shot, DisplayError> {
        let frame = self.outside_frame(deadline).await?;
        let view = &self.0.view;
        view.plane.send_modify(|plane| {
            plane.replace(frame.size, frame.pixels.into());
        });
        view.plane.borrow().shot().cloned().ok_or(DisplayError::NotConnected)
    }

    /// Lowers a batch whole before any of it is done, then does it. `events` are checked and in the frame's pixels.
    pub(super) async fn input_from_outside(
        &self,
        fallback: &FallbackInput,
        batch_id: &str,
        events: &[InputEvent],
        size: Size,
        deadline: Instant,
    ) -> Result<InputDone, DisplayError> {
        let mut keyboard = fallback.keyboard(deadline).await?;
        if let Some(done) = fallback.replay(batch_id) {
            return Ok(done);
        }
        if fallback.batches().doubtful.iter().any(|id| id == batch_id) {
            // The agent has it and hangs: it may do it when it goes on.
            let source = GuestError::Timeout("finish the input");
            return Err(DisplayError::OutcomeUnknown { completed: 0, source });
        }
        let mut held = keyboard.clone();
        let mut lowered = Vec::with_capacity(events.len());
        let (mut scrolled, mut scrolled_pixels) = (Point::default(), Point::default());
        for (index, event) in events.iter().enumerate() {
            lowered.push(input_rules::to_raw(event, index, size, &mut held)?);
            if let InputEvent::Scroll { delta_x, delta_y, pixels, .. } = event {
                let (x, y) = (input_rules::notches(pixels.x), input_rules::notches(pixels.y));
                scrolled = Point { x: scrolled.x + delta_x + x, y: scrolled.y + delta_y + y };
                let pixel = input_rules::NOTCH_PIXELS;
                scrolled_pixels =
                    Point { x: scrolled_pixels.x + x * pixel, y: scrolled_pixels.y + y * pixel };
            }
        }
        for (done, steps) in lowered.into_iter().enumerate() {
            let completed = u32::try_from(done).unwrap_or(u32::MAX);
            let doing = fallback.ended.run_until_cancelled(self.steps(&steps, size, &mut keyboard));
            let failed = match timeout_at(deadline, doing).await {
                Ok(Some(Ok(()))) => continue,
                Ok(Some(Err(error))) if done == 0 => return Err(error),
                Ok(Some(Err(error))) => error.to_string(),
                Ok(None) => "the VM was reset".to_owned(),
                Err(_) => "it took too long".to_owned(),
            };
            return Err(DisplayError::OutcomeUnknown { completed, source: GuestError::Lost(failed) });
        }
        let completed = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let source = Source::Hypervisor;
        let done = InputDone { completed, epoch: 0, scrolled, scrolled_pixels, replayed: false, source };
        remember(&mut fallback.batches().done, (batch_id.to_owned(), done));
        Ok(done)
    }

    /// Before the agent is given a batch: waits for the one that the hypervisor is doing, and releases what its keyboard holds
    /// down, which the agent knows nothing of. Gives what the hypervisor made of this very batch.
    pub(super) async fn hand_over(
        &self,
        fallback: &FallbackInput,
        batch_id: &str,
        deadline: Instant,
    ) -> Result<Option<InputDone>, DisplayError> {
        let mut keyboard = fallback.keyboard(deadline).await?;
        if let Some(done) = fallback.replay(batch_id) {
            return Ok(Some(done));
        }
        if let Err(error) = self.let_go(&mut keyboard, deadline).await {
            // The agent's own keyboard is none the worse for it.
            tracing::warn!(vm = %self.0.vm, %error, "keys of the hypervisor's keyboard may be held down");
        }
        Ok(None)
    }

    /// Releases what the hypervisor's keyboard and mouse hold down, if anything.
    pub(super) async fn release_from_outside(&self, deadline: Instant) -> Result<(), DisplayError> {
        let fallback = self.fallback();
        let mut keyboard = fallback.keyboard(deadline).await?;
        self.let_go(&mut keyboard, deadline).await
    }

    async fn let_go(&self, keyboard: &mut Held, deadline: Instant) -> Result<(), DisplayError> {
        if !keyboard.any() {
            return Ok(());
        }
        let size = self.outside_frame(deadline).await?.size;
        let mut held = keyboard.clone();
        let steps = input_rules::to_raw(&InputEvent::ReleaseAll, 0, size, &mut held)?;
        timeout_at(deadline, self.steps(&steps, size, keyboard))
            .await
            .map_err(|_| DisplayError::Timeout("hypervisor's input"))?
    }

    /// Does steps, and takes down what they hold as it is done: also a caller that goes away in the middle leaves behind what
    /// has to be released.
    async fn steps(&self, steps: &[RawStep], size: Size, held: &mut Held) -> Result<(), DisplayError> {
        let mut together: Vec<RawInput> = Vec::new();
        for step in steps {
            match step {
                RawStep::Do(input) => together.push(input.clone()),
                RawStep::Wait(time) => {
                    self.raw(&mut together, size, held).await?;
                    sleep(*time).await;
                }
            }
        }
        self.raw(&mut together, size, held).await
    }

    async fn raw(&self, inputs: &mut Vec<RawInput>, size: Size, held: &mut Held) -> Result<(), DisplayError> {
        if inputs.is_empty() {
            return Ok(());
        }
        let inputs = std::mem::take(inputs);
        // What goes down counts before it is sent, what comes up only afterwards.
        inputs.iter().filter(|input| input.is_press()).for_each(|input| held.note(input));
        self.0.hv.input(&self.0.vm, size, &inputs).await.map_err(DisplayError::Hypervisor)?;
        inputs.iter().for_each(|input| held.note(input));
        Ok(())
    }
}

impl FallbackInput {
    async fn keyboard(&self, deadline: Instant) -> Result<MutexGuard<'_, Held>, DisplayError> {
        timeout_at(deadline, self.held.lock()).await.map_err(|_| DisplayError::Timeout("hypervisor's input"))
    }

    fn batches(&self) -> StdMutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replay(&self, batch_id: &str) -> Option<InputDone> {
        let batches = self.batches();
        let (_, done) = batches.done.iter().find(|(id, _)| id == batch_id)?;
        Some(InputDone { replayed: true, ..*done })
    }

    /// An agent has this batch, and nobody knows what became of it: the hypervisor must not do it again.
    pub(super) fn doubt(&self, batch_id: &str) {
        remember(&mut self.batches().doubtful, batch_id.to_owned());
    }
}

fn remember<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() == REMEMBERED {
        all.pop_front();
    }
    all.push_back(one);
}
