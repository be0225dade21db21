//! `grpc.health.v1.Health` for the daemon as a whole and for each of its services.

use hvkube_proto::google::longrunning::operations_server::OperationsServer;
use hvkube_proto::v1;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::{agent, desktop, host, lease, operations, pool, secret, template, vm};

/// All services with a health of their own; the empty name is the daemon.
pub(crate) const SERVICES: [&str; 10] = [
    "",
    v1::template_service_server::TemplateServiceServer::<template::TemplateService>::NAME,
    v1::pool_service_server::PoolServiceServer::<pool::PoolService>::NAME,
    v1::vm_service_server::VmServiceServer::<vm::VmService>::NAME,
    v1::lease_service_server::LeaseServiceServer::<lease::LeaseService>::NAME,
    v1::desktop_service_server::DesktopServiceServer::<desktop::DesktopService>::NAME,
    v1::agent_service_server::AgentServiceServer::<agent::AgentService>::NAME,
    v1::secret_service_server::SecretServiceServer::<secret::SecretService>::NAME,
    v1::host_service_server::HostServiceServer::<host::HostService>::NAME,
    OperationsServer::<operations::Operations>::NAME,
];

/// Says of all services whether they are served; those who watch are told at once.
pub(crate) async fn set(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in SERVICES {
        reporter.set_service_status(name, status).await;
    }
}
