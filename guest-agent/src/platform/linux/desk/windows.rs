//! The windows, as the window manager tells of them (EWMH), or else the children of the root window.

use hvkube_proto::guest::v1 as pb;
use x11rb::NONE;
use x11rb::connection::{Connection as _, RequestConnection as _};
use x11rb::cookie::Cookie;
use x11rb::errors::ReplyError;
use x11rb::protocol::randr::{self, ConnectionExt as _};
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ClientMessageEvent, ConfigureWindowAux, ConnectionExt as _, EventMask, GetPropertyReply,
    InputFocus, MapState, StackMode, Window, WindowClass,
};
use x11rb::rust_connection::RustConnection;

use super::Server;
use crate::display::{DisplayError, MAX_WINDOWS};
use crate::platform::linux::x11::screen_size;

/// Bounds of what a program may say, in bytes.
const MAX_TITLE: u32 = 1024;
const MAX_CLASS: u32 = 256;
const MAX_RESOURCES: u32 = 64 << 10;
const MAX_MONITORS: usize = 16;
const MAX_CONNECTOR: usize = 64;
/// What programs draw for where nobody says anything else.
const DPI: f64 = 96.0;
/// Parents between a window and the root; window managers use one or two.
const MAX_DEPTH: usize = 16;
/// Of a request to the window manager: it comes from a tool that the user controls.
const FROM_A_PAGER: u32 = 2;

type Property<'c> = Cookie<'c, RustConnection, GetPropertyReply>;

/// What has been asked about a window: all of it is on its way before the first answer is read.
struct Asked<'c> {
    id: Window,
    geometry: Cookie<'c, RustConnection, x11rb::protocol::xproto::GetGeometryReply>,
    place: Cookie<'c, RustConnection, x11rb::protocol::xproto::TranslateCoordinatesReply>,
    title: Property<'c>,
    old_title: Property<'c>,
    class: Property<'c>,
    pid: Property<'c>,
    state: Property<'c>,
    frame: Property<'c>,
    shadow: Property<'c>,
}

/// Left, right, top, bottom.
type Extents = [i32; 4];

impl Server {
    pub(super) fn list(&self) -> Result<pb::ListWindowsResponse, DisplayError> {
        let mut ids = self.ids()?;
        ids.drain(..ids.len().saturating_sub(MAX_WINDOWS));
        let focused = self.focus_among(&ids)?;
        let asked = ids.into_iter().map(|id| self.ask_about(id)).collect::<Result<Vec<_>, _>>()?;
        let mut windows = Vec::with_capacity(asked.len());
        for window in asked {
            windows.extend(self.told(window, focused)?);
        }
        Ok(pb::ListWindowsResponse { windows, screen: Some(self.screen()?) })
    }

    /// Whether the window has the focus now; then what it is like.
    pub(super) fn focused(&self, id: Window) -> Result<Option<pb::Window>, DisplayError> {
        if self.focus_among(&[id])? != Some(id) || !self.is_managed_focus(id)? {
            return Ok(None);
        }
        Ok(self.told(self.ask_about(id)?, Some(id))?.filter(|window| window.focused))
    }

    /// Asks for a window to be raised and focused.
    pub(super) fn activate(&mut self, id: Window) -> Result<(), DisplayError> {
        if !self.ids()?.contains(&id) {
            return Err(DisplayError::NoWindow(id.into()));
        }
        let time = self.now()?;
        if self.is_managed()? {
            let active = [FROM_A_PAGER, time, NONE, 0, 0];
            let message = ClientMessageEvent::new(32, id, self.atoms._NET_ACTIVE_WINDOW, active);
            let listeners = EventMask::SUBSTRUCTURE_NOTIFY | EventMask::SUBSTRUCTURE_REDIRECT;
            self.conn.send_event(false, self.root, listeners, message)?;
        } else {
            let top = ConfigureWindowAux::new().stack_mode(StackMode::ABOVE);
            self.conn.configure_window(id, &top)?;
            // Without its own choice the keyboard would fall to nobody when the window goes.
            self.conn.set_input_focus(InputFocus::POINTER_ROOT, id, time)?;
        }
        self.conn.flush()?;
        Ok(())
    }

