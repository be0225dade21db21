//! What is ready in a pool and who waits, brought together under one lock.
//!
//! A ready VM goes to the first in the queue whom it fits, as a [`Ticket`]; a ticket that is dropped unused gives its VM
//! back. The ticket is only an invitation: the VM's actor decides with a transaction who gets it. A preempted lease stands
//! in the queue like a caller; it wants no VM but the room for its own, so nobody behind it is served before it has it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::PoolState;
use crate::model::ids::{LeaseId, TemplateId, VmId};
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
    pub(super) ready: Ready,
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

/// A less important lease that makes room.
pub(super) struct Saving {
    pub(super) lease: LeaseId,
    pub(super) priority: i32,
}

/// See the module.
pub(super) struct Lot {
    /// Each with when it was proven last.
    hot: HashMap<VmId, (u64, Facts)>,
    /// By when they were proven last: an older proof is too old for a receipt sooner.
    proven: BTreeMap<u64, VmId>,
    /// Counts proofs.
    proofs: u64,
    warm: BTreeMap<VmId, Facts>,
    /// VMs whose tickets are under way.
    invited: HashSet<VmId>,
    pub(super) queue: Queue<Waiting>,
    pub(super) rate: Rate,
    /// VMs that are leased.
    leased: HashSet<VmId>,
    /// VMs that went with their lease and were not made good yet.
    owed: u32,
    /// Leases that are being saved for those who wait.
    pub(super) saving: HashMap<Place, Saving>,
    /// Why anything is missing, as the controller last saw it.
    pub(super) shortfalls: Vec<Shortfall>,
    /// No VM is leased and nobody waits: the pool is being deleted, or the daemon stops.
    pub(super) closed: bool,
    /// No VM is leased; callers wait.
    pub(super) paused: bool,
    /// VMs that the pool is to keep hot.
    pub(super) hot_wanted: u32,
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
        let had_some = {
            let mut lot = self.pool.lot();
            let had_some = lot.ready() > 0;
            lot.invited.remove(&self.vm);
            if !self.used {
                lot.put(self.vm.clone(), self.facts.clone());
            }
            had_some
        };
        if self.used {
            // It may have become ready again before its ticket went.
            self.pool.wake.notify_one();
        } else {
            PoolState::bring_together(&self.pool);
            self.pool.tell_of_chance(had_some);
        }
    }
}

impl Lot {
    pub(super) fn new(queue: Queue<Waiting>) -> Self {
        Self {
            hot: HashMap::new(),
            proven: BTreeMap::new(),
            proofs: 0,
            warm: BTreeMap::new(),
            invited: HashSet::new(),
            queue,
            rate: Rate::default(),
            leased: HashSet::new(),
            owed: 0,
            saving: HashMap::new(),
            shortfalls: Vec::new(),
            closed: false,
            paused: false,
            hot_wanted: 0,
        }
    }

    /// A VM is ready. One whose ticket is under way is not offered again: whoever is invited in vain loses time. Gives
    /// whether it is news.
    pub(super) fn put(&mut self, vm: VmId, facts: Facts) -> bool {
        if self.invited.contains(&vm) {
            return false;
        }
        match facts.ready {
            Ready::Hot => {
                self.warm.remove(&vm);
                if self.hot.contains_key(&vm) {
                    return false;
                }
                self.proofs += 1;
                self.proven.insert(self.proofs, vm.clone());
                self.hot.insert(vm, (self.proofs, facts)).is_none()
            }
            Ready::Warm => {
                self.cool(&vm);
                self.warm.insert(vm, facts).is_none()
            }
        }
    }

    fn cool(&mut self, vm: &VmId) -> Option<Facts> {
        let (proof, facts) = self.hot.remove(vm)?;
        self.proven.remove(&proof);
        Some(facts)
    }

    /// A hot VM was proven again.
    pub(super) fn proven_again(&mut self, vm: &VmId) {
        if let Some((proof, _)) = self.hot.get_mut(vm) {
            self.proven.remove(proof);
            self.proofs += 1;
            *proof = self.proofs;
            self.proven.insert(self.proofs, vm.clone());
        }
    }

    /// Whether it is known to be ready in this way, or its ticket is under way.
    pub(super) fn knows(&self, vm: &VmId, ready: Ready) -> bool {
        let there = match ready {
            Ready::Hot => self.hot.contains_key(vm),
            Ready::Warm => self.warm.contains_key(vm),
        };
        there || self.invited.contains(vm)
    }

    /// A VM is not ready any more.
    pub(super) fn withdraw(&mut self, vm: &VmId) {
        self.cool(vm);
        self.warm.remove(vm);
    }

    /// Somebody has it.
    pub(super) fn is_leased(&mut self, vm: &VmId) {
        if !self.leased.contains(vm) {
            self.leased.insert(vm.clone());
        }
    }

