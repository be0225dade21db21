//! QEMU on Linux.
//!
//! A VM is a record, a disk overlay, sometimes a saved memory, and while it runs a process; see `records` for where
//! they are. A template's clean state is a frozen overlay and a memory that all its VMs share: a VM that is clean and
//! saved is a small record and an empty overlay. Resuming it starts a process that maps the template's memory file
//! copy-on-write and reads in a few megabytes of device state; where QEMU can't do that, the whole memory is read in.
//!
//! ```text
//!   Golden:   golden disk ◄─ head          boots, is sealed: head frozen, memory kept ─┐
//!   VM:       golden disk ◄─ frozen ◄─ head                       memory: the template's ◄┘
//!   forked:   golden disk ◄─ frozen ◄─ frozen ◄─ head             memory: of that moment
//! ```
//!
//! QEMU processes are in sessions of their own and outlive the daemon. Each has a monitor and the guest's port as unix
//! sockets in its run folder, and bears the marker of this instance on its command line, by which it is found again.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

mod backend;
mod checkpoints;
mod config;
mod display;
mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod image;
mod keys;
mod machine;
mod moves;
mod network;
mod probe;
mod process;
mod program;
mod qmp;
mod records;
mod recover;
mod spawn;
mod state;
mod templates;
mod walls;

pub use config::{AccelChoice, ForkChoice, QemuConfig};
pub use machine::AGENT_PORT;
pub use network::mac_address;

use backend::{Inner, Vm, finished, lock};
use error::Context;
use qmp::commands::{InputSendEvent, Screendump};
use records::{Paths, agent_socket};

use super::{
    BackendFacts, Capabilities, CheckpointFacts, DiskFacts, Event, Found, GuestStream, HvError, HvResult,
    Hypervisor, Observed, Rest, Run, Stop, VmDefinition, VmFiles,
};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::input::RawInput;
use crate::model::screen::{Frame, Size};
use crate::model::template::{CloneMethod, NetworkMode, TemplateSpec};

/// Processes that end by themselves before anybody listens wait here; more than this many at once wait in their tasks.
const EVENTS: usize = 64;

/// The backend.
#[derive(Debug)]
pub struct QemuHypervisor {
    inner: Arc<Inner>,
    capabilities: Capabilities,
    facts: BackendFacts,
    events: Mutex<Option<mpsc::Receiver<Event>>>,
    shots: AtomicU64,
}

impl QemuHypervisor {
    /// Takes the folders as its own and finds out what this host can do. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`HvError::Unavailable`] when QEMU is missing or older than 9.0, when the accelerator asked for does not work, or
    /// when another daemon uses the data folder; [`HvError::BadSetting`] for folders that can't be used.
    pub async fn open(config: QemuConfig) -> HvResult<Self> {
        let config = QemuConfig {
            data_dir: folder("data_dir", &config.data_dir)?,
            run_dir: folder("run_dir", &config.run_dir)?,
            ..config
        };
        let length = config.run_dir.as_os_str().len();
        if length > QemuConfig::MAX_RUN_DIR {
            return Err(HvError::BadSetting {
                field: "run_dir",
                why: format!(
                    "its {length} bytes are too many for socket addresses; {} fit",
                    QemuConfig::MAX_RUN_DIR
                ),
            });
        }
        let version = program::version(&config.binary, &config.img_binary).await?;
        let paths = Paths { data: config.data_dir.clone(), run: config.run_dir.clone() };
        for root in paths.roots() {
            files::private_dir(&root)?;
        }
        let lock_file = take_lock(&config.data_dir.join("lock"))?;
        let instance = instance(&config.data_dir.join("instance"))?;
        let found = probe::findings(&config, &version, &instance, &config.run_dir).await?;
        let accelerator = found.accel.name();
        tracing::info!(accelerator, reason = %found.accel_reason, qemu = %version.text, "accelerator chosen");
        if let Err(why) = &found.fork {
            tracing::info!(%why, "clones read their memory in instead of sharing the template's");
        }
        let fork = found.fork.is_ok();
        let facts = BackendFacts {
            name: "qemu",
            version: version.text.clone(),
            accelerator,
            accelerator_reason: found.accel_reason,
        };
        let (sender, events) = mpsc::channel(EVENTS);
        let inner = Inner {
            paths,
            instance,
            version,
            accel: found.accel,
            fork,
            host_mb: host_memory_mb(),
            templates: Mutex::default(),
            vms: Mutex::default(),
            runs: AtomicU64::new(first_run()),
            events: sender,
            open: CancellationToken::new().drop_guard(),
            _lock: lock_file,
            config,
        };
        Ok(Self {
            inner: Arc::new(inner),
            capabilities: Capabilities {
                save: true,
                pause: true,
                memory_checkpoints: true,
                fork: true,
                display: true,
                gpu: false,
                networks: vec![NetworkMode::None, NetworkMode::User, NetworkMode::Bridge],
                clone_method: if fork { CloneMethod::Fork } else { CloneMethod::Restore },
            },
            facts,
            events: Mutex::new(Some(events)),
            shots: AtomicU64::new(0),
        })
    }

