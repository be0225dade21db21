//! Files that must be there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::error::Context;
use crate::hypervisor::{HvError, HvResult};

/// What is in a file, which is refused when it is longer.
pub(crate) fn read_at_most(path: &Path, most: u64) -> HvResult<Vec<u8>> {
    let mut content = Vec::new();
    let file = File::open(path).context("read", path)?;
    file.take(most + 1).read_to_end(&mut content).context("read", path)?;
    if content.len() as u64 > most {
        return Err(HvError::Process(format!("{} is longer than {most} bytes", path.display())));
    }
    Ok(content)
}

/// Makes a folder, and those above it, that only we can enter.
pub(crate) fn private_dir(path: &Path) -> HvResult<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).context("create folder", path)
}

/// Whether a write must outlive the host or only the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Survives a crash of the host when the call has returned.
    Host,
    /// Survives a crash of the daemon.
    Daemon,
}

/// Replaces a file by this value as JSON; a reader sees the old or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> HvResult<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| HvError::Io {
        context: format!("serialise {}", path.display()),
        source: error.into(),
    })?;
    let replaced = || -> io::Result<()> {
        let next = path.with_extension("next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&text)?;
        if durability == Durability::Host {
            file.sync_data()?;
        }
        fs::rename(&next, path)?;
        if durability == Durability::Host {
            sync_parent(path)?;
        }
        Ok(())
    };
    replaced().context("write", path)
}

/// Reads what [`write_json`] wrote.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> HvResult<T> {
    let text = fs::read(path).context("read", path)?;
    serde_json::from_slice(&text).map_err(|error| HvError::Io {
        context: format!("understand {}", path.display()),
        source: error.into(),
    })
}

/// Makes sure that a file's content is on the medium.
pub(crate) fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes sure that the name of a file is on the medium.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Makes sure that a file is on the medium, name and content.
pub(crate) fn sync_new(path: &Path) -> HvResult<()> {
    sync_file(path).and_then(|()| sync_parent(path)).context("sync", path)
}

/// Removes a file or folder that may not be there.
pub(crate) fn remove(path: &Path) -> HvResult<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context("remove", path),
    }
}

/// Bytes that a file or folder takes on disk; what is gone meanwhile takes none.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let Ok(facts) = fs::symlink_metadata(path) else { return 0 };
    let inside = if facts.is_dir() {
        fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|entry| disk_bytes(&entry.path())).sum())
    } else {
        0
    };
    facts.blocks() * 512 + inside
}

/// What shows at once whether a file may have changed, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct FileFacts {
    stamp: Stamp,
    /// SHA-256 of its content, in hexadecimal.
    pub(crate) sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
struct Stamp {
    bytes: u64,
    device: u64,
    inode: u64,
    modified_seconds: i64,
    modified_nanos: i64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let facts = fs::metadata(path)?;
        Ok(Self {
            bytes: facts.len(),
            device: facts.dev(),
            inode: facts.ino(),
            modified_seconds: facts.mtime(),
            modified_nanos: facts.mtime_nsec(),
        })
    }
}

/// What a check of [`FileFacts`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// As recorded.
    Same,
    /// Touched or moved, but of the same content; these are the facts now.
    Touched(FileFacts),
    /// Another content, or gone.
    Changed,
}

impl FileFacts {
    /// Reads the whole file.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // Stamped before it is read: a write in between shows at the next check.
        let stamp = Stamp::of(path)?;
        let mut hash = Sha256::new();
        io::copy(&mut File::open(path)?, &mut Hashing(&mut hash))?;
        Ok(Self { stamp, sha256: hex::encode(hash.finalize()) })
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Whether the file's size, time and inode are as recorded.
    pub(crate) fn is_untouched(&self, path: &Path) -> bool {
        Stamp::of(path).is_ok_and(|stamp| stamp == self.stamp)
    }

    /// Compares with the file; reads it only when its size, time or inode differ.
    pub(crate) fn check(&self, path: &Path) -> Check {
        match Stamp::of(path) {
            Ok(stamp) if stamp == self.stamp => Check::Same,
            Ok(stamp) if stamp.bytes == self.stamp.bytes => match Self::of(path) {
                Ok(now) if now.sha256 == self.sha256 => Check::Touched(now),
                _ => Check::Changed,
            },
            _ => Check::Changed,
        }
    }
}

struct Hashing<'a>(&'a mut Sha256);

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.json");
        for (value, durability) in [(vec![1, 2], Durability::Host), (vec![3], Durability::Daemon)] {
            write_json(&path, &value, durability).expect("write");
            assert_eq!(read_json::<Vec<i32>>(&path).expect("read"), value);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_touched_file_is_the_same_and_a_rewritten_one_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        fs::write(&path, b"one").expect("write");
        let facts = FileFacts::of(&path).expect("facts");
        assert_eq!(facts.check(&path), Check::Same);
        fs::write(dir.path().join("other"), b"one").expect("write");
        fs::rename(dir.path().join("other"), &path).expect("rename");
        let Check::Touched(now) = facts.check(&path) else { panic!("same content") };
        assert_eq!(now.check(&path), Check::Same);
        fs::write(dir.path().join("other"), b"two").expect("write");
        fs::rename(dir.path().join("other"), &path).expect("rename");
        assert_eq!(facts.check(&path), Check::Changed);
        remove(&path).expect("remove");
        remove(&path).expect("remove what is gone");
        assert_eq!(facts.check(&path), Check::Changed);
    }
}
