//! Hot VMs: kept running for the next lease, and proven ready all the time.
//!
//! The pool has a warm VM brought to run ([`Actor::heat`]); a task beside the actor proves its desktop again and again and
//! keeps the latest proof at hand. A lease that comes while the proof is fresh takes it as its receipt, with its age, and
//! the whole acquire is one transaction. A hot VM that fails goes back to clean.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Actor, Handle};
use crate::model::error::Result;
use crate::model::lease::{Check, Receipt};
use crate::model::record::{Availability, Vm};
use crate::model::vm::VmState;
use crate::orchestrator::pools::{Claim, Ready};
use crate::orchestrator::{Shared, leases};

/// Age up to which a proof is good enough for a receipt.
pub(in crate::orchestrator) const FRESH: Duration = Duration::from_secs(1);
/// A desktop that answered before answers again within this time.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// Proofs of all VMs together: each costs the host and a guest about a millisecond.
const PROOFS_PER_SECOND: u32 = 200;

/// Whether and how a VM is ready for a lease. `proven`: there is a proof of its hot desktop.
pub(in crate::orchestrator) fn readiness(row: &Vm, needs_memory: bool, proven: bool) -> Option<Ready> {
    if row.availability != Availability::Idle || row.pending.is_some() {
        return None;
    }
    if row.hot {
        return (row.state == VmState::Running && proven).then_some(Ready::Hot);
    }
    let at_rest = if needs_memory { row.state == VmState::Saved } else { row.state == VmState::Running };
    (at_rest && row.clean).then_some(Ready::Warm)
}

/// What a hot desktop passed, and when.
struct Proof {
    run: u64,
    epoch: u64,
    checks: Vec<Check>,
    took: Duration,
    at: Instant,
}

/// The latest proof of a VM.
#[derive(Clone, Default)]
pub(super) struct Proofs(Arc<Mutex<Option<Proof>>>);

impl Proofs {
    pub(super) fn any(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set(&self, proof: Proof) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(proof);
    }

    /// Another run may have a proof of its own already.
    fn forget(&self, run: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|proof| proof.run == run) {
            *known = None;
        }
    }

    /// A receipt, if there is a fresh proof of this session.
    pub(super) fn receipt(&self, epoch: u64, waited: Duration, replaced: u32) -> Option<Receipt> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let proof = known.as_ref()?;
        let age = proof.at.elapsed();
        (proof.epoch == epoch && age <= FRESH).then(|| Receipt {
            checks: proof.checks.clone(),
            total: proof.took,
            epoch,
            waited,
            replaced,
            // Never zero, which would mean that it was made for this lease.
            age: age.max(Duration::from_micros(1)),
        })
    }
}

impl Actor {
    /// Brings a warm VM to run for the next lease. One that somebody took meanwhile is left alone.
    pub(in crate::orchestrator) async fn heat(&mut self) -> Result<()> {
        let open = self.row.pool.as_ref().is_some_and(|pool| self.shared.pools.is_open(pool));
        if !open || self.row.hot || readiness(&self.row, true, false) != Some(Ready::Warm) {
            return Ok(());
        }
        self.heat_clean(None).await
    }

    /// Brings a clean VM to run. The claim is given up once that is done.
    pub(super) async fn heat_clean(&mut self, _claim: Option<Claim>) -> Result<()> {
        match self.resume_hot().await {
            Ok(()) => {
                self.watch_hot();
                Ok(())
            }
            Err(error) => {
                let why = format!("it could not be made hot: {error}");
                self.shared.pools.proved(&self.row.template, Some(&why));
                if self.row.availability == Availability::Idle && self.row.state != VmState::Error {
                    self.quarantine(&why).await?;
                }
                Err(error)
            }
        }
    }

    /// Puts a hot VM back to clean and saved.
    pub(in crate::orchestrator) async fn cool(&mut self, why: &str) -> Result<()> {
        if self.row.hot && self.row.availability == Availability::Idle && self.row.pending.is_none() {
            self.reset(why).await?;
        }
        Ok(())
    }

    /// Begins to prove a hot VM's desktop.
    pub(super) fn watch_hot(&self) {
        let (Ok(handle), Some(run)) = (self.shared.registry.get(&self.row.id), self.run) else { return };
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            shared.hot.fetch_add(1, Ordering::Relaxed);
            let stop = shared.stopping.clone();
            let _ = stop.run_until_cancelled(keep_proven(&shared, &handle, run.number)).await;
            shared.hot.fetch_sub(1, Ordering::Relaxed);
            handle.proofs.forget(run.number);
        });
    }
}

/// Proves a hot desktop until it is leased, or no longer hot.
async fn keep_proven(shared: &Arc<Shared>, handle: &Handle, run: u64) {
    let kept = |row: &Vm| {
        row.hot
            && row.availability == Availability::Idle
            && row.state == VmState::Running
            && row.pending.is_none()
    };
    let ours = || handle.run().is_some_and(|now| now.number == run);
    let mut rows = handle.rows();
    let (mut known, mut failed) = (false, false);
    while handle.look(kept) && ours() {
        let began = Instant::now();
        let limit = if known { PROOF_TIMEOUT } else { shared.settings.agent_timeout };
        let proven = tokio::select! {
            // Boxed: it is under way for a millisecond, and then rests for long.
            proven = Box::pin(leases::prove(handle, began, began + limit)) => proven,
            _ = rows.wait_for(|row| !kept(row)) => break,
        };
        match proven {
            Ok((mut checks, epoch)) => {
                // They passed before any grant.
                checks.iter_mut().for_each(|check| check.at = Duration::ZERO);
                let at = Instant::now();
                handle.proofs.set(Proof { run, epoch, checks, took: at - began, at });
                failed = false;
                if known && let Some(pool) = handle.look(|row| row.pool.clone()) {
                    shared.pools.proven_again(&pool, &handle.id);
                }
                if !std::mem::replace(&mut known, true) {
                    let row = handle.row();
                    shared.pools.proved(&row.template, None);
                    shared.pools.vm_changed(&row, true);
                }
            }
            // Its session may just have been replaced, for instance after a checkpoint.
            Err(error) if known && !failed => {
                tracing::info!(vm = %handle.id, %error, "hot desktop not proven, once more");
                (failed, known) = (true, false);
                handle.proofs.forget(run);
                shared.pools.vm_changed(&handle.row(), false);
                continue;
            }
            Err(error) => {
                let why = format!("a hot desktop failed its checks: {error}");
                shared.pools.proved(&handle.look(|row| row.template.clone()), Some(&why));
                let done = handle.call(move |vm| Box::pin(async move { vm.cool(&why).await })).await;
                if let Err(error) = done {
                    tracing::warn!(vm = %handle.id, error = &error as &dyn std::error::Error, "not cooled");
                }
                break;
            }
        }
        let hot = u32::try_from(shared.hot.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let pause = shared.settings.proof_every.max(Duration::from_secs(1) * hot / PROOFS_PER_SECOND);
        let _ = timeout(pause, rows.wait_for(|row| !kept(row))).await;
    }
}
