//! Agents: those who submit them, and the workers.

use std::sync::Arc;
use std::time::Duration;

use super::acts::{book, caller, pool_id};
use super::lab::Lab;
use super::ledger::{Claimed, Submitted};
use super::ops::{How, Op, Task};
use crate::model::agent::{AgentSpec, RetryPolicy};
use crate::orchestrator::agents::request::{ClaimAgent, CompleteAgent, ReportAgent, SubmitAgent};
use crate::orchestrator::tests::admin;

const OUTSIDE: &str = "outside";

fn workflow(task: Task) -> &'static str {
    match task {
        Task::Outside => OUTSIDE,
        Task::Echo => "echo",
        Task::Sleep => "sleep",
        Task::Fail => "fail",
    }
}

pub(super) fn act(lab: &mut Lab, op: Op) {
    let (o, ledger) = (lab.o().clone(), Arc::clone(&lab.ledger));
    match op {
        Op::Submit { pool, priority, task } => {
            let caller = caller(priority.unsigned_abs() % 3);
            let wanted = SubmitAgent {
                id: None,
                spec: AgentSpec {
                    display_name: String::new(),
                    pool: pool_id(pool),
                    workflow: workflow(task).into(),
                    timeout: Duration::from_secs(2),
                    requires_gpu: false,
                    priority: priority.into(),
                    retry: RetryPolicy {
                        max_attempts: 2,
                        initial_backoff: Duration::from_millis(5),
                        max_backoff: Duration::from_millis(20),
                    },
                    queue_timeout: Duration::from_secs(2),
                },
                default_timeout: false,
                input: r#"{"say":1}"#.into(),
                request: None,
            };
            lab.client(None, async move {
                let answer = o.submit_agent(&caller, wanted).await;
                let mut ledger = book(&ledger);
                if let Some(agent) = ledger.answered("submit", answer) {
                    ledger.agents.push(Submitted { id: agent.id, caller, end: None });
                }
            });
        }
        Op::Claim { leaves } => lab.client(leaves, async move {
            let wanted = ClaimAgent {
                workflow: OUTSIDE.into(),
                pool: None,
                worker: "worker".into(),
                ttl: None,
                wait: Duration::from_millis(150),
                request: None,
            };
            let answer = o.claim_agent(&caller(1), wanted).await;
            let mut ledger = book(&ledger);
            if let Some(Some(claimed)) = ledger.answered("claim", answer) {
                if claimed.lease.receipt.is_none() {
                    ledger.wrong.push(format!("a claim without a receipt: {:?}", claimed.lease));
                }
                let (agent, epoch) = (claimed.agent.id, claimed.agent.epoch);
                ledger.claims.push(Claimed { agent, epoch, caller: caller(1) });
            }
        }),
        Op::Report { claim } | Op::Complete { claim, .. } => {
            let Some((agent, epoch, caller)) = ({
                let ledger = book(&ledger);
                let at = usize::from(claim).checked_rem(ledger.claims.len());
                // The latest first: the others are over, mostly.
                at.map(|at| &ledger.claims[ledger.claims.len() - 1 - at])
                    .map(|claim| (claim.agent.clone(), claim.epoch, claim.caller.clone()))
            }) else {
                return;
            };
            lab.client(None, async move {
                let answer = if let Op::Complete { how, .. } = op {
                    let done = CompleteAgent {
                        id: agent.clone(),
                        epoch,
                        error: (!matches!(how, How::Done)).then(|| "it does not like it".into()),
                        retry: matches!(how, How::Again),
                        output: "1".into(),
                        uploads: Vec::new(),
                        take_screenshot: false,
                    };
                    o.complete_agent(&caller, done).await
                } else {
                    let report = ReportAgent {
                        id: agent.clone(),
                        epoch,
                        progress: Some(50),
                        message: String::new(),
                        log: vec!["on it".into()],
                        uploads: Vec::new(),
                        take_screenshot: false,
                    };
                    o.report_agent(&caller, report).await
                };
                let mut ledger = book(&ledger);
                let Some(row) = ledger.answered("report or complete", answer) else { return };
                let submitted = ledger.agents.iter_mut().find(|known| known.id == agent);
                if let Some(known) = submitted.filter(|_| row.status.is_final()) {
                    known.end.get_or_insert((row.status.as_str().to_owned(), row.output));
                }
            });
        }
        Op::Cancel { agent } => {
            let Some(id) = ({
                let ledger = book(&ledger);
                let at = usize::from(agent).checked_rem(ledger.agents.len());
                at.map(|at| ledger.agents[ledger.agents.len() - 1 - at].id.clone())
            }) else {
                return;
            };
            lab.client(None, async move {
                let answer = o.cancel_agent(&admin(), &id, "enough").await;
                book(&ledger).answered("cancel", answer);
            });
        }
        _ => {}
    }
}
