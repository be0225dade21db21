//! The clipboard and the windows of an X11 desktop: one connection and one thread, asleep unless somebody asks.
//!
//! ```text
//! Desk calls ──commands──► thread ──┬─ owner: selections that we own, served to programs (TARGETS, INCR, MULTIPLE)
//!                             ▲     ├─ fetch: the selection of a program, on its way in (TARGETS, INCR)
//!                     X events┘     └─ windows: lists and activates
//! ```
//!
//! The thread never waits for another program: a transfer is a state that the next event takes further, and that ends when
//! no event comes. What we own stays owned when the session ends that put it there.

mod fetch;
mod owner;
mod windows;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hvkube_proto::guest::v1 as pb;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::oneshot;
use x11rb::connection::Connection;
use x11rb::protocol::Event;
use x11rb::protocol::xfixes::{ConnectionExt as _, SelectionEventMask};
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, Property, Timestamp, Window,
    WindowClass,
};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;

use super::x11::connect;
use crate::display::{Content, Desk, DisplayError, Held, Selection, Wanted};

/// Calls that may wait for the thread at once.
const QUEUE: usize = 32;
/// How often to look whether a window has the focus: there is no one event for it on all desktops.
const LOOK_EVERY: Duration = Duration::from_millis(10);

mod atoms {
    x11rb::atom_manager! {
        pub Atoms: AtomsCookie {
            CLIPBOARD,
            TARGETS,
            TIMESTAMP,
            MULTIPLE,
            ATOM_PAIR,
            INCR,
            UTF8_STRING,
            TEXT_UTF8: b"text/plain;charset=utf-8",
            TEXT_PLAIN: b"text/plain",
            IMAGE_PNG: b"image/png",
            HVKUBE_TRANSFER,
            HVKUBE_TIME,
            WM_STATE,
            WM_CHANGE_STATE,
            _NET_SUPPORTING_WM_CHECK,
            _NET_CLIENT_LIST,
            _NET_CLIENT_LIST_STACKING,
            _NET_ACTIVE_WINDOW,
            _NET_WM_NAME,
            _NET_WM_PID,
            _NET_WM_STATE,
            _NET_WM_STATE_HIDDEN,
            _NET_FRAME_EXTENTS,
            _GTK_FRAME_EXTENTS,
        }
    }
}

use atoms::Atoms;

type Answer<T> = oneshot::Sender<Result<T, DisplayError>>;

enum Command {
    Get(Wanted, Answer<Held>),
    Set(Selection, Option<Content>, Answer<()>),
    Windows(Answer<pb::ListWindowsResponse>),
    Activate(Window, Answer<()>),
    Focused(Window, Answer<Option<pb::Window>>),
}

/// Access to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct DeskThread {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
}

