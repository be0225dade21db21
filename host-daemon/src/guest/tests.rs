//! Sessions against an agent in memory, well-behaved and hostile.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::preface::{Hello, VERSION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::fake::{Fake, header_part, rect_part};
use super::*;
use crate::model::screen::Rect;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn open(fake: &Fake) -> Session {
    Session::open(fake.dial(), &OpenOptions { epoch: 5, ..Default::default() }, soon())
        .await
        .expect("session")
}

#[tokio::test]
async fn a_session_tells_the_guest_who_it_is_and_hears_its_heart() {
    let fake = Fake::new(8, 8);
    fake.state().beats = Some(vec![pb::HeartbeatResponse {
        sequence: 9,
        load1: f64::NAN,
        memory_total_bytes: 10,
        memory_available_bytes: 99,
        ip_addresses: vec!["10.0.2.15".into(), "no address".into()],
        ..Default::default()
    }]);
    let identity =
        Identity { hostname: "vm-1".into(), machine_id: [0xab; 16], mac: Some([2, 0, 0, 0, 0, 1]) };
    let attach = AttachParams { identity: Some(identity), reseed: true };
    let options = OpenOptions { epoch: 5, attach, ..Default::default() };
    let session = Session::open(fake.dial(), &options, soon()).await.expect("session");
    {
        let state = fake.state();
        let seen = &state.attached[0];
        assert_eq!((seen.epoch, seen.entropy.len()), (5, 32));
        assert_eq!(seen.identity.as_ref().map(|i| i.machine_id.clone()), Some("ab".repeat(16)));
    }
    let mut beats = session.heartbeats();
    let beat = tokio::time::timeout_at(soon(), beats.wait_for(Option::is_some)).await.expect("in time");
    let beat = beat.expect("a sender").clone().expect("a beat");
    assert_eq!((beat.sequence, beat.load1, beat.memory_available_bytes), (9, 0.0, 10));
    assert_eq!(beat.ip_addresses.len(), 1);
    assert_eq!(session.probe(soon()).await.expect("probe").size.width, 8);
}

#[tokio::test]
async fn the_last_hello_in_the_pipe_is_the_one_that_counts() {
    let fake = Fake::new(8, 8);
    let mut stale = b"\x00\x00\x12\x04 the rest of an older session".to_vec();
    stale.extend_from_slice(&Hello { version: VERSION, nonce: [1; 16], secret: [0; 32] }.encode());
    stale.extend_from_slice(b"\x00\x00\x00\x04\x01");
    stale.extend_from_slice(&Hello { version: VERSION, nonce: [2; 16], secret: [0; 32] }.encode());
    let options = OpenOptions::default();
    let session =
        Session::open(fake.dial_with(stale, [0; 32], VERSION), &options, soon()).await.expect("session");
    assert!(session.probe(soon()).await.is_ok());
}

#[tokio::test]
async fn a_newer_hello_after_the_welcome_starts_over_on_the_same_stream() {
    let fake = Fake::new(8, 8);
    let (host, mut guest) = tokio::io::duplex(1 << 16);
    let served = fake.clone();
    tokio::spawn(async move {
        let old = Hello { version: VERSION, nonce: [1; 16], secret: [0; 32] }.encode();
        guest.write_all(&old).await.expect("pipe");
        // The welcome to the old hello comes, and only then the agent that is really there speaks.
        let mut welcome = [0; hvkube_proto::preface::WELCOME_LEN];
        guest.read_exact(&mut welcome).await.expect("welcome");
        let new = Hello { version: VERSION, nonce: [2; 16], secret: [0; 32] }.encode();
        guest.write_all(&new).await.expect("pipe");
        served.welcomed(guest, [2; 16]).await;
    });
    let session = Session::open(Box::new(host), &OpenOptions::default(), soon()).await.expect("session");
    assert!(session.probe(soon()).await.is_ok());
}

