//! The canonical frame: what the host believes the screen to be, and what changed on the way there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use super::hub::Source;
use crate::guest::{Captured, Fill, GuestError, Patch};
use crate::model::screen::{Point, Rect, Size};

/// States of the screen whose changed rectangles are remembered. A subscriber that is further behind is told that all
/// of the frame changed.
const LOG: usize = 64;
/// Most rectangles that are told; more are merged into one around them.
const MAX_CHANGED: usize = 64;

/// One state of the screen. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Shot {
    pub(super) source: Source,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) captured_at: SystemTime,
    pub(super) pointer: Option<Point>,
    pub(super) size: Size,
    pub(super) pixels: Arc<Vec<u8>>,
}

/// The latest state, and what changed in the ones before.
#[derive(Debug, Default)]
pub(super) struct Plane {
    shot: Option<Shot>,
    log: VecDeque<Step>,
}

#[derive(Debug)]
struct Step {
    sequence: u64,
    /// All changes of this step; everything when the frame was sent whole.
    areas: Vec<Rect>,
}

impl Plane {
    pub(super) fn shot(&self) -> Option<&Shot> {
        self.shot.as_ref()
    }

    /// The sequence to ask a session for changes since; 0 when there is nothing to build on.
    pub(super) fn since(&self, epoch: u64) -> u64 {
        match &self.shot {
            Some(shot) if shot.source == Source::Agent && shot.epoch == epoch => shot.sequence,
            _ => 0,
        }
    }

    /// Applies what a session answered to a request for changes since `since`. Gives whether the screen is another now.
    /// An answer that an answer to a later request has overtaken changes nothing.
    pub(super) fn apply(&mut self, captured: &Captured, since: u64, epoch: u64) -> Result<bool, GuestError> {
        let have = self.since(epoch);
        if have != 0 && captured.sequence < have {
            // Overtaken, unless the agent went back behind what it was asked to build on.
            return if captured.sequence < since {
                Err(GuestError::Protocol("the screen's sequence went back".to_owned()))
            } else {
                Ok(false)
            };
        }
        if !captured.full && (have == 0 || since == 0 || since > have) {
            return Err(GuestError::Protocol("a difference to another frame".to_owned()));
        }
        let whole = vec![Rect::whole(captured.size)];
        let areas = match &mut self.shot {
            Some(shot) if have != 0 && shot.size == captured.size => {
                shot.captured_at = captured.captured_at;
                shot.pointer = Some(captured.pointer);
                if captured.sequence == have {
                    return Ok(false);
                }
                // The copy is made only while an encoder still holds the state before.
                let pixels = Arc::make_mut(&mut shot.pixels);
                captured.patches.iter().for_each(|patch| draw(pixels, captured.size, patch));
                shot.sequence = captured.sequence;
                if captured.full { whole } else { captured.patches.iter().map(|patch| patch.area).collect() }
            }
            Some(_) if have != 0 && !captured.full => {
                return Err(GuestError::Protocol("a difference to a frame of another size".to_owned()));
            }
            shot => {
                let mut pixels = vec![0; captured.size.frame_bytes()];
                captured.patches.iter().for_each(|patch| draw(&mut pixels, captured.size, patch));
                *shot = Some(Shot {
                    source: Source::Agent,
                    epoch,
                    sequence: captured.sequence,
                    captured_at: captured.captured_at,
                    pointer: Some(captured.pointer),
                    size: captured.size,
                    pixels: Arc::new(pixels),
                });
                // Steps of another session or size say nothing about this one.
                self.log.clear();
                whole
            }
        };
        self.remember(captured.sequence, areas);
        Ok(true)
    }

    /// Takes a whole frame of the hypervisor; the sequence grows when it is another than before.
    pub(super) fn replace(&mut self, size: Size, pixels: Vec<u8>) -> bool {
        let now = SystemTime::now();
        let before = match &mut self.shot {
            Some(shot) if shot.source == Source::Hypervisor => {
                if shot.size == size && *shot.pixels == pixels {
                    shot.captured_at = now;
                    return false;
                }
                shot.sequence
            }
            _ => 0,
        };
        self.shot = Some(Shot {
            source: Source::Hypervisor,
            epoch: 0,
            sequence: before + 1,
            captured_at: now,
            pointer: None,
            size,
            pixels: Arc::new(pixels),
        });
        self.log.clear();
        self.remember(before + 1, vec![Rect::whole(size)]);
        true
    }

    /// Forgets the frame; the next capture gets all of it.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn remember(&mut self, sequence: u64, areas: Vec<Rect>) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(Step { sequence, areas: merge(areas) });
    }

    /// What changed after `sequence` of this session; everything when that is not known.
    pub(super) fn changed_since(&self, sequence: u64) -> Vec<Rect> {
        let Some(shot) = &self.shot else { return Vec::new() };
        // The step that led to `sequence` must be there, or one between may be missing.
        let known = self.log.iter().any(|step| step.sequence <= sequence);
        if !known {
            return vec![Rect::whole(shot.size)];
        }
        let after = self.log.iter().filter(|step| step.sequence > sequence);
        merge(after.flat_map(|step| step.areas.iter().copied()).collect())
    }
}

/// Leaves out what another covers, and gives one rectangle around all when there are too many.
fn merge(mut areas: Vec<Rect>) -> Vec<Rect> {
    areas.sort_by_key(|r| std::cmp::Reverse(u64::from(r.width) * u64::from(r.height)));
    let mut out: Vec<Rect> = Vec::new();
    for area in areas {
        if out.iter().any(|big| covers(*big, area)) {
            continue;
        }
        out.push(area);
        if out.len() > MAX_CHANGED {
            let around = out.iter().copied().reduce(around);
            out = around.into_iter().collect();
        }
    }
    out
}

