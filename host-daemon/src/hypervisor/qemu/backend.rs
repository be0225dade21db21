//! What the backend knows while the daemon runs, and the small steps that every move is made of.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::config::QemuConfig;
use super::error::Context;
use super::files::{self, Durability};
use super::machine::{Accel, Launch, Ram, signature};
use super::network;
use super::process::{Exit, Process};
use super::program::Version;
use super::qmp::Qmp;
use super::records::{DiskId, Paths, Phase, References, TemplateRecord, VmRecord};
use crate::hypervisor::{Event, HvError, HvResult, Run};
use crate::model::ids::{TemplateId, VmId};

/// The backend's state, shared by the calls that are under way.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: QemuConfig,
    pub(crate) paths: Paths,
    /// Marks our processes.
    pub(crate) instance: String,
    pub(crate) version: Version,
    pub(crate) accel: Accel,
    /// Clones map their template's memory.
    pub(crate) fork: bool,
    /// Memory of the host in MiB.
    pub(crate) host_mb: u64,
    pub(crate) templates: Mutex<HashMap<TemplateId, Arc<Template>>>,
    pub(crate) vms: Mutex<HashMap<VmId, Arc<Vm>>>,
    /// Number of the next run.
    pub(crate) runs: AtomicU64,
    pub(crate) events: mpsc::Sender<Event>,
    /// Ends the tasks that watch processes, and with them their connections: a monitor talks to one at a time, so the
    /// next owner of the data folder could not reach it otherwise.
    pub(crate) open: DropGuard,
    /// Held while the data folder is ours.
    pub(crate) _lock: File,
}

/// A template.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) record: Mutex<TemplateRecord>,
    /// Whoever reads its files anew, which takes long; the others wait for what comes of it.
    pub(crate) checking: tokio::sync::Mutex<()>,
}

impl Template {
    pub(crate) fn new(record: TemplateRecord) -> Self {
        Self { record: Mutex::new(record), checking: tokio::sync::Mutex::default() }
    }
}

/// A VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    /// Held by whoever changes it. A call that was abandoned goes on to its end before the next one begins.
    pub(crate) turn: tokio::sync::Mutex<()>,
    pub(crate) record: Mutex<VmRecord>,
    pub(crate) live: Mutex<Option<Arc<Live>>>,
}

/// A VM's process and the connection to it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    /// We ended it, or are about to.
    pub(crate) expected: AtomicBool,
}

impl Live {
    /// Ends the process; nobody is told.
    pub(crate) async fn end(&self) -> HvResult<()> {
        self.expected.store(true, Ordering::Release);
        self.process.kill().await
    }

    /// Its run.
    pub(crate) fn run(&self) -> Run {
        self.process.run
    }
}

/// Locks; a panic elsewhere must not take every VM along, and each value is replaced whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what may wait for a disk on a thread made for that.
pub(crate) async fn blocking<T, F>(work: F) -> HvResult<T>
where
    T: Send + 'static,
    F: FnOnce() -> HvResult<T> + Send + 'static,
{
    finished(tokio::task::spawn_blocking(work).await)
}

/// The result of work that was moved elsewhere.
pub(crate) fn finished<T>(result: Result<HvResult<T>, tokio::task::JoinError>) -> HvResult<T> {
    result.unwrap_or_else(|error| {
        Err(HvError::Io { context: "finish a step".to_owned(), source: std::io::Error::other(error) })
    })
}

impl Vm {
    /// A VM that has no process.
    pub(crate) fn new(record: VmRecord) -> Self {
        Self {
            id: record.definition.id.clone(),
            turn: tokio::sync::Mutex::default(),
            record: Mutex::new(record),
            live: Mutex::new(None),
        }
    }

    /// A copy of its record.
    pub(crate) fn record(&self) -> VmRecord {
        lock(&self.record).clone()
    }

    /// Its process, unless that has ended.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        lock(&self.live).clone().filter(|live| !live.process.has_ended())
    }

    /// Its process, or an error that says what can't be done without one.
    pub(crate) fn running(&self, action: &'static str) -> HvResult<Arc<Live>> {
        self.live().ok_or_else(|| self.illegal(action))
    }

    /// The error for a move that its state does not allow.
    pub(crate) fn illegal(&self, action: &'static str) -> HvError {
        let state = match (self.live(), lock(&self.record).memory) {
            (Some(_), _) => "running",
            (None, Some(_)) => "saved",
            (None, None) => "off",
        };
        HvError::IllegalState { vm: self.id.clone(), state: state.to_owned(), action }
    }
}