#[tokio::test]
async fn a_silent_guest_is_asked_for_its_hello() {
    let fake = Fake::new(8, 8);
    let (host, mut guest) = tokio::io::duplex(1 << 16);
    let served = fake.clone();
    tokio::spawn(async move {
        let mut knock = [0; hvkube_proto::preface::WELCOME_LEN];
        guest.read_exact(&mut knock).await.expect("a knock");
        assert_eq!(knock[17..33], [0; 16]);
        let hello = Hello { version: VERSION, nonce: [2; 16], secret: [0; 32] }.encode();
        guest.write_all(&hello).await.expect("pipe");
        served.welcomed(guest, [2; 16]).await;
    });
    let session = Session::open(Box::new(host), &OpenOptions::default(), soon()).await.expect("session");
    assert!(session.probe(soon()).await.is_ok());
}

#[tokio::test]
async fn identity_and_version_are_checked_before_anything_else() {
    let fake = Fake::new(8, 8);
    let options = OpenOptions { secret: Some([7; 32]), ..Default::default() };
    let wrong = Session::open(fake.dial(), &options, soon()).await;
    assert!(matches!(wrong, Err(GuestError::WrongSecret)), "{wrong:?}");
    assert!(Session::open(fake.dial_with(Vec::new(), [7; 32], VERSION), &options, soon()).await.is_ok());
    let other = Session::open(fake.dial_with(Vec::new(), [7; 32], 99), &options, soon()).await;
    assert!(matches!(other, Err(GuestError::Version { theirs: 99, .. })), "{other:?}");
    assert_eq!(fake.state().attached.len(), 1);
}

#[tokio::test]
async fn closing_drops_the_stream_at_once_and_fails_what_is_under_way() {
    let fake = Fake::new(8, 8);
    let (host, guest) = tokio::io::duplex(1 << 16);
    let hello = Hello { version: VERSION, nonce: [4; 16], secret: [0; 32] }.encode();
    // A guest that copies what it gets tells when the host's end is gone.
    let (mut relay, served) = tokio::io::duplex(1 << 16);
    let agent = fake.clone();
    tokio::spawn(async move { agent.welcomed(served, [4; 16]).await });
    let gone = tokio::spawn(async move {
        let mut guest = guest;
        guest.write_all(&hello).await.expect("pipe");
        let _ = tokio::io::copy_bidirectional(&mut guest, &mut relay).await;
    });
    let session = Session::open(Box::new(host), &OpenOptions::default(), soon()).await.expect("session");
    fake.state().input_hangs = true;
    let other = session.clone();
    let call = tokio::spawn(async move { other.input("b", &[], None, soon()).await });
    let mut seen = false;
    while !seen {
        tokio::task::yield_now().await;
        seen = !fake.state().inputs.is_empty();
    }
    session.close();
    assert!(session.is_closed());
    assert!(matches!(call.await.expect("no panic"), Err(GuestError::Lost(_))));
    tokio::time::timeout_at(soon(), session.closed()).await.expect("closed");
    drop(gone);
    let after = session.probe(soon()).await;
    assert!(matches!(after, Err(GuestError::Lost(_))), "{after:?}");
}

#[tokio::test]
async fn the_end_of_the_stream_ends_the_session_and_names_it() {
    let fake = Fake::new(8, 8);
    let (host, guest) = tokio::io::duplex(1 << 16);
    let (cut, cutting) = tokio::sync::oneshot::channel::<()>();
    let agent = fake.clone();
    tokio::spawn(async move {
        let hello = Hello { version: VERSION, nonce: [4; 16], secret: [0; 32] }.encode();
        let mut guest = guest;
        guest.write_all(&hello).await.expect("pipe");
        let (mut relay, served) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move { agent.welcomed(served, [4; 16]).await });
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut guest, &mut relay) => {}
            _ = cutting => {}
        }
    });
    let session = Session::open(Box::new(host), &OpenOptions::default(), soon()).await.expect("session");
    cut.send(()).expect("relay runs");
    let why = tokio::time::timeout_at(soon(), session.closed()).await.expect("noticed");
    assert!(why.contains("closed"), "{why}");
}

fn header(width: u32, height: u32, rects: u32) -> pb::CaptureResponse {
    header_part(pb::FrameHeader { width, height, sequence: 2, full: true, rects, ..Default::default() })
}

