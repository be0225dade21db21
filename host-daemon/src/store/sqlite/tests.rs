use super::*;
use crate::model::ids::{LeaseId, PoolId, TemplateId, VmId};
use crate::model::lease::EndedAs;
use crate::model::query::{LeaseFilter, Page, VmFilter};
use crate::model::record::{
    Availability, Lease, Operation, Outcome, Phase, Pool, PoolOptions, PoolSpec, Template, TemplateState, Vm,
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
        template: id("linux"),
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
    store.insert_template(&template(), &operation(), None).await.expect("template");
    store.insert_pool(&pool(), None).await.expect("pool");
    store.insert_vm(&vm("browsers-0", 10), None).await.expect("vm");
    store.insert_vm(&vm("browsers-1", 11), None).await.expect("vm");
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
    store.grant(&leased(&free, &first), &first, None).await.expect("the first gets it");
    let stale = store.grant(&leased(&free, &second), &second, None).await;
    assert!(matches!(stale, Err(StoreError::Changed("vm"))), "{stale:?}");
    let mut forced = leased(&free, &second);
    forced.version += 1;
    let forced = store.grant(&forced, &second, None).await;
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
    store.grant(&bad, &held, None).await.expect("granted");
    let quarantined =
        Vm { availability: Availability::Quarantined, lease: None, version: bad.version + 1, ..bad };
    store.update_vm(&quarantined).await.expect("quarantined");
    held.vm = b.id.clone();
    let good = leased(&b, &held);
    store.grant(&good, &held, None).await.expect("moved");
    assert_eq!(store.lease(&held.id).await.expect("read").expect("there").vm, b.id);

    let ended = Lease { ended: Some(EndedAs::Expired), ended_at: Some(now()), ..held.clone() };
    let free = Vm { availability: Availability::Idle, lease: None, version: good.version + 1, ..good };
    store.end_lease(Some(&free), &ended).await.expect("ended");
    let again = store.end_lease(None, &ended).await;
    assert!(matches!(again, Err(StoreError::Changed("lease"))), "{again:?}");
    let renewed = store.renew_lease(&held.id, Duration::from_secs(1), now()).await;
    assert!(matches!(renewed, Err(StoreError::Changed("lease"))), "an ended lease is not renewed");
    assert!(store.leases(&LeaseFilter::default(), &ALL).await.expect("list").is_empty());
    let all = LeaseFilter { show_ended: true, pool: None };
    assert_eq!(store.leases(&all, &ALL).await.expect("list").len(), 1);
}

#[tokio::test]
async fn expiry_tells_what_is_due_and_what_comes_next() {
    let (_dir, store) = filled().await;
    let (a, b) = (vm("browsers-0", 10), vm("browsers-1", 11));
    let first = lease("l-1", 20, &a);
    let later = Lease { expires: now() + Duration::from_secs(600), ..lease("l-2", 21, &b) };
    store.grant(&leased(&a, &first), &first, None).await.expect("granted");
    store.grant(&leased(&b, &later), &later, None).await.expect("granted");
    let (due, next) = store.expired_leases(now() + Duration::from_secs(60)).await.expect("read");
    assert_eq!(due, [first]);
    assert_eq!(next, Some(later.expires));
}

#[tokio::test]
async fn references_and_request_ids_hold() {
    let (_dir, store) = filled().await;
    let used = store.delete_template(&id::<TemplateId>("linux")).await;
    assert!(matches!(used, Err(StoreError::Referred(_))), "{used:?}");
    assert!(store.template_in_use(&id("linux")).await.expect("read"));
    let full = store.delete_pool(&id::<PoolId>("browsers")).await;
    assert!(matches!(full, Err(StoreError::Referred(_))), "{full:?}");

    let request = RequestId { id: Uuid::from_u128(99), fingerprint: "f".into() };
    let other = Pool { id: id("other"), uid: Uuid::from_u128(3), ..pool() };
    store.insert_pool(&other, Some(&request)).await.expect("made");
    let answered = store.answered(request.id).await.expect("read").expect("answered");
    assert_eq!(answered.resource, "other");
    let third = Pool { id: id("third"), uid: Uuid::from_u128(4), ..pool() };
    let reused = store.insert_pool(&third, Some(&request)).await;
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
    store.update_vm(&next).await.expect("the first");
    let second = store.update_vm(&next).await;
    assert!(matches!(second, Err(StoreError::Changed("vm"))), "{second:?}");
}
