//! Leases. What changes a lease and its VM together is one transaction.

use jiff::Timestamp;
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteRow;

use super::row::{Columns as _, damaged, duration, micros, to_json};
use super::{Sqlite, answer, database, insert, vm};
use crate::model::ids::LeaseId;
use crate::model::lease::{EndedAs, Receipt};
use crate::model::query::{LeaseFilter, Page, RequestId};
use crate::model::record::{Lease, Vm};
use crate::store::{StoreError, StoreResult};

fn read(row: &SqliteRow) -> StoreResult<Lease> {
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

impl Sqlite {
    /// Gives a VM to a lease: a new one, or one whose VM before failed its checks.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the VM is not as the caller thought; [`StoreError::Exists`] when it has a live lease
    /// or the request id is taken.
    pub async fn grant(&self, vm: &Vm, lease: &Lease, request: Option<&RequestId>) -> StoreResult<()> {
        let receipt = lease.receipt.as_ref().map(|receipt| to_json("receipt", receipt)).transpose()?;
        let mut tx = self.begin().await?;
        vm::update_in(&mut tx, vm).await?;
        let done = sqlx::query(
            "INSERT INTO leases (id, uid, vm, pool, holder, ended, end_reason, ttl, expires, receipt, purpose, priority,
                created, ended_at)
             VALUES (?, ?, ?, ?, ?, NULL, '', ?, ?, ?, ?, ?, ?, NULL)
             ON CONFLICT (id) DO UPDATE SET vm = excluded.vm, expires = excluded.expires, receipt = excluded.receipt
                WHERE ended IS NULL",
        )
        .bind(lease.id.as_str())
        .bind(lease.uid.simple().to_string())
        .bind(lease.vm.as_str())
        .bind(lease.pool.as_str())
        .bind(&lease.holder)
        .bind(duration(lease.ttl))
        .bind(micros(lease.expires))
        .bind(receipt)
        .bind(&lease.purpose)
        .bind(lease.priority)
        .bind(micros(lease.created))
        .execute(&mut *tx)
        .await
        .map_err(insert("lease"))?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Changed("lease"));
        }
        answer(&mut tx, request, lease.id.as_str(), lease.created).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// Takes a VM from its lease, and ends the lease.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the VM is not as the caller thought, or the lease has ended, was renewed or moved to
    /// another VM.
    pub async fn end_lease(&self, vm: Option<&Vm>, lease: &Lease) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        if let Some(vm) = vm {
            vm::update_in(&mut tx, vm).await?;
        }
        let done = sqlx::query(
            "UPDATE leases SET ended = ?, end_reason = ?, ended_at = ?
             WHERE id = ? AND ended IS NULL AND vm = ? AND expires = ? AND suspended IS ?",
        )
        .bind(lease.ended.map(EndedAs::as_str))
        .bind(&lease.end_reason)
        .bind(lease.ended_at.map(micros))
        .bind(lease.id.as_str())
        .bind(lease.vm.as_str())
        .bind(micros(lease.expires))
        .bind(lease.suspended.map(micros))
        .execute(&mut *tx)
        .await
        .map_err(database("end a lease"))?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Changed("lease"));
        }
        tx.commit().await.map_err(database("commit"))
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
    ) -> StoreResult<Lease> {
        let text = to_json("receipt", receipt)?;
        sqlx::query("UPDATE leases SET receipt = ?, expires = ? WHERE id = ? AND ended IS NULL RETURNING *")
            .bind(text)
            .bind(micros(expires))
            .bind(id.as_str())
            .fetch_optional(&self.writer)
            .await
            .map_err(database("write a receipt"))?
            .map_or(Err(StoreError::Changed("lease")), |row| read(&row))
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
    ) -> StoreResult<Lease> {
        sqlx::query(
            "UPDATE leases SET ttl = ?, expires = ?
             WHERE id = ? AND ended IS NULL AND suspended IS NULL RETURNING *",
        )
        .bind(duration(ttl))
        .bind(micros(expires))
        .bind(id.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(database("renew a lease"))?
        .map_or(Err(StoreError::Changed("lease")), |row| read(&row))
    }

    /// One lease.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn lease(&self, id: &LeaseId) -> StoreResult<Option<Lease>> {
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
        let mut query = QueryBuilder::new("SELECT * FROM leases WHERE TRUE");
        if !page.after.is_empty() {
            query.push(" AND id < ").push_bind(&page.after);
        }
        if let Some(pool) = &filter.pool {
            query.push(" AND pool = ").push_bind(pool.as_str());
        }
        if !filter.show_ended {
            query.push(" AND ended IS NULL");
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(page.limit));
        query
            .build()
            .fetch_all(&self.readers)
            .await
            .map_err(database("list leases"))?
            .iter()
            .map(read)
            .collect()
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
