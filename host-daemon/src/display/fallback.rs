//! Screen and input through the hypervisor, for when there is no agent: boot, lock screen, a hung guest.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::error::DisplayError;
use super::hub::{FallbackInput, Hub, InputDone, Source};
use super::plane::Shot;
use crate::guest::GuestError;
use crate::model::input::{InputEvent, RawInput, SettleOptions, Settled};
use crate::model::input_rules::{self, RawStep};
use crate::model::screen::{Frame, Point, Size};

/// Time between two looks at a screen that says nothing of its changes.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// Batches whose outcome is remembered.
const REMEMBERED: usize = 256;

impl Hub {
    async fn outside_frame(&self, deadline: Instant) -> Result<Frame, DisplayError> {
        if !self.0.hv.capabilities().display {
            return Err(DisplayError::NotConnected);
        }
        timeout_at(deadline, self.0.hv.screenshot(&self.0.vm))
            .await
            .map_err(|_| DisplayError::Timeout("hypervisor's screenshot"))?
            .map_err(DisplayError::Hypervisor)
    }

    /// The screen as the hypervisor shows it; it has no cursor of its own to leave out.
    pub(super) async fn look_from_outside(&self, deadline: Instant) -> Result<Shot, DisplayError> {
        let frame = self.outside_frame(deadline).await?;
        if !frame.size.is_legal() || frame.pixels.len() != frame.size.frame_bytes() {
            return Err(DisplayError::Encode(format!("the hypervisor gave a {frame:?} of another size")));
        }
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
        let mut scrolled = Point::default();
        for (index, event) in events.iter().enumerate() {
            lowered.push(input_rules::to_raw(event, index, size, &mut held)?);
            if let InputEvent::Scroll { delta_x, delta_y, .. } = event {
                scrolled = Point { x: scrolled.x + delta_x, y: scrolled.y + delta_y };
            }
        }
        for (done, steps) in lowered.into_iter().enumerate() {
            let completed = u32::try_from(done).unwrap_or(u32::MAX);
            let result = timeout_at(deadline, self.steps(&steps, size)).await;
            let failed = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if done == 0 => return Err(error),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            };
            // Whatever was pressed on the way stays known as pressed, so that it can be released.
            keyboard.held = held;
            return Err(DisplayError::OutcomeUnknown { completed, source: GuestError::Lost(failed) });
        }
        keyboard.held = held;
        let completed = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let done = InputDone { completed, epoch: 0, scrolled, replayed: false, source: Source::Hypervisor };
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

    async fn steps(&self, steps: &[RawStep], size: Size) -> Result<(), DisplayError> {
        let mut together: Vec<RawInput> = Vec::new();
        for step in steps {
            match step {
                RawStep::Do(input) => together.push(input.clone()),
                RawStep::Wait(time) => {
                    self.raw(&mut together, size).await?;
                    sleep(*time).await;
                }
            }
        }
        self.raw(&mut together, size).await
    }

    async fn raw(&self, inputs: &mut Vec<RawInput>, size: Size) -> Result<(), DisplayError> {
        if inputs.is_empty() {
            return Ok(());
        }
        let inputs = std::mem::take(inputs);
        self.0.hv.input(&self.0.vm, size, &inputs).await.map_err(DisplayError::Hypervisor)
    }

    /// Compares frames until they stay the same. `ignore` can't be honoured exactly without the guest's damage: those
    /// areas are left out of the comparison.
    pub(super) async fn settle_from_outside(
        &self,
        options: &SettleOptions,
        deadline: Instant,
    ) -> Result<Settled, DisplayError> {
        let started = Instant::now();
        let give_up = deadline.min(started + options.timeout);
        let mut settled = Settled::default();
        let mut before = self.outside_frame(deadline).await?;
        let mut last_change = started;
        loop {
            let quiet = last_change.elapsed();
            if quiet >= options.quiet {
                return Ok(settled);
            }
            if Instant::now() >= give_up {
                settled.timed_out = true;
                return Ok(settled);
            }
            sleep(POLL.min(options.quiet - quiet).min(give_up.saturating_duration_since(Instant::now())))
                .await;
            let now = self.outside_frame(deadline).await?;
            if differ(&before, &now, options) {
                last_change = Instant::now();
                settled.settled_after = last_change - started;
                settled.changed = vec![crate::model::screen::Rect::whole(now.size)];
            }
            before = now;
        }
    }
}

impl FallbackInput {
    fn replay(&self, batch_id: &str) -> Option<InputDone> {
        let (_, done) = self.done.iter().find(|(id, _)| id == batch_id)?;
        Some(InputDone { replayed: true, ..*done })
    }
}

fn differ(a: &Frame, b: &Frame, options: &SettleOptions) -> bool {
    if a.size != b.size {
        return true;
    }
    if a.pixels == b.pixels {
        return false;
    }
    let width = a.size.width as usize;
    a.pixels.chunks_exact(4).zip(b.pixels.chunks_exact(4)).enumerate().any(|(n, (a, b))| {
        let (x, y) = (n % width, n / width);
        a[..3] != b[..3]
            && !options.ignore.iter().any(|r| {
                (r.x as usize..(r.x + r.width) as usize).contains(&x)
                    && (r.y as usize..(r.y + r.height) as usize).contains(&y)
            })
    })
}
