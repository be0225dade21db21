//! The controller of a pool: looks, and does what the plan says.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::lot::Lot;
use super::survey::Survey;
use super::{PoolState, making, preempt};
use crate::model::error::Result;
use crate::model::event::{Event, EventKind};
use crate::model::ids::{PoolId, VmId};
use crate::model::policy::{PoolPlan, plan};
use crate::model::record::{Availability, Pool};
use crate::orchestrator::Shared;
use crate::orchestrator::view::{Shortfall, ShortfallReason};

/// A controller looks again after this long, whatever happened.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After the store failed.
const STORE_AGAIN: Duration = Duration::from_secs(2);
/// Failed VMs kept for a look; more than these only fill the disk.
const BROKEN_KEPT: usize = 3;
/// A look costs time in proportion to the VMs there are, and a busy pool changes all the time: between two looks passes
/// this many times what the last one took, so that a controller has a tenth of a core at most.
const REST: u32 = 9;
const LONGEST_REST: Duration = Duration::from_millis(500);

/// Begins to control a pool.
pub(in crate::orchestrator) fn control(shared: &Arc<Shared>, id: PoolId, paused: bool) {
    let mut lot = Lot::new(shared.pools.queue());
    lot.paused = paused;
    let state = Arc::new(PoolState {
        id: id.clone(),
        wake: Notify::new(),
        changed: Notify::new(),
        over: CancellationToken::new(),
        lot: Mutex::new(lot),
        moves: watch::Sender::new(0),
        places: Arc::new(Semaphore::new(shared.settings.provision_parallel.max(1))),
        heating: Arc::new(Semaphore::new(shared.settings.provision_parallel.max(1))),
        planned: AtomicU32::new(0),
        hot: shared.pools.hot_count(&id),
        to_heat: AtomicU32::new(0),
        surplus_since: Mutex::default(),
        chances: Arc::clone(&shared.pools.chances),
    });
    // What is ready was announced before anybody listened; the first look offers it.
    shared.pools.all().insert(id, Arc::clone(&state));
    preempt::find(shared, &state);
    let shared = Arc::clone(shared);
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let stop = shared.stopping.clone();
        loop {
            // What changed before this look is seen by it; only what comes after cuts a pause short.
            let _ = state.changed.notified().now_or_never();
            let began = Instant::now();
            let next = tokio::select! {
                () = stop.cancelled() => break,
                next = look(&shared, &state) => next,
            };
            let wait = match next {
                Ok(Next::Gone) => break,
                Ok(Next::Wait(wait)) => wait.min(LOOK_EVERY),
                Err(error) => {
                    tracing::warn!(pool = %state.id, error = &error as &dyn std::error::Error, "pool not looked at");
                    STORE_AGAIN
                }
            };
            let rest = (began.elapsed() * REST).min(LONGEST_REST);
            tokio::select! {
                () = stop.cancelled() => break,
                () = state.changed.notified() => {}
                () = async {
                    sleep(rest).await;
                    let _ = timeout(wait, state.wake.notified()).await;
                } => {}
            }
        }
        shared.pools.forget(&state);
    });
}

enum Next {
    Wait(Duration),
    Gone,
}

