//! `image.json`: what an image is and how to boot it. The same file is in the guest at `/etc/hvkube/image.json`.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::read;

/// Raised when a field changes its meaning.
pub(super) const FORMAT_VERSION: u32 = 1;

/// The stamp of one image. Paths are relative to the image's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) format_version: u32,
    pub(crate) flavour: String,
    /// First 12 digits of the SHA-256 of everything that went in.
    pub(crate) hash: String,
    pub(crate) disk: String,
    /// QEMU's name of the disk's format.
    pub(crate) disk_format: String,
    pub(crate) kernel: String,
    pub(crate) initrd: String,
    /// Kernel command line.
    pub(crate) cmdline: String,
    pub(crate) memory_mb: u32,
    pub(crate) cpu_count: u32,
    /// `name version` of the packages people ask about.
    pub(crate) installed_software: Vec<String>,
    pub(crate) agent_sha256: String,
    pub(crate) debian_version: String,
    pub(crate) built_with: String,
}

impl Stamp {
    /// Reads the stamp in an image's folder.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("image.json");
        let stamp: Self =
            serde_json::from_slice(&read(&path)?).with_context(|| format!("read {}", path.display()))?;
        ensure!(
            stamp.format_version == FORMAT_VERSION,
            "{} has format version {}, this xtask knows {FORMAT_VERSION}",
            path.display(),
            stamp.format_version
        );
        Ok(stamp)
    }

    /// The file's text.
    pub(super) fn to_text(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self).context("write image.json")? + "\n")
    }
}

/// Of the installed packages (`name version` lines), those in `notable`, in its order.
pub(super) fn installed_software(packages: &str, notable: &[String]) -> Vec<String> {
    let line_of = |name: &String| {
        packages.lines().find(|line| line.split(' ').next() == Some(name.as_str())).map(str::to_owned)
    };
    notable.iter().filter_map(line_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            format_version: FORMAT_VERSION,
            flavour: "plain".into(),
            hash: "0123456789ab".into(),
            disk: "disk.qcow2".into(),
            disk_format: "qcow2".into(),
            kernel: "vmlinuz".into(),
            initrd: "initrd.img".into(),
            cmdline: "root=/dev/vda".into(),
            memory_mb: 512,
            cpu_count: 2,
            installed_software: vec!["xterm 379-1".into()],
            agent_sha256: "00".into(),
            debian_version: "12.12".into(),
            built_with: "by hand".into(),
        }
    }

    #[test]
    fn a_stamp_reads_back_and_a_strange_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.json");
        std::fs::write(&path, stamp().to_text().unwrap()).unwrap();
        assert_eq!(Stamp::read(folder.path()).unwrap(), stamp());

        let strange = Stamp { format_version: 9, ..stamp() };
        std::fs::write(&path, strange.to_text().unwrap()).unwrap();
        assert!(Stamp::read(folder.path()).unwrap_err().to_string().contains("format version 9"));
    }

    #[test]
    fn notable_packages_keep_their_order_and_absent_ones_are_left_out() {
        let packages = "mousepad 0.5.10-2\nxterm 379-1\nxterm-extra 1\n";
        let notable = ["xterm", "chromium", "mousepad"].map(str::to_owned);
        assert_eq!(installed_software(packages, &notable), ["xterm 379-1", "mousepad 0.5.10-2"]);
    }
}
