//! What workers ask: the next agent, that it lives on, that it is done.

use std::sync::Arc;

use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::choice::{Next, choose, elsewhere, hold};
use super::request::{ClaimAgent, Claimed, CompleteAgent, ReportAgent, Upload};
use super::shots::{self, Picture};
use super::{Busy, acquire, change, give_back, refused, set_back, setback_of, stored, supervise};
use crate::model::agent::{Agent, AgentStatus, Claim, LogSource, Refused, Runner, Setback};
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::{AgentId, PoolId};
use crate::model::query::RequestId;
use crate::orchestrator::request::{Caller, Stage};
use crate::orchestrator::{Orchestrator, Shared};

/// What one try to get an agent is about.
struct Ask<'a> {
    caller: &'a Caller,
    wanted: &'a ClaimAgent,
    /// Pools in which this worker may have no further VM.
    full: &'a [PoolId],
    deadline: Instant,
}

/// What came of it.
enum Taken {
    Claimed(Box<Claimed>),
    /// It failed, somebody else was faster, or the time is over.
    NotNow,
    /// Another pool has a VM, and this worker the right to go for it.
    LeftFor(OwnedMutexGuard<()>),
    /// The worker may have no further VM of this pool.
    Full(Error),
}

impl Orchestrator {
    /// Takes the next agent of a workflow, with a VM that is ready; none when there is none in time. Dropping the future
    /// gives the agent back.
    ///
    /// # Errors
    /// [`Reason::InvalidField`] for a workflow of the daemon's own; [`Reason::QuotaExceeded`] when the worker may have no
    /// further VM; [`Reason::AgentClaimLost`] for a replay whose claim is over; [`Reason::ShuttingDown`].
    pub async fn claim_agent(&self, caller: &Caller, wanted: ClaimAgent) -> Result<Option<Claimed>> {
        let shared = self.open()?;
        if shared.settings.agents.workflows.contains_key(&wanted.workflow) {
            let what = format!("{:?} is a program in guests, the daemon runs it itself", wanted.workflow);
            return Err(Error::field("workflow", what));
        }
        let _under_way = shared.leases.under_way.token();
        let turn = shared.leases.lock(wanted.request.as_ref()).await;
        if let Some(resource) = crate::orchestrator::calls::answered(shared, wanted.request.as_ref()).await? {
            return self.claimed_before(caller, &resource).await.map(Some);
        }
        let mut undo = Undo::new(shared, wanted.request.as_ref(), turn);
        let deadline = Instant::now() + wanted.wait;
        let mut free = shared.agents.wait_for(&wanted.workflow, wanted.pool.as_ref());
        // Pools in which this worker may have no further VM.
        let mut full = Vec::new();
        // Kept from when a queue is left until a VM of another pool was asked for.
        let mut leaving = None;
        loop {
            free.borrow_and_update();
            let now = jiff::Timestamp::now();
            let (next, pause_over) = choose(shared, caller, &wanted, &full, now).await?;
            if let Some(Next { agent, first }) = next {
                let pool = agent.spec.pool.clone();
                let ask = Ask { caller, wanted: &wanted, full: &full, deadline };
                match self.take(&ask, agent, &mut undo, leaving.take()).await? {
                    Taken::Claimed(claimed) => return Ok(Some(*claimed)),
                    // It failed, or somebody else was faster: there may be another one.
                    Taken::NotNow => {}
                    Taken::LeftFor(turn) => leaving = Some(turn),
                    // Another worker may take the agent at once, and this one gets no other either, unless this was but the
                    // second choice.
                    Taken::Full(error) if first => return Err(error),
                    Taken::Full(_) => full.push(pool),
                }
                if Instant::now() < deadline { continue } else { return Ok(None) }
            }
            let pause_over = pause_over.map(|at| Instant::now() + at.duration_since(now).unsigned_abs());
            let until = pause_over.map_or(deadline, |at| deadline.min(at));
            leaving = None;
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::select! {
                () = shared.stopping.cancelled() => {
                    return Err(Error::new(Reason::ShuttingDown, "the daemon is stopping"));
                }
                _ = free.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Tries to get one agent and its VM. `leaving`: the right to leave a queue for that VM, given up when it was asked for.
    async fn take(
        &self,
        ask: &Ask<'_>,
        agent: Agent,
        undo: &mut Undo,
        mut leaving: Option<OwnedMutexGuard<()>>,
    ) -> Result<Taken> {
        let (shared, Ask { caller, wanted, .. }) = (&self.0, ask);
        let id = agent.id;
        let kept = shared.agents.take_kept(&id);
        let ttl = wanted.ttl.unwrap_or(shared.settings.agents.claim_ttl);
        let claim = Claim {
            id: Uuid::new_v4(),
            runner: Runner::External,
            holder: caller.name.clone(),
            worker: wanted.worker.clone(),
            lease: None,
            ttl,
            expires: None,
            deadline: None,
        };
        // The write may be done although this future is dropped in the middle of it.
        undo.takes(&id, claim.id);
        let mut taken = false;
        let reserved = change(shared, &id, None, |agent, _, now| {
            taken = agent.reserve(claim.clone(), now).is_ok();
            Ok(())
        })
        .await;
        let agent = match reserved {
            Ok(agent) if taken => agent,
            Err(error) if error.reason != Reason::NotFound => return Err(error),
            _ => {
                undo.settled();
                return Ok(Taken::NotNow);
            }
        };
        let (epoch, busy) = (agent.epoch, Busy::new(shared, &agent));
        let wait = ask.deadline.saturating_duration_since(Instant::now());
        let mut pokes = shared.agents.pokes(&id);
        let (tell, mut stage) = watch::channel(Stage::Asked);
        let (pool, seen) = (&agent.spec.pool, stage.clone());
        // Boxed: it is dropped before its end.
        let mut acquiring = Box::pin(acquire(self, &agent, &caller.name, wait, Some(tell), kept));
        let mut elsewhere = Box::pin(elsewhere(shared, wanted, pool, ask.full, seen));
        let granted = loop {
            tokio::select! {
                granted = &mut acquiring => break granted,
                () = ended(shared, &id, epoch, &mut pokes) => {
                    drop(acquiring);
                    give_back(shared, &id, epoch).await;
                    undo.settled();
                    return Ok(Taken::NotNow);
                }
                turn = &mut elsewhere => {
                    drop(acquiring);
                    let why = "another pool had a vm first";
                    set_back(shared, &id, epoch, Setback::Interrupted, why).await;
                    give_back(shared, &id, epoch).await;
                    undo.settled();
                    hold(shared, &agent, caller);
                    return Ok(Taken::LeftFor(turn));
                }
                // It stands in the queue, or has a VM.
                _ = stage.changed(), if leaving.is_some() => leaving = None,
            }
        };
        drop(elsewhere);
        let granted = match granted {
            Ok(granted) => granted,
            Err(error) => {
                let Some(setback) = setback_of(&error) else { return Err(error) };
                // The quota is the worker's and not the agent's.
                let quota = error.reason == Reason::QuotaExceeded;
                let setback = if quota { Setback::Interrupted } else { setback };
                set_back(shared, &id, epoch, setback, &format!("got no vm: {error}")).await;
                give_back(shared, &id, epoch).await;
                undo.settled();
                return Ok(if quota { Taken::Full(error) } else { Taken::NotNow });
            }
        };
        let (lease, vm) = (granted.lease, granted.vm);
        let mut assigned = Ok(());
        let agent = change(shared, &id, wanted.request.as_ref(), |agent, log, now| {
            assigned = agent.assign(epoch, lease.id.clone(), vm.vm.id.clone(), now);
            if assigned.is_ok() {
                log.daemon(format!("claim {epoch} of {} on vm {}", name_of(agent, caller), vm.vm.id));
            }
            Ok(())
        })
        .await?;
        if assigned.is_err() {
            give_back(shared, &id, epoch).await;
            undo.settled();
            return Ok(Taken::NotNow);
        }
        undo.settled();
        shared.agents.has_vm(&id, &vm.vm.id);
        supervise::start(self, &agent, busy);
        Ok(Taken::Claimed(Box::new(Claimed { agent, lease, vm, ttl })))
    }

    /// The answer of an earlier call with the same request id.
    async fn claimed_before(&self, caller: &Caller, resource: &str) -> Result<Claimed> {
        let unknown = || Error::new(Reason::Internal, "an answered claim can't be read");
        let (id, epoch) = resource.split_once('/').ok_or_else(unknown)?;
        let id = AgentId::new(id).map_err(|_| unknown())?;
        let epoch = epoch.parse().map_err(|_| unknown())?;
        let agent = stored(&self.0, &id).await?;
        let lost = if agent.status.is_final() { Refused::Ended } else { Refused::ClaimLost };
        let claim = agent.claim.as_ref().filter(|_| agent.epoch == epoch && !agent.status.is_final());
        let Some((claim, lease)) = claim.and_then(|claim| Some((claim, claim.lease.as_ref()?))) else {
            return Err(refused(&agent, epoch, lost));
        };
        owned(caller, &agent, claim)?;
        let (lease, ttl) = (self.lease(lease).await?, claim.ttl);
        let vm = self.vm(&lease.vm).await?;
        Ok(Claimed { lease, vm, ttl, agent })
    }

    /// Notes how far a worker is, and that it lives.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::AgentClaimLost`], [`Reason::AgentEnded`], [`Reason::AgentNotYours`],
    /// [`Reason::TooManyScreenshots`], [`Reason::InvalidField`] for what is no picture.
    pub async fn report_agent(&self, caller: &Caller, report: ReportAgent) -> Result<Agent> {
        let shared = self.open()?;
        let (id, epoch) = (&report.id, report.epoch);
        let agent = stored(shared, id).await?;
        held(caller, &agent, epoch)?;
        let pictures = self.pictures(&agent, report.uploads, report.take_screenshot, "report").await?;
        self.with_pictures(id, pictures, |agent, log, now| {
            held(caller, agent, epoch)?;
            agent.report(epoch, now).map_err(|why| refused(agent, epoch, why))?;
            agent.progress = report.progress.unwrap_or(agent.progress);
            if !report.message.is_empty() {
                agent.progress_message.clone_from(&report.message);
            }
            log.0.extend(report.log.iter().map(|line| (LogSource::Worker, line.clone())));
            Ok(())
        })
        .await
    }

    /// Ends a worker's attempt.
    ///
    /// # Errors
    /// As [`Orchestrator::report_agent`].
    pub async fn complete_agent(&self, caller: &Caller, done: CompleteAgent) -> Result<Agent> {
        let shared = self.open()?;
        let (id, epoch) = (&done.id, done.epoch);
        let agent = stored(shared, id).await?;
        let ended_by_it = matches!(agent.status, AgentStatus::Completed | AgentStatus::Failed);
        if ended_by_it && agent.epoch == epoch && agent.runner == Some(Runner::External) {
            return Ok(agent);
        }
        held(caller, &agent, epoch)?;
        let pictures = self.pictures(&agent, done.uploads, done.take_screenshot, "end").await?;
        self.with_pictures(id, pictures, |agent, _, now| {
            held(caller, agent, epoch)?;
            let result = match &done.error {
                Some(why) if done.retry => {
                    agent.report(epoch, now).and_then(|()| agent.set_back(epoch, Setback::Failed, why, now))
                }
                Some(why) => agent.complete(epoch, Err(why.clone()), done.output.clone(), now),
                None => agent.complete(epoch, Ok(()), done.output.clone(), now),
            };
            result.map_err(|why| refused(agent, epoch, why))
        })
        .await
    }

    /// Pictures that a worker sent or asked for.
    async fn pictures(
        &self,
        agent: &Agent,
        uploads: Vec<Upload>,
        of_vm: bool,
        label: &str,
    ) -> Result<Vec<Picture>> {
        let mut pictures = uploads.into_iter().map(Picture::check).collect::<Result<Vec<_>>>()?;
        shots::room(agent, pictures.len() + usize::from(of_vm))?;
        if of_vm {
            pictures.push(Picture::of_vm(self, agent, label).await?);
        }
        Ok(pictures)
    }

    /// Keeps pictures with a change of their agent: their files come first, then the row that names them.
    pub(super) async fn with_pictures(
        &self,
        id: &AgentId,
        pictures: Vec<Picture>,
        mut then: impl FnMut(&mut Agent, &mut super::Log, jiff::Timestamp) -> Result<()>,
    ) -> Result<Agent> {
        let shared = &self.0;
        if pictures.is_empty() {
            return change(shared, id, None, then).await;
        }
        let _one_by_one = shared.agents.keeping.lock().await;
        let agent = stored(shared, id).await?;
        shots::room(&agent, pictures.len())?;
        let shots = shots::keep(shared, &agent, pictures).await?;
        change(shared, id, None, |agent, log, now| {
            then(agent, log, now)?;
            agent.shots_taken += u32::try_from(shots.len()).unwrap_or(u32::MAX);
            agent.shots.extend(shots.iter().cloned());
            Ok(())
        })
        .await
    }
}

/// Completes when a claim is no longer the present one of an agent that goes on.
pub(super) async fn ended(
    shared: &Shared,
    id: &AgentId,
    epoch: u64,
    pokes: &mut Option<watch::Receiver<u64>>,
) {
    let Some(pokes) = pokes else { return };
    loop {
        pokes.borrow_and_update();
        match stored(shared, id).await {
            Ok(agent) if agent.epoch == epoch && !agent.status.is_final() => {}
            Ok(_) => return,
            Err(error) if error.reason == Reason::NotFound => return,
            Err(_) => {}
        }
        if pokes.changed().await.is_err() {
            return;
        }
    }
}

fn name_of<'a>(agent: &'a Agent, caller: &'a Caller) -> &'a str {
    if agent.worker.is_empty() { &caller.name } else { &agent.worker }
}

/// Refuses those whose claim is not the present one, and those whose claim it is not.
fn held(caller: &Caller, agent: &Agent, epoch: u64) -> Result<()> {
    if agent.status.is_final() {
        return Err(refused(agent, epoch, Refused::Ended));
    }
    match &agent.claim {
        Some(claim) if agent.epoch == epoch && claim.runner == Runner::External => {
            owned(caller, agent, claim)
        }
        _ => Err(refused(agent, epoch, Refused::ClaimLost)),
    }
}

fn owned(caller: &Caller, agent: &Agent, claim: &Claim) -> Result<()> {
    if caller.admin || caller.name == claim.holder {
        return Ok(());
    }
    Err(Error::new(Reason::AgentNotYours, format!("agent {} was claimed by somebody else", agent.id))
        .with("agent", &agent.id))
}

/// Gives an agent back unless its worker got it: also when the worker goes away in the middle.
struct Undo {
    shared: Arc<Shared>,
    /// What is being taken, and by which claim.
    taken: Option<(AgentId, Uuid)>,
    request: Option<RequestId>,
    /// A repeat of the request waits for this, and so does not get a claim that is about to be undone.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Undo {
    fn new(shared: &Arc<Shared>, request: Option<&RequestId>, turn: Option<OwnedMutexGuard<()>>) -> Self {
        Self { shared: Arc::clone(shared), taken: None, request: request.cloned(), turn }
    }

    /// This agent is taken now. To be called before the claim is written.
    fn takes(&mut self, agent: &AgentId, claim: Uuid) {
        self.taken = Some((agent.clone(), claim));
    }

    /// The worker has it, or nobody.
    fn settled(&mut self) {
        self.taken = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some((id, claim)) = self.taken.take() else { return };
        // Else the next daemon does it.
        if self.shared.stopping.is_cancelled() {
            return;
        }
        let (shared, request, turn) = (Arc::clone(&self.shared), self.request.take(), self.turn.take());
        self.shared.leases.under_way.spawn(async move {
            let _turn = turn;
            // The claim may still be on its way to the disk, and what is read below would not have it.
            if let Err(error) = shared.store.caught_up().await {
                tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "claim not waited for");
            }
            if let Some(request) = request
                && let Err(error) = shared.store.forget_request(request.id).await
            {
                tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "request not forgotten");
            }
            let mut ours = None;
            let undone = change(&shared, &id, None, |agent, _, now| {
                ours = agent.claim.as_ref().filter(|present| present.id == claim).map(|_| agent.epoch);
                if let Some(epoch) = ours {
                    let why = "its worker went away before it had it";
                    // It has ended meanwhile; then only its VM is left to give back.
                    let _ = agent.set_back(epoch, Setback::Interrupted, why, now);
                }
                Ok(())
            })
            .await;
            match (undone, ours) {
                (Ok(_), Some(epoch)) => give_back(&shared, &id, epoch).await,
                (Ok(_), None) => {}
                (Err(error), _) => {
                    tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "not taken back yet");
                }
            }
        });
    }
}
