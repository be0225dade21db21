//! The store on SQLite: WAL, foreign keys, one writer that commits in groups ([`writer`]), several readers.
//!
//! Readers are sqlx's, each with its own snapshot; they never wait for the writer. Everybody who writes queues for it
//! instead of meeting in SQLite's busy handler, which is neither fair nor bounded.

mod agent;
mod event;
mod lease;
mod operation;
mod pool;
mod row;
mod suspend;
mod template;
mod vm;
mod writer;

use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

use super::changes::Changes;
use super::{Answered, StoreConfig, StoreError, StoreResult};
use crate::model::query::{LeaseFilter, Page, RequestId, VmFilter};
pub use agent::NextAgent;
use row::micros;
use writer::{Tx, Writer, constraint, failed};

/// Readers in parallel: more than cores do not help, fewer make lists wait for each other.
const READERS: u32 = 4;
/// Rows deleted in one write when the store is pruned: a few milliseconds, in which nothing else is written.
const PRUNED_AT_ONCE: u64 = 2000;

/// The migrations of this daemon, oldest first.
pub(super) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sqlite {
    writer: Arc<Writer>,
    readers: SqlitePool,
    changes: Arc<Changes>,
    incarnation: u32,
    config: Arc<StoreConfig>,
}

impl Sqlite {
    /// Opens the database, making or migrating it.
    ///
    /// # Errors
    /// [`StoreError::Migrate`] for a database of a newer daemon; [`StoreError::Database`] when the file can't be used.
    pub async fn open(config: &StoreConfig) -> StoreResult<Self> {
        create_private(config).map_err(|error| StoreError::Database {
            context: "create the database file",
            source: Box::new(error),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(&config.path)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let first = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(database("open the database"))?;
        let migrated = MIGRATIONS.run(&first).await.map_err(StoreError::Migrate);
        first.close().await;
        migrated?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(database("open the database for reading"))?;
        let changes = Arc::new(load_changes(&readers).await?);
        let fact = sqlx::query("SELECT value FROM facts WHERE name = 'incarnation'")
            .fetch_one(&readers)
            .await
            .map_err(database("read the incarnation"))?;
        let fact: String = fact.try_get(0).map_err(database("read the incarnation"))?;
        let incarnation = u32::from_str_radix(&fact, 16).map_err(|_| row::damaged("value", fact))?;
        let writer = Arc::new(Writer::open(config, Arc::clone(&changes))?);
        Ok(Self { writer, readers, changes, incarnation, config: Arc::new(config.clone()) })
    }

    /// What is committed, for those who watch.
    #[must_use]
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Tells the revisions of this store from those of another one.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// How it was opened.
    #[must_use]
    pub fn config(&self) -> &StoreConfig {
        &self.config
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

    /// Completes when all that was asked to be written before is committed, also what was asked by callers who have gone:
    /// reads do not wait for it otherwise.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn caught_up(&self) -> StoreResult<()> {
        self.writer.write(|_| Ok(())).await
    }

    /// Forgets a request id, so that a repeat is a new request.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn forget_request(&self, id: uuid::Uuid) -> StoreResult<()> {
        let id = id.simple().to_string();
        self.writer
            .write(move |tx| {
                tx.execute("DELETE FROM requests WHERE id = ?", [id])
                    .map(drop)
                    .map_err(failed("forget a request"))
            })
            .await
    }

    /// Deletes what is only kept for a while: answered requests and ended leases older than this. It goes in small steps,
    /// with other writes between them, and folds the log in at the end.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn prune(&self, before: Timestamp) -> StoreResult<()> {
        for statement in [
            "DELETE FROM requests WHERE rowid IN (SELECT rowid FROM requests WHERE created < ? LIMIT ?)",
            "DELETE FROM leases WHERE rowid IN
                (SELECT rowid FROM leases WHERE ended IS NOT NULL AND ended_at < ? LIMIT ?)",
            "DELETE FROM operations WHERE rowid IN
                (SELECT rowid FROM operations WHERE outcome IS NOT NULL AND updated < ? LIMIT ?)",
        ] {
            loop {
                let deleted = self
                    .writer
                    .write(move |tx| {
                        tx.execute(statement, (micros(before), row::int(PRUNED_AT_ONCE)))
                            .map_err(failed("prune the store"))
                    })
                    .await?;
                if (deleted as u64) < PRUNED_AT_ONCE {
                    break;
                }
            }
        }
        self.writer.checkpoint().await
    }
}

/// What is kept in memory.
async fn load_changes(readers: &SqlitePool) -> StoreResult<Changes> {
    const LIST: u32 = 1000;
    let (mut vms, mut pools) = (Vec::new(), Vec::new());
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = vm::list(readers, &VmFilter::default(), &page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.id.to_string();
        vms.extend(rows);
    }
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = pool::list(readers, &page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.id.to_string();
        pools.extend(rows);
    }
    let mut leases = Vec::new();
    let mut page = Page { after: String::new(), limit: LIST };
    loop {
        let rows = lease::list(readers, &LeaseFilter::default(), &page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.id.to_string();
        leases.extend(rows);
    }
    let (floor, head) = event::ends(readers).await?;
    Ok(Changes::new(vms, pools, leases, head, floor))
}

/// Remembers what a request made, in the same transaction.
fn answer(tx: &Tx<'_>, request: Option<&RequestId>, resource: &str, now: Timestamp) -> StoreResult<()> {
    let Some(request) = request else { return Ok(()) };
    tx.execute(
        "INSERT INTO requests (id, fingerprint, resource, created) VALUES (?, ?, ?, ?)",
        (request.id.simple().to_string(), &request.fingerprint, resource, micros(now)),
    )
    .map(drop)
    .map_err(constraint("request"))
}

/// The database file holds lease holders and paths: nobody else's business.
fn create_private(config: &StoreConfig) -> std::io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&config.path).map(drop)
}

/// Gives a reader's failure its context.
fn database(context: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| match source {
        sqlx::Error::PoolClosed => StoreError::Closed,
        source => StoreError::Database { context, source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests;
