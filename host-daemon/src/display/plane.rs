//! The canonical frame: what the host believes the screen to be, and what changed on the way there.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::hub::Source;
use super::pixels::Pixels;
use crate::guest::{Captured, CursorSeen, GuestError, Have};
use crate::model::mask::Masks;
use crate::model::screen::{CursorShape, Point, Rect, Size};

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
    /// Number of the state, and of the last one whose pixels are other than before.
    numbers: [Numbers; 2],
    pub(super) captured_at: SystemTime,
    pub(super) pointer: Option<Point>,
    pub(super) cursor: Option<CursorAt>,
    pub(super) size: Size,
    pub(super) pixels: Arc<Pixels>,
    /// What nobody outside may see of them.
    pub(super) covered: Covered,
}

/// Parts of a frame that are covered in every picture of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Covered {
    /// Another number for each change of what is covered.
    pub(super) generation: u64,
    masks: Option<Arc<Masks>>,
}

impl Covered {
    /// What is covered of a frame of this size.
    fn areas(&self, frame: Size) -> Vec<Rect> {
        self.masks.as_ref().map(|masks| masks.over(frame)).unwrap_or_default()
    }

    /// Covers `pixels`, the rows of `area` of a frame.
    pub(super) fn draw<'a>(&self, frame: Size, area: Rect, mut pixels: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        for mask in self.areas(frame) {
            let Some(part) = mask.intersection(area) else { continue };
            let own = pixels.to_mut();
            for y in part.y - area.y..part.y - area.y + part.height {
                let from = (y as usize * area.width as usize + (part.x - area.x) as usize) * 4;
                own[from..from + part.width as usize * 4].fill(0);
            }
        }
        pixels
    }
}

/// The cursor as last asked for.
#[derive(Debug, Clone)]
pub(super) struct CursorAt {
    at: Point,
    pub(super) shape: Arc<CursorShape>,
}

/// Both grow with the states.
#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    /// Within a session.
    sequence: u64,
    /// Within the plane's whole life, one by one.
    ordinal: u64,
}

impl Shot {
    fn numbers(&self, cursor: bool) -> Numbers {
        self.numbers[usize::from(cursor)]
    }

    /// Number of the state within its session, to those who see the cursor or not.
    pub(super) fn sequence(&self, cursor: bool) -> u64 {
        self.numbers(cursor).sequence
    }

    /// Number of the state, the same one only for what looks the same.
    pub(super) fn ordinal(&self, cursor: bool) -> u64 {
        self.numbers(cursor).ordinal
    }
}

impl CursorAt {
    /// The part of a frame that it covers.
    pub(super) fn area(&self, frame: Size) -> Option<Rect> {
        let Size { width, height } = self.shape.size;
        let clip = |at: i32, hot: i32, length: u32, limit: u32| {
            let start = i64::from(at) - i64::from(hot);
            let (from, to) = (start.max(0), (start + i64::from(length)).min(i64::from(limit)));
            Some((u32::try_from(from).ok()?, u32::try_from(to - from).ok().filter(|n| *n > 0)?))
        };
        let (x, width) = clip(self.at.x, self.shape.hot.x, width, frame.width)?;
        let (y, height) = clip(self.at.y, self.shape.hot.y, height, frame.height)?;
        Some(Rect { x, y, width, height })
    }

    /// Blends the cursor into `pixels`, the rows of `area`.
    pub(super) fn draw(&self, frame: Size, area: Rect, pixels: &mut [u8]) {
        let Some(part) = self.area(frame).and_then(|own| own.intersection(area)) else { return };
        let (left, top) = (self.at.x - self.shape.hot.x, self.at.y - self.shape.hot.y);
        let stride = self.shape.size.width as usize * 4;
        for y in part.y..part.y + part.height {
            for x in part.x..part.x + part.width {
                // Inside the shape, because `part` is.
                let column = usize::try_from(i64::from(x) - i64::from(left)).unwrap_or(0);
                let row = usize::try_from(i64::from(y) - i64::from(top)).unwrap_or(0);
                let from = self.shape.pixels.get(row * stride + column * 4..).and_then(|p| p.first_chunk());
                let at = ((y - area.y) as usize * area.width as usize + (x - area.x) as usize) * 4;
                if let (Some(&[b, g, r, alpha]), Some(under)) = (from, pixels.get_mut(at..at + 3)) {
                    for (under, over) in under.iter_mut().zip([b, g, r]) {
                        let kept = (u32::from(*under) * (255 - u32::from(alpha)) + 127) / 255;
                        *under = u8::try_from(kept + u32::from(over)).unwrap_or(255);
                    }
                }
            }
        }
    }
}

