//! Waits for the screen: fitted to the real frame, and done on the hypervisor's frames when there is no agent.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::DisplayError;
use super::fallback::POLL;
use super::hub::Hub;
use super::plane::Shot;
use crate::model::input::{Met, PixelCondition, SettleOptions, Settled};
use crate::model::input_rules;
use crate::model::screen::{Frame, Point, Rect, Size};

/// A wait in the real frame's pixels that ends before the caller's deadline.
///
/// # Errors
/// [`DisplayError::ConditionOutOfFrame`] for a condition that nothing on this frame can meet.
pub(super) fn fit(
    settle: &SettleOptions,
    frame: Option<Size>,
    size: Size,
    deadline: Instant,
) -> Result<SettleOptions, DisplayError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A tenth, a second at most, is left for the answer and a picture.
    let left = left.saturating_sub((left / 10).min(Duration::from_secs(1)));
    let whole = Rect::whole(size);
    let scaled = |rect: Rect| match frame {
        Some(frame) if frame != size => input_rules::scale_rect(rect, frame, size),
        _ => rect,
    };
    let mut out = settle.clone();
    out.timeout = settle.timeout.min(left);
    out.ignore = settle.ignore.iter().filter_map(|rect| scaled(*rect).intersection(whole)).collect();
    for (index, rect) in out.regions.iter_mut().enumerate() {
        let seen = scaled(*rect).intersection(whole);
        let field = format!("settle.regions[{index}]");
        let at = Point { x: coordinate(rect.x), y: coordinate(rect.y) };
        *rect = seen.ok_or(DisplayError::ConditionOutOfFrame { field, at, size })?;
    }
    for (index, pixel) in out.pixels.iter_mut().enumerate() {
        let named = frame.unwrap_or(size);
        if !named.contains(pixel.at) {
            let field = format!("settle.pixels[{index}].at");
            return Err(DisplayError::ConditionOutOfFrame { field, at: pixel.at, size: named });
        }
        if named != size {
            pixel.at = input_rules::scale_point(pixel.at, named, size);
        }
    }
    Ok(out)
}

fn coordinate(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// What a guest says changed, cut to the frame.
pub(super) fn inside(mut settled: Settled, size: Size) -> Settled {
    settled.changed =
        settled.changed.iter().filter_map(|rect| rect.intersection(Rect::whole(size))).collect();
    settled
}

impl Hub {
    /// Compares frames, since the hypervisor tells no changes: from `before` on, which is older than the input where there
    /// was any.
    pub(super) async fn settle_from_outside(
        &self,
        before: Shot,
        options: &SettleOptions,
        deadline: Instant,
    ) -> Result<Settled, DisplayError> {
        let started = Instant::now();
        let give_up = deadline.min(started + options.timeout);
        let mut settled = Settled::default();
        let first = Frame { size: before.size, pixels: before.pixels.get().to_vec().into() };
        let mut last = first.clone();
        let mut last_change = started;
        loop {
            let now = self.outside_frame(deadline).await?;
            if differ(&last, &now, options, Rect::whole(now.size)) {
                last_change = Instant::now();
                settled.settled_after = last_change - started;
                settled.changed = vec![Rect::whole(now.size)];
            }
            if settled.met.is_none() && options.is_conditional() {
                settled.met = met(&first, &now, options);
                settled.met_after = started.elapsed();
            }
            last = now;
            let quiet = last_change.elapsed();
            let waits_for_quiet = !options.is_conditional() || settled.met.is_some();
            if waits_for_quiet && quiet >= options.quiet {
                settled.met = settled.met.or(Some(Met::Quiet));
                return Ok(settled);
            }
            if Instant::now() >= give_up {
                settled.timed_out = true;
                return Ok(settled);
            }
            let next = if waits_for_quiet { POLL.min(options.quiet - quiet) } else { POLL };
            sleep(next.min(give_up.saturating_duration_since(Instant::now()))).await;
        }
    }
}

/// The condition that a frame meets, pixels first: they say what is looked for.
fn met(first: &Frame, now: &Frame, options: &SettleOptions) -> Option<Met> {
    let has_colour = |wanted: &PixelCondition| {
        let (x, y) = (usize::try_from(wanted.at.x).ok()?, usize::try_from(wanted.at.y).ok()?);
        let offset = (y * now.size.width as usize + x) * 4;
        let bgr = now.pixels.get(offset..offset + 3).filter(|_| now.size.contains(wanted.at))?;
        <[u8; 3]>::try_from(bgr).ok().map(|bgr| wanted.is(bgr))
    };
    if let Some(index) = options.pixels.iter().position(|wanted| has_colour(wanted) == Some(true)) {
        return Some(Met::Pixel(index));
    }
    let changed = |region: &Rect| differ(first, now, options, *region);
    options.regions.iter().position(changed).map(Met::Region)
}

/// Whether a pixel of the area that is not ignored is another one.
fn differ(a: &Frame, b: &Frame, options: &SettleOptions, area: Rect) -> bool {
    if a.size != b.size {
        return true;
    }
    let Some(area) = area.intersection(Rect::whole(a.size)) else { return false };
    (area.y..area.y + area.height).any(|y| {
        let start = (y as usize * a.size.width as usize + area.x as usize) * 4;
        let row = start..start + area.width as usize * 4;
        let (old, new) = (&a.pixels[row.clone()], &b.pixels[row]);
        let differs = |(x, (old, new)): (u32, (&[u8], &[u8]))| {
            old[..3] != new[..3]
                && !options
                    .ignore
                    .iter()
                    .any(|r| (r.x..r.x + r.width).contains(&x) && (r.y..r.y + r.height).contains(&y))
        };
        old != new && (area.x..).zip(old.chunks_exact(4).zip(new.chunks_exact(4))).any(differs)
    })
}
