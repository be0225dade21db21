//! One session: the preface, then gRPC on the stream until it ends, then nothing of it is left.
//!
//! ```text
//! host away --opens--> HELLO sent --WELCOME with our nonce--> serving --stream ends--> host away
//! ```
//!
//! A session owns every task that serves it: when the stream ends they are dropped, and what they hold (programs, keys
//! held down, waits) ends with them.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hvkube_proto::preface::{Hello, PrefaceError, VERSION, WELCOME_LEN, Welcome, WelcomeScanner};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use crate::transport::{Stream, Transport};

/// What one stream and one connection may have in flight: a full frame fits twice.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Fewer, larger frames: each costs a system call, and under emulation those are dear.
const MAX_FRAME: u32 = 1 << 20;
/// Calls at once; the host's own bounds are far lower.
const MAX_STREAMS: u32 = 128;
/// A host that breaks sessions at once (another version, say) is not answered in a tight loop.
const SHORT_SESSION: Duration = Duration::from_millis(500);

/// Why a stream did not become a session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream ended or broke.
    #[error("the stream broke")]
    Io(#[from] io::Error),
    /// The host speaks another version.
    #[error("the host speaks version {0} of the guest protocol, this agent {VERSION}")]
    Version(u8),
    /// Nothing but noise.
    #[error(transparent)]
    Preface(#[from] PrefaceError),
    /// No random bytes for the nonce.
    #[error("no random nonce")]
    Random(#[from] getrandom::Error),
}

/// Greets the host and waits for the answer that repeats our nonce; gives the session's epoch.
///
/// A WELCOME with another nonce answers an older HELLO and is skipped; [`Welcome::KNOCK`] is answered with a new HELLO.
///
/// # Errors
/// When the stream ends, or the host speaks another version.
pub async fn greet(stream: &mut dyn Stream, secret: [u8; 32]) -> Result<u64, HandshakeError> {
    let mut nonce = send_hello(stream, secret).await?;
    let mut scanner = WelcomeScanner::default();
    let mut buf = [0; 64];
    loop {
        let want = scanner.wanted().min(buf.len());
        let n = stream.read(&mut buf[..want]).await?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let Some(Welcome { version, nonce: answered, epoch }) = scanner.feed(&buf[..n])? else { continue };
        if answered == nonce {
            return if version == VERSION { Ok(epoch) } else { Err(HandshakeError::Version(version)) };
        }
        if answered == Welcome::KNOCK.nonce {
            nonce = send_hello(stream, secret).await?;
        }
    }
}

async fn send_hello(stream: &mut dyn Stream, secret: [u8; 32]) -> Result<[u8; 16], HandshakeError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    stream.write_all(&Hello { version: VERSION, nonce, secret }.encode()).await?;
    stream.flush().await?;
    Ok(nonce)
}

/// Ends the session when the host knocks: then it is another host, and the port's closing in between was too quick to see.
///
/// The knock comes when nothing else does, so it is looked for only where a read gives it and nothing more; in the middle
/// of a frame it counts too, since a host that died may have left half of one.
struct UntilKnock<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for UntilKnock<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        if read.len() >= WELCOME_LEN && read.chunks(WELCOME_LEN).all(|part| part == Welcome::KNOCK.encode()) {
            buf.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UntilKnock<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Spawns a connection's tasks so that all of them are dropped with it, whatever they wait for.
#[derive(Clone, Debug)]
pub struct ScopedExecutor(pub CancellationToken);

impl<F> hyper::rt::Executor<F> for ScopedExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let ended = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                _ = future => {}
            }
        });
    }
}

/// Serves gRPC on `stream` until it ends.
///
/// # Errors
/// When the stream breaks in the middle of a frame or carries something that isn't HTTP/2.
pub async fn serve<S>(stream: impl Stream + 'static, service: S) -> Result<(), hyper::Error>
where
    S: Service<Request<hyper::body::Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let ended = CancellationToken::new();
    let _drop_tasks = ended.clone().drop_guard();
    hyper::server::conn::http2::Builder::new(ScopedExecutor(ended))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        // A table for headers that repeat takes more memory at both ends than it saves on the way.
        .header_table_size(0)
        // Whole frames are queued; the stream's own flow control is the bound.
        .max_send_buf_size(1 << 20)
        .serve_connection(TokioIo::new(UntilKnock(stream)), TowerToHyperService::new(service))
        .await
}

/// Serves session after session; `begin` makes the services of one, and is handed its epoch.
///
/// # Errors
/// When the transport itself is gone.
pub async fn run<S, B, F>(transport: &mut dyn Transport, mut begin: B) -> io::Result<Infallible>
where
    B: FnMut(u64) -> F,
    F: Future<Output = S>,
    S: Service<Request<hyper::body::Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    tracing::info!(transport = transport.describe(), "waiting for the host");
    loop {
        let mut stream = transport.open().await?;
        let opened = Instant::now();
        match greet(&mut stream, transport.secret()).await {
            Ok(epoch) => {
                // The host logs sessions. A line here would wake the journal in the middle of every resume.
                tracing::debug!(epoch, "session begins");
                match serve(stream, begin(epoch).await).await {
                    Ok(()) => tracing::debug!(epoch, "session ended"),
                    Err(error) => tracing::debug!(epoch, %error, "session broke"),
                }
            }
            Err(HandshakeError::Io(error)) => {
                tracing::debug!(%error, "host went away before the session began");
            }
            Err(error) => tracing::warn!(%error, "no session"),
        }
        if let Some(rest) = SHORT_SESSION.checked_sub(opened.elapsed()) {
            // Does not delay a host that was here for longer, and only a little one that comes back at once.
            tokio::time::sleep(rest.min(Duration::from_millis(20))).await;
        }
    }
}
