//! Agents: tasks that run on a desktop of their own, as pure data and transitions.
//!
//! ```text
//!  Pending ──► Scheduled ──► Running ──► Completed
//!     ▲            │            │
//!     └────────────┴────────────┤  (an attempt failed, and another one is allowed)
//!                               └──► Failed, Cancelled   (from Pending and Scheduled too)
//! ```
//!
//! A *claim* is one hold on an agent: by a worker, or by the daemon for a program in the guest. It begins before a VM is
//! asked for and ends when the VM is on its way back, so a row always tells which lease may exist for it. Each claim has an
//! *epoch*, which grows and never goes back: whoever comes with an older one is late. An *attempt* is a claim that got a VM
//! and did not end for a reason that is ours (the daemon stopped, nobody took the answer).

pub(super) mod micros;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::model::ids::{AgentId, LeaseId, PoolId, VmId};

/// What a point of priority is worth in waiting: nobody waits for ever behind more important ones.
const AGEING: Duration = Duration::from_secs(30);

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /// Waits for a VM, a worker, or the pause after a failed attempt.
    Pending,
    /// Has a VM; the work has not begun yet.
    Scheduled,
    /// The work has begun.
    Running,
    /// Done, successfully.
    Completed,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl AgentStatus {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Scheduled, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The table of legal moves.
    const MOVES: &[(Self, &[Self])] = &[
        (Self::Pending, &[Self::Scheduled, Self::Failed, Self::Cancelled]),
        (Self::Scheduled, &[Self::Running, Self::Pending, Self::Failed, Self::Cancelled]),
        (Self::Running, &[Self::Completed, Self::Pending, Self::Failed, Self::Cancelled]),
    ];

    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The reverse of [`AgentStatus::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether the move is legal.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        Self::MOVES.iter().any(|(from, to)| *from == self && to.contains(&next))
    }

    /// Nothing comes after it.
    #[must_use]
    pub fn is_final(self) -> bool {
        !Self::MOVES.iter().any(|(from, _)| *from == self)
    }
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// A worker outside.
    External,
    /// A program in the guest.
    Guest,
}

/// How often an agent is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RetryPolicy {
    /// At least 1.
    pub max_attempts: u32,
    /// Pause before the second attempt; it doubles with each.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
}

impl RetryPolicy {
    /// Pause after so many attempts.
    #[must_use]
    pub fn pause_after(&self, attempts: u32) -> Duration {
        let factor = 2u32.saturating_pow(attempts.saturating_sub(1));
        self.initial_backoff.saturating_mul(factor).min(self.max_backoff)
    }
}

/// What an agent was asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentSpec {
    /// For people.
    pub display_name: String,
    /// Where its VMs come from.
    pub pool: PoolId,
    /// What to do.
    pub workflow: String,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// The VM must have a share of a GPU.
    pub requires_gpu: bool,
    /// Higher ones are served earlier.
    pub priority: i32,
    /// How often it is tried.
    pub retry: RetryPolicy,
    /// How long it may wait for a VM, each time anew.
    pub queue_timeout: Duration,
}

/// A hold on an agent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Claim {
    /// Tells it from every other one, also before it has its epoch.
    pub id: Uuid,
    /// Who does the work.
    pub runner: Runner,
    /// Name of the token that holds the lease.
    pub holder: String,
    /// What the worker calls itself.
    pub worker: String,
    /// The lease, once it is granted.
    pub lease: Option<LeaseId>,
    /// How long it lives without a report; external workers only.
    pub ttl: Duration,
    /// When it is lost unless the worker reports; none before a VM is there, and for guest programs.
    #[serde(with = "micros::optional")]
    pub expires: Option<Timestamp>,
    /// When the attempt's time is over; none before a VM is there.
    #[serde(with = "micros::optional")]
    pub deadline: Option<Timestamp>,
}

/// How an agent ended; its output is in [`Agent::output`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentOutcome {
    /// It did what it was asked for.
    pub success: bool,
    /// Why it failed.
    pub error: String,
    /// Of the last attempt.
    pub duration: Duration,
}

/// A picture that an agent left.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shot {
    /// Its name and that of its file: a number and the format's ending.
    pub id: String,
    /// `image/png`, ...
    pub content_type: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// Free text.
    pub label: String,
    /// When it was left.
    #[serde(with = "micros")]
    pub created: Timestamp,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Agent {
    /// Place in the order of submission; the store's.
    #[serde(skip)]
    pub number: u64,
    /// Id.
    pub id: AgentId,
    /// Never reused.
    pub uid: Uuid,
    /// Name of the token that submitted it.
    pub owner: String,
    /// What it was asked for.
    pub spec: AgentSpec,
    /// Its parameters, JSON. Kept apart in the store, since it may be large and never changes; empty where it was not asked
    /// for.
    #[serde(skip)]
    pub input: String,
    /// Where it is in its life.
    pub status: AgentStatus,
    /// Why it is there.
    pub reason: String,
    /// Who has it, until its VM is on its way back.
    pub claim: Option<Claim>,
    /// Who does, or last did, the work.
    pub runner: Option<Runner>,
    /// What its worker calls itself, or its last one.
    pub worker: String,
    /// VM it runs on, or last ran on.
    pub vm: Option<VmId>,
    /// Attempts that count.
    pub attempt: u32,
    /// Number of the present or last claim.
    pub epoch: u64,
    /// 0 to 100.
    pub progress: u32,
    /// As last reported.
    pub progress_message: String,
    /// No claim before then.
    #[serde(with = "micros")]
    pub not_before: Timestamp,
    /// Since when it waits for another VM; none: it had none yet, and waits since it was submitted.
    #[serde(default, with = "micros::optional")]
    pub waiting_since: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<AgentOutcome>,
    /// What it gave, JSON; kept apart as the input is.
    #[serde(skip)]
    pub output: String,
    /// Pictures it left.
    pub shots: Vec<Shot>,
    /// Pictures it ever left: names are not used again.
    pub shots_taken: u32,
    /// When it was submitted.
    #[serde(with = "micros")]
    pub created: Timestamp,
    /// When the present or last attempt got its VM.
    #[serde(with = "micros::optional")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(with = "micros::optional")]
    pub ended: Option<Timestamp>,
    /// When it last changed.
    #[serde(with = "micros")]
    pub updated: Timestamp,
    /// Grows with every change; the etag.
    #[serde(skip)]
    pub version: u64,
}

/// Why a transition is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The agent has ended.
    Ended,
    /// The claim is not, or no longer, the present one.
    ClaimLost,
    /// Somebody has it, or it is not its time yet.
    NotFree,
}

/// Why an attempt ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// It counts: another one is made if the policy allows.
    Failed,
    /// It counts, and there is no use in another one.
    Final,
    /// It was no fault of the agent's: another one is made at once.
    Interrupted,
    /// The same, and there is no use in another one before this long.
    Postponed(Duration),
}

impl Agent {
    /// Place in the queue of its workflow: lower ones are served earlier, and a later one of higher priority overtakes only
    /// those that have not waited long.
    #[must_use]
    pub fn rank(&self) -> i64 {
        let head_start =
            i64::try_from(AGEING.as_micros()).unwrap_or(i64::MAX) * i64::from(self.spec.priority);
        self.created.as_microsecond().saturating_sub(head_start)
    }

    /// When it fails for want of a VM.
    #[must_use]
    pub fn queue_end(&self) -> Option<Timestamp> {
        let since = self.waiting_since.unwrap_or(self.created);
        (self.status == AgentStatus::Pending)
            .then(|| since.saturating_add(self.spec.queue_timeout).unwrap_or(Timestamp::MAX))
    }

    /// The id under which a claim's lease is asked for: it is known before the answer, so that a crash in between loses
    /// nothing.
    #[must_use]
    pub fn lease_request(&self) -> Uuid {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        hash.update(self.uid.as_bytes());
        hash.update(self.epoch.to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    fn go(&mut self, to: AgentStatus, reason: impl Into<String>, now: Timestamp) {
        debug_assert!(self.status.may_become(to), "{} -> {}", self.status.as_str(), to.as_str());
        self.status = to;
        self.reason = reason.into();
        if to.is_final() {
            self.ended = Some(now);
        }
    }

    /// Whether somebody has it and its VM, and has not ended it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.claim.is_some() && matches!(self.status, AgentStatus::Scheduled | AgentStatus::Running)
    }

    /// Checks that a claim is the present one.
    fn hold(&self, epoch: u64) -> Result<(), Refused> {
        if self.status.is_final() {
            return Err(Refused::Ended);
        }
        if self.epoch != epoch || self.claim.is_none() || self.status == AgentStatus::Pending {
            return Err(Refused::ClaimLost);
        }
        Ok(())
    }

    /// Somebody takes it, and asks for a VM next.
    ///
    /// # Errors
    /// [`Refused::Ended`], [`Refused::NotFree`].
    pub fn reserve(&mut self, claim: Claim, now: Timestamp) -> Result<u64, Refused> {
        if self.status.is_final() {
            return Err(Refused::Ended);
        }
        if self.status != AgentStatus::Pending || self.claim.is_some() || self.not_before > now {
            return Err(Refused::NotFree);
        }
        self.epoch += 1;
        self.runner = Some(claim.runner);
        self.worker.clone_from(&claim.worker);
        self.claim = Some(Claim { lease: None, expires: None, deadline: None, ..claim });
        "waits for a vm".clone_into(&mut self.reason);
        Ok(self.epoch)
    }

    /// The claim has its VM.
    ///
    /// # Errors
    /// [`Refused::Ended`], [`Refused::ClaimLost`].
    pub fn assign(&mut self, epoch: u64, lease: LeaseId, vm: VmId, now: Timestamp) -> Result<(), Refused> {
        if self.status.is_final() {
            return Err(Refused::Ended);
        }
        if self.status != AgentStatus::Pending || self.epoch != epoch {
            return Err(Refused::ClaimLost);
        }
        let claim = self.claim.as_mut().ok_or(Refused::ClaimLost)?;
        let after = |span| now.saturating_add(span).unwrap_or(Timestamp::MAX);
        claim.lease = Some(lease);
        claim.deadline = Some(after(self.spec.timeout));
        claim.expires = (claim.runner == Runner::External).then(|| after(claim.ttl));
        self.vm = Some(vm);
        self.attempt += 1;
        (self.progress, self.started) = (0, Some(now));
        self.progress_message.clear();
        self.go(AgentStatus::Scheduled, "has its vm", now);
        Ok(())
    }

    /// The work has begun, or goes on: the claim lives on.
    ///
    /// # Errors
    /// [`Refused::Ended`], [`Refused::ClaimLost`].
    pub fn report(&mut self, epoch: u64, now: Timestamp) -> Result<(), Refused> {
        self.hold(epoch)?;
        if self.status == AgentStatus::Scheduled {
            self.go(AgentStatus::Running, "", now);
        }
        if let Some(claim) = &mut self.claim
            && claim.expires.is_some()
        {
            claim.expires = Some(now.saturating_add(claim.ttl).unwrap_or(Timestamp::MAX));
        }
        Ok(())
    }

    /// The claim's lease was preempted for so long: its time goes on from where it stood. Whether there was such a claim.
    pub fn stood_still(&mut self, epoch: u64, stood: Duration) -> bool {
        if self.hold(epoch).is_err() {
            return false;
        }
        let deadline = self.claim.as_mut().and_then(|claim| claim.deadline.as_mut());
        deadline.map(|at| *at = at.saturating_add(stood).unwrap_or(Timestamp::MAX)).is_some()
    }

    /// The work is done: completed, or failed for good.
    ///
    /// # Errors
    /// [`Refused::Ended`], [`Refused::ClaimLost`].
    pub fn complete(
        &mut self,
        epoch: u64,
        result: Result<(), String>,
        output: String,
        now: Timestamp,
    ) -> Result<(), Refused> {
        self.report(epoch, now)?;
        self.output = output;
        let error = match result {
            Ok(()) => {
                self.progress = 100;
                self.go(AgentStatus::Completed, "", now);
                String::new()
            }
            Err(error) => {
                self.go(AgentStatus::Failed, error.clone(), now);
                error
            }
        };
        self.outcome = Some(AgentOutcome {
            success: self.status == AgentStatus::Completed,
            error,
            duration: self.lasted(now),
        });
        Ok(())
    }

    /// The claim ends without a result; whether another one may follow is told by the status afterwards.
    ///
    /// # Errors
    /// [`Refused::Ended`], [`Refused::ClaimLost`].
    pub fn set_back(
        &mut self,
        epoch: u64,
        setback: Setback,
        why: &str,
        now: Timestamp,
    ) -> Result<(), Refused> {
        if self.status.is_final() {
            return Err(Refused::Ended);
        }
        let had_vm = self.status != AgentStatus::Pending;
        // One with a lease that waits was set back before.
        let claim = self.claim.as_ref().filter(|claim| had_vm || claim.lease.is_none());
        if self.epoch != epoch || claim.is_none() {
            return Err(Refused::ClaimLost);
        }
        // A claim that never got a VM was none of the agent's attempts, unless it is to count.
        let counts = matches!(setback, Setback::Failed | Setback::Final);
        match (had_vm, counts) {
            (true, false) => self.attempt = self.attempt.saturating_sub(1),
            (false, true) => self.attempt += 1,
            _ => {}
        }
        if counts && (setback == Setback::Final || self.attempt >= self.spec.retry.max_attempts) {
            self.go(AgentStatus::Failed, why, now);
            let duration = if had_vm { self.lasted(now) } else { Duration::ZERO };
            self.outcome = Some(AgentOutcome { success: false, error: why.to_owned(), duration });
            return Ok(());
        }
        let pause = match setback {
            Setback::Postponed(pause) => Some(pause),
            _ => counts.then(|| self.spec.retry.pause_after(self.attempt)),
        };
        if let Some(pause) = pause {
            self.not_before = now.saturating_add(pause).unwrap_or(Timestamp::MAX);
        }
        if had_vm {
            // From when it may have its next one: a pause is no waiting.
            self.waiting_since = Some(self.not_before.max(now));
            self.go(AgentStatus::Pending, why, now);
        } else if self.queue_end().is_some_and(|end| end <= now) {
            // To have been taken and got no VM is waiting too.
            let why = format!("not started within {} s: {why}", self.spec.queue_timeout.as_secs());
            self.go(AgentStatus::Failed, &*why, now);
            self.outcome = Some(AgentOutcome { success: false, error: why, duration: Duration::ZERO });
        } else {
            why.clone_into(&mut self.reason);
        }
        Ok(())
    }

    /// It fails where it waits.
    ///
    /// # Errors
    /// [`Refused::Ended`]; [`Refused::NotFree`] when somebody has it.
    pub fn fail_waiting(&mut self, why: &str, now: Timestamp) -> Result<(), Refused> {
        if self.status.is_final() {
            return Err(Refused::Ended);
        }
        if self.status != AgentStatus::Pending || self.claim.is_some() {
            return Err(Refused::NotFree);
        }
        self.go(AgentStatus::Failed, why, now);
        self.outcome = Some(AgentOutcome { success: false, error: why.to_owned(), duration: Duration::ZERO });
        Ok(())
    }

    /// Somebody cancels it.
    ///
    /// # Errors
    /// [`Refused::Ended`] unless it is cancelled already.
    pub fn cancel(&mut self, why: &str, now: Timestamp) -> Result<(), Refused> {
        match self.status {
            AgentStatus::Cancelled => Ok(()),
            status if status.is_final() => Err(Refused::Ended),
            status => {
                let duration = if status == AgentStatus::Pending { Duration::ZERO } else { self.lasted(now) };
                self.go(AgentStatus::Cancelled, why, now);
                self.outcome = Some(AgentOutcome { success: false, error: why.to_owned(), duration });
                Ok(())
            }
        }
    }

    /// The VM is on its way back: the claim is over.
    pub fn given_back(&mut self, epoch: u64) {
        if self.epoch == epoch && (self.status.is_final() || self.status == AgentStatus::Pending) {
            self.claim = None;
        }
    }

    fn lasted(&self, now: Timestamp) -> Duration {
        let Some(started) = self.started else { return Duration::ZERO };
        let span = now.duration_since(started);
        if span.is_negative() { Duration::ZERO } else { span.unsigned_abs() }
    }
}

/// Who wrote a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogSource {
    /// The daemon.
    Daemon,
    /// The worker.
    Worker,
    /// The guest program's standard error.
    Stderr,
}

impl LogSource {
    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Worker => "worker",
            Self::Stderr => "stderr",
        }
    }

    /// The reverse of [`LogSource::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Daemon, Self::Worker, Self::Stderr].into_iter().find(|source| source.as_str() == text)
    }
}

