//! The desktop as a picture to be drawn and a few rules of what input does; no I/O.

use super::Memory;
use super::state::Clip;
use crate::display::Rect;
use crate::platform::keysym::{self, Sym};

/// Longest text that the field takes, in bytes; what is typed beyond it is not taken.
pub const MAX_TEXT: usize = 4096;

const RETURN: Sym = 0xff0d;
const KEYPAD_ENTER: Sym = 0xff8d;
const BACKSPACE: Sym = 0xff08;
const DELETE: Sym = 0xffff;
const TAB: Sym = 0xff09;
const ESCAPE: Sym = 0xff1b;

/// Where things are on a screen of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the screen.
    pub screen: (u32, u32),
    /// Bar at the top, with the machine's name.
    pub panel: Rect,
    /// Window with the text field.
    pub notes: Rect,
    /// The text field.
    pub field: Rect,
    /// Window with the button.
    pub counter: Rect,
    /// Where the count is shown.
    pub count: Rect,
    /// The button.
    pub button: Rect,
}

/// Height of the panel and of windows' titles.
pub(super) const BAR: u32 = 20;
const MARGIN: u32 = 8;

impl Layout {
    /// For a screen; one that is too small for windows gets windows of a pixel.
    #[must_use]
    pub fn new((width, height): (u32, u32)) -> Self {
        let rect = |x: u32, y: u32, w: u32, h: u32| {
            let (x, y) = (x.min(width - 1), y.min(height - 1));
            Rect { x, y, width: w.clamp(1, width - x), height: h.clamp(1, height - y) }
        };
        let (width, height) = (width.max(1), height.max(1));
        let (usable, top) = (height.saturating_sub(BAR), BAR);
        let notes = rect(width / 20, top + usable / 10, width / 2, usable / 2);
        let counter = rect(width * 6 / 10, top + usable / 5, width * 3 / 10, usable * 2 / 5);
        let inner = |window: Rect, from: u32, parts: u32| {
            let room = window.height.saturating_sub(BAR + 2 * MARGIN);
            rect(
                window.x + MARGIN,
                window.y + BAR + MARGIN + room * from / 2,
                window.width.saturating_sub(2 * MARGIN),
                (room * parts / 2).saturating_sub(if parts == 2 { 0 } else { MARGIN / 2 }),
            )
        };
        Self {
            screen: (width, height),
            panel: rect(0, 0, width, BAR),
            notes,
            field: inner(notes, 0, 2),
            counter,
            count: inner(counter, 0, 1),
            button: inner(counter, 1, 1),
        }
    }

    /// Middle of a rectangle.
    #[must_use]
    pub fn middle(rect: Rect) -> (i32, i32) {
        let half = |at: u32, length: u32| i32::try_from(at + length / 2).unwrap_or(i32::MAX);
        (half(rect.x, rect.width), half(rect.y, rect.height))
    }
}

fn hits(rect: Rect, (x, y): (i32, i32)) -> bool {
    Rect::clipped(x, y, 1, 1, (u32::MAX, u32::MAX)).is_some_and(|point| rect.contains(&point))
}

/// What is held down; not part of what a guest remembers, because a session's end releases it.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) shift: bool,
    pub(super) command: bool,
    /// The left button went down on the button.
    pub(super) pressed: bool,
}

/// The left button goes down or up; gives what has changed on the screen.
pub(super) fn button(layout: &Layout, memory: &mut Memory, held: &mut Held, down: bool) -> Option<Rect> {
    let on_button = hits(layout.button, memory.pointer);
    if !down {
        let clicked = std::mem::take(&mut held.pressed) && on_button;
        if !clicked {
            return None;
        }
        memory.count = memory.count.saturating_add(1);
        return Some(layout.count);
    }
    held.pressed = on_button;
    let focused = if hits(layout.notes, memory.pointer) {
        true
    } else if hits(layout.counter, memory.pointer) {
        false
    } else {
        memory.focused
    };
    focus(layout, memory, focused)
}

/// The window with the field gets the focus, or the other one does.
pub(super) fn focus(layout: &Layout, memory: &mut Memory, notes: bool) -> Option<Rect> {
    let changes = notes != memory.focused || memory.selected;
    (memory.focused, memory.selected) = (notes, false);
    changes.then_some(layout.field)
}

