//! The SDK against a fake daemon in the same process, over an in-memory pipe.

mod fake;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use fake::{Fake, TOKEN};
use futures_util::{StreamExt as _, TryStreamExt as _};
use hvkube_sdk::desktop::{ExecEvent, WriteOptions};
use hvkube_sdk::v1::{self, ScreenshotOptions, Template, VmState, WatchEventsRequest, WatchVmsRequest};
use hvkube_sdk::{Change, Client, Code, Done, Error, Input, JobError, ReleasePolicy, RetryPolicy, Worker};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;
use tonic::transport::{Endpoint, Server};

async fn connected(fake: &Fake, token: &str) -> Client {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let server = Server::builder().add_routes(fake.routes());
    tokio::spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, io::Error>(theirs))));
    let mut ours = Some(ours);
    let connect = tower::service_fn(move |_| {
        let ours = ours.take().map(TokioIo::new).ok_or_else(|| io::Error::other("one connection only"));
        async move { ours }
    });
    let channel =
        Endpoint::from_static("http://fake").connect_with_connector(connect).await.expect("in memory");
    Client::from_channel(channel, Some(token)).expect("a legal token")
}

#[tokio::test]
async fn lists_walk_all_pages() {
    let client = connected(&Fake::default(), TOKEN).await;
    let names: Vec<String> =
        client.list_vms(Some("browser"), &[]).map_ok(|vm| vm.name).try_collect().await.expect("three pages");
    assert_eq!(names, ["vms/browser-1", "vms/browser-2", "vms/browser-3"]);
    let saved: Vec<_> = client.list_vms(None, &[VmState::Saved]).try_collect().await.expect("one page");
    assert_eq!(saved.len(), 1);
}

#[tokio::test]
async fn a_wrong_token_is_said_so_and_not_retried() {
    let client = connected(&Fake::default(), "wrong").await;
    let error = client.get_vm("browser-1").await.expect_err("refused");
    assert_eq!((error.code(), error.reason()), (Code::Unauthenticated, Some("TOKEN_MISSING_OR_WRONG")));
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_told_apart() {
    // Bound and closed again: nothing listens there now.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback").port();
    let builder = Client::builder().endpoint(format!("http://127.0.0.1:{port}")).token("x");
    let error = builder.clone().connect().await.expect_err("nobody there");
    assert!(error.is_unreachable(), "{error:?}");
    let lazy = builder.retry(RetryPolicy::none()).connect_lazy().expect("legal settings");
    let error = lazy.target("browser-1").click(1, 2).await.expect_err("nobody there");
    assert!(error.is_unreachable(), "{error:?}");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test]
async fn a_broken_acquire_is_repeated_and_makes_one_lease() {
    let fake = Fake::default();
    fake.set(|seen| seen.break_acquires = 1);
    let client = connected(&fake, TOKEN).await;
    let desktop = client.acquire("browser").await.expect("the repeat gets through");
    let seen = fake.seen();
    assert_eq!((seen.acquires, seen.leases.len()), (2, 1));
    let lease = desktop.release(ReleasePolicy::Destroy).await.expect("released");
    assert_eq!(fake.seen().released, [(lease.name, ReleasePolicy::Destroy)]);
}

/// The daemon on a port; dropping the runtime kills it.
fn serve(fake: &Fake, port: u16) -> (tokio::runtime::Runtime, u16) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", port))).expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(Server::builder().add_routes(fake.routes()).serve_with_incoming(incoming));
    (runtime, port)
}

#[test]
fn an_acquire_outlives_a_daemon_that_is_killed() {
    for watched in [false, true] {
        let fake = Fake::default();
        let (daemon, port) = serve(&fake, 0);
        let own = tokio::runtime::Runtime::new().expect("a runtime");
        let client = own.block_on(async {
            // With a policy that no kill outlives by itself.
            let builder = Client::builder().endpoint(format!("http://127.0.0.1:{port}")).token(TOKEN);
            builder.retry(RetryPolicy::none()).connect().await.expect("connected")
        });
        let acquire = client.acquire("busy").wait(Duration::from_secs(100));
        let acquiring =
            own.spawn(async move { if watched { acquire.watched(|_| {}).await } else { acquire.await } });
        own.block_on(fake.wait_for("an acquire", |seen| seen.acquires == 1));
        let first = fake.seen().acquire;
        drop(daemon);
        fake.set(|seen| seen.busy_is_free = true);
        let (daemon, _) = serve(&fake, port);
        own.block_on(async {
            let desktop = acquiring.await.expect("no panic").expect("asked again");
            assert_eq!(desktop.lease().pool, "pools/busy");
            let again = fake.seen().acquire;
            assert_eq!(again.request_id, first.request_id);
            let wait = |request: v1::AcquireVmRequest| {
                request.wait.and_then(|wait| Duration::try_from(wait).ok()).expect("given")
            };
            assert!(wait(again) < wait(first), "what is left of it");
            let _ = desktop.detach();
        });
        drop(daemon);
    }
}

