//! The server's keymap as XKB describes it: which key, with which modifiers, gives a keysym in the present layout; and which
//! keycodes have nothing on them and can be lent to characters that the layout lacks.

use std::collections::BTreeMap;

use x11rb::connection::Connection;
use x11rb::errors::ReplyError;
use x11rb::protocol::xkb::{self, ConnectionExt as _, KeySymMap, MapPart};
use x11rb::protocol::xproto::ModMask;
use x11rb::rust_connection::RustConnection;

use super::keysym::{Sym, to_char};

/// Modifier bits of the core protocol.
pub(super) const SHIFT: u8 = 1;
pub(super) const LOCK: u8 = 2;
/// The second of the key types that every keymap has: plain, and with Shift.
const TWO_LEVEL: u8 = 1;
const SHIFT_L: Sym = 0xffe1;
const ISO_LEVEL3_SHIFT: Sym = 0xfe03;

/// A key and the modifiers that must be down with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stroke {
    pub(super) keycode: u8,
    pub(super) mods: u8,
}

#[derive(Clone, Debug, Default)]
struct KeyType {
    mask: u8,
    /// Modifiers and the level they give; any other combination gives the first.
    levels: Vec<(u8, u8)>,
}

#[derive(Clone, Debug, Default)]
struct Key {
    types: [u8; 4],
    group_info: u8,
    width: u8,
    syms: Vec<Sym>,
}

/// The layout.
#[derive(Clone, Debug, Default)]
pub(super) struct Keymap {
    keys: BTreeMap<u8, Key>,
    types: Vec<KeyType>,
    /// Keys that produce a modifier, by its bit: only those that we press.
    shift: Option<u8>,
    level3: Option<(u8, u8)>,
}

/// The eight modifiers as bits; the protocol's type has room for more.
pub(super) fn bits(mask: ModMask) -> u8 {
    u16::from(mask).to_le_bytes()[0]
}

/// What the keyboard's present state adds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) group: u8,
    /// All modifiers in effect.
    pub(super) mods: u8,
    pub(super) locked: u8,
}

impl Keymap {
    /// Reads the map of `device`.
    pub(super) fn read(conn: &RustConnection, device: u16) -> Result<Self, ReplyError> {
        let part = MapPart::KEY_TYPES | MapPart::KEY_SYMS | MapPart::MODIFIER_MAP;
        let none = MapPart::from(0u8);
        let reply = conn
            .xkb_get_map(device, part, none, 0, 0, 0, 0, 0, 0, 0, 0, xkb::VMod::from(0u16), 0, 0, 0, 0, 0, 0)?
            .reply()?;
        let types = reply.map.types_rtrn.unwrap_or_default().into_iter().map(|t| KeyType {
            mask: bits(t.mods_mask),
            levels: t.map.iter().filter(|e| e.active).map(|e| (bits(e.mods_mask), e.level)).collect(),
        });
        let syms = reply.map.syms_rtrn.unwrap_or_default();
        let keys = (reply.first_key_sym..=u8::MAX).zip(syms).map(|(keycode, key)| {
            let key =
                Key { types: key.kt_index, group_info: key.group_info, width: key.width, syms: key.syms };
            (keycode, key)
        });
        let mut keymap = Self { keys: keys.collect(), types: types.collect(), ..Self::default() };
        let modmap = reply.map.modmap_rtrn.unwrap_or_default();
        let with = |sym: Sym| {
            let key = modmap
                .iter()
                .find(|m| keymap.keys.get(&m.keycode).is_some_and(|k| k.syms.first() == Some(&sym)))?;
            Some((key.keycode, bits(key.mods)))
        };
        let shift = with(SHIFT_L).filter(|(_, mods)| *mods == SHIFT).map(|(keycode, _)| keycode);
        let level3 = with(ISO_LEVEL3_SHIFT).filter(|(_, mods)| mods.count_ones() == 1);
        keymap.shift = shift;
        keymap.level3 = level3;
        Ok(keymap)
    }

