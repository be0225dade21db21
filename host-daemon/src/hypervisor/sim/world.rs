//! What there is in the simulated world, and how it changes.
//!
//! All of it is behind one lock that is held for microseconds: a change is written to the journal and then made, or
//! neither. Moves of one VM take turns at a lock of its own, held for as long as they take.
//!
//! Locks are taken in this order: a VM's turn, a guest's, the world's.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hvkube_guest::sim::{Guest, State};
use tokio::sync::mpsc;

use super::chance::Chance;
use super::config::{Call, Fault, Profile, SimConfig};
use super::control::{Stepper, Target};
use super::journal::Journal;
use super::live::{self, Live, Machine, Still};
use super::records::{Change, Kept, Phase, TemplateRecord, VmRecord};
use crate::hypervisor::{Event, HvError, HvResult, Origin};
use crate::model::ids::{TemplateId, VmId};

/// A VM that goes by itself does so within this time from its start, in milliseconds.
const DOOM: std::ops::RangeInclusive<u64> = 1_000..=10_000;
/// What a slow disk adds, in milliseconds.
const SLOW: std::ops::RangeInclusive<u64> = 1_000..=10_000;
/// A guest that switches itself off has answered by then.
const LAST_WORDS: Duration = Duration::from_millis(20);

pub(super) struct World {
    pub(super) config: SimConfig,
    chance: Chance,
    inner: Mutex<Inner>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) stepper: Stepper,
    this: Weak<World>,
}

pub(super) struct Inner {
    /// Gone when the daemon is: nothing changes the world after that.
    journal: Option<Journal>,
    pub(super) templates: BTreeMap<TemplateId, TemplateRecord>,
    pub(super) vms: HashMap<VmId, Vm>,
    runs: u64,
    script: Vec<(Fault, Target, u32)>,
}

pub(super) struct Vm {
    pub(super) record: VmRecord,
    pub(super) live: Option<Arc<Live>>,
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// Occasions for chance so far.
    occasions: u32,
}

impl Vm {
    pub(super) fn new(record: VmRecord) -> Self {
        let live = record.phase.run().map(|run| {
            let paused = matches!(record.phase, Phase::Paused(_));
            Arc::new(Live::new(run, Duration::ZERO, Still { paused, hung: false }))
        });
        Self { record, live, turn: Arc::default(), occasions: 0 }
    }
}

