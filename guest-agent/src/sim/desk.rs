//! The clipboard and the two windows of a simulated desktop.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;

use super::computer::{Computer, Inner};
use super::state::Clip;
use crate::display::{Content, Desk, DisplayError, Held, Kind, Rect, Selection, Wanted};

/// Largest content of the clipboard, in bytes: it is written down with all else that a guest remembers.
const MAX_CLIP: usize = 64 << 10;
const NOTES: u64 = 1;
const COUNTER: u64 = 2;
const DPI: f64 = 96.0;

#[async_trait]
impl Desk for Computer {
    async fn clipboard(&self, wanted: Wanted) -> Result<Held, DisplayError> {
        // Nothing on this desktop fills the other selection.
        if wanted.selection == Selection::Primary {
            return Ok(Held::default());
        }
        let Some(content) = self.lock().state.memory.clipboard.as_ref().map(Clip::content) else {
            return Ok(Held::default());
        };
        let held = Held { available: vec![content.kind], ..Held::default() };
        Ok(if wanted.kind.is_some_and(|kind| kind != content.kind) {
            held
        } else if content.data.len() > wanted.max {
            Held { too_large: true, ..held }
        } else {
            Held { content: Some(content), ..held }
        })
    }

    async fn set_clipboard(
        &self,
        selection: Selection,
        content: Option<Content>,
    ) -> Result<(), DisplayError> {
        if selection == Selection::Primary {
            return Err(DisplayError::Unsupported("a simulated desktop has no primary selection".into()));
        }
        let bytes = content.as_ref().map_or(0, |content| content.data.len());
        if bytes > MAX_CLIP {
            let why = format!("{bytes} bytes; a simulated desktop's clipboard takes {MAX_CLIP}");
            return Err(DisplayError::Invalid(why));
        }
        let clip = content.map(|content| Clip::of(&content));
        self.change(|state| state.memory.clipboard = clip).ok_or_else(still)
    }

    async fn windows(&self) -> Result<pb::ListWindowsResponse, DisplayError> {
        Ok(self.lock().windows())
    }

    async fn focus(&self, window: u64, _timeout: Duration) -> Result<pb::Window, DisplayError> {
        if window != NOTES && window != COUNTER {
            return Err(DisplayError::NoWindow(window));
        }
        self.focus_notes(window == NOTES);
        let windows = self.lock().windows().windows;
        let focused = windows.into_iter().find(|w| w.id == window && w.focused);
        focused.ok_or_else(still)
    }
}

fn still() -> DisplayError {
    DisplayError::Gone("the guest stands still".into())
}

impl Clip {
    fn of(content: &Content) -> Self {
        match content.kind {
            Kind::Text => Self::Text(String::from_utf8_lossy(&content.data).into_owned()),
            Kind::Png => Self::Png(content.data.to_vec()),
        }
    }

    fn content(&self) -> Content {
        match self {
            Self::Text(text) => Content { kind: Kind::Text, data: Bytes::copy_from_slice(text.as_bytes()) },
            Self::Png(data) => Content { kind: Kind::Png, data: Bytes::copy_from_slice(data) },
        }
    }
}

impl Inner {
    fn windows(&self) -> pb::ListWindowsResponse {
        let notes = self.state.memory.focused;
        let window = |id, title: &str, bounds, focused| pb::Window {
            id,
            title: title.to_owned(),
            app: title.to_owned(),
            pid: 0,
            bounds: Some(area(bounds)),
            content: Some(area(below_title(bounds))),
            focused,
            minimised: false,
        };
        let mut windows = vec![
            window(NOTES, "Notes", self.layout.notes, notes),
            window(COUNTER, "Counter", self.layout.counter, !notes),
        ];
        // The one with the focus is on top.
        if notes {
            windows.reverse();
        }
        let (width, height) = self.layout.screen;
        let whole = area(Rect { x: 0, y: 0, width, height });
        let monitor =
            pb::Monitor { name: "Sim-1".into(), bounds: Some(whole), primary: true, ..Default::default() };
        let screen = pb::ScreenInfo { width, height, dpi: DPI, monitors: vec![monitor] };
        pb::ListWindowsResponse { windows, screen: Some(screen) }
    }
}

fn below_title(window: Rect) -> Rect {
    let title = super::desktop::BAR.min(window.height - 1);
    Rect { y: window.y + title, height: window.height - title, ..window }
}

fn area(rect: Rect) -> pb::Area {
    // A screen's sides are small.
    let at = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    pb::Area { x: at(rect.x), y: at(rect.y), width: rect.width, height: rect.height }
}
