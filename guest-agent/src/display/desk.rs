//! The clipboard and the windows: what a platform brings, and `DesktopService` of one session.
//!
//! Content of the clipboard belongs to the desktop, not to a session: what a host has put there is served to the desktop's
//! programs until one of them copies something else, also while no host is there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::desktop_service_server::DesktopService;
use tonic::{Request, Response, Status, Streaming};

use super::{Desktop, DisplayError};
use crate::process::{Reply, duration};

/// Largest content of a clipboard, in bytes.
pub const MAX_CONTENT: usize = 16 << 20;
/// Most windows that are told.
pub const MAX_WINDOWS: usize = 256;
/// Largest piece of content that is sent; it shares the stream with frames.
const CHUNK: usize = 64 << 10;
/// Longest wait for a program that owns a selection, or for a window to get the focus.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
const FOCUS_TIMEOUT: Duration = Duration::from_secs(5);

/// A selection of the desktop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// What copying fills and pasting takes.
    Clipboard,
    /// What marking text fills.
    Primary,
}

/// What a selection can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text in UTF-8.
    Text,
    /// A picture as PNG.
    Png,
}

/// What a selection holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// As what.
    pub kind: Kind,
    /// Its bytes, [`MAX_CONTENT`] at most.
    pub data: Bytes,
}

// What people copy is nobody's business.
impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {} bytes", self.kind, self.data.len())
    }
}

/// What is wanted of a selection.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which.
    pub selection: Selection,
    /// As what; none: text where there is text, else a picture.
    pub kind: Option<Kind>,
    /// More bytes are not wanted.
    pub max: usize,
    /// How long the owner may take.
    pub timeout: Duration,
}

/// What a selection holds, as far as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The content; none where there is none of the wanted kind, or it is too large.
    pub content: Option<Content>,
    /// As what it is to be had.
    pub available: Vec<Kind>,
    /// It is larger than wanted.
    pub too_large: bool,
}

/// A platform's clipboard and windows.
#[async_trait]
pub trait Desk: Send + Sync + 'static {
    /// What a selection holds.
    async fn clipboard(&self, wanted: Wanted) -> Result<Held, DisplayError>;

    /// Puts something into a selection, or empties it. Programs get it as soon as this has returned, for as long as nothing
    /// else takes its place.
    async fn set_clipboard(&self, selection: Selection, content: Option<Content>)
    -> Result<(), DisplayError>;

    /// The windows from the bottom to the top, [`MAX_WINDOWS`] at most, and the screen.
    async fn windows(&self) -> Result<pb::ListWindowsResponse, DisplayError>;

    /// Raises a window and gives it the keyboard; returns when it is seen to have it.
    async fn focus(&self, window: u64, timeout: Duration) -> Result<pb::Window, DisplayError>;
}

/// Serves one session.
#[derive(Clone)]
pub struct DeskSession {
    desk: Arc<dyn Desk>,
}

impl DeskSession {
    /// Begins a session.
    #[must_use]
    pub fn new(desktop: &Desktop) -> Self {
        Self { desk: Arc::clone(&desktop.desk) }
    }
}

fn selection(value: i32) -> Result<Selection, Status> {
    match pb::Selection::try_from(value) {
        Ok(pb::Selection::Unspecified | pb::Selection::Clipboard) => Ok(Selection::Clipboard),
        Ok(pb::Selection::Primary) => Ok(Selection::Primary),
        Err(_) => Err(Status::invalid_argument("selection: unknown value")),
    }
}

fn kind(value: i32) -> Result<Option<Kind>, Status> {
    match pb::ClipboardKind::try_from(value) {
        Ok(pb::ClipboardKind::Unspecified) => Ok(None),
        Ok(pb::ClipboardKind::Text) => Ok(Some(Kind::Text)),
        Ok(pb::ClipboardKind::Png) => Ok(Some(Kind::Png)),
        Err(_) => Err(Status::invalid_argument("kind: unknown value")),
    }
}

fn told(kind: Kind) -> i32 {
    i32::from(match kind {
        Kind::Text => pb::ClipboardKind::Text,
        Kind::Png => pb::ClipboardKind::Png,
    })
}

fn timeout(value: Option<&prost_types::Duration>, default: Duration) -> Result<Duration, Status> {
    let given = duration("timeout", value, MAX_TIMEOUT)?;
    Ok(if given.is_zero() { default } else { given })
}

