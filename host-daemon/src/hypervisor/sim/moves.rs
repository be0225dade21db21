//! What the hypervisor is asked for, as changes of the world.
//!
//! A move looks first whether there is anything to do and whether it may be done, takes its time, and makes its change in
//! one step. A caller that goes before that step has not asked; one that goes after it has only missed the answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hvkube_guest::sim::State;
use sha2::{Digest as _, Sha256};

use super::config::{Call, Fault};
use super::live::{self, Live, Still};
use super::records::{Change, Checkpoint, Kept, Phase, TemplateRecord, VmRecord};
use super::world::{Inner, World, illegal};
use crate::hypervisor::{
    CheckpointFacts, DiskFacts, Found, HvError, HvResult, Observed, Origin, Rest, Run, Stop, VmDefinition,
};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::template::{CloneMethod, Network, TemplateSpec};

fn observed(record: &VmRecord) -> Observed {
    match record.phase {
        Phase::Off => Observed::Off,
        Phase::Saved => Observed::Saved,
        Phase::Running(number) => Observed::Running(live::run(number)),
        Phase::Paused(number) => Observed::Paused(live::run(number)),
    }
}

fn exists(kind: &'static str, id: impl ToString) -> HvError {
    HvError::AlreadyExists { kind, id: id.to_string() }
}

fn died(why: &str) -> HvError {
    HvError::Process(format!("simulated: {why}"))
}

fn damaged() -> HvError {
    HvError::StateDamaged("simulated: the saved memory has no end".to_owned())
}

impl World {
    /// One move of a VM, in its turn. `look` answers at once where nothing has to be done, or refuses.
    async fn turn<T>(
        &self,
        vm: &VmId,
        call: Call,
        look: impl FnOnce(&mut Inner, &VmRecord) -> HvResult<Option<T>>,
        make: impl FnOnce() -> HvResult<T>,
    ) -> HvResult<T> {
        let turn = Arc::clone(&self.lock().vm(vm)?.turn);
        let _turn = turn.lock().await;
        {
            let mut inner = self.lock();
            // It may have been deleted while we waited.
            let record = inner.vm(vm)?.record.clone();
            if let Some(answer) = look(&mut inner, &record)? {
                return Ok(answer);
            }
        }
        self.take_time(call, vm.as_str(), self.time(call, vm)).await?;
        let made = make();
        self.stepper.stand(call, vm.as_str(), true).await?;
        made
    }

    async fn take_time(&self, call: Call, on: &str, time: Duration) -> HvResult<()> {
        self.stepper.stand(call, on, false).await?;
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        Ok(())
    }

    pub(super) fn recover(&self) -> Vec<Found> {
        let inner = self.lock();
        let mut found: Vec<_> = inner
            .vms
            .values()
            .map(|vm| Found { definition: vm.record.definition.clone(), observed: observed(&vm.record) })
            .collect();
        found.sort_by(|a, b| a.definition.id.cmp(&b.definition.id));
        found
    }

    pub(super) fn observe(&self, vm: &VmId) -> HvResult<Observed> {
        Ok(observed(&self.lock().vm(vm)?.record))
    }

    pub(super) fn check_memory(&self, vm: &VmId) -> HvResult<()> {
        if self.lock().vm(vm)?.record.damaged { Err(damaged()) } else { Ok(()) }
    }

    pub(super) async fn import(&self, id: &TemplateId, spec: &TemplateSpec) -> HvResult<DiskFacts> {
        check(spec)?;
        let known = |inner: &Inner| inner.templates.contains_key(id);
        if known(&self.lock()) {
            return Err(exists("template", id));
        }
        let nobody = VmId::new(id.as_str()).map_err(|error| died(&error.to_string()))?;
        self.take_time(Call::Import, id.as_str(), self.time(Call::Import, &nobody)).await?;
        {
            let mut inner = self.lock();
            if known(&inner) {
                return Err(exists("template", id));
            }
            let record = TemplateRecord { id: id.clone(), spec: spec.clone(), sealed: None, damaged: false };
            inner.make(vec![Change::Template(record)])?;
        }
        self.stepper.stand(Call::Import, id.as_str(), true).await?;
        // There is no disk; its name stands for what would be on it.
        let sha256 = hex::encode(Sha256::digest(spec.disk_path.as_os_str().as_encoded_bytes()));
        Ok(DiskFacts { format: "simulated".to_owned(), file_bytes: 0, sha256 })
    }

