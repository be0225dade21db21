//! A desktop in hand: a lease that stays alive, and everything that can be done with the screen behind it.
//!
//! ```text
//! Client::acquire ── Acquire ──await──> Desktop ── Deref ──> Target (screen, input, clipboard, windows, exec, files)
//!                                         │
//!                          keeper task: renews at a third of the TTL
//!                                         │ refused, or not reached until the TTL was over
//!                                         v
//!                                  Desktop::lost() resolves
//! ```

mod acquire;
mod console;
mod desk;
mod exec;
mod files;
mod input;
mod input_sink;
mod keeper;
mod target;

use std::future::Future;
use std::ops::Deref;

pub use acquire::Acquire;
pub use console::Console;
pub use desk::Clipboard;
pub use exec::{Exec, ExecEvent, ExecOutput, ExecStream};
pub use files::{FileStream, WriteOptions};
pub use input::{Act, Input};
pub use input_sink::InputSink;
pub use keeper::LeaseLost;
pub use target::Target;

use crate::client::Client;
use crate::error::Result;
use crate::v1::{Lease, ReleasePolicy, Vm};
use keeper::Keeper;

/// A leased desktop. Dereferences to [`Target`] for screen, input, programs and files.
///
/// The lease is renewed in the background for as long as this lives. Give it back with [`Desktop::release`]: that waits
/// for the daemon's answer and can say what becomes of the VM. Dropping it instead releases with reset from a spawned
/// task, on a best-effort basis: when the runtime ends first, the lease ends with its TTL.
#[derive(Debug)]
pub struct Desktop {
    target: Target,
    lease: Lease,
    vm: Vm,
    // Taken out by release and detach; what is left at drop is given back.
    keeper: Option<Keeper>,
}

impl Desktop {
    pub(crate) fn new(client: Client, lease: Lease, vm: Vm) -> Self {
        let keeper = Some(Keeper::start(client.clone(), &lease));
        Self { target: Target::new(client, lease.name.clone()), lease, vm, keeper }
    }

    /// The lease as it was granted; its readiness receipt is in `receipt`.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The VM as it was handed over.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Resolves when the lease is lost, and never otherwise. Independent of `self`, so it can run beside the work:
    ///
    /// ```no_run
    /// # async fn example(desktop: hvkube_sdk::Desktop) -> Result<(), hvkube_sdk::Error> {
    /// tokio::select! {
    ///     lost = desktop.lost() => Err(lost.into()),
    ///     done = desktop.type_text("a long text") => done.map(drop),
    /// }
    /// # }
    /// ```
    pub fn lost(&self) -> impl Future<Output = LeaseLost> + Send + use<> {
        let watcher = self.keeper.as_ref().map(Keeper::watcher);
        async move {
            match watcher {
                Some(watcher) => watcher.lost().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Whether the lease is known to be lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.keeper.as_ref().is_some_and(Keeper::is_lost)
    }

    /// Gives the desktop back and says what becomes of its VM. Answers with the ended lease.
    ///
    /// # Errors
    /// When the daemon refuses or cannot be reached; the lease then ends with its TTL.
    pub async fn release(mut self, policy: ReleasePolicy) -> Result<Lease> {
        // The keeper stays in place until the daemon has answered: a dropped future must not leave the lease behind.
        let lease = self.target.client().release_vm(&self.lease.name, policy).await?;
        self.keeper = None;
        Ok(lease)
    }

    /// Stops renewing without giving the lease back: it goes on for at most its TTL, for somebody else to use.
    #[must_use = "the lease is somebody's to use and to release"]
    pub fn detach(mut self) -> Lease {
        self.keeper = None;
        self.lease.clone()
    }
}

impl Deref for Desktop {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        if keeper.is_lost() {
            return;
        }
        let runtime = keeper.runtime().clone();
        drop(keeper);
        let client = self.target.client().clone();
        let name = std::mem::take(&mut self.lease.name);
        runtime.spawn(async move {
            if let Err(error) = client.release_vm(&name, ReleasePolicy::Reset).await {
                tracing::warn!(lease = name, %error, "cannot give the desktop back, its lease will expire");
            }
        });
    }
}
