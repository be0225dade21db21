//! Hubs with an agent in memory, and with none.

mod handover;
mod masks;
mod secrets;
pub(super) mod stub;

use std::time::Duration;

use futures_util::StreamExt as _;
use hvkube_proto::guest::v1 as pb;
use tokio::time::Instant;

use super::*;
use crate::guest::fake::{Fake, header_part};
use crate::guest::{OpenOptions, Session};
use crate::model::error::{Error, Reason};
use crate::model::ids::VmId;
use crate::model::input::{Action, InputEvent, Met, MouseButton, PixelCondition, RawInput, SettleOptions};
use crate::model::screen::{Point, Rect, Size};
use stub::Stub;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn hub(display: bool, size: Size) -> (Hub, std::sync::Arc<Stub>) {
    let stub = Stub::new(display, size);
    (Hub::new(VmId::new("vm-1").expect("an id"), stub.clone(), Encoders::new(2)), stub)
}

pub(in crate::display) async fn attach(hub: &Hub, fake: &Fake, epoch: u64) -> Session {
    let options = OpenOptions { epoch, ..Default::default() };
    let session = Session::open(fake.dial(), &options, soon()).await.expect("session");
    hub.attach(session.clone());
    session
}

async fn with_agent(width: u32, height: u32) -> (Hub, Fake) {
    let (hub, _) = hub(false, Size { width, height });
    let fake = Fake::new(width, height);
    attach(&hub, &fake, 1).await;
    (hub, fake)
}

fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
    Rect { x, y, width, height }
}

fn click(x: i32, y: i32) -> InputEvent {
    InputEvent::Click { at: Some(Point { x, y }), button: MouseButton::Left, count: 1, modifiers: vec![] }
}

/// What the picture must be: the fake's pixels as RGB.
fn expected(fake: &Fake) -> Vec<u8> {
    fake.state().pixels.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0]]).collect()
}

fn decoded(picture: &Encoded) -> image::RgbImage {
    image::load_from_memory(&picture.bytes).expect("a picture").to_rgb8()
}

/// Pictures as fast as they come.
fn fast() -> StreamOptions {
    StreamOptions::new(ScreenshotOptions::default(), 60.0)
}

fn frame(item: Result<StreamItem, DisplayError>) -> StreamFrame {
    match item.expect("fine") {
        StreamItem::Frame(frame) => *frame,
        StreamItem::Paused => panic!("paused"),
    }
}

/// Colours that no compressor finds easy.
fn noise(fake: &Fake) {
    let mut seed = 1_u32;
    for pixel in fake.state().pixels.chunks_exact_mut(4) {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        pixel.copy_from_slice(&seed.to_le_bytes());
    }
}

#[tokio::test]
async fn png_and_webp_are_exact_also_after_changes() {
    let (hub, fake) = with_agent(321, 203).await;
    noise(&fake);
    for format in [ImageFormat::Png, ImageFormat::Webp] {
        let options = ScreenshotOptions { format, ..Default::default() };
        let picture = hub.screenshot(&options, soon()).await.expect("picture");
        assert_eq!(decoded(&picture).as_raw(), &expected(&fake));
        assert_eq!((picture.source, picture.epoch), (Source::Agent, 1));
        assert_eq!(picture.cursor, Some(Point { x: 3, y: 4 }));
        fake.paint(rect(300, 200, 21, 3), [10, 20, 30, 0]);
        fake.paint(rect(0, 0, 1, 1), [255, 0, 0, 9]);
        let after = hub.screenshot(&options, soon()).await.expect("picture");
        assert_eq!(decoded(&after).as_raw(), &expected(&fake));
        assert!(after.sequence > picture.sequence);
        assert_eq!(decoded(&after).get_pixel(0, 0).0, [0, 0, 255], "blue comes first in a frame");
    }
}

#[tokio::test]
async fn raw_is_the_frame_with_an_opaque_fourth_byte() {
    let (hub, fake) = with_agent(16, 9).await;
    fake.paint(rect(1, 1, 2, 2), [1, 2, 3, 77]);
    let options = ScreenshotOptions {
        format: ImageFormat::RawBgra,
        region: Some(rect(1, 0, 3, 2)),
        max_bytes: Some(1000),
        ..Default::default()
    };
    let picture = hub.screenshot(&options, soon()).await.expect("picture");
    let black = [0, 0, 0, 255];
    let grey = [1, 2, 3, 255];
    assert_eq!(picture.bytes.as_ref(), [black, black, black, grey, grey, black].concat());
    assert_eq!(
        (picture.size, picture.frame_size),
        (Size { width: 3, height: 2 }, Size { width: 16, height: 9 })
    );
}

