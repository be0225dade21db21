//! A simulated hypervisor: thousands of VMs in the daemon's own process, for tests of scale and of what goes wrong.
//!
//! Its VMs do what real ones do as far as the rest of the daemon can see: they boot and resume in the times of a profile,
//! keep memory and disk over saves, checkpoints and forks, end by themselves, and have guests with a small drawn desktop
//! that speak the real guest protocol over a stream in memory ([`hvkube_guest::sim`]). Nothing is virtualised and no code
//! of a guest runs, so it has to be asked for, and says what it is in its facts and in the log.
//!
//! ```text
//!  trait ── moves: look, take the time, change ──► world: records behind one lock ──► journal
//!                 ▲           ▲                       │
//!  Control: step, fail, kill  └ profile, faults       └─ live: guest made when somebody looks, stream on demand
//! ```
//!
//! The journal is this hypervisor's own truth: what it says exists, and what runs in it runs, also after the daemon was
//! killed at whatever instant. The next daemon brings its VMs back as they were, with the run that they were in, and each
//! guest with what it remembered after the last input. It is in the page cache, so a host that loses power may lose the
//! last changes: in this one respect the trait's guarantee is not kept.
//!
//! A VM at rest is a record of some hundred bytes; what its guest remembers is shared with its template until it differs.
//! A VM that runs is little more until somebody opens its stream.
//!
//! Of a template only the shape counts. Its disk need not exist and is not read; it has to have memory, a CPU, a screen
//! of a legal size, and a network of the kinds `none` and `user`. GPU shares are as simulated as the rest, so it may have
//! one.

mod chance;
mod config;
mod control;
mod journal;
mod live;
mod moves;
mod records;
#[cfg(test)]
mod tests;
mod world;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use hvkube_guest::sim::Guest;
use tokio::sync::mpsc;

pub use config::{Call, Fault, FaultRate, Profile, SimConfig, TimeFactor};
pub use control::{Control, Step, Target};

use super::{
    BackendFacts, Capabilities, CheckpointFacts, DiskFacts, Event, Found, GuestStream, HvError, HvResult,
    Hypervisor, Observed, Rest, Run, Stop, VmDefinition, VmFiles,
};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::input::{MouseButton, RawInput};
use crate::model::input_rules::scale_point;
use crate::model::screen::{Frame, Point, Size};
use crate::model::template::{CloneMethod, NetworkMode, TemplateSpec};
use records::Phase;
use world::{World, illegal};

/// Ends of VMs that may wait for the orchestrator; more at once wait in tasks of their own.
const EVENTS: usize = 64;

/// The backend. Dropping it ends the simulation as a kill of the daemon would; the journal keeps the world.
pub struct SimHypervisor {
    world: Arc<World>,
    capabilities: Capabilities,
    facts: BackendFacts,
    events: Mutex<Option<mpsc::Receiver<Event>>>,
}

impl std::fmt::Debug for SimHypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimHypervisor({})", self.world.config.dir.display())
    }
}

impl SimHypervisor {
    /// Takes the directory as its own, and brings back the world that its journal tells of.
    ///
    /// # Errors
    /// [`HvError::Unavailable`] when another one uses the directory or the journal is damaged; [`HvError::Io`].
    pub fn open(config: SimConfig) -> HvResult<Self> {
        let mut told = match config.profile {
            Profile::Instant => "instant".to_owned(),
            Profile::Hyperv => format!("hyperv times {}", config.time_factor),
        };
        if !config.faults.is_empty() {
            let faults: Vec<_> = config.faults.iter().map(ToString::to_string).collect();
            told = format!("{told}, faults {}, seed {}", faults.join(" "), config.seed);
        }
        let (sender, events) = mpsc::channel(EVENTS);
        Ok(Self {
            world: World::open(config, sender)?,
            capabilities: Capabilities {
                save: true,
                pause: true,
                memory_checkpoints: true,
                fork: true,
                display: true,
                gpu: true,
                networks: vec![NetworkMode::None, NetworkMode::User],
                clone_method: CloneMethod::Fork,
            },
            facts: BackendFacts {
                name: "sim",
                version: env!("CARGO_PKG_VERSION").to_owned(),
                accelerator: "none",
                accelerator_reason: format!("everything is simulated, no guest code runs; profile {told}"),
            },
            events: Mutex::new(Some(events)),
        })
    }

    /// Power over this world, for tests.
    #[must_use]
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.world))
    }
}

impl Drop for SimHypervisor {
    fn drop(&mut self) {
        self.world.close();
    }
}

#[async_trait]
impl Hypervisor for SimHypervisor {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn facts(&self) -> &BackendFacts {
        &self.facts
    }

    fn events(&self) -> Option<mpsc::Receiver<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn recover(&self) -> HvResult<Vec<Found>> {
        Ok(self.world.recover())
    }

    async fn survey(&self) -> HvResult<Vec<Found>> {
        Ok(self.world.recover())
    }

    async fn observe(&self, vm: &VmId) -> HvResult<Observed> {
        self.world.observe(vm)
    }

