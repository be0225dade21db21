//! Pictures, places on the screen, and waiting for it to settle.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hvkube_proto::v1;
use jiff::Timestamp;

use super::{duration, timestamp};
use crate::api::fields;
use crate::display::{
    Encoded, ImageFormat, InputDone, Scaling, ScreenshotOptions, Source, StreamItem, StreamOptions,
};
use crate::model::error::{Error, Result};
use crate::model::input::{Met, PixelCondition, SettleOptions, Settled};
use crate::model::screen::{CursorShape, Point, Rect, Size};

const DEFAULT_QUALITY: u8 = 80;
const DEFAULT_FPS: f64 = 10.0;

pub(crate) fn options(options: Option<&v1::ScreenshotOptions>) -> Result<ScreenshotOptions> {
    let default = v1::ScreenshotOptions::default();
    let options = options.unwrap_or(&default);
    let quality = match fields::range("options.quality", options.quality, 0..=100)? {
        0 => DEFAULT_QUALITY,
        quality => u8::try_from(quality).unwrap_or(DEFAULT_QUALITY),
    };
    let format = match fields::one_of("options.format", options.format, v1::ImageFormat::as_str_name)? {
        v1::ImageFormat::Unspecified | v1::ImageFormat::Png => ImageFormat::Png,
        v1::ImageFormat::Jpeg => ImageFormat::Jpeg(quality),
        v1::ImageFormat::Webp => ImageFormat::Webp,
        v1::ImageFormat::RawBgra => ImageFormat::RawBgra,
    };
    let max_bytes = usize::try_from(options.max_bytes).ok().filter(|max| *max > 0);
    if format == ImageFormat::RawBgra && max_bytes.is_none() {
        return Err(Error::field("options.max_bytes", "is required for IMAGE_FORMAT_RAW_BGRA"));
    }
    Ok(ScreenshotOptions {
        format,
        scaling: scaling(options)?,
        region: options.region.as_ref().map(|r| rect("options.region", r)).transpose()?,
        cursor: !options.hide_cursor,
        max_bytes,
    })
}

fn scaling(options: &v1::ScreenshotOptions) -> Result<Scaling> {
    let fit = options.max_size.filter(|size| size.width > 0 || size.height > 0);
    // Written so that NaN is refused too.
    if options.scale != 0.0 && !(options.scale > 0.0 && options.scale <= 1.0) {
        let what = format!("{} is out of range; legal is more than 0 and at most 1", options.scale);
        return Err(Error::field("options.scale", what));
    }
    let side = |side: u32| if side == 0 { Size::MAX_SIDE } else { side };
    match (options.scale, fit) {
        (0.0, None) => Ok(Scaling::None),
        (0.0, Some(size)) => Ok(Scaling::Fit(Size { width: side(size.width), height: side(size.height) })),
        (factor, None) => Ok(Scaling::Factor(factor)),
        (_, Some(_)) => Err(Error::field("options.max_size", "can't be given together with scale")),
    }
}

/// What a stream shall be like.
pub(crate) fn stream(wanted: &v1::StreamScreenshotsRequest) -> Result<StreamOptions> {
    let picture = options(wanted.options.as_ref())?;
    let legal = Duration::from_millis(100)..=Duration::from_secs(3600);
    let keyframe_interval = fields::duration("keyframe_interval", wanted.keyframe_interval, legal)?;
    if keyframe_interval.is_some() && !wanted.delta {
        return Err(Error::field("keyframe_interval", "is legal with delta only"));
    }
    let max_fps = max_fps(wanted.max_fps)?;
    Ok(StreamOptions { picture, max_fps, delta: wanted.delta, keyframe_interval })
}

fn max_fps(value: f64) -> Result<f64> {
    let legal = crate::display::MAX_FPS;
    match value {
        0.0 => Ok(DEFAULT_FPS),
        fps if fps > 0.0 && fps <= legal => Ok(fps),
        other => Err(Error::field(
            "max_fps",
            format!("{other} is out of range; legal is more than 0 and at most {legal}"),
        )),
    }
}

pub(super) fn point(point: &v1::Point) -> Point {
    Point { x: point.x, y: point.y }
}

