//! Pools.

use sqlx::sqlite::SqliteRow;

use super::row::{Columns as _, damaged, duration, int, micros, to_json};
use super::{Sqlite, answer, database, insert};
use crate::model::ids::PoolId;
use crate::model::query::{Page, RequestId};
use crate::model::record::{Pool, PoolSpec};
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

impl Sqlite {
    /// Adds a pool.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for a taken id or request id; [`StoreError::Referred`] without its template.
    pub async fn insert_pool(&self, pool: &Pool, request: Option<&RequestId>) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO pools (id, uid, display_name, template, desired, warm, max_per_host, default_ttl, max_ttl,
                options, paused, deleting, created, updated, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(pool.id.as_str())
        .bind(pool.uid.simple().to_string())
        .bind(&pool.spec.display_name)
        .bind(pool.spec.template.as_str())
        .bind(i64::from(pool.spec.desired))
        .bind(pool.spec.warm.map(i64::from))
        .bind(i64::from(pool.spec.max_per_host))
        .bind(duration(pool.spec.default_ttl))
        .bind(duration(pool.spec.max_ttl))
        .bind(to_json("options", &pool.spec.options)?)
        .bind(pool.paused)
        .bind(pool.deleting)
        .bind(micros(pool.created))
        .bind(micros(pool.updated))
        .bind(int(pool.version))
        .execute(&mut *tx)
        .await
        .map_err(insert("pool"))?;
        answer(&mut tx, request, pool.id.as_str(), pool.created).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// Writes a pool's settings; its version must be the next one.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when another version is stored, or none; [`StoreError::Referred`] without its template.
    pub async fn update_pool(&self, pool: &Pool) -> StoreResult<()> {
        let done = sqlx::query(
            "UPDATE pools SET display_name = ?, template = ?, desired = ?, warm = ?, max_per_host = ?,
                default_ttl = ?, max_ttl = ?, options = ?, paused = ?, deleting = ?, updated = ?, version = ?
             WHERE id = ? AND version = ?",
        )
        .bind(&pool.spec.display_name)
        .bind(pool.spec.template.as_str())
        .bind(i64::from(pool.spec.desired))
        .bind(pool.spec.warm.map(i64::from))
        .bind(i64::from(pool.spec.max_per_host))
        .bind(duration(pool.spec.default_ttl))
        .bind(duration(pool.spec.max_ttl))
        .bind(to_json("options", &pool.spec.options)?)
        .bind(pool.paused)
        .bind(pool.deleting)
        .bind(micros(pool.updated))
        .bind(int(pool.version))
        .bind(pool.id.as_str())
        .bind(int(pool.version.saturating_sub(1)))
        .execute(&self.writer)
        .await
        .map_err(insert("template"))?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Changed("pool")) }
    }

    /// Takes the number of a pool's next VM.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the pool is gone.
    pub async fn take_vm_number(&self, pool: &PoolId) -> StoreResult<u64> {
        let row =
            sqlx::query("UPDATE pools SET next_number = next_number + 1 WHERE id = ? RETURNING next_number")
                .bind(pool.as_str())
                .fetch_optional(&self.writer)
                .await
                .map_err(database("number a vm"))?
                .ok_or(StoreError::Changed("pool"))?;
        Ok(row.unsigned::<u64>("next_number")?.saturating_sub(1))
    }

    /// One pool.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn pool(&self, id: &PoolId) -> StoreResult<Option<Pool>> {
        sqlx::query("SELECT * FROM pools WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read a pool"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// Pools by id.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn pools(&self, page: &Page) -> StoreResult<Vec<Pool>> {
        sqlx::query("SELECT * FROM pools WHERE id > ? ORDER BY id LIMIT ?")
            .bind(&page.after)
            .bind(i64::from(page.limit))
            .fetch_all(&self.readers)
            .await
            .map_err(database("list pools"))?
            .iter()
            .map(read)
            .collect()
    }

    /// Removes a pool.
    ///
    /// # Errors
    /// [`StoreError::Referred`] while it has VMs.
    pub async fn delete_pool(&self, id: &PoolId) -> StoreResult<()> {
        sqlx::query("DELETE FROM pools WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(insert("pool"))?;
        Ok(())
    }
}
