use super::*;
use proptest::prelude::*;

fn now() -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_123_456).expect("in range")
}

fn later(seconds: u64) -> Timestamp {
    now() + Duration::from_secs(seconds)
}

fn agent(max_attempts: u32) -> Agent {
    Agent {
        number: 0,
        id: "a1".parse().expect("legal"),
        uid: Uuid::from_u128(7),
        owner: "ci".into(),
        spec: AgentSpec {
            display_name: String::new(),
            pool: "web".parse().expect("legal"),
            workflow: "book-flight".into(),
            timeout: Duration::from_secs(60),
            requires_gpu: false,
            priority: 0,
            retry: RetryPolicy {
                max_attempts,
                initial_backoff: Duration::from_secs(2),
                max_backoff: Duration::from_secs(5),
            },
            queue_timeout: Duration::from_secs(3600),
        },
        input: String::new(),
        status: AgentStatus::Pending,
        reason: String::new(),
        claim: None,
        runner: None,
        worker: String::new(),
        vm: None,
        attempt: 0,
        epoch: 0,
        progress: 0,
        progress_message: String::new(),
        not_before: now(),
        waiting_since: None,
        outcome: None,
        output: String::new(),
        shots: Vec::new(),
        shots_taken: 0,
        created: now(),
        started: None,
        ended: None,
        updated: now(),
        version: 1,
    }
}

fn claim(runner: Runner) -> Claim {
    Claim {
        id: Uuid::from_u128(9),
        runner,
        holder: "ci".into(),
        worker: "w1".into(),
        lease: None,
        ttl: Duration::from_secs(10),
        expires: None,
        deadline: None,
    }
}

fn lease() -> LeaseId {
    "l-1".parse().expect("legal")
}

fn vm() -> VmId {
    "web-0".parse().expect("legal")
}

#[test]
fn statuses_read_back_and_final_ones_have_no_moves() {
    for status in AgentStatus::ALL {
        assert_eq!(AgentStatus::parse(status.as_str()), Some(status));
        let moves = AgentStatus::ALL.into_iter().filter(|next| status.may_become(*next)).count();
        assert_eq!(status.is_final(), moves == 0);
        assert!(!status.may_become(status));
    }
    assert!(!AgentStatus::Pending.may_become(AgentStatus::Completed));
    assert!(!AgentStatus::Scheduled.may_become(AgentStatus::Completed));
}

#[test]
fn a_good_life() {
    let mut agent = agent(3);
    let epoch = agent.reserve(claim(Runner::External), now()).expect("free");
    assert_eq!(agent.reserve(claim(Runner::External), now()), Err(Refused::NotFree));
    assert_eq!(agent.report(epoch, now()), Err(Refused::ClaimLost), "nothing to report on yet");
    agent.assign(epoch, lease(), vm(), now()).expect("assigned");
    assert_eq!(agent.claim.as_ref().and_then(|claim| claim.expires), Some(later(10)));
    assert_eq!(agent.claim.as_ref().and_then(|claim| claim.deadline), Some(later(60)));
    agent.report(epoch, later(5)).expect("held");
    assert_eq!(agent.status, AgentStatus::Running);
    assert_eq!(agent.claim.as_ref().and_then(|claim| claim.expires), Some(later(15)));
    assert_eq!(agent.report(epoch + 1, later(5)), Err(Refused::ClaimLost));
    agent.complete(epoch, Ok(()), "{}".into(), later(7)).expect("held");
    let outcome = agent.outcome.clone().expect("an outcome");
    assert_eq!((outcome.success, outcome.duration), (true, Duration::from_secs(7)));
    assert!(agent.claim.is_some(), "until the VM is on its way back");
    agent.given_back(epoch);
    assert_eq!(agent.claim, None);
    assert_eq!(agent.cancel("", later(8)), Err(Refused::Ended));
}

