//! What a test does to the simulated world from outside: faults on demand, and calls that stand still until they are let on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvkube_guest::sim::State;
use tokio::sync::{oneshot, watch};

use super::config::{Call, Fault};
use super::world::World;
use crate::hypervisor::{Found, HvError, HvResult};
use crate::model::ids::{TemplateId, VmId};

/// Whom a fault on demand hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Whichever VM comes first.
    Any,
    /// This VM.
    Vm(VmId),
    /// VMs of this template, the one that it is prepared with among them.
    Template(TemplateId),
}

/// A call that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which call.
    pub call: Call,
    /// On which VM; for a template, its id.
    pub on: String,
    /// Its effect is made; only its answer is missing.
    pub done: bool,
}

/// Power over a simulated world. Clones are the same.
#[derive(Clone)]
pub struct Control(pub(super) Arc<World>);

impl Control {
    /// The next `times` occasions on which this fault can hit the target are hit.
    pub fn fail(&self, fault: Fault, target: Target, times: u32) {
        self.0.script(fault, target, times);
    }

    /// Takes back all faults on demand that have not come yet.
    pub fn spare(&self) {
        self.0.spare();
    }

    /// Ends the process of a VM that runs.
    ///
    /// # Errors
    /// As a move: when there is no such VM, or it does not run.
    pub fn kill(&self, vm: &VmId) -> HvResult<()> {
        self.0.ended(vm, None, "killed", false)
    }

    /// Switches a VM off as its guest would.
    ///
    /// # Errors
    /// As [`Control::kill`].
    pub fn shut_down(&self, vm: &VmId) -> HvResult<()> {
        self.0.ended(vm, None, "the guest shut down", true)
    }

    /// Removes a VM with all its files behind everybody's back.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn vanish(&self, vm: &VmId) -> HvResult<()> {
        self.0.vanish(vm, None)
    }

    /// Has the guest of a VM that runs do nothing any more, or go on. A new run does not hang.
    ///
    /// # Errors
    /// As [`Control::kill`].
    pub fn hang(&self, vm: &VmId, hung: bool) -> HvResult<()> {
        self.0.hang(vm, hung)
    }

    /// Stops the CPUs of a VM that runs, as a hypervisor does whose disk is full.
    ///
    /// # Errors
    /// As [`Control::kill`].
    pub fn halt(&self, vm: &VmId, reason: &str) -> HvResult<()> {
        self.0.halt(vm, reason)
    }

    /// Damages the saved memory of a VM.
    ///
    /// # Errors
    /// When there is no such VM, or it has no saved memory.
    pub fn corrupt(&self, vm: &VmId) -> HvResult<()> {
        self.0.corrupt(vm)
    }

    /// Damages the memory that a template's clean VMs share; its disk stays whole.
    ///
    /// # Errors
    /// When there is no such template.
    pub fn corrupt_template(&self, template: &TemplateId) -> HvResult<()> {
        self.0.corrupt_template(template)
    }

    /// What exists, by id, as the next daemon would find it: what is told here is in the journal.
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        self.0.recover()
    }

    /// What the guest of a VM remembers.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn state(&self, vm: &VmId) -> HvResult<State> {
        self.0.moment(vm)
    }

    /// What guests of a template begin with; none when there is no such template, or it is not prepared.
    #[must_use]
    pub fn prepared(&self, template: &TemplateId) -> Option<State> {
        let inner = self.0.lock();
        inner.templates.get(template)?.sealed.as_ref().map(|kept| State::clone(&kept.0))
    }

    /// Whether the saved memory of a VM can't be read back.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn is_damaged(&self, vm: &VmId) -> HvResult<bool> {
        Ok(self.0.lock().vm(vm)?.record.damaged)
    }

    /// From now on each call stands still twice: before its effect is made, and before it answers. Switched off, all
    /// that stand go on.
    pub fn stepping(&self, on: bool) {
        self.0.stepper.set(on);
    }

    /// The calls that stand still, in the order in which they came.
    #[must_use]
    pub fn waiting(&self) -> Vec<Step> {
        self.0.stepper.waiting()
    }

    /// Waits until so many calls stand still.
    pub async fn arrived(&self, count: usize) {
        self.0.stepper.arrived(count).await;
    }

    /// Lets one call on to where it stands next, and tells which: the first that `choose` takes. None when it takes none.
    pub fn step(&self, choose: impl FnMut(&Step) -> bool) -> Option<Step> {
        self.0.stepper.step(choose)
    }
}

/// Where calls stand still.
#[derive(Debug, Default)]
pub(super) struct Stepper {
    on: AtomicBool,
    queue: Mutex<VecDeque<(Step, oneshot::Sender<()>)>>,
    count: watch::Sender<usize>,
}

impl Stepper {
    fn queue(&self) -> MutexGuard<'_, VecDeque<(Step, oneshot::Sender<()>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    fn set(&self, on: bool) {
        let mut queue = self.queue();
        self.on.store(on, Ordering::Release);
        if !on {
            for (_, go) in queue.drain(..) {
                let _its_caller_is_gone = go.send(());
            }
            self.count.send_replace(0);
        }
    }

    /// Whoever stands never comes back: the daemon is dead.
    pub(super) fn bury(&self) {
        let mut queue = self.queue();
        self.on.store(false, Ordering::Release);
        queue.clear();
        self.count.send_replace(0);
    }

    fn waiting(&self) -> Vec<Step> {
        let mut queue = self.queue();
        self.forget_gone(&mut queue);
        queue.iter().map(|(step, _)| step.clone()).collect()
    }

    async fn arrived(&self, count: usize) {
        // The sender lives as long as this does.
        let _ = self.count.subscribe().wait_for(|waiting| *waiting >= count).await;
    }

    fn step(&self, mut choose: impl FnMut(&Step) -> bool) -> Option<Step> {
        let mut queue = self.queue();
        self.forget_gone(&mut queue);
        let at = queue.iter().position(|(step, _)| choose(step))?;
        let (step, go) = queue.remove(at)?;
        self.count.send_replace(queue.len());
        // A caller that goes in this very moment has undone its call, or has it done; both are legal.
        let _ = go.send(());
        Some(step)
    }

    /// A caller that went while it stood will never go on.
    fn forget_gone(&self, queue: &mut VecDeque<(Step, oneshot::Sender<()>)>) {
        queue.retain(|(_, go)| !go.is_closed());
        self.count.send_replace(queue.len());
    }

    pub(super) async fn stand(&self, call: Call, on: &str, done: bool) -> HvResult<()> {
        let go = {
            let mut queue = self.queue();
            if !self.is_on() {
                return Ok(());
            }
            let (go, gone) = oneshot::channel();
            queue.push_back((Step { call, on: on.to_owned(), done }, go));
            self.count.send_replace(queue.len());
            gone
        };
        go.await.map_err(|_| HvError::Unavailable("the simulated world has ended".to_owned()))
    }
}
