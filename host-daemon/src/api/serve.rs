//! The listener: connections, their limits, and how they end.
//!
//! We run our own accept loop instead of tonic's, so that one port can serve gRPC over HTTP/2 now and other forms over
//! HTTP/1 later, and because tonic's turns deadlines into `CANCELLED`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::deadline::Stopping;

/// Enough for every agent of a fleet with a connection of its own, and bounds what open connections cost.
const MAX_CONNECTIONS: usize = 1024;
/// Calls at once on a connection.
const MAX_STREAMS: u32 = 256;
/// What a client may send ahead on a stream: a few parts of a file.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Past this a stream gives no more: a slow reader of screenshots then finds one picture in its way and not many.
const SEND_BUFFER: usize = 256 << 10;
/// Metadata of a call.
const MAX_HEADERS: u32 = 32 << 10;
/// A dead client is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// From the moment that everything ends to the moment that connections are dropped: their last words go out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the daemon can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It would be reachable from other machines.
    #[error(
        "refusing to listen on {0}: calls are neither encrypted nor limited by roles yet, so only loopback \
         addresses (127.0.0.1, [::1]) are served; use an SSH tunnel to reach this host from another one"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken or not ours.
    #[error("can't listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds the address, which must be loopback; port 0 takes a free one.
///
/// # Errors
/// [`ListenError`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })
}

/// Serves until `stopping.begun`, then drains until nothing is left or `stopping.over`.
pub(crate) async fn run(listener: TcpListener, router: Router, stopping: Stopping) {
    let builder = Arc::new(builder());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        // The permit comes first: beyond the limit, clients wait in the kernel's queue.
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = stopping.begun.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (builder, router, stopping) = (builder.clone(), router.clone(), stopping.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = connection(&builder, stream, router, stopping).await {
                        tracing::debug!(%peer, error = &*error, "a connection ended with an error");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely; a pause lets some come free.
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    builder
}

async fn connection(
    builder: &Builder<TokioExecutor>,
    stream: TcpStream,
    router: Router,
    stopping: Stopping,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stopping.begun.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let over = async {
        stopping.over.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = over => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_loopback_is_listened_on() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7420", "[::ffff:192.0.2.1]:0"] {
            let address = address.parse().expect("an address");
            let error = bind(address).await.expect_err("refused");
            assert!(matches!(error, ListenError::NotLoopback(_)));
            assert!(error.to_string().contains(&address.to_string()));
        }
        let first = bind("127.0.0.1:0".parse().expect("an address")).await.expect("free port");
        let taken = first.local_addr().expect("bound");
        assert!(matches!(bind(taken).await, Err(ListenError::Bind { .. })));
    }
}
