//! The content of a program's selection, on its way in.
//!
//! ```text
//! asked ─► TARGETS ─notify─► the best target ─notify─► whole property ─► answered
//!                                  ▲    │                 │ INCR
//!                  refused: the next┘   └► none           └─► part, part, …, empty part ─► answered
//! ```
//!
//! When another program takes the selection over meanwhile, it begins anew with that one.
//!
//! Each fetch has a window of its own, which goes with it: a program that goes on to send finds nobody, and a late answer
//! to one fetch is not taken for one to the next.

use std::collections::VecDeque;
use std::time::Instant;

use x11rb::NONE;
use x11rb::protocol::xproto::{Atom, AtomEnum, ConnectionExt as _, SelectionNotifyEvent, Window};

use super::{Answer, Server, answer, hidden_window};
use crate::display::{Content, DisplayError, Held, Kind, MAX_CONTENT, Wanted};

/// Fetches that may wait for the present one.
const QUEUE: usize = 16;
/// Targets that are looked at; programs have a few dozen.
const MAX_TARGETS: u32 = 1024;
const LATE: DisplayError = DisplayError::Late("the program that owns the clipboard did not answer");

/// One at a time.
#[derive(Default)]
pub(super) struct Fetches {
    current: Option<Fetch>,
    waiting: VecDeque<(Wanted, Instant, Answer<Held>)>,
}

struct Fetch {
    window: Window,
    wanted: Wanted,
    deadline: Instant,
    reply: Answer<Held>,
    /// As what it is to be had.
    available: Vec<Kind>,
    stage: Stage,
}

enum Stage {
    Targets,
    /// Asked for the first of these.
    Content(VecDeque<(Atom, Kind)>),
    Parts {
        target: Atom,
        kind: Kind,
        data: Vec<u8>,
        /// It is more than wanted, and not kept.
        over: bool,
    },
}

impl Fetches {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|(_, deadline, _)| *deadline);
        self.current.iter().map(|fetch| fetch.deadline).chain(waiting).min()
    }
}

impl Server {
    /// Begins to fetch a selection, or lets the call wait for its turn.
    pub(super) fn fetch(&mut self, wanted: Wanted, reply: Answer<Held>) -> Result<(), DisplayError> {
        let deadline = Instant::now() + wanted.timeout;
        if self.fetches.current.is_some() {
            if self.fetches.waiting.len() == QUEUE {
                return answer(reply, Err(DisplayError::Busy));
            }
            self.fetches.waiting.push_back((wanted, deadline, reply));
            return Ok(());
        }
        self.begin(wanted, deadline, reply)
    }

    fn begin(&mut self, wanted: Wanted, deadline: Instant, reply: Answer<Held>) -> Result<(), DisplayError> {
        if let Some(content) = self.owner.content(wanted.selection) {
            let own = Held { available: vec![content.kind], ..Held::default() };
            let fits = wanted.kind.is_none_or(|kind| kind == content.kind);
            let held = if !fits {
                own
            } else if content.data.len() > wanted.max {
                Held { too_large: true, ..own }
            } else {
                Held { content: Some(content.clone()), ..own }
            };
            return answer(reply, Ok(held));
        }
        let selection = self.atom(wanted.selection);
        if self.conn.get_selection_owner(selection)?.reply()?.owner == NONE {
            return answer(reply, Ok(Held::default()));
        }
        let window = hidden_window(&self.conn, self.root)?;
        let fetch = Fetch { window, wanted, deadline, reply, available: Vec::new(), stage: Stage::Targets };
        self.convert(&fetch, self.atoms.TARGETS)?;
        self.fetches.current = Some(fetch);
        Ok(())
    }

    /// Another program owns a selection now, or none does: what was asked of the one before begins anew.
    pub(super) fn owner_changed(&mut self, selection: Atom) -> Result<(), DisplayError> {
        let Some(fetch) = self.fetches.current.take() else { return Ok(()) };
        if self.atom(fetch.wanted.selection) != selection {
            self.fetches.current = Some(fetch);
            return Ok(());
        }
        self.conn.destroy_window(fetch.window)?;
        self.begin(fetch.wanted, fetch.deadline, fetch.reply)?;
        self.next_fetch()
    }

