//! What must hold: always, when all is at rest, and at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Verdict;
use super::acts::pool_id;
use super::lab::{FIRST, Lab};
use super::rows::{Rows, VmRow};
use crate::hypervisor::{Found, Observed};
use crate::model::ids::VmId;
use crate::model::lease::ReleasePolicy;
use crate::model::query::{LeaseFilter, Page};
use crate::model::vm::VmState;
use crate::orchestrator::request::UpdatePool;
use crate::orchestrator::tests::{LONG, admin, id, wanted};

/// What is remembered from check to check.
pub(super) struct Watch {
    /// Nothing goes wrong by itself in this run.
    pub(super) calm: bool,
    /// Last event seen.
    head: u64,
    states: HashMap<String, VmState>,
    prepared: hvkube_guest::sim::State,
}

fn ensure(good: bool, why: impl FnOnce() -> String) -> Verdict {
    if good { Ok(()) } else { Err(why()) }
}

fn page() -> Page {
    Page { after: String::new(), limit: 1000 }
}

impl Watch {
    pub(super) fn new(lab: &Lab, calm: bool) -> Self {
        Self { calm, head: 0, states: HashMap::new(), prepared: lab.prepared() }
    }

    /// What holds at every instant: the daemon stands still, and may be in the middle of anything.
    pub(super) fn always(&mut self, lab: &mut Lab) -> Verdict {
        if let Some(wrong) = lab.ledger().wrong.first() {
            return Err(wrong.clone());
        }
        let found: BTreeMap<String, Found> =
            lab.control().found().into_iter().map(|one| (one.definition.id.to_string(), one)).collect();
        let rows = lab.rows(self.head);
        for vm in &rows.vms {
            self.vm(vm, &rows, found.get(&vm.id))?;
        }
        for lease in rows.leases.iter().filter(|lease| lease.ended.is_none()) {
            let holding = rows.vms.iter().filter(|vm| vm.lease.as_ref() == Some(&lease.id)).count();
            ensure(holding <= 1, || format!("{holding} vms of {lease:?}"))?;
        }
        self.events(&rows)?;
        agents(lab, &rows)?;
        self.holders(lab, &rows)?;
        self.golden(lab)
    }

    fn vm(&self, vm: &VmRow, rows: &Rows, found: Option<&Found>) -> Verdict {
        ensure(vm.leased == vm.lease.is_some(), || format!("leased without a lease: {vm:?}"))?;
        ensure(!vm.suspended || vm.leased, || format!("suspended without a lease: {vm:?}"))?;
        let running = matches!(vm.state, VmState::Running | VmState::Resuming);
        ensure(!vm.hot || running, || format!("hot and not running: {vm:?}"))?;
        if let Some(id) = &vm.lease {
            let lease = rows.leases.iter().find(|lease| lease.id == *id);
            let fits = lease.is_some_and(|lease| {
                lease.ended.is_none() && lease.vm == vm.id && lease.suspended == vm.suspended
            });
            ensure(fits, || format!("{vm:?}, but its lease is {lease:?}"))?;
        }
        let found =
            found.filter(|found| found.definition.uid.simple().to_string() == vm.uid.replace('-', ""));
        let Some(found) = found else {
            // It is being made, is gone by a fault, or is gone by order and its row is next.
            let may = matches!(vm.state, VmState::Provisioning | VmState::Deleting | VmState::Error);
            return ensure(may || !self.calm, || format!("a row without a vm: {vm:?}"));
        };
        let fits = match vm.state {
            VmState::Saved => found.observed == Observed::Saved,
            VmState::Off => found.observed == Observed::Off,
            // It is saved only after the row said that it is being saved.
            VmState::Running | VmState::Paused => found.observed != Observed::Saved,
            _ => true,
        };
        ensure(fits, || format!("{vm:?}, but it is {:?}", found.observed))
    }

