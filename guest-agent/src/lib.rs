//! The agent inside a guest: its screen, keyboard, mouse, programs and files, served to the host that owns the VM.
//!
//! ```text
//! run --> transport --> session (preface, HTTP/2) --> supervisor --> worker: display, process
//!                                                         \------> platform (clock, identity)
//! ```
//!
//! [`transport`] reaches the host, [`session`] turns a byte stream into served calls, [`supervisor`] is the privileged half,
//! [`display`] and [`process`] are what the desktop user's worker serves, and [`platform`] holds what differs between
//! operating systems. `run` puts them together (feature `x11`); `sim` are simulated guests for a host
//! that has no real ones (feature `sim`).

pub mod config;
pub mod display;
pub mod platform;
pub mod process;
#[cfg(feature = "x11")]
pub mod run;
pub mod session;
#[cfg(feature = "sim")]
pub mod sim;
pub mod supervisor;
pub mod transport;
