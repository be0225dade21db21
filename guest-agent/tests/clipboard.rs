//! The clipboard, against programs that people use: xclip and xsel as witnesses, mousepad as user.

mod desktop;
mod host;

use desktop::{Display, mixed_text};
use host::Host;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::ClipboardKind as Kind;
use hvkube_proto::guest::v1::Selection;
use hvkube_proto::guest::v1::input_event::Event;
use tonic::Code;
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{ConnectionExt as _, CreateWindowAux, WindowClass};

/// A line of it repeated until it is longer than any property that one request can carry.
fn long_text() -> String {
    mixed_text(7).replace('\t', " ").repeat(1500)
}

/// Bytes that no text is, with a PNG's first ones.
fn picture(bytes: usize) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut state = 1u32;
    out.resize_with(bytes, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    out
}

fn anything() -> pb::GetClipboardRequest {
    pb::GetClipboardRequest::default()
}

/// Has xclip own the clipboard with a file's bytes; it stays until another program takes its place.
fn copy(display: &mut Display, name: &str, data: &[u8], target: &str) {
    let path = display.path(name);
    std::fs::write(&path, data).expect("file");
    let path = path.to_str().expect("utf-8").to_owned();
    display.run("xclip", &["xclip", "-quiet", "-selection", "clipboard", "-t", target, "-in", &path]);
}

/// What xclip pastes.
fn paste(display: &Display, target: &str) -> Vec<u8> {
    display.tool("xclip", &["xclip", "-selection", "clipboard", "-t", target, "-out"])
}