#[tokio::test]
async fn regions_and_scales_show_the_right_part() {
    let (hub, fake) = with_agent(200, 100).await;
    fake.paint(rect(100, 0, 100, 100), [0, 0, 200, 0]);
    let options = ScreenshotOptions {
        region: Some(rect(50, 0, 100, 100)),
        scaling: Scaling::Fit(Size { width: 50, height: 500 }),
        ..Default::default()
    };
    let picture = hub.screenshot(&options, soon()).await.expect("picture");
    let image = decoded(&picture);
    assert_eq!(image.dimensions(), (50, 50));
    assert_eq!((image.get_pixel(10, 25).0, image.get_pixel(40, 25).0), ([0, 0, 0], [200, 0, 0]));
    let half = ScreenshotOptions {
        format: ImageFormat::Jpeg(90),
        scaling: Scaling::Factor(0.5),
        ..Default::default()
    };
    let image = decoded(&hub.screenshot(&half, soon()).await.expect("picture"));
    assert_eq!(image.dimensions(), (100, 50));
    assert!(image.get_pixel(75, 25).0[0] > 180 && image.get_pixel(25, 25).0[0] < 20);
    let outside = ScreenshotOptions { region: Some(rect(150, 0, 51, 1)), ..Default::default() };
    let error: Error = hub.screenshot(&outside, soon()).await.expect_err("outside").into();
    assert_eq!(error.reason, Reason::OutOfFrame);
}

#[tokio::test]
async fn a_picture_over_the_limit_is_encoded_harder_and_then_refused() {
    let (hub, fake) = with_agent(256, 256).await;
    // Compressible, but better so by one who tries harder.
    for (n, pixel) in fake.state().pixels.chunks_exact_mut(4).enumerate() {
        let value = u8::try_from((n * n / 7) % 11).expect("small");
        pixel.copy_from_slice(&[value, value / 2, 3 * value, 0]);
    }
    let limited = |max_bytes| ScreenshotOptions { max_bytes: Some(max_bytes), ..Default::default() };
    let fast = hub.screenshot(&limited(1 << 20), soon()).await.expect("fits");
    let harder =
        hub.screenshot(&limited(fast.bytes.len() - 1), soon()).await.expect("fits when encoded harder");
    assert!(harder.bytes.len() < fast.bytes.len());
    assert_eq!(decoded(&harder).as_raw(), &expected(&fake));
    let refused = hub.screenshot(&limited(100), soon()).await;
    match refused {
        Err(DisplayError::TooLarge { bytes, max: 100 }) => assert!(bytes > 100),
        other => panic!("{other:?}"),
    }
    let raw = ScreenshotOptions { format: ImageFormat::RawBgra, ..limited(256 * 256 * 4 - 1) };
    assert!(matches!(hub.screenshot(&raw, soon()).await, Err(DisplayError::TooLarge { .. })));
}

