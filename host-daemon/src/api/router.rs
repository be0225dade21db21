//! All services behind one router, with the checks that every call goes through.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::HeaderValue;
use hvkube_proto::google::longrunning::operations_server::OperationsServer;
use hvkube_proto::v1;
use tonic::service::Routes;
use tonic_health::server::{HealthReporter, HealthService};
use tower::ServiceExt as _;

use super::deadline::{self, Stopping};
use super::tokens::Tokens;
use super::{agent, auth, desktop, health, host, lease, operations, pictures, pool, secret, template, vm};
use crate::guest::MAX_CLIPBOARD;
use crate::orchestrator::Orchestrator;

/// Largest request: a file part or text of 1 MiB, or a batch of 1024 events, with room around it.
const MAX_REQUEST: usize = 4 << 20;
/// The same for desktops, whose clipboards are larger.
const MAX_DESKTOP_REQUEST: usize = MAX_CLIPBOARD + (1 << 20);

/// What the services need.
pub(crate) struct Api {
    pub(crate) orchestrator: Orchestrator,
    pub(crate) tokens: Arc<Tokens>,
    /// Callers without the admin token may use `as_root`.
    pub(crate) allow_root: bool,
    pub(crate) stopping: Stopping,
}

/// Says whether the daemon serves.
#[derive(Clone)]
pub(crate) struct Health(HealthReporter);

impl Health {
    /// Not serving yet.
    pub(crate) async fn new() -> Self {
        let health = Self(HealthReporter::new());
        health.set(false).await;
        health
    }

    pub(crate) async fn set(&self, serving: bool) {
        health::set(&self.0, serving).await;
    }
}

impl Api {
    /// The router. Fails only when the descriptors that were compiled in are broken.
    pub(crate) fn router(self, health: &Health) -> Result<Router, tonic_reflection::server::Error> {
        let Self { orchestrator, tokens, allow_root, stopping } = self;
        let services = Services { orchestrator, allow_root };
        Ok(with_web(guarded(services.routes(health)?, tokens, stopping)))
    }
}

/// Serves gRPC-Web beside gRPC. It goes around all checks, so that refusals too are in the form that a browser's client
/// reads. There is no CORS: pages of other origins stay out. Requests of other kinds never see it.
pub(super) fn with_web(router: Router) -> Router {
    let web = router.clone().layer(tonic_web::GrpcWebLayer::new());
    router.layer(from_fn_with_state(web, web_or_native))
}

async fn web_or_native(State(web): State<Router>, request: Request, next: Next) -> Response {
    let kind = request.headers().get(http::header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !kind.starts_with(b"application/grpc-web") {
        return next.run(request).await;
    }
    match web.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Puts the checks around a router: the token first, so that a call without one learns nothing, then the deadline.
pub(super) fn guarded(routes: Router, tokens: Arc<Tokens>, stopping: Stopping) -> Router {
    routes
        .layer(from_fn_with_state(stopping, deadline::enforce))
        .layer(from_fn_with_state(tokens, auth::check))
}

struct Services {
    orchestrator: Orchestrator,
    allow_root: bool,
}

/// Adds a service of ours with its limit.
macro_rules! add {
    ($routes:ident, $server:ty, $service:expr) => {
        $routes = $routes.add_service(<$server>::new($service).max_decoding_message_size(MAX_REQUEST));
    };
}

impl Services {
    fn routes(self, health: &Health) -> Result<Router, tonic_reflection::server::Error> {
        let of = || self.orchestrator.clone();
        let desktop = Arc::new(desktop::DesktopService::new(of(), self.allow_root));
        let mut routes = Routes::default();
        add!(routes, v1::template_service_server::TemplateServiceServer<_>, template::TemplateService(of()));
        add!(routes, v1::pool_service_server::PoolServiceServer<_>, pool::PoolService(of()));
        add!(routes, v1::vm_service_server::VmServiceServer<_>, vm::VmService(of()));
        add!(routes, v1::lease_service_server::LeaseServiceServer<_>, lease::LeaseService(of()));
        let desktop_server = v1::desktop_service_server::DesktopServiceServer::from_arc(desktop.clone());
        routes = routes.add_service(desktop_server.max_decoding_message_size(MAX_DESKTOP_REQUEST));
        add!(routes, v1::agent_service_server::AgentServiceServer<_>, agent::AgentService(of()));
        add!(routes, v1::secret_service_server::SecretServiceServer<_>, secret::SecretService(of()));
        add!(routes, v1::host_service_server::HostServiceServer<_>, host::HostService(of()));
        add!(routes, OperationsServer<_>, operations::Operations(of()));
        let router = with_common(routes, health)?.into_axum_router();
        Ok(pictures::add(router, &desktop, MAX_REQUEST))
    }
}

/// Adds health and both versions of reflection; old clients know only v1alpha, new ones ask for v1 first.
pub(super) fn with_common(
    routes: Routes,
    health: &Health,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(hvkube_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    let service = HealthService::from_health_reporter(health.0.clone());
    Ok(routes
        .add_service(tonic_health::pb::health_server::HealthServer::new(service))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}
