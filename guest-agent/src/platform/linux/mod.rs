//! Linux with X11.

#[cfg(feature = "x11")]
mod cursor;
#[cfg(feature = "x11")]
mod desk;
mod ioctl;
#[cfg(feature = "x11")]
mod keyboard;
#[cfg(feature = "x11")]
mod keymap;
#[cfg(any(feature = "x11", feature = "sim"))]
pub(crate) mod keysym;
pub mod machine;
#[cfg(feature = "x11")]
mod screen;
#[cfg(feature = "x11")]
mod shm;
#[cfg(feature = "x11")]
mod x11;

#[cfg(feature = "x11")]
pub use x11::{X11, display_is_up};
