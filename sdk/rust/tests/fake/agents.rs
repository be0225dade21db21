//! Agents of the fake. `a-1` completed, `a-2` runs; submitted ones are `a-3` and complete at the second look, those of the
//! workflow `broken` fail. Workers get one agent, of the workflow `work`.

use hvkube_sdk::v1::agent_service_server::AgentService;
use hvkube_sdk::v1::{self, AgentStatus, WatchPhase};
use prost_types::Duration;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::desktop::PICTURE;
use super::resources::{ago, vms};
use super::watches::{Items, and_break, and_stay};
use super::{Fake, details, refuse};

fn agent(number: u32, workflow: &str, status: AgentStatus) -> v1::Agent {
    v1::Agent {
        name: format!("agents/a-{number}"),
        uid: format!("uid-{number}"),
        pool: "pools/browser".into(),
        task: Some(v1::AgentTask {
            workflow: workflow.into(),
            input_json: "{}".into(),
            timeout: Some(Duration { seconds: 1800, nanos: 0 }),
            requires_gpu: false,
        }),
        retry: Some(v1::AgentRetryPolicy { max_attempts: 3, ..Default::default() }),
        owner: "admin".into(),
        status: status.into(),
        create_time: ago(3900),
        ..v1::Agent::default()
    }
}

fn completed(agent: v1::Agent) -> v1::Agent {
    let result = v1::AgentResult {
        success: true,
        output_json: r#"{"price":120}"#.into(),
        error: String::new(),
        duration: Some(Duration { seconds: 4, nanos: 200_000_000 }),
    };
    let shot = v1::AgentScreenshot {
        name: format!("{}/screenshots/1", agent.name),
        content_type: "image/png".into(),
        ..Default::default()
    };
    v1::Agent {
        status: AgentStatus::Completed.into(),
        vm: "vms/browser-1".into(),
        attempt: 1,
        result: Some(result),
        screenshots: vec![shot],
        ..agent
    }
}

fn agents() -> Vec<v1::Agent> {
    let running = v1::Agent {
        vm: "vms/browser-1".into(),
        attempt: 2,
        progress_percent: 40,
        worker: "w\x1b[31m1".into(),
        ..agent(2, "work", AgentStatus::Running)
    };
    vec![running, completed(agent(1, "book-flight", AgentStatus::Completed))]
}

impl Fake {
    fn agent(&self, name: &str) -> Result<v1::Agent, Status> {
        let seen = self.seen();
        if let Some(submitted) = seen.submitted.filter(|_| name == "agents/a-3") {
            let task = submitted.agent.unwrap_or_default().task.unwrap_or_default();
            let pending = v1::Agent { task: Some(task.clone()), ..agent(3, "", AgentStatus::Pending) };
            let looks = self.set(|seen| {
                seen.agent_looks += 1;
                seen.agent_looks
            });
            return Ok(match task.workflow.as_str() {
                _ if looks < 2 => pending,
                "broken" => v1::Agent {
                    status: AgentStatus::Failed.into(),
                    status_reason: "exited with code 3: no such flight".into(),
                    attempt: 3,
                    ..pending
                },
                _ => completed(pending),
            });
        }
        agents().into_iter().find(|agent| agent.name == name).ok_or_else(|| {
            let mut error = details("RESOURCE_NOT_FOUND", &[("agent", name)]);
            error.set_resource_info("hvkube.dev/agent", name, "", "");
            Status::with_error_details(Code::NotFound, format!("no agent {name}"), error)
        })
    }
}

#[tonic::async_trait]
impl AgentService for Fake {
    type WatchAgentsStream = Items<v1::WatchAgentsResponse>;

