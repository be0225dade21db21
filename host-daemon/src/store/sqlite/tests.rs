use super::*;
use crate::model::agent::{AgentFilter, AgentStatus};
use crate::model::event::{Event, EventFilter, EventKind};
use crate::model::ids::{LeaseId, PoolId, TemplateId, VmId};
use crate::model::lease::{EndedAs, Receipt};
use crate::model::query::{LeaseFilter, Page, VmFilter};
use crate::model::record::{
    Availability, Lease, Operation, Outcome, Phase, Pool, PoolOptions, PoolSpec, Template, TemplateState, Vm,
    Work,
};
use crate::model::screen::Size;
use crate::model::template::{Boot, Network, TemplateSpec};
use crate::model::vm::VmState;
use uuid::Uuid;

fn id<T: TryFrom<String>>(text: &str) -> T {
    T::try_from(text.to_owned()).ok().expect("a legal id")
}

fn now() -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_123_456).expect("in range")
}

/// Some event; what it says is of no interest to the store.
fn event() -> Event {
    Event::of_pool(EventKind::PoolChanged, &pool(), "tester")
}

fn template() -> Template {
    Template {
        id: id("linux"),
        uid: Uuid::from_u128(1),
        display_name: "Linux".into(),
        spec: TemplateSpec {
            disk_path: "/images/disk.qcow2".into(),
            disk_format: Some("qcow2".into()),
            boot: Boot::Bios,
            memory_mb: 512,
            cpu_count: 2,
            gpu: false,
            network: Network::User,
            display: Size { width: 1280, height: 800 },
        },
        installed_software: vec!["chromium 120".into()],
        rdp_port: 0,
        state: TemplateState::Preparing,
        disk_sha256: "ab".into(),
        disk_size_bytes: 7,
        clone_method: None,
        os: String::new(),
        agent_version: String::new(),
        created: now(),
        updated: now(),
        version: 1,
    }
}

fn operation() -> Operation {
    Operation {
        id: "template-1".into(),
        work: Work::CreateTemplate(id("linux")),
        phase: Phase::Booting,
        outcome: None,
        created: now(),
        updated: now(),
    }
}

fn pool() -> Pool {
    Pool {
        id: id("browsers"),
        uid: Uuid::from_u128(2),
        spec: PoolSpec {
            display_name: String::new(),
            template: id("linux"),
            desired: 3,
            warm: None,
            max_per_host: 0,
            default_ttl: Duration::from_secs(600),
            max_ttl: Duration::from_secs(86_400),
            options: PoolOptions::default(),
        },
        deleting: false,
        paused: false,
        created: now(),
        updated: now(),
        version: 1,
    }
}

fn vm(name: &str, number: u128) -> Vm {
    Vm {
        id: id(name),
        uid: Uuid::from_u128(number),
        template: id("linux"),
        pool: Some(id("browsers")),
        forked_from: None,
        state: VmState::Saved,
        state_reason: "cloned".into(),
        state_since: now(),
        availability: Availability::Idle,
        lease: None,
        pending: None,
        clean: true,
        uses: 0,
        hot: false,
        suspended: false,
        epoch: 0,
        ip_address: String::new(),
        memory_mb: 512,
        cpu_count: 2,
        gpu: false,
        rdp_port: 0,
        created: now(),
        last_resumed: None,
        updated: now(),
        version: 1,
    }
}

fn lease(name: &str, number: u128, vm: &Vm) -> Lease {
    Lease {
        id: id(name),
        uid: Uuid::from_u128(number),
        vm: vm.id.clone(),
        pool: id("browsers"),
        holder: "admin".into(),
        ended: None,
        end_reason: String::new(),
        ttl: Duration::from_secs(60),
        expires: now() + Duration::from_secs(60),
        receipt: None,
        purpose: "test".into(),
        priority: 3,
        suspended: None,
        suspend_reason: String::new(),
        created: now(),
        ended_at: None,
    }
}

fn leased(vm: &Vm, lease: &Lease) -> Vm {
    Vm {
        availability: Availability::Leased,
        lease: Some(lease.id.clone()),
        version: vm.version + 1,
        ..vm.clone()
    }
}