/// One look at a pool: make, heat, replace, delete, preempt.
async fn look(shared: &Arc<Shared>, state: &Arc<PoolState>) -> Result<Next> {
    let Some(pool) = shared.store.pool(&state.id).await? else { return Ok(Next::Gone) };
    if pool.deleting {
        return dissolve(shared, &pool).await;
    }
    {
        let mut lot = state.lot();
        lot.paused = pool.paused;
        lot.hot_wanted = pool.spec.options.hot;
    }
    if pool.paused {
        state.lot().shortfalls = vec![Shortfall::new(ShortfallReason::Paused, 0, "the pool is paused")];
        return Ok(Next::Wait(LOOK_EVERY));
    }
    let Some(template) = shared.store.template(&pool.spec.template).await? else {
        return Ok(Next::Wait(LOOK_EVERY));
    };
    let mut survey = Survey::of(shared, &pool, Some(state));
    // What is ready and nobody was told of, for instance because deleting it failed.
    {
        let lot = state.lot();
        survey.ready.retain(|(vm, facts)| !lot.knows(vm, facts.ready));
    }
    for (vm, facts) in std::mem::take(&mut survey.ready) {
        PoolState::offer(state, vm, facts, shared.pools.now());
    }
    sweep(shared, &mut survey).await;
    preempt::resume(shared, state, &pool, &survey, template.spec.memory_mb);
    let plan = plan(&pool.spec, survey.has);
    let mut wait = survey.next_old.map_or(LOOK_EVERY, |left| left + Duration::from_millis(1));

    retire(shared, state, &survey, plan.retire).await;
    let (surplus, later) = surplus(shared, state, &pool, plan.delete);
    wait = later.map_or(wait, |later| wait.min(later));
    for _ in 0..surplus {
        let Some(ticket) = Lot::take_warm(state) else { break };
        condemn(shared, &ticket.vm).await;
        ticket.used();
    }
    heat(shared, state, &survey, &plan);
    let made = making::create(shared, state, &pool, &template, plan.create);
    wait = made.again.map_or(wait, |again| wait.min(again));
    let mut shortfalls: Vec<_> = made.shortfall.into_iter().collect();
    if plan.forbidden > 0 {
        let why = format!("{} more wanted, max_per_host is {}", plan.forbidden, pool.spec.max_per_host);
        shortfalls.push(Shortfall::new(ShortfallReason::MaxPerHost, plan.forbidden, why));
    }
    if pool.spec.options.preemption && shortfalls.iter().all(|one| one.reason == ShortfallReason::MaxPerHost)
    {
        let supply = survey.has.coming + made.begun;
        if let Some(saving) = preempt::suspend(shared, state, &pool, &template, supply).await {
            wait = wait.min(saving);
        }
    }
    state.lot().shortfalls = shortfalls;
    Ok(Next::Wait(wait))
}

/// How many surplus VMs go now. A pool that follows demand waits a while: it may come back.
fn surplus(shared: &Shared, state: &PoolState, pool: &Pool, delete: u32) -> (u32, Option<Duration>) {
    let mut since = state.surplus_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if delete == 0 || pool.spec.options.idle_floor.is_none() {
        *since = None;
        return (delete, None);
    }
    let left =
        shared.settings.scale_down_after.saturating_sub(since.get_or_insert_with(Instant::now).elapsed());
    if left.is_zero() { (delete, None) } else { (0, Some(left)) }
}

/// Deletes free VMs that are to be replaced.
async fn retire(shared: &Arc<Shared>, state: &Arc<PoolState>, survey: &Survey, how_many: u32) {
    for vm in survey.outdated.iter().take(usize::try_from(how_many).unwrap_or(usize::MAX)) {
        // One that is not ready yet has no ticket; one whose ticket is under way stays.
        let ticket = Lot::take_out(state, vm);
        if ticket.is_some() || survey.hot.contains(vm) {
            condemn(shared, vm).await;
        }
        if let Some(ticket) = ticket {
            ticket.used();
        }
    }
}

/// Brings warm VMs to run, or hot ones back to rest; in the background, some at a time.
fn heat(shared: &Arc<Shared>, state: &Arc<PoolState>, survey: &Survey, plan: &PoolPlan) {
    if !shared.pools.needs_memory {
        return;
    }
    let more = plan.heat.saturating_sub(state.to_heat.load(Ordering::Acquire));
    if more > 0 {
        shared.tasks.spawn(heat_some(Arc::clone(shared), ToHeat::new(state, more)));
    }
    for vm in survey.hot.iter().rev().take(usize::try_from(plan.cool).unwrap_or(usize::MAX)) {
        let ticket = Lot::take_out(state, vm);
        let Ok(handle) = shared.registry.get(vm) else { continue };
        shared.tasks.spawn(async move {
            let done = handle.call(|vm| Box::pin(vm.cool("no longer kept hot"))).await;
            if let Err(error) = done {
                tracing::debug!(vm = %handle.id, %error, "not cooled");
            }
            if let Some(ticket) = ticket {
                ticket.used();
            }
        });
    }
}

