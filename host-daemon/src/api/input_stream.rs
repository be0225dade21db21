//! `StreamInput`: batches as they come, each done before the next is read, and one answer for all.

use std::time::Duration;

use hvkube_proto::v1;
use tokio::time::Instant;
use tonic::Streaming;

use super::convert::screen;
use super::desktop::{Batch, INPUT};
use super::fields;
use super::guard::Guard;
use crate::display::{Hub, InputDone};
use crate::model::error::{Error, Reason, Result};
use crate::model::screen::Point;
use crate::orchestrator::Orchestrator;

/// How long letting go of keys may take after a stream broke off.
const RELEASE: Duration = Duration::from_secs(10);

/// Does what a client streams. `first` is its first message, which named the target.
pub(super) async fn run(
    orchestrator: &Orchestrator,
    mut guard: Guard,
    first: v1::StreamInputRequest,
    mut messages: Streaming<v1::StreamInputRequest>,
) -> Result<v1::StreamInputResponse> {
    let mut release = ReleaseOnDrop { hub: guard.hub(), epoch: None };
    let target = first.target.clone();
    let mut sum = Sum::default();
    let mut next = Some(first);
    let mut index = 0_u64;
    while let Some(message) = next {
        // The first may only open the stream.
        if index > 0 || !message.events.is_empty() {
            release.touch();
            let done = batch(orchestrator, &mut guard, &target, &message).await;
            sum.add(&done.map_err(|error| sum.explain(error, index))?);
        }
        index += 1;
        let read = async {
            messages.message().await.map_err(|status| {
                // The client broke off; nobody reads the answer.
                Error::new(Reason::GuestInvalid, format!("the stream broke off: {}", status.message()))
            })
        };
        next = guard.hold(read).await.map_err(|error| sum.explain(error, index))?;
    }
    // To tonic a client that breaks off has merely finished. At the next step hyper drops this call for it, so the end counts
    // only if there is a next step.
    tokio::task::yield_now().await;
    release.epoch = None;
    Ok(sum.answer())
}

async fn batch(
    orchestrator: &Orchestrator,
    guard: &mut Guard,
    target: &str,
    message: &v1::StreamInputRequest,
) -> Result<InputDone> {
    if !message.target.is_empty() && message.target != target {
        return Err(Error::field("target", "must be empty or that of the first message"));
    }
    let Batch { id, mut events, frame } = Batch::of(&message.batch_id, &message.events, message.frame_size)?;
    let caller = guard.caller.clone();
    orchestrator.reveal_secrets(&caller, &fields::target("target", target)?, &mut events).await?;
    let (hub, deadline) = (guard.hub(), guard.deadline(INPUT));
    guard.hold(async { Ok(hub.send_input(&id, events, frame, deadline).await?) }).await
}

/// What was done so far.
#[derive(Debug, Default)]
struct Sum {
    batches: u64,
    replayed: u64,
    events: u64,
    scrolled: Point,
    scrolled_pixels: Point,
    last: Option<InputDone>,
}

impl Sum {
    fn add(&mut self, done: &InputDone) {
        // Streams may be endless; a sum that stands still at its limit is no reason to fail one.
        let add = |a: Point, b: Point| Point { x: a.x.saturating_add(b.x), y: a.y.saturating_add(b.y) };
        self.batches += 1;
        self.replayed += u64::from(done.replayed);
        self.events += u64::from(done.completed);
        self.scrolled = add(self.scrolled, done.scrolled);
        self.scrolled_pixels = add(self.scrolled_pixels, done.scrolled_pixels);
        self.last = Some(*done);
    }

    fn answer(&self) -> v1::StreamInputResponse {
        v1::StreamInputResponse {
            batches: self.batches,
            replayed: self.replayed,
            events: self.events,
            epoch: self.last.map_or(0, |last| last.epoch),
            scrolled: Some(screen::from_point(self.scrolled)),
            scrolled_pixels: Some(screen::from_point(self.scrolled_pixels)),
            source: self.last.map_or(v1::FrameSource::Unspecified, |last| screen::source(last.source)).into(),
        }
    }

    /// Says in which message an error is, and what was done before it: events of its own batch included.
    fn explain(&self, mut error: Error, index: u64) -> Error {
        let at = format!("messages[{index}]");
        for violation in &mut error.violations {
            violation.field = format!("{at}.{}", violation.field);
        }
        let joint = if error.violations.is_empty() { ": " } else { "." };
        error.message = format!("{at}{joint}{}", error.message);
        let own = error.metadata.iter().find(|(key, _)| *key == "completed");
        let own: u64 = own.and_then(|(_, count)| count.parse().ok()).unwrap_or_default();
        error
            .with("message", index)
            .with("completed_batches", self.batches)
            .with("completed_events", self.events + own)
    }
}

/// Releases what is held down when a stream does not end in order.
struct ReleaseOnDrop {
    hub: Hub,
    /// Session that input went to; a later one holds nothing of this stream's. 0 is the hypervisor.
    epoch: Option<u64>,
}

impl ReleaseOnDrop {
    fn now(&self) -> u64 {
        self.hub.session().ok().flatten().map_or(0, |session| session.epoch())
    }

    fn touch(&mut self) {
        self.epoch = Some(self.now());
    }
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        if self.epoch.is_none_or(|epoch| epoch != self.now()) {
            return;
        }
        let hub = self.hub.clone();
        // Only where the runtime is being torn down there is none, and then the session ends too.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = hub.release_input(Instant::now() + RELEASE).await {
                tracing::warn!(?hub, error = &error as &dyn std::error::Error, "keys may be held down");
            }
        });
    }
}
