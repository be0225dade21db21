//! The hub of one VM: who looks at it, through which session, and the picture they get.

use std::sync::{Arc, Mutex as StdMutex, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::encode::{Encoders, Encoding, Picture, Pictures};
use super::error::DisplayError;
use super::fallback::FallbackInput;
use super::options::{ImageFormat, ScreenshotOptions};
use super::plane::{Plane, Shot};
use super::pulse::Pulse;
use super::pump::{Demand, Pump, Watching};
use crate::guest::{Captured, GuestError, Have, Session};
use crate::hypervisor::Hypervisor;
use crate::model::ids::VmId;
use crate::model::mask::Masks;
use crate::model::screen::{CursorShape, Point, Rect, Size};

/// Where a picture came from, or what did the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The agent in the guest.
    Agent,
    /// The hypervisor, because there was no agent.
    Hypervisor,
}

/// A picture of the screen, and what it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The encoded bytes; empty where there are patches.
    pub bytes: Bytes,
    /// What differs from an earlier picture, in the picture's pixels, instead of all of it.
    pub patches: Option<Arc<[(Rect, Bytes)]>>,
    /// Their encoding.
    pub format: ImageFormat,
    /// Size of the picture.
    pub size: Size,
    /// Size of the frame: what coordinates refer to.
    pub frame_size: Size,
    /// The part of the frame it shows.
    pub region: Rect,
    /// Number of this state of the screen; grows within an epoch.
    pub sequence: u64,
    /// When the pixels were read, by the host's clock.
    pub captured_at: SystemTime,
    /// Where it came from.
    pub source: Source,
    /// Session it was taken in; 0 for the hypervisor.
    pub epoch: u64,
    /// Where the pointer was, where that is known.
    pub cursor: Option<Point>,
    /// What the cursor looks like, where that is known.
    pub cursor_shape: Option<Arc<CursorShape>>,
}

impl Encoded {
    pub(super) fn new(shot: &Shot, picture: Picture, cursor: bool) -> Self {
        let (bytes, patches) = match picture.encoding {
            Encoding::Whole(bytes) => (bytes, None),
            Encoding::Patches(patches) => (Bytes::new(), Some(patches)),
        };
        Self {
            bytes,
            patches,
            format: picture.format,
            size: picture.size,
            frame_size: shot.size,
            region: picture.region,
            sequence: shot.sequence(cursor),
            captured_at: shot.captured_at,
            source: shot.source,
            epoch: shot.epoch,
            cursor: shot.pointer,
            cursor_shape: shot.cursor.as_ref().map(|cursor| cursor.shape.clone()),
        }
    }
}

/// What became of a batch of input: all of it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputDone {
    /// Events done.
    pub completed: u32,
    /// Session that did them; 0 for the hypervisor.
    pub epoch: u64,
    /// Notches that scroll events delivered, summed; right and down are positive.
    pub scrolled: Point,
    /// Pixels that scroll events asked for and that were delivered, as such or as notches, summed.
    pub scrolled_pixels: Point,
    /// The outcome is that of an earlier call with this batch id.
    pub replayed: bool,
    /// What did them.
    pub source: Source,
}

/// The screen and the input devices of one VM. Clones are the same hub.
#[derive(Clone)]
pub struct Hub(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) vm: VmId,
    pub(super) hv: Arc<dyn Hypervisor>,
    pub(super) encoders: Encoders,
    pub(super) pictures: Pictures,
    pub(super) link: watch::Sender<Link>,
    pub(super) view: View,
    /// Replaced when the VM is another one.
    pub(super) fallback: StdMutex<Arc<FallbackInput>>,
    /// Whether the agent answers.
    pub(super) pulse: Pulse,
    /// Size of the screen as last probed, with its epoch.
    pub(super) probed: StdMutex<Option<(u64, Size)>>,
}

/// What leads to the VM.
#[derive(Debug, Clone, Default)]
pub(super) enum Link {
    #[default]
    None,
    Agent(Session),
    /// The VM is gone.
    Closed,
}

/// The canonical frame and those who bring it up to date.
#[derive(Default)]
pub(super) struct View {
    pub(super) plane: watch::Sender<Plane>,
    /// Whoever captures at once, and when the last such capture began: everyone who came before that may share it.
    fresh: Mutex<Option<Instant>>,
    /// What subscribers wait for.
    pub(super) demand: watch::Sender<Demand>,
    /// Whether the guest has been asked to tell the next change.
    pub(super) watching: Watching,
    /// Gets what subscribers wait for, while there are any.
    pub(super) pump: StdMutex<Weak<Pump>>,
    /// How often somebody asked for whole pictures.
    pub(super) keyframes: watch::Sender<u64>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hub({})", self.0.vm)
    }
}

