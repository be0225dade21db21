//! Leases.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::answered;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::{LeaseId, PoolId};
use crate::model::lease::{EndedAs, Receipt, ReleasePolicy};
use crate::model::query::{LeaseFilter, Page};
use crate::model::queue::{Needs, Wish};
use crate::model::record::{Lease, Pending, Pool};
use crate::orchestrator::actor::{Handle, preempted};
use crate::orchestrator::asked::asker;
use crate::orchestrator::leases::{self, Grant, Unanswered};
use crate::orchestrator::pools::{self, Ticket, Turn};
use crate::orchestrator::request::{Acquire, Caller, Stage};
use crate::orchestrator::view::{Granted, QueueView};
use crate::orchestrator::{Orchestrator, Shared};
use crate::store::StoreError;

/// VMs of one pool that may fail their checks before an acquire fails with them.
const TRIES: u32 = 3;
/// Pools read at a time.
const POOLS: u32 = 1000;

impl Orchestrator {
    /// Gets a clean desktop that has proven itself ready. Dropping the future gives the place, or the VM, back.
    ///
    /// # Errors
    /// [`Reason::NotFound`] for the pool, [`Reason::PoolExhausted`] when the wait is over, [`Reason::QuotaExceeded`],
    /// [`Reason::RequirementsUnmet`], [`Reason::InvalidField`] for a life longer than the pool allows; what made the last
    /// VM fail when several failed in a row.
    pub async fn acquire(&self, caller: &Caller, request: Acquire) -> Result<Granted> {
        self.acquire_watched(caller, request, None).await
    }

    /// The same, and says how it stands meanwhile; see [`Orchestrator::queued`].
    ///
    /// # Errors
    /// As [`Orchestrator::acquire`].
    pub async fn acquire_watched(
        &self,
        caller: &Caller,
        request: Acquire,
        stage: Option<watch::Sender<Stage>>,
    ) -> Result<Granted> {
        self.acquire_from(caller, request, stage, None).await
    }

    /// The same with a VM of the named pool to begin with.
    pub(in crate::orchestrator) async fn acquire_from(
        &self,
        caller: &Caller,
        request: Acquire,
        stage: Option<watch::Sender<Stage>>,
        mut kept: Option<Ticket>,
    ) -> Result<Granted> {
        let shared = self.open()?;
        let _under_way = shared.leases.under_way.token();
        let lock = shared.leases.lock(request.request.as_ref()).await;
        if let Some(lease) = answered(shared, request.request.as_ref()).await? {
            if let Some(granted) = self.granted_before(caller, lease).await? {
                return Ok(granted);
            }
            if let Some(request) = &request.request {
                shared.store.forget_request(request.id).await?;
            }
        }
        let pool = self.choose(&request).await?;
        let ttl = lease_life(&pool, request.ttl, pool.spec.default_ttl)?;
        let asked = Instant::now();
        let mut lease = new_lease(caller, &request, &pool.id, ttl)?;
        let options = &pool.spec.options;
        let in_all = shared.settings.max_leases_per_caller;
        let mut _asking = shared.leases.ask(&lease, options.max_leases_per_caller, in_all)?;
        let wish =
            Wish { caller: caller.name.clone(), priority: request.priority, needs: request.needs.clone() };
        let mut turn = Turn::new(wish, stage);
        let mut unanswered = Unanswered::new(shared, request.request.as_ref(), lock);
        let mut replaced = 0;
        let mut waited = None;
        // Nobody has seen the lease before it is granted once; then a VM that fails it is replaced beneath it.
        let mut granted_once = false;
        loop {
            let ticket = match kept.take() {
                None => shared.pools.take(&pool.id, &mut turn, asked + request.wait).await,
                kept => kept,
            };
            let Some(ticket) = ticket else { return Err(self.exhausted(&pool, request.wait).await) };
            let waited = *waited.get_or_insert_with(|| asked.elapsed());
            let granted = Instant::now();
            let Ok(handle) = shared.registry.get(&ticket.vm) else {
                ticket.used();
                continue;
            };
            turn.tell(Stage::Preparing { vm: ticket.vm.clone() });
            lease.vm = ticket.vm.clone();
            // Until the receipt is written its life is counted generously, so that it can't expire in the middle.
            let settings = &shared.settings;
            let longest = settings.answer_timeout + settings.agent_timeout + settings.boot_timeout;
            lease.expires = Timestamp::now() + ttl + longest;
            let (offer, id) = (lease.clone(), request.request.clone().filter(|_| !granted_once));
            unanswered.asks(&lease.id, &handle);
            match handle.call(move |vm| Box::pin(vm.grant(offer, waited, replaced, id))).await {
                Ok(Some(lease)) => {
                    ticket.used();
                    if lease.receipt.is_some() {
                        // A hot one: the receipt was written with the grant.
                        shared.leases.moved();
                        let vm = self.vm_view(&handle).await;
                        unanswered.settled();
                        return Ok(Granted { lease, vm });
                    }
                }
                // Not ready after all, or gone.
                Ok(None) => {
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
            let grant = Grant {
                lease: &lease.id,
                pool: &pool.id,
                needs: &request.needs,
                handle: &handle,
                at: granted,
                waited,
                replaced,
            };
            match leases::make_ready(shared, &grant).await {
                Ok(receipt) => {
                    shared.pools.proved(&handle.look(|row| row.template.clone()), None);
                    let lease = self.write_receipt(&lease.id, &receipt, ttl).await?;
                    let vm = self.vm_view(&handle).await;
                    unanswered.settled();
                    return Ok(Granted { lease, vm });
                }
                Err(error) => {
                    let why = format!("failed its readiness checks: {error}");
                    keep_out(shared, &handle, &lease.id, &why).await?;
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
                        lease = new_lease(caller, &request, &pool.id, ttl)?;
                        _asking = shared.leases.ask_again(&lease);
                    }
                }
            }
        }
    }

    /// The pool to take a VM from: the named one, else of those that have what is required one with a VM ready, else the
    /// one with the shortest queue.
    async fn choose(&self, request: &Acquire) -> Result<Pool> {
        let unmet = |what: String| Error::new(Reason::RequirementsUnmet, what);
        if let Some(id) = &request.pool {
            let pool = self.pool_row(id).await?;
            return match self.lacks(&pool, request).await? {
                None => Ok(pool),
                Some(what) => Err(unmet(format!("pool {id} {what}")).with("pool", id)),
            };
        }
        let mut best: Option<((bool, bool, usize), Pool)> = None;
        let mut page = Page { after: String::new(), limit: POOLS };
        loop {
            let rows = self.0.store.pools(&page).await?;
            let Some(last) = rows.last() else { break };
            page.after = last.id.to_string();
            for pool in rows {
                if pool.deleting || self.lacks(&pool, request).await?.is_some() {
                    continue;
                }
                let (ready, waiting) = self.0.pools.outlook(&pool.id, &request.needs);
                let rank = (!ready, pool.paused, waiting);
                if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                    best = Some((rank, pool));
                }
            }
        }
        best.map(|(_, pool)| pool).ok_or_else(|| unmet("no pool has what is required".to_owned()))
    }