    /// From the bottom to the top.
    fn ids(&self) -> Result<Vec<Window>, DisplayError> {
        if self.is_managed()? {
            for list in [self.atoms._NET_CLIENT_LIST_STACKING, self.atoms._NET_CLIENT_LIST] {
                // More than are told, so that the top ones are among them.
                let windows = self.property(self.root, list, AtomEnum::WINDOW.into(), 4096)?.reply()?;
                if let Some(windows) = windows.value32().filter(|_| windows.value_len > 0) {
                    return Ok(windows.collect());
                }
            }
            return Ok(Vec::new());
        }
        let children = self.conn.query_tree(self.root)?.reply()?.children;
        let asked = children
            .into_iter()
            .map(|id| Ok((id, self.conn.get_window_attributes(id)?)))
            .collect::<Result<Vec<_>, DisplayError>>()?;
        let mut out = Vec::new();
        for (id, attributes) in asked {
            let Some(attributes) = there(attributes.reply())? else { continue };
            if attributes.map_state == MapState::VIEWABLE && attributes.class == WindowClass::INPUT_OUTPUT {
                out.push(id);
            }
        }
        Ok(out)
    }

    /// Whether there is a window manager that keeps a list of windows: it has a window that names itself.
    fn is_managed(&self) -> Result<bool, DisplayError> {
        let check = self.atoms._NET_SUPPORTING_WM_CHECK;
        let named = |window| -> Result<Option<Window>, DisplayError> {
            let property = self.property(window, check, AtomEnum::WINDOW.into(), 1)?.reply();
            Ok(there(property)?.and_then(|p| p.value32()?.next()))
        };
        match named(self.root)? {
            Some(window) => Ok(named(window)? == Some(window)),
            None => Ok(false),
        }
    }

    /// Which of these windows has the keyboard, itself or something in it.
    fn focus_among(&self, ids: &[Window]) -> Result<Option<Window>, DisplayError> {
        let mut at = self.conn.get_input_focus()?.reply()?.focus;
        for _ in 0..MAX_DEPTH {
            // None, and the two that are no windows but ways to choose one.
            if at <= u32::from(InputFocus::FOLLOW_KEYBOARD) || at == self.root {
                return Ok(None);
            }
            if ids.contains(&at) {
                return Ok(Some(at));
            }
            let Some(tree) = there(self.conn.query_tree(at)?.reply())? else { return Ok(None) };
            at = tree.parent;
        }
        Ok(None)
    }

    /// Where there is a window manager, it has to think so too, or it may give the keyboard to another one in a moment.
    fn is_managed_focus(&self, id: Window) -> Result<bool, DisplayError> {
        if !self.is_managed()? {
            return Ok(true);
        }
        let active = self.atoms._NET_ACTIVE_WINDOW;
        let active = self.property(self.root, active, AtomEnum::WINDOW.into(), 1)?.reply()?;
        Ok(active.value32().and_then(|mut ids| ids.next()) == Some(id))
    }