#[tokio::test]
async fn an_acquire_outlives_a_daemon_that_stops() {
    for watched in [false, true] {
        let fake = Fake::default();
        fake.set(|seen| seen.stopping = 2);
        let client = connected(&fake, TOKEN).await;
        let acquire = client.acquire("browser");
        let desktop = if watched { acquire.watched(|_| {}).await } else { acquire.await };
        let _ = desktop.expect("the next daemon has one").detach();
        assert_eq!((fake.seen().acquires, fake.seen().leases.len()), (3, 1));
    }
}

#[tokio::test]
async fn a_dropped_acquire_is_cancelled_at_the_daemon() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let acquire = tokio::spawn(async move { client.acquire("busy").await.map(|_| ()) });
    fake.wait_for("an acquire", |seen| seen.acquires == 1).await;
    acquire.abort();
    fake.wait_for("its end", |seen| seen.abandoned == 1).await;
    assert!(fake.seen().leases.is_empty());
}

#[tokio::test]
async fn a_dropped_desktop_is_given_back() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    drop(client.acquire("browser").await.expect("a desktop"));
    let seen = fake.wait_for("a release", |seen| !seen.released.is_empty()).await;
    assert_eq!(seen.released, [("leases/l-1".to_owned(), ReleasePolicy::Reset)]);
    let detached = client.acquire("browser").await.expect("a desktop").detach();
    let listed = client.renew_lease(&detached.name, None).await.expect("still there");
    assert_eq!((listed.name, fake.seen().released.len()), (detached.name, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_at_a_third_of_its_ttl_until_it_is_lost() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let desktop = client.acquire("browser").ttl(Duration::from_secs(30)).await.expect("a desktop");
    let start = tokio::time::Instant::now();
    let mut seen = 0;
    while seen < 3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        seen = fake.seen().renewals;
    }
    let each = start.elapsed() / 3;
    assert!((9..=11).contains(&each.as_secs()), "renewed every {each:?}");
    assert!(!desktop.is_lost());
    fake.set(|seen| seen.lease_ended = true);
    let lost = desktop.lost().await;
    assert_eq!((lost.lease.as_str(), lost.reason()), ("leases/l-1", "LEASE_ENDED"));
    drop(desktop);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fake.seen().released.is_empty(), "a lost lease is not given back");
}

#[tokio::test]
async fn input_keeps_its_order_and_errors_name_the_event() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let target = client.target("browser-1");
    let done = target.input(Input::new().click(10, 20).text("héllo\n").chord("ctrl+s")).await.expect("done");
    assert_eq!(done.completed, 3);
    let batch = &fake.seen().batches[0];
    assert_eq!(batch.target, "vms/browser-1");
    assert!(!batch.batch_id.is_empty(), "a repeat must be recognisable");
    let error = target.input(Input::new().text("a").click(5000, 0)).await.expect_err("outside");
    assert_eq!(error.reason(), Some("OUT_OF_FRAME"));
    assert_eq!(error.api().expect("an answer").field_violations()[0].field, "events[1].click.at");
    assert_eq!(fake.seen().batches.len(), 1);
    let act =
        target.act(Input::new().key("Return")).screenshot(ScreenshotOptions::default()).await.expect("done");
    assert!(act.screenshot.is_some());
    let stream = target.stream_screenshots(ScreenshotOptions::default(), 5.0).await.expect("a stream");
    let sequences: Vec<u64> = stream.map(|shot| shot.expect("a picture").sequence).collect().await;
    assert_eq!(sequences, [1, 2, 3]);
}