/// The latest state, and what changed in the ones before.
#[derive(Debug, Default)]
pub(super) struct Plane {
    shot: Option<Shot>,
    /// What to tell the session that the host has.
    have: Have,
    /// When the state was last known to be the present one.
    confirmed: Option<Instant>,
    /// Of the last state, whatever became of it.
    ordinal: u64,
    log: VecDeque<Step>,
    /// What is covered in this frame and in those to come.
    covered: Covered,
}

#[derive(Debug)]
struct Step {
    ordinal: u64,
    /// All changes of this step; everything when the frame was sent whole.
    areas: Vec<Rect>,
    /// Where the cursor was and is, if that changed.
    cursor: Vec<Rect>,
}

impl Plane {
    pub(super) fn shot(&self) -> Option<&Shot> {
        self.shot.as_ref()
    }

    /// The state to ask a session for changes since; nothing when there is nothing to build on.
    pub(super) fn have(&self, epoch: u64) -> Have {
        match &self.shot {
            Some(shot) if shot.source == Source::Agent && shot.epoch == epoch => self.have,
            _ => Have::default(),
        }
    }

    /// When the state was last known to be the present one.
    pub(super) fn confirmed(&self) -> Option<Instant> {
        self.confirmed
    }

    /// Applies what a session answered at `asked_at` to a host that had `asked`. Gives whether the screen is another now.
    /// An answer that an answer to a later request has overtaken changes nothing.
    pub(super) fn apply(
        &mut self,
        captured: &Captured,
        asked: Have,
        asked_at: Instant,
        epoch: u64,
    ) -> Result<bool, GuestError> {
        let have = self.have(epoch);
        if have.sequence != 0 && captured.sequence < have.sequence {
            // Overtaken, unless the agent went back behind what it was asked to build on.
            return if captured.sequence < asked.sequence {
                Err(GuestError::Protocol("the screen's sequence went back".to_owned()))
            } else {
                Ok(false)
            };
        }
        if !captured.full && (have.sequence == 0 || asked.sequence == 0 || asked.sequence > have.sequence) {
            return Err(GuestError::Protocol("a difference to another frame".to_owned()));
        }
        let whole = vec![Rect::whole(captured.size)];
        let areas = match &mut self.shot {
            Some(shot) if have.sequence != 0 && shot.size == captured.size => {
                shot.captured_at = captured.captured_at;
                shot.pointer = Some(captured.pointer);
                if captured.sequence == have.sequence || captured.patches.is_empty() {
                    Vec::new()
                } else {
                    // The copy is made only while an encoder still holds the state before.
                    Arc::make_mut(&mut shot.pixels).draw(&captured.patches);
                    self.have.answer = captured.answer;
                    if captured.full {
                        whole
                    } else {
                        captured.patches.iter().map(|patch| patch.area).collect()
                    }
                }
            }
            Some(_) if have.sequence != 0 && !captured.full => {
                return Err(GuestError::Protocol("a difference to a frame of another size".to_owned()));
            }
            shot => {
                // The cursor's shape is still the same in a session.
                let cursor = shot.take().filter(|_| have.sequence != 0).and_then(|shot| shot.cursor);
                *shot = Some(Shot {
                    source: Source::Agent,
                    epoch,
                    numbers: [Numbers::default(); 2],
                    captured_at: captured.captured_at,
                    pointer: Some(captured.pointer),
                    cursor,
                    size: captured.size,
                    pixels: Arc::new(Pixels::new(captured.size, &captured.patches)),
                    covered: self.covered.clone(),
                });
                self.have = Have { answer: captured.answer, ..have };
                // Steps of another session or size say nothing about this one.
                self.log.clear();
                whole
            }
        };
        self.have.sequence = captured.sequence;
        self.confirmed = Some(asked_at);
        let cursor = self.cursor_moved(captured);
        let changed = !areas.is_empty() || !cursor.is_empty();
        if changed {
            self.remember(captured.sequence, areas, cursor);
        }
        Ok(changed)
    }

