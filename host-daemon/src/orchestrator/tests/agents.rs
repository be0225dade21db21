//! Agents: workers and guest programs, silence, losses, retries, cancels, crashes.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use hvkube_proto::guest::v1 as pb;
use jiff::Timestamp;

use super::sim::When;
use super::*;
use crate::model::agent::{Agent, AgentFilter, AgentSpec, AgentStatus, RetryPolicy, Runner};
use crate::model::error::Reason;
use crate::model::event::{EventFilter, EventKind, Revision};
use crate::model::ids::AgentId;
use crate::orchestrator::agents::AgentSettings;
use crate::orchestrator::agents::request::{
    ClaimAgent, Claimed, CompleteAgent, GuestWorkflow, ReportAgent, SubmitAgent, Upload,
};
use crate::orchestrator::watch::{Delta, Phase};

pub(super) const GUEST: &str = "guest-flow";
/// Its program does not end.
pub(super) const ENDLESS: &str = "endless-flow";
pub(super) const OUTSIDE: &str = "outside";

pub(super) async fn start_with_agents(dir: &Path, world: &Arc<World>) -> Orchestrator {
    start_keeping(dir, world, LONG).await
}

/// `keep`: how long pictures are kept.
async fn start_keeping(dir: &Path, world: &Arc<World>, keep: Duration) -> Orchestrator {
    let workflow = GuestWorkflow {
        argv: vec!["flow".into()],
        cwd: String::new(),
        timeout: Duration::from_secs(30),
        as_root: false,
        screenshot: true,
    };
    let [missing, endless] =
        ["missing", "endless"].map(|name| GuestWorkflow { argv: vec![name.into()], ..workflow.clone() });
    let agents = AgentSettings {
        dir: dir.join("agents"),
        keep_screenshots: keep,
        workflows: BTreeMap::from([
            (GUEST.into(), workflow),
            ("no-program".into(), missing),
            (ENDLESS.into(), endless),
        ]),
        ..AgentSettings::default()
    };
    let store =
        Store::open(&StoreConfig { path: dir.join("store.db"), durable: false }).await.expect("store");
    let settings = Settings { agents, ..settings() };
    Orchestrator::start(store, Arc::new(Sim::new(world)), settings).await.expect("started")
}

pub(super) async fn with_pool(size: u32) -> Bench {
    with(pool("desk", size)).await
}

pub(super) async fn with(pool: CreatePool) -> Bench {
    let size = pool.spec.desired;
    let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
    let o = start_with_agents(dir.path(), &world).await;
    make_template(&o).await;
    o.create_pool(pool).await.expect("pool");
    let bench = Bench { dir, world, o };
    bench.ready("desk", size).await;
    bench
}

pub(super) fn wanted_agent(workflow: &str) -> SubmitAgent {
    let retry = RetryPolicy {
        max_attempts: 3,
        initial_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(5),
    };
    SubmitAgent {
        id: None,
        spec: AgentSpec {
            display_name: String::new(),
            pool: id("desk"),
            workflow: workflow.into(),
            timeout: Duration::from_secs(30),
            requires_gpu: false,
            priority: 0,
            retry,
            queue_timeout: LONG,
        },
        default_timeout: false,
        input: r#"{"dest":"NYC"}"#.into(),
        request: None,
    }
}

pub(super) async fn submit(o: &Orchestrator, workflow: &str) -> Agent {
    o.submit_agent(&admin(), wanted_agent(workflow)).await.expect("submitted")
}

pub(super) fn worker(wait: Duration) -> ClaimAgent {
    ClaimAgent { workflow: OUTSIDE.into(), pool: None, worker: "w1".into(), ttl: None, wait, request: None }
}

pub(super) async fn claim(o: &Orchestrator) -> Claimed {
    o.claim_agent(&admin(), worker(LONG)).await.expect("asked").expect("an agent")
}

