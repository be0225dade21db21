//! A worker: a program outside that does agents' work on the desktops they get.
//!
//! ```text
//! Worker::run ── claim ──> Job ──> your function ──> complete
//!                           │ keeper: reports at a third of the claim's life
//!                           v refused: the claim is over, the function is dropped
//! ```

use std::future::Future;
use std::time::Duration;

use crate::client::Client;
use crate::desktop::Target;
use crate::error::{Error, Result};
use crate::v1::{
    Agent, AgentScreenshotUpload, ClaimAgentRequest, CompleteAgentRequest, Lease, ReportAgentRequest, Vm,
};
use crate::{Code, ProtoDuration};

/// Taken for a claim that does not tell its life.
const CLAIM_TTL: Duration = Duration::from_secs(60);
/// Pause after a failed call.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Takes agents of one workflow, one after another. Run several for more at a time.
#[derive(Clone, Debug)]
pub struct Worker {
    client: Client,
    request: ClaimAgentRequest,
}

/// One attempt at one agent's work, with its desktop. The claim is kept alive by [`Worker::run`].
#[derive(Clone, Debug)]
pub struct Job {
    target: Target,
    agent: Agent,
    lease: Lease,
    vm: Vm,
    epoch: u64,
}

/// What came of a [`Job`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// One JSON value; empty: nothing.
    pub output_json: String,
    /// Pictures to keep.
    pub screenshots: Vec<AgentScreenshotUpload>,
    /// The daemon takes a picture of the screen and keeps it.
    pub take_screenshot: bool,
}

impl Done {
    /// With an output and a picture of the screen at the end.
    pub fn with_output(output_json: impl Into<String>) -> Self {
        Self { output_json: output_json.into(), take_screenshot: true, ..Self::default() }
    }
}

/// Why a [`Job`] failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JobError {
    message: String,
    retry: bool,
}

impl JobError {
    /// For good: another attempt would fail too.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: false }
    }

    /// Another attempt may succeed; it is made if the agent's policy allows.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: true }
    }
}

/// A call that failed may succeed on another desktop.
impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        Self::retry(error.to_string())
    }
}

impl Worker {
    /// For a workflow that the daemon does not run itself.
    #[must_use]
    pub fn new(client: &Client, workflow: &str) -> Self {
        let request = ClaimAgentRequest { workflow: workflow.to_owned(), ..Default::default() };
        Self { client: client.clone(), request }
    }

