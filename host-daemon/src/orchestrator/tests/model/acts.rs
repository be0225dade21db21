//! What the operations of the model do.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::lab::{FIRST, Lab};
use super::ledger::{Asked, Ledger};
use super::ops::{Ask, Op, Shape, To};
use super::{Verdict, work};
use crate::hypervisor::sim::{Fault, Target};
use crate::hypervisor::{Hypervisor as _, Origin, Stop, VmDefinition};
use crate::model::ids::{CheckpointId, PoolId, TemplateId, VmId};
use crate::model::input::RawInput;
use crate::model::lease::ReleasePolicy;
use crate::model::query::RequestId;
use crate::model::queue::Needs;
use crate::model::record::PoolOptions;
use crate::model::screen::Size;
use crate::model::vm::VmState;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Acquire, Caller, CreatePool, Fork, TakeCheckpoint, UpdatePool};
use crate::orchestrator::tests::{admin, id, pool, template};

/// The template that a run may make.
pub(super) const SECOND: &str = "newer";
/// What holders type.
const KEYS: [char; 4] = ['a', 'b', 'c', 'd'];
/// A lease that is not renewed.
const BRIEF: Duration = Duration::from_millis(40);

pub(super) type Shelf = Arc<std::sync::Mutex<Ledger>>;

pub(super) fn book(ledger: &Shelf) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn pool_id(n: u8) -> PoolId {
    id(&format!("desk-{n}"))
}

pub(super) fn caller(n: u8) -> Caller {
    match n {
        0 => admin(),
        n => Caller { name: format!("caller-{n}"), admin: false },
    }
}

/// Does one operation; most only begin, and their answers come when they come.
pub(super) fn act(lab: &mut Lab, op: Op) -> Verdict {
    match op {
        Op::Acquire(ask) => acquire(lab, ask),
        Op::Repeat { ask, leaves } => repeat(lab, ask, leaves),
        Op::Renew { lease } => renew(lab, lease),
        Op::Release { lease, policy } => release(lab, lease, policy),
        Op::Type { lease } => type_one(lab, lease),
        Op::Move { .. }
        | Op::Checkpoint { .. }
        | Op::Restore { .. }
        | Op::DropCheckpoint { .. }
        | Op::Fork { .. } => by_name(lab, op),
        Op::MakePool { .. }
        | Op::Reshape { .. }
        | Op::Pause { .. }
        | Op::DropPool { .. }
        | Op::MakeTemplate { .. }
        | Op::DropTemplate
        | Op::GiveUpTemplate => pools(lab, op),
        Op::Submit { .. }
        | Op::Claim { .. }
        | Op::Report { .. }
        | Op::Complete { .. }
        | Op::Cancel { .. } => {
            work::act(lab, op);
        }
        Op::Fail { .. }
        | Op::Kill { .. }
        | Op::ShutDown { .. }
        | Op::Hang { .. }
        | Op::Vanish { .. }
        | Op::Corrupt { .. }
        | Op::Stranger => world(lab, op),
        Op::Settle => lab.rest()?,
        Op::Crash { in_start } => lab.crash(in_start)?,
        Op::CrashInCall { skip, done } => lab.crash_in_call(skip, done)?,
        Op::Restart => lab.restart()?,
    }
    Ok(())
}

fn acquire(lab: &mut Lab, ask: Ask) {
    let request = RequestId { id: Uuid::new_v4(), fingerprint: format!("{ask:?}") };
    let caller = caller(ask.who);
    lab.ledger().asks.push(Asked { request: request.clone(), ask, caller: caller.clone(), lease: None });
    ask_for(lab, request, caller, ask, ask.leaves);
}

fn repeat(lab: &mut Lab, n: u8, leaves: super::ops::Leaves) {
    let asked = {
        let ledger = lab.ledger();
        let Some(at) = usize::from(n).checked_rem(ledger.asks.len()) else { return };
        let asked = &ledger.asks[at];
        (asked.request.clone(), asked.caller.clone(), asked.ask)
    };
    ask_for(lab, asked.0, asked.1, asked.2, leaves);
}