#[tokio::test]
async fn an_unchanged_screen_is_not_encoded_again() {
    let (hub, fake) = with_agent(64, 64).await;
    let options = ScreenshotOptions::default();
    let first = hub.screenshot(&options, soon()).await.expect("picture");
    let again = hub.screenshot(&options, soon()).await.expect("picture");
    assert_eq!(first.bytes.as_ptr(), again.bytes.as_ptr(), "the very same bytes");
    assert_eq!(first.sequence, again.sequence);
    assert_eq!(fake.state().captures, 2, "but the guest was asked");
    let many = (0..8).map(|_| hub.screenshot(&options, soon()));
    assert!(futures_util::future::join_all(many).await.iter().all(Result::is_ok));
    assert!(fake.state().captures < 10, "callers of one moment share a capture");
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_gets_one_more_chance() {
    let (hub, fake) = with_agent(8, 8).await;
    hub.screenshot(&ScreenshotOptions::default(), soon()).await.expect("picture");
    let header = pb::FrameHeader { width: 9, height: 9, sequence: 99, full: false, ..Default::default() };
    fake.state().hostile_frame = Some(vec![header_part(header)]);
    let result = hub.screenshot(&ScreenshotOptions::default(), soon()).await;
    assert!(matches!(result, Err(DisplayError::Guest(_))), "{result:?}");
    assert_eq!(fake.state().captures, 3);
    fake.state().hostile_frame = None;
    assert!(hub.screenshot(&ScreenshotOptions::default(), soon()).await.is_ok());
}

#[tokio::test]
async fn a_stream_gives_the_latest_and_says_what_it_passed_over() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut stream = hub.subscribe(fast()).expect("legal");
    let first = stream.next().await.map(frame).expect("a frame");
    assert_eq!((first.skipped, first.changed), (0, vec![rect(0, 0, 64, 64)]));
    fake.paint(rect(0, 0, 4, 4), [9; 4]);
    fake.paint(rect(8, 8, 4, 4), [8; 4]);
    fake.paint(rect(20, 20, 4, 4), [7; 4]);
    let second = stream.next().await.map(frame).expect("a frame");
    assert_eq!(decoded(&second.picture).as_raw(), &expected(&fake));
    assert_eq!(second.skipped, 2);
    let mut changed = second.changed;
    changed.sort_by_key(|r| r.x);
    assert_eq!(changed, [rect(0, 0, 4, 4), rect(8, 8, 4, 4), rect(20, 20, 4, 4)]);
    let waiting = tokio::spawn(async move { stream.next().await });
    tokio::task::yield_now().await;
    fake.paint(rect(1, 1, 1, 1), [1; 4]);
    let third = waiting.await.expect("no panic").map(frame).expect("a frame");
    assert_eq!((third.skipped, third.changed), (0, vec![rect(1, 1, 1, 1)]));
}

#[tokio::test]
async fn a_stalled_subscriber_costs_nobody_anything() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut stalled = hub.subscribe(fast()).expect("legal");
    stalled.next().await.map(frame).expect("a frame");
    let before = fake.state().captures;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.state().captures, before, "nobody waits, nobody captures");
    let mut live = hub.subscribe(fast()).expect("legal");
    for n in 1..=20 {
        let picture = live.next().await.map(frame).expect("a frame").picture;
        assert_eq!(decoded(&picture).as_raw(), &expected(&fake));
        fake.paint(rect(n, n, 1, 1), [200; 4]);
    }
    // A look of this very moment would do for it, and be of the state before.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let late = stalled.next().await.map(frame).expect("a frame");
    assert_eq!(late.skipped, 19);
    assert_eq!(decoded(&late.picture).as_raw(), &expected(&fake));
}

#[tokio::test]
async fn one_asks_for_all_until_the_last_leaves() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut one = hub.subscribe(fast()).expect("legal");
    let mut two = hub.subscribe(fast()).expect("legal");
    one.next().await.map(frame).expect("a frame");
    two.next().await.map(frame).expect("a frame");
    // Both wait, then the first goes away in the middle of it.
    let mut asking = Box::pin(one.next());
    let waiting = tokio::spawn(async move { (two.next().await, two) });
    let waited = tokio::time::timeout(Duration::from_millis(50), &mut asking).await;
    assert!(waited.is_err(), "nothing has changed");
    drop(asking);
    drop(one);
    fake.paint(rect(0, 0, 1, 1), [1; 4]);
    let (next, two) = waiting.await.expect("no panic");
    assert!(next.expect("a frame").is_ok());
    drop(two);
    let before = fake.state().captures;
    fake.paint(rect(0, 0, 1, 1), [2; 4]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.state().captures, before, "nobody is left to capture for");
}

#[tokio::test]
async fn a_subscriber_nobody_polls_any_more_holds_up_nobody() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut stuck = hub.subscribe(fast()).expect("legal");
    stuck.next().await.map(frame).expect("a frame");
    // It is in the middle of waiting when its reader stops.
    let mut half = Box::pin(stuck.next());
    assert!(tokio::time::timeout(Duration::from_millis(30), &mut half).await.is_err());
    let mut live = hub.subscribe(fast()).expect("legal");
    for n in 0..10 {
        let picture = live.next().await.map(frame).expect("a frame").picture;
        assert_eq!(decoded(&picture).as_raw(), &expected(&fake));
        fake.paint(rect(n, n, 1, 1), [200; 4]);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(half.await.expect("a frame").is_ok());
}

