//! Names of keys to X11 keysyms: X11's own names, Windows' virtual keys, single characters and what people write.

use xkeysym::{Keysym, key};

/// An X11 keysym.
pub(crate) type Sym = u32;

/// The keysym of a name, if there is one.
pub(crate) fn by_name(name: &str) -> Option<Sym> {
    let mut chars = name.chars();
    if let (Some(c), None) = (chars.next(), chars.next()) {
        return by_char(c);
    }
    if let Some(vk) = name.strip_prefix("VK_") {
        return virtual_key(vk);
    }
    let name = name.strip_prefix("XK_").unwrap_or(name);
    x11_name(name).or_else(|| alias(name)).or_else(|| code_point(name))
}

/// The keysym that types `c`; control characters have the keys that people mean by them.
pub(crate) fn by_char(c: char) -> Option<Sym> {
    match c {
        '\n' | '\r' => Some(key::Return),
        '\t' => Some(key::Tab),
        '\u{8}' => Some(key::BackSpace),
        '\u{1b}' => Some(key::Escape),
        '\u{7f}' => Some(key::Delete),
        c if c.is_control() => None,
        c => Some(Keysym::from_char(c)).filter(|s| *s != Keysym::NoSymbol).map(Keysym::raw),
    }
}

/// The character that a key with this keysym types; none for keys that do something else, the keypad among them.
pub(crate) fn to_char(sym: Sym) -> Option<char> {
    if (0xff00..=0xffff).contains(&sym) { None } else { Keysym::new(sym).key_char() }
}

/// Whether a key with this keysym has upper and lower case.
#[cfg(any(feature = "x11", test))]
pub(crate) fn is_letter(sym: Sym) -> bool {
    to_char(sym).is_some_and(|c| c.is_lowercase() || c.is_uppercase())
}

/// `Return`, `XF86AudioPlay`: all blocks in which names are given. The tables know only the way from keysym to name.
fn x11_name(name: &str) -> Option<Sym> {
    // XF86XK_AudioPlay in the header is XF86AudioPlay to everyone else.
    let header_name =
        name.strip_prefix("XF86").map(|rest| format!("XF86XK_{}", rest.trim_start_matches("XK_")));
    let blocks = [
        0xff00..=0xffff,
        0xfe00..=0xfeff,
        0x20..=0x20ff,
        0x1008_fe00..=0x1008_ffff,
        0x0100_0100..=0x0100_28ff,
    ];
    blocks.into_iter().flatten().find(|&sym| {
        let known = Keysym::new(sym).name();
        known.is_some_and(|k| k.strip_prefix("XK_").unwrap_or(k) == name || header_name.as_deref() == Some(k))
    })
}

/// `U0436` and `U+0436`.
fn code_point(name: &str) -> Option<Sym> {
    let digits = name.strip_prefix("U+").or_else(|| name.strip_prefix('U'))?;
    if !(4..=6).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    by_char(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?)
}

/// What people write in shortcuts, in any case.
fn alias(name: &str) -> Option<Sym> {
    Some(match name.to_ascii_lowercase().as_str() {
        "ctrl" | "control" => key::Control_L,
        "shift" => key::Shift_L,
        "alt" | "option" => key::Alt_L,
        "altgr" => key::ISO_Level3_Shift,
        "super" | "win" | "windows" | "cmd" | "command" => key::Super_L,
        "meta" => key::Meta_L,
        "enter" | "return" => key::Return,
        "esc" | "escape" => key::Escape,
        "tab" => key::Tab,
        "space" => key::space,
        "backspace" => key::BackSpace,
        "del" | "delete" => key::Delete,
        "ins" | "insert" => key::Insert,
        "home" => key::Home,
        "end" => key::End,
        "pgup" | "pageup" | "page_up" => key::Page_Up,
        "pgdn" | "pagedown" | "page_down" => key::Page_Down,
        "up" => key::Up,
        "down" => key::Down,
        "left" => key::Left,
        "right" => key::Right,
        "capslock" => key::Caps_Lock,
        "numlock" => key::Num_Lock,
        "scrolllock" => key::Scroll_Lock,
        "printscreen" | "prtsc" => key::Print,
        "menu" => key::Menu,
        "plus" => key::plus,
        "minus" => key::minus,
        other => return function_key(other.strip_prefix('f')?),
    })
}

fn function_key(number: &str) -> Option<Sym> {
    let number: u32 = number.parse().ok()?;
    (1..=35).contains(&number).then(|| key::F1 + number - 1)
}

