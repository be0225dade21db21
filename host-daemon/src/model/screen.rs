//! Pixels and places on a screen.

use bytes::Bytes;

/// A position in physical pixels, the origin at the top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Point {
    /// From the left edge.
    pub x: i32,
    /// From the top edge.
    pub y: i32,
}

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl Size {
    /// Largest side a frame may have.
    pub const MAX_SIDE: u32 = 16_384;
    /// Most pixels a frame may have: an 8K screen and a little. Bounds what a guest can make the host allocate (128 MiB a
    /// frame).
    pub const MAX_PIXELS: u64 = 1 << 25;

    /// Whether a frame may have this size.
    #[must_use]
    pub fn is_legal(self) -> bool {
        let sides = 1..=Self::MAX_SIDE;
        sides.contains(&self.width)
            && sides.contains(&self.height)
            && u64::from(self.width) * u64::from(self.height) <= Self::MAX_PIXELS
    }

    /// Bytes of a frame of this size at 4 bytes a pixel.
    #[must_use]
    pub const fn frame_bytes(self) -> usize {
        self.width as usize * self.height as usize * 4
    }

    /// Whether the point lies inside.
    #[must_use]
    pub fn contains(self, point: Point) -> bool {
        u32::try_from(point.x).is_ok_and(|x| x < self.width)
            && u32::try_from(point.y).is_ok_and(|y| y < self.height)
    }
}

/// A rectangle inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
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
    /// The whole of a frame.
    #[must_use]
    pub fn whole(size: Size) -> Self {
        Self { x: 0, y: 0, width: size.width, height: size.height }
    }

    /// The part that both cover, if there is one.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let right = self.x.saturating_add(self.width).min(other.x.saturating_add(other.width));
        let bottom = self.y.saturating_add(self.height).min(other.y.saturating_add(other.height));
        (right > x && bottom > y).then(|| Self { x, y, width: right - x, height: bottom - y })
    }

    /// Whether the point lies in it.
    #[must_use]
    pub fn contains(self, point: Point) -> bool {
        let within = |at: i32, from: u32, length: u32| {
            u32::try_from(at).is_ok_and(|at| at.checked_sub(from).is_some_and(|at| at < length))
        };
        within(point.x, self.x, self.width) && within(point.y, self.y, self.height)
    }

    /// Whether all of it lies inside a frame of this size, and it is not empty.
    #[must_use]
    pub fn fits(self, size: Size) -> bool {
        self.width > 0
            && self.height > 0
            && self.x.checked_add(self.width).is_some_and(|right| right <= size.width)
            && self.y.checked_add(self.height).is_some_and(|bottom| bottom <= size.height)
    }
}

/// What the cursor looks like.
#[derive(Clone, PartialEq, Eq)]
pub struct CursorShape {
    /// Another one for each shape within a session; never 0.
    pub id: u32,
    /// Its size.
    pub size: Size,
    /// The pixel that lies on the pointer's position.
    pub hot: Point,
    /// `size.frame_bytes()` bytes: blue, green, red, alpha; colours are multiplied by alpha.
    pub pixels: Bytes,
}

impl CursorShape {
    /// Largest side of a shape.
    pub const MAX_SIDE: u32 = 256;
}

impl std::fmt::Debug for CursorShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CursorShape({}: {}x{})", self.id, self.size.width, self.size.height)
    }
}

/// A whole screen: rows top to bottom, 4 bytes a pixel (blue, green, red, unused), no padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its size.
    pub size: Size,
    /// `size.frame_bytes()` bytes.
    pub pixels: Bytes,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}x{})", self.size.width, self.size.height)
    }
}