fn rect(x: u32, y: u32, width: u32, height: u32, packing: pb::Packing, data: Vec<u8>) -> pb::CaptureResponse {
    rect_part(pb::FrameRect {
        area: Some(pb::Rect { x, y, width, height }),
        packing: packing.into(),
        data: data.into(),
        from: None,
    })
}

fn copy(from: Option<pb::Point>) -> pb::CaptureResponse {
    let area = Some(pb::Rect { x: 0, y: 0, width: 2, height: 2 });
    rect_part(pb::FrameRect { area, packing: pb::Packing::Copy.into(), data: Bytes::new(), from })
}

fn cursor(shape: u32, width: u32, height: u32, hot_x: i32, bytes: usize) -> pb::CaptureResponse {
    let pixels = Bytes::from(vec![0; bytes]);
    let cursor = Some(pb::Cursor { shape, width, height, hot_x, hot_y: 0, pixels });
    header_part(pb::FrameHeader {
        width: 4,
        height: 4,
        sequence: 1,
        full: true,
        cursor,
        ..Default::default()
    })
}

#[tokio::test]
async fn hostile_frames_are_refused_and_the_session_lives_on() {
    use pb::Packing::{Lz4, Raw, Solid, Unspecified};
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let bomb = lz4_flex::block::compress(&vec![0; 16 << 20]);
    assert!(bomb.len() < 100_000);
    let cases: Vec<(&str, Vec<pb::CaptureResponse>)> = vec![
        ("no parts", vec![]),
        ("no header", vec![rect(0, 0, 1, 1, Raw, vec![0; 4])]),
        ("two headers", vec![header(4, 4, 0), header(4, 4, 0)]),
        ("an empty part", vec![pb::CaptureResponse { part: None }]),
        ("a frame without area", vec![header(0, 4, 0)]),
        ("a side over the limit", vec![header(16_385, 1, 0)]),
        ("more pixels than any screen", vec![header(16_384, 16_384, 0)]),
        ("too many rectangles", vec![header(4, 4, 4097)]),
        ("fewer rectangles than said", vec![header(4, 4, 1)]),
        ("more than said", vec![header(4, 4, 0), rect(0, 0, 1, 1, Raw, vec![0; 4])]),
        ("outside", vec![header(4, 4, 1), rect(4, 0, 1, 1, Raw, vec![0; 4])]),
        ("overflowing", vec![header(4, 4, 1), rect(u32::MAX, 0, 2, 1, Raw, vec![0; 8])]),
        ("empty", vec![header(4, 4, 1), rect(0, 0, 0, 1, Raw, vec![])]),
        ("no area", vec![header(4, 4, 1), rect_part(pb::FrameRect::default())]),
        ("too few bytes", vec![header(4, 4, 1), rect(0, 0, 2, 2, Raw, vec![0; 15])]),
        ("too many bytes", vec![header(4, 4, 1), rect(0, 0, 2, 2, Raw, vec![0; 17])]),
        ("a bomb", vec![header(4, 4, 1), rect(0, 0, 4, 4, Lz4, bomb)]),
        ("noise", vec![header(4, 4, 1), rect(0, 0, 4, 4, Lz4, vec![0xff; 64])]),
        ("half a pixel", vec![header(4, 4, 1), rect(0, 0, 4, 4, Solid, vec![0; 3])]),
        ("a copy from left of it", vec![header(4, 4, 1), copy(Some(pb::Point { x: -1, y: 0 }))]),
        ("a copy from beyond it", vec![header(4, 4, 1), copy(Some(pb::Point { x: 3, y: 0 }))]),
        ("a copy from far beyond it", vec![header(4, 4, 1), copy(Some(pb::Point { x: i32::MAX, y: 0 }))]),
        ("a cursor without a name", vec![cursor(0, 1, 1, 0, 4)]),
        ("a cursor of the wrong size", vec![cursor(1, 2, 2, 0, 15)]),
        ("a huge cursor", vec![cursor(1, 257, 1, 0, 257 * 4)]),
        ("an overflowing cursor", vec![cursor(1, 1 << 31, 1 << 31, 0, 0)]),
        ("a cursor that is elsewhere", vec![cursor(1, 1, 1, i32::MIN, 4)]),
        ("no packing", vec![header(4, 4, 1), rect(0, 0, 1, 1, Unspecified, vec![0; 4])]),
        ("a band over 1 MiB", vec![header(1024, 1024, 1), rect(0, 0, 1024, 512, Lz4, vec![0; 64])]),
        (
            "the frame three times over",
            vec![
                header(64, 64, 3),
                rect(0, 0, 64, 64, Solid, vec![0; 4]),
                rect(0, 0, 64, 64, Solid, vec![0; 4]),
                rect(0, 0, 64, 64, Solid, vec![0; 4]),
            ],
        ),
        ("a message over the limit", vec![header(4, 4, 1), rect(0, 0, 4, 4, Raw, vec![0; 3 << 20])]),
    ];
    for (what, parts) in cases {
        fake.state().hostile_frame = Some(parts);
        let result = session.capture(Have::default(), Duration::ZERO, true, soon()).await;
        assert!(matches!(result, Err(GuestError::Protocol(_))), "{what}: {result:?}");
    }
    fake.state().hostile_frame = None;
    let frame =
        session.capture(Have::default(), Duration::ZERO, true, soon()).await.expect("an honest frame");
    assert!(frame.full);
    assert_eq!(frame.size.width, 8);
}

