//! Secrets are typed and never shown: through the API of a real daemon that logs all it can.

mod served;

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hvkube_host::api::tokens::Tokens;
use hvkube_proto::v1;
use served::{Daemon, PATIENCE, chord};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use v1::input_event::Event;
use v1::secret_service_client::SecretServiceClient;

/// Long enough to be in nothing by chance, and with letters beyond ASCII.
const VALUE: &str = "Pä55-wörd-7f3a9c41e2";

fn secrets(daemon: &Daemon) -> SecretServiceClient<Channel> {
    SecretServiceClient::new(daemon.channel.clone())
}

fn create(id: &str, secret: v1::Secret) -> v1::CreateSecretRequest {
    v1::CreateSecretRequest {
        secret_id: id.into(),
        secret: Some(secret),
        value: VALUE.into(),
        request_id: String::new(),
    }
}

fn typed(name: &str) -> Event {
    Event::Text(v1::TextEvent { secret: name.into(), ..Default::default() })
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("a reason").reason
}

/// Files below a folder that hold the value, in plain or as something would show its bytes.
fn showing(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            showing(&path, found);
        } else if let Ok(bytes) = fs::read(&path)
            && shows(&bytes)
        {
            found.push(path.display().to_string());
        }
    }
}

fn shows(bytes: &[u8]) -> bool {
    let escaped: String = VALUE.chars().flat_map(char::escape_default).collect();
    let hex: String = VALUE.bytes().map(|b| format!("{b:02x}")).collect();
    let ascii = "-7f3a9c41e2";
    [VALUE, &escaped, &hex, ascii]
        .iter()
        .any(|form| bytes.windows(form.len()).any(|part| part == form.as_bytes()))
}

