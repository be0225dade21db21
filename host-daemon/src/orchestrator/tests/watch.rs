//! Watches: complete, resumable over a restart, and never in the way.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;

use super::*;
use crate::model::error::Reason;
use crate::model::event::{Event, EventFilter, EventKind, Revision};
use crate::orchestrator::asked_by;
use crate::orchestrator::request::BackupStore;
use crate::orchestrator::view::VmView;
use crate::orchestrator::watch::{Delta, Phase, VmWatch, Watch};

/// What a client of WatchVms knows.
#[derive(Default)]
struct Known {
    vms: BTreeMap<String, VmView>,
    revision: Option<Revision>,
    synced: bool,
}

impl Known {
    fn take(&mut self, delta: Delta<VmView, VmId>) {
        for view in delta.items {
            let id = view.vm.id.to_string();
            if let Some(old) = self.vms.get(&id) {
                let back = old.vm.uid == view.vm.uid && old.vm.version > view.vm.version;
                assert!(!back, "{id} went back to version {}", view.vm.version);
            }
            self.vms.insert(id, view);
        }
        for id in delta.removed {
            self.vms.remove(id.as_str());
        }
        self.synced |= delta.phase == Phase::Synced;
        self.revision = delta.revision.or(self.revision);
    }

    /// Takes what comes until it is as wanted.
    async fn until(
        &mut self,
        watch: &mut Watch<Delta<VmView, VmId>>,
        what: &str,
        wanted: impl Fn(&Self) -> bool,
    ) {
        while !wanted(self) {
            let next = tokio::time::timeout(LONG, watch.next()).await;
            let next = next.unwrap_or_else(|_| panic!("not in time: {what}"));
            self.take(next.expect("goes on").expect("no error"));
        }
    }

    fn count(&self, state: VmState) -> usize {
        self.vms.values().filter(|view| view.vm.state == state).count()
    }
}

/// All events so far that are wanted.
async fn history(o: &Orchestrator, filter: EventFilter) -> Vec<Arc<Event>> {
    let mut watch = o.watch_events(filter, None).expect("watched");
    let mut all = Vec::new();
    loop {
        let delta = watch.next().await.expect("goes on").expect("no error");
        all.extend(delta.items);
        if delta.phase == Phase::Synced {
            return all;
        }
    }
}

#[tokio::test]
async fn a_watch_shows_every_vm_and_goes_on_after_a_restart() {
    let bench = Bench::with_pool(3).await;
    let mut known = Known::default();
    let mut watch = bench.o.watch_vms(VmWatch::default(), None).expect("watched");
    known.until(&mut watch, "a snapshot", |known| known.synced).await;
    assert_eq!((known.vms.len(), known.count(VmState::Saved)), (3, 3));

    let granted = bench.acquire().await.expect("granted");
    let name = granted.vm.vm.id.to_string();
    known.until(&mut watch, "a running vm", |known| known.count(VmState::Running) == 1).await;
    assert_eq!(known.vms[&name].vm.lease, Some(granted.lease.id.clone()));
    drop(watch);
    let left_at = known.revision;

    // Missed: the release, and a VM that goes. The daemon is another one by then.
    release(&bench.o, &granted, ReleasePolicy::Destroy).await;
    until("it is gone", async || bench.o.vm(&granted.vm.vm.id).await.is_err().then_some(())).await;
    let bench = bench.restart().await;
    let mut watch = bench.o.watch_vms(VmWatch::default(), left_at).expect("still known");
    known
        .until(&mut watch, "the replacement", |known| {
            !known.vms.contains_key(&name) && known.count(VmState::Saved) == 3
        })
        .await;
    bench.ready("desk", 3).await;
    let rows =
        bench.o.vms(&VmFilter::default(), &Page { after: String::new(), limit: 100 }).await.expect("vms");
    let versions: BTreeMap<String, u64> = rows.iter().map(|v| (v.vm.id.to_string(), v.vm.version)).collect();
    known
        .until(&mut watch, "the latest versions", |known| {
            known.vms.iter().map(|(id, view)| (id.clone(), view.vm.version)).collect::<BTreeMap<_, _>>()
                == versions
        })
        .await;
}

