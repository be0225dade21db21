//! Preemption: a more important caller has the VM of a less important lease saved, and that one goes on when there is
//! room again.
//!
//! A saved VM of a preempted lease does not count as one of the pool's, so the pool makes another VM for whoever
//! preempted it. The preempted lease stands in the queue by its own priority; when it comes first, the pool gives it the
//! room of a VM that is ready, or room that it has.

use std::sync::Arc;
use std::time::Duration;

use super::control::condemn;
use super::lot::{Lot, Saving, Waiting};
use super::survey::Survey;
use super::{PoolState, making};
use crate::model::ids::{LeaseId, VmId};
use crate::model::policy::MAX_VMS;
use crate::model::queue::{Needs, Place, Wish};
use crate::model::record::{Lease, Pool, Template};
use crate::model::vm::VmState;
use crate::orchestrator::Shared;

/// Tries to bring a preempted lease's VM to run before the VM counts as lost.
const TRIES: u32 = 3;
/// Between two of them.
const AGAIN: Duration = Duration::from_secs(2);
/// A lease that was just granted is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a preempted lease waits for.
pub(in crate::orchestrator) fn wish(lease: &Lease) -> Wish {
    Wish { caller: lease.holder.clone(), priority: lease.priority, needs: Needs::default() }
}

/// Puts the pool's preempted leases into its queue, after a start of the daemon.
pub(super) fn find(shared: &Arc<Shared>, state: &Arc<PoolState>) {
    let mut found = Vec::new();
    shared.registry.each_of(&state.id, |row| {
        if row.suspended
            && let Some(lease) = &row.lease
        {
            found.push((lease.clone(), row.id.clone()));
        }
    });
    for (lease, vm) in found {
        let Some(wish) = shared.leases.wish(&lease) else { continue };
        state.lot().queue.enter(shared.pools.now(), wish, Waiting::Preempted(vm));
    }
}

/// Gives room to preempted leases that come first in the queue.
pub(super) fn resume(
    shared: &Arc<Shared>,
    state: &Arc<PoolState>,
    pool: &Pool,
    survey: &Survey,
    memory_mb: u64,
) {
    let cap = if pool.spec.max_per_host == 0 { MAX_VMS } else { pool.spec.max_per_host };
    let size = if pool.spec.options.idle_floor.is_some() { cap } else { pool.spec.desired.min(cap) };
    let mut free = size.saturating_sub(survey.has.total()).min(making::room(shared, memory_mb));
    loop {
        let Some((place, wish, vm)) = state.lot().next_preempted() else { return };
        let traded = if free > 0 {
            free -= 1;
            None
        } else {
            let Some(ticket) = Lot::take_any(state) else { return };
            Some(ticket)
        };
        state.lot().queue.leave(place);
        let (shared, state) = (Arc::clone(shared), Arc::clone(state));
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            if let Some(ticket) = traded {
                condemn(&shared, &ticket.vm).await;
                ticket.used();
            }
            go_on(&shared, &vm, &wish).await;
            state.moved();
            state.wake.notify_one();
        });
    }
}

/// Brings a preempted lease's VM to run.
async fn go_on(shared: &Arc<Shared>, vm: &VmId, wish: &Wish) {
    for left in (0..TRIES).rev() {
        let Ok(handle) = shared.registry.get(vm) else { return };
        match handle.call(move |vm| Box::pin(vm.unsuspend(left == 0))).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%vm, holder = wish.caller, error = &error as &dyn std::error::Error, "preempted lease does not go on");
            }
        }
        if left > 0 {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Has leases preempted for callers who would have to wait and whom a new VM of the pool will do. `supply`: VMs that come by themselves. Gives when to look
/// again, if there may be somebody to preempt then.
pub(super) async fn suspend(
    shared: &Arc<Shared>,
    state: &Arc<PoolState>,
    pool: &Pool,
    template: &Template,
    supply: u32,
) -> Option<Duration> {
    if !shared.hv.capabilities().save {
        return None;
    }
    let callers: Vec<(Place, i32)> = {
        let lot = state.lot();
        let callers = lot.queue.iter().filter(|(_, wish, what)| {
            matches!(what, Waiting::Caller(_)) && wish.needs.fits(&template.id, template.spec.gpu)
        });
        callers
            .skip(usize::try_from(supply).unwrap_or(usize::MAX))
            .map(|(place, wish, _)| (place, wish.priority))
            .collect()
    };
    let mut again = None;
    let mut leases = if callers.is_empty() { Vec::new() } else { held(shared, pool) };
    for (place, priority) in callers {
        // The least important, and of those the one that has done the least.
        let victims = leases.iter().enumerate().filter(|(_, one)| one.priority < priority);
        let Some((at, _)) = victims.min_by_key(|(_, one)| (one.priority, one.since)) else { continue };
        let victim = leases.swap_remove(at);
        if victim.since < shared.settings.preempt_grace {
            again = Some(LOOK_AGAIN);
            continue;
        }
        let Ok(handle) = shared.registry.get(&victim.vm) else { continue };
        let why = format!("preempted by a request of priority {priority}, its own is {}", victim.priority);
        tracing::info!(lease = %victim.lease, vm = %victim.vm, why, "lease preempted");
        let (lease, wait_for) = (victim.lease, handle.rows());
        state.lot().saving.insert(place, Saving { lease: lease.clone(), priority: victim.priority });
        state.moved();
        let saved = Arc::clone(state);
        // The intent is written at once, the saving goes on: the pool makes the other VM meanwhile.
        shared.tasks.spawn(async move {
            let done = handle.call(move |vm| Box::pin(async move { vm.suspend(&lease, &why).await })).await;
            if let Err(error) = done {
                tracing::warn!(vm = %handle.id, error = &error as &dyn std::error::Error, "not preempted");
            }
            saved.lot().saving.remove(&place);
            saved.moved();
        });
        let mut rows = wait_for;
        let shown = rows.wait_for(|row| row.suspended || row.lease.is_none());
        // A VM that is busy with something else is not waited for; the next look sees it.
        let _ = tokio::time::timeout(Duration::from_millis(200), shown).await;
        again = Some(LOOK_AGAIN);
    }
    if again.is_some() {
        state.wake.notify_one();
    }
    again
}

struct Held {
    lease: LeaseId,
    vm: VmId,
    priority: i32,
    /// How long it has had the VM.
    since: Duration,
}

/// Leases of a pool that can be preempted: handed over, running, and nothing else is happening to them.
fn held(shared: &Shared, pool: &Pool) -> Vec<Held> {
    let mut all = Vec::new();
    shared.registry.each_of(&pool.id, |row| {
        if row.state == VmState::Running
            && !row.suspended
            && row.pending.is_none()
            && let Some(lease) = &row.lease
            && let Some((priority, since)) = shared.leases.handed_over(lease)
        {
            all.push(Held { lease: lease.clone(), vm: row.id.clone(), priority, since });
        }
    });
    all
}