/// Waits until the clipboard is as wanted.
async fn get(host: &Host, what: &str, kind: Kind, wanted: &[u8]) {
    let deadline = std::time::Instant::now() + desktop::PATIENCE;
    loop {
        let (header, data) = host.clipboard(anything()).await.expect("asked");
        if header.kind() == kind && data == wanted {
            assert_eq!(header.bytes as usize, wanted.len(), "{what}");
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{what}: {:?} of {} bytes instead of {kind:?} of {}",
            header.kind(),
            data.len(),
            wanted.len()
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn text_goes_both_ways_and_the_clipboard_changes_hands() {
    let mut display = Display::start();
    let host = display.session().await;
    let (header, data) = host.clipboard(anything()).await.expect("asked");
    assert_eq!((header.kind(), data.len(), header.available.len()), (Kind::Unspecified, 0, 0), "empty");

    for text in ["aä€ж😀\n\ttwo", "plain", ""] {
        host.set_clipboard(Selection::Clipboard, Kind::Text, text.as_bytes()).await.expect("set");
        assert_eq!(paste(&display, "UTF8_STRING"), text.as_bytes());
        assert_eq!(paste(&display, "text/plain;charset=utf-8"), text.as_bytes());
        assert_eq!(display.tool("xsel", &["xsel", "--clipboard", "--output"]), text.as_bytes());
        get(&host, "our own", Kind::Text, text.as_bytes()).await;
    }
    let offers = String::from_utf8(paste(&display, "TARGETS")).expect("text");
    for target in ["TARGETS", "TIMESTAMP", "MULTIPLE", "UTF8_STRING", "STRING", "text/plain"] {
        assert!(offers.lines().any(|line| line == target), "{target} in {offers}");
    }

    let theirs = "from xclip: äж";
    copy(&mut display, "a", theirs.as_bytes(), "UTF8_STRING");
    get(&host, "of xclip", Kind::Text, theirs.as_bytes()).await;
    assert_eq!(paste(&display, "UTF8_STRING"), theirs.as_bytes(), "we gave way");
    // A program that knows only Latin-1.
    copy(&mut display, "b", b"caf\xe9", "STRING");
    get(&host, "latin-1", Kind::Text, "café".as_bytes()).await;

    host.set_clipboard(Selection::Clipboard, Kind::Text, b"ours again").await.expect("set");
    assert_eq!(paste(&display, "UTF8_STRING"), b"ours again");
    host.set_clipboard(Selection::Clipboard, Kind::Unspecified, b"").await.expect("emptied");
    let (header, _) = host.clipboard(anything()).await.expect("asked");
    assert_eq!(header.kind(), Kind::Unspecified);
}

#[tokio::test]
async fn what_was_put_there_stays_when_the_session_ends() {
    let display = Display::start();
    let host = display.session().await;
    host.set_clipboard(Selection::Clipboard, Kind::Text, "stays ж".as_bytes()).await.expect("set");
    drop(host);
    assert_eq!(paste(&display, "UTF8_STRING"), "stays ж".as_bytes());
    let host = display.session().await;
    get(&host, "in the next session", Kind::Text, "stays ж".as_bytes()).await;
}

#[tokio::test]
async fn more_than_one_property_holds_goes_in_parts_both_ways() {
    let mut display = Display::start();
    let host = display.session().await;
    let text = long_text();
    assert!(text.len() > 2 << 20);
    copy(&mut display, "long", text.as_bytes(), "UTF8_STRING");
    get(&host, "of xclip", Kind::Text, text.as_bytes()).await;

    let ours = text.replace(' ', "_");
    host.set_clipboard(Selection::Clipboard, Kind::Text, ours.as_bytes()).await.expect("set");
    // Two at once: each has its own transfer.
    let (first, second) = std::thread::scope(|scope| {
        let display = &display;
        let xsel = || display.tool("xsel", &["xsel", "--clipboard", "--output"]);
        let (a, b) = (scope.spawn(xsel), scope.spawn(|| paste(display, "UTF8_STRING")));
        (a.join().expect("xsel"), b.join().expect("xclip"))
    });
    assert!(first == ours.as_bytes(), "xsel got {} bytes of {}", first.len(), ours.len());
    assert!(second == ours.as_bytes(), "xclip got {} bytes of {}", second.len(), ours.len());
}

#[tokio::test]
async fn pictures_go_both_ways() {
    let mut display = Display::start();
    let host = display.session().await;
    for bytes in [100, 1_500_000] {
        let theirs = picture(bytes);
        copy(&mut display, "theirs.png", &theirs, "image/png");
        get(&host, "of xclip", Kind::Png, &theirs).await;
        let request = pb::GetClipboardRequest { kind: Kind::Text.into(), ..anything() };
        let (header, data) = host.clipboard(request).await.expect("asked");
        assert_eq!((header.kind(), data.len()), (Kind::Unspecified, 0), "no text");
        assert_eq!(header.available, [i32::from(Kind::Png)]);

        let mut ours = theirs;
        ours.reverse();
        host.set_clipboard(Selection::Clipboard, Kind::Png, &ours).await.expect("set");
        assert!(paste(&display, "image/png") == ours);
        let offers = String::from_utf8(paste(&display, "TARGETS")).expect("text");
        assert!(!offers.contains("STRING"), "{offers}");
    }
}

#[tokio::test]
async fn the_primary_selection_is_another_one() {
    let display = Display::start();
    let host = display.session().await;
    host.set_clipboard(Selection::Primary, Kind::Text, b"marked").await.expect("set");
    host.set_clipboard(Selection::Clipboard, Kind::Text, b"copied").await.expect("set");
    assert_eq!(display.tool("xsel", &["xsel", "--primary", "--output"]), b"marked");
    assert_eq!(display.tool("xsel", &["xsel", "--clipboard", "--output"]), b"copied");
    let request = pb::GetClipboardRequest { selection: Selection::Primary.into(), ..anything() };
    assert_eq!(host.clipboard(request).await.expect("asked").1, b"marked");
}

#[tokio::test]
async fn sizes_are_bounded_both_ways() {
    let mut display = Display::start();
    let host = display.session().await;
    let limited = |max_bytes| pb::GetClipboardRequest { max_bytes, ..anything() };
    for (name, bytes) in [("whole", 1000), ("parts", 3 << 20)] {
        let text = "x".repeat(bytes);
        copy(&mut display, name, text.as_bytes(), "UTF8_STRING");
        get(&host, name, Kind::Text, text.as_bytes()).await;
        let (header, data) = host.clipboard(limited(999)).await.expect("asked");
        assert!(header.too_large && data.is_empty() && header.bytes == 0, "{name}: {header:?}");
        assert_eq!(header.available, [i32::from(Kind::Text)]);
        get(&host, "and it still works", Kind::Text, text.as_bytes()).await;
    }
    let status = host.clipboard(limited((16 << 20) + 1)).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    let lies = |bytes, data: &'static [u8]| {
        use pb::set_clipboard_request::Part;
        let header = pb::SetClipboardHeader { selection: 0, kind: Kind::Text.into(), bytes };
        let parts = [Part::Header(header), Part::Data(data.into())];
        let mut client = host.desktop();
        async move {
            let parts = parts.map(|part| pb::SetClipboardRequest { part: Some(part) });
            client.set_clipboard(tokio_stream::iter(parts)).await.map(|_| ())
        }
    };
    for (bytes, data, word) in [
        (3, &b"four"[..], "more data"),
        (5, b"four", "4 bytes came of 5"),
        (u32::MAX, b"four", "at most"),
        (2, b"\xff\xfe", "UTF-8"),
    ] {
        let status = lies(bytes, data).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(word), "{status:?} says {word}");
    }
}

#[tokio::test]
async fn a_program_that_does_not_answer_costs_its_own_time_only() {
    let mut display = Display::start();
    let host = display.session().await;
    let clipboard = display.conn.intern_atom(false, b"CLIPBOARD").expect("sent").reply().expect("atom").atom;
    let silent = display.conn.generate_id().expect("id");
    let (conn, root) = (&display.conn, display.root);
    let none = CreateWindowAux::new();
    conn.create_window(0, silent, root, 0, 0, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &none).expect("sent");
    conn.set_selection_owner(silent, clipboard, x11rb::CURRENT_TIME).expect("sent");
    assert_eq!(conn.get_selection_owner(clipboard).expect("sent").reply().expect("owner").owner, silent);

    let timeout = std::time::Duration::from_millis(300).try_into().ok();
    let asked = || host.clipboard(pb::GetClipboardRequest { timeout, ..anything() });
    let (first, second) = tokio::join!(asked(), asked());
    for status in [first.expect_err("no answer"), second.expect_err("no answer")] {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    copy(&mut display, "a", b"answered", "UTF8_STRING");
    get(&host, "of xclip", Kind::Text, b"answered").await;
}

#[tokio::test]
async fn an_editor_pastes_what_we_copied_and_we_what_it_copied() {
    let mut display = Display::start();
    display.manage();
    let file = display.path("pasted.txt");
    std::fs::write(&file, "").expect("file");
    display.run("mousepad", &["mousepad", "--disable-server", file.to_str().expect("utf-8")]);
    display.focused_window("mousepad");
    let host = display.session().await;
    let chord = |keys: [&str; 2]| Event::Chord(pb::Chord { keys: keys.map(String::from).into(), hold: None });
    // More than a property's worth, too.
    let text = format!("{}end", long_text().chars().take(400_000).collect::<String>());
    host.set_clipboard(Selection::Clipboard, Kind::Text, text.as_bytes()).await.expect("set");
    let answer = host.input("paste", vec![chord(["Control_L", "v"])]).await.expect("pasted");
    assert_eq!(answer.failure, None);
    // An editor that is still pasting saves what it has, so it is asked again.
    let mut number = 0;
    let deadline = std::time::Instant::now() + desktop::PATIENCE;
    while std::fs::read_to_string(&file).expect("text").trim_end() != text {
        assert!(std::time::Instant::now() < deadline, "mousepad pasted something else");
        number += 1;
        host.input(&format!("save{number}"), vec![chord(["Control_L", "s"])]).await.expect("saved");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }

    let typed = Event::Text(pb::Text { text: "ä typed ж".into(), interval: None });
    let all = || chord(["Control_L", "a"]);
    let events = vec![all(), typed, all(), chord(["Control_L", "c"])];
    assert_eq!(host.input("copy", events).await.expect("typed").failure, None);
    get(&host, "of mousepad", Kind::Text, "ä typed ж".as_bytes()).await;
}
