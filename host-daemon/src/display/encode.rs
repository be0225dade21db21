//! Pictures: cut out, scaled, encoded. Each picture of a state is made once, whoever asks for it.

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use tokio::sync::{OnceCell, Semaphore};

use super::error::DisplayError;
use super::options::{Geometry, ImageFormat, ScreenshotOptions};
use super::plane::Shot;
use crate::model::screen::{Rect, Size};

/// Pictures that a hub keeps: a handful of watchers with different wishes, and the state before.
const CACHED: usize = 8;
/// Encoded bytes that a hub keeps besides the newest picture; raw pictures are large.
const CACHED_BYTES: usize = 16 << 20;

/// The encoders of a daemon: as many at work at a time as it has processors. Clones share them.
#[derive(Debug, Clone)]
pub struct Encoders(Arc<Semaphore>);

impl Default for Encoders {
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }
}

impl Encoders {
    /// At most this many at work at a time.
    #[must_use]
    pub fn new(parallel: usize) -> Self {
        Self(Arc::new(Semaphore::new(parallel.max(1))))
    }

    async fn run(&self, shot: Shot, geometry: Geometry, format: ImageFormat, limit: usize) -> Outcome {
        let permit =
            self.0.clone().acquire_owned().await.map_err(|error| Failure::Encoder(error.to_string()))?;
        let work = move || {
            // Held until the work is done, also when nobody waits for it any more.
            let _permit = permit;
            encode(&shot, geometry, format, limit)
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(Failure::Encoder(error.to_string())))
    }
}

/// An encoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The encoded bytes.
    pub bytes: Bytes,
    /// Their encoding.
    pub format: ImageFormat,
    /// Size of the picture.
    pub size: Size,
    /// The part of the frame it shows.
    pub region: Rect,
}

/// Why there is no picture; cloned to all who asked for it.
#[derive(Debug, Clone)]
enum Failure {
    TooLarge(usize),
    Encoder(String),
}

type Outcome = Result<Bytes, Failure>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    from_agent: bool,
    epoch: u64,
    sequence: u64,
    cursor: bool,
    geometry: Geometry,
    format: ImageFormat,
    limit: usize,
}

/// The last pictures of one hub.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    recent: Mutex<VecDeque<(Key, Arc<OnceCell<Outcome>>)>>,
}

impl Pictures {
    /// The picture of a state: the one that is there or under way, or a new one.
    pub(super) async fn get(
        &self,
        encoders: &Encoders,
        shot: Shot,
        options: &ScreenshotOptions,
    ) -> Result<Picture, DisplayError> {
        let geometry = options.geometry(shot.size)?;
        let (format, limit) = (options.format, options.limit());
        if format == ImageFormat::RawBgra && geometry.size.frame_bytes() > limit {
            return Err(DisplayError::TooLarge { bytes: geometry.size.frame_bytes(), max: limit });
        }
        let key = Key {
            from_agent: shot.source == super::hub::Source::Agent,
            epoch: shot.epoch,
            sequence: shot.sequence,
            cursor: options.cursor,
            geometry,
            format,
            limit,
        };
        let cell = self.cell(key);
        let outcome = cell.get_or_init(|| encoders.run(shot, geometry, format, limit)).await;
        match outcome {
            Ok(bytes) => {
                Ok(Picture { bytes: bytes.clone(), format, size: geometry.size, region: geometry.region })
            }
            Err(Failure::TooLarge(bytes)) => Err(DisplayError::TooLarge { bytes: *bytes, max: limit }),
            Err(Failure::Encoder(why)) => Err(DisplayError::Encode(why.clone())),
        }
    }

    fn cell(&self, key: Key) -> Arc<OnceCell<Outcome>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cell)) = recent.iter().find(|(known, _)| *known == key) {
            return cell.clone();
        }
        let kept = |recent: &VecDeque<(Key, Arc<OnceCell<Outcome>>)>| -> usize {
            recent.iter().filter_map(|(_, cell)| cell.get()?.as_ref().ok().map(Bytes::len)).sum()
        };
        while recent.len() >= CACHED || kept(&recent) > CACHED_BYTES {
            recent.pop_front();
        }
        let cell = Arc::new(OnceCell::new());
        recent.push_back((key, cell.clone()));
        cell
    }

    pub(super) fn clear(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn encode(shot: &Shot, geometry: Geometry, format: ImageFormat, limit: usize) -> Outcome {
    let pixels = cut(shot, geometry)?;
    let Size { width, height } = geometry.size;
    let failed = |error: image::ImageError| Failure::Encoder(error.to_string());
    let bytes = match format {
        ImageFormat::RawBgra => {
            let mut pixels = pixels;
            pixels.chunks_exact_mut(4).for_each(|pixel| pixel[3] = 255);
            pixels
        }
        ImageFormat::Png => {
            let rgb = rgb(&pixels);
            let png = |compression| {
                let mut out = Cursor::new(Vec::with_capacity(rgb.len() / 8));
                PngEncoder::new_with_quality(&mut out, compression, PngFilter::Adaptive)
                    .write_image(&rgb, width, height, ExtendedColorType::Rgb8)
                    .map_err(failed)?;
                Ok(out.into_inner())
            };
            let fast = png(CompressionType::Fast)?;
            if fast.len() <= limit { fast } else { png(CompressionType::Best)? }
        }
        ImageFormat::Jpeg(quality) => {
            let mut out = Vec::with_capacity(pixels.len() / 16);
            JpegEncoder::new_with_quality(&mut out, quality)
                .write_image(&rgb(&pixels), width, height, ExtendedColorType::Rgb8)
                .map_err(failed)?;
            out
        }
        ImageFormat::Webp => {
            let mut out = Cursor::new(Vec::with_capacity(pixels.len() / 16));
            WebPEncoder::new_lossless(&mut out)
                .write_image(&rgb(&pixels), width, height, ExtendedColorType::Rgb8)
                .map_err(failed)?;
            out.into_inner()
        }
    };
    if bytes.len() > limit { Err(Failure::TooLarge(bytes.len())) } else { Ok(bytes.into()) }
}

/// The pixels of the picture, 4 bytes each as in the frame.
fn cut(shot: &Shot, geometry: Geometry) -> Result<Vec<u8>, Failure> {
    let Geometry { region, size } = geometry;
    if size.width == region.width && size.height == region.height {
        let stride = shot.size.width as usize * 4;
        let (left, row) = (region.x as usize * 4, region.width as usize * 4);
        let mut out = Vec::with_capacity(size.frame_bytes());
        for line in shot.pixels.chunks_exact(stride).skip(region.y as usize).take(region.height as usize) {
            out.extend_from_slice(&line[left..left + row]);
        }
        return Ok(out);
    }
    let failed = |error: &dyn std::fmt::Display| Failure::Encoder(error.to_string());
    let source = ImageRef::new(shot.size.width, shot.size.height, &shot.pixels, PixelType::U8x4)
        .map_err(|error| failed(&error))?;
    let mut target = Image::new(size.width, size.height, PixelType::U8x4);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        // The fourth byte is no alpha.
        .use_alpha(false)
        .crop(region.x.into(), region.y.into(), region.width.into(), region.height.into());
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| failed(&error))?;
    Ok(target.into_vec())
}

fn rgb(pixels: &[u8]) -> Vec<u8> {
    let mut out = vec![0; pixels.len() / 4 * 3];
    for (to, from) in out.chunks_exact_mut(3).zip(pixels.chunks_exact(4)) {
        to.copy_from_slice(&[from[2], from[1], from[0]]);
    }
    out
}
