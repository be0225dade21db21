//! The store on SQLite: WAL, foreign keys, one writer, several readers.
//!
//! Writers queue for the one writing connection instead of meeting in SQLite's busy handler, which is neither fair nor
//! bounded; the busy timeout is for other processes (a backup, a curious person with a shell).

mod agent;
mod lease;
mod operation;
mod pool;
mod row;
mod template;
mod vm;

use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Row as _, Transaction};

use super::{Answered, StoreConfig, StoreError, StoreResult};
use crate::model::query::RequestId;
pub use agent::{AgentFeed, NextAgent};
use row::micros;

/// Readers in parallel: more than cores do not help, fewer make lists wait for each other.
const READERS: u32 = 4;

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

type Tx = Transaction<'static, sqlx::Sqlite>;

impl Sqlite {
    /// Opens the database, making or migrating it.
    ///
    /// # Errors
    /// [`StoreError::Migrate`] for a database of a newer daemon; [`StoreError::Database`] when the file can't be used.
    pub async fn open(config: &StoreConfig) -> StoreResult<Self> {
        create_private(config).map_err(|error| StoreError::Database {
            context: "create the database file",
            source: sqlx::Error::Io(error),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(&config.path)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .synchronous(if config.durable { SqliteSynchronous::Full } else { SqliteSynchronous::Off });
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(database("open the database"))?;
        sqlx::migrate!("./migrations").run(&writer).await.map_err(StoreError::Migrate)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(database("open the database for reading"))?;
        Ok(Self { writer, readers })
    }

    /// Closes all connections, the write-ahead log folded in.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// What a request id was answered with.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn answered(&self, id: uuid::Uuid) -> StoreResult<Option<Answered>> {
        let row = sqlx::query("SELECT fingerprint, resource FROM requests WHERE id = ?")
            .bind(id.simple().to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read a request"))?;
        Ok(row.map(|row| Answered { fingerprint: row.get(0), resource: row.get(1) }))
    }

    /// Forgets a request id, so that a repeat is a new request.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn forget_request(&self, id: uuid::Uuid) -> StoreResult<()> {
        sqlx::query("DELETE FROM requests WHERE id = ?")
            .bind(id.simple().to_string())
            .execute(&self.writer)
            .await
            .map_err(database("forget a request"))?;
        Ok(())
    }

    /// Deletes what is only kept for a while: answered requests and ended leases older than this.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn prune(&self, before: Timestamp) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        for statement in [
            "DELETE FROM requests WHERE created < ?",
            "DELETE FROM leases WHERE ended IS NOT NULL AND ended_at < ?",
            "DELETE FROM operations WHERE outcome IS NOT NULL AND updated < ?",
        ] {
            sqlx::query(statement)
                .bind(micros(before))
                .execute(&mut *tx)
                .await
                .map_err(database("prune the store"))?;
        }
        tx.commit().await.map_err(database("commit"))
    }

    /// A transaction that holds the write lock from the start.
    async fn begin(&self) -> StoreResult<Tx> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(database("begin a transaction"))
    }
}

/// Remembers what a request made, in the same transaction.
async fn answer(
    tx: &mut SqliteConnection,
    request: Option<&RequestId>,
    resource: &str,
    now: Timestamp,
) -> StoreResult<()> {
    let Some(request) = request else { return Ok(()) };
    sqlx::query("INSERT INTO requests (id, fingerprint, resource, created) VALUES (?, ?, ?, ?)")
        .bind(request.id.simple().to_string())
        .bind(&request.fingerprint)
        .bind(resource)
        .bind(micros(now))
        .execute(tx)
        .await
        .map_err(insert("request"))?;
    Ok(())
}

/// The database file holds lease holders and paths: nobody else's business.
fn create_private(config: &StoreConfig) -> std::io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&config.path).map(drop)
}

/// Gives a database error its context.
fn database(context: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { context, source }
}

/// Tells broken uniqueness and references from other failures of a write.
fn insert(kind: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| match source.as_database_error() {
        Some(error) if error.is_unique_violation() => StoreError::Exists(kind),
        Some(error) if error.is_foreign_key_violation() => StoreError::Referred(kind),
        _ => StoreError::Database { context: "write a row", source },
    }
}

#[cfg(test)]
mod tests;