    /// What a pool lacks of what is required, if anything.
    async fn lacks(&self, pool: &Pool, request: &Acquire) -> Result<Option<String>> {
        let labels = &pool.spec.options.labels;
        if let Some((key, value)) =
            request.labels.iter().find(|(key, value)| labels.get(*key) != Some(*value))
        {
            return Ok(Some(format!("has no label {key}={value}")));
        }
        if request.needs == Needs::default() {
            return Ok(None);
        }
        let template = &pool.spec.template;
        let gpu = self.0.store.template(template).await?.is_some_and(|template| template.spec.gpu);
        let mut fits = request.needs.fits(template, gpu);
        // While it changes its template it has VMs of both.
        self.0.registry.each_of(&pool.id, |row| fits |= request.needs.fits(&row.template, row.gpu));
        Ok((!fits).then(|| {
            format!("makes its vms of template {template}, {} a gpu", if gpu { "with" } else { "without" })
        }))
    }

    /// How a caller stands who waits at this stage.
    #[must_use]
    pub fn queued(&self, stage: &Stage) -> QueueView {
        match stage {
            Stage::Queued { pool, place } => self.0.pools.queued(pool, *place),
            _ => QueueView::default(),
        }
    }

    /// Tells of changes in a pool's queue.
    #[must_use]
    pub fn queue_moves(&self, pool: &PoolId) -> Option<watch::Receiver<u64>> {
        self.0.pools.moves(pool)
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
            Err(StoreError::Changed(_)) => Err(not_active(&self.lease(id).await?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a VM back; a lease that has ended is given as it is. Without a policy, as its pool says.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::LeaseNotYours`].
    pub async fn release(
        &self,
        caller: &Caller,
        id: &LeaseId,
        policy: Option<ReleasePolicy>,
    ) -> Result<Lease> {
        let shared = self.open()?;
        let _under_way = shared.leases.under_way.token();
        let lease = self.lease(id).await?;
        owned(caller, &lease)?;
        let pending = leases::fate(shared, &lease, policy).await?;
        let why = match (pending, policy) {
            (Pending::Reset, _) => "released, to be reset",
            (Pending::Save, _) => "released, to be kept",
            (Pending::Delete, None | Some(ReleasePolicy::Reset)) => "released, to be replaced",
            (Pending::Delete, _) => "released, to be destroyed",
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
        if lease.ended.is_some() || lease.suspended.is_some() { Err(not_active(&lease)) } else { Ok(lease) }
    }

    /// The answer of an earlier call with the same request id; nothing when its VM was no good and nobody has seen the
    /// lease: another is to be begun.
    async fn granted_before(&self, caller: &Caller, id: String) -> Result<Option<Granted>> {
        let shared = &self.0;
        let id = LeaseId::new(id).map_err(|error| Error::field("request_id", error.to_string()))?;
        let mut lease = self.lease(&id).await?;
        owned(caller, &lease)?;
        if lease.receipt.is_none() && lease.ended == Some(EndedAs::VmLost) {
            return Ok(None);
        }
        if lease.ended.is_some() || lease.suspended.is_some() {
            return Err(not_active(&lease));
        }
        let handle = shared.registry.get(&lease.vm)?;
        if lease.receipt.is_none() {
            // The daemon was stopped between grant and proof.
            let grant = Grant {
                lease: &lease.id,
                pool: &lease.pool,
                needs: &Needs::default(),
                handle: &handle,
                at: Instant::now(),
                waited: Duration::ZERO,
                replaced: 0,
            };
            match leases::make_ready(shared, &grant).await {
                Ok(receipt) => lease = self.write_receipt(&id, &receipt, lease.ttl).await?,
                Err(error) if shared.stopping.is_cancelled() => return Err(error),
                Err(error) => {
                    let why = format!("failed its readiness checks: {error}");
                    keep_out(shared, &handle, &id, &why).await?;
                    let lease = leases::end(shared, &id, EndedAs::VmLost, &why, None).await?;
                    return if lease.ended == Some(EndedAs::VmLost) { Ok(None) } else { Err(error) };
                }
            }
        }
        Ok(Some(Granted { vm: self.vm_view(&handle).await, lease }))
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
        let reason = pools::status(&self.0, pool).reason;
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        Error::new(
            Reason::PoolExhausted,
            format!("no vm of pool {} came free within {} ms{why}", pool.id, wait.as_millis()),
        )
        .with("pool", &pool.id)
        .with("waited_ms", wait.as_millis())
        .retry_after(leases::ASK_AGAIN)
    }

    async fn write_receipt(&self, id: &LeaseId, receipt: &Receipt, ttl: Duration) -> Result<Lease> {
        let shared = &self.0;
        let written = shared.store.write_receipt(id, receipt, Timestamp::now() + ttl, &asker()).await;
        shared.leases.resumed(id);
        match written {
            Ok(lease) => Ok(lease),
            Err(StoreError::Changed(_)) => Err(ended(&self.lease(id).await?)),
            Err(error) => Err(error.into()),
        }
    }
}

fn new_lease(caller: &Caller, request: &Acquire, pool: &PoolId, ttl: Duration) -> Result<Lease> {
    // Ordered by time, so that the newest come first in lists.
    let id = LeaseId::new(format!("l-{}", Uuid::now_v7().simple()))
        .map_err(|error| Error::internal(Reason::Internal, "no id for the lease", error))?;
    let now = Timestamp::now();
    let vm = format!("pending-{pool}");
    let vm = vm[..vm.len().min(63)].trim_end_matches('-').to_owned();
    Ok(Lease {
        id,
        uid: Uuid::new_v4(),
        vm: vm.parse().map_err(|error| Error::internal(Reason::Internal, "no id for the vm", error))?,
        pool: pool.clone(),
        holder: caller.name.clone(),
        ended: None,
        end_reason: String::new(),
        ttl,
        expires: now,
        receipt: None,
        purpose: request.purpose.clone(),
        priority: request.priority,
        suspended: None,
        suspend_reason: String::new(),
        created: now,
        ended_at: None,
    })
}

/// Keeps a VM out of use that failed the checks of its lease, and notes it against its template.
async fn keep_out(shared: &Shared, handle: &Handle, lease: &LeaseId, why: &str) -> Result<()> {
    if handle.look(|row| row.lease.as_ref() == Some(lease)) {
        shared.pools.proved(&handle.look(|row| row.template.clone()), Some(why));
    }
    let (lease, why) = (lease.clone(), why.to_owned());
    match handle.call(move |vm| Box::pin(async move { vm.failed_lease(&lease, &why).await })).await {
        Err(error) if error.reason != Reason::NotFound => Err(error),
        _ => Ok(()),
    }
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

/// The lease is over, or preempted, and why.
pub(super) fn not_active(lease: &Lease) -> Error {
    match lease.suspended {
        Some(_) if lease.ended.is_none() => preempted(&lease.id, &lease.suspend_reason),
        _ => ended(lease),
    }
}

/// The lease is over, and why.
fn ended(lease: &Lease) -> Error {
    let how = lease.ended.map_or("ended", EndedAs::as_str);
    Error::new(Reason::LeaseEnded, format!("lease {} has ended ({how}): {}", lease.id, lease.end_reason))
        .with("lease", &lease.id)
        .with("ended_as", how)
        .with("end_reason", &lease.end_reason)
}
