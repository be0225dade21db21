//! Pools: who is ready, who waits, and a controller per pool that makes up for what is missing.
//!
//! ```text
//!   callers ──wish──► queue ─┐                       ┌── a VM's row changed
//!                            ├─► lot ──ticket──► actor (decides)
//!   preempted leases ────────┘    ▲
//!                                 └── controller: makes, heats, replaces, deletes, preempts
//! ```
//!
//! `lot` brings ready VMs and those who wait together, `control` is the controller, `survey` counts, `making` makes VMs,
//! `hot` knows the short way from a lease back to being hot, `preempt` saves and resumes leased ones.

mod control;
mod hot;
mod lot;
mod making;
mod preempt;
mod survey;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::actor::readiness;
use super::request::Stage;
use super::view::QueueView;
use crate::model::breaker::Breaker;
use crate::model::ids::{PoolId, TemplateId, VmId};
use crate::model::queue::{Needs, Place, Queue, Wish};
use crate::model::record::{Availability, Vm};
pub(super) use control::control;
pub(super) use hot::{Claim, HotPlace};
use lot::{Facts, Lot, Saving, Waiting};
pub(super) use lot::{Ready, Ticket};
pub(super) use making::new_row;
pub(super) use preempt::wish;
pub(super) use survey::status;

/// All pools this daemon controls.
pub(super) struct Pools {
    all: Mutex<HashMap<PoolId, Arc<PoolState>>>,
    /// Templates that fail, whichever pool uses them.
    breakers: Mutex<HashMap<TemplateId, Breakers>>,
    /// How many VMs are hot.
    hot: Mutex<HashMap<PoolId, Arc<AtomicU32>>>,
    /// Memory of VMs that are to be made and have no row yet, in MiB.
    planned_mb: AtomicU64,
    /// VMs wait saved; on a hypervisor without saving they wait running.
    needs_memory: bool,
    /// Grows when a pool that had no VM to spare has one.
    chances: Arc<watch::Sender<u64>>,
    settings: super::Settings,
    /// Where the queue's clock begins.
    began: Instant,
}

/// What may fail with a template.
#[derive(Default)]
pub(super) struct Breakers {
    /// Making a VM.
    making: Breaker,
    /// Its becoming ready.
    readiness: Breaker,
}

/// What is known of one pool while the daemon runs.
pub(super) struct PoolState {
    id: PoolId,
    /// A VM changed or somebody waits: look when there is time.
    wake: Notify,
    /// The pool itself was changed: look now.
    changed: Notify,
    /// The pool is deleted, or the daemon stops.
    over: CancellationToken,
    lot: Mutex<Lot>,
    /// Grows whenever somebody's place may have changed.
    moves: watch::Sender<u64>,
    /// VMs that may be made at the same time.
    places: Arc<Semaphore>,
    /// VMs that may be brought to run at the same time.
    heating: Arc<Semaphore>,
    /// VMs that are to be made and have no row yet.
    planned: AtomicU32,
    /// VMs that are hot, shown to be so by their rows.
    hot: Arc<AtomicU32>,
    /// VMs that are to be brought to run.
    to_heat: AtomicU32,
    /// Since when there are more idle VMs than a pool that follows demand keeps.
    surplus_since: Mutex<Option<Instant>>,
    /// Of all pools.
    chances: Arc<watch::Sender<u64>>,
}

impl PoolState {
    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.lot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) {
        self.moves.send_modify(|moves| *moves = moves.wrapping_add(1));
    }

    /// A VM is ready.
    fn offer(this: &Arc<Self>, vm: VmId, facts: Facts, now: i64) {
        let had_some = {
            let mut lot = this.lot();
            let had_some = lot.ready() > 0;
            if lot.put(vm.clone(), facts) && lot.came_free(&vm) {
                lot.rate.came(now);
            }
            had_some
        };
        Self::bring_together(this);
        this.tell_of_chance(had_some);
    }
}

/// A caller's place in a queue, given up when it is dropped.
struct Spot<'a> {
    pool: &'a PoolState,
    place: Place,
}

impl Drop for Spot<'_> {
    fn drop(&mut self) {
        if self.pool.lot().queue.leave(self.place).is_some() {
            self.pool.moved();
        }
    }
}

/// One caller's way through the queue: whoever got a VM that was no good comes back to the place they had.
pub(super) struct Turn {
    pub(super) wish: Wish,
    place: Option<Place>,
    stage: Option<watch::Sender<Stage>>,
}

impl Turn {
    pub(super) fn new(wish: Wish, stage: Option<watch::Sender<Stage>>) -> Self {
        Self { wish, place: None, stage }
    }

    /// Tells whoever watches.
    pub(super) fn tell(&self, stage: Stage) {
        if let Some(watched) = &self.stage {
            watched.send_replace(stage);
        }
    }
}

