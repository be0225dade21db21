//! Agents and what comes between: callers who go away, quotas, preemption.

use std::pin::pin;

use futures_util::FutureExt as _;

use jiff::Timestamp;

use super::agents::*;
use super::*;
use crate::model::agent::{Agent, AgentStatus};
use crate::model::error::Reason;
use crate::orchestrator::agents::request::{ClaimAgent, Claimed, CompleteAgent, ReportAgent, SubmitAgent};

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

#[tokio::test]
async fn a_quota_costs_no_attempt() {
    let mut wish = pool("desk", 2);
    wish.spec.options.max_leases_per_caller = 1;
    let bench = with(wish).await;
    let o = &bench.o;
    let me = admin();
    teach(&bench, &program("{}", "", 0));
    let held = bench.acquire().await.expect("granted");

    // A worker is told, and the agent is free for others.
    let submitted = submit(o, OUTSIDE).await;
    let refused = o.claim_agent(&me, worker(LONG)).await.expect_err("it holds one already");
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    let agent = o.agent(&submitted.id).await.expect("agent");
    assert_eq!((agent.status, agent.attempt, agent.claim), (AgentStatus::Pending, 0, None));
    let other = Caller { name: "other".into(), admin: false };
    let claimed = o.claim_agent(&other, worker(LONG)).await.expect("asked").expect("an agent");
    assert_eq!(claimed.agent.id, submitted.id);
    o.complete_agent(&other, done(&claimed)).await.expect("held");
    over(o, &submitted.id, AgentStatus::Completed).await;

    // A program waits until its submitter may have another VM.
    let mut wanted = wanted_agent(GUEST);
    wanted.spec.retry.max_attempts = 1;
    let submitted = o.submit_agent(&me, wanted).await.expect("submitted");
    let agent =
        agent_when(o, &submitted.id, "refused", |agent| agent.epoch > 0 && agent.claim.is_none()).await;
    assert_eq!((agent.status, agent.attempt), (AgentStatus::Pending, 0), "{}", agent.reason);
    assert!(agent.not_before > agent.created, "not asked for again at once");
    release(o, &held, ReleasePolicy::Reset).await;
    let agent = over(o, &submitted.id, AgentStatus::Completed).await;
    assert_eq!(agent.attempt, 1);
    bench.ready("desk", 2).await;
    bench.check().await;
}

fn preemptible() -> CreatePool {
    let mut wish = pool("desk", 1);
    wish.spec.options.preemption = true;
    wish
}

#[tokio::test]
async fn the_time_of_a_preempted_agent_stands_still() {
    let bench = with(preemptible()).await;
    let o = &bench.o;
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.timeout = Duration::from_secs(3);
    wanted.spec.retry.max_attempts = 1;
    let submitted = o.submit_agent(&admin(), wanted).await.expect("submitted");
    let claimed = claim(o).await;
    let deadline = |agent: &Agent| agent.claim.as_ref().and_then(|claim| claim.deadline).expect("held");
    let before = deadline(&claimed.agent);
    let important = Acquire { priority: 10, ..super::wanted(LONG) };
    let high = o.acquire(&admin(), important).await.expect("granted");
    until("its time would be over", async || (Timestamp::now() > before).then_some(())).await;
    // Whoever watches over it has looked again since.
    o.report_agent(&admin(), ReportAgent { uploads: Vec::new(), ..report(&claimed) }).await.expect("held");
    release(o, &high, ReleasePolicy::Reset).await;
    let on = agent_when(o, &submitted.id, "it goes on", |agent| {
        assert_eq!(agent.status, AgentStatus::Running, "{}", agent.reason);
        deadline(agent) > before
    })
    .await;
    assert_eq!(on.attempt, 1);
    o.complete_agent(&admin(), CompleteAgent { take_screenshot: false, ..done(&claimed) })
        .await
        .expect("held");
    over(o, &submitted.id, AgentStatus::Completed).await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_preempted_program_is_run_again_and_has_not_failed() {
    let bench = with(preemptible()).await;
    let o = &bench.o;
    teach(&bench, &program("", "", 0)[..1]);
    let mut wanted = wanted_agent(ENDLESS);
    wanted.spec.retry.max_attempts = 1;
    let submitted = o.submit_agent(&admin(), wanted).await.expect("submitted");
    let first =
        agent_when(o, &submitted.id, "it runs", |agent| agent.status == AgentStatus::Running).await.epoch;
    let important = Acquire { priority: 10, ..super::wanted(LONG) };
    let high = o.acquire(&admin(), important).await.expect("granted");
    agent_when(o, &submitted.id, "interrupted", |agent| {
        assert_ne!(agent.status, AgentStatus::Failed, "{}", agent.reason);
        agent.claim.is_none() || agent.epoch > first
    })
    .await;
    teach(&bench, &program("{}", "", 0));
    release(o, &high, ReleasePolicy::Reset).await;
    agent_when(o, &submitted.id, "it runs again", |agent| {
        assert_ne!(agent.status, AgentStatus::Failed, "{}", agent.reason);
        agent.status.is_final() && agent.claim.is_none()
    })
    .await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

/// Taken up from a daemon that ended no such waits, at schema 4.
#[tokio::test]
async fn who_waits_for_another_attempt_does_not_wait_for_ever() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.queue_timeout = Duration::from_secs(1);
    let submitted = o.submit_agent(&admin(), wanted.clone()).await.expect("submitted");
    let again = async |claimed: &Claimed| {
        let back = CompleteAgent { error: Some("not now".into()), retry: true, ..done(claimed) };
        o.complete_agent(&admin(), CompleteAgent { take_screenshot: false, ..back }).await.expect("held");
    };
    again(&claim(o).await).await;
    let failed = over(o, &submitted.id, AgentStatus::Failed).await;
    assert!(failed.attempt == 1 && failed.reason.contains("not started within 1 s"), "{}", failed.reason);

    wanted.spec.queue_timeout = LONG;
    let submitted = o.submit_agent(&admin(), wanted).await.expect("submitted");
    again(&claim(o).await).await;
    agent_when(o, &submitted.id, "free", |agent| agent.claim.is_none()).await;
    bench.o.shutdown().await;
    let db = rusqlite::Connection::open(bench.dir.path().join("store.db")).expect("opened");
    db.execute_batch(
        "DELETE FROM _sqlx_migrations WHERE version = 5;
         DROP INDEX agents_by_workflow;
         DROP INDEX agents_by_status;
         UPDATE agents SET queue_end = NULL, row = json_remove(row, '$.waiting_since');",
    )
    .expect("as it was");
    drop(db);
    let o = start_with_agents(bench.dir.path(), &bench.world).await;
    let agent = o.agent(&submitted.id).await.expect("agent");
    let end = agent.queue_end().expect("it waits");
    assert!(agent.waiting_since.is_some_and(|since| since + LONG == end), "{agent:?}");
    let overdue = o.0.store.overdue_agents(end, Timestamp::MIN).await.expect("read");
    assert_eq!(overdue.iter().map(|agent| &agent.id).collect::<Vec<_>>(), [&submitted.id]);
    o.shutdown().await;
}

#[tokio::test]
async fn old_agents_go_a_few_at_a_time() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    for _ in 0..23 {
        let submitted = submit(o, OUTSIDE).await;
        o.cancel_agent(&admin(), &submitted.id, "").await.expect("cancelled");
    }
    let mut gone = Vec::new();
    for _ in 0..4 {
        gone.push(o.0.store.prune_agents(Timestamp::now()).await.expect("pruned").len());
    }
    assert_eq!(gone, [10, 10, 3, 0]);
}
