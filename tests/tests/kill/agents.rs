//! Those who submit agents, and the workers who do them.

use std::time::Duration;

use hvkube_sdk::v1::{
    Agent, AgentRetryPolicy, AgentStatus, AgentTask, ClaimAgentRequest, CompleteAgentRequest,
    ListAgentsRequest, ReportAgentRequest, SubmitAgentRequest,
};
use hvkube_sdk::{Client, Error};
use hvkube_tests::until;
use tokio_stream::StreamExt as _;

use crate::ledger::{Count, Ledger, Task};
use crate::line::{Dice, Line};

const WORKFLOW: &str = "errand";
/// Most agents of a run: each costs a lease.
const AGENTS: u64 = 400;

/// Submits agents, some of them twice, and cancels a few.
pub(crate) async fn submitter(line: Line, mut dice: Dice) {
    for number in 0..AGENTS {
        if line.is_over() {
            return;
        }
        let task = AgentTask {
            workflow: WORKFLOW.into(),
            input_json: format!("{{\"number\":{number}}}"),
            timeout: Duration::from_secs(600).try_into().ok(),
            ..AgentTask::default()
        };
        let retry = AgentRetryPolicy {
            max_attempts: 20,
            initial_backoff: Duration::from_millis(10).try_into().ok(),
            max_backoff: Duration::from_millis(100).try_into().ok(),
        };
        let agent =
            Agent { pool: "pools/errands".into(), task: Some(task), retry: Some(retry), ..Agent::default() };
        let submit = SubmitAgentRequest {
            agent: Some(agent),
            agent_id: format!("errand-{number}"),
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        for _ in 0..=dice.below(2) {
            match line.call(async |client| client.submit_agent(submit.clone()).await).await {
                Ok(agent) => line.ledger.task(&agent.name, |_| {}),
                Err(error) => line.ledger.found(format!("agent {number} can't be submitted: {error}")),
            }
        }
        line.ledger.count(Count::Submitted);
        if dice.percent(10) {
            let name = format!("agents/errand-{number}");
            match line.call(async |client| client.cancel_agent(&name, "no longer needed").await).await {
                Ok(agent) if agent.status() == AgentStatus::Cancelled => {
                    line.ledger.task(&name, |task| task.cancelled = true);
                    line.ledger.count(Count::Cancelled);
                }
                Ok(agent) => line.ledger.found(format!("{name} was cancelled and is {:?}", agent.status())),
                Err(error) if over(&error) => {}
                Err(error) => line.ledger.found(format!("{name} can't be cancelled: {error}")),
            }
        }
        dice.pause(250).await;
    }
}

/// The agent has ended, or another attempt has begun.
fn over(error: &Error) -> bool {
    matches!(error.reason(), Some("AGENT_ENDED" | "AGENT_CLAIM_LOST"))
}

/// Does agents, badly now and then.
pub(crate) async fn worker(line: Line, mut dice: Dice, number: u64) {
    loop {
        let claim = ClaimAgentRequest {
            workflow: WORKFLOW.into(),
            worker: format!("worker-{number}"),
            claim_ttl: Duration::from_secs(10).try_into().ok(),
            wait: Duration::from_secs(2).try_into().ok(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..ClaimAgentRequest::default()
        };
        let claimed = match line.call(async |client| client.claim_agent(claim.clone()).await).await {
            Ok(claimed) => claimed,
            Err(error) if over(&error) || error.reason() == Some("LEASE_PREEMPTED") => continue,
            Err(error) => {
                line.ledger.found(format!("nothing can be claimed: {error}"));
                return;
            }
        };
        let Some(agent) = claimed.agent else {
            if line.is_over() && open(&line).await.is_empty() {
                return;
            }
            continue;
        };
        line.ledger.count(Count::Claimed);
        let lease = claimed.lease.expect("a claim has a lease");
        // Cancelling the agent ends it.
        line.ledger.answered(&claim.request_id, &lease.name, &lease.vm, true);
        attempt(&line, &mut dice, &agent.name, claimed.epoch).await;
    }
}

async fn attempt(line: &Line, dice: &mut Dice, agent: &str, epoch: u64) {
    let ledger = &line.ledger;
    for percent in [30, 60] {
        dice.pause(40).await;
        let report = ReportAgentRequest {
            name: agent.to_owned(),
            epoch,
            progress_percent: Some(percent),
            log: vec![format!("at {percent} %")],
            ..ReportAgentRequest::default()
        };
        match line.call(async |client| client.report_agent(report.clone()).await).await {
            Ok(_) => {}
            Err(error) if over(&error) => return,
            Err(error) => ledger.found(format!("{agent} can't be reported: {error}")),
        }
    }
    let how = dice.below(20);
    let (success, retry) = (how > 2, how == 0 || how == 1);
    let output = format!("{{\"agent\":\"{agent}\",\"epoch\":{epoch}}}");
    let complete = CompleteAgentRequest {
        name: agent.to_owned(),
        epoch,
        success,
        output_json: output.clone(),
        error: if success { String::new() } else { "bad luck".into() },
        retry,
        ..CompleteAgentRequest::default()
    };
    match line.call(async |client| client.complete_agent(complete.clone()).await).await {
        Ok(_) if success => {
            ledger.task(agent, |task| task.output = Some(output));
            ledger.count(Count::Completed);
        }
        Ok(_) if retry => {}
        Ok(_) => {
            ledger.task(agent, |task| task.failed = true);
            ledger.count(Count::Completed);
        }
        Err(error) if over(&error) => {}
        Err(error) => ledger.found(format!("{agent} can't be completed: {error}")),
    }
}

/// Agents that are not over.
pub(crate) async fn open(line: &Line) -> Vec<String> {
    let statuses = [AgentStatus::Pending, AgentStatus::Scheduled, AgentStatus::Running];
    let filter =
        ListAgentsRequest { statuses: statuses.map(i32::from).to_vec(), ..ListAgentsRequest::default() };
    let all = line
        .call(async |client| client.list_agents(filter.clone()).collect::<Result<Vec<_>, _>>().await)
        .await;
    all.expect("a list").iter().map(|agent| format!("{agent:?}")).collect()
}

/// Waits until every agent that was accepted has ended, and sees that it ended as its clients were told.
pub(crate) async fn all_ended(client: &Client, ledger: &Ledger) {
    for (name, task) in ledger.tasks() {
        let agent = until(&format!("the end of {name}"), async || {
            let agent = client.get_agent(&name).await.expect("it was accepted");
            hvkube_sdk::agent_ended(agent.status()).then_some(agent)
        })
        .await;
        let result = agent.result.clone().unwrap_or_default();
        let Task { output, failed, cancelled } = task;
        let kept = match (&output, agent.status()) {
            (Some(output), AgentStatus::Completed) => result.success && result.output_json == *output,
            (None, AgentStatus::Completed) => !failed && !cancelled,
            (None, AgentStatus::Failed) => !cancelled && !result.error.is_empty(),
            (None, AgentStatus::Cancelled) => !failed,
            _ => false,
        };
        if !kept {
            ledger
                .found(format!("{name}: told {output:?}, failed {failed}, cancelled {cancelled}; {agent:?}"));
        }
    }
}