pub(super) fn rect(field: &str, rect: &v1::Rect) -> Result<Rect> {
    let at = |name: &str, value: i32| {
        u32::try_from(value)
            .map_err(|_| Error::field(format!("{field}.{name}"), format!("{value} is negative")))
    };
    let side = |name: &str, value: u32| fields::range(&format!("{field}.{name}"), value, 1..=Size::MAX_SIDE);
    Ok(Rect {
        x: at("x", rect.x)?,
        y: at("y", rect.y)?,
        width: side("width", rect.width)?,
        height: side("height", rect.height)?,
    })
}

/// The frame that coordinates were computed on.
pub(crate) fn frame_size(size: Option<v1::Size>) -> Result<Option<Size>> {
    let Some(size) = size else { return Ok(None) };
    Ok(Some(Size {
        width: fields::range("frame_size.width", size.width, 1..=Size::MAX_SIDE)?,
        height: fields::range("frame_size.height", size.height, 1..=Size::MAX_SIDE)?,
    }))
}

pub(crate) fn settle(settle: Option<&v1::SettleOptions>) -> Result<SettleOptions> {
    let mut options = SettleOptions::default();
    let Some(settle) = settle else { return Ok(options) };
    let zero = Duration::ZERO;
    options.quiet = match fields::duration("settle.quiet", settle.quiet, zero..=SettleOptions::MAX_QUIET)? {
        Some(quiet) => quiet,
        // Who waits for a condition need not wait for more.
        None if settle.regions.is_empty() && settle.pixels.is_empty() => options.quiet,
        None => zero,
    };
    if let Some(timeout) =
        fields::duration("settle.timeout", settle.timeout, zero..=SettleOptions::MAX_TIMEOUT)?
    {
        options.timeout = timeout;
    }
    let (count, max) = (settle.ignore.len(), SettleOptions::MAX_IGNORE);
    if count > max {
        return Err(Error::field("settle.ignore", format!("has {count} entries, at most {max} are allowed")));
    }
    for (i, ignored) in settle.ignore.iter().enumerate() {
        options.ignore.push(rect(&format!("settle.ignore[{i}]"), ignored)?);
    }
    for (field, count) in [("regions", settle.regions.len()), ("pixels", settle.pixels.len())] {
        let max = SettleOptions::MAX_CONDITIONS;
        if count > max {
            let what = format!("has {count} entries, at most {max} are allowed");
            return Err(Error::field(format!("settle.{field}"), what));
        }
    }
    for (i, region) in settle.regions.iter().enumerate() {
        options.regions.push(rect(&format!("settle.regions[{i}]"), region)?);
    }
    for (i, wanted) in settle.pixels.iter().enumerate() {
        options.pixels.push(pixel(&format!("settle.pixels[{i}]"), wanted)?);
    }
    Ok(options)
}

fn pixel(field: &str, wanted: &v1::PixelCondition) -> Result<PixelCondition> {
    let at = fields::required(&format!("{field}.at"), wanted.at)?;
    let [0, red, green, blue] = wanted.rgb.to_be_bytes() else {
        let what = format!("{:#x} is out of range; legal is 0x000000 to 0xffffff", wanted.rgb);
        return Err(Error::field(format!("{field}.rgb"), what));
    };
    let tolerance = fields::range(&format!("{field}.tolerance"), wanted.tolerance, 0..=255)?;
    let tolerance = u8::try_from(tolerance).unwrap_or(u8::MAX);
    Ok(PixelCondition { at: point(&at), rgb: [red, green, blue], tolerance })
}

/// `shape`: tell what the cursor looks like.
pub(crate) fn screenshot(picture: Encoded, shape: bool) -> v1::Screenshot {
    let format = match picture.format {
        ImageFormat::Png => v1::ImageFormat::Png,
        ImageFormat::Jpeg(_) => v1::ImageFormat::Jpeg,
        ImageFormat::Webp => v1::ImageFormat::Webp,
        ImageFormat::RawBgra => v1::ImageFormat::RawBgra,
    };
    let patch = |(area, image): &(Rect, bytes::Bytes)| v1::Patch {
        area: Some(from_rect(*area)),
        image: image.clone(),
    };
    v1::Screenshot {
        image: picture.bytes,
        format: format.into(),
        size: Some(size(picture.size)),
        frame_size: Some(size(picture.frame_size)),
        region: Some(from_rect(picture.region)),
        sequence: picture.sequence,
        captured_at: system_time(picture.captured_at),
        skipped: 0,
        changed: Vec::new(),
        source: source(picture.source).into(),
        epoch: picture.epoch,
        cursor: picture.cursor.map(|at| v1::Point { x: at.x, y: at.y }),
        status: v1::StreamStatus::Live.into(),
        keyframe: picture.patches.is_none(),
        patches: picture.patches.iter().flat_map(|patches| patches.iter().map(patch)).collect(),
        cursor_shape: picture.cursor_shape.as_deref().filter(|_| shape).map(cursor_shape),
    }
}