fn ask_for(lab: &mut Lab, request: RequestId, caller: Caller, ask: Ask, leaves: super::ops::Leaves) {
    let wanted = Acquire {
        pool: ask.pool.map(pool_id),
        priority: ask.priority.into(),
        needs: Needs::default(),
        labels: std::collections::BTreeMap::new(),
        ttl: ask.brief.then_some(BRIEF),
        wait: Duration::from_millis(ask.wait.into()),
        purpose: String::new(),
        request: Some(request.clone()),
    };
    let (o, ledger) = (lab.o().clone(), Arc::clone(&lab.ledger));
    lab.client(leaves, async move {
        let answer = o.acquire(&caller, wanted).await;
        let mut ledger = book(&ledger);
        let Some(granted) = ledger.answered("acquire", answer) else { return };
        if granted.lease.receipt.is_none() {
            ledger.wrong.push(format!("a lease without a receipt: {:?}", granted.lease));
        }
        ledger.given(&granted.lease.id, &granted.lease.vm, &caller, ask.brief);
        let asked = ledger.asks.iter_mut().find(|asked| asked.request == request);
        let before = asked.and_then(|asked| asked.lease.replace(granted.lease.id.clone()));
        if let Some(before) = before.filter(|before| *before != granted.lease.id) {
            ledger.wrong.push(format!("a repeat of what gave {before} gave {}", granted.lease.id));
        }
    });
}

fn renew(lab: &mut Lab, n: u8) {
    let Some((id, caller)) = lab.ledger().held(n).map(|held| (held.id.clone(), held.caller.clone())) else {
        return;
    };
    let (o, ledger) = (lab.o().clone(), Arc::clone(&lab.ledger));
    lab.client(None, async move {
        let answer = o.renew(&caller, &id, None).await;
        book(&ledger).answered("renew", answer);
    });
}

fn release(lab: &mut Lab, n: u8, policy: Option<ReleasePolicy>) {
    let Some((id, caller)) = lab.ledger().held(n).map(|held| {
        held.unwanted = true;
        (held.id.clone(), held.caller.clone())
    }) else {
        return;
    };
    let (o, ledger) = (lab.o().clone(), Arc::clone(&lab.ledger));
    lab.client(None, async move {
        let answer = o.release(&caller, &id, policy).await;
        let mut ledger = book(&ledger);
        if let Some(lease) = ledger.answered("release", answer) {
            if lease.ended.is_none() {
                ledger.wrong.push(format!("released and not ended: {lease:?}"));
            }
            if let Some(held) = ledger.leases.iter_mut().find(|held| held.id == id) {
                held.ended = true;
            }
        }
    });
}

/// What is typed is there when the call has answered: the guest keeps it at once.
fn type_one(lab: &mut Lab, n: u8) {
    let ledger = Arc::clone(&lab.ledger);
    let mut ledger = book(&ledger);
    let Some(held) = ledger.held(n) else { return };
    let mine = lab.o().0.registry.get(&held.vm).is_ok_and(|handle| {
        handle.look(|row| {
            row.lease.as_ref() == Some(&held.id) && row.state == VmState::Running && !row.suspended
        })
    });
    if !mine {
        return;
    }
    let key = KEYS[held.typed.as_ref().map_or(0, String::len) % KEYS.len()];
    let press = |down| RawInput::Key { key: key.to_string(), down };
    let hv = Arc::clone(lab.hv());
    let typed = lab.block_on(async {
        hv.input(&held.vm, Size { width: 8, height: 8 }, &[press(true), press(false)]).await
    });
    match (&mut held.typed, typed) {
        (Some(text), Ok(())) => text.push(key),
        // It may be half done.
        (typed, Err(_)) => *typed = None,
        (None, Ok(())) => {}
    }
}

