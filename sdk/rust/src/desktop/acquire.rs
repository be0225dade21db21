//! Asking for a desktop.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use crate::client::{Client, fresh_id};
use crate::desktop::Desktop;
use crate::error::{Error, Result};
use crate::v1::AcquireVmRequest;

/// A request for a desktop; await it. Dropping the future gives the place in the queue back.
#[derive(Clone, Debug)]
#[must_use = "does nothing until it is awaited"]
pub struct Acquire {
    client: Client,
    request: AcquireVmRequest,
}

impl Client {
    /// Asks for a clean desktop from a pool, by id or name.
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
        Box::pin(async move {
            let answer = self.client.acquire_vm(self.request).await?;
            let lease = answer.lease.ok_or(Error::Protocol("an acquire without a lease"))?;
            Ok(Desktop::new(self.client, lease, answer.vm.unwrap_or_default()))
        })
    }
}
