//! Frames, input events and settling on a real X server.

mod desktop;
mod host;

use std::time::{Duration, Instant};

use desktop::Display;
use host::Host;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::InputFailureReason as Reason;
use hvkube_proto::guest::v1::input_event::Event;
use x11rb::connection::Connection as _;
use x11rb::protocol::Event as X11Event;
use x11rb::protocol::xproto::{
    ConnectionExt as _, CreateGCAux, CreateWindowAux, EventMask, Gcontext, ImageFormat, InputFocus,
    Rectangle, Window, WindowClass,
};
use x11rb::wrapper::ConnectionExt as _;

fn seconds(s: u64) -> Option<prost_types::Duration> {
    Duration::from_secs(s).try_into().ok()
}

fn millis(ms: u64) -> Option<prost_types::Duration> {
    Duration::from_millis(ms).try_into().ok()
}

fn point(x: i32, y: i32) -> Option<pb::Point> {
    Some(pb::Point { x, y })
}

/// A plain window of the test's own, without a window manager: what it sees is what the agent did.
fn window(display: &Display, x: i16, y: i16, width: u16, height: u16) -> (Window, Gcontext) {
    let conn = &display.conn;
    let (id, gc) = (conn.generate_id().expect("id"), conn.generate_id().expect("id"));
    let events = EventMask::BUTTON_PRESS
        | EventMask::BUTTON_RELEASE
        | EventMask::POINTER_MOTION
        | EventMask::KEY_PRESS
        | EventMask::KEY_RELEASE;
    let attributes =
        CreateWindowAux::new().background_pixel(0x0020_4060).override_redirect(1).event_mask(events);
    conn.create_window(
        24,
        id,
        display.root,
        x,
        y,
        width,
        height,
        0,
        WindowClass::INPUT_OUTPUT,
        0,
        &attributes,
    )
    .expect("created");
    conn.create_gc(gc, id, &CreateGCAux::new()).expect("gc");
    conn.map_window(id).expect("mapped");
    conn.set_input_focus(InputFocus::NONE, id, x11rb::CURRENT_TIME).expect("focused");
    conn.sync().expect("server");
    (id, gc)
}

fn fill(display: &Display, (id, gc): (Window, Gcontext), colour: u32, rect: Rectangle) {
    display
        .conn
        .change_gc(gc, &x11rb::protocol::xproto::ChangeGCAux::new().foreground(colour))
        .expect("colour");
    display.conn.poly_fill_rectangle(id, gc, &[rect]).expect("drawn");
    display.conn.sync().expect("server");
}

/// The screen by another way than the agent's.
fn screen(display: &Display, width: u16, height: u16) -> Vec<u8> {
    let format = ImageFormat::Z_PIXMAP;
    let image = display.conn.get_image(format, display.root, 0, 0, width, height, u32::MAX).expect("sent");
    image.reply().expect("image").data
}

fn same_pixels(a: &[u8], b: &[u8], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a.chunks(4).zip(b.chunks(4)).filter(|(a, b)| a[..3] != b[..3]).count();
    assert_eq!(differ, 0, "{what}: {differ} pixels differ");
}

async fn capture(host: &Host, since_sequence: u64) -> host::Captured {
    host.capture(pb::CaptureRequest { since_sequence, ..Default::default() }).await.expect("captured")
}

