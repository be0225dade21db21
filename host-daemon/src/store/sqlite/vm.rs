//! VMs and their checkpoints' descriptions.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row as _};

use super::row::{Columns as _, int, micros};
use super::{Sqlite, answer, database, insert};
use crate::model::ids::{PoolId, VmId};
use crate::model::query::{Page, RequestId, VmFilter};
use crate::model::record::{Availability, Pending, Vm};
use crate::model::vm::VmState;
use crate::store::{StoreError, StoreResult};

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
pub(super) async fn update_in(tx: &mut SqliteConnection, vm: &Vm) -> StoreResult<()> {
    let done = sqlx::query(
        "UPDATE vms SET pool = ?, state = ?, state_reason = ?, state_since = ?, availability = ?, lease = ?,
            pending = ?, clean = ?, uses = ?, hot = ?, suspended = ?, epoch = ?, ip_address = ?, last_resumed = ?,
            updated = ?, version = ?
         WHERE id = ? AND version = ?",
    )
    .bind(vm.pool.as_ref().map(PoolId::as_str))
    .bind(vm.state.as_str())
    .bind(&vm.state_reason)
    .bind(micros(vm.state_since))
    .bind(text_of(&AVAILABILITIES, &vm.availability))
    .bind(vm.lease.as_ref().map(AsRef::<str>::as_ref))
    .bind(vm.pending.as_ref().map(|pending| text_of(&PENDINGS, pending)))
    .bind(vm.clean)
    .bind(i64::from(vm.uses))
    .bind(vm.hot)
    .bind(vm.suspended)
    .bind(int(vm.epoch))
    .bind(&vm.ip_address)
    .bind(vm.last_resumed.map(micros))
    .bind(micros(vm.updated))
    .bind(int(vm.version))
    .bind(vm.id.as_str())
    .bind(int(vm.version.saturating_sub(1)))
    .execute(tx)
    .await
    .map_err(insert("vm"))?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Changed("vm")) }
}

impl Sqlite {
    /// Adds a VM.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for a taken id or request id; [`StoreError::Referred`] without its template or pool.
    pub async fn insert_vm(&self, vm: &Vm, request: Option<&RequestId>) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO vms (id, uid, template, pool, forked_from, state, state_reason, state_since, availability,
                lease, pending, clean, epoch, ip_address, memory_mb, cpu_count, gpu, rdp_port, created,
                last_resumed, updated, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(vm.id.as_str())
        .bind(vm.uid.simple().to_string())
        .bind(vm.template.as_str())
        .bind(vm.pool.as_ref().map(PoolId::as_str))
        .bind(vm.forked_from.as_ref().map(VmId::as_str))
        .bind(vm.state.as_str())
        .bind(&vm.state_reason)
        .bind(micros(vm.state_since))
        .bind(text_of(&AVAILABILITIES, &vm.availability))
        .bind(vm.lease.as_ref().map(AsRef::<str>::as_ref))
        .bind(vm.pending.as_ref().map(|pending| text_of(&PENDINGS, pending)))
        .bind(vm.clean)
        .bind(int(vm.epoch))
        .bind(&vm.ip_address)
        .bind(int(vm.memory_mb))
        .bind(i64::from(vm.cpu_count))
        .bind(vm.gpu)
        .bind(i64::from(vm.rdp_port))
        .bind(micros(vm.created))
        .bind(vm.last_resumed.map(micros))
        .bind(micros(vm.updated))
        .bind(int(vm.version))
        .execute(&mut *tx)
        .await
        .map_err(insert("vm"))?;
        answer(&mut tx, request, vm.id.as_str(), vm.created).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// Writes what may change of a VM; its version must be the next one.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when another version is stored, or none.
    pub async fn update_vm(&self, vm: &Vm) -> StoreResult<()> {
        let mut connection = self.writer.acquire().await.map_err(database("get the writer"))?;
        update_in(&mut connection, vm).await
    }

    /// One VM.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
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
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn vms(&self, filter: &VmFilter, page: &Page) -> StoreResult<Vec<Vm>> {
        let mut query = QueryBuilder::new("SELECT * FROM vms WHERE id > ");
        query.push_bind(&page.after);
        if let Some(pool) = &filter.pool {
            query.push(" AND pool = ").push_bind(pool.as_str());
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
        query.build().fetch_all(&self.readers).await.map_err(database("list vms"))?.iter().map(read).collect()
    }

    /// Removes a VM with its checkpoints' descriptions.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_vm(&self, id: &VmId) -> StoreResult<()> {
        sqlx::query("DELETE FROM vms WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(insert("vm"))?;
        Ok(())
    }

    /// Remembers what a checkpoint is for.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for a taken id or request id.
    pub async fn insert_checkpoint(
        &self,
        vm: &VmId,
        id: &str,
        description: &str,
        request: Option<&RequestId>,
    ) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        sqlx::query("INSERT INTO checkpoints (vm, id, description) VALUES (?, ?, ?)")
            .bind(vm.as_str())
            .bind(id)
            .bind(description)
            .execute(&mut *tx)
            .await
            .map_err(insert("checkpoint"))?;
        answer(&mut tx, request, id, jiff::Timestamp::now()).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// What a VM's checkpoints are for, by id.
    ///
    /// # Errors
    /// [`StoreError::Database`].
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
    /// [`StoreError::Database`].
    pub async fn delete_checkpoint(&self, vm: &VmId, id: &str) -> StoreResult<()> {
        sqlx::query("DELETE FROM checkpoints WHERE vm = ? AND id = ?")
            .bind(vm.as_str())
            .bind(id)
            .execute(&self.writer)
            .await
            .map_err(database("delete a checkpoint"))?;
        Ok(())
    }
}
