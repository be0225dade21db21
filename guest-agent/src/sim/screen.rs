//! The drawn screen.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use hvkube_proto::guest::v1 as pb;
use tokio::time::Instant;

use super::computer::{Computer, Inner};
use super::draw;
use crate::display::{CaptureSpec, DisplayError, Frame, Rect, Screen, Watch, simplify};

const MAX_RECTS: usize = 16;

#[async_trait]
impl Screen for Computer {
    async fn capture(&self, spec: CaptureSpec) -> Result<Frame, DisplayError> {
        let deadline = Instant::now() + spec.wait;
        loop {
            // Listening begins before the look, or a change in between would be missed.
            let changed = self.changed.notified();
            {
                let mut inner = self.lock();
                if Instant::now() >= deadline || inner.differs(spec) {
                    return Ok(inner.frame(spec));
                }
            }
            // The deadline ends the wait, and the next look answers with what there is.
            let _ = tokio::time::timeout_at(deadline, changed).await;
        }
    }

    async fn watch(&self, ignore: Vec<Rect>) -> Result<Arc<Watch>, DisplayError> {
        let watch = Arc::new(Watch::new(ignore));
        self.lock().watch(&watch);
        Ok(watch)
    }

    async fn flush(&self) -> Result<u64, DisplayError> {
        Ok(self.lock().sequence)
    }
}

impl Inner {
    fn cursor(&self, spec: CaptureSpec) -> Option<Rect> {
        if spec.cursor { draw::cursor_area(self.layout.screen, self.state.memory.pointer) } else { None }
    }

    /// Whether the host's frame is not what it asks for.
    fn differs(&self, spec: CaptureSpec) -> bool {
        self.changes(spec.since).is_none_or(|areas| !areas.is_empty()) || self.cursor(spec) != self.drawn
    }

    fn frame(&mut self, spec: CaptureSpec) -> Frame {
        let cursor = self.cursor(spec);
        if cursor != self.drawn {
            // A change of the frame that is nobody's but the host's: the desktop itself is as it was.
            let before = std::mem::replace(&mut self.drawn, cursor);
            before.into_iter().chain(cursor).for_each(|area| self.changed(area));
        }
        let changes = self.changes(spec.since);
        let full = changes.is_none();
        let (width, height) = self.layout.screen;
        let mut areas = changes.unwrap_or_else(|| vec![Rect { x: 0, y: 0, width, height }]);
        simplify(&mut areas, MAX_RECTS);
        let touched = |cursor: &Rect| areas.iter().any(|area| area.intersect(cursor).is_some());
        let rects = draw::parts(&self.layout, &self.state.memory, &areas, cursor.filter(touched));
        let (pointer_x, pointer_y) = self.state.memory.pointer;
        let header = pb::FrameHeader {
            width,
            height,
            sequence: self.sequence,
            full,
            rects: u32::try_from(rects.len()).unwrap_or(u32::MAX),
            captured_at: Some(SystemTime::now().into()),
            pointer_x,
            pointer_y,
        };
        Frame { header, rects }
    }
}
