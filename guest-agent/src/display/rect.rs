//! Rectangles of pixels, and small sets of them.

use hvkube_proto::guest::v1 as pb;

/// A rectangle with at least one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl Rect {
    /// From edges, clipped to `0..limit`; none when nothing is left.
    #[must_use]
    pub fn clipped(x: i32, y: i32, width: u32, height: u32, limit: (u32, u32)) -> Option<Self> {
        let clip = |from: i32, len: u32, limit: u32| {
            let start = i64::from(from).max(0);
            let end = (i64::from(from) + i64::from(len)).min(i64::from(limit));
            let len = u32::try_from(end - start).ok().filter(|&l| l > 0)?;
            Some((u32::try_from(start).ok()?, len))
        };
        let (x, width) = clip(x, width, limit.0)?;
        let (y, height) = clip(y, height, limit.1)?;
        Some(Self { x, y, width, height })
    }

    /// Pixels.
    #[must_use]
    pub fn area(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// What both cover.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let right = (self.x + self.width).min(other.x + other.width);
        let bottom = (self.y + self.height).min(other.y + other.height);
        (x < right && y < bottom).then(|| Self { x, y, width: right - x, height: bottom - y })
    }

    /// The smallest rectangle around both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = (self.x + self.width).max(other.x + other.width);
        let bottom = (self.y + self.height).max(other.y + other.height);
        Self { x, y, width: right - x, height: bottom - y }
    }

    /// Whether `other` lies wholly inside.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.intersect(other) == Some(*other)
    }
}

impl From<Rect> for pb::Rect {
    fn from(r: Rect) -> Self {
        Self { x: r.x, y: r.y, width: r.width, height: r.height }
    }
}

/// Joins rectangles until there are at most `limit`, and wherever joining costs few pixels. The result covers the input.
pub fn simplify(rects: &mut Vec<Rect>, limit: usize) {
    // Far more than any screen needs; joining is quadratic, so a flood is halved in passes first.
    while rects.len() > limit.max(1) * 4 {
        let joined =
            rects.chunks(2).map(|pair| pair.iter().skip(1).fold(pair[0], |a, b| a.union(b))).collect();
        *rects = joined;
    }
    loop {
        let mut best: Option<(i128, usize, usize)> = None;
        for a in 0..rects.len() {
            for b in a + 1..rects.len() {
                let union = rects[a].union(&rects[b]).area();
                let waste = i128::from(union) - i128::from(rects[a].area()) - i128::from(rects[b].area());
                if best.is_none_or(|(least, ..)| waste < least) {
                    best = Some((waste, a, b));
                }
            }
        }
        let Some((waste, a, b)) = best else { return };
        // A rectangle costs about as much as a few hundred pixels.
        if waste > 512 && rects.len() <= limit.max(1) {
            return;
        }
        let other = rects.swap_remove(b);
        rects[a] = rects[a].union(&other);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_rect() -> impl Strategy<Value = Rect> {
        (0..1000u32, 0..1000u32, 1..300u32, 1..300u32).prop_map(|(x, y, width, height)| Rect {
            x,
            y,
            width,
            height,
        })
    }

    proptest! {
        #[test]
        fn simplified_sets_are_small_and_cover_the_input(
            rects in proptest::collection::vec(any_rect(), 0..100),
            limit in 1..64usize,
        ) {
            let mut simple = rects.clone();
            simplify(&mut simple, limit);
            prop_assert!(simple.len() <= limit);
            for rect in rects {
                prop_assert!(simple.iter().any(|s| s.contains(&rect)));
            }
        }

        #[test]
        fn clipping_stays_inside(x in -5000..5000i32, y in -5000..5000i32, w in 0..9000u32, h in 0..9000u32) {
            if let Some(r) = Rect::clipped(x, y, w, h, (1280, 800)) {
                prop_assert!(r.width > 0 && r.height > 0 && r.x + r.width <= 1280 && r.y + r.height <= 800);
            }
        }
    }

    #[test]
    fn neighbours_join_and_distant_ones_stay_apart() {
        let rect = |x, y| Rect { x, y, width: 10, height: 10 };
        let mut rects = vec![rect(0, 0), rect(10, 0), rect(500, 500)];
        simplify(&mut rects, 8);
        assert_eq!(rects.len(), 2);
        assert!(rects.contains(&Rect { x: 0, y: 0, width: 20, height: 10 }));
    }
}