    pub(super) async fn seal(&self, id: &TemplateId, vm: &VmId) -> HvResult<CloneMethod> {
        let look = |inner: &mut Inner, record: &VmRecord| {
            inner.template(id)?;
            if record.definition.origin == Origin::Golden(id.clone()) {
                return Ok(None);
            }
            let state = "not made from that template's golden disk".to_owned();
            Err(HvError::IllegalState { vm: vm.clone(), state, action: "seal a template from" })
        };
        let make = || {
            let state = self.moment(vm)?;
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            let template = inner.template(id)?.clone();
            let refused = match record.phase {
                _ if template.sealed.is_some() => Some(exists("prepared state of template", id)),
                Phase::Running(_) => None,
                _ => Some(illegal(&record, "seal a template from")),
            };
            let gone = Change::NoVm(vm.clone());
            if let Some(error) = refused {
                inner.make(vec![gone])?;
                return Err(error);
            }
            let sealed = Some(Kept::from(state));
            inner.make(vec![Change::Template(TemplateRecord { sealed, ..template }), gone])?;
            Ok(CloneMethod::Fork)
        };
        self.turn(vm, Call::Seal, look, make).await
    }

    pub(super) fn delete_template(&self, id: &TemplateId) -> HvResult<()> {
        let mut inner = self.lock();
        if !inner.templates.contains_key(id) {
            return Ok(());
        }
        let user = inner.vms.values().find(|vm| vm.record.definition.origin.template() == id);
        if let Some(vm) = user {
            return Err(HvError::IllegalState {
                vm: vm.record.definition.id.clone(),
                state: "still there".to_owned(),
                action: "delete the template of",
            });
        }
        inner.make(vec![Change::NoTemplate(id.clone())])
    }

    pub(super) async fn define(&self, definition: &VmDefinition) -> HvResult<Rest> {
        let id = &definition.id;
        let look = |inner: &mut Inner| match inner.vms.get(id) {
            Some(vm) if vm.record.definition == *definition => Ok(Some(vm.record.phase.rest())),
            Some(_) => Err(exists("vm", id)),
            None => {
                inner.template(definition.origin.template())?;
                match &definition.origin {
                    Origin::Template(template) if inner.clean(&definition.origin).is_none() => {
                        Err(HvError::NotFound {
                            kind: "prepared state of template",
                            id: template.to_string(),
                        })
                    }
                    _ => Ok(None),
                }
            }
        };
        if let Some(rest) = look(&mut self.lock())? {
            return Ok(rest);
        }
        self.take_time(Call::Define, id.as_str(), self.time(Call::Define, id)).await?;
        let rest = {
            let mut inner = self.lock();
            // The template may have gone meanwhile.
            if let Some(rest) = look(&mut inner)? {
                return Ok(rest);
            }
            let (phase, damaged) = (resting(&definition.origin), inner.clean_is_damaged(&definition.origin));
            inner.write(VmRecord { damaged, ..VmRecord::new(definition.clone(), phase, None) })?;
            phase.rest()
        };
        self.stepper.stand(Call::Define, id.as_str(), true).await?;
        Ok(rest)
    }

    pub(super) async fn start(&self, vm: &VmId) -> HvResult<Run> {
        let look = |_: &mut Inner, record: &VmRecord| match record.phase {
            Phase::Running(run) => Ok(Some(live::run(run))),
            Phase::Off => Ok(None),
            _ => Err(illegal(record, "start")),
        };
        let make = || {
            if self.strikes(Fault::StartFails, vm) {
                return Err(died("it ended while it started"));
            }
            self.begin(vm, Call::Boot, Still::default())
        };
        self.turn(vm, Call::Start, look, make).await
    }

    pub(super) async fn resume(&self, vm: &VmId) -> HvResult<Run> {
        let look = |inner: &mut Inner, record: &VmRecord| match record.phase {
            Phase::Running(run) => Ok(Some(live::run(run))),
            Phase::Paused(run) => {
                inner.write(VmRecord { phase: Phase::Running(run), ..record.clone() })?;
                if let Some(live) = &inner.vm(vm)?.live {
                    live.set_still(|still| still.paused = false);
                }
                Ok(Some(live::run(run)))
            }
            Phase::Saved => Ok(None),
            Phase::Off => Err(illegal(record, "resume")),
        };
        let make = || {
            if self.lock().vm(vm)?.record.damaged {
                return Err(damaged());
            }
            let hung = self.strikes(Fault::GuestHangs, vm);
            self.begin(vm, Call::Wake, Still { paused: false, hung })
        };
        self.turn(vm, Call::Resume, look, make).await
    }