async fn open(dir: &tempfile::TempDir) -> Sqlite {
    let config = StoreConfig { path: dir.path().join("test.db"), durable: true };
    Sqlite::open(&config).await.expect("a fresh database opens")
}

async fn filled() -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(&dir).await;
    store.insert_template(&template(), &operation(), None, event()).await.expect("template");
    store.insert_pool(&pool(), None, event()).await.expect("pool");
    store.insert_vm(&vm("browsers-0", 10), None, event()).await.expect("vm");
    store.insert_vm(&vm("browsers-1", 11), None, event()).await.expect("vm");
    (dir, store)
}

const ALL: Page = Page { after: String::new(), limit: 100 };

#[tokio::test]
async fn rows_come_back_as_they_were_written_also_after_a_reopen() {
    let (dir, store) = filled().await;
    store.close().await;
    let store = open(&dir).await;
    assert_eq!(store.template(&id("linux")).await.expect("read"), Some(template()));
    assert_eq!(store.pool(&id("browsers")).await.expect("read"), Some(pool()));
    let vms = store.vms(&VmFilter::default(), &ALL).await.expect("list");
    assert_eq!(vms, [vm("browsers-0", 10), vm("browsers-1", 11)]);
    let mut done = operation();
    done.phase = Phase::Saving;
    done.outcome = Some(Outcome::Failed { reason: "X".into(), message: "y".into() });
    store.update_operation(&done).await.expect("update");
    assert_eq!(store.operation("template-1").await.expect("read"), Some(done));
}

#[tokio::test]
async fn two_leases_never_get_one_vm() {
    let (_dir, store) = filled().await;
    let free = vm("browsers-0", 10);
    let first = lease("l-1", 20, &free);
    let second = lease("l-2", 21, &free);
    store.grant(&leased(&free, &first), &first, None, vec![event()]).await.expect("the first gets it");
    let stale = store.grant(&leased(&free, &second), &second, None, vec![event()]).await;
    assert!(matches!(stale, Err(StoreError::Changed("vm"))), "{stale:?}");
    let mut forced = leased(&free, &second);
    forced.version += 1;
    let forced = store.grant(&forced, &second, None, vec![event()]).await;
    assert!(matches!(forced, Err(StoreError::Exists("lease"))), "{forced:?}");
    let kept = store.vm(&free.id).await.expect("read").expect("there");
    assert_eq!(kept.lease, Some(first.id), "the loser's write was rolled back whole");
}

#[tokio::test]
async fn a_lease_moves_to_another_vm_and_ends_once() {
    let (_dir, store) = filled().await;
    let (a, b) = (vm("browsers-0", 10), vm("browsers-1", 11));
    let mut held = lease("l-1", 20, &a);
    let bad = leased(&a, &held);
    store.grant(&bad, &held, None, vec![event()]).await.expect("granted");
    let quarantined =
        Vm { availability: Availability::Quarantined, lease: None, version: bad.version + 1, ..bad };
    store.update_vm(&quarantined, event()).await.expect("quarantined");
    held.vm = b.id.clone();
    let good = leased(&b, &held);
    store.grant(&good, &held, None, vec![event()]).await.expect("moved");
    assert_eq!(store.lease(&held.id).await.expect("read").expect("there").vm, b.id);

    let ended = Lease { ended: Some(EndedAs::Expired), ended_at: Some(now()), ..held.clone() };
    let free = Vm { availability: Availability::Idle, lease: None, version: good.version + 1, ..good };
    store.end_lease(Some(&free), &ended, vec![event()]).await.expect("ended");
    let again = store.end_lease(None, &ended, vec![event()]).await;
    assert!(matches!(again, Err(StoreError::Changed("lease"))), "{again:?}");
    let renewed = store.renew_lease(&held.id, Duration::from_secs(1), now(), "tester").await;
    assert!(matches!(renewed, Err(StoreError::Changed("lease"))), "an ended lease is not renewed");
    assert!(store.leases(&LeaseFilter::default(), &ALL).await.expect("list").is_empty());
    let all = LeaseFilter { show_ended: true, pool: None };
    assert_eq!(store.leases(&all, &ALL).await.expect("list").len(), 1);
}

