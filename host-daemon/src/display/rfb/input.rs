//! A viewer's keys and pointer.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::display::hub::Hub;
use crate::model::input::{Action, InputEvent, MouseButton};
use crate::model::screen::{Point, Size};

/// Longest that one event may take: people notice when a key hangs, and go on.
const EVENT: Duration = Duration::from_secs(10);
/// Buttons by their bits.
const BUTTONS: [(u8, MouseButton); 3] =
    [(1, MouseButton::Left), (1 << 1, MouseButton::Middle), (1 << 2, MouseButton::Right)];
/// Notches of the wheel, to the right and down, by their bits.
const WHEEL: [(u8, (i32, i32)); 4] =
    [(1 << 3, (0, -1)), (1 << 4, (0, 1)), (1 << 5, (-1, 0)), (1 << 6, (1, 0))];

pub(super) struct Hands {
    hub: Hub,
    view_only: bool,
    /// Size of the screen that the viewer knows of, which its positions refer to.
    told: watch::Receiver<Size>,
    buttons: u8,
    at: Option<(u16, u16)>,
    /// Something was pressed that may not have been released.
    busy: bool,
}

impl Hands {
    pub(super) fn new(hub: Hub, view_only: bool, told: watch::Receiver<Size>) -> Self {
        Self { hub, view_only, told, buttons: 0, at: None, busy: false }
    }

    pub(super) async fn key(&mut self, keysym: u32, down: bool) {
        let event = match named(keysym) {
            Some(key) => InputEvent::Key {
                key,
                action: if down { Action::Press } else { Action::Release },
                hold: Duration::ZERO,
            },
            // Characters that a keyboard of the guest may not have are typed whole.
            None => match character(keysym) {
                Some(text) if down => {
                    InputEvent::Text { text: text.to_string().into(), interval: Duration::ZERO }
                }
                _ => return,
            },
        };
        self.send(vec![event]).await;
    }

    pub(super) async fn pointer(&mut self, buttons: u8, x: u16, y: u16) {
        let mut events = Vec::new();
        // One place outside would have the whole batch refused, and the release of a button with it.
        let size = *self.told.borrow();
        let inside =
            |at: u16, side: u32| i32::from(at).min(i32::try_from(side).map_or(i32::MAX, |side| side - 1));
        let to = Point { x: inside(x, size.width), y: inside(y, size.height) };
        if self.at != Some((x, y)) {
            self.at = Some((x, y));
            events.push(InputEvent::Move { to, relative: false, duration: Duration::ZERO, via: Vec::new() });
        }
        let before = std::mem::replace(&mut self.buttons, buttons);
        for (bit, button) in BUTTONS {
            match (before & bit != 0, buttons & bit != 0) {
                (false, true) => events.push(InputEvent::Button { button, action: Action::Press }),
                (true, false) => events.push(InputEvent::Button { button, action: Action::Release }),
                _ => {}
            }
        }
        for (bit, (delta_x, delta_y)) in WHEEL {
            if before & bit == 0 && buttons & bit != 0 {
                events.push(InputEvent::Scroll { at: None, delta_x, delta_y, pixels: Point::default() });
            }
        }
        if !events.is_empty() {
            self.send(events).await;
        }
    }

    /// Releases what is down, whether it went to the agent or, while there was none, to the hypervisor.
    pub(super) async fn let_go(&mut self) {
        if std::mem::take(&mut self.busy)
            && let Err(error) = self.hub.release_input(Instant::now() + EVENT).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "keys of a console may be held down");
        }
    }

    async fn send(&mut self, events: Vec<InputEvent>) {
        if self.view_only {
            return;
        }
        self.busy = true;
        let id = Uuid::now_v7().to_string();
        let size = Some(*self.told.borrow());
        if let Err(error) = self.hub.send_input(&id, events, size, Instant::now() + EVENT).await {
            // A key that nobody knows: the next one may do.
            tracing::debug!(error = &error as &dyn std::error::Error, "an event of a console is lost");
        }
    }
}

/// The character that a keysym stands for: Latin-1 is itself, the rest of Unicode has an offset.
fn character(keysym: u32) -> Option<char> {
    let code = match keysym {
        0x20..=0x7e | 0xa0..=0xff => keysym,
        0x0100_0100..=0x0110_ffff => keysym - 0x0100_0000,
        _ => return None,
    };
    char::from_u32(code).filter(|c| !c.is_control())
}

/// The name of a key that is pressed and released by itself; nothing for characters beyond ASCII.
fn named(keysym: u32) -> Option<String> {
    let name = match keysym {
        0x20 => "space",
        0x21..=0x7e => return character(keysym).map(String::from),
        0xff08 => "BackSpace",
        0xff09 => "Tab",
        0xfe20 => "ISO_Left_Tab",
        0xff0d => "Return",
        0xff13 => "Pause",
        0xff14 => "Scroll_Lock",
        0xff15 => "Sys_Req",
        0xff1b => "Escape",
        0xff50 => "Home",
        0xff51 => "Left",
        0xff52 => "Up",
        0xff53 => "Right",
        0xff54 => "Down",
        0xff55 => "Page_Up",
        0xff56 => "Page_Down",
        0xff57 => "End",
        0xff61 => "Print",
        0xff63 => "Insert",
        0xff67 => "Menu",
        0xff7f => "Num_Lock",
        0xff8d => "KP_Enter",
        0xff95 => "KP_Home",
        0xff96 => "KP_Left",
        0xff97 => "KP_Up",
        0xff98 => "KP_Right",
        0xff99 => "KP_Down",
        0xff9a => "KP_Page_Up",
        0xff9b => "KP_Page_Down",
        0xff9c => "KP_End",
        0xff9d => "KP_Begin",
        0xff9e => "KP_Insert",
        0xff9f => "KP_Delete",
        0xffaa => "KP_Multiply",
        0xffab => "KP_Add",
        0xffad => "KP_Subtract",
        0xffae => "KP_Decimal",
        0xffaf => "KP_Divide",
        0xffb0..=0xffb9 => return Some(format!("KP_{}", keysym - 0xffb0)),
        0xffbe..=0xffd5 => return Some(format!("F{}", keysym - 0xffbe + 1)),
        0xffe1 => "Shift_L",
        0xffe2 => "Shift_R",
        0xffe3 => "Control_L",
        0xffe4 => "Control_R",
        0xffe5 => "Caps_Lock",
        0xffe7 => "Meta_L",
        0xffe8 => "Meta_R",
        0xffe9 => "Alt_L",
        0xffea => "Alt_R",
        0xffeb => "Super_L",
        0xffec => "Super_R",
        0xfe03 => "ISO_Level3_Shift",
        0xffff => "Delete",
        _ => return None,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keysyms_are_keys_or_characters() {
        let name = |keysym| named(keysym).unwrap_or_default();
        assert_eq!([name(0x61), name(0x20), name(0xff0d), name(0xffc9)], ["a", "space", "Return", "F12"]);
        // The keypad without Num Lock.
        let pad = [
            "Home",
            "Left",
            "Up",
            "Right",
            "Down",
            "Page_Up",
            "Page_Down",
            "End",
            "Begin",
            "Insert",
            "Delete",
        ];
        assert_eq!((0xff95..=0xff9f).map(name).collect::<Vec<_>>(), pad.map(|key| format!("KP_{key}")));
        assert_eq!(name(0xe4), "");
        assert_eq!(character(0xe4), Some('ä'));
        assert_eq!(character(0x0100_043c), Some('м'));
        assert_eq!([character(0xffff_ffff), character(0x0100_0007), character(0xff0d)], [None; 3]);
    }
}