#[tokio::test]
async fn frames_and_differences_hold_the_screens_pixels() {
    let display = Display::start();
    // Something that does not compress to nothing.
    display.tool("x11-xserver-utils", &["xsetroot", "-mod", "5", "7", "-fg", "red", "-bg", "navy"]);
    let win = window(&display, 100, 100, 300, 200);
    let host = display.session().await;
    let first = capture(&host, 0).await;
    assert!(first.header.full);
    assert_eq!((first.header.width, first.header.height), (1280, 800));
    let mut frame = Vec::new();
    first.paint(&mut frame);
    same_pixels(&frame, &screen(&display, 1280, 800), "full frame");

    let same = capture(&host, first.header.sequence).await;
    assert_eq!((same.header.full, same.rects.len(), same.header.sequence), (false, 0, first.header.sequence));

    // Drawn and asked for at once: the answer must have it.
    for i in 0i16..20 {
        fill(
            &display,
            win,
            0x00ff_0000 + u32::from(i.unsigned_abs()),
            Rectangle { x: i * 10, y: 5, width: 9, height: 30 },
        );
        let sequence = first.header.sequence;
        let changed = capture(&host, sequence).await;
        assert!(!changed.header.full && changed.header.sequence > sequence);
        let pixels: u32 =
            changed.rects.iter().map(|r| r.area.expect("area")).map(|a| a.width * a.height).sum();
        assert!(pixels < 300 * 200, "only what changed: {pixels} pixels");
        let mut frame = frame.clone();
        changed.paint(&mut frame);
        same_pixels(&frame, &screen(&display, 1280, 800), "difference");
    }
    // A sequence from the future, or too old to be remembered, gives all.
    assert!(capture(&host, 1 << 40).await.header.full);
}

#[tokio::test]
async fn a_waiting_capture_answers_at_the_change_and_at_its_deadline() {
    let display = Display::start();
    let win = window(&display, 0, 0, 200, 200);
    let host = display.session().await;
    let since_sequence = capture(&host, 0).await.header.sequence;
    let wait = pb::CaptureRequest { since_sequence, wait: seconds(50), ..Default::default() };
    let draw = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fill(&display, win, 0x00ff_ffff, Rectangle { x: 1, y: 1, width: 10, height: 10 });
    };
    let (changed, ()) = tokio::join!(host.capture(wait), draw);
    let changed = changed.expect("captured");
    assert!(!changed.rects.is_empty() && !changed.header.full);

    let wait = pb::CaptureRequest {
        since_sequence: changed.header.sequence,
        wait: millis(50),
        ..Default::default()
    };
    assert!(host.capture(wait).await.expect("captured").rects.is_empty(), "nothing changed");

    // The cursor counts for those who want to know it, and costs no pixels.
    let with = |since_sequence, wait| pb::CaptureRequest {
        since_sequence,
        wait,
        cursor: true,
        base: changed.header.answer,
        ..Default::default()
    };
    let before = host.capture(with(changed.header.sequence, None)).await.expect("captured");
    let move_it = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        host.input("m", vec![Event::Move(pb::Move { to: point(150, 150), ..Default::default() })]).await
    };
    let (moved, done) = tokio::join!(host.capture(with(before.header.sequence, seconds(50))), move_it);
    assert_eq!(done.expect("moved").failure, None);
    let moved = moved.expect("captured");
    assert_eq!((moved.header.pointer_x, moved.header.pointer_y), (150, 150));
    assert!(moved.rects.is_empty() && moved.header.sequence > before.header.sequence);
    assert_eq!(moved.header.answer, before.header.answer, "the host's frame is the same");
}

#[tokio::test]
async fn the_cursor_is_a_shape_and_a_place() {
    let display = Display::start();
    let _win = window(&display, 0, 0, 400, 400);
    let host = display.session().await;
    host.input("m", vec![Event::Move(pb::Move { to: point(200, 200), ..Default::default() })])
        .await
        .expect("moved");
    let request = |cursor_shape| pb::CaptureRequest { cursor: true, cursor_shape, ..Default::default() };
    let captured = host.capture(request(0)).await.expect("captured");
    assert_eq!((captured.header.pointer_x, captured.header.pointer_y), (200, 200));
    let mut frame = Vec::new();
    captured.paint(&mut frame);
    same_pixels(&frame, &screen(&display, 1280, 800), "no cursor in the pixels");
    let cursor = captured.header.cursor.expect("a cursor");
    assert!(cursor.shape != 0 && cursor.width > 0 && cursor.height > 0);
    assert_eq!(cursor.pixels.len(), (cursor.width * cursor.height * 4) as usize);
    assert!(cursor.pixels.chunks(4).any(|pixel| pixel[3] == 255), "something of it is seen");
    let again = host.capture(request(cursor.shape)).await.expect("captured").header.cursor.expect("a cursor");
    assert_eq!((again.shape, again.pixels.len()), (cursor.shape, 0), "known already");
}

