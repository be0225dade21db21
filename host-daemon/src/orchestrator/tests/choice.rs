//! Which agent a worker gets when pools differ in what they have.

use super::agents::{OUTSIDE, claim, done, over, wanted_agent, with_pool, worker};
use super::*;
use crate::model::agent::{Agent, AgentStatus};
use crate::orchestrator::agents::request::Claimed;

async fn submit(o: &Orchestrator, pool: &str) -> Agent {
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.pool = id(pool);
    o.submit_agent(&admin(), wanted).await.expect("submitted")
}

fn claiming(bench: &Bench) -> tokio::task::JoinHandle<Claimed> {
    let o = bench.o.clone();
    tokio::spawn(async move { claim(&o).await })
}

async fn waiting(bench: &Bench, pool: &str, count: u32) {
    status_when(&bench.o, pool, &format!("{count} waiting"), |status| status.waiting == count).await;
}

/// A pool `desk` whose one VM somebody holds, and a pool `side`.
async fn with_side(size: u32) -> (Bench, Granted) {
    let bench = with_pool(1).await;
    let held = bench.acquire().await.expect("granted");
    bench.o.create_pool(pool("side", size)).await.expect("pool");
    bench.ready("side", size).await;
    (bench, held)
}

#[tokio::test]
async fn a_worker_does_not_wait_while_another_pool_has_a_vm() {
    let (bench, held) = with_side(1).await;
    let (first, second) = (submit(&bench.o, "desk").await, submit(&bench.o, "side").await);
    let claimed = claim(&bench.o).await;
    assert_eq!(claimed.agent.id, second.id);
    // The first one has kept its place in the queue, and what it gets is kept for it.
    waiting(&bench, "desk", 1).await;
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    waiting(&bench, "desk", 0).await;
    let nothing = bench.o.acquire(&admin(), wanted(Duration::ZERO)).await;
    assert!(nothing.is_err(), "it was not first in the queue: {nothing:?}");
    let then = claim(&bench.o).await;
    assert_eq!((&then.agent.id, &then.vm.vm.id), (&first.id, &held.vm.vm.id));
    for claimed in [&claimed, &then] {
        bench.o.complete_agent(&admin(), done(claimed)).await.expect("held");
        let agent = over(&bench.o, &claimed.agent.id, AgentStatus::Completed).await;
        assert_eq!(agent.attempt, 1);
    }
    bench.check().await;
}

#[tokio::test]
async fn a_worker_who_waits_leaves_for_another_pools_vm_and_the_others_stay() {
    let (bench, held) = with_side(1).await;
    let firsts = [submit(&bench.o, "desk").await, submit(&bench.o, "desk").await];
    let workers = [claiming(&bench), claiming(&bench)];
    waiting(&bench, "desk", 2).await;
    let seconds = [submit(&bench.o, "side").await, submit(&bench.o, "side").await];
    let [one, other] = workers;
    let (claimed, stays) = tokio::select! {
        (claimed, stays) = async { let mut one = one; let mut other = other; tokio::select! {
            done = &mut one => (done.expect("no panic"), other),
            done = &mut other => (done.expect("no panic"), one),
        } } => (claimed, stays),
        () = tokio::time::sleep(LONG) => panic!("nobody left"),
    };
    assert!(seconds.iter().any(|agent| agent.id == claimed.agent.id), "{:?}", claimed.agent);
    // The other one's place, and the one that is held for the agent that was left.
    waiting(&bench, "desk", 2).await;
    assert!(!stays.is_finished());
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    let claimed = stays.await.expect("no panic");
    assert!(firsts.iter().any(|agent| agent.id == claimed.agent.id), "{:?}", claimed.agent);
    bench.check().await;
}

#[tokio::test]
async fn a_pool_without_vms_makes_one_for_an_agent_that_was_passed_over() {
    let bench = with_pool(1).await;
    let mut zero = pool("zero", 0);
    zero.spec.options.idle_floor = Some(0);
    bench.o.create_pool(zero).await.expect("pool");
    let (first, second) = (submit(&bench.o, "zero").await, submit(&bench.o, "desk").await);
    assert_eq!(claim(&bench.o).await.agent.id, second.id);
    status_when(&bench.o, "zero", "one for whoever comes", |status| status.warm == 1).await;
    assert_eq!(claim(&bench.o).await.agent.id, first.id);
    bench.check().await;
}

#[tokio::test]
async fn nothing_is_held_for_an_agent_that_ended() {
    let (bench, held) = with_side(1).await;
    let (first, second) = (submit(&bench.o, "desk").await, submit(&bench.o, "side").await);
    assert_eq!(claim(&bench.o).await.agent.id, second.id);
    waiting(&bench, "desk", 1).await;
    bench.o.cancel_agent(&admin(), &first.id, "").await.expect("cancelled");
    waiting(&bench, "desk", 0).await;
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    bench.acquire().await.expect("it is anybody's");
    bench.check().await;
}

#[tokio::test]
async fn a_worker_whose_quota_is_used_up_elsewhere_waits_for_the_first_agent() {
    let bench = with_pool(1).await;
    let held = bench.acquire().await.expect("granted");
    let mut side = pool("side", 2);
    side.spec.options.max_leases_per_caller = 1;
    bench.o.create_pool(side).await.expect("pool");
    bench.ready("side", 2).await;
    submit(&bench.o, "side").await;
    claim(&bench.o).await;
    let (first, _) = (submit(&bench.o, "desk").await, submit(&bench.o, "side").await);
    let worker = claiming(&bench);
    waiting(&bench, "desk", 1).await;
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    assert_eq!(worker.await.expect("no panic").agent.id, first.id);
    bench.check().await;
}

#[tokio::test]
async fn only_those_are_woken_whom_an_agent_concerns() {
    let bench = with_pool(1).await;
    let agents = &bench.o.0.agents;
    let [desk, side] = [id("desk"), id("side")];
    let mut concerned = [agents.wait_for(OUTSIDE, None), agents.wait_for(OUTSIDE, Some(&desk))];
    let others = [agents.wait_for("other", None), agents.wait_for(OUTSIDE, Some(&side))];
    submit(&bench.o, "desk").await;
    for one in &mut concerned {
        assert!(one.has_changed().expect("open"));
        one.mark_unchanged();
    }
    for other in &others {
        assert!(!other.has_changed().expect("open"));
    }
    // When its claim ends without a result, it is there again.
    let claimed = bench.o.claim_agent(&admin(), worker(LONG)).await.expect("asked").expect("an agent");
    let mut report = done(&claimed);
    (report.error, report.retry) = (Some("not now".into()), true);
    bench.o.complete_agent(&admin(), report).await.expect("held");
    for one in &mut concerned {
        one.changed().await.expect("open");
    }
    for other in &others {
        assert!(!other.has_changed().expect("open"));
    }
}
