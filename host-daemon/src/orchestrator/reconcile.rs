//! Rows and VMs are brought together while the daemon runs too, as `recover` does at its start.
//!
//! A look compares what the hypervisor has with what the rows say. Actors move VMs meanwhile, so what does not fit is only
//! suspected at first, and acted on when the next look finds it just so: a VM that is not what its row says by its own
//! actor, which looks once more before it believes it; one that no row knows while its name is taken, so that nobody makes
//! another of that name in between.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use super::Shared;
use super::actor::{Handle, is_warm};
use crate::hypervisor::{Found, Observed};
use crate::model::error::Result;
use crate::model::ids::VmId;
use crate::model::record::Vm;
use crate::model::vm::VmState;

/// What did not fit at the last look.
#[derive(Default)]
struct Suspects {
    /// VMs that are not what their rows say, and the rows' versions.
    changed: HashMap<VmId, u64>,
    /// VMs without a row.
    unknown: HashSet<(VmId, Uuid)>,
}

/// Looks now and then until the daemon stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let every = shared.settings.reconcile_every;
    if every.is_zero() {
        return;
    }
    let mut suspects = Suspects::default();
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        match look(&shared, &suspects).await {
            Ok(next) => suspects = next,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "vms and rows were not compared");
            }
        }
    }
}

async fn look(shared: &Arc<Shared>, before: &Suspects) -> Result<Suspects> {
    // The VMs first: whatever is found has had its row before it was made.
    let found = shared.hv.survey().await?;
    let mut found: HashMap<VmId, Found> =
        found.into_iter().map(|one| (one.definition.id.clone(), one)).collect();
    let mut next = Suspects::default();
    // Each is booted, which keeps a core busy: not all VMs of a template at once whose memory is damaged.
    let boots = |handle: &Handle| handle.look(|row| row.state == VmState::Booting);
    let booting = shared.registry.all().iter().filter(|handle| boots(handle)).count();
    let mut to_mend = shared.settings.provision_parallel.max(1).saturating_sub(booting);
    for handle in shared.registry.all() {
        let one = found.remove(&handle.id);
        let (fits, version) = handle.look(|row| (fits(&handle, row, one.as_ref()), row.version));
        if fits && (to_mend == 0 || is_sound(shared, &handle).await) {
            continue;
        }
        if fits {
            to_mend -= 1;
        }
        if before.changed.get(&handle.id) == Some(&version) {
            // Not waited for: an actor may be busy for minutes.
            shared.tasks.spawn(async move {
                if let Err(error) = handle.call(|vm| Box::pin(vm.reconcile())).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(vm = %handle.id, error, "vm not brought together with its row");
                }
            });
        } else {
            next.changed.insert(handle.id.clone(), version);
        }
    }
    for (id, one) in found {
        // One that is just being made, and one that a template is prepared with, have their names taken.
        let Some(_name) = shared.making.begin(&id) else { continue };
        if shared.registry.get(&id).is_ok() {
            continue;
        }
        let known = (id, one.definition.uid);
        if !before.unknown.contains(&known) {
            next.unknown.insert(known);
            continue;
        }
        tracing::info!(vm = %known.0, "deleted, no row knows it");
        if let Err(error) = shared.hv.delete(&known.0).await {
            tracing::warn!(vm = %known.0, error = &error as &dyn std::error::Error, "unknown vm not deleted");
        }
    }
    Ok(next)
}

/// Whether the memory that a free VM's next lease begins with can be read back.
async fn is_sound(shared: &Shared, handle: &Handle) -> bool {
    if !handle.look(is_warm) {
        return true;
    }
    // Whatever else is wrong shows when it is used.
    !shared.hv.check_memory(&handle.id).await.is_err_and(|error| error.is_of_memory())
}

/// Whether a VM is what its row says. One that is on its way says nothing yet, and one that failed nothing more.
fn fits(handle: &Handle, row: &Vm, found: Option<&Found>) -> bool {
    if row.state.is_transient() || row.state == VmState::Error {
        return true;
    }
    let Some(found) = found.filter(|found| found.definition.uid == row.uid) else { return false };
    match &found.observed {
        Observed::Running(run) => {
            row.state == VmState::Running && handle.run().is_some_and(|known| known.number == run.number)
        }
        Observed::Paused(_) => row.state == VmState::Paused,
        Observed::Saved => row.state == VmState::Saved,
        Observed::Off => row.state == VmState::Off,
        Observed::Broken(_) => false,
    }
}