#[tokio::test]
async fn a_difference_to_nothing_is_refused() {
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let header = pb::FrameHeader { width: 4, height: 4, sequence: 2, full: false, ..Default::default() };
    fake.state().hostile_frame = Some(vec![header_part(header)]);
    let result = session.capture(Have::default(), Duration::ZERO, true, soon()).await;
    assert!(matches!(result, Err(GuestError::Protocol(_))), "{result:?}");
}

#[tokio::test]
async fn every_packing_gives_the_pixels() {
    let fake = Fake::new(512, 700);
    let session = open(&fake).await;
    fake.paint(Rect { x: 10, y: 20, width: 30, height: 40 }, [1, 2, 3, 0]);
    let raw = session.capture(Have::default(), Duration::ZERO, true, soon()).await.expect("raw");
    fake.state().packing_lz4 = true;
    let packed = session.capture(Have::default(), Duration::ZERO, true, soon()).await.expect("lz4");
    assert!(raw.patches.len() > 1, "a large frame comes in bands");
    assert_eq!(raw.patches, packed.patches);
    let change = session
        .capture(Have { sequence: 1, ..Have::default() }, Duration::ZERO, true, soon())
        .await
        .expect("difference");
    assert_eq!(change.patches.len(), 1);
    assert_eq!(change.patches[0].area, Rect { x: 10, y: 20, width: 30, height: 40 });
}

#[tokio::test]
async fn what_the_guest_says_of_itself_is_bounded() {
    let fake = Fake::new(8, 8);
    fake.state().attach_answer = Some(pb::AttachResponse {
        agent_version: "v\u{1b}[31m".repeat(1000),
        image_stamp_json: "{not json".into(),
        warnings: vec!["w".repeat(1000); 100],
        ip_addresses: vec!["::1".into(); 1000],
        ..Default::default()
    });
    let session = open(&fake).await;
    let attached = session.attached();
    assert!(attached.agent_version.len() <= 256 && !attached.agent_version.contains('\u{1b}'));
    assert_eq!(attached.image_stamp_json, "");
    assert!(attached.warnings.len() <= 16 && attached.warnings.iter().all(|w| w.len() <= 256));
    assert!(attached.warnings.iter().any(|w| w.contains("stamp")));
    assert_eq!(attached.ip_addresses.len(), 16);
}

#[tokio::test]
async fn an_outcome_that_can_not_be_is_refused() {
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let answer = |completed| Ok(pb::InputResponse { completed, ..Default::default() });
    fake.state().input_answers.extend([answer(7), answer(0)]);
    let events = [crate::model::input::InputEvent::ReleaseAll];
    for _ in 0..2 {
        let result = session.input("b", &events, None, soon()).await;
        assert!(matches!(result, Err(GuestError::Protocol(_))), "{result:?}");
    }
    assert_eq!(session.input("b", &events, None, soon()).await.expect("honest").completed, 1);
}

