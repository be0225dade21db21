//! Names of keys.
//!
//! Clients may use X11 keysym names (`Return`), Windows virtual key names (`VK_RETURN`), the everyday names of modifiers
//! and common keys (`ctrl`, `enter`), or a single character. [`canonical`] turns them all into keysym names or single
//! characters. The agent in the guest knows every keysym and has the last word: a name of the right shape that is not in
//! these tables is passed on, and the agent refuses a batch with an unknown one before it does any of it.

/// Longest key name in bytes; keysym names are shorter.
pub const MAX_NAME: usize = 64;

/// Everyday names (lower case) and their keysyms.
const ALIASES: &[(&str, &str)] = &[
    ("ctrl", "Control_L"),
    ("control", "Control_L"),
    ("lctrl", "Control_L"),
    ("lcontrol", "Control_L"),
    ("ctrl_l", "Control_L"),
    ("rctrl", "Control_R"),
    ("rcontrol", "Control_R"),
    ("ctrl_r", "Control_R"),
    ("shift", "Shift_L"),
    ("lshift", "Shift_L"),
    ("rshift", "Shift_R"),
    ("shift_l", "Shift_L"),
    ("shift_r", "Shift_R"),
    ("alt", "Alt_L"),
    ("lalt", "Alt_L"),
    ("ralt", "Alt_R"),
    ("alt_l", "Alt_L"),
    ("alt_r", "Alt_R"),
    ("altgr", "ISO_Level3_Shift"),
    ("super", "Super_L"),
    ("lsuper", "Super_L"),
    ("rsuper", "Super_R"),
    ("win", "Super_L"),
    ("windows", "Super_L"),
    ("lwin", "Super_L"),
    ("rwin", "Super_R"),
    ("meta", "Super_L"),
    ("cmd", "Super_L"),
    ("command", "Super_L"),
    ("enter", "Return"),
    ("return", "Return"),
    ("esc", "Escape"),
    ("escape", "Escape"),
    ("tab", "Tab"),
    ("space", "space"),
    ("spacebar", "space"),
    ("backspace", "BackSpace"),
    ("bksp", "BackSpace"),
    ("del", "Delete"),
    ("delete", "Delete"),
    ("ins", "Insert"),
    ("insert", "Insert"),
    ("home", "Home"),
    ("end", "End"),
    ("pageup", "Page_Up"),
    ("page_up", "Page_Up"),
    ("pgup", "Page_Up"),
    ("pagedown", "Page_Down"),
    ("page_down", "Page_Down"),
    ("pgdn", "Page_Down"),
    ("up", "Up"),
    ("down", "Down"),
    ("left", "Left"),
    ("right", "Right"),
    ("capslock", "Caps_Lock"),
    ("caps_lock", "Caps_Lock"),
    ("numlock", "Num_Lock"),
    ("scrolllock", "Scroll_Lock"),
    ("printscreen", "Print"),
    ("prtsc", "Print"),
    ("print", "Print"),
    ("pause", "Pause"),
    ("menu", "Menu"),
];