#[tokio::test]
async fn programs_are_collected_streamed_and_killed_with_their_stream() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let target = client.target("leases/l-1");
    let output = target.exec(["say", "out", "err", "3"]).await.expect("ran");
    assert_eq!(
        (output.stdout_lossy().as_ref(), output.stderr_lossy().as_ref(), output.exit.code),
        ("out", "err", 3)
    );
    assert!(!output.success());
    let echoed = target.exec(["cat"]).stdin("given").await.expect("ran");
    assert_eq!(echoed.stdout, b"given");
    let error = target.exec(["cat"]).stdin(vec![0; 100]).max_output(99).await.expect_err("too much");
    assert!(matches!(error, Error::TooLarge { limit: 99, .. }));
    assert_eq!(target.exec(["nope"]).await.expect_err("no such").reason(), Some("PROGRAM_NOT_FOUND"));
    let mut stream = target.exec(["sleep"]).stream().await.expect("started");
    assert_eq!(stream.next().await.expect("an event"), Some(ExecEvent::Started { pid: 42 }));
    drop(stream);
    fake.wait_for("a kill", |seen| seen.killed == 1).await;
}

#[tokio::test]
async fn files_go_in_and_out_whole() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let target = client.target("browser-1");
    let dir = tempfile::tempdir().expect("temporary directory");
    let big: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let local = dir.path().join("big");
    std::fs::write(&local, &big).expect("write");
    assert_eq!(target.copy_in(&local, "/big", WriteOptions::default()).await.expect("copied"), 3_000_000);
    assert_eq!(target.write_file("/small", "tiny", WriteOptions::default()).await.expect("written"), 4);
    let back = dir.path().join("back");
    assert_eq!(target.copy_out("/big", &back).await.expect("copied"), 3_000_000);
    assert!(std::fs::read(&back).expect("read") == big);
    assert_eq!(target.read_file("/small", 100).await.expect("read"), b"tiny");
    assert!(matches!(target.read_file("/big", 100).await, Err(Error::TooLarge { .. })));
    assert_eq!(
        target.read_file("/none", 100).await.expect_err("none").reason(),
        Some("GUEST_FILE_NOT_FOUND")
    );
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names.len(), 2, "no unfinished file stays: {names:?}");
}

/// Gives some bytes, hangs, and fails when it is told to.
struct Torn {
    left: usize,
    tear: oneshot::Receiver<()>,
}

impl AsyncRead for Torn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Pin::new(&mut self.tear).poll(cx).map(|_| Err(io::Error::other("disk torn out")));
        }
        let n = self.left.min(buf.remaining());
        buf.put_slice(&vec![7; n]);
        self.left -= n;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn half_a_file_never_passes_for_a_whole_one() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let upload = |path: &'static str| {
        let (tear, torn) = oneshot::channel();
        let target = client.target("browser-1");
        let reader = Torn { left: 700_000, tear: torn };
        (tear, tokio::spawn(async move { target.send(path, reader, WriteOptions::default(), |_| {}).await }))
    };
    let (tear, upload_torn) = upload("/torn");
    // Once the daemon has taken the call up: one that is over before that never comes to its handler.
    fake.wait_for("an upload", |seen| seen.uploads == 1).await;
    tear.send(()).expect("it reads");
    let error = upload_torn.await.expect("no panic").expect_err("torn");
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    fake.wait_for("the torn upload's end", |seen| seen.broken_uploads == 1).await;
    // The same for a caller that gives up in the middle.
    let (_tear, upload_dropped) = upload("/dropped");
    fake.wait_for("another upload", |seen| seen.uploads == 2).await;
    upload_dropped.abort();
    fake.wait_for("the dropped upload's end", |seen| seen.broken_uploads == 2).await;
    assert!(fake.seen().files.is_empty());
}

