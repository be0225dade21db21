//! What was committed, for everybody who watches.
//!
//! ```text
//!   writer ──commit──► rows (latest of each VM, pool, live lease) ─┐
//!                  └─► ring (last events) ────────────────────────┴─► head ──wakes──► watchers, each at its own position
//! ```
//!
//! The writer brings a whole commit in at once, and nobody sees half of it. A watcher holds no place in any queue: it asks
//! for what comes behind its position, and a slow one costs nothing but its own lag. What has left the ring is read from
//! the store's table. Rows are only ever shown in their latest state, so a watcher that sees them twice never sees them
//! go back.
//!
//! The rows that every call asks for, pools and live leases, are read from here too: a commit is brought in before any of
//! its writes is answered, so whoever has an answer finds what it told. A read of the database costs two task switches.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use crate::model::event::Event;
use crate::model::ids::{LeaseId, PoolId, VmId};
use crate::model::record::{Lease, Pool, Vm};

/// Events kept in memory, about 4 MB of them: half a second of the busiest host that we measure, minutes of others.
const RING: usize = 8192;

/// A row as a commit left it.
#[derive(Debug)]
pub(super) enum RowChange {
    Vm(Arc<Vm>),
    NoVm(VmId),
    Pool(Arc<Pool>),
    NoPool(PoolId),
    Lease(Arc<Lease>),
}

/// What one commit did.
#[derive(Debug, Default)]
pub(super) struct Commit {
    pub(super) events: Vec<Arc<Event>>,
    pub(super) rows: Vec<RowChange>,
    /// The oldest event that is left, where that changed.
    pub(super) floor: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    vms: BTreeMap<VmId, Arc<Vm>>,
    pools: BTreeMap<PoolId, Arc<Pool>>,
    /// Those that have not ended.
    leases: HashMap<LeaseId, Arc<Lease>>,
    /// Gapless, the newest last, which is `head`.
    ring: VecDeque<Arc<Event>>,
    head: u64,
    /// Revision of the oldest event in the store; `head + 1` while there is none.
    floor: u64,
}

/// What comes behind a position.
#[derive(Debug, PartialEq, Eq)]
pub enum Behind {
    /// The next events; none: the position is the head.
    Events(Vec<Arc<Event>>),
    /// They have left the ring: ask the store.
    Left,
}

/// What was committed.
#[derive(Debug)]
pub struct Changes {
    inner: RwLock<Inner>,
    head: watch::Sender<u64>,
}

impl Changes {
    /// `leases`: those that have not ended.
    pub(super) fn new(vms: Vec<Vm>, pools: Vec<Pool>, leases: Vec<Lease>, head: u64, floor: u64) -> Self {
        let inner = Inner {
            vms: vms.into_iter().map(|vm| (vm.id.clone(), Arc::new(vm))).collect(),
            pools: pools.into_iter().map(|pool| (pool.id.clone(), Arc::new(pool))).collect(),
            leases: leases.into_iter().map(|lease| (lease.id.clone(), Arc::new(lease))).collect(),
            ring: VecDeque::new(),
            head,
            floor,
        };
        Self { inner: RwLock::new(inner), head: watch::Sender::new(head) }
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings in what was committed.
    pub(super) fn apply(&self, commit: Commit) {
        let head = {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            for row in commit.rows {
                match row {
                    RowChange::Vm(vm) => drop(inner.vms.insert(vm.id.clone(), vm)),
                    RowChange::NoVm(id) => drop(inner.vms.remove(&id)),
                    RowChange::Pool(pool) => drop(inner.pools.insert(pool.id.clone(), pool)),
                    RowChange::NoPool(id) => drop(inner.pools.remove(&id)),
                    RowChange::Lease(lease) if lease.ended.is_some() => drop(inner.leases.remove(&lease.id)),
                    RowChange::Lease(lease) => drop(inner.leases.insert(lease.id.clone(), lease)),
                }
            }
            for event in commit.events {
                inner.head = event.revision;
                inner.ring.push_back(event);
            }
            while inner.ring.len() > RING {
                inner.ring.pop_front();
            }
            inner.floor = commit.floor.unwrap_or(inner.floor);
            inner.head
        };
        self.head.send_if_modified(|present| std::mem::replace(present, head) != head);
    }

    /// Revision of the newest event.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.inner().head
    }

    /// Whether everything behind a revision is still known.
    #[must_use]
    pub fn reaches(&self, revision: u64) -> bool {
        let inner = self.inner();
        revision <= inner.head && revision + 1 >= inner.floor
    }

