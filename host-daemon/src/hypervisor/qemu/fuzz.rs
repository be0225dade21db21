//! Entries of the fuzzer to what QEMU writes, which may do so under a guest's influence; see [`crate::fuzzing`].

use super::display;
pub(crate) use super::qmp::fuzz::qmp;

/// The file of a screenshot.
pub(crate) fn screendump(bytes: &[u8]) {
    if let Ok(frame) = display::frame(bytes) {
        assert!(frame.size.is_legal());
        assert_eq!(frame.pixels.len(), frame.size.frame_bytes());
    }
}