/// A key goes down or up.
pub(super) fn key(
    layout: &Layout,
    memory: &mut Memory,
    held: &mut Held,
    sym: Sym,
    down: bool,
) -> Option<Rect> {
    match sym {
        0xffe1 | 0xffe2 => held.shift = down,
        // Control, Meta, Alt, Super and Hyper: what is pressed with them is a command, not text.
        0xffe3 | 0xffe4 | 0xffe7..=0xffee => held.command = down,
        _ if !down => {}
        _ if held.command => {
            return keysym::to_char(sym).and_then(|c| command(layout, memory, c.to_ascii_lowercase()));
        }
        RETURN | KEYPAD_ENTER => return type_char(layout, memory, '\n'),
        TAB => return type_char(layout, memory, '\t'),
        BACKSPACE | DELETE => return erase(layout, memory, sym == BACKSPACE),
        ESCAPE => {
            if std::mem::take(&mut memory.selected) {
                return Some(layout.field);
            }
        }
        _ => {
            let c = keysym::to_char(sym)?;
            let c = if held.shift { c.to_uppercase().next().unwrap_or(c) } else { c };
            return type_char(layout, memory, c);
        }
    }
    None
}

/// A letter is pressed with Ctrl; gives the field where that touches what is remembered.
fn command(layout: &Layout, memory: &mut Memory, letter: char) -> Option<Rect> {
    if !memory.focused {
        return None;
    }
    match letter {
        'a' => memory.selected = !memory.text.is_empty(),
        'c' | 'x' if memory.selected => {
            memory.clipboard = Some(Clip::Text(memory.text.clone()));
            if letter == 'x' {
                (memory.text, memory.selected) = (String::new(), false);
            }
        }
        'v' => {
            let Some(Clip::Text(text)) = memory.clipboard.clone() else { return None };
            for c in text.chars() {
                type_char(layout, memory, c);
            }
        }
        _ => return None,
    }
    Some(layout.field)
}

/// A character is typed.
pub(super) fn type_char(layout: &Layout, memory: &mut Memory, c: char) -> Option<Rect> {
    if !memory.focused {
        return None;
    }
    if std::mem::take(&mut memory.selected) {
        memory.text.clear();
    }
    if memory.text.len() + c.len_utf8() <= MAX_TEXT {
        memory.text.push(c);
    }
    Some(layout.field)
}

fn erase(layout: &Layout, memory: &mut Memory, last: bool) -> Option<Rect> {
    if !memory.focused || memory.text.is_empty() {
        return None;
    }
    if std::mem::take(&mut memory.selected) {
        memory.text = String::new();
    } else if last {
        memory.text.pop();
    } else {
        // The caret is at the end; nothing stands after it.
        return None;
    }
    Some(layout.field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_button_counts_whole_clicks_and_the_field_takes_text_while_it_has_the_focus() {
        let layout = Layout::new((800, 600));
        let (mut memory, mut held) = (Memory::default(), Held::default());
        memory.pointer = Layout::middle(layout.button);
        button(&layout, &mut memory, &mut held, true);
        assert_eq!(button(&layout, &mut memory, &mut held, false), Some(layout.count));
        button(&layout, &mut memory, &mut held, true);
        memory.pointer = (0, 0);
        assert_eq!(button(&layout, &mut memory, &mut held, false), None, "released elsewhere");
        assert_eq!(memory.count, 1);
        assert_eq!(type_char(&layout, &mut memory, 'x'), None, "the other window has the focus");
        memory.pointer = Layout::middle(layout.field);
        button(&layout, &mut memory, &mut held, true);
        let mut press = |name: &str, down| {
            let sym = keysym::by_name(name).expect("a key");
            key(&layout, &mut memory, &mut held, sym, down);
            memory.text.clone()
        };
        press("h", true);
        press("Shift_L", true);
        press("i", true);
        press("Shift_L", false);
        assert_eq!(press("Return", true), "hI\n");
        assert_eq!(press("BackSpace", true), "hI");
        press("Control_L", true);
        assert_eq!(press("a", true), "hI", "selected");
        assert_eq!(press("x", true), "", "cut");
        assert_eq!(press("v", true), "hI");
        assert_eq!(press("v", true), "hIhI");
        press("Control_L", false);
        assert_eq!(press("z", true), "hIhIz");
    }

    #[test]
    fn everything_lies_on_the_screen_whatever_its_size() {
        for size in [(1, 1), (8, 8), (33, 21), (320, 200), (800, 600), (7680, 4320)] {
            let layout = Layout::new(size);
            let screen = Rect { x: 0, y: 0, width: size.0, height: size.1 };
            let parts =
                [layout.panel, layout.notes, layout.field, layout.counter, layout.count, layout.button];
            assert!(parts.iter().all(|part| screen.contains(part)), "{layout:?}");
        }
    }
}
