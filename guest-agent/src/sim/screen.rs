//! The drawn screen.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use hvkube_proto::guest::v1 as pb;
use tokio::time::Instant;

use super::computer::{Computer, Inner};
use super::draw;
use crate::display::{CaptureSpec, DisplayError, Frame, Interest, Rect, Screen, Watch, simplify};

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

    async fn watch(&self, interest: Interest) -> Result<Arc<Watch>, DisplayError> {
        let watch = Arc::new(Watch::new(interest));
        self.lock().watch(&watch);
        Ok(watch)
    }

    async fn flush(&self) -> Result<u64, DisplayError> {
        Ok(self.lock().sequence)
    }

    async fn read(&self, areas: Vec<Rect>) -> Result<Vec<Vec<u8>>, DisplayError> {
        let inner = self.lock();
        let (width, height) = inner.layout.screen;
        let screen = Rect { x: 0, y: 0, width, height };
        let clipped: Vec<_> = areas.iter().map(|area| area.intersect(&screen)).collect();
        Ok(draw::areas(&inner.layout, &inner.state.memory, &clipped))
    }
}

impl Inner {
    /// Whether the host's screen is not what it asks for.
    fn differs(&self, spec: CaptureSpec) -> bool {
        let pointer = Some(self.state.memory.pointer);
        self.changes(spec.since).is_none_or(|areas| !areas.is_empty()) || spec.cursor && pointer != self.told
    }

    fn frame(&mut self, spec: CaptureSpec) -> Frame {
        if spec.cursor {
            self.told = Some(self.state.memory.pointer);
        }
        let changes = self.changes(spec.since);
        let full = changes.is_none();
        let (width, height) = self.layout.screen;
        let mut areas = changes.unwrap_or_else(|| vec![Rect { x: 0, y: 0, width, height }]);
        simplify(&mut areas, MAX_RECTS);
        let rects = draw::parts(&self.layout, &self.state.memory, &areas);
        if !rects.is_empty() {
            self.answers += 1;
        }
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
            answer: if rects.is_empty() { spec.base } else { self.answers },
            cursor: spec.cursor.then(|| draw::cursor(spec.shape)),
        };
        Frame { header, rects }
    }
}
