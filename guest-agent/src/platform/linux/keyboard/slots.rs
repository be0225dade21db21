//! Spare keycodes lent to keysyms, two to each: plain and with Shift.

use std::collections::BTreeMap;

use x11rb::errors::ReplyError;
use x11rb::protocol::xproto::{AtomEnum, ConnectionExt as _, PropMode, Window};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;

use super::super::keymap::{Keymap, SHIFT, Stroke, assign};
use super::super::keysym::Sym;

/// Names the lent keycodes on the root window, one 32-bit number each.
const PROPERTY: &[u8] = b"_HVKUBE_LENT_KEYCODES";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// Plain and shifted; 0 is none. A slot with one keysym carries it on both levels, so that Shift does not matter.
    plain: Sym,
    shifted: Sym,
    /// Key events with it may be in a program's queue.
    used: bool,
}

/// What [`Slots::plan`] would change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Keycodes and their new levels.
    pub(super) levels: BTreeMap<u8, (Sym, Sym)>,
    /// A keycode that may be in a program's queue is among them.
    pub(super) overwrites: bool,
}

/// The lent keycodes.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: BTreeMap<u8, Slot>,
    two_levels: bool,
    property: u32,
    recorded: bool,
}

impl Slots {
    /// Takes back what an earlier agent lent and could not restore.
    pub(super) fn recover(conn: &RustConnection, root: Window, device: u16) -> Result<Self, ReplyError> {
        let property = conn.intern_atom(false, PROPERTY)?.reply()?.atom;
        let lent = conn.get_property(true, root, property, AtomEnum::CARDINAL, 0, 256)?.reply()?;
        let left: BTreeMap<u8, (Sym, Sym)> = lent
            .value32()
            .into_iter()
            .flatten()
            .filter_map(|k| Some((u8::try_from(k).ok()?, (0, 0))))
            .collect();
        if !left.is_empty() {
            tracing::info!(keycodes = left.len(), "keymap of an earlier agent restored");
            assign(conn, device, &Keymap::read(conn, device)?, &left)?;
        }
        Ok(Self { property, ..Self::default() })
    }

    /// Follows a keymap that has changed, by us or by others.
    pub(super) fn follow(&mut self, keymap: &Keymap) {
        self.two_levels = keymap.has_shift();
        // Slots that no longer hold what we put there have been taken away by a new layout.
        self.slots.retain(|&keycode, slot| {
            slot.plain != 0 && keymap.levels(keycode) == Some((slot.plain, slot.shifted))
        });
        for keycode in keymap.spare() {
            self.slots.insert(keycode, Slot::default());
        }
    }