/// An entry of an agent's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its number within the agent; 0 until it is stored.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// Who wrote it.
    pub source: LogSource,
    /// Claim it belongs to.
    pub epoch: u64,
    /// What it says.
    pub text: String,
}

/// Which agents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentFilter {
    /// Only of this pool.
    pub pool: Option<PoolId>,
    /// Only of this workflow; empty: all.
    pub workflow: String,
    /// Only in one of these statuses; empty: all.
    pub statuses: Vec<AgentStatus>,
    /// Only these; empty: all.
    pub ids: Vec<AgentId>,
}

impl AgentFilter {
    /// Whether an agent is wanted.
    #[must_use]
    pub fn wants(&self, agent: &Agent) -> bool {
        self.pool.as_ref().is_none_or(|pool| *pool == agent.spec.pool)
            && (self.workflow.is_empty() || self.workflow == agent.spec.workflow)
            && (self.statuses.is_empty() || self.statuses.contains(&agent.status))
            && (self.ids.is_empty() || self.ids.contains(&agent.id))
    }
}

/// Whether a name can be a workflow's: also the name of a table in the configuration.
#[must_use]
pub fn is_workflow_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&name.len())
        && legal(name.as_bytes()[0])
        && name.bytes().all(|b| legal(b) || b == b'-' || b == b'_')
}
