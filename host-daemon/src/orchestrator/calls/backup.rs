//! Copies of the store, taken while everything goes on.

use std::path::Path;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{answered, taken};
use crate::model::error::{Error, Reason, Result};
use crate::model::record::{Backup, Operation, Outcome, Phase, Work};
use crate::orchestrator::request::{BackupStore, Caller};
use crate::orchestrator::{Orchestrator, Shared};
use crate::store::copy::CopyError;

impl Orchestrator {
    /// Refuses whoever may not copy the store: it is the daemon that writes the file, with the daemon's rights.
    ///
    /// # Errors
    /// [`Reason::AdminOnly`].
    pub fn may_backup(&self, caller: &Caller) -> Result<()> {
        if caller.admin {
            return Ok(());
        }
        Err(Error::new(Reason::AdminOnly, "only the admin token may have the store copied"))
    }

    /// Begins to copy the store into a file.
    ///
    /// # Errors
    /// [`Reason::AdminOnly`], [`Reason::AlreadyExists`] for the file, [`Reason::InvalidField`] where no file can be.
    pub async fn backup_store(&self, caller: &Caller, request: BackupStore) -> Result<Operation> {
        self.may_backup(caller)?;
        let this = self.clone();
        self.to_the_end(async move { this.backup_store_now(request).await }).await
    }

    async fn backup_store_now(&self, request: BackupStore) -> Result<Operation> {
        let shared = self.open()?;
        let _lock = shared.leases.lock(request.request.as_ref()).await;
        if let Some(operation) = answered(shared, request.request.as_ref()).await? {
            return self.operation(&operation).await;
        }
        check(shared, &request.path, request.overwrite)?;
        let now = Timestamp::now();
        let path = request.path.to_string_lossy().into_owned();
        let operation = Operation {
            id: format!("backup-{}", Uuid::now_v7()),
            work: Work::BackupStore(Backup { path, overwrite: request.overwrite, size_bytes: 0 }),
            phase: Phase::Copying,
            outcome: None,
            created: now,
            updated: now,
        };
        let inserted = shared.store.insert_operation(&operation, request.request.as_ref()).await;
        inserted.map_err(taken("operation", &operation.id))?;
        let cancel = shared.stopping.child_token();
        shared.operations.insert(&operation.id, cancel.clone());
        let (task, work) = (shared.clone(), operation.clone());
        shared.leases.under_way.spawn(async move {
            let id = work.id.clone();
            run(&task, request, work, cancel).await;
            task.operations.remove(&id);
        });
        Ok(operation)
    }
}

/// Works on a backup until it ends, whichever way.
async fn run(shared: &Shared, request: BackupStore, mut operation: Operation, cancel: CancellationToken) {
    let copied = cancel.run_until_cancelled(shared.store.backup(&request.path, request.overwrite)).await;
    operation.outcome = Some(match copied {
        Some(Ok(size_bytes)) => {
            tracing::info!(path = %request.path.display(), size_bytes, "store copied");
            let path = request.path.to_string_lossy().into_owned();
            operation.work = Work::BackupStore(Backup { path, overwrite: request.overwrite, size_bytes });
            operation.phase = Phase::Done;
            Outcome::Ready
        }
        Some(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "store not copied");
            let error = failure(error);
            Outcome::Failed { reason: error.reason.as_str().into(), message: error.to_string() }
        }
        None => Outcome::Cancelled,
    });
    operation.updated = Timestamp::now();
    if let Err(error) = shared.store.update_operation(&operation).await {
        tracing::error!(error = &error as &dyn std::error::Error, "outcome not recorded");
    }
}

/// What can be said before the work begins.
fn check(shared: &Shared, path: &Path, overwrite: bool) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    if !folder.is_dir() {
        return Err(Error::field("path", format!("{} is no folder on the host", folder.display())));
    }
    let same =
        |a: &Path, b: &Path| a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if same(path, &shared.store.config().path) {
        return Err(Error::field("path", "is the store itself"));
    }
    if path.exists() && !overwrite {
        return Err(failure(CopyError::Exists(path.to_owned())));
    }
    Ok(())
}

/// The caller is the operator of the host, so the cause is for them too.
fn failure(error: CopyError) -> Error {
    let message = crate::model::error::chain(&error);
    match &error {
        CopyError::Exists(path) => {
            Error::new(Reason::AlreadyExists, message).with("kind", "file").with("id", path.display())
        }
        _ => Error::internal(Reason::StoreFailed, message, error),
    }
}