pub(super) fn report(claimed: &Claimed) -> ReportAgent {
    ReportAgent {
        id: claimed.agent.id.clone(),
        epoch: claimed.agent.epoch,
        progress: Some(40),
        message: "half way".into(),
        log: vec!["a line".into()],
        uploads: Vec::new(),
        take_screenshot: false,
    }
}

pub(super) fn done(claimed: &Claimed) -> CompleteAgent {
    CompleteAgent {
        id: claimed.agent.id.clone(),
        epoch: claimed.agent.epoch,
        error: None,
        retry: false,
        output: r#"{"price":1}"#.into(),
        uploads: Vec::new(),
        take_screenshot: true,
    }
}

pub(super) async fn agent_when(
    o: &Orchestrator,
    id: &AgentId,
    what: &str,
    good: impl Fn(&Agent) -> bool,
) -> Agent {
    until(what, async || {
        let agent = o.agent(id).await.expect("agent");
        good(&agent).then_some(agent)
    })
    .await
}

/// Ended, and its VM on its way back.
pub(super) async fn over(o: &Orchestrator, id: &AgentId, status: AgentStatus) -> Agent {
    agent_when(o, id, status.as_str(), |agent| {
        assert!(!agent.status.is_final() || agent.status == status, "{agent:?}");
        agent.status == status && agent.claim.is_none()
    })
    .await
}

pub(super) async fn log_of(o: &Orchestrator, id: &AgentId) -> String {
    let entries = o.agent_log(id, 0, 1000).await.expect("log");
    assert!(entries.is_sorted_by_key(|entry| entry.sequence));
    entries.into_iter().map(|entry| format!("{}: {}\n", entry.source.as_str(), entry.text)).collect()
}

/// What the guest's program says.
pub(super) fn program(stdout: &str, stderr: &str, code: i32) -> Vec<pb::ExecResponse> {
    use pb::exec_response::Event;
    let exit = pb::ExecExit { code, ..Default::default() };
    let mut events = vec![Event::Started(7)];
    if !stderr.is_empty() {
        events.push(Event::Stderr(stderr.to_owned().into()));
    }
    events.extend([Event::Stdout(stdout.to_owned().into()), Event::Exit(exit)]);
    events.into_iter().map(|event| pb::ExecResponse { event: Some(event) }).collect()
}

pub(super) fn teach(bench: &Bench, events: &[pb::ExecResponse]) {
    for name in bench.world.names() {
        bench.world.agent(&id(&name)).state().exec = events.to_vec();
    }
}

