//! A hypervisor in memory. Its VMs outlive the orchestrator, as processes do; calls fail or stand still on demand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::guest::fake::Fake;
use crate::hypervisor::{
    BackendFacts, Capabilities, CheckpointFacts, DiskFacts, Event, Found, GuestStream, HvError, HvResult,
    Hypervisor, Observed, Rest, Run, Stop, VmDefinition, VmFiles,
};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::input::RawInput;
use crate::model::screen::{Frame, Size};
use crate::model::template::{CloneMethod, NetworkMode, TemplateSpec};

const EVENTS: usize = 16;

#[derive(Clone)]
struct Machine {
    definition: VmDefinition,
    is: Observed,
    /// What ran in it since it was clean.
    dirt: u32,
    agent: Fake,
    checkpoints: BTreeMap<CheckpointId, u32>,
}

/// When a call stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

#[derive(Default)]
struct Inner {
    machines: BTreeMap<VmId, Machine>,
    templates: Vec<TemplateId>,
    runs: u64,
    events: Option<mpsc::Sender<Event>>,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    gates: Vec<(&'static str, When, Arc<Gate>)>,
    calls: Vec<(&'static str, VmId)>,
    memory_mb: Option<u64>,
}

/// How a call fails.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Refused, the VM stays as it was.
    Refused,
    /// The VM's process dies of it.
    Dies,
}

/// Where calls stand still.
pub(super) struct Gate {
    reached: watch::Sender<usize>,
    passes: Semaphore,
}

impl Gate {
    /// Waits until a call stands here.
    pub(super) async fn reached(&self) {
        self.reached.subscribe().wait_for(|count| *count > 0).await.expect("open");
    }

    /// Lets everybody on, from now on.
    pub(super) fn open(&self) {
        self.passes.add_permits(1000);
    }
}

/// What is on the host.
pub(super) struct World {
    inner: Mutex<Inner>,
    capabilities: Capabilities,
    facts: BackendFacts,
}

impl World {
    /// `saves`: VMs can be saved, checkpointed and forked.
    pub(super) fn new(saves: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            capabilities: Capabilities {
                save: saves,
                pause: saves,
                memory_checkpoints: saves,
                fork: saves,
                display: false,
                gpu: false,
                networks: vec![NetworkMode::None],
                clone_method: if saves { CloneMethod::Fork } else { CloneMethod::Boot },
            },
            facts: BackendFacts {
                name: "sim",
                version: "1".into(),
                accelerator: "none",
                accelerator_reason: String::new(),
            },
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next calls of this name fail.
    pub(super) fn fail(&self, call: &'static str, faults: &[Fault]) {
        self.lock().faults.entry(call).or_default().extend(faults.iter().copied());
    }

    /// No call fails any more.
    pub(super) fn mend(&self) {
        self.lock().faults.clear();
    }

    /// VMs can have so much memory in all.
    pub(super) fn set_memory_mb(&self, total: u64) {
        self.lock().memory_mb = Some(total);
    }

    /// Calls of this name stand still.
    pub(super) fn gate(&self, call: &'static str, when: When) -> Arc<Gate> {
        let gate = Arc::new(Gate { reached: watch::Sender::new(0), passes: Semaphore::new(0) });
        self.lock().gates.push((call, when, Arc::clone(&gate)));
        gate
    }

    pub(super) fn ungate(&self) {
        self.lock().gates.drain(..).for_each(|(.., gate)| gate.open());
    }

    /// Name of the state a VM really is in.
    pub(super) fn state(&self, vm: &VmId) -> Option<String> {
        let name = match &self.lock().machines.get(vm)?.is {
            Observed::Running(_) => "running",
            Observed::Paused(_) => "paused",
            Observed::Saved => "saved",
            Observed::Off => "off",
            Observed::Broken(_) => "error",
        };
        Some(name.to_owned())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.lock().machines.keys().map(ToString::to_string).collect()
    }

    pub(super) fn templates(&self) -> Vec<TemplateId> {
        self.lock().templates.clone()
    }

    /// Something runs in the VM.
    pub(super) fn soil(&self, vm: &VmId) {
        self.lock().machines.get_mut(vm).expect("vm").dirt += 1;
    }

    pub(super) fn dirt(&self, vm: &VmId) -> Option<u32> {
        Some(self.lock().machines.get(vm)?.dirt)
    }

    pub(super) fn agent(&self, vm: &VmId) -> Fake {
        self.lock().machines.get(vm).expect("vm").agent.clone()
    }

    pub(super) fn count(&self, call: &'static str) -> usize {
        self.lock().calls.iter().filter(|(name, _)| *name == call).count()
    }

    /// The VM's process dies by itself, or its guest shuts down.
    pub(super) async fn exit(&self, vm: &VmId, clean: bool) {
        let (event, events) = {
            let mut inner = self.lock();
            let machine = inner.machines.get_mut(vm).expect("vm");
            let (Observed::Running(run) | Observed::Paused(run)) = machine.is else {
                panic!("{vm} does not run")
            };
            machine.is = if clean { Observed::Off } else { Observed::Broken("it burned".into()) };
            let reason = if clean { "shut down" } else { "it burned" }.to_owned();
            (Event::Exited { vm: vm.clone(), run, reason, clean }, inner.events.clone())
        };
        if let Some(events) = events {
            events.send(event).await.expect("somebody listens");
        }
    }

    async fn stand(&self, call: &'static str, when: When) {
        let gate = {
            let inner = self.lock();
            inner
                .gates
                .iter()
                .find(|(name, at, _)| *name == call && *at == when)
                .map(|(.., gate)| gate.clone())
        };
        if let Some(gate) = gate {
            gate.reached.send_modify(|count| *count += 1);
            gate.passes.acquire().await.expect("open").forget();
        }
    }

    /// One call: counted, scripted, then done at once.
    async fn act<T>(
        &self,
        call: &'static str,
        vm: &VmId,
        done: impl FnOnce(&mut Inner) -> HvResult<T> + Send,
    ) -> HvResult<T> {
        self.stand(call, When::Before).await;
        let result = {
            let mut inner = self.lock();
            inner.calls.push((call, vm.clone()));
            match inner.faults.get_mut(call).and_then(VecDeque::pop_front) {
                None => done(&mut inner),
                Some(fault) => {
                    if let (Fault::Dies, Some(machine)) = (fault, inner.machines.get_mut(vm)) {
                        machine.is = Observed::Broken("it burned".into());
                    }
                    Err(HvError::Process(format!("{call}: {fault:?}")))
                }
            }
        };
        self.stand(call, When::After).await;
        result
    }
}

impl Inner {
    fn machine(&mut self, vm: &VmId) -> HvResult<&mut Machine> {
        self.machines.get_mut(vm).ok_or_else(|| HvError::NotFound { kind: "vm", id: vm.to_string() })
    }

