//! Waiting until the focused program has handled the keys that were sent to it.
//!
//! Programs that follow the window manager's ping protocol answer a ping from the queue that their key events are in, behind
//! them. The others (xterm) are watched instead: they have caught up when their window has not changed for a while.

use std::cell::Cell;
use std::time::{Duration, Instant};

use x11rb::connection::Connection as _;
use x11rb::errors::{ReplyError, ReplyOrIdError};
use x11rb::protocol::Event;
use x11rb::protocol::damage::{ConnectionExt as _, ReportLevel};
use x11rb::protocol::xproto::{
    AtomEnum, ChangeWindowAttributesAux, ClientMessageEvent, ConnectionExt as _, CreateWindowAux, EventMask,
    InputFocus, Window, WindowClass,
};
use x11rb::rust_connection::RustConnection;

use super::{Outcome, wait_for};
use crate::display::{Cancel, InputError};

/// A program that has not taken its input by then hangs.
const PATIENCE: Duration = Duration::from_secs(15);
const MANAGER_PATIENCE: Duration = Duration::from_secs(10);
/// For programs without the protocol: how long their window must be still, and how long to watch at most.
const STILL: Duration = Duration::from_millis(250);
const WATCH_AT_MOST: Duration = Duration::from_secs(5);
/// Windows between a focus window and its top level; real ones have few.
const MAX_DEPTH: usize = 16;

/// The program that keys go to, as found.
#[derive(Clone, Copy, Debug)]
struct Target {
    window: Window,
    answers: bool,
}

/// Knows whom to ask.
#[derive(Debug)]
pub(super) struct Fence {
    root: Window,
    protocols: u32,
    ping: u32,
    supported: u32,
    request_extents: u32,
    extents: u32,
    /// Never shown; the window manager is asked about it.
    probe: Window,
    next_token: u32,
    /// The keymap has changed while we waited for something else.
    pub(super) map_changed: Cell<bool>,
}

impl Fence {
    pub(super) fn new(conn: &RustConnection, root: Window) -> Result<Self, ReplyOrIdError> {
        conn.damage_query_version(1, 1)?.reply()?;
        let protocols = conn.intern_atom(false, b"WM_PROTOCOLS")?;
        let ping = conn.intern_atom(false, b"_NET_WM_PING")?;
        let supported = conn.intern_atom(false, b"_NET_SUPPORTED")?;
        let request = conn.intern_atom(false, b"_NET_REQUEST_FRAME_EXTENTS")?;
        let extents = conn.intern_atom(false, b"_NET_FRAME_EXTENTS")?;
        let probe = conn.generate_id()?;
        let attributes = CreateWindowAux::new().override_redirect(1).event_mask(EventMask::PROPERTY_CHANGE);
        conn.create_window(0, probe, root, -1, -1, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &attributes)?
            .check()?;
        Ok(Self {
            root,
            protocols: protocols.reply()?.atom,
            ping: ping.reply()?.atom,
            supported: supported.reply()?.atom,
            request_extents: request.reply()?.atom,
            extents: extents.reply()?.atom,
            probe,
            next_token: 0x6876_0000,
            map_changed: Cell::new(false),
        })
    }

    /// Waits until everything typed so far has been handled.
    pub(super) fn wait(&mut self, conn: &RustConnection, cancel: &Cancel) -> Outcome {
        let Some(target) = self.target(conn)? else { return Ok(()) };
        if target.answers {
            self.ask(conn, target.window, cancel)
        } else {
            self.watch(conn, target.window, cancel)
        }
    }

    /// As [`Self::wait`], but not for programs that can only be watched.
    pub(super) fn wait_if_cheap(&mut self, conn: &RustConnection, cancel: &Cancel) -> Outcome {
        match self.target(conn)? {
            Some(target) if target.answers => self.ask(conn, target.window, cancel),
            _ => Ok(()),
        }
    }

