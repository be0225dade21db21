//! How many durable commits a second the store makes, and what watching costs.
//!
//! Run with `cargo run --release -p hvkube-host --example store_bench [WRITERS] [SECONDS]`. Each writer changes a VM of its
//! own, with the event that tells of it, and waits for the answer before it goes on, as the VMs' actors do. Beside it, one
//! writer alone shows what a commit costs, and readers list pages meanwhile in the last run. The database is in a
//! temporary folder, so TMPDIR says which disk is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hvkube_host::model::event::{Event, EventKind};
use hvkube_host::model::query::{Page, VmFilter};
use hvkube_host::model::record::{Availability, Operation, Phase, Template, TemplateState, Vm, Work};
use hvkube_host::model::screen::Size;
use hvkube_host::model::template::{Boot, Network, TemplateSpec};
use hvkube_host::model::vm::VmState;
use hvkube_host::store::{Store, StoreConfig};
use jiff::Timestamp;
use uuid::Uuid;

fn template() -> anyhow::Result<Template> {
    let now = Timestamp::now();
    Ok(Template {
        id: "linux".parse()?,
        uid: Uuid::new_v4(),
        display_name: String::new(),
        spec: TemplateSpec {
            disk_path: "/disk.raw".into(),
            disk_format: None,
            boot: Boot::Bios,
            memory_mb: 512,
            cpu_count: 1,
            gpu: false,
            network: Network::None,
            display: Size { width: 1280, height: 800 },
        },
        installed_software: Vec::new(),
        rdp_port: 0,
        state: TemplateState::Ready,
        disk_sha256: String::new(),
        disk_size_bytes: 0,
        clone_method: None,
        os: String::new(),
        agent_version: String::new(),
        created: now,
        updated: now,
        version: 1,
    })
}

fn vm(template: &Template, number: usize) -> anyhow::Result<Vm> {
    let now = Timestamp::now();
    Ok(Vm {
        id: format!("bench-{number}").parse()?,
        uid: Uuid::new_v4(),
        template: template.id.clone(),
        pool: None,
        forked_from: None,
        state: VmState::Saved,
        state_reason: "cloned".into(),
        state_since: now,
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
        cpu_count: 1,
        gpu: false,
        rdp_port: 0,
        created: now,
        last_resumed: None,
        updated: now,
        version: 1,
    })
}

/// Changes one VM until it is over; gives how long each change took.
async fn change(store: Store, mut row: Vm, over: Arc<AtomicBool>) -> anyhow::Result<(Vm, Vec<Duration>)> {
    let mut took = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let mut next = row.clone();
        next.state = if row.state == VmState::Saved { VmState::Resuming } else { VmState::Saved };
        next.version += 1;
        let begun = Instant::now();
        store.update_vm(&next, Event::vm_changed(&row, &next, "bench")).await?;
        took.push(begun.elapsed());
        row = next;
    }
    Ok((row, took))
}

async fn measure(
    store: &Store,
    rows: &mut Vec<Vm>,
    writers: usize,
    readers: usize,
    time: Duration,
) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let mut writing = tokio::task::JoinSet::new();
    for row in rows.drain(..writers) {
        writing.spawn(change(store.clone(), row, Arc::clone(&over)));
    }
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..readers {
        let (store, over) = (store.clone(), Arc::clone(&over));
        reading.spawn(async move {
            let mut pages = 0_u32;
            let page = Page { after: String::new(), limit: 100 };
            while !over.load(Ordering::Relaxed) {
                store.vms(&VmFilter::default(), &page).await?;
                pages += 1;
            }
            anyhow::Ok(pages)
        });
    }
    tokio::time::sleep(time).await;
    over.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    while let Some(done) = writing.join_next().await {
        let (row, one) = done.context("a writer panicked")??;
        rows.push(row);
        took.extend(one);
    }
    let mut pages = 0;
    while let Some(done) = reading.join_next().await {
        pages += done.context("a reader panicked")??;
    }
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
    let seconds = time.as_secs_f64();
    println!(
        "{writers:>4} writers {readers:>2} readers: {:>7.0} writes/s, p50 {:.2?}, p99 {:.2?}, {:.0} pages of 100 rows/s",
        f64::from(u32::try_from(took.len())?) / seconds,
        at(50),
        at(99),
        f64::from(pages) / seconds,
    );
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let writers = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let time = Duration::from_secs(arguments.next().map_or(Ok(5), |text| text.parse())?);
    let dir = tempfile::tempdir()?;
    let store = Store::open(&StoreConfig { path: dir.path().join("bench.db"), durable: true }).await?;
    let template = template()?;
    let operation = Operation {
        id: "template-1".into(),
        work: Work::CreateTemplate(template.id.clone()),
        phase: Phase::Done,
        outcome: None,
        created: template.created,
        updated: template.created,
    };
    let event = Event::of_template(EventKind::TemplateCreated, &template, "", "bench");
    store.insert_template(&template, &operation, None, event).await?;
    let mut rows = Vec::new();
    for number in 0..writers.max(100) {
        let row = vm(&template, number)?;
        store.insert_vm(&row, None, Event::of_vm(EventKind::VmCreated, &row, "", "bench")).await?;
        rows.push(row);
    }
    measure(&store, &mut rows, 1, 0, time).await?;
    measure(&store, &mut rows, writers, 0, time).await?;
    measure(&store, &mut rows, writers, 4, time).await?;
    let begun = Instant::now();
    let pruned = store.prune_events(Timestamp::now() + Duration::from_secs(60), 1).await?;
    println!("{pruned} events pruned in {:.2?}", begun.elapsed());
    store.close().await;
    Ok(())
}
