//! Puts a copy of the store back, while no daemon runs on the state directory.

use std::path::Path;

use super::state_dir::{StateDir, StateDirError};
use crate::config::Config;
use crate::store::copy::{self, CopyError, Restored};

/// Why a copy was not put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state directory can't be used, or a daemon does.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The copy can't be used.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// Replaces the store of these settings by a copy of one.
///
/// The next start brings VMs and rows together: VMs that were made since the copy was taken are deleted, since no row
/// claims them, and those that are gone since are marked as lost. VMs that somebody may have used since are reset, and
/// their leases ended.
///
/// # Errors
/// [`RestoreError`]; the store is as it was then.
pub fn restore(config: &Config, file: &Path) -> Result<Restored, RestoreError> {
    let _alone = StateDir::lock(&config.state_dir)?;
    Ok(copy::restore(file, &config.store())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn not_while_a_daemon_runs_there() {
        let dir = tempfile::tempdir().expect("dir");
        let mut config = Config::defaults(dir.path());
        config.store.path = dir.path().join("hvkube.db");
        let copy = dir.path().join("copy.db");
        let store = Store::open(&config.store()).await.expect("opens");
        store.backup(&copy, false).await.expect("copied");
        store.close().await;

        let running = StateDir::lock(&config.state_dir).expect("free");
        let refused = restore(&config, &copy);
        assert!(matches!(refused, Err(RestoreError::StateDir(StateDirError::InUse { .. }))), "{refused:?}");
        drop(running);
        let kept = restore(&config, &copy).expect("restored").kept.expect("kept");
        assert!(kept.is_file());
    }
}
