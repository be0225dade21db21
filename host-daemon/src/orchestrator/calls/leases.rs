//! Leases.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::answered;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::LeaseId;
use crate::model::lease::{EndedAs, Receipt, ReleasePolicy};
use crate::model::query::{LeaseFilter, Page};
use crate::model::record::{Lease, Pending, Pool};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::asked::asker;
use crate::orchestrator::leases::{self, Unanswered};
use crate::orchestrator::request::{Acquire, Caller};
use crate::orchestrator::view::Granted;
use crate::store::StoreError;

/// VMs of one pool that may fail their checks before an acquire fails with them.
const TRIES: u32 = 3;
/// When a caller who got nothing should ask again, where nothing better is known.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Orchestrator {
    /// Gets a clean desktop that has proven itself ready. Dropping the future gives the place, or the VM, back.
    ///
    /// # Errors
    /// [`Reason::NotFound`] for the pool, [`Reason::PoolExhausted`] when the wait is over, [`Reason::InvalidField`] for
    /// a life longer than the pool allows; what made the last VM fail when several failed in a row.
    pub async fn acquire(&self, caller: &Caller, request: Acquire) -> Result<Granted> {
        let shared = self.open()?;
        let _under_way = shared.leases.under_way.token();
        let turn = shared.leases.lock(request.request.as_ref()).await;
        if let Some(lease) = answered(shared, request.request.as_ref()).await? {
            return self.granted_before(caller, lease).await;
        }
        let pool = self.pool_row(&request.pool).await?;
        let ttl = lease_life(&pool, request.ttl, pool.spec.default_ttl)?;
        let asked = Instant::now();
        let mut lease = new_lease(caller, &request, ttl)?;
        let mut unanswered = Unanswered::new(shared, request.request.as_ref(), turn);
        let mut replaced = 0;
        let mut waited = None;
        // Nobody has seen the lease before it is granted once; then a VM that fails it is replaced beneath it.
        let mut granted_once = false;
        loop {
            let again = waited.is_some();
            let Some(ticket) = shared.pools.take(&pool.id, asked + request.wait, again).await else {
                return Err(self.exhausted(&pool, request.wait).await);
            };
            let waited = *waited.get_or_insert_with(|| asked.elapsed());
            let granted = Instant::now();
            let Ok(handle) = shared.registry.get(&ticket.vm) else {
                ticket.used();
                continue;
            };
            lease.vm = ticket.vm.clone();
            // Until the receipt is written its life is counted generously, so that it can't expire in the middle.
            lease.expires = Timestamp::now() + ttl + shared.settings.agent_timeout;
            let (offer, id) = (lease.clone(), request.request.clone().filter(|_| !granted_once));
            unanswered.asks(&lease.id, &handle);
            match handle.call(move |vm| Box::pin(vm.grant(offer, id))).await {
                Ok(true) => ticket.used(),
                // Not ready after all, or gone.
                Ok(false) => {
                    ticket.used();
                    if !granted_once {
                        unanswered.settled();
                    }
                    continue;
                }
                Err(error) if error.reason == Reason::NotFound => {
                    ticket.used();
                    continue;
                }
                // The VM is as it was: the ticket gives it back.
                Err(error) => return Err(error),
            }
            granted_once = true;
            match leases::make_ready(shared, &handle, granted, waited, replaced).await {
                Ok(receipt) => {
                    let lease = self.write_receipt(&lease.id, &receipt, ttl).await?;
                    let vm = self.vm_view(&handle).await;
                    unanswered.settled();
                    return Ok(Granted { lease, vm });
                }
                Err(error) => {
                    let (id, why) = (lease.id.clone(), format!("failed its readiness checks: {error}"));
                    let kept = handle
                        .call(move |vm| Box::pin(async move { vm.failed_lease(&id, &why).await }))
                        .await;
                    match kept {
                        Err(error) if error.reason != Reason::NotFound => return Err(error),
                        _ => {}
                    }
                    replaced += 1;
                    if replaced >= TRIES {
                        return Err(error);
                    }
                    if self.lease(&lease.id).await?.ended.is_some() {
                        // The VM died and took its lease along: nobody has seen that one, begin another.
                        if let Some(request) = &request.request {
                            shared.store.forget_request(request.id).await?;
                        }
                        unanswered.settled();
                        granted_once = false;
                        lease = new_lease(caller, &request, ttl)?;
                    }
                }
            }
        }
    }

    /// Moves the end of a lease.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::LeaseNotYours`], [`Reason::LeaseEnded`], [`Reason::InvalidField`].
    pub async fn renew(&self, caller: &Caller, id: &LeaseId, ttl: Option<Duration>) -> Result<Lease> {
        let shared = self.open()?;
        let lease = self.own(caller, id).await?;
        let ttl = match ttl {
            None => lease.ttl,
            asked => lease_life(&self.pool_row(&lease.pool).await?, asked, lease.ttl)?,
        };
        let renewed = shared.store.renew_lease(id, ttl, Timestamp::now() + ttl, &caller.name).await;
        shared.leases.moved();
        match renewed {
            Ok(lease) => Ok(lease),
            Err(StoreError::Changed(_)) => Err(ended(&self.lease(id).await?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a VM back; a lease that has ended is given as it is.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::LeaseNotYours`].
    pub async fn release(&self, caller: &Caller, id: &LeaseId, policy: ReleasePolicy) -> Result<Lease> {
        let shared = self.open()?;
        let _under_way = shared.leases.under_way.token();
        let lease = self.lease(id).await?;
        owned(caller, &lease)?;
        let (pending, why) = match policy {
            ReleasePolicy::Reset => (Pending::Reset, "released, to be reset"),
            ReleasePolicy::Keep => (Pending::Save, "released, to be kept"),
            ReleasePolicy::Destroy => (Pending::Delete, "released, to be destroyed"),
        };
        leases::end(shared, id, EndedAs::Released, why, Some(pending)).await
    }

    /// One lease.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn lease(&self, id: &LeaseId) -> Result<Lease> {
        self.0.store.lease(id).await?.ok_or_else(|| Error::not_found("lease", id))
    }

    /// Leases, newest first.
    ///
    /// # Errors
    /// [`Reason::StoreFailed`].
    pub async fn leases(&self, filter: &LeaseFilter, page: &Page) -> Result<Vec<Lease>> {
        Ok(self.0.store.leases(filter, page).await?)
    }

    /// A live lease of the caller's.
    pub(super) async fn own(&self, caller: &Caller, id: &LeaseId) -> Result<Lease> {
        let lease = self.lease(id).await?;
        owned(caller, &lease)?;
        if lease.ended.is_some() { Err(ended(&lease)) } else { Ok(lease) }
    }

    /// The answer of an earlier call with the same request id.
    async fn granted_before(&self, caller: &Caller, id: String) -> Result<Granted> {
        let id = LeaseId::new(id).map_err(|error| Error::field("request_id", error.to_string()))?;
        let mut lease = self.own(caller, &id).await?;
        let handle = self.0.registry.get(&lease.vm)?;
        if lease.receipt.is_none() {
            // The daemon was stopped between grant and proof.
            let receipt = leases::make_ready(&self.0, &handle, Instant::now(), Duration::ZERO, 0).await?;
            lease = self.write_receipt(&lease.id, &receipt, lease.ttl).await?;
        }
        Ok(Granted { vm: self.vm_view(&handle).await, lease })
    }

    /// Why nothing came of a wait.
    async fn exhausted(&self, pool: &Pool, wait: Duration) -> Error {
        if self.0.stopping.is_cancelled() {
            return Error::new(Reason::ShuttingDown, "the daemon is stopping");
        }
        // It may have been deleted meanwhile.
        if let Err(error) = self.pool_row(&pool.id).await {
            return error;
        }
        Error::new(
            Reason::PoolExhausted,
            format!("no vm of pool {} came free within {} ms", pool.id, wait.as_millis()),
        )
        .with("pool", &pool.id)
        .with("waited_ms", wait.as_millis())
        .retry_after(ASK_AGAIN)
    }

    async fn write_receipt(&self, id: &LeaseId, receipt: &Receipt, ttl: Duration) -> Result<Lease> {
        let shared = &self.0;
        let written = shared.store.write_receipt(id, receipt, Timestamp::now() + ttl, &asker()).await;
        shared.leases.moved();
        match written {
            Ok(lease) => Ok(lease),
            Err(StoreError::Changed(_)) => Err(ended(&self.lease(id).await?)),
            Err(error) => Err(error.into()),
        }
    }
}

fn new_lease(caller: &Caller, request: &Acquire, ttl: Duration) -> Result<Lease> {
    // Ordered by time, so that the newest come first in lists.
    let id = LeaseId::new(format!("l-{}", Uuid::now_v7().simple()))
        .map_err(|error| Error::internal(Reason::Internal, "no id for the lease", error))?;
    let now = Timestamp::now();
    let vm = format!("pending-{}", request.pool);
    let vm = vm[..vm.len().min(63)].trim_end_matches('-').to_owned();
    Ok(Lease {
        id,
        uid: Uuid::new_v4(),
        vm: vm.parse().map_err(|error| Error::internal(Reason::Internal, "no id for the vm", error))?,
        pool: request.pool.clone(),
        holder: caller.name.clone(),
        ended: None,
        end_reason: String::new(),
        ttl,
        expires: now,
        receipt: None,
        purpose: request.purpose.clone(),
        created: now,
        ended_at: None,
    })
}

fn lease_life(pool: &Pool, asked: Option<Duration>, default: Duration) -> Result<Duration> {
    let ttl = asked.unwrap_or(default);
    if ttl > pool.spec.max_ttl {
        let most = pool.spec.max_ttl.as_secs();
        return Err(Error::field("ttl", format!("must be at most {most} s, the pool's max_lease_ttl"))
            .with("max_lease_ttl_s", most));
    }
    Ok(ttl)
}

fn owned(caller: &Caller, lease: &Lease) -> Result<()> {
    if caller.admin || caller.name == lease.holder {
        return Ok(());
    }
    Err(Error::new(Reason::LeaseNotYours, format!("lease {} is not yours", lease.id))
        .with("lease", &lease.id))
}

/// The lease is over, and why.
pub(super) fn ended(lease: &Lease) -> Error {
    let how = lease.ended.map_or("ended", EndedAs::as_str);
    Error::new(Reason::LeaseEnded, format!("lease {} has ended ({how}): {}", lease.id, lease.end_reason))
        .with("lease", &lease.id)
        .with("ended_as", how)
        .with("end_reason", &lease.end_reason)
}
