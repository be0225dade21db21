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
//! Nothing a guest sends is trusted: a message is 2 MiB at most, lengths are checked before they are allocated,
//! rectangles must lie in their frame, numbers must be finite, and text loses its control characters.

mod desktop;
mod error;
mod hello;
mod http2;
mod port;
mod process;
mod session;
mod types;
mod wire;

pub use error::GuestError;
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
