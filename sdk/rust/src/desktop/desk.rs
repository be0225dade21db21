//! The clipboard, the windows, and masks over the screen.

use std::time::Duration;

use bytes::Bytes;

use crate::client::call;
use crate::desktop::Target;
use crate::error::Result;
use crate::v1::clipboard_content::Content;
use crate::v1::{
    ClipboardContent, ClipboardFormat, ClipboardSelection, FocusWindowRequest, GetClipboardRequest,
    ListMasksRequest, ListMasksResponse, ListWindowsRequest, ListWindowsResponse, Rect, SetClipboardRequest,
    SetMasksRequest, Window,
};

/// Most that a clipboard holds, in bytes.
const MAX_BYTES: u32 = 16 << 20;
/// How long a program in the guest may take to hand over what it copied.
const OWNER: Duration = Duration::from_secs(30);
/// How long a window may take to get the focus when nothing else was asked for.
const FOCUS: Duration = Duration::from_secs(5);

/// What a clipboard holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clipboard {
    /// Text, exactly as it was copied: a guest may have put control characters into it.
    Text(String),
    /// A picture as PNG.
    Png(Bytes),
}

impl From<&str> for Clipboard {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Clipboard {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Target {
    /// What the clipboard holds: text where there is text, else a picture. Nothing when it is empty.
    ///
    /// ```no_run
    /// # async fn example(desktop: hvkube_sdk::Desktop) -> Result<(), hvkube_sdk::Error> {
    /// desktop.set_clipboard("pasted by ctrl+v").await?;
    /// desktop.chord("ctrl+v").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` when the program that owns the clipboard does not answer.
    pub async fn clipboard(&self) -> Result<Option<Clipboard>> {
        self.clipboard_as(ClipboardSelection::Clipboard, ClipboardFormat::Unspecified).await
    }

    /// The same of any selection, in one format only.
    ///
    /// # Errors
    /// As [`Target::clipboard`].
    pub async fn clipboard_as(
        &self,
        selection: ClipboardSelection,
        format: ClipboardFormat,
    ) -> Result<Option<Clipboard>> {
        let request = GetClipboardRequest {
            target: self.name().to_owned(),
            selection: selection.into(),
            format: format.into(),
            max_bytes: MAX_BYTES,
        };
        let wait = self.client().after(OWNER);
        let answer = call!(self.client(), Repeatable, wait, desktops.get_clipboard(request))?;
        Ok(answer.content.and_then(|content| content.content).map(|content| match content {
            Content::Text(text) => Clipboard::Text(text),
            Content::Png(data) => Clipboard::Png(data),
        }))
    }

    /// Puts text or a picture into the clipboard, where it stays until something else is copied.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for more than 16 MiB, or a picture that is no PNG.
    pub async fn set_clipboard(&self, content: impl Into<Clipboard>) -> Result<()> {
        self.set_clipboard_of(ClipboardSelection::Clipboard, Some(content.into())).await
    }

    /// The same with any selection; without content it is emptied.
    ///
    /// # Errors
    /// As [`Target::set_clipboard`].
    pub async fn set_clipboard_of(
        &self,
        selection: ClipboardSelection,
        content: Option<Clipboard>,
    ) -> Result<()> {
        let content = content.map(|content| ClipboardContent {
            content: Some(match content {
                Clipboard::Text(text) => Content::Text(text),
                Clipboard::Png(data) => Content::Png(data),
            }),
        });
        let target = self.name().to_owned();
        let request = SetClipboardRequest { target, selection: selection.into(), content };
        call!(self.client(), Repeatable, self.client().quick(), desktops.set_clipboard(request)).map(drop)
    }

    /// Covers these parts of the screen (pixels of the frame) in every picture that leaves the host, in place of the masks
    /// before, until the lease ends. None: nothing is covered.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` (`OUT_OF_FRAME`).
    pub async fn set_masks(&self, masks: Vec<Rect>) -> Result<Vec<Rect>> {
        let request = SetMasksRequest { target: self.name().to_owned(), masks, frame_size: None };
        let answer = call!(self.client(), Repeatable, self.client().quick(), desktops.set_masks(request))?;
        Ok(answer.masks)
    }

    /// What is covered now.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`LEASE_ENDED`).
    pub async fn masks(&self) -> Result<ListMasksResponse> {
        let request = ListMasksRequest { target: self.name().to_owned() };
        call!(self.client(), Repeatable, self.client().quick(), desktops.list_masks(request))
    }

    /// The windows on the desktop, from the bottom to the top, and what is known of the screen.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`VM_NOT_RUNNING`, `LEASE_ENDED`); `UNAVAILABLE` without a guest agent.
    pub async fn windows(&self) -> Result<ListWindowsResponse> {
        let request = ListWindowsRequest { target: self.name().to_owned() };
        call!(self.client(), Repeatable, self.client().quick(), desktops.list_windows(request))
    }

    /// Raises the window with this `id` and gives it the keyboard; answers when it has it.
    ///
    /// # Errors
    /// `NOT_FOUND` (`WINDOW_NOT_FOUND`); `DEADLINE_EXCEEDED` when it has not got the focus within 5 s.
    pub async fn focus(&self, window_id: u64) -> Result<Window> {
        let request = FocusWindowRequest { target: self.name().to_owned(), window_id, timeout: None };
        let wait = self.client().after(FOCUS);
        let answer = call!(self.client(), Repeatable, wait, desktops.focus_window(request))?;
        Ok(answer.window.unwrap_or_default())
    }
}
