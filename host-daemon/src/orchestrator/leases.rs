//! Leases: grant, proof of readiness, expiry.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Shared;
use super::actor::{Handle, first_address};
use super::asked::asker;
use crate::guest::{GuestError, Session};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{LeaseId, PoolId};
use crate::model::lease::{Check, CheckKind, EndedAs, Receipt, ReleasePolicy};
use crate::model::policy::after_lease;
use crate::model::query::RequestId;
use crate::model::queue::{Needs, Wish};
use crate::model::record::{Lease, Pending};
use crate::model::vm::VmState;
use crate::store::StoreError;

/// The expiry task looks at the store at least this often: the clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// When a caller who got nothing should ask again, where nothing better is known.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is known of leases while the daemon runs.
#[derive(Default)]
pub(super) struct Leases {
    /// A lease was made, renewed or ended: the next expiry may be another.
    changed: Notify,
    /// One lock per request id under way, so that a repeat waits for the first.
    requests: Mutex<HashMap<Uuid, Weak<tokio::sync::Mutex<()>>>>,
    /// Who holds each live lease, or waits for it.
    claims: Mutex<Claims>,
    /// Requests and clean-ups under way.
    pub(super) under_way: TaskTracker,
}

#[derive(Default)]
struct Claims {
    all: HashMap<LeaseId, Claim>,
    /// How many each caller has, by pool and in all.
    counts: HashMap<(String, Option<PoolId>), u32>,
}

/// A caller's right to a lease, or the hope of one.
struct Claim {
    holder: String,
    pool: PoolId,
    priority: i32,
    granted: bool,
    /// When its holder got the VM, or got it back; absent: not yet, or it is preempted.
    handed_over: Option<Instant>,
}

impl Claims {
    fn count(&self, holder: &str, pool: Option<&PoolId>) -> u32 {
        self.counts.get(&(holder.to_owned(), pool.cloned())).copied().unwrap_or_default()
    }

    fn add(&mut self, lease: &Lease) -> &mut Claim {
        if !self.all.contains_key(&lease.id) {
            for pool in [Some(lease.pool.clone()), None] {
                *self.counts.entry((lease.holder.clone(), pool)).or_default() += 1;
            }
        }
        self.all.entry(lease.id.clone()).or_insert_with(|| Claim {
            holder: lease.holder.clone(),
            pool: lease.pool.clone(),
            priority: lease.priority,
            granted: false,
            handed_over: None,
        })
    }

    fn remove(&mut self, id: &LeaseId) {
        let Some(claim) = self.all.remove(id) else { return };
        for pool in [Some(claim.pool.clone()), None] {
            let key = (claim.holder.clone(), pool);
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }
}

/// A caller who waits counts against their quota; given up when it is dropped before the lease was granted.
pub(super) struct Asking<'a> {
    leases: &'a Leases,
    id: LeaseId,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut claims = self.leases.claims();
        if claims.all.get(&self.id).is_some_and(|claim| !claim.granted) {
            claims.remove(&self.id);
        }
    }
}

