//! Pools.

use std::sync::Arc;

use rusqlite::params;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::row::{Columns as _, damaged, duration, int, micros, to_json};
use super::writer::Tx;
use super::{Sqlite, answer, constraint, database, failed};
use crate::model::event::Event;
use crate::model::ids::PoolId;
use crate::model::query::{Page, RequestId};
use crate::model::record::{Pool, PoolSpec};
use crate::store::changes::RowChange;
use crate::store::{StoreError, StoreResult};

fn read(row: &SqliteRow) -> StoreResult<Pool> {
    Ok(Pool {
        id: row.parsed("id")?,
        uid: row.uid("uid")?,
        spec: PoolSpec {
            display_name: row.text("display_name")?,
            template: row.parsed("template")?,
            desired: row.unsigned("desired")?,
            warm: row
                .opt_int("warm")?
                .map(|value| u32::try_from(value).map_err(|_| damaged("warm", value)))
                .transpose()?,
            max_per_host: row.unsigned("max_per_host")?,
            default_ttl: row.span("default_ttl")?,
            max_ttl: row.span("max_ttl")?,
            options: row.json("options")?,
        },
        deleting: row.flag("deleting")?,
        paused: row.flag("paused")?,
        created: row.time("created")?,
        updated: row.time("updated")?,
        version: row.unsigned("version")?,
    })
}

/// Pools by id.
pub(super) async fn list(readers: &SqlitePool, page: &Page) -> StoreResult<Vec<Pool>> {
    sqlx::query("SELECT * FROM pools WHERE id > ? ORDER BY id LIMIT ?")
        .bind(&page.after)
        .bind(i64::from(page.limit))
        .fetch_all(readers)
        .await
        .map_err(database("list pools"))?
        .iter()
        .map(read)
        .collect()
}

fn insert_in(tx: &mut Tx<'_>, pool: &Arc<Pool>) -> StoreResult<()> {
    tx.execute(
        "INSERT INTO pools (id, uid, display_name, template, desired, warm, max_per_host, default_ttl, max_ttl,
            options, paused, deleting, created, updated, version)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            pool.id.as_str(),
            pool.uid.simple().to_string(),
            pool.spec.display_name,
            pool.spec.template.as_str(),
            pool.spec.desired,
            pool.spec.warm,
            pool.spec.max_per_host,
            duration(pool.spec.default_ttl),
            duration(pool.spec.max_ttl),
            to_json("options", &pool.spec.options)?,
            pool.paused,
            pool.deleting,
            micros(pool.created),
            micros(pool.updated),
            int(pool.version),
        ],
    )
    .map_err(constraint("pool"))?;
    tx.show(RowChange::Pool(Arc::clone(pool)));
    Ok(())
}

fn update_in(tx: &mut Tx<'_>, pool: &Arc<Pool>) -> StoreResult<()> {
    let updated = tx
        .execute(
            "UPDATE pools SET display_name = ?, template = ?, desired = ?, warm = ?, max_per_host = ?,
            default_ttl = ?, max_ttl = ?, options = ?, paused = ?, deleting = ?, updated = ?, version = ?
         WHERE id = ? AND version = ?",
            params![
                pool.spec.display_name,
                pool.spec.template.as_str(),
                pool.spec.desired,
                pool.spec.warm,
                pool.spec.max_per_host,
                duration(pool.spec.default_ttl),
                duration(pool.spec.max_ttl),
                to_json("options", &pool.spec.options)?,
                pool.paused,
                pool.deleting,
                micros(pool.updated),
                int(pool.version),
                pool.id.as_str(),
                int(pool.version.saturating_sub(1)),
            ],
        )
        .map_err(constraint("template"))?;
    if updated != 1 {
        return Err(StoreError::Changed("pool"));
    }
    tx.show(RowChange::Pool(Arc::clone(pool)));
    Ok(())
}

impl Sqlite {
    /// Adds a pool.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for a taken id or request id; [`StoreError::Referred`] without its template.
    pub async fn insert_pool(
        &self,
        pool: &Pool,
        request: Option<&RequestId>,
        event: Event,
    ) -> StoreResult<()> {
        let (pool, request) = (Arc::new(pool.clone()), request.cloned());
        self.writer
            .write(move |tx| {
                insert_in(tx, &pool)?;
                answer(tx, request.as_ref(), pool.id.as_str(), pool.created)?;
                tx.event(event)
            })
            .await
    }

    /// Writes a pool's settings; its version must be the next one.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when another version is stored, or none; [`StoreError::Referred`] without its template.
    pub async fn update_pool(&self, pool: &Pool, event: Event) -> StoreResult<()> {
        let pool = Arc::new(pool.clone());
        self.writer
            .write(move |tx| {
                update_in(tx, &pool)?;
                tx.event(event)
            })
            .await
    }

    /// Takes the number of a pool's next VM.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the pool is gone.
    pub async fn take_vm_number(&self, pool: &PoolId) -> StoreResult<u64> {
        let pool = pool.clone();
        self.writer
            .write(move |tx| {
                let sql = "UPDATE pools SET next_number = next_number + 1 WHERE id = ? RETURNING next_number";
                let mut statement = tx.db.prepare_cached(sql).map_err(failed("number a vm"))?;
                let mut rows = statement.query([pool.as_str()]).map_err(failed("number a vm"))?;
                let row = rows.next().map_err(failed("number a vm"))?.ok_or(StoreError::Changed("pool"))?;
                Ok(row.unsigned::<u64>("next_number")?.saturating_sub(1))
            })
            .await
    }

    /// One pool.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn pool(&self, id: &PoolId) -> StoreResult<Option<Pool>> {
        Ok(self.changes.pool(id).map(|pool| Pool::clone(&pool)))
    }

    /// Pools by id.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn pools(&self, page: &Page) -> StoreResult<Vec<Pool>> {
        list(&self.readers, page).await
    }

    /// Removes a pool.
    ///
    /// # Errors
    /// [`StoreError::Referred`] while it has VMs.
    pub async fn delete_pool(&self, id: &PoolId, event: Event) -> StoreResult<()> {
        let id = id.clone();
        self.writer
            .write(move |tx| {
                let deleted = tx
                    .execute("DELETE FROM pools WHERE id = ?", [id.as_str()])
                    .map_err(constraint("pool"))?;
                tx.show(RowChange::NoPool(id));
                if deleted == 0 { Ok(()) } else { tx.event(event) }
            })
            .await
    }
}
