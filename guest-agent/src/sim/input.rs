//! The keyboard and the mouse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hvkube_proto::guest::v1 as pb;

use super::computer::Computer;
use crate::display::{Cancel, Input, InputError, Press, Probed};
use crate::platform::keysym;

pub(super) struct Mouse(Arc<Computer>);

impl Mouse {
    pub(super) fn new(computer: Arc<Computer>) -> Self {
        Self(computer)
    }
}

impl Input for Mouse {
    fn size(&mut self) -> Result<(u32, u32), InputError> {
        Ok(self.0.hardware.screen)
    }

    fn pointer(&mut self) -> Result<(i32, i32), InputError> {
        Ok(self.0.lock().state.memory.pointer)
    }

    fn check_key(&mut self, name: &str) -> Result<(), InputError> {
        match keysym::by_name(name) {
            Some(_) => Ok(()),
            None => Err(InputError::UnknownKey(name.to_owned())),
        }
    }

    fn check_text(&mut self, text: &str) -> Result<(), InputError> {
        match text.chars().find(|c| keysym::by_char(*c).is_none()) {
            None => Ok(()),
            Some(c) => Err(InputError::Invalid(format!("text: {c:?} is not a character that can be typed"))),
        }
    }

    fn move_to(&mut self, x: i32, y: i32) -> Result<(), InputError> {
        self.0.move_to(x, y);
        Ok(())
    }

    fn button(&mut self, button: pb::MouseButton, press: Press) -> Result<(), InputError> {
        // Nothing on this desktop has a meaning for the others.
        if matches!(button, pb::MouseButton::Unspecified | pb::MouseButton::Left) {
            self.0.button(press == Press::Down);
        }
        Ok(())
    }

    fn scroll(&mut self, _right: i32, _down: i32) -> Result<(), InputError> {
        Ok(())
    }

    fn key(&mut self, name: &str, press: Press, _in_chord: bool) -> Result<(), InputError> {
        if self.0.key(name, press == Press::Down) {
            Ok(())
        } else {
            Err(InputError::UnknownKey(name.to_owned()))
        }
    }

    fn text(&mut self, text: &str, interval: Duration, cancel: &Cancel) -> Result<(), InputError> {
        for (i, c) in text.chars().enumerate() {
            if i > 0 {
                cancel.sleep(interval)?;
            }
            match c {
                '\u{8}' | '\u{7f}' => drop(self.0.key("BackSpace", true)),
                '\r' => self.0.type_char('\n'),
                '\u{1b}' => drop(self.0.key("Escape", true)),
                c => self.0.type_char(c),
            }
        }
        Ok(())
    }

    fn release_all(&mut self) -> Result<(), InputError> {
        self.0.release_all();
        Ok(())
    }

    fn probe(&mut self) -> Result<Probed, InputError> {
        let began = Instant::now();
        let inner = self.0.lock();
        if inner.frozen {
            return Err(InputError::Platform("the guest stands still".into()));
        }
        let pointer = inner.state.memory.pointer;
        Ok(Probed { size: self.0.hardware.screen, pointer, round_trip: began.elapsed() })
    }

    fn idle(&mut self) -> Option<Duration> {
        None
    }
}
