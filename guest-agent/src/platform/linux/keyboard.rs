//! Keyboard and mouse on X11.
//!
//! The mouse goes through enigo. Keys and text do not: enigo lends a keycode to a character and takes it back before programs
//! have looked, and they then type something else. Here, characters that the layout lacks are lent spare keycodes
//! ([`Slots`]), as many at once as there are, and three rules keep text exact:
//!
//! - a program translates a key event by the map it reads when it *handles* the event, so a lent keycode is never changed
//!   while an event with it may still lie in a program's queue;
//! - whether it has been handled is asked of the program itself: `_NET_WM_PING` is answered from the same queue, in order
//!   ([`fence`]);
//! - the loan is written down in a property of the root window, so that the next agent can clean up after a crash.

mod fence;
mod slots;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use enigo::{Axis, Button, Coordinate, Direction, Enigo, Mouse, Settings};
use hvkube_proto::guest::v1::MouseButton;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use x11rb::connection::Connection;
use x11rb::protocol::Event;
use x11rb::protocol::xinput::{self, ConnectionExt as _, DeviceType, XIEventMask};
use x11rb::protocol::xkb::{self, ConnectionExt as _, EventType, ID};
use x11rb::protocol::xproto::{
    ConnectionExt as _, KEY_PRESS_EVENT, KEY_RELEASE_EVENT, MOTION_NOTIFY_EVENT, ModMask, Window,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

use self::fence::Fence;
use self::slots::Slots;
use super::keymap::{self, Keymap, LOCK, State, Stroke, bits};
use super::keysym::{self, Sym};
use super::x11::{connect, screen_size};
use crate::display::{Cancel, DisplayError, Input, InputError, Press, Probed};

/// How long a probe's motion may take to come back.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Characters between two questions whether the program keeps up: bounds what the server must queue for it.
const CHARS_PER_FENCE: usize = 128;
const CORE_KEYBOARD: u16 = 0x100;

type Outcome<T = ()> = Result<T, InputError>;

struct Held {
    sym: Sym,
    /// The key, then its modifiers.
    keycodes: Vec<u8>,
}

/// The X11 implementation of [`Input`].
pub(super) struct Keyboard {
    conn: RustConnection,
    root: Window,
    /// The device that injected keys come from; it has a map of its own.
    device: u16,
    mouse: Enigo,
    keymap: Option<Keymap>,
    slots: Slots,
    fence: Fence,
    held: Vec<Held>,
    buttons: Vec<MouseButton>,
}

impl Keyboard {
    pub(super) fn connect(display: &str) -> Result<Self, DisplayError> {
        let (conn, root) = connect(display)?;
        conn.xkb_use_extension(1, 0)?.reply()?;
        conn.xinput_xi_query_version(2, 2)?.reply()?;
        conn.xtest_get_version(2, 2)?.reply()?;
        let device = xtest_keyboard(&conn)?;
        let events = EventType::NEW_KEYBOARD_NOTIFY | EventType::MAP_NOTIFY;
        let all_parts = xkb::MapPart::from(0xffu8);
        conn.xkb_select_events(
            ID::USE_CORE_KBD.into(),
            EventType::from(0u16),
            events,
            all_parts,
            all_parts,
            &xkb::SelectEventsAux::new(),
        )?;
        let fence = Fence::new(&conn, root)?;
        let slots = Slots::recover(&conn, root, device)?;
        // After the recovery, because enigo wants a spare keycode even when it is only asked for the mouse.
        let settings =
            Settings { x11_display: Some(display.to_owned()), linux_delay: 0, ..Settings::default() };
        let mouse = Enigo::new(&settings).map_err(|e| DisplayError::Unsupported(e.to_string()))?;
        let (held, buttons) = (Vec::new(), Vec::new());
        Ok(Self { conn, root, device, mouse, keymap: None, slots, fence, held, buttons })
    }

    fn fake_key(&self, keycode: u8, press: Press) -> Outcome {
        let kind = if press == Press::Down { KEY_PRESS_EVENT } else { KEY_RELEASE_EVENT };
        self.conn.xtest_fake_input(kind, keycode, x11rb::CURRENT_TIME, x11rb::NONE, 0, 0, 0)?;
        Ok(())
    }

    /// Waits until the server has taken everything sent so far.
    fn sync(&self) -> Outcome {
        self.conn.get_input_focus()?.reply()?;
        Ok(())
    }

    /// The keyboard's state, and the map if it is not the one we know.
    fn refresh(&mut self) -> Outcome<(Keymap, State)> {
        let state = self.conn.xkb_get_state(CORE_KEYBOARD)?.reply()?;
        while let Some(event) = self.conn.poll_for_event()? {
            if matches!(
                event,
                Event::XkbMapNotify(_) | Event::XkbNewKeyboardNotify(_) | Event::MappingNotify(_)
            ) {
                self.keymap = None;
            }
        }
        if self.keymap.is_none() {
            let keymap = Keymap::read(&self.conn, self.device)?;
            self.slots.follow(&keymap);
            self.keymap = Some(keymap);
        }
        let state =
            State { group: state.group.into(), mods: bits(state.mods), locked: bits(state.locked_mods) };
        Ok((self.keymap.clone().unwrap_or_default(), state))
    }

    /// Finds the keys for a keysym, lending it a keycode if the layout has none.
    fn stroke(&mut self, sym: Sym, in_chord: bool) -> Outcome<(Keymap, Stroke)> {
        let (keymap, state) = self.refresh()?;
        let lent = |keycode: u8| self.slots.owns(keycode);
        // A letter of a chord means its key: ctrl+T is not ctrl+shift+t.
        if in_chord
            && keysym::is_letter(sym)
            && let Some(keycode) = keymap.find_key(sym, state, &lent)
        {
            return Ok((keymap, Stroke { keycode, mods: 0 }));
        }
        if let Some(stroke) = keymap.find(sym, State { mods: state.mods & !LOCK, ..state }, &lent) {
            return Ok((keymap, stroke));
        }
        if let Some(keycode) = keymap.find_key(sym, state, &lent) {
            return Ok((keymap, Stroke { keycode, mods: 0 }));
        }
        self.lend(&[sym], &Cancel::default())?;
        let stroke = self.slots.stroke(sym).ok_or_else(|| no_room(sym))?;
        Ok((keymap, stroke))
    }

    /// Puts keysyms on spare keycodes; waits first for programs that may still need what is there.
    fn lend(&mut self, syms: &[Sym], cancel: &Cancel) -> Outcome {
        let held: Vec<u8> = self.held.iter().flat_map(|h| h.keycodes.iter().copied()).collect();
        let plan = self.slots.plan(syms, &held);
        if plan.levels.is_empty() {
            return Ok(());
        }
        if plan.overwrites {
            self.fence.wait(&self.conn, cancel)?;
        }
        self.slots.record(&self.conn, self.root)?;
        let keymap = self.refresh()?.0;
        keymap::assign(&self.conn, self.device, &keymap, &plan.levels)?;
        self.keymap = None;
        self.slots.take(plan);
        self.fence.wait_for_manager(&self.conn, cancel)?;
        // Programs have seen the change before the first key comes. They would in any case, in order; this is for those
        // that reread the map lazily.
        self.fence.wait_if_cheap(&self.conn, cancel)
    }

    /// Takes all lent keycodes back, once nobody needs them any more.
    fn give_back(&mut self) -> Outcome {
        let cancel = Cancel::default();
        self.fence.wait(&self.conn, &cancel)?;
        let keymap = self.refresh()?.0;
        self.slots.restore(&self.conn, self.root, self.device, &keymap)?;
        self.keymap = None;
        self.fence.wait_for_manager(&self.conn, &cancel)
    }

    fn type_stroke(&self, keymap: &Keymap, stroke: Stroke) -> Outcome {
        let mods: Vec<u8> = keymap.modifier_keys(stroke.mods).collect();
        mods.iter().try_for_each(|&m| self.fake_key(m, Press::Down))?;
        self.fake_key(stroke.keycode, Press::Down)?;
        self.fake_key(stroke.keycode, Press::Up)?;
        mods.iter().rev().try_for_each(|&m| self.fake_key(m, Press::Up))
    }

    fn type_chars(&mut self, chars: &[char], interval: Duration, cancel: &Cancel) -> Outcome {
        let (mut keymap, state) = self.refresh()?;
        let mut found: BTreeMap<char, Option<Stroke>> = BTreeMap::new();
        let mut since_fence = 0;
        for (i, &c) in chars.iter().enumerate() {
            cancel.check()?;
            let sym = keysym::by_char(c).ok_or_else(|| untypable(c))?;
            let direct = *found.entry(c).or_insert_with(|| keymap.find(sym, state, &|k| self.slots.owns(k)));
            let stroke = if let Some(stroke) = direct {
                stroke
            } else {
                if self.slots.stroke(sym).is_none() {
                    let ahead = self.missing(&chars[i..], &keymap, state, &mut found);
                    self.lend(&ahead, cancel)?;
                    keymap = self.refresh()?.0;
                    since_fence = 0;
                }
                self.slots.use_stroke(sym).ok_or_else(|| no_room(sym))?
            };
            self.type_stroke(&keymap, stroke)?;
            since_fence += 1;
            if !interval.is_zero() {
                self.sync()?;
                cancel.sleep(interval)?;
            } else if since_fence == CHARS_PER_FENCE {
                self.fence.wait_if_cheap(&self.conn, cancel)?;
                since_fence = 0;
            }
        }
        self.sync()
    }

    /// The next distinct keysyms that need a lent keycode, as many as there is room for.
    fn missing(
        &self,
        chars: &[char],
        keymap: &Keymap,
        state: State,
        found: &mut BTreeMap<char, Option<Stroke>>,
    ) -> Vec<Sym> {
        let mut out = Vec::new();
        for &c in chars {
            let Some(sym) = keysym::by_char(c) else { continue };
            let direct = *found.entry(c).or_insert_with(|| keymap.find(sym, state, &|k| self.slots.owns(k)));
            if direct.is_none() && !out.contains(&sym) {
                if out.len() == self.slots.capacity() {
                    break;
                }
                out.push(sym);
            }
        }
        out
    }

    fn set_lock(&self, on: bool) -> Outcome {
        let mods = if on { ModMask::LOCK } else { ModMask::from(0u16) };
        let none = ModMask::from(0u16);
        self.conn.xkb_latch_lock_state(
            CORE_KEYBOARD,
            ModMask::LOCK,
            mods,
            false,
            xkb::Group::M1,
            none,
            false,
            0,
        )?;
        Ok(())
    }

    fn wait_for<T>(
        &self,
        deadline: Instant,
        mut wanted: impl FnMut(&Event) -> Option<T>,
    ) -> Outcome<Option<T>> {
        wait_for(&self.conn, &self.fence.map_changed, deadline, &Cancel::default(), &mut wanted)
    }

    fn enigo(result: Result<(), enigo::InputError>) -> Outcome {
        result.map_err(|e| InputError::Platform(e.to_string()))
    }
}

/// Reads events until one is wanted; none at the deadline.
fn wait_for<T>(
    conn: &RustConnection,
    map_changed: &Cell<bool>,
    deadline: Instant,
    cancel: &Cancel,
    wanted: &mut dyn FnMut(&Event) -> Option<T>,
) -> Outcome<Option<T>> {
    /// How soon a cancelled call is noticed.
    const SLICE: Duration = Duration::from_millis(200);
    conn.flush()?;
    loop {
        while let Some(event) = conn.poll_for_event()? {
            if changes_map(&event) {
                map_changed.set(true);
            }
            if let Some(found) = wanted(&event) {
                return Ok(Some(found));
            }
        }
        cancel.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec::try_from(left.min(SLICE)).ok();
        match poll(&mut [PollFd::new(conn.stream(), PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(InputError::Platform(e.to_string())),
        }
    }
}

fn changes_map(event: &Event) -> bool {
    matches!(event, Event::XkbMapNotify(_) | Event::XkbNewKeyboardNotify(_) | Event::MappingNotify(_))
}

fn no_room(sym: Sym) -> InputError {
    InputError::Platform(format!("the keymap has no spare key for keysym {sym:#x}"))
}

fn untypable(c: char) -> InputError {
    InputError::Invalid(format!("text: U+{:04X} cannot be typed", u32::from(c)))
}

fn xtest_keyboard(conn: &RustConnection) -> Result<u16, DisplayError> {
    let devices = conn.xinput_xi_query_device(xinput::Device::ALL)?.reply()?;
    let ours = devices.infos.iter().find(|d| {
        d.type_ == DeviceType::SLAVE_KEYBOARD && d.name.windows(14).any(|w| w == b"XTEST keyboard")
    });
    Ok(ours.map_or(CORE_KEYBOARD, |d| d.deviceid))
}

impl Input for Keyboard {
    fn size(&mut self) -> Outcome<(u32, u32)> {
        Ok(screen_size(&self.conn, self.root)?)
    }

    fn pointer(&mut self) -> Outcome<(i32, i32)> {
        let at = self.conn.query_pointer(self.root)?.reply()?;
        Ok((at.root_x.into(), at.root_y.into()))
    }

    fn check_key(&mut self, name: &str) -> Outcome {
        keysym::by_name(name).map(drop).ok_or_else(|| InputError::UnknownKey(name.to_owned()))
    }

    fn check_text(&mut self, text: &str) -> Outcome {
        match text.chars().find(|c| keysym::by_char(*c).is_none()) {
            Some(c) => Err(untypable(c)),
            None => Ok(()),
        }
    }

    fn move_to(&mut self, x: i32, y: i32) -> Outcome {
        self.sync()?;
        Self::enigo(self.mouse.move_mouse(x, y, Coordinate::Abs))
    }

    fn button(&mut self, button: MouseButton, press: Press) -> Outcome {
        self.sync()?;
        let (native, button) = match button {
            MouseButton::Unspecified | MouseButton::Left => (Button::Left, MouseButton::Left),
            MouseButton::Middle => (Button::Middle, button),
            MouseButton::Right => (Button::Right, button),
            MouseButton::Back => (Button::Back, button),
            MouseButton::Forward => (Button::Forward, button),
        };
        let direction = if press == Press::Down { Direction::Press } else { Direction::Release };
        Self::enigo(self.mouse.button(native, direction))?;
        self.buttons.retain(|b| *b != button);
        if press == Press::Down {
            self.buttons.push(button);
        }
        Ok(())
    }

    fn scroll(&mut self, right: i32, down: i32) -> Outcome {
        self.sync()?;
        Self::enigo(self.mouse.scroll(right, Axis::Horizontal))?;
        Self::enigo(self.mouse.scroll(down, Axis::Vertical))
    }

    fn key(&mut self, name: &str, press: Press, in_chord: bool) -> Outcome {
        let sym = keysym::by_name(name).ok_or_else(|| InputError::UnknownKey(name.to_owned()))?;
        match press {
            Press::Down => {
                let (keymap, stroke) = self.stroke(sym, in_chord)?;
                let mods: Vec<u8> = keymap.modifier_keys(stroke.mods).collect();
                for &keycode in mods.iter().chain([&stroke.keycode]) {
                    self.fake_key(keycode, Press::Down)?;
                }
                let keycodes = std::iter::once(stroke.keycode).chain(mods.into_iter().rev()).collect();
                self.slots.mark_used(stroke.keycode);
                self.held.push(Held { sym, keycodes });
            }
            Press::Up => {
                let keycodes = match self.held.iter().rposition(|h| h.sym == sym) {
                    Some(i) => self.held.remove(i).keycodes,
                    // Not ours: somebody else may hold it, and releasing a key that is up does nothing.
                    None => vec![self.stroke(sym, in_chord)?.1.keycode],
                };
                for keycode in keycodes {
                    self.fake_key(keycode, Press::Up)?;
                }
            }
        }
        self.sync()
    }

    fn text(&mut self, text: &str, interval: Duration, cancel: &Cancel) -> Outcome {
        // A line end of two characters is one key.
        let chars: Vec<char> = text.replace("\r\n", "\n").chars().collect();
        let state = self.refresh()?.1;
        // Caps Lock changes letters in ways that differ by program; the modifiers travel in each event, so that it can be
        // put back at once.
        let locked = state.locked & LOCK != 0;
        if locked {
            self.set_lock(false)?;
        }
        let typed = self.type_chars(&chars, interval, cancel);
        if locked {
            self.set_lock(true)?;
            self.sync()?;
        }
        typed
    }

    fn release_all(&mut self) -> Outcome {
        for held in std::mem::take(&mut self.held).into_iter().rev() {
            for keycode in held.keycodes {
                self.fake_key(keycode, Press::Up)?;
            }
        }
        self.sync()?;
        for button in std::mem::take(&mut self.buttons).into_iter().rev() {
            self.button(button, Press::Up)?;
        }
        Ok(())
    }

    fn probe(&mut self) -> Outcome<Probed> {
        let size = self.size()?;
        let pointer = self.conn.query_pointer(self.root)?.reply()?;
        let select = |mask: XIEventMask| {
            let mask = xinput::EventMask { deviceid: xinput::Device::ALL_MASTER.into(), mask: vec![mask] };
            self.conn.xinput_xi_select_events(self.root, &[mask])
        };
        select(XIEventMask::RAW_MOTION)?;
        let start = Instant::now();
        let (x, y) = (pointer.root_x, pointer.root_y);
        self.conn.xtest_fake_input(MOTION_NOTIFY_EVENT, 0, x11rb::CURRENT_TIME, self.root, x, y, 0)?;
        let seen = self.wait_for(start + PROBE_TIMEOUT, |event| match event {
            Event::XinputRawMotion(_) => Some(start.elapsed()),
            _ => None,
        })?;
        select(XIEventMask::from(0u32))?;
        self.conn.flush()?;
        let round_trip =
            seen.ok_or_else(|| InputError::Platform("injected motion was not seen within 2 s".into()))?;
        Ok(Probed { size, pointer: (x.into(), y.into()), round_trip })
    }

    fn idle(&mut self) -> Option<Duration> {
        // Not for a batch: nobody waits for it, and a program that hangs must not take lent keycodes with it.
        if !self.held.is_empty() || !self.slots.any_lent() {
            return None;
        }
        match self.give_back() {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, "keymap not restored yet");
                Some(Duration::from_secs(5))
            }
        }
    }
}
