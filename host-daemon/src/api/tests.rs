//! The API as a client sees it, through the generated clients over the router, without a network.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::HeaderValue;
use hvkube_proto::v1;
use hvkube_proto::v1::host_service_server::{HostService, HostServiceServer};
use tokio_stream::StreamExt as _;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;
use tower::ServiceExt as _;

use super::deadline::{Deadline, Stopping};
use super::health::SERVICES;
use super::router::{Health, guarded, with_common, with_web};
use super::tokens::Tokens;
use crate::orchestrator::request::Caller;

/// Stands in for any service: says who called and how long they wait.
struct Probe;

#[tonic::async_trait]
impl HostService for Probe {
    type WatchEventsStream = tokio_stream::Empty<Result<v1::WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        _: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn backup_store(
        &self,
        _: Request<v1::BackupStoreRequest>,
    ) -> Result<Response<hvkube_proto::google::longrunning::Operation>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        assert!(!request.metadata().contains_key("grpc-timeout"), "tonic would answer it with CANCELLED");
        if request.get_ref().name == "hang" {
            std::future::pending::<()>().await;
        }
        let caller = request.extensions().get::<Caller>().expect("a caller").clone();
        let left = request.extensions().get::<Deadline>().map(|deadline| deadline.left());
        Ok(Response::new(v1::Host {
            name: caller.name,
            cpu_count: u32::from(caller.admin),
            load1: left.map_or(0.0, |left| left.as_secs_f64()),
            ..Default::default()
        }))
    }
}

struct Served {
    router: Router,
    health: Health,
    stopping: Stopping,
    tokens: Arc<Tokens>,
    admin: String,
    _dir: tempfile::TempDir,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().expect("dir");
    let tokens = Arc::new(Tokens::new(dir.path()));
    tokens.ensure_admin().expect("made");
    let admin = std::fs::read_to_string(tokens.admin_path()).expect("there").trim().to_owned();
    let (health, stopping) = (Health::new().await, Stopping::default());
    let routes = with_common(Routes::new(HostServiceServer::new(Probe)), &health).expect("descriptors");
    let router = with_web(guarded(routes.into_axum_router(), tokens.clone(), stopping.clone()));
    Served { router, health, stopping, tokens, admin, _dir: dir }
}

/// A call as it comes off the wire, for what tonic's client would do itself.
async fn raw(served: &Served, path: &str, message: &impl prost::Message, timeout: &str) -> Status {
    let mut frame = vec![0];
    let body = message.encode_to_vec();
    frame.extend(u32::try_from(body.len()).expect("short").to_be_bytes());
    frame.extend(body);
    let mut request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", served.admin))
        .body(Body::from(frame))
        .expect("legal");
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_str(timeout).expect("legal"));
    let response = served.router.clone().oneshot(request).await.expect("infallible");
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body");
    Status::from_header_map(body.trailers().expect("trailers")).expect("a status")
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("legal"));
    request
}

async fn get_host(served: &Served, authorization: Option<&str>) -> Result<v1::Host, Status> {
    let mut request = Request::new(v1::GetHostRequest { name: "hosts/-".into() });
    if let Some(text) = authorization {
        request.metadata_mut().insert("authorization", text.parse().expect("legal"));
    }
    let mut client = v1::host_service_client::HostServiceClient::new(served.router.clone());
    client.get_host(request).await.map(Response::into_inner)
}

#[tokio::test]
async fn calls_need_a_token_and_are_told_where_it_is() {
    let served = served().await;
    for authorization in [None, Some("Basic abc"), Some("Bearer"), Some("Bearer wrong"), Some("")] {
        let status = get_host(&served, authorization).await.expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization:?}");
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("TOKEN_MISSING_OR_UNKNOWN", "hvkube.dev"));
        assert!(status.message().contains("admin.token"), "{}", status.message());
    }
    let admin = get_host(&served, Some(&format!("bearer {}", served.admin))).await.expect("let in");
    assert_eq!((admin.name.as_str(), admin.cpu_count), ("admin", 1));

    let token = served.tokens.add("ci").expect("made");
    let named = get_host(&served, Some(&format!("Bearer {token}"))).await.expect("let in");
    assert_eq!((named.name.as_str(), named.cpu_count), ("ci", 0));
    served.tokens.revoke("ci").expect("revoked");
    get_host(&served, Some(&format!("Bearer {token}"))).await.expect_err("revoked");
}

#[tokio::test]
async fn a_call_without_a_token_does_not_learn_what_exists() {
    let served = served().await;
    for path in ["/hvkube.v1.NoService/Nothing", "/hvkube.v1.HostService/Nothing", "/"] {
        let request = http::Request::post(path)
            .header("content-type", "application/grpc")
            .body(Body::empty())
            .expect("legal");
        let response = served.router.clone().oneshot(request).await.expect("infallible");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), Code::Unauthenticated, "{path}");
    }
}

