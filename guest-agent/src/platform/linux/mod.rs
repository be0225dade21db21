//! Linux with X11.

mod cursor;
mod ioctl;
mod keyboard;
mod keymap;
mod keysym;
pub mod machine;
mod screen;
mod shm;
mod x11;

pub use x11::{X11, display_is_up};
