//! What nobody asks for: going on after a start, agents that waited too long, claims left behind, and what is old.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Busy, change, give_back, set_back, shots, supervise};
use crate::model::agent::{Runner, Setback};
use crate::model::error::{Error, Result};
use crate::model::ids::LeaseId;
use crate::model::lease::EndedAs;
use crate::orchestrator::{Orchestrator, Shared};

/// How late an agent that waited too long may be noticed. One look is one query by index.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Claims whose VM could not be given back are tried again.
const CLAIMS_EVERY: Duration = Duration::from_secs(30);
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Takes up what a daemon before this one left: workers go on, programs in guests are run again, VMs of claims that are
/// over are given back.
pub(in crate::orchestrator) async fn recover(o: &Orchestrator) -> Result<()> {
    let shared = &o.0;
    shots::collect(shared).await?;
    for agent in shared.store.claimed_agents().await? {
        let (id, epoch) = (&agent.id, agent.epoch);
        let lease = agent.claim.as_ref().and_then(|claim| claim.lease.as_ref());
        let (has_vm, revoked) = (lease.is_some(), revoked(shared, lease).await?);
        if let Some(why) = revoked.filter(|_| !agent.status.is_final()) {
            // Since the daemon before this one ended: none of the agent's doing.
            set_back(shared, id, epoch, Setback::Interrupted, &format!("lost its vm: {why}")).await;
            give_back(shared, id, epoch).await;
            continue;
        }
        if agent.runner == Some(Runner::External) && has_vm && agent.is_held() {
            // Nobody could report while there was no daemon: the claim's life begins anew.
            let agent = change(shared, id, None, |agent, _, now| {
                if let Some(claim) = &mut agent.claim {
                    claim.expires = now.checked_add(claim.ttl).ok();
                }
                Ok(())
            })
            .await?;
            let busy = Busy::new(shared, &agent);
            if let Some(vm) = &agent.vm {
                shared.agents.has_vm(id, vm);
            }
            supervise::start(o, &agent, busy);
            continue;
        }
        if !agent.status.is_final() {
            set_back(shared, id, epoch, Setback::Interrupted, "the daemon was stopped in the middle of it")
                .await;
        }
        give_back(shared, id, epoch).await;
    }
    Ok(())
}

/// Why a lease was ended by an operator, if one did.
async fn revoked(shared: &Shared, lease: Option<&LeaseId>) -> Result<Option<String>> {
    let Some(lease) = lease else { return Ok(None) };
    let lease = shared.store.lease(lease).await?;
    Ok(lease.filter(|lease| lease.ended == Some(EndedAs::Revoked)).map(|lease| lease.end_reason))
}

/// Looks after agents until the daemon stops.
pub(in crate::orchestrator) async fn sweep(shared: Arc<Shared>) {
    let (mut prune_at, mut claims_at) = (Instant::now(), Instant::now() + CLAIMS_EVERY);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = Instant::now();
        let work = async {
            overdue(&shared).await?;
            if claims_at <= now {
                claims_at = now + CLAIMS_EVERY;
                claims(&shared).await?;
            }
            if prune_at <= now {
                prune_at = now + PRUNE_EVERY;
                prune(&shared).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = work.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "agents not looked after");
        }
    }
}

/// Ends agents that nobody served in time, and drops pictures that are too old.
async fn overdue(shared: &Arc<Shared>) -> Result<()> {
    let now = Timestamp::now();
    let shots_before = now.saturating_sub(shared.settings.agents.keep_screenshots).unwrap_or(Timestamp::MIN);
    for found in shared.store.overdue_agents(now, shots_before).await? {
        let mut old = Vec::new();
        change(shared, &found.id, None, |agent, _, now| {
            if agent.queue_end().is_some_and(|end| end <= now) {
                let why = format!("not started within {} s", agent.spec.queue_timeout.as_secs());
                // Somebody has taken it meanwhile.
                let _ = agent.fail_waiting(&why, now);
            }
            let shots = std::mem::take(&mut agent.shots);
            (old, agent.shots) = shots.into_iter().partition(|shot| shot.created <= shots_before);
            Ok(())
        })
        .await?;
        for shot in &old {
            shots::delete(shared, &found.id, shot).await;
        }
    }
    Ok(())
}

/// Gives back what could not be given back when its claim ended.
async fn claims(shared: &Arc<Shared>) -> Result<()> {
    // A claim is stored a moment before it is known here.
    let before = Timestamp::now().saturating_sub(CLAIMS_EVERY).unwrap_or(Timestamp::MIN);
    for agent in shared.store.claimed_agents().await? {
        if agent.updated > before || shared.agents.is_active(&agent.id, agent.epoch) {
            continue;
        }
        if !agent.status.is_final() {
            set_back(shared, &agent.id, agent.epoch, Setback::Interrupted, "nobody works on it").await;
        }
        give_back(shared, &agent.id, agent.epoch).await;
    }
    Ok(())
}

/// Deletes agents that ended long ago.
async fn prune(shared: &Arc<Shared>) -> Result<()> {
    let keep = shared.settings.agents.keep_ended;
    let before = Timestamp::now().saturating_sub(keep).unwrap_or(Timestamp::MIN);
    loop {
        let ids = shared.store.prune_agents(before).await?;
        if ids.is_empty() {
            return Ok(());
        }
        for id in &ids {
            shots::delete_all(shared, id).await;
        }
    }
}