/// VMs that are to be heated; given up when it is dropped.
pub(super) struct ToHeat {
    pub(super) state: Arc<PoolState>,
    pub(super) left: u32,
}

impl Drop for ToHeat {
    fn drop(&mut self) {
        self.state.to_heat.fetch_sub(self.left, Ordering::Relaxed);
        self.state.wake.notify_one();
    }
}

/// Heats VMs one after the other, some at a time. One is only taken out when its turn comes, so that callers find the
/// others; callers who wait go first.
async fn heat_some(shared: Arc<Shared>, mut batch: ToHeat) {
    let state = Arc::clone(&batch.state);
    while batch.left > 0 {
        let Ok(place) = Arc::clone(&state.heating).acquire_owned().await else { return };
        if shared.stopping.is_cancelled() || state.lot().callers() > 0 {
            return;
        }
        let Some(ticket) = Lot::take_warm(&state) else { return };
        let Ok(handle) = shared.registry.get(&ticket.vm) else {
            ticket.used();
            continue;
        };
        batch.left -= 1;
        // Counted until its row says that it is hot.
        let one = ToHeat { state: Arc::clone(&state), left: 1 };
        let shared = Arc::clone(&shared);
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            if let Err(error) = handle.call(|vm| Box::pin(vm.heat())).await {
                tracing::warn!(vm = %handle.id, error = &error as &dyn std::error::Error, "not made hot");
            }
            ticket.used();
            if handle.is_proven() {
                // It was announced while its ticket was under way.
                shared.pools.vm_changed(&handle.row(), true);
            }
            drop((place, one));
        });
    }
}

/// Deletes failed VMs that were kept long enough, and all but the latest few.
async fn sweep(shared: &Arc<Shared>, survey: &mut Survey) {
    let broken = &mut survey.broken;
    broken.sort_unstable();
    let keep_from = broken.len().saturating_sub(BROKEN_KEPT);
    let now = Timestamp::now();
    for (index, (since, vm)) in broken.drain(..).enumerate() {
        let age = now.duration_since(since).unsigned_abs();
        if index < keep_from || age >= shared.settings.keep_broken {
            condemn(shared, &vm).await;
        }
    }
}

pub(super) async fn condemn(shared: &Arc<Shared>, vm: &VmId) {
    let result = match shared.registry.get(vm) {
        Ok(handle) => handle.call(|vm| Box::pin(vm.condemn())).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::debug!(%vm, %error, "not deleted");
    }
}

/// Deletes the VMs of a pool that is being deleted, then the pool. Whoever still has one of them loses it: a pool with leases
/// is only deleted by force, and the daemon may have died before it had ended them all.
async fn dissolve(shared: &Arc<Shared>, pool: &Pool) -> Result<Next> {
    let mut left = Vec::new();
    shared.registry.each_of(&pool.id, |row| {
        left.push((row.id.clone(), row.availability == Availability::Leased));
    });
    let any = !left.is_empty();
    for (vm, leased) in &left {
        if *leased
            && let Ok(handle) = shared.registry.get(vm)
            && let Err(error) = handle.call(|vm| Box::pin(vm.revoke("its pool was deleted"))).await
        {
            tracing::warn!(%vm, error = &error as &dyn std::error::Error, "lease not ended");
        }
        condemn(shared, vm).await;
    }
    if any {
        return Ok(Next::Wait(LOOK_EVERY));
    }
    shared.store.delete_pool(&pool.id, Event::of_pool(EventKind::PoolDeleted, pool, "")).await?;
    tracing::info!(pool = %pool.id, "pool deleted");
    Ok(Next::Gone)
}