    /// Revision of the oldest event that is kept; one behind the head where there is none.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.inner().floor
    }

    /// The head, as it moves.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// The events behind a revision, oldest first, at most so many.
    #[must_use]
    pub fn behind(&self, revision: u64, limit: usize) -> Behind {
        let inner = self.inner();
        let Some(first) = inner.ring.front().map(|event| event.revision) else {
            return if revision >= inner.head { Behind::Events(Vec::new()) } else { Behind::Left };
        };
        if revision + 1 < first {
            return Behind::Left;
        }
        let skip = usize::try_from(revision + 1 - first).unwrap_or(usize::MAX).min(inner.ring.len());
        Behind::Events(inner.ring.range(skip..).take(limit).cloned().collect())
    }

    /// A VM as it is at the head, or later.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> Option<Arc<Vm>> {
        self.inner().vms.get(id).cloned()
    }

    /// A pool as it is at the head, or later.
    #[must_use]
    pub fn pool(&self, id: &PoolId) -> Option<Arc<Pool>> {
        self.inner().pools.get(id).cloned()
    }

    /// A lease that has not ended, as it is at the head or later.
    #[must_use]
    pub fn lease(&self, id: &LeaseId) -> Option<Arc<Lease>> {
        self.inner().leases.get(id).cloned()
    }

    /// VMs by id from behind one on that are wanted, at most so many, and the revision that they show.
    pub fn vms(
        &self,
        after: Option<&VmId>,
        limit: usize,
        wanted: impl Fn(&Vm) -> bool,
    ) -> (Vec<Arc<Vm>>, u64) {
        let inner = self.inner();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = inner.vms.range::<VmId, _>((from, Bound::Unbounded));
        (rows.map(|(_, vm)| vm).filter(|vm| wanted(vm)).take(limit).cloned().collect(), inner.head)
    }

    /// All pools by id, and the revision that they show.
    #[must_use]
    pub fn pools(&self) -> (Vec<Arc<Pool>>, u64) {
        let inner = self.inner();
        (inner.pools.values().cloned().collect(), inner.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::EventKind;

    fn event(revision: u64) -> Arc<Event> {
        let event = Event {
            revision,
            at: jiff::Timestamp::UNIX_EPOCH,
            kind: EventKind::PoolChanged,
            vm: None,
            pool: None,
            lease: None,
            template: None,
            agent: None,
            moved: None,
            ended: None,
            cause: String::new(),
            actor: String::new(),
            duration: None,
        };
        Arc::new(event)
    }

    fn numbers(behind: Behind) -> Vec<u64> {
        match behind {
            Behind::Events(events) => events.iter().map(|event| event.revision).collect(),
            Behind::Left => panic!("left the ring"),
        }
    }

    #[test]
    fn a_position_is_all_that_a_watcher_needs() {
        let changes = Changes::new(Vec::new(), Vec::new(), Vec::new(), 10, 5);
        assert_eq!(numbers(changes.behind(10, 9)), [0; 0]);
        assert_eq!(changes.behind(9, 9), Behind::Left, "it was before this start of the daemon");
        assert!(changes.reaches(4) && changes.reaches(10) && !changes.reaches(3) && !changes.reaches(11));
        changes.apply(Commit { events: (11..=13).map(event).collect(), ..Commit::default() });
        assert_eq!(changes.head(), 13);
        assert_eq!(numbers(changes.behind(10, 9)), [11, 12, 13]);
        assert_eq!(numbers(changes.behind(11, 1)), [12]);
        assert_eq!(numbers(changes.behind(13, 9)), [0; 0]);
        assert_eq!(changes.behind(9, 9), Behind::Left);
    }

    #[test]
    fn the_ring_is_bounded() {
        let changes = Changes::new(Vec::new(), Vec::new(), Vec::new(), 0, 1);
        let last = RING as u64 + 5;
        changes.apply(Commit { events: (1..=last).map(event).collect(), ..Commit::default() });
        assert_eq!(changes.behind(4, 1), Behind::Left);
        assert_eq!(numbers(changes.behind(5, 1)), [6]);
        assert!(changes.reaches(0), "the store still has them");
        changes.apply(Commit { floor: Some(3), ..Commit::default() });
        assert!(!changes.reaches(1) && changes.reaches(2));
    }

    #[test]
    fn only_a_new_head_wakes() {
        let changes = Changes::new(Vec::new(), Vec::new(), Vec::new(), 0, 1);
        let mut head = changes.subscribe();
        changes.apply(Commit::default());
        assert!(!head.has_changed().expect("open"));
        changes.apply(Commit { events: vec![event(1)], ..Commit::default() });
        assert!(head.has_changed().expect("open"));
        assert_eq!(*head.borrow_and_update(), 1);
    }
}