    /// Numbered without gaps, and every move one of the table, from where the last one ended.
    fn events(&mut self, rows: &Rows) -> Verdict {
        for event in &rows.events {
            ensure(event.revision == self.head + 1, || {
                format!("revision {} follows {}", event.revision, self.head)
            })?;
            self.head = event.revision;
            let Some(vm) = &event.vm else { continue };
            match event.kind.as_str() {
                "vm_created" => drop(self.states.insert(vm.clone(), VmState::Provisioning)),
                "vm_deleted" => drop(self.states.remove(vm)),
                _ => {}
            }
            let Some((from, to)) = event.moved else { continue };
            if let Some(was) = self.states.insert(vm.clone(), to) {
                ensure(was == from, || format!("{vm} was {was}, and then {event:?}"))?;
            }
            // What is found counts, and a vm that died under its lease is lost from wherever it was.
            let seen = event.cause.starts_with("found ") || to == VmState::Error;
            ensure(seen || from.may_become(to), || format!("no move of the table: {event:?}"))?;
        }
        Ok(())
    }

    /// What holders were told, and what they left on their desktops.
    fn holders(&self, lab: &mut Lab, rows: &Rows) -> Verdict {
        let control = lab.control();
        let ledger = lab.ledger();
        let by_id: HashMap<&str, _> = rows.leases.iter().map(|lease| (lease.id.as_str(), lease)).collect();
        for held in &ledger.leases {
            let Some(lease) = by_id.get(held.id.as_str()) else {
                return Err(format!("lease {} is not known any more", held.id));
            };
            ensure(lease.proven, || format!("handed out without a receipt: {lease:?}"))?;
            if held.ended {
                ensure(lease.ended.is_some(), || format!("ended, and lives again: {lease:?}"))?;
            }
            // By somebody else's order, which may have come before the holder's answer.
            let ordered = match lease.why.as_str() {
                "its pool was deleted" => ledger.dropped,
                "its vm was deleted" => ledger.moved.contains(&held.vm),
                _ => false,
            };
            let excused =
                ordered || held.unwanted || held.brief || !self.calm || ledger.disturbed.contains(&held.vm);
            ensure(lease.ended.is_none() || excused, || format!("ended for nothing: {lease:?}"))?;
            if lease.ended.is_some() || excused && !self.calm {
                continue;
            }
            let Some(typed) = &held.typed else { continue };
            let text = match control.state(&held.vm) {
                Ok(state) => state.memory.text,
                Err(error) => return Err(format!("{lease:?} has no vm: {error}")),
            };
            ensure(text == *typed, || format!("{typed:?} was typed on {lease:?}, there is {text:?}"))?;
        }
        Ok(())
    }

    fn golden(&self, lab: &Lab) -> Verdict {
        let now = lab.control().prepared(&id(FIRST));
        ensure(now.as_ref() == Some(&self.prepared), || format!("the template's state was written: {now:?}"))
    }

    /// What holds when nothing is under way.
    pub(super) fn at_rest(&mut self, lab: &mut Lab) -> Verdict {
        lab.rest()?;
        self.always(lab)?;
        let calm = self.calm;
        lab.until("rows and vms agree", |lab| agree(lab, calm))?;
        self.always(lab)
    }

    /// Everything is put right that can be, and then all of it must work.
    pub(super) fn at_the_end(&mut self, lab: &mut Lab) -> Verdict {
        lab.control().spare();
        self.at_rest(lab)?;
        let agents: Vec<_> = lab.rows(u64::MAX).agents.into_iter().map(|one| one.agent.id).collect();
        lab.block_on(async {
            for agent in &agents {
                // One that has ended can't be cancelled.
                let _ = lab.o().cancel_agent(&admin(), agent, "the end").await;
            }
        });
        lab.until("agents are over", |lab| {
            match lab.rows(u64::MAX).agents.iter().find(|one| one.claimed || !one.agent.status.is_final()) {
                Some(one) => Err(format!("{:?}", one.agent)),
                None => Ok(()),
            }
        })?;
        lab.ledger().all_unwanted();
        lab.until("leases are given back", |lab| {
            lab.block_on(async {
                let leases =
                    lab.o().leases(&LeaseFilter::default(), &page()).await.map_err(|e| e.to_string())?;
                for lease in &leases {
                    let released = lab.o().release(&admin(), &lease.id, Some(ReleasePolicy::Reset)).await;
                    released.map_err(|error| error.to_string())?;
                }
                ensure(leases.is_empty(), || format!("{leases:?}"))
            })
        })?;
        self.at_rest(lab)?;
        for n in 0..2 {
            self.pool_works(lab, n)?;
        }
        self.at_rest(lab)
    }