#[tokio::test]
async fn browsers_speak_grpc_web_and_are_refused_in_it() {
    let served = served().await;
    let message = prost::Message::encode_to_vec(&v1::GetHostRequest { name: "hosts/-".into() });
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
    frame.extend(message);
    for (token, status) in [(served.admin.as_str(), "grpc-status:0"), ("wrong", "grpc-status:16")] {
        let request = http::Request::post("/hvkube.v1.HostService/GetHost")
            .version(http::Version::HTTP_11)
            .header("content-type", "application/grpc-web+proto")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::from(frame.clone()))
            .expect("legal");
        let response = served.router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), http::StatusCode::OK);
        let headers = format!("{:?}", response.headers());
        let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        let told = body.contains(status) || headers.contains(&status.replace(':', "\": \""));
        assert!(told, "{token}: {headers} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_handler_gives_deadline_exceeded() {
    let served = served().await;
    let hang = v1::GetHostRequest { name: "hang".into() };
    let status = raw(&served, "/hvkube.v1.HostService/GetHost", &hang, "50m").await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(info.reason, "DEADLINE_EXCEEDED");

    let quick = v1::GetHostRequest { name: "hosts/-".into() };
    let status = raw(&served, "/hvkube.v1.HostService/GetHost", &quick, "10S").await;
    assert_eq!(status.code(), Code::Ok);
    let status = raw(&served, "/hvkube.v1.HostService/GetHost", &quick, "soon").await;
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_deadline() {
    let served = served().await;
    let watch = HealthCheckRequest { service: String::new() };
    let status = raw(&served, "/grpc.health.v1.Health/Watch", &watch, "1S").await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn handlers_see_what_is_left_of_the_time() {
    let served = served().await;
    let mut request = with_token(v1::GetHostRequest { name: "hosts/-".into() }, &served.admin);
    request.set_timeout(Duration::from_secs(3600));
    let mut client = v1::host_service_client::HostServiceClient::new(served.router.clone());
    let left = client.get_host(request).await.expect("let in").into_inner().load1;
    assert!(left > 3000.0 && left <= 3600.0, "{left}");
}

#[tokio::test]
async fn health_is_open_and_follows_the_daemon() {
    let served = served().await;
    let mut client = HealthClient::new(served.router.clone());
    let mut watch =
        client.watch(HealthCheckRequest { service: String::new() }).await.expect("open").into_inner();
    let seen = |answer: Option<Result<tonic_health::pb::HealthCheckResponse, Status>>| {
        answer.expect("goes on").expect("a status").status()
    };
    assert_eq!(seen(watch.next().await), ServingStatus::NotServing);
    served.health.set(true).await;
    assert_eq!(seen(watch.next().await), ServingStatus::Serving);
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.into() };
        let answer = client.check(request).await.expect("known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "none".into() };
    assert_eq!(client.check(unknown).await.expect_err("unknown").code(), Code::NotFound);

    served.health.set(false).await;
    served.stopping.begun.cancel();
    assert_eq!(seen(watch.next().await), ServingStatus::NotServing, "said before the end");
    let end = watch.next().await.expect("an end").expect_err("a status");
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(end.get_details_error_info().expect("ErrorInfo").reason, "SHUTTING_DOWN");
}

#[tokio::test]
async fn when_the_time_to_drain_is_over_calls_end() {
    let served = served().await;
    let mut client = v1::host_service_client::HostServiceClient::new(served.router.clone());
    let request = with_token(v1::GetHostRequest { name: "hang".into() }, &served.admin);
    let call = tokio::spawn(async move { client.get_host(request).await });
    tokio::task::yield_now().await;
    served.stopping.begun.cancel();
    tokio::task::yield_now().await;
    assert!(!call.is_finished(), "a call that has an end may reach it");
    served.stopping.over.cancel();
    let status = call.await.expect("no panic").expect_err("ended");
    assert_eq!(status.code(), Code::Unavailable);
}

/// The names that a reflection client of one version lists; the two differ in nothing but their package.
macro_rules! listed {
    ($version:ident, $served:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let questions = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("hvkube.v1.DesktopService".into())),
        ]);
        let mut client = ServerReflectionClient::new($served.router.clone());
        let request = with_token(questions, &$served.admin);
        let mut answers = client.server_reflection_info(request).await.expect("let in").into_inner();
        let first = answers.next().await.expect("an answer").expect("no error").message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = first else { panic!("no list") };
        let second = answers.next().await.expect("an answer").expect("no error").message_response;
        assert!(matches!(second, Some(MessageResponse::FileDescriptorResponse(_))));
        let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        names.sort();
        names
    }};
}

#[tokio::test]
async fn both_versions_of_reflection_list_every_service() {
    let served = served().await;
    let mut expected: Vec<_> =
        SERVICES.iter().filter(|name| !name.is_empty()).map(|name| (*name).to_owned()).collect();
    expected.extend(
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
        .map(String::from),
    );
    expected.sort();
    assert_eq!(listed!(v1, served), expected);
    assert_eq!(listed!(v1alpha, served), expected);

    let mut client = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
        served.router.clone(),
    );
    let questions = tokio_stream::iter(std::iter::empty());
    let refused = client.server_reflection_info(questions).await.expect_err("no token");
    assert_eq!(refused.code(), Code::Unauthenticated);
}