impl Leases {
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody asks for a lease. Refused when they have `quota` in this pool, or `quota_in_all`; 0: no limit.
    pub(super) fn ask(&self, lease: &Lease, quota: u32, quota_in_all: u32) -> Result<Asking<'_>> {
        let mut claims = self.claims();
        for (limit, pool) in [(quota, Some(&lease.pool)), (quota_in_all, None)] {
            let has = claims.count(&lease.holder, pool);
            if limit > 0 && has >= limit {
                let place = pool.map_or_else(|| "on this host".to_owned(), |pool| format!("of pool {pool}"));
                let why =
                    format!("{} holds or waits for {has} leases {place}, {limit} are allowed", lease.holder);
                return Err(Error::new(Reason::QuotaExceeded, why)
                    .with("pool", &lease.pool)
                    .with("leases", has)
                    .with("limit", limit)
                    .retry_after(ASK_AGAIN));
            }
        }
        claims.add(lease);
        Ok(Asking { leases: self, id: lease.id.clone() })
    }

    /// The same lease under another id, within the quota as before.
    pub(super) fn ask_again(&self, lease: &Lease) -> Asking<'_> {
        self.claims().add(lease);
        Asking { leases: self, id: lease.id.clone() }
    }

    /// A lease was granted, or found at the start.
    pub(super) fn granted(&self, lease: &Lease) {
        let mut claims = self.claims();
        let claim = claims.add(lease);
        claim.granted = true;
        if lease.receipt.is_some() && lease.suspended.is_none() {
            claim.handed_over = Some(Instant::now());
        }
    }

    /// Its holder has the VM: it was proven, or goes on after a preemption.
    pub(super) fn resumed(&self, id: &LeaseId) {
        if let Some(claim) = self.claims().all.get_mut(id) {
            claim.handed_over = Some(Instant::now());
        }
        self.changed.notify_one();
    }

    /// A lease ended.
    pub(super) fn ended(&self, id: &LeaseId) {
        self.claims().remove(id);
        self.changed.notify_one();
    }

    /// Whether a live lease is held under this name.
    pub(super) fn is_holder(&self, id: &LeaseId, name: &str) -> bool {
        self.claims().all.get(id).is_some_and(|claim| claim.granted && claim.holder == name)
    }

    /// Priority of a lease whose holder has the VM, and for how long.
    pub(super) fn handed_over(&self, id: &LeaseId) -> Option<(i32, Duration)> {
        let claims = self.claims();
        let claim = claims.all.get(id)?;
        Some((claim.priority, claim.handed_over?.elapsed()))
    }

    /// What a preempted lease waits for.
    pub(super) fn wish(&self, id: &LeaseId) -> Option<Wish> {
        let claims = self.claims();
        let claim = claims.all.get(id)?;
        Some(Wish { caller: claim.holder.clone(), priority: claim.priority, needs: Needs::default() })
    }

    /// A lease has another end.
    pub(super) fn moved(&self) {
        self.changed.notify_one();
    }

    /// Leases that somebody holds or hopes for.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<LeaseId> {
        self.claims().all.keys().cloned().collect()
    }

    /// Waits until nothing is under way.
    pub(super) async fn idle(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// Waits until no other call with this request id is under way.
    pub(super) async fn lock(&self, request: Option<&RequestId>) -> Option<OwnedMutexGuard<()>> {
        let id = request?.id;
        let lock = {
            let mut all = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, lock| lock.strong_count() > 0);
            let lock = all.get(&id).and_then(Weak::upgrade).unwrap_or_default();
            all.insert(id, Arc::downgrade(&lock));
            lock
        };
        Some(lock.lock_owned().await)
    }
}

