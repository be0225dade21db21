//! Counting a pool's VMs, and saying why any are missing.

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::lot::Facts;
use super::{PoolState, Ready};
use crate::model::ids::VmId;
use crate::model::policy::{PoolHas, PoolPlan, is_outdated, plan};
use crate::model::record::{Availability, Pending, Pool, Vm};
use crate::model::vm::VmState;
use crate::orchestrator::Shared;
use crate::orchestrator::actor::readiness;
use crate::orchestrator::view::{PoolStatus, Shortfall, ShortfallReason};

/// VMs named in a pool's status.
const NAMED: usize = 100;

/// What a pool has, in one look at all its VMs.
#[derive(Default)]
pub(super) struct Survey {
    /// For the plan.
    pub(super) has: PoolHas,
    /// For people.
    pub(super) status: PoolStatus,
    /// VMs that can be leased now.
    pub(super) ready: Vec<(VmId, Facts)>,
    /// Free ones that are to be replaced.
    pub(super) outdated: Vec<VmId>,
    /// Hot ones, proven or not.
    pub(super) hot: Vec<VmId>,
    /// Failed ones that nobody holds, and since when.
    pub(super) broken: Vec<(Timestamp, VmId)>,
    /// The next time one becomes too old.
    pub(super) next_old: Option<std::time::Duration>,
}

impl Survey {
    pub(super) fn of(shared: &Shared, pool: &Pool, state: Option<&PoolState>) -> Self {
        let mut survey = Self::default();
        // Before the rows are counted: a VM that gets its row meanwhile is counted twice, never not at all.
        let planned = state.map_or(0, |state| state.planned.load(Ordering::Acquire));
        let now = Timestamp::now();
        shared.registry.each_handle_of(&pool.id, |handle, row| {
            survey.see(shared.pools.needs_memory, pool, row, handle.is_proven(), now);
        });
        if let Some(state) = state {
            let lot = state.lot();
            survey.has.waiting = u32::try_from(lot.callers()).unwrap_or(u32::MAX);
            survey.status.waiting = survey.has.waiting;
            survey.has.coming += planned;
        }
        survey
    }

    fn see(&mut self, needs_memory: bool, pool: &Pool, row: &Vm, proven: bool, now: Timestamp) {
        let (has, status) = (&mut self.has, &mut self.status);
        status.total += 1;
        if status.vms.len() < NAMED {
            status.vms.push(row.id.clone());
        }
        let age = now.duration_since(row.created).unsigned_abs();
        let outdated = is_outdated(&pool.spec, row, age);
        status.outdated += u32::from(outdated);
        if let Some(max) = pool.spec.options.max_age
            && !outdated
        {
            let left = max.saturating_sub(age);
            self.next_old = Some(self.next_old.map_or(left, |next| next.min(left)));
        }
        match row.availability {
            Availability::Leased if row.suspended => status.suspended += 1,
            Availability::Leased => {
                has.leased += 1;
                status.leased += 1;
            }
            Availability::Quarantined => {
                status.quarantined += 1;
                self.note_broken(row);
            }
            Availability::Idle if row.state == VmState::Error => {
                status.error += 1;
                self.note_broken(row);
            }
            // On its way out.
            Availability::Idle if row.state == VmState::Deleting || row.pending == Some(Pending::Delete) => {
                status.in_transition += 1;
            }
            Availability::Idle => self.see_idle(row, readiness(row, needs_memory, proven), outdated),
        }
    }

    fn see_idle(&mut self, row: &Vm, ready: Option<Ready>, outdated: bool) {
        let (has, status) = (&mut self.has, &mut self.status);
        match ready {
            Some(Ready::Hot) => status.hot += 1,
            Some(Ready::Warm) => status.warm += 1,
            None if row.hot || row.pending.is_some() || row.state.is_transient() => status.in_transition += 1,
            None => status.strayed += 1,
        }
        if let Some(ready) = ready {
            self.ready.push((row.id.clone(), Facts::of(row, ready)));
        }
        if row.hot {
            self.hot.push(row.id.clone());
        }
        match ready {
            _ if row.hot && outdated => has.outdated += 1,
            _ if row.hot => has.hot += 1,
            Some(_) if outdated => has.outdated += 1,
            Some(_) => has.warm += 1,
            None if row.pending.is_some() || row.state.is_transient() => has.coming += 1,
            None => has.strayed += 1,
        }
        if outdated && (row.hot || ready.is_some()) {
            self.outdated.push(row.id.clone());
        }
    }

    fn note_broken(&mut self, row: &Vm) {
        if row.pending.is_none() {
            self.broken.push((row.state_since, row.id.clone()));
        }
    }
}

/// What is where.
pub(in crate::orchestrator) fn status(shared: &Shared, pool: &Pool) -> PoolStatus {
    let state = shared.pools.get(&pool.id);
    let mut survey = Survey::of(shared, pool, state.as_deref());
    let mut known = Vec::new();
    if let Some(state) = &state {
        let lot = state.lot();
        known.clone_from(&lot.shortfalls);
        // One that was just proven, or that somebody is about to get, is on its way.
        let hot = u32::try_from(lot.hot()).unwrap_or(u32::MAX).min(survey.status.hot);
        survey.status.in_transition += survey.status.hot - hot;
        survey.status.hot = hot;
    }
    let plan = plan(&pool.spec, survey.has);
    // What the controller saw may be over.
    known.retain(|one| !matches!(one.reason, ShortfallReason::InProgress | ShortfallReason::Strayed));
    if pool.paused {
        known = vec![Shortfall::new(ShortfallReason::Paused, 0, "the pool is paused")];
    } else if survey.has.fresh() >= plan.wanted && survey.has.waiting == 0 {
        known.clear();
    }
    known.extend(under_way(&survey.has, &plan, pool));
    survey.status.reason = known.first().map(|one| one.detail.clone()).unwrap_or_default();
    if known.first().is_some_and(|one| one.reason == ShortfallReason::InProgress) {
        // That is no reason to worry about.
        survey.status.reason.clear();
    }
    survey.status.shortfalls = known;
    survey.status
}

/// What is missing without anything being wrong.
fn under_way(has: &PoolHas, plan: &PoolPlan, pool: &Pool) -> Vec<Shortfall> {
    let mut all = Vec::new();
    let heating = pool.spec.options.hot.saturating_sub(has.hot);
    let moving = has.coming + if pool.paused { 0 } else { heating.min(has.warm) };
    if moving > 0 {
        let detail = format!("{moving} vms are being made, cleaned or brought to run");
        all.push(Shortfall::new(ShortfallReason::InProgress, moving, detail));
    }
    if has.strayed > 0 && has.fresh() >= plan.wanted {
        let detail = format!("{} vms are used by name, without a lease", has.strayed);
        all.push(Shortfall::new(ShortfallReason::Strayed, has.strayed, detail));
    }
    all
}
