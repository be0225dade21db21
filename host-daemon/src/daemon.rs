//! A whole daemon inside a program: store, hypervisor, orchestrator and listener, started and stopped together.
//!
//! ```text
//!  start: lock the state dir ─► admin token ─► hypervisor ─► store ─► orchestrator (recovers) ─► listen ─► endpoint file
//!  stop:  NOT_SERVING ─► end endless streams, accept no more ─► drain ─► orchestrator saves what runs ─► unlock
//! ```
//!
//! `hvkubed` is this and a command line; `examples/embedded.rs` shows it in another program.

mod restore;
mod state_dir;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;

pub use restore::{RestoreError, restore};
pub use state_dir::StateDirError;

use crate::api::serve::{self, ListenError};
use crate::api::tokens::{TokenError, Tokens};
use crate::api::{Api, Health, Stopping};
use crate::config::{Config, HypervisorKind};
use crate::hypervisor::process::Process;
use crate::hypervisor::qemu::QemuHypervisor;
use crate::hypervisor::sim::SimHypervisor;
use crate::hypervisor::{HvError, HvResult, Hypervisor};
use crate::model::error::Error;
use crate::orchestrator::Orchestrator;
use crate::store::{Store, StoreError};
use state_dir::StateDir;

/// Why a daemon can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory can't be used, or another daemon does.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The admin token can't be read or written.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The hypervisor can't be used.
    #[error("can't use the hypervisor")]
    Hypervisor(#[from] HvError),
    /// The database can't be opened.
    #[error("can't open the database {path}")]
    Store {
        /// Where it is.
        path: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// What exists can't be taken over.
    #[error("can't take over the vms that exist")]
    Recover(#[source] Error),
    /// The descriptors that were compiled in are broken.
    #[error("can't serve reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// A daemon that runs. Dropping it stops serving at once and leaves its VMs to the next daemon.
pub struct Daemon {
    config: Config,
    address: SocketAddr,
    orchestrator: Orchestrator,
    health: Health,
    stopping: Stopping,
    server: JoinHandle<()>,
    state_dir: StateDir,
}

impl Daemon {
    /// Starts a daemon with the hypervisor that the settings name. Answers when it serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind but what the state directory keeps.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        // Before anything is touched: an address that is refused or taken is the most common mistake.
        let state_dir = StateDir::lock(&config.state_dir)?;
        let listener = serve::bind(config.listen).await?;
        let hypervisor = hypervisor(&config).await?;
        Self::serve(config, state_dir, listener, hypervisor).await
    }

    /// Starts a daemon with a hypervisor of the caller's.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_with(config: Config, hypervisor: Arc<dyn Hypervisor>) -> Result<Self, StartError> {
        let state_dir = StateDir::lock(&config.state_dir)?;
        let listener = serve::bind(config.listen).await?;
        Self::serve(config, state_dir, listener, hypervisor).await
    }

    async fn serve(
        config: Config,
        mut state_dir: StateDir,
        listener: tokio::net::TcpListener,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> Result<Self, StartError> {
        let address =
            listener.local_addr().map_err(|source| ListenError::Bind { address: config.listen, source })?;
        let tokens = Arc::new(Tokens::new(&config.state_dir));
        tokens.ensure_admin()?;
        let store = Store::open(&config.store())
            .await
            .map_err(|source| StartError::Store { path: config.store.path.display().to_string(), source })?;
        let orchestrator =
            Orchestrator::start(store, hypervisor, config.settings()).await.map_err(StartError::Recover)?;

        let (health, stopping) = (Health::new().await, Stopping::default());
        let api = Api {
            orchestrator: orchestrator.clone(),
            tokens,
            allow_root: config.allow_root_exec,
            stopping: stopping.clone(),
        };
        let router = api.router(&health).map_err(StartError::Reflection)?;
        let server = tokio::spawn(serve::run(listener, router, stopping.clone()));
        health.set(true).await;
        state_dir.publish(address)?;
        tracing::info!(%address, state_dir = %config.state_dir.display(), "serving");
        Ok(Self { config, address, orchestrator, health, stopping, server, state_dir })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The orchestrator, for calls without a network.
    #[must_use]
    pub fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    /// Stops in order: tells everybody, lets calls finish, saves what runs.
    pub async fn stop(mut self) {
        self.health.set(false).await;
        self.stopping.begun.cancel();
        if tokio::time::timeout(self.config.shutdown.drain_timeout, &mut self.server).await.is_err() {
            tracing::warn!("calls did not finish in time and are ended");
            self.stopping.over.cancel();
            if let Err(error) = (&mut self.server).await {
                tracing::error!(%error, "the listener failed");
            }
        }
        self.orchestrator.shutdown().await;
        self.state_dir.unpublish();
        tracing::info!("stopped");
    }
}

/// The hypervisor that the settings name.
async fn hypervisor(config: &Config) -> HvResult<Arc<dyn Hypervisor>> {
    Ok(match config.hypervisor {
        HypervisorKind::Qemu => Arc::new(QemuHypervisor::open(config.qemu()).await?),
        HypervisorKind::Process => {
            tracing::warn!("the process backend isolates nothing: its desktops are programs of this user");
            Arc::new(Process::new(config.process())?)
        }
        HypervisorKind::Sim => {
            let sim = SimHypervisor::open(config.sim())?;
            tracing::warn!(
                facts = sim.facts().accelerator_reason,
                "the hypervisor is simulated: no vm is real"
            );
            Arc::new(sim)
        }
    })
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stopping.begun.cancel();
        self.stopping.over.cancel();
        self.server.abort();
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Daemon({})", self.address)
    }
}