#[tokio::test]
async fn a_lease_in_memory_is_the_one_in_the_database_from_its_grant_to_its_end() {
    let (dir, store) = filled().await;
    let all = LeaseFilter { show_ended: true, ..LeaseFilter::default() };
    let same = async |store: &Sqlite, step: &str| {
        let listed = store.leases(&all, &ALL).await.expect("list").pop();
        let read = store.lease(&id("l-1")).await.expect("read");
        assert!(read.is_some(), "{step}");
        assert_eq!(read, listed, "{step}");
        read.expect("just looked at")
    };
    let free = vm("browsers-0", 10);
    let first = lease("l-1", 20, &free);
    let mut row = leased(&free, &first);
    store.grant(&row, &first, None, vec![event()]).await.expect("granted");
    same(&store, "granted").await;
    let receipt = Receipt {
        checks: Vec::new(),
        total: Duration::from_millis(7),
        epoch: 3,
        waited: Duration::ZERO,
        replaced: 1,
        age: Duration::ZERO,
    };
    let later = now() + Duration::from_secs(90);
    store.write_receipt(&first.id, &receipt, later, "tester").await.expect("ready");
    same(&store, "ready").await;
    store.renew_lease(&first.id, Duration::from_secs(5), later, "tester").await.expect("renewed");
    let mut present = same(&store, "renewed").await;
    for suspended in [Some(now()), None] {
        row.version += 1;
        row.suspended = suspended.is_some();
        present.suspended = suspended;
        present.suspend_reason = "somebody more important".into();
        store.suspend_lease(&row, &present, vec![event()]).await.expect("written");
        same(&store, "preempted, and not any more").await;
    }
    store.close().await;
    let store = open(&dir).await;
    assert_eq!(same(&store, "found again").await, present);
    present.ended = Some(EndedAs::Released);
    present.ended_at = Some(later);
    store.end_lease(None, &present, vec![event()]).await.expect("ended");
    assert_eq!(same(&store, "ended").await, present);
    assert_eq!(store.changes().lease(&first.id), None, "only live ones are kept");
}

#[tokio::test]
async fn expiry_tells_what_is_due_and_what_comes_next() {
    let (_dir, store) = filled().await;
    let (a, b) = (vm("browsers-0", 10), vm("browsers-1", 11));
    let first = lease("l-1", 20, &a);
    let later = Lease { expires: now() + Duration::from_secs(600), ..lease("l-2", 21, &b) };
    store.grant(&leased(&a, &first), &first, None, vec![event()]).await.expect("granted");
    store.grant(&leased(&b, &later), &later, None, vec![event()]).await.expect("granted");
    let (due, next) = store.expired_leases(now() + Duration::from_secs(60)).await.expect("read");
    assert_eq!(due, [first]);
    assert_eq!(next, Some(later.expires));
}

#[tokio::test]
async fn references_and_request_ids_hold() {
    let (_dir, store) = filled().await;
    let used = store.delete_template(&id::<TemplateId>("linux"), event()).await;
    assert!(matches!(used, Err(StoreError::Referred(_))), "{used:?}");
    assert!(store.template_in_use(&id("linux")).await.expect("read"));
    let full = store.delete_pool(&id::<PoolId>("browsers"), event()).await;
    assert!(matches!(full, Err(StoreError::Referred(_))), "{full:?}");

    let request = RequestId { id: Uuid::from_u128(99), fingerprint: "f".into() };
    let other = Pool { id: id("other"), uid: Uuid::from_u128(3), ..pool() };
    store.insert_pool(&other, Some(&request), event()).await.expect("made");
    let answered = store.answered(request.id).await.expect("read").expect("answered");
    assert_eq!(answered.resource, "other");
    let third = Pool { id: id("third"), uid: Uuid::from_u128(4), ..pool() };
    let reused = store.insert_pool(&third, Some(&request), event()).await;
    assert!(matches!(reused, Err(StoreError::Exists("request"))), "{reused:?}");
    assert_eq!(store.pool(&id("third")).await.expect("read"), None, "the pool was rolled back too");
}

