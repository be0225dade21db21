//! Masks of a VM's screen, which end with its lease, once what they cover has gone.

use std::sync::Arc;

use super::Actor;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::LeaseId;
use crate::model::mask::Masks;
use crate::store::masks::Kept;

impl Actor {
    /// Covers parts of the screen for as long as the VM has this lease, or none.
    ///
    /// # Errors
    /// [`Reason::VmBusy`] when it has another one by now.
    pub(in crate::orchestrator) async fn set_masks(
        &mut self,
        lease: Option<LeaseId>,
        masks: Option<Masks>,
    ) -> Result<()> {
        self.still_held_by(lease.as_ref())?;
        let Some(masks) = masks else {
            self.unmask();
            return Ok(());
        };
        let kept = Kept { uid: self.row.uid, lease: self.row.lease.clone(), masks: masks.clone() };
        let (files, vm) = (Arc::clone(&self.shared.masks), self.row.id.clone());
        // First the file: a restart in between must not show what was to be covered.
        let written = tokio::task::spawn_blocking(move || files.write(&vm, &kept)).await;
        let failed = |error| Error::internal(Reason::StoreFailed, "the masks can't be kept", error);
        written.map_err(|error| failed(error.into()))?.map_err(failed)?;
        self.hub.set_masks(Some(masks));
        Ok(())
    }

    /// The VM changes to this lease, or to none. What the old one covered is there until the VM is clean or out of
    /// sight: till then all of the screen is covered. The file stays, so that a restart knows as well.
    pub(super) fn mask_for(&self, lease: Option<&LeaseId>) {
        if lease.is_some() {
            self.unmask();
        } else if self.hub.masks().is_some() {
            self.hub.set_masks(Some(Masks::everything()));
        }
    }

    /// What a lease had covered is gone.
    pub(super) fn uncover(&self) {
        if self.row.lease.is_some() || self.hub.masks() != Some(Masks::everything()) {
            return;
        }
        if self.run.is_none() {
            // Pictures of before must not be seen without their masks.
            self.hub.detach();
        }
        self.unmask();
    }

    /// Covers nothing any more.
    pub(super) fn unmask(&self) {
        if self.hub.masks().is_some() {
            self.hub.set_masks(None);
            self.shared.masks.remove(&self.row.id);
        }
    }
}
