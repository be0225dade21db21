//! Agents: who gets them, who watches over them, and what becomes of their VMs.
//!
//! ```text
//!  submit ─► store ─┬─► dispatch ─► guest (a program in the VM) ──┐
//!                   └─► ClaimAgent ─► worker ─ reports, completes ─┼─► store ─► give back: lease ended, VM reset
//!                              supervise (silence, time, VM lost) ─┘
//! ```
//!
//! Every change goes through `change`: read, a transition of `model::agent`, write if nobody else wrote meanwhile. The
//! claim is written before a VM is asked for, under a request id that follows from the claim, and is taken out only once
//! the lease has ended; so a daemon that dies anywhere leaves rows from which `recover` finds every lease.

mod calls;
mod choice;
mod guest;
pub mod request;
mod shots;
mod supervise;
mod sweep;
mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::asked::asker;
use super::pools::Ticket;
use super::request::Stage;
use super::view::Granted;
use super::{Orchestrator, Shared, leases};
use crate::model::agent::{Agent, Claim, LogEntry, LogSource, Refused, Setback};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::Event;
use crate::model::ids::{AgentId, LeaseId, PoolId, VmId};
use crate::model::lease::EndedAs;
use crate::model::query::RequestId;
use crate::model::queue::Needs;
use crate::model::record::Pending;
use crate::store::StoreError;
use request::GuestWorkflow;

pub(super) use guest::dispatch;
pub(super) use sweep::{recover, sweep};

/// Settings of agents.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Where their pictures are kept.
    pub dir: PathBuf,
    /// How long a claim lives without a report, where the worker does not say.
    pub claim_ttl: Duration,
    /// How long ended agents are kept.
    pub keep_ended: Duration,
    /// How long their pictures are kept.
    pub keep_screenshots: Duration,
    /// Programs of agents that run, or wait for a VM, at the same time in one pool. More would only wait in its queue,
    /// where priorities no longer count.
    pub per_pool: usize,
    /// Workflows that run in guests, by name.
    pub workflows: std::collections::BTreeMap<String, GuestWorkflow>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("agents"),
            claim_ttl: Duration::from_secs(60),
            keep_ended: Duration::from_secs(7 * 24 * 3600),
            keep_screenshots: Duration::from_secs(7 * 24 * 3600),
            per_pool: 32,
            workflows: std::collections::BTreeMap::new(),
        }
    }
}

/// A claim that somebody here works on.
struct Active {
    epoch: u64,
    vm: Option<VmId>,
    /// Counts changes of the agent's row.
    poke: watch::Sender<u64>,
}

/// Claims that somebody here works on, by agent and by VM.
#[derive(Default)]
struct AllActive {
    claims: HashMap<AgentId, Active>,
    on: HashMap<VmId, AgentId>,
}

impl AllActive {
    fn remove(&mut self, id: &AgentId) {
        let vm = self.claims.remove(id).and_then(|active| active.vm);
        // The VM may be another agent's by now.
        if let Some(vm) = vm.filter(|vm| self.on.get(vm) == Some(id)) {
            self.on.remove(&vm);
        }
    }
}

/// Counts moments at which somebody who waits should look again, by the workflow that they wait for, in one pool or in any.
type Waiting = HashMap<(String, Option<PoolId>), watch::Sender<u64>>;

/// What is known of agents while the daemon runs.
#[derive(Default)]
pub(super) struct Agents {
    /// Counts moments at which the dispatcher should look again.
    free: watch::Sender<u64>,
    waiting: Mutex<Waiting>,
    /// Places in queues that are held for agents without a worker.
    held: Mutex<HashMap<AgentId, choice::Hold>>,
    /// Held by the one worker who is about to leave a queue for another pool's VM, so that not all who wait run for it.
    leaving: Arc<tokio::sync::Mutex<()>>,
    /// Counts changes of any agent.
    changes: watch::Sender<u64>,
    active: Mutex<AllActive>,
    /// Pictures are kept one after another: their names are numbers. They are rare.
    keeping: tokio::sync::Mutex<()>,
}

