//! VMs and their checkpoints' descriptions.

use std::sync::Arc;

use rusqlite::params;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _};

use super::row::{Columns as _, int, micros};
use super::writer::Tx;
use super::{Sqlite, answer, constraint, database, failed};
use crate::model::event::Event;
use crate::model::ids::{PoolId, VmId};
use crate::model::query::{Page, RequestId, VmFilter};
use crate::model::record::{Availability, Pending, Vm};
use crate::model::vm::VmState;
use crate::store::StoreResult;
use crate::store::changes::RowChange;

const AVAILABILITIES: [(Availability, &str); 3] = [
    (Availability::Idle, "idle"),
    (Availability::Leased, "leased"),
    (Availability::Quarantined, "quarantined"),
];
const PENDINGS: [(Pending, &str); 3] =
    [(Pending::Reset, "reset"), (Pending::Save, "save"), (Pending::Delete, "delete")];

fn text_of<T: PartialEq>(list: &[(T, &'static str)], value: &T) -> &'static str {
    list.iter().find(|(v, _)| v == value).map_or("", |(_, text)| text)
}

fn value_of<T: Copy>(list: &[(T, &'static str)], text: &str) -> Option<T> {
    list.iter().find(|(_, t)| *t == text).map(|(v, _)| *v)
}

fn read(row: &SqliteRow) -> StoreResult<Vm> {
    Ok(Vm {
        id: row.parsed("id")?,
        uid: row.uid("uid")?,
        template: row.parsed("template")?,
        pool: row.opt_parsed("pool")?,
        forked_from: row.opt_parsed("forked_from")?,
        state: row.choice("state", VmState::parse)?,
        state_reason: row.text("state_reason")?,
        state_since: row.time("state_since")?,
        availability: row.choice("availability", |text| value_of(&AVAILABILITIES, text))?,
        lease: row.opt_parsed("lease")?,
        pending: row.opt_choice("pending", |text| value_of(&PENDINGS, text))?,
        clean: row.flag("clean")?,
        uses: row.unsigned("uses")?,
        hot: row.flag("hot")?,
        suspended: row.flag("suspended")?,
        epoch: row.unsigned("epoch")?,
        ip_address: row.text("ip_address")?,
        memory_mb: row.unsigned("memory_mb")?,
        cpu_count: row.unsigned("cpu_count")?,
        gpu: row.flag("gpu")?,
        rdp_port: row.unsigned("rdp_port")?,
        created: row.time("created")?,
        last_resumed: row.opt_time("last_resumed")?,
        updated: row.time("updated")?,
        version: row.unsigned("version")?,
    })
}

/// Writes what may change of a VM; its version must be the next one.
///
/// Its pool, which it leaves once at most, is a statement of its own: a column that is set is taken out of its index and put
/// back, and its reference looked up, also when it is set to what it was.
pub(super) fn update_in(tx: &mut Tx<'_>, vm: &Arc<Vm>) -> StoreResult<()> {
    if vm.pool.is_none() {
        tx.execute("UPDATE vms SET pool = NULL WHERE id = ? AND pool IS NOT NULL", [vm.id.as_str()])
            .map_err(constraint("vm"))?;
    }
    tx.execute_one(
        "vm",
        "UPDATE vms SET state = ?, state_reason = ?, state_since = ?, availability = ?, lease = ?,
            pending = ?, clean = ?, uses = ?, hot = ?, suspended = ?, epoch = ?, ip_address = ?, last_resumed = ?,
            updated = ?, version = ?
         WHERE id = ? AND version = ?",
        params![
            vm.state.as_str(),
            vm.state_reason,
            micros(vm.state_since),
            text_of(&AVAILABILITIES, &vm.availability),
            vm.lease.as_ref().map(AsRef::<str>::as_ref),
            vm.pending.as_ref().map(|pending| text_of(&PENDINGS, pending)),
            vm.clean,
            vm.uses,
            vm.hot,
            vm.suspended,
            int(vm.epoch),
            vm.ip_address,
            vm.last_resumed.map(micros),
            micros(vm.updated),
            int(vm.version),
            vm.id.as_str(),
            int(vm.version.saturating_sub(1)),
        ],
    )?;
    tx.show(RowChange::Vm(Arc::clone(vm)));
    Ok(())
}

fn insert_in(tx: &mut Tx<'_>, vm: &Arc<Vm>) -> StoreResult<()> {
    tx.execute(
        "INSERT INTO vms (id, uid, template, pool, forked_from, state, state_reason, state_since, availability,
            lease, pending, clean, epoch, ip_address, memory_mb, cpu_count, gpu, rdp_port, created,
            last_resumed, updated, version)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            vm.id.as_str(),
            vm.uid.simple().to_string(),
            vm.template.as_str(),
            vm.pool.as_ref().map(PoolId::as_str),
            vm.forked_from.as_ref().map(VmId::as_str),
            vm.state.as_str(),
            vm.state_reason,
            micros(vm.state_since),
            text_of(&AVAILABILITIES, &vm.availability),
            vm.lease.as_ref().map(AsRef::<str>::as_ref),
            vm.pending.as_ref().map(|pending| text_of(&PENDINGS, pending)),
            vm.clean,
            int(vm.epoch),
            vm.ip_address,
            int(vm.memory_mb),
            vm.cpu_count,
            vm.gpu,
            vm.rdp_port,
            micros(vm.created),
            vm.last_resumed.map(micros),
            micros(vm.updated),
            int(vm.version),
        ],
    )
    .map_err(constraint("vm"))?;
    tx.show(RowChange::Vm(Arc::clone(vm)));
    Ok(())
}

/// VMs by id.
pub(super) async fn list(readers: &SqlitePool, filter: &VmFilter, page: &Page) -> StoreResult<Vec<Vm>> {
    query(filter, page)
        .build()
        .fetch_all(readers)
        .await
        .map_err(database("list vms"))?
        .iter()
        .map(read)
        .collect()
}

pub(super) fn query(filter: &VmFilter, page: &Page) -> QueryBuilder<sqlx::Sqlite> {
    let mut query = QueryBuilder::new("SELECT * FROM vms WHERE id > ");
    query.push_bind(page.after.clone());
    if let Some(pool) = &filter.pool {
        query.push(" AND pool = ").push_bind(pool.to_string());
    }
    if !filter.states.is_empty() {
        query.push(" AND state IN (");
        let mut list = query.separated(", ");
        for state in &filter.states {
            list.push_bind(state.as_str());
        }
        query.push(")");
    }
    query.push(" ORDER BY id LIMIT ").push_bind(i64::from(page.limit));
    query
}

impl Sqlite {
    /// Adds a VM.
    ///
    /// # Errors
    /// [`StoreError::Exists`](crate::store::StoreError::Exists) for a taken id or request id;
    /// [`StoreError::Referred`](crate::store::StoreError::Referred) without its template or pool.
    pub async fn insert_vm(&self, vm: &Vm, request: Option<&RequestId>, event: Event) -> StoreResult<()> {
        let (vm, request) = (Arc::new(vm.clone()), request.cloned());
        self.writer
            .write(move |tx| {
                insert_in(tx, &vm)?;
                answer(tx, request.as_ref(), vm.id.as_str(), vm.created)?;
                tx.event(event)
            })
            .await
    }

    /// Writes what may change of a VM; its version must be the next one.
    ///
    /// # Errors
    /// [`StoreError::Changed`](crate::store::StoreError::Changed) when another version is stored, or none.
    pub async fn update_vm(&self, vm: &Vm, event: Event) -> StoreResult<()> {
        let vm = Arc::new(vm.clone());
        self.writer
            .write(move |tx| {
                update_in(tx, &vm)?;
                tx.event(event)
            })
            .await
    }

    /// One VM.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn vm(&self, id: &VmId) -> StoreResult<Option<Vm>> {
        sqlx::query("SELECT * FROM vms WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read a vm"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// VMs by id.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn vms(&self, filter: &VmFilter, page: &Page) -> StoreResult<Vec<Vm>> {
        list(&self.readers, filter, page).await
    }

    /// Removes a VM with its checkpoints' descriptions.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn delete_vm(&self, id: &VmId, event: Event) -> StoreResult<()> {
        let id = id.clone();
        self.writer
            .write(move |tx| {
                let deleted =
                    tx.execute("DELETE FROM vms WHERE id = ?", [id.as_str()]).map_err(constraint("vm"))?;
                tx.show(RowChange::NoVm(id));
                if deleted == 0 { Ok(()) } else { tx.event(event) }
            })
            .await
    }

    /// Remembers what a checkpoint is for.
    ///
    /// # Errors
    /// [`StoreError::Exists`](crate::store::StoreError::Exists) for a taken id or request id.
    pub async fn insert_checkpoint(
        &self,
        vm: &VmId,
        id: &str,
        description: &str,
        request: Option<&RequestId>,
    ) -> StoreResult<()> {
        let (vm, id, description) = (vm.clone(), id.to_owned(), description.to_owned());
        let request = request.cloned();
        self.writer
            .write(move |tx| {
                // The hypervisor knows which there are. A description may be left over from one that a crash came between.
                tx.execute(
                    "INSERT INTO checkpoints (vm, id, description) VALUES (?, ?, ?)
                     ON CONFLICT (vm, id) DO UPDATE SET description = excluded.description",
                    (vm.as_str(), &id, description),
                )
                .map_err(constraint("checkpoint"))?;
                answer(tx, request.as_ref(), &id, jiff::Timestamp::now())
            })
            .await
    }

    /// What a VM's checkpoints are for, by id.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn checkpoint_descriptions(&self, vm: &VmId) -> StoreResult<Vec<(String, String)>> {
        let rows = sqlx::query("SELECT id, description FROM checkpoints WHERE vm = ? ORDER BY id")
            .bind(vm.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(database("list checkpoints"))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Forgets what a checkpoint was for.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn delete_checkpoint(&self, vm: &VmId, id: &str) -> StoreResult<()> {
        let (vm, id) = (vm.clone(), id.to_owned());
        self.writer
            .write(move |tx| {
                tx.execute("DELETE FROM checkpoints WHERE vm = ? AND id = ?", (vm.as_str(), id))
                    .map(drop)
                    .map_err(failed("delete a checkpoint"))
            })
            .await
    }
}