/// Windows virtual keys without their `VK_` and their keysyms; digits, letters and function keys follow a rule.
const VIRTUAL_KEYS: &[(&str, &str)] = &[
    ("BACK", "BackSpace"),
    ("TAB", "Tab"),
    ("CLEAR", "Clear"),
    ("RETURN", "Return"),
    ("SHIFT", "Shift_L"),
    ("CONTROL", "Control_L"),
    ("MENU", "Alt_L"),
    ("PAUSE", "Pause"),
    ("CAPITAL", "Caps_Lock"),
    ("KANA", "Kana_Lock"),
    ("HANGUL", "Hangul"),
    ("JUNJA", "Hangul_Jeonja"),
    ("HANJA", "Hangul_Hanja"),
    ("KANJI", "Kanji"),
    ("ESCAPE", "Escape"),
    ("CONVERT", "Henkan_Mode"),
    ("NONCONVERT", "Muhenkan"),
    ("MODECHANGE", "Mode_switch"),
    ("SPACE", "space"),
    ("PRIOR", "Page_Up"),
    ("NEXT", "Page_Down"),
    ("END", "End"),
    ("HOME", "Home"),
    ("LEFT", "Left"),
    ("UP", "Up"),
    ("RIGHT", "Right"),
    ("DOWN", "Down"),
    ("SELECT", "Select"),
    ("PRINT", "Print"),
    ("EXECUTE", "Execute"),
    ("SNAPSHOT", "Print"),
    ("INSERT", "Insert"),
    ("DELETE", "Delete"),
    ("HELP", "Help"),
    ("LWIN", "Super_L"),
    ("RWIN", "Super_R"),
    ("APPS", "Menu"),
    ("SLEEP", "XF86Sleep"),
    ("MULTIPLY", "KP_Multiply"),
    ("ADD", "KP_Add"),
    ("SEPARATOR", "KP_Separator"),
    ("SUBTRACT", "KP_Subtract"),
    ("DECIMAL", "KP_Decimal"),
    ("DIVIDE", "KP_Divide"),
    ("NUMLOCK", "Num_Lock"),
    ("SCROLL", "Scroll_Lock"),
    ("LSHIFT", "Shift_L"),
    ("RSHIFT", "Shift_R"),
    ("LCONTROL", "Control_L"),
    ("RCONTROL", "Control_R"),
    ("LMENU", "Alt_L"),
    ("RMENU", "Alt_R"),
    ("BROWSER_BACK", "XF86Back"),
    ("BROWSER_FORWARD", "XF86Forward"),
    ("BROWSER_REFRESH", "XF86Refresh"),
    ("BROWSER_STOP", "XF86Stop"),
    ("BROWSER_SEARCH", "XF86Search"),
    ("BROWSER_FAVORITES", "XF86Favorites"),
    ("BROWSER_HOME", "XF86HomePage"),
    ("VOLUME_MUTE", "XF86AudioMute"),
    ("VOLUME_DOWN", "XF86AudioLowerVolume"),
    ("VOLUME_UP", "XF86AudioRaiseVolume"),
    ("MEDIA_NEXT_TRACK", "XF86AudioNext"),
    ("MEDIA_PREV_TRACK", "XF86AudioPrev"),
    ("MEDIA_STOP", "XF86AudioStop"),
    ("MEDIA_PLAY_PAUSE", "XF86AudioPlay"),
    ("LAUNCH_MAIL", "XF86Mail"),
    ("LAUNCH_MEDIA_SELECT", "XF86AudioMedia"),
    ("LAUNCH_APP1", "XF86Launch0"),
    ("LAUNCH_APP2", "XF86Launch1"),
    ("OEM_1", "semicolon"),
    ("OEM_PLUS", "equal"),
    ("OEM_COMMA", "comma"),
    ("OEM_MINUS", "minus"),
    ("OEM_PERIOD", "period"),
    ("OEM_2", "slash"),
    ("OEM_3", "grave"),
    ("OEM_4", "bracketleft"),
    ("OEM_5", "backslash"),
    ("OEM_6", "bracketright"),
    ("OEM_7", "apostrophe"),
    ("OEM_102", "less"),
];

/// The keysym name or single character that a client's name stands for; nothing for a name that no keyboard has.
#[must_use]
pub fn canonical(name: &str) -> Option<String> {
    let mut chars = name.chars();
    if let (Some(only), None) = (chars.next(), chars.next()) {
        return (!only.is_control()).then(|| name.to_owned());
    }
    let shaped = name.len() <= MAX_NAME
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'+');
    if !shaped {
        return None;
    }
    if name.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case("VK_")) {
        return virtual_key(&name[3..].to_ascii_uppercase());
    }
    if let Some(hex) = name.strip_prefix("U+") {
        let char = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32)?;
        return (!char.is_control()).then(|| char.to_string());
    }
    if name.contains('+') {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    if let Some((_, keysym)) = ALIASES.iter().find(|(alias, _)| *alias == lower) {
        return Some((*keysym).to_owned());
    }
    if let Some(number) = function_key(&lower) {
        return Some(number);
    }
    Some(name.to_owned())
}

fn function_key(lower: &str) -> Option<String> {
    let number: u32 = lower.strip_prefix('f')?.parse().ok()?;
    (1..=35).contains(&number).then(|| format!("F{number}"))
}

fn virtual_key(name: &str) -> Option<String> {
    if let Some((_, keysym)) = VIRTUAL_KEYS.iter().find(|(known, _)| *known == name) {
        return Some((*keysym).to_owned());
    }
    if let [only] = name.as_bytes()
        && only.is_ascii_alphanumeric()
    {
        return Some(name.to_ascii_lowercase());
    }
    if let Some(digit) = name.strip_prefix("NUMPAD") {
        let digit: u32 = digit.parse().ok()?;
        return (digit <= 9).then(|| format!("KP_{digit}"));
    }
    function_key(&name.to_ascii_lowercase()).filter(|_| !name.starts_with("F0"))
}