    /// What it calls itself, for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.request.worker = name.into();
        self
    }

    /// Only agents of this pool.
    #[must_use]
    pub fn pool(mut self, pool: impl Into<String>) -> Self {
        self.request.pool = pool.into();
        self
    }

    /// How long a claim outlives this program, 1 s to 1 h; default: the daemon's.
    #[must_use]
    pub fn claim_ttl(mut self, ttl: Duration) -> Self {
        self.request.claim_ttl = ttl.try_into().ok();
        self
    }

    /// How long one question for work waits, 5 min at most.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.request.wait = wait.try_into().ok();
        self
    }

    /// Works until it is dropped or refused for good. `work` is dropped when its claim is over (cancelled, timed out).
    ///
    /// # Errors
    /// When the daemon refuses the worker itself: wrong token, wrong workflow. One that is not reached is asked again.
    pub async fn run<F, Fut>(&self, mut work: F) -> Result<()>
    where
        F: FnMut(Job) -> Fut,
        Fut: Future<Output = Result<Done, JobError>>,
    {
        loop {
            match self.once(&mut work).await {
                Ok(_) => {}
                Err(error) if is_refusal(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, workflow = self.request.workflow, "no work got, asking again");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    /// Takes one agent, if there is one in time, and does its work. Says how it then is; `None`: there was none, or its
    /// claim was lost on the way.
    ///
    /// # Errors
    /// As the calls it makes.
    pub async fn once<F, Fut>(&self, mut work: F) -> Result<Option<Agent>>
    where
        F: FnMut(Job) -> Fut,
        Fut: Future<Output = Result<Done, JobError>>,
    {
        let claimed = self.client.claim_agent(self.request.clone()).await?;
        let Some(agent) = claimed.agent else { return Ok(None) };
        let lease = claimed.lease.ok_or(Error::Protocol("a claim without a lease"))?;
        let vm = claimed.vm.ok_or(Error::Protocol("a claim without a vm"))?;
        let ttl = claimed.claim_ttl.and_then(|ttl: ProtoDuration| ttl.try_into().ok()).unwrap_or(CLAIM_TTL);
        let target = self.client.target(&lease.name);
        let job = Job { target, agent, lease, vm, epoch: claimed.epoch };
        let result = tokio::select! {
            result = work(job.clone()) => result,
            () = keep(&self.client, &job, ttl) => {
                tracing::info!(agent = job.agent.name, "the claim is over");
                return Ok(None);
            }
        };
        let mut request = CompleteAgentRequest {
            name: job.agent.name.clone(),
            epoch: job.epoch,
            ..CompleteAgentRequest::default()
        };
        match result {
            Ok(done) => {
                request.success = true;
                request.output_json = done.output_json;
                request.screenshots = done.screenshots;
                request.take_screenshot = done.take_screenshot;
            }
            Err(error) => {
                request.error = error.message;
                request.error.truncate(request.error.floor_char_boundary(4096));
                request.retry = error.retry;
            }
        }
        match self.client.complete_agent(request).await {
            Ok(agent) => Ok(Some(agent)),
            Err(error) if is_lost(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Job {
    /// The agent as it was claimed, with its input.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Its input, JSON.
    #[must_use]
    pub fn input_json(&self) -> &str {
        self.agent.task.as_ref().map_or("{}", |task| &task.input_json)
    }

    /// The desktop: screen, input, programs, files. The daemon keeps its lease alive.
    #[must_use]
    pub fn desktop(&self) -> &Target {
        &self.target
    }

    /// The hold on the VM.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The VM as it was handed over.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Says how far the work is, for people who look on.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`AGENT_CLAIM_LOST`, `AGENT_ENDED`).
    pub async fn progress(&self, percent: u32, message: &str) -> Result<()> {
        let request = ReportAgentRequest {
            progress_percent: Some(percent),
            progress_message: message.to_owned(),
            ..self.report()
        };
        self.target.client().report_agent(request).await.map(drop)
    }

    /// Adds lines to the agent's log.
    ///
    /// # Errors
    /// As [`Job::progress`].
    pub async fn log(&self, lines: impl IntoIterator<Item = impl Into<String>>) -> Result<()> {
        let log = lines.into_iter().map(Into::into).collect();
        self.target.client().report_agent(ReportAgentRequest { log, ..self.report() }).await.map(drop)
    }

    /// Has the daemon keep a picture of the screen with the agent.
    ///
    /// # Errors
    /// As [`Job::progress`]; `RESOURCE_EXHAUSTED` (`TOO_MANY_SCREENSHOTS`).
    pub async fn keep_screenshot(&self) -> Result<()> {
        let request = ReportAgentRequest { take_screenshot: true, ..self.report() };
        self.target.client().report_agent(request).await.map(drop)
    }

    fn report(&self) -> ReportAgentRequest {
        ReportAgentRequest { name: self.agent.name.clone(), epoch: self.epoch, ..Default::default() }
    }
}

/// Keeps a claim alive; comes back when it is over.
async fn keep(client: &Client, job: &Job, ttl: Duration) {
    // At once, so that the agent is seen to run.
    loop {
        match client.report_agent(job.report()).await {
            Ok(_) => tokio::time::sleep(ttl / 3).await,
            Err(error) if is_lost(&error) => return,
            // The daemon may come back within the claim's life; if not, it says so then.
            Err(error) => {
                tracing::debug!(%error, agent = job.agent.name, "not reported, trying again");
                tokio::time::sleep(TRY_AGAIN.min(ttl / 3)).await;
            }
        }
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error.code(), Code::FailedPrecondition | Code::NotFound)
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.code(), Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied)
}
