//! The real daemon on the simulated hypervisor, and hands that use it as clients do.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test takes the part it needs")]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hvkube_proto::google::longrunning as lro;
use hvkube_proto::google::longrunning::operations_client::OperationsClient;
use hvkube_proto::v1;
use tokio::process::{Child, Command};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Daemon {
    child: Child,
    pub channel: Channel,
    pub token: String,
}

impl Daemon {
    pub async fn start(state_dir: &Path) -> Self {
        Self::start_with(state_dir, "warn", Stdio::inherit()).await
    }

    /// With so much of a log, and a place for it.
    pub async fn start_with(state_dir: &Path, level: &str, log: Stdio) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_hvkubed"))
            .env("HVKUBED_STATE_DIR", state_dir)
            .env("HVKUBED_RUN_DIR", state_dir.join("run"))
            .env("HVKUBED_LISTEN", "127.0.0.1:0")
            .env("HVKUBED_HYPERVISOR", "sim")
            .env("HVKUBED_SIM__PROFILE", "instant")
            .env("HVKUBED_ORCHESTRATOR__SETTLE_QUIET", "50ms")
            .env("HVKUBED_LOG__LEVEL", level)
            // A stop that has to wait for a call takes too long for every test.
            .env("HVKUBED_SHUTDOWN__DRAIN_TIMEOUT", "10m")
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("hvkubed starts");
        let deadline = Instant::now() + PATIENCE;
        let (endpoint, token) = loop {
            let read = |name| std::fs::read_to_string(state_dir.join(name));
            match (read("endpoint"), read("admin.token")) {
                (Ok(endpoint), Ok(token)) => break (endpoint.trim().to_owned(), token.trim().to_owned()),
                _ => assert!(Instant::now() < deadline, "the daemon does not serve"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let channel =
            Endpoint::from_shared(endpoint).expect("an address").connect().await.expect("listening");
        Self { child, channel, token }
    }

    /// `kill -9`. The file that tells where it listened goes, so that it is not taken for the next one's.
    pub async fn kill(mut self, state_dir: &Path) {
        self.child.kill().await.expect("killed");
        std::fs::remove_file(state_dir.join("endpoint")).expect("left behind");
    }

    /// Stops it in order.
    pub async fn stop(mut self) {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?));
        rustix::process::kill_process(pid.expect("runs"), rustix::process::Signal::TERM).expect("told");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("stops in time");
        assert!(status.expect("waited for").success(), "in order");
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let header = format!("Bearer {}", self.token).parse().expect("legal");
        request.metadata_mut().insert("authorization", header);
        request
    }

    pub async fn host(&self) -> v1::Host {
        let mut hosts = v1::host_service_client::HostServiceClient::new(self.channel.clone());
        let get = v1::GetHostRequest { name: "hosts/-".into() };
        hosts.get_host(self.request(get)).await.expect("a host").into_inner()
    }

    pub async fn template(&self) {
        let mut templates = v1::template_service_client::TemplateServiceClient::new(self.channel.clone());
        let source = v1::TemplateSource { disk_path: "/no/such/disk".into(), ..Default::default() };
        let display = v1::DisplaySize { width: 640, height: 400 };
        let create = v1::CreateTemplateRequest {
            template_id: "desk".into(),
            template: Some(v1::Template {
                source: Some(source),
                display: Some(display),
                ..Default::default()
            }),
            ..Default::default()
        };
        let operation = templates.create_template(self.request(create)).await.expect("begun").into_inner();
        let wait = lro::WaitOperationRequest {
            name: operation.name,
            timeout: Some(prost_types::Duration { seconds: 50, nanos: 0 }),
        };
        let mut operations = OperationsClient::new(self.channel.clone());
        let ended = operations.wait_operation(self.request(wait)).await.expect("waited").into_inner();
        assert!(ended.done && matches!(ended.result, Some(lro::operation::Result::Response(_))), "{ended:?}");
    }

    pub async fn pool(&self, desired_count: u32) {
        let mut pools = v1::pool_service_client::PoolServiceClient::new(self.channel.clone());
        let pool = v1::Pool { template: "templates/desk".into(), desired_count, ..Default::default() };
        let create =
            v1::CreatePoolRequest { pool_id: "desks".into(), pool: Some(pool), ..Default::default() };
        pools.create_pool(self.request(create)).await.expect("a pool");
    }

    pub async fn vms(&self) -> Vec<v1::Vm> {
        let mut vms = v1::vm_service_client::VmServiceClient::new(self.channel.clone());
        let list = v1::ListVmsRequest { page_size: 1000, ..Default::default() };
        vms.list_vms(self.request(list)).await.expect("a list").into_inner().vms
    }