#[tokio::test]
async fn a_deadline_ends_a_call_but_not_the_session() {
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    fake.state().input_hangs = true;
    let result = session.input("b", &[], None, Instant::now() + Duration::from_millis(50)).await;
    assert!(matches!(result, Err(GuestError::Timeout(_))), "{result:?}");
    assert!(session.probe(soon()).await.is_ok());
}

fn event(event: pb::exec_response::Event) -> pb::ExecResponse {
    pb::ExecResponse { event: Some(event) }
}

#[tokio::test]
async fn a_program_starts_speaks_and_ends_in_that_order() {
    use pb::exec_response::Event as E;
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let params = |program: &str| ExecParams { argv: vec![program.into()], ..Default::default() };
    let exit = || event(E::Exit(pb::ExecExit { code: 3, ..Default::default() }));
    fake.state().exec = vec![event(E::Started(42)), event(E::Stdout(Bytes::from_static(b"hi"))), exit()];
    let events: Vec<_> = session.exec(params("x"), soon()).await.expect("starts").collect().await;
    let events: Vec<_> = events.into_iter().map(|event| event.expect("fine")).collect();
    assert_eq!(
        events,
        [
            ExecEvent::Started { pid: 42 },
            ExecEvent::Stdout(Bytes::from_static(b"hi")),
            ExecEvent::Exited { code: 3, signal: 0, timed_out: false }
        ]
    );
    let missing = session.exec(params("missing"), soon()).await;
    assert!(matches!(missing, Err(GuestError::NotFound(_))));
    for wrong in [
        vec![exit()],
        vec![event(E::Started(1))],
        vec![event(E::Started(1)), event(E::Started(1))],
        vec![event(E::Started(1)), exit(), exit()],
        vec![pb::ExecResponse { event: None }],
    ] {
        fake.state().exec = wrong;
        let events: Vec<_> = session.exec(params("x"), soon()).await.expect("starts").collect().await;
        assert!(matches!(events.last(), Some(Err(GuestError::Protocol(_)))), "{events:?}");
    }
}

#[tokio::test]
async fn files_come_whole_and_no_longer_than_asked() {
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let read = |path: &str, limit| ReadParams { path: path.into(), limit, ..Default::default() };
    let file = session.read_file(read("f", 0), soon()).await.expect("opens");
    assert_eq!((file.info.size, file.info.mode), (100, 0o644));
    let data: Vec<_> = file.data.collect().await;
    assert_eq!(data.iter().map(|piece| piece.as_ref().expect("fine").len()).sum::<usize>(), 100);
    let data: Vec<_> =
        session.read_file(read("endless", 250), soon()).await.expect("opens").data.collect().await;
    assert!(matches!(data.last(), Some(Err(GuestError::Protocol(_)))), "{data:?}");
}

#[tokio::test]
async fn a_file_whose_source_fails_is_not_written() {
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let params = WriteParams { path: "f".into(), ..Default::default() };
    let good = stream::iter([Ok::<_, String>(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))]);
    assert_eq!(session.write_file(params.clone(), good, soon()).await.expect("written"), 3);
    let bad = stream::iter([Ok(Bytes::from_static(b"ab")), Err("the caller went away")]);
    let result = session.write_file(params, bad, soon()).await;
    assert!(matches!(&result, Err(GuestError::Aborted(why)) if why.contains("went away")), "{result:?}");
    assert_eq!(fake.state().written, [("f".to_owned(), b"abc".to_vec())]);
}

