//! The real daemon on the simulated hypervisor, killed and started again.

mod served;

use std::time::{Duration, Instant};

use hvkube_proto::v1;
use served::{Daemon, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use v1::input_event::Event;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_finds_its_simulated_world_again() {
    let state_dir = tempfile::tempdir().expect("dir");
    let state_dir = state_dir.path();
    let daemon = Daemon::start(state_dir).await;
    let host = daemon.host().await;
    assert_eq!((host.hypervisor.as_str(), host.accelerator.as_str()), ("sim", "none"));
    assert!(host.accelerator_reason.contains("simulated"), "{}", host.accelerator_reason);
    daemon.template().await;
    daemon.pool(8).await;
    daemon.settled(8, 0).await;
    let lease = daemon.lease().await;
    let clean = daemon.screenshot(&lease).await;
    daemon.type_text(&lease, "still here").await;
    let typed = daemon.screenshot(&lease).await;
    assert_ne!(clean, typed, "what is typed is seen");
    let before = daemon.settled(7, 1).await;

    daemon.kill(state_dir).await;
    let daemon = Daemon::start(state_dir).await;
    let after = daemon.settled(7, 1).await;
    let names = |vms: &[v1::Vm]| vms.iter().map(|vm| (vm.name.clone(), vm.uid.clone())).collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after));
    assert_eq!(daemon.screenshot(&lease).await, typed, "its guest went on");
    daemon.type_text(&lease, ", and more").await;
    assert_ne!(daemon.screenshot(&lease).await, typed);
    daemon.kill(state_dir).await;
}

/// A daemon with a desktop that somebody holds.
struct Held {
    daemon: Daemon,
    lease: String,
    _dir: tempfile::TempDir,
}

impl Held {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let daemon = Daemon::start(dir.path()).await;
        daemon.template().await;
        daemon.pool(1).await;
        let lease = daemon.lease().await;
        Self { daemon, lease, _dir: dir }
    }

    /// Streams these messages; the stream ends after them.
    async fn stream(&self, messages: Vec<v1::StreamInputRequest>) -> Result<v1::StreamInputResponse, Status> {
        let request = self.daemon.request(tokio_stream::iter(messages));
        self.daemon.desktop().stream_input(request).await.map(tonic::Response::into_inner)
    }

    fn first(&self, events: Vec<Event>) -> v1::StreamInputRequest {
        v1::StreamInputRequest { target: self.lease.clone(), ..batch(events) }
    }
}

fn batch(events: Vec<Event>) -> v1::StreamInputRequest {
    let events = events.into_iter().map(|event| v1::InputEvent { event: Some(event) }).collect();
    v1::StreamInputRequest { events, ..Default::default() }
}

fn typed(text: &str) -> Event {
    Event::Text(v1::TextEvent { text: text.into(), ..Default::default() })
}

fn key(key: &str, action: v1::InputAction) -> Event {
    Event::Key(v1::KeyEvent { key: key.into(), action: action.into(), ..Default::default() })
}

