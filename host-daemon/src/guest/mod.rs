//! Sessions with the agents inside guests.
//!
//! The guest dials and then serves: once both ends have exchanged a preface, this host is the HTTP/2 gRPC client on the
//! guest's byte stream. One stream is one [`Session`]; it ends when the stream does, and then every call under way fails
//! with [`GuestError::Lost`]. After a resume there is a new stream, a new session and a new epoch.
//!
//! ```text
//!   stream ─hello─► greet ─welcome─► HTTP/2 ─Attach─► Session ── calls, heartbeats
//!              ▲                        │                │
//!              └── newer hello came ◄───┘                └─ close(), end of stream, unanswered ping ─► closed()
//! ```
//!
//! Nothing a guest sends is trusted: messages are bounded, lengths are checked before they are allocated, rectangles must
//! lie in their frame, numbers must be finite, and text loses its control characters. [`budget`] is what a guest can cost.

mod desk;
mod desktop;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod hello;
mod http2;
mod limits;
mod port;
mod process;
mod session;
mod types;
mod wire;

pub use desk::{
    Clipboard, ClipboardFound, ClipboardKind, MAX_CLIPBOARD, Monitor, Selection, Window, WindowArea, Windows,
};
pub use error::GuestError;
pub use limits::budget;
pub use session::{Glance, Session, connect};
pub use types::{
    AttachParams, Attached, Captured, CursorSeen, ExecEvent, ExecParams, ExecStream, FileInfo, FileReader,
    Fill, Have, Heartbeat, Identity, InputFailure, InputFailureReason, InputOutcome, OpenOptions, Patch,
    Probe, ReadParams, WriteParams,
};

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
