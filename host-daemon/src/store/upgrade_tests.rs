//! The present daemon on what earlier ones wrote, and on copies of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rusqlite::Connection;

use super::copy::{CopyError, restore};
use super::{Store, StoreConfig};
use crate::model::event::{Event, EventFilter, EventKind};
use crate::model::lease::EndedAs;
use crate::model::query::{LeaseFilter, Page, VmFilter};
use crate::model::record::{Availability, Outcome, Pending, Phase, Pool, TemplateState, Vm, Work};
use crate::model::vm::VmState;

const ALL: Page = Page { after: String::new(), limit: 100 };

fn id<T: TryFrom<String>>(text: &str) -> T {
    T::try_from(text.to_owned()).ok().expect("a legal id")
}

fn config(path: &Path) -> StoreConfig {
    StoreConfig { path: path.to_owned(), durable: false }
}

/// A database as the daemon of schema 1 left it.
fn first_schema(path: &Path) {
    let db = Connection::open(path).expect("made");
    db.execute_batch(include_str!("fixtures/0001.sql")).expect("filled");
    db.pragma_update(None, "journal_mode", "WAL").expect("as it was");
}

async fn opened(path: &Path) -> Store {
    Store::open(&config(path)).await.expect("opens")
}

async fn rename_pool(store: &Store, title: &str) {
    let pool = store.pool(&id("browsers")).await.expect("read").expect("there");
    let mut spec = pool.spec.clone();
    spec.display_name = title.into();
    let next = Pool { spec, version: pool.version + 1, ..pool };
    let event = Event::of_pool(EventKind::PoolChanged, &next, "tester");
    store.update_pool(&next, event).await.expect("changed");
}

async fn title(store: &Store) -> String {
    store.pool(&id("browsers")).await.expect("read").expect("there").spec.display_name
}

#[tokio::test]
async fn the_first_schema_is_upgraded_with_all_that_it_holds() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("hvkube.db");
    first_schema(&path);
    let store = opened(&path).await;

    let template = store.template(&id("linux")).await.expect("read").expect("there");
    assert_eq!((template.state, template.os.as_str()), (TemplateState::Ready, "Debian 13"));
    let vms = store.vms(&VmFilter::default(), &ALL).await.expect("list");
    let seen: Vec<_> = vms.iter().map(|vm| (vm.id.as_str(), vm.state, vm.availability)).collect();
    assert_eq!(
        seen,
        [
            ("browsers-0", VmState::Saved, Availability::Leased),
            ("browsers-1", VmState::Error, Availability::Quarantined),
            ("browsers-2", VmState::Saved, Availability::Idle),
        ]
    );
    let leases = store.leases(&LeaseFilter { pool: None, show_ended: true }, &ALL).await.expect("list");
    let seen: Vec<_> =
        leases.iter().map(|lease| (lease.id.as_str(), lease.ended, lease.receipt.is_some())).collect();
    assert_eq!(seen, [("l-1", None, true), ("l-0", Some(EndedAs::VmLost), false)]);
    let done = store.operation("template-1").await.expect("read").expect("there");
    assert_eq!((done.work, done.phase), (Work::CreateTemplate(id("linux")), Phase::Done));
    assert_eq!(done.outcome, Some(Outcome::Ready));
    let failed = store.operation("template-0").await.expect("read").expect("there");
    assert_eq!(failed.work, Work::CreateTemplate(id("windows")));
    assert!(matches!(failed.outcome, Some(Outcome::Failed { .. })));
    let answered = store.answered(uuid::Uuid::from_u128(78)).await.expect("read").expect("there");
    assert_eq!(answered.resource, "l-1");
    assert_eq!(store.checkpoint_descriptions(&id("browsers-0")).await.expect("read").len(), 1);
    assert_eq!(store.take_vm_number(&id("browsers")).await.expect("number"), 3);

    // What it did not have begins now.
    assert_eq!(store.changes().head(), 0);
    assert_eq!(store.changes().vms(None, 100, |_| true).0.len(), 3);
    let vm = vms.into_iter().next_back().expect("three");
    let next = Vm { state: VmState::Resuming, version: vm.version + 1, ..vm.clone() };
    store.update_vm(&next, Event::vm_changed(&vm, &next, "")).await.expect("moved");
    assert_eq!(store.events(0, 10, &EventFilter::default()).await.expect("events").0.len(), 1);
}

