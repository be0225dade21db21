//! Leases. What changes a lease and its VM together is one transaction.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Params, params};
use sqlx::QueryBuilder;
use sqlx::sqlite::SqlitePool;

use super::row::{Columns, damaged, duration, micros, to_json};
use super::writer::Tx;
use super::{Sqlite, answer, database, failed, vm};
use crate::model::event::{Event, EventKind};
use crate::model::ids::LeaseId;
use crate::model::lease::{EndedAs, Receipt};
use crate::model::query::{LeaseFilter, Page, RequestId};
use crate::model::record::{Lease, Vm};
use crate::store::changes::RowChange;
use crate::store::{StoreError, StoreResult};

fn read(row: &impl Columns) -> StoreResult<Lease> {
    let receipt = match row.opt_text("receipt")? {
        None => None,
        Some(text) => Some(serde_json::from_str::<Receipt>(&text).map_err(|_| damaged("receipt", text))?),
    };
    Ok(Lease {
        id: row.parsed("id")?,
        uid: row.uid("uid")?,
        vm: row.parsed("vm")?,
        pool: row.parsed("pool")?,
        holder: row.text("holder")?,
        ended: row.opt_choice("ended", EndedAs::parse)?,
        end_reason: row.text("end_reason")?,
        ttl: row.span("ttl")?,
        expires: row.time("expires")?,
        receipt,
        purpose: row.text("purpose")?,
        priority: i32::try_from(row.int("priority")?).map_err(|_| damaged("priority", "no 32 bits"))?,
        suspended: row.opt_time("suspended")?,
        suspend_reason: row.text("suspend_reason")?,
        created: row.time("created")?,
        ended_at: row.opt_time("ended_at")?,
    })
}

/// Changes a lease that has not ended, and gives it as it then is.
fn change(tx: &mut Tx<'_>, context: &'static str, sql: &str, params: impl Params) -> StoreResult<Lease> {
    let mut statement = tx.db.prepare_cached(sql).map_err(failed(context))?;
    let mut rows = statement.query(params).map_err(failed(context))?;
    let lease = match rows.next().map_err(failed(context))? {
        Some(row) => read(row)?,
        None => return Err(StoreError::Changed("lease")),
    };
    tx.show(RowChange::Lease(Arc::new(lease.clone())));
    Ok(lease)
}

/// Leases, newest first.
pub(super) async fn list(readers: &SqlitePool, filter: &LeaseFilter, page: &Page) -> StoreResult<Vec<Lease>> {
    query(filter, page)
        .build()
        .fetch_all(readers)
        .await
        .map_err(database("list leases"))?
        .iter()
        .map(read)
        .collect()
}

pub(super) fn query(filter: &LeaseFilter, page: &Page) -> QueryBuilder<sqlx::Sqlite> {
    let mut query = QueryBuilder::new("SELECT * FROM leases WHERE TRUE");
    if !page.after.is_empty() {
        query.push(" AND id < ").push_bind(page.after.clone());
    }
    if let Some(pool) = &filter.pool {
        query.push(" AND pool = ").push_bind(pool.to_string());
    }
    if !filter.show_ended {
        query.push(" AND ended IS NULL");
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(page.limit));
    query
}

