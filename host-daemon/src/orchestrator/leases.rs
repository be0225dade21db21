//! Leases: grant, proof of readiness, expiry.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Shared;
use super::actor::Handle;
use super::asked::asker;
use crate::guest::{GuestError, Session};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::LeaseId;
use crate::model::lease::{Check, CheckKind, EndedAs, Receipt};
use crate::model::query::RequestId;
use crate::model::record::{Lease, Pending};
use crate::model::vm::VmState;
use crate::store::StoreError;

/// The expiry task looks at the store at least this often: the clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What is known of leases while the daemon runs.
#[derive(Default)]
pub(super) struct Leases {
    /// A lease was made, renewed or ended: the next expiry may be another.
    changed: Notify,
    /// One lock per request id under way, so that a repeat waits for the first.
    requests: Mutex<HashMap<Uuid, Weak<tokio::sync::Mutex<()>>>>,
    /// Who holds each live lease.
    holders: Mutex<HashMap<LeaseId, String>>,
    /// Requests and clean-ups under way.
    pub(super) under_way: TaskTracker,
}

impl Leases {
    /// A lease was granted.
    pub(super) fn granted(&self, lease: &Lease) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.insert(lease.id.clone(), lease.holder.clone());
    }

    /// A lease ended.
    pub(super) fn ended(&self, id: &LeaseId) {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.changed.notify_one();
    }

    /// Whether a live lease is held under this name.
    pub(super) fn is_holder(&self, id: &LeaseId, name: &str) -> bool {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.get(id).is_some_and(|holder| holder == name)
    }

    /// A lease has another end.
    pub(super) fn moved(&self) {
        self.changed.notify_one();
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

/// Brings a granted VM to running and proves that its desktop is ready.
pub(super) async fn make_ready(
    shared: &Shared,
    handle: &Handle,
    granted: Instant,
    waited: Duration,
    replaced: u32,
) -> Result<Receipt> {
    let mut checks = Vec::with_capacity(6);
    let mut passed = |kind, detail: String| {
        checks.push(Check { kind, at: granted.elapsed(), detail });
    };
    handle.call(|vm| Box::pin(vm.resume_leased())).await?;
    let pid = handle.run().map(|run| format!("process {}", run.pid)).unwrap_or_default();
    passed(CheckKind::Running, pid);

    let deadline = Instant::now() + shared.settings.agent_timeout;
    let session = session(handle, deadline).await?;
    let attached = session.attached();
    passed(CheckKind::AgentSession, format!("{} {}", attached.os, attached.agent_version).trim().to_owned());
    passed(CheckKind::Clock, format!("off by {} us before it was set", attached.clock_skew_micros));
    let identity = if attached.warnings.is_empty() {
        format!("hostname {}", handle.id)
    } else {
        attached.warnings.join("; ")
    };
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
    Ok(Receipt { checks, total: granted.elapsed(), epoch: session.epoch(), waited, replaced })
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
        let _ = rows.wait_for(|row| row.state != VmState::Running).await;
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
                        let done =
                            end(&shared, &lease.id, EndedAs::Expired, &why, Some(Pending::Reset)).await;
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
