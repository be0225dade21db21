//! The hypervisor that the settings name.

use std::sync::Arc;

use crate::config::Config;
use crate::hypervisor::{HvError, Hypervisor};

/// Why a hypervisor can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Its own word.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
}

pub(super) async fn start(config: &Config) -> Result<Arc<dyn Hypervisor>, BackendError> {
    Err(HvError::Unavailable(format!("{:?} is not there yet", config.hypervisor)).into())
}