    fn property(
        &self,
        window: Window,
        property: Atom,
        kind: Atom,
        longs: u32,
    ) -> Result<Property<'_>, DisplayError> {
        Ok(self.conn.get_property(false, window, property, kind, 0, longs)?)
    }

    fn ask_about(&self, id: Window) -> Result<Asked<'_>, DisplayError> {
        let any = u32::from(AtomEnum::ANY);
        let cardinal = u32::from(AtomEnum::CARDINAL);
        let atoms = &self.atoms;
        Ok(Asked {
            id,
            geometry: self.conn.get_geometry(id)?,
            place: self.conn.translate_coordinates(id, self.root, 0, 0)?,
            title: self.property(id, atoms._NET_WM_NAME, atoms.UTF8_STRING, MAX_TITLE / 4)?,
            old_title: self.property(id, AtomEnum::WM_NAME.into(), any, MAX_TITLE / 4)?,
            class: self.property(id, AtomEnum::WM_CLASS.into(), AtomEnum::STRING.into(), MAX_CLASS / 4)?,
            pid: self.property(id, atoms._NET_WM_PID, cardinal, 1)?,
            state: self.property(id, atoms._NET_WM_STATE, AtomEnum::ATOM.into(), 64)?,
            frame: self.property(id, atoms._NET_FRAME_EXTENTS, cardinal, 4)?,
            shadow: self.property(id, atoms._GTK_FRAME_EXTENTS, cardinal, 4)?,
        })
    }

    /// None for a window that is gone by now.
    fn told(&self, asked: Asked<'_>, focused: Option<Window>) -> Result<Option<pb::Window>, DisplayError> {
        // All answers are read, or the connection would keep those that come for nobody.
        let geometry = there(asked.geometry.reply())?;
        let place = there(asked.place.reply())?;
        let title = there(asked.title.reply())?;
        let old_title = there(asked.old_title.reply())?;
        let class = there(asked.class.reply())?;
        let pid = there(asked.pid.reply())?;
        let state = there(asked.state.reply())?;
        let (frame, shadow) = (there(asked.frame.reply())?, there(asked.shadow.reply())?);
        let (Some(geometry), Some(place)) = (geometry, place) else { return Ok(None) };

        let first = |p: Option<GetPropertyReply>| p.and_then(|p| p.value32()?.next());
        let pid = first(pid).unwrap_or(0);
        let title = title.filter(|t| !t.value.is_empty()).or(old_title);
        let title = title.map(|t| text(&t.value, t.type_ == u32::from(AtomEnum::STRING))).unwrap_or_default();
        let hidden = self.atoms._NET_WM_STATE_HIDDEN;
        let minimised = state.is_some_and(|s| s.value32().is_some_and(|mut s| s.any(|s| s == hidden)));
        let content = Rectangle {
            x: place.dst_x.into(),
            y: place.dst_y.into(),
            width: geometry.width.into(),
            height: geometry.height.into(),
        };
        let bounds = content.grown(extents(frame), 1).grown(extents(shadow), -1);
        Ok(Some(pb::Window {
            id: asked.id.into(),
            title,
            app: class.and_then(|c| class_name(&c.value)).or_else(|| process_name(pid)).unwrap_or_default(),
            pid,
            bounds: Some(bounds.area()),
            content: Some(content.area()),
            // While it is being minimised a window manager hides it first and takes the focus away after.
            focused: focused == Some(asked.id) && !minimised,
            minimised,
        }))
    }

    fn screen(&self) -> Result<pb::ScreenInfo, DisplayError> {
        let (width, height) = screen_size(&self.conn, self.root)?;
        let resources = AtomEnum::RESOURCE_MANAGER.into();
        let resources =
            self.property(self.root, resources, AtomEnum::STRING.into(), MAX_RESOURCES / 4)?.reply()?;
        let dpi = dpi(&String::from_utf8_lossy(&resources.value)).unwrap_or(DPI);
        Ok(pb::ScreenInfo { width, height, dpi, monitors: self.monitors()? })
    }

    fn monitors(&self) -> Result<Vec<pb::Monitor>, DisplayError> {
        if self.conn.extension_information(randr::X11_EXTENSION_NAME)?.is_none() {
            return Ok(Vec::new());
        }
        let version = self.conn.randr_query_version(1, 5)?.reply()?;
        if (version.major_version, version.minor_version) < (1, 5) {
            return Ok(Vec::new());
        }
        let monitors = self.conn.randr_get_monitors(self.root, true)?.reply()?.monitors;
        monitors
            .into_iter()
            .take(MAX_MONITORS)
            .map(|monitor| {
                let mut name = self.conn.get_atom_name(monitor.name)?.reply()?.name;
                name.truncate(MAX_CONNECTOR);
                let bounds = Rectangle {
                    x: monitor.x.into(),
                    y: monitor.y.into(),
                    width: monitor.width.into(),
                    height: monitor.height.into(),
                };
                Ok(pb::Monitor {
                    name: text(&name, false),
                    bounds: Some(bounds.area()),
                    primary: monitor.primary,
                    width_mm: monitor.width_in_millimeters,
                    height_mm: monitor.height_in_millimeters,
                })
            })
            .collect()
    }
}

