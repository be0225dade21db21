//! What clients were answered, and what was found wrong with it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Count {
    Acquired,
    Replayed,
    AskedAgain,
    Renewed,
    Released,
    Moved,
    PoolsChanged,
    PassingPools,
    Submitted,
    Claimed,
    Completed,
    Cancelled,
}

/// In the order they are printed.
const NAMES: [(Count, &str); 12] = [
    (Count::Acquired, "acquires"),
    (Count::Replayed, "replays"),
    (Count::AskedAgain, "calls asked again"),
    (Count::Renewed, "renewals"),
    (Count::Released, "releases"),
    (Count::Moved, "moves"),
    (Count::PoolsChanged, "changes of pools"),
    (Count::PassingPools, "pools made and deleted"),
    (Count::Submitted, "agents"),
    (Count::Claimed, "claims"),
    (Count::Completed, "results"),
    (Count::Cancelled, "cancelled"),
];

/// A lease that a client was told of.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) vm: String,
    /// Its client has asked for its end, or something else may end it.
    pub(crate) may_end: bool,
}

/// What an agent's clients were told.
#[derive(Clone, Default)]
pub(crate) struct Task {
    /// Output that was accepted as its result.
    pub(crate) output: Option<String>,
    /// It was accepted as failed.
    pub(crate) failed: bool,
    pub(crate) cancelled: bool,
}

#[derive(Default)]
struct Pages {
    requests: HashMap<String, String>,
    leases: HashMap<String, Held>,
    agents: HashMap<String, Task>,
    findings: Vec<String>,
    counts: HashMap<Count, u64>,
}

#[derive(Default)]
pub(crate) struct Ledger(Mutex<Pages>);

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, what: Count) {
        *self.pages().counts.entry(what).or_default() += 1;
    }

    /// Something is wrong.
    pub(crate) fn found(&self, what: String) {
        self.pages().findings.push(what);
    }

    /// A request was answered with a lease; every answer must be the same.
    pub(crate) fn answered(&self, request: &str, lease: &str, vm: &str, may_end: bool) {
        let mut pages = self.pages();
        let before = pages.requests.insert(request.to_owned(), lease.to_owned());
        if let Some(before) = before.filter(|before| before != lease) {
            pages.findings.push(format!("request {request} got {before}, then {lease}"));
        }
        let known = pages.leases.entry(lease.to_owned()).or_insert(Held { vm: vm.to_owned(), may_end });
        if known.vm != vm {
            let text = format!("{lease} was of {}, then of {vm}", known.vm);
            pages.findings.push(text);
        }
    }

    /// From now on the lease may end.
    pub(crate) fn gives_back(&self, lease: &str) {
        if let Some(held) = self.pages().leases.get_mut(lease) {
            held.may_end = true;
        }
    }

    pub(crate) fn may_have_ended(&self, lease: &str) -> bool {
        self.pages().leases.get(lease).is_none_or(|held| held.may_end)
    }

    /// Leases that must be live, with their VMs.
    pub(crate) fn held(&self) -> Vec<(String, String)> {
        let pages = self.pages();
        let held = pages.leases.iter().filter(|(_, held)| !held.may_end);
        held.map(|(name, held)| (name.clone(), held.vm.clone())).collect()
    }

    pub(crate) fn leases(&self) -> HashMap<String, Held> {
        self.pages().leases.clone()
    }

    pub(crate) fn requests(&self) -> HashMap<String, String> {
        self.pages().requests.clone()
    }

    pub(crate) fn task(&self, agent: &str, note: impl FnOnce(&mut Task)) {
        note(self.pages().agents.entry(agent.to_owned()).or_default());
    }

    pub(crate) fn tasks(&self) -> HashMap<String, Task> {
        self.pages().agents.clone()
    }

    /// Fails the test when anything was found.
    pub(crate) fn assert_good(&self) {
        let findings = std::mem::take(&mut self.pages().findings);
        assert!(findings.is_empty(), "{}\n{}", findings.join("\n"), self.figures());
    }

    pub(crate) fn figures(&self) -> String {
        let pages = self.pages();
        let mut text = String::new();
        for (count, name) in NAMES {
            let number = pages.counts.get(&count).copied().unwrap_or_default();
            let _ = write!(text, "{}{number} {name}", if text.is_empty() { "" } else { ", " });
        }
        text
    }
}
