//! Masks over the screen, in every picture there is.

use super::*;
use crate::model::mask::Masks;

const FRAME: Size = Size { width: 64, height: 48 };
/// What is covered.
const MASK: Rect = Rect { x: 8, y: 16, width: 24, height: 16 };

fn masks(areas: &[Rect]) -> Option<Masks> {
    Some(Masks { frame: FRAME, areas: areas.to_vec() })
}

/// A white screen with a mask.
async fn masked() -> (Hub, Fake) {
    let (hub, fake) = with_agent(FRAME.width, FRAME.height).await;
    fake.paint(Rect::whole(FRAME), [255, 255, 255, 0]);
    hub.set_masks(masks(&[MASK]));
    (hub, fake)
}

fn covered(x: u32, y: u32) -> bool {
    rect(x, y, 1, 1).intersection(MASK).is_some()
}

/// Every pixel is black under the mask and white beside it; a lossy picture nearly so.
fn assert_covered(picture: &image::RgbImage, at: (u32, u32), off: u8, what: &str) {
    for (x, y, pixel) in picture.enumerate_pixels() {
        let dark = covered(at.0 + x, at.1 + y);
        for part in pixel.0 {
            let wrong = if dark { part } else { 255 - part };
            assert!(wrong <= off, "{what}: {pixel:?} at {x}, {y}");
        }
    }
}

#[tokio::test]
async fn every_format_region_and_scale_is_covered() {
    let (hub, _fake) = masked().await;
    // A cursor would be drawn over it.
    let plain = ScreenshotOptions { cursor: false, ..Default::default() };
    for (format, off) in [(ImageFormat::Png, 0), (ImageFormat::Webp, 0), (ImageFormat::Jpeg(90), 40)] {
        let options = ScreenshotOptions { format, ..plain };
        let picture = hub.screenshot(&options, soon()).await.expect("a picture");
        assert_covered(&decoded(&picture), (0, 0), off, "whole");
        let options = ScreenshotOptions { region: Some(rect(10, 10, 30, 30)), ..options };
        let picture = hub.screenshot(&options, soon()).await.expect("a picture");
        assert_covered(&decoded(&picture), (10, 10), off, "region");
    }
    let options = ScreenshotOptions { format: ImageFormat::RawBgra, max_bytes: Some(1 << 20), ..plain };
    let raw = hub.screenshot(&options, soon()).await.expect("a picture").bytes;
    for (n, pixel) in (0u32..).zip(raw.chunks_exact(4)) {
        let dark = covered(n % FRAME.width, n / FRAME.width);
        assert_eq!(pixel[..3], if dark { [0; 3] } else { [255; 3] });
    }
    let options = ScreenshotOptions { scaling: Scaling::Factor(0.5), ..plain };
    let half = decoded(&hub.screenshot(&options, soon()).await.expect("a picture"));
    assert_eq!(half.get_pixel(10, 12).0, [0; 3], "the middle of the mask");
    assert_eq!(half.get_pixel(28, 4).0, [255; 3]);

    hub.set_masks(None);
    let picture = hub.screenshot(&plain, soon()).await.expect("a picture");
    assert!(decoded(&picture).pixels().all(|pixel| pixel.0 == [255; 3]), "nothing is covered any more");
}

#[tokio::test]
async fn what_a_scaled_picture_shows_beside_a_mask_is_not_what_lies_under_it() {
    let (hub, fake) = masked().await;
    let options =
        ScreenshotOptions { scaling: Scaling::Factor(0.25), cursor: false, ..ScreenshotOptions::default() };
    let before = hub.screenshot(&options, soon()).await.expect("a picture");
    fake.paint(MASK, [0, 0, 255, 0]);
    let after = hub.screenshot(&options, soon()).await.expect("a picture");
    assert_eq!(before.bytes, after.bytes, "another picture under the mask changes nothing");
}

