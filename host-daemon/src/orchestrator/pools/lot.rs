//! What is ready in a pool and who waits, brought together under one lock.
//!
//! A ready VM goes to the first in the queue whom it fits, as a [`Ticket`]; a ticket that is dropped unused gives its VM
//! back. The ticket is only an invitation: the VM's actor decides with a transaction who gets it. A preempted lease stands
//! in the queue like a caller; it wants no VM but the room for its own, so nobody behind it is served before it has it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::PoolState;
use crate::model::ids::{TemplateId, VmId};
use crate::model::queue::{Needs, Place, Queue, Rate, Wish};
use crate::model::record::Vm;
use crate::orchestrator::view::Shortfall;

/// How a VM is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::orchestrator) enum Ready {
    /// Running, and proven all the time.
    Hot,
    /// Saved and clean; running and clean where nothing can be saved.
    Warm,
}

/// What a caller may ask of a VM.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    template: TemplateId,
    gpu: bool,
    ready: Ready,
}

impl Facts {
    pub(super) fn of(row: &Vm, ready: Ready) -> Self {
        Self { template: row.template.clone(), gpu: row.gpu, ready }
    }
}

/// Who stands in the queue.
pub(super) enum Waiting {
    /// A caller, who takes a ticket.
    Caller(oneshot::Sender<Ticket>),
    /// A preempted lease, by its VM.
    Preempted(VmId),
}

/// See the module.
pub(super) struct Lot {
    hot: BTreeMap<VmId, Facts>,
    warm: BTreeMap<VmId, Facts>,
    /// VMs whose tickets are under way.
    invited: HashSet<VmId>,
    pub(super) queue: Queue<Waiting>,
    pub(super) rate: Rate,
    /// Why anything is missing, as the controller last saw it.
    pub(super) shortfalls: Vec<Shortfall>,
    /// No VM is leased and nobody waits: the pool is being deleted, or the daemon stops.
    pub(super) closed: bool,
    /// No VM is leased; callers wait.
    pub(super) paused: bool,
}

/// An invitation to lease a VM. Dropped unused, the VM goes to the next one.
pub(in crate::orchestrator) struct Ticket {
    pub(in crate::orchestrator) vm: VmId,
    facts: Facts,
    pool: Arc<PoolState>,
    used: bool,
}

impl Ticket {
    /// The VM was leased, or turned out not to be ready.
    pub(in crate::orchestrator) fn used(mut self) {
        self.used = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        {
            let mut lot = self.pool.lot();
            lot.invited.remove(&self.vm);
            if !self.used {
                lot.put(self.vm.clone(), self.facts.clone());
            }
        }
        if self.used {
            // It may have become ready again before its ticket went.
            self.pool.wake.notify_one();
        } else {
            PoolState::bring_together(&self.pool);
        }
    }
}

impl Lot {
    pub(super) fn new(queue: Queue<Waiting>) -> Self {
        Self {
            hot: BTreeMap::new(),
            warm: BTreeMap::new(),
            invited: HashSet::new(),
            queue,
            rate: Rate::default(),
            shortfalls: Vec::new(),
            closed: false,
            paused: false,
        }
    }

    /// A VM is ready. One whose ticket is under way is not offered again: whoever is invited in vain loses time. Gives
    /// whether it is news.
    pub(super) fn put(&mut self, vm: VmId, facts: Facts) -> bool {
        if self.invited.contains(&vm) {
            return false;
        }
        let (to, from) = match facts.ready {
            Ready::Hot => (&mut self.hot, &mut self.warm),
            Ready::Warm => (&mut self.warm, &mut self.hot),
        };
        from.remove(&vm);
        to.insert(vm, facts).is_none()
    }

    /// A VM is not ready any more.
    pub(super) fn withdraw(&mut self, vm: &VmId) {
        self.hot.remove(vm);
        self.warm.remove(vm);
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.hot.len() + self.warm.len()
    }

    /// How many of them are hot.
    pub(super) fn hot(&self) -> usize {
        self.hot.len()
    }

    /// Whether one of the ready ones will do.
    pub(super) fn has(&self, needs: &Needs) -> bool {
        self.pick(needs).is_some()
    }

    /// Callers who wait.
    pub(super) fn callers(&self) -> usize {
        self.queue.iter().filter(|(.., what)| matches!(what, Waiting::Caller(_))).count()
    }

    /// The preempted lease that is next to get room, by its VM.
    pub(super) fn next_preempted(&self) -> Option<(Place, Wish, VmId)> {
        match self.queue.iter().next()? {
            (place, wish, Waiting::Preempted(vm)) => Some((place, wish.clone(), vm.clone())),
            _ => None,
        }
    }

    /// A VM for these needs, the readiest first.
    fn pick(&self, needs: &Needs) -> Option<VmId> {
        let mut all = self.hot.iter().chain(&self.warm);
        all.find(|(_, facts)| needs.fits(&facts.template, facts.gpu)).map(|(vm, _)| vm.clone())
    }

    /// Takes a ready VM out for the controller's own use; the last ones: the others are in the page cache.
    pub(super) fn take_out(this: &Arc<PoolState>, which: impl Fn(&VmId, Ready) -> bool) -> Option<Ticket> {
        let mut lot = this.lot();
        let all = lot.warm.iter().rev().chain(lot.hot.iter().rev());
        let vm = all.into_iter().find(|(vm, facts)| which(vm, facts.ready)).map(|(vm, _)| vm.clone())?;
        lot.invite(this, vm)
    }

    fn invite(&mut self, pool: &Arc<PoolState>, vm: VmId) -> Option<Ticket> {
        let facts = self.hot.remove(&vm).or_else(|| self.warm.remove(&vm))?;
        self.invited.insert(vm.clone());
        Some(Ticket { vm, facts, pool: Arc::clone(pool), used: false })
    }

    /// The next caller to be served, and the VM.
    fn next_pair(&self) -> Option<(Place, VmId)> {
        if self.closed || self.paused || self.ready() == 0 {
            return None;
        }
        for (place, wish, what) in self.queue.iter() {
            match what {
                Waiting::Preempted(_) => return None,
                Waiting::Caller(_) => {
                    if let Some(vm) = self.pick(&wish.needs) {
                        return Some((place, vm));
                    }
                }
            }
        }
        None
    }
}

impl PoolState {
    /// Gives what is ready to those who wait.
    pub(super) fn bring_together(this: &Arc<Self>) {
        loop {
            let (caller, ticket) = {
                let mut lot = this.lot();
                let Some((place, vm)) = lot.next_pair() else {
                    if lot.ready() > 0 && lot.next_preempted().is_some() {
                        // The controller makes room for it.
                        this.wake.notify_one();
                    }
                    return;
                };
                let Some((_, Waiting::Caller(caller))) = lot.queue.leave(place) else { continue };
                let Some(ticket) = lot.invite(this, vm) else { continue };
                (caller, ticket)
            };
            this.moved();
            if let Err(back) = caller.send(ticket) {
                // That one has gone. Not dropped unused, which would come back here.
                let (vm, facts) = (back.vm.clone(), back.facts.clone());
                back.used();
                this.lot().put(vm, facts);
            }
        }
    }
}