#[test]
fn the_search_finds_what_it_searches_for() {
    assert!(shows(format!("text: {VALUE:?}").as_bytes()) && shows(VALUE.as_bytes()));
    assert!(shows(b"w\\xc3\\xb6rd-7f3a9c41e2\"") && !shows(b"nothing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_typed_and_nothing_the_daemon_writes_or_says_shows_it() {
    let dir = tempfile::tempdir().expect("dir");
    let (state_dir, log) = (dir.path().join("state"), dir.path().join("log"));
    fs::create_dir(&state_dir).expect("made");
    let daemon = Daemon::start_with(&state_dir, "trace", File::create(&log).expect("a log").into()).await;
    daemon.template().await;
    daemon.pool(1).await;
    let lease = daemon.lease().await;
    let mut client = secrets(&daemon);
    let about = v1::Secret { description: "of the shop".into(), ..Default::default() };
    let made = client.create_secret(daemon.request(create("shop", about))).await.expect("kept").into_inner();
    assert_eq!((made.name.as_str(), made.description.as_str()), ("secrets/shop", "of the shop"));
    let taken = client.create_secret(daemon.request(create("shop", v1::Secret::default()))).await;
    assert_eq!(taken.expect_err("taken").code(), Code::AlreadyExists);

    let mut answers = String::new();
    let get = v1::GetSecretRequest { name: "secrets/shop".into() };
    answers += &format!("{:?}", client.get_secret(daemon.request(get)).await.expect("there"));
    let list = v1::ListSecretsRequest::default();
    let listed = client.list_secrets(daemon.request(list)).await.expect("listed").into_inner();
    assert_eq!(listed.secrets, [made]);

    daemon.input(&lease, vec![typed("secrets/shop")]).await.expect("typed");
    assert_eq!(daemon.remembers(&lease).await["text"], VALUE, "it arrived");
    let act = v1::ActRequest {
        target: lease.clone(),
        batch_id: "0198a1b2-0000-7000-8000-000000000001".into(),
        events: [chord("ctrl+a"), typed("secrets/shop")]
            .map(|event| v1::InputEvent { event: Some(event) })
            .into(),
        ..Default::default()
    };
    for replayed in [false, true] {
        let acted = daemon.desktop().act(daemon.request(act.clone())).await.expect("acted").into_inner();
        let input = acted.input.expect("input");
        assert_eq!((input.completed, input.replayed), (2, replayed));
        answers += &format!("{input:?}{:?}", acted.settle);
    }
    assert_eq!(daemon.remembers(&lease).await["text"], VALUE, "once");

    let streamed = [chord("ctrl+a"), typed("secrets/shop")].map(|event| v1::StreamInputRequest {
        target: lease.clone(),
        events: vec![v1::InputEvent { event: Some(event) }],
        ..Default::default()
    });
    let streamed = daemon.request(tokio_stream::iter(streamed));
    let done = daemon.desktop().stream_input(streamed).await.expect("streamed").into_inner();
    answers += &format!("{done:?}");
    assert_eq!((done.batches, daemon.text(&lease).await.as_str()), (2, VALUE));

    // Refusals on all ways, which must not quote it.
    let both = Event::Text(v1::TextEvent { text: "x".into(), secret: "secrets/shop".into(), interval: None });
    let unknown_key = vec![typed("secrets/shop"), chord("no_such_key")];
    let outside = Event::Move(v1::MoveEvent { to: Some(v1::Point { x: 9999, y: 1 }), ..Default::default() });
    for (events, code) in [
        (vec![both], Code::InvalidArgument),
        (vec![typed("shop")], Code::InvalidArgument),
        (vec![typed("secrets/none")], Code::NotFound),
        (unknown_key, Code::InvalidArgument),
        (vec![typed("secrets/shop"), outside], Code::InvalidArgument),
    ] {
        let refused = daemon.input(&lease, events).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused:?}");
        answers += &format!("{refused:?}{:?}", refused.get_error_details());
    }

    let watch = v1::WatchEventsRequest { parent: "hosts/-".into(), ..Default::default() };
    let mut hosts = v1::host_service_client::HostServiceClient::new(daemon.channel.clone());
    let mut events = hosts.watch_events(daemon.request(watch)).await.expect("watched").into_inner();
    // What there is comes at once; a while of nothing is its end.
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(500), events.message()).await {
        answers += &format!("{:?}", event.expect("goes on"));
    }
    assert!(answers.contains("LEASE_GRANTED") || answers.contains("lease"), "events were seen");
    assert!(!shows(answers.as_bytes()), "an answer shows it");

    let backup = state_dir.join("copy.db");
    let path = backup.display().to_string();
    let request = v1::BackupStoreRequest { name: "hosts/-".into(), path, ..Default::default() };
    hosts.backup_store(daemon.request(request)).await.expect("begun");
    let deadline = Instant::now() + PATIENCE;
    while !backup.exists() {
        assert!(Instant::now() < deadline, "no backup");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.kill(&state_dir).await;
    // The simulated machine remembers what was typed into its field, as a real one's memory does.
    fs::remove_dir_all(state_dir.join("sim")).expect("the simulated world");
    let log_bytes = fs::read(&log).expect("a log");
    assert!(log_bytes.windows(15).any(|part| part == b"secret is typed"), "the use is logged");
    let mut found = Vec::new();
    showing(dir.path(), &mut found);
    assert!(found.is_empty(), "shown in {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_keep_and_who_may_use_a_secret() {
    let state_dir = tempfile::tempdir().expect("dir");
    let state_dir = state_dir.path();
    let daemon = Daemon::start(state_dir).await;
    daemon.template().await;
    daemon.pool(1).await;
    let (ci, other) = {
        let tokens = Tokens::new(state_dir);
        (tokens.add("ci").expect("made"), tokens.add("other").expect("made"))
    };
    let mut client = secrets(&daemon);
    let pools =
        |pool: &str| v1::Secret { allowed_pools: vec![format!("pools/{pool}")], ..Default::default() };
    let callers = v1::Secret { allowed_callers: vec!["ci".into()], ..Default::default() };
    for (id, about) in [("here", pools("desks")), ("elsewhere", pools("mail")), ("of-ci", callers)] {
        client.create_secret(daemon.request(create(id, about))).await.expect("kept");
    }
    let list = client.list_secrets(daemon.request_as(&ci, v1::ListSecretsRequest::default())).await;
    assert_eq!(reason(&list.expect_err("admin only")), "ADMIN_ONLY");
    let make = client.create_secret(daemon.request_as(&ci, create("mine", v1::Secret::default()))).await;
    assert_eq!(reason(&make.expect_err("admin only")), "ADMIN_ONLY");

    let vm = daemon.vms().await.remove(0).name;
    let mut vms = v1::vm_service_client::VmServiceClient::new(daemon.channel.clone());
    let resume = v1::ResumeVmRequest { name: vm.clone(), ..Default::default() };
    vms.resume_vm(daemon.request(resume)).await.expect("resumed");
    daemon.screenshot(&vm).await;
    for (token, name, allowed) in [
        (&ci, "here", true),
        (&ci, "of-ci", true),
        (&other, "here", true),
        (&other, "of-ci", false),
        (&other, "elsewhere", false),
        (&other, "there-is-none", false),
        (&daemon.token, "of-ci", true),
        (&daemon.token, "elsewhere", false),
    ] {
        let event = typed(&format!("secrets/{name}"));
        let events = vec![v1::InputEvent { event: Some(event) }];
        let send = v1::SendInputRequest { target: vm.clone(), events, ..Default::default() };
        let sent = daemon.desktop().send_input(daemon.request_as(token, send)).await;
        match sent {
            Ok(_) => assert!(allowed, "{name} was typed"),
            Err(refused) => {
                assert!(!allowed, "{name}: {refused}");
                assert_eq!(
                    (refused.code(), reason(&refused).as_str()),
                    (Code::PermissionDenied, "SECRET_NOT_ALLOWED")
                );
            }
        }
    }

    // A repeat of a call with the same request id makes nothing new, and another call with it is refused.
    let again = v1::CreateSecretRequest {
        request_id: "0198a1b2-0000-7000-8000-000000000007".into(),
        ..create("", v1::Secret::default())
    };
    let first = client.create_secret(daemon.request(again.clone())).await.expect("kept").into_inner();
    daemon.kill(state_dir).await;
    let daemon = Daemon::start_with(state_dir, "warn", Stdio::inherit()).await;
    let mut client = secrets(&daemon);
    let second = client.create_secret(daemon.request(again.clone())).await.expect("the same").into_inner();
    assert_eq!(first, second);
    let other = v1::Secret { description: "another".into(), ..Default::default() };
    let reused = v1::CreateSecretRequest { secret: Some(other), ..again };
    let reused = client.create_secret(daemon.request(reused)).await.expect_err("refused");
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");

    let delete = v1::DeleteSecretRequest { name: first.name.clone() };
    client.delete_secret(daemon.request(delete.clone())).await.expect("forgotten");
    let gone = client.delete_secret(daemon.request(delete)).await.expect_err("gone");
    assert_eq!(gone.code(), Code::NotFound);
    let page = v1::ListSecretsRequest { page_size: 2, page_token: String::new() };
    let page = client.list_secrets(daemon.request(page)).await.expect("a page").into_inner();
    let names: Vec<_> = page.secrets.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(names, ["secrets/elsewhere", "secrets/here"]);
    let rest = v1::ListSecretsRequest { page_size: 2, page_token: page.next_page_token };
    let rest = client.list_secrets(daemon.request(rest)).await.expect("a page").into_inner();
    assert_eq!((rest.secrets.len(), rest.next_page_token.as_str()), (1, ""));
    daemon.kill(state_dir).await;
}
