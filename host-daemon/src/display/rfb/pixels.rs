//! Pixels as a viewer wants them.

use crate::model::screen::{Rect, Size};

/// A true-colour format. Each channel's largest value is one less than a power of two, as RFC 6143 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// 1, 2 or 4.
    bytes: usize,
    big_endian: bool,
    /// Largest value and place of red, green and blue.
    channels: [(u16, u8); 3],
}

impl Format {
    /// As frames are: blue, green, red and a byte that means nothing.
    pub(super) const NATIVE: Self =
        Self { bytes: 4, big_endian: false, channels: [(255, 16), (255, 8), (255, 0)] };

    /// The 16 bytes of a PIXEL_FORMAT; nothing when it is of no use or has a palette.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let &[bits, _depth, big_endian, true_colour, r1, r2, g1, g2, b1, b2, red, green, blue, _, _, _] =
            body
        else {
            return None;
        };
        let bytes = match bits {
            8 => 1,
            16 => 2,
            32 => 4,
            _ => return None,
        };
        let channels = [([r1, r2], red), ([g1, g2], green), ([b1, b2], blue)]
            .map(|(max, shift)| (u16::from_be_bytes(max), shift));
        let fits =
            |(max, shift): &(u16, u8)| *shift < bits && u32::from(*max).leading_zeros() >= u32::from(*shift);
        (true_colour != 0 && channels.iter().all(fits)).then_some(Self {
            bytes,
            big_endian: big_endian != 0,
            channels,
        })
    }

    /// As the 16 bytes.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        // Bounded by 4.
        let bits = u8::try_from(self.bytes * 8).unwrap_or(32);
        out.extend([bits, 24, u8::from(self.big_endian), 1]);
        self.channels.iter().for_each(|(max, _)| out.extend(max.to_be_bytes()));
        out.extend(self.channels.map(|(_, shift)| shift));
        out.extend([0; 3]);
    }

    /// Bytes of so many pixels.
    pub(super) fn length(self, area: Rect) -> usize {
        area.width as usize * area.height as usize * self.bytes
    }

    /// Appends the pixels of `area` of a frame, which has 4 bytes a pixel: blue, green, red.
    pub(super) fn cut(self, frame: &[u8], size: Size, area: Rect, out: &mut Vec<u8>) {
        let stride = size.width as usize * 4;
        let (left, width) = (area.x as usize * 4, area.width as usize * 4);
        for line in frame.chunks_exact(stride).skip(area.y as usize).take(area.height as usize) {
            let pixels = &line[left..left + width];
            if self == Self::NATIVE {
                out.extend_from_slice(pixels);
            } else {
                pixels.as_chunks::<4>().0.iter().for_each(|pixel| self.convert(*pixel, out));
            }
        }
    }

    fn convert(self, [blue, green, red, _]: [u8; 4], out: &mut Vec<u8>) {
        let value =
            [red, green, blue].into_iter().zip(self.channels).fold(0_u32, |all, (value, (max, shift))| {
                all | (((u32::from(value) * u32::from(max) + 127) / 255) << shift)
            });
        let little = value.to_le_bytes();
        let used = &little[..self.bytes];
        if self.big_endian {
            out.extend(used.iter().rev());
        } else {
            out.extend(used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 2, height: 2 };
    const FRAME: [u8; 16] = [0, 0, 255, 9, 0, 255, 0, 9, 255, 0, 0, 9, 128, 128, 128, 9];

    fn cut(format: Format, area: Rect) -> Vec<u8> {
        let mut out = Vec::new();
        format.cut(&FRAME, SIZE, area, &mut out);
        assert_eq!(out.len(), format.length(area));
        out
    }

    #[test]
    fn pixels_come_in_the_format_that_was_asked_for() {
        let second_row = Rect { x: 0, y: 1, width: 2, height: 1 };
        assert_eq!(cut(Format::NATIVE, second_row), FRAME[8..]);
        let mut native = Vec::new();
        Format::NATIVE.write(&mut native);
        assert_eq!(Format::read(&native), Some(Format::NATIVE));
        // 5-6-5, the other way round.
        let high = Format::read(&[16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]).expect("legal");
        assert_eq!(cut(high, Rect::whole(SIZE)), [0xf8, 0, 0x07, 0xe0, 0, 0x1f, 0x84, 0x10]);
        let low = Format::read(&[8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]).expect("legal");
        assert_eq!(cut(low, Rect::whole(SIZE)), [0b111, 0b11_1000, 0b1100_0000, 0b1010_0100]);
    }

    #[test]
    fn formats_that_can_not_be_are_refused() {
        assert_eq!(Format::read(&[24, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]), None);
        assert_eq!(Format::read(&[8, 8, 0, 0, 0, 255, 0, 255, 0, 255, 0, 0, 0, 0, 0, 0]), None, "a palette");
        assert_eq!(Format::read(&[32, 24, 0, 1, 255, 255, 0, 255, 0, 255, 31, 8, 0, 0, 0, 0]), None);
        assert_eq!(Format::read(&[32]), None);
    }
}
