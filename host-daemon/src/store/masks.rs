//! Masks in files of their own: they must be there again before the first picture after a restart.
//!
//! ```text
//! masks/VM.json        0600: whose masks they are (VM by uid, lease) and what they cover
//! ```
//!
//! A file that is there and makes no sense covers everything: what was to be hidden must not show because a disk failed.
//! All calls block on the disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use uuid::Uuid;

use crate::model::ids::{LeaseId, VmId};
use crate::model::mask::Masks;

/// Masks, and what they belong to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// The VM's.
    pub uid: Uuid,
    /// Under which they were made; with it they end.
    pub lease: Option<LeaseId>,
    /// What is covered.
    pub masks: Masks,
}

/// The masks of one daemon.
#[derive(Debug)]
pub struct MaskFiles {
    dir: PathBuf,
}

impl MaskFiles {
    /// In `dir`, which need not exist; nothing is read or written yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Keeps masks in place of those before; durable when it returns.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, vm: &VmId, kept: &Kept) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.as_file().sync_all()?;
        file.persist(self.path(vm)).map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()
    }

    /// What a VM with this uid and lease has. All of it is covered where masks of a lease are left and there is none.
    #[must_use]
    pub fn read(&self, vm: &VmId, uid: Uuid, lease: Option<&LeaseId>) -> Option<Masks> {
        let data = match fs::read(self.path(vm)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            data => data,
        };
        let kept = data.and_then(|data| serde_json::from_slice::<Kept>(&data).map_err(io::Error::from));
        match kept {
            Ok(kept) if kept.uid != uid => None,
            Ok(kept) if kept.lease.as_ref() == lease => Some(kept.masks),
            // Masks that are over are removed, so their lease ended and what they cover was not cleaned away yet.
            Ok(_) if lease.is_none() => Some(Masks::everything()),
            Ok(_) => None,
            Err(error) => {
                tracing::error!(%vm, %error, "the vm's masks can't be read, all of its screen is covered");
                Some(Masks::everything())
            }
        }
    }

    /// Forgets a VM's masks. That they may stay behind does no harm: they belong to nothing any more.
    pub fn remove(&self, vm: &VmId) {
        match fs::remove_file(self.path(vm)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%vm, %error, "old masks are left behind");
            }
            _ => {}
        }
    }

    fn path(&self, vm: &VmId) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::screen::{Rect, Size};

    #[test]
    fn masks_are_of_one_vm_and_one_lease_and_a_broken_file_covers_everything() {
        let dir = tempfile::tempdir().expect("dir");
        let files = MaskFiles::new(dir.path().join("masks"));
        let (vm, uid) = (VmId::new("vm-1").expect("id"), Uuid::new_v4());
        let lease = LeaseId::new("l-1").expect("id");
        assert_eq!(files.read(&vm, uid, None), None);
        let areas = vec![Rect { x: 1, y: 2, width: 3, height: 4 }];
        let masks = Masks { frame: Size { width: 640, height: 400 }, areas };
        let kept = Kept { uid, lease: Some(lease.clone()), masks: masks.clone() };
        files.write(&vm, &kept).expect("kept");
        assert_eq!(files.read(&vm, uid, Some(&lease)), Some(masks));
        assert_eq!(
            files.read(&vm, uid, None),
            Some(Masks::everything()),
            "the lease ended, the screen is as it was"
        );
        assert_eq!(files.read(&vm, uid, Some(&LeaseId::new("l-2").expect("id"))), None, "another lease");
        assert_eq!(files.read(&vm, Uuid::new_v4(), Some(&lease)), None, "another vm of that name");
        fs::write(dir.path().join("masks/vm-1.json"), "{").expect("broken");
        assert_eq!(files.read(&vm, uid, Some(&lease)), Some(Masks::everything()));
        files.remove(&vm);
        files.remove(&vm);
        assert_eq!(files.read(&vm, uid, Some(&lease)), None);
    }
}