#[tokio::test]
async fn a_stream_of_input_is_one_call_and_breaks_off_when_dropped() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let target = client.target("browser-1");
    let mut sink = target.stream_input().await.expect("open");
    for x in 0..40 {
        sink.send(Input::new().move_to(x, 1).click(x, 1)).await.expect("sent");
    }
    let done = sink.finish().await.expect("done");
    assert_eq!((done.batches, done.events), (40, 80));
    let seen = fake.seen().streamed;
    assert_eq!(seen.len(), 41, "one message opens the stream");
    let mut ids: Vec<_> = seen.iter().map(|message| &message.batch_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 41, "each batch has an id of its own, the opening none");

    let mut sink = target.stream_input().await.expect("open");
    sink.send(Input::new().click(5000, 1)).await.expect("sent");
    let error = loop {
        match sink.send(Input::new().move_to(1, 1)).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!((error.code(), error.reason()), (Code::InvalidArgument, Some("OUT_OF_FRAME")));
    assert!(error.to_string().contains("messages[1].events[0].click.at"), "{error}");
    assert!(sink.finish().await.is_err(), "it is over");

    let mut sink = target.stream_input().await.expect("open");
    sink.send(Input::new().key_down("shift")).await.expect("sent");
    fake.wait_for("the batch", |seen| seen.streamed.last().is_some_and(|last| !last.events.is_empty())).await;
    drop(sink);
    fake.wait_for("the end of the stream", |seen| seen.broken_streams == 1).await;
    let error = client.target("nobody").stream_input().await.expect("open").finish().await.expect_err("no");
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn operations_are_followed_to_their_end() {
    let client = connected(&Fake::default(), TOKEN).await;
    let operation = client.create_template("linux", Template::default()).await.expect("started");
    let mut phases = Vec::new();
    let template: Template = client
        .wait_operation(operation, |op| phases.extend(hvkube_sdk::template_progress(op).map(|p| p.phase)))
        .await
        .expect("made");
    assert_eq!(template.name, "templates/linux");
    assert_eq!(phases, ["CHECKING_DISK", "BOOTING", "DONE"]);
    let operation = client.create_template("broken", Template::default()).await.expect("started");
    let error = client.wait_operation::<Template>(operation, |_| {}).await.expect_err("fails");
    assert_eq!((error.code(), error.reason()), (Code::InvalidArgument, Some("DISK_NOT_AN_IMAGE")));
}

/// What a change tells, in short.
fn told(change: Change<v1::Vm>) -> String {
    match change {
        Change::Is(vm) => vm.name,
        Change::Gone(name) => format!("-{name}"),
        Change::Synced => "synced".into(),
        Change::Restarted => "restarted".into(),
    }
}

#[tokio::test]
async fn a_watch_goes_on_over_breaks_and_begins_anew_when_it_must() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let watch = client.watch_vms(WatchVmsRequest { pool: "browser".into(), ..Default::default() });
    let changes: Vec<String> = watch.take(9).map_ok(told).try_collect().await.expect("goes on");
    let (one, two, three) = ("vms/browser-1", "vms/browser-2", "vms/browser-3");
    assert_eq!(
        changes,
        [one, two, "synced", three, "-vms/browser-1", "restarted", two, three, "synced"],
        "a break is no news, what was missed is"
    );
    assert_eq!(fake.seen().watches, ["", "r2", "r4", ""]);
}

#[tokio::test]
async fn a_watch_that_is_refused_says_so() {
    let client = connected(&Fake::default(), "wrong").await;
    let mut watch = std::pin::pin!(client.watch_events(WatchEventsRequest::default()));
    let error = watch.next().await.expect("an item").expect_err("refused");
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(watch.next().await.is_none(), "that was all");
}

