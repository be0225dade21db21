//! The screen, the keyboard and the mouse, the clipboard and the windows, whatever the operating system: what a platform
//! must bring ([`Screen`], [`Input`], [`Desk`]), and everything that does not depend on it.
//!
//! A [`Screen`] is asked from async code and answers from a thread of its own, and so is a [`Desk`]; an [`Input`] is driven
//! by one thread, batch after batch, so that two batches never mix.

mod batch;
#[cfg(feature = "sim")]
mod borrowed;
mod desk;
mod input;
mod pack;
mod rect;
mod service;
mod settle;
mod tiles;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hvkube_proto::guest::v1 as pb;
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use desk::{Content, Desk, DeskSession, Held, Kind, MAX_CONTENT, MAX_WINDOWS, Selection, Wanted};
pub use input::{Cancel, InputThread};
pub use pack::Packer;
pub use rect::{Rect, simplify};
pub use service::DisplaySession;
pub use settle::{Interest, PixelColour, Wait, Watch};
pub use tiles::Tiles;

/// Why the display could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DisplayError {
    /// There is no display, or it has just gone.
    #[error("the display is gone: {0}")]
    Gone(String),
    /// The display can't do that at all.
    #[error("the display is not usable: {0}")]
    Unsupported(String),
    /// More calls at once than make sense.
    #[error("too many display calls at once")]
    Busy,
    /// No window of that id.
    #[error("there is no window {0}")]
    NoWindow(u64),
    /// Something on the desktop did not do it in time.
    #[error("{0} in time")]
    Late(&'static str),
    /// A value that the platform can't use.
    #[error("{0}")]
    Invalid(String),
}

impl From<DisplayError> for Status {
    fn from(error: DisplayError) -> Self {
        match error {
            DisplayError::Gone(_) => Self::unavailable(error.to_string()),
            DisplayError::Unsupported(_) => Self::failed_precondition(error.to_string()),
            DisplayError::Busy => Self::resource_exhausted(error.to_string()),
            DisplayError::NoWindow(_) => Self::not_found(error.to_string()),
            DisplayError::Late(_) => Self::deadline_exceeded(error.to_string()),
            DisplayError::Invalid(_) => Self::invalid_argument(error.to_string()),
        }
    }
}

/// What to capture; see `CaptureRequest`.
#[derive(Clone, Copy, Debug)]
pub struct CaptureSpec {
    /// Sequence the host has; 0: all.
    pub since: u64,
    /// How long to wait for a change.
    pub wait: Duration,
    /// Tell the cursor, and take its changes for changes of the screen.
    pub cursor: bool,
    /// Shape of the cursor that the host has; 0: none.
    pub shape: u32,
    /// Number of the answer that the host's frame is of; 0: none.
    pub base: u64,
}

/// A frame, or the difference to an earlier one.
#[derive(Debug)]
pub struct Frame {
    /// Describes it.
    pub header: pb::FrameHeader,
    /// Its parts.
    pub rects: Vec<pb::FrameRect>,
}

/// A platform's screen.
#[async_trait]
pub trait Screen: Send + Sync + 'static {
    /// Reads pixels; asks the display server for pending changes first, so that the answer is never stale.
    async fn capture(&self, spec: CaptureSpec) -> Result<Frame, DisplayError>;

    /// Starts watching for changes. Whatever changed before this returned is not reported.
    async fn watch(&self, interest: Interest) -> Result<Arc<Watch>, DisplayError>;

    /// Hands every change that has happened so far to the watches; gives the screen's sequence.
    async fn flush(&self) -> Result<u64, DisplayError>;

    /// The pixels of some areas as they are now: rows top to bottom, 4 bytes each (blue, green, red, unused). Of an area that
    /// is not wholly on the screen those that are.
    async fn read(&self, areas: Vec<Rect>) -> Result<Vec<Vec<u8>>, DisplayError>;
}

/// What pressing means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Press {
    /// Down, and stay down.
    Down,
    /// Up.
    Up,
}

