//! Calls about what lies around on a desktop: the clipboard and the windows.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hvkube_proto::guest::v1 as pb;
use tokio::time::Instant;

use super::error::{GuestError, clip};
use super::session::{Session, request};
use super::wire;
use crate::model::screen::Size;

/// Largest content of a clipboard, in bytes, both ways.
pub const MAX_CLIPBOARD: usize = 16 << 20;
/// Pieces that content is sent in; the guest takes 1 MiB at most.
const PIECE: usize = 256 << 10;
/// Longest wait for a program that owns a selection, or for a window to get the focus: the guest takes no more.
const MAX_WAIT: Duration = Duration::from_secs(30);
pub(super) const MAX_WINDOWS: usize = 256;
pub(super) const MAX_TITLE: usize = 1024;
pub(super) const MAX_APP: usize = 256;
pub(super) const MAX_MONITORS: usize = 16;
pub(super) const MAX_CONNECTOR: usize = 64;
const DEFAULT_DPI: f64 = 96.0;

/// A selection of the desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selection {
    /// What copying fills and pasting takes.
    #[default]
    Clipboard,
    /// What marking text fills.
    Primary,
}

/// What a clipboard can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipboardKind {
    /// Text.
    Text,
    /// A picture as PNG.
    Png,
}

/// What a clipboard holds, [`MAX_CLIPBOARD`] bytes at most.
#[derive(Clone, PartialEq, Eq)]
pub enum Clipboard {
    /// Text, with all of its control characters.
    Text(String),
    /// What calls itself a PNG.
    Png(Bytes),
}

// What people copy does not belong into a log.
impl std::fmt::Debug for Clipboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text of {} bytes", text.len()),
            Self::Png(data) => write!(f, "Png of {} bytes", data.len()),
        }
    }
}

/// What was found in a clipboard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClipboardFound {
    /// The content; none where there is none of the wanted kind.
    pub content: Option<Clipboard>,
    /// As what it is to be had; 2 at most.
    pub available: Vec<ClipboardKind>,
    /// There is no content because it is larger than wanted.
    pub too_large: bool,
}

/// A window. Texts are bounded and free of control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Names it for as long as it exists.
    pub id: u64,
    /// Its title.
    pub title: String,
    /// The program.
    pub app: String,
    /// Its process in the guest; 0: unknown.
    pub pid: u32,
    /// With its frame.
    pub bounds: WindowArea,
    /// Without.
    pub content: WindowArea,
    /// It has the keyboard.
    pub focused: bool,
    /// It was minimised.
    pub minimised: bool,
}

/// A rectangle in the frame's pixels that may lie outside the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowArea {
    /// Left edge.
    pub x: i32,
    /// Top edge.
    pub y: i32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

/// A monitor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Monitor {
    /// Its connector.
    pub name: String,
    /// The part of the frame that it shows.
    pub bounds: WindowArea,
    /// People look at it first.
    pub primary: bool,
    /// Its size in millimetres; 0: unknown.
    pub millimetres: (u32, u32),
}

/// The windows, and the screen they are on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Windows {
    /// From the bottom to the top; 256 at most.
    pub windows: Vec<Window>,
    /// Size of the screen.
    pub size: Size,
    /// Pixels to an inch that programs draw for; finite, 1 to 10,000.
    pub dpi: f64,
    /// Monitors; 16 at most.
    pub monitors: Vec<Monitor>,
}

impl Session {
    /// What a selection holds; `max` bytes at most, and no memory for more.
    ///
    /// # Errors
    /// [`GuestError::Timeout`] when the program that owns it does not answer; [`GuestError::Protocol`] for an answer that is
    /// not what its header says.
    pub async fn get_clipboard(
        &self,
        selection: Selection,
        kind: Option<ClipboardKind>,
        max: usize,
        deadline: Instant,
    ) -> Result<ClipboardFound, GuestError> {
        let max = max.min(MAX_CLIPBOARD);
        let message = pb::GetClipboardRequest {
            selection: selection_of(selection),
            kind: kind.map_or(0, kind_of),
            max_bytes: u32::try_from(max).unwrap_or(u32::MAX),
            timeout: Some(patience(deadline)),
        };
        let mut client = self.desktop();
        self.call("get the clipboard from the program that owns it", deadline, async {
            let mut parts = client.get_clipboard(request(message, deadline)).await?.into_inner();
            let mut order = ClipboardOrder::new(max);
            while let Some(part) = parts.message().await? {
                if let Err(error) = order.take(part) {
                    return Ok(Err(error));
                }
            }
            Ok(order.end())
        })
        .await?
    }

