//! Making VMs: some at a time, and ever more seldom while their template fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::PoolState;
use crate::model::breaker::Allows;
use crate::model::error::{Error, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{PoolId, VmId};
use crate::model::policy::memory_room;
use crate::model::record::{Availability, Pool, Template, TemplateState, Vm};
use crate::model::vm::VmState;
use crate::orchestrator::Shared;
use crate::orchestrator::actor::{Actor, Handle};
use crate::orchestrator::view::{Shortfall, ShortfallReason};

/// What came of making VMs.
#[derive(Default)]
pub(super) struct Made {
    /// Begun.
    pub(super) begun: u32,
    /// Why not all of them.
    pub(super) shortfall: Option<Shortfall>,
    /// When to try again at the latest.
    pub(super) again: Option<Duration>,
}

/// Begins to make VMs, as many as may be made now.
pub(super) fn create(
    shared: &Arc<Shared>,
    state: &Arc<PoolState>,
    pool: &Pool,
    template: &Template,
    how_many: u32,
) -> Made {
    let mut made = Made::default();
    if how_many == 0 {
        return made;
    }
    if template.state != TemplateState::Ready {
        let why = format!("template {} is not ready", template.id);
        made.shortfall = Some(Shortfall::new(ShortfallReason::TemplateNotReady, how_many, why));
        return made;
    }
    let mut may = allowed(shared, state, template, how_many, &mut made);
    let room = room(shared, template.spec.memory_mb);
    if room < may {
        may = room;
        let (total, percent) = (memory_total_mb(shared), shared.settings.memory_limit_percent);
        let why = format!(
            "{} more wanted, but what running vms have and saved ones will need is limited to {percent} % of the \
             host's {total} MiB of memory",
            how_many - may
        );
        made.shortfall = Some(Shortfall::new(ShortfallReason::HostMemory, how_many - may, why));
    }
    if may > 0 {
        made.begun = may;
        let planned = Planned::new(shared, state, may, template.spec.memory_mb);
        let work = make(Arc::clone(shared), pool.clone(), template.clone(), planned);
        shared.tasks.spawn(work);
    }
    made
}

/// VMs that are to be made and have no row yet; given up when it is dropped.
struct Planned {
    shared: Arc<Shared>,
    state: Arc<PoolState>,
    left: u32,
    memory_mb: u64,
}

impl Planned {
    fn new(shared: &Arc<Shared>, state: &Arc<PoolState>, left: u32, memory_mb: u64) -> Self {
        state.planned.fetch_add(left, Ordering::Relaxed);
        shared.pools.planned_mb.fetch_add(u64::from(left) * memory_mb, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), state: Arc::clone(state), left, memory_mb }
    }

    fn one_is_there(&mut self) {
        self.give_up(1);
    }

    fn give_up(&mut self, count: u32) {
        self.left -= count;
        self.state.planned.fetch_sub(count, Ordering::Relaxed);
        self.shared.pools.planned_mb.fetch_sub(u64::from(count) * self.memory_mb, Ordering::Relaxed);
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        self.give_up(self.left);
        self.state.wake.notify_one();
    }
}

/// Makes VMs one after the other, some at a time. The first failure stops the rest, and so does a pause or the end of the
/// pool; the controller plans anew then.
async fn make(shared: Arc<Shared>, pool: Pool, template: Template, mut planned: Planned) {
    let state = Arc::clone(&planned.state);
    let failures = |known: &mut super::Breakers| known.making.failures();
    let before = shared.pools.breaker(&template.id, failures);
    while planned.left > 0 {
        let Ok(place) = Arc::clone(&state.places).acquire_owned().await else { return };
        let open = {
            let lot = state.lot();
            !lot.closed && !lot.paused
        };
        if !open || shared.stopping.is_cancelled() || shared.pools.breaker(&template.id, failures) > before {
            return;
        }
        let handle = match insert(&shared, &pool, &template).await {
            Ok(handle) => handle,
            Err(error) => {
                tracing::warn!(pool = %pool.id, error = &error as &dyn std::error::Error, "no row for a vm");
                let now = shared.pools.now();
                shared.pools.breaker(&template.id, |known| known.making.failed(now, &error.to_string()));
                return;
            }
        };
        planned.one_is_there();
        let (shared, state, template) = (Arc::clone(&shared), Arc::clone(&state), template.id.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let done = handle.call(|vm| Box::pin(vm.provision())).await;
            let now = shared.pools.now();
            shared.pools.breaker(&template, |known| match &done {
                Ok(()) => known.making.worked(),
                Err(error) => known.making.failed(now, &format!("making a vm failed: {error}")),
            });
            if let Err(error) = &done {
                tracing::warn!(pool = %state.id, vm = %handle.id, error = error as &dyn std::error::Error, "vm not made");
            }
            // A clone is there; one that has to boot, or boots since its template's memory is of no use, keeps a core busy.
            let mut rows = handle.rows();
            let booted = rows.wait_for(|row| row.state != VmState::Booting);
            let _ = shared.stopping.run_until_cancelled(booted).await;
            drop(place);
            state.wake.notify_one();
        });
    }
}