/// The screen as `xwd` dumps it: a header that tells its own length, colours of 12 bytes each, then rows of pixels.
fn dump(display: &Display) -> Vec<u8> {
    let file = display.tool("x11-apps", &["xwd", "-root", "-silent"]);
    let field = |n: usize| u32::from_be_bytes(file[n * 4..n * 4 + 4].try_into().expect("a header")) as usize;
    let (header, width, height, bits, stride, colours) =
        (field(0), field(4), field(5), field(11), field(12), field(19));
    assert_eq!((bits, stride), (32, width * 4), "the test reads 32 bits a pixel without padding");
    let from = header + colours * 12;
    file[from..from + stride * height].to_vec()
}

#[tokio::test]
async fn differences_one_after_another_give_what_xwd_sees() {
    let display = Display::start();
    display.tool("x11-xserver-utils", &["xsetroot", "-mod", "9", "4", "-fg", "gold", "-bg", "navy"]);
    let win = window(&display, 37, 51, 900, 600);
    let host = display.session().await;
    let mut frame = Vec::new();
    let mut have = capture(&host, 0).await;
    have.paint(&mut frame);
    same_pixels(&frame, &dump(&display), "full frame");
    let mut seed = 1u32;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    for step in 0..30 {
        for _ in 0..random(6) {
            let (x, y) =
                (i16::try_from(random(850)).expect("small"), i16::try_from(random(550)).expect("small"));
            let (width, height) = (1 + random(200), 1 + random(150));
            let (width, height) =
                (u16::try_from(width).expect("small"), u16::try_from(height).expect("small"));
            fill(&display, win, random(1 << 24), Rectangle { x, y, width, height });
        }
        // What scrolls looks like what is elsewhere already.
        let by = i16::try_from(random(3) * 64).expect("small");
        display.conn.copy_area(win.0, win.0, win.1, 0, by, 0, 0, 900, 400).expect("drawn");
        let request = pb::CaptureRequest {
            since_sequence: have.header.sequence,
            base: have.header.answer,
            cursor: step % 2 == 0,
            ..Default::default()
        };
        have = host.capture(request).await.expect("captured");
        have.paint(&mut frame);
        same_pixels(&frame, &dump(&display), &format!("step {step}"));
    }
}

#[tokio::test]
async fn what_the_host_shows_is_not_sent_again() {
    let display = Display::start();
    let win = window(&display, 100, 100, 300, 200);
    let host = display.session().await;
    let mut frame = Vec::new();
    let first = capture(&host, 0).await;
    first.paint(&mut frame);
    let mut have = first.header;
    let mut step = async |what: &str| {
        let request =
            pb::CaptureRequest { since_sequence: have.sequence, base: have.answer, ..Default::default() };
        let captured = host.capture(request).await.expect("captured");
        captured.paint(&mut frame);
        same_pixels(&frame, &screen(&display, 1280, 800), what);
        have = captured.header.clone();
        captured
    };
    let all = Rectangle { x: 0, y: 0, width: 300, height: 200 };
    fill(&display, win, 0x00ff_ff00, all);
    assert!(!step("painted").await.rects.is_empty());
    fill(&display, win, 0x00ff_ff00, all);
    assert!(step("painted again").await.rects.is_empty(), "the same pixels");
    // Two tiles that are neither flat nor different from each other.
    for x in [0, 64] {
        fill(&display, win, 0x0000_ff00, Rectangle { x: 28 + x, y: 28, width: 10, height: 10 });
    }
    let twins = step("twins").await;
    assert_eq!(twins.rects.len(), 2);
    assert!(twins.rects.iter().any(|r| r.packing() == pb::Packing::Copy), "{:?}", twins.rects);
    // A host that says nothing of what it has gets everything that changed since its sequence.
    fill(&display, win, 0x0000_ff00, Rectangle { x: 28, y: 28, width: 10, height: 10 });
    assert!(!capture(&host, have.sequence).await.rects.is_empty());
}