    /// Asks the owner.
    fn convert(&mut self, fetch: &Fetch, target: Atom) -> Result<(), DisplayError> {
        let time = self.now()?;
        let selection = self.atom(fetch.wanted.selection);
        self.conn.convert_selection(fetch.window, selection, target, self.atoms.HVKUBE_TRANSFER, time)?;
        Ok(())
    }

    /// The owner has answered.
    pub(super) fn fetched(&mut self, notify: &SelectionNotifyEvent) -> Result<(), DisplayError> {
        let Some(fetch) = self.fetches.current.take_if(|f| f.window == notify.requestor) else {
            return Ok(());
        };
        let refused = notify.property == NONE;
        match fetch.stage {
            Stage::Targets => self.choose(fetch, refused),
            Stage::Content(_) if refused => self.next_target(fetch),
            Stage::Content(_) => self.take(fetch),
            Stage::Parts { .. } => {
                self.fetches.current = Some(fetch);
                Ok(())
            }
        }
    }

    /// Reads what the owner offers and asks for the best of it.
    fn choose(&mut self, mut fetch: Fetch, refused: bool) -> Result<(), DisplayError> {
        let string = u32::from(AtomEnum::STRING);
        let mut offered = if refused {
            // Very old programs know no TARGETS, but text.
            vec![self.atoms.UTF8_STRING, string]
        } else {
            let property = self.atoms.HVKUBE_TRANSFER;
            let read = self.conn.get_property(true, fetch.window, property, AtomEnum::ANY, 0, MAX_TARGETS)?;
            read.reply()?.value32().map(Iterator::collect).unwrap_or_default()
        };
        offered.truncate(MAX_TARGETS as usize);
        let known = [
            (self.atoms.UTF8_STRING, Kind::Text),
            (self.atoms.TEXT_UTF8, Kind::Text),
            (string, Kind::Text),
            (self.atoms.TEXT_PLAIN, Kind::Text),
            (self.atoms.IMAGE_PNG, Kind::Png),
        ];
        let mut targets: VecDeque<(Atom, Kind)> =
            known.into_iter().filter(|(target, _)| offered.contains(target)).collect();
        for (_, kind) in &targets {
            if !fetch.available.contains(kind) {
                fetch.available.push(*kind);
            }
        }
        let kind = fetch.wanted.kind.or(targets.front().map(|(_, kind)| *kind));
        targets.retain(|(_, of)| Some(*of) == kind);
        // What `next_target` takes off first.
        targets.push_front((NONE, Kind::Text));
        fetch.stage = Stage::Content(targets);
        self.next_target(fetch)
    }

    /// The present target is no good: asks for the next one.
    fn next_target(&mut self, mut fetch: Fetch) -> Result<(), DisplayError> {
        let Stage::Content(targets) = &mut fetch.stage else { return Ok(()) };
        targets.pop_front();
        match targets.front().copied() {
            None => self.end(fetch, Ok(None)),
            Some((target, _)) => {
                self.convert(&fetch, target)?;
                self.fetches.current = Some(fetch);
                Ok(())
            }
        }
    }

    /// Takes the property that the owner has filled.
    fn take(&mut self, mut fetch: Fetch) -> Result<(), DisplayError> {
        let Stage::Content(targets) = &fetch.stage else { return Ok(()) };
        let Some((target, kind)) = targets.front().copied() else { return self.end(fetch, Ok(None)) };
        let property = self.atoms.HVKUBE_TRANSFER;
        let look = self.conn.get_property(false, fetch.window, property, AtomEnum::ANY, 0, 0)?.reply()?;
        if look.type_ == self.atoms.INCR {
            fetch.stage = Stage::Parts { target, kind, data: Vec::new(), over: false };
            // The owner sends the first part when it sees this.
            self.conn.delete_property(fetch.window, property)?;
            self.fetches.current = Some(fetch);
            return Ok(());
        }
        let Some(data) = self.read(fetch.window, fetch.wanted.max)? else {
            return self.end(fetch, Err(Unfit));
        };
        self.finish(fetch, target, kind, data)
    }

