//! What goes wrong with real VMs and is made good: damaged states, guests that freeze, addresses that change.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use hvkube_sdk::v1::{Event, LeaseState, Pool, PoolShortfallReason, VmState, WatchEventsRequest};
use hvkube_sdk::{Change, Code, ReleasePolicy};
use hvkube_tests::{Rig, refused, until};
use tokio_stream::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_made_good() {
    let mut rig = Rig::start().await;
    rig.pool("edge", 2).await;
    rig.scenario("a hot desktop is proven before it is asked for", hot).await;
    rig.scenario("many ask at once", at_once).await;
    rig.scenario("an address changes", address).await;
    rig.scenario("the agent freezes", frozen).await;
    rig.scenario("a saved state is damaged", damaged).await;
    rig.scenario("a vm dies while the daemon is away", meanwhile).await;
    rig.scenario("the host's memory is promised away", memory).await;
    rig.drop_pool("edge").await;
    rig.check().await;
}

async fn resize(rig: &Rig, desired_count: u32, hot_count: u32) {
    let pool = Pool { name: "pools/edge".into(), desired_count, hot_count, ..Pool::default() };
    rig.client().update_pool(pool, &["desired_count", "hot_count"]).await.expect("changed");
}

/// What has happened to a VM, and why.
async fn causes(rig: &Rig, vm: &str) -> Vec<String> {
    let request = WatchEventsRequest {
        vm: vm.to_owned(),
        start_time: Some(hvkube_sdk::Timestamp { seconds: 0, nanos: 0 }),
        ..WatchEventsRequest::default()
    };
    let mut watch = std::pin::pin!(rig.client().watch_events(request));
    let mut causes = Vec::new();
    while let Some(change) = watch.next().await {
        match change.expect("events") {
            Change::Is(Event { cause, .. }) => causes.push(cause),
            Change::Synced => break,
            Change::Gone(_) | Change::Restarted => {}
        }
    }
    causes
}

async fn hot(rig: &mut Rig) {
    resize(rig, 2, 1).await;
    let client = rig.client();
    until("a hot vm", async || {
        let status = client.get_pool("edge").await.expect("a pool").status?;
        (status.hot == 1).then_some(())
    })
    .await;
    let desktop = rig.acquire("edge").await;
    let receipt = desktop.lease().receipt.clone().expect("a receipt");
    let age = Duration::try_from(receipt.age.expect("its age is told")).expect("no negative age");
    assert!(age > Duration::ZERO && age <= Duration::from_secs(1), "proven before, and lately: {receipt:?}");
    assert!(!receipt.checks.is_empty(), "{receipt:?}");
    assert!(desktop.exec(["true"]).await.expect("it answers").success());
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    resize(rig, 2, 0).await;
    rig.ready("edge", 2).await;
}

async fn at_once(rig: &mut Rig) {
    let asking: Vec<_> = (0..6)
        .map(|_| {
            let client = rig.client();
            tokio::spawn(async move { client.acquire("edge").wait(Duration::ZERO).await })
        })
        .collect();
    let mut held = Vec::new();
    for one in asking {
        match one.await.expect("ran") {
            Ok(desktop) => held.push(desktop),
            other => drop(refused(other, Code::ResourceExhausted, "POOL_EXHAUSTED", None)),
        }
    }
    let vms: BTreeSet<_> = held.iter().map(|desktop| desktop.vm().name.clone()).collect();
    assert_eq!((held.len(), vms.len()), (2, 2), "two vms, two callers, one each");
    for desktop in held {
        desktop.release(ReleasePolicy::Reset).await.expect("released");
    }
    rig.ready("edge", 2).await;
}

async fn address(rig: &mut Rig) {
    let client = rig.client();
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    // Every clone has a card of its own, so it asks for an address anew.
    let first = until("an address", async || {
        Some(rig.vm(&name).await.ip_address).filter(|address| !address.is_empty())
    })
    .await;
    let change = "dev=$(ip -o -4 route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/'); \
                  ip addr del \"$1/24\" dev $dev && ip addr add 10.0.2.77/24 dev $dev";
    let changed = desktop.exec(["sh", "-c", change, "sh", &first]).as_root(true).await.expect("root");
    assert!(changed.success(), "{first}: {}", changed.stderr_lossy());
    let is_new = async || (rig.vm(&name).await.ip_address == "10.0.2.77").then_some(());
    until("the new address", is_new).await;
    // It went with the VM's memory; after a resume the guest says what it is now.
    client.save_vm(&name).await.expect("saved");
    client.resume_vm(&name).await.expect("resumed");
    until("an address after the resume", async || {
        let vm = rig.vm(&name).await;
        (vm.guest.is_some_and(|guest| guest.connected) && !vm.ip_address.is_empty()).then_some(())
    })
    .await;
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
}