fn cursor_shape(shape: &CursorShape) -> v1::CursorShape {
    v1::CursorShape {
        id: shape.id,
        size: Some(size(shape.size)),
        hot_spot: Some(v1::Point { x: shape.hot.x, y: shape.hot.y }),
        bgra: shape.pixels.clone(),
    }
}

/// The messages of one stream; those with the cursor's shape have it only when it is another one than before.
pub(crate) struct Messages {
    shape: bool,
    told: Option<Arc<CursorShape>>,
    epoch: u64,
}

impl Messages {
    pub(crate) fn new(shape: bool) -> Self {
        Self { shape, told: None, epoch: 0 }
    }

    pub(crate) fn of(&mut self, item: StreamItem) -> v1::Screenshot {
        let frame = match item {
            StreamItem::Frame(frame) => *frame,
            StreamItem::Paused => {
                let status = v1::StreamStatus::Paused.into();
                return v1::Screenshot { status, epoch: self.epoch, ..Default::default() };
            }
        };
        self.epoch = frame.picture.epoch;
        let news = self.shape && self.told != frame.picture.cursor_shape;
        if news {
            self.told = frame.picture.cursor_shape.clone();
        }
        v1::Screenshot {
            skipped: frame.skipped,
            changed: frame.changed.into_iter().map(from_rect).collect(),
            ..screenshot(frame.picture, news)
        }
    }
}

pub(crate) fn input_done(done: &InputDone) -> v1::SendInputResponse {
    v1::SendInputResponse {
        completed: done.completed,
        epoch: done.epoch,
        scrolled: Some(from_point(done.scrolled)),
        replayed: done.replayed,
        source: source(done.source).into(),
        scrolled_pixels: Some(from_point(done.scrolled_pixels)),
    }
}

pub(crate) fn settled(settled: &Settled) -> v1::SettleResult {
    let (met, index) = match settled.met {
        None => (v1::SettleCondition::Unspecified, 0),
        Some(Met::Quiet) => (v1::SettleCondition::Quiet, 0),
        Some(Met::Region(index)) => (v1::SettleCondition::Region, index),
        Some(Met::Pixel(index)) => (v1::SettleCondition::Pixel, index),
    };
    v1::SettleResult {
        timed_out: settled.timed_out,
        settled_after: Some(duration(settled.settled_after)),
        changed: settled.changed.iter().copied().map(from_rect).collect(),
        met: met.into(),
        met_index: u32::try_from(index).unwrap_or(u32::MAX),
        met_after: matches!(settled.met, Some(Met::Region(_) | Met::Pixel(_)))
            .then(|| duration(settled.met_after)),
    }
}

pub(super) fn system_time(time: SystemTime) -> Option<prost_types::Timestamp> {
    Timestamp::try_from(time).ok().map(timestamp)
}

pub(crate) fn from_point(point: Point) -> v1::Point {
    v1::Point { x: point.x, y: point.y }
}

pub(crate) fn source(source: Source) -> v1::FrameSource {
    match source {
        Source::Agent => v1::FrameSource::Agent,
        Source::Hypervisor => v1::FrameSource::Hypervisor,
    }
}

fn size(size: Size) -> v1::Size {
    v1::Size { width: size.width, height: size.height }
}

