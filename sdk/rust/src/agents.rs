//! Calls of `AgentService`. Programs that do agents' work want [`Worker`](crate::Worker) instead of the calls for workers.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use tokio::time::sleep;

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::paging::pages;
use crate::retry::Patience;
use crate::v1::{
    Agent, AgentLogEntry, AgentScreenshotImage, AgentStatus, CancelAgentRequest, ClaimAgentRequest,
    ClaimAgentResponse, CompleteAgentRequest, GetAgentRequest, GetAgentScreenshotRequest,
    ListAgentLogsRequest, ListAgentsRequest, ReportAgentRequest, SubmitAgentRequest, WatchAgentsRequest,
};
use crate::watch::Change;

/// What the daemon waits when it is not told.
const CLAIM_WAIT: Duration = Duration::from_secs(30);
/// Bringing a VM up and proving it ready may go on after the wait for an agent is over.
const READY_WAIT: Duration = Duration::from_secs(120);
/// Time between two looks at a log that is followed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Whether nothing comes after a status.
#[must_use]
pub fn agent_ended(status: AgentStatus) -> bool {
    matches!(status, AgentStatus::Completed | AgentStatus::Failed | AgentStatus::Cancelled)
}

impl Client {
    /// Submits an agent. An empty `request_id` is filled in, so that a retry cannot make a second one.
    ///
    /// # Errors
    /// `NOT_FOUND` for the pool; `ALREADY_EXISTS`; `INVALID_ARGUMENT`.
    pub async fn submit_agent(&self, mut request: SubmitAgentRequest) -> Result<Agent> {
        if let Some(agent) = &mut request.agent {
            agent.pool = qualify("pools", &agent.pool);
        }
        if request.request_id.is_empty() {
            request.request_id = fresh_id();
        }
        call!(self, Repeatable, self.quick(), agents.submit_agent(request))
    }