fn nth_vm(lab: &Lab, n: u8) -> Option<VmId> {
    let all = lab.o().0.registry.all();
    let at = usize::from(n).checked_rem(all.len())?;
    Some(all[at].id.clone())
}

fn checkpoint(n: u8) -> CheckpointId {
    id(&format!("point-{n}"))
}

fn by_name(lab: &mut Lab, op: Op) {
    let (Op::Move { vm, .. }
    | Op::Checkpoint { vm, .. }
    | Op::Restore { vm, .. }
    | Op::DropCheckpoint { vm, .. }
    | Op::Fork { vm, .. }) = op
    else {
        return;
    };
    let Some(vm) = nth_vm(lab, vm) else { return };
    let (o, ledger) = (lab.o().clone(), Arc::clone(&lab.ledger));
    let caller = admin();
    match op {
        Op::Move { to, leaves, .. } => {
            {
                let mut ledger = book(&ledger);
                ledger.moved.insert(vm.clone());
                if !matches!(to, To::Resume | To::Save | To::Pause | To::Gone { force: false }) {
                    ledger.disturb(&vm);
                }
            }
            lab.client(leaves, async move {
                let answer = drive(&o, &caller, &vm, to).await;
                book(&ledger).answered("move", answer);
            });
        }
        Op::Checkpoint { name, leaves, .. } => lab.client(leaves, async move {
            let take = TakeCheckpoint {
                vm,
                id: Some(checkpoint(name)),
                description: "of a model".into(),
                request: None,
            };
            let answer = o.create_checkpoint(&caller, take).await;
            book(&ledger).answered("checkpoint", answer);
        }),
        Op::Restore { name, .. } => {
            book(&ledger).disturb(&vm);
            lab.client(None, async move {
                let name = if name == 2 { "clean".to_owned() } else { checkpoint(name).to_string() };
                let answer = o.restore_checkpoint(&caller, &vm, &name).await;
                book(&ledger).answered("restore", answer);
            });
        }
        Op::DropCheckpoint { name, .. } => lab.client(None, async move {
            let answer = o.delete_checkpoint(&caller, &vm, checkpoint(name).as_str()).await;
            book(&ledger).answered("drop a checkpoint", answer);
        }),
        Op::Fork { name, leaves, .. } => lab.client(leaves, async move {
            let fork = Fork { vm, new: Some(id(&format!("fork-{name}"))), request: None };
            let answer = o.fork_vm(&caller, fork).await;
            book(&ledger).answered("fork", answer);
        }),
        _ => {}
    }
}

async fn drive(
    o: &Orchestrator,
    caller: &Caller,
    vm: &VmId,
    to: To,
) -> Result<(), crate::model::error::Error> {
    match to {
        To::Start => o.start_vm(caller, vm).await.map(drop),
        To::Resume => o.resume_vm(caller, vm).await.map(drop),
        To::Save => o.save_vm(caller, vm).await.map(drop),
        To::Pause => o.pause_vm(caller, vm).await.map(drop),
        To::Stop => o.stop_vm(caller, vm, Stop::Graceful(Duration::from_millis(50))).await.map(drop),
        To::Off => o.stop_vm(caller, vm, Stop::Hard).await.map(drop),
        To::Reset => o.reset_vm(caller, vm).await.map(drop),
        To::Gone { force } => o.delete_vm(caller, vm, force, None).await,
    }
}

