//! What a pool should do next, as a pure function of what it has.

use std::time::Duration;

use crate::model::lease::ReleasePolicy;
use crate::model::record::{Pending, Pool, PoolSpec, Vm};

/// Largest pool there is.
pub const MAX_VMS: u32 = 10_000;

/// What a pool has. VMs kept for inspection after a failure are not among these, nor those whose lease is preempted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolHas {
    /// Held by leases.
    pub leased: u32,
    /// Saved, clean and free.
    pub warm: u32,
    /// Kept running for the next lease, whether proven yet or not.
    pub hot: u32,
    /// Being made or put back to clean.
    pub coming: u32,
    /// Free but not clean: an operator resumed, saved or stopped them.
    pub strayed: u32,
    /// Free, warm or hot, but to be replaced; in none of the other numbers.
    pub outdated: u32,
    /// Callers waiting for a VM.
    pub waiting: u32,
}

impl PoolHas {
    /// All but those that are to be replaced.
    #[must_use]
    pub fn fresh(self) -> u32 {
        self.leased + self.warm + self.hot + self.coming + self.strayed
    }

    /// All of them.
    #[must_use]
    pub fn total(self) -> u32 {
        self.fresh() + self.outdated
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolPlan {
    /// VMs that the pool should have.
    pub wanted: u32,
    /// VMs to make.
    pub create: u32,
    /// Warm VMs to delete.
    pub delete: u32,
    /// VMs that are to be replaced and may go now.
    pub retire: u32,
    /// Warm VMs to bring to run.
    pub heat: u32,
    /// Hot VMs to put back to saved.
    pub cool: u32,
    /// VMs that are wanted but `max_per_host` forbids.
    pub forbidden: u32,
}

/// Decides how many VMs to make, delete, replace, heat and cool.
///
/// Strayed VMs count towards `desired`, since they use the host, but are never deleted: somebody is at work in them.
#[must_use]
pub fn plan(spec: &PoolSpec, has: PoolHas) -> PoolPlan {
    let options = &spec.options;
    let cap = if spec.max_per_host == 0 { MAX_VMS } else { spec.max_per_host.min(MAX_VMS) };
    let busy = has.leased + has.strayed;
    let ready = spec.warm.map_or(spec.desired, |warm| warm.saturating_add(options.hot)).max(has.waiting);
    let mut wanted = spec.desired.min(busy.saturating_add(ready));
    // What the pool may keep without being asked to: never less than it wants.
    let mut keep = wanted;
    if let Some(floor) = options.idle_floor {
        wanted = wanted.max(busy.saturating_add(floor.max(has.waiting)));
        let ceiling = options.idle_ceiling.unwrap_or(floor).max(floor);
        let idle = has.warm + has.hot + has.coming;
        keep = wanted.max(busy.saturating_add(idle.min(ceiling)));
    }
    let limit = wanted.min(cap);
    let (fresh, total) = (has.fresh(), has.total());
    let missing = limit.saturating_sub(fresh);
    let room = if has.outdated == 0 {
        missing
    } else {
        limit.saturating_add(options.surge).min(cap.max(limit)).saturating_sub(total)
    };
    let create = missing.min(room);
    // Old ones go as far as enough are ready without them, and all of them once new ones took their place.
    let ready_now = has.warm + has.hot + has.outdated;
    let needed = limit.saturating_sub(busy).saturating_sub(options.max_unavailable);
    let mut retire = if missing == 0 && has.coming == 0 {
        has.outdated
    } else {
        ready_now.saturating_sub(needed).min(has.outdated)
    };
    if retire == 0 && create == 0 && has.coming == 0 && has.outdated > 0 {
        // Neither surge nor max_unavailable leaves room: one by one.
        retire = 1;
    }
    let delete = fresh.saturating_sub(keep.min(cap)).min(has.warm);
    let heat = if has.waiting > 0 { 0 } else { options.hot.saturating_sub(has.hot).min(has.warm - delete) };
    PoolPlan {
        wanted,
        create,
        delete,
        retire,
        heat,
        cool: has.hot.saturating_sub(options.hot),
        forbidden: wanted.saturating_sub(limit.max(total)),
    }
}

/// Whether a VM is to be rebuilt: made from another template, too old, or used too often.
#[must_use]
pub fn is_outdated(spec: &PoolSpec, vm: &Vm, age: Duration) -> bool {
    let options = &spec.options;
    vm.template != spec.template
        || (options.max_uses > 0 && vm.uses >= options.max_uses)
        || options.max_age.is_some_and(|max| age >= max)
}

/// What becomes of a VM that is given back.
#[must_use]
pub fn after_lease(pool: Option<&Pool>, vm: &Vm, age: Duration, asked: Option<ReleasePolicy>) -> Pending {
    let policy = asked.or(pool.map(|pool| pool.spec.options.release)).unwrap_or(ReleasePolicy::Reset);
    match policy {
        ReleasePolicy::Keep => Pending::Save,
        ReleasePolicy::Destroy => Pending::Delete,
        // To clean what is replaced anyway is in vain.
        ReleasePolicy::Reset if pool.is_some_and(|pool| is_outdated(&pool.spec, vm, age)) => Pending::Delete,
        ReleasePolicy::Reset => Pending::Reset,
    }
}

/// How many more VMs of this size the host's memory is good for. `promised`: what VMs have or will need when they run.
/// `percent` of `total` may be promised away; 0: no limit. Sizes in MiB.
#[must_use]
pub fn memory_room(total: u64, percent: u32, promised: u64, size: u64) -> u32 {
    if percent == 0 || total == 0 || size == 0 {
        return u32::MAX;
    }
    let limit = total.saturating_mul(u64::from(percent)) / 100;
    u32::try_from(limit.saturating_sub(promised) / size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::PoolOptions;
    use proptest::prelude::*;

    fn spec(desired: u32, warm: Option<u32>, max_per_host: u32) -> PoolSpec {
        PoolSpec {
            display_name: String::new(),
            template: "linux".parse().expect("legal"),
            desired,
            warm,
            max_per_host,
            default_ttl: Duration::from_secs(600),
            max_ttl: Duration::from_secs(600),
            options: PoolOptions::default(),
        }
    }

    fn with(desired: u32, warm: Option<u32>, change: impl FnOnce(&mut PoolOptions)) -> PoolSpec {
        let mut spec = spec(desired, warm, 0);
        change(&mut spec.options);
        spec
    }

    #[test]
    fn leased_vms_are_made_up_for_as_far_as_desired_allows() {
        let has = PoolHas { leased: 1, warm: 2, ..PoolHas::default() };
        assert_eq!(plan(&spec(5, Some(3), 0), has).create, 1);
        assert_eq!(plan(&spec(3, Some(3), 0), has).create, 0);
        assert_eq!(plan(&spec(3, None, 0), PoolHas::default()).create, 3);
    }

    #[test]
    fn surplus_is_only_taken_from_warm_ones() {
        let has = PoolHas { leased: 2, warm: 1, coming: 1, ..PoolHas::default() };
        let plan = plan(&spec(0, None, 0), has);
        assert_eq!((plan.create, plan.delete, plan.forbidden), (0, 1, 0));
    }

    #[test]
    fn the_limit_per_host_is_said() {
        let has = PoolHas { warm: 2, ..PoolHas::default() };
        let plan = plan(&spec(5, None, 3), has);
        assert_eq!((plan.create, plan.delete, plan.forbidden), (1, 0, 2));
    }

    #[test]
    fn a_floor_grows_the_pool_with_demand_and_a_ceiling_shrinks_it_again() {
        let spec = with(2, Some(1), |o| (o.idle_floor, o.idle_ceiling) = (Some(2), Some(4)));
        let busy = PoolHas { leased: 5, ..PoolHas::default() };
        assert_eq!(plan(&spec, busy).create, 2);
        let between = PoolHas { leased: 2, warm: 3, ..PoolHas::default() };
        assert_eq!((plan(&spec, between).create, plan(&spec, between).delete), (0, 0));
        let quiet = PoolHas { leased: 0, warm: 7, ..PoolHas::default() };
        assert_eq!(plan(&spec, quiet).delete, 3);
    }

    #[test]
    fn hot_ones_are_made_from_warm_ones_unless_somebody_waits() {
        let spec = with(4, Some(1), |o| o.hot = 2);
        assert_eq!(plan(&spec, PoolHas::default()).create, 3);
        let has = PoolHas { warm: 3, ..PoolHas::default() };
        assert_eq!(plan(&spec, has).heat, 2);
        assert_eq!(plan(&spec, PoolHas { waiting: 1, ..has }).heat, 0);
        assert_eq!(plan(&spec, PoolHas { hot: 3, warm: 0, ..has }).cool, 1);
    }

    #[test]
    fn old_ones_go_one_by_one_where_nothing_leaves_room() {
        let mut spec = with(3, None, |o| (o.surge, o.max_unavailable) = (0, 0));
        let old = PoolHas { outdated: 3, ..PoolHas::default() };
        assert_eq!((plan(&spec, old).create, plan(&spec, old).retire), (0, 1));
        spec.options.surge = 1;
        assert_eq!((plan(&spec, old).create, plan(&spec, old).retire), (1, 0));
        spec.options.max_unavailable = 2;
        assert_eq!((plan(&spec, old).create, plan(&spec, old).retire), (1, 2));
        spec.max_per_host = 3;
        spec.options.max_unavailable = 0;
        assert_eq!((plan(&spec, old).create, plan(&spec, old).retire), (0, 1), "no room for a surge");
    }

    #[test]
    fn memory_is_promised_up_to_its_limit() {
        assert_eq!(memory_room(1000, 80, 500, 100), 3);
        assert_eq!(memory_room(1000, 80, 900, 100), 0);
        assert_eq!(memory_room(1000, 0, 900, 100), u32::MAX);
    }

    proptest! {
        #[test]
        fn following_the_plan_settles(
            desired in 0u32..50, warm in proptest::option::of(0u32..60), max in 0u32..50,
            leased in 0u32..20, ready in 0u32..60, strayed in 0u32..5, waiting in 0u32..10, hot in 0u32..10,
            floor in proptest::option::of(0u32..20),
        ) {
            let mut spec = spec(desired, warm, max);
            (spec.options.hot, spec.options.idle_floor) = (hot, floor);
            let has = PoolHas { leased, warm: ready, strayed, waiting, ..PoolHas::default() };
            let first = plan(&spec, has);
            prop_assert!(first.create == 0 || first.delete == 0);
            let warm = ready + first.create - first.delete - first.heat;
            let after = PoolHas { warm, hot: first.heat, ..has };
            let second = plan(&spec, after);
            prop_assert_eq!((second.create, second.delete, second.cool), (0, 0, 0));
            prop_assert!(first.create == 0 || after.total() <= desired || floor.is_some());
            prop_assert!(first.create == 0 || max == 0 || after.total() <= max);
        }

        #[test]
        fn a_roll_out_ends_and_keeps_enough_ready(
            desired in 1u32..20, leased in 0u32..20, surge in 0u32..4, unavailable in 0u32..4,
        ) {
            let leased = leased.min(desired);
            let spec = with(desired, None, |o| (o.surge, o.max_unavailable) = (surge, unavailable));
            let mut has = PoolHas { leased, outdated: desired - leased, ..PoolHas::default() };
            for _ in 0..200 {
                let step = plan(&spec, has);
                if (step.create, step.retire, step.delete) == (0, 0, 0) { break }
                has.coming += step.create;
                has.outdated -= step.retire;
                has.warm -= step.delete;
                prop_assert!(has.total() <= desired + surge, "{has:?}");
                let slack = if surge == 0 { unavailable.max(1) } else { unavailable };
                prop_assert!(has.warm + has.outdated + slack >= desired - leased, "{has:?} {step:?}");
                has.warm += std::mem::take(&mut has.coming);
            }
            prop_assert_eq!((has.outdated, has.warm + has.leased), (0, desired));
        }
    }
}
