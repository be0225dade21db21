//! The screen, keyboard and mouse of one VM, for everyone who looks at or drives it.
//!
//! A [`Hub`] lives as long as its VM and is given the present session with the guest's agent. It keeps the canonical frame
//! and the cursor beside it, brings both up to date from the agent when somebody looks, and encodes a picture once for all
//! who want the same one of the same state. The cursor is drawn only where a picture is made.
//!
//! ```text
//!  agent ──patches──► Plane (canonical frame, sequence, damage log) ──► Encoders (one result per sequence and options)
//!                        ▲ captured only while somebody waits                 │
//!  hypervisor ──frame────┘ without an agent, where it can                     ├─► screenshot
//!                                                                            └─► subscribers: latest wins
//! ```
//!
//! A screenshot always asks the agent, which answers "nothing new" only after a round trip to its display server; what was
//! encoded for this state is then given again. For subscribers a task of the hub asks the agent to tell the next change as
//! long as one of them waits for it (`pump`), so a subscriber that nobody polls holds nothing that others need.
//!
//! An agent that hangs is passed by (`pulse`): pictures, input and waits go through the hypervisor where it can, and each
//! answer says so. What may already be under way in the agent is never done twice.
//!
//! Nobody waits for a slow reader: a subscriber holds no place in a queue, it takes the latest frame when it comes back,
//! and is told how many states it passed over and what changed meanwhile.

mod canvas;
mod drive;
mod encode;
mod error;
mod fallback;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod hub;
mod jpeg;
mod options;
mod pixels;
mod plane;
mod pulse;
mod pump;
pub(crate) mod rfb;
mod settle;
mod stream;

pub use drive::{Acted, Waited};
pub use encode::Encoders;
pub use error::DisplayError;
pub use hub::{Encoded, Hub, InputDone, Source};
pub use options::{ImageFormat, Scaling, ScreenshotOptions};
pub use stream::{FrameStream, MAX_FPS, StreamFrame, StreamItem, StreamOptions};

#[cfg(test)]
mod tests;
