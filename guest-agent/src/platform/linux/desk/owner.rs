//! Selections that we own, as the ICCCM wants them served.

use std::time::{Duration, Instant};

use bytes::Bytes;
use x11rb::connection::RequestConnection as _;
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, EventMask, PropMode,
    SELECTION_NOTIFY_EVENT, SelectionNotifyEvent, SelectionRequestEvent, Timestamp, Window,
};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;
use x11rb::{CURRENT_TIME, NONE};

use super::{Atoms, Server};
use crate::display::{Content, DisplayError, Kind, Selection};

/// What goes into one property; more goes in parts. Programs' own limits are about the same.
const CHUNK: usize = 256 << 10;
/// Transfers in parts at once; each holds a share of the content only.
const MAX_TRANSFERS: usize = 16;
/// A program that takes no part for so long takes none any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// Conversions asked for at once.
const MAX_MULTIPLE: usize = 16;

/// What we own, and whom it is being sent to in parts.
pub(super) struct Owner {
    owned: [Option<Owned>; 2],
    transfers: Vec<Transfer>,
    chunk: usize,
}

#[derive(Clone)]
struct Owned {
    selection: Atom,
    content: Content,
    since: Timestamp,
}

/// A content that goes to a program in parts: it deletes the property, we write the next part.
struct Transfer {
    requestor: Window,
    property: Atom,
    target: Atom,
    rest: Bytes,
    /// The last, empty part was written.
    ended: bool,
    deadline: Instant,
}

fn slot(selection: Selection) -> usize {
    match selection {
        Selection::Clipboard => 0,
        Selection::Primary => 1,
    }
}

/// Whether `time` is not before `since`; the server's clock wraps every 49 days.
fn not_before(time: Timestamp, since: Timestamp) -> bool {
    time == CURRENT_TIME || time.wrapping_sub(since) < 1 << 31
}

impl Owner {
    pub(super) fn new(conn: &RustConnection) -> Self {
        // Some room for the request around the data.
        let most = conn.maximum_request_bytes().saturating_sub(1024).max(1024);
        Self { owned: [None, None], transfers: Vec::new(), chunk: CHUNK.min(most) }
    }

    /// What we own of a selection.
    pub(super) fn content(&self, selection: Selection) -> Option<&Content> {
        self.owned[slot(selection)].as_ref().map(|owned| &owned.content)
    }

    /// Another program has taken the selection over. News of an older loss than our ownership is none.
    pub(super) fn lost(&mut self, selection: Selection, at: Timestamp) {
        let owned = &mut self.owned[slot(selection)];
        if owned.as_ref().is_some_and(|owned| not_before(at, owned.since)) {
            *owned = None;
        }
    }

    /// Answers a program that asks for a selection.
    pub(super) fn serve(
        &mut self,
        conn: &RustConnection,
        atoms: &Atoms,
        request: &SelectionRequestEvent,
    ) -> Result<(), DisplayError> {
        let owned = self.owned.iter().flatten().find(|owned| owned.selection == request.selection);
        let owned = owned.filter(|owned| not_before(request.time, owned.since)).cloned();
        // Old programs leave the property open and mean the target.
        let property = if request.property == NONE { request.target } else { request.property };
        let served = match owned {
            Some(owned) if request.target == atoms.MULTIPLE => {
                request.property != NONE && self.multiple(conn, atoms, request.requestor, property, &owned)?
            }
            Some(owned) => self.convert(conn, atoms, request.requestor, property, request.target, &owned)?,
            None => false,
        };
        let notify = SelectionNotifyEvent {
            response_type: SELECTION_NOTIFY_EVENT,
            sequence: 0,
            time: request.time,
            requestor: request.requestor,
            selection: request.selection,
            target: request.target,
            property: if served { property } else { NONE },
        };
        conn.send_event(false, request.requestor, EventMask::NO_EVENT, notify)?;
        Ok(())
    }

    /// Converts into a property of the requestor; gives whether the target is one of ours. A requestor that is gone is an
    /// error of its own, which the server tells later and nobody needs to know.
    fn convert(
        &mut self,
        conn: &RustConnection,
        atoms: &Atoms,
        requestor: Window,
        property: Atom,
        target: Atom,
        owned: &Owned,
    ) -> Result<bool, DisplayError> {
        if target == atoms.TARGETS {
            let mut targets = vec![atoms.TARGETS, atoms.TIMESTAMP, atoms.MULTIPLE];
            targets.extend(forms(atoms, &owned.content));
            conn.change_property32(PropMode::REPLACE, requestor, property, AtomEnum::ATOM, &targets)?;
            return Ok(true);
        }
        if target == atoms.TIMESTAMP {
            let since = [owned.since];
            conn.change_property32(PropMode::REPLACE, requestor, property, AtomEnum::INTEGER, &since)?;
            return Ok(true);
        }
        if !forms(atoms, &owned.content).contains(&target) {
            return Ok(false);
        }
        let data = if target == u32::from(AtomEnum::STRING) {
            latin1(&owned.content.data).unwrap_or_default().into()
        } else {
            owned.content.data.clone()
        };
        if data.len() <= self.chunk {
            conn.change_property8(PropMode::REPLACE, requestor, property, target, &data)?;
            return Ok(true);
        }
        if self.transfers.len() == MAX_TRANSFERS {
            return Ok(false);
        }
        // Before the program can delete the property, or its first deletion would be missed.
        let events = ChangeWindowAttributesAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        conn.change_window_attributes(requestor, &events)?;
        let size = [u32::try_from(data.len()).unwrap_or(u32::MAX)];
        conn.change_property32(PropMode::REPLACE, requestor, property, atoms.INCR, &size)?;
        let deadline = Instant::now() + PATIENCE;
        self.transfers.push(Transfer { requestor, property, target, rest: data, ended: false, deadline });
        Ok(true)
    }