    /// Waits until the window manager has handled what happened so far. Some grab all their keys anew when the keymap
    /// changes; keys that come meanwhile can go astray. One that hangs is not waited for.
    pub(super) fn wait_for_manager(&self, conn: &RustConnection, cancel: &Cancel) -> Outcome {
        let supported =
            conn.get_property(false, self.root, self.supported, AtomEnum::ATOM, 0, 1024)?.reply()?;
        if !supported.value32().into_iter().flatten().any(|atom| atom == self.request_extents) {
            return Ok(());
        }
        let message = ClientMessageEvent::new(32, self.probe, self.request_extents, [0; 5]);
        let watchers = EventMask::SUBSTRUCTURE_NOTIFY | EventMask::SUBSTRUCTURE_REDIRECT;
        conn.send_event(false, self.root, watchers, message)?;
        let answer =
            wait_for(conn, &self.map_changed, Instant::now() + MANAGER_PATIENCE, cancel, &mut |event| {
                match event {
                    Event::PropertyNotify(e) if e.window == self.probe && e.atom == self.extents => Some(()),
                    _ => None,
                }
            })?;
        if answer.is_none() {
            tracing::warn!("the window manager does not answer");
        }
        Ok(())
    }

    /// The window that has the focus, or the one above it that answers pings.
    fn target(&self, conn: &RustConnection) -> Outcome<Option<Target>> {
        let mut window = conn.get_input_focus()?.reply()?.focus;
        if window == u32::from(InputFocus::POINTER_ROOT) {
            window = conn.query_pointer(self.root)?.reply()?.child;
        }
        let focus = window;
        for _ in 0..MAX_DEPTH {
            if window == x11rb::NONE || window == self.root {
                break;
            }
            let property = conn.get_property(false, window, self.protocols, AtomEnum::ATOM, 0, 64)?;
            let tree = conn.query_tree(window)?;
            let (property, tree) = match (property.reply(), tree.reply()) {
                (Ok(property), Ok(tree)) => (property, tree),
                // The window has just gone; nobody is left to wait for.
                (Err(ReplyError::X11Error(_)), _) | (_, Err(ReplyError::X11Error(_))) => return Ok(None),
                (Err(error), _) | (_, Err(error)) => return Err(error.into()),
            };
            if property.value32().into_iter().flatten().any(|atom| atom == self.ping) {
                return Ok(Some(Target { window, answers: true }));
            }
            window = tree.parent;
        }
        Ok((focus != x11rb::NONE && focus != self.root).then_some(Target { window: focus, answers: false }))
    }

    fn ask(&mut self, conn: &RustConnection, window: Window, cancel: &Cancel) -> Outcome {
        self.next_token = self.next_token.wrapping_add(1);
        let token = self.next_token;
        let listen = |mask: EventMask| {
            let attributes = ChangeWindowAttributesAux::new().event_mask(mask);
            conn.change_window_attributes(self.root, &attributes)
        };
        // Answers come to the root window's watchers.
        listen(EventMask::SUBSTRUCTURE_NOTIFY)?;
        let message = ClientMessageEvent::new(32, window, self.protocols, [self.ping, token, window, 0, 0]);
        conn.send_event(false, window, EventMask::NO_EVENT, message)?;
        let answer =
            wait_for(conn, &self.map_changed, Instant::now() + PATIENCE, cancel, &mut |event| match event {
                Event::ClientMessage(m)
                    if m.type_ == self.protocols && m.data.as_data32()[..2] == [self.ping, token] =>
                {
                    Some(true)
                }
                Event::DestroyNotify(e) if e.window == window => Some(false),
                _ => None,
            });
        listen(EventMask::NO_EVENT)?;
        match answer? {
            Some(_) => Ok(()),
            None => Err(InputError::Platform(format!(
                "the focused program has not taken its input for {} s",
                PATIENCE.as_secs()
            ))),
        }
    }

    fn watch(&self, conn: &RustConnection, window: Window, cancel: &Cancel) -> Outcome {
        let damage = conn.generate_id().map_err(|e| InputError::Platform(e.to_string()))?;
        if conn.damage_create(damage, window, ReportLevel::NON_EMPTY)?.check().is_err() {
            // It went away.
            return Ok(());
        }
        let give_up = Instant::now() + WATCH_AT_MOST;
        loop {
            let still_until = (Instant::now() + STILL).min(give_up);
            let changed = wait_for(conn, &self.map_changed, still_until, cancel, &mut |event| match event {
                Event::DamageNotify(e) if e.damage == damage => Some(()),
                _ => None,
            })?;
            if changed.is_none() || Instant::now() >= give_up {
                break;
            }
            conn.damage_subtract(damage, x11rb::NONE, x11rb::NONE)?;
        }
        // The window may have gone, and the damage with it.
        conn.damage_destroy(damage)?.ignore_error();
        Ok(())
    }
}
