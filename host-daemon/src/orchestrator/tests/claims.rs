//! Agents and what comes between: callers who go away, quotas, preemption.

use std::pin::pin;

use futures_util::FutureExt as _;

use super::agents::*;
use super::*;
use crate::model::agent::AgentStatus;
use crate::orchestrator::agents::request::{ClaimAgent, CompleteAgent, SubmitAgent};

/// Asks for something and goes away once the store has written so many times since; true: it was answered before.
async fn cut(o: &Orchestrator, writes: u64, call: impl Future) -> bool {
    let mut call = pin!(call);
    let from = o.0.store.changes().head();
    loop {
        if call.as_mut().now_or_never().is_some() {
            return true;
        }
        // Others write from threads of their own: what was asked for is committed here, and not answered yet.
        std::thread::sleep(Duration::from_millis(2));
        if o.0.store.changes().head() >= from + writes {
            return false;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_repeat_right_after_its_submitter_went_away_gets_the_agent() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let me = admin();
    for number in 0..60u32 {
        let name = format!("named-{number}");
        let wanted =
            SubmitAgent { id: Some(id(&name)), request: Some(request("submit")), ..wanted_agent(OUTSIDE) };
        {
            let mut call = pin!(o.submit_agent(&me, wanted.clone()));
            for _ in 0..number {
                if call.as_mut().now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let again = o.submit_agent(&me, wanted).await.unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(again.id.as_str(), name);
    }
    bench.check().await;
}

#[tokio::test]
async fn what_is_written_is_noticed_though_its_caller_has_gone() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let me = admin();
    teach(&bench, &program("{}", "", 0));
    // Nobody but the submission wakes who starts programs.
    let named = SubmitAgent { id: Some(id("unheard")), ..wanted_agent(GUEST) };
    cut(o, 1, o.submit_agent(&me, named)).await;
    over(o, &id("unheard"), AgentStatus::Completed).await;
    bench.ready("desk", 1).await;

    // A program that waits for a VM hears of a cancel whose caller did not hear the answer.
    let held = bench.acquire().await.expect("granted");
    let mut unheard = 0;
    for _ in 0..10 {
        let submitted = submit(o, GUEST).await;
        agent_when(o, &submitted.id, "it waits for a vm", |agent| agent.claim.is_some()).await;
        unheard += u32::from(!cut(o, 1, o.cancel_agent(&me, &submitted.id, "")).await);
        over(o, &submitted.id, AgentStatus::Cancelled).await;
    }
    assert!(unheard > 0, "every cancel was answered");
    release(o, &held, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_repeat_right_after_its_worker_went_away_gets_a_claim_that_stays() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let me = admin();
    for writes in 1.. {
        let submitted = submit(o, OUTSIDE).await;
        let wanted = ClaimAgent { request: Some(request("claim")), ..worker(LONG) };
        let answered = cut(o, writes, o.claim_agent(&me, wanted.clone())).await;
        let claimed = o
            .claim_agent(&me, wanted)
            .await
            .unwrap_or_else(|error| panic!("after {writes} writes: {error}"))
            .expect("an agent");
        // Whatever was to be undone has been.
        bench.check().await;
        let agent = o.agent(&submitted.id).await.expect("agent");
        assert_eq!(
            (agent.status, agent.epoch, agent.attempt),
            (AgentStatus::Scheduled, claimed.agent.epoch, 1),
            "after {writes} writes"
        );
        assert!(o.lease(&claimed.lease.id).await.expect("lease").ended.is_none(), "after {writes} writes");
        o.complete_agent(&me, CompleteAgent { take_screenshot: false, ..done(&claimed) })
            .await
            .expect("held");
        over(o, &submitted.id, AgentStatus::Completed).await;
        bench.ready("desk", 1).await;
        if answered {
            assert!(writes > 3, "it was never cut");
            break;
        }
    }
}