impl Sqlite {
    /// Gives a VM to a lease: a new one, or one whose VM before failed its checks.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the VM is not as the caller thought; [`StoreError::Exists`] when it has a live lease
    /// or the request id is taken.
    pub async fn grant(
        &self,
        vm: &Vm,
        lease: &Lease,
        request: Option<&RequestId>,
        events: Vec<Event>,
    ) -> StoreResult<()> {
        let receipt = lease.receipt.as_ref().map(|receipt| to_json("receipt", receipt)).transpose()?;
        let (vm, lease, request) = (Arc::new(vm.clone()), Arc::new(lease.clone()), request.cloned());
        self.writer
            .write(move |tx| {
                vm::update_in(tx, &vm)?;
                tx.execute_one(
                    "lease",
                    "INSERT INTO leases (id, uid, vm, pool, holder, ended, end_reason, ttl, expires, receipt,
                        purpose, priority, created, ended_at)
                     VALUES (?, ?, ?, ?, ?, NULL, '', ?, ?, ?, ?, ?, ?, NULL)
                     ON CONFLICT (id) DO UPDATE SET vm = excluded.vm, expires = excluded.expires,
                        receipt = excluded.receipt
                        WHERE ended IS NULL",
                    params![
                        lease.id.as_str(),
                        lease.uid.simple().to_string(),
                        lease.vm.as_str(),
                        lease.pool.as_str(),
                        lease.holder,
                        duration(lease.ttl),
                        micros(lease.expires),
                        receipt,
                        lease.purpose,
                        lease.priority,
                        micros(lease.created),
                    ],
                )?;
                answer(tx, request.as_ref(), lease.id.as_str(), lease.created)?;
                tx.show(RowChange::Lease(lease));
                events.into_iter().try_for_each(|event| tx.event(event))
            })
            .await
    }

    /// Takes a VM from its lease, and ends the lease.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the VM is not as the caller thought, or the lease has ended, was renewed or moved to
    /// another VM.
    pub async fn end_lease(&self, vm: Option<&Vm>, lease: &Lease, events: Vec<Event>) -> StoreResult<()> {
        let (vm, lease) = (vm.cloned().map(Arc::new), Arc::new(lease.clone()));
        self.writer
            .write(move |tx| {
                if let Some(vm) = &vm {
                    vm::update_in(tx, vm)?;
                }
                tx.execute_one(
                    "lease",
                    "UPDATE leases SET ended = ?, end_reason = ?, ended_at = ?
                     WHERE id = ? AND ended IS NULL AND vm = ? AND expires = ? AND suspended IS ?",
                    params![
                        lease.ended.map(EndedAs::as_str),
                        lease.end_reason,
                        lease.ended_at.map(micros),
                        lease.id.as_str(),
                        lease.vm.as_str(),
                        micros(lease.expires),
                        lease.suspended.map(micros),
                    ],
                )?;
                tx.show(RowChange::Lease(lease));
                events.into_iter().try_for_each(|event| tx.event(event))
            })
            .await
    }

    /// Writes the proof that a lease's desktop was ready, and its life counted from then.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the lease has ended.
    pub async fn write_receipt(
        &self,
        id: &LeaseId,
        receipt: &Receipt,
        expires: Timestamp,
        actor: &str,
    ) -> StoreResult<Lease> {
        let (id, actor, total) = (id.clone(), actor.to_owned(), receipt.total);
        let text = to_json("receipt", receipt)?;
        self.writer
            .write(move |tx| {
                let sql =
                    "UPDATE leases SET receipt = ?, expires = ? WHERE id = ? AND ended IS NULL RETURNING *";
                let lease = change(tx, "write a receipt", sql, params![text, micros(expires), id.as_str()])?;
                let event = Event::of_lease(EventKind::LeaseReady, &lease, &actor);
                tx.event(Event { duration: Some(total), ..event })?;
                Ok(lease)
            })
            .await
    }

    /// Moves the end of a lease.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the lease has ended, or is preempted.
    pub async fn renew_lease(
        &self,
        id: &LeaseId,
        ttl: std::time::Duration,
        expires: Timestamp,
        actor: &str,
    ) -> StoreResult<Lease> {
        let (id, actor) = (id.clone(), actor.to_owned());
        self.writer
            .write(move |tx| {
                let sql = "UPDATE leases SET ttl = ?, expires = ?
                           WHERE id = ? AND ended IS NULL AND suspended IS NULL RETURNING *";
                let lease =
                    change(tx, "renew a lease", sql, params![duration(ttl), micros(expires), id.as_str()])?;
                tx.event(Event::of_lease(EventKind::LeaseRenewed, &lease, &actor))?;
                Ok(lease)
            })
            .await
    }

    /// One lease.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn lease(&self, id: &LeaseId) -> StoreResult<Option<Lease>> {
        if let Some(live) = self.changes.lease(id) {
            return Ok(Some(Lease::clone(&live)));
        }
        sqlx::query("SELECT * FROM leases WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read a lease"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// Leases, newest first: ids are ordered by time.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn leases(&self, filter: &LeaseFilter, page: &Page) -> StoreResult<Vec<Lease>> {
        list(&self.readers, filter, page).await
    }

    /// Live leases whose time is over, and when the next one's will be.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn expired_leases(&self, now: Timestamp) -> StoreResult<(Vec<Lease>, Option<Timestamp>)> {
        let rows = sqlx::query(
            "SELECT * FROM leases WHERE ended IS NULL AND suspended IS NULL AND expires <= ?
             ORDER BY expires LIMIT 100",
        )
        .bind(micros(now))
        .fetch_all(&self.readers)
        .await
        .map_err(database("look for expired leases"))?;
        let due: Vec<Lease> = rows.iter().map(read).collect::<StoreResult<_>>()?;
        let next = "SELECT min(expires) AS next FROM leases
             WHERE ended IS NULL AND suspended IS NULL AND expires > ?";
        let next = sqlx::query(next)
            .bind(micros(now))
            .fetch_one(&self.readers)
            .await
            .map_err(database("look for the next expiry"))?;
        Ok((due, next.opt_time("next")?))
    }
}
