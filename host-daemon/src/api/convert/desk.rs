//! Clipboards, windows and what is known of screens.

use std::io::Cursor;
use std::time::Duration;

use hvkube_proto::v1;
use image::ImageDecoder as _;
use image::codecs::png::PngDecoder;

use super::screen;
use crate::api::fields;
use crate::guest::{
    Clipboard, ClipboardFound, ClipboardKind, MAX_CLIPBOARD, Monitor, Selection, Window, WindowArea, Windows,
};
use crate::model::error::{Error, Reason, Result};
use crate::model::mask::Masks;
use crate::model::screen::{Rect, Size};

/// What an answer holds at most where nobody says anything: it fits a client's default message limit.
const DEFAULT_BYTES: usize = 3_500_000;
const DEFAULT_FOCUS: Duration = Duration::from_secs(5);
const FOCUS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);

/// What to get of a clipboard.
pub(crate) struct Get {
    pub(crate) selection: Selection,
    pub(crate) kind: Option<ClipboardKind>,
    pub(crate) max: usize,
}

pub(crate) fn get(request: &v1::GetClipboardRequest) -> Result<Get> {
    let kind = match fields::one_of("format", request.format, v1::ClipboardFormat::as_str_name)? {
        v1::ClipboardFormat::Unspecified => None,
        v1::ClipboardFormat::Text => Some(ClipboardKind::Text),
        v1::ClipboardFormat::Png => Some(ClipboardKind::Png),
    };
    let most = u32::try_from(MAX_CLIPBOARD).unwrap_or(u32::MAX);
    let max = match fields::range("max_bytes", request.max_bytes, 0..=most)? {
        0 => DEFAULT_BYTES,
        max => max as usize,
    };
    Ok(Get { selection: selection(request.selection)?, kind, max })
}

pub(crate) fn set(request: &v1::SetClipboardRequest) -> Result<(Selection, Option<Clipboard>)> {
    use v1::clipboard_content::Content;
    let selection = selection(request.selection)?;
    let within = |field: &str, bytes: usize| {
        let what = format!("has {bytes} bytes, at most {MAX_CLIPBOARD} are allowed");
        if bytes > MAX_CLIPBOARD { Err(Error::field(field, what)) } else { Ok(()) }
    };
    let content = match &request.content {
        None => None,
        Some(v1::ClipboardContent { content: None }) => {
            return Err(Error::field(
                "content",
                "is empty; set text or png, or leave it out to empty the clipboard",
            ));
        }
        Some(v1::ClipboardContent { content: Some(Content::Text(text)) }) => {
            within("content.text", text.len())?;
            Some(Clipboard::Text(text.clone()))
        }
        Some(v1::ClipboardContent { content: Some(Content::Png(data)) }) => {
            within("content.png", data.len())?;
            check_png(data).map_err(|why| Error::field("content.png", why))?;
            Some(Clipboard::Png(data.clone()))
        }
    };
    Ok((selection, content))
}

pub(crate) fn found(found: ClipboardFound, max: usize) -> Result<v1::GetClipboardResponse> {
    use v1::clipboard_content::Content;
    if found.too_large {
        let message = format!("the clipboard holds more than {max} bytes; ask with a larger max_bytes");
        return Err(Error::new(Reason::ClipboardTooLarge, message).with("max_bytes", max));
    }
    let content = match found.content {
        None => None,
        Some(Clipboard::Text(text)) => Some(Content::Text(text)),
        Some(Clipboard::Png(data)) => {
            // Whoever gets it will decode it.
            check_png(&data).map_err(|why| {
                Error::new(
                    Reason::GuestFailed,
                    format!("a program in the guest copied a broken png: it {why}"),
                )
            })?;
            Some(Content::Png(data))
        }
    };
    let format = |kind| match kind {
        ClipboardKind::Text => v1::ClipboardFormat::Text.into(),
        ClipboardKind::Png => v1::ClipboardFormat::Png.into(),
    };
    Ok(v1::GetClipboardResponse {
        content: content.map(|content| v1::ClipboardContent { content: Some(content) }),
        formats: found.available.into_iter().map(format).collect(),
    })
}

fn selection(value: i32) -> Result<Selection> {
    Ok(match fields::one_of("selection", value, v1::ClipboardSelection::as_str_name)? {
        v1::ClipboardSelection::Unspecified | v1::ClipboardSelection::Clipboard => Selection::Clipboard,
        v1::ClipboardSelection::Primary => Selection::Primary,
    })
}

/// Looks at the beginning only: the signature and the size.
fn check_png(data: &[u8]) -> std::result::Result<(), String> {
    let decoder = PngDecoder::new(Cursor::new(data)).map_err(|_| "is no PNG".to_owned())?;
    let (width, height) = decoder.dimensions();
    if (Size { width, height }).is_legal() {
        Ok(())
    } else {
        Err(format!("is {width}x{height} pixels; a side of 1 to {} is allowed", Size::MAX_SIDE))
    }
}