    /// The CPUs of a VM begin to run; its agent is up after the time of `until`.
    fn begin(&self, vm: &VmId, until: Call, still: Still) -> HvResult<Run> {
        if self.strikes(Fault::OutOfMemory, vm) {
            return Err(died("the host has no memory left for it"));
        }
        let moves = until == Call::Wake && self.strikes(Fault::AddressChanges, vm);
        let agent_in = self.time(until, vm);
        let run = {
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            let number = inner.next_run();
            let moved = record.moved.wrapping_add(moves.into());
            inner.write(VmRecord { phase: Phase::Running(number), moved, ..record })?;
            inner.vm(vm)?.live = Some(Arc::new(Live::new(number, agent_in, still)));
            live::run(number)
        };
        self.doom(vm, run.number);
        Ok(run)
    }

    pub(super) async fn save(&self, vm: &VmId) -> HvResult<()> {
        let look = |_: &mut Inner, record: &VmRecord| match record.phase {
            Phase::Saved => Ok(Some(())),
            Phase::Off => Err(illegal(record, "save")),
            _ => Ok(None),
        };
        let make = || {
            let damaged = self.strikes(Fault::SaveCorrupts, vm);
            let state = self.moment(vm)?;
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            if record.phase.run().is_none() {
                return Err(died("it ended while it was saved"));
            }
            // What is still clean goes on sharing its template's.
            let clean = inner.clean(&record.definition.origin).filter(|kept| *kept.0 == state);
            let state = if clean.is_some() { None } else { Some(Kept::from(state)) };
            inner.write(VmRecord { phase: Phase::Saved, state, damaged, ..record })
        };
        self.turn(vm, Call::Save, look, make).await
    }

    pub(super) async fn pause(&self, vm: &VmId) -> HvResult<()> {
        let look = |_: &mut Inner, record: &VmRecord| match record.phase {
            Phase::Paused(_) => Ok(Some(())),
            Phase::Running(_) => Ok(None),
            _ => Err(illegal(record, "pause")),
        };
        let make = || {
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            let Phase::Running(run) = record.phase else { return Err(died("it ended while it was paused")) };
            inner.write(VmRecord { phase: Phase::Paused(run), ..record })?;
            if let Some(live) = &inner.vm(vm)?.live {
                live.set_still(|still| still.paused = true);
            }
            Ok(())
        };
        self.turn(vm, Call::Pause, look, make).await
    }

    pub(super) async fn stop(&self, vm: &VmId, how: Stop) -> HvResult<()> {
        let look = |_: &mut Inner, record: &VmRecord| Ok((record.phase == Phase::Off).then_some(()));
        let call = if how == Stop::Hard { Call::Stop } else { Call::ShutDown };
        let make = || {
            let kept = self.last_moment(vm)?;
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            let state = Some(inner.after_boot(&record, kept));
            inner.write(VmRecord { phase: Phase::Off, state, damaged: false, ..record })
        };
        let stopping = self.turn(vm, call, look, make);
        match how {
            Stop::Hard => stopping.await,
            Stop::Graceful(patience) => match tokio::time::timeout(patience, stopping).await {
                Ok(stopped) => stopped,
                // The guest took too long: the plug is pulled.
                Err(_) => Box::pin(self.stop(vm, Stop::Hard)).await,
            },
        }
    }

    pub(super) async fn reset(&self, vm: &VmId) -> HvResult<Rest> {
        let make = || {
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            let origin = &record.definition.origin;
            let (phase, damaged) = (resting(origin), inner.clean_is_damaged(origin));
            self.put_back(&mut inner, VmRecord { phase, state: None, damaged, ..record })
        };
        self.turn(vm, Call::Reset, |_, _| Ok(None), make).await
    }

    pub(super) async fn restore_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<Rest> {
        let look = |_: &mut Inner, record: &VmRecord| found(record, id).map(|_| None);
        let make = || {
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            let state = Some(found(&record, id)?.state.clone());
            self.put_back(&mut inner, VmRecord { phase: Phase::Saved, state, damaged: false, ..record })
        };
        self.turn(vm, Call::RestoreCheckpoint, look, make).await
    }

    fn put_back(&self, inner: &mut Inner, record: VmRecord) -> HvResult<Rest> {
        let rest = record.phase.rest();
        inner.write(record)?;
        Ok(rest)
    }

    pub(super) async fn delete(&self, vm: &VmId) -> HvResult<()> {
        let make = || self.lock().make(vec![Change::NoVm(vm.clone())]);
        match self.turn(vm, Call::Delete, |_, _| Ok(None), make).await {
            Err(HvError::NotFound { kind: "vm", .. }) => Ok(()),
            other => other,
        }
    }

