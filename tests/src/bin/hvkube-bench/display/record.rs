//! What the X server records of input: raw events, which it sends before any program's own.
//!
//! A thread of its own reads them and takes the time, so that nobody else's work stands between an event and its time. What
//! is measured so is a little too long: by the server's way to this thread.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{timeout, timeout_at};
use x11rb::connection::Connection as _;
use x11rb::protocol::Event;
use x11rb::protocol::xinput::{self, ConnectionExt as _, XIEventMask};
use x11rb::protocol::xproto::{ConnectionExt as _, Window};
use x11rb::rust_connection::RustConnection;

use super::paint::connect;
use super::peers::OnDisplay;

/// Events that may wait to be looked at: more than any round makes.
const QUEUE: usize = 4096;
/// A peer's slowest click takes a fifth of a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// One raw event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Motion,
    Press(u32),
    Release(u32),
    KeyDown,
    KeyUp,
}

/// A watch over the input of a display.
pub(super) struct Recorder {
    events: Receiver<(Instant, Kind)>,
    conn: RustConnection,
    root: Window,
}

impl Recorder {
    pub(super) fn new(on: &OnDisplay) -> anyhow::Result<Self> {
        let reader = connect(on).context("connect to the X server")?;
        let root = select(&reader)?;
        let (sender, events) = channel(QUEUE);
        // Ends with the connection, or when nobody listens any more.
        std::thread::Builder::new().name("recorder".into()).spawn(move || {
            while let Ok(event) = reader.wait_for_event() {
                let now = Instant::now();
                if let Some(kind) = kind(&event)
                    && sender.blocking_send((now, kind)).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self { events, conn: connect(on)?, root })
    }

    /// Forgets what has come so far, a peer's late events included.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        // After an answer to this connection the server has sent everything that came before to the other.
        self.pointer()?;
        while timeout(Duration::from_millis(2), self.events.recv()).await.is_ok_and(|event| event.is_some()) {
        }
        Ok(())
    }

    /// Waits for the `count`th event of a kind, and gives when it was seen.
    pub(super) async fn wait(&mut self, wanted: Kind, count: usize) -> anyhow::Result<Instant> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut left = count;
        loop {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((at, kind))) if kind == wanted => {
                    left -= 1;
                    if left == 0 {
                        return Ok(at);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => bail!("the X server went away"),
                Err(_) => bail!("the X server saw no {wanted:?}"),
            }
        }
    }

    fn pointer(&self) -> anyhow::Result<(i32, i32)> {
        let at = self.conn.query_pointer(self.root)?.reply()?;
        Ok((at.root_x.into(), at.root_y.into()))
    }

    /// Fails unless the pointer is there: what was measured must have been done.
    pub(super) fn check(&self, place: (i32, i32)) -> anyhow::Result<()> {
        let at = self.pointer()?;
        ensure!(at == place, "the pointer is at {at:?}, not at {place:?}");
        Ok(())
    }
}

/// Asks for raw events; gives the root window.
pub(super) fn select(conn: &RustConnection) -> anyhow::Result<Window> {
    let root = conn.setup().roots.first().context("the X server has no screen")?.root;
    conn.xinput_xi_query_version(2, 2)?.reply().context("the X server has no XInput 2")?;
    let mask = XIEventMask::RAW_MOTION
        | XIEventMask::RAW_BUTTON_PRESS
        | XIEventMask::RAW_BUTTON_RELEASE
        | XIEventMask::RAW_KEY_PRESS
        | XIEventMask::RAW_KEY_RELEASE;
    let mask = xinput::EventMask { deviceid: xinput::Device::ALL_MASTER.into(), mask: vec![mask] };
    conn.xinput_xi_select_events(root, &[mask])?.check()?;
    Ok(root)
}

/// What an event is to us.
pub(super) fn kind(event: &Event) -> Option<Kind> {
    Some(match event {
        Event::XinputRawMotion(_) => Kind::Motion,
        Event::XinputRawButtonPress(e) => Kind::Press(e.detail),
        Event::XinputRawButtonRelease(e) => Kind::Release(e.detail),
        Event::XinputRawKeyPress(_) => Kind::KeyDown,
        Event::XinputRawKeyRelease(_) => Kind::KeyUp,
        _ => return None,
    })
}
