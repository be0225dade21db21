//! A daemon inside another program: started, called over gRPC as any client would, and stopped.
//!
//! Run with `cargo run -p hvkube-host --example embedded target/debug/hvkube-guest`, the guest agent being built before.
//! It uses the process backend, which needs no virtual machines, and a state directory that goes away with it.

use std::path::PathBuf;

use anyhow::Context as _;
use hvkube_host::config::{Config, Dirs, HypervisorKind};
use hvkube_host::daemon::Daemon;
use hvkube_proto::v1;
use hvkube_proto::v1::host_service_client::HostServiceClient;
use tonic::Request;
use tonic::transport::Endpoint;

/// Starts a daemon whose desktops get this agent, asks it who it is, and stops it.
pub(crate) async fn run(agent: PathBuf) -> anyhow::Result<v1::Host> {
    let state_dir = tempfile::tempdir().context("make a state directory")?;
    let mut config = Config::defaults(state_dir.path());
    config.listen = "127.0.0.1:0".parse().context("parse the address")?;
    config.hypervisor = HypervisorKind::Process;
    config.process.agent_binary = agent;
    // Sockets go into the state directory too, instead of /run.
    config.resolve(&Dirs { run_base: None, ..Dirs::system() });

    let daemon = Daemon::start(config).await.context("start the daemon")?;
    let host = ask(&daemon).await;
    daemon.stop().await;
    host
}

async fn ask(daemon: &Daemon) -> anyhow::Result<v1::Host> {
    let channel = Endpoint::from_shared(format!("http://{}", daemon.address()))?.connect().await?;
    let token = std::fs::read_to_string(daemon.config().state_dir.join("admin.token"))?;
    let mut request = Request::new(v1::GetHostRequest { name: "hosts/-".into() });
    request.metadata_mut().insert("authorization", format!("Bearer {}", token.trim()).parse()?);
    Ok(HostServiceClient::new(channel).get_host(request).await?.into_inner())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let agent = std::env::args_os().nth(1).context("usage: embedded PATH-OF-HVKUBE-GUEST")?;
    let host = run(agent.into()).await?;
    println!("{} runs {} {}", host.name, host.hypervisor, host.hypervisor_version);
    Ok(())
}