    /// Takes over the cursor; gives the areas in which that changes what is seen.
    fn cursor_moved(&mut self, captured: &Captured) -> Vec<Rect> {
        let (Some(shot), Some(CursorSeen { shape, picture })) = (&mut self.shot, &captured.cursor) else {
            return Vec::new();
        };
        let before = shot.cursor.take();
        let known = || before.as_ref().map(|cursor| cursor.shape.clone()).filter(|known| known.id == *shape);
        let now = picture.clone().or_else(known).map(|shape| CursorAt { at: captured.pointer, shape });
        // Asked for again when it was told to a host that had forgotten it.
        self.have.shape = now.as_ref().map_or(0, |now| now.shape.id);
        let look = |cursor: &CursorAt| (cursor.at, cursor.shape.id);
        let same = before.as_ref().map(look) == now.as_ref().map(look);
        let areas = before.iter().chain(&now).filter_map(|cursor| cursor.area(shot.size)).collect();
        shot.cursor = now;
        if same { Vec::new() } else { areas }
    }

    /// Takes a whole frame of the hypervisor; the sequence grows when it is another than before.
    pub(super) fn replace(&mut self, size: Size, pixels: Vec<u8>) -> bool {
        let now = SystemTime::now();
        self.confirmed = Some(Instant::now());
        let before = match &mut self.shot {
            Some(shot) if shot.source == Source::Hypervisor => {
                if shot.size == size && shot.pixels.get() == pixels {
                    shot.captured_at = now;
                    return false;
                }
                shot.sequence(false)
            }
            _ => 0,
        };
        self.shot = Some(Shot {
            source: Source::Hypervisor,
            epoch: 0,
            numbers: [Numbers::default(); 2],
            captured_at: now,
            pointer: None,
            cursor: None,
            size,
            pixels: Arc::new(Pixels::drawn(size, pixels)),
            covered: self.covered.clone(),
        });
        self.log.clear();
        self.remember(before + 1, vec![Rect::whole(size)], Vec::new());
        true
    }

    /// Forgets the frame; the next capture gets all of it.
    pub(super) fn clear(&mut self) {
        *self = Self { ordinal: self.ordinal, covered: self.covered.clone(), ..Self::default() };
    }

    /// What is covered.
    pub(super) fn masks(&self) -> Option<&Masks> {
        self.covered.masks.as_deref()
    }

    pub(super) fn covered(&self) -> &Covered {
        &self.covered
    }

    /// Covers other parts than before. To who sees the frame it is a new one, which differs where anything was or is covered.
    pub(super) fn cover(&mut self, masks: Option<Masks>) {
        let covered = Covered { generation: self.covered.generation + 1, masks: masks.map(Arc::new) };
        let before = std::mem::replace(&mut self.covered, covered.clone());
        let Some(shot) = &mut self.shot else { return };
        let areas: Vec<_> = [&before, &covered].into_iter().flat_map(|c| c.areas(shot.size)).collect();
        shot.covered = covered;
        if !areas.is_empty() {
            let sequence = shot.sequence(false);
            self.remember(sequence, areas, Vec::new());
        }
    }

    fn remember(&mut self, sequence: u64, areas: Vec<Rect>, cursor: Vec<Rect>) {
        let Some(shot) = &mut self.shot else { return };
        self.ordinal += 1;
        let numbers = Numbers { sequence, ordinal: self.ordinal };
        shot.numbers[1] = numbers;
        if !areas.is_empty() {
            shot.numbers[0] = numbers;
        }
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(Step { ordinal: self.ordinal, areas: merge(areas), cursor });
    }

