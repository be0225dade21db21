//! What a killed daemon left on the disk: copies of its store and its hypervisor's journal, so that looking changes
//! nothing for the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hvkube_host::hypervisor::Hypervisor as _;
use hvkube_host::hypervisor::sim::{SimConfig, SimHypervisor};
use hvkube_tests::Daemon;
use rusqlite::Connection;

use crate::ledger::Ledger;

struct Remains {
    store: Connection,
    /// VMs of the hypervisor: name and uid.
    machines: BTreeMap<String, String>,
    _dir: tempfile::TempDir,
}

impl Remains {
    async fn of(daemon: &Daemon) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let state = daemon.state_dir();
        for file in ["hvkube.db", "hvkube.db-wal", "sim/journal"] {
            let to = dir.path().join(file);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            match std::fs::copy(state.join(file), &to) {
                Ok(_) => {}
                // Folded in, or never needed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.ends_with("-wal") => {}
                Err(error) => panic!("{file}: {error}"),
            }
        }
        let store = Connection::open(dir.path().join("hvkube.db")).expect("a database");
        Self { store, machines: machines(&dir.path().join("sim")).await, _dir: dir }
    }

    fn rows<const N: usize>(&self, sql: &str) -> Vec<[String; N]> {
        let mut statement = self.store.prepare(sql).expect("legal");
        let rows = statement.query_map([], |row| {
            let mut cells = [const { String::new() }; N];
            for (i, cell) in cells.iter_mut().enumerate() {
                *cell = row.get::<_, Option<String>>(i)?.unwrap_or_default();
            }
            Ok(cells)
        });
        rows.expect("readable").collect::<Result<_, _>>().expect("rows")
    }
}

async fn machines(dir: &Path) -> BTreeMap<String, String> {
    let hypervisor = SimHypervisor::open(SimConfig::new(dir)).expect("a journal");
    let found = hypervisor.recover().await.expect("its world");
    found
        .into_iter()
        .map(|one| (one.definition.id.to_string(), one.definition.uid.simple().to_string()))
        .collect()
}

/// Holds the files to the ledger, and to each other. `whole`: all of the database is read.
pub(crate) async fn check(daemon: &Daemon, ledger: &Ledger, whole: bool) {
    let remains = Remains::of(daemon).await;
    if whole {
        let verdict = remains.rows::<1>("PRAGMA integrity_check");
        if verdict != [["ok".to_owned()]] {
            ledger.found(format!("the database is damaged: {verdict:?}"));
        }
    }
    let leases: BTreeMap<_, _> = remains
        .rows::<4>("SELECT id, vm, ended, end_reason FROM leases")
        .into_iter()
        .map(|[id, vm, ended, why]| (id, (vm, ended, why)))
        .collect();
    for (name, held) in ledger.leases() {
        let id = name.trim_start_matches("leases/");
        match leases.get(id) {
            None => ledger.found(format!("the store has lost {name}")),
            Some((_, ended, _)) if !ended.is_empty() && !held.may_end => {
                ledger.found(format!("in the store {name} has ended: {ended}"));
            }
            Some((_, ended, why)) if !ended.is_empty() && why.is_empty() => {
                ledger.found(format!("in the store {name} has ended without a reason"));
            }
            Some((vm, ..)) if format!("vms/{vm}") != held.vm => {
                ledger.found(format!("in the store {name} is of {vm}, not of {}", held.vm));
            }
            Some(_) => {}
        }
    }
    let requests: BTreeMap<_, _> =
        remains.rows::<2>("SELECT id, resource FROM requests").into_iter().map(|[id, of]| (id, of)).collect();
    for (request, lease) in ledger.requests() {
        let id = request.replace('-', "");
        // A claim's answer is the agent with its epoch; its lease is looked for above.
        match requests.get(&id) {
            None => ledger.found(format!("the store has forgotten request {request}")),
            Some(resource) if !resource.contains('/') && lease != format!("leases/{resource}") => {
                ledger.found(format!("in the store request {request} got {resource}, not {lease}"));
            }
            Some(_) => {}
        }
    }
    let live: BTreeMap<_, _> = leases
        .iter()
        .filter(|(_, (_, ended, _))| ended.is_empty())
        .map(|(id, (vm, ..))| (vm.clone(), id.clone()))
        .collect();
    let vms = remains.rows::<4>("SELECT id, uid, state, lease FROM vms");
    for [id, uid, state, lease] in &vms {
        let of_lease = live.get(id).cloned().unwrap_or_default();
        if *lease != of_lease {
            ledger.found(format!("vm {id} says lease {lease:?}, the leases say {of_lease:?}"));
        }
        let passing = matches!(state.as_str(), "provisioning" | "deleting" | "error");
        if !passing && remains.machines.get(id) != Some(uid) {
            ledger.found(format!("vm {id} is {state} and the hypervisor has none"));
        }
    }
    let known: BTreeSet<_> = vms.iter().map(|[id, uid, ..]| (id, uid)).collect();
    for machine in &remains.machines {
        if !known.contains(&machine) {
            ledger.found(format!("the hypervisor has {}, and no row", machine.0));
        }
    }
    let often = "SELECT agent, CAST(count(*) AS TEXT) FROM events \
                 WHERE kind IN ('agent_completed', 'agent_failed', 'agent_cancelled') \
                 GROUP BY agent HAVING count(*) > 1";
    for [agent, times] in remains.rows::<2>(often) {
        ledger.found(format!("agent {agent} ended {times} times"));
    }
    let agents: BTreeMap<_, _> = remains
        .rows::<3>("SELECT id, status, output FROM agents")
        .into_iter()
        .map(|[id, status, output]| (id, (status, output)))
        .collect();
    for (name, task) in ledger.tasks() {
        let id = name.trim_start_matches("agents/");
        let (status, output) = match agents.get(id) {
            Some(row) => row,
            None => {
                ledger.found(format!("the store has lost {name}"));
                continue;
            }
        };
        if task.output.as_ref().is_some_and(|told| told != output || status != "completed") {
            ledger.found(format!("in the store {name} is {status} with {output}, told {:?}", task.output));
        }
        if task.cancelled && status != "cancelled" {
            ledger.found(format!("in the store the cancelled {name} is {status}"));
        }
    }
}

/// With nothing under way the hypervisor has what the store has, VM for VM, and nothing is leased.
pub(crate) async fn same_vms(daemon: &Daemon, count: usize) {
    let remains = Remains::of(daemon).await;
    let vms: BTreeMap<_, _> =
        remains.rows::<2>("SELECT id, uid FROM vms").into_iter().map(|[id, uid]| (id, uid)).collect();
    assert_eq!(vms, remains.machines);
    assert_eq!(vms.len(), count);
    let live = remains.rows::<1>("SELECT id FROM leases WHERE ended IS NULL");
    assert!(live.is_empty(), "{live:?}");
}
