//! Screen and input through the hypervisor, for when there is no agent: boot, lock screen, a hung guest.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::error::DisplayError;
use super::hub::{FallbackInput, Hub, InputDone, Source};
use super::plane::Shot;
use crate::guest::GuestError;
use crate::model::input::{InputEvent, RawInput};
use crate::model::input_rules::{self, Held, RawStep};
use crate::model::screen::{Frame, Point, Size};

/// Time between two looks at a screen that says nothing of its changes.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// Batches whose outcome is remembered.
const REMEMBERED: usize = 256;

impl Hub {
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
        batch_id: &str,
        events: &[InputEvent],
        size: Size,
        deadline: Instant,
    ) -> Result<InputDone, DisplayError> {
        let mut keyboard = timeout_at(deadline, self.0.fallback.lock())
            .await
            .map_err(|_| DisplayError::Timeout("hypervisor's input"))?;
        if let Some(done) = keyboard.replay(batch_id) {
            return Ok(done);
        }
        if keyboard.doubtful.iter().any(|id| id == batch_id) {
            // The agent has it and hangs: it may do it when it goes on.
            let source = GuestError::Timeout("finish the input");
            return Err(DisplayError::OutcomeUnknown { completed: 0, source });
        }
        let mut held = keyboard.held.clone();
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
            let result = timeout_at(deadline, self.steps(&steps, size, &mut keyboard.held)).await;
            let failed = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if done == 0 => return Err(error),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            };
            return Err(DisplayError::OutcomeUnknown { completed, source: GuestError::Lost(failed) });
        }
        let completed = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let source = Source::Hypervisor;
        let done = InputDone { completed, epoch: 0, scrolled, scrolled_pixels, replayed: false, source };
        if keyboard.done.len() == REMEMBERED {
            keyboard.done.pop_front();
        }
        keyboard.done.push_back((batch_id.to_owned(), done));
        Ok(done)
    }

    /// What the hypervisor made of a batch, before the agent answered again.
    pub(super) async fn done_from_outside(&self, batch_id: &str) -> Option<InputDone> {
        self.0.fallback.lock().await.replay(batch_id)
    }

    /// An agent has this batch, and nobody knows what became of it: the hypervisor must not do it again.
    pub(super) async fn doubt(&self, batch_id: &str) {
        let doubtful = &mut self.0.fallback.lock().await.doubtful;
        if doubtful.len() == REMEMBERED {
            doubtful.pop_front();
        }
        doubtful.push_back(batch_id.to_owned());
    }

    /// Releases what the hypervisor's keyboard and mouse hold down, if anything.
    pub(super) async fn release_from_outside(&self, deadline: Instant) -> Result<(), DisplayError> {
        let mut keyboard = timeout_at(deadline, self.0.fallback.lock())
            .await
            .map_err(|_| DisplayError::Timeout("hypervisor's input"))?;
        if !keyboard.held.any() {
            return Ok(());
        }
        let size = self.outside_frame(deadline).await?.size;
        let mut held = keyboard.held.clone();
        let steps = input_rules::to_raw(&InputEvent::ReleaseAll, 0, size, &mut held)?;
        timeout_at(deadline, self.steps(&steps, size, &mut keyboard.held))
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
    fn replay(&self, batch_id: &str) -> Option<InputDone> {
        let (_, done) = self.done.iter().find(|(id, _)| id == batch_id)?;
        Some(InputDone { replayed: true, ..*done })
    }
}
