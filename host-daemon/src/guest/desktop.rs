//! Calls about the screen, the keyboard and the mouse.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;
use pb::capture_response::Part;
use tokio::time::Instant;

use super::error::GuestError;
use super::limits::{MAX_RECT_BYTES, MAX_RECTS};
use super::session::{Calls, Session, request};
use super::types::{Captured, CursorSeen, Fill, Have, InputOutcome, Patch, Probe};
use super::wire;
use crate::model::input::{InputEvent, SettleOptions, Settled};
use crate::model::screen::{CursorShape, Point, Rect, Size};

/// Longest wait for a change that a guest is asked for.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl Session {
    /// Proves that input reaches the desktop and asks for the screen's size.
    ///
    /// # Errors
    /// [`GuestError::NotReady`] while there is no desktop; else as every call.
    pub async fn probe(&self, deadline: Instant) -> Result<Probe, GuestError> {
        self.calls().probe(deadline).await
    }

    /// Asks for what the host has not got, waiting up to `wait` for a change; with `cursor` the cursor is told, and its
    /// changes count. With nothing changed the answer has the same sequence and no patches. Memory is bounded by the frame.
    ///
    /// # Errors
    /// [`GuestError::Protocol`] for anything that does not fit the frame; [`GuestError::NotReady`] without a desktop.
    pub async fn capture(
        &self,
        have: Have,
        wait: Duration,
        cursor: bool,
        deadline: Instant,
    ) -> Result<Captured, GuestError> {
        self.calls().capture(have, wait, cursor, deadline).await
    }

    /// Injects a batch, in order, then optionally waits for the screen to settle. At most once per batch id in a
    /// session: a repeated id gives the first outcome.
    ///
    /// # Errors
    /// [`GuestError::outcome_unknown`] tells whether events may have been done; a refused event is no error but
    /// [`InputOutcome::failure`].
    pub async fn input(
        &self,
        batch_id: &str,
        events: &[InputEvent],
        settle: Option<&SettleOptions>,
        deadline: Instant,
    ) -> Result<InputOutcome, GuestError> {
        let message = pb::InputRequest {
            batch_id: batch_id.to_owned(),
            events: events.iter().map(wire::event).collect(),
            settle: settle.map(wire::settle),
        };
        let mut client = self.calls().display();
        let answer =
            self.call("finish the input", deadline, client.input(request(message, deadline))).await?;
        let sent = u32::try_from(events.len()).unwrap_or(u32::MAX);
        wire::outcome(answer.into_inner(), sent, settle)
    }

    /// Waits until the screen settles; a wait that times out is an answer.
    ///
    /// # Errors
    /// As every call.
    pub async fn settle(&self, options: &SettleOptions, deadline: Instant) -> Result<Settled, GuestError> {
        let mut client = self.calls().display();
        let call = client.settle(request(wire::settle(options), deadline));
        let answer = self.call("settle", deadline, call).await?.into_inner();
        wire::settled(&answer, options)
    }
}

impl Calls {
    pub(super) async fn probe(&self, deadline: Instant) -> Result<Probe, GuestError> {
        let mut client = self.display();
        let answer = self
            .call("probe", deadline, client.probe(request(pb::ProbeRequest {}, deadline)))
            .await?
            .into_inner();
        wire::probe(&answer)
    }

    pub(super) async fn capture(
        &self,
        have: Have,
        wait: Duration,
        cursor: bool,
        deadline: Instant,
    ) -> Result<Captured, GuestError> {
        let wait = wait.min(MAX_WAIT);
        let message = pb::CaptureRequest {
            since_sequence: have.sequence,
            wait: Some(wire::duration(wait)),
            cursor,
            cursor_shape: have.shape,
            base: have.answer,
        };
        self.call("capture", deadline, async {
            let mut incoming = Incoming::new(have);
            let mut parts = self.pixels().capture(request(message, deadline)).await?.into_inner();
            while let Some(part) = parts.message().await? {
                if let Err(error) = incoming.take(part) {
                    return Ok(Err(error));
                }
            }
            Ok(incoming.end())
        })
        .await?
    }
}

