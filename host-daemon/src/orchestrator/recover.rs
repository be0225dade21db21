//! Start-up: what the store remembers and what the hypervisor has are brought together, both ways.
//!
//! | store | hypervisor | what happens |
//! | --- | --- | --- |
//! | row | VM | the row takes the VM's state, the session is opened again, pending clean-up goes on |
//! | row | VM that is off | one that ran for a lease is lost: `Error`, its lease `VM_LOST` |
//! | row | none | a VM in the making, or being deleted, is forgotten; another one is lost: `Error`, its lease `VM_LOST` |
//! | none | VM | deleted: it was made for a row that was never written, or for a template being prepared |
//! | template `preparing` | anything | its operation failed; it is deleted with what was prepared |
//! | live lease without its VM | | ended as `VM_LOST` |

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::Shared;
use super::actor::Actor;
use super::{leases, pools};
use crate::hypervisor::{Found, Observed};
use crate::model::error::{Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::VmId;
use crate::model::lease::EndedAs;
use crate::model::query::{LeaseFilter, Page, VmFilter};
use crate::model::record::{Outcome, TemplateState};
use crate::model::vm::VmState;
use crate::store::StoreError;

const LIST: u32 = 1000;
const INTERRUPTED: &str = "the daemon was stopped in the middle of it";

pub(super) async fn run(shared: &Arc<Shared>) -> Result<()> {
    let found = shared.hv.recover().await?;
    let mut found: HashMap<VmId, Found> =
        found.into_iter().map(|one| (one.definition.id.clone(), one)).collect();
    end_operations(shared).await?;
    let mut adopting = tokio::task::JoinSet::new();
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = shared.store.vms(&VmFilter::default(), &page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.id.to_string();
        for row in rows {
            // Another VM of that name is not this one.
            let own = found.get(&row.id).is_some_and(|one| one.definition.uid == row.uid);
            let observed = if own { found.remove(&row.id).map(|one| one.observed) } else { None };
            match observed {
                None if matches!(row.state, VmState::Provisioning | VmState::Deleting) => {
                    tracing::info!(vm = %row.id, state = %row.state, "forgotten, it has no files");
                    let event = Event::of_vm(EventKind::VmDeleted, &row, "it has no files", "");
                    shared.store.delete_vm(&row.id, event).await?;
                }
                observed => {
                    let observed = observed.unwrap_or_else(|| Observed::Broken("its files are gone".into()));
                    let handle = Actor::spawn(shared, row);
                    adopting.spawn(async move {
                        let id = handle.id.clone();
                        let done = handle.call(|vm| Box::pin(vm.adopt(observed))).await;
                        (id, done)
                    });
                }
            }
        }
    }
    for (vm, _) in found {
        tracing::info!(%vm, "deleted, nobody remembers it");
        if let Err(error) = shared.hv.delete(&vm).await {
            tracing::warn!(%vm, error = &error as &dyn std::error::Error, "unknown vm not deleted");
        }
    }
    while let Some(done) = adopting.join_next().await {
        match done {
            Ok((_, Ok(()))) => {}
            Ok((vm, Err(error))) => {
                tracing::warn!(%vm, error = &error as &dyn std::error::Error, "vm not taken over whole");
            }
            Err(error) => tracing::error!(%error, "taking over a vm panicked"),
        }
    }
    end_orphaned_leases(shared).await?;
    forget_templates(shared).await?;
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = shared.store.pools(&page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.id.to_string();
        for pool in rows {
            pools::control(shared, pool.id, pool.paused);
        }
    }
    Ok(())
}

/// No operation outlives the daemon that worked on it.
async fn end_operations(shared: &Shared) -> Result<()> {
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = shared.store.operations(&page).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        page.after.clone_from(&last.id);
        for mut operation in rows {
            if operation.outcome.is_some() {
                continue;
            }
            let reason = Reason::Internal.as_str().to_owned();
            operation.outcome = Some(Outcome::Failed { reason, message: INTERRUPTED.into() });
            operation.updated = Timestamp::now();
            shared.store.update_operation(&operation).await?;
        }
    }
}

/// Templates that were never finished, and prepared states that no row knows.
async fn forget_templates(shared: &Shared) -> Result<()> {
    let mut known = Vec::new();
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = shared.store.templates(&page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.id.to_string();
        for mut template in rows {
            match template.state {
                TemplateState::Ready => known.push(template.id),
                // Its operation has failed, and a failed preparation leaves nothing behind. The row first: what no row
                // claims is removed below, and a pool may have been made just before the row was to go.
                TemplateState::Preparing | TemplateState::Deleting => {
                    let event = Event::of_template(EventKind::TemplateDeleted, &template, INTERRUPTED, "");
                    match shared.store.delete_template(&template.id, event).await {
                        Ok(()) => {}
                        Err(StoreError::Referred(_)) => {
                            template.state = TemplateState::Ready;
                            template.updated = Timestamp::now();
                            template.version += 1;
                            let why = "a pool was made just before it was to go";
                            let event = Event::of_template(EventKind::TemplateReady, &template, why, "");
                            shared.store.update_template(&template, event).await?;
                            known.push(template.id);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
    for id in shared.hv.templates().await? {
        if !known.contains(&id) {
            tracing::info!(template = %id, "prepared state deleted, no template is ready by that name");
            if let Err(error) = shared.hv.delete_template(&id).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(template = %id, error, "prepared state not deleted");
            }
        }
    }
    Ok(())
}

/// Live leases whose VM does not know them: the daemon was stopped while one moved to another VM.
async fn end_orphaned_leases(shared: &Arc<Shared>) -> Result<()> {
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = shared.store.leases(&LeaseFilter::default(), &page).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        page.after = last.id.to_string();
        for lease in rows {
            let held = shared
                .registry
                .get(&lease.vm)
                .is_ok_and(|handle| handle.look(|row| row.lease.as_ref() == Some(&lease.id)));
            if held {
                shared.leases.granted(&lease);
            } else {
                leases::end(shared, &lease.id, EndedAs::VmLost, INTERRUPTED, None).await?;
            }
        }
    }
}
