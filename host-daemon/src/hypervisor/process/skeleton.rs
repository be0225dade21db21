//! The skeleton of a home directory: checked, hashed, copied.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Most files of a skeleton.
const MAX_FILES: usize = 10_000;
/// Most bytes of a skeleton: it is copied for each desktop and each reset.
const MAX_BYTES: u64 = 1 << 30;

/// What a skeleton holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Copies a tree and tells what it held. Links are copied as links; anything but files, directories and links is refused.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<Facts> {
    let mut tree = Tree { hash: Sha256::new(), files: 0, bytes: 0 };
    tree.copy(from, to, &PathBuf::new())?;
    Ok(Facts { bytes: tree.bytes, sha256: hex::encode(tree.hash.finalize()) })
}

struct Tree {
    hash: Sha256,
    files: usize,
    bytes: u64,
}

impl Tree {
    fn copy(&mut self, from: &Path, to: &Path, name: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(from)?;
        self.files += 1;
        self.bytes += if meta.is_file() { meta.len() } else { 0 };
        if self.files > MAX_FILES || self.bytes > MAX_BYTES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files or {MAX_BYTES} bytes")));
        }
        self.hash.update(name.as_os_str().as_encoded_bytes());
        self.hash.update([0]);
        self.hash.update((meta.permissions().mode() & 0o7777).to_le_bytes());
        if meta.is_dir() {
            self.hash.update(b"d");
            fs::create_dir(to)?;
            let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                self.copy(&entry.path(), &to.join(entry.file_name()), &name.join(entry.file_name()))?;
            }
            fs::set_permissions(to, meta.permissions())
        } else if meta.is_file() {
            self.hash.update(b"f");
            self.hash.update(meta.len().to_le_bytes());
            fs::copy(from, to)?;
            self.content(to)
        } else if meta.is_symlink() {
            let target = fs::read_link(from)?;
            self.hash.update(b"l");
            self.hash.update(target.as_os_str().as_encoded_bytes());
            symlink(target, to)
        } else {
            Err(io::Error::other(format!("{} is neither a file nor a directory nor a link", from.display())))
        }
    }

    fn content(&mut self, file: &Path) -> io::Result<()> {
        let mut file = fs::File::open(file)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.hash.update(&buffer[..n]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_tree_with_the_same_hash() {
        let dir = tempfile::tempdir().expect("a directory");
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("sub")).expect("made");
        fs::write(from.join("sub/file"), "content").expect("written");
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o750)).expect("set");
        symlink("sub/file", from.join("link")).expect("linked");
        let first = copy(&from, &dir.path().join("one")).expect("copied");
        assert_eq!(first.bytes, 7);
        assert_eq!(copy(&dir.path().join("one"), &dir.path().join("two")).expect("copied"), first);
        assert_eq!(fs::read_link(dir.path().join("two/link")).expect("a link"), Path::new("sub/file"));
        fs::write(from.join("sub/file"), "Content").expect("written");
        assert_ne!(copy(&from, &dir.path().join("three")).expect("copied").sha256, first.sha256);
        let socket = from.join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(socket).expect("bound");
        assert!(copy(&from, &dir.path().join("four")).is_err());
    }
}
