//! A whole daemon on a loopback port, through real connections.

#[path = "../examples/embedded.rs"]
#[expect(dead_code, reason = "its main is for the example itself")]
mod embedded;

use std::path::{Path, PathBuf};

use hvkube_host::config::{Config, Dirs, HypervisorKind};
use hvkube_host::daemon::{Daemon, StartError, StateDirError};
use hvkube_proto::google::longrunning as lro;
use hvkube_proto::google::longrunning::operations_client::OperationsClient;
use hvkube_proto::v1;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

struct Client {
    channel: Channel,
    token: String,
}

impl Client {
    async fn new(daemon: &Daemon) -> Self {
        let state_dir = &daemon.config().state_dir;
        let endpoint = std::fs::read_to_string(state_dir.join("endpoint")).expect("published");
        let token = std::fs::read_to_string(state_dir.join("admin.token")).expect("written");
        let endpoint = Endpoint::from_shared(endpoint.trim().to_owned()).expect("an address");
        Self { channel: endpoint.connect().await.expect("listening"), token: token.trim().into() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let header = format!("Bearer {}", self.token).parse().expect("legal");
        request.metadata_mut().insert("authorization", header);
        request
    }

    fn vms(&self) -> v1::vm_service_client::VmServiceClient<Channel> {
        v1::vm_service_client::VmServiceClient::new(self.channel.clone())
    }

    fn pools(&self) -> v1::pool_service_client::PoolServiceClient<Channel> {
        v1::pool_service_client::PoolServiceClient::new(self.channel.clone())
    }

    fn desktop(&self) -> v1::desktop_service_client::DesktopServiceClient<Channel> {
        v1::desktop_service_client::DesktopServiceClient::new(self.channel.clone())
    }
}

/// Stands in for the agent: no desktop is made here, the backend only looks whether it is there.
fn any_program() -> PathBuf {
    std::env::current_exe().expect("this test")
}

fn config(state_dir: &Path) -> Config {
    let mut config = Config::defaults(state_dir);
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.hypervisor = HypervisorKind::Process;
    config.process.agent_binary = any_program();
    config.resolve(&Dirs { run_base: None, ..Dirs::system() });
    config
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has ErrorInfo");
    assert_eq!(info.domain, "hvkube.dev");
    info.reason
}

#[tokio::test]
async fn the_embedded_example_runs() {
    let host = embedded::run(any_program()).await.expect("ran");
    assert_eq!(host.hypervisor, "process");
    assert!(host.cpu_count > 0 && host.memory_total_bytes > 0);
}

#[tokio::test]
async fn errors_carry_their_details_over_the_wire() {
    let dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(config(dir.path())).await.expect("started");
    let client = Client::new(&daemon).await;

    let status = client.vms().get_vm(v1::GetVmRequest::default()).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated);

    let get = client.request(v1::GetVmRequest { name: "vms/none".into() });
    let status = client.vms().get_vm(get).await.expect_err("unknown");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));
    let resource = status.get_details_resource_info().expect("ResourceInfo");
    assert_eq!(resource.resource_name, "vms/none");

    let list = v1::ListVmsRequest { page_token: "nonsense".into(), ..Default::default() };
    let status = client.vms().list_vms(client.request(list)).await.expect_err("no token of ours");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_PAGE_TOKEN"));

    let pool = v1::Pool { template: "templates/none".into(), desired_count: 10_001, ..Default::default() };
    let create = v1::CreatePoolRequest { pool: Some(pool.clone()), ..Default::default() };
    let status = client.pools().create_pool(client.request(create)).await.expect_err("too many");
    let bad = status.get_details_bad_request().expect("BadRequest");
    assert_eq!(bad.field_violations[0].field, "pool.desired_count");
    let pool = v1::Pool { desired_count: 1, ..pool };
    let create = v1::CreatePoolRequest { pool: Some(pool), ..Default::default() };
    let status = client.pools().create_pool(client.request(create)).await.expect_err("no template");
    assert_eq!(status.code(), Code::NotFound);
    let list = client.request(v1::ListPoolsRequest::default());
    let pools = client.pools().list_pools(list).await.expect("listed").into_inner();
    assert!(pools.pools.is_empty(), "nothing half-made stays");

    let shot = v1::TakeScreenshotRequest { target: "leases/none".into(), options: None };
    let status = client.desktop().take_screenshot(client.request(shot)).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
    let write = client.request(tokio_stream::iter([v1::WriteFileRequest::default()]));
    let status = client.desktop().write_file(write).await.expect_err("no header");
    let bad = status.get_details_bad_request().expect("BadRequest");
    assert_eq!(bad.field_violations[0].field, "header");

    let get = lro::GetOperationRequest { name: "operations/none".into() };
    let mut operations = OperationsClient::new(client.channel.clone());
    let status = operations.get_operation(client.request(get)).await.expect_err("unknown");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));
    daemon.stop().await;
}

#[tokio::test]
async fn one_state_directory_has_one_daemon_and_a_stop_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(config(dir.path())).await.expect("started");
    match Daemon::start(config(dir.path())).await {
        Err(StartError::StateDir(error @ StateDirError::InUse { .. })) => {
            assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        }
        other => panic!("two daemons: {other:?}"),
    }
    assert!(dir.path().join("endpoint").exists(), "the refused one took nothing away");

    let client = Client::new(&daemon).await;
    let mut health = HealthClient::new(client.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("open").into_inner();
    let first = watch.message().await.expect("a status").expect("goes on");
    assert_eq!(first.status(), ServingStatus::Serving);
    let stopping = tokio::spawn(daemon.stop());
    let next = watch.message().await.expect("a status").expect("goes on");
    assert_eq!(next.status(), ServingStatus::NotServing);
    assert_eq!(watch.message().await.expect_err("ended").code(), Code::Unavailable);
    stopping.await.expect("stopped");
    assert!(!dir.path().join("endpoint").exists());

    let again = Daemon::start(config(dir.path())).await.expect("started again");
    let again_token = Client::new(&again).await.token;
    assert_eq!(again_token, client.token, "the admin token stays");
    again.stop().await;
}

#[tokio::test]
async fn other_addresses_than_loopback_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let config = Config { listen: "0.0.0.0:0".parse().expect("an address"), ..config(dir.path()) };
    let error = Daemon::start(config).await.expect_err("refused");
    assert!(error.to_string().starts_with("refusing to listen on 0.0.0.0:0"), "{error}");
}
