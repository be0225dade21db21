//! What a viewer is shown.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::pixels::Format;
use super::{Wish, bad};
use crate::display::DisplayError;
use crate::display::hub::Hub;
use crate::display::options::{ImageFormat, ScreenshotOptions};
use crate::display::plane::around;
use crate::display::stream::{FrameStream, StreamItem, StreamOptions};
use crate::model::screen::{Rect, Size};

/// Pseudo-encoding by which a viewer says that it can be told another size, and is told.
pub(super) const DESKTOP_SIZE: i32 = -223;
/// Pictures a second at most: as many as people can tell apart in a window.
const FPS: f64 = 30.0;
/// Without a screen for so long, the viewer gets an empty one.
const FIRST: Duration = Duration::from_secs(3);
/// Rectangles that are told one by one; more become one around them.
const MAX_RECTS: usize = 32;
const NO_SCREEN: Size = Size { width: 640, height: 400 };

pub(super) struct Screen {
    hub: Hub,
    frames: FrameStream,
    /// When frames are asked for again.
    next_at: Instant,
    /// When the last one came.
    taken_at: Instant,
    size: Size,
    pixels: Bytes,
    /// Changed since the last update.
    changed: Vec<Rect>,
    /// A picture of everything was asked for and is not there yet.
    whole: bool,
    format: Format,
    resizes: bool,
    /// The viewer waits for an update.
    asked: bool,
    /// It believes in another size.
    resized: bool,
    /// The size that it knows of.
    told: watch::Sender<Size>,
}

impl Screen {
    /// Begins to look.
    pub(super) async fn open(hub: &Hub) -> io::Result<Self> {
        let now = Instant::now();
        let mut screen = Self {
            hub: hub.clone(),
            frames: frames(hub)?,
            next_at: now,
            taken_at: now,
            size: NO_SCREEN,
            pixels: vec![0; NO_SCREEN.frame_bytes()].into(),
            changed: Vec::new(),
            whole: false,
            format: Format::NATIVE,
            resizes: false,
            asked: false,
            resized: false,
            told: watch::Sender::new(NO_SCREEN),
        };
        if let Ok(first) = timeout(FIRST, screen.frames.next()).await {
            screen.take(first)?;
        }
        screen.resized = false;
        screen.told.send_replace(screen.size);
        // Only its size was of use: by the time the viewer asks, the picture may be another one.
        screen.look_anew()?;
        Ok(screen)
    }

    /// The size of the screen that the viewer knows of.
    pub(super) fn told(&self) -> watch::Receiver<Size> {
        self.told.subscribe()
    }

    /// Has everything shown as it is from now on, and nothing of what was seen before: a new subscriber begins with a
    /// whole picture. Not sooner than the next one would have come.
    fn look_anew(&mut self) -> io::Result<()> {
        self.frames = frames(&self.hub)?;
        self.next_at = self.taken_at + Duration::from_secs_f64(1.0 / FPS);
        self.changed.clear();
        self.whole = true;
        Ok(())
    }

    /// The server's first message: size, format, name.
    pub(super) fn introduction(&self, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_size(&mut out);
        self.format.write(&mut out);
        out.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        out.extend(name.as_bytes());
        out
    }

    /// Shows what happens, as fast as the viewer asks for it, until the screen is gone for good.
    pub(super) async fn show(
        &mut self,
        mut wished: mpsc::Receiver<Wish>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        loop {
            if self.asked && (self.resized || !self.changed.is_empty()) {
                let update = self.update()?;
                to.write_all(&update).await?;
                to.flush().await?;
            }
            // Nothing is captured for a viewer that waits for nothing.
            tokio::select! {
                item = next(&mut self.frames, self.next_at), if self.asked => self.take(item)?,
                wish = wished.recv() => match wish {
                    None => return Ok(()),
                    Some(Wish::Format(format)) => self.format = format,
                    Some(Wish::Resizes(resizes)) => self.resizes = resizes,
                    Some(Wish::Update { incremental }) => {
                        self.asked = true;
                        if !incremental && !self.whole {
                            self.look_anew()?;
                        }
                    }
                },
            }
        }
    }

    fn take(&mut self, item: Option<Result<StreamItem, DisplayError>>) -> io::Result<()> {
        match item {
            None => Err(io::Error::other("the vm is gone")),
            Some(Err(error)) => Err(io::Error::other(error)),
            // The last picture stays: the next one comes when the vm goes on.
            Some(Ok(StreamItem::Paused)) if !self.whole => Ok(()),
            // It wants to have something, and what there was may be covered now.
            Some(Ok(StreamItem::Paused)) => {
                self.whole = false;
                self.pixels = vec![0; self.size.frame_bytes()].into();
                self.changed = vec![Rect::whole(self.size)];
                Ok(())
            }
            Some(Ok(StreamItem::Frame(frame))) => {
                self.whole = false;
                self.taken_at = Instant::now();
                if frame.picture.size == self.size {
                    self.changed.extend(frame.changed);
                } else {
                    self.size = frame.picture.size;
                    self.resized = true;
                    self.changed = vec![Rect::whole(self.size)];
                }
                self.pixels = frame.picture.bytes;
                if self.changed.len() > MAX_RECTS {
                    self.changed = self.changed.drain(..).reduce(around).into_iter().collect();
                }
                Ok(())
            }
        }
    }

    /// One FramebufferUpdate.
    fn update(&mut self) -> io::Result<Vec<u8>> {
        if self.resized && !self.resizes {
            return Err(bad("the screen has another size now, which the viewer can't be told"));
        }
        self.asked = false;
        let whole = Rect::whole(self.size);
        let mut areas = Vec::new();
        if !std::mem::take(&mut self.resized) {
            // After another size, the viewer asks for everything by itself.
            areas = std::mem::take(&mut self.changed);
            areas.retain_mut(|area| {
                area.intersection(whole).is_some_and(|part| {
                    *area = part;
                    true
                })
            });
        }
        let bytes: usize = areas.iter().map(|area| self.format.length(*area) + 12).sum();
        let mut out = Vec::with_capacity(bytes + 16);
        let count = u16::try_from(areas.len().max(1)).map_err(|_| bad("too many rectangles"))?;
        out.extend([0, 0]);
        out.extend(count.to_be_bytes());
        if areas.is_empty() {
            out.extend([0; 4]);
            self.told.send_replace(self.size);
            self.put_size(&mut out);
            out.extend(DESKTOP_SIZE.to_be_bytes());
        }
        for area in areas {
            for side in [area.x, area.y, area.width, area.height] {
                out.extend(short(side).to_be_bytes());
            }
            out.extend(0_i32.to_be_bytes());
            self.format.cut(&self.pixels, self.size, area, &mut out);
        }
        Ok(out)
    }

    fn put_size(&self, out: &mut Vec<u8>) {
        out.extend(short(self.size.width).to_be_bytes());
        out.extend(short(self.size.height).to_be_bytes());
    }
}

fn frames(hub: &Hub) -> io::Result<FrameStream> {
    let picture = ScreenshotOptions {
        format: ImageFormat::RawBgra,
        max_bytes: Some(usize::MAX),
        ..ScreenshotOptions::default()
    };
    hub.subscribe(StreamOptions::new(picture, FPS)).map_err(io::Error::other)
}

async fn next(frames: &mut FrameStream, at: Instant) -> Option<Result<StreamItem, DisplayError>> {
    sleep_until(at).await;
    frames.next().await
}

/// Sides are at most [`Size::MAX_SIDE`].
fn short(side: u32) -> u16 {
    u16::try_from(side).unwrap_or(u16::MAX)
}
