//! The screen, keyboard and mouse of one VM, for everyone who looks at or drives it.
//!
//! A [`Hub`] lives as long as its VM and is given the present session with the guest's agent. It keeps the canonical frame
//! (one with the cursor drawn in, one without, each only once asked for), brings it up to date from the agent when
//! somebody looks, and encodes it once for all who want the same picture of the same state.
//!
//! ```text
//!  agent ──patches──► Plane (canonical frame, sequence, damage log) ──► Encoders (one result per sequence and options)
//!                        ▲ captured only while somebody waits                 │
//!  hypervisor ──frame────┘ without an agent, where it can                     ├─► screenshot
//!                                                                            └─► subscribers: latest wins
//! ```
//!
//! Nobody waits for a slow reader: a subscriber holds no place in a queue, it takes the latest frame when it comes back,
//! and is told how many states it passed over and what changed meanwhile.

mod drive;
mod encode;
mod error;
mod fallback;
mod hub;
mod options;
mod plane;
mod stream;

pub use drive::{Acted, Waited};
pub use encode::{Encoders, Picture};
pub use error::DisplayError;
pub use hub::{Encoded, Hub, InputDone, Source};
pub use options::{ImageFormat, Scaling, ScreenshotOptions};
pub use stream::{FrameStream, MAX_FPS, StreamFrame};

#[cfg(test)]
mod tests;
