//! Subscribers: a picture at each change, at the reader's own pace.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::encode::Picture;
use super::error::DisplayError;
use super::hub::{Encoded, Hub, Source};
use super::options::ScreenshotOptions;
use super::plane::Shot;
use super::pump::{Demand, Pump};
use crate::model::screen::{Rect, Size};

/// Most pictures a second.
pub const MAX_FPS: f64 = 60.0;
/// Without a session for so long a stream says that it is paused.
const PAUSED_AFTER: Duration = Duration::from_millis(500);

/// What a stream shall be like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamOptions {
    /// Its pictures.
    pub picture: ScreenshotOptions,
    /// Pictures a second at most.
    pub max_fps: f64,
    /// Only what changed, with whole pictures where they are needed.
    pub delta: bool,
    /// With `delta`, a whole picture at least this often, where there is anything to send.
    pub keyframe_interval: Option<Duration>,
}

impl StreamOptions {
    /// Whole pictures, at this rate at most.
    #[must_use]
    pub fn new(picture: ScreenshotOptions, max_fps: f64) -> Self {
        Self { picture, max_fps, delta: false, keyframe_interval: None }
    }
}

/// One picture of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFrame {
    /// The picture.
    pub picture: Encoded,
    /// States of the screen that were passed over since the picture before.
    pub skipped: u64,
    /// What changed since the picture before, in the frame's pixels; the whole frame in the first one and the first of
    /// an epoch.
    pub changed: Vec<Rect>,
}

/// What a stream gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamItem {
    /// A picture.
    Frame(Box<StreamFrame>),
    /// There is no screen at present, the VM being saved or without an agent; pictures go on when there is one.
    Paused,
}

/// Pictures as long as the hub lives. An error is an item, and the last one.
pub type FrameStream = BoxStream<'static, Result<StreamItem, DisplayError>>;

struct Subscriber {
    hub: Hub,
    options: StreamOptions,
    interval: Duration,
    next_at: Instant,
    last: Option<Seen>,
    /// Told since the last picture.
    paused: bool,
    keyframes: watch::Receiver<u64>,
    last_keyframe: Instant,
    /// Frames are got as long as somebody holds it.
    _pump: Arc<Pump>,
}

/// What a subscriber saw last.
#[derive(Clone, Copy)]
struct Seen {
    source: Source,
    epoch: u64,
    size: Size,
    sequence: u64,
    ordinal: u64,
}

/// What comes next.
enum Next {
    Shot(Shot),
    Paused,
}

