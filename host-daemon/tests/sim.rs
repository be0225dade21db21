//! The real daemon on the simulated hypervisor, killed and started again.

mod served;

use hvkube_proto::v1;
use served::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_finds_its_simulated_world_again() {
    let state_dir = tempfile::tempdir().expect("dir");
    let state_dir = state_dir.path();
    let daemon = Daemon::start(state_dir).await;
    let host = daemon.host().await;
    assert_eq!((host.hypervisor.as_str(), host.accelerator.as_str()), ("sim", "none"));
    assert!(host.accelerator_reason.contains("simulated"), "{}", host.accelerator_reason);
    daemon.template().await;
    daemon.pool(8).await;
    daemon.settled(8, 0).await;
    let lease = daemon.lease().await;
    let clean = daemon.screenshot(&lease).await;
    daemon.type_text(&lease, "still here").await;
    let typed = daemon.screenshot(&lease).await;
    assert_ne!(clean, typed, "what is typed is seen");
    let before = daemon.settled(7, 1).await;

    daemon.kill(state_dir).await;
    let daemon = Daemon::start(state_dir).await;
    let after = daemon.settled(7, 1).await;
    let names = |vms: &[v1::Vm]| vms.iter().map(|vm| (vm.name.clone(), vm.uid.clone())).collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after));
    assert_eq!(daemon.screenshot(&lease).await, typed, "its guest went on");
    daemon.type_text(&lease, ", and more").await;
    assert_ne!(daemon.screenshot(&lease).await, typed);
    daemon.kill(state_dir).await;
}
