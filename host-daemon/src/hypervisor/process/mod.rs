//! Desktops without virtualisation: for containers, for tests, for measuring.
//!
//! Each "VM" is a private Xvfb with a window manager and an agent that dials a loopback port of its own with a secret.
//! Its golden "disk" is a directory, copied into each desktop's home. Programs share the host's kernel, files, users and
//! network with the daemon, so this separates nothing from anyone: it must be chosen explicitly.
//!
//! ```text
//!  define ─► Off ─start─► Running ─stop, reset (with a fresh home)─► Off
//!             ▲               │
//!             └── X server or agent ends (Event::Exited)
//! ```
//!
//! On disk, below the backend's directory:
//!
//! ```text
//!  instance                    part of the marker that all our processes carry
//!  templates/ID/template.json  home/           a copy of the skeleton, so that it cannot change under its VMs
//!  vms/ID/vm.json              home/           of the VM
//!         run/desktop.json     secret xauthority xdg/ log     while it runs, mode 0700
//! ```
//!
//! Desktops outlive the daemon: [`Hypervisor::recover`] finds them by their records, checks that the processes still carry
//! the marker, and listens on the same port again, which their agents keep dialling.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::{
    BackendFacts, Capabilities, CheckpointFacts, DiskFacts, Event, Found, GuestStream, HvError, HvResult,
    Hypervisor, Observed, Rest, Run, Stop, VmDefinition, VmFiles,
};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::input::RawInput;
use crate::model::screen::{Frame, Size};
use crate::model::template::{CloneMethod, NetworkMode, TemplateSpec};

mod desktop;
mod door;
mod life;
mod processes;
mod records;
mod skeleton;
#[cfg(test)]
mod tests;

use desktop::Places;
use life::Slot;

/// What the backend is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// Directory for all it keeps; made if it is not there.
    pub dir: PathBuf,
    /// Program of the agent, `hvkube-guest`.
    pub agent: PathBuf,
    /// Program of the X server.
    pub x_server: PathBuf,
    /// Program and arguments of the window manager; empty: none.
    pub window_manager: Vec<String>,
}

impl ProcessConfig {
    /// Xvfb and openbox from the search path.
    #[must_use]
    pub fn new(dir: PathBuf, agent: PathBuf) -> Self {
        Self { dir, agent, x_server: "Xvfb".into(), window_manager: vec!["openbox".to_owned()] }
    }
}

/// Events that may wait for the orchestrator; one per VM at the most matters, and watchers wait when it is full.
const EVENTS: usize = 64;

/// The backend.
pub struct Process(Arc<Inner>);

struct Inner {
    config: ProcessConfig,
    /// First part of our processes' marker; tells this backend's from another daemon's.
    instance: String,
    capabilities: Capabilities,
    facts: BackendFacts,
    vms: Mutex<HashMap<VmId, Arc<AsyncMutex<Slot>>>>,
    runs: AtomicU64,
    events: mpsc::Sender<Event>,
    receiver: Mutex<Option<mpsc::Receiver<Event>>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({})", self.0.config.dir.display())
    }
}

impl Process {
    /// Makes the directory if need be. Nothing is started.
    ///
    /// # Errors
    /// [`HvError::FileNotFound`] without the agent's program; [`HvError::Io`].
    pub fn new(config: ProcessConfig) -> HvResult<Self> {
        if !config.agent.is_file() {
            return Err(HvError::FileNotFound { field: "agent", path: config.agent });
        }
        let instance = records::instance(&config.dir)?;
        let (events, receiver) = mpsc::channel(EVENTS);
        // Counts on from the clock, so that a run of an older daemon has a smaller number.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Ok(Self(Arc::new(Inner {
            config,
            instance,
            capabilities: Capabilities {
                save: false,
                pause: false,
                memory_checkpoints: false,
                fork: false,
                display: false,
                gpu: false,
                networks: vec![NetworkMode::None],
                clone_method: CloneMethod::Boot,
            },
            facts: BackendFacts {
                name: "process",
                version: env!("CARGO_PKG_VERSION").to_owned(),
                accelerator: "none",
                accelerator_reason: "programs run on the host itself".to_owned(),
            },
            vms: Mutex::default(),
            runs: AtomicU64::new(u64::try_from(now).unwrap_or_default()),
            events,
            receiver: Mutex::new(Some(receiver)),
        })))
    }
}

