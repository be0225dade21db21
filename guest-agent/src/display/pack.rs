//! Packs pixels for the link: cheap before small, because the guest may be emulated.
//!
//! An area is looked at tile by tile. Tiles that the host shows already are left out, those that look like another place
//! are copies of it (see [`Tiles`]), those of one colour are that colour. Neighbours that need their pixels go together: through
//! LZ4, or as they are where LZ4 gains nothing, which a sample tells.

use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;

use super::rect::Rect;
use super::tiles::{News, TILE, Tiles};

/// Unpacked size of one rectangle, as the protocol bounds it.
const MAX_BAND: usize = 1 << 20;
/// Tiles of one rectangle.
const MAX_RUN: u32 = 64;
/// Bytes that are packed on trial.
const SAMPLE: usize = 16 << 10;

/// Holds the scratch memory of packing; drop it when idle.
#[derive(Debug, Default)]
pub struct Packer {
    scratch: Vec<u8>,
    gathered: Vec<u8>,
}

/// What a run of neighbouring tiles has in common.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Solid([u8; 4]),
    Pixels,
}

impl Packer {
    /// Packs what is new in `area`, whose rows lie one behind the other in `pixels` and whose edges are tiles' edges.
    pub fn pack(&mut self, area: Rect, pixels: &[u8], tiles: &mut Tiles, out: &mut Vec<pb::FrameRect>) {
        let stride = area.width as usize * 4;
        let heights = (0..area.height).step_by(TILE as usize);
        for (top, rows) in heights.zip(pixels.chunks(stride * TILE as usize)) {
            let y = area.y + top;
            let height = u32::try_from(rows.len() / stride).unwrap_or(TILE);
            let mut run: Option<(Run, Rect)> = None;
            for left in (0..area.width).step_by(TILE as usize) {
                let x = area.x + left;
                let width = TILE.min(area.width - left);
                let (from, to) = (left as usize * 4, (left + width) as usize * 4);
                let tile = || rows.chunks_exact(stride).map(|row| &row[from..to]);
                let here = Rect { x, y, width, height };
                let colour = solid(tile());
                // A flat tile costs one look at its pixels: its hash is that of the colour.
                let hash = match &colour {
                    Some(pixel) => tiles.hash(std::iter::once(pixel.as_slice())),
                    None => tiles.hash(tile()),
                };
                let kind = match (tiles.note(x, y, hash), colour) {
                    (News::Nothing, _) => {
                        self.emit(run.take(), area, rows, out);
                        continue;
                    }
                    (_, Some(pixel)) => Run::Solid(pixel),
                    (News::Pixels, None) => Run::Pixels,
                    (News::Copy(x, y), None) => {
                        self.emit(run.take(), area, rows, out);
                        out.push(copy(here, x, y));
                        continue;
                    }
                };
                run = match run {
                    Some((same, rect)) if same == kind && rect.width < MAX_RUN * TILE => {
                        Some((same, rect.union(&here)))
                    }
                    other => {
                        self.emit(other, area, rows, out);
                        Some((kind, here))
                    }
                };
            }
            self.emit(run, area, rows, out);
        }
    }

    /// Packs a run of tiles; `rows` are all rows of `area` at its height.
    fn emit(&mut self, run: Option<(Run, Rect)>, area: Rect, rows: &[u8], out: &mut Vec<pb::FrameRect>) {
        let Some((kind, rect)) = run else { return };
        let (packing, data) = match kind {
            Run::Solid(pixel) => {
                if grow(out.last_mut(), rect, pixel) {
                    return;
                }
                (pb::Packing::Solid, Bytes::copy_from_slice(&pixel))
            }
            Run::Pixels if rect.width == area.width => self.compress(rows),
            Run::Pixels => {
                let mut gathered = std::mem::take(&mut self.gathered);
                gathered.clear();
                let from = (rect.x - area.x) as usize * 4;
                for row in rows.chunks_exact(area.width as usize * 4) {
                    gathered.extend_from_slice(&row[from..from + rect.width as usize * 4]);
                }
                let packed = self.compress(&gathered);
                self.gathered = gathered;
                packed
            }
        };
        debug_assert!(data.len() <= MAX_BAND, "bounded by the protocol");
        out.push(pb::FrameRect { area: Some(rect.into()), packing: packing.into(), data, from: None });
    }

    fn compress(&mut self, data: &[u8]) -> (pb::Packing, Bytes) {
        let room = lz4_flex::block::get_maximum_output_size(data.len());
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        // What LZ4 shortens by less than this is not worth the host's time.
        let worth = |packed: usize, of: usize| packed < of - of / 16;
        let middle = data.len().saturating_sub(SAMPLE) / 2;
        let sample = &data[middle..data.len().min(middle + SAMPLE)];
        let promising = sample.len() == data.len()
            || lz4_flex::block::compress_into(sample, &mut self.scratch)
                .is_ok_and(|n| worth(n, sample.len()));
        if promising
            && let Ok(n) = lz4_flex::block::compress_into(data, &mut self.scratch)
            && worth(n, data.len())
        {
            return (pb::Packing::Lz4, Bytes::copy_from_slice(&self.scratch[..n]));
        }
        (pb::Packing::Raw, Bytes::copy_from_slice(data))
    }
}

