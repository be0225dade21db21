//! Watching over a claim that has its VM: its lease is renewed, and silence, a deadline that passes, a VM that dies and
//! somebody who ends the agent are all noticed at once.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Busy, give_back, set_back, stored};
use crate::model::agent::{Agent, Setback};
use crate::model::error::Reason;
use crate::model::ids::{AgentId, LeaseId};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::Caller;

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
            Some(claim) if agent.epoch == epoch && !agent.status.is_final() => claim,
            _ => return Over::Ended,
        };
        let Some(lease) = &claim.lease else { return Over::Ended };
        let now = Timestamp::now();
        if claim.deadline.is_some_and(|deadline| deadline <= now) {
            return Over::SetBack(format!("not done within {} s", agent.spec.timeout.as_secs()));
        }
        if claim.expires.is_some_and(|expires| expires <= now) {
            let worker = if claim.worker.is_empty() { &claim.holder } else { &claim.worker };
            return Over::SetBack(format!("worker {worker} was silent for {} ms", claim.ttl.as_millis()));
        }
        let mut next = LOOK_EVERY;
        for at in [claim.deadline, claim.expires].into_iter().flatten() {
            next = next.min(at.duration_since(now).unsigned_abs());
        }
        if renew_at <= Instant::now() {
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
            // An error means that the next claim took the place: the row tells.
            _ = changes.changed() => {}
            () = tokio::time::sleep(next) => {}
            () = tokio::time::sleep_until(renew_at) => {}
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

/// Completes when the VM no longer belongs to the lease.
async fn vm_lost(o: &Orchestrator, agent: &Agent, lease: &LeaseId) {
    let Some(handle) = agent.vm.as_ref().and_then(|vm| o.0.registry.get(vm).ok()) else { return };
    // The row's sender goes with the VM, which is a loss too.
    let _ = handle.rows().wait_for(|row| row.lease.as_ref() != Some(lease)).await;
}