#[tokio::test]
async fn a_new_resolution_is_a_new_full_frame() {
    let display = Display::start();
    let host = display.session().await;
    let before = capture(&host, 0).await.header.sequence;
    let mode = ["xrandr", "--newmode", "small", "0", "1024", "0", "0", "1024", "768", "0", "0", "768"];
    display.tool("x11-xserver-utils", &mode);
    display.tool("x11-xserver-utils", &["xrandr", "--addmode", "screen", "small"]);
    display.tool("x11-xserver-utils", &["xrandr", "--output", "screen", "--mode", "small"]);
    let after = capture(&host, before).await;
    assert!(after.header.full);
    assert_eq!((after.header.width, after.header.height), (1024, 768));
    let mut frame = Vec::new();
    after.paint(&mut frame);
    same_pixels(&frame, &screen(&display, 1024, 768), "new size");
    let outside =
        host.input("m", vec![Event::Move(pb::Move { to: point(1100, 10), ..Default::default() })]).await;
    let failure = outside.expect("answered").failure.expect("refused");
    assert_eq!(failure.reason(), Reason::OutOfBounds);
}

/// What a window saw: presses, releases and motion, with places relative to the screen.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Press(u8, i16, i16),
    Release(u8, i16, i16),
    KeyDown(u8),
    KeyUp(u8),
}

fn seen(display: &Display) -> Vec<Seen> {
    display.conn.sync().expect("server");
    let mut out = Vec::new();
    while let Some(event) = display.conn.poll_for_event().expect("events") {
        match event {
            X11Event::ButtonPress(e) => out.push(Seen::Press(e.detail, e.root_x, e.root_y)),
            X11Event::ButtonRelease(e) => out.push(Seen::Release(e.detail, e.root_x, e.root_y)),
            X11Event::KeyPress(e) => out.push(Seen::KeyDown(e.detail)),
            X11Event::KeyRelease(e) => out.push(Seen::KeyUp(e.detail)),
            _ => {}
        }
    }
    out
}

const SHIFT: u8 = 50;
const CONTROL: u8 = 37;
const KEY_A: u8 = 38;

#[tokio::test]
async fn clicks_drags_scrolls_and_chords_are_seen_in_order_and_place() {
    use Seen::{KeyDown, KeyUp, Press, Release};
    let display = Display::start();
    let _win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let answer = host
        .input(
            "all",
            vec![
                Event::Click(pb::Click { at: point(20, 30), count: 2, ..Default::default() }),
                Event::Click(pb::Click {
                    at: point(40, 50),
                    button: pb::MouseButton::Right.into(),
                    modifiers: vec!["Shift_L".into()],
                    ..Default::default()
                }),
                Event::Drag(pb::Drag {
                    path: [point(10, 10), point(200, 100)].map(Option::unwrap_or_default).into(),
                    ..Default::default()
                }),
                Event::Scroll(pb::Scroll {
                    at: point(60, 60),
                    delta_x: -1,
                    delta_y: 2,
                    ..Default::default()
                }),
                Event::Chord(pb::Chord { keys: vec!["ctrl".into(), "A".into()], hold: None }),
                Event::Key(pb::Key { key: "VK_A".into(), ..Default::default() }),
            ],
        )
        .await
        .expect("answered");
    assert_eq!((answer.failure, answer.completed, answer.scrolled_x, answer.scrolled_y), (None, 6, -1, 2));
    let expected = [
        Press(1, 20, 30),
        Release(1, 20, 30),
        Press(1, 20, 30),
        Release(1, 20, 30),
        KeyDown(SHIFT),
        Press(3, 40, 50),
        Release(3, 40, 50),
        KeyUp(SHIFT),
        Press(1, 10, 10),
        Release(1, 200, 100),
        Press(6, 60, 60),
        Release(6, 60, 60),
        Press(5, 60, 60),
        Release(5, 60, 60),
        Press(5, 60, 60),
        Release(5, 60, 60),
        KeyDown(CONTROL),
        KeyDown(KEY_A),
        KeyUp(KEY_A),
        KeyUp(CONTROL),
        KeyDown(KEY_A),
        KeyUp(KEY_A),
    ];
    assert_eq!(seen(&display), expected);
    let probe = host.display().probe(pb::ProbeRequest {}).await.expect("probed").into_inner();
    assert_eq!((probe.width, probe.height, probe.pointer_x, probe.pointer_y), (1280, 800, 60, 60));
}