impl Hub {
    /// A picture now and then one at each change, at the reader's pace. Goes on over the ends of sessions, and ends
    /// without an error when the VM is gone. Captures happen only for subscribers that are being polled.
    ///
    /// # Errors
    /// [`DisplayError::BadOption`]. An option that turns out wrong later (a region outside the frame, a picture over
    /// `max_bytes`) is the stream's last item.
    pub fn subscribe(&self, options: StreamOptions) -> Result<FrameStream, DisplayError> {
        options.picture.check()?;
        // Written so that NaN is refused too.
        if !(options.max_fps > 0.0 && options.max_fps <= MAX_FPS) {
            let description = format!("must be more than 0 and at most {MAX_FPS}");
            return Err(DisplayError::BadOption { field: "max_fps", description });
        }
        let now = Instant::now();
        let first = Subscriber {
            hub: self.clone(),
            options,
            interval: Duration::try_from_secs_f64(1.0 / options.max_fps).unwrap_or(Duration::MAX),
            next_at: now,
            last: None,
            paused: false,
            keyframes: self.0.view.keyframes.subscribe(),
            last_keyframe: now,
            _pump: self.pump(),
        };
        Ok(stream::unfold(Some(first), |subscriber| async {
            let mut subscriber = subscriber?;
            match subscriber.next().await {
                Ok(Some(item)) => Some((Ok(item), Some(subscriber))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

impl Subscriber {
    async fn next(&mut self) -> Result<Option<StreamItem>, DisplayError> {
        sleep_until(self.next_at).await;
        let shot = match self.newer().await {
            Ok(Next::Shot(shot)) => shot,
            Ok(Next::Paused) => {
                self.paused = true;
                return Ok(Some(StreamItem::Paused));
            }
            Err(DisplayError::Closed) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.paused = false;
        // A picture that came late does not push back all that follow, or a screen that changes at the subscriber's own
        // rate would be seen at less. Far intervals (a frame an hour) must not overflow the clock.
        let now = Instant::now();
        let on_time = self.next_at.checked_add(self.interval).unwrap_or_else(far);
        self.next_at = on_time.max(now.checked_add(self.interval / 2).unwrap_or_else(far));

        let before = self
            .last
            .filter(|last| (last.source, last.epoch, last.size) == (shot.source, shot.epoch, shot.size));
        let (cursor, epoch, size) = (self.options.picture.cursor, shot.epoch, shot.size);
        let changed = before.map_or_else(
            || vec![Rect::whole(size)],
            |last| {
                let plane = self.hub.0.view.plane.borrow();
                // Changes of a state still newer than the picture may be among them: too much is harmless, too little
                // is not.
                match plane.shot() {
                    Some(now) if now.epoch == epoch && now.size == size => {
                        plane.changed_since(last.ordinal, cursor)
                    }
                    _ => vec![Rect::whole(size)],
                }
            },
        );
        let picture = self.picture(&shot, before, &changed).await?;
        let sequence = shot.sequence(cursor);
        let skipped = before.map_or(0, |last| sequence.saturating_sub(last.sequence).saturating_sub(1));
        self.last = Some(Seen { source: shot.source, epoch, size, sequence, ordinal: shot.ordinal(cursor) });
        let picture = Encoded::new(&shot, picture, cursor);
        Ok(Some(StreamItem::Frame(Box::new(StreamFrame { picture, skipped, changed }))))
    }

    /// Only what changed, where that was asked for and is enough.
    async fn picture(
        &mut self,
        shot: &Shot,
        before: Option<Seen>,
        changed: &[Rect],
    ) -> Result<Picture, DisplayError> {
        let forced = self.keyframes.has_changed().unwrap_or(false);
        self.keyframes.mark_unchanged();
        let due = self.options.keyframe_interval.is_some_and(|every| self.last_keyframe.elapsed() >= every);
        let Hub(inner) = &self.hub;
        let options = &self.options.picture;
        if let Some(last) = before.filter(|_| self.options.delta && !forced && !due)
            && let Some(patches) =
                inner.pictures.patches(&inner.encoders, shot.clone(), options, last.ordinal, changed).await?
            && inner.view.plane.borrow().covered().generation == shot.covered.generation
        {
            return Ok(patches);
        }
        self.last_keyframe = Instant::now();
        self.hub.picture(shot.clone(), options).await
    }

    /// Waits for a state that this subscriber has not seen, or for somebody to ask for a whole picture.
    async fn newer(&mut self) -> Result<Next, DisplayError> {
        let cursor = self.options.picture.cursor;
        let hub = self.hub.clone();
        let view = &hub.0.view;
        let (mut planes, mut link) = (view.plane.subscribe(), hub.0.link.subscribe());
        let seen = self.last.map_or(0, |last| last.ordinal);
        let began = Instant::now();
        // What is there may be old, for nobody captures while nobody waits. But one that was looked at in this interval will
        // do, so that readers at different moments share their pictures.
        let tolerance = (self.interval / 2).min(Duration::from_secs(1));
        let fresh_since = began.checked_sub(tolerance).unwrap_or(began);
        let paused = sleep_until(began + PAUSED_AFTER);
        tokio::pin!(paused);
        loop {
            let attached = hub.session()?.is_some();
            let missing = {
                let plane = planes.borrow_and_update();
                let forced = self.keyframes.has_changed().unwrap_or(false);
                match plane.shot().filter(|shot| shot.ordinal(cursor) != seen || forced) {
                    Some(shot)
                        if view.watching.covers(cursor)
                            || plane.confirmed().is_some_and(|at| at >= fresh_since) =>
                    {
                        return Ok(Next::Shot(shot.clone()));
                    }
                    Some(_) => Demand::fresh(began),
                    None => Demand::newer(seen, cursor),
                }
            };
            let none = !attached && planes.borrow().shot().is_none();
            hub.demand(missing);
            tokio::select! {
                _ = planes.changed() => {}
                _ = link.changed() => {}
                _ = self.keyframes.changed() => self.keyframes.mark_changed(),
                () = &mut paused, if none && !self.paused => return Ok(Next::Paused),
            }
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}