#[tokio::test]
async fn readers_of_the_same_picture_share_its_bytes() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut streams: Vec<_> = (0..5).map(|_| hub.subscribe(fast()).expect("legal")).collect();
    for n in 0..3 {
        fake.paint(rect(n, n, 1, 1), [200; 4]);
        let frames = futures_util::future::join_all(streams.iter_mut().map(|stream| stream.next())).await;
        let pictures: Vec<_> = frames.into_iter().map(|f| f.map(frame).expect("a frame").picture).collect();
        assert!(pictures.iter().all(|p| p.bytes.as_ptr() == pictures[0].bytes.as_ptr()), "round {n}");
    }
}

/// Draws a stream's picture over what its reader has.
fn draw(onto: &mut image::RgbImage, picture: &Encoded) {
    let Some(patches) = &picture.patches else {
        *onto = decoded(picture);
        return;
    };
    for (area, bytes) in patches.iter() {
        let patch = image::load_from_memory(bytes).expect("a picture").to_rgb8();
        assert_eq!(patch.dimensions(), (area.width, area.height));
        image::imageops::replace(onto, &patch, area.x.into(), area.y.into());
    }
}

#[tokio::test]
async fn differences_drawn_over_the_picture_give_the_picture() {
    for scaling in [Scaling::None, Scaling::Factor(0.37)] {
        let (hub, fake) = with_agent(200, 150).await;
        noise(&fake);
        let picture =
            ScreenshotOptions { scaling, region: Some(rect(10, 0, 180, 140)), ..Default::default() };
        let options = StreamOptions { delta: true, ..StreamOptions::new(picture, 60.0) };
        let mut stream = hub.subscribe(options).expect("legal");
        let mut shown = image::RgbImage::new(1, 1);
        let first = stream.next().await.map(frame).expect("a frame").picture;
        assert!(first.patches.is_none(), "the first is whole");
        draw(&mut shown, &first);
        for n in 0..6 {
            fake.paint(
                rect(5 + 20 * n, 3 + 15 * n, 7 + n, 9),
                [40 * u8::try_from(n).expect("small"), 1, 250, 0],
            );
            let next = stream.next().await.map(frame).expect("a frame").picture;
            let patches = next.patches.as_ref().expect("a difference");
            let pixels: u32 = patches.iter().map(|(area, _)| area.width * area.height).sum();
            assert!(pixels * 4 < next.size.width * next.size.height, "only what changed: {pixels}");
            draw(&mut shown, &next);
            let whole = hub.screenshot(&picture, soon()).await.expect("picture");
            assert!(shown == decoded(&whole), "{scaling:?} {n}");
        }
        hub.request_keyframe();
        let asked = stream.next().await.map(frame).expect("a frame").picture;
        assert!(asked.patches.is_none(), "asked for, though nothing changed");
        fake.paint(rect(0, 0, 200, 100), [9; 4]);
        let large = stream.next().await.map(frame).expect("a frame").picture;
        assert!(large.patches.is_none(), "most of it changed");
        // More states than are remembered.
        for n in 0..100 {
            fake.paint(rect(n, 0, 1, 1), [77; 4]);
            hub.screenshot(&picture, soon()).await.expect("picture");
        }
        let late = stream.next().await.map(frame).expect("a frame").picture;
        assert!(late.patches.is_none(), "what changed is not known any more");
        draw(&mut shown, &late);
        assert!(shown == decoded(&hub.screenshot(&picture, soon()).await.expect("picture")));
        attach(&hub, &fake, 2).await;
        let other = stream.next().await.map(frame).expect("a frame").picture;
        assert!(other.patches.is_none(), "another session");
    }
}

