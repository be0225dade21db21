//! What a picture shall be like, and which pixels that means.

use super::error::DisplayError;
use crate::model::screen::{Rect, Size};

/// How a picture is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ImageFormat {
    /// Lossless, RGB.
    #[default]
    Png,
    /// Lossy, RGB, with this quality from 1 to 100.
    Jpeg(u8),
    /// WebP, lossless.
    Webp,
    /// Rows top to bottom, 4 bytes a pixel: blue, green, red, 255.
    RawBgra,
}

/// How a picture is made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Scaling {
    /// Not at all.
    #[default]
    None,
    /// By this factor of both sides, more than 0 and at most 1.
    Factor(f64),
    /// Until it fits, its shape kept.
    Fit(Size),
}

/// What a picture shall be like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScreenshotOptions {
    /// Encoding.
    pub format: ImageFormat,
    /// Size.
    pub scaling: Scaling,
    /// Only this part of the frame, before scaling.
    pub region: Option<Rect>,
    /// Draw the cursor.
    pub cursor: bool,
    /// The encoded picture is at most this large; absent: [`ScreenshotOptions::DEFAULT_MAX_BYTES`].
    /// [`ImageFormat::RawBgra`] needs a value.
    pub max_bytes: Option<usize>,
}

impl Default for ScreenshotOptions {
    fn default() -> Self {
        Self { format: ImageFormat::Png, scaling: Scaling::None, region: None, cursor: true, max_bytes: None }
    }
}

impl ScreenshotOptions {
    /// Fits the 4 MiB that gRPC clients accept by default, with room for the message around it.
    pub const DEFAULT_MAX_BYTES: usize = 3_500_000;

    /// Checks what can be checked without a frame.
    ///
    /// # Errors
    /// [`DisplayError::BadOption`].
    pub fn check(&self) -> Result<(), DisplayError> {
        let bad = |field, description: &str| {
            Err(DisplayError::BadOption { field, description: description.to_owned() })
        };
        match self.format {
            ImageFormat::Jpeg(quality) if !(1..=100).contains(&quality) => {
                return bad("options.quality", "must be 1 to 100");
            }
            ImageFormat::RawBgra if self.max_bytes.is_none() => {
                return bad("options.max_bytes", "must be given for RAW_BGRA");
            }
            _ => {}
        }
        match self.scaling {
            // Written so that NaN is refused too.
            Scaling::Factor(factor) if !(factor > 0.0 && factor <= 1.0) => {
                return bad("options.scale", "must be more than 0 and at most 1");
            }
            Scaling::Fit(Size { width: 0, .. } | Size { height: 0, .. }) => {
                return bad("options.max_size", "must be at least 1x1");
            }
            _ => {}
        }
        if self.max_bytes == Some(0) {
            return bad("options.max_bytes", "must be at least 1");
        }
        Ok(())
    }

    pub(super) fn limit(&self) -> usize {
        self.max_bytes.unwrap_or(Self::DEFAULT_MAX_BYTES)
    }

    /// Which part of a frame is shown, and how large.
    pub(super) fn geometry(&self, frame: Size) -> Result<Geometry, DisplayError> {
        let region = self.region.unwrap_or(Rect::whole(frame));
        if !region.fits(frame) {
            return Err(DisplayError::RegionOutOfFrame { region, size: frame });
        }
        let whole = Size { width: region.width, height: region.height };
        let size = match self.scaling {
            Scaling::None => whole,
            Scaling::Factor(factor) => {
                Size { width: shrink(whole.width, factor), height: shrink(whole.height, factor) }
            }
            Scaling::Fit(fit) => {
                let factor = (f64::from(fit.width) / f64::from(whole.width))
                    .min(f64::from(fit.height) / f64::from(whole.height));
                if factor >= 1.0 {
                    whole
                } else {
                    Size {
                        width: shrink(whole.width, factor).min(fit.width),
                        height: shrink(whole.height, factor).min(fit.height),
                    }
                }
            }
        };
        Ok(Geometry { region, size })
    }
}

/// Which pixels a picture shows, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Geometry {
    pub(super) region: Rect,
    pub(super) size: Size,
}

fn shrink(side: u32, factor: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a side times a factor of at most 1 is a side"
    )]
    let side = (f64::from(side) * factor).round() as u32;
    side.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Size = Size { width: 1280, height: 800 };

    #[test]
    fn sizes_keep_their_shape_and_never_vanish() {
        let size = |scaling| {
            ScreenshotOptions { scaling, ..Default::default() }
                .geometry(FRAME)
                .map(|g| (g.size.width, g.size.height))
        };
        assert_eq!(size(Scaling::None).ok(), Some((1280, 800)));
        assert_eq!(size(Scaling::Factor(0.5)).ok(), Some((640, 400)));
        assert_eq!(size(Scaling::Factor(0.0001)).ok(), Some((1, 1)));
        assert_eq!(size(Scaling::Fit(Size { width: 640, height: 640 })).ok(), Some((640, 400)));
        assert_eq!(size(Scaling::Fit(Size { width: 4000, height: 4000 })).ok(), Some((1280, 800)));
    }

    #[test]
    fn bad_options_name_their_field() {
        let field = |options: ScreenshotOptions| match options.check() {
            Err(DisplayError::BadOption { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let base = ScreenshotOptions::default();
        assert_eq!(field(ScreenshotOptions { format: ImageFormat::Jpeg(0), ..base }), "options.quality");
        assert_eq!(field(ScreenshotOptions { format: ImageFormat::Jpeg(101), ..base }), "options.quality");
        assert_eq!(field(ScreenshotOptions { format: ImageFormat::RawBgra, ..base }), "options.max_bytes");
        for factor in [0.0, -1.0, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(
                field(ScreenshotOptions { scaling: Scaling::Factor(factor), ..base }),
                "options.scale"
            );
        }
        assert_eq!(
            field(ScreenshotOptions { scaling: Scaling::Fit(Size { width: 0, height: 5 }), ..base }),
            "options.max_size"
        );
    }

    #[test]
    fn a_region_must_lie_in_the_frame() {
        let region = |x, y, width, height| {
            ScreenshotOptions { region: Some(Rect { x, y, width, height }), ..Default::default() }
                .geometry(FRAME)
        };
        assert!(region(0, 0, 1280, 800).is_ok());
        assert!(matches!(region(1, 0, 1280, 800), Err(DisplayError::RegionOutOfFrame { .. })));
        assert!(region(0, 0, 0, 1).is_err());
        assert!(region(u32::MAX, 0, 2, 1).is_err());
    }
}
