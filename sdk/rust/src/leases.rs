//! Calls of `LeaseService`. Most programs want [`Client::acquire`] instead, which keeps the lease alive.

use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _};

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::paging::pages;
use crate::v1::{
    AcquireVmRequest, AcquireVmResponse, GetLeaseRequest, Lease, ListLeasesRequest, ReleasePolicy,
    ReleaseVmRequest, RenewLeaseRequest, WatchAcquireRequest, WatchAcquireResponse,
};

/// What the daemon waits when it is not told.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// Bringing a VM up and proving it ready may go on after the wait in the queue is over.
pub(crate) const READY_WAIT: Duration = Duration::from_secs(120);

/// How long a request waits for a VM to come free.
pub(crate) fn wait_of(request: &AcquireVmRequest) -> Duration {
    request.wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(DEFAULT_WAIT)
}

/// A request with full names, a wait and an id, and the wait.
fn complete(request: AcquireVmRequest) -> (AcquireVmRequest, Duration) {
    let wait = wait_of(&request);
    let mut request = request;
    if !request.pool.is_empty() {
        request.pool = qualify("pools", &request.pool);
    }
    if let Some(required) = &mut request.requirements
        && !required.template.is_empty()
    {
        required.template = qualify("templates", &required.template);
    }
    if request.wait.is_none() {
        // Else the daemon would take the call's deadline, which has room for bringing the VM up, for the wait.
        request.wait = DEFAULT_WAIT.try_into().ok();
    }
    if request.request_id.is_empty() {
        request.request_id = fresh_id();
    }
    (request, wait)
}

impl Client {
    /// Gets a lease that nobody renews: it ends by itself after its TTL. An empty `request_id` is filled in, so that a
    /// retry cannot make a second lease.
    ///
    /// # Errors
    /// `NOT_FOUND` for the pool; `RESOURCE_EXHAUSTED` (`POOL_EXHAUSTED`, `QUOTA_EXCEEDED`); `FAILED_PRECONDITION`
    /// (`REQUIREMENTS_UNMET`); `INVALID_ARGUMENT`.
    pub async fn acquire_vm(&self, request: AcquireVmRequest) -> Result<AcquireVmResponse> {
        let (request, wait) = complete(request);
        call!(self, Repeatable, self.after(wait.saturating_add(READY_WAIT)), leases.acquire_vm(request))
    }

    /// The same without another try.
    pub(crate) async fn acquire_once(&self, request: AcquireVmRequest) -> Result<AcquireVmResponse> {
        let (request, wait) = complete(request);
        let timeout = self.after(wait.saturating_add(READY_WAIT));
        self.attempt(timeout, request, |request| async { self.leases().acquire_vm(request).await }).await
    }

    /// As [`Client::acquire_vm`], giving meanwhile how it stands: the place in the queue with the expected time and the
    /// reason, that a VM is made ready, then the lease, which is the last item. Dropping the stream gives the place, or
    /// the VM, back. Not retried: the same `request_id` again gets the same lease.
    ///
    /// # Errors
    /// As [`Client::acquire_vm`], here or as the stream's last item.
    pub async fn watch_acquire(
        &self,
        request: AcquireVmRequest,
    ) -> Result<impl Stream<Item = Result<WatchAcquireResponse>> + use<>> {
        let (request, wait) = complete(request);
        let mut request = tonic::Request::new(WatchAcquireRequest { acquire: Some(request) });
        request.set_timeout(self.after(wait.saturating_add(READY_WAIT)));
        let answer = self.leases().watch_acquire(request).await.map_err(|status| self.error(status))?;
        let client = self.clone();
        Ok(answer.into_inner().map(move |item| item.map_err(|status| client.error(status))))
    }

    /// Moves a lease's end to `ttl` from now (`None`: its own TTL).
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (`LEASE_ENDED`, `LEASE_PREEMPTED`); `PERMISSION_DENIED` (`LEASE_NOT_YOURS`).
    pub async fn renew_lease(&self, name: &str, ttl: Option<Duration>) -> Result<Lease> {
        let ttl = ttl.and_then(|ttl| ttl.try_into().ok());
        let request = RenewLeaseRequest { name: qualify("leases", name), ttl };
        call!(self, Repeatable, self.quick(), leases.renew_lease(request))
    }

    /// Gives a VM back. Releasing an ended lease again gives the ended lease.
    ///
    /// # Errors
    /// `NOT_FOUND`; `PERMISSION_DENIED` (`LEASE_NOT_YOURS`).
    pub async fn release_vm(&self, name: &str, policy: ReleasePolicy) -> Result<Lease> {
        let request = ReleaseVmRequest { name: qualify("leases", name), policy: policy.into() };
        call!(self, Repeatable, self.after(READY_WAIT), leases.release_vm(request))
    }

    /// Gets one lease by id or name.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_lease(&self, name: &str) -> Result<Lease> {
        let request = GetLeaseRequest { name: qualify("leases", name) };
        call!(self, Repeatable, self.quick(), leases.get_lease(request))
    }

    /// Leases from `pool` (all for `None`), newest first; `show_ended`: those of the last day too.
    pub fn list_leases(
        &self,
        pool: Option<&str>,
        show_ended: bool,
    ) -> impl Stream<Item = Result<Lease>> + use<> {
        let client = self.clone();
        let pool = pool.map(|pool| qualify("pools", pool)).unwrap_or_default();
        pages(move |page_token| {
            let client = client.clone();
            let request = ListLeasesRequest { page_size: 0, page_token, pool: pool.clone(), show_ended };
            async move {
                let page = call!(client, Repeatable, client.quick(), leases.list_leases(request))?;
                Ok((page.leases, page.next_page_token))
            }
        })
    }
}