#[tokio::test]
async fn pages_filters_and_numbers() {
    let (_dir, store) = filled().await;
    let page = Page { after: "browsers-0".into(), limit: 1 };
    let vms = store.vms(&VmFilter::default(), &page).await.expect("list");
    assert_eq!(vms.iter().map(|vm| vm.id.as_str()).collect::<Vec<_>>(), ["browsers-1"]);
    let running = VmFilter { pool: Some(id("browsers")), states: vec![VmState::Running, VmState::Error] };
    assert!(store.vms(&running, &ALL).await.expect("list").is_empty());
    assert_eq!(store.take_vm_number(&id("browsers")).await.expect("number"), 0);
    assert_eq!(store.take_vm_number(&id("browsers")).await.expect("number"), 1);
    let _: (LeaseId, VmId) = (id("l-1"), id("v-1"));
}

#[tokio::test]
async fn a_second_writer_of_one_version_is_told() {
    let (_dir, store) = filled().await;
    let next = Vm { state: VmState::Resuming, version: 2, ..vm("browsers-0", 10) };
    store.update_vm(&next, event()).await.expect("the first");
    let second = store.update_vm(&next, event()).await;
    assert!(matches!(second, Err(StoreError::Changed("vm"))), "{second:?}");
}

/// The plan of a query, one line a step.
async fn plan(store: &Sqlite, query: sqlx::QueryBuilder<sqlx::Sqlite>) -> String {
    let sql = format!("EXPLAIN QUERY PLAN {}", query.sql().as_str());
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&store.readers).await.expect("plan");
    rows.iter().map(|row| row.get::<String, _>("detail") + "\n").collect()
}

#[tokio::test]
async fn pages_are_read_by_index() {
    let (_dir, store) = filled().await;
    let (pool, after): (PoolId, _) = (id("browsers"), Page { after: "browsers-0".into(), limit: 10 });
    let leases = |pool: Option<&PoolId>, show_ended| {
        lease::query(&LeaseFilter { pool: pool.cloned(), show_ended }, &after)
    };
    let vms = |pool: Option<&PoolId>| {
        vm::query(&VmFilter { pool: pool.cloned(), states: vec![VmState::Running] }, &after)
    };
    let behind = Page { after: "7".into(), limit: 10 };
    let agents = |filter: AgentFilter| agent::query(&filter, &behind);
    let all = AgentFilter::default();
    let several = vec![AgentStatus::Failed, AgentStatus::Pending, AgentStatus::Completed];
    for (what, query, index) in [
        ("operations", operation::query(&after), "sqlite_autoindex_operations_1 (id>?)"),
        ("agents", agents(all.clone()), "INTEGER PRIMARY KEY (rowid<?)"),
        (
            "agents of a pool",
            agents(AgentFilter { pool: Some(pool.clone()), ..all.clone() }),
            "agents_by_pool (pool=? AND number<?)",
        ),
        (
            "agents of a workflow",
            agents(AgentFilter { workflow: "book".into(), ..all.clone() }),
            "agents_by_workflow (workflow=? AND number<?)",
        ),
        (
            "agents in a status",
            agents(AgentFilter { statuses: vec![AgentStatus::Failed], ..all.clone() }),
            "agents_by_status (status=? AND number<?)",
        ),
        (
            "agents in several statuses",
            agents(AgentFilter { statuses: several.clone(), ..all.clone() }),
            "agents_by_status (status=? AND number<?)",
        ),
        (
            "agents of a pool in several statuses",
            agents(AgentFilter { pool: Some(pool.clone()), statuses: several.clone(), ..all.clone() }),
            "agents_by_pool (pool=? AND number<?)",
        ),
        (
            "agents of a workflow in several statuses",
            agents(AgentFilter { workflow: "book".into(), statuses: several, ..all }),
            "agents_by_workflow (workflow=? AND number<?)",
        ),
        ("vms", vms(None), "sqlite_autoindex_vms_1 (id>?)"),
        ("vms of a pool", vms(Some(&pool)), "vms_by_pool (pool=? AND id>?)"),
        ("live leases", leases(None, false), "leases_live_by_id (id<?)"),
        ("live leases of a pool", leases(Some(&pool), false), "leases_live_by_pool (pool=? AND id<?)"),
        ("leases", leases(None, true), "sqlite_autoindex_leases_1 (id<?)"),
        ("leases of a pool", leases(Some(&pool), true), "leases_by_pool (pool=? AND id<?)"),
        (
            "events",
            event::query(1, 9, 10, &EventFilter { vm: Some(id("browsers-0")), ..EventFilter::default() }),
            "INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
        ),
    ] {
        let plan = plan(&store, query).await;
        assert!(plan.contains(index), "{what}: {plan}");
        assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{what}: {plan}");
    }
}

