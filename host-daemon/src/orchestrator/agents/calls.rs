//! What everybody may ask: submit, look, cancel.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::request::{GuestWorkflow, ShotImage, SubmitAgent};
use super::{News, change, refused, shots, stored};
use crate::model::agent::{Agent, AgentFilter, AgentStatus, LogEntry, LogSource};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::AgentId;
use crate::model::query::Page;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::asked::asker;
use crate::orchestrator::calls::answered;
use crate::orchestrator::request::Caller;
use crate::store::StoreError;

impl Orchestrator {
    /// A workflow that is a program in guests.
    pub fn guest_workflow(&self, name: &str) -> Option<&GuestWorkflow> {
        self.0.settings.agents.workflows.get(name)
    }

    /// Stores an agent; from then on it is served, whatever happens to the daemon.
    ///
    /// # Errors
    /// [`Reason::NotFound`] for the pool, [`Reason::AlreadyExists`], [`Reason::NotSupported`] for a GPU that the pool's VMs
    /// do not have, [`Reason::RequestIdReused`].
    pub async fn submit_agent(&self, caller: &Caller, wanted: SubmitAgent) -> Result<Agent> {
        let (this, caller) = (self.clone(), caller.clone());
        self.to_the_end(async move { this.submit_agent_now(&caller, wanted).await }).await
    }

    async fn submit_agent_now(&self, caller: &Caller, wanted: SubmitAgent) -> Result<Agent> {
        let shared = self.open()?;
        let _lock = shared.leases.lock(wanted.request.as_ref()).await;
        if let Some(id) = answered(shared, wanted.request.as_ref()).await? {
            let id = AgentId::new(id).map_err(|error| Error::field("request_id", error.to_string()))?;
            return self.agent(&id).await;
        }
        let mut spec = wanted.spec;
        let pool = shared.store.pool(&spec.pool).await?.filter(|pool| !pool.deleting);
        let pool = pool.ok_or_else(|| Error::not_found("pool", &spec.pool))?;
        if spec.requires_gpu {
            let template = shared.store.template(&pool.spec.template).await?;
            if !template.is_some_and(|template| template.spec.gpu) {
                let message = format!("the agent requires a gpu, vms of pool {} have none", pool.id);
                return Err(Error::new(Reason::NotSupported, message)
                    .with("pool", &pool.id)
                    .with("field", "agent.task.requires_gpu"));
            }
        }
        if let Some(workflow) = self.guest_workflow(&spec.workflow)
            && wanted.default_timeout
        {
            spec.timeout = workflow.timeout;
        }
        let id = match wanted.id {
            Some(id) => id,
            None => AgentId::new(format!("a-{}", Uuid::now_v7().simple()))
                .map_err(|error| Error::internal(Reason::Internal, "no id for the agent", error))?,
        };
        let now = Timestamp::now();
        let mut agent = Agent {
            number: 0,
            id,
            uid: Uuid::new_v4(),
            owner: caller.name.clone(),
            spec,
            input: wanted.input,
            status: AgentStatus::Pending,
            reason: String::new(),
            claim: None,
            runner: None,
            worker: String::new(),
            vm: None,
            attempt: 0,
            epoch: 0,
            progress: 0,
            progress_message: String::new(),
            not_before: now,
            waiting_since: None,
            outcome: None,
            output: String::new(),
            shots: Vec::new(),
            shots_taken: 0,
            created: now,
            started: None,
            ended: None,
            updated: now,
            version: 1,
        };
        let text = format!("submitted by {}", caller.name);
        let entry = LogEntry { sequence: 0, at: now, source: LogSource::Daemon, epoch: 0, text };
        let event = Event::of_agent(EventKind::AgentSubmitted, &agent, &asker());
        let written = shared.store.insert_agent(&agent, vec![entry], wanted.request.as_ref(), event).await;
        agent.number = written.map_err(|error| match error {
            StoreError::Exists("agent") => Error::exists("agent", &agent.id),
            error => error.into(),
        })?;
        News::of(&agent).tell(shared);
        Ok(agent)
    }

    /// One agent, whole.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn agent(&self, id: &AgentId) -> Result<Agent> {
        stored(&self.0, id).await
    }

    /// Agents without input and output, newest first; the page's `after` is a number.
    ///
    /// # Errors
    /// [`Reason::StoreFailed`].
    pub async fn agents(&self, filter: &AgentFilter, page: &Page) -> Result<Vec<Agent>> {
        Ok(self.0.store.agents(filter, page).await?)
    }

    /// Ends an agent; one that was cancelled is given as it is.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::AgentEnded`], [`Reason::AgentNotYours`].
    pub async fn cancel_agent(&self, caller: &Caller, id: &AgentId, reason: &str) -> Result<Agent> {
        let shared = self.open()?;
        let why = if reason.is_empty() { format!("by {}", caller.name) } else { reason.to_owned() };
        change(shared, id, None, |agent, _, now| {
            if !caller.admin && caller.name != agent.owner {
                let message = format!("agent {id} was submitted by somebody else");
                return Err(Error::new(Reason::AgentNotYours, message).with("agent", id));
            }
            agent.cancel(&why, now).map_err(|why| refused(agent, agent.epoch, why))
        })
        .await
    }

    /// Waits until an agent has ended, at most so long, and gives it as it then is.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn wait_agent(&self, id: &AgentId, at_most: Duration) -> Result<Agent> {
        let mut changes = self.0.agents.changes.subscribe();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                let agent = self.agent(id).await?;
                if agent.status.is_final() || changes.changed().await.is_err() {
                    return Ok(agent);
                }
            }
        };
        match tokio::time::timeout(at_most, waiting).await {
            Ok(agent) => agent,
            Err(_) => self.agent(id).await,
        }
    }

    /// What an agent wrote and what happened to it, behind a number, oldest first.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn agent_log(&self, id: &AgentId, after: u64, limit: u32) -> Result<Vec<LogEntry>> {
        let agent = stored(&self.0, id).await?;
        Ok(self.0.store.agent_log(agent.number, after, limit).await?)
    }

    /// A picture that an agent left.
    ///
    /// # Errors
    /// [`Reason::NotFound`] for agent or picture, also when it has expired.
    pub async fn agent_screenshot(&self, id: &AgentId, shot: &str) -> Result<ShotImage> {
        let agent = stored(&self.0, id).await?;
        let missing = || Error::not_found("agent screenshot", format!("agents/{id}/screenshots/{shot}"));
        let shot = agent.shots.into_iter().find(|known| known.id == shot).ok_or_else(missing)?;
        let image = shots::load(&self.0, id, &shot).await?.ok_or_else(missing)?;
        Ok(ShotImage { agent: id.clone(), shot, image })
    }

    /// How long pictures of agents are kept.
    #[must_use]
    pub fn keep_agent_screenshots(&self) -> Duration {
        self.0.settings.agents.keep_screenshots
    }
}
