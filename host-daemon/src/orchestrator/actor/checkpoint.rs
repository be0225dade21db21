//! Checkpoints and forks: the guest's port is closed meanwhile, and a running VM goes on afterwards.

use super::{Actor, illegal};
use crate::hypervisor::{CheckpointFacts, HvResult, VmDefinition};
use crate::model::error::Result;
use crate::model::ids::{CLEAN, CheckpointId};
use crate::model::vm::VmState;

impl Actor {
    /// Keeps memory and disk under a name.
    pub(in crate::orchestrator) async fn create_checkpoint(
        &mut self,
        id: CheckpointId,
    ) -> Result<CheckpointFacts> {
        self.supports(self.shared.hv.capabilities().memory_checkpoints, "checkpoint")?;
        if !matches!(self.row.state, VmState::Running | VmState::Paused) {
            return Err(illegal(&self.row.id, self.row.state, VmState::Saving));
        }
        self.link.close().await;
        let taken = self.shared.hv.create_checkpoint(&self.row.id, &id).await;
        self.after_standstill("checkpoint", taken).await
    }

    /// Makes another VM from this one.
    pub(in crate::orchestrator) async fn fork(&mut self, new: VmDefinition) -> Result<()> {
        self.supports(self.shared.hv.capabilities().fork, "fork")?;
        if !matches!(self.row.state, VmState::Running | VmState::Paused | VmState::Saved) {
            return Err(illegal(&self.row.id, self.row.state, VmState::Saved));
        }
        self.link.close().await;
        let forked = self.shared.hv.fork(&self.row.id, &new).await;
        self.after_standstill("fork", forked).await
    }

    /// This VM was made from another one.
    pub(in crate::orchestrator) async fn forked(&mut self) -> Result<()> {
        let cause = self.row.state_reason.clone();
        self.enter(VmState::Saved, &cause).await
    }

    /// Removes a checkpoint; the VM is not affected.
    pub(in crate::orchestrator) async fn delete_checkpoint(&mut self, id: CheckpointId) -> Result<()> {
        self.supports(self.shared.hv.capabilities().memory_checkpoints, "checkpoint")?;
        Ok(self.shared.hv.delete_checkpoint(&self.row.id, &id).await?)
    }

    /// Back to a checkpoint. A VM that ran, or is leased, runs afterwards.
    pub(in crate::orchestrator) async fn restore_checkpoint(&mut self, id: &str) -> Result<()> {
        let ran = self.row.state == VmState::Running;
        if id == CLEAN {
            self.reset("restored to clean").await?;
        } else {
            let id: CheckpointId =
                id.parse().map_err(|_| crate::model::error::Error::not_found("checkpoint", id))?;
            self.supports(self.shared.hv.capabilities().memory_checkpoints, "checkpoint")?;
            // An unknown checkpoint must be refused before anything is thrown away.
            if !self.shared.hv.checkpoints(&self.row.id).await?.iter().any(|known| known.id == id) {
                return Err(crate::model::error::Error::not_found("checkpoint", id));
            }
            let cause = format!("restored to {id}");
            self.enter(VmState::Resetting, &cause).await?;
            self.link.close().await;
            match self.shared.hv.restore_checkpoint(&self.row.id, &id).await {
                Ok(rest) => {
                    self.set_run(None);
                    self.hub.forget_input();
                    self.rested(rest, &cause, false).await?;
                }
                Err(error) => return Err(self.failed("restore", error.into()).await),
            }
        }
        // One whose memory was of no use boots, and runs by itself then.
        let rests = self.row.state != VmState::Booting;
        if ran && rests { self.resume("ran before it was restored").await } else { Ok(()) }
    }

    /// The hypervisor stood the VM still for a moment.
    async fn after_standstill<T>(&mut self, what: &str, result: HvResult<T>) -> Result<T> {
        match result {
            Ok(value) => {
                if self.row.state == VmState::Running {
                    let epoch = self.link.open(self.row.epoch, false);
                    self.write(|row| row.epoch = epoch).await?;
                }
                Ok(value)
            }
            Err(error) => Err(self.went_on_if_changed(what, error.into()).await),
        }
    }

    /// A checkpoint or fork failed. A VM that is as it was only needs its session back.
    async fn went_on_if_changed(
        &mut self,
        what: &str,
        error: crate::model::error::Error,
    ) -> crate::model::error::Error {
        use crate::hypervisor::Observed;
        let same = match self.shared.hv.observe(&self.row.id).await {
            Ok(Observed::Running(_)) => self.row.state == VmState::Running,
            Ok(Observed::Paused(_)) => self.row.state == VmState::Paused,
            Ok(Observed::Saved) => self.row.state == VmState::Saved,
            _ => false,
        };
        if !same {
            return self.went_on(what, error).await;
        }
        if self.row.state == VmState::Running {
            self.link.open(self.row.epoch, false);
        }
        error
    }
}
