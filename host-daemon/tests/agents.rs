//! `AgentService` over the wire, on the process backend without any VM: what is refused, kept, watched and streamed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvkube_host::config::{Config, Dirs, HypervisorKind, Workflow};
use hvkube_host::daemon::Daemon;
use hvkube_proto::v1;
use hvkube_proto::v1::agent_service_client::AgentServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Nothing here takes so long unless it is stuck.
const LONG: Duration = Duration::from_secs(60);

struct Client {
    agents: AgentServiceClient<Channel>,
    token: String,
}

impl Client {
    async fn new(daemon: &Daemon) -> Self {
        let state_dir = &daemon.config().state_dir;
        let endpoint = std::fs::read_to_string(state_dir.join("endpoint")).expect("published");
        let token = std::fs::read_to_string(state_dir.join("admin.token")).expect("written");
        let endpoint = Endpoint::from_shared(endpoint.trim().to_owned()).expect("an address");
        let channel = endpoint.connect().await.expect("listening");
        Self { agents: AgentServiceClient::new(channel), token: token.trim().into() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let header = format!("Bearer {}", self.token).parse().expect("legal");
        request.metadata_mut().insert("authorization", header);
        request
    }
}

fn config(state_dir: &Path) -> Config {
    let mut config = Config::defaults(state_dir);
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.hypervisor = HypervisorKind::Process;
    // Stands in for the guest agent: no desktop is made here.
    config.process.agent_binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/bin/true"));
    let own = Workflow {
        argv: vec!["true".into()],
        cwd: String::new(),
        timeout: Duration::from_secs(60),
        as_root: false,
        screenshot: false,
    };
    config.workflows = BTreeMap::from([("own".into(), own)]);
    config.resolve(&Dirs { run_base: None, ..Dirs::system() });
    config
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has ErrorInfo");
    assert_eq!(info.domain, "hvkube.dev");
    info.reason
}

fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().expect("BadRequest").field_violations.remove(0).field
}

#[tokio::test]
async fn every_method_refuses_what_is_wrong_and_names_it() {
    let dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(config(dir.path())).await.expect("started");
    let client = Client::new(&daemon).await;
    let mut agents = client.agents.clone();

    let status = agents.list_agents(v1::ListAgentsRequest::default()).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated);

    let task = v1::AgentTask { workflow: "book-flight".into(), ..Default::default() };
    let agent = v1::Agent { pool: "pools/none".into(), task: Some(task), ..Default::default() };
    let submit = v1::SubmitAgentRequest { agent: Some(agent), ..Default::default() };
    let status = agents.submit_agent(client.request(submit)).await.expect_err("no pool");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));
    assert_eq!(status.get_details_resource_info().expect("ResourceInfo").resource_name, "pools/none");
    let status = agents.submit_agent(client.request(v1::SubmitAgentRequest::default())).await;
    assert_eq!(field(&status.expect_err("no agent")), "agent");

    let get = v1::GetAgentRequest { name: "agents/none".into() };
    let status = agents.get_agent(client.request(get)).await.expect_err("unknown");
    assert_eq!(status.get_details_resource_info().expect("ResourceInfo").resource_name, "agents/none");
    let list = v1::ListAgentsRequest { page_size: -1, ..Default::default() };
    assert_eq!(field(&agents.list_agents(client.request(list)).await.expect_err("negative")), "page_size");
    let cancel = v1::CancelAgentRequest { name: "agents/none".into(), reason: "x".repeat(257) };
    assert_eq!(field(&agents.cancel_agent(client.request(cancel)).await.expect_err("long")), "reason");
    let watch = v1::WatchAgentsRequest { revision: "old".into(), ..Default::default() };
    let status = agents.watch_agents(client.request(watch)).await.expect_err("none that was given out");
    assert_eq!(field(&status), "revision");
    let claim = v1::ClaimAgentRequest { workflow: "own".into(), ..Default::default() };
    assert_eq!(field(&agents.claim_agent(client.request(claim)).await.expect_err("its own")), "workflow");
    let report = v1::ReportAgentRequest { name: "agents/none".into(), epoch: 1, ..Default::default() };
    let status = agents.report_agent(client.request(report)).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
    let complete = v1::CompleteAgentRequest { name: "agents/none".into(), ..Default::default() };
    assert_eq!(field(&agents.complete_agent(client.request(complete)).await.expect_err("no epoch")), "epoch");
    let shot = v1::GetAgentScreenshotRequest { name: "agents/none/screenshots/1".into() };
    let status = agents.get_agent_screenshot(client.request(shot)).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
    let logs = v1::ListAgentLogsRequest { parent: "none".into(), ..Default::default() };
    assert_eq!(field(&agents.list_agent_logs(client.request(logs)).await.expect_err("no name")), "parent");
    daemon.stop().await;
}

#[tokio::test]
async fn a_claim_waits_no_longer_than_asked_and_a_watch_ends_with_the_daemon() {
    let dir = tempfile::tempdir().expect("dir");
    let daemon = Daemon::start(config(dir.path())).await.expect("started");
    let client = Client::new(&daemon).await;
    let mut agents = client.agents.clone();
    let wait = Some(prost_types::Duration { seconds: 0, nanos: 5_000_000 });
    let claim = v1::ClaimAgentRequest { workflow: "book-flight".into(), wait, ..Default::default() };
    let answer = agents.claim_agent(client.request(claim)).await.expect("none is an answer").into_inner();
    assert_eq!(answer, v1::ClaimAgentResponse::default());

    let watch = client.request(v1::WatchAgentsRequest::default());
    let mut watch = agents.watch_agents(watch).await.expect("open").into_inner();
    let first = watch.message().await.expect("no error").expect("goes on");
    assert_eq!((first.phase(), first.agents.len()), (v1::WatchPhase::Synced, 0));
    assert!(!first.revision.is_empty());
    let stopping = tokio::spawn(daemon.stop());
    let ended = tokio::time::timeout(LONG, watch.message()).await.expect("in time").expect_err("ended");
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    stopping.await.expect("stopped");
}
