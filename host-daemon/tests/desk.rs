//! The clipboard and the windows of a leased desktop, through the API of a real daemon.

mod served;

use std::time::Duration;

use hvkube_proto::v1;
use served::{Daemon, chord};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use v1::clipboard_content::Content;

/// One grey pixel.
const PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52, 0x00,
    0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x3a, 0x7e, 0x9b, 0x55, 0x00,
    0x00, 0x00, 0x0a, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0x68, 0x00, 0x00, 0x00, 0x82, 0x00, 0x81,
    0x77, 0xcd, 0x72, 0xb6, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

async fn set(daemon: &Daemon, target: &str, content: Option<Content>) -> Result<(), Status> {
    let content = content.map(|content| v1::ClipboardContent { content: Some(content) });
    let set = v1::SetClipboardRequest { target: target.into(), selection: 0, content };
    daemon.desktop().set_clipboard(daemon.request(set)).await.map(drop)
}

async fn get(daemon: &Daemon, target: &str, max_bytes: u32) -> Result<Option<Content>, Status> {
    let get = v1::GetClipboardRequest { target: target.into(), max_bytes, ..Default::default() };
    let answer = daemon.desktop().get_clipboard(daemon.request(get)).await?.into_inner();
    Ok(answer.content.and_then(|content| content.content))
}

async fn windows(daemon: &Daemon, target: &str) -> v1::ListWindowsResponse {
    let list = v1::ListWindowsRequest { target: target.into() };
    daemon.desktop().list_windows(daemon.request(list)).await.expect("listed").into_inner()
}

async fn focus(daemon: &Daemon, target: &str, window_id: u64) -> Result<v1::Window, Status> {
    let focus = v1::FocusWindowRequest { target: target.into(), window_id, timeout: None };
    let answer = daemon.desktop().focus_window(daemon.request(focus)).await?.into_inner();
    Ok(answer.window.expect("a window"))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("a reason").reason
}

/// Once the agent of a VM that goes on is there again.
async fn back(daemon: &Daemon, target: &str) {
    daemon.screenshot(target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_is_pasted_kept_over_a_restart_and_gone_with_the_lease() {
    let state_dir = tempfile::tempdir().expect("dir");
    let state_dir = state_dir.path();
    let daemon = Daemon::start(state_dir).await;
    daemon.template().await;
    daemon.pool(1).await;
    let lease = daemon.lease().await;
    assert_eq!(get(&daemon, &lease, 0).await.expect("empty"), None);
    let text = Content::Text("copied ж\n".into());
    set(&daemon, &lease, Some(text.clone())).await.expect("set");
    assert_eq!(get(&daemon, &lease, 0).await.expect("held"), Some(text.clone()));
    daemon.input(&lease, vec![chord("ctrl+v"), chord("ctrl+v")]).await.expect("pasted");
    assert_eq!(daemon.remembers(&lease).await["text"], "copied ж\ncopied ж\n");

    let large = get(&daemon, &lease, 3).await.expect_err("too large");
    assert_eq!((large.code(), reason(&large).as_str()), (Code::ResourceExhausted, "CLIPBOARD_TOO_LARGE"));
    let broken =
        set(&daemon, &lease, Some(Content::Png(b"no picture"[..].into()))).await.expect_err("refused");
    assert_eq!(broken.code(), Code::InvalidArgument);
    let violations = broken.get_details_bad_request().expect("fields").field_violations;
    assert_eq!(violations[0].field, "content.png");
    // Over the usual limit of a request, and over what this guest can hold.
    let much = set(&daemon, &lease, Some(Content::Text("x".repeat(5 << 20)))).await.expect_err("refused");
    assert_eq!((much.code(), reason(&much).as_str()), (Code::InvalidArgument, "GUEST_INVALID_ARGUMENT"));
    assert_eq!(get(&daemon, &lease, 0).await.expect("held"), Some(text.clone()), "nothing was lost");

    daemon.kill(state_dir).await;
    let daemon = Daemon::start(state_dir).await;
    back(&daemon, &lease).await;
    assert_eq!(get(&daemon, &lease, 0).await.expect("held"), Some(text), "the guest's memory went on");
    set(&daemon, &lease, Some(Content::Png(PNG.into()))).await.expect("set");
    assert_eq!(get(&daemon, &lease, 0).await.expect("held"), Some(Content::Png(PNG.into())));
    set(&daemon, &lease, None).await.expect("emptied");
    assert_eq!(get(&daemon, &lease, 0).await.expect("empty"), None);

    set(&daemon, &lease, Some(Content::Text("of the first".into()))).await.expect("set");
    daemon.release(&lease).await;
    let ended = get(&daemon, &lease, 0).await.expect_err("over");
    assert_eq!(reason(&ended), "LEASE_ENDED");
    let next = daemon.lease().await;
    assert_eq!(get(&daemon, &next, 0).await.expect("clean"), None);
    daemon.kill(state_dir).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_listed_and_the_keyboard_follows_the_focus() {
    let state_dir = tempfile::tempdir().expect("dir");
    let state_dir = state_dir.path();
    let daemon = Daemon::start(state_dir).await;
    daemon.template().await;
    daemon.pool(1).await;
    let lease = daemon.lease().await;
    let list = windows(&daemon, &lease).await;
    let screen = list.screen.expect("a screen");
    assert_eq!(screen.size, Some(v1::Size { width: 640, height: 400 }));
    assert!((screen.dpi - 96.0).abs() < f64::EPSILON && (screen.scale - 1.0).abs() < f64::EPSILON);
    assert_eq!(screen.monitors.len(), 1);
    let titles: Vec<_> = list.windows.iter().map(|w| (w.title.as_str(), w.focused)).collect();
    assert_eq!(titles, [("Counter", false), ("Notes", true)], "from the bottom to the top");

    let (counter, notes) = (list.windows[0].id, list.windows[1].id);
    assert!(focus(&daemon, &lease, counter).await.expect("focused").focused);
    daemon.type_text(&lease, "lost").await;
    assert_eq!(daemon.remembers(&lease).await["text"], "");
    assert!(focus(&daemon, &lease, notes).await.expect("focused").focused);
    daemon.type_text(&lease, "found").await;
    assert_eq!(daemon.remembers(&lease).await["text"], "found");

    let missing = focus(&daemon, &lease, 99).await.expect_err("no such window");
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "WINDOW_NOT_FOUND"));
    let none = focus(&daemon, &lease, 0).await.expect_err("required");
    assert_eq!(none.code(), Code::InvalidArgument);
    let timeout = Duration::from_secs(31).try_into().ok();
    let long = v1::FocusWindowRequest { target: lease.clone(), window_id: notes, timeout };
    let long = daemon.desktop().focus_window(daemon.request(long)).await.expect_err("too long");
    assert_eq!(long.code(), Code::InvalidArgument);
    daemon.kill(state_dir).await;
}
