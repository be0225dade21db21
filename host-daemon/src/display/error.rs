//! What can go wrong with a screen or an input device.

use crate::guest::GuestError;
use crate::hypervisor::HvError;
use crate::model::error::{Error, Reason};
use crate::model::input_rules::InputError;
use crate::model::screen::{Point, Rect, Size};

/// Why a picture or an input failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisplayError {
    /// No agent, and the hypervisor can't do it either.
    #[error("no guest agent is connected")]
    NotConnected,
    /// The VM is gone, and its hub with it.
    #[error("the vm is gone")]
    Closed,
    /// An option that makes no sense.
    #[error("{field}: {description}")]
    BadOption {
        /// Which, as in `options.quality`.
        field: &'static str,
        /// What would be right.
        description: String,
    },
    /// The region does not lie in the frame.
    #[error("the region {}x{} at ({}, {}) lies outside the frame of {}x{}",
        region.width, region.height, region.x, region.y, size.width, size.height)]
    RegionOutOfFrame {
        /// The region.
        region: Rect,
        /// The frame.
        size: Size,
    },
    /// A condition of a wait that does not lie in the frame.
    #[error("{field}: ({}, {}) lies outside the frame of {}x{}", at.x, at.y, size.width, size.height)]
    ConditionOutOfFrame {
        /// Which, as in `settle.pixels[0].at`.
        field: String,
        /// Its point, or the region's first.
        at: Point,
        /// The frame.
        size: Size,
    },
    /// The picture is larger than allowed, also when encoded as hard as possible.
    #[error("the picture has {bytes} bytes, {max} are allowed")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// What was allowed.
        max: usize,
    },
    /// An event was refused before anything was done.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The agent refused an event after others were done.
    #[error("event {completed} failed: {message}")]
    InputFailed {
        /// How many events were done.
        completed: u32,
        /// In the agent's words.
        message: String,
    },
    /// The agent was lost, or did not answer, in the middle of a batch.
    #[error("the outcome of the input is unknown")]
    OutcomeUnknown {
        /// How many events were acknowledged.
        completed: u32,
        /// Why.
        #[source]
        source: GuestError,
    },
    /// The agent failed.
    #[error(transparent)]
    Guest(GuestError),
    /// The hypervisor failed.
    #[error("the hypervisor's display failed")]
    Hypervisor(#[source] HvError),
    /// The deadline passed.
    #[error("the {0} took too long")]
    Timeout(&'static str),
    /// The encoder failed, or a task of it.
    #[error("can't encode the picture: {0}")]
    Encode(String),
    /// A violation that the model found.
    #[error(transparent)]
    Invalid(Error),
}

impl From<GuestError> for DisplayError {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::NotConnected => Self::NotConnected,
            other => Self::Guest(other),
        }
    }
}

impl From<DisplayError> for Error {
    fn from(error: DisplayError) -> Self {
        let message = error.to_string();
        match error {
            DisplayError::NotConnected => Self::new(Reason::AgentNotConnected, message),
            DisplayError::Closed => Self::new(Reason::VmNotRunning, message),
            DisplayError::BadOption { field, description } => Self::field(field, description),
            DisplayError::RegionOutOfFrame { region, size } => Self::new(Reason::OutOfFrame, message.clone())
                .with("x", region.x)
                .with("y", region.y)
                .with("width", region.width)
                .with("height", region.height)
                .with("frame_width", size.width)
                .with("frame_height", size.height)
                .violation("options.region", message),
            DisplayError::ConditionOutOfFrame { field, at, size } => Self::new(Reason::OutOfFrame, message)
                .with("x", at.x)
                .with("y", at.y)
                .with("frame_width", size.width)
                .with("frame_height", size.height)
                .violation(field, format!("lies outside the frame of {}x{}", size.width, size.height)),
            DisplayError::TooLarge { bytes, max } => {
                Self::new(Reason::ScreenshotTooLarge, message).with("bytes", bytes).with("max_bytes", max)
            }
            DisplayError::Input(input) => input.into(),
            DisplayError::InputFailed { completed, .. } => {
                Self::new(Reason::GuestFailed, message).with("completed", completed)
            }
            DisplayError::OutcomeUnknown { completed, source } => {
                let mut out = Self::internal(Reason::InputOutcomeUnknown, message, source);
                out.metadata.push(("completed", completed.to_string()));
                out
            }
            DisplayError::Guest(guest) => guest.into_error(Reason::GuestFailed),
            // A machine that is being started or ended has no screen for a moment.
            DisplayError::Hypervisor(source @ HvError::IllegalState { .. }) => {
                Self::new(Reason::AgentNotConnected, source.to_string())
            }
            DisplayError::Hypervisor(source) => Self::internal(Reason::HypervisorFailed, message, source),
            DisplayError::Timeout(_) => Self::new(Reason::DeadlineExceeded, message),
            DisplayError::Encode(_) => Self::new(Reason::Internal, message),
            DisplayError::Invalid(error) => error,
        }
    }
}
