//! `hvkube.v1.AgentService`.

use hvkube_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::{agent, watch};
use super::deadline::Deadline;
use super::guard::ResponseStream;
use super::page::Paging;
use super::{auth, fields};
use crate::orchestrator::Orchestrator;

pub(crate) struct AgentService(pub(crate) Orchestrator);

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for AgentService {
    type WatchAgentsStream = ResponseStream<v1::WatchAgentsResponse>;

    async fn submit_agent(
        &self,
        request: Request<v1::SubmitAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let caller = auth::of(&request)?;
        let wanted = agent::submit(&caller, request.get_ref())?;
        let submitted = self.0.submit_agent(&caller, wanted).await?;
        Ok(Response::new(agent::to_proto(&submitted, self.0.keep_agent_screenshots())))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Result<Response<v1::Agent>, Status> {
        let id = fields::name("name", "agents", &request.get_ref().name)?;
        let found = self.0.agent(&id).await?;
        Ok(Response::new(agent::to_proto(&found, self.0.keep_agent_screenshots())))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let filter = agent::list_filter(&request)?;
        let statuses = format!("{:?}", request.statuses);
        let bound = [request.pool.as_str(), &request.workflow, &statuses];
        let paging = Paging::new("ListAgents", &bound, request.page_size, &request.page_token)?;
        let rows = self.0.agents(&filter, &paging.page()).await?;
        let rows = rows.into_iter().map(|row| (row.number.to_string(), row)).collect();
        let (rows, next_page_token) = paging.finish(rows, |(number, _)| number.as_str());
        let keep = self.0.keep_agent_screenshots();
        let agents = rows.iter().map(|(_, row)| agent::brief(row, keep)).collect();
        Ok(Response::new(v1::ListAgentsResponse { agents, next_page_token }))
    }

    async fn cancel_agent(
        &self,
        request: Request<v1::CancelAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let caller = auth::of(&request)?;
        let id = fields::name("name", "agents", &request.get_ref().name)?;
        let reason = fields::text("reason", &request.get_ref().reason, fields::DESCRIPTION)?;
        let cancelled = self.0.cancel_agent(&caller, &id, reason).await?;
        Ok(Response::new(agent::to_proto(&cancelled, self.0.keep_agent_screenshots())))
    }

    async fn watch_agents(
        &self,
        request: Request<v1::WatchAgentsRequest>,
    ) -> Result<Response<Self::WatchAgentsStream>, Status> {
        let (filter, from) = watch::agents(request.get_ref())?;
        let keep = self.0.keep_agent_screenshots();
        Ok(watch::answer(self.0.watch_agents(filter, from)?, move |delta| watch::agent_delta(delta, keep)))
    }

    async fn claim_agent(
        &self,
        request: Request<v1::ClaimAgentRequest>,
    ) -> Result<Response<v1::ClaimAgentResponse>, Status> {
        let caller = auth::of(&request)?;
        let deadline = request.extensions().get::<Deadline>().copied();
        let wanted = agent::claim(&caller, deadline, request.get_ref())?;
        let claimed = self.0.claim_agent(&caller, wanted).await?;
        Ok(Response::new(agent::claimed(claimed.as_ref(), self.0.keep_agent_screenshots())))
    }

    async fn report_agent(
        &self,
        request: Request<v1::ReportAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let caller = auth::of(&request)?;
        let report = agent::report(request.into_inner())?;
        let reported = self.0.report_agent(&caller, report).await?;
        Ok(Response::new(agent::brief(&reported, self.0.keep_agent_screenshots())))
    }

    async fn complete_agent(
        &self,
        request: Request<v1::CompleteAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let caller = auth::of(&request)?;
        let done = agent::complete(request.into_inner())?;
        let completed = self.0.complete_agent(&caller, done).await?;
        Ok(Response::new(agent::brief(&completed, self.0.keep_agent_screenshots())))
    }

    async fn get_agent_screenshot(
        &self,
        request: Request<v1::GetAgentScreenshotRequest>,
    ) -> Result<Response<v1::AgentScreenshotImage>, Status> {
        let (id, shot) = agent::screenshot_name(&request.get_ref().name)?;
        let image = self.0.agent_screenshot(&id, &shot).await?;
        Ok(Response::new(agent::image(image, self.0.keep_agent_screenshots())))
    }

    async fn list_agent_logs(
        &self,
        request: Request<v1::ListAgentLogsRequest>,
    ) -> Result<Response<v1::ListAgentLogsResponse>, Status> {
        let request = request.into_inner();
        let id = fields::name("parent", "agents", &request.parent)?;
        let after = request.after_sequence.to_string();
        let bound = [request.parent.as_str(), &after];
        let paging = Paging::new("ListAgentLogs", &bound, request.page_size, &request.page_token)?;
        let page = paging.page();
        let after = page.after.parse().unwrap_or(request.after_sequence);
        let entries = self.0.agent_log(&id, after, page.limit).await?;
        let entries = entries.into_iter().map(|entry| (entry.sequence.to_string(), entry)).collect();
        let (entries, next_page_token) = paging.finish(entries, |(sequence, _)| sequence.as_str());
        let entries = entries.iter().map(|(_, entry)| agent::log_entry(entry)).collect();
        Ok(Response::new(v1::ListAgentLogsResponse { entries, next_page_token }))
    }
}
