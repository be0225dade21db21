//! A copy of the store is put back, and what happened since is not in it.

use futures_util::StreamExt as _;

use super::*;
use crate::model::error::Reason;
use crate::orchestrator::request::{Target, UpdatePool};
use crate::orchestrator::watch::VmWatch;
use crate::store::copy;

#[tokio::test]
async fn a_restored_store_is_brought_together_with_what_is_there() {
    let bench = Bench::with_pool(3).await;
    let old = bench.acquire().await.expect("granted");
    bench.world.soil(&old.vm.vm.id);
    bench.ready("desk", 2).await;
    let file = bench.dir.path().join("copy.db");
    bench.o.0.store.backup(&file, false).await.expect("copied");
    let known = bench.world.names();

    // One of the copy's VMs is leased and used, another is deleted, and new ones are made.
    let late = bench.acquire().await.expect("granted");
    let used = late.vm.vm.id.clone();
    bench.world.soil(&used);
    let is_free = |name: &&String| ![&old.vm.vm.id, &used].iter().any(|vm| vm.as_str() == name.as_str());
    let missing: VmId = known.iter().find(is_free).expect("three of them").parse().expect("an id");
    bench.o.delete_vm(&admin(), &missing, false, None).await.expect("deleted");
    let update = UpdatePool { desired: Some(5), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, update).await.expect("changed");
    bench.ready("desk", 3).await;
    let strangers: Vec<String> =
        bench.world.names().into_iter().filter(|name| !known.contains(name)).collect();
    assert_eq!(strangers.len(), 3, "{strangers:?}");
    let mut watch = bench.o.watch_vms(VmWatch::default(), None).expect("open");
    let revision = loop {
        let delta = watch.next().await.expect("goes on").expect("no error");
        if let Some(revision) = delta.revision {
            break revision;
        }
    };
    drop(watch);

    bench.o.shutdown().await;
    let config = StoreConfig { path: bench.dir.path().join("store.db"), durable: false };
    copy::restore(&file, &config).expect("restored");
    let o = start(bench.dir.path(), &bench.world).await;
    let bench = Bench { o, ..bench };
    let status = bench.ready("desk", 2).await;
    assert_eq!((status.leased, status.quarantined), (1, 1), "the lost one is kept for people to see");

    let lost = bench.o.vm(&missing).await.expect("its row").vm;
    assert_eq!(lost.state, VmState::Error);
    assert!(
        bench
            .world
            .names()
            .iter()
            .all(|name| !strangers.contains(name) || status.vms.iter().any(|vm| vm.as_str() == name))
    );
    let lease = bench.o.lease(&old.lease.id).await.expect("in the copy");
    assert_eq!((lease.ended, lease.vm.clone()), (None, old.vm.vm.id.clone()));
    bench.o.desktop(&admin(), &Target::Lease(old.lease.id.clone())).await.expect("still theirs");
    assert_eq!(bench.world.dirt(&old.vm.vm.id), Some(1), "as it was left");
    let gone = bench.o.lease(&late.lease.id).await.expect_err("made later");
    assert_eq!(gone.reason, Reason::NotFound);
    assert_ne!(bench.world.dirt(&used), Some(1), "nobody gets what was left in it");
    let behind = bench.o.watch_vms(VmWatch::default(), Some(revision)).err().expect("of another life");
    assert_eq!(behind.reason, Reason::RevisionGone);
    bench.acquire().await.expect("the pool works");
    bench.check().await;
}
