//! QEMU on Linux.
