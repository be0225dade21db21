//! How many VMs of a pool are hot, and the short way back to being so.
//!
//! The controller counts all of a pool's VMs now and then, and has some of them heated. A VM that comes back from a lease
//! need not wait for that, and need not be offered as a saved one first: its actor asks for a [`Claim`] as soon as it is
//! clean. What is decided so is no more than what the controller would do, and it puts right what was wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OwnedSemaphorePermit;

use super::control::ToHeat;
use super::{PoolState, Pools};
use crate::model::ids::PoolId;

/// A hot VM's part of the count, held by its actor.
pub(in crate::orchestrator) struct HotPlace(Arc<AtomicU32>);

impl Drop for HotPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to bring a VM to run, held until its row says that it is hot.
pub(in crate::orchestrator) struct Claim {
    _place: OwnedSemaphorePermit,
    _counted: ToHeat,
}

impl Pools {
    /// The count of a pool's hot VMs. It is there before the pool is controlled: its VMs are taken over first.
    pub(super) fn hot_count(&self, pool: &PoolId) -> Arc<AtomicU32> {
        let mut all = self.hot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(all.entry(pool.clone()).or_default())
    }

    /// Counts one more.
    pub(in crate::orchestrator) fn hot_place(&self, pool: &PoolId) -> HotPlace {
        let count = self.hot_count(pool);
        count.fetch_add(1, Ordering::Relaxed);
        HotPlace(count)
    }

    /// Whether a VM that is just clean again is to run at once: the pool wants more hot ones than it has, nobody waits who
    /// would take it as it is, and not too many are on their way.
    pub(in crate::orchestrator) fn claim_heat(&self, pool: &PoolId) -> Option<Claim> {
        let state = self.get(pool)?;
        // Also keeps two claims from meeting.
        let lot = state.lot();
        let coming = state.hot.load(Ordering::Relaxed) + state.to_heat.load(Ordering::Relaxed);
        if lot.closed || lot.paused || lot.callers() > 0 || coming >= lot.hot_wanted {
            return None;
        }
        let place = Arc::clone(&state.heating).try_acquire_owned().ok()?;
        let counted = ToHeat::new(&state, 1);
        Some(Claim { _place: place, _counted: counted })
    }
}

impl ToHeat {
    pub(super) fn new(state: &Arc<PoolState>, left: u32) -> Self {
        state.to_heat.fetch_add(left, Ordering::Relaxed);
        Self { state: Arc::clone(state), left }
    }
}
