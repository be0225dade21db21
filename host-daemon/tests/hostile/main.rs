//! Guests that mean harm, against the code that the daemon runs: they neither end it nor make it hold more than
//! [`budget`] says, and what they cost is given back when they are gone.
//!
//! The host's half is measured by its own allocator; guests are on threads that it leaves out. One test at a time.

mod agent;
mod count;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use hvkube_host::display::{Encoders, Hub, ImageFormat, ScreenshotOptions};
use hvkube_host::guest::{
    ExecParams, GuestError, Have, OpenOptions, ReadParams, Selection, Session, WriteParams, budget,
};
use hvkube_host::hypervisor::Hypervisor;
use hvkube_host::hypervisor::process::{Process, ProcessConfig};
use hvkube_host::model::ids::VmId;
use hvkube_host::model::input::SettleOptions;
use hvkube_host::model::screen::{Rect, Size};
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::preface::{Hello, VERSION};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use agent::{Agent, greet, header, rect, run};
use wire::{ANSWER, ATTACH, CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PUSH, RESET, WINDOW};

/// The largest frame that is legal.
const LARGEST: Size = Size { width: 8192, height: 4096 };
/// What counting itself, the runtime and the test cost, and what is not a guest's doing.
const SLACK: usize = 1 << 20;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Time after which a guest that only holds its breath is given up in these tests.
fn shortly() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

/// Runs this and asserts that no more was held at once than a screen of this size allows, and that nothing stays.
async fn costs<T>(screen: Size, body: impl Future<Output = T>) -> T {
    let _turn = ONE_AT_A_TIME.lock().await;
    let before = count::held();
    count::forget_peak();
    let out = body.await;
    let (peak, most) = (count::peak().saturating_sub(before), budget(screen) + SLACK);
    eprintln!("{} KiB at the most, {} KiB allowed", peak >> 10, most >> 10);
    assert!(peak <= most, "{peak} bytes were held at once, {most} are allowed");
    let deadline = soon();
    while count::held() > before + SLACK {
        assert!(Instant::now() < deadline, "{} bytes are held for good", count::held() - before);
        sleep(Duration::from_millis(5)).await;
    }
    out
}

const NO_SCREEN: Size = Size { width: 0, height: 0 };

async fn open(io: UnixStream, deadline: Instant) -> Result<Session, GuestError> {
    Session::open(Box::new(io), &OpenOptions { epoch: 1, ..OpenOptions::default() }, deadline).await
}

/// A host that has been through all this still serves an honest guest.
async fn is_well() {
    let (io, _) = Agent::default().start();
    let session = open(io, soon()).await.expect("a session");
    let captured = session.capture(Have::default(), Duration::ZERO, true, soon()).await.expect("a frame");
    assert_eq!(captured.patches.len(), 1);
}

fn protocol<T: std::fmt::Debug>(result: Result<T, GuestError>, part: &str) {
    match result {
        Err(GuestError::Protocol(why)) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?} instead of {part:?}"),
    }
}

async fn capture_of(parts: Vec<pb::CaptureResponse>) -> Result<usize, GuestError> {
    let capture = Arc::new(move || stream::iter(parts.clone()).boxed());
    let (io, _) = Agent { capture, ..Agent::default() }.start();
    let session = open(io, soon()).await.expect("a session");
    let captured = session.capture(Have::default(), Duration::ZERO, true, soon()).await?;
    Ok(captured.patches.len())
}

