//! What `packer/linux-desktop` says the image is: settings, packages, and the files laid over the installed system.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::read;

/// A variant of the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Flavour {
    /// Terminal and text editor
    #[default]
    Plain,
    /// The same with Chromium
    Chromium,
}

impl Flavour {
    /// Its name in folders, package lists and stamps.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Chromium => "chromium",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// `image.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    pub(super) suite: String,
    pub(super) sources: Vec<String>,
    /// Newest glibc symbol version of the suite, `major.minor`.
    pub(super) glibc: String,
    pub(super) memory_mb: MemoryMb,
    pub(super) cpu_count: u32,
    pub(super) cmdline: String,
    /// Seconds since 1970 that the build takes for now.
    pub(super) source_date_epoch: u32,
    pub(super) filesystem_uuid: String,
    pub(super) disk_gb: u32,
    pub(super) notable: Vec<String>,
}

/// Memory of the machine, by flavour.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryMb {
    plain: u32,
    chromium: u32,
}

/// Everything a build reads, except the agent.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) folder: PathBuf,
    pub(super) flavour: Flavour,
    pub(super) image: Settings,
    pub(super) settings_text: String,
    pub(super) packages: Vec<String>,
}

/// One file or symbolic link to lay over the installed system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OverlayFile {
    /// Where it goes, relative to the guest's root.
    pub(super) path: PathBuf,
    pub(super) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    File { bytes: Vec<u8>, executable: bool },
    Link(PathBuf),
}

impl Spec {
    pub(super) fn load(folder: &Path, flavour: Flavour) -> anyhow::Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let settings_text = text("image.toml")?;
        let image = toml::from_str(&settings_text).context("read image.toml")?;
        let packages = packages(&text("packages.txt")?, flavour).context("read packages.txt")?;
        Ok(Self { folder: folder.to_owned(), flavour, image, settings_text, packages })
    }

    pub(super) fn memory_mb(&self) -> u32 {
        match self.flavour {
            Flavour::Plain => self.image.memory_mb.plain,
            Flavour::Chromium => self.image.memory_mb.chromium,
        }
    }

    /// Adds what decides stage one to a hash.
    pub(super) fn hash_rootfs(&self, hash: &mut Sha256) -> anyhow::Result<()> {
        field(hash, "suite", self.image.suite.as_bytes());
        field(hash, "sources", self.image.sources.join("\n").as_bytes());
        field(hash, "epoch", &self.image.source_date_epoch.to_le_bytes());
        field(hash, "packages", self.packages.join("\n").as_bytes());
        for name in ["dpkg.cfg", "customize.sh", "initrd/init", "initrd/modules"] {
            field(hash, name, &read(&self.folder.join(name))?);
        }
        Ok(())
    }

    /// The files of `rootfs/` and, over them, those of the flavour's own `rootfs-<flavour>/`; sorted by path.
    pub(super) fn overlay(&self) -> anyhow::Result<Vec<OverlayFile>> {
        let mut files = Vec::new();
        for name in ["rootfs".to_owned(), format!("rootfs-{}", self.flavour)] {
            let base = self.folder.join(name);
            if base.is_dir() {
                collect(&base, &base, &mut files)?;
            }
        }
        // Stable: of two files with one path the flavour's comes last, and stays.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.reverse();
        files.dedup_by(|later, kept| later.path == kept.path);
        files.reverse();
        Ok(files)
    }
}

/// Adds a named, delimited value to a hash, so that no two lists of values look alike.
pub(super) fn field(hash: &mut Sha256, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), value] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
}

fn collect(base: &Path, folder: &Path, files: &mut Vec<OverlayFile>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let path = entry.path();
        let about = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        if about.is_dir() {
            collect(base, &path, files)?;
            continue;
        }
        let content = if about.is_symlink() {
            Content::Link(fs::read_link(&path).with_context(|| format!("read {}", path.display()))?)
        } else {
            Content::File { bytes: read(&path)?, executable: about.permissions().mode() & 0o111 != 0 }
        };
        files.push(OverlayFile { path: path.strip_prefix(base)?.to_owned(), content });
    }
    Ok(())
}

/// The packages of a flavour: section `[plain]`, then the flavour's own.
fn packages(text: &str, flavour: Flavour) -> anyhow::Result<Vec<String>> {
    let mut section = None;
    let mut names = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = Some(name.to_owned());
            continue;
        }
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        if !line.chars().all(legal) {
            bail!("line {number}: `{line}` is not a package name");
        }
        match section.as_deref() {
            None => bail!("line {number}: `{line}` is in no section"),
            Some(name) if name == "plain" || name == flavour.name() => names.push(line.to_owned()),
            Some(_) => {}
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# all\n[plain]\nxterm\n\nopenbox\n[chromium]\nchromium\n";

    #[test]
    fn a_flavour_adds_to_plain() {
        assert_eq!(packages(LIST, Flavour::Plain).unwrap(), ["xterm", "openbox"]);
        assert_eq!(packages(LIST, Flavour::Chromium).unwrap(), ["xterm", "openbox", "chromium"]);
    }

    #[test]
    fn a_bad_package_list_names_the_line() {
        let error = |text| packages(text, Flavour::Plain).unwrap_err().to_string();
        assert_eq!(error("xterm"), "line 1: `xterm` is in no section");
        assert_eq!(error("[plain]\nxterm,evil"), "line 2: `xterm,evil` is not a package name");
    }

    #[test]
    fn hashed_fields_do_not_run_into_each_other() {
        let digest = |fields: &[(&str, &str)]| {
            let mut hash = Sha256::new();
            for (name, value) in fields {
                field(&mut hash, name, value.as_bytes());
            }
            hash.finalize()
        };
        assert_ne!(digest(&[("a", "bc")]), digest(&[("ab", "c")]));
        assert_ne!(digest(&[("a", "b"), ("c", "d")]), digest(&[("a", "bcd")]));
    }

    #[test]
    fn a_flavours_file_replaces_the_plain_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("rootfs/etc/b", "plain b");
        write("rootfs/etc/a", "plain a");
        write("rootfs-chromium/etc/a", "chromium a");
        write("image.toml", &fs::read_to_string(repository().join("image.toml")).unwrap());
        write("packages.txt", LIST);

        let files = Spec::load(folder.path(), Flavour::Chromium).unwrap().overlay().unwrap();
        let text = |file: &OverlayFile| match &file.content {
            Content::File { bytes, .. } => String::from_utf8(bytes.clone()).unwrap(),
            Content::Link(_) => panic!("no links here"),
        };
        assert_eq!(files.iter().map(text).collect::<Vec<_>>(), ["chromium a", "plain b"]);
    }

    #[test]
    fn the_image_in_this_repository_is_well_formed() {
        for flavour in [Flavour::Plain, Flavour::Chromium] {
            let spec = Spec::load(&repository(), flavour).unwrap();
            assert!(spec.packages.iter().any(|name| name == "openbox"));
            let overlay = spec.overlay().unwrap();
            let executable = |path: &str| {
                overlay.iter().any(|file| {
                    file.path == Path::new(path)
                        && matches!(file.content, Content::File { executable: true, .. })
                })
            };
            assert!(executable("usr/lib/hvkube/session") && executable("usr/bin/terminal"));
            spec.hash_rootfs(&mut Sha256::new()).unwrap();
        }
    }

    fn repository() -> PathBuf {
        crate::image::workspace().join("packer/linux-desktop")
    }
}
