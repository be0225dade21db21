//! Consoles through the API of a real daemon, seen by a viewer of VNC made by hand.

mod served;

use std::time::{Duration, Instant};

use bytes::Bytes;
use hvkube_host::api::tokens::Tokens;
use hvkube_proto::v1;
use served::{Daemon, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;
use v1::connect_console_request::Part;
use v1::vm_service_client::VmServiceClient;

const WIDTH: u16 = 640;
const HEIGHT: u16 = 400;

fn vms(daemon: &Daemon) -> VmServiceClient<Channel> {
    VmServiceClient::new(daemon.channel.clone())
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("a reason").reason
}

fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().expect("fields").field_violations.remove(0).field
}

async fn ticket(daemon: &Daemon, token: &str, target: &str, view_only: bool) -> Result<String, Status> {
    let open = v1::OpenConsoleRequest { target: target.into(), view_only };
    Ok(vms(daemon).open_console(daemon.request_as(token, open)).await?.into_inner().ticket)
}

/// What a viewer has in its hands.
struct Viewer {
    say: mpsc::Sender<v1::ConnectConsoleRequest>,
    hear: Streaming<v1::ConnectConsoleResponse>,
    heard: Vec<u8>,
}

impl Viewer {
    async fn connect(daemon: &Daemon, token: &str, ticket: &str) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(8);
        let mut viewer = Self::begin(daemon, token, say, said, Some(Part::Ticket(ticket.into()))).await?;
        assert_eq!(viewer.read(12).await?, b"RFB 003.008\n");
        viewer.write(b"RFB 003.008\n").await;
        assert_eq!(viewer.read(2).await?, [1, 1]);
        viewer.write(&[1, 1]).await;
        assert_eq!(viewer.read(4).await?, [0; 4]);
        let size = viewer.read(4).await?;
        assert_eq!(size, [WIDTH.to_be_bytes(), HEIGHT.to_be_bytes()].concat());
        let length = viewer.read(20).await?[19];
        viewer.read(length.into()).await?;
        Ok(viewer)
    }

    async fn begin(
        daemon: &Daemon,
        token: &str,
        say: mpsc::Sender<v1::ConnectConsoleRequest>,
        said: mpsc::Receiver<v1::ConnectConsoleRequest>,
        first: Option<Part>,
    ) -> Result<Self, Status> {
        if first.is_some() {
            say.send(v1::ConnectConsoleRequest { part: first }).await.expect("room");
        }
        let hear = vms(daemon)
            .connect_console(daemon.request_as(token, ReceiverStream::new(said)))
            .await?
            .into_inner();
        Ok(Self { say, hear, heard: Vec::new() })
    }

    async fn write(&self, data: &[u8]) {
        let part = Some(Part::Data(Bytes::copy_from_slice(data)));
        self.say.send(v1::ConnectConsoleRequest { part }).await.expect("connected");
    }

    async fn read(&mut self, length: usize) -> Result<Vec<u8>, Status> {
        while self.heard.len() < length {
            let more = tokio::time::timeout(PATIENCE, self.hear.message()).await.expect("goes on")?;
            self.heard.extend(more.expect("more to come").data);
        }
        let rest = self.heard.split_off(length);
        Ok(std::mem::replace(&mut self.heard, rest))
    }

    /// The whole screen as it is now, four bytes a pixel.
    async fn screen(&mut self) -> Result<Vec<u8>, Status> {
        let [w, h] = [WIDTH.to_be_bytes(), HEIGHT.to_be_bytes()];
        self.write(&[3, 0, 0, 0, 0, 0, w[0], w[1], h[0], h[1]]).await;
        let head = self.read(16).await?;
        assert_eq!(head[..4], [0, 0, 0, 1]);
        assert_eq!(head[8..12], [w, h].concat());
        self.read(usize::from(WIDTH) * usize::from(HEIGHT) * 4).await
    }

    async fn key(&self, key: u8) {
        for down in [1, 0] {
            self.write(&[4, down, 0, 0, 0, 0, 0, key]).await;
        }
    }

    /// How it ends, whatever is still shown before.
    async fn end(mut self) -> Option<Status> {
        let ends = async {
            loop {
                match self.hear.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        tokio::time::timeout(PATIENCE, ends).await.expect("an end")
    }
}

fn at(screen: &[u8], x: usize, y: usize) -> [u8; 3] {
    let start = (y * usize::from(WIDTH) + x) * 4;
    [screen[start], screen[start + 1], screen[start + 2]]
}

/// The events of consoles so far, once there are so many.
async fn console_events(daemon: &Daemon, count: usize) -> Vec<v1::Event> {
    let kinds = vec![v1::EventKind::ConsoleOpened.into(), v1::EventKind::ConsoleClosed.into()];
    let watch = v1::WatchEventsRequest { parent: "hosts/-".into(), kinds, ..Default::default() };
    let mut hosts = v1::host_service_client::HostServiceClient::new(daemon.channel.clone());
    let mut watch = hosts.watch_events(daemon.request(watch)).await.expect("watched").into_inner();
    let mut events = Vec::new();
    while events.len() < count {
        let next = tokio::time::timeout(PATIENCE, watch.message()).await.expect("in time");
        events.extend(next.expect("goes on").expect("endless").events);
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_one_console_which_ends_with_the_lease() {
    let state_dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(state_dir.path()).await;
    daemon.template().await;
    daemon.pool(1).await;
    let tokens = Tokens::new(state_dir.path());
    let (ci, other) = (tokens.add("ci").expect("made"), tokens.add("other").expect("made"));
    let lease = daemon.lease_as(&ci).await;
    daemon.screenshot(&lease).await;
    let refused = ticket(&daemon, &other, &lease, true).await.expect_err("not theirs");
    assert_eq!(reason(&refused), "LEASE_NOT_YOURS");

    let good = ticket(&daemon, &ci, &lease, false).await.expect("a ticket");
    let stolen = Viewer::connect(&daemon, &other, &good).await.err().expect("refused");
    assert_eq!((stolen.code(), reason(&stolen).as_str()), (Code::NotFound, "CONSOLE_TICKET_UNKNOWN"));
    let mut viewer = Viewer::connect(&daemon, &ci, &good).await.expect("a console");
    let again = Viewer::connect(&daemon, &ci, &good).await.err().expect("refused");
    assert_eq!(reason(&again), "CONSOLE_TICKET_UNKNOWN");

    let before = viewer.screen().await.expect("shown");
    viewer.key(b'x').await;
    let deadline = Instant::now() + PATIENCE;
    while daemon.text(&lease).await != "x" {
        assert!(Instant::now() < deadline, "not typed");
    }
    assert_ne!(viewer.screen().await.expect("shown"), before, "what is typed is seen");
    let (x, y) = (300, 300);
    assert_ne!(at(&before, x, y), [0; 3], "something to cover");
    let mask = v1::Rect { x: 280, y: 280, width: 40, height: 40 };
    let set = v1::SetMasksRequest { target: lease.clone(), masks: vec![mask], frame_size: None };
    daemon.desktop().set_masks(daemon.request_as(&ci, set)).await.expect("covered");
    let covered = viewer.screen().await.expect("shown");
    assert_eq!((at(&covered, x, y), at(&covered, 10, 300)), ([0; 3], at(&before, 10, 300)));

    daemon.release_as(&ci, &lease).await;
    let end = viewer.end().await.expect("a reason");
    assert_eq!((end.code(), reason(&end).as_str()), (Code::FailedPrecondition, "LEASE_ENDED"));
    let events = console_events(&daemon, 2).await;
    let seen: Vec<_> =
        events.iter().map(|event| (event.kind(), event.lease.as_str(), event.actor.as_str())).collect();
    let of = |kind| (kind, lease.as_str(), "ci");
    assert_eq!(seen, [of(v1::EventKind::ConsoleOpened), of(v1::EventKind::ConsoleClosed)]);
    daemon.kill(state_dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_a_console_for_the_next_lease() {
    let state_dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(state_dir.path()).await;
    daemon.template().await;
    let mut pools = v1::pool_service_client::PoolServiceClient::new(daemon.channel.clone());
    let pool =
        v1::Pool { template: "templates/desk".into(), desired_count: 1, hot_count: 1, ..Default::default() };
    let create = v1::CreatePoolRequest { pool_id: "desks".into(), pool: Some(pool), ..Default::default() };
    pools.create_pool(daemon.request(create)).await.expect("a pool");
    let tokens = Tokens::new(state_dir.path());
    let (ci, other) = (tokens.add("ci").expect("made"), tokens.add("other").expect("made"));
    let vm = daemon.settled(0, 1).await.remove(0).name;

    let refused = ticket(&daemon, &ci, &vm, false).await.expect_err("hot");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "VM_RESERVED"));
    let look = ticket(&daemon, &other, &vm, true).await.expect("may look");
    let mut onlooker = Viewer::connect(&daemon, &other, &look).await.expect("a console");
    onlooker.screen().await.expect("shown");
    onlooker.key(b'n').await;

    let lease = daemon.lease_as(&ci).await;
    let end = onlooker.end().await.expect("a reason");
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Aborted, "VM_BUSY"));
    assert_eq!(daemon.text(&lease).await, "", "who only looks types nothing");
    let by_name = ticket(&daemon, &ci, &vm, false).await.expect("the holder's");
    let late = ticket(&daemon, &ci, &vm, false).await.expect("the holder's");
    let holder = Viewer::connect(&daemon, &ci, &by_name).await.expect("a console");
    daemon.release_as(&ci, &lease).await;
    assert_eq!(reason(&holder.end().await.expect("a reason")), "LEASE_ENDED");
    // It is hot again by then, or on the way; a ticket of before is none for that.
    daemon.settled(0, 1).await;
    let refused = Viewer::connect(&daemon, &ci, &late).await.err().expect("refused");
    assert_eq!(reason(&refused), "VM_RESERVED");
    daemon.kill(state_dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_console_is_refused_by_its_field_and_none_holds_up_a_stop() {
    let state_dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(state_dir.path()).await;
    daemon.template().await;
    daemon.pool(1).await;
    let lease = daemon.lease().await;
    let token = daemon.token.clone();
    let wrong = [
        (Some(Part::Ticket("one more".into())), "ticket"),
        (Some(Part::Data(vec![0; (64 << 10) + 1].into())), "data"),
        (None, "data"),
    ];
    for (part, name) in wrong {
        let good = ticket(&daemon, &token, &lease, false).await.expect("a ticket");
        let viewer = Viewer::connect(&daemon, &token, &good).await.expect("a console");
        viewer.say.send(v1::ConnectConsoleRequest { part }).await.expect("connected");
        assert_eq!(field(&viewer.end().await.expect("a reason")), name);
    }
    let (say, said) = mpsc::channel(1);
    let first = Some(Part::Data(Bytes::from_static(b"RFB")));
    let untold = Viewer::begin(&daemon, &token, say, said, first).await.err().expect("refused");
    assert_eq!(field(&untold), "ticket");
    // Whoever says nothing does not stay.
    let (_say, said) = mpsc::channel::<v1::ConnectConsoleRequest>(1);
    let (_say_input, input) = mpsc::channel::<v1::StreamInputRequest>(1);
    let mut client = vms(&daemon);
    let console = client.connect_console(daemon.request(ReceiverStream::new(said)));
    let mut desktop = daemon.desktop();
    let input = desktop.stream_input(daemon.request(ReceiverStream::new(input)));
    let silent = async { tokio::join!(console, input) };
    let (console, input) = tokio::time::timeout(PATIENCE, silent).await.expect("refused in time");
    let fields = (field(&console.expect_err("refused")), field(&input.expect_err("refused")));
    assert_eq!(fields, ("ticket".to_owned(), "messages[0].target".to_owned()));

    let good = ticket(&daemon, &token, &lease, true).await.expect("a ticket");
    let mut idle = Viewer::connect(&daemon, &token, &good).await.expect("a console");
    idle.screen().await.expect("shown");
    let (say, said) = mpsc::channel(1);
    say.send(v1::StreamInputRequest { target: lease, ..Default::default() }).await.expect("room");
    let mut desktop = daemon.desktop();
    let request = daemon.request(ReceiverStream::new(said));
    let input = tokio::spawn(async move { desktop.stream_input(request).await });
    // Until the stream is open; before that it is in nobody's way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.stop().await;
    let ended = input.await.expect("no panic").expect_err("ended");
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert_eq!(idle.end().await.expect("a reason").code(), Code::Unavailable);
}
