//! Secrets in files of their own, encrypted.
//!
//! ```text
//! secrets/             0700
//!   master.key         32 random bytes, 0600
//!   ID.secret          0600: what is known of it as a line of JSON, then nonce and ciphertext in base64
//! ```
//!
//! Values are encrypted with XChaCha20-Poly1305, and what is known of a secret is authenticated with it: nobody can widen
//! who may use it without the key. The key lies beside them, so this keeps values out of whatever reads single files by
//! mistake (a search, a copy, an editor's swap file), and makes a copy without the key useless; against somebody who may
//! read the whole directory it does nothing. They are not in the database, and so not in its backups.
//!
//! Files appear whole and are durable before a call answers. All calls block on the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::model::ids::SecretId;
use crate::model::secret::{MAX_SECRETS, MAX_VALUE, Secret, SecretValue};

const KEY: &str = "master.key";
const SUFFIX: &str = "secret";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// Longest file: what is known of a secret is bounded by the API, and base64 adds a third to the value.
const MAX_FILE: u64 = 64 << 10;

/// Why secrets can't be kept or read. No message holds a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// There is a secret of that id.
    #[error("there is a secret {0} already")]
    Exists(SecretId),
    /// There are as many as there may be.
    #[error("there are {MAX_SECRETS} secrets already")]
    Full,
    /// There is none of that id.
    #[error("there is no secret {0}")]
    Unknown(SecretId),
    /// A file is not what it should be, or the key is another one.
    #[error("{} is damaged, or was encrypted with another key", .0.display())]
    Damaged(PathBuf),
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
    /// The system gave no random bytes.
    #[error("no random bytes")]
    Random(#[source] getrandom::Error),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VaultError {
    move |source| VaultError::Io { action, path: path.to_owned(), source }
}

/// The secrets of one daemon.
pub struct Vault {
    dir: PathBuf,
    /// What is known of each; read once.
    known: Mutex<Option<BTreeMap<SecretId, Secret>>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({})", self.dir.display())
    }
}

type Known<'a> = MutexGuard<'a, Option<BTreeMap<SecretId, Secret>>>;

