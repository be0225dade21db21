//! The folder that images live in: one build at a time, whole folders only, old ones removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::interrupt;
use crate::progress::Step;

/// Names of unfinished folders begin with this.
const WORK_PREFIX: &str = ".building-";
/// How many folders of a flavour stay: the newest, and the one that a running daemon's template may still be made from.
const KEEP: usize = 2;

/// The cache, locked for this process.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// Where stage one's results are.
    rootfs: PathBuf,
    /// Held until the end; the kernel drops it with the process.
    _lock: File,
}

impl Cache {
    /// Opens the cache, waiting for a build that runs already.
    pub(super) fn open(folder: Option<&Path>) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => std::path::absolute(folder).context("find the cache folder")?,
            None => directories::ProjectDirs::from("dev", "hvkube", "hvkube")
                .context("find the user's cache folder: HOME is not set")?
                .cache_dir()
                .join("images"),
        };
        let rootfs = folder.join("rootfs");
        fs::create_dir_all(&rootfs).with_context(|| format!("create {}", rootfs.display()))?;

        let path = folder.join(".lock");
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let step = Step::start("waiting for another image build");
            while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                interrupt::check()?;
                if error != rustix::io::Errno::WOULDBLOCK {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            step.done();
        }

        let cache = Self { folder, rootfs, _lock: lock };
        cache.remove_unfinished()?;
        Ok(cache)
    }

    /// The folder of this name, if it is there; it counts as used now.
    pub(super) fn find(&self, name: &str) -> anyhow::Result<Option<PathBuf>> {
        used(self.folder.join(name))
    }

    /// Like [`Cache::find`], for a result of stage one.
    pub(super) fn find_rootfs(&self, name: &str) -> anyhow::Result<Option<PathBuf>> {
        used(self.rootfs.join(name))
    }

    /// An empty folder on the cache's file system; removed unless published.
    pub(super) fn work_folder(&self) -> anyhow::Result<TempDir> {
        tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&self.folder)
            .with_context(|| format!("create a folder in {}", self.folder.display()))
    }

    /// Makes a finished work folder the image of this name.
    pub(super) fn publish(&self, work: TempDir, name: &str) -> anyhow::Result<PathBuf> {
        publish(work, self.folder.join(name))
    }

    /// Makes a finished work folder stage one's result of this name, in place of an older one.
    pub(super) fn publish_rootfs(&self, work: TempDir, name: &str) -> anyhow::Result<PathBuf> {
        let target = self.rootfs.join(name);
        if target.exists() {
            remove(&target)?;
        }
        publish(work, target)
    }

    /// Removes all but the last used folders of a flavour.
    pub(super) fn prune(&self, flavour: &str) -> anyhow::Result<()> {
        for folder in [&self.folder, &self.rootfs] {
            let mut entries = Vec::new();
            for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
                let entry = entry.with_context(|| format!("list {}", folder.display()))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                entries.push((name, entry.metadata()?.modified()?));
            }
            for name in outdated(entries, flavour) {
                remove(&folder.join(name))?;
            }
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.folder).with_context(|| format!("list {}", self.folder.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Of (name, last use), the names of a flavour's folders that may go.
fn outdated(entries: Vec<(String, SystemTime)>, flavour: &str) -> Vec<String> {
    let ours = |name: &str| {
        name.strip_prefix(flavour).and_then(|rest| rest.strip_prefix('-')).is_some_and(|hash| {
            hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let mut entries: Vec<_> = entries.into_iter().filter(|(name, _)| ours(name)).collect();
    entries.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    entries.into_iter().skip(KEEP).map(|(name, _)| name).collect()
}

fn used(folder: PathBuf) -> anyhow::Result<Option<PathBuf>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    File::open(&folder)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("mark {} as used", folder.display()))?;
    Ok(Some(folder))
}

fn publish(work: TempDir, target: PathBuf) -> anyhow::Result<PathBuf> {
    // Others may read images: a temporary folder is private until now.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(work.path(), mode).with_context(|| format!("open {}", work.path().display()))?;
    fs::rename(work.path(), &target).with_context(|| format!("create {}", target.display()))?;
    // Renamed away: there is nothing left for it to remove.
    let _ = work.keep();
    Ok(target)
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(name: &str, age: u64) -> (String, SystemTime) {
        (name.to_owned(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 - age))
    }

    #[test]
    fn the_last_used_two_of_a_flavour_stay() {
        let entries = vec![
            entry("plain-000000000001", 30),
            entry("plain-000000000002", 10),
            entry("plain-000000000003", 20),
            entry("plain-000000000004", 40),
            entry("chromium-000000000005", 90),
            entry("plain-notes", 99),
            entry("rootfs", 99),
        ];
        assert_eq!(outdated(entries, "plain"), ["plain-000000000001", "plain-000000000004"]);
    }

    #[test]
    fn unfinished_folders_go_and_finished_ones_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(folder.path())).unwrap();
        // What a killed build leaves: a work folder nobody removed.
        let left = cache.work_folder().unwrap().keep();
        let done = cache.work_folder().unwrap();
        fs::write(done.path().join("image.json"), "{}").unwrap();
        assert!(cache.find("plain-000000000001").unwrap().is_none());
        let image = cache.publish(done, "plain-000000000001").unwrap();
        drop(cache);

        let cache = Cache::open(Some(folder.path())).unwrap();
        assert!(!left.exists());
        assert_eq!(cache.find("plain-000000000001").unwrap(), Some(image.clone()));
        assert!(image.join("image.json").exists());
    }

    #[test]
    fn the_lock_is_exclusive() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(folder.path())).unwrap();
        let other = File::open(folder.path().join(".lock")).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(cache);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