pub(crate) fn from_rect(rect: Rect) -> v1::Rect {
    // A frame's sides are 16384 at most.
    let at = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    v1::Rect { x: at(rect.x), y: at(rect.y), width: rect.width, height: rect.height }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").violations.remove(0).field
    }

    #[test]
    fn refusals_of_options_name_their_field() {
        let raw: i32 = v1::ImageFormat::RawBgra.into();
        let fit = Some(v1::Size { width: 10, height: 10 });
        let region = |x, width| Some(v1::Rect { x, y: 0, width, height: 1 });
        let with = |change: fn(&mut v1::ScreenshotOptions)| {
            let mut wanted = v1::ScreenshotOptions::default();
            change(&mut wanted);
            wanted
        };
        for (expected, wanted) in [
            ("options.format", with(|o| o.format = 5)),
            ("options.quality", with(|o| o.quality = 101)),
            ("options.scale", with(|o| o.scale = 1.5)),
            ("options.scale", with(|o| o.scale = -0.5)),
            ("options.scale", with(|o| o.scale = f64::NAN)),
            ("options.max_bytes", v1::ScreenshotOptions { format: raw, ..Default::default() }),
            ("options.max_size", v1::ScreenshotOptions { scale: 0.5, max_size: fit, ..Default::default() }),
            ("options.region.x", v1::ScreenshotOptions { region: region(-1, 1), ..Default::default() }),
            ("options.region.width", v1::ScreenshotOptions { region: region(0, 0), ..Default::default() }),
        ] {
            assert_eq!(field(options(Some(&wanted))), expected);
        }
        assert_eq!(options(None).expect("legal"), ScreenshotOptions::default());
        for bad in [-1.0, 61.0, f64::NAN, f64::INFINITY] {
            assert_eq!(field(max_fps(bad)), "max_fps");
        }
        assert!((max_fps(0.0).expect("legal") - DEFAULT_FPS).abs() < f64::EPSILON);
        assert_eq!(field(frame_size(Some(v1::Size { width: 1, height: 0 }))), "frame_size.height");
        let interval = |delta, seconds| {
            let keyframe_interval = Some(prost_types::Duration { seconds, nanos: 0 });
            stream(&v1::StreamScreenshotsRequest { delta, keyframe_interval, ..Default::default() })
        };
        assert_eq!(field(interval(true, 3601)), "keyframe_interval");
        assert_eq!(field(interval(false, 1)), "keyframe_interval");
        assert!(interval(true, 1).is_ok());
    }

    #[test]
    fn one_side_may_be_left_open() {
        let wanted = v1::ScreenshotOptions {
            max_size: Some(v1::Size { width: 100, height: 0 }),
            ..Default::default()
        };
        let fit = Scaling::Fit(Size { width: 100, height: Size::MAX_SIDE });
        assert_eq!(options(Some(&wanted)).expect("legal").scaling, fit);
    }

    #[test]
    fn refusals_of_a_wait_name_their_field() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let many = vec![v1::Rect { x: 0, y: 0, width: 1, height: 1 }; 65];
        let at = Some(v1::Point { x: 1, y: 1 });
        let pixels = |pixel| v1::SettleOptions { pixels: vec![pixel], ..Default::default() };
        let negative = vec![v1::Rect { x: 0, y: -1, width: 1, height: 1 }];
        for (expected, wanted) in [
            ("settle.quiet", v1::SettleOptions { quiet: seconds(11), ..Default::default() }),
            ("settle.timeout", v1::SettleOptions { timeout: seconds(121), ..Default::default() }),
            ("settle.ignore", v1::SettleOptions { ignore: many, ..Default::default() }),
            ("settle.ignore[0].y", v1::SettleOptions { ignore: negative.clone(), ..Default::default() }),
            (
                "settle.regions",
                v1::SettleOptions { regions: vec![v1::Rect::default(); 17], ..Default::default() },
            ),
            ("settle.regions[0].y", v1::SettleOptions { regions: negative, ..Default::default() }),
            ("settle.pixels[0].at", pixels(v1::PixelCondition::default())),
            ("settle.pixels[0].rgb", pixels(v1::PixelCondition { at, rgb: 0x0100_0000, tolerance: 0 })),
            ("settle.pixels[0].tolerance", pixels(v1::PixelCondition { at, rgb: 0, tolerance: 256 })),
        ] {
            assert_eq!(field(settle(Some(&wanted))), expected);
        }
        let quiet = |wanted: &v1::SettleOptions| settle(Some(wanted)).expect("legal").quiet;
        assert_eq!(quiet(&v1::SettleOptions::default()), SettleOptions::DEFAULT_QUIET);
        let wanted = pixels(v1::PixelCondition { at, rgb: 0xff_80_00, tolerance: 3 });
        assert_eq!(quiet(&wanted), Duration::ZERO, "a condition is enough");
        assert_eq!(quiet(&v1::SettleOptions { quiet: seconds(1), ..wanted.clone() }), Duration::from_secs(1));
        assert_eq!(settle(Some(&wanted)).expect("legal").pixels[0].rgb, [0xff, 0x80, 0]);
    }
}