impl Agents {
    fn active(&self) -> MutexGuard<'_, AllActive> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent that runs on a VM.
    pub(super) fn on(&self, vm: &VmId) -> Option<AgentId> {
        self.active().on.get(vm).cloned()
    }

    fn is_active(&self, id: &AgentId, epoch: u64) -> bool {
        self.active().claims.get(id).is_some_and(|active| active.epoch == epoch)
    }

    /// Changes of one agent's row, as long as its claim is worked on.
    fn pokes(&self, id: &AgentId) -> Option<watch::Receiver<u64>> {
        self.active().claims.get(id).map(|active| active.poke.subscribe())
    }

    fn has_vm(&self, id: &AgentId, vm: &VmId) {
        let mut all = self.active();
        if let Some(active) = all.claims.get_mut(id) {
            active.vm = Some(vm.clone());
            all.on.insert(vm.clone(), id.clone());
        }
    }

    /// The dispatcher should look again.
    fn look_again(&self) {
        self.free.send_modify(|count| *count += 1);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever there may be an agent for somebody who waits for one of this workflow, in this pool or in any.
    pub(super) fn wait_for(&self, workflow: &str, pool: Option<&PoolId>) -> watch::Receiver<u64> {
        let key = (workflow.to_owned(), pool.cloned());
        let mut waiting = self.waiting();
        // Nobody waits for these any more.
        waiting.retain(|_, count| count.receiver_count() > 0);
        waiting.entry(key).or_default().subscribe()
    }
}

fn is_free(agent: &Agent) -> bool {
    agent.claim.is_none() && !agent.status.is_final()
}

/// What an agent's change means to others.
struct News {
    id: AgentId,
    workflow: String,
    pool: PoolId,
    needs: Needs,
    /// It may be taken now, or when its pause is over.
    free: bool,
}

impl News {
    fn of(agent: &Agent) -> Self {
        Self {
            id: agent.id.clone(),
            workflow: agent.spec.workflow.clone(),
            pool: agent.spec.pool.clone(),
            needs: needs(agent),
            free: is_free(agent),
        }
    }

    /// Wakes whom it concerns.
    fn tell(&self, shared: &Shared) {
        let agents = &shared.agents;
        agents.changes.send_modify(|count| *count += 1);
        if let Some(active) = agents.active().claims.get(&self.id) {
            active.poke.send_modify(|count| *count += 1);
        }
        if !self.free {
            agents.hold_no_more(&self.id);
            return;
        }
        agents.look_again();
        {
            let waiting = agents.waiting();
            for pool in [None, Some(self.pool.clone())] {
                if let Some(count) = waiting.get(&(self.workflow.clone(), pool)) {
                    count.send_modify(|count| *count += 1);
                }
            }
        }
        if choice::can_have_one(shared, &self.id, &self.pool, &self.needs) {
            // For those who wait for a VM of another pool.
            shared.pools.chance();
        }
    }
}

fn needs(agent: &Agent) -> Needs {
    Needs { gpu: agent.spec.requires_gpu, template: None }
}

/// Marks a claim as worked on for as long as it lives.
struct Busy {
    shared: Arc<Shared>,
    id: AgentId,
    epoch: u64,
}

impl Busy {
    fn new(shared: &Arc<Shared>, agent: &Agent) -> Self {
        let active = Active { epoch: agent.epoch, vm: None, poke: watch::Sender::new(0) };
        {
            let mut all = shared.agents.active();
            // The claim before it may not be cleared away yet.
            all.remove(&agent.id);
            all.claims.insert(agent.id.clone(), active);
        }
        Self { shared: Arc::clone(shared), id: agent.id.clone(), epoch: agent.epoch }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut active = self.shared.agents.active();
        // The next claim may have begun before this one's end was cleared away.
        if active.claims.get(&self.id).is_some_and(|active| active.epoch == self.epoch) {
            active.remove(&self.id);
        }
        drop(active);
        self.shared.agents.look_again();
    }
}

/// What a change writes into the log.
#[derive(Default)]
struct Log(Vec<(LogSource, String)>);

impl Log {
    fn daemon(&mut self, text: impl Into<String>) {
        self.0.push((LogSource::Daemon, text.into()));
    }

