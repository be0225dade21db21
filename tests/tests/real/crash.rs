//! `kill -9` of the daemon and of VMs, and stops in order: nothing is lost, nothing is left over.

use std::time::Duration;

use hvkube_sdk::v1::{LeaseState, VmState};
use hvkube_sdk::{Code, Target};
use hvkube_tests::{Rig, refused, until};
use tokio_stream::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn crashes_lose_nothing() {
    let mut rig = Rig::start().await;
    rig.pool("desk", 3).await;
    rig.scenario("kill -9 with vms running, resuming and saving", killed).await;
    rig.scenario("a vm's process dies", vm_dies).await;
    rig.scenario("a stop in order", stopped).await;
    rig.scenario("kill -9 while a template is made", template).await;
    rig.drop_pool("desk").await;
    rig.check().await;
}

async fn boot_id(target: &Target) -> Option<String> {
    let boot = target.exec(["cat", "/proc/sys/kernel/random/boot_id"]).timeout(Duration::from_secs(30));
    boot.await.ok().map(|output| output.stdout_lossy().trim().to_owned())
}

async fn killed(rig: &mut Rig) {
    let client = rig.client();
    let mut held = Vec::new();
    for _ in 0..3 {
        let desktop = rig.acquire("desk").await;
        let boot = boot_id(&desktop).await.expect("it answers");
        let (vm, lease) = (desktop.vm().clone(), desktop.detach());
        held.push((vm, lease, boot));
    }
    // The second is saved and on its way back, the third on its way to disk when the daemon dies.
    client.save_vm(&held[1].0.name).await.expect("saved");
    let moves = [(held[1].0.name.clone(), true), (held[2].0.name.clone(), false)].map(|(vm, resume)| {
        let client = client.clone();
        tokio::spawn(
            async move { if resume { client.resume_vm(&vm).await } else { client.save_vm(&vm).await } },
        )
    });
    // Long enough for both to have begun; wherever they are then, the outcome must hold.
    tokio::time::sleep(Duration::from_millis(40)).await;
    rig.kill();
    for one in moves {
        // Cut off or just answered: either is right.
        drop(one.await.expect("ran"));
    }
    rig.again().await;
    let client = rig.client();
    for (number, (vm, lease, boot)) in held.iter().enumerate() {
        assert_eq!(client.get_lease(&lease.name).await.expect("a lease").state(), LeaseState::Active);
        let now = until("a vm at rest or running", async || {
            let now = rig.vm(&vm.name).await;
            matches!(now.state(), VmState::Running | VmState::Saved).then_some(now)
        })
        .await;
        assert_eq!(now.lease, lease.name, "{}", now.name);
        if number == 0 {
            assert_eq!((now.state(), now.process_id), (VmState::Running, vm.process_id), "the same process");
        }
        if now.state() == VmState::Saved {
            client.resume_vm(&vm.name).await.expect("resumed");
        }
        let target = client.target(&lease.name);
        let answer = until("an answer", async || boot_id(&target).await).await;
        assert_eq!(answer, *boot, "{} went on where it was", vm.name);
    }
    rig.check().await;
    for (_, lease, _) in &held {
        client.release_vm(&lease.name, hvkube_sdk::ReleasePolicy::Reset).await.expect("released");
    }
    rig.ready("desk", 3).await;
    rig.check().await;
}

async fn vm_dies(rig: &mut Rig) {
    let client = rig.client();
    let desktop = rig.acquire("desk").await;
    let vm = rig.vm(&desktop.vm().name).await;
    rig.kill_machine(&vm);
    let lost = until("the lease's end", async || {
        let lease = client.get_lease(&desktop.lease().name).await.expect("a lease");
        (lease.state() != LeaseState::Active).then_some(lease)
    })
    .await;
    assert_eq!(lost.state(), LeaseState::VmLost);
    let dead = rig.vm(&vm.name).await;
    assert_eq!(dead.state(), VmState::Error);
    assert!(dead.state_reason.contains("signal"), "its last words: {}", dead.state_reason);
    let gone = desktop.exec(["true"]).await;
    refused(gone, Code::FailedPrecondition, "LEASE_ENDED", None);
    rig.ready("desk", 3).await;
    client.delete_vm(&vm.name, false).await.expect("deleted");
    rig.check().await;
}

async fn stopped(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let boot = boot_id(&desktop).await.expect("it answers");
    let (vm, lease) = (desktop.vm().name.clone(), desktop.detach());
    let client = rig.client();
    assert!(client.is_serving("").await.expect("health"));
    rig.terminate();
    // Told before the connection ends, or refused because it has ended: serving it is not.
    until("no longer serving", async || (!client.is_serving("").await.unwrap_or(false)).then_some(())).await;
    let status = until("the end", async || rig.ended()).await;
    assert!(status.success(), "{status}");
    assert_eq!(rig.machines(), [], "all saved");
    rig.again().await;
    let now = rig.vm(&vm).await;
    assert_eq!((now.state(), now.lease.as_str()), (VmState::Running, lease.name.as_str()));
    let target = rig.client().target(&lease.name);
    assert_eq!(until("an answer", async || boot_id(&target).await).await, boot);
    rig.client().release_vm(&lease.name, hvkube_sdk::ReleasePolicy::Reset).await.expect("released");
    rig.ready("desk", 3).await;
    rig.check().await;
}

async fn template(rig: &mut Rig) {
    let operation = rig.client().create_template("half", rig.image.template()).await.expect("begun");
    until("its machine", async || {
        rig.machines().iter().any(|(_, name)| name.starts_with("prep-")).then_some(())
    })
    .await;
    rig.kill();
    rig.again().await;
    let client = rig.client();
    let ended = client.get_operation(&operation.name).await.expect("an operation");
    assert!(ended.done && format!("{:?}", ended.result).contains("Error"), "{ended:?}");
    refused(client.get_template("half").await, Code::NotFound, "RESOURCE_NOT_FOUND", None);
    let left: Result<Vec<_>, _> = client.list_templates().collect().await;
    assert_eq!(left.expect("templates").len(), 1);
    rig.check().await;
    let folder = rig.state_dir().join("qemu/templates/half");
    assert!(!folder.exists(), "{}", folder.display());
}
