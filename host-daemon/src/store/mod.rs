//! What must outlive the daemon: templates, pools, VMs, leases, operations, answered requests, and what happened to them.
//!
//! The store keeps rows and enforces what a database can (uniqueness, references, one live lease per VM); it decides
//! nothing. There is one API, [`Store`], and one module per database; SQLite is the one so far. A second one becomes an
//! enum behind the same methods, not `sqlx::Any`, since locking differs (one writer here, `FOR UPDATE` there).
//!
//! Secrets are kept apart, in encrypted files ([`vault`]), and so are masks of screens ([`masks`]).
//!
//! Every change is written together with its [`Event`](crate::model::event::Event), in one transaction, and shown to those
//! who watch ([`Changes`]) once it is committed.

mod changes;
pub mod copy;
pub mod masks;
mod since;
mod sqlite;
pub mod vault;

use std::path::PathBuf;

pub use changes::{Behind, Changes};
pub use sqlite::{NextAgent, Sqlite as Store};

/// How the store is opened.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The database file; made when absent, mode 0600.
    pub path: PathBuf,
    /// Commits wait for the disk. Off only for tests: a host crash may then lose the last commits.
    pub durable: bool,
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A row of that id, or another unique value, exists.
    #[error("{0} exists")]
    Exists(&'static str),
    /// Another row refers to it, or it refers to none.
    #[error("{0} is referred to")]
    Referred(&'static str),
    /// The row is not as the caller thought; nothing was written.
    #[error("{0} changed meanwhile")]
    Changed(&'static str),
    /// Events that were asked for have been pruned.
    #[error("the events behind revision {0} are gone")]
    Compacted(u64),
    /// A stored value can't be read.
    #[error("column {column} holds {value:?}")]
    Damaged {
        /// Which.
        column: &'static str,
        /// What it holds.
        value: String,
    },
    /// The database is of a newer daemon, or a migration failed.
    #[error("migrate the database")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The database failed.
    #[error("{context}")]
    Database {
        /// What was tried.
        context: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Of its method and arguments.
    pub fingerprint: String,
    /// Id of what it made.
    pub resource: String,
}

impl From<StoreError> for crate::model::error::Error {
    fn from(error: StoreError) -> Self {
        use crate::model::error::Reason;
        match error {
            // Nobody else closes it. Calls that were under way for too long, or only looked, end with this.
            StoreError::Closed => Self::new(Reason::ShuttingDown, "the daemon is stopping"),
            error => Self::internal(Reason::StoreFailed, "the store failed", error),
        }
    }
}

#[cfg(test)]
mod upgrade_tests;
