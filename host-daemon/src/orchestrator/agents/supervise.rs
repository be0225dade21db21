//! Watching over a claim that has its VM: its lease is renewed, and silence, a deadline that passes, a VM that dies and
//! somebody who ends the agent are all noticed at once. While the lease is preempted the deadline stands still.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Busy, change, give_back, set_back, stored};
use crate::model::agent::{Agent, Setback};
use crate::model::error::{Reason, Result};
use crate::model::ids::{AgentId, LeaseId};
use crate::orchestrator::request::Caller;
use crate::orchestrator::{Orchestrator, Shared};

/// The clock may be set: nothing is slept through for longer.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a failure of the store.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why a claim needs no more watching.
pub(super) enum Over {
    /// Its row says so: completed, cancelled, lost.
    Ended,
    /// Something happened to it.
    SetBack(String),
    /// The daemon stops.
    Stopping,
}

/// Watches over a worker's claim to its end.
pub(super) fn start(o: &Orchestrator, agent: &Agent, busy: Busy) {
    let (o, id, epoch) = (o.clone(), agent.id.clone(), agent.epoch);
    let shared = Arc::clone(&o.0);
    shared.tasks.spawn(async move {
        let _busy = busy;
        match over(&o, &id, epoch).await {
            Over::Stopping => return,
            Over::Ended => {}
            Over::SetBack(why) => set_back(&o.0, &id, epoch, Setback::Failed, &why).await,
        }
        give_back(&o.0, &id, epoch).await;
    });
}

/// Completes when the claim is over.
pub(super) async fn over(o: &Orchestrator, id: &AgentId, epoch: u64) -> Over {
    let shared = &o.0;
    let Some(mut changes) = shared.agents.pokes(id) else { return Over::Ended };
    let mut renew_at = Instant::now();
    // Since when the lease is preempted.
    let mut stands_since = None;
    loop {
        changes.borrow_and_update();
        let agent = match stored(shared, id).await {
            Ok(agent) => agent,
            Err(error) if error.reason == Reason::NotFound => return Over::Ended,
            Err(error) => {
                tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "not looked at");
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
        };
        let claim = match &agent.claim {
            // One that its worker has set back still has its claim, until its VM is on its way back.
            Some(claim) if agent.epoch == epoch && agent.is_held() => claim,
            _ => return Over::Ended,
        };
        let Some(lease) = &claim.lease else { return Over::Ended };
        let now = Timestamp::now();
        let suspended = is_suspended(o, &agent, lease);
        if suspended && stands_since.is_none() {
            // One that a daemon before this one preempted has stood for longer.
            let since = o.lease(lease).await.ok().and_then(|lease| lease.suspended);
            stands_since = Some(since.unwrap_or(now));
        } else if !suspended && let Some(since) = stands_since {
            match extend(shared, id, epoch, since).await {
                Ok(()) => (stands_since, renew_at) = (None, Instant::now()),
                Err(error) if error.reason == Reason::NotFound => return Over::Ended,
                Err(error) => {
                    tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "deadline not moved");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
            continue;
        }
        let deadline = claim.deadline.filter(|_| !suspended);
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Over::SetBack(format!("not done within {} s", agent.spec.timeout.as_secs()));
        }
        if claim.expires.is_some_and(|expires| expires <= now) {
            let worker = if claim.worker.is_empty() { &claim.holder } else { &claim.worker };
            return Over::SetBack(format!("worker {worker} was silent for {} ms", claim.ttl.as_millis()));
        }
        let mut next = LOOK_EVERY;
        for at in [deadline, claim.expires].into_iter().flatten() {
            next = next.min(at.duration_since(now).unsigned_abs());
        }
        if renew_at <= Instant::now() && !suspended {
            match o.renew(&Caller::admin(), lease, None).await {
                Ok(lease) => renew_at = Instant::now() + lease.ttl / 3,
                Err(error) => match error.reason {
                    Reason::ShuttingDown => return Over::Stopping,
                    Reason::LeaseEnded | Reason::NotFound => return Over::SetBack(lost(&error.message)),
                    _ => renew_at = Instant::now() + TRY_AGAIN,
                },
            }
        }
        tokio::select! {
            () = shared.stopping.cancelled() => return Over::Stopping,
            () = vm_lost(o, &agent, lease) => return Over::SetBack(lease_end(o, lease).await),
            () = suspended_becomes(o, &agent, lease, !suspended) => {}
            // An error means that the next claim took the place: the row tells.
            _ = changes.changed() => {}
            () = tokio::time::sleep(next) => {}
            () = tokio::time::sleep_until(renew_at), if !suspended => {}
        }
    }
}

fn lost(why: &str) -> String {
    format!("lost its vm: {why}")
}

async fn lease_end(o: &Orchestrator, lease: &LeaseId) -> String {
    match o.lease(lease).await {
        Ok(lease) => lost(&lease.end_reason),
        Err(error) => lost(&error.message),
    }
}

/// Moves the deadline by what the lease was preempted.
async fn extend(shared: &Arc<Shared>, id: &AgentId, epoch: u64, since: Timestamp) -> Result<()> {
    change(shared, id, None, |agent, log, now| {
        let stood = now.duration_since(since).unsigned_abs();
        if agent.stood_still(epoch, stood) {
            log.daemon(format!("goes on, preempted for {} s", stood.as_secs()));
        }
        Ok(())
    })
    .await
    .map(drop)
}

fn is_suspended(o: &Orchestrator, agent: &Agent, lease: &LeaseId) -> bool {
    let handle = agent.vm.as_ref().and_then(|vm| o.0.registry.get(vm).ok());
    handle.is_some_and(|handle| handle.look(|row| row.suspended && row.lease.as_ref() == Some(lease)))
}

/// Completes when the lease is preempted, or goes on.
pub(super) async fn suspended_becomes(o: &Orchestrator, agent: &Agent, lease: &LeaseId, wanted: bool) {
    let handle = agent.vm.as_ref().and_then(|vm| o.0.registry.get(vm).ok());
    let changed = async {
        let mut rows = handle?.rows();
        let wait = rows.wait_for(|row| row.lease.as_ref() == Some(lease) && row.suspended == wanted).await;
        wait.is_ok().then_some(())
    };
    // What became of a VM that is gone is told otherwise.
    if changed.await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Completes when the VM no longer belongs to the lease.
async fn vm_lost(o: &Orchestrator, agent: &Agent, lease: &LeaseId) {
    let Some(handle) = agent.vm.as_ref().and_then(|vm| o.0.registry.get(vm).ok()) else { return };
    // The row's sender goes with the VM, which is a loss too.
    let _ = handle.rows().wait_for(|row| row.lease.as_ref() != Some(lease)).await;
}