fn metadata(status: &Status) -> std::collections::HashMap<String, String> {
    status.get_details_error_info().expect("every error has ErrorInfo").metadata
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_input_is_done_in_order_and_summed_up() {
    let held = Held::new().await;
    let scroll = v1::ScrollEvent { delta_y: 2, pixels_y: 100, ..Default::default() };
    let once = v1::StreamInputRequest {
        batch_id: "6f1c1f0e-9d7a-4b52-8c3e-0d5a4a1e2b3c".into(),
        ..batch(vec![typed("d")])
    };
    let mut messages = vec![held.first(vec![])];
    messages.extend(["a", "b"].map(|text| batch(vec![typed(text)])));
    messages.push(batch(vec![typed("c"), Event::Scroll(scroll)]));
    messages.extend([once.clone(), once]);
    let done = held.stream(messages).await.expect("done");
    assert_eq!((done.batches, done.replayed, done.events), (5, 1, 6));
    let point = |x, y| Some(v1::Point { x, y });
    // 100 pixels are two notches of 53 on a platform that has notches only.
    assert_eq!((done.scrolled, done.scrolled_pixels), (point(0, 4), point(0, 106)));
    assert_eq!(done.source(), v1::FrameSource::Agent);
    assert!(done.epoch > 0);
    assert_eq!(held.daemon.text(&held.lease).await, "abcd", "in order, and each batch once");
    let empty = held.stream(vec![held.first(vec![])]).await.expect("nothing to do");
    assert_eq!((empty.batches, empty.epoch), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_ends_the_stream_and_is_named_with_what_was_done() {
    let held = Held::new().await;
    let nowhere =
        || Event::Click(v1::ClickEvent { at: Some(v1::Point { x: 9999, y: 1 }), ..Default::default() });
    let messages = vec![
        held.first(vec![typed("x"), typed("y")]),
        batch(vec![typed("z"), nowhere()]),
        batch(vec![typed("!")]),
    ];
    let status = held.stream(messages).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    let bad = status.get_details_bad_request().expect("BadRequest");
    assert_eq!(bad.field_violations[0].field, "messages[1].events[1].click.at");
    let told = metadata(&status);
    assert_eq!((told["message"].as_str(), told["completed_batches"].as_str()), ("1", "1"));
    assert_eq!(told["completed_events"], "2");
    assert_eq!(held.daemon.text(&held.lease).await, "xy", "nothing of the bad batch");

    for (messages, field) in [
        (vec![], "messages[0].target"),
        (vec![batch(vec![typed("a")])], "messages[0].target"),
        (vec![held.first(vec![]), batch(vec![])], "messages[1].events"),
        (
            vec![
                held.first(vec![]),
                v1::StreamInputRequest { target: "vms/other".into(), ..batch(vec![typed("a")]) },
            ],
            "messages[1].target",
        ),
        (
            vec![v1::StreamInputRequest { batch_id: "no uuid".into(), ..held.first(vec![typed("a")]) }],
            "messages[0].batch_id",
        ),
    ] {
        let status = held.stream(messages).await.expect_err("refused");
        let bad = status.get_details_bad_request().expect("BadRequest");
        assert_eq!(bad.field_violations[0].field, field, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_lets_go_and_one_that_ends_does_not() {
    let held = Held::new().await;
    let (press, release) = (v1::InputAction::Press, v1::InputAction::Release);
    held.stream(vec![held.first(vec![key("shift", press)])]).await.expect("done");
    held.daemon.send(&held.lease, key("a", v1::InputAction::Tap)).await;
    held.daemon.send(&held.lease, key("shift", release)).await;
    assert_eq!(held.daemon.text(&held.lease).await, "A", "still held");

    // A batch that fails lets go of what earlier ones hold.
    let failed = vec![held.first(vec![key("shift", press)]), batch(vec![])];
    held.stream(failed).await.expect_err("refused");
    lower_case_comes(&held).await;

    let (messages, stream) = mpsc::channel(4);
    messages.send(held.first(vec![key("shift", press), typed("=")])).await.expect("open");
    let request = held.daemon.request(ReceiverStream::new(stream));
    let mut desktop = held.daemon.desktop();
    let call = tokio::spawn(async move { desktop.stream_input(request).await });
    until("the batch is done", async || held.daemon.text(&held.lease).await.ends_with('=')).await;
    call.abort();
    // The sender outlives the call, or its end would pass for the stream's.
    let _ = call.await;
    lower_case_comes(&held).await;
    drop(messages);
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn lower_case_comes(held: &Held) {
    until("shift is up", async || {
        held.daemon.send(&held.lease, key("a", v1::InputAction::Tap)).await;
        held.daemon.text(&held.lease).await.ends_with('a')
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_held_under_a_lease_is_up_when_the_vm_is_used_again() {
    let held = Held::new().await;
    let daemon = &held.daemon;
    let mut leases = v1::lease_service_client::LeaseServiceClient::new(daemon.channel.clone());
    daemon.send(&held.lease, key("shift", v1::InputAction::Press)).await;
    let keep = v1::ReleaseVmRequest {
        name: held.lease.clone(),
        policy: v1::ReleasePolicy::Keep.into(),
        ..Default::default()
    };
    let ended = leases.release_vm(daemon.request(keep)).await.expect("released").into_inner();
    let vm = ended.vm;
    let mut vms = v1::vm_service_client::VmServiceClient::new(daemon.channel.clone());
    until("kept", async || {
        let get = v1::GetVmRequest { name: vm.clone() };
        let seen = vms.get_vm(daemon.request(get)).await.expect("a vm").into_inner();
        seen.state() == v1::VmState::Saved && seen.pool.is_empty()
    })
    .await;
    let resume = v1::ResumeVmRequest { name: vm.clone(), ..Default::default() };
    vms.resume_vm(daemon.request(resume)).await.expect("resumed");
    daemon.screenshot(&vm).await;
    daemon.send(&vm, key("a", v1::InputAction::Tap)).await;
    assert_eq!(daemon.text(&vm).await, "a");

    // The pool's next one, reset, for the next holder.
    let lease = daemon.lease().await;
    daemon.send(&lease, key("shift", v1::InputAction::Press)).await;
    let reset =
        v1::ReleaseVmRequest { name: lease, policy: v1::ReleasePolicy::Reset.into(), ..Default::default() };
    leases.release_vm(daemon.request(reset)).await.expect("released");
    let lease = daemon.lease().await;
    daemon.send(&lease, key("a", v1::InputAction::Tap)).await;
    assert_eq!(daemon.text(&lease).await, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_a_region_changes_or_a_pixel_has_its_colour() {
    let held = Held::new().await;
    let daemon = &held.daemon;
    // Where the text field begins.
    let field = v1::Rect { x: 40, y: 86, width: 60, height: 30 };
    let wait = |settle: v1::SettleOptions| {
        let wait = v1::WaitForSettleRequest {
            target: held.lease.clone(),
            settle: Some(settle),
            ..Default::default()
        };
        async move {
            let answer = daemon.desktop().wait_for_settle(daemon.request(wait)).await;
            answer.map(|answer| answer.into_inner().settle.expect("an outcome"))
        }
    };
    let timeout = Some(prost_types::Duration { seconds: 50, nanos: 0 });
    let region = v1::SettleOptions { regions: vec![field], timeout, ..Default::default() };
    let typing = async {
        // It may be before the wait has begun; each character is another change.
        loop {
            daemon.type_text(&held.lease, "x").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let met = tokio::select! {
        met = wait(region) => met.expect("met"),
        () = typing => unreachable!("never ends"),
    };
    assert_eq!((met.timed_out, met.met()), (false, v1::SettleCondition::Region));
    assert!(met.met_after.is_some() && !met.changed.is_empty(), "{met:?}");

    // The panel at the top.
    let pixel = |rgb, tolerance| v1::PixelCondition { at: Some(v1::Point { x: 600, y: 3 }), rgb, tolerance };
    let pixels = vec![pixel(0xff_ff_ff, 0), pixel(0x20_28_2c, 2)];
    let met = wait(v1::SettleOptions { pixels, timeout, ..Default::default() }).await.expect("met");
    assert_eq!((met.timed_out, met.met(), met.met_index), (false, v1::SettleCondition::Pixel, 1));
    let short = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let never =
        v1::SettleOptions { pixels: vec![pixel(0xff_ff_ff, 0)], timeout: short, ..Default::default() };
    let over = wait(never).await.expect("an answer");
    assert_eq!((over.timed_out, over.met()), (true, v1::SettleCondition::Unspecified));
    let outside = v1::PixelCondition { at: Some(v1::Point { x: 640, y: 0 }), ..Default::default() };
    let status =
        wait(v1::SettleOptions { pixels: vec![outside], ..Default::default() }).await.expect_err("refused");
    let bad = status.get_details_bad_request().expect("BadRequest");
    assert_eq!(bad.field_violations[0].field, "settle.pixels[0].at");
}