    fn run(&mut self, vm: &VmId) -> HvResult<Run> {
        self.runs += 1;
        let number = self.runs;
        let machine = self.machine(vm)?;
        let (Observed::Running(run) | Observed::Paused(run)) = machine.is else {
            let run = Run { number, pid: 1 };
            machine.is = Observed::Running(run);
            return Ok(run);
        };
        machine.is = Observed::Running(run);
        Ok(run)
    }
}

/// The way of one orchestrator to the world.
pub(super) struct Sim(Arc<World>, Mutex<Option<mpsc::Receiver<Event>>>);

impl Sim {
    pub(super) fn new(world: &Arc<World>) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        world.lock().events = Some(sender);
        Self(Arc::clone(world), Mutex::new(Some(events)))
    }

    fn rest(&self) -> Rest {
        if self.0.capabilities.save { Rest::Saved } else { Rest::Off }
    }
}

fn resting(rest: Rest) -> Observed {
    match rest {
        Rest::Saved => Observed::Saved,
        Rest::Off => Observed::Off,
    }
}

#[async_trait]
impl Hypervisor for Sim {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn facts(&self) -> &BackendFacts {
        &self.0.facts
    }

    fn events(&self) -> Option<mpsc::Receiver<Event>> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn memory_mb(&self) -> Option<u64> {
        self.0.lock().memory_mb
    }

    async fn recover(&self) -> HvResult<Vec<Found>> {
        let inner = self.0.lock();
        let found = inner.machines.values();
        Ok(found.map(|m| Found { definition: m.definition.clone(), observed: m.is.clone() }).collect())
    }

    async fn survey(&self) -> HvResult<Vec<Found>> {
        let machines = self.0.lock().machines.values().cloned().collect::<Vec<_>>();
        Ok(machines.into_iter().map(|one| Found { definition: one.definition, observed: one.is }).collect())
    }

    async fn observe(&self, vm: &VmId) -> HvResult<Observed> {
        Ok(self.0.lock().machine(vm)?.is.clone())
    }

    async fn import_template(&self, id: &TemplateId, _: &TemplateSpec) -> HvResult<DiskFacts> {
        let nobody = VmId::new("nobody").expect("legal");
        self.0
            .act("import", &nobody, |inner| {
                if inner.templates.contains(id) {
                    return Err(HvError::AlreadyExists { kind: "template", id: id.to_string() });
                }
                inner.templates.push(id.clone());
                Ok(DiskFacts { format: "raw".into(), file_bytes: 1, sha256: "00".into() })
            })
            .await
    }

    async fn seal_template(&self, _: &TemplateId, vm: &VmId) -> HvResult<CloneMethod> {
        let method = self.0.capabilities.clone_method;
        self.0
            .act("seal", vm, |inner| {
                inner.machines.remove(vm);
                Ok(method)
            })
            .await
    }

    async fn delete_template(&self, id: &TemplateId) -> HvResult<()> {
        self.0.lock().templates.retain(|known| known != id);
        Ok(())
    }

    async fn templates(&self) -> HvResult<Vec<TemplateId>> {
        Ok(self.0.templates())
    }

