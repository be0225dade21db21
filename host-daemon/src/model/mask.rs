//! Masks: parts of a screen that are covered in every picture of it.

use crate::model::screen::{Rect, Size};

/// What is covered of one screen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Masks {
    /// Size of the frame that they were made for.
    pub frame: Size,
    /// Parts of it, each inside.
    pub areas: Vec<Rect>,
}

impl Masks {
    /// Most parts.
    pub const MAX: usize = 64;

    /// Covers everything, whatever its size: for when it is not known what was to be covered.
    #[must_use]
    pub fn everything() -> Self {
        Self { frame: Size::default(), areas: Vec::new() }
    }

    /// What is covered in a frame of this size. On a screen of another size nobody knows where things are: all of it.
    #[must_use]
    pub fn over(&self, frame: Size) -> Vec<Rect> {
        if self.frame == frame { self.areas.clone() } else { vec![Rect::whole(frame)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_another_screen_everything_is_covered() {
        let (size, other) = (Size { width: 640, height: 400 }, Size { width: 800, height: 600 });
        let area = Rect { x: 1, y: 2, width: 3, height: 4 };
        let masks = Masks { frame: size, areas: vec![area] };
        assert_eq!(masks.over(size), [area]);
        assert_eq!(masks.over(other), [Rect::whole(other)]);
        assert_eq!(Masks::everything().over(size), [Rect::whole(size)]);
    }
}