#[tokio::test]
async fn frames_that_lie_are_refused_before_they_cost_anything() {
    use pb::Packing::{Copy, Lz4, Raw, Solid};
    let one = [1, 2, 3, 0];
    let mut from_outside = rect(0, 0, 8, 8, Copy, &[]);
    if let Some(pb::capture_response::Part::Rect(rect)) = &mut from_outside.part {
        rect.from = Some(pb::Point { x: 60, y: -1 });
    }
    let mut unknown_cursor = header(64, 64, 0);
    let mut difference = header(64, 64, 0);
    if let (
        Some(pb::capture_response::Part::Header(cursor)),
        Some(pb::capture_response::Part::Header(not_full)),
    ) = (&mut unknown_cursor.part, &mut difference.part)
    {
        // A shape that it never sent, and one of 4 GiB.
        cursor.cursor = Some(pb::Cursor { shape: 9, width: 1 << 15, height: 1 << 15, ..Default::default() });
        not_full.full = false;
    }
    let cases = [
        (vec![header(0, 64, 0)], "0x64 pixels"),
        (vec![header(u32::MAX, u32::MAX, 0)], "pixels"),
        (vec![header(16_384, 16_384, 0)], "16384x16384 pixels"),
        (vec![header(64, 64, u32::MAX)], "rectangles in a frame"),
        (vec![header(64, 64, 2), rect(0, 0, 64, 64, Solid, &one)], "1 of 2 announced"),
        (vec![header(64, 64, 0), rect(0, 0, 64, 64, Solid, &one)], "more than the 0 announced"),
        (vec![header(64, 64, 1), rect(u32::MAX, 0, 8, 8, Solid, &one)], "outside the frame"),
        (vec![header(64, 64, 1), rect(60, 60, 8, 8, Solid, &one)], "outside the frame"),
        (vec![header(64, 64, 1), rect(0, 0, 8, 8, Raw, &one)], "the wrong number of bytes"),
        (vec![header(64, 64, 1), rect(0, 0, 8, 8, Lz4, &one)], "packed pixels"),
        (vec![header(64, 64, 1), rect(0, 0, 8, 8, Solid, &[])], "no single pixel"),
        (vec![header(8192, 4096, 1), rect(0, 0, 8192, 4096, Raw, &one)], "too many pixels"),
        (vec![header(64, 64, 1), from_outside], "a copy from outside"),
        (vec![unknown_cursor], "a cursor of"),
        (vec![difference], "a difference to no frame"),
        (vec![header(64, 64, 0), header(64, 64, 0)], "out of order"),
        (vec![rect(0, 0, 8, 8, Solid, &one)], "out of order"),
        (vec![pb::CaptureResponse { part: None }], "out of order"),
        (vec![], "no frame"),
    ];
    costs(NO_SCREEN, async {
        for (parts, why) in cases {
            protocol(capture_of(parts).await, why);
        }
        let again = rect(0, 0, 64, 64, Raw, &[7; 64 * 64 * 4]);
        protocol(capture_of(vec![header(64, 64, 2), again.clone(), again]).await, "more pixels than");
        let solid = rect(0, 0, 64, 64, Solid, &one);
        protocol(
            capture_of(vec![header(64, 64, 3), solid.clone(), solid.clone(), solid]).await,
            "twice the frame",
        );
        is_well().await;
    })
    .await;
}