/// The names in a chord, `ctrl+shift+t`; the key `+` may stand last (`ctrl++`) or be called `plus`.
#[must_use]
pub fn parse_chord(text: &str) -> Vec<String> {
    if text == "+" {
        return vec![text.to_owned()];
    }
    let (text, plus) = match text.strip_suffix("++") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let mut names: Vec<String> = text.split('+').map(|name| name.trim().to_owned()).collect();
    if plus {
        names.push("+".to_owned());
    }
    names
}

/// The key of a US keyboard that types a character: its unshifted character or keysym name, and whether Shift is held.
#[must_use]
pub fn us_key(char: char) -> Option<(String, bool)> {
    const SHIFTED: &[(char, char)] = &[
        ('!', '1'),
        ('@', '2'),
        ('#', '3'),
        ('$', '4'),
        ('%', '5'),
        ('^', '6'),
        ('&', '7'),
        ('*', '8'),
        ('(', '9'),
        (')', '0'),
        ('_', '-'),
        ('+', '='),
        ('{', '['),
        ('}', ']'),
        ('|', '\\'),
        (':', ';'),
        ('"', '\''),
        ('<', ','),
        ('>', '.'),
        ('?', '/'),
        ('~', '`'),
    ];
    match char {
        '\n' | '\r' => Some(("Return".to_owned(), false)),
        '\t' => Some(("Tab".to_owned(), false)),
        ' ' => Some(("space".to_owned(), false)),
        'A'..='Z' => Some((char.to_ascii_lowercase().to_string(), true)),
        _ => match SHIFTED.iter().find(|(shifted, _)| *shifted == char) {
            Some((_, base)) => Some((base.to_string(), true)),
            None => char.is_ascii_graphic().then(|| (char.to_string(), false)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_key_leads_to_one_name() {
        for (given, expected) in [
            ("Return", "Return"),
            ("enter", "Return"),
            ("VK_RETURN", "Return"),
            ("vk_return", "Return"),
            ("CTRL", "Control_L"),
            ("Control_R", "Control_R"),
            ("rctrl", "Control_R"),
            ("RControl", "Control_R"),
            ("rshift", "Shift_R"),
            ("shift_r", "Shift_R"),
            ("VK_LCONTROL", "Control_L"),
            ("VK_RMENU", "Alt_R"),
            ("ralt", "Alt_R"),
            ("rwin", "Super_R"),
            ("altgr", "ISO_Level3_Shift"),
            ("win", "Super_L"),
            ("VK_A", "a"),
            ("VK_7", "7"),
            ("VK_F13", "F13"),
            ("f5", "F5"),
            ("VK_NUMPAD3", "KP_3"),
            ("VK_OEM_PLUS", "equal"),
            ("U+20AC", "€"),
            ("é", "é"),
            ("+", "+"),
            ("plus", "plus"),
            ("Cyrillic_zhe", "Cyrillic_zhe"),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_no_keyboard_has_is_refused() {
        for bad in
            ["", "no such key", "a+b", "VK_NOPE", "VK_NUMPAD10", "VK_F99", "\u{7}", "U+D800", &"x".repeat(65)]
        {
            assert_eq!(canonical(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn chords_split_at_plus_but_keep_the_plus_key() {
        assert_eq!(parse_chord("ctrl+shift+t"), ["ctrl", "shift", "t"]);
        assert_eq!(parse_chord("ctrl++"), ["ctrl", "+"]);
        assert_eq!(parse_chord("+"), ["+"]);
        assert_eq!(parse_chord("a"), ["a"]);
        assert_eq!(parse_chord("ctrl+"), ["ctrl", ""], "the empty name is refused later, by name");
    }

    #[test]
    fn a_us_keyboard_types_ascii_and_no_more() {
        for char in (' '..='~').chain(['\n', '\t']) {
            assert!(us_key(char).is_some(), "{char:?}");
        }
        assert_eq!(us_key('A'), Some(("a".to_owned(), true)));
        assert_eq!(us_key('?'), Some(("/".to_owned(), true)));
        assert_eq!(us_key('ä'), None);
    }
}
