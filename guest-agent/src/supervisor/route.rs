//! Hands calls on to the worker as they are: a request's head and body go through as HTTP/2, nothing is decoded.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor as _;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::session::ScopedExecutor;

/// The services that are served here.
pub type Routes = tonic::service::Routes;
type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

/// What is the worker's to serve.
const DESKTOP_SERVICES: [&str; 2] = ["/hvkube.guest.v1.DisplayService/", "/hvkube.guest.v1.DesktopService/"];
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const MAX_FRAME: u32 = 1 << 20;

/// Makes a stream to the worker; a worker takes a stream for a session of its own.
#[async_trait]
pub trait Connect: Send + Sync {
    /// A new stream to the worker that runs now.
    ///
    /// # Errors
    /// When there is none.
    async fn connect(&self) -> io::Result<UnixStream>;
}

/// One session's connection to the desktop's worker, made at the first call and again when the worker was replaced.
#[derive(Clone)]
pub struct Desktop {
    shared: Arc<Shared>,
}

struct Shared {
    worker: Arc<dyn Connect>,
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    sender: SendRequest<Body>,
    /// Dropping it closes the stream, whatever is in flight; the worker then drops what it holds for this session.
    _alive: DropGuard,
}

impl Desktop {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(worker: Arc<dyn Connect>) -> Self {
        Self { shared: Arc::new(Shared { worker, connection: Mutex::new(None) }) }
    }

    async fn sender(&self) -> Result<SendRequest<Body>, Status> {
        let mut connection = self.shared.connection.lock().await;
        if let Some(connection) = &*connection
            && !connection.sender.is_closed()
        {
            return Ok(connection.sender.clone());
        }
        let unavailable =
            |e: &dyn std::fmt::Display| Status::unavailable(format!("the desktop is not ready: {e}"));
        let stream = self.shared.worker.connect().await.map_err(|e| unavailable(&e))?;
        let closed = CancellationToken::new();
        let executor = ScopedExecutor(closed.clone());
        let (sender, driver) = http2::Builder::new(executor.clone())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| unavailable(&e))?;
        executor.execute(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to the worker broke");
            }
        });
        *connection = Some(Connection { sender: sender.clone(), _alive: closed.drop_guard() });
        Ok(sender)
    }

    async fn forward(self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let mut sender = self.sender().await?;
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme.get_or_insert(Scheme::HTTP);
        uri.authority.get_or_insert(Authority::from_static("worker"));
        *request.uri_mut() = Uri::from_parts(uri).map_err(|e| Status::internal(e.to_string()))?;
        match sender.send_request(request).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) => Err(Status::unavailable(format!("the desktop's worker went away: {error}"))),
        }
    }
}

impl Service<Request<Body>> for Desktop {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Answer<Status>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().forward(request))
    }
}

/// All services of one session: the desktop's go to the worker, the others are served here.
#[derive(Clone)]
pub struct Routed {
    local: Routes,
    desktop: Option<Desktop>,
}

impl Routed {
    /// Without a `desktop`, everything is served by `local`.
    #[must_use]
    pub fn new(local: Routes, desktop: Option<Desktop>) -> Self {
        Self { local: local.prepare(), desktop }
    }
}

impl Service<Request<hyper::body::Incoming>> for Routed {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<hyper::body::Incoming>) -> Self::Future {
        match &self.desktop {
            Some(desktop) if DESKTOP_SERVICES.iter().any(|own| request.uri().path().starts_with(own)) => {
                let answer = desktop.clone().forward(request.map(Body::new));
                Box::pin(async move { Ok(answer.await.unwrap_or_else(Status::into_http)) })
            }
            _ => Box::pin(self.local.call(request)),
        }
    }
}