    async fn check_memory(&self, vm: &VmId) -> HvResult<()> {
        self.world.check_memory(vm)
    }

    async fn import_template(&self, id: &TemplateId, spec: &TemplateSpec) -> HvResult<DiskFacts> {
        self.world.import(id, spec).await
    }

    async fn seal_template(&self, id: &TemplateId, vm: &VmId) -> HvResult<CloneMethod> {
        self.world.seal(id, vm).await
    }

    async fn delete_template(&self, id: &TemplateId) -> HvResult<()> {
        self.world.delete_template(id)
    }

    async fn templates(&self) -> HvResult<Vec<TemplateId>> {
        Ok(self.world.lock().templates.keys().cloned().collect())
    }

    async fn define(&self, definition: &VmDefinition) -> HvResult<Rest> {
        self.world.define(definition).await
    }

    async fn start(&self, vm: &VmId) -> HvResult<Run> {
        self.world.start(vm).await
    }

    async fn resume(&self, vm: &VmId) -> HvResult<Run> {
        self.world.resume(vm).await
    }

    async fn save(&self, vm: &VmId) -> HvResult<()> {
        self.world.save(vm).await
    }

    async fn pause(&self, vm: &VmId) -> HvResult<()> {
        self.world.pause(vm).await
    }

    async fn stop(&self, vm: &VmId, how: Stop) -> HvResult<()> {
        self.world.stop(vm, how).await
    }

    async fn reset(&self, vm: &VmId) -> HvResult<Rest> {
        self.world.reset(vm).await
    }

    async fn delete(&self, vm: &VmId) -> HvResult<()> {
        self.world.delete(vm).await
    }

    async fn create_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<CheckpointFacts> {
        self.world.create_checkpoint(vm, id).await
    }

    async fn checkpoints(&self, vm: &VmId) -> HvResult<Vec<CheckpointFacts>> {
        self.world.checkpoints(vm)
    }

    async fn restore_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<Rest> {
        self.world.restore_checkpoint(vm, id).await
    }

    async fn delete_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<()> {
        self.world.delete_checkpoint(vm, id).await
    }

    async fn fork(&self, vm: &VmId, new: &VmDefinition) -> HvResult<()> {
        self.world.fork(vm, new).await
    }

    async fn open_guest(&self, vm: &VmId) -> HvResult<Box<dyn GuestStream>> {
        let (live, guest) = self.world.guest(vm, "open the guest's port of")?;
        Ok(Box::new(live.dial(guest)))
    }

    async fn guest_secret(&self, vm: &VmId) -> HvResult<Option<[u8; 32]>> {
        // The stream is the VM's own; nobody else can be at its other end.
        self.world.lock().vm(vm).map(|_| None)
    }

    async fn screenshot(&self, vm: &VmId) -> HvResult<Frame> {
        let (_, guest) = self.world.guest(vm, "look at the screen of")?;
        let (width, height) = guest.screen();
        Ok(Frame { size: Size { width, height }, pixels: Bytes::from(guest.picture()) })
    }

    async fn input(&self, vm: &VmId, size: Size, events: &[RawInput]) -> HvResult<()> {
        let (_, guest) = self.world.guest(vm, "send input to")?;
        let (width, height) = guest.screen();
        // All of it or nothing.
        for event in events {
            match event {
                RawInput::Move(to) if !size.contains(*to) => {
                    let why = format!("{},{} is outside of the frame", to.x, to.y);
                    return Err(HvError::BadSetting { field: "point", why });
                }
                RawInput::Key { key, .. } if !Guest::has_key(key) => {
                    let why = format!("{key:?} is no key of the virtual keyboard");
                    return Err(HvError::BadSetting { field: "key", why });
                }
                _ => {}
            }
        }
        for event in events {
            match event {
                RawInput::Move(to) => {
                    let Point { x, y } = scale_point(*to, size, Size { width, height });
                    guest.move_to(x, y);
                }
                RawInput::Button { button: MouseButton::Left, down } => guest.button(*down),
                // Nothing on this desktop has a meaning for them.
                RawInput::Button { .. } | RawInput::Wheel(_) => {}
                RawInput::Key { key, down } => guest.key(key, *down),
            }
        }
        Ok(())
    }

    async fn resident_bytes(&self, vm: &VmId) -> HvResult<u64> {
        let mut inner = self.world.lock();
        let record = &inner.vm(vm)?.record;
        if record.phase.run().is_none() {
            return Ok(0);
        }
        let template = record.definition.origin.template().clone();
        Ok(inner.template(&template)?.spec.memory_mb << 20)
    }

    async fn files(&self, vm: &VmId) -> HvResult<VmFiles> {
        let mut inner = self.world.lock();
        let record = inner.vm(vm)?.record.clone();
        let journal = inner.journal_path().ok_or_else(|| illegal(&record, "find the files of"))?;
        let own = record.phase == Phase::Saved && record.state.is_some();
        Ok(VmFiles { saved_state: own.then(|| journal.clone()), disk: journal })
    }
}
