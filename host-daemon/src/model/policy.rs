//! What a pool should do next, as a pure function of what it has.

use crate::model::record::PoolSpec;

/// What a pool has. VMs kept for inspection after a failure are not among these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolHas {
    /// Held by leases.
    pub leased: u32,
    /// Saved, clean and free.
    pub warm: u32,
    /// Being made or put back to clean.
    pub coming: u32,
    /// Free but not clean: an operator resumed, saved or stopped them.
    pub strayed: u32,
    /// Callers waiting for a VM.
    pub waiting: u32,
}

impl PoolHas {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u32 {
        self.leased + self.warm + self.coming + self.strayed
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolPlan {
    /// VMs to make.
    pub create: u32,
    /// Warm VMs to delete.
    pub delete: u32,
    /// VMs that are wanted but `max_per_host` forbids.
    pub forbidden: u32,
}

/// Decides how many VMs to make or delete.
///
/// Strayed VMs count towards `desired`, since they use the host, but are never deleted: somebody is at work in them.
#[must_use]
pub fn plan(spec: &PoolSpec, has: PoolHas) -> PoolPlan {
    let ready = spec.warm.unwrap_or(spec.desired).max(has.waiting);
    let wanted = spec.desired.min((has.leased + has.strayed).saturating_add(ready));
    let limit = if spec.max_per_host == 0 { wanted } else { wanted.min(spec.max_per_host) };
    let total = has.total();
    PoolPlan {
        create: limit.saturating_sub(total),
        delete: total.saturating_sub(limit).min(has.warm),
        forbidden: wanted.saturating_sub(limit.max(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn spec(desired: u32, warm: Option<u32>, max_per_host: u32) -> PoolSpec {
        PoolSpec {
            display_name: String::new(),
            template: "linux".parse().expect("legal"),
            desired,
            warm,
            max_per_host,
            default_ttl: Duration::from_secs(600),
            max_ttl: Duration::from_secs(600),
        }
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
        assert_eq!(plan(&spec(0, None, 0), has), PoolPlan { create: 0, delete: 1, forbidden: 0 });
    }

    #[test]
    fn the_limit_per_host_is_said() {
        let has = PoolHas { warm: 2, ..PoolHas::default() };
        assert_eq!(plan(&spec(5, None, 3), has), PoolPlan { create: 1, delete: 0, forbidden: 2 });
    }

    proptest! {
        #[test]
        fn following_the_plan_settles(
            desired in 0u32..50, warm in proptest::option::of(0u32..60), max in 0u32..50,
            leased in 0u32..20, ready in 0u32..60, strayed in 0u32..5, waiting in 0u32..10,
        ) {
            let spec = spec(desired, warm, max);
            let has = PoolHas { leased, warm: ready, coming: 0, strayed, waiting };
            let first = plan(&spec, has);
            prop_assert!(first.create == 0 || first.delete == 0);
            let after = PoolHas { warm: ready + first.create - first.delete, ..has };
            let second = plan(&spec, after);
            prop_assert_eq!((second.create, second.delete), (0, 0));
            prop_assert!(first.create == 0 || after.total() <= desired);
        }
    }
}
