//! HTTP/2 on a guest's stream, as the generated clients want it.
//!
//! Not tonic's channel: that one connects again by itself, and queues for it in a task of its own; here one stream is one
//! session. A daemon holds one of these per running VM and makes one per resume, so it is to be small and soon there.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tonic::body::Body;
use tower::Service;

use super::error::GuestError;
use super::limits::{CONNECTION_WINDOW, MAX_HEADERS, STREAM_WINDOW};
use super::port::Port;
use super::session::{PING_EVERY, PING_TIMEOUT};

/// Fewer, larger frames: each costs the guest a system call.
const MAX_FRAME: u32 = 1 << 20;

/// The way to a guest's services. Clones share the connection, which ends with the last of them.
#[derive(Clone, Debug)]
pub(super) struct Http2(SendRequest<Body>);

impl Http2 {
    /// Begins on a stream that has its preface behind it.
    pub(super) async fn open(port: &Port) -> Result<Self, GuestError> {
        let (requests, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            // A table for headers that repeat takes 20 KiB of both ends and saves 100 bytes of a call.
            .header_table_size(0)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(port.io()))
            .await
            .map_err(|error| GuestError::Lost(error.to_string()))?;
        tokio::spawn(async move {
            // Why it ended is known from the port.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a guest's connection broke");
            }
        });
        Ok(Self(requests))
    }
}

impl Service<Request<Body>> for Http2 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Response<Incoming>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clients only know paths.
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::from_static("guest"));
        // A path with scheme and authority is always a URI.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        Box::pin(self.0.send_request(request))
    }
}