    /// Puts something into a selection, or empties it. The guest's agent serves it from then on.
    ///
    /// # Errors
    /// [`GuestError::Invalid`] where the guest can't hold so much; else as every call.
    pub async fn set_clipboard(
        &self,
        selection: Selection,
        content: Option<Clipboard>,
        deadline: Instant,
    ) -> Result<(), GuestError> {
        use pb::set_clipboard_request::Part;
        let (kind, mut data) = match content {
            None => (0, Bytes::new()),
            Some(Clipboard::Text(text)) => (kind_of(ClipboardKind::Text), Bytes::from(text)),
            Some(Clipboard::Png(data)) => (kind_of(ClipboardKind::Png), data),
        };
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let header = pb::SetClipboardHeader { selection: selection_of(selection), kind, bytes };
        let pieces = std::iter::from_fn(move || {
            (!data.is_empty()).then(|| Part::Data(data.split_to(PIECE.min(data.len()))))
        });
        let parts = std::iter::once(Part::Header(header)).chain(pieces);
        let messages = stream::iter(parts.map(|part| pb::SetClipboardRequest { part: Some(part) }));
        let mut client = self.desktop();
        let call = client.set_clipboard(request(messages, deadline));
        self.call("take the clipboard", deadline, call).await.map(|_| ())
    }

    /// The windows and the screen.
    ///
    /// # Errors
    /// As every call; [`GuestError::NotReady`] without a desktop.
    pub async fn list_windows(&self, deadline: Instant) -> Result<Windows, GuestError> {
        let (_turn, mut client) = self.windows(deadline).await?;
        let call = client.list_windows(request(pb::ListWindowsRequest {}, deadline));
        windows(self.call("list its windows", deadline, call).await?.into_inner())
    }

    /// Raises a window and gives it the keyboard; answers when it has it.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] without such a window; [`GuestError::Timeout`] when it has not got the focus in time.
    pub async fn focus_window(
        &self,
        id: u64,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Window, GuestError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = wire::duration(timeout.min(left).min(MAX_WAIT));
        let message = pb::FocusWindowRequest { id, timeout: Some(timeout) };
        let mut client = self.desktop();
        let call = client.focus_window(request(message, deadline));
        focused(self.call("give the window the focus", deadline, call).await?.into_inner(), id)
    }
}

/// What the guest may wait for others, so that its own answer still comes in time.
fn patience(deadline: Instant) -> prost_types::Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    wire::duration(left.saturating_sub((left / 10).min(Duration::from_secs(1))).min(MAX_WAIT))
}

fn selection_of(selection: Selection) -> i32 {
    i32::from(match selection {
        Selection::Clipboard => pb::Selection::Clipboard,
        Selection::Primary => pb::Selection::Primary,
    })
}

fn kind_of(kind: ClipboardKind) -> i32 {
    i32::from(match kind {
        ClipboardKind::Text => pb::ClipboardKind::Text,
        ClipboardKind::Png => pb::ClipboardKind::Png,
    })
}

fn known(kind: i32) -> Option<ClipboardKind> {
    match pb::ClipboardKind::try_from(kind) {
        Ok(pb::ClipboardKind::Text) => Some(ClipboardKind::Text),
        Ok(pb::ClipboardKind::Png) => Some(ClipboardKind::Png),
        Ok(pb::ClipboardKind::Unspecified) | Err(_) => None,
    }
}

/// A clipboard on its way in: its header, then no more than that announced.
pub(super) struct ClipboardOrder {
    max: usize,
    begun: Option<(pb::ClipboardHeader, Vec<u8>)>,
}

impl ClipboardOrder {
    /// For `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max, begun: None }
    }

    pub(super) fn take(&mut self, part: pb::GetClipboardResponse) -> Result<(), GuestError> {
        use pb::get_clipboard_response::Part;
        match (&mut self.begun, part.part) {
            (None, Some(Part::Header(header))) => {
                let expected = header.bytes as usize;
                if expected > self.max {
                    return Err(GuestError::Protocol(format!("a clipboard of {expected} bytes")));
                }
                self.begun = Some((header, Vec::with_capacity(expected)));
                Ok(())
            }
            (Some((header, data)), Some(Part::Data(piece)))
                if piece.len() <= header.bytes as usize - data.len() =>
            {
                data.extend_from_slice(&piece);
                Ok(())
            }
            (None, _) => Err(GuestError::Protocol("a clipboard without its header".to_owned())),
            (Some(_), _) => Err(GuestError::Protocol("more than the clipboard's bytes".to_owned())),
        }
    }

    pub(super) fn end(self) -> Result<ClipboardFound, GuestError> {
        let missing = || GuestError::Protocol("a clipboard without its header".to_owned());
        let (header, data) = self.begun.ok_or_else(missing)?;
        found(&header, data)
    }
}