/// Why an input event can't be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// No key of that name.
    #[error("no key named {0:?}")]
    UnknownKey(String),
    /// Outside the screen.
    #[error("{0}")]
    OutOfBounds(String),
    /// Makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The display server refused or is gone.
    #[error("{0}")]
    Platform(String),
    /// Nobody waits for the batch any more.
    #[error("the call was cancelled")]
    Cancelled,
}

/// What a notch is in pixels where there are only notches: what Chromium scrolls by for one on X11.
pub const NOTCH_PIXELS: i32 = 53;

/// Whole notches for so many pixels (50000 at most), half a notch or more counting as one.
fn notches_for(pixels: i32) -> i32 {
    (pixels.abs() + NOTCH_PIXELS / 2) / NOTCH_PIXELS * pixels.signum()
}

/// What came of scrolling by pixels, right and down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrolled {
    /// Notches that the wheel was turned by.
    pub notches: (i32, i32),
    /// Pixels, those of notches included.
    pub pixels: (i32, i32),
}

/// What [`Input::probe`] found.
#[derive(Clone, Copy, Debug)]
pub struct Probed {
    /// Screen size in pixels.
    pub size: (u32, u32),
    /// Pointer position.
    pub pointer: (i32, i32),
    /// From the injection to the sight of it.
    pub round_trip: Duration,
}

/// A platform's keyboard and mouse. Calls block until the display server has taken the input, so that the order of calls is
/// the order of events. One thread drives it.
pub trait Input: Send + 'static {
    /// Size of the screen in pixels.
    fn size(&mut self) -> Result<(u32, u32), InputError>;
    /// Pointer position.
    fn pointer(&mut self) -> Result<(i32, i32), InputError>;
    /// Whether a key of this name exists.
    fn check_key(&mut self, name: &str) -> Result<(), InputError>;
    /// Whether every character can be typed; names the first that can't.
    fn check_text(&mut self, text: &str) -> Result<(), InputError>;
    /// Moves the pointer.
    fn move_to(&mut self, x: i32, y: i32) -> Result<(), InputError>;
    /// Presses or releases a mouse button.
    fn button(&mut self, button: pb::MouseButton, press: Press) -> Result<(), InputError>;
    /// Turns the wheel by notches, right and down.
    fn scroll(&mut self, right: i32, down: i32) -> Result<(), InputError>;
    /// Scrolls by pixels, right and down; says what was delivered. A platform that has only notches gives whole ones.
    fn scroll_pixels(&mut self, right: i32, down: i32) -> Result<Scrolled, InputError> {
        let notches = (notches_for(right), notches_for(down));
        self.scroll(notches.0, notches.1)?;
        Ok(Scrolled { notches, pixels: (notches.0 * NOTCH_PIXELS, notches.1 * NOTCH_PIXELS) })
    }
    /// Presses or releases a key. In a chord a letter means its key, whatever its case.
    fn key(&mut self, name: &str, press: Press, in_chord: bool) -> Result<(), InputError>;
    /// Types text, so that the focused program receives exactly it.
    fn text(&mut self, text: &str, interval: Duration, cancel: &Cancel) -> Result<(), InputError>;
    /// Releases everything that is held down.
    fn release_all(&mut self) -> Result<(), InputError>;
    /// Proves the input path by a motion to where the pointer already is.
    fn probe(&mut self) -> Result<Probed, InputError>;
    /// Work for when nothing has been asked for a while; says when to be called next, or never.
    fn idle(&mut self) -> Option<Duration>;
}

/// A desktop that works: its screen, its input thread and what lies around on it, shared by the sessions that come and go.
#[derive(Clone)]
pub struct Desktop {
    /// The screen.
    pub screen: Arc<dyn Screen>,
    /// The keyboard and mouse.
    pub input: InputThread,
    /// The clipboard and the windows.
    pub desk: Arc<dyn Desk>,
    /// Cancelled when the display server has gone; nothing works after that.
    pub gone: CancellationToken,
}