/// Gives a lease back unless its caller got it: also when the caller goes away in the middle.
pub(super) struct Unanswered {
    shared: Arc<Shared>,
    /// What was asked for, of the VM that was asked last.
    asked: Option<(LeaseId, Handle)>,
    request: Option<RequestId>,
    /// A repeat of the request waits for this, and so does not find a lease that is about to be given back.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Unanswered {
    pub(super) fn new(
        shared: &Arc<Shared>,
        request: Option<&RequestId>,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Self {
        Self { shared: Arc::clone(shared), asked: None, request: request.cloned(), turn }
    }

    /// A VM is asked for this lease now. To be called before it is asked: the VM's actor grants the lease even if its
    /// caller has gone when the turn comes.
    pub(super) fn asks(&mut self, lease: &LeaseId, vm: &Handle) {
        self.asked = Some((lease.clone(), vm.clone()));
    }

    /// The caller has the lease, or there is none.
    pub(super) fn settled(&mut self) {
        self.asked = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some((lease, vm)) = self.asked.take() else { return };
        let (shared, request, turn) = (Arc::clone(&self.shared), self.request.take(), self.turn.take());
        self.shared.leases.under_way.spawn(async move {
            let _turn = turn;
            // The grant may still stand in the actor's queue; behind this it has been made or never will be. A VM that
            // is gone grants nothing.
            let _ = vm.call(|_| Box::pin(async { Ok(()) })).await;
            if let Some(request) = request
                && let Err(error) = shared.store.forget_request(request.id).await
            {
                tracing::warn!(%lease, error = &error as &dyn std::error::Error, "request not forgotten");
            }
            let why = "its caller went away before it was ready";
            match end(&shared, &lease, EndedAs::Released, why, Some(Pending::Reset)).await {
                Ok(_) => {}
                // It was never granted.
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => {
                    tracing::warn!(%lease, error = &error as &dyn std::error::Error, "lease not given back");
                }
            }
        });
    }
}

/// Ends a lease and says what becomes of its VM. Ended already, or renewed just before it expired: gives it as it is.
///
/// The actor of the lease's VM does it, so that a lease can't end while the actor is granting it.
pub(super) async fn end(
    shared: &Arc<Shared>,
    id: &LeaseId,
    ended: EndedAs,
    why: &str,
    pending: Option<Pending>,
) -> Result<Lease> {
    loop {
        let Some(mut lease) = shared.store.lease(id).await? else {
            return Err(Error::not_found("lease", id));
        };
        if lease.ended.is_some() {
            return Ok(lease);
        }
        if let Ok(handle) = shared.registry.get(&lease.vm) {
            let (id, why) = (id.clone(), why.to_owned());
            let done = handle
                .call(move |vm| Box::pin(async move { vm.end_lease(&id, ended, &why, pending).await }))
                .await;
            match done {
                Ok(lease) if lease.ended.is_some() || lease.vm == handle.id => return Ok(lease),
                // It moved to another VM meanwhile.
                Ok(_) => continue,
                // The VM has gone meanwhile; only the lease is left to end.
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        lease.ended = Some(ended);
        why.clone_into(&mut lease.end_reason);
        lease.ended_at = Some(Timestamp::now());
        let event = Event::of_lease(EventKind::LeaseEnded, &lease, &asker());
        match shared.store.end_lease(None, &lease, vec![event]).await {
            Ok(()) => {
                shared.leases.ended(id);
                return Ok(lease);
            }
            Err(StoreError::Changed(_)) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What becomes of a VM that is given back: as asked, else as its pool says.
pub(super) async fn fate(shared: &Shared, lease: &Lease, asked: Option<ReleasePolicy>) -> Result<Pending> {
    let pool = shared.store.pool(&lease.pool).await?;
    let Ok(handle) = shared.registry.get(&lease.vm) else { return Ok(Pending::Reset) };
    Ok(handle.look(|row| {
        let age = Timestamp::now().duration_since(row.created).unsigned_abs();
        after_lease(pool.as_ref(), row, age, asked)
    }))
}

/// A VM that was granted, and what it was granted for.
pub(super) struct Grant<'a> {
    pub(super) lease: &'a LeaseId,
    pub(super) pool: &'a PoolId,
    pub(super) needs: &'a Needs,
    pub(super) handle: &'a Handle,
    pub(super) at: Instant,
    pub(super) waited: Duration,
    pub(super) replaced: u32,
}

/// Brings a granted VM to running and proves that its desktop is ready.
///
/// A guest that does not answer in the first of two times is given up at once where another VM is ready. Otherwise it goes
/// back to its clean state and gets a second, longer time; then its disk is booted, where that can be; then it has failed.
pub(super) async fn make_ready(shared: &Shared, grant: &Grant<'_>) -> Result<Receipt> {
    let settings = &shared.settings;
    let mut error = match first_proof(grant, settings.answer_timeout).await {
        Ok((checks, epoch)) => return Ok(receipt(grant, checks, epoch)),
        Err(error) => error,
    };
    for (boot, limit) in [(false, settings.agent_timeout), (true, settings.boot_timeout)] {
        // A second one in a row whose memory is of no use: the others' are their template's too, and this one is made good.
        let of_memory = matches!(error.reason, Reason::StateDamaged | Reason::StateIncompatible);
        let other = shared.pools.outlook(grant.pool, grant.needs).0 && !(of_memory && grant.replaced > 0);
        let held = grant.handle.look(|row| row.lease.as_ref() == Some(grant.lease) && !row.suspended);
        if other || !held || shared.stopping.is_cancelled() {
            return Err(error);
        }
        let mut why = if boot {
            format!("booted, since after a reset {error}")
        } else {
            format!("reset, since after its resume {error}")
        };
        tracing::warn!(vm = %grant.handle.id, lease = %grant.lease, why, "falling back");
        let (id, cause) = (grant.lease.clone(), why.clone());
        let fallen =
            grant.handle.call(move |vm| Box::pin(async move { vm.fall_back(&id, boot, &cause).await })).await;
        let proven = match fallen {
            // A clean memory that is of no use makes a reset a boot, which takes its time.
            Ok((VmState::Booting, cause)) => {
                why = cause;
                first_proof(grant, settings.boot_timeout).await
            }
            Ok(_) => first_proof(grant, limit).await,
            Err(error) => Err(error),
        };
        match proven {
            Ok((mut checks, epoch)) => {
                if let Some(running) = checks.first_mut() {
                    running.detail = format!("{}; {why}", running.detail);
                }
                return Ok(receipt(grant, checks, epoch));
            }
            Err(again) => error = again,
        }
    }
    Err(error)
}

async fn first_proof(grant: &Grant<'_>, limit: Duration) -> Result<(Vec<Check>, u64)> {
    if grant.handle.look(|row| row.state != VmState::Booting) {
        grant.handle.call(|vm| Box::pin(vm.resume_leased())).await?;
    }
    let deadline = Instant::now() + limit;
    // The agent of a VM that boots answers long before its desktop does, and its row says that it runs when both do.
    let mut rows = grant.handle.rows();
    let _ = timeout_at(deadline, rows.wait_for(|row| row.state != VmState::Booting)).await;
    prove(grant.handle, grant.at, deadline).await
}

fn receipt(grant: &Grant<'_>, checks: Vec<Check>, epoch: u64) -> Receipt {
    let (waited, replaced) = (grant.waited, grant.replaced);
    Receipt { checks, total: grant.at.elapsed(), epoch, waited, replaced, age: Duration::ZERO }
}

/// Proves that the desktop of a running VM is ready: each check, its time counted from `began`, and the session's number.
pub(super) async fn prove(handle: &Handle, began: Instant, deadline: Instant) -> Result<(Vec<Check>, u64)> {
    let mut checks = Vec::with_capacity(6);
    let mut passed = |kind, detail: String| {
        checks.push(Check { kind, at: began.elapsed(), detail });
    };
    let pid = handle.run().map(|run| format!("process {}", run.pid)).unwrap_or_default();
    passed(CheckKind::Running, pid);

    let session = session(handle, deadline).await?;
    let attached = session.attached();
    passed(CheckKind::AgentSession, format!("{} {}", attached.os, attached.agent_version).trim().to_owned());
    passed(CheckKind::Clock, format!("off by {} us before it was set", attached.clock_skew_micros));
    let mut identity = if attached.warnings.is_empty() {
        format!("hostname {}", handle.id)
    } else {
        attached.warnings.join("; ")
    };
    let address = first_address(&attached.ip_addresses);
    if !address.is_empty() {
        identity = format!("{identity}, address {address}");
    }
    passed(CheckKind::Identity, identity);

    // Both were begun with the session, if it is a new one; the guest has more than one CPU.
    let glance = session.take_glance();
    let (probe, frame) = match glance {
        Some(mut glance) => {
            let frame = handle.hub.seed(&session, finished(&mut glance.frame, deadline));
            tokio::join!(finished(&mut glance.probe, deadline), frame)
        }
        None => (Err(GuestError::NotConnected), Err(GuestError::NotConnected)),
    };
    let probe = match probe {
        Ok(probe) => probe,
        Err(_) => session.probe(deadline).await?,
    };
    passed(CheckKind::Input, format!("round trip {} us", probe.input_round_trip.as_micros()));
    let size = match frame {
        Ok(size) => size,
        Err(_) => handle.hub.refresh(deadline).await.map_err(Error::from)?,
    };
    passed(CheckKind::Frame, format!("{}x{}", size.width, size.height));
    Ok((checks, session.epoch()))
}

async fn finished<T>(
    call: &mut JoinHandle<std::result::Result<T, GuestError>>,
    deadline: Instant,
) -> std::result::Result<T, GuestError> {
    match timeout_at(deadline, call).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(GuestError::Aborted(error.to_string())),
        Err(_) => Err(GuestError::Timeout("show its desktop")),
    }
}

/// Waits for a session; a VM that dies meanwhile is an answer too.
async fn session(handle: &Handle, deadline: Instant) -> Result<Session> {
    let mut sessions = handle.link.session();
    let mut rows = handle.rows();
    let agent = async {
        match sessions.wait_for(Option::is_some).await {
            Ok(session) => session.clone(),
            Err(_) => None,
        }
    };
    let died = async {
        // The row's sender goes with the actor, which is a death too.
        let _ = rows.wait_for(|row| !matches!(row.state, VmState::Running | VmState::Booting)).await;
    };
    let waited = timeout_at(deadline, async {
        tokio::select! {
            session = agent => session,
            () = died => None,
        }
    });
    match waited.await {
        Ok(Some(session)) => Ok(session),
        Ok(None) => Err(Error::new(Reason::HypervisorFailed, format!("vm {} died", handle.id))),
        Err(_) => Err(Error::new(
            Reason::AgentNotConnected,
            format!("the agent of vm {} did not answer in time", handle.id),
        )
        .with("vm", &handle.id)),
    }
}

/// Ends leases when their time is over, and prunes what was only kept for a while.
pub(super) async fn expire(shared: Arc<Shared>) {
    let mut prune_at = Instant::now();
    // The actor of one VM may be busy for minutes, and the others' time is over too.
    let ending: Arc<Mutex<HashSet<LeaseId>>> = Arc::default();
    let under_way = |ending: &Mutex<HashSet<LeaseId>>, id: &LeaseId, begin: bool| {
        let mut all = ending.lock().unwrap_or_else(PoisonError::into_inner);
        if begin { all.insert(id.clone()) } else { all.remove(id) }
    };
    while !shared.stopping.is_cancelled() {
        if Instant::now() >= prune_at {
            prune_at = Instant::now() + Duration::from_secs(3600);
            if let Err(error) = shared.store.prune(Timestamp::now() - shared.settings.keep_ended).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "store not pruned");
            }
        }
        let wait = match shared.store.expired_leases(Timestamp::now()).await {
            Ok((due, next)) => {
                for lease in due.into_iter().filter(|lease| under_way(&ending, &lease.id, true)) {
                    let (shared, ending) = (Arc::clone(&shared), Arc::clone(&ending));
                    shared.leases.under_way.clone().spawn(async move {
                        let why = format!("not renewed within {} s", lease.ttl.as_secs());
                        let pending = match fate(&shared, &lease, None).await {
                            // Nobody would look for what an absent holder left.
                            Ok(Pending::Save) | Err(_) => Pending::Reset,
                            Ok(pending) => pending,
                        };
                        let done = end(&shared, &lease.id, EndedAs::Expired, &why, Some(pending)).await;
                        if let Err(error) = done {
                            let error = &error as &dyn std::error::Error;
                            tracing::warn!(lease = %lease.id, error, "expired lease not ended");
                        }
                        under_way(&ending, &lease.id, false);
                    });
                }
                next.map_or(LOOK_EVERY, |next| {
                    let left = next.duration_since(Timestamp::now());
                    if left.is_negative() { Duration::ZERO } else { left.unsigned_abs() }
                })
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "leases not looked at");
                Duration::from_secs(5)
            }
        };
        tokio::select! {
            () = shared.stopping.cancelled() => break,
            _ = timeout(wait.min(LOOK_EVERY), shared.leases.changed.notified()) => {}
        }
    }
}
