//! The heart of the daemon: VM actors, pool controllers, leases and their queue, start-up and shutdown.
//!
//! ```text
//!   calls/ (what the API asks) ──► pools (who is ready, who waits) ──► actor per VM ──► hypervisor, guest, store
//!                              └─► leases (grant, proof, renewal, expiry) ──┘
//!   recover (start): store rows and what the hypervisor has are brought together before the first call is taken
//!   reconcile: the same again while the daemon runs
//! ```
//!
//! [`Orchestrator`] is a handle; clones are the same orchestrator. It knows no gRPC: callers bring domain types and get
//! domain errors.

mod actor;
pub mod agents;
mod asked;
mod calls;
mod errors;
mod leases;
mod operations;
mod pools;
mod prepare;
mod reconcile;
mod recover;
mod registry;
pub mod request;
pub mod settings;
pub mod view;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use asked::asked_by;

use crate::display::Encoders;
use crate::hypervisor::{Event, Hypervisor};
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::{TemplateId, VmId};
use crate::store::Store;
use crate::store::masks::MaskFiles;
use crate::store::vault::Vault;
use leases::Leases;
use operations::{Names, Operations};
use pools::Pools;
use registry::Registry;
pub use settings::Settings;

/// VMs parked at the same time when the daemon stops: saving is bound by the disk.
const PARKED_AT_ONCE: usize = 2;

/// Pictures encoded at the same time by the whole daemon: encoding is all CPU, and leases must not wait behind it.
const ENCODED_AT_ONCE: usize = 2;

/// What all parts share.
struct Shared {
    store: Store,
    hv: Arc<dyn Hypervisor>,
    settings: Settings,
    encoders: Encoders,
    started: Timestamp,
    registry: Registry,
    watches: watch::Watches,
    pools: Pools,
    /// VMs that are kept hot.
    hot: AtomicUsize,
    leases: Leases,
    agents: agents::Agents,
    operations: Operations,
    consoles: calls::consoles::Consoles,
    importing: Names<TemplateId>,
    /// VMs that get their rows, that templates are prepared with, or that no row knows and that are removed.
    making: Names<VmId>,
    vault: Arc<Vault>,
    masks: Arc<MaskFiles>,
    /// Held by whoever makes or deletes a secret.
    secrets: tokio::sync::Mutex<()>,
    /// Every task of the orchestrator, so that a stop can wait for them.
    tasks: TaskTracker,
    /// New work is refused and controllers end.
    stopping: CancellationToken,
}

/// The orchestrator. Cheap to clone.
#[derive(Clone)]
pub struct Orchestrator(Arc<Shared>);

impl Orchestrator {
    /// Brings store and hypervisor together and begins to work.
    ///
    /// # Errors
    /// When the store or the hypervisor can't be read; a single VM that can't be recovered is no error, it is in state
    /// `Error` afterwards.
    pub async fn start(store: Store, hv: Arc<dyn Hypervisor>, settings: Settings) -> Result<Self> {
        let needs_memory = hv.capabilities().save;
        let shared = Arc::new(Shared {
            store,
            hv,
            encoders: Encoders::new(ENCODED_AT_ONCE),
            started: Timestamp::now(),
            registry: Registry::default(),
            watches: watch::Watches::default(),
            pools: Pools::new(needs_memory, &settings),
            hot: AtomicUsize::new(0),
            leases: Leases::default(),
            agents: agents::Agents::default(),
            operations: Operations::default(),
            consoles: calls::consoles::Consoles::default(),
            importing: Names::default(),
            making: Names::default(),
            vault: Arc::new(Vault::new(&settings.secrets_dir)),
            masks: Arc::new(MaskFiles::new(&settings.masks_dir)),
            secrets: tokio::sync::Mutex::default(),
            settings,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        let events = shared.hv.events();
        recover::run(&shared).await?;
        if let Some(events) = events {
            shared.tasks.spawn(dispatch(Arc::clone(&shared), events));
        }
        shared.tasks.spawn(leases::expire(Arc::clone(&shared)));
        shared.tasks.spawn(watch::prune(Arc::clone(&shared)));
        shared.tasks.spawn(reconcile::run(Arc::clone(&shared)));
        let this = Self(shared);
        agents::recover(&this).await?;
        this.0.tasks.spawn(agents::dispatch(this.clone()));
        this.0.tasks.spawn(agents::sweep(Arc::clone(&this.0)));
        Ok(this)
    }

    /// Stops: callers who wait are sent away, moves under way are finished, running VMs are saved or left running as
    /// the settings say. VMs stay; the next start finds them.
    pub async fn shutdown(&self) {
        let shared = &self.0;
        shared.stopping.cancel();
        shared.pools.close_all();
        let limit = tokio::time::Instant::now() + shared.settings.drain_timeout;
        if tokio::time::timeout_at(limit, shared.leases.idle()).await.is_err() {
            tracing::warn!("some requests were still under way when the daemon stopped");
        }
        self.park_all().await;
        shared.store.close().await;
    }

    /// Lets every actor finish what it does, and parks its VM if that is wanted.
    async fn park_all(&self) {
        let save = self.0.settings.save_on_shutdown;
        let mut parking = JoinSet::new();
        for handle in self.0.registry.all() {
            if parking.len() >= PARKED_AT_ONCE {
                parking.join_next().await;
            }
            parking.spawn(async move {
                let done = handle
                    .call(move |vm| Box::pin(async move { if save { vm.park().await } else { Ok(()) } }))
                    .await;
                match done {
                    // Deleted meanwhile.
                    Err(error) if error.reason == Reason::NotFound => {}
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(vm = %handle.id, error, "not saved, goes on running");
                    }
                    Ok(()) => {}
                }
            });
        }
        while parking.join_next().await.is_some() {}
    }

    /// Refuses new work once the daemon is stopping.
    fn open(&self) -> Result<&Arc<Shared>> {
        if self.0.stopping.is_cancelled() {
            return Err(Error::new(Reason::ShuttingDown, "the daemon is stopping"));
        }
        Ok(&self.0)
    }
}

/// Brings what happens by itself to the VMs' actors.
async fn dispatch(shared: Arc<Shared>, mut events: tokio::sync::mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        match shared.registry.get(event.vm()) {
            Ok(handle) => handle.tell(event).await,
            Err(_) => tracing::debug!(?event, "of a vm that is not ours"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
