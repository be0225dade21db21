//! Windows, with a window manager and without one; xwininfo, xprop and wmctrl are the witnesses.

mod desktop;
mod host;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use desktop::{Display, PATIENCE};
use host::Host;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::input_event::Event;
use tonic::{Code, Status};
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{
    AtomEnum, ClientMessageEvent, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, Window,
    WindowClass,
};
use x11rb::wrapper::ConnectionExt as _;

async fn list(host: &Host) -> pb::ListWindowsResponse {
    host.desktop().list_windows(pb::ListWindowsRequest {}).await.expect("listed").into_inner()
}

async fn focus(host: &Host, id: u64) -> Result<pb::Window, Status> {
    let request = pb::FocusWindowRequest { id, timeout: None };
    let answer = host.desktop().focus_window(request).await?.into_inner();
    Ok(answer.window.expect("a window"))
}

/// Waits for a window that is as wanted.
async fn window(host: &Host, what: &str, wanted: impl Fn(&pb::Window) -> bool) -> pb::Window {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let windows = list(host).await.windows;
        if let Some(window) = windows.iter().find(|w| wanted(w)) {
            return window.clone();
        }
        assert!(Instant::now() < deadline, "waited for {what} among {windows:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Numbers after `Name:` in what xwininfo says of a window.
fn xwininfo(display: &Display, id: u64) -> BTreeMap<String, i64> {
    let id = id.to_string();
    let argv = ["xwininfo", "-int", "-id", &id];
    let out = String::from_utf8_lossy(&display.tool("x11-utils", &argv)).into_owned();
    let pairs = out.lines().filter_map(|line| line.trim().split_once(':'));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
}

fn same_place(area: Option<pb::Area>, said: &BTreeMap<String, i64>, what: &str) {
    let area = area.expect("an area");
    let ours = [area.x.into(), area.y.into(), i64::from(area.width), i64::from(area.height)];
    let theirs = ["Absolute upper-left X", "Absolute upper-left Y", "Width", "Height"].map(|name| said[name]);
    assert_eq!(ours, theirs, "{what}");
}

#[tokio::test]
async fn windows_are_told_as_the_window_manager_has_them() {
    let mut display = Display::start();
    display.manage();
    let host = display.session().await;
    assert!(list(&host).await.windows.is_empty());
    display.run("xterm", &["xterm", "-T", "first", "-geometry", "40x10+50+60"]);
    let first = window(&host, "the first", |w| w.title == "first" && w.focused).await;
    display.run("xterm", &["xterm", "-T", "second", "-geometry", "40x10+500+300"]);
    let second = window(&host, "the second", |w| w.title == "second" && w.focused).await;

    // Where they were asked to be, frames included.
    for (told, place) in [(&first, (50, 60)), (&second, (500, 300))] {
        assert_eq!(told.bounds.map(|b| (b.x, b.y)), Some(place));
        assert_eq!(told.app, "XTerm");
        assert!(std::fs::read_to_string(format!("/proc/{}/comm", told.pid)).expect("pid").contains("xterm"));
        same_place(told.content, &xwininfo(&display, told.id), "content");
        let (bounds, content) = (told.bounds.expect("bounds"), told.content.expect("content"));
        assert!(bounds.y < content.y && bounds.height > content.height, "openbox draws a title bar");
    }
    let order: Vec<_> = list(&host).await.windows.iter().map(|w| (w.id, w.focused)).collect();
    assert_eq!(order, [(first.id, false), (second.id, true)], "from the bottom to the top");
    let listed = String::from_utf8_lossy(&display.tool("wmctrl", &["wmctrl", "-l"])).into_owned();
    assert_eq!(listed.lines().count(), 2, "{listed}");

    let now = focus(&host, first.id).await.expect("focused");
    assert!(now.focused && now.title == "first");
    let active = display.tool("x11-utils", &["xprop", "-root", "-notype", "_NET_ACTIVE_WINDOW"]);
    let active = String::from_utf8_lossy(&active).trim().rsplit("0x").next().map(str::to_owned);
    assert_eq!(active, Some(format!("{:x}", first.id)));
    let order: Vec<_> = list(&host).await.windows.iter().map(|w| (w.id, w.focused)).collect();
    assert_eq!(order, [(second.id, false), (first.id, true)], "raised");
}

#[tokio::test]
async fn the_keyboard_goes_where_the_focus_was_put() {
    let mut display = Display::start();
    display.manage();
    let mut files = Vec::new();
    for name in ["one", "two"] {
        let file = display.path(name);
        let script = format!("exec cat > {}", file.display());
        display.run("xterm", &["xterm", "-T", name, "-e", "sh", "-c", &script]);
        files.push(file);
    }
    let host = display.session().await;
    for (name, file) in ["one", "two", "one"].into_iter().zip([&files[0], &files[1], &files[0]]) {
        let id = window(&host, name, |w| w.title == name).await.id;
        focus(&host, id).await.expect("focused");
        let before = std::fs::read_to_string(file).unwrap_or_default();
        let text = Event::Text(pb::Text { text: "typed\n".into(), interval: None });
        let batch = format!("{name}{}", before.len());
        assert_eq!(host.input(&batch, vec![text]).await.expect("typed").failure, None);
        let after = format!("{before}typed\n");
        assert_eq!(display.file(file, |text| text == after), after, "{name}");
    }
}

#[tokio::test]
async fn a_minimised_window_is_told_and_comes_back_with_the_focus() {
    let mut display = Display::start();
    display.manage();
    let file = display.path("ж.txt");
    std::fs::write(&file, "").expect("file");
    display.run("mousepad", &["mousepad", "--disable-server", file.to_str().expect("utf-8")]);
    display.focused_window("mousepad");
    let host = display.session().await;
    let shown = |w: &pb::Window| w.app == "Mousepad" && w.title.contains("ж.txt") && !w.minimised;
    let id = window(&host, "mousepad", shown).await.id;
    let change =
        display.conn.intern_atom(false, b"WM_CHANGE_STATE").expect("sent").reply().expect("atom").atom;
    let iconic = ClientMessageEvent::new(32, u32::try_from(id).expect("id"), change, [3, 0, 0, 0, 0]);
    let to = EventMask::SUBSTRUCTURE_NOTIFY | EventMask::SUBSTRUCTURE_REDIRECT;
    display.conn.send_event(false, display.root, to, iconic).expect("sent");
    display.conn.flush().expect("sent");
    let minimised = window(&host, "the minimised one", |w| w.id == id && w.minimised).await;
    assert!(!minimised.focused);
    let back = focus(&host, id).await.expect("focused");
    assert!(back.focused && !back.minimised, "{back:?}");
}

/// A window of the test's own that no window manager frames.
fn bare(display: &Display, x: i16, class: WindowClass, map: bool) -> Window {
    let conn = &display.conn;
    let id = conn.generate_id().expect("id");
    let depth = if class == WindowClass::INPUT_ONLY { 0 } else { 24 };
    let attributes = CreateWindowAux::new().override_redirect(1);
    conn.create_window(depth, id, display.root, x, 20, 200, 100, 0, class, 0, &attributes).expect("created");
    if map {
        conn.map_window(id).expect("mapped");
    }
    conn.sync().expect("server");
    id
}

#[tokio::test]
async fn without_a_window_manager_the_roots_children_are_the_windows() {
    let display = Display::start();
    let host = display.session().await;
    let low = bare(&display, 10, WindowClass::INPUT_OUTPUT, true);
    let high = bare(&display, 100, WindowClass::INPUT_OUTPUT, true);
    let unseen = bare(&display, 300, WindowClass::INPUT_OUTPUT, false);
    let invisible = bare(&display, 400, WindowClass::INPUT_ONLY, true);
    let ids = |list: pb::ListWindowsResponse| list.windows.iter().map(|w| w.id).collect::<Vec<_>>();
    assert_eq!(ids(list(&host).await), [u64::from(low), u64::from(high)]);
    let said = window(&host, "the low one", |w| w.id == u64::from(low)).await;
    assert_eq!(said.bounds, Some(pb::Area { x: 10, y: 20, width: 200, height: 100 }));
    assert_eq!((said.focused, said.bounds == said.content), (false, true));

    for id in [low, high, low] {
        let now = focus(&host, id.into()).await.expect("focused");
        assert!(now.focused);
        let holder = display.conn.get_input_focus().expect("sent").reply().expect("focus").focus;
        assert_eq!(holder, id);
        assert_eq!(ids(list(&host).await).last(), Some(&u64::from(id)), "raised");
    }
    for id in [u64::from(unseen), u64::from(invisible), 7, u64::MAX] {
        let status = focus(&host, id).await.expect_err("no such window");
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains(&id.to_string()), "{status:?}");
    }
}

#[tokio::test]
async fn a_window_that_refuses_the_focus_is_an_answer_in_time() {
    let mut display = Display::start();
    display.manage();
    let host = display.session().await;
    // Openbox has taken over for sure when it frames the first window.
    display.run("xterm", &["xterm", "-T", "first"]);
    window(&host, "the first", |w| w.title == "first" && w.focused).await;
    // It says that it takes no keyboard (WM_HINTS, input: false), and openbox honours that.
    let conn = &display.conn;
    let id = conn.generate_id().expect("id");
    let none = CreateWindowAux::new();
    let class = WindowClass::INPUT_OUTPUT;
    conn.create_window(24, id, display.root, 9, 9, 200, 100, 0, class, 0, &none).expect("created");
    let hints = [1u32, 0, 1, 0, 0, 0, 0, 0, 0];
    conn.change_property32(PropMode::REPLACE, id, AtomEnum::WM_HINTS, AtomEnum::WM_HINTS, &hints)
        .expect("sent");
    conn.map_window(id).expect("mapped");
    conn.flush().expect("sent");
    window(&host, "the stubborn one", |w| w.id == u64::from(id)).await;
    let timeout = Duration::from_millis(300).try_into().ok();
    let request = pb::FocusWindowRequest { id: id.into(), timeout };
    let status = host.desktop().focus_window(request).await.expect_err("no focus");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn what_programs_say_is_bounded() {
    let display = Display::start();
    let host = display.session().await;
    let (conn, mut last) = (&display.conn, 0);
    for _ in 0..300 {
        last = bare(&display, 0, WindowClass::INPUT_OUTPUT, true);
    }
    let title = "ж".repeat(100_000);
    let name = conn.intern_atom(false, b"_NET_WM_NAME").expect("sent").reply().expect("atom").atom;
    let utf8 = conn.intern_atom(false, b"UTF8_STRING").expect("sent").reply().expect("atom").atom;
    let pid = conn.intern_atom(false, b"_NET_WM_PID").expect("sent").reply().expect("atom").atom;
    let frame = conn.intern_atom(false, b"_NET_FRAME_EXTENTS").expect("sent").reply().expect("atom").atom;
    let huge = [u32::MAX; 4];
    conn.change_property8(PropMode::REPLACE, last, name, utf8, title.as_bytes()).expect("sent");
    conn.change_property32(PropMode::REPLACE, last, pid, AtomEnum::CARDINAL, &[u32::MAX]).expect("sent");
    conn.change_property32(PropMode::REPLACE, last, frame, AtomEnum::CARDINAL, &huge).expect("sent");
    conn.sync().expect("server");
    let windows = list(&host).await.windows;
    assert_eq!(windows.len(), 256);
    let top = windows.last().expect("one");
    assert_eq!((top.id, top.pid, top.app.as_str()), (last.into(), u32::MAX, ""));
    assert_eq!(top.title, "ж".repeat(512));
    let side = 2 * (1 << 14);
    assert_eq!(
        top.bounds,
        Some(pb::Area { x: -(1 << 14), y: 20 - (1 << 14), width: 200 + side, height: 100 + side })
    );
}

#[tokio::test]
async fn the_screen_tells_its_size_dpi_and_monitors() {
    let display = Display::start();
    let host = display.session().await;
    let screen = list(&host).await.screen.expect("a screen");
    assert_eq!((screen.width, screen.height), (1280, 800));
    assert!((screen.dpi - 96.0).abs() < f64::EPSILON, "{screen:?}");
    let [monitor] = &screen.monitors[..] else { panic!("one monitor: {screen:?}") };
    assert_eq!(monitor.bounds, Some(pb::Area { x: 0, y: 0, width: 1280, height: 800 }));
    assert!(!monitor.name.is_empty());

    let resources = display.path("resources");
    std::fs::write(&resources, "Xft.dpi: 192\n").expect("file");
    let resources = resources.to_str().expect("utf-8");
    display.tool("x11-xserver-utils", &["xrdb", "-nocpp", "-merge", resources]);
    let screen = list(&host).await.screen.expect("a screen");
    assert!((screen.dpi - 192.0).abs() < f64::EPSILON, "{screen:?}");
}
