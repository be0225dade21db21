//! The state directory: one daemon at a time, and where clients find it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const LOCK: &str = "lock";
const ENDPOINT: &str = "endpoint";

/// Why a state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// A file operation failed.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another daemon has it.
    #[error("another daemon ({holder}) uses {}; stop it, or choose another state_dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// `pid 123`.
        holder: String,
    },
}

impl StateDirError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// A locked state directory. The lock ends with the process, however that ends.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    published: bool,
    _lock: File,
}

impl StateDir {
    /// Makes the directory when it is missing, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, StateDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(StateDirError::io("make the state directory", path))?;
        let file_path = path.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file_path)
            .map_err(StateDirError::io("open the lock file", &file_path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message, so whatever is in there will do.
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim();
                let holder = if pid.is_empty() { "pid unknown".into() } else { format!("pid {pid}") };
                return Err(StateDirError::InUse { path: path.to_owned(), holder });
            }
            Err(error) => return Err(StateDirError::io("lock", &file_path)(error.into())),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(StateDirError::io("write", &file_path))?;
        let dir = Self { path: path.to_owned(), published: false, _lock: file };
        // One that a killed daemon left leads nowhere, or worse, to somebody else.
        dir.remove_endpoint();
        Ok(dir)
    }

    /// Tells clients where the daemon listens.
    pub(super) fn publish(&mut self, address: SocketAddr) -> Result<(), StateDirError> {
        let path = self.path.join(ENDPOINT);
        let write = || {
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.path)?;
            writeln!(file, "http://{address}")?;
            file.persist(&path).map(|_| ()).map_err(|error| error.error)
        };
        write().map_err(StateDirError::io("write", &path))?;
        self.published = true;
        Ok(())
    }

    /// Takes it back.
    pub(super) fn unpublish(&mut self) {
        if std::mem::take(&mut self.published) {
            self.remove_endpoint();
        }
    }

    fn remove_endpoint(&self) {
        let path = self.path.join(ENDPOINT);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "can't remove the endpoint file");
            }
            _ => {}
        }
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        self.unpublish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state/deep");
        let first = StateDir::lock(&path).expect("free");
        let error = StateDir::lock(&path).expect_err("locked").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
        drop(first);
        StateDir::lock(&path).expect("free again");
    }

    #[test]
    fn the_endpoint_is_there_while_the_daemon_is() {
        let dir = tempfile::tempdir().expect("dir");
        let endpoint = dir.path().join(ENDPOINT);
        fs::write(&endpoint, "http://127.0.0.1:1\n").expect("written");
        let mut state = StateDir::lock(dir.path()).expect("free");
        assert!(!endpoint.exists(), "a stale one is removed");
        state.publish("127.0.0.1:7420".parse().expect("an address")).expect("written");
        assert_eq!(fs::read_to_string(&endpoint).expect("there"), "http://127.0.0.1:7420\n");
        drop(state);
        assert!(!endpoint.exists());
    }
}