#[tokio::test]
async fn a_bad_event_stops_the_whole_batch_before_it_begins() {
    let display = Display::start();
    let _win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let click = || Event::Click(pb::Click { at: point(5, 5), ..Default::default() });
    let drag =
        |n: i32| Event::Drag(pb::Drag { path: vec![pb::Point { x: n, y: 0 }; 2], ..Default::default() });
    let bad = [
        (
            Event::Key(pb::Key { key: "NoSuchKey".into(), ..Default::default() }),
            Reason::UnknownKey,
            "NoSuchKey",
        ),
        (Event::Chord(pb::Chord { keys: vec![], hold: None }), Reason::Invalid, "chord.keys"),
        (drag(-1), Reason::OutOfBounds, "(-1, 0)"),
        (drag(1280), Reason::OutOfBounds, "1280 x 800"),
        (Event::Click(pb::Click { count: 11, ..Default::default() }), Reason::Invalid, "click.count"),
        (Event::Scroll(pb::Scroll { delta_y: 1001, ..Default::default() }), Reason::Invalid, "scroll"),
        (Event::Text(pb::Text { text: "a\u{1}".into(), interval: None }), Reason::Invalid, "U+0001"),
        (Event::Pause(seconds(11).unwrap_or_default()), Reason::Invalid, "pause"),
    ];
    for (i, (event, reason, word)) in bad.into_iter().enumerate() {
        let answer = host.input(&format!("bad{i}"), vec![click(), event]).await.expect("answered");
        let failure = answer.failure.expect("refused");
        assert_eq!((failure.reason(), answer.completed), (reason, 0), "{}", failure.message);
        assert!(failure.message.contains(word), "{:?} names {word:?}", failure.message);
    }
    assert_eq!(seen(&display), []);
    let status = host.input(&"x".repeat(65), vec![click()]).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_is_done_once_and_a_sessions_end_lets_go() {
    let display = Display::start();
    display.tool("x11-xserver-utils", &["xset", "r", "off"]);
    let _win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let press = vec![
        Event::Move(pb::Move { to: point(9, 9), ..Default::default() }),
        Event::Key(pb::Key { key: "A".into(), action: pb::Action::Press.into(), hold: None }),
        Event::Button(pb::Button { button: 0, action: pb::Action::Press.into() }),
    ];
    let first = host.input("once", press.clone()).await.expect("done");
    let again = host.input("once", press.clone()).await.expect("remembered");
    assert_eq!((first.failure, first.completed, first.replayed), (None, 3, false));
    assert_eq!((again.failure, again.completed, again.replayed), (None, 3, true));
    assert_eq!(seen(&display), [Seen::KeyDown(SHIFT), Seen::KeyDown(KEY_A), Seen::Press(1, 9, 9)]);

    drop(host);
    let mut events = Vec::new();
    let deadline = Instant::now() + desktop::PATIENCE;
    while events.len() < 3 {
        assert!(Instant::now() < deadline, "keys and buttons stay down: {events:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        events.extend(seen(&display));
    }
    assert_eq!(events, [Seen::KeyUp(KEY_A), Seen::KeyUp(SHIFT), Seen::Release(1, 9, 9)]);
    let host = display.session().await;
    assert!(!host.input("once", press).await.expect("done").replayed, "another session, another memory");
}

#[tokio::test]
async fn settling_waits_for_the_last_change_and_leaves_out_what_is_ignored() {
    let display = Display::start();
    let win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let request = pb::SettleRequest { quiet: millis(300), timeout: seconds(50), ..Default::default() };
    let draw = async {
        for i in 0..4 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fill(&display, win, 0x00aa_0000 + i, Rectangle { x: 10, y: 10, width: 50, height: 20 });
        }
        Instant::now()
    };
    let wait = async { (host.display().settle(request).await, Instant::now()) };
    let ((settled, answered), drawn) = tokio::join!(wait, draw);
    let settled = settled.expect("settled").into_inner();
    assert!(!settled.timed_out && settled.settled_after_micros > 0, "{settled:?}");
    assert!(answered - drawn >= Duration::from_millis(300), "quiet since the last change");
    assert_eq!(settled.changed, [pb::Rect { x: 10, y: 10, width: 50, height: 20 }]);

    let ignore = vec![pb::Rect { x: 0, y: 0, width: 100, height: 100 }];
    let request =
        pb::SettleRequest { quiet: millis(200), timeout: seconds(50), ignore, ..Default::default() };
    let blink = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            fill(&display, win, 0x00bb_0000, Rectangle { x: 10, y: 10, width: 2, height: 16 });
        }
    };
    let settled = tokio::select! {
        settled = async { host.display().settle(request).await } => settled.expect("settled").into_inner(),
        () = blink => unreachable!("never ends"),
    };
    assert_eq!((settled.timed_out, settled.settled_after_micros, settled.changed.len()), (false, 0, 0));
}

