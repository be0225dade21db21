//! Draws the cursor into captured pixels.

use crate::display::Rect;

/// The cursor's picture and where it is.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Changes with the picture.
    pub(super) serial: u32,
    /// Left edge of the picture on the screen.
    pub(super) x: i32,
    /// Top edge of the picture on the screen.
    pub(super) y: i32,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Rows of ARGB, colours already multiplied by alpha.
    pub(super) pixels: Vec<u32>,
}

impl Cursor {
    /// The part of the screen that it covers.
    pub(super) fn area(&self, screen: (u32, u32)) -> Option<Rect> {
        Rect::clipped(self.x, self.y, self.width, self.height, screen)
    }

    /// Blends the cursor into `pixels`, the rows of `area`.
    pub(super) fn draw(&self, area: Rect, screen: (u32, u32), pixels: &mut [u8]) {
        let Some(part) = self.area(screen).and_then(|own| own.intersect(&area)) else { return };
        for y in part.y..part.y + part.height {
            for x in part.x..part.x + part.width {
                // Both differences are inside the picture, because `part` is.
                let from = (i64::from(y) - i64::from(self.y)) * i64::from(self.width) + i64::from(x)
                    - i64::from(self.x);
                let source =
                    usize::try_from(from).ok().and_then(|i| self.pixels.get(i)).copied().unwrap_or(0);
                let at = ((y - area.y) as usize * area.width as usize + (x - area.x) as usize) * 4;
                if let Some(pixel) = pixels.get_mut(at..at + 3) {
                    blend(source, pixel);
                }
            }
        }
    }
}

fn blend(argb: u32, bgr: &mut [u8]) {
    let [b, g, r, alpha] = argb.to_le_bytes();
    for (under, over) in bgr.iter_mut().zip([b, g, r]) {
        let kept = (u32::from(*under) * (255 - u32::from(alpha)) + 127) / 255;
        *under = u8::try_from(kept + u32::from(over)).unwrap_or(255);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blends_only_where_cursor_and_area_meet() {
        let cursor = Cursor {
            serial: 1,
            x: -1,
            y: 9,
            width: 2,
            height: 2,
            pixels: vec![0xff00_00ff, 0xffff_ffff, 0, 0x8000_0080],
        };
        let area = Rect { x: 0, y: 8, width: 2, height: 3 };
        let mut pixels = [100; 2 * 3 * 4];
        cursor.draw(area, (20, 20), &mut pixels);
        let mut expected = [100; 24];
        // Row 9, column 0: opaque white; row 10, column 0: half blue over grey.
        expected[8..11].copy_from_slice(&[255, 255, 255]);
        expected[16..19].copy_from_slice(&[178, 50, 50]);
        assert_eq!(pixels, expected);
        assert_eq!(cursor.area((20, 20)), Some(Rect { x: 0, y: 9, width: 1, height: 2 }));
    }
}
