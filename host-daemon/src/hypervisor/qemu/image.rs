//! Is this file a disk image, and which?
//!
//! Formats are found out once, at import, and named explicitly ever after: a raw disk whose guest writes a qcow2 header
//! into it must stay a raw disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::program;
use crate::hypervisor::{HvError, HvResult};

/// Formats a golden disk may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    /// QEMU's own.
    Qcow2,
    /// Nothing but the sectors.
    Raw,
}

impl Format {
    /// QEMU's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }

    /// From a template's `disk_format`.
    pub(crate) fn parse(name: &str) -> HvResult<Self> {
        match name {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            other => Err(HvError::BadSetting {
                field: "disk_format",
                why: format!("{other:?} is not a format of golden disks here; qcow2 and raw are"),
            }),
        }
    }
}

/// What `qemu-img info` says, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    format_specific: FormatSpecific,
}

#[derive(Debug, Default, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<String>,
    #[serde(default)]
    corrupt: bool,
}

/// A disk that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its format.
    pub(crate) format: Format,
    /// Size of the disk that the guest sees.
    pub(crate) virtual_bytes: u64,
}

/// Looks at a file that claims to be a disk image, of this format if one is named.
pub(crate) async fn inspect(img: &Path, path: &Path, wanted: Option<Format>) -> HvResult<Image> {
    let bad = |why: String| HvError::NotAnImage { path: path.to_owned(), why };
    let args = ["info", "--force-share", "--output=json"].map(Into::into);
    let args = [&args[..], &[path.as_os_str().to_owned()]].concat();
    let text = match program::output::<std::ffi::OsString>(img, &args).await {
        Err(HvError::Process(words)) => return Err(bad(words)),
        other => other?,
    };
    let info: Info = serde_json::from_str(&text).map_err(|error| bad(format!("qemu-img: {error}")))?;
    let format = match info.format.as_str() {
        "qcow2" => Format::Qcow2,
        "raw" => Format::Raw,
        other => {
            return Err(bad(format!("its format is {other}; convert it to qcow2 with qemu-img convert")));
        }
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != format) {
        return Err(bad(format!("its format is {}, not {}", format.name(), wanted.name())));
    }
    if let Some(backing) = info.backing_filename {
        return Err(bad(format!("it needs another file, {backing}; flatten it with qemu-img convert")));
    }
    if let Some(data) = info.format_specific.data.data_file {
        return Err(bad(format!("its data is in another file, {data}; flatten it with qemu-img convert")));
    }
    if info.format_specific.data.corrupt {
        return Err(bad("it is marked corrupt".to_owned()));
    }
    if info.virtual_size == 0 {
        return Err(bad("it is empty".to_owned()));
    }
    if format == Format::Raw {
        plausible_raw(path).map_err(bad)?;
    }
    Ok(Image { format, virtual_bytes: info.virtual_size })
}

/// Anything is a raw disk to QEMU. One that can be booted or mounted begins with one of these.
const SIGNATURES: &[(&str, u64, &[u8])] = &[
    ("boot sector or partition table", 510, &[0x55, 0xaa]),
    ("GPT", 512, b"EFI PART"),
    ("ext2, ext3 or ext4", 1080, &[0x53, 0xef]),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("ISO 9660", 0x8001, b"CD001"),
    ("LVM", 536, b"LVM2"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
];

fn plausible_raw(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    if bytes == 0 {
        return Err("it is empty".to_owned());
    }
    if bytes % 512 != 0 {
        return Err(format!("its size of {bytes} bytes is no multiple of 512"));
    }
    let has = |&(_, offset, magic): &(&str, u64, &[u8])| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, offset).is_ok() && found == magic
    };
    if SIGNATURES.iter().any(has) {
        return Ok(());
    }
    let names: Vec<_> = SIGNATURES.iter().map(|(name, ..)| *name).collect();
    Err(format!("it has neither the header of qcow2 nor, as a raw disk, that of {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_files_need_the_looks_of_a_disk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        let verdict = |content: &[u8]| {
            std::fs::write(&path, content).expect("write");
            plausible_raw(&path)
        };
        assert!(verdict(b"").expect_err("empty").contains("empty"));
        assert!(verdict(b"hello, I am a text file").expect_err("odd").contains("512"));
        assert!(verdict(&[b'a'; 4096]).expect_err("text").contains("neither"));
        let mut disk = vec![0; 4096];
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(verdict(&disk), Ok(()));
        let mut disk = vec![0; 512];
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(verdict(&disk), Ok(()));
    }

    #[test]
    fn formats_other_than_ours_are_refused_by_name() {
        assert_eq!(Format::parse("raw").expect("raw"), Format::Raw);
        let error = Format::parse("vhdx").expect_err("not here").to_string();
        assert!(error.contains("disk_format") && error.contains("vhdx"), "{error}");
    }
}
