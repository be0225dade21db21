//! What goes into a session and what comes out of it, in the host's own types.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

use super::GuestError;
use crate::model::input::Settled;
use crate::model::screen::{CursorShape, Point, Rect, Size};

/// How to open a session.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Number of this session of the VM; the caller makes it grow with each.
    pub epoch: u64,
    /// What the agent must send, where the transport has no identity of its own.
    pub secret: Option<[u8; 32]>,
    /// What the first call tells the guest.
    pub attach: AttachParams,
    /// Time between two heartbeats; zero: 5 s.
    pub heartbeat: Duration,
    /// Somebody waits for the desktop: prove its input and fetch its frame while the first call is still under way. See
    /// [`Session::take_glance`](super::Session::take_glance).
    pub glance: bool,
}

/// What a session tells the guest at its start. The host's clock is always among it.
#[derive(Debug, Clone, Default)]
pub struct AttachParams {
    /// Who this fork is; absent: leave as it is.
    pub identity: Option<Identity>,
    /// Stir the guest's random pool with 32 bytes of the host's.
    pub reseed: bool,
}

/// What makes one fork different from its siblings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// RFC 1123 label.
    pub hostname: String,
    /// In the format of `/etc/machine-id`.
    pub machine_id: [u8; 16],
    /// Of the first network interface; absent: leave.
    pub mac: Option<[u8; 6]>,
}

/// What the guest said of itself when the session began. Texts are bounded and free of control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// Version of the agent.
    pub agent_version: String,
    /// Operating system as people name it.
    pub os: String,
    /// Stamp of the golden image, valid JSON; empty where there is none.
    pub image_stamp_json: String,
    /// Guest clock minus host clock before the guest stepped its own, in microseconds.
    pub clock_skew_micros: i64,
    /// Random per boot of the guest.
    pub boot_id: String,
    /// Steps that failed; 16 at most.
    pub warnings: Vec<String>,
    /// Addresses of the guest; 16 at most.
    pub ip_addresses: Vec<IpAddr>,
    /// Whether the desktop was up.
    pub desktop_ready: bool,
}

/// One heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// Grows by one per beat of a session.
    pub sequence: u64,
    /// When it came in.
    pub received: Instant,
    /// The guest's clock; absent when it made no sense.
    pub guest_time: Option<SystemTime>,
    /// Load average over one minute; finite and not negative.
    pub load1: f64,
    /// Memory of the guest in bytes.
    pub memory_total_bytes: u64,
    /// Memory that programs can still get, in bytes; never more than the total.
    pub memory_available_bytes: u64,
    /// Whether the desktop is up.
    pub desktop_ready: bool,
    /// Addresses of the guest; 16 at most.
    pub ip_addresses: Vec<IpAddr>,
    /// Time since the guest booted.
    pub uptime: Duration,
}

/// The desktop is usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Size of the screen.
    pub size: Size,
    /// From injecting a motion to seeing it.
    pub input_round_trip: Duration,
    /// Where the pointer is.
    pub pointer: Point,
}

/// What the host has of a screen: a capture brings what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Have {
    /// Number of the state; 0: nothing.
    pub sequence: u64,
    /// The answer that the frame is of; 0: unknown.
    pub answer: u64,
    /// The cursor's shape; 0: none.
    pub shape: u32,
}

/// The cursor, as a guest tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorSeen {
    /// Names its shape.
    pub shape: u32,
    /// The shape, where it is another than the host had.
    pub picture: Option<Arc<CursorShape>>,
}

/// A frame, or what changed since another.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Size of the frame.
    pub size: Size,
    /// Number of this state of the screen within the session.
    pub sequence: u64,
    /// The patches are all of the frame, not a difference.
    pub full: bool,
    /// When the pixels were read, by the host's clock.
    pub captured_at: SystemTime,
    /// Where the pointer was.
    pub pointer: Point,
    /// The cursor, where it was asked for. It is never in the pixels.
    pub cursor: Option<CursorSeen>,
    /// Number of this answer, for [`Have::answer`].
    pub answer: u64,
    /// What to draw, in this order, each inside the frame; together at most twice the frame's area.
    pub patches: Vec<Patch>,
}

/// New pixels of a rectangle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where.
    pub area: Rect,
    /// What.
    pub fill: Fill,
}

/// Pixels of a rectangle, 4 bytes each (blue, green, red, unused).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fill {
    /// Rows top to bottom, exactly as many as the rectangle has.
    Pixels(Bytes),
    /// The same everywhere.
    Solid([u8; 4]),
    /// As the part of the frame at this place, which lies inside the frame.
    Copy {
        /// Left edge.
        x: u32,
        /// Top edge.
        y: u32,
    },
}

/// What became of a batch of input.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InputOutcome {
    /// Events done; never more than were sent.
    pub completed: u32,
    /// Why the event after the completed ones was refused; absent: all are done.
    pub failure: Option<InputFailure>,
    /// Notches that scroll events delivered, summed; right and down are positive.
    pub scrolled: Point,
    /// Pixels that scroll events asked for and that were delivered, as such or as notches, summed.
    pub scrolled_pixels: Point,
    /// The wait, where one was asked for and all events were done.
    pub settled: Option<Settled>,
    /// The outcome is that of an earlier call with this batch id.
    pub replayed: bool,
}

/// Why an event could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFailure {
    /// Kind.
    pub reason: InputFailureReason,
    /// In the agent's words.
    pub message: String,
}

/// Kinds of [`InputFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFailureReason {
    /// No key of that name.
    UnknownKey,
    /// The point lies outside the screen.
    OutOfFrame,
    /// A value that makes no sense.
    Invalid,
    /// The display server refused.
    Platform,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecParams {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the desktop session's own.
    pub env: BTreeMap<String, String>,
    /// Directory to start in; empty: the user's home.
    pub cwd: String,
    /// Given on standard input, which is then closed.
    pub stdin: Bytes,
    /// When to kill the process group; absent: with the call's deadline only.
    pub timeout: Option<Duration>,
    /// Run as root instead of the desktop user.
    pub as_root: bool,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// First: it runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// A piece of standard output.
    Stdout(Bytes),
    /// A piece of standard error.
    Stderr(Bytes),
    /// Last: it ended.
    Exited {
        /// Exit code; -1 when a signal ended it.
        code: i32,
        /// Signal that ended it; 0: none.
        signal: i32,
        /// It was killed because its time was over.
        timed_out: bool,
    },
}

/// Events of a program: `Started`, output, `Exited`, or an error at the end. Dropping it kills the process group.
pub type ExecStream = BoxStream<'static, Result<ExecEvent, GuestError>>;

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadParams {
    /// Absolute, or relative to the user's home.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// How many bytes at most; 0: to the end.
    pub limit: u64,
    /// Read as root.
    pub as_root: bool,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Size in bytes when it was opened.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change by the guest's clock; absent when it made no sense.
    pub modified: Option<SystemTime>,
}

/// A file that is being read.
pub struct FileReader {
    /// What it is.
    pub info: FileInfo,
    /// Its bytes, in pieces of 64 KiB or so.
    pub data: BoxStream<'static, Result<Bytes, GuestError>>,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileReader({:?})", self.info)
    }
}

/// Where a file goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteParams {
    /// Absolute, or relative to the user's home.
    pub path: String,
    /// Permission bits; 0 means 0644.
    pub mode: u32,
    /// Add to the end instead of replacing.
    pub append: bool,
    /// Make missing parent directories.
    pub make_parents: bool,
    /// Write as root.
    pub as_root: bool,
}
