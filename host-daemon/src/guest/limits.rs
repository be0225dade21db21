//! What one guest may make the host hold.
//!
//! ```text
//!  not yet read      CONNECTION_WINDOW of data, and what HTTP/2 keeps beside each of its frames, once more
//!  being read        a message per call under way, in a buffer that may have doubled on the way
//!  an answer         the pixels of one frame, which are kept until its last rectangle has come
//!  the screen        the canonical frame, and the one before while an encoder or a slow reader still has it
//!  the clipboard     one content, while somebody gets it
//!  the windows       one list as it was read, while somebody asks for them; whoever asks meanwhile waits
//! ```
//!
//! Pictures for clients are on the clients' account: [`crate::display`] bounds them. So are programs and files: each
//! stream is read as fast as its client takes it, a message at a time, and what is not read is in the windows.

use hvkube_proto::guest::v1 as pb;

use super::desk::MAX_CLIPBOARD;
use crate::model::screen::Size;

/// Largest message taken from a guest in streams of programs and files: pieces are 1 MiB at most.
pub(super) const MAX_MESSAGE: usize = 2 << 20;
/// Largest part of a frame: a band of raw pixels is [`MAX_RECT_BYTES`], and its rectangle takes a few bytes.
pub(super) const MAX_FRAME_PART: usize = MAX_RECT_BYTES + (64 << 10);
/// Largest of all other messages. The image's stamp is 64 KiB, and nothing else comes near. Lists of nothing become
/// twelve times as large when they are read.
pub(super) const MAX_ANSWER: usize = 256 << 10;
/// Largest list of windows: 256 with the longest titles and programs, and where they are, take less.
pub(super) const MAX_WINDOWS_ANSWER: usize = 384 << 10;
/// Most rectangles of one answer.
pub(super) const MAX_RECTS: u32 = 4096;
/// Most pixel bytes of one rectangle.
pub(super) const MAX_RECT_BYTES: usize = 1 << 20;
/// Flow-control windows: a full frame streams without waiting for the other end under emulation.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 8 << 20;
/// Of the headers of an answer, or its trailers.
pub(super) const MAX_HEADERS: u32 = 16 << 10;
/// Calls of the host's own that may be under way at once: heartbeats, a probe, input, two captures, one of which waits
/// for a change.
const CALLS: usize = 5;

/// What such a list can become when it is read: a window of nothing takes two bytes of it and a hundred in memory, in a
/// vector that doubles while it grows.
const WINDOWS: usize = (MAX_WINDOWS_ANSWER / 2).next_power_of_two() * size_of::<pb::Window>() / 2 * 3;

/// Most bytes that a guest with a screen of this size can make a session and its hub hold, whatever it sends.
#[must_use]
pub const fn budget(screen: Size) -> usize {
    let unread = 2 * CONNECTION_WINDOW as usize;
    let being_read = CALLS * 2 * MAX_FRAME_PART;
    // With 64 bytes to say where each rectangle is.
    let answer = screen.frame_bytes() + MAX_RECTS as usize * 64;
    unread + being_read + answer + 2 * screen.frame_bytes() + MAX_CLIPBOARD + WINDOWS
}