fn change(x: u32, y: u32, width: u32, height: u32) -> pb::SettleRequest {
    let regions = vec![pb::Rect { x, y, width, height }];
    pb::SettleRequest { regions, timeout: seconds(50), ..Default::default() }
}

#[tokio::test]
async fn a_region_is_met_when_its_pixels_change_and_not_before() {
    let display = Display::start();
    let win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let wait = async { host.display().settle(change(100, 100, 50, 50)).await.expect("met").into_inner() };
    let draw = async {
        let small = |x, y| Rectangle { x, y, width: 20, height: 20 };
        // Elsewhere; there, but in the colour it has; there.
        for (colour, rect) in
            [(0x00ff_0000, small(300, 300)), (0x0020_4060, small(110, 110)), (0x0000_ff00, small(140, 140))]
        {
            tokio::time::sleep(Duration::from_millis(200)).await;
            fill(&display, win, colour, rect);
        }
        Instant::now()
    };
    let (met, drawn) = tokio::join!(async { (wait.await, Instant::now()) }, draw);
    let (met, at) = met;
    assert_eq!((met.timed_out, met.met(), met.met_index), (false, pb::Condition::Region, 0));
    assert!(at >= drawn, "not by what was drawn before: {met:?}");
    assert!(met.changed.contains(&pb::Rect { x: 140, y: 140, width: 20, height: 20 }), "{met:?}");
}

