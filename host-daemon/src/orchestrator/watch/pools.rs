//! Watching pools: their settings, which change with events, and their status, which follows from their VMs and from who
//! waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Delta, Follower, Outlet, Phase, Watch};
use crate::model::error::Result;
use crate::model::event::{EventFilter, Revision};
use crate::model::ids::PoolId;
use crate::model::record::Pool;
use crate::orchestrator::view::{PoolStatus, PoolView};
use crate::orchestrator::{Orchestrator, Shared, pools};

/// Statuses are looked at this often: not everything that changes one is an event.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two looks at one pool's VMs, for all who watch it.
const FRESH: Duration = Duration::from_millis(200);

/// From an event to the look: VMs show a change a moment after it is committed, and changes come in bursts.
const GATHER: Duration = Duration::from_millis(50);

/// What watches share.
#[derive(Default)]
pub(in crate::orchestrator) struct Watches {
    /// The last look at each pool's VMs, which costs as much as the host has VMs.
    statuses: Mutex<HashMap<PoolId, (Instant, Arc<PoolStatus>)>>,
}

impl Watches {
    fn status(&self, shared: &Shared, pool: &Pool) -> Arc<PoolStatus> {
        let mut all = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, status)) = all.get(&pool.id)
            && now < *at + FRESH
        {
            return Arc::clone(status);
        }
        // Those of pools that nobody asks for any more would stay for ever.
        all.retain(|_, (at, _)| now < *at + 10 * LOOK_EVERY);
        let status = Arc::new(pools::status(shared, pool));
        all.insert(pool.id.clone(), (now, Arc::clone(&status)));
        status
    }
}

type Message = Delta<PoolView, PoolId>;
type Known = BTreeMap<PoolId, (Arc<Pool>, Arc<PoolStatus>)>;

impl Orchestrator {
    /// Watches all pools, or one.
    ///
    /// # Errors
    /// [`Reason::RevisionGone`](crate::model::error::Reason::RevisionGone), now or later;
    /// [`Reason::WatchTooSlow`](crate::model::error::Reason::WatchTooSlow).
    pub fn watch_pools(&self, only: Option<PoolId>, from: Option<Revision>) -> Result<Watch<Message>> {
        let from = self.reachable(from)?;
        Ok(self.watch(move |shared, outlet| follow(shared, only, from, outlet)))
    }
}

async fn follow(
    shared: Arc<Shared>,
    only: Option<PoolId>,
    from: Option<u64>,
    outlet: Outlet<Message>,
) -> Result<()> {
    let filter = EventFilter { pool: only.clone(), ..EventFilter::default() };
    let head = shared.store.changes().head();
    let mut follower = Follower::new(&shared, filter, from.unwrap_or(head));
    let mut known = Known::new();
    // Whoever goes on from a revision needs to hear of pools that something happened to, also of those that are gone.
    let mut touched = BTreeSet::new();
    while from.is_some() && !follower.caught_up {
        touched.extend(follower.read().await?.iter().filter_map(|event| event.pool.clone()));
    }
    let mut first = look(&shared, only.as_ref(), &mut known);
    if from.is_some() {
        first.items.retain(|view| touched.contains(&view.pool.id));
        first.removed = touched.into_iter().filter(|id| !known.contains_key(id)).collect();
    }
    let mut told = follower.revision(follower.at);
    let mut delta = Message { phase: Phase::Synced, revision: Some(told), ..first };
    loop {
        if delta.phase == Phase::Synced || !delta.items.is_empty() || !delta.removed.is_empty() {
            outlet.send(delta, Some(told)).await?;
            follower.told = Instant::now();
        }
        let bookmark = follower.wait(Some(Instant::now() + LOOK_EVERY)).await;
        tokio::time::sleep(GATHER).await;
        // Only the position is of interest: what happened shows in the pools.
        follower.read().await?;
        while !follower.caught_up {
            follower.read().await?;
        }
        told = follower.revision(follower.at);
        delta = look(&shared, only.as_ref(), &mut known);
        delta.revision = Some(told);
        if bookmark && delta.items.is_empty() && delta.removed.is_empty() {
            let at = Message { phase: Phase::Bookmark, ..delta };
            outlet.send(at, Some(told)).await?;
            follower.told = Instant::now();
            delta = Message { items: Vec::new(), removed: Vec::new(), phase: Phase::Change, revision: None };
        }
    }
}

/// What is different from what the client knows.
fn look(shared: &Shared, only: Option<&PoolId>, known: &mut Known) -> Message {
    let changes = shared.store.changes();
    let pools = match only {
        Some(id) => changes.pool(id).into_iter().collect(),
        None => changes.pools().0,
    };
    let mut items = Vec::new();
    for pool in &pools {
        let status = shared.watches.status(shared, pool);
        let now = (Arc::clone(pool), status);
        if known.get(&pool.id) != Some(&now) {
            known.insert(pool.id.clone(), now.clone());
            items.push(PoolView { pool: Pool::clone(pool), status: PoolStatus::clone(&now.1) });
        }
    }
    let mut removed = Vec::new();
    known.retain(|id, _| {
        let there = pools.iter().any(|pool| pool.id == *id);
        if !there {
            removed.push(id.clone());
        }
        there
    });
    Message { items, removed, phase: Phase::Change, revision: None }
}