    /// Waits until so many VMs are saved and the others run.
    pub async fn settled(&self, saved: usize, running: usize) -> Vec<v1::Vm> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let vms = self.vms().await;
            let count = |state| vms.iter().filter(|vm| vm.state() == state).count();
            if count(v1::VmState::Saved) == saved && count(v1::VmState::Running) == running {
                assert_eq!(vms.len(), saved + running, "none lost, none double");
                return vms;
            }
            let states: Vec<_> = vms.iter().map(v1::Vm::state).collect();
            assert!(Instant::now() < deadline, "{states:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn lease(&self) -> String {
        self.lease_as(&self.token).await
    }

    pub async fn lease_as(&self, token: &str) -> String {
        let mut leases = v1::lease_service_client::LeaseServiceClient::new(self.channel.clone());
        let wait = Some(prost_types::Duration { seconds: 50, nanos: 0 });
        let acquire = v1::AcquireVmRequest { pool: "pools/desks".into(), wait, ..Default::default() };
        let answer = leases.acquire_vm(self.request_as(token, acquire)).await.expect("a lease").into_inner();
        answer.lease.expect("a lease").name
    }

    pub fn desktop(&self) -> v1::desktop_service_client::DesktopServiceClient<Channel> {
        v1::desktop_service_client::DesktopServiceClient::new(self.channel.clone())
    }

    pub async fn type_text(&self, target: &str, text: &str) {
        let text = v1::TextEvent { text: text.into(), ..Default::default() };
        let event = v1::InputEvent { event: Some(v1::input_event::Event::Text(text)) };
        let send = v1::SendInputRequest { target: target.into(), events: vec![event], ..Default::default() };
        self.desktop().send_input(self.request(send)).await.expect("typed");
    }

    /// Once the guest's agent is there again.
    pub async fn screenshot(&self, target: &str) -> bytes::Bytes {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let take = v1::TakeScreenshotRequest { target: target.into(), ..Default::default() };
            match self.desktop().take_screenshot(self.request(take)).await {
                Ok(answer) => return answer.into_inner().image,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same daemon for the holder of another token.
    pub fn request_as<T>(&self, token: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("legal"));
        request
    }

    /// Does events, as [`Daemon::type_text`] does one.
    pub async fn input(
        &self,
        target: &str,
        events: Vec<v1::input_event::Event>,
    ) -> Result<v1::SendInputResponse, tonic::Status> {
        let events = events.into_iter().map(|event| v1::InputEvent { event: Some(event) }).collect();
        let send = v1::SendInputRequest { target: target.into(), events, ..Default::default() };
        Ok(self.desktop().send_input(self.request(send)).await?.into_inner())
    }

    /// Does one event, which must succeed.
    pub async fn send(&self, target: &str, event: v1::input_event::Event) {
        self.input(target, vec![event]).await.expect("done");
    }

    /// The text in the field of the desktop.
    pub async fn text(&self, target: &str) -> String {
        self.remembers(target).await["text"].as_str().expect("a text").to_owned()
    }

    /// What the guest's desktop remembers: its program of that name prints it as JSON.
    pub async fn remembers(&self, target: &str) -> serde_json::Value {
        let exec =
            v1::ExecRequest { target: target.into(), argv: vec!["desktop".into()], ..Default::default() };
        let mut events = self.desktop().exec(self.request(exec)).await.expect("runs").into_inner();
        let mut printed = Vec::new();
        while let Some(event) = events.message().await.expect("goes on") {
            if let Some(v1::exec_response::Event::Stdout(piece)) = event.event {
                printed.extend_from_slice(&piece);
            }
        }
        serde_json::from_slice(&printed).expect("json")
    }

    /// Gives a lease back, and its VM to its clean state.
    pub async fn release(&self, lease: &str) {
        self.release_as(&self.token, lease).await;
    }

    pub async fn release_as(&self, token: &str, lease: &str) {
        let mut leases = v1::lease_service_client::LeaseServiceClient::new(self.channel.clone());
        let policy = v1::ReleasePolicy::Reset.into();
        let release = v1::ReleaseVmRequest { name: lease.into(), policy };
        leases.release_vm(self.request_as(token, release)).await.expect("released");
    }
}

/// A chord, as `ctrl+a`.
pub fn chord(keys: &str) -> v1::input_event::Event {
    v1::input_event::Event::Chord(v1::ChordEvent { keys: keys.into(), hold: None })
}