impl DeskThread {
    /// Connects and starts the thread; it ends by itself when the display goes away.
    pub(super) fn start(display: &str) -> Result<Self, DisplayError> {
        let mut server = Server::connect(display)?;
        let (commands, queue) = sync_channel(QUEUE);
        let failed = |e: std::io::Error| DisplayError::Gone(e.to_string());
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(|e| failed(e.into()))?);
        let woken = Arc::clone(&wake);
        let body = move || {
            if let Err(error) = server.run(&queue, &woken) {
                tracing::error!(%error, "clipboard and windows lost");
            }
        };
        std::thread::Builder::new().name("desk".into()).spawn(body).map_err(failed)?;
        Ok(Self { commands, wake })
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, DisplayError> {
        let gone = || DisplayError::Gone("the thread of clipboard and windows has ended".into());
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|e| match e {
            TrySendError::Full(_) => DisplayError::Busy,
            TrySendError::Disconnected(_) => gone(),
        })?;
        self.wake();
        answer.await.map_err(|_| gone())?
    }

    fn wake(&self) {
        // Full means that it is awake already.
        let _counted = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for DeskThread {
    fn drop(&mut self) {
        let (unused, _) = sync_channel(1);
        self.commands = unused;
        self.wake();
    }
}

#[async_trait]
impl Desk for DeskThread {
    async fn clipboard(&self, wanted: Wanted) -> Result<Held, DisplayError> {
        self.ask(|reply| Command::Get(wanted, reply)).await
    }

    async fn set_clipboard(
        &self,
        selection: Selection,
        content: Option<Content>,
    ) -> Result<(), DisplayError> {
        self.ask(|reply| Command::Set(selection, content, reply)).await
    }

    async fn windows(&self) -> Result<pb::ListWindowsResponse, DisplayError> {
        self.ask(Command::Windows).await
    }

    async fn focus(&self, window: u64, timeout: Duration) -> Result<pb::Window, DisplayError> {
        // X11 numbers its windows with 29 bits.
        let id = Window::try_from(window).map_err(|_| DisplayError::NoWindow(window))?;
        let deadline = tokio::time::Instant::now() + timeout;
        self.ask(|reply| Command::Activate(id, reply)).await?;
        loop {
            if let Some(focused) = self.ask(|reply| Command::Focused(id, reply)).await? {
                return Ok(focused);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(DisplayError::Late("the window did not get the focus"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The state of the thread.
struct Server {
    conn: RustConnection,
    root: Window,
    atoms: Atoms,
    /// Owns selections, and has properties of ours; never shown.
    window: Window,
    owner: owner::Owner,
    fetches: fetch::Fetches,
    /// Events that came while we waited for another one.
    events: VecDeque<Event>,
}

impl Server {
    fn connect(display: &str) -> Result<Self, DisplayError> {
        let (conn, root) = connect(display)?;
        let atoms = Atoms::new(&conn)?.reply()?;
        let window = hidden_window(&conn, root)?;
        // A program that ends, or is replaced, owes us no answer any more.
        conn.xfixes_query_version(5, 0)?.reply()?;
        let changes = SelectionEventMask::SET_SELECTION_OWNER
            | SelectionEventMask::SELECTION_WINDOW_DESTROY
            | SelectionEventMask::SELECTION_CLIENT_CLOSE;
        for selection in [atoms.CLIPBOARD, AtomEnum::PRIMARY.into()] {
            conn.xfixes_select_selection_input(window, selection, changes)?;
        }
        let owner = owner::Owner::new(&conn);
        Ok(Self { conn, root, atoms, window, owner, fetches: Default::default(), events: VecDeque::new() })
    }

    fn run(&mut self, commands: &Receiver<Command>, wake: &OwnedFd) -> Result<(), DisplayError> {
        loop {
            while let Some(event) = self.next_event()? {
                self.note(event)?;
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.serve(command)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.expire_fetches()?;
            self.owner.expire(&self.conn)?;
            self.conn.flush()?;
            // Replies that were waited for above may have brought events with them.
            if let Some(event) = self.next_event()? {
                self.note(event)?;
                continue;
            }
            self.sleep(wake)?;
        }
    }

    fn next_event(&mut self) -> Result<Option<Event>, DisplayError> {
        match self.events.pop_front() {
            Some(event) => Ok(Some(event)),
            None => Ok(self.conn.poll_for_event()?),
        }
    }

    fn sleep(&self, wake: &OwnedFd) -> Result<(), DisplayError> {
        let until = self.owner.deadline().into_iter().chain(self.fetches.deadline()).min();
        let timeout =
            until.and_then(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())).ok());
        let mut fds = [
            PollFd::new(self.conn.stream(), PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(DisplayError::Gone(e.to_string())),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            let _count = rustix::io::read(wake, &mut [0; 8]);
        }
        Ok(())
    }

    fn serve(&mut self, command: Command) -> Result<(), DisplayError> {
        match command {
            Command::Get(wanted, reply) => self.fetch(wanted, reply),
            Command::Set(selection, content, reply) => {
                let set = self.set(selection, content);
                answer(reply, set)
            }
            Command::Windows(reply) => {
                let list = self.list();
                answer(reply, list)
            }
            Command::Activate(window, reply) => {
                let activated = self.activate(window);
                answer(reply, activated)
            }
            Command::Focused(window, reply) => {
                let focused = self.focused(window);
                answer(reply, focused)
            }
        }
    }

    fn note(&mut self, event: Event) -> Result<(), DisplayError> {
        match event {
            Event::SelectionRequest(request) => self.owner.serve(&self.conn, &self.atoms, &request),
            Event::SelectionClear(clear) => {
                if let Some(selection) = self.selection_of(clear.selection) {
                    self.owner.lost(selection, clear.time);
                }
                Ok(())
            }
            Event::SelectionNotify(notify) => self.fetched(&notify),
            Event::XfixesSelectionNotify(notify) => self.owner_changed(notify.selection),
            Event::PropertyNotify(notify) if notify.state == Property::DELETE => {
                self.owner.taken(&self.conn, notify.window, notify.atom)
            }
            Event::PropertyNotify(notify) => self.arrived(notify.window, notify.atom),
            _ => Ok(()),
        }
    }

    fn atom(&self, selection: Selection) -> Atom {
        match selection {
            Selection::Clipboard => self.atoms.CLIPBOARD,
            Selection::Primary => AtomEnum::PRIMARY.into(),
        }
    }

    fn selection_of(&self, atom: Atom) -> Option<Selection> {
        [Selection::Clipboard, Selection::Primary].into_iter().find(|s| self.atom(*s) == atom)
    }

    /// The server's time: what people do is ordered by it.
    fn now(&mut self) -> Result<Timestamp, DisplayError> {
        let property = self.atoms.HVKUBE_TIME;
        self.conn.change_property8(PropMode::APPEND, self.window, property, AtomEnum::STRING, &[])?;
        self.conn.flush()?;
        loop {
            match self.conn.wait_for_event()? {
                Event::PropertyNotify(notify) if notify.window == self.window && notify.atom == property => {
                    return Ok(notify.time);
                }
                other => self.events.push_back(other),
            }
        }
    }
}

/// A window that is never shown, and whose properties' changes we are told.
fn hidden_window(conn: &RustConnection, root: Window) -> Result<Window, DisplayError> {
    let window = conn.generate_id()?;
    let attributes = CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE).override_redirect(1);
    conn.create_window(0, window, root, -1, -1, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &attributes)?;
    Ok(window)
}

/// Hands the outcome to its caller; only a lost display ends the thread.
fn answer<T>(reply: Answer<T>, outcome: Result<T, DisplayError>) -> Result<(), DisplayError> {
    let lost = match &outcome {
        Err(error @ DisplayError::Gone(_)) => Err(error.clone()),
        _ => Ok(()),
    };
    let _gone = reply.send(outcome);
    lost
}