/// Windows come and go while they are looked at; one that is gone is no error.
fn there<T>(reply: Result<T, ReplyError>) -> Result<Option<T>, DisplayError> {
    match reply {
        Ok(reply) => Ok(Some(reply)),
        Err(ReplyError::X11Error(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn text(bytes: &[u8], latin1: bool) -> String {
    let text: String = if latin1 {
        bytes.iter().copied().map(char::from).collect()
    } else {
        String::from_utf8_lossy(bytes).into_owned()
    };
    // A title that was cut may end in half a character, and Latin-1 is longer in UTF-8.
    let mut end = text.len().min(MAX_TITLE as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim_end_matches(['\0', '\u{fffd}']).to_owned()
}

/// `instance NUL class NUL`: the class is what people know the program by.
fn class_name(value: &[u8]) -> Option<String> {
    let mut names = value.split(|b| *b == 0).filter(|name| !name.is_empty());
    let (instance, class) = (names.next()?, names.next());
    Some(text(class.unwrap_or(instance), false))
}

fn process_name(pid: u32) -> Option<String> {
    if pid == 0 {
        return None;
    }
    // 16 bytes at most, by the kernel.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn extents(property: Option<GetPropertyReply>) -> Extents {
    // Programs set these; more than a screen's side is a lie.
    let mut out = [0; 4];
    if let Some(values) = property.as_ref().and_then(GetPropertyReply::value32) {
        out.iter_mut()
            .zip(values)
            .for_each(|(out, value)| *out = i32::try_from(value.min(1 << 14)).unwrap_or(0));
    }
    out
}

/// `Xft.dpi` of the X resources, where desktops say how large programs shall draw.
fn dpi(resources: &str) -> Option<f64> {
    let value =
        resources.lines().find_map(|line| line.strip_prefix("Xft.dpi")?.trim_start().strip_prefix(':'))?;
    value.trim().parse().ok().filter(|dpi: &f64| (1.0..=10_000.0).contains(dpi))
}

#[derive(Clone, Copy)]
struct Rectangle {
    x: i32,
    y: i32,
    width: i32,
    height: i32,
}

impl Rectangle {
    fn grown(self, [left, right, top, bottom]: Extents, by: i32) -> Self {
        Self {
            x: self.x - left * by,
            y: self.y - top * by,
            width: self.width + (left + right) * by,
            height: self.height + (top + bottom) * by,
        }
    }

    fn area(self) -> pb::Area {
        let side = |length: i32| u32::try_from(length).unwrap_or(0);
        pb::Area { x: self.x, y: self.y, width: side(self.width), height: side(self.height) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_say_the_dpi() {
        assert_eq!(dpi("*customization:\t-color\nXft.dpi:\t192\nXft.hinting:\t1\n"), Some(192.0));
        assert_eq!(dpi("Xft.dpi : 120.5"), Some(120.5));
        for other in ["", "Xft.dpi: 0", "Xft.dpi: many", "Xft.dpi: nan", "Xft.dpix: 1", "xft.dpi: 96"] {
            assert_eq!(dpi(other), None, "{other}");
        }
    }

    #[test]
    fn texts_of_programs_are_cut_at_characters() {
        assert_eq!(text("aü".as_bytes(), false), "aü");
        assert_eq!(text(&"aü".as_bytes()[..2], false), "a", "half a character");
        assert_eq!(text(&[b'a', 0xfc], true), "aü");
        assert_eq!(text(&[0xfc; 2000], true).len(), 1024);
        assert_eq!(class_name(b"xterm\0XTerm\0").as_deref(), Some("XTerm"));
        assert_eq!(class_name(b"only\0").as_deref(), Some("only"));
        assert_eq!(class_name(b"\0"), None);
    }
}
