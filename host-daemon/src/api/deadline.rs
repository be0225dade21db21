//! Deadlines of calls.
//!
//! A client's `grpc-timeout` is taken out of the request here, because tonic would answer a late call with `CANCELLED`.
//! A handler that is late is dropped, which cancels what it was waiting for, and the call ends with
//! `DEADLINE_EXCEEDED`; so does a stream in the middle. What is left of the time is found in the request's extensions.
//!
//! The same wrapper ends streams when the daemon stops: those without an end of their own at once, the others when the
//! time to drain is over.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::model::error::{Error, Reason};

/// When the client's time is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Instant);

impl Deadline {
    /// What is left of it.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Longest life of any call; also keeps huge timeouts from overflowing the clock.
const MAX_CALL: Duration = Duration::from_secs(24 * 3600);

/// Streams that never end by themselves.
const ENDLESS: &[&str] = &[
    "/hvkube.v1.DesktopService/StreamScreenshots",
    "/hvkube.v1.DesktopService/StreamInput",
    "/hvkube.v1.VmService/ConnectConsole",
    "/hvkube.v1.VmService/WatchVms",
    "/hvkube.v1.PoolService/WatchPools",
    "/hvkube.v1.HostService/WatchEvents",
    "/hvkube.v1.AgentService/WatchAgents",
    "/grpc.health.v1.Health/Watch",
];

/// The two moments of a shutdown that calls must know of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopping {
    /// No new work; streams without an end are ended.
    pub(crate) begun: CancellationToken,
    /// The time to drain is over: everything ends.
    pub(crate) over: CancellationToken,
}

/// Middleware that ends calls in time.
pub(crate) async fn enforce(State(stopping): State<Stopping>, mut request: Request, next: Next) -> Response {
    let now = Instant::now();
    let mut end = now + MAX_CALL;
    if let Some(header) = request.headers_mut().remove("grpc-timeout") {
        let Some(timeout) = parse(&header) else {
            let what = "must be 1 to 8 digits and a unit of H, M, S, m, u, n";
            return Status::from(Error::field("grpc-timeout", what)).into_http();
        };
        end = end.min(now + timeout.min(MAX_CALL));
        request.extensions_mut().insert(Deadline(end));
    }
    let endless = ENDLESS.contains(&request.uri().path());
    let stop = if endless { stopping.begun } else { stopping.over };
    tokio::select! {
        response = next.run(request) => response.map(|body| {
            Body::new(Expiring {
                body: Some(body),
                sleep: Box::pin(sleep_until(end)),
                stop: Box::pin(stop.cancelled_owned()),
                last_word: false,
            })
        }),
        () = sleep_until(end) => late().into_http(),
        () = stop.cancelled() => stopped().into_http(),
    }
}

fn late() -> Status {
    Error::new(Reason::DeadlineExceeded, "the call's deadline passed").into()
}

fn stopped() -> Status {
    Error::new(Reason::ShuttingDown, "the daemon is stopping").retry_after(Duration::from_secs(5)).into()
}

/// `TimeoutValue TimeoutUnit` of the gRPC specification.
fn parse(header: &HeaderValue) -> Option<Duration> {
    let text = header.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// A response body that ends with a status of its own when the time is over.
struct Expiring {
    /// Absent once it is ended.
    body: Option<Body>,
    sleep: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What was ready when the daemon began to stop has been sent: who watches health is told before it ends.
    last_word: bool,
}

impl http_body::Body for Expiring {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(mut body) = this.body.take() else { return Poll::Ready(None) };
        // The clock is asked first: a stream that always has something to say must end too. Trailers of a call that is
        // just over are still let through.
        let late_now = this.sleep.as_mut().poll(cx).is_ready();
        let stopped_now = this.stop.as_mut().poll(cx).is_ready();
        let polled = Pin::new(&mut body).poll_frame(cx);
        if !late_now && !stopped_now {
            if !matches!(polled, Poll::Ready(None)) {
                this.body = Some(body);
            }
            return polled;
        }
        match polled {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Ok(frame))) if !late_now && !std::mem::replace(&mut this.last_word, true) => {
                this.body = Some(body);
                Poll::Ready(Some(Ok(frame)))
            }
            _ => {
                let mut trailers = HeaderMap::new();
                let status = if late_now { late() } else { stopped() };
                if status.add_header(&mut trailers).is_err() {
                    trailers.insert("grpc-status", HeaderValue::from_static("4"));
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_says() {
        let of = |text: &str| parse(&HeaderValue::from_str(text).expect("legal header"));
        assert_eq!(of("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(of("2M"), Some(Duration::from_secs(120)));
        assert_eq!(of("3S"), Some(Duration::from_secs(3)));
        assert_eq!(of("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(of("5u"), Some(Duration::from_micros(5)));
        assert_eq!(of("6n"), Some(Duration::from_nanos(6)));
        for bad in ["", "S", "1", "1x", "-1S", "123456789S", "1.5S", " 1S"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