#[test]
fn attempts_are_made_until_there_are_no_more() {
    let mut agent = agent(3);
    let mut at = now();
    for (attempt, pause) in [(1, 2), (2, 4)] {
        let epoch = agent.reserve(claim(Runner::Guest), at).expect("free");
        agent.assign(epoch, lease(), vm(), at).expect("assigned");
        agent.set_back(epoch, Setback::Failed, "it burned", at).expect("held");
        assert_eq!((agent.status, agent.attempt), (AgentStatus::Pending, attempt));
        assert_eq!(agent.set_back(epoch, Setback::Failed, "again", at), Err(Refused::ClaimLost));
        assert_eq!(agent.not_before, at + Duration::from_secs(pause));
        assert_eq!(agent.reserve(claim(Runner::Guest), agent.not_before), Err(Refused::NotFree));
        agent.given_back(epoch);
        assert_eq!(agent.reserve(claim(Runner::Guest), at), Err(Refused::NotFree), "too early");
        at = agent.not_before;
    }
    let epoch = agent.reserve(claim(Runner::Guest), at).expect("free");
    agent.assign(epoch, lease(), vm(), at).expect("assigned");
    agent.set_back(epoch, Setback::Interrupted, "the daemon stopped", at).expect("held");
    assert_eq!((agent.status, agent.attempt), (AgentStatus::Pending, 2), "not its fault");
    agent.given_back(epoch);
    let epoch = agent.reserve(claim(Runner::Guest), at).expect("free");
    agent.assign(epoch, lease(), vm(), at).expect("assigned");
    agent.set_back(epoch, Setback::Failed, "it burned", at).expect("held");
    assert_eq!(agent.status, AgentStatus::Failed);
    assert_eq!(agent.outcome.expect("an outcome").error, "it burned");
}

#[test]
fn lease_requests_differ_by_agent_and_claim_and_are_the_same_again() {
    let mut one = agent(1);
    let first = one.lease_request();
    assert_eq!(first, one.lease_request());
    one.epoch += 1;
    assert_ne!(first, one.lease_request());
    let other = Agent { uid: Uuid::from_u128(8), ..agent(1) };
    assert_ne!(first, other.lease_request());
}

#[test]
fn priority_overtakes_only_those_who_have_not_waited_long() {
    let old = agent(1);
    let mut new = Agent { created: later(60), ..agent(1) };
    assert!(old.rank() < new.rank());
    new.spec.priority = 3;
    assert!(new.rank() < old.rank());
    new.created = later(91);
    assert!(old.rank() < new.rank());
}

#[test]
fn the_row_reads_back() {
    let mut agent = agent(2);
    let epoch = agent.reserve(claim(Runner::External), now()).expect("free");
    agent.assign(epoch, lease(), vm(), now()).expect("assigned");
    let text = serde_json::to_string(&agent).expect("JSON");
    let mut back: Agent = serde_json::from_str(&text).expect("a row");
    back.version = agent.version;
    assert_eq!(back, agent);
}

#[test]
fn workflow_names() {
    for good in ["a", "book-flight", "x_1", "7zip", &"a".repeat(63)] {
        assert!(is_workflow_name(good), "{good}");
    }
    for bad in ["", "-a", "A", "a.b", "a/b", "a b", "ä", &"a".repeat(64)] {
        assert!(!is_workflow_name(bad), "{bad}");
    }
}

#[test]
fn a_claim_that_got_no_vm_in_time_was_the_last() {
    let mut agent = agent(3);
    let early = now() + Duration::from_secs(10);
    let epoch = agent.reserve(claim(Runner::Guest), early).expect("free");
    agent.set_back(epoch, Setback::Interrupted, "got no vm", early).expect("held");
    assert_eq!(agent.status, AgentStatus::Pending);
    agent.given_back(epoch);
    let late = now() + agent.spec.queue_timeout;
    let epoch = agent.reserve(claim(Runner::External), late).expect("free");
    agent.set_back(epoch, Setback::Interrupted, "got no vm", late).expect("held");
    assert_eq!(
        (agent.status, agent.reason.as_str()),
        (AgentStatus::Failed, "not started within 3600 s: got no vm")
    );
    assert!(agent.outcome.is_some_and(|outcome| !outcome.success));
}

#[test]
fn the_wait_for_another_vm_is_counted_from_its_begin() {
    let mut agent = agent(3);
    let day = 24 * 3600;
    let epoch = agent.reserve(claim(Runner::Guest), now()).expect("free");
    agent.assign(epoch, lease(), vm(), now()).expect("assigned");
    assert_eq!(agent.queue_end(), None, "it has its vm");
    agent.set_back(epoch, Setback::Failed, "it burned", later(day)).expect("held");
    agent.given_back(epoch);
    let pause = 2;
    assert_eq!(agent.queue_end(), Some(later(day + pause + 3600)));

    // To be refused is to wait on.
    let refusal = Setback::Postponed(Duration::from_secs(5));
    let epoch = agent.reserve(claim(Runner::Guest), later(day + 600)).expect("free");
    agent.set_back(epoch, refusal, "too many leases", later(day + 600)).expect("held");
    agent.given_back(epoch);
    assert_eq!((agent.status, agent.attempt, agent.not_before), (AgentStatus::Pending, 1, later(day + 605)));
    assert_eq!(agent.queue_end(), Some(later(day + pause + 3600)));
    let epoch = agent.reserve(claim(Runner::Guest), later(day + 3700)).expect("free");
    agent.set_back(epoch, refusal, "too many leases", later(day + 3700)).expect("held");
    assert_eq!((agent.status, agent.attempt), (AgentStatus::Failed, 1));
}