    /// A pool that is asked for two VMs has them, and leases one.
    fn pool_works(&mut self, lab: &mut Lab, n: u8) -> Verdict {
        let pool = pool_id(n);
        let simple = UpdatePool {
            desired: Some(2),
            warm: Some(None),
            max_per_host: Some(0),
            template: Some(id(FIRST)),
            hot: Some(0),
            idle_floor: Some(None),
            max_uses: Some(0),
            max_leases_per_caller: Some(0),
            ..UpdatePool::default()
        };
        let known = lab.block_on(async {
            let _ = lab.o().pause_pool(&pool, None, false).await;
            lab.o().update_pool(&pool, None, simple).await.is_ok()
        });
        if !known {
            return Ok(());
        }
        lab.until("a pool fills", |lab| {
            lab.block_on(async {
                let status = lab.o().pool(&pool).await.map_err(|error| error.to_string())?.status;
                if status.strayed > 0 {
                    for vm in &status.vms {
                        let _ = lab.o().reset_vm(&admin(), vm).await;
                    }
                }
                if status.warm == 2 && status.total == 2 {
                    return Ok(());
                }
                // Whatever failed before, it is not waited for here.
                lab.o().0.pools.hurry(&id(FIRST));
                lab.o().0.pools.wake(&pool);
                Err(format!("{status:?}"))
            })
        })?;
        let mut wish = wanted(LONG);
        wish.pool = Some(pool);
        lab.block_on(async {
            let granted = lab.o().acquire(&admin(), wish).await.map_err(|e| format!("no lease: {e:?}"))?;
            let clean = lab.control().state(&granted.vm.vm.id).map_err(|error| error.to_string())?;
            ensure(clean.memory.text.is_empty(), || format!("not clean: {clean:?}"))?;
            let released = lab.o().release(&admin(), &granted.lease.id, Some(ReleasePolicy::Reset)).await;
            released.map(drop).map_err(|error| error.to_string())
        })
    }
}

/// Claims and leases, and how ends were told.
fn agents(lab: &Lab, rows: &Rows) -> Verdict {
    let ledger = lab.ledger();
    let by_id: HashMap<&str, _> =
        rows.agents.iter().map(|one| (one.agent.id.as_str(), (&one.agent, &one.output))).collect();
    for known in &ledger.agents {
        let Some((agent, output)) = by_id.get(known.id.as_str()) else {
            return Err(format!("agent {} of {} is not known any more", known.id, known.caller.name));
        };
        if let Some(end) = &known.end {
            let now = (agent.status.as_str().to_owned(), (*output).clone());
            ensure(*end == now, || format!("it ended as {end:?}, and is {now:?} now: {agent:?}"))?;
        }
    }
    let mut leases = BTreeSet::new();
    for one in &rows.agents {
        ensure(one.claimed == one.agent.claim.is_some(), || format!("{one:?}"))?;
        if let Some(lease) = one.agent.claim.as_ref().and_then(|claim| claim.lease.as_ref()) {
            ensure(leases.insert(lease), || format!("two agents have {lease}"))?;
        }
    }
    Ok(())
}

