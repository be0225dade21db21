//! Finds the daemon of this machine: its state directory, the endpoint it recorded there and its admin token.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Longest endpoint or token file that is read; both are one short line.
const MAX_FILE: u64 = 4096;

/// The state directory of the daemon that this user would start or talk to.
///
/// In this order: `HVKUBE_STATE_DIR`; `/var/lib/hvkube` for root (`%ProgramData%\hvkube` on Windows);
/// `$XDG_STATE_HOME/hvkube`, which defaults to `~/.local/state/hvkube`. The daemon and its clients both ask here.
#[must_use]
pub fn state_dir() -> PathBuf {
    let user = directories::BaseDirs::new();
    let user = user.as_ref().map(|dirs| dirs.state_dir().unwrap_or(dirs.data_local_dir()));
    pick_state_dir(env::var_os("HVKUBE_STATE_DIR"), runs_as_root(), user)
}

fn pick_state_dir(explicit: Option<OsString>, root: bool, user: Option<&Path>) -> PathBuf {
    if let Some(dir) = explicit.filter(|dir| !dir.is_empty()) {
        return PathBuf::from(dir);
    }
    match user {
        Some(user) if !root => user.join("hvkube"),
        _ => system_state_dir(),
    }
}

#[cfg(unix)]
fn runs_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(unix)]
fn system_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/hvkube")
}

#[cfg(not(unix))]
fn runs_as_root() -> bool {
    // The Windows service keeps its state machine-wide, whoever asks.
    true
}

#[cfg(not(unix))]
fn system_state_dir() -> PathBuf {
    PathBuf::from(env::var_os("ProgramData").unwrap_or_else(|| "C:\\ProgramData".into())).join("hvkube")
}

/// Files by which a daemon on this machine makes itself known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDaemon {
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Holds its URL while it has one; readable by everybody who may enter the directory.
    pub endpoint_file: PathBuf,
    /// Holds its admin token; mode 0600.
    pub token_file: PathBuf,
}

impl LocalDaemon {
    /// The one of [`state_dir`].
    #[must_use]
    pub fn find() -> Self {
        Self::at(&state_dir())
    }

    /// The one that keeps its state in `dir`.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            state_dir: dir.to_owned(),
            endpoint_file: dir.join("endpoint"),
            token_file: dir.join("admin.token"),
        }
    }

    /// The endpoint it recorded; `None` when there is no such record.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        read_line(&self.endpoint_file).ok().filter(|line| !line.is_empty())
    }

    /// Its admin token.
    ///
    /// # Errors
    /// When the file is not there, may not be read, or is no short line of text.
    pub fn token(&self) -> io::Result<String> {
        read_line(&self.token_file)
    }
}

/// Reads one short line, without the white space around it.
pub(crate) fn read_line(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if meta.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a line"));
    }
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_directory_wins_then_root_then_user() {
        let user = Path::new("/home/u/.local/state");
        assert_eq!(pick_state_dir(Some("/x".into()), true, Some(user)), Path::new("/x"));
        assert_eq!(pick_state_dir(Some("".into()), false, Some(user)), user.join("hvkube"));
        assert_eq!(pick_state_dir(None, true, Some(user)), system_state_dir());
        assert_eq!(pick_state_dir(None, false, Some(user)), user.join("hvkube"));
        assert_eq!(pick_state_dir(None, false, None), system_state_dir());
    }

    #[test]
    fn reads_short_lines_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let daemon = LocalDaemon::at(dir.path());
        assert_eq!(daemon.endpoint(), None);
        assert_eq!(daemon.token().expect_err("no file").kind(), io::ErrorKind::NotFound);
        fs::write(&daemon.endpoint_file, "http://127.0.0.1:7421\n").expect("write");
        fs::write(&daemon.token_file, "x".repeat(5000)).expect("write");
        assert_eq!(daemon.endpoint().as_deref(), Some("http://127.0.0.1:7421"));
        assert_eq!(daemon.token().expect_err("too long").kind(), io::ErrorKind::InvalidData);
        assert!(read_line(dir.path()).is_err(), "a directory is refused");
    }
}