#[tokio::test]
async fn bombs_become_one_frame_and_endless_answers_nothing() {
    // 128 MiB of pixels in half a MiB, in the largest legal shapes, one after the other.
    let shapes = [(8192, 4096), (4096, 8192)];
    let bomb = lz4_flex::block::compress(&vec![7; 1 << 20]);
    let turn = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let capture = Arc::new(move || {
        let n = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (width, height) = shapes[n % 2];
        let rows = (1 << 18) / width;
        let bomb = bomb.clone();
        let bands = (0..height / rows).map(move |n| rect(0, n * rows, width, rows, pb::Packing::Lz4, &bomb));
        stream::iter(std::iter::once(header(width, height, height / rows)).chain(bands)).boxed()
    });
    let agent = Agent { capture, ..Agent::default() };
    costs(LARGEST, async {
        let (io, _) = agent.start();
        let session = open(io, soon()).await.expect("a session");
        let hub = hub();
        hub.attach(session);
        let options = ScreenshotOptions {
            format: ImageFormat::Jpeg(50),
            region: Some(Rect { x: 0, y: 0, width: 32, height: 32 }),
            ..ScreenshotOptions::default()
        };
        for _ in 0..4 {
            hub.screenshot(&options, soon()).await.expect("a picture");
        }
        hub.close();
    })
    .await;

    let endless = |part: pb::CaptureResponse| {
        let first = header(64, 64, 4096);
        let capture: Arc<dyn Fn() -> _ + Send + Sync> = Arc::new(move || {
            stream::iter(std::iter::once(first.clone()).chain(std::iter::repeat(part.clone()))).boxed()
        });
        Agent { capture, ..Agent::default() }
    };
    costs(Size { width: 64, height: 64 }, async {
        let (io, _) = endless(rect(0, 0, 0, 0, pb::Packing::Solid, &[0; 4])).start();
        let session = open(io, soon()).await.expect("a session");
        protocol(session.capture(Have::default(), Duration::ZERO, false, soon()).await, "outside the frame");
        let (io, _) = endless(rect(0, 0, 1, 1, pb::Packing::Solid, &[0; 4])).start();
        let session = open(io, soon()).await.expect("a session");
        protocol(session.capture(Have::default(), Duration::ZERO, false, soon()).await, "more than the 4096");
        // A message of 2 MiB is refused by its length.
        let (io, _) = count::apart(|| endless(rect(0, 0, 1, 1, pb::Packing::Raw, &vec![0; 2 << 20]))).start();
        let session = open(io, soon()).await.expect("a session");
        protocol(session.capture(Have::default(), Duration::ZERO, false, soon()).await, "decoded message");
        // One that begins and does not go on ends with the deadline.
        let capture = Arc::new(|| stream::iter([header(64, 64, 1)]).chain(stream::pending()).boxed());
        let (io, _) = Agent { capture, ..Agent::default() }.start();
        let session = open(io, soon()).await.expect("a session");
        let never = session.capture(Have::default(), Duration::ZERO, false, shortly()).await;
        assert!(matches!(never, Err(GuestError::Timeout("capture"))), "{never:?}");
        is_well().await;
    })
    .await;
}

fn hub() -> Hub {
    let dir = std::env::temp_dir().join(format!("hvkube-hostile-{}", std::process::id()));
    // Of a backend that shows no screens; nothing is started.
    let config = ProcessConfig::new(dir.clone(), std::env::current_exe().expect("this test"));
    let hv: Arc<dyn Hypervisor> = Arc::new(Process::new(config).expect("a backend"));
    std::fs::remove_dir_all(dir).expect("nothing is kept there");
    Hub::new(VmId::new("hostile").expect("legal"), hv, Encoders::default())
}

#[tokio::test]
async fn lists_and_texts_without_end_are_refused_by_their_length() {
    let words = |count| vec![String::new(); count];
    costs(NO_SCREEN, async {
        // Two bytes each on the wire, and twenty-four in memory.
        let attach = count::apart(|| pb::AttachResponse { warnings: words(1 << 20), ..Default::default() });
        let (io, _) = Agent { attach, ..Agent::default() }.start();
        protocol(open(io, soon()).await, "decoded message");
        let attach = count::apart(|| pb::AttachResponse { os: "x".repeat(1 << 20), ..Default::default() });
        let (io, _) = Agent { attach, ..Agent::default() }.start();
        protocol(open(io, soon()).await, "decoded message");

        let settle = count::apart(|| pb::SettleResponse {
            changed: vec![pb::Rect::default(); 1 << 20],
            ..Default::default()
        });
        let input = count::apart(|| pb::InputResponse { settle: Some(settle.clone()), ..Default::default() });
        let beat =
            count::apart(|| pb::HeartbeatResponse { ip_addresses: words(1 << 16), ..Default::default() });
        let beats = Arc::new(move || stream::repeat(beat.clone()).boxed());
        let (io, _) = Agent { settle, input, beats, ..Agent::default() }.start();
        let session = open(io, soon()).await.expect("a session");
        let mut heard = session.heartbeats();
        heard.wait_for(Option::is_some).await.expect("a session");
        let options =
            SettleOptions { quiet: Duration::ZERO, timeout: Duration::ZERO, ..SettleOptions::default() };
        protocol(session.settle(&options, soon()).await, "decoded message");
        protocol(session.input("b", &[], None, soon()).await, "decoded message");

        // Headers and trailers are bounded as a whole.
        let (io, _) = Agent { metadata: 512 << 10, ..Agent::default() }.start();
        let session = open(io, soon()).await.expect("a session");
        let huge = session.capture(Have::default(), Duration::ZERO, false, soon()).await;
        assert!(huge.is_err(), "{huge:?}");
        is_well().await;
    })
    .await;
}

