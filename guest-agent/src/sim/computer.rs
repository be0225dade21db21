//! A running guest: what it remembers, and what has changed on its screen since when.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::desktop::{self, Held, Layout};
use super::{Board, Hardware, State};
use crate::display::{Rect, Watch};
use crate::platform::keysym;

/// Changes that are told apart; who asks for what is older gets the whole screen, which costs a few hundred bytes too.
const HISTORY: usize = 32;

pub(super) struct Computer {
    pub(super) hardware: Hardware,
    board: Arc<dyn Board>,
    inner: Mutex<Inner>,
    /// Something on the screen, or the pointer, has changed.
    pub(super) changed: Notify,
}

pub(super) struct Inner {
    pub(super) state: State,
    pub(super) layout: Layout,
    held: Held,
    /// Nothing may change any more.
    pub(super) frozen: bool,
    pub(super) sequence: u64,
    /// Newest last; each with the sequence that it made.
    history: VecDeque<(u64, Rect)>,
    /// Whoever has an older sequence than this has to take the whole screen.
    floor: u64,
    watches: Vec<Weak<Watch>>,
    /// The pointer's place as a host was told it last.
    pub(super) told: Option<(i32, i32)>,
    /// Frames given so far that had anything in them.
    pub(super) answers: u64,
}

impl Computer {
    pub(super) fn new(hardware: Hardware, state: State, board: Arc<dyn Board>) -> Self {
        let inner = Inner {
            layout: Layout::new(hardware.screen),
            state,
            held: Held::default(),
            frozen: false,
            sequence: 1,
            history: VecDeque::new(),
            floor: 1,
            watches: Vec::new(),
            told: None,
            answers: 0,
        };
        Self { hardware, board, inner: Mutex::new(inner), changed: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change in here is made whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the guest remembers, unless it stands still, and tells its machine.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut inner = self.lock();
        if inner.frozen {
            return None;
        }
        let value = change(&mut inner.state);
        self.board.changed(&inner.state);
        Some(value)
    }

    pub(super) fn move_to(&self, x: i32, y: i32) {
        let mut inner = self.lock();
        if inner.frozen || inner.state.memory.pointer == (x, y) {
            return;
        }
        inner.state.memory.pointer = (x, y);
        drop(inner);
        self.changed.notify_waiters();
    }

    pub(super) fn button(&self, down: bool) {
        self.touch(|layout, state, held| desktop::button(layout, &mut state.memory, held, down));
    }

    pub(super) fn key(&self, name: &str, down: bool) -> bool {
        let Some(sym) = keysym::by_name(name) else { return false };
        self.touch(|layout, state, held| desktop::key(layout, &mut state.memory, held, sym, down));
        true
    }

    pub(super) fn type_char(&self, c: char) {
        self.touch(|layout, state, _| desktop::type_char(layout, &mut state.memory, c));
    }

    /// Gives the focus to the window with the field, or to the other one.
    pub(super) fn focus_notes(&self, notes: bool) {
        self.touch(|layout, state, _| desktop::focus(layout, &mut state.memory, notes));
    }

    pub(super) fn release_all(&self) {
        self.lock().held = Held::default();
    }

    /// Something on the desktop is touched, and a part of the screen may change of it.
    fn touch(&self, touch: impl FnOnce(&Layout, &mut State, &mut Held) -> Option<Rect>) {
        let mut inner = self.lock();
        if inner.frozen {
            return;
        }
        let Inner { state, layout, held, .. } = &mut *inner;
        let Some(area) = touch(layout, state, held) else { return };
        inner.damaged(area);
        self.board.changed(&inner.state);
        drop(inner);
        self.changed.notify_waiters();
    }

    pub(super) fn power(&self, reboot: bool) {
        self.board.power(reboot);
    }
}

impl Inner {
    /// Takes down that a part of the host's frame is not what it was.
    pub(super) fn changed(&mut self, area: Rect) {
        self.sequence += 1;
        if self.history.len() == HISTORY
            && let Some((oldest, _)) = self.history.pop_front()
        {
            self.floor = oldest;
        }
        self.history.push_back((self.sequence, area));
    }

    /// A part of the desktop has changed.
    pub(super) fn damaged(&mut self, area: Rect) {
        self.changed(area);
        self.watches.retain(|watch| {
            let watch = watch.upgrade();
            if let Some(watch) = &watch {
                watch.record(&[area]);
            }
            watch.is_some()
        });
    }

    pub(super) fn watch(&mut self, watch: &Arc<Watch>) {
        self.watches.retain(|watch| watch.strong_count() > 0);
        self.watches.push(Arc::downgrade(watch));
    }

    /// What has changed since, or nothing where that is not known any more.
    pub(super) fn changes(&self, since: u64) -> Option<Vec<Rect>> {
        if since < self.floor || since > self.sequence {
            return None;
        }
        Some(self.history.iter().filter(|(sequence, _)| *sequence > since).map(|(_, area)| *area).collect())
    }
}