#[tokio::test]
async fn the_next_agent_is_found_without_a_look_at_the_others() {
    let (_dir, store) = filled().await;
    let (workflows, busy) = (["book".to_owned(), "check".to_owned()], [id("browsers")]);
    let wanted = NextAgent { workflows: &workflows, pool: None, busy: &busy };
    let index = "COVERING INDEX agents_to_run (workflow=?)";
    let next = plan(&store, wanted.query(now())).await;
    assert!(next.contains(index) && !next.contains("SCAN agents"), "{next}");
    // That is of the first ones of each workflow.
    assert!(next.matches("TEMP B-TREE").count() <= 1, "{next}");
    let pause = plan(&store, wanted.pause_query()).await;
    assert!(pause.contains(index) && !pause.contains("SCAN"), "{pause}");
    assert_eq!(store.next_agent(&wanted, now()).await.expect("read"), (None, None));
    // Of one pool, those of other pools are not looked at either.
    let pool = id("browsers");
    let of_pool = NextAgent { workflows: &workflows[..1], pool: Some(&pool), busy: &[] };
    let next = plan(&store, of_pool.query(now())).await;
    assert!(next.contains("agents_to_run_in_pool (workflow=? AND pool=?)"), "{next}");
}

#[tokio::test]
async fn a_write_that_fails_takes_none_of_its_group_along() {
    let (_dir, store) = filled().await;
    let head = store.changes().head();
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..200_u128 {
        let store = store.clone();
        // Every third one has a name that is taken.
        let name = if n % 3 == 0 { "browsers-0".into() } else { format!("many-{n}") };
        writes.spawn(async move { (n, store.insert_vm(&vm(&name, 1000 + n), None, event()).await) });
    }
    while let Some(done) = writes.join_next().await {
        let (n, result) = done.expect("no panic");
        match result {
            Ok(()) => assert_ne!(n % 3, 0),
            Err(error) => assert!(matches!(error, StoreError::Exists("vm")) && n % 3 == 0, "{n}: {error:?}"),
        }
    }
    let good = (0..200).filter(|n| n % 3 != 0).count();
    assert_eq!(
        store.vms(&VmFilter::default(), &Page { limit: 1000, ..ALL }).await.expect("list").len(),
        good + 2
    );
    assert_eq!(store.changes().head(), head + good as u64, "no revision is left out");
    let (events, reached) = store.events(head, 1000, &EventFilter::default()).await.expect("events");
    assert_eq!((events.len(), reached), (good, store.changes().head()));
    assert_eq!(store.changes().vms(None, 1000, |_| true).0.len(), good + 2);
}

#[tokio::test]
async fn a_reader_keeps_the_log_and_holds_nobody_up() {
    let (dir, store) = filled().await;
    let path = dir.path().join("test.db");
    let log = || std::fs::metadata(dir.path().join("test.db-wal")).expect("a log").len();
    let reader = rusqlite::Connection::open(&path).expect("opens");
    reader.execute_batch("BEGIN").expect("begun");
    let vms = || reader.query_row("SELECT count(*) FROM vms", [], |row| row.get::<_, u32>(0)).expect("read");
    assert_eq!(vms(), 2);
    store.insert_vm(&vm("late-0", 20), None, event()).await.expect("written");
    let began = std::time::Instant::now();
    store.writer.checkpoint().await.expect("as far as it goes");
    store.insert_vm(&vm("late-1", 21), None, event()).await.expect("written");
    assert!(began.elapsed() < writer::BUSY, "it waited for the reader");
    assert_eq!(vms(), 2, "the reader has its state");
    assert!(log() > 0);
    reader.execute_batch("COMMIT").expect("over");
    store.writer.checkpoint().await.expect("the next round");
    assert_eq!(log(), 0);
}