#[tokio::test]
async fn a_pixel_is_met_by_a_colour_near_enough_also_from_the_start() {
    let display = Display::start();
    let win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let wait = |rgb, tolerance, timeout| {
        let pixels = vec![pb::Pixel { x: 50, y: 60, rgb, tolerance }];
        let request = pb::SettleRequest { pixels, timeout, ..Default::default() };
        let mut display = host.display();
        async move { display.settle(request).await.expect("an answer").into_inner() }
    };
    let met = wait(0x0022_4060, 2, seconds(50)).await;
    assert_eq!((met.met(), met.timed_out), (pb::Condition::Pixel, false), "as it is");
    let over = wait(0x0023_4060, 2, millis(100)).await;
    assert_eq!((over.met(), over.timed_out), (pb::Condition::Unspecified, true));
    let draw = async {
        for red in [100, 150, 200] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fill(&display, win, red << 16, Rectangle { x: 50, y: 60, width: 1, height: 1 });
        }
    };
    let (met, ()) = tokio::join!(wait(0x00c8_0000, 0, seconds(50)), draw);
    assert_eq!((met.met(), met.timed_out), (pb::Condition::Pixel, false));
}

#[tokio::test]
async fn input_can_wait_for_the_region_that_it_changes() {
    let mut display = Display::start();
    display.manage();
    display.run("xterm", &["xterm", "-geometry", "+0+0", "-e", "cat"]);
    let xterm = display.focused_window("xterm");
    let host = display.session().await;
    let place =
        display.conn.translate_coordinates(xterm, display.root, 0, 0).expect("sent").reply().expect("place");
    let (x, y) = (u32::try_from(place.dst_x).expect("on it"), u32::try_from(place.dst_y).expect("on it"));
    host.display().settle(pb::SettleRequest::default()).await.expect("calm before");
    let events =
        vec![pb::InputEvent { event: Some(Event::Text(pb::Text { text: "hello".into(), interval: None })) }];
    let settle = pb::SettleRequest { quiet: millis(200), ..change(x, y, 60, 20) };
    let request = pb::InputRequest { batch_id: "s".into(), events, settle: Some(settle) };
    let met = host.display().input(request).await.expect("done").into_inner().settle.expect("asked for");
    assert_eq!((met.met(), met.timed_out), (pb::Condition::Region, false), "{met:?}");
    assert!(capture(&host, met.sequence).await.rects.is_empty(), "and it was quiet afterwards");
}

const SHIFT_R: u8 = 62;
const CONTROL_R: u8 = 105;

#[tokio::test]
async fn left_and_right_modifiers_are_keys_of_their_own() {
    use Seen::{KeyDown, KeyUp, Press, Release};
    let display = Display::start();
    let _win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let chord = |keys: &[&str]| {
        Event::Chord(pb::Chord { keys: keys.iter().map(ToString::to_string).collect(), hold: None })
    };
    let modifiers = vec!["Shift_R".into()];
    let events = vec![
        chord(&["Control_R", "Shift_L", "a"]),
        chord(&["VK_RCONTROL"]),
        chord(&["VK_LCONTROL"]),
        Event::Click(pb::Click { at: point(5, 6), modifiers, ..Default::default() }),
    ];
    let answer = host.input("m", events).await.expect("answered");
    assert_eq!((answer.failure, answer.completed), (None, 4));
    let expected = [
        KeyDown(CONTROL_R),
        KeyDown(SHIFT),
        KeyDown(KEY_A),
        KeyUp(KEY_A),
        KeyUp(SHIFT),
        KeyUp(CONTROL_R),
        KeyDown(CONTROL_R),
        KeyUp(CONTROL_R),
        KeyDown(CONTROL),
        KeyUp(CONTROL),
        KeyDown(SHIFT_R),
        Press(1, 5, 6),
        Release(1, 5, 6),
        KeyUp(SHIFT_R),
    ];
    assert_eq!(seen(&display), expected);
}