/// How many the template's failures allow now.
fn allowed(shared: &Shared, state: &PoolState, template: &Template, how_many: u32, made: &mut Made) -> u32 {
    let now = shared.pools.now();
    shared.pools.breaker(&template.id, |known| {
        let mut may = how_many;
        for breaker in [&mut known.making, &mut known.readiness] {
            let left = match breaker.allows(now) {
                Allows::All => continue,
                Allows::NoneFor(left) => {
                    may = 0;
                    left
                }
                Allows::One => {
                    // The one that is under way will tell.
                    let under_way =
                        state.places.available_permits() < shared.settings.provision_parallel.max(1);
                    may = may.min(u32::from(!under_way));
                    breaker.tried(now);
                    Duration::from_secs(1)
                }
            };
            made.again = Some(made.again.map_or(left, |again| again.max(left)));
            let why = format!(
                "template {} failed {} times in a row, the next try is in {} s: {}",
                template.id,
                breaker.failures(),
                left.as_secs_f64().ceil(),
                breaker.why()
            );
            made.shortfall = Some(Shortfall::new(ShortfallReason::TemplateFails, how_many, why));
        }
        may
    })
}

/// Memory that VMs can have in all, in MiB; 0: not limited.
fn memory_total_mb(shared: &Shared) -> u64 {
    shared.hv.memory_mb().unwrap_or_else(|| crate::orchestrator::calls::host::memory().0 >> 20)
}

/// How many more VMs of this size the host's memory is good for. Saved ones count, since they will need theirs; those
/// of preempted leases don't, once they are saved: they only go on when there is room.
pub(super) fn room(shared: &Shared, size_mb: u64) -> u32 {
    let percent = shared.settings.memory_limit_percent;
    if percent == 0 {
        return u32::MAX;
    }
    let mut promised = shared.pools.planned_mb.load(Ordering::Relaxed);
    for handle in shared.registry.all() {
        promised += handle.look(|row| match row.state {
            VmState::Off | VmState::Error | VmState::Deleting => 0,
            VmState::Saved if row.suspended => 0,
            _ => row.memory_mb,
        });
    }
    memory_room(memory_total_mb(shared), percent, promised, size_mb)
}

/// Adds a VM's row and starts its actor.
async fn insert(shared: &Arc<Shared>, pool: &Pool, template: &Template) -> Result<Handle> {
    loop {
        let number = shared.store.take_vm_number(&pool.id).await?;
        let row = new_row(vm_id(&pool.id, number)?, template, Some(pool.id.clone()));
        // Somebody is making or removing one of that name.
        let Some(_name) = shared.making.begin(&row.id) else { continue };
        let event = Event::of_vm(EventKind::VmCreated, &row, &row.state_reason, "");
        match shared.store.insert_vm(&row, None, event).await {
            Ok(()) => return Ok(Actor::spawn(shared, row)),
            // Somebody gave a fork that name: the next number.
            Err(crate::store::StoreError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `{pool}-{number}`, the pool's name cut where both do not fit.
fn vm_id(pool: &PoolId, number: u64) -> Result<VmId> {
    let number = number.to_string();
    let room = 63 - 1 - number.len();
    let name = &pool.as_str()[..pool.as_str().len().min(room)];
    VmId::new(format!("{name}-{number}")).map_err(|error| Error::field("pool", error.to_string()))
}

/// The row of a VM that is to be made.
pub(in crate::orchestrator) fn new_row(id: VmId, template: &Template, pool: Option<PoolId>) -> Vm {
    let now = Timestamp::now();
    Vm {
        id,
        uid: Uuid::new_v4(),
        template: template.id.clone(),
        pool,
        forked_from: None,
        state: VmState::Provisioning,
        state_reason: "wanted".into(),
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
        memory_mb: template.spec.memory_mb,
        cpu_count: template.spec.cpu_count,
        gpu: template.spec.gpu,
        rdp_port: template.rdp_port,
        created: now,
        last_resumed: None,
        updated: now,
        version: 1,
    }
}
