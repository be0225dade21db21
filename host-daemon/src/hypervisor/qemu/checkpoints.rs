//! Moments of a VM that are kept: named checkpoints, and forks.
//!
//! A running VM is stopped, an empty overlay is put on top of its disk, and its memory is written to a file of its own;
//! then it goes on, on the new overlay. What was its head is frozen with the memory and belongs to the snapshot. The
//! guest has written nothing to the new overlay until the phase is over, so a crash in between can drop it.

use std::sync::Arc;

use super::backend::{Inner, Live, Vm, blocking, lock};
use super::files::{self, Durability};
use super::machine::overlay;
use super::qmp::commands::{BlockdevAdd, BlockdevSnapshot, StateForm};
use super::records::{CheckpointRecord, DiskId, MemoryId, Phase, Snapshot};
use crate::hypervisor::{CheckpointFacts, HvError, HvResult, Rest, VmDefinition};
use crate::model::ids::CheckpointId;

impl Inner {
    /// Keeps a running VM's moment; it goes on as it was.
    async fn snapshot(&self, vm: &Vm, live: &Live) -> HvResult<Snapshot> {
        Self::check_chain(vm)?;
        let head = self.blank_disk(vm.record().definition.origin.template(), Durability::Daemon).await?;
        let memory = MemoryId::new();
        let paused = match self.begin_saving(vm, live, memory, Some(head)).await {
            Ok(paused) => paused,
            Err(error) => {
                // It never stopped, or its process is gone; the empty overlay is garbage either way.
                self.go_on(vm, live, false).await;
                files::remove(&self.paths.disk(head))?;
                return Err(error);
            }
        };
        let taken = self.take(vm, live, memory, head).await;
        if taken.is_err() {
            self.go_on(vm, live, paused).await;
        }
        let snapshot = taken?;
        // The snapshot is whole, and the phase still names it: the caller ends that once a record does.
        Self::run_on(live, paused).await?;
        Ok(snapshot)
    }

    async fn take(&self, vm: &Vm, live: &Live, memory: MemoryId, head: DiskId) -> HvResult<Snapshot> {
        let below = vm.record().head;
        let add = live.qmp.send(&BlockdevAdd(overlay(head, &self.paths, false, serde_json::Value::Null)));
        let put = live.qmp.send(&BlockdevSnapshot { node: below.node(), overlay: head.node() });
        add.answer().await?;
        put.answer().await?;
        let record = self.freeze(vm, head).await?;
        self.write_state(vm, live, memory, StateForm::Mapped).await?;
        let frozen = self.paths.disk(below);
        blocking(move || files::sync_new(&frozen)).await?;
        Ok(Snapshot { chain: record, memory })
    }

    /// Records that the head is frozen and another one is on top of it. Returns the frozen chain.
    async fn freeze(&self, vm: &Vm, head: DiskId) -> HvResult<Vec<DiskId>> {
        let record = self
            .update(vm, Durability::Daemon, |record| {
                record.chain.push(record.head);
                record.head = head;
                if let Phase::Saving { next_head, .. } = &mut record.phase {
                    *next_head = None;
                }
            })
            .await?;
        Ok(record.chain)
    }

    /// Keeps a named checkpoint of a running or paused VM.
    pub(crate) async fn create_checkpoint(&self, vm: &Vm, id: &CheckpointId) -> HvResult<CheckpointFacts> {
        self.settle(vm).await?;
        if vm.record().checkpoints.contains_key(id) {
            return Err(HvError::AlreadyExists { kind: "checkpoint", id: id.to_string() });
        }
        let live = vm.running("checkpoint")?;
        let snapshot = self.snapshot(vm, &live).await?;
        let frozen = snapshot.chain.last().map_or(0, |disk| files::disk_bytes(&self.paths.disk(*disk)));
        let facts = CheckpointFacts {
            id: id.clone(),
            has_memory: true,
            size_bytes: files::disk_bytes(&self.paths.memory(snapshot.memory)) + frozen,
            created_unix: jiff::Timestamp::now().as_second(),
        };
        let checkpoint = CheckpointRecord { snapshot, facts: facts.clone() };
        self.update(vm, Durability::Host, |record| {
            record.phase = Phase::Running;
            record.checkpoints.insert(id.clone(), checkpoint);
        })
        .await?;
        Ok(facts)
    }

    /// Named checkpoints, by id.
    pub(crate) fn checkpoints(vm: &Vm) -> Vec<CheckpointFacts> {
        lock(&vm.record).checkpoints.values().map(|checkpoint| checkpoint.facts.clone()).collect()
    }

    /// Any state to a checkpoint, at rest.
    pub(crate) async fn restore_checkpoint(&self, vm: &Vm, id: &CheckpointId) -> HvResult<Rest> {
        let found = lock(&vm.record).checkpoints.get(id).map(|checkpoint| checkpoint.snapshot.clone());
        let snapshot = found.ok_or_else(|| unknown(id))?;
        self.put_back(vm, snapshot.chain, Some(snapshot.memory)).await
    }

    /// Removes a checkpoint. What its VM or a fork still stands on stays until they are reset or gone.
    pub(crate) async fn delete_checkpoint(&self, vm: &Vm, id: &CheckpointId) -> HvResult<()> {
        if !lock(&vm.record).checkpoints.contains_key(id) {
            return Err(unknown(id));
        }
        let before = vm.record().references();
        self.update(vm, Durability::Host, |record| {
            record.checkpoints.remove(id);
        })
        .await?;
        self.collect(before);
        Ok(())
    }

    /// Makes another VM from the moment of this one.
    pub(crate) async fn fork(self: &Arc<Self>, vm: &Vm, new: &VmDefinition) -> HvResult<()> {
        self.settle(vm).await?;
        let record = vm.record();
        if new.origin != record.definition.origin {
            return Err(HvError::IllegalState {
                vm: vm.id.clone(),
                state: "of another origin".to_owned(),
                action: "fork",
            });
        }
        if let Ok(twin) = self.vm(&new.id) {
            return if twin.record().definition == *new {
                Ok(())
            } else {
                Err(HvError::AlreadyExists { kind: "vm", id: new.id.to_string() })
            };
        }
        let Some(live) = vm.live() else { return self.fork_saved(vm, new).await };
        let snapshot = self.snapshot(vm, &live).await?;
        let made = self.make(new, snapshot.chain, Some(snapshot.memory)).await;
        // Its own record named the memory until the fork's did.
        let before = vm.record().references();
        self.update(vm, Durability::Daemon, |record| record.phase = Phase::Running).await?;
        self.collect(before);
        made.map(drop)
    }

    /// A saved VM shares its memory with the fork; its disk is frozen for both.
    async fn fork_saved(self: &Arc<Self>, vm: &Vm, new: &VmDefinition) -> HvResult<()> {
        let record = vm.record();
        let Some(memory) = record.memory else { return Err(vm.illegal("fork")) };
        Self::check_chain(vm)?;
        let head = self.blank_disk(record.definition.origin.template(), Durability::Host).await?;
        let record = self
            .update(vm, Durability::Host, |record| {
                record.chain.push(record.head);
                record.head = head;
            })
            .await?;
        self.make(new, record.chain, Some(memory.id)).await.map(drop)
    }
}

fn unknown(id: &CheckpointId) -> HvError {
    HvError::NotFound { kind: "checkpoint", id: id.to_string() }
}
