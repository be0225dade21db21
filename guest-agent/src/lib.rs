//! The agent inside a guest: its screen, keyboard, mouse, programs and files, served to the host that owns the VM.
//!
//! ```text
//! run --> transport --> session (preface, HTTP/2) --> supervisor --> worker: display, process
//!                                                         \------> platform (clock, identity)
//! ```
//!
//! [`transport`] reaches the host, [`session`] turns a byte stream into served calls, [`supervisor`] is the privileged half,
//! [`display`] and [`process`] are what the desktop user's worker serves, and [`platform`] holds what differs between
//! operating systems. [`run`] puts them together.

pub mod config;
pub mod display;
pub mod platform;
pub mod process;
pub mod run;
pub mod session;
pub mod supervisor;
pub mod transport;
