//! Pictures: cut out, scaled, encoded. Each picture of a state is made once, whoever asks for it.

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use tokio::sync::{OnceCell, Semaphore};

use super::canvas::{Canvas, seen};
use super::error::DisplayError;
use super::jpeg;
use super::options::{Geometry, ImageFormat, ScreenshotOptions};
use super::plane::Shot;
use crate::model::screen::{Rect, Size};

/// Pictures that a hub keeps: a handful of watchers with different wishes, and the state before.
const CACHED: usize = 8;
/// Encoded bytes that a hub keeps besides the newest picture; raw pictures are large.
const CACHED_BYTES: usize = 16 << 20;
/// More patches than this cost more than a whole picture.
const MAX_PATCHES: usize = 32;

/// The encoders of a daemon: as many at work at a time as it has processors. Clones share them.
#[derive(Debug, Clone)]
pub struct Encoders {
    permits: Arc<Semaphore>,
    parallel: usize,
}

impl Default for Encoders {
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }
}

impl Encoders {
    /// At most this many at work at a time.
    #[must_use]
    pub fn new(parallel: usize) -> Self {
        let parallel = parallel.max(1);
        Self { permits: Arc::new(Semaphore::new(parallel)), parallel }
    }

    /// Does one piece of work on a thread of its own when a processor is free for it.
    async fn run<T, F>(&self, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Failure> + Send + 'static,
    {
        let permit = self
            .permits
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| Failure::Encoder(error.to_string()))?;
        let work = move || {
            // Held until the work is done, also when nobody waits for it any more.
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(Failure::Encoder(error.to_string())))
    }

    async fn picture(&self, shot: Shot, want: Want) -> Outcome {
        let Want { geometry, cursor, format, limit } = want;
        let size = geometry.size;
        let bytes = match format {
            ImageFormat::Jpeg(quality) => {
                let rows = jpeg::band_rows(size, self.parallel);
                let canvas =
                    if size == (Size { width: geometry.region.width, height: geometry.region.height }) {
                        canvas(shot, geometry, cursor)?
                    } else {
                        self.run(move || canvas(shot, geometry, cursor)).await?
                    };
                let bands = (0..size.height).step_by(rows as usize).map(|from| {
                    let (canvas, height) = (canvas.clone(), rows.min(size.height - from));
                    self.run(move || {
                        jpeg::band(&canvas.rows(from, height), size, height, rows, quality)
                            .map_err(Failure::Encoder)
                    })
                });
                jpeg::join(try_join_all(bands).await?, size.height).map_err(Failure::Encoder)?
            }
            _ => self.run(move || encode(&canvas(shot, geometry, cursor)?, format, limit)).await?,
        };
        let limited = bytes.len() <= limit;
        if limited { Ok(Encoding::Whole(bytes.into())) } else { Err(Failure::TooLarge(bytes.len())) }
    }

    /// Only these areas of a picture; together over the limit they are refused, and the whole picture may still fit.
    async fn patches(&self, shot: Shot, want: Want, areas: Vec<Rect>) -> Outcome {
        let Want { geometry, cursor, format, limit } = want;
        let work = move || {
            let canvas = canvas(shot, geometry, cursor)?;
            let mut left = limit;
            let mut patches = Vec::with_capacity(areas.len());
            for area in areas {
                let size = Size { width: area.width, height: area.height };
                let part = Canvas::Scaled { size, pixels: Arc::new(canvas.area(area).into_owned()) };
                let bytes = match format {
                    ImageFormat::Jpeg(quality) => {
                        let rows = area.height.next_multiple_of(16);
                        let band = jpeg::band(&part.rows(0, area.height), size, area.height, rows, quality);
                        band.map_err(Failure::Encoder)?
                    }
                    _ => encode(&part, format, usize::MAX)?,
                };
                left = left.checked_sub(bytes.len()).ok_or(Failure::TooLarge(limit + 1))?;
                patches.push((area, Bytes::from(bytes)));
            }
            Ok(Encoding::Patches(patches.into()))
        };
        self.run(work).await
    }
}

fn canvas(shot: Shot, geometry: Geometry, cursor: bool) -> Result<Canvas, Failure> {
    Canvas::new(shot, geometry, cursor).map_err(Failure::Encoder)
}

/// An encoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// What was encoded.
    pub encoding: Encoding,
    /// How.
    pub format: ImageFormat,
    /// Size of the picture.
    pub size: Size,
    /// The part of the frame it shows.
    pub region: Rect,
}

/// The encoded bytes of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Encoding {
    /// All of it.
    Whole(Bytes),
    /// Parts of it, in the picture's pixels: what differs from an earlier picture.
    Patches(Arc<[(Rect, Bytes)]>),
}

impl Encoding {
    fn len(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Patches(patches) => patches.iter().map(|(_, bytes)| bytes.len()).sum(),
        }
    }
}