    /// A property has a new value: the next part of a content.
    pub(super) fn arrived(&mut self, window: Window, property: Atom) -> Result<(), DisplayError> {
        let in_parts = |f: &mut Fetch| {
            f.window == window
                && property == self.atoms.HVKUBE_TRANSFER
                && matches!(f.stage, Stage::Parts { .. })
        };
        let Some(mut fetch) = self.fetches.current.take_if(in_parts) else { return Ok(()) };
        let Some(part) = self.read(window, MAX_CONTENT)? else { return self.end(fetch, Err(Unfit)) };
        let max = fetch.wanted.max;
        let Stage::Parts { target, kind, data, over } = &mut fetch.stage else { return Ok(()) };
        if part.is_empty() {
            if *over {
                return self.end(fetch, Err(Unfit));
            }
            let (target, kind, data) = (*target, *kind, std::mem::take(data));
            return self.finish(fetch, target, kind, data);
        }
        // The rest is taken off all the same: simple programs serve nobody else until a transfer is over.
        *over |= part.len() > max - data.len();
        if *over {
            *data = Vec::new();
        } else {
            data.extend_from_slice(&part);
        }
        self.fetches.current = Some(fetch);
        Ok(())
    }

    /// The bytes of the property, taken off; none when they are more than `max`.
    fn read(&self, window: Window, max: usize) -> Result<Option<Vec<u8>>, DisplayError> {
        let property = self.atoms.HVKUBE_TRANSFER;
        let most = u32::try_from(max / 4 + 1).unwrap_or(u32::MAX);
        let read = self.conn.get_property(true, window, property, AtomEnum::ANY, 0, most)?.reply()?;
        Ok((read.bytes_after == 0 && read.value.len() <= max).then_some(read.value))
    }

    fn finish(&mut self, fetch: Fetch, target: Atom, kind: Kind, data: Vec<u8>) -> Result<(), DisplayError> {
        let data = match kind {
            Kind::Png => data,
            Kind::Text if target == u32::from(AtomEnum::STRING) => {
                data.into_iter().map(char::from).collect::<String>().into_bytes()
            }
            Kind::Text => match String::from_utf8(data) {
                Ok(text) => text.into_bytes(),
                Err(broken) => String::from_utf8_lossy(broken.as_bytes()).into_owned().into_bytes(),
            },
        };
        // Letters beyond ASCII are longer in UTF-8.
        if data.len() > fetch.wanted.max {
            return self.end(fetch, Err(Unfit));
        }
        self.end(fetch, Ok(Some(Content { kind, data: data.into() })))
    }

    /// Answers the call and takes up the next one.
    fn end(&mut self, fetch: Fetch, outcome: Result<Option<Content>, Unfit>) -> Result<(), DisplayError> {
        self.conn.destroy_window(fetch.window)?;
        let too_large = outcome.is_err();
        let content = outcome.unwrap_or(None);
        answer(fetch.reply, Ok(Held { content, available: fetch.available, too_large }))?;
        self.next_fetch()
    }

    fn next_fetch(&mut self) -> Result<(), DisplayError> {
        while self.fetches.current.is_none()
            && let Some((wanted, deadline, reply)) = self.fetches.waiting.pop_front()
        {
            if !reply.is_closed() {
                self.begin(wanted, deadline, reply)?;
            }
        }
        Ok(())
    }

    /// Ends what nobody waits for any more or took too long.
    pub(super) fn expire_fetches(&mut self) -> Result<(), DisplayError> {
        let now = Instant::now();
        let over = |f: &mut Fetch| f.deadline <= now || f.reply.is_closed();
        if let Some(fetch) = self.fetches.current.take_if(over) {
            self.conn.destroy_window(fetch.window)?;
            answer(fetch.reply, Err(LATE))?;
        }
        let (late, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.fetches.waiting)
            .into_iter()
            .partition(|(_, deadline, _)| *deadline <= now);
        self.fetches.waiting = waiting;
        for (_, _, reply) in late {
            answer(reply, Err(LATE))?;
        }
        self.next_fetch()
    }
}

/// More bytes than wanted.
struct Unfit;