fn covers(big: Rect, small: Rect) -> bool {
    big.x <= small.x
        && big.y <= small.y
        && big.x + big.width >= small.x + small.width
        && big.y + big.height >= small.y + small.height
}

fn around(a: Rect, b: Rect) -> Rect {
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let right = (a.x + a.width).max(b.x + b.width);
    let bottom = (a.y + a.height).max(b.y + b.height);
    Rect { x, y, width: right - x, height: bottom - y }
}

/// Draws a patch, which lies inside the frame: the session has seen to that.
fn draw(pixels: &mut [u8], size: Size, patch: &Patch) {
    let Rect { x, y, width, height } = patch.area;
    let stride = size.width as usize * 4;
    let row_bytes = width as usize * 4;
    for row in 0..height as usize {
        let start = (y as usize + row) * stride + x as usize * 4;
        let target = &mut pixels[start..start + row_bytes];
        match &patch.fill {
            Fill::Pixels(source) => target.copy_from_slice(&source[row * row_bytes..][..row_bytes]),
            Fill::Solid(pixel) => target.chunks_exact_mut(4).for_each(|to| to.copy_from_slice(pixel)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SIZE: Size = Size { width: 4, height: 3 };

    fn captured(sequence: u64, full: bool, patches: Vec<Patch>) -> Captured {
        let pointer = Point { x: 1, y: 1 };
        Captured { size: SIZE, sequence, full, captured_at: SystemTime::now(), pointer, patches }
    }

    fn solid(area: Rect, value: u8) -> Patch {
        Patch { area, fill: Fill::Solid([value; 4]) }
    }

    fn at(plane: &Plane, x: usize, y: usize) -> u8 {
        plane.shot().expect("a frame").pixels[(y * 4 + x) * 4]
    }

    #[test]
    fn differences_build_on_the_frame_they_name() {
        let mut plane = Plane::default();
        assert_eq!(plane.apply(&captured(3, true, vec![solid(Rect::whole(SIZE), 9)]), 0, 1).ok(), Some(true));
        let area = Rect { x: 1, y: 1, width: 2, height: 2 };
        let rows = Bytes::from(vec![1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]);
        let patch = Patch { area, fill: Fill::Pixels(rows) };
        assert_eq!(plane.apply(&captured(4, false, vec![patch]), 3, 1).ok(), Some(true));
        assert_eq!([at(&plane, 0, 0), at(&plane, 1, 1), at(&plane, 2, 1), at(&plane, 2, 2)], [9, 1, 2, 4]);
        assert_eq!(plane.changed_since(3), vec![area]);
        assert_eq!(plane.changed_since(1), vec![Rect::whole(SIZE)], "not known, so everything");
        assert_eq!(plane.apply(&captured(4, false, Vec::new()), 4, 1).ok(), Some(false));
        assert_eq!(plane.changed_since(4), Vec::new());
    }

    #[test]
    fn an_answer_that_was_overtaken_changes_nothing() {
        let mut plane = Plane::default();
        let whole = Rect::whole(SIZE);
        plane.apply(&captured(3, true, vec![solid(whole, 1)]), 0, 1).expect("full");
        plane.apply(&captured(6, false, vec![solid(whole, 6)]), 3, 1).expect("newer");
        assert_eq!(plane.apply(&captured(5, false, vec![solid(whole, 5)]), 3, 1).ok(), Some(false));
        assert_eq!(at(&plane, 0, 0), 6);
        // One that was asked for earlier but ends later holds all that changed since.
        assert_eq!(plane.apply(&captured(8, false, vec![solid(whole, 8)]), 3, 1).ok(), Some(true));
        assert_eq!(at(&plane, 0, 0), 8);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_draws_nothing() {
        let mut plane = Plane::default();
        let whole = Rect::whole(SIZE);
        assert!(
            plane.apply(&captured(3, false, vec![solid(whole, 1)]), 2, 1).is_err(),
            "nothing to build on"
        );
        plane.apply(&captured(3, true, vec![solid(whole, 1)]), 0, 1).expect("full");
        assert!(plane.apply(&captured(2, false, vec![solid(whole, 2)]), 3, 1).is_err(), "back in time");
        let mut other = captured(4, false, vec![solid(Rect { x: 0, y: 0, width: 1, height: 1 }, 4)]);
        other.size = Size { width: 8, height: 8 };
        assert!(plane.apply(&other, 3, 1).is_err(), "another size");
        assert!(plane.apply(&captured(4, false, vec![solid(whole, 2)]), 3, 2).is_err(), "another session");
        assert_eq!(at(&plane, 0, 0), 1);
    }

    #[test]
    fn many_rectangles_become_one_around_them() {
        let many = (0..200).map(|n| Rect { x: n * 2, y: 0, width: 1, height: 1 }).collect();
        let merged = merge(many);
        assert!(merged.len() <= MAX_CHANGED, "{}", merged.len());
        let all = merged.into_iter().reduce(around);
        assert_eq!(all, Some(Rect { x: 0, y: 0, width: 399, height: 1 }));
    }

    #[test]
    fn a_hypervisor_frame_counts_only_when_it_is_another() {
        let mut plane = Plane::default();
        assert!(plane.replace(SIZE, vec![0; 48]));
        assert!(!plane.replace(SIZE, vec![0; 48]));
        assert!(plane.replace(SIZE, vec![1; 48]));
        assert_eq!(plane.shot().map(|shot| shot.sequence), Some(2));
        assert_eq!(plane.since(0), 0, "no session can build on it");
    }
}