#[tokio::test]
async fn programs_that_never_stop_talking_wait_for_their_reader() {
    let started = pb::ExecResponse { event: Some(pb::exec_response::Event::Started(7)) };
    for length in [1, 1 << 20] {
        let piece = Bytes::from(vec![b'x'; length]);
        let started = started.clone();
        let exec = Arc::new(move || {
            let data = pb::ExecResponse { event: Some(pb::exec_response::Event::Stdout(piece.clone())) };
            stream::iter([started.clone()]).chain(stream::repeat(data)).boxed()
        });
        costs(NO_SCREEN, async {
            let (io, _) = Agent { exec, ..Agent::default() }.start();
            let session = open(io, soon()).await.expect("a session");
            let mut events = session.exec(ExecParams::default(), soon()).await.expect("runs");
            // Nobody reads until the guest can send no more: then other calls have to wait no longer than that.
            sleep(Duration::from_millis(500)).await;
            for _ in 0..200 {
                match events.next().await {
                    Some(Ok(_)) => {}
                    // HTTP/2 itself gives up a peer that sends too many tiny pieces to nobody.
                    Some(Err(GuestError::Lost(_))) if length == 1 => break,
                    other => panic!("{other:?}"),
                }
            }
        })
        .await;
    }
    let info =
        pb::ReadFileResponse { part: Some(pb::read_file_response::Part::Info(pb::FileInfo::default())) };
    let file = Arc::new(move || {
        let data = pb::read_file_response::Part::Data(Bytes::from(vec![0; 1 << 16]));
        stream::iter([info.clone()]).chain(stream::repeat(pb::ReadFileResponse { part: Some(data) })).boxed()
    });
    costs(NO_SCREEN, async {
        let (io, _) = Agent { file, ..Agent::default() }.start();
        let session = open(io, soon()).await.expect("a session");
        let params = ReadParams { limit: 1 << 20, ..ReadParams::default() };
        let file = session.read_file(params, soon()).await.expect("opens");
        let parts: Vec<_> = file.data.collect().await;
        assert_eq!(parts.len(), 17);
        assert!(matches!(&parts[16], Err(GuestError::Protocol(why)) if why.contains("than asked for")));

        // A file for a guest that takes none of it is not drawn in ahead of it.
        let drawn = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = drawn.clone();
        let source = stream::repeat_with(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![0; 1 << 20]))
        });
        let never = session.write_file(WriteParams::default(), source, shortly()).await;
        assert!(matches!(never, Err(GuestError::Timeout(_))), "{never:?}");
        let drawn = drawn.load(std::sync::atomic::Ordering::Relaxed);
        assert!(drawn <= 8, "{drawn} MiB were drawn in");
        is_well().await;
    })
    .await;
}