impl Hub {
    /// A hub without a session.
    #[must_use]
    pub fn new(vm: VmId, hv: Arc<dyn Hypervisor>, encoders: Encoders) -> Self {
        Self(Arc::new(Inner {
            vm,
            hv,
            encoders,
            pictures: Pictures::default(),
            link: watch::Sender::new(Link::None),
            view: View::default(),
            fallback: StdMutex::default(),
            pulse: Pulse::default(),
            probed: StdMutex::default(),
        }))
    }

    /// Looks and acts through this session from now on. The frame of an older one is forgotten; subscribers go on.
    pub fn attach(&self, session: Session) {
        self.forget();
        self.0.link.send_replace(Link::Agent(session));
    }

    /// Takes the first frame of a session that is being fetched already.
    ///
    /// # Errors
    /// As fetching it; [`GuestError::Lost`] when the session is not the present one any more.
    pub async fn seed(
        &self,
        session: &Session,
        frame: impl Future<Output = Result<Captured, GuestError>>,
    ) -> Result<Size, GuestError> {
        let view = &self.0.view;
        let mut last = view.fresh.lock().await;
        let began = Instant::now();
        let captured = frame.await?;
        if view.plane.borrow().have(session.epoch()) == Have::default() {
            self.apply(session, &captured, Have::default(), began)?;
            *last = Some(began);
        }
        Ok(captured.size)
    }

    /// Lets the session go. Calls under way end with the session; subscribers wait for the next one.
    pub fn detach(&self) {
        self.0.link.send_if_modified(|link| {
            let attached = matches!(link, Link::Agent(_));
            if attached {
                *link = Link::None;
            }
            attached
        });
        self.forget();
    }

    /// The VM is gone: subscribers end.
    pub fn close(&self) {
        self.0.link.send_replace(Link::Closed);
        self.forget();
    }

    /// Frees the frames: a VM that is saved costs no memory here.
    fn forget(&self) {
        self.0.view.plane.send_modify(Plane::clear);
        self.0.pictures.clear();
    }

    /// The present session with the agent, if it lives: for programs and files.
    ///
    /// # Errors
    /// [`DisplayError::Closed`] when the VM is gone.
    pub fn session(&self) -> Result<Option<Session>, DisplayError> {
        match &*self.0.link.borrow() {
            Link::Agent(session) if !session.is_closed() => Ok(Some(session.clone())),
            Link::Agent(_) | Link::None => Ok(None),
            Link::Closed => Err(DisplayError::Closed),
        }
    }

    /// A picture of the screen as it is now.
    ///
    /// # Errors
    /// [`DisplayError::BadOption`], [`DisplayError::RegionOutOfFrame`], [`DisplayError::TooLarge`];
    /// [`DisplayError::NotConnected`] without an agent where the hypervisor has no display either.
    pub async fn screenshot(
        &self,
        options: &ScreenshotOptions,
        deadline: Instant,
    ) -> Result<Encoded, DisplayError> {
        options.check()?;
        let shot = self.look(deadline).await?;
        let picture = tokio::time::timeout_at(deadline, self.picture(shot.clone(), options))
            .await
            .map_err(|_| DisplayError::Timeout("encoding"))??;
        Ok(Encoded::new(&shot, picture, options.cursor))
    }

    /// Captures the screen from the agent, so that the first to look finds it; gives its size.
    ///
    /// # Errors
    /// [`DisplayError::NotConnected`] without an agent: the hypervisor's view proves nothing about it.
    pub async fn refresh(&self, deadline: Instant) -> Result<Size, DisplayError> {
        let session = self.session()?.ok_or(DisplayError::NotConnected)?;
        Ok(self.fresh(&session, deadline).await?.size)
    }

    /// Makes the next picture of every stream a whole one, and sends it now.
    pub fn request_keyframe(&self) {
        self.0.view.keyframes.send_modify(|count| *count += 1);
    }

    /// Covers these parts of the screen in every picture from now on, in place of those before; none: nothing.
    pub fn set_masks(&self, masks: Option<Masks>) {
        self.0.view.plane.send_modify(|plane| plane.cover(masks));
        self.0.pictures.clear();
    }

