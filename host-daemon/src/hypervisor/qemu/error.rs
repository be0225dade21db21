//! How failures below become the trait's errors.

use std::io;
use std::path::Path;

use super::qmp::QmpError;
use crate::hypervisor::HvError;

impl From<QmpError> for HvError {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Timeout(command) => Self::Timeout(command),
            other => Self::Process(other.to_string()),
        }
    }
}

/// Names what was tried on which file.
pub(crate) fn io_error(doing: &str, path: &Path, source: io::Error) -> HvError {
    HvError::Io { context: format!("{doing} {}", path.display()), source }
}

/// Adds what was tried, and on which file, to an I/O error.
pub(crate) trait Context<T> {
    /// `doing` is a verb phrase that the path completes.
    fn context(self, doing: &str, path: &Path) -> Result<T, HvError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &str, path: &Path) -> Result<T, HvError> {
        self.map_err(|source| io_error(doing, path, source))
    }
}