#[tokio::test]
async fn a_smooth_move_goes_by_its_points_and_pixels_become_notches() {
    use Seen::{Press, Release};
    let display = Display::start();
    let _win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let to = |x, y| Event::Move(pb::Move { to: point(x, y), ..Default::default() });
    let glide = pb::Move {
        to: point(100, 0),
        relative: true,
        via: vec![pb::Point { x: 0, y: 100 }, pb::Point { x: 100, y: 100 }],
        duration: millis(400),
    };
    let scroll = pb::Scroll { delta_x: 1, pixels_y: -80, ..Default::default() };
    let events = vec![to(50, 50), Event::Move(glide), Event::Scroll(scroll)];
    let answer = host.input("m", events).await.expect("answered");
    assert_eq!((answer.failure, answer.completed), (None, 3));
    assert_eq!((answer.scrolled_x, answer.scrolled_y), (1, -2));
    assert_eq!((answer.scrolled_pixels_x, answer.scrolled_pixels_y), (0, -106));
    display.conn.sync().expect("server");
    let (mut way, mut wheel) = (Vec::new(), Vec::new());
    while let Some(event) = display.conn.poll_for_event().expect("events") {
        match event {
            X11Event::MotionNotify(e) => way.push((e.root_x, e.root_y)),
            X11Event::ButtonPress(e) => wheel.push(Press(e.detail, e.root_x, e.root_y)),
            X11Event::ButtonRelease(e) => wheel.push(Release(e.detail, e.root_x, e.root_y)),
            _ => {}
        }
    }
    assert_eq!(way.last(), Some(&(150, 50)));
    let on_the_way = |&(x, y): &(i16, i16)| {
        (x == 50 && (50..=150).contains(&y)) || (y == 150 && (50..=150).contains(&x)) || x == 150
    };
    assert!(way.len() > 10 && way.iter().all(on_the_way), "along the three sides: {way:?}");
    let up = [Press(4, 150, 50), Release(4, 150, 50)];
    let right = [Press(7, 150, 50), Release(7, 150, 50)];
    let [[a, b], [c, d], [e, f]] = [right, up, [Press(4, 150, 50), Release(4, 150, 50)]];
    assert_eq!(wheel, [a, b, c, d, e, f]);
}

#[tokio::test]
async fn a_key_is_held_as_long_as_asked() {
    let display = Display::start();
    display.tool("x11-xserver-utils", &["xset", "r", "off"]);
    let _win = window(&display, 0, 0, 600, 600);
    let host = display.session().await;
    let hold = Event::Key(pb::Key { key: "a".into(), hold: millis(300), ..Default::default() });
    assert_eq!(host.input("h", vec![hold]).await.expect("answered").failure, None);
    display.conn.sync().expect("server");
    let mut times = Vec::new();
    while let Some(event) = display.conn.poll_for_event().expect("events") {
        if let X11Event::KeyPress(e) | X11Event::KeyRelease(e) = event {
            times.push(e.time);
        }
    }
    let [down, up] = times[..] else { panic!("{times:?}") };
    assert!(up - down >= 295, "{times:?}");
}

#[tokio::test]
async fn input_with_settle_sees_what_the_input_changed() {
    let mut display = Display::start();
    display.manage();
    display.run("xterm", &["xterm", "-e", "cat"]);
    display.focused_window("xterm");
    let host = display.session().await;
    let settle = pb::SettleRequest { quiet: millis(300), timeout: seconds(50), ..Default::default() };
    host.display().settle(settle.clone()).await.expect("calm before");
    let events =
        vec![pb::InputEvent { event: Some(Event::Text(pb::Text { text: "hello".into(), interval: None })) }];
    let request = pb::InputRequest { batch_id: "s".into(), events, settle: Some(settle) };
    let answer = host.display().input(request).await.expect("done").into_inner();
    let settled = answer.settle.expect("was asked for");
    assert!(
        !settled.timed_out && !settled.changed.is_empty() && settled.settled_after_micros > 0,
        "{settled:?}"
    );
    assert!(capture(&host, settled.sequence).await.rects.is_empty(), "nothing has changed since it settled");
}