#[tokio::test]
async fn a_hostile_clipboard_is_refused_and_never_larger_than_it_says() {
    use pb::get_clipboard_response::Part;
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let header = |bytes| {
        Part::Header(pb::ClipboardHeader {
            kind: pb::ClipboardKind::Text.into(),
            bytes,
            ..Default::default()
        })
    };
    let data = |bytes: usize| Part::Data(vec![b'x'; bytes].into());
    let ask = |max| session.get_clipboard(Selection::Clipboard, None, max, soon());
    for parts in [
        vec![],
        vec![data(3)],
        vec![header(11), data(11)],
        vec![header(u32::MAX), data(3)],
        vec![header(3), data(2)],
        vec![header(3), data(2), data(2)],
        vec![header(3), header(3), data(3)],
        [vec![header(3)], vec![data(1 << 20); 64]].concat(),
    ] {
        let answers = parts.into_iter().map(|part| pb::GetClipboardResponse { part: Some(part) });
        fake.state().clipboard = answers.collect();
        let refused = ask(10).await;
        assert!(matches!(refused, Err(GuestError::Protocol(_))), "{refused:?}");
    }
    let parts = [header(10), data(4), data(6)];
    fake.state().clipboard = parts.map(|part| pb::GetClipboardResponse { part: Some(part) }).into();
    let found = ask(10).await.expect("legal");
    assert_eq!(found.content, Some(Clipboard::Text("x".repeat(10))));

    let large = "y".repeat(3 << 20);
    let content = Some(Clipboard::Text(large.clone()));
    session.set_clipboard(Selection::Primary, content, soon()).await.expect("taken");
    let state = fake.state();
    let (header, copied) = &state.copied[0];
    assert_eq!((header.selection(), header.kind()), (pb::Selection::Primary, pb::ClipboardKind::Text));
    assert!(header.bytes as usize == large.len() && copied == large.as_bytes());
}

#[tokio::test]
async fn windows_of_a_hostile_guest_are_bounded() {
    let fake = Fake::new(8, 8);
    let session = open(&fake).await;
    let screen = |width, dpi| {
        let monitors = vec![pb::Monitor { name: "\n".repeat(1000), ..Default::default() }; 200];
        Some(pb::ScreenInfo { width, height: 600, dpi, monitors })
    };
    let windows: Vec<_> = (0..10_000).map(|id| pb::Window { id, ..Default::default() }).collect();
    fake.state().windows = pb::ListWindowsResponse { windows, screen: screen(800, f64::NAN) };
    let told = session.list_windows(soon()).await.expect("usable");
    assert_eq!((told.windows.len(), told.windows[0].id, told.windows[255].id), (256, 9744, 9999));
    assert!((told.dpi - 96.0).abs() < f64::EPSILON);
    assert_eq!((told.monitors.len(), told.monitors[0].name.len()), (16, 64));
    assert!(!told.monitors[0].name.contains('\n'));
    let other = session.focus_window(5, Duration::from_secs(1), soon()).await;
    assert!(matches!(other, Err(GuestError::Protocol(_))), "another window than asked for: {other:?}");
    for (width, screen) in [(0, screen(0, 96.0)), (1, screen(1 << 20, 96.0)), (2, None)] {
        fake.state().windows.screen = screen;
        let refused = session.list_windows(soon()).await;
        assert!(matches!(refused, Err(GuestError::Protocol(_))), "{width}: {refused:?}");
    }
}

#[test]
fn a_message_is_not_kept_for_the_pixels_in_it() {
    use prost::Message as _;
    let header =
        pb::FrameHeader { width: 8, height: 8, sequence: 1, full: true, rects: 1, ..Default::default() };
    let area = Some(pb::Rect { x: 0, y: 0, width: 1, height: 1 });
    let pixel = pb::FrameRect { area, packing: pb::Packing::Raw.into(), data: vec![7; 4].into(), from: None };
    // Fields that nobody knows, a megabyte of them, are legal in any message.
    let mut wire = rect_part(pixel).encode_to_vec();
    wire.extend([0xa2, 0x06, 0x80, 0x80, 0x40]);
    wire.extend(vec![0; 1 << 20]);
    let wire = Bytes::from(wire);
    let place = wire.as_ptr() as usize..wire.as_ptr() as usize + wire.len();
    let parts = [header_part(header), pb::CaptureResponse::decode(wire.clone()).expect("legal")];
    let captured = fuzz::captured(Have::default(), parts).expect("a frame");
    let Fill::Pixels(kept) = &captured.patches[0].fill else { panic!("{captured:?}") };
    assert_eq!(kept[..], [7; 4]);
    assert!(!place.contains(&(kept.as_ptr() as usize)), "they are still part of the message");
}
