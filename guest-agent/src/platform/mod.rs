//! What differs between operating systems: the machine's clock and identity here, its screen and input devices in the
//! implementations of [`crate::display`]'s traits.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(all(target_os = "linux", feature = "sim"))]
pub(crate) use linux::keysym;
#[cfg(target_os = "linux")]
pub use linux::machine;
#[cfg(all(target_os = "linux", feature = "x11"))]
pub use linux::{X11, display_is_up};