async fn frozen(rig: &mut Rig) {
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    // Its answer is the last thing it could say, and may be lost with it.
    let freeze = ["sh", "-c", "(sleep 1; pkill -STOP -x hvkube-guest) >/dev/null 2>&1 &"];
    let begun = desktop.exec(freeze).as_root(true).await.expect("root");
    assert!(begun.success(), "{}", begun.stderr_lossy());
    until("a guest that is silent", async || {
        let silent = desktop.exec(["true"]).timeout(Duration::from_secs(2)).await;
        silent.is_err().then_some(())
    })
    .await;
    // Whoever holds it can have it clean; nothing of the frozen session is in the way.
    rig.client().reset_vm(&name).await.expect("reset");
    until("an answer", async || desktop.exec(["true"]).await.ok().filter(|done| done.success())).await;
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
}

fn cut(file: &Path) {
    let length = std::fs::metadata(file).expect("a file").len();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("unprotected");
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("opened");
    file.set_len(length / 2).expect("cut");
}

async fn damaged(rig: &mut Rig) {
    let client = rig.client();
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    assert!(desktop.exec(["touch", "/tmp/mark"]).await.expect("exec").success());
    let saved = client.save_vm(&name).await.expect("saved");
    cut(Path::new(&saved.saved_state_path));
    let error = client.resume_vm(&name).await.expect_err("half a memory");
    assert_eq!(error.reason(), Some("STATE_DAMAGED"), "{error}");
    let vm = rig.vm(&name).await;
    assert_eq!((vm.state(), vm.lease.as_str()), (VmState::Saved, desktop.lease().name.as_str()));
    assert!(vm.state_reason.contains("resume failed"), "{}", vm.state_reason);
    // What is left is its clean checkpoint, and that only its holder may choose.
    let vm = client.reset_vm(&name).await.expect("reset");
    assert_eq!(vm.state(), VmState::Running);
    let gone = until("an answer", async || {
        let file = desktop.read_file("/tmp/mark", 16).await;
        file.err().filter(|error| error.reason() == Some("GUEST_FILE_NOT_FOUND"))
    });
    gone.await;
    let told = causes(rig, &name).await;
    assert!(told.iter().any(|cause| cause.contains("resume failed")), "{told:?}");
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
}

/// As after a crash of the whole host: nobody can say how the VM ended, and what its holder has written is on its disk.
async fn meanwhile(rig: &mut Rig) {
    let desktop = rig.acquire("edge").await;
    let boot = ["cat", "/proc/sys/kernel/random/boot_id"];
    let before = desktop.exec(boot).await.expect("exec").stdout_lossy().into_owned();
    let keep = ["sh", "-c", "echo kept >/var/tmp/mark && sync"];
    assert!(desktop.exec(keep).await.expect("exec").success());
    let vm = rig.vm(&desktop.vm().name).await;
    let lease = desktop.detach();
    rig.kill();
    rig.kill_machine(&vm);
    rig.again().await;
    let client = rig.client();
    assert_eq!(client.get_lease(&lease.name).await.expect("a lease").state(), LeaseState::Active);
    let target = client.target(&lease.name);
    let after = until("the desktop, booted from its disk", async || {
        let output = target.exec(boot).timeout(Duration::from_secs(30)).await.ok()?;
        Some(output.stdout_lossy().into_owned())
    })
    .await;
    assert_ne!(after, before, "its memory is gone");
    assert_eq!(target.read_file("/var/tmp/mark", 16).await.expect("kept"), b"kept\n"[..]);
    let told = causes(rig, &vm.name).await;
    assert!(told.iter().any(|cause| cause.contains("after a restart of the daemon")), "{told:?}");
    client.release_vm(&lease.name, ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
    rig.check().await;
}

async fn memory(rig: &mut Rig) {
    rig.kill();
    rig.again_with(&["--set", "orchestrator.memory_limit_percent=1"]).await;
    // More than a hundredth of any host, and what is there already counts although it is saved.
    resize(rig, 1000, 0).await;
    let client = rig.client();
    let status = until("a reason", async || {
        let status = client.get_pool("edge").await.expect("a pool").status?;
        let of_memory = |reason| reason == PoolShortfallReason::HostMemory;
        status.shortfalls.iter().any(|one| of_memory(one.reason()) && one.count > 0).then_some(status)
    })
    .await;
    assert!(status.total < 1000, "{status:?}");
    resize(rig, 2, 0).await;
    rig.ready("edge", 2).await;
    rig.kill();
    rig.again_with(&[]).await;
    rig.ready("edge", 2).await;
}