/// The parts of an answer to a capture, in the order in which they must come.
pub(super) struct Incoming {
    have: Have,
    asked_at: SystemTime,
    capture: Option<Capture>,
}

impl Incoming {
    /// Of an answer that is asked for now.
    pub(super) fn new(have: Have) -> Self {
        Self { have, asked_at: SystemTime::now(), capture: None }
    }

    pub(super) fn take(&mut self, part: pb::CaptureResponse) -> Result<(), GuestError> {
        match (part.part, &mut self.capture) {
            (Some(Part::Header(header)), none @ None) => {
                *none = Some(Capture::begin(header, self.have, self.asked_at)?);
                Ok(())
            }
            (Some(Part::Rect(rect)), Some(capture)) => capture.add(&rect),
            _ => Err(GuestError::Protocol("parts of a frame out of order".to_owned())),
        }
    }

    pub(super) fn end(self) -> Result<Captured, GuestError> {
        self.capture.map_or_else(|| Err(GuestError::Protocol("no frame".to_owned())), Capture::end)
    }
}

/// A frame on its way in.
struct Capture {
    captured: Captured,
    asked_at: SystemTime,
    guest_time: Option<SystemTime>,
    expected: u32,
    /// Pixel bytes that may still be drawn; keeps overlapping rectangles from adding up without end.
    budget: usize,
    /// Pixel bytes that may still be held until then. Agents send no pixel twice.
    room: usize,
}

impl Capture {
    fn begin(header: pb::FrameHeader, have: Have, asked_at: SystemTime) -> Result<Self, GuestError> {
        let size = wire::size(header.width, header.height)?;
        if header.rects > MAX_RECTS {
            return Err(GuestError::Protocol(format!("{} rectangles in a frame", header.rects)));
        }
        if have.sequence == 0 && !header.full {
            return Err(GuestError::Protocol("a difference to no frame".to_owned()));
        }
        let captured = Captured {
            size,
            sequence: header.sequence,
            full: header.full,
            captured_at: asked_at,
            pointer: Point { x: header.pointer_x, y: header.pointer_y },
            cursor: header.cursor.map(|cursor| seen(cursor, have.shape)).transpose()?,
            answer: header.answer,
            patches: Vec::with_capacity(header.rects as usize),
        };
        Ok(Self {
            captured,
            asked_at,
            guest_time: wire::time(header.captured_at),
            expected: header.rects,
            budget: size.frame_bytes().saturating_mul(2),
            room: size.frame_bytes(),
        })
    }

    fn add(&mut self, rect: &pb::FrameRect) -> Result<(), GuestError> {
        let area = rect.area.map(wire::rect).unwrap_or_default();
        if self.captured.patches.len() >= self.expected as usize {
            return Err(GuestError::Protocol(format!(
                "more than the {} announced rectangles",
                self.expected
            )));
        }
        if !area.fits(self.captured.size) {
            return Err(GuestError::Protocol(format!("a rectangle outside the frame: {area:?}")));
        }
        let bytes = Size { width: area.width, height: area.height }.frame_bytes();
        // A solid area costs nothing to keep, but as much as any to draw.
        self.budget = self
            .budget
            .checked_sub(bytes)
            .ok_or_else(|| GuestError::Protocol("rectangles beyond twice the frame".to_owned()))?;
        if matches!(rect.packing(), pb::Packing::Raw | pb::Packing::Lz4) {
            self.room = self
                .room
                .checked_sub(bytes)
                .ok_or_else(|| GuestError::Protocol("more pixels than the frame has".to_owned()))?;
        }
        let fill = unpack(rect, area, bytes, self.captured.size)?;
        self.captured.patches.push(Patch { area, fill });
        Ok(())
    }

