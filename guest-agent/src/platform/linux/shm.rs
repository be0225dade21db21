//! Memory shared with the X server, into which it writes pixels.
#![expect(unsafe_code, reason = "mapping memory; each block states why the access is sound")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping of one segment.
#[derive(Debug)]
pub(super) struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// Maps `len` bytes of `fd`, which must be at least as long.
    pub(super) fn map(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        let size = rustix::fs::fstat(fd)?.st_size;
        if usize::try_from(size).is_ok_and(|size| size < len) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment is shorter than asked for"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// The pixels. The server writes here only while it serves our request, whose reply we have by then.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`, which is borrowed for the slice's life.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: this is our mapping, and no slice of it outlives `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "our own mapping");
    }
}