#[tokio::test]
async fn a_stream_says_that_it_is_paused_and_goes_on() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut stream = hub.subscribe(fast()).expect("legal");
    stream.next().await.map(frame).expect("a frame");
    hub.detach();
    assert_eq!(stream.next().await.expect("an item").expect("fine"), StreamItem::Paused);
    // Said once.
    assert!(tokio::time::timeout(Duration::from_millis(800), stream.next()).await.is_err());
    attach(&hub, &fake, 2).await;
    let next = stream.next().await.map(frame).expect("a frame");
    assert_eq!((next.picture.epoch, next.changed), (2, vec![rect(0, 0, 64, 64)]));
}

#[tokio::test]
async fn large_jpegs_of_several_bands_look_like_the_frame() {
    let (hub, fake) = with_agent(640, 401).await;
    for n in 0..20 {
        let value = |k: u32| u8::try_from(n * k % 256).expect("small");
        fake.paint(rect(n * 30, n * 20, 40, 21), [value(37), value(91), value(53), 0]);
    }
    let options = ScreenshotOptions { format: ImageFormat::Jpeg(95), ..Default::default() };
    let picture = decoded(&hub.screenshot(&options, soon()).await.expect("picture"));
    assert_eq!(picture.dimensions(), (640, 401));
    let expected = expected(&fake);
    let error: u64 = picture.as_raw().iter().zip(&expected).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(error / (expected.len() as u64) < 3, "{error}");
}

#[tokio::test]
async fn streams_outlive_sessions_and_end_with_the_vm() {
    let (hub, fake) = with_agent(64, 64).await;
    let mut stream = hub.subscribe(fast()).expect("legal");
    assert_eq!(stream.next().await.map(frame).expect("a frame").picture.epoch, 1);
    hub.detach();
    let none = hub.screenshot(&ScreenshotOptions::default(), soon()).await;
    assert!(matches!(none, Err(DisplayError::NotConnected)), "{none:?}");
    let waiting = tokio::spawn(async move {
        let next = stream.next().await;
        (next, stream)
    });
    tokio::task::yield_now().await;
    attach(&hub, &fake, 2).await;
    let (next, mut stream) = waiting.await.expect("no panic");
    let next = next.map(frame).expect("a frame");
    assert_eq!((next.picture.epoch, next.skipped), (2, 0));
    assert_eq!(next.changed, [rect(0, 0, 64, 64)]);
    let waiting = tokio::spawn(async move { stream.next().await });
    tokio::task::yield_now().await;
    hub.close();
    assert!(waiting.await.expect("no panic").is_none());
}

#[tokio::test]
async fn streams_refuse_what_they_can_not_do() {
    let (hub, _fake) = with_agent(8, 8).await;
    for fps in [0.0, -1.0, 61.0, f64::NAN] {
        assert!(hub.subscribe(StreamOptions::new(ScreenshotOptions::default(), fps)).is_err(), "{fps}");
    }
    let outside = ScreenshotOptions { region: Some(rect(0, 0, 9, 9)), ..Default::default() };
    let items: Vec<_> =
        hub.subscribe(StreamOptions::new(outside, 60.0)).expect("not known yet").collect().await;
    assert!(matches!(items.as_slice(), [Err(DisplayError::RegionOutOfFrame { .. })]), "{items:?}");
}

#[tokio::test]
async fn input_is_scaled_checked_and_done() {
    let (hub, fake) = with_agent(200, 100).await;
    let done = hub.send_input("b1", vec![click(50, 25)], Some(Size { width: 100, height: 50 }), soon()).await;
    let done = done.expect("done");
    assert_eq!((done.completed, done.epoch, done.source), (1, 1, Source::Agent));
    let seen = fake.state().inputs.pop().expect("an input");
    let Some(pb::input_event::Event::Click(seen)) = seen.events[0].event.clone() else { panic!("{seen:?}") };
    assert_eq!(seen.at, Some(pb::Point { x: 101, y: 51 }));
    let chord = |name: &str| InputEvent::Chord { keys: vec![name.into()], hold: Duration::ZERO };
    for (events, reason) in [
        (vec![click(1, 1), click(200, 0)], Reason::OutOfFrame),
        (vec![chord("VK_NOPE")], Reason::UnknownKey),
        (vec![], Reason::InvalidField),
    ] {
        let error: Error = hub.send_input("b2", events, None, soon()).await.expect_err("refused").into();
        assert_eq!(error.reason, reason);
    }
    assert!(fake.state().inputs.is_empty(), "nothing reached the guest");
}