    fn end(self) -> Result<Captured, GuestError> {
        let mut captured = self.captured;
        if captured.patches.len() != self.expected as usize {
            return Err(GuestError::Protocol(format!(
                "{} of {} announced rectangles",
                captured.patches.len(),
                self.expected
            )));
        }
        // The guest's clock was stepped to ours, but it is the guest's word: it must lie within the call.
        let now = SystemTime::now();
        captured.captured_at =
            self.guest_time.filter(|time| (self.asked_at..=now).contains(time)).unwrap_or(now);
        Ok(captured)
    }
}

/// The cursor as a guest tells it to a host that has the shape `known`.
fn seen(cursor: pb::Cursor, known: u32) -> Result<CursorSeen, GuestError> {
    let pb::Cursor { shape, width, height, hot_x, hot_y, pixels } = cursor;
    let wrong = || GuestError::Protocol(format!("a cursor of {width}x{height} in {} bytes", pixels.len()));
    if shape == 0 {
        return Err(wrong());
    }
    if shape == known && width == 0 && height == 0 {
        return Ok(CursorSeen { shape, picture: None });
    }
    let size = Size { width, height };
    // 0x0 is a cursor that is not shown, or too large to be told.
    if width.max(height) > CursorShape::MAX_SIDE || pixels.len() != size.frame_bytes() {
        return Err(wrong());
    }
    let hot = Point { x: hot_x, y: hot_y };
    let side = 0..=i32::try_from(CursorShape::MAX_SIDE).unwrap_or(i32::MAX);
    if !side.contains(&hot.x) || !side.contains(&hot.y) {
        return Err(wrong());
    }
    // A copy, or the picture would keep alive all that came with it.
    let pixels = Bytes::copy_from_slice(&pixels);
    Ok(CursorSeen { shape, picture: Some(Arc::new(CursorShape { id: shape, size, hot, pixels })) })
}

fn unpack(rect: &pb::FrameRect, area: Rect, bytes: usize, frame: Size) -> Result<Fill, GuestError> {
    let wrong = |what: &str| GuestError::Protocol(format!("{what} for {area:?}"));
    if !matches!(rect.packing(), pb::Packing::Solid | pb::Packing::Copy) && bytes > MAX_RECT_BYTES {
        return Err(wrong("too many pixels in one rectangle"));
    }
    match rect.packing() {
        // A copy: four bytes may have come in a message that is a megabyte otherwise, and keep alive all of it.
        pb::Packing::Raw if rect.data.len() == bytes => Ok(Fill::Pixels(Bytes::copy_from_slice(&rect.data))),
        pb::Packing::Raw => Err(wrong("the wrong number of bytes")),
        pb::Packing::Solid => {
            let pixel = rect.data.as_ref().try_into().map_err(|_| wrong("no single pixel"))?;
            Ok(Fill::Solid(pixel))
        }
        pb::Packing::Lz4 => {
            // Unpacks into exactly what the rectangle holds: more is an error, not an allocation.
            let mut pixels = vec![0; bytes];
            match lz4_flex::block::decompress_into(&rect.data, &mut pixels) {
                Ok(n) if n == bytes => Ok(Fill::Pixels(Bytes::from(pixels))),
                Ok(_) => Err(wrong("too few packed pixels")),
                Err(_) => Err(wrong("damaged packed pixels")),
            }
        }
        pb::Packing::Copy => {
            let from = rect.from.unwrap_or_default();
            let place = u32::try_from(from.x).ok().zip(u32::try_from(from.y).ok());
            match place {
                Some((x, y)) if (Rect { x, y, ..area }).fits(frame) => Ok(Fill::Copy { x, y }),
                _ => Err(wrong("a copy from outside the frame")),
            }
        }
        pb::Packing::Unspecified => Err(wrong("an unknown packing")),
    }
}
