//! What a desktop's holder does with its windows, its clipboard and its console: one body of checks, on every backend.
//!
//! Each backend has a window with text in it and another one; how they come up, and how the text is read, is all that
//! differs. That of QEMU is checked in `screen`, where its template is.

use hvkube_sdk::desktop::Clipboard;
use hvkube_sdk::v1::{DisplaySize, NetworkMode, ScreenshotOptions, Template, TemplateSource, Window};
use hvkube_sdk::{Code, Desktop, Input, ReleasePolicy, Target};
use hvkube_tests::{Console, Daemon, refused, timed, until};
use image::RgbImage;

/// Pool that the checks lease from; two desktops in it.
pub(crate) const POOL: &str = "desk";

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_desktop_is_used() {
    let daemon = Daemon::start(&["--hypervisor", "sim", "--set", "sim.profile=instant"]).await;
    let source = TemplateSource { disk_path: "/no/such/disk".into(), ..TemplateSource::default() };
    daemon.template(small(source)).await;
    all(&daemon, Kind::Simulated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_of_the_process_backend_is_used() {
    let daemon = Daemon::start(&["--hypervisor", "process"]).await;
    let home = daemon.scratch().join("skeleton");
    std::fs::create_dir(&home).expect("made");
    let source = TemplateSource { disk_path: home.display().to_string(), ..TemplateSource::default() };
    daemon.template(Template { network: NetworkMode::None.into(), ..small(source) }).await;
    all(&daemon, Kind::X11).await;
}

fn small(source: TemplateSource) -> Template {
    let display = DisplaySize { width: 1024, height: 768 };
    Template { source: Some(source), display: Some(display), ..Template::default() }
}

/// All checks, on a daemon with a template.
pub(crate) async fn all(daemon: &Daemon, kind: Kind) {
    daemon.pool(POOL, 2).await;
    timed("windows and the focus", windows(daemon, kind)).await;
    timed("the clipboard, both ways", clipboard(daemon, kind)).await;
    timed("a console", console(daemon, kind)).await;
    daemon.drop_pool(POOL).await;
}

/// What is on a desktop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Two windows that are always there.
    Simulated,
    /// X, where a text editor and a terminal are started.
    X11,
}

impl Kind {
    /// Has both windows come up: the one with the text, and the other.
    async fn open(self, desktop: &Target) -> (Window, Window) {
        let titles = match self {
            Self::Simulated => ["Notes", "Counter"],
            Self::X11 => {
                let script = "cd; : > notes.txt; (mousepad --disable-server notes.txt & xterm -title Other -e cat &) >/dev/null 2>&1";
                let started = desktop.exec(["sh", "-c", script]).await.expect("exec");
                assert!(started.success(), "{}", started.stderr_lossy());
                ["notes.txt", "Other"]
            }
        };
        until("both windows", async || {
            let all = desktop.windows().await.expect("windows").windows;
            let named = |title: &str| all.iter().find(|window| window.title.contains(title)).cloned();
            Some((named(titles[0])?, named(titles[1])?))
        })
        .await
    }

    /// The text, which the window with the focus has.
    async fn text(self, desktop: &Target) -> String {
        match self {
            Self::Simulated => {
                let memory = desktop.exec(["desktop"]).await.expect("exec").stdout;
                let memory: serde_json::Value = serde_json::from_slice(&memory).expect("JSON");
                memory["text"].as_str().expect("a text").to_owned()
            }
            Self::X11 => {
                desktop.chord("ctrl+s").await.expect("saved");
                let file = desktop.read_file("notes.txt", 4096).await.expect("a file");
                // The editor ends every file with a line.
                String::from_utf8(file).expect("text").trim_end_matches('\n').to_owned()
            }
        }
    }

    async fn holds(self, desktop: &Target, wanted: &str) {
        let mut last = String::new();
        until(&format!("the text {wanted:?}"), async || {
            let text = self.text(desktop).await;
            if text != last {
                eprintln!("the text is {text:?}");
                last = text;
            }
            (last == wanted).then_some(())
        })
        .await;
    }
}

/// A point of a window's lower half that another one, on top of it, does not cover.
fn uncovered(window: &Window, by: &Window) -> (i32, i32) {
    let (area, above) = (window.content.expect("drawn"), by.bounds.expect("drawn"));
    let side = |side: u32| i32::try_from(side).expect("on the screen");
    let rows = area.y + side(area.height / 2)..area.y + side(area.height * 3 / 4);
    let columns = area.x + side(area.width / 4)..area.x + side(area.width * 3 / 4);
    let covers = |(x, y): &(i32, i32)| {
        (above.x..above.x + side(above.width)).contains(x)
            && (above.y..above.y + side(above.height)).contains(y)
    };
    let mut points = rows.flat_map(|y| columns.clone().map(move |x| (x, y)));
    points.find(|point| !covers(point)).unwrap_or_else(|| panic!("{by:?} covers {window:?}"))
}

async fn give_back(daemon: &Daemon, desktop: Desktop) {
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    daemon.ready(POOL, 2).await;
}

async fn picture(desktop: &Target) -> RgbImage {
    let shot = desktop.screenshot(ScreenshotOptions::default()).await.expect("a screenshot");
    image::load_from_memory(&shot.image).expect("a picture").to_rgb8()
}

async fn windows(daemon: &Daemon, kind: Kind) {
    let desktop = daemon.acquire(POOL).await;
    let (notes, other) = kind.open(&desktop).await;
    let list = desktop.windows().await.expect("windows");
    let size = list.screen.expect("a screen").size.expect("a size");
    assert_eq!((size.width, size.height), picture(&desktop).await.dimensions());
    assert!(notes.id != 0 && other.id != 0 && notes.id != other.id, "{notes:?} {other:?}");

    for (window, text) in [(&other, "lost"), (&notes, "found")] {
        let focused = desktop.focus(window.id).await.expect("focused");
        assert!(focused.focused && focused.id == window.id, "{focused:?}");
        let all = desktop.windows().await.expect("windows").windows;
        let with_focus: Vec<_> = all.iter().filter(|one| one.focused).map(|one| one.id).collect();
        assert_eq!(with_focus, [window.id]);
        let place = |id| all.iter().position(|one| one.id == id).expect("still there");
        let below = if window.id == notes.id { &other } else { &notes };
        assert!(place(window.id) > place(below.id), "it was raised: {all:?}");
        desktop.type_text(text).await.expect("typed");
    }
    kind.holds(&desktop, "found").await;
    refused(desktop.focus(0xdead_beef).await, Code::NotFound, "WINDOW_NOT_FOUND", None);
    give_back(daemon, desktop).await;
}

async fn clipboard(daemon: &Daemon, kind: Kind) {
    let desktop = daemon.acquire(POOL).await;
    let (notes, _) = kind.open(&desktop).await;
    desktop.focus(notes.id).await.expect("focused");
    assert_eq!(desktop.clipboard().await.expect("told"), None, "nobody has copied anything");
    desktop.set_clipboard("from outside, ж").await.expect("set");
    desktop.chord("ctrl+v").await.expect("pasted");
    kind.holds(&desktop, "from outside, ж").await;
    let copy = Input::new().chord("ctrl+a").text("from inside, ä").chord("ctrl+a").chord("ctrl+c");
    desktop.input(copy).await.expect("copied");
    let copied = Some(Clipboard::Text("from inside, ä".to_owned()));
    until("what was copied", async || (desktop.clipboard().await.expect("told") == copied).then_some(()))
        .await;
    give_back(daemon, desktop).await;
    let next = daemon.acquire(POOL).await;
    assert_eq!(next.clipboard().await.expect("told"), None, "clean");
    give_back(daemon, next).await;
}

async fn console(daemon: &Daemon, kind: Kind) {
    let desktop = daemon.acquire(POOL).await;
    let (notes, other) = kind.open(&desktop).await;
    desktop.focus(other.id).await.expect("focused");
    let place = uncovered(&notes, &other);
    let mut onlooker = Console::open(daemon, &desktop, &["--view-only"]).await;
    onlooker.viewer.click(place).await.expect("served");
    onlooker.viewer.type_text("unseen").await.expect("served");
    let before = same_picture(&mut onlooker, &desktop).await;
    let focused = desktop.windows().await.expect("windows").windows.into_iter().find(|one| one.focused);
    assert_eq!(focused.map(|one| one.id), Some(other.id), "who only looks clicks on nothing");

    let mut console = Console::open(daemon, &desktop, &[]).await;
    console.viewer.click(place).await.expect("served");
    console.viewer.type_text("Seen (twice)\nby 2 viewers").await.expect("served");
    // All of that is done before the next picture is given.
    console.viewer.look().await.expect("shown");
    kind.holds(&desktop, "Seen (twice)\nby 2 viewers").await;
    for viewer in [&mut console, &mut onlooker] {
        assert_ne!(same_picture(viewer, &desktop).await, before, "what was typed is seen");
    }

    give_back(daemon, desktop).await;
    for console in [console, onlooker] {
        let (status, said) = console.ended().await;
        assert!(!status.success() && said.contains("LEASE_ENDED"), "{status}: {said}");
    }
}

/// Waits until a viewer sees what a screenshot shows. Carets blink between the two.
pub(crate) async fn same_picture(console: &mut Console, desktop: &Target) -> RgbImage {
    until("a viewer that sees the same", async || {
        let seen = console.viewer.look().await.expect("shown");
        (seen == picture(desktop).await).then_some(seen)
    })
    .await
}