    /// Runs a move to its end, in its turn, even when the caller goes away.
    async fn turn<T, F, Fut>(&self, id: &VmId, step: F) -> HvResult<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Inner>, Arc<Vm>) -> Fut + Send + 'static,
        Fut: Future<Output = HvResult<T>> + Send,
    {
        let vm = self.inner.vm(id)?;
        let inner = Arc::clone(&self.inner);
        let work = tokio::spawn(async move {
            let _turn = vm.turn.lock().await;
            // It may have been deleted while we waited.
            inner.vm(&vm.id)?;
            step(Arc::clone(&inner), Arc::clone(&vm)).await
        });
        finished(work.await)
    }

    /// Runs a move that is not one VM's to its end, even when the caller goes away.
    async fn apart<T, F, Fut>(&self, step: F) -> HvResult<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Inner>) -> Fut,
        Fut: Future<Output = HvResult<T>> + Send + 'static,
    {
        finished(tokio::spawn(step(Arc::clone(&self.inner))).await)
    }
}

#[async_trait]
impl Hypervisor for QemuHypervisor {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn facts(&self) -> &BackendFacts {
        &self.facts
    }

    fn events(&self) -> Option<mpsc::Receiver<Event>> {
        lock(&self.events).take()
    }

    async fn recover(&self) -> HvResult<Vec<Found>> {
        self.apart(|inner| async move { inner.recover().await }).await
    }

    async fn survey(&self) -> HvResult<Vec<Found>> {
        self.inner.survey().await
    }

    async fn observe(&self, vm: &VmId) -> HvResult<Observed> {
        self.inner.observe(&*self.inner.vm(vm)?).await
    }

    async fn check_memory(&self, vm: &VmId) -> HvResult<()> {
        self.inner.check_memory(&*self.inner.vm(vm)?)
    }

    async fn import_template(&self, id: &TemplateId, spec: &TemplateSpec) -> HvResult<DiskFacts> {
        let (id, spec) = (id.clone(), spec.clone());
        self.apart(|inner| async move { inner.import(&id, &spec).await }).await
    }

    async fn seal_template(&self, id: &TemplateId, vm: &VmId) -> HvResult<CloneMethod> {
        let id = id.clone();
        self.turn(vm, |inner, vm| async move { inner.seal(&id, &vm).await }).await
    }

    async fn delete_template(&self, id: &TemplateId) -> HvResult<()> {
        let id = id.clone();
        self.apart(|inner| async move { inner.delete_template(&id).await }).await
    }

    async fn templates(&self) -> HvResult<Vec<TemplateId>> {
        let mut all: Vec<_> = lock(&self.inner.templates).keys().cloned().collect();
        all.sort();
        Ok(all)
    }

    async fn define(&self, definition: &VmDefinition) -> HvResult<Rest> {
        let definition = definition.clone();
        self.apart(|inner| async move { inner.define(&definition).await }).await
    }

    async fn start(&self, vm: &VmId) -> HvResult<Run> {
        self.turn(vm, |inner, vm| async move { inner.start(&vm).await }).await
    }

    async fn resume(&self, vm: &VmId) -> HvResult<Run> {
        self.turn(vm, |inner, vm| async move { inner.resume(&vm).await }).await
    }

    async fn save(&self, vm: &VmId) -> HvResult<()> {
        self.turn(vm, |inner, vm| async move { inner.save(&vm).await }).await
    }

    async fn pause(&self, vm: &VmId) -> HvResult<()> {
        self.turn(vm, |inner, vm| async move { inner.pause(&vm).await }).await
    }

    async fn stop(&self, vm: &VmId, how: Stop) -> HvResult<()> {
        self.turn(vm, move |inner, vm| async move { inner.stop(&vm, how).await }).await
    }

    async fn reset(&self, vm: &VmId) -> HvResult<Rest> {
        self.turn(vm, |inner, vm| async move { inner.reset(&vm).await }).await
    }