#[tokio::test]
async fn the_guests_refusal_names_the_event() {
    let (hub, fake) = with_agent(200, 100).await;
    let refuse = |completed, reason: pb::InputFailureReason| {
        Ok(pb::InputResponse {
            completed,
            failure: Some(pb::InputFailure { reason: reason.into(), message: "no key named \"Foo\"".into() }),
            ..Default::default()
        })
    };
    use pb::InputFailureReason::{Platform, UnknownKey};
    fake.state().input_answers.extend([refuse(0, UnknownKey), refuse(1, Platform)]);
    let events = || {
        vec![
            InputEvent::ReleaseAll,
            InputEvent::Key { key: "Foo".into(), action: Action::Tap, hold: Duration::ZERO },
        ]
    };
    let error: Error = hub.send_input("a", events(), None, soon()).await.expect_err("refused").into();
    assert_eq!(error.reason, Reason::UnknownKey);
    assert_eq!(error.violations[0].field, "events[1].key.key", "the event that names it");
    let failed = hub.send_input("b", events(), None, soon()).await;
    assert!(matches!(failed, Err(DisplayError::InputFailed { completed: 1, .. })), "{failed:?}");
}

#[tokio::test]
async fn a_session_lost_in_the_middle_leaves_the_outcome_open() {
    let (hub, fake) = with_agent(200, 100).await;
    fake.state().input_hangs = true;
    let driver = hub.clone();
    let call = tokio::spawn(async move { driver.send_input("b", vec![click(1, 1)], None, soon()).await });
    while fake.state().inputs.is_empty() {
        tokio::task::yield_now().await;
    }
    hub.session().expect("open").expect("a session").close();
    let error: Error = call.await.expect("no panic").expect_err("lost").into();
    assert_eq!(error.reason, Reason::InputOutcomeUnknown);
    assert!(error.metadata.contains(&("completed", "0".to_owned())));
    let after = hub.send_input("c", vec![click(1, 1)], None, soon()).await;
    assert!(matches!(after, Err(DisplayError::NotConnected)), "nothing was sent: {after:?}");
}

#[tokio::test]
async fn act_gives_input_wait_and_picture() {
    let (hub, fake) = with_agent(200, 100).await;
    let (settle, options) = (SettleOptions::default(), ScreenshotOptions::default());
    let acted = hub.act("b", vec![click(1, 1)], None, &settle, &options, soon()).await.expect("acted");
    assert_eq!(acted.input.completed, 1);
    assert_eq!(decoded(&acted.screenshot).as_raw(), &expected(&fake));
    let bad = ScreenshotOptions { format: ImageFormat::Jpeg(0), ..options };
    let inputs = fake.state().inputs.len();
    assert!(hub.act("c", vec![click(1, 1)], None, &settle, &bad, soon()).await.is_err());
    assert_eq!(fake.state().inputs.len(), inputs, "refused before any input");
}

#[tokio::test]
async fn without_an_agent_the_hypervisor_stands_in() {
    let (hub, stub) = hub(true, Size { width: 20, height: 10 });
    stub.show(5);
    let first = hub.screenshot(&ScreenshotOptions::default(), soon()).await.expect("picture");
    assert_eq!((first.source, first.epoch, first.cursor), (Source::Hypervisor, 0, None));
    assert_eq!(decoded(&first).get_pixel(3, 3).0, [5, 5, 5]);
    stub.show(6);
    let second = hub.screenshot(&ScreenshotOptions::default(), soon()).await.expect("picture");
    assert!(second.sequence > first.sequence);
    let text = |text: &str| vec![InputEvent::Text { text: text.into(), interval: Duration::ZERO }];
    let done = hub.send_input("b", text("hi"), None, soon()).await.expect("done");
    assert_eq!((done.source, done.completed, done.replayed), (Source::Hypervisor, 1, false));
    assert_eq!(stub.done.lock().expect("no panic").len(), 4);
    let again = hub.send_input("b", text("hi"), None, soon()).await.expect("done");
    assert!(again.replayed);
    let mixed = [text("x"), text("мир")].concat();
    assert!(hub.send_input("c", mixed, None, soon()).await.is_err());
    assert_eq!(stub.done.lock().expect("no panic").len(), 4, "refused whole, and nothing done twice");
    let settle = SettleOptions { quiet: Duration::from_millis(50), ..Default::default() };
    let waited = hub.wait_for_settle(&settle, None, soon()).await.expect("settles");
    assert!(!waited.settled.timed_out);
}