    /// Keys to press for `mods`, which come from [`Self::find`].
    pub(super) fn modifier_keys(&self, mods: u8) -> impl Iterator<Item = u8> {
        let shift = self.shift.filter(|_| mods & SHIFT != 0);
        let level3 = self.level3.filter(|(_, bit)| mods & bit != 0).map(|(keycode, _)| keycode);
        shift.into_iter().chain(level3)
    }

    /// Whether a shifted level can be typed.
    pub(super) fn has_shift(&self) -> bool {
        self.shift.is_some()
    }

    /// Keycodes with nothing on them.
    pub(super) fn spare(&self) -> impl Iterator<Item = u8> {
        self.keys.iter().filter(|(_, key)| key.syms.iter().all(|s| *s == 0)).map(|(keycode, _)| *keycode)
    }

    /// The first keysyms of a key, as many as the core protocol's two levels.
    pub(super) fn levels(&self, keycode: u8) -> Option<(Sym, Sym)> {
        let syms = &self.keys.get(&keycode)?.syms;
        let first = syms.first().copied().unwrap_or(0);
        Some((first, syms.get(1).copied().unwrap_or(first)))
    }

    /// How to get a keysym, or another that types the same character, with the fewest modifiers; keys in `except` are left out.
    pub(super) fn find(&self, sym: Sym, state: State, except: &dyn Fn(u8) -> bool) -> Option<Stroke> {
        let wanted = to_char(sym);
        let matches = |s: Sym| s == sym || (wanted.is_some() && to_char(s) == wanted);
        let level3 = self.level3.map(|(_, bit)| bit);
        let shift = self.shift.map(|_| SHIFT);
        let both = shift.zip(level3).map(|(a, b)| a | b);
        for mods in [Some(0), shift, level3, both].into_iter().flatten() {
            for (&keycode, key) in &self.keys {
                if !except(keycode) && self.symbol(key, state.group, state.mods | mods).is_some_and(matches) {
                    return Some(Stroke { keycode, mods });
                }
            }
        }
        None
    }

    /// A key that has the keysym on any level of the present group, for when its modifiers don't matter.
    pub(super) fn find_key(&self, sym: Sym, state: State, except: &dyn Fn(u8) -> bool) -> Option<u8> {
        let matching = |key: &Key| {
            let group = effective_group(key, state.group)?;
            let width = usize::from(key.width);
            let from = usize::from(group) * width;
            Some(key.syms.get(from..from + width)?.contains(&sym))
        };
        self.keys
            .iter()
            .find(|(keycode, key)| !except(**keycode) && matching(key) == Some(true))
            .map(|(k, _)| *k)
    }

    fn symbol(&self, key: &Key, group: u8, mods: u8) -> Option<Sym> {
        let group = effective_group(key, group)?;
        let kind = self.types.get(usize::from(*key.types.get(usize::from(group))?))?;
        let in_effect = mods & kind.mask;
        let level = kind.levels.iter().find(|(mods, _)| *mods == in_effect).map_or(0, |(_, level)| *level);
        key.syms
            .get(usize::from(group) * usize::from(key.width) + usize::from(level))
            .copied()
            .filter(|s| *s != 0)
    }
}

/// The group a key uses when the keyboard is in `group`: those it lacks wrap around or stop at its last.
fn effective_group(key: &Key, group: u8) -> Option<u8> {
    let groups = key.group_info & 0x0f;
    match groups {
        0 => None,
        n if group < n => Some(group),
        n if key.group_info & 0xc0 == 0x40 => Some(n - 1),
        n if key.group_info & 0xc0 == 0x80 => Some((key.group_info >> 4) & 0x03).filter(|g| *g < n),
        n => Some(group % n),
    }
}

