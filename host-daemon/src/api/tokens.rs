//! Tokens that callers show, as files in the state directory.
//!
//! ```text
//! admin.token      the admin token itself, 0600: whoever can read it is the operator
//! tokens/NAME      SHA-256 of a named token, in hexadecimal, 0600; the token is shown once, when it is made
//! ```
//!
//! Files are the truth and the cache only saves reading them: a hit is checked against its file, a miss reads the
//! directory again. So tokens come and go without a restart.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::orchestrator::request::Caller;

const ADMIN_FILE: &str = "admin.token";
const DIR: &str = "tokens";
const ADMIN: &str = "admin";
/// More than any token of ours; a longer one is not even hashed.
const MAX_TOKEN: usize = 256;

/// Why the token files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
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
    /// A file holds no token.
    #[error("{} holds no token; delete it to get a new one", .0.display())]
    Malformed(PathBuf),
    /// The name has an illegal shape.
    #[error("{0:?} is no token name; use 1 to 63 of a-z, 0-9, - and _, but not `admin`")]
    BadName(String),
    /// There is one of that name.
    #[error("there is a token {0} already; revoke it first")]
    Exists(String),
    /// There is none of that name.
    #[error("there is no token {0}")]
    Unknown(String),
    /// The system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

impl TokenError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

type Hash = [u8; 32];

/// What tells a file from the one that replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

#[derive(Debug)]
struct Known {
    caller: Caller,
    hash: Hash,
    path: PathBuf,
    stamp: Stamp,
}

/// The tokens of one state directory.
#[derive(Debug)]
pub struct Tokens {
    state_dir: PathBuf,
    cache: Mutex<Vec<Known>>,
}

impl Tokens {
    /// The tokens in `state_dir`; nothing is read or written yet.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self { state_dir: state_dir.into(), cache: Mutex::default() }
    }

    /// Where the admin token is.
    #[must_use]
    pub fn admin_path(&self) -> PathBuf {
        self.state_dir.join(ADMIN_FILE)
    }

    /// Makes the admin token unless there is one.
    ///
    /// # Errors
    /// [`TokenError`] when it can't be read or written.
    pub fn ensure_admin(&self) -> Result<(), TokenError> {
        let path = self.admin_path();
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().len() < 32 => return Err(TokenError::Malformed(path)),
            Ok(_) => {
                let meta = fs::metadata(&path).map_err(TokenError::io("look at", &path))?;
                if meta.permissions().mode() & 0o077 != 0 {
                    tracing::warn!(path = %path.display(), "others could read the admin token; now they can't");
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                        .map_err(TokenError::io("protect", &path))?;
                }
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TokenError::io("read", &path)(error)),
        }
        write_new(&path, &format!("{}\n", fresh()?)).map(|_| ())
    }

    /// Makes a named token and gives it; only its hash is kept.
    ///
    /// # Errors
    /// [`TokenError`] for an illegal or taken name, or when it can't be written.
    pub fn add(&self, name: &str) -> Result<String, TokenError> {
        let path = self.named(name)?;
        let dir = self.state_dir.join(DIR);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(TokenError::io("make", &dir))?;
        let token = fresh()?;
        if write_new(&path, &format!("{}\n", hex::encode(Sha256::digest(&token))))? {
            Ok(token)
        } else {
            Err(TokenError::Exists(name.to_owned()))
        }
    }

    /// Names of the named tokens, sorted.
    ///
    /// # Errors
    /// [`TokenError`] when the directory can't be read.
    pub fn list(&self) -> Result<Vec<String>, TokenError> {
        let dir = self.state_dir.join(DIR);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TokenError::io("read", &dir))?,
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| legal(name))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes a named token; it ends to work at once.
    ///
    /// # Errors
    /// [`TokenError`] for an unknown name, or when it can't be removed.
    pub fn revoke(&self, name: &str) -> Result<(), TokenError> {
        let path = self.named(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(TokenError::Unknown(name.to_owned()))
            }
            result => result.map_err(TokenError::io("remove", &path)),
        }
    }

    /// Whose token this is.
    pub(crate) fn caller(&self, token: &str) -> Option<Caller> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let hash: Hash = Sha256::digest(token).into();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = find(&cache, &hash)
            && Stamp::of(&known.path) == Some(known.stamp)
        {
            return Some(known.caller.clone());
        }
        *cache = self.read();
        find(&cache, &hash).map(|known| known.caller.clone())
    }

    /// Reads all files; one that is broken is left out and said in the log.
    fn read(&self) -> Vec<Known> {
        let mut all = Vec::new();
        let mut add = |caller: Caller, path: PathBuf, hash: fn(&str) -> Option<Hash>| {
            // The stamp is taken first: a file that changes in between is then read again at the next call.
            let Some(stamp) = Stamp::of(&path) else { return };
            match fs::read_to_string(&path) {
                Ok(text) => match hash(text.trim()) {
                    Some(hash) => all.push(Known { caller, hash, path, stamp }),
                    None => tracing::warn!(path = %path.display(), "the file holds no token"),
                },
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "can't read a token");
                }
            }
        };
        add(Caller::admin(), self.admin_path(), |text| {
            (text.len() >= 32).then(|| Sha256::digest(text).into())
        });
        for name in self.list().unwrap_or_default() {
            let path = self.state_dir.join(DIR).join(&name);
            add(Caller { name, admin: false }, path, |text| {
                let mut hash = Hash::default();
                hex::decode_to_slice(text, &mut hash).ok()?;
                Some(hash)
            });
        }
        all
    }

    fn named(&self, name: &str) -> Result<PathBuf, TokenError> {
        if legal(name) {
            Ok(self.state_dir.join(DIR).join(name))
        } else {
            Err(TokenError::BadName(name.chars().take(80).collect()))
        }
    }
}

