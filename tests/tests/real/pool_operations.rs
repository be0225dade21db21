//! Pools: counts, queue, ends of leases.

use std::time::{Duration, Instant};

use hvkube_sdk::v1::{LeaseState, Pool, PoolStatus, VmState};
use hvkube_sdk::{Code, ReleasePolicy};
use hvkube_tests::{LONG, Rig, refused, until};

#[tokio::test(flavor = "multi_thread")]
async fn pools_keep_what_they_promise() {
    let mut rig = Rig::start().await;
    rig.scenario("counts and sizes", sizes).await;
    rig.scenario("waiting and exhaustion", queue).await;
    rig.scenario("expiry and renewal", expiry).await;
    rig.scenario("keep and destroy", policies).await;
    rig.check().await;
}

async fn status(rig: &Rig, pool: &str, what: &str, good: impl Fn(&PoolStatus) -> bool) {
    let client = rig.client();
    until(what, async || {
        let status = client.get_pool(pool).await.expect("a pool").status.expect("a status");
        good(&status).then_some(())
    })
    .await;
}

async fn sizes(rig: &mut Rig) {
    let client = rig.client();
    rig.pool("sizes", 2).await;
    let grown = Pool { name: "pools/sizes".into(), desired_count: 5, ..Pool::default() };
    let began = Instant::now();
    client.update_pool(grown, &["desired_count"]).await.expect("grown");
    let pool = rig.ready("sizes", 5).await;
    eprintln!("3 clones in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(pool.status.map(|status| (status.total, status.leased, status.error)), Some((5, 0, 0)));
    for vm in rig.vms(Some("sizes")).await {
        assert_eq!((vm.state(), vm.process_id, vm.resident_bytes), (VmState::Saved, 0, 0), "{}", vm.name);
    }
    let less = Pool { name: "pools/sizes".into(), warm_count: Some(1), ..Pool::default() };
    client.update_pool(less, &["warm_count"]).await.expect("changed");
    status(rig, "sizes", "one warm vm", |status| (status.total, status.warm) == (1, 1)).await;
    let desktop = rig.acquire("sizes").await;
    status(rig, "sizes", "the next one", |s| (s.total, s.warm, s.leased) == (2, 1, 1)).await;
    refused(client.delete_pool("sizes", false).await, Code::FailedPrecondition, "POOL_HAS_LEASES", None);
    let lease = desktop.detach().name;
    rig.drop_pool("sizes").await;
    assert_eq!(client.get_lease(&lease).await.expect("kept").state(), LeaseState::Revoked);
    until("the end of the pool", async || client.get_pool("sizes").await.err()).await;
}

async fn queue(rig: &mut Rig) {
    let client = rig.client();
    rig.pool("queue", 1).await;
    let held = rig.acquire("queue").await;
    let error = refused(
        client.acquire("queue").wait(Duration::from_millis(300)).await,
        Code::ResourceExhausted,
        "POOL_EXHAUSTED",
        None,
    );
    assert!(error.api().and_then(hvkube_sdk::ApiError::retry_after).is_some(), "{error:?}");
    let other = client.clone();
    let waiting = tokio::spawn(async move { other.acquire("queue").wait(LONG).await });
    status(rig, "queue", "somebody waiting", |status| status.waiting == 1).await;
    let (vm, lease) = (held.vm().name.clone(), held.lease().name.clone());
    held.release(ReleasePolicy::Reset).await.expect("released");
    let next = waiting.await.expect("ran").expect("granted");
    assert_eq!(next.vm().name, vm);
    assert_ne!(next.lease().name, lease);
    next.release(ReleasePolicy::Reset).await.expect("released");
    rig.drop_pool("queue").await;
}

async fn expiry(rig: &mut Rig) {
    let client = rig.client();
    rig.pool("expiry", 1).await;
    let acquire = client.acquire("expiry").ttl(Duration::from_secs(10)).wait(LONG);
    let desktop = acquire.await.expect("granted");
    let vm = desktop.vm().name.clone();
    let output = desktop.exec(["touch", "/tmp/mark"]).await.expect("exec");
    assert!(output.success());
    // Renewed by hand once, then by nobody.
    let lease = desktop.detach();
    let renewed = client.renew_lease(&lease.name, Some(Duration::from_secs(10))).await.expect("renewed");
    assert!(renewed.expire_time.map(|t| t.seconds) >= lease.expire_time.map(|t| t.seconds));
    let ended = until("the lease's end", async || {
        let lease = client.get_lease(&lease.name).await.expect("a lease");
        (lease.state() != LeaseState::Active).then_some(lease)
    })
    .await;
    assert_eq!(ended.state(), LeaseState::Expired);
    let over = client.renew_lease(&lease.name, None).await;
    refused(over, Code::FailedPrecondition, "LEASE_ENDED", None);
    rig.ready("expiry", 1).await;
    let next = rig.acquire("expiry").await;
    assert_eq!(next.vm().name, vm);
    refused(next.read_file("/tmp/mark", 16).await, Code::NotFound, "GUEST_FILE_NOT_FOUND", None);
    next.release(ReleasePolicy::Reset).await.expect("released");
    rig.drop_pool("expiry").await;
}

async fn policies(rig: &mut Rig) {
    let client = rig.client();
    rig.pool("fates", 1).await;
    let desktop = rig.acquire("fates").await;
    let kept = desktop.vm().name.clone();
    assert!(desktop.exec(["touch", "/tmp/mark"]).await.expect("exec").success());
    desktop.release(ReleasePolicy::Keep).await.expect("released");
    rig.ready("fates", 1).await;
    let vm = rig.vm(&kept).await;
    assert_eq!((vm.state(), vm.pool.as_str()), (VmState::Saved, ""));
    client.resume_vm(&kept).await.expect("resumed");
    let target = client.target(&kept);
    until("the file that was kept", async || target.read_file("/tmp/mark", 16).await.ok()).await;
    client.delete_vm(&kept, false).await.expect("deleted");

    let desktop = rig.acquire("fates").await;
    let gone = desktop.vm().name.clone();
    desktop.release(ReleasePolicy::Destroy).await.expect("released");
    until("the end of the vm", async || client.get_vm(&gone).await.err()).await;
    rig.ready("fates", 1).await;
    rig.drop_pool("fates").await;
}