#[tokio::test]
async fn a_worker_takes_an_agent_and_completes_it() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let submitted = submit(o, OUTSIDE).await;
    let claimed = claim(o).await;
    assert_eq!((&claimed.agent.id, claimed.agent.status), (&submitted.id, AgentStatus::Scheduled));
    assert_eq!(claimed.agent.input, r#"{"dest":"NYC"}"#);
    assert_eq!(claimed.agent.vm.as_ref(), Some(&claimed.vm.vm.id));
    assert!(claimed.lease.receipt.is_some(), "the desktop is proven");
    let shown = o.vm(&claimed.vm.vm.id).await.expect("vm").agent;
    assert_eq!(shown, Some(submitted.id.clone()));

    let reported = o.report_agent(&admin(), report(&claimed)).await.expect("held");
    assert_eq!((reported.status, reported.progress), (AgentStatus::Running, 40));
    bench.world.soil(&claimed.vm.vm.id);
    let completed = o.complete_agent(&admin(), done(&claimed)).await.expect("held");
    assert_eq!(completed.status, AgentStatus::Completed);
    let again = o.complete_agent(&admin(), done(&claimed)).await.expect("a repeat");
    // Its claim goes when the lease has ended, which may be before or after the repeat.
    assert_eq!(
        (again.status, again.ended, &again.output),
        (completed.status, completed.ended, &completed.output)
    );

    let ended = over(o, &submitted.id, AgentStatus::Completed).await;
    assert_eq!((ended.output.as_str(), ended.attempt), (r#"{"price":1}"#, 1));
    let shot = &ended.shots[0];
    assert_eq!((shot.width, shot.height, shot.content_type.as_str()), (8, 8, "image/png"));
    let image = o.agent_screenshot(&submitted.id, &shot.id).await.expect("kept");
    assert_eq!(image.image.len() as u64, shot.bytes);
    let log = log_of(o, &submitted.id).await;
    assert!(log.contains("worker: a line") && log.contains("daemon: completed"), "{log}");
    bench.ready("desk", 1).await;
    assert_eq!(bench.world.dirt(&claimed.vm.vm.id), Some(0), "reset");
    bench.check().await;
}

#[tokio::test]
async fn a_silent_worker_loses_its_claim_and_comes_too_late() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let submitted = submit(o, OUTSIDE).await;
    let brief = ClaimAgent { ttl: Some(Duration::from_millis(50)), ..worker(LONG) };
    let first = o.claim_agent(&admin(), brief).await.expect("asked").expect("an agent");
    bench.world.soil(&first.vm.vm.id);
    // The long poll gets it once its VM is back and clean.
    let second = claim(o).await;
    assert_eq!((&second.agent.id, second.agent.attempt), (&submitted.id, 2));
    assert!(second.agent.epoch > first.agent.epoch);
    assert_eq!(bench.world.dirt(&second.vm.vm.id), Some(0));
    for late in [
        o.report_agent(&admin(), report(&first)).await.expect_err("late"),
        o.complete_agent(&admin(), done(&first)).await.expect_err("late"),
    ] {
        assert_eq!(late.reason, Reason::AgentClaimLost);
    }
    o.complete_agent(&admin(), done(&second)).await.expect("held");
    over(o, &submitted.id, AgentStatus::Completed).await;
    assert!(log_of(o, &submitted.id).await.contains("w1 was silent"));
    let late = o.complete_agent(&admin(), done(&first)).await.expect_err("late");
    assert_eq!(late.reason, Reason::AgentEnded);
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_vm_that_dies_and_a_time_that_is_over_are_tried_again_until_they_fail() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.retry.max_attempts = 2;
    let submitted = o.submit_agent(&admin(), wanted.clone()).await.expect("submitted");
    for _ in 0..2 {
        let claimed = claim(o).await;
        bench.world.exit(&claimed.vm.vm.id, false).await;
        agent_when(o, &submitted.id, "the loss", |agent| {
            agent.epoch == claimed.agent.epoch && agent.claim.is_none()
        })
        .await;
    }
    let failed = over(o, &submitted.id, AgentStatus::Failed).await;
    assert!(failed.reason.contains("lost its vm"), "{}", failed.reason);
    assert_eq!(failed.attempt, 2);

    wanted.spec.timeout = Duration::from_millis(20);
    wanted.spec.retry.max_attempts = 1;
    let submitted = o.submit_agent(&admin(), wanted).await.expect("submitted");
    claim(o).await;
    let failed = over(o, &submitted.id, AgentStatus::Failed).await;
    assert!(failed.reason.contains("not done within"), "{}", failed.reason);
    bench.ready("desk", 1).await;
}

#[tokio::test]
async fn a_guest_program_runs_by_itself() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    teach(&bench, &program("{\"ok\": true}\n", "warming up\ngo\n", 0));
    let submitted = submit(o, GUEST).await;
    let ended = over(o, &submitted.id, AgentStatus::Completed).await;
    assert_eq!(ended.output, r#"{"ok": true}"#);
    assert_eq!((ended.runner, ended.attempt, ended.shots.len()), (Some(Runner::Guest), 1, 1));
    let log = log_of(o, &submitted.id).await;
    assert!(log.contains("stderr: warming up\nstderr: go\n"), "{log}");
    bench.ready("desk", 1).await;

    teach(&bench, &program("", "no such flight\n", 3));
    let submitted = submit(o, GUEST).await;
    let ended = over(o, &submitted.id, AgentStatus::Failed).await;
    assert_eq!((ended.attempt, ended.reason.as_str()), (3, "exited with code 3: no such flight"));
    bench.ready("desk", 1).await;

    teach(&bench, &program("done", "", 0));
    let submitted = submit(o, GUEST).await;
    let ended = over(o, &submitted.id, AgentStatus::Failed).await;
    assert!(ended.attempt == 1 && ended.reason.contains("no JSON"), "{ended:?}");
    let submitted = submit(o, "no-program").await;
    let ended = over(o, &submitted.id, AgentStatus::Failed).await;
    assert_eq!(ended.attempt, 1, "there is no use in another one");
    let refused = o.claim_agent(&admin(), ClaimAgent { workflow: GUEST.into(), ..worker(LONG) }).await;
    assert_eq!(refused.expect_err("the daemon's own").violations[0].field, "workflow");
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_cancel_reaches_whoever_has_it() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let claimed = {
        submit(o, OUTSIDE).await;
        claim(o).await
    };
    let waiting = submit(o, OUTSIDE).await;
    for id in [&waiting.id, &claimed.agent.id] {
        let cancelled = o.cancel_agent(&admin(), id, "").await.expect("cancelled");
        assert_eq!((cancelled.status, cancelled.reason.as_str()), (AgentStatus::Cancelled, "by admin"));
        let again = o.cancel_agent(&admin(), id, "").await.expect("as it is");
        assert_eq!(again.version, o.agent(id).await.expect("agent").version);
    }
    let late = o.report_agent(&admin(), report(&claimed)).await.expect_err("late");
    assert_eq!(late.reason, Reason::AgentEnded);
    bench.ready("desk", 1).await;

    // A program that waits for a VM.
    let held = bench.acquire().await.expect("granted");
    let submitted = submit(o, GUEST).await;
    agent_when(o, &submitted.id, "it waits for a vm", |agent| agent.claim.is_some()).await;
    let other = Caller { name: "other".into(), admin: false };
    let refused = o.cancel_agent(&other, &submitted.id, "").await.expect_err("not theirs");
    assert_eq!(refused.reason, Reason::AgentNotYours);
    o.cancel_agent(&admin(), &submitted.id, "changed my mind").await.expect("cancelled");
    over(o, &submitted.id, AgentStatus::Cancelled).await;
    release(o, &held, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn the_more_important_agent_comes_first_and_one_agent_has_one_worker() {
    let bench = with_pool(3).await;
    let o = &bench.o;
    let plain = submit(o, OUTSIDE).await;
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.priority = 5;
    let urgent = o.submit_agent(&admin(), wanted).await.expect("submitted");
    let (one, two) = tokio::join!(claim(o), claim(o));
    let got = [&one.agent.id, &two.agent.id];
    assert!(got.contains(&&plain.id) && got.contains(&&urgent.id), "{got:?}");
    let none = o.claim_agent(&admin(), worker(Duration::from_millis(5))).await.expect("asked");
    assert!(none.is_none());
    for claimed in [one, two] {
        o.complete_agent(&admin(), done(&claimed)).await.expect("held");
    }
    submit(o, OUTSIDE).await;
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.priority = 5;
    let urgent = o.submit_agent(&admin(), wanted).await.expect("submitted");
    assert_eq!(claim(o).await.agent.id, urgent.id);
}

#[tokio::test]
async fn repeats_give_the_first_answer() {
    let bench = with_pool(2).await;
    let o = &bench.o;
    let wanted = SubmitAgent { request: Some(request("submit")), ..wanted_agent(OUTSIDE) };
    let one = o.submit_agent(&admin(), wanted.clone()).await.expect("submitted");
    let two = o.submit_agent(&admin(), wanted).await.expect("the same");
    assert_eq!(one.id, two.id);
    let wanted = ClaimAgent { request: Some(request("claim")), ..worker(LONG) };
    let first = o.claim_agent(&admin(), wanted.clone()).await.expect("asked").expect("an agent");
    let second = o.claim_agent(&admin(), wanted.clone()).await.expect("asked").expect("the same");
    assert_eq!((first.agent.epoch, &first.lease.id), (second.agent.epoch, &second.lease.id));
    let other = Caller { name: "other".into(), admin: false };
    let refused = o.report_agent(&other, report(&first)).await.expect_err("not theirs");
    assert_eq!(refused.reason, Reason::AgentNotYours);
    o.complete_agent(&admin(), done(&first)).await.expect("held");
    let gone = o.claim_agent(&admin(), wanted).await.expect_err("over");
    assert_eq!(gone.reason, Reason::AgentEnded);
    let wanted = SubmitAgent { id: Some(one.id.clone()), ..wanted_agent(OUTSIDE) };
    let taken = o.submit_agent(&admin(), wanted).await.expect_err("taken");
    assert_eq!(taken.reason, Reason::AlreadyExists);
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.requires_gpu = true;
    let refused = o.submit_agent(&admin(), wanted.clone()).await.expect_err("no gpu");
    assert_eq!(refused.reason, Reason::NotSupported);
    wanted.spec.pool = id("none");
    assert_eq!(o.submit_agent(&admin(), wanted).await.expect_err("no pool").reason, Reason::NotFound);
}

#[tokio::test]
async fn a_worker_who_goes_away_at_any_moment_leaves_the_agent_free() {
    use futures_util::FutureExt as _;
    let bench = with_pool(1).await;
    let o = &bench.o;
    let submitted = submit(o, OUTSIDE).await;
    // Far more steps than a claim has, since waiting for the store takes some too.
    for steps in (0..20_000u32).step_by(11) {
        {
            let caller = admin();
            let mut claiming = std::pin::pin!(o.claim_agent(&caller, worker(LONG)));
            for _ in 0..steps {
                if let Some(claimed) = claiming.as_mut().now_or_never() {
                    let claimed = claimed.expect("asked").expect("an agent");
                    let back = CompleteAgent { error: Some("not now".into()), retry: true, ..done(&claimed) };
                    let agent =
                        o.complete_agent(&caller, CompleteAgent { take_screenshot: false, ..back }).await;
                    assert_eq!(agent.expect("held").status, AgentStatus::Pending);
                    // It counts as an attempt, and there is to be no end of them here.
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
        let agent = agent_when(o, &submitted.id, "it is free", |agent| agent.claim.is_none()).await;
        assert_eq!((agent.status, agent.attempt), (AgentStatus::Pending, 0), "after {steps} steps");
        bench.ready("desk", 1).await;
    }
    panic!("no claim was ever granted");
}

#[tokio::test]
async fn who_waits_too_long_fails_and_old_agents_go() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let mut wanted = wanted_agent(OUTSIDE);
    wanted.spec.queue_timeout = Duration::from_millis(1);
    let submitted = o.submit_agent(&admin(), wanted).await.expect("submitted");
    let failed = over(o, &submitted.id, AgentStatus::Failed).await;
    assert!(failed.reason.contains("not started within"), "{}", failed.reason);
    let old = o.0.store.overdue_agents(Timestamp::now(), Timestamp::now()).await.expect("read");
    assert!(old.is_empty(), "{old:?}");
    let gone = o.0.store.prune_agents(Timestamp::now()).await.expect("pruned");
    assert_eq!(gone, [submitted.id]);
}

#[tokio::test]
async fn who_waits_for_a_vm_in_vain_fails_though_somebody_has_taken_it() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    o.pause_pool(&id("desk"), None, true).await.expect("paused");
    for workflow in [GUEST, OUTSIDE] {
        let mut wanted = wanted_agent(workflow);
        wanted.spec.queue_timeout = Duration::from_millis(100);
        let submitted = o.submit_agent(&admin(), wanted).await.expect("submitted");
        let me = admin();
        let claiming = o.claim_agent(&me, worker(LONG));
        let ended = agent_when(o, &submitted.id, "failed", |agent| agent.status == AgentStatus::Failed);
        let ended = tokio::select! {
            claimed = claiming, if workflow == OUTSIDE => panic!("no vm is ready: {claimed:?}"),
            ended = ended => ended,
        };
        assert!(ended.reason.contains("not started within"), "{}", ended.reason);
    }
}

#[tokio::test]
async fn pictures_expire_and_the_agent_stays() {
    let bench = with_pool(1).await;
    let submitted = submit(&bench.o, OUTSIDE).await;
    let claimed = claim(&bench.o).await;
    bench.o.complete_agent(&admin(), done(&claimed)).await.expect("held");
    over(&bench.o, &submitted.id, AgentStatus::Completed).await;
    let picture = bench.dir.path().join(format!("agents/{}/1.png", submitted.id));
    assert!(picture.exists());
    std::fs::write(picture.with_file_name("2.png"), "no row names it").expect("written");
    bench.o.shutdown().await;

    let o = start_with_agents(bench.dir.path(), &bench.world).await;
    assert!(picture.exists() && !picture.with_file_name("2.png").exists(), "only the unknown one goes");
    o.shutdown().await;
    let o = start_keeping(bench.dir.path(), &bench.world, Duration::ZERO).await;
    let agent = agent_when(&o, &submitted.id, "expired", |agent| agent.shots.is_empty()).await;
    assert_eq!(agent.status, AgentStatus::Completed);
    until("the file is gone", async || (!picture.exists()).then_some(())).await;
    let gone = o.agent_screenshot(&submitted.id, "1").await.expect_err("expired");
    assert_eq!(gone.reason, Reason::NotFound);
    o.shutdown().await;
}

#[tokio::test]
async fn only_pictures_are_kept_and_not_too_many() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    submit(o, OUTSIDE).await;
    let claimed = claim(o).await;
    let upload = |image: &'static [u8]| {
        vec![Upload { field: "screenshots[0].image".into(), image: image.into(), label: "x".into() }]
    };
    for bad in [&b""[..], b"no picture at all", b"\x89PNG\r\n\x1a\n"] {
        let refused =
            o.report_agent(&admin(), ReportAgent { uploads: upload(bad), ..report(&claimed) }).await;
        assert_eq!(refused.expect_err("refused").violations[0].field, "screenshots[0].image");
    }
    for _ in 0..20 {
        o.report_agent(&admin(), ReportAgent { take_screenshot: true, ..report(&claimed) })
            .await
            .expect("kept");
    }
    let full = o.report_agent(&admin(), ReportAgent { take_screenshot: true, ..report(&claimed) }).await;
    assert_eq!(full.expect_err("full").reason, Reason::TooManyScreenshots);
    let agent = o.complete_agent(&admin(), CompleteAgent { take_screenshot: false, ..done(&claimed) }).await;
    let names: Vec<_> = agent.expect("held").shots.into_iter().map(|shot| shot.id).collect();
    assert_eq!(names.len(), 20);
    assert_eq!((names[0].as_str(), names[19].as_str()), ("1", "20"));
}

#[tokio::test]
async fn events_of_one_agent_are_told_by_themselves() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let (first, second) = (submit(o, OUTSIDE).await, submit(o, OUTSIDE).await);
    let mut watch = o.watch_events(about(&first), None).expect("open");
    let mut kinds = Vec::new();
    for agent in [&first, &second] {
        let claimed = claim(o).await;
        assert_eq!(claimed.agent.id, agent.id);
        o.complete_agent(&admin(), done(&claimed)).await.expect("held");
        over(o, &agent.id, AgentStatus::Completed).await;
    }
    while !kinds.contains(&EventKind::AgentCompleted) {
        let told = watch.next().await.expect("goes on").expect("no error");
        assert!(told.items.iter().all(|event| event.agent.as_ref() == Some(&first.id)), "{told:?}");
        kinds.extend(told.items.iter().map(|event| event.kind));
    }
    kinds.retain(|kind| *kind != EventKind::AgentChanged);
    let story = [EventKind::AgentSubmitted, EventKind::AgentScheduled, EventKind::AgentCompleted];
    assert_eq!(kinds, story);
    let (stored, _) = o.0.store.events(0, 1000, &about(&second)).await.expect("events");
    assert!(!stored.is_empty() && stored.iter().all(|event| event.agent.as_ref() == Some(&second.id)));
}

#[tokio::test]
async fn agents_in_several_statuses_are_one_list() {
    use AgentStatus::{Cancelled, Completed, Failed, Pending};
    let bench = with_pool(1).await;
    let o = &bench.o;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(submit(o, OUTSIDE).await);
    }
    o.cancel_agent(&admin(), &all[1].id, "").await.expect("cancelled");
    let claimed = claim(o).await;
    o.complete_agent(&admin(), done(&claimed)).await.expect("held");
    over(o, &all[0].id, Completed).await;
    o.cancel_agent(&admin(), &all[3].id, "").await.expect("cancelled");
    let list = async |statuses: &[AgentStatus], after: &str, limit| {
        let filter = AgentFilter { statuses: statuses.to_vec(), ..AgentFilter::default() };
        let page = Page { after: after.to_owned(), limit };
        let found = o.agents(&filter, &page).await.expect("listed");
        found
            .iter()
            .map(|agent| all.iter().position(|one| one.id == agent.id).expect("known"))
            .collect::<Vec<_>>()
    };
    assert_eq!(list(&[Completed, Cancelled], "", 10).await, [3, 1, 0]);
    assert_eq!(list(&[Failed, Pending, Cancelled], "", 10).await, [4, 3, 2, 1]);
    assert_eq!(list(&[Failed, Pending, Cancelled], "", 2).await, [4, 3]);
    let after = all[3].number.to_string();
    assert_eq!(list(&[Pending, Cancelled, Completed], &after, 2).await, [2, 1]);
    assert_eq!(list(&[Pending, Pending], "", 10).await, [4, 2], "a status that is named twice counts once");
}