impl Inner {
    /// A VM by id.
    pub(crate) fn vm(&self, id: &VmId) -> HvResult<Arc<Vm>> {
        let found = lock(&self.vms).get(id).cloned();
        found.ok_or_else(|| HvError::NotFound { kind: "vm", id: id.to_string() })
    }

    /// A template by id.
    pub(crate) fn template(&self, id: &TemplateId) -> HvResult<Arc<Template>> {
        let found = lock(&self.templates).get(id).cloned();
        found.ok_or_else(|| HvError::NotFound { kind: "template", id: id.to_string() })
    }

    /// A copy of the record of a VM's template.
    pub(crate) fn template_of(&self, record: &VmRecord) -> HvResult<TemplateRecord> {
        let template = self.template(record.definition.origin.template())?;
        let record = lock(&template.record).clone();
        Ok(record)
    }

    /// What a state of this template's VMs depends on, here and now.
    pub(crate) fn signature(&self, template: &TemplateRecord) -> String {
        signature(&self.version.text, self.accel, template)
    }

    /// Changes a VM's record, in memory and on disk.
    pub(crate) async fn update<F>(&self, vm: &Vm, durability: Durability, change: F) -> HvResult<VmRecord>
    where
        F: FnOnce(&mut VmRecord),
    {
        let record = {
            let mut record = lock(&vm.record);
            change(&mut record);
            record.clone()
        };
        let path = self.paths.vm_record(&vm.id);
        match durability {
            // Microseconds, into the page cache.
            Durability::Daemon => files::write_json(&path, &record, durability)?,
            Durability::Host => {
                let written = record.clone();
                blocking(move || files::write_json(&path, &written, durability)).await?;
            }
        }
        Ok(record)
    }

    /// Makes an empty overlay. One for a memory that others share need not survive a crash of the host: `recover` puts a
    /// fresh one under every such VM after a reboot, which spares resume and reset the wait for the disk.
    pub(crate) async fn blank_disk(&self, template: &TemplateId, durability: Durability) -> HvResult<DiskId> {
        let id = DiskId::new();
        let (blank, disk) = (self.paths.blank(template), self.paths.disk(id));
        blocking(move || {
            fs::copy(&blank, &disk).context("copy the empty disk to", &disk)?;
            if durability == Durability::Host {
                files::sync_new(&disk)?;
            }
            Ok(id)
        })
        .await
    }

    /// Starts a VM's process as its record says, and waits until its machine is built.
    pub(crate) async fn launch(&self, vm: &Vm, ram: Ram, incoming: bool) -> HvResult<Arc<Live>> {
        let record = vm.record();
        let template = self.template_of(&record)?;
        let disks = [&record.chain[..], &[record.head]].concat();
        let uid = record.definition.uid;
        let launch = Launch {
            instance: &self.instance,
            accel: self.accel,
            template: &template,
            vm: &vm.id,
            uid,
            generation: record.generation,
            disks: &disks,
            ram,
            incoming,
        };
        let arguments = launch.arguments(&self.paths);
        let ends = network::open(&template.spec.network, &self.config.bridge_helper).await?;
        let dir = self.paths.run_dir(uid);
        let process = Process::start(&self.config.binary, &arguments, &dir, ends, record.run)?;
        match process.monitor().await {
            Ok(qmp) => Ok(Arc::new(Live { process, qmp, expected: AtomicBool::new(false) })),
            Err(error) => {
                process.kill().await?;
                files::remove(&dir)?;
                Err(error)
            }
        }
    }

    /// The arguments a VM's process has, for people.
    pub(crate) fn command_line(pid: u32) -> Vec<String> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    /// Takes a process as the VM's own, and watches for its end from now on.
    pub(crate) fn attach(self: &Arc<Self>, vm: &Arc<Vm>, live: &Arc<Live>) {
        *lock(&vm.live) = Some(Arc::clone(live));
        let supervised = supervise(Arc::downgrade(self), Arc::clone(vm), Arc::clone(live));
        tokio::spawn(closed(self).run_until_cancelled_owned(supervised));
    }

    /// Ends a VM's process, if it has one.
    pub(crate) async fn detach(&self, vm: &Vm) -> HvResult<()> {
        let live = lock(&vm.live).clone();
        let Some(live) = live else { return Ok(()) };
        live.end().await?;
        *lock(&vm.live) = None;
        files::remove(&live.process.dir)
    }