#[tokio::test]
async fn filters_let_go_of_what_no_longer_fits() {
    let bench = Bench::with_pool(2).await;
    let filter = VmFilter { pool: Some(id("desk")), states: vec![VmState::Saved] };
    let wanted = VmWatch { filter, vms: Vec::new() };
    let mut known = Known::default();
    let mut watch = bench.o.watch_vms(wanted, None).expect("watched");
    known.until(&mut watch, "both", |known| known.synced && known.vms.len() == 2).await;
    let granted = bench.acquire().await.expect("granted");
    known.until(&mut watch, "one left", |known| known.vms.len() == 1).await;
    assert!(!known.vms.contains_key(granted.vm.vm.id.as_str()));
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    known.until(&mut watch, "both again", |known| known.vms.len() == 2).await;
}

#[tokio::test]
async fn events_tell_what_why_who_and_how_long() {
    let bench = Bench::with_pool(1).await;
    let alice = Caller { name: "alice".into(), admin: false };
    let granted = bench.o.acquire(&alice, wanted(LONG)).await.expect("granted");
    bench.o.renew(&alice, &granted.lease.id, None).await.expect("renewed");
    let released = bench.o.release(&alice, &granted.lease.id, Some(ReleasePolicy::Reset));
    asked_by("alice", released).await.expect("released");
    bench.ready("desk", 1).await;

    let all = history(&bench.o, EventFilter::default()).await;
    let numbers: Vec<u64> = all.iter().map(|event| event.revision).collect();
    assert_eq!(numbers, (1..=all.len() as u64).collect::<Vec<_>>(), "none is left out");
    let story: Vec<String> = all
        .iter()
        .map(|event| match event.moved {
            Some((from, to)) => format!("{from} -> {to}"),
            None => event.kind.as_str().to_owned(),
        })
        .collect();
    assert_eq!(
        story,
        [
            "template_created",
            "template_ready",
            "pool_created",
            "vm_created",
            "provisioning -> saved",
            "lease_granted",
            "saved -> resuming",
            "resuming -> running",
            "lease_ready",
            "lease_renewed",
            "lease_ended",
            "running -> resetting",
            "resetting -> saved",
        ]
    );
    let find = |what: &str| &all[story.iter().position(|one| one == what).expect("there")];
    for (what, actor, cause) in [
        ("vm_created", "", "wanted"),
        ("lease_granted", "alice", ""),
        ("lease_renewed", "alice", ""),
        ("lease_ended", "alice", "released, to be reset"),
        ("running -> resetting", "alice", "given back"),
    ] {
        let event = find(what);
        assert_eq!((event.actor.as_str(), event.cause.as_str()), (actor, cause), "{what}");
    }
    for what in
        ["template_ready", "provisioning -> saved", "resuming -> running", "lease_ready", "lease_ended"]
    {
        assert!(find(what).duration.is_some(), "{what}");
    }
    assert!(find("saved -> resuming").duration.is_none(), "rest is no move");

    let of_lease = EventFilter { kinds: vec![EventKind::LeaseEnded], ..EventFilter::default() };
    assert_eq!(history(&bench.o, of_lease).await.len(), 1);
    let of_vm = EventFilter { vm: Some(granted.vm.vm.id.clone()), ..EventFilter::default() };
    assert_eq!(history(&bench.o, of_vm).await.len(), 10);
    let of_none = EventFilter { pool: Some(id("other")), ..EventFilter::default() };
    assert!(history(&bench.o, of_none).await.is_empty());
}

#[tokio::test]
async fn a_revision_that_is_gone_is_out_of_range_and_another_history_too() {
    let bench = Bench::with_pool(1).await;
    let store = &bench.o.0.store;
    let head = store.changes().head();
    let at = |number| Some(Revision { incarnation: store.incarnation(), number });
    assert!(bench.o.watch_events(EventFilter::default(), at(0)).is_ok());
    store.prune_events(jiff::Timestamp::UNIX_EPOCH, 1).await.expect("pruned");
    let other = Some(Revision { incarnation: store.incarnation() ^ 1, number: head });
    for from in [at(0), at(head + 1), other] {
        let refused = [
            bench.o.watch_events(EventFilter::default(), from).err(),
            bench.o.watch_vms(VmWatch::default(), from).err(),
            bench.o.watch_pools(None, from).err(),
        ];
        for error in refused {
            assert_eq!(error.expect("refused").reason, Reason::RevisionGone);
        }
    }
    let mut watch = bench.o.watch_events(EventFilter::default(), at(head)).expect("the newest is known");
    let first = watch.next().await.expect("goes on").expect("no error");
    assert_eq!((first.phase, first.revision), (Phase::Synced, at(head)));
    assert_eq!(history(&bench.o, EventFilter::default()).await.len(), 1, "what is kept");
}