#[tokio::test]
async fn a_full_disk_fails_its_writes_and_nothing_else() {
    let (dir, store) = filled().await;
    store.close().await;
    let store = open(&dir).await;
    store
        .writer
        .write(|tx| {
            let pages: i64 = tx.db.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("pages");
            tx.db.pragma_update(None, "max_page_count", pages + 4).expect("limited");
            Ok(())
        })
        .await
        .expect("written");
    let head = store.changes().head();
    let mut big = vm("big-1", 500);
    big.state_reason = "x".repeat(200_000);
    let small = vm("small-1", 501);
    let (small, big) =
        tokio::join!(store.insert_vm(&small, None, event()), store.insert_vm(&big, None, event()),);
    let error = big.expect_err("too large");
    assert!(matches!(error, StoreError::Database { .. }), "{error:?}");
    // Whether the small one was in the same commit is up to the writer, but its answer must be the truth.
    let there = store.vm(&id("small-1")).await.expect("read").is_some();
    assert_eq!(small.is_ok(), there);
    assert_eq!(store.changes().vm(&id("small-1")).is_some(), there);
    assert_eq!(store.changes().vm(&id("big-1")), None);
    store.insert_vm(&vm("small-2", 502), None, event()).await.expect("the writer goes on");
    assert_eq!(store.changes().head(), head + 1 + u64::from(there));
}

#[tokio::test]
async fn revisions_go_on_over_a_restart_and_pruning() {
    let (dir, store) = filled().await;
    let (head, incarnation) = (store.changes().head(), store.incarnation());
    assert!(head >= 4);
    store.close().await;
    assert!(matches!(store.delete_operation("x").await, Err(StoreError::Closed)));
    let store = open(&dir).await;
    assert_eq!((store.changes().head(), store.incarnation()), (head, incarnation));
    assert!(store.changes().reaches(0));
    let (events, _) = store.events(0, 100, &EventFilter::default()).await.expect("events");
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), (1..=head).collect::<Vec<_>>());
    assert_eq!(events[0].actor, "tester");

    assert_eq!(store.prune_events(Timestamp::UNIX_EPOCH, 2).await.expect("pruned"), head - 2);
    assert!(!store.changes().reaches(head - 3) && store.changes().reaches(head - 2));
    let gone = store.events(0, 100, &EventFilter::default()).await;
    assert!(matches!(gone, Err(StoreError::Compacted(0))), "{gone:?}");
    let future = Timestamp::now() + Duration::from_secs(60);
    assert_eq!(store.prune_events(future, 100).await.expect("pruned"), 1, "the newest stays");
    store.close().await;
    let store = open(&dir).await;
    assert_eq!(store.changes().head(), head, "it carries the revision");
    store.update_pool(&Pool { version: 2, ..pool() }, event()).await.expect("changed");
    assert_eq!(store.changes().head(), head + 1);
}

#[tokio::test]
async fn events_come_back_as_they_were_written_and_filtered() {
    let (_dir, store) = filled().await;
    let (old, head) = (vm("browsers-0", 10), store.changes().head());
    let new = Vm {
        state: VmState::Resuming,
        state_reason: "leased".into(),
        state_since: now() + Duration::from_secs(2),
        version: 2,
        ..old.clone()
    };
    let mut moved = Event::vm_changed(&old, &new, "alice");
    store.update_vm(&new, moved.clone()).await.expect("moved");
    moved.revision = head + 1;
    // The store keeps microseconds.
    let read = async |filter: EventFilter| store.events(head, 100, &filter).await.expect("events").0;
    let all = read(EventFilter::default()).await;
    assert_eq!(all.iter().map(|event| (**event).clone()).collect::<Vec<_>>(), [moved.clone()]);
    assert_eq!(moved.moved, Some((VmState::Saved, VmState::Resuming)));
    for (filter, found) in [
        (EventFilter { vm: Some(id("browsers-0")), ..EventFilter::default() }, 1),
        (EventFilter { vm: Some(id("browsers-1")), ..EventFilter::default() }, 0),
        (EventFilter { pool: Some(id("browsers")), ..EventFilter::default() }, 1),
        (EventFilter { kinds: vec![EventKind::VmMoved], ..EventFilter::default() }, 1),
        (EventFilter { kinds: vec![EventKind::LeaseEnded], ..EventFilter::default() }, 0),
        (EventFilter { since: Some(moved.at + Duration::from_secs(1)), ..EventFilter::default() }, 0),
    ] {
        assert_eq!(read(filter.clone()).await.len(), found, "{filter:?}");
        assert_eq!(filter.wants(&moved), found == 1, "{filter:?}");
    }
}
