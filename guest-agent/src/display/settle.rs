//! Waiting until the screen is quiet, or until something on it is met.
//!
//! A [`Watch`] collects what the screen's thread records; a [`Wait`] is a matter of time, and of looking at the pixels of its
//! conditions whenever the watch was told that something was drawn there. At the end of the quiet time the screen is asked
//! once more, so that a change the display server has not told yet is not missed.

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use hvkube_proto::guest::v1 as pb;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::rect::{Rect, simplify};
use super::{DisplayError, Screen};

const MAX_CHANGED: usize = 64;

/// A pixel that shall have a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelColour {
    /// From the left edge.
    pub x: u32,
    /// From the top edge.
    pub y: u32,
    /// Red, green, blue.
    pub rgb: [u8; 3],
    /// How far each of them may be from it.
    pub tolerance: u8,
}

impl PixelColour {
    fn rect(&self) -> Rect {
        Rect { x: self.x, y: self.y, width: 1, height: 1 }
    }

    /// Whether these are the bytes (blue, green, red, unused) of a pixel of this colour; no bytes are none.
    fn is(&self, bgrx: &[u8]) -> bool {
        let [blue, green, red, _] = bgrx else { return false };
        [red, green, blue].iter().zip(self.rgb).all(|(seen, wanted)| seen.abs_diff(wanted) <= self.tolerance)
    }
}

/// What a watch looks out for.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// Changes wholly inside one of these do not count.
    pub ignore: Vec<Rect>,
    /// Until one of these looks different.
    pub regions: Vec<Rect>,
    /// Until one of these has its colour.
    pub pixels: Vec<PixelColour>,
}

/// What has changed on the screen since the watch began.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    interest: Interest,
    changes: Mutex<Changes>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Changes {
    last: Option<Instant>,
    rects: Vec<Rect>,
    /// Something was drawn where a condition looks.
    touched: bool,
}

impl Watch {
    /// Begins now.
    #[must_use]
    pub fn new(interest: Interest) -> Self {
        Self { began: Instant::now(), interest, changes: Mutex::default(), changed: Notify::new() }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        // Nothing in here can panic half-way through a change.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what changed just now.
    pub fn record(&self, rects: &[Rect]) {
        let Interest { ignore, regions, pixels } = &self.interest;
        let mut changes = self.changes();
        let before = changes.rects.len();
        changes.rects.extend(rects.iter().filter(|r| !ignore.iter().any(|i| i.contains(r))));
        let counted = &changes.rects[before..];
        let meets = |looked_at: Rect, drawn: &[Rect]| drawn.iter().any(|r| r.intersect(&looked_at).is_some());
        // Who names a pixel means it, also where changes are ignored.
        let touched = regions.iter().any(|region| meets(*region, counted))
            || pixels.iter().any(|pixel| meets(pixel.rect(), rects));
        changes.touched |= touched;
        let changed = changes.rects.len() > before;
        if changed {
            if changes.rects.len() > MAX_CHANGED {
                simplify(&mut changes.rects, MAX_CHANGED);
            }
            changes.last = Some(Instant::now());
        }
        drop(changes);
        if changed || touched {
            self.changed.notify_one();
        }
    }

    fn take_touched(&self) -> bool {
        std::mem::take(&mut self.changes().touched)
    }
}

/// A wait that has begun, and knows what the screen looked like then.
#[derive(Debug)]
pub struct Wait {
    watch: Arc<Watch>,
    /// Of the regions.
    looks: Vec<u64>,
    hasher: RandomState,
}

impl Wait {
    /// Begins: what is drawn from now on counts.
    ///
    /// # Errors
    /// When the display goes away.
    pub async fn begin(screen: &dyn Screen, interest: Interest) -> Result<Self, DisplayError> {
        let regions = interest.regions.clone();
        let watch = screen.watch(interest).await?;
        let mut wait = Self { watch, looks: Vec::new(), hasher: RandomState::default() };
        if !regions.is_empty() {
            let pixels = screen.read(regions).await?;
            wait.looks = wait.looks(pixels);
        }
        Ok(wait)
    }