#[tokio::test]
async fn an_idle_watch_says_so_and_a_slow_one_ends_with_where_to_go_on() {
    let dir = tempfile::tempdir().expect("dir");
    let world = World::new(true);
    let store = Store::open(&StoreConfig { path: dir.path().join("store.db"), durable: false }).await;
    let settings = Settings {
        watch_bookmark: Duration::from_millis(50),
        watch_patience: Duration::from_millis(200),
        ..settings()
    };
    let o = Orchestrator::start(store.expect("store"), Arc::new(Sim::new(&world)), settings)
        .await
        .expect("started");
    make_template(&o).await;
    let mut watch = o.watch_vms(VmWatch::default(), None).expect("watched");
    assert_eq!(watch.next().await.expect("one").expect("no error").phase, Phase::Synced);
    let bookmark = watch.next().await.expect("one").expect("no error");
    assert_eq!(bookmark.phase, Phase::Bookmark);
    assert_eq!(bookmark.revision.expect("one").number, o.0.store.changes().head());

    // Nobody reads: a few bookmarks wait, then the watch gives up.
    let mut last = None;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let error = loop {
        match watch.next().await.expect("an end") {
            Ok(delta) => last = delta.revision.or(last),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason, Reason::WatchTooSlow);
    let at = error.metadata.iter().find(|(key, _)| *key == "revision").map(|(_, at)| at.parse());
    assert_eq!(at, Some(Ok(last.expect("some came"))));
    assert!(watch.next().await.is_none());
    assert!(o.watch_vms(VmWatch::default(), last).is_ok(), "it may go on");
}

#[tokio::test]
async fn pools_are_watched_with_their_status() {
    let bench = Bench::with_pool(2).await;
    let mut watch = bench.o.watch_pools(None, None).expect("watched");
    let first = watch.next().await.expect("one").expect("no error");
    assert_eq!((first.phase, first.items.len()), (Phase::Synced, 1));
    assert_eq!(first.items[0].status.warm, 2);
    let granted = bench.acquire().await.expect("granted");
    let mut leased = 0;
    let mut at = first.revision;
    while leased == 0 {
        let delta = watch.next().await.expect("goes on").expect("no error");
        leased = delta.items.iter().map(|view| view.status.leased).max().unwrap_or(leased);
        at = delta.revision.or(at);
    }
    drop(watch);
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.o.delete_pool(&admin(), &id("desk"), false, None).await.expect("deleted");
    let mut watch = bench.o.watch_pools(None, at).expect("goes on");
    let missed = watch.next().await.expect("one").expect("no error");
    assert_eq!((missed.items.len(), missed.removed), (0, vec![id("desk")]));
}

#[tokio::test]
async fn watches_end_with_the_daemon() {
    let bench = Bench::with_pool(1).await;
    let mut watch = bench.o.watch_events(EventFilter::default(), None).expect("watched");
    watch.next().await.expect("one").expect("no error");
    bench.o.shutdown().await;
    loop {
        match watch.next().await.expect("an end") {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.reason, Reason::ShuttingDown);
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_store_is_copied_by_whoever_may_and_only_over_what_may_go() {
    let bench = Bench::with_pool(1).await;
    let path = bench.dir.path().join("copy.db");
    let wanted = |overwrite| BackupStore { path: path.clone(), overwrite, request: None };
    let alice = Caller { name: "alice".into(), admin: false };
    let refused = bench.o.backup_store(&alice, wanted(false)).await.expect_err("refused");
    assert_eq!(refused.reason, Reason::AdminOnly);
    let done = async |overwrite| {
        let operation = bench.o.backup_store(&admin(), wanted(overwrite)).await?;
        bench.o.wait_operation(&operation.id, LONG).await
    };
    assert_eq!(done(false).await.expect("copied").outcome, Some(Outcome::Ready));
    assert_eq!(done(false).await.expect_err("there").reason, Reason::AlreadyExists);
    assert_eq!(done(true).await.expect("replaced").outcome, Some(Outcome::Ready));
    for bad in [bench.dir.path().join("none/copy.db"), bench.dir.path().join("store.db")] {
        let request = BackupStore { path: bad, overwrite: true, request: None };
        let error = bench.o.backup_store(&admin(), request).await.expect_err("refused");
        assert_eq!(error.violations[0].field, "path");
    }
    std::fs::write(&path, "my diary").expect("written");
    let failed = done(true).await.expect("an operation");
    assert!(matches!(failed.outcome, Some(Outcome::Failed { .. })), "{failed:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "my diary");
}