    /// Brings the record of a VM whose process has ended by itself in line: what the guest had in memory is lost.
    pub(crate) async fn settle(&self, vm: &Vm) -> HvResult<()> {
        let ended = lock(&vm.live).take_if(|live| live.process.has_ended());
        let Some(live) = ended else { return Ok(()) };
        let before = vm.record().references();
        self.update(vm, Durability::Daemon, |record| {
            record.phase = Phase::Rest;
            record.memory = None;
            record.ram = None;
        })
        .await?;
        self.collect(before);
        files::remove(&live.process.dir)
    }

    /// Removes those of the candidates that no record names any more. What can't be removed now is found at the next
    /// start.
    pub(crate) fn collect(&self, candidates: References) {
        let named = self.named();
        for disk in candidates.disks {
            if !named.contains(&disk.0) {
                forget(&self.paths.disk(disk));
            }
        }
        for memory in candidates.memory {
            if !named.contains(&memory.0) {
                forget(&self.paths.memory(memory));
            }
        }
    }

    /// Every disk and memory that a record names.
    pub(crate) fn named(&self) -> HashSet<uuid::Uuid> {
        let vms: Vec<_> = lock(&self.vms).values().cloned().collect();
        let templates: Vec<_> = lock(&self.templates).values().cloned().collect();
        let vms = vms.iter().map(|vm| lock(&vm.record).references());
        let templates = templates.iter().map(|template| lock(&template.record).references());
        let mut all = HashSet::new();
        for references in vms.chain(templates) {
            all.extend(references.disks.iter().map(|disk| disk.0));
            all.extend(references.memory.iter().map(|memory| memory.0));
        }
        all
    }

    /// A number for the next run.
    pub(crate) fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }
}

fn forget(path: &Path) {
    if let Err(error) = files::remove(path) {
        tracing::warn!(%error, "leaving garbage behind until the next start");
    }
}

fn closed(inner: &Inner) -> CancellationToken {
    inner.open.token().clone()
}

/// Waits for the end of a process and tells it, unless we asked for it.
async fn supervise(inner: Weak<Inner>, vm: Arc<Vm>, live: Arc<Live>) {
    let exit = tokio::select! {
        exit = live.process.ended() => exit,
        () = tell_halts(&inner, &vm, &live) => return,
    };
    if live.expected.load(Ordering::Acquire) {
        return;
    }
    let Some(inner) = inner.upgrade() else { return };
    let clean = announced(&live).await;
    {
        // A move under way fails by itself, now that its process is gone; or ends the VM, and then it was expected.
        let _turn = vm.turn.lock().await;
        if live.expected.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = inner.settle(&vm).await {
            tracing::error!(vm = %vm.id, %error, "can't record the end of a vm process");
        }
    }
    let reason = reason(&exit, clean);
    tracing::warn!(vm = %vm.id, %reason, "vm process ended by itself");
    let event = Event::Exited { vm: vm.id.clone(), run: live.run(), reason, clean };
    // Nobody listens once the orchestrator is gone.
    let _ = inner.events.send(event).await;
}

/// Tells whenever QEMU stops the CPUs by itself; ends when nobody listens any more.
async fn tell_halts(inner: &Weak<Inner>, vm: &Vm, live: &Live) {
    let mut seen = live.qmp.seen();
    let mut known = 0;
    loop {
        let next = seen.wait_for(|seen| seen.halt.as_ref().is_some_and(|halt| halt.number > known)).await;
        let Some(halt) = next.ok().and_then(|seen| seen.halt.clone()) else { return };
        known = halt.number;
        tracing::warn!(vm = %vm.id, reason = halt.reason, "vm was stopped by qemu");
        let Some(inner) = inner.upgrade() else { return };
        let event = Event::Halted { vm: vm.id.clone(), run: live.run(), reason: halt.reason };
        if inner.events.send(event).await.is_err() {
            return;
        }
    }
}

fn reason(exit: &Exit, clean: bool) -> String {
    if clean { "the guest shut down".to_owned() } else { exit.to_string() }
}

/// Whether the guest announced its shutdown; the announcement is still on its way when the process is gone.
async fn announced(live: &Live) -> bool {
    let mut seen = live.qmp.seen();
    match timeout(Duration::from_secs(2), seen.wait_for(|seen| seen.closed)).await {
        Ok(Ok(seen)) => seen.shutdown.as_ref().is_some_and(|shutdown| shutdown.guest),
        _ => false,
    }
}
