//! The pixels of a frame, drawn when somebody looks.
//!
//! A desktop that is only proven, as hot ones are, is never looked at, and most of one is plain areas. So what the guest sent
//! is kept as it came while that is little, and a frame's worth of memory is taken when the first picture is made of it.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::guest::{Fill, Patch};
use crate::model::screen::{Rect, Size};

/// What came may take this part of the frame's own size before the frame is drawn.
const PART: usize = 8;

/// Rows top to bottom, 4 bytes each (blue, green, red, unused).
#[derive(Debug, Clone)]
pub(super) struct Pixels {
    size: Size,
    drawn: OnceLock<Vec<u8>>,
    /// What the frame is drawn of, in this order; of no use once it is drawn.
    patches: Vec<Patch>,
    /// Bytes that those take.
    kept: usize,
}

impl Pixels {
    /// Black where nothing is drawn.
    pub(super) fn new(size: Size, patches: &[Patch]) -> Self {
        let mut new = Self { size, drawn: OnceLock::new(), patches: Vec::new(), kept: 0 };
        new.draw(patches);
        new
    }

    /// Pixels that are there already.
    pub(super) fn drawn(size: Size, pixels: Vec<u8>) -> Self {
        Self { size, drawn: pixels.into(), patches: Vec::new(), kept: 0 }
    }

    /// Draws over it.
    pub(super) fn draw(&mut self, patches: &[Patch]) {
        let bytes: usize = patches.iter().map(bytes_of).sum();
        if self.drawn.get().is_none() && self.kept + bytes <= self.size.frame_bytes() / PART {
            self.kept += bytes;
            self.patches.extend(patches.iter().map(own));
            return;
        }
        self.get();
        if let Some(pixels) = self.drawn.get_mut() {
            self.patches = Vec::new();
            self.kept = 0;
            patches.iter().for_each(|patch| draw(pixels, self.size, patch));
        }
    }

    /// All of them.
    pub(super) fn get(&self) -> &[u8] {
        self.drawn.get_or_init(|| {
            let mut pixels = vec![0; self.size.frame_bytes()];
            self.patches.iter().for_each(|patch| draw(&mut pixels, self.size, patch));
            pixels
        })
    }
}

fn bytes_of(patch: &Patch) -> usize {
    let filled = match &patch.fill {
        Fill::Pixels(bytes) => bytes.len(),
        Fill::Solid(_) | Fill::Copy { .. } => 0,
    };
    size_of::<Patch>() + filled
}

/// A patch that keeps nothing alive but itself: its bytes may be a part of a whole message.
fn own(patch: &Patch) -> Patch {
    let fill = match &patch.fill {
        Fill::Pixels(bytes) => Fill::Pixels(Bytes::copy_from_slice(bytes)),
        plain => plain.clone(),
    };
    Patch { area: patch.area, fill }
}

/// Draws a patch, which lies inside the frame: the session has seen to that.
fn draw(pixels: &mut [u8], size: Size, patch: &Patch) {
    let Rect { x, y, width, height } = patch.area;
    let stride = size.width as usize * 4;
    let row_bytes = width as usize * 4;
    for row in 0..height as usize {
        let start = (y as usize + row) * stride + x as usize * 4;
        let target = start..start + row_bytes;
        match &patch.fill {
            Fill::Pixels(source) => pixels[target].copy_from_slice(&source[row * row_bytes..][..row_bytes]),
            Fill::Solid(pixel) => {
                pixels[target].chunks_exact_mut(4).for_each(|to| to.copy_from_slice(pixel));
            }
            Fill::Copy { x, y } => {
                let from = (*y as usize + row) * stride + *x as usize * 4;
                pixels.copy_within(from..from + row_bytes, start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 64, height: 64 };

    fn patches() -> Vec<Patch> {
        let area = |x, y, width, height| Rect { x, y, width, height };
        let shades: Vec<u8> = (0..8 * 4 * 4).collect();
        vec![
            Patch { area: Rect::whole(SIZE), fill: Fill::Solid([1, 2, 3, 0]) },
            Patch { area: area(4, 60, 8, 4), fill: Fill::Pixels(shades.into()) },
            Patch { area: area(0, 0, 16, 4), fill: Fill::Copy { x: 2, y: 60 } },
            Patch { area: area(63, 63, 1, 1), fill: Fill::Solid([9; 4]) },
        ]
    }

    #[test]
    fn it_is_the_same_picture_whenever_it_is_drawn() {
        let all = patches();
        let mut at_once = Pixels::drawn(SIZE, vec![0; SIZE.frame_bytes()]);
        at_once.draw(&all);
        for looked_at in 0..all.len() {
            let mut pixels = Pixels::new(SIZE, &all[..1]);
            for (n, patch) in all.iter().enumerate().skip(1) {
                if n == looked_at {
                    pixels.get();
                }
                pixels.draw(std::slice::from_ref(patch));
            }
            assert!(pixels.get() == at_once.get(), "looked at before {looked_at}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_by_a_part_of_the_frame() {
        let row = Bytes::from(vec![7; 64 * 4]);
        let mut pixels = Pixels::new(SIZE, &patches());
        assert!(pixels.drawn.get().is_none());
        for y in (0..64).cycle().take(100) {
            let patch =
                Patch { area: Rect { x: 0, y, width: 64, height: 1 }, fill: Fill::Pixels(row.clone()) };
            pixels.draw(&[patch]);
            assert!(pixels.kept <= SIZE.frame_bytes() / PART);
        }
        assert!(pixels.patches.is_empty() && pixels.kept == 0);
        assert!(pixels.get().iter().all(|byte| *byte == 7));
    }
}