impl World {
    /// Reads what an older daemon has left.
    pub(super) fn open(config: SimConfig, events: mpsc::Sender<Event>) -> HvResult<Arc<Self>> {
        let (journal, changes) = Journal::open(&config.dir)?;
        // Counts on from the clock, so that a run of an older daemon has a smaller number.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let (mut templates, mut records) = (BTreeMap::new(), HashMap::new());
        for change in changes {
            match change {
                Change::Template(record) => drop(templates.insert(record.id.clone(), record)),
                Change::NoTemplate(id) => drop(templates.remove(&id)),
                Change::Vm(record) => drop(records.insert(record.definition.id.clone(), record)),
                Change::NoVm(id) => drop(records.remove(&id)),
            }
        }
        let inner = Inner {
            journal: Some(journal),
            templates,
            vms: records.into_iter().map(|(id, record)| (id, Vm::new(record))).collect(),
            runs: u64::try_from(now).unwrap_or_default(),
            script: Vec::new(),
        };
        Ok(Arc::new_cyclic(|this| Self {
            chance: Chance(config.seed),
            config,
            inner: Mutex::new(inner),
            events,
            stepper: Stepper::default(),
            this: this.clone(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Changes are made whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon is gone: nothing of it changes the world any more, and its guests' streams end.
    pub(super) fn close(&self) {
        let lives: Vec<_> = {
            let mut inner = self.lock();
            inner.journal = None;
            inner.vms.values_mut().filter_map(|vm| vm.live.take()).collect()
        };
        self.stepper.bury();
        for live in lives {
            drop(live.end());
        }
    }

    /// How long a call takes on this VM, this time.
    pub(super) fn time(&self, call: Call, vm: &VmId) -> Duration {
        let range = self.config.profile.range(call);
        if *range.end() == 0 && !call.needs_disk() {
            return Duration::ZERO;
        }
        let occasion = self.lock().occasion(vm);
        let time = self.scaled(self.chance.within(range, "time", vm.as_str(), occasion));
        if call.needs_disk() && self.strikes(Fault::SlowDisk, vm) {
            return time + self.fault_time(SLOW, vm);
        }
        time
    }

    fn scaled(&self, millis: u64) -> Duration {
        self.config.time_factor.scale(Duration::from_millis(millis))
    }

    /// Times that faults take; under the instant profile they are a hundredth, but never nothing.
    fn fault_time(&self, range: std::ops::RangeInclusive<u64>, vm: &VmId) -> Duration {
        let occasion = self.lock().occasion(vm);
        let millis = self.chance.within(range, "fault", vm.as_str(), occasion);
        match self.config.profile {
            Profile::Instant => Duration::from_millis(millis / 100),
            Profile::Hyperv => self.scaled(millis),
        }
    }

    /// Whether this fault hits this VM now.
    pub(super) fn strikes(&self, fault: Fault, vm: &VmId) -> bool {
        let mut inner = self.lock();
        if !inner.script.is_empty() && inner.scripted(fault, vm) {
            return true;
        }
        let Some(rate) = self.config.faults.iter().find(|rate| rate.fault == fault) else { return false };
        let occasion = inner.occasion(vm);
        self.chance.happens(rate.per_mille(), fault.name(), vm.as_str(), occasion)
    }

    pub(super) fn script(&self, fault: Fault, target: Target, times: u32) {
        self.lock().script.push((fault, target, times));
    }

    pub(super) fn spare(&self) {
        self.lock().script.clear();
    }

    /// The guest's memory or disk has changed.
    pub(super) fn remember(&self, vm: &VmId, run: u64, state: &State) {
        let mut inner = self.lock();
        let Ok(found) = inner.vm(vm) else { return };
        if found.record.phase.run() != Some(run) {
            return;
        }
        let record = VmRecord { state: Some(state.clone().into()), ..found.record.clone() };
        if let Err(error) = inner.write(record) {
            tracing::warn!(%vm, error = &error as &dyn std::error::Error, "a guest's state is not kept");
        }
    }

    /// The guest switches its machine off, or restarts it.
    pub(super) fn power(&self, vm: &VmId, run: u64, reboot: bool) {
        let Some(world) = self.this.upgrade() else { return };
        let vm = vm.clone();
        tokio::spawn(async move {
            tokio::time::sleep(world.time(Call::ShutDown, &vm).max(LAST_WORDS)).await;
            let done = if reboot {
                world.reboot(&vm, run)
            } else {
                world.ended(&vm, Some(run), "the guest shut down", true)
            };
            if let Err(error) = done {
                tracing::debug!(%vm, %error, "it does not run any more");
            }
        });
    }

    fn reboot(&self, vm: &VmId, run: u64) -> HvResult<()> {
        let boot = self.time(Call::Boot, vm);
        let live = self.lock().running(vm, Some(run))?;
        let kept = live.reboot(boot);
        let mut inner = self.lock();
        let record = inner.vm(vm)?.record.clone();
        let state = Some(inner.after_boot(&record, kept));
        inner.write(VmRecord { state, ..record })
    }

    /// A VM's process ends by itself.
    pub(super) fn ended(&self, vm: &VmId, run: Option<u64>, how: &str, clean: bool) -> HvResult<()> {
        let live = self.lock().running(vm, run)?;
        let kept = live.end();
        {
            let mut inner = self.lock();
            // It may have been stopped meanwhile, and then it is no news.
            inner.running(vm, Some(live.run))?;
            let record = inner.vm(vm)?.record.clone();
            let state = Some(inner.after_boot(&record, kept));
            inner.write(VmRecord { phase: Phase::Off, state, ..record })?;
        }
        let reason = if clean { how.to_owned() } else { format!("simulated process ended: {how}") };
        self.tell(Event::Exited { vm: vm.clone(), run: live.run(), reason, clean });
        Ok(())
    }

    /// A VM is gone behind everybody's back.
    pub(super) fn vanish(&self, vm: &VmId, run: Option<u64>) -> HvResult<()> {
        let live = {
            let mut inner = self.lock();
            let live = inner.vm(vm)?.live.clone();
            if run.is_some() && live.as_ref().map(|live| live.run) != run {
                return Ok(());
            }
            inner.make(vec![Change::NoVm(vm.clone())])?;
            live
        };
        if let Some(live) = live {
            drop(live.end());
            let reason = "simulated process ended: its files are gone".to_owned();
            self.tell(Event::Exited { vm: vm.clone(), run: live.run(), reason, clean: false });
        }
        Ok(())
    }

    /// The hypervisor stops a VM's CPUs by itself.
    pub(super) fn halt(&self, vm: &VmId, reason: &str) -> HvResult<()> {
        let run = {
            let mut inner = self.lock();
            let live = inner.running(vm, None)?;
            let record = inner.vm(vm)?.record.clone();
            inner.write(VmRecord { phase: Phase::Paused(live.run), ..record })?;
            live.set_still(|still| still.paused = true);
            live.run()
        };
        self.tell(Event::Halted { vm: vm.clone(), run, reason: reason.to_owned() });
        Ok(())
    }

    pub(super) fn hang(&self, vm: &VmId, hung: bool) -> HvResult<()> {
        self.lock().running(vm, None)?.set_still(|still| still.hung = hung);
        Ok(())
    }

    pub(super) fn corrupt(&self, vm: &VmId) -> HvResult<()> {
        let mut inner = self.lock();
        let record = inner.vm(vm)?.record.clone();
        if record.phase != Phase::Saved {
            return Err(illegal(&record, "damage the saved memory of"));
        }
        inner.write(VmRecord { damaged: true, ..record })
    }

    /// Damages the memory that clean VMs of a template share.
    pub(super) fn corrupt_template(&self, id: &TemplateId) -> HvResult<()> {
        let mut inner = self.lock();
        let mut changes =
            vec![Change::Template(TemplateRecord { damaged: true, ..inner.template(id)?.clone() })];
        let sharing = inner.vms.values().map(|vm| &vm.record).filter(|record| {
            record.definition.origin == Origin::Template(id.clone())
                && record.phase == Phase::Saved
                && record.state.is_none()
        });
        changes.extend(sharing.map(|record| Change::Vm(VmRecord { damaged: true, ..record.clone() })));
        inner.make(changes)
    }

    fn tell(&self, event: Event) {
        let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) else { return };
        let events = self.events.clone();
        // Nobody listens once the orchestrator is gone.
        tokio::spawn(async move { events.send(event).await });
    }

    /// What a run that has just begun has before it.
    pub(super) fn doom(&self, vm: &VmId, run: u64) {
        let (dies, vanishes) = (self.strikes(Fault::VmDies, vm), self.strikes(Fault::VmVanishes, vm));
        let Some(world) = self.this.upgrade().filter(|_| dies || vanishes) else { return };
        let (vm, time) = (vm.clone(), self.fault_time(DOOM, vm));
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let done = if vanishes {
                world.vanish(&vm, Some(run))
            } else {
                world.ended(&vm, Some(run), "a fault was asked for", false)
            };
            if let Err(error) = done {
                tracing::debug!(%vm, %error, "it does not run any more");
            }
        });
    }

    /// The guest of a VM that runs.
    pub(super) fn guest(&self, vm: &VmId, action: &'static str) -> HvResult<(Arc<Live>, Guest)> {
        let mut inner = self.lock();
        let found = inner.vm(vm)?;
        let Some(live) = found.live.clone() else { return Err(illegal(&found.record, action)) };
        let record = found.record.clone();
        let spec = &inner.template(record.definition.origin.template())?.spec;
        let hardware = live::hardware(spec, &record, &live);
        let state = inner.state(&record);
        // Before the guest's own lock, which is taken before the world's.
        drop(inner);
        let make = || {
            let machine = Machine { world: self.this.clone(), vm: vm.clone(), run: live.run };
            Guest::new(hardware, State::clone(&state), Arc::new(machine))
        };
        let guest = live.guest(make);
        Ok((live, guest))
    }
}

pub(super) fn illegal(record: &VmRecord, action: &'static str) -> HvError {
    HvError::IllegalState { vm: record.definition.id.clone(), state: record.phase.name().to_owned(), action }
}

impl Inner {
    pub(super) fn journal_path(&self) -> Option<PathBuf> {
        self.journal.as_ref().map(|journal| journal.path().to_owned())
    }

    pub(super) fn vm(&mut self, id: &VmId) -> HvResult<&mut Vm> {
        self.vms.get_mut(id).ok_or_else(|| HvError::NotFound { kind: "vm", id: id.to_string() })
    }

    pub(super) fn template(&self, id: &TemplateId) -> HvResult<&TemplateRecord> {
        self.templates.get(id).ok_or_else(|| HvError::NotFound { kind: "template", id: id.to_string() })
    }

    /// A run of a VM: this one, or whichever it is in.
    fn running(&mut self, vm: &VmId, run: Option<u64>) -> HvResult<Arc<Live>> {
        let found = self.vm(vm)?;
        let live = found.live.clone().filter(|live| run.is_none_or(|run| live.run == run));
        live.ok_or_else(|| illegal(&found.record, "end the process of"))
    }

    /// What the guest of a VM remembers, as far as is recorded.
    pub(super) fn state(&self, record: &VmRecord) -> Arc<State> {
        record
            .state
            .clone()
            .or_else(|| self.clean(&record.definition.origin))
            .map_or_else(Arc::default, |kept| kept.0)
    }

    /// What VMs of this origin begin with.
    pub(super) fn clean(&self, origin: &Origin) -> Option<Kept> {
        match origin {
            Origin::Golden(_) => None,
            Origin::Template(id) => self.templates.get(id)?.sealed.clone(),
        }
    }

    pub(super) fn clean_is_damaged(&self, origin: &Origin) -> bool {
        match origin {
            Origin::Golden(_) => false,
            Origin::Template(id) => self.templates.get(id).is_some_and(|template| template.damaged),
        }
    }

    /// What is left of what a guest remembered when it boots anew: its disk.
    pub(super) fn after_boot(&self, record: &VmRecord, kept: Option<State>) -> Kept {
        let disk = kept.map_or_else(|| self.state(record).disk.clone(), |state| state.disk);
        State { disk, ..State::default() }.into()
    }

    pub(super) fn next_run(&mut self) -> u64 {
        self.runs += 1;
        self.runs
    }

    fn occasion(&mut self, vm: &VmId) -> u64 {
        let Some(vm) = self.vms.get_mut(vm) else { return 0 };
        vm.occasions = vm.occasions.wrapping_add(1);
        vm.occasions.into()
    }

    /// Takes one occasion off the script.
    fn scripted(&mut self, fault: Fault, vm: &VmId) -> bool {
        let template = self.vms.get(vm).map(|vm| vm.record.definition.origin.template());
        let meant = |target: &Target| match target {
            Target::Any => true,
            Target::Vm(id) => id == vm,
            Target::Template(id) => Some(id) == template,
        };
        let Some(at) = self.script.iter().position(|(of, target, _)| *of == fault && meant(target)) else {
            return false;
        };
        let (_, _, times) = &mut self.script[at];
        *times = times.saturating_sub(1);
        if *times == 0 {
            self.script.remove(at);
        }
        true
    }

    /// Records what a VM is now.
    pub(super) fn write(&mut self, record: VmRecord) -> HvResult<()> {
        self.make(vec![Change::Vm(record)])
    }

    /// Writes changes down, then makes them.
    pub(super) fn make(&mut self, changes: Vec<Change>) -> HvResult<()> {
        let Some(journal) = &mut self.journal else {
            return Err(HvError::Unavailable("the simulated world has ended".to_owned()));
        };
        journal.append(&changes)?;
        let long = journal.is_long();
        for change in changes {
            match change {
                Change::Template(record) => drop(self.templates.insert(record.id.clone(), record)),
                Change::NoTemplate(id) => drop(self.templates.remove(&id)),
                Change::NoVm(id) => drop(self.vms.remove(&id)),
                Change::Vm(record) => match self.vms.get_mut(&record.definition.id) {
                    Some(vm) => {
                        if record.phase.run().is_none() {
                            vm.live = None;
                        }
                        vm.record = record;
                    }
                    None => drop(self.vms.insert(record.definition.id.clone(), Vm::new(record))),
                },
            }
        }
        if long {
            self.shorten();
        }
        Ok(())
    }

    fn shorten(&mut self) {
        let templates = self.templates.values().cloned().map(Change::Template);
        let vms = self.vms.values().map(|vm| Change::Vm(vm.record.clone()));
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.rewrite(templates.chain(vms))
        {
            // The long one is as true.
            tracing::warn!(error = &error as &dyn std::error::Error, "the journal stays long");
        }
    }
}