    fn entries(self, agent: &Agent, now: Timestamp) -> Vec<LogEntry> {
        let entry =
            |(source, text)| LogEntry { sequence: 0, at: now, source, epoch: agent.epoch, text: clip(text) };
        self.0.into_iter().map(entry).collect()
    }
}

/// A log line's longest, in bytes.
const LOG_TEXT: usize = 4096;

fn clip(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LOG_TEXT));
    text
}

/// Tells of a change though whoever made it has gone: its write may be queued, and is then done.
struct Told<'a> {
    shared: &'a Arc<Shared>,
    /// None: there is nothing to tell.
    news: Option<News>,
}

impl<'a> Told<'a> {
    fn new(shared: &'a Arc<Shared>, agent: &Agent) -> Self {
        Self { shared, news: Some(News::of(agent)) }
    }

    /// Gives what is to be told, by the caller now.
    fn settled(&mut self) -> Option<News> {
        self.news.take()
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let Some(news) = self.news.take() else { return };
        let shared = Arc::clone(self.shared);
        self.shared.leases.under_way.spawn(async move {
            // Behind this the row has changed or never will. To look in vain does no harm.
            if let Err(error) = shared.store.caught_up().await {
                tracing::warn!(agent = %news.id, error = &error as &dyn std::error::Error, "change not waited for");
            }
            news.tell(&shared);
        });
    }
}