#[derive(Debug, Clone)]
enum Step {
    Reserve(bool),
    Assign(u64),
    Report(u64),
    Complete(u64, bool),
    SetBack(u64, u8),
    FailWaiting,
    Cancel,
    GivenBack(u64),
    Wait(u64),
}

/// `late`: how many claims ago the caller's was.
fn step() -> impl Strategy<Value = Step> {
    let late = || prop_oneof![4 => Just(0u64), 1 => 1u64..3];
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Reserve),
        4 => late().prop_map(Step::Assign),
        2 => late().prop_map(Step::Report),
        1 => (late(), any::<bool>()).prop_map(|(late, good)| Step::Complete(late, good)),
        2 => (late(), 0u8..4).prop_map(|(late, kind)| Step::SetBack(late, kind)),
        1 => Just(Step::FailWaiting),
        1 => Just(Step::Cancel),
        4 => late().prop_map(Step::GivenBack),
        2 => (1u64..10).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_is_asked_only_legal_things_happen(
        max_attempts in 1u32..4,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut agent = agent(max_attempts);
        let mut at = now();
        for step in steps {
            let before = agent.clone();
            let epoch = |late: u64| before.epoch.saturating_sub(late);
            let (asked, done) = match step {
                Step::Wait(seconds) => {
                    at += Duration::from_secs(seconds);
                    continue;
                }
                Step::Reserve(external) => {
                    let runner = if external { Runner::External } else { Runner::Guest };
                    (None, agent.reserve(claim(runner), at).map(drop))
                }
                Step::Assign(late) => (Some(epoch(late)), agent.assign(epoch(late), lease(), vm(), at)),
                Step::Report(late) => (Some(epoch(late)), agent.report(epoch(late), at)),
                Step::Complete(late, good) => {
                    let result = if good { Ok(()) } else { Err("no".into()) };
                    (Some(epoch(late)), agent.complete(epoch(late), result, "1".into(), at))
                }
                Step::SetBack(late, kind) => {
                    let pause = Duration::from_secs(5);
                    let kinds =
                        [Setback::Failed, Setback::Final, Setback::Interrupted, Setback::Postponed(pause)];
                    let kind = kinds[usize::from(kind)];
                    (Some(epoch(late)), agent.set_back(epoch(late), kind, "why", at))
                }
                Step::FailWaiting => (None, agent.fail_waiting("why", at)),
                Step::Cancel => (None, agent.cancel("why", at)),
                Step::GivenBack(late) => {
                    agent.given_back(epoch(late));
                    (None, Ok(()))
                }
            };
            if done.is_err() {
                prop_assert_eq!(&agent, &before, "a refusal changes nothing");
            }
            if let (Some(asked), Ok(())) = (asked, done) {
                prop_assert_eq!(asked, before.epoch, "a late caller gets nothing done");
            }
            if agent.status != before.status {
                let direct = before.status.may_become(agent.status);
                let through_running = before.status == AgentStatus::Scheduled
                    && AgentStatus::Running.may_become(agent.status);
                prop_assert!(direct || through_running, "{:?} -> {:?}", before.status, agent.status);
            }
            prop_assert!(!before.status.is_final() || agent.status == before.status);
            prop_assert_eq!(agent.status.is_final(), agent.ended.is_some());
            prop_assert_eq!(agent.status.is_final(), agent.outcome.is_some());
            prop_assert!(agent.epoch == before.epoch || agent.epoch == before.epoch + 1);
            prop_assert!(agent.attempt <= max_attempts, "{} of {max_attempts}", agent.attempt);
            let active = matches!(agent.status, AgentStatus::Scheduled | AgentStatus::Running);
            prop_assert!(!active || agent.claim.as_ref().is_some_and(|claim| claim.lease.is_some()));
        }
    }
}