#[tokio::test]
async fn a_copy_taken_under_writes_is_whole_and_comes_back() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, copy) = (dir.path().join("hvkube.db"), dir.path().join("copy.db"));
    first_schema(&path);
    let store = opened(&path).await;
    rename_pool(&store, "before").await;
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for n in 0..100 {
            rename_pool(&writer, &format!("during {n}")).await;
        }
    });
    let size = store.backup(&copy, false).await.expect("copied");
    writing.await.expect("written");
    let file = fs::metadata(&copy).expect("there");
    assert_eq!((file.len(), file.permissions().mode() & 0o777), (size, 0o600));
    let again = store.backup(&copy, false).await;
    assert!(matches!(again, Err(CopyError::Exists(_))), "{again:?}");
    let small = dir.path().join("small.db");
    store.backup(&small, false).await.expect("copied");
    rename_pool(&store, "after").await;
    store.backup(&small, true).await.expect("replaced");
    let (before, head) = (store.incarnation(), store.changes().head());
    store.close().await;

    let kept = restore(&copy, &config(&path)).expect("restored").kept.expect("the old one is kept");
    let restored = opened(&path).await;
    let name = title(&restored).await;
    assert!(name == "before" || name.starts_with("during"), "{name}");
    assert_ne!(restored.incarnation(), before, "revisions of before mean nothing now");
    assert!(restored.changes().head() < head);
    restored.close().await;
    let old = opened(&kept).await;
    assert_eq!(title(&old).await, "after");
    old.close().await;
    restore(&small, &config(&path)).expect("restored");
    assert_eq!(title(&opened(&path).await).await, "after");
    let left: Vec<_> = fs::read_dir(dir.path())
        .expect("listed")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".hvkube-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_is_no_whole_store_of_ours_is_not_put_back() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("hvkube.db");
    let file = dir.path().join("copy.db");
    first_schema(&path);
    let store = opened(&path).await;
    rename_pool(&store, "mine").await;
    store.backup(&file, false).await.expect("copied");
    store.close().await;
    let whole = fs::read(&file).expect("read");
    let refused =
        |what: &str| restore(&file, &config(&path)).err().unwrap_or_else(|| panic!("taken: {what}"));
    let change = |sql: &str| {
        fs::write(&file, &whole).expect("written");
        Connection::open(&file).expect("opens").execute_batch(sql).expect("changed");
    };

    fs::write(&file, "text").expect("written");
    assert!(matches!(refused("text"), CopyError::NotAStore { .. }));
    Connection::open(dir.path().join("other.db"))
        .expect("made")
        .execute_batch("CREATE TABLE t (a)")
        .expect("made");
    fs::copy(dir.path().join("other.db"), &file).expect("copied");
    assert!(matches!(refused("another database"), CopyError::NotAStore { .. }));
    let mut torn = whole.clone();
    torn.truncate(whole.len() / 2);
    fs::write(&file, &torn).expect("written");
    assert!(matches!(refused("half of one"), CopyError::Damaged { .. }));
    let mut torn = whole.clone();
    let middle = whole.len() / 2 / 4096 * 4096;
    torn[middle..middle + 4096].fill(0xff);
    fs::write(&file, &torn).expect("written");
    assert!(matches!(refused("a torn one"), CopyError::Damaged { .. }));
    change(
        "INSERT INTO _sqlx_migrations SELECT 9999, description, installed_on, success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
    );
    assert!(matches!(refused("a newer one"), CopyError::Newer { schema: 9999, .. }));
    change("UPDATE _sqlx_migrations SET checksum = x'00'");
    assert!(matches!(refused("a strange schema"), CopyError::NotAStore { .. }));
    change("PRAGMA foreign_keys = OFF; UPDATE vms SET template = 'none-such'");
    assert!(matches!(refused("loose rows"), CopyError::Damaged { .. }));
    fs::write(&file, &whole).expect("written");
    fs::write(dir.path().join("copy.db-wal"), "log").expect("written");
    assert!(matches!(refused("a live copy"), CopyError::Live(_)));
    fs::remove_file(dir.path().join("copy.db-wal")).expect("removed");
    let missing = restore(&dir.path().join("none.db"), &config(&path));
    assert!(matches!(missing, Err(CopyError::Io { .. })), "{missing:?}");

    assert_eq!(title(&opened(&path).await).await, "mine", "the store is as it was");
    // A copy of an earlier daemon's is upgraded when it is opened, and a place without a store takes one too.
    let old = dir.path().join("first.db");
    first_schema(&old);
    let empty = dir.path().join("empty.db");
    let restored = restore(&old, &config(&empty)).expect("restored");
    assert_eq!(
        (restored.kept, restored.ended),
        (None, vec!["l-1".to_owned()]),
        "nobody knows who had its vm"
    );
    let store = opened(&empty).await;
    assert_eq!(store.changes().pools().0.len(), 1);
    let lease = store.lease(&id("l-1")).await.expect("read").expect("there");
    assert_eq!(lease.ended, Some(EndedAs::Revoked));
    for vm in ["browsers-0", "browsers-2"] {
        let vm = store.vm(&id(vm)).await.expect("read").expect("there");
        assert_eq!((vm.availability, vm.pending), (Availability::Idle, Some(Pending::Reset)), "{}", vm.id);
        assert!(vm.lease.is_none() && !vm.clean);
    }
}

#[tokio::test]
async fn what_a_killed_daemon_wrote_last_is_known() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, copy) = (dir.path().join("hvkube.db"), dir.path().join("copy.db"));
    first_schema(&path);
    let store = opened(&path).await;
    store.backup(&copy, false).await.expect("copied");
    let put_back = |name: &str| {
        // As it lies there when the daemon is killed, its log not folded in.
        let place = dir.path().join(name);
        fs::create_dir(&place).expect("made");
        for file in ["hvkube.db", "hvkube.db-wal"] {
            fs::copy(dir.path().join(file), place.join(file)).expect("copied");
        }
        restore(&copy, &config(&place.join("hvkube.db"))).expect("restored")
    };
    let still = put_back("still");
    assert!(still.unread.is_none() && still.ended.is_empty(), "it has its vm to this day: {still:?}");

    let mut lease = store.lease(&id("l-1")).await.expect("read").expect("there");
    (lease.ended, lease.ended_at) = (Some(EndedAs::Released), Some(jiff::Timestamp::now()));
    store.end_lease(None, &lease, Vec::new()).await.expect("ended");
    assert!(fs::metadata(dir.path().join("hvkube.db-wal")).expect("a log").len() > 0);
    assert_eq!(put_back("ended").ended, ["l-1"]);
}