/// Takes exactly as many bytes as the header says, and no memory for more.
async fn content(
    header: &pb::SetClipboardHeader,
    parts: &mut Streaming<pb::SetClipboardRequest>,
) -> Result<Option<Content>, Status> {
    use pb::set_clipboard_request::Part;
    let bytes = header.bytes as usize;
    if bytes > MAX_CONTENT {
        return Err(Status::invalid_argument(format!("bytes: {bytes}, at most {MAX_CONTENT} are allowed")));
    }
    let mut data = Vec::with_capacity(bytes);
    while let Some(message) = parts.message().await? {
        let Some(Part::Data(piece)) = message.part else {
            return Err(Status::invalid_argument("only the first message may be a header"));
        };
        if piece.len() > bytes - data.len() {
            return Err(Status::invalid_argument("more data than the header says"));
        }
        data.extend_from_slice(&piece);
    }
    if data.len() < bytes {
        return Err(Status::invalid_argument(format!("{} bytes came of {bytes}", data.len())));
    }
    let Some(kind) = kind(header.kind)? else {
        return if bytes == 0 { Ok(None) } else { Err(Status::invalid_argument("kind: is required")) };
    };
    if kind == Kind::Text && std::str::from_utf8(&data).is_err() {
        return Err(Status::invalid_argument("data: the text is not UTF-8"));
    }
    Ok(Some(Content { kind, data: data.into() }))
}

#[tonic::async_trait]
impl DesktopService for DeskSession {
    type GetClipboardStream = Reply<pb::GetClipboardResponse>;

    async fn get_clipboard(
        &self,
        request: Request<pb::GetClipboardRequest>,
    ) -> Result<Response<Self::GetClipboardStream>, Status> {
        use pb::get_clipboard_response::Part;
        let request = request.into_inner();
        let max = request.max_bytes as usize;
        if max > MAX_CONTENT {
            return Err(Status::invalid_argument(format!("max_bytes: {max}, at most {MAX_CONTENT}")));
        }
        let wanted = Wanted {
            selection: selection(request.selection)?,
            kind: kind(request.kind)?,
            max: if max == 0 { MAX_CONTENT } else { max },
            timeout: timeout(request.timeout.as_ref(), MAX_TIMEOUT)?,
        };
        let held = self.desk.clipboard(wanted).await?;
        let mut header = pb::ClipboardHeader {
            available: held.available.into_iter().map(told).collect(),
            too_large: held.too_large,
            ..Default::default()
        };
        let mut data = Bytes::new();
        if let Some(content) = held.content {
            header.kind = told(content.kind);
            header.bytes = u32::try_from(content.data.len()).unwrap_or(u32::MAX);
            data = content.data;
        }
        let pieces = std::iter::from_fn(move || {
            (!data.is_empty()).then(|| Part::Data(data.split_to(CHUNK.min(data.len()))))
        });
        let parts = std::iter::once(Part::Header(header)).chain(pieces);
        let messages = parts.map(|part| Ok(pb::GetClipboardResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn set_clipboard(
        &self,
        request: Request<Streaming<pb::SetClipboardRequest>>,
    ) -> Result<Response<pb::SetClipboardResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|message| message.part);
        let Some(pb::set_clipboard_request::Part::Header(header)) = first else {
            return Err(Status::invalid_argument("the first message must be the header"));
        };
        let selection = selection(header.selection)?;
        let content = content(&header, &mut parts).await?;
        self.desk.set_clipboard(selection, content).await?;
        Ok(Response::new(pb::SetClipboardResponse {}))
    }

    async fn list_windows(
        &self,
        _request: Request<pb::ListWindowsRequest>,
    ) -> Result<Response<pb::ListWindowsResponse>, Status> {
        Ok(Response::new(self.desk.windows().await?))
    }

    async fn focus_window(
        &self,
        request: Request<pb::FocusWindowRequest>,
    ) -> Result<Response<pb::FocusWindowResponse>, Status> {
        let request = request.into_inner();
        let timeout = timeout(request.timeout.as_ref(), FOCUS_TIMEOUT)?;
        let window = self.desk.focus(request.id, timeout).await?;
        Ok(Response::new(pb::FocusWindowResponse { window: Some(window) }))
    }
}
