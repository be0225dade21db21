//! Which agent a worker gets next: the one of the best rank, unless its pool has no VM to spare and another one's pool has.
//!
//! ```text
//!  choose ─┬─► the first of all: waits in its pool's queue ──elsewhere──► another pool's
//!          └─► passed over: its place in the queue is held until a worker comes
//! ```
//!
//! One that is passed over still stands in its pool's queue, so that the pool makes a VM for it, or has a less important
//! lease preempted, as if its worker waited. The VM that it gets is kept for it for a while.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::request::ClaimAgent;
use super::{Agents, News, is_free, needs, stored};
use crate::model::agent::Agent;
use crate::model::error::Result;
use crate::model::ids::{AgentId, PoolId};
use crate::model::queue::{Needs, Wish};
use crate::orchestrator::Shared;
use crate::orchestrator::pools::{Ticket, Turn};
use crate::orchestrator::request::{Caller, Stage};
use crate::store::NextAgent;

/// How long a VM is kept for an agent that was passed over. Workers who are busy for longer lose it to others.
const KEPT: Duration = Duration::from_secs(300);
/// Nobody waits so long: the agent has ended before.
const NO_END: Duration = Duration::from_secs(30 * 24 * 3600);

/// A place in a queue that is held for an agent without a worker, until it is cancelled.
pub(super) struct Hold {
    workflow: String,
    /// Its VM, once its turn has come.
    ticket: Option<Ticket>,
    over: CancellationToken,
}

/// What a worker is to try next.
pub(super) struct Next {
    pub(super) agent: Agent,
    /// None of a better rank was passed over.
    pub(super) first: bool,
}

impl Agents {
    fn held(&self) -> MutexGuard<'_, HashMap<AgentId, Hold>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM that was kept for an agent. To be taken before the agent is: then nothing is held for it any more.
    pub(super) fn take_kept(&self, agent: &AgentId) -> Option<Ticket> {
        self.held().get_mut(agent)?.ticket.take()
    }

    /// The agent is not free any more.
    pub(super) fn hold_no_more(&self, agent: &AgentId) {
        if let Some(hold) = self.held().get(agent) {
            hold.over.cancel();
        }
    }

    fn has_kept(&self, agent: &AgentId) -> bool {
        self.held().get(agent).is_some_and(|hold| hold.ticket.is_some())
    }

    /// Agents of a workflow for which VMs are kept.
    fn with_kept(&self, workflow: &str) -> Vec<AgentId> {
        let held = self.held();
        let kept = held.iter().filter(|(_, hold)| hold.ticket.is_some() && hold.workflow == workflow);
        kept.map(|(id, _)| id.clone()).collect()
    }
}

/// The next agent for a worker, or when the next pause is over. `full`: pools in which the worker may have no further VM.
pub(super) async fn choose(
    shared: &Arc<Shared>,
    caller: &Caller,
    wanted: &ClaimAgent,
    full: &[PoolId],
    now: Timestamp,
) -> Result<(Option<Next>, Option<Timestamp>)> {
    let workflows = [wanted.workflow.clone()];
    let next = NextAgent { workflows: &workflows, pool: wanted.pool.as_ref(), busy: &[] };
    let (first, pause_over) = shared.store.next_agent(&next, now).await?;
    let Some(first) = first else { return Ok((None, pause_over)) };
    if wanted.pool.is_none()
        && !can_have_one(shared, &first.id, &first.spec.pool, &needs(&first))
        && let Some(other) = with_vm(shared, wanted, &first.spec.pool, full).await?
    {
        hold(shared, &first, caller);
        return Ok((Some(Next { agent: other, first: false }), None));
    }
    Ok((Some(Next { agent: first, first: true }), None))
}

/// Whether a VM is there for an agent now.
pub(super) fn can_have_one(shared: &Shared, agent: &AgentId, pool: &PoolId, needs: &Needs) -> bool {
    shared.agents.has_kept(agent) || shared.pools.outlook(pool, needs).0
}

