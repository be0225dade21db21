//! Masks of screens.

use tokio::time::Instant;

use super::leases::not_active;
use crate::model::error::{Error, Reason, Result};
use crate::model::input_rules;
use crate::model::mask::Masks;
use crate::model::screen::{Rect, Size};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Caller, Target};

impl Orchestrator {
    /// Covers these parts of a desktop's screen, in place of those before, until its lease ends. Gives them in the real
    /// frame's pixels. `frame` is the size that they were computed on; absent: the real one.
    ///
    /// # Errors
    /// As [`Orchestrator::desktop`]; [`Reason::OutOfFrame`].
    pub async fn set_masks(
        &self,
        caller: &Caller,
        target: &Target,
        areas: Vec<Rect>,
        frame: Option<Size>,
        deadline: Instant,
    ) -> Result<Vec<Rect>> {
        // Before the right is looked at: what was meant for this screen must not come over the next one's.
        let lease = self.held_under(target);
        let hub = self.desktop(caller, target).await?;
        self.may_drive(target)?;
        let masks = if areas.is_empty() {
            None
        } else {
            let size = hub.size(deadline).await?;
            let fit = |(i, area)| fitted(i, area, frame.unwrap_or(size), size);
            let areas = areas.into_iter().enumerate().map(fit);
            Some(Masks { frame: size, areas: areas.collect::<Result<_>>()? })
        };
        let areas = masks.as_ref().map(|masks| masks.areas.clone()).unwrap_or_default();
        let handle = self.target(caller, target).await?;
        let set = handle.call(move |vm| Box::pin(async move { vm.set_masks(lease, masks).await })).await;
        match (set, target) {
            (Err(error), Target::Lease(lease)) if error.reason == Reason::VmBusy => {
                Err(not_active(&self.lease(lease).await?))
            }
            (set, _) => set.map(|()| areas),
        }
    }

    /// What is covered of a desktop's screen.
    ///
    /// # Errors
    /// As [`Orchestrator::desktop`], but a VM that is saved has its masks too.
    pub async fn masks(&self, caller: &Caller, target: &Target) -> Result<Option<Masks>> {
        Ok(self.target(caller, target).await?.hub.masks())
    }
}

/// The area with this number, of a frame in another one's pixels; it must lie inside.
fn fitted(index: usize, area: Rect, frame: Size, size: Size) -> Result<Rect> {
    let scaled = if frame == size { area } else { input_rules::scale_rect(area, frame, size) };
    let inside = scaled.intersection(Rect::whole(size)).filter(|_| area.fits(frame));
    inside.ok_or_else(|| {
        let Rect { x, y, width, height } = area;
        let place = format!("{width}x{height} at ({x}, {y}) lies outside the frame");
        let what = format!("{place} of {}x{}", frame.width, frame.height);
        Error::new(Reason::OutOfFrame, &what)
            .with("frame_width", frame.width)
            .with("frame_height", frame.height)
            .violation(format!("masks[{index}]"), what)
    })
}