    /// Waits for the first condition to be met, if there are any, and then until nothing has changed for `quiet`, counted
    /// from then on, but no longer than `timeout` in all.
    ///
    /// # Errors
    /// When the display goes away.
    pub async fn end(
        self,
        screen: &dyn Screen,
        quiet: Duration,
        timeout: Duration,
    ) -> Result<pb::SettleResponse, DisplayError> {
        let start = Instant::now();
        let deadline = start + timeout;
        let Interest { regions, pixels, .. } = &self.watch.interest;
        let conditional = !regions.is_empty() || !pixels.is_empty();
        let met = if conditional { self.meet(screen, deadline).await? } else { None };
        let mut answer = if conditional && met.is_none() {
            pb::SettleResponse { timed_out: true, sequence: screen.flush().await?, ..Default::default() }
        } else {
            self.settle(screen, quiet, deadline).await?
        };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        match met {
            Some(Met { condition, index, at }) => {
                answer.set_met(condition);
                answer.met_index = u32::try_from(index).unwrap_or(u32::MAX);
                answer.met_after_micros = micros(at.saturating_duration_since(start));
            }
            None if !answer.timed_out => answer.set_met(pb::Condition::Quiet),
            None => {}
        }
        let mut changes = self.watch.changes();
        simplify(&mut changes.rects, MAX_CHANGED);
        let began = self.watch.began;
        let after = changes.last.map_or(Duration::ZERO, |last| last.saturating_duration_since(began));
        answer.settled_after_micros = micros(after);
        answer.changed = changes.rects.drain(..).map(Into::into).collect();
        Ok(answer)
    }

    /// Waits until a condition is met.
    async fn meet(&self, screen: &dyn Screen, deadline: Instant) -> Result<Option<Met>, DisplayError> {
        // The first look is for what is so from the start.
        let mut look = true;
        loop {
            if look || self.watch.take_touched() {
                look = false;
                if let Some(met) = self.look(screen).await? {
                    return Ok(Some(met));
                }
                continue;
            }
            if Instant::now() >= deadline {
                // What has been drawn and not been told yet counts too.
                return self.look(screen).await;
            }
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => {}
                () = self.watch.changed.notified() => {}
            }
        }
    }

    /// The condition that the screen meets now, pixels first: they say what is looked for.
    async fn look(&self, screen: &dyn Screen) -> Result<Option<Met>, DisplayError> {
        let Interest { regions, pixels, .. } = &self.watch.interest;
        let areas = pixels.iter().map(PixelColour::rect).chain(regions.iter().copied()).collect();
        let mut seen = screen.read(areas).await?;
        let at = Instant::now();
        let rest = seen.split_off(pixels.len().min(seen.len()));
        if let Some(index) = pixels.iter().zip(&seen).position(|(wanted, seen)| wanted.is(seen)) {
            return Ok(Some(Met { condition: pb::Condition::Pixel, index, at }));
        }
        let index = self.looks(rest).iter().zip(&self.looks).position(|(now, before)| now != before);
        Ok(index.map(|index| Met { condition: pb::Condition::Region, index, at }))
    }

    /// Hashes of the regions' pixels, without those that are ignored.
    fn looks(&self, pixels: Vec<Vec<u8>>) -> Vec<u64> {
        let Interest { ignore, regions, .. } = &self.watch.interest;
        let look = |(region, mut pixels): (&Rect, Vec<u8>)| {
            for part in ignore.iter().filter_map(|ignored| ignored.intersect(region)) {
                for y in part.y - region.y..part.y - region.y + part.height {
                    let start = (y * region.width + part.x - region.x) as usize * 4;
                    // A region that is cut by the screen's edge has fewer pixels, and other rows.
                    if let Some(row) = pixels.get_mut(start..start + part.width as usize * 4) {
                        row.fill(0);
                    }
                }
            }
            pixels.iter_mut().skip(3).step_by(4).for_each(|unused| *unused = 0);
            let mut hasher = self.hasher.build_hasher();
            hasher.write(&pixels);
            hasher.finish()
        };
        regions.iter().zip(pixels).map(look).collect()
    }

    /// Waits until nothing has changed for `quiet`.
    async fn settle(
        &self,
        screen: &dyn Screen,
        quiet: Duration,
        deadline: Instant,
    ) -> Result<pb::SettleResponse, DisplayError> {
        let start = Instant::now();
        loop {
            let last = self.watch.changes().last;
            let calm_at = last.map_or(start, |l| l.max(start)) + quiet;
            let now = Instant::now();
            if now >= calm_at || now >= deadline {
                let sequence = screen.flush().await?;
                let still = self.watch.changes().last == last || quiet.is_zero();
                if still || now >= deadline {
                    let timed_out = now < calm_at || !still;
                    return Ok(pb::SettleResponse { timed_out, sequence, ..Default::default() });
                }
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep_until(calm_at.min(deadline)) => {}
                () = self.watch.changed.notified() => {}
            }
        }
    }
}

/// A condition that was met.
#[derive(Clone, Copy, Debug)]
struct Met {
    condition: pb::Condition,
    index: usize,
    at: Instant,
}

#[cfg(test)]
mod tests;
