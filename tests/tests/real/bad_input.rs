//! What is wrong is refused with its reason and its field, and leaves nothing half-made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvkube_sdk::v1::{ListVmsRequest, Pool, Template};
use hvkube_sdk::{Client, Code, Input};
use hvkube_tests::{Rig, refused};
use tokio_stream::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_clear_error_and_leaves_nothing() {
    let mut rig = Rig::start().await;
    rig.pool("desk", 1).await;
    let before = everything(&rig).await;
    rig.scenario("templates", templates).await;
    rig.scenario("pools and vms", pools).await;
    assert_eq!(everything(&rig).await, before, "nothing half-made");
    rig.scenario("input", input).await;
    rig.scenario("leases of others and leases that are over", leases).await;
    rig.ready("desk", 1).await;
    rig.check().await;
    rig.scenario("a daemon that is not there", nobody).await;
}

/// Names in the API and files on disk.
async fn everything(rig: &Rig) -> (Vec<String>, BTreeSet<PathBuf>) {
    let client = rig.client();
    let mut names = Vec::new();
    let templates: Result<Vec<_>, _> = client.list_templates().collect().await;
    names.extend(templates.expect("templates").into_iter().map(|one| one.name));
    let pools: Result<Vec<_>, _> = client.list_pools().collect().await;
    names.extend(pools.expect("pools").into_iter().map(|one| one.name));
    names.extend(rig.vms(None).await.into_iter().map(|one| one.name));
    let mut files = BTreeSet::new();
    walk(&rig.state_dir().join("qemu"), &mut files);
    (names, files)
}

fn walk(folder: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), into);
        }
        into.insert(entry.path());
    }
}

async fn templates(rig: &mut Rig) {
    let (client, good) = (rig.client(), rig.image.template());
    let with_disk = |path: &Path| {
        let mut template = good.clone();
        template.source.as_mut().expect("a source").disk_path = path.display().to_string();
        template
    };
    let missing = client.create_template("bad", with_disk(Path::new("/nowhere/disk.qcow2"))).await;
    refused(missing, Code::InvalidArgument, "DISK_NOT_FOUND", Some("template.source.disk_path"));
    let text = rig.scratch().join("text.qcow2");
    std::fs::write(&text, "no image").expect("written");
    let no_image = client.create_template("bad", with_disk(&text)).await;
    refused(no_image, Code::InvalidArgument, "DISK_NOT_AN_IMAGE", Some("template.source.disk_path"));
    let relative = client.create_template("bad", with_disk(Path::new("disk.qcow2"))).await;
    refused(relative, Code::InvalidArgument, "INVALID_FIELD", Some("template.source.disk_path"));
    let huge =
        client.create_template("bad", Template { memory_mb: 64 << 20, ..good.clone() }).await.map(drop);
    let error = huge.expect_err("more than any host");
    assert!(
        matches!(error.reason(), Some("MEMORY_BEYOND_HOST" | "INVALID_FIELD"))
            && error.to_string().contains("memory_mb"),
        "{error}"
    );
    let taken = client.create_template("linux", good.clone()).await;
    refused(taken, Code::AlreadyExists, "RESOURCE_EXISTS", None);
    let id = client.create_template("Not An Id", good).await;
    refused(id, Code::InvalidArgument, "INVALID_FIELD", Some("template_id"));
    refused(client.delete_template("linux").await, Code::FailedPrecondition, "TEMPLATE_IN_USE", None);
}