    /// What is covered.
    #[must_use]
    pub fn masks(&self) -> Option<Masks> {
        self.0.view.plane.borrow().masks().cloned()
    }

    /// The size of the frame as it is now.
    ///
    /// # Errors
    /// As [`Hub::screenshot`].
    pub async fn size(&self, deadline: Instant) -> Result<Size, DisplayError> {
        Ok(self.look(deadline).await?.size)
    }

    pub(super) async fn picture(
        &self,
        mut shot: Shot,
        options: &ScreenshotOptions,
    ) -> Result<Picture, DisplayError> {
        loop {
            let picture = self.0.pictures.get(&self.0.encoders, shot.clone(), options).await?;
            let covered = self.0.view.plane.borrow().covered().clone();
            // What was covered while it was encoded is covered in it too.
            if covered.generation == shot.covered.generation {
                return Ok(picture);
            }
            shot.covered = covered;
        }
    }

    /// The screen as it is now, from the agent or else the hypervisor.
    async fn look(&self, deadline: Instant) -> Result<Shot, DisplayError> {
        let Some(session) = self.session()? else { return self.look_from_outside(deadline).await };
        // A hung agent must leave the hypervisor its time.
        let patience = if self.0.hv.capabilities().display {
            self.0.pulse.patience(&session, deadline)
        } else {
            deadline
        };
        match self.fresh(&session, patience).await {
            Ok(shot) => Ok(shot),
            Err(error @ (GuestError::Lost(_) | GuestError::NotReady(_) | GuestError::Timeout(_))) => {
                match self.look_from_outside(deadline).await {
                    Err(DisplayError::NotConnected) => Err(error.into()),
                    other => other,
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Captures now, or shares a capture that began after this call did. The guest is always asked: it makes one round trip
    /// to its display server and takes in all pending changes before it says that there are none.
    pub(super) async fn fresh(&self, session: &Session, deadline: Instant) -> Result<Shot, GuestError> {
        let asked = Instant::now();
        let view = &self.0.view;
        let mut last = tokio::time::timeout_at(deadline, view.fresh.lock())
            .await
            .map_err(|_| GuestError::Timeout("capture"))?;
        if last.is_some_and(|began| began > asked) {
            let plane = view.plane.borrow();
            if let Some(shot) = plane.shot().filter(|shot| shot.epoch == session.epoch()) {
                return Ok(shot.clone());
            }
        }
        let began = Instant::now();
        self.capture(session, true, Duration::ZERO, deadline).await?;
        *last = Some(began);
        let plane = view.plane.borrow();
        plane.shot().cloned().ok_or(GuestError::NotConnected)
    }

    /// Asks the agent for changes, waiting up to `wait` for one, and applies them. Gives whether there were any. With
    /// `cursor` also for those of the cursor.
    pub(super) async fn capture(
        &self,
        session: &Session,
        cursor: bool,
        wait: Duration,
        deadline: Instant,
    ) -> Result<bool, GuestError> {
        let mut have = self.0.view.plane.borrow().have(session.epoch());
        loop {
            let asked_at = Instant::now();
            let result = session.capture(have, wait, cursor, deadline).await;
            self.0.pulse.judge(session, asked_at + wait, &result);
            let result = result.and_then(|captured| self.apply(session, &captured, have, asked_at));
            match result {
                // Once from scratch: an agent that forgot our sequence is no reason to fail.
                Err(GuestError::Protocol(why)) if have != Have::default() => {
                    tracing::warn!(vm = %self.0.vm, %why, "asking the guest for a whole frame");
                    have = Have::default();
                }
                other => return other,
            }
        }
    }

    /// Brings the canonical frame up to date; gives whether anything changed.
    fn apply(
        &self,
        session: &Session,
        captured: &Captured,
        asked: Have,
        asked_at: Instant,
    ) -> Result<bool, GuestError> {
        let epoch = session.epoch();
        let mut applied = Ok(false);
        // Also told when nothing has changed: who waits may only want to know that the frame is the present one.
        self.0.view.plane.send_modify(|plane| {
            // The frame of a session that was replaced meanwhile must not come back.
            applied = if matches!(&*self.0.link.borrow(), Link::Agent(now) if now.epoch() == epoch) {
                plane.apply(captured, asked, asked_at, epoch)
            } else {
                Err(GuestError::Lost("a newer session took its place".to_owned()))
            };
        });
        applied
    }
}