#[tokio::test]
async fn a_worker_reports_works_and_completes() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let worker = Worker::new(&client, "work").name("w1");
    let agent = worker
        .once(|job| async move {
            assert_eq!((job.input_json(), job.desktop().name()), ("{}", "leases/l-9"));
            job.progress(50, "half way").await?;
            Ok(Done::with_output(r#"{"ok":true}"#))
        })
        .await
        .expect("asked")
        .expect("an agent");
    assert_eq!(agent.name, "agents/a-2");
    let seen = fake.seen();
    assert!(seen.reports.iter().any(|report| report.progress_percent == Some(50)));
    assert!(seen.reports.iter().all(|report| report.epoch == 5));
    let done = &seen.completed[0];
    assert_eq!((done.epoch, done.success, done.output_json.as_str()), (5, true, r#"{"ok":true}"#));
    assert_eq!(worker.once(|_| async { Ok(Done::default()) }).await.expect("asked"), None, "no more work");
    let refused = Worker::new(&client, "other").run(|_| async { Ok(Done::default()) }).await;
    assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_worker_stops_when_its_claim_is_lost_and_fails_in_words() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    fake.set(|seen| seen.claim_lost = true);
    let worker = Worker::new(&client, "work");
    let work = worker.once(|_| std::future::pending());
    assert_eq!(work.await.expect("asked"), None, "the work was dropped");
    assert!(fake.seen().completed.is_empty());
    fake.set(|seen| (seen.claims, seen.claim_lost) = (0, false));
    worker.once(|_| async { Err(JobError::retry("no flights today")) }).await.expect("asked");
    let done = fake.seen().completed.remove(0);
    assert_eq!((done.success, done.retry, done.error.as_str()), (false, true, "no flights today"));
}

#[tokio::test]
async fn an_agents_log_is_followed_through_a_restart() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let agent = v1::Agent { pool: "browser".into(), ..Default::default() };
    let request = v1::SubmitAgentRequest { agent: Some(agent), ..Default::default() };
    let submitted = client.submit_agent(request).await.expect("submitted");
    let mut log = std::pin::pin!(client.follow_agent_logs(&submitted.name, 0));
    for sequence in 1..=3 {
        assert_eq!(log.next().await.expect("an entry").expect("no error").sequence, sequence);
    }
    fake.set(|seen| seen.stopping = 1);
    assert!(log.next().await.is_none(), "it has ended meanwhile");
    assert_eq!(fake.seen().stopping, 0, "it was asked again");
    let missing: Result<Vec<_>, _> = client.follow_agent_logs("nobody", 0).try_collect().await;
    assert_eq!(missing.expect_err("no such agent").code(), Code::NotFound);
}

#[tokio::test]
async fn an_agent_is_waited_for_through_broken_watches() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let task = v1::AgentTask { workflow: "book-flight".into(), ..Default::default() };
    let agent = v1::Agent { pool: "browser".into(), task: Some(task), ..Default::default() };
    let request = v1::SubmitAgentRequest { agent: Some(agent), ..Default::default() };
    let submitted = client.submit_agent(request).await.expect("submitted");
    let sent = fake.seen().submitted.expect("sent");
    assert!(!sent.request_id.is_empty() && sent.agent.expect("given").pool == "pools/browser");
    let mut seen = Vec::new();
    let ended = client.wait_agent(&submitted.name, |agent| seen.push(agent.status())).await.expect("ended");
    assert_eq!(ended.result.expect("a result").output_json, r#"{"price":120}"#);
    assert_eq!(seen, [v1::AgentStatus::Pending, v1::AgentStatus::Completed]);
}

#[tokio::test]
async fn the_clipboard_and_the_windows_of_a_desktop() {
    let client = connected(&Fake::default(), TOKEN).await;
    let desktop = client.target("browser-1");
    assert_eq!(desktop.clipboard().await.expect("empty"), None);
    desktop.set_clipboard("copied").await.expect("set");
    assert_eq!(desktop.clipboard().await.expect("held"), Some("copied".into()));
    let windows = desktop.windows().await.expect("listed").windows;
    assert_eq!(windows.iter().filter(|window| window.focused).count(), 0);
    let focused = desktop.focus(windows[0].id).await.expect("focused");
    assert!(focused.focused);
    let mask = v1::Rect { x: 1, y: 2, width: 3, height: 4 };
    assert_eq!(desktop.set_masks(vec![mask]).await.expect("covered"), [mask]);
    assert_eq!(desktop.masks().await.expect("listed").masks, [mask]);
    let error = desktop.focus(99).await.expect_err("no such window");
    assert_eq!((error.code(), error.reason()), (Code::NotFound, Some("WINDOW_NOT_FOUND")));
}

#[tokio::test]
async fn secrets_are_kept_listed_and_typed_by_name() {
    let fake = Fake::default();
    let client = connected(&fake, TOKEN).await;
    let about = v1::Secret { allowed_pools: vec!["pools/browser".into()], ..Default::default() };
    let made = client.create_secret("shop", about, "open sesame").await.expect("kept");
    assert_eq!(made.name, "secrets/shop");
    let listed: Vec<_> = client.list_secrets().try_collect().await.expect("listed");
    assert_eq!(listed, [client.get_secret("shop").await.expect("there")]);
    client.target("browser-1").input(Input::new().secret("shop")).await.expect("typed");
    let Some(v1::input_event::Event::Text(text)) = fake.seen().batches[0].events[0].event.clone() else {
        panic!("no text");
    };
    assert_eq!((text.text.as_str(), text.secret.as_str()), ("", "secrets/shop"));
    client.delete_secret("shop").await.expect("forgotten");
    let gone = client.get_secret("shop").await.expect_err("gone");
    assert_eq!(gone.code(), Code::NotFound);
}
