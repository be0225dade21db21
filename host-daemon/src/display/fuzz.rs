//! The fuzzer's entry to what agents say of their screens; see [`crate::fuzzing`].

use hvkube_proto::guest::v1 as pb;
use pb::capture_response::Part;
use tokio::time::Instant;

use super::plane::Plane;
use crate::guest::fuzz::{captured, messages};
use crate::model::screen::{Rect, Size};

/// Larger frames are left out: they cost time and show nothing new. That their size is checked is another matter.
pub(crate) const MAX_PIXELS: u64 = 1 << 16;

/// Answers to captures, one after the other as the hub would ask for them: a header begins the next.
pub(crate) fn screen(bytes: &[u8]) {
    let mut plane = Plane::default();
    let mut parts = messages::<pb::CaptureResponse>(bytes).peekable();
    while let Some(first) = parts.next() {
        if let Some(Part::Header(header)) = &first.part {
            let size = Size { width: header.width, height: header.height };
            if size.is_legal() && u64::from(size.width) * u64::from(size.height) > MAX_PIXELS {
                return;
            }
        }
        let mut answer = vec![first];
        while let Some(part) = parts.next_if(|part| !matches!(part.part, Some(Part::Header(_)))) {
            answer.push(part);
        }
        let asked = plane.have(1);
        let before = plane.shot().map_or(0, |shot| shot.ordinal(true));
        let Ok(captured) = captured(asked, answer) else { continue };
        assert!(captured.size.is_legal());
        let Ok(changed) = plane.apply(&captured, asked, Instant::now(), 1) else { continue };
        let shot = plane.shot().expect("what was applied is there");
        assert_eq!(shot.pixels.get().len(), shot.size.frame_bytes());
        let areas = plane.changed_since(before, true);
        assert!(changed || areas.is_empty(), "nothing changed, but {areas:?} did");
        let whole = Rect::whole(shot.size);
        assert!(areas.iter().all(|area| area.intersection(whole) == Some(*area)), "{areas:?} in {whole:?}");
        if let Some(cursor) = &shot.cursor {
            let mut pixels = shot.pixels.get().to_vec();
            cursor.draw(shot.size, whole, &mut pixels);
        }
    }
}