impl Inner {
    fn slot(&self, vm: &VmId) -> HvResult<Arc<AsyncMutex<Slot>>> {
        let vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.get(vm).cloned().ok_or_else(|| HvError::NotFound { kind: "vm", id: vm.to_string() })
    }

    fn places(&self, vm: &VmId) -> Places {
        Places { dir: self.config.dir.join("vms").join(vm.as_str()) }
    }

    fn template_dir(&self, id: &TemplateId) -> PathBuf {
        self.config.dir.join("templates").join(id.as_str())
    }

    fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What this backend can't do.
fn cannot<T>(action: &'static str) -> HvResult<T> {
    Err(HvError::NotSupported { backend: "process", action })
}

/// Runs to its end even when the caller goes away, so that nothing is left half-made.
async fn whole<T: Send + 'static>(work: impl Future<Output = HvResult<T>> + Send + 'static) -> HvResult<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(HvError::Process(error.to_string())))
}

/// Work on files, off the runtime's threads.
async fn files<T: Send + 'static>(work: impl FnOnce() -> HvResult<T> + Send + 'static) -> HvResult<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(HvError::Process(error.to_string())))
}

fn io_error(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> HvError {
    let context = context.into();
    move |source| HvError::Io { context, source }
}

/// What a template may be here.
fn check(spec: &TemplateSpec) -> HvResult<()> {
    let bad = |field, why: &str| Err(HvError::BadSetting { field, why: why.to_owned() });
    if spec.disk_format.as_deref().is_some_and(|format| format != "directory") {
        return bad("disk_format", "a template of the process backend is a directory; leave it out");
    }
    if matches!(spec.boot, crate::model::template::Boot::Kernel { .. }) {
        return bad("boot", "the process backend boots no kernel; leave it out");
    }
    if spec.gpu {
        return bad("gpu", "the process backend shares no gpu");
    }
    if spec.network.mode() != NetworkMode::None {
        return bad(
            "network",
            "the process backend has none to give, its programs use the host's; choose none",
        );
    }
    let meta = std::fs::metadata(&spec.disk_path)
        .map_err(|_| HvError::FileNotFound { field: "disk_path", path: spec.disk_path.clone() })?;
    if !meta.is_dir() {
        let why =
            "the process backend needs a directory, which is copied into each desktop's home".to_owned();
        return Err(HvError::NotAnImage { path: spec.disk_path.clone(), why });
    }
    Ok(())
}

fn copy_skeleton(from: &Path, to: &Path) -> HvResult<skeleton::Facts> {
    skeleton::copy(from, to).map_err(io_error(format!("cannot copy {}", from.display())))
}

#[async_trait]
impl Hypervisor for Process {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    // A desktop's programs take what they need, not what its template says.
    fn memory_mb(&self) -> Option<u64> {
        Some(0)
    }

    fn facts(&self) -> &BackendFacts {
        &self.0.facts
    }

    fn events(&self) -> Option<mpsc::Receiver<Event>> {
        self.0.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn recover(&self) -> HvResult<Vec<Found>> {
        whole(Inner::recover(self.0.clone())).await
    }

    async fn survey(&self) -> HvResult<Vec<Found>> {
        let slots: Vec<_> =
            self.0.vms.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut all = Vec::with_capacity(slots.len());
        for slot in slots {
            all.extend(slot.lock().await.found());
        }
        Ok(all)
    }

    async fn observe(&self, vm: &VmId) -> HvResult<Observed> {
        let slot = self.0.slot(vm)?;
        let slot = slot.lock().await;
        Ok(slot.observed())
    }

    async fn import_template(&self, id: &TemplateId, spec: &TemplateSpec) -> HvResult<DiskFacts> {
        let (dir, id, spec) = (self.0.template_dir(id), id.clone(), spec.clone());
        files(move || {
            check(&spec)?;
            if dir.exists() {
                return Err(HvError::AlreadyExists { kind: "template", id: id.to_string() });
            }
            records::whole_directory(&dir, |dir| {
                let facts = copy_skeleton(&spec.disk_path, &dir.join("home"))?;
                records::write(&dir.join("template.json"), &spec)?;
                Ok(DiskFacts {
                    format: "directory".to_owned(),
                    file_bytes: facts.bytes,
                    sha256: facts.sha256,
                })
            })
        })
        .await
    }

    async fn seal_template(&self, id: &TemplateId, vm: &VmId) -> HvResult<CloneMethod> {
        let known = self.0.template_dir(id).exists();
        let slot = self.0.slot(vm)?;
        let refused = slot.lock().await.live(vm, "seal a template from").err();
        // Of no more use, sealed or not.
        self.delete(vm).await?;
        match refused {
            Some(error) => Err(error),
            None if known => Ok(CloneMethod::Boot),
            None => Err(HvError::NotFound { kind: "template", id: id.to_string() }),
        }
    }

    async fn delete_template(&self, id: &TemplateId) -> HvResult<()> {
        let dir = self.0.template_dir(id);
        files(move || desktop::remove(&dir).map_err(io_error("cannot remove a template"))).await
    }

    async fn templates(&self) -> HvResult<Vec<TemplateId>> {
        let dir = self.0.config.dir.join("templates");
        files(move || Ok(records::ids(&dir)?.into_iter().filter_map(|id| TemplateId::new(id).ok()).collect()))
            .await
    }

    async fn define(&self, definition: &VmDefinition) -> HvResult<Rest> {
        whole(Inner::define(self.0.clone(), definition.clone())).await
    }

    async fn start(&self, vm: &VmId) -> HvResult<Run> {
        whole(Inner::start(self.0.clone(), vm.clone())).await
    }

    async fn resume(&self, _: &VmId) -> HvResult<Run> {
        cannot("resume")
    }

    async fn save(&self, _: &VmId) -> HvResult<()> {
        cannot("save")
    }

    async fn pause(&self, _: &VmId) -> HvResult<()> {
        cannot("pause")
    }

    async fn stop(&self, vm: &VmId, _: Stop) -> HvResult<()> {
        // Programs are asked to end and killed after a moment: there is no operating system to wait for.
        whole(Inner::stop(self.0.clone(), vm.clone())).await
    }

    async fn reset(&self, vm: &VmId) -> HvResult<Rest> {
        whole(Inner::reset(self.0.clone(), vm.clone())).await
    }

    async fn delete(&self, vm: &VmId) -> HvResult<()> {
        whole(Inner::delete(self.0.clone(), vm.clone())).await
    }

    async fn create_checkpoint(&self, _: &VmId, _: &CheckpointId) -> HvResult<CheckpointFacts> {
        cannot("create a checkpoint")
    }

    async fn checkpoints(&self, vm: &VmId) -> HvResult<Vec<CheckpointFacts>> {
        self.0.slot(vm).map(|_| Vec::new())
    }

    async fn restore_checkpoint(&self, _: &VmId, _: &CheckpointId) -> HvResult<Rest> {
        cannot("restore a checkpoint")
    }

    async fn delete_checkpoint(&self, _: &VmId, _: &CheckpointId) -> HvResult<()> {
        cannot("delete a checkpoint")
    }

    async fn fork(&self, _: &VmId, _: &VmDefinition) -> HvResult<()> {
        cannot("fork")
    }

    async fn open_guest(&self, vm: &VmId) -> HvResult<Box<dyn GuestStream>> {
        let next = {
            let slot = self.0.slot(vm)?;
            let slot = slot.lock().await;
            slot.live(vm, "connect to")?.door.next()
        };
        // Without the VM's lock: the agent may take its time.
        Ok(Box::new(next.await))
    }

    async fn guest_secret(&self, vm: &VmId) -> HvResult<Option<[u8; 32]>> {
        let slot = self.0.slot(vm)?;
        let slot = slot.lock().await;
        Ok(Some(slot.live(vm, "connect to")?.secret))
    }

    async fn screenshot(&self, _: &VmId) -> HvResult<Frame> {
        cannot("take a screenshot")
    }

    async fn input(&self, _: &VmId, _: Size, _: &[RawInput]) -> HvResult<()> {
        cannot("send input")
    }

    async fn resident_bytes(&self, vm: &VmId) -> HvResult<u64> {
        let slot = self.0.slot(vm)?;
        let marker = {
            let slot = slot.lock().await;
            let Observed::Running(_) = slot.observed() else { return Ok(0) };
            self.0.marker(&slot)
        };
        files(move || {
            let found = processes::marked(&marker).map_err(io_error("cannot read /proc"))?;
            Ok(processes::private_bytes(&found.into_iter().map(|(pid, _)| pid).collect::<Vec<_>>()))
        })
        .await
    }

    async fn files(&self, vm: &VmId) -> HvResult<VmFiles> {
        self.0.slot(vm)?;
        Ok(VmFiles { disk: self.0.places(vm).home(), saved_state: None })
    }
}
