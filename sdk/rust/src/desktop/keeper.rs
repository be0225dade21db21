//! The task that keeps a lease alive.
//!
//! It renews when a third of the TTL has gone by, so two renewals can fail before the lease is in danger. A failure to
//! reach the daemon is tried again, each time after an eighth of what is left (never under a second), until the TTL
//! counted from the last success is over: the daemon has then ended the lease by its own clock. An answer that the
//! lease is gone ends it at once; one that it is preempted does not, its life stands still meanwhile.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Code;

use crate::client::Client;
use crate::error::Error;
use crate::v1::Lease;

/// Taken for a lease that does not tell its TTL; the shortest one that is legal.
const SHORTEST_TTL: Duration = Duration::from_secs(10);

/// The daemon's word for a lease that goes on later.
const PREEMPTED: &str = "LEASE_PREEMPTED";
/// Between two looks at a preempted lease: soon after it goes on it must be renewed.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// A lease is over although nobody here gave it back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {lease} is lost: {message}")]
pub struct LeaseLost {
    /// `leases/{lease}`.
    pub lease: String,
    reason: String,
    message: String,
}

impl LeaseLost {
    /// The daemon's reason, e.g. `LEASE_ENDED`; `LEASE_NOT_RENEWED` when the daemon was not reached in time.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Renews until dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    task: JoinHandle<()>,
    runtime: Handle,
    lost: watch::Receiver<Option<LeaseLost>>,
}

impl Keeper {
    /// Must be called inside a Tokio runtime, which its callers are by awaiting the acquire.
    pub(crate) fn start(client: Client, lease: &Lease) -> Self {
        let ttl = lease.ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or(SHORTEST_TTL);
        let name = lease.name.clone();
        let runtime = Handle::current();
        let (tell, lost) = watch::channel(None);
        let task = runtime.spawn(async move {
            let why = keep(&client, &name, ttl).await;
            tracing::warn!(lease = name, reason = why.reason, "lease lost");
            tell.send_replace(Some(why));
        });
        Self { task, runtime, lost }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    pub(crate) fn watcher(&self) -> Watcher {
        Watcher(self.lost.clone())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sees a loss from anywhere.
pub(crate) struct Watcher(watch::Receiver<Option<LeaseLost>>);

impl Watcher {
    pub(crate) async fn lost(mut self) -> LeaseLost {
        match self.0.wait_for(Option::is_some).await.ok().and_then(|lost| lost.clone()) {
            Some(lost) => lost,
            // The keeper was stopped: the lease was given back, which is no loss.
            None => std::future::pending().await,
        }
    }
}

/// Renews for ever; comes back with the reason when that is over.
async fn keep(client: &Client, name: &str, mut ttl: Duration) -> LeaseLost {
    // Counted from before the request left, so never later than the daemon's own end.
    let mut renewed = Instant::now();
    loop {
        sleep_until(renewed + ttl / 3).await;
        let end = renewed + ttl;
        loop {
            let asked = Instant::now();
            // Bounded by the end too: a renewal that hangs must not hide that the lease is over.
            let answer = tokio::time::timeout_at(end, client.renew_lease(name, None)).await;
            let message = match answer {
                Ok(Ok(lease)) => {
                    renewed = asked;
                    ttl = lease.ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or(ttl);
                    break;
                }
                Ok(Err(error)) if error.reason() == Some(PREEMPTED) => {
                    // Its life stands still, and goes on with what was left of it, at least the present third.
                    tracing::debug!(lease = name, "preempted, waiting");
                    sleep((ttl / 8).clamp(Duration::from_secs(1), LONGEST_LOOK)).await;
                    renewed = Instant::now().checked_sub(ttl / 3).unwrap_or_else(Instant::now);
                    break;
                }
                Ok(Err(error)) if is_final(&error) => {
                    let reason = error.reason().unwrap_or("LEASE_ENDED").to_owned();
                    return LeaseLost { lease: name.to_owned(), reason, message: error.to_string() };
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = "LEASE_NOT_RENEWED".to_owned();
                return LeaseLost {
                    lease: name.to_owned(),
                    reason,
                    message: format!("it could not be renewed: {message}"),
                };
            }
            tracing::debug!(lease = name, message, "renewal failed, trying again");
            sleep((left / 8).max(Duration::from_secs(1)).min(left)).await;
        }
    }
}

/// The lease itself is the problem, so asking again is no use.
fn is_final(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::NotFound
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
    )
}
