//! Masks of a VM's screen, which end with its lease.

use std::sync::Arc;

use super::Actor;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::LeaseId;
use crate::model::mask::Masks;
use crate::store::masks::Kept;

impl Actor {
    /// Covers parts of the screen for as long as the VM has the lease that it has now. Gives whether `lease`, where one is
    /// named, is that lease; else nothing is done.
    pub(in crate::orchestrator) async fn set_masks(
        &mut self,
        lease: Option<LeaseId>,
        masks: Option<Masks>,
    ) -> Result<bool> {
        if lease.is_some() && lease != self.row.lease {
            return Ok(false);
        }
        let Some(masks) = masks else {
            self.unmask();
            return Ok(true);
        };
        let kept = Kept { uid: self.row.uid, lease: self.row.lease.clone(), masks: masks.clone() };
        let (files, vm) = (Arc::clone(&self.shared.masks), self.row.id.clone());
        // First the file: a restart in between must not show what was to be covered.
        let written = tokio::task::spawn_blocking(move || files.write(&vm, &kept)).await;
        let failed = |error| Error::internal(Reason::StoreFailed, "the masks can't be kept", error);
        written.map_err(|error| failed(error.into()))?.map_err(failed)?;
        self.hub.set_masks(Some(masks));
        Ok(true)
    }

    /// Covers nothing any more.
    pub(super) fn unmask(&self) {
        if self.hub.masks().is_some() {
            self.hub.set_masks(None);
            self.shared.masks.remove(&self.row.id);
        }
    }
}