    /// What changed after the state `ordinal`; everything when that is not known.
    pub(super) fn changed_since(&self, ordinal: u64, cursor: bool) -> Vec<Rect> {
        let Some(shot) = &self.shot else { return Vec::new() };
        // Ordinals have no gaps: the step after it must be there, or one between is missing.
        let known =
            ordinal == self.ordinal || self.log.front().is_some_and(|step| step.ordinal <= ordinal + 1);
        if !known || ordinal > self.ordinal {
            return vec![Rect::whole(shot.size)];
        }
        let after = self.log.iter().filter(|step| step.ordinal > ordinal);
        let areas = after.flat_map(|step| step.areas.iter().chain(step.cursor.iter().filter(|_| cursor)));
        merge(areas.copied().collect())
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

pub(super) fn around(a: Rect, b: Rect) -> Rect {
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let right = (a.x + a.width).max(b.x + b.width);
    let bottom = (a.y + a.height).max(b.y + b.height);
    Rect { x, y, width: right - x, height: bottom - y }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::guest::{Fill, Patch};

    const SIZE: Size = Size { width: 4, height: 3 };

    fn captured(sequence: u64, full: bool, patches: Vec<Patch>) -> Captured {
        let pointer = Point { x: 1, y: 1 };
        let captured_at = SystemTime::now();
        Captured { size: SIZE, sequence, full, captured_at, pointer, cursor: None, answer: sequence, patches }
    }

    fn solid(area: Rect, value: u8) -> Patch {
        Patch { area, fill: Fill::Solid([value; 4]) }
    }

    fn apply(plane: &mut Plane, captured: &Captured, since: u64, epoch: u64) -> Result<bool, GuestError> {
        let asked = Have { sequence: since, ..Have::default() };
        plane.apply(captured, asked, Instant::now(), epoch)
    }

    fn at(plane: &Plane, x: usize, y: usize) -> u8 {
        plane.shot().expect("a frame").pixels.get()[(y * 4 + x) * 4]
    }

    #[test]
    fn differences_build_on_the_frame_they_name() {
        let mut plane = Plane::default();
        assert_eq!(
            apply(&mut plane, &captured(3, true, vec![solid(Rect::whole(SIZE), 9)]), 0, 1).ok(),
            Some(true)
        );
        let area = Rect { x: 1, y: 1, width: 2, height: 2 };
        let rows = Bytes::from(vec![1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]);
        let patch = Patch { area, fill: Fill::Pixels(rows) };
        assert_eq!(apply(&mut plane, &captured(4, false, vec![patch]), 3, 1).ok(), Some(true));
        assert_eq!([at(&plane, 0, 0), at(&plane, 1, 1), at(&plane, 2, 1), at(&plane, 2, 2)], [9, 1, 2, 4]);
        assert_eq!(plane.changed_since(1, false), vec![area]);
        plane.log.pop_front();
        assert_eq!(plane.changed_since(0, false), vec![Rect::whole(SIZE)], "not known, so everything");
        assert_eq!(apply(&mut plane, &captured(4, false, Vec::new()), 4, 1).ok(), Some(false));
        assert_eq!(plane.changed_since(2, false), Vec::new());
        // A later sequence with nothing in it is no other state.
        assert_eq!(apply(&mut plane, &captured(7, false, Vec::new()), 4, 1).ok(), Some(false));
        let have = plane.have(1);
        assert_eq!((have.sequence, have.answer), (7, 4));
        assert_eq!(plane.shot().map(|shot| (shot.sequence(true), shot.ordinal(true))), Some((4, 2)));
        let twin = Patch { area: Rect { x: 0, y: 0, width: 2, height: 2 }, fill: Fill::Copy { x: 1, y: 1 } };
        assert_eq!(apply(&mut plane, &captured(8, false, vec![twin]), 7, 1).ok(), Some(true));
        assert_eq!([at(&plane, 0, 0), at(&plane, 1, 0), at(&plane, 1, 1)], [1, 2, 4]);
    }

    #[test]
    fn an_answer_that_was_overtaken_changes_nothing() {
        let mut plane = Plane::default();
        let whole = Rect::whole(SIZE);
        apply(&mut plane, &captured(3, true, vec![solid(whole, 1)]), 0, 1).expect("full");
        apply(&mut plane, &captured(6, false, vec![solid(whole, 6)]), 3, 1).expect("newer");
        assert_eq!(apply(&mut plane, &captured(5, false, vec![solid(whole, 5)]), 3, 1).ok(), Some(false));
        assert_eq!(at(&plane, 0, 0), 6);
        // One that was asked for earlier but ends later holds all that changed since.
        assert_eq!(apply(&mut plane, &captured(8, false, vec![solid(whole, 8)]), 3, 1).ok(), Some(true));
        assert_eq!(at(&plane, 0, 0), 8);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_draws_nothing() {
        let mut plane = Plane::default();
        let whole = Rect::whole(SIZE);
        assert!(
            apply(&mut plane, &captured(3, false, vec![solid(whole, 1)]), 2, 1).is_err(),
            "nothing to build on"
        );
        apply(&mut plane, &captured(3, true, vec![solid(whole, 1)]), 0, 1).expect("full");
        assert!(apply(&mut plane, &captured(2, false, vec![solid(whole, 2)]), 3, 1).is_err(), "back in time");
        let mut other = captured(4, false, vec![solid(Rect { x: 0, y: 0, width: 1, height: 1 }, 4)]);
        other.size = Size { width: 8, height: 8 };
        assert!(apply(&mut plane, &other, 3, 1).is_err(), "another size");
        assert!(
            apply(&mut plane, &captured(4, false, vec![solid(whole, 2)]), 3, 2).is_err(),
            "another session"
        );
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
        assert_eq!(plane.shot().map(|shot| shot.sequence(false)), Some(2));
        assert_eq!(plane.have(0), Have::default(), "no session can build on it");
    }

    #[test]
    fn a_cursor_that_moves_is_another_state_to_those_who_see_it() {
        let mut plane = Plane::default();
        let seen = |sequence, at, picture: Option<u8>| {
            let size = Size { width: 1, height: 1 };
            let hot = Point::default();
            let picture = picture.map(|value| {
                let pixels = Bytes::from(vec![value, value, value, 255]);
                Arc::new(CursorShape { id: 5, size, hot, pixels })
            });
            let mut captured = captured(sequence, sequence == 1, Vec::new());
            captured.pointer = Point { x: at, y: 0 };
            captured.cursor = Some(CursorSeen { shape: 5, picture });
            captured
        };
        assert_eq!(apply(&mut plane, &seen(1, 1, Some(200)), 0, 1).ok(), Some(true));
        assert_eq!(plane.have(1).shape, 5);
        assert_eq!(apply(&mut plane, &seen(2, 1, None), 1, 1).ok(), Some(false), "where it was");
        assert_eq!(apply(&mut plane, &seen(3, 2, None), 2, 1).ok(), Some(true));
        let shot = plane.shot().expect("a frame");
        assert_eq!((shot.ordinal(false), shot.ordinal(true)), (1, 2));
        let dot = |x| Rect { x, y: 0, width: 1, height: 1 };
        assert_eq!(plane.changed_since(1, true), [dot(1), dot(2)]);
        assert_eq!(plane.changed_since(1, false), []);
        let mut pixels = shot.pixels.get().to_vec();
        shot.cursor.as_ref().expect("a cursor").draw(SIZE, Rect::whole(SIZE), &mut pixels);
        assert_eq!(pixels[4..12], [0, 0, 0, 0, 200, 200, 200, 0]);
        // A host that forgot the shape asks for it again instead of drawing nothing for ever.
        let mut other = Plane::default();
        assert!(apply(&mut other, &seen(1, 1, None), 0, 1).is_ok());
        assert_eq!(other.have(1).shape, 0);
    }

    #[test]
    fn cursors_are_clipped_and_blended() {
        let pixels = Bytes::from(vec![255, 0, 0, 255, 255, 255, 255, 255, 0, 0, 0, 0, 128, 0, 0, 128]);
        let shape =
            CursorShape { id: 1, size: Size { width: 2, height: 2 }, hot: Point { x: 1, y: 0 }, pixels };
        let cursor = CursorAt { at: Point { x: 0, y: 9 }, shape: Arc::new(shape) };
        let frame = Size { width: 20, height: 20 };
        assert_eq!(cursor.area(frame), Some(Rect { x: 0, y: 9, width: 1, height: 2 }));
        let area = Rect { x: 0, y: 8, width: 2, height: 3 };
        let mut under = [100; 2 * 3 * 4];
        cursor.draw(frame, area, &mut under);
        let mut expected = [100; 24];
        // Row 9, column 0: opaque white; row 10, column 0: half blue over grey.
        expected[8..11].copy_from_slice(&[255, 255, 255]);
        expected[16..19].copy_from_slice(&[178, 50, 50]);
        assert_eq!(under, expected);
    }
}