async fn pools(rig: &mut Rig) {
    let client = rig.client();
    let pool = |template: &str| Pool { template: template.into(), desired_count: 1, ..Pool::default() };
    refused(client.create_pool("bad", pool("templates/nothing")).await, Code::NotFound, "RESOURCE_NOT_FOUND", None);
    refused(client.create_pool("desk", pool("templates/linux")).await, Code::AlreadyExists, "RESOURCE_EXISTS", None);
    refused(client.get_pool("nothing").await, Code::NotFound, "RESOURCE_NOT_FOUND", None);
    refused(client.acquire("nothing").await, Code::NotFound, "RESOURCE_NOT_FOUND", None);
    let vm = rig.vms(Some("desk")).await[0].name.clone();
    let error = refused(client.pause_vm(&vm).await, Code::FailedPrecondition, "ILLEGAL_VM_STATE", None);
    let text = error.to_string();
    assert!(text.contains("saved") && text.contains("paused"), "both states: {text}");
    let page = ListVmsRequest { page_token: "nonsense".into(), ..ListVmsRequest::default() };
    let status = client.vms().list_vms(page).await.expect_err("no such page");
    let error = hvkube_sdk::Error::from_status(status, "test");
    assert_eq!((error.code(), error.reason()), (Code::InvalidArgument, Some("INVALID_PAGE_TOKEN")));
}

async fn input(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    refused(desktop.click(1280, 10).await, Code::InvalidArgument, "OUT_OF_FRAME", Some("events[0].click.at"));
    refused(desktop.click(-1, 10).await, Code::InvalidArgument, "OUT_OF_FRAME", None);
    let batch = Input::new().click(10, 10).key("NoSuchKey");
    refused(desktop.input(batch).await, Code::InvalidArgument, "UNKNOWN_KEY", Some("events[1].key.key"));
    refused(desktop.chord("ctrl+").await, Code::InvalidArgument, "UNKNOWN_KEY", None);
    let nothing: [&str; 0] = [];
    refused(desktop.exec(nothing).await, Code::InvalidArgument, "INVALID_FIELD", Some("argv"));
    desktop.release(hvkube_sdk::ReleasePolicy::Reset).await.expect("released");
    rig.ready("desk", 1).await;
}

async fn leases(rig: &mut Rig) {
    let other = rig.client_of("other").await;
    let desktop = rig.acquire("desk").await;
    let (lease, vm) = (desktop.lease().name.clone(), desktop.vm().name.clone());
    refused(other.renew_lease(&lease, None).await, Code::PermissionDenied, "LEASE_NOT_YOURS", None);
    let reset = hvkube_sdk::ReleasePolicy::Reset;
    refused(other.release_vm(&lease, reset).await, Code::PermissionDenied, "LEASE_NOT_YOURS", None);
    for name in [&lease, &vm] {
        let click = other.target(name).click(1, 1).await;
        refused(click, Code::PermissionDenied, "LEASE_NOT_YOURS", None);
    }
    let too_long = rig.client().renew_lease(&lease, Some(Duration::from_secs(1 << 30))).await;
    refused(too_long, Code::InvalidArgument, "INVALID_FIELD", Some("ttl"));
    desktop.release(reset).await.expect("released");
    refused(rig.client().target(&lease).click(1, 1).await, Code::FailedPrecondition, "LEASE_ENDED", None);
    refused(rig.client().renew_lease(&lease, None).await, Code::FailedPrecondition, "LEASE_ENDED", None);
    let nobody = rig.client().get_lease("nobody").await;
    refused(nobody, Code::NotFound, "RESOURCE_NOT_FOUND", None);
}

async fn nobody(rig: &mut Rig) {
    let no_token =
        Client::builder().endpoint(rig.endpoint()).token("wrong").connect_lazy().expect("a client");
    refused(no_token.get_pool("desk").await, Code::Unauthenticated, "TOKEN_MISSING_OR_UNKNOWN", None);
    let endpoint = rig.endpoint();
    assert!(rig.stop().await.success());
    let retry = hvkube_sdk::RetryPolicy::none();
    let gone =
        Client::builder().endpoint(&endpoint).token("any").retry(retry).connect_lazy().expect("a client");
    let error = gone.get_pool("desk").await.expect_err("nobody there");
    assert!(error.is_unreachable() && error.to_string().contains(&endpoint), "{error}");
}