/// Changes an agent, however many others do so too. A change that leaves all as it was writes nothing.
async fn change(
    shared: &Arc<Shared>,
    id: &AgentId,
    request: Option<&RequestId>,
    mut change: impl FnMut(&mut Agent, &mut Log, Timestamp) -> Result<()>,
) -> Result<Agent> {
    loop {
        let before = stored(shared, id).await?;
        // As the store keeps it, so that a repeat gets the same answer.
        let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or_default();
        let (mut agent, mut log) = (before.clone(), Log::default());
        change(&mut agent, &mut log, now)?;
        if agent == before && log.0.is_empty() {
            return Ok(agent);
        }
        (agent.updated, agent.version) = (now, before.version + 1);
        if agent.status != before.status {
            let reason = if agent.reason.is_empty() { String::new() } else { format!(": {}", agent.reason) };
            log.daemon(format!("{}{reason}", agent.status.as_str()));
        }
        let entries = log.entries(&agent, now);
        let event = Event::agent_changed(&before, &agent, &asker());
        let mut told = Told::new(shared, &agent);
        let written = shared.store.update_agent(&agent, entries, request, event).await;
        let news = told.settled();
        match written {
            Ok(()) => {
                if let Some(news) = news {
                    news.tell(shared);
                }
                return Ok(agent);
            }
            Err(StoreError::Changed(_)) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn stored(shared: &Shared, id: &AgentId) -> Result<Agent> {
    shared.store.agent(id).await?.ok_or_else(|| Error::not_found("agent", id))
}

/// Why a transition was refused, for those who asked.
fn refused(agent: &Agent, epoch: u64, refused: Refused) -> Error {
    let id = &agent.id;
    let status = agent.status.as_str();
    match refused {
        Refused::Ended => {
            Error::new(Reason::AgentEnded, format!("agent {id} has ended ({status}): {}", agent.reason))
                .with("agent", id)
                .with("status", status)
        }
        Refused::ClaimLost | Refused::NotFree => Error::new(
            Reason::AgentClaimLost,
            format!("claim {epoch} on agent {id} is over; it is {status}, its claims are at {}", agent.epoch),
        )
        .with("agent", id)
        .with("status", status)
        .with("epoch", epoch)
        .with("present_epoch", agent.epoch),
    }
}

/// Ends a claim without a result, unless it has ended already.
async fn set_back(shared: &Arc<Shared>, id: &AgentId, epoch: u64, setback: Setback, why: &str) {
    let done = change(shared, id, None, |agent, log, now| {
        if agent.set_back(epoch, setback, why, now).is_ok() {
            log.daemon(format!("claim {epoch} is over: {why}"));
        }
        Ok(())
    });
    if let Err(error) = done.await {
        tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "not set back");
    }
}

/// Ends the lease of a claim that is over, and then the claim. What fails here is tried again by the sweep.
async fn give_back(shared: &Arc<Shared>, id: &AgentId, epoch: u64) {
    let work = async {
        let agent = stored(shared, id).await?;
        let Some(claim) = agent.claim.as_ref().filter(|_| agent.epoch == epoch) else { return Ok(()) };
        if let Some(lease) = lease_of(shared, &agent, claim).await? {
            let why = format!("agent {id} is {}", agent.status.as_str());
            match leases::end(shared, &lease, EndedAs::Released, &why, Some(Pending::Reset)).await {
                Err(error) if error.reason != Reason::NotFound => return Err(error),
                _ => {}
            }
        }
        change(shared, id, None, |agent, _, _| {
            agent.given_back(epoch);
            Ok(())
        })
        .await
        .map(drop)
    };
    match work.await {
        Err(error) if error.reason != Reason::NotFound => {
            tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "its vm is not given back yet");
        }
        _ => {}
    }
}

/// The lease of a claim: as it was noted, else as it was granted without a chance to note it.
async fn lease_of(shared: &Shared, agent: &Agent, claim: &Claim) -> Result<Option<LeaseId>> {
    if claim.lease.is_some() {
        return Ok(claim.lease.clone());
    }
    let granted = shared.store.answered(agent.lease_request()).await?;
    Ok(granted.and_then(|answer| LeaseId::new(answer.resource).ok()))
}

/// Gets the VM of a claim.
async fn acquire(
    o: &Orchestrator,
    agent: &Agent,
    holder: &str,
    wait: Duration,
    stage: Option<watch::Sender<Stage>>,
    kept: Option<Ticket>,
) -> Result<Granted> {
    let caller = super::request::Caller { name: holder.to_owned(), admin: false };
    let request = RequestId { id: agent.lease_request(), fingerprint: format!("agent {}", agent.id) };
    // No longer than it may wait for a VM: whoever has it keeps the sweep from ending it.
    let left = agent.queue_end().map(|end| end.duration_since(Timestamp::now()).max(SignedDuration::ZERO));
    let wait = left.map_or(wait, |left| wait.min(left.unsigned_abs()));
    let wanted = super::request::Acquire {
        pool: Some(agent.spec.pool.clone()),
        priority: agent.spec.priority,
        needs: needs(agent),
        labels: std::collections::BTreeMap::new(),
        ttl: None,
        wait,
        purpose: format!("agent {}", agent.id),
        request: Some(request),
    };
    o.acquire_from(&caller, wanted, stage, kept).await
}

/// What a failed acquire means for an agent; none: the daemon stops, and the next one goes on.
fn setback_of(error: &Error) -> Option<Setback> {
    match error.reason {
        Reason::ShuttingDown => None,
        Reason::PoolExhausted => Some(Setback::Interrupted),
        // Its owner has enough others at work.
        Reason::QuotaExceeded => Some(Setback::Postponed(error.retry_after.unwrap_or(leases::ASK_AGAIN))),
        Reason::NotFound | Reason::InvalidField => Some(Setback::Final),
        _ => Some(Setback::Failed),
    }
}