#[tokio::test]
async fn desktops_full_of_nothing_cost_what_they_may() {
    use pb::get_clipboard_response::Part;
    let screen = Some(pb::ScreenInfo { width: 64, height: 64, ..Default::default() });
    let list = |windows: usize| {
        count::apart(|| {
            let windows = vec![pb::Window::default(); windows];
            pb::ListWindowsResponse { windows, screen: screen.clone() }
        })
    };
    // Two bytes each on the way, and a hundred in memory: as many as pass, and more.
    let (most, more) = (list(190_000), list(1_000_000));
    costs(NO_SCREEN, async {
        let (io, _) = Agent { windows: most, ..Agent::default() }.start();
        let session = open(io, soon()).await.expect("a session");
        let all = futures_util::future::join_all((0..4).map(|_| session.list_windows(soon()))).await;
        for windows in all {
            assert_eq!(windows.expect("a list").windows.len(), 256);
        }
        let (io, _) = Agent { windows: more, ..Agent::default() }.start();
        let session = open(io, soon()).await.expect("a session");
        protocol(session.list_windows(soon()).await, "decoded message");
        is_well().await;
    })
    .await;

    let windows = count::apart(|| vec![pb::Window { title: "t".repeat(1 << 20), ..pb::Window::default() }]);
    let talks = Agent {
        windows: pb::ListWindowsResponse { windows, screen },
        clipboard: Arc::new(|| {
            let bytes = 16 << 20;
            let header = pb::ClipboardHeader { kind: 1, bytes, ..Default::default() };
            let endless = stream::repeat(Part::Data(Bytes::from(vec![b'x'; 64 << 10])));
            let parts = stream::iter([Part::Header(header)]).chain(endless);
            parts.map(|part| pb::GetClipboardResponse { part: Some(part) }).boxed()
        }),
        ..Agent::default()
    };
    let shouts = Agent {
        clipboard: Arc::new(|| {
            let part = Some(Part::Data(Bytes::from(vec![b'x'; 1 << 20])));
            stream::iter([pb::GetClipboardResponse { part }]).boxed()
        }),
        ..Agent::default()
    };
    costs(NO_SCREEN, async {
        let (io, _) = talks.start();
        let session = open(io, soon()).await.expect("a session");
        protocol(session.focus_window(0, Duration::ZERO, soon()).await, "decoded message");
        let endless = session.get_clipboard(Selection::Clipboard, None, usize::MAX, soon()).await;
        protocol(endless, "more than the clipboard's bytes");
        let (io, _) = shouts.start();
        let session = open(io, soon()).await.expect("a session");
        let shouted = session.get_clipboard(Selection::Clipboard, None, usize::MAX, soon()).await;
        protocol(shouted, "decoded message");
        is_well().await;
    })
    .await;
}

/// What a guest does after the welcome, and whether it answers the first call before.
struct Abuse {
    name: &'static str,
    attaches: bool,
    piece: Vec<u8>,
    /// Bytes to send of it.
    total: usize,
    reads: bool,
}

fn abuses() -> Vec<Abuse> {
    let wild = u32::MAX >> 1;
    let abuse = |name, piece: Vec<u8>, total| Abuse { name, attaches: true, piece, total, reads: true };
    let some = 64 << 20;
    let interim = wire::frame(HEADERS, END_HEADERS, ATTACH, b"\x48\x03103");
    let mut long_headers = wire::frame(HEADERS, 0, ATTACH, ANSWER);
    long_headers.extend(wire::frame(CONTINUATION, 0, ATTACH, b"\x40\x01a\x01b"));
    let header_bomb: Vec<u8> = {
        // A header of 4 KiB enters the table once, and is named by one byte again and again.
        let mut block = ANSWER.to_vec();
        block.extend(b"\x40\x01a\x7f\xe1\x1e");
        block.extend([b'x'; 4000]);
        block.extend([0xbe; 12_000]);
        wire::frame(HEADERS, END_HEADERS, ATTACH, &block)
    };
    vec![
        abuse("pings", wire::frame(PING, 0, 0, b"pingpong"), some),
        Abuse { reads: false, ..abuse("pings without reading", wire::frame(PING, 0, 0, b"pingpong"), some) },
        abuse("settings", wire::settings(&[(3, 100)]), some),
        Abuse { reads: false, ..abuse("settings without reading", wire::settings(&[(3, 100)]), some) },
        abuse("a table of 4 GiB and no windows", wire::settings(&[(1, u32::MAX), (4, 0), (3, 0)]), 1),
        abuse("acknowledgements of nothing", wire::frame(wire::SETTINGS, 1, 0, &[]), some),
        abuse("windows beyond all bounds", wire::frame(WINDOW, 0, 0, &wild.to_be_bytes()), some),
        abuse("windows of streams", wire::frame(WINDOW, 0, ATTACH, &1_u32.to_be_bytes()), some),
        abuse("resets", wire::frame(RESET, 0, ATTACH, &8_u32.to_be_bytes()), some),
        abuse("streams that nobody opened", wire::frame(HEADERS, END_HEADERS, 77, ANSWER), some),
        abuse("streams of its own", wire::frame(HEADERS, END_HEADERS, 2, ANSWER), some),
        abuse("pushes", wire::frame(PUSH, END_HEADERS, ATTACH, b"\0\0\0\x02\x82\x87\x84"), some),
        abuse("data of no stream", wire::frame(DATA, 0, 99, &[0; 4096]), some),
        abuse("frames of a kind that nobody knows", wire::frame(0xee, 0xff, 5, &[0; 4096]), some),
        abuse("a frame of 16 MiB", b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(), 9),
        abuse("noise", vec![0xa5; 65_537], some),
        Abuse { attaches: false, ..abuse("interim answers", interim, some) },
        Abuse { attaches: false, ..abuse("headers without end", long_headers, 1) },
        Abuse {
            attaches: false,
            ..abuse("more of them", wire::frame(CONTINUATION, 0, ATTACH, b"\x40\x01a\x01b"), some)
        },
        Abuse { attaches: false, ..abuse("a header again and again", header_bomb, 1) },
        Abuse {
            attaches: false,
            ..abuse("data before an answer", wire::frame(DATA, 0, ATTACH, &[0; 9]), some)
        },
        Abuse {
            attaches: false,
            ..abuse(
                "a message of 4 GiB",
                {
                    let mut all = wire::frame(HEADERS, END_HEADERS, ATTACH, ANSWER);
                    all.extend(wire::frame(DATA, 0, ATTACH, b"\0\xff\xff\xff\xff"));
                    all
                },
                1,
            )
        },
        Abuse {
            attaches: false,
            ..abuse(
                "a message with a compression that was not agreed on",
                {
                    let mut all = wire::frame(HEADERS, END_HEADERS, ATTACH, ANSWER);
                    all.extend(wire::frame(DATA, 0, ATTACH, b"\x01\0\0\0\x04abcd"));
                    all
                },
                1,
            )
        },
    ]
}

