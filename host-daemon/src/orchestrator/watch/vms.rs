//! Watching VMs.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::{AT_ONCE, Delta, Follower, Outlet, Phase, Watch};
use crate::model::error::Result;
use crate::model::event::{Event, EventFilter, EventKind, Revision};
use crate::model::ids::VmId;
use crate::model::query::VmFilter;
use crate::model::record::Vm;
use crate::orchestrator::view::VmView;
use crate::orchestrator::{Orchestrator, Shared};

/// Which VMs to watch.
#[derive(Debug, Clone, Default)]
pub struct VmWatch {
    /// As in lists.
    pub filter: VmFilter,
    /// Only these; empty: all.
    pub vms: Vec<VmId>,
}

impl VmWatch {
    fn wants(&self, vm: &Vm) -> bool {
        self.names(&vm.id)
            && (self.filter.pool.is_none() || self.filter.pool == vm.pool)
            && (self.filter.states.is_empty() || self.filter.states.contains(&vm.state))
    }

    fn names(&self, id: &VmId) -> bool {
        self.vms.is_empty() || self.vms.contains(id)
    }
}

type Message = Delta<VmView, VmId>;

impl Orchestrator {
    /// Watches VMs; each is shown in its latest state, those in between may be left out.
    ///
    /// # Errors
    /// [`Reason::RevisionGone`](crate::model::error::Reason::RevisionGone), now or later;
    /// [`Reason::WatchTooSlow`](crate::model::error::Reason::WatchTooSlow).
    pub fn watch_vms(&self, wanted: VmWatch, from: Option<Revision>) -> Result<Watch<Message>> {
        let from = self.reachable(from)?;
        let this = self.clone();
        Ok(self.watch(move |shared, outlet| follow(this, shared, wanted, from, outlet)))
    }

    /// A VM's row with what is only known while the daemon runs.
    async fn shown(&self, row: &Vm) -> VmView {
        match self.0.registry.get(&row.id) {
            Ok(handle) if handle.look(|own| own.uid == row.uid) => {
                let view = self.vm_view(&handle).await;
                VmView { vm: Vm { ip_address: view.vm.ip_address.clone(), ..row.clone() }, ..view }
            }
            // Just made, or just deleted.
            _ => VmView::bare(row.clone()),
        }
    }
}

async fn follow(
    orchestrator: Orchestrator,
    shared: Arc<Shared>,
    wanted: VmWatch,
    from: Option<u64>,
    outlet: Outlet<Message>,
) -> Result<()> {
    let filter = EventFilter { pool: wanted.filter.pool.clone(), ..EventFilter::default() };
    let at = match from {
        Some(at) => at,
        None => snapshot(&orchestrator, &shared, &wanted, &outlet).await?,
    };
    let mut follower = Follower::new(&shared, filter, at);
    let mut synced = false;
    loop {
        let before = follower.revision(follower.at);
        let changed = changed(&wanted, &follower.read().await?);
        let phase = match synced {
            false if follower.caught_up => Phase::Synced,
            false if from.is_none() => Phase::Snapshot,
            _ => Phase::Change,
        };
        synced |= phase == Phase::Synced;
        let reached = follower.revision(follower.at);
        let mut left = changed.len();
        let mut message = Message { items: Vec::new(), removed: Vec::new(), phase, revision: Some(reached) };
        for id in changed {
            match shared.store.changes().vm(&id).filter(|row| wanted.wants(row)) {
                Some(row) => message.items.push(orchestrator.shown(&row).await),
                None => message.removed.push(id),
            }
            left -= 1;
            if left > 0 && message.items.len() + message.removed.len() >= AT_ONCE {
                // Not all of the changes yet: whoever goes on from here gets these again.
                let early = if from.is_some() || synced && phase != Phase::Synced {
                    (Phase::Change, Some(before))
                } else {
                    (Phase::Snapshot, None)
                };
                let part = Message {
                    items: std::mem::take(&mut message.items),
                    removed: std::mem::take(&mut message.removed),
                    phase: early.0,
                    revision: early.1,
                };
                outlet.send(part, Some(before)).await?;
            }
        }
        if phase == Phase::Snapshot {
            message.revision = None;
        }
        if phase == Phase::Synced || !message.items.is_empty() || !message.removed.is_empty() {
            outlet.send(message, Some(before)).await?;
            follower.told = Instant::now();
        }
        if follower.wait(None).await && follower.caught_up {
            let at = follower.revision(follower.at);
            let bookmark = Message {
                items: Vec::new(),
                removed: Vec::new(),
                phase: Phase::Bookmark,
                revision: Some(at),
            };
            outlet.send(bookmark, Some(at)).await?;
            follower.told = Instant::now();
        }
    }
}

/// Sends all VMs, and gives the revision that the first of them show: what happened since is sent behind them.
async fn snapshot(
    orchestrator: &Orchestrator,
    shared: &Shared,
    wanted: &VmWatch,
    outlet: &Outlet<Message>,
) -> Result<u64> {
    let mut first = None;
    let mut after: Option<VmId> = None;
    loop {
        let (rows, revision) = shared.store.changes().vms(after.as_ref(), AT_ONCE, |row| wanted.wants(row));
        let first = *first.get_or_insert(revision);
        let full = rows.len() >= AT_ONCE;
        after = rows.last().map(|row| row.id.clone());
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            items.push(orchestrator.shown(row).await);
        }
        if !items.is_empty() {
            let part = Message { items, removed: Vec::new(), phase: Phase::Snapshot, revision: None };
            outlet.send(part, None).await?;
        }
        if !full {
            return Ok(first);
        }
    }
}

/// The VMs whose rows the events changed.
fn changed(wanted: &VmWatch, events: &[Arc<Event>]) -> BTreeSet<VmId> {
    events
        .iter()
        .filter(|event| !matches!(event.kind, EventKind::LeaseReady | EventKind::LeaseRenewed))
        .filter_map(|event| event.vm.as_ref())
        .filter(|id| wanted.names(id))
        .cloned()
        .collect()
}