    async fn define(&self, definition: &VmDefinition) -> HvResult<Rest> {
        use crate::hypervisor::Origin;
        let rest = match definition.origin {
            Origin::Golden(_) => Rest::Off,
            Origin::Template(_) => self.rest(),
        };
        self.0
            .act("define", &definition.id, |inner| {
                let machine = Machine {
                    definition: definition.clone(),
                    is: resting(rest),
                    dirt: 0,
                    agent: Fake::new(8, 8),
                    checkpoints: BTreeMap::new(),
                };
                inner.machines.insert(definition.id.clone(), machine);
                Ok(rest)
            })
            .await
    }

    async fn start(&self, vm: &VmId) -> HvResult<Run> {
        self.0.act("start", vm, |inner| inner.run(vm)).await
    }

    async fn resume(&self, vm: &VmId) -> HvResult<Run> {
        self.0.act("resume", vm, |inner| inner.run(vm)).await
    }

    async fn save(&self, vm: &VmId) -> HvResult<()> {
        self.0
            .act("save", vm, |inner| {
                let _: () = inner.machine(vm)?.is = Observed::Saved;
                Ok(())
            })
            .await
    }

    async fn pause(&self, vm: &VmId) -> HvResult<()> {
        self.0
            .act("pause", vm, |inner| {
                let machine = inner.machine(vm)?;
                if let Observed::Running(run) = machine.is {
                    machine.is = Observed::Paused(run);
                }
                Ok(())
            })
            .await
    }

    async fn stop(&self, vm: &VmId, _: Stop) -> HvResult<()> {
        self.0
            .act("stop", vm, |inner| {
                let _: () = inner.machine(vm)?.is = Observed::Off;
                Ok(())
            })
            .await
    }

    async fn reset(&self, vm: &VmId) -> HvResult<Rest> {
        let rest = self.rest();
        self.0
            .act("reset", vm, |inner| {
                let machine = inner.machine(vm)?;
                (machine.is, machine.dirt) = (resting(rest), 0);
                Ok(rest)
            })
            .await
    }

    async fn delete(&self, vm: &VmId) -> HvResult<()> {
        self.0
            .act("delete", vm, |inner| {
                inner.machines.remove(vm);
                Ok(())
            })
            .await
    }

    async fn create_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<CheckpointFacts> {
        self.0
            .act("checkpoint", vm, |inner| {
                let machine = inner.machine(vm)?;
                let dirt = machine.dirt;
                if machine.checkpoints.insert(id.clone(), dirt).is_some() {
                    return Err(HvError::AlreadyExists { kind: "checkpoint", id: id.to_string() });
                }
                Ok(facts(id))
            })
            .await
    }

    async fn checkpoints(&self, vm: &VmId) -> HvResult<Vec<CheckpointFacts>> {
        Ok(self.0.lock().machine(vm)?.checkpoints.keys().map(facts).collect())
    }

    async fn restore_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<Rest> {
        self.0
            .act("restore", vm, |inner| {
                let machine = inner.machine(vm)?;
                machine.dirt = machine.checkpoints[id];
                machine.is = Observed::Saved;
                Ok(Rest::Saved)
            })
            .await
    }

    async fn delete_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<()> {
        self.0
            .act("delete_checkpoint", vm, |inner| match inner.machine(vm)?.checkpoints.remove(id) {
                Some(_) => Ok(()),
                None => Err(HvError::NotFound { kind: "checkpoint", id: id.to_string() }),
            })
            .await
    }

    async fn fork(&self, vm: &VmId, new: &VmDefinition) -> HvResult<()> {
        self.0
            .act("fork", vm, |inner| {
                let dirt = inner.machine(vm)?.dirt;
                let machine = Machine {
                    definition: new.clone(),
                    is: Observed::Saved,
                    dirt,
                    agent: Fake::new(8, 8),
                    checkpoints: BTreeMap::new(),
                };
                inner.machines.insert(new.id.clone(), machine);
                Ok(())
            })
            .await
    }

    async fn open_guest(&self, vm: &VmId) -> HvResult<Box<dyn GuestStream>> {
        self.0
            .act("open_guest", vm, |inner| {
                let machine = inner.machine(vm)?;
                match machine.is {
                    Observed::Running(_) => Ok(machine.agent.dial()),
                    _ => Err(HvError::Process("it does not run".into())),
                }
            })
            .await
    }

    async fn guest_secret(&self, _: &VmId) -> HvResult<Option<[u8; 32]>> {
        Ok(None)
    }

    async fn screenshot(&self, _: &VmId) -> HvResult<Frame> {
        Err(HvError::NotSupported { backend: "sim", action: "look at a screen" })
    }

    async fn input(&self, _: &VmId, _: Size, _: &[RawInput]) -> HvResult<()> {
        Err(HvError::NotSupported { backend: "sim", action: "type" })
    }

    async fn resident_bytes(&self, _: &VmId) -> HvResult<u64> {
        Ok(1)
    }

    async fn files(&self, vm: &VmId) -> HvResult<VmFiles> {
        Ok(VmFiles { disk: PathBuf::from(format!("/sim/{vm}")), saved_state: None })
    }
}

fn facts(id: &CheckpointId) -> CheckpointFacts {
    CheckpointFacts { id: id.clone(), has_memory: true, size_bytes: 1, created_unix: 1 }
}