#[tokio::test]
async fn the_hypervisors_screen_meets_conditions_too() {
    let (hub, stub) = hub(true, Size { width: 20, height: 10 });
    stub.show(5);
    let wanted = |rgb| PixelCondition { at: Point { x: 19, y: 9 }, rgb: [rgb; 3], tolerance: 1 };
    let settle = |pixels, regions| SettleOptions {
        quiet: Duration::ZERO,
        pixels,
        regions,
        ..SettleOptions::default()
    };
    let there = hub.wait_for_settle(&settle(vec![wanted(99), wanted(6)], vec![]), None, soon()).await;
    let there = there.expect("met").settled;
    assert_eq!((there.timed_out, there.met), (false, Some(Met::Pixel(1))));
    // Painted by the very input that is waited for.
    stub.paint_on_input(77);
    let act = settle(vec![], vec![rect(0, 0, 1, 1)]);
    let acted = hub.act("b", vec![click(1, 1)], None, &act, &ScreenshotOptions::default(), soon()).await;
    assert_eq!(acted.expect("met").settled.met, Some(Met::Region(0)));
    let never = SettleOptions { timeout: Duration::from_millis(1), ..settle(vec![wanted(1)], vec![]) };
    let over = hub.wait_for_settle(&never, None, soon()).await.expect("ends").settled;
    assert_eq!((over.timed_out, over.met), (true, None));
    let outside = PixelCondition { at: Point { x: 20, y: 0 }, rgb: [0; 3], tolerance: 0 };
    let error: Error =
        hub.wait_for_settle(&settle(vec![outside], vec![]), None, soon()).await.expect_err("outside").into();
    assert_eq!(
        (error.reason, error.violations[0].field.as_str()),
        (Reason::OutOfFrame, "settle.pixels[0].at")
    );
}