/// Why there is no picture; cloned to all who asked for it.
#[derive(Debug, Clone)]
enum Failure {
    TooLarge(usize),
    Encoder(String),
}

type Outcome = Result<Encoding, Failure>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Want {
    geometry: Geometry,
    cursor: bool,
    format: ImageFormat,
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    ordinal: u64,
    /// What was covered.
    covered: u64,
    /// The state that patches are drawn over.
    from: Option<u64>,
    want: Want,
}

impl Key {
    fn of(shot: &Shot, from: Option<u64>, want: Want) -> Self {
        Self { ordinal: shot.ordinal(want.cursor), covered: shot.covered.generation, from, want }
    }
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
        let want = Self::want(&shot, options)?;
        if want.format == ImageFormat::RawBgra && want.geometry.size.frame_bytes() > want.limit {
            return Err(DisplayError::TooLarge { bytes: want.geometry.size.frame_bytes(), max: want.limit });
        }
        let key = Key::of(&shot, None, want);
        let cell = self.cell(key);
        let outcome = cell.get_or_init(|| encoders.picture(shot, want)).await;
        picture(outcome, want)
    }

    /// What differs from the picture of the state `from`, after which these areas of the frame changed. Nothing where a
    /// whole picture is the better answer.
    pub(super) async fn patches(
        &self,
        encoders: &Encoders,
        shot: Shot,
        options: &ScreenshotOptions,
        from: u64,
        changed: &[Rect],
    ) -> Result<Option<Picture>, DisplayError> {
        let want = Self::want(&shot, options)?;
        let grid = if matches!(want.format, ImageFormat::Jpeg(_)) { 16 } else { 1 };
        let areas: Vec<Rect> = changed.iter().filter_map(|area| seen(*area, want.geometry, grid)).collect();
        let pixels = |area: &Rect| u64::from(area.width) * u64::from(area.height);
        let all = u64::from(want.geometry.size.width) * u64::from(want.geometry.size.height);
        if areas.len() > MAX_PATCHES || areas.iter().map(pixels).sum::<u64>() * 2 > all {
            return Ok(None);
        }
        let key = Key::of(&shot, Some(from), want);
        let cell = self.cell(key);
        match cell.get_or_init(|| encoders.patches(shot, want, areas)).await {
            Err(Failure::TooLarge(_)) => Ok(None),
            outcome => picture(outcome, want).map(Some),
        }
    }

    fn want(shot: &Shot, options: &ScreenshotOptions) -> Result<Want, DisplayError> {
        let geometry = options.geometry(shot.size)?;
        Ok(Want { geometry, cursor: options.cursor, format: options.format, limit: options.limit() })
    }

    fn cell(&self, key: Key) -> Arc<OnceCell<Outcome>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cell)) = recent.iter().find(|(known, _)| *known == key) {
            return cell.clone();
        }
        let kept = |recent: &VecDeque<(Key, Arc<OnceCell<Outcome>>)>| -> usize {
            recent.iter().filter_map(|(_, cell)| Some(cell.get()?.as_ref().ok()?.len())).sum()
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

fn picture(outcome: &Outcome, want: Want) -> Result<Picture, DisplayError> {
    match outcome {
        Ok(encoding) => Ok(Picture {
            encoding: encoding.clone(),
            format: want.format,
            size: want.geometry.size,
            region: want.geometry.region,
        }),
        Err(Failure::TooLarge(bytes)) => Err(DisplayError::TooLarge { bytes: *bytes, max: want.limit }),
        Err(Failure::Encoder(why)) => Err(DisplayError::Encode(why.clone())),
    }
}

/// Everything but JPEG; `limit` is what is worth trying harder for.
fn encode(canvas: &Canvas, format: ImageFormat, limit: usize) -> Result<Vec<u8>, Failure> {
    let Size { width, height } = canvas.size();
    let pixels = canvas.rows(0, height);
    let failed = |error: image::ImageError| Failure::Encoder(error.to_string());
    Ok(match format {
        ImageFormat::RawBgra => {
            let mut pixels = pixels.into_owned();
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
        ImageFormat::Webp => {
            let mut out = Cursor::new(Vec::with_capacity(pixels.len() / 16));
            WebPEncoder::new_lossless(&mut out)
                .write_image(&rgb(&pixels), width, height, ExtendedColorType::Rgb8)
                .map_err(failed)?;
            out.into_inner()
        }
        ImageFormat::Jpeg(_) => return Err(Failure::Encoder("jpeg is encoded in bands".to_owned())),
    })
}

fn rgb(pixels: &[u8]) -> Vec<u8> {
    let mut out = vec![0; pixels.len() / 4 * 3];
    for (to, from) in out.chunks_exact_mut(3).zip(pixels.chunks_exact(4)) {
        to.copy_from_slice(&[from[2], from[1], from[0]]);
    }
    out
}