fn legal(name: &str) -> bool {
    name != ADMIN
        && (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && !name.starts_with('-')
}

/// Looks at every known hash in full, so that the time says nothing of how much of one was right.
fn find<'a>(known: &'a [Known], hash: &Hash) -> Option<&'a Known> {
    let mut found = None;
    for one in known {
        let difference = one.hash.iter().zip(hash).fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(difference) == 0 {
            found = Some(one);
        }
    }
    found
}

fn fresh() -> Result<String, TokenError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Writes a file of mode 0600 that appears whole; false when there is one already.
fn write_new(path: &Path, text: &str) -> Result<bool, TokenError> {
    let write = || {
        let mut file =
            tempfile::Builder::new().prefix(".new-").tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(true),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error),
        }
    };
    write().map_err(TokenError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn the_admin_token_is_made_once_and_only_for_its_owner() {
        let dir = tempfile::tempdir().expect("dir");
        let tokens = Tokens::new(dir.path());
        tokens.ensure_admin().expect("made");
        let text = fs::read_to_string(tokens.admin_path()).expect("readable");
        assert_eq!(text.trim().len(), 43);
        assert_eq!(mode(&tokens.admin_path()), 0o600);
        fs::set_permissions(tokens.admin_path(), fs::Permissions::from_mode(0o644)).expect("chmod");
        tokens.ensure_admin().expect("kept");
        assert_eq!(fs::read_to_string(tokens.admin_path()).expect("readable"), text);
        assert_eq!(mode(&tokens.admin_path()), 0o600);
        assert_eq!(tokens.caller(text.trim()), Some(Caller::admin()));
        assert_eq!(tokens.caller(""), None);
        assert_eq!(tokens.caller(&text.trim()[1..]), None);
    }

    #[test]
    fn named_tokens_come_and_go_without_a_restart() {
        let dir = tempfile::tempdir().expect("dir");
        // The daemon and the command line are two processes.
        let (daemon, cli) = (Tokens::new(dir.path()), Tokens::new(dir.path()));
        assert_eq!(daemon.caller("nothing"), None);
        let first = cli.add("ci").expect("made");
        assert_eq!(daemon.caller(&first), Some(Caller { name: "ci".into(), admin: false }));
        assert!(matches!(cli.add("ci"), Err(TokenError::Exists(_))));
        assert_eq!(cli.list().expect("listed"), ["ci"]);
        assert_eq!(mode(&dir.path().join("tokens/ci")), 0o600);
        assert!(!fs::read_to_string(dir.path().join("tokens/ci")).expect("readable").contains(&first));

        cli.revoke("ci").expect("revoked");
        assert_eq!(daemon.caller(&first), None);
        let second = cli.add("ci").expect("made");
        assert_eq!(daemon.caller(&first), None);
        assert!(daemon.caller(&second).is_some());
        assert!(matches!(cli.revoke("other"), Err(TokenError::Unknown(_))));
    }

    #[test]
    fn names_are_no_paths() {
        let tokens = Tokens::new("/nonexistent");
        for bad in ["", "admin", "../x", "a/b", "A", "-a", &"a".repeat(64)] {
            assert!(matches!(tokens.add(bad), Err(TokenError::BadName(_))), "{bad:?}");
        }
    }

    #[test]
    fn an_admin_file_without_a_token_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let tokens = Tokens::new(dir.path());
        fs::write(tokens.admin_path(), "\n").expect("written");
        assert!(matches!(tokens.ensure_admin(), Err(TokenError::Malformed(_))));
        assert_eq!(tokens.caller(""), None);
    }
}
