//! What callers ask about agents; shapes are checked before they get here.

use std::time::Duration;

use bytes::Bytes;

use crate::model::agent::{Agent, AgentSpec, Shot};
use crate::model::ids::{AgentId, PoolId};
use crate::model::query::RequestId;
use crate::model::record::Lease;
use crate::orchestrator::view::VmView;

/// A workflow that is a program in the guest. It gets the input on standard input and gives its output, one JSON value,
/// on standard output; code 0 means that it did what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestWorkflow {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Directory to start in; empty: the user's home.
    pub cwd: String,
    /// How long an attempt may take, where the submitter does not say.
    pub timeout: Duration,
    /// Run as root instead of the desktop user.
    pub as_root: bool,
    /// Keep a picture of the screen when the program has ended.
    pub screenshot: bool,
}

/// An agent to submit.
#[derive(Debug, Clone)]
pub struct SubmitAgent {
    /// Its id; absent: made here.
    pub id: Option<AgentId>,
    /// What it is; the timeout may be left to the workflow.
    pub spec: AgentSpec,
    /// The timeout in `spec` was not asked for.
    pub default_timeout: bool,
    /// Its parameters, JSON.
    pub input: String,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// A worker that wants work.
#[derive(Debug, Clone)]
pub struct ClaimAgent {
    /// Of this workflow.
    pub workflow: String,
    /// Only of this pool.
    pub pool: Option<PoolId>,
    /// What it calls itself.
    pub worker: String,
    /// How long its claim lives without a report.
    pub ttl: Option<Duration>,
    /// How long to wait for an agent.
    pub wait: Duration,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// What a worker got.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The agent.
    pub agent: Agent,
    /// Its hold on the VM.
    pub lease: Lease,
    /// The VM.
    pub vm: VmView,
    /// How long its claim lives without a report.
    pub ttl: Duration,
}

/// A picture that a worker sends.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Path of the field it came in.
    pub field: String,
    /// PNG, JPEG or WEBP.
    pub image: Bytes,
    /// Free text.
    pub label: String,
}

/// How far a worker is.
#[derive(Debug, Clone)]
pub struct ReportAgent {
    /// The agent.
    pub id: AgentId,
    /// The claim.
    pub epoch: u64,
    /// 0 to 100; absent: as before.
    pub progress: Option<u32>,
    /// Empty: as before.
    pub message: String,
    /// Lines for the log.
    pub log: Vec<String>,
    /// Pictures to keep.
    pub uploads: Vec<Upload>,
    /// Keep a picture of the VM's screen.
    pub take_screenshot: bool,
}

/// How a worker's attempt ended.
#[derive(Debug, Clone)]
pub struct CompleteAgent {
    /// The agent.
    pub id: AgentId,
    /// The claim.
    pub epoch: u64,
    /// Why it failed; none: it did not.
    pub error: Option<String>,
    /// Another attempt may help.
    pub retry: bool,
    /// What it gave, JSON, or nothing.
    pub output: String,
    /// Pictures to keep.
    pub uploads: Vec<Upload>,
    /// Keep a picture of the VM's screen.
    pub take_screenshot: bool,
}

/// A picture with its bytes.
#[derive(Debug, Clone)]
pub struct ShotImage {
    /// Whose.
    pub agent: AgentId,
    /// What it is.
    pub shot: Shot,
    /// The encoded picture.
    pub image: Bytes,
}