    /// Several conversions in one request: pairs of target and property, whose property becomes none where it failed.
    fn multiple(
        &mut self,
        conn: &RustConnection,
        atoms: &Atoms,
        requestor: Window,
        property: Atom,
        owned: &Owned,
    ) -> Result<bool, DisplayError> {
        let most = u32::try_from(MAX_MULTIPLE * 2).unwrap_or(u32::MAX);
        let asked = conn.get_property(false, requestor, property, atoms.ATOM_PAIR, 0, most)?.reply();
        let Ok(asked) = asked else { return Ok(false) };
        let Some(mut pairs) = asked.value32().map(Iterator::collect::<Vec<_>>) else { return Ok(false) };
        if asked.bytes_after > 0 || pairs.is_empty() {
            return Ok(false);
        }
        for pair in pairs.chunks_exact_mut(2) {
            let (target, into) = (pair[0], pair[1]);
            let legal = target != atoms.MULTIPLE && into != NONE;
            if !legal || !self.convert(conn, atoms, requestor, into, target, owned)? {
                pair[1] = NONE;
            }
        }
        conn.change_property32(PropMode::REPLACE, requestor, property, atoms.ATOM_PAIR, &pairs)?;
        Ok(true)
    }

    /// A program has taken the last part: the next one goes out.
    pub(super) fn taken(
        &mut self,
        conn: &RustConnection,
        requestor: Window,
        property: Atom,
    ) -> Result<(), DisplayError> {
        let mine = |t: &Transfer| t.requestor == requestor && t.property == property;
        let Some(index) = self.transfers.iter().position(mine) else { return Ok(()) };
        let transfer = &mut self.transfers[index];
        if transfer.ended {
            return self.end(conn, index);
        }
        let part = transfer.rest.split_to(self.chunk.min(transfer.rest.len()));
        // An empty part is the end.
        transfer.ended = part.is_empty();
        transfer.deadline = Instant::now() + PATIENCE;
        conn.change_property8(PropMode::REPLACE, requestor, property, transfer.target, &part)?;
        Ok(())
    }

    fn end(&mut self, conn: &RustConnection, index: usize) -> Result<(), DisplayError> {
        let Transfer { requestor, .. } = self.transfers.swap_remove(index);
        if !self.transfers.iter().any(|t| t.requestor == requestor) {
            let events = ChangeWindowAttributesAux::new().event_mask(EventMask::NO_EVENT);
            conn.change_window_attributes(requestor, &events)?;
        }
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.transfers.iter().map(|t| t.deadline).min()
    }

    pub(super) fn expire(&mut self, conn: &RustConnection) -> Result<(), DisplayError> {
        let now = Instant::now();
        while let Some(index) = self.transfers.iter().position(|t| t.deadline <= now) {
            self.end(conn, index)?;
        }
        Ok(())
    }
}

/// As what a content is offered.
fn forms(atoms: &Atoms, content: &Content) -> Vec<Atom> {
    match content.kind {
        Kind::Png => vec![atoms.IMAGE_PNG],
        Kind::Text => {
            let mut forms = vec![atoms.UTF8_STRING, atoms.TEXT_UTF8, atoms.TEXT_PLAIN];
            // STRING is Latin-1; who gets it must get all of it.
            if latin1(&content.data).is_some() {
                forms.push(AtomEnum::STRING.into());
            }
            forms
        }
    }
}

fn latin1(utf8: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(utf8).ok()?;
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

impl Server {
    /// Takes a selection over, or empties it.
    pub(super) fn set(&mut self, selection: Selection, content: Option<Content>) -> Result<(), DisplayError> {
        let (atom, since) = (self.atom(selection), self.now()?);
        let owner = if content.is_some() { self.window } else { NONE };
        self.conn.set_selection_owner(owner, atom, since)?;
        let now = self.conn.get_selection_owner(atom)?.reply()?.owner;
        if now != owner {
            // A program's clock may be ahead of the time it got its last event at.
            return Err(DisplayError::Unsupported("another program holds on to the clipboard".into()));
        }
        self.owner.owned[slot(selection)] = content.map(|content| Owned { selection: atom, content, since });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_compared_over_the_wrap_of_the_servers_clock() {
        assert!(not_before(5, 5) && not_before(6, 5) && !not_before(4, 5));
        assert!(not_before(1, u32::MAX) && !not_before(u32::MAX, 1));
        assert!(not_before(CURRENT_TIME, 1 << 31));
    }

    #[test]
    fn latin1_is_offered_only_where_it_says_the_same() {
        assert_eq!(latin1("aü\n".as_bytes()), Some(vec![b'a', 0xfc, b'\n']));
        assert_eq!(latin1("ж".as_bytes()), None);
    }
}