/// The next agent of another pool that can have a VM at once.
async fn with_vm(
    shared: &Shared,
    wanted: &ClaimAgent,
    other_than: &PoolId,
    full: &[PoolId],
) -> Result<Option<Agent>> {
    let (now, workflows) = (Timestamp::now(), [wanted.workflow.clone()]);
    let other = |pool: &PoolId| pool != other_than && !full.contains(pool);
    let mut found = Vec::new();
    for pool in shared.pools.with_vms().into_iter().filter(other) {
        let next = NextAgent { workflows: &workflows, pool: Some(&pool), busy: &[] };
        found.extend(shared.store.next_agent(&next, now).await?.0);
    }
    for id in shared.agents.with_kept(&wanted.workflow) {
        found
            .extend(shared.store.agent(&id).await?.filter(|agent| is_free(agent) && agent.not_before <= now));
    }
    found.retain(|agent| {
        let pool = &agent.spec.pool;
        other(pool) && can_have_one(shared, &agent.id, pool, &needs(agent))
    });
    Ok(found.into_iter().min_by_key(|agent| (agent.rank(), agent.number)))
}

/// Completes when a worker who waits in a pool's queue could have a VM of another pool at once, with the right to go for
/// it, which only one has at a time.
pub(super) async fn elsewhere(
    shared: &Shared,
    wanted: &ClaimAgent,
    pool: &PoolId,
    full: &[PoolId],
    mut stage: watch::Receiver<Stage>,
) -> OwnedMutexGuard<()> {
    let queued = |stage: &Stage| matches!(stage, Stage::Queued { .. });
    let mut chances = shared.pools.chances();
    if wanted.pool.is_some() || stage.wait_for(queued).await.is_err() {
        return std::future::pending().await;
    }
    loop {
        chances.borrow_and_update();
        let any = async || match with_vm(shared, wanted, pool, full).await {
            // Whoever has a VM that is made ready stays with it.
            Ok(found) => found.is_some() && queued(&stage.borrow()),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "other pools not looked at");
                false
            }
        };
        if any().await {
            let turn = Arc::clone(&shared.agents.leaving).lock_owned().await;
            // Whoever had the right before may have taken it.
            if any().await {
                return turn;
            }
        }
        if chances.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Holds a place in its pool's queue for an agent that waits for a worker.
pub(super) fn hold(shared: &Arc<Shared>, agent: &Agent, caller: &Caller) {
    let over = CancellationToken::new();
    {
        let mut held = shared.agents.held();
        if held.contains_key(&agent.id) {
            return;
        }
        let workflow = agent.spec.workflow.clone();
        held.insert(agent.id.clone(), Hold { workflow, ticket: None, over: over.clone() });
    }
    let wish = Wish { caller: caller.name.clone(), priority: agent.spec.priority, needs: needs(agent) };
    let (shared, agent) = (Arc::clone(shared), agent.clone());
    shared.tasks.clone().spawn(async move {
        let kept = async {
            // Taken since it was read; what is taken from here on is told.
            if !stored(&shared, &agent.id).await.is_ok_and(|agent| is_free(&agent)) {
                return;
            }
            let mut turn = Turn::new(wish, None);
            let end = Instant::now() + NO_END;
            let Some(ticket) = shared.pools.take(&agent.spec.pool, &mut turn, end).await else { return };
            if let Some(hold) = shared.agents.held().get_mut(&agent.id) {
                hold.ticket = Some(ticket);
            }
            News::of(&agent).tell(&shared);
            tokio::time::sleep(KEPT).await;
        };
        tokio::select! {
            () = over.cancelled() => {}
            () = shared.stopping.cancelled() => {}
            () = kept => {}
        }
        let gone = shared.agents.held().remove(&agent.id);
        // Not under the lock: its VM goes to the next one.
        drop(gone);
    });
}