#[tokio::test]
async fn streams_and_differences_are_covered() {
    let (hub, fake) = masked().await;
    let picture = ScreenshotOptions { cursor: false, ..Default::default() };
    let mut whole = hub.subscribe(StreamOptions::new(picture, 60.0)).expect("a stream");
    let delta = StreamOptions { delta: true, ..StreamOptions::new(picture, 60.0) };
    let mut delta = hub.subscribe(delta).expect("a stream");
    for stream in [&mut whole, &mut delta] {
        let first = frame(stream.next().await.expect("a picture"));
        assert_covered(&decoded(&first.picture), (0, 0), 0, "first");
    }
    // Half of it under the mask.
    let changed = rect(MASK.x, MASK.y, 2, 2);
    let beside = rect(0, 0, 2, 2);
    fake.paint(changed, [1, 2, 3, 0]);
    fake.paint(beside, [1, 2, 3, 0]);
    let next = frame(whole.next().await.expect("a picture"));
    assert_eq!(decoded(&next.picture).get_pixel(MASK.x, MASK.y).0, [0; 3]);
    let mut seen = false;
    while !seen {
        let next = frame(delta.next().await.expect("a picture"));
        for (area, bytes) in next.picture.patches.iter().flat_map(|patches| patches.iter()) {
            let patch = image::load_from_memory(bytes).expect("a picture").to_rgb8();
            for (x, y, pixel) in patch.enumerate_pixels() {
                let dark = covered(area.x + x, area.y + y);
                assert!(!dark || pixel.0 == [0; 3], "{pixel:?} in {area:?}");
            }
            seen |= area.intersection(beside).is_some();
        }
    }
    // Masks that come and go are news to a reader of differences on a screen that stands still.
    for (now, dark) in [(None, false), (masks(&[Rect::whole(FRAME)]), true)] {
        hub.set_masks(now);
        let next = frame(delta.next().await.expect("a picture"));
        let parts = next.picture.patches.as_ref().map_or(0, |patches| patches.len());
        assert!(parts > 0 || !next.picture.bytes.is_empty());
        let shot = decoded(&hub.screenshot(&picture, soon()).await.expect("a picture"));
        assert_eq!(shot.get_pixel(40, 40).0 == [0; 3], dark);
    }
}

#[tokio::test]
async fn masks_hold_over_sessions_and_cover_all_of_another_screen() {
    let (hub, _) = masked().await;
    let plain = ScreenshotOptions { cursor: false, ..Default::default() };
    hub.detach();
    let again = Fake::new(FRAME.width, FRAME.height);
    again.paint(Rect::whole(FRAME), [255, 255, 255, 0]);
    attach(&hub, &again, 2).await;
    let picture = hub.screenshot(&plain, soon()).await.expect("a picture");
    assert_covered(&decoded(&picture), (0, 0), 0, "in the next session");

    let larger = Fake::new(80, 60);
    larger.paint(rect(0, 0, 80, 60), [255, 255, 255, 0]);
    attach(&hub, &larger, 3).await;
    let picture = hub.screenshot(&plain, soon()).await.expect("a picture");
    assert!(decoded(&picture).pixels().all(|pixel| pixel.0 == [0; 3]), "nobody knows where it lies now");
}

#[tokio::test]
async fn the_hypervisors_pictures_are_covered_too() {
    let (hub, stub) = hub(true, FRAME);
    stub.show(255);
    hub.set_masks(masks(&[MASK]));
    let plain = ScreenshotOptions { cursor: false, ..Default::default() };
    let picture = hub.screenshot(&plain, soon()).await.expect("a picture");
    assert_eq!(picture.source, Source::Hypervisor);
    assert_covered(&decoded(&picture), (0, 0), 0, "from outside");
}

#[tokio::test]
async fn acting_gives_a_covered_picture() {
    let (hub, _fake) = masked().await;
    let plain = ScreenshotOptions { cursor: false, ..Default::default() };
    let settle = SettleOptions::default();
    let acted = hub.act("b", vec![click(1, 1)], None, &settle, &plain, soon()).await.expect("acted");
    assert_covered(&decoded(&acted.screenshot), (0, 0), 0, "after an act");
}

#[tokio::test]
async fn no_wait_looks_under_a_mask() {
    use crate::model::input::PixelCondition;
    let (hub, _fake) = masked().await;
    let wait = |x, y| SettleOptions {
        pixels: vec![PixelCondition { at: Point { x, y }, rgb: [0; 3], tolerance: 0 }],
        ..Default::default()
    };
    let under = hub.wait_for_settle(&wait(10, 20), None, soon()).await.expect_err("refused");
    assert_eq!(Error::from(under).violations[0].field, "settle.pixels");
    hub.wait_for_settle(&wait(1, 1), None, soon()).await.expect("beside it");
}
