//! What the host's frame shows, tile by tile, so that nothing is sent that is there already.
//!
//! A program that paints its window anew damages all of it, and mostly with the pixels that were there. So of each tile of
//! 64 x 64 pixels that was sent, a hash is kept: a tile that has not changed is left out, one that looks like another place
//! of the frame becomes a copy of that. 4 KiB of hashes do for a full HD screen, where a copy of the frame would take 8 MiB.
//!
//! The hashes are of what one answer left on the host's screen. A host that does not name this answer as its base (it threw
//! it away, or never got it) has another frame, and everything is sent. The seed is random, so that no picture can be made
//! whose hash equals another's.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;

use super::rect::Rect;

/// Side of a tile in pixels: small enough for a caret, large enough that a hash costs little beside its pixels.
pub(super) const TILE: u32 = 64;

/// What is known of the host's frame.
#[derive(Debug, Default)]
pub struct Tiles {
    seed: RandomState,
    size: (u32, u32),
    columns: u32,
    /// By tile, row after row; absent where the host's pixels are unknown.
    hashes: Vec<Option<u64>>,
    /// Where a hash was last seen. May be outdated, so what it names is looked at again.
    places: HashMap<u64, usize, RandomState>,
    answer: u64,
}

/// What is new about a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The host shows it already.
    Nothing,
    /// It looks like the frame at this place.
    Copy(u32, u32),
    /// Its pixels.
    Pixels,
}

impl Tiles {
    /// Begins an answer to a host that has what the answer `base` left; 0: nothing.
    pub fn begin(&mut self, size: (u32, u32), base: u64) {
        if base != 0 && base == self.answer && size == self.size {
            return;
        }
        self.size = size;
        self.columns = size.0.div_ceil(TILE);
        self.hashes.clear();
        self.hashes.resize(self.columns as usize * size.1.div_ceil(TILE) as usize, None);
        self.places.clear();
    }

    /// Ends an answer that had rectangles; gives its number.
    pub fn end(&mut self) -> u64 {
        self.answer += 1;
        self.answer
    }

    /// The tiles that `rects` touch, joined to few rectangles that do not overlap.
    #[must_use]
    pub fn cover(&self, rects: &[Rect]) -> Vec<Rect> {
        let mut touched = vec![false; self.hashes.len()];
        for rect in rects {
            for row in rect.y / TILE..(rect.y + rect.height).div_ceil(TILE) {
                let from = (row * self.columns + rect.x / TILE) as usize;
                let to = (row * self.columns + (rect.x + rect.width).div_ceil(TILE)) as usize;
                if let Some(tiles) = touched.get_mut(from..to) {
                    tiles.fill(true);
                }
            }
        }
        let mut out: Vec<Rect> = Vec::new();
        if self.columns == 0 {
            return out;
        }
        for (row, tiles) in (0..).zip(touched.chunks(self.columns as usize)) {
            let y = row * TILE;
            let height = TILE.min(self.size.1 - y);
            let mut column = 0;
            for run in tiles.chunk_by(|a, b| a == b) {
                let length = u32::try_from(run.len()).unwrap_or(u32::MAX);
                let (x, right) = (column * TILE, ((column + length) * TILE).min(self.size.0));
                column += length;
                if !run[0] {
                    continue;
                }
                let above = |r: &&mut Rect| r.x == x && r.width == right - x && r.y + r.height == y;
                match out.iter_mut().find(above) {
                    Some(rect) => rect.height += height,
                    None => out.push(Rect { x, y, width: right - x, height }),
                }
            }
        }
        out
    }