#[tokio::test]
async fn abuses_of_http2_end_the_session_at_the_worst() {
    for Abuse { name, attaches, piece, total, reads } in abuses() {
        eprintln!("{name}");
        costs(NO_SCREEN, async {
            let (io, guest) = run(move |mut io| async move {
                greet(&mut io).await;
                let mut start = wire::settings(&[]);
                start.extend(wire::frame(wire::SETTINGS, 1, 0, &[]));
                wire::call(&mut io).await;
                if attaches {
                    start.extend(wire::answer(ATTACH, &[]));
                }
                if io.write_all(&start).await.is_ok() {
                    wire::flood(&mut io, &piece, total, reads).await;
                }
            });
            if let Ok(session) = open(io, shortly()).await {
                assert!(attaches, "{name} passed for an answer");
                let ended = tokio::time::timeout(Duration::from_millis(500), session.probe(soon())).await;
                assert!(!matches!(ended, Ok(Ok(_))), "{name} passed for an answer");
            }
            // Off this thread, on which the host still has to notice that the session is over.
            let ended = tokio::task::spawn_blocking(move || guest.join()).await.expect("joined");
            ended.expect("the guest did what it wanted");
        })
        .await;
    }
    costs(NO_SCREEN, is_well()).await;
}

#[tokio::test]
async fn whoever_does_not_come_to_the_point_is_given_up() {
    let hello = Hello { version: VERSION, nonce: [1; 16], secret: [0; 32] }.encode();
    costs(NO_SCREEN, async {
        // A byte at a time, and then no more.
        let (io, _) = run(move |mut io| async move {
            for byte in &hello[..40] {
                if io.write_all(&[*byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
            wire::flood(&mut io, &[], 0, true).await;
            sleep(Duration::from_secs(5)).await;
        });
        assert!(matches!(open(io, shortly()).await, Err(GuestError::Timeout(_))));
        // Noise without end.
        let (io, _) = run(|mut io| async move { wire::flood(&mut io, &[0xf5; 4096], 1 << 30, true).await });
        protocol(open(io, soon()).await, "no session preface");
        // Hellos without end: each is older than the next.
        let (io, _) = run(move |mut io| async move { wire::flood(&mut io, &hello, 1 << 30, true).await });
        let never = open(io, shortly()).await;
        assert!(never.is_err(), "{never:?}");
        is_well().await;
    })
    .await;
}