impl Vault {
    /// The secrets in `dir`, which need not exist; nothing is read or written yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), known: Mutex::default() }
    }

    /// Keeps a secret.
    ///
    /// # Errors
    /// [`VaultError::Exists`], [`VaultError::Full`]; nothing is kept then.
    pub fn insert(&self, secret: &Secret, value: &SecretValue) -> Result<(), VaultError> {
        let mut known = self.known()?;
        let known = known.get_or_insert_default();
        if known.contains_key(&secret.id) {
            return Err(VaultError::Exists(secret.id.clone()));
        }
        if known.len() >= MAX_SECRETS {
            return Err(VaultError::Full);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(io("make", &self.dir))?;
        let path = self.path(&secret.id);
        let damaged = || VaultError::Damaged(path.clone());
        let cipher = self.cipher(true)?;
        let about = serde_json::to_string(secret).map_err(|_| damaged())?;
        let nonce = random::<NONCE_BYTES>()?;
        let payload = Payload { msg: value.expose().as_bytes(), aad: about.as_bytes() };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| damaged())?;
        let text = format!("{about}\n{}\n", STANDARD.encode([&nonce[..], &sealed].concat()));
        self.write(&path, text.as_bytes())?;
        known.insert(secret.id.clone(), secret.clone());
        Ok(())
    }

    /// What is known of a secret.
    ///
    /// # Errors
    /// [`VaultError::Unknown`].
    pub fn get(&self, id: &SecretId) -> Result<Secret, VaultError> {
        let known = self.known()?;
        let found = known.as_ref().and_then(|known| known.get(id)).cloned();
        found.ok_or_else(|| VaultError::Unknown(id.clone()))
    }

    /// Secrets after an id, in order.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn list(&self, after: &str, limit: usize) -> Result<Vec<Secret>, VaultError> {
        let known = self.known()?;
        let all = known.iter().flat_map(BTreeMap::values);
        Ok(all.filter(|secret| secret.id.as_str() > after).take(limit).cloned().collect())
    }

    /// The value of a secret, and what is known of it: who may use it is what was encrypted with the value.
    ///
    /// # Errors
    /// [`VaultError::Unknown`], [`VaultError::Damaged`].
    pub fn reveal(&self, id: &SecretId) -> Result<(Secret, SecretValue), VaultError> {
        // Nobody may delete it meanwhile.
        let known = self.known()?;
        if !known.as_ref().is_some_and(|known| known.contains_key(id)) {
            return Err(VaultError::Unknown(id.clone()));
        }
        let path = self.path(id);
        let damaged = || VaultError::Damaged(path.clone());
        let (about, sealed) = read(&path)?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(damaged)?;
        let payload = Payload { msg: sealed, aad: about.as_bytes() };
        let value = self.cipher(false)?.decrypt(&XNonce::from(*nonce), payload).map_err(|_| damaged())?;
        let value = Zeroizing::new(value);
        let text = std::str::from_utf8(&value).map_err(|_| damaged())?;
        let secret: Secret = serde_json::from_str(&about).map_err(|_| damaged())?;
        if secret.id != *id || text.len() > MAX_VALUE {
            return Err(damaged());
        }
        Ok((secret, SecretValue::new(Zeroizing::new(text.to_owned()))))
    }

    /// Forgets a secret. Its bytes may stay on the disk until they are written over, encrypted as they are.
    ///
    /// # Errors
    /// [`VaultError::Unknown`].
    pub fn remove(&self, id: &SecretId) -> Result<(), VaultError> {
        let mut known = self.known()?;
        let known = known.get_or_insert_default();
        if !known.contains_key(id) {
            return Err(VaultError::Unknown(id.clone()));
        }
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("remove", &path)(error)),
            _ => {}
        }
        self.sync()?;
        known.remove(id);
        Ok(())
    }

    /// What is known, read from the directory by whoever comes first.
    fn known(&self) -> Result<Known<'_>, VaultError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = Some(self.read_all()?);
        }
        Ok(known)
    }

    fn read_all(&self) -> Result<BTreeMap<SecretId, Secret>, VaultError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(io("read", &self.dir))?,
        };
        let mut all = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(io("read", &self.dir))?.path();
            if path.extension().is_none_or(|ending| ending != SUFFIX) {
                continue;
            }
            let secret = read(&path).and_then(|(about, _)| {
                serde_json::from_str::<Secret>(&about).map_err(|_| VaultError::Damaged(path.clone()))
            });
            match secret {
                Ok(secret) if self.path(&secret.id) == path => {
                    all.insert(secret.id.clone(), secret);
                }
                // One broken file must not hide the others.
                Ok(_) => tracing::error!(path = %path.display(), "a secret under another name is left out"),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a secret is left out");
                }
            }
        }
        Ok(all)
    }

    fn path(&self, id: &SecretId) -> PathBuf {
        self.dir.join(format!("{id}.{SUFFIX}"))
    }

    fn cipher(&self, make: bool) -> Result<XChaCha20Poly1305, VaultError> {
        let path = self.dir.join(KEY);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        match File::open(&path) {
            Ok(mut file) => {
                let mode = file.metadata().map_err(io("look at", &path))?.permissions().mode();
                if mode & 0o077 != 0 {
                    tracing::warn!(path = %path.display(), "others could read the key of the secrets; now they can't");
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                        .map_err(io("protect", &path))?;
                }
                file.read_exact(&mut *key).map_err(|_| VaultError::Damaged(path.clone()))?;
            }
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                *key = random()?;
                self.write(&path, &*key)?;
            }
            Err(error) => return Err(io("read", &path)(error)),
        }
        Ok(XChaCha20Poly1305::new((&*key).into()))
    }

    /// A new file, whole and durable. The name is free: calls hold the lock.
    fn write(&self, path: &Path, data: &[u8]) -> Result<(), VaultError> {
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(&self.dir).map_err(io("write in", &self.dir))?;
        file.write_all(data).map_err(io("write", path))?;
        file.as_file().sync_all().map_err(io("write", path))?;
        file.persist_noclobber(path).map_err(|error| io("write", path)(error.error))?;
        self.sync().inspect_err(|_| {
            // Who is told that it failed may try again, so the name must be free.
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "what could not be made durable is left behind");
            }
        })
    }

    fn sync(&self) -> Result<(), VaultError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("sync", &self.dir))
    }
}

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(VaultError::Random)?;
    Ok(bytes)
}

