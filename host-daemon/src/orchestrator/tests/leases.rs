//! Who gets which VM, when, and what becomes of it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;

use super::sim::{Fault, When};
use super::*;
use crate::hypervisor::Stop;
use crate::model::error::Reason;
use crate::model::lease::{CheckKind, EndedAs};

#[tokio::test]
async fn a_granted_desktop_is_proven_and_comes_back_clean() {
    let bench = Bench::with_pool(1).await;
    let granted = bench.acquire().await.expect("granted");
    let receipt = granted.lease.receipt.clone().expect("a receipt");
    let kinds: Vec<_> = receipt.checks.iter().map(|check| check.kind).collect();
    use CheckKind as K;
    assert_eq!(kinds, [K::Running, K::AgentSession, K::Clock, K::Identity, K::Input, K::Frame]);
    assert!(receipt.checks.is_sorted_by_key(|check| check.at) && receipt.replaced == 0);
    let vm = granted.vm.vm.id.clone();
    assert_eq!(granted.vm.vm.state, VmState::Running);
    let attached = bench.world.agent(&vm).state().attached.clone();
    let identity = attached[0].identity.clone().expect("an identity");
    assert_eq!((identity.hostname.as_str(), attached[0].entropy.len()), (vm.as_str(), 32));

    bench.world.soil(&vm);
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    assert_eq!(bench.world.dirt(&vm), Some(0));
    let lease = bench.o.lease(&granted.lease.id).await.expect("kept");
    assert_eq!(lease.ended, Some(EndedAs::Released));
    bench.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_callers_never_have_one_vm() {
    let bench = Arc::new(Bench::with_pool(2).await);
    let held = Arc::new(Mutex::new(BTreeSet::new()));
    let mut callers = JoinSet::new();
    for _ in 0..12 {
        let (bench, held) = (bench.clone(), held.clone());
        callers.spawn(async move {
            for _ in 0..3 {
                let granted = bench.acquire().await.expect("granted");
                let vm = granted.vm.vm.id.clone();
                assert_eq!(bench.world.dirt(&vm), Some(0), "somebody was here");
                assert!(held.lock().expect("lock").insert(vm.clone()), "{vm} given twice");
                bench.world.soil(&vm);
                tokio::task::yield_now().await;
                assert!(held.lock().expect("lock").remove(&vm));
                release(&bench.o, &granted, ReleasePolicy::Reset).await;
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("no caller failed");
    }
    bench.ready("desk", 2).await;
    bench.check().await;
}

#[tokio::test]
async fn callers_wait_in_the_order_they_came_and_until_their_deadline() {
    let bench = Bench::with_pool(1).await;
    let first = bench.acquire().await.expect("granted");
    let (got, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut callers = JoinSet::new();
    for number in 0..4u32 {
        let (o, got) = (bench.o.clone(), got.clone());
        callers.spawn(async move {
            let granted = o.acquire(&admin(), wanted(LONG)).await.expect("granted");
            got.send(number).expect("listened to");
            release(&o, &granted, ReleasePolicy::Reset).await;
        });
        let waiting = number + 1;
        status_when(&bench.o, "desk", "in the queue", |status| status.waiting == waiting).await;
    }
    let error = bench.o.acquire(&admin(), wanted(Duration::from_millis(20))).await.expect_err("nothing free");
    assert_eq!(error.reason, Reason::PoolExhausted);
    assert!(error.retry_after.is_some());
    release(&bench.o, &first, ReleasePolicy::Reset).await;
    for number in 0..4 {
        assert_eq!(order.recv().await, Some(number));
    }
    callers.join_all().await;
    bench.check().await;
}

#[tokio::test]
async fn a_caller_who_goes_away_at_any_moment_leaves_nothing_behind() {
    let bench = Bench::with_pool(1).await;
    let mut granted = 0;
    // Dropped after its n-th step: every await of acquire is cut at some n.
    for steps in 0..120u32 {
        let request = Acquire { request: Some(request("acquire")), ..wanted(LONG) };
        {
            let caller = admin();
            let mut acquire = pin!(bench.o.acquire(&caller, request));
            for _ in 0..steps {
                if let Some(done) = acquire.as_mut().now_or_never() {
                    let done = done.expect("granted");
                    granted += 1;
                    release(&bench.o, &done, ReleasePolicy::Reset).await;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        bench.ready("desk", 1).await;
        let leases = until("no lease", async || {
            let page = Page { after: String::new(), limit: 10 };
            let all = bench.o.leases(&LeaseFilter::default(), &page).await.expect("leases");
            all.is_empty().then_some(all)
        });
        leases.await;
    }
    bench.check().await;
    tracing::info!(granted);
}

#[tokio::test]
async fn a_repeat_right_after_its_caller_went_away_gets_a_lease_that_stays() {
    let bench = Bench::with_pool(1).await;
    for steps in 0..60u32 {
        let asked = Acquire { request: Some(request("acquire")), ..wanted(LONG) };
        {
            let caller = admin();
            let mut acquire = pin!(bench.o.acquire(&caller, asked.clone()));
            for _ in 0..steps {
                if acquire.as_mut().now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let granted =
            bench.o.acquire(&admin(), asked).await.unwrap_or_else(|error| panic!("{steps}: {error}"));
        assert!(granted.lease.receipt.is_some());
        bench.check().await;
        let lease = bench.o.lease(&granted.lease.id).await.expect("lease");
        assert_eq!(lease.ended, None, "after {steps} steps");
        release(&bench.o, &granted, ReleasePolicy::Reset).await;
        bench.ready("desk", 1).await;
    }
}

#[tokio::test]
async fn a_vm_that_fails_its_receipt_is_replaced_and_kept_out_of_use() {
    let bench = Bench::with_pool(2).await;
    bench.world.fail("resume", &[Fault::Refused]);
    let granted = bench.acquire().await.expect("granted");
    assert_eq!(granted.lease.receipt.as_ref().expect("receipt").replaced, 1);
    let status = bench.o.pool(&id("desk")).await.expect("pool").status;
    assert_eq!((status.quarantined, status.leased), (1, 1));
    bench.ready("desk", 1).await;
    bench.check().await;

    // One whose process dies takes its lease along; the caller gets another, and never learns of the first.
    bench.world.fail("resume", &[Fault::Dies]);
    let granted = bench.acquire().await.expect("granted");
    assert!(bench.o.lease(&granted.lease.id).await.expect("lease").ended.is_none());
    bench.check().await;
}

#[tokio::test]
async fn a_pool_of_failures_says_so_and_gives_everything_back() {
    let bench = Bench::with_pool(3).await;
    // Also what is tried with the last one: its clean state again, then a boot.
    bench.world.fail("resume", &[Fault::Refused; 30]);
    bench.world.fail("start", &[Fault::Refused; 30]);
    let request = request("acquire");
    let asked = Acquire { request: Some(request.clone()), ..wanted(LONG) };
    let error = bench.o.acquire(&admin(), asked.clone()).await.expect_err("all fail");
    assert_eq!(error.reason, Reason::HypervisorFailed);
    bench.world.mend();
    bench.ready("desk", 3).await;
    bench.check().await;
    // The same request again is a new one: it was never answered.
    bench.o.acquire(&admin(), asked).await.expect("granted");
}

#[tokio::test]
async fn a_vm_that_dies_ends_its_lease_as_lost_and_is_replaced() {
    let bench = Bench::with_pool(1).await;
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    bench.world.exit(&vm, false).await;
    let ended = lease_when_ended(&bench, &granted).await;
    assert_eq!(ended.ended, Some(EndedAs::VmLost));
    assert!(ended.end_reason.contains("it burned"), "{}", ended.end_reason);
    assert_eq!(state(&bench.o, &vm).await, VmState::Error);
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_vm_that_dies_of_a_call_is_as_lost() {
    let bench = Bench::with_pool(1).await;
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    bench.world.fail("save", &[Fault::Dies]);
    bench.o.save_vm(&admin(), &vm).await.expect_err("died");
    assert_eq!(lease_when_ended(&bench, &granted).await.ended, Some(EndedAs::VmLost));
    assert_eq!(state(&bench.o, &vm).await, VmState::Error);
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_and_its_vm_is_reset() {
    let bench = Bench::with_pool(1).await;
    let short = Acquire { ttl: Some(Duration::from_millis(50)), ..wanted(LONG) };
    let granted = bench.o.acquire(&admin(), short.clone()).await.expect("granted");
    bench.world.soil(&granted.vm.vm.id);
    assert_eq!(lease_when_ended(&bench, &granted).await.ended, Some(EndedAs::Expired));
    bench.ready("desk", 1).await;
    assert_eq!(bench.world.dirt(&granted.vm.vm.id), Some(0));

    let granted = bench.o.acquire(&admin(), wanted(LONG)).await.expect("granted");
    let renewed = bench.o.renew(&admin(), &granted.lease.id, Some(Duration::from_secs(3000))).await;
    assert!(renewed.expect("renewed").expires > granted.lease.expires);
    let too_long = bench.o.renew(&admin(), &granted.lease.id, Some(Duration::from_secs(9999))).await;
    assert_eq!(too_long.expect_err("too long").reason, Reason::InvalidField);
    let other = Caller { name: "other".into(), admin: false };
    for result in [
        bench.o.renew(&other, &granted.lease.id, None).await,
        bench.o.release(&other, &granted.lease.id, Some(ReleasePolicy::Reset)).await,
    ] {
        assert_eq!(result.expect_err("not theirs").reason, Reason::LeaseNotYours);
    }
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    let over = bench.o.renew(&admin(), &granted.lease.id, None).await.expect_err("over");
    assert_eq!(over.reason, Reason::LeaseEnded);
    bench.check().await;
}

#[tokio::test]
async fn a_kept_vm_is_saved_and_no_longer_the_pools_and_a_destroyed_one_is_gone() {
    let bench = Bench::with_pool(1).await;
    for off in [false, true] {
        let granted = bench.acquire().await.expect("granted");
        let vm = granted.vm.vm.id.clone();
        bench.world.soil(&vm);
        if off {
            bench.o.stop_vm(&admin(), &vm, Stop::Hard).await.expect("off");
        }
        release(&bench.o, &granted, ReleasePolicy::Keep).await;
        bench.ready("desk", 1).await;
        let row = bench.o.vm(&vm).await.expect("kept").vm;
        assert_eq!(row.state, if off { VmState::Off } else { VmState::Saved });
        assert_eq!((row.pool, row.availability, row.pending), (None, Availability::Idle, None));
        assert_eq!(bench.world.dirt(&vm), Some(1), "as it was left");
    }
    let granted = bench.acquire().await.expect("granted");
    release(&bench.o, &granted, ReleasePolicy::Destroy).await;
    bench.ready("desk", 1).await;
    assert_eq!(bench.o.vm(&granted.vm.vm.id).await.expect_err("gone").reason, Reason::NotFound);
    bench.check().await;
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_and_another_one_is_refused() {
    let bench = Bench::with_pool(2).await;
    let request = request("acquire desk");
    let asked = Acquire { request: Some(request.clone()), ..wanted(LONG) };
    let caller = admin();
    let (one, two) =
        tokio::join!(bench.o.acquire(&caller, asked.clone()), bench.o.acquire(&caller, asked.clone()));
    let (one, two) = (one.expect("granted"), two.expect("granted"));
    assert_eq!(one.lease.id, two.lease.id);
    let other = RequestId { fingerprint: "something else".into(), ..request };
    let asked = Acquire { request: Some(other), ..asked };
    let error = bench.o.acquire(&admin(), asked).await.expect_err("reused");
    assert_eq!(error.reason, Reason::RequestIdReused);
    assert_eq!(bench.world.count("resume"), 1);
    bench.check().await;
}

#[tokio::test]
async fn a_lease_that_ends_while_it_is_made_ready_takes_nothing_from_the_next() {
    let bench = Bench::with_pool(1).await;
    let gate = bench.world.gate("open_guest", When::Before);
    let o = bench.o.clone();
    let first = tokio::spawn(async move { o.acquire(&admin(), wanted(LONG)).await });
    gate.reached().await;
    let page = Page { after: String::new(), limit: 10 };
    let lease = bench.o.leases(&LeaseFilter::default(), &page).await.expect("leases")[0].clone();
    let o = bench.o.clone();
    let second = tokio::spawn(async move { o.acquire(&admin(), wanted(LONG)).await });
    status_when(&bench.o, "desk", "waiting", |status| status.waiting == 1).await;
    // The first one's VM goes to the second before its checks are through.
    bench.o.release(&admin(), &lease.id, Some(ReleasePolicy::Reset)).await.expect("released");
    let vm = lease.vm.clone();
    until("leased again", async || {
        let row = bench.o.vm(&vm).await.expect("vm").vm;
        (row.lease.is_some() && row.lease != Some(lease.id.clone())).then_some(())
    })
    .await;
    bench.world.ungate();
    let second = second.await.expect("ran").expect("granted");
    let row = bench.o.vm(&vm).await.expect("vm").vm;
    assert_eq!(row.lease, Some(second.lease.id.clone()), "still the second one's");
    release(&bench.o, &second, ReleasePolicy::Reset).await;
    // Its own lease was taken away, so the first is told so or got another one.
    if let Ok(granted) = first.await.expect("ran") {
        release(&bench.o, &granted, ReleasePolicy::Reset).await;
    }
    bench.ready("desk", 1).await;
    bench.check().await;
}

async fn lease_when_ended(bench: &Bench, granted: &Granted) -> crate::model::record::Lease {
    let ended = until("the end of a lease", async || {
        let lease = bench.o.lease(&granted.lease.id).await.expect("lease");
        lease.ended.is_some().then_some(lease)
    })
    .await;
    // The store has it before the actor shows it.
    until("the vm without it", async || {
        let vm = bench.o.vm(&granted.vm.vm.id).await.ok();
        vm.is_none_or(|vm| vm.vm.lease.as_ref() != Some(&granted.lease.id)).then_some(())
    })
    .await;
    ended
}

#[tokio::test]
async fn a_vm_that_is_kept_running_has_no_key_held_down() {
    use crate::model::input::{Action, InputEvent};
    use crate::orchestrator::request::Target;
    use hvkube_proto::guest::v1::input_event::Event;
    // Without memory to save, a kept VM runs on, in the same session.
    let bench = Bench::on(World::new(false), 1).await;
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    let hub = bench.o.desktop(&admin(), &Target::Lease(granted.lease.id.clone())).await.expect("a desktop");
    let press = InputEvent::Key { key: "ctrl".into(), action: Action::Press, hold: Duration::ZERO };
    hub.send_input("b", vec![press], None, tokio::time::Instant::now() + LONG).await.expect("pressed");
    release(&bench.o, &granted, ReleasePolicy::Keep).await;
    until("kept", async || bench.o.vm(&vm).await.expect("vm").vm.pool.is_none().then_some(())).await;
    assert_eq!(state(&bench.o, &vm).await, VmState::Running);
    let agent = bench.world.agent(&vm);
    let last = agent.state().inputs.last().cloned().expect("an input");
    assert!(matches!(last.events[0].event, Some(Event::ReleaseAll(_))), "{last:?}");
}