fn found(header: &pb::ClipboardHeader, data: Vec<u8>) -> Result<ClipboardFound, GuestError> {
    if data.len() != header.bytes as usize {
        let why = format!("{} bytes of a clipboard of {}", data.len(), header.bytes);
        return Err(GuestError::Protocol(why));
    }
    let mut available = Vec::new();
    for kind in header.available.iter().filter_map(|kind| known(*kind)) {
        if !available.contains(&kind) {
            available.push(kind);
        }
    }
    let content = match known(header.kind) {
        Some(ClipboardKind::Text) => {
            let text = String::from_utf8(data);
            Some(Clipboard::Text(text.map_err(|_| GuestError::Protocol("a text that is not UTF-8".into()))?))
        }
        Some(ClipboardKind::Png) => Some(Clipboard::Png(data.into())),
        None => None,
    };
    Ok(ClipboardFound { content, available, too_large: header.too_large })
}

pub(super) fn windows(answer: pb::ListWindowsResponse) -> Result<Windows, GuestError> {
    let screen = answer.screen.unwrap_or_default();
    let dpi = if (1.0..=10_000.0).contains(&screen.dpi) { screen.dpi } else { DEFAULT_DPI };
    let mut all = answer.windows;
    // Of too many the top ones.
    let extra = all.len().saturating_sub(MAX_WINDOWS);
    Ok(Windows {
        // Drained, since a vector that is consumed may live on as the result with all of its room.
        windows: all.drain(extra..).map(window).collect(),
        size: wire::size(screen.width, screen.height)?,
        dpi,
        monitors: screen.monitors.into_iter().take(MAX_MONITORS).map(monitor).collect(),
    })
}

pub(super) fn focused(answer: pb::FocusWindowResponse, id: u64) -> Result<Window, GuestError> {
    let focused = answer.window.map(window).filter(|window| window.id == id);
    focused.ok_or_else(|| GuestError::Protocol("another window than was asked for".to_owned()))
}

fn window(window: pb::Window) -> Window {
    Window {
        id: window.id,
        title: clip(&window.title, MAX_TITLE),
        app: clip(&window.app, MAX_APP),
        pid: window.pid,
        bounds: area(window.bounds),
        content: area(window.content),
        focused: window.focused,
        minimised: window.minimised,
    }
}

fn monitor(monitor: pb::Monitor) -> Monitor {
    Monitor {
        name: clip(&monitor.name, MAX_CONNECTOR),
        bounds: area(monitor.bounds),
        primary: monitor.primary,
        millimetres: (monitor.width_mm, monitor.height_mm),
    }
}

fn area(area: Option<pb::Area>) -> WindowArea {
    let pb::Area { x, y, width, height } = area.unwrap_or_default();
    WindowArea { x, y, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: pb::ClipboardKind, bytes: u32) -> pb::ClipboardHeader {
        let available = [1, 2, 1, 7, 0, 2].repeat(1000);
        pb::ClipboardHeader { kind: kind.into(), bytes, available, too_large: false }
    }

    #[test]
    fn a_clipboard_must_be_what_its_header_says() {
        let text = found(&header(pb::ClipboardKind::Text, 3), "a\u{1b}b".into()).expect("legal");
        assert_eq!(text.content, Some(Clipboard::Text("a\u{1b}b".into())), "as it is");
        assert_eq!(text.available, [ClipboardKind::Text, ClipboardKind::Png]);
        for (header, data) in [
            (header(pb::ClipboardKind::Text, 4), &b"abc"[..]),
            (header(pb::ClipboardKind::Text, 2), b"\xff\xfe"),
        ] {
            let refused = found(&header, data.to_vec());
            assert!(matches!(refused, Err(GuestError::Protocol(_))), "{refused:?}");
        }
        let secret = Clipboard::Text("hunter2".into());
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn what_a_guest_says_of_windows_is_cut_and_cleaned() {
        let told = window(pb::Window {
            title: format!("\x1b]0;evil\x07{}", "ж".repeat(10_000)),
            app: "x\n".repeat(1000),
            ..Default::default()
        });
        assert!(told.title.len() <= MAX_TITLE && told.app.len() <= MAX_APP);
        assert!(!told.title.chars().chain(told.app.chars()).any(char::is_control), "{told:?}");
    }
}
