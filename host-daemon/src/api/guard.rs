//! The right to a desktop, held for as long as a call uses it.
//!
//! A lease may end and a VM may die in the middle of a stream or a long call; the orchestrator tells, and then the call
//! is dropped, which cancels what it does in the guest.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};

use super::auth;
use super::deadline::Deadline;
use crate::display::Hub;
use crate::guest::Session;
use crate::model::error::{Error, Reason, Result};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Caller, Target, Until};

/// A guest session ends a moment before its VM is known to be gone, or its lease to have ended.
const TOGETHER: Duration = Duration::from_millis(200);
/// When to try again without an agent: it is back within a second after most resumes.
const AGENT_BACK: Duration = Duration::from_secs(1);

/// Whoever opens a stream says at once what for.
const FIRST: Duration = Duration::from_secs(10);

/// The first message of a stream, which has this field.
pub(crate) async fn first<T>(
    messages: &mut Streaming<T>,
    field: &'static str,
) -> std::result::Result<T, Status> {
    let Ok(first) = timeout(FIRST, messages.message()).await else {
        let what =
            format!("is required in the first message, which did not come within {} s", FIRST.as_secs());
        return Err(Error::field(field, what).into());
    };
    first?.ok_or_else(|| Error::field(field, "is required in the first message").into())
}

/// A caller's right to one desktop.
pub(crate) struct Guard {
    pub(crate) caller: Caller,
    hub: Hub,
    deadline: Option<Deadline>,
    ended: BoxFuture<'static, Error>,
}

/// A stream as tonic wants it.
pub(crate) type ResponseStream<T> = BoxStream<'static, std::result::Result<T, Status>>;

impl Guard {
    /// Checks that the caller of `request` may use `target` now.
    pub(crate) async fn new<T>(
        orchestrator: &Orchestrator,
        request: &tonic::Request<T>,
        target: &Target,
    ) -> Result<Self> {
        Self::until(orchestrator, request, target, Until::Stopped, false).await
    }

    /// The same for a call that changes something in the guest.
    pub(crate) async fn driving<T>(
        orchestrator: &Orchestrator,
        request: &tonic::Request<T>,
        target: &Target,
    ) -> Result<Self> {
        Self::until(orchestrator, request, target, Until::Stopped, true).await
    }

    /// The same for a stream that waits while the VM is saved.
    pub(crate) async fn through_saves<T>(
        orchestrator: &Orchestrator,
        request: &tonic::Request<T>,
        target: &Target,
    ) -> Result<Self> {
        Self::until(orchestrator, request, target, Until::Gone, false).await
    }

    async fn until<T>(
        orchestrator: &Orchestrator,
        request: &tonic::Request<T>,
        target: &Target,
        until: Until,
        drives: bool,
    ) -> Result<Self> {
        let caller = auth::of(request)?;
        let ended = orchestrator.desktop_ended(&caller, target, until, drives).await?;
        let hub = orchestrator.desktop(&caller, target).await?;
        let deadline = request.extensions().get::<Deadline>().copied();
        Ok(Self { caller, hub, deadline, ended })
    }

    /// The desktop.
    pub(crate) fn hub(&self) -> Hub {
        self.hub.clone()
    }

    /// When the call must be over; `otherwise` from now where the client said nothing.
    pub(crate) fn deadline(&self, otherwise: Duration) -> Instant {
        self.deadline.map_or_else(|| Instant::now() + otherwise, |deadline| deadline.0)
    }

    /// The session with the guest's agent.
    pub(crate) fn session(&self) -> Result<Session> {
        let missing = || Error::new(Reason::AgentNotConnected, "no guest agent is connected");
        self.hub.session()?.ok_or_else(|| missing().retry_after(AGENT_BACK))
    }

    /// Does a call as long as the right lasts. Where the two end together, the end of the right is the better reason.
    pub(crate) async fn hold<T>(&mut self, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            // Nothing of the next holder's desktop may get through.
            biased;
            error = &mut self.ended => Err(lost(error)),
            result = call => match result {
                Err(error) if error.reason == Reason::AgentNotConnected => {
                    Err(timeout(TOGETHER, &mut self.ended).await.map_or(error, lost))
                }
                result => result,
            },
        }
    }

    /// Hands a stream on as long as the right lasts. `endless`: its end means that the VM is gone.
    pub(crate) fn hold_stream<T: Send + 'static>(
        self,
        items: BoxStream<'static, Result<T>>,
        endless: bool,
    ) -> ResponseStream<T> {
        stream::unfold(Some((self, items)), move |state| async move {
            let (mut guard, mut items) = state?;
            let next = guard.hold(async {
                match items.next().await {
                    Some(item) => item.map(Some),
                    None if endless => Err(Error::new(Reason::AgentNotConnected, "the vm went away")),
                    None => Ok(None),
                }
            });
            match next.await {
                Ok(Some(item)) => Some((Ok(item), Some((guard, items)))),
                Ok(None) => None,
                Err(error) => Some((Err(error.into()), None)),
            }
        })
        .boxed()
    }
}

/// A VM that stops under a call is not the caller's mistake: it ran when the call began.
fn lost(error: Error) -> Error {
    if error.reason != Reason::VmNotRunning {
        return error;
    }
    let message = format!("the vm went away: {}", error.message);
    Error { reason: Reason::AgentNotConnected, message, ..error }
}