pub(crate) fn focus_timeout(timeout: Option<prost_types::Duration>) -> Result<Duration> {
    Ok(fields::duration("timeout", timeout, FOCUS)?.unwrap_or(DEFAULT_FOCUS))
}

/// Parts of the frame to cover.
pub(crate) fn masks(rects: &[v1::Rect]) -> Result<Vec<Rect>> {
    if rects.len() > Masks::MAX {
        let what = format!("has {} entries, at most {} are allowed", rects.len(), Masks::MAX);
        return Err(Error::field("masks", what));
    }
    rects.iter().enumerate().map(|(i, rect)| screen::rect(&format!("masks[{i}]"), rect)).collect()
}

pub(crate) fn masks_to_proto(masks: Option<Masks>) -> v1::ListMasksResponse {
    let Some(masks) = masks else { return v1::ListMasksResponse::default() };
    v1::ListMasksResponse {
        masks: masks.areas.into_iter().map(screen::from_rect).collect(),
        frame_size: Some(v1::Size { width: masks.frame.width, height: masks.frame.height }),
    }
}

pub(crate) fn windows(windows: Windows) -> v1::ListWindowsResponse {
    v1::ListWindowsResponse {
        windows: windows.windows.into_iter().map(window).collect(),
        screen: Some(v1::ScreenInfo {
            size: Some(v1::Size { width: windows.size.width, height: windows.size.height }),
            dpi: windows.dpi,
            scale: windows.dpi / 96.0,
            monitors: windows.monitors.into_iter().map(monitor).collect(),
        }),
    }
}

pub(crate) fn window(window: Window) -> v1::Window {
    v1::Window {
        id: window.id,
        title: window.title,
        app: window.app,
        pid: window.pid,
        bounds: Some(area(window.bounds)),
        content: Some(area(window.content)),
        focused: window.focused,
        minimised: window.minimised,
    }
}

fn monitor(monitor: Monitor) -> v1::Monitor {
    v1::Monitor {
        name: monitor.name,
        bounds: Some(area(monitor.bounds)),
        primary: monitor.primary,
        width_mm: monitor.millimetres.0,
        height_mm: monitor.millimetres.1,
    }
}

fn area(area: WindowArea) -> v1::WindowArea {
    v1::WindowArea { x: area.x, y: area.y, width: area.width, height: area.height }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::clipboard_content::Content;

    fn field<T>(result: Result<T>) -> String {
        match result {
            Ok(_) => panic!("was not refused"),
            Err(mut error) => error.violations.remove(0).field,
        }
    }

    #[test]
    fn refusals_name_their_field() {
        let get_with = |change: fn(&mut v1::GetClipboardRequest)| {
            let mut wanted = v1::GetClipboardRequest::default();
            change(&mut wanted);
            field(get(&wanted))
        };
        assert_eq!(get_with(|r| r.format = 3), "format");
        assert_eq!(get_with(|r| r.selection = 3), "selection");
        assert_eq!(get_with(|r| r.max_bytes = (16 << 20) + 1), "max_bytes");
        let set_with = |content| {
            let content = Some(v1::ClipboardContent { content });
            field(set(&v1::SetClipboardRequest { content, ..Default::default() }))
        };
        assert_eq!(set_with(None), "content");
        assert_eq!(set_with(Some(Content::Text("x".repeat((16 << 20) + 1)))), "content.text");
        assert_eq!(set_with(Some(Content::Png(b"no picture"[..].into()))), "content.png");
        let rect = |x, width| v1::Rect { x, y: 0, width, height: 1 };
        assert_eq!(field(masks(&[rect(0, 1), rect(-1, 1)])), "masks[1].x");
        assert_eq!(field(masks(&[rect(0, 0)])), "masks[0].width");
        assert_eq!(field(masks(&vec![rect(0, 1); 65])), "masks");
        assert_eq!(field(focus_timeout(Some(prost_types::Duration { seconds: 31, nanos: 0 }))), "timeout");
    }

    #[test]
    fn a_png_of_a_guest_is_looked_at_before_it_is_handed_on() {
        let found_png = |data: &'static [u8]| {
            let content = Some(Clipboard::Png(data.into()));
            found(ClipboardFound { content, ..Default::default() }, 10)
        };
        let refused = found_png(b"\x89PNG\r\n\x1a\nno more").expect_err("refused");
        assert_eq!(refused.reason, Reason::GuestFailed);
        let large = ClipboardFound { too_large: true, ..Default::default() };
        assert_eq!(found(large, 10).expect_err("refused").reason, Reason::ClipboardTooLarge);
        assert!(found(ClipboardFound::default(), 10).expect("empty").content.is_none());
    }
}