/// The two lines of a file.
fn read(path: &Path) -> Result<(String, Vec<u8>), VaultError> {
    let mut text = String::new();
    let file = File::open(path).map_err(io("read", path))?;
    file.take(MAX_FILE).read_to_string(&mut text).map_err(io("read", path))?;
    let damaged = || VaultError::Damaged(path.to_owned());
    let (about, sealed) = text.trim_end().split_once('\n').ok_or_else(damaged)?;
    Ok((about.to_owned(), STANDARD.decode(sealed).map_err(|_| damaged())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use uuid::Uuid;

    const VALUE: &str = "corrêct-hörse";

    fn secret(id: &str) -> Secret {
        Secret {
            id: SecretId::new(id).expect("id"),
            uid: Uuid::new_v4(),
            description: "of the shop".into(),
            allowed_pools: Vec::new(),
            allowed_callers: vec!["ci".into()],
            created: Timestamp::UNIX_EPOCH,
            request: None,
        }
    }

    fn value() -> SecretValue {
        SecretValue::new(Zeroizing::new(VALUE.to_owned()))
    }

    #[test]
    fn a_name_is_free_when_what_it_was_for_could_not_be_made_durable() {
        let nobody = rustix::process::Uid::from_raw(65534);
        let dir = tempfile::tempdir().expect("dir");
        let home = dir.path().join("secrets");
        let vault = Vault::new(&home);
        vault.insert(&secret("mail"), &value()).expect("kept");
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        let root = rustix::process::geteuid().is_root();
        if root {
            for path in [&home, &home.join(KEY)] {
                std::os::unix::fs::chown(path, Some(nobody.as_raw()), None).expect("given away");
            }
        }
        mode(dir.path(), 0o711).expect("passable");
        // Files can be made and removed in it, but it can't be opened, which is needed to sync it.
        mode(&home, 0o300).expect("changed");
        let kept = std::thread::scope(|scope| {
            let failing = scope.spawn(|| {
                if root {
                    // Nothing is forbidden to root. Only this thread becomes somebody else.
                    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("nobody");
                }
                vault.insert(&secret("shop"), &value())
            });
            failing.join().expect("no panic")
        });
        assert!(matches!(kept, Err(VaultError::Io { action: "sync", .. })), "{kept:?}");
        mode(&home, 0o700).expect("changed");
        assert!(vault.get(&secret("shop").id).is_err());
        vault.insert(&secret("shop"), &value()).expect("kept at last");
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_no_file_shows_it() {
        let dir = tempfile::tempdir().expect("dir");
        let home = dir.path().join("secrets");
        let vault = Vault::new(&home);
        assert!(vault.list("", 10).expect("none yet").is_empty());
        assert!(!home.exists(), "looking makes nothing");
        let shop = secret("shop");
        vault.insert(&shop, &value()).expect("kept");
        vault.insert(&secret("mail"), &value()).expect("kept");
        assert!(matches!(vault.insert(&shop, &value()), Err(VaultError::Exists(_))));

        let again = Vault::new(&home);
        let ids: Vec<_> = again.list("", 10).expect("listed").into_iter().map(|s| s.id.to_string()).collect();
        assert_eq!(ids, ["mail", "shop"]);
        assert_eq!(again.list("mail", 10).expect("listed"), std::slice::from_ref(&shop));
        let (about, revealed) = again.reveal(&shop.id).expect("revealed");
        assert_eq!((about, revealed.expose()), (shop.clone(), VALUE));
        for entry in fs::read_dir(&home).expect("dir") {
            let path = entry.expect("entry").path();
            let meta = fs::metadata(&path).expect("meta");
            assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{}", path.display());
            let bytes = fs::read(&path).expect("bytes");
            let found = bytes.windows(VALUE.len()).any(|part| part == VALUE.as_bytes());
            assert!(!found, "{} shows it", path.display());
        }
        again.remove(&shop.id).expect("removed");
        assert!(matches!(again.reveal(&shop.id), Err(VaultError::Unknown(_))));
        assert!(matches!(Vault::new(&home).get(&shop.id), Err(VaultError::Unknown(_))));
    }

    #[test]
    fn who_may_use_it_can_not_be_changed_in_the_file() {
        let dir = tempfile::tempdir().expect("dir");
        let vault = Vault::new(dir.path());
        let shop = secret("shop");
        vault.insert(&shop, &value()).expect("kept");
        let path = dir.path().join("shop.secret");
        let text = fs::read_to_string(&path).expect("text");
        fs::write(&path, text.replace("\"ci\"", "\"me\"")).expect("changed");
        assert!(matches!(Vault::new(dir.path()).reveal(&shop.id), Err(VaultError::Damaged(_))));
        fs::write(&path, &text).expect("back");
        fs::write(dir.path().join(KEY), [7; KEY_BYTES]).expect("another key");
        assert!(matches!(vault.reveal(&shop.id), Err(VaultError::Damaged(_))));
        fs::write(dir.path().join("mail.secret"), &text).expect("under another name");
        assert_eq!(
            Vault::new(dir.path()).list("", 10).expect("listed"),
            [shop],
            "the broken one is left out"
        );
    }
}