/// Puts keysyms on keycodes of `device`, both levels of each; none at all where both are 0.
///
/// One request, because each makes every program read the map again and some window managers grab all their keys anew. It
/// covers a range, so the keys in between are sent back as `keymap` has them. Only the injecting device is changed; the
/// server takes its map over for programs when it is the one that types.
pub(super) fn assign(
    conn: &RustConnection,
    device: u16,
    keymap: &Keymap,
    levels: &BTreeMap<u8, (Sym, Sym)>,
) -> Result<(), ReplyError> {
    let (Some((&first, _)), Some((&last, _))) = (levels.first_key_value(), levels.last_key_value()) else {
        return Ok(());
    };
    let syms: Vec<KeySymMap> = (first..=last)
        .map(|keycode| match levels.get(&keycode) {
            Some((0, 0)) => Key::default(),
            Some(&(plain, shifted)) => {
                Key { types: [TWO_LEVEL; 4], group_info: 1, width: 2, syms: vec![plain, shifted] }
            }
            None => keymap.keys.get(&keycode).cloned().unwrap_or_default(),
        })
        .map(|key| KeySymMap {
            kt_index: key.types,
            group_info: key.group_info,
            width: key.width,
            syms: key.syms,
        })
        .collect();
    let total = u16::try_from(syms.iter().map(|key| key.syms.len()).sum::<usize>()).unwrap_or(u16::MAX);
    let setup = conn.setup();
    let (lowest, highest) = (setup.min_keycode, setup.max_keycode);
    let none = xkb::SetMapFlags::from(0u16);
    let no_mods = xkb::VMod::from(0u16);
    let values = xkb::SetMapAux::new().syms(syms);
    conn.xkb_set_map(
        device,
        none,
        lowest,
        highest,
        0,
        0,
        first,
        last - first + 1,
        total,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        no_mods,
        &values,
    )?
    .check()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two types and four keys: `a A`, `q Q @` in two groups (`ä` in the second), one empty, `+ *` with an AltGr level.
    fn keymap() -> Keymap {
        let mod5 = 0x80;
        let types = vec![
            KeyType { mask: 0, levels: vec![] },
            KeyType { mask: SHIFT | LOCK, levels: vec![(SHIFT, 1), (LOCK, 1)] },
            KeyType { mask: SHIFT | mod5, levels: vec![(SHIFT, 1), (mod5, 2), (SHIFT | mod5, 3)] },
        ];
        let key = |types: [u8; 4], group_info: u8, width: u8, text: &str| Key {
            types,
            group_info,
            width,
            syms: text.chars().map(|c| if c == '·' { 0 } else { c as u32 }).collect(),
        };
        let keys = [
            (38, key([1, 0, 0, 0], 1, 2, "aA")),
            (24, key([2, 1, 0, 0], 2, 4, "qQ@·äÄ··")),
            (93, key([0, 0, 0, 0], 0, 0, "")),
            (35, key([2, 0, 0, 0], 1, 4, "+*~·")),
        ];
        Keymap { keys: keys.into(), types, shift: Some(50), level3: Some((92, mod5)) }
    }

    fn find(c: char, group: u8, mods: u8) -> Option<Stroke> {
        keymap().find(c as u32, State { group, mods, locked: 0 }, &|_| false)
    }

    #[test]
    fn finds_the_modifiers_that_a_character_needs() {
        let stroke = |keycode, mods| Some(Stroke { keycode, mods });
        assert_eq!(find('a', 0, 0), stroke(38, 0));
        assert_eq!(find('A', 0, 0), stroke(38, SHIFT));
        assert_eq!(find('@', 0, 0), stroke(24, 0x80));
        assert_eq!(find('A', 0, LOCK), stroke(38, 0), "the lock is on already");
        assert_eq!(find('ä', 0, 0), None, "in the other group");
        assert_eq!(find('ä', 1, 0), stroke(24, 0));
        assert_eq!(find('a', 1, 0), stroke(38, 0), "a key with one group has it in all");
        assert_eq!(find('é', 0, 0), None);
        assert_eq!(keymap().modifier_keys(SHIFT | 0x80).collect::<Vec<_>>(), [50, 92]);
    }

    #[test]
    fn spare_keys_are_those_without_symbols() {
        assert_eq!(keymap().spare().collect::<Vec<_>>(), [93]);
    }
}
