//! The X11 desktop: one connection and thread for the screen, one for the input, one for clipboard and windows.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use x11rb::connection::Connection;
use x11rb::errors::{ConnectError, ConnectionError, ReplyError, ReplyOrIdError};
use x11rb::protocol::xproto::{ConnectionExt as _, ImageOrder, Window};
use x11rb::rust_connection::RustConnection;

use super::desk::DeskThread;
use super::keyboard::Keyboard;
use super::screen::ScreenThread;
use crate::display::{Desktop, DisplayError, InputError, InputThread};

/// The X11 implementation of a desktop.
#[derive(Debug)]
pub struct X11;

impl X11 {
    /// Connects to `display` and starts its threads.
    ///
    /// # Errors
    /// When there is no such display, or it lacks what we need.
    pub fn desktop(display: &str) -> Result<Desktop, DisplayError> {
        let gone = CancellationToken::new();
        let screen = ScreenThread::start(display, gone.clone())?;
        let failed = |e: &dyn std::fmt::Display| DisplayError::Gone(e.to_string());
        let keyboard = Keyboard::connect(display).map_err(|e| failed(&e))?;
        let input = InputThread::start(keyboard).map_err(|e| failed(&e))?;
        let desk = DeskThread::start(display)?;
        Ok(Desktop { screen: Arc::new(screen), input, desk: Arc::new(desk), gone })
    }
}

/// Whether a server listens for local clients on `display`. For other hosts' displays there is no cheap way to know.
#[must_use]
pub fn display_is_up(display: &str) -> bool {
    let Some(number) = display.strip_prefix(':') else { return true };
    let number = number.split('.').next().unwrap_or(number);
    UnixStream::connect(format!("/tmp/.X11-unix/X{number}")).is_ok()
}

/// Connects; gives the root window too.
pub(super) fn connect(display: &str) -> Result<(RustConnection, Window), DisplayError> {
    let (conn, screen) = x11rb::connect(Some(display))?;
    let setup = conn.setup();
    let root = setup.roots.get(screen).ok_or_else(|| DisplayError::Unsupported("it has no screen".into()))?;
    let bits =
        setup.pixmap_formats.iter().find(|f| f.depth == root.root_depth).map_or(0, |f| f.bits_per_pixel);
    if bits != 32 || setup.image_byte_order != ImageOrder::LSB_FIRST {
        return Err(DisplayError::Unsupported(format!(
            "{bits} bits per pixel; 32, little-endian, are needed"
        )));
    }
    let root = root.root;
    Ok((conn, root))
}

/// The screen's present size, which the connection's set-up data does not follow.
pub(super) fn screen_size(conn: &RustConnection, root: Window) -> Result<(u32, u32), ReplyError> {
    let geometry = conn.get_geometry(root)?.reply()?;
    Ok((geometry.width.into(), geometry.height.into()))
}

impl From<ConnectError> for DisplayError {
    fn from(error: ConnectError) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<ConnectionError> for DisplayError {
    fn from(error: ConnectionError) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<ReplyError> for DisplayError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::ConnectionError(error) => error.into(),
            ReplyError::X11Error(error) => Self::Unsupported(format!("X11 error {error:?}")),
        }
    }
}

impl From<ReplyOrIdError> for DisplayError {
    fn from(error: ReplyOrIdError) -> Self {
        match error {
            ReplyOrIdError::ConnectionError(error) => error.into(),
            ReplyOrIdError::X11Error(error) => Self::Unsupported(format!("X11 error {error:?}")),
            ReplyOrIdError::IdsExhausted => Self::Gone("no X11 ids are left".into()),
        }
    }
}

impl From<ConnectionError> for InputError {
    fn from(error: ConnectionError) -> Self {
        Self::Platform(format!("the display is gone: {error}"))
    }
}

impl From<ReplyError> for InputError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::ConnectionError(error) => error.into(),
            ReplyError::X11Error(error) => Self::Platform(format!("X11 error {error:?}")),
        }
    }
}
