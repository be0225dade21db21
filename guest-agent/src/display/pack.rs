//! Packs pixels for the link: cheap before small, because the guest may be emulated.
//!
//! Runs of rows in one colour become `SOLID` rectangles, which cost one look at each pixel; the rest goes through LZ4 in bands
//! of 1 MiB at most, or as it is where LZ4 gains nothing.

use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;

use super::rect::Rect;

/// Unpacked size of one rectangle, as the protocol bounds it.
const MAX_BAND: usize = 1 << 20;
/// Fewer rows than this are not worth a rectangle of their own.
const MIN_SOLID_ROWS: usize = 16;

/// Holds the scratch memory of packing; drop it when idle.
#[derive(Debug, Default)]
pub struct Packer {
    scratch: Vec<u8>,
}

impl Packer {
    /// Packs `area`, whose rows lie one behind the other in `pixels`.
    pub fn pack(&mut self, area: Rect, pixels: &[u8], out: &mut Vec<pb::FrameRect>) {
        let stride = area.width as usize * 4;
        let rows = || pixels.chunks_exact(stride);
        let mut start = 0;
        let mut row = 0;
        let total = rows().len();
        while row < total {
            let solid = solid_rows(&pixels[row * stride..], stride);
            if solid >= MIN_SOLID_ROWS || (solid > 0 && solid == total) {
                self.bands(area, start, row, pixels, out);
                out.push(solid_rect(area, row, solid, &pixels[row * stride..]));
                row += solid;
                start = row;
            } else {
                row += solid.max(1);
            }
        }
        self.bands(area, start, total, pixels, out);
    }

    fn bands(&mut self, area: Rect, from: usize, to: usize, pixels: &[u8], out: &mut Vec<pb::FrameRect>) {
        let stride = area.width as usize * 4;
        let step = (MAX_BAND / stride).max(1);
        let mut row = from;
        while row < to {
            let rows = step.min(to - row);
            let data = &pixels[row * stride..(row + rows) * stride];
            let (packing, data) = self.compress(data);
            out.push(pb::FrameRect { area: Some(band(area, row, rows)), packing: packing.into(), data });
            row += rows;
        }
    }

    fn compress(&mut self, data: &[u8]) -> (pb::Packing, Bytes) {
        let room = lz4_flex::block::get_maximum_output_size(data.len());
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        match lz4_flex::block::compress_into(data, &mut self.scratch) {
            Ok(n) if n < data.len() => (pb::Packing::Lz4, Bytes::copy_from_slice(&self.scratch[..n])),
            _ => (pb::Packing::Raw, Bytes::copy_from_slice(data)),
        }
    }
}

fn band(area: Rect, row: usize, rows: usize) -> pb::Rect {
    // Both are at most the area's height.
    let to_u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    pb::Rect { x: area.x, y: area.y + to_u32(row), width: area.width, height: to_u32(rows) }
}

fn solid_rect(area: Rect, row: usize, rows: usize, pixels: &[u8]) -> pb::FrameRect {
    pb::FrameRect {
        area: Some(band(area, row, rows)),
        packing: pb::Packing::Solid.into(),
        data: Bytes::copy_from_slice(&pixels[..4]),
    }
}

/// How many whole rows from the start of `pixels` have one colour. A row is in one colour when it equals itself moved by a
/// pixel; the comparison of slices is what runs fastest everywhere, emulation included.
fn solid_rows(pixels: &[u8], stride: usize) -> usize {
    let first = &pixels[..stride];
    if first[4..] != first[..stride - 4] {
        return 0;
    }
    pixels.chunks_exact(stride).take_while(|row| *row == first).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpack(rects: &[pb::FrameRect], area: Rect) -> Vec<u8> {
        let mut out = vec![0xAA; area.width as usize * area.height as usize * 4];
        for rect in rects {
            let a = rect.area.expect("area");
            let size = (a.width * a.height * 4) as usize;
            assert!(size <= MAX_BAND || rect.packing() == pb::Packing::Solid, "bounded");
            let data = match rect.packing() {
                pb::Packing::Raw => rect.data.to_vec(),
                pb::Packing::Solid => rect.data.repeat(size / 4),
                pb::Packing::Lz4 => lz4_flex::block::decompress(&rect.data, size).expect("valid"),
                pb::Packing::Unspecified => panic!("no packing"),
            };
            assert_eq!((a.x, a.width), (area.x, area.width));
            let at = ((a.y - area.y) * a.width * 4) as usize;
            out[at..at + size].copy_from_slice(&data);
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(
            width in 1..70u32,
            runs in proptest::collection::vec((1..40u32, proptest::option::of(any::<[u8; 4]>()), any::<u8>()), 1..8),
        ) {
            let mut pixels = Vec::new();
            let mut height = 0;
            for (rows, solid, seed) in runs {
                height += rows;
                for i in 0..rows * width {
                    let noise = i.wrapping_mul(2_654_435_761).wrapping_add(u32::from(seed)).to_le_bytes();
                    pixels.extend_from_slice(&solid.unwrap_or(noise));
                }
            }
            let area = Rect { x: 3, y: 5, width, height };
            let mut rects = Vec::new();
            Packer::default().pack(area, &pixels, &mut rects);
            prop_assert_eq!(unpack(&rects, area), pixels);
        }
    }

    #[test]
    fn large_frames_come_in_bands_and_flat_ones_in_one_colour() {
        let area = Rect { x: 0, y: 0, width: 1280, height: 800 };
        let mut pixels = vec![7; 1280 * 800 * 4];
        let mut rects = Vec::new();
        Packer::default().pack(area, &pixels, &mut rects);
        assert_eq!(rects.len(), 1, "flat");
        let mut state = 1u32;
        for word in pixels.chunks_exact_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            word.copy_from_slice(&state.to_le_bytes());
        }
        rects.clear();
        Packer::default().pack(area, &pixels, &mut rects);
        assert_eq!(rects.len(), 4);
        assert!(rects.iter().all(|r| r.packing() == pb::Packing::Raw), "noise does not compress");
        assert_eq!(unpack(&rects, area), pixels);
    }
}