    /// It exists no more.
    pub(super) fn is_gone(&mut self, vm: &VmId) {
        self.withdraw(vm);
        self.owed += u32::from(self.leased.remove(vm));
    }

    /// Whether a VM that is ready was leased before, or stands for one that was. What the pool grows by is no sign of when
    /// the next one comes.
    pub(super) fn came_free(&mut self, vm: &VmId) -> bool {
        if self.leased.remove(vm) {
            return true;
        }
        let stands_for_one = self.owed > 0;
        self.owed -= u32::from(stands_for_one);
        stands_for_one
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

    /// Whether somebody who comes now gets one of the ready ones.
    pub(super) fn serves(&self, needs: &Needs) -> bool {
        !self.paused && !self.closed && self.has(needs)
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
        let fits = |facts: &Facts| needs.fits(&facts.template, facts.gpu);
        let hot = self.proven.values().rev().filter_map(|vm| self.hot.get_key_value(vm));
        let hot = hot.map(|(vm, (_, facts))| (vm, facts)).find(|(_, facts)| fits(facts));
        hot.or_else(|| self.warm.iter().find(|(_, facts)| fits(facts))).map(|(vm, _)| vm.clone())
    }

    /// Takes a warm VM out for the controller's own use; the last one: the others are in the page cache.
    pub(super) fn take_warm(this: &Arc<PoolState>) -> Option<Ticket> {
        let mut lot = this.lot();
        let vm = lot.warm.last_key_value()?.0.clone();
        lot.invite(this, vm)
    }

    /// The same for any, a hot one where there is no other.
    pub(super) fn take_any(this: &Arc<PoolState>) -> Option<Ticket> {
        let mut lot = this.lot();
        let warm = lot.warm.last_key_value().map(|(vm, _)| vm.clone());
        let vm = warm.or_else(|| lot.proven.first_key_value().map(|(_, vm)| vm.clone()))?;
        lot.invite(this, vm)
    }

    /// Takes a VM out for the controller's own use, if it is ready.
    pub(super) fn take_out(this: &Arc<PoolState>, vm: &VmId) -> Option<Ticket> {
        this.lot().invite(this, vm.clone())
    }

    fn invite(&mut self, pool: &Arc<PoolState>, vm: VmId) -> Option<Ticket> {
        let facts = self.cool(&vm).or_else(|| self.warm.remove(&vm))?;
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
    /// Tells those who wait for another pool that this one has VMs left over, unless it `had_some` before.
    pub(super) fn tell_of_chance(&self, had_some: bool) {
        if !had_some && self.lot().ready() > 0 {
            self.chances.send_modify(|chances| *chances = chances.wrapping_add(1));
        }
    }

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn vm(name: &str) -> VmId {
        VmId::new(name).expect("an id")
    }

    fn facts(ready: Ready) -> Facts {
        Facts { template: TemplateId::new("linux").expect("an id"), gpu: false, ready }
    }

    #[test]
    fn the_one_proven_last_is_leased_first_and_a_warm_one_last() {
        let mut lot = Lot::new(Queue::new(Duration::from_secs(30)));
        let any = Needs::default();
        lot.put(vm("aa"), facts(Ready::Warm));
        assert!(lot.put(vm("bb"), facts(Ready::Hot)));
        assert!(lot.put(vm("cc"), facts(Ready::Hot)));
        assert_eq!(lot.pick(&any), Some(vm("cc")));
        lot.proven_again(&vm("bb"));
        assert!(!lot.put(vm("cc"), facts(Ready::Hot)), "to be told twice is no proof");
        assert_eq!(lot.pick(&any), Some(vm("bb")));
        lot.withdraw(&vm("bb"));
        assert_eq!(lot.pick(&any), Some(vm("cc")));
        assert!(lot.put(vm("cc"), facts(Ready::Warm)), "it was put back to rest");
        assert_eq!((lot.pick(&any), lot.hot(), lot.ready()), (Some(vm("aa")), 0, 2));
        assert!(lot.proven.is_empty());
        lot.proven_again(&vm("dd"));
        assert_eq!(lot.ready(), 2, "one that has gone meanwhile stays away");
    }

    #[test]
    fn only_what_was_leased_comes_free() {
        let mut lot = Lot::new(Queue::new(Duration::from_secs(30)));
        assert!(!lot.came_free(&vm("aa")), "it is new");
        lot.is_leased(&vm("aa"));
        lot.is_leased(&vm("aa"));
        assert!(lot.came_free(&vm("aa")));
        assert!(!lot.came_free(&vm("aa")), "it was only heated, or cooled");
        lot.is_leased(&vm("aa"));
        lot.is_gone(&vm("aa"));
        lot.is_gone(&vm("bb"));
        assert!(lot.came_free(&vm("cc")), "in its place");
        assert!(!lot.came_free(&vm("dd")), "the pool grows");
    }
}