    /// How many keysyms can be lent a keycode at once.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len() * if self.two_levels { 2 } else { 1 }
    }

    pub(super) fn owns(&self, keycode: u8) -> bool {
        self.slots.contains_key(&keycode)
    }

    pub(super) fn any_lent(&self) -> bool {
        self.slots.values().any(|s| s.plain != 0)
    }

    /// How to type a lent keysym.
    pub(super) fn stroke(&self, sym: Sym) -> Option<Stroke> {
        let plain =
            self.slots.iter().find(|(_, s)| s.plain == sym).map(|(&keycode, _)| Stroke { keycode, mods: 0 });
        plain.or_else(|| {
            self.slots
                .iter()
                .find(|(_, s)| s.shifted == sym)
                .map(|(&keycode, _)| Stroke { keycode, mods: SHIFT })
        })
    }

    /// As [`Self::stroke`], and remembers that it will be typed.
    pub(super) fn use_stroke(&mut self, sym: Sym) -> Option<Stroke> {
        let stroke = self.stroke(sym)?;
        self.mark_used(stroke.keycode);
        Some(stroke)
    }

    pub(super) fn mark_used(&mut self, keycode: u8) {
        if let Some(slot) = self.slots.get_mut(&keycode) {
            slot.used = true;
        }
    }

    /// How to make room for `syms`, the first ones first; keycodes in `held` stay as they are.
    pub(super) fn plan(&self, syms: &[Sym], held: &[u8]) -> Plan {
        let missing: Vec<Sym> = syms.iter().copied().filter(|s| self.stroke(*s).is_none()).collect();
        let needed = |slot: &Slot| syms.contains(&slot.plain) || syms.contains(&slot.shifted);
        let mut free: Vec<u8> = self
            .slots
            .iter()
            .filter(|(keycode, slot)| !held.contains(keycode) && (slot.plain == 0 || !needed(slot)))
            .map(|(&keycode, _)| keycode)
            .collect();
        // Those that never were typed first, so that a wait is needed as seldom as can be.
        free.sort_by_key(|k| self.slots.get(k).is_some_and(|s| s.used));
        let per_slot = if self.two_levels && missing.len() > free.len() { 2 } else { 1 };
        let mut plan = Plan::default();
        for (pair, keycode) in missing.chunks(per_slot).zip(free) {
            let plain = pair[0];
            plan.levels.insert(keycode, (plain, pair.get(1).copied().unwrap_or(plain)));
            plan.overwrites |= self.slots.get(&keycode).is_some_and(|s| s.used);
        }
        plan
    }

    /// Takes over a plan that has been carried out.
    pub(super) fn take(&mut self, plan: Plan) {
        if plan.overwrites {
            // That took a wait, after which no program has any of them queued.
            self.slots.values_mut().for_each(|s| s.used = false);
        }
        for (keycode, (plain, shifted)) in plan.levels {
            self.slots.insert(keycode, Slot { plain, shifted, used: false });
        }
    }

    /// Writes down which keycodes are ours to lend, before the first is.
    pub(super) fn record(&mut self, conn: &RustConnection, root: Window) -> Result<(), ReplyError> {
        if self.recorded {
            return Ok(());
        }
        let keycodes: Vec<u32> = self.slots.keys().map(|k| u32::from(*k)).collect();
        conn.change_property32(PropMode::REPLACE, root, self.property, AtomEnum::CARDINAL, &keycodes)?;
        self.recorded = true;
        Ok(())
    }

    /// Empties all lent keycodes. Programs must have handled what was typed with them.
    pub(super) fn restore(
        &mut self,
        conn: &RustConnection,
        root: Window,
        device: u16,
        keymap: &Keymap,
    ) -> Result<(), ReplyError> {
        let lent = self.slots.iter().filter(|(_, s)| s.plain != 0).map(|(&keycode, _)| (keycode, (0, 0)));
        assign(conn, device, keymap, &lent.collect())?;
        conn.delete_property(root, self.property)?.check()?;
        self.slots.values_mut().for_each(|s| *s = Slot::default());
        self.recorded = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(keycodes: &[u8]) -> Slots {
        let slots = keycodes.iter().map(|&k| (k, Slot::default())).collect();
        Slots { slots, two_levels: true, ..Slots::default() }
    }

    #[test]
    fn one_keysym_a_slot_until_room_is_short() {
        let mut slots = slots(&[93, 97]);
        let plan = slots.plan(&[10, 11], &[]);
        assert_eq!(plan.levels, BTreeMap::from([(93, (10, 10)), (97, (11, 11))]));
        assert!(!plan.overwrites);
        slots.take(plan);
        assert_eq!(slots.use_stroke(11), Some(Stroke { keycode: 97, mods: 0 }));

        // Three new ones: 93 was never typed and goes first, but both are needed, two keysyms each.
        let plan = slots.plan(&[20, 21, 22], &[]);
        assert_eq!(plan.levels, BTreeMap::from([(93, (20, 21)), (97, (22, 22))]));
        assert!(plan.overwrites, "97 was typed");
        slots.take(plan);
        assert_eq!(slots.stroke(21), Some(Stroke { keycode: 93, mods: SHIFT }));
    }

    #[test]
    fn what_is_still_needed_or_held_stays() {
        let mut slots = slots(&[93, 97, 103]);
        slots.take(slots.plan(&[10, 11], &[]));
        let plan = slots.plan(&[10, 30, 31], &[97]);
        assert_eq!(plan.levels, BTreeMap::from([(103, (30, 31))]), "93 has 10 on it, 97 is held");
        assert!(slots.plan(&[10, 11], &[]).levels.is_empty(), "all there");
    }
}