/// The part behind `VK_`.
fn virtual_key(name: &str) -> Option<Sym> {
    let mut chars = name.chars();
    if let (Some(c @ ('0'..='9' | 'A'..='Z')), None) = (chars.next(), chars.next()) {
        return by_char(c.to_ascii_lowercase());
    }
    if let Some(digit) = name.strip_prefix("NUMPAD") {
        let digit: u32 = digit.parse().ok()?;
        return (digit <= 9).then(|| key::KP_0 + digit);
    }
    if let Some(symbol) = name.strip_prefix('F').and_then(function_key) {
        return Some(symbol).filter(|s| *s <= key::F24);
    }
    Some(match name {
        "BACK" => key::BackSpace,
        "TAB" => key::Tab,
        "CLEAR" => key::Clear,
        "RETURN" => key::Return,
        "SHIFT" | "LSHIFT" => key::Shift_L,
        "RSHIFT" => key::Shift_R,
        "CONTROL" | "LCONTROL" => key::Control_L,
        "RCONTROL" => key::Control_R,
        "MENU" | "LMENU" => key::Alt_L,
        "RMENU" => key::Alt_R,
        "PAUSE" => key::Pause,
        "CANCEL" => key::Break,
        "CAPITAL" => key::Caps_Lock,
        "ESCAPE" => key::Escape,
        "SPACE" => key::space,
        "PRIOR" => key::Page_Up,
        "NEXT" => key::Page_Down,
        "END" => key::End,
        "HOME" => key::Home,
        "LEFT" => key::Left,
        "UP" => key::Up,
        "RIGHT" => key::Right,
        "DOWN" => key::Down,
        "SELECT" => key::Select,
        "PRINT" | "SNAPSHOT" => key::Print,
        "EXECUTE" => key::Execute,
        "INSERT" => key::Insert,
        "DELETE" => key::Delete,
        "HELP" => key::Help,
        "LWIN" => key::Super_L,
        "RWIN" => key::Super_R,
        "APPS" => key::Menu,
        "MULTIPLY" => key::KP_Multiply,
        "ADD" => key::KP_Add,
        "SEPARATOR" => key::KP_Separator,
        "SUBTRACT" => key::KP_Subtract,
        "DECIMAL" => key::KP_Decimal,
        "DIVIDE" => key::KP_Divide,
        "NUMLOCK" => key::Num_Lock,
        "SCROLL" => key::Scroll_Lock,
        "OEM_1" => key::semicolon,
        "OEM_PLUS" => key::equal,
        "OEM_COMMA" => key::comma,
        "OEM_MINUS" => key::minus,
        "OEM_PERIOD" => key::period,
        "OEM_2" => key::slash,
        "OEM_3" => key::grave,
        "OEM_4" => key::bracketleft,
        "OEM_5" => key::backslash,
        "OEM_6" => key::bracketright,
        "OEM_7" => key::apostrophe,
        "OEM_102" => key::less,
        "VOLUME_MUTE" => 0x1008_ff12,
        "VOLUME_DOWN" => 0x1008_ff11,
        "VOLUME_UP" => 0x1008_ff13,
        "MEDIA_PLAY_PAUSE" => 0x1008_ff14,
        "MEDIA_STOP" => 0x1008_ff15,
        "MEDIA_PREV_TRACK" => 0x1008_ff16,
        "MEDIA_NEXT_TRACK" => 0x1008_ff17,
        "BROWSER_BACK" => 0x1008_ff26,
        "BROWSER_FORWARD" => 0x1008_ff27,
        "BROWSER_REFRESH" => 0x1008_ff29,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_kinds() {
        for (name, sym) in [
            ("Return", key::Return),
            ("XK_Return", key::Return),
            ("VK_RETURN", key::Return),
            ("enter", key::Return),
            ("Control_R", key::Control_R),
            ("VK_RCONTROL", key::Control_R),
            ("CTRL", key::Control_L),
            ("ISO_Level3_Shift", key::ISO_Level3_Shift),
            ("a", 'a' as u32),
            ("VK_A", 'a' as u32),
            ("é", 0xe9),
            ("ж", key::Cyrillic_zhe),
            ("Cyrillic_zhe", key::Cyrillic_zhe),
            ("中", 0x0100_4e2d),
            ("U4E2D", 0x0100_4e2d),
            ("U+1F600", 0x0101_f600),
            ("F12", key::F12),
            ("f5", key::F5),
            ("VK_F24", key::F24),
            ("VK_NUMPAD7", key::KP_7),
            ("KP_Enter", key::KP_Enter),
            ("XF86AudioPlay", 0x1008_ff14),
            ("plus", '+' as u32),
            ("+", '+' as u32),
            ("space", ' ' as u32),
            ("Up", key::Up),
        ] {
            assert_eq!(by_name(name), Some(sym), "{name}");
        }
        for name in ["", "NoSuchKey", "VK_NOPE", "VK_F25", "U12", "UD800", "F36", "ctrl+a", "\u{1}"] {
            assert_eq!(by_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn characters_that_keys_type() {
        assert_eq!(to_char(key::Cyrillic_zhe), Some('ж'));
        assert_eq!(to_char(key::KP_5), None, "the keypad depends on Num Lock");
        assert_eq!(to_char(key::dead_acute), None);
        assert!(is_letter('q' as u32) && is_letter(key::Cyrillic_ZHE) && !is_letter('+' as u32));
        assert_eq!(by_char('\u{fdd0}'), None, "not a character");
    }
}
