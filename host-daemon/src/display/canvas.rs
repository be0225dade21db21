//! The pixels of a picture: cut out of the frame, covered where there are masks, scaled, with the cursor drawn, and copied
//! only where they must be.

use std::borrow::Cow;
use std::sync::Arc;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::options::Geometry;
use super::plane::Shot;
use crate::model::screen::{Rect, Size};

/// Pixels around a change that scaling may touch.
const MARGIN: u32 = 2;

/// A picture's pixels, 4 bytes each as in the frame.
#[derive(Debug, Clone)]
pub(super) enum Canvas {
    /// A part of the frame, unscaled; the cursor is drawn while it is read.
    Part { shot: Shot, region: Rect, cursor: bool },
    /// Pixels of its own.
    Scaled { size: Size, pixels: Arc<Vec<u8>> },
}

impl Canvas {
    /// Scales where the geometry asks for it.
    pub(super) fn new(shot: Shot, geometry: Geometry, cursor: bool) -> Result<Self, String> {
        let Geometry { region, size } = geometry;
        let part = Self::Part { shot, region, cursor };
        if part.size() == size {
            return Ok(part);
        }
        let source = part.rows(0, region.height);
        let source = ImageRef::new(region.width, region.height, &source, PixelType::U8x4)
            .map_err(|error| error.to_string())?;
        let mut target = Image::new(size.width, size.height, PixelType::U8x4);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            // The fourth byte is no alpha.
            .use_alpha(false);
        Resizer::new().resize(&source, &mut target, &options).map_err(|error| error.to_string())?;
        Ok(Self::Scaled { size, pixels: Arc::new(target.into_vec()) })
    }

    pub(super) fn size(&self) -> Size {
        match self {
            Self::Part { region, .. } => Size { width: region.width, height: region.height },
            Self::Scaled { size, .. } => *size,
        }
    }

    /// Whole rows.
    pub(super) fn rows(&self, from: u32, count: u32) -> Cow<'_, [u8]> {
        let width = self.size().width;
        self.area(Rect { x: 0, y: from, width, height: count })
    }

    /// A part, which lies inside.
    pub(super) fn area(&self, area: Rect) -> Cow<'_, [u8]> {
        match self {
            Self::Scaled { size, pixels } => cut(pixels, *size, area),
            Self::Part { shot, region, cursor } => {
                let area = Rect { x: region.x + area.x, y: region.y + area.y, ..area };
                // Before anything else is done with them: no scaling or encoder ever sees what is covered.
                let pixels = shot.covered.draw(shot.size, area, cut(shot.pixels.get(), shot.size, area));
                match shot.cursor.as_ref().filter(|_| *cursor) {
                    Some(drawn)
                        if drawn.area(shot.size).is_some_and(|own| own.intersection(area).is_some()) =>
                    {
                        let mut pixels = pixels.into_owned();
                        drawn.draw(shot.size, area, &mut pixels);
                        Cow::Owned(pixels)
                    }
                    _ => pixels,
                }
            }
        }
    }
}

/// Borrowed where the rows lie one behind the other.
fn cut(pixels: &[u8], size: Size, area: Rect) -> Cow<'_, [u8]> {
    let (stride, row) = (size.width as usize * 4, area.width as usize * 4);
    let from = area.y as usize * stride;
    let lines = &pixels[from..from + area.height as usize * stride];
    if row == stride {
        return Cow::Borrowed(lines);
    }
    let left = area.x as usize * 4;
    let mut out = Vec::with_capacity(row * area.height as usize);
    lines.chunks_exact(stride).for_each(|line| out.extend_from_slice(&line[left..left + row]));
    Cow::Owned(out)
}

/// Where in a picture a change of the frame is seen, its edges on multiples of `grid`; nothing when it is outside.
pub(super) fn seen(change: Rect, geometry: Geometry, grid: u32) -> Option<Rect> {
    let Geometry { region, size } = geometry;
    let part = change.intersection(region)?;
    let along = |at: u32, length: u32, origin: u32, of: u32, into: u32| {
        let (mut from, mut to) = (u64::from(at - origin), u64::from(at - origin + length));
        if of != into {
            // A filter reaches as far as the scale is small, in pixels of the frame.
            let margin = u64::from(MARGIN * of.div_ceil(into));
            from = from.saturating_sub(margin) * u64::from(into) / u64::from(of);
            to = ((to + margin) * u64::from(into)).div_ceil(u64::from(of));
        }
        let grid = u64::from(grid);
        let (from, to) = (from / grid * grid, to.next_multiple_of(grid).min(u64::from(into)));
        // Both are at most a side.
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        (small(from), small(to.saturating_sub(from)))
    };
    let (x, width) = along(part.x, part.width, region.x, region.width, size.width);
    let (y, height) = along(part.y, part.height, region.y, region.height, size.height);
    (width > 0 && height > 0).then_some(Rect { x, y, width, height })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_found_in_the_picture() {
        let rect = |x, y, width, height| Rect { x, y, width, height };
        let whole = Geometry { region: rect(0, 0, 100, 100), size: Size { width: 100, height: 100 } };
        assert_eq!(seen(rect(17, 20, 3, 4), whole, 1), Some(rect(17, 20, 3, 4)));
        assert_eq!(seen(rect(17, 90, 3, 4), whole, 16), Some(rect(16, 80, 16, 16)));
        let part = Geometry { region: rect(50, 50, 40, 40), size: Size { width: 20, height: 20 } };
        assert_eq!(seen(rect(0, 0, 50, 50), part, 1), None);
        assert_eq!(seen(rect(60, 60, 10, 10), part, 1), Some(rect(3, 3, 9, 9)));
        assert_eq!(seen(rect(0, 0, 100, 100), part, 1), Some(rect(0, 0, 20, 20)));
    }
}