    pub(super) async fn create_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<CheckpointFacts> {
        let look = |_: &mut Inner, record: &VmRecord| match record.phase {
            _ if record.checkpoints.contains_key(id) => Err(exists("checkpoint", id)),
            Phase::Running(_) | Phase::Paused(_) => Ok(None),
            _ => Err(illegal(record, "checkpoint")),
        };
        let make = || {
            let state = Kept::from(self.moment(vm)?);
            let mut inner = self.lock();
            let mut record = inner.vm(vm)?.record.clone();
            if record.phase.run().is_none() {
                return Err(died("it ended while its checkpoint was taken"));
            }
            let size_bytes = inner.template(record.definition.origin.template())?.spec.memory_mb << 20;
            let created_unix = jiff::Timestamp::now().as_second();
            let facts = CheckpointFacts { id: id.clone(), has_memory: true, size_bytes, created_unix };
            record.checkpoints.insert(id.clone(), Checkpoint { facts: facts.clone(), state });
            inner.write(record)?;
            Ok(facts)
        };
        self.turn(vm, Call::CreateCheckpoint, look, make).await
    }

    pub(super) fn checkpoints(&self, vm: &VmId) -> HvResult<Vec<CheckpointFacts>> {
        Ok(self.lock().vm(vm)?.record.checkpoints.values().map(|kept| kept.facts.clone()).collect())
    }

    pub(super) async fn delete_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<()> {
        let look = |_: &mut Inner, record: &VmRecord| found(record, id).map(|_| None);
        let make = || {
            let mut inner = self.lock();
            let mut record = inner.vm(vm)?.record.clone();
            record.checkpoints.remove(id);
            inner.write(record)
        };
        self.turn(vm, Call::DeleteCheckpoint, look, make).await
    }

    pub(super) async fn fork(&self, vm: &VmId, new: &VmDefinition) -> HvResult<()> {
        let twin = |inner: &Inner| match inner.vms.get(&new.id) {
            Some(twin) if twin.record.definition == *new => Ok(Some(())),
            Some(_) => Err(exists("vm", &new.id)),
            None => Ok(None),
        };
        let look = |inner: &mut Inner, record: &VmRecord| {
            if new.origin != record.definition.origin {
                let state = "of another origin".to_owned();
                return Err(HvError::IllegalState { vm: vm.clone(), state, action: "fork" });
            }
            match twin(inner)? {
                None if record.phase == Phase::Off => Err(illegal(record, "fork")),
                known => Ok(known),
            }
        };
        let make = || {
            let state = Kept::from(self.moment(vm)?);
            let mut inner = self.lock();
            if twin(&inner)?.is_some() {
                return Ok(());
            }
            let record = &inner.vm(vm)?.record;
            if record.phase == Phase::Off {
                return Err(died("it ended while it was forked"));
            }
            let damaged = record.damaged;
            inner.write(VmRecord { damaged, ..VmRecord::new(new.clone(), Phase::Saved, Some(state)) })
        };
        self.turn(vm, Call::Fork, look, make).await
    }

    /// What a VM's guest remembers now.
    pub(super) fn moment(&self, vm: &VmId) -> HvResult<State> {
        let (live, recorded) = {
            let mut inner = self.lock();
            let record = inner.vm(vm)?.record.clone();
            (inner.vm(vm)?.live.clone(), inner.state(&record))
        };
        // Outside the world's lock, since the guest's comes first.
        let state = live.and_then(|live| live.state());
        Ok(state.unwrap_or_else(|| State::clone(&recorded)))
    }

    /// The same, if it is more than the record.
    fn last_moment(&self, vm: &VmId) -> HvResult<Option<State>> {
        let live = self.lock().vm(vm)?.live.clone();
        Ok(live.and_then(|live| live.state()))
    }
}

fn resting(origin: &Origin) -> Phase {
    match origin {
        Origin::Golden(_) => Phase::Off,
        Origin::Template(_) => Phase::Saved,
    }
}

fn found<'a>(record: &'a VmRecord, id: &CheckpointId) -> HvResult<&'a Checkpoint> {
    let checkpoints: &BTreeMap<_, _> = &record.checkpoints;
    checkpoints.get(id).ok_or_else(|| HvError::NotFound { kind: "checkpoint", id: id.to_string() })
}

/// What a template may be here. Its disk need not exist: nobody reads it.
fn check(spec: &TemplateSpec) -> HvResult<()> {
    let bad = |field, why: &str| Err(HvError::BadSetting { field, why: why.to_owned() });
    if spec.memory_mb == 0 {
        return bad("memory_mb", "a simulated guest has some memory too");
    }
    if spec.cpu_count == 0 {
        return bad("cpu_count", "a simulated guest has a cpu too");
    }
    if !spec.display.is_legal() {
        return bad("display", "no frame may have that size");
    }
    if matches!(spec.network, Network::Bridge(_)) {
        return bad("network", "the simulated host has no bridges; choose user or none");
    }
    Ok(())
}