    /// Hash of a tile: of all its rows, or of its one colour.
    pub(super) fn hash<'a>(&self, rows: impl Iterator<Item = &'a [u8]>) -> u64 {
        let mut hasher = self.seed.build_hasher();
        rows.for_each(|row| hasher.write(row));
        hasher.finish()
    }

    /// What is new about the tile at `x`, `y`, which has this hash; the host is taken to get it.
    pub(super) fn note(&mut self, x: u32, y: u32, hash: u64) -> News {
        let index = self.index(x, y);
        let Some(known) = self.hashes.get_mut(index) else { return News::Pixels };
        if *known == Some(hash) {
            return News::Nothing;
        }
        *known = Some(hash);
        let twin = self.places.get(&hash).copied().filter(|&twin| {
            twin != index && self.hashes.get(twin) == Some(&Some(hash)) && self.alike(twin, index)
        });
        if let Some(twin) = twin {
            let (x, y) = self.place(twin);
            return News::Copy(x, y);
        }
        // Outdated ones go when they are the most.
        if self.places.len() > self.hashes.len() * 2 {
            self.places.clear();
        }
        self.places.insert(hash, index);
        News::Pixels
    }

    fn index(&self, x: u32, y: u32) -> usize {
        (y / TILE * self.columns + x / TILE) as usize
    }

    fn place(&self, index: usize) -> (u32, u32) {
        let index = u32::try_from(index).unwrap_or(0);
        (index % self.columns * TILE, index / self.columns * TILE)
    }

    /// Whether both tiles have the same size: those at the edges may be smaller.
    fn alike(&self, a: usize, b: usize) -> bool {
        let size = |index| {
            let (x, y) = self.place(index);
            (TILE.min(self.size.0 - x), TILE.min(self.size.1 - y))
        };
        size(a) == size(b)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: (u32, u32) = (200, 150);

    fn note(tiles: &mut Tiles, x: u32, y: u32, value: u8) -> News {
        let row = [value; 64 * 4];
        let hash = tiles.hash(std::iter::repeat_n(row.as_slice(), 64));
        tiles.note(x, y, hash)
    }

    #[test]
    fn what_the_host_has_is_not_sent_again() {
        let mut tiles = Tiles::default();
        tiles.begin(SIZE, 0);
        assert_eq!(note(&mut tiles, 0, 0, 1), News::Pixels);
        assert_eq!(note(&mut tiles, 64, 0, 2), News::Pixels);
        assert_eq!(note(&mut tiles, 128, 0, 1), News::Copy(0, 0));
        assert_eq!(note(&mut tiles, 0, 128, 1), News::Pixels, "the lowest row of tiles is not as high");
        let answer = tiles.end();
        tiles.begin(SIZE, answer);
        assert_eq!(note(&mut tiles, 64, 0, 2), News::Nothing);
        assert_eq!(note(&mut tiles, 0, 0, 2), News::Copy(64, 0));
        assert_eq!(note(&mut tiles, 128, 0, 3), News::Pixels);
        let next = tiles.end();
        assert_ne!(answer, next);
        // Another base: the host has not got the last answer, so nothing is known of its frame.
        tiles.begin(SIZE, answer);
        assert_eq!(note(&mut tiles, 64, 0, 2), News::Pixels);
        let last = tiles.end();
        tiles.begin((100, 100), last);
        assert_eq!(note(&mut tiles, 64, 0, 2), News::Pixels, "another size");
    }

    proptest! {
        #[test]
        fn a_cover_covers_without_overlaps(
            rects in proptest::collection::vec((0..200u32, 0..150u32, 1..200u32, 1..150u32), 0..6),
        ) {
            let mut tiles = Tiles::default();
            tiles.begin(SIZE, 0);
            let rects: Vec<Rect> = rects
                .into_iter()
                .map(|(x, y, w, h)| Rect { x, y, width: w.min(SIZE.0 - x), height: h.min(SIZE.1 - y) })
                .collect();
            let cover = tiles.cover(&rects);
            for y in 0..SIZE.1 {
                for x in 0..SIZE.0 {
                    let dot = Rect { x, y, width: 1, height: 1 };
                    let count = cover.iter().filter(|r| r.contains(&dot)).count();
                    prop_assert!(count <= 1);
                    if rects.iter().any(|r| r.contains(&dot)) {
                        prop_assert_eq!(count, 1);
                    }
                }
            }
            prop_assert!(cover.iter().all(|r| r.x + r.width <= SIZE.0 && r.y + r.height <= SIZE.1));
        }
    }
}