/// Whether rows and VMs, leases and claims are each other's; what is missing otherwise.
fn agree(lab: &mut Lab, calm: bool) -> Verdict {
    let rows = lab.rows(u64::MAX);
    if let Some(vm) = rows.vms.iter().find(|vm| !vm.at_rest()) {
        return Err(format!("under way again: {vm:?}"));
    }
    let mut found: BTreeMap<String, Found> =
        lab.control().found().into_iter().map(|one| (one.definition.id.to_string(), one)).collect();
    for vm in &rows.vms {
        let real = found.remove(&vm.id);
        if vm.state == VmState::Error {
            continue;
        }
        let Some(real) = real else { return Err(format!("a row without a vm: {vm:?}")) };
        let is = match real.observed {
            Observed::Running(_) => VmState::Running,
            Observed::Paused(_) => VmState::Paused,
            Observed::Saved => VmState::Saved,
            Observed::Off => VmState::Off,
            Observed::Broken(_) => VmState::Error,
        };
        ensure(is == vm.state, || format!("{vm:?}, but it is {:?}", real.observed))?;
        ensure(!(vm.clean && vm.idle && vm.state == VmState::Saved) || is_clean(lab, &vm.id), || {
            format!("called clean: {vm:?}")
        })?;
    }
    if calm {
        let ledger = lab.ledger();
        let by_name = |vm: &VmRow| {
            let vm: VmId = id(&vm.id);
            ledger.moved.contains(&vm) || ledger.disturbed.contains(&vm)
        };
        let left = |vm: &&VmRow| {
            vm.idle && vm.pool.is_some() && !vm.hot && !(vm.state == VmState::Saved && vm.clean)
        };
        let left = rows.vms.iter().find(|vm| left(vm) && !by_name(vm));
        ensure(left.is_none(), || format!("given back and not ready: {left:?}"))?;
    }
    ensure(found.is_empty(), || format!("vms without a row: {:?}", found.keys()))?;
    let live: BTreeSet<&str> =
        rows.leases.iter().filter(|lease| lease.ended.is_none()).map(|lease| lease.id.as_str()).collect();
    let now = jiff::Timestamp::now().as_microsecond();
    for lease in rows.leases.iter().filter(|lease| lease.ended.is_none()) {
        ensure(lease.suspended || lease.expires > now, || format!("its time is over: {lease:?}"))?;
        let held = rows.vms.iter().any(|vm| vm.lease.as_ref() == Some(&lease.id));
        ensure(held, || format!("nobody has {lease:?}"))?;
        let told = lab.ledger().leases.iter().any(|known| known.id.as_str() == lease.id);
        let theirs = told || lab.found.contains(&lease.id) || lease.purpose.starts_with("agent ");
        ensure(theirs, || format!("nobody was given {lease:?}"))?;
    }
    let claims = lab.o().0.leases.known();
    let claims: BTreeSet<&str> = claims.iter().map(crate::model::ids::LeaseId::as_str).collect();
    ensure(claims.is_superset(&live), || format!("counted as held: {claims:?}, held: {live:?}"))?;
    let waiting = rows.agents.iter().filter(|one| one.waits()).count();
    ensure(claims.len() <= live.len() + waiting, || format!("counted as held: {claims:?}, held: {live:?}"))?;
    let actors: BTreeSet<String> = lab.o().0.registry.all().iter().map(|one| one.id.to_string()).collect();
    let known: BTreeSet<String> = rows.vms.iter().map(|vm| vm.id.clone()).collect();
    ensure(actors == known, || format!("actors {actors:?}, rows {known:?}"))?;
    ensure(rows.operations.is_empty(), || format!("operations go on: {:?}", rows.operations))?;
    let half: Vec<_> = rows.templates.iter().filter(|(_, state)| state != "ready").collect();
    ensure(half.is_empty(), || format!("templates: {half:?}"))
}

/// Nothing of a holder is left on a VM.
fn is_clean(lab: &Lab, vm: &str) -> bool {
    let vm: VmId = id(vm);
    lab.control().state(&vm).is_ok_and(|state| state.memory.text.is_empty() && state.disk.is_empty())
}