fn about(agent: &Agent) -> EventFilter {
    EventFilter { agent: Some(agent.id.clone()), ..EventFilter::default() }
}

#[tokio::test]
async fn a_watch_tells_all_that_changes_and_goes_on_where_it_was() {
    let bench = with_pool(1).await;
    let o = &bench.o;
    let first = submit(o, OUTSIDE).await;
    let all = AgentFilter::default();
    let mut watch = o.watch_agents(all.clone(), None).expect("open");
    let item = watch.next().await.expect("goes on").expect("no error");
    assert_eq!((item.phase, item.items.len(), item.revision), (Phase::Snapshot, 1, None));
    assert!(item.items[0].input.is_empty());
    let item = watch.next().await.expect("goes on").expect("no error");
    assert_eq!((item.phase, item.items.len()), (Phase::Synced, 0));
    let revision = item.revision.expect("a revision");

    let second = submit(o, OUTSIDE).await;
    o.cancel_agent(&admin(), &first.id, "").await.expect("cancelled");
    let told = |seen: &mut BTreeMap<AgentId, AgentStatus>, item: &Delta<Agent, AgentId>| {
        seen.extend(item.items.iter().map(|agent| (agent.id.clone(), agent.status)));
    };
    let wanted = BTreeMap::from([
        (first.id.clone(), AgentStatus::Cancelled),
        (second.id.clone(), AgentStatus::Pending),
    ]);
    let mut seen = BTreeMap::new();
    while seen != wanted {
        told(&mut seen, &watch.next().await.expect("goes on").expect("no error"));
    }
    let mut again = o.watch_agents(all.clone(), Some(revision)).expect("known");
    let mut seen = BTreeMap::new();
    loop {
        let item = again.next().await.expect("goes on").expect("no error");
        told(&mut seen, &item);
        if item.phase == Phase::Synced {
            break;
        }
    }
    assert_eq!(seen, wanted);

    let pending = AgentFilter { statuses: vec![AgentStatus::Pending], ..all.clone() };
    let mut watch = o.watch_agents(pending, None).expect("open");
    while watch.next().await.expect("goes on").expect("no error").phase != Phase::Synced {}
    o.cancel_agent(&admin(), &second.id, "").await.expect("cancelled");
    let item = watch.next().await.expect("goes on").expect("no error");
    assert_eq!((item.removed, item.items.len()), (vec![second.id.clone()], 0));

    let other = Revision { incarnation: !revision.incarnation, ..revision };
    let gone = o.watch_agents(all.clone(), Some(other)).err().expect("unknown");
    assert_eq!(gone.reason, Reason::RevisionGone);

    let mut behind = o.watch_agents(all, Some(revision)).expect("known");
    o.0.store.prune_agents(Timestamp::now()).await.expect("pruned");
    let mut removed = BTreeSet::new();
    while removed.len() < 2 {
        removed.extend(behind.next().await.expect("goes on").expect("no error").removed);
    }
    assert_eq!(removed, BTreeSet::from([first.id, second.id]), "deletions are told");
}