/// Takes a run of one colour into the rectangle of that colour right above it.
fn grow(last: Option<&mut pb::FrameRect>, rect: Rect, pixel: [u8; 4]) -> bool {
    let Some(last) = last.filter(|r| r.packing() == pb::Packing::Solid && *r.data == pixel) else {
        return false;
    };
    let Some(above) = last.area.as_mut() else { return false };
    let fits = above.x == rect.x && above.width == rect.width && above.y + above.height == rect.y;
    if fits {
        above.height += rect.height;
    }
    fits
}

fn copy(area: Rect, x: u32, y: u32) -> pb::FrameRect {
    let coordinate = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    pb::FrameRect {
        area: Some(area.into()),
        packing: pb::Packing::Copy.into(),
        data: Bytes::new(),
        from: Some(pb::Point { x: coordinate(x), y: coordinate(y) }),
    }
}

/// The one colour of a tile. A row is in one colour when it equals itself moved by a pixel; the comparison of slices is
/// what runs fastest everywhere, emulation included.
fn solid<'a>(mut rows: impl Iterator<Item = &'a [u8]>) -> Option<[u8; 4]> {
    let first = rows.next()?;
    if first[4..] != first[..first.len() - 4] || rows.any(|row| row != first) {
        return None;
    }
    first.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paint(frame: &mut [u8], width: u32, rects: &[pb::FrameRect]) {
        let at = |x: u32, y: u32| (y * width + x) as usize * 4;
        for rect in rects {
            let a = rect.area.expect("area");
            let row_bytes = a.width as usize * 4;
            let size = row_bytes * a.height as usize;
            assert!(size <= MAX_BAND || rect.packing() == pb::Packing::Solid, "bounded");
            let data = match rect.packing() {
                pb::Packing::Raw => rect.data.to_vec(),
                pb::Packing::Solid => rect.data.repeat(size / 4),
                pb::Packing::Lz4 => lz4_flex::block::decompress(&rect.data, size).expect("valid"),
                pb::Packing::Copy => {
                    let from = rect.from.expect("a place");
                    let (x, y) = (from.x.unsigned_abs(), from.y.unsigned_abs());
                    (0..a.height).flat_map(|row| frame[at(x, y + row)..][..row_bytes].to_vec()).collect()
                }
                pb::Packing::Unspecified => panic!("no packing"),
            };
            for (row, line) in (0..).zip(data.chunks(row_bytes)) {
                frame[at(a.x, a.y + row)..][..row_bytes].copy_from_slice(line);
            }
        }
    }

    fn noise(pixels: &mut [u8]) {
        let mut state = 1u32;
        for word in pixels.chunks_exact_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            word.copy_from_slice(&state.to_le_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_shows_on_the_host(
            width in 1..300u32,
            height in 1..200u32,
            steps in proptest::collection::vec(
                proptest::collection::vec((0..300u32, 0..200u32, 1..150u32, 1..150u32, any::<Option<u8>>()), 0..6),
                1..4,
            ),
        ) {
            let whole = Rect { x: 0, y: 0, width, height };
            let (mut packer, mut tiles) = (Packer::default(), Tiles::default());
            let mut guest = vec![9; whole.width as usize * whole.height as usize * 4];
            let mut host = vec![0; guest.len()];
            let mut base = 0;
            let mut damage = vec![whole];
            for step in steps {
                for (x, y, w, h, colour) in step {
                    let Some(rect) = whole.intersect(&Rect { x, y, width: w, height: h }) else { continue };
                    for row in rect.y..rect.y + rect.height {
                        let line = &mut guest[((row * width + rect.x) * 4) as usize..][..rect.width as usize * 4];
                        match colour {
                            Some(value) => line.fill(value),
                            None => noise(line),
                        }
                    }
                    damage.push(rect);
                }
                tiles.begin((width, height), base);
                let mut rects = Vec::new();
                for area in tiles.cover(&damage) {
                    let mut pixels = Vec::new();
                    for row in area.y..area.y + area.height {
                        let line = &guest[((row * width + area.x) * 4) as usize..][..area.width as usize * 4];
                        pixels.extend_from_slice(line);
                    }
                    packer.pack(area, &pixels, &mut tiles, &mut rects);
                }
                base = tiles.end();
                paint(&mut host, width, &rects);
                prop_assert_eq!(&host, &guest);
                damage.clear();
            }
        }
    }

    #[test]
    fn flat_frames_are_one_colour_and_noise_stays_as_it_is() {
        let area = Rect { x: 0, y: 0, width: 1280, height: 800 };
        let mut pixels = vec![7; 1280 * 800 * 4];
        let (mut packer, mut tiles) = (Packer::default(), Tiles::default());
        tiles.begin((1280, 800), 0);
        let mut rects = Vec::new();
        packer.pack(area, &pixels, &mut tiles, &mut rects);
        assert_eq!(rects.len(), 1, "flat");
        noise(&mut pixels);
        let base = tiles.end();
        tiles.begin((1280, 800), base);
        rects.clear();
        packer.pack(area, &pixels, &mut tiles, &mut rects);
        assert_eq!(rects.len(), 13, "a rectangle for each row of tiles");
        assert!(rects.iter().all(|r| r.packing() == pb::Packing::Raw), "noise does not compress");
        let mut host = vec![0; pixels.len()];
        paint(&mut host, 1280, &rects);
        assert_eq!(host, pixels);
    }
}