impl Pools {
    pub(super) fn new(needs_memory: bool, settings: &super::Settings) -> Self {
        Self {
            all: Mutex::default(),
            breakers: Mutex::default(),
            hot: Mutex::default(),
            planned_mb: AtomicU64::new(0),
            needs_memory,
            chances: Arc::default(),
            settings: settings.clone(),
            began: Instant::now(),
        }
    }

    /// Microseconds on the queue's clock.
    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PoolId, Arc<PoolState>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &PoolId) -> Option<Arc<PoolState>> {
        self.all().get(id).cloned()
    }

    /// What is known of a template's failures.
    fn breaker<T>(&self, template: &TemplateId, look: impl FnOnce(&mut Breakers) -> T) -> T {
        let mut all = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        look(all.entry(template.clone()).or_default())
    }

    /// A VM of this template became ready, or failed to.
    pub(super) fn proved(&self, template: &TemplateId, failure: Option<&str>) {
        let now = self.now();
        self.breaker(template, |known| match failure {
            None => known.readiness.worked(),
            Some(why) => known.readiness.failed(now, why),
        });
    }

    /// A VM's row changed. `proven`: its hot desktop is.
    pub(super) fn vm_changed(&self, row: &Vm, proven: bool) {
        let Some(pool) = row.pool.as_ref().and_then(|id| self.get(id)) else { return };
        match readiness(row, self.needs_memory, proven) {
            Some(ready) => PoolState::offer(&pool, row.id.clone(), Facts::of(row, ready), self.now()),
            None => {
                let mut lot = pool.lot();
                lot.withdraw(&row.id);
                if row.availability == Availability::Leased {
                    lot.is_leased(&row.id);
                }
            }
        }
        if !row.state.is_transient() {
            pool.wake.notify_one();
        }
    }

    /// A hot VM was proven once more.
    pub(super) fn proven_again(&self, pool: &PoolId, vm: &VmId) {
        if let Some(pool) = self.get(pool) {
            pool.lot().proven_again(vm);
        }
    }

    /// A VM is gone.
    pub(super) fn vm_gone(&self, row: &Vm) {
        if let Some(pool) = row.pool.as_ref().and_then(|id| self.get(id)) {
            pool.lot().is_gone(&row.id);
            pool.wake.notify_one();
        }
    }

    /// Something about the pool changed.
    pub(super) fn wake(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            pool.wake.notify_one();
            pool.changed.notify_one();
        }
    }

    /// The pool's template may work now: somebody changed it, or made another.
    pub(super) fn hurry(&self, template: &TemplateId) {
        self.breaker(template, |known| {
            known.making.hurry();
            known.readiness.hurry();
        });
    }

    /// Whether VMs of the pool may be leased.
    pub(super) fn is_open(&self, id: &PoolId) -> bool {
        self.get(id).is_some_and(|pool| {
            let lot = pool.lot();
            !lot.closed && !lot.paused
        })
    }

    /// Whether a VM for these needs is ready now, and how many wait.
    pub(super) fn outlook(&self, id: &PoolId, needs: &Needs) -> (bool, usize) {
        self.get(id).map_or((false, usize::MAX), |pool| {
            let lot = pool.lot();
            (lot.serves(needs), lot.queue.len())
        })
    }

    /// Pools that have a VM for whoever comes next.
    pub(super) fn with_vms(&self) -> Vec<PoolId> {
        let all: Vec<_> = self.all().values().cloned().collect();
        let any = Needs::default();
        all.into_iter().filter(|pool| pool.lot().serves(&any)).map(|pool| pool.id.clone()).collect()
    }

    /// Changes when a pool may have joined those of [`Pools::with_vms`].
    pub(super) fn chances(&self) -> watch::Receiver<u64> {
        self.chances.subscribe()
    }

    /// Somebody wants a VM of a pool that has one to spare.
    pub(super) fn chance(&self) {
        self.chances.send_modify(|chances| *chances = chances.wrapping_add(1));
    }

    /// Waits for a VM; nothing when the deadline passes or the pool goes away.
    pub(super) async fn take(&self, id: &PoolId, turn: &mut Turn, deadline: Instant) -> Option<Ticket> {
        let pool = self.get(id)?;
        let (next, mut answer) = oneshot::channel();
        let place = {
            let mut lot = pool.lot();
            if lot.closed {
                return None;
            }
            let waiting = Waiting::Caller(next);
            match turn.place {
                Some(place) => {
                    lot.queue.again(place, turn.wish.clone(), waiting);
                    place
                }
                None => lot.queue.enter(self.now(), turn.wish.clone(), waiting),
            }
        };
        turn.place = Some(place);
        // Dropped after the answer: a ticket that came meanwhile is in there, and goes on to the next one.
        let _spot = Spot { pool: &pool, place };
        PoolState::bring_together(&pool);
        if let Ok(ticket) = answer.try_recv() {
            return Some(ticket);
        }
        pool.moved();
        turn.tell(Stage::Queued { pool: id.clone(), place });
        // One more waits: the pool may be allowed to grow.
        pool.wake.notify_one();
        let ticket = timeout_at(deadline, answer).await.ok()?.ok();
        if ticket.is_none() {
            tracing::debug!(pool = %id, "the pool went away while a caller waited");
        }
        ticket
    }

    /// How a caller's place stands.
    pub(super) fn queued(&self, id: &PoolId, place: Place) -> QueueView {
        let mut view = QueueView { pool: Some(id.clone()), ..QueueView::default() };
        let Some(pool) = self.get(id) else { return view };
        let lot = pool.lot();
        view.waiting = u32::try_from(lot.queue.len()).unwrap_or(u32::MAX);
        if let Some(ahead) = lot.queue.ahead(place) {
            view.position = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
            view.eta = if lot.paused { None } else { lot.rate.eta(self.now(), ahead) };
        }
        view.reason = match (lot.saving.get(&place), lot.shortfalls.first()) {
            (Some(Saving { lease, priority }), _) => {
                format!("lease {lease} of priority {priority} is being saved for you")
            }
            (None, Some(shortfall)) => shortfall.detail.clone(),
            (None, None) => "all vms are leased".to_owned(),
        };
        view
    }

    /// Tells of changes in a pool's queue.
    pub(super) fn moves(&self, id: &PoolId) -> Option<watch::Receiver<u64>> {
        self.get(id).map(|pool| pool.moves.subscribe())
    }

    /// A preempted lease waits for room, by its VM.
    pub(super) fn preempted(&self, id: &PoolId, vm: &VmId, wish: Wish) {
        if let Some(pool) = self.get(id) {
            pool.lot().queue.enter(self.now(), wish, Waiting::Preempted(vm.clone()));
            pool.moved();
            pool.wake.notify_one();
        }
    }

    /// A preempted lease needs no room any more.
    pub(super) fn not_preempted(&self, id: &PoolId, vm: &VmId) {
        let Some(pool) = self.get(id) else { return };
        let left = {
            let mut lot = pool.lot();
            let own = |what: &Waiting| matches!(what, Waiting::Preempted(of) if of == vm);
            let place = lot.queue.iter().find(|(.., what)| own(what)).map(|(place, ..)| place);
            place.and_then(|place| lot.queue.leave(place))
        };
        if left.is_some() {
            pool.moved();
            PoolState::bring_together(&pool);
        }
    }

    /// Sends everybody who waits away.
    pub(super) fn close_all(&self) {
        let all: Vec<_> = self.all().values().cloned().collect();
        for pool in all {
            Self::empty(&pool);
        }
    }

    /// Sends everybody away who waits for this pool; nobody can wait any more.
    pub(super) fn close_queue(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            Self::empty(&pool);
        }
    }

    fn empty(pool: &PoolState) {
        let waiting = {
            let mut lot = pool.lot();
            lot.closed = true;
            lot.queue.clear()
        };
        drop(waiting);
        pool.moved();
    }

    /// A pool of the same name may have been made since this one's row went.
    fn forget(&self, state: &Arc<PoolState>) {
        Self::empty(state);
        let mut all = self.all();
        if all.get(&state.id).is_some_and(|present| Arc::ptr_eq(present, state)) {
            all.remove(&state.id);
        }
        drop(all);
        state.over.cancel();
    }

    /// Cancelled when the pool is gone, its VMs before it, or the daemon stops.
    pub(super) fn over(&self, id: &PoolId) -> Option<CancellationToken> {
        self.get(id).map(|pool| pool.over.clone())
    }

    /// No VM of the pool is leased from now on; those who wait go on waiting.
    pub(super) fn close(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            pool.lot().closed = true;
        }
    }

    /// Lets VMs of the pool be leased again.
    pub(super) fn reopen(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            pool.lot().closed = false;
            PoolState::bring_together(&pool);
            pool.tell_of_chance(false);
        }
    }

    /// Stops leasing VMs of the pool, or begins again.
    pub(super) fn pause(&self, id: &PoolId, paused: bool) {
        if let Some(pool) = self.get(id) {
            pool.lot().paused = paused;
            PoolState::bring_together(&pool);
            pool.tell_of_chance(paused);
            pool.moved();
        }
        self.wake(id);
    }

    fn queue(&self) -> Queue<Waiting> {
        Queue::new(self.settings.queue_ageing.max(Duration::from_micros(1)))
    }
}
