//! What callers know: what they were told, and what they may believe because of that.

use std::collections::BTreeSet;

use super::ops::Ask;
use crate::model::error::{Error, Reason};
use crate::model::ids::{AgentId, LeaseId, VmId};
use crate::model::query::RequestId;
use crate::orchestrator::request::Caller;

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) asks: Vec<Asked>,
    pub(super) leases: Vec<Held>,
    pub(super) agents: Vec<Submitted>,
    pub(super) claims: Vec<Claimed>,
    /// VMs that somebody did something to, or something happened to, that may cost what was in them.
    pub(super) disturbed: BTreeSet<VmId>,
    /// VMs that somebody moved by name.
    pub(super) moved: BTreeSet<VmId>,
    /// A pool was told to go with its leases, also those that are granted meanwhile.
    pub(super) dropped: bool,
    /// Answers that nobody should get.
    pub(super) wrong: Vec<String>,
}

/// An acquire.
pub(super) struct Asked {
    pub(super) request: RequestId,
    pub(super) ask: Ask,
    pub(super) caller: Caller,
    /// The lease that it was answered with.
    pub(super) lease: Option<LeaseId>,
}

/// A lease that somebody was given.
pub(super) struct Held {
    pub(super) id: LeaseId,
    pub(super) vm: VmId,
    pub(super) caller: Caller,
    /// It may expire.
    pub(super) brief: bool,
    /// It was asked to go.
    pub(super) unwanted: bool,
    /// Its holder was told that it has ended.
    pub(super) ended: bool,
    /// What its holder has typed; none when the guest may have lost it.
    pub(super) typed: Option<String>,
}

pub(super) struct Submitted {
    pub(super) id: AgentId,
    pub(super) caller: Caller,
    /// How its end was told.
    pub(super) end: Option<(String, String)>,
}

/// A worker's claim.
pub(super) struct Claimed {
    pub(super) agent: AgentId,
    pub(super) epoch: u64,
    pub(super) caller: Caller,
}

impl Ledger {
    /// The nth of the leases that are held, counted round.
    pub(super) fn held(&mut self, n: u8) -> Option<&mut Held> {
        let mut held: Vec<_> = self.leases.iter_mut().filter(|lease| !lease.ended).collect();
        let at = usize::from(n).checked_rem(held.len())?;
        Some(held.swap_remove(at))
    }

    /// An answer that is an error is one too, unless it says that the daemon itself is at fault.
    pub(super) fn answered<T>(&mut self, what: &str, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(error) => {
                if matches!(error.reason, Reason::Internal | Reason::StoreFailed) {
                    self.wrong.push(format!("{what}: {error:?}"));
                }
                None
            }
        }
    }

    /// A lease that somebody was given, or was given again.
    pub(super) fn given(&mut self, lease: &LeaseId, vm: &VmId, caller: &Caller, brief: bool) {
        if self.leases.iter().any(|known| known.id == *lease) {
            return;
        }
        self.leases.push(Held {
            id: lease.clone(),
            vm: vm.clone(),
            caller: caller.clone(),
            brief,
            unwanted: false,
            ended: false,
            typed: Some(String::new()),
        });
    }

    /// All leases are asked to go.
    pub(super) fn all_unwanted(&mut self) {
        for lease in &mut self.leases {
            lease.unwanted = true;
        }
    }

    /// Something happens to a VM that may cost what is in it.
    pub(super) fn disturb(&mut self, vm: &VmId) {
        self.disturbed.insert(vm.clone());
        for lease in self.leases.iter_mut().filter(|lease| lease.vm == *vm) {
            lease.typed = None;
        }
    }
}
