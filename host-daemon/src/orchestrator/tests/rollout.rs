//! VMs that are replaced: of an old template, too old, used too often; and pools that follow demand and memory.

use super::sim::Fault;
use super::*;
use crate::orchestrator::request::UpdatePool;
use crate::orchestrator::view::ShortfallReason;

async fn template_named(o: &Orchestrator, name: &str) {
    let operation = o.create_template(template(name)).await.expect("template");
    o.wait_operation(&operation.id, LONG).await.expect("operation");
}

async fn templates(bench: &Bench) -> Vec<String> {
    let page = Page { after: String::new(), limit: 100 };
    let vms = bench.o.vms(&VmFilter::default(), &page).await.expect("vms");
    vms.iter().map(|view| view.vm.template.to_string()).collect()
}

#[tokio::test]
async fn a_new_template_replaces_free_vms_and_leased_ones_when_they_come_back() {
    let bench = Bench::with_pool(4).await;
    let held = bench.acquire().await.expect("granted");
    template_named(&bench.o, "newer").await;
    let update = UpdatePool { template: Some(id("newer")), ..UpdatePool::default() };
    let changed = bench.o.update_pool(&id("desk"), None, update).await.expect("changed");
    assert_eq!(changed.status.outdated, 4);
    let status =
        status_when(&bench.o, "desk", "rolled out", |status| (status.warm, status.outdated) == (3, 1)).await;
    assert_eq!((status.total, status.leased), (4, 1));
    bench.check().await;
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    status_when(&bench.o, "desk", "the last one", |status| (status.warm, status.outdated) == (4, 0)).await;
    until("only new ones", async || (templates(&bench).await == ["newer"; 4]).then_some(())).await;
    bench.o.delete_template(&id("linux"), None).await.expect("unused now");
    bench.check().await;
}

#[tokio::test]
async fn a_new_template_that_fails_leaves_the_old_ones_at_work() {
    let bench = Bench::with_pool(3).await;
    template_named(&bench.o, "newer").await;
    bench.world.fail("define", &[Fault::Refused; 100]);
    let update = UpdatePool { template: Some(id("newer")), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, update).await.expect("changed");
    status_when(&bench.o, "desk", "a failure", |status| status.error > 0).await;
    let granted = bench.acquire().await.expect("an old one");
    release(&bench.o, &granted, ReleasePolicy::Keep).await;
    let status = bench.o.pool(&id("desk")).await.expect("pool").status;
    assert!(status.warm >= 2, "{status:?}");
    bench.world.mend();
    status_when(&bench.o, "desk", "rolled out", |status| (status.warm, status.outdated) == (3, 0)).await;
    bench.check().await;
}

#[tokio::test]
async fn a_vm_is_rebuilt_after_its_uses_and_at_its_age() {
    let mut wish = pool("desk", 1);
    wish.spec.options.max_uses = 2;
    let bench = Bench::of(World::new(true), settings(), wish).await;
    bench.ready("desk", 1).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let granted = bench.acquire().await.expect("granted");
        seen.push(granted.vm.vm.id.clone());
        release(&bench.o, &granted, ReleasePolicy::Reset).await;
        bench.ready("desk", 1).await;
    }
    assert!(seen[0] == seen[1] && seen[2] == seen[3] && seen[1] != seen[2], "{seen:?}");
    let young = UpdatePool { max_age: Some(Some(Duration::from_millis(1))), ..UpdatePool::default() };
    let before = bench.world.count("define");
    bench.o.update_pool(&id("desk"), None, young).await.expect("changed");
    until("rebuilt", async || (bench.world.count("define") > before + 1).then_some(())).await;
    let old = UpdatePool { max_age: Some(None), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, old).await.expect("changed");
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_pool_follows_demand_between_floor_and_ceiling() {
    let mut wish = pool("desk", 1);
    (wish.spec.options.idle_floor, wish.spec.options.idle_ceiling) = (Some(1), Some(2));
    let settings = Settings { scale_down_after: Duration::from_millis(100), ..settings() };
    let bench = Bench::of(World::new(true), settings, wish).await;
    bench.ready("desk", 1).await;
    let mut held = Vec::new();
    for leased in 1..=4u32 {
        held.push(bench.acquire().await.expect("granted"));
        status_when(&bench.o, "desk", "one idle", |status| (status.leased, status.warm) == (leased, 1)).await;
    }
    for granted in &held {
        release(&bench.o, granted, ReleasePolicy::Reset).await;
    }
    status_when(&bench.o, "desk", "shrunk", |status| (status.total, status.warm) == (2, 2)).await;
    bench.check().await;
}

#[tokio::test]
async fn memory_that_is_promised_away_is_a_reason_not_to_grow() {
    let world = World::new(true);
    // Five of 64 MiB are 320; 80 % of 450 are 360.
    world.set_memory_mb(450);
    let bench = Bench::of(world, settings(), pool("desk", 8)).await;
    let status = bench.ready("desk", 5).await;
    let status = if status.reason.is_empty() {
        status_when(&bench.o, "desk", "a reason", |status| !status.reason.is_empty()).await
    } else {
        status
    };
    assert_eq!((status.shortfalls[0].reason, status.shortfalls[0].count), (ShortfallReason::HostMemory, 3));
    assert!(status.reason.contains("80 %"), "{}", status.reason);
    bench.world.set_memory_mb(900);
    let poke = UpdatePool { display_name: Some("more memory".into()), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, poke).await.expect("changed");
    bench.ready("desk", 8).await;
    bench.check().await;
}

#[tokio::test]
async fn a_pool_says_what_becomes_of_vms_whose_holder_does_not() {
    let mut wish = pool("desk", 1);
    wish.spec.options.release = ReleasePolicy::Destroy;
    let bench = Bench::of(World::new(true), settings(), wish).await;
    bench.ready("desk", 1).await;
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    bench.o.release(&admin(), &granted.lease.id, None).await.expect("released");
    until("destroyed", async || bench.o.vm(&vm).await.err()).await;
    bench.ready("desk", 1).await;
    let granted = bench.acquire().await.expect("granted");
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    assert_eq!(bench.world.dirt(&granted.vm.vm.id), Some(0), "asked for, so it was reset");
    bench.check().await;
}
