//! How lists are asked for, and how requests are made safe to repeat.

use uuid::Uuid;

use crate::model::ids::PoolId;
use crate::model::vm::VmState;

/// Makes a repeated call give the first call's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    /// Chosen by the client.
    pub id: Uuid,
    /// SHA-256 of method and arguments: a repeat must be the same request.
    pub fingerprint: String,
}

/// One page of a list: ids greater than `after`, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Last id of the page before; empty: from the start.
    pub after: String,
    /// At most this many.
    pub limit: u32,
}

/// Which VMs to list.
#[derive(Debug, Clone, Default)]
pub struct VmFilter {
    /// Only of this pool.
    pub pool: Option<PoolId>,
    /// Only in one of these states; empty: all.
    pub states: Vec<VmState>,
}

/// Which leases to list.
#[derive(Debug, Clone, Default)]
pub struct LeaseFilter {
    /// Only from this pool.
    pub pool: Option<PoolId>,
    /// Ended ones too.
    pub show_ended: bool,
}