    /// Gets one agent by id or name, with its input and output.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_agent(&self, name: &str) -> Result<Agent> {
        let request = GetAgentRequest { name: qualify("agents", name) };
        call!(self, Repeatable, self.quick(), agents.get_agent(request))
    }

    /// Agents, newest first, as far as the request's filters let them; its page fields are not looked at.
    pub fn list_agents(&self, filter: ListAgentsRequest) -> impl Stream<Item = Result<Agent>> + use<> {
        let client = self.clone();
        let pool = if filter.pool.is_empty() { String::new() } else { qualify("pools", &filter.pool) };
        pages(move |page_token| {
            let client = client.clone();
            let request =
                ListAgentsRequest { page_size: 0, page_token, pool: pool.clone(), ..filter.clone() };
            async move {
                let page = call!(client, Repeatable, client.quick(), agents.list_agents(request))?;
                Ok((page.agents, page.next_page_token))
            }
        })
    }

    /// Ends an agent.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (`AGENT_ENDED`); `PERMISSION_DENIED` (`AGENT_NOT_YOURS`).
    pub async fn cancel_agent(&self, name: &str, reason: &str) -> Result<Agent> {
        let request = CancelAgentRequest { name: qualify("agents", name), reason: reason.to_owned() };
        call!(self, Repeatable, self.quick(), agents.cancel_agent(request))
    }

    /// Waits until an agent has ended and gives it with its output. `seen` is called with each state on the way. A daemon
    /// that restarts meanwhile is waited for.
    ///
    /// # Errors
    /// `NOT_FOUND`; [`Error::Unreachable`](crate::Error::Unreachable).
    pub async fn wait_agent(&self, name: &str, mut seen: impl FnMut(&Agent)) -> Result<Agent> {
        let name = qualify("agents", name);
        let mut agent = self.get_agent(&name).await?;
        let mut patience = Patience::default();
        while !agent_ended(agent.status()) {
            let request = WatchAgentsRequest { agents: vec![name.clone()], ..Default::default() };
            let mut changes = pin!(self.watch_agents(request));
            while let Some(change) = changes.next().await {
                match change? {
                    Change::Is(agent) if agent_ended(agent.status()) => break,
                    Change::Is(agent) => seen(&agent),
                    // The next look tells.
                    Change::Gone(_) => break,
                    Change::Synced | Change::Restarted => {}
                }
            }
            // A watch leaves the output out.
            patience.heard();
            agent = loop {
                match self.get_agent(&name).await {
                    Err(error) if error.is_absence() => patience.after(self, error).await?,
                    looked => break looked?,
                }
            };
        }
        seen(&agent);
        Ok(agent)
    }

    /// For workers: takes the next agent of a workflow. An empty `request_id` is filled in, so that a retry cannot take a
    /// second one.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`.
    pub async fn claim_agent(&self, mut request: ClaimAgentRequest) -> Result<ClaimAgentResponse> {
        let wait = request.wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(CLAIM_WAIT);
        if request.wait.is_none() {
            // Else the daemon would take the call's deadline, which has room for bringing the VM up, for the wait.
            request.wait = CLAIM_WAIT.try_into().ok();
        }
        if !request.pool.is_empty() {
            request.pool = qualify("pools", &request.pool);
        }
        if request.request_id.is_empty() {
            request.request_id = fresh_id();
        }
        call!(self, Repeatable, self.after(wait.saturating_add(READY_WAIT)), agents.claim_agent(request))
    }

    /// For workers: says that the work goes on. Not repeated by itself when the connection breaks: its lines and pictures
    /// would be kept twice.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`AGENT_CLAIM_LOST`, `AGENT_ENDED`); `RESOURCE_EXHAUSTED` (`TOO_MANY_SCREENSHOTS`).
    pub async fn report_agent(&self, mut request: ReportAgentRequest) -> Result<Agent> {
        request.name = qualify("agents", &request.name);
        call!(self, Once, self.quick(), agents.report_agent(request))
    }

    /// For workers: ends the attempt.
    ///
    /// # Errors
    /// As [`Client::report_agent`].
    pub async fn complete_agent(&self, mut request: CompleteAgentRequest) -> Result<Agent> {
        request.name = qualify("agents", &request.name);
        call!(self, Repeatable, self.quick(), agents.complete_agent(request))
    }

    /// A picture that an agent left, by its name (`agents/{agent}/screenshots/{screenshot}`).
    ///
    /// # Errors
    /// `NOT_FOUND`, also when it has expired.
    pub async fn agent_screenshot(&self, name: &str) -> Result<AgentScreenshotImage> {
        let request = GetAgentScreenshotRequest { name: name.to_owned() };
        call!(self, Repeatable, self.quick(), agents.get_agent_screenshot(request))
    }

    /// What an agent writes and what happens to it behind a sequence number (0: all), oldest first, until it has ended. A
    /// daemon that restarts meanwhile is waited for.
    pub fn follow_agent_logs(
        &self,
        name: &str,
        after_sequence: u64,
    ) -> impl Stream<Item = Result<AgentLogEntry>> + use<> {
        let follower = LogFollower {
            client: self.clone(),
            name: qualify("agents", name),
            after: after_sequence,
            ready: VecDeque::new(),
            ended: false,
            patience: Patience::default(),
        };
        stream::try_unfold(follower, |mut follower| async move {
            Ok(follower.next().await?.map(|entry| (entry, follower)))
        })
    }

    /// What an agent wrote and what happened to it behind a sequence number (0: all), oldest first.
    pub fn agent_logs(
        &self,
        name: &str,
        after_sequence: u64,
    ) -> impl Stream<Item = Result<AgentLogEntry>> + use<> {
        let (client, parent) = (self.clone(), qualify("agents", name));
        pages(move |page_token| {
            let client = client.clone();
            let request =
                ListAgentLogsRequest { parent: parent.clone(), page_size: 0, page_token, after_sequence };
            async move {
                let page = call!(client, Repeatable, client.quick(), agents.list_agent_logs(request))?;
                Ok((page.entries, page.next_page_token))
            }
        })
    }
}

struct LogFollower {
    client: Client,
    name: String,
    /// Sequence number of the last entry that came.
    after: u64,
    ready: VecDeque<AgentLogEntry>,
    /// Nothing comes behind what is ready.
    ended: bool,
    patience: Patience,
}

impl LogFollower {
    async fn next(&mut self) -> Result<Option<AgentLogEntry>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.ended {
                return Ok(None);
            }
            if self.patience.has_heard() {
                sleep(LOOK_AGAIN).await;
            }
            match self.look().await {
                Ok(()) => self.patience.heard(),
                Err(error) if error.is_absence() && self.patience.has_heard() => {
                    self.patience.after(&self.client, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        // Asked for before the log: what is written in between is then still looked for.
        let ended = agent_ended(self.client.get_agent(&self.name).await?.status());
        let mut entries = pin!(self.client.agent_logs(&self.name, self.after));
        while let Some(entry) = entries.try_next().await? {
            self.after = entry.sequence;
            self.ready.push_back(entry);
        }
        self.ended = ended;
        Ok(())
    }
}
