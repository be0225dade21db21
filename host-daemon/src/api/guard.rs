//! The right to a desktop, held for as long as a call uses it.
//!
//! A lease may end and a VM may die in the middle of a stream or a long call. Whoever holds the right is asked again
//! every second; the orchestrator answers from memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tonic::Status;

use super::auth;
use super::deadline::Deadline;
use crate::display::Hub;
use crate::guest::Session;
use crate::model::error::{Error, Reason, Result};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Caller, Target};

const RECHECK: Duration = Duration::from_secs(1);

/// A caller's right to one desktop.
pub(crate) struct Guard {
    orchestrator: Orchestrator,
    pub(crate) caller: Caller,
    target: Target,
    pub(crate) hub: Arc<Hub>,
    deadline: Option<Deadline>,
}

/// A stream as tonic wants it.
pub(crate) type ResponseStream<T> = BoxStream<'static, std::result::Result<T, Status>>;

impl Guard {
    /// Checks that the caller of `request` may use `target` now.
    pub(crate) async fn new<T>(
        orchestrator: &Orchestrator,
        request: &tonic::Request<T>,
        target: Target,
    ) -> Result<Self> {
        let caller = auth::of(request)?;
        let hub = orchestrator.desktop(&caller, &target).await?;
        let deadline = request.extensions().get::<Deadline>().copied();
        Ok(Self { orchestrator: orchestrator.clone(), caller, target, hub, deadline })
    }

    /// When the call must be over; `otherwise` from now where the client said nothing.
    pub(crate) fn deadline(&self, otherwise: Duration) -> Instant {
        self.deadline.map_or_else(|| Instant::now() + otherwise, |deadline| deadline.0)
    }

    /// The session with the guest's agent.
    pub(crate) fn session(&self) -> Result<Session> {
        let missing = || Error::new(Reason::AgentNotConnected, "no guest agent is connected");
        self.hub.session()?.ok_or_else(|| missing().retry_after(RECHECK))
    }

    /// Why the right has ended; nothing while it has not.
    async fn ended(&self) -> Option<Error> {
        match self.orchestrator.desktop(&self.caller, &self.target).await {
            Ok(_) => None,
            // Not the caller's mistake: it was running when the call began.
            Err(error) if error.reason == Reason::VmNotRunning => Some(Error {
                reason: Reason::AgentNotConnected,
                message: format!("the vm went away: {}", error.message),
                ..error
            }),
            Err(error) => Some(error),
        }
    }

    /// Waits until the right ends.
    async fn until_ended(&self) -> Error {
        let mut ticks = interval_at(Instant::now() + RECHECK, RECHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(error) = self.ended().await {
                return error;
            }
        }
    }

    /// Does a call as long as the right lasts. Where the two end together, the end of the right is the better reason.
    pub(crate) async fn hold<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = call => match result {
                Err(error) if error.reason == Reason::AgentNotConnected => {
                    Err(self.ended().await.unwrap_or(error))
                }
                result => result,
            },
            error = self.until_ended() => Err(error),
        }
    }

    /// Hands a stream on as long as the right lasts. `endless`: its end means that the VM is gone.
    pub(crate) fn hold_stream<T: Send + 'static>(
        self,
        items: BoxStream<'static, Result<T>>,
        endless: bool,
    ) -> ResponseStream<T> {
        stream::unfold(Some((self, items)), move |state| async move {
            let (guard, mut items) = state?;
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