    async fn submit_agent(
        &self,
        request: Request<v1::SubmitAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let request = request.into_inner();
        let task = request.agent.clone().unwrap_or_default().task.unwrap_or_default();
        self.set(|seen| seen.submitted = Some(request));
        Ok(Response::new(agent(3, &task.workflow, AgentStatus::Pending)))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Result<Response<v1::Agent>, Status> {
        self.going()?;
        self.agent(&request.into_inner().name).map(Response::new)
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let wanted =
            |agent: &v1::Agent| request.statuses.is_empty() || request.statuses.contains(&agent.status);
        let agents = agents().into_iter().filter(wanted).collect();
        Ok(Response::new(v1::ListAgentsResponse { agents, ..Default::default() }))
    }

    async fn cancel_agent(
        &self,
        request: Request<v1::CancelAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let mut agent = self.agent(&request.into_inner().name)?;
        if agent.status() == AgentStatus::Completed {
            let message = "agent a-1 has ended (completed)";
            let metadata = [("agent", "a-1"), ("status", "completed")];
            return Err(refuse(Code::FailedPrecondition, "AGENT_ENDED", message, &metadata));
        }
        agent.status = AgentStatus::Cancelled.into();
        Ok(Response::new(agent))
    }

    /// All agents and no change. The one that was submitted breaks off, ends meanwhile, and is told of by a daemon that
    /// is about to stop.
    async fn watch_agents(
        &self,
        request: Request<v1::WatchAgentsRequest>,
    ) -> Result<Response<Self::WatchAgentsStream>, Status> {
        let request = request.into_inner();
        let message = |agents, phase: WatchPhase, revision: &str| v1::WatchAgentsResponse {
            agents,
            phase: phase.into(),
            revision: revision.into(),
            ..Default::default()
        };
        let items = match (request.agents.as_slice(), request.revision.as_str()) {
            ([], _) => {
                self.set(|seen| seen.agent_watches += 1);
                let wanted = |agent: &v1::Agent| {
                    request.statuses.is_empty() || request.statuses.contains(&agent.status)
                };
                let agents = agents().into_iter().filter(wanted).collect();
                and_stay(vec![message(agents, WatchPhase::Synced, "r1")])
            }
            (_, "") => {
                let pending = agent(3, "", AgentStatus::Pending);
                and_break(vec![message(vec![pending], WatchPhase::Synced, "r1")])
            }
            _ => {
                self.set(|seen| seen.stopping = 1);
                let ended = agent(3, "", AgentStatus::Completed);
                and_stay(vec![message(vec![ended], WatchPhase::Change, "r2")])
            }
        };
        Ok(Response::new(items))
    }

    async fn claim_agent(
        &self,
        request: Request<v1::ClaimAgentRequest>,
    ) -> Result<Response<v1::ClaimAgentResponse>, Status> {
        let request = request.into_inner();
        if request.workflow != "work" {
            return Err(refuse(Code::InvalidArgument, "INVALID_FIELD", "workflow: not for workers", &[]));
        }
        let first = self.set(|seen| {
            seen.claims += 1;
            seen.claims == 1
        });
        if !first {
            return Ok(Response::new(v1::ClaimAgentResponse::default()));
        }
        let lease = v1::Lease { name: "leases/l-9".into(), ..Default::default() };
        Ok(Response::new(v1::ClaimAgentResponse {
            agent: Some(agent(2, "work", AgentStatus::Scheduled)),
            epoch: 5,
            lease: Some(lease),
            vm: vms().into_iter().next(),
            claim_ttl: Some(Duration { seconds: 0, nanos: 30_000_000 }),
        }))
    }

    async fn report_agent(
        &self,
        request: Request<v1::ReportAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let request = request.into_inner();
        let lost = self.set(|seen| {
            seen.reports.push(request);
            seen.claim_lost
        });
        if lost {
            return Err(refuse(Code::FailedPrecondition, "AGENT_CLAIM_LOST", "claim 5 is over", &[]));
        }
        Ok(Response::new(agent(2, "work", AgentStatus::Running)))
    }

    async fn complete_agent(
        &self,
        request: Request<v1::CompleteAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        self.set(|seen| seen.completed.push(request.into_inner()));
        Ok(Response::new(agent(2, "work", AgentStatus::Completed)))
    }

    async fn get_agent_screenshot(
        &self,
        request: Request<v1::GetAgentScreenshotRequest>,
    ) -> Result<Response<v1::AgentScreenshotImage>, Status> {
        let name = request.into_inner().name;
        let shot = v1::AgentScreenshot { name, content_type: "image/png".into(), ..Default::default() };
        Ok(Response::new(v1::AgentScreenshotImage { screenshot: Some(shot), image: PICTURE.into() }))
    }

    async fn list_agent_logs(
        &self,
        request: Request<v1::ListAgentLogsRequest>,
    ) -> Result<Response<v1::ListAgentLogsResponse>, Status> {
        let request = request.into_inner();
        let entry = |sequence, source: v1::AgentLogSource, text: &str| v1::AgentLogEntry {
            sequence,
            create_time: ago(60),
            source: source.into(),
            epoch: 1,
            text: text.into(),
        };
        let all = [
            entry(1, v1::AgentLogSource::Daemon, "submitted by admin"),
            entry(2, v1::AgentLogSource::Stderr, "warming \x1b[2Jup"),
            entry(3, v1::AgentLogSource::Worker, "done"),
        ];
        let entries = all.into_iter().filter(|entry| entry.sequence > request.after_sequence).collect();
        Ok(Response::new(v1::ListAgentLogsResponse { entries, ..Default::default() }))
    }
}