fn pools(lab: &mut Lab, op: Op) {
    let (o, ledger) = (lab.o().clone(), Arc::clone(&lab.ledger));
    match op {
        Op::MakePool { pool: n, shape } => lab.client(None, async move {
            let mut wish: CreatePool = pool(pool_id(n).as_str(), shape.desired.into());
            wish.spec.warm = shape.warm.map(Into::into);
            wish.spec.max_per_host = shape.cap.into();
            wish.spec.options = PoolOptions {
                hot: shape.hot.into(),
                idle_floor: shape.floor.map(Into::into),
                release: shape.release,
                max_uses: shape.max_uses.into(),
                max_leases_per_caller: shape.quota.into(),
                preemption: shape.preemption,
                ..PoolOptions::default()
            };
            let answer = o.create_pool(wish).await;
            book(&ledger).answered("make a pool", answer);
        }),
        Op::Reshape { pool, shape } => lab.client(None, async move {
            let answer = o.update_pool(&pool_id(pool), None, change(shape)).await;
            book(&ledger).answered("change a pool", answer);
        }),
        Op::Pause { pool, paused } => lab.client(None, async move {
            let answer = o.pause_pool(&pool_id(pool), None, paused).await;
            book(&ledger).answered("pause a pool", answer);
        }),
        Op::DropPool { pool, force } => {
            if force {
                book(&ledger).dropped = true;
            }
            lab.client(None, async move {
                let answer = o.delete_pool(&admin(), &pool_id(pool), force, None).await;
                book(&ledger).answered("drop a pool", answer);
            });
        }
        Op::MakeTemplate { leaves } => lab.client(leaves, async move {
            let answer = o.create_template(template(SECOND)).await;
            book(&ledger).answered("make a template", answer);
        }),
        Op::DropTemplate => lab.client(None, async move {
            let answer = o.delete_template(&id(SECOND), None).await;
            book(&ledger).answered("drop a template", answer);
        }),
        Op::GiveUpTemplate => {
            for operation in lab.rows(u64::MAX).operations {
                o.0.operations.cancel(&operation);
            }
        }
        _ => {}
    }
}

fn change(shape: Shape) -> UpdatePool {
    UpdatePool {
        desired: Some(shape.desired.into()),
        warm: Some(shape.warm.map(Into::into)),
        max_per_host: Some(shape.cap.into()),
        template: Some(id(if shape.second { SECOND } else { FIRST })),
        hot: Some(shape.hot.into()),
        idle_floor: Some(shape.floor.map(Into::into)),
        release: Some(shape.release),
        max_uses: Some(shape.max_uses.into()),
        max_leases_per_caller: Some(shape.quota.into()),
        preemption: Some(shape.preemption),
        ..UpdatePool::default()
    }
}

/// What nobody asked for.
fn world(lab: &mut Lab, op: Op) {
    if matches!(op, Op::Vanish { .. } | Op::Stranger) && !lab.reconciles() {
        // Nobody would notice before the next start.
        return;
    }
    lab.figures.faults += 1;
    let control = lab.control();
    let vm = match op {
        Op::Fail { fault, times } => {
            // Slow disks only cost time, and that is for the clocks of other tests.
            let times = if fault == Fault::SlowDisk { 1 } else { times };
            control.fail(fault, Target::Any, times.into());
            return;
        }
        Op::Stranger => {
            let first: TemplateId = id(FIRST);
            let stranger = VmDefinition {
                id: id(&format!("stranger-{}", lab.figures.faults)),
                uid: Uuid::new_v4(),
                origin: Origin::Template(first),
            };
            let hv = Arc::clone(lab.hv());
            // It may stand still in a run of single steps, and then there is no stranger.
            let _ = lab.block_on(async {
                tokio::time::timeout(Duration::from_millis(200), hv.define(&stranger)).await
            });
            return;
        }
        Op::Kill { vm } | Op::ShutDown { vm } | Op::Hang { vm } | Op::Vanish { vm } | Op::Corrupt { vm } => {
            vm
        }
        _ => return,
    };
    let Some(vm) = nth_vm(lab, vm) else { return };
    lab.ledger().disturb(&vm);
    // What does not run can't be killed, and so on; that is no fault then. Ends are told in tasks.
    let _ = lab.block_on(async {
        match op {
            Op::Kill { .. } => control.kill(&vm),
            Op::ShutDown { .. } => control.shut_down(&vm),
            Op::Hang { .. } => control.hang(&vm, true),
            Op::Vanish { .. } => control.vanish(&vm),
            _ => control.corrupt(&vm),
        }
    });
}