    async fn delete(&self, vm: &VmId) -> HvResult<()> {
        match self.turn(vm, |inner, vm| async move { inner.delete(&vm).await }).await {
            Err(HvError::NotFound { kind: "vm", .. }) => Ok(()),
            other => other,
        }
    }

    async fn create_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<CheckpointFacts> {
        let id = id.clone();
        self.turn(vm, |inner, vm| async move { inner.create_checkpoint(&vm, &id).await }).await
    }

    async fn checkpoints(&self, vm: &VmId) -> HvResult<Vec<CheckpointFacts>> {
        Ok(Inner::checkpoints(&*self.inner.vm(vm)?))
    }

    async fn restore_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<Rest> {
        let id = id.clone();
        self.turn(vm, |inner, vm| async move { inner.restore_checkpoint(&vm, &id).await }).await
    }

    async fn delete_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<()> {
        let id = id.clone();
        self.turn(vm, |inner, vm| async move { inner.delete_checkpoint(&vm, &id).await }).await
    }

    async fn fork(&self, vm: &VmId, new: &VmDefinition) -> HvResult<()> {
        let new = new.clone();
        self.turn(vm, |inner, vm| async move { inner.fork(&vm, &new).await }).await
    }

    async fn open_guest(&self, vm: &VmId) -> HvResult<Box<dyn GuestStream>> {
        let live = self.inner.vm(vm)?.running("open the guest's port of")?;
        let path = agent_socket(&live.process.dir);
        Ok(Box::new(UnixStream::connect(&path).await.context("connect to", &path)?))
    }

    async fn guest_secret(&self, vm: &VmId) -> HvResult<Option<[u8; 32]>> {
        // The port is the VM's own; nobody else can be at its other end.
        self.inner.vm(vm).map(|_| None)
    }

    async fn screenshot(&self, vm: &VmId) -> HvResult<Frame> {
        let live = self.inner.vm(vm)?.running("look at the screen of")?;
        let number = self.shots.fetch_add(1, Ordering::Relaxed);
        let file = live.process.dir.join(format!("screen-{number}"));
        let dumped = live.qmp.run(&Screendump { filename: &file, format: "ppm" }).await;
        let read = backend::blocking(move || {
            let content = files::read_at_most(&file, display::MAX_FILE);
            files::remove(&file)?;
            content.and_then(|content| display::frame(&content))
        })
        .await;
        dumped?;
        read
    }

    async fn input(&self, vm: &VmId, size: Size, events: &[RawInput]) -> HvResult<()> {
        let reports = display::reports(size, events)?;
        let live = self.inner.vm(vm)?.running("send input to")?;
        for events in reports {
            live.qmp.run(&InputSendEvent { events }).await?;
            // Also behind the last one: there is no telling when the next call comes.
            tokio::time::sleep(display::PACE).await;
        }
        Ok(())
    }

    async fn resident_bytes(&self, vm: &VmId) -> HvResult<u64> {
        self.inner.vm(vm)?.live().map_or(Ok(0), |live| live.process.resident_bytes())
    }

    async fn files(&self, vm: &VmId) -> HvResult<VmFiles> {
        let record = self.inner.vm(vm)?.record();
        let own = record.memory.filter(|memory| memory.own);
        Ok(VmFiles {
            disk: self.inner.paths.disk(record.head),
            saved_state: own.map(|memory| self.inner.paths.state(memory.id)),
        })
    }
}

/// Makes a folder and returns its absolute path, which must be text because QEMU is told it as JSON.
fn folder(field: &'static str, path: &Path) -> HvResult<PathBuf> {
    files::private_dir(path)?;
    let absolute = std::fs::canonicalize(path).context("find", path)?;
    if absolute.to_str().is_none() {
        return Err(HvError::BadSetting { field, why: "the path must be UTF-8".to_owned() });
    }
    Ok(absolute)
}

fn take_lock(path: &Path) -> HvResult<File> {
    let file = File::create(path).context("open", path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(HvError::Unavailable(format!("another daemon uses {}", path.display())))
        }
        Err(error) => Err(error::io_error("lock", path, error.into())),
    }
}

/// The marker of our processes: made once for a data folder.
fn instance(path: &Path) -> HvResult<String> {
    if path.is_file() {
        return Ok(files::read_json::<Uuid>(path)?.to_string());
    }
    let new = Uuid::new_v4();
    files::write_json(path, &new, files::Durability::Host)?;
    Ok(new.to_string())
}

/// Runs are numbered from the time of the start in microseconds, so that numbers grow over restarts too.
fn first_run() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX / 2)
}

fn host_memory_mb() -> u64 {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit).max(1);
    info.totalram.saturating_mul(unit) >> 20
}