/// The daemon dies at each step of an agent's life; the next one goes on.
#[test]
fn whatever_the_daemon_dies_of_no_agent_is_lost() {
    for (workflow, call, when) in [
        (OUTSIDE, "resume", When::Before),
        (OUTSIDE, "resume", When::After),
        (OUTSIDE, "open_guest", When::After),
        (OUTSIDE, "reset", When::Before),
        (OUTSIDE, "", When::After),
        (GUEST, "resume", When::Before),
        (GUEST, "open_guest", When::After),
        (GUEST, "reset", When::After),
    ] {
        let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
        let first = runtime();
        let o = first.block_on(async {
            let o = start_with_agents(dir.path(), &world).await;
            make_template(&o).await;
            o.create_pool(pool("desk", 1)).await.expect("pool");
            status_when(&o, "desk", "one", |status| status.warm == 1).await;
            o
        });
        for name in world.names() {
            world.agent(&id(&name)).state().exec = program("{}", "", 0);
        }
        let gate = (!call.is_empty()).then(|| world.gate(call, when));
        let submitted = first.block_on(submit(&o, workflow));
        let (this, outside) = (o.clone(), workflow == OUTSIDE);
        let (claimed, mut has) = tokio::sync::watch::channel(None);
        first.spawn(async move {
            if outside {
                let got = claim(&this).await;
                if call == "reset" {
                    this.complete_agent(&admin(), CompleteAgent { take_screenshot: false, ..done(&got) })
                        .await
                        .expect("held");
                }
                claimed.send_replace(Some(got));
            }
            std::future::pending::<()>().await;
        });
        first.block_on(async {
            let reached = async {
                match &gate {
                    Some(gate) => gate.reached().await,
                    None => drop(has.wait_for(Option::is_some).await),
                }
            };
            tokio::time::timeout(LONG, reached)
                .await
                .unwrap_or_else(|_| panic!("{call} was never asked for"));
        });
        drop(o);
        first.shutdown_timeout(LONG);
        world.ungate();
        let claimed = has.borrow().clone();

        let second = runtime();
        second.block_on(async {
            let what = format!("{workflow} {call} {when:?}");
            let o = start_with_agents(dir.path(), &world).await;
            let agent = o.agent(&submitted.id).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            if outside && !agent.status.is_final() {
                let held = match claimed {
                    // The worker goes on with what it has.
                    Some(claimed) => {
                        o.report_agent(&admin(), report(&claimed))
                            .await
                            .unwrap_or_else(|e| panic!("{what}: {e}"));
                        claimed
                    }
                    None => claim(&o).await,
                };
                o.complete_agent(&admin(), done(&held))
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            over(&o, &submitted.id, AgentStatus::Completed).await;
            status_when(&o, "desk", &format!("{what}: ready"), |status| status.warm == 1).await;
            check(&o, &world).await;
            o.shutdown().await;
        });
        second.shutdown_timeout(LONG);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}