#[tokio::test]
async fn what_the_hypervisor_holds_down_can_be_let_go() {
    let (hub, stub) = hub(true, Size { width: 20, height: 10 });
    let press = |key: &str| InputEvent::Key { key: key.into(), action: Action::Press, hold: Duration::ZERO };
    hub.send_input("a", vec![press("ctrl")], None, soon()).await.expect("done");
    // Its caller goes away in the middle of it.
    let chord = InputEvent::Chord { keys: vec!["shift".into()], hold: Duration::from_secs(10) };
    let call = hub.send_input("b", vec![chord], None, soon());
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err(), "held for longer");
    stub.done.lock().expect("no panic").clear();
    hub.release_input(soon()).await.expect("released");
    let up = |key: &str| RawInput::Key { key: key.into(), down: false };
    assert_eq!(*stub.done.lock().expect("no panic"), [up("Shift_L"), up("Control_L")]);
    hub.release_input(soon()).await.expect("nothing to do");
    assert_eq!(stub.done.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn the_agent_is_told_conditions_in_the_frames_pixels() {
    let (hub, fake) = with_agent(200, 100).await;
    let settle = SettleOptions {
        quiet: Duration::ZERO,
        regions: vec![rect(10, 10, 5, 5)],
        pixels: vec![PixelCondition { at: Point { x: 50, y: 25 }, rgb: [255, 128, 0], tolerance: 4 }],
        ..SettleOptions::default()
    };
    let frame = Some(Size { width: 100, height: 50 });
    let options = ScreenshotOptions::default();
    hub.act("b", vec![click(1, 1)], frame, &settle, &options, soon()).await.expect("acted");
    let asked = fake.state().inputs.pop().expect("an input").settle.expect("a wait");
    assert_eq!(asked.regions, [pb::Rect { x: 20, y: 20, width: 10, height: 10 }]);
    assert_eq!(asked.pixels, [pb::Pixel { x: 101, y: 51, rgb: 0xff_80_00, tolerance: 4 }]);
    assert_eq!(asked.quiet, None);
    // A guest that met what nobody asked for.
    let mut answer = pb::InputResponse { completed: 1, ..Default::default() };
    answer.settle = Some(pb::SettleResponse { met: 3, met_index: 1, ..Default::default() });
    fake.state().input_answers.push_back(Ok(answer));
    let lied = hub.act("c", vec![click(1, 1)], frame, &settle, &options, soon()).await;
    assert!(matches!(lied, Err(DisplayError::Guest(_) | DisplayError::OutcomeUnknown { .. })), "{lied:?}");
}

#[tokio::test]
async fn the_agent_takes_over_when_it_comes() {
    let (hub, stub) = hub(true, Size { width: 20, height: 10 });
    stub.show(5);
    let mut stream = hub.subscribe(fast()).expect("legal");
    assert_eq!(stream.next().await.map(frame).expect("a frame").picture.source, Source::Hypervisor);
    let fake = Fake::new(20, 10);
    let session = attach(&hub, &fake, 3).await;
    assert_eq!(stream.next().await.map(frame).expect("a frame").picture.source, Source::Agent);
    session.close();
    let after = hub.screenshot(&ScreenshotOptions::default(), soon()).await.expect("picture");
    assert_eq!(after.source, Source::Hypervisor);
}

#[tokio::test]
async fn an_agent_that_hangs_is_passed_by_until_it_answers_again() {
    let (hub, stub) = hub(true, Size { width: 20, height: 10 });
    stub.show(5);
    let fake = Fake::new(20, 10);
    attach(&hub, &fake, 3).await;
    let options = ScreenshotOptions::default();
    assert_eq!(hub.screenshot(&options, soon()).await.expect("picture").source, Source::Agent);
    // It waits for a change that the guest will not tell.
    let mut still = hub.subscribe(fast()).expect("legal");
    assert_eq!(still.next().await.map(frame).expect("a frame").picture.source, Source::Agent);
    let still = tokio::spawn(async move { still.next().await });
    while !hub.0.view.watching.covers(true) {
        tokio::task::yield_now().await;
    }
    fake.state().hangs = true;
    let text = |text: &str| vec![InputEvent::Text { text: text.into(), interval: Duration::ZERO }];
    // It has just answered, so it is trusted with this, and then nobody knows.
    let brief = Instant::now() + Duration::from_millis(600);
    let lost = hub.send_input("a", text("no"), None, brief).await;
    assert!(matches!(lost, Err(DisplayError::OutcomeUnknown { .. })), "{lost:?}");

    let done = hub.send_input("b", text("hi"), None, soon()).await.expect("done");
    assert_eq!((done.source, done.completed), (Source::Hypervisor, 1));
    let told = tokio::time::timeout(Duration::from_secs(10), still).await.expect("told by whoever found out");
    assert_eq!(told.expect("no panic").map(frame).expect("a frame").picture.source, Source::Hypervisor);
    let typed = stub.done.lock().expect("no panic").len();
    let lost = hub.send_input("a", text("no"), None, soon()).await;
    assert!(matches!(lost, Err(DisplayError::OutcomeUnknown { .. })), "the agent may do it yet: {lost:?}");
    assert_eq!(stub.done.lock().expect("no panic").len(), typed);
    let seen = hub.screenshot(&options, soon()).await.expect("picture");
    assert_eq!((seen.source, decoded(&seen).get_pixel(3, 3).0), (Source::Hypervisor, [5, 5, 5]));
    let settle = SettleOptions { quiet: Duration::from_millis(50), ..Default::default() };
    let waited = hub.wait_for_settle(&settle, None, soon()).await.expect("settles");
    assert_eq!(waited.source, Source::Hypervisor);
    let mut stream = hub.subscribe(fast()).expect("legal");
    assert_eq!(stream.next().await.map(frame).expect("a frame").picture.source, Source::Hypervisor);

    fake.state().hangs = false;
    assert_eq!(hub.screenshot(&options, soon()).await.expect("picture").source, Source::Agent);
    let inputs = fake.state().inputs.len();
    let again = hub.send_input("b", text("hi"), None, soon()).await.expect("done");
    assert_eq!((again.source, again.replayed), (Source::Hypervisor, true));
    assert_eq!(fake.state().inputs.len(), inputs, "not done twice");
    let done = hub.send_input("c", text("hi"), None, soon()).await.expect("done");
    assert_eq!(done.source, Source::Agent);
}
