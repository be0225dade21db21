//! Asking for a desktop.

use std::future::IntoFuture;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::stream::StreamExt as _;
use tokio::time::Instant;

use crate::client::{Client, fresh_id};
use crate::desktop::Desktop;
use crate::error::{Error, Result};
use crate::leases::{READY_WAIT, wait_of};
use crate::retry::Patience;
use crate::v1::watch_acquire_response::Update;
use crate::v1::{AcquireRequirements, AcquireVmRequest, AcquireVmResponse};

/// A request for a desktop; await it. Dropping the future gives the place in the queue back. A daemon that restarts
/// meanwhile is asked again, for what is left of the wait.
#[derive(Clone, Debug)]
#[must_use = "does nothing until it is awaited"]
pub struct Acquire {
    client: Client,
    request: AcquireVmRequest,
}

impl Client {
    /// Asks for a clean desktop from a pool, by id or name. Empty: from any pool that has what is required, see
    /// [`Acquire::label`], [`Acquire::template`] and [`Acquire::gpu`].
    pub fn acquire(&self, pool: &str) -> Acquire {
        let request =
            AcquireVmRequest { pool: pool.to_owned(), request_id: fresh_id(), ..AcquireVmRequest::default() };
        Acquire { client: self.clone(), request }
    }
}

impl Acquire {
    /// How long the lease lives without renewal, 10 s to the pool's limit; default: the pool's. Short ones free the VM
    /// sooner when this program dies, long ones survive longer network failures.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl = ttl.try_into().ok();
        self
    }

    /// How long to wait for a VM to become free, 1 h at most; default 60 s, 0: not at all.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.request.wait = wait.try_into().ok();
        self
    }

    /// Free text kept with the lease; 256 bytes at most.
    pub fn purpose(mut self, purpose: impl Into<String>) -> Self {
        self.request.purpose = purpose.into();
        self
    }

    /// -100 to 100, default 0; higher ones are served earlier, and may preempt lower ones where the pool says so.
    pub fn priority(mut self, priority: i32) -> Self {
        self.request.priority = priority;
        self
    }

    /// The pool must have this label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.required().labels.insert(key.into(), value.into());
        self
    }

    /// The VM must be of this template, by id or name.
    pub fn template(mut self, template: impl Into<String>) -> Self {
        self.required().template = template.into();
        self
    }

    /// The VM must have a share of a GPU.
    pub fn gpu(mut self, yes: bool) -> Self {
        self.required().gpu = yes;
        self
    }

    fn required(&mut self) -> &mut AcquireRequirements {
        self.request.requirements.get_or_insert_default()
    }

    /// Gets the desktop as awaiting this does, and tells meanwhile how it stands.
    ///
    /// # Errors
    /// As [`Client::acquire_vm`].
    pub async fn watched(self, tell: impl FnMut(&Update)) -> Result<Desktop> {
        self.run(Some(tell)).await
    }

    /// Asks until there is an answer: a connection that breaks, or a daemon that restarts, is no reason to lose the
    /// desktop. The same request is asked again, for what is left of the wait.
    async fn run<F: FnMut(&Update)>(mut self, mut tell: Option<F>) -> Result<Desktop> {
        if self.request.request_id.is_empty() {
            self.request.request_id = fresh_id();
        }
        let (start, wait) = (Instant::now(), wait_of(&self.request));
        let longest = self.client.after(wait.saturating_add(READY_WAIT));
        let mut patience = Patience::default();
        loop {
            let answer = match &mut tell {
                Some(tell) => self.ask_watched(tell, &mut patience).await,
                None => self.client.acquire_once(self.request.clone()).await,
            };
            let error = match answer {
                Ok(answer) => {
                    let lease = answer.lease.ok_or(Error::Protocol("an acquire without a lease"))?;
                    return Ok(Desktop::new(self.client, lease, answer.vm.unwrap_or_default()));
                }
                Err(error) if error.is_absence() && start.elapsed() < longest => error,
                Err(error) => return Err(error),
            };
            // What broke off was with the daemon.
            if !error.is_unreachable() {
                patience.was_there();
            }
            patience.after(&self.client, error).await?;
            self.request.wait = wait.saturating_sub(start.elapsed()).try_into().ok();
        }
    }

    async fn ask_watched(
        &self,
        tell: &mut impl FnMut(&Update),
        patience: &mut Patience,
    ) -> Result<AcquireVmResponse> {
        let mut updates = pin!(self.client.watch_acquire(self.request.clone()).await?);
        while let Some(update) = updates.next().await {
            let update = update?.update;
            patience.heard();
            match update {
                Some(Update::Granted(answer)) => return Ok(answer),
                Some(update) => tell(&update),
                // Of a newer daemon.
                None => {}
            }
        }
        Err(Error::Protocol("an acquire that ended without a lease"))
    }

    /// UUID of the request; default: a random one. A program that writes it down first gets the same lease again after
    /// a crash.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request.request_id = id.into();
        self
    }
}

impl IntoFuture for Acquire {
    type Output = Result<Desktop>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run(None::<fn(&Update)>))
    }
}
