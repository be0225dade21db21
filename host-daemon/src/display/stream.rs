//! Subscribers: a picture at each change, at the reader's own pace.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::{Instant, sleep, sleep_until};

use super::encode::Picture;
use super::error::DisplayError;
use super::fallback::POLL;
use super::hub::{Encoded, Hub, Source};
use super::options::ScreenshotOptions;
use super::plane::Shot;
use crate::guest::Session;
use crate::model::screen::Rect;

/// Most pictures a second.
pub const MAX_FPS: f64 = 60.0;
/// How long one call waits in the guest for a change.
const LONG_POLL: Duration = Duration::from_secs(20);
/// On top of the wait, for the answer itself.
const ANSWER: Duration = Duration::from_secs(10);
/// Before a session that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

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

/// Pictures as long as the hub lives. An error is an item, and the last one.
pub type FrameStream = BoxStream<'static, Result<StreamFrame, DisplayError>>;

struct Subscriber {
    hub: Hub,
    options: ScreenshotOptions,
    interval: Duration,
    next_at: Instant,
    last: Option<Seen>,
}

/// What a subscriber saw last.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    source: Source,
    epoch: u64,
    sequence: u64,
}

impl Seen {
    fn of(shot: &Shot) -> Self {
        Self { source: shot.source, epoch: shot.epoch, sequence: shot.sequence }
    }
}

impl Hub {
    /// A picture now and then one at each change, at most `max_fps` a second. Goes on over the ends of sessions, and
    /// ends without an error when the VM is gone. Captures happen only while a subscriber is being polled.
    ///
    /// # Errors
    /// [`DisplayError::BadOption`]. An option that turns out wrong later (a region outside the frame, a picture over
    /// `max_bytes`) is the stream's last item.
    pub fn subscribe(&self, options: ScreenshotOptions, max_fps: f64) -> Result<FrameStream, DisplayError> {
        options.check()?;
        // Written so that NaN is refused too.
        if !(max_fps > 0.0 && max_fps <= MAX_FPS) {
            let description = format!("must be more than 0 and at most {MAX_FPS}");
            return Err(DisplayError::BadOption { field: "max_fps", description });
        }
        let interval = Duration::try_from_secs_f64(1.0 / max_fps).unwrap_or(Duration::MAX);
        let first = Subscriber { hub: self.clone(), options, interval, next_at: Instant::now(), last: None };
        Ok(stream::unfold(Some(first), |subscriber| async {
            let mut subscriber = subscriber?;
            match subscriber.next().await {
                Ok(Some(frame)) => Some((Ok(frame), Some(subscriber))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

impl Subscriber {
    async fn next(&mut self) -> Result<Option<StreamFrame>, DisplayError> {
        sleep_until(self.next_at).await;
        let shot = match self.newer().await {
            Ok(shot) => shot,
            Err(DisplayError::Closed) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Far intervals (a frame an hour) must not overflow the clock.
        self.next_at = Instant::now().checked_add(self.interval).unwrap_or_else(far);
        let picture: Picture = self.hub.picture(shot.clone(), &self.options).await?;
        Ok(Some(self.frame(&shot, picture)))
    }

    fn frame(&mut self, shot: &Shot, picture: Picture) -> StreamFrame {
        let before = self.last.filter(|last| last.source == shot.source && last.epoch == shot.epoch);
        let (skipped, changed) = match before {
            Some(last) => {
                let plane = self.hub.view(self.options.cursor).plane.borrow();
                // Changes of a state still newer than the picture may be among them: too much is harmless, too little
                // is not.
                let changed = match plane.shot() {
                    Some(now) if now.epoch == shot.epoch && now.size == shot.size => {
                        plane.changed_since(last.sequence)
                    }
                    _ => vec![Rect::whole(shot.size)],
                };
                (shot.sequence.saturating_sub(last.sequence).saturating_sub(1), changed)
            }
            None => (0, vec![Rect::whole(shot.size)]),
        };
        self.last = Some(Seen::of(shot));
        StreamFrame { picture: Encoded::new(shot, picture), skipped, changed }
    }

    /// Waits for a state that this subscriber has not seen.
    async fn newer(&self) -> Result<Shot, DisplayError> {
        let mut link = self.hub.0.link.subscribe();
        loop {
            // Before the session is read, so that a change after it ends the wait on a session that is gone.
            link.mark_unchanged();
            let session = self.hub.session()?;
            let look = async {
                match session {
                    Some(session) => self.ask_agent(&session).await,
                    None => self.ask_outside().await,
                }
            };
            let result = tokio::select! {
                result = look => result,
                _ = link.changed() => continue,
            };
            match result {
                Ok(Some(shot)) => return Ok(shot),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(vm = %self.hub.0.vm, %error, "no frame for a subscriber");
                    tokio::select! {
                        () = sleep(AFTER_FAILURE) => {}
                        _ = link.changed() => {}
                    }
                }
            }
        }
    }

    async fn ask_agent(&self, session: &Session) -> Result<Option<Shot>, DisplayError> {
        let cursor = self.options.cursor;
        let view = self.hub.view(cursor);
        // Before the look at what is there, so that no change is missed between the two.
        let mut others = view.plane.subscribe();
        let first =
            self.last.is_none_or(|last| last.source != Source::Agent || last.epoch != session.epoch());
        if first || self.unseen(others.borrow_and_update().shot(), session).is_some() {
            // What is there may be old, for nobody captures while nobody waits.
            let shot = self.hub.fresh(session, cursor, Instant::now() + ANSWER).await?;
            return Ok(self.unseen(Some(&shot), session));
        }
        let brought_by_others = async {
            loop {
                if others.changed().await.is_err() {
                    return None;
                }
                if let Some(shot) = self.unseen(others.borrow_and_update().shot(), session) {
                    return Some(shot);
                }
            }
        };
        // One subscriber asks the guest, all others wait for what it brings. When it leaves, another takes over.
        let ask = async {
            let _turn = view.waiter.lock().await;
            if let Some(shot) = self.unseen(view.plane.borrow().shot(), session) {
                return Ok(Some(shot));
            }
            let deadline = Instant::now() + LONG_POLL + ANSWER;
            self.hub.capture(session, cursor, LONG_POLL, deadline).await?;
            Ok(self.unseen(view.plane.borrow().shot(), session))
        };
        tokio::select! {
            biased;
            shot = brought_by_others => Ok(shot),
            result = ask => result,
        }
    }

    /// What of this session the subscriber has not seen.
    fn unseen(&self, shot: Option<&Shot>, session: &Session) -> Option<Shot> {
        shot.filter(|shot| {
            shot.source == Source::Agent && shot.epoch == session.epoch() && self.last != Some(Seen::of(shot))
        })
        .cloned()
    }

    async fn ask_outside(&self) -> Result<Option<Shot>, DisplayError> {
        if self.hub.0.hv.capabilities().display
            && let Ok(shot) = self.hub.look_from_outside(self.options.cursor, Instant::now() + ANSWER).await
            && self.last != Some(Seen::of(&shot))
        {
            return Ok(Some(shot));
        }
        sleep(POLL).await;
        Ok(None)
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}
